//! The sockets of an engine process. All its engines share them; but on the pure path, where libzmq deals tasks out to
//! connections, each has one of its own to the scheduler.

use std::{collections::BTreeSet, os::fd::RawFd};

use ipbroker_protocol::{
    connection::EngineConnection,
    route,
    socket::{self, CurveClient},
    zmq::{self, Context, Socket},
};

/// Sockets that one context of libzmq may have, rounded down; each brings an I/O thread.
const SOCKETS: usize = 1000;

/// Where the coming and going of the connection is told, inside the process.
const MONITOR: &str = "inproc://heartbeat-monitor";

/// Events of a socket monitor that we look at.
const HANDSHAKE_SUCCEEDED: u16 = 0x1000;
const DISCONNECTED: u16 = 0x0200;

/// All sockets; the process's id is their identity. Sockets go before their contexts.
pub(super) struct Net {
    /// Towards the hub.
    pub(super) hub: Socket,
    /// Tasks, direct requests, broadcasts.
    pub(super) shell: Socket,
    /// Control requests.
    pub(super) control: Socket,
    /// On the pure path: tasks, for each engine.
    pub(super) tasks: Vec<Socket>,
    /// The heartbeat.
    pub(super) ping: Socket,
    /// Its echo.
    pub(super) pong: Socket,
    /// Output.
    pub(super) iopub: Socket,
    monitor: Socket,
    connection: EngineConnection,
    /// The broadcast leaves that the shell socket is connected to.
    leaves: BTreeSet<usize>,
    _contexts: Vec<Context>,
}

/// What the monitor has seen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Seen {
    /// The controller is there.
    Up,
    /// The connection broke.
    Down,
}

impl Net {
    /// Opens the sockets of a process with so many engines and begins to connect all of them, so that they are ready when
    /// the hub answers.
    pub(super) fn connect(
        connection: &EngineConnection,
        curve: Option<&CurveClient>,
        process: &str,
        engines: usize,
    ) -> zmq::Result<Self> {
        let mut contexts = vec![Context::new()];
        let open = |context: &Context, kind, port: u16, identity: &str| -> zmq::Result<Socket> {
            let socket = socket::open(context, kind)?;
            if let Some(curve) = curve {
                curve.apply(&socket)?;
            }
            socket.set_reconnect_ivl(50)?;
            socket.set_reconnect_ivl_max(1000)?;
            match kind {
                zmq::SUB => {
                    socket.set_subscribe(b"")?;
                    socket.monitor(MONITOR, i32::from(HANDSHAKE_SUCCEEDED | DISCONNECTED))?;
                }
                zmq::ROUTER => {
                    socket.set_router_mandatory(true)?;
                    socket.set_router_handover(true)?;
                    socket.set_identity(identity.as_bytes())?;
                }
                _ => socket.set_identity(identity.as_bytes())?,
            }
            socket.connect(&connection.common.url(port))?;
            Ok(socket)
        };
        let first = &contexts[0];
        let ping = open(first, zmq::SUB, connection.hb_ping, process)?;
        let monitor = first.socket(zmq::PAIR)?;
        monitor.connect(MONITOR)?;
        let iopub = open(first, zmq::PUB, connection.iopub, process)?;
        let pong = open(first, zmq::DEALER, connection.hb_pong, process)?;
        let shell = open(first, zmq::ROUTER, connection.mux, process)?;
        let control = open(first, zmq::ROUTER, connection.control, process)?;
        let hub = open(first, zmq::DEALER, connection.registration, process)?;
        let mut tasks = Vec::new();
        if connection.pure {
            for index in 0..engines {
                if index % SOCKETS == 0 {
                    contexts.push(Context::new());
                }
                let context = contexts.last().expect("there is one");
                let uuid = route::uuid(process, index);
                tasks.push(open(context, zmq::ROUTER, connection.task, &uuid)?);
            }
        } else {
            shell.connect(&connection.common.url(connection.task))?;
        }
        Ok(Self {
            hub,
            shell,
            control,
            tasks,
            ping,
            pong,
            iopub,
            monitor,
            connection: connection.clone(),
            leaves: BTreeSet::new(),
            _contexts: contexts,
        })
    }

