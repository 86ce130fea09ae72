//! One shell job from its files to its exit code.

use std::{
    ffi::OsString,
    fs::{File, OpenOptions},
    io::{self, Seek, Write},
    os::{
        fd::{AsFd, OwnedFd},
        unix::{
            fs::{FileTypeExt, OpenOptionsExt},
            process::{CommandExt, ExitStatusExt},
        },
    },
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use rustix::process::{
    Pid, PidfdFlags, Signal, WaitId, WaitIdOptions, kill_process_group, pidfd_open,
    test_kill_process_group, waitid,
};

use super::{
    capture::{Captured, Stream, capture},
    running::{Running, Stop},
    warden::Warden,
};
use crate::files::os_error;

/// The shell that runs jobs.
const SHELL: &str = "/bin/bash";

/// Linux takes no single argument as long as this; longer commands go through a file.
const LONGEST_ARGUMENT: usize = 128 * 1024 - 1;

/// A batch system that ends an allocation sends SIGTERM to all its processes: the engine may hear of it so much later.
const TOGETHER: Duration = Duration::from_secs(1);

/// What a job reads.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) enum Input {
    /// Nothing.
    #[default]
    Null,
    /// These bytes.
    Bytes(Vec<u8>),
    /// A file on the engine's host.
    File(PathBuf),
}

/// A shell job.
#[derive(Debug, Clone, Default)]
pub(crate) struct Job {
    /// The command line, for `bash -o pipefail -c`.
    pub cmd: String,
    /// Where it runs; `None`: where the engine runs.
    pub cd: Option<PathBuf>,
    /// Variables to set, or to remove.
    pub env: Vec<(OsString, Option<OsString>)>,
    /// Standard input.
    pub stdin: Input,
    /// The file for standard output, relative to `cd`.
    pub out: Option<PathBuf>,
    /// The file for standard error, relative to `cd`.
    pub err: Option<PathBuf>,
    /// The umask of the job and of the files above.
    pub umask: Option<u32>,
    /// Seconds after which it is stopped.
    pub time_limit: Option<f64>,
    /// Bytes above which its process group is killed.
    pub memory_limit: Option<u64>,
    /// A prefix to the script that puts the shell into a control group.
    pub prelude: Option<String>,
    /// The [number](crate::reaper::number) by which all that it starts is found.
    pub number: Option<u64>,
    /// How many bytes of each output that goes to no file are kept; `None`: they are dropped.
    pub capture: Option<usize>,
}

/// How a job ended.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Finished {
    /// The shell's exit code; 128 + n when signal n ended the shell itself.
    pub code: i32,
    /// The signal that ended the shell.
    pub signal: Option<i32>,
    /// The beginning of its standard output.
    pub stdout: Captured,
    /// The beginning of its standard error.
    pub stderr: Captured,
    /// Why we stopped it, if we did.
    pub stopped: Option<Stop>,
    /// Processes of its group that outlive the shell.
    pub left: Option<Pid>,
}

/// Why a job could not run at all.
#[derive(Debug, thiserror::Error)]
pub(crate) enum JobError {
    /// The working directory.
    #[error("cannot enter directory {path}: {source}", path = path.display())]
    Directory { path: PathBuf, source: io::Error },
    /// A file for input or output.
    #[error("cannot open {path} for {what}: {source}", path = path.display())]
    Open {
        path: PathBuf,
        /// `standard input`, `standard output` or `standard error`.
        what: &'static str,
        source: io::Error,
    },
    /// A system resource that every job needs.
    #[error("cannot prepare {what}: {source}")]
    Prepare {
        what: &'static str,
        source: io::Error,
    },
    /// The shell.
    #[error("cannot start {SHELL}: {0}")]
    Shell(io::Error),
}

/// Is told how a job goes.
pub(crate) trait Observer {
    /// The job's process group exists.
    fn spawned(&mut self, _group: Pid) {}

    /// It wrote something that is kept.
    fn output(&mut self, _stream: Stream, _bytes: &[u8]) {}
}

impl Observer for () {}

