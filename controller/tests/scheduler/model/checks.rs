//! Whether what the core does is right.

use super::*;

impl World {
    pub(super) fn act(&mut self, action: Action) -> Check {
        match action {
            Action::Dispatch {
                group,
                range,
                engine,
                attempt,
                grant,
                alternative,
                nodes,
            } => {
                let n = self
                    .nodes
                    .iter()
                    .position(|n| n.key == engine)
                    .ok_or("a dispatch to nobody")?;
                let t = self.task(group)?;
                ensure!(!range.is_empty(), "an empty dispatch");
                for m in range {
                    let had = grant.as_deref().map(|grant| (grant, alternative));
                    self.check_dispatch(t, m, n, attempt, had, &nodes)?;
                }
                Ok(())
            }
            Action::Fail {
                group,
                range,
                kind,
                text,
                ..
            } => {
                let t = self.task(group)?;
                ensure!(!text.is_empty(), "a failure without words");
                for m in range {
                    self.check_failure(t, m as usize, kind)?;
                }
                Ok(())
            }
            Action::Requeue {
                group,
                range,
                retries,
            } => {
                let t = self.task(group)?;
                for m in range {
                    let member = &self.tasks[t].members[m as usize];
                    ensure!(
                        member.at == At::Waiting && member.retries == retries,
                        "{}:{m} waits again with {retries} retries, not {}",
                        self.tasks[t].id,
                        member.retries
                    );
                }
                Ok(())
            }
            Action::Recall { engine, items } => {
                let n = self
                    .nodes
                    .iter()
                    .position(|n| n.key == engine)
                    .ok_or("a recall from nobody")?;
                ensure!(
                    !items.is_empty() && self.hwm == Hwm::Auto,
                    "a recall of nothing, or without auto"
                );
                for (group, range) in items {
                    let t = self.task(group)?;
                    for m in range {
                        ensure!(
                            self.nodes[n].holds.contains(&(t, m)),
                            "{}:{m} is recalled from e{n}",
                            self.tasks[t].id
                        );
                    }
                }
                Ok(())
            }
            Action::Stop {
                engine,
                group,
                range,
            } => {
                let n = self
                    .nodes
                    .iter()
                    .position(|n| n.key == engine)
                    .ok_or("a stop at nobody")?;
                let t = self.task(group)?;
                for m in range {
                    let member = &mut self.tasks[t].members[m as usize];
                    let lost = member.host_lost.as_mut().map(|told| *told = true);
                    ensure!(
                        member.at == At::On(n) && (member.killed || lost.is_some()),
                        "{}:{m} is stopped",
                        self.tasks[t].id
                    );
                }
                Ok(())
            }
            Action::Release { group } => {
                let t = self.task(group)?;
                let task = &mut self.tasks[t];
                ensure!(!task.released, "{} is released twice", task.id);
                let open = task
                    .members
                    .iter()
                    .filter(|m| !matches!(m.at, At::Done(..)))
                    .count();
                ensure!(open == 0, "{} is released with {open} open", task.id);
                task.released = true;
                Ok(())
            }
            Action::LookupOutcome { id } => {
                Err(format!("{id} is asked for long after it was named"))
            }
        }
    }

    pub(super) fn task(&self, key: GroupKey) -> Result<usize, String> {
        self.tasks
            .iter()
            .rposition(|t| t.key == key)
            .ok_or_else(|| "an action for an unknown group".to_owned())
    }

