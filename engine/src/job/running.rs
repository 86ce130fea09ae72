//! What one logical engine runs right now: the handle by which a task is stopped from another thread.

use std::{
    os::fd::OwnedFd,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

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

/// The place of one logical engine's running task. At most one task is in it.
#[derive(Debug, Default)]
pub(crate) struct Running {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// Counts tasks, so that a late signal never hits the next one.
    generation: u64,
    active: bool,
    group: Option<Pid>,
    /// How a call is interrupted that shares its group's first process with those before and after it.
    interrupt: Option<Interrupt>,
    stop: Option<Stop>,
    token: CancelToken,
}

/// A call in an interpreter that outlives it: SIGINT means the call whose number is in this memory, and no other.
#[derive(Debug, Clone)]
pub(crate) struct Interrupt {
    /// Where the interpreter looks.
    pub(crate) memory: Arc<OwnedFd>,
    /// The call.
    pub(crate) number: u64,
}

impl State {
    fn kill(&self, signal: Signal) -> bool {
        let Some(group) = self.group else { return true };
        if let (Some(interrupt), Signal::INT) = (&self.interrupt, signal) {
            let _ = rustix::io::pwrite(&interrupt.memory, &interrupt.number.to_le_bytes(), 0);
        }
        kill_process_group(group, signal).is_ok()
    }
}

impl Running {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A task starts; its generation and its token.
    pub(crate) fn begin(&self) -> (u64, CancelToken) {
        let mut state = self.state();
        state.generation += 1;
        state.active = true;
        state.group = None;
        state.interrupt = None;
        state.stop = None;
        if state.token.is_cancelled() {
            state.token = CancelToken::new();
        }
        (state.generation, state.token.clone())
    }

    /// The task's process group exists from now on. False when the task was already asked to stop: the caller
    /// then stops the group.
    pub(crate) fn set_group(&self, group: Pid) -> bool {
        let mut state = self.state();
        state.group = Some(group);
        state.stop.is_none()
    }

    /// The task is a call of this interpreter: it is asked to stop by SIGINT before TERM. False as for
    /// [`set_group`](Self::set_group).
    pub(crate) fn set_interpreter(&self, group: Pid, interrupt: Interrupt) -> bool {
        let mut state = self.state();
        state.group = Some(group);
        state.interrupt = Some(interrupt);
        state.stop.is_none()
    }

    /// Runs `reap` while no signal can be sent, and forgets the group: its number may be given to others now.
    pub(crate) fn reap<T>(&self, reap: impl FnOnce() -> T) -> T {
        let mut state = self.state();
        let reaped = reap();
        state.group = None;
        reaped
    }

    /// The task is over; why it was stopped, if it was.
    pub(crate) fn finish(&self) -> Option<Stop> {
        let mut state = self.state();
        state.active = false;
        state.group = None;
        state.stop.take()
    }

    /// Why the running task was asked to stop, if it was.
    pub(crate) fn stop_reason(&self) -> Option<Stop> {
        self.state().stop.clone()
    }

    /// The generation of the running task.
    pub(crate) fn generation(&self) -> Option<u64> {
        let state = self.state();
        state.active.then_some(state.generation)
    }

    /// Asks the task of this generation to stop: its token is cancelled, its group gets INT (a call of an interpreter) or
    /// TERM. `None` when it is over; else the signal.
    pub(crate) fn request(&self, generation: u64, stop: Stop) -> Option<Signal> {
        let mut state = self.state();
        if !state.active || state.generation != generation {
            return None;
        }
        state.stop.get_or_insert(stop);
        state.token.cancel();
        let signal = if state.interrupt.is_some() {
            Signal::INT
        } else {
            Signal::TERM
        };
        state.kill(signal);
        // A job that was stopped by a signal would never see another one.
        state.kill(Signal::CONT);
        Some(signal)
    }

    /// Sends a signal to the group of the task of this generation. False when there is none.
    pub(crate) fn signal(&self, generation: u64, signal: Signal) -> bool {
        let state = self.state();
        if !state.active || state.generation != generation {
            return false;
        }
        if matches!(signal, Signal::INT | Signal::TERM | Signal::KILL) {
            state.token.cancel();
        }
        state.kill(signal)
    }

    /// The group of the task of this generation.
    pub(crate) fn group(&self, generation: u64) -> Option<Pid> {
        let state = self.state();
        if state.active && state.generation == generation {
            state.group
        } else {
            None
        }
    }
}
