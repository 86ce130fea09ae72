//! The thread that works for one logical engine.

use std::{
    ops::Range,
    sync::Arc,
    time::{Duration, Instant},
};

use ipbroker_protocol::{
    array::member_id,
    envelope::copies,
    message::ErrorContent,
    session::{Packer, Session},
    time,
    zmq::Message,
};
use jiff::Timestamp;
use parking_lot::Mutex;
use serde::Serialize;

use super::{
    Executor, Verdict,
    array::Outcomes,
    executor,
    gathered::{FLUSH, Gathered},
    stopped,
};
use crate::{
    job::Stop,
    logical_engine::{Claim, LogicalEngine},
    process::{Channel, Outgoing, Process},
    task::{Kind, Task, Via},
};

/// Memory that a logical engine's thread may use for its stack: a call that waits keeps its place on it while others are
/// worked on.
const STACK: usize = 64 << 20;

/// Starts the thread of a logical engine; it ends when the engine leaves.
pub(crate) fn start_worker(
    process: Arc<Process>,
    engine: Arc<LogicalEngine>,
) -> std::io::Result<()> {
    std::thread::Builder::new()
        .name(format!("engine-{}", engine.index))
        .stack_size(STACK)
        .spawn(move || {
            let kernel = || {
                if let Some(kernels) = &process.kernels {
                    kernels.ensure(&process, &engine);
                }
            };
            kernel();
            while let Some(task) = engine.next() {
                let calls = task.kind == Kind::Function && process.kernels_run_calls();
                if task.kind.is_for_kernel() || calls {
                    kernel();
                }
                execute(&process, &engine, task, &mut |message| {
                    process.outbox.push(message)
                });
                engine.done();
            }
            // Its interpreter and its kernel end with it.
            engine.end_interpreters();
            process.shared.group(engine.index, 0);
            // Whoever waits for us to end looks again.
            process.outbox.wake();
        })?;
    Ok(())
}

/// Runs the task at work and hands over its replies.
pub(crate) fn execute(
    process: &Process,
    engine: &LogicalEngine,
    task: Task,
    send: &mut dyn FnMut(Outgoing),
) {
    if task.wants.range.is_some() {
        return array(process, engine, Arc::new(task), send);
    }
    let session = engine.session();
    let clock = Clock::now(process);
    let reply = Reply {
        process,
        engine,
        session: &session,
        task: &task,
    };
    let mut own = executor(process, engine, &task, session.packer);
    let mut out = Vec::new();
    let (verdict, content, buffers) = match (engine.claim(1), &mut own) {
        (Claim::Run(..), Ok(executor)) => {
            process.shared.started(engine.index, [task.msg_id.as_str()]);
            let verdict = executor.run(0, &mut out);
            if executor.content() || verdict != Verdict::Ok {
                (verdict, out, executor.buffers())
            } else {
                (
                    verdict,
                    session.pack(&Status {
                        status: "ok",
                        ..Status::default()
                    }),
                    vec![Message::from(out)],
                )
            }
        }
        (Claim::Run(..), Err(error)) => (Verdict::Failed, session.pack(&**error), Vec::new()),
        (Claim::Aborted(..), own) => {
            let content = aborted(process, engine, own.as_deref().ok());
            (Verdict::Aborted, content, Vec::new())
        }
        // Given back in the meantime.
        (Claim::Done, _) => return,
    };
    let outcome = Outcome::single(verdict, clock, clock.from.elapsed());
    send(reply.message(&outcome, &content, buffers));
}

