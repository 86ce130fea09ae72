//! One logical engine: the tasks it holds, the one it runs, and the values it keeps.

use std::{
    collections::{HashSet, VecDeque},
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering},
    },
};

use ipbroker_protocol::{
    array::{member_id, split_id},
    envelope::{Envelope, copies},
    message::{Held, Waiting, types},
    session::{Empty, Session},
    socket::routing,
    wake::{self, Wake, Waker},
    zmq::Message,
};
use parking_lot::{Condvar, Mutex, RwLock};
use serde::Serialize;
use serde_json::json;

use crate::{
    cancel::CancelToken,
    executor::{Gathered, Interpreter},
    function::Values,
    job::{Running, Stop, Warden},
    kernel::{Line, Slot},
    process::{Channel, Outgoing},
    task::{Kind, Task, Via},
    written::Written,
};

/// Ids that were aborted before their task came are remembered up to this number: most go to other engines.
const REMEMBERED: usize = 10_000;

/// One logical engine, shared between the thread that serves the sockets and the one that works.
#[derive(Debug)]
pub(crate) struct LogicalEngine {
    /// Its place in the process.
    pub(crate) index: usize,
    /// Its uuid: its identity on all sockets.
    pub(crate) uuid: String,
    /// Its id; the hub gives it.
    pub(crate) id: AtomicU32,
    /// What it runs.
    pub(crate) running: Arc<Running>,
    /// What it holds for clients.
    pub(crate) values: Values,
    /// Its Python interpreter, once a call has come.
    pub(crate) python: Mutex<Option<Interpreter>>,
    /// Its Jupyter kernel.
    pub(crate) kernel: Mutex<Slot>,
    /// What its task has written so far.
    pub(crate) written: Mutex<Written>,
    /// The way to that while it works.
    pub(crate) line: Mutex<Option<Line>>,
    /// What the ranges at work have given and is not sent yet, of the deepest last.
    pub(crate) gathered: Mutex<Vec<Arc<Mutex<Gathered>>>>,
    /// The priorities of its calls that wait for other tasks, the deepest last.
    waits: Mutex<Vec<i32>>,
    /// Rung when a task comes while a call waits.
    meanwhile: OnceLock<(Waker, Wake)>,
    /// How many tasks it has taken.
    taken: AtomicU64,
    /// Why it cannot go on, once that is so.
    given_up: OnceLock<(String, bool)>,
    session: RwLock<Arc<Session>>,
    /// Ranges are given back with their request.
    whole: AtomicBool,
    queue: Mutex<Queue>,
    bell: Condvar,
}

#[derive(Debug, Default)]
struct Queue {
    waiting: VecDeque<Task>,
    current: Option<Current>,
    /// Tasks whose calls wait, while others are worked on.
    outer: Vec<Current>,
    aborted: Aborted,
    /// Why the engine leaves, once it does.
    closed: Option<String>,
    worker: bool,
    parked: bool,
}

/// The task at work.
#[derive(Debug)]
struct Current {
    msg_id: String,
    via: Via,
    /// Its first member here.
    start: u64,
    /// Members not yet claimed: `next..end`.
    next: u64,
    end: u64,
    /// Members `running.0..running.1` are claimed and not answered.
    running: (u64, u64),
    array: bool,
    aborted: bool,
    /// The member at work and its generation.
    member: Option<(u64, u64)>,
    /// The request's frames, where ranges are given back with them.
    frames: Vec<Message>,
}

/// Ids to be answered `aborted` when they come, the oldest forgotten first.
#[derive(Debug, Default)]
struct Aborted {
    ids: HashSet<String>,
    order: VecDeque<String>,
}

impl Aborted {
    fn insert(&mut self, id: &str) {
        if self.ids.insert(id.to_owned()) {
            self.order.push_back(id.to_owned());
            if self.order.len() > REMEMBERED
                && let Some(oldest) = self.order.pop_front()
            {
                self.ids.remove(&oldest);
            }
        }
    }

