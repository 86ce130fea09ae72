//! Engines through a batch system: writes the script, submits it, watches the job, cancels it at the end. A cluster that
//! grows ([`Growth`]) submits more jobs while tasks wait.

mod grow;
mod system;

pub(crate) use system::{JobState, System};

use std::{
    borrow::Cow,
    ffi::OsStr,
    fs, io,
    io::Read,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use ipbroker_protocol::spawn;
use ipbroker_protocol::wake::{self, Waker};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{LaunchEvent, Launcher, Sink, join, read_record, write_record};
use grow::Keeper;

/// What to submit.
#[derive(Debug, Clone)]
pub(crate) struct Plan {
    /// To which system.
    pub system: &'static System,
    /// How many engines, of each job.
    pub engines: u32,
    /// How many jobs follow; none: just one is submitted.
    pub growth: Option<Growth>,
    /// The longest that a task of theirs may run; 0: as long as the batch system gives them.
    pub time: Duration,
    /// Options for the submit command.
    pub options: Vec<String>,
    /// A script of the user's own, with the same `{…}` in it.
    pub template: Option<PathBuf>,
    /// The `ipengine` that the nodes can start.
    pub program: PathBuf,
    /// The engines' connection file; the nodes must see it.
    pub connection_file: PathBuf,
    /// Where the script is written, and its output goes.
    pub dir: PathBuf,
    /// Further options for `ipengine`.
    pub engine_args: Vec<String>,
    /// File that names the job, for the next controller.
    pub record: PathBuf,
    /// Take over the job in that file, if it is still there.
    pub adopt: bool,
}

/// A cluster that grows while tasks wait, and shrinks when its engines are idle.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Growth {
    /// Engines that are there in any case.
    pub min: u32,
    /// Engines that there may be, waiting jobs included.
    pub max: u32,
    /// How long an engine beyond the least number may be idle before it leaves.
    pub idle: Duration,
}

/// How many engines tasks could use, by the longest that these tasks may run (0: they do not say it), longest first.
pub(crate) type Demand = Vec<(Duration, u64)>;

/// What a launcher asks and tells the controller.
pub(crate) struct Ways {
    /// What the tasks that wait could use, with so many engines at most; apart by length if engines stay as long as is asked,
    /// and that may be so long. None while that is not known.
    pub demand: Box<dyn Fn(u64, Option<Duration>) -> Option<Demand> + Send>,
    /// How many tasks have been given to engines so far. None while that is not known.
    pub given: Box<dyn Fn() -> Option<u64> + Send>,
    /// Tells what there is, for `status`, whenever it has changed.
    pub tell: Box<dyn Fn(Value) + Send>,
}

/// Jobs, in the record.
#[derive(Debug, Serialize, Deserialize)]
struct Recorded {
    system: String,
    jobs: Vec<Job>,
}

/// A job that was submitted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Job {
    /// Its number, as the system has it.
    number: String,
    /// How many engines it is.
    engines: u32,
    /// Its engines do not leave when they are idle.
    stays: bool,
    /// The longest that a task of theirs may run; 0: nobody said it.
    #[serde(default)]
    time: Duration,
}

/// Why nothing was submitted.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BatchError {
    /// A file cannot be read or written.
    #[error("{path}: {source}", path = path.display())]
    File { path: PathBuf, source: io::Error },
    /// A command of the batch system cannot be run.
    #[error("cannot run `{command}`: {source}; is this a submit host of {system}?")]
    Command {
        command: &'static str,
        system: &'static str,
        source: io::Error,
    },
    /// The batch system has refused the job.
    #[error("{command} has refused the job ({script}): {reason}", script = script.display())]
    Refused {
        command: &'static str,
        script: PathBuf,
        reason: String,
    },
    /// It has taken the job and not said under which number.
    #[error("{command} took the job, but gave no job number that we understand: {output}")]
    NoNumber {
        command: &'static str,
        output: String,
    },
    /// No threads, no descriptors.
    #[error("cannot watch the job: {0}")]
    System(#[from] io::Error),
}

impl BatchError {
    /// For `map_err`: with which file.
    fn file(path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| BatchError::File { path, source }
    }
}

/// Engines in batch jobs.
pub(crate) struct BatchLauncher {
    stop: Arc<AtomicBool>,
    joined: Arc<AtomicU64>,
    waker: Waker,
    thread: Option<JoinHandle<()>>,
    record: PathBuf,
}

impl BatchLauncher {
    /// Writes the script and submits it, unless an earlier controller's jobs are there; what becomes of the jobs is told to
    /// `sink`.
    pub(crate) fn start(plan: Plan, sink: Sink, ways: Ways) -> Result<Self, BatchError> {
        let stop = Arc::new(AtomicBool::new(false));
        let joined = Arc::new(AtomicU64::new(0));
        let (waker, wake) = wake::pair()?;
        let record = plan.record.clone();
        let mut keeper = Keeper::new(plan, sink, ways, (stop.clone(), joined.clone()), wake);
        keeper.begin()?;
        let thread = spawn("batch", move || keeper.run())?;
        Ok(Self {
            stop,
            joined,
            waker,
            thread: Some(thread),
            record,
        })
    }
}

impl Launcher for BatchLauncher {
    fn joined(&mut self) {
        self.joined.fetch_add(1, Ordering::Relaxed);
    }

    fn stop(&mut self, grace: Duration) {
        self.stop.store(true, Ordering::Release);
        self.waker.wake();
        join(self.thread.take(), grace);
        let _ = fs::remove_file(&self.record);
    }
}

