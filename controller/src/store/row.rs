//! A task as it is read back from the history, and as a record of the peer's kind.

use std::io;

use ipbroker_protocol::array::View;
use ipbroker_protocol::session::Packer;
use rusqlite::{Connection, OptionalExtension, Row as SqlRow};
use serde_json::{Map, Value, json};

use super::apply::array_outcomes;
use super::event::{Exception, Frame, Outcome, exceptions, frames_in};
use super::filter::{FIELDS, is_time};
use super::handle::Record;
use super::spill::Spill;
use super::unpack::{Glance, format_time, unpack};
use crate::error::NamedError;

/// Columns without frames; cheap to scan.
pub(crate) const LIGHT: &str = "key, msg_id, queue, count, client, client_uuid, status, engine_uuid, submitted, started, completed,
    received, resubmitted, label, execute_input";
/// All columns.
pub(crate) const FULL: &str = "key, msg_id, queue, count, client, client_uuid, status, engine_uuid, submitted, started, completed,
    received, resubmitted, label, execute_input, execute_result, error, stdout, stderr, extra, header, parent_header, metadata,
    content, buffers, request_file, result_header, result_metadata, result_content, result_buffers, result_file";

/// Fields that [`LIGHT`] has.
pub(crate) fn is_light(field: &str) -> bool {
    LIGHT.split([',', ' ', '\n']).any(|column| column == field)
}

/// A message as columns.
#[derive(Debug, Clone, Default)]
pub(crate) struct Message {
    pub(crate) header: Option<Vec<u8>>,
    pub(crate) parent: Option<Vec<u8>>,
    pub(crate) metadata: Option<Vec<u8>>,
    pub(crate) content: Option<Vec<u8>>,
    pub(crate) buffers: Option<Vec<u8>>,
    pub(crate) file: Option<u64>,
}

impl Message {
    /// The content, if it is not in the row the first of the frames, and the buffers.
    pub(crate) fn content_and_buffers(&self, spill: &Spill) -> io::Result<(Vec<u8>, Vec<Vec<u8>>)> {
        let mut frames = Vec::new();
        for frame in frames_in(self.buffers.as_deref().unwrap_or_default()) {
            frames.push(match frame {
                Frame::Inline(bytes) => bytes.to_vec(),
                Frame::Spilled { offset, len } => {
                    spill.read(self.file.unwrap_or(0), offset, len)?
                }
            });
        }
        match &self.content {
            Some(content) => Ok((content.clone(), frames)),
            None if frames.is_empty() => Ok((Vec::new(), frames)),
            None => Ok((frames.remove(0), frames)),
        }
    }

    /// `[header, parent_header, metadata, content, buffers…]`.
    pub(crate) fn frames(&self, spill: &Spill, packing: Packer) -> io::Result<Vec<Vec<u8>>> {
        let empty = || packing.pack(&Map::new());
        let map = |part: &Option<Vec<u8>>| part.clone().unwrap_or_else(empty);
        let (content, buffers) = self.content_and_buffers(spill)?;
        let content = if content.is_empty() { empty() } else { content };
        let mut frames = vec![
            map(&self.header),
            map(&self.parent),
            map(&self.metadata),
            content,
        ];
        frames.extend(buffers);
        Ok(frames)
    }
}

/// A row of `task`, or a member of one.
#[derive(Debug, Clone, Default)]
pub(crate) struct Task {
    pub(crate) key: u64,
    pub(crate) msg_id: String,
    pub(crate) queue: Option<String>,
    pub(crate) count: u64,
    pub(crate) client: Vec<u8>,
    client_uuid: Option<String>,
    pub(crate) status: String,
    engine_uuid: Option<String>,
    submitted: Option<i64>,
    started: Option<i64>,
    pub(crate) completed: Option<i64>,
    received: Option<i64>,
    resubmitted: Option<String>,
    label: Option<String>,
    execute_input: Option<String>,
    execute_result: Option<String>,
    error: Option<String>,
    stdout: Option<String>,
    stderr: Option<String>,
    extra: Option<String>,
    pub(crate) request: Message,
    pub(crate) result: Message,
    /// The member of the array this is about.
    pub(crate) member: Option<u64>,
    /// Of a whole array that has ended: members that ended well, failed, were aborted.
    counts: Option<[u64; 3]>,
    /// The member's own result, cut out of its range's.
    member_result: Option<Vec<u8>>,
    /// What became of the member's command, or why there is no result: what the reply of a task of its own would say.
    member_content: Option<Map<String, Value>>,
    /// The member's own run time in s, if its range told of each.
    member_duration: Option<f64>,
}

