//! The loop of the background thread.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender};
use ipbroker_protocol::array::member_id;
use ipbroker_protocol::bundle;
use ipbroker_protocol::connection::ClientConnection;
use ipbroker_protocol::envelope::Envelope;
use ipbroker_protocol::frames::{Frames, Packed};
use ipbroker_protocol::message::{
    Acked, HeaderRef, LeaseReply, LeaseRequest, ParentRef, ReplyMetadata, ResumeReply,
    ResumeRequest, SubmitAck, types,
};
use ipbroker_protocol::session::{Empty, Packer, Session};
use ipbroker_protocol::socket;
use ipbroker_protocol::spawn;
use ipbroker_protocol::wake::Wake;
use ipbroker_protocol::zmq::{self, Context, Message, PollItem, Socket};
use serde::Serialize;

use super::pending::{Pending, Table};
use super::{Channel, Handle, Listener, Request, Sink, Submission, number_of};
use crate::engines::{ConnectionReply, Engines, Notice};
use crate::error::{Error, Result, TaskError};
use crate::gather::Gather;
use crate::reply::Reply;
use crate::wire;

/// How often the lease is renewed.
const LEASE: Duration = Duration::from_secs(2);
/// Received results are acknowledged in batches, at the latest after this time.
const ACK: Duration = Duration::from_millis(50);
/// … or when this many wait for it.
const ACK_COUNT: usize = 8192;
/// Messages taken from one socket before the others have their turn.
const BATCH: usize = 2000;
/// Deliveries that are gathered before their takers are woken, and submissions before they leave.
const GATHER: usize = 200;
/// … or this time has passed.
const GATHER_TIME: Duration = Duration::from_millis(1);

/// The members that a reply is about.
fn range(packer: Packer, pending: &Pending, engine: Option<&str>, metadata: &[u8]) -> (u64, u64) {
    if pending.array {
        let range = ReplyMetadata::read(packer, metadata)
            .ok()
            .and_then(|metadata| metadata.range);
        return match range {
            Some((lo, hi)) if lo < hi && hi <= pending.members => (lo, hi),
            // The whole array ends at once, in an error.
            _ => (0, pending.members),
        };
    }
    let at = engine
        .and_then(|engine| pending.engines.iter().position(|e| e == engine))
        .unwrap_or(0) as u64;
    (at, at + 1)
}

/// What the thread needs to know.
pub(crate) struct Settings {
    pub(crate) connection: ClientConnection,
    pub(crate) session: Arc<Session>,
    pub(crate) engines: Arc<Engines>,
    /// How long a vanished controller is waited for.
    pub(crate) grace: Duration,
}

/// A controller that has said goodbye is gone when it does not renew the lease: it answers while its engines end.
const GOODBYE: Duration = Duration::from_secs(3);

struct Io {
    context: Context,
    settings: Settings,
    /// By channel. Most clients never need the last ones: they are opened at their first use.
    sockets: [Option<Socket>; Channel::ALL.len()],
    notification: Socket,
    iopub: Option<Socket>,
    wake: Wake,
    requests: Receiver<Request>,
    listener: Option<Arc<dyn Listener>>,
    table: Table,
    /// Calls that callers put together.
    gather: Arc<Gather>,
    /// What is about to leave for the scheduler.
    outgoing: Vec<Frames>,
    /// Since when that waits for more.
    gathering: Option<Instant>,
    /// The scheduler takes bundles.
    bundles: bool,
    /// Who asked, and the engine that is to answer.
    queries: HashMap<u64, (Option<String>, Sender<Result<Envelope>>)>,
    /// Sinks that have had deliveries since the last flush, and how many those were.
    touched: Vec<Arc<dyn Sink>>,
    delivered: usize,
    /// Since when they wait for it.
    since: Option<Instant>,
    acked: Acked,
    ack_due: Option<Instant>,
    lease_due: Instant,
    lease_number: Option<u64>,
    /// Leases taken since the controller is there.
    leases: u32,
    /// The open question for all engines.
    engines_number: Option<u64>,
    last_seen: Instant,
    /// The controller has said that it goes.
    goodbye: bool,
    incarnation: Option<String>,
    /// A silence was long enough to have lost replies in it.
    silent: bool,
    refused: u64,
}

