//! The hub's loop: sockets, beats, deadlines.

use std::{
    collections::BTreeMap,
    io,
    sync::Arc,
    time::{Duration, Instant},
};

use ipbroker_protocol::{
    envelope::Envelope,
    junk::{Junk, JunkTotal},
    message::{ClockNotice, HeaderRef, HostLoad, types},
    route,
    session::{Empty, Session},
    socket,
    time::unix_seconds,
    value::Value as AnyValue,
    zmq::{self, Message, Socket},
};
use serde::Serialize;
use serde_json::{Value, json};

use super::{
    Event, Links, Notice, Settings, Sockets,
    ask::Asker,
    dask::Dask,
    heart::{Heart, Pong},
    lease::Leases,
    registry::Registry,
    watch::Watch,
};
use crate::{
    error::NamedError,
    mailbox::{Mailbox, Post},
    relay::{
        iopub,
        lane::{Lane, hex},
        mux, poll,
    },
    scheduler::command::{Command, Departure, EngineProfile},
    store::Recorder,
};

/// Messages of one socket before the others get their turn.
const BATCH: usize = 256;

/// Requests that are read before a lease is said to have run out.
const CATCH_UP: usize = 10_000;

/// After this a client that asked for the end has its answer.
const FAREWELL: Duration = Duration::from_millis(200);

/// How long the way from a program's first question to its subscription may take.
const RECENT: Duration = Duration::from_secs(5);

/// The least time between two pings that new engines call for.
const EXTRA_PING: Duration = Duration::from_millis(10);

/// Every engine echoes every ping: the more there are, the longer the time between those two.
const EXTRA_PING_EACH: Duration = Duration::from_micros(50);

/// The hub.
pub(crate) struct Hub {
    pub(super) settings: Settings,
    pub(super) links: Links,
    pub(super) post: Post<Event>,
    pub(super) session: Arc<Session>,
    pub(super) junk_total: JunkTotal,
    pub(super) query: Lane,
    notify: Socket,
    ping: Socket,
    pong: Socket,
    pong_junk: Junk,
    pub(super) registry: Registry,
    pub(super) heart: Heart,
    pub(super) leases: Leases,
    pub(super) recorder: Recorder,
    pub(super) dask: Dask,
    pub(super) watch: Watch,
    pub(super) started: Instant,
    pub(super) troubles: BTreeMap<&'static str, String>,
    /// Jobs of a batch system that are engines, or will be.
    pub(crate) batch: Option<Value>,
    pub(super) tell: Box<dyn Fn(Notice) + Send>,
    next_beat: Instant,
    next_sweep: Instant,
    /// A ping is due for engines that have just connected.
    extra_ping: Option<Instant>,
    last_ping: Instant,
    /// Until when engines of an earlier controller are awaited.
    awaited: Option<Instant>,
    pub(super) unsaved: bool,
    pub(super) farewell: Option<Instant>,
    /// Clients have been told that this is the end.
    said_goodbye: bool,
}

impl Hub {
    pub(super) fn new(
        settings: Settings,
        sockets: Sockets,
        links: Links,
        post: Post<Event>,
        session: Session,
        junk: &JunkTotal,
        tell: Box<dyn Fn(Notice) + Send>,
    ) -> io::Result<Self> {
        let now = Instant::now();
        let mut registry = Registry::default();
        let mut awaited = None;
        if settings.restore {
            let expected = registry.restore(&settings.state_file).unwrap_or_else(|error| {
                tracing::warn!(file = %settings.state_file.display(), %error, "the engines' ids are not restored");
                0
            });
            tracing::info!(
                engines = expected,
                "awaiting the engines of the earlier controller"
            );
            awaited = Some(now + settings.heartbeat_limit().max(Duration::from_secs(5)));
        }
        Ok(Self {
            heart: Heart::new(settings.misses),
            leases: Leases::new(settings.lease),
            recorder: links.store.recorder(),
            query: Lane::new("registration", sockets.query, junk),
            notify: sockets.notify,
            ping: sockets.ping,
            pong: sockets.pong,
            pong_junk: Junk::new("hb_pong", junk),
            junk_total: junk.clone(),
            dask: Dask::default(),
            watch: Watch::new(settings.page.clone()),
            started: now,
            troubles: BTreeMap::new(),
            batch: None,
            next_beat: now + settings.ping,
            next_sweep: now + Duration::from_secs(1),
            extra_ping: None,
            last_ping: now,
            awaited,
            unsaved: false,
            farewell: None,
            said_goodbye: false,
            registry,
            settings,
            links,
            post,
            session: Arc::new(session),
            tell,
        })
    }

