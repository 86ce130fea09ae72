//! One host, from the first connection to the last.

mod rejoin;
mod start;
mod tunnel;

use std::{
    io,
    sync::Arc,
    time::{Duration, Instant},
};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender};

use ipbroker_protocol::{
    ssh::{Connection, Pump, PumpEvent, SshError, connect},
    wake::Wake,
};

use super::{
    Report, Shared, Survivor,
    remote::{self, Probe, Process},
};
use crate::launch::{LaunchEvent, hosts::HostSpec, program::Program};

pub(super) use tunnel::Forwarded;

/// How long one step (a command, a block of the program) may take on the other side.
const STEP: Duration = Duration::from_secs(60);
/// How long engines may take to leave when told, before they are killed.
const LEAVE: Duration = Duration::from_secs(4);
/// How much the engines of a host may have written to standard error before that file is emptied.
const MOST_ERRORS: u64 = 16 << 20;

/// Why there are no engines on this host.
#[derive(Debug, thiserror::Error)]
enum HostError {
    #[error(transparent)]
    Ssh(#[from] SshError),
    #[error("{host}: its shell does not answer as one should{}", said(.output))]
    Shell { host: String, output: String },
    #[error("{host}: {reason}")]
    Unfit { host: String, reason: String },
    #[error("{host}: cannot keep the program in {cache}: {output}")]
    Store {
        host: String,
        cache: String,
        output: String,
    },
    #[error("{host}: cannot read {path}: {source}")]
    Program {
        host: String,
        path: String,
        source: io::Error,
    },
    #[error("{host}: ipengine could not be started there{}", said(.output))]
    Start { host: String, output: String },
    #[error("stopped")]
    Stopped,
}

fn said(output: &str) -> String {
    match output.trim() {
        "" => String::new(),
        text => format!(": {text}"),
    }
}

pub(super) struct Host {
    /// Which of the plan's hosts.
    index: usize,
    /// The engines of an earlier controller that this is about; none: those that are started.
    survivor: Option<Survivor>,
    /// The name of its engines in the record.
    key: usize,
    shared: Arc<Shared>,
    wake: Option<Wake>,
    report: Sender<Report>,
    told: Receiver<u32>,
    probe: Probe,
    /// The program that runs there, once the host was looked at.
    program: Program,
    engines: u32,
    process: Option<Process>,
    tunnel: Option<Vec<Forwarded>>,
    /// How much of the engines' file of errors has come; none: they have no such file.
    said: Option<u64>,
    /// The process there that passes it on.
    tail: Option<u32>,
    /// An unfinished line of standard error.
    line: Vec<u8>,
    /// The last lines of standard error, for when the start fails.
    last_lines: Vec<String>,
}

/// How life on one connection ended.
enum Ending {
    /// The engines ended, or were stopped.
    Over,
    /// The connection broke.
    Lost(SshError),
}

impl Host {
    pub(super) fn new(
        index: usize,
        survivor: Option<(usize, Survivor)>,
        shared: Arc<Shared>,
        wake: Wake,
        report: Sender<Report>,
        told: Receiver<u32>,
    ) -> Self {
        let (key, survivor) = match survivor {
            Some((key, survivor)) => (key, Some(survivor)),
            None => (index, None),
        };
        let program = shared.plan.tools.programs.first().clone();
        Self {
            index,
            survivor,
            key,
            shared,
            wake: Some(wake),
            report,
            told,
            probe: Probe::default(),
            program,
            engines: 0,
            process: None,
            tunnel: None,
            said: None,
            tail: None,
            line: Vec::new(),
            last_lines: Vec::new(),
        }
    }

    fn spec(&self) -> &HostSpec {
        &self.shared.plan.hosts[self.index]
    }

    fn name(&self) -> String {
        self.spec().name.clone()
    }

