//! Submission: what a specification becomes.

use std::sync::Arc;

use ipbroker_protocol::resources::CPUS;

use super::auto::Estimate;
use super::clients::{Bucket, End};
use super::group::{Array, DETACHED, Extra, Flight, Group, MAY_RETURN, Stage};
use super::host::PLAIN;
use super::id::{NONE, TaskId};
use super::place::{from_units, to_units};
use super::pools::{Constraints, RECENT};
use super::ranges::RangeSet;
use super::types::{
    FailKind, Grant, GroupKey, GroupSpec, Nanos, RETRY_DELAY_MOST, Refusal, Request, TaskState,
};
use super::{Core, LastKnown};

impl Core {
    /// A new group. Its actions (a failure too) follow by [`Core::poll`].
    pub fn submit(&mut self, now: Nanos, spec: &GroupSpec<'_>) -> Result<GroupKey, Refusal> {
        self.now = now;
        let group = self.admit(spec)?;
        let key = self.groups.key(group);
        self.start(group, spec);
        self.settle();
        Ok(key)
    }

    /// A group from before a controller restart: `attempt` is the highest that was given out, plus 1 (0: none was),
    /// `done` members were answered (`true`: well), `given` were with the engine of that uuid. To be called in the order of submission, before the first engine joins. What was
    /// given waits for its engine, [`super::Config::restore_limit`] at most.
    pub fn restore(
        &mut self,
        now: Nanos,
        spec: &GroupSpec<'_>,
        attempt: u32,
        done: &[(u32, u32, bool)],
        given: &[(&str, u32, u32)],
    ) -> Result<GroupKey, Refusal> {
        self.now = now;
        let group = self.admit(spec)?;
        let key = self.groups.key(group);
        let client = self.groups[group].client;
        // Sent before: what is sent again to the same engine must differ.
        self.groups[group].attempt = attempt;
        self.next_seq += 1;
        self.groups[group].seq = self.next_seq;
        for &(uuid, lo, hi) in given {
            let slot = self.absent_engine(uuid);
            self.give_restored(group, slot, lo, hi);
        }
        for &(lo, hi, ok) in done {
            let parts = match self.groups[group].array_mut() {
                Some(array) => {
                    let parts = array.waiting.overlap(lo, hi.min(spec.count));
                    array.waiting.remove(lo, hi);
                    parts
                }
                None => vec![(0, 1)],
            };
            let end = if ok { End::Ok } else { End::Failed };
            for (lo, hi) in parts {
                self.count_end(client, Bucket::Ready, end, hi - lo);
                if self.groups[group].array().is_some() {
                    self.members_over(group, lo, hi, ok, None);
                } else {
                    self.conclude(group, ok, None);
                }
            }
        }
        let waits = match self.groups.get(key) {
            None => false,
            Some(g) => g
                .array()
                .map_or(g.stage == Stage::Resting, |a| !a.waiting.is_empty()),
        };
        if waits {
            self.start(group, spec);
        } else if self.groups.get(key).is_some() {
            self.watch_dependencies(group, spec);
        }
        self.settle();
        Ok(key)
    }

    /// Before a controller restart the engine of that uuid was on this host, and the last task with resources that it was
    /// given had these, or these whole hosts. To be called before [`Core::restore`].
    pub fn restore_last_known(
        &mut self,
        uuid: &str,
        host: &str,
        grant: Option<Grant>,
        nodes: &[String],
    ) {
        let uuid = self.hasher.id(uuid.as_bytes());
        let known = LastKnown {
            host: host.into(),
            grant,
            nodes: nodes.iter().map(|key| key.as_str().into()).collect(),
        };
        self.last_known.insert(uuid, known);
    }

    /// Members are with an engine already.
    fn give_restored(&mut self, group: u32, slot: u32, lo: u32, hi: u32) {
        // Nobody knows how long it will take: nothing is put behind it.
        let est = to_units(None);
        let class = self.groups[group].class;
        if self.pools.classes[class as usize].asks {
            let known = self
                .last_known
                .get(&self.engines[slot as usize].uuid)
                .cloned();
            self.take_restored(slot, class, known.unwrap_or_default());
        }
        let entry = &mut self.groups[group];
        let (client, count, bytes) = (entry.client, entry.count, entry.bytes);
        let Some(array) = entry.array_mut() else {
            if entry.stage == Stage::Resting {
                entry.since = self.now;
                entry.est = est;
                self.link_flying(group, slot);
                self.add_load(slot, 1, from_units(est) as i64, bytes as i64);
                self.count(client, Some(Bucket::Ready), Bucket::Running, 1);
            }
            return;
        };
        let parts = array.waiting.overlap(lo, hi.min(count));
        array.waiting.remove(lo, hi);
        for &(lo, hi) in &parts {
            array.flights.insert(
                lo,
                Flight {
                    hi,
                    engine: slot,
                    since: self.now,
                    est,
                    first: false,
                },
            );
        }
        for (lo, hi) in parts {
            let share = bytes / u64::from(count) * u64::from(hi - lo);
            self.engines[slot as usize].chunks.insert((group, lo));
            let ahead = from_units(est) * u64::from(hi - lo);
            self.add_load(slot, i64::from(hi - lo), ahead as i64, share as i64);
            self.count(client, Some(Bucket::Ready), Bucket::Running, hi - lo);
        }
    }

