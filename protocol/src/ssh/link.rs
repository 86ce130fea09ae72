//! One connection of a forwarded port: a channel on one side, a socket on the other, and what is on its way.

use std::{
    io::{self, Read, Write},
    net::{Shutdown, TcpStream},
    os::{
        fd::{AsFd, BorrowedFd},
        unix::net::UnixStream,
    },
};

use ssh2::{BlockDirections, Channel, Session};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

/// How much one link may move before the others have their turn.
const FAIR: usize = 512 << 10;
const BLOCK: usize = 32 << 10;

/// A stream of bytes on this side.
pub(super) enum Socket {
    Tcp(TcpStream),
    Unix(UnixStream),
}

impl Socket {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Tcp(s) => s.read(buf),
            Self::Unix(s) => s.read(buf),
        }
    }

    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        match self {
            Self::Tcp(s) => s.write(buf),
            Self::Unix(s) => s.write(buf),
        }
    }

    fn shutdown_write(&self) {
        // The other side may be gone already.
        let _ = match self {
            Self::Tcp(s) => s.shutdown(Shutdown::Write),
            Self::Unix(s) => s.shutdown(Shutdown::Write),
        };
    }

    pub(super) fn set_nonblocking(&self) -> io::Result<()> {
        match self {
            Self::Tcp(s) => {
                let _ = s.set_nodelay(true);
                s.set_nonblocking(true)
            }
            Self::Unix(s) => s.set_nonblocking(true),
        }
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Tcp(s) => s.as_fd(),
            Self::Unix(s) => s.as_fd(),
        }
    }
}

/// Bytes read on one side and not yet written on the other.
#[derive(Default)]
struct Buffer {
    bytes: Vec<u8>,
    from: usize,
    to: usize,
}

impl Buffer {
    fn is_empty(&self) -> bool {
        self.from == self.to
    }

    fn space(&mut self) -> &mut [u8] {
        if self.bytes.is_empty() {
            self.bytes.resize(BLOCK, 0);
        }
        (self.from, self.to) = (0, 0);
        &mut self.bytes
    }

    fn pending(&self) -> &[u8] {
        &self.bytes[self.from..self.to]
    }
}

pub(super) struct Link {
    pub(super) channel: Channel,
    end: Socket,
    to_end: Buffer,
    to_channel: Buffer,
    end_eof: bool,
    channel_eof: bool,
    eof_sent: bool,
    shut: bool,
    broken: bool,
}

/// Calls libssh2 until it waits for nothing that *we* have to send: a packet sent by halves must be finished by the very
/// call that began it, anything else in between is refused as "bad use". `None`: nothing to be had now.
pub(super) fn settle<T>(
    session: &Session,
    fd: BorrowedFd<'_>,
    mut call: impl FnMut() -> io::Result<T>,
) -> io::Result<Option<T>> {
    let mut waited = 0;
    loop {
        match call() {
            Ok(value) => return Ok(Some(value)),
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                if !matches!(
                    session.block_directions(),
                    BlockDirections::Outbound | BlockDirections::Both
                ) {
                    return Ok(None);
                }
                let mut fds = [PollFd::from_borrowed_fd(fd, PollFlags::OUT)];
                poll(
                    &mut fds,
                    Some(&Timespec {
                        tv_sec: 1,
                        tv_nsec: 0,
                    }),
                )?;
                waited += 1;
                if fds[0].revents().intersects(PollFlags::ERR | PollFlags::HUP) && waited > 3
                    || waited > 1000
                {
                    return Err(io::ErrorKind::TimedOut.into());
                }
            }
            Err(e) => return Err(e),
        }
    }
}

impl Link {
    pub(super) fn new(channel: Channel, end: Socket) -> io::Result<Self> {
        end.set_nonblocking()?;
        Ok(Self {
            channel,
            end,
            to_end: Buffer::default(),
            to_channel: Buffer::default(),
            end_eof: false,
            channel_eof: false,
            eof_sent: false,
            shut: false,
            broken: false,
        })
    }

