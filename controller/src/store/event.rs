//! What happens to tasks, as records of the journal.
//!
//! A record is `u32 length, u32 CRC-32 of the payload, payload`, little-endian; the payload starts with its kind. Frames in it
//! are inline or in the spill file of the record (see `spill`).

use std::ops::Range;

/// How a task, or a member of an array, ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Outcome {
    /// It ran and its reply says ok.
    Ok = 0,
    /// It failed, was lost, timed out or could not run.
    Error = 1,
    /// It was aborted.
    Aborted = 2,
}

impl Outcome {
    const ALL: [Self; 3] = [Self::Ok, Self::Error, Self::Aborted];

    pub(crate) fn from_u8(value: u8) -> Option<Self> {
        Self::ALL.get(usize::from(value)).copied()
    }
    /// The outcome that this stands for, as in replies, if it is one.
    pub(crate) fn of(status: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|known| known.as_str() == status)
    }
    /// As in replies: `ok`, `error`, `aborted`.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Outcome::Ok => "ok",
            Outcome::Error => "error",
            Outcome::Aborted => "aborted",
        }
    }
}

/// Which queue a request came by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Queue {
    /// The task scheduler.
    Task = 0,
    /// Direct (MUX).
    Mux = 1,
    /// Broadcast.
    Broadcast = 2,
}

impl Queue {
    pub(crate) fn from_u8(value: u8) -> Option<Self> {
        let all = [Queue::Task, Queue::Mux, Queue::Broadcast];
        all.get(usize::from(value)).copied()
    }
    /// The `queue` field of the peer's records.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Queue::Task => "task",
            Queue::Mux => "mux",
            Queue::Broadcast => "broadcast",
        }
    }
}

/// A member whose outcome differs from that of its range.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exception {
    /// It ended like this.
    Ended(Outcome),
    /// It has not ended: it will be tried again.
    Retry,
}

impl Exception {
    const RETRY: u8 = 255;
    pub(crate) fn to_u8(self) -> u8 {
        match self {
            Exception::Ended(outcome) => outcome as u8,
            Exception::Retry => Self::RETRY,
        }
    }
    pub(crate) fn from_u8(value: u8) -> Option<Self> {
        if value == Self::RETRY {
            Some(Exception::Retry)
        } else {
            Outcome::from_u8(value).map(Exception::Ended)
        }
    }
}

/// A submission as it arrived. `frames` are `[header, parent_header, metadata, content, buffers…]`: without identities,
/// delimiter and signature.
#[derive(Debug, Clone, Copy)]
pub struct Submission<'a> {
    /// From [`StoreHandle::next_key`](super::StoreHandle::next_key): grows, and is never used again.
    pub key: u64,
    /// The id of the task, or of the array.
    pub msg_id: &'a str,
    /// Identity of the client's socket.
    pub client: &'a [u8],
    /// How it came.
    pub queue: Queue,
    /// Members: 1 for an ordinary task.
    pub count: u64,
    /// The message.
    pub frames: &'a [&'a [u8]],
}

/// A task by its key or, for those who do not know it, by its id.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TaskRef<'a> {
    /// The key of its submission.
    Key(u64),
    /// Its msg_id.
    Id(&'a str),
}

/// The end of a task or of a range of an array's members.
#[derive(Debug, Clone)]
pub struct Finish<'a> {
    /// Which task.
    pub task: TaskRef<'a>,
    /// Its members; `0..1` for an ordinary task.
    pub range: Range<u64>,
    /// How they ended, but for the exceptions.
    pub outcome: Outcome,
    /// Members of the range that ended otherwise, or have not ended.
    pub exceptions: &'a [(u64, Exception)],
    /// Uuid of the engine that answered, empty if none did.
    pub engine: &'a str,
    /// With this, no member of the task is left without an outcome.
    pub done: bool,
    /// The task had been given up: its result is kept aside and changes nothing.
    pub late: bool,
    /// The reply as it arrived, `[header, parent_header, metadata, content, buffers…]`.
    pub frames: &'a [&'a [u8]],
}

/// The text streams of a task.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Stream {
    /// Standard output.
    Stdout = 0,
    /// Standard error.
    Stderr = 1,
}

/// One frame of a message in a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Frame<'a> {
    Inline(&'a [u8]),
    Spilled { offset: u64, len: u64 },
}

