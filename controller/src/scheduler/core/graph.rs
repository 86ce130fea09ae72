//! Dependencies: who waits for whom, what an outcome means to them, and what has become impossible.
//!
//! An outcome costs in proportion to the tasks that depend on it. Counters say whether a dependency is met;
//! nothing is scanned.

use std::collections::HashSet;

use foldhash::fast::FixedState;

use super::Core;
use super::clients::Bucket;
use super::group::{Dep, LACKS_INPUT, Stage};
use super::id::{NONE, TaskId, split_member};
use super::past::{Found, Past, Places, place_in};
use super::types::{Action, Dependency, EngineKey, FailKind, GroupKey, Known, Nanos};

/// A dependency of a group that waits for the outcome of an id.
#[derive(Clone, Copy, Debug)]
pub(super) struct Watcher {
    group: GroupKey,
    follow: bool,
}

/// The watchers of an id. Those whose group is gone stay until the list has doubled.
#[derive(Debug, Default)]
pub(super) struct Watchers {
    list: Vec<Watcher>,
    sweep_at: usize,
}

/// An outcome to tell to those that depend on it.
#[derive(Debug)]
pub(super) struct Ended {
    pub id: TaskId,
    /// The member, or [`NONE`] for a group.
    pub member: u32,
    pub ok: bool,
    pub places: Places,
    /// The group goes on, but it cannot succeed any more.
    pub doomed: bool,
}

/// Ids, to leave out repetitions: a list while they are few.
#[derive(Default)]
struct Seen {
    few: Vec<TaskId>,
    many: HashSet<TaskId, FixedState>,
}

impl Seen {
    fn insert(&mut self, id: TaskId) -> bool {
        if self.few.len() < 16 {
            let new = !self.few.contains(&id);
            if new {
                self.few.push(id);
            }
            return new;
        }
        !self.few.contains(&id) && self.many.insert(id)
    }
}

/// What is known of an id when it is first depended on.
enum Standing {
    Ended(bool, Places),
    Doomed,
    Running(TaskId, u32, Option<u32>),
    Asked(TaskId),
}

/// Where dependencies leave a group.
enum Verdict {
    Impossible(FailKind, String),
    /// Has to wait; with the engines it is restricted to, if that is clear already.
    Blocked(Option<Vec<EngineKey>>),
    Free(Option<Vec<EngineKey>>),
}

impl Core {
    /// Registers a dependency of the group. The error says which id is invalid.
    pub(super) fn watch(
        &mut self,
        group: u32,
        dependency: &Dependency,
        follow: bool,
    ) -> Result<(), String> {
        let own = self.groups[group].id;
        let mut seen = Seen::default();
        let mut standings = Vec::with_capacity(dependency.ids.len());
        let mut ids: Vec<Box<str>> = Vec::with_capacity(dependency.ids.len());
        for text in &dependency.ids {
            let id = self.hasher.id(text.as_bytes());
            if !seen.insert(id) {
                continue;
            }
            if id == own
                || split_member(text)
                    .is_some_and(|(base, _)| self.hasher.id(base.as_bytes()) == own)
            {
                return Err(format!("the task depends on itself ({text})"));
            }
            standings.push(
                self.standing(id, text)
                    .ok_or_else(|| format!("it depends on {text}, which nobody knows"))?,
            );
            ids.push(text.as_str().into());
        }
        if !dependency.success && !dependency.failure {
            return Err("a dependency must accept successes, failures or both".to_owned());
        }
        let mut dep = Dep {
            ids: ids.into(),
            all: dependency.all,
            success: dependency.success,
            failure: dependency.failure,
            pending: standings.len() as u32,
            good: 0,
            bad: 0,
            invalid: None,
            places: Vec::new(),
        };
        let watcher = Watcher {
            group: self.groups.key(group),
            follow,
        };
        for (at, standing) in standings.into_iter().enumerate() {
            match standing {
                Standing::Ended(ok, places) => self.note(&mut dep, follow, ok, places.as_slice()),
                Standing::Doomed if !dep.failure => {
                    dep.pending -= 1;
                    dep.bad += 1;
                }
                Standing::Doomed => {
                    self.add_watcher((self.hasher.id(dep.ids[at].as_bytes()), NONE), watcher)
                }
                Standing::Running(id, member, live) => {
                    if let Some(array) = live {
                        self.groups[array].members_mut().watched.insert(member);
                    }
                    self.add_watcher((id, member), watcher);
                }
                Standing::Asked(id) => {
                    self.add_watcher((id, NONE), watcher);
                    if self.asked.insert(id) {
                        self.actions.push_back(Action::LookupOutcome {
                            id: dep.ids[at].clone(),
                        });
                    }
                }
            }
        }
        *self.groups[group].extra_mut().dep_mut(follow) = Some(Box::new(dep));
        Ok(())
    }

