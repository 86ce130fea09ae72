//! Why a task is where it is, in words.

use ipbroker_protocol::resources::{self, Amount};

use super::Core;
use super::group::{Dep, Stage};
use super::id::{NONE, split_member};
use super::past::Found;
use super::types::{EngineKey, Explanation, Nanos, Request, SECOND, Span, TaskState};

/// Names listed in an explanation.
const NAMES: usize = 4;
/// Engines listed in an explanation.
const ENGINES: usize = 1000;
/// Reasons given for all that a client waits for.
const REASONS: usize = 16;

impl Core {
    /// Why a task is where it is.
    pub fn explain(&self, now: Nanos, id: &str) -> Explanation {
        let state = self.state(id);
        let plain = |text: String| Explanation {
            state,
            text,
            engines: Vec::new(),
        };
        let (index, member) = self.group_of(id);
        match state {
            TaskState::Unknown => return plain(format!("{id} is not known to the scheduler.")),
            TaskState::Ok => return plain(format!("{id} ended well.")),
            TaskState::Failed => return plain(format!("{id} failed or was aborted.")),
            TaskState::Blocked | TaskState::Waiting | TaskState::Running => {}
        }
        if index == NONE {
            return plain(format!("{id} is not known to the scheduler."));
        }
        let group = &self.groups[index];
        let mut text = String::new();
        let mut subject = index;
        if let Some(array) = group.array() {
            match member {
                None => {
                    let on_engines = array.flights.iter().map(|(lo, f)| f.hi - lo).sum::<u32>();
                    text = format!(
                        "Of its {} tasks {} are done, {} on engines, {} wait",
                        group.count,
                        array.done.len(),
                        on_engines,
                        array.waiting.len() + array.children.len() as u32
                    );
                    if array.waiting.is_empty() {
                        return plain(text + ".");
                    }
                    text += ". ";
                }
                Some(member) => {
                    if let Some(&child) = array.children.get(&member) {
                        subject = child;
                    } else if let Some((_, _, _, flight)) =
                        self.flights(index, member, member + 1).first()
                    {
                        let engine = self.engines[flight.engine as usize].describe();
                        return plain(format!(
                            "{engine} has had it for {}.{}",
                            seconds(now, flight.since),
                            self.alternative_words(group.class, flight.engine)
                        ));
                    }
                }
            }
        }
        let group = &self.groups[subject];
        if group.stage == Stage::Flying {
            let engine = &self.engines[group.engine as usize];
            let what = engine.describe();
            if !engine.live {
                let wait = seconds(engine.absent_at, now);
                text += &format!(
                    "{what} had it before the controller restarted; it is awaited for another {wait}."
                );
            } else if engine.head == subject || engine.load == 1 {
                text += &format!("{what} has had it for {}.", seconds(now, group.since));
                text += &self.alternative_words(group.class, group.engine);
            } else {
                text += &format!("{what} has it, after other tasks that it was given before.");
            }
            return plain(text);
        }
        text += &self.why_waiting(now, subject);
        Explanation {
            state,
            text,
            engines: self.obstacles(now, subject),
        }
    }

    /// The group of a task, an array, or a member of one.
    fn group_of(&self, id: &str) -> (u32, Option<u32>) {
        let whole = self.ids.find(self.hasher.id(id.as_bytes()), &self.groups);
        match (whole, split_member(id)) {
            (Some(Found::Live(index)), _) => (index, None),
            (None, Some((base, member))) => {
                match self.ids.find(self.hasher.id(base.as_bytes()), &self.groups) {
                    Some(Found::Live(index)) => (index, Some(member)),
                    _ => (NONE, None),
                }
            }
            _ => (NONE, None),
        }
    }

    /// The engine that a task, or a member of an array, was given to and has not answered.
    pub fn engine_of(&self, id: &str) -> Option<EngineKey> {
        let (index, member) = self.group_of(id);
        if index == NONE {
            return None;
        }
        let group = &self.groups[index];
        let slot = match (group.array(), member) {
            (Some(array), Some(member)) => match array.children.get(&member) {
                Some(&child) => self.groups[child].engine,
                None => self.flights(index, member, member + 1).first()?.3.engine,
            },
            _ => group.engine,
        };
        let engine = self.engines.get(slot as usize)?;
        engine.live.then(|| engine.key())
    }

