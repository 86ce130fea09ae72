//! The built programs, run with a limit and with nothing of them left behind.

use std::{
    env,
    ffi::OsStr,
    fs::{self, File},
    io::Write,
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Child, ChildStdin, Command, ExitStatus, Stdio},
    sync::atomic::{AtomicU32, Ordering},
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, kill_process, kill_process_group};

use crate::wait::eventually;

/// The variable by which everything that a fixture started is found again.
pub const MARK: &str = "IPBROKER_TEST_MARK";

/// The path of a built program (`ipctl`, `ipengine`, `ipclient`, `bench_*`); `$IPBROKER_BIN_DIR` or the directory of this build.
///
/// # Panics
/// If it has not been built.
pub fn program(name: &str) -> PathBuf {
    let dir = env::var_os("IPBROKER_BIN_DIR").map_or_else(
        || {
            let own = env::current_exe().expect("a test knows its own path");
            let dir = own.parent().expect("a program is in a directory");
            let dir = if dir.ends_with("deps") {
                dir.parent().expect("deps is in a directory")
            } else {
                dir
            };
            dir.to_owned()
        },
        PathBuf::from,
    );
    let path = dir.join(name);
    assert!(
        path.exists(),
        "{} is not built: run `cargo build --workspace` first",
        path.display()
    );
    path
}

/// A program that runs; killed with its process group, and everything that carries its mark, when dropped.
pub struct Program {
    name: String,
    child: Child,
    log: PathBuf,
    out: PathBuf,
    status: Option<ExitStatus>,
}

/// What a program left when it had ended.
#[derive(Debug)]
pub struct Finished {
    /// Its exit status.
    pub status: ExitStatus,
    /// Its standard output.
    pub stdout: String,
    /// Its standard error.
    pub stderr: String,
    /// How long it ran.
    pub took: Duration,
}

impl Finished {
    /// The exit code; 128 and the signal's number when one ended it.
    pub fn code(&self) -> i32 {
        use std::os::unix::process::ExitStatusExt;
        self.status
            .code()
            .unwrap_or_else(|| 128 + self.status.signal().unwrap_or_default())
    }

    /// Panics, with all that it printed, unless it ended with 0.
    #[track_caller]
    pub fn ok(self) -> Finished {
        assert_eq!(
            self.code(),
            0,
            "\n--- stdout\n{}\n--- stderr\n{}",
            self.stdout,
            self.stderr
        );
        self
    }

    /// Standard output as one JSON value a line.
    #[track_caller]
    pub fn json_lines(&self) -> Vec<serde_json::Value> {
        self.stdout
            .lines()
            .map(|line| {
                serde_json::from_str(line)
                    .unwrap_or_else(|error| panic!("not JSON ({error}): {line}"))
            })
            .collect()
    }
}

static COUNT: AtomicU32 = AtomicU32::new(0);

impl Program {
    /// Starts `command` in a process group of its own, its output in files in `dir`.
    #[track_caller]
    pub fn spawn(mut command: Command, dir: &Path) -> Program {
        let name = Path::new(command.get_program())
            .file_name()
            .and_then(OsStr::to_str)
            .unwrap_or("program")
            .to_owned();
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let log = dir.join(format!("{name}.{number}.err"));
        let out = dir.join(format!("{name}.{number}.out"));
        command
            .stdout(File::create(&out).expect("the test's directory can be written"))
            .stderr(File::create(&log).expect("the test's directory can be written"))
            .process_group(0);
        let child = command
            .spawn()
            .unwrap_or_else(|error| panic!("{name} cannot be started: {error}"));
        Program {
            name,
            child,
            log,
            out,
            status: None,
        }
    }

    /// Its standard input, if that was to be a pipe.
    pub fn stdin(&mut self) -> ChildStdin {
        self.child.stdin.take().expect("a pipe")
    }

    /// The process id.
    pub fn pid(&self) -> Pid {
        Pid::from_child(&self.child)
    }

    /// Sends a signal to the program alone.
    pub fn signal(&self, signal: Signal) {
        let _ = kill_process(self.pid(), signal);
    }

    /// Kills the program alone, and reaps it.
    pub fn kill(&mut self) {
        self.signal(Signal::KILL);
        self.status = self.child.wait().ok();
    }

    /// Whether it still runs.
    pub fn running(&mut self) -> bool {
        if self.status.is_none() {
            self.status = self.child.try_wait().expect("our own child");
        }
        self.status.is_none()
    }

    /// What it has written to standard error so far.
    pub fn stderr(&self) -> String {
        String::from_utf8_lossy(&fs::read(&self.log).unwrap_or_default()).into_owned()
    }

    /// What it has written to standard output so far.
    pub fn stdout(&self) -> String {
        String::from_utf8_lossy(&fs::read(&self.out).unwrap_or_default()).into_owned()
    }

    /// Waits until it ends by itself.
    #[track_caller]
    pub fn finish(mut self, limit: Duration) -> Finished {
        let start = Instant::now();
        let status = eventually(&format!("{} to end", self.name), limit, || {
            (!self.running()).then_some(self.status)
        })
        .expect("ended");
        Finished {
            status,
            stdout: self.stdout(),
            stderr: self.stderr(),
            took: start.elapsed(),
        }
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        if self.running() {
            self.signal(Signal::TERM);
            let start = Instant::now();
            while self.running() && start.elapsed() < Duration::from_secs(3) {
                std::thread::sleep(Duration::from_millis(5));
            }
            let _ = kill_process_group(self.pid(), Signal::KILL);
            let _ = self.child.wait();
        }
        if std::thread::panicking() {
            let text = self.stderr();
            let tail: Vec<&str> = text.lines().rev().take(60).collect();
            eprintln!(
                "--- standard error of {} (pid {}), its last lines",
                self.name,
                self.child.id()
            );
            tail.iter().rev().for_each(|line| eprintln!("    {line}"));
        }
    }
}

/// Runs `command` to its end with `input` on its standard input.
#[track_caller]
pub fn run(mut command: Command, dir: &Path, input: &str, limit: Duration) -> Finished {
    let mut file = tempfile::tempfile_in(dir).expect("the test's directory can be written");
    file.write_all(input.as_bytes())
        .expect("the test's directory can be written");
    std::io::Seek::rewind(&mut file).expect("a file can be rewound");
    command.stdin(Stdio::from(file));
    Program::spawn(command, dir).finish(limit)
}

/// The processes, zombies aside, that carry `mark` in their environment.
pub fn marked(mark: &str) -> Vec<(i32, String)> {
    let wanted = format!("{MARK}={mark}");
    let Ok(entries) = fs::read_dir("/proc") else {
        return Vec::new();
    };
    entries
        .flatten()
        .filter_map(|entry| {
            let pid: i32 = entry.file_name().to_str()?.parse().ok()?;
            let environment = fs::read(entry.path().join("environ")).ok()?;
            environment
                .split(|byte| *byte == 0)
                .any(|variable| variable == wanted.as_bytes())
                .then_some(())?;
            let line = fs::read(entry.path().join("cmdline")).ok()?;
            (!line.is_empty()).then(|| (pid, String::from_utf8_lossy(&line).replace('\0', " ")))
        })
        .collect()
}

/// Kills what carries `mark`.
pub fn kill_marked(mark: &str) {
    for (pid, _) in marked(mark) {
        if let Some(pid) = Pid::from_raw(pid) {
            let _ = kill_process(pid, Signal::KILL);
        }
    }
}