    /// Whether this id was aborted; a task meets its own only once, an array with each of its ranges.
    fn meets(&mut self, id: &str, keep: bool) -> bool {
        if keep {
            self.ids.contains(id)
        } else {
            !self.ids.is_empty() && self.ids.remove(id)
        }
    }
}

/// What an engine holds: running, queued.
pub(crate) type Holding = (Vec<Held>, Vec<Held>);

/// What is given back: a whole task, or members of the one at work.
#[derive(Debug)]
pub(crate) enum Returned {
    /// Never looked at.
    Task(Box<Task>),
    /// The end of a range: its id and `lo..hi`, and, for a scheduler that keeps none, the request's frames from the client's
    /// identity on.
    Range(String, u64, u64, Vec<Message>),
}

/// How a claim for the next members turned out.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Claim {
    /// These are to be run.
    Run(u64, u64),
    /// These were aborted.
    Aborted(u64, u64),
    /// None is left.
    Done,
}

impl LogicalEngine {
    /// An engine without tasks.
    pub(crate) fn new(index: usize, uuid: String, session: Arc<Session>) -> Self {
        Self {
            index,
            uuid,
            id: AtomicU32::new(u32::MAX),
            running: Arc::default(),
            values: Values::default(),
            python: Mutex::default(),
            kernel: Mutex::default(),
            written: Mutex::default(),
            line: Mutex::default(),
            gathered: Mutex::default(),
            waits: Mutex::default(),
            meanwhile: OnceLock::new(),
            taken: AtomicU64::new(0),
            given_up: OnceLock::new(),
            session: RwLock::new(session),
            whole: AtomicBool::new(false),
            queue: Mutex::default(),
            bell: Condvar::new(),
        }
    }

    /// A message of this engine; nobody but its receiver waits for it.
    pub(crate) fn outgoing(&self, channel: Channel, message: Envelope) -> Outgoing {
        Outgoing {
            index: self.index,
            channel,
            frames: message.into_frames(),
            answers: None,
        }
    }

    /// The answer to a request.
    pub(crate) fn answer(
        &self,
        channel: Channel,
        request: &Envelope,
        msg_type: &str,
        metadata: &impl Serialize,
        content: &impl Serialize,
        buffers: Vec<Message>,
    ) -> Outgoing {
        let session = self.session();
        let message = session.message(
            copies(request.identities()),
            &session.header(msg_type),
            Some(request.header()),
            metadata,
            content,
            buffers,
        );
        self.outgoing(channel, message)
    }

    /// A message for the scheduler, beside the replies and behind them.
    pub(crate) fn to_scheduler(
        &self,
        msg_type: &str,
        parent: Option<&[u8]>,
        metadata: &impl Serialize,
        content: &impl Serialize,
        buffers: Vec<Message>,
    ) -> Outgoing {
        let session = self.session();
        let message = session.message(
            vec![Message::from(routing::TASK)],
            &session.header(msg_type),
            parent,
            metadata,
            content,
            buffers,
        );
        self.outgoing(Channel::Shell, message)
    }

    /// A message about a request that everybody can hear, by IOPub.
    pub(crate) fn published(
        &self,
        topic: &str,
        msg_type: &str,
        request: &Envelope,
        metadata: &impl Serialize,
        content: &impl Serialize,
    ) -> Outgoing {
        let session = self.session();
        let topic = format!("engine.{}.{topic}", self.id());
        let message = session.message(
            vec![Message::from(topic.as_str())],
            &session.header(msg_type),
            Some(request.header()),
            metadata,
            content,
            Vec::new(),
        );
        self.outgoing(Channel::IoPub, message)
    }

    /// Tells that a request is done with: Python clients wait for that as they do for its reply.
    pub(crate) fn idle(&self, request: &Envelope) -> Outgoing {
        let metadata = json!({"engine": self.uuid});
        let content = json!({"execution_state": "idle"});
        self.published("status", "status", request, &metadata, &content)
    }