    /// What to wait for on the local side.
    pub(super) fn interest(&self) -> PollFlags {
        let mut flags = PollFlags::empty();
        if !self.end_eof && self.to_channel.is_empty() {
            flags |= PollFlags::IN;
        }
        if !self.to_end.is_empty() {
            flags |= PollFlags::OUT;
        }
        flags
    }

    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        self.end.as_fd()
    }

    /// Whether a read on this channel takes in what the session has received.
    pub(super) fn drains(&self) -> bool {
        !self.channel_eof
    }

    pub(super) fn done(&self) -> bool {
        self.broken
            || (self.end_eof
                && self.channel_eof
                && self.to_end.is_empty()
                && self.to_channel.is_empty())
    }

    /// Moves what can be moved; true if more could follow at once. Errors are the session's; the local side's only end
    /// the link.
    pub(super) fn turn(&mut self, session: &Session, fd: BorrowedFd<'_>) -> io::Result<bool> {
        let more = self.outwards(session, fd)? | self.inwards(session, fd)?;
        Ok(more && !self.done())
    }

    fn outwards(&mut self, session: &Session, fd: BorrowedFd<'_>) -> io::Result<bool> {
        let mut moved = 0;
        while moved < FAIR {
            if !self.to_end.is_empty() {
                match self.end.write(self.to_end.pending()) {
                    Ok(n) => self.to_end.from += n,
                    Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(false),
                    Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                    Err(_) => {
                        self.broken = true;
                        return Ok(false);
                    }
                }
                continue;
            }
            if self.channel_eof {
                break;
            }
            let (channel, space) = (&mut self.channel, self.to_end.space());
            match settle(session, fd, || channel.read(space))? {
                Some(0) => {
                    self.channel_eof = self.channel.eof();
                    if !self.channel_eof {
                        return Ok(false);
                    }
                }
                Some(n) => {
                    self.to_end.to = n;
                    moved += n;
                }
                None => return Ok(false),
            }
        }
        if self.channel_eof && self.to_end.is_empty() && !self.shut {
            self.end.shutdown_write();
            self.shut = true;
        }
        Ok(moved >= FAIR)
    }

    fn inwards(&mut self, session: &Session, fd: BorrowedFd<'_>) -> io::Result<bool> {
        let mut moved = 0;
        while moved < FAIR {
            if !self.to_channel.is_empty() {
                let (channel, pending) = (&mut self.channel, self.to_channel.pending());
                match settle(session, fd, || channel.write(pending)) {
                    Ok(Some(n)) if n > 0 => self.to_channel.from += n,
                    Ok(_) => return Ok(false),
                    Err(e) => {
                        // The channel alone may have been closed by the other side; the session's own end shows at the next read.
                        tracing::debug!("write on a channel: {e}");
                        self.broken = true;
                        return Ok(false);
                    }
                }
                continue;
            }
            if self.end_eof {
                break;
            }
            match self.end.read(self.to_channel.space()) {
                Ok(0) => self.end_eof = true,
                Ok(n) => {
                    self.to_channel.to = n;
                    moved += n;
                }
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => break,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => {
                    self.broken = true;
                    return Ok(false);
                }
            }
        }
        if self.end_eof && self.to_channel.is_empty() && !self.eof_sent {
            let channel = &mut self.channel;
            if settle(session, fd, || channel.send_eof().map_err(io::Error::from))
                .unwrap_or(Some(()))
                .is_some()
            {
                self.eof_sent = true;
            }
        }
        Ok(moved >= FAIR)
    }

    /// Tells the other side that this link is over.
    pub(super) fn close(mut self, session: &Session, fd: BorrowedFd<'_>) {
        let channel = &mut self.channel;
        // "Would block" here only waits for the other side's own goodbye.
        let _ = settle(session, fd, || channel.close().map_err(io::Error::from));
    }
}