    pub(super) fn run(&mut self, events: &Mailbox<Event>) {
        if self.settings.restore {
            self.await_clients();
        }
        loop {
            let mut items = [
                zmq::PollItem::from_fd(events.fd(), zmq::POLLIN),
                self.query.poll_item(),
                self.pong.as_poll_item(zmq::POLLIN),
                self.ping.as_poll_item(zmq::POLLIN),
                self.notify.as_poll_item(zmq::POLLIN),
            ];
            if !poll("the hub", &mut items, self.timeout()) {
                return;
            }
            self.query.flush();
            self.subscriptions();
            self.pongs(BATCH);
            self.requests(BATCH);
            let waiting: Vec<Event> = events.take().collect();
            for event in waiting {
                match event {
                    Event::Continue(rest) => rest(self),
                    // Ours say so themselves, once they have told the scheduler all that they have to say.
                    Event::EngineStopped(uuid) if self.is_ours(&uuid) => {}
                    Event::EngineStopped(uuid) => self.stopped(&uuid, "has shut down"),
                    Event::Shutdown { engines } => {
                        self.end(engines);
                        return;
                    }
                }
            }
            self.deadlines();
            self.recorder.flush();
        }
    }

    fn timeout(&self) -> i64 {
        let now = Instant::now();
        let due = [
            Some(self.next_beat),
            Some(self.next_sweep),
            self.extra_ping,
            self.farewell,
            self.watch.due(),
        ];
        let pause = due
            .into_iter()
            .flatten()
            .min()
            .map(|due| due.saturating_duration_since(now));
        let pause = pause.into_iter().chain(self.query.timeout()).min();
        pause.map_or(-1, |pause| pause.as_micros().div_ceil(1000) as i64)
    }

    fn deadlines(&mut self) {
        let now = Instant::now();
        if self.next_beat <= now {
            self.beat(now);
        }
        if self.extra_ping.is_some_and(|due| due <= now) {
            self.extra_ping = None;
            self.send_ping();
        }
        self.ping_newcomers(now);
        if self.next_sweep <= now {
            self.next_sweep = now + Duration::from_millis(if self.unsaved { 100 } else { 500 });
            self.sweep(now);
        }
        self.watch(now);
        if self.farewell.is_some_and(|due| due <= now) {
            self.farewell = None;
            (self.tell)(Notice::Shutdown);
        }
    }

    fn sweep(&mut self, now: Instant) {
        for (id, uuid) in self.registry.stalled(self.settings.registration_timeout()) {
            tracing::warn!(
                id,
                uuid,
                "the engine registered but its heart never beat: registration dropped"
            );
        }
        // What has arrived counts, however late this thread is: a lease that is in the socket has been renewed.
        self.requests(CATCH_UP);
        for session in self.leases.expired(now) {
            self.client_gone(session);
        }
        if self.awaited.is_some_and(|until| until <= now) {
            self.awaited = None;
            for (id, uuid) in self.registry.missing() {
                tracing::warn!(
                    id,
                    uuid,
                    "an engine of the earlier controller has not come back"
                );
                self.links.tasks.send(Command::EngineLeft {
                    uuid,
                    departure: Departure::Silent,
                });
                self.unsaved = true;
            }
        }
        self.look_at_descriptors();
        if std::mem::take(&mut self.unsaved) {
            let path = &self.settings.state_file;
            let saved = self.registry.save(path);
            self.unsaved = saved.is_err();
            let trouble =
                saved.map_err(|error| format!("cannot write {}: {error}", path.display()));
            self.trouble("engine state", trouble.err());
        }
    }

    /// libzmq does not tell that it cannot accept connections any more.
    fn look_at_descriptors(&mut self) {
        let trouble = std::fs::File::open("/dev/null").map_err(|error| {
            format!(
                "no file can be opened and no connection accepted: {error}; raise the limit with `ulimit -Hn` or in limits.conf"
            )
        });
        if self.trouble("descriptors", trouble.err()) {
            tracing::warn!("there are file descriptors again");
        }
    }

