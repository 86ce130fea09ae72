//! Pools and classes: interned constraints.
//!
//! A *pool* is what a specification asks of an engine, with the engines that have it. A *class* is a pool
//! without the engines that a task was refused by; tasks of one class are alike for placement. Both live
//! while groups use them, and some longer.

use std::cell::Cell;
use std::collections::VecDeque;
use std::sync::Arc;

use foldhash::fast::FixedState;
use std::collections::HashMap;

use super::Core;
use super::clock::Timer;
use super::engine::Engine;
use super::hosts::open_to;
use super::id::TaskId;
use super::lanes::ClassQueue;
use super::scheme::{Candidate, Index};
use super::types::{EngineKey, Nanos, Request};

/// Uuids with their hashes.
pub(super) type Targets = Box<[(TaskId, Box<str>)]>;

/// What is asked of an engine.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(super) struct Constraints {
    pub needs: u64,
    /// The task may be run again, so it may be given ahead to engines that cannot give back.
    pub retryable: bool,
    /// Uuids with their hashes, one of which it must have (`None`: any).
    pub targets: Option<Targets>,
    /// One of these it must have as a host name (empty: any).
    pub hosts: Box<[Box<str>]>,
    /// All of these it must have as tags.
    pub tags: Box<[Box<str>]>,
    /// One of these it must have as a host name or tag, while the task waits for its preference.
    pub prefer: Box<[Box<str>]>,
    /// What its host must have free.
    pub request: Option<Arc<Request>>,
    /// So many hosts it must have for itself.
    pub nodes: u32,
    /// So long it must stay.
    pub time: Nanos,
}

impl Constraints {
    /// Whether the engine has what is asked, targets apart.
    pub(super) fn suits(&self, engine: &Engine, now: Nanos) -> bool {
        let has = |list: &[Box<str>], name: &str| list.iter().any(|n| n.eq_ignore_ascii_case(name));
        self.needs & !engine.needs == 0
            && self.time <= engine.ends.saturating_sub(now)
            && (self.hosts.is_empty() || self.hosts.iter().any(|h| has(&engine.hosts, h)))
            && self.tags.iter().all(|t| engine.tags.contains(t))
            && (self.prefer.is_empty()
                || self
                    .prefer
                    .iter()
                    .any(|p| has(&engine.hosts, p) || engine.tags.contains(p)))
    }

    pub(super) fn matches(&self, engine: &Engine, now: Nanos) -> bool {
        self.targets
            .as_ref()
            .is_none_or(|t| t.iter().any(|(uuid, _)| *uuid == engine.uuid))
            && self.suits(engine, now)
    }
}

/// Constraints and the engines that satisfy them.
pub(super) struct Pool {
    pub constraints: Constraints,
    key: TaskId,
    /// Slots of engines, in order of joining.
    pub engines: Vec<u32>,
    /// Those with room, as the scheme keeps them; small sets of explicit targets go without.
    index: Option<Box<dyn Index>>,
    pub classes: Vec<u32>,
    /// Classes of which it is an alternative other than the first.
    pub alternative_of: Vec<u32>,
}

/// A pool without the engines that refused.
pub(super) struct Class {
    pub pool: u32,
    /// Its alternatives after that, in order of preference: pools that ask something else of the host.
    others: Box<[u32]>,
    pub refused: Box<[EngineKey]>,
    /// Its tasks ask for resources.
    pub asks: bool,
    /// Its tasks hold so many whole hosts.
    pub nodes: u32,
    /// For these: too few were free when last looked at.
    pub too_few: bool,
    /// How many there are, whoever has them, as long as no engine has come or gone since that was counted.
    pub hosts: Cell<Option<usize>>,
    /// The host on which something is kept for it.
    pub kept_on: u32,
    /// Cpus that went to tasks that came after its first one, on hosts where that waited for more than was free.
    pub overtaken: u64,
    /// Groups that use it.
    refs: u32,
    cached: bool,
    pub queue: ClassQueue,
    /// Groups that wait for other tasks, oldest first.
    pub blocked_head: u32,
    pub blocked_tail: u32,
}

/// What tells classes apart: the pool, its alternatives, who refused.
type ClassParts = (u32, Box<[u32]>, Box<[EngineKey]>);

