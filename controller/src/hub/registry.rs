//! Which engines there are: ids, registrations under way, and the state file that `--restore` reads.

use std::{
    collections::{BTreeMap, VecDeque},
    fs, io,
    ops::Bound,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use foldhash::HashMap;
use ipbroker_protocol::{
    PROTOCOL,
    message::{HostLoad, ProcessEngine, Registration},
    profile, route,
};
use serde::{Deserialize, Serialize};

use crate::scheduler::command::EngineProfile;

/// Engines that were given up, kept in case they come back.
const REMEMBERED: usize = 4096;

/// A registered engine.
#[derive(Debug)]
pub(crate) struct Engine {
    pub(crate) profile: Arc<EngineProfile>,
    pub(crate) registered: Instant,
    /// How loaded its host is, if it speaks for that.
    pub(crate) load: Option<HostLoad>,
}

/// A registration that waits for the first heartbeat.
#[derive(Debug)]
pub(crate) struct Incoming {
    pub(crate) profile: EngineProfile,
    pub(crate) since: Instant,
}

/// Why a registration is refused.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Refusal {
    #[error("uuid {0:?} in use")]
    InUse(String),
    #[error("an engine must have a uuid of 1 to 255 bytes")]
    NoUuid,
    #[error(
        "uuid {0:?}: only those of engines of a process end in _engine_NUMBER, after the uuid of the process"
    )]
    NotOfProcess(String),
    #[error(
        "it speaks protocol {found} (ipengine {version}), this controller speaks {PROTOCOL} (ipctl {}): use the ipengine of the same version as ipctl",
        env!("CARGO_PKG_VERSION")
    )]
    Protocol { found: u32, version: String },
}

/// All engines.
#[derive(Debug, Default)]
pub(crate) struct Registry {
    next_id: u32,
    engines: BTreeMap<u32, Engine>,
    /// In order: those of a process follow each other.
    by_uuid: BTreeMap<String, u32>,
    incoming: BTreeMap<String, Incoming>,
    /// Of an earlier controller, whether one is ours: they keep their ids if they come back.
    expected: HashMap<String, (u32, bool)>,
    given_up: VecDeque<Arc<EngineProfile>>,
}

/// The state file.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default)]
struct State {
    engines: BTreeMap<u32, String>,
    next_id: u32,
    /// Those of them that are ours; an earlier version read here what they had told of themselves.
    registrations: BTreeMap<String, Registration>,
}

impl Registry {
    /// The engines that are reached by this connection: those of a process, or the one whose uuid it is.
    pub(crate) fn of(&self, connection: &str) -> Vec<String> {
        its(&self.by_uuid, connection).cloned().collect()
    }

    /// Whether there are any.
    pub(crate) fn any_of(&self, connection: &str) -> bool {
        its(&self.by_uuid, connection).next().is_some()
    }

    /// Those whose registration waits for a heartbeat.
    pub(crate) fn incoming_of(&self, connection: &str) -> Vec<String> {
        its(&self.incoming, connection).cloned().collect()
    }

    /// It has been told by this connection how loaded the host is: one engine stands for it.
    pub(crate) fn loaded(&mut self, connection: &str, load: HostLoad) {
        let first = its(&self.by_uuid, connection).next();
        let id = first.and_then(|uuid| self.by_uuid.get(uuid));
        if let Some(engine) = id.and_then(|id| self.engines.get_mut(id)) {
            engine.load = Some(load);
        }
    }

    /// Begins the registration of an engine, or of the engines of a process, and returns their ids.
    pub(crate) fn begin(
        &mut self,
        mut registration: Registration,
    ) -> Result<BTreeMap<String, u32>, Refusal> {
        // Who says nothing speaks the first one; the peer's engines speak none of ours.
        let found = registration.protocol.unwrap_or(1);
        if registration.capabilities.is_some() && found != PROTOCOL {
            let version = registration.version.unwrap_or_else(|| "unknown".into());
            return Err(Refusal::Protocol { found, version });
        }
        let engines = std::mem::take(&mut registration.engines);
        if engines.is_empty() {
            let uuid = registration.uuid.clone();
            if route::connection(&uuid) != uuid {
                return Err(Refusal::NotOfProcess(uuid));
            }
            return Ok(BTreeMap::from([(uuid, self.begin_one(registration)?)]));
        }
        let stranger = engines
            .iter()
            .find(|engine| route::index(engine.uuid.as_bytes(), &registration.uuid).is_none());
        if let Some(engine) = stranger {
            return Err(Refusal::NotOfProcess(engine.uuid.clone()));
        }
        let mut begin = |ProcessEngine { uuid, id, returns }| {
            let of_one = Registration {
                uuid: uuid.clone(),
                id,
                returns,
                ..registration.clone()
            };
            Ok((uuid, self.begin_one(of_one)?))
        };
        engines.into_iter().map(&mut begin).collect()
    }