    /// Notes what is wrong with something, and says so once; `true`: nothing is any more.
    fn trouble(&mut self, about: &'static str, what: Option<String>) -> bool {
        let Some(what) = what else {
            return self.troubles.remove(about).is_some();
        };
        if self.troubles.insert(about, what.clone()).is_none() {
            tracing::error!("{what}");
        }
        false
    }

    // Heartbeats.

    fn beat(&mut self, now: Instant) {
        // What has arrived counts, however late this thread is.
        self.pongs(usize::MAX);
        self.next_beat = (self.next_beat + self.settings.ping).max(now + self.settings.ping / 2);
        for (heart, misses) in self.heart.beat() {
            let why = format!(
                "missed {misses} heartbeats ({} ms each)",
                self.settings.ping.as_millis()
            );
            for uuid in self.registry.of(&heart) {
                self.depart(&uuid, Departure::Silent, &why, true);
            }
        }
        self.send_ping();
        give_back_memory();
    }

    fn send_ping(&mut self) {
        self.last_ping = Instant::now();
        let ping = self.heart.ping(self.last_ping);
        if let Err(error) = self.ping.send(&ping, zmq::DONTWAIT) {
            tracing::warn!(%error, "the heartbeat could not be sent");
        }
    }

    /// A new subscriber on the heartbeat is a new engine: it is pinged at once.
    fn subscriptions(&mut self) {
        while let Ok(frame) = self.ping.recv_bytes(zmq::DONTWAIT) {
            if frame.first() == Some(&1) {
                self.extra_ping
                    .get_or_insert((self.last_ping + EXTRA_PING).max(Instant::now()));
            }
        }
        let mut come = false;
        while let Ok(frame) = self.notify.recv_bytes(zmq::DONTWAIT) {
            come |= frame.first() == Some(&1);
        }
        if come {
            self.tell_recent();
        }
    }

    /// A program asks which engines there are, and only then hears of those that come: what has joined in between is told
    /// once more, which is nothing new to the others.
    fn tell_recent(&mut self) {
        let recent: Vec<Value> = self
            .registry
            .iter()
            .filter(|(_, engine)| engine.registered.elapsed() < RECENT)
            .map(|(id, engine)| json!({"id": id, "uuid": engine.profile.uuid}))
            .collect();
        for engine in recent {
            self.publish(types::REGISTRATION_NOTIFICATION, &engine);
        }
    }

    /// An echo that came before its engine's registration, on another connection, was for nothing, and a heart may be
    /// slow to connect: engines whose registration waits for a heartbeat are pinged again and again, ever less often.
    fn ping_newcomers(&mut self, now: Instant) {
        let Some(age) = self.registry.youngest_incoming() else {
            return;
        };
        let engines = u32::try_from(self.registry.len()).unwrap_or(u32::MAX);
        let gap = EXTRA_PING.max(age).max(EXTRA_PING_EACH * engines);
        let due = (self.last_ping + gap).max(now);
        self.extra_ping = Some(self.extra_ping.map_or(due, |other| other.min(due)));
    }

    fn pongs(&mut self, limit: usize) {
        let mut frames: Vec<Message> = Vec::new();
        for _ in 0..limit {
            match socket::recv(&self.pong, &mut frames) {
                Ok(true) => self.pong(&frames),
                Ok(false) => return,
                Err(error) => {
                    tracing::error!(%error, "cannot receive heartbeats");
                    return;
                }
            }
        }
    }