impl Task {
    pub(crate) fn light(row: &SqlRow<'_>) -> rusqlite::Result<Task> {
        Ok(Task {
            key: row.get(0)?,
            msg_id: row.get(1)?,
            queue: row.get(2)?,
            count: row.get(3)?,
            client: row.get::<_, Option<Vec<u8>>>(4)?.unwrap_or_default(),
            client_uuid: row.get(5)?,
            status: row.get(6)?,
            engine_uuid: row.get(7)?,
            submitted: row.get(8)?,
            started: row.get(9)?,
            completed: row.get(10)?,
            received: row.get(11)?,
            resubmitted: row.get(12)?,
            label: row.get(13)?,
            execute_input: row.get(14)?,
            ..Task::default()
        })
    }

    pub(crate) fn full(row: &SqlRow<'_>) -> rusqlite::Result<Task> {
        let mut task = Task::light(row)?;
        task.execute_result = row.get(15)?;
        task.error = row.get(16)?;
        task.stdout = row.get(17)?;
        task.stderr = row.get(18)?;
        task.extra = row.get(19)?;
        task.request = Message {
            header: row.get(20)?,
            parent: row.get(21)?,
            metadata: row.get(22)?,
            content: row.get(23)?,
            buffers: row.get(24)?,
            file: row.get(25)?,
        };
        task.result = Message {
            header: row.get(26)?,
            parent: None,
            metadata: row.get(27)?,
            content: row.get(28)?,
            buffers: row.get(29)?,
            file: row.get(30)?,
        };
        Ok(task)
    }

    /// Loads a task, or a member as a task of its own, by its id.
    pub(crate) fn load(
        conn: &Connection,
        msg_id: &str,
        spill: &Spill,
        packing: Packer,
    ) -> Result<Option<Task>, NamedError> {
        let Some((key, member)) = find_key(conn, msg_id)? else {
            return Ok(None);
        };
        let Some(mut task) = Task::by_key(conn, key)? else {
            return Ok(None);
        };
        // The only member of an array of one has its row.
        let only = msg_id != task.msg_id && task.is_array(packing);
        match member.or(only.then_some(0)) {
            Some(member) => task.narrow(conn, member, spill, packing)?,
            None => {
                msg_id.clone_into(&mut task.msg_id);
                task.count_members(conn)?;
            }
        }
        Ok(Some(task))
    }

    pub(crate) fn by_key(conn: &Connection, key: u64) -> rusqlite::Result<Option<Task>> {
        conn.prepare_cached(&format!("SELECT {FULL} FROM task WHERE key = ?1"))?
            .query_row([key], Task::full)
            .optional()
    }

    pub(crate) fn count_members(&mut self, conn: &Connection) -> rusqlite::Result<()> {
        if self.count > 1 && self.completed.is_some() {
            let mut counts = [0; 3];
            for (range, outcome) in array_outcomes(conn, self.key)?.iter() {
                counts[*outcome as usize] += range.end - range.start;
            }
            self.counts = Some(counts);
        }
        Ok(())
    }

    fn is_array(&self, packing: Packer) -> bool {
        let metadata = self.request.metadata.as_deref();
        metadata.is_some_and(|m| Glance::at(m, packing).array.is_some())
    }