    /// An engine of ours may register again under its uuid: it keeps its id, and is asked what it holds.
    fn begin_one(&mut self, registration: Registration) -> Result<u32, Refusal> {
        let uuid = registration.uuid.clone();
        if uuid.is_empty() || uuid.len() > 255 {
            return Err(Refusal::NoUuid);
        }
        let ours = registration.capabilities.is_some();
        let known = self
            .by_uuid
            .get(&uuid)
            .copied()
            .or_else(|| self.incoming.get(&uuid).map(|entry| entry.profile.id));
        if known.is_some() && !ours {
            return Err(Refusal::InUse(uuid));
        }
        let id = match known {
            Some(id) => id,
            None => match self.expected.remove(&uuid) {
                Some((id, _)) => id,
                None => self.new_id(registration.id),
            },
        };
        self.given_up.retain(|profile| profile.uuid != uuid);
        self.incoming.insert(
            uuid,
            Incoming {
                profile: EngineProfile::new(id, registration),
                since: Instant::now(),
            },
        );
        Ok(id)
    }

    fn new_id(&mut self, wish: Option<u32>) -> u32 {
        // All that were ever given are below the next one.
        let taken = |id: u32| {
            id < self.next_id
                && (self.engines.contains_key(&id)
                    || self.incoming.values().any(|entry| entry.profile.id == id)
                    || self.expected.values().any(|(expected, _)| *expected == id))
        };
        let id = match wish {
            Some(id) if !taken(id) => id,
            Some(id) => {
                tracing::warn!(id, "the id that an engine asked for is in use");
                self.next_id
            }
            None => self.next_id,
        };
        self.next_id = self.next_id.max(id.saturating_add(1));
        id
    }

    /// The first heartbeat completes a registration.
    pub(crate) fn finish(&mut self, uuid: &str) -> Option<(Arc<EngineProfile>, Duration)> {
        let Incoming { profile, since } = self.incoming.remove(uuid)?;
        let profile = Arc::new(profile);
        self.by_uuid.insert(uuid.to_owned(), profile.id);
        self.engines.insert(
            profile.id,
            Engine {
                profile: profile.clone(),
                registered: Instant::now(),
                load: None,
            },
        );
        Some((profile, since.elapsed()))
    }

    /// A heartbeat of an engine that was there before: a Python engine goes on as if nothing had happened. `Err`: one of
    /// ours, which has to register again to be asked what it holds.
    pub(crate) fn come_back(&mut self, uuid: &str) -> Option<Result<(), ()>> {
        let (id, ours) = match self.expected.get(uuid) {
            Some(expected) => *expected,
            None => {
                let profile = self.given_up.iter().find(|profile| profile.uuid == uuid)?;
                (profile.id, profile.is_ours())
            }
        };
        if ours {
            return Some(Err(()));
        }
        self.expected.remove(uuid);
        self.given_up.retain(|profile| profile.uuid != uuid);
        let id = if self.engines.contains_key(&id) {
            self.new_id(None)
        } else {
            id
        };
        self.incoming.insert(
            uuid.to_owned(),
            Incoming {
                profile: EngineProfile::new(id, known_by(uuid)),
                since: Instant::now(),
            },
        );
        Some(Ok(()))
    }

    /// Registrations whose heart has not beaten in time; they are dropped.
    pub(crate) fn stalled(&mut self, timeout: Duration) -> Vec<(u32, String)> {
        let stalled: Vec<(u32, String)> = self
            .incoming
            .iter()
            .filter(|(_, entry)| entry.since.elapsed() >= timeout)
            .map(|(uuid, entry)| (entry.profile.id, uuid.clone()))
            .collect();
        for (_, uuid) in &stalled {
            self.incoming.remove(uuid);
        }
        stalled
    }

    /// How long ago the latest of the registrations that wait for a heartbeat began.
    pub(crate) fn youngest_incoming(&self) -> Option<Duration> {
        let youngest = self.incoming.values().map(|entry| entry.since).max()?;
        Some(youngest.elapsed())
    }

