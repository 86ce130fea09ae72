//! Everything that goes on over one connection at the same time: forwarded ports of both directions and a running program.
//!
//! libssh2 keeps one state machine for the whole session, so one thread does all of it, without ever blocking in it.

use std::{
    io::{self, Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    os::{fd::AsFd, unix::net::UnixStream},
    time::{Duration, Instant},
};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use ssh2::{Channel, ErrorCode, Listener};

use crate::wake::Wake;

use super::{
    Connection, Output, SshError,
    connect::{DEAD_AFTER, signal_number},
    link::{Link, Socket, settle},
};

/// `LIBSSH2_ERROR_EAGAIN`.
const AGAIN: ErrorCode = ErrorCode::Session(-37);
/// How long a step on the other host may take.
const STEP: Duration = Duration::from_secs(20);
/// How often an echo is asked for.
const BEAT: Duration = Duration::from_secs(5);
/// How long a program that has told its exit status may still have something to say.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// What happened to the program that [`Pump::spawn`] started.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PumpEvent {
    /// It wrote to its standard output.
    Stdout(Vec<u8>),
    /// It wrote to its standard error.
    Stderr(Vec<u8>),
    /// It ended; 128 + n for signal n, `None` if the other side does not say.
    Ended {
        /// The exit status.
        status: Option<i32>,
    },
}

/// The work of one connection, done in [`Pump::turn`].
pub struct Pump {
    connection: Connection,
    remote: Vec<Remote>,
    local: Vec<Local>,
    links: Vec<Link>,
    program: Option<Program>,
    echo: Option<Echo>,
    wake: Option<Wake>,
    keepalive: Instant,
    /// Something is left to do that no descriptor will announce.
    busy: bool,
}

/// A port that is open on the other host and leads to an address here.
struct Remote {
    listener: Listener,
    to: SocketAddr,
}

/// A port that is open here and leads to an address as the other host sees it.
struct Local {
    listener: TcpListener,
    host: String,
    port: u16,
}

struct Program {
    channel: Channel,
    input: Vec<u8>,
    written: usize,
    eof_sent: bool,
    /// When its exit status came.
    ended: Option<Instant>,
}

/// A `cat` on the other host: what it gives back shows that the whole way is open.
struct Echo {
    channel: Channel,
    /// What it has not given back yet, since when.
    asked: Option<Instant>,
    next: Instant,
}

impl Pump {
    /// Takes the connection over.
    #[must_use]
    pub fn new(connection: Connection) -> Self {
        connection.session.set_blocking(false);
        Self {
            connection,
            remote: Vec::new(),
            local: Vec::new(),
            links: Vec::new(),
            program: None,
            echo: None,
            wake: None,
            keepalive: Instant::now(),
            busy: false,
        }
    }

    /// A bell that ends [`Pump::turn`] early; its owner clears it.
    pub fn wake_by(&mut self, wake: Wake) {
        self.wake = Some(wake);
    }

    /// Takes the bell back, for the next connection.
    pub fn take_wake(&mut self) -> Option<Wake> {
        self.wake.take()
    }

    /// The bell.
    #[must_use]
    pub fn wake(&self) -> Option<&Wake> {
        self.wake.as_ref()
    }

    /// The host as the user calls it.
    #[must_use]
    pub fn host(&self) -> &str {
        self.connection.host()
    }

    /// The name or address that the connection was made to.
    #[must_use]
    pub fn address(&self) -> &str {
        &self.connection.target().address
    }

    /// How many forwarded connections are open.
    #[must_use]
    pub fn links(&self) -> usize {
        self.links.len()
    }

    /// Opens a port on the other host's loopback (0: any) that leads to `to`; the port that was opened.
    ///
    /// # Errors
    /// When the other side refuses: the port is taken there, or forwarding is forbidden.
    pub fn listen_remote(&mut self, port: u16, to: SocketAddr) -> Result<u16, SshError> {
        let (listener, bound) = self.blocking(|c| {
            c.session.channel_forward_listen(port, Some("127.0.0.1"), None).map_err(c.failed(format!(
                "open port {port} there (is it in use, or is AllowTcpForwarding off in its sshd_config?)"
            )))
        })?;
        self.remote.push(Remote { listener, to });
        Ok(if bound == 0 { port } else { bound })
    }