/// Opens the sockets and starts the thread.
pub(crate) fn start(settings: Settings) -> Result<(Handle, std::thread::JoinHandle<()>)> {
    let context = Context::new();
    let mut sockets = [const { None }; Channel::ALL.len()];
    for channel in [Channel::Task, Channel::Hub] {
        let port = channel.port(&settings.connection);
        sockets[channel as usize] = Some(connect(&context, &settings, zmq::DEALER, port)?);
    }
    let port = settings.connection.notification;
    let notification = connect(&context, &settings, zmq::SUB, port)?;
    notification.set_subscribe(b"")?;
    let (waker, wake) = ipbroker_protocol::wake::pair()?;
    let (sender, requests) = crossbeam_channel::unbounded();
    let now = Instant::now();
    let gather = Arc::new(Gather::new(sender, settings.session.clone()));
    let io = Io {
        context,
        settings,
        sockets,
        notification,
        iopub: None,
        wake,
        requests,
        listener: None,
        table: Table::new(gather.clone()),
        gather: gather.clone(),
        outgoing: Vec::new(),
        gathering: None,
        bundles: false,
        queries: HashMap::new(),
        touched: Vec::new(),
        delivered: 0,
        since: None,
        acked: Acked::default(),
        ack_due: None,
        lease_due: now,
        lease_number: None,
        leases: 0,
        engines_number: None,
        last_seen: now,
        goodbye: false,
        incarnation: None,
        silent: false,
        refused: 0,
    };
    let thread = spawn("ipbroker-client", move || io.run())?;
    Ok((Handle { waker, gather }, thread))
}

fn connect(
    context: &Context,
    settings: &Settings,
    kind: zmq::SocketType,
    port: u16,
) -> Result<Socket> {
    let common = &settings.connection.common;
    let socket = socket::open(context, kind)?;
    if kind == zmq::DEALER {
        // So that a restarted controller can reach us.
        socket.set_identity(settings.session.id.as_bytes())?;
    }
    socket.set_reconnect_ivl(50)?;
    socket.set_reconnect_ivl_max(1000)?;
    if let Some(curve) = common.curve()? {
        curve.apply(&socket)?;
    }
    socket.connect(&common.url(port))?;
    Ok(socket)
}

impl Io {
    fn run(mut self) {
        let mut frames = Vec::with_capacity(16);
        loop {
            self.poll();
            self.wake.clear();
            if !self.take_requests() {
                break;
            }
            self.receive(&mut frames);
            self.timers();
            if self.gathers() {
                continue;
            }
            // Behind what was asked for before it.
            let gathered = self.gather.flush();
            if gathered.is_ok_and(|some| some) && !self.take_requests() {
                break;
            }
            self.leave();
        }
        self.flush();
        // What was submitted goes out (linger); what is awaited has nobody left to await it.
        self.acknowledge();
        self.leave();
        self.say_goodbye();
        self.table
            .fail(&self.table.all(), "Closed", "the client was closed");
    }

    fn poll(&mut self) {
        // While more comes in at once, deliveries are gathered: waking their takers costs more than a look.
        if !self.touched.is_empty() {
            let since = *self.since.get_or_insert_with(Instant::now);
            if self.delivered < GATHER && since.elapsed() < GATHER_TIME && self.ready(0) {
                return;
            }
            self.flush();
        }
        if self.gathering.is_some() {
            // Not woken by each of the calls that it gathers.
            self.wait(false, GATHER_TIME.as_millis() as i64);
            return;
        }
        let now = Instant::now();
        let due = self
            .ack_due
            .map_or(self.lease_due, |ack| ack.min(self.lease_due));
        self.ready(due.saturating_duration_since(now).as_millis() as i64 + 1);
    }

    /// Whether what is to leave waits for more: while many calls are under way already, those that are submitted one after
    /// the other travel together.
    fn gathers(&mut self) -> bool {
        let many = self.bundles && self.gather.is_busy() && self.outgoing.len() < GATHER;
        if many && (!self.outgoing.is_empty() || self.gather.is_open()) {
            let since = *self.gathering.get_or_insert_with(Instant::now);
            if since.elapsed() < GATHER_TIME {
                return true;
            }
        }
        self.gathering = None;
        false
    }