    fn step(&self, step: impl Into<String>) {
        self.shared.tell(LaunchEvent::Progress {
            host: self.name(),
            step: step.into(),
        });
    }

    fn failed(&self, reason: String) {
        let host = self.name();
        self.shared.tell(LaunchEvent::Failed { host, reason });
    }

    pub(super) fn run(mut self) {
        let mut pump = match self.survivor.take() {
            Some(survivor) => match self.adopt(survivor) {
                Some(pump) => pump,
                None => return,
            },
            None => match self.begin() {
                Some(pump) => pump,
                None => return,
            },
        };
        loop {
            self.note();
            let ending = self.live(&mut pump);
            self.wake = pump.take_wake().or(self.wake.take());
            match ending {
                Ending::Over => {
                    pump.close();
                    break;
                }
                Ending::Lost(error) => {
                    drop(pump);
                    if !self.shared.stopping() {
                        self.shared.tell(LaunchEvent::Lost {
                            host: self.name(),
                            reason: error.to_string(),
                        });
                    }
                }
            }
            pump = match self.again() {
                Some(pump) => pump,
                None => break,
            };
        }
        self.process = None;
        self.note();
    }

    /// Says in the record what runs there, for a controller that comes after a crash.
    fn note(&self) {
        let survivor = self.process.map(|process| Survivor {
            host: self.name(),
            engines: self.engines,
            process,
            sshd: self.probe.sshd,
            tail: self.tail,
            tunnel: self.tunnel.clone(),
        });
        self.shared.note(self.key, survivor);
    }

    /// The engines that are started; none: there are none, and it has been told why.
    fn begin(&mut self) -> Option<Pump> {
        match self.first() {
            Ok(Some(pump)) => {
                let _ = self
                    .report
                    .send(Report::Started(self.index, Ok(self.engines)));
                self.shared.tell(LaunchEvent::Started {
                    host: self.name(),
                    engines: self.engines,
                });
                Some(pump)
            }
            // None for this host.
            Ok(None) => {
                let _ = self.report.send(Report::Started(self.index, Ok(0)));
                None
            }
            Err(e) => {
                let reason = e.to_string();
                let _ = self
                    .report
                    .send(Report::Started(self.index, Err(reason.clone())));
                if !matches!(e, HostError::Stopped) {
                    self.failed(reason);
                }
                None
            }
        }
    }

    /// A turn among the hosts that are being started; given back when dropped.
    fn turn(&self) -> Turn {
        let _ = self.shared.turns.1.recv();
        Turn(self.shared.clone())
    }

    fn first(&mut self) -> Result<Option<Pump>, HostError> {
        let turn = self.turn();
        if self.shared.stopping() {
            return Err(HostError::Stopped);
        }
        let name = self.name();
        let connection = connect(&self.shared.plan.tools.settings, &name)?;
        self.look(&connection)?;
        self.step(format!(
            "connected to {} ({} cores)",
            connection.target().address,
            self.probe.cores
        ));
        drop(turn);
        let _ = self
            .report
            .send(Report::Cores(self.index, self.probe.cores));
        self.engines = loop {
            match self.told.recv_timeout(Duration::from_millis(500)) {
                Ok(n) => break n,
                Err(RecvTimeoutError::Timeout) if !self.shared.stopping() => {}
                Err(_) => return Err(HostError::Stopped),
            }
        };
        if self.engines == 0 {
            connection.close();
            return Ok(None);
        }
        let _turn = self.turn();
        self.send_program(&connection)?;
        self.start(connection).map(Some)
    }

    /// Looks at the host; an unfit one is an error.
    fn look(&mut self, connection: &Connection) -> Result<(), HostError> {
        let programs = &self.shared.plan.tools.programs;
        let output = connection.run(&remote::probe(programs), io::empty(), STEP)?;
        let text = String::from_utf8_lossy(&output.stdout);
        let probe = remote::parse_probe(&text).ok_or_else(|| HostError::Shell {
            host: self.name(),
            output: first_line(&output.stderr, &text),
        })?;
        let program = programs
            .for_host(&probe.system, &probe.machine, probe.glibc)
            .map_err(|reason| HostError::Unfit {
                host: self.name(),
                reason,
            })?;
        self.program = program.clone();
        self.probe = probe;
        Ok(())
    }

