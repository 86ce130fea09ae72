//! Arrays: cut into parts on their way to the engines, and what comes back cut to what is left of it.

use ipbroker_protocol::{
    array::View,
    message::TaskMetadata,
    session::Session,
    value::{AnyMap, Map},
    zmq::Message,
};
use serde_json::json;

use super::Pure;
use crate::scheduler::task::frames::{at, chunk};

/// Parts into which an array is cut for each engine: enough for balance, few enough for speed.
const PARTS: u32 = 8;

/// An array on its way to the engines, part by part.
pub(super) struct Splitting {
    frames: Vec<Message>,
    metadata: Map,
    next: u32,
    count: u32,
    part: u32,
}

impl Pure {
    pub(super) fn split(&mut self, frames: Vec<Message>, count: u32) {
        let metadata = self
            .session
            .unpack::<AnyMap>(&frames[at::METADATA])
            .unwrap_or_default()
            .0;
        let engines = u32::try_from(self.known.len()).unwrap_or(1).max(1);
        let part = count.div_ceil(engines.saturating_mul(PARTS)).clamp(1, 4096);
        self.splitting.push_back(Splitting {
            frames,
            metadata,
            next: 0,
            count,
            part,
        });
    }

    pub(super) fn next_part(&mut self) -> Option<Vec<Message>> {
        let array = self.splitting.front_mut()?;
        let (lo, hi) = (array.next, array.count.min(array.next + array.part));
        let part = chunk(
            &self.session,
            &array.frames,
            &array.metadata,
            (lo, hi),
            |_| (),
        );
        array.next = hi;
        if hi == array.count {
            self.splitting.pop_front();
        }
        Some(part)
    }
}

/// A request, from the client's identity on, for this range of its members only.
pub(super) fn cut(
    session: &Session,
    frames: Vec<Message>,
    range: Option<(u64, u64)>,
) -> Option<Vec<Message>> {
    let metadata: AnyMap = session.unpack(&frames[at::METADATA]).ok()?;
    let has: TaskMetadata = session.unpack(&frames[at::METADATA]).ok()?;
    let number = |value: u64| u32::try_from(value).ok();
    let Some((lo, hi)) = range else {
        return Some(frames);
    };
    let (from, to) = has
        .range
        .or(has.array.map(|count| (0, count)))
        .filter(|(from, to)| *from <= lo && lo < hi && hi <= *to)?;
    if (from, to) == (lo, hi) {
        return Some(frames);
    }
    let (start, end) = (number(lo - from)?, number(hi - from)?);
    if let [offsets, values, ..] = &frames[at::BUFFERS..] {
        View::new(offsets, values, to - from).ok()?;
    }
    Some(chunk(
        session,
        &frames,
        &metadata.0,
        (start, end),
        |metadata| {
            metadata.insert("range".into(), json!([lo, hi]));
        },
    ))
}