    /// Whether something is to be read or taken, within so many milliseconds.
    fn ready(&self, timeout: i64) -> bool {
        self.wait(true, timeout)
    }

    fn wait(&self, requests: bool, timeout: i64) -> bool {
        let mut items = Vec::with_capacity(8);
        if requests {
            items.push(PollItem::from_fd(self.wake.fd(), zmq::POLLIN));
        }
        let sockets = self.sockets.iter().chain([&self.iopub]).flatten();
        let sockets = sockets.chain([&self.notification]);
        items.extend(sockets.map(|socket| socket.as_poll_item(zmq::POLLIN)));
        // An interrupted poll is one that saw nothing.
        zmq::poll(&mut items, timeout).is_ok_and(|ready| ready > 0)
    }

    /// False: the client is closed.
    fn take_requests(&mut self) -> bool {
        for _ in 0..BATCH {
            match self.requests.try_recv() {
                Ok(Request::Submit(submission)) => self.submit(*submission),
                Ok(Request::Query {
                    number,
                    channel,
                    engine,
                    frames,
                    answer,
                }) => {
                    self.queries.insert(number, (engine, answer));
                    self.send(channel, frames);
                }
                Ok(Request::Forget(number)) => {
                    self.queries.remove(&number);
                }
                Ok(Request::Listen(listener)) => self.listen(listener),
                Ok(Request::Close) => return false,
                Err(_) => return true,
            }
        }
        // More is waiting: do not sleep.
        self.wake.waker().wake();
        true
    }

    fn listen(&mut self, listener: Arc<dyn Listener>) {
        let port = self.settings.connection.iopub;
        let opened = connect(&self.context, &self.settings, zmq::SUB, port)
            .and_then(|socket| Ok(socket.set_subscribe(b"engine.").map(|()| socket)?));
        match opened {
            Ok(socket) => {
                self.iopub = Some(socket);
                self.listener = Some(listener);
            }
            Err(error) => tracing::warn!(%error, "output cannot be listened to"),
        }
    }

    fn submit(&mut self, submission: Submission) {
        let Submission {
            number,
            frames,
            mut awaited,
        } = submission;
        let channel = awaited.channel;
        awaited.kept = awaited.ack.then(|| frames.duplicate());
        self.table.insert(number, awaited);
        self.send(channel, frames);
    }

    fn send(&mut self, channel: Channel, frames: Frames) {
        if let Err(error) = self.try_send(channel, frames) {
            match channel {
                // Who asks the hub waits for an answer, and says himself that there is none.
                Channel::Hub => tracing::debug!(%error, "a request could not be sent"),
                _ => tracing::warn!(?channel, %error, "a message could not be sent"),
            }
        }
    }

    fn try_send(&mut self, channel: Channel, frames: Frames) -> Result<()> {
        if channel == Channel::Task {
            self.outgoing.push(frames);
            return Ok(());
        }
        // It may be about what was submitted before.
        self.leave();
        let slot = &mut self.sockets[channel as usize];
        let port = channel.port(&self.settings.connection);
        let socket = match slot {
            Some(socket) => socket,
            None => slot.insert(connect(&self.context, &self.settings, zmq::DEALER, port)?),
        };
        Ok(socket::send(socket, self.settings.session.sealed(frames))?)
    }

    /// Sends what is for the scheduler, together what is small.
    fn leave(&mut self) {
        let Some(socket) = &self.sockets[Channel::Task as usize] else {
            return;
        };
        let send = |frames: Vec<Message>| {
            if let Err(error) = socket::send(socket, frames) {
                tracing::warn!(%error, "a message could not be sent to the scheduler");
            }
        };
        let session = &self.settings.session;
        if self.bundles {
            bundle::send(session, (0, None), self.outgoing.drain(..), send);
        } else {
            let outgoing = self.outgoing.drain(..);
            outgoing.map(|frames| session.sealed(frames)).for_each(send);
        }
    }

