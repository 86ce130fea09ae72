//! Where the parts of a request are, and chunks of arrays.

use ipbroker_protocol::{
    array::View,
    envelope::DELIMITER,
    resources::Grant,
    session::Session,
    value::{AnyMap, Map},
    zmq::Message,
};
use serde_json::Value;

/// Positions in a request as the task thread keeps it: the client's identity, then the message.
pub(crate) mod at {
    pub(crate) const SIGNATURE: usize = 2;
    pub(crate) const HEADER: usize = 3;
    pub(crate) const PARENT: usize = 4;
    pub(crate) const METADATA: usize = 5;
    pub(crate) const CONTENT: usize = 6;
    pub(crate) const BUFFERS: usize = 7;
}

/// What a task has of its host while it runs.
#[derive(Debug)]
pub(crate) struct Had {
    pub(crate) granted: Grant,
    /// Which of its alternatives that is, from 1.
    pub(crate) alternative: Option<u32>,
    /// The hosts that it holds as wholes, its own first.
    pub(crate) nodes: Vec<String>,
}

impl Had {
    pub(super) fn tell(&self, metadata: &mut Map) {
        if !self.granted.is_empty() {
            metadata.insert("granted".into(), serde_json::json!(self.granted));
        }
        if !self.nodes.is_empty() {
            metadata.insert("nodelist".into(), serde_json::json!(self.nodes));
        }
        if let Some(alternative) = self.alternative {
            metadata.insert("alternative".into(), alternative.into());
        }
    }
}

/// The message with other metadata, signed anew.
pub(crate) fn with_metadata(
    session: &Session,
    mut frames: Vec<Message>,
    change: impl FnOnce(&mut Map),
) -> Vec<Message> {
    let mut metadata: Map = session
        .unpack::<AnyMap>(&frames[at::METADATA])
        .unwrap_or_default()
        .0;
    change(&mut metadata);
    frames[at::METADATA] = Message::from(session.pack(&metadata));
    sign(session, &mut frames);
    frames
}

fn sign(session: &Session, frames: &mut [Message]) {
    let maps = [
        &frames[at::HEADER][..],
        &frames[at::PARENT],
        &frames[at::METADATA],
        &frames[at::CONTENT],
    ];
    frames[at::SIGNATURE] = Message::from(session.signer().sign(maps).as_ref());
}

/// The message of members `lo..hi` of an array; `tell` adds to its metadata.
pub(crate) fn chunk(
    session: &Session,
    frames: &[Message],
    metadata: &Map,
    (lo, hi): (u32, u32),
    tell: impl FnOnce(&mut Map),
) -> Vec<Message> {
    let copy = |index: usize| Message::from(&frames[index][..]);
    let mut metadata = metadata.clone();
    metadata.insert("range".into(), serde_json::json!([lo, hi]));
    tell(&mut metadata);
    let mut chunk = vec![
        copy(0),
        Message::from(DELIMITER),
        Message::new(),
        copy(at::HEADER),
        copy(at::PARENT),
    ];
    chunk.push(Message::from(session.pack(&metadata)));
    chunk.push(copy(at::CONTENT));
    if let [offsets, blob, rest @ ..] = &frames[at::BUFFERS..] {
        let (offsets, blob) = View::trusted(offsets, blob).slice(lo as usize, hi as usize);
        chunk.push(Message::from(offsets));
        chunk.push(Message::from(blob));
        chunk.extend(rest.iter().map(|buffer| Message::from(&buffer[..])));
    }
    sign(session, &mut chunk);
    chunk
}

/// The part of an array's reply that is about members `lo..hi`. `frames` are the reply from the client's identity on.
pub(super) fn part(
    session: &Session,
    frames: &[Message],
    of: (u32, u32),
    lo: u32,
    hi: u32,
) -> Vec<Message> {
    let mut part: Vec<Message> = frames
        .iter()
        .map(|frame| Message::from(&frame[..]))
        .collect();
    let (first, last) = ((lo - of.0) as usize, (hi - of.0) as usize);
    let inside = |entry: &Value| {
        let index = entry[0].as_u64();
        index.is_some_and(|index| (u64::from(lo)..u64::from(hi)).contains(&index))
    };
    let has_values = part.len() >= at::BUFFERS + 2;
    if has_values && let Ok(AnyMap(mut content)) = session.unpack::<AnyMap>(&part[at::CONTENT]) {
        if let Some(Value::Array(members)) = content.get_mut("members") {
            members.truncate(last);
            members.drain(..first.min(members.len()));
        }
        if let Some(Value::Array(printed)) = content.get_mut("printed") {
            printed.retain(inside);
        }
        part[at::CONTENT] = Message::from(session.pack(&content));
    }
    let mut part = with_metadata(session, part, |metadata| {
        metadata.insert("range".into(), serde_json::json!([lo, hi]));
        if let Some(seconds) = metadata.get("duration").and_then(Value::as_f64) {
            let share = f64::from(hi - lo) / f64::from(of.1 - of.0);
            metadata.insert("duration".into(), (seconds * share).into());
        }
        if let Some(Value::Array(failed)) = metadata.get_mut("failed") {
            failed.retain(inside);
            if failed.is_empty() {
                // Those that failed are in other parts, or are tried again.
                metadata.insert("status".into(), "ok".into());
            }
        }
    });
    if has_values {
        let view = View::trusted(&part[at::BUFFERS], &part[at::BUFFERS + 1]);
        // One value for all members is one value for some of them.
        if view.len() as u32 == of.1 - of.0 {
            let (offsets, blob) = view.slice(first, last);
            part[at::BUFFERS] = Message::from(offsets);
            part[at::BUFFERS + 1] = Message::from(blob);
        }
    }
    part
}
