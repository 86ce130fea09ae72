//! What the I/O thread delivers, until the Python thread fetches it.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use ipbroker_client::{Part, Sink};

/// Results by tag, in the order of their arrival.
#[derive(Default)]
pub(crate) struct Queue {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    parts: Vec<(u64, Part)>,
    closed: bool,
}

impl Queue {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// All that has come; waits for something. `None`: the client is closed, and nothing is left.
    pub(crate) fn take(&self) -> Option<Vec<(u64, Part)>> {
        let mut state = self.lock();
        while state.parts.is_empty() {
            if state.closed {
                return None;
            }
            state = self
                .changed
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
        }
        Some(std::mem::take(&mut state.parts))
    }

    /// Whoever waits is told that nothing more will come.
    pub(crate) fn close(&self) {
        self.lock().closed = true;
        self.changed.notify_all();
    }
}

impl Sink for Queue {
    fn deliver(&self, tag: u64, part: Part) {
        self.lock().parts.push((tag, part));
    }

    fn flush(&self) {
        self.changed.notify_all();
    }
}