    /// What is known of an id; `None`: nothing, and nobody can be asked.
    fn standing(&self, id: TaskId, text: &str) -> Option<Standing> {
        match self.ids.find(id, &self.groups) {
            Some(Found::Past(past)) => return Some(Standing::Ended(past.ok, past.places.clone())),
            Some(Found::Live(group)) => {
                let doomed = self.groups[group]
                    .array()
                    .is_some_and(|a| !a.failed.is_empty());
                return Some(if doomed {
                    Standing::Doomed
                } else {
                    Standing::Running(id, NONE, None)
                });
            }
            None => {}
        }
        let ask = self.config.lookups.then_some(Standing::Asked(id));
        let Some((base, index)) = split_member(text) else {
            return ask;
        };
        let base = self.hasher.id(base.as_bytes());
        match self.ids.find(base, &self.groups) {
            Some(Found::Live(group)) => {
                let array = self.groups[group].array()?;
                if index >= self.groups[group].count {
                    return None;
                }
                if !array.done.contains(index) {
                    return Some(Standing::Running(base, index, Some(group)));
                }
                Some(Standing::Ended(
                    !array.failed.contains(index),
                    place_in(&array.places, index),
                ))
            }
            Some(Found::Past(Past {
                members: Some(members),
                ..
            })) => members
                .outcome(index)
                .map(|(ok, places)| Standing::Ended(ok, places)),
            _ => ask,
        }
    }

    fn add_watcher(&mut self, id: (TaskId, u32), watcher: Watcher) {
        let watchers = self.watchers.entry(id).or_default();
        if watchers.list.len() >= watchers.sweep_at.max(16) {
            watchers.list.retain(|w| self.groups.get(w.group).is_some());
            watchers.sweep_at = watchers.list.len() * 2;
        }
        watchers.list.push(watcher);
    }

    fn exists(&self, engine: EngineKey) -> bool {
        let entry = &self.engines[engine.slot()];
        entry.used && entry.generation == engine.generation
    }

    /// An outcome reaches a dependency.
    fn note(&self, dep: &mut Dep, follow: bool, ok: bool, places: &[EngineKey]) {
        dep.pending -= 1;
        let counts = if ok { dep.success } else { dep.failure };
        let good = counts
            && match (follow, dep.all) {
                (false, _) => true,
                (true, true) => match places {
                    [one]
                        if self.exists(*one)
                            && (dep.places.is_empty() || dep.places[0] == *one) =>
                    {
                        dep.places = vec![*one];
                        true
                    }
                    _ => false,
                },
                (true, false) => {
                    let before = dep.good;
                    let mut found = false;
                    for &place in places.iter().filter(|p| self.exists(**p)) {
                        found = true;
                        if !dep.places.contains(&place) {
                            dep.places.push(place);
                        }
                    }
                    debug_assert_eq!(before, dep.good);
                    found
                }
            };
        if good {
            dep.good += 1;
        } else {
            dep.bad += 1;
        }
    }

    /// Tells an outcome to those that depend on it.
    pub(super) fn tell(&mut self, ended: &Ended) {
        let Some(watchers) = self.watchers.remove(&(ended.id, ended.member)) else {
            return;
        };
        let mut stay = Vec::new();
        for watcher in watchers.list {
            let Watcher { group, follow } = watcher;
            if self.groups.get(group).is_none() {
                continue;
            }
            let extra = self.groups[group.index].extra_mut();
            let Some(mut dep) = extra.dep_mut(follow).take() else {
                continue;
            };
            let stays = ended.doomed && dep.failure;
            if !stays {
                self.note(&mut dep, follow, ended.ok, ended.places.as_slice());
            }
            let settled = dep.all && dep.bad == 0 && dep.pending > 0 && dep.places.is_empty();
            *self.groups[group.index].extra_mut().dep_mut(follow) = Some(dep);
            if stays {
                stay.push(watcher);
            } else if !settled {
                self.decide_with_members(group.index);
            }
        }
        if !stay.is_empty() {
            self.watchers.insert(
                (ended.id, ended.member),
                Watchers {
                    sweep_at: stay.len() * 2,
                    list: stay,
                },
            );
        }
    }

