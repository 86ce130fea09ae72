//! What the rest of the controller asks of the task thread.
//!
//! The hub never waits: every question carries an [`Answer`], a closure that the task thread calls
//! with the result and that puts an event on the hub's own channel and wakes it.

use std::collections::BTreeMap;
use std::ops::Deref;
use std::sync::Arc;

use ipbroker_protocol::message::{
    FailureSample, Registration, Slice, Stats, Stock, SubmissionSample, Unschedulable, capability,
};
use ipbroker_protocol::resources::Grant;
use ipbroker_protocol::zmq::Message;

use super::core;
use crate::mailbox::Answer;

/// An engine as the hub knows it once its heart has beaten: what it told, under the number that it got.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct EngineProfile {
    /// The engine's number.
    pub id: u32,
    registration: Registration,
}

impl Deref for EngineProfile {
    type Target = Registration;

    fn deref(&self) -> &Registration {
        &self.registration
    }
}

impl EngineProfile {
    /// The engine with this number; one that says nothing of what it can do is the peer's.
    pub(crate) fn new(id: u32, mut registration: Registration) -> Self {
        let python = || {
            [capability::APPLY, capability::EXECUTE]
                .map(str::to_owned)
                .to_vec()
        };
        registration.capabilities.get_or_insert_with(python);
        Self { id, registration }
    }

    /// What it can run and do besides.
    pub(crate) fn capabilities(&self) -> &[String] {
        self.capabilities.as_deref().unwrap_or_default()
    }

    /// Whether it announced `capability`.
    pub(crate) fn can(&self, capability: &str) -> bool {
        self.capabilities().iter().any(|name| name == capability)
    }

    /// Whether it is one of ours (a Python engine announces none of these).
    pub(crate) fn is_ours(&self) -> bool {
        self.can("command") || self.can("function")
    }

    /// What users know it as.
    pub(crate) fn kind(&self) -> &'static str {
        match self.is_ours() {
            true => "ipengine",
            false => "python",
        }
    }

    /// Whether Python code runs on it: one of the peer's, or one of ours with `--python`, which has a tag of that name.
    pub(crate) fn runs_python(&self) -> bool {
        !self.is_ours() || self.tags.iter().any(|tag| tag == "python")
    }
}

/// How an engine left.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Departure {
    /// It said goodbye; what it had not started, it gave back.
    Clean,
    /// Its heart stopped: it may have started anything it holds.
    Silent,
    /// Its process ended and its reaper knows what had been started.
    Died {
        /// What to tell the users of its tasks, e.g. `killed by signal 9`.
        reason: String,
        /// Ids it had started; what it held besides may run elsewhere.
        started: Vec<String>,
    },
}

/// Which tasks an abort is about.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Selection {
    /// These, as message ids or as `MSGID:INDEX`.
    Ids(Vec<String>),
    /// Those of one client session.
    Session(String),
    /// Everything unfinished.
    All,
}

/// Ids of tasks, by the uuid of the engine that has them.
pub(crate) type ByEngine = BTreeMap<String, Vec<String>>;

/// What became of an abort.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Aborted {
    /// Ended now: they were waiting. Their replies are on their way.
    pub aborted: Vec<String>,
    /// On an engine. The hub tells those engines, if it is to stop them.
    pub running: ByEngine,
    /// Done already.
    pub finished: Vec<String>,
    /// Not known.
    pub unknown: Vec<String>,
}

/// Where a task is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum TaskState {
    /// Waiting (for an engine, a dependency, a retry).
    Waiting,
    /// On an engine.
    Running,
    /// Done, and well.
    Done,
    /// Done, and not well.
    Failed,
    /// Not known to the task thread: the store may know it.
    Unknown,
}

/// The tasks of one engine.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct EngineTasks {
    /// The engine.
    pub uuid: String,
    /// How many are on it now.
    pub running: u64,
    /// How many it has completed.
    pub completed: u64,
    /// Ids of those on it (only if asked for).
    pub running_ids: Vec<String>,
    /// Ids of the last completed ones (only if asked for; bounded).
    pub completed_ids: Vec<String>,
    /// What its host has.
    pub resources: BTreeMap<String, Stock>,
    /// What its task was granted of that.
    pub holds: Grant,
    /// The task that it is kept for.
    pub kept_for: Option<String>,
}

/// The state of the queue.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct TaskQueues {
    /// Every engine that is registered.
    pub engines: Vec<EngineTasks>,
    /// How many tasks are on no engine.
    pub unassigned: u64,
    /// Their ids (only if asked for).
    pub unassigned_ids: Vec<String>,
}

