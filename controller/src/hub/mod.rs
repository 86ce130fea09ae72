//! The hub: registration, heartbeats, notifications and queries, beside the traffic and never in it.
//!
//! It never waits. What it has to ask of the task thread, the relays or the store it asks by message; the answer comes
//! back as an event that holds the rest of the work.

mod ask;
mod dask;
mod explain;
mod heart;
mod lease;
mod own;
mod peer;
mod registry;
mod renew;
mod run;
pub(crate) mod watch;

pub(crate) use run::Hub;

use std::{io, path::PathBuf, sync::Arc, thread, time::Duration};

use ipbroker_protocol::{
    junk::JunkTotal,
    message::WebReply,
    session::Session,
    socket,
    value::Map,
    zmq::{self, Socket},
};

use crate::{
    mailbox::{Mailbox, Post},
    relay::{control::ControlPost, iopub, mux},
    scheduler::command::{Command, EngineProfile},
    store::StoreHandle,
};

/// What the hub must know.
#[derive(Debug, Clone)]
pub(crate) struct Settings {
    /// Period of the heartbeat.
    pub ping: Duration,
    /// Heartbeats in a row that an engine may miss.
    pub misses: u32,
    /// How long a client of ours may be silent.
    pub lease: Duration,
    /// Which run of the controller this is.
    pub incarnation: String,
    /// Replies are journalled: engines keep them until they are acknowledged.
    pub durable: bool,
    /// Name of the scheme.
    pub scheme: String,
    /// Engines' half of the connection file, without keys.
    pub connection_info: Map,
    /// Where the ids of the engines are kept.
    pub state_file: PathBuf,
    /// Take the ids in that file up.
    pub restore: bool,
    /// Engines are started on this host, and so may more be.
    pub adds: bool,
    /// Where the page's thread finds samples, if there is one.
    pub(crate) page: Option<watch::Place>,
    /// Where browsers find it.
    pub(crate) web: Option<WebReply>,
}

impl Settings {
    /// How long an engine may be silent before it is given up.
    pub(crate) fn heartbeat_limit(&self) -> Duration {
        self.ping * (self.misses + 1)
    }

    /// How long a registration may wait for the first heartbeat.
    fn registration_timeout(&self) -> Duration {
        (self.ping * 10).max(Duration::from_secs(30))
    }
}

/// The hub's sockets, bound.
pub(crate) struct Sockets {
    /// ROUTER: registrations and queries.
    pub query: Socket,
    /// XPUB: notifications.
    pub notify: Socket,
    /// XPUB: heartbeats.
    pub ping: Socket,
    /// ROUTER: their echoes.
    pub pong: Socket,
}

/// Makes the hub's sockets.
pub(crate) fn sockets(context: &zmq::Context) -> zmq::Result<Sockets> {
    let ping = socket::open(context, zmq::XPUB)?;
    // Every engine's subscription is told, so that its first heartbeat need not wait for the next beat.
    ping.set_xpub_verbose(true)?;
    ping.set_sndhwm(100)?;
    let notify = socket::open(context, zmq::XPUB)?;
    // Each subscriber is told, not only the first.
    notify.set_xpub_verbose(true)?;
    notify.set_sndhwm(iopub::CLIENT_MESSAGES)?;
    Ok(Sockets {
        query: mux::router(context, None)?,
        notify,
        ping,
        pong: mux::router(context, None)?,
    })
}

/// The threads that the hub asks.
#[derive(Clone)]
pub(crate) struct Links {
    /// The task thread.
    pub tasks: Post<Command>,
    /// The direct relay.
    pub mux: Post<mux::Request>,
    /// The control relay.
    pub control: ControlPost,
    /// The output relay.
    pub iopub: Post<iopub::Request>,
    /// The store.
    pub store: StoreHandle,
}

/// What the hub tells the main thread.
#[derive(Debug, Clone)]
pub(crate) enum Notice {
    /// An engine is registered.
    Joined(Arc<EngineProfile>),
    /// An engine is gone.
    Left(Arc<EngineProfile>),
    /// A client asked the controller to end; what it was told has been sent.
    Shutdown,
    /// A client asked for so many more engines on this host.
    Wanted(u32),
}

/// What happens to the hub besides messages on its sockets.
pub(crate) enum Event {
    /// The rest of some work, now that an answer is there.
    Continue(Box<dyn FnOnce(&mut run::Hub) + Send>),
    /// An engine said on IOPub that it ends.
    EngineStopped(String),
    /// The controller ends: tell our engines (unless they are to wait for the next one), and end the thread.
    Shutdown {
        /// Whether engines of ours are to end too.
        engines: bool,
    },
}

/// Starts the hub's thread. `tell` is called on it.
pub(crate) fn spawn(
    settings: Settings,
    sockets: Sockets,
    links: Links,
    (post, mailbox): (Post<Event>, Mailbox<Event>),
    session: Session,
    junk: &JunkTotal,
    tell: impl Fn(Notice) + Send + 'static,
) -> io::Result<thread::JoinHandle<()>> {
    let mut hub = run::Hub::new(
        settings,
        sockets,
        links,
        post,
        session,
        junk,
        Box::new(tell),
    )?;
    ipbroker_protocol::spawn("hub", move || hub.run(&mailbox))
}