    /// Decides on a group and on the members split from it.
    fn decide_with_members(&mut self, group: u32) {
        let children: Vec<u32> = self.groups[group]
            .array()
            .map_or(Vec::new(), |a| a.children.values().copied().collect());
        self.decide(group);
        for child in children {
            if self.groups[child].parent() == Some(group) {
                self.decide(child);
            }
        }
    }

    /// The store's answer to `LookupOutcome`; `None`: nobody knows the id.
    pub fn outcome_known(&mut self, now: Nanos, id: &str, known: Option<Known<'_>>) {
        self.now = now;
        let key = self.hasher.id(id.as_bytes());
        if !self.asked.remove(&key) {
            return;
        }
        match known {
            Some(known) => {
                let places = Places::of(
                    known
                        .engines
                        .iter()
                        .filter_map(|uuid| self.by_uuid.get(&self.hasher.id(uuid.as_bytes())))
                        .map(|&slot| self.engines[slot as usize].key())
                        .collect(),
                );
                // One of several engines may be gone: it is still not on one engine that all of it ran.
                let places = match (places, known.engines.len()) {
                    (Places::One(one), 2..) => Places::Many([one, one].into()),
                    (places, _) => places,
                };
                self.ids.remember(
                    Past {
                        id: key,
                        ok: known.ok,
                        places: places.clone(),
                        members: None,
                    },
                    &self.groups,
                );
                self.ended.push_back(Ended {
                    id: key,
                    member: NONE,
                    ok: known.ok,
                    places,
                    doomed: false,
                });
            }
            None => {
                let watchers = self.watchers.remove(&(key, NONE)).unwrap_or_default();
                for Watcher { group, follow } in watchers.list {
                    if self.groups.get(group).is_none() {
                        continue;
                    }
                    if let Some(dep) = self.groups[group.index].extra_mut().dep_mut(follow) {
                        dep.pending -= 1;
                        dep.bad += 1;
                        dep.invalid = Some(id.into());
                    }
                    self.decide_with_members(group.index);
                }
            }
        }
        self.settle();
    }

    /// Puts a group of which something waits where it belongs now, or fails it.
    pub(super) fn decide(&mut self, index: u32) {
        let group = &self.groups[index];
        match group.array() {
            Some(array) if array.waiting.is_empty() => return,
            None if matches!(group.stage, Stage::Flying | Stage::Over | Stage::Free) => return,
            _ => {}
        }
        let verdict = self.judge(index);
        let base = self.base_class(index);
        let (mut blocked, places) = match verdict {
            Verdict::Impossible(kind, text) => return self.fail_waiting(index, kind, &text),
            Verdict::Blocked(places) => (true, places),
            Verdict::Free(places) => (false, places),
        };
        let mut class = match places {
            Some(places) => self.restricted(base, &places),
            None => base,
        };
        if self.is_dead(class) {
            if class != base && self.may_follow_elsewhere(index) && !self.is_dead(base) {
                (class, blocked) = (base, true);
            } else {
                let text = self.why_dead(class, class != base);
                return self.fail_waiting(index, FailKind::ImpossibleDependency, &text);
            }
        }
        if self.groups[index].is(LACKS_INPUT) && self.is_refused(base) {
            let text = "no engine that is there and may take it has its inputs: submit it again, which sends them";
            return self.fail_waiting(index, FailKind::MissingInput, text);
        }
        if !blocked && class == base {
            class = self.preferred_class(index, base);
        }
        let (stage, old) = (self.groups[index].stage, self.groups[index].class);
        let wanted = if blocked {
            Stage::Blocked
        } else {
            Stage::Queued
        };
        if stage == wanted && class == old {
            return;
        }
        self.unlink(index);
        self.set_class(index, class);
        let members = self.groups[index].array().map_or(1, |a| a.waiting.len());
        let (from, to) = (Bucket::of_waiting(stage), Bucket::of_waiting(wanted));
        self.count(self.groups[index].client, Some(from), to, members);
        if blocked {
            self.block(index);
        } else {
            self.make_ready(index);
        }
    }

    pub(super) fn set_class(&mut self, index: u32, class: u32) {
        let old = self.groups[index].class;
        if old != class {
            self.hold_class(class);
            self.groups[index].class = class;
            self.release_class(old);
        }
    }

