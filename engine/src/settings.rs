//! How an engine process is set up.

use std::time::{Duration, Instant};

use ipbroker_protocol::resources::Pools;

/// What the thread that serves the sockets has to know.
#[derive(Debug, Clone)]
pub(crate) struct Settings {
    /// How long a controller may be away.
    pub(crate) grace: Duration,
    /// How long all engines of the process may be idle before they leave; none: for ever.
    pub(crate) idle: Option<Duration>,
    /// When the process has to end; none: when it is told to.
    pub(crate) ends: Option<Instant>,
    /// Tags of the engines.
    pub(crate) tags: Vec<String>,
    /// Further names of this host.
    pub(crate) aliases: Vec<String>,
    /// The id that the first engine asks for; the others follow.
    pub(crate) first_id: Option<u32>,
    /// What the user says that this host has.
    pub(crate) resources: Pools,
}
