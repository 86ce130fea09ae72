//! The thread that ends jobs: after a grace period, at their time limit, at their memory limit.

use std::{
    sync::{Arc, OnceLock},
    time::{Duration, Instant},
};

use crossbeam_channel::{RecvTimeoutError, Sender, unbounded};
use ipbroker_protocol::spawn;
use rustix::process::Signal;

use super::{
    memory,
    running::{Running, Stop},
};

/// How often a job with a memory limit is looked at.
const SAMPLE: Duration = Duration::from_millis(100);

/// When a kernel is interrupted once more.
const AGAIN: Duration = Duration::from_secs(1);

/// How long a kernel may take to interrupt what it runs before it is ended, and all its variables with it.
const KERNEL: Duration = Duration::from_secs(5);

/// Watches running jobs; its thread starts with the first one.
#[derive(Debug)]
pub(crate) struct Warden {
    /// Between TERM and KILL.
    pub(crate) grace: Duration,
    sender: OnceLock<Sender<Watch>>,
}

#[derive(Debug)]
struct Watch {
    running: Arc<Running>,
    generation: u64,
    task: Task,
}

#[derive(Debug)]
enum Task {
    /// INT once more, at this moment, and then patience: a kernel that was about to begin has not heard the first one.
    Again(Instant),
    /// TERM at this moment: INT was sent a grace period before.
    Term(Instant),
    /// KILL at this moment: TERM was sent a grace period before.
    Kill(Instant),
    /// Stop at this moment.
    Time(Instant, f64),
    /// Stop when the group uses more.
    Memory { limit: u64, next: Instant },
}

impl Task {
    /// What follows the signal by which a task was asked to stop.
    fn after(signal: Signal, at: Instant) -> Self {
        if signal == Signal::INT {
            Self::Term(at)
        } else {
            Self::Kill(at)
        }
    }

    fn due(&self) -> Instant {
        match *self {
            Self::Again(at) | Self::Term(at) | Self::Kill(at) | Self::Time(at, _) => at,
            Self::Memory { next, .. } => next,
        }
    }
}

impl Warden {
    /// A warden that gives jobs this long between TERM and KILL.
    pub(crate) fn new(grace: Duration) -> Self {
        Self {
            grace,
            sender: OnceLock::new(),
        }
    }

    /// Stops the task of this generation: TERM now (INT and then TERM for a call of an interpreter), KILL after the grace
    /// period. False when it is over already, or being stopped.
    pub(crate) fn stop(&self, running: &Arc<Running>, generation: u64, stop: Stop) -> bool {
        let aborted = stop == Stop::Aborted;
        let Some((signal, kernel)) = running.request(generation, stop) else {
            return false;
        };
        let now = Instant::now();
        let next = match kernel && aborted {
            true => Task::Again(now + AGAIN),
            false => Task::after(signal, now + self.grace),
        };
        self.watch(running, generation, next);
        true
    }

    /// Stops the task of this generation when it runs longer than `seconds`.
    pub(crate) fn limit_time(&self, running: &Arc<Running>, generation: u64, seconds: f64) {
        if let Some(at) = Duration::try_from_secs_f64(seconds)
            .ok()
            .and_then(|limit| Instant::now().checked_add(limit))
        {
            self.watch(running, generation, Task::Time(at, seconds));
        }
    }

    /// Stops the task of this generation when its process group uses more than `limit` bytes.
    pub(crate) fn limit_memory(&self, running: &Arc<Running>, generation: u64, limit: u64) {
        self.watch(
            running,
            generation,
            Task::Memory {
                limit,
                next: Instant::now() + SAMPLE / 5,
            },
        );
    }

    fn watch(&self, running: &Arc<Running>, generation: u64, task: Task) {
        let sender = self.sender.get_or_init(|| {
            let (sender, receiver) = unbounded::<Watch>();
            let grace = self.grace;
            spawn("warden", move || {
                let mut watches: Vec<Watch> = Vec::new();
                loop {
                    let wait = watches
                        .iter()
                        .map(|watch| watch.task.due().saturating_duration_since(Instant::now()))
                        .min()
                        .unwrap_or(Duration::from_secs(3600));
                    match receiver.recv_timeout(wait) {
                        Ok(watch) => watches.push(watch),
                        Err(RecvTimeoutError::Timeout) => {}
                        Err(RecvTimeoutError::Disconnected) => return,
                    }
                    let now = Instant::now();
                    watches.retain_mut(|watch| watch.task.due() > now || watch.act(now, grace));
                }
            })
            .expect("a thread for the warden");
            sender
        });
        let _ = sender.send(Watch {
            running: running.clone(),
            generation,
            task,
        });
    }
}

impl Watch {
    /// Does what is due; true when the watch goes on.
    fn act(&mut self, now: Instant, grace: Duration) -> bool {
        match &mut self.task {
            Task::Again(_) => {
                self.task = Task::Term(now + KERNEL);
                self.running.signal(self.generation, Signal::INT)
            }
            Task::Term(_) => {
                self.task = Task::Kill(now + grace);
                self.running.signal(self.generation, Signal::TERM)
            }
            Task::Kill(_) => {
                self.running.signal(self.generation, Signal::KILL);
                false
            }
            Task::Time(_, seconds) => {
                let stop = Stop::TimeLimit(*seconds);
                let Some((signal, _)) = self.running.request(self.generation, stop) else {
                    return false;
                };
                self.task = Task::after(signal, now + grace);
                true
            }
            Task::Memory { limit, next } => {
                let limit = *limit;
                let Some(group) = self.running.group(self.generation) else {
                    // Not spawned yet, or over.
                    *next = now + SAMPLE;
                    return self.running.generation() == Some(self.generation);
                };
                let used = memory::of_group(group);
                if used <= limit {
                    *next = now + SAMPLE;
                    return true;
                }
                // What grows this fast may take the machine with it: no grace.
                self.running
                    .request(self.generation, Stop::MemoryLimit { limit, used });
                self.running.signal(self.generation, Signal::KILL);
                false
            }
        }
    }
}
