//! The heart monitor: beats, misses, round trips and clock offsets. No sockets, no clock of its own.
//!
//! A heart is that of an engine process, or of an engine with connections of its own.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use foldhash::{HashMap, HashMapExt};

/// Pings whose echoes are still understood.
const REMEMBERED: usize = 64;

/// Clock samples of which the one with the shortest round trip counts.
const SAMPLES: usize = 12;

/// What an echo meant.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Pong {
    /// Of a heart that is listened to; its clock's offset in s, if that is new.
    Beat { offset: Option<f64> },
    /// Of a heart that is not: a new engine, or one that was given up.
    Stranger,
    /// Not an echo of one of the last pings.
    Stale,
}

/// All hearts.
#[derive(Debug)]
pub(crate) struct Heart {
    allowed: u32,
    hearts: HashMap<String, Beat>,
    pings: VecDeque<(u64, Instant)>,
    next: u64,
}

#[derive(Debug, Default)]
struct Beat {
    answered: bool,
    misses: u32,
    ping: Option<Duration>,
    samples: VecDeque<(Duration, f64)>,
    told: Option<f64>,
}

impl Heart {
    /// A monitor that gives a heart up after more than `allowed` misses in a row.
    pub(crate) fn new(allowed: u32) -> Self {
        Self {
            allowed,
            hearts: HashMap::new(),
            pings: VecDeque::new(),
            next: 1,
        }
    }

    /// Listens to a heart that has just beaten.
    pub(crate) fn add(&mut self, heart: &str) {
        let beat = self.hearts.entry(heart.to_owned()).or_default();
        beat.answered = true;
    }

    pub(crate) fn remove(&mut self, heart: &str) {
        self.hearts.remove(heart);
    }

    /// The next ping's text, beside the regular beat or as part of it.
    pub(crate) fn ping(&mut self, now: Instant) -> String {
        let number = self.next;
        self.next += 1;
        self.pings.push_back((number, now));
        if self.pings.len() > REMEMBERED {
            self.pings.pop_front();
        }
        number.to_string()
    }

    /// Closes a beat: those that did not answer since the last one have missed it. Returns those that missed too many,
    /// and forgets them. Echoes that are in the socket must have been read before.
    pub(crate) fn beat(&mut self) -> Vec<(String, u32)> {
        let mut dead = Vec::new();
        for (heart, beat) in &mut self.hearts {
            if std::mem::take(&mut beat.answered) {
                beat.misses = 0;
                continue;
            }
            beat.misses += 1;
            if beat.misses > self.allowed {
                dead.push((heart.clone(), beat.misses));
            } else {
                tracing::debug!(heart, misses = beat.misses, "missed a heartbeat");
            }
        }
        for (heart, _) in &dead {
            self.hearts.remove(heart);
        }
        dead
    }

    /// An echo arrived. `clock` is the engine's clock and `wall` ours now, in s since 1970.
    pub(crate) fn pong(
        &mut self,
        heart: &str,
        echo: &[u8],
        clock: Option<f64>,
        now: Instant,
        wall: f64,
    ) -> Pong {
        let number = std::str::from_utf8(echo)
            .ok()
            .and_then(|text| text.parse::<u64>().ok());
        let Some((_, sent)) = self
            .pings
            .iter()
            .find(|(ping, _)| Some(*ping) == number)
            .copied()
        else {
            return Pong::Stale;
        };
        let Some(beat) = self.hearts.get_mut(heart) else {
            return Pong::Stranger;
        };
        beat.answered = true;
        let trip = now.saturating_duration_since(sent);
        beat.ping = Some(trip);
        let offset =
            clock.and_then(|clock| beat.sample(trip, clock - (wall - trip.as_secs_f64() / 2.0)));
        Pong::Beat { offset }
    }

    /// The last round trip, and the clock's offset as last told.
    pub(crate) fn of(&self, heart: &str) -> (Option<Duration>, Option<f64>) {
        self.hearts
            .get(heart)
            .map_or((None, None), |beat| (beat.ping, beat.told))
    }
}

impl Beat {
    /// A new estimate, when the last one that was told can no longer be true. A round trip bounds the offset to half of
    /// itself on either side: clocks that may be equal count as equal, or a job would start before it was submitted.
    fn sample(&mut self, trip: Duration, offset: f64) -> Option<f64> {
        self.samples.push_back((trip, offset));
        if self.samples.len() > SAMPLES {
            self.samples.pop_front();
        }
        let (trip, best) = self.samples.iter().copied().min_by_key(|(trip, _)| *trip)?;
        let error = (trip.as_secs_f64() / 2.0).max(0.000_5);
        let first = self.told.is_none();
        let told = self.told.get_or_insert(0.0);
        if (*told - best).abs() > error {
            *told = best;
        } else if !first {
            return None;
        }
        self.told
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_heart_is_given_up_after_its_misses() {
        let mut heart = Heart::new(2);
        let now = Instant::now();
        heart.add("a");
        heart.add("b");
        assert!(heart.beat().is_empty());
        for beat in 0..3 {
            let ping = heart.ping(now);
            assert!(matches!(
                heart.pong("a", ping.as_bytes(), None, now, 0.0),
                Pong::Beat { .. }
            ));
            let dead = heart.beat();
            assert_eq!(dead.is_empty(), beat < 2, "b dies with its third miss");
        }
        let ping = heart.ping(now);
        assert_eq!(
            heart.pong("b", ping.as_bytes(), None, now, 0.0),
            Pong::Stranger
        );
        assert_eq!(heart.pong("a", b"junk", None, now, 0.0), Pong::Stale);
        assert_eq!(heart.pong("a", b"999", None, now, 0.0), Pong::Stale);
    }

    #[test]
    fn the_shortest_round_trip_tells_the_clock() {
        let mut heart = Heart::new(2);
        let begin = Instant::now();
        heart.add("a");
        let mut echo = |trip_ms: u64, ahead: f64| {
            let ping = heart.ping(begin);
            // The engine's clock is read halfway.
            let wall = 1000.0 + trip_ms as f64 / 1000.0;
            let clock = 1000.0 + trip_ms as f64 / 2000.0 + ahead;
            match heart.pong(
                "a",
                ping.as_bytes(),
                Some(clock),
                begin + Duration::from_millis(trip_ms),
                wall,
            ) {
                Pong::Beat { offset } => offset,
                other => panic!("{other:?}"),
            }
        };
        let first = echo(10, 47.0).unwrap();
        assert!((first - 47.0).abs() < 1e-6);
        assert_eq!(echo(8, 47.001), None, "within the error of 4 ms");
        assert_eq!(echo(500, 47.2), None, "a slow echo tells nothing");
        let better = echo(1, 47.003).unwrap();
        assert!((better - 47.003).abs() < 1e-6);
    }

    #[test]
    fn clocks_that_may_be_equal_are() {
        let mut beat = Beat::default();
        let ms = Duration::from_millis;
        assert_eq!(beat.sample(ms(10), 0.004), Some(0.0));
        assert_eq!(beat.sample(ms(9), -0.004), None);
        assert_eq!(beat.sample(ms(2), 0.003), Some(0.003));
    }
}
