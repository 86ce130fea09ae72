//! A controller that is described on standard input, or reached through an SSH server.

use std::{
    io::{self, Read},
    path::Path,
};

#[cfg(feature = "ssh")]
use ipbroker_engine::protocol::ssh::{Forwards, Gateway, Settings, SshError};
use ipbroker_engine::{
    CONNECTION_INFO,
    protocol::{
        connection::{self, ConnectionError, EngineConnection},
        profile::{ProfileError, Role},
    },
};

use crate::cli::Options;

/// An open tunnel: a program without SSH never has one.
#[cfg(not(feature = "ssh"))]
pub(crate) enum Forwards {}

/// Why there is no way to the controller.
#[derive(Debug, thiserror::Error)]
pub(crate) enum WayError {
    /// A connection file is none.
    #[error(transparent)]
    Connection(#[from] ConnectionError),
    /// There is no profile directory.
    #[error(transparent)]
    Profile(#[from] ProfileError),
    /// The way through the server fails.
    #[cfg(feature = "ssh")]
    #[error(transparent)]
    Ssh(#[from] SshError),
    /// The way leads through a server, and this program cannot go there.
    #[cfg(not(feature = "ssh"))]
    #[error(
        "the controller is reached through the SSH server {server}, but this ipengine was built without SSH, as scripts/quickstart builds it; `cargo build --release` builds one that has it"
    )]
    NoSsh { server: String },
    /// Standard input cannot be read.
    #[error("standard input: {0}")]
    Input(io::Error),
    /// What was given as text is no connection file.
    #[error("{origin} is not a controller's connection file: {source}")]
    Text {
        origin: String,
        source: serde_json::Error,
    },
    /// Neither here nor there.
    #[cfg(feature = "ssh")]
    #[error(
        "no connection file {path}: is a controller running there? Or name a local one with --file", path = .0.display()
    )]
    Missing(std::path::PathBuf),
}

/// A connection that must not be looked up as usual, and the open tunnel that it leads through.
pub(crate) type Way = (EngineConnection, Option<Forwards>);

/// Finds the way; none: the connection file alone is enough.
pub(crate) fn find(wanted: &Options) -> Result<Option<Way>, WayError> {
    let stdin = wanted.file.as_deref() == Some(Path::new("-"));
    let here = here(wanted, stdin)?;
    let server = wanted
        .ssh
        .as_deref()
        .or(here.as_ref().and_then(|c| c.common.gateway()))
        .map(str::to_owned);
    let Some(server) = server else {
        return Ok(here.filter(|_| stdin).map(|connection| (connection, None)));
    };
    #[cfg(not(feature = "ssh"))]
    return Err(WayError::NoSsh { server });
    #[cfg(feature = "ssh")]
    through(wanted, here, &server).map(Some)
}

#[cfg(feature = "ssh")]
fn through(
    wanted: &Options,
    here: Option<EngineConnection>,
    server: &str,
) -> Result<Way, WayError> {
    let gateway = Gateway::connect(Settings::load(None)?.accept_new(wanted.accept_new), server)?;
    let mut connection = match here {
        Some(connection) => connection,
        None => {
            let (file, profile_dir) = (wanted.file.as_deref(), wanted.profile_dir.as_deref());
            let local = wanted.profile()?.connection_file(Role::Engine);
            let local = file.unwrap_or(&local);
            let profile = wanted.profile.as_deref();
            let (found, place) =
                gateway.connection_file::<_, WayError>(file, profile, profile_dir, local)?;
            found.ok_or(WayError::Missing(place))?
        }
    };
    let forwards = gateway.engine(&mut connection)?;
    Ok((connection, Some(forwards)))
}

/// The connection as far as this host knows it. With --ssh only what was named counts: a profile's file may be an old copy.
fn here(wanted: &Options, stdin: bool) -> Result<Option<EngineConnection>, WayError> {
    let parse = |text: &str, origin: &str| {
        serde_json::from_str(text).map_err(|source| WayError::Text {
            origin: origin.to_owned(),
            source,
        })
    };
    if stdin {
        let mut text = String::new();
        io::stdin()
            .read_to_string(&mut text)
            .map_err(WayError::Input)?;
        return parse(&text, "standard input").map(Some);
    }
    if let Some(file) = &wanted.file {
        return if file.exists() {
            Ok(Some(connection::load(file)?))
        } else {
            Ok(None)
        };
    }
    match std::env::var(CONNECTION_INFO) {
        Ok(text) if !text.is_empty() && !wanted.names_profile() => {
            return parse(&text, CONNECTION_INFO).map(Some);
        }
        _ => {}
    }
    if wanted.ssh.is_some() {
        return Ok(None);
    }
    let file = wanted.profile()?.connection_file(Role::Engine);
    // One that is not there yet is waited for later; one that is broken is told of there.
    Ok(connection::load(&file).ok())
}