    /// Takes a group in. It is in no list yet.
    fn admit(&mut self, spec: &GroupSpec<'_>) -> Result<u32, Refusal> {
        if spec.count == 0 || spec.count == NONE {
            return Err(Refusal::Empty);
        }
        // Also an id that a member of an array has.
        let known = self.state(spec.msg_id);
        if known != TaskState::Unknown {
            return Err(Refusal::Duplicate(known));
        }
        let id = self.hasher.id(spec.msg_id.as_bytes());
        let client = self.client(spec.client);
        self.clients[client as usize].groups += 1;
        let class = self.class_of(spec);
        self.hold_class(class);
        let index = self.groups.insert(Group {
            id,
            seq: 0,
            bytes: spec.bytes,
            since: self.now,
            extra: None,
            generation: 0,
            count: spec.count,
            class,
            client,
            lane: NONE,
            next: NONE,
            prev: NONE,
            retries: spec.retries,
            attempt: 0,
            priority: spec.priority,
            engine: NONE,
            est: 0,
            stage: Stage::Resting,
            flags: if spec.may_return { MAY_RETURN } else { 0 }
                | if spec.detach { DETACHED } else { 0 },
        });
        self.ids.insert(index, &self.groups);
        self.count_new(client, spec.count, spec.bytes);
        if spec.count > 1 {
            let mut estimate = Estimate::default();
            if let Some(time) = self.estimate(client, spec.needs.0).filter(|_| spec.each) {
                estimate.learn(time, 1);
            }
            let array = Array {
                waiting: RangeSet::full(spec.count),
                estimate,
                ..Array::default()
            };
            self.groups[index].extra_mut().array = Some(Box::new(array));
        }
        if spec.timeout > 0 || spec.retry_delay > 0 || spec.crashes.is_some() {
            let extra = self.groups[index].extra_mut();
            extra.timeout = spec.timeout;
            extra.retry_delay = spec.retry_delay.min(RETRY_DELAY_MOST);
            extra.crashes = spec.crashes.map_or(NONE, |crashes| crashes.min(NONE - 1));
        }
        if !spec.prefer.is_empty() || spec.follow.is_some_and(|d| !d.ids.is_empty()) {
            self.hold_class(class);
            self.groups[index].extra_mut().base = class;
        }
        if !spec.prefer.is_empty() {
            let mut prefer: Box<[Box<str>]> =
                spec.prefer.iter().map(|n| n.as_str().into()).collect();
            prefer.sort_unstable();
            let preferred = self.with_constraints(class, |c| c.prefer = prefer);
            self.hold_class(preferred);
            let extra = self.groups[index].extra_mut();
            extra.preferred = preferred;
            extra.prefer_wait = spec.prefer_wait;
        }
        Ok(index)
    }

    fn class_of(&mut self, spec: &GroupSpec<'_>) -> u32 {
        let retryable = spec.crashes.unwrap_or(spec.retries) > 0;
        if spec.requests.is_empty()
            && spec.nodes == 0
            && spec.targets.is_empty()
            && spec.hosts.is_empty()
            && spec.tags.is_empty()
            && spec.time == 0
        {
            return self.plain_class(spec.needs.0, retryable);
        }
        let (requests, targets) = (spec.requests, spec.targets);
        let kinds = (spec.hosts, spec.tags, spec.nodes, spec.time);
        let said = self
            .hasher
            .of(&(spec.needs.0, retryable, requests, targets, kinds));
        if let Some(&class) = self.pools.recent.get(&said) {
            return class;
        }
        let class = self.constrained_class(spec, retryable);
        if self.pools.recent.len() >= RECENT {
            self.pools.recent.clear();
        }
        self.pools.recent.insert(said, class);
        class
    }

