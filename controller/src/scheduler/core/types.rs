//! What goes into the core and what comes out of it.

use std::ops::{BitOr, Range};
use std::str::FromStr;
use std::sync::Arc;

pub use ipbroker_protocol::dependency::Dependency;
use ipbroker_protocol::resources::Amount;

/// Time since the start of the controller, in nanoseconds. The core never reads a clock.
pub type Nanos = u64;

/// One second in [`Nanos`].
pub const SECOND: Nanos = 1_000_000_000;

/// One millisecond in [`Nanos`].
pub const MILLISECOND: Nanos = 1_000_000;

/// A registered engine. Never reused: a key of an engine that left stays invalid for good.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct EngineKey {
    pub(crate) slot: u32,
    pub(crate) generation: u32,
}

impl EngineKey {
    /// A small number that no other engine has while this one is registered: for tables beside the core.
    pub fn slot(self) -> usize {
        self.slot as usize
    }
}

/// A task group. Never reused: a key of a released group stays invalid for good.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct GroupKey {
    pub(crate) index: u32,
    pub(crate) generation: u32,
}

impl GroupKey {
    /// A small number that no other group has until this one is released: for tables beside the core.
    pub fn index(self) -> usize {
        self.index as usize
    }
}

/// A set of capabilities (`apply`, `command`, `array`, …), from [`super::Core::needs`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Needs(pub(crate) u64);

impl BitOr for Needs {
    type Output = Needs;
    fn bitor(self, other: Needs) -> Needs {
        Needs(self.0 | other.0)
    }
}

/// How many tasks an engine may hold that it has not answered.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Hwm {
    /// Follows from how long tasks and messages take (`--hwm=auto`).
    #[default]
    Auto,
    /// No limit (`--hwm=0`).
    Unlimited,
    /// At most this many.
    Fixed(u32),
}

impl FromStr for Hwm {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "auto" => Ok(Self::Auto),
            "0" => Ok(Self::Unlimited),
            _ => text
                .parse()
                .map(Self::Fixed)
                .map_err(|_| "a number (0: no limit) or `auto`".into()),
        }
    }
}

/// The name of a resource, or of one unit of it.
pub type Name = Arc<str>;

/// What a task asks of its host: amounts by name, sorted, `cpus` among them.
pub type Request = Vec<(Name, Amount)>;

/// What a task was granted of one resource.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Granted {
    /// The resource.
    pub name: Name,
    /// How much of it.
    pub amount: Amount,
    /// Which ones, where they have names.
    pub names: Names,
}

/// Some of the names of a list, which is shared.
#[derive(Clone, Default)]
pub struct Names {
    pub(super) list: Arc<[Name]>,
    /// Where they are in it.
    pub(super) at: Vec<u32>,
}

impl Names {
    /// Each of them.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = &Name> {
        self.at.iter().map(|&at| &self.list[at as usize])
    }
}

impl FromIterator<Name> for Names {
    fn from_iter<I: IntoIterator<Item = Name>>(names: I) -> Self {
        let list: Arc<[Name]> = names.into_iter().collect();
        Names {
            at: (0..list.len() as u32).collect(),
            list,
        }
    }
}

impl PartialEq for Names {
    fn eq(&self, other: &Self) -> bool {
        self.iter().eq(other.iter())
    }
}

impl Eq for Names {}

impl std::fmt::Debug for Names {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.iter()).finish()
    }
}

/// What a task was granted of its host.
pub type Grant = Vec<Granted>;

/// What an engine says of its host. Engines that give the same `key` share what it has.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HostSpec {
    /// Which host it is.
    pub key: Box<str>,
    /// Numbers of the cores that the engine may use; of all engines together they make up the host's cpus, and there are
    /// never fewer cpus than engines.
    pub cores: Vec<u32>,
    /// What there is by amount.
    pub sums: Vec<(Name, Amount)>,
    /// What there is by name.
    pub lists: Vec<(Name, Vec<Name>)>,
}

