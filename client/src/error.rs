//! What can go wrong between a client and its cluster.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use ipbroker_protocol::array::ArrayError;
use ipbroker_protocol::connection::ConnectionError;
use ipbroker_protocol::profile::ProfileError;
use ipbroker_protocol::session::UnpackError;
use ipbroker_protocol::zmq;

/// Why a call of this library failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No connection file: no controller has been started for this profile.
    #[error(
        "no connection file {path}: is a controller running for this profile? Start one with `ipctl`, or use `--local N`"
    )]
    NoConnectionFile {
        /// Where it would be.
        path: PathBuf,
    },
    /// The connection file cannot be used.
    #[error(transparent)]
    Connection(#[from] ConnectionError),
    /// There is no profile directory.
    #[error(transparent)]
    Profile(#[from] ProfileError),
    /// Nothing listens where the connection file says.
    #[error(
        "no controller answers at {address} ({reason}): {file} is stale or the controller is down; start one with `ipctl`, or use `--local N`"
    )]
    NoController {
        /// The hub's address.
        address: String,
        /// The connection file.
        file: String,
        /// What the system said.
        reason: String,
    },
    /// Something listens, but it answers nothing that we may believe.
    #[error(
        "{address} accepts connections but has not answered within {seconds} s: the key in {file} is not that controller's (a stale file?), or it is no controller"
    )]
    NoAnswer {
        /// The hub's address.
        address: String,
        /// The connection file.
        file: String,
        /// How long we waited.
        seconds: f64,
    },
    /// The hub answers, signed with another key.
    #[error(
        "the controller at {address} signs with another key than the one in {file}: take the connection file that it wrote"
    )]
    WrongKey {
        /// The hub's address.
        address: String,
        /// The connection file.
        file: String,
    },
    /// More than the controller takes at once: it would end the connection.
    #[error(
        "a message of {bytes} bytes is more than the controller takes ({most}): start `ipctl` with a larger --max-message, or send less at once"
    )]
    TooLarge {
        /// Its size.
        bytes: u64,
        /// What is taken.
        most: u64,
    },
    /// The hub refused a request.
    #[error("the controller refuses {request}: {message}")]
    Refused {
        /// The request's type.
        request: String,
        /// Its words.
        message: String,
    },
    /// No answer to a query in time.
    #[error("the controller has not answered {request} within {seconds} s")]
    QueryTimeout {
        /// The request's type.
        request: String,
        /// How long we waited.
        seconds: f64,
    },
    /// The controller has ended, and said so.
    #[error("the controller has shut down")]
    ShutDown,
    /// The result did not come in time.
    #[error("not ready after {} s: {done} of {total} done", .after.as_secs_f64())]
    Timeout {
        /// How long we waited.
        after: Duration,
        /// Tasks that are done.
        done: u64,
        /// All tasks.
        total: u64,
    },
    /// A task failed.
    #[error(transparent)]
    Task(#[from] Arc<TaskError>),
    /// A value is not of the type asked for.
    #[error("the result of {msg_id} is not of the type asked for: {reason}")]
    Decode {
        /// Whose result.
        msg_id: String,
        /// What is wrong.
        reason: String,
    },
    /// An option that the controller would take for none.
    #[error("{option} must be a number of seconds from 0, not {value}")]
    Option {
        /// Its name.
        option: &'static str,
        /// What it is.
        value: f64,
    },
    /// An argument cannot be packed.
    #[error("an argument cannot be packed: {0}")]
    Encode(String),
    /// A frame does not unpack.
    #[error("the controller's answer does not unpack: {0}")]
    Unpack(#[from] UnpackError),
    /// An array's buffers cannot be used.
    #[error(transparent)]
    Array(#[from] ArrayError),
    /// The view has no engines.
    #[error("no engines are registered{0}")]
    NoEngines(String),
    /// Job lines that cannot be submitted.
    #[error("{0}")]
    Job(String),
    /// A file operation failed on a host.
    #[error("{0}")]
    File(String),
    /// The way through an SSH server fails.
    #[cfg(feature = "ssh")]
    #[error(transparent)]
    Ssh(#[from] ipbroker_protocol::ssh::SshError),
    /// The connection file says that the controller is reached through an SSH server, and this program cannot do that.
    #[cfg(not(feature = "ssh"))]
    #[error(
        "the controller is reached through the SSH server {server}, but this program was built without `ssh`"
    )]
    NoSsh {
        /// The server.
        server: String,
    },
    /// The client was closed.
    #[error("the client is closed")]
    Closed,
    /// A socket failed.
    #[error("socket: {0}")]
    Socket(#[from] zmq::Error),
    /// The system failed.
    #[error("{0}")]
    Io(#[from] std::io::Error),
}

/// How a task failed.
#[derive(Debug, Clone, PartialEq, Eq, Default, thiserror::Error)]
#[error("{ename}: {evalue}")]
pub struct TaskError {
    /// Id of the task.
    pub msg_id: String,
    /// Name of the error: the engine's, or the controller's (`EngineError`, `ImpossibleDependency`, `TaskAborted`, …).
    pub ename: String,
    /// What went wrong, in words.
    pub evalue: String,
    /// Lines of a traceback, where there is one.
    pub traceback: Vec<String>,
    /// It was aborted.
    pub aborted: bool,
    /// The engine that it failed on.
    pub engine_id: Option<u32>,
    /// That engine's host.
    pub host: Option<String>,
}

impl TaskError {
    /// What was asked of an engine that is gone.
    pub(crate) fn lost(uuid: &str) -> Self {
        Self {
            ename: "EngineError".into(),
            evalue: format!("engine {uuid} left or died before it answered"),
            ..Self::default()
        }
    }
}

/// This library's results.
pub type Result<T, E = Error> = std::result::Result<T, E>;
