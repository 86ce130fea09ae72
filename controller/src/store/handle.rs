//! What the rest of the controller asks of the store: all of it by channel, answered on a thread of the store.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use crossbeam_channel::{SendError, Sender};
use ipbroker_protocol::message::{GraphReply, GraphRequest, SearchReply, SearchRequest};
use rusqlite::Connection;
use serde_json::{Map, Value};

use super::event::{Batch, Finish, Outcome, Stream, Submission};
use super::now_us;
use super::query::{self, Reader};
use super::shared::{Shared, Status};
use super::spill::Spill;
use crate::{error::NamedError, mailbox};

/// Called once with the answer, on a thread of the store: it should only pass it on and wake somebody up.
pub type Answer<T> = mailbox::Answer<Result<T, NamedError>>;

/// Why a query failed.
impl NamedError {
    pub(crate) fn failed(error: impl std::fmt::Display) -> Self {
        Self::new(
            "RuntimeError",
            format!("the history cannot be read: {error}"),
        )
    }
    pub(crate) fn stopping() -> Self {
        Self::failed("the controller is stopping")
    }
    pub(crate) fn no_data() -> Self {
        let why = "this controller keeps no history (--nodb): start it with a database to query or resubmit tasks";
        Self::new("NoData", why)
    }
}

impl From<rusqlite::Error> for NamedError {
    fn from(error: rusqlite::Error) -> Self {
        Self::failed(error)
    }
}

impl From<std::io::Error> for NamedError {
    fn from(error: std::io::Error) -> Self {
        Self::failed(error)
    }
}

/// A record with the peer's fields (`empty_record`). Times are ISO 8601 strings in UTC. The buffers are apart.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Record {
    /// `msg_id` and the fields that were asked for, without the two of buffers.
    pub fields: Map<String, Value>,
    /// `buffers`, if asked for.
    pub buffers: Vec<Vec<u8>>,
    /// `result_buffers`, if asked for.
    pub result_buffers: Vec<Vec<u8>>,
}

/// A part of what a query finds, in the order in which it came to the controller.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Part {
    /// Where the part before ended; 0: the first part.
    pub after: u64,
    /// At most so many records.
    pub limit: usize,
}

/// A stored request, for resubmission.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredRequest {
    /// The id that was asked for; a member's has `:INDEX`.
    pub msg_id: String,
    /// The member that was asked for, if the task is an array and a member was.
    pub member: Option<u64>,
    /// Members of the task.
    pub count: u64,
    /// Identity of the client's socket then.
    pub client: Vec<u8>,
    /// `[header, parent_header, metadata, content, buffers…]` of the whole task.
    pub frames: Vec<Vec<u8>>,
}

/// A stored reply, for a client that comes back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredReply {
    /// The id of the task (never of a member).
    pub msg_id: String,
    /// The members the reply is about; `0..1` for an ordinary task.
    pub range: std::ops::Range<u64>,
    /// Their outcome, exceptions aside.
    pub outcome: Outcome,
    /// `[header, parent_header, metadata, content, buffers…]`, as it was recorded.
    pub frames: Vec<Vec<u8>>,
}

/// What the history knows of a task or member.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lookup {
    /// Never heard of, or pruned.
    Unknown,
    /// Not finished. An array is pending until all its members have ended.
    Pending,
    /// Finished; an array that has ended is ok if all its members are, else aborted if none of the others failed.
    Done(Outcome),
}

/// Which finished records are dropped.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Purge {
    /// All of them.
    All,
    /// These, finished or not: the caller refuses pending ones as the peer's hub does.
    Ids(Vec<String>),
    /// Those that this engine (uuid) finished.
    Engine(String),
}

pub(crate) enum Request {
    /// Records that do not come by the journal.
    Batch(Vec<u8>),
    /// A query; it sees everything that was flushed before it was asked.
    Query(Query),
    /// The keys that a purge found.
    Drop { keys: Vec<u64>, answer: Answer<u64> },
    /// Answers when everything flushed before is committed.
    Settle(Box<dyn FnOnce() + Send>),
    /// Finish what is there and end.
    Stop,
}

/// A question with the way to answer it: from the history, or with why that cannot be.
pub(crate) type Query = Box<dyn FnOnce(Result<(&Reader, &Connection), NamedError>) + Send>;

/// Asks the store. Clones are cheap.
#[derive(Debug, Clone)]
pub struct StoreHandle {
    pub(crate) shared: Arc<Shared>,
    pub(crate) requests: Option<Sender<Request>>,
    pub(crate) spill: Option<Spill>,
}

impl StoreHandle {
    /// A key for a new submission: larger than any before, in this life or an earlier one.
    #[must_use]
    pub fn next_key(&self) -> u64 {
        self.shared.next_key.fetch_add(1, Relaxed)
    }

    /// Whether the intake of new tasks must slow: the store lags, or cannot be written.
    #[must_use]
    pub fn over_bound(&self) -> bool {
        self.shared.over_bound()
    }

    /// How the store is doing.
    #[must_use]
    pub fn status(&self) -> Status {
        self.shared.status()
    }

    /// Has `wake` called, on a thread of the store, whenever [`Journal::durable`](super::Journal::durable) has moved.
    pub fn on_durable(&self, wake: impl Fn() + Send + 'static) {
        self.shared.listen(Box::new(wake));
    }

