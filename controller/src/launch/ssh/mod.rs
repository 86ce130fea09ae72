//! Engines on other hosts, over SSH: sends the program where it is missing, starts it, keeps the connection (and the
//! tunnel through it) up, stops it at the end. One thread a host.

mod host;
mod remote;

use std::{
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use crossbeam_channel::{Receiver, Sender, bounded, unbounded};

use ipbroker_protocol::{
    connection::EngineConnection,
    ssh::{Settings, SshError},
    wake::{self, Waker},
};

use super::{
    LaunchEvent, Launcher, Sink,
    hosts::{HostSpec, share},
    program::{Program, ProgramError},
};

/// What to start, and how to get there.
#[derive(Debug, Clone)]
pub struct Plan {
    /// On which hosts.
    pub hosts: Vec<HostSpec>,
    /// Engines in all, shared out by cores; none: each host's own number, or its cores.
    pub total: Option<u32>,
    /// Let the engines reach the controller through the SSH connection. Without it that is done only where they could
    /// not reach it otherwise: when it listens on loopback alone, or the host is behind another one.
    pub tunnel: bool,
    /// Trust hosts seen for the first time.
    pub accept_new: bool,
    /// Instead of `~/.ssh/config`.
    pub ssh_config: Option<PathBuf>,
    /// Instead of the `ipengine` beside this program.
    pub program: Option<PathBuf>,
    /// How many hosts to work on at once while starting.
    pub parallel: usize,
    /// Further options for `ipengine`.
    pub engine_args: Vec<String>,
    /// How the controller is reached, as its connection file says.
    pub connection: EngineConnection,
    /// The controller's address was given by the user: do not replace it by the one that the host sees.
    pub location_given: bool,
}

/// Why nothing can be started at all.
#[derive(Debug, thiserror::Error)]
pub enum LaunchError {
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
    settings: Settings,
    program: Program,
    sink: Sink,
    stop: AtomicBool,
    /// Tokens of those that may start something now.
    turns: (Sender<()>, Receiver<()>),
}

impl Shared {
    fn tell(&self, event: LaunchEvent) {
        (self.sink)(event);
    }

    fn stopping(&self) -> bool {
        self.stop.load(Ordering::Acquire)
    }
}

/// A host's thread, on its way.
enum Report {
    /// It has looked at its host and waits to be told how many engines to start.
    Cores(usize, u32),
    /// Its first start has ended well or not.
    Started(usize, Result<u32, String>),
}

/// Engines on other hosts.
pub struct SshLauncher {
    shared: Arc<Shared>,
    wakers: Vec<Waker>,
    threads: Vec<JoinHandle<()>>,
}

impl SshLauncher {
    /// Begins to start the engines; what becomes of it is told to `sink`, at last a [`LaunchEvent::Settled`].
    ///
    /// # Errors
    /// When nothing can be tried: no program to send, a broken SSH configuration.
    pub fn start(plan: Plan, sink: Sink) -> Result<Self, LaunchError> {
        let settings = Settings::load(plan.ssh_config.as_deref())?.accept_new(plan.accept_new);
        let program = Program::find(plan.program.as_deref())?;
        let turns = bounded(plan.parallel.max(1));
        for _ in 0..plan.parallel.max(1) {
            let _ = turns.0.send(());
        }
        let shared = Arc::new(Shared {
            settings,
            program,
            sink,
            stop: AtomicBool::new(false),
            turns,
            plan,
        });
        let (report, reports) = unbounded();
        let mut this = Self {
            shared: shared.clone(),
            wakers: Vec::new(),
            threads: Vec::new(),
        };
        let mut shares = Vec::new();
        for index in 0..shared.plan.hosts.len() {
            let (waker, wake) = wake::pair()?;
            let (share, told) = bounded(1);
            let (shared, report) = (shared.clone(), report.clone());
            let name = format!("ssh-{}", shared.plan.hosts[index].name);
            let thread = thread::Builder::new()
                .name(name)
                .spawn(move || host::Host::new(index, shared, wake, report, told).run())?;
            this.wakers.push(waker);
            this.threads.push(thread);
            shares.push(share);
        }
        let thread = thread::Builder::new()
            .name("ssh-launch".into())
            .spawn(move || coordinate(&shared, &reports, &shares))?;
        this.threads.push(thread);
        Ok(this)
    }
}

/// Shares the engines out once every host has been looked at, and tells when all have been tried.
fn coordinate(shared: &Shared, reports: &Receiver<Report>, shares: &[Sender<u32>]) {
    let hosts = &shared.plan.hosts;
    let mut cores: Vec<Option<u32>> = vec![None; hosts.len()];
    let mut results: Vec<Option<Result<u32, String>>> = vec![None; hosts.len()];
    let mut shared_out = false;
    while results.iter().any(Option::is_none) {
        match reports.recv() {
            Ok(Report::Cores(index, n)) => cores[index] = Some(n),
            Ok(Report::Started(index, result)) => results[index] = Some(result),
            // The threads are gone: stopped.
            Err(_) => return,
        }
        if !shared_out && (0..hosts.len()).all(|i| cores[i].is_some() || results[i].is_some()) {
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
                let _ = shares[index].send(number);
            }
        }
    }
    if shared.stopping() {
        return;
    }
    let (mut engines, mut failed) = (Vec::new(), Vec::new());
    for (host, result) in hosts.iter().zip(results) {
        match result {
            Some(Ok(n)) => engines.push((host.name.clone(), n)),
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
        self.shared.stop.store(true, Ordering::Release);
        for waker in &self.wakers {
            waker.wake();
        }
        // Each thread has its own limit; a host that does not answer is left to its engines, which end by themselves.
        let until = Instant::now() + grace;
        while self.threads.iter().any(|t| !t.is_finished()) && Instant::now() < until {
            thread::sleep(Duration::from_millis(10));
        }
        for thread in self.threads.drain(..) {
            if thread.is_finished() {
                let _ = thread.join();
            }
        }
    }
}

impl Drop for SshLauncher {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Release);
        for waker in &self.wakers {
            waker.wake();
        }
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