/// The packed frames of a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Frames<'a> {
    /// Number of the spill file, 0 for none.
    pub(crate) file: u64,
    pub(crate) count: u32,
    /// Bytes of all frames, wherever they are.
    pub(crate) size: u64,
    pub(crate) packed: &'a [u8],
}

impl<'a> Frames<'a> {
    pub(crate) fn iter(&self) -> FrameIter<'a> {
        FrameIter {
            reader: Reader(self.packed),
            left: self.count,
        }
    }
}

pub(crate) struct FrameIter<'a> {
    reader: Reader<'a>,
    left: u32,
}

impl<'a> Iterator for FrameIter<'a> {
    type Item = Frame<'a>;
    fn next(&mut self) -> Option<Frame<'a>> {
        self.left = self.left.checked_sub(1)?;
        self.reader.frame()
    }
}

impl<'a> FrameIter<'a> {
    /// What has not been iterated over, still packed.
    pub(crate) fn rest(&self) -> (u32, &'a [u8]) {
        (self.left, self.reader.0)
    }
}

/// The frames packed one after the other.
pub(crate) fn frames_in(packed: &[u8]) -> impl Iterator<Item = Frame<'_>> {
    let mut reader = Reader(packed);
    std::iter::from_fn(move || reader.frame())
}

/// A record of the journal, decoded.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Event<'a> {
    Submitted(Submitted<'a>),
    Dispatched {
        key: u64,
        lo: u64,
        hi: u64,
        attempt: u32,
        at: i64,
        engine: &'a str,
    },
    Requeued {
        key: u64,
        lo: u64,
        hi: u64,
        /// Left to each.
        retries: Option<u32>,
    },
    Finished(Finished<'a>),
    Output {
        msg_id: &'a str,
        stream: Stream,
        text: &'a str,
    },
    /// JSON of the changed fields.
    Update {
        msg_id: &'a str,
        fields: &'a [u8],
    },
    Meta {
        name: &'a str,
        value: &'a str,
    },
}

#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Submitted<'a> {
    pub(crate) key: u64,
    pub(crate) msg_id: &'a str,
    pub(crate) client: &'a [u8],
    pub(crate) queue: Queue,
    pub(crate) count: u64,
    pub(crate) received: i64,
    pub(crate) frames: Frames<'a>,
}

#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Finished<'a> {
    pub(crate) task: TaskRef<'a>,
    pub(crate) lo: u64,
    pub(crate) hi: u64,
    pub(crate) outcome: Outcome,
    pub(crate) done: bool,
    pub(crate) late: bool,
    pub(crate) received: i64,
    pub(crate) engine: &'a str,
    /// `(u64 member, u8)`, packed.
    pub(crate) exceptions: &'a [u8],
    pub(crate) frames: Frames<'a>,
}

/// Unpacks the exceptions of a range.
pub(crate) fn exceptions(packed: &[u8]) -> impl Iterator<Item = (u64, Exception)> + '_ {
    packed.chunks_exact(9).filter_map(|c| {
        let (index, what) = c.split_at(8);
        Some((
            u64::from_le_bytes(index.try_into().ok()?),
            Exception::from_u8(what[0])?,
        ))
    })
}

const SUBMITTED: u8 = 1;
const DISPATCHED: u8 = 2;
const REQUEUED: u8 = 3;
const FINISHED: u8 = 4;
const OUTPUT: u8 = 5;
const UPDATE: u8 = 6;
const META: u8 = 7;

/// Bytes before a record's payload.
pub(crate) const RECORD_HEAD: usize = 8;

/// Appends records to a buffer.
#[derive(Debug, Default)]
pub(crate) struct Batch {
    pub(crate) bytes: Vec<u8>,
}

impl Batch {
    pub(crate) fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    fn record(&mut self, kind: u8, fill: impl FnOnce(&mut Vec<u8>)) {
        let start = self.bytes.len();
        self.bytes.extend_from_slice(&[0; RECORD_HEAD]);
        self.bytes.push(kind);
        fill(&mut self.bytes);
        let payload = &self.bytes[start + RECORD_HEAD..];
        let (len, crc) = (payload.len() as u32, crc32fast::hash(payload));
        self.bytes[start..start + 4].copy_from_slice(&len.to_le_bytes());
        self.bytes[start + 4..start + 8].copy_from_slice(&crc.to_le_bytes());
    }