    /// Lets a local listener lead to `host:port` as the other host sees it.
    ///
    /// # Errors
    /// When the listener cannot be made non-blocking.
    pub fn listen_local(
        &mut self,
        listener: TcpListener,
        host: &str,
        port: u16,
    ) -> Result<(), SshError> {
        listener
            .set_nonblocking(true)
            .map_err(|e| self.io_error("use a listener", e))?;
        self.local.push(Local {
            listener,
            host: host.to_owned(),
            port,
        });
        Ok(())
    }

    /// Connects one local socket to `host:port` as the other host sees it.
    ///
    /// # Errors
    /// When the other host cannot connect there.
    pub fn bridge(&mut self, stream: UnixStream, host: &str, port: u16) -> Result<(), SshError> {
        let channel = self.direct(host, port)?;
        let link = Link::new(channel, Socket::Unix(stream))
            .map_err(|e| self.io_error("use a socket", e))?;
        self.links.push(link);
        Ok(())
    }

    /// Starts the program of this connection; what becomes of it is told by [`Pump::turn`].
    ///
    /// # Errors
    /// When the channel or the start is refused.
    pub fn spawn(&mut self, command: &str, input: Vec<u8>) -> Result<(), SshError> {
        let channel = self.blocking(|c| c.exec(command, "start a program"))?;
        self.program = Some(Program {
            channel,
            input,
            written: 0,
            eof_sent: false,
            ended: None,
        });
        self.busy = true;
        Ok(())
    }

    /// Whether the program has told its exit status; [`PumpEvent::Ended`] follows when its last words are in.
    #[must_use]
    pub fn is_ending(&self) -> bool {
        self.program.as_ref().is_some_and(|p| p.ended.is_some())
    }

    /// Asks the other host itself for signs of life. Where the way leads through others the kernel sees only the first
    /// of them, and would learn after a quarter of an hour that the last one is gone; elsewhere this does nothing.
    ///
    /// # Errors
    /// When the connection fails. A host that runs no commands is left unwatched.
    pub fn watch_far_end(&mut self) -> Result<(), SshError> {
        if !self.connection.jumped() {
            return Ok(());
        }
        match self.blocking(|c| c.exec("cat", "start cat")) {
            Ok(channel) => {
                self.echo = Some(Echo {
                    channel,
                    asked: None,
                    next: Instant::now() + BEAT,
                });
            }
            Err(e) if self.connection.session.authenticated() => tracing::debug!("{e}"),
            Err(e) => return Err(e),
        }
        Ok(())
    }

    /// Runs a short command beside all else (which waits for it).
    ///
    /// # Errors
    /// When the connection fails; not when the command does.
    pub fn run(&mut self, command: &str, input: impl Read) -> Result<Output, SshError> {
        let result = self.connection.run(command, input, STEP);
        self.connection.session.set_blocking(false);
        self.busy = true;
        result
    }

    fn blocking<T>(
        &mut self,
        call: impl FnOnce(&Connection) -> Result<T, SshError>,
    ) -> Result<T, SshError> {
        self.connection.session.set_blocking(true);
        let result = call(&self.connection);
        self.connection.session.set_blocking(false);
        // What came in meanwhile waits inside libssh2, where no poll sees it.
        self.busy = true;
        result
    }

    fn direct(&mut self, host: &str, port: u16) -> Result<Channel, SshError> {
        self.blocking(|c| {
            c.session
                .channel_direct_tcpip(host, port, None)
                .map_err(c.failed(format!("connect to {host}:{port} from there")))
        })
    }

    fn io_error(&self, doing: &str, source: io::Error) -> SshError {
        SshError::io(self.host(), doing, source)
    }

    fn lost(&self, reason: impl ToString) -> SshError {
        SshError::lost(self.host(), reason)
    }

    /// Waits for up to `timeout` for something to do, and does it.
    ///
    /// # Errors
    /// When the connection is lost; nothing on it works any more then.
    pub fn turn(&mut self, timeout: Duration) -> Result<Vec<PumpEvent>, SshError> {
        self.wait(timeout)?;
        self.busy = false;
        self.keep_alive()?;
        self.accept_local();
        self.accept_remote()?;
        self.drain()?;
        self.listen_for_echo()?;
        let fd = self.connection.socket.as_fd();
        let mut index = 0;
        while index < self.links.len() {
            let link = &mut self.links[index];
            match link.turn(&self.connection.session, fd) {
                Ok(more) => self.busy |= more,
                Err(e) => return Err(self.lost(e)),
            }
            if self.links[index].done() {
                self.links
                    .swap_remove(index)
                    .close(&self.connection.session, fd);
            } else {
                index += 1;
            }
        }
        self.turn_program()
    }