/// All pools and classes.
#[derive(Default)]
pub(super) struct Pools {
    pub pools: slab::Slab<Pool>,
    pub classes: slab::Slab<Class>,
    by_key: HashMap<TaskId, u32, FixedState>,
    by_parts: HashMap<ClassParts, u32, FixedState>,
    /// Unused classes, oldest first, and how many engine entries they cost.
    unused: VecDeque<u32>,
    unused_weight: usize,
    scratch: Option<Box<dyn Index>>,
    /// The class of the last task without constraints.
    last_plain: Option<(u64, bool, u32)>,
    /// The classes of the last tasks with some, by a hash of all that they said.
    pub recent: HashMap<TaskId, u32, FixedState>,
}

/// From so many engines on, explicit targets have an index too.
const INDEXED: usize = 8;

/// So many ways to ask are remembered.
pub(super) const RECENT: usize = 1024;

impl Core {
    pub(super) fn constraints(&self, class: u32) -> &Constraints {
        &self.pools.pools[self.pools.classes[class as usize].pool as usize].constraints
    }

    pub(super) fn pool_engines(&self, class: u32) -> &[u32] {
        &self.pools.pools[self.pools.classes[class as usize].pool as usize].engines
    }

    /// The pool of the n-th alternative of a class, from 0 in order of preference.
    pub(super) fn alternative(&self, class: u32, nth: usize) -> Option<u32> {
        let entry = &self.pools.classes[class as usize];
        match nth.checked_sub(1) {
            None => Some(entry.pool),
            Some(nth) => entry.others.get(nth).copied(),
        }
    }

    /// What tasks of a class ask of their host: alternatives, in order of preference; none: they are plain.
    pub(super) fn requests(&self, class: u32) -> impl Iterator<Item = &Arc<Request>> {
        (0..)
            .map_while(move |nth| self.alternative(class, nth))
            .filter_map(|pool| self.pools.pools[pool as usize].constraints.request.as_ref())
    }

    /// Its tasks may have one of several things.
    pub(super) fn has_alternatives(&self, class: u32) -> bool {
        !self.pools.classes[class as usize].others.is_empty()
    }

    /// The class of tasks that need only capabilities.
    pub(super) fn plain_class(&mut self, needs: u64, retryable: bool) -> u32 {
        if let Some((n, r, class)) = self.pools.last_plain
            && (n, r) == (needs, retryable)
        {
            return class;
        }
        let class = self.class(
            Constraints {
                needs,
                retryable,
                ..Constraints::default()
            },
            &[],
            &[],
        );
        self.pools.last_plain = Some((needs, retryable, class));
        class
    }

    /// The class of these constraints, or of the same with another request, without these engines.
    pub(super) fn class(
        &mut self,
        constraints: Constraints,
        others: &[Arc<Request>],
        refused: &[EngineKey],
    ) -> u32 {
        let others: Box<[u32]> = others
            .iter()
            .map(|request| {
                let request = Some(request.clone());
                self.pool(Constraints {
                    request,
                    ..constraints.clone()
                })
            })
            .collect();
        let pool = self.pool(constraints);
        let parts = (pool, others, Box::<[EngineKey]>::from(refused));
        if let Some(&class) = self.pools.by_parts.get(&parts) {
            return class;
        }
        let constraints = &self.pools.pools[pool as usize].constraints;
        let nodes = constraints.nodes;
        let asks = constraints.request.is_some() || nodes > 0;
        let class = self.pools.classes.insert(Class {
            pool,
            others: parts.1.clone(),
            asks,
            nodes,
            too_few: false,
            hosts: Cell::new(None),
            kept_on: super::id::NONE,
            overtaken: 0,
            refused: parts.2.clone(),
            refs: 0,
            cached: false,
            queue: ClassQueue::default(),
            blocked_head: super::id::NONE,
            blocked_tail: super::id::NONE,
        }) as u32;
        for &other in &parts.1 {
            self.pools.pools[other as usize].alternative_of.push(class);
        }
        self.pools.by_parts.insert(parts, class);
        if nodes > 0 {
            self.whole.classes.push(class);
        }
        let pool = &mut self.pools.pools[pool as usize];
        pool.classes.push(class);
        for &slot in &pool.engines {
            let engine = &mut self.engines[slot as usize];
            if !refused.contains(&engine.key()) {
                engine.classes.push(class);
            }
        }
        self.cache(class);
        class
    }

    fn pool(&mut self, constraints: Constraints) -> u32 {
        let key = self.hasher.of(&constraints);
        match self.pools.by_key.get(&key) {
            Some(&pool) => pool,
            None => self.make_pool(key, constraints),
        }
    }

