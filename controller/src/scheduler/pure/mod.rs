//! The pure path: a ROUTER for clients and a DEALER for engines, and libzmq does the balancing.
//!
//! What it gives up is the price of its speed, and is refused by name instead of being ignored: dependencies, targets and
//! retries.
//!
//! An engine of ours that leaves loses nothing: it gives back what it has not started ([`leave`] says how). One that
//! crashes costs the tasks that it had announced, whose clients are told, and those on their way to it, of which nobody
//! knows: at most the DEALER's high-water mark ([`HIGH_WATER`], or `--hwm`) and what the two hosts buffer of the
//! connection. An engine announces what it has received on the connection by which it answers, so an announcement comes
//! before its answer. Engines of Python neither announce nor give back.

mod books;
mod leave;

pub use leave::watch;

use std::{
    collections::{HashSet, VecDeque},
    io,
    ops::Range,
    sync::Arc,
    time::{Duration, Instant},
};

use foldhash::{HashMap, HashMapExt};
use ipbroker_protocol::{
    array::View,
    envelope::{DELIMITER, Envelope},
    message::{
        ErrorContent, HeaderRef, Leaving, ParentRef, ReceivedNotice, ReplyMetadata, SubmitAck,
        TaskMetadata, types,
    },
    session::Session,
    socket,
    value::{AnyMap, Map},
    zmq::{self, Message, Socket},
};
use serde_json::json;

use self::{books::Books, leave::Leaves};
use super::{
    command::{
        Aborted, Command, Departure, EngineTasks, Explanation, Selection, TaskQueues, TaskState,
        TaskTotals,
    },
    task::frames::{at, chunk, with_metadata},
};
use crate::{
    junk::{Junk, JunkTotal},
    mailbox::Mailbox,
    relay::outbox::{Outbox, try_send},
};

/// The DEALER's high-water mark when `--hwm` gives none: messages on their way to one engine.
pub const HIGH_WATER: i32 = 1000;

/// Messages moved in one direction before the other gets its turn.
const BATCH: usize = 256;

/// Messages read at once where order between sockets matters.
const CATCH_UP: usize = 10_000;

/// Parts into which an array is cut for each engine: enough for balance, few enough for speed.
const PARTS: u32 = 8;

/// Everything a pure relay is made of.
pub struct PureThread {
    /// ROUTER that clients connect to, bound.
    pub clients: Socket,
    /// DEALER that engines connect to, bound.
    pub engines: Socket,
    /// What [`watch`] made for it.
    pub monitor: Socket,
    /// Signs the few messages of its own.
    pub session: Arc<Session>,
    /// Questions and events of the hub.
    pub commands: Mailbox<Command>,
    /// Where refused messages are counted.
    pub junk: JunkTotal,
}

/// An array on its way to the engines, part by part.
struct Splitting {
    frames: Vec<Message>,
    metadata: Map,
    next: u32,
    count: u32,
    part: u32,
}

/// A registered engine.
#[derive(Debug, Default)]
struct Known {
    /// It announces what it receives.
    ours: bool,
    /// Tasks and ranges it has completed, as far as announcements tell.
    completed: u64,
}

struct Pure {
    clients: Socket,
    engines: Socket,
    monitor: Socket,
    session: Arc<Session>,
    junk: Junk,
    /// Metadata that asked for nothing that this path lacks: most messages repeat it byte for byte.
    good: Vec<u8>,
    good_acks: bool,
    known: HashMap<String, Known>,
    books: Books,
    splitting: VecDeque<Splitting>,
    /// Replies for clients that do not read fast enough.
    outbox: Outbox,
    /// Given back by an engine, to be sent again.
    again: VecDeque<Vec<Message>>,
    acks: HashMap<Vec<u8>, SubmitAck>,
    leaves: Leaves,
    /// Engines that have died, and when what they have sent will have come.
    dying: VecDeque<(Instant, String, Departure)>,
    /// Engines of ours that are gone: their tasks were told lost, so what they still say comes too late.
    gone: HashSet<String>,
}

