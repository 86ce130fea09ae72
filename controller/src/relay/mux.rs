//! The direct relay: a client names the engine. Requests and replies are recorded for `get_result`, and an engine that is
//! not there gets its request answered by an error instead of silence.

use std::{io, thread};

use ipbroker_protocol::{
    envelope::Envelope,
    junk::JunkTotal,
    message::{ErrorContent, HeaderRef, ParentRef, ReplyMetadata},
    session::Session,
    socket,
    zmq::{self, Message, Socket},
};

use super::{
    BATCH, Bounced,
    broadcast::Broadcast,
    failure, is_anonymous,
    lane::{Lane, hex, poll_timeout},
    ledger::{Direct, Ledger},
    outbox::SOCKET_MESSAGES,
    poll,
};
use crate::{
    mailbox::{Answer, Mailbox, Post, mailbox},
    scheduler::command::{ByEngine, EngineTasks, TaskState},
    store::{self, Finish, Outcome, Recorder, StoreHandle, Submission, TaskRef},
};

/// The sockets of the relay, bound.
pub(crate) struct Sockets {
    /// Clients' side.
    pub clients: Socket,
    /// Engines' side.
    pub engines: Socket,
    /// Clients' side of broadcasts.
    pub root: Socket,
    /// Engines' side of broadcasts.
    pub leaves: Vec<Socket>,
}

/// A ROUTER for a relay; `identity` is what our engines send to first.
pub(crate) fn router(context: &zmq::Context, identity: Option<&[u8]>) -> zmq::Result<Socket> {
    let router = socket::router(context)?;
    router.set_sndhwm(SOCKET_MESSAGES)?;
    if let Some(identity) = identity {
        router.set_identity(identity)?;
    }
    Ok(router)
}

/// What the hub asks of the relay.
pub(crate) enum Request {
    /// An engine is registered.
    Joined(String),
    /// An engine is gone: what was on it failed, and why.
    Left(String, String),
    /// How many tasks are on which engine.
    Status {
        verbose: bool,
        answer: Answer<Vec<EngineTasks>>,
    },
    /// Where these tasks are.
    States {
        ids: Vec<String>,
        answer: Answer<Vec<TaskState>>,
    },
    /// Which engines have these tasks (all pending ones, if `None`).
    Running {
        ids: Option<Vec<String>>,
        answer: Answer<ByEngine>,
    },
    /// Bytes that wait for slow peers.
    Bytes(Answer<usize>),
    /// End the thread.
    Shutdown,
}

/// Starts the relay's thread.
pub(crate) fn spawn(
    sockets: Sockets,
    session: Session,
    store: StoreHandle,
    junk: &JunkTotal,
) -> io::Result<(Post<Request>, thread::JoinHandle<()>)> {
    let (post, requests) = mailbox()?;
    let leaves = sockets
        .leaves
        .into_iter()
        .map(|leaf| Lane::to_engines("broadcast leaf", leaf, junk))
        .collect();
    let mut mux = Mux {
        clients: Lane::new("mux", sockets.clients, junk),
        engines: Lane::to_engines("mux engines", sockets.engines, junk),
        broadcast: Broadcast::new(Lane::new("broadcast", sockets.root, junk), leaves),
        session,
        recorder: store.recorder(),
        store,
        ledger: Ledger::default(),
        requests,
    };
    let thread = ipbroker_protocol::spawn("mux", move || mux.run())?;
    Ok((post, thread))
}

struct Mux {
    clients: Lane,
    engines: Lane,
    broadcast: Broadcast,
    session: Session,
    store: StoreHandle,
    recorder: Recorder,
    ledger: Ledger,
    requests: Mailbox<Request>,
}

/// Requests that are tasks: recorded and counted.
fn is_task(msg_type: &str) -> bool {
    matches!(
        msg_type,
        "apply_request" | "execute_request" | "command_request" | "function_request"
    )
}

/// The frames that the store keeps.
fn stored(envelope: &Envelope) -> Vec<&[u8]> {
    envelope
        .maps()
        .into_iter()
        .chain(envelope.buffers().iter().map(|buffer| &buffer[..]))
        .collect()
}

impl Mux {
    fn run(&mut self) {
        let mut replies = Vec::with_capacity(BATCH);
        let mut requests = Vec::with_capacity(BATCH);
        loop {
            let mut items = vec![zmq::PollItem::from_fd(self.requests.fd(), zmq::POLLIN)];
            items.extend(self.lanes().map(Lane::poll_item));
            if !poll("the direct relay", &mut items, poll_timeout(self.lanes())) {
                return;
            }
            self.clients.flush();
            self.engines.flush();
            for _ in 0..BATCH {
                let Some(reply) = self.engines.receive(2, &self.session) else {
                    break;
                };
                if let Some(frames) = self.replied(reply) {
                    replies.push(frames);
                }
            }
            for _ in 0..BATCH {
                let Some(request) = self.clients.receive(2, &self.session) else {
                    break;
                };
                if let Some(request) = self.requested(request) {
                    requests.push(request);
                }
            }
            // What somebody may ask the store for once he has his reply must be on its way there before.
            self.recorder.flush();
            for frames in replies.drain(..) {
                self.clients.send_or_drop(frames);
            }
            for request in requests.drain(..) {
                self.forward(request);
            }
            self.recorder.flush();
            self.broadcast.turn(&self.session);
            let letters: Vec<Request> = self.requests.take().collect();
            for letter in letters {
                if !self.serve(letter) {
                    return;
                }
            }
            self.recorder.flush();
        }
    }

