//! What engines answer, and what becomes of it.

use std::ops::Range;

use super::Core;
use super::auto::UNKNOWN;
use super::clients::{Bucket, End};
use super::graph::Ended;
use super::group::{ABORTED, FIRST, HOST_LOST, KILLED, LACKS_INPUT, MAY_RETURN, Stage};
use super::id::NONE;
use super::past::{Members, Past, Places};
use super::place::from_units;
use super::types::{Action, Deliver, EngineKey, FailKind, GroupKey, Nanos, Outcome, Report};
use super::whole::HOST_LOST_TEXT;

/// What is lost with an engine that stops it and leaves says, if nobody aborted it.
const LEFT_TEXT: &str = "its engine left while it ran";

impl Core {
    /// An engine has answered. What this returns says what of the answer goes to the client.
    pub fn replied(
        &mut self,
        now: Nanos,
        engine: EngineKey,
        group: GroupKey,
        report: &Report<'_>,
    ) -> Deliver {
        self.now = now;
        let Some(entry) = self.groups.get(group) else {
            return Deliver::Nothing;
        };
        if !self.is_registered(engine) || report.range.is_empty() {
            return Deliver::Nothing;
        }
        let index = group.index;
        let deliver = if entry.array().is_some() {
            self.reply_array(engine.slot, index, report)
        } else if report.range.start == 0 && on_engine(entry.stage) && entry.engine == engine.slot {
            let outcome = report
                .exceptions
                .first()
                .filter(|(i, _)| *i == 0)
                .map_or(report.outcome, |(_, o)| *o);
            if self.end_single(index, outcome, report.run) {
                Deliver::All
            } else {
                Deliver::Nothing
            }
        } else {
            Deliver::Nothing
        };
        self.refresh(engine.slot);
        self.hungry.push_back(engine.slot);
        self.settle();
        deliver
    }

    /// The engine whose unmet dependency for the single task is about to be reported did not have its inputs.
    pub fn lacks_input(&mut self, group: GroupKey) {
        if self.groups.get(group).is_some() {
            self.groups[group.index].set(LACKS_INPUT, true);
        }
    }

    pub(super) fn is_registered(&self, engine: EngineKey) -> bool {
        self.engines
            .get(engine.slot())
            .is_some_and(|e| e.live && e.generation == engine.generation)
    }

    fn reply_array(&mut self, slot: u32, index: u32, report: &Report<'_>) -> Deliver {
        let Report {
            range,
            outcome: default,
            exceptions,
            run,
        } = report.clone();
        let each = run / u64::from(range.end - range.start);
        let mut delivered: Vec<Range<u32>> = Vec::new();
        for (member, child) in self.groups[index].members().children_in(&range) {
            let entry = &self.groups[child];
            if on_engine(entry.stage) && entry.engine == slot {
                let exception = exceptions.iter().find(|(i, _)| *i == member);
                if self.end_single(child, exception.map_or(default, |(_, o)| *o), each) {
                    delivered.push(member..member + 1);
                }
            }
        }
        for (start, lo, hi, flight) in self.flights(index, range.start, range.end) {
            if flight.engine != slot {
                continue;
            }
            let (class, client) = (self.groups[index].class, self.groups[index].client);
            let needs = self.constraints(class).needs;
            let members = hi - lo;
            self.land_chunk(index, start, lo, hi);
            let took = each * u64::from(members);
            self.learn(client, needs, members, took, from_units(flight.est));
            let first = (flight.first && lo == start).then_some(flight.since);
            self.ran(slot, members, took, first);
            let array = self.groups[index].members_mut();
            array.estimate.learn(took, members);
            for (lo, hi) in array.done.gaps(lo, hi) {
                let mut at = lo;
                for &(member, outcome) in exceptions.iter().filter(|(i, _)| (lo..hi).contains(i)) {
                    self.end_members(index, slot, at..member, default, &mut delivered);
                    self.end_members(index, slot, member..member + 1, outcome, &mut delivered);
                    at = member + 1;
                }
                self.end_members(index, slot, at..hi, default, &mut delivered);
            }
        }
        self.drop_if_idle(index);
        gather(delivered, range)
    }

