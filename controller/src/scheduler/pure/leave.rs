//! How engines leave without taking tasks along.
//!
//! A DEALER sends to whoever has the turn, and does not tell to whom it has sent. So an engine of ours asks before it
//! leaves. From then on nothing goes into the DEALER but answers (`leave_reply`), which name the engines that leave; as
//! the DEALER takes turns, the one meant gets one soon, and as a connection keeps the order, it has by then whatever was
//! sent to it. It gives back what it has not started, and says that it has left. When that was heard, it is answered in the
//! same way, and only then it closes its connection: who closes one on which something still comes resets it, and may take
//! along what it has sent. When the DEALER has lost that connection too, tasks go on. All this takes milliseconds and is
//! bounded by [`LIMIT`].

use std::time::{Duration, Instant};

use foldhash::{HashMap, HashMapExt};
use ipbroker_protocol::{
    message::{LeaveReply, types},
    socket,
    zmq::{self, Context, Message, Socket, SocketEvent},
};

use super::{Pure, gone::LEFT};

/// How long nothing is sent for the sake of one engine that leaves; a running task that does not end costs it 1.5 s.
const LIMIT: Duration = Duration::from_secs(3);

/// How long the end of its connection is waited for after its last word.
const CLOSING: Duration = Duration::from_secs(1);

/// libzmq tells of the end of a connection a moment before the socket has lost it.
const SETTLING: Duration = Duration::from_millis(50);

/// Between two rounds of answers: the first, and the longest.
const ROUNDS: (Duration, Duration) = (Duration::from_millis(20), Duration::from_millis(320));

/// Engines named in one answer.
const NAMED: usize = 256;

/// Where the coming and going of connections is told, inside the process.
const MONITOR: &str = "inproc://ipbroker-pure-monitor";

#[derive(Debug)]
struct Leaving {
    until: Instant,
    /// Rounds that have named it.
    rounds: u32,
    /// Once its last word has come.
    left: Option<Left>,
}

#[derive(Debug)]
struct Left {
    at: Instant,
    /// The connection by which it came.
    descriptor: Option<u32>,
    closed: Option<Instant>,
}

/// Engines that leave.
#[derive(Debug)]
pub(super) struct Leaves {
    engines: HashMap<String, Leaving>,
    /// Connections that have ended, until their descriptor is used again.
    closed: HashMap<u32, Instant>,
    round: Instant,
    pause: Duration,
}

impl Leaves {
    pub(super) fn new() -> Self {
        Self {
            engines: HashMap::new(),
            closed: HashMap::new(),
            round: Instant::now(),
            pause: ROUNDS.0,
        }
    }

    /// Nothing may be sent to engines.
    pub(super) fn pause(&self) -> bool {
        !self.engines.is_empty()
    }

    pub(super) fn contains(&self, uuid: &str) -> bool {
        self.engines.contains_key(uuid)
    }

    pub(super) fn forget(&mut self, uuid: &str) {
        self.engines.remove(uuid);
    }

    /// An engine asks whether it may leave.
    pub(super) fn begin(&mut self, uuid: String, now: Instant) {
        self.engines.entry(uuid).or_insert_with(|| Leaving {
            until: now + LIMIT,
            rounds: 0,
            left: None,
        });
        // Many that leave together share their rounds.
        self.round = self.round.min(now + ROUNDS.0);
        self.pause = ROUNDS.0;
    }

    /// The last word of an engine; `descriptor`: of the connection by which it came.
    fn left(&mut self, uuid: String, descriptor: Option<u32>, now: Instant) {
        let closed = descriptor.and_then(|descriptor| self.closed.get(&descriptor).copied());
        let left = Left {
            at: now,
            descriptor,
            closed,
        };
        let leaving = self.engines.entry(uuid).or_insert(Leaving {
            until: now,
            rounds: 0,
            left: None,
        });
        leaving.left = Some(left);
        self.round = now;
    }

    /// A connection has come (`true`) or gone.
    fn connection(&mut self, descriptor: u32, up: bool, now: Instant) {
        if up {
            self.closed.remove(&descriptor);
            return;
        }
        self.closed.insert(descriptor, now);
        let lefts = self.engines.values_mut().filter_map(|e| e.left.as_mut());
        for left in lefts.filter(|left| left.descriptor == Some(descriptor)) {
            left.closed.get_or_insert(now);
        }
    }

    /// Engines that are gone now (`true`), and those for which nobody waits any longer.
    fn over(&mut self, now: Instant) -> Vec<(String, bool)> {
        let is_over = |leaving: &Leaving| match &leaving.left {
            None => now >= leaving.until,
            Some(left) => {
                left.closed.is_some_and(|closed| now >= closed + SETTLING)
                    || now >= left.at + CLOSING
            }
        };
        self.engines
            .extract_if(|_, leaving| is_over(leaving))
            .map(|(uuid, leaving)| (uuid, leaving.left.is_some()))
            .collect()
    }

