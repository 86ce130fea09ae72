//! What is asked of the core.

use ipbroker_protocol::resources::CPUS;

use super::Core;
use super::group::{DETACHED, Stage};
use super::id::{NONE, split_member};
use super::past::Found;
use super::types::{
    EngineKey, EngineTotals, GroupKey, HostState, Kept, Nanos, Request, Span, TaskState, Totals,
};

pub(super) fn ended_state(ok: bool) -> TaskState {
    if ok { TaskState::Ok } else { TaskState::Failed }
}

impl Core {
    /// The group of this message id, while its key is valid.
    pub fn find(&self, msg_id: &str) -> Option<GroupKey> {
        let id = self.hasher.id(msg_id.as_bytes());
        let live = self.ids.live(id, &self.groups);
        let index = live.or_else(|| self.late.get(&id).copied())?;
        Some(self.groups.key(index))
    }

    /// The engine of this uuid, registered or awaited after a restart.
    pub fn engine(&self, uuid: &str) -> Option<EngineKey> {
        let slot = *self.by_uuid.get(&self.hasher.id(uuid.as_bytes()))?;
        Some(self.engines[slot as usize].key())
    }

    /// Registered engines, in the order in which they registered.
    pub fn engines(&self) -> Vec<EngineKey> {
        self.live
            .iter()
            .map(|&slot| self.engines[slot as usize].key())
            .collect()
    }

    /// Groups in memory (members split from arrays included).
    pub fn len(&self) -> usize {
        self.groups.live()
    }

    /// Nothing is in memory but past outcomes.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Where a task (`MSGID` or `MSGID:INDEX`) stands.
    pub fn state(&self, id: &str) -> TaskState {
        match self.ids.find(self.hasher.id(id.as_bytes()), &self.groups) {
            Some(Found::Live(index)) => return self.group_state(index),
            Some(Found::Past(past)) => return ended_state(past.ok),
            None => {}
        }
        let Some((base, member)) = split_member(id) else {
            return TaskState::Unknown;
        };
        match self.ids.find(self.hasher.id(base.as_bytes()), &self.groups) {
            Some(Found::Live(index)) => self.member_state(index, member),
            Some(Found::Past(past)) => {
                match past.members.as_ref().and_then(|m| m.outcome(member)) {
                    Some((ok, _)) => ended_state(ok),
                    None => TaskState::Unknown,
                }
            }
            None => TaskState::Unknown,
        }
    }

    fn member_state(&self, index: u32, member: u32) -> TaskState {
        let group = &self.groups[index];
        let Some(array) = group.array().filter(|_| member < group.count) else {
            return TaskState::Unknown;
        };
        if array.done.contains(member) {
            return ended_state(!array.failed.contains(member));
        }
        if let Some(&child) = array.children.get(&member) {
            return self.group_state(child);
        }
        match (array.waiting.contains(member), group.stage) {
            (false, _) => TaskState::Running,
            (true, Stage::Blocked) => TaskState::Blocked,
            (true, _) => TaskState::Waiting,
        }
    }

    pub(super) fn group_state(&self, index: u32) -> TaskState {
        let group = &self.groups[index];
        match group.stage {
            Stage::Free => TaskState::Unknown,
            Stage::Blocked => TaskState::Blocked,
            Stage::Flying => TaskState::Running,
            Stage::Over => TaskState::Failed,
            Stage::Queued | Stage::Resting => match group.array() {
                Some(array) if !array.flights.is_empty() || !array.done.is_empty() => {
                    TaskState::Running
                }
                _ => TaskState::Waiting,
            },
        }
    }

    /// Counts, of one client or of all.
    pub fn totals(&self, client: Option<&[u8]>) -> Totals {
        match client {
            None => self.totals,
            Some(name) => self
                .client_index
                .get(name)
                .map_or(Totals::default(), |&c| self.clients[c as usize].totals),
        }
    }

    /// How much work a client was given, on the scale by which clients take turns.
    pub fn served(&self, client: &[u8]) -> u64 {
        self.client_index
            .get(client)
            .map_or(0, |&c| self.clients[c as usize].served)
    }

    /// Counts of an engine.
    pub fn engine_totals(&self, engine: EngineKey) -> EngineTotals {
        match self
            .engines
            .get(engine.slot())
            .filter(|e| e.generation == engine.generation)
        {
            Some(e) => EngineTotals {
                outstanding: u64::from(e.load),
                completed: e.completed,
                run_time: e.run_time,
            },
            None => EngineTotals::default(),
        }
    }

