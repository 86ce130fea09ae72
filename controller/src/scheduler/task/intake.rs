//! What clients send: submissions, acknowledgements of results, questions after a reconnection.

use std::borrow::Cow;

use foldhash::{HashMap, HashMapExt};
use ipbroker_protocol::{
    array::View,
    dependency::Dependency,
    envelope::{Envelope, FRAME_OVERHEAD},
    message::{Acked, ErrorContent, HeaderRef, ResumeRequest, TaskMetadata, types},
    session::{Session, UnpackError},
    value::AnyMap,
    zmq::Message,
};

use super::{
    Answered, Scheduler,
    frames::{Packed, at},
    groups::{Body, Group},
};
use crate::{
    scheduler::core::{self, GroupKey, GroupSpec, Needs, Refusal, SECOND, TaskState},
    store::{Queue, Submission},
};

/// Seconds that a task waits for a preferred place that is busy, unless it says otherwise.
const PREFER_WAIT: f64 = 2.0;

/// A request larger than this is not copied when it is dispatched, unless it may have to go out again.
const LARGE: usize = 1 << 20;

/// Most submissions of a client carry the same metadata, byte for byte: those are unpacked once.
#[derive(Default)]
pub(super) struct MetadataCache {
    bytes: Vec<u8>,
    parsed: TaskMetadata,
}

impl MetadataCache {
    fn get(&mut self, session: &Session, bytes: &[u8]) -> Result<&TaskMetadata, UnpackError> {
        if self.bytes != bytes || bytes.is_empty() {
            self.bytes.clear();
            self.parsed = session.packer.unpack(bytes)?;
            self.bytes.extend_from_slice(bytes);
        }
        Ok(&self.parsed)
    }
}

/// Why a submission is refused, as its error reply says it.
struct Bad {
    ename: &'static str,
    evalue: String,
}

impl Bad {
    fn new(evalue: impl Into<String>) -> Self {
        Self {
            ename: "ValueError",
            evalue: evalue.into(),
        }
    }
}

