//! Submissions.

use super::*;

/// What tasks ask for: some more than any host has.
const REQUESTS: [&[(&str, u64)]; 8] = [
    &[("cpus", 2000)],
    &[("cpus", 4000)],
    &[("cpus", 500)],
    &[("gpus", 1000)],
    &[("cpus", 2000), ("gpus", 2000)],
    &[("lic", 700)],
    &[("cpus", 3000), ("lic", 500)],
    &[("cpus", 64000)],
];

fn request_of(amounts: &[(&str, u64)]) -> Request {
    amounts.iter().map(|(n, x)| ((*n).into(), *x)).collect()
}

impl World {
    pub(super) fn submit(&mut self, [a, b, c, d]: [u16; 4]) -> Check {
        let number = self.tasks.len();
        let id = format!("t{number}");
        let bits = |x: u16, shift: u32, modulo: u16| (x >> shift) % modulo;
        let count = if bits(b, 0, 5) == 0 {
            2 + u32::from(bits(b, 3, 6))
        } else {
            1
        };
        let retries = [0, 0, 1, 3][bits(b, 6, 4) as usize];
        let crashes = [None, None, Some(0), Some(2)][bits(a, 4, 4) as usize];
        let delay = [0, 0, 4 * MS, 20 * MS][bits(a, 6, 4) as usize];
        let mut needs: BTreeSet<&'static str> = BTreeSet::from(["run"]);
        if count > 1 {
            needs.insert("array");
        }
        if bits(b, 9, 9) == 0 {
            needs.insert("gpu");
        }
        let names = |prefix: &str, x: u16, modulo: u16| vec![format!("{prefix}{}", x % modulo)];
        let (mut targets, mut hosts, mut tags, mut prefer) = (vec![], vec![], vec![], vec![]);
        match bits(c, 0, 9) {
            4 => {
                targets = (0..8)
                    .filter(|i| bits(c, 4 + i, 2) == 1)
                    .map(|i| self.uuid_near(i as usize))
                    .collect()
            }
            5 => hosts = names("h", c >> 4, 3),
            6 => tags = names("t", c >> 4, 3),
            7 => prefer = names("h", c >> 4, 3),
            _ => {}
        }
        let timeout = if bits(c, 12, 5) == 0 { 15 * MS } else { 0 };
        let time = [0, 0, 0, 20 * MS, 50 * MS][bits(a, 13, 5) as usize];
        let (mut after, mut follow) = (None, None);
        let kind = bits(d, 0, 7);
        if kind >= 4 {
            let dep = |w: &World, seed: u16| w.dependency(number, seed);
            if kind != 5 {
                after = Some(dep(self, d >> 3));
            }
            if kind >= 5 {
                follow = Some(dep(self, (d >> 3).rotate_left(5) ^ a));
            }
        }
        let request = if bits(a, 11, 3) == 0 {
            REQUESTS[usize::from(bits(d, 5, 8))]
        } else {
            &[]
        };
        let mut requests: Vec<Request> = Vec::new();
        if !request.is_empty() {
            requests.push(request_of(request));
            if bits(d, 8, 3) == 0 {
                requests.push(request_of(REQUESTS[usize::from(bits(a, 3, 8))]));
            }
        }
        let anywhere = targets.is_empty() && hosts.is_empty() && prefer.is_empty();
        let nodes = match bits(d, 9, 5) {
            0 if requests.is_empty() && anywhere && follow.is_none() => 1 + bits(c, 7, 3),
            _ => 0,
        };
        let priority = i32::from(bits(a, 2, 3)) - 1;
        let may_return = bits(a, 5, 2) == 1;
        let client = bits(a, 7, 3) as usize;
        self.submit_task(
            Task {
                id,
                key: GroupKey::default(),
                client,
                priority,
                needs,
                targets,
                hosts,
                tags,
                requests,
                nodes: nodes.into(),
                prefer: !prefer.is_empty(),
                after,
                follow,
                timeout,
                time,
                may_return,
                invalid: false,
                members: vec![
                    Member {
                        at: At::Waiting,
                        refused: BTreeSet::new(),
                        lacks_input: false,
                        retries,
                        crashes,
                        delay,
                        aborted: false,
                        killed: false,
                        host_lost: None,
                        owed: None,
                        unstarted: false,
                        apart: false,
                        since: self.now,
                        attempts: BTreeSet::new(),
                    };
                    count as usize
                ],
                asked: BTreeSet::new(),
                since: self.now,
                runnable: None,
                abort_at: BTreeMap::new(),
                released: false,
            },
            &prefer,
            bits(a, 9, 2) == 1,
        )
    }

