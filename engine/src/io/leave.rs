//! How engines leave: what is unstarted goes back, what runs is stopped, the hub is told.

use std::{
    io::Read,
    time::{Duration, Instant},
};

use ipbroker_protocol::message::types;
use serde_json::json;

use super::Server;

/// How long a running task may take to end once it was told to.
const PATIENCE: Duration = Duration::from_millis(1500);

/// How long an engine of a pure cluster sends back what still comes.
const BOUNCE: Duration = Duration::from_millis(300);

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
            self.links.iter_mut().for_each(|link| link.gone = true);
            return;
        }
        self.leave("the engine got a signal to end");
    }

    /// All engines of the process leave.
    pub(super) fn leave(&mut self, why: &str) {
        if self.leaves.is_none() {
            tracing::info!("leaving: {why}");
            self.leaves = Some(why.to_owned());
        }
        for seat in 0..self.seats.len() {
            self.leave_one(seat, why);
        }
        self.finish_leaving(Instant::now());
    }

    /// One engine leaves.
    pub(super) fn leave_one(&mut self, seat: usize, why: &str) {
        let link = &mut self.links[seat];
        if link.gone || link.leaving.is_some() {
            return;
        }
        link.leaving = Some(Instant::now() + PATIENCE);
        let engine = self.seats[seat].clone();
        for returned in engine.close(&self.process.warden, why) {
            self.return_unstarted(seat, returned, why);
        }
    }

    /// Unregisters those whose task has ended, or would not.
    pub(super) fn finish_leaving(&mut self, now: Instant) {
        for seat in 0..self.seats.len() {
            let Some(deadline) = self.links[seat].leaving.filter(|_| !self.links[seat].gone) else {
                continue;
            };
            if !self.seats[seat].is_idle() && now < deadline {
                continue;
            }
            // A DEALER goes on sending to whoever is connected: stay until what comes meanwhile has gone back, too.
            if self.links[seat].pure && now + PATIENCE < deadline + BOUNCE {
                continue;
            }
            // The last reply may still be in the outbox.
            self.flush();
            let message = self.seats[seat].session().request(
                types::UNREGISTRATION_REQUEST,
                &json!({"id": self.links[seat].id, "uuid": self.seats[seat].uuid}),
            );
            if self.links[seat].id.is_some() {
                self.tell_hub(seat, message);
            }
            tracing::info!(engine = self.seats[seat].id(), "left");
            self.links[seat].gone = true;
        }
    }
}
