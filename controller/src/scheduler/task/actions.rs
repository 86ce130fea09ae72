//! What the core decides, turned into messages.

use ipbroker_protocol::{
    array::member_id,
    envelope::Envelope,
    frames::Frames,
    message::{AbortRequest, ErrorContent, GiveBackRequest, types},
    value::Map,
    zmq::Message,
};
use serde_json::json;

use super::{
    Answered, Outgoing, Scheduler,
    frames::{Had, at, chunk, with_metadata},
    groups::Body,
    resources,
    watch::{Ended, last_line},
};
use crate::{
    scheduler::core::{self, Action, EngineKey, FailKind, GroupKey},
    store::{Finish, Lookup, Outcome, TaskRef},
};

impl Scheduler {
    /// Carries out everything that the core has decided.
    pub(super) fn act(&mut self) {
        while let Some(action) = self.core.poll() {
            match action {
                Action::Dispatch {
                    group,
                    range,
                    engine,
                    attempt,
                    grant,
                    alternative,
                    nodes,
                } => {
                    let had = (grant.is_some() || !nodes.is_empty()).then(|| Had {
                        granted: grant.as_deref().map(resources::to_wire).unwrap_or_default(),
                        alternative: alternative.map(|nth| nth + 1),
                        nodes: nodes
                            .iter()
                            .map(|&key| self.engines.host_name(key).to_owned())
                            .collect(),
                    });
                    if let Some(had) = &had {
                        self.keep_holdings(engine, had, &nodes);
                    }
                    self.dispatch(group, range, engine, attempt, had.as_ref());
                }
                Action::Fail {
                    group,
                    range,
                    kind,
                    text,
                    engine,
                } => self.fail(group, range, kind, &text, engine),
                Action::Requeue {
                    group,
                    range,
                    retries,
                } => {
                    if let Some(group) = self.groups.get(group) {
                        let range = u64::from(range.start)..u64::from(range.end);
                        self.journal.requeued(group.key, range, retries);
                    }
                }
                Action::Release { group } => drop(self.groups.remove(group)),
                Action::Recall { engine, items } => self.recall(engine, &items),
                Action::Stop {
                    engine,
                    group,
                    range,
                } => self.stop(engine, group, range),
                Action::LookupOutcome { id } => self.look_up(id),
            }
        }
    }

    fn dispatch(
        &mut self,
        key: GroupKey,
        range: std::ops::Range<u32>,
        engine: EngineKey,
        attempt: u32,
        had: Option<&Had>,
    ) {
        let (Some(group), Some(engine)) = (self.groups.get_mut(key), self.engines.get(engine))
        else {
            tracing::error!("the scheduler dispatches what is not there");
            return;
        };
        self.given += u64::from(range.end - range.start);
        self.journal.dispatched(
            group.key,
            u64::from(range.start)..u64::from(range.end),
            attempt + 1,
            &engine.uuid,
        );
        let single = |frames: Frames| {
            if attempt == 0 && had.is_none() {
                return frames;
            }
            let frames = frames.into_messages();
            let with = with_metadata(&self.session, frames, |metadata| {
                if attempt > 0 {
                    metadata.insert("attempt".into(), attempt.into());
                }
                if let Some(had) = had {
                    had.tell(metadata);
                }
            });
            with.into()
        };
        let frames = match std::mem::replace(&mut group.body, Body::Gone(Box::default())) {
            Body::Whole(frames) => {
                group.body = if group.copy {
                    Body::Whole(frames.packed().into())
                } else {
                    Body::Gone(frames[at::HEADER].into())
                };
                single(frames)
            }
            Body::Array(frames, metadata) => {
                let chunk = chunk(
                    &self.session,
                    &frames,
                    &metadata,
                    range.start,
                    range.end,
                    attempt,
                    had,
                );
                group.body = Body::Array(frames, metadata);
                chunk.into()
            }
            Body::Gone(header) => {
                group.body = Body::Gone(header);
                tracing::error!(
                    msg_id = &*group.msg_id,
                    "a task is to run again but its message was not kept"
                );
                return;
            }
        };
        self.out.push(Outgoing::Engine(engine.uuid.clone(), frames));
    }

