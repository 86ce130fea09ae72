//! Taking up what an earlier controller left, and answers of the store.

use ipbroker_protocol::{
    envelope::{DELIMITER, FRAME_OVERHEAD},
    frames::slices,
    message::{HeaderRef, TaskMetadata, types},
    zmq::Message,
};

use super::{
    Answered, Outgoing, Scheduler,
    groups::{Body, Group},
    intake::{needs_of, reply_type, wishes},
    resources::requests,
    watch::{self, Ended},
};
use crate::{
    scheduler::core::{self, GroupSpec, Known},
    store::{Outcome, Recovered, RecoveredTask, StoredReply},
};

impl Scheduler {
    pub(super) fn restore(&mut self, recovered: Recovered) {
        let count = recovered.tasks.len();
        self.restore_last_known(&recovered.meta);
        for task in recovered.tasks {
            let msg_id = task.msg_id.clone();
            if let Err(why) = self.restore_task(task) {
                tracing::error!(msg_id, why, "a stored task cannot be taken up again");
            }
        }
        if count > 0 {
            tracing::info!(count, "unfinished tasks were taken up again");
        }
        self.end_batch();
    }

    fn restore_task(&mut self, task: RecoveredTask) -> Result<(), String> {
        let [header, parent, metadata, content, ..] = &task.frames[..] else {
            return Err("its frames are incomplete".into());
        };
        let session = self.session.clone();
        let read = HeaderRef::read(session.packer, header).map_err(|error| error.to_string())?;
        let wire: TaskMetadata = session
            .packer
            .unpack(metadata)
            .map_err(|error| error.to_string())?;
        let signature = session.signer().sign([header, parent, metadata, content]);
        let (msg_type, from) = (&*read.msg_type, &*read.session);
        let mut frames = vec![
            Message::from(&task.client),
            Message::from(DELIMITER),
            Message::from(signature.as_ref()),
        ];
        frames.extend(task.frames.iter().map(Message::from));
        let is_array = wire.array.is_some();
        let needs = needs_of(&mut self.needs, &mut self.core, msg_type, is_array)
            .map_err(|bad| bad.evalue)?;
        let ours = matches!(msg_type, types::COMMAND_REQUEST | types::FUNCTION_REQUEST);
        let count = u32::try_from(task.count).map_err(|_| "too many members")?;
        let bytes: usize = frames
            .iter()
            .map(|frame| frame.len() + FRAME_OVERHEAD)
            .sum();
        let requests = requests(&wire)?;
        let spec = GroupSpec {
            requests: &requests,
            msg_id: &task.msg_id,
            client: if from.is_empty() {
                &task.client
            } else {
                from.as_bytes()
            },
            count,
            needs,
            retries: task.retries.or(wire.retries).unwrap_or(0),
            bytes: bytes as u64,
            ..wishes(&wire, ours)
        };
        let done: Vec<(u32, u32, bool)> = task
            .ended
            .iter()
            .map(|(range, outcome)| {
                (
                    range.start as u32,
                    range.end as u32,
                    *outcome == Outcome::Ok,
                )
            })
            .collect();
        let given: Vec<(&str, u32, u32)> = task
            .dispatched
            .iter()
            .map(|given| {
                (
                    given.engine.as_str(),
                    given.range.start as u32,
                    given.range.end as u32,
                )
            })
            .collect();
        let ended: u32 = done.iter().map(|(lo, hi, _)| hi - lo).sum();
        let now = self.now();
        let key = self
            .core
            .restore(now, &spec, task.attempt, &done, &given)
            .map_err(|refusal| refusal.to_string())?;
        let counted = (count, spec.after.or(spec.follow).is_some());
        let row = self
            .watch
            .submitted(now, spec.client, counted, &task.msg_id, || {
                let frames = slices(&frames);
                let index = is_array.then_some(0);
                watch::describe(session.packer, reply_type(msg_type), &frames, index)
            });
        for (lo, hi, ok) in &done {
            let outcome = match ok {
                true => core::Outcome::Ok,
                false => core::Outcome::Error,
            };
            let ended = Ended::all(u64::from(hi - lo), outcome);
            self.watch.ended(now, row, ended);
        }
        let group = Group {
            row,
            key: task.key,
            client: task.client.clone().into(),
            msg_id: task.msg_id.as_str().into(),
            reply_type: reply_type(msg_type),
            count,
            is_array,
            remaining: count - ended,
            ack: wire.ack.unwrap_or(false),
            bundled: false,
            lacked: None,
            copy: true,
            prefer: wire.prefer.clone().into(),
            body: Body::Gone(Box::default()),
        };
        self.place(key, group, frames.into());
        Ok(())
    }

    pub(super) fn answered(&mut self, answered: Answered) {
        match answered {
            // The end of the batch releases what is durable by now.
            Answered::Durable => {}
            Answered::Outcome { id, known } => {
                let now = self.now();
                let known = known
                    .as_ref()
                    .map(|(ok, engines)| Known { ok: *ok, engines });
                self.core.outcome_known(now, &id, known);
            }
            Answered::Replies {
                client,
                asked,
                found,
            } => {
                let is_found = |id: &str| found.iter().any(|reply| reply.msg_id == *id);
                let unknown = asked
                    .into_iter()
                    .filter(|id| !is_found(id) && self.core.find(id).is_none())
                    .collect();
                for reply in found {
                    self.send_stored(&client, &reply);
                }
                self.resume_reply(&client, unknown, Vec::new());
            }
        }
    }

    /// Sends a stored reply once more, signed anew.
    fn send_stored(&mut self, client: &[u8], reply: &StoredReply) {
        let [header, parent, metadata, content, buffers @ ..] = &reply.frames[..] else {
            return;
        };
        let envelope = self.session.packed(
            vec![Message::from(client)],
            [header, parent, metadata, content],
            buffers.iter().map(Message::from).collect(),
        );
        self.out
            .push(Outgoing::Client(envelope.into_frames().into(), false));
    }
}