    pub(super) fn check_dispatch(
        &mut self,
        t: usize,
        m: u32,
        n: usize,
        attempt: u32,
        had: Option<(&Grant, Option<u32>)>,
        nodes: &[EngineKey],
    ) -> Check {
        let id = format!("{}:{m}", self.tasks[t].id);
        let member = &self.tasks[t].members[m as usize];
        ensure!(
            member.at == At::Waiting,
            "{id} is given to e{n} while it is {:?}",
            member.at
        );
        ensure!(
            !member.aborted && member.owed.is_none(),
            "{id} is given out although aborted"
        );
        ensure!(
            self.may_run(t, m as usize, n),
            "{id} is given to e{n}, where it may not run"
        );
        ensure!(
            !self.nodes[n].leaving,
            "{id} is given to e{n}, which is leaving"
        );
        if let Hwm::Fixed(most) = self.hwm {
            ensure!(
                self.nodes[n].holds.len() < most as usize,
                "e{n} is given more than {most}"
            );
        }
        self.check_resources(t, m as usize, n, &id, had)?;
        let whole = self.check_nodes(t, m as usize, n, nodes)?;
        let host = &self.nodes[n].host;
        // A host may have been kept for whom it is given to within this event.
        let orderly = !self.kept.contains_key(host) && !self.keeps(host) && nodes.is_empty();
        let since = self.tasks[t].members[m as usize].since;
        let mine = (
            self.tasks[t].client,
            self.tasks[t].priority,
            self.tasks[t].runnable.unwrap_or(self.event),
        );
        for (other, task) in self.tasks.iter().enumerate() {
            if other == t || task.client != mine.0 || task.prefer || self.tasks[t].prefer {
                continue;
            }
            let earlier = task.priority > mine.1
                || (task.priority == mine.1 && task.runnable.is_some_and(|event| event < mine.2));
            if earlier && self.hwm != Hwm::Auto && orderly {
                for (o, member) in task.members.iter().enumerate() {
                    ensure!(
                        member.at != At::Waiting
                            || member.owed.is_some()
                            // Of delays that end in one tick, any may end first.
                            || (member.delay > 0 && member.since >= since)
                            || task.runnable.is_none()
                            || !self.may_run(other, o, n)
                            || !self.free_for(other, o, n),
                        "{id} is given to e{n} before {}:{o}",
                        task.id
                    );
                }
            }
        }
        let now_runnable = self.event;
        let task = &mut self.tasks[t];
        task.runnable.get_or_insert(now_runnable);
        let member = &mut task.members[m as usize];
        ensure!(
            member.attempts.insert((n, attempt)),
            "{id} is given to e{n} again as attempt {attempt}"
        );
        member.at = At::On(n);
        member.host_lost = None;
        if self.nodes[n].holds.is_empty() {
            self.nodes[n].begun = self.event;
        }
        self.nodes[n].grant = had.map(|(grant, _)| grant.clone());
        self.nodes[n].whole = whole;
        self.nodes[n].holds.push((t, m));
        Ok(())
    }

    /// Whole hosts are free, as many as were asked for, each with an engine that may take the task.
    fn check_nodes(
        &self,
        t: usize,
        m: usize,
        n: usize,
        nodes: &[EngineKey],
    ) -> Result<BTreeSet<String>, String> {
        let (task, mut hosts) = (&self.tasks[t], BTreeSet::new());
        ensure!(
            self.nodes[n].whole.is_empty(),
            "{} is put behind one that holds hosts",
            task.id
        );
        ensure!(
            nodes.len() == task.nodes && (nodes.is_empty() || nodes[0] == self.nodes[n].key),
            "{} asks for {} hosts and has {nodes:?}",
            task.id,
            task.nodes
        );
        for key in nodes {
            let at = self.nodes.iter().position(|n| n.key == *key);
            let at = at.ok_or("it holds the host of nobody")?;
            let node = &self.nodes[at];
            ensure!(
                self.suits(t, m, at) && !node.leaving && self.host_free(&node.host),
                "{} holds {}, which is not free",
                task.id,
                node.host
            );
            ensure!(
                hosts.insert(node.host.clone()),
                "{} holds {} twice",
                task.id,
                node.host
            );
        }
        Ok(hosts)
    }