    pub(crate) fn submitted(
        &mut self,
        s: &Submission<'_>,
        received: i64,
        frames: &[Frame<'_>],
        file: u64,
    ) {
        self.record(SUBMITTED, |b| {
            put_u64(b, s.key);
            put_u64(b, s.count);
            put_u64(b, received as u64);
            b.push(s.queue as u8);
            put_bytes(b, s.msg_id.as_bytes());
            put_bytes(b, s.client);
            put_frames(b, frames, file);
        });
    }

    pub(crate) fn dispatched(
        &mut self,
        key: u64,
        range: &Range<u64>,
        attempt: u32,
        at: i64,
        engine: &str,
    ) {
        self.record(DISPATCHED, |b| {
            put_u64(b, key);
            put_u64(b, range.start);
            put_u64(b, range.end);
            b.extend_from_slice(&attempt.to_le_bytes());
            put_u64(b, at as u64);
            put_bytes(b, engine.as_bytes());
        });
    }

    pub(crate) fn requeued(&mut self, key: u64, range: &Range<u64>, retries: u32) {
        self.record(REQUEUED, |b| {
            put_u64(b, key);
            put_u64(b, range.start);
            put_u64(b, range.end);
            b.extend_from_slice(&retries.to_le_bytes());
        });
    }

    pub(crate) fn finished(
        &mut self,
        f: &Finish<'_>,
        received: i64,
        frames: &[Frame<'_>],
        file: u64,
    ) {
        self.record(FINISHED, |b| {
            match f.task {
                TaskRef::Key(key) => {
                    b.push(0);
                    put_u64(b, key);
                }
                TaskRef::Id(id) => {
                    b.push(1);
                    put_bytes(b, id.as_bytes());
                }
            }
            put_u64(b, f.range.start);
            put_u64(b, f.range.end);
            b.extend_from_slice(&[f.outcome as u8, u8::from(f.done), u8::from(f.late)]);
            put_u64(b, received as u64);
            put_bytes(b, f.engine.as_bytes());
            b.extend_from_slice(&(f.exceptions.len() as u32 * 9).to_le_bytes());
            for (index, exception) in f.exceptions {
                put_u64(b, *index);
                b.push(exception.to_u8());
            }
            put_frames(b, frames, file);
        });
    }

    pub(crate) fn output(&mut self, msg_id: &str, stream: Stream, text: &str) {
        self.record(OUTPUT, |b| {
            b.push(stream as u8);
            put_bytes(b, msg_id.as_bytes());
            put_bytes(b, text.as_bytes());
        });
    }

    pub(crate) fn update(&mut self, msg_id: &str, fields: &[u8]) {
        self.record(UPDATE, |b| {
            put_bytes(b, msg_id.as_bytes());
            put_bytes(b, fields);
        });
    }

    pub(crate) fn meta(&mut self, name: &str, value: &str) {
        self.record(META, |b| {
            put_bytes(b, name.as_bytes());
            put_bytes(b, value.as_bytes());
        });
    }
}

fn put_u64(b: &mut Vec<u8>, value: u64) {
    b.extend_from_slice(&value.to_le_bytes());
}

fn put_bytes(b: &mut Vec<u8>, bytes: &[u8]) {
    b.extend_from_slice(&(bytes.len() as u32).to_le_bytes());
    b.extend_from_slice(bytes);
}

fn put_frames(b: &mut Vec<u8>, frames: &[Frame<'_>], file: u64) {
    put_u64(b, file);
    b.extend_from_slice(&(frames.len() as u32).to_le_bytes());
    let size: u64 = frames
        .iter()
        .map(|f| match f {
            Frame::Inline(bytes) => bytes.len() as u64,
            Frame::Spilled { len, .. } => *len,
        })
        .sum();
    put_u64(b, size);
    for frame in frames {
        match frame {
            Frame::Inline(bytes) => {
                b.push(0);
                put_bytes(b, bytes);
            }
            Frame::Spilled { offset, len } => {
                b.push(1);
                put_u64(b, *offset);
                put_u64(b, *len);
            }
        }
    }
}

/// Reads fields; `None` when the bytes end early or make no sense.
#[derive(Debug, Clone, Copy)]
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, n: usize) -> Option<&'a [u8]> {
        let (head, tail) = self.0.split_at_checked(n)?;
        self.0 = tail;
        Some(head)
    }
    fn u8(&mut self) -> Option<u8> {
        Some(self.take(1)?[0])
    }
    fn u32(&mut self) -> Option<u32> {
        Some(u32::from_le_bytes(self.take(4)?.try_into().ok()?))
    }
    fn u64(&mut self) -> Option<u64> {
        Some(u64::from_le_bytes(self.take(8)?.try_into().ok()?))
    }
    fn bytes(&mut self) -> Option<&'a [u8]> {
        let len = self.u32()?;
        self.take(len as usize)
    }
    fn str(&mut self) -> Option<&'a str> {
        std::str::from_utf8(self.bytes()?).ok()
    }
    fn frame(&mut self) -> Option<Frame<'a>> {
        Some(match self.u8()? {
            0 => Frame::Inline(self.bytes()?),
            1 => Frame::Spilled {
                offset: self.u64()?,
                len: self.u64()?,
            },
            _ => return None,
        })
    }
    fn frames(&mut self) -> Option<Frames<'a>> {
        let frames = Frames {
            file: self.u64()?,
            count: self.u32()?,
            size: self.u64()?,
            packed: self.0,
        };
        for _ in 0..frames.count {
            self.frame()?;
        }
        Some(frames)
    }
}