impl Scheduler {
    /// Reads one message of a client: its identity, then the message.
    pub(super) fn client_message(&mut self, frames: Vec<Message>) {
        let envelope = match Envelope::parse(frames) {
            Ok(envelope) if envelope.identities().len() == 1 => envelope,
            Ok(envelope) => {
                return self.junk_clients.refuse(
                    "identities",
                    &format_args!("{} instead of 1", envelope.identities().len()),
                );
            }
            Err(error) => return self.junk_clients.refuse("not a message", &error),
        };
        if let Err(error) = self.session.verify(&envelope) {
            return self.junk_clients.refuse("signature", &error);
        }
        let session = self.session.clone();
        let header: HeaderRef<'_> = match session.packer.unpack(envelope.header()) {
            Ok(header) => header,
            Err(error) => return self.junk_clients.refuse("header", &error),
        };
        match &*header.msg_type {
            types::RESULT_ACK => match session.packer.unpack::<Acked>(envelope.content()) {
                Ok(acked) => self.kept.forget(&envelope.identities()[0], &acked),
                Err(error) => self.junk_clients.refuse("result_ack", &error),
            },
            types::RESUME_REQUEST => {
                match session.packer.unpack::<ResumeRequest>(envelope.content()) {
                    Ok(request) => self.resume(&envelope.identities()[0], request),
                    Err(error) => self.junk_clients.refuse("resume_request", &error),
                }
            }
            _ => {
                let (msg_id, msg_type, from) = (
                    header.msg_id.into_owned(),
                    header.msg_type.into_owned(),
                    header.session.into_owned(),
                );
                self.submit(envelope.into_frames(), &msg_id, &msg_type, &from);
            }
        }
    }

    /// Takes a submission in, or answers why not. Says what was wrong.
    pub(super) fn submit(
        &mut self,
        mut frames: Vec<Message>,
        msg_id: &str,
        msg_type: &str,
        from: &str,
    ) -> Option<String> {
        match self.accept(&mut frames, msg_id, msg_type, from) {
            Ok(()) => None,
            Err(bad) => {
                let text = bad.evalue.clone();
                let reply = self.failure(
                    &frames[at::HEADER],
                    reply_type(msg_type),
                    &ErrorContent::new(bad.ename, bad.evalue),
                    None,
                    "",
                );
                self.tell_client(&frames[0], reply);
                Some(text)
            }
        }
    }

    /// Takes the frames, unless it refuses them.
    fn accept(
        &mut self,
        frames: &mut Vec<Message>,
        msg_id: &str,
        msg_type: &str,
        from: &str,
    ) -> Result<(), Bad> {
        let state = self.core.state(msg_id);
        if state != TaskState::Unknown {
            return self.duplicate(&frames[0], msg_id, state);
        }
        let session = self.session.clone();
        let now = self.now();
        let needs = self.needs_of(msg_type, &frames[at::METADATA])?;
        let metadata = self
            .cache
            .get(&session, &frames[at::METADATA])
            .map_err(|error| Bad::new(format!("metadata: {error}")))?;
        let count = match metadata.array {
            None => 1,
            Some(0) => return Err(Bad::new("an array needs at least one member")),
            Some(count) => u32::try_from(count).map_err(|_| {
                Bad::new(format!(
                    "an array has at most {} members; submit it in parts",
                    u32::MAX
                ))
            })?,
        };
        let is_array = metadata.array.is_some();
        if is_array && frames.len() > at::BUFFERS {
            if metadata.wide == Some(true) || frames.len() < at::BUFFERS + 2 {
                return Err(Bad::new(
                    "an array has two buffers, 32-bit offsets and values, or none",
                ));
            }
            View::new(
                &frames[at::BUFFERS],
                &frames[at::BUFFERS + 1],
                u64::from(count),
            )
            .map_err(|error| Bad::new(error.to_string()))?;
        }
        let bytes: usize = frames
            .iter()
            .map(|frame| frame.len() + FRAME_OVERHEAD)
            .sum();
        let ours = matches!(msg_type, types::COMMAND_REQUEST | types::FUNCTION_REQUEST);
        let after = dependency(&metadata.after);
        let follow = dependency(&metadata.follow);
        let spec = GroupSpec {
            msg_id,
            client: if from.is_empty() {
                &frames[0]
            } else {
                from.as_bytes()
            },
            count,
            needs,
            no_wait: metadata.no_wait.unwrap_or(false),
            bytes: bytes as u64,
            ..wishes(metadata, ours, after.as_ref(), follow.as_ref())
        };
        let key = self.store.next_key();
        let slices: Vec<&[u8]> = if self.journal.keeps() {
            frames[at::HEADER..]
                .iter()
                .map(|frame| &frame[..])
                .collect()
        } else {
            Vec::new()
        };
        self.journal
            .submitted(&Submission {
                key,
                msg_id,
                client: &frames[0],
                queue: Queue::Task,
                count: u64::from(count),
                frames: &slices,
            })
            .map_err(|error| Bad {
                ename: "OSError",
                evalue: format!("the controller cannot store this task: {error}"),
            })?;
        drop(slices);
        let ack = metadata.ack.unwrap_or(false);
        let group = Group {
            key,
            client: frames[0][..].into(),
            msg_id: msg_id.into(),
            reply_type: reply_type(msg_type),
            count,
            remaining: count,
            ack,
            copy: !ours || spec.retries > 0 || bytes <= LARGE,
            prefer: metadata.prefer.clone().into_boxed_slice(),
            header: Box::default(),
            body: Body::Gone,
        };
        let submitted = self.core.submit(now, &spec);
        match submitted {
            Ok(group_key) => {
                if ack {
                    self.acks.add(&group.client, msg_id, false);
                }
                self.place(group_key, group, std::mem::take(frames), is_array);
                Ok(())
            }
            Err(Refusal::Empty) => Err(Bad::new("an array needs at least one member")),
            Err(Refusal::Duplicate(state)) => self.duplicate(&frames[0], msg_id, state),
        }
    }

    /// Keeps the frames of a group that the core has taken.
    pub(super) fn place(
        &mut self,
        key: GroupKey,
        mut group: Group,
        frames: Vec<Message>,
        is_array: bool,
    ) {
        group.header = frames[at::HEADER][..].into();
        group.body = if is_array {
            let metadata = self
                .session
                .unpack::<AnyMap>(&frames[at::METADATA])
                .unwrap_or_default()
                .0;
            Body::Array(frames, metadata)
        } else if self.groups.len() > MANY && group.copy {
            Body::Copy(Packed::new(&frames))
        } else {
            Body::Whole(frames)
        };
        self.groups.insert(key, group);
    }

    /// A task that is known already is never run twice: it is acknowledged again, and answered again if it is done.
    fn duplicate(&mut self, client: &Message, msg_id: &str, state: TaskState) -> Result<(), Bad> {
        self.acks.add(client, msg_id, true);
        if matches!(state, TaskState::Ok | TaskState::Failed) {
            self.resume(
                client,
                ResumeRequest {
                    pending: vec![msg_id.to_owned()],
                    received: Vec::new(),
                },
            );
        }
        Ok(())
    }

    /// The capabilities that a request asks for.
    fn needs_of(&mut self, msg_type: &str, metadata: &[u8]) -> Result<Needs, Bad> {
        let session = self.session.clone();
        let is_array = self
            .cache
            .get(&session, metadata)
            .map_err(|error| Bad::new(format!("metadata: {error}")))?
            .array
            .is_some();
        let name: Cow<'_, str> = if is_array {
            format!("{msg_type}[]").into()
        } else {
            msg_type.into()
        };
        if let Some(needs) = self.needs.get(&*name) {
            return Ok(*needs);
        }
        let Some(capability) = msg_type
            .strip_suffix("_request")
            .filter(|kind| matches!(*kind, "command" | "function" | "apply" | "execute"))
        else {
            return Err(Bad::new(format!(
                "the task scheduler takes command_request, function_request, apply_request and execute_request, not {msg_type:?}"
            )));
        };
        let needs = if is_array {
            self.core.needs(&[capability, "array"])
        } else {
            self.core.needs(&[capability])
        };
        self.needs.insert(name.into(), needs);
        Ok(needs)
    }

    /// A client tells which outcomes it lacks: what is done is sent again, what is not known is named.
    pub(super) fn resume(&mut self, client: &[u8], request: ResumeRequest) {
        let mut unknown = Vec::new();
        let mut pending = Vec::new();
        let mut ask = Vec::new();
        let mut received: HashMap<&str, Vec<(u64, u64)>> = HashMap::new();
        for (msg_id, lo, hi) in &request.received {
            received.entry(msg_id).or_default().push((*lo, *hi));
        }
        for msg_id in request.pending {
            let state = self.core.state(&msg_id);
            let live = matches!(
                state,
                TaskState::Blocked | TaskState::Waiting | TaskState::Running
            );
            if live {
                // The client's identity may be a new one, and its lease.
                if let Some(group) = self
                    .core
                    .find(&msg_id)
                    .and_then(|key| self.groups.get_mut(key))
                {
                    group.client = client.into();
                }
            }
            let again = self.kept.replies(
                client,
                &msg_id,
                received.get(&*msg_id).map_or(&[], Vec::as_slice),
            );
            let had = !again.is_empty();
            for frames in again {
                let mut frames = frames;
                frames[0] = Message::from(client);
                self.out.push(super::Outgoing::Client(frames));
            }
            if live {
                pending.push(msg_id.clone());
                if self.durable {
                    ask.push(msg_id);
                }
            } else if self.durable {
                ask.push(msg_id);
            } else if !had {
                unknown.push(msg_id);
            }
        }
        if ask.is_empty() {
            return self.resume_reply(client, unknown, pending);
        }
        self.resume_reply(client, unknown, pending);
        let (post, to): (_, Box<[u8]>) = (self.post.clone(), client.into());
        let asked = ask.clone();
        self.store.replies(
            ask,
            Box::new(move |found| {
                let found = found.unwrap_or_default();
                post.send(Answered::Replies {
                    client: to,
                    asked,
                    found,
                });
            }),
        );
    }

    pub(super) fn resume_reply(
        &mut self,
        client: &[u8],
        unknown: Vec<String>,
        pending: Vec<String>,
    ) {
        if unknown.is_empty() && pending.is_empty() {
            return;
        }
        let reply = self.session.request(
            types::RESUME_REPLY,
            &ipbroker_protocol::message::ResumeReply { unknown, pending },
        );
        self.tell_client(client, reply);
    }
}