    /// Makes the row of an array that of one member.
    fn narrow(
        &mut self,
        conn: &Connection,
        member: u64,
        spill: &Spill,
        packing: Packer,
    ) -> Result<(), NamedError> {
        self.member = Some(member);
        self.msg_id = format!("{}:{member}", self.msg_id);
        let (_, buffers) = self.request.content_and_buffers(spill)?;
        self.request.buffers = member_argument(&buffers, member).map(packed_buffer);
        let mut lo = 0;
        // What became of the only member of an array is in the array's own row.
        if self.count > 1 {
            (self.completed, self.received, self.started) = (None, None, None);
            "waiting".clone_into(&mut self.status);
            let piece = Piece::of(conn, self.key, member)?;
            let Some((piece, outcome)) =
                piece.and_then(|piece| piece.outcome(member).map(|outcome| (piece, outcome)))
            else {
                return Ok(());
            };
            outcome.as_str().clone_into(&mut self.status);
            self.engine_uuid = piece.engine;
            self.started = piece.started;
            self.completed = piece.completed;
            self.received = piece.received;
            self.result = piece.result;
            lo = piece.lo;
        }
        if self.completed.is_none() {
            return Ok(());
        }
        let (content, buffers) = self.result.content_and_buffers(spill)?;
        let content = unpack(&content, packing);
        self.member_told(&content["members"], member - lo);
        let metadata = self.result.metadata.as_deref();
        let metadata = metadata.map_or_else(Glance::default, |m| Glance::at(m, packing));
        let index = if metadata.same == Some(true) {
            0
        } else {
            member - lo
        };
        self.member_result = member_argument(&buffers, index).map(<[u8]>::to_vec);
        let header = self.request.header.as_deref();
        let is_command = header.is_some_and(|header| {
            Glance::at(header, packing).msg_type.as_deref() == Some("command_request")
        });
        self.member_content = match &self.member_result {
            // The value of a function is nobody's business but the client's; what it printed may be told.
            Some(_) if self.status == "ok" && !is_command => {
                let told = self.member_duration.map(|_| [&self.stdout, &self.stderr]);
                let texts = ["stdout", "stderr"]
                    .into_iter()
                    .zip(told.into_iter().flatten());
                let texts =
                    texts.filter_map(|(name, text)| Some((name.to_owned(), text.clone()?.into())));
                let status = ("status".to_owned(), self.status.as_str().into());
                Some([status].into_iter().chain(texts).collect())
            }
            // No map of MessagePack begins with this byte.
            Some(result) if result.first() == Some(&b'{') => object(unpack(result, Packer::Json)),
            Some(result) => object(unpack(result, Packer::Msgpack)),
            // The range failed as a whole, as when its engine died.
            None => object(content).filter(|content| content.contains_key("ename")),
        };
        self.result.buffers = None;
        Ok(())
    }

    /// When a member ran and what it printed, if its range's reply tells of each: `[began, duration, stdout, stderr]`.
    fn member_told(&mut self, members: &Value, at: u64) {
        let told = &members[at as usize];
        let (Some(began), Some(duration)) = (told[0].as_f64(), told[1].as_f64()) else {
            return;
        };
        let after = |at: i64, seconds: f64| at.saturating_add((seconds * 1e6) as i64);
        self.started = self.started.map(|at| after(at, began));
        self.completed = self.started.map(|at| after(at, duration));
        self.member_duration = Some(duration);
        self.stdout = told[2].as_str().map(str::to_owned);
        self.stderr = told[3].as_str().map(str::to_owned);
    }

