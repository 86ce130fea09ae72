//! What happens, to the core and to the model.

use super::*;

/// What hosts have: four cpus or fewer, and no two the same.
fn host_spec(host: &str) -> HostSpec {
    let (cores, gpus, lic): (u32, &[&str], u64) = match host {
        "h0" => (4, &["a", "b"], 1500),
        "h1" => (2, &["0"], 0),
        _ => (1, &[], 700),
    };
    HostSpec {
        key: host.into(),
        cores: (0..cores).map(|core| 2 * core).collect(),
        sums: vec![("lic".into(), lic)],
        lists: vec![("gpus".into(), gpus.iter().map(|g| (*g).into()).collect())],
    }
}

impl World {
    pub(super) fn join(&mut self, [a, b, ..]: [u16; 4]) -> Check {
        if self.nodes.iter().filter(|n| n.alive).count() >= 4 {
            return Ok(());
        }
        let mut caps = vec!["run"];
        if a % 4 != 0 {
            caps.push("array");
        }
        if a / 4 % 2 == 0 {
            caps.push("gpu");
        }
        let tags: Vec<String> = (0..3)
            .filter(|i| (b >> i) % 2 == 1)
            .map(|i| format!("t{i}"))
            .collect();
        let stays = (a / 8 % 3 == 0).then(|| Nanos::from(1 + b / 32 % 8) * 10 * MS);
        self.add_node(&format!("h{}", b / 8 % 3), &tags, &caps, stays)
    }

    /// An engine that can run anything plain.
    pub(crate) fn join_simple(&mut self) -> Check {
        self.join_host("h0")
    }

    /// The same on this host.
    pub(crate) fn join_host(&mut self, host: &str) -> Check {
        self.event += 1;
        self.events += 1;
        self.add_node(host, &[], &CAPS, None)?;
        self.after_event()
    }

