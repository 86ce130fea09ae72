//! Where the controller is: the connection file, or what the environment says.

use std::{
    fmt,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use ipbroker_protocol::{
    connection::{self, ConnectionError, EngineConnection},
    session::Session,
    socket::CurveClient,
};

use crate::reaper::Line;

/// The variable that holds the text of a connection file.
pub const CONNECTION_INFO: &str = "IPP_CONNECTION_INFO";

/// Where the connection comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// `$IPP_CONNECTION_INFO`.
    Environment,
    /// Given by the program.
    Given,
    /// A file.
    File(PathBuf),
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Environment => write!(f, "${CONNECTION_INFO}"),
            Self::Given => f.write_str("the given connection"),
            Self::File(path) => write!(f, "{}", path.display()),
        }
    }
}

/// Why there is no controller to connect to.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// The connection file is none.
    #[error(transparent)]
    Connection(#[from] ConnectionError),
    /// `$IPP_CONNECTION_INFO` is none.
    #[error("${CONNECTION_INFO} is not a controller's connection file: {0}")]
    Environment(serde_json::Error),
    /// The file did not appear.
    #[error("no connection file {path} after {waited:.0} s: start ipctl first, or name its file with --file", path = path.display())]
    Missing {
        /// Which file.
        path: PathBuf,
        /// Seconds.
        waited: f64,
    },
}

/// A controller, as its connection file describes it.
#[derive(Debug, Clone)]
pub(crate) struct Controller {
    pub(crate) connection: EngineConnection,
    pub(crate) source: Source,
    pub(crate) curve: Option<CurveClient>,
}

impl Controller {
    /// The connection file for clients beside the one for engines, where this host has it.
    pub(crate) fn client_file(&self) -> Option<PathBuf> {
        let Source::File(path) = &self.source else {
            return None;
        };
        let name = path.file_name()?.to_str()?.strip_suffix("-engine.json")?;
        let client = path.with_file_name(format!("{name}-client.json"));
        client
            .is_file()
            .then(|| client.canonicalize().unwrap_or(client))
    }

    /// Takes a connection.
    pub(crate) fn new(connection: EngineConnection, source: Source) -> Result<Self, ConnectError> {
        let curve = connection.common.curve()?;
        // A packer or a scheme that we do not have is told now.
        connection.common.session()?;
        Ok(Self {
            connection,
            source,
            curve,
        })
    }

    /// How an engine packs and signs.
    pub(crate) fn session(&self, uuid: &str) -> Result<Arc<Session>, ConnectError> {
        Ok(Arc::new(
            self.connection.common.session_with_id(uuid.to_owned())?,
        ))
    }

    /// Where the hub is.
    pub(crate) fn address(&self) -> String {
        self.connection.common.url(self.connection.registration)
    }

    /// What the reaper has to know.
    pub(crate) fn for_reaper(&self) -> Line {
        Line::Connection(serde_json::to_value(&self.connection).unwrap_or_default())
    }
}

/// The connection that the environment holds, if it does.
pub(crate) fn from_environment() -> Result<Option<Controller>, ConnectError> {
    match std::env::var(CONNECTION_INFO) {
        Ok(text) if !text.is_empty() => {
            let connection = serde_json::from_str(&text).map_err(ConnectError::Environment)?;
            Controller::new(connection, Source::Environment).map(Some)
        }
        _ => Ok(None),
    }
}

/// Reads a connection file, and waits for it if it is not there yet.
pub(crate) fn from_file(path: &Path, wait: Duration) -> Result<Controller, ConnectError> {
    let start = Instant::now();
    let mut told = false;
    while !path.exists() {
        let waited = start.elapsed();
        if waited >= wait {
            return Err(ConnectError::Missing {
                path: path.to_owned(),
                waited: waited.as_secs_f64(),
            });
        }
        if !std::mem::replace(&mut told, true) {
            tracing::warn!(
                "no connection file {} yet: waiting up to {:.0} s for it",
                path.display(),
                wait.as_secs_f64()
            );
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    let connection = connection::load(path)?;
    Controller::new(connection, Source::File(path.to_owned()))
}

/// The controller that the same file describes now, if that is another one.
pub(crate) fn changed(controller: &Controller) -> Option<Controller> {
    let Source::File(path) = &controller.source else {
        return None;
    };
    let connection: EngineConnection = connection::load(path).ok()?;
    if connection == controller.connection {
        return None;
    }
    Controller::new(connection, controller.source.clone()).ok()
}
