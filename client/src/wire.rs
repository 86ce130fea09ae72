//! Building requests quickly: one header, four packed maps, one signature.

use ipbroker_protocol::envelope::Envelope;
use ipbroker_protocol::session::Session;
use ipbroker_protocol::time;
use ipbroker_protocol::zmq::Message;
use serde::Serialize;

use crate::io::number_of;

/// A header as it is packed; `ipbroker_protocol::message::Header` owns its strings, which costs more than packing them.
#[derive(Serialize)]
struct HeaderOut<'a> {
    msg_id: &'a str,
    msg_type: &'a str,
    username: &'a str,
    session: &'a str,
    date: &'a str,
    version: &'a str,
}

/// A request that is ready to be sent.
pub(crate) struct Built {
    pub(crate) number: u64,
    pub(crate) msg_id: String,
    pub(crate) envelope: Envelope,
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
        msg_type,
        &session.pack(metadata),
        &session.pack(content),
        buffers,
    )
}

/// Builds a request from maps that are packed already.
pub(crate) fn build_packed(
    session: &Session,
    identity: Option<&str>,
    msg_type: &str,
    metadata: &[u8],
    content: &[u8],
    buffers: Vec<Message>,
) -> Built {
    let msg_id = session.next_id();
    let header = session.pack(&HeaderOut {
        msg_id: &msg_id,
        msg_type,
        username: &session.username,
        session: &session.id,
        date: &time::now_utc(),
        version: "5.3",
    });
    let identities = identity
        .map(|identity| Message::from(identity.as_bytes()))
        .into_iter()
        .collect();
    let envelope = session.packed(
        identities,
        [&header, session.empty_map(), metadata, content],
        buffers,
    );
    let number = number_of(&msg_id, &session.id).map_or(0, |(number, _)| number);
    Built {
        number,
        msg_id,
        envelope,
    }
}
