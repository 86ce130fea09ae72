//! What is kept: the journal that makes a controller's death harmless, and the history that answers the hub.
//!
//! # Invariants
//! 1. **The journal is the queue.** The task thread only appends (one `write` per loop, no sync). Everything else is done by the
//!    store's own threads, which *read the journal's files*: a lag costs disk, not memory, and what happens while running is
//!    what happens after a crash.
//! 2. **Exactly once.** SQLite is a function of the journal up to a position that is committed in the same transaction as its
//!    rows: no record is applied twice or left out, wherever a crash falls.
//! 3. **Append before effect.** No dispatch, reply or acknowledgement leaves before [`Journal::flush`] returned `Ok` for the
//!    batch that records it. An acknowledgement leaves when [`Journal::durable`] has reached the position that `flush` returned.
//! 4. **Delete after checkpoint.** A segment is deleted when a checkpoint of SQLite has made all of it durable; a spill file
//!    when no row, and no record that is not applied yet, names it.
//! 5. **One outcome.** The first final outcome of a task or member stays; a late one is kept in the table `late`.
//! 6. **A torn tail is no error**: a record counts when its CRC does, and nothing behind the first that does not. Positions only
//!    grow.
//! 7. Nothing here makes the task thread wait for a disk, except `write` itself and `--sync=full`, which asks for it.
//!
//! # Use by the task thread
//! ```text
//! let (store, mut journal, handle, recovered) = store::open(&options)?;
//! loop {                                   // one batch of messages
//!     if handle.over_bound() { /* do not read from the clients' socket this time */ }
//!     journal.submitted(&Submission { key: handle.next_key(), … })?;   // Err: refuse this one task
//!     journal.dispatched(key, 0..1, attempt, engine_uuid);
//!     journal.requeued(key, 0..1, retries);                            // given back, lost or failed with retries left
//!     journal.finished(&Finish { … });
//!     match journal.flush() {
//!         Ok(position) => { /* send what this batch causes; acknowledgements wait until journal.durable() >= position */ }
//!         Err(e) => { /* hold all of it, take no more in, call flush() again in 100 ms: it writes the same batch */ }
//!     }
//! }
//! ```
//! `handle.on_durable(callback)` is called, on a thread of the store, each time `durable()` has moved: wake up there. Only
//! batches for which [`Journal::want_durable`] was called are synced at once.

mod apply;
mod db;
mod event;
mod filter;
mod fold;
mod graph;
mod handle;
mod journal;
mod opening;
mod options;
mod prune;
mod query;
mod recover;
mod row;
mod search;
mod shared;
mod spill;
mod sync;
mod tail;
mod unpack;
mod update;
mod writer;

use std::io;
use std::path::{Path, PathBuf};

pub use event::{Exception, Finish, Outcome, Queue, Stream, Submission, TaskRef};
pub(crate) use filter::FIELDS;
pub use handle::{
    Answer, Lookup, Part, Purge, Record, Recorder, StoreHandle, StoredReply, StoredRequest,
};
pub use journal::{Journal, Position};
pub use opening::{Opened, Store, open};
pub use options::{Backend, Keep, Options, SyncMode};
pub(crate) use recover::Lock;
pub use shared::Status;

/// Why the store cannot be opened or written.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// A file of the journal or a spill file.
    #[error("{action} {}: {source}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// On which file.
        path: PathBuf,
        /// What went wrong.
        source: io::Error,
    },
    /// The database.
    #[error("history database {}: {source}", path.display())]
    Sqlite {
        /// Its file.
        path: PathBuf,
        /// What went wrong.
        source: rusqlite::Error,
    },
    /// The database was written by a newer version.
    #[error("{} has schema version {found}; this ipctl knows up to {known}: use the newer ipctl, or move the file away", path.display())]
    Version {
        /// Its file.
        path: PathBuf,
        /// What it says.
        found: i64,
        /// What we know.
        known: i64,
    },
    /// Another controller has this profile.
    #[error("another ipctl uses {}: stop it, or choose another --profile or --cluster-id", path.display())]
    Locked {
        /// The locked file.
        path: PathBuf,
    },
}

impl StoreError {
    /// For `map_err`: what was tried, on which file.
    pub(crate) fn io(action: &'static str, path: &Path) -> impl Fn(io::Error) -> Self + Copy {
        move |source| StoreError::Io {
            action,
            path: path.to_owned(),
            source,
        }
    }

    fn sqlite(path: &Path) -> impl Fn(rusqlite::Error) -> Self + Copy {
        move |source| StoreError::Sqlite {
            path: path.to_owned(),
            source,
        }
    }
}

/// Microseconds since 1970, UTC: the unit of all times here.
#[must_use]
pub fn now_us() -> i64 {
    jiff::Timestamp::now().as_microsecond()
}

/// What an earlier controller left.
#[derive(Debug, Default)]
pub struct Recovered {
    /// Unfinished tasks of the task queue in the order of their submission (empty without `restore`).
    pub tasks: Vec<RecoveredTask>,
    /// The latest outcomes, for dependencies: at most 100,000, oldest first. Earlier ones are asked for
    /// ([`StoreHandle::outcomes`]).
    pub outcomes: Vec<(String, Outcome)>,
    /// What was stored with [`Journal::set_meta`].
    pub meta: std::collections::BTreeMap<String, String>,
}

/// A task that was not finished.
#[derive(Debug)]
pub struct RecoveredTask {
    /// Its key, kept.
    pub key: u64,
    /// Its id.
    pub msg_id: String,
    /// Identity of its client.
    pub client: Vec<u8>,
    /// When it arrived.
    pub received: i64,
    /// Its members; 1 for an ordinary task.
    pub count: u64,
    /// `[header, parent_header, metadata, content, buffers…]`.
    pub frames: Vec<Vec<u8>>,
    /// Highest attempt that was dispatched so far, 0 if none was.
    pub attempt: u32,
    /// Retries that it has left; `None`: as many as its metadata ask for, as for every array.
    pub retries: Option<u32>,
    /// Members that wait.
    pub waiting: Vec<std::ops::Range<u64>>,
    /// Members that were dispatched and have no outcome.
    pub dispatched: Vec<RecoveredDispatch>,
    /// Members that have ended, in order, neighbours joined.
    pub ended: Vec<(std::ops::Range<u64>, Outcome)>,
}

/// A range that an engine had.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RecoveredDispatch {
    /// The members.
    pub range: std::ops::Range<u64>,
    /// Uuid of the engine.
    pub engine: String,
    /// Which attempt it was.
    pub attempt: u32,
    /// When.
    pub at: i64,
}
