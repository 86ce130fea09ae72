//! The executor of Python calls: each logical engine has one interpreter, which is started when the first call comes and
//! replaced when it dies.

mod interpreter;

use ipbroker_protocol::{
    message::{ErrorContent, FunctionCall},
    session::Packer,
    zmq::Message,
};
use parking_lot::MutexGuard;
use rustix::process::Pid;
use serde::Serialize;
use serde_bytes::ByteBuf;

use interpreter::{Answer, Event, Output, Request};
pub(crate) use interpreter::{Interpreter, Python, Status, ended};

use super::{Executor, Verdict, array::Arguments, execute, granted, require, watch::Watch};
use crate::{
    job::{Captured, Interrupt, Observer, Stop},
    logical_engine::LogicalEngine,
    process::{Outgoing, Process},
    reaper::MARK,
    task::Task,
};

/// Bytes of each output in a reply; more goes to who listens.
const KEPT: usize = 64 << 10;

/// The content of the reply to a call that ended well: what it printed.
#[derive(Serialize)]
struct Content {
    status: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    stdout: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    stderr: Option<String>,
}

/// Calls of one Python function.
pub(super) struct Calls<'a> {
    process: &'a Process,
    engine: &'a LogicalEngine,
    task: &'a Task,
    call: FunctionCall,
    arguments: Arguments<'a>,
    packer: Packer,
    unmet: Option<ErrorContent>,
    buffers: Vec<Message>,
    /// What the last call of an array printed.
    printed: [Option<String>; 2],
}

impl<'a> Calls<'a> {
    pub(super) fn new(
        process: &'a Process,
        engine: &'a LogicalEngine,
        task: &'a Task,
        packer: Packer,
        call: FunctionCall,
    ) -> Result<Self, Box<ErrorContent>> {
        let arguments = Arguments::new(task)?;
        let lacking = match (&process.python, &call.python) {
            (None, _) => Some("no Python here: the engine was started without --python".to_owned()),
            (Some(python), Some(wanted)) if *wanted != python.version => Some(format!(
                "{} is Python {}, the client's is {wanted}: functions that go by value need the same version",
                python.program.display(),
                python.version,
            )),
            _ => task
                .wants
                .require
                .as_ref()
                .and_then(|require| require::lacking(require, &process.files.work_dir, &[])),
        };
        let unmet = lacking.map(|lacking| {
            ErrorContent::new(
                "UnmetDependency",
                format!("{}: {lacking}", process.files.host),
            )
        });
        Ok(Self {
            process,
            engine,
            task,
            call,
            arguments,
            packer,
            unmet,
            buffers: Vec::new(),
            printed: Default::default(),
        })
    }