/// More waiting messages than this are kept in one piece each: half the memory, at the price of a copy.
const MANY: usize = 20_000;

/// What metadata asks of the core. `ours`: the request is of a kind that only our programs know.
pub(super) fn wishes<'a>(
    metadata: &'a TaskMetadata,
    ours: bool,
    after: Option<&'a core::Dependency>,
    follow: Option<&'a core::Dependency>,
) -> GroupSpec<'a> {
    let seconds = |value: Option<f64>| {
        value
            .filter(|value| *value > 0.0)
            .map_or(0, |value| (value.min(1e9) * SECOND as f64) as u64)
    };
    GroupSpec {
        targets: &metadata.targets,
        hosts: &metadata.hosts,
        tags: &metadata.tags,
        prefer: &metadata.prefer,
        prefer_wait: seconds(metadata.prefer_wait.or(Some(PREFER_WAIT))),
        priority: metadata.priority.unwrap_or(0),
        after,
        follow,
        timeout: seconds(metadata.timeout),
        retries: metadata.retries.unwrap_or(0),
        may_return: ours,
        detach: metadata.detach.unwrap_or(!ours),
        ..GroupSpec::default()
    }
}

pub(super) fn dependency(wire: &Dependency) -> Option<core::Dependency> {
    (!wire.is_empty()).then(|| core::Dependency {
        ids: wire.ids.clone(),
        all: wire.all,
        success: wire.success,
        failure: wire.failure,
    })
}

/// The type of the reply to a request.
pub(crate) fn reply_type(msg_type: &str) -> &'static str {
    match msg_type {
        types::COMMAND_REQUEST => types::COMMAND_REPLY,
        types::FUNCTION_REQUEST => types::FUNCTION_REPLY,
        types::EXECUTE_REQUEST => types::EXECUTE_REPLY,
        _ => types::APPLY_REPLY,
    }
}