    /// A field as its record has it, but times are integers.
    pub(crate) fn field(&self, name: &str, packing: Packer) -> Value {
        let text = |t: &Option<String>| t.as_deref().map_or(Value::Null, Value::from);
        let json = |t: &Option<String>| {
            t.as_deref()
                .and_then(|t| serde_json::from_str(t).ok())
                .unwrap_or(Value::Null)
        };
        let packed = |p: &Option<Vec<u8>>| p.as_deref().map_or(Value::Null, |p| unpack(p, packing));
        let time = |t: Option<i64>| t.map_or(Value::Null, Value::from);
        match name {
            "msg_id" => Value::from(self.msg_id.as_str()),
            "queue" => text(&self.queue),
            "client_uuid" => text(&self.client_uuid),
            "engine_uuid" => text(&self.engine_uuid),
            "submitted" => time(self.submitted),
            "started" => time(self.started),
            "completed" => time(self.completed),
            "received" => time(self.received),
            "resubmitted" => text(&self.resubmitted),
            "label" => text(&self.label),
            "execute_input" => text(&self.execute_input),
            "execute_result" => json(&self.execute_result),
            "error" => json(&self.error),
            // Never null: the peer's records begin with ''.
            "stdout" => Value::from(self.stdout.as_deref().unwrap_or_default()),
            "stderr" => Value::from(self.stderr.as_deref().unwrap_or_default()),
            "header" => {
                let mut header = packed(&self.request.header);
                if self.member.is_some()
                    && let Some(id) = header.get_mut("msg_id")
                {
                    *id = Value::from(self.msg_id.as_str());
                }
                header
            }
            "metadata" => packed(&self.request.metadata),
            "content" => packed(&self.request.content),
            "result_header" => packed(&self.result.header),
            "result_metadata" => {
                let mut metadata = packed(&self.result.metadata);
                if let (Some(duration), Some(own)) =
                    (self.member_duration, metadata.as_object_mut())
                {
                    let time = |t: Option<i64>| Value::from(t.map(format_time));
                    own.insert("started".into(), time(self.started));
                    own.insert("completed".into(), time(self.completed));
                    own.insert("duration".into(), duration.into());
                    own.insert("status".into(), self.status.as_str().into());
                    own.retain(|key, _| !["range", "failed", "same"].contains(&key.as_str()));
                }
                metadata
            }
            "result_content" => match (
                self.counts,
                self.member.is_some() && self.completed.is_some(),
            ) {
                (Some([ok, error, aborted]), _) => {
                    json!({"status": self.status, "count": self.count, "ok": ok, "error": error, "aborted": aborted})
                }
                (None, true) => match &self.member_content {
                    Some(content) => content.clone().into(),
                    None => json!({"status": self.status}),
                },
                (None, false) => packed(&self.result.content),
            },
            _ => Value::Null,
        }
    }

    /// The record with these fields; all of them if `None`.
    pub(crate) fn record(
        &self,
        keys: Option<&[String]>,
        spill: &Spill,
        packing: Packer,
    ) -> Result<Record, NamedError> {
        let mut record = Record::default();
        let mut put = |name: &str| {
            let value = match self.field(name, packing) {
                Value::Number(us) if is_time(name) => {
                    us.as_i64().map_or(Value::Null, |us| format_time(us).into())
                }
                value => value,
            };
            record.fields.insert(name.to_owned(), value);
        };
        put("msg_id");
        let wanted = |name: &str| keys.is_none_or(|keys| keys.iter().any(|k| k == name));
        for name in FIELDS
            .iter()
            .skip(1)
            .filter(|name| wanted(name) && !name.ends_with("buffers"))
        {
            put(name);
        }
        if keys.is_none()
            && let Some(extra) = &self.extra
            && let Ok(extra) = serde_json::from_str::<Map<String, Value>>(extra)
        {
            record.fields.extend(extra);
        }
        // Both buffers and contents may be in files.
        if wanted("buffers") || (self.request.content.is_none() && wanted("content")) {
            let (content, buffers) = self.request.content_and_buffers(spill)?;
            if self.request.content.is_none() && wanted("content") {
                record
                    .fields
                    .insert("content".into(), unpack(&content, packing));
            }
            if wanted("buffers") {
                record.buffers = buffers;
            }
        }
        if let Some(result) = &self.member_result {
            if wanted("result_buffers") {
                record.result_buffers.push(result.clone());
            }
        } else if wanted("result_buffers")
            || (self.result.content.is_none() && wanted("result_content"))
        {
            let (content, buffers) = self.result.content_and_buffers(spill)?;
            if !content.is_empty() && self.result.content.is_none() && wanted("result_content") {
                record
                    .fields
                    .insert("result_content".into(), unpack(&content, packing));
            }
            if wanted("result_buffers") {
                record.result_buffers = buffers;
            }
        }
        Ok(record)
    }
}