    /// Never over a pool, no name twice, and what asks for something alone on its engine.
    fn check_resources(
        &self,
        t: usize,
        m: usize,
        n: usize,
        id: &str,
        had: Option<(&Grant, Option<u32>)>,
    ) -> Check {
        let (task, node) = (&self.tasks[t], &self.nodes[n]);
        ensure!(
            node.grant.is_none(),
            "{id} is given to e{n}, whose task asked for resources"
        );
        ensure!(
            task.requests.is_empty() != had.is_some(),
            "{id} asks for {:?} and is granted {had:?}",
            task.requests
        );
        ensure!(
            task.nodes > 0 || self.free_for(t, m, n),
            "{id} asks for {:?}, which e{n} does not have free",
            task.requests
        );
        let Some((grant, alternative)) = had else {
            return Ok(());
        };
        ensure!(
            node.holds.is_empty(),
            "{id} asks for resources and is put behind another"
        );
        ensure!(
            alternative.is_some() == (task.requests.len() > 1),
            "{id} is told of alternative {alternative:?}"
        );
        let alternatives = self.asks(t);
        let nth = alternative.unwrap_or(0) as usize;
        for (before, better) in alternatives[..nth].iter().enumerate() {
            let free = (0..self.nodes.len()).find(|&n| {
                let node = &self.nodes[n];
                node.alive
                    && !node.leaving
                    && node.holds.is_empty()
                    && !task.prefer
                    && self.may_run(t, m, n)
                    && self.fits(&node.host, better)
                    && !self.kept.contains_key(&node.host)
                    && !self.keeps(&node.host)
            });
            ensure!(
                free.is_none() || self.kept.contains_key(&node.host) || self.keeps(&node.host),
                "{id} is granted alternative {nth}, but e{free:?} has alternative {before}"
            );
        }
        let asked = &alternatives[nth];
        for granted in grant {
            let amount = asked.iter().find(|(name, _)| *name == granted.name);
            ensure!(
                amount.is_some_and(|(_, amount)| *amount == granted.amount),
                "{id} asks for {asked:?} and is granted {granted:?}"
            );
            let mut seen = BTreeSet::new();
            let twice = granted.names.iter().find(|name| !seen.insert(*name));
            ensure!(twice.is_none(), "{id} is granted {twice:?} twice");
            if *granted.name != *"gpus" {
                continue;
            }
            ensure!(
                granted.names.iter().len() as u64 * 1000 == granted.amount,
                "{id} is granted {granted:?}"
            );
            for other in self.on_host(&node.host).filter_map(|o| o.grant.as_ref()) {
                let same = other
                    .iter()
                    .filter(|g| g.name == granted.name)
                    .flat_map(|g| g.names.iter())
                    .find(|name| granted.names.iter().any(|n| n == *name));
                ensure!(same.is_none(), "{id} is granted {same:?}, which is taken");
            }
        }
        ensure!(
            asked.len() == grant.len(),
            "{id} asks for {asked:?} and is granted {grant:?}"
        );
        Ok(())
    }

    /// What the core says of hosts is what follows from what engines hold; what it keeps is not given away.
    fn check_hosts(&mut self) -> Check {
        let hosts = self.core.hosts();
        for state in &hosts {
            ensure!(
                state.held_by.is_some() == self.held(&state.key),
                "{} is held by {:?}",
                state.key,
                state.held_by
            );
        }
        let mut kept = BTreeMap::new();
        for state in &hosts {
            let host = &*state.key;
            for (name, total, used, free) in &state.stocks {
                ensure!(
                    (*total, *used) == (self.total(host, name), self.used(host, name)),
                    "{host} has {} of {} {name} in use, but it counts {used} of {total}",
                    self.used(host, name),
                    self.total(host, name)
                );
                ensure!(
                    free.is_empty() || free.len() as u64 * 1000 + used == *total,
                    "{host} has {used} of {total} {name} in use, and {free:?} are free"
                );
            }
            let Some(now) = &state.kept else { continue };
            let totals: Vec<u64> = now
                .request
                .iter()
                .map(|(name, _)| self.total(host, name))
                .collect();
            let keeping = match self.kept.remove(host) {
                // Of a host that is kept as a whole what it has grows with its engines.
                Some(before) if before.kept.serial == now.serial => Keeping {
                    kept: now.clone(),
                    ..before
                },
                _ => {
                    self.keepings += 1;
                    Keeping {
                        kept: now.clone(),
                        event: self.event,
                        totals: totals.clone(),
                    }
                }
            };
            let n = self
                .nodes
                .iter()
                .position(|n| n.key == now.engine)
                .ok_or("nobody is kept")?;
            ensure!(
                self.nodes[n].alive
                    && !self.nodes[n].leaving
                    && self.nodes[n].begun <= keeping.event,
                "e{n} is kept, and has been given something else"
            );
            for (at, (name, amount)) in now.request.iter().enumerate() {
                let newcomers = self.newcomers(host, name, keeping.event + 1);
                ensure!(
                    newcomers == 0
                        || totals[at] < keeping.totals[at]
                        || newcomers + amount <= totals[at],
                    "{host} keeps {amount} of {} {name}, and {newcomers} were given away since",
                    totals[at]
                );
            }
            // What was promised while there was more may be more than there is.
            let most = totals.iter().zip(&keeping.totals);
            let totals = most.map(|(now, before)| *now.max(before)).collect();
            kept.insert(host.to_owned(), Keeping { totals, ..keeping });
        }
        self.kept = kept;
        Ok(())
    }

