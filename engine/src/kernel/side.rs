//! What a kernel says and hears beside the requests that run code: output, control, completion, comms, interrupts.

use std::{
    io,
    os::fd::{AsRawFd, OwnedFd},
    sync::Arc,
    thread::JoinHandle,
};

use crossbeam_channel::{Receiver, unbounded};
use ipbroker_protocol::{
    envelope::{Envelope, copies},
    message::{ErrorContent, HeaderRef},
    session::Session,
    socket, spawn,
    wake::{self, Wake},
    zmq::{self, Message, Socket},
};
use rustix::process::Pid;
use serde_json::json;

use super::{Ended, Line, Word, wire};
use crate::{
    logical_engine::LogicalEngine,
    process::{Channel, Outgoing, Process},
};

/// Messages that one channel may bring before the others have their turn.
const BATCH: usize = 64;

/// The sockets of this thread.
pub(super) struct Side {
    pub(super) iopub: Socket,
    pub(super) control: Socket,
    pub(super) shell: Socket,
    /// The kernel's key and packer.
    pub(super) session: Arc<Session>,
    /// What the kernel says that it has done with.
    pub(super) ended: Arc<Ended>,
    /// It speaks ipyparallel's dialect.
    pub(super) parallel: bool,
}

impl Side {
    /// Starts the thread; it ends when it is told that the kernel is gone.
    pub(super) fn start(
        self,
        process: Arc<Process>,
        engine: Arc<LogicalEngine>,
        (pid, pidfd): (Pid, OwnedFd),
    ) -> io::Result<(Line, JoinHandle<()>)> {
        let (waker, wake) = wake::pair()?;
        let (words, heard) = unbounded();
        let name = format!("kernel-{}", engine.index);
        let thread = spawn(name, move || {
            self.run(&process, &engine, &wake, &heard, &pidfd)
        })?;
        Ok((Line { words, waker, pid }, thread))
    }

    fn run(
        &self,
        process: &Arc<Process>,
        engine: &Arc<LogicalEngine>,
        wake: &Wake,
        words: &Receiver<Word>,
        pidfd: &OwnedFd,
    ) {
        let mut frames = Vec::new();
        let mut asked = Vec::new();
        let mut lives = true;
        loop {
            let mut items = [
                self.iopub.as_poll_item(zmq::POLLIN),
                self.control.as_poll_item(zmq::POLLIN),
                self.shell.as_poll_item(zmq::POLLIN),
                zmq::PollItem::from_fd(wake.fd(), zmq::POLLIN),
                // No event: it is known already.
                zmq::PollItem::from_fd(
                    pidfd.as_raw_fd(),
                    if lives {
                        zmq::POLLIN
                    } else {
                        zmq::PollEvents::empty()
                    },
                ),
            ];
            // An interrupted wait is a short one.
            let _ = zmq::poll(&mut items, -1);
            if items[4].is_readable() {
                lives = false;
                replace(process, engine);
            }
            wake.clear();
            let mut gone = false;
            while let Ok(word) = words.try_recv() {
                gone |= matches!(word, Word::Gone);
                asked.extend(Asked::of(&word, engine));
                self.say(word, engine);
            }
            for (socket, channel) in [
                (&self.iopub, Channel::IoPub),
                (&self.control, Channel::Control),
                (&self.shell, Channel::Shell),
            ] {
                for _ in 0..BATCH {
                    if !matches!(socket::recv(socket, &mut frames), Ok(true)) {
                        break;
                    }
                    if let Some(answered) =
                        self.pass_on(process, engine, channel, std::mem::take(&mut frames))
                    {
                        asked.retain(|asked: &Asked| asked.msg_id != answered);
                    }
                }
            }
            if gone {
                for asked in asked {
                    process.outbox.push(asked.refuse(engine));
                }
                return;
            }
        }
    }

