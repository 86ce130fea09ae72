//! The output relay: what engines publish goes to all clients, and into the tasks' records.

use std::{io, thread};

use foldhash::{HashMap, HashMapExt, HashSet, HashSetExt};
use ipbroker_protocol::{
    envelope::Envelope,
    junk::{Junk, JunkTotal},
    message::{HeaderRef, ParentRef},
    session::{Session, UnpackError},
    socket,
    value::{AnyMap, Map},
    zmq::{self, Socket},
};
use serde_json::{Value, json};

use super::{BATCH, control::ControlPost, poll};
use crate::{
    mailbox::{Mailbox, Post, mailbox},
    store::{Recorder, Stream},
};

/// Messages that are kept for a client that reads too slowly; then it misses some.
pub(crate) const CLIENT_MESSAGES: i32 = 100_000;

/// What the hub asks of the relay.
#[derive(Debug)]
pub(crate) enum Request {
    /// Interrupt a Python engine once it is busy with this task, now if it is: `(engine uuid, msg_id)`.
    Interrupt(String, String),
    /// An engine is gone.
    Left(String),
    /// End the thread.
    Shutdown,
}

/// The two sockets, bound.
pub(crate) struct Sockets {
    /// SUB, engines' side.
    pub engines: Socket,
    /// PUB, clients' side.
    pub clients: Socket,
}

/// Makes the sockets of the relay.
pub(crate) fn sockets(context: &zmq::Context) -> zmq::Result<Sockets> {
    let engines = socket::open(context, zmq::SUB)?;
    engines.set_subscribe(b"")?;
    let clients = socket::open(context, zmq::PUB)?;
    clients.set_sndhwm(CLIENT_MESSAGES)?;
    Ok(Sockets { engines, clients })
}

/// Starts the relay's thread. `shutdown` is called with the uuid of each engine that says that it ends.
pub(crate) fn spawn(
    sockets: Sockets,
    session: Session,
    recorder: Recorder,
    control: ControlPost,
    shutdown: impl Fn(String) + Send + 'static,
    junk: &JunkTotal,
) -> io::Result<(Post<Request>, thread::JoinHandle<()>)> {
    let (post, requests) = mailbox()?;
    let mut iopub = Iopub {
        sockets,
        session,
        recorder,
        control,
        shutdown,
        junk: Junk::new("iopub", junk),
        busy: HashMap::new(),
        interrupts: HashSet::new(),
        requests,
    };
    let thread = ipbroker_protocol::spawn("iopub", move || iopub.run())?;
    Ok((post, thread))
}

struct Iopub<F> {
    sockets: Sockets,
    session: Session,
    recorder: Recorder,
    control: ControlPost,
    shutdown: F,
    junk: Junk,
    /// The task that each engine says it is busy with.
    busy: HashMap<String, String>,
    /// Tasks to interrupt when their engine begins with them.
    interrupts: HashSet<(String, String)>,
    requests: Mailbox<Request>,
}

impl<F: Fn(String)> Iopub<F> {
    fn run(&mut self) {
        loop {
            let mut items = [
                zmq::PollItem::from_fd(self.requests.fd(), zmq::POLLIN),
                self.sockets.engines.as_poll_item(zmq::POLLIN),
                // Never readable; but connections that have ended are let go by whoever polls.
                self.sockets.clients.as_poll_item(zmq::POLLIN),
            ];
            if !poll("the output relay", &mut items, -1) {
                return;
            }
            for _ in 0..BATCH {
                let mut frames = Vec::with_capacity(8);
                match socket::recv(&self.sockets.engines, &mut frames) {
                    Ok(true) => {}
                    Ok(false) => break,
                    Err(error) => {
                        tracing::error!(%error, "the output relay cannot receive");
                        break;
                    }
                }
                match Envelope::parse(frames) {
                    Ok(message) => self.published(message),
                    Err(error) => self.junk.refuse("not a message", &error),
                }
            }
            self.recorder.flush();
            let letters: Vec<Request> = self.requests.take().collect();
            for letter in letters {
                match letter {
                    Request::Interrupt(engine, msg_id) => self.interrupt(engine, msg_id),
                    Request::Left(engine) => {
                        self.busy.remove(&engine);
                        self.interrupts.retain(|(uuid, _)| *uuid != engine);
                    }
                    Request::Shutdown => return,
                }
            }
        }
    }

