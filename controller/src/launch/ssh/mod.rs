//! Engines on other hosts, over SSH: sends the program where it is missing, starts it, keeps the connection (and the
//! tunnel through it) up, stops it at the end. One thread a host.

mod host;
mod remote;

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
    time::Duration,
};

use crossbeam_channel::{Receiver, Sender, bounded, unbounded};
use serde::{Deserialize, Serialize};

use ipbroker_protocol::{
    connection::EngineConnection,
    spawn,
    ssh::{Settings, SshError},
    wake::{self, Waker},
};

use super::{
    LaunchEvent, Launcher, Sink,
    hosts::{HostSpec, share},
    join,
    program::{ProgramError, Programs},
    read_record, write_record,
};

/// What to start, and how to get there.
#[derive(Debug, Clone)]
pub(crate) struct Plan {
    /// On which hosts.
    pub hosts: Vec<HostSpec>,
    /// Engines in all, shared out by cores; none: each host's own number, or its cores.
    pub total: Option<u32>,
    /// Let the engines reach the controller through the SSH connection. Without it that is done only where they could
    /// not reach it otherwise: when it listens on loopback alone, or the host is behind another one.
    pub tunnel: bool,
    /// What is needed on this side.
    pub tools: Tools,
    /// How many hosts to work on at once while starting.
    pub parallel: usize,
    /// Further options for `ipengine`.
    pub engine_args: Vec<String>,
    /// How the controller is reached, as its connection file says.
    pub connection: EngineConnection,
    /// The controller's address was given by the user: do not replace it by the one that the host sees.
    pub location_given: bool,
    /// File that says what runs where, for the next controller.
    pub record: PathBuf,
    /// Take over what is in that file and still lives; it counts.
    pub adopt: bool,
}

/// What is needed here to start engines elsewhere, looked up before anything is started.
#[derive(Debug, Clone)]
pub(crate) struct Tools {
    settings: Settings,
    programs: Programs,
}

impl Tools {
    /// Reads the SSH configuration (none: `~/.ssh/config`) and the programs to send (none: see [`Programs::find`]).
    /// `accept_new`: hosts seen for the first time are trusted.
    pub(crate) fn find(
        ssh_config: Option<&Path>,
        accept_new: bool,
        program: Option<&Path>,
    ) -> Result<Self, LaunchError> {
        Ok(Self {
            settings: Settings::load(ssh_config)?.accept_new(accept_new),
            programs: Programs::find(program)?,
        })
    }
}

/// Engines on a host, in the record.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Survivor {
    /// As the user calls it.
    host: String,
    engines: u32,
    process: remote::Process,
    /// What the connection has left there.
    sshd: Option<u32>,
    tail: Option<u32>,
    /// The ports there that lead to ours.
    tunnel: Option<Vec<host::Forwarded>>,
}