impl<'a> Event<'a> {
    pub(crate) fn decode(payload: &'a [u8]) -> Option<Event<'a>> {
        let mut r = Reader(payload);
        Some(match r.u8()? {
            SUBMITTED => Event::Submitted(Submitted {
                key: r.u64()?,
                count: r.u64()?,
                received: r.u64()? as i64,
                queue: Queue::from_u8(r.u8()?)?,
                msg_id: r.str()?,
                client: r.bytes()?,
                frames: r.frames()?,
            }),
            DISPATCHED => Event::Dispatched {
                key: r.u64()?,
                lo: r.u64()?,
                hi: r.u64()?,
                attempt: r.u32()?,
                at: r.u64()? as i64,
                engine: r.str()?,
            },
            REQUEUED => Event::Requeued {
                key: r.u64()?,
                lo: r.u64()?,
                hi: r.u64()?,
                // The first version had none.
                retries: r.u32(),
            },
            FINISHED => Event::Finished(Finished {
                task: match r.u8()? {
                    0 => TaskRef::Key(r.u64()?),
                    _ => TaskRef::Id(r.str()?),
                },
                lo: r.u64()?,
                hi: r.u64()?,
                outcome: Outcome::from_u8(r.u8()?)?,
                done: r.u8()? != 0,
                late: r.u8()? != 0,
                received: r.u64()? as i64,
                engine: r.str()?,
                exceptions: r.bytes()?,
                frames: r.frames()?,
            }),
            OUTPUT => Event::Output {
                stream: match r.u8()? {
                    0 => Stream::Stdout,
                    _ => Stream::Stderr,
                },
                msg_id: r.str()?,
                text: r.str()?,
            },
            UPDATE => Event::Update {
                msg_id: r.str()?,
                fields: r.bytes()?,
            },
            META => Event::Meta {
                name: r.str()?,
                value: r.str()?,
            },
            _ => return None,
        })
    }
}

/// Iterates over the records at the start of `bytes`; stops at the first that is not whole.
pub(crate) struct Records<'a> {
    bytes: &'a [u8],
    /// Bytes of whole records so far.
    pub(crate) consumed: usize,
}

impl<'a> Records<'a> {
    pub(crate) fn new(bytes: &'a [u8]) -> Self {
        Records { bytes, consumed: 0 }
    }
    /// The length of the whole record at the start of `bytes`, if its head is there.
    pub(crate) fn needed(bytes: &[u8]) -> Option<usize> {
        let len = u32::from_le_bytes(bytes.get(..4)?.try_into().ok()?);
        Some(RECORD_HEAD + len as usize)
    }
}

impl<'a> Iterator for Records<'a> {
    type Item = &'a [u8];
    fn next(&mut self) -> Option<&'a [u8]> {
        let rest = &self.bytes[self.consumed..];
        let whole = Self::needed(rest)?;
        // A length of 0 is what a hole in a file looks like.
        if whole == RECORD_HEAD {
            return None;
        }
        let record = rest.get(..whole)?;
        let crc = u32::from_le_bytes(record[4..8].try_into().ok()?);
        let payload = &record[RECORD_HEAD..];
        if crc32fast::hash(payload) != crc {
            return None;
        }
        self.consumed += whole;
        Some(payload)
    }
}
