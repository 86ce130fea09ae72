//! What the records of one transaction say of each task, and the columns that follow from it.

use std::collections::HashMap;

use ipbroker_protocol::session::Packer;

use super::event::{Finished, Frame, Frames, Outcome, Submitted};
use super::unpack::{Glance, is_empty_map, parse_time};

/// By a task's key.
pub(super) type Keyed<T> = HashMap<u64, T, foldhash::fast::RandomState>;

/// What happened to one task.
#[derive(Debug, Default)]
pub(super) struct Fold<'a> {
    pub(super) key: u64,
    pub(super) submitted: Option<Submitted<'a>>,
    pub(super) dispatched: Option<(&'a str, u32, i64)>,
    pub(super) requeued: bool,
    /// What it has left since it was requeued.
    pub(super) retries: Option<u32>,
    pub(super) finished: Option<Finished<'a>>,
    /// An array has ended: like this, then.
    pub(super) ended: Option<(Outcome, i64)>,
}

/// The frames of a message by column.
#[derive(Debug, Default)]
pub(super) struct Parts<'a> {
    pub(super) header: Option<&'a [u8]>,
    pub(super) parent: Option<&'a [u8]>,
    pub(super) metadata: Option<&'a [u8]>,
    pub(super) content: Option<&'a [u8]>,
    pub(super) buffers: Option<&'a [u8]>,
    pub(super) file: Option<u64>,
}

impl<'a> Parts<'a> {
    pub(super) fn of(frames: &Frames<'a>) -> Self {
        let mut iter = frames.iter();
        let mut map = || match iter.next() {
            Some(Frame::Inline(bytes)) => Some(bytes),
            _ => None,
        };
        let mut parts = Parts {
            header: map(),
            parent: map(),
            metadata: map(),
            ..Parts::default()
        };
        parts.parent = parts.parent.filter(|p| !is_empty_map(p));
        let mut rest = iter.rest();
        if let Some(Frame::Inline(bytes)) = iter.next() {
            parts.content = Some(bytes);
            rest = iter.rest();
        }
        parts.buffers = (rest.0 > 0).then_some(rest.1);
        parts.file = (frames.file != 0).then_some(frames.file);
        parts
    }

    pub(super) fn glance(part: Option<&'a [u8]>, packing: Packer) -> Glance<'a> {
        part.map_or_else(Glance::default, |p| Glance::at(p, packing))
    }
}

/// The folds of a transaction, in the order of their first record.
#[derive(Debug, Default)]
pub(super) struct Folds<'a> {
    pub(super) list: Vec<Fold<'a>>,
    pub(super) by_key: Keyed<usize>,
    pub(super) by_id: Option<HashMap<&'a str, u64, foldhash::fast::RandomState>>,
}

impl<'a> Folds<'a> {
    /// With room for so many tasks.
    pub(super) fn with_room(count: usize) -> Self {
        Self {
            list: Vec::with_capacity(count),
            by_key: Keyed::with_capacity_and_hasher(count, Default::default()),
            by_id: None,
        }
    }

    pub(super) fn at(&mut self, key: u64) -> &mut Fold<'a> {
        let list = &mut self.list;
        let i = *self.by_key.entry(key).or_insert_with(|| {
            list.push(Fold {
                key,
                ..Fold::default()
            });
            list.len() - 1
        });
        &mut list[i]
    }

    pub(super) fn submitted(&mut self, submitted: Submitted<'a>) {
        self.at(submitted.key).submitted = Some(submitted);
        if let Some(by_id) = &mut self.by_id {
            by_id.insert(submitted.msg_id, submitted.key);
        }
    }

    pub(super) fn key_of(&mut self, msg_id: &str) -> Option<u64> {
        let by_id = self.by_id.get_or_insert_with(|| {
            let submitted = self.list.iter().filter_map(|fold| fold.submitted);
            submitted.map(|s| (s.msg_id, s.key)).collect()
        });
        by_id.get(msg_id).copied()
    }
}

/// What a result says when.
pub(super) struct Times {
    pub(super) started: Option<i64>,
    pub(super) completed: i64,
}

impl Times {
    pub(super) fn of(parts: &Parts<'_>, received: i64, packing: Packer) -> Self {
        let metadata = Parts::glance(parts.metadata, packing);
        let completed = metadata
            .completed
            .as_deref()
            .and_then(parse_time)
            .or_else(|| {
                let header = Parts::glance(parts.header, packing);
                header.date.as_deref().and_then(parse_time)
            });
        Times {
            started: metadata.started.as_deref().and_then(parse_time),
            completed: completed.unwrap_or(received),
        }
    }
}

/// The columns of a result, empty if there is none.
#[derive(Default)]
pub(super) struct ResultColumns<'a> {
    pub(super) outcome: Option<Outcome>,
    pub(super) engine: Option<&'a str>,
    pub(super) dispatched: bool,
    pub(super) code: Option<i64>,
    pub(super) started: Option<i64>,
    pub(super) completed: Option<i64>,
    pub(super) received: Option<i64>,
    pub(super) parts: Parts<'a>,
}

impl<'a> ResultColumns<'a> {
    pub(super) fn of(fold: &Fold<'a>, packing: Packer) -> Self {
        let waits = fold.requeued && fold.finished.is_none();
        let dispatched = fold.dispatched.filter(|_| !waits);
        let mut columns = ResultColumns {
            engine: dispatched.and_then(|d| some(d.0)),
            dispatched: dispatched.is_some(),
            ..ResultColumns::default()
        };
        if let Some((outcome, at)) = fold.ended {
            columns.outcome = Some(outcome);
            columns.completed = Some(at);
            columns.received = Some(at);
        }
        if let Some(finished) = &fold.finished {
            columns.parts = Parts::of(&finished.frames);
            let times = Times::of(&columns.parts, finished.received, packing);
            columns.outcome = Some(finished.outcome);
            columns.engine = some(finished.engine).or(columns.engine);
            columns.started = times.started;
            columns.completed = Some(times.completed);
            columns.received = Some(finished.received);
            // Only replies to commands have a small content with a code in it.
            let content = columns.parts.content.filter(|c| c.len() < 4096);
            columns.code = Parts::glance(content, packing).code;
        }
        columns
    }

    pub(super) fn status(&self, array: bool) -> &'static str {
        match self.outcome {
            Some(outcome) => outcome.as_str(),
            None if array => "running",
            None if self.dispatched => "dispatched",
            None => "waiting",
        }
    }
}

pub(super) fn some(text: &str) -> Option<&str> {
    (!text.is_empty()).then_some(text)
}

pub(super) fn head(text: &str, chars: usize) -> &str {
    text.char_indices()
        .nth(chars)
        .map_or(text, |(i, _)| &text[..i])
}