    /// How its messages are packed and signed.
    pub(crate) fn session(&self) -> Arc<Session> {
        self.session.read().clone()
    }

    /// A controller with another key has come.
    pub(crate) fn set_session(&self, session: Arc<Session>) {
        *self.session.write() = session;
    }

    /// Whether ranges are given back with their request, as a scheduler needs that keeps none.
    pub(crate) fn keep_whole(&self, whole: bool) {
        self.whole.store(whole, Ordering::Relaxed);
    }

    /// Its id.
    pub(crate) fn id(&self) -> u32 {
        self.id.load(Ordering::Relaxed)
    }

    /// The way to its kernel, if it has one.
    pub(crate) fn line(&self) -> Option<Line> {
        self.line.lock().clone()
    }

    /// Ends its interpreter and its kernel.
    pub(crate) fn end_interpreters(&self) {
        drop(self.python.lock().take());
        *self.line.lock() = None;
        *self.kernel.lock() = Slot::Empty;
    }

    /// It cannot go on, and is to leave; `for_good`: nor could one that came in its place.
    pub(crate) fn give_up(&self, why: String, for_good: bool) {
        let _ = self.given_up.set((why, for_good));
    }

    /// Why it is to leave, if it has given up, and whether that is for good.
    pub(crate) fn given_up(&self) -> Option<&(String, bool)> {
        self.given_up.get()
    }

    /// An error has ended what was queued behind it for the kernel: code that was sent to just this engine is aborted.
    pub(crate) fn abort_code(&self) {
        let mut queue = self.queue.lock();
        let Queue {
            waiting, aborted, ..
        } = &mut *queue;
        for task in waiting
            .iter()
            .filter(|task| task.kind == Kind::Execute && task.via == Via::Direct)
        {
            aborted.insert(&task.msg_id);
        }
    }

    /// The id of the task at work; of an array, of the member.
    pub(crate) fn at_work(&self) -> Option<String> {
        let queue = self.queue.lock();
        queue.current.as_ref().map(Current::id)
    }

    /// Whether it works on this task, or one of its calls waits meanwhile.
    pub(crate) fn works_on(&self, id: &str) -> bool {
        let queue = self.queue.lock();
        let mut begun = queue.current.iter().chain(&queue.outer);
        begun.any(|current| current.id() == id)
    }

    /// Whether it leaves.
    pub(crate) fn closing(&self) -> bool {
        self.queue.lock().closed.is_some()
    }

    /// Whether a worker thread has to be started for it; only the first who asks is told so.
    pub(crate) fn hire(&self) -> bool {
        !std::mem::replace(&mut self.queue.lock().worker, true)
    }

    /// How many tasks it has taken.
    pub(crate) fn taken(&self) -> u64 {
        self.taken.load(Ordering::Relaxed)
    }

    /// Whether nothing waits and nothing runs.
    pub(crate) fn is_idle(&self) -> bool {
        let queue = self.queue.lock();
        queue.current.is_none() && queue.waiting.is_empty()
    }

    /// Whether a task waits.
    pub(crate) fn has_more(&self) -> bool {
        !self.queue.lock().waiting.is_empty()
    }

    /// Makes `task` the one at work if nothing waits and nothing runs.
    pub(crate) fn begin_now(&self, task: &Task) -> bool {
        let mut queue = self.queue.lock();
        let idle = queue.current.is_none() && queue.waiting.is_empty() && queue.closed.is_none();
        if idle {
            self.taken.fetch_add(1, Ordering::Relaxed);
            queue.current = Some(self.current(task));
        }
        idle
    }

    fn current(&self, task: &Task) -> Current {
        let mut current = Current::of(task);
        if current.array && current.via == Via::Task && self.whole.load(Ordering::Relaxed) {
            let frames = task.envelope.frames().iter().skip(1);
            current.frames = frames.map(|frame| Message::from(&frame[..])).collect();
        }
        current
    }