    fn make_pool(&mut self, key: TaskId, constraints: Constraints) -> u32 {
        let engines: Vec<u32> = match &constraints.targets {
            Some(targets) => {
                let mut slots: Vec<u32> = targets
                    .iter()
                    .filter_map(|(uuid, _)| self.by_uuid.get(uuid).copied())
                    .filter(|&s| {
                        self.engines[s as usize].live
                            && constraints.suits(&self.engines[s as usize], self.now)
                    })
                    .collect();
                slots.sort_unstable();
                slots.dedup();
                slots
            }
            None => {
                let suits = |&s: &u32| constraints.suits(&self.engines[s as usize], self.now);
                self.live.iter().copied().filter(suits).collect()
            }
        };
        let indexed = constraints.targets.is_none() || engines.len() > INDEXED;
        let pool = self.pools.pools.insert(Pool {
            constraints,
            key,
            engines: Vec::new(),
            index: indexed.then(|| self.scheme.index()),
            classes: Vec::new(),
            alternative_of: Vec::new(),
        }) as u32;
        self.pools.by_key.insert(key, pool);
        for slot in engines {
            self.join_pool(pool, slot);
        }
        pool
    }

    /// Adds a live engine to a pool it matches.
    fn join_pool(&mut self, pool_index: u32, slot: u32) {
        let pool = &mut self.pools.pools[pool_index as usize];
        pool.engines.push(slot);
        let engine = &mut self.engines[slot as usize];
        let time = pool.constraints.time;
        if time > 0 && engine.ends < Nanos::MAX {
            // Just after the last moment at which it may be given such a task.
            self.timers
                .insert((engine.ends - time + 1, Timer::Ends(slot)));
        }
        for &class in &pool.classes {
            if !self.pools.classes[class as usize]
                .refused
                .contains(&engine.key())
            {
                engine.classes.push(class);
            }
        }
        if pool.index.is_none() && pool.engines.len() > INDEXED {
            pool.index = Some(self.scheme.index());
            for &slot in &pool.engines {
                let engine = &mut self.engines[slot as usize];
                engine.pools.push(pool_index);
                enter(
                    pool.index.as_mut().expect("just made"),
                    engine,
                    open_to(&self.hosts, pool_index, &pool.constraints, engine),
                );
            }
        } else if let Some(index) = &mut pool.index {
            engine.pools.push(pool_index);
            let open = open_to(&self.hosts, pool_index, &pool.constraints, engine);
            enter(index, engine, open);
        }
    }

    /// Puts an engine into the index of a pool, or takes it out, as it stands now.
    pub(super) fn enter_pool(&mut self, pool_index: u32, slot: u32) {
        let engine = &self.engines[slot as usize];
        let pool = &mut self.pools.pools[pool_index as usize];
        if let Some(index) = &mut pool.index
            && engine.pools.contains(&pool_index)
        {
            let open = open_to(&self.hosts, pool_index, &pool.constraints, engine);
            enter(index, engine, open);
        }
    }

    /// A live engine becomes eligible wherever it matches. Returns the classes that waited for just this engine in
    /// vain, as it is not what they ask besides.
    pub(super) fn attach(&mut self, slot: u32) -> Vec<u32> {
        let mut pools: Vec<u32> = Vec::new();
        let mut in_vain: Vec<u32> = Vec::new();
        let engine = &self.engines[slot as usize];
        for (index, pool) in &self.pools.pools {
            if pool.constraints.matches(engine, self.now) {
                pools.push(index as u32);
            } else if pool
                .constraints
                .targets
                .iter()
                .flatten()
                .any(|(uuid, _)| *uuid == engine.uuid)
            {
                in_vain.extend(&pool.classes);
            }
        }
        for pool in pools {
            self.join_pool(pool, slot);
        }
        in_vain
    }

    /// The engine is no longer eligible for anything. Returns the classes it was eligible for.
    pub(super) fn detach(&mut self, slot: u32) -> Vec<u32> {
        let engine = &mut self.engines[slot as usize];
        let key = engine.key();
        let classes = std::mem::take(&mut engine.classes);
        engine.pools.clear();
        for (_, pool) in &mut self.pools.pools {
            if let Some(at) = pool.engines.iter().position(|&s| s == slot) {
                pool.engines.remove(at);
                if let Some(index) = &mut pool.index {
                    index.remove(key);
                }
            }
        }
        classes
    }

