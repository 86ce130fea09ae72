//! Tasks that hold whole hosts: which they get, what is kept for them, and how hosts come free again.
//!
//! Such a task looks at the engines of its pool when a host comes free: that costs in proportion to these, while one waits.

use std::collections::BTreeSet;

use super::Core;
use super::group::{HOST_LOST, Stage};
use super::id::NONE;
use super::types::{Action, EngineKey};

/// What is known of such tasks as a whole.
pub(super) struct Whole {
    /// Their classes.
    pub classes: Vec<u32>,
    /// The class for which hosts are kept.
    pub kept_for: u32,
    /// These.
    pub kept: Vec<u32>,
}

impl Default for Whole {
    fn default() -> Self {
        Whole {
            classes: Vec::new(),
            kept_for: NONE,
            kept: Vec::new(),
        }
    }
}

/// Why a task failed whose hosts are not all there any more.
pub(super) const HOST_LOST_TEXT: &str = "a host that the task held was lost while it ran";

impl Core {
    /// Engines that may take tasks of the class, one of each of their hosts, and these hosts.
    fn hosts_of_class(&self, class: u32) -> Vec<(u32, u32)> {
        let refused = &self.pools.classes[class as usize].refused;
        let mut seen = BTreeSet::new();
        let mut found = Vec::new();
        for &slot in self.pool_engines(class) {
            let engine = &self.engines[slot as usize];
            let may = engine.live && !engine.leaving && !refused.contains(&engine.key());
            if may && seen.insert(engine.host) {
                found.push((slot, engine.host));
            }
        }
        found
    }

    fn is_free_for(&self, host: u32, class: u32) -> bool {
        let Some(entry) = self.hosts.get(host) else {
            return false;
        };
        entry.is_free() && (entry.kept_whole == 0 || self.whole.kept_for == class)
    }

    /// An engine of each host that a task of the class would get now, `first` the first of them.
    pub(super) fn whole_hosts(&mut self, class: u32, first: Option<u32>) -> Option<Vec<u32>> {
        if let Some(first) = first {
            let engine = &self.engines[first as usize];
            let may = engine.live && !engine.leaving && engine.classes.contains(&class);
            if !may || !self.is_free_for(engine.host, class) {
                return None;
            }
        }
        let entry = &self.pools.classes[class as usize];
        if entry.too_few {
            return None;
        }
        let wanted = entry.nodes as usize;
        let own = first.map(|first| (first, self.engines[first as usize].host));
        let others = self.hosts_of_class(class).into_iter();
        let others = others.filter(|(_, host)| own.is_none_or(|(_, own)| own != *host));
        let free = own.into_iter().chain(others);
        let free = free.filter(|(_, host)| self.is_free_for(*host, class));
        let slots: Vec<u32> = free.map(|(slot, _)| slot).take(wanted).collect();
        if slots.len() < wanted {
            self.pools.classes[class as usize].too_few = true;
            return None;
        }
        Some(slots)
    }

    /// There are as many hosts as tasks of the class ask for, whoever has them.
    pub(super) fn has_enough_hosts(&self, class: u32) -> bool {
        self.count_hosts(class) >= self.pools.classes[class as usize].nodes as usize
    }

    /// How many hosts there are that tasks of the class could hold.
    pub(super) fn count_hosts(&self, class: u32) -> usize {
        let counted = &self.pools.classes[class as usize].hosts;
        let count = counted
            .get()
            .unwrap_or_else(|| self.hosts_of_class(class).len());
        counted.set(Some(count));
        count
    }

    /// An engine has come, or is about to go.
    pub(super) fn recount_hosts(&mut self) {
        for &class in &self.whole.classes {
            self.pools.classes[class as usize].hosts.set(None);
        }
    }

    /// Hosts that are kept for the class are fewer than it asks for.
    pub(super) fn lacks_hosts(&self, class: u32) -> bool {
        self.whole.kept.len() < self.pools.classes[class as usize].nodes as usize
    }

    /// The task that the engine is given next holds its hosts, if it asks for whole ones.
    pub(super) fn take_hosts(&mut self, slot: u32, class: u32) -> Vec<EngineKey> {
        if self.pools.classes[class as usize].nodes == 0 {
            return Vec::new();
        }
        let slots = self.whole_hosts(class, Some(slot));
        debug_assert!(slots.is_some(), "it is given out where hosts are free");
        let slots = slots.unwrap_or_else(|| vec![slot]);
        for &each in &slots {
            let host = self.engines[each as usize].host;
            self.hosts.slab[host as usize].held_by = slot;
            self.engines[slot as usize].whole.push(host);
            self.host_changed(host);
        }
        let keys = slots.iter().map(|&slot| self.engines[slot as usize].key());
        keys.collect()
    }

    /// The engine's task held these hosts before a restart.
    pub(super) fn hold_again(&mut self, slot: u32, keys: Vec<Box<str>>) {
        for key in keys {
            let host = self.hosts.named(&key);
            if self.hosts.slab[host as usize].held_by == NONE {
                self.hosts.slab[host as usize].held_by = slot;
                self.engines[slot as usize].whole.push(host);
            }
        }
    }

