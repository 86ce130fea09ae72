//! Engines on this host: starts processes, starts those again that die, and counts those that outlived an earlier
//! controller and come back.

use std::{
    env,
    ffi::OsString,
    fs, io,
    os::unix::process::{CommandExt, ExitStatusExt},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    sync::Arc,
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use ipbroker_protocol::usage;
use rustix::{
    event::{PollFd, PollFlags, poll},
    fd::OwnedFd,
    process::{Pid, PidfdFlags, Signal, kill_process, pidfd_open},
};
use serde::{Deserialize, Serialize};

use super::{read_record, write_record};

/// Engines in one process at most: what dies together.
const PER_PROCESS: u32 = 64;

/// The pause before a process that died is started again, and the longest.
const PAUSES: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(30));

/// How often a process may die at the start of the cluster, before any engine has come up.
const TRIES: u32 = 4;

/// A process that lived this long begins with the shortest pause again.
const STEADY: Duration = Duration::from_secs(30);

/// How engines are started.
#[derive(Debug, Clone)]
pub(crate) struct Plan {
    /// The program; none: `ipengine` beside this program, or on the path.
    pub program: Option<PathBuf>,
    /// Its arguments besides `-n`.
    pub arguments: Vec<OsString>,
    /// File that names the processes, for the next controller.
    pub record: PathBuf,
}

/// What happened to a local engine process.
#[derive(Debug)]
pub(crate) enum LocalEvent {
    /// It ended: its slot, its process id, how (`None`: it was not our child).
    Ended(usize, u32, Option<ExitStatus>),
    /// Its pause is over.
    Due(usize),
}

/// A process, in the record.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Recorded {
    pid: u32,
    engines: u32,
}

#[derive(Debug)]
struct Slot {
    engines: u32,
    /// The process, while there is one.
    pid: Option<u32>,
    started: Instant,
    pause: Duration,
}

impl Slot {
    fn new(engines: u32, pid: Option<u32>) -> Self {
        Self {
            engines,
            pid,
            started: Instant::now(),
            pause: PAUSES.0,
        }
    }
}

/// Starts a thread that only waits.
fn waiting(name: String, wait: impl FnOnce() + Send + 'static) -> io::Result<JoinHandle<()>> {
    let thread = thread::Builder::new().name(name);
    thread.stack_size(128 << 10).spawn(wait)
}

type Tell = Arc<dyn Fn(LocalEvent) + Send + Sync>;

/// The local engines.
pub(crate) struct Local {
    plan: Plan,
    slots: Vec<Slot>,
    tell: Tell,
    stopping: bool,
    registered: u32,
}

/// How many engines each process has: as many processes as cores, and no process too large.
fn shares(engines: u32, cores: u32) -> Vec<u32> {
    let processes = engines.min(cores.max(1)).max(engines.div_ceil(PER_PROCESS));
    (0..processes)
        .map(|index| engines / processes + u32::from(index < engines % processes))
        .collect()
}

impl Local {
    /// None yet; `tell` takes events, which come back through [`Local::event`].
    pub(crate) fn new(plan: &Plan, tell: impl Fn(LocalEvent) + Send + Sync + 'static) -> Self {
        Self {
            plan: plan.clone(),
            slots: Vec::new(),
            tell: Arc::new(tell),
            stopping: false,
            registered: 0,
        }
    }

    /// Starts as many as are lacking. `adopt`: those of an earlier controller that still live count.
    pub(crate) fn start(&mut self, engines: u32, adopt: bool) -> Result<(), String> {
        usage::check_system()?;
        let mut lacking = engines;
        if adopt {
            for Recorded { pid, engines } in
                read_record::<Vec<Recorded>>(&self.plan.record).unwrap_or_default()
            {
                if engines <= lacking && self.adopt(pid, engines) {
                    lacking -= engines;
                }
            }
            if lacking < engines {
                tracing::info!(
                    engines = engines - lacking,
                    "local engines of the earlier controller live"
                );
            }
        }
        let cores = thread::available_parallelism()
            .map_or(1, |cores| u32::try_from(cores.get()).unwrap_or(1));
        for engines in shares(lacking, cores) {
            if engines == 0 {
                continue;
            }
            self.slots.push(Slot::new(engines, None));
            let slot = self.slots.len() - 1;
            self.launch(slot).map_err(|error| {
                format!(
                    "cannot start {}: {error}; put ipengine beside ipctl or on the PATH, or name it with --engine-program",
                    self.program().display()
                )
            })?;
        }
        self.record();
        Ok(())
    }