/// Why nothing can be started at all.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LaunchError {
    /// There is no program to send.
    #[error(transparent)]
    Program(#[from] ProgramError),
    /// The user's SSH configuration cannot be read.
    #[error(transparent)]
    Ssh(#[from] SshError),
    /// No threads, no descriptors.
    #[error("cannot start threads for the hosts: {0}")]
    System(#[from] std::io::Error),
}

/// What the hosts' threads share.
struct Shared {
    plan: Plan,
    sink: Sink,
    stop: AtomicBool,
    /// Tokens of those that may start something now.
    turns: (Sender<()>, Receiver<()>),
    /// What runs where, by the number of its thread.
    running: Mutex<BTreeMap<usize, Survivor>>,
}

impl Shared {
    fn tell(&self, event: LaunchEvent) {
        (self.sink)(event);
    }

    fn stopping(&self) -> bool {
        self.stop.load(Ordering::Acquire)
    }

    /// Keeps the record up to date; at an orderly end it is not needed.
    fn note(&self, key: usize, engines: Option<Survivor>) {
        let mut running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        let before = match engines {
            Some(engines) => running.insert(key, engines),
            None => running.remove(&key),
        };
        if before.as_ref() == running.get(&key) || self.stopping() {
            return;
        }
        let all: Vec<&Survivor> = running.values().collect();
        write_record(&self.plan.record, &all);
    }
}

/// A host's thread, on its way.
enum Report {
    /// So many engines of an earlier controller live there.
    Survived(usize, u32),
    /// It has looked at its host and waits to be told how many engines to start.
    Cores(usize, u32),
    /// Its first start has ended well or not.
    Started(usize, Result<u32, String>),
}

/// Engines on other hosts.
pub(crate) struct SshLauncher {
    shared: Arc<Shared>,
    wakers: Vec<Waker>,
    threads: Vec<JoinHandle<()>>,
}

impl SshLauncher {
    /// Begins to start the engines; what becomes of it is told to `sink`, at last a [`LaunchEvent::Settled`].
    pub(crate) fn start(plan: Plan, sink: Sink) -> Result<Self, LaunchError> {
        let turns = bounded(plan.parallel.max(1));
        for _ in 0..plan.parallel.max(1) {
            let _ = turns.0.send(());
        }
        let survivors: Vec<(usize, Survivor)> = if plan.adopt {
            let of = |name: &str| plan.hosts.iter().position(|h| h.name == name);
            let recorded: Vec<Survivor> = read_record(&plan.record).unwrap_or_default();
            recorded
                .into_iter()
                .filter_map(|s| Some((of(&s.host)?, s)))
                .collect()
        } else {
            Vec::new()
        };
        let shared = Arc::new(Shared {
            sink,
            stop: AtomicBool::new(false),
            turns,
            running: Mutex::default(),
            plan,
        });
        let (report, reports) = unbounded();
        let mut this = Self {
            shared: shared.clone(),
            wakers: Vec::new(),
            threads: Vec::new(),
        };
        let hosts = shared.plan.hosts.len();
        let expected = survivors.len();
        // Survivors first: they have less time.
        let survivors = (hosts..)
            .zip(survivors)
            .map(|(key, (index, survivor))| (index, Some((key, survivor))));
        let mut shares = Vec::new();
        for (index, survivor) in survivors.chain((0..hosts).map(|index| (index, None))) {
            let (waker, wake) = wake::pair()?;
            let (share, told) = bounded(1);
            if survivor.is_none() {
                shares.push(share);
            }
            let (shared, report) = (shared.clone(), report.clone());
            let name = format!("ssh-{}", shared.plan.hosts[index].name);
            let thread = spawn(name, move || {
                host::Host::new(index, survivor, shared, wake, report, told).run();
            })?;
            this.wakers.push(waker);
            this.threads.push(thread);
        }
        let thread = spawn("ssh-launch", move || {
            coordinate(&shared, expected, &reports, &shares)
        })?;
        this.threads.push(thread);
        Ok(this)
    }

    fn tell_to_stop(&self) {
        self.shared.stop.store(true, Ordering::Release);
        for waker in &self.wakers {
            waker.wake();
        }
    }
}

/// Shares the engines out once every host has been looked at, and tells when all have been tried. `expected`: so many
/// processes of an earlier controller have yet to be found or not.
fn coordinate(
    shared: &Shared,
    mut expected: usize,
    reports: &Receiver<Report>,
    shares: &[Sender<u32>],
) {
    let hosts = &shared.plan.hosts;
    let mut survived = vec![0; hosts.len()];
    let mut cores: Vec<Option<u32>> = vec![None; hosts.len()];
    let mut results: Vec<Option<Result<u32, String>>> = vec![None; hosts.len()];
    let mut shared_out = false;
    while results.iter().any(Option::is_none) {
        match reports.recv() {
            Ok(Report::Survived(index, n)) => {
                survived[index] += n;
                expected -= 1;
            }
            Ok(Report::Cores(index, n)) => cores[index] = Some(n),
            Ok(Report::Started(index, result)) => results[index] = Some(result),
            // The threads are gone: stopped.
            Err(_) => return,
        }
        let looked_at = |i: usize| cores[i].is_some() || results[i].is_some();
        if !shared_out && expected == 0 && (0..hosts.len()).all(looked_at) {
            shared_out = true;
            let there: Vec<usize> = (0..hosts.len())
                .filter(|&i| cores[i].is_some() && results[i].is_none())
                .collect();
            let numbers = distribute(
                shared.plan.total,
                &there
                    .iter()
                    .map(|&i| (hosts[i].slots, cores[i].unwrap_or(1)))
                    .collect::<Vec<_>>(),
            );
            for (&index, number) in there.iter().zip(numbers) {
                let _ = shares[index].send(number.saturating_sub(survived[index]));
            }
        }
    }
    if shared.stopping() {
        return;
    }
    let (mut engines, mut failed) = (Vec::new(), Vec::new());
    for ((host, result), survived) in hosts.iter().zip(results).zip(survived) {
        match result {
            Some(Ok(n)) => engines.push((host.name.clone(), n + survived)),
            Some(Err(reason)) => failed.push((host.name.clone(), reason)),
            None => {}
        }
    }
    shared.tell(LaunchEvent::Settled { engines, failed });
}

/// How many engines on each host, given its own number and its cores.
fn distribute(total: Option<u32>, hosts: &[(Option<u32>, u32)]) -> Vec<u32> {
    let Some(total) = total else {
        return hosts
            .iter()
            .map(|&(slots, cores)| slots.unwrap_or(cores).max(1))
            .collect();
    };
    let fixed: u32 = hosts.iter().filter_map(|h| h.0).sum();
    let open: Vec<usize> = (0..hosts.len()).filter(|&i| hosts[i].0.is_none()).collect();
    if open.is_empty() {
        // Numbers everywhere are a bound as cores are.
        return share(
            total,
            &hosts.iter().map(|h| h.0.unwrap_or(1)).collect::<Vec<_>>(),
        );
    }
    let mut numbers: Vec<u32> = hosts.iter().map(|h| h.0.unwrap_or(0)).collect();
    let rest = share(
        total.saturating_sub(fixed),
        &open.iter().map(|&i| hosts[i].1).collect::<Vec<_>>(),
    );
    for (index, number) in open.into_iter().zip(rest) {
        numbers[index] = number;
    }
    numbers
}

impl Launcher for SshLauncher {
    fn stop(&mut self, grace: Duration) {
        self.tell_to_stop();
        // Each thread has its own limit; a host that does not answer is left to its engines, which end by themselves.
        join(self.threads.drain(..), grace);
        let _ = fs::remove_file(&self.shared.plan.record);
    }
}

impl Drop for SshLauncher {
    fn drop(&mut self) {
        self.tell_to_stop();
    }
}

#[cfg(test)]
mod tests {
    use super::distribute;

    #[test]
    fn numbers_for_each_host() {
        assert_eq!(distribute(None, &[(Some(4), 2), (None, 8)]), [4, 8]);
        assert_eq!(
            distribute(Some(16), &[(None, 8), (None, 8), (None, 8)]),
            [6, 5, 5]
        );
        assert_eq!(
            distribute(Some(10), &[(Some(4), 64), (None, 8), (None, 8)]),
            [4, 3, 3]
        );
        assert_eq!(distribute(Some(3), &[(Some(4), 1), (Some(4), 1)]), [2, 1]);
    }
}
