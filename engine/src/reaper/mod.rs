//! The process that ends the jobs of an engine process, however that ends.
//!
//! It is started before anything else, in a process group of its own, and holds the reading end of a pipe. When the
//! engine process is gone, even by SIGKILL, the pipe ends; then it kills what the jobs left behind and tells the hub
//! what had been started. Two kinds: the engine's own program started again, which knows the wire; and, in a program
//! that never called [`init`](crate::init), a few lines of shell, which only kill.

mod shared;
mod sweep;

use std::{
    collections::HashMap,
    io::{self, BufRead, Write},
    os::unix::process::CommandExt,
    path::PathBuf,
    process::{Child, ChildStdin, Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use serde::{Deserialize, Serialize};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

use crate::executor::fresh::Before;

pub(crate) use shared::{Shared, read};
pub(crate) use sweep::{JOBS, MARK, TASK, end_strays, mark, number, numbered, set_number, sweep};

/// Set for the program that is started again as a reaper.
const ROLE: &str = "IPBROKER_REAPER";

/// Whether this program's `main` begins with [`init`](crate::init).
static INITIALISED: AtomicBool = AtomicBool::new(false);

/// What the engine process tells its reaper as it goes, one JSON value a line.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Line {
    /// First: who we are.
    Start {
        /// The id in [`MARK`].
        id: String,
        /// The uuids of its logical engines.
        engines: Vec<String>,
        /// Milliseconds between TERM and KILL.
        grace: u64,
    },
    /// How the controller is reached: the connection file's content as JSON.
    Connection(serde_json::Value),
    /// A group that outlives its job.
    Left(i32),
    /// A directory that is to go with the engine process at the latest.
    Directory(PathBuf),
    /// What the job of an engine creates, of which it may have written half; nothing when it has ended.
    Writing {
        /// Which engine of the process.
        engine: usize,
        /// Its files, as they were.
        files: Before,
    },
    /// The engine process leaves on purpose: nothing is to be reported.
    Clean,
}

/// Makes this process the reaper if it was started as one; call it first in `main`.
pub(crate) fn init(report: impl FnOnce(DeathNotice)) {
    INITIALISED.store(true, Ordering::Release);
    if std::env::var_os(ROLE).is_some() {
        serve(report);
        std::process::exit(0);
    }
}

/// What the reaper has to tell the hub.
#[derive(Debug)]
pub(crate) struct DeathNotice {
    /// How the controller is reached.
    pub connection: serde_json::Value,
    /// Each logical engine's uuid and the ids it had started.
    pub engines: Vec<(String, Vec<String>)>,
}

/// The engine process's side.
#[derive(Debug)]
pub(crate) struct Reaper {
    process: Child,
    pipe: Option<ChildStdin>,
}

impl Reaper {
    /// Starts the reaper and waits until it is ready.
    ///
    /// # Errors
    /// When no process can be started.
    pub(crate) fn start(
        shared: &Shared,
        id: &str,
        engines: Vec<String>,
        grace: Duration,
    ) -> io::Result<Self> {
        let knows_wire = INITIALISED.load(Ordering::Acquire);
        let mut command = if knows_wire {
            let mut command = Command::new("/proc/self/exe");
            command.arg0("ipengine-reaper").env(ROLE, "1");
            command
        } else {
            let mut command = Command::new("/bin/bash");
            command.args(["-c", include_str!("reaper.sh"), "ipengine-reaper", id]);
            command.env("GRACE", format!("{:.3}", grace.as_secs_f64()));
            command
        };
        // Standard output carries the shared memory in and, as a pipe could not, nothing out: readiness is told there.
        command
            .env_remove(MARK)
            .env_remove(TASK)
            .process_group(0)
            .stdin(Stdio::piped());
        command.stdout(Stdio::from(shared.fd().try_clone_to_owned()?));
        let mut process = command.spawn()?;
        let pipe = process.stdin.take();
        let mut reaper = Self { process, pipe };
        if knows_wire {
            reaper.tell(&Line::Start {
                id: id.to_owned(),
                engines,
                grace: grace.as_millis() as u64,
            });
        }
        Ok(reaper)
    }

    /// Tells the reaper something.
    pub(crate) fn tell(&mut self, line: &Line) {
        if let (Some(pipe), Ok(mut text)) = (&mut self.pipe, serde_json::to_vec(line)) {
            text.push(b'\n');
            let _ = pipe.write_all(&text);
        }
    }

    /// Leaves on purpose: lets the reaper end what jobs left behind, and waits for it.
    pub(crate) fn finish(mut self) {
        self.tell(&Line::Clean);
        self.pipe = None;
        let _ = self.process.wait();
    }
}

/// The reaper's own life.
fn serve(report: impl FnOnce(DeathNotice)) {
    // Whoever ends the job in which the engine was started leaves its jobs to us.
    set_number(None);
    for signal in [SIGINT, SIGTERM, SIGHUP] {
        // What ends the engine must not end its reaper: a handler that does nothing.
        let _ = signal_hook::flag::register(signal, Arc::default());
    }
    let mut start = None;
    let mut connection = None;
    let mut left = Vec::new();
    let mut directories: Vec<PathBuf> = Vec::new();
    let mut writing = HashMap::new();
    let mut clean = false;
    for line in io::stdin().lock().split(b'\n').map_while(Result::ok) {
        match serde_json::from_slice(&line) {
            Ok(Line::Start { id, engines, grace }) => {
                start = Some((id, engines, Duration::from_millis(grace)))
            }
            Ok(Line::Connection(told)) => connection = Some(told),
            Ok(Line::Left(group)) => {
                left.retain(|group: &i32| stat_group(*group));
                left.push(group);
            }
            Ok(Line::Directory(directory)) => {
                directories.retain(|directory| directory.exists());
                directories.push(directory);
            }
            Ok(Line::Writing { engine, files }) => {
                writing.insert(engine, files);
            }
            Ok(Line::Clean) => clean = true,
            // Half of one, of an engine process that died as it wrote it.
            Err(_) => {}
        }
    }
    let Some((id, engines, grace)) = start else {
        return;
    };
    let testament = read(io::stdout(), engines.len()).unwrap_or_default();
    let mut groups = testament.groups;
    groups.extend(left);
    sweep(&groups, &id, grace);
    writing.values().for_each(Before::distrust);
    for directory in directories {
        let _ = std::fs::remove_dir_all(directory);
    }
    if let (Some(connection), false) = (connection, clean) {
        let mut started = testament.started.into_iter();
        let engines = engines
            .into_iter()
            .map(|uuid| (uuid, started.next().unwrap_or_default()))
            .collect();
        report(DeathNotice {
            connection,
            engines,
        });
    }
}

fn stat_group(group: i32) -> bool {
    rustix::process::Pid::from_raw(group)
        .is_some_and(|group| rustix::process::test_kill_process_group(group).is_ok())
}

#[cfg(test)]
mod tests;