/// How long what an engine has sent before it died may take to come.
const DYING: Duration = Duration::from_millis(250);

/// Engines that are remembered as gone.
const GONE: usize = 4096;

/// How often it is looked at who leaves, while somebody does.
const TICK: Duration = Duration::from_millis(10);

enum Verdict {
    Pass,
    Array(u32),
    Refuse(String),
    Swallow,
}

impl PureThread {
    /// Runs until [`Command::Shutdown`].
    ///
    /// # Errors
    /// When a socket fails in a way that no retry mends.
    pub fn run(self) -> io::Result<()> {
        let mut pure = Pure {
            clients: self.clients,
            engines: self.engines,
            monitor: self.monitor,
            session: self.session,
            junk: Junk::new("task (pure)", &self.junk),
            good: Vec::new(),
            good_acks: false,
            known: HashMap::new(),
            books: Books::default(),
            splitting: VecDeque::new(),
            outbox: Outbox::new(),
            again: VecDeque::new(),
            acks: HashMap::new(),
            leaves: Leaves::new(),
            dying: VecDeque::new(),
            gone: HashSet::new(),
        };
        pure.run(&self.commands)
            .map_err(|error| io::Error::other(format!("pure relay: {error}")))
    }
}

impl Pure {
    fn run(&mut self, commands: &Mailbox<Command>) -> zmq::Result<()> {
        let mut frames = Vec::with_capacity(16);
        // While the DEALER takes nothing, clients are not read: they feel it, and memory does not.
        let mut writable = true;
        loop {
            let pause = self.leaves.pause();
            let mut items = [
                zmq::PollItem::from_fd(commands.fd(), zmq::POLLIN),
                self.monitor.as_poll_item(zmq::POLLIN),
                self.engines.as_poll_item(if writable || pause {
                    zmq::POLLIN
                } else {
                    zmq::POLLIN | zmq::POLLOUT
                }),
                self.clients.as_poll_item(if writable && !pause {
                    zmq::POLLIN
                } else {
                    zmq::PollEvents::empty()
                }),
            ];
            match zmq::poll(&mut items, self.timeout()) {
                Ok(_) | Err(zmq::Error::EINTR) => {}
                Err(error) => return Err(error),
            }
            let monitored = items[1].is_readable();
            if items[0].is_readable() {
                for command in commands.take() {
                    if matches!(command, Command::Shutdown) {
                        return Ok(());
                    }
                    self.command(command)?;
                }
            }
            for _ in 0..BATCH {
                if !socket::recv(&self.engines, &mut frames)? {
                    break;
                }
                self.engine_message(&mut frames);
            }
            self.bury()?;
            if monitored || self.leaves.pause() {
                self.see_off()?;
            }
            if !self.leaves.pause() {
                writable = self.forward(&mut frames)?;
            }
            for (_, lost) in self.outbox.flush(&self.clients) {
                tracing::debug!(lost, "a client went away with replies undelivered");
            }
            self.acknowledge();
        }
    }

    /// Milliseconds until something is due.
    fn timeout(&self) -> i64 {
        let mut wait = self.outbox.timeout().unwrap_or(Duration::from_secs(1));
        if self.leaves.pause() {
            wait = wait.min(TICK);
        }
        if let Some((due, ..)) = self.dying.front() {
            wait = wait.min(due.saturating_duration_since(Instant::now()));
        }
        wait.as_millis() as i64 + 1
    }

    /// Takes in all that engines have sent: what follows depends on it.
    fn catch_up(&mut self) -> zmq::Result<()> {
        let mut frames = Vec::with_capacity(16);
        for _ in 0..CATCH_UP {
            if !socket::recv(&self.engines, &mut frames)? {
                break;
            }
            self.engine_message(&mut frames);
        }
        Ok(())
    }

