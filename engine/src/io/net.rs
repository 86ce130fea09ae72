//! The sockets of an engine process. All its engines share them, with two exceptions: on the pure path, where libzmq deals
//! tasks out to connections, each has one of its own to the scheduler; and ipyparallel's own controller knows only engines
//! with connections of their own.

use std::{collections::BTreeSet, os::fd::RawFd};

use ipbroker_protocol::{
    connection::EngineConnection,
    socket::{self, CurveClient},
    zmq::{self, Context, Socket},
};

/// Sockets that one context of libzmq may have, rounded down; each brings an I/O thread.
const SOCKETS: usize = 1000;

/// Sockets of one wire.
const EACH: usize = 4;

/// Where the coming and going of the connection is told, inside the process.
const MONITOR: &str = "inproc://heartbeat-monitor";

/// Events of a socket monitor that we look at.
const HANDSHAKE_SUCCEEDED: u16 = 0x1000;
const DISCONNECTED: u16 = 0x0200;

/// The sockets by which an engine, or all of them, are reached; they have one identity.
pub(super) struct Wire {
    /// Towards the hub.
    pub(super) hub: Socket,
    /// Tasks, direct requests, broadcasts.
    pub(super) shell: Socket,
    /// Control requests.
    pub(super) control: Socket,
    /// The echo of the heartbeat.
    pub(super) pong: Socket,
    /// The broadcast leaves that the shell socket is connected to.
    leaves: BTreeSet<usize>,
}

/// All sockets. Sockets go before their contexts.
pub(super) struct Net {
    /// One for all engines, or one each.
    pub(super) wires: Vec<Wire>,
    /// On the pure path: tasks, for each engine.
    pub(super) tasks: Vec<Socket>,
    /// The heartbeat.
    pub(super) ping: Socket,
    /// Output.
    pub(super) iopub: Socket,
    /// All engines share one wire.
    pub(super) shared: bool,
    monitor: Socket,
    connection: EngineConnection,
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
    /// Opens the sockets of a process with these engines and begins to connect all of them, so that they are ready when the
    /// hub answers.
    pub(super) fn connect(
        connection: &EngineConnection,
        curve: Option<&CurveClient>,
        process: &str,
        uuids: &[&str],
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
        let shared = !connection.common.is_peer();
        let identities = if shared { &[process][..] } else { uuids };
        let (mut wires, mut tasks) = (Vec::new(), Vec::new());
        for (index, identity) in identities.iter().enumerate() {
            if index % (SOCKETS / EACH) == SOCKETS / EACH - 1 {
                contexts.push(Context::new());
            }
            let context = contexts.last().expect("there is one");
            let wire = Wire {
                pong: open(context, zmq::DEALER, connection.hb_pong, identity)?,
                shell: open(context, zmq::ROUTER, connection.mux, identity)?,
                control: open(context, zmq::ROUTER, connection.control, identity)?,
                hub: open(context, zmq::DEALER, connection.registration, identity)?,
                leaves: BTreeSet::new(),
            };
            if !connection.pure {
                wire.shell
                    .connect(&connection.common.url(connection.task))?;
            }
            wires.push(wire);
        }
        let own = if connection.pure { uuids } else { &[] };
        for (index, uuid) in own.iter().enumerate() {
            if index % SOCKETS == 0 {
                contexts.push(Context::new());
            }
            let context = contexts.last().expect("there is one");
            tasks.push(open(context, zmq::ROUTER, connection.task, uuid)?);
        }
        Ok(Self {
            wires,
            tasks,
            ping,
            iopub,
            shared,
            monitor,
            connection: connection.clone(),
            _contexts: contexts,
        })
    }

    /// Which wire leads to an engine.
    pub(super) fn wire(&self, index: usize) -> usize {
        if self.shared { 0 } else { index }
    }

    /// Connects an engine to the broadcast leaf that its id asks for.
    pub(super) fn connect_leaf(&mut self, index: usize, id: u32) -> zmq::Result<()> {
        let wire = self.wire(index);
        let leaves = &self.connection.broadcast;
        let Some(leaf) = (id as usize).checked_rem(leaves.len()) else {
            return Ok(());
        };
        let wire = &mut self.wires[wire];
        if wire.leaves.insert(leaf) {
            let url = self.connection.common.url(leaves[leaf]);
            wire.shell.connect(&url)?;
        }
        Ok(())
    }

    /// Ends an engine's own connection to the task scheduler once all that was sent is on its way: a DEALER goes on sending
    /// to whoever is connected.
    pub(super) fn leave_scheduler(&self, index: usize) {
        let url = self.connection.common.url(self.connection.task);
        if let Some(socket) = self.tasks.get(index)
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
        ];
        for (index, wire) in self.wires.iter().enumerate() {
            all.push((Token::Shell(index), wire.shell.get_fd()?));
            all.push((Token::Control(index), wire.control.get_fd()?));
            all.push((Token::Hub(index), wire.hub.get_fd()?));
        }
        for (index, socket) in self.tasks.iter().enumerate() {
            all.push((Token::Tasks(index), socket.get_fd()?));
        }
        Ok(all)
    }

    /// Forgets what could not be sent: the process leaves at once.
    pub(super) fn drop_unsent(&self) {
        let wires = self.wires.iter();
        let wires = wires.flat_map(|wire| [&wire.hub, &wire.shell, &wire.control, &wire.pong]);
        for socket in wires.chain(&self.tasks).chain([&self.iopub]) {
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
    /// Tasks and requests, on this wire.
    Shell(usize),
    /// Control requests.
    Control(usize),
    /// The hub.
    Hub(usize),
    /// Tasks of an engine on the pure path.
    Tasks(usize),
}

impl Token {
    /// How many there are in a process with so many engines.
    pub(super) fn count(engines: usize) -> usize {
        4 + 4 * engines
    }

    /// As a number below [`count`](Self::count).
    pub(super) fn number(self) -> usize {
        match self {
            Self::Wake => 0,
            Self::Signal => 1,
            Self::Ping => 2,
            Self::Monitor => 3,
            Self::Shell(wire) => 4 + 4 * wire,
            Self::Control(wire) => 5 + 4 * wire,
            Self::Hub(wire) => 6 + 4 * wire,
            Self::Tasks(index) => 7 + 4 * index,
        }
    }

    /// From its number.
    pub(super) fn of(number: usize) -> Self {
        match number {
            0 => Self::Wake,
            1 => Self::Signal,
            2 => Self::Ping,
            3 => Self::Monitor,
            _ => {
                let index = number / 4 - 1;
                match number % 4 {
                    0 => Self::Shell(index),
                    1 => Self::Control(index),
                    2 => Self::Hub(index),
                    _ => Self::Tasks(index),
                }
            }
        }
    }
}
