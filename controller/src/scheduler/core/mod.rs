//! The task scheduler as a deterministic state machine: no sockets, no clock, no randomness of its own.
//!
//! Events go in as method calls with the time as an argument (`submit`, `engine_joined`, `engine_leaving`, `engine_stopping`, `engine_dismissed`, `engine_waits`,
//! `engine_left`, `replied`, `given_back`, `abort`, `outcome_known`, `tick`); after each, [`Core::poll`] yields the [`Action`]s to carry out,
//! in order. Two cores with the same [`Config`] and the same events yield the same actions.
//!
//! # Invariants
//! They are checked after each event by `tests/scheduler/` against a model that recomputes everything.
//! 1. Every accepted member gets exactly one final outcome: a reply that `replied` says to deliver, or one `Fail`.
//! 2. A member never runs before its `after` is met, nor on an engine where its `follow` is not met.
//! 3. A member is never given again to an engine that reported an unmet dependency for it; nor, unless it
//!    `may_return`, to one on which it failed.
//! 4. No engine exceeds its high-water mark (what it brings along from before a restart apart, and by as many as it has
//!    calls that wait for other tasks), and one that has said that it leaves is given nothing.
//! 5. After an event nothing waits that an engine with room may take, if the engine's host has free what it asks for; the wait
//!    for a preferred engine, that before a retry, and what is kept for another (11), apart.
//! 6. What can never run fails at once, and nothing that could still run is failed. Engines may always join, so only
//!    these make a member impossible: outcomes of what it depends on; ids that are unknown, or its own; `targets`
//!    (or the engines it must follow to) of which each has left, refused it, or lacks by nature what it asks.
//!    The state of an engine that has registered does not change; an engine never seen may still come. It brings no
//!    inputs along: a task that lacked its own on an engine fails once no registered one is left that could take it.
//! 7. An aborted member is never given out again; answers that come late are not delivered.
//! 8. Turns: of the tasks an engine may take, it gets one of the client that was served least (in task time), of
//!    these the highest priority, of these the first to become runnable. What does not fit now is passed over.
//! 9. Of no resource of a host more is held than the host has when it is given out; none of its named units is held twice.
//!    An engine with a task that asks for resources has nothing else. What a task holds is released exactly once, with
//!    the load of its engine: when that has answered for it, has given it back, or is gone.
//! 10. Every task that asks for nothing counts as one cpu, once for its engine; N engines of a host have never fewer
//!     than N cpus between them, so that such tasks alone never wait for cpus.
//! 11. A task that waits for more than is free is not overtaken for ever: once later ones were given `hosts::ROUNDS` times
//!     the cpus of a host where it could run, an engine there is kept for its class, and no more is started beside than
//!     leaves room for it, until it runs, or none of its class waits. So it waits no longer than for what was
//!     running then.
//! 12. A task with alternatives holds exactly one of them, entirely: of those that an engine which may take it has free beside
//!     what is kept for others (11), the first. While none has, it waits for all of them; what is kept for it is the first that
//!     the host could ever have, and it runs there as soon as that has any of them free.
//! 13. A task that asks for whole hosts is started when as many are free at once: with an engine that may take it, nothing on
//!     any engine, and nothing kept there for others. It holds them, and nothing else runs there, until its engine has answered
//!     for it, has given it back, or is gone; then each comes free, once. It is not overtaken for ever either: in the sense of
//!     11, with the cpus of as many hosts, hosts are kept for one class of such tasks at a time, as they are or come free of what is kept
//!     for others, until it runs. If a host that it holds loses its last engine, the task is stopped, and counts as one
//!     whose engine was lost, unless it ended well before that.
//! 14. A task that failed and has retries is not given out before its delay has passed, which doubles with each failure; while it
//!     is delayed it counts as blocked, and its timeout does not run. The loss of an engine uses up a retry and is not
//!     delayed, unless these are counted on their own: then it uses up one of those. What fails on an engine
//!     that stops what it runs and leaves counts as lost with it. What fails on an engine, or is lost with it, after
//!     that was dismissed uses up neither: it is given out again if it had any left, at once.
//!
//! # Cost
//! An event costs the same whatever waits. A completion costs in proportion to its dependents, a departure in
//! proportion to what the engine held; queries over ids of all tasks, and aborts of all tasks of a client, look at
//! everything in memory. A waiting task costs about 115 bytes (measured by `tests/scheduler_cost.rs`), an array as much as one task.