    fn lanes(&self) -> impl Iterator<Item = &Lane> {
        [&self.clients, &self.engines]
            .into_iter()
            .chain(self.broadcast.lanes())
    }

    /// A client's request: recorded, identities swapped.
    fn requested(&mut self, mut request: Envelope) -> Option<Vec<Message>> {
        let header = HeaderRef::read(self.session.packer, request.header());
        let header = self.clients.good("bad header", header)?;
        if is_task(&header.msg_type) {
            let Ok(uuid) = std::str::from_utf8(&request.identities()[1]) else {
                self.clients
                    .refuse("not a message", &"the engine's identity is no text");
                return None;
            };
            let client = &request.identities()[0];
            let direct = Direct {
                engine: self.ledger.name(uuid),
                client: client[..].into(),
                header: request.header().into(),
                msg_type: (*header.msg_type).into(),
            };
            let frames = stored(&request);
            if self.ledger.sent(&header.msg_id, direct) {
                self.recorder.submitted(&Submission {
                    key: self.store.next_key(),
                    msg_id: &header.msg_id,
                    client,
                    queue: store::Queue::Mux,
                    count: 1,
                    frames: &frames,
                });
            }
        }
        request.swap_identities(0, 1);
        Some(request.into_frames())
    }

    /// Sends a request on; one that cannot be is answered by an error.
    fn forward(&mut self, frames: Vec<Message>) {
        let Err(refused) = self.engines.send(frames) else {
            return;
        };
        let Some(bounced) = Bounced::new(&self.session, refused) else {
            return;
        };
        let Bounced {
            msg_id,
            msg_type,
            engine,
            reply,
            why,
        } = bounced;
        if !msg_type.ends_with("_request") {
            let what = format_args!("{msg_type} to engine {engine}, which {why}");
            return self.clients.refuse("unroutable", &what);
        }
        if self.ledger.answered(&msg_id, false).is_some() {
            self.record(&msg_id, Outcome::Error, &engine, false, &stored(&reply));
            self.recorder.flush();
        }
        self.clients.send_or_drop(reply.into_frames());
    }

    /// An engine's reply: recorded, identities swapped back.
    fn replied(&mut self, mut reply: Envelope) -> Option<Vec<Message>> {
        let parent = ParentRef::read(self.session.packer, reply.parent_header());
        let parent = self.engines.good("bad parent header", parent)?;
        if is_task(&parent.msg_type) {
            let metadata =
                ReplyMetadata::read(self.session.packer, reply.metadata()).unwrap_or_default();
            let outcome = Outcome::of(&metadata.status).unwrap_or(Outcome::Error);
            let late = self
                .ledger
                .answered(&parent.msg_id, outcome != Outcome::Aborted)
                .is_none();
            let engine = hex(&reply.identities()[0]);
            self.record(&parent.msg_id, outcome, &engine, late, &stored(&reply));
            if late {
                // Its client has been told that the engine was lost: a second answer would only confuse it.
                tracing::debug!(msg_id = %parent.msg_id, %engine, "late reply kept aside");
                return None;
            }
        }
        reply.swap_identities(0, 1);
        Some(reply.into_frames())
    }

    fn record(
        &mut self,
        msg_id: &str,
        outcome: Outcome,
        engine: &str,
        late: bool,
        frames: &[&[u8]],
    ) {
        self.recorder.finished(&Finish {
            task: TaskRef::Id(msg_id),
            range: 0..1,
            outcome,
            exceptions: &[],
            engine,
            done: true,
            late,
            frames,
        });
    }

    fn serve(&mut self, request: Request) -> bool {
        match request {
            Request::Joined(uuid) => self.ledger.joined(&uuid),
            Request::Left(uuid, why) => self.left(&uuid, &why),
            Request::Status { verbose, answer } => answer(self.ledger.status(verbose)),
            Request::States { ids, answer } => {
                let state = |id: &String| match self.ledger.is_pending(id) {
                    true => TaskState::Running,
                    false => TaskState::Unknown,
                };
                answer(ids.iter().map(state).collect());
            }
            Request::Running { ids, answer } => answer(self.ledger.running(ids)),
            Request::Bytes(answer) => answer(self.lanes().map(Lane::bytes).sum()),
            Request::Shutdown => return false,
        }
        true
    }

    fn left(&mut self, uuid: &str, why: &str) {
        // Replies that it had sent before it went are still in the socket.
        let mut frames = Vec::new();
        while let Some(reply) = self.engines.receive(2, &self.session) {
            frames.extend(self.replied(reply));
        }
        self.recorder.flush();
        for reply in frames {
            self.clients.send_or_drop(reply);
        }
        for (msg_id, task) in self.ledger.left(uuid) {
            let error =
                ErrorContent::new("EngineError", format!("{why} while it had task {msg_id}"));
            let identities = vec![Message::from(&task.client[..]), Message::from(uuid)];
            let reply = failure(
                &self.session,
                identities,
                &task.header,
                &task.msg_type,
                uuid,
                &error,
            );
            self.record(&msg_id, Outcome::Error, uuid, false, &stored(&reply));
            if !is_anonymous(&task.client) {
                self.clients.send_or_drop(reply.into_frames());
            }
        }
        self.broadcast.engine_left(&self.session, uuid, why);
    }
}
