//! What the I/O thread delivers, until the Python thread fetches it.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

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
    /// What was printed: by which task, on which stream, what.
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
    /// For the caller that waits for its own.
    own: Condvar,
}

#[derive(Default)]
struct State {
    arrived: Arrived,
    closed: bool,
    /// Whether what was taken may still be worked on.
    taken: bool,
    awaited: Option<Awaited>,
    /// The last that a caller was given: it comes back if the caller is interrupted.
    given: Option<(u64, Part)>,
}

/// The one call that a caller waits for itself, so that its result needs no other thread.
struct Awaited {
    tag: u64,
    /// It has come, to the caller if it is this.
    come: Option<Option<Part>>,
}

impl Queue {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// All that has come; waits for something. `None`: the client is closed, and nothing is left.
    pub(crate) fn take(&self) -> Option<Arrived> {
        let mut state = self.lock();
        state.taken = false;
        while state.arrived.is_empty() {
            if state.closed {
                return None;
            }
            state = self
                .changed
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
        }
        state.taken = true;
        Some(std::mem::take(&mut state.arrived))
    }

    /// The caller is about to wait for a call's result itself. False if that cannot be: another does so, or results are being
    /// handed out and this may be among them.
    pub(crate) fn expect(&self, tag: u64) -> bool {
        let mut state = self.lock();
        // Another caller has it and may be interrupted; one that was given before is done with.
        let given = state.given.as_ref().is_some_and(|(own, _)| *own == tag);
        let busy = given || state.awaited.is_some() || state.taken || !state.arrived.is_empty();
        if busy || state.closed {
            return false;
        }
        state.given = None;
        state.awaited = Some(Awaited { tag, come: None });
        true
    }

    /// Waits for what is [expected](Self::expect). `None`: it takes longer, or comes to the thread that fetches all results.
    pub(crate) fn wait_own(&self, limit: Duration) -> Option<Part> {
        let waits = |state: &mut State| {
            !state.closed && state.awaited.as_ref().is_some_and(|own| own.come.is_none())
        };
        let (mut state, _) = self
            .own
            .wait_timeout_while(self.lock(), limit, waits)
            .unwrap_or_else(PoisonError::into_inner);
        let own = state.awaited.take()?;
        let part = own.come??;
        state.given = Some((own.tag, part.clone()));
        Some(part)
    }

    /// The caller was interrupted: its result goes the way of all others.
    pub(crate) fn give_back(&self, tag: u64) {
        let mut state = self.lock();
        state.awaited.take_if(|own| own.tag == tag);
        if let Some((tag, part)) = state.given.take_if(|given| given.0 == tag) {
            state.arrived.parts.push((Tags::One(tag), part));
            self.changed.notify_all();
        }
    }

    /// Whoever waits is told that nothing more will come.
    pub(crate) fn close(&self) {
        self.lock().closed = true;
        self.changed.notify_all();
        self.own.notify_all();
    }
}

impl Sink for Queue {
    fn deliver(&self, tag: u64, part: Part) {
        let mut state = self.lock();
        if let Some(own) = state.awaited.as_mut().filter(|own| own.tag == tag) {
            let plain = results::is_plain(&part);
            own.come = Some(plain.then(|| part.clone()));
            self.own.notify_all();
            if plain {
                return;
            }
        }
        state.arrived.parts.push((Tags::One(tag), part));
    }

    fn deliver_each(&self, tags: &[u64], part: Part) {
        self.lock()
            .arrived
            .parts
            .push((Tags::Each(tags.into()), part));
    }

    fn flush(&self) {
        if !self.lock().arrived.is_empty() {
            self.changed.notify_all();
        }
    }
}

impl Listener for Queue {
    fn printed(&self, msg_id: &str, stream: &str, text: &str) {
        let arrived = &mut self.lock().arrived;
        if arrived.bytes + text.len() > PRINTED {
            arrived.dropped += text.len();
            return;
        }
        arrived.bytes += text.len();
        arrived
            .printed
            .push((msg_id.to_owned(), stream.to_owned(), text.to_owned()));
        self.changed.notify_all();
    }
}
