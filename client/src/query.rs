//! Questions to the hub.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use ipbroker_protocol::message::{
    AbortReply, AbortRequest, EngineInfo, EventsRequest, OutputReply, OutputRequest, Sample, Stats,
    Unschedulable, WebReply, types,
};
use ipbroker_protocol::value::or_null;
use ipbroker_protocol::zmq::Message;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::{Map, Value, json};

use crate::client::Client;
use crate::error::Result;

/// The peer's request types that the protocol crate has no constants for.
mod request {
    pub(super) const QUEUE: &str = "queue_request";
    pub(super) const RESULT: &str = "result_request";
    pub(super) const HISTORY: &str = "history_request";
    pub(super) const RESUBMIT: &str = "resubmit_request";
    pub(super) const DB: &str = "db_request";
}

/// Records that are asked for at once: the hub has other things to do, too.
const RECORDS: usize = 2000;

/// Why a task is where it is.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Explanation {
    /// In words.
    pub text: String,
    /// `waiting`, `running`, `done`, `unknown`.
    pub state: String,
    /// Engines that it cannot use, and why.
    pub engines: Vec<(String, String)>,
}

/// What the hub knows of one task. A record of the store has all keys, some of them null.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Record {
    /// The request's header.
    #[serde(deserialize_with = "or_null")]
    pub header: Map<String, Value>,
    /// The request's metadata.
    #[serde(deserialize_with = "or_null")]
    pub metadata: Map<String, Value>,
    /// The reply's header.
    #[serde(deserialize_with = "or_null")]
    pub result_header: Map<String, Value>,
    /// The reply's metadata.
    #[serde(deserialize_with = "or_null")]
    pub result_metadata: Map<String, Value>,
    /// The reply's content.
    #[serde(deserialize_with = "or_null")]
    pub result_content: Map<String, Value>,
    /// When the request was made.
    pub submitted: Option<String>,
    /// When the reply came to the controller.
    pub received: Option<String>,
    /// Everything else.
    #[serde(flatten)]
    pub extra: Map<String, Value>,
}

/// An engine's reply to a past task, or to a range of an array's members.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct PastReply {
    /// The task.
    pub msg_id: String,
    /// The first member and the one past the last; `(0, 1)` for an ordinary task.
    pub range: (u64, u64),
    /// `ok`, `error` or `aborted`; members that ended otherwise are in the metadata.
    pub outcome: String,
    /// The reply's metadata.
    pub metadata: Map<String, Value>,
    /// The reply's content.
    pub content: Map<String, Value>,
    /// Of an array: a table of offsets and the members' values; empty where it was left out.
    #[serde(skip)]
    pub frames: Vec<Message>,
}

impl Record {
    /// How many members it has, if it is that of a whole array.
    pub fn members(&self) -> Option<u64> {
        self.metadata.get("array").and_then(Value::as_u64)
    }
}

/// Outcomes by id.
#[derive(Debug, Clone, PartialEq, Default, Deserialize)]
#[serde(default)]
pub struct Outcomes {
    /// Not done yet.
    pub pending: Vec<String>,
    /// Done.
    pub completed: Vec<String>,
    /// Those of them that did not end well; only without details.
    pub failed: Vec<String>,
    /// Details of those, when asked for.
    #[serde(flatten, deserialize_with = "records")]
    pub records: HashMap<String, Record>,
}

/// What is a record among all keys of a reply.
fn records<'de, D: Deserializer<'de>>(reply: D) -> Result<HashMap<String, Record>, D::Error> {
    let all = HashMap::<String, Value>::deserialize(reply)?.into_iter();
    Ok(all
        .filter_map(|(id, value)| Some((id, serde_json::from_value(value).ok()?)))
        .collect())
}

/// A reply that has one thing besides its status.
#[derive(Deserialize)]
struct One<T> {
    #[serde(
        alias = "engines",
        alias = "history",
        alias = "records",
        alias = "replies"
    )]
    #[serde(alias = "resubmitted", alias = "waits")]
    it: T,
}

fn abort(msg_ids: &[String], kill: bool) -> AbortRequest {
    AbortRequest {
        msg_ids: Some(msg_ids.to_vec()),
        kill,
        ..AbortRequest::default()
    }
}

fn abort_session(session: &str) -> AbortRequest {
    AbortRequest {
        session: Some(session.to_owned()),
        kill: true,
        ..AbortRequest::default()
    }
}

impl Client {
    fn query_one<T: DeserializeOwned>(&self, kind: &str, content: &impl Serialize) -> Result<T> {
        self.query(kind, content).map(|One { it }| it)
    }

