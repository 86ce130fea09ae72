//! Giving tasks to engines.

use std::sync::Arc;

use super::Core;
use super::auto::UNKNOWN;
use super::clients::Bucket;
use super::engine::Engine;
use super::graph::Ended;
use super::group::{Array, EST_UNIT, FIRST, Flight, HOST_LOST, Stage};
use super::id::NONE;
use super::lanes::{CLASSES_SEEN, Pick};
use super::types::{Action, Grant, Nanos};

impl Core {
    /// Follows up an event: outcomes reach those that depend on them, then whatever can be placed is placed.
    pub(super) fn settle(&mut self) {
        self.keep_hosts();
        // The engine for which nothing was found just now.
        let mut barren: Option<u32> = None;
        loop {
            while let Some(ended) = self.ended.pop_front() {
                let ended: Ended = ended;
                self.tell(&ended);
                barren = None;
            }
            if let Some(slot) = self.hungry.pop_front() {
                if barren.is_some_and(|other| self.are_alike(other, slot)) {
                    continue;
                }
                let mut fed = false;
                while let Some(pick) = self.pick(slot) {
                    self.dispatch_pick(slot, pick);
                    fed = true;
                }
                barren = if fed { None } else { Some(slot) };
                continue;
            }
            barren = None;
            if let Some(host) = self.changed.pop_front() {
                self.look_at_host(host);
                continue;
            }
            let Some(class) = self.fresh.pop_front() else {
                break;
            };
            while self
                .pools
                .classes
                .get(class as usize)
                .is_some_and(|c| c.queue.len > 0)
            {
                let Some(slot) = self.choose(class, None) else {
                    break;
                };
                // Another class may have somebody before this one's turn.
                match self.pick(slot) {
                    Some(pick) => self.dispatch_pick(slot, pick),
                    // It is kept for something now: another one.
                    None if self.engines[slot as usize].kept_for != NONE => {}
                    None => break,
                }
            }
        }
        while let Some(key) = self.spent.pop() {
            let unused = |a: &Array| a.flights.is_empty() && a.children.is_empty();
            if let Some(group) = self.groups.get(key)
                && group.stage == Stage::Over
                && group.array().is_some_and(unused)
            {
                self.late.remove(&group.id);
                self.drop_group(key.index);
            }
        }
        if self.went_idle {
            self.went_idle = false;
            self.plan_recall();
        }
    }

    /// What there is for one idle engine there is for the other.
    fn are_alike(&self, a: u32, b: u32) -> bool {
        let (a, b) = (&self.engines[a as usize], &self.engines[b as usize]);
        let idle = |engine: &Engine| engine.idle() && engine.waits == 0;
        a.host == b.host && idle(a) && idle(b) && a.classes == b.classes
    }

    /// Dispatches what is next for an engine with room, to the engine that the scheme prefers for it. If that is
    /// another one, what is next for that one goes there.
    fn dispatch_pick(&mut self, mut slot: u32, mut pick: Pick) {
        // What is next elsewhere comes earlier in turn each time, so that this ends; beyond so many classes turns are rough.
        for _ in 0..CLASSES_SEEN {
            if self.engines[slot as usize].kept_for != NONE {
                break;
            }
            let Some(target) = self.choose(pick.class, None).filter(|&t| t != slot) else {
                break;
            };
            if self.are_alike(slot, target) {
                slot = target;
                break;
            }
            let next = self.pick(target);
            if next.is_none() && self.engines[target as usize].kept_for != NONE {
                // It is kept for something now: the caller looks again.
                return;
            }
            let same = next.is_none_or(|next| next.group == pick.group);
            (slot, pick) = (target, next.unwrap_or(pick));
            if same {
                break;
            }
        }
        self.dispatch(pick.group, slot);
        if pick.overtakes != NONE {
            let cpus = self.cpus_of(slot);
            self.pools.classes[pick.overtakes as usize].overtaken += cpus;
        }
    }

    /// A group enters the queue of its class.
    pub(super) fn make_ready(&mut self, index: u32) {
        self.enqueue(index);
        let class = self.groups[index].class;
        if self.fresh.back() != Some(&class) {
            self.fresh.push_back(class);
        }
        let priority = self.groups[index].priority;
        let engines = &self.engines;
        let takes = |slot: &u32| engines[*slot as usize].floor < priority;
        self.hungry
            .extend(self.waiting.iter().copied().filter(takes));
    }

    /// A task without conditions, right after an event was settled: nobody waits for an engine that has room.
    pub(super) fn place_new(&mut self, index: u32) {
        let class = self.groups[index].class;
        let entry = &self.pools.classes[class as usize];
        if entry.asks || self.asking > 0 || !self.waiting.is_empty() {
            self.make_ready(index);
        } else if entry.queue.len == 0
            && let Some(slot) = self.choose(class, None)
        {
            self.activate(self.groups[index].client);
            self.next_seq += 1;
            self.groups[index].seq = self.next_seq;
            self.dispatch(index, slot);
        } else {
            self.enqueue(index);
        }
    }