    /// A plain task for the exhaustive check.
    pub(crate) fn submit_simple(
        &mut self,
        after: Option<Dependency>,
        follow: Option<Dependency>,
        retries: u32,
        may_return: bool,
        requests: &[&[(&str, u64)]],
        nodes: usize,
    ) -> Check {
        self.event += 1;
        self.events += 1;
        let member = Member {
            at: At::Waiting,
            refused: BTreeSet::new(),
            lacks_input: false,
            retries,
            crashes: None,
            delay: 0,
            aborted: false,
            killed: false,
            host_lost: None,
            owed: None,
            unstarted: false,
            apart: false,
            since: self.now,
            attempts: BTreeSet::new(),
        };
        let task = Task {
            id: format!("t{}", self.tasks.len()),
            key: GroupKey::default(),
            client: 0,
            priority: 0,
            needs: BTreeSet::from(["run"]),
            targets: vec![],
            hosts: vec![],
            tags: vec![],
            requests: requests.iter().map(|r| request_of(r)).collect(),
            nodes,
            prefer: false,
            after,
            follow,
            timeout: 0,
            time: 0,
            may_return,
            invalid: false,
            members: vec![member],
            asked: BTreeSet::new(),
            since: self.now,
            runnable: None,
            abort_at: BTreeMap::new(),
            released: false,
        };
        self.submit_task(task, &[], false)?;
        self.after_event()
    }

    pub(super) fn submit_task(&mut self, mut task: Task, prefer: &[String], detach: bool) -> Check {
        let number = self.tasks.len();
        let known = |id: &str, w: &World| -> bool {
            let base = id.split(':').next().unwrap_or(id);
            match w.tasks.iter().find(|t| t.id == base) {
                None => false,
                Some(t) => match id.split_once(':') {
                    None => true,
                    Some((_, m)) => {
                        t.members.len() > 1 && m.parse::<usize>().is_ok_and(|m| m < t.members.len())
                    }
                },
            }
        };
        let ids: Vec<String> = task
            .after
            .iter()
            .chain(&task.follow)
            .flat_map(|d| d.ids.clone())
            .collect();
        let own = ids.iter().any(|i| i.split(':').next() == Some(&task.id));
        task.invalid = own || (!self.lookups && ids.iter().any(|i| !known(i, self)));
        let needs: Vec<&str> = task.needs.iter().copied().collect();
        let (after, follow) = (task.after.clone(), task.follow.clone());
        let spec = GroupSpec {
            msg_id: &task.id.clone(),
            client: CLIENTS[task.client],
            count: task.members.len() as u32,
            needs: self.core.needs(&needs),
            targets: &task.targets.clone(),
            hosts: &task.hosts.clone(),
            tags: &task.tags.clone(),
            requests: &task.requests.clone(),
            nodes: task.nodes as u32,
            prefer,
            prefer_wait: 5 * MS,
            priority: task.priority,
            after: after.as_ref(),
            follow: follow.as_ref(),
            timeout: task.timeout,
            time: task.time,
            retries: task.members[0].retries,
            retry_delay: task.members[0].delay,
            crashes: task.members[0].crashes,
            may_return: task.may_return,
            detach,
            bytes: 10 * task.members.len() as u64,
            ..GroupSpec::default()
        };
        let known_wrong = self.lookups
            && ids.iter().any(|i| {
                // A member that a live array does not have is known to be wrong, even with a store.
                i.split_once(':').is_some() && !known(i, self)
            });
        let key = self
            .core
            .submit(self.now, &spec)
            .map_err(|e| e.to_string())?;
        ensure!(
            self.core.submit(self.now, &spec).is_err(),
            "a duplicate is accepted"
        );
        task.key = key;
        if known_wrong {
            // It may know that at once or ask the store: look at what it does.
            task.invalid = task.invalid || self.core.state(&task.id) == TaskState::Failed;
        }
        // Which ids it asks the store for only it knows, as only it knows what it has forgotten.
        self.tasks.push(task);
        let mut asked_now = Vec::new();
        let mut actions = Vec::new();
        while let Some(action) = self.core.poll() {
            if let Action::LookupOutcome { id } = &action {
                ensure!(self.lookups, "there is no store to ask for {id}");
                ensure!(self.asked.insert(id.to_string()), "{id} is asked for twice");
                asked_now.push(id.to_string());
            } else {
                actions.push(action);
            }
        }
        if !self.tasks[number].invalid {
            self.tasks[number].asked = ids
                .iter()
                .filter(|i| self.asked.contains(*i))
                .cloned()
                .collect();
        }
        for action in actions {
            self.act(action)?;
        }
        Ok(())
    }

    pub(super) fn uuid_near(&self, i: usize) -> String {
        // The last few engines, and the next two.
        format!("e{}", (self.joined + 2).saturating_sub(8) + i)
    }

    pub(super) fn dependency(&self, number: usize, seed: u16) -> Dependency {
        let mode = seed % 12;
        let (success, failure) =
            [(true, false), (true, false), (true, true), (false, true)][(mode / 3) as usize];
        let mut ids = Vec::new();
        let mut x = u32::from(seed).wrapping_mul(2_654_435_761);
        for _ in 0..1 + (x >> 28) % 3 {
            x = x.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            let roll = (x >> 8) % 64;
            let back = 1 + (x >> 20) as usize % 6;
            if roll == 0 {
                ids.push("nobody".to_owned());
            } else if roll == 1 {
                ids.push(format!("t{number}"));
            } else if let Some(on) = number.checked_sub(back) {
                let members = self.tasks[on].members.len();
                if members > 1 && roll % 3 == 0 {
                    ids.push(format!(
                        "t{on}:{}",
                        (x >> 14) as usize % (members + usize::from(roll == 9))
                    ));
                } else {
                    ids.push(format!("t{on}"));
                }
            }
        }
        Dependency {
            ids,
            all: !mode.is_multiple_of(3),
            success,
            failure,
        }
    }
}
