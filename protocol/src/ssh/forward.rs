//! Local ports that lead to the controller through an SSH server: `ipengine --ssh`, `ipclient --ssh`.

use std::{
    fmt, io,
    net::{Ipv4Addr, TcpListener},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use serde::de::DeserializeOwned;

use crate::{
    connection::{self, ClientConnection, Common, ConnectionError, EngineConnection},
    spawn,
    wake::{self, Wake, Waker},
};

use super::{Connection, Pump, Settings, SshError, connect, quote};

/// How long reading a file may take.
const FETCH: Duration = Duration::from_secs(20);
const FIRST_PAUSE: Duration = Duration::from_millis(250);
const LONGEST_PAUSE: Duration = Duration::from_secs(10);

/// A set of open forwards; they close when it is dropped. A connection that breaks is made again, behind the same local
/// ports, so that sockets connected to them only see an interruption.
pub struct Forwards {
    stop: Arc<AtomicBool>,
    waker: Waker,
    thread: Option<JoinHandle<()>>,
}

impl fmt::Debug for Forwards {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Forwards").finish_non_exhaustive()
    }
}

struct Forward {
    listener: TcpListener,
    host: String,
    port: u16,
}

impl Forwards {
    fn open(gateway: Gateway, to: &[(String, u16)]) -> Result<(Self, Vec<u16>), SshError> {
        let Gateway {
            settings,
            server,
            connection,
        } = gateway;
        let io_error = |source| SshError::io(&server, "open a local port", source);
        let mut forwards = Vec::new();
        let mut ports = Vec::new();
        for (host, port) in to {
            let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).map_err(io_error)?;
            ports.push(listener.local_addr().map_err(io_error)?.port());
            forwards.push(Forward {
                listener,
                host: host.clone(),
                port: *port,
            });
        }
        let (waker, wake) = wake::pair().map_err(io_error)?;
        let mut pump = start(connection, &server, &forwards)?;
        pump.wake_by(wake);
        let stop = Arc::new(AtomicBool::new(false));
        let thread = spawn("ssh-forward", {
            let (stop, server) = (stop.clone(), server.clone());
            move || keep(pump, &settings, &server, &forwards, &stop)
        })
        .map_err(io_error)?;
        Ok((
            Self {
                stop,
                waker,
                thread: Some(thread),
            },
            ports,
        ))
    }
}

/// An SSH server that can reach the controller.
#[derive(Debug)]
pub struct Gateway {
    settings: Settings,
    server: String,
    connection: Connection,
}

impl Gateway {
    /// Connects to `server` (`[user@]host[:port]`, or a name from the configuration).
    ///
    /// # Errors
    /// As [`connect`].
    pub fn connect(settings: Settings, server: &str) -> Result<Self, SshError> {
        let connection = connect(&settings, server)?;
        Ok(Self {
            settings,
            server: server.to_owned(),
            connection,
        })
    }

    /// Reads a connection file on the server: `file`, or the one of the profile there that is named like `local`. That may be
    /// an older copy, and is read if the server has none. With it comes where it is, or where it was looked for.
    ///
    /// # Errors
    /// When the connection fails, or the file is none.
    pub fn connection_file<T, E>(
        &self,
        file: Option<&Path>,
        profile: Option<&str>,
        profile_dir: Option<&Path>,
        local: &Path,
    ) -> Result<(Option<T>, PathBuf), E>
    where
        T: DeserializeOwned,
        E: From<SshError> + From<ConnectionError>,
    {
        let (base, dir) = match profile_dir {
            Some(dir) => ("", dir.to_owned()),
            None => {
                let profile = format!("profile_{}", profile.unwrap_or("default"));
                ("\"${IPYTHONDIR:-$HOME/.ipython}\"/", profile.into())
            }
        };
        let name = local.file_name().unwrap_or_default();
        let (base, path) = match file {
            Some(file) => ("", file.to_owned()),
            None => (base, dir.join("security").join(name)),
        };
        let path = path.to_string_lossy();
        let script = format!("f={base}{}; [ -r \"$f\" ] && cat \"$f\"", quote(&path));
        let command = format!("/bin/sh -c {}", quote(&script));
        let output = self.connection.run(&command, io::empty(), FETCH)?;
        let there = PathBuf::from(format!("{}:{path}", self.server));
        if output.status == 0 && !output.stdout.is_empty() {
            return Ok((Some(connection::parse(&output.stdout, &there)?), there));
        }
        if local.exists() {
            return Ok((Some(connection::load(local)?), local.to_owned()));
        }
        Ok((None, there))
    }