    fn wait(&mut self, timeout: Duration) -> Result<(), SshError> {
        let timeout = if self.busy {
            Duration::ZERO
        } else if self.is_ending() {
            timeout.min(LAST_WORDS / 10)
        } else {
            timeout.min(Duration::from_secs(2))
        };
        let listens = !self.remote.is_empty()
            || self.program.is_some()
            || self.echo.is_some()
            || self.links.iter().any(Link::drains);
        let session_interest = if listens {
            PollFlags::IN
        } else {
            PollFlags::empty()
        };
        let mut fds = Vec::with_capacity(2 + self.local.len() + self.links.len());
        fds.push(PollFd::new(&self.connection.socket, session_interest));
        if let Some(wake) = &self.wake {
            fds.push(PollFd::new(wake, PollFlags::IN));
        }
        fds.extend(
            self.local
                .iter()
                .map(|l| PollFd::new(&l.listener, PollFlags::IN)),
        );
        fds.extend(
            self.links
                .iter()
                .map(|l| PollFd::from_borrowed_fd(l.fd(), l.interest())),
        );
        let timeout = Timespec::try_from(timeout).ok();
        match poll(&mut fds, timeout.as_ref()) {
            Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
            Err(e) => Err(self.io_error("poll", e.into())),
        }
    }

    /// Asks for a sign of life, but only when it can be sent whole: libssh2 forgets a keepalive sent by halves.
    fn keep_alive(&mut self) -> Result<(), SshError> {
        if Instant::now() < self.keepalive {
            return Ok(());
        }
        let mut fds = [PollFd::new(&self.connection.socket, PollFlags::OUT)];
        let ready = poll(&mut fds, Some(&Timespec::default())).unwrap_or(0);
        if ready > 0 {
            let next = self
                .connection
                .session
                .keepalive_send()
                .map_err(|_| self.lost("no answer"))?;
            self.keepalive = Instant::now() + Duration::from_secs(u64::from(next.clamp(1, 60)));
        }
        Ok(())
    }

    fn listen_for_echo(&mut self) -> Result<(), SshError> {
        let Some(echo) = &mut self.echo else {
            return Ok(());
        };
        let session = &self.connection.session;
        let fd = self.connection.socket.as_fd();
        let lost = |reason| SshError::lost(self.connection.host(), reason);
        let now = Instant::now();
        let mut block = [0; 64];
        match settle(session, fd, || echo.channel.read(&mut block)) {
            // It has been killed there, or there is none: nothing is lost by that.
            Ok(Some(0)) if echo.channel.eof() => {
                self.echo = None;
                return Ok(());
            }
            Ok(Some(n)) if n > 0 => (echo.asked, echo.next) = (None, now + BEAT),
            Ok(_) => {}
            Err(e) => return Err(lost(e.to_string())),
        }
        match echo.asked {
            Some(since) if since.elapsed() > DEAD_AFTER => {
                return Err(lost(format!("no answer for {} s", DEAD_AFTER.as_secs())));
            }
            None if now >= echo.next => match settle(session, fd, || echo.channel.write(b"\n")) {
                Ok(_) => echo.asked = Some(now),
                Err(e) => return Err(lost(e.to_string())),
            },
            _ => {}
        }
        Ok(())
    }

    fn accept_local(&mut self) {
        let mut streams = Vec::new();
        for local in &self.local {
            while let Ok((stream, _)) = local.listener.accept() {
                streams.push((stream, local.host.clone(), local.port));
            }
        }
        for (stream, host, port) in streams {
            // One that cannot be connected is closed, which is what its owner would see without a tunnel.
            match self.direct(&host, port) {
                Ok(channel) => self.links.extend(Link::new(channel, Socket::Tcp(stream))),
                Err(e) => tracing::debug!("{e}"),
            }
        }
    }

