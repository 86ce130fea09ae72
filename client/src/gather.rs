//! Calls of one function that are submitted one by one while many are under way: they leave as members of one array, which
//! costs everybody on the way a fraction of what as many messages would. Each has its id, `MSGID:INDEX`, and its outcome.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crossbeam_channel::Sender;
use ipbroker_protocol::array::{Packed, member_id};
use ipbroker_protocol::bundle::LARGE;
use ipbroker_protocol::message::{TaskRequest, types};
use ipbroker_protocol::session::Session;
use ipbroker_protocol::zmq::Message;

use crate::error::{Error, Result};
use crate::io::{Channel, Pending, Request, Sink, Submission, Takers};
use crate::wire;

/// Calls leave at once while fewer than this are under way.
const MANY: usize = 32;
/// Calls that leave together, …
const MEMBERS: usize = 4096;
/// … and bytes of their arguments.
const BYTES: usize = 256 << 10;

/// The way to the background thread, through which all is sent in the order in which it was asked for; and the array that
/// is being filled.
pub(crate) struct Gather {
    open: Mutex<Option<Open>>,
    /// Sent to only under that lock.
    requests: Sender<Request>,
    session: Arc<Session>,
    /// Calls that were sent and have not ended.
    under_way: AtomicUsize,
    /// The controller takes bundles, so it gives members of arrays to engines one by one.
    allowed: AtomicBool,
}

/// Calls that differ in their arguments only.
struct Open {
    options: TaskRequest,
    content: Vec<u8>,
    /// The id of the array.
    id: String,
    arguments: Packed,
    tags: Vec<u64>,
    sinks: Vec<(usize, Arc<dyn Sink>)>,
}

impl Gather {
    pub(crate) fn new(requests: Sender<Request>, session: Arc<Session>) -> Self {
        Self {
            open: Mutex::default(),
            requests,
            session,
            under_way: AtomicUsize::new(0),
            allowed: AtomicBool::new(false),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Option<Open>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether many calls are under way already.
    pub(crate) fn is_busy(&self) -> bool {
        self.under_way.load(Ordering::Relaxed) >= MANY
    }

    /// Calls have ended.
    pub(crate) fn ended(&self, calls: u64) {
        self.under_way.fetch_sub(calls as usize, Ordering::Relaxed);
    }

    /// Whether calls may be gathered.
    pub(crate) fn allow(&self, allowed: bool) {
        self.allowed.store(allowed, Ordering::Relaxed);
    }

    /// Whether calls wait to leave together.
    pub(crate) fn is_open(&self) -> bool {
        self.lock().is_some()
    }

    /// Sends what waits, and then this.
    pub(crate) fn send(&self, request: Request) -> Result<()> {
        let mut open = self.lock();
        self.close(&mut open)?;
        self.pass(request)
    }

    /// Takes a call, if it may wait for others; its id, and whether it is the first.
    pub(crate) fn add(
        &self,
        (options, content): (&TaskRequest, &[u8]),
        argument: &[u8],
        (sink, tag): (&Arc<dyn Sink>, u64),
    ) -> Result<Option<(String, bool)>> {
        if argument.len() > LARGE || !self.allowed.load(Ordering::Relaxed) {
            return Ok(None);
        }
        let mut place = self.lock();
        let fits = |open: &Open| {
            open.arguments.len() < MEMBERS
                && open.arguments.bytes() < BYTES
                && open.content == content
                && open.options == *options
        };
        if !place.as_ref().is_some_and(fits) {
            if !self.is_busy() {
                return Ok(None);
            }
            self.close(&mut place)?;
        }
        let first = place.is_none();
        let open = place.get_or_insert_with(|| Open {
            options: options.clone(),
            content: content.to_vec(),
            id: self.session.next_id(),
            arguments: Packed::new(),
            tags: Vec::new(),
            sinks: Vec::new(),
        });
        let id = member_id(&open.id, open.arguments.len() as u64);
        // It is small, and so are the others.
        let _ = open.arguments.push(argument);
        open.tags.push(tag);
        let count = open.tags.len();
        match open.sinks.last_mut() {
            Some((end, last)) if Arc::ptr_eq(last, sink) => *end = count,
            _ => open.sinks.push((count, sink.clone())),
        }
        Ok(Some((id, first)))
    }

    /// Sends what waits; false: nothing does.
    pub(crate) fn flush(&self) -> Result<bool> {
        self.close(&mut self.lock())
    }

    fn close(&self, place: &mut Option<Open>) -> Result<bool> {
        let Some(open) = place.take() else {
            return Ok(false);
        };
        self.pass(Request::Submit(Box::new(open.submission(&self.session))))?;
        Ok(true)
    }

    fn pass(&self, request: Request) -> Result<()> {
        if let Request::Submit(submission) = &request {
            self.under_way
                .fetch_add(submission.awaited.members as usize, Ordering::Relaxed);
        }
        self.requests.send(request).map_err(|_| Error::Closed)
    }
}

impl Open {
    fn submission(mut self, session: &Session) -> Submission {
        let count = self.arguments.len() as u64;
        let (offsets, blob) = self.arguments.into_buffers();
        let mut buffers = vec![Message::from(offsets), Message::from(blob)];
        let mut options = self.options;
        // A call that has found no company goes as what it is, under the id that it was given.
        let suffix = if count == 1 {
            buffers.remove(0);
            ":0"
        } else {
            (options.array, options.each) = (Some(count), true);
            ""
        };
        let id = self.id + suffix;
        let header = session.packed_header_of(&id, types::FUNCTION_REQUEST);
        let metadata = session.pack(&options);
        let content = &self.content;
        let built = wire::build_packed(session, None, (id, header), &metadata, content, buffers);
        let takers = match count {
            1 => Takers::One(self.sinks.swap_remove(0).1, self.tags[0]),
            _ => Takers::Each {
                tags: self.tags,
                sinks: self.sinks,
            },
        };
        Submission {
            number: built.number,
            frames: built.frames,
            awaited: Pending {
                suffix,
                ack: options.ack,
                ..Pending::new(Channel::Task, options.array, takers)
            },
        }
    }
}
