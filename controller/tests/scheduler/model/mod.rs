//! A naive model of the scheduler: it keeps the plain facts, recomputes everything from them after each event,
//! and checks every action of the core against them.

use std::collections::{BTreeMap, BTreeSet, HashSet};

use ipbroker_controller::scheduler::core::*;

use crate::script::{Kind, Op, Script};

/// A violation, in words.
pub(crate) type Check = Result<(), String>;

macro_rules! ensure {
    ($cond:expr, $($text:tt)*) => {
        if !$cond {
            return Err(format!($($text)*));
        }
    };
}

mod checks;
mod events;
mod facts;
mod intake;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum At {
    Waiting,
    /// On the engine of that number.
    On(usize),
    /// With its outcome: well or not, and where.
    Done(bool, Option<usize>),
}

#[derive(Clone, Debug)]
struct Member {
    at: At,
    refused: BTreeSet<usize>,
    /// One of these did not have its inputs.
    lacks_input: bool,
    retries: u32,
    /// How often it may still lose its engine, if that is counted apart.
    crashes: Option<u32>,
    /// Before its next retry.
    delay: Nanos,
    aborted: bool,
    killed: bool,
    /// A host that it held is gone, and whether its engine was told to stop it.
    host_lost: Option<bool>,
    /// The core owes a failure of this kind.
    owed: Option<FailKind>,
    /// What is owed failed without having run.
    unstarted: bool,
    /// It waits on its own, apart from its array.
    apart: bool,
    since: Nanos,
    attempts: BTreeSet<(usize, u32)>,
}

impl Member {
    /// It may run again after losing its engine.
    fn is_retryable(&self) -> bool {
        self.crashes.unwrap_or(self.retries) > 0
    }
}

#[derive(Clone, Debug)]
struct Task {
    id: String,
    key: GroupKey,
    client: usize,
    priority: i32,
    needs: BTreeSet<&'static str>,
    targets: Vec<String>,
    hosts: Vec<String>,
    tags: Vec<String>,
    /// What it asks of its host: alternatives, in order of preference; none: one cpu.
    requests: Vec<Request>,
    /// How many whole hosts it holds; 0: none.
    nodes: usize,
    prefer: bool,
    after: Option<Dependency>,
    follow: Option<Dependency>,
    timeout: Nanos,
    /// How long it may run.
    time: Nanos,
    may_return: bool,
    invalid: bool,
    members: Vec<Member>,
    /// Ids it depends on that the store was asked for.
    asked: BTreeSet<String>,
    /// Since when its own entry has been waiting.
    since: Nanos,
    /// The event in which it first could run.
    runnable: Option<usize>,
    abort_at: BTreeMap<usize, Nanos>,
    released: bool,
}

#[derive(Clone, Debug)]
struct Node {
    uuid: String,
    key: EngineKey,
    alive: bool,
    /// It has said that it leaves.
    leaving: bool,
    /// It was told to stop what it runs: that is no failure of its tasks.
    dismissed: bool,
    caps: BTreeSet<&'static str>,
    host: String,
    tags: Vec<String>,
    /// When it has to go.
    ends: Nanos,
    /// Task, member; those with an outcome too, as long as it has not answered.
    holds: Vec<(usize, u32)>,
    /// What its task was granted.
    grant: Option<Grant>,
    /// Hosts that its task holds as wholes.
    whole: BTreeSet<String>,
    /// The event in which it was given something when it had nothing.
    begun: usize,
}

/// What the core says that it keeps on a host, and the event in which it first said so.
#[derive(Clone, Debug)]
struct Keeping {
    kept: Kept,
    event: usize,
    totals: Vec<u64>,
}

/// The core, the model, and what has been seen.
pub(crate) struct World {
    pub(crate) core: Core,
    pub(crate) now: Nanos,
    hwm: Hwm,
    tasks: Vec<Task>,
    nodes: Vec<Node>,
    /// Uuids that engines to come may have.
    joined: usize,
    asked: BTreeSet<String>,
    /// By host.
    kept: BTreeMap<String, Keeping>,
    pub(crate) keepings: u64,
    event: usize,
    lookups: bool,
    abort_limit: Nanos,
    pub(crate) events: u64,
    pub(crate) finals: u64,
}

enum DepState {
    Impossible,
    Pending,
    Met,
}

struct Place {
    state: DepState,
    /// Engines it is restricted to as far as known, and whether others may still come.
    known: Option<BTreeSet<usize>>,
    open: bool,
}

const CLIENTS: [&[u8]; 3] = [b"ann", b"bob", b"cyd"];
const CAPS: [&str; 3] = ["run", "array", "gpu"];
const MS: Nanos = MILLISECOND;

