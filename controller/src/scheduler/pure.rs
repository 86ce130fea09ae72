//! The pure path: a ROUTER for clients and a DEALER for engines, and libzmq does the balancing.
//!
//! What it gives up is the price of its speed, and is refused by name instead of being ignored: dependencies, targets and
//! retries. What a crash of an engine can cost is bounded: the tasks that the engine had announced (their clients are
//! told) and at most the DEALER's high-water mark of tasks that were on their way to it.

use std::{
    collections::VecDeque,
    io,
    ops::Range,
    sync::Arc,
    time::{Duration, Instant},
};

use foldhash::{HashMap, HashMapExt};
use ipbroker_protocol::{
    envelope::{DELIMITER, Envelope},
    message::{ErrorContent, HeaderRef, ParentRef, ReplyMetadata, SubmitAck, TaskMetadata, types},
    session::Session,
    socket,
    value::{AnyMap, Map},
    zmq::{self, Message, Socket},
};
use serde_json::json;

use super::{
    command::{
        Aborted, Command, Departure, EngineTasks, Explanation, Selection, TaskQueues, TaskState,
        TaskTotals,
    },
    task::frames::{at, chunk},
};
use crate::{
    junk::{Junk, JunkTotal},
    mailbox::Mailbox,
    relay::outbox::Outbox,
};

/// The DEALER's high-water mark when `--hwm` gives none: messages on their way to one engine.
pub const HIGH_WATER: i32 = 1000;

/// Messages moved in one direction before the other gets its turn.
const BATCH: usize = 256;

/// Parts into which an array is cut for each engine: enough for balance, few enough for speed.
const PARTS: u32 = 8;

/// Everything a pure relay is made of.
pub struct PureThread {
    /// ROUTER that clients connect to, bound.
    pub clients: Socket,
    /// DEALER that engines connect to, bound.
    pub engines: Socket,
    /// Signs the few messages of its own.
    pub session: Arc<Session>,
    /// Questions and events of the hub.
    pub commands: Mailbox<Command>,
    /// Where refused messages are counted.
    pub junk: JunkTotal,
}

/// A task, or a range of an array, that an engine has announced and not answered.
struct Announced {
    engine: String,
    client: Vec<u8>,
    msg_type: String,
    /// The members of an array that are not answered; empty for an ordinary task.
    open: Vec<Range<u64>>,
}

/// An array on its way to the engines, part by part.
struct Splitting {
    frames: Vec<Message>,
    metadata: Map,
    next: u32,
    count: u32,
    part: u32,
}

struct Pure {
    clients: Socket,
    engines: Socket,
    session: Arc<Session>,
    junk: Junk,
    /// Metadata that asked for nothing that this path lacks: most messages repeat it byte for byte.
    good: Vec<u8>,
    good_acks: bool,
    /// Registered engines and what they have completed, as far as announcements tell.
    known: HashMap<String, u64>,
    announced: HashMap<String, Announced>,
    /// How many of them are ranges.
    arrays: usize,
    splitting: VecDeque<Splitting>,
    /// Replies for clients that do not read fast enough.
    outbox: Outbox,
    /// Given back by an engine, to be sent again.
    again: VecDeque<Vec<Message>>,
    acks: HashMap<Vec<u8>, SubmitAck>,
    /// Engines that left in order: what they give back may come after the word that they are gone, on another connection.
    leaving: VecDeque<(Instant, String, Departure)>,
    relayed: u64,
}

