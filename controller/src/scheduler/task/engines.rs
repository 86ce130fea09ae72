//! The engines as the task thread knows them.

use std::{sync::Arc, time::Duration};

use foldhash::HashMap;
use ipbroker_protocol::{
    message::{Acked, NodeStats, capability, types},
    route,
    session::Session,
};

use super::Outgoing;
use crate::scheduler::{
    command::EngineProfile,
    core::{EngineKey, Nanos},
};

/// An engine that keeps replies is told at least this often which ones are safe.
const ACK_PERIOD: Duration = Duration::from_millis(100);

/// … or as soon as there are this many.
const ACK_COUNT: usize = 256;

/// An engine that has had a task for so long is asked whether it does, and again after as long.
pub(super) const LONG: Duration = Duration::from_secs(30);

/// An engine that does not answer is asked again after this.
const ASK_AGAIN: Duration = Duration::from_secs(10);

/// How often it is looked who is to be asked.
const LOOK: Duration = Duration::from_secs(1);

pub(super) struct Engine {
    pub(super) key: EngineKey,
    /// Its number.
    pub(super) id: u32,
    pub(super) uuid: Arc<str>,
    /// It is one of ours: it understands what only our programs say.
    pub(super) ours: bool,
    /// It has said that it leaves, and will say when it has.
    pub(super) leaving: bool,
    /// It keeps replies until they are acknowledged.
    keeps: bool,
    /// It takes tasks in bundles.
    pub(super) bundles: bool,
    /// Which machine it is on; empty: it did not say.
    pub(super) machine: Box<str>,
    /// Index of its host in the statistics.
    host: usize,
    /// All names of its host and its tags, for `prefer`.
    pub(super) places: Box<[String]>,
    safe: Acked,
    safe_since: Option<Duration>,
    /// The id of the question what it holds, and when it was asked, while it is open.
    question: Option<(Box<str>, Nanos)>,
    /// When it was asked last, or joined.
    asked: Duration,
}

#[derive(Default)]
pub(super) struct Engines {
    slots: Vec<Option<Engine>>,
    by_uuid: HashMap<Box<[u8]>, usize>,
    /// How many of them are reached by which connection.
    connections: HashMap<Box<str>, u32>,
    hosts: Vec<NodeStats>,
    live: Vec<u32>,
    /// Slots of engines with replies to acknowledge.
    unacked: Vec<usize>,
    /// When it was last looked who is to be asked what it holds.
    looked: Duration,
}

impl Engines {
    /// What the engine's host calls itself.
    pub(super) fn host_name(&self, key: EngineKey) -> &str {
        let engine = self.get(key);
        engine.map_or("unknown", |engine| &self.hosts[engine.host].node)
    }

    /// `durable`: replies are acknowledged to those that keep them.
    pub(super) fn join(
        &mut self,
        key: EngineKey,
        profile: &EngineProfile,
        durable: bool,
        now: Duration,
    ) {
        let uuid = &*profile.uuid;
        self.leave(uuid);
        let host = profile.host.first().map_or("unknown", String::as_str);
        let host = self
            .hosts
            .iter()
            .position(|row| row.node == host)
            .unwrap_or_else(|| {
                self.hosts.push(NodeStats {
                    node: host.to_owned(),
                    ..NodeStats::default()
                });
                self.live.push(0);
                self.hosts.len() - 1
            });
        self.live[host] += 1;
        self.hosts[host].cpus = self.hosts[host].cpus.max(self.live[host]);
        let slot = key.slot();
        if slot >= self.slots.len() {
            self.slots.resize_with(slot + 1, || None);
        }
        self.by_uuid.insert(uuid.as_bytes().into(), slot);
        let connection = route::connection(uuid).into();
        *self.connections.entry(connection).or_default() += 1;
        self.slots[slot] = Some(Engine {
            key,
            id: profile.id,
            uuid: uuid.into(),
            ours: profile.is_ours(),
            leaving: false,
            keeps: durable && profile.can("ack"),
            bundles: profile.can(capability::BUNDLE),
            machine: profile.machine.as_deref().unwrap_or_default().into(),
            host,
            places: profile.host.iter().chain(&profile.tags).cloned().collect(),
            safe: Acked::default(),
            safe_since: None,
            question: None,
            asked: now,
        });
    }

    pub(super) fn leave(&mut self, uuid: &str) {
        let Some(slot) = self.by_uuid.remove(uuid.as_bytes()) else {
            return;
        };
        self.unacked.retain(|unacked| *unacked != slot);
        if let Some(engine) = self.slots[slot].take() {
            self.live[engine.host] -= 1;
        }
        let connection = route::connection(uuid);
        if let Some(count) = self.connections.get_mut(connection) {
            *count -= 1;
            if *count == 0 {
                self.connections.remove(connection);
            }
        }
    }

    /// Whether any of them is reached by this connection.
    pub(super) fn any_by(&self, connection: &str) -> bool {
        self.connections.contains_key(connection)
    }