    fn why_waiting(&self, now: Nanos, index: u32) -> String {
        let group = &self.groups[index];
        let extra = group.extra.as_deref();
        if group.stage == Stage::Blocked {
            let mut parts = Vec::new();
            if let Some(extra) = extra
                && extra.retry_at > 0
            {
                let wait = seconds(extra.retry_at, now);
                parts.push(format!("It failed, and is tried again in {wait}."));
            }
            for (dep, verb) in [
                (extra.and_then(|e| e.after.as_deref()), "after"),
                (extra.and_then(|e| e.follow.as_deref()), "where"),
            ] {
                if let Some(dep) = dep
                    && (if dep.all {
                        dep.pending > 0
                    } else {
                        dep.good == 0
                    })
                {
                    parts.push(self.pending_text(dep, verb));
                }
            }
            if parts.is_empty() {
                return "It waits for the tasks that it depends on.".to_owned();
            }
            return parts.join(" ");
        }
        let class = group.class;
        if let Some(extra) = extra
            && extra.prefer_at > now
        {
            let names = self.constraints(class).prefer.join(", ");
            let wait = seconds(extra.prefer_at, now);
            return format!(
                "It prefers {names}, which is busy; in {wait} it goes to any engine that can take it."
            );
        }
        let entry = &self.pools.classes[class as usize];
        if self.nowhere_enough(class).is_some() {
            return self.nobody_can(index);
        }
        if let Some(host) = self.hosts.get(entry.kept_on)
            && let Some(kept) = &host.reservation
        {
            let engine = &self.engines[kept.engine as usize];
            return format!(
                "{} is kept for it, or for one like it, until its host has {} free.",
                engine.describe(),
                request_words(&kept.request)
            );
        }
        let able = self.able(class);
        if able == 0 {
            return self.nobody_can(index);
        }
        let ahead = self.pools.classes[class as usize]
            .queue
            .len
            .saturating_sub(1);
        let others = match ahead {
            0 => String::new(),
            1 => "; 1 other waits for the same".to_owned(),
            _ => format!("; {ahead} others wait for the same"),
        };
        if entry.nodes > 0 {
            let kept: Vec<String> = (self.whole.kept.iter())
                .filter(|_| self.whole.kept_for == class)
                .filter_map(|&host| self.hosts.get(host)?.engines.first().copied())
                .map(|slot| self.engines[slot as usize].describe())
                .collect();
            let hosts = match entry.nodes {
                1 => "a whole host is free".to_owned(),
                nodes => format!("{nodes} whole hosts are free at once"),
            };
            return match kept.is_empty() {
                true => format!("It waits until {hosts}{others}."),
                false => format!(
                    "It waits until {hosts}{others}; the hosts of {} are kept for it, or for one like it.",
                    kept.join(", ")
                ),
            };
        }
        if entry.asks {
            return format!(
                "It waits for an engine on a host with {} free{others}.",
                self.asked_words(class)
            );
        }
        match able {
            1 => format!("The one engine that can take it is busy{others}."),
            _ => format!("All {able} engines that can take it are busy{others}."),
        }
    }

    /// Engines that may take tasks of the class and have not refused.
    fn able(&self, class: u32) -> usize {
        let refused = &self.pools.classes[class as usize].refused;
        let slots = self.pool_engines(class).iter();
        slots
            .filter(|&&slot| !refused.contains(&self.engines[slot as usize].key()))
            .count()
    }

    /// Why no engine that is here can take a group, whatever becomes free.
    fn nobody_can(&self, index: u32) -> String {
        let group = &self.groups[index];
        let class = group.class;
        if let Some(text) = self.nowhere_enough(class) {
            return text;
        }
        if self.live.is_empty() {
            return match self.might_run(class) {
                true => "No engine is registered.".to_owned(),
                // A cluster that grows does not ask for more of them for it.
                false => self.nowhere(class) + " None that was here could have run it.",
            };
        }
        let mut text = self.nowhere(class);
        let refused = self.pools.classes[class as usize].refused.len();
        if refused > 0 {
            text += &format!(" It failed or lacked what it requires on {refused} of them.");
        }
        text + " It runs as soon as one registers that can."
    }