    /// The engine leaves the pools whose tasks take longer than it stays.
    pub(super) fn leave_pools(&mut self, slot: u32) {
        let (now, engine) = (self.now, &mut self.engines[slot as usize]);
        let (key, kept_for) = (engine.key(), engine.kept_for);
        let mut lost = Vec::new();
        for (_, pool) in &mut self.pools.pools {
            if pool.constraints.time <= engine.ends.saturating_sub(now) {
                continue;
            }
            if let Some(at) = pool.engines.iter().position(|&s| s == slot) {
                pool.engines.remove(at);
                if let Some(index) = &mut pool.index {
                    index.remove(key);
                }
                lost.extend(&pool.classes);
            }
        }
        engine.classes.retain(|class| !lost.contains(class));
        let pools = &self.pools.pools;
        engine
            .pools
            .retain(|&pool| pools[pool as usize].engines.contains(&slot));
        if lost.contains(&kept_for) {
            self.unreserve_engine(slot);
        }
        self.recount_hosts();
        self.decide_bereft(lost);
    }

    /// Tells the indexes how the engine stands. Returns whether it has room for anything.
    pub(super) fn refresh(&mut self, slot: u32) -> bool {
        self.close(slot);
        let engine = &mut self.engines[slot as usize];
        let (any, retry) = engine.room();
        let standing = (any, retry, engine.idle(), engine.active(), engine.last_used);
        if engine.standing != standing {
            let other = engine.idle() || engine.standing.2;
            engine.standing = standing;
            for &at in &engine.pools {
                let pool = &mut self.pools.pools[at as usize];
                // Tasks that ask only care whether it is idle.
                if let Some(index) = &mut pool.index
                    && (other || pool.constraints.request.is_none())
                {
                    let open = open_to(&self.hosts, at, &pool.constraints, engine);
                    enter(index, engine, open);
                }
            }
        }
        any || retry
    }

    /// The engine that the scheme chooses for a task of this class, of those that have the first alternative that any has.
    pub(super) fn choose(&mut self, class: u32, besides: Option<EngineKey>) -> Option<u32> {
        if self.pools.classes[class as usize].nodes > 0 {
            return self.whole_hosts(class, None)?.first().copied();
        }
        if self.has_alternatives(class) {
            // Which of them there is depends on all hosts as they are now.
            while let Some(host) = self.changed.pop_front() {
                self.look_at_host(host);
            }
        }
        let asks = self.pools.classes[class as usize].asks;
        let mut nth = 0;
        loop {
            let pool = self.alternative(class, nth)?;
            while let Some(slot) = self.propose(class, pool, besides) {
                let takes = match asks {
                    true => self.has_now(pool, slot),
                    false => self.has_cpu(slot),
                };
                if takes {
                    return Some(slot);
                }
            }
            nth += 1;
        }
    }

    fn propose(&mut self, class: u32, pool_index: u32, besides: Option<EngineKey>) -> Option<u32> {
        let class = &self.pools.classes[class as usize];
        let pool = &mut self.pools.pools[pool_index as usize];
        let widened: Vec<EngineKey>;
        let refused = match besides {
            None => &class.refused[..],
            Some(key) => {
                widened = class.refused.iter().copied().chain([key]).collect();
                &widened
            }
        };
        if let Some(index) = &mut pool.index {
            return index.choose(&mut self.rng, refused).map(|key| key.slot);
        }
        let scratch = self
            .pools
            .scratch
            .get_or_insert_with(|| self.scheme.index());
        for &slot in &pool.engines {
            let engine = &self.engines[slot as usize];
            let open = open_to(&self.hosts, pool_index, &pool.constraints, engine);
            enter(scratch, engine, open);
        }
        let chosen = scratch.choose(&mut self.rng, refused).map(|key| key.slot);
        for &slot in &pool.engines {
            scratch.remove(self.engines[slot as usize].key());
        }
        chosen
    }

    /// No engine that can still come or is there may take tasks of this class.
    pub(super) fn is_dead(&self, class: u32) -> bool {
        let class = &self.pools.classes[class as usize];
        let constraints = &self.pools.pools[class.pool as usize].constraints;
        constraints.targets.as_ref().is_some_and(|targets| {
            targets
                .iter()
                .all(|(uuid, _)| match self.by_uuid.get(uuid) {
                    Some(&slot) => {
                        let engine = &self.engines[slot as usize];
                        engine.live
                            && (class.refused.contains(&engine.key())
                                || !constraints.suits(engine, self.now))
                    }
                    None => self.departed.contains(uuid),
                })
        })
    }

    /// Each registered engine that could ever take tasks of this class has refused them.
    pub(super) fn is_refused(&self, class: u32) -> bool {
        let refused = &self.pools.classes[class as usize].refused;
        !refused.is_empty()
            && self.pool_engines(class).iter().all(|&slot| {
                let engine = &self.engines[slot as usize];
                let host = self.hosts.of(engine);
                let could = |request: &Arc<Request>| host.is_none_or(|host| host.could(request));
                refused.contains(&engine.key())
                    || self.constraints(class).request.is_some() && !self.requests(class).any(could)
            })
    }