/// The jobs of an earlier controller, whatever has become of them.
fn recorded(plan: &Plan) -> Vec<Job> {
    if !plan.adopt {
        return Vec::new();
    }
    let recorded = read_record::<Recorded>(&plan.record);
    let its = recorded.filter(|recorded| recorded.system == plan.system.name);
    its.map(|recorded| recorded.jobs).unwrap_or_default()
}

fn run(program: &str, args: &[impl AsRef<OsStr>]) -> io::Result<Output> {
    let mut command = Command::new(program);
    command.args(args).stdin(Stdio::null()).output()
}

/// How a job is, as far as its system answers.
fn state(system: &System, job: &str) -> Option<JobState> {
    let (program, args) = (system.query)(job);
    let output = run(program, &args).ok()?;
    (system.state)(
        job,
        output.status.success(),
        &String::from_utf8_lossy(&output.stdout),
        &String::from_utf8_lossy(&output.stderr),
    )
}

/// Why a job cannot run, in its system's words.
fn why(system: &System, job: &str) -> Option<String> {
    let (command, head) = system.why?;
    let (program, args) = command.split_first()?;
    let output = run(program, &[args, &[job]].concat()).ok()?;
    let text = String::from_utf8_lossy(&output.stdout);
    let line = text.lines().find_map(|line| line.strip_prefix(head))?;
    // The task's number stands before it.
    Some(line.split_once(':')?.1.trim().to_owned())
}

fn template(plan: &Plan) -> Result<Cow<'static, str>, BatchError> {
    match &plan.template {
        None => Ok(plan.system.template.into()),
        Some(path) => Ok(fs::read_to_string(path)
            .map_err(BatchError::file(path))?
            .into()),
    }
}

fn write_script(plan: &Plan) -> Result<PathBuf, BatchError> {
    let template = template(plan)?;
    fs::create_dir_all(&plan.dir).map_err(BatchError::file(&plan.dir))?;
    let text = plan.system.fill(&template, plan);
    let path = plan.dir.join(format!("ipengine.{}", plan.system.name));
    fs::write(&path, text).map_err(BatchError::file(&path))?;
    Ok(path)
}

fn submit(plan: &Plan, script: &Path) -> Result<String, BatchError> {
    let system = plan.system;
    let mut command = Command::new(system.submit);
    command.args(&plan.options).current_dir(&plan.dir);
    if system.script_on_stdin {
        command.stdin(fs::File::open(script).map_err(BatchError::file(script))?);
    } else {
        command.arg(script).stdin(Stdio::null());
    }
    let output = command.output().map_err(|source| BatchError::Command {
        command: system.submit,
        system: system.name,
        source,
    })?;
    let words = words_of(&output);
    if output.status.success() {
        return (system.number)(&String::from_utf8_lossy(&output.stdout)).ok_or(
            BatchError::NoNumber {
                command: system.submit,
                output: words,
            },
        );
    }
    // Grid Engine calls a job that no queue may run today an error, and takes it: it would stay there, known to nobody.
    match (system.number)(&String::from_utf8_lossy(&output.stderr)) {
        Some(number) if words.contains("has been submitted") => {
            tracing::warn!("{}: {words}", system.submit);
            Ok(number)
        }
        _ => Err(BatchError::Refused {
            command: system.submit,
            script: script.to_owned(),
            reason: words,
        }),
    }
}

fn words_of(output: &Output) -> String {
    let text = [&output.stderr, &output.stdout].map(|b| {
        String::from_utf8_lossy(b)
            .trim()
            .lines()
            .collect::<Vec<_>>()
            .join("; ")
    });
    text.into_iter()
        .find(|t| !t.is_empty())
        .unwrap_or_else(|| output.status.to_string())
}

/// Cancels jobs, all before it waits (`wait`) until they are gone: that may take longer than there is time.
fn cancel(system: &System, jobs: &[&str], wait: bool) -> Result<(), String> {
    if jobs.is_empty() {
        return Ok(());
    }
    run(system.cancel, jobs)
        .map_err(|error| format!("`{} {}`: {error}", system.cancel, jobs.join(" ")))?;
    for job in jobs.iter().filter(|_| wait) {
        while state(system, job).is_some_and(|state| state != JobState::Gone) {
            thread::sleep(Duration::from_millis(200));
        }
    }
    Ok(())
}

/// What a job has said last: the reason, if it failed.
fn last_words(dir: &Path, job: &str) -> Vec<String> {
    let number: String = job.chars().take_while(char::is_ascii_digit).collect();
    // PBS and Grid Engine name it themselves.
    let marks = ["ipengine-", "ipengine.o"].map(|head| format!("{head}{number}"));
    let mut words = Vec::new();
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    let of_job = |name: &std::ffi::OsStr| {
        let name = name.to_string_lossy();
        let rest = marks.iter().find_map(|mark| name.strip_prefix(&**mark));
        rest.is_some_and(|rest| !rest.starts_with(|c: char| c.is_ascii_digit()))
    };
    for entry in entries.filter(|entry| of_job(&entry.file_name())).take(4) {
        let mut text = String::new();
        let read =
            fs::File::open(entry.path()).and_then(|f| f.take(64 << 10).read_to_string(&mut text));
        if read.is_ok() {
            let lines: Vec<&str> = text.lines().filter(|l| !l.trim().is_empty()).collect();
            let last = &lines[lines.len().saturating_sub(5)..];
            words.extend(last.iter().map(|line| (*line).to_owned()));
        }
    }
    words
}

#[cfg(test)]
mod tests;