    fn fail(
        &mut self,
        key: GroupKey,
        range: std::ops::Range<u32>,
        kind: FailKind,
        text: &str,
        engine: Option<EngineKey>,
    ) {
        let uuid = engine
            .and_then(|engine| self.engines.get(engine))
            .map_or(String::new(), |engine| engine.uuid.to_string());
        let Some(group) = self.groups.get_mut(key) else {
            return;
        };
        group.remaining = group.remaining.saturating_sub(range.end - range.start);
        let mut text = text.to_owned();
        if let (
            FailKind::TaskTimeout | FailKind::ImpossibleDependency | FailKind::MissingInput,
            Some(lacked),
        ) = (kind, &group.lacked)
        {
            text += &format!("; the last engine said: {lacked}");
        }
        let outcome = match kind {
            FailKind::TaskAborted => core::Outcome::Aborted,
            _ => core::Outcome::Error,
        };
        let count = u64::from(range.end - range.start);
        let now = self.latest.get();
        self.watch.ended(now, group.row, Ended::all(count, outcome));
        if outcome == core::Outcome::Error {
            let words = last_line(&format!("{}: {text}", kind.ename()));
            let id = match group.is_array {
                true => member_id(&group.msg_id, u64::from(range.start)),
                false => group.msg_id.to_string(),
            };
            self.watch.failed(now, &words, Some(id), count);
        }
        let (store_key, done, client, ack, bundled) = (
            group.key,
            group.remaining == 0,
            group.client.clone(),
            group.ack,
            group.bundled,
        );
        let wire_range = group.is_array.then_some((range.start, range.end));
        let content = ErrorContent::new(kind.ename(), text);
        let (header, reply_type, msg_id) = (
            Box::<[u8]>::from(group.header()),
            group.reply_type,
            group.msg_id.clone(),
        );
        let mut reply = self.failure(&header, reply_type, &content, wire_range, &uuid);
        let range = u64::from(range.start)..u64::from(range.end);
        if self.journal.keeps() {
            let slices: Vec<&[u8]> = reply.frames()[2..].iter().map(|frame| &frame[..]).collect();
            self.journal.finished(&Finish {
                task: TaskRef::Key(store_key),
                range: range.clone(),
                outcome: if kind == FailKind::TaskAborted {
                    Outcome::Aborted
                } else {
                    Outcome::Error
                },
                exceptions: &[],
                engine: &uuid,
                done,
                late: false,
                frames: &slices,
            });
        }
        if client.is_empty() {
            return;
        }
        reply.set_identities([Message::from(&*client)]);
        let frames = reply.into_frames().into();
        if ack && !self.durable {
            self.kept
                .keep(&client, &msg_id, (range.start, range.end), &frames);
        }
        self.out.push(Outgoing::Client(frames, bundled));
    }

    /// An error reply of the controller's own, without identities.
    pub(super) fn failure(
        &self,
        header: &[u8],
        reply_type: &str,
        content: &ErrorContent,
        range: Option<(u32, u32)>,
        engine: &str,
    ) -> Envelope {
        let mut metadata = Map::new();
        metadata.insert("status".into(), json!(content.status));
        metadata.insert("dependencies_met".into(), json!(true));
        metadata.insert("engine".into(), json!(engine));
        if let Some(range) = range {
            metadata.insert("range".into(), json!(range));
        }
        self.session.message(
            Vec::new(),
            &self.session.header(reply_type),
            Some(header),
            &metadata,
            content,
            Vec::new(),
        )
    }

    fn recall(&mut self, engine: EngineKey, items: &[(GroupKey, std::ops::Range<u32>)]) {
        let Some(uuid) = self
            .engines
            .get(engine)
            .filter(|engine| engine.ours)
            .map(|engine| engine.uuid.clone())
        else {
            return;
        };
        let tasks = items
            .iter()
            .filter_map(|(key, range)| {
                Some((
                    self.groups.get(*key)?.msg_id.to_string(),
                    u64::from(range.start),
                    u64::from(range.end),
                ))
            })
            .collect();
        self.tell_engine(
            &uuid,
            types::GIVE_BACK_REQUEST,
            &GiveBackRequest {
                tasks: Some(tasks),
                ..GiveBackRequest::default()
            },
        );
    }

    /// Tells an engine to stop members, or not to begin them.
    pub(super) fn stop(&mut self, engine: EngineKey, key: GroupKey, range: std::ops::Range<u32>) {
        let (Some(group), Some(engine)) = (self.groups.get(key), self.engines.get(engine)) else {
            return;
        };
        let ids: Vec<String> = if !group.is_array {
            vec![group.msg_id.to_string()]
        } else {
            range
                .map(|index| member_id(&group.msg_id, u64::from(index)))
                .collect()
        };
        let (uuid, ours) = (engine.uuid.to_string(), engine.ours);
        if ours {
            self.tell_engine(
                &uuid,
                types::ABORT_REQUEST,
                &AbortRequest {
                    msg_ids: Some(ids),
                    kill: true,
                    ..AbortRequest::default()
                },
            );
        }
    }

    /// Asks the store how a past task ended, and where it ran.
    fn look_up(&mut self, id: Box<str>) {
        let (post, store) = (self.post.clone(), self.store.clone());
        self.store.outcomes(
            vec![id.to_string()],
            Box::new(move |found| {
                let ok = match found.ok().and_then(|found| found.into_iter().next()) {
                    Some((_, Lookup::Done(outcome))) => outcome == Outcome::Ok,
                    _ => return post.send(Answered::Outcome { id, known: None }),
                };
                store.records(
                    vec![id.to_string()],
                    Some(vec!["engine_uuid".to_owned()]),
                    Box::new(move |records| {
                        let engine = records
                            .ok()
                            .and_then(|records| records.into_iter().next())
                            .and_then(|record| {
                                record
                                    .fields
                                    .get("engine_uuid")
                                    .and_then(|uuid| uuid.as_str().map(str::to_owned))
                                    .filter(|uuid| !uuid.is_empty())
                            });
                        post.send(Answered::Outcome {
                            id,
                            known: Some((ok, engine.into_iter().collect())),
                        });
                    }),
                );
            }),
        );
    }
}
