//! What comes by the shell socket: tasks, direct requests, and the scheduler's own words.

use std::sync::Arc;

use ipbroker_protocol::{
    bundle,
    envelope::Envelope,
    hex,
    message::{Acked, ErrorContent, FunctionCall, GiveBackRequest, HeaderRef, Holds, types},
    session::Session,
    value::AnyMap,
    zmq::Message,
};
use serde_json::json;

use super::Server;
use crate::{
    executor::{execute, start_worker},
    kernel::Word,
    logical_engine::Returned,
    process::{Channel, Outgoing},
    task::{Kind, Task, Via},
};

/// Members of an array of quick calls that may run on this thread.
const QUICK: u64 = 256;

impl Server {
    /// Takes what comes from a task, direct or broadcast relay: a message for an engine, or a bundle of them.
    pub(super) fn shell(&mut self, wire: usize, mut frames: Vec<Message>) {
        if let Some(index) = self.addressee(wire, &mut frames) {
            return self.shell_of(index, frames);
        }
        let bundle = match read(&self.session(), frames, true) {
            Ok((bundle, msg_type, _)) if msg_type == types::BUNDLE => bundle,
            Ok(_) => {
                return self
                    .junk
                    .refuse("shell channel", &"it is for no engine here");
            }
            Err(error) => return self.junk.refuse("shell channel", &error),
        };
        let messages = match bundle::unpack_loose(bundle.content(), bundle.identities()) {
            Ok(messages) => messages,
            Err(error) => return self.junk.refuse("bundle", &error),
        };
        let mut replies = Vec::new();
        for mut frames in messages {
            let Some(index) = self.addressee(wire, &mut frames) else {
                self.junk
                    .refuse("bundle", &"a message in it is for no engine here");
                continue;
            };
            let session = self.engines[index].session();
            match read(&session, frames, false) {
                Ok(message) => self.request(index, session, message, &mut replies),
                Err(error) => self.junk.refuse("bundle", &error),
            }
        }
        self.send_all(replies);
    }

    /// Takes a message for an engine.
    pub(super) fn shell_of(&mut self, index: usize, frames: Vec<Message>) {
        if let Some((session, message)) = self.open("shell channel", index, frames) {
            let mut replies = Vec::new();
            self.request(index, session, message, &mut replies);
            self.send_all(replies);
        }
    }

    /// Takes one message; what is over at once is answered in `replies`.
    fn request(
        &mut self,
        index: usize,
        session: Arc<Session>,
        (envelope, msg_type, msg_id): Read,
        replies: &mut Vec<Outgoing>,
    ) {
        if self.links[index].gone {
            return;
        }
        let kind = match msg_type.as_str() {
            types::FUNCTION_REQUEST => Kind::Function,
            types::COMMAND_REQUEST => Kind::Command,
            types::APPLY_REQUEST if self.process.kernels.is_some() => Kind::Apply,
            types::EXECUTE_REQUEST if self.process.kernels.is_some() => Kind::Execute,
            types::FS_REQUEST => return self.file_server.serve(&self.engines[index], envelope),
            types::ABORT_REQUEST => return self.abort(index, &session, &envelope),
            types::GIVE_BACK_REQUEST => return self.give_back(index, &session, &envelope),
            types::HOLDS_REQUEST => return self.tell_holds(index, &envelope),
            types::LEAVE_REPLY => return self.may_leave(index, &session, envelope.content()),
            types::REPLY_ACK => return self.acknowledge(index, &session, &envelope),
            _ => return self.leave_to_kernel(Channel::Shell, index, &session, envelope, &msg_type),
        };
        let task = match Task::read(&session, envelope, kind, msg_id) {
            Ok(task) => task,
            Err(error) => return self.junk.refuse("metadata of a task", &error),
        };
        let link = &mut self.links[index];
        // Whether this is the pure path is not known before the hub has answered.
        if (link.pure || link.id.is_none()) && task.via == Via::Task && link.leaving.is_none() {
            let client = task
                .envelope
                .identities()
                .get(1)
                .map_or(&[][..], |client| &client[..]);
            let id = match task.wants.range {
                Some((lo, hi)) => format!("{}:{lo}-{hi}", task.msg_id),
                None => task.msg_id.clone(),
            };
            link.received.push((hex(client), id, msg_type));
        }
        if link.leaving.is_some() {
            return self.return_unstarted(
                index,
                Returned::Task(Box::new(task)),
                "the engine leaves",
            );
        }
        let pure = link.pure;
        let engine = &self.engines[index];
        // On the pure path a task is announced before it begins, so not one by one as they are read.
        if kind == Kind::Function
            && !pure
            && task.members() <= QUICK
            && self.is_quick(&session, &task)
            && engine.begin_now(&task)
        {
            // No other thread for what is over before that one would have woken.
            execute(&self.process, engine, task, &mut |reply| {
                replies.push(reply)
            });
            engine.done();
            return;
        }
        if engine.push(task) {
            self.start_worker(index);
        }
    }