    /// Statistics of an answer. `since`: when it was sent, if the engine had nothing else then.
    fn ran(&mut self, slot: u32, members: u32, run: Nanos, since: Option<Nanos>) {
        let engine = &mut self.engines[slot as usize];
        engine.progress = self.now;
        engine.completed += u64::from(members);
        engine.run_time += run;
        if let Some(since) = since {
            engine.learn_overhead(self.now.saturating_sub(since).saturating_sub(run));
        }
    }

    /// A single task was answered by its engine. True if that goes to the client.
    fn end_single(&mut self, index: u32, outcome: Outcome, run: Nanos) -> bool {
        let group = &self.groups[index];
        let (slot, client, est) = (group.engine, group.client, group.est);
        let since = group.is(FIRST).then_some(group.since);
        let needs = self.constraints(group.class).needs;
        let over = group.stage == Stage::Over;
        self.land(index);
        self.ran(slot, 1, run, since);
        if over {
            self.drop_over(index);
            return false;
        }
        if matches!(outcome, Outcome::Ok | Outcome::Error) {
            let estimate = if est == 0 { UNKNOWN } else { from_units(est) };
            self.learn(client, needs, 1, run, estimate);
        }
        let (aborted, killed) = (
            self.groups[index].is(ABORTED),
            self.groups[index].is(KILLED),
        );
        let engine = self.engines[slot as usize].key();
        if outcome != Outcome::Ok && self.groups[index].is(HOST_LOST) {
            self.groups[index].set(HOST_LOST, false);
            self.lose(index, 0..1, engine, HOST_LOST_TEXT);
            return false;
        }
        match outcome {
            Outcome::Ok => self.end_for_good(index, End::Ok, engine),
            Outcome::Aborted => self.end_for_good(index, End::Aborted, engine),
            Outcome::Error if killed => {
                self.fail_running(
                    index,
                    FailKind::TaskAborted,
                    "aborted while it ran",
                    Some(engine),
                );
                return false;
            }
            Outcome::Error if !aborted && self.was_stopped(index, slot) => {
                self.narrow(index, None);
                self.again(index, None);
                return false;
            }
            Outcome::Error if !aborted && self.was_left(index, slot) => {
                self.lose(index, 0..1, engine, LEFT_TEXT);
                return false;
            }
            Outcome::Error if aborted || self.groups[index].retries == 0 => {
                self.end_for_good(index, End::Failed, engine);
            }
            Outcome::Error => {
                let may_return = self.groups[index].is(MAY_RETURN);
                self.groups[index].retries -= 1;
                self.narrow(index, (!may_return).then_some(engine));
                if self.is_hopeless(index) {
                    // The error itself says more than that nothing is left to try.
                    self.end_for_good(index, End::Failed, engine);
                } else {
                    self.try_again(index, may_return.then_some(engine));
                    return false;
                }
            }
            Outcome::Unmet if aborted => {
                self.fail_running(index, FailKind::TaskAborted, "aborted", None);
                return false;
            }
            Outcome::Unmet => {
                self.narrow(index, Some(engine));
                self.again(index, None);
                return false;
            }
        }
        true
    }

