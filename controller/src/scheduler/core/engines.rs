//! Engines that join, leave, come back, and give back.

use std::collections::{HashMap, HashSet};
use std::ops::Range;

use super::Core;
use super::abort::UNRUN;
use super::clients::Bucket;
use super::clock::{Timer, disarm};
use super::engine::Engine;
use super::group::{ABORTED, KILLED, Stage};
use super::id::{NONE, TaskId, split_member};
use super::types::{Action, EngineKey, EngineSpec, FailKind, GroupKey, Held, Nanos};

/// What is said of what was to be stopped on an engine that is gone.
const GONE: &str = "aborted; its engine is gone";

/// Something an engine holds: a group, its members, and since when.
#[derive(Clone, Copy, Debug)]
pub(super) struct Holding {
    pub since: Nanos,
    pub group: u32,
    /// For a chunk: its first and the one past its last; for a single task `None`.
    pub chunk: Option<(u32, u32)>,
}

impl Core {
    /// An engine registered, again if its uuid is known: it keeps what it was given, until [`Core::engine_holds`] says better.
    pub fn engine_joined(&mut self, now: Nanos, spec: &EngineSpec<'_>) -> EngineKey {
        self.now = now;
        let uuid = self.hasher.id(spec.uuid.as_bytes());
        self.departed.remove(&uuid);
        self.last_known.clear();
        let slot = match self.by_uuid.get(&uuid) {
            Some(&slot) => slot,
            None => self.new_engine(uuid, spec.uuid),
        };
        if self.engines[slot as usize].live {
            self.detach(slot);
            self.live.retain(|&s| s != slot);
        }
        let needs = spec
            .capabilities
            .iter()
            .filter_map(|c| self.capabilities.iter().position(|k| **k == **c));
        let needs = needs.fold(0, |mask, bit| mask | 1 << bit);
        let boxed = |names: &[String]| names.iter().map(|n| n.as_str().into()).collect();
        let engine = &mut self.engines[slot as usize];
        if engine.can_give_back != spec.can_give_back {
            let ahead = u64::from(engine.load.saturating_sub(1));
            self.given_ahead = if spec.can_give_back {
                self.given_ahead + ahead
            } else {
                self.given_ahead - ahead
            };
        }
        disarm(&mut self.timers, &mut engine.absent_at, Timer::Absent(slot));
        engine.live = true;
        engine.leaving = false;
        engine.stopping = false;
        engine.dismissed = false;
        engine.id = spec.id;
        engine.hosts = boxed(spec.hosts);
        engine.tags = boxed(spec.tags);
        engine.capabilities = boxed(spec.capabilities);
        engine.needs = needs;
        engine.can_give_back = spec.can_give_back;
        engine.hwm = self.config.hwm;
        engine.ends = spec
            .stays
            .map_or(Nanos::MAX, |stays| now.saturating_add(stays));
        engine.recalled = 0;
        engine.progress = now;
        let key = engine.key();
        self.unreserve_engine(slot);
        self.settle_on_host(slot, spec.host);
        self.note_most(slot);
        self.whole_joined(slot);
        self.close(slot);
        self.live.push(slot);
        let in_vain = self.attach(slot);
        for class in in_vain {
            if self.pools.classes.get(class as usize).is_some() && self.is_dead(class) {
                self.decide_class(class);
            }
        }
        self.refresh(slot);
        self.went_idle |= self.engines[slot as usize].load == 0;
        self.hungry.push_back(slot);
        self.settle();
        key
    }

