//! Connection files: how engines and clients find the controller.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::{
    PROTOCOL, profile,
    session::{Packer, Session},
    socket::{self, CurveClient},
    value::Map,
};

/// What both connection files hold.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Common {
    /// An SSH server through which to connect; empty: none.
    pub ssh: String,
    /// Where the controller listens: `tcp://127.0.0.1`, `tcp://*`.
    pub interface: String,
    /// The key that signs messages; empty: they are not signed.
    pub key: String,
    /// The controller's public CURVE key (Z85), when CURVE is on.
    pub curve_serverkey: Option<String>,
    /// A name or address of the controller's host, for `interface` `*`.
    pub location: String,
    /// Name of the packer.
    pub pack: String,
    /// Name of the unpacker, the same.
    pub unpack: String,
    /// `hmac-sha256`.
    pub signature_scheme: String,
    /// The largest message that the controller takes, its frames together; 0: it does not say.
    pub max_message: u64,
    /// The controller's [`PROTOCOL`]; 0: it is ipyparallel's own.
    pub protocol: u32,
    /// Keys of later versions and of the peer.
    #[serde(flatten)]
    pub extra: Map,
}

/// `ipcontroller-client.json`.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct ClientConnection {
    /// The hub's port.
    pub registration: u16,
    /// The control relay's port.
    pub control: u16,
    /// The direct relay's port.
    pub mux: u16,
    /// The task scheduler's port.
    pub task: u16,
    /// Its scheme. Never the string `pure`: Python clients then close their task socket at the first gap in the ids.
    pub task_scheme: String,
    /// Where engines' output is published.
    pub iopub: u16,
    /// Where engines' coming and going is published.
    pub notification: u16,
    /// The broadcast root's port.
    #[serde(default)]
    pub broadcast: u16,
    /// What both files hold.
    #[serde(flatten)]
    pub common: Common,
}

/// `ipcontroller-engine.json`.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct EngineConnection {
    /// The hub's port.
    pub registration: u16,
    /// The control relay's port.
    pub control: u16,
    /// The direct relay's port.
    pub mux: u16,
    /// The task scheduler's port.
    pub task: u16,
    /// Where to publish output.
    pub iopub: u16,
    /// Where the heartbeat comes from.
    pub hb_ping: u16,
    /// Where its echo goes.
    pub hb_pong: u16,
    /// The broadcast leaves' ports; an engine uses number `id % len`.
    #[serde(default)]
    pub broadcast: Vec<u16>,
    /// The task path is the pure one: each engine has a connection of its own there.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub pure: bool,
    /// What both files hold.
    #[serde(flatten)]
    pub common: Common,
}

/// Why a connection file is of no use.
#[derive(Debug, thiserror::Error)]
pub enum ConnectionError {
    /// It cannot be read or written.
    #[error("connection file {path}: {source}")]
    Io {
        /// Which file.
        path: PathBuf,
        /// The system's word.
        source: io::Error,
    },
    /// It is not what a controller writes.
    #[error(
        "connection file {path} is not a controller's, or is the other one of its two: {source}; clients take ipcontroller-client.json, engines ipcontroller-engine.json, as ipctl wrote them"
    )]
    Format {
        /// Which file.
        path: PathBuf,
        /// What is wrong.
        source: serde_json::Error,
    },
    /// Its packer or signature scheme is none of ours.
    #[error("connection file says {what} {value:?}; ipbroker has {known}")]
    Unsupported {
        /// Which key.
        what: &'static str,
        /// Its value.
        value: String,
        /// What would do.
        known: &'static str,
    },
    /// Its controller speaks another protocol than this program.
    #[error(
        "the controller speaks protocol {found}, this program {PROTOCOL}: it is {age} than the controller; use programs of the same version"
    )]
    Protocol {
        /// What the controller speaks.
        found: u32,
        /// `older` or `newer`.
        age: &'static str,
    },
    /// Its CURVE key is none.
    #[error("connection file: curve_serverkey is not a Z85 key of 40 characters")]
    Curve,
}