/// The outcome of a task, or a member of one, that was aborted before it began.
fn aborted(
    process: &Process,
    engine: &LogicalEngine,
    executor: Option<&(dyn Executor + '_)>,
) -> Vec<u8> {
    let error = stopped(&Stop::Aborted, engine, &process.files.host).1;
    let mut out = Vec::new();
    match executor {
        Some(executor) => executor.refuse(&error, &mut out),
        None => out = engine.session().pack(&error),
    }
    out
}

/// The reply to a task that was aborted while it waited.
pub(crate) fn refuse_aborted(process: &Process, engine: &LogicalEngine, task: &Task) -> Outgoing {
    let session = engine.session();
    let own = executor(process, engine, task, session.packer);
    let clock = Clock::now(process);
    let outcome = Outcome::single(Verdict::Aborted, clock, Duration::ZERO);
    let reply = Reply {
        process,
        engine,
        session: &session,
        task,
    };
    let content = aborted(process, engine, own.as_deref().ok());
    reply.message(&outcome, &content, Vec::new())
}

/// Runs the members of an array.
fn array(
    process: &Process,
    engine: &LogicalEngine,
    task: Arc<Task>,
    send: &mut dyn FnMut(Outgoing),
) {
    let session = engine.session();
    let own = executor(process, engine, &task, session.packer);
    let gathered = Gathered::new(process, task.clone(), session);
    let gathered = Arc::new(Mutex::new(gathered));
    engine.gathered.lock().push(gathered.clone());
    members(process, engine, &task, own, &gathered, send);
    engine.gathered.lock().pop();
}

fn members(
    process: &Process,
    engine: &LogicalEngine,
    task: &Task,
    mut own: Result<Box<dyn Executor + '_>, Box<ErrorContent>>,
    gathered: &Mutex<Gathered>,
    send: &mut dyn FnMut(Outgoing),
) {
    let mut out = Vec::new();
    let mut stride = 1;
    loop {
        let claim = engine.claim(stride);
        let mut ready = gathered.lock();
        if ready.is_due() || claim == Claim::Done && !ready.is_empty() {
            ready.send(process, engine, send);
        }
        drop(ready);
        match (claim, &mut own) {
            (Claim::Done, _) => return,
            (Claim::Run(lo, hi), Ok(executor)) => {
                process
                    .shared
                    .started(engine.index, [started_id(&task.msg_id, lo, hi).as_str()]);
                let from = Instant::now();
                let mut began = from;
                // Functions do not, and may take a few nanoseconds.
                let prints = executor.content();
                for index in lo..hi {
                    out.clear();
                    let verdict = executor.run(index, &mut out);
                    let mut gathered = gathered.lock();
                    gathered.add(&out, verdict);
                    if task.wants.each {
                        let now = Instant::now();
                        gathered.tell_when(began, now);
                        began = now;
                    }
                    if prints {
                        gathered.tell_printed(executor.printed());
                    }
                    drop(gathered);
                    process.flusher.arm();
                }
                stride = if from.elapsed() < FLUSH / 10 {
                    (stride * 4).min(executor.stride())
                } else {
                    (stride / 4).max(1)
                };
            }
            (Claim::Run(lo, hi), Err(error)) => {
                let error = Packer::Msgpack.pack(error);
                let mut gathered = gathered.lock();
                (lo..hi).for_each(|_| gathered.add(&error, Verdict::Failed));
                stride = u64::MAX;
            }
            (Claim::Aborted(lo, hi), own) => {
                let error = aborted(process, engine, own.as_deref().ok());
                let mut gathered = gathered.lock();
                (lo..hi).for_each(|_| gathered.add(&error, Verdict::Aborted));
            }
        }
    }
}

/// What is told of a member by itself: seconds from the beginning of the range's run to its own, its run time in s, and what
/// it printed on stdout and stderr.
#[derive(Debug, Clone, Default, Serialize)]
pub(super) struct Member(
    pub(super) f64,
    pub(super) f64,
    pub(super) Option<String>,
    pub(super) Option<String>,
);

/// How the reaper is told members: `MSGID:INDEX`, or `MSGID:LO-HI` for several.
fn started_id(msg_id: &str, lo: u64, hi: u64) -> String {
    if hi == lo + 1 {
        member_id(msg_id, lo)
    } else {
        format!("{msg_id}:{lo}-{hi}")
    }
}

/// When something began.
#[derive(Debug, Clone, Copy)]
pub(super) struct Clock {
    pub(super) from: Instant,
    started: Timestamp,
}

impl Clock {
    pub(super) fn now(process: &Process) -> Self {
        Self {
            from: Instant::now(),
            started: process.now(),
        }
    }
}

struct Outcome<'a> {
    verdict: Verdict,
    clock: Clock,
    elapsed: Duration,
    range: Option<(u64, u64)>,
    failed: &'a [(u64, String)],
    same: bool,
}

impl Outcome<'_> {
    /// Of an ordinary task.
    fn single(verdict: Verdict, clock: Clock, elapsed: Duration) -> Self {
        Self {
            verdict,
            clock,
            elapsed,
            range: None,
            failed: &[],
            same: false,
        }
    }
}

