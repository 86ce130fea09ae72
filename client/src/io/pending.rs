//! What is awaited, by the number in its id.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;

use foldhash::fast::RandomState;
use ipbroker_protocol::frames::Frames;
use ipbroker_protocol::session::Session;
use rangemap::RangeSet;

use super::{Channel, Part, Sink, Takers, touch};
use crate::error::TaskError;
use crate::gather::Gather;
use crate::reply::Reply;

/// One submission without all of its results.
pub(crate) struct Pending {
    /// What follows the number in its id.
    pub(crate) suffix: &'static str,
    pub(crate) channel: Channel,
    pub(crate) members: u64,
    pub(crate) array: bool,
    /// The controller is told what we have received.
    pub(crate) ack: bool,
    /// Its frames, until the controller has acknowledged them.
    pub(crate) kept: Option<Frames>,
    /// Engines it was sent to: their loss ends it; position in the list = member, when there are several.
    pub(crate) engines: Vec<String>,
    pub(crate) takers: Takers,
    pub(crate) received: RangeSet<u64>,
    pub(crate) left: u64,
}

impl Pending {
    /// A single task, or an array of `members`.
    pub(crate) fn new(channel: Channel, array: Option<u64>, takers: Takers) -> Self {
        let members = array.unwrap_or(1);
        Self {
            suffix: "",
            channel,
            members,
            array: array.is_some(),
            ack: false,
            kept: None,
            engines: Vec::new(),
            takers,
            received: RangeSet::new(),
            left: members,
        }
    }

    /// The id of the submission with this number.
    pub(crate) fn id(&self, session: &Session, number: u64) -> String {
        format!("{}_{number}{}", session.id, self.suffix)
    }

    /// Members `lo..hi` have ended; those that had not yet are delivered. How many those are.
    pub(crate) fn deliver(
        &mut self,
        lo: u64,
        hi: u64,
        outcome: &Result<Arc<Reply>, Arc<TaskError>>,
    ) -> u64 {
        let before = self.left;
        if self.members == 1 {
            // A single call needs no list of what has come.
            if std::mem::take(&mut self.left) == 1 {
                let outcome = outcome.clone();
                self.takers.deliver(Part {
                    lo: 0,
                    hi: 1,
                    outcome,
                });
            }
            return before;
        }
        let new: Vec<Range<u64>> = self.received.gaps(&(lo..hi)).collect();
        for range in new {
            let (lo, hi) = (range.start, range.end);
            self.received.insert(range);
            self.left -= hi - lo;
            let outcome = outcome.clone();
            self.takers.deliver(Part { lo, hi, outcome });
        }
        before - self.left
    }
}

pub(crate) struct Table {
    entries: HashMap<u64, Pending, RandomState>,
    /// Hears how many calls end.
    gather: Arc<Gather>,
}

impl Table {
    pub(crate) fn new(gather: Arc<Gather>) -> Self {
        let entries = HashMap::default();
        Self { entries, gather }
    }

    /// Members of a submission have ended; it goes when all have.
    pub(crate) fn deliver(
        &mut self,
        number: u64,
        (lo, hi): (u64, u64),
        outcome: &Result<Arc<Reply>, Arc<TaskError>>,
        sinks: &mut Vec<Arc<dyn Sink>>,
    ) {
        let Some(pending) = self.entries.get_mut(&number) else {
            return;
        };
        self.gather.ended(pending.deliver(lo, hi, outcome));
        pending
            .takers
            .sinks(lo, hi, |sink, _, _| touch(sinks, sink));
        if pending.left == 0 {
            self.entries.remove(&number);
        }
    }

    pub(crate) fn insert(&mut self, number: u64, pending: Pending) {
        self.entries.insert(number, pending);
    }

    pub(crate) fn get(&self, number: u64) -> Option<&Pending> {
        self.entries.get(&number)
    }

    pub(crate) fn get_mut(&mut self, number: u64) -> Option<&mut Pending> {
        self.entries.get_mut(&number)
    }

    /// Numbers of what goes over `channel`, in order of submission.
    pub(crate) fn numbers(&self, channel: Channel) -> Vec<u64> {
        let mut numbers: Vec<u64> = self
            .entries
            .iter()
            .filter(|(_, p)| p.channel == channel)
            .map(|(number, _)| *number)
            .collect();
        numbers.sort_unstable();
        numbers
    }

    /// Ends everything that was sent to an engine that is gone.
    pub(crate) fn engine_lost(&mut self, uuid: &str, sinks: &mut Vec<Arc<dyn Sink>>) {
        let hit: Vec<u64> = self
            .entries
            .iter()
            .filter(|(_, p)| p.engines.iter().any(|engine| engine == uuid))
            .map(|(number, _)| *number)
            .collect();
        for number in hit {
            let Some(pending) = self.entries.get(&number) else {
                continue;
            };
            let error = Arc::new(TaskError::lost(uuid));
            let whole = pending.engines.len() == 1;
            let at = pending
                .engines
                .iter()
                .position(|engine| engine == uuid)
                .unwrap_or(0) as u64;
            let range = if whole {
                (0, pending.members)
            } else {
                (at, at + 1)
            };
            self.deliver(number, range, &Err(error), sinks);
        }
    }

    /// Ends everything that is still awaited, for the same reason.
    pub(crate) fn fail(&mut self, numbers: &[u64], ename: &str, evalue: &str) {
        let error = Arc::new(TaskError {
            ename: ename.into(),
            evalue: evalue.into(),
            ..TaskError::default()
        });
        let mut sinks = Vec::new();
        for number in numbers {
            let members = self.entries.get(number).map_or(0, |one| one.members);
            self.deliver(*number, (0, members), &Err(error.clone()), &mut sinks);
        }
        sinks.iter().for_each(|sink| sink.flush());
    }

    /// Every number, whatever the channel.
    pub(crate) fn all(&self) -> Vec<u64> {
        let mut numbers: Vec<u64> = self.entries.keys().copied().collect();
        numbers.sort_unstable();
        numbers
    }
}
