//! What a task writes, on its way to its client.

use rustix::process::Pid;
use serde::Serialize;
use serde_json::json;

use crate::{
    job::{Observer, Stream},
    logical_engine::LogicalEngine,
    process::Process,
    task::Task,
};

/// Metadata of what is published.
#[derive(Serialize)]
struct Published<'a> {
    engine: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    member: Option<u64>,
    /// Bytes of the stream that were before.
    #[serde(skip_serializing_if = "Option::is_none")]
    at: Option<u64>,
    /// As in the reply.
    #[serde(skip_serializing_if = "Option::is_none")]
    attempt: Option<u32>,
}

/// Notes the group and what is written, publishes the output.
pub(super) struct Watch<'a> {
    process: &'a Process,
    engine: &'a LogicalEngine,
    task: &'a Task,
    publish: bool,
    /// The member of an array that writes.
    member: Option<u64>,
    /// The begun characters of both streams.
    begun: [Vec<u8>; 2],
}

impl<'a> Watch<'a> {
    /// Of a task; its output is published if asked for.
    pub(super) fn new(
        process: &'a Process,
        engine: &'a LogicalEngine,
        task: &'a Task,
        publish: bool,
    ) -> Self {
        Self {
            process,
            engine,
            task,
            publish,
            member: None,
            begun: Default::default(),
        }
    }

    /// … or of a member of an array.
    pub(super) fn of(self, member: Option<u64>) -> Self {
        Self { member, ..self }
    }
}

impl Observer for Watch<'_> {
    fn spawned(&mut self, group: Pid) {
        self.process
            .shared
            .group(self.engine.index, group.as_raw_nonzero().get());
        if let Some(id) = self.engine.at_work() {
            self.engine.written.lock().begin(&id);
        }
    }

    fn output(&mut self, stream: Stream, bytes: &[u8]) {
        let begun = &mut self.begun[usize::from(stream == Stream::Stderr)];
        begun.extend_from_slice(bytes);
        // A character may be cut in two by the pipe.
        let whole = match std::str::from_utf8(begun) {
            Err(error) if error.error_len().is_none() => error.valid_up_to(),
            _ => begun.len(),
        };
        let text = String::from_utf8_lossy(&begun[..whole]).into_owned();
        begun.drain(..whole);
        if text.is_empty() {
            return;
        }
        let id = self.engine.at_work();
        let at = id.map(|id| self.engine.written.lock().push(&id, stream, &text));
        if !self.publish {
            return;
        }
        let metadata = Published {
            engine: &self.engine.uuid,
            member: self.member,
            at,
            attempt: self.task.wants.attempt,
        };
        let content = json!({"name": stream.name(), "text": text});
        let (topic, request) = (stream.name(), &self.task.envelope);
        let message = (self.engine).published(topic, "stream", request, &metadata, &content);
        self.process.outbox.push(message);
    }
}
