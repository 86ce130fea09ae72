//! What clients send: judged, acknowledged or refused; and the answers that this relay gives of its own.

use std::ops::Range;

use ipbroker_protocol::{
    array::View,
    envelope::DELIMITER,
    message::{ErrorContent, HeaderRef, TaskMetadata, types},
    zmq::Message,
};
use serde_json::json;

use super::Pure;
use crate::scheduler::task::{frames::at, reply_type};

/// What becomes of a client's message.
pub(super) enum Verdict {
    Pass,
    Array(u32),
    Refuse(String),
    Swallow,
}

impl Pure {
    /// Looks at the metadata, and at nothing else if it has been seen before.
    pub(super) fn judge(&mut self, frames: &[Message]) -> Verdict {
        let shaped = frames.len() >= at::BUFFERS && frames[1][..] == *DELIMITER;
        if !shaped {
            self.junk
                .refuse("not a message", &format_args!("{} frames", frames.len()));
            return Verdict::Swallow;
        }
        if frames[at::METADATA][..] == *self.good && !self.good.is_empty() {
            if self.good_acks {
                self.note_ack(frames);
            }
            return Verdict::Pass;
        }
        let packer = self.session.packer;
        let maps = [
            &frames[at::HEADER][..],
            &frames[at::PARENT],
            &frames[at::METADATA],
            &frames[at::CONTENT],
        ];
        if let Err(error) = self.session.signer().verify(&frames[at::SIGNATURE], maps) {
            self.junk.refuse("signature", &error);
            return Verdict::Swallow;
        }
        let header = match HeaderRef::read(packer, &frames[at::HEADER]) {
            Ok(header) => header,
            Err(error) => {
                self.junk.refuse("header", &error);
                return Verdict::Swallow;
            }
        };
        match &*header.msg_type {
            // Nothing is kept here, so there is nothing to forget and nothing to resume.
            types::RESULT_ACK => return Verdict::Swallow,
            types::RESUME_REQUEST => return Verdict::Swallow,
            _ => {}
        }
        let metadata: TaskMetadata = match packer.unpack_map(&frames[at::METADATA]) {
            Ok(metadata) => metadata,
            Err(error) => return Verdict::Refuse(format!("metadata: {error}")),
        };
        if let Some(lacking) = lacking(&metadata) {
            return Verdict::Refuse(format!(
                "{lacking} cannot be honoured by a controller that runs --scheme=pure; start it with another scheme, e.g. --scheme=leastload"
            ));
        }
        let acks = metadata.ack == Some(true);
        if acks {
            self.note_ack(frames);
        }
        match metadata.array {
            Some(count) => match u32::try_from(count) {
                Ok(count) if count > 0 => match &frames[at::BUFFERS..] {
                    [] => Verdict::Array(count),
                    [offsets, values, ..] => match View::new(offsets, values, count.into()) {
                        Ok(_) => Verdict::Array(count),
                        Err(error) => Verdict::Refuse(error.to_string()),
                    },
                    _ => Verdict::Refuse(
                        "an array has two buffers, 32-bit offsets and values, or none".into(),
                    ),
                },
                _ => Verdict::Refuse(format!("an array has 1 to {} members", u32::MAX)),
            },
            None => {
                // An empty map is what control messages carry too: those must be looked at.
                if frames[at::METADATA][..] != *self.session.empty_map() {
                    self.good = frames[at::METADATA].to_vec();
                    self.good_acks = acks;
                }
                Verdict::Pass
            }
        }
    }

    fn note_ack(&mut self, frames: &[Message]) {
        if let Ok(header) = HeaderRef::read(self.session.packer, &frames[at::HEADER]) {
            self.acks
                .entry(frames[0].to_vec())
                .or_default()
                .msg_ids
                .push(header.msg_id.into_owned());
        }
    }

    pub(super) fn acknowledge(&mut self) {
        for (client, ack) in self.acks.drain() {
            let mut envelope = self.session.request(types::SUBMIT_ACK, &ack);
            envelope.set_identities([Message::from(client)]);
            drop(self.outbox.send(&self.clients, envelope.into_frames()));
        }
    }

    pub(super) fn refuse(&mut self, frames: &[Message], why: String) {
        let msg_type = match HeaderRef::read(self.session.packer, &frames[at::HEADER]) {
            Ok(header) => reply_type(&header.msg_type),
            Err(_) => types::APPLY_REPLY,
        };
        self.answer(
            &frames[0],
            &frames[at::HEADER],
            msg_type,
            &ErrorContent::new("ValueError", why),
            None,
        );
    }

    pub(super) fn answer(
        &mut self,
        client: &[u8],
        parent: &[u8],
        msg_type: &str,
        content: &ErrorContent,
        range: Option<Range<u64>>,
    ) {
        let mut metadata =
            json!({"status": content.status, "dependencies_met": true, "engine": ""});
        if let Some(range) = range {
            metadata["range"] = json!([range.start, range.end]);
        }
        let header = self.session.header(msg_type);
        let envelope = self.session.message(
            vec![Message::from(client)],
            &header,
            Some(parent),
            &metadata,
            content,
            Vec::new(),
        );
        // A client that is gone needs no answer.
        drop(self.outbox.send(&self.clients, envelope.into_frames()));
    }
}

/// What the metadata asks for that this path does not have.
fn lacking(metadata: &TaskMetadata) -> Option<&'static str> {
    [
        (!metadata.after.is_empty(), "`after`"),
        (
            metadata.resources.as_ref().is_some_and(|r| !r.is_empty())
                || metadata.any.as_ref().is_some_and(|any| !any.is_empty())
                || metadata.nodes.is_some_and(|nodes| nodes > 0),
            "resources (cpus, gpus, memory, any, nodes, …)",
        ),
        (!metadata.follow.is_empty(), "`follow`"),
        (!metadata.targets.is_empty(), "`targets`"),
        (!metadata.hosts.is_empty(), "`host`"),
        (!metadata.prefer.is_empty(), "`prefer`"),
        (!metadata.tags.is_empty(), "`tags`"),
        (metadata.retries.unwrap_or(0) > 0, "`retries`"),
        (metadata.max_crashes.unwrap_or(0) > 0, "`max_crashes`"),
        (
            metadata.retry_delay.is_some_and(|delay| delay > 0.0),
            "`retry_delay`",
        ),
        (
            metadata.timeout.is_some_and(|timeout| timeout > 0.0),
            "`timeout`",
        ),
        (metadata.priority.unwrap_or(0) != 0, "`priority`"),
    ]
    .into_iter()
    .find_map(|(asked, name)| asked.then_some(name))
}
