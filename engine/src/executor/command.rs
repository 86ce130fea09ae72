//! The executor of shell jobs.

use std::{
    borrow::Cow,
    ffi::OsString,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use ipbroker_protocol::{
    array::member_id,
    message::{Command, CommandResult, ErrorContent, Require},
    session::{Packer, Session},
    time,
    value::AnyMap,
    zmq::Message,
};
use serde_bytes::ByteBuf;

use super::{Executor, Verdict, array::Arguments, fresh, granted, require, stopped, watch::Watch};
use crate::{
    files::{self, FileError, Scratch},
    job::{self, Input, Job, Stop},
    process::Process,
    reaper::{Line, MARK, TASK, end_strays},
    seat::Seat,
    task::Task,
};

/// Why a job did not run: an error's name and its words.
type Refusal = (Verdict, &'static str, String);

/// Shell jobs of one request.
pub(super) struct Commands<'a> {
    process: &'a Process,
    seat: &'a Seat,
    task: &'a Task,
    template: serde_json::Map<String, serde_json::Value>,
    single: Command,
    arguments: Arguments<'a>,
    packer: Packer,
    buffers: Vec<Message>,
}

impl<'a> Commands<'a> {
    pub(super) fn new(
        process: &'a Process,
        seat: &'a Seat,
        task: &'a Task,
        session: &Session,
        packer: Packer,
    ) -> Result<Self, Box<ErrorContent>> {
        let wrong = |error: &dyn std::fmt::Display| {
            Box::new(ErrorContent::new(
                "ValueError",
                format!("command_request: {error}"),
            ))
        };
        let single: Command = session
            .packer
            .unpack_map(task.envelope.content())
            .map_err(|error| wrong(&error))?;
        let mut template = serde_json::Map::new();
        // The buffers of an ordinary job are its input files.
        let mut arguments = Arguments::One(None);
        if task.wants.range.is_some() {
            let AnyMap(map) = session
                .unpack(task.envelope.content())
                .map_err(|error| wrong(&error))?;
            template = map;
            arguments = Arguments::new(task)?;
            if !single.get.is_empty() {
                return Err(wrong(
                    &"`get` returns buffers, which the members of an array do not have",
                ));
            }
        }
        Ok(Self {
            process,
            seat,
            task,
            template,
            single,
            arguments,
            packer,
            buffers: Vec::new(),
        })
    }

    /// The job of one member: the template with the member's own keys.
    fn command(&self, index: u64) -> Result<Command, Refusal> {
        let Some(own) = self.arguments.get(index) else {
            return Ok(self.single.clone());
        };
        let wrong = |error: &dyn std::fmt::Display| {
            (
                Verdict::Failed,
                "ValueError",
                format!("member {index}: {error}"),
            )
        };
        let AnyMap(own) = Packer::Msgpack.unpack(own).map_err(|error| wrong(&error))?;
        let mut merged = self.template.clone();
        merged.extend(own);
        serde_json::from_value(merged.into()).map_err(|error| wrong(&error))
    }

    fn host(&self) -> &'a str {
        &self.process.files.host
    }

    fn pack(&self, result: &CommandResult, out: &mut Vec<u8>) {
        match self.packer {
            Packer::Msgpack => {
                let _ = rmp_serde::encode::write_named(out, result);
            }
            Packer::Json => out.extend_from_slice(&self.packer.pack(result)),
        }
    }

    fn empty(&self) -> CommandResult {
        CommandResult {
            host: Some(self.host().to_owned()),
            engine_id: Some(self.seat.id()),
            ..CommandResult::default()
        }
    }

    /// Runs one job and fills in its result.
    fn run_one(&mut self, index: u64, result: &mut CommandResult) -> Result<Verdict, Refusal> {
        let command = self.command(index)?;
        if command.cmd.is_empty() {
            let text = "command_request: `cmd`, the command for bash, is missing or empty";
            return Err((Verdict::Failed, "ValueError", text.to_owned()));
        }
        let place = Place::of(self.process, &command)?;
        let told = granted::tell(self.process, &self.task.wants)
            .map_err(|error| (Verdict::Failed, error.ename(), error.to_string()))?;
        let id = match self.task.wants.range {
            Some(_) => member_id(&self.task.msg_id, index),
            None => self.task.msg_id.clone(),
        };
        let mut job = self.job(&command, &place, &id, &told)?;
        if let Some(require) = &self.task.wants.require {
            self.check(require, &place, &job)?;
        }
        self.check(&command.require, &place, &job)?;
        if !command.put.is_empty() {
            let buffers = if self.task.wants.range.is_some() {
                &[]
            } else {
                self.task.envelope.buffers()
            };
            files::place(
                &self.process.files.cache,
                place.dir(),
                &command.put,
                buffers,
            )
            .map_err(|error| {
                // Another engine's host may have it.
                let verdict = match error {
                    FileError::NotCached { .. } => Verdict::Unmet,
                    _ => Verdict::Failed,
                };
                (verdict, error.ename(), error.to_string())
            })?;
        }
        let below = |path: &String| place.dir().join(self.expand(path));
        let creates: Vec<_> = command.creates.iter().map(below).collect();
        let fresh = fresh::up_to_date(&creates, command.needs.iter().map(below))
            .map_err(|missing| (Verdict::Failed, "FileNotFoundError", missing))?;
        // What an attempt has left that failed, or went with its engine, is not what the job creates.
        if fresh && self.task.wants.attempt.is_none() {
            (result.status, result.code, result.up_to_date) = ("ok".into(), Some(0), true);
            return Ok(Verdict::Ok);
        }
        let memory = granted::memory_limit(&self.task.wants.granted, command.limit.memory);
        job.memory_limit = memory;
        let cage = memory.and_then(|memory| self.process.limits.cage(memory));
        job.prelude = cage.as_ref().map(job::Cage::prelude);
        job.number = self.process.number_job();
        let begun = self.seat.begin_member(index);
        let (generation, _) = begun.map_err(|stop| {
            let (verdict, error) = stopped(&stop, self.seat, self.host());
            (
                verdict,
                if verdict == Verdict::Aborted {
                    "TaskAborted"
                } else {
                    "EngineError"
                },
                error.evalue,
            )
        })?;
        let before = fresh::Before::new(creates);
        let writing = |files: &fresh::Before| {
            if !before.is_empty() {
                let (seat, files) = (self.seat.index, files.clone());
                self.process.tell_reaper(&Line::Writing { seat, files });
            }
        };
        writing(&before);
        let mut watch = Watch::new(self.process, self.seat, &self.task.envelope, command.stream)
            .of(self.task.wants.range.map(|_| index));
        let pinned = (self.process.pin)
            .then(|| granted::Pinned::new(&self.task.wants.granted))
            .flatten();
        let ran = job::run(
            &job,
            &self.seat.running,
            generation,
            &self.process.warden,
            &mut watch,
        );
        drop(pinned);
        let late = self.seat.running.finish();
        self.process.slate.group(self.seat.index, 0);
        let none = fresh::Before::default();
        let mut ended = ran.map_err(|error| {
            writing(&none);
            (Verdict::Failed, error.name(), error.to_string())
        })?;
        if let Some(used) = cage.as_ref().and_then(job::Cage::exceeded) {
            ended.stopped = Some(Stop::MemoryLimit {
                limit: memory.unwrap_or_default(),
                used,
            });
        }
        // A task that ended by itself just before it was to stop has its own outcome.
        let stop = ended
            .stopped
            .take()
            .filter(|_| late.is_some() || cage.is_some());
        if stop.is_some() {
            // Before its files are marked: nobody writes them any more. What was killed has used up its patience.
            let grace = match ended.signal {
                Some(9) => Duration::ZERO,
                _ => self.process.warden.grace,
            };
            end_strays(&id, job.number.unwrap_or(u64::MAX), grace);
        }
        if stop.is_some() || ended.code != 0 {
            before.distrust();
        }
        writing(&none);
        result.code = Some(ended.code);
        if command.capture > 0 {
            // The bytes themselves go along where they are no text.
            let captured = |bytes: &[u8]| match String::from_utf8_lossy(bytes) {
                Cow::Borrowed(text) => (Some(text.to_owned()), None),
                Cow::Owned(text) => (Some(text), Some(ByteBuf::from(bytes))),
            };
            result.truncated = [&ended.stdout, &ended.stderr]
                .iter()
                .map(|kept| kept.total - kept.bytes.len() as u64)
                .sum();
            if command.out.is_none() {
                (result.stdout, result.stdout_bytes) = captured(&ended.stdout.bytes);
            }
            if command.err.is_none() {
                (result.stderr, result.stderr_bytes) = captured(&ended.stderr.bytes);
            }
        }
        if let Some(stop) = stop {
            result.limit = match stop {
                Stop::TimeLimit(_) => Some("time".into()),
                Stop::MemoryLimit { .. } => Some("memory".into()),
                _ => None,
            };
            let (verdict, error) = stopped(&stop, self.seat, self.host());
            result.status = error.status;
            result.ename = Some(error.ename);
            result.evalue = Some(error.evalue);
            return Ok(verdict);
        }
        if let Some(left) = ended.left {
            self.process
                .tell_reaper(&Line::Left(left.as_raw_nonzero().get()));
        }
        if command.unmet_exit == Some(ended.code) {
            let text = format!(
                "the job ended with code {}, by which it says that this engine lacks what it needs",
                ended.code
            );
            return Err((Verdict::Unmet, "UnmetDependency", text));
        }
        result.status = "ok".into();
        if !command.get.is_empty() {
            let (buffers, failed) = files::collect(Some(place.dir()), &command.get);
            self.buffers = buffers;
            // Outputs that a failed job did not write are no news.
            if let (Some(error), 0) = (failed, ended.code) {
                return Err((Verdict::Failed, error.ename(), error.to_string()));
            }
        }
        Ok(if ended.code == 0 {
            Verdict::Ok
        } else {
            Verdict::Failed
        })
    }

    fn check(&self, require: &Require, place: &Place, job: &Job) -> Result<(), Refusal> {
        if require.is_empty() {
            return Ok(());
        }
        match require::lacking(require, place.dir(), &job.env) {
            Some(lacking) => Err((Verdict::Unmet, "UnmetDependency", lacking)),
            None => Ok(()),
        }
    }

    fn job(
        &self,
        command: &Command,
        place: &Place,
        id: &str,
        told: &granted::Told,
    ) -> Result<Job, Refusal> {
        let umask = match &command.umask {
            None => None,
            Some(digits) => Some(
                u32::from_str_radix(digits, 8)
                    .ok()
                    .filter(|mask| *mask <= 0o777)
                    .ok_or_else(|| {
                        (
                            Verdict::Failed,
                            "ValueError",
                            format!("umask {digits:?} is no octal number up to 777"),
                        )
                    })?,
            ),
        };
        let path = |path: &String| {
            Some(path)
                .filter(|path| !path.is_empty())
                .map(|path| self.expand(path))
        };
        let mut env: Vec<(OsString, Option<OsString>)> = vec![
            (MARK.into(), Some(self.process.mark.clone().into())),
            (TASK.into(), Some(id.into())),
            (
                "IPBROKER_ENGINE_ID".into(),
                Some(self.seat.id().to_string().into()),
            ),
        ];
        let told = told.variables.iter();
        env.extend(told.map(|(name, value)| (name.into(), Some(value.clone()))));
        if let Some(scratch) = &place.scratch {
            env.push(("IPBROKER_SCRATCH".into(), Some(scratch.path().into())));
        }
        env.extend(
            command
                .env
                .iter()
                .map(|(name, value)| (name.into(), Some(value.into()))),
        );
        if let Some((name, _)) = env
            .iter()
            .find(|(name, _)| name.is_empty() || name.to_string_lossy().contains('='))
        {
            return Err((
                Verdict::Failed,
                "ValueError",
                format!("{name:?} is no name of a variable"),
            ));
        }
        let input = command.input().map_err(|error| {
            let text = format!("stdin_base64: {error}");
            (Verdict::Failed, "ValueError", text)
        })?;
        Ok(Job {
            cmd: command.cmd.clone(),
            cd: Some(place.dir().to_owned()),
            env,
            stdin: match (input, &command.stdin_file) {
                (Some(bytes), _) => Input::Bytes(bytes),
                (None, Some(file)) => Input::File(self.expand(file)),
                (None, None) => Input::Null,
            },
            out: command.out.as_ref().and_then(path),
            err: command.err.as_ref().and_then(path),
            umask,
            time_limit: command.limit.time,
            memory_limit: command.limit.memory,
            prelude: None,
            number: None,
            capture: usize::try_from(command.capture)
                .ok()
                .filter(|bytes| *bytes > 0),
        })
    }

    /// `~/` is the home of the engine's user; other relative paths stay, below the job's directory.
    fn expand(&self, path: &str) -> PathBuf {
        if path == "~" || path.starts_with("~/") {
            self.process.files.resolve(path)
        } else {
            path.into()
        }
    }
}

