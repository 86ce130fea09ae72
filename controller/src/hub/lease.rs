//! Client leases: a ROUTER does not see a client vanish, so ours say now and then that they live.

use std::time::{Duration, Instant};

use foldhash::{HashMap, HashMapExt};

/// The longest time between two looks that counts as time in which clients could be heard.
const GAP: Duration = Duration::from_secs(1);

/// The sessions that hold a lease.
#[derive(Debug)]
pub(crate) struct Leases {
    length: Duration,
    /// When it was last asked who has expired.
    looked: Option<Instant>,
    seen: HashMap<String, Lease>,
}

#[derive(Debug)]
struct Lease {
    seen: Instant,
    /// Its client has closed; what it has left goes with the lease.
    closed: bool,
}

impl Leases {
    pub(crate) fn new(length: Duration) -> Self {
        Self {
            length,
            looked: None,
            seen: HashMap::new(),
        }
    }

    /// A session asks for a lease, or for its renewal.
    pub(crate) fn renew(&mut self, session: &str, now: Instant) {
        let lease = Lease {
            seen: now,
            closed: false,
        };
        self.seen.insert(session.to_owned(), lease);
    }

    /// Any other message of a session that holds a lease.
    pub(crate) fn touch(&mut self, session: &str, now: Instant) {
        if let Some(lease) = self.seen.get_mut(session) {
            lease.seen = now;
        }
    }

    /// A session's client closes.
    pub(crate) fn close(&mut self, session: &str) {
        if let Some(lease) = self.seen.get_mut(session) {
            lease.closed = true;
        }
    }

    /// Sessions whose lease has run out; they are forgotten. To be asked at least every [`GAP`]: a longer pause is ours (a
    /// machine that is overloaded or was suspended), and no time in which a client could be heard.
    pub(crate) fn expired(&mut self, now: Instant) -> Vec<String> {
        let length = self.length;
        if let Some(looked) = self.looked.replace(now) {
            let pause = now.saturating_duration_since(looked);
            if pause > GAP {
                for lease in self.seen.values_mut() {
                    lease.seen += pause - GAP;
                }
            }
        }
        self.seen
            .extract_if(|_, lease| now.saturating_duration_since(lease.seen) >= length)
            .map(|(session, _)| session)
            .collect()
    }

    /// How many clients of ours there are.
    pub(crate) fn len(&self) -> usize {
        self.seen.values().filter(|lease| !lease.closed).count()
    }

    /// Seconds a lease lasts.
    pub(crate) fn seconds(&self) -> f64 {
        self.length.as_secs_f64()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lease_lasts_from_its_last_renewal() {
        let mut leases = Leases::new(Duration::from_secs(15));
        let begin = Instant::now();
        let at = |seconds| begin + Duration::from_secs(seconds);
        leases.renew("a", at(0));
        leases.renew("b", at(0));
        leases.renew("a", at(10));
        leases.touch("stranger", at(10));
        assert!((1..15).all(|second| leases.expired(at(second)).is_empty()));
        assert_eq!(leases.expired(at(15)), ["b"]);
        assert_eq!(leases.len(), 1);
        leases.close("a");
        assert_eq!(leases.len(), 0);
        assert!((16..25).all(|second| leases.expired(at(second)).is_empty()));
        assert_eq!(leases.expired(at(25)), ["a"]);
    }

    #[test]
    fn a_pause_of_the_controller_is_not_the_clients() {
        let mut leases = Leases::new(Duration::from_secs(15));
        let begin = Instant::now();
        let at = |seconds| begin + Duration::from_secs(seconds);
        leases.renew("a", at(0));
        assert!(leases.expired(at(1)).is_empty());
        assert!(leases.expired(at(100)).is_empty());
        assert!((101..113).all(|second| leases.expired(at(second)).is_empty()));
        assert_eq!(leases.expired(at(113)), ["a"]);
    }
}