/// Metadata of a reply; the keys are those of [`ipbroker_protocol::message::ReplyMetadata`], and the peer's for broadcasts.
#[derive(Serialize)]
struct Metadata<'a> {
    status: &'a str,
    engine: &'a str,
    engine_id: u32,
    host: &'a str,
    started: String,
    completed: String,
    duration: f64,
    dependencies_met: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    range: Option<(u64, u64)>,
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    failed: &'a [(u64, String)],
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    same: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    attempt: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    is_broadcast: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    is_coalescing: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    original_msg_id: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    label: Option<&'a str>,
}

/// The content of a reply that has its value elsewhere.
#[derive(Debug, Default, Serialize)]
pub(super) struct Status {
    status: &'static str,
    /// What an array's reply tells of each of its members, if the client wants that.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(super) members: Vec<Member>,
    /// Else of those that have printed: which, on stdout and on stderr.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(super) printed: Vec<(u64, Option<String>, Option<String>)>,
}

/// Puts replies to one task together.
pub(super) struct Reply<'a> {
    pub(super) process: &'a Process,
    pub(super) engine: &'a LogicalEngine,
    pub(super) session: &'a Session,
    pub(super) task: &'a Task,
}

impl Reply<'_> {
    /// What is said instead of a result that the controller would not take: it would end the connection.
    fn too_large(&self, outcome: &Outcome<'_>, bytes: u64, members: Range<u64>) -> Outgoing {
        let most = self.process.max_message;
        let error = ErrorContent::new(
            "ResultTooLarge",
            format!(
                "a result of {bytes} bytes is more than the controller takes ({most}): start ipctl with a larger --max-message, or return less"
            ),
        );
        let failed: Vec<_> = match outcome.range {
            Some(_) => members.map(|member| (member, "error".to_owned())).collect(),
            None => Vec::new(),
        };
        let outcome = Outcome {
            verdict: Verdict::Failed,
            failed: &failed,
            same: false,
            ..*outcome
        };
        self.message(&outcome, &self.session.pack(&error), Vec::new())
    }

    pub(super) fn range(&self, outcomes: Outcomes, told: Status, clock: Clock) -> Outgoing {
        let range = Some((outcomes.lo, outcomes.lo + outcomes.count));
        let failed = outcomes.failed.clone();
        let verdict = if failed.is_empty() {
            Verdict::Ok
        } else {
            Verdict::Failed
        };
        let (buffers, same) = outcomes.into_buffers();
        let content = self.session.pack(&Status {
            status: verdict.status(),
            ..told
        });
        let elapsed = clock.from.elapsed();
        self.message(
            &Outcome {
                verdict,
                clock,
                elapsed,
                range,
                failed: &failed,
                same,
            },
            &content,
            buffers,
        )
    }

    fn message(&self, outcome: &Outcome<'_>, content: &[u8], buffers: Vec<Message>) -> Outgoing {
        let Self {
            process,
            engine,
            session,
            task,
        } = self;
        let completed = time::shifted(outcome.clock.started, outcome.elapsed.as_secs_f64());
        let metadata = Metadata {
            status: outcome.verdict.status(),
            engine: &engine.uuid,
            engine_id: engine.id(),
            host: &process.files.host,
            started: time::utc(outcome.clock.started),
            completed: time::utc(completed),
            duration: outcome.elapsed.as_secs_f64(),
            dependencies_met: outcome.verdict != Verdict::Unmet,
            range: outcome.range,
            failed: outcome.failed,
            same: outcome.same,
            attempt: task.wants.attempt,
            is_broadcast: task.wants.is_broadcast,
            is_coalescing: task.wants.is_coalescing,
            original_msg_id: task.wants.original_msg_id.as_deref(),
            label: task.wants.label.as_deref(),
        };
        let (_, header) = session.packed_header(task.kind.reply());
        let metadata = session.pack(&metadata);
        let message = Session::unsigned(
            copies(task.envelope.identities()),
            [&header, task.envelope.header(), &metadata, content],
            buffers,
        );
        let (lo, hi) = outcome.range.unwrap_or((0, 1));
        let (bytes, most) = (message.bytes() as u64, process.max_message);
        if most != 0 && bytes > most {
            return self.too_large(outcome, bytes, lo..hi);
        }
        Outgoing {
            index: engine.index,
            channel: Channel::Shell,
            frames: message.into_frames(),
            answers: (task.via == Via::Task).then(|| (task.msg_id.clone(), lo, hi)),
        }
    }
}
