//! The pure path: a ROUTER for clients and a DEALER for engines, and libzmq does the balancing.
//!
//! What it gives up is the price of its speed, and is refused by name instead of being ignored: dependencies, targets and
//! retries.
//!
//! An engine of ours that leaves loses nothing: it gives back what it has not started ([`leave`] says how). One that
//! crashes costs the tasks that it had announced, whose clients are told, and those on their way to it, of which nobody
//! knows: at most the DEALER's high-water mark ([`HIGH_WATER`], or `--hwm`) and what the two hosts buffer of the
//! connection. An engine announces what it has received on the connection by which it answers, so an announcement comes
//! before its answer. Engines of Python neither announce nor give back.

mod arrays;
mod books;
mod engines;
mod gone;
mod intake;
mod leave;
mod questions;

pub(crate) use leave::watch;

use std::{
    collections::{HashSet, VecDeque},
    io,
    sync::Arc,
    time::{Duration, Instant},
};

use foldhash::{HashMap, HashMapExt};
use ipbroker_protocol::{
    junk::{Junk, JunkTotal},
    message::SubmitAck,
    session::Session,
    socket,
    zmq::{self, Message, Socket},
};

use self::{arrays::Splitting, books::Books, intake::Verdict, leave::Leaves};
use super::command::Command;
use crate::{
    mailbox::Mailbox,
    relay::outbox::{Outbox, try_send},
};

/// The DEALER's high-water mark when `--hwm` gives none: messages on their way to one engine.
pub(crate) const HIGH_WATER: i32 = 1000;

/// Messages moved in one direction before the other gets its turn.
const BATCH: usize = 256;

/// How often it is looked at who leaves, while somebody does.
const TICK: Duration = Duration::from_millis(10);

/// Everything a pure relay is made of.
pub(crate) struct PureThread {
    /// ROUTER that clients connect to, bound.
    pub clients: Socket,
    /// DEALER that engines connect to, bound.
    pub engines: Socket,
    /// What [`watch`] made for it.
    pub monitor: Socket,
    /// Signs the few messages of its own.
    pub session: Arc<Session>,
    /// Questions and events of the hub.
    pub commands: Mailbox<Command>,
    /// Where refused messages are counted.
    pub junk: JunkTotal,
}

/// A registered engine.
#[derive(Debug, Default)]
struct Known {
    /// It announces what it receives.
    ours: bool,
    /// Tasks and ranges it has completed, as far as announcements tell.
    completed: u64,
}

struct Pure {
    clients: Socket,
    engines: Socket,
    monitor: Socket,
    session: Arc<Session>,
    junk: Junk,
    /// Metadata that asked for nothing that this path lacks: most messages repeat it byte for byte.
    good: Vec<u8>,
    good_acks: bool,
    known: HashMap<String, Known>,
    books: Books,
    splitting: VecDeque<Splitting>,
    /// Replies for clients that do not read fast enough.
    outbox: Outbox,
    /// Next to be sent: what engines have given back, what the DEALER did not take, what the hub submits.
    again: VecDeque<Vec<Message>>,
    acks: HashMap<Vec<u8>, SubmitAck>,
    leaves: Leaves,
    /// When what engines that have died have sent will have come, and why they have.
    dying: VecDeque<(Instant, String, String)>,
    /// Engines of ours that are gone: their tasks were told lost, so what they still say comes too late.
    gone: HashSet<String>,
}

impl PureThread {
    /// Runs until [`Command::Shutdown`].
    pub(crate) fn run(self) -> io::Result<()> {
        let mut pure = Pure {
            clients: self.clients,
            engines: self.engines,
            monitor: self.monitor,
            session: self.session,
            junk: Junk::new("task (pure)", &self.junk),
            good: Vec::new(),
            good_acks: false,
            known: HashMap::new(),
            books: Books::default(),
            splitting: VecDeque::new(),
            outbox: Outbox::new(),
            again: VecDeque::new(),
            acks: HashMap::new(),
            leaves: Leaves::new(),
            dying: VecDeque::new(),
            gone: HashSet::new(),
        };
        pure.run(&self.commands)
            .map_err(|error| io::Error::other(format!("pure relay: {error}")))
    }
}

impl Pure {
    fn run(&mut self, commands: &Mailbox<Command>) -> zmq::Result<()> {
        let mut frames = Vec::with_capacity(16);
        // While the DEALER takes nothing, clients are not read: they feel it, and memory does not.
        let mut writable = true;
        loop {
            let pause = self.leaves.pause();
            let mut items = [
                zmq::PollItem::from_fd(commands.fd(), zmq::POLLIN),
                self.monitor.as_poll_item(zmq::POLLIN),
                self.engines.as_poll_item(if writable || pause {
                    zmq::POLLIN
                } else {
                    zmq::POLLIN | zmq::POLLOUT
                }),
                self.clients.as_poll_item(if writable && !pause {
                    zmq::POLLIN
                } else {
                    zmq::PollEvents::empty()
                }),
            ];
            match zmq::poll(&mut items, self.timeout()) {
                Ok(_) | Err(zmq::Error::EINTR) => {}
                Err(error) => return Err(error),
            }
            let monitored = items[1].is_readable();
            if items[0].is_readable() {
                for command in commands.take() {
                    if matches!(command, Command::Shutdown) {
                        return Ok(());
                    }
                    self.command(command)?;
                }
            }
            for _ in 0..BATCH {
                if !socket::recv(&self.engines, &mut frames)? {
                    break;
                }
                self.engine_message(&mut frames);
            }
            self.bury()?;
            if monitored || self.leaves.pause() {
                self.see_off()?;
            }
            if !self.leaves.pause() {
                writable = self.forward(&mut frames)?;
            }
            for (_, lost) in self.outbox.flush(&self.clients) {
                tracing::debug!(lost, "a client went away with replies undelivered");
            }
            self.acknowledge();
        }
    }

    /// Milliseconds until something is due.
    fn timeout(&self) -> i64 {
        let mut wait = self.outbox.timeout().unwrap_or(Duration::from_secs(1));
        if self.leaves.pause() {
            wait = wait.min(TICK);
        }
        if let Some((due, ..)) = self.dying.front() {
            wait = wait.min(due.saturating_duration_since(Instant::now()));
        }
        wait.as_millis() as i64 + 1
    }

    /// Moves a batch towards the engines; whether they take more.
    fn forward(&mut self, frames: &mut Vec<Message>) -> zmq::Result<bool> {
        for _ in 0..BATCH {
            if let Some(mut own) = self.again.pop_front().or_else(|| self.next_part()) {
                if !self.pass(&mut own)? {
                    return Ok(false);
                }
            } else if socket::recv(&self.clients, frames)? {
                match self.judge(frames) {
                    Verdict::Pass => {
                        if !self.pass(frames)? {
                            return Ok(false);
                        }
                    }
                    Verdict::Array(count) => self.split(std::mem::take(frames), count),
                    Verdict::Refuse(why) => self.refuse(frames, why),
                    Verdict::Swallow => {}
                }
            } else {
                break;
            }
        }
        Ok(true)
    }

    /// Gives a message to the DEALER; `false`: it is full, and the message is the next to go.
    ///
    /// Asking the DEALER first would cost a system call for each message.
    fn pass(&mut self, frames: &mut Vec<Message>) -> zmq::Result<bool> {
        match try_send(&self.engines, frames) {
            Ok(()) => Ok(true),
            Err(zmq::Error::EAGAIN | zmq::Error::EINTR) => {
                self.again.push_front(std::mem::take(frames));
                Ok(false)
            }
            Err(error) => Err(error),
        }
    }
}