/// What a host has, and who holds it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HostState {
    /// Which host it is.
    pub key: Box<str>,
    /// Its registered engines.
    pub engines: Vec<EngineKey>,
    /// Each resource.
    pub stocks: Vec<StockState>,
    /// Engines whose task asked for something, and what it was granted.
    pub holders: Vec<(EngineKey, Arc<Grant>)>,
    /// What is kept for a task that waits for more than is free.
    pub kept: Option<Kept>,
    /// The engine whose task holds all of it.
    pub held_by: Option<EngineKey>,
}

/// A resource of a host: its name, all of it, what is in use, and the names of the free ones.
pub type StockState = (Name, Amount, Amount, Vec<Name>);

/// What is kept on a host for a task that waits there for more than is free.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kept {
    /// The engine that will run it.
    pub engine: EngineKey,
    /// The task, or one like it.
    pub group: GroupKey,
    /// What it asks for.
    pub request: Request,
    /// Another number for each time that something is kept.
    pub serial: u64,
}

/// No wait before a retry is longer: an hour.
pub const RETRY_DELAY_MOST: Nanos = 3600 * SECOND;

/// A submission: `count` members that share everything but their argument.
#[derive(Clone, Copy, Debug)]
pub struct GroupSpec<'a> {
    /// The message id of the request.
    pub msg_id: &'a str,
    /// The client (its identity or session): the unit of fairness and of `abort` by client.
    pub client: &'a [u8],
    /// Members; 1 for an ordinary task.
    pub count: u32,
    /// The members are tasks that were submitted one by one: each is expected to take as long as the client's last ones.
    pub each: bool,
    /// Capabilities an engine must have.
    pub needs: Needs,
    /// Engine uuids; empty: any.
    pub targets: &'a [String],
    /// Host names, one of which an engine must have; empty: any.
    pub hosts: &'a [String],
    /// Tags, all of which an engine must have.
    pub tags: &'a [String],
    /// What its host must have free: alternatives, in order of preference (none: one cpu, as any task).
    pub requests: &'a [Request],
    /// So many whole hosts, which it holds while it runs (0: none). It has no `requests` then.
    pub nodes: u32,
    /// Host names or tags of which one is preferred.
    pub prefer: &'a [String],
    /// How long to wait for a preferred engine that is busy.
    pub prefer_wait: Nanos,
    /// Higher goes first, among the tasks of one client.
    pub priority: i32,
    /// When it may run.
    pub after: Option<&'a Dependency>,
    /// Where it may run.
    pub follow: Option<&'a Dependency>,
    /// How long it may wait each time it waits; 0: for ever.
    pub timeout: Nanos,
    /// How long it may run: it goes only to an engine that stays so long (0: to any).
    pub time: Nanos,
    /// How often it is run again after a failure.
    pub retries: u32,
    /// How long it waits before the first of these; twice as long before each further one, [`RETRY_DELAY_MOST`] at most.
    pub retry_delay: Nanos,
    /// How often it is run again after the engine that ran it was lost; `None`: that uses up a retry.
    pub crashes: Option<u32>,
    /// A failed member may go back to the engine it failed on (never after an unmet dependency).
    pub may_return: bool,
    /// Survives its client.
    pub detach: bool,
    /// Fail at once, instead of waiting, when no registered engine could ever take it.
    pub no_wait: bool,
    /// Size of its frames: accounted for as waiting until dispatched for good.
    pub bytes: u64,
}

impl Default for GroupSpec<'_> {
    fn default() -> Self {
        GroupSpec {
            msg_id: "",
            client: b"",
            count: 1,
            each: false,
            needs: Needs(0),
            targets: &[],
            hosts: &[],
            tags: &[],
            requests: &[],
            nodes: 0,
            prefer: &[],
            prefer_wait: 0,
            priority: 0,
            after: None,
            follow: None,
            timeout: 0,
            time: 0,
            retries: 0,
            retry_delay: 0,
            crashes: None,
            may_return: false,
            detach: false,
            no_wait: false,
            bytes: 0,
        }
    }
}

