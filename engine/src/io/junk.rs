//! Messages that are none: counted, and logged at most once a second a kind.

use std::{
    collections::HashMap,
    fmt::Display,
    time::{Duration, Instant},
};

/// Counts bad messages by kind.
#[derive(Debug, Default)]
pub(super) struct Junk {
    kinds: HashMap<&'static str, Kind>,
}

#[derive(Debug)]
struct Kind {
    told: Option<Instant>,
    silent: u64,
}

impl Junk {
    /// Refuses a message.
    pub(super) fn refuse(&mut self, kind: &'static str, why: &dyn Display) {
        let now = Instant::now();
        let entry = self.kinds.entry(kind).or_insert(Kind {
            told: None,
            silent: 0,
        });
        if entry
            .told
            .is_some_and(|told| now - told < Duration::from_secs(1))
        {
            entry.silent += 1;
        } else {
            entry.told = Some(now);
            tracing::warn!("message refused ({kind}): {why}");
        }
    }

    /// Tells how many more there were.
    pub(super) fn tell(&mut self, now: Instant) {
        for (kind, entry) in &mut self.kinds {
            if entry.silent > 0
                && entry
                    .told
                    .is_none_or(|told| now - told >= Duration::from_secs(1))
            {
                tracing::warn!("{} more message(s) refused ({kind})", entry.silent);
                entry.silent = 0;
                entry.told = Some(now);
            }
        }
    }
}
