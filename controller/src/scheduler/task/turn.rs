//! The loop.

use std::{io, time::Duration};

use ipbroker_protocol::{
    socket,
    zmq::{self, Message},
};

use super::{Answered, Scheduler};
use crate::{mailbox::Mailbox, scheduler::command::Command};

/// Messages read from one socket in one turn: enough to amortise a poll and a write, few enough to keep the latency low.
const BATCH: usize = 128;

/// Room for the frames of a task of one buffer and both identities, and one more.
const FRAMES: usize = 10;

/// How long a turn waits at most, so that nothing depends on a wake-up that got lost.
const LONGEST: Duration = Duration::from_secs(1);

/// How soon a journal that could not be written is tried again.
const RETRY: Duration = Duration::from_millis(100);

/// Batches that are read at once where order between sockets matters.
const CATCH_UP: usize = 64;

impl Scheduler {
    pub(super) fn run(
        &mut self,
        commands: &Mailbox<Command>,
        answers: &Mailbox<Answered>,
    ) -> io::Result<()> {
        let mut frames = Vec::with_capacity(FRAMES);
        let mut busy = false;
        loop {
            let intake = !self.stuck && !self.store.over_bound();
            let mut items = [
                zmq::PollItem::from_fd(commands.fd(), zmq::POLLIN),
                zmq::PollItem::from_fd(answers.fd(), zmq::POLLIN),
                self.engine_socket.as_poll_item(zmq::POLLIN),
                self.client_socket.as_poll_item(if intake {
                    zmq::POLLIN
                } else {
                    zmq::PollEvents::empty()
                }),
            ];
            match zmq::poll(&mut items, if busy { 0 } else { self.timeout(intake) }) {
                Ok(_) | Err(zmq::Error::EINTR) => {}
                Err(error) => return Err(io::Error::other(format!("task thread: poll: {error}"))),
            }
            let [command, answer, engines, clients] =
                items.each_ref().map(zmq::PollItem::is_readable);
            if command {
                for command in commands.take() {
                    match command {
                        Command::Shutdown => return Ok(()),
                        // What it had answered before it went is in the socket.
                        Command::EngineLeft { .. } => self.catch_up(&mut frames, true)?,
                        // What is to be aborted may just have been submitted, on another socket.
                        Command::Abort { .. } if intake => self.catch_up(&mut frames, false)?,
                        _ => {}
                    }
                    self.command(command);
                    self.act();
                }
            }
            if answer {
                for answered in answers.take() {
                    self.answered(answered);
                    self.act();
                }
            }
            // Before replies: what is overdue is decided as of now.
            let now = self.now();
            if self.core.next_wakeup().is_some_and(|at| at <= now) {
                self.core.tick(now);
                self.act();
            }
            busy = false;
            let (mut engines, mut clients) = (engines, clients && intake);
            let mut read = 0;
            // What comes meanwhile belongs to this turn: messages that leave together wake fewer threads.
            while (engines || clients) && read < BATCH {
                let before = read;
                if engines {
                    read += self.read(&mut frames, true)?;
                }
                if clients {
                    read += self.read(&mut frames, false)?;
                }
                busy = read > before;
                engines = busy;
                clients = busy && intake;
            }
            self.drop_early();
            self.ask_silent();
            self.miss_goodbyes();
            self.end_batch();
        }
    }

    /// Reads what has arrived from one side.
    fn catch_up(&mut self, frames: &mut Vec<Message>, from_engines: bool) -> io::Result<()> {
        for _ in 0..CATCH_UP {
            if self.read(frames, from_engines)? < BATCH {
                break;
            }
        }
        Ok(())
    }

    /// Reads a batch from one side: how many messages, at least; less than [`BATCH`] if there were no more.
    fn read(&mut self, frames: &mut Vec<Message>, from_engines: bool) -> io::Result<usize> {
        let mut count = 0;
        while count < BATCH {
            let socket = if from_engines {
                &self.engine_socket
            } else {
                &self.client_socket
            };
            match socket::recv(socket, frames) {
                Ok(true) => {}
                Ok(false) => return Ok(count),
                Err(error) => {
                    return Err(io::Error::other(format!("task thread: receive: {error}")));
                }
            }
            let message = std::mem::replace(frames, Vec::with_capacity(FRAMES));
            count += if from_engines {
                self.engine_message(message)
            } else {
                self.client_message(message)
            };
            self.act();
        }
        Ok(count)
    }

    /// Writes the batch to the journal and, when that is done, sends what it caused.
    pub(super) fn end_batch(&mut self) {
        if self.acks.waiting() {
            self.journal.want_durable();
        }
        match self.journal.flush() {
            Ok(position) => {
                if self.stuck {
                    tracing::warn!("the journal can be written again");
                    self.stuck = false;
                }
                self.release_acks(position);
                for answer in self.settled.drain(..) {
                    answer(());
                }
                self.engines
                    .acknowledge(&self.session, self.begun.elapsed(), &mut self.out);
                self.send_out();
                for (_, lost) in self.engine_outbox.flush(&self.engine_socket) {
                    tracing::debug!(lost, "an engine went away with messages undelivered");
                }
                for (_, lost) in self.outbox.flush(&self.client_socket) {
                    tracing::debug!(lost, "a client went away with replies undelivered");
                }
            }
            Err(error) => {
                if !self.stuck {
                    tracing::error!(%error, "the journal cannot be written: no task is taken in and nothing leaves until it can");
                    self.stuck = true;
                }
            }
        }
    }

    /// Milliseconds until something is due.
    fn timeout(&self, intake: bool) -> i64 {
        let mut wait = LONGEST;
        if let Some(at) = self.core.next_wakeup() {
            wait = wait.min(Duration::from_nanos(at.saturating_sub(self.now())));
        }
        if self.stuck {
            // What is due cannot leave before the journal can be written.
            return RETRY.as_millis() as i64;
        }
        for due in [
            self.outbox.timeout(),
            self.engine_outbox.timeout(),
            self.engines.next_acknowledgement(self.begun.elapsed()),
        ]
        .into_iter()
        .flatten()
        {
            wait = wait.min(due);
        }
        if !intake {
            wait = wait.min(Duration::from_millis(2));
        }
        // Rounded up: waking a little late beats spinning until it is time.
        i64::try_from(wait.as_micros().div_ceil(1000)).unwrap_or(1000)
    }
}
