//! SSH for all three programs: engines started on other hosts, and the controller reached through a gateway.
//!
//! [`Settings`] reads the user's `~/.ssh/config`, [`connect`] makes an authenticated [`Connection`] to a host whose key
//! has been checked, [`Connection::run`] runs a command there, [`Pump`] moves bytes of forwarded ports and of one
//! running program, and a [`Gateway`] gives [`Forwards`]: local ports that lead through it for
//! as long as they live.

mod connect;
mod forward;
mod known_hosts;
mod link;
mod pump;
mod target;

pub use crate::shell::quote;
pub use connect::{Connection, Output, connect};
pub use forward::{Forwards, Gateway};
pub use pump::{Pump, PumpEvent};
pub use target::{Settings, Target};

use std::{io, path::PathBuf};

/// What can go wrong between here and a program on another host, in words for the user.
#[derive(Debug, thiserror::Error)]
pub enum SshError {
    /// The user's SSH configuration cannot be read.
    #[error("SSH configuration {path}: {reason}", path = path.display())]
    Config {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// A host specification that is none.
    #[error("`{spec}` is not a host: expected [user@]host[:port] or a name from ~/.ssh/config")]
    Spec {
        /// What was given.
        spec: String,
    },
    /// The name does not resolve.
    #[error(
        "{host}: cannot find the address of `{address}`: {source} (is it spelt right, is HostName set in ~/.ssh/config?)"
    )]
    Resolve {
        /// The host as the user calls it.
        host: String,
        /// The name looked up.
        address: String,
        /// Why not.
        source: io::Error,
    },
    /// Nothing answers there.
    #[error(
        "{host}: no connection to {address} port {port}: {source} (is sshd running there, is a firewall between?)"
    )]
    Connect {
        /// The host as the user calls it.
        host: String,
        /// The address tried.
        address: String,
        /// Its port.
        port: u16,
        /// Why not.
        source: io::Error,
    },
    /// The other side does not speak SSH with us.
    #[error("{host}: the SSH handshake failed: {source}")]
    Handshake {
        /// The host as the user calls it.
        host: String,
        /// What libssh2 says.
        source: ssh2::Error,
    },
    /// The host shows another key than the one on file.
    #[error(
        "{host}: THE HOST KEY HAS CHANGED: {name} shows {kind} {fingerprint}, another key than {files} has for it. Somebody may be in between, or the host was installed anew. \
         Nothing was sent. If the new key is right, remove the old one with: ssh-keygen -R '{name}'"
    )]
    HostKeyChanged {
        /// The host as the user calls it.
        host: String,
        /// The name in known_hosts.
        name: String,
        /// The type of the key shown.
        kind: &'static str,
        /// Its fingerprint.
        fingerprint: String,
        /// The files looked at.
        files: String,
    },
    /// The host's key is marked as revoked.
    #[error(
        "{host}: the host key {kind} {fingerprint} is marked @revoked in {files}. Nothing was sent"
    )]
    HostKeyRevoked {
        /// The host as the user calls it.
        host: String,
        /// The type of the key shown.
        kind: &'static str,
        /// Its fingerprint.
        fingerprint: String,
        /// The files looked at.
        files: String,
    },
    /// The host has never been seen.
    #[error(
        "{host}: the host key of {name} is not known ({kind} {fingerprint}; looked in {files}). Compare the fingerprint and accept it with: ssh {host}, \
         or start with --accept-new to trust the keys of hosts seen for the first time"
    )]
    HostKeyUnknown {
        /// The host as the user calls it.
        host: String,
        /// The name in known_hosts.
        name: String,
        /// The type of the key shown.
        kind: &'static str,
        /// Its fingerprint.
        fingerprint: String,
        /// The files looked at.
        files: String,
    },
    /// No key of ours is accepted.
    #[error(
        "{host}: {user}@{address} accepts none of our keys ({tried}). A login without a password is needed: does `ssh -o BatchMode=yes {host}` work?"
    )]
    Auth {
        /// The host as the user calls it.
        host: String,
        /// The user tried.
        user: String,
        /// The address.
        address: String,
        /// What was tried and why it failed.
        tried: String,
    },
    /// The way through another host fails.
    #[error("{host}: through {jump}: {source}")]
    Jump {
        /// The host as the user calls it.
        host: String,
        /// The host in between.
        jump: String,
        /// What failed there.
        source: Box<SshError>,
    },
    /// A step on an open connection failed.
    #[error("{host}: {doing}: {source}")]
    Session {
        /// The host as the user calls it.
        host: String,
        /// What was being done.
        doing: String,
        /// What libssh2 says.
        source: ssh2::Error,
    },
    /// Bytes cannot be moved.
    #[error("{host}: {doing}: {source}")]
    Io {
        /// The host as the user calls it.
        host: String,
        /// What was being done.
        doing: String,
        /// Why not.
        source: io::Error,
    },
    /// The connection broke.
    #[error("{host}: the SSH connection was lost ({reason})")]
    Lost {
        /// The host as the user calls it.
        host: String,
        /// How it shows.
        reason: String,
    },
}

impl SshError {
    fn session(host: &str, doing: &str, source: ssh2::Error) -> Self {
        Self::Session {
            host: host.to_owned(),
            doing: doing.to_owned(),
            source,
        }
    }

    fn io(host: &str, doing: &str, source: io::Error) -> Self {
        Self::Io {
            host: host.to_owned(),
            doing: doing.to_owned(),
            source,
        }
    }

    fn lost(host: &str, reason: impl ToString) -> Self {
        Self::Lost {
            host: host.to_owned(),
            reason: reason.to_string(),
        }
    }

    /// Whether trying again later can help: the network and the server may come back; a wrong key will not mend itself.
    #[must_use]
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Resolve { .. }
            | Self::Connect { .. }
            | Self::Handshake { .. }
            | Self::Session { .. }
            | Self::Io { .. }
            | Self::Lost { .. } => true,
            Self::Jump { source, .. } => source.is_transient(),
            _ => false,
        }
    }
}