/// Why a submission was not accepted. Nothing else is said about such a submission.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The id is already in memory.
    #[error("a task with this id was already submitted")]
    Duplicate(TaskState),
    /// An array without members.
    #[error("an array needs at least one member")]
    Empty,
}

/// An engine as it registers.
#[derive(Clone, Debug, Default)]
pub struct EngineSpec<'a> {
    /// Its uuid, which `targets` name.
    pub uuid: &'a str,
    /// Its number, for explanations.
    pub id: u32,
    /// All names of its host.
    pub hosts: &'a [String],
    /// Its tags.
    pub tags: &'a [String],
    /// What it can run.
    pub capabilities: &'a [String],
    /// It gives unstarted tasks back when asked.
    pub can_give_back: bool,
    /// Its host (`None`: one of its own, with one cpu).
    pub host: Option<&'a HostSpec>,
    /// How long it stays; `None`: as long as it is wanted.
    pub stays: Option<Nanos>,
}

/// Members that an engine holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Held<'a> {
    /// Message id of the group.
    pub msg_id: &'a str,
    /// First member and the one past the last; `0..1` for an ordinary task.
    pub range: (u32, u32),
}

/// How a member ended on an engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Outcome {
    /// It ran.
    Ok,
    /// It failed.
    Error,
    /// The engine dropped or stopped it.
    Aborted,
    /// The engine lacks what it needs: to be tried elsewhere.
    Unmet,
}

/// What an engine says of members of a group.
#[derive(Clone, Debug)]
pub struct Report<'a> {
    /// The members; `0..1` for an ordinary task.
    pub range: Range<u32>,
    /// How they ended.
    pub outcome: Outcome,
    /// Members that ended otherwise, ascending.
    pub exceptions: &'a [(u32, Outcome)],
    /// The sum of their run times.
    pub run: Nanos,
}

impl Report<'_> {
    /// All of them ended alike.
    pub fn all(range: Range<u32>, outcome: Outcome, run: Nanos) -> Self {
        Report {
            range,
            outcome,
            exceptions: &[],
            run,
        }
    }
}

/// Which members of a reply the client gets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Deliver {
    /// All of it.
    All,
    /// Nothing: late, a duplicate, or everything in it is tried again.
    Nothing,
    /// These members; the others are tried again or were answered before.
    Some(Vec<Range<u32>>),
}

/// An outcome that the store remembers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Known<'a> {
    /// It succeeded.
    pub ok: bool,
    /// Uuids of the engines it ran on; empty: it never ran.
    pub engines: &'a [String],
}

/// The names under which failures go to a client.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum FailKind {
    /// Waited longer than its timeout.
    TaskTimeout,
    /// Can never run.
    ImpossibleDependency,
    /// Depends on itself or on an id nobody knows.
    InvalidDependency,
    /// The engine that ran it is gone.
    EngineError,
    /// Aborted before it ran, or its engine did not answer the abort in time.
    TaskAborted,
    /// `no_wait`, and no engine could take it.
    NoEngine,
    /// No registered engine that could take it has its inputs.
    MissingInput,
}

impl FailKind {
    /// The exception name on the wire.
    pub fn ename(self) -> &'static str {
        match self {
            FailKind::TaskTimeout => "TaskTimeout",
            FailKind::ImpossibleDependency => "ImpossibleDependency",
            FailKind::InvalidDependency => "InvalidDependency",
            FailKind::EngineError => "EngineError",
            FailKind::TaskAborted => "TaskAborted",
            FailKind::NoEngine => "NoEnginesRegistered",
            FailKind::MissingInput => "MissingInput",
        }
    }
}