    /// Starts the thread of an engine.
    pub(super) fn start_worker(&mut self, index: usize) {
        if let Err(error) = start_worker(self.process.clone(), self.engines[index].clone()) {
            let why = format!("no thread for an engine's tasks: {error}");
            tracing::error!("{why}");
            self.leave_one(index, &why, false);
        }
    }

    fn is_quick(&self, session: &Session, task: &Task) -> bool {
        session
            .packer
            .unpack::<FunctionCall>(task.envelope.content())
            .is_ok_and(|call| call.code.is_none() && self.process.functions.is_quick(&call.name))
    }

    /// Checks a message and reads its header.
    pub(super) fn open(
        &mut self,
        kind: &'static str,
        index: usize,
        frames: Vec<Message>,
    ) -> Option<(Arc<Session>, Read)> {
        let session = self.engines[index].session();
        match read(&session, frames, true) {
            Ok(message) => Some((session, message)),
            Err(error) => {
                self.junk.refuse(kind, &error);
                None
            }
        }
    }

    pub(super) fn acknowledge(&mut self, index: usize, session: &Session, envelope: &Envelope) {
        match session.unpack::<Acked>(envelope.content()) {
            Ok(acked) => self.links[index].kept.acknowledged(&acked),
            Err(error) => self.junk.refuse("reply_ack", &error),
        }
    }

    /// Tells the scheduler what the engine holds; what is not named is taken to have never arrived. All that was sent before
    /// the question is here by now, and what ends just now is still running or finished already.
    fn tell_holds(&mut self, index: usize, request: &Envelope) {
        let engine = self.engines[index].clone();
        let (running, queued) = engine.holding();
        self.flush();
        let kept = &self.links[index].kept;
        let holds = Holds {
            running,
            finished: kept.held(),
            queued,
        };
        let copies: Vec<Vec<Message>> = kept.copies().collect();
        if !copies.is_empty() {
            tracing::info!(
                engine = engine.id(),
                bytes = kept.bytes(),
                "sending {} replies again",
                copies.len()
            );
        }
        let parent = Some(request.header());
        let metadata = json!({"engine": engine.uuid});
        let answer = engine.to_scheduler(types::HOLDS_REPLY, parent, &metadata, &holds, Vec::new());
        for frames in copies {
            self.send(Outgoing {
                index,
                channel: Channel::Shell,
                frames,
                // Kept already.
                answers: None,
            });
        }
        self.send(answer);
    }

    pub(super) fn give_back(&mut self, index: usize, session: &Session, envelope: &Envelope) {
        let request: GiveBackRequest = match session.unpack(envelope.content()) {
            Ok(request) => request,
            Err(error) => return self.junk.refuse("give_back_request", &error),
        };
        let engine = self.engines[index].clone();
        let mut returned = Vec::new();
        if let Some(tasks) = &request.tasks {
            returned.extend(engine.give_back_these(tasks));
        }
        if let Some(ids) = request.msg_ids {
            let tasks: Vec<_> = ids
                .iter()
                .map(|id| match ipbroker_protocol::array::split_id(id) {
                    (msg_id, Some(index)) => (msg_id.to_owned(), index, index + 1),
                    (msg_id, None) => (msg_id.to_owned(), 0, u64::MAX),
                })
                .collect();
            returned.extend(engine.give_back_these(&tasks));
        }
        if let Some(count) = request.count {
            returned.extend(engine.give_back(count));
        }
        for one in returned {
            self.return_unstarted(index, one, "it was asked back");
        }
    }

