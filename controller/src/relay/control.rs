//! The control relay: aborts, signals, shutdowns. Identities are swapped as on the direct path; abort requests are read
//! in passing, and the controller sends requests of its own.

use std::{
    io, thread,
    time::{Duration, Instant},
};

use foldhash::{HashMap, HashMapExt};
use ipbroker_protocol::{
    envelope::Envelope,
    junk::JunkTotal,
    message::{AbortRequest, HeaderRef, ParentRef, types},
    session::{Session, UnpackError},
    value::Value,
    zmq::{self, Message, Socket},
};
use serde::Serialize;
use serde_json::json;

use super::{
    BATCH, Bounced,
    lane::{Lane, poll_timeout},
    outbox::Refused,
    poll,
};
use crate::{
    mailbox::{Answer, Mailbox, Post, mailbox},
    scheduler::command::{Command, Selection},
};

/// The identity under which the controller's own requests travel, in place of a client's.
const SELF: &[u8] = b"ipbroker.controller";

/// Takes the content of an engine's reply; `None`: there is none.
type ReplyTo = Answer<Option<serde_json::Value>>;

/// What the rest of the controller asks of the relay.
pub(crate) enum Request {
    /// Send a message of the controller's own to an engine.
    Send {
        engine: String,
        msg_type: &'static str,
        content: serde_json::Value,
        /// What the content of the reply goes to, and `None` if there is none; otherwise the reply is dropped.
        answer: Option<ReplyTo>,
    },
    /// End the thread.
    Shutdown,
}

/// How long an engine's answer to the controller is waited for.
const PATIENCE: Duration = Duration::from_secs(5);

/// Sends the controller's own messages to engines, on their control channel.
#[derive(Clone)]
pub(crate) struct ControlPost(Post<Request>);

impl ControlPost {
    /// Sends a message to an engine, e.g. `give_back_request`, `reply_ack`, `abort_request`. One that is not connected
    /// does not get it.
    pub(crate) fn send(&self, engine: &str, msg_type: &'static str, content: &impl Serialize) {
        self.ask(engine, msg_type, content, None);
    }

    /// The same; its reply goes to `answer`.
    pub(crate) fn ask(
        &self,
        engine: &str,
        msg_type: &'static str,
        content: &impl Serialize,
        answer: Option<ReplyTo>,
    ) {
        let content = serde_json::to_value(content).expect("contents are string-keyed maps");
        self.0.send(Request::Send {
            engine: engine.to_owned(),
            msg_type,
            content,
            answer,
        });
    }

    /// Ends the relay.
    pub(crate) fn shutdown(&self) {
        self.0.send(Request::Shutdown);
    }
}

/// Starts the relay's thread. `tasks` is told of the aborts that pass.
pub(crate) fn spawn(
    clients: Socket,
    engines: Socket,
    session: Session,
    tasks: Post<Command>,
    junk: &JunkTotal,
) -> io::Result<(ControlPost, thread::JoinHandle<()>)> {
    let (post, requests) = mailbox()?;
    let mut control = Control {
        clients: Lane::new("control", clients, junk),
        engines: Lane::to_engines("control engines", engines, junk),
        session,
        tasks,
        requests,
        asked: HashMap::new(),
    };
    let thread = ipbroker_protocol::spawn("control", move || control.run())?;
    Ok((ControlPost(post), thread))
}

struct Control {
    clients: Lane,
    engines: Lane,
    session: Session,
    tasks: Post<Command>,
    requests: Mailbox<Request>,
    /// Questions of the controller's own that are not answered, by id, and since when.
    asked: HashMap<String, (Instant, ReplyTo)>,
}