/// Where a job runs.
struct Place {
    dir: PathBuf,
    scratch: Option<Scratch>,
}

impl Place {
    fn of(process: &Process, command: &Command) -> Result<Self, Refusal> {
        let cd = command.cd.as_deref().filter(|cd| !cd.is_empty());
        // Inputs need a place where they harm nobody.
        let scratch = if command.scratch || (cd.is_none() && !command.put.is_empty()) {
            let made = process.scratch();
            Some(made.map_err(|error| (Verdict::Failed, error.ename(), error.to_string()))?)
        } else {
            None
        };
        let dir = match (&scratch, cd) {
            (Some(scratch), _) => scratch.path().to_owned(),
            (None, Some(cd)) => process.files.resolve(cd),
            (None, None) => process.files.work_dir.clone(),
        };
        Ok(Self { dir, scratch })
    }

    fn dir(&self) -> &Path {
        &self.dir
    }
}

impl Executor for Commands<'_> {
    fn run(&mut self, index: u64, out: &mut Vec<u8>) -> Verdict {
        let mut result = self.empty();
        let from = Instant::now();
        let started = self.process.now();
        result.started = Some(time::utc(started));
        let verdict = match self.run_one(index, &mut result) {
            Ok(verdict) => verdict,
            Err((verdict, ename, evalue)) => {
                result.status = if verdict == Verdict::Aborted {
                    "aborted"
                } else {
                    "error"
                }
                .into();
                result.ename = Some(ename.to_owned());
                let host = self.host();
                result.evalue = Some(if evalue.starts_with(host) {
                    evalue
                } else {
                    format!("{host}: {evalue}")
                });
                verdict
            }
        };
        let elapsed = from.elapsed();
        result.elapsed = Some(elapsed.as_secs_f64());
        // By the monotonic clock: the other one may be set while a job runs.
        result.completed = Some(time::utc(time::shifted(started, elapsed.as_secs_f64())));
        self.pack(&result, out);
        verdict
    }

    fn refuse(&self, error: &ErrorContent, out: &mut Vec<u8>) {
        let result = CommandResult {
            status: error.status.clone(),
            ename: Some(error.ename.clone()),
            evalue: Some(error.evalue.clone()),
            ..self.empty()
        };
        self.pack(&result, out);
    }

    fn content(&self) -> bool {
        true
    }

    fn buffers(&mut self) -> Vec<Message> {
        std::mem::take(&mut self.buffers)
    }
}