    fn accept_remote(&mut self) -> Result<(), SshError> {
        let mut index = 0;
        while index < self.remote.len() {
            let fd = self.connection.socket.as_fd();
            let Remote { listener, to } = &mut self.remote[index];
            match settle(&self.connection.session, fd, || {
                listener.accept().map_err(into_io)
            }) {
                Ok(None) => index += 1,
                Ok(Some(mut channel)) => {
                    match TcpStream::connect_timeout(to, Duration::from_secs(5)) {
                        Ok(stream) => {
                            self.links.extend(Link::new(channel, Socket::Tcp(stream)));
                            self.busy = true;
                        }
                        Err(e) => {
                            tracing::debug!("tunnel from {}: {to}: {e}", self.connection.host());
                            let _ = settle(&self.connection.session, fd, || {
                                channel.close().map_err(io::Error::from)
                            });
                        }
                    }
                }
                // libssh2 says no more than that it finds no channel.
                Err(e) => {
                    tracing::debug!("{}: {e}", self.connection.host());
                    return Err(self.lost("closed by the other side"));
                }
            }
        }
        Ok(())
    }

    /// Takes in all that the session has received. Reads on channels do it too, but a channel whose socket is slow is not read.
    fn drain(&mut self) -> Result<(), SshError> {
        if !self.remote.is_empty() {
            return Ok(());
        }
        let channel = match &self.program {
            Some(program) => Some(program.channel.clone()),
            None => self
                .links
                .iter()
                .find(|l| l.drains())
                .map(|l| l.channel.clone()),
        };
        if let Some(mut channel) = channel {
            settle(
                &self.connection.session,
                self.connection.socket.as_fd(),
                || channel.read(&mut []),
            )
            .map_err(|e| self.lost(e))?;
        }
        Ok(())
    }

    fn turn_program(&mut self) -> Result<Vec<PumpEvent>, SshError> {
        let mut events = Vec::new();
        let Some(program) = &mut self.program else {
            return Ok(events);
        };
        let session = &self.connection.session;
        let fd = self.connection.socket.as_fd();
        let lost = |e: io::Error| SshError::lost(self.connection.host(), e);
        while program.written < program.input.len() {
            let (channel, rest) = (&mut program.channel, &program.input[program.written..]);
            match settle(session, fd, || channel.write(rest)) {
                Ok(Some(n)) if n > 0 => program.written += n,
                Ok(_) => break,
                // It ended before it read its input; how, is told below.
                Err(_) => program.written = program.input.len(),
            }
        }
        if program.written == program.input.len() && !program.eof_sent {
            let channel = &mut program.channel;
            program.eof_sent = settle(session, fd, || channel.send_eof().map_err(io::Error::from))
                .unwrap_or(Some(()))
                .is_some();
        }
        let mut block = [0; 8192];
        for (mut stream, event) in [
            (
                program.channel.stderr(),
                PumpEvent::Stderr as fn(Vec<u8>) -> PumpEvent,
            ),
            (program.channel.stream(0), PumpEvent::Stdout),
        ] {
            while let Some(n) = settle(session, fd, || stream.read(&mut block)).map_err(lost)? {
                if n == 0 {
                    break;
                }
                events.push(event(block[..n].to_vec()));
            }
        }
        // The exit status comes before the end of the channel, which waits for whoever else holds the program's descriptors.
        let status = program.channel.exit_status().ok().filter(|&s| s != 0);
        let signal = program
            .channel
            .exit_signal()
            .ok()
            .and_then(|s| s.exit_signal);
        let known = status.is_some() || signal.is_some();
        if known && program.ended.is_none() {
            program.ended = Some(Instant::now());
            self.busy = true;
        }
        let silent = program.ended.is_some_and(|at| at.elapsed() > LAST_WORDS);
        if program.channel.eof() || silent {
            let mut status = signal.map(|name| 128 + signal_number(&name)).or(status);
            let channel = &mut program.channel;
            let closed = settle(session, fd, || channel.close().map_err(io::Error::from))
                .map_err(lost)?
                .is_some();
            if closed || status.is_some() {
                status = status.or_else(|| program.channel.exit_status().ok());
                events.push(PumpEvent::Ended { status });
                self.program = None;
            }
        }
        Ok(events)
    }

    /// Ends the connection and everything on it.
    pub fn close(mut self) {
        self.links.clear();
        self.program = None;
        self.echo = None;
        // Dropping a listener asks the other side to close the port, which would block here.
        self.connection.session.set_blocking(true);
        self.connection.session.set_timeout(1000);
        self.remote.clear();
        self.connection.close();
    }
}

fn into_io(error: ssh2::Error) -> io::Error {
    if error.code() == AGAIN {
        io::ErrorKind::WouldBlock.into()
    } else {
        error.into()
    }
}

impl std::fmt::Debug for Pump {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pump")
            .field("host", &self.host())
            .field("links", &self.links.len())
            .finish_non_exhaustive()
    }
}
