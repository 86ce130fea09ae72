//! What one logical engine runs right now: the handle by which a task is stopped from another thread.

use std::{
    os::fd::OwnedFd,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use parking_lot::Mutex;
use rustix::process::{Pid, Signal, kill_process_group};

use crate::cancel::CancelToken;

/// Why a running task was made to stop.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Stop {
    /// Its client aborted it.
    Aborted,
    /// It ran longer than its `limit.time` (seconds).
    TimeLimit(f64),
    /// Its process group used more memory than its `limit.memory` (bytes).
    MemoryLimit {
        /// What was allowed.
        limit: u64,
        /// What was seen.
        used: u64,
    },
    /// The engine is leaving.
    EngineLeaves(String),
}

/// The place of one logical engine's running task, and of those whose calls wait until it has ended.
#[derive(Debug, Default)]
pub(crate) struct Running {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// Counts tasks, so that a late signal never hits the next one.
    count: u64,
    /// The last one runs; a call that waits is below those that are worked on meanwhile.
    at_work: Vec<Work>,
}

#[derive(Debug)]
struct Work {
    generation: u64,
    group: Option<Pid>,
    /// How a call is interrupted that shares its group's first process with those before and after it.
    interrupt: Option<Interrupt>,
    stop: Option<Stop>,
    /// Its group has got the signal that asks it to stop.
    told: bool,
    token: CancelToken,
}

/// How what outlives a task is asked to stop it.
#[derive(Debug)]
pub(crate) enum Interrupt {
    /// A call in an interpreter: SIGINT means the call whose number is in this memory, and no other.
    Call {
        /// Where the interpreter looks.
        memory: Arc<OwnedFd>,
        /// Whether a signal may be sent: an interpreter that starts looks into the memory before its first call.
        ready: Arc<AtomicBool>,
        /// The call.
        number: u64,
    },
    /// What a kernel runs: SIGINT, or what it takes instead.
    Kernel(Option<Ask>),
}

/// Asks for an interrupt.
pub(crate) struct Ask(pub(crate) Box<dyn Fn() + Send>);

impl std::fmt::Debug for Ask {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Ask")
    }
}

impl Work {
    fn kill(&self, signal: Signal) -> bool {
        let Some(group) = self.group else { return true };
        match (&self.interrupt, signal) {
            (
                Some(Interrupt::Call {
                    memory,
                    ready,
                    number,
                }),
                Signal::INT,
            ) => {
                let _ = rustix::io::pwrite(memory, &number.to_le_bytes(), 0);
                if !ready.load(Ordering::SeqCst) {
                    return true;
                }
            }
            (Some(Interrupt::Kernel(Some(Ask(ask)))), Signal::INT) => {
                ask();
                return true;
            }
            _ => {}
        }
        kill_process_group(group, signal).is_ok()
    }
}

impl State {
    /// The task of this generation, and whether it is the one that runs.
    fn find(&mut self, generation: u64) -> Option<(&mut Work, bool)> {
        let last = self.at_work.len().checked_sub(1)?;
        let at = self
            .at_work
            .iter()
            .position(|work| work.generation == generation)?;
        Some((&mut self.at_work[at], at == last))
    }
}

impl Running {
    /// A task starts; its generation and its token.
    pub(crate) fn begin(&self) -> (u64, CancelToken) {
        let mut state = self.state.lock();
        state.count += 1;
        let work = Work {
            generation: state.count,
            group: None,
            interrupt: None,
            stop: None,
            told: false,
            token: CancelToken::new(),
        };
        let begun = (work.generation, work.token.clone());
        state.at_work.push(work);
        begun
    }

    /// The task's process group exists from now on. False when the task was already asked to stop: the caller
    /// then stops the group.
    pub(crate) fn set_group(&self, group: Pid) -> bool {
        let mut state = self.state.lock();
        state.at_work.last_mut().is_none_or(|work| {
            work.group = Some(group);
            work.stop.is_none()
        })
    }

    /// The task is done by this interpreter or kernel: it is asked to stop by an interrupt before TERM. False as for
    /// [`set_group`](Self::set_group).
    pub(crate) fn set_interpreter(&self, group: Pid, interrupt: Interrupt) -> bool {
        if let Some(work) = self.state.lock().at_work.last_mut() {
            work.interrupt = Some(interrupt);
        }
        self.set_group(group)
    }

    /// Runs `reap` while no signal can be sent, and forgets the group: its number may be given to others now.
    pub(crate) fn reap<T>(&self, reap: impl FnOnce() -> T) -> T {
        let mut state = self.state.lock();
        let reaped = reap();
        let group = state.at_work.last().and_then(|work| work.group);
        for work in &mut state.at_work {
            if work.group == group {
                work.group = None;
            }
        }
        reaped
    }

    /// The task is over; why it was stopped, if it was.
    pub(crate) fn finish(&self) -> Option<Stop> {
        self.state.lock().at_work.pop()?.stop
    }

    /// Why the running task was asked to stop, if it was.
    pub(crate) fn stop_reason(&self) -> Option<Stop> {
        self.state.lock().at_work.last()?.stop.clone()
    }

    /// The generation of the running task.
    pub(crate) fn generation(&self) -> Option<u64> {
        Some(self.state.lock().at_work.last()?.generation)
    }

    /// The generations of the running task and of those that wait for it.
    pub(crate) fn generations(&self) -> Vec<u64> {
        let state = self.state.lock();
        state.at_work.iter().map(|work| work.generation).collect()
    }

    /// Asks the task of this generation to stop: its token is cancelled, its group gets INT (a call of an interpreter) or
    /// TERM. `None` when it is over, or has got it before; else the signal, and whether it goes to a kernel, whose state is
    /// worth some patience.
    pub(crate) fn request(&self, generation: u64, stop: Stop) -> Option<(Signal, bool)> {
        let mut state = self.state.lock();
        let (work, _) = state.find(generation)?;
        work.stop.get_or_insert(stop);
        work.token.cancel();
        if std::mem::replace(&mut work.told, work.group.is_some()) {
            // A second signal would hit what cleans up after the first.
            return None;
        }
        let signal = if work.interrupt.is_some() {
            Signal::INT
        } else {
            Signal::TERM
        };
        work.kill(signal);
        // A job that was stopped by a signal would never see another one.
        work.kill(Signal::CONT);
        Some((signal, matches!(work.interrupt, Some(Interrupt::Kernel(_)))))
    }

    /// Sends a signal to the group of the task of this generation. False when there is none. What would end the group does
    /// not reach a call that waits: others run in its interpreter.
    pub(crate) fn signal(&self, generation: u64, signal: Signal) -> bool {
        let mut state = self.state.lock();
        let Some((work, runs)) = state.find(generation) else {
            return false;
        };
        if matches!(signal, Signal::INT | Signal::TERM | Signal::KILL) {
            work.token.cancel();
        }
        if !runs && signal != Signal::INT {
            return true;
        }
        work.kill(signal)
    }

    /// The group of the task of this generation.
    pub(crate) fn group(&self, generation: u64) -> Option<Pid> {
        self.state.lock().find(generation)?.0.group
    }
}
