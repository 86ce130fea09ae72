//! What clients send: submissions, acknowledgements of results, questions after a reconnection.

use std::borrow::Cow;

use foldhash::{HashMap, HashMapExt};
use ipbroker_protocol::{
    array::View,
    bundle,
    dependency::Dependency,
    envelope::{FRAME_OVERHEAD, Parts},
    frames::{Frames, Packed, slices},
    message::{Acked, ErrorContent, HeaderRef, ResumeReply, ResumeRequest, TaskMetadata, types},
    session::{Session, UnpackError},
    value::AnyMap,
    zmq::Message,
};

use super::{
    Answered, Outgoing, Scheduler,
    actions::failure,
    frames::at,
    groups::{Body, Group},
    resources::requests,
    watch,
};
use crate::{
    error::NamedError,
    scheduler::core::{self, Core, GroupKey, GroupSpec, Needs, Refusal, SECOND, TaskState},
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
            self.parsed = session.packer.unpack_map(bytes)?;
            self.bytes.extend_from_slice(bytes);
        }
        Ok(&self.parsed)
    }
}

impl Scheduler {
    /// Reads what a client sends: its identity, then one message or a bundle. How many messages that were.
    pub(super) fn client_message(&mut self, frames: Vec<Message>) -> usize {
        let mut within = Vec::new();
        if let Some((key, group)) = self.client_frames(&slices(&frames), Some(&mut within)) {
            self.place(key, group, frames.into());
        }
        let count = within.len().max(1);
        for frames in within {
            let frames = Frames::from(frames);
            if let Some((key, mut group)) = self.client_frames(&frames.slices(), None) {
                group.bundled = true;
                self.place(key, group, frames);
            }
        }
        count
    }

    /// What has been submitted, if anything; `within` gets the messages of a bundle. `None`: these frames were in one, and it
    /// was signed.
    fn client_frames(
        &mut self,
        frames: &[&[u8]],
        within: Option<&mut Vec<Packed>>,
    ) -> Option<(GroupKey, Group)> {
        let junk = &mut self.junk_clients;
        let (identities, parts) = junk.good("not a message", Parts::of(frames))?;
        if identities != 1 {
            junk.refuse("identities", &format_args!("{identities} instead of 1"));
            return None;
        }
        let client = frames[0];
        if within.is_some() {
            let verified = self.session.signer().verify(parts.signature, parts.maps());
            junk.good("signature", verified)?;
        }
        let header = HeaderRef::read(self.session.packer, parts.header);
        let header = junk.good("header", header)?;
        match (&*header.msg_type, within) {
            (types::BUNDLE, Some(within)) => {
                let make = |frames: &[&[u8]]| Packed::new(frames.iter().copied());
                let messages = bundle::unpack(parts.content, &[client], make);
                *within = junk.good("bundle", messages)?;
            }
            (types::RESULT_ACK, _) => {
                let acked = self.session.unpack::<Acked>(parts.content);
                self.kept.forget(client, &junk.good("result_ack", acked)?);
            }
            (types::RESUME_REQUEST, _) => {
                let request = self.session.unpack(parts.content);
                let request = junk.good("resume_request", request)?;
                self.resume(client, request);
            }
            (msg_type, _) => match self.accept(frames, &header) {
                Ok(taken) => return taken,
                Err(bad) => {
                    let content = ErrorContent::new(&bad.ename, bad.evalue);
                    let reply_type = reply_type(msg_type);
                    let reply =
                        failure(&self.session, parts.header, reply_type, &content, None, "");
                    self.tell_client(client, reply);
                }
            },
        }
        None
    }

    /// A submission of the controller's own, from the (empty) identity on.
    pub(super) fn submit(
        &mut self,
        frames: Vec<Message>,
        header: &HeaderRef<'_>,
    ) -> Result<(), String> {
        let taken = self.accept(&slices(&frames), header);
        if let Some((key, group)) = taken.map_err(|bad| bad.evalue)? {
            self.place(key, group, frames.into());
        }
        Ok(())
    }

