//! Building requests quickly: one header, four packed maps, one piece of memory.

use ipbroker_protocol::bundle;
use ipbroker_protocol::envelope::DELIMITER;
use ipbroker_protocol::frames::{Frames, Packed};
use ipbroker_protocol::session::Session;
use ipbroker_protocol::zmq::Message;
use serde::Serialize;

use crate::io::number_of;

/// A request that lacks only its signature: in a bundle it needs none.
pub(crate) struct Built {
    pub(crate) number: u64,
    pub(crate) msg_id: String,
    pub(crate) frames: Frames,
}

/// Builds a request from its maps.
pub(crate) fn build<M: Serialize + ?Sized, C: Serialize + ?Sized>(
    session: &Session,
    identity: Option<&str>,
    msg_type: &str,
    metadata: &M,
    content: &C,
    buffers: Vec<Message>,
) -> Built {
    build_packed(
        session,
        identity,
        session.packed_header(msg_type),
        &session.pack(metadata),
        &session.pack(content),
        buffers,
    )
}

/// Builds a request from its id, and maps that are packed already.
pub(crate) fn build_packed(
    session: &Session,
    identity: Option<&str>,
    (msg_id, header): (String, Vec<u8>),
    metadata: &[u8],
    content: &[u8],
    buffers: Vec<Message>,
) -> Built {
    let identity = identity.map(str::as_bytes);
    let maps = [&header, session.empty_map(), metadata, content];
    let bytes: usize = buffers.iter().map(|buffer| buffer.len()).sum();
    let frames = if bytes + content.len() <= bundle::LARGE {
        let frames = identity.into_iter().chain([DELIMITER, &[]]).chain(maps);
        Packed::new(frames.chain(buffers.iter().map(|buffer| &buffer[..]))).into()
    } else {
        let identities = identity.map(Message::from).into_iter().collect();
        Session::unsigned(identities, maps, buffers)
            .into_frames()
            .into()
    };
    let number = number_of(&msg_id, &session.id).map_or(0, |(number, _)| number);
    Built {
        number,
        msg_id,
        frames,
    }
}
