//! The task thread: moves frames between clients, engines, journal and the scheduler core.
//!
//! One turn of its loop: read a batch of messages and questions, hand their meaning to the core, turn the core's actions
//! into messages, write the batch to the journal, and only then send what it caused. Nothing here waits for a disk, a
//! query or a slow peer; a store that lags only stops the reading of new submissions.

mod actions;
mod engines;
pub(crate) mod frames;
mod groups;
mod intake;
mod questions;
mod recovery;
mod replies;
mod resources;
mod results;
mod turn;
mod watch;

pub(crate) use intake::reply_type;
pub(crate) use watch::last_line;

use std::{
    cell::Cell,
    collections::VecDeque,
    io,
    sync::Arc,
    time::{Duration, Instant},
};

use foldhash::{HashMap, HashMapExt};
use ipbroker_protocol::{
    bundle,
    bundle::Addressed,
    envelope::Envelope,
    frames::Frames,
    junk::{Junk, JunkTotal},
    route,
    session::Session,
    zmq::{Message, Socket},
};

use self::{
    engines::Engines,
    groups::Groups,
    intake::MetadataCache,
    questions::Overtaken,
    results::{Acks, Kept},
};
use super::{
    command::Command,
    core::{Config, Core, Nanos, Scheme},
};
use crate::{
    mailbox::{Answer, Mailbox, Post, mailbox},
    relay::outbox::{Outbox, try_send},
    store::{Journal, Recovered, StoreHandle, StoredReply},
};

/// Everything a task thread is made of.
pub(crate) struct TaskThread {
    /// ROUTER that clients connect to, bound.
    pub clients: Socket,
    /// ROUTER that engines connect to, bound, with the routing id [`ipbroker_protocol::socket::routing::TASK`].
    pub engines: Socket,
    /// Signs and packs.
    pub session: Arc<Session>,
    /// How engines are chosen.
    pub scheme: Box<dyn Scheme>,
    /// Settings of the core.
    pub config: Config,
    /// Where tasks are recorded.
    pub journal: Journal,
    /// Where history is asked for.
    pub store: StoreHandle,
    /// Whether there is a store that outlives this process: replies of engines are then acknowledged.
    pub durable: bool,
    /// What an earlier controller left.
    pub recovered: Recovered,
    /// Questions and events of the hub.
    pub commands: Mailbox<Command>,
    /// Where refused messages are counted.
    pub junk: JunkTotal,
}

/// What other threads answer to this one.
enum Answered {
    /// Replies that a client asked for again: the client, the ids asked for, what the store has.
    Replies {
        client: Box<[u8]>,
        asked: Vec<String>,
        found: Vec<StoredReply>,
    },
    /// The outcome of a past task: whether it succeeded and where it ran; `None`: nobody knows it.
    Outcome {
        id: Box<str>,
        known: Option<(bool, Vec<String>)>,
    },
    /// More of the journal is durable.
    Durable,
}

/// The thread's state.
struct Scheduler {
    core: Core,
    begun: Instant,
    /// The last answer of [`Scheduler::now`].
    latest: Cell<Nanos>,
    session: Arc<Session>,
    client_socket: Socket,
    engine_socket: Socket,
    groups: Groups,
    engines: Engines,
    journal: Journal,
    store: StoreHandle,
    durable: bool,
    /// Messages that the current batch causes; they leave when the journal has it.
    out: Vec<Outgoing>,
    outbox: Outbox,
    /// The same towards engines.
    engine_outbox: Outbox,
    acks: Acks,
    kept: Kept,
    cache: MetadataCache,
    junk_clients: Junk,
    junk_engines: Junk,
    post: Post<Answered>,
    /// What engines said that are not known yet, oldest first.
    early: Vec<(Duration, Envelope)>,
    /// Aborts that came before what they are about.
    overtaken: Overtaken,
    /// Who waits for the end of this batch.
    settled: Vec<Answer<()>>,
    /// Engines that have left according to the hub, and until when their last word is waited for, oldest first.
    goodbyes: VecDeque<(Duration, String)>,
    /// Set while the journal cannot be written.
    stuck: bool,
    /// Members a client preferred to run somewhere, and those that did.
    preferred: (u64, u64),
    /// Members that were given to engines.
    given: u64,
    needs: HashMap<Box<str>, super::core::Needs>,
    /// The client of the last submission: its groups share the name.
    client: Arc<[u8]>,
    /// What those who watch are told.
    watch: watch::Watch,
}

enum Outgoing {
    /// To an engine: its uuid, and the frames from the client's identity on.
    Engine(Arc<str>, Frames),
    /// To a client: frames with its identity first, and whether they may go in a bundle.
    Client(Frames, bool),
    /// To an engine that has left and waits for nothing but this: frames with its routing id first.
    Farewell(Vec<Message>),
}

impl TaskThread {
    /// Runs until [`Command::Shutdown`].
    pub(crate) fn run(self) -> io::Result<()> {
        let (post, answers) = mailbox()?;
        let durable_post = post.clone();
        self.store
            .on_durable(move || durable_post.send(Answered::Durable));
        let mut scheduler = Scheduler {
            core: Core::new(self.config, self.scheme),
            begun: Instant::now(),
            latest: Cell::new(0),
            session: self.session,
            client_socket: self.clients,
            engine_socket: self.engines,
            groups: Groups::default(),
            engines: Engines::default(),
            journal: self.journal,
            store: self.store,
            durable: self.durable,
            out: Vec::new(),
            outbox: Outbox::new(),
            engine_outbox: Outbox::patient(),
            acks: Acks::default(),
            kept: Kept::default(),
            cache: MetadataCache::default(),
            junk_clients: Junk::new("task (clients)", &self.junk),
            junk_engines: Junk::new("task (engines)", &self.junk),
            post,
            early: Vec::new(),
            overtaken: Overtaken::default(),
            settled: Vec::new(),
            goodbyes: VecDeque::new(),
            stuck: false,
            preferred: (0, 0),
            given: 0,
            needs: HashMap::new(),
            client: Arc::default(),
            watch: watch::Watch::default(),
        };
        scheduler.restore(self.recovered);
        scheduler.run(&self.commands, &answers)
    }
}