    /// Has a question answered when everything that was flushed before it is in the history.
    fn ask<T: 'static>(
        &self,
        answer: Answer<T>,
        read: impl FnOnce(&Reader, &Connection) -> Result<T, NamedError> + Send + 'static,
    ) {
        let query: Query =
            Box::new(move |from| answer(from.and_then(|(reader, conn)| read(reader, conn))));
        match &self.requests {
            None => query(Err(NamedError::no_data())),
            Some(requests) => {
                if let Err(SendError(Request::Query(query))) = requests.send(Request::Query(query))
                {
                    query(Err(NamedError::stopping()));
                }
            }
        }
    }

    /// The records of these tasks or members, with these fields (all, with buffers, if `None`); unknown ones are left out.
    pub fn records(
        &self,
        msg_ids: Vec<String>,
        keys: Option<Vec<String>>,
        answer: Answer<Vec<Record>>,
    ) {
        self.ask(answer, move |reader, conn| {
            reader.records(conn, &msg_ids, keys.as_deref())
        });
    }

    /// The records that match a Mongo-style query, with these fields (all, if `None`); of a part of them, also where the next
    /// part begins.
    pub fn find(
        &self,
        query: Map<String, Value>,
        keys: Option<Vec<String>>,
        part: Option<Part>,
        answer: Answer<(Vec<Record>, Option<u64>)>,
    ) {
        self.ask(answer, move |reader, conn| {
            reader.find(conn, &query, keys.as_deref(), part)
        });
    }

    /// All msg_ids by time of submission; an array has one.
    pub fn history(&self, answer: Answer<Vec<String>>) {
        self.ask(answer, |_, conn| Ok(query::history(conn)?));
    }

    /// What is known of these tasks or members, in their order.
    pub fn outcomes(&self, msg_ids: Vec<String>, answer: Answer<Vec<(String, Lookup)>>) {
        self.ask(answer, |_, conn| Ok(query::outcomes(conn, msg_ids)?));
    }

    /// The stored requests of these tasks or members; unknown ones are left out.
    pub fn requests(&self, msg_ids: Vec<String>, answer: Answer<Vec<StoredRequest>>) {
        self.ask(answer, |reader, conn| reader.requests(conn, msg_ids));
    }

    /// The stored replies of these tasks (all of an array's); what is unknown or pending is left out.
    pub fn replies(&self, msg_ids: Vec<String>, answer: Answer<Vec<StoredReply>>) {
        self.ask(answer, |reader, conn| reader.replies(conn, msg_ids));
    }

    /// The tasks of a submission and what they wait for; of a large one a part.
    pub fn graph(&self, request: GraphRequest, answer: Answer<GraphReply>) {
        self.ask(answer, move |reader, conn| reader.graph(conn, &request));
    }

    /// The newest tasks with a text in them.
    pub fn search(&self, request: SearchRequest, answer: Answer<SearchReply>) {
        self.ask(answer, move |reader, conn| reader.search(conn, &request));
    }

    /// Drops records in small steps; answers how many.
    pub fn purge(&self, what: Purge, answer: Answer<u64>) {
        let Some(requests) = self.requests.clone() else {
            // The peer's NoDB drops nothing, gladly.
            return answer(Ok(0));
        };
        let drop_them = move |keys: Result<Vec<u64>, NamedError>| match keys {
            Ok(keys) => {
                if let Err(SendError(Request::Drop { answer, .. })) =
                    requests.send(Request::Drop { keys, answer })
                {
                    answer(Err(NamedError::stopping()));
                }
            }
            Err(error) => answer(Err(error)),
        };
        self.ask(Box::new(drop_them), move |_, conn| {
            Ok(query::purge_keys(conn, &what)?)
        });
    }

    /// Calls back when all that was flushed before is in the history.
    pub fn settle(&self, then: impl FnOnce() + Send + 'static) {
        match &self.requests {
            None => then(),
            Some(requests) => drop(requests.send(Request::Settle(Box::new(then)))),
        }
    }

    /// A writer for what does not pass the task thread: direct and broadcast requests, output, changes by the hub.
    #[must_use]
    pub fn recorder(&self) -> Recorder {
        Recorder {
            shared: Arc::clone(&self.shared),
            target: self.requests.clone().zip(self.spill.clone()),
            batch: Batch::default(),
        }
    }
}

/// Records without the journal: in the history soon, but lost if the controller is killed before (no promise is made for these).
#[derive(Debug)]
pub struct Recorder {
    shared: Arc<Shared>,
    target: Option<(Sender<Request>, Spill)>,
    batch: Batch,
}

impl Recorder {
    /// Records a submission. One whose large buffers cannot be written is not recorded (and that is reported).
    pub fn submitted(&mut self, submission: &Submission<'_>) {
        let Some((_, spill)) = &self.target else {
            return;
        };
        if let Ok((placed, file)) = spill.place(submission.frames) {
            self.batch.submitted(submission, now_us(), &placed, file);
        }
    }

    /// Records an outcome.
    pub fn finished(&mut self, finish: &Finish<'_>) {
        let Some((_, spill)) = &self.target else {
            return;
        };
        let (placed, file) = spill.place_result(finish.frames);
        self.batch.finished(finish, now_us(), &placed, file);
    }

    /// Appends to the output of a task.
    pub fn output(&mut self, msg_id: &str, stream: Stream, text: &str) {
        if self.target.is_some() {
            self.batch.output(msg_id, stream, text);
        }
    }

    /// Sets fields of a record, which is made if it is not there: `execute_input`, `execute_result`, `error`, `resubmitted`, …
    pub fn update(&mut self, msg_id: &str, fields: &Map<String, Value>) {
        if self.target.is_some() {
            self.batch
                .update(msg_id, &serde_json::to_vec(fields).unwrap_or_default());
        }
    }

    /// Hands over what was recorded; call it once per loop.
    pub fn flush(&mut self) {
        if let Some((requests, _)) = &self.target
            && !self.batch.is_empty()
        {
            let bytes = std::mem::take(&mut self.batch.bytes);
            self.shared.queued.fetch_add(bytes.len() as u64, Relaxed);
            drop(requests.send(Request::Batch(bytes)));
        }
    }
}