    fn constrained_class(&mut self, spec: &GroupSpec<'_>, retryable: bool) -> u32 {
        let requests: Vec<Arc<Request>> = spec
            .requests
            .iter()
            .map(|request| {
                let mut request = request.clone();
                if !request.iter().any(|(name, _)| **name == *CPUS) {
                    request.push((CPUS.into(), PLAIN));
                }
                request.retain(|(_, amount)| *amount > 0);
                request.sort_unstable();
                Arc::new(request)
            })
            .collect();
        let sorted = |names: &[String]| {
            let mut names: Vec<Box<str>> = names.iter().map(|n| n.as_str().into()).collect();
            names.sort_unstable();
            names.dedup();
            names.into_boxed_slice()
        };
        let targets = (!spec.targets.is_empty()).then(|| {
            let with_hash = |name: Box<str>| (self.hasher.id(name.as_bytes()), name);
            let mut targets: Vec<(TaskId, Box<str>)> =
                sorted(spec.targets).into_iter().map(with_hash).collect();
            targets.sort_unstable();
            targets.into_boxed_slice()
        });
        let (hosts, tags) = (sorted(spec.hosts), sorted(spec.tags));
        self.class(
            Constraints {
                needs: spec.needs.0,
                retryable,
                targets,
                hosts,
                tags,
                prefer: Box::new([]),
                request: requests.first().cloned(),
                nodes: spec.nodes,
                time: spec.time,
            },
            requests.get(1..).unwrap_or_default(),
            &[],
        )
    }

    /// Puts an admitted group where it belongs.
    fn start(&mut self, group: u32, spec: &GroupSpec<'_>) {
        if !self.watch_dependencies(group, spec) {
            return;
        }
        let base = self.base_class(group);
        if spec.no_wait && self.is_nowhere(base) {
            let text = self.nowhere(base);
            return self.fail_waiting(group, FailKind::NoEngine, &text);
        }
        if self.groups[group].extra.is_none()
            && self.constraints(base).targets.is_none()
            && self.groups[group].seq == 0
        {
            return self.place_new(group);
        }
        self.arm_timeout(self.now, group);
        self.decide(group);
    }

    /// Registers what the group waits for. False if that was invalid and the group has failed.
    fn watch_dependencies(&mut self, group: u32, spec: &GroupSpec<'_>) -> bool {
        for (dependency, follow) in [(spec.after, false), (spec.follow, true)] {
            let Some(dependency) = dependency.filter(|d| !d.ids.is_empty()) else {
                continue;
            };
            if let Err(text) = self.watch(group, dependency, follow) {
                self.fail_waiting(group, FailKind::InvalidDependency, &text);
                return false;
            }
        }
        true
    }

    /// The class without what follow and preference make of it.
    pub(super) fn base_class(&self, group: u32) -> u32 {
        let group = &self.groups[group];
        match &group.extra {
            Some(extra) if extra.base != NONE => extra.base,
            _ => group.class,
        }
    }

    /// A member leaves its array to be tried again under conditions of its own.
    pub(super) fn split_member(&mut self, parent: u32, index: u32, retries: u32) -> u32 {
        let base = self.base_class(parent);
        self.hold_class(base);
        let class = self.placed_class(parent, base);
        self.hold_class(class);
        let group = &self.groups[parent];
        let parent_extra = group.extra.as_deref().expect("an array has extras");
        let follows = parent_extra.follow.is_some();
        let extra = Extra {
            base: if follows { base } else { NONE },
            parent,
            index,
            timeout: parent_extra.timeout,
            retry_delay: parent_extra.retry_delay,
            crashes: parent_extra.crashes,
            ..Extra::default()
        };
        let child = Group {
            id: group.id,
            seq: group.seq,
            bytes: group.bytes / u64::from(group.count),
            since: self.now,
            extra: Some(Box::new(extra)),
            generation: 0,
            count: 1,
            class,
            client: group.client,
            lane: NONE,
            next: NONE,
            prev: NONE,
            retries,
            attempt: group.attempt + 1,
            priority: group.priority,
            engine: NONE,
            est: 0,
            stage: Stage::Resting,
            flags: group.flags & (MAY_RETURN | DETACHED),
        };
        if !follows {
            self.release_class(base);
        }
        self.clients[child.client as usize].groups += 1;
        let child = self.groups.insert(child);
        let children = &mut self.groups[parent].members_mut().children;
        children.insert(index, child);
        child
    }

    /// Gives a group's classes, timers and slot back.
    pub(super) fn drop_group(&mut self, group: u32) {
        self.stop_waiting(group);
        self.stop_abort_timer(group);
        let (class, client) = (self.groups[group].class, self.groups[group].client);
        if let Some(extra) = &self.groups[group].extra
            && extra.base != NONE
        {
            self.release_class(extra.base);
        }
        self.release_class(class);
        self.leave_client(client);
        self.groups.free(group);
    }
}