    pub(super) fn add_node(
        &mut self,
        host: &str,
        tags: &[String],
        caps: &[&'static str],
        stays: Option<Nanos>,
    ) -> Check {
        let uuid = format!("e{}", self.joined);
        self.joined += 1;
        let host_spec = host_spec(host);
        let capabilities: Vec<String> = caps.iter().map(|c| c.to_string()).collect();
        let key = self.core.engine_joined(
            self.now,
            &EngineSpec {
                uuid: &uuid,
                id: self.joined as u32 - 1,
                hosts: &[host.to_owned()],
                tags,
                capabilities: &capabilities,
                can_give_back: self.joined.is_multiple_of(2),
                host: Some(&host_spec),
                stays,
            },
        );
        self.nodes.push(Node {
            uuid,
            key,
            alive: true,
            leaving: false,
            dismissed: false,
            caps: caps.iter().copied().collect(),
            host: host.to_owned(),
            tags: tags.to_vec(),
            ends: stays.map_or(Nanos::MAX, |stays| self.now + stays),
            holds: Vec::new(),
            grant: None,
            whole: BTreeSet::new(),
            begun: 0,
        });
        Ok(())
    }

    /// Engines that hold something.
    pub(crate) fn busy(&self) -> Vec<usize> {
        (0..self.nodes.len())
            .filter(|&n| self.nodes[n].alive && !self.nodes[n].holds.is_empty())
            .collect()
    }

    /// Engines that are registered.
    pub(crate) fn alive(&self) -> Vec<usize> {
        (0..self.nodes.len())
            .filter(|&n| self.nodes[n].alive)
            .collect()
    }

    /// The engine answers for the first thing it holds.
    pub(crate) fn reply_first(&mut self, node: usize, outcome: Outcome) -> Check {
        self.event += 1;
        self.events += 1;
        let (task, member) = self.nodes[node].holds[0];
        self.reply_with(node, task, member, member + 1, outcome, vec![])?;
        self.after_event()
    }

    pub(super) fn reply(&mut self, [a, b, c, d]: [u16; 4]) -> Check {
        self.now += Nanos::from(d % 3) * MS / 2;
        self.core.tick(self.now);
        while let Some(action) = self.core.poll() {
            self.act(action)?;
        }
        let busy = self.busy();
        let Some(&node) = busy.get(a as usize % busy.len().max(1)) else {
            return Ok(());
        };
        let holds = &self.nodes[node].holds;
        let (task, lo) = holds[b as usize % holds.len()];
        let mut hi = lo + 1;
        // An array may be answered in larger parts, even in parts that the engine does not hold.
        let count = self.tasks[task].members.len() as u32;
        hi = (hi + u32::from(d % 4)).min(count);
        let outcome = |x: u16| match x % 11 {
            0..=5 => Outcome::Ok,
            6..=8 => Outcome::Error,
            9 => Outcome::Unmet,
            _ => Outcome::Aborted,
        };
        let mut exceptions = Vec::new();
        for m in lo..hi {
            if (c >> (4 + m % 8)) % 3 == 0 {
                exceptions.push((m, outcome(c.wrapping_mul(31).wrapping_add(m as u16))));
            }
        }
        self.reply_with(node, task, lo, hi, outcome(c), exceptions)
    }

    pub(super) fn reply_with(
        &mut self,
        node: usize,
        task: usize,
        lo: u32,
        hi: u32,
        default: Outcome,
        exceptions: Vec<(u32, Outcome)>,
    ) -> Check {
        let single = self.tasks[task].members.len() == 1;
        let unmet = default == Outcome::Unmet && exceptions.is_empty();
        let lacks_input = single && unmet && self.event.is_multiple_of(2);
        if lacks_input {
            self.core.lacks_input(self.tasks[task].key);
        }
        let deliver = self.core.replied(
            self.now,
            self.nodes[node].key,
            self.tasks[task].key,
            &Report {
                range: lo..hi,
                outcome: default,
                exceptions: &exceptions,
                run: MS / 2 * u64::from(hi - lo),
            },
        );
        let mut expected = BTreeSet::new();
        for m in lo..hi {
            let Some(at) = self.nodes[node].holds.iter().position(|h| *h == (task, m)) else {
                continue;
            };
            self.nodes[node].holds.remove(at);
            self.rest(node);
            if self.tasks[task].members[m as usize].at != At::On(node) {
                continue;
            }
            let outcome = exceptions
                .iter()
                .find(|(i, _)| *i == m)
                .map_or(default, |(_, o)| *o);
            let may_return = self.tasks[task].may_return;
            let array = self.tasks[task].members.len() > 1;
            let (now, dismissed) = (self.now, self.nodes[node].dismissed);
            let member = &mut self.tasks[task].members[m as usize];
            if member.host_lost.take().is_some() && outcome != Outcome::Ok {
                self.crashed(task, m);
                continue;
            }
            let done = match outcome {
                Outcome::Ok => Some(true),
                Outcome::Aborted => Some(false),
                Outcome::Error if member.killed => {
                    member.owed = Some(FailKind::TaskAborted);
                    None
                }
                Outcome::Error if dismissed && !member.aborted && member.is_retryable() => {
                    member.at = At::Waiting;
                    member.apart = array;
                    member.since = now;
                    None
                }
                Outcome::Error if member.aborted || member.retries == 0 => Some(false),
                Outcome::Unmet if member.aborted => {
                    member.owed = Some(FailKind::TaskAborted);
                    member.unstarted = true;
                    None
                }
                Outcome::Error | Outcome::Unmet => {
                    let mut waits = 0;
                    if outcome == Outcome::Error {
                        member.retries -= 1;
                        waits = member.delay;
                        member.delay = (2 * member.delay).min(RETRY_DELAY_MOST);
                    }
                    if outcome == Outcome::Unmet || !may_return {
                        member.refused.insert(node);
                    }
                    member.lacks_input |= lacks_input;
                    member.at = At::Waiting;
                    member.apart = array;
                    member.since = now + waits;
                    let m = m as usize;
                    let hopeless = !self.has_engines(task, m) || self.refused_by_all(task, m);
                    if outcome == Outcome::Error && hopeless {
                        Some(false)
                    } else {
                        None
                    }
                }
            };
            if let Some(ok) = done {
                expected.insert(m);
                self.tasks[task].members[m as usize].at = At::Done(ok, Some(node));
                self.finals += 1;
            }
        }
        let delivered: BTreeSet<u32> = match deliver {
            Deliver::All => (lo..hi).collect(),
            Deliver::Nothing => BTreeSet::new(),
            Deliver::Some(ranges) => ranges.into_iter().flatten().collect(),
        };
        ensure!(
            delivered == expected,
            "of the reply for {}:{lo}..{hi} {delivered:?} are delivered, not {expected:?}",
            self.tasks[task].id
        );
        Ok(())
    }

    pub(super) fn give_back(&mut self, [a, b, c, _]: [u16; 4]) -> Check {
        let busy = self.busy();
        let Some(&node) = busy.get(a as usize % busy.len().max(1)) else {
            return Ok(());
        };
        let holds = &self.nodes[node].holds;
        let (task, lo) = holds[b as usize % holds.len()];
        let hi = (lo + 1 + u32::from(c % 3)).min(self.tasks[task].members.len() as u32);
        self.core
            .given_back(self.now, self.nodes[node].key, self.tasks[task].key, lo..hi);
        for m in lo..hi {
            let Some(at) = self.nodes[node].holds.iter().position(|h| *h == (task, m)) else {
                continue;
            };
            self.nodes[node].holds.remove(at);
            self.rest(node);
            self.waits_again(task, m, node);
        }
        Ok(())
    }

    /// An engine that holds nothing has nothing of its host.
    fn rest(&mut self, node: usize) {
        if self.nodes[node].holds.is_empty() {
            self.nodes[node].grant = None;
            self.nodes[node].whole.clear();
        }
    }

    /// A member that was not started waits again.
    pub(super) fn waits_again(&mut self, task: usize, m: u32, node: usize) {
        let now = self.now;
        let own_entry = self.tasks[task]
            .members
            .iter()
            .any(|m| m.at == At::Waiting && !m.apart);
        let member = &mut self.tasks[task].members[m as usize];
        if member.at != At::On(node) {
            return;
        }
        if member.aborted {
            member.owed = Some(FailKind::TaskAborted);
            member.unstarted = true;
            return;
        }
        member.at = At::Waiting;
        member.since = now;
        let apart = member.apart;
        if !apart && !own_entry {
            self.tasks[task].since = now;
        }
    }

    pub(super) fn leaving(&mut self, [a, ..]: [u16; 4]) -> Check {
        let alive = self.alive();
        if let Some(&node) = alive.get(a as usize % alive.len().max(1)) {
            self.core.engine_leaving(self.now, self.nodes[node].key);
            self.nodes[node].leaving = true;
        }
        Ok(())
    }

    pub(super) fn dismiss(&mut self, [a, ..]: [u16; 4]) -> Check {
        let alive = self.alive();
        if let Some(&node) = alive.get(a as usize % alive.len().max(1)) {
            self.core.engine_dismissed(self.now, self.nodes[node].key);
            (self.nodes[node].leaving, self.nodes[node].dismissed) = (true, true);
        }
        Ok(())
    }

    pub(super) fn leave(&mut self, [a, b, c, _]: [u16; 4]) -> Check {
        let alive = self.alive();
        let Some(&node) = alive.get(a as usize % alive.len().max(1)) else {
            return Ok(());
        };
        let holds = self.nodes[node].holds.clone();
        let started: Option<Vec<(usize, u32)>> = (b % 2 == 0).then(|| {
            holds
                .iter()
                .enumerate()
                .filter(|(i, _)| (c >> (i % 8)) % 2 == 0)
                .map(|(_, h)| *h)
                .collect()
        });
        self.lose(node, started)
    }

    /// The engine leaves; it had started these (`None`: nobody knows).
    pub(crate) fn leave_simple(&mut self, node: usize, all_started: bool) -> Check {
        self.event += 1;
        self.events += 1;
        let started = if all_started { None } else { Some(vec![]) };
        self.lose(node, started)?;
        self.after_event()
    }

    pub(super) fn lose(&mut self, node: usize, started: Option<Vec<(usize, u32)>>) -> Check {
        let ids: Option<Vec<String>> = started.as_ref().map(|list| {
            list.iter()
                .map(|&(t, m)| {
                    let task = &self.tasks[t];
                    if task.members.len() > 1 {
                        format!("{}:{m}", task.id)
                    } else {
                        task.id.clone()
                    }
                })
                .collect()
        });
        self.core
            .engine_left(self.now, self.nodes[node].key, ids.as_deref(), "it crashed");
        self.nodes[node].alive = false;
        let holds = std::mem::take(&mut self.nodes[node].holds);
        self.rest(node);
        for &(t, m) in &holds {
            if started.as_ref().is_some_and(|s| !s.contains(&(t, m))) {
                self.waits_again(t, m, node);
            }
        }
        for (t, m) in holds {
            let member = &mut self.tasks[t].members[m as usize];
            member.host_lost = None;
            if member.at == At::On(node) && member.owed.is_none() {
                self.crashed(t, m);
            }
        }
        // Who holds a host without engines is stopped.
        let host = self.nodes[node].host.clone();
        if self.on_host(&host).next().is_none() {
            let holder = self
                .nodes
                .iter()
                .find(|n| n.alive && n.whole.contains(&host));
            for (t, m) in holder.map_or(Vec::new(), |n| n.holds.clone()) {
                let member = &mut self.tasks[t].members[m as usize];
                if matches!(member.at, At::On(_)) {
                    member.host_lost = Some(false);
                }
            }
        }
        Ok(())
    }

    /// Its engine is gone, or a host that it held.
    fn crashed(&mut self, t: usize, m: u32) {
        let array = self.tasks[t].members.len() > 1;
        let now = self.now;
        let member = &mut self.tasks[t].members[m as usize];
        let dismissed = matches!(member.at, At::On(node) if self.nodes[node].dismissed);
        if member.killed {
            member.owed = Some(FailKind::TaskAborted);
        } else if member.aborted || !member.is_retryable() {
            member.owed = Some(FailKind::EngineError);
        } else {
            match &mut member.crashes {
                _ if dismissed => {}
                Some(crashes) => *crashes -= 1,
                None => member.retries -= 1,
            }
            member.at = At::Waiting;
            member.apart = array;
            member.since = now;
        }
    }

    pub(super) fn abort(&mut self, [a, b, c, _]: [u16; 4]) -> Check {
        let kill = a % 2 == 0;
        let mut chosen: Vec<(usize, u32)> = Vec::new();
        let everything = |w: &World, t: usize| {
            (0..w.tasks[t].members.len() as u32)
                .map(move |m| (t, m))
                .collect::<Vec<_>>()
        };
        match b % 16 {
            0 => {
                chosen = (0..self.tasks.len())
                    .flat_map(|t| everything(self, t))
                    .collect();
                self.core.abort(self.now, &Selector::All, kill);
            }
            1 => {
                let client = c as usize % 3;
                let of = (0..self.tasks.len()).filter(|&t| self.tasks[t].client == client);
                chosen = of.flat_map(|t| everything(self, t)).collect();
                let what = Selector::Client {
                    client: CLIENTS[client],
                    keep_detached: false,
                };
                self.core.abort(self.now, &what, kill);
            }
            _ if self.tasks.is_empty() => {}
            _ => {
                let back = c as usize % 8 % self.tasks.len();
                let t = self.tasks.len() - 1 - back;
                let members = self.tasks[t].members.len();
                let id = if members > 1 && b % 3 == 0 {
                    let m = c as usize / 8 % members;
                    chosen.push((t, m as u32));
                    format!("{}:{m}", self.tasks[t].id)
                } else {
                    chosen = everything(self, t);
                    self.tasks[t].id.clone()
                };
                self.core.abort(self.now, &Selector::Ids(&[id]), kill);
            }
        }
        for (t, m) in chosen {
            let now = self.now;
            let task = &mut self.tasks[t];
            let array = task.members.len() > 1;
            let member = &mut task.members[m as usize];
            match member.at {
                At::Waiting => {
                    member.aborted = true;
                    member.owed = Some(FailKind::TaskAborted);
                }
                At::On(_) => {
                    member.aborted = true;
                    if kill {
                        member.killed = true;
                        // The members of a chunk share their deadline, which a later abort sets anew.
                        let key = if array && !member.apart {
                            usize::MAX
                        } else {
                            m as usize
                        };
                        task.abort_at.insert(key, now + self.abort_limit);
                    }
                }
                At::Done(..) => {}
            }
        }
        Ok(())
    }

    pub(super) fn answer(&mut self, [a, ..]: [u16; 4]) -> Check {
        let Some(id) = self
            .asked
            .iter()
            .nth(a as usize % self.asked.len().max(1))
            .cloned()
        else {
            return Ok(());
        };
        self.answer_id(&id)
    }

    pub(super) fn answer_id(&mut self, id: &str) -> Check {
        self.asked.remove(id);
        match self.truth(id) {
            Some(Some((ok, engines))) => {
                let uuids: Vec<String> = engines
                    .iter()
                    .map(|&n| self.nodes[n].uuid.clone())
                    .collect();
                self.core.outcome_known(
                    self.now,
                    id,
                    Some(Known {
                        ok,
                        engines: &uuids,
                    }),
                );
            }
            Some(None) => return Err(format!("it asked for {id}, which is still live")),
            None => {
                self.core.outcome_known(self.now, id, None);
                for task in &mut self.tasks {
                    if task.asked.contains(id) {
                        task.invalid = true;
                    }
                }
            }
        }
        for task in &mut self.tasks {
            task.asked.remove(id);
        }
        Ok(())
    }
}
