//! Which cluster a client connects to, and how it gets there.

use std::path::{Path, PathBuf};
use std::time::Duration;

use ipbroker_protocol::connection::{self, ClientConnection};
use ipbroker_protocol::profile::{Profile, Role};
#[cfg(feature = "ssh")]
use ipbroker_protocol::ssh::{Gateway, Settings};

use crate::client::Client;
use crate::error::{Error, Result};

/// Which cluster, and how long to wait for it.
#[derive(Debug, Clone)]
pub struct ClientBuilder {
    profile: Option<String>,
    profile_dir: Option<PathBuf>,
    cluster_id: Option<String>,
    file: Option<PathBuf>,
    pub(crate) timeout: Duration,
    pub(crate) grace: Duration,
    ssh: Option<String>,
    #[cfg(feature = "ssh")]
    settings: Option<ipbroker_protocol::ssh::Settings>,
}

impl Default for ClientBuilder {
    fn default() -> Self {
        Self {
            profile: None,
            profile_dir: None,
            cluster_id: None,
            file: None,
            timeout: Duration::from_secs(10),
            grace: Duration::from_secs(300),
            ssh: None,
            #[cfg(feature = "ssh")]
            settings: None,
        }
    }
}

impl ClientBuilder {
    /// The profile's name; default: `default`.
    #[must_use]
    pub fn profile(mut self, name: impl Into<String>) -> Self {
        self.profile = Some(name.into());
        self
    }

    /// The profile's directory, instead of a name.
    #[must_use]
    pub fn profile_dir(mut self, dir: impl Into<PathBuf>) -> Self {
        self.profile_dir = Some(dir.into());
        self
    }

    /// Which of several clusters of the profile.
    #[must_use]
    pub fn cluster_id(mut self, id: impl Into<String>) -> Self {
        self.cluster_id = Some(id.into());
        self
    }

    /// The connection file itself, instead of a profile.
    #[must_use]
    pub fn file(mut self, path: impl Into<PathBuf>) -> Self {
        self.file = Some(path.into());
        self
    }

    /// How long to wait for the controller's first answer; default 10 s.
    #[must_use]
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// How long a controller that vanishes later is waited for before its tasks fail; default 5 minutes.
    #[must_use]
    pub fn grace(mut self, grace: Duration) -> Self {
        self.grace = grace;
        self
    }

    /// Reach the controller through this SSH server (`[user@]host[:port]`, or a name from `~/.ssh/config`). The connection
    /// file is read there, unless [`ClientBuilder::file`] names one that is here. Without the crate's feature `ssh`,
    /// [`ClientBuilder::connect`] says so.
    #[must_use]
    pub fn ssh(mut self, server: impl Into<String>) -> Self {
        self.ssh = Some(server.into());
        self
    }

    /// How to log in to SSH servers, instead of what `~/.ssh/config` says.
    #[cfg(feature = "ssh")]
    #[must_use]
    pub fn ssh_settings(mut self, settings: ipbroker_protocol::ssh::Settings) -> Self {
        self.settings = Some(settings);
        self
    }

    /// Where the connection file is.
    ///
    /// # Errors
    /// When there is no home directory to look in.
    pub fn connection_file(&self) -> Result<PathBuf> {
        match &self.file {
            Some(path) => Ok(path.clone()),
            None => Ok(Profile::find(
                self.profile.as_deref(),
                self.profile_dir.as_deref(),
                self.cluster_id.as_deref(),
            )?
            .connection_file(Role::Client)),
        }
    }

    /// Connects.
    ///
    /// # Errors
    /// No connection file, nobody there, or somebody with another key: [`Error`] says which and what to do.
    pub fn connect(&self) -> Result<Client> {
        let path = self.connection_file()?;
        match &self.ssh {
            Some(server) => self.connect_through(server, &path, None),
            None if !path.exists() => Err(Error::NoConnectionFile { path }),
            None => {
                let connection: ClientConnection = connection::load(&path)?;
                match connection.common.gateway().map(str::to_owned) {
                    Some(server) => self.connect_through(&server, &path, Some(connection)),
                    None => Client::connect(connection, &path, self, None),
                }
            }
        }
    }

    /// Leads a local port to this one on the loopback of the SSH server that clients go through; `None`: they go through none.
    /// It is open as long as the first value lives.
    ///
    /// # Errors
    /// When the server cannot be reached.
    #[cfg(feature = "ssh")]
    pub fn forward(&self, port: u16) -> Result<Option<(ipbroker_protocol::ssh::Forwards, u16)>> {
        let server = match &self.ssh {
            Some(server) => Some(server.clone()),
            None => {
                let connection: ClientConnection = connection::load(&self.connection_file()?)?;
                connection.common.gateway().map(str::to_owned)
            }
        };
        let Some(server) = server else {
            return Ok(None);
        };
        Ok(Some(self.gateway(&server)?.forward(port)?))
    }

    #[cfg(feature = "ssh")]
    fn gateway(&self, server: &str) -> Result<Gateway> {
        let settings = match &self.settings {
            Some(settings) => settings.clone(),
            None => Settings::load(None)?,
        };
        Ok(Gateway::connect(settings, server)?)
    }

    #[cfg(feature = "ssh")]
    fn connect_through(
        &self,
        server: &str,
        path: &Path,
        connection: Option<ClientConnection>,
    ) -> Result<Client> {
        let gateway = self.gateway(server)?;
        let (connection, origin) = match connection {
            Some(connection) => (Some(connection), path.to_owned()),
            None if self.file.is_some() && path.exists() => {
                (Some(connection::load(path)?), path.to_owned())
            }
            None => gateway.connection_file::<_, Error>(
                self.file.as_deref(),
                self.profile.as_deref(),
                self.profile_dir.as_deref(),
                path,
            )?,
        };
        let Some(mut connection) = connection else {
            return Err(Error::NoConnectionFile { path: origin });
        };
        let forwards = gateway.client(&mut connection)?;
        Client::connect(connection, &origin, self, Some(forwards))
    }

    #[cfg(not(feature = "ssh"))]
    fn connect_through(
        &self,
        server: &str,
        _: &Path,
        _: Option<ClientConnection>,
    ) -> Result<Client> {
        Err(Error::NoSsh {
            server: server.to_owned(),
        })
    }
}