    /// Until the engines end, are told to, or the connection breaks.
    fn live(&mut self, pump: &mut Pump) -> Ending {
        if let Some(wake) = self.wake.take() {
            pump.wake_by(wake);
        }
        let mut told: Option<Instant> = None;
        let mut killed = false;
        loop {
            if let Some(wake) = pump.wake() {
                wake.clear();
            }
            if self.shared.stopping()
                && let Some(process) = self.process
            {
                let asked = match told {
                    None => {
                        told = Some(Instant::now());
                        pump.run(&remote::terminate(process), io::empty()).map(drop)
                    }
                    Some(since) if since.elapsed() > LEAVE && !killed => {
                        killed = true;
                        pump.run(&remote::kill(process), io::empty()).map(drop)
                    }
                    Some(since) if since.elapsed() > LEAVE * 2 => return Ending::Over,
                    Some(_) => Ok(()),
                };
                if let Err(e) = asked {
                    return Ending::Lost(e);
                }
            }
            if let Some(process) = self.process
                && self.said.is_some_and(|said| said > MOST_ERRORS)
            {
                self.said = Some(0);
                if let Err(e) = pump.run(&remote::forget_errors(process), io::empty()) {
                    return Ending::Lost(e);
                }
            }
            let timeout = if told.is_some() {
                Duration::from_millis(100)
            } else {
                Duration::from_secs(2)
            };
            let events = match pump.turn(timeout) {
                Ok(events) => events,
                Err(e) => return Ending::Lost(e),
            };
            for event in events {
                match event {
                    PumpEvent::Stdout(bytes) => {
                        let tail = remote::parse_tail(&String::from_utf8_lossy(&bytes));
                        if tail.is_some() && tail != self.tail {
                            self.tail = tail;
                            self.note();
                        }
                    }
                    PumpEvent::Stderr(bytes) => self.stderr(&bytes, true),
                    PumpEvent::Ended { status } => {
                        self.process = None;
                        if !self.shared.stopping() {
                            self.shared.tell(LaunchEvent::Ended {
                                host: self.name(),
                                status,
                            });
                        }
                        return Ending::Over;
                    }
                }
            }
        }
    }

    /// Passes whole lines on.
    fn stderr(&mut self, bytes: &[u8], tell: bool) {
        self.line.extend_from_slice(bytes);
        while let Some(end) = self.line.iter().position(|&b| b == b'\n') {
            let line: Vec<u8> = self.line.drain(..=end).collect();
            let length = line.len() as u64;
            let line = String::from_utf8_lossy(&line).trim_end().to_owned();
            if line == remote::STDERR_MARK {
                self.said = Some(0);
                continue;
            }
            if let Some(said) = &mut self.said {
                *said += length;
            }
            if line.is_empty() {
                continue;
            }
            if tell {
                self.shared.tell(LaunchEvent::Stderr {
                    host: self.name(),
                    line,
                });
            } else {
                self.last_lines.push(line);
                let excess = self.last_lines.len().saturating_sub(20);
                self.last_lines.drain(..excess);
            }
        }
    }
}

fn first_line(stderr: &str, stdout: &str) -> String {
    [stderr, stdout]
        .iter()
        .flat_map(|t| t.lines())
        .find(|l| !l.trim().is_empty() && !l.starts_with("ipb:"))
        .unwrap_or("")
        .trim()
        .to_owned()
}

struct Turn(Arc<Shared>);

impl Drop for Turn {
    fn drop(&mut self) {
        let _ = self.0.turns.0.try_send(());
    }
}