    /// Removes an engine, or its registration under way. `came_back`: it may come back.
    pub(crate) fn remove(&mut self, uuid: &str, may_come_back: bool) -> Option<Engine> {
        self.incoming.remove(uuid);
        let id = self.by_uuid.remove(uuid)?;
        let engine = self.engines.remove(&id)?;
        if may_come_back {
            self.given_up.push_back(engine.profile.clone());
            if self.given_up.len() > REMEMBERED {
                self.given_up.pop_front();
            }
        }
        Some(engine)
    }

    /// An engine of an earlier controller, or one whose registration is under way, does not come (back).
    pub(crate) fn forget(&mut self, uuid: &str) {
        self.incoming.remove(uuid);
        self.expected.remove(uuid);
    }

    /// The uuid of an engine, or of a registration under way.
    pub(crate) fn uuid_of(&self, id: u32) -> Option<&str> {
        let incoming = || self.incoming.values().map(|entry| &entry.profile);
        let registered = self.engines.get(&id).map(|engine| &*engine.profile);
        let profile = registered.or_else(|| incoming().find(|profile| profile.id == id));
        profile.map(|profile| profile.uuid.as_str())
    }

    pub(crate) fn by_id(&self, id: u32) -> Option<&Engine> {
        self.engines.get(&id)
    }

    pub(crate) fn by_uuid(&self, uuid: &str) -> Option<&Engine> {
        self.by_uuid.get(uuid).and_then(|id| self.engines.get(id))
    }

    /// By id.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (u32, &Engine)> {
        self.engines.iter().map(|(id, engine)| (*id, engine))
    }

    pub(crate) fn len(&self) -> usize {
        self.engines.len()
    }

    /// Writes the state file.
    pub(crate) fn save(&self, path: &Path) -> io::Result<()> {
        let mut state = State {
            next_id: self.next_id,
            ..State::default()
        };
        let engines = self.engines.values().map(|engine| &engine.profile);
        let engines = engines.map(|profile| (&profile.uuid, (profile.id, profile.is_ours())));
        let expected = self
            .expected
            .iter()
            .map(|(uuid, expected)| (uuid, *expected));
        for (uuid, (id, ours)) in engines.chain(expected) {
            state.engines.insert(id, uuid.clone());
            if ours {
                let registration = Registration {
                    capabilities: Some(Vec::new()),
                    ..known_by(uuid)
                };
                state.registrations.insert(uuid.clone(), registration);
            }
        }
        profile::replace(path, &serde_json::to_vec(&state)?)
    }

    /// Reads the state file: its engines keep their ids if they come back.
    pub(crate) fn restore(&mut self, path: &PathBuf) -> io::Result<usize> {
        let bytes = match fs::read(path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(0),
            Err(error) => return Err(error),
        };
        let state: State = serde_json::from_slice(&bytes)?;
        self.next_id = state.next_id;
        for (id, uuid) in state.engines {
            self.next_id = self.next_id.max(id + 1);
            let ours = state.registrations.contains_key(&uuid);
            self.expected.insert(uuid, (id, ours));
        }
        Ok(self.expected.len())
    }

    /// Engines of an earlier controller that have not come back; they are forgotten.
    pub(crate) fn missing(&mut self) -> Vec<(u32, String)> {
        self.expected
            .drain()
            .map(|(uuid, (id, _))| (id, uuid))
            .collect()
    }
}

/// The uuids in an ordered map that are reached by this connection.
fn its<'a, T>(
    engines: &'a BTreeMap<String, T>,
    connection: &'a str,
) -> impl Iterator<Item = &'a String> {
    let from = (Bound::Included(connection), Bound::Unbounded);
    let from = engines.range::<str, _>(from);
    from.map(|(uuid, _)| uuid)
        .take_while(move |uuid| uuid.starts_with(connection))
        .filter(move |uuid| route::connection(uuid) == connection)
}

