//! File operations beside the tasks: one thread for all that reads and writes, one for each command.

use std::sync::{
    Arc, OnceLock,
    atomic::{AtomicUsize, Ordering},
};

use crossbeam_channel::{Sender, unbounded};
use ipbroker_protocol::{
    envelope::Envelope,
    message::{Command, CommandResult, FsOp, FsReply, FsRequest, types},
    session::Session,
    spawn,
    zmq::Message,
};
use serde_json::json;

use crate::{
    executor::executor,
    files::FileError,
    logical_engine::LogicalEngine,
    process::{Channel, Process},
    task::{Kind, Task},
};

/// Commands that run at once beside the tasks.
const COMMANDS: usize = 64;

/// Where file operations are served.
#[derive(Debug)]
pub(super) struct FileServer {
    process: Arc<Process>,
    queue: OnceLock<Sender<Request>>,
    commands: Arc<AtomicUsize>,
}

#[derive(Debug)]
struct Request {
    envelope: Envelope,
    request: FsRequest,
    engine: Arc<LogicalEngine>,
}

impl FileServer {
    pub(super) fn new(process: Arc<Process>) -> Self {
        Self {
            process,
            queue: OnceLock::new(),
            commands: Arc::default(),
        }
    }

    /// Serves a request; the reply goes through the outbox.
    pub(super) fn serve(&self, engine: &Arc<LogicalEngine>, envelope: Envelope) {
        let engine = engine.clone();
        let request = match engine.session().unpack::<FsRequest>(envelope.content()) {
            Ok(request) => request,
            Err(error) => {
                let reply = self
                    .process
                    .files
                    .refuse(&FileError::Request(format!("fs_request: {error}")));
                return answer(&self.process, &engine, &envelope, &reply, None);
            }
        };
        if request.op == FsOp::Run {
            return self.command(Request {
                envelope,
                request,
                engine,
            });
        }
        let queue = self.queue.get_or_init(|| {
            let (sender, receiver) = unbounded::<Request>();
            let process = self.process.clone();
            let serve = move || {
                for Request {
                    envelope,
                    request,
                    engine,
                } in receiver
                {
                    let bytes = envelope.buffers().first().map(|buffer| &buffer[..]);
                    let (reply, buffer) = process.files.serve(&request, bytes);
                    answer(&process, &engine, &envelope, &reply, buffer);
                }
            };
            if let Err(error) = spawn("files", serve) {
                tracing::error!(%error, "no thread for file operations");
            }
            sender
        });
        let _ = queue.send(Request {
            envelope,
            request,
            engine,
        });
    }

    fn command(&self, request: Request) {
        if self.commands.fetch_add(1, Ordering::AcqRel) >= COMMANDS {
            self.commands.fetch_sub(1, Ordering::AcqRel);
            let why = format!(
                "{COMMANDS} commands run beside the tasks already; submit this one as a task"
            );
            let reply = self.process.files.refuse(&FileError::Request(why));
            let Request {
                engine, envelope, ..
            } = request;
            return answer(&self.process, &engine, &envelope, &reply, None);
        }
        let (process, commands) = (self.process.clone(), self.commands.clone());
        let run = move || {
            let Request {
                envelope,
                request,
                engine,
            } = request;
            let session = engine.session();
            let reply = match run(
                &process,
                &session,
                engine.id(),
                &request.command.unwrap_or_default(),
            ) {
                Ok(result) => FsReply {
                    status: "ok".into(),
                    host: process.files.host.clone(),
                    result: Some(result),
                    ..FsReply::default()
                },
                Err(error) => process.files.refuse(&FileError::Request(error)),
            };
            answer(&process, &engine, &envelope, &reply, None);
            commands.fetch_sub(1, Ordering::AcqRel);
        };
        if let Err(error) = spawn("files-run", run) {
            self.commands.fetch_sub(1, Ordering::AcqRel);
            tracing::error!(%error, "no thread for a command beside the tasks");
        }
    }
}

/// Runs a command as a task would be run, on an engine of its own.
fn run(
    process: &Process,
    session: &Arc<Session>,
    id: u32,
    command: &Command,
) -> Result<CommandResult, String> {
    let header = session.header(types::COMMAND_REQUEST);
    let msg_id = header.msg_id.clone();
    let request = session.message(Vec::new(), &header, None, &json!({}), command, Vec::new());
    let task =
        Task::read(session, request, Kind::Command, msg_id).map_err(|error| error.to_string())?;
    let engine = LogicalEngine::new(usize::MAX, session.id.clone(), session.clone());
    engine.id.store(id, Ordering::Relaxed);
    let mut executor =
        executor(process, &engine, &task, session.packer).map_err(|error| error.evalue)?;
    let mut out = Vec::new();
    executor.run(0, &mut out);
    session.unpack(&out).map_err(|error| error.to_string())
}

fn answer(
    process: &Process,
    engine: &LogicalEngine,
    request: &Envelope,
    reply: &FsReply,
    buffer: Option<Vec<u8>>,
) {
    let metadata = json!({"status": reply.status, "engine": engine.uuid});
    let buffers = buffer.map(Message::from).into_iter().collect();
    let (channel, msg_type) = (Channel::Shell, types::FS_REPLY);
    let answer = engine.answer(channel, request, msg_type, &metadata, reply, buffers);
    process.outbox.push(answer);
}
