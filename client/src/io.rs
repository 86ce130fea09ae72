//! The background thread: sockets, the table of what is awaited, leases, acknowledgements.

mod pending;
mod ranges;
mod thread;

use std::sync::Arc;

use crossbeam_channel::Sender;
use ipbroker_protocol::envelope::Envelope;
use ipbroker_protocol::frames::Frames;
use ipbroker_protocol::wake::Waker;

use crate::error::{Error, Result, TaskError};
use crate::reply::Reply;

pub(crate) use thread::{Settings, start};

/// What arrived for the members `lo..hi` of a submission.
#[derive(Debug, Clone)]
pub struct Part {
    /// First member.
    pub lo: u64,
    /// One past the last member.
    pub hi: u64,
    /// The reply, or why there is none.
    pub outcome: std::result::Result<Arc<Reply>, Arc<TaskError>>,
}

/// Takes what arrives, on the I/O thread: be quick.
pub trait Sink: Send + Sync {
    /// Members of the submission known by `tag` ended.
    fn deliver(&self, tag: u64, part: Part);
    /// The controller holds the submission safely.
    fn acked(&self, tag: u64) {
        let _ = tag;
    }
    /// A batch of deliveries is over: wake whoever waits for them.
    fn flush(&self) {}
}

/// Hears what this client's tasks print while they run, on the I/O thread: be quick.
pub trait Listener: Send + Sync {
    /// A task printed something; `stream` is `stdout` or `stderr`. The id is the request's: of an array, without its member.
    fn printed(&self, msg_id: &str, stream: &str, text: &str);
}

/// The controller's sockets that a client uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Channel {
    Hub,
    Task,
    Mux,
    Control,
    Broadcast,
}

/// A task on its way out.
pub(crate) struct Submission {
    pub(crate) number: u64,
    pub(crate) channel: Channel,
    pub(crate) frames: Frames,
    pub(crate) members: u64,
    pub(crate) array: bool,
    pub(crate) ack: bool,
    /// Engines it was sent to: their loss ends it; position in the list = member, when there are several.
    pub(crate) engines: Vec<String>,
    pub(crate) sink: Arc<dyn Sink>,
    pub(crate) tag: u64,
}

/// What the rest of the library asks of the thread.
pub(crate) enum Request {
    Submit(Box<Submission>),
    /// Many at once: one message between threads, one bell.
    SubmitAll(Vec<Submission>),
    Query {
        number: u64,
        channel: Channel,
        frames: Frames,
        answer: Sender<Envelope>,
    },
    Forget(u64),
    /// From now on, output is listened to.
    Listen(Arc<dyn Listener>),
    Close,
}

/// The way to the thread.
#[derive(Debug, Clone)]
pub(crate) struct Handle {
    pub(crate) requests: Sender<Request>,
    pub(crate) waker: Waker,
}

impl Handle {
    pub(crate) fn send(&self, request: Request) -> Result<()> {
        self.requests.send(request).map_err(|_| Error::Closed)?;
        self.waker.wake();
        Ok(())
    }
}

/// The number at the end of one of our own ids: `SESSION_12` and `SESSION_12_ENGINE` (a broadcast's copy) are 12.
pub(crate) fn number_of<'a>(id: &'a str, session: &str) -> Option<(u64, Option<&'a str>)> {
    let rest = id.strip_prefix(session)?.strip_prefix('_')?;
    match rest.split_once('_') {
        None => Some((rest.parse().ok()?, None)),
        Some((number, engine)) => Some((number.parse().ok()?, Some(engine))),
    }
}

#[cfg(test)]
mod tests {
    use super::number_of;

    #[test]
    fn numbers_of_ids() {
        assert_eq!(number_of("s-1_12", "s-1"), Some((12, None)));
        assert_eq!(number_of("s-1_12_e_x", "s-1"), Some((12, Some("e_x"))));
        assert_eq!(number_of("other_12", "s-1"), None);
        assert_eq!(number_of("s-1_", "s-1"), None);
        assert_eq!(number_of("", "s-1"), None);
    }
}