/// Why a task is where it is.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Explanation {
    /// Its state.
    pub state: TaskState,
    /// A sentence or a few for a person.
    pub text: String,
    /// Engines it may not or cannot use, with the reason for each: `(uuid, reason)`.
    pub engines: Vec<(String, String)>,
}

/// Upper bounds of the classes in which run times are counted, in s; what is beyond the last has one more.
pub(crate) const WATCH_BUCKETS: [f64; 12] = [
    0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 10.0, 60.0, 600.0, 3600.0,
];

/// What those who watch are told of tasks. Times are seconds since the thread began.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Watched {
    /// When this was.
    pub now: f64,
    /// Tasks by state.
    pub totals: core::Totals,
    /// Tasks submitted since the controller started.
    pub submitted: u64,
    /// What engines have.
    pub engines: Vec<EngineWork>,
    /// What clients have submitted, oldest first.
    pub submissions: Vec<SubmissionSample>,
    /// Failures by what they said, most recent last.
    pub failures: Vec<FailureSample>,
    /// Work done since the last sample; of very much only some.
    pub slices: Vec<Slice>,
    /// Tasks by run time, in the classes of [`WATCH_BUCKETS`].
    pub durations: Vec<u64>,
    /// The sum of their run times.
    pub seconds: f64,
}

/// What an engine has.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct EngineWork {
    /// The engine.
    pub uuid: String,
    /// Tasks that it has not answered.
    pub outstanding: u64,
    /// Tasks that it has completed.
    pub completed: u64,
    /// The one that it has had longest.
    pub task: Option<String>,
    /// That one in a line.
    pub what: Option<String>,
    /// Of what kind that one is.
    pub task_kind: Option<String>,
    /// Since when it has worked on it.
    pub since: Option<f64>,
    /// It is to be given nothing more.
    pub leaving: bool,
}

/// A request to the task thread (scheduler or pure; what the pure one cannot know it answers as
/// unknown or zero).
pub(crate) enum Command {
    /// An engine's heart beats: it may be given work. Comes again, with a new profile, when an
    /// engine registers anew under its uuid.
    EngineJoined(Arc<EngineProfile>),
    /// An engine is gone.
    EngineLeft { uuid: String, departure: Departure },
    /// An engine is told to stop what it runs, and to leave.
    EngineDismissed { uuid: String },
    /// Answer when what was said so far is in the journal.
    Settled(Answer<()>),
    /// A client's lease ran out: its tasks that are not detached are to be aborted.
    ClientGone {
        session: String,
        /// What became of them; the hub tells the engines to stop the running ones.
        answer: Answer<Aborted>,
    },
    /// Sessions whose unfinished tasks go when they go: of an earlier controller, they have to say that they live.
    Attached(Answer<Vec<String>>),
    /// How many tasks are where.
    QueueStatus {
        verbose: bool,
        answer: Answer<TaskQueues>,
    },
    /// Where these tasks are, in the order asked.
    TaskStates {
        ids: Vec<String>,
        answer: Answer<Vec<TaskState>>,
    },
    /// Tasks by state.
    Totals(Answer<core::Totals>),
    /// How many tasks have been given to engines; those given again count again.
    Given(Answer<u64>),
    /// How many engines what is ready could use, and for how long ([`core::Core::demand`]).
    Demand {
        /// More need not be counted.
        limit: u64,
        /// If they stay as long as tasks ask: how long that may be.
        longest: Option<core::Nanos>,
        answer: Answer<Vec<core::Demand>>,
    },
    /// Ends tasks that wait, forbids retries of those that run, and tells which those are. The
    /// hub then tells the engines.
    Abort {
        selection: Selection,
        /// Whether the running ones are going to be stopped: their outcome is then `aborted`
        /// whatever their engine says.
        kill: bool,
        answer: Answer<Aborted>,
    },
    /// Why a task is where it is.
    Explain {
        id: String,
        answer: Answer<Explanation>,
    },
    /// What tasks of a client wait for that no engine has.
    Unschedulable {
        session: String,
        answer: Answer<Vec<Unschedulable>>,
    },
    /// Which engine has a task, or a member of an array.
    EngineOf {
        id: String,
        answer: Answer<Option<String>>,
    },
    /// What those who watch are told.
    Watch(Answer<Box<Watched>>),
    /// The statistics tables.
    Stats(Answer<Stats>),
    /// A submission by the controller itself (resubmit): signed frames from the signature on.
    /// Nobody awaits the reply; it goes to the store only.
    Inject {
        /// `<IDS|MSG>`, signature, header, parent_header, metadata, content, buffers.
        frames: Vec<Message>,
        /// The new id, once the task is accepted, or what is wrong with it.
        answer: Answer<Result<String, String>>,
    },
    /// Stop: send what can be sent, close the sockets, end the thread.
    Shutdown,
}