    /// Tells the clients of engines that have died, once all that these have answered is passed on.
    fn bury(&mut self) -> zmq::Result<()> {
        while self
            .dying
            .front()
            .is_some_and(|(due, ..)| *due <= Instant::now())
        {
            let Some((_, uuid, departure)) = self.dying.pop_front() else {
                break;
            };
            self.catch_up()?;
            self.engine_left(&uuid, &departure);
        }
        Ok(())
    }

    /// Moves a batch towards the engines; whether they take more.
    fn forward(&mut self, frames: &mut Vec<Message>) -> zmq::Result<bool> {
        for _ in 0..BATCH {
            if let Some(mut own) = self.again.pop_front().or_else(|| self.next_part()) {
                if !self.pass(&mut own)? {
                    return Ok(false);
                }
            } else if socket::recv(&self.clients, frames)? {
                match self.judge(frames) {
                    Verdict::Pass => {
                        if !self.pass(frames)? {
                            return Ok(false);
                        }
                    }
                    Verdict::Array(count) => self.split(std::mem::take(frames), count),
                    Verdict::Refuse(why) => self.refuse(frames, why),
                    Verdict::Swallow => {}
                }
            } else {
                break;
            }
        }
        Ok(true)
    }

    /// Gives a message to the DEALER; `false`: it is full, and the message is the next to go.
    ///
    /// Asking the DEALER first would cost a system call for each message.
    fn pass(&mut self, frames: &mut Vec<Message>) -> zmq::Result<bool> {
        match try_send(&self.engines, frames) {
            Ok(()) => Ok(true),
            Err(zmq::Error::EAGAIN | zmq::Error::EINTR) => {
                self.again.push_front(std::mem::take(frames));
                Ok(false)
            }
            Err(error) => Err(error),
        }
    }