    fn receive(&mut self, frames: &mut Vec<Message>) {
        for channel in Channel::ALL {
            for _ in 0..BATCH {
                let socket = self.sockets[channel as usize].as_ref();
                match socket.map(|socket| socket::recv(socket, frames)) {
                    Some(Ok(true)) => {
                        if let Some(envelope) = self.check(std::mem::take(frames)) {
                            self.arrived(channel, envelope);
                        }
                    }
                    _ => break,
                }
            }
        }
        while let Ok(true) = socket::recv(&self.notification, frames) {
            // A published message has its topic where others have identities.
            if let Some(envelope) = self.check(std::mem::take(frames)) {
                self.notified(&envelope);
            }
        }
        for _ in 0..BATCH {
            let socket = self.iopub.as_ref();
            match socket.map(|socket| socket::recv(socket, frames)) {
                Some(Ok(true)) => {
                    if let Some(envelope) = self.check(std::mem::take(frames)) {
                        self.printed(&envelope);
                    }
                }
                _ => break,
            }
        }
    }

    /// Something was published: what our own tasks print is passed on.
    fn printed(&self, envelope: &Envelope) {
        #[derive(serde::Deserialize, Default)]
        #[serde(default)]
        struct Stream {
            name: String,
            text: String,
        }
        #[derive(serde::Deserialize, Default)]
        #[serde(default)]
        struct Source {
            member: Option<u64>,
            at: Option<u64>,
            attempt: u32,
        }
        let (session, packer) = (&self.settings.session, self.settings.session.packer);
        let Some(listener) = &self.listener else {
            return;
        };
        let (Ok(header), Ok(parent)) = (
            HeaderRef::read(packer, envelope.header()),
            ParentRef::read(packer, envelope.parent_header()),
        ) else {
            return;
        };
        if &*header.msg_type == "stream"
            && number_of(&parent.msg_id, &session.id).is_some()
            && let Ok(stream) = packer.unpack::<Stream>(envelope.content())
        {
            let source: Source = packer.unpack(envelope.metadata()).unwrap_or_default();
            let member = source.member.map(|index| member_id(&parent.msg_id, index));
            let id = member.as_deref().unwrap_or(&parent.msg_id);
            listener.printed(id, source.attempt, &stream.name, source.at, &stream.text);
        }
    }

    /// A message that holders of the key have signed, or nothing.
    fn check(&mut self, frames: Vec<Message>) -> Option<Envelope> {
        let envelope = match Envelope::parse(frames) {
            Ok(envelope) => envelope,
            Err(error) => {
                tracing::debug!(%error, "not a message");
                return None;
            }
        };
        match self.settings.session.verify(&envelope) {
            Ok(()) => Some(envelope),
            Err(error) => {
                self.refused += 1;
                self.settings.engines.wrong_signature();
                tracing::debug!(%error, refused = self.refused, "a message was dropped");
                None
            }
        }
    }

    fn arrived(&mut self, channel: Channel, envelope: Envelope) {
        let is_bundle = channel == Channel::Task
            && HeaderRef::read(self.settings.session.packer, envelope.header())
                .is_ok_and(|header| header.msg_type == types::BUNDLE);
        if !is_bundle {
            return self.handle(channel, envelope.into_frames().into());
        }
        let unpacked = bundle::unpack(envelope.content(), &[], |frames| {
            Frames::from(Packed::new(frames.iter().copied()))
        });
        match unpacked {
            Ok(messages) => messages
                .into_iter()
                .for_each(|frames| self.handle(channel, frames)),
            Err(error) => tracing::debug!(%error, "a message was dropped"),
        }
    }

    fn handle(&mut self, channel: Channel, frames: Frames) {
        let packer = self.settings.session.packer;
        let Ok((_, parts)) = frames.parts() else {
            return;
        };
        // The common case first: a reply whose parent we await.
        let parent = ParentRef::id(packer, parts.parent_header).unwrap_or_default();
        let number = number_of(&parent, &self.settings.session.id);
        if channel == Channel::Task {
            let Ok(header) = HeaderRef::read(packer, parts.header) else {
                return;
            };
            match &*header.msg_type {
                types::SUBMIT_ACK => return self.submitted(parts.content),
                types::RESUME_REPLY => return self.resumed(parts.content),
                _ => {}
            }
        }
        let Some((number, engine)) = number else {
            return;
        };
        if self.lease_number == Some(number) {
            self.leased(parts.content);
        } else if self.engines_number == Some(number) {
            if let Ok(reply) = packer.unpack::<ConnectionReply>(parts.content) {
                self.engines_number = None;
                self.settings.engines.answered(reply);
            }
        } else if let Some((_, answer)) = self.queries.remove(&number) {
            if let Ok(envelope) = frames.into_envelope() {
                let _ = answer.send(Ok(envelope));
            }
        } else if let Some(pending) = self.table.get(number) {
            let range = range(packer, pending, engine, parts.metadata);
            drop(parent);
            self.deliver(number, range, frames);
        }
        // Else it is a reply that came twice.
    }