    /// What tasks of a client wait for that no engine has which is here: for each reason the first of them and how many.
    /// As long as there is no engine at all, whatever comes may have it.
    pub fn unschedulable(&self, client: &[u8]) -> Vec<(Span, u64, String)> {
        let mut found: Vec<(Span, u64, String)> = Vec::new();
        let Some(&client) = self.client_index.get(client) else {
            return found;
        };
        for &lane in &self.clients[client as usize].lanes {
            let lane = &self.lanes[lane as usize];
            let class = lane.class;
            if lane.len == 0
                || self.live.is_empty() && self.might_run(class)
                || !self.constraints(class).prefer.is_empty()
                || self.able(class) > 0 && self.nowhere_enough(class).is_none()
            {
                continue;
            }
            let groups = self.members_of_class(class).into_iter();
            let groups = groups.map(|index| (index, &self.groups[index]));
            let waiting =
                groups.filter(|(_, group)| group.client == client && group.stage == Stage::Queued);
            let tasks = waiting.clone().map(|(_, group)| u64::from(group.waiting()));
            let tasks: u64 = tasks.sum();
            let Some((index, group)) = waiting.min_by_key(|(_, group)| group.seq) else {
                continue;
            };
            let text = self.nobody_can(index);
            if let Some((_, count, _)) = found.iter_mut().find(|(.., known)| *known == text) {
                *count += tasks;
                continue;
            }
            let first = group.array().and_then(|array| array.waiting.iter().next());
            let first = first.map_or(group.index(), |(lo, _)| lo);
            let span = Span {
                group: self.groups.key(group.parent().unwrap_or(index)),
                range: first..first + 1,
            };
            found.push((span, tasks, text));
            if found.len() == REASONS {
                break;
            }
        }
        found
    }

    fn pending_text(&self, dep: &Dep, verb: &str) -> String {
        let open: Vec<&str> = dep
            .ids
            .iter()
            .map(|id| &**id)
            .filter(|id| {
                matches!(
                    self.state(id),
                    TaskState::Blocked
                        | TaskState::Waiting
                        | TaskState::Running
                        | TaskState::Unknown
                )
            })
            .take(NAMES)
            .collect();
        let more = (dep.pending as usize).saturating_sub(open.len());
        let names = open.join(", ")
            + &if more > 0 {
                format!(" and {more} more")
            } else {
                String::new()
            };
        let how = match (dep.success, dep.failure) {
            (true, false) => "well",
            (false, true) => "badly",
            _ => "",
        };
        let quantity = if dep.all { "all" } else { "one" };
        let end = format!("{quantity} of {} tasks to end {how}", dep.ids.len());
        let end = end.trim_end();
        match verb {
            "where" => {
                format!("It runs where they ran, so it waits for {end}; still to come: {names}.")
            }
            _ => format!("It waits for {end}; still to come: {names}."),
        }
    }

    /// Why each registered engine does not take it now.
    fn obstacles(&self, now: Nanos, index: u32) -> Vec<(EngineKey, String)> {
        let class = self.groups[index].class;
        let constraints = self.constraints(class);
        let refused = &self.pools.classes[class as usize].refused;
        let mut found = Vec::new();
        for &slot in self.live.iter().take(ENGINES) {
            let engine = &self.engines[slot as usize];
            let has =
                |list: &[Box<str>], name: &str| list.iter().any(|n| n.eq_ignore_ascii_case(name));
            let missing = constraints.needs & !engine.needs;
            let (any, retry) = engine.room();
            let reason = if missing != 0 {
                format!(
                    "cannot run this kind of task ({})",
                    self.capability_names(missing)
                )
            } else if constraints
                .targets
                .as_ref()
                .is_some_and(|t| t.iter().all(|(u, _)| *u != engine.uuid))
            {
                "is not one of the engines it is restricted to".to_owned()
            } else if !constraints.hosts.is_empty()
                && !constraints.hosts.iter().any(|h| has(&engine.hosts, h))
            {
                format!("is not on {}", constraints.hosts.join(" or "))
            } else if let Some(tag) = constraints.tags.iter().find(|t| !engine.tags.contains(t)) {
                format!("lacks the tag {tag}")
            } else if constraints.time > engine.ends.saturating_sub(now) {
                format!("has to go in {}", minutes(engine.ends.saturating_sub(now)))
            } else if refused.contains(&engine.key()) {
                "it failed there or lacked what it requires".to_owned()
            } else if !constraints.prefer.is_empty() && !constraints.matches(engine, now) {
                "is not preferred".to_owned()
            } else if engine.leaving {
                "is leaving".to_owned()
            } else if let Some(text) = self.lacks(slot, class) {
                text
            } else if (constraints.request.is_some() || constraints.nodes > 0) && engine.load > 0 {
                engine.busy_with()
            } else if !engine.whole.is_empty() {
                "is busy with a task that holds whole hosts".to_owned()
            } else if constraints.request.is_none() && engine.grant.is_some() {
                "is busy with a task that asked for resources".to_owned()
            } else if engine.kept_for != NONE {
                "is kept for a task that has waited longer".to_owned()
            } else if constraints.request.is_none()
                && engine.load == 0
                && self.hosts.of(engine).is_some_and(|host| !host.open)
            {
                "has no cpu free".to_owned()
            } else if !(if constraints.retryable { retry } else { any }) {
                engine.busy_with()
            } else {
                continue;
            };
            found.push((engine.key(), reason));
        }
        found
    }

