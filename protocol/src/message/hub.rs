//! Contents of what goes through the hub.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::is_default;
use crate::{
    resources::{Grant, Pools},
    value::Map,
};

/// Content of `registration_request`. Python engines send `uuid` and perhaps `id`; the rest is ours.
#[serde_with::apply(_ => #[serde(skip_serializing_if = "is_default")])]
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Registration {
    /// The engine's uuid, its identity on every socket; or that of the process whose `engines` are registered.
    #[serde_with(skip_apply)]
    pub uuid: String,
    /// The engines that share the connections of this process: what else is said is true of all.
    pub engines: Vec<ProcessEngine>,
    /// The id it would like to have.
    pub id: Option<u32>,
    /// What it can do; see [`capability`]. Absent: `apply`, `execute`.
    pub capabilities: Option<Vec<String>>,
    /// Names of its functions.
    pub functions: Vec<String>,
    /// All names of its host: full, short, SSH alias, addresses.
    pub host: Vec<String>,
    /// Its process.
    pub pid: Option<u32>,
    /// Cores of its host.
    pub cores: Option<u32>,
    /// Which machine it is on: engines that say the same share what it has.
    pub machine: Option<String>,
    /// How long it stays, in seconds; absent: as long as it is wanted.
    pub stays: Option<f64>,
    /// What that machine has.
    pub resources: Pools,
    /// Cores, by number, that its process may use.
    pub cpuset: Vec<u32>,
    /// Tags: racks, `gpu`, …
    pub tags: Vec<String>,
    /// Version of the program.
    pub version: Option<String>,
    /// The [`PROTOCOL`](crate::PROTOCOL) it speaks; absent: 1.
    pub protocol: Option<u32>,
    /// How limits of jobs are kept: `cgroup` or `sampling`.
    pub limits: Option<String>,
    /// It was registered before, with this controller or an earlier one: it may hold tasks.
    pub returns: bool,
    /// Keys of later versions.
    #[serde(flatten)]
    pub extra: Map,
}

/// One of the engines of a process that registers them.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct ProcessEngine {
    /// Its uuid: that of the process, `_engine_`, a number.
    pub uuid: String,
    /// The id it would like to have.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub id: Option<u32>,
    /// It was registered before, and may hold tasks.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub returns: bool,
}

/// Content of `holds_reply`: what an engine holds, task ids with `[lo, hi)` for ranges of arrays.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Holds {
    /// Running now.
    pub running: Vec<Held>,
    /// Finished and not acknowledged; their replies came again before this.
    pub finished: Vec<Held>,
    /// Received and not started.
    pub queued: Vec<Held>,
}

/// One task, or one range of an array, that an engine holds: `[msg_id, lo, hi]`; 0, 1 for an ordinary task.
pub type Held = (String, u64, u64);

/// Capabilities of engines.
pub mod capability {
    /// Runs `command_request`.
    pub const COMMAND: &str = "command";
    /// Runs `function_request`.
    pub const FUNCTION: &str = "function";
    /// Runs `apply_request`.
    pub const APPLY: &str = "apply";
    /// Runs `execute_request`.
    pub const EXECUTE: &str = "execute";
    /// Takes ranges of arrays.
    pub const ARRAY: &str = "array";
    /// Gives unstarted tasks back when asked.
    pub const GIVE_BACK: &str = "give_back";
    /// Keeps replies until they are acknowledged.
    pub const ACK: &str = "ack";
    /// Stops a running task when asked.
    pub const KILL: &str = "kill";
    /// Serves file operations.
    pub const FS: &str = "fs";
    /// Takes tasks in bundles.
    pub const BUNDLE: &str = "bundle";
}

/// Content of `registration_reply`.
#[serde_with::apply(_ => #[serde(skip_serializing_if = "is_default")])]
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct RegistrationReply {
    /// `ok`, or `error` with `evalue`.
    #[serde_with(skip_apply)]
    pub status: String,
    /// The engine's id.
    pub id: Option<u32>,
    /// The ids of the engines of a process, by uuid.
    pub engines: BTreeMap<String, u32>,
    /// Period of the heartbeat in ms.
    #[serde_with(skip_apply)]
    pub hb_period: u64,
    /// The engine's half of the connection file.
    pub connection_info: Option<Map>,
    /// Replies are kept until `reply_ack`.
    pub durable: bool,
    /// The task path is the pure one: announce what is received.
    pub pure: bool,
    /// Which run of the controller answers.
    pub incarnation: String,
    /// What went wrong.
    pub evalue: Option<String>,
}

