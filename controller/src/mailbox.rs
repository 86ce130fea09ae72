//! A channel into a thread that polls sockets: posting rings the thread's bell.

use std::{io, os::fd::RawFd};

use crossbeam_channel::{Receiver, Sender, unbounded};
use ipbroker_protocol::wake::{self, Wake, Waker};

/// Where the answer to a question goes: it is called at most once, on the thread that answers; one that is on its way out may
/// drop it.
pub(crate) type Answer<T> = Box<dyn FnOnce(T) + Send>;

/// The posting side.
#[derive(Debug)]
pub(crate) struct Post<T> {
    sender: Sender<T>,
    waker: Waker,
}

impl<T> Clone for Post<T> {
    fn clone(&self) -> Self {
        Self {
            sender: self.sender.clone(),
            waker: self.waker.clone(),
        }
    }
}

impl<T> Post<T> {
    /// Posts `letter` and wakes the thread. A thread that has ended drops it.
    pub(crate) fn send(&self, letter: T) {
        if self.sender.send(letter).is_ok() {
            self.waker.wake();
        }
    }
}

/// The reading side.
#[derive(Debug)]
pub(crate) struct Mailbox<T> {
    receiver: Receiver<T>,
    wake: Wake,
}

impl<T> Mailbox<T> {
    /// The descriptor to poll for reading.
    pub(crate) fn fd(&self) -> RawFd {
        self.wake.fd()
    }

    /// Silences the bell and takes what is there; letters posted meanwhile ring again.
    pub(crate) fn take(&self) -> impl Iterator<Item = T> + '_ {
        self.wake.clear();
        let waiting = self.receiver.len();
        // What is posted while these are read rings for the next round, so that a flood of letters does not keep the
        // thread from its sockets.
        self.receiver.try_iter().take(waiting)
    }
}

/// A new channel.
pub(crate) fn mailbox<T>() -> io::Result<(Post<T>, Mailbox<T>)> {
    let (waker, wake) = wake::pair()?;
    let (sender, receiver) = unbounded();
    Ok((Post { sender, waker }, Mailbox { receiver, wake }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use ipbroker_protocol::zmq;

    #[test]
    fn letters_ring_until_taken() {
        let (post, mailbox) = mailbox().unwrap();
        let ready =
            || zmq::poll(&mut [zmq::PollItem::from_fd(mailbox.fd(), zmq::POLLIN)], 0).unwrap() == 1;
        assert!(!ready());
        post.send(1);
        post.clone().send(2);
        assert!(ready());
        let letters: Vec<i32> = mailbox
            .take()
            .inspect(|letter| {
                if *letter == 1 {
                    post.send(3)
                }
            })
            .collect();
        assert_eq!(letters, [1, 2]);
        assert!(ready());
        assert_eq!(mailbox.take().collect::<Vec<_>>(), [3]);
        assert!(!ready());
    }
}