    /// Members of an array were answered by the engine they were on.
    fn end_members(
        &mut self,
        index: u32,
        slot: u32,
        range: Range<u32>,
        outcome: Outcome,
        delivered: &mut Vec<Range<u32>>,
    ) {
        let (lo, hi) = (range.start, range.end);
        if lo >= hi {
            return;
        }
        let engine = self.engines[slot as usize].key();
        let client = self.groups[index].client;
        let array = self.groups[index].members_mut();
        if outcome != Outcome::Ok && array.host_lost.contains(lo) {
            array.host_lost.remove(lo, hi);
            return self.lose(index, range, engine, HOST_LOST_TEXT);
        }
        if outcome == Outcome::Error && self.was_left(index, slot) {
            return self.lose(index, range, engine, LEFT_TEXT);
        }
        let end = match outcome {
            Outcome::Ok => Some(End::Ok),
            Outcome::Aborted => Some(End::Aborted),
            Outcome::Error
                if self.groups[index].retries == 0
                    && !self.any_aborted(index)
                    && !self.was_stopped(index, slot) =>
            {
                Some(End::Failed)
            }
            Outcome::Error | Outcome::Unmet => None,
        };
        if let Some(end) = end {
            self.count_end(client, Bucket::Running, end, hi - lo);
            self.members_over(index, lo, hi, end == End::Ok, Some(engine));
            delivered.push(range);
            return;
        }
        for member in range {
            let array = self.groups[index].members();
            let (aborted, killed) = (
                array.aborted.contains(member),
                array.killed.contains(member),
            );
            let mut retries = self.groups[index].retries;
            let may_return = self.groups[index].is(MAY_RETURN);
            if killed || (aborted && outcome == Outcome::Unmet) {
                let place = (outcome != Outcome::Unmet).then_some(engine);
                let (kind, text) = (FailKind::TaskAborted, "aborted while it ran");
                self.fail_members(index, member..member + 1, kind, text, place);
                continue;
            }
            if outcome == Outcome::Error && !aborted && self.was_stopped(index, slot) {
                let child = self.split_member(index, member, retries);
                self.groups[child].stage = Stage::Resting;
                self.narrow(child, None);
                self.again(child, None);
                continue;
            }
            if outcome == Outcome::Error {
                if aborted || retries == 0 {
                    self.count_end(client, Bucket::Running, End::Failed, 1);
                    self.members_over(index, member, member + 1, false, Some(engine));
                    delivered.push(member..member + 1);
                    continue;
                }
                retries -= 1;
            }
            let child = self.split_member(index, member, retries);
            self.groups[child].stage = Stage::Resting;
            let refuse = outcome == Outcome::Unmet || !may_return;
            self.narrow(child, refuse.then_some(engine));
            if outcome == Outcome::Error && self.is_hopeless(child) {
                delivered.push(member..member + 1);
                self.end_for_good(child, End::Failed, engine);
            } else if outcome == Outcome::Error {
                self.try_again(child, (!refuse).then_some(engine));
            } else {
                self.again(child, None);
            }
        }
    }

    /// Whether what failed on this engine was stopped because the engine was to end, and may run again.
    fn was_stopped(&self, index: u32, slot: u32) -> bool {
        self.engines[slot as usize].dismissed && self.groups[index].is_retryable()
    }

    /// Whether what failed on this engine was stopped because the engine leaves, and may run again as if lost with it.
    fn was_left(&self, index: u32, slot: u32) -> bool {
        self.engines[slot as usize].stopping && self.groups[index].is_retryable()
    }

    fn any_aborted(&self, index: u32) -> bool {
        self.groups[index]
            .array()
            .is_some_and(|a| !a.aborted.is_empty())
    }

    /// The classes of a group follow its retries and an engine that refused it.
    pub(super) fn narrow(&mut self, index: u32, refused: Option<EngineKey>) {
        let retryable = self.groups[index].is_retryable();
        let narrowed = |core: &mut Core, class: u32| {
            let class = core.with_constraints(class, |c| c.retryable = retryable);
            core.hold_class(class);
            let result = refused.map_or(class, |engine| core.with_refused(class, engine));
            core.hold_class(result);
            core.release_class(class);
            result
        };
        let class = self.groups[index].class;
        let new = narrowed(self, class);
        self.groups[index].class = new;
        self.release_class(class);
        let base = self.groups[index].extra.as_ref().map_or(NONE, |e| e.base);
        if base != NONE {
            let new = narrowed(self, base);
            self.groups[index].extra_mut().base = new;
            self.release_class(base);
        }
    }

    /// A single task that failed waits again, after its delay if it has one.
    fn try_again(&mut self, index: u32, besides: Option<EngineKey>) {
        self.delay_retry(index);
        self.again(index, besides);
    }

    /// A single task that is on no engine any more waits again; `besides`: rather not there.
    pub(super) fn again(&mut self, index: u32, besides: Option<EngineKey>) {
        let group = &mut self.groups[index];
        group.stage = Stage::Resting;
        group.attempt += 1;
        group.since = self.now;
        let (client, retries) = (group.client, group.retries);
        let (group, member) = match self.groups[index].parent() {
            Some(parent) => (parent, self.groups[index].index()),
            None => (index, 0),
        };
        let group = self.groups.key(group);
        self.actions.push_back(Action::Requeue {
            group,
            range: member..member + 1,
            retries,
        });
        self.count(client, Some(Bucket::Running), Bucket::Ready, 1);
        let class = self.groups[index].class;
        // Where something waits for what this one has just released, it waits for its turn as well.
        if besides.is_some()
            && !self.is_delayed(index)
            && self.asking == 0
            && !self.pools.classes[class as usize].asks
            && let Some(slot) = self.choose(class, besides)
        {
            return self.dispatch(index, slot);
        }
        self.arm_timeout(self.now, index);
        self.decide(index);
    }

