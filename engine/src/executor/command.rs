//! The executor of shell jobs.

use std::{
    borrow::Cow,
    ffi::OsString,
    path::PathBuf,
    time::{Duration, Instant},
};

use ipbroker_protocol::{
    array::member_id,
    message::{Command, CommandResult, ErrorContent},
    session::{Packer, Session},
    time,
    value::AnyMap,
    zmq::Message,
};
use serde_bytes::ByteBuf;
use tempfile::TempDir;

use super::{Executor, Verdict, array::Arguments, fresh, granted, require, stopped, watch::Watch};
use crate::{
    files::{self, FileError},
    job::{self, Input, Job, Stop},
    logical_engine::LogicalEngine,
    process::Process,
    reaper::{Line, MARK, TASK, end_strays},
    task::Task,
};

/// Why a job did not run.
struct Refusal {
    verdict: Verdict,
    ename: String,
    evalue: String,
}

impl Refusal {
    fn new(verdict: Verdict, ename: &str, evalue: impl Into<String>) -> Self {
        Self {
            verdict,
            ename: ename.to_owned(),
            evalue: evalue.into(),
        }
    }

    /// What was asked for makes no sense.
    fn value(evalue: impl Into<String>) -> Self {
        Self::new(Verdict::Failed, "ValueError", evalue)
    }

    /// This engine lacks something.
    fn unmet(evalue: impl Into<String>) -> Self {
        Self::new(Verdict::Unmet, "UnmetDependency", evalue)
    }
}

impl From<FileError> for Refusal {
    fn from(error: FileError) -> Self {
        let verdict = match error {
            // Another engine's host may have it.
            FileError::NotCached { .. } => Verdict::Unmet,
            _ => Verdict::Failed,
        };
        Self::new(verdict, error.ename(), error.to_string())
    }
}

impl From<job::JobError> for Refusal {
    fn from(error: job::JobError) -> Self {
        Self::new(Verdict::Failed, error.name(), error.to_string())
    }
}

