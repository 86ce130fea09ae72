//! What the core decides, turned into messages.

use ipbroker_protocol::{
    envelope::Envelope,
    frames::slices,
    message::{AbortRequest, ErrorContent, GiveBackRequest, types},
    session::Session,
    value::Map,
    zmq::Message,
};
use serde_json::json;

use super::{
    Answered, Outgoing, Scheduler,
    frames::{Had, at, chunk, with_metadata},
    groups::Body,
    replies::stored,
    resources,
    watch::{Ended, last_line},
};
use crate::{
    scheduler::core::{Action, EngineKey, FailKind, GroupKey, Outcome},
    store::{self, Finish, Lookup, TaskRef},
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
        let tell = |metadata: &mut Map| {
            if attempt > 0 {
                metadata.insert("attempt".into(), attempt.into());
            }
            if let Some(had) = had {
                had.tell(metadata);
            }
        };
        let frames = match std::mem::replace(&mut group.body, Body::Gone(Box::default())) {
            Body::Whole(frames) => {
                group.body = if group.copy {
                    Body::Whole(frames.packed().into())
                } else {
                    Body::Gone(frames[at::HEADER].into())
                };
                if attempt == 0 && had.is_none() {
                    frames
                } else {
                    with_metadata(&self.session, frames.into_messages(), tell).into()
                }
            }
            Body::Array(frames, metadata) => {
                let members = (range.start, range.end);
                let chunk = chunk(&self.session, &frames, &metadata, members, tell);
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
            FailKind::TaskAborted => Outcome::Aborted,
            _ => Outcome::Error,
        };
        let count = u64::from(range.end - range.start);
        let now = self.latest.get();
        self.watch.ended(now, group.row, Ended::all(count, outcome));
        if outcome == Outcome::Error {
            let words = last_line(&format!("{}: {text}", kind.ename()));
            self.watch
                .failed(now, &words, Some(group.id_of(range.start)), count);
        }
        let wire_range = group.is_array.then_some((range.start, range.end));
        let content = ErrorContent::new(kind.ename(), text);
        let (header, reply_type) = (group.header(), group.reply_type);
        let mut reply = failure(
            &self.session,
            header,
            reply_type,
            &content,
            wire_range,
            &uuid,
        );
        let range = u64::from(range.start)..u64::from(range.end);
        if self.journal.keeps() {
            self.journal.finished(&Finish {
                task: TaskRef::Key(group.key),
                range: range.clone(),
                outcome: stored(outcome),
                exceptions: &[],
                engine: &uuid,
                done: group.remaining == 0,
                late: false,
                frames: &slices(&reply.frames()[2..]),
            });
        }
        if group.client.is_empty() {
            return;
        }
        reply.set_identities([Message::from(&*group.client)]);
        let frames = reply.into_frames().into();
        if group.ack && !self.durable {
            let range = (range.start, range.end);
            self.kept.keep(&group.client, &group.msg_id, range, &frames);
        }
        self.out.push(Outgoing::Client(frames, group.bundled));
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
        if engine.ours {
            let request = AbortRequest {
                msg_ids: Some(range.map(|index| group.id_of(index)).collect()),
                kill: true,
                ..AbortRequest::default()
            };
            let uuid = engine.uuid.clone();
            self.tell_engine(&uuid, types::ABORT_REQUEST, &request);
        }
    }

    /// Asks the store how a past task ended, and where it ran.
    fn look_up(&mut self, id: Box<str>) {
        let (post, history) = (self.post.clone(), self.store.clone());
        self.store.outcomes(
            vec![id.to_string()],
            Box::new(move |found| {
                let ok = match found.ok().and_then(|found| found.into_iter().next()) {
                    Some((_, Lookup::Done(outcome))) => outcome == store::Outcome::Ok,
                    _ => return post.send(Answered::Outcome { id, known: None }),
                };
                history.records(
                    vec![id.to_string()],
                    Some(vec!["engine_uuid".to_owned()]),
                    Box::new(move |records| {
                        let engine = records
                            .ok()
                            .and_then(|records| records.into_iter().next())
                            .and_then(|record| {
                                Some(record.fields.get("engine_uuid")?.as_str()?.to_owned())
                            })
                            .filter(|uuid| !uuid.is_empty());
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

/// An error reply of the controller's own, without identities.
pub(super) fn failure(
    session: &Session,
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
    session.message(
        Vec::new(),
        &session.header(reply_type),
        Some(header),
        &metadata,
        content,
        Vec::new(),
    )
}