/// Reads a connection file.
///
/// # Errors
/// [`ConnectionError`] naming the file.
pub fn load<T: DeserializeOwned>(path: &Path) -> Result<T, ConnectionError> {
    let bytes = fs::read(path).map_err(|source| ConnectionError::Io {
        path: path.into(),
        source,
    })?;
    parse(&bytes, path)
}

pub(crate) fn parse<T: DeserializeOwned>(bytes: &[u8], path: &Path) -> Result<T, ConnectionError> {
    serde_json::from_slice(bytes).map_err(|source| ConnectionError::Format {
        path: path.into(),
        source,
    })
}

/// Writes a connection file whole (temporary file, rename) and readable by its owner only: others wait for it.
///
/// # Errors
/// [`ConnectionError::Io`] naming the file.
pub fn save<T: Serialize>(path: &Path, connection: &T) -> Result<(), ConnectionError> {
    let write = || -> io::Result<()> {
        let mut text = serde_json::to_vec_pretty(connection)?;
        text.push(b'\n');
        profile::replace(path, &text)
    };
    write().map_err(|source| ConnectionError::Io {
        path: path.into(),
        source,
    })
}

impl ClientConnection {
    /// The ports in use, to be changed.
    pub fn ports_mut(&mut self) -> impl Iterator<Item = &mut u16> {
        // Without `..`, as below: a port that is added must not be forgotten.
        let Self {
            registration,
            control,
            mux,
            task,
            task_scheme: _,
            iopub,
            notification,
            broadcast,
            common: _,
        } = self;
        [
            registration,
            control,
            mux,
            task,
            iopub,
            notification,
            broadcast,
        ]
        .into_iter()
        .filter(|port| **port != 0)
    }
}

impl EngineConnection {
    /// The ports in use.
    pub fn ports(&self) -> impl Iterator<Item = u16> {
        let ports: Vec<u16> = self.clone().ports_mut().map(|port| *port).collect();
        ports.into_iter()
    }

    /// The ports in use, to be changed.
    pub fn ports_mut(&mut self) -> impl Iterator<Item = &mut u16> {
        let Self {
            registration,
            control,
            mux,
            task,
            iopub,
            hb_ping,
            hb_pong,
            broadcast,
            pure: _,
            common: _,
        } = self;
        [registration, control, mux, task, iopub, hb_ping, hb_pong]
            .into_iter()
            .chain(broadcast)
            .filter(|port| **port != 0)
    }
}

impl Common {
    /// The packer that the file names.
    ///
    /// # Errors
    /// [`ConnectionError::Unsupported`] when it is none of ours.
    pub fn packer(&self) -> Result<Packer, ConnectionError> {
        match self.pack.as_str() {
            "msgpack" => Ok(Packer::Msgpack),
            "json" | "orjson" | "" => Ok(Packer::Json),
            other => Err(ConnectionError::Unsupported {
                what: "pack",
                value: other.into(),
                known: "msgpack and json",
            }),
        }
    }

    /// It is ipyparallel's own controller, which says no protocol of ours.
    #[must_use]
    pub fn is_peer(&self) -> bool {
        self.protocol == 0
    }

    /// A session with the file's key and packer.
    ///
    /// # Errors
    /// [`ConnectionError::Unsupported`] when packer or signature scheme is none of ours, [`ConnectionError::Protocol`] when
    /// the controller speaks another protocol.
    pub fn session(&self) -> Result<Session, ConnectionError> {
        self.session_with_id(uuid::Uuid::new_v4().to_string())
    }

    /// A session with a given id.
    ///
    /// # Errors
    /// As [`Common::session`].
    pub fn session_with_id(&self, id: String) -> Result<Session, ConnectionError> {
        if !matches!(self.signature_scheme.as_str(), "" | "hmac-sha256") {
            return Err(ConnectionError::Unsupported {
                what: "signature_scheme",
                value: self.signature_scheme.clone(),
                known: "hmac-sha256",
            });
        }
        let found = self.protocol;
        if found != PROTOCOL && !self.is_peer() {
            let age = if found > PROTOCOL { "older" } else { "newer" };
            return Err(ConnectionError::Protocol { found, age });
        }
        Ok(Session::with_id(id, self.key.as_bytes(), self.packer()?))
    }

