//! What an engine and the hub say to each other.

use std::time::{Duration, Instant};

use ipbroker_protocol::{
    PROTOCOL,
    envelope::Envelope,
    message::{
        ClockNotice, HeaderRef, ReceivedNotice, Registration, RegistrationReply, capability, types,
    },
    socket::routing,
    zmq::Message,
};

use super::Server;
use crate::{
    host,
    process::{Channel, Outgoing},
};

/// How long an answer to a registration is waited for.
const ANSWER: Duration = Duration::from_secs(2);

impl Server {
    /// Asks for the registration of those engines that lack it.
    pub(super) fn register(&mut self, now: Instant) {
        // The same for all, and reading it takes longer than all the rest.
        let mut host = None;
        for seat in 0..self.seats.len() {
            let link = &self.links[seat];
            if link.registered || link.gone || link.leaving.is_some() {
                continue;
            }
            // While there is no connection, the first request waits for it, and more would only pile up.
            let due = match link.asked {
                None => link.id.is_none() || self.pulse.up,
                Some(asked) => self.pulse.up && now - asked > ANSWER,
            };
            if due {
                self.links[seat].asked = Some(now);
                let host = host.get_or_insert_with(|| {
                    let controller = self.controller.connection.common.host();
                    host::names(&self.settings.aliases, &controller)
                });
                let host = host.clone();
                self.request_registration(seat, host);
            }
        }
    }

    fn request_registration(&mut self, seat: usize, host: Vec<String>) {
        self.announce(seat);
        let (engine, link) = (&self.seats[seat], &self.links[seat]);
        let mut capabilities = vec![
            capability::COMMAND,
            capability::FUNCTION,
            capability::ARRAY,
            capability::GIVE_BACK,
            capability::ACK,
            capability::KILL,
            capability::FS,
            capability::BUNDLE,
        ];
        if self.process.kernels.is_some() {
            capabilities.extend([capability::APPLY, capability::EXECUTE]);
        }
        let registration = Registration {
            uuid: engine.uuid.clone(),
            id: link
                .id
                .or_else(|| self.settings.first_id.map(|id| id + seat as u32)),
            capabilities: Some(capabilities.into_iter().map(str::to_owned).collect()),
            functions: self.process.functions.names(),
            host,
            pid: Some(std::process::id()),
            cores: Some(host::cores()),
            machine: Some(self.machine.clone()),
            resources: self.resources.clone(),
            cpuset: self.cpuset.clone(),
            tags: self.settings.tags.clone(),
            version: Some(env!("CARGO_PKG_VERSION").into()),
            protocol: Some(PROTOCOL),
            limits: Some(self.process.limits.name().into()),
            returns: link.id.is_some(),
            ..Registration::default()
        };
        let message = engine
            .session()
            .request(types::REGISTRATION_REQUEST, &registration);
        self.tell_hub(seat, message);
    }

    /// Sends a message to the hub.
    pub(super) fn tell_hub(&mut self, seat: usize, message: Envelope) {
        self.send(Outgoing {
            seat,
            channel: Channel::Hub,
            frames: message.into_frames(),
            answers: None,
        });
    }

    /// Takes a message of the hub.
    pub(super) fn hear_hub(&mut self, seat: usize, frames: Vec<Message>) {
        let session = self.seats[seat].session();
        let envelope = match Envelope::parse(frames) {
            Ok(envelope) => envelope,
            Err(error) => return self.junk.refuse("registration channel", &error),
        };
        if let Err(error) = session.verify(&envelope) {
            return self.junk.refuse("registration channel", &error);
        }
        let header = match HeaderRef::read(session.packer, envelope.header()) {
            Ok(header) => header,
            Err(error) => return self.junk.refuse("registration channel", &error),
        };
        match &*header.msg_type {
            types::REGISTRATION_REPLY => {
                match session.unpack::<RegistrationReply>(envelope.content()) {
                    Ok(reply) => self.registered(seat, reply),
                    Err(error) => self.junk.refuse("registration_reply", &error),
                }
            }
            types::CLOCK_NOTICE => match session.unpack::<ClockNotice>(envelope.content()) {
                Ok(ClockNotice { offset }) => self.process.set_offset(offset),
                Err(error) => self.junk.refuse("clock_notice", &error),
            },
            // Its heart was heard before its first registration arrived.
            types::REREGISTER_NOTICE if self.links[seat].id.is_none() => {}
            types::REREGISTER_NOTICE => {
                tracing::info!(
                    engine = self.seats[seat].id(),
                    "the hub asks to register again"
                );
                self.links[seat].registered = false;
                self.links[seat].asked = None;
                self.register(Instant::now());
            }
            other => self.junk.refuse(
                "registration channel",
                &format_args!("{other:?} is no message for an engine"),
            ),
        }
    }