    /// An engine answered what it holds (running, queued, or finished and to be sent again). The question was asked at
    /// `asked`: what was given to it by then and is not among these never reached it. It waits again, if it `may` (the engine
    /// keeps its replies until they are acknowledged, so that it is no reply that was lost; and it can be sent again); else it
    /// counts as lost.
    ///
    /// The question must go the same way as what is given, after it, and the answer the same way as the replies: a list
    /// made at any other moment says nothing of what is under way.
    pub fn engine_holds(
        &mut self,
        now: Nanos,
        engine: EngineKey,
        asked: Nanos,
        holds: &[Held<'_>],
        may: &dyn Fn(GroupKey) -> bool,
    ) {
        self.now = now;
        if !self.is_registered(engine) {
            return;
        }
        let slot = engine.slot;
        // A range may be as long as an array: it is compared, not listed.
        let mut held: HashMap<TaskId, Vec<(u32, u32)>> = HashMap::new();
        for one in holds {
            let id = self.hasher.id(one.msg_id.as_bytes());
            held.entry(id).or_default().push(one.range);
        }
        let keep = |id: TaskId, member: u32| {
            held.get(&id)
                .is_some_and(|ranges| ranges.iter().any(|(lo, hi)| (*lo..*hi).contains(&member)))
        };
        let text = format!(
            "the connection to {} broke while it had the task",
            self.engines[slot as usize].describe()
        );
        for holding in self.holdings(slot) {
            if holding.since > asked {
                continue;
            }
            self.release_holding(slot, holding, &keep, |core, index, range| {
                let group = core.groups[index].parent().unwrap_or(index);
                if may(core.groups.key(group)) {
                    core.take_back(index, range);
                } else {
                    core.lose(index, range, engine, &text);
                }
            });
        }
        self.refresh(slot);
        self.hungry.push_back(slot);
        self.settle();
    }

    /// When what the engine has had for the longest was given to it.
    pub fn oldest_given(&self, engine: EngineKey) -> Option<Nanos> {
        if !self.is_registered(engine) {
            return None;
        }
        self.holdings(engine.slot).first().map(|h| h.since)
    }

    /// So many of the engine's calls wait for other tasks, the deepest of them with the priority `floor`: as long as they do,
    /// they count for nothing, so that what they wait for finds room even if every engine's call waits. The engine gets only
    /// tasks of a higher priority, and is asked back for others that it was given ahead.
    ///
    /// What a call submits has a higher priority than itself. So the calls that wait on an engine, each begun while the one
    /// before waited, have ever higher priorities, and whatever the last of them waits for has a higher one still. If that is
    /// begun elsewhere, the last call there has a priority at least as high: a chain of calls that wait for each other climbs, and
    /// never closes to a circle.
    pub fn engine_waits(&mut self, now: Nanos, engine: EngineKey, waits: u32, floor: i32) {
        self.now = now;
        if !self.is_registered(engine) {
            return;
        }
        let slot = engine.slot;
        let entry = &mut self.engines[slot as usize];
        let deeper = waits > entry.waits;
        (entry.waits, entry.floor) = (waits, floor);
        let can_give_back = entry.can_give_back;
        self.waiting.retain(|&waiting| waiting != slot);
        if waits > 0 {
            self.waiting.push(slot);
        }
        if deeper && can_give_back {
            let items: Vec<_> = self
                .holdings(slot)
                .into_iter()
                .rev()
                .filter(|holding| self.groups[holding.group].priority <= floor)
                .map(|holding| {
                    let group = &self.groups[holding.group];
                    let (key, range) = match (holding.chunk, group.parent()) {
                        (Some((lo, hi)), _) => (holding.group, lo..hi),
                        (None, Some(parent)) => (parent, group.index()..group.index() + 1),
                        (None, None) => (holding.group, 0..1),
                    };
                    (self.groups.key(key), range)
                })
                .collect();
            if !items.is_empty() {
                self.actions.push_back(Action::Recall { engine, items });
            }
        }
        self.refresh(slot);
        self.hungry.push_back(slot);
        self.settle();
    }

    /// An engine is about to leave: it is given nothing more. What it holds it answers or gives back; then `engine_left`.
    pub fn engine_leaving(&mut self, now: Nanos, engine: EngineKey) {
        self.now = now;
        if self.is_registered(engine) {
            self.engines[engine.slot as usize].leaving = true;
            self.recount_hosts();
            self.unreserve_engine(engine.slot);
            self.refresh(engine.slot);
            self.settle();
        }
    }

    /// An engine stops what it runs and leaves by itself, or by somebody who is not asked (the batch system whose time is over):
    /// what it answers as failed is lost with it.
    pub fn engine_stopping(&mut self, now: Nanos, engine: EngineKey) {
        if self.is_registered(engine) {
            self.engines[engine.slot as usize].stopping = true;
            self.engine_leaving(now, engine);
        }
    }

    /// An engine is told to stop what it runs, and to leave: that is no failure of what it runs.
    pub fn engine_dismissed(&mut self, now: Nanos, engine: EngineKey) {
        if self.is_registered(engine) {
            self.engines[engine.slot as usize].dismissed = true;
            self.engine_leaving(now, engine);
        }
    }

    /// An engine is gone. `started`: ids of what it had started (`MSGID` or `MSGID:INDEX`); `None`: anything it
    /// held may have been. What was not started is queued again.
    pub fn engine_left(
        &mut self,
        now: Nanos,
        engine: EngineKey,
        started: Option<&[String]>,
        reason: &str,
    ) {
        self.now = now;
        let known = self
            .engines
            .get(engine.slot())
            .is_some_and(|e| e.used && e.generation == engine.generation);
        if known {
            self.remove_engine(engine.slot, started, reason);
            self.settle();
        }
    }

    pub(super) fn remove_engine(&mut self, slot: u32, started: Option<&[String]>, reason: &str) {
        let began: Option<HashSet<(TaskId, u32)>> = started.map(|ids| {
            let whole = ids.iter().map(|id| (self.hasher.id(id.as_bytes()), NONE));
            let members = ids.iter().filter_map(|id| split_member(id));
            whole
                .chain(members.map(|(base, i)| (self.hasher.id(base.as_bytes()), i)))
                .collect()
        });
        let engine = &mut self.engines[slot as usize];
        let what = engine.describe();
        engine.live = false;
        disarm(&mut self.timers, &mut engine.absent_at, Timer::Absent(slot));
        let (uuid, key) = (engine.uuid, engine.key());
        self.unreserve_engine(slot);
        let classes = self.detach(slot);
        self.recount_hosts();
        self.live.retain(|&s| s != slot);
        self.waiting.retain(|&s| s != slot);
        self.by_uuid.remove(&uuid);
        self.departed.insert(uuid);
        let text = if reason.is_empty() {
            format!("{what} left while it ran the task")
        } else {
            format!("{what} was lost while it ran the task: {reason}")
        };
        let not_started = |id: TaskId, member: u32| match &began {
            None => false,
            Some(began) => !began.contains(&(id, NONE)) && !began.contains(&(id, member)),
        };
        for holding in self.holdings(slot) {
            let had_begun = |id: TaskId, member: u32| !not_started(id, member);
            self.release_holding(slot, holding, &had_begun, Core::take_back);
        }
        for holding in self.holdings(slot) {
            self.release_holding(slot, holding, &|_, _| false, |core, index, range| {
                core.lose(index, range, key, &text);
            });
        }
        self.leave_host(slot);
        let engine = &mut self.engines[slot as usize];
        engine.used = false;
        let generation = engine.generation.wrapping_add(1);
        *engine = Engine {
            generation,
            ..Engine::new(slot)
        };
        self.free_slots.push(slot);
        self.decide_bereft(classes);
    }

    /// Decides anew on what waits in those of these classes that have no engine any more.
    pub(super) fn decide_bereft(&mut self, classes: Vec<u32>) {
        for class in classes {
            let gone = {
                let Some(entry) = self.pools.classes.get(class as usize) else {
                    continue;
                };
                let pool = &self.pools.pools[entry.pool as usize];
                let only =
                    pool.constraints.targets.is_some() || !pool.constraints.prefer.is_empty();
                pool.engines.is_empty() && only || self.is_refused(class)
            };
            if gone {
                self.decide_class(class);
            }
        }
    }

    /// Decides anew on everything that waits in a class that has lost its engines.
    fn decide_class(&mut self, class: u32) {
        let keys: Vec<GroupKey> = self
            .members_of_class(class)
            .iter()
            .map(|&g| self.groups.key(g))
            .collect();
        for key in keys {
            if self.groups.get(key).is_some() {
                self.drop_preference(key.index);
                self.decide(key.index);
            }
        }
    }

    /// The engine gives these back unstarted.
    pub fn given_back(
        &mut self,
        now: Nanos,
        engine: EngineKey,
        group: GroupKey,
        range: Range<u32>,
    ) {
        self.now = now;
        if !self.is_registered(engine) || self.groups.get(group).is_none() {
            return;
        }
        let (index, slot) = (group.index, engine.slot);
        let before = self.engines[slot as usize].load;
        if self.groups[index].array().is_none() {
            if range.contains(&0) && self.groups[index].engine == slot {
                self.free_single(index, Core::take_back);
            }
        } else {
            for (_, child) in self.groups[index].members().children_in(&range) {
                if self.groups[child].engine == slot {
                    self.free_single(child, Core::take_back);
                }
            }
            for (start, lo, hi, flight) in self.flights(index, range.start, range.end) {
                if flight.engine == slot {
                    self.land_chunk(index, start, lo, hi);
                    self.free_members(index, lo, hi, Core::take_back);
                }
            }
            self.drop_if_idle(index);
        }
        let engine = &mut self.engines[slot as usize];
        engine.recalled = engine
            .recalled
            .saturating_sub(before.saturating_sub(engine.load));
        self.refresh(slot);
        self.hungry.push_back(slot);
        self.settle();
    }

    /// What the engine holds, oldest first.
    pub(super) fn holdings(&self, slot: u32) -> Vec<Holding> {
        let engine = &self.engines[slot as usize];
        let mut found = Vec::new();
        let mut at = engine.head;
        while at != NONE {
            found.push(Holding {
                since: self.groups[at].since,
                group: at,
                chunk: None,
            });
            at = self.groups[at].next;
        }
        for &(group, lo) in &engine.chunks {
            let flight = &self.groups[group].members().flights[&lo];
            found.push(Holding {
                since: flight.since,
                group,
                chunk: Some((lo, flight.hi)),
            });
        }
        found.sort_by_key(|h| h.since);
        found
    }

    /// Takes a holding off its engine, but for the members to `keep`; those that have no outcome yet go to `then`.
    fn release_holding(
        &mut self,
        slot: u32,
        holding: Holding,
        keep: &dyn Fn(TaskId, u32) -> bool,
        mut then: impl FnMut(&mut Core, u32, Range<u32>),
    ) {
        let index = holding.group;
        let Some((lo, hi)) = holding.chunk else {
            let group = &self.groups[index];
            if group.engine == slot && !keep(group.id, group.index()) {
                self.free_single(index, then);
            }
            return;
        };
        let id = self.groups[index].id;
        let mut at = lo;
        while at < hi {
            let kept = keep(id, at);
            let mut end = at + 1;
            while end < hi && keep(id, end) == kept {
                end += 1;
            }
            if !kept {
                for (start, lo, hi, flight) in self.flights(index, at, end) {
                    if flight.engine == slot {
                        self.land_chunk(index, start, lo, hi);
                        self.free_members(index, lo, hi, &mut then);
                    }
                }
            }
            at = end;
        }
        self.drop_if_idle(index);
    }

    fn free_single(&mut self, index: u32, mut then: impl FnMut(&mut Core, u32, Range<u32>)) {
        let over = self.groups[index].stage == Stage::Over;
        self.land(index);
        if over {
            self.drop_over(index);
        } else {
            then(self, index, 0..1);
        }
    }

    fn free_members(
        &mut self,
        index: u32,
        lo: u32,
        hi: u32,
        mut then: impl FnMut(&mut Core, u32, Range<u32>),
    ) {
        for (lo, hi) in self.groups[index].members().done.gaps(lo, hi) {
            then(self, index, lo..hi);
        }
    }

    /// Members that an engine had not started wait again; no retry is used up.
    fn take_back(&mut self, index: u32, range: Range<u32>) {
        if self.groups[index].array().is_none() {
            if self.groups[index].is(ABORTED) {
                return self.fail_running(index, FailKind::TaskAborted, UNRUN, None);
            }
            return self.again(index, None);
        }
        let array = self.groups[index].members();
        let aborted = array.aborted.overlap(range.start, range.end);
        let others = array.aborted.gaps(range.start, range.end);
        for (lo, hi) in aborted {
            self.fail_members(index, lo..hi, FailKind::TaskAborted, UNRUN, None);
        }
        let client = self.groups[index].client;
        for (lo, hi) in others {
            let group = &mut self.groups[index];
            group.attempt += 1;
            group.members_mut().waiting.insert(lo, hi);
            let (retries, stage, class) = (group.retries, group.stage, group.class);
            self.actions.push_back(Action::Requeue {
                group: self.groups.key(index),
                range: lo..hi,
                retries,
            });
            let bucket = Bucket::of_waiting(stage);
            self.count(client, Some(Bucket::Running), bucket, hi - lo);
            match stage {
                Stage::Queued => self.fresh.push_back(class),
                Stage::Resting => {
                    self.arm_timeout(self.now, index);
                    self.decide(index);
                }
                Stage::Blocked | Stage::Free | Stage::Flying | Stage::Over => {}
            }
        }
    }

    /// Members that were running went with their engine: a failure each.
    pub(super) fn lose(&mut self, index: u32, range: Range<u32>, engine: EngineKey, text: &str) {
        let dismissed = self.engines[engine.slot()].dismissed;
        if self.groups[index].array().is_none() {
            let group = &mut self.groups[index];
            if group.is(KILLED) {
                return self.fail_running(index, FailKind::TaskAborted, GONE, Some(engine));
            }
            if group.is(ABORTED) || !group.is_retryable() {
                // Who asked for retries is told that they are at an end.
                let text = match group.attempt {
                    0 => text.to_owned(),
                    _ => format!("{text}; no retry is left"),
                };
                return self.fail_running(index, FailKind::EngineError, &text, Some(engine));
            }
            match group.crashes() {
                _ if dismissed => {}
                Some(crashes) => group.extra_mut().crashes = crashes - 1,
                None => group.retries -= 1,
            }
            self.narrow(index, None);
            return self.again(index, None);
        }
        let array = self.groups[index].members();
        let killed = array.killed.overlap(range.start, range.end);
        let mut rest = Vec::new();
        for (lo, hi) in array.killed.gaps(range.start, range.end) {
            rest.extend(array.aborted.overlap(lo, hi).into_iter().map(|r| (r, true)));
            rest.extend(array.aborted.gaps(lo, hi).into_iter().map(|r| (r, false)));
        }
        for (lo, hi) in killed {
            self.fail_members(index, lo..hi, FailKind::TaskAborted, GONE, Some(engine));
        }
        let (retries, crashes) = (self.groups[index].retries, self.groups[index].crashes());
        for ((lo, hi), aborted) in rest {
            if aborted || !self.groups[index].is_retryable() {
                self.fail_members(index, lo..hi, FailKind::EngineError, text, Some(engine));
                continue;
            }
            for member in lo..hi {
                let child = match crashes {
                    _ if dismissed => self.split_member(index, member, retries),
                    None => self.split_member(index, member, retries - 1),
                    Some(crashes) => {
                        let child = self.split_member(index, member, retries);
                        self.groups[child].extra_mut().crashes = crashes - 1;
                        child
                    }
                };
                self.narrow(child, None);
                self.again(child, None);
            }
        }
    }

    fn new_engine(&mut self, uuid: TaskId, name: &str) -> u32 {
        let slot = self.free_slots.pop().unwrap_or_else(|| {
            let slot = self.engines.len() as u32;
            self.engines.push(Engine::new(slot));
            slot
        });
        let engine = &mut self.engines[slot as usize];
        engine.used = true;
        engine.uuid = uuid;
        engine.name = name.into();
        self.by_uuid.insert(uuid, slot);
        slot
    }

    /// The engine of that uuid, awaited if it is not there.
    pub(super) fn absent_engine(&mut self, name: &str) -> u32 {
        let uuid = self.hasher.id(name.as_bytes());
        if let Some(&slot) = self.by_uuid.get(&uuid) {
            return slot;
        }
        let slot = self.new_engine(uuid, name);
        let at = self.now + self.config.restore_limit;
        self.engines[slot as usize].absent_at = at;
        self.timers.insert((at, Timer::Absent(slot)));
        if let Some(known) = self.last_known.get(&uuid) {
            let host = known.host.clone();
            self.await_on_host(slot, &host);
        }
        slot
    }
}