    fn pong(&mut self, frames: &[Message]) {
        let (Some(identity), Some(echo), 2..=4) = (frames.first(), frames.get(1), frames.len())
        else {
            return self
                .pong_junk
                .refuse("not a heartbeat", &format_args!("{} frames", frames.len()));
        };
        let Ok(heart) = std::str::from_utf8(identity) else {
            return self
                .pong_junk
                .refuse("not a heartbeat", &"its sender is no engine");
        };
        let clock = frames
            .get(2)
            .and_then(|frame| std::str::from_utf8(frame).ok()?.parse::<f64>().ok());
        let clock = clock.filter(|clock| clock.is_finite());
        let load = frames.get(3).filter(|frame| frame.len() <= 1000);
        let load = load.and_then(|frame| serde_json::from_slice::<HostLoad>(frame).ok());
        let wall = unix_seconds();
        let now = Instant::now();
        let mut meaning = self.heart.pong(heart, echo, clock, now, wall);
        if meaning != Pong::Stale {
            // A heartbeat completes registrations: the first, and those that were repeated while the heart was beating.
            let incoming = self.registry.incoming_of(heart);
            incoming.iter().for_each(|uuid| self.joined(uuid));
            if meaning == Pong::Stranger && !incoming.is_empty() {
                // It is the first to tell the clock, too.
                meaning = self.heart.pong(heart, echo, clock, now, wall);
            }
        }
        match meaning {
            Pong::Beat { offset } => {
                if let Some(load) = load {
                    self.registry.loaded(heart, load);
                }
                if let Some(offset) = offset {
                    self.tell_engine(heart, types::CLOCK_NOTICE, &ClockNotice { offset });
                }
            }
            Pong::Stranger => match self.registry.come_back(heart) {
                Some(Ok(())) => self.joined(heart),
                // Whoever tells its clock is one of ours: it is asked to register again.
                Some(Err(())) => self.tell_engine(heart, types::REREGISTER_NOTICE, &Empty {}),
                None if clock.is_some() => {
                    self.tell_engine(heart, types::REREGISTER_NOTICE, &Empty {})
                }
                // An engine may echo before it registers.
                None => tracing::debug!(identity = hex(identity), "unknown heart"),
            },
            Pong::Stale => self.pong_junk.refuse("stale heartbeat", &hex(identity)),
        }
    }

    // Engines.

    /// An engine's first heartbeat: it is registered.
    fn joined(&mut self, uuid: &str) {
        let again = self.registry.by_uuid(uuid).is_some();
        let Some((profile, took)) = self.registry.finish(uuid) else {
            return;
        };
        self.heart.add(route::connection(uuid));
        self.links
            .tasks
            .send(Command::EngineJoined(profile.clone()));
        self.links.mux.send(mux::Request::Joined(uuid.to_owned()));
        self.unsaved = true;
        let (id, kind) = (profile.id, profile.kind());
        tracing::info!(
            id,
            uuid,
            kind,
            ms = took.as_millis() as u64,
            "engine registered"
        );
        if !again {
            self.publish(
                types::REGISTRATION_NOTIFICATION,
                &json!({"id": id, "uuid": uuid}),
            );
        }
        (self.tell)(Notice::Joined(profile));
    }

    /// An engine has ended in good order, or its nanny saw it end. Whether it told what it had not started depends on
    /// its kind.
    pub(super) fn stopped(&mut self, uuid: &str, why: &str) {
        let departure = match self.is_ours(uuid) {
            true => Departure::Clean,
            false => Departure::Silent,
        };
        self.depart(uuid, departure, why, false);
    }

    pub(super) fn is_ours(&self, uuid: &str) -> bool {
        let engine = self.registry.by_uuid(uuid);
        engine.is_some_and(|engine| engine.profile.is_ours())
    }

    /// Takes an engine off the books.
    pub(super) fn depart(
        &mut self,
        uuid: &str,
        departure: Departure,
        why: &str,
        may_come_back: bool,
    ) {
        let Some(engine) = self.registry.remove(uuid, may_come_back) else {
            tracing::debug!(uuid, "not registered (any more)");
            return;
        };
        let profile: Arc<EngineProfile> = engine.profile;
        let heart = route::connection(uuid);
        if !self.registry.any_of(heart) {
            self.heart.remove(heart);
        }
        let id = profile.id;
        tracing::info!(id, uuid, "engine left: {why}");
        self.links.tasks.send(Command::EngineLeft {
            uuid: uuid.to_owned(),
            departure,
        });
        self.links.mux.send(mux::Request::Left(
            uuid.to_owned(),
            format!("Engine {id} ({uuid}) {why}"),
        ));
        self.links.iopub.send(iopub::Request::Left(uuid.to_owned()));
        self.unsaved = true;
        self.publish(
            types::UNREGISTRATION_NOTIFICATION,
            &json!({"id": id, "uuid": uuid}),
        );
        (self.tell)(Notice::Left(profile));
    }

    pub(super) fn publish(&mut self, msg_type: &str, content: &impl Serialize) {
        let mut message = self.session.request(msg_type, content);
        message.set_identities([Message::from(msg_type)]);
        if let Err(error) = socket::send(&self.notify, message.into_frames()) {
            tracing::warn!(%error, "a notification could not be sent");
        }
    }

