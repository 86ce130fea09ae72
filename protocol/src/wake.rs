//! A bell between threads: one side polls a descriptor beside its sockets, the other rings.

use std::{
    io,
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    pipe::{PipeFlags, pipe_with},
};

/// Rings the bell; clones ring the same one.
#[derive(Debug, Clone)]
pub struct Waker {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    write: OwnedFd,
    rung: AtomicBool,
}

/// The side that is woken.
#[derive(Debug)]
pub struct Wake {
    read: OwnedFd,
    shared: Arc<Shared>,
}

/// A new bell.
///
/// # Errors
/// When the process has no descriptors left.
pub fn pair() -> io::Result<(Waker, Wake)> {
    let (read, write) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK)?;
    let shared = Arc::new(Shared {
        write,
        rung: AtomicBool::new(false),
    });
    Ok((
        Waker {
            shared: shared.clone(),
        },
        Wake { read, shared },
    ))
}

impl Waker {
    /// Wakes the other side at its next poll, or from the one it is in. Ringing twice costs nothing.
    pub fn wake(&self) {
        if !self.shared.rung.swap(true, Ordering::AcqRel) {
            // The pipe can only be full when it is readable anyway.
            let _ = rustix::io::write(&self.shared.write, &[1]);
        }
    }
}

impl Wake {
    /// The descriptor to poll for reading.
    #[must_use]
    pub fn fd(&self) -> RawFd {
        self.read.as_raw_fd()
    }

    /// Silences the bell. Call it *before* looking at the queue that the ringer fills: what comes later rings again.
    ///
    /// Invariant: while `rung` is set, a byte is in the pipe, or will be, or the queue is about to be looked at. So the
    /// pipe is emptied first: a byte written after `rung` is reset must stay there, or nobody would ever ring again.
    pub fn clear(&self) {
        let mut sink = [0; 64];
        while matches!(rustix::io::read(&self.read, &mut sink), Ok(n) if n == sink.len()) {}
        self.shared.rung.swap(false, Ordering::AcqRel);
    }

    /// Waits until the bell is rung, or for `timeout`; does not silence it.
    pub fn wait(&self, timeout: Duration) {
        let timeout = Timespec::try_from(timeout).ok();
        // An interrupted wait is a short one.
        let _ = poll(&mut [PollFd::new(self, PollFlags::IN)], timeout.as_ref());
    }

    /// A ringer for this bell.
    #[must_use]
    pub fn waker(&self) -> Waker {
        Waker {
            shared: self.shared.clone(),
        }
    }
}

impl AsFd for Wake {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.read.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn readable(wake: &Wake) -> bool {
        let mut items = [zmq::PollItem::from_fd(wake.fd(), zmq::POLLIN)];
        zmq::poll(&mut items, 0).unwrap() == 1
    }

    #[test]
    fn rings_once_until_cleared() {
        let (waker, wake) = pair().unwrap();
        assert!(!readable(&wake));
        waker.wake();
        waker.clone().wake();
        assert!(readable(&wake));
        wake.clear();
        assert!(!readable(&wake));
        waker.wake();
        assert!(readable(&wake));
    }

    #[test]
    fn no_ring_is_lost_between_threads() {
        const RINGERS: u32 = 4;
        const RINGS: u32 = 200_000;
        let (waker, wake) = pair().unwrap();
        let (post, letters) = std::sync::mpsc::channel();
        let ringers: Vec<_> = (0..RINGERS)
            .map(|_| {
                let (waker, post) = (waker.clone(), post.clone());
                std::thread::spawn(move || {
                    for number in 0..RINGS {
                        post.send(number).unwrap();
                        waker.wake();
                        if number % 4 == 0 {
                            std::thread::yield_now();
                        }
                    }
                })
            })
            .collect();
        let mut read = 0;
        while read < RINGERS * RINGS {
            let mut items = [zmq::PollItem::from_fd(wake.fd(), zmq::POLLIN)];
            let rung = zmq::poll(&mut items, 10_000).unwrap();
            assert_eq!(rung, 1, "after {read} letters nobody rings any more");
            wake.clear();
            read += letters.try_iter().count() as u32;
        }
        for ringer in ringers {
            ringer.join().unwrap();
        }
    }
}
