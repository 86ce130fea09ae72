//! What arrives and is no message: counted, and told in the log at most once a second a kind.

use std::{
    collections::HashMap,
    fmt::Display,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

/// How often one kind is told.
const EVERY: Duration = Duration::from_secs(1);

/// How many messages have been refused, on all sockets.
#[derive(Debug, Clone, Default)]
pub struct JunkTotal(Arc<AtomicU64>);

impl JunkTotal {
    /// The number.
    #[must_use]
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// The refused messages of one socket.
#[derive(Debug)]
pub struct Junk {
    socket: &'static str,
    total: JunkTotal,
    kinds: HashMap<&'static str, Kind>,
}

#[derive(Debug)]
struct Kind {
    told: Option<Instant>,
    untold: u64,
}

impl Junk {
    /// A counter for the socket of this name.
    #[must_use]
    pub fn new(socket: &'static str, total: &JunkTotal) -> Self {
        Self {
            socket,
            total: total.clone(),
            kinds: HashMap::new(),
        }
    }

    /// Counts a message that is refused for a reason of this kind.
    pub fn refuse(&mut self, kind: &'static str, why: &dyn Display) {
        self.total.0.fetch_add(1, Ordering::Relaxed);
        let entry = self.kinds.entry(kind).or_insert(Kind {
            told: None,
            untold: 0,
        });
        entry.untold += 1;
        if entry.told.is_none_or(|told| told.elapsed() >= EVERY) {
            entry.told = Some(Instant::now());
            let count = std::mem::take(&mut entry.untold);
            tracing::warn!(socket = self.socket, count, "refused: {kind}: {why}");
        }
    }

    /// What was read of a message; where it could not be, the message is refused for a reason of this kind.
    pub fn good<T, E: Display>(&mut self, kind: &'static str, read: Result<T, E>) -> Option<T> {
        read.inspect_err(|why| self.refuse(kind, why)).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_all_and_tells_few() {
        let total = JunkTotal::default();
        let mut junk = Junk::new("test", &total);
        for _ in 0..1000 {
            junk.refuse("not a message", &"no delimiter");
        }
        assert_eq!(total.get(), 1000);
        assert_eq!(junk.kinds["not a message"].untold, 999);
    }
}