    pub(super) fn get(&self, key: EngineKey) -> Option<&Engine> {
        self.slots
            .get(key.slot())?
            .as_ref()
            .filter(|engine| engine.key == key)
    }

    fn get_mut(&mut self, key: EngineKey) -> Option<&mut Engine> {
        self.slots
            .get_mut(key.slot())?
            .as_mut()
            .filter(|engine| engine.key == key)
    }

    pub(super) fn find(&self, uuid: &[u8]) -> Option<&Engine> {
        self.slots[*self.by_uuid.get(uuid)?].as_ref()
    }

    pub(super) fn is_leaving(&self, uuid: &str) -> bool {
        self.find(uuid.as_bytes())
            .is_some_and(|engine| engine.leaving)
    }

    /// It is to be given nothing more.
    pub(super) fn set_leaving(&mut self, key: EngineKey) {
        if let Some(engine) = self.get_mut(key) {
            engine.leaving = true;
        }
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Engine> {
        self.slots.iter().flatten()
    }

    /// An engine is asked what it holds. Its routing id.
    pub(super) fn ask(
        &mut self,
        key: EngineKey,
        msg_id: &str,
        now: Nanos,
        since: Duration,
    ) -> Option<Arc<str>> {
        let engine = self.get_mut(key)?;
        engine.question = Some((msg_id.into(), now));
        engine.asked = since;
        Some(engine.uuid.clone())
    }

    /// Whether a question to it is open.
    pub(super) fn is_asked(&self, key: EngineKey) -> bool {
        self.get(key)
            .is_some_and(|engine| engine.question.is_some())
    }

    /// An engine has answered: when it was asked, and whether it keeps replies. `None`: it was asked something newer.
    pub(super) fn answered(&mut self, key: EngineKey, msg_id: &str) -> Option<(Nanos, bool)> {
        let engine = self.get_mut(key)?;
        let (_, asked) = engine.question.take_if(|(asked, _)| **asked == *msg_id)?;
        Some((asked, engine.keeps))
    }

    /// Engines of ours that have not been asked for a while.
    pub(super) fn due(&mut self, now: Duration) -> Vec<EngineKey> {
        if now < self.looked + LOOK {
            return Vec::new();
        }
        self.looked = now;
        let is_due = |engine: &&Engine| {
            let pause = if engine.question.is_some() {
                ASK_AGAIN
            } else {
                LONG
            };
            engine.ours && now > engine.asked + pause
        };
        self.iter()
            .filter(is_due)
            .map(|engine| engine.key)
            .collect()
    }

    /// Rows of the statistics.
    pub(super) fn hosts(&self) -> Vec<NodeStats> {
        self.hosts.clone()
    }

    /// Counts jobs that ended on an engine.
    pub(super) fn count(&mut self, key: EngineKey, jobs: u64, seconds: f64) {
        if let Some(host) = self.get(key).map(|engine| engine.host) {
            self.hosts[host].jobs += jobs;
            self.hosts[host].time += seconds;
        }
    }

    /// The reply of an engine is in the journal once this batch is written.
    pub(super) fn safe(
        &mut self,
        key: EngineKey,
        msg_id: &str,
        range: Option<(u64, u64)>,
        now: Duration,
    ) {
        let Some(engine) = self.get_mut(key).filter(|engine| engine.keeps) else {
            return;
        };
        match range {
            None => engine.safe.msg_ids.push(msg_id.to_owned()),
            Some((lo, hi)) => engine.safe.ranges.push((msg_id.to_owned(), lo, hi)),
        }
        if engine.safe_since.is_none() {
            engine.safe_since = Some(now);
            self.unacked.push(key.slot());
        }
    }

    /// Tells engines which replies they may forget.
    pub(super) fn acknowledge(
        &mut self,
        session: &Session,
        now: Duration,
        out: &mut Vec<Outgoing>,
    ) {
        let slots = &mut self.slots;
        self.unacked.retain(|slot| {
            let Some(engine) = &mut slots[*slot] else {
                return false;
            };
            let many = engine.safe.msg_ids.len() + engine.safe.ranges.len() >= ACK_COUNT;
            if !many
                && engine
                    .safe_since
                    .is_some_and(|since| now < since + ACK_PERIOD)
            {
                return true;
            }
            let acked = std::mem::take(&mut engine.safe);
            engine.safe_since = None;
            out.push(Outgoing::Engine(
                engine.uuid.clone(),
                session
                    .request(types::REPLY_ACK, &acked)
                    .into_frames()
                    .into(),
            ));
            false
        });
    }

    /// When the next acknowledgement is due.
    pub(super) fn next_acknowledgement(&self, now: Duration) -> Option<Duration> {
        let due = |slot: &usize| {
            self.slots[*slot]
                .as_ref()?
                .safe_since
                .map(|since| (since + ACK_PERIOD).saturating_sub(now))
        };
        self.unacked.iter().filter_map(due).min()
    }
}
