//! What runs tasks: one executor a kind, behind one small trait.

mod array;
mod command;
pub(crate) mod fresh;
mod function;
mod gathered;
mod granted;
mod kernel;
mod python;
mod require;
mod watch;
mod worker;

use ipbroker_protocol::{
    message::{ErrorContent, FunctionCall},
    session::Packer,
    zmq::Message,
};

pub(crate) use gathered::{Flusher, Gathered};
pub(crate) use python::{Interpreter, Python, Status, ended};
pub(crate) use worker::{execute, refuse_aborted, start_worker};

use crate::{
    job::Stop,
    logical_engine::LogicalEngine,
    process::Process,
    task::{Kind, Task},
};

/// How one member ended, as the scheduler sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// Well.
    Ok,
    /// It failed: an error, or a command that ended with a code other than 0.
    Failed,
    /// It was aborted.
    Aborted,
    /// This engine lacks what it needs.
    Unmet,
}

impl Verdict {
    /// As in the metadata of a reply.
    pub(crate) fn status(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Failed | Self::Unmet => "error",
            Self::Aborted => "aborted",
        }
    }

    /// As in the list of an array reply's failed members.
    pub(crate) fn word(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Failed => "error",
            Self::Aborted => "aborted",
            Self::Unmet => "unmet",
        }
    }
}

/// Runs the members of one task.
pub(crate) trait Executor {
    /// Runs one member and appends its packed outcome to `out`: an error map, or [what this kind returns](Self::content).
    fn run(&mut self, index: u64, out: &mut Vec<u8>) -> Verdict;

    /// Appends the outcome of a member that was never run.
    fn refuse(&self, error: &ErrorContent, out: &mut Vec<u8>);

    /// The same of one that was stopped, or did not begin, for this reason.
    fn refuse_stopped(
        &self,
        stop: &Stop,
        engine: &LogicalEngine,
        host: &str,
        out: &mut Vec<u8>,
    ) -> Verdict {
        let (verdict, error) = stopped(stop, engine, host);
        self.refuse(&error, out);
        verdict
    }

    /// Whether what [`run`](Self::run) appends on [`Verdict::Ok`] is a reply's content; else it is its first buffer.
    fn content(&self) -> bool;

    /// Buffers beside the content.
    fn buffers(&mut self) -> Vec<Message> {
        Vec::new()
    }

    /// What the last member printed, on stdout and stderr, if that is to be told.
    fn printed(&mut self) -> [Option<String>; 2] {
        Default::default()
    }

    /// How many members may be claimed at once while they take no time.
    fn stride(&self) -> u64 {
        1
    }
}

/// The executor of a task, or why it cannot be run. Single outcomes are packed by `packer`, those of arrays always as
/// MessagePack.
pub(crate) fn executor<'a>(
    process: &'a Process,
    engine: &'a LogicalEngine,
    task: &'a Task,
    packer: Packer,
) -> Result<Box<dyn Executor + 'a>, Box<ErrorContent>> {
    let packer = if task.wants.range.is_some() {
        Packer::Msgpack
    } else {
        packer
    };
    let session = engine.session();
    match task.kind {
        Kind::Function => {
            let call: FunctionCall = session.unpack(task.envelope.content()).map_err(|error| {
                let text = format!("function_request: {error}");
                Box::new(ErrorContent::new("ValueError", text))
            })?;
            Ok(if call.code.is_some() {
                Box::new(python::Calls::new(process, engine, task, packer, call)?)
            } else {
                Box::new(function::Functions::new(
                    process, engine, task, packer, call.name,
                )?)
            })
        }
        Kind::Command => Ok(Box::new(command::Commands::new(
            process, engine, task, &session, packer,
        )?)),
        Kind::Apply | Kind::Execute => Ok(Box::new(kernel::Request::new(
            process, engine, task, packer,
        ))),
    }
}

/// The error of a task that was stopped, or never run, for this reason.
pub(crate) fn stopped(stop: &Stop, engine: &LogicalEngine, host: &str) -> (Verdict, ErrorContent) {
    match stop {
        Stop::Aborted => (
            Verdict::Aborted,
            ErrorContent::new("TaskAborted", "the task was aborted"),
        ),
        Stop::TimeLimit(seconds) => (
            Verdict::Failed,
            ErrorContent::new(
                "TimeLimit",
                format!("{host}: stopped after its time limit of {seconds} s"),
            ),
        ),
        Stop::MemoryLimit { limit, used } => (
            Verdict::Failed,
            ErrorContent::new(
                "MemoryLimit",
                format!("{host}: killed: it used {used} bytes, its limit is {limit}"),
            ),
        ),
        Stop::EngineLeaves(why) => (
            Verdict::Failed,
            ErrorContent::new(
                "EngineError",
                format!(
                    "engine {} on {host} left while it ran this task: {why}",
                    engine.id()
                ),
            ),
        ),
    }
}