    /// Puts a task at the end of the queue. True when a worker thread has to be started for it.
    pub(crate) fn push(&self, task: Task) -> bool {
        let mut queue = self.queue.lock();
        queue.waiting.push_back(task);
        self.taken.fetch_add(1, Ordering::Relaxed);
        if queue.parked {
            self.bell.notify_one();
        }
        self.wake_waiting();
        !std::mem::replace(&mut queue.worker, true)
    }

    /// Waits for the next task and makes it the one at work. `None`: the engine leaves.
    pub(crate) fn next(&self) -> Option<Task> {
        let mut queue = self.queue.lock();
        loop {
            if queue.closed.is_some() {
                return None;
            }
            if let Some(task) = queue.waiting.pop_front() {
                queue.current = Some(self.current(&task));
                return Some(task);
            }
            queue.parked = true;
            self.bell.wait(&mut queue);
            queue.parked = false;
        }
    }

    /// The next task, if there is one, for an engine whose call waits: it becomes the one at work until it is
    /// [`done`](Self::done). Only one that is deeper than that call, by its priority: what is not may itself come to wait for
    /// something that waits below. `kernels`: what its kernel is asked for, too.
    pub(crate) fn next_meanwhile(&self, kernels: bool) -> Option<Task> {
        let floor = self.waits.lock().last().copied()?;
        let mut queue = self.queue.lock();
        if queue.closed.is_some() {
            return None;
        }
        // On the pure path tasks come to whoever has the turn.
        let pure = self.whole.load(Ordering::Relaxed);
        let deeper = |task: &Task| {
            (kernels || !task.kind.is_for_kernel())
                && (pure || task.wants.priority.unwrap_or_default() > floor)
        };
        let at = queue.waiting.iter().position(deeper)?;
        let task = queue.waiting.remove(at)?;
        let current = self.current(&task);
        let outer = queue.current.replace(current);
        queue.outer.extend(outer);
        Some(task)
    }

    /// The task at work is over.
    pub(crate) fn done(&self) {
        let mut queue = self.queue.lock();
        queue.current = queue.outer.pop();
    }

    /// A call of this priority begins to wait for other tasks. What to tell the scheduler, where one listens.
    pub(crate) fn wait(&self, priority: i32) -> Option<Outgoing> {
        self.waits.lock().push(priority);
        self.waits_notice()
    }

    /// The call that began to wait last goes on.
    pub(crate) fn go_on(&self) -> Option<Outgoing> {
        self.waits.lock().pop();
        self.waits_notice()
    }

    /// How many calls wait, for the scheduler; none on the pure path, where nobody would understand it.
    pub(crate) fn waits_notice(&self) -> Option<Outgoing> {
        if self.whole.load(Ordering::Relaxed) {
            return None;
        }
        let content = {
            let floors = self.waits.lock();
            Waiting {
                uuid: self.uuid.clone(),
                waits: floors.len() as u32,
                floor: floors.last().copied().unwrap_or_default(),
            }
        };
        let (msg_type, nothing) = (types::WAITS_NOTICE, Empty {});
        Some(self.to_scheduler(msg_type, None, &nothing, &content, Vec::new()))
    }

    /// Whether a call waits.
    pub(crate) fn waits(&self) -> bool {
        !self.waits.lock().is_empty()
    }

    /// What is rung when a task comes while a call waits.
    ///
    /// # Errors
    /// When the process has no descriptors left.
    pub(crate) fn meanwhile(&self) -> std::io::Result<&Wake> {
        if self.meanwhile.get().is_none() {
            let _ = self.meanwhile.set(wake::pair()?);
        }
        let (_, wake) = self.meanwhile.get().expect("set above");
        Ok(wake)
    }

    fn wake_waiting(&self) {
        if let (Some((waker, _)), true) = (self.meanwhile.get(), self.waits()) {
            waker.wake();
        }
    }