    fn capability_names(&self, mask: u64) -> String {
        let names = self
            .capabilities
            .iter()
            .enumerate()
            .filter(|(bit, _)| mask & (1 << bit) != 0);
        names
            .map(|(_, name)| &**name)
            .collect::<Vec<_>>()
            .join(", ")
    }

    /// That no registered engine has what the class asks.
    pub(super) fn nowhere(&self, class: u32) -> String {
        let constraints = self.constraints(class);
        if let Some(text) = self.nowhere_enough(class) {
            return text;
        }
        let mut asks = Vec::new();
        let needs = constraints.needs;
        let can = |&s: &u32| self.engines[s as usize].needs & needs == needs;
        if !self.live.iter().any(can) {
            asks.push(format!(
                "can run {}",
                self.capability_names(constraints.needs)
            ));
        }
        if let Some(targets) = &constraints.targets {
            let names: Vec<&str> = targets
                .iter()
                .take(NAMES)
                .map(|(_, name)| &**name)
                .collect();
            asks.push(format!("is one of {}", names.join(", ")));
        }
        if !constraints.hosts.is_empty() {
            asks.push(format!("is on {}", constraints.hosts.join(" or ")));
        }
        if !constraints.tags.is_empty() {
            asks.push(format!("has the tags {}", constraints.tags.join(", ")));
        }
        // Where engines come and go, it says how long it needs one.
        let end = |&s: &u32| self.engines[s as usize].ends < Nanos::MAX;
        if constraints.time > 0 && (!self.might_run(class) || self.live.iter().any(end)) {
            asks.push(format!("stays for {}", minutes(constraints.time)));
        }
        if constraints.nodes > 0 {
            asks.push(format!("is on one of {} whole hosts", constraints.nodes));
        }
        if constraints.request.is_some() {
            asks.push(format!("has {}", self.asked_words(class)));
        }
        match asks.is_empty() {
            true => "No engine is registered that may take it.".to_owned(),
            false => format!("No engine is registered that {}.", asks.join(" and ")),
        }
    }

    /// No registered engine could ever take tasks of the class, whatever becomes free.
    pub(super) fn is_nowhere(&self, class: u32) -> bool {
        self.pool_engines(class).is_empty() || self.asks_too_much(class).is_some()
    }

    /// That no host has enough in all, and what would change that.
    fn nowhere_enough(&self, class: u32) -> Option<String> {
        let text = self.asks_too_much(class)?;
        Some(match self.pools.classes[class as usize].nodes {
            0 => format!("{text} It runs as soon as an engine registers on a host that does."),
            _ => format!("{text} It runs as soon as there are enough."),
        })
    }

    /// That the hosts of all engines that may take tasks of the class have less in all than these ask for.
    pub(super) fn asks_too_much(&self, class: u32) -> Option<String> {
        let slots = self.pool_engines(class);
        let nodes = self.pools.classes[class as usize].nodes;
        if nodes > 0 && !slots.is_empty() && !self.has_enough_hosts(class) {
            let hosts = match self.count_hosts(class) {
                1 => "there is 1 whose engines may take it".to_owned(),
                hosts => format!("there are {hosts} whose engines may take it"),
            };
            return Some(format!("It asks for {nodes} whole hosts, and {hosts}."));
        }
        if slots.is_empty() || self.constraints(class).request.is_none() {
            return None;
        }
        let lacking: Option<Vec<String>> = self
            .requests(class)
            .map(|request| self.lacking(slots, request))
            .collect();
        Some(format!(
            "It asks for {}, and no host has that: {}.",
            self.asked_words(class),
            lacking?.join("; ")
        ))
    }

    /// What the hosts of these engines have too little of for the request (`None`: one has enough).
    fn lacking(&self, slots: &[u32], request: &Request) -> Option<String> {
        let mut most: Vec<Amount> = vec![0; request.len()];
        for &slot in slots {
            let host = self.hosts.of(&self.engines[slot as usize])?;
            if host.could(request) {
                return None;
            }
            for (most, (name, _)) in most.iter_mut().zip(request) {
                let total = host.total(name);
                *most = (*most).max(total);
            }
        }
        let lacking = request
            .iter()
            .zip(most)
            .filter(|((_, asked), most)| most < asked);
        let mut parts: Vec<String> = lacking
            .map(|((name, _), most)| match most {
                0 => format!("none has any {name}"),
                _ => format!(
                    "the most {name} that one has is {}",
                    resources::words(name, most)
                ),
            })
            .collect();
        if parts.is_empty() {
            parts.push("none has all of that together".to_owned());
        }
        Some(parts.join(", "))
    }

