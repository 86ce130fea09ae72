//! Timers: timeouts, preferences, aborts and engines that do not answer.

use std::collections::BTreeSet;

use super::Core;
use super::group::Stage;
use super::id::NONE;
use super::types::{FailKind, Nanos, RETRY_DELAY_MOST};

/// What is due. Removed when it is not wanted any more, so that there are never more than tasks and engines.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Timer {
    /// A group has waited long enough.
    Timeout(u32),
    /// A group has waited long enough for a preferred engine.
    Prefer(u32),
    /// A group that failed has waited for its retry.
    Retry(u32),
    /// The engines of a killed group have had their time.
    Abort(u32),
    /// An engine from before the restart did not come back.
    Absent(u32),
    /// An engine stays too short for some tasks from now on. One that has left meanwhile is in no pool.
    Ends(u32),
}

/// Takes a timer back that runs out at that moment; 0: it does not run.
pub(super) fn disarm(timers: &mut BTreeSet<(Nanos, Timer)>, at: &mut Nanos, timer: Timer) {
    match std::mem::take(at) {
        0 => {}
        at => drop(timers.remove(&(at, timer))),
    }
}

impl Core {
    /// Time passes.
    pub fn tick(&mut self, now: Nanos) {
        self.now = now;
        // Before anything that is due gives out tasks.
        let due = self.timers.iter().take_while(|(at, _)| *at <= now);
        let ending = due.filter_map(|(_, timer)| match timer {
            Timer::Ends(slot) => Some(*slot),
            _ => None,
        });
        for slot in ending.collect::<Vec<_>>() {
            self.leave_pools(slot);
        }
        // Of the class of the last task that waited too long: others of it are told the same.
        let mut asked = (NONE, String::new());
        while let Some(&(at, timer)) = self.timers.first()
            && at <= now
        {
            self.timers.pop_first();
            match timer {
                Timer::Timeout(index) => {
                    let extra = self.groups[index].extra_mut();
                    extra.timeout_at = 0;
                    let seconds = extra.timeout as f64 / 1e9;
                    let group = &self.groups[index];
                    let (class, blocked) = (group.class, group.stage == Stage::Blocked);
                    if asked.0 != class && !blocked {
                        let words = self.asks_too_much(class);
                        asked = (
                            class,
                            words.map(|words| format!(". {words}")).unwrap_or_default(),
                        );
                    }
                    let why = if asked.0 == class { &asked.1 } else { "" };
                    let text = format!("it waited longer than its timeout of {seconds} s{why}");
                    self.fail_waiting(index, FailKind::TaskTimeout, &text);
                }
                Timer::Prefer(index) => {
                    self.groups[index].extra_mut().prefer_at = 0;
                    self.drop_preference(index);
                    self.decide(index);
                }
                Timer::Retry(index) => {
                    self.groups[index].extra_mut().retry_at = 0;
                    self.arm_timeout(at, index);
                    self.decide(index);
                }
                Timer::Abort(index) => {
                    self.groups[index].extra_mut().abort_at = 0;
                    self.abort_overdue(index);
                }
                Timer::Absent(slot) => {
                    self.engines[slot as usize].absent_at = 0;
                    let reason = "it did not come back after the controller restarted";
                    self.remove_engine(slot, None, reason);
                }
                Timer::Ends(_) => {}
            }
            self.settle();
        }
        if self.recall_at.is_some_and(|at| at <= now) {
            self.recall();
        }
    }

    /// When `tick` is due next.
    pub fn next_wakeup(&self) -> Option<Nanos> {
        let timer = self.timers.first().map(|(at, _)| *at);
        match (timer, self.recall_at) {
            (Some(a), Some(b)) => Some(a.min(b)),
            (a, b) => a.or(b),
        }
    }

    /// A group that has failed waits for its next retry, if it is to.
    pub(super) fn delay_retry(&mut self, index: u32) {
        let Some(extra) = &mut self.groups[index].extra else {
            return;
        };
        if extra.retry_delay > 0 {
            extra.retry_at = self.now.saturating_add(extra.retry_delay);
            extra.retry_delay = (2 * extra.retry_delay).min(RETRY_DELAY_MOST);
            self.timers.insert((extra.retry_at, Timer::Retry(index)));
        }
    }

    /// The group failed, and is not to run yet.
    pub(super) fn is_delayed(&self, index: u32) -> bool {
        let extra = self.groups[index].extra.as_ref();
        extra.is_some_and(|extra| extra.retry_at > 0)
    }

    /// The group begins to wait for an engine, or for other tasks.
    pub(super) fn arm_timeout(&mut self, now: Nanos, index: u32) {
        let Some(extra) = &mut self.groups[index].extra else {
            return;
        };
        if extra.timeout > 0 && extra.timeout_at == 0 && extra.retry_at == 0 {
            extra.timeout_at = now.saturating_add(extra.timeout);
            self.timers
                .insert((extra.timeout_at, Timer::Timeout(index)));
        }
    }

    /// Nothing of the group waits any more.
    pub(super) fn stop_waiting(&mut self, index: u32) {
        let Some(extra) = &mut self.groups[index].extra else {
            return;
        };
        disarm(
            &mut self.timers,
            &mut extra.timeout_at,
            Timer::Timeout(index),
        );
        disarm(&mut self.timers, &mut extra.retry_at, Timer::Retry(index));
        self.drop_preference(index);
    }

    /// The group waits for preferred engines no longer.
    pub(super) fn drop_preference(&mut self, index: u32) {
        let Some(extra) = &mut self.groups[index].extra else {
            return;
        };
        disarm(&mut self.timers, &mut extra.prefer_at, Timer::Prefer(index));
        let preferred = std::mem::replace(&mut extra.preferred, NONE);
        if preferred != NONE {
            self.release_class(preferred);
        }
    }

    /// The class in which a group that may run waits: that of its preferred engines, for a while.
    pub(super) fn preferred_class(&mut self, index: u32, base: u32) -> u32 {
        let Some(extra) = &self.groups[index].extra else {
            return base;
        };
        let (preferred, wait, at) = (extra.preferred, extra.prefer_wait, extra.prefer_at);
        if preferred == NONE {
            return base;
        }
        if at > 0 {
            return preferred;
        }
        let there = !self.pool_engines(preferred).is_empty();
        if there && (wait > 0 || self.choose(preferred, None).is_some()) {
            let at = self.now.saturating_add(wait).max(1);
            self.groups[index].extra_mut().prefer_at = at;
            self.timers.insert((at, Timer::Prefer(index)));
            return preferred;
        }
        self.drop_preference(index);
        base
    }

    pub(super) fn stop_abort_timer(&mut self, index: u32) {
        if let Some(extra) = &mut self.groups[index].extra {
            disarm(&mut self.timers, &mut extra.abort_at, Timer::Abort(index));
        }
    }

    pub(super) fn arm_abort(&mut self, index: u32) {
        let at = self.now.saturating_add(self.config.abort_limit).max(1);
        self.stop_abort_timer(index);
        self.groups[index].extra_mut().abort_at = at;
        self.timers.insert((at, Timer::Abort(index)));
    }
}
