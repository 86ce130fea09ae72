//! The thread that serves the sockets of all logical engines of a process: it never blocks and never works.

mod control;
mod file_server;
mod heart;
mod hub;
mod kept;
mod leave;
mod net;
mod shell;

use std::{
    collections::{HashSet, VecDeque},
    io,
    os::{fd::AsRawFd, unix::net::UnixStream},
    sync::Arc,
    time::{Duration, Instant},
};

use ipbroker_protocol::{
    bundle,
    frames::Frames,
    junk::{Junk, JunkTotal},
    resources::Pools,
    route,
    session::Session,
    socket,
    wake::Wake,
    zmq::{self, Message, Socket},
};
use mio::{Events, Interest, Poll, unix::SourceFd};

use crate::{
    connect::Controller,
    executor::Flusher,
    host,
    logical_engine::LogicalEngine,
    process::{Channel, Outgoing, Process},
    settings::Settings,
};
use file_server::FileServer;
use heart::Pulse;
use kept::Kept;
use net::{Net, Token};

/// Messages that one socket may bring before the others have their turn.
const BATCH: usize = 128;

/// How often we look at what does not announce itself.
const TICK: Duration = Duration::from_millis(100);

/// How long the reply of a quick call waits for others, while its engine has more to do.
const GATHER: Duration = Duration::from_micros(500);

/// How long a reply waits for a relay that is not connected.
const UNSENT: Duration = Duration::from_secs(60);

/// Why an engine process ended by itself.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ServeError {
    /// The system has no more of something.
    #[error("cannot serve the sockets: {0}")]
    Io(#[from] io::Error),
    /// libzmq refuses.
    #[error("cannot open or connect the sockets: {0}")]
    Zmq(#[from] zmq::Error),
    /// It lost its controller, or a kernel.
    #[error("{0}")]
    Ended(String),
    /// The next one would end in the same way.
    #[error("{0}")]
    Hopeless(String),
}

/// What the thread keeps for one logical engine.
#[derive(Debug, Default)]
struct Link {
    registered: bool,
    /// When it last asked to be registered.
    asked: Option<Instant>,
    /// Its id, once it had one.
    id: Option<u32>,
    durable: bool,
    pure: bool,
    incarnation: String,
    kept: Kept,
    /// Tasks to be announced, on the pure path.
    received: Vec<(String, String, String)>,
    leaving: Option<Leave>,
    gone: bool,
}

/// How far an engine is that leaves.
#[derive(Debug, Clone, Copy)]
struct Leave {
    /// Until when it waits for its task to end; `None`: for as long as that takes.
    task: Option<Instant>,
    /// Until when it waits for the scheduler's word that nothing more will come; `None`: it has it, or cannot get it.
    word: Option<Instant>,
    /// Once it has said its last word: until when it waits for the answer.
    said: Option<Instant>,
    /// Whether the answer has come.
    heard: bool,
}

impl Leave {
    /// It ends what it runs first, and has not said its last word.
    fn drains(&self) -> bool {
        self.task.is_none() && self.said.is_none()
    }
}

/// How the engines of a process left.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Left {
    /// Everything was handed back and the hub told.
    Cleanly,
    /// At once: the reaper does what is left to do, and tells the hub.
    AtOnce,
}

/// Serves all sockets of the process.
pub(crate) struct Server {
    settings: Settings,
    /// Which machine this is, and what it has.
    machine: String,
    resources: Pools,
    cpuset: Vec<u32>,
    process: Arc<Process>,
    engines: Vec<Arc<LogicalEngine>>,
    links: Vec<Link>,
    controller: Controller,
    net: Net,
    poll: Poll,
    wake: Wake,
    signals: UnixStream,
    signalled: bool,
    at_once: bool,
    pulse: Pulse,
    meter: host::Meter,
    file_server: FileServer,
    junk: Junk,
    /// What could not be sent, and since when.
    unsent: VecDeque<(Instant, Outgoing)>,
    /// Sockets to be looked at, and which of them are listed.
    ready: VecDeque<Token>,
    listed: Vec<bool>,
    outgoing: Vec<Outgoing>,
    /// Since when what is in it waits for more.
    gathering: Option<Instant>,
    /// When an engine of the process last had something to do, and how many tasks they had taken by then.
    busy: (Instant, u64),
    /// How many engines have not left, and how many of them are about to.
    present: usize,
    leaving: usize,
    /// Why the process leaves, once it does.
    leaves: Option<String>,
    failed: Option<ServeError>,
}