    pub(super) fn check_failure(&mut self, t: usize, m: usize, kind: FailKind) -> Check {
        let id = format!("{}:{m}", self.tasks[t].id);
        let task = &self.tasks[t];
        let member = &task.members[m];
        let legal = match kind {
            FailKind::ImpossibleDependency => member.at == At::Waiting && !self.possible(t, m),
            FailKind::InvalidDependency => member.at == At::Waiting && task.invalid,
            FailKind::TaskTimeout => member.at == At::Waiting && self.overdue(t, m),
            FailKind::EngineError => member.owed == Some(kind),
            FailKind::TaskAborted => member.owed == Some(kind) || self.abort_overdue(t, m),
            FailKind::NoEngine => false,
            FailKind::MissingInput => member.at == At::Waiting && self.bereft(t, m),
        };
        ensure!(
            legal,
            "{id} fails with {kind:?} while it is {:?}, owed {:?}",
            member.at,
            member.owed
        );
        let place = match member.at {
            At::On(n) => Some(n),
            _ => None,
        };
        let unstarted = member.unstarted;
        let member = &mut self.tasks[t].members[m];
        member.owed = None;
        // Where it ran counts for what follows it; what was taken back unstarted ran nowhere.
        member.at = At::Done(false, if unstarted { None } else { place });
        self.finals += 1;
        Ok(())
    }

    pub(super) fn overdue(&self, t: usize, m: usize) -> bool {
        let task = &self.tasks[t];
        let own = task.members[m].apart || task.members.len() == 1;
        let since = if own {
            task.members[m].since
        } else {
            task.since
        };
        task.timeout > 0 && self.now >= since + task.timeout
    }

    pub(super) fn abort_overdue(&self, t: usize, m: usize) -> bool {
        let task = &self.tasks[t];
        let member = &task.members[m];
        let key = if task.members.len() > 1 && !member.apart {
            usize::MAX
        } else {
            m
        };
        matches!(member.at, At::On(_))
            && member.killed
            && task.abort_at.get(&key).is_some_and(|at| self.now >= *at)
    }

    pub(super) fn after_event(&mut self) -> Check {
        while let Some(action) = self.core.poll() {
            self.act(action)?;
        }
        self.check_hosts()?;
        let event = self.event;
        for t in 0..self.tasks.len() {
            if self.tasks[t].released {
                continue;
            }
            let runnable = self.runnable(t);
            let task = &mut self.tasks[t];
            if runnable && task.members.iter().any(|m| m.at == At::Waiting) {
                task.runnable.get_or_insert(event);
            }
            let task = &self.tasks[t];
            let mut seen = HashSet::new();
            for (m, member) in task.members.iter().enumerate() {
                ensure!(
                    member.host_lost != Some(false),
                    "{}:{m} has lost a host and is not stopped",
                    task.id
                );
                ensure!(
                    member.owed.is_none(),
                    "{}:{m} ought to have failed with {:?}",
                    task.id,
                    member.owed
                );
                ensure!(
                    !self.abort_overdue(t, m),
                    "{}:{m} ought to have been answered as aborted",
                    task.id
                );
                if member.at != At::Waiting
                    || !seen.insert((member.apart, member.refused.clone(), member.since))
                {
                    continue;
                }
                ensure!(
                    !task.invalid,
                    "{}:{m} depends on what is invalid and still waits",
                    task.id
                );
                ensure!(
                    self.possible(t, m),
                    "{}:{m} is impossible and still waits",
                    task.id
                );
                ensure!(
                    !self.overdue(t, m),
                    "{}:{m} has timed out and still waits",
                    task.id
                );
                if task.prefer {
                    continue;
                }
                // What a host has may have shrunk without a word.
                ensure!(
                    !task.requests.is_empty() || !self.bereft(t, m),
                    "{}:{m} waits for an engine to bring its inputs",
                    task.id
                );
                for n in 0..self.nodes.len() {
                    ensure!(
                        !(self.nodes[n].alive
                            && self.has_room(n)
                            && self.may_run(t, m, n)
                            && self.free_for(t, m, n)
                            && !self.kept_from(t, n)),
                        "{}:{m} waits although e{n} has room",
                        task.id
                    );
                }
            }
        }
        let totals = self.core.totals(None);
        let held: usize = self.nodes.iter().map(|n| n.holds.len()).sum();
        ensure!(
            totals.running <= held as u64,
            "{held} are held, but it counts {totals:?}"
        );
        for node in self.nodes.iter().filter(|n| n.alive) {
            let counted = self.core.engine_totals(node.key).outstanding;
            ensure!(
                counted == node.holds.len() as u64,
                "{} holds {}, not {counted}",
                node.uuid,
                node.holds.len()
            );
        }
        Ok(())
    }
}