    /// Ends tasks: waiting ones at once; running ones too with `kill`. An array's id stands for all of its members.
    ///
    /// # Errors
    /// When the hub refuses or does not answer.
    pub fn abort(&self, msg_ids: &[String], kill: bool) -> Result<AbortReply> {
        self.query(types::ABORT_REQUEST, &abort(msg_ids, kill))
    }

    /// Ends tasks like [`Client::abort`], without waiting for the controller's answer.
    ///
    /// # Errors
    /// [`crate::Error::Closed`].
    pub fn abort_soon(&self, msg_ids: &[String], kill: bool) -> Result<()> {
        self.tell(types::ABORT_REQUEST, &abort(msg_ids, kill))
    }

    /// Ends every task of one client (this one: [`Client::session_id`]).
    ///
    /// # Errors
    /// When the hub refuses or does not answer.
    pub fn abort_session(&self, session: &str) -> Result<AbortReply> {
        self.query(types::ABORT_REQUEST, &abort_session(session))
    }

    /// Ends every task of this client, and waits so long for the controller's answer.
    ///
    /// # Errors
    /// When the hub refuses or does not answer.
    pub fn abort_own(&self, limit: Duration) -> Result<AbortReply> {
        let request = abort_session(self.session_id());
        self.query_within(limit, (types::ABORT_REQUEST, &request))
    }

    /// Ends every task there is.
    ///
    /// # Errors
    /// When the hub refuses or does not answer.
    pub fn abort_all(&self) -> Result<AbortReply> {
        let request = AbortRequest {
            all: true,
            kill: true,
            ..AbortRequest::default()
        };
        self.query(types::ABORT_REQUEST, &request)
    }

    /// The engines, with what they are.
    ///
    /// # Errors
    /// When the hub refuses or does not answer.
    pub fn engines(&self) -> Result<Vec<EngineInfo>> {
        self.query_one(types::ENGINES_REQUEST, &Map::new())
    }

    /// Jobs and run times by host.
    ///
    /// # Errors
    /// When the hub refuses or does not answer.
    pub fn stats(&self) -> Result<Stats> {
        self.query(types::STATS_REQUEST, &Map::new())
    }

    /// Where the page is (`ipctl --web`).
    ///
    /// # Errors
    /// When there is none, or the hub does not answer.
    pub fn web(&self) -> Result<WebReply> {
        self.query(types::WEB_REQUEST, &Map::new())
    }

    /// How the cluster is: tasks, engines, clients, the store.
    ///
    /// # Errors
    /// When the hub refuses or does not answer.
    pub fn status(&self) -> Result<Map<String, Value>> {
        self.query(types::STATUS_REQUEST, &Map::new())
    }

    /// The next sample of the cluster after `after` (0: whichever comes first); at most four a second.
    ///
    /// # Errors
    /// When the hub refuses, or does not answer within 5 s: a controller that was started again knows of no such question.
    pub fn events(&self, after: u64) -> Result<Sample> {
        let request = (types::EVENTS_REQUEST, &EventsRequest { after });
        self.query_within(Duration::from_secs(5), request)
    }

    /// Records of the history by a query in the peer's language (`{"submitted": {"$gte": "2026-11-28"}}`; empty: all),
    /// oldest first, without buffers.
    ///
    /// # Errors
    /// When the hub refuses or does not answer.
    pub fn records(&self, query: &Map<String, Value>, keys: &[&str]) -> Result<Vec<Record>> {
        let mut all = Vec::new();
        for part in self.records_in_parts(query, keys) {
            all.extend(part?);
        }
        Ok(all)
    }

    /// The same, a part at a time: of very many, not all are in memory at once.
    pub fn records_in_parts(
        &self,
        query: &Map<String, Value>,
        keys: &[&str],
    ) -> impl Iterator<Item = Result<Vec<Record>>> {
        #[derive(Deserialize)]
        struct Reply {
            records: Vec<Record>,
            next: Option<u64>,
        }
        let mut next = Some(0);
        std::iter::from_fn(move || {
            let after = next.take()?;
            let request = json!({"query": query, "keys": keys, "after": after, "limit": RECORDS});
            let reply: Result<Reply> = self.query(request::DB, &request);
            Some(reply.map(|reply| {
                next = reply.next;
                reply.records
            }))
        })
    }

    /// The arguments of an array, as its request has them: a table of offsets and the values.
    ///
    /// # Errors
    /// When the hub refuses or does not answer.
    pub fn request_buffers(&self, msg_id: &str) -> Result<Vec<Message>> {
        let request = json!({"query": {"msg_id": msg_id}, "keys": ["msg_id", "buffers"]});
        let mut answer = self.query_raw(request::DB, &request)?;
        Ok(answer.take_buffers())
    }

