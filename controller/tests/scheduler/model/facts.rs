//! What follows from the facts, computed anew each time.

use super::*;

impl World {
    /// The outcome of an id: unknown, not yet there, or how and where.
    pub(super) fn truth(&self, id: &str) -> Option<Option<(bool, BTreeSet<usize>)>> {
        let (base, member) = match id.split_once(':') {
            Some((base, m)) => (base, Some(m.parse::<usize>().ok()?)),
            None => (id, None),
        };
        let task = self.tasks.iter().find(|t| t.id == base)?;
        let range = match member {
            Some(m) if task.members.len() > 1 && m < task.members.len() => m..m + 1,
            Some(_) => return None,
            None => 0..task.members.len(),
        };
        let (mut ok, mut engines) = (true, BTreeSet::new());
        for member in &task.members[range] {
            let At::Done(well, place) = member.at else {
                return Some(None);
            };
            ok &= well;
            engines.extend(place);
        }
        Some(Some((ok, engines)))
    }

    /// It has members that failed: it cannot succeed any more.
    pub(super) fn doomed(&self, id: &str) -> bool {
        let task = self.tasks.iter().find(|t| t.id == id);
        task.is_some_and(|t| {
            t.members.len() > 1 && t.members.iter().any(|m| matches!(m.at, At::Done(false, _)))
        })
    }

    pub(super) fn outcome(&self, t: usize, id: &str) -> Option<(bool, BTreeSet<usize>)> {
        if self.tasks[t].asked.contains(id) {
            return None;
        }
        self.truth(id).flatten()
    }

    pub(super) fn deps(&self, t: usize) -> (DepState, Place) {
        let task = &self.tasks[t];
        let after = task.after.as_ref().map_or(DepState::Met, |dep| {
            let (mut good, mut bad, mut pending) = (0, 0, 0);
            for id in &dep.ids {
                match self.outcome(t, id) {
                    Some((ok, _)) if (ok && dep.success) || (!ok && dep.failure) => good += 1,
                    Some(_) => bad += 1,
                    None if !task.asked.contains(id) && self.doomed(id) && !dep.failure => bad += 1,
                    None => pending += 1,
                }
            }
            resolve(dep, good, bad, pending)
        });
        let Some(dep) = task.follow.as_ref().filter(|d| !d.ids.is_empty()) else {
            return (
                after,
                Place {
                    state: DepState::Met,
                    known: None,
                    open: true,
                },
            );
        };
        let (mut good, mut bad, mut pending) = (0, 0, 0);
        let mut known: BTreeSet<usize> = BTreeSet::new();
        for id in &dep.ids {
            match self.outcome(t, id) {
                Some((ok, places)) if (ok && dep.success) || (!ok && dep.failure) => {
                    let alive: Vec<usize> = places
                        .iter()
                        .copied()
                        .filter(|&n| self.nodes[n].alive)
                        .collect();
                    if dep.all {
                        if places.len() == 1
                            && alive.len() == 1
                            && (known.is_empty() || known.contains(&alive[0]))
                        {
                            known.insert(alive[0]);
                            good += 1;
                        } else {
                            bad += 1;
                        }
                    } else if alive.is_empty() {
                        bad += 1;
                    } else {
                        known.extend(alive);
                        good += 1;
                    }
                }
                Some(_) => bad += 1,
                None if !task.asked.contains(id) && self.doomed(id) && !dep.failure => bad += 1,
                None => pending += 1,
            }
        }
        let state = resolve(dep, good, bad, pending);
        let known = (!known.is_empty()).then_some(known);
        (
            after,
            Place {
                state,
                known,
                open: !dep.all && pending > 0,
            },
        )
    }

    /// The engine is of the kind the member asks for, and has not refused it.
    pub(super) fn suits(&self, t: usize, m: usize, n: usize) -> bool {
        self.matches(t, n) && !self.tasks[t].members[m].refused.contains(&n)
    }

    /// Every engine of the kind that it asks for has refused the member, or has not what it needs, and it may wait for ever for
    /// another.
    pub(super) fn refused_by_all(&self, t: usize, m: usize) -> bool {
        let refused = &self.tasks[t].members[m].refused;
        let never = |n| self.tasks[t].nodes == 0 && !self.could(t, m, n);
        let mut fit = (0..self.nodes.len())
            .filter(|&n| self.matches(t, n))
            .peekable();
        self.tasks[t].timeout == 0
            && fit.peek().is_some()
            && !refused.is_empty()
            && fit.all(|n| refused.contains(&n) || never(n))
    }

