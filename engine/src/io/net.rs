//! The sockets of an engine process.

use std::os::fd::RawFd;

use ipbroker_protocol::{
    connection::EngineConnection,
    socket::{self, CurveClient},
    zmq::{self, Context, Socket},
};

/// Sockets that one context of libzmq may have, rounded down; each brings an I/O thread.
const SOCKETS: usize = 1000;

/// Sockets of one logical engine.
const EACH: usize = 4;

/// Where the coming and going of the connection is told, inside the process.
const MONITOR: &str = "inproc://heartbeat-monitor";

/// Events of a socket monitor that we look at.
const HANDSHAKE_SUCCEEDED: u16 = 0x1000;
const DISCONNECTED: u16 = 0x0200;

/// The sockets of one logical engine; identity = its uuid on all of them.
pub(super) struct Wire {
    /// Towards the hub.
    pub(super) hub: Socket,
    /// Tasks, direct requests, broadcasts.
    pub(super) shell: Socket,
    /// Control requests.
    pub(super) control: Socket,
    /// The echo of the heartbeat.
    pub(super) pong: Socket,
    /// The broadcast leaf it is connected to.
    pub(super) leaf: Option<usize>,
}

/// All sockets. Sockets go before their contexts.
pub(super) struct Net {
    pub(super) wires: Vec<Wire>,
    /// The heartbeat, for all engines of the process.
    pub(super) ping: Socket,
    /// The output of all engines of the process.
    pub(super) iopub: Socket,
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
    /// Opens the sockets of these engines and begins to connect all of them, so that they are ready when the hub answers.
    pub(super) fn connect(
        connection: &EngineConnection,
        curve: Option<CurveClient>,
        uuids: &[&str],
    ) -> zmq::Result<Self> {
        let mut contexts = vec![Context::new()];
        let open = |context: &Context, kind| -> zmq::Result<Socket> {
            let socket = socket::open(context, kind)?;
            if let Some(curve) = &curve {
                curve.apply(&socket)?;
            }
            socket.set_reconnect_ivl(50)?;
            socket.set_reconnect_ivl_max(1000)?;
            Ok(socket)
        };
        let common = &connection.common;
        let ping = open(&contexts[0], zmq::SUB)?;
        ping.set_subscribe(b"")?;
        ping.monitor(MONITOR, i32::from(HANDSHAKE_SUCCEEDED | DISCONNECTED))?;
        let monitor = contexts[0].socket(zmq::PAIR)?;
        monitor.connect(MONITOR)?;
        ping.connect(&common.url(connection.hb_ping))?;
        let iopub = open(&contexts[0], zmq::PUB)?;
        iopub.connect(&common.url(connection.iopub))?;
        let mut wires = Vec::with_capacity(uuids.len());
        for (index, uuid) in uuids.iter().enumerate() {
            if index % (SOCKETS / EACH) == SOCKETS / EACH - 1 {
                contexts.push(Context::new());
            }
            let context = contexts.last().expect("there is one");
            let identified = |kind| -> zmq::Result<Socket> {
                let socket = open(context, kind)?;
                socket.set_identity(uuid.as_bytes())?;
                Ok(socket)
            };
            let wire = Wire {
                hub: identified(zmq::DEALER)?,
                shell: identified(zmq::ROUTER)?,
                control: identified(zmq::ROUTER)?,
                pong: identified(zmq::DEALER)?,
                leaf: None,
            };
            for router in [&wire.shell, &wire.control] {
                router.set_router_mandatory(true)?;
                router.set_router_handover(true)?;
            }
            wire.pong.connect(&common.url(connection.hb_pong))?;
            wire.shell.connect(&common.url(connection.mux))?;
            wire.shell.connect(&common.url(connection.task))?;
            wire.control.connect(&common.url(connection.control))?;
            wire.hub.connect(&common.url(connection.registration))?;
            wires.push(wire);
        }
        Ok(Self {
            wires,
            ping,
            iopub,
            monitor,
            connection: connection.clone(),
            _contexts: contexts,
        })
    }

    /// Connects an engine to the broadcast leaf that its id asks for.
    pub(super) fn connect_leaf(&mut self, seat: usize, id: u32) -> zmq::Result<()> {
        let leaves = &self.connection.broadcast;
        if leaves.is_empty() {
            return Ok(());
        }
        let leaf = id as usize % leaves.len();
        let url = |leaf: usize| self.connection.common.url(leaves[leaf]);
        let wire = &mut self.wires[seat];
        if wire.leaf == Some(leaf) {
            return Ok(());
        }
        if let Some(old) = wire.leaf.take() {
            // Not knowing it any more is as good.
            let _ = wire.shell.disconnect(&url(old));
        }
        wire.shell.connect(&url(leaf))?;
        wire.leaf = Some(leaf);
        Ok(())
    }

    /// Ends the connection to the task scheduler once all that was sent is on its way.
    pub(super) fn leave_scheduler(&self, seat: usize) {
        let url = self.connection.common.url(self.connection.task);
        if let Err(error) = self.wires[seat].shell.disconnect(&url) {
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
        for (seat, wire) in self.wires.iter().enumerate() {
            all.push((Token::Shell(seat), wire.shell.get_fd()?));
            all.push((Token::Control(seat), wire.control.get_fd()?));
            all.push((Token::Hub(seat), wire.hub.get_fd()?));
        }
        Ok(all)
    }

    /// Forgets what could not be sent: the process leaves at once.
    pub(super) fn drop_unsent(&self) {
        for wire in &self.wires {
            for socket in [&wire.hub, &wire.shell, &wire.control, &wire.pong] {
                let _ = socket.set_linger(0);
            }
        }
        let _ = self.iopub.set_linger(0);
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
    /// An engine's shell socket.
    Shell(usize),
    /// An engine's control socket.
    Control(usize),
    /// An engine's socket towards the hub.
    Hub(usize),
}

impl Token {
    /// As a number below `3 * engines + 4`.
    pub(super) fn number(self) -> usize {
        match self {
            Self::Wake => 0,
            Self::Signal => 1,
            Self::Ping => 2,
            Self::Monitor => 3,
            Self::Shell(seat) => 4 + 3 * seat,
            Self::Control(seat) => 5 + 3 * seat,
            Self::Hub(seat) => 6 + 3 * seat,
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
                let seat = (number - 4) / 3;
                match (number - 4) % 3 {
                    0 => Self::Shell(seat),
                    1 => Self::Control(seat),
                    _ => Self::Hub(seat),
                }
            }
        }
    }
}
