//! What jobs wait for that no engine has: asked of the scheduler beside the jobs, and said once.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use crossbeam_channel::Sender;
use ipbroker_client::Client;
use ipbroker_client::protocol::spawn;

use super::events::Event;

/// A run of which no job has ended for so long is asked about at once, …
const SILENCE: Duration = Duration::from_secs(1);
/// … others so often.
const PAUSE: Duration = Duration::from_secs(5);

pub(crate) struct Waits {
    /// When a job was last submitted or ended.
    moved: Instant,
    asked: Instant,
    /// The answer is on its way.
    asking: bool,
    said: HashSet<String>,
}

impl Waits {
    pub(crate) fn new(now: Instant) -> Self {
        let (moved, asked) = (now, now);
        Self {
            moved,
            asked,
            asking: false,
            said: HashSet::new(),
        }
    }

    /// The run goes on.
    pub(crate) fn moved(&mut self) {
        self.moved = Instant::now();
    }

    /// Asks if it is time, sooner when all engines are here that are on their way; the answer comes as [`Event::Waits`].
    pub(crate) fn ask(&mut self, client: &Client, all_here: bool, events: &Sender<Event>) {
        let (silent, asked) = (self.moved.elapsed(), self.asked.elapsed());
        let soon = all_here && silent >= SILENCE && asked >= silent;
        if self.asking || !soon && asked < PAUSE {
            return;
        }
        (self.asking, self.asked) = (true, Instant::now());
        let (client, events) = (client.clone(), events.clone());
        let ask = move || {
            // A controller that does not answer is told of elsewhere.
            let _ = events.send(Event::Waits(client.unschedulable().unwrap_or_default()));
        };
        let _ = spawn("waits", ask);
    }

    /// The answer is here.
    pub(crate) fn answered(&mut self) {
        self.asking = false;
    }

    /// Whether this reason is new.
    pub(crate) fn is_new(&mut self, reason: &str) -> bool {
        self.said.insert(reason.to_owned())
    }
}
