//! One host, from the first connection to the last.

use std::{
    fs::File,
    io,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender};
use serde::{Deserialize, Serialize};

use ipbroker_protocol::{
    connection::EngineConnection,
    ssh::{Connection, Output, Pump, PumpEvent, SshError, connect},
    wake::Wake,
};

use super::{
    Report, Shared, Survivor,
    remote::{self, Probe, Process},
};
use crate::launch::{LaunchEvent, hosts::HostSpec};

/// How long one step (a command, a block of the program) may take on the other side.
const STEP: Duration = Duration::from_secs(60);
/// How long engines may take to leave when told, before they are killed.
const LEAVE: Duration = Duration::from_secs(4);
/// How long engines must run to count as started.
const SETTLE: Duration = Duration::from_millis(300);
/// How much the engines of a host may have written to standard error before that file is emptied.
const MOST_ERRORS: u64 = 16 << 20;
const FIRST_PAUSE: Duration = Duration::from_millis(500);
const LONGEST_PAUSE: Duration = Duration::from_secs(15);

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

/// A forwarded port: opened at the first connection, asked for again at every later one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Forwarded {
    local: u16,
    remote: u16,
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
        Self {
            index,
            survivor,
            key,
            shared,
            wake: Some(wake),
            report,
            told,
            probe: Probe::default(),
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
                    self.shared.tell(LaunchEvent::Failed {
                        host: self.name(),
                        reason,
                    });
                }
                None
            }
        }
    }

    /// Takes over engines of an earlier controller, if they live.
    fn adopt(&mut self, survivor: Survivor) -> Option<Pump> {
        let mut adopted = self.try_adopt(&survivor);
        // The server of the lost connection may take a moment to give our ports back.
        for _ in 0..10 {
            match &adopted {
                Err(HostError::Ssh(e)) if self.process.is_some() && e.is_transient() => {
                    tracing::debug!("{e}");
                    std::thread::sleep(FIRST_PAUSE);
                    adopted = self.try_adopt(&survivor);
                }
                _ => break,
            }
        }
        let engines = adopted.as_ref().map_or(0, |_| self.engines);
        let pump = match adopted {
            Ok(pump) => {
                self.step(format!(
                    "{engines} engine(s) of the earlier controller live"
                ));
                Some(pump)
            }
            Err(HostError::Stopped) => None,
            Err(e) if self.process.take().is_some() => {
                self.step(format!(
                    "its engines of the earlier controller cannot be taken over, and will end: {e}"
                ));
                None
            }
            // What keeps us from going there is told by those who start engines there.
            Err(e) => {
                tracing::debug!("{e}");
                None
            }
        };
        let _ = self.report.send(Report::Survived(self.index, engines));
        pump
    }

    /// Once its process is known here, the engines live.
    fn try_adopt(&mut self, survivor: &Survivor) -> Result<Pump, HostError> {
        let _turn = self.turn();
        if self.shared.stopping() {
            return Err(HostError::Stopped);
        }
        let connection = connect(&self.shared.plan.tools.settings, &self.name())?;
        self.look(&connection)?;
        let output = connection.run(&remote::is_alive(survivor.process), io::empty(), STEP)?;
        if output.status != 0 {
            connection.close();
            return Err(HostError::Unfit {
                host: self.name(),
                reason: "its engines have ended".into(),
            });
        }
        // Errors from before are the earlier controller's.
        self.said = String::from_utf8_lossy(&output.stdout).trim().parse().ok();
        self.process = Some(survivor.process);
        self.engines = survivor.engines;
        self.tunnel = survivor.tunnel.clone();
        self.rejoin(connection, survivor.process, (survivor.sshd, survivor.tail))
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
        let output = connection.run(
            &remote::probe(&self.shared.plan.tools.program),
            io::empty(),
            STEP,
        )?;
        let text = String::from_utf8_lossy(&output.stdout);
        let probe = remote::parse_probe(&text).ok_or_else(|| HostError::Shell {
            host: self.name(),
            output: first_line(&output.stderr, &text),
        })?;
        if let Some(reason) =
            self.shared
                .plan
                .tools
                .program
                .unfit(&probe.system, &probe.machine, probe.glibc)
        {
            return Err(HostError::Unfit {
                host: self.name(),
                reason,
            });
        }
        self.probe = probe;
        Ok(())
    }

    fn send_program(&mut self, connection: &Connection) -> Result<(), HostError> {
        if self.probe.cached {
            return Ok(());
        }
        let program = &self.shared.plan.tools.program;
        let file = File::open(&program.path).map_err(|source| HostError::Program {
            host: self.name(),
            path: program.path.display().to_string(),
            source,
        })?;
        let began = Instant::now();
        let output = connection.run(&remote::store(program, &self.probe.cache), file, STEP)?;
        if output.status != 0 {
            let needs = format!(
                "{} (it takes {:.0} MB)",
                problem(&output),
                program.size as f64 / 1e6
            );
            return Err(HostError::Store {
                host: self.name(),
                cache: self.probe.cache.clone(),
                output: needs,
            });
        }
        self.step(format!(
            "sent ipengine ({:.0} MB) in {:.1} s",
            program.size as f64 / 1e6,
            began.elapsed().as_secs_f64()
        ));
        self.probe.cached = true;
        Ok(())
    }

    /// Whether the engines must come through this connection.
    fn needs_tunnel(&self, connection: &Connection) -> bool {
        let plan = &self.shared.plan;
        let interface = plan
            .connection
            .common
            .interface
            .trim_start_matches("tcp://");
        let loopback = interface.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
            || interface == "localhost";
        let near = self
            .probe
            .client
            .as_deref()
            .and_then(|c| c.parse::<IpAddr>().ok())
            .is_some_and(|ip| ip.is_loopback());
        plan.tunnel
            || (loopback && (!near || connection.jumped()))
            || (connection.jumped() && !plan.location_given)
    }

    fn start(&mut self, connection: Connection) -> Result<Pump, HostError> {
        let tunnel = self.tunnel.is_some() || self.needs_tunnel(&connection);
        let mut pump = Pump::new(connection)?;
        if tunnel {
            self.open_tunnel(&mut pump)?;
        }
        pump.watch_far_end()?;
        let info =
            serde_json::to_vec(&self.connection_for_host()).map_err(|e| HostError::Start {
                host: self.name(),
                output: e.to_string(),
            })?;
        let command = remote::start(
            &self.shared.plan.tools.program,
            &self.probe.cache,
            &self.engine_args(pump.address()),
        );
        pump.spawn(&command, info)?;
        (self.process, self.said, self.tail) = (None, None, None);
        self.last_lines.clear();
        let mut stdout = Vec::new();
        let until = Instant::now() + STEP;
        // A program that cannot run says so at once: that belongs to the start.
        let mut settled = None;
        while settled.is_none_or(|at| Instant::now() < at) || pump.is_ending() {
            if Instant::now() > until {
                return Err(HostError::Start {
                    host: self.name(),
                    output: "its shell does not answer".into(),
                });
            }
            for event in pump.turn(Duration::from_millis(100))? {
                match event {
                    PumpEvent::Stdout(bytes) => stdout.extend(bytes),
                    PumpEvent::Stderr(bytes) => self.stderr(&bytes, false),
                    PumpEvent::Ended { status } => {
                        let status = status.map_or_else(String::new, |s| format!("status {s} "));
                        return Err(HostError::Start {
                            host: self.name(),
                            output: format!("{status}{}", self.last_lines.join("; ")),
                        });
                    }
                }
            }
            if settled.is_none() {
                self.process = remote::parse_process(&String::from_utf8_lossy(&stdout));
                settled = self.process.map(|_| Instant::now() + SETTLE);
            }
        }
        self.tail = remote::parse_tail(&String::from_utf8_lossy(&stdout));
        for line in std::mem::take(&mut self.last_lines) {
            self.shared.tell(LaunchEvent::Stderr {
                host: self.name(),
                line,
            });
        }
        Ok(pump)
    }

    fn engine_args(&self, address: &str) -> Vec<String> {
        let alias = self.name();
        let alias = alias.rsplit('@').next().unwrap_or(&alias).to_owned();
        let aliases = if address == alias {
            alias
        } else {
            format!("{alias},{address}")
        };
        let mut args = [
            "-n",
            &self.engines.to_string(),
            "--file",
            "-",
            "--alias",
            &aliases,
        ]
        .map(str::to_owned)
        .to_vec();
        if !self.spec().tags.is_empty() {
            args.extend(["--tags".to_owned(), self.spec().tags.join(",")]);
        }
        let given = &self.shared.plan.engine_args;
        if !given.iter().any(|a| a.starts_with("--log-level")) {
            // The hub tells of engines that come and go; what they themselves say is told when it matters.
            args.push("--log-level=WARNING".to_owned());
        }
        args.extend(given.iter().cloned());
        args
    }

    /// The controller as this host reaches it.
    fn connection_for_host(&self) -> EngineConnection {
        let mut connection = self.shared.plan.connection.clone();
        connection.common.ssh.clear();
        if let Some(tunnel) = &self.tunnel {
            let EngineConnection {
                registration,
                control,
                mux,
                task,
                iopub,
                hb_ping,
                hb_pong,
                broadcast,
                common,
            } = &mut connection;
            for port in [registration, control, mux, task, iopub, hb_ping, hb_pong]
                .into_iter()
                .chain(broadcast)
            {
                if let Some(forwarded) = tunnel.iter().find(|f| f.local == *port) {
                    *port = forwarded.remote;
                }
            }
            common.interface = "tcp://127.0.0.1".into();
            common.location = "127.0.0.1".into();
        } else if !self.shared.plan.location_given
            && matches!(
                connection.common.interface.trim_start_matches("tcp://"),
                "*" | "0.0.0.0" | ""
            )
            && let Some(client) = &self.probe.client
        {
            let client = if client.contains(':') {
                format!("[{client}]")
            } else {
                client.clone()
            };
            connection.common.interface = format!("tcp://{client}");
            connection.common.location = client;
        }
        connection
    }

    /// Opens the controller's ports on the host: any at first, the same ones again later.
    fn open_tunnel(&mut self, pump: &mut Pump) -> Result<(), HostError> {
        let connection = &self.shared.plan.connection;
        let interface = connection.common.interface.trim_start_matches("tcp://");
        let here = interface
            .parse::<IpAddr>()
            .ok()
            .filter(|ip| !ip.is_unspecified())
            .unwrap_or(IpAddr::V4(Ipv4Addr::LOCALHOST));
        let forwarded = self.tunnel.clone().unwrap_or_else(|| {
            let EngineConnection {
                registration,
                control,
                mux,
                task,
                iopub,
                hb_ping,
                hb_pong,
                broadcast,
                ..
            } = connection;
            let mut ports: Vec<u16> = [registration, control, mux, task, iopub, hb_ping, hb_pong]
                .into_iter()
                .chain(broadcast)
                .copied()
                .filter(|&p| p != 0)
                .collect();
            ports.sort_unstable();
            ports.dedup();
            ports
                .into_iter()
                .map(|local| Forwarded { local, remote: 0 })
                .collect()
        });
        let mut opened = Vec::with_capacity(forwarded.len());
        for Forwarded { local, remote } in forwarded {
            let remote = pump.listen_remote(remote, SocketAddr::new(here, local))?;
            opened.push(Forwarded { local, remote });
        }
        if self.tunnel.is_none() {
            self.step("tunnel open");
        }
        self.tunnel = Some(opened);
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
                        pump.run(&remote::terminate(process), io::empty())
                    }
                    Some(since) if since.elapsed() > LEAVE && !killed => {
                        killed = true;
                        pump.run(&remote::kill(process), io::empty())
                    }
                    Some(since) if since.elapsed() > LEAVE * 2 => return Ending::Over,
                    Some(_) => Ok(Output {
                        status: 0,
                        stdout: Vec::new(),
                        stderr: String::new(),
                    }),
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

    /// Makes the connection again, with pauses between; none when the launcher is stopped or the host refuses us.
    fn again(&mut self) -> Option<Pump> {
        let mut pause = FIRST_PAUSE;
        let stop_by = Duration::from_secs(5);
        let mut stop_since = None;
        loop {
            if self.shared.stopping() {
                // The engines there should hear of it, but nobody waits long for a host that is away.
                let since = *stop_since.get_or_insert_with(Instant::now);
                if since.elapsed() > stop_by {
                    return None;
                }
                pause = FIRST_PAUSE;
            }
            match self.reconnect() {
                Ok(Some(pump)) => {
                    if !self.shared.stopping() {
                        self.shared.tell(LaunchEvent::Back { host: self.name() });
                    }
                    return Some(pump);
                }
                Ok(None) => return None,
                Err(HostError::Ssh(e)) if e.is_transient() => tracing::debug!("{e}"),
                Err(e) => {
                    self.shared.tell(LaunchEvent::Failed {
                        host: self.name(),
                        reason: e.to_string(),
                    });
                    return None;
                }
            }
            if let Some(wake) = &self.wake {
                if !self.shared.stop.load(Ordering::Acquire) {
                    wake.clear();
                }
                if !self.shared.stopping() {
                    wake.wait(pause);
                } else {
                    std::thread::sleep(pause.min(stop_by));
                }
            }
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }

    /// One attempt: finds the engines as they are, or starts them anew if they have given up. None: stopping, and gone.
    fn reconnect(&mut self) -> Result<Option<Pump>, HostError> {
        let stopping = self.shared.stopping();
        let connection = connect(&self.shared.plan.tools.settings, &self.name())?;
        let before = (self.probe.sshd, self.tail);
        self.look(&connection)?;
        let Some(process) = self.process else {
            return Ok(None);
        };
        let alive = connection
            .run(&remote::is_alive(process), io::empty(), STEP)?
            .status
            == 0;
        if !alive && stopping {
            connection.close();
            return Ok(None);
        }
        if !alive {
            self.drop_connection(&connection, before)?;
            self.step("its engines have ended meanwhile; starting them again");
            self.send_program(&connection)?;
            return self.start(connection).map(Some);
        }
        self.rejoin(connection, process, before).map(Some)
    }

    /// Goes on with engines that live: on a new connection, behind the same ports.
    fn rejoin(
        &mut self,
        connection: Connection,
        process: Process,
        before: (Option<u32>, Option<u32>),
    ) -> Result<Pump, HostError> {
        self.drop_connection(&connection, before)?;
        let mut pump = Pump::new(connection)?;
        if self.tunnel.is_some() {
            self.open_tunnel(&mut pump)?;
        }
        pump.watch_far_end()?;
        pump.spawn(&remote::watch(process, self.said), Vec::new())?;
        Ok(pump)
    }

    /// The old connection may still hold our ports there: its server does not know yet that it is lost.
    fn drop_connection(
        &self,
        connection: &Connection,
        (sshd, tail): (Option<u32>, Option<u32>),
    ) -> Result<(), HostError> {
        let sshd = sshd.filter(|&p| Some(p) != self.probe.sshd);
        if sshd.is_some() || tail.is_some() {
            connection.run(&remote::drop_connection(sshd, tail), io::empty(), STEP)?;
        }
        Ok(())
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

fn problem(output: &Output) -> String {
    match output.stderr.trim() {
        "" => format!("status {}", output.status),
        text => text.lines().collect::<Vec<_>>().join("; "),
    }
}

struct Turn(Arc<Shared>);

impl Drop for Turn {
    fn drop(&mut self) {
        let _ = self.0.turns.0.try_send(());
    }
}