fn known_by(uuid: &str) -> Registration {
    Registration {
        uuid: uuid.to_owned(),
        ..Registration::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn python(uuid: &str, id: Option<u32>) -> Registration {
        Registration {
            uuid: uuid.into(),
            id,
            ..Registration::default()
        }
    }

    fn ours(uuid: &str) -> Registration {
        Registration {
            capabilities: Some(vec!["command".into()]),
            protocol: Some(PROTOCOL),
            ..python(uuid, None)
        }
    }

    fn begin(registry: &mut Registry, registration: Registration) -> Result<u32, Refusal> {
        let uuid = registration.uuid.clone();
        registry.begin(registration).map(|ids| ids[&uuid])
    }

    #[test]
    fn ids_count_up_and_wishes_are_granted() {
        let mut registry = Registry::default();
        assert_eq!(begin(&mut registry, python("a", None)).unwrap(), 0);
        assert_eq!(begin(&mut registry, python("b", Some(5))).unwrap(), 5);
        assert_eq!(begin(&mut registry, python("c", Some(5))).unwrap(), 6);
        assert_eq!(begin(&mut registry, python("d", None)).unwrap(), 7);
        assert!(matches!(
            begin(&mut registry, python("a", None)),
            Err(Refusal::InUse(_))
        ));
        assert!(registry.finish("a").is_some());
        assert!(registry.finish("a").is_none());
        assert!(matches!(
            begin(&mut registry, python("a", None)),
            Err(Refusal::InUse(_))
        ));
        registry.remove("a", false);
        assert_eq!(
            begin(&mut registry, python("a", None)).unwrap(),
            8,
            "ids are not used again"
        );
    }

    #[test]
    fn ours_may_register_again() {
        let mut registry = Registry::default();
        assert_eq!(begin(&mut registry, ours("a")).unwrap(), 0);
        registry.finish("a");
        assert_eq!(begin(&mut registry, ours("a")).unwrap(), 0);
        assert!(registry.incoming_of("a").len() == 1 && registry.by_uuid("a").is_some());
        assert_eq!(registry.finish("a").unwrap().0.id, 0);
        assert_eq!(registry.len(), 1);
    }

    #[test]
    fn the_engines_of_a_process_register_together() {
        let mut registry = Registry::default();
        let process = |engines: &[&str]| Registration {
            engines: engines
                .iter()
                .map(|uuid| ProcessEngine {
                    uuid: (*uuid).to_owned(),
                    ..ProcessEngine::default()
                })
                .collect(),
            ..ours("p")
        };
        let ids = registry
            .begin(process(&["p_engine_0", "p_engine_1"]))
            .unwrap();
        assert_eq!(
            ids,
            BTreeMap::from([("p_engine_0".into(), 0), ("p_engine_1".into(), 1)])
        );
        begin(&mut registry, ours("pq")).unwrap();
        assert_eq!(registry.incoming_of("p"), ["p_engine_0", "p_engine_1"]);
        registry.finish("p_engine_0");
        registry.finish("pq");
        assert_eq!(
            (registry.of("p"), registry.of("pq")),
            (vec!["p_engine_0".to_owned()], vec!["pq".to_owned()])
        );
        for stranger in [
            process(&["p_engine_0", "q_engine_1"]),
            process(&["p"]),
            ours("a_engine_1"),
        ] {
            assert!(matches!(
                registry.begin(stranger),
                Err(Refusal::NotOfProcess(_))
            ));
        }
    }

    #[test]
    fn who_was_given_up_may_come_back() {
        let mut registry = Registry::default();
        begin(&mut registry, python("p", None)).unwrap();
        begin(&mut registry, ours("o")).unwrap();
        registry.finish("p");
        registry.finish("o");
        registry.remove("p", true);
        registry.remove("o", true);
        assert_eq!(registry.come_back("p"), Some(Ok(())));
        assert_eq!(registry.finish("p").unwrap().0.id, 0);
        assert_eq!(registry.come_back("o"), Some(Err(())));
        assert_eq!(registry.come_back("stranger"), None);
    }

    #[test]
    fn the_state_file_keeps_ids() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("engines.json");
        let mut registry = Registry::default();
        for uuid in ["x", "y"] {
            begin(&mut registry, ours(uuid)).unwrap();
            registry.finish(uuid);
        }
        begin(&mut registry, python("p", None)).unwrap();
        registry.finish("p");
        registry.save(&path).unwrap();
        let mut registry = Registry::default();
        assert_eq!(registry.restore(&path).unwrap(), 3);
        assert_eq!(begin(&mut registry, ours("new")).unwrap(), 3);
        assert_eq!(begin(&mut registry, ours("y")).unwrap(), 1);
        assert_eq!(registry.come_back("p"), Some(Ok(())));
        assert_eq!(registry.finish("p").unwrap().0.id, 2);
        assert_eq!(registry.missing(), [(0, "x".to_owned())]);
    }
}