    /// Connects the process to the broadcast leaf that an engine's id asks for.
    pub(super) fn connect_leaf(&mut self, id: u32) -> zmq::Result<()> {
        let leaves = &self.connection.broadcast;
        let Some(leaf) = (id as usize).checked_rem(leaves.len()) else {
            return Ok(());
        };
        if self.leaves.insert(leaf) {
            let url = self.connection.common.url(leaves[leaf]);
            self.shell.connect(&url)?;
        }
        Ok(())
    }

    /// Ends an engine's own connection to the task scheduler once all that was sent is on its way: a DEALER goes on sending
    /// to whoever is connected.
    pub(super) fn leave_scheduler(&self, seat: usize) {
        let url = self.connection.common.url(self.connection.task);
        if let Some(socket) = self.tasks.get(seat)
            && let Err(error) = socket.disconnect(&url)
        {
            tracing::debug!(%error, "the connection to the scheduler stays");
        }
    }

    /// What the monitor has seen since, in order.
    pub(super) fn seen(&self) -> Vec<Seen> {
        let mut seen = Vec::new();
        let mut frames = Vec::new();
        while let Ok(true) = socket::recv(&self.monitor, &mut frames) {
            let Some([low, high, ..]) = frames.first().map(|frame| &frame[..]) else {
                continue;
            };
            match u16::from_le_bytes([*low, *high]) {
                HANDSHAKE_SUCCEEDED => seen.push(Seen::Up),
                DISCONNECTED => seen.push(Seen::Down),
                _ => {}
            }
        }
        seen
    }

    /// Descriptors that tell when there is something to receive, with their token.
    pub(super) fn descriptors(&self) -> zmq::Result<Vec<(Token, RawFd)>> {
        let mut all = vec![
            (Token::Ping, self.ping.get_fd()?),
            (Token::Monitor, self.monitor.get_fd()?),
            (Token::Shell, self.shell.get_fd()?),
            (Token::Control, self.control.get_fd()?),
            (Token::Hub, self.hub.get_fd()?),
        ];
        for (seat, socket) in self.tasks.iter().enumerate() {
            all.push((Token::Tasks(seat), socket.get_fd()?));
        }
        Ok(all)
    }

    /// Forgets what could not be sent: the process leaves at once.
    pub(super) fn drop_unsent(&self) {
        let shared = [
            &self.hub,
            &self.shell,
            &self.control,
            &self.pong,
            &self.iopub,
        ];
        for socket in shared.into_iter().chain(&self.tasks) {
            let _ = socket.set_linger(0);
        }
    }
}

/// What became ready.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Token {
    /// The outbox.
    Wake,
    /// A signal to the process.
    Signal,
    /// The heartbeat.
    Ping,
    /// The monitor.
    Monitor,
    /// Tasks and requests.
    Shell,
    /// Control requests.
    Control,
    /// The hub.
    Hub,
    /// Tasks of an engine on the pure path.
    Tasks(usize),
}

impl Token {
    /// Those that every process has, by number; the engines' follow.
    const SHARED: [Self; 7] = [
        Self::Wake,
        Self::Signal,
        Self::Ping,
        Self::Monitor,
        Self::Shell,
        Self::Control,
        Self::Hub,
    ];

    /// How many there are in a process with so many engines.
    pub(super) fn count(engines: usize) -> usize {
        Self::SHARED.len() + engines
    }

    /// As a number below [`count`](Self::count).
    pub(super) fn number(self) -> usize {
        match self {
            Self::Tasks(seat) => Self::SHARED.len() + seat,
            shared => {
                let place = Self::SHARED.iter().position(|other| *other == shared);
                place.expect("all but those of engines are listed")
            }
        }
    }

    /// From its number.
    pub(super) fn of(number: usize) -> Self {
        match Self::SHARED.get(number) {
            Some(shared) => *shared,
            None => Self::Tasks(number - Self::SHARED.len()),
        }
    }
}
