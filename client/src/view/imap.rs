//! A map over arguments without an end: a bounded number of calls is on its way.

use std::collections::{BTreeMap, VecDeque};
use std::marker::PhantomData;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use ipbroker_protocol::message::{FunctionCall, TaskRequest, types};
use ipbroker_protocol::zmq::Message;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::load_balanced::pack;
use crate::client::{Client, Template};
use crate::error::{Error, Result};
use crate::io::{Part, Sink};
use crate::result::value_of;

#[derive(Default)]
struct Arrived {
    parts: Mutex<VecDeque<(u64, Part)>>,
    changed: Condvar,
}

impl Arrived {
    fn lock(&self) -> MutexGuard<'_, VecDeque<(u64, Part)>> {
        self.parts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Everything that has arrived; waits for something.
    fn take(&self) -> VecDeque<(u64, Part)> {
        let mut parts = self
            .changed
            .wait_while(self.lock(), |parts| parts.is_empty())
            .unwrap_or_else(PoisonError::into_inner);
        std::mem::take(&mut *parts)
    }
}

impl Sink for Arrived {
    fn deliver(&self, tag: u64, part: Part) {
        self.lock().push_back((tag, part));
    }

    fn flush(&self) {
        self.changed.notify_one();
    }
}

/// Results in the order of their arguments; [`Imap::unordered`] gives them as they come.
pub struct Imap<R, I> {
    client: Client,
    template: Template,
    /// Until they end, or one cannot be sent.
    arguments: Option<I>,
    /// Why that was; told behind the results of those before it.
    broken: Option<Error>,
    in_flight: usize,
    ordered: bool,
    arrived: Arc<Arrived>,
    /// Taken from `arrived`, not yet looked at.
    batch: VecDeque<(u64, Part)>,
    /// Came before its turn.
    early: BTreeMap<u64, Part>,
    submitted: u64,
    given: u64,
    finished: u64,
    kind: PhantomData<fn() -> R>,
}

impl<R: DeserializeOwned, A: Serialize, I: Iterator<Item = A>> Imap<R, I> {
    pub(crate) fn new(
        client: Client,
        options: &TaskRequest,
        name: &str,
        arguments: I,
        in_flight: usize,
    ) -> Result<Self> {
        let call = FunctionCall::named(name);
        let template = client.template(types::FUNCTION_REQUEST, options.clone(), &call);
        let mut imap = Self {
            client,
            template,
            arguments: Some(arguments),
            broken: None,
            in_flight: in_flight.max(1),
            ordered: true,
            arrived: Arc::new(Arrived::default()),
            batch: VecDeque::new(),
            early: BTreeMap::new(),
            submitted: 0,
            given: 0,
            finished: 0,
            kind: PhantomData,
        };
        imap.fill();
        match imap.broken.take_if(|_| imap.submitted == 0) {
            Some(error) => Err(error),
            None => Ok(imap),
        }
    }

    /// Results as they come instead of in order.
    #[must_use]
    pub fn unordered(mut self) -> Self {
        self.ordered = false;
        self
    }

    /// Submits until enough is on its way. In order, what waits for its turn counts too: memory stays bounded.
    fn fill(&mut self) {
        while let Some(arguments) = &mut self.arguments
            && (self.submitted - self.finished) < self.in_flight as u64
            && self.early.len() < self.in_flight.saturating_mul(4)
        {
            let sent = arguments.next().map(|argument| self.submit(&argument));
            if !matches!(sent, Some(Ok(()))) {
                self.arguments = None;
                self.broken = sent.and_then(Result::err);
            }
        }
    }

    fn submit(&mut self, argument: &A) -> Result<()> {
        let buffers = vec![Message::from(pack(argument)?)];
        let sink = self.arrived.clone();
        self.client
            .submit_like(&self.template, None, buffers, sink, self.submitted)?;
        self.submitted += 1;
        Ok(())
    }

    fn step(&mut self) -> Option<Part> {
        loop {
            if self.ordered
                && let Some(part) = self.early.remove(&self.given)
            {
                self.given += 1;
                return Some(part);
            }
            if let Some((tag, part)) = self.batch.pop_front() {
                self.finished += 1;
                if self.ordered {
                    self.early.insert(tag, part);
                    continue;
                }
                self.given += 1;
                return Some(part);
            }
            // All that has arrived is dealt with: send as many again, in one go.
            self.fill();
            if self.given == self.submitted {
                return None;
            }
            self.batch = self.arrived.take();
        }
    }
}

impl<R: DeserializeOwned, A: Serialize, I: Iterator<Item = A>> Iterator for Imap<R, I> {
    type Item = Result<R, Error>;

    fn next(&mut self) -> Option<Self::Item> {
        match self.step() {
            Some(part) => Some(value_of(&part, part.lo)),
            None => self.broken.take().map(Err),
        }
    }
}