    fn say(&self, word: Word, engine: &LogicalEngine) {
        let request =
            |msg_type: &str, content| (&self.control, Ok(self.session.request(msg_type, &content)));
        let with_way = |message: &Envelope| {
            let way = copies(message.identities());
            wire::to_kernel(message, &engine.session(), &self.session, way)
        };
        let (socket, message) = match word {
            Word::Control(message) => (&self.control, with_way(&message)),
            Word::Shell(message) => (&self.shell, with_way(&message)),
            Word::Interrupt => request("interrupt_request", json!({})),
            Word::Shutdown => request("shutdown_request", json!({"restart": false})),
            Word::Gone => return,
        };
        let sent = message
            .map_err(|error| error.to_string())
            .and_then(|message| {
                socket::send(socket, message.into_frames()).map_err(|error| error.to_string())
            });
        if let Err(error) = sent {
            tracing::warn!(
                engine = engine.id(),
                "a message for its kernel was dropped: {error}"
            );
        }
    }

    /// Sends on what the kernel says; what answers our own questions has no way back and goes nowhere. The request that is
    /// answered by it.
    fn pass_on(
        &self,
        process: &Process,
        engine: &LogicalEngine,
        channel: Channel,
        frames: Vec<Message>,
    ) -> Option<String> {
        let message = Envelope::parse(frames).ok()?;
        if self.session.verify(&message).is_err()
            || (channel != Channel::IoPub && message.identities().is_empty())
        {
            return None;
        }
        if channel == Channel::IoPub {
            match wire::about(&message, &self.session) {
                // The answer to our subscription.
                wire::About::Welcome => return None,
                wire::About::Idle(request) => *self.ended.lock() = request,
                wire::About::Other => {}
            }
        }
        let own = |topic: &Message| self.parallel && topic.starts_with(b"engine.");
        let way = match message.identities() {
            [topic] if channel == Channel::IoPub && own(topic) => copies(message.identities()),
            _ if channel == Channel::IoPub => {
                let topic = wire::topic(&message, &self.session, engine.id());
                vec![Message::from(topic.as_str())]
            }
            way => copies(way),
        };
        match wire::to_cluster(
            &message,
            &self.session,
            &engine.session(),
            way,
            &engine.uuid,
        ) {
            Ok(message) => process.outbox.push(engine.outgoing(channel, message)),
            Err(error) => tracing::debug!("a message of a kernel was dropped: {error}"),
        }
        (channel != Channel::IoPub).then(|| wire::parent(&message, &self.session))
    }
}

/// A request that the kernel has not answered.
struct Asked {
    channel: Channel,
    way: Vec<Message>,
    header: Vec<u8>,
    msg_id: String,
    stem: String,
}

impl Asked {
    /// What is to be answered of a word; a comm message is not.
    fn of(word: &Word, engine: &LogicalEngine) -> Option<Self> {
        let (channel, message) = match word {
            Word::Control(message) => (Channel::Control, message),
            Word::Shell(message) => (Channel::Shell, message),
            Word::Interrupt | Word::Shutdown | Word::Gone => return None,
        };
        let header = HeaderRef::read(engine.session().packer, message.header()).ok()?;
        Some(Self {
            channel,
            way: copies(message.identities()),
            stem: header.msg_type.strip_suffix("_request")?.to_owned(),
            msg_id: header.msg_id.into_owned(),
            header: message.header().to_vec(),
        })
    }

    /// The answer when the kernel has ended.
    fn refuse(self, engine: &LogicalEngine) -> Outgoing {
        let session = engine.session();
        let words = format!(
            "the kernel of engine {} ended before it answered",
            engine.id()
        );
        let reply = session.message(
            self.way,
            &session.header(&format!("{}_reply", self.stem)),
            Some(&self.header),
            &json!({"status": "error", "engine": engine.uuid}),
            &ErrorContent::new("EngineError", words),
            Vec::new(),
        );
        engine.outgoing(self.channel, reply)
    }
}

/// Sees to another kernel, although nobody asks for it yet: not on the thread of this one, which ends first.
fn replace(process: &Arc<Process>, engine: &Arc<LogicalEngine>) {
    let (process, engine) = (process.clone(), engine.clone());
    let ensure = move || {
        if let Some(kernels) = &process.kernels {
            kernels.ensure(&process, &engine);
        }
    };
    // Without a thread the next request does it.
    let _ = spawn("kernel", ensure);
}
