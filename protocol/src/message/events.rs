//! What a cluster is doing, as whoever watches it is told: `events_request`, `graph_request`, and their replies.

use serde::{Deserialize, Serialize};

/// Content of `events_request`: answered when there is a sample newer than `after`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct EventsRequest {
    /// The last sample that the asker has; 0: none.
    pub after: u64,
}

/// Content of `events_reply`: one sample of the whole cluster. Times are seconds since 1970 by the controller's clock.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Sample {
    /// Its number, from 1 and ascending.
    pub seq: u64,
    /// When it was taken.
    pub time: f64,
    /// Seconds since the controller started.
    pub uptime: f64,
    /// Which run of the controller this is.
    pub incarnation: String,
    /// The controller's version.
    pub version: String,
    /// How engines are chosen.
    pub scheme: String,
    /// Clients that hold a lease.
    pub clients: u64,
    /// Tasks by state.
    pub tasks: TaskCounts,
    /// Every registered engine.
    pub engines: Vec<EngineSample>,
    /// Their hosts.
    pub hosts: Vec<HostSample>,
    /// What clients have submitted, newest last; those that ended long ago are left out.
    pub submissions: Vec<SubmissionSample>,
    /// Failures, grouped by the last line of what they said; most recent last.
    pub failures: Vec<FailureSample>,
    /// Stretches of work that ended since the sample before this; of very many only some.
    pub slices: Vec<Slice>,
    /// What is wrong with the controller, in words.
    pub troubles: Vec<String>,
}

/// Tasks (members of arrays count one by one).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct TaskCounts {
    /// Waiting for an engine.
    pub ready: u64,
    /// Waiting for other tasks.
    pub blocked: u64,
    /// On an engine.
    pub running: u64,
    /// Sent directly to an engine and not answered.
    pub direct: u64,
    /// Ended well since the controller started.
    pub completed: u64,
    /// Ended in an error.
    pub failed: u64,
    /// Aborted.
    pub aborted: u64,
}

/// An engine.
#[serde_with::skip_serializing_none]
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct EngineSample {
    /// Its number.
    pub id: u32,
    /// Its host.
    pub host: String,
    /// `ipengine` or `python`.
    pub kind: String,
    /// Tasks that it has been given and not answered.
    pub outstanding: u64,
    /// Tasks that it has completed.
    pub completed: u64,
    /// Id of the task that it has had longest; of very many engines only some tell.
    pub task: Option<String>,
    /// That task in a line: its command, or the name of its function.
    pub what: Option<String>,
    /// Of what kind that is: its program, or its function.
    pub task_kind: Option<String>,
    /// Since when it has worked on it.
    pub since: Option<f64>,
    /// It leaves when that has ended.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub leaving: bool,
}

/// A host of engines.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct HostSample {
    /// Its name.
    pub host: String,
    /// Engines that it has.
    pub engines: u64,
    /// Those of them that have a task.
    pub busy: u64,
    /// How loaded it is, if an engine of ours tells.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub load: Option<HostLoad>,
}

/// How loaded a host is, as an engine process there sees it (PROTOCOL.md, section 3).
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct HostLoad {
    /// The part of the time of all its cores that was used since the heartbeat before, from 0 to 1.
    pub cpu: f64,
    /// Bytes of memory in use, and of all memory.
    pub memory: (u64, u64),
    /// Bytes in use on the file system of scratch directories, and all of its bytes.
    pub disk: (u64, u64),
}

/// What one client has submitted without a pause.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct SubmissionSample {
    /// The id of its first task.
    pub id: String,
    /// The client's session, by which it can be aborted.
    pub session: String,
    /// Its first task in a line.
    pub what: String,
    /// Tasks so far.
    pub total: u64,
    /// Those that ended well.
    pub completed: u64,
    /// Those that ended in an error.
    pub failed: u64,
    /// Those that were aborted.
    pub aborted: u64,
    /// Those that were submitted with dependencies: the submission is a graph if there are any.
    pub dependent: u64,
    /// When the first of them came.
    pub begun: f64,
    /// When the last of them ended; none while something is unfinished.
    pub ended: Option<f64>,
}

impl SubmissionSample {
    /// Tasks that have ended, in whatever way.
    #[must_use]
    pub fn done(&self) -> u64 {
        self.completed + self.failed + self.aborted
    }
}

/// Failures that say the same.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct FailureSample {
    /// The last line of what they said.
    pub text: String,
    /// How many there were.
    pub count: u64,
    /// When the last of them was.
    pub last: f64,
    /// Ids of the last ones.
    pub ids: Vec<String>,
}

/// An engine's work on one message: a task, or some members of an array one after the other.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Slice {
    /// The engine.
    pub engine: u32,
    /// When it began.
    pub begun: f64,
    /// When its reply came.
    pub ended: f64,
    /// `ok`, `failed` or `aborted`; of several members the worst.
    pub outcome: String,
    /// How many.
    pub count: u32,
    /// The task's id.
    pub id: String,
    /// Of what kind it is: its program, or its function.
    pub kind: String,
}

/// Content of `search_request`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct SearchRequest {
    /// What is in the id, the command or the name of the function.
    pub text: String,
    /// Look at what was submitted before this task; empty: at the newest.
    pub before: String,
}

/// Content of `search_reply`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct SearchReply {
    /// The newest of what was found. Of an array with many such members, it and their number.
    pub tasks: Vec<GraphTask>,
    /// Where a further search begins, if there is more to look at.
    pub before: Option<String>,
}

/// Content of `graph_request`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct GraphRequest {
    /// The first task of a submission, as a sample names it.
    pub msg_id: String,
    /// How many tasks it has; 0: all that its client has submitted since.
    pub tasks: u64,
}

/// Content of `graph_reply`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct GraphReply {
    /// Tasks in the order of their submission.
    pub tasks: Vec<GraphTask>,
    /// These are all. Of a large submission they are those around the first that has not ended, or the first ones.
    pub whole: bool,
}

/// A task, a member of an array, or a large array.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct GraphTask {
    /// Its id.
    pub id: String,
    /// It in a line: its command, the name of its function, or its label.
    pub name: String,
    /// `waiting`, `running`, `ok`, `failed`, `aborted`, or `impossible`: it failed because it can never run.
    pub state: String,
    /// Members, of a large array.
    pub count: u64,
    /// Places in the list, each earlier than its own, of the tasks that it waits for or has waited for.
    pub after: Vec<u32>,
}
