//! What the logical engines of one process share.

use std::{
    path::PathBuf,
    sync::atomic::{AtomicI64, AtomicU32, Ordering},
};

use ipbroker_protocol::{socket::routing, time, wake::Waker, zmq::Message};
use jiff::Timestamp;
use parking_lot::Mutex;
use tempfile::TempDir;

use crate::{
    executor::{Flusher, Python},
    files::{FileError, FileHost, private_dir},
    function::Registry,
    job::{Limits, Warden},
    kernel::Kernels,
    reaper::{self, Line, Reaper, Shared},
};

/// Shared by all threads of an engine process.
#[derive(Debug)]
pub(crate) struct Process {
    /// Its identity on all sockets that its engines share.
    pub(crate) id: String,
    /// The functions that tasks may call.
    pub(crate) functions: Registry,
    /// What runs Python calls; none: they are refused.
    pub(crate) python: Option<Python>,
    /// The Jupyter kernels that its engines own; none: requests for them are refused.
    pub(crate) kernels: Option<Kernels>,
    /// Where jobs run and files live.
    pub(crate) files: FileHost,
    /// Where scratch directories are made.
    pub(crate) scratch: PathBuf,
    /// Ends jobs.
    pub(crate) warden: Warden,
    /// How memory limits are kept.
    pub(crate) limits: Limits,
    /// What outlives the process.
    pub(crate) shared: Shared,
    /// The largest message that the controller takes; 0: it did not say.
    pub(crate) max_message: u64,
    /// The value of [`crate::reaper::MARK`] for jobs.
    pub(crate) mark: String,
    /// How many jobs have got a number, where they get one.
    pub(crate) jobs: Option<AtomicU32>,
    /// Tasks run on just the cores that they were granted.
    pub(crate) pin: bool,
    /// Who ends the jobs when the process is gone; none once it leaves.
    pub(crate) reaper: Mutex<Option<Reaper>>,
    /// Sends what arrays give while a member takes its time.
    pub(crate) flusher: Flusher,
    /// What is to be sent.
    pub(crate) outbox: Outbox,
    /// Microseconds that this host's clock is ahead of the controller's.
    pub(crate) offset: AtomicI64,
}

impl Process {
    /// Python calls run in the engines' kernels: one interpreter for both.
    pub(crate) fn kernels_run_calls(&self) -> bool {
        let (python, kernels) = (self.python.as_ref(), self.kernels.as_ref());
        python.is_some_and(|python| kernels.is_some_and(|kernels| kernels.run_in(&python.program)))
    }

    /// The hub's estimate of how far this clock is ahead, in seconds.
    pub(crate) fn set_offset(&self, seconds: f64) {
        self.offset.store((seconds * 1e6) as i64, Ordering::Relaxed);
    }

    /// Now, in the controller's clock.
    pub(crate) fn now(&self) -> Timestamp {
        time::shifted(
            Timestamp::now(),
            -(self.offset.load(Ordering::Relaxed) as f64) / 1e6,
        )
    }

    /// The [number](reaper::number) of a new job; none where it cannot be given.
    pub(crate) fn number_job(&self) -> Option<u64> {
        let count = self.jobs.as_ref()?.fetch_add(1, Ordering::Relaxed);
        Some(reaper::number(&self.id, 1 + count % reaper::JOBS))
    }

    /// Marks an interpreter or a kernel as ours, and so all that it starts.
    pub(crate) fn number_interpreter(&self, pid: rustix::process::Pid) {
        if self.jobs.is_some() {
            reaper::set_number(Some((pid, reaper::number(&self.id, 0))));
        }
    }

    /// A new directory for a job, which goes with this process whatever ends it.
    pub(crate) fn scratch(&self) -> Result<TempDir, FileError> {
        let made = private_dir("ipbroker-job-", &self.scratch)
            .map_err(FileError::io("make a scratch directory in", &self.scratch))?;
        self.tell_reaper(&Line::Directory(made.path().to_owned()));
        Ok(made)
    }

    /// Tells the reaper something.
    pub(crate) fn tell_reaper(&self, line: &Line) {
        if let Some(reaper) = self.reaper.lock().as_mut() {
            reaper.tell(line);
        }
    }
}

/// The socket by which a message leaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Channel {
    /// Replies to tasks and file operations.
    Shell,
    /// Replies to control requests.
    Control,
    /// Output.
    IoPub,
    /// Towards the hub.
    Hub,
}

/// A message on its way out.
#[derive(Debug)]
pub(crate) struct Outgoing {
    /// Which logical engine sends it.
    pub(crate) index: usize,
    /// By which socket.
    pub(crate) channel: Channel,
    /// The message.
    pub(crate) frames: Vec<Message>,
    /// The task or range it answers, if the scheduler gave it: kept until acknowledged where replies are durable.
    pub(crate) answers: Option<(String, u64, u64)>,
}

impl Outgoing {
    /// Whether it goes to the scheduler.
    pub(crate) fn to_scheduler(&self) -> bool {
        self.channel == Channel::Shell
            && self
                .frames
                .first()
                .is_some_and(|first| &first[..] == routing::TASK)
    }
}

/// Messages from workers to the thread that serves the sockets.
#[derive(Debug)]
pub(crate) struct Outbox {
    waiting: Mutex<Vec<Outgoing>>,
    waker: Waker,
}

impl Outbox {
    /// An empty one, by whose waker the other side is woken.
    pub(crate) fn new(waker: Waker) -> Self {
        Self {
            waiting: Mutex::default(),
            waker,
        }
    }

    /// Adds a message and wakes the other side.
    pub(crate) fn push(&self, message: Outgoing) {
        self.waiting.lock().push(message);
        self.waker.wake();
    }

    /// Appends what waits to a list.
    pub(crate) fn take(&self, list: &mut Vec<Outgoing>) {
        list.append(&mut self.waiting.lock());
    }

    /// Wakes the thread that serves the sockets.
    pub(crate) fn wake(&self) {
        self.waker.wake();
    }
}
