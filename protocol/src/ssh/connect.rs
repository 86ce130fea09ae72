//! An authenticated connection to a host, through others where the configuration says so.

use std::{
    fmt,
    io::{self, Read, Write},
    net::{TcpStream, ToSocketAddrs},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use ssh2::{Channel, DisconnectCode, Session};

use super::{Pump, PumpEvent, Settings, SshError, Target, known_hosts::Known, link::Socket};
use crate::spawn;

/// How long a connection may be silent after we asked for a sign of life.
pub(super) const DEAD_AFTER: Duration = Duration::from_secs(15);
/// How many hosts a way may lead through.
const MAX_JUMPS: usize = 8;

/// An open SSH connection.
pub struct Connection {
    pub(super) session: Session,
    /// The bytes' way out of this process: kept beside the session to poll it.
    pub(super) socket: Socket,
    target: Target,
    jumped: bool,
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connection")
            .field("target", &self.target.alias)
            .field("jumped", &self.jumped)
            .finish_non_exhaustive()
    }
}

/// What a command on a host left.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Output {
    /// Its exit status; 128 + n if a signal ended it.
    pub status: i32,
    /// Its standard output.
    pub stdout: Vec<u8>,
    /// Its standard error.
    pub stderr: String,
}

/// Connects to `spec` (`[user@]host[:port]`, or a name from the configuration), checks its key and logs in.
///
/// # Errors
/// Each step that can fail has its own [`SshError`].
pub fn connect(settings: &Settings, spec: &str) -> Result<Connection, SshError> {
    connect_depth(settings, &settings.target(spec)?, 0)
}

fn connect_depth(
    settings: &Settings,
    target: &Target,
    depth: usize,
) -> Result<Connection, SshError> {
    let host = || target.alias.clone();
    if depth > MAX_JUMPS {
        let reason = "ProxyJump leads round in a circle";
        return Err(SshError::lost(&target.alias, reason));
    }
    if target.jumps.is_empty() {
        let stream = dial(target)?;
        return log_in(target, Socket::Tcp(stream), false);
    }
    let mut way: Option<Connection> = None;
    for jump in &target.jumps {
        let failed = |source| SshError::Jump {
            host: host(),
            jump: jump.clone(),
            source: Box::new(source),
        };
        let mut hop = settings.target(jump).map_err(failed)?;
        way = Some(match way.take() {
            // Only the first hop's own configuration may lead through further ones.
            None => connect_depth(settings, &hop, depth + 1).map_err(failed)?,
            Some(before) => {
                hop.jumps.clear();
                through(before, &hop).map_err(failed)?
            }
        });
    }
    match way {
        Some(last) => through(last, target),
        None => Err(SshError::Spec { spec: host() }),
    }
}

/// Logs in to `target` over a channel of `hop`; a thread moves the bytes until either side closes.
fn through(hop: Connection, target: &Target) -> Result<Connection, SshError> {
    let io_error = |doing, source| SshError::io(&target.alias, doing, source);
    let (near, far) = UnixStream::pair().map_err(|e| io_error("make a socket pair", e))?;
    let hop_name = hop.target.alias.clone();
    let mut pump = Pump::new(hop);
    pump.bridge(far, &target.address, target.port)?;
    spawn(format!("jump-{hop_name}"), move || {
        while pump.links() > 0 {
            match pump.turn(Duration::from_secs(5)) {
                Ok(events) => {
                    debug_assert!(events.iter().all(|e| !matches!(e, PumpEvent::Ended { .. })))
                }
                Err(e) => {
                    tracing::debug!("{e}");
                    break;
                }
            }
        }
        pump.close();
    })
    .map_err(|e| io_error("start a thread", e))?;
    log_in(target, Socket::Unix(near), true)
}

fn dial(target: &Target) -> Result<TcpStream, SshError> {
    let resolve = |source| SshError::Resolve {
        host: target.alias.clone(),
        address: target.address.clone(),
        source,
    };
    let mut last = io::Error::new(io::ErrorKind::NotFound, "no address");
    let addresses: Vec<_> = (target.address.as_str(), target.port)
        .to_socket_addrs()
        .map_err(resolve)?
        .collect();
    for address in addresses {
        match TcpStream::connect_timeout(&address, target.timeout) {
            Ok(stream) => {
                // Best effort: without them a dead peer is noticed later.
                let _ = stream.set_nodelay(true);
                let _ = rustix::net::sockopt::set_socket_keepalive(&stream, true);
                #[cfg(target_os = "linux")]
                let _ = rustix::net::sockopt::set_tcp_user_timeout(
                    &stream,
                    u32::try_from(DEAD_AFTER.as_millis()).unwrap_or(u32::MAX),
                );
                return Ok(stream);
            }
            Err(e) => last = e,
        }
    }
    Err(SshError::Connect {
        host: target.alias.clone(),
        address: target.address.clone(),
        port: target.port,
        source: last,
    })
}