    /// Hands a submission to the core: the group whose frames are to be kept, unless the task is known already.
    fn accept(
        &mut self,
        frames: &[&[u8]],
        header: &HeaderRef<'_>,
    ) -> Result<Option<(GroupKey, Group)>, NamedError> {
        let (msg_id, msg_type): (&str, &str) = (&header.msg_id, &header.msg_type);
        // The core refuses it too, but what it refuses must not be in the journal by then.
        if self.journal.keeps() {
            let state = self.core.state(msg_id);
            if state != TaskState::Unknown {
                let metadata = self.cache.get(&self.session, frames[at::METADATA]);
                let ack = metadata.is_ok_and(|metadata| metadata.ack == Some(true));
                self.duplicate(frames[0], msg_id, state, ack);
                return Ok(None);
            }
        }
        let now = self.now();
        let metadata = self
            .cache
            .get(&self.session, frames[at::METADATA])
            .map_err(|error| NamedError::value(format!("metadata: {error}")))?;
        let is_array = metadata.array.is_some();
        let needs = needs_of(&mut self.needs, &mut self.core, msg_type, is_array)?;
        let count = match metadata.array {
            None => 1,
            Some(0) => return Err(NamedError::value("an array needs at least one member")),
            Some(count) => u32::try_from(count).map_err(|_| {
                NamedError::value(format!(
                    "an array has at most {} members; submit it in parts",
                    u32::MAX
                ))
            })?,
        };
        if is_array && frames.len() > at::BUFFERS {
            if frames.len() < at::BUFFERS + 2 {
                return Err(NamedError::value(
                    "an array has two buffers, 32-bit offsets and values, or none",
                ));
            }
            View::new(
                frames[at::BUFFERS],
                frames[at::BUFFERS + 1],
                u64::from(count),
            )
            .map_err(|error| NamedError::value(error.to_string()))?;
        }
        let bytes: usize = frames
            .iter()
            .map(|frame| frame.len() + FRAME_OVERHEAD)
            .sum();
        let ours = matches!(msg_type, types::COMMAND_REQUEST | types::FUNCTION_REQUEST);
        let requests = requests(metadata).map_err(NamedError::value)?;
        let spec = GroupSpec {
            requests: &requests,
            msg_id,
            client: if header.session.is_empty() {
                frames[0]
            } else {
                header.session.as_bytes()
            },
            count,
            needs,
            no_wait: metadata.no_wait.unwrap_or(false),
            bytes: bytes as u64,
            ..wishes(metadata, ours)
        };
        let key = self.store.next_key();
        self.journal
            .submitted(&Submission {
                key,
                msg_id,
                client: frames[0],
                queue: Queue::Task,
                count: u64::from(count),
                frames: &frames[at::HEADER..],
            })
            .map_err(|error| {
                let why = format!("the controller cannot store this task: {error}");
                NamedError::new("OSError", why)
            })?;
        if *self.client != *frames[0] {
            self.client = frames[0].into();
        }
        let mut group = Group {
            key,
            client: self.client.clone(),
            msg_id: msg_id.into(),
            reply_type: reply_type(msg_type),
            count,
            is_array,
            remaining: count,
            ack: metadata.ack.unwrap_or(false),
            bundled: false,
            lacked: None,
            row: 0,
            copy: !ours || spec.retries > 0 || bytes <= LARGE,
            prefer: metadata.prefer.clone().into_boxed_slice(),
            body: Body::Gone(Box::default()),
        };
        match self.core.submit(now, &spec) {
            Ok(group_key) => {
                let packer = self.session.packer;
                let counted = (count, spec.after.or(spec.follow).is_some());
                group.row = self.watch.submitted(now, spec.client, counted, msg_id, || {
                    watch::describe(packer, group.reply_type, frames, is_array.then_some(0))
                });
                if group.ack {
                    self.acks.add(&group.client, msg_id, false);
                }
                Ok(Some((group_key, group)))
            }
            Err(Refusal::Empty) => Err(NamedError::value("an array needs at least one member")),
            Err(Refusal::Duplicate(state)) => {
                self.duplicate(frames[0], msg_id, state, group.ack);
                Ok(None)
            }
        }
    }