    /// An engine's answer is the final outcome of a single task.
    fn end_for_good(&mut self, index: u32, end: End, engine: EngineKey) {
        self.count_end(self.groups[index].client, Bucket::Running, end, 1);
        self.conclude(index, end == End::Ok, Some(engine));
    }

    /// The core answers for a single task that was running (and may be still).
    pub(super) fn fail_running(
        &mut self,
        index: u32,
        kind: FailKind,
        text: &str,
        engine: Option<EngineKey>,
    ) {
        self.say_failed(index, 0, 1, kind, text, engine);
        self.count_end(self.groups[index].client, Bucket::Running, end_of(kind), 1);
        self.conclude(index, false, engine);
    }

    /// The core answers for members of an array that were running (and may be still).
    pub(super) fn fail_members(
        &mut self,
        index: u32,
        range: Range<u32>,
        kind: FailKind,
        text: &str,
        engine: Option<EngineKey>,
    ) {
        let (lo, hi) = (range.start, range.end);
        self.say_failed(index, lo, hi, kind, text, engine);
        self.count_end(
            self.groups[index].client,
            Bucket::Running,
            end_of(kind),
            hi - lo,
        );
        self.members_over(index, lo, hi, false, engine);
    }

    /// The core answers for everything of a group that waits.
    pub(super) fn fail_waiting(&mut self, index: u32, kind: FailKind, text: &str) {
        let bucket = Bucket::of_waiting(self.groups[index].stage);
        self.unlink(index);
        self.stop_waiting(index);
        let client = self.groups[index].client;
        let Some(array) = self.groups[index].array_mut() else {
            self.say_failed(index, 0, 1, kind, text, None);
            self.count_end(client, bucket, end_of(kind), 1);
            return self.conclude(index, false, None);
        };
        let waiting = std::mem::take(&mut array.waiting);
        for (lo, hi) in waiting.iter() {
            self.say_failed(index, lo, hi, kind, text, None);
            self.count_end(client, bucket, end_of(kind), hi - lo);
            self.members_over(index, lo, hi, false, None);
        }
    }

    pub(super) fn say_failed(
        &mut self,
        index: u32,
        lo: u32,
        hi: u32,
        kind: FailKind,
        text: &str,
        engine: Option<EngineKey>,
    ) {
        let (group, range) = match self.groups[index].parent() {
            Some(parent) => (
                parent,
                self.groups[index].index()..self.groups[index].index() + 1,
            ),
            None => (index, lo..hi),
        };
        let group = self.groups.key(group);
        self.actions.push_back(Action::Fail {
            group,
            range,
            kind,
            text: text.into(),
            engine,
        });
    }

    /// A single task, in no queue, has its final outcome.
    pub(super) fn conclude(&mut self, index: u32, ok: bool, engine: Option<EngineKey>) {
        let flying = self.groups[index].engine != NONE;
        let Some(parent) = self.groups[index].parent() else {
            return self.finish(index, ok, engine.map_or(Places::None, Places::One));
        };
        let member = self.groups[index].index();
        if flying {
            self.groups[index].stage = Stage::Over;
            self.stop_waiting(index);
        } else {
            self.drop_member(parent, index);
        }
        self.members_over(parent, member, member + 1, ok, engine);
    }

