//! Everything that the loop waits for, on one channel.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender};
use ipbroker_client::protocol::message::Unschedulable;
use ipbroker_client::protocol::spawn;
use ipbroker_client::{Listener, Part, Sink};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

use crate::failure::Failure;

/// How long the loop has to end at the second signal.
const HURRY: Duration = Duration::from_millis(500);

pub(crate) enum Event {
    /// Results, by the tag of their submission.
    Parts(Vec<(u64, Part)>),
    /// Ctrl-C and its like.
    Signal(i32),
    /// A job that runs has printed something.
    Printed(Printed),
    /// The jobs go on although they should not.
    AbortFailed(String),
    /// What jobs wait for that no engine has.
    Waits(Vec<Unschedulable>),
}

/// What a job that runs has printed.
pub(crate) struct Printed {
    pub(crate) msg_id: String,
    /// To its standard error.
    pub(crate) errors: bool,
    /// So many bytes were before.
    pub(crate) at: u64,
    pub(crate) text: String,
}

/// The channel and its ends.
pub(crate) struct Events {
    pub(crate) sender: Sender<Event>,
    pub(crate) receiver: Receiver<Event>,
    pub(crate) sink: Arc<Arrivals>,
}

/// Collects what the I/O thread delivers, and hands it over once a batch.
pub(crate) struct Arrivals {
    parts: Mutex<Vec<(u64, Part)>>,
    sender: Sender<Event>,
}

impl Sink for Arrivals {
    fn deliver(&self, tag: u64, part: Part) {
        self.parts
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push((tag, part));
    }

    fn flush(&self) {
        let parts = std::mem::take(&mut *self.parts.lock().unwrap_or_else(PoisonError::into_inner));
        if !parts.is_empty() {
            // Nobody listens any more: the program is on its way out.
            let _ = self.sender.send(Event::Parts(parts));
        }
    }
}

impl Listener for Arrivals {
    fn printed(&self, msg_id: &str, _: u32, stream: &str, at: Option<u64>, text: &str) {
        // An engine of earlier times does not say where: what it prints comes as the job ends.
        let Some(at) = at else { return };
        let _ = self.sender.send(Event::Printed(Printed {
            msg_id: msg_id.to_owned(),
            errors: stream == "stderr",
            at,
            text: text.to_owned(),
        }));
    }
}

impl Events {
    /// Signals are ours from now on.
    pub(crate) fn new() -> Result<Self, Failure> {
        let (sender, receiver) = crossbeam_channel::unbounded();
        let mut signals = signal_hook::iterator::Signals::new([SIGINT, SIGTERM, SIGHUP])?;
        let to = sender.clone();
        spawn("signals", move || {
            for (count, signal) in signals.forever().enumerate() {
                if to.send(Event::Signal(signal)).is_err() {
                    return;
                }
                if count > 0 {
                    // The loop itself may wait for a controller that does not answer.
                    std::thread::sleep(HURRY);
                    std::process::exit(128 + signal);
                }
            }
        })?;
        let sink = Arc::new(Arrivals {
            parts: Mutex::default(),
            sender: sender.clone(),
        });
        Ok(Self {
            sender,
            receiver,
            sink,
        })
    }
}
