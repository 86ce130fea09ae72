//! Sending through a ROUTER without ever waiting: what a peer's socket does not take now is kept here, in the peer's own
//! queue, accounted in bytes. One slow peer neither holds up the others nor takes all the memory.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use foldhash::{HashMap, HashMapExt};
use ipbroker_protocol::{
    envelope::FRAME_OVERHEAD,
    zmq::{self, Message, Socket},
};

/// Messages that libzmq keeps for a peer before it says that it is full.
pub(crate) const SOCKET_MESSAGES: i32 = 1000;

/// Bytes that are kept for one peer beyond those.
const PEER_BYTES: usize = 1 << 30;

/// Bytes that are kept for all peers of a socket.
const ALL_BYTES: usize = 4 << 30;

/// The first pause before a full peer is tried again, and the longest.
const PAUSES: (Duration, Duration) = (Duration::from_millis(1), Duration::from_millis(40));

/// No identity in ZMTP is longer.
const IDENTITY_MOST: usize = 255;

/// Why a message was not taken; it comes back whole.
#[derive(Debug)]
pub(crate) enum Refused {
    /// No peer has this identity.
    Unroutable(Vec<Message>),
    /// The peer's queue has reached its limit.
    Full(Vec<Message>),
}

impl Refused {
    /// What is to be said of the peer.
    pub(crate) fn why(&self) -> &'static str {
        match self {
            Self::Unroutable(_) => "is not connected",
            Self::Full(_) => "does not take its messages: its queue is full",
        }
    }
}

impl std::fmt::Display for Refused {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Unroutable(_) => "no peer has this identity",
            Self::Full(_) => "the peer's queue is full",
        })
    }
}

/// The sending side of a ROUTER.
#[derive(Debug)]
pub(crate) struct Outbox {
    queues: HashMap<Box<[u8]>, Queue>,
    bytes: usize,
    retry: Option<Instant>,
    pause: Duration,
    /// Peers that are not connected are waited for, until they are forgotten.
    patient: bool,
}

#[derive(Debug, Default)]
struct Queue {
    messages: VecDeque<Vec<Message>>,
    bytes: usize,
}

impl Outbox {
    pub(crate) fn new() -> Self {
        Self {
            queues: HashMap::new(),
            bytes: 0,
            retry: None,
            pause: PAUSES.0,
            patient: false,
        }
    }

    /// One that keeps what is for peers that are not connected (yet, or for a moment), until [`Outbox::forget`].
    pub(crate) fn patient() -> Self {
        Self {
            patient: true,
            ..Self::new()
        }
    }

    /// Drops what is kept for a peer.
    pub(crate) fn forget(&mut self, peer: &[u8]) {
        if let Some(queue) = self.queues.remove(peer) {
            self.bytes -= queue.bytes;
        }
    }

    /// Sends to the peer that the first frame names, now or as soon as it takes more.
    pub(crate) fn send(
        &mut self,
        socket: &Socket,
        mut frames: Vec<Message>,
    ) -> Result<(), Refused> {
        self.pass(socket, &mut frames)
    }

    /// As [`Outbox::send`], and leaves the room of the frames for the next message.
    pub(crate) fn pass(
        &mut self,
        socket: &Socket,
        frames: &mut Vec<Message>,
    ) -> Result<(), Refused> {
        if !self.queues.is_empty() && self.queues.contains_key(&frames[0][..]) {
            return self.keep(std::mem::take(frames));
        }
        match try_send(socket, frames) {
            Ok(()) => Ok(()),
            Err(error)
                if self.patient || matches!(error, zmq::Error::EAGAIN | zmq::Error::EINTR) =>
            {
                self.retry.get_or_insert_with(|| Instant::now() + PAUSES.0);
                self.keep(std::mem::take(frames))
            }
            Err(_) => Err(Refused::Unroutable(std::mem::take(frames))),
        }
    }

    fn keep(&mut self, frames: Vec<Message>) -> Result<(), Refused> {
        let cost = cost(&frames);
        let queue = self.queues.entry(frames[0][..].into()).or_default();
        // A single message is always taken, however large.
        if !queue.messages.is_empty()
            && (queue.bytes + cost > PEER_BYTES || self.bytes + cost > ALL_BYTES)
        {
            return Err(Refused::Full(frames));
        }
        queue.bytes += cost;
        self.bytes += cost;
        queue.messages.push_back(frames);
        Ok(())
    }

    /// How long a poll may last before [`Outbox::flush`] is due.
    pub(crate) fn timeout(&self) -> Option<Duration> {
        self.retry
            .map(|at| at.saturating_duration_since(Instant::now()))
    }