    /// Members of an array have their final outcome.
    pub(super) fn members_over(
        &mut self,
        index: u32,
        lo: u32,
        hi: u32,
        ok: bool,
        engine: Option<EngineKey>,
    ) {
        let group = &mut self.groups[index];
        let (id, count) = (group.id, group.count);
        let array = group.members_mut();
        array.done.insert(lo, hi);
        if !ok {
            if array.failed.is_empty() && array.done.len() < count {
                self.ended.push_back(Ended {
                    id,
                    member: NONE,
                    ok: false,
                    places: Places::None,
                    doomed: true,
                });
            }
            array.failed.insert(lo, hi);
        }
        if let Some(engine) = engine {
            let merged = match array.places.range_mut(..=lo).next_back() {
                Some((_, (end, at))) if *end == lo && *at == engine => {
                    *end = hi;
                    true
                }
                _ => false,
            };
            if !merged {
                array.places.insert(lo, (hi, engine));
            }
        }
        if !array.watched.is_empty() {
            let watched: Vec<u32> = array.watched.range(lo..hi).copied().collect();
            for member in watched {
                array.watched.remove(&member);
                let places = engine.map_or(Places::None, Places::One);
                self.ended.push_back(Ended {
                    id,
                    member,
                    ok,
                    places,
                    doomed: false,
                });
            }
        }
        let array = self.groups[index].members();
        if array.done.len() == count {
            let ok = array.failed.is_empty();
            let places = Places::of(array.places.values().map(|(_, engine)| *engine).collect());
            self.finish(index, ok, places);
        }
    }

    /// A group has its final outcome.
    fn finish(&mut self, index: u32, ok: bool, places: Places) {
        let key = self.groups.key(index);
        let group = &self.groups[index];
        let (id, client, bytes) = (group.id, group.client, group.bytes);
        let members = group
            .array()
            .and_then(|array| Members::of(array, group.count));
        self.totals.bytes -= bytes;
        self.clients[client as usize].totals.bytes -= bytes;
        self.actions.push_back(Action::Release { group: key });
        self.ended.push_back(Ended {
            id,
            member: NONE,
            ok,
            places: places.clone(),
            doomed: false,
        });
        let past = Past {
            id,
            ok,
            places,
            members,
        };
        self.ids.conclude(index, past, &self.groups);
        self.stop_waiting(index);
        self.stop_abort_timer(index);
        self.groups[index].stage = Stage::Over;
        if self.groups[index].array().is_some() {
            // Whoever walks over it still needs it: it is dropped when the event is settled.
            self.late.insert(id, index);
            self.drop_if_idle(index);
        } else if self.groups[index].engine != NONE {
            self.late.insert(id, index);
        } else {
            self.drop_group(index);
        }
    }

    /// A member that had a group of its own needs it no longer.
    fn drop_member(&mut self, parent: u32, index: u32) {
        let member = self.groups[index].index();
        self.groups[parent].members_mut().children.remove(&member);
        self.drop_group(index);
    }

    /// The engine of a task that has its outcome already has answered, or is gone.
    pub(super) fn drop_over(&mut self, index: u32) {
        match self.groups[index].parent() {
            Some(parent) => {
                self.drop_member(parent, index);
                self.drop_if_idle(parent);
            }
            None => {
                self.late.remove(&self.groups[index].id);
                self.drop_group(index);
            }
        }
    }

    /// Drops an array that has its outcome and is on no engine any more.
    pub(super) fn drop_if_idle(&mut self, index: u32) {
        let group = &self.groups[index];
        if group.stage == Stage::Over
            && group
                .array()
                .is_some_and(|a| a.flights.is_empty() && a.children.is_empty())
        {
            self.spent.push(self.groups.key(index));
        }
    }
}

fn on_engine(stage: Stage) -> bool {
    matches!(stage, Stage::Flying | Stage::Over)
}

fn end_of(kind: FailKind) -> End {
    if kind == FailKind::TaskAborted {
        End::Aborted
    } else {
        End::Failed
    }
}

/// Sorted, merged, and compared with what was asked.
fn gather(mut parts: Vec<Range<u32>>, whole: Range<u32>) -> Deliver {
    parts.sort_unstable_by_key(|r| r.start);
    let mut merged: Vec<Range<u32>> = Vec::with_capacity(parts.len());
    for part in parts {
        match merged.last_mut() {
            Some(last) if last.end == part.start => last.end = part.end,
            _ => merged.push(part),
        }
    }
    match merged.as_slice() {
        [] => Deliver::Nothing,
        [one] if *one == whole => Deliver::All,
        _ => Deliver::Some(merged),
    }
}
