//! What an engine and the hub say to each other.

use std::time::{Duration, Instant};

use ipbroker_protocol::{
    PROTOCOL,
    envelope::Envelope,
    message::{
        ClockNotice, HeaderRef, ProcessEngine, ReceivedNotice, Registration, RegistrationReply,
        capability, types,
    },
    route,
    zmq::Message,
};

use super::Server;
use crate::{host, process::Channel};

/// How long an answer to a registration is waited for.
const ANSWER: Duration = Duration::from_secs(2);

impl Server {
    /// Asks for the registration of those engines that lack it.
    pub(super) fn register(&mut self, now: Instant) {
        let due: Vec<usize> = (0..self.engines.len())
            .filter(|index| {
                let link = &self.links[*index];
                if link.registered || link.gone || link.leaving.is_some_and(|leave| !leave.drains())
                {
                    return false;
                }
                // While there is no connection, the first request waits for it, and more would only pile up.
                match link.asked {
                    None => link.id.is_none() || self.pulse.up,
                    Some(asked) => self.pulse.up && now - asked > ANSWER,
                }
            })
            .collect();
        let together = if self.net.shared { due.len() } else { 1 };
        for indexes in due.chunks(together.max(1)) {
            self.request_registration(indexes, now);
        }
    }

    fn request_registration(&mut self, indexes: &[usize], now: Instant) {
        let mut capabilities = vec![
            capability::COMMAND,
            capability::FUNCTION,
            capability::ARRAY,
            capability::GIVE_BACK,
            capability::ACK,
            capability::KILL,
            capability::FS,
        ];
        if self.net.shared {
            capabilities.push(capability::BUNDLE);
        }
        if self.process.kernels.is_some() {
            capabilities.extend([capability::APPLY, capability::EXECUTE]);
        }
        let mut engines = Vec::with_capacity(indexes.len());
        for &index in indexes {
            self.announce(index);
            let link = &mut self.links[index];
            link.asked = Some(now);
            engines.push(ProcessEngine {
                uuid: self.engines[index].uuid.clone(),
                id: link
                    .id
                    .or_else(|| self.settings.first_id.map(|id| id + index as u32)),
                returns: link.id.is_some(),
            });
        }
        // Engines that share nothing register one by one.
        let mut alone = ProcessEngine {
            uuid: self.process.id.clone(),
            ..ProcessEngine::default()
        };
        if !self.net.shared {
            alone = engines.remove(0);
        }
        let controller = self.controller.connection.common.host();
        let registration = Registration {
            uuid: alone.uuid,
            id: alone.id,
            returns: alone.returns,
            engines,
            capabilities: Some(capabilities.into_iter().map(str::to_owned).collect()),
            functions: self.process.functions.names(),
            host: host::names(&self.settings.aliases, &controller),
            pid: Some(std::process::id()),
            cores: Some(host::cores()),
            machine: Some(self.machine.clone()),
            stays: (self.settings.ends)
                .map(|ends| ends.saturating_duration_since(now).as_secs_f64()),
            resources: self.resources.clone(),
            cpuset: self.cpuset.clone(),
            tags: self.settings.tags.clone(),
            version: Some(env!("CARGO_PKG_VERSION").into()),
            protocol: Some(PROTOCOL),
            limits: Some(self.process.limits.name().into()),
            ..Registration::default()
        };
        let message = self
            .session()
            .request(types::REGISTRATION_REQUEST, &registration);
        self.tell_hub(indexes[0], message);
    }

    /// Sends a message to the hub.
    pub(super) fn tell_hub(&mut self, index: usize, message: Envelope) {
        self.send(self.engines[index].outgoing(Channel::Hub, message));
    }

    /// Takes a message of the hub.
    pub(super) fn hear_hub(&mut self, wire: usize, frames: Vec<Message>) {
        let session = self.session();
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
                    Ok(reply) => self.heard_of(wire, &reply),
                    Err(error) => self.junk.refuse("registration_reply", &error),
                }
            }
            types::CLOCK_NOTICE => match session.unpack::<ClockNotice>(envelope.content()) {
                Ok(ClockNotice { offset }) => self.process.set_offset(offset),
                Err(error) => self.junk.refuse("clock_notice", &error),
            },
            // Its heart was heard before its first registration arrived.
            types::REREGISTER_NOTICE if self.links.iter().all(|link| link.id.is_none()) => {}
            types::REREGISTER_NOTICE => {
                tracing::info!("the hub asks to register again");
                self.register_again();
                self.register(Instant::now());
            }
            other => self.junk.refuse(
                "registration channel",
                &format_args!("{other:?} is no message for an engine"),
            ),
        }
    }

    /// The hub has answered a registration.
    fn heard_of(&mut self, wire: usize, reply: &RegistrationReply) {
        if reply.status != "ok" {
            if !self.net.shared && self.links[wire].id.is_some() {
                // ipyparallel's controller had not missed us.
                tracing::debug!(reply.evalue, "not registered again: known already");
                self.links[wire].registered = true;
                return self.pulse.found();
            }
            let why = reply.evalue.as_deref().unwrap_or("no reason given");
            let why = format!("the controller refuses engines of this process: {why}");
            tracing::error!("{why}");
            self.failed
                .get_or_insert(super::ServeError::Ended(why.clone()));
            for index in 0..self.engines.len() {
                if !self.links[index].registered {
                    self.leave_one(index, &why, false);
                }
            }
            return;
        }
        self.pulse.found();
        self.pulse.period = Some(Duration::from_millis(reply.hb_period.max(1)));
        if let Some(id) = reply.id {
            return self.registered(wire, id, reply);
        }
        for (uuid, id) in &reply.engines {
            match route::index(uuid.as_bytes(), &self.process.id) {
                Some(index) if index < self.engines.len() => self.registered(index, *id, reply),
                _ => self
                    .junk
                    .refuse("registration_reply", &"of an engine that is not here"),
            }
        }
    }

    fn registered(&mut self, index: usize, id: u32, reply: &RegistrationReply) {
        if let Err(error) = self.net.connect_leaf(index, id) {
            tracing::warn!(%error, "no connection to the broadcast leaf");
        }
        let engine = &self.engines[index];
        engine.id.store(id, std::sync::atomic::Ordering::Relaxed);
        let link = &mut self.links[index];
        let again = link.id.replace(id);
        let other = again.is_some() && link.incarnation != reply.incarnation;
        link.registered = true;
        link.durable = reply.durable;
        link.pure = reply.pure;
        link.incarnation.clone_from(&reply.incarnation);
        if again.is_none() && self.process.kernels.is_some() && engine.hire() {
            // In ipyparallel's words, which its tools look for. The kernel starts at once.
            tracing::info!("Completed registration with id {id}");
            self.start_worker(index);
        }
        let (engine, link) = (&self.engines[index], &mut self.links[index]);
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
            self.announce(index);
        }
        self.drain_again(index);
        // A controller that was started again does not know it.
        let engine = &self.engines[index];
        if engine.waits()
            && let Some(notice) = engine.waits_notice()
        {
            self.send(notice);
        }
    }

    /// Tells what was received on the pure path, where the scheduler keeps no books: by the way of the replies, which
    /// come after it.
    pub(super) fn announce(&mut self, index: usize) {
        let link = &mut self.links[index];
        if link.received.is_empty() || !link.pure {
            return;
        }
        let notice = ReceivedNotice {
            uuid: self.engines[index].uuid.clone(),
            tasks: std::mem::take(&mut link.received),
        };
        self.tell_scheduler(index, types::RECEIVED_NOTICE, &notice);
    }
}
