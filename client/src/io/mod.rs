//! The background thread: sockets, the table of what is awaited, leases, acknowledgements.

mod pending;
mod thread;

use std::sync::Arc;

use crossbeam_channel::Sender;
use ipbroker_protocol::connection::ClientConnection;
use ipbroker_protocol::envelope::Envelope;
use ipbroker_protocol::frames::Frames;
use ipbroker_protocol::message::TaskRequest;
use ipbroker_protocol::wake::Waker;

use crate::error::{Result, TaskError};
use crate::gather::Gather;
use crate::reply::Reply;

pub(crate) use pending::Pending;
pub(crate) use thread::{Settings, start};

/// What arrived for the members `lo..hi` of a submission. A single call that travelled with others is member `lo` of their
/// array.
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
    /// Single calls, known by `tags`, that travelled as members `part.lo..part.hi` of an array ended.
    fn deliver_each(&self, tags: &[u64], part: Part) {
        for (lo, tag) in (part.lo..).zip(tags) {
            let outcome = part.outcome.clone();
            let hi = lo + 1;
            self.deliver(*tag, Part { lo, hi, outcome });
        }
    }
    /// The controller holds the submission safely.
    fn acked(&self, tag: u64) {
        let _ = tag;
    }
    /// A batch of deliveries is over: wake whoever waits for them.
    fn flush(&self) {}
}

/// Hears what this client's tasks print while they run, on the I/O thread: be quick.
pub trait Listener: Send + Sync {
    /// A task, or a member of an array, printed something; `attempt` as in its reply, `stream` is `stdout` or `stderr`, `at` how
    /// many bytes of it were before, where the engine says that.
    fn printed(&self, msg_id: &str, attempt: u32, stream: &str, at: Option<u64>, text: &str);
}

/// The controller's sockets that a client sends to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Channel {
    Task,
    Hub,
    Mux,
    Control,
    Broadcast,
}

impl Channel {
    const ALL: [Self; 5] = [
        Self::Task,
        Self::Hub,
        Self::Mux,
        Self::Control,
        Self::Broadcast,
    ];

    fn port(self, connection: &ClientConnection) -> u16 {
        match self {
            Self::Task => connection.task,
            Self::Hub => connection.registration,
            Self::Mux => connection.mux,
            Self::Control => connection.control,
            Self::Broadcast => connection.broadcast,
        }
    }
}

/// A task on its way out.
pub(crate) struct Submission {
    pub(crate) number: u64,
    pub(crate) frames: Frames,
    pub(crate) awaited: Pending,
}

/// Who takes what arrives for a submission.
pub(crate) enum Takers {
    /// One sink, which knows it by this tag.
    One(Arc<dyn Sink>, u64),
    /// Each member is a call of its own.
    Each {
        /// What each is known by, …
        tags: Vec<u64>,
        /// … and the sinks of those up to a member.
        sinks: Vec<(usize, Arc<dyn Sink>)>,
    },
}

impl Takers {
    /// Members have ended.
    pub(crate) fn deliver(&self, part: Part) {
        match self {
            Self::One(sink, tag) => sink.deliver(*tag, part),
            Self::Each { tags, .. } => self.sinks(part.lo, part.hi, |sink, lo, hi| {
                let outcome = part.outcome.clone();
                let tags = &tags[lo as usize..hi as usize];
                sink.deliver_each(tags, Part { lo, hi, outcome });
            }),
        }
    }

    /// Their submission is safe. Of calls that were gathered nobody asks.
    pub(crate) fn acked(&self, touched: &mut Vec<Arc<dyn Sink>>) {
        if let Self::One(sink, tag) = self {
            sink.acked(*tag);
            touch(touched, sink);
        }
    }

    /// The sinks of some members, and which each has of them.
    pub(crate) fn sinks(&self, mut lo: u64, hi: u64, mut f: impl FnMut(&Arc<dyn Sink>, u64, u64)) {
        match self {
            Self::One(sink, _) => f(sink, lo, hi),
            Self::Each { sinks, .. } => {
                let first = sinks.partition_point(|(end, _)| *end as u64 <= lo);
                for (end, sink) in &sinks[first..] {
                    if lo >= hi {
                        return;
                    }
                    let to = hi.min(*end as u64);
                    f(sink, lo, to);
                    lo = to;
                }
            }
        }
    }
}

/// Notes that a sink has had something.
pub(crate) fn touch(touched: &mut Vec<Arc<dyn Sink>>, sink: &Arc<dyn Sink>) {
    if !touched.last().is_some_and(|last| Arc::ptr_eq(last, sink)) {
        touched.push(sink.clone());
    }
}

/// What the rest of the library asks of the thread.
pub(crate) enum Request {
    Submit(Box<Submission>),
    Query {
        number: u64,
        channel: Channel,
        /// Who is to answer it: the controller, where it is none.
        engine: Option<String>,
        frames: Frames,
        answer: Sender<Result<Envelope>>,
    },
    Forget(u64),
    /// From now on, output is listened to.
    Listen(Arc<dyn Listener>),
    Close,
}

/// The way to the thread.
#[derive(Clone)]
pub(crate) struct Handle {
    pub(crate) waker: Waker,
    pub(crate) gather: Arc<Gather>,
}

impl Handle {
    /// Asks the thread for something, after what was asked for before.
    pub(crate) fn send(&self, request: Request) -> Result<()> {
        self.gather.send(request)?;
        self.waker.wake();
        Ok(())
    }

    /// Submits a call, with others if many are under way; its id. `None`: it has to go by itself.
    pub(crate) fn gather(
        &self,
        kind: (&TaskRequest, &[u8]),
        argument: &[u8],
        taker: (&Arc<dyn Sink>, u64),
    ) -> Result<Option<String>> {
        let Some((id, first)) = self.gather.add(kind, argument, taker)? else {
            return Ok(None);
        };
        if first {
            // It sees to it that they do not wait long.
            self.waker.wake();
        }
        Ok(Some(id))
    }
}

/// The number at the end of one of our own ids: `SESSION_12`, `SESSION_12:0` (a member) and `SESSION_12_ENGINE` (a
/// broadcast's copy) are 12.
pub(crate) fn number_of<'a>(id: &'a str, session: &str) -> Option<(u64, Option<&'a str>)> {
    let rest = id.strip_prefix(session)?.strip_prefix('_')?;
    match rest.split_once('_') {
        None => {
            let number = rest.split_once(':').map_or(rest, |(number, _)| number);
            Some((number.parse().ok()?, None))
        }
        Some((number, engine)) => Some((number.parse().ok()?, Some(engine))),
    }
}

#[cfg(test)]
mod tests {
    use super::number_of;

    #[test]
    fn numbers_of_ids() {
        assert_eq!(number_of("s-1_12", "s-1"), Some((12, None)));
        assert_eq!(number_of("s-1_12:0", "s-1"), Some((12, None)));
        assert_eq!(number_of("s-1_12_e_x", "s-1"), Some((12, Some("e_x"))));
        assert_eq!(number_of("other_12", "s-1"), None);
        assert_eq!(number_of("s-1_", "s-1"), None);
        assert_eq!(number_of("", "s-1"), None);
    }
}