    /// Rewrites an engine's connection so that it leads through the server.
    ///
    /// # Errors
    /// When no local ports can be had.
    pub fn engine(self, connection: &mut EngineConnection) -> Result<Forwards, SshError> {
        let host = host_behind(&connection.common);
        let forwards = self.rewrite(host, connection.ports_mut())?;
        lead_here(&mut connection.common);
        Ok(forwards)
    }

    /// Rewrites a client's connection so that it leads through the server.
    ///
    /// # Errors
    /// When no local ports can be had.
    pub fn client(self, connection: &mut ClientConnection) -> Result<Forwards, SshError> {
        let host = host_behind(&connection.common);
        let forwards = self.rewrite(host, connection.ports_mut())?;
        lead_here(&mut connection.common);
        Ok(forwards)
    }

    /// Leads a local port, which is returned, to a port of the server's own loopback.
    ///
    /// # Errors
    /// When no local port can be had.
    pub fn forward(self, port: u16) -> Result<(Forwards, u16), SshError> {
        let (forwards, local) = Forwards::open(self, &[("127.0.0.1".into(), port)])?;
        Ok((forwards, local[0]))
    }

    /// Puts local ports in place of the controller's ports on `host`.
    fn rewrite<'a>(
        self,
        host: String,
        ports: impl Iterator<Item = &'a mut u16>,
    ) -> Result<Forwards, SshError> {
        let ports: Vec<&mut u16> = ports.collect();
        let to: Vec<(String, u16)> = ports.iter().map(|port| (host.clone(), **port)).collect();
        let (forwards, local) = Forwards::open(self, &to)?;
        for (port, local) in ports.into_iter().zip(local) {
            *port = local;
        }
        Ok(forwards)
    }
}

/// The forwards listen on loopback, and no other way is needed.
fn lead_here(common: &mut Common) {
    common.interface = "tcp://127.0.0.1".into();
    common.location = "127.0.0.1".into();
    common.ssh.clear();
}

/// The controller's address as the SSH server sees it. A controller on all interfaces is looked for where it says it is:
/// the server may be a gateway beside it.
fn host_behind(common: &Common) -> String {
    match common.address() {
        Some(ip) => ip.to_owned(),
        None if common.location.is_empty() => "127.0.0.1".into(),
        None => common.location.clone(),
    }
}

fn start(connection: Connection, server: &str, forwards: &[Forward]) -> Result<Pump, SshError> {
    let mut pump = Pump::new(connection);
    for forward in forwards {
        let listener = forward
            .listener
            .try_clone()
            .map_err(|source| SshError::io(server, "use a listener", source))?;
        pump.listen_local(listener, &forward.host, forward.port)?;
    }
    pump.watch_far_end()?;
    Ok(pump)
}

fn keep(
    mut pump: Pump,
    settings: &Settings,
    server: &str,
    forwards: &[Forward],
    stop: &AtomicBool,
) {
    let mut pause = FIRST_PAUSE;
    loop {
        let error = loop {
            if stop.load(Ordering::Acquire) {
                pump.close();
                return;
            }
            match pump.turn(Duration::from_secs(2)) {
                Ok(_) => pause = FIRST_PAUSE,
                Err(e) => break e,
            }
        };
        tracing::warn!("{error}; connecting again");
        let Some(wake) = pump.take_wake() else { return };
        drop(pump);
        pump = loop {
            wait(&wake, stop, pause);
            if stop.load(Ordering::Acquire) {
                return;
            }
            pause = (pause * 2).min(LONGEST_PAUSE);
            match connect(settings, server).and_then(|c| start(c, server, forwards)) {
                Ok(mut pump) => {
                    tracing::info!("{server}: connected again");
                    pump.wake_by(wake);
                    break pump;
                }
                Err(e) => tracing::debug!("{e}"),
            }
        };
    }
}

/// Waits for the bell or the end of the pause.
fn wait(wake: &Wake, stop: &AtomicBool, pause: Duration) {
    let until = Instant::now() + pause;
    while !stop.load(Ordering::Acquire) {
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return;
        }
        wake.wait(left);
        wake.clear();
    }
}

impl Drop for Forwards {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        self.waker.wake();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_address_is_the_servers_view() {
        let at = |interface: &str, location: &str| {
            host_behind(&Common {
                interface: interface.into(),
                location: location.into(),
                ..Common::default()
            })
        };
        assert_eq!(at("tcp://127.0.0.1", "there"), "127.0.0.1");
        assert_eq!(at("tcp://10.0.0.5", ""), "10.0.0.5");
        assert_eq!(at("tcp://*", "there"), "there");
        assert_eq!(at("tcp://0.0.0.0", ""), "127.0.0.1");
    }
}