    /// Tries the full peers again when it is time; peers that are gone lose what was kept for them, and are returned
    /// with the number of messages.
    pub(crate) fn flush(&mut self, socket: &Socket) -> Vec<(Box<[u8]>, usize)> {
        let mut gone = Vec::new();
        if self.retry.is_none_or(|at| at > Instant::now()) {
            return gone;
        }
        let mut moved = false;
        let (bytes, patient) = (&mut self.bytes, self.patient);
        self.queues.retain(|peer, queue| {
            while let Some(frames) = queue.messages.front_mut() {
                let cost = cost(frames);
                match try_send(socket, frames) {
                    Ok(()) => {
                        queue.messages.pop_front();
                        queue.bytes -= cost;
                        *bytes -= cost;
                        moved = true;
                    }
                    Err(zmq::Error::EAGAIN | zmq::Error::EINTR) => return true,
                    Err(_) if patient => return true,
                    Err(_) => {
                        *bytes -= queue.bytes;
                        gone.push((peer.clone(), queue.messages.len()));
                        return false;
                    }
                }
            }
            false
        });
        self.pause = if moved {
            PAUSES.0
        } else {
            (self.pause * 2).min(PAUSES.1)
        };
        self.retry = (!self.queues.is_empty()).then(|| Instant::now() + self.pause);
        gone
    }

    /// Bytes kept for all peers.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }
}

fn cost(frames: &[Message]) -> usize {
    frames
        .iter()
        .map(|frame| frame.len() + FRAME_OVERHEAD)
        .sum()
}

/// Sends all frames and leaves `frames` empty, or sends nothing and leaves them as they are.
pub(crate) fn try_send(socket: &Socket, frames: &mut Vec<Message>) -> zmq::Result<()> {
    let last = frames.len() - 1;
    // Only the identity can be refused, and it is lost then: a copy that needs no allocation brings it back.
    let flags = zmq::DONTWAIT | if last > 0 { zmq::SNDMORE } else { 0 };
    let mut room = [0; IDENTITY_MOST];
    match room.get_mut(..frames[0].len()) {
        Some(copy) => {
            copy.copy_from_slice(&frames[0]);
            let identity = std::mem::replace(&mut frames[0], Message::new());
            socket
                .send(identity, flags)
                .inspect_err(|_| frames[0] = Message::from(&*copy))?;
        }
        None => socket.send(&frames[0][..], flags)?,
    }
    for (index, frame) in frames.drain(..).enumerate().skip(1) {
        let more = if index < last { zmq::SNDMORE } else { 0 };
        if let Err(error) = socket.send(frame, more) {
            // The peer went away between two frames: libzmq drops what it has of the message.
            tracing::debug!(%error, "a message was cut off");
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use ipbroker_protocol::{socket, zmq::Context};

    fn message(peer: &str, body: usize) -> Vec<Message> {
        vec![Message::from(peer), Message::from(vec![7u8; body])]
    }

    #[test]
    fn a_peer_that_does_not_read_stops_nobody() {
        let context = Context::new();
        let router = socket::router(&context).unwrap();
        router.set_sndhwm(4).unwrap();
        let port = socket::bind(&router, "tcp://127.0.0.1", 0).unwrap();
        let peer = |name: &str| {
            let dealer = socket::open(&context, zmq::DEALER).unwrap();
            dealer.set_rcvhwm(1).unwrap();
            dealer.set_rcvtimeo(10_000).unwrap();
            dealer.set_identity(name.as_bytes()).unwrap();
            dealer.connect(&format!("tcp://127.0.0.1:{port}")).unwrap();
            dealer.send("hello", 0).unwrap();
            let mut frames = Vec::new();
            assert_eq!(router.poll(zmq::POLLIN, 5000).unwrap(), 1);
            assert!(socket::recv(&router, &mut frames).unwrap());
            dealer
        };
        let (slow, quick) = (peer("slow"), peer("quick"));
        let mut outbox = Outbox::new();
        for _ in 0..100 {
            outbox.send(&router, message("slow", 1 << 20)).unwrap();
        }
        assert!(
            outbox.bytes() > 10 << 20,
            "most is kept here: {}",
            outbox.bytes()
        );
        outbox.send(&router, message("quick", 1)).unwrap();
        assert_eq!(quick.recv_bytes(0).unwrap(), [7]);
        assert!(
            matches!(outbox.send(&router, message("nobody", 1)), Err(Refused::Unroutable(frames)) if frames.len() == 2)
        );
        let mut received = 0;
        while received < 100 {
            if let Some(pause) = outbox.timeout() {
                assert_eq!(
                    router
                        .poll(zmq::POLLIN, pause.as_millis() as i64 + 1)
                        .unwrap(),
                    0
                );
            }
            assert!(outbox.flush(&router).is_empty());
            while slow
                .recv_bytes(zmq::DONTWAIT)
                .is_ok_and(|body| body.len() == 1 << 20)
            {
                received += 1;
            }
        }
        assert_eq!(outbox.bytes(), 0);
    }
}
