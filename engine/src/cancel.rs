//! How a running task is asked to stop.

use std::{
    sync::{Arc, atomic::AtomicBool, atomic::Ordering},
    time::{Duration, Instant},
};

use parking_lot::{Condvar, Mutex};

/// Tells a function that its task was aborted.
///
/// Cancellation is cooperative: nothing interrupts a Rust function from outside. A function that may run for long
/// looks at [`is_cancelled`](Self::is_cancelled) from time to time, or waits with [`wait`](Self::wait) instead of
/// sleeping, and returns early; its task is reported as aborted whatever it returns. A function that never looks
/// runs to its end, and its result is dropped.
#[derive(Debug, Clone, Default)]
pub struct CancelToken(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    cancelled: AtomicBool,
    lock: Mutex<()>,
    bell: Condvar,
}

impl CancelToken {
    /// A token that is not cancelled.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Whether the task was asked to stop.
    #[must_use]
    pub fn is_cancelled(&self) -> bool {
        self.0.cancelled.load(Ordering::Acquire)
    }

    /// Asks the task to stop.
    pub fn cancel(&self) {
        let _guard = self.0.lock.lock();
        self.0.cancelled.store(true, Ordering::Release);
        self.0.bell.notify_all();
    }

    /// Sleeps for `duration`, or until the task is asked to stop; true when it was.
    pub fn wait(&self, duration: Duration) -> bool {
        let deadline = Instant::now().checked_add(duration);
        let mut guard = self.0.lock.lock();
        while !self.is_cancelled() {
            // A duration past the end of time waits for the bell alone.
            let left = deadline.map_or(Duration::from_secs(3600), |end| {
                end.saturating_duration_since(Instant::now())
            });
            if left.is_zero() {
                return false;
            }
            self.0.bell.wait_for(&mut guard, left);
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_until_cancelled_or_over() {
        let token = CancelToken::new();
        assert!(!token.wait(Duration::from_millis(1)));
        let other = token.clone();
        let thread = std::thread::spawn(move || other.wait(Duration::from_secs(60)));
        token.cancel();
        assert!(thread.join().unwrap());
        assert!(token.is_cancelled());
    }
}
