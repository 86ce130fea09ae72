//! What the store's threads and its users see of each other: positions, faults, figures.

use std::fs::File;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::Serialize;

/// How the store is doing.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Status {
    /// `sqlite`, `memory` or `none`.
    pub backend: &'static str,
    /// Bytes written and not yet in the history.
    pub lag: u64,
    /// Past this lag the intake slows.
    pub lag_bound: u64,
    /// Bytes written and not yet synced.
    pub unsynced: u64,
    /// Bytes of the history, spill files included.
    pub bytes: u64,
    /// Submissions applied since the start.
    pub submissions: u64,
    /// Outcomes applied since the start (one for a range).
    pub finishes: u64,
    /// Tasks pruned since the start.
    pub pruned: u64,
    /// The faults that last, in words.
    #[serde(skip)]
    pub faults: Vec<String>,
}

/// What can fail independently.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(usize)]
pub(crate) enum Part {
    Journal,
    Sync,
    Spill,
    History,
}

const PARTS: usize = 4;

#[derive(Debug, Default)]
pub(crate) struct Shared {
    pub(crate) backend: &'static str,
    pub(crate) lag_bound: u64,
    /// End of what has been written to the journal.
    pub(crate) written: AtomicU64,
    /// End of what survives a power failure.
    pub(crate) durable: AtomicU64,
    /// End of what is in the history.
    pub(crate) applied: AtomicU64,
    /// Bytes in the channel to the store thread.
    pub(crate) queued: AtomicU64,
    pub(crate) next_key: AtomicU64,
    pub(crate) next_file: AtomicU64,
    /// Bytes of spill files.
    pub(crate) file_bytes: AtomicU64,
    /// Bytes of the database's pages in use.
    pub(crate) db_bytes: AtomicU64,
    pub(crate) submissions: AtomicU64,
    pub(crate) finishes: AtomicU64,
    pub(crate) pruned: AtomicU64,
    /// The store is being closed.
    pub(crate) stopping: AtomicBool,
    faulty: [AtomicBool; PARTS],
    faults: Mutex<[Option<String>; PARTS]>,
    /// What has been written since the last sync: segments (with the position of their start) and spill files.
    unsynced: Mutex<Unsynced>,
    listeners: Mutex<Listeners>,
}

#[derive(Debug, Default)]
pub(crate) struct Unsynced {
    pub(crate) segments: Vec<Arc<File>>,
    pub(crate) spills: Vec<u64>,
    /// A file has been made since: its directory has to be synced too.
    pub(crate) new_files: bool,
}

type Listener = Box<dyn Fn() + Send>;

#[derive(Default)]
struct Listeners(Vec<Listener>);

impl std::fmt::Debug for Listeners {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} listeners", self.0.len())
    }
}

/// A poisoned lock here guards plain data: go on with it.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shared {
    pub(crate) fn new(backend: &'static str, lag_bound: u64) -> Arc<Self> {
        let one = || AtomicU64::new(1);
        Arc::new(Shared {
            backend,
            lag_bound,
            next_key: one(),
            next_file: one(),
            ..Shared::default()
        })
    }

    pub(crate) fn lag(&self) -> u64 {
        self.written
            .load(Relaxed)
            .saturating_sub(self.applied.load(Relaxed))
            + self.queued.load(Relaxed)
    }

    pub(crate) fn history_bytes(&self) -> u64 {
        self.file_bytes.load(Relaxed) + self.db_bytes.load(Relaxed)
    }

    pub(crate) fn over_bound(&self) -> bool {
        self.lag() > self.lag_bound || self.is_faulty(Part::Journal) || self.is_faulty(Part::Spill)
    }

    /// Records a fault; says so on stderr when it is new.
    pub(crate) fn fault(&self, part: Part, what: String) {
        let mut faults = lock(&self.faults);
        let slot = &mut faults[part as usize];
        if slot.is_none() {
            tracing::error!("store: {what}");
        }
        *slot = Some(what);
        self.faulty[part as usize].store(true, Relaxed);
    }

    pub(crate) fn heal(&self, part: Part) {
        if self.is_faulty(part) {
            self.faulty[part as usize].store(false, Relaxed);
            if let Some(what) = lock(&self.faults)[part as usize].take() {
                tracing::warn!("store: works again after: {what}");
            }
        }
    }

    pub(crate) fn is_faulty(&self, part: Part) -> bool {
        self.faulty[part as usize].load(Relaxed)
    }

    pub(crate) fn unsynced(&self) -> MutexGuard<'_, Unsynced> {
        lock(&self.unsynced)
    }

    pub(crate) fn listen(&self, listener: Listener) {
        lock(&self.listeners).0.push(listener);
    }

    /// Moves `durable` on and tells those who wait for it.
    pub(crate) fn made_durable(&self, position: u64) {
        if self.durable.fetch_max(position, Relaxed) < position {
            for listener in &lock(&self.listeners).0 {
                listener();
            }
        }
    }

    pub(crate) fn status(&self) -> Status {
        Status {
            backend: self.backend,
            lag: self.lag(),
            lag_bound: self.lag_bound,
            unsynced: self
                .written
                .load(Relaxed)
                .saturating_sub(self.durable.load(Relaxed)),
            bytes: self.history_bytes(),
            submissions: self.submissions.load(Relaxed),
            finishes: self.finishes.load(Relaxed),
            pruned: self.pruned.load(Relaxed),
            faults: lock(&self.faults).iter().flatten().cloned().collect(),
        }
    }
}