    /// Looks at the metadata, and at nothing else if it has been seen before.
    fn judge(&mut self, frames: &[Message]) -> Verdict {
        let shaped = frames.len() >= at::BUFFERS && frames[1][..] == *DELIMITER;
        if !shaped {
            self.junk
                .refuse("not a message", &format_args!("{} frames", frames.len()));
            return Verdict::Swallow;
        }
        if frames[at::METADATA][..] == *self.good && !self.good.is_empty() {
            if self.good_acks {
                self.note_ack(frames);
            }
            return Verdict::Pass;
        }
        let packer = self.session.packer;
        let maps = [
            &frames[at::HEADER][..],
            &frames[at::PARENT],
            &frames[at::METADATA],
            &frames[at::CONTENT],
        ];
        if let Err(error) = self.session.signer().verify(&frames[at::SIGNATURE], maps) {
            self.junk.refuse("signature", &error);
            return Verdict::Swallow;
        }
        let header: HeaderRef<'_> = match packer.unpack(&frames[at::HEADER]) {
            Ok(header) => header,
            Err(error) => {
                self.junk.refuse("header", &error);
                return Verdict::Swallow;
            }
        };
        match &*header.msg_type {
            // Nothing is kept here, so there is nothing to forget and nothing to resume.
            types::RESULT_ACK => return Verdict::Swallow,
            types::RESUME_REQUEST => return Verdict::Swallow,
            _ => {}
        }
        let metadata: TaskMetadata = match packer.unpack(&frames[at::METADATA]) {
            Ok(metadata) => metadata,
            Err(error) => return Verdict::Refuse(format!("metadata: {error}")),
        };
        if let Some(lacking) = lacking(&metadata) {
            return Verdict::Refuse(format!(
                "{lacking} cannot be honoured by a controller that runs --scheme=pure; start it with another scheme, e.g. --scheme=leastload"
            ));
        }
        let acks = metadata.ack == Some(true);
        if acks {
            self.note_ack(frames);
        }
        match metadata.array {
            Some(count) => match u32::try_from(count) {
                Ok(count) if count > 0 => match &frames[at::BUFFERS..] {
                    [] => Verdict::Array(count),
                    [offsets, values, ..] => match View::new(offsets, values, count.into()) {
                        Ok(_) => Verdict::Array(count),
                        Err(error) => Verdict::Refuse(error.to_string()),
                    },
                    _ => Verdict::Refuse(
                        "an array has two buffers, 32-bit offsets and values, or none".into(),
                    ),
                },
                _ => Verdict::Refuse(format!("an array has 1 to {} members", u32::MAX)),
            },
            None => {
                // An empty map is what control messages carry too: those must be looked at.
                if frames[at::METADATA][..] != *self.session.empty_map() {
                    self.good = frames[at::METADATA].to_vec();
                    self.good_acks = acks;
                }
                Verdict::Pass
            }
        }
    }

    fn note_ack(&mut self, frames: &[Message]) {
        if let Ok(header) = self
            .session
            .packer
            .unpack::<HeaderRef<'_>>(&frames[at::HEADER])
        {
            self.acks
                .entry(frames[0].to_vec())
                .or_default()
                .msg_ids
                .push(header.msg_id.into_owned());
        }
    }

    fn acknowledge(&mut self) {
        for (client, ack) in self.acks.drain() {
            let mut envelope = self.session.request(types::SUBMIT_ACK, &ack);
            envelope.set_identities([Message::from(client)]);
            drop(self.outbox.send(&self.clients, envelope.into_frames()));
        }
    }

    fn split(&mut self, frames: Vec<Message>, count: u32) {
        let metadata = self
            .session
            .unpack::<AnyMap>(&frames[at::METADATA])
            .unwrap_or_default()
            .0;
        let engines = u32::try_from(self.known.len()).unwrap_or(1).max(1);
        let part = count.div_ceil(engines.saturating_mul(PARTS)).clamp(1, 4096);
        self.splitting.push_back(Splitting {
            frames,
            metadata,
            next: 0,
            count,
            part,
        });
    }

    fn next_part(&mut self) -> Option<Vec<Message>> {
        let array = self.splitting.front_mut()?;
        let (lo, hi) = (array.next, array.count.min(array.next + array.part));
        let part = chunk(&self.session, &array.frames, &array.metadata, lo, hi, 0);
        array.next = hi;
        if hi == array.count {
            self.splitting.pop_front();
        }
        Some(part)
    }

    fn refuse(&mut self, frames: &[Message], why: String) {
        let msg_type = match self
            .session
            .packer
            .unpack::<HeaderRef<'_>>(&frames[at::HEADER])
        {
            Ok(header) => super::task::reply_type(&header.msg_type),
            Err(_) => types::APPLY_REPLY,
        };
        self.answer(
            &frames[0],
            &frames[at::HEADER],
            msg_type,
            &ErrorContent::new("ValueError", why),
            None,
        );
    }

    fn answer(
        &mut self,
        client: &[u8],
        parent: &[u8],
        msg_type: &str,
        content: &ErrorContent,
        range: Option<Range<u64>>,
    ) {
        let mut metadata =
            json!({"status": content.status, "dependencies_met": true, "engine": ""});
        if let Some(range) = range {
            metadata["range"] = json!([range.start, range.end]);
        }
        let header = self.session.header(msg_type);
        let envelope = self.session.message(
            vec![Message::from(client)],
            &header,
            Some(parent),
            &metadata,
            content,
            Vec::new(),
        );
        // A client that is gone needs no answer.
        drop(self.outbox.send(&self.clients, envelope.into_frames()));
    }

    /// A reply goes to its client; the rest is for this relay.
    fn engine_message(&mut self, frames: &mut Vec<Message>) {
        if frames.first().is_some_and(|frame| frame[..] == *DELIMITER) {
            return self.own_message(std::mem::take(frames));
        }
        if (!self.books.is_empty() || !self.gone.is_empty())
            && frames.len() > at::METADATA
            && !self.note_reply(frames)
        {
            return tracing::debug!("a reply of an engine that was given up is not delivered");
        }
        if let Err(refused) = self.outbox.pass(&self.clients, frames) {
            tracing::debug!(%refused, "a reply has no client any more");
        }
    }

    /// Takes what is answered out of the books; `false`: the client has been told otherwise.
    fn note_reply(&mut self, frames: &[Message]) -> bool {
        let session = self.session.clone();
        let Ok(parent) = session.packer.unpack::<ParentRef<'_>>(&frames[at::PARENT]) else {
            return true;
        };
        let mut engine = self.books.replied(&parent.msg_id, None);
        if engine.is_none() {
            let Ok(metadata) = session
                .packer
                .unpack::<ReplyMetadata<'_>>(&frames[at::METADATA])
            else {
                return true;
            };
            if metadata
                .engine
                .is_some_and(|engine| self.gone.contains(&*engine))
            {
                return false;
            }
            engine = self.books.replied(&parent.msg_id, metadata.range);
        }
        if let Some(known) = engine.and_then(|engine| self.known.get_mut(&engine)) {
            known.completed += 1;
        }
        true
    }

    /// What an engine of ours says to this relay.
    fn own_message(&mut self, mut frames: Vec<Message>) {
        let connection = leave::connection(&mut frames[0]);
        let envelope = match Envelope::parse(frames) {
            Ok(envelope) => envelope,
            Err(error) => return self.junk.refuse("not a message", &error),
        };
        if let Err(error) = self.session.verify(&envelope) {
            return self.junk.refuse("signature", &error);
        }
        let session = self.session.clone();
        let header: HeaderRef<'_> = match session.packer.unpack(envelope.header()) {
            Ok(header) => header,
            Err(error) => return self.junk.refuse("header", &error),
        };
        let uuid = || {
            session
                .unpack::<Leaving>(envelope.content())
                .map(|leaving| leaving.uuid)
        };
        match &*header.msg_type {
            types::GIVEN_BACK => {
                drop(header);
                self.given_back(envelope);
            }
            types::RECEIVED_NOTICE => match session.unpack(envelope.content()) {
                Ok(notice) => self.received(notice),
                Err(error) => self.junk.refuse("received_notice", &error),
            },
            types::LEAVE_REQUEST => match uuid() {
                Ok(uuid) => self.leaves.begin(uuid, Instant::now()),
                Err(error) => self.junk.refuse("leave_request", &error),
            },
            types::LEFT_NOTICE => match uuid() {
                Ok(uuid) => self.left(uuid, connection),
                Err(error) => self.junk.refuse("left_notice", &error),
            },
            other => self.junk.refuse("message type", &other),
        }
    }

    /// An engine has taken tasks.
    fn received(&mut self, notice: ReceivedNotice) {
        for (client, id, msg_type) in notice.tasks {
            match unhex(&client) {
                Some(client) => self.books.received(&notice.uuid, client, id, msg_type),
                None => self
                    .junk
                    .refuse("received_notice", &format_args!("{client:?} is no client")),
            }
        }
        if self.gone.contains(&notice.uuid) {
            self.engine_left(
                &notice.uuid,
                &Departure::Died {
                    reason: "it was gone already".into(),
                    started: Vec::new(),
                },
            );
        }
    }

    fn given_back(&mut self, mut envelope: Envelope) {
        let session = self.session.clone();
        let range = {
            let parent = session
                .packer
                .unpack::<ParentRef<'_>>(envelope.parent_header());
            let metadata = session
                .packer
                .unpack::<ReplyMetadata<'_>>(envelope.metadata());
            let (Ok(parent), Ok(metadata)) = (parent, metadata) else {
                return self.junk.refuse("given_back", &"of what?");
            };
            self.books.given_back(&parent.msg_id, metadata.range);
            metadata.range
        };
        let request = envelope.take_buffers();
        if request.len() < at::BUFFERS {
            return self.junk.refuse("given_back", &"without the task's frames");
        }
        match cut(&session, request, range) {
            Some(request) => self.again.push_back(request),
            None => self
                .junk
                .refuse("given_back", &"a range that its frames do not have"),
        }
    }

    fn command(&mut self, command: Command) -> zmq::Result<()> {
        match command {
            Command::EngineJoined(profile) => {
                self.gone.remove(&profile.uuid);
                let known = self.known.entry(profile.uuid.clone()).or_default();
                known.ours = profile.is_ours();
            }
            Command::EngineLeft { uuid, departure } => self.departed(uuid, departure)?,
            Command::QueueStatus { answer, .. } => {
                let counts = self.books.counts();
                let engines = self.known.iter().map(|(uuid, known)| EngineTasks {
                    uuid: uuid.clone(),
                    running: counts.get(uuid.as_str()).copied().unwrap_or_default(),
                    completed: known.completed,
                    ..EngineTasks::default()
                });
                answer.send(TaskQueues {
                    engines: engines.collect(),
                    ..TaskQueues::default()
                });
            }
            Command::TaskStates { ids, answer } => {
                answer.send(ids.iter().map(|id| self.state(id)).collect());
            }
            Command::Totals { answer, .. } => answer.send(TaskTotals {
                running: self.books.len() as u64,
                ..TaskTotals::default()
            }),
            Command::Unfinished { answer, .. } => answer.send(self.books.ids()),
            Command::Abort {
                selection, answer, ..
            } => answer.send(self.abort(selection)),
            Command::Explain { id, answer } => answer.send(Explanation {
                state: self.state(&id),
                text: "this controller runs --scheme=pure: libzmq hands tasks out in turn, and nobody knows of a task \
                       until an engine has announced it"
                    .into(),
                engines: Vec::new(),
            }),
            Command::Stats { answer } => answer.send(ipbroker_protocol::message::Stats::default()),
            Command::Inject { mut frames, answer } => {
                frames.insert(0, Message::new());
                let id = frames
                    .get(at::HEADER)
                    .and_then(|header| self.session.packer.unpack::<HeaderRef<'_>>(header).ok())
                    .map(|header| header.msg_id.into_owned());
                match id {
                    Some(id) => {
                        self.again.push_back(frames);
                        answer.send(Ok(id));
                    }
                    None => answer.send(Err("not a message".into())),
                }
            }
            Command::Settled { answer } => answer.send(()),
            Command::Attached { answer } => answer.send(Vec::new()),
            Command::ClientGone { answer, .. } => answer.send(Aborted::default()),
            Command::Shutdown => {}
        }
        Ok(())
    }

    fn state(&self, id: &str) -> TaskState {
        if self.books.contains(id) {
            TaskState::Running
        } else {
            TaskState::Unknown
        }
    }

    /// The hub has taken an engine off its books.
    fn departed(&mut self, uuid: String, departure: Departure) -> zmq::Result<()> {
        // It may have asked to leave, and said that it has.
        self.catch_up()?;
        match departure {
            Departure::Clean if self.leaves.contains(&uuid) => {
                // Its connection ends; until then nothing is sent.
            }
            Departure::Died { .. } => {
                self.leaves.forget(&uuid);
                self.dying
                    .push_back((Instant::now() + DYING, uuid, departure));
            }
            Departure::Clean | Departure::Silent => {
                self.leaves.forget(&uuid);
                self.engine_left(&uuid, &departure);
            }
        }
        Ok(())
    }

    /// What the engine had announced and not answered is lost, and its clients are told.
    fn engine_left(&mut self, uuid: &str, departure: &Departure) {
        let known = self.known.remove(uuid);
        if known.is_none_or(|known| known.ours) {
            if self.gone.len() >= GONE {
                self.gone.clear();
            }
            self.gone.insert(uuid.to_owned());
        }
        let why = match departure {
            Departure::Clean => "the engine left",
            Departure::Silent => "its heartbeat stopped",
            Departure::Died { reason, .. } => reason,
        };
        let content = ErrorContent::new(
            "EngineError",
            format!("engine {uuid} is gone while it had this task: {why}"),
        );
        for task in self.books.lost(uuid) {
            let reply_type = super::task::reply_type(&task.msg_type);
            let parent = json!({"msg_id": task.msg_id, "msg_type": task.msg_type});
            let parent = self.session.pack(&parent);
            if task.open.is_empty() {
                self.answer(&task.client, &parent, reply_type, &content, None);
            }
            for open in task.open {
                self.answer(&task.client, &parent, reply_type, &content, Some(open));
            }
        }
    }

    /// Only what engines have announced can be found; the hub tells them to stop it.
    fn abort(&self, selection: Selection) -> Aborted {
        let mut aborted = Aborted::default();
        let ids = match selection {
            Selection::Ids(ids) => ids,
            Selection::All | Selection::Session(_) => self.books.ids(),
        };
        for id in ids {
            let engines = self.books.engines(&id);
            if engines.is_empty() {
                aborted.unknown.push(id);
                continue;
            }
            for engine in engines {
                match aborted.running.iter_mut().find(|(uuid, _)| uuid == engine) {
                    Some((_, ids)) => ids.push(id.clone()),
                    None => aborted.running.push((engine.to_owned(), vec![id.clone()])),
                }
            }
        }
        aborted
    }
}