    /// Gives the group, or a chunk of it, to an engine that has room.
    pub(super) fn dispatch(&mut self, index: u32, slot: u32) {
        if self.groups[index].array().is_some() {
            return self.dispatch_chunk(index, slot);
        }
        // What is granted is counted by atomic operations; behind writes to the next group in the lane, which is rarely in the
        // cache, each of them would wait for those.
        let class = self.groups[index].class;
        let (grant, alternative) = self.grant(slot, class);
        let nodes = self.take_hosts(slot, class);
        self.unlink(index);
        if self.groups[index].extra.is_some() {
            self.stop_waiting(index);
        }
        let needs = self.constraints(class).needs;
        let client = self.groups[index].client;
        let estimate = match self.groups[index].parent() {
            Some(parent) => self.groups[parent].array().and_then(|a| a.estimate.get()),
            None => None,
        };
        let estimate = estimate.or_else(|| self.estimate(client, needs));
        let est = to_units(estimate);
        let first = self.add_load(
            slot,
            1,
            from_units(est) as i64,
            self.groups[index].bytes as i64,
        );
        self.link_flying(index, slot);
        let group = &mut self.groups[index];
        group.since = self.now;
        group.est = est;
        group.set(FIRST, first);
        group.set(HOST_LOST, false);
        let attempt = group.attempt;
        let (key, member) = match group.parent() {
            Some(parent) => (parent, self.groups[index].index()),
            None => (index, 0),
        };
        self.charge(client, 1, estimate);
        self.count(client, Some(Bucket::Ready), Bucket::Running, 1);
        self.sent(slot, first);
        self.actions.push_back(Action::Dispatch {
            group: self.groups.key(key),
            range: member..member + 1,
            engine: self.engines[slot as usize].key(),
            attempt,
            grant,
            alternative,
            nodes,
        });
    }

    /// What a task of the class that is given to the engine now has of its host, and which alternative that is. Nothing is
    /// kept for the class any more.
    fn grant(&mut self, slot: u32, class: u32) -> (Option<Arc<Grant>>, Option<u32>) {
        let entry = &self.pools.classes[class as usize];
        if entry.kept_on != NONE || entry.overtaken > 0 {
            self.unreserve(class);
        }
        let entry = &self.pools.classes[class as usize];
        if !entry.asks || entry.nodes > 0 {
            return (None, None);
        }
        let (grant, nth) = self.take_resources(slot, class);
        let alternative = self.has_alternatives(class).then_some(nth);
        (Some(grant), alternative)
    }

    fn dispatch_chunk(&mut self, index: u32, slot: u32) {
        let group = &self.groups[index];
        let (client, class, count, bytes) = (group.client, group.class, group.count, group.bytes);
        let array = group.members();
        // Even shares are for the end: before it, other tasks of the client wait for whoever is idle.
        let ready = self.clients[client as usize].totals.ready;
        let left = array.waiting.len().max(ready.min(u64::from(NONE)) as u32);
        // The first chunks of an array tell how long its members take, whatever its client ran before: until then an engine
        // has one of them.
        let estimate = array.estimate.get();
        let engines = self.pool_engines(class).len();
        let most = match self.pools.classes[class as usize].asks {
            // Each member asks for itself.
            true => 1,
            false => self.engines[slot as usize].chunk(left, engines, estimate),
        };
        let array = self.groups[index].members_mut();
        let Some((lo, hi)) = array.waiting.take_first(most) else {
            return;
        };
        let empty = array.waiting.is_empty();
        let (grant, alternative) = self.grant(slot, class);
        let nodes = self.take_hosts(slot, class);
        let est = to_units(estimate);
        let members = hi - lo;
        let share = bytes / u64::from(count) * u64::from(members);
        let first = self.add_load(
            slot,
            i64::from(members),
            (from_units(est) * u64::from(members)) as i64,
            share as i64,
        );
        let flight = Flight {
            hi,
            engine: slot,
            since: self.now,
            est,
            first,
        };
        let group = &mut self.groups[index];
        let attempt = group.attempt;
        let array = group.members_mut();
        array.flights.insert(lo, flight);
        array.host_lost.remove(lo, hi);
        self.engines[slot as usize].chunks.insert((index, lo));
        if empty {
            self.unlink(index);
            self.stop_waiting(index);
        }
        self.charge(client, members, estimate);
        self.count(client, Some(Bucket::Ready), Bucket::Running, members);
        self.sent(slot, first);
        self.actions.push_back(Action::Dispatch {
            group: self.groups.key(index),
            range: lo..hi,
            engine: self.engines[slot as usize].key(),
            attempt,
            grant,
            alternative,
            nodes,
        });
    }

