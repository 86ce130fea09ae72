//! Engines that live: those of a lost connection, and those of an earlier controller.

use std::{
    io,
    sync::atomic::Ordering,
    time::{Duration, Instant},
};

use ipbroker_protocol::ssh::{Connection, Pump, connect};

use super::{Host, HostError, STEP};
use crate::launch::{
    LaunchEvent,
    ssh::{
        Report, Survivor,
        remote::{self, Process},
    },
};

const FIRST_PAUSE: Duration = Duration::from_millis(500);
const LONGEST_PAUSE: Duration = Duration::from_secs(15);

impl Host {
    /// Takes over engines of an earlier controller, if they live.
    pub(super) fn adopt(&mut self, survivor: Survivor) -> Option<Pump> {
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

    /// Makes the connection again, with pauses between; none when the launcher is stopped or the host refuses us.
    pub(super) fn again(&mut self) -> Option<Pump> {
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
                    self.failed(e.to_string());
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
        let mut pump = Pump::new(connection);
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
}