    fn published(&mut self, message: Envelope) {
        if let Err(error) = self.session.verify(&message) {
            return self.junk.refuse("wrong signature", &error);
        }
        if let Err(error) = self.read(&message) {
            self.junk.refuse("bad output", &error);
        }
        // PUB never blocks: a client that reads too slowly misses messages.
        if let Err(error) = socket::send(&self.sockets.clients, message.into_frames()) {
            self.junk.refuse("unsent output", &error);
        }
    }

    fn read(&mut self, message: &Envelope) -> Result<(), UnpackError> {
        let packer = self.session.packer;
        let header = HeaderRef::read(packer, message.header())?;
        match &*header.msg_type {
            "status" => return self.status(message, &header),
            "shutdown_reply" => {
                (self.shutdown)(header.session.into_owned());
                return Ok(());
            }
            "stream" | "error" | "execute_input" | "execute_result" | "display_data" => {}
            _ => return Ok(()),
        }
        let parent = ParentRef::read(packer, message.parent_header())?;
        if parent.msg_id.is_empty() {
            return Ok(());
        }
        let AnyMap(content) = packer.unpack(message.content())?;
        let text = |key: &str| content.get(key).and_then(Value::as_str).unwrap_or_default();
        let field = match &*header.msg_type {
            "stream" => {
                let stream = if text("name") == "stderr" {
                    Stream::Stderr
                } else {
                    Stream::Stdout
                };
                self.recorder.output(&parent.msg_id, stream, text("text"));
                return Ok(());
            }
            "execute_input" => ("execute_input", text("code").into()),
            "error" => ("error", Value::Object(content)),
            "execute_result" => ("execute_result", Value::Object(content)),
            // The peer's records have no field for it that a client would read.
            _ => return Ok(()),
        };
        let fields = Map::from_iter([(field.0.to_owned(), field.1)]);
        self.recorder.update(&parent.msg_id, &fields);
        Ok(())
    }

    /// `busy` and `idle` of Python engines, by which a running task is interrupted and no other.
    fn status(&mut self, message: &Envelope, header: &HeaderRef<'_>) -> Result<(), UnpackError> {
        let packer = self.session.packer;
        let parent = ParentRef::read(packer, message.parent_header())?;
        if !matches!(&*parent.msg_type, "apply_request" | "execute_request") {
            return Ok(());
        }
        let AnyMap(content) = packer.unpack(message.content())?;
        let engine = header.session.to_string();
        match content.get("execution_state").and_then(Value::as_str) {
            Some("busy") => {
                let msg_id = parent.msg_id.into_owned();
                if self.interrupts.remove(&(engine.clone(), msg_id.clone())) {
                    self.signal(&engine);
                }
                self.busy.insert(engine, msg_id);
            }
            Some("idle") => {
                if self
                    .busy
                    .get(&engine)
                    .is_some_and(|msg_id| *msg_id == parent.msg_id)
                {
                    self.busy.remove(&engine);
                }
                self.interrupts
                    .remove(&(engine, parent.msg_id.into_owned()));
            }
            _ => {}
        }
        Ok(())
    }

    fn interrupt(&mut self, engine: String, msg_id: String) {
        if self.busy.get(&engine).is_some_and(|busy| *busy == msg_id) {
            self.signal(&engine);
        } else {
            self.interrupts.insert((engine, msg_id));
        }
    }

    fn signal(&self, engine: &str) {
        self.control
            .send(engine, "signal_request", &json!({"sig": "SIGINT"}));
    }
}
