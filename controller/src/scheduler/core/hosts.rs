//! Hosts and what they have: who holds how much of it, and what is kept for whom.
//!
//! Engines of one host share its stocks. A task that asks for resources is given to an engine that has nothing else, and
//! that engine is given nothing else until it has answered: so an engine holds at most one such task, and gives back what
//! it holds at the one place where its load becomes 0 ([`Core::add_load`]). A task that asks for nothing counts as one cpu
//! as long as its engine has anything to do; N engines have never fewer than N cpus between them, so that these alone are
//! never held up.
//!
//! *Not now*: a class that a host has no room for is taken out of that host's part of the index, and looked at again when
//! something is released there. *Overtaken*: what is started on a host while something that comes first in turn waits
//! there for more than is free overtakes that. Once it was overtaken by [`ROUNDS`] times all cpus of the host, an engine
//! and what it asks for are kept for it: from then on only what fits beside it is started there, so that it waits no longer
//! than for what was running at that moment.

use std::collections::BTreeMap;
use std::sync::Arc;

use ipbroker_protocol::resources::{Amount, CPUS, ONE};

use super::engine::Engine;
use super::host::{Host, PLAIN, Stock, Units};
use super::id::NONE;
use super::pools::Constraints;
use super::types::{Grant, Granted, HostSpec, Name, Names, Request};
use super::{Core, LastKnown};

/// How often all cpus of a host may go to tasks that overtake one that waits for more than is free.
pub(super) const ROUNDS: u64 = 2;

/// Whether an engine may be given a task of this pool now, as far as its host and its other tasks go.
pub(super) fn open_to(
    hosts: &Hosts,
    pool: u32,
    constraints: &Constraints,
    engine: &Engine,
) -> bool {
    // It is given something only when what it may take becomes ready.
    if engine.waits > 0 {
        return false;
    }
    match &constraints.request {
        None => {
            let (any, retry) = engine.room();
            if constraints.retryable { retry } else { any }
        }
        Some(_) => {
            engine.idle()
                && hosts
                    .of(engine)
                    .is_some_and(|host| !host.blocked.contains(&pool))
        }
    }
}

/// All hosts.
#[derive(Default)]
pub(super) struct Hosts {
    pub slab: slab::Slab<Host>,
    by_key: BTreeMap<Box<str>, u32>,
}

impl Hosts {
    pub(super) fn get(&self, host: u32) -> Option<&Host> {
        self.slab.get(host as usize)
    }

    pub(super) fn of(&self, engine: &Engine) -> Option<&Host> {
        self.get(engine.host)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Host> {
        self.slab.iter().map(|(_, host)| host)
    }

    /// The host of that name, counted once more.
    fn hold(&mut self, key: &str) -> u32 {
        let host = self.named(key);
        self.slab[host as usize].refs += 1;
        host
    }

    /// The host of that name, new if there is none.
    pub(super) fn named(&mut self, key: &str) -> u32 {
        if let Some(&host) = self.by_key.get(key) {
            return host;
        }
        let host = self.slab.insert(Host::new(key)) as u32;
        self.by_key.insert(key.into(), host);
        host
    }

    /// Nobody holds it as a whole any more; true if it is still there.
    pub(super) fn let_go(&mut self, host: u32) -> bool {
        self.slab[host as usize].held_by = NONE;
        self.slab[host as usize].refs > 0 || !self.drop_unused(host)
    }

    fn drop_unused(&mut self, host: u32) -> bool {
        let entry = &self.slab[host as usize];
        let unused = entry.refs == 0 && entry.held_by == NONE;
        if unused {
            let gone = self.slab.remove(host as usize);
            self.by_key.remove(&gone.key);
        }
        unused
    }

    /// Counted once less; true if it is still there.
    fn release(&mut self, host: u32) -> bool {
        self.slab[host as usize].refs -= 1;
        !self.drop_unused(host)
    }

    /// A pool is no more.
    pub(super) fn forget_pool(&mut self, pool: u32) {
        for (_, host) in &mut self.slab {
            host.blocked.retain(|&p| p != pool);
        }
    }
}

impl Core {
    /// An engine is on the host that it names (`None`: on one of its own).
    pub(super) fn settle_on_host(&mut self, slot: u32, spec: Option<&HostSpec>) {
        let own;
        let spec = match spec {
            Some(spec) => spec,
            None => {
                own = HostSpec {
                    key: format!("engine {}", self.engines[slot as usize].name).into(),
                    ..HostSpec::default()
                };
                &own
            }
        };
        let host = self.hosts.hold(&spec.key);
        let unsaid = self.move_to_host(slot, host);
        let (machine, new) = self.hosts.slab[host as usize].joined(slot, spec);
        self.engines[slot as usize].machine = machine;
        self.count_stocks(host, unsaid || new);
    }