    fn program(&self) -> PathBuf {
        engine_program(self.plan.program.as_deref())
    }

    fn launch(&mut self, slot: usize) -> io::Result<()> {
        let engines = self.slots[slot].engines;
        let mut command = Command::new(self.program());
        command
            .arg("-n")
            .arg(engines.to_string())
            .args(&self.plan.arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            // Ctrl-C is for the controller, which stops them in good order.
            .process_group(0)
            // Settings of the controller's own that would lead the engine elsewhere.
            .env_remove("IPP_CONNECTION_INFO");
        let mut child: Child = command.spawn()?;
        let pid = child.id();
        tracing::debug!(pid, engines, "started a local engine process");
        self.slots[slot].pid = Some(pid);
        self.slots[slot].started = Instant::now();
        let tell = self.tell.clone();
        waiting(format!("engine {pid}"), move || {
            let status = child.wait().ok();
            tell(LocalEvent::Ended(slot, pid, status));
        })?;
        Ok(())
    }

    /// Takes over a process that an earlier controller started.
    fn adopt(&mut self, pid: u32, engines: u32) -> bool {
        let Some(process) = engine_process(pid) else {
            return false;
        };
        let slot = self.slots.len();
        let tell = self.tell.clone();
        let watch = waiting(format!("engine {pid}"), move || {
            let mut fds = [PollFd::new(&process, PollFlags::IN)];
            while poll(&mut fds, None).is_err() {}
            tell(LocalEvent::Ended(slot, pid, None));
        });
        if watch.is_err() {
            return false;
        }
        self.slots.push(Slot::new(engines, Some(pid)));
        true
    }

    /// An engine has registered; its process says who it is.
    pub(crate) fn joined(&mut self, pid: Option<u32>) {
        if pid.is_some() && self.slots.iter().any(|slot| slot.pid == pid) {
            self.registered += 1;
            let wanted: u32 = self.slots.iter().map(|slot| slot.engines).sum();
            if self.registered == wanted {
                tracing::info!(engines = wanted, "all local engines are registered");
            }
        }
    }

    /// Something happened to a process.
    pub(crate) fn event(&mut self, event: LocalEvent) -> Result<(), String> {
        match event {
            LocalEvent::Ended(slot, pid, status) => {
                let hopeless = Some(i32::from(usage::HOPELESS));
                let began = self.slots[slot].pid == Some(pid) && self.registered == 0;
                self.ended(slot, pid, status);
                if !began || self.stopping {
                    return Ok(());
                }
                let engines: u32 = self.slots.iter().map(|slot| slot.engines).sum();
                if status.is_some_and(|status| status.code() == hopeless) {
                    return Err(format!(
                        "{engines} engines cannot be started here: the engine process has said why"
                    ));
                }
                if self.slots[slot].pause >= PAUSES.0 * 2u32.pow(TRIES) {
                    return Err(format!(
                        "{engines} engines cannot be started: {} has ended {TRIES} times before an engine came up; what it said is above",
                        self.program().display()
                    ));
                }
            }
            LocalEvent::Due(slot) if !self.stopping && self.slots[slot].pid.is_none() => {
                if let Err(error) = self.launch(slot) {
                    tracing::error!("cannot start {}: {error}", self.program().display());
                    self.again(slot);
                }
                self.record();
            }
            LocalEvent::Due(_) => {}
        }
        Ok(())
    }

    fn ended(&mut self, slot: usize, pid: u32, status: Option<ExitStatus>) {
        if self.slots[slot].pid != Some(pid) {
            return;
        }
        self.slots[slot].pid = None;
        let how = match status {
            Some(status) => match (status.code(), status.signal()) {
                (Some(code), _) => format!("ended with status {code}"),
                (None, Some(signal)) => format!("was killed by signal {signal}"),
                _ => "ended".to_owned(),
            },
            None => "ended".to_owned(),
        };
        if self.stopping {
            tracing::debug!(pid, "local engine process {how}");
        } else if status.is_some_and(|status| status.code() == Some(i32::from(usage::HOPELESS))) {
            // It would end like this again and again.
            tracing::error!(
                pid,
                engines = self.slots[slot].engines,
                "local engine process cannot run here"
            );
        } else if status.is_some_and(|status| status.success()) {
            // It was told to.
            tracing::info!(
                pid,
                engines = self.slots[slot].engines,
                "local engine process has shut down"
            );
            self.slots[slot].engines = 0;
        } else {
            if self.slots[slot].started.elapsed() >= STEADY {
                self.slots[slot].pause = PAUSES.0;
            }
            let pause = self.again(slot);
            tracing::warn!(
                pid,
                engines = self.slots[slot].engines,
                ?pause,
                "local engine process {how}; starting it again"
            );
        }
        self.record();
    }

    /// Starts a process again after its pause, which doubles.
    fn again(&mut self, slot: usize) -> Duration {
        let pause = self.slots[slot].pause;
        self.slots[slot].pause = (pause * 2).min(PAUSES.1);
        let tell = self.tell.clone();
        let timer = waiting("restart".into(), move || {
            thread::sleep(pause);
            tell(LocalEvent::Due(slot));
        });
        if let Err(error) = timer {
            tracing::error!(%error, "cannot wait to start an engine process again");
        }
        pause
    }

    /// Ends all processes: asks, waits up to `grace` (or until `hurry` says so), then kills.
    pub(crate) fn stop(&mut self, grace: Duration, mut hurry: impl FnMut() -> bool) {
        self.stopping = true;
        let mut left: Vec<(u32, OwnedFd)> = self
            .slots
            .iter()
            .filter_map(|slot| Some((slot.pid?, pidfd(slot.pid?)?)))
            .collect();
        for (pid, _) in &left {
            signal(*pid, Signal::TERM);
        }
        let deadline = Instant::now() + grace;
        while !left.is_empty() && Instant::now() < deadline && !hurry() {
            let ready: Vec<bool> = {
                let mut fds: Vec<PollFd<'_>> = left
                    .iter()
                    .map(|(_, fd)| PollFd::new(fd, PollFlags::IN))
                    .collect();
                let pause = rustix::event::Timespec {
                    tv_sec: 0,
                    tv_nsec: 100_000_000,
                };
                if poll(&mut fds, Some(&pause)).is_err() {
                    continue;
                }
                fds.iter().map(|fd| !fd.revents().is_empty()).collect()
            };
            let mut ready = ready.into_iter();
            left.retain(|_| !ready.next().unwrap_or(false));
        }
        for (pid, _) in &left {
            tracing::warn!(pid, "a local engine process did not end in time: killed");
            signal(*pid, Signal::KILL);
        }
        let _ = fs::remove_file(&self.plan.record);
    }

    /// Names the processes for a controller that comes after a crash.
    fn record(&self) {
        let running: Vec<Recorded> = self
            .slots
            .iter()
            .filter_map(|slot| {
                Some(Recorded {
                    pid: slot.pid?,
                    engines: slot.engines,
                })
            })
            .collect();
        write_record(&self.plan.record, &running);
    }
}

/// The program that runs engines: the one given, else `ipengine` beside this program, else on the path.
pub(crate) fn engine_program(given: Option<&Path>) -> PathBuf {
    if let Some(program) = given {
        return program.to_owned();
    }
    let beside = env::current_exe()
        .ok()
        .and_then(|own| Some(own.parent()?.join("ipengine")));
    beside
        .filter(|path| path.is_file())
        .unwrap_or_else(|| "ipengine".into())
}

fn as_pid(pid: u32) -> Option<Pid> {
    Pid::from_raw(i32::try_from(pid).ok()?)
}

fn pidfd(pid: u32) -> Option<OwnedFd> {
    pidfd_open(as_pid(pid)?, PidfdFlags::empty()).ok()
}

fn signal(pid: u32, signal: Signal) {
    if let Some(pid) = as_pid(pid) {
        // Gone already: what was wanted.
        let _ = kill_process(pid, signal);
    }
}

/// A handle on a process, if it is one of our engines: process ids are used again.
fn engine_process(pid: u32) -> Option<OwnedFd> {
    let process = pidfd(pid)?;
    let name = fs::read_to_string(format!("/proc/{pid}/comm")).ok()?;
    (name.trim_end() == "ipengine").then_some(process)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn engines_are_shared_out_over_processes() {
        assert_eq!(shares(4, 2), [2, 2]);
        assert_eq!(shares(5, 2), [3, 2]);
        assert_eq!(shares(1, 8), [1]);
        assert_eq!(shares(0, 8), Vec::<u32>::new());
        assert_eq!(shares(1000, 2).len(), 16);
        assert_eq!(shares(1000, 2).iter().sum::<u32>(), 1000);
    }

    fn program(dir: &Path, script: &str) -> PathBuf {
        let path = dir.join("ipengine");
        fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        path
    }

    fn local(dir: &Path, script: &str) -> (Local, crossbeam_channel::Receiver<LocalEvent>) {
        let (sender, events) = crossbeam_channel::unbounded();
        let plan = Plan {
            program: Some(program(dir, script)),
            arguments: vec!["--x".into()],
            record: dir.join("record"),
        };
        (
            Local::new(&plan, move |event| drop(sender.send(event))),
            events,
        )
    }

    const WAIT: Duration = Duration::from_secs(20);

    #[test]
    fn a_process_that_dies_is_started_again_and_all_are_stopped() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("log");
        let script = format!(
            "printf '%s\\n' \"$*\" >> {}; [ $(wc -l < {0}) -ge 2 ] && exec sleep 1000; exit 3",
            log.display()
        );
        let (mut local, events) = local(dir.path(), &script);
        local.start(1, false).unwrap();
        for _ in 0..2 {
            // Its end, then its restart.
            let event = events.recv_timeout(WAIT).unwrap();
            local.event(event).unwrap();
        }
        let pid = local.slots[0].pid.unwrap();
        assert!(
            fs::read_to_string(dir.path().join("record"))
                .unwrap()
                .contains(&pid.to_string())
        );
        let deadline = Instant::now() + WAIT;
        let twice = "-n 1 --x\n-n 1 --x\n";
        while fs::read_to_string(&log).unwrap() != twice {
            assert!(
                Instant::now() < deadline,
                "the second process has not begun"
            );
            thread::sleep(Duration::from_millis(5));
        }
        local.stop(WAIT, || false);
        assert!(
            matches!(events.recv_timeout(WAIT).unwrap(), LocalEvent::Ended(0, ended, _) if ended == pid)
        );
    }