    /// Takes up to `count` of the next members of the task at work.
    pub(crate) fn claim(&self, count: u64) -> Claim {
        let mut queue = self.queue.lock();
        let Queue {
            current: Some(current),
            aborted,
            ..
        } = &mut *queue
        else {
            return Claim::Done;
        };
        if current.next >= current.end {
            return Claim::Done;
        }
        let lo = current.next;
        let mut hi = current.end.min(lo.saturating_add(count));
        current.aborted = current.aborted || aborted.meets(&current.msg_id, current.array);
        let verdict = if current.aborted {
            hi = current.end;
            Claim::Aborted(lo, hi)
        } else if current.array && !aborted.ids.is_empty() {
            // Look member by member: one of them may be listed.
            hi = lo + 1;
            let id = member_id(&current.msg_id, lo);
            if aborted.meets(&id, false) {
                Claim::Aborted(lo, hi)
            } else {
                Claim::Run(lo, hi)
            }
        } else {
            Claim::Run(lo, hi)
        };
        current.next = hi;
        current.running.1 = hi;
        verdict
    }

    /// A member starts: its generation and token, unless it was told to stop since it was claimed.
    pub(crate) fn begin_member(&self, index: u64) -> Result<(u64, CancelToken), Stop> {
        let mut queue = self.queue.lock();
        if let Some(why) = &queue.closed {
            return Err(Stop::EngineLeaves(why.clone()));
        }
        let Queue {
            current, aborted, ..
        } = &mut *queue;
        if let Some(current) = current {
            let listed = current.array
                && !aborted.ids.is_empty()
                && aborted.meets(&member_id(&current.msg_id, index), false);
            if current.aborted || listed {
                return Err(Stop::Aborted);
            }
        }
        // Under the lock: whoever aborts from now on finds the generation.
        let (generation, token) = self.running.begin();
        if let Some(current) = current {
            current.member = Some((index, generation));
        }
        Ok((generation, token))
    }

    /// Members `lo..hi`, the first of those that run, are answered.
    pub(crate) fn answered(&self, msg_id: &str, lo: u64, hi: u64) {
        let mut queue = self.queue.lock();
        let Queue { current, outer, .. } = &mut *queue;
        let mut at_work = current.iter_mut().chain(outer);
        let range = at_work.find(|range| range.msg_id == msg_id && range.running.0 == lo);
        if let Some(range) = range {
            range.running.0 = hi;
        }
    }

    /// Aborts tasks or members: tasks that wait come out, to be answered; members of arrays are when their turn comes; what
    /// runs is stopped if `kill`.
    #[must_use]
    pub(crate) fn abort(&self, warden: &Warden, ids: Option<&[String]>, kill: bool) -> Vec<Task> {
        let mut queue = self.queue.lock();
        let wanted: Option<HashSet<&str>> = ids.map(|ids| ids.iter().map(String::as_str).collect());
        let named = |task: &Task| {
            wanted
                .as_ref()
                .is_none_or(|ids| ids.contains(&*task.msg_id))
        };
        let (out, waiting): (VecDeque<Task>, VecDeque<Task>) = std::mem::take(&mut queue.waiting)
            .into_iter()
            .partition(|task| task.wants.range.is_none() && named(task));
        queue.waiting = waiting;
        let Queue {
            current,
            outer,
            aborted,
            waiting,
            ..
        } = &mut *queue;
        let at_work = current.iter_mut().chain(outer);
        let Some(ids) = ids else {
            for task in waiting.iter() {
                aborted.insert(&task.msg_id);
            }
            for current in at_work {
                current.abort(kill, &self.running, warden);
            }
            return out.into();
        };
        let mut at_work: Vec<&mut Current> = at_work.collect();
        let out_already: HashSet<&str> = out.iter().map(|task| task.msg_id.as_str()).collect();
        for id in ids.iter().filter(|id| !out_already.contains(id.as_str())) {
            let (msg_id, index) = split_id(id);
            let whole = at_work.iter_mut().find(|current| current.msg_id == *id);
            if let Some(current) = whole {
                current.abort(kill, &self.running, warden);
                if current.array {
                    // Other ranges of it may wait here, or come.
                    aborted.insert(id);
                }
                continue;
            }
            let member = at_work.iter().find(|current| {
                current.msg_id == msg_id
                    && index.is_some_and(|index| (current.start..current.next).contains(&index))
            });
            match member {
                // Claimed, and perhaps not begun.
                Some(current) if current.member.map(|(member, _)| member) != index => {
                    aborted.insert(id);
                }
                Some(current) if kill => current.stop(&self.running, warden),
                Some(_) => {}
                None => aborted.insert(id),
            }
        }
        out.into()
    }