    /// An engine that is awaited after a restart was on this host, and its task had this.
    pub(super) fn await_on_host(&mut self, slot: u32, key: &str) {
        let host = self.hosts.hold(key);
        let unsaid = self.move_to_host(slot, host);
        if unsaid {
            self.count_stocks(host, true);
        }
    }

    /// Takes the engine, and what it holds, from where it was. The new host is counted already. Whether that is the old one,
    /// and nobody says any more what the engine said of it.
    fn move_to_host(&mut self, slot: u32, host: u32) -> bool {
        let mut unsaid = false;
        let engine = &mut self.engines[slot as usize];
        let old = std::mem::replace(&mut engine.host, host);
        let (busy, grant) = (engine.load > 0, engine.grant.take());
        if old != NONE {
            let before = &mut self.hosts.slab[old as usize];
            match &grant {
                Some(grant) => {
                    before.give_back(grant);
                    before.held -= 1;
                }
                None if busy => before.plain -= 1,
                None => {}
            }
            unsaid = before.left(slot, &engine.machine);
            if self.hosts.release(old) && old != host {
                self.count_stocks(old, unsaid);
                unsaid = false;
            }
        }
        let after = &mut self.hosts.slab[host as usize];
        match &grant {
            Some(grant) => {
                after.take_again(grant);
                after.held += 1;
            }
            None if busy => after.plain += 1,
            None => {}
        }
        self.engines[slot as usize].grant = grant;
        unsaid
    }

    /// An engine is gone, and holds nothing any more.
    pub(super) fn leave_host(&mut self, slot: u32) {
        let host = std::mem::replace(&mut self.engines[slot as usize].host, NONE);
        if host == NONE {
            return;
        }
        let machine = &self.engines[slot as usize].machine;
        let unsaid = self.hosts.slab[host as usize].left(slot, machine);
        if self.hosts.release(host) {
            self.count_stocks(host, unsaid);
            self.host_lost(host);
        }
    }

    /// What a host has follows from what its engines say, and how many they are.
    fn count_stocks(&mut self, host: u32, other_words: bool) {
        if other_words {
            self.hear_host(host);
        }
        let entry = &mut self.hosts.slab[host as usize];
        let cpus = entry.said_cpus.max(Amount::from(entry.refs) * ONE);
        entry.stock_mut(&CPUS.into()).total = cpus;
        let entry = &self.hosts.slab[host as usize];
        // What can never be had there any more is not waited for there.
        if let Some(kept) = &entry.reservation
            && !entry.could(&kept.request)
        {
            self.unreserve(kept.class);
        }
        self.host_changed(host);
    }

    /// Of each resource a host has the most that one of its engines knows of.
    fn hear_host(&mut self, host: u32) {
        let entry = &mut self.hosts.slab[host as usize];
        let mut cores: Vec<u32> = Vec::new();
        let mut stocks: BTreeMap<Name, Stock> = BTreeMap::new();
        let mut lists: BTreeMap<&Name, Vec<&Name>> = BTreeMap::new();
        for (spec, _) in &entry.specs {
            cores.extend(&spec.cores);
            for (name, amount) in &spec.sums {
                let stock = stocks.entry(name.clone()).or_default();
                stock.total = stock.total.max(*amount);
            }
            for (name, names) in &spec.lists {
                let all = lists.entry(name).or_default();
                for name in names {
                    if !all.contains(&name) {
                        all.push(name);
                    }
                }
            }
        }
        cores.sort_unstable();
        cores.dedup();
        for (name, names) in lists {
            let stock = stocks.entry(name.clone()).or_default();
            stock.total = names.len() as Amount * ONE;
            stock.units = Units::new(names.into_iter().cloned());
        }
        let cpus = stocks.entry(CPUS.into()).or_default();
        entry.said_cpus = (cores.len() as Amount * ONE).max(cpus.total);
        cpus.units = Units::new(cores.iter().map(|core| core.to_string().into()));
        entry.stocks = stocks.into_iter().collect();
        // Who holds something goes on holding it, even what is not there any more.
        let holders: Vec<u32> = self
            .engines
            .iter()
            .filter(|e| e.host == host && e.grant.is_some())
            .map(|e| e.slot)
            .collect();
        for slot in holders {
            let grant = self.engines[slot as usize]
                .grant
                .as_ref()
                .expect("filtered");
            self.hosts.slab[host as usize].take_again(grant);
        }
    }