    fn registered(&mut self, seat: usize, reply: RegistrationReply) {
        let (Some(id), "ok") = (reply.id, reply.status.as_str()) else {
            if self.links[seat].id.is_some() {
                // It was asked twice, or had not missed us.
                tracing::debug!(reply.evalue, "not registered again: known already");
                self.links[seat].registered = true;
                self.pulse.found();
                return;
            }
            let why = reply.evalue.unwrap_or_else(|| "no reason given".into());
            let why = format!(
                "the controller refuses engine {}: {why}",
                self.seats[seat].uuid
            );
            tracing::error!("{why}");
            self.failed
                .get_or_insert(super::ServeError::Controller(why.clone()));
            return self.leave_one(seat, &why);
        };
        if let Err(error) = self.net.connect_leaf(seat, id) {
            tracing::warn!(%error, "no connection to the broadcast leaf");
        }
        self.pulse.found();
        self.pulse.period = Some(Duration::from_millis(reply.hb_period.max(1)));
        let engine = &self.seats[seat];
        engine.id.store(id, std::sync::atomic::Ordering::Relaxed);
        let link = &mut self.links[seat];
        let again = link.id.replace(id);
        let other = again.is_some() && link.incarnation != reply.incarnation;
        link.registered = true;
        link.durable = reply.durable;
        link.pure = reply.pure;
        link.incarnation = reply.incarnation;
        if again.is_none() && self.process.kernels.is_some() && engine.hire() {
            // In ipyparallel's words, which its tools look for. The kernel starts at once.
            tracing::info!("Completed registration with id {id}");
            self.start_worker(seat);
        }
        let (engine, link) = (&self.seats[seat], &mut self.links[seat]);
        match again {
            None => tracing::info!(engine = id, uuid = engine.uuid, "registered"),
            Some(_) => tracing::info!(engine = id, uuid = engine.uuid, "registered again"),
        }
        if !reply.durable {
            link.kept.clear();
            if other {
                // Whoever had sent these is gone, and nobody else knows them.
                let count = engine.forget_waiting();
                if count > 0 {
                    tracing::warn!(
                        engine = id,
                        "{count} task(s) of a controller that is gone are dropped"
                    );
                }
            }
        }
        let mut received = std::mem::take(&mut link.received);
        engine.keep_whole(reply.pure);
        if reply.pure {
            // What has been answered meanwhile needs no announcement any more.
            let (running, queued) = engine.holding();
            received.retain(|(_, id, _)| {
                let (msg_id, _) = id.rsplit_once(':').unwrap_or((id, ""));
                running
                    .iter()
                    .chain(&queued)
                    .any(|(held, ..)| held == id || held == msg_id)
            });
            link.received = received;
            self.announce(seat);
        }
        // A controller that was started again does not know it.
        let engine = &self.seats[seat];
        if engine.waits()
            && let Some(notice) = engine.waits_notice()
        {
            self.send(Outgoing {
                seat,
                channel: Channel::Shell,
                frames: notice.into_frames(),
                answers: None,
            });
        }
    }

    /// Tells what was received on the pure path, where the scheduler keeps no books: by the way of the replies, which
    /// come after it.
    pub(super) fn announce(&mut self, seat: usize) {
        let link = &mut self.links[seat];
        if link.received.is_empty() || !link.pure {
            return;
        }
        let notice = ReceivedNotice {
            uuid: self.seats[seat].uuid.clone(),
            tasks: std::mem::take(&mut link.received),
        };
        let session = self.seats[seat].session();
        let mut message = session.request(types::RECEIVED_NOTICE, &notice);
        message.set_identities([Message::from(routing::TASK)]);
        self.send(Outgoing {
            seat,
            channel: Channel::Shell,
            frames: message.into_frames(),
            answers: None,
        });
    }
}