/// What the thread around the core has to do, in this order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Send members `range` of the group to the engine.
    Dispatch {
        /// The group.
        group: GroupKey,
        /// Members; `0..1` for an ordinary task.
        range: Range<u32>,
        /// Where to.
        engine: EngineKey,
        /// 0 for the first time; never the same again for the same members and engine.
        attempt: u32,
        /// What it has of its host, if it asked.
        grant: Option<Arc<Grant>>,
        /// Which of its alternatives that is, from 0, if it has several.
        alternative: Option<u32>,
        /// If it holds whole hosts: an engine of each, the one that runs it first.
        nodes: Vec<EngineKey>,
    },
    /// Answer the client: these members failed for good without (or instead of) a reply of an engine.
    Fail {
        /// The group.
        group: GroupKey,
        /// Members.
        range: Range<u32>,
        /// The error's name.
        kind: FailKind,
        /// A sentence for the user.
        text: Box<str>,
        /// The engine it was lost with, if any.
        engine: Option<EngineKey>,
    },
    /// Members that an engine had wait again: given back, never received, lost or failed with retries left.
    Requeue {
        /// The group.
        group: GroupKey,
        /// Members; `0..1` for an ordinary task.
        range: Range<u32>,
        /// Retries that each of them has left.
        retries: u32,
    },
    /// Ask the engine to give these back if it has not started them; it answers with `given_back` for those it gives.
    Recall {
        /// The engine.
        engine: EngineKey,
        /// Newest first.
        items: Vec<(GroupKey, Range<u32>)>,
    },
    /// Stop these aborted members, running or not; the engine answers them `aborted`.
    Stop {
        /// The engine.
        engine: EngineKey,
        /// The group.
        group: GroupKey,
        /// Members.
        range: Range<u32>,
    },
    /// Every member has its final outcome: the group's frames may be dropped. The key stays valid until its engines
    /// have answered (late replies are then [`Deliver::Nothing`]).
    Release {
        /// The group.
        group: GroupKey,
    },
    /// Ask the store how this id ended, and answer with `outcome_known`.
    LookupOutcome {
        /// The id as a client wrote it.
        id: Box<str>,
    },
}

/// Whose tasks to abort.
#[derive(Clone, Copy, Debug)]
pub enum Selector<'a> {
    /// These ids (groups or members).
    Ids(&'a [String]),
    /// All of a client.
    Client {
        /// The client.
        client: &'a [u8],
        /// Leave detached tasks alone (a lease that ran out).
        keep_detached: bool,
    },
    /// Everything.
    All,
}

/// What became of an abort.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AbortReport {
    /// Members that waited: their `Fail` actions (kind `TaskAborted`) are queued.
    pub aborted: Vec<(GroupKey, Range<u32>)>,
    /// Members on an engine; with `kill`, a `Stop` action is queued for each entry.
    pub running: Vec<(EngineKey, GroupKey, Range<u32>)>,
    /// Per id (for [`Selector::Ids`]): what it was, in the order given.
    pub ids: Vec<TaskState>,
}

/// Where a task stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum TaskState {
    /// Not in memory (the store may know it).
    Unknown,
    /// Waits for other tasks.
    Blocked,
    /// Waits for an engine.
    Waiting,
    /// Given to an engine (some members, for a group).
    Running,
    /// Ended well (all members).
    Ok,
    /// Ended otherwise (at least one member).
    Failed,
}

/// Members that are on an engine, or wait.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Span {
    /// The group.
    pub group: GroupKey,
    /// Members.
    pub range: Range<u32>,
}

/// Counts of members.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// Waiting for an engine.
    pub ready: u64,
    /// Waiting for other tasks.
    pub blocked: u64,
    /// On an engine.
    pub running: u64,
    /// Ended well.
    pub completed: u64,
    /// Ended in an error.
    pub failed: u64,
    /// Aborted.
    pub aborted: u64,
    /// Bytes of the frames of unfinished groups.
    pub bytes: u64,
}

/// The counts of one engine.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EngineTotals {
    /// Members it holds.
    pub outstanding: u64,
    /// Members it has answered for good.
    pub completed: u64,
    /// Sum of the run times of these.
    pub run_time: Nanos,
}

/// Why a task is where it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Explanation {
    /// Its state.
    pub state: TaskState,
    /// A sentence or a few for a person.
    pub text: String,
    /// Registered engines it may not or cannot use now, with the reason for each.
    pub engines: Vec<(EngineKey, String)>,
}