    /// Keeps the frames of a group that the core has taken, and does what that has led to: the core gives the key's place to the
    /// next group if this one has ended already.
    pub(super) fn place(&mut self, key: GroupKey, mut group: Group, frames: Frames) {
        group.body = if group.is_array {
            let frames = frames.into_messages();
            let metadata = self
                .session
                .unpack::<AnyMap>(&frames[at::METADATA])
                .unwrap_or_default()
                .0;
            Body::Array(frames, metadata)
        } else if self.groups.len() > MANY && group.copy {
            Body::Whole(frames.packed().into())
        } else {
            Body::Whole(frames)
        };
        let overtaken = self.overtaken.take(&group.msg_id);
        self.groups.insert(key, group);
        if !overtaken.is_empty() {
            self.abort_at_once(&overtaken);
        }
        self.act();
    }

    /// A task that is known already is never run twice: it is acknowledged again, to a client that wants that, and
    /// answered again if it is done.
    fn duplicate(&mut self, client: &[u8], msg_id: &str, state: TaskState, ack: bool) {
        if ack {
            self.acks.add(client, msg_id, true);
        }
        if matches!(state, TaskState::Ok | TaskState::Failed) {
            self.resume(
                client,
                ResumeRequest {
                    pending: vec![msg_id.to_owned()],
                    received: Vec::new(),
                },
            );
        }
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
            for mut frames in again {
                frames[0] = Message::from(client);
                self.out.push(Outgoing::Client(frames.into(), false));
            }
            if live {
                pending.push(msg_id.clone());
            }
            if self.durable {
                ask.push(msg_id);
            } else if !live && !had {
                unknown.push(msg_id);
            }
        }
        self.resume_reply(client, unknown, pending);
        if ask.is_empty() {
            return;
        }
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
        let reply = ResumeReply { unknown, pending };
        let reply = self.session.request(types::RESUME_REPLY, &reply);
        self.tell_client(client, reply);
    }
}

/// More waiting messages than this are kept in one piece each: half the memory, at the price of a copy.
const MANY: usize = 20_000;

/// The capabilities that a request asks for.
pub(super) fn needs_of(
    known: &mut HashMap<Box<str>, Needs>,
    core: &mut Core,
    msg_type: &str,
    is_array: bool,
) -> Result<Needs, NamedError> {
    let name: Cow<'_, str> = if is_array {
        format!("{msg_type}[]").into()
    } else {
        msg_type.into()
    };
    if let Some(needs) = known.get(&*name) {
        return Ok(*needs);
    }
    let Some(capability) = msg_type
        .strip_suffix("_request")
        .filter(|kind| matches!(*kind, "command" | "function" | "apply" | "execute"))
    else {
        return Err(NamedError::value(format!(
            "the task scheduler takes command_request, function_request, apply_request and execute_request, not {msg_type:?}"
        )));
    };
    let needs = if is_array {
        core.needs(&[capability, "array"])
    } else {
        core.needs(&[capability])
    };
    known.insert(name.into(), needs);
    Ok(needs)
}

/// Seconds; 0 where they are none.
pub(super) fn nanos(seconds: Option<f64>) -> core::Nanos {
    let some = seconds.filter(|seconds| *seconds > 0.0);
    some.map_or(0, |seconds| (seconds.min(1e9) * SECOND as f64) as u64)
}

/// What metadata asks of the core. `ours`: the request is of a kind that only our programs know.
pub(super) fn wishes(metadata: &TaskMetadata, ours: bool) -> GroupSpec<'_> {
    // In whole minutes, so that tasks that differ little are alike.
    let minutes = |value: Option<f64>| nanos(value).div_ceil(60 * SECOND) * 60 * SECOND;
    GroupSpec {
        targets: &metadata.targets,
        hosts: &metadata.hosts,
        tags: &metadata.tags,
        prefer: &metadata.prefer,
        prefer_wait: nanos(metadata.prefer_wait.or(Some(PREFER_WAIT))),
        priority: metadata.priority.unwrap_or(0),
        after: some(&metadata.after),
        follow: some(&metadata.follow),
        timeout: nanos(metadata.timeout),
        time: minutes(metadata.time),
        retries: metadata.retries.unwrap_or(0),
        nodes: metadata.nodes.unwrap_or(0),
        retry_delay: nanos(metadata.retry_delay),
        crashes: metadata.max_crashes,
        each: metadata.each.unwrap_or(false),
        may_return: ours,
        detach: metadata.detach.unwrap_or(!ours),
        ..GroupSpec::default()
    }
}

fn some(dependency: &Dependency) -> Option<&Dependency> {
    (!dependency.is_empty()).then_some(dependency)
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