impl Scheduler {
    /// Never the same twice: of two events it is known which came first.
    fn now(&self) -> Nanos {
        let clock = u64::try_from(self.begun.elapsed().as_nanos()).unwrap_or(u64::MAX);
        let now = clock.max(self.latest.get() + 1);
        self.latest.set(now);
        now
    }

    /// A message of the controller's own to a client.
    fn tell_client(&mut self, client: &[u8], mut envelope: Envelope) {
        if !client.is_empty() {
            envelope.set_identities([Message::from(client)]);
            self.out
                .push(Outgoing::Client(envelope.into_frames().into(), false));
        }
    }

    /// A message of the controller's own to an engine of ours.
    fn tell_engine(&mut self, uuid: &str, msg_type: &str, content: &impl serde::Serialize) {
        let envelope = self.session.request(msg_type, content);
        self.out
            .push(Outgoing::Engine(uuid.into(), envelope.into_frames().into()));
    }

    /// Sends what the batch caused, to engines first: messages of one direction together wake libzmq's threads less often.
    fn send_out(&mut self) {
        let session = self.session.clone();
        let mut to_engines = Together::default();
        let mut to_clients = Together::default();
        let mut to_client_alone = Vec::new();
        for outgoing in self.out.drain(..) {
            match outgoing {
                Outgoing::Engine(uuid, frames) => {
                    // What was for an engine that is gone by now has been decided on.
                    let Some(engine) = self.engines.find(uuid.as_bytes()) else {
                        continue;
                    };
                    if engine.bundles {
                        to_engines.add_to_engine(uuid, frames);
                    } else {
                        let mut frames = session.sealed(frames);
                        frames.insert(0, Message::from(&*uuid));
                        route::add(&mut frames);
                        to_engine(&mut self.engine_outbox, &self.engine_socket, frames);
                    }
                }
                Outgoing::Client(frames, true) => to_clients.add_to_client(frames),
                Outgoing::Client(frames, false) => to_client_alone.push(session.sealed(frames)),
                Outgoing::Farewell(mut frames) => {
                    route::add(&mut frames);
                    if let Err(error) = try_send(&self.engine_socket, &mut frames) {
                        tracing::debug!(%error, "an engine is gone before its last word was answered");
                    }
                }
            }
        }
        to_engines.send(&session, |frames| {
            to_engine(&mut self.engine_outbox, &self.engine_socket, frames);
        });
        for frames in to_client_alone {
            to_client(&mut self.outbox, &self.client_socket, frames);
        }
        to_clients.send(&session, |frames| {
            to_client(&mut self.outbox, &self.client_socket, frames);
        });
    }
}

fn to_engine(outbox: &mut Outbox, socket: &Socket, frames: Vec<Message>) {
    if let Err(refused) = outbox.send(socket, frames) {
        // It will say that it does not hold it.
        tracing::warn!(%refused, "an engine takes nothing more");
    }
}

fn to_client(outbox: &mut Outbox, socket: &Socket, frames: Vec<Message>) {
    // A client that is gone asks again when it comes back; one that does not read keeps what fits.
    if let Err(refused) = outbox.send(socket, frames) {
        tracing::debug!(%refused, "a client cannot be reached");
    }
}

/// What leaves in one turn for those who take bundles, by peer.
#[derive(Default)]
struct Together {
    peers: HashMap<Box<[u8]>, usize>,
    ways: Vec<Way>,
}

/// What goes to one peer.
struct Way {
    /// The peer's identity, where it is not the messages' first frame.
    identity: Option<Box<[u8]>>,
    messages: Vec<Addressed>,
}

impl Together {
    /// What is for the engines of a process goes the same way.
    fn add_to_engine(&mut self, uuid: Arc<str>, frames: Frames) {
        let connection = route::connection(&uuid);
        let way = self.way(connection.as_bytes(), true);
        let engine = (connection != &*uuid).then(|| uuid.clone());
        way.messages.push(Addressed { engine, frames });
    }

    fn add_to_client(&mut self, frames: Frames) {
        self.way(&frames[0], false).messages.push(frames.into());
    }

    /// The way to a peer; `named`: its identity is none of the messages' frames.
    fn way(&mut self, peer: &[u8], named: bool) -> &mut Way {
        let at = match self.peers.get(peer) {
            Some(at) => *at,
            None => {
                self.peers.insert(peer.into(), self.ways.len());
                self.ways.push(Way {
                    identity: named.then(|| peer.into()),
                    messages: Vec::new(),
                });
                self.ways.len() - 1
            }
        };
        &mut self.ways[at]
    }

    fn send(self, session: &Session, mut send: impl FnMut(Vec<Message>)) {
        for Way { identity, messages } in self.ways {
            let routing = usize::from(identity.is_none());
            bundle::send(session, (routing, identity.as_deref()), messages, &mut send);
        }
    }
}