    #[test]
    fn a_process_that_was_told_to_end_stays_away() {
        let dir = tempfile::tempdir().unwrap();
        let (mut local, events) = local(dir.path(), "exit 0");
        local.start(1, false).unwrap();
        let event = events.recv_timeout(WAIT).unwrap();
        local.event(event).unwrap();
        assert_eq!(local.slots[0].engines, 0);
        assert!(events.is_empty());
    }

    #[test]
    fn what_can_never_run_is_said_once() {
        let dir = tempfile::tempdir().unwrap();
        let (mut local, events) = local(dir.path(), "exit 78");
        local.start(2, false).unwrap();
        let event = events.recv_timeout(WAIT).unwrap();
        assert!(local.event(event).unwrap_err().contains("2 engines"));
        local.stop(WAIT, || false);
        assert!(
            events
                .iter()
                .take(local.slots.len() - 1)
                .all(|event| matches!(event, LocalEvent::Ended(..)))
        );
    }

    #[test]
    fn what_never_comes_up_is_given_up() {
        let dir = tempfile::tempdir().unwrap();
        let (mut local, events) = local(dir.path(), "exit 1");
        local.start(1, false).unwrap();
        let mut ended = 0;
        let error = loop {
            let event = events.recv_timeout(WAIT).unwrap();
            ended += u32::from(matches!(event, LocalEvent::Ended(..)));
            if let Err(error) = local.event(event) {
                break error;
            }
        };
        assert!(ended == TRIES && error.contains("ended 4 times"), "{error}");
    }

    #[test]
    fn a_program_that_is_not_there_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let (mut local, _events) = local(dir.path(), "");
        local.plan.program = Some("/no/such/ipengine".into());
        assert!(
            local
                .start(1, false)
                .unwrap_err()
                .contains("/no/such/ipengine")
        );
    }

    #[test]
    fn other_processes_are_not_adopted() {
        let dir = tempfile::tempdir().unwrap();
        let (mut local, _events) = local(dir.path(), "exec sleep 1000");
        let own = [Recorded {
            pid: std::process::id(),
            engines: 1,
        }];
        fs::write(dir.path().join("record"), serde_json::to_vec(&own).unwrap()).unwrap();
        local.start(1, true).unwrap();
        assert_ne!(local.slots[0].pid, Some(std::process::id()));
        local.stop(WAIT, || false);
    }
}
