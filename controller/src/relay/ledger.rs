//! Direct tasks that are on engines, as `queue_status` shows them.

use std::{collections::VecDeque, sync::Arc};

use foldhash::{HashMap, HashSet};

use crate::scheduler::command::{ByEngine, EngineTasks};

/// Ids of completed tasks that are kept for each engine.
const RECENT: usize = 1000;

/// A direct task that has not been answered.
#[derive(Debug)]
pub(crate) struct Direct {
    pub(crate) engine: Arc<str>,
    pub(crate) client: Box<[u8]>,
    /// Its packed header: the parent of a failure reply.
    pub(crate) header: Box<[u8]>,
    pub(crate) msg_type: Box<str>,
}

#[derive(Debug, Default)]
struct Engine {
    running: u64,
    completed: u64,
    recent: VecDeque<Box<str>>,
}

/// All direct tasks, and the registered engines.
#[derive(Debug, Default)]
pub(crate) struct Ledger {
    engines: HashMap<Arc<str>, Engine>,
    tasks: HashMap<Box<str>, Direct>,
}

impl Ledger {
    pub(crate) fn joined(&mut self, uuid: &str) {
        self.engines.entry(uuid.into()).or_default();
    }

    /// Forgets an engine and returns what was on it.
    pub(crate) fn left(&mut self, uuid: &str) -> Vec<(Box<str>, Direct)> {
        self.engines.remove(uuid);
        self.tasks
            .extract_if(|_, task| &*task.engine == uuid)
            .collect()
    }

    /// A task goes to an engine. `false`: it is there already (sent again after a reconnection).
    pub(crate) fn sent(&mut self, msg_id: &str, task: Direct) -> bool {
        if self.tasks.contains_key(msg_id) {
            return false;
        }
        if let Some(engine) = self.engines.get_mut(&task.engine) {
            engine.running += 1;
        }
        self.tasks.insert(msg_id.into(), task);
        true
    }

    /// The shared name of an engine.
    pub(crate) fn name(&self, uuid: &str) -> Arc<str> {
        self.engines
            .get_key_value(uuid)
            .map_or_else(|| uuid.into(), |(name, _)| name.clone())
    }

    /// A task was answered (or never got there). `None`: it was not known.
    pub(crate) fn answered(&mut self, msg_id: &str, completed: bool) -> Option<Direct> {
        let task = self.tasks.remove(msg_id)?;
        if let Some(engine) = self.engines.get_mut(&task.engine) {
            engine.running = engine.running.saturating_sub(1);
            if completed {
                engine.completed += 1;
                engine.recent.push_back(msg_id.into());
                if engine.recent.len() > RECENT {
                    engine.recent.pop_front();
                }
            }
        }
        Some(task)
    }

    pub(crate) fn is_pending(&self, msg_id: &str) -> bool {
        self.tasks.contains_key(msg_id)
    }

    /// The pending ones of these tasks, or all that are, by their engines.
    pub(crate) fn running(&self, ids: Option<Vec<String>>) -> ByEngine {
        let mut engines = ByEngine::new();
        let mut add = |msg_id: &str, task: &Direct| {
            let its = engines.entry(task.engine.to_string()).or_default();
            its.push(msg_id.to_owned());
        };
        match ids {
            Some(ids) => {
                for id in HashSet::<String>::from_iter(ids) {
                    self.tasks.get(&*id).inspect(|task| add(&id, task));
                }
            }
            None => self.tasks.iter().for_each(|(id, task)| add(id, task)),
        }
        engines
    }

    pub(crate) fn status(&self, verbose: bool) -> Vec<EngineTasks> {
        let mut rows: Vec<EngineTasks> = self
            .engines
            .iter()
            .map(|(uuid, engine)| EngineTasks {
                uuid: uuid.to_string(),
                running: engine.running,
                completed: engine.completed,
                ..EngineTasks::default()
            })
            .collect();
        if verbose {
            let mut running = self.running(None);
            for (row, engine) in rows.iter_mut().zip(self.engines.values()) {
                row.running_ids = running.remove(&row.uuid).unwrap_or_default();
                row.completed_ids = engine.recent.iter().map(|id| id.to_string()).collect();
            }
        }
        rows
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn direct(engine: &str) -> Direct {
        Direct {
            engine: engine.into(),
            client: [1].into(),
            header: [].into(),
            msg_type: "apply_request".into(),
        }
    }

    #[test]
    fn counts_follow_the_tasks() {
        let mut ledger = Ledger::default();
        ledger.joined("a");
        ledger.joined("b");
        assert!(ledger.sent("1", direct("a")));
        assert!(ledger.sent("2", direct("a")));
        assert!(!ledger.sent("2", direct("a")));
        assert!(ledger.sent("3", direct("b")));
        assert!(ledger.answered("1", true).is_some());
        assert!(ledger.answered("1", true).is_none());
        let status = ledger.status(true);
        let row = |uuid: &str| status.iter().find(|row| row.uuid == uuid).unwrap();
        assert_eq!(
            (row("a").running, row("a").completed, row("b").running),
            (1, 1, 1)
        );
        assert_eq!(
            (
                row("a").running_ids[0].as_str(),
                row("a").completed_ids[0].as_str()
            ),
            ("2", "1")
        );
        let lost = ledger.left("a");
        assert_eq!(lost.len(), 1);
        assert!(ledger.is_pending("3") && !ledger.is_pending("2"));
    }
}
