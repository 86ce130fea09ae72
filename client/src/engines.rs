//! The engines and the controller's state as the client hears of them.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// Something that a user may want to be told.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum Notice {
    /// The controller has not answered for a while.
    #[error("the controller has not answered for {} s", .0.as_secs())]
    Gone(Duration),
    /// It answers again.
    #[error("the controller is back")]
    Back,
    /// It says that it shuts down.
    #[error("the controller has shut down")]
    ShutDown,
    /// It has trouble: a full disk, no descriptors left.
    #[error("the controller is in trouble: {0}")]
    Trouble(String),
}

/// Notices that nobody takes are forgotten beyond this number.
const NOTICES: usize = 100;

#[derive(Debug, Default)]
struct State {
    by_id: BTreeMap<u32, String>,
    /// Questions for all engines that are open.
    asked: usize,
    /// What was heard meanwhile, oldest first: engines that joined, and those that left.
    heard: Vec<(u32, Option<String>)>,
    notices: Vec<Notice>,
    troubles: Vec<String>,
}

impl State {
    fn apply(&mut self, id: u32, uuid: Option<String>) {
        match uuid {
            Some(uuid) => self.by_id.insert(id, uuid),
            None => self.by_id.remove(&id),
        };
    }
}

/// What the controller answers to `connection_request`.
#[derive(Debug, Default, serde::Deserialize)]
#[serde(default)]
pub(crate) struct ConnectionReply {
    /// Uuids by id.
    pub(crate) engines: BTreeMap<String, String>,
}

/// Shared between the I/O thread and everyone else.
#[derive(Debug, Default)]
pub(crate) struct Engines {
    state: Mutex<State>,
    changed: Condvar,
    wrong: AtomicU64,
}

impl Engines {
    fn state(&self) -> MutexGuard<'_, State> {
        // Nothing panics while holding it; a poisoned table is still a table.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn joined(&self, id: u32, uuid: &str) {
        self.hear(id, Some(uuid));
    }

    pub(crate) fn left(&self, id: u32) {
        self.hear(id, None);
    }

    fn hear(&self, id: u32, uuid: Option<&str>) {
        let mut state = self.state();
        state.apply(id, uuid.map(str::to_owned));
        if state.asked > 0 {
            state.heard.push((id, uuid.map(str::to_owned)));
        }
        self.changed.notify_all();
    }

    /// The controller is asked for all engines.
    pub(crate) fn ask(&self) {
        self.state().asked += 1;
    }

    /// It has answered. What it said before is older than what was heard since it was asked.
    pub(crate) fn answered(&self, reply: ConnectionReply) {
        let engines = reply.engines.into_iter();
        let mut state = self.state();
        state.by_id = engines
            .filter_map(|(id, uuid)| Some((id.parse().ok()?, uuid)))
            .collect();
        state.asked = state.asked.saturating_sub(1);
        let heard = std::mem::take(&mut state.heard);
        for (id, uuid) in &heard {
            state.apply(*id, uuid.clone());
        }
        if state.asked > 0 {
            state.heard = heard;
        }
        self.changed.notify_all();
    }

    pub(crate) fn all(&self) -> BTreeMap<u32, String> {
        self.state().by_id.clone()
    }

    pub(crate) fn len(&self) -> usize {
        self.state().by_id.len()
    }

    /// Waits until there are `count`; returns how many there are.
    pub(crate) fn wait_for(&self, count: usize, timeout: Option<Duration>) -> usize {
        let too_few = |state: &mut State| state.by_id.len() < count;
        let (state, _) = self
            .changed
            .wait_timeout_while(self.state(), timeout.unwrap_or(Duration::MAX), too_few)
            .unwrap_or_else(PoisonError::into_inner);
        state.by_id.len()
    }

    pub(crate) fn wrong_signature(&self) {
        self.wrong.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn wrong_signatures(&self) -> u64 {
        self.wrong.load(Ordering::Relaxed)
    }

    /// Something happened to the controller.
    pub(crate) fn notice(&self, notice: Notice) {
        let mut state = self.state();
        if state.notices.len() < NOTICES {
            state.notices.push(notice);
        }
    }

    pub(crate) fn troubles(&self, troubles: &[String]) {
        let mut state = self.state();
        if state.troubles != troubles {
            let new: Vec<_> = troubles
                .iter()
                .filter(|t| !state.troubles.contains(t))
                .cloned()
                .collect();
            state.notices.extend(new.into_iter().map(Notice::Trouble));
            state.troubles = troubles.to_vec();
        }
    }

    pub(crate) fn take_notices(&self) -> Vec<Notice> {
        std::mem::take(&mut self.state().notices)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_heard_is_newer_than_an_answer() {
        let reply = |ids: &[u32]| ConnectionReply {
            engines: ids
                .iter()
                .map(|id| (id.to_string(), format!("uuid {id}")))
                .collect(),
        };
        let engines = Engines::default();
        engines.joined(0, "gone before");
        engines.ask();
        engines.joined(1, "uuid 1");
        engines.ask();
        engines.left(2);
        engines.answered(reply(&[2, 3]));
        assert_eq!(Vec::from_iter(engines.all().into_keys()), [1, 3]);
        engines.answered(reply(&[1, 2]));
        assert_eq!(Vec::from_iter(engines.all().into_keys()), [1]);
        engines.answered(reply(&[2]));
        assert_eq!(Vec::from_iter(engines.all().into_keys()), [2]);
    }
}