    /// Sends a signal to what runs; false when nothing does.
    pub(crate) fn signal(&self, signal: rustix::process::Signal) -> bool {
        self.running
            .generation()
            .is_some_and(|generation| self.running.signal(generation, signal))
    }

    /// Takes back up to `count` unstarted members that the scheduler gave, the last first.
    pub(crate) fn give_back(&self, count: u64) -> Vec<Returned> {
        let mut queue = self.queue.lock();
        let mut returned = Vec::new();
        let mut left = count;
        let mut at = queue.waiting.len();
        while left > 0 && at > 0 {
            at -= 1;
            if queue.waiting[at].via != Via::Task {
                continue;
            }
            let members = queue.waiting[at].members();
            match &mut queue.waiting[at].wants.range {
                Some((_, hi)) if members > left => {
                    let end = std::mem::replace(hi, *hi - left);
                    let from = *hi;
                    let id = queue.waiting[at].msg_id.clone();
                    returned.push(Returned::Range(id, from, end, Vec::new()));
                    left = 0;
                }
                _ => {
                    left -= members.min(left);
                    returned.extend(
                        queue
                            .waiting
                            .remove(at)
                            .map(|task| Returned::Task(Box::new(task))),
                    );
                }
            }
        }
        if let (Some(current), true) = (queue.current.as_mut(), left > 0) {
            returned.extend(current.give_back(left));
        }
        returned
    }

    /// Takes back what is unstarted of these tasks and ranges.
    pub(crate) fn give_back_these(&self, tasks: &[Held]) -> Vec<Returned> {
        let mut queue = self.queue.lock();
        let mut returned = Vec::new();
        for (id, lo, hi) in tasks {
            let mut at = 0;
            while at < queue.waiting.len() {
                let task = &mut queue.waiting[at];
                let (from, to) = task.wants.range.unwrap_or((0, 1));
                let (cut, end) = (from.max(*lo), to.min(*hi));
                at += 1;
                if task.msg_id != *id || task.via != Via::Task || cut >= end || end < to {
                    continue;
                }
                if cut == from {
                    at -= 1;
                    returned.extend(
                        queue
                            .waiting
                            .remove(at)
                            .map(|task| Returned::Task(Box::new(task))),
                    );
                } else {
                    task.wants.range = Some((from, cut));
                    returned.push(Returned::Range(id.clone(), cut, end, Vec::new()));
                }
            }
            if let Some(current) = queue
                .current
                .as_mut()
                .filter(|current| current.msg_id == *id && current.end <= *hi)
            {
                let count = current.end.saturating_sub(*lo);
                returned.extend(current.give_back(count));
            }
        }
        returned
    }

    /// What it holds now.
    pub(crate) fn holding(&self) -> Holding {
        let queue = self.queue.lock();
        let mut running = Vec::new();
        let mut waiting: Vec<_> = queue
            .waiting
            .iter()
            .filter(|task| task.via == Via::Task)
            .map(Task::held)
            .collect();
        let at_work = queue.current.iter().chain(&queue.outer);
        for current in at_work.filter(|current| current.via == Via::Task) {
            running.push((current.msg_id.clone(), current.running.0, current.running.1));
            if current.next < current.end {
                waiting.push((current.msg_id.clone(), current.next, current.end));
            }
        }
        (running, waiting)
    }