    fn sent(&mut self, slot: u32, first: bool) {
        self.uses += 1;
        let engine = &mut self.engines[slot as usize];
        engine.last_used = self.uses;
        if first {
            engine.progress = self.now;
        }
        let room = self.refresh(slot);
        // What it is given ahead takes no cpu of its own: now that it has one, it may have room where there was none.
        let host = self.hosts.of(&self.engines[slot as usize]);
        if first && room && host.is_some_and(|host| !host.open || host.reopened) {
            self.hungry.push_back(slot);
        }
    }

    /// Changes what an engine holds. True if it held nothing.
    pub(super) fn add_load(&mut self, slot: u32, members: i64, ahead: i64, bytes: i64) -> bool {
        let engine = &mut self.engines[slot as usize];
        let before = engine.load;
        engine.load = engine.load.saturating_add_signed(members as i32);
        engine.ahead = engine.ahead.saturating_add_signed(ahead);
        engine.bytes = engine.bytes.saturating_add_signed(bytes);
        if engine.load == 0 {
            engine.recalled = 0;
            engine.ahead = 0;
            engine.bytes = 0;
            self.went_idle = true;
        }
        if engine.can_give_back {
            let (was, is) = (before.saturating_sub(1), engine.load.saturating_sub(1));
            self.given_ahead = self.given_ahead + u64::from(is) - u64::from(was);
        }
        let now = engine.load;
        if (before == 0) != (now == 0) {
            self.load_changed(slot, now > 0);
        }
        before == 0
    }

    /// Puts a single task at the end of an engine's list.
    pub(super) fn link_flying(&mut self, index: u32, slot: u32) {
        let engine = &mut self.engines[slot as usize];
        let tail = std::mem::replace(&mut engine.tail, index);
        if tail == NONE {
            engine.head = index;
        } else {
            self.groups[tail].next = index;
        }
        let group = &mut self.groups[index];
        group.stage = Stage::Flying;
        group.engine = slot;
        group.prev = tail;
        group.next = NONE;
    }

    /// Takes a single task off its engine.
    pub(super) fn land(&mut self, index: u32) {
        let group = &mut self.groups[index];
        let (slot, next, prev) = (group.engine, group.next, group.prev);
        let (ahead, bytes) = (from_units(group.est), group.bytes);
        group.engine = NONE;
        if group.stage == Stage::Flying {
            group.stage = Stage::Resting;
        }
        let engine = &mut self.engines[slot as usize];
        match prev {
            NONE => engine.head = next,
            _ => self.groups[prev].next = next,
        }
        match next {
            NONE => engine.tail = prev,
            _ => self.groups[next].prev = prev,
        }
        self.add_load(slot, -1, -(ahead as i64), -(bytes as i64));
    }

    /// Takes members off the flight that begins at `start`.
    pub(super) fn land_chunk(&mut self, index: u32, start: u32, lo: u32, hi: u32) {
        let group = &mut self.groups[index];
        let share = group.bytes / u64::from(group.count) * u64::from(hi - lo);
        let array = group.members_mut();
        let flight = array.flights.remove(&start).expect("the caller found it");
        let slot = flight.engine;
        let chunks = &mut self.engines[slot as usize].chunks;
        if start < lo {
            array.flights.insert(start, Flight { hi: lo, ..flight });
        } else {
            chunks.remove(&(index, start));
        }
        if hi < flight.hi {
            array.flights.insert(
                hi,
                Flight {
                    first: false,
                    ..flight
                },
            );
            chunks.insert((index, hi));
        }
        let ahead = from_units(flight.est) * u64::from(hi - lo);
        self.add_load(slot, -i64::from(hi - lo), -(ahead as i64), -(share as i64));
    }

    /// Flights of an array that overlap `lo..hi`: `(start, from, to, flight)`.
    pub(super) fn flights(&self, index: u32, lo: u32, hi: u32) -> Vec<(u32, u32, u32, Flight)> {
        let Some(array) = self.groups[index].array() else {
            return Vec::new();
        };
        let start = array
            .flights
            .range(..=lo)
            .next_back()
            .map_or(lo, |(&s, _)| s);
        let mut found = Vec::new();
        for (&start, flight) in array.flights.range(start..hi.max(start)) {
            let (from, to) = (start.max(lo), flight.hi.min(hi));
            if from < to {
                found.push((start, from, to, *flight));
            }
        }
        found
    }
}

pub(super) fn to_units(estimate: Option<Nanos>) -> u32 {
    (estimate.unwrap_or(UNKNOWN) >> EST_UNIT).clamp(1, u64::from(u32::MAX)) as u32
}

pub(super) fn from_units(units: u32) -> Nanos {
    u64::from(units) << EST_UNIT
}