    pub(super) fn with_refused(&mut self, class: u32, engine: EngineKey) -> u32 {
        let old = &self.pools.classes[class as usize];
        let mut refused: Vec<EngineKey> = old
            .refused
            .iter()
            .copied()
            .filter(|k| self.engines[k.slot()].key() == *k)
            .collect();
        if !refused.contains(&engine) {
            refused.push(engine);
        }
        refused.sort_unstable();
        let constraints = self.constraints(class).clone();
        let others: Vec<_> = self.requests(class).skip(1).cloned().collect();
        self.class(constraints, &others, &refused)
    }

    /// The class that differs in its constraints only.
    pub(super) fn with_constraints(
        &mut self,
        class: u32,
        change: impl FnOnce(&mut Constraints),
    ) -> u32 {
        let mut constraints = self.constraints(class).clone();
        change(&mut constraints);
        if constraints == *self.constraints(class) {
            return class;
        }
        let refused = self.pools.classes[class as usize].refused.clone();
        let others: Vec<_> = self.requests(class).skip(1).cloned().collect();
        self.class(constraints, &others, &refused)
    }

    pub(super) fn hold_class(&mut self, class: u32) {
        self.pools.classes[class as usize].refs += 1;
    }

    pub(super) fn release_class(&mut self, class: u32) {
        let entry = &mut self.pools.classes[class as usize];
        entry.refs -= 1;
        if entry.refs == 0 {
            self.cache(class);
        }
    }

    /// Keeps an unused class for a while, within bounds.
    fn cache(&mut self, class: u32) {
        let entry = &mut self.pools.classes[class as usize];
        if entry.cached {
            return;
        }
        entry.cached = true;
        self.pools.unused_weight += 1 + self.pools.pools[entry.pool as usize].engines.len();
        self.pools.unused.push_back(class);
        if self.pools.unused_weight > 1024 + 16 * self.live.len() && self.pools.unused.len() > 8 {
            self.evict();
        }
    }

    fn evict(&mut self) {
        while self.pools.unused_weight > 512 + 8 * self.live.len() && self.pools.unused.len() > 1 {
            // The newest was just made for somebody who has not taken hold of it yet.
            let Some(class) = self.pools.unused.pop_front() else {
                return;
            };
            let entry = &mut self.pools.classes[class as usize];
            entry.cached = false;
            let (refs, pool_index) = (entry.refs, entry.pool);
            let pool = &mut self.pools.pools[pool_index as usize];
            self.pools.unused_weight = self
                .pools
                .unused_weight
                .saturating_sub(1 + pool.engines.len());
            if refs > 0 {
                continue;
            }
            for &slot in &pool.engines {
                self.engines[slot as usize].classes.retain(|&c| c != class);
            }
            pool.classes.retain(|&c| c != class);
            let entry = self.pools.classes.remove(class as usize);
            self.free_lanes_of(&entry);
            self.pools.last_plain = None;
            self.pools.recent.clear();
            self.drop_unused_pool(pool_index);
            for &other in &entry.others {
                let pool = &mut self.pools.pools[other as usize];
                pool.alternative_of.retain(|&c| c != class);
                self.drop_unused_pool(other);
            }
            self.whole.classes.retain(|&c| c != class);
            let parts = (pool_index, entry.others, entry.refused);
            self.pools.by_parts.remove(&parts);
        }
        if self.pools.unused.len() <= 1 {
            self.pools.unused_weight = 0;
        }
    }

    fn drop_unused_pool(&mut self, index: u32) {
        let used = |pool: &Pool| !pool.classes.is_empty() || !pool.alternative_of.is_empty();
        // A class may have the same alternative twice.
        if self.pools.pools.get(index as usize).is_none_or(used) {
            return;
        }
        let pool = self.pools.pools.remove(index as usize);
        self.hosts.forget_pool(index);
        self.pools.by_key.remove(&pool.key);
        if pool.index.is_some() {
            for slot in pool.engines {
                self.engines[slot as usize].pools.retain(|&p| p != index);
            }
        }
    }
}

/// Puts an engine into an index as it stands, or takes it out when it has no room.
fn enter(index: &mut Box<dyn Index>, engine: &Engine, open: bool) {
    if open {
        index.set(Candidate {
            engine: engine.key(),
            load: engine.active(),
            last_used: engine.last_used,
        });
    } else {
        index.remove(engine.key());
    }
}