/// A request, from the client's identity on, for this range of its members only.
fn cut(session: &Session, frames: Vec<Message>, range: Option<(u64, u64)>) -> Option<Vec<Message>> {
    let metadata: AnyMap = session.unpack(&frames[at::METADATA]).ok()?;
    let has: TaskMetadata = session.unpack(&frames[at::METADATA]).ok()?;
    let number = |value: u64| u32::try_from(value).ok();
    let Some((lo, hi)) = range else {
        return Some(frames);
    };
    let (from, to) = has
        .range
        .or(has.array.map(|count| (0, count)))
        .filter(|(from, to)| *from <= lo && lo < hi && hi <= *to)?;
    if (from, to) == (lo, hi) {
        return Some(frames);
    }
    let (start, end) = (number(lo - from)?, number(hi - from)?);
    if let [offsets, values, ..] = &frames[at::BUFFERS..] {
        View::new(offsets, values, to - from).ok()?;
    }
    let part = chunk(session, &frames, &metadata.0, start, end, 0);
    Some(with_metadata(session, part, |metadata| {
        metadata.insert("range".into(), json!([lo, hi]));
    }))
}

fn unhex(digits: &str) -> Option<Vec<u8>> {
    let byte = |at: usize| u8::from_str_radix(digits.get(at..at + 2)?, 16).ok();
    (0..digits.len()).step_by(2).map(byte).collect()
}

/// What the metadata asks for that this path does not have.
fn lacking(metadata: &TaskMetadata) -> Option<&'static str> {
    [
        (!metadata.after.is_empty(), "`after`"),
        (!metadata.follow.is_empty(), "`follow`"),
        (!metadata.targets.is_empty(), "`targets`"),
        (!metadata.hosts.is_empty(), "`host`"),
        (!metadata.prefer.is_empty(), "`prefer`"),
        (!metadata.tags.is_empty(), "`tags`"),
        (metadata.retries.unwrap_or(0) > 0, "`retries`"),
        (
            metadata.timeout.is_some_and(|timeout| timeout > 0.0),
            "`timeout`",
        ),
        (metadata.priority.unwrap_or(0) != 0, "`priority`"),
    ]
    .into_iter()
    .find_map(|(asked, name)| asked.then_some(name))
}