    /// Whom the next round of answers names, if it is due.
    fn next_round(&mut self, now: Instant) -> Option<LeaveReply> {
        if now < self.round {
            return None;
        }
        let mut waiting: Vec<_> = self
            .engines
            .iter_mut()
            .filter(|(_, leaving)| {
                leaving
                    .left
                    .as_ref()
                    .is_none_or(|left| left.closed.is_none())
            })
            .collect();
        if waiting.is_empty() {
            return None;
        }
        waiting.sort_unstable_by_key(|(_, leaving)| leaving.rounds);
        let mut reply = LeaveReply::default();
        for (uuid, leaving) in waiting.into_iter().take(NAMED) {
            leaving.rounds += 1;
            match leaving.left {
                None => reply.uuids.push(uuid.clone()),
                Some(_) => reply.left.push(uuid.clone()),
            }
        }
        self.round = now + self.pause;
        self.pause = (self.pause * 2).min(ROUNDS.1);
        Some(reply)
    }
}

/// Tells of the connections of a DEALER; to be called before it is bound.
pub(crate) fn watch(context: &Context, engines: &Socket) -> zmq::Result<Socket> {
    engines.monitor(
        MONITOR,
        i32::from(SocketEvent::ACCEPTED.to_raw() | SocketEvent::DISCONNECTED.to_raw()),
    )?;
    let monitor = context.socket(zmq::PAIR)?;
    monitor.set_rcvhwm(0)?;
    monitor.connect(MONITOR)?;
    Ok(monitor)
}

/// The descriptor of the connection by which a frame came.
pub(super) fn connection(frame: &mut Message) -> Option<u32> {
    frame.gets("__fd")?.parse().ok()
}

impl Pure {
    /// An engine has said its last word, by this connection.
    pub(super) fn left(&mut self, uuid: String, connection: Option<u32>) {
        self.read_monitor();
        self.leaves.left(uuid, connection, Instant::now());
    }

    fn read_monitor(&mut self) {
        let now = Instant::now();
        let mut frames = Vec::new();
        while let Ok(true) = socket::recv(&self.monitor, &mut frames) {
            let Some([a, b, c, d, e, f]) = frames.first().map(|frame| &frame[..]) else {
                continue;
            };
            let event = u16::from_le_bytes([*a, *b]);
            let descriptor = u32::from_le_bytes([*c, *d, *e, *f]);
            let up = event == SocketEvent::ACCEPTED.to_raw();
            self.leaves.connection(descriptor, up, now);
        }
    }

    /// Sees off those that leave.
    pub(super) fn see_off(&mut self) -> zmq::Result<()> {
        self.read_monitor();
        if !self.leaves.pause() {
            return Ok(());
        }
        let now = Instant::now();
        for (uuid, gone) in self.leaves.over(now) {
            if gone {
                self.engine_left(&uuid, LEFT);
            } else {
                tracing::warn!(
                    uuid,
                    "an engine that wants to leave is still there after {LIMIT:?}"
                );
            }
        }
        if !self.engines.get_events()?.contains(zmq::POLLOUT) {
            return Ok(());
        }
        if let Some(reply) = self.leaves.next_round(now) {
            // One more than there are, and those that are not registered yet.
            for _ in 0..self.known.len() + 2 {
                let answer = self.session.request(types::LEAVE_REPLY, &reply);
                match socket::send(&self.engines, answer.into_frames()) {
                    Ok(()) => {}
                    Err(zmq::Error::EAGAIN) => break,
                    Err(error) => return Err(error),
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tasks_go_on_when_the_connection_is_gone() {
        let start = Instant::now();
        let ms = |ms| start + Duration::from_millis(ms);
        let mut leaves = Leaves::new();
        leaves.connection(7, true, start);
        leaves.begin("a".into(), ms(1));
        assert!(leaves.pause());
        let round = leaves.next_round(ms(30)).expect("due");
        assert_eq!(round.uuids, ["a"]);
        assert!(leaves.next_round(ms(31)).is_none());
        leaves.left("a".into(), Some(7), ms(40));
        let round = leaves
            .next_round(ms(41))
            .expect("its last word is answered");
        assert_eq!(
            (round.uuids.len(), &round.left[..]),
            (0, &["a".to_owned()][..])
        );
        assert!(leaves.over(ms(500)).is_empty(), "it is still connected");
        leaves.connection(9, false, ms(510));
        leaves.connection(7, false, ms(520));
        assert!(leaves.next_round(ms(900)).is_none());
        assert!(leaves.over(ms(530)).is_empty());
        assert_eq!(leaves.over(ms(570)), [("a".to_owned(), true)]);
        assert!(!leaves.pause());
    }

    #[test]
    fn nobody_is_waited_for_without_end() {
        let start = Instant::now();
        let mut leaves = Leaves::new();
        leaves.begin("silent".into(), start);
        leaves.begin("open".into(), start);
        leaves.left("open".into(), Some(3), start);
        assert_eq!(leaves.over(start + CLOSING), [("open".to_owned(), true)]);
        assert_eq!(leaves.over(start + LIMIT), [("silent".to_owned(), false)]);
        // The end of the connection may be told before the last word is read.
        leaves.connection(3, false, start);
        leaves.left("quick".into(), Some(3), start);
        assert_eq!(leaves.over(start + SETTLING), [("quick".to_owned(), true)]);
    }
}