    /// A follow of the group may yet be met on other engines.
    pub(super) fn may_follow_elsewhere(&self, index: u32) -> bool {
        let holder = self.groups[index].parent().unwrap_or(index);
        let follow = self.groups[holder]
            .extra
            .as_ref()
            .and_then(|e| e.follow.as_ref());
        follow.is_some_and(|dep| !dep.all && dep.pending > 0)
    }

    /// Nothing that can happen gives the group, which has just failed, an engine; or only one that nobody may ever start,
    /// and nobody said how long it may wait for that.
    pub(super) fn is_hopeless(&mut self, index: u32) -> bool {
        let base = self.base_class(index);
        let extra = self.groups[index].extra.as_ref();
        let for_ever = extra.is_none_or(|extra| extra.timeout == 0);
        let tried_by_all = !self.pool_engines(base).is_empty() && self.is_refused(base);
        if self.is_dead(base) || (for_ever && tried_by_all) {
            return true;
        }
        match self.judge(index) {
            Verdict::Impossible(..) => true,
            Verdict::Free(Some(places)) | Verdict::Blocked(Some(places)) => {
                let class = self.restricted(base, &places);
                self.is_dead(class) && !self.may_follow_elsewhere(index)
            }
            Verdict::Free(None) | Verdict::Blocked(None) => false,
        }
    }

    /// The class restricted to where the group has to follow others, as far as that is known.
    pub(super) fn placed_class(&mut self, index: u32, class: u32) -> u32 {
        match self.judge(index) {
            Verdict::Free(Some(places)) | Verdict::Blocked(Some(places)) => {
                self.restricted(class, &places)
            }
            _ => class,
        }
    }

    /// The class restricted to these engines.
    fn restricted(&mut self, class: u32, places: &[EngineKey]) -> u32 {
        let mut targets: Vec<(TaskId, Box<str>)> = places
            .iter()
            .map(|p| &self.engines[p.slot()])
            .map(|e| (e.uuid, e.name.clone()))
            .collect();
        targets.sort_unstable();
        self.with_constraints(class, |c| {
            if let Some(before) = &c.targets {
                targets.retain(|(uuid, _)| before.iter().any(|(u, _)| u == uuid));
            }
            c.targets = Some(targets.into());
        })
    }

    fn judge(&self, index: u32) -> Verdict {
        let holder = self.groups[index].parent().unwrap_or(index);
        let Some(extra) = &self.groups[holder].extra else {
            return Verdict::Free(None);
        };
        let mut blocked = self.is_delayed(index);
        for (dep, verb) in [(&extra.after, "after"), (&extra.follow, "where")] {
            let Some(dep) = dep else { continue };
            if let Some(id) = &dep.invalid {
                let text = format!("it depends on {id}, which nobody knows");
                return Verdict::Impossible(FailKind::InvalidDependency, text);
            }
            let (hopeless, waits) = match dep.all {
                true => (dep.bad > 0, dep.pending > 0),
                false => (dep.good == 0 && dep.pending == 0, dep.good == 0),
            };
            if hopeless {
                let text = unreachable_text(dep, verb);
                return Verdict::Impossible(FailKind::ImpossibleDependency, text);
            }
            blocked |= waits;
        }
        let verdict = |places| match blocked {
            true => Verdict::Blocked(places),
            false => Verdict::Free(places),
        };
        let Some(follow) = &extra.follow else {
            return verdict(None);
        };
        let places: Vec<EngineKey> = follow
            .places
            .iter()
            .copied()
            .filter(|p| self.exists(*p))
            .collect();
        if places.is_empty() && follow.good > 0 {
            if follow.all || follow.pending == 0 {
                let text = "the engine on which it has to follow other tasks is gone".to_owned();
                return Verdict::Impossible(FailKind::ImpossibleDependency, text);
            }
            return Verdict::Blocked(None);
        }
        verdict((!places.is_empty()).then_some(places))
    }
}

fn unreachable_text(dep: &Dep, verb: &str) -> String {
    let how = match (dep.success, dep.failure) {
        (true, false) => "succeed",
        (false, true) => "fail",
        _ => "end",
    };
    let ids = match &dep.ids[..] {
        [one] => one.to_string(),
        [first, rest @ ..] => format!("{first} and {} more", rest.len()),
        [] => String::new(),
    };
    if verb == "where" && dep.all && dep.places.len() == 1 {
        return format!(
            "it must run where all of {ids} ran, and they did not all {how} on one engine that is still there"
        );
    }
    let which = if dep.all { "all" } else { "any" };
    format!("it must run {verb} {which} of {ids} {how}, which cannot happen any more")
}