fn log_in(target: &Target, socket: Socket, jumped: bool) -> Result<Connection, SshError> {
    let handshake = |source| SshError::Handshake {
        host: target.alias.clone(),
        source,
    };
    let mut session = Session::new().map_err(handshake)?;
    session.set_timeout(u32::try_from(target.timeout.as_millis()).unwrap_or(u32::MAX));
    let cloned = |source| SshError::io(&target.alias, "clone the socket", source);
    match &socket {
        Socket::Tcp(s) => session.set_tcp_stream(s.try_clone().map_err(cloned)?),
        Socket::Unix(s) => session.set_tcp_stream(s.try_clone().map_err(cloned)?),
    }
    let known = Known::load(&session, target)?;
    known.prefer_known_types(&session);
    session.handshake().map_err(handshake)?;
    known.check(&session, target)?;
    authenticate(&session, target)?;
    // Something to acknowledge every few seconds: a peer that does not is dropped by the kernel (TCP_USER_TIMEOUT). No
    // reply is asked for, because libssh2 would take it for the answer to the next request of ours.
    session.set_keepalive(false, u32::try_from(DEAD_AFTER.as_secs() / 3).unwrap_or(5));
    Ok(Connection {
        session,
        socket,
        target: target.clone(),
        jumped,
    })
}

/// Keys from the agent that the configuration names, key files it names, the agent's others, the usual files.
fn authenticate(session: &Session, target: &Target) -> Result<(), SshError> {
    let mut tried = Vec::new();
    let none_named = target.identities.is_empty();
    let agent = if target.agent.as_deref() == Some("none") {
        None
    } else {
        agent(session, target)
            .inspect_err(|e| tried.push(format!("agent: {e}")))
            .ok()
    };
    let keys = agent
        .as_ref()
        .map(|a| a.identities().unwrap_or_default())
        .unwrap_or_default();
    let public: Vec<Vec<u8>> = target
        .identities
        .iter()
        .filter_map(|file| public_blob(file))
        .collect();
    let refused = |e: &ssh2::Error| {
        if e.code() == ssh2::ErrorCode::Session(-18) {
            "refused".to_owned()
        } else {
            e.message().to_owned()
        }
    };
    let try_agent = |named: bool, tried: &mut Vec<String>| {
        keys.iter()
            .filter(|key| public.iter().any(|public| public == key.blob()) == named)
            .any(|key| {
                agent.as_ref().is_some_and(|agent| {
                    agent
                        .userauth(&target.user, key)
                        .inspect_err(|e| {
                            tried.push(format!("agent key {}: {}", key.comment(), refused(e)))
                        })
                        .is_ok()
                })
            })
    };
    let try_files = |files: &[PathBuf], tried: &mut Vec<String>| {
        files.iter().any(|file| {
            if !file.exists() {
                tried.push(format!("{}: no such file", file.display()));
                return false;
            }
            session
                .userauth_pubkey_file(&target.user, None, file, None)
                .inspect_err(|e| {
                    tried.push(format!("{}: {}", file.display(), key_problem(file, e)))
                })
                .is_ok()
        })
    };
    let mut usual = target.default_identities.clone();
    usual.retain(|file| file.exists());
    let others_too = !target.identities_only;
    if try_agent(true, &mut tried)
        || none_named && others_too && try_agent(false, &mut tried)
        || try_files(&target.identities, &mut tried)
        || none_named && try_files(&usual, &mut tried)
        || !none_named && others_too && try_agent(false, &mut tried)
    {
        return Ok(());
    }
    // A server may ask for nothing at all.
    if session.auth_methods(&target.user).is_err() && session.authenticated() {
        return Ok(());
    }
    if tried.is_empty() {
        tried.push("no key in an agent, no key file".to_owned());
    }
    Err(SshError::Auth {
        host: target.alias.clone(),
        user: target.user.clone(),
        address: target.address.clone(),
        tried: tried.join("; "),
    })
}

fn key_problem(file: &Path, error: &ssh2::Error) -> String {
    match error.code() {
        // LIBSSH2_ERROR_AUTHENTICATION_FAILED and PUBLICKEY_UNVERIFIED also stand for "cannot be unlocked".
        ssh2::ErrorCode::Session(-18 | -19) if !error.message().contains("extract") => {
            "refused".to_owned()
        }
        _ if std::fs::read_to_string(file).is_ok_and(|t| t.contains("PRIVATE KEY")) => {
            format!(
                "cannot be used: {}; if it has a passphrase, add it to an agent with ssh-add",
                error.message()
            )
        }
        _ => format!("cannot be used: {}", error.message()),
    }
}

