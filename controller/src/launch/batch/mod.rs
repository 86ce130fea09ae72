//! Engines through a batch system: writes the script, submits it, watches the job, cancels it at the end.

mod system;

pub use system::{JobState, SYSTEMS, System};

use std::{
    fs, io,
    io::Read,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use ipbroker_protocol::wake::{self, Wake, Waker};
use serde::{Deserialize, Serialize};

use super::{LaunchEvent, Launcher, Sink};

const WATCH: Duration = Duration::from_secs(3);

/// What to submit.
#[derive(Debug, Clone)]
pub struct Plan {
    /// To which system.
    pub system: &'static System,
    /// How many engines.
    pub engines: u32,
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

/// A job, in the record.
#[derive(Debug, Serialize, Deserialize)]
struct Recorded {
    system: String,
    job: String,
    engines: u32,
}

/// Why nothing was submitted.
#[derive(Debug, thiserror::Error)]
pub enum BatchError {
    /// No such system.
    #[error("no batch system `{name}`: {known}")]
    Unknown {
        /// What was asked for.
        name: String,
        /// What there is.
        known: String,
    },
    /// A file cannot be read or written.
    #[error("{path}: {source}", path = path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// A command of the batch system cannot be run.
    #[error("cannot run `{command}`: {source}; is this a submit host of {system}?")]
    Command {
        /// The command.
        command: String,
        /// The system.
        system: &'static str,
        /// Why not.
        source: io::Error,
    },
    /// The batch system has refused the job.
    #[error("{command} has refused the job ({script}): {reason}", script = script.display())]
    Refused {
        /// The command.
        command: String,
        /// The script.
        script: PathBuf,
        /// Its words.
        reason: String,
    },
    /// It has taken the job and not said under which number.
    #[error("{command} took the job, but gave no job number that we understand: {output}")]
    NoNumber {
        /// The command.
        command: String,
        /// Its words.
        output: String,
    },
    /// No threads, no descriptors.
    #[error("cannot watch the job: {0}")]
    System(#[from] io::Error),
}

/// Engines in a batch job.
pub struct BatchLauncher {
    stop: Arc<AtomicBool>,
    waker: Waker,
    thread: Option<JoinHandle<()>>,
    record: PathBuf,
}

impl BatchLauncher {
    /// Writes the script and submits it, unless an earlier controller's job is there; what becomes of the job is told to
    /// `sink`.
    ///
    /// # Errors
    /// When the script cannot be written or the job is refused.
    pub fn start(plan: &Plan, sink: Sink) -> Result<Self, BatchError> {
        let name = |job: &str| format!("{} job {job}", plan.system.name);
        let (job, engines, step) = match survivor(plan) {
            Some(Recorded { job, engines, .. }) => {
                let step = format!(
                    "{engines} engine(s) of the earlier controller; nothing else is submitted"
                );
                (job, engines, step)
            }
            None => {
                let script = write_script(plan)?;
                let (job, engines) = (submit(plan, &script)?, plan.engines);
                let step = format!("submitted {engines} engine(s) ({})", script.display());
                (job, engines, step)
            }
        };
        let host = name(&job);
        sink(LaunchEvent::Progress {
            host: host.clone(),
            step,
        });
        if let Err(error) = write_record(plan, &job, engines) {
            tracing::warn!("cannot write {}: {error}", plan.record.display());
        }
        let stop = Arc::new(AtomicBool::new(false));
        let (waker, wake) = wake::pair()?;
        let watcher = Watcher {
            system: plan.system,
            job,
            host,
            engines,
            dir: plan.dir.clone(),
            stop: stop.clone(),
            wake,
            sink,
        };
        let thread = thread::Builder::new()
            .name("batch".into())
            .spawn(move || watcher.run())?;
        Ok(Self {
            stop,
            waker,
            thread: Some(thread),
            record: plan.record.clone(),
        })
    }
}

impl Launcher for BatchLauncher {
    fn stop(&mut self, grace: Duration) {
        self.stop.store(true, Ordering::Release);
        self.waker.wake();
        let until = Instant::now() + grace;
        if let Some(thread) = self.thread.take() {
            while !thread.is_finished() && Instant::now() < until {
                thread::sleep(Duration::from_millis(20));
            }
            if thread.is_finished() {
                let _ = thread.join();
            }
        }
        let _ = fs::remove_file(&self.record);
    }
}

fn write_record(plan: &Plan, job: &str, engines: u32) -> io::Result<()> {
    let recorded = Recorded {
        system: plan.system.name.to_owned(),
        job: job.to_owned(),
        engines,
    };
    let dir = plan.record.parent().unwrap_or(Path::new("."));
    let mut file = tempfile::NamedTempFile::new_in(dir)?;
    serde_json::to_writer(&mut file, &recorded)?;
    file.persist(&plan.record)?;
    Ok(())
}

/// The job of an earlier controller, if it waits or runs.
fn survivor(plan: &Plan) -> Option<Recorded> {
    if !plan.adopt {
        return None;
    }
    let bytes = fs::read(&plan.record).ok()?;
    let recorded: Recorded = serde_json::from_slice(&bytes).ok()?;
    let there = recorded.system == plan.system.name
        && state(plan.system, &recorded.job).is_some_and(|state| state != JobState::Gone);
    there.then_some(recorded)
}

/// How a job is, as far as its system answers.
fn state(system: &System, job: &str) -> Option<JobState> {
    let (program, args) = (system.query)(job);
    let output = Command::new(program)
        .args(args)
        .stdin(Stdio::null())
        .output()
        .ok()?;
    (system.state)(
        output.status.success(),
        &String::from_utf8_lossy(&output.stdout),
        &String::from_utf8_lossy(&output.stderr),
    )
}

fn write_script(plan: &Plan) -> Result<PathBuf, BatchError> {
    let failed = |path: &Path| {
        let path = path.to_owned();
        move |source| BatchError::File { path, source }
    };
    let template = match &plan.template {
        Some(path) => fs::read_to_string(path).map_err(failed(path))?,
        None => plan.system.template.to_owned(),
    };
    fs::create_dir_all(&plan.dir).map_err(failed(&plan.dir))?;
    let text = plan.system.fill(&template, plan);
    let path = plan.dir.join(format!("ipengine.{}", plan.system.name));
    fs::write(&path, text).map_err(failed(&path))?;
    Ok(path)
}

fn submit(plan: &Plan, script: &Path) -> Result<String, BatchError> {
    let system = plan.system;
    let mut command = Command::new(system.submit);
    command.args(&plan.options).current_dir(&plan.dir);
    if system.script_on_stdin {
        let file = fs::File::open(script).map_err(|source| BatchError::File {
            path: script.to_owned(),
            source,
        })?;
        command.stdin(file);
    } else {
        command.arg(script).stdin(Stdio::null());
    }
    let output = command.output().map_err(|source| BatchError::Command {
        command: system.submit.to_owned(),
        system: system.name,
        source,
    })?;
    let words = words_of(&output);
    if !output.status.success() {
        return Err(BatchError::Refused {
            command: system.submit.to_owned(),
            script: script.to_owned(),
            reason: words,
        });
    }
    (system.number)(&String::from_utf8_lossy(&output.stdout)).ok_or(BatchError::NoNumber {
        command: system.submit.to_owned(),
        output: words,
    })
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

struct Watcher {
    system: &'static System,
    job: String,
    host: String,
    engines: u32,
    dir: PathBuf,
    stop: Arc<AtomicBool>,
    wake: Wake,
    sink: Sink,
}

impl Watcher {
    fn run(self) {
        let mut told = None;
        loop {
            if self.stop.load(Ordering::Acquire) {
                self.cancel();
                return;
            }
            match state(self.system, &self.job) {
                Some(JobState::Gone) => {
                    self.tail();
                    (self.sink)(LaunchEvent::Ended {
                        host: self.host.clone(),
                        status: None,
                    });
                    return;
                }
                Some(state) if told.as_ref() != Some(&state) => {
                    match &state {
                        JobState::Running => {
                            (self.sink)(LaunchEvent::Started {
                                host: self.host.clone(),
                                engines: self.engines,
                            });
                            (self.sink)(LaunchEvent::Settled {
                                engines: vec![(self.host.clone(), self.engines)],
                                failed: Vec::new(),
                            });
                        }
                        JobState::Waiting(why) => (self.sink)(LaunchEvent::Progress {
                            host: self.host.clone(),
                            step: format!("waiting: {why}"),
                        }),
                        JobState::Gone => {}
                    }
                    told = Some(state);
                }
                // A scheduler that does not answer for a while says nothing about the job.
                _ => {}
            }
            self.wake.wait(if matches!(told, Some(JobState::Running)) {
                WATCH
            } else {
                WATCH / 6
            });
            self.wake.clear();
        }
    }

    /// Cancels the job and waits until it is gone; the launcher does not wait for longer than its grace.
    fn cancel(&self) {
        let cancelled = Command::new(self.system.cancel)
            .arg(&self.job)
            .stdin(Stdio::null())
            .output();
        if let Err(e) = cancelled {
            (self.sink)(LaunchEvent::Failed {
                host: self.host.clone(),
                reason: format!("{}: `{} {}`: {e}", self.host, self.system.cancel, self.job),
            });
            return;
        }
        while state(self.system, &self.job).is_some_and(|s| s != JobState::Gone) {
            thread::sleep(Duration::from_millis(200));
        }
    }

    /// What the job has said last: the reason, if it failed.
    fn tail(&self) {
        let Ok(entries) = fs::read_dir(&self.dir) else {
            return;
        };
        let number: String = self.job.chars().take_while(char::is_ascii_digit).collect();
        let mark = format!("ipengine-{number}");
        for entry in entries
            .flatten()
            .filter(|e| e.file_name().to_string_lossy().starts_with(&mark))
            .take(4)
        {
            let mut text = String::new();
            let read = fs::File::open(entry.path())
                .and_then(|f| f.take(64 << 10).read_to_string(&mut text));
            if read.is_ok() {
                let lines: Vec<&str> = text.lines().filter(|l| !l.trim().is_empty()).collect();
                for line in &lines[lines.len().saturating_sub(5)..] {
                    (self.sink)(LaunchEvent::Stderr {
                        host: self.host.clone(),
                        line: (*line).to_owned(),
                    });
                }
            }
        }
    }
}

#[cfg(test)]
mod tests;
