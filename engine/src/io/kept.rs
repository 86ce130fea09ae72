//! Replies that are kept until the controller has them safely.

use std::collections::HashMap;

use ipbroker_protocol::{
    message::{Acked, Held},
    zmq::Message,
};

/// Replies by their task; a task of an array has several.
#[derive(Debug, Default)]
pub(super) struct Kept {
    replies: HashMap<String, Vec<Reply>>,
    bytes: usize,
}

#[derive(Debug)]
struct Reply {
    lo: u64,
    hi: u64,
    frames: Vec<Vec<u8>>,
}

impl Kept {
    /// Keeps a copy.
    pub(super) fn keep(&mut self, task: &Held, frames: &[Message]) {
        let (id, lo, hi) = task;
        let frames: Vec<Vec<u8>> = frames.iter().map(|frame| frame.to_vec()).collect();
        self.bytes += frames.iter().map(Vec::len).sum::<usize>();
        self.replies.entry(id.clone()).or_default().push(Reply {
            lo: *lo,
            hi: *hi,
            frames,
        });
    }

    /// These are safe now.
    pub(super) fn acknowledged(&mut self, acked: &Acked) {
        let mut gone = 0;
        let mut size = |replies: &[Reply]| {
            gone += replies
                .iter()
                .flat_map(|reply| &reply.frames)
                .map(Vec::len)
                .sum::<usize>()
        };
        for id in &acked.msg_ids {
            if let Some(replies) = self.replies.remove(id) {
                size(&replies);
            }
        }
        for (id, lo, hi) in &acked.ranges {
            let Some(replies) = self.replies.get_mut(id) else {
                continue;
            };
            let (safe, open): (Vec<_>, Vec<_>) = std::mem::take(replies)
                .into_iter()
                .partition(|reply| *lo <= reply.lo && reply.hi <= *hi);
            size(&safe);
            *replies = open;
            if replies.is_empty() {
                self.replies.remove(id);
            }
        }
        self.bytes -= gone;
    }

    /// What is kept, as holdings name it.
    pub(super) fn held(&self) -> Vec<Held> {
        self.replies
            .iter()
            .flat_map(|(id, replies)| replies.iter().map(|reply| (id.clone(), reply.lo, reply.hi)))
            .collect()
    }

    /// Copies of all replies, to be sent again.
    pub(super) fn copies(&self) -> impl Iterator<Item = Vec<Message>> {
        self.replies.values().flatten().map(|reply| {
            reply
                .frames
                .iter()
                .map(|frame| Message::from(&frame[..]))
                .collect()
        })
    }

    /// Forgets all.
    pub(super) fn clear(&mut self) {
        self.replies.clear();
        self.bytes = 0;
    }

    /// Bytes that are kept.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn acknowledged_replies_are_forgotten() {
        let mut kept = Kept::default();
        let frames = || ["ab", "c"].map(Message::from);
        for held in [("a", 0, 1), ("m", 0, 5), ("m", 5, 9), ("m", 9, 12)] {
            kept.keep(&(held.0.into(), held.1, held.2), &frames());
        }
        assert_eq!((kept.bytes(), kept.copies().count()), (12, 4));
        kept.acknowledged(&Acked {
            msg_ids: vec!["a".into(), "z".into()],
            ranges: vec![("m".into(), 0, 9)],
        });
        assert_eq!((kept.held(), kept.bytes()), (vec![("m".into(), 9, 12)], 3));
        kept.acknowledged(&Acked {
            msg_ids: vec!["m".into()],
            ranges: vec![],
        });
        assert_eq!((kept.held().len(), kept.bytes()), (0, 0));
    }
}