    /// What an engine holds, oldest first; aborted tasks that it has not answered are left out.
    pub fn outstanding(&self, engine: EngineKey) -> Vec<Span> {
        let Some(entry) = self
            .engines
            .get(engine.slot())
            .filter(|e| e.used && e.generation == engine.generation)
        else {
            return Vec::new();
        };
        let mut spans = Vec::new();
        for holding in self.holdings(entry.slot) {
            let group = &self.groups[holding.group];
            match holding.chunk {
                Some((lo, hi)) => {
                    for (lo, hi) in group.members().done.gaps(lo, hi) {
                        spans.push(Span {
                            group: self.groups.key(holding.group),
                            range: lo..hi,
                        });
                    }
                }
                None if group.stage == Stage::Over => {}
                None => {
                    let key = self.groups.key(group.parent().unwrap_or(holding.group));
                    spans.push(Span {
                        group: key,
                        range: group.index()..group.index() + 1,
                    });
                }
            }
        }
        spans
    }

    /// What an engine has had longest that is not answered or aborted, and since when.
    pub fn oldest_held(&self, engine: EngineKey) -> Option<(Span, Nanos)> {
        let since = self.oldest_given(engine)?;
        Some((self.outstanding(engine).into_iter().next()?, since))
    }

    /// What is on no engine (costs in proportion to what is in memory).
    pub fn unassigned(&self) -> Vec<Span> {
        let mut found = Vec::new();
        let mut waits = |index, lo, hi| {
            found.push(Span {
                group: self.groups.key(index),
                range: lo..hi,
            });
        };
        for (index, group) in self.groups.iter() {
            match group.array() {
                Some(array) => array
                    .waiting
                    .iter()
                    .for_each(|(lo, hi)| waits(index, lo, hi)),
                None if group.waiting() > 0 => {
                    let parent = group.parent().unwrap_or(index);
                    waits(parent, group.index(), group.index() + 1);
                }
                None => {}
            }
        }
        found
    }

    /// Clients with unfinished tasks that go when they go.
    pub fn attached(&self) -> Vec<&[u8]> {
        let mut clients: Vec<u32> = self
            .groups
            .iter()
            .filter(|(_, group)| {
                group.parent().is_none() && group.stage != Stage::Over && !group.is(DETACHED)
            })
            .map(|(_, group)| group.client)
            .collect();
        clients.sort_unstable();
        clients.dedup();
        clients
            .into_iter()
            .map(|client| &*self.clients[client as usize].name)
            .collect()
    }

    /// What hosts have, and who holds it, in no order.
    pub fn hosts(&self) -> Vec<HostState> {
        let key = |slot: u32| self.engines[slot as usize].key();
        let stays = |slot: &&u32| !self.engines[**slot as usize].leaving;
        self.hosts
            .iter()
            .map(|host| HostState {
                key: host.key.clone(),
                engines: host.engines.iter().map(|&slot| key(slot)).collect(),
                stocks: host
                    .stocks
                    .iter()
                    .map(|(name, stock)| {
                        let hidden = host.held_by != NONE || **name == *CPUS;
                        let names = stock.units.free().filter(|_| !hidden).cloned();
                        let names = names.collect();
                        (name.clone(), stock.total, host.in_use(name, stock), names)
                    })
                    .collect(),
                holders: host
                    .engines
                    .iter()
                    .filter_map(|&slot| {
                        let grant = self.engines[slot as usize].grant.clone()?;
                        Some((key(slot), grant))
                    })
                    .collect(),
                kept: match &host.reservation {
                    Some(kept) => self.kept(
                        kept.class,
                        kept.engine,
                        (*kept.request).clone(),
                        kept.serial,
                    ),
                    None if host.kept_whole > 0 => {
                        host.engines.iter().find(stays).and_then(|&slot| {
                            let stocks = host.stocks.iter();
                            let all = stocks.map(|(name, stock)| (name.clone(), stock.total));
                            let all = all.collect();
                            self.kept(self.whole.kept_for, slot, all, host.kept_whole)
                        })
                    }
                    None => None,
                },
                held_by: (host.held_by != NONE).then(|| key(host.held_by)),
            })
            .collect()
    }

    fn kept(&self, class: u32, slot: u32, request: Request, serial: u64) -> Option<Kept> {
        let waiting = self.members_of_class(class);
        let group = *waiting.first()?;
        let group = self.groups[group].parent().unwrap_or(group);
        Some(Kept {
            engine: self.engines[slot as usize].key(),
            group: self.groups.key(group),
            request,
            serial,
        })
    }
}