    /// Forgets what waits: its controller is gone for good, and nobody knows these tasks any more.
    pub(crate) fn forget_waiting(&self) -> usize {
        let mut queue = self.queue.lock();
        let before = queue.waiting.len();
        queue.waiting.clear();
        let Queue { current, outer, .. } = &mut *queue;
        for current in current.iter_mut().chain(outer) {
            current.end = current.next;
        }
        before
    }

    /// The engine is to leave: what the scheduler has given it and it has not begun comes out.
    pub(crate) fn drain(&self) -> Vec<Returned> {
        self.queue
            .lock()
            .give_back_all(|task| task.via == Via::Task)
    }

    /// The engine leaves: what waits comes out, what runs is stopped, the worker ends.
    pub(crate) fn close(&self, warden: &Warden, why: &str) -> Vec<Returned> {
        let mut queue = self.queue.lock();
        queue.closed = Some(why.to_owned());
        let returned = queue.give_back_all(|_| true);
        let Queue { current, outer, .. } = &mut *queue;
        for current in current.iter_mut().chain(outer) {
            current.end = current.next;
        }
        self.bell.notify_all();
        drop(queue);
        self.wake_waiting();
        for generation in self.running.generations() {
            warden.stop(
                &self.running,
                generation,
                Stop::EngineLeaves(why.to_owned()),
            );
        }
        returned
    }
}

impl Queue {
    /// Takes out these tasks, and what is not begun of ranges.
    fn give_back_all(&mut self, which: impl Fn(&Task) -> bool) -> Vec<Returned> {
        let waiting = std::mem::take(&mut self.waiting).into_iter();
        let (out, stay): (VecDeque<Task>, VecDeque<Task>) = waiting.partition(which);
        self.waiting = stay;
        let tasks = out.into_iter().map(|task| Returned::Task(Box::new(task)));
        let begun = self.current.iter_mut().chain(&mut self.outer);
        let ranges = begun.filter_map(|current| current.give_back(u64::MAX));
        tasks.chain(ranges).collect()
    }
}

impl Current {
    /// Its id; of an array, that of the member at work.
    fn id(&self) -> String {
        match self.array {
            true => member_id(
                &self.msg_id,
                self.member.map_or(self.running.0, |(index, _)| index),
            ),
            false => self.msg_id.clone(),
        }
    }

    fn of(task: &Task) -> Self {
        let (lo, hi) = task.wants.range.unwrap_or((0, 1));
        Self {
            msg_id: task.msg_id.clone(),
            via: task.via,
            start: lo,
            next: lo,
            end: hi,
            running: (lo, lo),
            array: task.wants.range.is_some(),
            aborted: false,
            member: None,
            frames: Vec::new(),
        }
    }

    /// None of its members is begun any more; the one at work is stopped if `kill`.
    fn abort(&mut self, kill: bool, running: &Arc<Running>, warden: &Warden) {
        self.aborted |= self.array || kill;
        if kill {
            self.stop(running, warden);
        }
    }

    fn stop(&self, running: &Arc<Running>, warden: &Warden) {
        if let Some((_, generation)) = self.member {
            warden.stop(running, generation, Stop::Aborted);
        }
    }

    fn give_back(&mut self, count: u64) -> Option<Returned> {
        let lo = self.next.max(self.end.saturating_sub(count));
        if !self.array || self.via != Via::Task || lo >= self.end {
            return None;
        }
        let hi = std::mem::replace(&mut self.end, lo);
        let frames = self.frames.iter().map(|frame| Message::from(&frame[..]));
        Some(Returned::Range(
            self.msg_id.clone(),
            lo,
            hi,
            frames.collect(),
        ))
    }
}

#[cfg(test)]
mod tests;