/// Runs `job` to its end. `running` is the place from where others stop it.
///
/// # Errors
/// [`JobError`] when the shell did not start; nothing has run then.
pub(crate) fn run(
    job: &Job,
    running: &Arc<Running>,
    generation: u64,
    warden: &Warden,
    observer: &mut dyn Observer,
) -> Result<Finished, JobError> {
    if let Some(cd) = &job.cd {
        check_directory(cd)?;
    }
    // The shell reads a script as it goes: the file stays until the end.
    let (mut command, _script) = command(job)?;
    let mut child = command.spawn().map_err(JobError::Shell)?;
    // Our copies of the job's files close here, not at its end.
    drop(command);
    let pid = Pid::from_child(&child);
    observer.spawned(pid);
    if !running.set_group(pid) {
        let stop = running.stop_reason().unwrap_or(Stop::Aborted);
        warden.stop(running, generation, stop);
    }
    if let Some(seconds) = job.time_limit {
        warden.limit_time(running, generation, seconds);
    }
    if let Some(bytes) = job.memory_limit.filter(|_| job.prelude.is_none()) {
        warden.limit_memory(running, generation, bytes);
    }
    let (mut stdout, mut stderr) = (Captured::default(), Captured::default());
    if child.stdout.is_some() || child.stderr.is_some() {
        let (out, err) = (child.stdout.take(), child.stderr.take());
        match pidfd_open(pid, PidfdFlags::empty()) {
            Ok(pidfd) => {
                let limit = job.capture.unwrap_or(0);
                (stdout, stderr) = capture(out, err, pidfd.as_fd(), limit, observer);
            }
            Err(error) => {
                let _ = kill_process_group(pid, Signal::KILL);
                let _ = running.reap(|| child.wait());
                return Err(JobError::Prepare {
                    what: "a process descriptor",
                    source: error.into(),
                });
            }
        }
    }
    let status = wait(&mut child, pid, running);
    if status.signal() == Some(Signal::TERM.as_raw()) {
        let until = Instant::now() + TOGETHER;
        while running.stop_reason().is_none() && Instant::now() < until {
            thread::sleep(Duration::from_millis(10));
        }
    }
    // While members are left, the number of the group is not given to anybody else.
    let left = test_kill_process_group(pid).is_ok().then_some(pid);
    let stopped = running.stop_reason();
    if let (Some(group), Some(_)) = (left, &stopped) {
        // The shell obeyed the TERM, but not all that it had started.
        let _ = kill_process_group(group, Signal::KILL);
    }
    let signal = status.signal();
    let code = status.code().unwrap_or_else(|| 128 + signal.unwrap_or(0));
    Ok(Finished {
        code,
        signal,
        stdout,
        stderr,
        stopped,
        left,
    })
}

/// Waits without reaping, then reaps while nobody can send a signal to what may be another's group already.
fn wait(child: &mut Child, pid: Pid, running: &Running) -> ExitStatus {
    while let Err(rustix::io::Errno::INTR) = waitid(
        WaitId::Pid(pid),
        WaitIdOptions::EXITED | WaitIdOptions::NOWAIT,
    ) {}
    running
        .reap(|| child.wait())
        .unwrap_or_else(|_| ExitStatus::from_raw(0xff00))
}

fn check_directory(path: &Path) -> Result<(), JobError> {
    let error = match std::fs::metadata(path) {
        Ok(meta) if meta.is_dir() => match rustix::fs::access(path, rustix::fs::Access::EXEC_OK) {
            Ok(()) => return Ok(()),
            Err(error) => error.into(),
        },
        Ok(_) => io::Error::from(io::ErrorKind::NotADirectory),
        Err(error) => error,
    };
    Err(JobError::Directory {
        path: path.to_owned(),
        source: error,
    })
}