    /// The engine is of the kind the task asks for.
    fn matches(&self, t: usize, n: usize) -> bool {
        let (task, node) = (&self.tasks[t], &self.nodes[n]);
        node.alive
            && task.needs.is_subset(&node.caps)
            && (task.targets.is_empty() || task.targets.contains(&node.uuid))
            && (task.hosts.is_empty() || task.hosts.contains(&node.host))
            && task.tags.iter().all(|tag| node.tags.contains(tag))
            && task.time <= node.ends.saturating_sub(self.now)
    }

    /// Some engine that is there or may come can take it, as far as names go.
    pub(super) fn has_engines(&self, t: usize, m: usize) -> bool {
        let task = &self.tasks[t];
        if task.invalid {
            return false;
        }
        let base = task.targets.is_empty()
            || task.targets.iter().any(|uuid| {
                match self.nodes.iter().position(|n| n.uuid == *uuid) {
                    Some(n) => self.suits(t, m, n),
                    None => true,
                }
            });
        let place = self.deps(t).1;
        base && (place.open
            || place
                .known
                .is_none_or(|known| known.iter().any(|&n| self.suits(t, m, n))))
    }

    /// Its inputs are on no engine that is there and could take it.
    pub(super) fn bereft(&self, t: usize, m: usize) -> bool {
        let able = |n| self.suits(t, m, n) && (self.tasks[t].nodes > 0 || self.could(t, m, n));
        self.tasks[t].members[m].lacks_input && !(0..self.nodes.len()).any(able)
    }

    pub(super) fn possible(&self, t: usize, m: usize) -> bool {
        let (after, place) = self.deps(t);
        !matches!(after, DepState::Impossible)
            && !matches!(place.state, DepState::Impossible)
            && self.has_engines(t, m)
    }

    /// It may run on this engine now, if that has room.
    pub(super) fn may_run(&self, t: usize, m: usize, n: usize) -> bool {
        let (after, place) = self.deps(t);
        matches!(after, DepState::Met)
            && matches!(place.state, DepState::Met)
            && self.tasks[t].members[m].since <= self.now
            && place.known.is_none_or(|known| known.contains(&n))
            && self.suits(t, m, n)
    }

    /// It may run somewhere, as far as dependencies go, and follows to an engine that is what it asks for.
    pub(super) fn runnable(&self, t: usize) -> bool {
        let (after, place) = self.deps(t);
        let members = 0..self.tasks[t].members.len();
        matches!(after, DepState::Met)
            && matches!(place.state, DepState::Met)
            && place.known.is_none_or(|known| {
                known
                    .iter()
                    .any(|&n| members.clone().any(|m| self.suits(t, m, n)))
            })
    }

    pub(super) fn on_host(&self, host: &str) -> impl Iterator<Item = &Node> {
        self.nodes.iter().filter(move |n| n.alive && n.host == host)
    }

    /// What a task takes of its host: one of these, in order of preference.
    pub(super) fn asks(&self, t: usize) -> Vec<Request> {
        let mut requests = self.tasks[t].requests.clone();
        if requests.is_empty() {
            requests.push(Request::new());
        }
        for request in &mut requests {
            if !request.iter().any(|(name, _)| **name == *"cpus") {
                request.push(("cpus".into(), 1000));
            }
            request.sort();
        }
        requests
    }

    /// Nothing runs there, and nobody holds it.
    pub(super) fn host_free(&self, host: &str) -> bool {
        self.on_host(host).all(|n| n.holds.is_empty()) && !self.held(host)
    }

    /// A task holds it as a whole.
    pub(super) fn held(&self, host: &str) -> bool {
        self.nodes.iter().any(|n| n.alive && n.whole.contains(host))
    }

    /// Hosts with an engine that may take the member.
    pub(super) fn hosts_for(&self, t: usize, m: usize) -> BTreeSet<&str> {
        let may = |n: &usize| !self.nodes[*n].leaving && self.suits(t, m, *n);
        let engines = (0..self.nodes.len()).filter(may);
        engines.map(|n| &*self.nodes[n].host).collect()
    }

    /// There are as many free hosts as the member asks for, the engine's among them, and nothing is kept there.
    fn free_hosts(&self, t: usize, m: usize, n: usize) -> bool {
        let free =
            |host: &str| self.host_free(host) && !self.kept.contains_key(host) && !self.keeps(host);
        let hosts = self.hosts_for(t, m);
        free(&self.nodes[n].host)
            && hosts.iter().filter(|host| free(host)).count() >= self.tasks[t].nodes
    }