    fn deliver(&mut self, number: u64, (lo, hi): (u64, u64), frames: Frames) {
        let Some(pending) = self.table.get(number) else {
            return;
        };
        self.delivered += 1;
        if pending.ack {
            let id = pending.id(&self.settings.session, number);
            if pending.array {
                self.acked.ranges.push((id, lo, hi));
            } else {
                self.acked.msg_ids.push(id);
            }
            self.ack_due.get_or_insert_with(|| Instant::now() + ACK);
        }
        let session = &self.settings.session;
        let reply = Reply::new(frames, session.packer, pending.array, session.now());
        let outcome = Ok(Arc::new(reply));
        self.table
            .deliver(number, (lo, hi), &outcome, &mut self.touched);
        if self.acked.msg_ids.len() + self.acked.ranges.len() >= ACK_COUNT {
            self.acknowledge();
        }
    }

    fn flush(&mut self) {
        self.delivered = 0;
        self.since = None;
        for sink in self.touched.drain(..) {
            sink.flush();
        }
    }

    fn notified(&mut self, envelope: &Envelope) {
        #[derive(serde::Deserialize, Default)]
        #[serde(default)]
        struct Engine {
            id: u32,
            uuid: String,
        }
        let packer = self.settings.session.packer;
        let Ok(header) = HeaderRef::read(packer, envelope.header()) else {
            return;
        };
        match &*header.msg_type {
            types::REGISTRATION_NOTIFICATION => {
                if let Ok(engine) = packer.unpack::<Engine>(envelope.content()) {
                    self.settings.engines.joined(engine.id, &engine.uuid);
                }
            }
            types::UNREGISTRATION_NOTIFICATION => {
                if let Ok(engine) = packer.unpack::<Engine>(envelope.content()) {
                    self.settings.engines.left(engine.id);
                    self.table.engine_lost(&engine.uuid, &mut self.touched);
                    let asked = |_: &u64, query: &mut (Option<String>, _)| {
                        query.0.as_deref() == Some(&engine.uuid)
                    };
                    for (_, (_, answer)) in self.queries.extract_if(asked) {
                        let _ =
                            answer.send(Err(Error::Task(Arc::new(TaskError::lost(&engine.uuid)))));
                    }
                }
            }
            types::SHUTDOWN_NOTIFICATION if !self.goodbye => {
                self.goodbye = true;
                self.settings.engines.notice(Notice::ShutDown);
            }
            _ => {}
        }
    }

    fn submitted(&mut self, content: &[u8]) {
        let Ok(ack) = self.settings.session.packer.unpack::<SubmitAck>(content) else {
            return;
        };
        for id in ack.msg_ids.iter().chain(&ack.duplicate) {
            let Some((number, _)) = number_of(id, &self.settings.session.id) else {
                continue;
            };
            let Some(pending) = self.table.get_mut(number) else {
                continue;
            };
            if pending.kept.take().is_some() {
                pending.takers.acked(&mut self.touched);
            }
        }
    }

    fn leased(&mut self, content: &[u8]) {
        self.lease_number = None;
        let Ok(reply) = self.settings.session.packer.unpack::<LeaseReply>(content) else {
            return;
        };
        self.last_seen = Instant::now();
        self.bundles = reply.bundles;
        self.gather.allow(reply.bundles);
        self.settings.engines.troubles(&reply.troubles);
        let changed = self
            .incarnation
            .as_ref()
            .is_some_and(|old| *old != reply.incarnation);
        // Its answers may come after its goodbye: only another one takes that back.
        self.goodbye &= !changed;
        if changed || self.silent {
            self.resume();
            // Engines come back by and by: asked for soon, and again.
            self.leases = 1;
            self.settings.engines.notice(Notice::Back);
        }
        self.silent = false;
        self.incarnation = Some(reply.incarnation);
    }