impl Control {
    fn run(&mut self) {
        loop {
            let mut items = [
                zmq::PollItem::from_fd(self.requests.fd(), zmq::POLLIN),
                self.clients.poll_item(),
                self.engines.poll_item(),
            ];
            let mut timeout = poll_timeout([&self.clients, &self.engines]);
            if !self.asked.is_empty() && !(0..1000).contains(&timeout) {
                timeout = 1000;
            }
            if !poll("the control relay", &mut items, timeout) {
                return;
            }
            self.clients.flush();
            self.engines.flush();
            for _ in 0..BATCH {
                let Some(mut reply) = self.engines.receive(2, &self.session) else {
                    break;
                };
                if &reply.identities()[1][..] == SELF {
                    self.answered(&reply);
                } else {
                    reply.swap_identities(0, 1);
                    self.clients.send_or_drop(reply.into_frames());
                }
            }
            for (_, (_, answer)) in self
                .asked
                .extract_if(|_, (since, _)| since.elapsed() > PATIENCE)
            {
                answer(None);
            }
            for _ in 0..BATCH {
                let Some(request) = self.clients.receive(2, &self.session) else {
                    break;
                };
                self.requested(request);
            }
            let letters: Vec<Request> = self.requests.take().collect();
            for letter in letters {
                match letter {
                    Request::Send {
                        engine,
                        msg_type,
                        content,
                        answer,
                    } => match (self.send(&engine, msg_type, &content), answer) {
                        (Some(id), Some(answer)) => {
                            drop(self.asked.insert(id, (Instant::now(), answer)));
                        }
                        (None, Some(answer)) => answer(None),
                        (_, None) => {}
                    },
                    Request::Shutdown => {
                        self.engines.flush();
                        return;
                    }
                }
            }
        }
    }

    fn requested(&mut self, mut request: Envelope) {
        let header = match HeaderRef::read(self.session.packer, request.header()) {
            Ok(header) => header,
            Err(error) => return self.clients.refuse("bad header", &error),
        };
        if header.msg_type == types::ABORT_REQUEST {
            match abort_ids(&self.session, request.content()) {
                Ok(ids) if !ids.is_empty() => {
                    // The engine only remembers the ids; those that wait here end here, and none is tried again.
                    self.tasks.send(Command::Abort {
                        selection: Selection::Ids(ids),
                        kill: false,
                        answer: Box::new(drop),
                    });
                }
                Ok(_) => {}
                Err(error) => return self.clients.refuse("bad abort_request", &error),
            }
        }
        request.swap_identities(0, 1);
        if let Err(refused) = self.engines.send(request.into_frames())
            && let Some(bounced) = Bounced::new(&self.session, refused)
        {
            self.clients.send_or_drop(bounced.reply.into_frames());
        }
    }

    /// An engine has answered a message of the controller's own.
    fn answered(&mut self, reply: &Envelope) {
        let Ok(parent) = ParentRef::read(self.session.packer, reply.parent_header()) else {
            return;
        };
        if let Some((_, answer)) = self.asked.remove(&*parent.msg_id) {
            let content = self.session.unpack::<Value>(reply.content());
            answer(content.ok().map(|Value(content)| content));
        }
    }

    /// Sends a message of the controller's own: its id, if that could be.
    fn send(
        &mut self,
        engine: &str,
        msg_type: &str,
        content: &serde_json::Value,
    ) -> Option<String> {
        let header = self.session.header(msg_type);
        let identities = vec![Message::from(engine), Message::from(SELF)];
        let message =
            self.session
                .message(identities, &header, None, &json!({}), content, Vec::new());
        match self.engines.send(message.into_frames()) {
            Ok(()) => return Some(header.msg_id),
            Err(Refused::Unroutable(_)) => {
                tracing::debug!(engine, msg_type, "not sent: the engine is not connected")
            }
            Err(Refused::Full(_)) => tracing::warn!(
                engine,
                msg_type,
                "not sent: the engine does not take its messages"
            ),
        }
        None
    }
}

/// The ids of an abort request; Python may send one as a string, or none.
fn abort_ids(session: &Session, content: &[u8]) -> Result<Vec<String>, UnpackError> {
    let Value(value) = session.unpack(content)?;
    Ok(match &value["msg_ids"] {
        serde_json::Value::String(id) => vec![id.clone()],
        _ => serde_json::from_value::<AbortRequest>(value)
            .ok()
            .and_then(|request| request.msg_ids)
            .unwrap_or_default(),
    })
}