fn agent(session: &Session, target: &Target) -> Result<ssh2::Agent, String> {
    if target.agent.is_none() && std::env::var_os("SSH_AUTH_SOCK").is_none() {
        return Err("none runs".to_owned());
    }
    let text = |e: ssh2::Error| e.message().to_owned();
    let mut agent = session.agent().map_err(text)?;
    if let Some(path) = &target.agent
        && path != "SSH_AUTH_SOCK"
    {
        agent.set_identity_path(path.as_ref()).map_err(text)?;
    }
    agent.connect().map_err(text)?;
    agent.list_identities().map_err(text)?;
    Ok(agent)
}

/// The public key beside a private one, as an agent would name it.
fn public_blob(file: &Path) -> Option<Vec<u8>> {
    use base64::{Engine as _, engine::general_purpose::STANDARD};
    let mut name = file.as_os_str().to_owned();
    name.push(".pub");
    let text = std::fs::read_to_string(name).ok()?;
    STANDARD.decode(text.split_whitespace().nth(1)?).ok()
}

impl Connection {
    /// The host as the configuration describes it.
    #[must_use]
    pub fn target(&self) -> &Target {
        &self.target
    }

    /// The host as the user calls it.
    #[must_use]
    pub fn host(&self) -> &str {
        &self.target.alias
    }

    /// Whether the way leads through another host; the far end then sees that host's address, not ours.
    #[must_use]
    pub fn jumped(&self) -> bool {
        self.jumped
    }

    pub(super) fn failed<'a>(
        &'a self,
        doing: impl AsRef<str> + 'a,
    ) -> impl FnOnce(ssh2::Error) -> SshError + 'a {
        move |source| SshError::session(self.host(), doing.as_ref(), source)
    }

    fn failed_io(&self, doing: &str) -> impl FnOnce(io::Error) -> SshError {
        move |source| SshError::io(self.host(), doing, source)
    }

    /// Starts a command; `doing` says what for, if it fails.
    pub(super) fn exec(&self, command: &str, doing: &str) -> Result<Channel, SshError> {
        let mut channel = self
            .session
            .channel_session()
            .map_err(self.failed("open a channel"))?;
        channel.exec(command).map_err(self.failed(doing))?;
        Ok(channel)
    }

    /// Runs a command to its end and gives it `input`. The command must read its input to the end or close it; each
    /// single step may take `timeout`.
    ///
    /// # Errors
    /// When the connection fails; not when the command does.
    pub fn run(
        &self,
        command: &str,
        mut input: impl Read,
        timeout: Duration,
    ) -> Result<Output, SshError> {
        let usual = self.session.timeout();
        self.session.set_blocking(true);
        self.session
            .set_timeout(u32::try_from(timeout.as_millis()).unwrap_or(u32::MAX));
        let result = (|| {
            let mut channel = self.exec(command, "run a command")?;
            let mut block = vec![0; 64 << 10];
            loop {
                let n = input
                    .read(&mut block)
                    .map_err(self.failed_io("read what to send"))?;
                if n == 0 {
                    break;
                }
                if let Err(e) = channel.write_all(&block[..n]) {
                    // The command may have ended early: its own words say more than ours.
                    tracing::debug!("{}: write: {e}", self.host());
                    break;
                }
            }
            let _ = channel.send_eof();
            let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
            channel
                .read_to_end(&mut stdout)
                .map_err(self.failed_io("read the output of a command"))?;
            channel
                .stderr()
                .read_to_end(&mut stderr)
                .map_err(self.failed_io("read the errors of a command"))?;
            channel
                .wait_eof()
                .map_err(self.failed("wait for a command"))?;
            channel.close().map_err(self.failed("wait for a command"))?;
            channel
                .wait_close()
                .map_err(self.failed("wait for a command"))?;
            let signal = channel.exit_signal().ok().and_then(|s| s.exit_signal);
            let status = match signal {
                Some(name) => 128 + signal_number(&name),
                None => channel
                    .exit_status()
                    .map_err(self.failed("wait for a command"))?,
            };
            Ok(Output {
                status,
                stdout,
                stderr: String::from_utf8_lossy(&stderr).trim_end().to_owned(),
            })
        })();
        self.session.set_timeout(usual);
        result
    }

    /// Says goodbye, if the other side still listens.
    pub fn close(self) {
        self.session.set_blocking(true);
        self.session.set_timeout(1000);
        let started = Instant::now();
        let _ = self
            .session
            .disconnect(Some(DisconnectCode::ByApplication), "done", None);
        tracing::trace!("{}: closed in {:?}", self.target.alias, started.elapsed());
    }
}

pub(super) fn signal_number(name: &str) -> i32 {
    match name {
        "HUP" => 1,
        "INT" => 2,
        "QUIT" => 3,
        "ILL" => 4,
        "ABRT" => 6,
        "FPE" => 8,
        "KILL" => 9,
        "SEGV" => 11,
        "PIPE" => 13,
        "ALRM" => 14,
        "TERM" => 15,
        _ => 0,
    }
}
