//! What passes messages on: the direct (MUX) relay with the broadcast tree, the control relay and the output relay.
//!
//! Relays swap identities: a client sends `[engine, <IDS|MSG>, …]`, the ROUTER adds the client's identity, and the engine
//! is sent `[engine, client, <IDS|MSG>, …]`, of which it sees the client. Frames are moved, never copied.

pub(crate) mod broadcast;
pub(crate) mod control;
pub(crate) mod iopub;
pub(crate) mod lane;
mod ledger;
pub(crate) mod mux;
pub(crate) mod outbox;

use ipbroker_protocol::{
    envelope::Envelope,
    message::{ErrorContent, Header, HeaderRef},
    session::Session,
    zmq::{self, Message},
};
use serde_json::json;

use self::{lane::hex, outbox::Refused};

/// How many messages of one socket are handled before the others get their turn.
const BATCH: usize = 256;

/// Whether a routing id was made up by the ROUTER: so with Python clients. They notice by themselves that an engine is
/// gone, and complain about a reply that comes besides.
fn is_anonymous(identity: &[u8]) -> bool {
    identity.len() == 5 && identity[0] == 0
}

/// The type of the reply to a request of this type.
pub(crate) fn reply_type(request: &str) -> String {
    format!(
        "{}_reply",
        request.strip_suffix("_request").unwrap_or(request)
    )
}

/// Waits for messages. `false`: sockets fail, which has been said.
pub(crate) fn poll(who: &str, items: &mut [zmq::PollItem<'_>], timeout: i64) -> bool {
    match zmq::poll(items, timeout) {
        Ok(_) | Err(zmq::Error::EINTR) => true,
        Err(error) => {
            tracing::error!(%error, "{who} cannot poll its sockets");
            false
        }
    }
}

/// The controller's own failure reply to a task: `request` is the packed header.
fn failure(
    session: &Session,
    identities: Vec<Message>,
    request: &[u8],
    msg_type: &str,
    engine: &str,
    error: &ErrorContent,
) -> Envelope {
    let header: Header = session.header(&reply_type(msg_type));
    let metadata = json!({"status": error.status, "engine": engine, "date": header.date, "dependencies_met": true});
    session.message(
        identities,
        &header,
        Some(request),
        &metadata,
        error,
        Vec::new(),
    )
}

/// A request that could not be passed on, with the answer that its client gets.
struct Bounced {
    msg_id: String,
    msg_type: String,
    engine: String,
    reply: Envelope,
    why: &'static str,
}

impl Bounced {
    /// `refused` has the engine's and the client's identities before the message. `None`: nothing to answer to.
    fn new(session: &Session, refused: Refused) -> Option<Self> {
        let why = refused.why();
        let (Refused::Unroutable(frames) | Refused::Full(frames)) = refused;
        let request = Envelope::parse(frames).ok()?;
        let header = HeaderRef::read(session.packer, request.header()).ok()?;
        let engine = hex(&request.identities()[0]);
        let error = ErrorContent::new("EngineError", format!("engine {engine} {why}"));
        let identities = [1, 0]
            .map(|index| Message::from(&request.identities()[index][..]))
            .into();
        let packed = request.header();
        let reply = failure(
            session,
            identities,
            packed,
            &header.msg_type,
            &engine,
            &error,
        );
        Some(Self {
            msg_id: header.msg_id.into_owned(),
            msg_type: header.msg_type.into_owned(),
            engine,
            reply,
            why,
        })
    }
}
