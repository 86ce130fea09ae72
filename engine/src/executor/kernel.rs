//! The executor of requests for the engine's Jupyter kernel: `apply_request` and `execute_request`.

use std::time::Duration;

use ipbroker_protocol::{message::ErrorContent, session::Packer, zmq::Message};
use serde::Deserialize;
use serde_json::json;

use super::{Executor, Verdict};
use crate::{
    job::Stop,
    kernel::{Answer, Slot},
    logical_engine::LogicalEngine,
    process::Process,
    task::{Kind, Task},
};

/// How often a kernel is asked again that has aborted what nobody wanted aborted, and after how long: some do so with all
/// that comes just after an interrupt.
const AGAIN: (u32, Duration) = (20, Duration::from_millis(100));

/// One request.
pub(super) struct Request<'a> {
    process: &'a Process,
    engine: &'a LogicalEngine,
    task: &'a Task,
    packer: Packer,
    buffers: Vec<Message>,
}

impl<'a> Request<'a> {
    pub(super) fn new(
        process: &'a Process,
        engine: &'a LogicalEngine,
        task: &'a Task,
        packer: Packer,
    ) -> Self {
        Self {
            process,
            engine,
            task,
            packer,
            buffers: Vec::new(),
        }
    }

    /// Whether an error of it aborts the code that is queued behind it, as in every Jupyter kernel.
    fn ends_queue(&self) -> bool {
        #[derive(Default, Deserialize)]
        #[serde(default)]
        struct Content {
            silent: bool,
            stop_on_error: Option<bool>,
        }
        let content: Content = self
            .engine
            .session()
            .unpack(self.task.envelope.content())
            .unwrap_or_default();
        self.task.kind == Kind::Execute && !content.silent && content.stop_on_error != Some(false)
    }

    fn publish_end(&self) {
        (self.process.outbox).push(self.engine.idle(&self.task.envelope));
    }

    fn info(&self) -> serde_json::Value {
        json!({"engine_uuid": self.engine.uuid, "engine_id": self.engine.id(), "method": self.task.kind.name()})
    }
}

impl Executor for Request<'_> {
    fn run(&mut self, index: u64, out: &mut Vec<u8>) -> Verdict {
        let (process, engine) = (self.process, self.engine);
        let host = process.files.host.as_str();
        let generation = match engine.begin_member(index) {
            Ok((generation, _)) => generation,
            Err(stop) => return self.refuse_stopped(&stop, engine, host, out),
        };
        let mut slot = engine.kernel.lock();
        let kernel = match &mut *slot {
            Slot::Lives(kernel) => kernel,
            other => {
                engine.running.finish();
                let why = match other {
                    Slot::Broken(why) => why.clone(),
                    _ => format!("{host}: engine {} has no kernel", engine.id()),
                };
                self.refuse(&ErrorContent::new("UnmetDependency", why), out);
                return Verdict::Unmet;
            }
        };
        if self.task.kind == Kind::Apply && !kernel.parallel {
            engine.running.finish();
            let id = engine.id();
            let why = format!(
                "{host}: the kernel of engine {id} has no apply: `ipengine --kernel ipyparallel` has"
            );
            self.refuse(&ErrorContent::new("NotImplementedError", why), out);
            return Verdict::Failed;
        }
        let (pid, interrupt) = kernel.interrupt();
        if !engine.running.set_interpreter(pid, interrupt) {
            let stop = engine.running.stop_reason().unwrap_or(Stop::Aborted);
            process.warden.stop(&engine.running, generation, stop);
        }
        let session = engine.session();
        let mut answer = kernel.ask(&self.task.envelope, &self.task.msg_id, &session);
        for _ in 0..AGAIN.0 {
            let aborted = matches!(&answer, Answer::Reply(reply) if reply.status == "aborted");
            if !aborted || engine.running.stop_reason().is_some() {
                break;
            }
            std::thread::sleep(AGAIN.1);
            answer = kernel.ask(&self.task.envelope, &self.task.msg_id, &session);
        }
        let parallel = kernel.parallel;
        drop(slot);
        if let Some(stop) = engine.running.finish() {
            return self.refuse_stopped(&stop, engine, host, out);
        }
        match answer {
            Answer::Gone(cause) => {
                let text = format!(
                    "{host}: the kernel of engine {} was ended by {cause} while it ran this",
                    engine.id()
                );
                self.refuse(&ErrorContent::new("EngineError", text), out);
                Verdict::Failed
            }
            Answer::Reply(mut reply) => {
                if !parallel {
                    reply.name_engine(&session, &self.info());
                }
                if reply.quiet {
                    self.publish_end();
                }
                out.append(&mut reply.content);
                self.buffers = reply.buffers;
                match (reply.status.as_str(), reply.ename.as_str()) {
                    ("error", "UnmetDependency") => Verdict::Unmet,
                    ("error", _) => {
                        if self.ends_queue() {
                            engine.abort_code();
                        }
                        Verdict::Failed
                    }
                    ("aborted", _) => Verdict::Aborted,
                    _ => Verdict::Ok,
                }
            }
        }
    }

    fn refuse(&self, error: &ErrorContent, out: &mut Vec<u8>) {
        let error = ErrorContent {
            engine_info: self.info().as_object().cloned(),
            ..error.clone()
        };
        out.extend_from_slice(&self.packer.pack(&error));
        // The kernel never heard of it, or will not speak of it again.
        self.publish_end();
    }

    fn content(&self) -> bool {
        true
    }

    fn buffers(&mut self) -> Vec<Message> {
        std::mem::take(&mut self.buffers)
    }
}
