//! Binds all sockets: on the ports of earlier files, of `--ports`, or any.

use std::collections::VecDeque;

use ipbroker_protocol::{
    connection::{ClientConnection, EngineConnection},
    socket::{self, CurveServer, routing},
    zmq::{self, Context, Socket},
};

use super::{AppError, Settings};
use crate::{
    cli, hub,
    relay::{iopub, mux},
    scheduler::{core::Hwm, pure},
};

/// Broadcast leaves, as the peer's default depth gives.
const LEAVES: usize = 2;

/// The ports of all sockets.
#[derive(Debug, Clone, Default)]
pub(super) struct Ports {
    pub(super) client: ClientConnection,
    pub(super) engine: EngineConnection,
}

/// All sockets, bound.
pub(super) struct Bound {
    pub(super) hub: hub::Sockets,
    pub(super) mux: mux::Sockets,
    pub(super) control: (Socket, Socket),
    pub(super) task: (Socket, Socket),
    /// Tells of the connections of the pure path's DEALER.
    pub(super) pure_monitor: Option<Socket>,
    pub(super) iopub: iopub::Sockets,
    pub(super) ports: Ports,
}

struct Binder<'a> {
    settings: &'a Settings,
    pool: VecDeque<u16>,
    exhausted: bool,
}

impl Binder<'_> {
    /// Binds a socket: on `fixed`, unless it is 0, else on the next port.
    fn bind(&mut self, socket: &Socket, fixed: u16) -> Result<u16, AppError> {
        if let Some(curve) = &self.settings.curve {
            CurveServer::apply(curve, socket)
                .map_err(|error| AppError::Curve(format!("no CURVE: {error}")))?;
        }
        socket::bound(socket, self.settings.network.max_message)
            .map_err(|error| AppError::system("cannot bound messages")(error.into()))?;
        let port = if fixed == 0 { self.next() } else { fixed };
        let interface = &self.settings.interface;
        socket::bind(socket, interface, port).map_err(|error| AppError::Bind {
            url: format!(
                "{interface}:{}",
                if port == 0 {
                    "*".to_owned()
                } else {
                    port.to_string()
                }
            ),
            reason: error.message().to_owned(),
            hint: match (error, self.settings.earlier.is_some()) {
                (zmq::Error::EADDRINUSE, true) => " (is the earlier controller still running?)",
                (zmq::Error::ENODEV | zmq::Error::EADDRNOTAVAIL, _) => {
                    " (this host has no such address)"
                }
                _ => "",
            },
        })
    }

    fn next(&mut self) -> u16 {
        match self.pool.pop_front() {
            Some(port) => port,
            None => {
                if let Some(cli::Ports(ports)) = &self.settings.network.ports
                    && !std::mem::replace(&mut self.exhausted, true)
                {
                    tracing::warn!(
                        "the {} port(s) of --ports are not enough; using any",
                        ports.len()
                    );
                }
                0
            }
        }
    }
}

/// Makes and binds all sockets.
pub(super) fn bind(settings: &Settings, context: &Context) -> Result<Bound, AppError> {
    let sockets = |error: zmq::Error| AppError::system("cannot make sockets")(error.into());
    let (mut client, mut engine) = settings.earlier.clone().unwrap_or_default();
    let ports = settings.network.ports.iter().flat_map(|ports| &ports.0);
    let mut pool: VecDeque<u16> = ports.copied().collect();
    if let (Some(port), None) = (settings.network.port, &settings.earlier) {
        pool.push_front(port);
    }
    let mut binder = Binder {
        settings,
        pool,
        exhausted: false,
    };
    let hub = hub::sockets(context).map_err(sockets)?;
    let router = |identity: Option<&[u8]>| mux::router(context, identity).map_err(sockets);
    let pure = settings.tasks.scheme == "pure";

    // In the peer's order, so that --ports hands them out alike.
    engine.registration = binder.bind(&hub.query, engine.registration)?;
    let control_engines = router(Some(routing::CONTROL))?;
    engine.control = binder.bind(&control_engines, engine.control)?;
    let mux_engines = router(Some(routing::MUX))?;
    engine.mux = binder.bind(&mux_engines, engine.mux)?;
    let mut pure_monitor = None;
    let task_engines = if pure {
        let dealer = socket::open(context, zmq::DEALER).map_err(sockets)?;
        let hwm = match settings.tasks.hwm {
            Hwm::Fixed(hwm) => i32::try_from(hwm).unwrap_or(i32::MAX),
            _ => pure::HIGH_WATER,
        };
        dealer.set_sndhwm(hwm).map_err(sockets)?;
        dealer.set_identity(routing::TASK).map_err(sockets)?;
        pure_monitor = Some(pure::watch(context, &dealer).map_err(sockets)?);
        dealer
    } else {
        router(Some(routing::TASK))?
    };
    engine.task = binder.bind(&task_engines, engine.task)?;
    let iopub = iopub::sockets(context).map_err(sockets)?;
    engine.iopub = binder.bind(&iopub.engines, engine.iopub)?;
    engine.hb_ping = binder.bind(&hub.ping, engine.hb_ping)?;
    engine.hb_pong = binder.bind(&hub.pong, engine.hb_pong)?;
    let count = if engine.broadcast.is_empty() {
        LEAVES
    } else {
        engine.broadcast.len()
    };
    engine.broadcast.resize(count, 0);
    let mut leaves = Vec::new();
    for (index, port) in engine.broadcast.iter_mut().enumerate() {
        let leaf = router(Some(&routing::broadcast(index)))?;
        *port = binder.bind(&leaf, *port)?;
        leaves.push(leaf);
    }

    client.registration = engine.registration;
    let control_clients = router(None)?;
    client.control = binder.bind(&control_clients, client.control)?;
    let mux_clients = router(None)?;
    client.mux = binder.bind(&mux_clients, client.mux)?;
    let task_clients = router(None)?;
    client.task = binder.bind(&task_clients, client.task)?;
    client.iopub = binder.bind(&iopub.clients, client.iopub)?;
    client.notification = binder.bind(&hub.notify, client.notification)?;
    let root = router(None)?;
    client.broadcast = binder.bind(&root, client.broadcast)?;

    Ok(Bound {
        hub,
        mux: mux::Sockets {
            clients: mux_clients,
            engines: mux_engines,
            root,
            leaves,
        },
        control: (control_clients, control_engines),
        task: (task_clients, task_engines),
        pure_monitor,
        iopub,
        ports: Ports { client, engine },
    })
}