    /// The engine's interpreter, started if there is none.
    fn interpreter<'s>(
        &self,
        slot: &'s mut Option<Interpreter>,
    ) -> Result<&'s mut Interpreter, Box<ErrorContent>> {
        if slot
            .as_mut()
            .is_some_and(|interpreter| !interpreter.lives())
        {
            *slot = None;
            self.process.shared.group(self.engine.index, 0);
        }
        if slot.is_none() {
            let Some(python) = &self.process.python else {
                return Err(self.unmet.clone().unwrap_or_default().into());
            };
            if self.process.kernels_run_calls() {
                let mut kernel = self.engine.kernel.lock();
                let host = &self.process.files.host;
                return match kernel.interpreter() {
                    Ok(interpreter) => Ok(slot.insert(interpreter)),
                    Err(why) => {
                        let text =
                            why.unwrap_or_else(|| format!("{host}: the engine has no kernel"));
                        Err(Box::new(ErrorContent::new("UnmetDependency", text)))
                    }
                };
            }
            let id = self.engine.id().to_string();
            let mut environment = vec![
                (MARK, self.process.mark.as_ref()),
                ("IPBROKER_ENGINE_ID", id.as_ref()),
            ];
            if let Some(file) = &python.client {
                environment.push(("IPBROKER_CONNECTION", file.as_os_str()));
            }
            let started =
                Interpreter::start(&python.program, &self.process.files.work_dir, environment);
            let started = started.map_err(|error| {
                let text = format!(
                    "{}: cannot start {}: {error}",
                    self.process.files.host,
                    python.program.display()
                );
                Box::new(ErrorContent::new("UnmetDependency", text))
            })?;
            self.process.number_interpreter(started.pid);
            *slot = Some(started);
        }
        Ok(slot.as_mut().expect("started above"))
    }

    fn slot(&self) -> MutexGuard<'a, Option<Interpreter>> {
        self.engine.python.lock()
    }

    /// Hears of a call until it is over; while it waits, other tasks are worked on.
    ///
    /// Its answer, and the beginning of its result, as far as that was told before.
    fn attend(&self, number: u64, pid: Pid, output: &mut Output<'_>) -> (Answer, Vec<u8>) {
        let mut waits = false;
        let mut begun = Vec::new();
        let answer = loop {
            if waits {
                let kernels = !self.process.kernels_run_calls();
                while let Some(task) = self.engine.next_meanwhile(kernels) {
                    execute(self.process, self.engine, task, &mut |message| {
                        self.process.outbox.push(message)
                    });
                    self.engine.done();
                }
            }
            let mut slot = self.slot();
            let Some(interpreter) = slot.as_mut().filter(|interpreter| interpreter.pid == pid)
            else {
                break Answer::Gone;
            };
            let bell = if waits {
                self.engine.meanwhile().ok()
            } else {
                None
            };
            match interpreter.next(number, bell, output) {
                Event::Ended(answer) => break answer,
                Event::Woken => {}
                Event::Kept(mut part) => begun.append(&mut part),
                Event::Waits => {
                    // Before it is told: a task may come at once.
                    let _ = self.engine.meanwhile();
                    waits = true;
                    self.tell(self.engine.wait(self.priority()));
                }
                Event::Resumes => {
                    if interpreter.resume(number).is_err() {
                        break Answer::Gone;
                    }
                    waits = false;
                    self.tell(self.engine.go_on());
                }
            }
        };
        if waits {
            self.tell(self.engine.go_on());
        }
        (answer, begun)
    }

    fn priority(&self) -> i32 {
        self.task.wants.priority.unwrap_or_default()
    }

    /// Sends the scheduler a word.
    fn tell(&self, notice: Option<Outgoing>) {
        notice
            .into_iter()
            .for_each(|notice| self.process.outbox.push(notice));
    }

    /// The outcome of a call that ended by itself.
    fn outcome(
        &mut self,
        answer: Answer,
        begun: Vec<u8>,
        kept: &[Captured; 2],
        out: &mut Vec<u8>,
    ) -> Verdict {
        match answer {
            Answer::Result(parts) => {
                let printed = kept.each_ref().map(|kept| {
                    let bytes = &kept.bytes[..kept.bytes.len().min(KEPT)];
                    (kept.total > 0).then(|| String::from_utf8_lossy(bytes).into_owned())
                });
                if self.task.wants.range.is_some() {
                    out.extend(begun);
                    out.extend(parts.into_iter().next().unwrap_or_default());
                    self.printed = printed;
                } else {
                    let [stdout, stderr] = printed;
                    let status = "ok";
                    out.append(&mut self.packer.pack(&Content {
                        status,
                        stdout,
                        stderr,
                    }));
                    self.buffers = parts.into_iter().map(Message::from).collect();
                }
                Verdict::Ok
            }
            Answer::Error { parts, unmet } => {
                let text = |at: usize| {
                    parts
                        .get(at)
                        .map(|part| String::from_utf8_lossy(part).into_owned())
                        .unwrap_or_default()
                };
                let ename = if unmet {
                    "UnmetDependency".to_owned()
                } else {
                    text(0)
                };
                let evalue = if unmet {
                    format!("{}: {}: {}", self.process.files.host, text(0), text(1))
                } else {
                    text(1)
                };
                let error = ErrorContent {
                    traceback: text(2).split_inclusive('\n').map(str::to_owned).collect(),
                    exception: parts
                        .into_iter()
                        .nth(3)
                        .filter(|bytes| !bytes.is_empty())
                        .map(ByteBuf::from),
                    ..ErrorContent::new(&ename, evalue)
                };
                self.refuse(&error, out);
                if unmet || ename == "UnmetDependency" {
                    Verdict::Unmet
                } else {
                    Verdict::Failed
                }
            }
            Answer::Gone => Verdict::Failed,
        }
    }
}