    /// The controller ends.
    fn end(&mut self, engines: bool) {
        // Clients of one that keeps its ports and key (--reuse) wait for the next one.
        if engines {
            self.say_goodbye();
            for (_, engine) in self
                .registry
                .iter()
                .filter(|(_, engine)| engine.profile.is_ours())
            {
                self.links.control.send(
                    &engine.profile.uuid,
                    types::SHUTDOWN_REQUEST,
                    &json!({"restart": false}),
                );
            }
        }
        self.dask.stop();
        if self.unsaved {
            let _ = self.registry.save(&self.settings.state_file);
        }
        self.recorder.flush();
    }

    // Requests.

    fn requests(&mut self, limit: usize) {
        for _ in 0..limit {
            let Some(request) = self.query.receive(1, &self.session) else {
                return;
            };
            self.requested(request);
        }
    }

    fn requested(&mut self, request: Envelope) {
        let header = match HeaderRef::read(self.session.packer, request.header()) {
            Ok(header) => header,
            Err(error) => return self.query.refuse("bad header", &error),
        };
        let asker = Asker::of(&request, &header);
        tracing::debug!(msg_type = asker.msg_type, client = %hex(asker.identity()), "request");
        match self.session.unpack::<AnyValue>(request.content()) {
            Ok(AnyValue(content)) => {
                self.leases.touch(&asker.session, Instant::now());
                self.serve(&asker, content);
            }
            Err(error) => {
                self.query.refuse("bad content", &error);
                self.hub_error(&asker, &NamedError::value(format!("bad content: {error}")));
            }
        }
    }

    /// Serves a request of a program or of the page.
    pub(super) fn serve(&mut self, asker: &Asker, content: Value) {
        if !self.peer_request(asker, &content) && !self.own_request(asker, content) {
            let error = NamedError::key(format!("Bad Message Type: {:?}", asker.msg_type));
            self.query.refuse("unknown request", &error.evalue);
            self.hub_error(asker, &error);
        }
    }

    /// Sends a client its last answer, then ends the controller.
    pub(super) fn shutdown_requested(&mut self, asker: &Asker) {
        tracing::info!(client = %hex(asker.identity()), "shutdown requested");
        self.reply(asker, &json!({"status": "ok"}));
        self.say_goodbye();
        self.farewell = Some(Instant::now() + FAREWELL);
    }

    fn say_goodbye(&mut self) {
        if !std::mem::replace(&mut self.said_goodbye, true) {
            self.publish(types::SHUTDOWN_NOTIFICATION, &json!({"status": "ok"}));
        }
    }

    /// What is wrong with the controller, in words.
    pub(super) fn all_troubles(&self) -> Vec<String> {
        let batch = self
            .batch
            .as_ref()
            .and_then(|batch| batch["trouble"].as_str());
        self.troubles
            .values()
            .cloned()
            .chain(batch.map(str::to_owned))
            .chain(self.links.store.status().faults)
            .collect()
    }

    /// Ids of registered engines that `targets` means: none for all, or ids and uuids, one or a list.
    pub(super) fn targets(&self, targets: &Value) -> Result<Vec<u32>, NamedError> {
        let list = match targets {
            Value::Null => return Ok(self.registry.iter().map(|(id, _)| id).collect()),
            Value::Array(list) => list.clone(),
            one => vec![one.clone()],
        };
        let id = |target: &Value| match target {
            Value::String(uuid) => self.registry.by_uuid(uuid).map(|engine| engine.profile.id),
            other => other
                .as_u64()
                .and_then(|id| u32::try_from(id).ok())
                .filter(|id| self.registry.by_id(*id).is_some()),
        };
        let bad: Vec<String> = list
            .iter()
            .filter(|target| id(target).is_none())
            .map(Value::to_string)
            .collect();
        if !bad.is_empty() {
            return Err(NamedError::new(
                "IndexError",
                format!("No Such Engine: [{}]", bad.join(", ")),
            ));
        }
        if list.is_empty() {
            return Err(NamedError::new("IndexError", "No Engines Registered"));
        }
        Ok(list.iter().filter_map(id).collect())
    }
}

/// The allocator returns to the system what was freed a second ago or earlier, but only when somebody frees a page, and a
/// controller that idles after large messages frees none. So the beat does; the page is never touched.
fn give_back_memory() {
    drop(std::hint::black_box(Vec::<u8>::with_capacity(1 << 20)));
}