    /// The engine's task does not hold its hosts any more.
    pub(super) fn let_hosts_go(&mut self, slot: u32) {
        for host in std::mem::take(&mut self.engines[slot as usize].whole) {
            if self.hosts.let_go(host) {
                self.host_changed(host);
                self.host_freed(host);
            }
        }
    }

    /// A host may have come free: whoever waits for whole ones looks again.
    pub(super) fn host_freed(&mut self, host: u32) {
        if self.whole.classes.is_empty() || !self.hosts.get(host).is_some_and(|h| h.is_free()) {
            return;
        }
        self.look_for_hosts();
    }

    fn look_for_hosts(&mut self) {
        for &class in &self.whole.classes {
            let entry = &mut self.pools.classes[class as usize];
            entry.too_few = false;
            if entry.queue.len > 0 {
                self.fresh.push_back(class);
            }
        }
    }

    /// An engine has joined its host.
    pub(super) fn whole_joined(&mut self, slot: u32) {
        let host = self.engines[slot as usize].host;
        if self.hosts.get(host).is_some_and(|h| h.kept_whole > 0) {
            self.engines[slot as usize].kept_for = self.whole.kept_for;
        }
        self.recount_hosts();
        self.look_for_hosts();
    }

    /// Keeps as many hosts as are still lacking for the class for which hosts are kept: those first that come free soonest.
    pub(super) fn keep_hosts(&mut self) {
        let class = self.whole.kept_for;
        if class == NONE || !self.lacks_hosts(class) {
            return;
        }
        let wanted = self.pools.classes[class as usize].nodes as usize;
        let all = self.hosts_of_class(class);
        if all.len() < wanted {
            return self.stop_keeping_hosts();
        }
        let mut hosts: Vec<u32> = all.into_iter().map(|(_, host)| host).collect();
        hosts.retain(|&host| {
            let entry = &self.hosts.slab[host as usize];
            entry.kept_whole == 0 && entry.reservation.is_none()
        });
        hosts.sort_by_key(|&host| {
            let entry = &self.hosts.slab[host as usize];
            (entry.held_by != NONE, entry.plain + entry.held)
        });
        hosts.truncate(wanted - self.whole.kept.len());
        for &host in &hosts {
            self.uses += 1;
            self.hosts.slab[host as usize].kept_whole = self.uses;
            for slot in self.hosts.slab[host as usize].engines.clone() {
                self.engines[slot as usize].kept_for = class;
            }
            self.host_changed(host);
            self.refresh_host(host, false);
        }
        self.whole.kept.extend(hosts);
        self.pools.classes[class as usize].too_few = false;
        self.fresh.push_back(class);
    }

    /// No host is kept as a whole any more.
    pub(super) fn stop_keeping_hosts(&mut self) {
        self.whole.kept_for = NONE;
        for host in std::mem::take(&mut self.whole.kept) {
            self.stop_keeping_host(host);
        }
        self.look_for_hosts();
    }

    fn stop_keeping_host(&mut self, host: u32) {
        let Some(entry) = self.hosts.slab.get_mut(host as usize) else {
            return;
        };
        entry.kept_whole = 0;
        for slot in entry.engines.clone() {
            self.engines[slot as usize].kept_for = NONE;
        }
        self.host_changed(host);
        self.refresh_host(host, true);
    }

    /// The engine is not kept any more; nor is its host, if nobody else there may take what it is kept for.
    pub(super) fn stop_keeping_engine(&mut self, slot: u32) {
        self.engines[slot as usize].kept_for = NONE;
        let (host, class) = (self.engines[slot as usize].host, self.whole.kept_for);
        if !self
            .hosts_of_class(class)
            .iter()
            .any(|(s, h)| *h == host && *s != slot)
        {
            self.whole.kept.retain(|&kept| kept != host);
            self.stop_keeping_host(host);
        }
    }

    /// The host has lost an engine; if it was the last one, whoever holds the host is stopped.
    pub(super) fn host_lost(&mut self, host: u32) {
        let entry = &self.hosts.slab[host as usize];
        let slot = entry.held_by;
        if !entry.engines.is_empty() || slot == NONE {
            return;
        }
        for holding in self.holdings(slot) {
            let index = holding.group;
            let (group, range) = match holding.chunk {
                None if self.groups[index].stage != Stage::Flying => continue,
                None => {
                    self.groups[index].set(HOST_LOST, true);
                    let member = self.groups[index].index();
                    let group = self.groups[index].parent().unwrap_or(index);
                    (group, member..member + 1)
                }
                Some((lo, hi)) => {
                    let Some(array) = self.groups[index].array_mut() else {
                        continue;
                    };
                    if array.done.contains(lo) {
                        continue;
                    }
                    array.host_lost.insert(lo, hi);
                    (index, lo..hi)
                }
            };
            self.actions.push_back(Action::Stop {
                engine: self.engines[slot as usize].key(),
                group: self.groups.key(group),
                range,
            });
        }
    }
}