    /// Hands an unstarted task back to the scheduler; a direct one is answered with an error.
    pub(super) fn return_unstarted(&mut self, index: usize, returned: Returned, why: &str) {
        let engine = &self.engines[index];
        let (parent, range, frames) = match returned {
            Returned::Range(msg_id, lo, hi, frames) => {
                let parent = engine.session().pack(&json!({"msg_id": msg_id}));
                (parent, Some((lo, hi)), frames)
            }
            Returned::Task(task) if task.via == Via::Task => {
                let (header, range) = (task.envelope.header().to_vec(), task.wants.range);
                // The scheduler has an array's own frames; who keeps none needs them all.
                let frames = match range.is_none() || self.links[index].pure {
                    true => task.envelope.into_frames().into_iter().skip(1).collect(),
                    false => Vec::new(),
                };
                (header, range, frames)
            }
            Returned::Task(task) => {
                let words = format!("engine {} did not start this: {why}", engine.id());
                let content = ErrorContent::new("EngineError", words);
                let metadata =
                    json!({"status": "error", "engine": engine.uuid, "range": task.wants.range});
                let (channel, msg_type) = (Channel::Shell, task.kind.reply());
                let (request, buffers) = (&task.envelope, Vec::new());
                let refusal =
                    engine.answer(channel, request, msg_type, &metadata, &content, buffers);
                return self.send(refusal);
            }
        };
        let (parent, nothing) = (Some(&parent[..]), json!({}));
        let metadata = json!({"engine": engine.uuid, "range": range});
        self.send(engine.to_scheduler(types::GIVEN_BACK, parent, &metadata, &nothing, frames));
    }

    /// Leaves a message to the engine's kernel, if it has one.
    pub(super) fn leave_to_kernel(
        &mut self,
        channel: Channel,
        index: usize,
        session: &Session,
        message: Envelope,
        msg_type: &str,
    ) {
        let word = match channel {
            Channel::Control => Word::Control(message),
            _ => Word::Shell(message),
        };
        let refused = match self.engines[index].line() {
            Some(line) => line.say(word),
            None => Err(word),
        };
        if let Err(Word::Control(message) | Word::Shell(message)) = refused {
            self.refuse(channel, index, session, &message, msg_type);
        }
    }

    /// Answers a request that this engine does not know, so that nobody waits for ever.
    pub(super) fn refuse(
        &mut self,
        channel: Channel,
        index: usize,
        session: &Session,
        request: &Envelope,
        msg_type: &str,
    ) {
        let Some(stem) = msg_type.strip_suffix("_request") else {
            return self
                .junk
                .refuse("message type", &format_args!("{msg_type:?} is no request"));
        };
        let engine = self.engines[index].clone();
        let id = engine.id();
        let words = format!(
            "engine {id} ({}) has no {msg_type}: it runs commands and functions, and has no Jupyter kernel (ipengine --kernel)",
            self.process.files.host
        );
        let info = json!({"engine_uuid": engine.uuid, "engine_id": id, "method": stem});
        let content = json!({"status": "error", "ename": "NotImplementedError", "evalue": words, "traceback": [], "engine_info": info});
        let AnyMap(asked) = session.unpack(request.metadata()).unwrap_or_default();
        let mut metadata = json!({"status": "error", "engine": engine.uuid, "dependencies_met": true, "engine_info": info});
        for key in ["is_broadcast", "is_coalescing", "original_msg_id"] {
            if let (Some(value), Some(map)) = (asked.get(key), metadata.as_object_mut()) {
                map.insert(key.to_owned(), value.clone());
            }
        }
        let (reply, buffers) = (format!("{stem}_reply"), Vec::new());
        self.send(engine.answer(channel, request, &reply, &metadata, &content, buffers));
        self.send(engine.idle(request));
    }
}

/// A message with its type and its id.
pub(super) type Read = (Envelope, String, String);

/// Reads a message; its signature is checked unless it came in a bundle.
fn read(session: &Session, frames: Vec<Message>, signed: bool) -> Result<Read, String> {
    let envelope = Envelope::parse(frames).map_err(|error| error.to_string())?;
    if signed {
        session
            .verify(&envelope)
            .map_err(|error| error.to_string())?;
    }
    let header = HeaderRef::read(session.packer, envelope.header())
        .map_err(|error| format!("header: {error}"))?;
    let (msg_type, msg_id) = (header.msg_type.into_owned(), header.msg_id.into_owned());
    Ok((envelope, msg_type, msg_id))
}