    /// The task that the engine is given next has these of its host.
    pub(super) fn take_resources(&mut self, slot: u32, class: u32) -> (Arc<Grant>, u32) {
        let host = self.hosts.of(&self.engines[slot as usize]);
        let admitted = |request: &Arc<Request>| host.is_some_and(|host| host.admits(request));
        let found = self.requests(class).position(admitted);
        debug_assert!(found.is_some(), "it is given out where it fits");
        let nth = found.unwrap_or(0);
        let pool = self.alternative(class, nth);
        let request = pool.and_then(|pool| {
            let constraints = &self.pools.pools[pool as usize].constraints;
            constraints.request.as_deref()
        });
        let engine = &mut self.engines[slot as usize];
        debug_assert!(engine.load == 0 && engine.grant.is_none());
        let host = &mut self.hosts.slab[engine.host as usize];
        let grant = Arc::new(request.map_or_else(Grant::new, |request| host.take(request)));
        host.held += 1;
        engine.newcomer = host.newcomer(Some(&grant), true);
        engine.grant = Some(grant.clone());
        (grant, nth as u32)
    }

    /// The task that an engine held before a restart has this of its host, which is known by now.
    pub(super) fn take_restored(&mut self, slot: u32, class: u32, known: LastKnown) {
        if self.pools.classes[class as usize].nodes > 0 {
            return self.hold_again(slot, known.nodes);
        }
        let Some(request) = self.constraints(class).request.clone() else {
            return;
        };
        let engine = &mut self.engines[slot as usize];
        if engine.grant.is_some() || engine.load > 0 {
            return;
        }
        if engine.host == NONE {
            let key = format!("engine {}", engine.name);
            self.await_on_host(slot, &key);
        }
        let engine = &mut self.engines[slot as usize];
        let host = &mut self.hosts.slab[engine.host as usize];
        let grant = known.grant.unwrap_or_else(|| {
            let plain = |(name, amount): &(Name, Amount)| Granted {
                name: name.clone(),
                amount: *amount,
                names: Names::default(),
            };
            request.iter().map(plain).collect()
        });
        host.take_again(&grant);
        host.held += 1;
        engine.grant = Some(Arc::new(grant));
    }

    /// An engine that had nothing has a task, or has nothing any more.
    pub(super) fn load_changed(&mut self, slot: u32, busy: bool) {
        let engine = &mut self.engines[slot as usize];
        let Some(host) = self.hosts.slab.get_mut(engine.host as usize) else {
            return;
        };
        if busy {
            if engine.grant.is_none() {
                host.plain += 1;
                engine.newcomer = host.newcomer(None, true);
            }
        } else {
            let grant = engine.grant.take();
            match &grant {
                Some(grant) => {
                    host.give_back(grant);
                    host.held -= 1;
                }
                None => host.plain -= 1,
            }
            if std::mem::take(&mut engine.newcomer) {
                host.newcomer(grant.as_deref(), false);
            }
        }
        let (host, loud) = (engine.host, !host.is_quiet());
        if !busy && !self.engines[slot as usize].whole.is_empty() {
            self.let_hosts_go(slot);
        }
        if loud {
            self.host_changed(host);
        }
        if !busy {
            self.host_freed(host);
        }
    }

    /// Something was taken or released on a host, or what it has has changed.
    pub(super) fn host_changed(&mut self, host: u32) {
        let entry = &mut self.hosts.slab[host as usize];
        let open = entry.admits_plain();
        entry.reopened |= open && !entry.open;
        entry.open = open;
        let may_have_room = entry.reopened || !entry.blocked.is_empty();
        if may_have_room && !std::mem::replace(&mut entry.changed, true) {
            self.changed.push_back(host);
        }
        let entry = &self.hosts.slab[host as usize];
        if let Some(kept) = &entry.reservation
            && self.is_kept_complete(kept.engine)
        {
            self.hungry.push_back(kept.engine);
        }
    }

