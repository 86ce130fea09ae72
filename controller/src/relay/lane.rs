//! A ROUTER of a relay: what comes in is checked, what goes out is accounted.

use std::time::Duration;

use ipbroker_protocol::{
    envelope::Envelope,
    junk::{Junk, JunkTotal},
    route,
    session::Session,
    socket,
    zmq::{self, Message, Socket},
};

use super::outbox::{Outbox, Refused};

pub(crate) struct Lane {
    name: &'static str,
    socket: Socket,
    /// Its peers are engines, of which some share a connection.
    engines: bool,
    outbox: Outbox,
    junk: Junk,
}

impl Lane {
    pub(crate) fn new(name: &'static str, socket: Socket, junk: &JunkTotal) -> Self {
        Self {
            name,
            socket,
            engines: false,
            outbox: Outbox::new(),
            junk: Junk::new(name, junk),
        }
    }

    /// One towards engines.
    pub(crate) fn to_engines(name: &'static str, socket: Socket, junk: &JunkTotal) -> Self {
        Self {
            engines: true,
            ..Self::new(name, socket, junk)
        }
    }

    pub(crate) fn poll_item(&self) -> zmq::PollItem<'_> {
        self.socket.as_poll_item(zmq::POLLIN)
    }

    /// The next message that has at least `identities` identities and the right signature. `None`: there is none now.
    pub(crate) fn receive(&mut self, identities: usize, session: &Session) -> Option<Envelope> {
        loop {
            let mut frames = Vec::with_capacity(10);
            match socket::recv(&self.socket, &mut frames) {
                Ok(true) => {}
                Ok(false) => return None,
                Err(error) => {
                    tracing::error!(socket = self.name, %error, "cannot receive");
                    return None;
                }
            }
            if self.engines {
                route::strip(&mut frames);
            }
            let Some(envelope) = self.junk.good("not a message", Envelope::parse(frames)) else {
                continue;
            };
            if envelope.identities().len() < identities {
                self.refuse("not a message", &"identities are missing");
            } else if let Err(error) = session.verify(&envelope) {
                self.refuse("wrong signature", &error);
            } else {
                return Some(envelope);
            }
        }
    }

    pub(crate) fn refuse(&mut self, kind: &'static str, why: &dyn std::fmt::Display) {
        self.junk.refuse(kind, why);
    }

    /// As [`Junk::good`].
    pub(crate) fn good<T, E: std::fmt::Display>(
        &mut self,
        kind: &'static str,
        read: Result<T, E>,
    ) -> Option<T> {
        self.junk.good(kind, read)
    }

    /// Sends to the peer that the first frame names.
    pub(crate) fn send(&mut self, mut frames: Vec<Message>) -> Result<(), Refused> {
        if !self.engines {
            return self.outbox.send(&self.socket, frames);
        }
        route::add(&mut frames);
        let sent = self.outbox.send(&self.socket, frames);
        sent.map_err(|mut refused| {
            let (Refused::Unroutable(frames) | Refused::Full(frames)) = &mut refused;
            route::strip(frames);
            refused
        })
    }

    /// Sends to the peer that the first frame names; a peer that is gone or does not read loses it, which is logged.
    pub(crate) fn send_or_drop(&mut self, frames: Vec<Message>) {
        match self.send(frames) {
            Ok(()) => {}
            Err(Refused::Unroutable(frames)) => {
                tracing::debug!(socket = self.name, peer = %hex(&frames[0]), "dropped a message: the peer is gone");
            }
            Err(Refused::Full(frames)) => {
                self.refuse(
                    "peer does not read",
                    &format_args!(
                        "its queue is full, dropped a message for {}",
                        hex(&frames[0])
                    ),
                );
            }
        }
    }

    /// Tries again what full peers did not take.
    pub(crate) fn flush(&mut self) {
        for (peer, messages) in self.outbox.flush(&self.socket) {
            tracing::warn!(socket = self.name, peer = %hex(&peer), messages, "dropped what waited for a peer that is gone");
        }
    }

    /// How long a poll may last.
    pub(crate) fn timeout(&self) -> Option<Duration> {
        self.outbox.timeout()
    }

    /// Bytes kept for slow peers.
    pub(crate) fn bytes(&self) -> usize {
        self.outbox.bytes()
    }
}

/// An identity for the log: text where it is text.
pub(crate) fn hex(identity: &[u8]) -> String {
    match std::str::from_utf8(identity) {
        Ok(text) if !text.contains(char::is_control) => text.to_owned(),
        _ => ipbroker_protocol::hex(identity),
    }
}

/// The timeout of a poll over these lanes, in ms; -1: for ever.
pub(crate) fn poll_timeout<'a>(lanes: impl IntoIterator<Item = &'a Lane>) -> i64 {
    lanes
        .into_iter()
        .filter_map(Lane::timeout)
        .min()
        .map_or(-1, |pause| pause.as_millis() as i64 + 1)
}