    /// The URL of one of the controller's ports, seen from this host.
    #[must_use]
    pub fn url(&self, port: u16) -> String {
        format!("tcp://{}:{port}", self.host())
    }

    /// The one address that the controller listens on; none: all of its host's.
    pub(crate) fn address(&self) -> Option<&str> {
        let ip = self
            .interface
            .strip_prefix("tcp://")
            .unwrap_or(&self.interface);
        (!matches!(ip, "*" | "0.0.0.0" | "")).then_some(ip)
    }

    /// The controller's address, seen from this host: `*` and `0.0.0.0` become the location, or loopback on its own host.
    #[must_use]
    pub fn host(&self) -> String {
        match self.address() {
            Some(ip) => ip.to_owned(),
            None if self.location.is_empty() || socket::is_this_host(&self.location) => {
                "127.0.0.1".into()
            }
            None => self.location.clone(),
        }
    }

    /// The SSH server through which to connect: only for those who are not on the controller's host.
    #[must_use]
    pub fn gateway(&self) -> Option<&str> {
        let elsewhere = !self.location.is_empty() && !socket::is_this_host(&self.location);
        (!self.ssh.is_empty() && elsewhere).then_some(self.ssh.as_str())
    }

    /// The client half of CURVE: a fresh key pair, or `$IPP_CURVE_PUBLICKEY` and `$IPP_CURVE_SECRETKEY`.
    ///
    /// # Errors
    /// [`ConnectionError::Curve`] when a key is no Z85 key.
    pub fn curve(&self) -> Result<Option<CurveClient>, ConnectionError> {
        let from_env = std::env::var("IPP_CURVE_SERVERKEY").ok();
        let Some(server) = self
            .curve_serverkey
            .as_ref()
            .filter(|key| !key.is_empty())
            .or(from_env.as_ref().filter(|key| !key.is_empty()))
        else {
            return Ok(None);
        };
        CurveClient::new(server)
            .map(Some)
            .map_err(|_| ConnectionError::Curve)
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;
    use proptest::prelude::*;

    #[test]
    fn files_round_trip_and_are_private() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ipcontroller-client.json");
        let mut connection = ClientConnection {
            registration: 4001,
            task_scheme: "leastload".into(),
            ..ClientConnection::default()
        };
        connection.common.interface = "tcp://127.0.0.1".into();
        connection.common.key = "k".into();
        connection.common.extra.insert("later".into(), 1.into());
        save(&path, &connection).unwrap();
        assert_eq!(
            fs::metadata(&path).unwrap().permissions().mode() & 0o777,
            0o600
        );
        let read: ClientConnection = load(&path).unwrap();
        assert_eq!(read, connection);
        assert_eq!(read.common.url(read.registration), "tcp://127.0.0.1:4001");
    }

    #[test]
    fn errors_name_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.json");
        assert!(
            load::<ClientConnection>(&path)
                .unwrap_err()
                .to_string()
                .contains("x.json")
        );
        fs::write(&path, "{}").unwrap();
        assert!(
            load::<EngineConnection>(&path)
                .unwrap_err()
                .to_string()
                .contains("registration")
        );
    }

    #[test]
    fn ports_are_those_in_use() {
        let mut engine = EngineConnection {
            registration: 1,
            hb_pong: 2,
            broadcast: vec![3, 0, 4],
            ..EngineConnection::default()
        };
        for port in engine.ports_mut() {
            *port += 10;
        }
        assert_eq!(engine.ports().collect::<Vec<_>>(), [11, 12, 13, 14]);
        assert_eq!(engine.broadcast, [13, 0, 14]);
        let mut client = ClientConnection {
            mux: 1,
            notification: 2,
            ..ClientConnection::default()
        };
        let ports: Vec<u16> = client.ports_mut().map(|port| *port).collect();
        assert_eq!(ports, [1, 2]);
    }

    proptest! {
        #[test]
        fn arbitrary_text_never_panics(text in ".{0,200}") {
            let _ = serde_json::from_str::<ClientConnection>(&text);
            let _ = serde_json::from_str::<EngineConnection>(&text);
        }
    }
}