    /// Looks for tasks for what a host has free, once the engine that released it has taken what it can: mostly nothing is
    /// left, and the indexes need not change.
    pub(super) fn look_at_host(&mut self, host: u32) {
        let Some(entry) = self.hosts.slab.get_mut(host as usize) else {
            return;
        };
        entry.changed = false;
        let reopened = std::mem::take(&mut entry.reopened);
        if entry.open && reopened {
            self.refresh_host(host, true);
        }
        let mut at = 0;
        while let Some(&pool) = self.hosts.slab[host as usize].blocked.get(at) {
            let entry = &mut self.hosts.slab[host as usize];
            let fits = self.pools.pools[pool as usize]
                .constraints
                .request
                .as_ref()
                .is_some_and(|request| entry.admits(request));
            if !fits {
                at += 1;
                continue;
            }
            entry.blocked.swap_remove(at);
            self.enter_idle(pool, host);
            let pool = &self.pools.pools[pool as usize];
            let waiting = |c: &&u32| self.pools.classes[**c as usize].queue.len > 0;
            let classes = pool.classes.iter().chain(&pool.alternative_of);
            self.fresh.extend(classes.filter(waiting));
        }
    }

    /// Puts the idle engines of a host into the index of a pool, or takes them out, as they stand now.
    fn enter_idle(&mut self, pool: u32, host: u32) {
        let engines = self.hosts.slab[host as usize].engines.clone();
        for slot in engines {
            if self.engines[slot as usize].idle() {
                self.enter_pool(pool, slot);
            }
        }
    }

    /// Tells the indexes how the engines of a host stand, and looks for tasks for them.
    pub(super) fn refresh_host(&mut self, host: u32, hungry: bool) {
        let engines = self.hosts.slab[host as usize].engines.clone();
        for slot in engines {
            if self.engines[slot as usize].live {
                let room = self.refresh(slot);
                if hungry && room {
                    self.hungry.push_back(slot);
                }
            }
        }
    }

    /// Whether the engine's host has one of the alternatives of a class now.
    pub(super) fn has_any_now(&mut self, class: u32, slot: u32) -> bool {
        if self.pools.classes[class as usize].nodes > 0 {
            return self.whole_hosts(class, Some(slot)).is_some();
        }
        let mut nth = 0;
        while let Some(pool) = self.alternative(class, nth) {
            if self.has_now(pool, slot) {
                return true;
            }
            nth += 1;
        }
        false
    }

    /// Whether the host of an engine that was proposed for a pool has what its tasks ask for. If not, none of the host's
    /// engines is proposed again before something is released there.
    pub(super) fn has_now(&mut self, pool: u32, slot: u32) -> bool {
        let Some(request) = &self.pools.pools[pool as usize].constraints.request else {
            return true;
        };
        let host = self.engines[slot as usize].host;
        let Some(entry) = self.hosts.slab.get_mut(host as usize) else {
            return false;
        };
        let admits = entry.admits(request);
        if !admits && !entry.blocked.contains(&pool) {
            entry.blocked.push(pool);
            self.enter_idle(pool, host);
        }
        admits
    }

    /// Whether the host of an engine that was proposed for plain tasks has a cpu for another one. If not, none of the host's
    /// idle engines is proposed again before it has.
    pub(super) fn has_cpu(&mut self, slot: u32) -> bool {
        let engine = &self.engines[slot as usize];
        if engine.load > 0 || self.hosts.of(engine).is_none_or(|host| host.open) {
            return true;
        }
        self.refresh_host(engine.host, false);
        false
    }

    /// The cpus that the engine's task takes.
    pub(super) fn cpus_of(&self, slot: u32) -> Amount {
        let grant = self.engines[slot as usize].grant.as_deref();
        let cpus = grant.and_then(|grant| grant.iter().find(|one| *one.name == *CPUS));
        cpus.map_or(PLAIN, |cpus| cpus.amount)
    }

    /// Whether an engine has room for plain tasks, as far as its host and what it holds go.
    pub(super) fn close(&mut self, slot: u32) {
        let engine = &self.engines[slot as usize];
        // What it waits for may have nowhere else to run.
        let waits = engine.waits > 0;
        let alone = engine.grant.is_some() || !engine.whole.is_empty();
        let closed = (alone && engine.active() > 0)
            || (engine.kept_for != NONE && !waits)
            || self.hosts.of(engine).is_some_and(|host| match engine.load {
                0 => !host.open,
                _ => host.reservation.is_some() && !engine.newcomer && !waits,
            });
        self.engines[slot as usize].closed = closed;
    }
}
