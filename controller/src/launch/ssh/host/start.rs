//! Engines that are started: the program is sent where it is missing, and run.

use std::{
    fs::File,
    time::{Duration, Instant},
};

use ipbroker_protocol::ssh::{Connection, Output, Pump, PumpEvent};

use super::{Host, HostError, STEP};
use crate::launch::{LaunchEvent, ssh::remote};

/// How long engines must run to count as started.
const SETTLE: Duration = Duration::from_millis(300);

impl Host {
    pub(super) fn send_program(&mut self, connection: &Connection) -> Result<(), HostError> {
        let program = &self.program;
        if self.probe.cached.contains(&program.cached_name()) {
            return Ok(());
        }
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
            "sent {} ({:.0} MB) in {:.1} s",
            program.path.display(),
            program.size as f64 / 1e6,
            began.elapsed().as_secs_f64()
        ));
        let cached = program.cached_name();
        self.probe.cached.push(cached);
        Ok(())
    }

    pub(super) fn start(&mut self, connection: Connection) -> Result<Pump, HostError> {
        let tunnel = self.tunnel.is_some() || self.needs_tunnel(&connection);
        let mut pump = Pump::new(connection);
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
            &self.program,
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
}

fn problem(output: &Output) -> String {
    match output.stderr.trim() {
        "" => format!("status {}", output.status),
        text => text.lines().collect::<Vec<_>>().join("; "),
    }
}