mod abort;
mod auto;
mod clients;
mod clock;
mod demand;
mod engine;
mod engines;
mod explain;
mod graph;
mod group;
mod host;
mod hosts;
mod id;
mod lanes;
mod past;
mod place;
mod pools;
mod query;
mod ranges;
mod recall;
mod reply;
mod reserve;
mod scheme;
mod schemes;
mod submit;
mod types;
mod whole;

use std::collections::{BTreeSet, HashMap, HashSet, VecDeque};

use foldhash::fast::FixedState;
use rand::SeedableRng;
use rand::rngs::SmallRng;
use slab::Slab;

pub use scheme::{Builtin, Candidate, Index, Scheme, own_scheme, scheme};
pub use types::*;

use clients::{Bucket, Client};
use clock::Timer;
pub use demand::Demand;
use demand::Most;
use engine::Engine;
use graph::{Ended, Watchers};
use group::Groups;
use hosts::Hosts;
use id::{IdHasher, TaskId};
use lanes::Lane;
use past::Ids;
use pools::Pools;
use whole::Whole;

/// Settings of a [`Core`].
#[derive(Clone, Debug)]
pub struct Config {
    /// High-water mark of the engines.
    pub hwm: Hwm,
    /// Seed of the schemes' random generator, and key of the hash of ids.
    pub seed: u64,
    /// How many past outcomes are kept in memory for later dependencies.
    pub past: usize,
    /// There is a store: ids that are not in memory are looked up there (else they are unknown).
    pub lookups: bool,
    /// How long an engine may take to answer for a killed task before the core answers itself.
    pub abort_limit: Nanos,
    /// How long restored tasks wait for the engine that had them.
    pub restore_limit: Nanos,
}

impl Default for Config {
    fn default() -> Self {
        Config {
            hwm: Hwm::Auto,
            seed: 0,
            past: 1 << 18,
            lookups: false,
            abort_limit: 5 * SECOND,
            restore_limit: 30 * SECOND,
        }
    }
}

/// The state machine.
pub struct Core {
    config: Config,
    scheme: Box<dyn Scheme>,
    rng: SmallRng,
    hasher: IdHasher,
    /// Names of capabilities, by bit.
    capabilities: Vec<Box<str>>,

    groups: Groups,
    ids: Ids,
    /// Groups with an outcome of which engines still hold something.
    late: HashMap<TaskId, u32, FixedState>,
    /// Arrays to be dropped when the event is settled.
    spent: Vec<GroupKey>,

    engines: Vec<Engine>,
    free_slots: Vec<u32>,
    /// Slots of registered engines, in order of registration.
    live: Vec<u32>,
    by_uuid: HashMap<TaskId, u32, FixedState>,
    departed: HashSet<TaskId, FixedState>,
    /// Where engines were before a restart, and what their task had there.
    last_known: HashMap<TaskId, LastKnown, FixedState>,

    hosts: Hosts,
    whole: Whole,
    pools: Pools,
    lanes: Slab<Lane>,
    /// Engines of which a call waits.
    waiting: Vec<u32>,
    lane_index: HashMap<(u32, u32), u32, FixedState>,
    clients: Slab<Client>,
    client_index: HashMap<Box<[u8]>, u32, FixedState>,
    idle_clients: VecDeque<u32>,
    /// Where the client served last stood.
    virtual_time: u64,
    next_seq: u64,
    /// Groups in the queues of classes that ask for resources.
    asking: u64,
    /// Counts assignments.
    uses: u64,
    totals: Totals,

