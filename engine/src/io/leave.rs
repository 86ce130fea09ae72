//! How engines leave: what is unstarted goes back, what runs is stopped, the scheduler and the hub are told.
//!
//! An engine asks the scheduler first (`leave_request`). The answer comes after all tasks that were sent to it, so what
//! it has given back by then is everything; its last word (`left_notice`) comes after all that it has given back. It stays
//! connected until that was heard: to close a connection on which something still comes resets it, and what was sent last
//! could be lost.

use std::{
    io::Read,
    sync::Arc,
    time::{Duration, Instant},
};

use ipbroker_protocol::{
    message::{LeaveReply, Leaving, types},
    session::{Empty, Session},
};
use serde::Serialize;
use serde_json::json;

use super::{Leave, Link, Server};
use crate::logical_engine::LogicalEngine;

/// How long a running task may take to end once it was told to.
const PATIENCE: Duration = Duration::from_millis(1500);

/// How long the scheduler's word is waited for: by an engine that is registered, and by one that may not be known yet.
const WORD: (Duration, Duration) = (Duration::from_millis(2500), Duration::from_millis(300));

/// How long the answer to the last word is waited for.
const HEARD: Duration = Duration::from_secs(1);

impl Server {
    /// The process got a signal: the first asks to leave, the second to leave at once.
    pub(super) fn signal(&mut self) {
        let mut bytes = [0; 16];
        let Ok(count) = self.signals.read(&mut bytes) else {
            return;
        };
        if count == 0 {
            return;
        }
        if std::mem::replace(&mut self.signalled, true) || count > 1 {
            tracing::warn!("a second signal: leaving at once");
            self.at_once = true;
            self.net.drop_unsent();
            self.present = 0;
            return;
        }
        self.leave("the engine got a signal to end");
    }

    /// The engines leave when none of them has had anything to do for too long.
    pub(super) fn leave_if_idle(&mut self, now: Instant) {
        let idle =
            |(link, engine): (&Link, &Arc<LogicalEngine>)| link.registered && engine.is_idle();
        let taken = self.engines.iter().map(|engine| engine.taken()).sum();
        let (since, before) = self.busy;
        if taken != before || !self.links.iter().zip(&self.engines).all(idle) {
            self.busy = (now, taken);
            return;
        }
        if let Some(limit) = self.settings.idle
            && now - since > limit
            && self.leaves.is_none()
        {
            self.leave(&format!("idle for {} s", limit.as_secs_f64()));
        }
    }

    /// All engines of the process leave.
    pub(super) fn leave(&mut self, why: &str) {
        if self.leaves.is_none() {
            tracing::info!("leaving: {why}");
            self.leaves = Some(why.to_owned());
        }
        for index in 0..self.engines.len() {
            self.leave_one(index, why, false);
        }
        self.finish_leaving(Instant::now());
    }

    /// One engine leaves; with `drain`, when what it runs has ended.
    pub(super) fn leave_one(&mut self, index: usize, why: &str, drain: bool) {
        let link = &mut self.links[index];
        if link.gone {
            return;
        }
        if let Some(leave) = &mut link.leaving {
            if leave.task.is_none() && !drain {
                leave.task = Some(Instant::now() + PATIENCE);
                self.stop(index, why);
            }
            return;
        }
        // What is given back must have been announced before.
        self.announce(index);
        let now = Instant::now();
        self.leaving += 1;
        let link = &mut self.links[index];
        let word = match link.registered {
            true => WORD.0,
            false => WORD.1,
        };
        link.leaving = Some(Leave {
            task: (!drain).then_some(now + PATIENCE),
            word: self.pulse.up.then_some(now + word),
            said: None,
            heard: false,
        });
        if self.pulse.up {
            // First of all, so that nothing comes back that is given back.
            self.tell_leaving(index, types::LEAVE_REQUEST, !drain);
        }
        if !drain {
            return self.stop(index, why);
        }
        tracing::info!(
            engine = self.engines[index].id(),
            "leaving when it has ended what it runs: {why}"
        );
        for returned in self.engines[index].drain() {
            self.return_unstarted(index, returned, why);
        }
    }

    fn stop(&mut self, index: usize, why: &str) {
        let engine = self.engines[index].clone();
        for returned in engine.close(&self.process.warden, why) {
            self.return_unstarted(index, returned, why);
        }
    }

    /// A controller to which an engine comes back, or another one, does not know that it is to end.
    pub(super) fn drain_again(&mut self, index: usize) {
        let leave = self.links[index].leaving.as_mut();
        if let Some(leave) = leave.filter(|leave| leave.drains()) {
            leave.word = Some(Instant::now() + WORD.0);
            self.tell_leaving(index, types::LEAVE_REQUEST, false);
        }
    }

    /// The scheduler has sent the last task to these engines, and heard the last word of those.
    pub(super) fn may_leave(&mut self, index: usize, session: &Session, content: &[u8]) {
        match session.unpack::<LeaveReply>(content) {
            Ok(reply) => {
                let uuid = &self.engines[index].uuid;
                if let Some(leave) = &mut self.links[index].leaving {
                    if reply.uuids.contains(uuid) {
                        leave.word = None;
                    }
                    leave.heard |= leave.said.is_some() && reply.left.contains(uuid);
                }
            }
            Err(error) => self.junk.refuse("leave_reply", &error),
        }
    }

    fn tell_leaving(&mut self, index: usize, msg_type: &str, stops: bool) {
        let uuid = self.engines[index].uuid.clone();
        self.tell_scheduler(index, msg_type, &Leaving { uuid, stops });
    }

    /// Sends the scheduler a message beside the replies, behind them.
    pub(super) fn tell_scheduler(
        &mut self,
        index: usize,
        msg_type: &str,
        content: &impl Serialize,
    ) {
        let message =
            self.engines[index].to_scheduler(msg_type, None, &Empty {}, content, Vec::new());
        self.send(message);
    }

    /// Unregisters those whose task has ended, or would not.
    pub(super) fn finish_leaving(&mut self, now: Instant) {
        let mut unheard = 0;
        for index in 0..self.engines.len() {
            let Some(leave) = self.links[index]
                .leaving
                .filter(|_| !self.links[index].gone)
            else {
                continue;
            };
            if let Some(until) = leave.said {
                if self.pulse.up && !leave.heard {
                    if now < until {
                        continue;
                    }
                    unheard += 1;
                }
            } else {
                let late = leave.task.is_some_and(|until| now >= until);
                let ends = self.engines[index].is_idle() || late;
                let has_word = !self.pulse.up || leave.word.is_none_or(|until| now >= until);
                // What it has ended while the controller was away is for the one that comes back.
                let away = leave.drains() && !self.links[index].registered;
                if !ends || !has_word || away {
                    continue;
                }
                // The last reply may still be in the outbox.
                self.flush();
                if self.pulse.up {
                    self.tell_leaving(index, types::LEFT_NOTICE, false);
                    self.links[index].leaving = Some(Leave {
                        said: Some(now + HEARD),
                        ..leave
                    });
                    continue;
                }
            }
            self.net.leave_scheduler(index);
            let message = self.engines[index].session().request(
                types::UNREGISTRATION_REQUEST,
                &json!({"id": self.links[index].id, "uuid": self.engines[index].uuid}),
            );
            if self.links[index].id.is_some() {
                self.tell_hub(index, message);
                tracing::info!(engine = self.engines[index].id(), "left");
            }
            self.links[index].gone = true;
            self.leaving -= 1;
            self.present -= 1;
        }
        if unheard > 0 {
            tracing::warn!(
                engines = unheard,
                "the scheduler has not answered their last words"
            );
        }
    }
}