/// Shell jobs of one request.
pub(super) struct Commands<'a> {
    process: &'a Process,
    engine: &'a LogicalEngine,
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
        engine: &'a LogicalEngine,
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
            engine,
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
        let wrong =
            |error: &dyn std::fmt::Display| Refusal::value(format!("member {index}: {error}"));
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
            engine_id: Some(self.engine.id()),
            ..CommandResult::default()
        }
    }

    /// Runs one job and fills in its result.
    fn run_one(&mut self, index: u64, result: &mut CommandResult) -> Result<Verdict, Refusal> {
        let command = self.command(index)?;
        if command.cmd.is_empty() {
            return Err(Refusal::value(
                "command_request: `cmd`, the command for bash, is missing or empty",
            ));
        }
        let place = Place::of(self.process, &command)?;
        let told = granted::tell(self.process, &self.task.wants)?;
        let id = match self.task.wants.range {
            Some(_) => member_id(&self.task.msg_id, index),
            None => self.task.msg_id.clone(),
        };
        let mut job = self.prepare(&command, &place, &id, &told)?;
        let below = |path: &String| place.dir.join(self.expand(path));
        let creates: Vec<_> = command.creates.iter().map(below).collect();
        let fresh = fresh::up_to_date(&creates, command.needs.iter().map(below))
            .map_err(|missing| Refusal::new(Verdict::Failed, "FileNotFoundError", missing))?;
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
        let begun = self.engine.begin_member(index);
        let (generation, _) = begun.map_err(|stop| {
            let (verdict, error) = stopped(&stop, self.engine, self.host());
            Refusal::new(verdict, &error.ename, error.evalue)
        })?;
        let before = fresh::Before::new(creates);
        let writing = |files: &fresh::Before| {
            if !before.is_empty() {
                let (engine, files) = (self.engine.index, files.clone());
                self.process.tell_reaper(&Line::Writing { engine, files });
            }
        };
        writing(&before);
        let mut watch = Watch::new(self.process, self.engine, self.task, command.stream).of(self
            .task
            .wants
            .range
            .map(|_| index));
        let pinned = (self.process.pin)
            .then(|| granted::Pinned::new(&self.task.wants.granted))
            .flatten();
        let ran = job::run(
            &job,
            &self.engine.running,
            generation,
            &self.process.warden,
            &mut watch,
        );
        drop(pinned);
        let late = self.engine.running.finish();
        self.process.shared.group(self.engine.index, 0);
        let none = fresh::Before::default();
        let mut ended = ran.inspect_err(|_| writing(&none))?;
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
        tell_output(&command, &ended, result);
        if let Some(stop) = stop {
            result.limit = match stop {
                Stop::TimeLimit(_) => Some("time".into()),
                Stop::MemoryLimit { .. } => Some("memory".into()),
                _ => None,
            };
            let (verdict, error) = stopped(&stop, self.engine, self.host());
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
            return Err(Refusal::unmet(text));
        }
        result.status = "ok".into();
        if !command.get.is_empty() {
            let (buffers, failed) = files::collect(&place.dir, &command.get);
            self.buffers = buffers;
            // Outputs that a failed job did not write are no news.
            if let (Some(error), 0) = (failed, ended.code) {
                return Err(error.into());
            }
        }
        Ok(if ended.code == 0 {
            Verdict::Ok
        } else {
            Verdict::Failed
        })
    }

    /// A job whose inputs are in place, on a host that has what it requires.
    fn prepare(
        &self,
        command: &Command,
        place: &Place,
        id: &str,
        told: &granted::Told,
    ) -> Result<Job, Refusal> {
        let job = self.job(command, place, id, told)?;
        let wants = &self.task.wants;
        for require in wants.require.iter().chain([&command.require]) {
            if let Some(lacking) = require::lacking(require, &place.dir, &job.env) {
                return Err(Refusal::unmet(lacking));
            }
        }
        // The buffers of an array are its members' commands.
        let buffers = match wants.range {
            Some(_) => &[],
            None => self.task.envelope.buffers(),
        };
        let cache = &self.process.files.cache;
        files::place(cache, &place.dir, &command.put, buffers)?;
        Ok(job)
    }

    fn job(
        &self,
        command: &Command,
        place: &Place,
        id: &str,
        told: &granted::Told,
    ) -> Result<Job, Refusal> {
        let umask = command.umask.as_ref().map(|digits| {
            u32::from_str_radix(digits, 8)
                .ok()
                .filter(|mask| *mask <= 0o777)
                .ok_or_else(|| {
                    Refusal::value(format!("umask {digits:?} is no octal number up to 777"))
                })
        });
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
                Some(self.engine.id().to_string().into()),
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
            let text = format!("{name:?} is no name of a variable");
            return Err(Refusal::value(text));
        }
        let input = command
            .input()
            .map_err(|error| Refusal::value(format!("stdin_base64: {error}")))?;
        Ok(Job {
            cmd: command.cmd.clone(),
            cd: Some(place.dir.clone()),
            env,
            stdin: match (input, &command.stdin_file) {
                (Some(bytes), _) => Input::Bytes(bytes),
                (None, Some(file)) => Input::File(self.expand(file)),
                (None, None) => Input::Null,
            },
            out: command.out.as_ref().and_then(path),
            err: command.err.as_ref().and_then(path),
            umask: umask.transpose()?,
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

/// Puts what was captured into a job's result; the bytes themselves go along where they are no text.
fn tell_output(command: &Command, ended: &job::Finished, result: &mut CommandResult) {
    if command.capture == 0 {
        return;
    }
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

/// Where a job runs.
struct Place {
    dir: PathBuf,
    scratch: Option<TempDir>,
}

impl Place {
    fn of(process: &Process, command: &Command) -> Result<Self, Refusal> {
        let cd = command.cd.as_deref().filter(|cd| !cd.is_empty());
        // Inputs need a place where they harm nobody.
        let scratch = if command.scratch || (cd.is_none() && !command.put.is_empty()) {
            Some(process.scratch()?)
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
}

impl Executor for Commands<'_> {
    fn run(&mut self, index: u64, out: &mut Vec<u8>) -> Verdict {
        let mut result = self.empty();
        let from = Instant::now();
        let started = self.process.now();
        result.started = Some(time::utc(started));
        let verdict = match self.run_one(index, &mut result) {
            Ok(verdict) => verdict,
            Err(refusal) => {
                result.status = refusal.verdict.status().into();
                result.ename = Some(refusal.ename);
                let (host, evalue) = (self.host(), refusal.evalue);
                result.evalue = Some(match evalue.starts_with(host) {
                    true => evalue,
                    false => format!("{host}: {evalue}"),
                });
                refusal.verdict
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