impl Executor for Calls<'_> {
    fn run(&mut self, index: u64, out: &mut Vec<u8>) -> Verdict {
        if let Some(unmet) = &self.unmet {
            self.refuse(unmet, out);
            return Verdict::Unmet;
        }
        let (process, engine) = (self.process, self.engine);
        let host = process.files.host.as_str();
        let generation = match engine.begin_member(index) {
            Ok((generation, _)) => generation,
            Err(stop) => return self.refuse_stopped(&stop, engine, host, out),
        };
        let told = match granted::tell(process, &self.task.wants) {
            Ok(told) => told,
            Err(error) => {
                engine.running.finish();
                self.refuse(&ErrorContent::new(error.ename(), error.to_string()), out);
                return Verdict::Failed;
            }
        };
        let mut slot = self.slot();
        let interpreter = match self.interpreter(&mut slot) {
            Ok(interpreter) => interpreter,
            Err(error) => {
                engine.running.finish();
                self.refuse(&error, out);
                return Verdict::Unmet;
            }
        };
        interpreter.number += 1;
        let interrupt = Interrupt::Call {
            memory: interpreter.interrupts.clone(),
            ready: interpreter.ready.clone(),
            number: interpreter.number,
        };
        let member = self.task.wants.range.map(|_| index);
        let mut watch = Watch::new(process, engine, self.task, true).of(member);
        watch.spawned(interpreter.pid);
        if !engine.running.set_interpreter(interpreter.pid, interrupt) {
            let stop = engine.running.stop_reason().unwrap_or(Stop::Aborted);
            process.warden.stop(&engine.running, generation, stop);
        }
        if let Some(seconds) = self.call.limit.time {
            process
                .warden
                .limit_time(&engine.running, generation, seconds);
        }
        if let Some(bytes) = self.call.limit.memory {
            process
                .warden
                .limit_memory(&engine.running, generation, bytes);
        }
        let array = self.task.wants.range.is_some();
        let request = Request {
            code: self.call.code.as_deref().map_or(&[][..], |code| &code[..]),
            msg_id: &self.task.msg_id,
            index: array.then_some(index),
            priority: self.priority(),
            variables: &told.variables,
            arguments: self.arguments.get(index).unwrap_or_default(),
            buffers: match self.task.envelope.buffers() {
                [_, rest @ ..] if !array => rest,
                _ => &[],
            },
        };
        let mut output = Output::new(&mut watch);
        let (number, pid) = (interpreter.number, interpreter.pid);
        let sent = interpreter.begin(&request, &mut output);
        drop(slot);
        let (answer, begun) = match sent {
            Ok(()) => self.attend(number, pid, &mut output),
            Err(_) => (Answer::Gone, Vec::new()),
        };
        output.end();
        let kept = output.kept;
        let mut slot = self.slot();
        // A call that was worked on while this one waited may have taken the interpreter with it.
        let gone = match slot.as_mut().filter(|interpreter| interpreter.pid == pid) {
            _ if !matches!(answer, Answer::Gone) => None,
            Some(interpreter) => {
                let status = engine.running.reap(|| interpreter.end());
                *slot = None;
                Some(ended(status))
            }
            None => Some("what another call did while it waited".to_owned()),
        };
        let stop = engine.running.finish();
        if slot.is_none() {
            process.shared.group(engine.index, 0);
        }
        drop(slot);
        if let Some(stop) = stop {
            return self.refuse_stopped(&stop, engine, host, out);
        }
        if let Some(cause) = gone {
            let text = format!(
                "{host}: the Python interpreter of engine {} was ended by {} while it ran {}",
                engine.id(),
                cause,
                self.call.name
            );
            let last_words = String::from_utf8_lossy(&kept[1].bytes);
            let error = ErrorContent {
                traceback: last_words
                    .split_inclusive('\n')
                    .map(str::to_owned)
                    .collect(),
                results: (!begun.is_empty()).then(|| ByteBuf::from(begun)),
                ..ErrorContent::new("EngineError", text)
            };
            self.refuse(&error, out);
            return Verdict::Failed;
        }
        self.outcome(answer, begun, &kept, out)
    }

    fn refuse(&self, error: &ErrorContent, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.packer.pack(error));
    }

    fn content(&self) -> bool {
        true
    }

    fn buffers(&mut self) -> Vec<Message> {
        std::mem::take(&mut self.buffers)
    }

    fn printed(&mut self) -> [Option<String>; 2] {
        std::mem::take(&mut self.printed)
    }
}