    /// How past tasks ended, of an array range by range: what engines replied, with its buffers where it is an array's.
    ///
    /// # Errors
    /// When the hub refuses or does not answer.
    pub fn replies(&self, msg_ids: &[String]) -> Result<Vec<PastReply>> {
        #[derive(Deserialize)]
        struct Row {
            #[serde(flatten)]
            reply: PastReply,
            buffers: Option<usize>,
        }
        let request = BTreeMap::from([("msg_ids", msg_ids)]);
        let mut answer = self.query_raw(types::REPLIES_REQUEST, &request)?;
        let One { it: replies }: One<Vec<Row>> = self.unpack(&answer)?;
        let mut buffers = answer.take_buffers().into_iter();
        let whole = |Row {
                         mut reply,
                         buffers: count,
                     }| {
            reply.frames = buffers.by_ref().take(count.unwrap_or(0)).collect();
            reply
        };
        Ok(replies.into_iter().map(whole).collect())
    }

    /// Why a task waits, or what became of it.
    ///
    /// # Errors
    /// When the hub refuses or does not answer.
    pub fn explain(&self, msg_id: &str) -> Result<Explanation> {
        let request = BTreeMap::from([("msg_id", msg_id)]);
        self.query(types::EXPLAIN_REQUEST, &request)
    }

    /// What tasks of this client wait for that no engine has. Not what waits for its turn, nor for the first engine of all.
    ///
    /// # Errors
    /// When the hub refuses or does not answer.
    pub fn unschedulable(&self) -> Result<Vec<Unschedulable>> {
        self.query_one(types::EXPLAIN_REQUEST, &Map::new())
    }

    /// What a task has written so far, this client's or another's; `seen`: bytes of its standard output and standard error
    /// that were told before. Of one that does not run, nothing: see [`outcomes`](Self::outcomes).
    ///
    /// # Errors
    /// When the hub refuses or does not answer, or the engine does not: a Python engine of another make does not know.
    pub fn output(&self, msg_id: &str, seen: [u64; 2]) -> Result<OutputReply> {
        let msg_id = msg_id.to_owned();
        self.query(types::OUTPUT_REQUEST, &OutputRequest { msg_id, seen })
    }

    /// Outcomes of tasks, this client's or others'.
    ///
    /// # Errors
    /// When the hub refuses (an unknown id) or does not answer.
    pub fn outcomes(&self, msg_ids: &[String], details: bool) -> Result<Outcomes> {
        let request = json!({"msg_ids": msg_ids, "statusonly": !details, "buffers": false});
        self.query(request::RESULT, &request)
    }

    /// The buffers of a finished task's reply, as the controller keeps them: of a command, the files that its `get` names.
    ///
    /// # Errors
    /// When the hub refuses (an unknown id) or does not answer.
    pub fn result_buffers(&self, msg_id: &str) -> Result<Vec<Message>> {
        let request = BTreeMap::from([("msg_ids", [msg_id])]);
        let mut answer = self.query_raw(request::RESULT, &request)?;
        Ok(answer.take_buffers())
    }

    /// Ids of everything that is unfinished, of every client.
    ///
    /// # Errors
    /// When the hub refuses or does not answer.
    pub fn unfinished(&self) -> Result<Vec<String>> {
        let reply: Map<String, Value> =
            self.query(request::QUEUE, &BTreeMap::from([("verbose", true)]))?;
        let mut ids = Vec::new();
        let mut take = |value: Option<&Value>| {
            for id in value.and_then(Value::as_array).into_iter().flatten() {
                ids.extend(id.as_str().map(str::to_owned));
            }
        };
        take(reply.get("unassigned"));
        for engine in reply.values().filter_map(Value::as_object) {
            take(engine.get("queue"));
            take(engine.get("tasks"));
        }
        Ok(ids)
    }

    /// Ids of every task that the store knows, oldest first.
    ///
    /// # Errors
    /// When the hub refuses or does not answer.
    pub fn history(&self) -> Result<Vec<String>> {
        self.query_one(request::HISTORY, &Map::new())
    }

    /// Submits tasks again; their new ids by the old ones.
    ///
    /// # Errors
    /// When the hub refuses (an unknown id) or does not answer.
    pub fn resubmit(&self, msg_ids: &[String]) -> Result<BTreeMap<String, String>> {
        self.query_one(request::RESUBMIT, &BTreeMap::from([("msg_ids", msg_ids)]))
    }

    /// Ends the controller and what it started.
    ///
    /// # Errors
    /// When the hub refuses or does not answer.
    pub fn shutdown(&self) -> Result<()> {
        self.query_raw(types::SHUTDOWN_REQUEST, &json!({"restart": false}))
            .map(drop)
    }
}