    /// After a silence or a restart: tells what is still awaited, and hears what has to be sent again.
    fn resume(&mut self) {
        let session = &self.settings.session;
        let mut request = ResumeRequest::default();
        for number in self.table.numbers(Channel::Task) {
            let Some(pending) = self.table.get(number) else {
                continue;
            };
            let id = pending.id(session, number);
            if pending.array {
                request.received.extend(
                    pending
                        .received
                        .iter()
                        .map(|range| (id.clone(), range.start, range.end)),
                );
            }
            request.pending.push(id);
        }
        if !request.pending.is_empty() {
            let request = session.request(types::RESUME_REQUEST, &request);
            self.send(Channel::Task, request.into_frames().into());
        }
    }

    fn resumed(&mut self, content: &[u8]) {
        let Ok(reply) = self.settings.session.packer.unpack::<ResumeReply>(content) else {
            return;
        };
        let mut lost = Vec::new();
        for id in &reply.unknown {
            let Some((number, _)) = number_of(id, &self.settings.session.id) else {
                continue;
            };
            match self
                .table
                .get(number)
                .map(|pending| pending.kept.as_ref().map(Frames::duplicate))
            {
                // Never acknowledged: the controller has not had it.
                Some(Some(again)) => self.send(Channel::Task, again),
                Some(None) => lost.push(number),
                None => {}
            }
        }
        self.table.fail(
            &lost,
            "EngineError",
            "the controller was restarted and no longer knows this task",
        );
    }

    fn timers(&mut self) {
        let now = Instant::now();
        if self.ack_due.is_some_and(|due| due <= now) {
            self.acknowledge();
        }
        if self.lease_due > now {
            return;
        }
        self.lease_due = now + LEASE;
        let lease = LeaseRequest::default();
        self.lease_number = Some(self.ask_hub(types::LEASE_REQUEST, &lease));
        self.leases += 1;
        if self.leases > 1 && (self.leases.is_power_of_two() || self.leases.is_multiple_of(32)) {
            self.ask_for_engines();
        }
        let silence = now.duration_since(self.last_seen);
        if silence > 2 * LEASE + LEASE / 2 && self.incarnation.is_some() {
            if !self.silent && !self.goodbye {
                self.settings.engines.notice(Notice::Gone(silence));
            }
            self.silent = true;
        }
        if self.goodbye && silence > GOODBYE.min(self.settings.grace) {
            self.lost("the controller has shut down");
            for (_, (_, answer)) in self.queries.drain() {
                let _ = answer.send(Err(Error::ShutDown));
            }
        } else if silence > self.settings.grace {
            self.lost(&format!(
                "the controller is gone: not heard of for {} s",
                silence.as_secs()
            ));
        }
    }

    /// Nobody will answer what is awaited.
    fn lost(&mut self, why: &str) {
        self.table.fail(&self.table.all(), "ControllerLost", why);
    }

    /// What the controller tells all is not heard before it knows of the subscription, nor while a connection is broken.
    fn ask_for_engines(&mut self) {
        if self.engines_number.is_none() {
            self.settings.engines.ask();
        }
        self.engines_number = Some(self.ask_hub(types::CONNECTION_REQUEST, &Empty {}));
    }

    /// A client that closes is no longer counted.
    fn say_goodbye(&mut self) {
        if self.incarnation.is_some() && !self.silent && !self.goodbye {
            self.ask_hub(types::LEASE_REQUEST, &LeaseRequest { closes: true });
        }
    }

    /// Asks the hub something; the number by which its answer is known.
    fn ask_hub(&mut self, msg_type: &str, content: &impl Serialize) -> u64 {
        let session = &self.settings.session;
        let built = wire::build(session, None, msg_type, &Empty {}, content, Vec::new());
        self.send(Channel::Hub, built.frames);
        built.number
    }

    fn acknowledge(&mut self) {
        self.ack_due = None;
        let acked = std::mem::take(&mut self.acked);
        if !acked.msg_ids.is_empty() || !acked.ranges.is_empty() {
            let acked = self.settings.session.request(types::RESULT_ACK, &acked);
            self.send(Channel::Task, acked.into_frames().into());
        }
    }
}