    watchers: HashMap<(TaskId, u32), Watchers, FixedState>,
    /// Ids the store was asked for.
    asked: HashSet<TaskId, FixedState>,
    timers: BTreeSet<(Nanos, Timer)>,
    most: Most,
    /// The time of the last event.
    now: Nanos,

    /// Outcomes to be told to dependents.
    ended: VecDeque<Ended>,
    /// Engines that may have got room.
    hungry: VecDeque<u32>,
    /// Hosts where something was released, to be looked at.
    changed: VecDeque<u32>,
    /// Classes in which something new waits.
    fresh: VecDeque<u32>,
    actions: VecDeque<Action>,

    /// Members behind another on engines that can give back.
    given_ahead: u64,
    went_idle: bool,
    recall_at: Option<Nanos>,
    last_recall: Nanos,
}

/// Where an engine was before a restart, and what its task had.
#[derive(Clone, Default)]
struct LastKnown {
    host: Box<str>,
    grant: Option<Grant>,
    /// Keys of the hosts that it held.
    nodes: Vec<Box<str>>,
}

/// Capabilities that can be told apart.
const CAPABILITIES_MOST: usize = 63;

impl Core {
    /// An empty core.
    pub fn new(config: Config, scheme: Box<dyn Scheme>) -> Self {
        Core {
            rng: SmallRng::seed_from_u64(config.seed),
            hasher: IdHasher::new(config.seed),
            ids: Ids::new(config.past),
            config,
            scheme,
            capabilities: Vec::new(),
            groups: Groups::default(),
            late: HashMap::default(),
            spent: Vec::new(),
            engines: Vec::new(),
            free_slots: Vec::new(),
            live: Vec::new(),
            by_uuid: HashMap::default(),
            departed: HashSet::default(),
            last_known: HashMap::default(),
            hosts: Hosts::default(),
            whole: Whole::default(),
            pools: Pools::default(),
            lanes: Slab::new(),
            waiting: Vec::new(),
            lane_index: HashMap::default(),
            clients: Slab::new(),
            client_index: HashMap::default(),
            idle_clients: VecDeque::new(),
            virtual_time: 0,
            next_seq: 0,
            asking: 0,
            uses: 0,
            totals: Totals::default(),
            watchers: HashMap::default(),
            asked: HashSet::default(),
            timers: BTreeSet::new(),
            most: Most::default(),
            now: 0,
            ended: VecDeque::new(),
            hungry: VecDeque::new(),
            changed: VecDeque::new(),
            fresh: VecDeque::new(),
            actions: VecDeque::new(),
            given_ahead: 0,
            went_idle: false,
            recall_at: None,
            last_recall: 0,
        }
    }

    /// The name of the scheme.
    pub fn scheme(&self) -> &str {
        self.scheme.name()
    }

    /// The set of these capabilities. There are as many as fit a word; those beyond are had by no engine.
    pub fn needs(&mut self, capabilities: &[&str]) -> Needs {
        let mut mask = 0;
        for name in capabilities {
            let bit = match self.capabilities.iter().position(|known| **known == **name) {
                Some(bit) => bit,
                None if self.capabilities.len() == CAPABILITIES_MOST => CAPABILITIES_MOST,
                None => {
                    self.capabilities.push((*name).into());
                    let bit = self.capabilities.len() - 1;
                    // No class asks for it yet, so nobody becomes eligible by this.
                    for engine in &mut self.engines {
                        if engine.capabilities.iter().any(|c| **c == **name) {
                            engine.needs |= 1 << bit;
                        }
                    }
                    bit
                }
            };
            mask |= 1 << bit;
        }
        Needs(mask)
    }

    /// The next action.
    pub fn poll(&mut self) -> Option<Action> {
        self.actions.pop_front()
    }

    /// Members of a new group are counted as ready.
    fn count_new(&mut self, client: u32, members: u32, bytes: u64) {
        self.count(client, None, Bucket::Ready, members);
        self.totals.bytes += bytes;
        self.clients[client as usize].totals.bytes += bytes;
    }
}