    pub(super) fn total(&self, host: &str, name: &str) -> u64 {
        if self.on_host(host).next().is_none() {
            return 0;
        }
        let engines = self.on_host(host).count() as u64;
        match (host, name) {
            ("h0", "cpus") => 4000.max(1000 * engines),
            ("h1", "cpus") => 2000.max(1000 * engines),
            (_, "cpus") => 1000 * engines,
            ("h0", "gpus") => 2000,
            ("h1", "gpus") => 1000,
            ("h0", "lic") => 1500,
            ("h2", "lic") => 700,
            _ => 0,
        }
    }

    fn takes(&self, node: &Node, name: &str) -> u64 {
        match &node.grant {
            Some(grant) => grant
                .iter()
                .filter(|g| *g.name == *name)
                .map(|g| g.amount)
                .sum(),
            None if name == "cpus" && !node.holds.is_empty() => 1000,
            None => 0,
        }
    }

    pub(super) fn used(&self, host: &str, name: &str) -> u64 {
        if self.held(host) {
            return self.total(host, name);
        }
        self.on_host(host).map(|n| self.takes(n, name)).sum()
    }

    /// What engines of the host have that was given to them from this event on.
    pub(super) fn newcomers(&self, host: &str, name: &str, event: usize) -> u64 {
        self.on_host(host)
            .filter(|n| !n.holds.is_empty() && n.begun >= event)
            .map(|n| self.takes(n, name))
            .sum()
    }

    /// The host has all that, whoever holds it.
    pub(super) fn could(&self, t: usize, m: usize, n: usize) -> bool {
        if self.tasks[t].nodes > 0 {
            return self.hosts_for(t, m).len() >= self.tasks[t].nodes;
        }
        let host = &self.nodes[n].host;
        let has = |request: &Request| {
            let all = |(name, amount): &(Name, u64)| *amount <= self.total(host, name);
            request.iter().all(all)
        };
        self.asks(t).iter().any(has)
    }

    /// The host has all that free.
    pub(super) fn fits(&self, host: &str, request: &Request) -> bool {
        request
            .iter()
            .all(|(name, amount)| self.used(host, name) + amount <= self.total(host, name))
    }

    /// The engine's host has free what the task asks for, and so has the engine.
    pub(super) fn free_for(&self, t: usize, m: usize, n: usize) -> bool {
        let node = &self.nodes[n];
        if self.tasks[t].nodes > 0 {
            return self.free_hosts(t, m, n);
        }
        let fits = || self.asks(t).iter().any(|r| self.fits(&node.host, r));
        match self.tasks[t].requests.is_empty() {
            _ if node.grant.is_some() => false,
            true if !node.holds.is_empty() => true,
            true => fits(),
            false => node.holds.is_empty() && fits(),
        }
    }

    /// Something is kept on the host.
    pub(super) fn keeps(&self, host: &str) -> bool {
        let hosts = self.core.hosts();
        hosts.iter().any(|h| *h.key == *host && h.kept.is_some())
    }

    /// Because of what is kept for another the engine may not take the task.
    pub(super) fn kept_from(&self, t: usize, n: usize) -> bool {
        let node = &self.nodes[n];
        if self.tasks[t].nodes > 0 {
            return false;
        }
        let Some(Keeping { kept, event, .. }) = self.kept.get(&node.host) else {
            return false;
        };
        // What it has still been given in the same event is before or after.
        let beside = |(name, amount): &(Name, u64)| {
            let asked = kept.request.iter().find(|(n, _)| n == name);
            asked.is_none_or(|(_, asked)| {
                let newcomers = self.newcomers(&node.host, name, *event);
                newcomers + asked + amount <= self.total(&node.host, name)
            })
        };
        kept.engine == node.key
            || (!node.holds.is_empty() && node.begun <= *event)
            || !self
                .asks(t)
                .iter()
                .any(|r| self.fits(&node.host, r) && r.iter().all(beside))
    }

    pub(super) fn has_room(&self, n: usize) -> bool {
        let held = self.nodes[n].holds.len();
        if self.nodes[n].leaving || self.nodes[n].grant.is_some() || !self.nodes[n].whole.is_empty()
        {
            return false;
        }
        match self.hwm {
            Hwm::Fixed(most) => held < most as usize,
            Hwm::Unlimited => true,
            Hwm::Auto => held == 0,
        }
    }
}
