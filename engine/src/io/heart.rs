//! The heartbeat, by which the hub knows that we live, and we that it does.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use ipbroker_protocol::{socket, zmq::Message};

use super::{Link, ServeError, Server, net::Net, net::Seen};
use crate::connect;

/// Beats that may be missed before we ask whether we are still known.
const MISSES: u32 = 3;

/// The least time of silence that is taken for an absence.
const SILENCE: Duration = Duration::from_secs(2);

/// Signs of life of the controller.
#[derive(Debug)]
pub(super) struct Pulse {
    /// The last ping, or when we began to wait for one.
    last: Instant,
    /// The hub's period, once it told.
    pub(super) period: Option<Duration>,
    /// Since when there has been no controller.
    pub(super) lost: Option<Instant>,
    /// Whether a connection stands.
    pub(super) up: bool,
    /// Whether the user was told that we wait.
    told: bool,
    /// When the connection file was last looked at.
    looked: Instant,
}

impl Pulse {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            last: now,
            period: None,
            lost: Some(now),
            up: false,
            told: false,
            looked: now,
        }
    }

    /// Silence after which the controller may have given us up.
    fn patience(&self) -> Duration {
        self.period
            .map_or(SILENCE, |period| (period * MISSES).max(SILENCE))
    }

    /// The controller has answered.
    pub(super) fn found(&mut self) {
        self.last = Instant::now();
        if self.lost.take().is_some() && std::mem::take(&mut self.told) {
            tracing::info!("the controller is there");
        }
    }
}

impl Server {
    /// Echoes pings.
    pub(super) fn pings(&mut self) {
        let mut frames = Vec::new();
        while let Ok(true) = socket::recv(&self.net.ping, &mut frames) {
            let now = Instant::now();
            let Some(ping) = frames.first() else { continue };
            let clock = SystemTime::now()
                .duration_since(UNIX_EPOCH)
                .unwrap_or_default();
            let clock = format!("{}.{:06}", clock.as_secs(), clock.subsec_micros());
            let load = self.meter.read(&self.process.scratch);
            let load = load.and_then(|load| serde_json::to_vec(&load).ok());
            let mut load = load.map(Message::from);
            for (index, wire) in self.net.wires.iter().enumerate() {
                if self.net.shared || !self.links[index].gone {
                    let pong = [&ping[..], clock.as_bytes()].into_iter().map(Message::from);
                    // One that cannot be sent is missed, as it should be.
                    let _ = socket::send(&wire.pong, pong.chain(load.take()));
                }
            }
            // After a long silence, ours or the controller's, nobody knows whether we are still counted.
            let away = self.pulse.lost.is_none() && now - self.pulse.last > self.pulse.patience();
            self.pulse.last = now;
            if away {
                tracing::info!("a heartbeat after a long silence: registering again");
                self.register_again();
            }
        }
    }

    /// The connection has come or gone.
    pub(super) fn monitored(&mut self) {
        for seen in self.net.seen() {
            match seen {
                // A request to be registered waits in the socket for this.
                Seen::Up => self.pulse.up = true,
                Seen::Down => {
                    self.pulse.up = false;
                    self.lose("the connection to the controller broke");
                }
            }
        }
    }

    fn lose(&mut self, why: &str) {
        // Those that leave anyway do so without it.
        let stays = |link: &Link| !link.gone && link.leaving.is_none_or(|leave| leave.drains());
        if self.pulse.lost.is_none() && self.links.iter().any(stays) {
            tracing::warn!(
                "{why}; waiting {:.0} s for it at {}",
                self.settings.grace.as_secs_f64(),
                self.controller.address()
            );
            self.pulse.told = true;
            self.pulse.lost = Some(Instant::now());
            self.register_again();
        }
    }

    /// Every engine has to be registered again.
    pub(super) fn register_again(&mut self) {
        for link in &mut self.links {
            link.registered = false;
            link.asked = None;
        }
    }

    /// Looks for a controller that is gone, and for another that has come.
    pub(super) fn watch_controller(&mut self, now: Instant) -> Result<(), ServeError> {
        if self.leaves.is_some() {
            return Ok(());
        }
        if self.pulse.lost.is_none() && now - self.pulse.last > self.pulse.patience() {
            let silence = (now - self.pulse.last).as_secs_f64();
            self.lose(&format!(
                "no heartbeat of the controller for {silence:.1} s"
            ));
        }
        let Some(since) = self.pulse.lost else {
            return Ok(());
        };
        let waited = now - since;
        if waited > Duration::from_secs(3) && !self.pulse.told {
            self.pulse.told = true;
            tracing::warn!(
                "no answer from a controller at {} ({}); is ipctl running? Waiting up to {:.0} s",
                self.controller.address(),
                self.controller.source,
                self.settings.grace.as_secs_f64()
            );
        }
        if waited > self.settings.grace {
            let why = format!(
                "no controller at {} ({}) for {:.0} s: leaving",
                self.controller.address(),
                self.controller.source,
                self.settings.grace.as_secs_f64()
            );
            self.failed = Some(ServeError::Ended(why.clone()));
            self.leave(&why);
            return Ok(());
        }
        if now - self.pulse.looked >= Duration::from_secs(1) {
            self.pulse.looked = now;
            self.look_for_another()?;
        }
        Ok(())
    }

    /// A controller that was started anew has written another connection file.
    fn look_for_another(&mut self) -> Result<(), ServeError> {
        let Some(controller) = connect::changed(&self.controller) else {
            return Ok(());
        };
        if controller.connection.common.is_peer() == self.net.shared {
            return Err(ServeError::Ended(format!(
                "the controller at {} is of another make (ipctl, ipcontroller) than the one before: leaving",
                controller.address()
            )));
        }
        tracing::info!(
            "{} has changed: connecting to {}",
            controller.source,
            controller.address()
        );
        let uuids: Vec<&str> = self
            .engines
            .iter()
            .map(|engine| engine.uuid.as_str())
            .collect();
        let net = Net::connect(
            &controller.connection,
            controller.curve.as_ref(),
            &self.process.id,
            &uuids,
        )?;
        self.net.drop_unsent();
        self.net = net;
        for engine in &self.engines {
            match controller.session(&engine.uuid) {
                Ok(session) => engine.set_session(session),
                Err(error) => tracing::error!(%error, "the connection file is of no use"),
            }
        }
        self.process.tell_reaper(&controller.for_reaper());
        self.controller = controller;
        self.pulse.up = false;
        self.register_again();
        self.watch_net()
    }
}
