//! Waiting for a condition, with a limit.

use std::{
    thread,
    time::{Duration, Instant},
};

/// How long a test waits for something that should happen at once, on a machine that is busy with other tests.
pub const LIMIT: Duration = Duration::from_secs(30);

/// Asks `condition` until it answers, at most for `limit`; panics with `what` was waited for.
#[track_caller]
pub fn eventually<T>(what: &str, limit: Duration, mut condition: impl FnMut() -> Option<T>) -> T {
    let start = Instant::now();
    let mut pause = Duration::from_millis(1);
    loop {
        if let Some(value) = condition() {
            return value;
        }
        assert!(
            start.elapsed() < limit,
            "waited {limit:?} in vain for {what}"
        );
        thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(50));
    }
}