/// How long that may take.
const LEAVING: Duration = Duration::from_secs(1);

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
            session: self.session,
            junk: Junk::new("task (pure)", &self.junk),
            good: Vec::new(),
            good_acks: false,
            known: HashMap::new(),
            announced: HashMap::new(),
            arrays: 0,
            splitting: VecDeque::new(),
            outbox: Outbox::new(),
            again: VecDeque::new(),
            acks: HashMap::new(),
            leaving: VecDeque::new(),
            relayed: 0,
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
            let mut items = [
                zmq::PollItem::from_fd(commands.fd(), zmq::POLLIN),
                self.engines.as_poll_item(if writable {
                    zmq::POLLIN
                } else {
                    zmq::POLLIN | zmq::POLLOUT
                }),
                self.clients.as_poll_item(if writable {
                    zmq::POLLIN
                } else {
                    zmq::PollEvents::empty()
                }),
            ];
            let wait = self
                .outbox
                .timeout()
                .map_or(1000, |due| due.as_millis() as i64 + 1);
            let wait = if self.leaving.is_empty() {
                wait
            } else {
                wait.min(100)
            };
            match zmq::poll(&mut items, wait) {
                Ok(_) | Err(zmq::Error::EINTR) => {}
                Err(error) => return Err(error),
            }
            if items[0].is_readable() {
                for command in commands.take() {
                    if matches!(command, Command::Shutdown) {
                        return Ok(());
                    }
                    self.command(command);
                }
            }
            for _ in 0..BATCH {
                if !socket::recv(&self.engines, &mut frames)? {
                    break;
                }
                self.engine_message(&mut frames);
            }
            while self
                .leaving
                .front()
                .is_some_and(|(due, ..)| *due <= Instant::now())
            {
                if let Some((_, uuid, departure)) = self.leaving.pop_front() {
                    self.engine_left(&uuid, &departure);
                }
            }
            writable = self.forward(&mut frames)?;
            for (_, lost) in self.outbox.flush(&self.clients) {
                tracing::debug!(lost, "a client went away with replies undelivered");
            }
            self.acknowledge();
        }
    }

    /// Moves a batch towards the engines; whether they take more.
    fn forward(&mut self, frames: &mut Vec<Message>) -> zmq::Result<bool> {
        for _ in 0..BATCH {
            if !self.engines.get_events()?.contains(zmq::POLLOUT) {
                return Ok(false);
            }
            if let Some(mut again) = self.again.pop_front() {
                self.pass(&mut again)?;
            } else if let Some(mut part) = self.next_part() {
                self.pass(&mut part)?;
            } else if socket::recv(&self.clients, frames)? {
                match self.judge(frames) {
                    Verdict::Pass => self.pass(frames)?,
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

    fn pass(&mut self, frames: &mut Vec<Message>) -> zmq::Result<()> {
        self.relayed += 1;
        socket::send(&self.engines, frames.drain(..))
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
                Ok(count) if count > 0 => Verdict::Array(count),
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

    /// A reply goes to its client; a task that is given back goes out again.
    fn engine_message(&mut self, frames: &mut Vec<Message>) {
        if frames.first().is_some_and(|frame| frame[..] == *DELIMITER) {
            return self.given_back(std::mem::take(frames));
        }
        if !self.announced.is_empty() && frames.len() > at::METADATA {
            self.note_reply(frames);
        }
        if let Err(refused) = self.outbox.send(&self.clients, std::mem::take(frames)) {
            tracing::debug!(%refused, "a reply has no client any more");
        }
    }

    /// Takes what is answered out of the announced.
    fn note_reply(&mut self, frames: &[Message]) {
        let session = self.session.clone();
        let Ok(parent) = session.packer.unpack::<ParentRef<'_>>(&frames[at::PARENT]) else {
            return;
        };
        let mut answered = self.announced.remove(&*parent.msg_id);
        if answered.is_none()
            && self.arrays > 0
            && let Ok(ReplyMetadata {
                range: Some((lo, hi)),
                ..
            }) = session.packer.unpack(&frames[at::METADATA])
        {
            let of_array = |id: &str| {
                id.rsplit_once(':')
                    .is_some_and(|(msg_id, _)| msg_id == parent.msg_id)
            };
            let found = self.announced.iter_mut().find(|(id, task)| {
                of_array(id)
                    && task
                        .open
                        .iter()
                        .any(|open| open.start <= lo && hi <= open.end)
            });
            if let Some((id, task)) = found {
                let rest = |open: &Range<u64>| {
                    [
                        open.start..lo.clamp(open.start, open.end),
                        hi.clamp(open.start, open.end)..open.end,
                    ]
                };
                task.open = task
                    .open
                    .iter()
                    .flat_map(rest)
                    .filter(|open| !open.is_empty())
                    .collect();
                if task.open.is_empty() {
                    let id = id.clone();
                    answered = self.announced.remove(&id);
                    self.arrays -= 1;
                }
            }
        }
        if let Some(answered) = answered
            && let Some(completed) = self.known.get_mut(&answered.engine)
        {
            *completed += 1;
        }
    }

    fn given_back(&mut self, frames: Vec<Message>) {
        let mut envelope = match Envelope::parse(frames) {
            Ok(envelope) => envelope,
            Err(error) => return self.junk.refuse("not a message", &error),
        };
        if let Err(error) = self.session.verify(&envelope) {
            return self.junk.refuse("signature", &error);
        }
        let session = self.session.clone();
        match session.packer.unpack::<HeaderRef<'_>>(envelope.header()) {
            Ok(header) if header.msg_type == types::GIVEN_BACK => {}
            Ok(header) => return self.junk.refuse("message type", &header.msg_type),
            Err(error) => return self.junk.refuse("header", &error),
        }
        if let Ok(parent) = session
            .packer
            .unpack::<ParentRef<'_>>(envelope.parent_header())
        {
            let metadata = session
                .packer
                .unpack::<ReplyMetadata<'_>>(envelope.metadata())
                .unwrap_or_default();
            let id = match metadata.range {
                Some((lo, hi)) => format!("{}:{lo}-{hi}", parent.msg_id),
                None => parent.msg_id.into_owned(),
            };
            if let Some(task) = self.announced.remove(&id) {
                self.arrays -= usize::from(!task.open.is_empty());
            }
        }
        let request = envelope.take_buffers();
        if request.len() < at::BUFFERS {
            return self.junk.refuse("given_back", &"without the task's frames");
        }
        self.again.push_back(request);
    }

    fn command(&mut self, command: Command) {
        match command {
            Command::EngineJoined(profile) => {
                self.known.entry(profile.uuid.clone()).or_insert(0);
            }
            Command::EngineLeft { uuid, departure: Departure::Clean } => {
                self.known.remove(&uuid);
                self.leaving.push_back((Instant::now() + LEAVING, uuid, Departure::Clean));
            }
            Command::EngineLeft { uuid, departure } => self.engine_left(&uuid, &departure),
            Command::Received { uuid, tasks } => {
                for (client, msg_id, msg_type) in tasks {
                    let open = range_of(&msg_id).map(|(_, range)| range);
                    self.arrays += usize::from(open.is_some());
                    let open = open.into_iter().collect();
                    self.announced.insert(msg_id, Announced { engine: uuid.clone(), client, msg_type, open });
                }
            }
            Command::QueueStatus { answer, .. } => answer.send(TaskQueues {
                engines: self
                    .known
                    .iter()
                    .map(|(uuid, completed)| EngineTasks {
                        uuid: uuid.clone(),
                        running: self.announced.values().filter(|task| task.engine == *uuid).count() as u64,
                        completed: *completed,
                        ..EngineTasks::default()
                    })
                    .collect(),
                ..TaskQueues::default()
            }),
            Command::TaskStates { ids, answer } => answer.send(
                ids.iter()
                    .map(|id| if self.announced.contains_key(id) { TaskState::Running } else { TaskState::Unknown })
                    .collect(),
            ),
            Command::Totals { answer, .. } => {
                answer.send(TaskTotals { running: self.announced.len() as u64, ..TaskTotals::default() });
            }
            Command::Unfinished { answer, .. } => answer.send(self.announced.keys().cloned().collect()),
            Command::Abort { selection, answer, .. } => answer.send(self.abort(selection)),
            Command::Explain { id, answer } => answer.send(Explanation {
                state: if self.announced.contains_key(&id) { TaskState::Running } else { TaskState::Unknown },
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
            Command::ClientGone { .. } | Command::Shutdown => {}
        }
    }

    /// What the engine had announced and not answered is lost, and its clients are told.
    fn engine_left(&mut self, uuid: &str, departure: &Departure) {
        self.known.remove(uuid);
        let why = match departure {
            Departure::Clean => "the engine left",
            Departure::Silent => "its heartbeat stopped",
            Departure::Died { reason, .. } => reason,
        };
        let lost: Vec<String> = self
            .announced
            .iter()
            .filter(|(_, task)| task.engine == uuid)
            .map(|(id, _)| id.clone())
            .collect();
        for id in lost {
            let Some(task) = self.announced.remove(&id) else {
                continue;
            };
            let content = ErrorContent::new(
                "EngineError",
                format!("engine {uuid} is gone while it had this task: {why}"),
            );
            let reply_type = super::task::reply_type(&task.msg_type);
            match range_of(&id) {
                None => {
                    let parent = self
                        .session
                        .pack(&json!({"msg_id": id, "msg_type": task.msg_type}));
                    self.answer(&task.client, &parent, reply_type, &content, None);
                }
                Some((msg_id, _)) => {
                    self.arrays -= 1;
                    let parent = self
                        .session
                        .pack(&json!({"msg_id": msg_id, "msg_type": task.msg_type}));
                    for open in task.open {
                        self.answer(&task.client, &parent, reply_type, &content, Some(open));
                    }
                }
            }
        }
    }

    /// Only what engines have announced can be found; the hub tells them to stop it.
    fn abort(&mut self, selection: Selection) -> Aborted {
        let mut aborted = Aborted::default();
        let ids = match selection {
            Selection::Ids(ids) => ids,
            Selection::All | Selection::Session(_) => self.announced.keys().cloned().collect(),
        };
        for id in ids {
            match self.announced.get(&id) {
                None => aborted.unknown.push(id),
                Some(task) => match aborted
                    .running
                    .iter_mut()
                    .find(|(uuid, _)| *uuid == task.engine)
                {
                    Some((_, ids)) => ids.push(id),
                    None => aborted.running.push((task.engine.clone(), vec![id])),
                },
            }
        }
        aborted
    }
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

/// Reads `MSGID:LO-HI`.
fn range_of(id: &str) -> Option<(&str, Range<u64>)> {
    let (msg_id, range) = id.rsplit_once(':')?;
    let (lo, hi) = range.split_once('-')?;
    Some((msg_id, lo.parse().ok()?..hi.parse().ok()?))
}
