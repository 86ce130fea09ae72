//! What the I/O thread delivers, until the Python thread fetches it.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use ipbroker_client::{Listener, Part, Sink};

use crate::results;

/// Bytes of output that wait to be printed; what comes beyond is dropped, and that is said.
const PRINTED: usize = 8 << 20;

/// What arrived since it was last fetched.
#[derive(Default)]
pub(crate) struct Arrived {
    /// Results in the order of their arrival, with the tag of their submission, or one for each call of those that travelled
    /// together.
    pub(crate) parts: Vec<(Tags, Part)>,
    /// What was printed: by which try of which task, on which stream, what.
    pub(crate) printed: Vec<(String, String, String)>,
    bytes: usize,
    pub(crate) dropped: usize,
}

impl Arrived {
    fn is_empty(&self) -> bool {
        self.parts.is_empty() && self.printed.is_empty()
    }
}

/// What results are known by.
pub(crate) enum Tags {
    One(u64),
    Each(Box<[u64]>),
}

/// What arrives, and whoever waits for it.
#[derive(Default)]
pub(crate) struct Queue {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    arrived: Arrived,
    closed: bool,
}

impl Queue {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// All that has come; waits for something. `None`: the client is closed, and nothing is left.
    pub(crate) fn take(&self) -> Option<Arrived> {
        let mut state = self.lock();
        while state.arrived.is_empty() {
            if state.closed {
                return None;
            }
            state = self
                .changed
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
        }
        Some(std::mem::take(&mut state.arrived))
    }

    /// Whoever waits is told that nothing more will come.
    pub(crate) fn close(&self) {
        self.lock().closed = true;
        self.changed.notify_all();
    }
}

impl Sink for Queue {
    fn deliver(&self, tag: u64, part: Part) {
        self.lock().arrived.parts.push((Tags::One(tag), part));
    }

    fn deliver_each(&self, tags: &[u64], part: Part) {
        self.lock()
            .arrived
            .parts
            .push((Tags::Each(tags.into()), part));
    }

    fn flush(&self) {
        self.changed.notify_all();
    }
}

impl Listener for Queue {
    fn printed(&self, msg_id: &str, attempt: u32, stream: &str, _: Option<u64>, text: &str) {
        let arrived = &mut self.lock().arrived;
        if arrived.bytes + text.len() > PRINTED {
            arrived.dropped += text.len();
            return;
        }
        arrived.bytes += text.len();
        arrived.printed.push((
            results::try_of(msg_id, attempt),
            stream.to_owned(),
            text.to_owned(),
        ));
        self.changed.notify_all();
    }
}