/// Content of `lease_request`.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct LeaseRequest {
    /// The client closes, and gets no answer.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub closes: bool,
}

/// Content of `lease_reply`.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct LeaseReply {
    /// Which run of the controller answers.
    pub incarnation: String,
    /// Seconds without a sign of life until a client's tasks are dropped.
    pub lease: f64,
    /// Something is wrong with the controller that its clients should know: full disk, no descriptors.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub troubles: Vec<String>,
    /// The scheduler takes bundles, and answers them with bundles.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub bundles: bool,
}

/// Content of `engine_died`: each uuid of the process with the ids it had started.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct EngineDied {
    /// What each engine of the process had started.
    pub uuids: BTreeMap<String, Vec<String>>,
    /// How it ended, in words.
    pub reason: String,
}

/// Content of `clock_notice`.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct ClockNotice {
    /// Seconds that the engine's clock is ahead of the controller's.
    pub offset: f64,
}

/// Content of `received_notice`: `[client identity in hex, msg_id, msg_type]` each.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct ReceivedNotice {
    /// The engine.
    pub uuid: String,
    /// The tasks.
    pub tasks: Vec<(String, String, String)>,
}

/// Content of `leave_request` and `left_notice`: a DEALER does not tell who speaks.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Leaving {
    /// The engine.
    pub uuid: String,
    /// What it runs is stopped.
    pub stops: bool,
}

/// Content of `waits_notice`: as long as calls wait, their engine works on others.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Waiting {
    /// The engine.
    pub uuid: String,
    /// How many of its calls wait for tasks that they have submitted.
    pub waits: u32,
    /// The priority of the last of them: the engine takes only tasks of a higher one.
    pub floor: i32,
}

/// Content of `leave_reply`. On the pure path it comes to whichever engine has the turn: who is not named ignores it.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct LeaveReply {
    /// The engines that are given nothing more.
    pub uuids: Vec<String>,
    /// Engines whose `left_notice` has arrived: they may end the connection.
    pub left: Vec<String>,
}

/// One engine in `engines_reply`.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct EngineInfo {
    /// Its id.
    pub id: u32,
    /// Its uuid.
    pub uuid: String,
    /// `ipengine` or `python`.
    pub kind: String,
    /// Names of its host.
    pub host: Vec<String>,
    /// Its process.
    pub pid: Option<u32>,
    /// Cores of its host.
    pub cores: Option<u32>,
    /// Its tags.
    pub tags: Vec<String>,
    /// Its capabilities.
    pub capabilities: Vec<String>,
    /// Members it has been given and not answered.
    pub outstanding: u64,
    /// Members it has completed.
    pub completed: u64,
    /// Seconds since it registered.
    pub age: f64,
    /// Round trip of its last heartbeat in ms.
    pub ping: Option<f64>,
    /// Seconds that its clock is ahead, where known.
    pub clock: Option<f64>,
    /// How limits of jobs are kept there.
    pub limits: Option<String>,
    /// Version of its program.
    pub version: Option<String>,
    /// What its machine has; all engines of a machine share it.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub resources: BTreeMap<String, Stock>,
    /// What its task was granted of that, if it asked.
    #[serde(skip_serializing_if = "Grant::is_empty")]
    pub holds: Grant,
    /// The task for which it is kept free, if one has been waiting for long.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kept_for: Option<String>,
}

/// What a machine has of one resource.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Stock {
    /// In all.
    pub total: f64,
    /// Of that, not held by a task.
    pub free: f64,
    /// The free ones, where they have names.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub names: Vec<String>,
}

/// Content of `web_reply`: the page is on the loopback of the controller's host.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct WebReply {
    /// Its port.
    pub port: u16,
    /// What opens it.
    pub token: String,
}

impl WebReply {
    /// Its address, where this port leads to it.
    #[must_use]
    pub fn url(&self, port: u16) -> String {
        format!("http://127.0.0.1:{port}/?token={}", self.token)
    }
}

/// Content of `stats_reply`: one row a node, as dispy prints it, and one row a job server, as Parallel Python does.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Stats {
    /// A row for each host.
    pub nodes: Vec<NodeStats>,
    /// Jobs that named a preferred place.
    pub preferred: u64,
    /// Those of them that ran there.
    pub preferred_met: u64,
    /// Seconds since the controller began to count.
    pub uptime: f64,
}

/// Statistics of one host.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct NodeStats {
    /// The host.
    pub node: String,
    /// Engines (CPUs in dispy's table) it has had at once.
    pub cpus: u32,
    /// Jobs that ended there.
    pub jobs: u64,
    /// Their run time in s.
    pub time: f64,
}