impl Server {
    /// Opens the sockets; `signals` becomes readable when the process gets one.
    pub(crate) fn new(
        settings: Settings,
        process: Arc<Process>,
        engines: Vec<Arc<LogicalEngine>>,
        controller: Controller,
        wake: Wake,
        signals: UnixStream,
    ) -> Result<Self, ServeError> {
        let uuids: Vec<&str> = engines.iter().map(|engine| engine.uuid.as_str()).collect();
        let net = Net::connect(
            &controller.connection,
            controller.curve.as_ref(),
            &process.id,
            &uuids,
        )?;
        let mut server = Self {
            links: engines.iter().map(|_| Link::default()).collect(),
            listed: vec![false; Token::count(engines.len())],
            unsent: VecDeque::new(),
            leaving: 0,
            present: engines.len(),
            file_server: FileServer::new(process.clone()),
            pulse: Pulse::new(Instant::now()),
            meter: host::Meter::default(),
            machine: host::machine(),
            resources: host::resources(&settings.resources),
            cpuset: host::cpuset(),
            settings,
            process,
            engines,
            controller,
            net,
            poll: Poll::new()?,
            wake,
            signals,
            signalled: false,
            at_once: false,
            junk: Junk::new("engine", &JunkTotal::default()),
            ready: VecDeque::new(),
            outgoing: Vec::new(),
            gathering: None,
            busy: (Instant::now(), 0),
            leaves: None,
            failed: None,
        };
        server.watch(Token::Wake, server.wake.fd())?;
        server.signals.set_nonblocking(true)?;
        server.watch(Token::Signal, server.signals.as_raw_fd())?;
        server.watch_net()?;
        Ok(server)
    }

    fn watch(&self, token: Token, fd: std::os::fd::RawFd) -> io::Result<()> {
        self.poll.registry().register(
            &mut SourceFd(&fd),
            mio::Token(token.number()),
            Interest::READABLE,
        )
    }

    /// libzmq's descriptors tell only that something *changed*: a socket is looked at once at first, and after each
    /// change until it has nothing more.
    fn watch_net(&mut self) -> Result<(), ServeError> {
        for (token, fd) in self.net.descriptors()? {
            self.watch(token, fd)?;
            self.list(token);
        }
        Ok(())
    }

    fn list(&mut self, token: Token) {
        if !std::mem::replace(&mut self.listed[token.number()], true) {
            self.ready.push_back(token);
        }
    }

