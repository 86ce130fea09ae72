//! What members of an array have given, until it is sent: by their worker when it is enough or they are over, and by a
//! thread that looks after a while when a member takes its time, so that none waits for those behind it.

use std::{
    io,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle, Thread},
    time::{Duration, Instant},
};

use ipbroker_protocol::{
    message::ErrorContent,
    session::{Packer, Session},
    spawn,
};

use super::{
    Verdict,
    array::Outcomes,
    worker::{Clock, Member, Reply, Status},
};
use crate::{
    logical_engine::LogicalEngine,
    process::{Outgoing, Process},
    task::Task,
};

/// How long outcomes of an array wait for more of them.
pub(super) const FLUSH: Duration = Duration::from_millis(10);

/// … if each is the outcome of a call that somebody waits for by itself.
const FLUSH_EACH: Duration = Duration::from_millis(5);

/// Bytes of outcomes that do not wait.
const FLUSH_BYTES: usize = 4 << 20;
/// … or of so much that they have printed, which is not to make it too large for the controller.
const FLUSH_PRINTED: usize = 256 << 10;

/// Outcomes of a range that are to be sent together.
#[derive(Debug)]
pub(crate) struct Gathered {
    task: Arc<Task>,
    session: Arc<Session>,
    outcomes: Outcomes,
    told: Status,
    /// Bytes that they have printed.
    printed: usize,
    clock: Clock,
}

impl Gathered {
    pub(super) fn new(process: &Process, task: Arc<Task>, session: Arc<Session>) -> Self {
        let (lo, _) = task.wants.range.unwrap_or_default();
        Self {
            task,
            session,
            outcomes: Outcomes::new(lo),
            told: Status::default(),
            printed: 0,
            clock: Clock::now(process),
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.outcomes.count == 0
    }

    /// Whether it has waited long enough, or is enough.
    pub(super) fn is_due(&self) -> bool {
        let flush = match self.task.wants.each {
            true => FLUSH_EACH,
            false => FLUSH,
        };
        !self.is_empty()
            && (self.clock.from.elapsed() >= flush
                || self.outcomes.bytes() >= FLUSH_BYTES
                || self.printed >= FLUSH_PRINTED)
    }

    /// Adds the outcome of the next member. One too large for the table of offsets is told as an error in its place.
    pub(super) fn add(&mut self, value: &[u8], verdict: Verdict) {
        if let Err(error) = self.outcomes.push(value, verdict) {
            let error = ErrorContent::new("ValueError", error.to_string());
            let _ = self
                .outcomes
                .push(&Packer::Msgpack.pack(&error), Verdict::Failed);
        }
        if self.task.wants.each {
            self.told.members.push(Member::default());
        }
    }

    /// When the last member ran, if each is told of by itself.
    pub(super) fn tell_when(&mut self, began: Instant, ended: Instant) {
        let seconds = (ended - began).as_secs_f64();
        if let Some(member) = self.told.members.last_mut() {
            // What was sent while it ran has begun after it.
            member.0 = (ended - self.clock.from).as_secs_f64() - seconds;
            member.1 = seconds;
        }
    }

    /// What it has printed.
    pub(super) fn tell_printed(&mut self, texts: [Option<String>; 2]) {
        self.printed += texts.iter().flatten().map(String::len).sum::<usize>();
        let [stdout, stderr] = texts;
        if let Some(member) = self.told.members.last_mut() {
            (member.2, member.3) = (stdout, stderr);
        } else if stdout.is_some() || stderr.is_some() {
            let index = self.outcomes.lo + self.outcomes.count - 1;
            self.told.printed.push((index, stdout, stderr));
        }
    }

    /// Sends what there is.
    pub(super) fn send(
        &mut self,
        process: &Process,
        engine: &LogicalEngine,
        send: &mut dyn FnMut(Outgoing),
    ) {
        let (lo, hi) = (self.outcomes.lo, self.outcomes.lo + self.outcomes.count);
        let outcomes = std::mem::replace(&mut self.outcomes, Outcomes::new(hi));
        let reply = Reply {
            process,
            engine,
            session: &self.session,
            task: &self.task,
        };
        send(reply.range(outcomes, std::mem::take(&mut self.told), self.clock));
        // Not before: who asks in between what the engine holds is to hear of them.
        engine.answered(&self.task.msg_id, lo, hi);
        self.printed = 0;
        self.clock = Clock::now(process);
    }
}

/// The thread that sends what is gathered while a member takes its time. It sleeps as long as nothing is.
#[derive(Debug, Default)]
pub(crate) struct Flusher {
    armed: AtomicBool,
    stopped: AtomicBool,
    thread: OnceLock<Thread>,
}

/// It runs as long as this.
pub(crate) struct Flushing(Arc<Process>, Option<JoinHandle<()>>);

impl Flusher {
    /// Something has been gathered, and its worker goes on.
    pub(super) fn arm(&self) {
        if !self.armed.load(Ordering::Relaxed)
            && !self.armed.swap(true, Ordering::SeqCst)
            && let Some(thread) = self.thread.get()
        {
            thread.unpark();
        }
    }

    /// Starts the thread.
    ///
    /// # Errors
    /// The system's.
    pub(crate) fn start(
        process: Arc<Process>,
        engines: Vec<Arc<LogicalEngine>>,
    ) -> io::Result<Flushing> {
        let shared = process.clone();
        let handle = spawn("flusher", move || shared.flusher.run(&shared, &engines))?;
        let _ = process.flusher.thread.set(handle.thread().clone());
        Ok(Flushing(process, Some(handle)))
    }

    fn run(&self, process: &Process, engines: &[Arc<LogicalEngine>]) {
        while !self.stopped.load(Ordering::SeqCst) {
            if !self.armed.load(Ordering::SeqCst) {
                thread::park();
                continue;
            }
            thread::park_timeout(FLUSH_EACH);
            self.armed.store(false, Ordering::SeqCst);
            for engine in engines {
                for gathered in engine.gathered.lock().iter() {
                    let mut gathered = gathered.lock();
                    if gathered.is_due() {
                        gathered.send(process, engine, &mut |message| process.outbox.push(message));
                    } else if !gathered.is_empty() {
                        self.armed.store(true, Ordering::SeqCst);
                    }
                }
            }
        }
    }
}

impl Drop for Flushing {
    fn drop(&mut self) {
        let Self(process, handle) = self;
        process.flusher.stopped.store(true, Ordering::SeqCst);
        if let Some(handle) = handle.take() {
            handle.thread().unpark();
            let _ = handle.join();
        }
    }
}