fn command(job: &Job) -> Result<(Command, Option<tempfile::NamedTempFile>), JobError> {
    let mut command = Command::new(SHELL);
    command.args(["-o", "pipefail"]);
    let out = job.out.as_deref().filter(|path| is_pipe(job, path));
    let err = job.err.as_deref().filter(|path| is_pipe(job, path));
    let stdin = match &job.stdin {
        Input::File(path) => Some(path.as_path()).filter(|path| is_pipe(job, path)),
        _ => None,
    };
    let script = script(job, stdin, out, err);
    let mut file = None;
    if script.len() < LONGEST_ARGUMENT {
        command.arg("-c").arg(script);
    } else {
        let long = |source| JobError::Prepare {
            what: "a file for a long command",
            source,
        };
        let mut written = tempfile::Builder::new()
            .prefix("ipbroker-cmd-")
            .tempfile()
            .map_err(long)?;
        written.write_all(script.as_bytes()).map_err(long)?;
        command.arg(written.path());
        file = Some(written);
    }
    for (name, value) in &job.env {
        match value {
            Some(value) => command.env(name, value),
            None => command.env_remove(name),
        };
    }
    if let Some(cd) = &job.cd {
        command.current_dir(cd);
        command.env("PWD", cd);
    }
    command.process_group(0);
    command.stdin(match stdin {
        Some(_) => Stdio::null(),
        None => input(job)?,
    });
    let unkept = || match job.capture {
        Some(_) => Stdio::piped(),
        None => Stdio::null(),
    };
    let mut opened: Option<File> = None;
    match &job.out {
        None => command.stdout(unkept()),
        Some(_) if out.is_some() => command.stdout(Stdio::null()),
        Some(path) => {
            let file = create(job, path, "standard output")?;
            if job.err.as_ref() == Some(path) {
                let copy = file.try_clone().map_err(|source| JobError::Prepare {
                    what: "a descriptor",
                    source,
                })?;
                opened = Some(copy);
            }
            command.stdout(file)
        }
    };
    match (&job.err, opened) {
        (None, _) => command.stderr(unkept()),
        (Some(_), _) if err.is_some() => command.stderr(Stdio::null()),
        (Some(_), Some(same)) => command.stderr(same),
        (Some(path), None) => command.stderr(create(job, path, "standard error")?),
    };
    Ok((command, file))
}

/// What the shell runs: what has to be done before the command, with these pipes, and the command.
fn script(job: &Job, stdin: Option<&Path>, out: Option<&Path>, err: Option<&Path>) -> String {
    let mut script = String::new();
    if let Some(number) = job.number {
        script += &format!("ulimit -Sm {number}; ");
    }
    if let Some(prelude) = &job.prelude {
        script += prelude;
    }
    if let Some(umask) = job.umask {
        script += &format!("umask {umask:04o}; ");
    }
    // Opening a pipe waits for its other end: the job does that, which can be stopped.
    let mut redirect = |sign: &str, path: &Path| {
        let path = path.to_string_lossy().replace('\'', r"'\''");
        script += &format!("exec {sign}'{path}'; ");
    };
    if let Some(path) = stdin {
        redirect("<", path);
    }
    if let Some(path) = out {
        redirect(">", path);
    }
    match err {
        Some(path) if out != Some(path) => redirect("2>", path),
        Some(_) => script += "exec 2>&1; ",
        None => {}
    }
    script + &job.cmd
}

fn resolve(job: &Job, path: &Path) -> PathBuf {
    job.cd
        .as_ref()
        .map_or_else(|| path.to_owned(), |cd| cd.join(path))
}

fn is_pipe(job: &Job, path: &Path) -> bool {
    std::fs::metadata(resolve(job, path)).is_ok_and(|meta| meta.file_type().is_fifo())
}

fn create(job: &Job, path: &Path, what: &'static str) -> Result<File, JobError> {
    let path = resolve(job, path);
    let mode = 0o666 & !job.umask.unwrap_or(0);
    OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(mode)
        .open(&path)
        .map_err(|source| JobError::Open { path, what, source })
}

fn input(job: &Job) -> Result<Stdio, JobError> {
    match &job.stdin {
        Input::Null => Ok(Stdio::null()),
        Input::File(path) => {
            let path = resolve(job, path);
            let file = File::open(&path).map_err(|source| JobError::Open {
                path,
                what: "standard input",
                source,
            })?;
            Ok(file.into())
        }
        Input::Bytes(bytes) => {
            // Memory that reads like a file: no pipe to fill, no thread to fill it.
            let prepare = |source| JobError::Prepare {
                what: "standard input",
                source,
            };
            let fd: OwnedFd =
                rustix::fs::memfd_create("ipbroker-stdin", rustix::fs::MemfdFlags::CLOEXEC)
                    .map_err(|error| prepare(error.into()))?;
            let mut file = File::from(fd);
            file.write_all(bytes)
                .and_then(|()| file.rewind())
                .map_err(prepare)?;
            Ok(file.into())
        }
    }
}

impl JobError {
    /// The error's name, as Python has it.
    pub(crate) fn name(&self) -> &'static str {
        let (Self::Directory { source, .. }
        | Self::Open { source, .. }
        | Self::Prepare { source, .. }
        | Self::Shell(source)) = self;
        os_error(source)
    }
}