impl World {
    pub(crate) fn new(settings: [u16; 4]) -> Self {
        let hwm =
            [Hwm::Fixed(1), Hwm::Fixed(3), Hwm::Unlimited, Hwm::Auto][settings[0] as usize % 4];
        let lookups = settings[1].is_multiple_of(3);
        let scheme = Builtin::ALL[usize::from(settings[2]) % Builtin::ALL.len()];
        let config = Config {
            hwm,
            seed: u64::from(settings[3]),
            past: if lookups { 3 } else { 1 << 20 },
            lookups,
            abort_limit: 50 * MS,
            restore_limit: SECOND,
        };
        World {
            abort_limit: config.abort_limit,
            core: Core::new(config, Box::new(scheme)),
            now: 0,
            hwm,
            tasks: Vec::new(),
            nodes: Vec::new(),
            joined: 0,
            asked: BTreeSet::new(),
            kept: BTreeMap::new(),
            keepings: 0,
            event: 0,
            lookups,
            events: 0,
            finals: 0,
        }
    }

    /// Runs a script; the error says at which line what was wrong.
    pub(crate) fn run(script: &Script) -> Result<World, String> {
        let mut world = World::new(script.settings);
        for (line, op) in script.ops.iter().enumerate() {
            world.step(op).map_err(|e| {
                if std::env::var_os("IPBROKER_SCHEDULER_SCRIPT").is_some() {
                    world.tasks.iter().for_each(|t| eprintln!("{t:?}"));
                    world.nodes.iter().for_each(|n| eprintln!("{n:?}"));
                }
                format!("line {}: {op}: {e}", line + 2)
            })?;
        }
        world.drain().map_err(|e| {
            if std::env::var_os("IPBROKER_SCHEDULER_SCRIPT").is_some() {
                world.tasks.iter().for_each(|t| eprintln!("{t:?}"));
                world.nodes.iter().for_each(|n| eprintln!("{n:?}"));
            }
            format!("at the end: {e}")
        })?;
        Ok(world)
    }

    /// One event.
    pub(crate) fn step(&mut self, op: &Op) -> Check {
        self.event += 1;
        self.events += 1;
        match op.kind {
            Kind::Submit => self.submit(op.n),
            Kind::Reply => self.reply(op.n),
            Kind::GiveBack => self.give_back(op.n),
            Kind::Join => self.join(op.n),
            Kind::Leave => self.leave(op.n),
            Kind::Leaving => self.leaving(op.n),
            Kind::Dismiss => self.dismiss(op.n),
            Kind::Abort => self.abort(op.n),
            Kind::Tick => {
                self.now += Nanos::from(op.n[0] % 12) * MS;
                self.core.tick(self.now);
                Ok(())
            }
            Kind::Answer => self.answer(op.n),
        }?;
        self.after_event()
    }

    /// Everything that can end is brought to its end.
    fn drain(&mut self) -> Check {
        self.event += 1;
        for node in self.alive() {
            if self.nodes[node].leaving {
                self.lose(node, None)?;
                self.after_event()?;
                self.event += 1;
            }
        }
        let all: Vec<&'static str> = CAPS.to_vec();
        self.add_node("h0", &["t0".into(), "t1".into(), "t2".into()], &all, None)?;
        self.after_event()?;
        for round in 0..100_000 {
            self.event += 1;
            if let Some(id) = self.asked.iter().next().cloned() {
                self.answer_id(&id)?;
            } else if let Some(node) = self
                .nodes
                .iter()
                .position(|n| n.alive && !n.holds.is_empty())
            {
                let (task, member) = self.nodes[node].holds[0];
                self.reply_with(node, task, member, member + 1, Outcome::Ok, vec![])?;
            } else if let Some(at) = self.core.next_wakeup() {
                self.now = self.now.max(at);
                self.core.tick(self.now);
            } else {
                break;
            }
            self.after_event()?;
            ensure!(round < 99_999, "it never comes to an end");
        }
        let mut waiting = 0;
        for (t, task) in self.tasks.iter().enumerate() {
            for (m, member) in task.members.iter().enumerate() {
                if !matches!(member.at, At::Done(..)) {
                    waiting += 1;
                    let able = (0..self.nodes.len())
                        .find(|&n| self.may_run(t, m, n) && self.could(t, m, n));
                    ensure!(
                        able.is_none(),
                        "{}:{m} never ends, although e{able:?} may run it",
                        task.id
                    );
                }
            }
            let done = task.members.iter().all(|m| matches!(m.at, At::Done(..)));
            ensure!(
                done == task.released,
                "{} done {done}, released {}",
                task.id,
                task.released
            );
        }
        let totals = self.core.totals(None);
        ensure!(
            totals.ready + totals.blocked == waiting,
            "{waiting} wait, but it counts {totals:?}"
        );
        ensure!(
            totals.running == 0,
            "nothing runs, but it counts {totals:?}"
        );
        let bytes: u64 = self
            .tasks
            .iter()
            .filter(|t| !t.released)
            .map(|t| t.members.len() as u64 * 10)
            .sum();
        ensure!(
            totals.bytes == bytes,
            "{bytes} bytes wait, but it counts {totals:?}"
        );
        Ok(())
    }
}

fn resolve(dep: &Dependency, good: u32, bad: u32, pending: u32) -> DepState {
    if dep.ids.is_empty() {
        DepState::Met
    } else if dep.all {
        match (bad, pending) {
            (1.., _) => DepState::Impossible,
            (0, 1..) => DepState::Pending,
            (0, 0) => DepState::Met,
        }
    } else if good > 0 {
        DepState::Met
    } else if pending > 0 {
        DepState::Pending
    } else {
        DepState::Impossible
    }
}
