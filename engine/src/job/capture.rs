//! What a job writes, kept up to a limit.

use std::{
    io::Read,
    os::fd::{AsFd, BorrowedFd},
    process::{ChildStderr, ChildStdout},
    time::{Duration, Instant},
};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::run::Observer;

/// How long pipes are read after the shell has ended, when something that it left behind still holds them: until
/// nothing came for this long…
const QUIET: Duration = Duration::from_millis(50);
/// …and in all.
const LAST_WORDS: Duration = Duration::from_millis(500);

/// One of a job's two outputs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stream {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
}

impl Stream {
    /// The name in `stream` messages.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Stdout => "stdout",
            Self::Stderr => "stderr",
        }
    }
}

/// The beginning of an output.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Captured {
    /// What was kept.
    pub bytes: Vec<u8>,
    /// How much there was.
    pub total: u64,
}

struct Pipe<R> {
    stream: Stream,
    read: Option<R>,
    captured: Captured,
}

impl<R: Read + AsFd> Pipe<R> {
    /// Reads what is there; closes at the end.
    fn read(&mut self, limit: usize, scratch: &mut [u8], observer: &mut dyn Observer) {
        let Some(read) = &mut self.read else { return };
        match read.read(scratch) {
            Ok(0) => self.read = None,
            Ok(count) => {
                let room = limit - self.captured.bytes.len();
                let kept = &scratch[..count.min(room)];
                if !kept.is_empty() {
                    self.captured.bytes.extend_from_slice(kept);
                    observer.output(self.stream, kept);
                }
                self.captured.total += count as u64;
            }
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(_) => self.read = None,
        }
    }
}

/// Reads both pipes until the process behind `pidfd` has ended and they are empty. Keeps and passes on the first
/// `limit` bytes of each and drops the rest, so that a job is never held up and memory never grows.
pub(super) fn capture(
    stdout: Option<ChildStdout>,
    stderr: Option<ChildStderr>,
    pidfd: BorrowedFd<'_>,
    limit: usize,
    observer: &mut dyn Observer,
) -> (Captured, Captured) {
    let mut out = Pipe {
        stream: Stream::Stdout,
        read: stdout,
        captured: Captured::default(),
    };
    let mut err = Pipe {
        stream: Stream::Stderr,
        read: stderr,
        captured: Captured::default(),
    };
    let mut scratch = vec![0; 64 * 1024];
    let mut ended: Option<Instant> = None;
    while out.read.is_some() || err.read.is_some() {
        let wait = match ended {
            None => None,
            Some(at) if at.elapsed() >= LAST_WORDS => break,
            Some(_) => Some(Timespec {
                tv_sec: 0,
                tv_nsec: QUIET.subsec_nanos().into(),
            }),
        };
        let ready = {
            let fds = [
                ended.is_none().then_some(pidfd),
                out.read.as_ref().map(AsFd::as_fd),
                err.read.as_ref().map(AsFd::as_fd),
            ];
            let polled = fds.iter().flatten();
            let mut polled: Vec<PollFd<'_>> = polled
                .map(|fd| PollFd::from_borrowed_fd(*fd, PollFlags::IN))
                .collect();
            match poll(&mut polled, wait.as_ref()) {
                Ok(0) => break,
                Ok(_) => {}
                Err(rustix::io::Errno::INTR) => continue,
                Err(_) => break,
            }
            let mut events = polled.iter().map(|fd| !fd.revents().is_empty());
            fds.map(|fd| fd.is_some() && events.next() == Some(true))
        };
        if ready[0] {
            ended = Some(Instant::now());
        }
        if ready[1] {
            out.read(limit, &mut scratch, observer);
        }
        if ready[2] {
            err.read(limit, &mut scratch, observer);
        }
    }
    (out.captured, err.captured)
}
