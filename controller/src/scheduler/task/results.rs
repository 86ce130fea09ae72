//! Acknowledgements of submissions, and replies kept until the client has them.

use std::collections::VecDeque;

use foldhash::{HashMap, HashMapExt};
use ipbroker_protocol::{
    frames::{Frames, Packed},
    message::{Acked, SubmitAck, types},
    zmq::Message,
};

use super::Scheduler;
use crate::store::Position;

/// Acknowledgements that wait for the journal.
#[derive(Default)]
pub(super) struct Acks {
    waiting: VecDeque<Ack>,
    /// How many at the end have no position yet.
    fresh: usize,
}

struct Ack {
    client: Box<[u8]>,
    msg_id: Box<str>,
    duplicate: bool,
    position: Position,
}

impl Acks {
    pub(super) fn add(&mut self, client: &[u8], msg_id: &str, duplicate: bool) {
        self.waiting.push_back(Ack {
            client: client.into(),
            msg_id: msg_id.into(),
            duplicate,
            position: Position::default(),
        });
        self.fresh += 1;
    }

    pub(super) fn waiting(&self) -> bool {
        self.fresh > 0
    }

    fn written(&mut self, position: Position) {
        let old = self.waiting.len() - self.fresh;
        for ack in self.waiting.iter_mut().skip(old) {
            ack.position = position;
        }
        self.fresh = 0;
    }

    fn take(&mut self, durable: Position) -> HashMap<Box<[u8]>, SubmitAck> {
        let mut by_client: HashMap<Box<[u8]>, SubmitAck> = HashMap::new();
        let safe = self.waiting.partition_point(|ack| ack.position <= durable);
        for ack in self.waiting.drain(..safe) {
            let told = by_client.entry(ack.client).or_default();
            if ack.duplicate {
                told.duplicate.push(ack.msg_id.to_string());
            }
            told.msg_ids.push(ack.msg_id.into());
        }
        by_client
    }
}

impl Scheduler {
    /// The batch is written up to `position`: tells clients what is safe by now.
    pub(super) fn release_acks(&mut self, position: Position) {
        self.acks.written(position);
        if self.acks.waiting.is_empty() {
            return;
        }
        for (client, ack) in self.acks.take(self.journal.durable()) {
            let message = self.session.request(types::SUBMIT_ACK, &ack);
            self.tell_client(&client, message);
        }
    }
}

/// Without a store, replies of clients that acknowledge are kept here until they do.
#[derive(Default)]
pub(super) struct Kept {
    clients: HashMap<Box<[u8]>, Replies>,
    bytes: usize,
    told: bool,
}

/// By task.
type Replies = HashMap<Box<str>, Vec<Reply>>;

struct Reply {
    range: (u64, u64),
    frames: Packed,
}

/// Bytes of replies that are kept for all clients.
const BOUND: usize = 1 << 30;

impl Kept {
    pub(super) fn keep(&mut self, client: &[u8], msg_id: &str, range: (u64, u64), frames: &Frames) {
        let frames = frames.packed();
        if self.bytes + frames.bytes() > BOUND {
            if !std::mem::replace(&mut self.told, true) {
                tracing::warn!(
                    "clients leave more than {} MiB of replies unacknowledged: further ones are not kept for them",
                    BOUND >> 20
                );
            }
            return;
        }
        self.bytes += frames.bytes();
        let replies = self.clients.entry(client.into()).or_default();
        let replies = replies.entry(msg_id.into()).or_default();
        replies.push(Reply { range, frames });
    }

    pub(super) fn forget(&mut self, client: &[u8], acked: &Acked) {
        let Some(replies) = self.clients.get_mut(client) else {
            return;
        };
        for msg_id in &acked.msg_ids {
            for reply in replies.remove(&**msg_id).unwrap_or_default() {
                self.bytes -= reply.frames.bytes();
            }
        }
        for (msg_id, lo, hi) in &acked.ranges {
            let Some(kept) = replies.get_mut(&**msg_id) else {
                continue;
            };
            kept.retain(|reply| {
                let acked = *lo <= reply.range.0 && reply.range.1 <= *hi;
                if acked {
                    self.bytes -= reply.frames.bytes();
                }
                !acked
            });
            if kept.is_empty() {
                replies.remove(&**msg_id);
            }
        }
        if replies.is_empty() {
            self.clients.remove(client);
        }
    }

    /// A client is gone for good.
    pub(super) fn forget_client(&mut self, client: &[u8]) {
        for reply in self
            .clients
            .remove(client)
            .into_iter()
            .flat_map(HashMap::into_values)
            .flatten()
        {
            self.bytes -= reply.frames.bytes();
        }
    }

    /// The replies of a task that its client does not have.
    pub(super) fn replies(
        &self,
        client: &[u8],
        msg_id: &str,
        received: &[(u64, u64)],
    ) -> Vec<Vec<Message>> {
        let Some(replies) = self
            .clients
            .get(client)
            .and_then(|replies| replies.get(msg_id))
        else {
            return Vec::new();
        };
        let has = |range: (u64, u64)| {
            received
                .iter()
                .any(|(lo, hi)| *lo <= range.0 && range.1 <= *hi)
        };
        replies
            .iter()
            .filter(|reply| !has(reply.range))
            .map(|reply| reply.frames.messages())
            .collect()
    }
}