    /// Serves until all engines have left.
    pub(crate) fn run(mut self) -> Result<Left, ServeError> {
        let _flushing = Flusher::start(self.process.clone(), self.engines.clone())?;
        let mut events = Events::with_capacity(1024);
        let mut next_tick = Instant::now();
        loop {
            let wait = match self.ready.is_empty() {
                true => self
                    .gathering
                    .map_or(next_tick, |since| next_tick.min(since + GATHER))
                    .saturating_duration_since(Instant::now()),
                false => Duration::ZERO,
            };
            match self.poll.poll(&mut events, Some(wait)) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                result => result?,
            }
            for event in &events {
                self.list(Token::of(event.token().0));
            }
            self.flush_soon();
            for _ in 0..self.ready.len() {
                if let Some(token) = self.ready.pop_front() {
                    self.listed[token.number()] = false;
                    self.serve(token)?;
                }
            }
            let now = Instant::now();
            if now >= next_tick {
                next_tick = now + TICK;
                self.tick(now)?;
            }
            if self.leaving > 0 {
                self.finish_leaving(Instant::now());
            }
            if self.present == 0 {
                let left = if self.at_once {
                    Left::AtOnce
                } else {
                    Left::Cleanly
                };
                return self.failed.map_or(Ok(left), Err);
            }
        }
    }

    fn serve(&mut self, token: Token) -> Result<(), ServeError> {
        match token {
            Token::Wake => {}
            Token::Signal => self.signal(),
            Token::Ping => self.pings(),
            Token::Monitor => self.monitored(),
            Token::Shell(wire) => {
                let take = |server: &mut Self, frames| server.shell(wire, frames);
                self.drain(token, |net| &net.wires[wire].shell, take)?;
            }
            Token::Control(wire) => {
                let take = |server: &mut Self, frames| server.control(wire, frames);
                self.drain(token, |net| &net.wires[wire].control, take)?;
            }
            Token::Hub(wire) => {
                let take = |server: &mut Self, frames| server.hear_hub(wire, frames);
                self.drain(token, |net| &net.wires[wire].hub, take)?;
            }
            Token::Tasks(index) => {
                let take = |server: &mut Self, frames| server.shell_of(index, frames);
                self.drain(token, |net| &net.tasks[index], take)?;
                self.announce(index);
            }
        }
        Ok(())
    }

    /// Takes a batch of messages from a socket, which is listed again if there may be more.
    fn drain(
        &mut self,
        token: Token,
        socket: impl Fn(&Net) -> &Socket,
        take: impl Fn(&mut Self, Vec<Message>),
    ) -> Result<(), ServeError> {
        for _ in 0..BATCH {
            let mut frames = Vec::with_capacity(10);
            if !socket::recv(socket(&self.net), &mut frames)? {
                return Ok(());
            }
            take(self, frames);
        }
        self.list(token);
        Ok(())
    }

    /// The engine that a message is for: the one with this wire, or its uuid follows the relay's and is taken out. `None`: it
    /// is for the process.
    fn addressee(&self, wire: usize, frames: &mut Vec<Message>) -> Option<usize> {
        if !self.net.shared {
            return Some(wire);
        }
        let index = route::index(frames.get(1)?, &self.process.id)?;
        if index >= self.engines.len() {
            return None;
        }
        frames.remove(1);
        Some(index)
    }

    /// How what concerns the whole process is packed and signed.
    fn session(&self) -> Arc<Session> {
        self.engines[0].session()
    }

    /// Sends what the workers have left.
    fn flush(&mut self) {
        self.wake.clear();
        self.gathering = None;
        let mut outgoing = std::mem::take(&mut self.outgoing);
        self.process.outbox.take(&mut outgoing);
        self.send_all(outgoing.drain(..));
        self.outgoing = outgoing;
    }

    /// The same, a little later if engines are busy with quick calls, so that their replies travel together. Until then
    /// the bell, which is not silenced, does not wake this thread again.
    fn flush_soon(&mut self) {
        if let Some(since) = self.gathering {
            if since.elapsed() >= GATHER {
                self.flush();
            }
            return;
        }
        self.process.outbox.take(&mut self.outgoing);
        let has_more = |message: &Outgoing| {
            message.to_scheduler()
                && self
                    .engines
                    .get(message.index)
                    .is_some_and(|engine| engine.has_more())
        };
        if self.outgoing.is_empty() {
            self.wake.clear();
            // What came between the two looks.
            self.process.outbox.take(&mut self.outgoing);
        }
        if !self.outgoing.is_empty() && self.outgoing.iter().all(has_more) {
            self.gathering = Some(Instant::now());
        } else {
            self.flush();
        }
    }

    /// Sends messages in their order; what goes to the scheduler goes together.
    fn send_all(&mut self, messages: impl IntoIterator<Item = Outgoing>) {
        let mut together: Vec<Frames> = Vec::new();
        let mut answers = None;
        for mut message in messages {
            let bundles = self.net.shared;
            let registered = |link: &Link| bundles && link.registered && !link.pure;
            if message.to_scheduler() && self.links.get(message.index).is_some_and(registered) {
                self.keep(&message);
                self.address(&mut message);
                together.push(message.frames.into());
                answers = answers.or(message.answers);
            } else {
                self.send(message);
            }
        }
        bundle::send(&self.session(), (1, None), together, |frames| {
            self.pass(Outgoing {
                index: 0,
                channel: Channel::Shell,
                frames,
                answers: answers.clone(),
            });
        });
    }

    /// Sends a message, or keeps it until its way is open.
    fn send(&mut self, mut message: Outgoing) {
        self.keep(&message);
        self.address(&mut message);
        self.pass(message);
    }

    /// Keeps a reply until it is acknowledged.
    fn keep(&mut self, message: &Outgoing) {
        if let (true, Some(task), Some(link)) = (
            message.to_scheduler(),
            &message.answers,
            self.links.get_mut(message.index),
        ) && link.durable
        {
            link.kept.keep(task, &message.frames);
        }
    }

    /// Says whose message it is, where engines share a connection.
    fn address(&self, message: &mut Outgoing) {
        let shared = match message.channel {
            Channel::Shell => !(self.controller.connection.pure && message.to_scheduler()),
            Channel::Control => true,
            Channel::Hub | Channel::IoPub => false,
        };
        if let (true, Some(engine)) = (shared && self.net.shared, self.engines.get(message.index)) {
            message
                .frames
                .insert(1, Message::from(engine.uuid.as_str()));
        }
    }

    fn pass(&mut self, message: Outgoing) {
        if !self.unsent.is_empty() && message.channel == Channel::Shell {
            self.unsent.push_back((Instant::now(), message));
        } else if let Err(message) = self.try_send(message) {
            self.unsent.push_back((Instant::now(), message));
        }
    }

    fn try_send(&mut self, mut message: Outgoing) -> Result<(), Outgoing> {
        if message.channel == Channel::Shell {
            self.session().seal(&mut message.frames);
        }
        let index = self.net.wire(message.index.min(self.engines.len() - 1));
        let wire = &self.net.wires[index];
        let (socket, token) = match message.channel {
            Channel::Shell => match self.net.tasks.get(message.index) {
                Some(own) if message.to_scheduler() => (own, Some(Token::Tasks(message.index))),
                _ => (&wire.shell, Some(Token::Shell(index))),
            },
            Channel::Control => (&wire.control, Some(Token::Control(index))),
            Channel::Hub => (&wire.hub, Some(Token::Hub(index))),
            Channel::IoPub => (&self.net.iopub, None),
        };
        let Some(first) = message.frames.first() else {
            return Ok(());
        };
        // A copy of the first frame: if it is refused, the message is still whole.
        let flags = zmq::DONTWAIT
            | if message.frames.len() > 1 {
                zmq::SNDMORE
            } else {
                0
            };
        match socket.send(Message::from(&first[..]), flags) {
            Ok(()) => {}
            Err(zmq::Error::EHOSTUNREACH | zmq::Error::EAGAIN) => return Err(message),
            Err(error) => {
                tracing::warn!(%error, "a message could not be sent");
                return Ok(());
            }
        }
        let mut rest = message.frames.into_iter().skip(1).peekable();
        while let Some(frame) = rest.next() {
            let flags = if rest.peek().is_some() {
                zmq::SNDMORE
            } else {
                0
            };
            if let Err(error) = socket.send(frame, flags) {
                tracing::warn!(%error, "a message could not be sent whole");
                break;
            }
        }
        if let Some(token) = token {
            // Sending may have taken in what the descriptor would have told.
            self.list(token);
        }
        Ok(())
    }

    /// Tries again what could not be sent.
    fn retry(&mut self, now: Instant) {
        // What goes the same way stays in order.
        let mut closed = HashSet::new();
        for (since, message) in std::mem::take(&mut self.unsent) {
            // What answers the scheduler waits as long as we do; others go by way of a relay that may never come back.
            if now - since > UNSENT && message.answers.is_none() {
                continue;
            }
            let peer = message.frames.first().map(|peer| peer.to_vec());
            let own = !self.net.shared || !self.net.tasks.is_empty();
            let way = (message.channel, peer, own.then_some(message.index));
            let sent = match closed.contains(&way) {
                true => Err(message),
                false => self.try_send(message),
            };
            if let Err(message) = sent {
                closed.insert(way);
                self.unsent.push_back((since, message));
            }
        }
    }

    fn tick(&mut self, now: Instant) -> Result<(), ServeError> {
        for index in 0..self.engines.len() {
            if let Some((why, for_good)) = self.engines[index].given_up().cloned() {
                let failed = match for_good {
                    true => ServeError::Hopeless,
                    false => ServeError::Ended,
                };
                self.failed.get_or_insert_with(|| failed(why.clone()));
                self.leave_one(index, &why, false);
            }
        }
        self.leave_if_idle(now);
        self.retry(now);
        self.watch_controller(now)?;
        self.register(now);
        Ok(())
    }
}