fn object(value: Value) -> Option<Map<String, Value>> {
    match value {
        Value::Object(map) => Some(map),
        _ => None,
    }
}

/// As a message with one buffer has it in its row.
fn packed_buffer(buffer: &[u8]) -> Vec<u8> {
    let len = (buffer.len() as u32).to_le_bytes();
    [&[0], &len[..], buffer].concat()
}

/// A member's part of the two buffers of an array.
pub(crate) fn member_argument(buffers: &[Vec<u8>], member: u64) -> Option<&[u8]> {
    let [offsets, values] = buffers else {
        return None;
    };
    let (view, member) = (
        View::trusted(offsets, values),
        usize::try_from(member).ok()?,
    );
    (member < view.len()).then(|| view.get(member))
}

/// The task of an id, and the member if it is one's.
pub(crate) fn find_key(
    conn: &Connection,
    msg_id: &str,
) -> rusqlite::Result<Option<(u64, Option<u64>)>> {
    let mut select = conn.prepare_cached("SELECT key, count FROM task WHERE msg_id = ?1")?;
    let mut find = |id: &str| -> rusqlite::Result<Option<(u64, u64)>> {
        select.query_row([id], |row| row.try_into()).optional()
    };
    if let Some((key, _)) = find(msg_id)? {
        return Ok(Some((key, None)));
    }
    if let Some((array, index)) = msg_id.rsplit_once(':')
        && let Ok(index) = index.parse::<u64>()
        && let Some((key, count)) = find(array)?
        && index < count
    {
        return Ok(Some((key, (count > 1).then_some(index))));
    }
    Ok(None)
}

/// A row of `piece`.
pub(crate) struct Piece {
    pub(crate) lo: u64,
    pub(crate) hi: u64,
    pub(crate) status: String,
    exceptions: Vec<u8>,
    engine: Option<String>,
    started: Option<i64>,
    completed: Option<i64>,
    received: Option<i64>,
    pub(crate) result: Message,
}

const PIECE: &str = "SELECT lo, hi, status, exceptions, engine_uuid, started, completed, received, result_header, result_metadata,
    result_content, result_buffers, result_file FROM piece";

impl Piece {
    fn read(row: &SqlRow<'_>) -> rusqlite::Result<Piece> {
        Ok(Piece {
            lo: row.get(0)?,
            hi: row.get(1)?,
            status: row.get(2)?,
            exceptions: row.get::<_, Option<Vec<u8>>>(3)?.unwrap_or_default(),
            engine: row.get(4)?,
            started: row.get(5)?,
            completed: row.get(6)?,
            received: row.get(7)?,
            result: Message {
                header: row.get(8)?,
                parent: None,
                metadata: row.get(9)?,
                content: row.get(10)?,
                buffers: row.get(11)?,
                file: row.get(12)?,
            },
        })
    }

    /// The last word on a member.
    pub(crate) fn of(conn: &Connection, key: u64, member: u64) -> rusqlite::Result<Option<Piece>> {
        conn.prepare_cached(&format!(
            "{PIECE} WHERE task = ?1 AND lo <= ?2 AND hi > ?2 ORDER BY id DESC LIMIT 1"
        ))?
        .query_row((key, member), Piece::read)
        .optional()
    }

    /// All of an array, in the order they came.
    pub(crate) fn all(conn: &Connection, key: u64) -> rusqlite::Result<Vec<Piece>> {
        conn.prepare_cached(&format!("{PIECE} WHERE task = ?1 ORDER BY id"))?
            .query_map([key], Piece::read)?
            .collect()
    }

    /// How a member of it ended, if it has.
    pub(crate) fn outcome(&self, member: u64) -> Option<Outcome> {
        match exceptions(&self.exceptions).find(|(index, _)| *index == member) {
            Some((_, Exception::Ended(outcome))) => Some(outcome),
            Some((_, Exception::Retry)) => None,
            None => Outcome::of(&self.status),
        }
    }
}
