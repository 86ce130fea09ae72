//! The frames of tasks that are not finished, beside the core, by its keys.

use std::sync::Arc;

use ipbroker_protocol::{
    array::member_id,
    frames::{Frames, slices},
    value::Map,
    zmq::Message,
};

use super::frames::at;
use crate::scheduler::core::GroupKey;

/// One submission.
pub(super) struct Group {
    /// Its key in the store.
    pub(super) key: u64,
    /// Its client's identity; empty: nobody waits for the reply.
    pub(super) client: Arc<[u8]>,
    /// Its id.
    pub(super) msg_id: Box<str>,
    /// Type of the reply, for those that the controller makes.
    pub(super) reply_type: &'static str,
    /// Its members.
    pub(super) count: u32,
    /// It is an array, if only of one member.
    pub(super) is_array: bool,
    /// Members without a final outcome.
    pub(super) remaining: u32,
    /// The client acknowledges results.
    pub(super) ack: bool,
    /// It came in a bundle: its client understands them.
    pub(super) bundled: bool,
    /// Its row in what those who watch are told.
    pub(super) row: usize,
    /// Keep a copy of what is dispatched: it may be needed again.
    pub(super) copy: bool,
    /// What the last engine said that lacked something for it.
    pub(super) lacked: Option<Box<str>>,
    /// Where it would rather run.
    pub(super) prefer: Box<[String]>,
    /// The message.
    pub(super) body: Body,
}

impl Group {
    /// Whether its message can be sent (again): one that went without a copy cannot.
    pub(super) fn can_be_sent(&self) -> bool {
        !matches!(self.body, Body::Gone(_))
    }

    /// The id of a member, or of the task that it is.
    pub(super) fn id_of(&self, index: u32) -> String {
        match self.is_array {
            true => member_id(&self.msg_id, u64::from(index)),
            false => self.msg_id.to_string(),
        }
    }

    /// The message from the client's identity on, if it is here.
    pub(super) fn frames(&self) -> Vec<&[u8]> {
        match &self.body {
            Body::Whole(frames) => frames.slices(),
            Body::Array(frames, _) => slices(frames),
            Body::Gone(_) => Vec::new(),
        }
    }

    /// The packed header, for replies of the controller's own.
    pub(super) fn header(&self) -> &[u8] {
        match &self.body {
            Body::Whole(frames) => &frames[at::HEADER],
            Body::Array(frames, _) => &frames[at::HEADER],
            Body::Gone(header) => header,
        }
    }
}

/// Where the message is.
pub(super) enum Body {
    /// From the client's identity on; perhaps a copy of what an engine has.
    Whole(Frames),
    /// An array: the message, and its metadata unpacked.
    Array(Vec<Message>, Map),
    /// On an engine, without a copy: only the header is left.
    Gone(Box<[u8]>),
}

/// All of them.
#[derive(Default)]
pub(super) struct Groups {
    slots: Vec<Option<Group>>,
    count: usize,
}

impl Groups {
    pub(super) fn insert(&mut self, key: GroupKey, group: Group) {
        let index = key.index();
        if index >= self.slots.len() {
            self.slots.resize_with(index + 1, || None);
        }
        if self.slots[index].replace(group).is_none() {
            self.count += 1;
        }
    }

    /// How many there are.
    pub(super) fn len(&self) -> usize {
        self.count
    }

    pub(super) fn get(&self, key: GroupKey) -> Option<&Group> {
        self.slots.get(key.index())?.as_ref()
    }

    pub(super) fn get_mut(&mut self, key: GroupKey) -> Option<&mut Group> {
        self.slots.get_mut(key.index())?.as_mut()
    }

    pub(super) fn remove(&mut self, key: GroupKey) -> Option<Group> {
        let group = self.slots.get_mut(key.index())?.take()?;
        self.count -= 1;
        Some(group)
    }
}
