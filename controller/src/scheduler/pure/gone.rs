//! Engines that are gone, and what the clients of their tasks are told.

use std::time::{Duration, Instant};

use ipbroker_protocol::{message::ErrorContent, zmq};
use serde_json::json;

use super::Pure;
use crate::scheduler::{command::Departure, task::reply_type};

/// How long what an engine has sent before it died may take to come.
const DYING: Duration = Duration::from_millis(250);

/// Why tasks are lost with an engine that said goodbye.
pub(super) const LEFT: &str = "the engine left";

/// Engines that are remembered as gone.
const GONE: usize = 4096;

impl Pure {
    /// The hub has taken an engine off its books.
    pub(super) fn departed(&mut self, uuid: String, departure: Departure) -> zmq::Result<()> {
        // It may have asked to leave, and said that it has.
        self.catch_up()?;
        match departure {
            Departure::Clean if self.leaves.contains(&uuid) => {
                // Its connection ends; until then nothing is sent.
            }
            Departure::Died { reason, .. } => {
                self.leaves.forget(&uuid);
                self.dying.push_back((Instant::now() + DYING, uuid, reason));
            }
            Departure::Clean => self.engine_left(&uuid, LEFT),
            Departure::Silent => {
                self.leaves.forget(&uuid);
                self.engine_left(&uuid, "its heartbeat stopped");
            }
        }
        Ok(())
    }

    /// Tells the clients of engines that have died, once all that these have answered is passed on.
    pub(super) fn bury(&mut self) -> zmq::Result<()> {
        while self
            .dying
            .front()
            .is_some_and(|(due, ..)| *due <= Instant::now())
            && let Some((_, uuid, reason)) = self.dying.pop_front()
        {
            self.catch_up()?;
            self.engine_left(&uuid, &reason);
        }
        Ok(())
    }

    /// What the engine had announced and not answered is lost, and its clients are told.
    pub(super) fn engine_left(&mut self, uuid: &str, why: &str) {
        let known = self.known.remove(uuid);
        if known.is_none_or(|known| known.ours) {
            if self.gone.len() >= GONE {
                self.gone.clear();
            }
            self.gone.insert(uuid.to_owned());
        }
        let content = ErrorContent::new(
            "EngineError",
            format!("engine {uuid} is gone while it had this task: {why}"),
        );
        for task in self.books.lost(uuid) {
            let reply_type = reply_type(&task.msg_type);
            let parent = json!({"msg_id": task.msg_id, "msg_type": task.msg_type});
            let parent = self.session.pack(&parent);
            if task.open.is_empty() {
                self.answer(&task.client, &parent, reply_type, &content, None);
            }
            for open in task.open {
                self.answer(&task.client, &parent, reply_type, &content, Some(open));
            }
        }
    }
}