    /// What tasks of the class ask for, in words.
    fn asked_words(&self, class: u32) -> String {
        let all: Vec<String> = self.requests(class).map(|r| request_words(r)).collect();
        all.join(", or ")
    }

    /// Which of several alternatives the task on the engine has, in words.
    fn alternative_words(&self, class: u32, slot: u32) -> String {
        let grant = self.engines[slot as usize].grant.as_deref();
        let (Some(grant), true) = (grant, self.has_alternatives(class)) else {
            return String::new();
        };
        let has: Request = grant.iter().map(|g| (g.name.clone(), g.amount)).collect();
        let nth = self.requests(class).position(|request| **request == has);
        nth.map_or_else(String::new, |nth| {
            format!(" It has alternative {}: {}.", nth + 1, request_words(&has))
        })
    }

    /// Why nothing can ever run tasks of the class.
    pub(super) fn why_dead(&self, class: u32, follows: bool) -> String {
        let entry = &self.pools.classes[class as usize];
        let constraints = self.constraints(class);
        let Some(targets) = &constraints.targets else {
            return "nothing can run it".to_owned();
        };
        if targets.is_empty() {
            return "it must run where other tasks ran, and that is none of the engines it is restricted to".to_owned();
        }
        let gone = targets
            .iter()
            .filter(|(uuid, _)| !self.by_uuid.contains_key(uuid))
            .count();
        let what = if follows {
            "it must run where other tasks ran"
        } else {
            "it is restricted to engines by name"
        };
        if gone == targets.len() {
            format!("{what}, and there is no such engine any more")
        } else if entry.refused.is_empty() {
            format!("{what}, and they cannot take it")
        } else {
            format!("{what}, and it failed on each or they lack what it requires")
        }
    }

    /// What the host has, in words, of what tasks of a class ask for and there is too little of.
    pub(super) fn lacks(&self, slot: u32, class: u32) -> Option<String> {
        let host = self.hosts.of(&self.engines[slot as usize])?;
        if host.held_by != NONE {
            return Some("is on a host that a task holds as a whole".to_owned());
        }
        if self.pools.classes[class as usize].nodes > 0 && !host.is_free() {
            return Some("is on a host that is in use".to_owned());
        }
        let requests = self.requests(class);
        let texts: Option<Vec<String>> = requests.map(|r| self.lacks_of(slot, r)).collect();
        texts.filter(|t| !t.is_empty()).map(|t| t.join("; "))
    }

    fn lacks_of(&self, slot: u32, request: &Request) -> Option<String> {
        let host = self.hosts.of(&self.engines[slot as usize])?;
        for (name, amount) in request {
            let (total, used) = (host.total(name), host.used(name));
            let words = |amount| resources::words(name, amount);
            if *amount > total {
                return Some(match total {
                    0 => format!("has no {name} (it asks for {})", words(*amount)),
                    _ => format!(
                        "has only {} {name} in all (it asks for {})",
                        words(total),
                        words(*amount)
                    ),
                });
            }
            if used + amount > total {
                return Some(format!(
                    "has {} of {} {name} free (it asks for {})",
                    words(total.saturating_sub(used)),
                    words(total),
                    words(*amount)
                ));
            }
        }
        if !host.admits(request) {
            return Some("is kept for a task that has waited longer".to_owned());
        }
        None
    }
}

/// What is asked for, in words: `4 cpus, 2 gpus and 16.0 GiB memory`.
fn request_words(request: &Request) -> String {
    let parts: Vec<String> = request
        .iter()
        .map(|(name, amount)| {
            let amount = resources::words(name, *amount);
            match name.strip_suffix('s').filter(|_| amount == "1") {
                Some(one) => format!("1 {one}"),
                None => format!("{amount} {name}"),
            }
        })
        .collect();
    match &parts[..] {
        [] => "nothing".to_owned(),
        [one] => one.clone(),
        [most @ .., last] => format!("{} and {last}", most.join(", ")),
    }
}

/// `90 min`
fn minutes(time: Nanos) -> String {
    format!("{} min", time / (60 * SECOND))
}

fn seconds(later: Nanos, earlier: Nanos) -> String {
    format!("{:.1} s", later.saturating_sub(earlier) as f64 / 1e9)
}
