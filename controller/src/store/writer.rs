//! The store thread: applies the journal to the history in group commits, prunes, checkpoints, and lets queries in behind.

use std::collections::VecDeque;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering::{Acquire, Relaxed};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, SendError, Sender, after, select};
use rusqlite::Connection;

use super::apply::Applier;
use super::db;
use super::event::Records;
use super::handle::{Answer, Query, Request};
use super::prune::{self, Limits};
use super::query::Reader;
use super::shared::{Part, Shared};
use super::spill::Spill;
use super::tail::{self, Found, Tail};
use crate::error::NamedError;

/// A commit waits this long for company.
const GROUP: Duration = Duration::from_millis(40);
/// Unless this much waits.
const GROUP_BYTES: u64 = 2 << 20;
/// Until half of what the store may lag has gathered, or somebody asks, it rests so many times as long as it worked: while tasks
/// come in fast, those who run them need the cores more, and what was gathered is written when they rest.
const REST: u32 = 9;
/// Housekeeping happens at least this often.
const TICK: Duration = Duration::from_secs(1);
/// The write-ahead log is moved to the database when this much of the journal has been applied since.
const CHECKPOINT_BYTES: u64 = 32 << 20;
/// After an error the history is tried again this often.
const RETRY: Duration = Duration::from_millis(500);

/// Where queries are answered.
pub(crate) enum Queries {
    /// By a thread with a connection of its own.
    Thread(Sender<Query>),
    /// Here: a database in memory has one connection.
    Here(Reader),
}

/// The store thread.
pub(crate) struct Writer {
    conn: Connection,
    applier: Applier,
    shared: Arc<Shared>,
    spill: Spill,
    limits: Limits,
    /// The journal, unless the history is in memory.
    tail: Option<(Tail, PathBuf)>,
    queries: Queries,
    /// What came by channel and is not committed.
    batches: VecDeque<Vec<u8>>,
    drops: VecDeque<Drops>,
    /// Commits since the last checkpoint.
    unchecked: bool,
    /// The journal's position then.
    checked: u64,
    last_tick: Instant,
}

/// A purge that is under way.
pub(crate) struct Drops {
    keys: Vec<u64>,
    found: u64,
    answer: Answer<u64>,
}

/// What waits until everything written is committed.
enum After {
    Query(Query),
    Settle(Box<dyn FnOnce() + Send>),
}

impl Writer {
    /// One that has applied everything before its tail's position.
    pub(crate) fn new(
        conn: Connection,
        applier: Applier,
        shared: &Arc<Shared>,
        spill: Spill,
        limits: Limits,
        tail: Option<(Tail, PathBuf)>,
        queries: Queries,
    ) -> Self {
        Writer {
            conn,
            applier,
            shared: Arc::clone(shared),
            spill,
            limits,
            unchecked: tail.is_some(),
            checked: tail.as_ref().map_or(0, |(tail, _)| tail.position),
            tail,
            queries,
            batches: VecDeque::new(),
            drops: VecDeque::new(),
            last_tick: Instant::now(),
        }
    }

    /// Runs until told to stop.
    pub(crate) fn run(mut self, requests: &Receiver<Request>, bell: &Receiver<()>) {
        let mut last_commit = Instant::now();
        let mut worked = Duration::ZERO;
        loop {
            let mut afters = Vec::new();
            let mut stop = self.wait(requests, bell, (last_commit, worked), &mut afters);
            while let Ok(request) = requests.try_recv() {
                stop |= self.take(request, &mut afters);
            }
            let begun = Instant::now();
            // What came by channel was caused by what is in the journal.
            let all = stop || !afters.is_empty() || !self.batches.is_empty();
            if self.catch_up(all).is_err() && !stop {
                // Do not spin on a disk that is full; queries see what there is.
                self.answer(afters);
                if let Ok(request) = requests.recv_timeout(RETRY) {
                    let mut afters = Vec::new();
                    let stopped = self.take(request, &mut afters);
                    self.answer(afters);
                    if stopped {
                        return;
                    }
                }
                continue;
            }
            last_commit = Instant::now();
            worked = last_commit - begun;
            self.answer(afters);
            self.housekeeping();
            if stop {
                while !self.drops.is_empty() {
                    self.drop_some();
                }
                self.checkpoint("TRUNCATE");
                return;
            }
        }
    }

    /// How far it may lag unasked.
    fn patience(&self) -> u64 {
        match self.tail {
            // What waits is in the journal's files.
            Some(_) => self.shared.lag_bound / 2,
            None => GROUP_BYTES,
        }
    }

    /// Waits for something to do, and then a little for more of it.
    fn wait(
        &mut self,
        requests: &Receiver<Request>,
        bell: &Receiver<()>,
        (last_commit, worked): (Instant, Duration),
        afters: &mut Vec<After>,
    ) -> bool {
        let busy = !self.drops.is_empty();
        let mut stop = false;
        if busy || self.shared.lag() == 0 {
            let timeout = after(if busy { Duration::ZERO } else { TICK });
            select! {
                recv(bell) -> _ => {}
                recv(requests) -> request => match request {
                    Ok(request) => stop = self.take(request, afters),
                    Err(_) => return true,
                },
                recv(timeout) -> _ => return false,
            }
        }
        while !stop && afters.is_empty() {
            let lag = self.shared.lag();
            if lag >= self.patience() {
                break;
            }
            let group = if lag < GROUP_BYTES {
                GROUP
            } else {
                Duration::ZERO
            };
            match requests.recv_deadline(last_commit + group.max(worked * REST)) {
                Ok(request) => stop = self.take(request, afters),
                Err(RecvTimeoutError::Timeout) => break,
                Err(RecvTimeoutError::Disconnected) => return true,
            }
        }
        stop
    }

    fn take(&mut self, request: Request, afters: &mut Vec<After>) -> bool {
        match request {
            Request::Batch(bytes) => self.batches.push_back(bytes),
            Request::Query(query) => afters.push(After::Query(query)),
            Request::Drop { keys, answer } => {
                let found = keys.len() as u64;
                self.drops.push_back(Drops {
                    keys,
                    found,
                    answer,
                });
            }
            Request::Settle(then) => afters.push(After::Settle(then)),
            Request::Stop => return true,
        }
        false
    }

    fn answer(&mut self, afters: Vec<After>) {
        for after in afters {
            match (after, &mut self.queries) {
                (After::Settle(then), _) => then(),
                (After::Query(query), Queries::Thread(thread)) => {
                    if let Err(SendError(query)) = thread.send(query) {
                        query(Err(NamedError::failed("the reader has ended")));
                    }
                }
                (After::Query(query), Queries::Here(reader)) => query(Ok((reader, &self.conn))),
            }
        }
    }

    /// Applies everything written so far, or some of it.
    fn catch_up(&mut self, all: bool) -> Result<(), ()> {
        let channel = self.batches.len();
        if let Err(what) = self.read_journal(all) {
            self.shared.fault(Part::History, what);
            return Err(());
        }
        if channel == 0 {
            return Ok(());
        }
        let taken = self.batches.iter().take(channel);
        let bytes: usize = taken.clone().map(Vec::len).sum();
        let records = taken.flat_map(|batch| Records::new(batch));
        let done = transaction(&self.conn, &mut self.applier, |conn, applier| {
            applier.apply(conn, records)
        });
        if let Err(e) = done {
            self.shared
                .fault(Part::History, format!("cannot write the history: {e}"));
            return Err(());
        }
        self.batches.drain(..channel);
        self.shared.queued.fetch_sub(bytes as u64, Relaxed);
        self.committed();
        Ok(())
    }

    fn read_journal(&mut self, all: bool) -> Result<(), String> {
        // Not what is written meanwhile: under load pruning and answers would never get a turn.
        let limit = self.shared.written.load(Acquire);
        loop {
            let Some((tail, dir)) = &mut self.tail else {
                return Ok(());
            };
            let found = tail
                .read(limit)
                .map_err(|e| format!("cannot read the journal in {}: {e}", dir.display()))?;
            match found {
                Found::End => {
                    tail.rest();
                    return Ok(());
                }
                Found::Records => {
                    apply_read(&self.conn, &mut self.applier, tail)
                        .map_err(|e| format!("cannot write the history: {e}"))?;
                    self.shared.applied.store(tail.position, Relaxed);
                    self.committed();
                    self.maybe_checkpoint();
                    if !all {
                        return Ok(());
                    }
                }
                Found::Broken => {
                    tracing::error!(
                        "store: the journal in {} cannot be read at {}",
                        dir.display(),
                        tail.position
                    );
                    match tail.skip().map_err(|e| e.to_string())? {
                        Some(skipped) => {
                            tracing::error!("store: {skipped} bytes of the journal are lost")
                        }
                        None => tail.position = limit,
                    }
                    self.shared.applied.store(tail.position, Relaxed);
                }
            }
        }
    }

    /// After each commit.
    fn committed(&mut self) {
        self.shared.heal(Part::History);
        self.unchecked = true;
        if let Ok(bytes) = db::bytes(&self.conn) {
            self.shared.db_bytes.store(bytes, Relaxed);
        }
        self.shared
            .submissions
            .fetch_add(std::mem::take(&mut self.applier.submissions), Relaxed);
        self.shared
            .finishes
            .fetch_add(std::mem::take(&mut self.applier.finishes), Relaxed);
        for number in self.applier.garbage.drain(..) {
            self.spill.remove(number);
        }
    }

    fn housekeeping(&mut self) {
        let tick = self.last_tick.elapsed() >= TICK;
        if tick || self.limits.bytes.is_some() || self.limits.records.is_some() {
            self.prune();
        }
        self.drop_some();
        if tick {
            self.last_tick = Instant::now();
            if let Err(e) = prune::shrink(&self.conn) {
                tracing::debug!("store: cannot shrink the history: {e}");
            }
            if self.unchecked {
                self.checkpoint("PASSIVE");
            }
        }
    }

    /// One step; more of them follow each other only while nothing else waits.
    fn prune(&mut self) {
        let until = Instant::now() + Duration::from_millis(20);
        while Instant::now() < until {
            match self.prune_some() {
                Ok(0) => break,
                Ok(dropped) => {
                    self.shared.pruned.fetch_add(dropped, Relaxed);
                }
                Err(e) => {
                    let what = format!("cannot prune the history: {e}");
                    self.shared.fault(Part::History, what);
                    break;
                }
            }
        }
    }

    fn prune_some(&mut self) -> rusqlite::Result<u64> {
        let due = prune::due(&self.conn, &self.limits, self.shared.history_bytes())?;
        if due.keys.is_empty() {
            return Ok(0);
        }
        let dropped = self.drop_tasks(&due.keys, due.down_to)?;
        self.shared.db_bytes.store(db::bytes(&self.conn)?, Relaxed);
        Ok(dropped)
    }

    /// A step of the first purge.
    fn drop_some(&mut self) {
        let Some(drops) = self.drops.front_mut() else {
            return;
        };
        let at = drops.keys.len().saturating_sub(prune::STEP);
        let step = drops.keys.split_off(at);
        let result = self.drop_tasks(&step, None);
        let finished = self.drops.front().is_some_and(|d| d.keys.is_empty());
        if (finished || result.is_err())
            && let Some(drops) = self.drops.pop_front()
        {
            (drops.answer)(result.map(|_| drops.found).map_err(NamedError::failed));
        }
    }

    /// Drops these tasks; with `bound`, only until the history is within it.
    fn drop_tasks(&mut self, keys: &[u64], bound: Option<u64>) -> rusqlite::Result<u64> {
        let mut orphans = prune::Orphans::default();
        let mut dropped = 0;
        let shared = Arc::clone(&self.shared);
        transaction(&self.conn, &mut self.applier, |conn, _| {
            for key in keys {
                if let Some(bound) = bound {
                    let files = shared
                        .file_bytes
                        .load(Relaxed)
                        .saturating_sub(orphans.bytes);
                    if db::bytes(conn)? + files <= bound {
                        break;
                    }
                }
                dropped += u64::from(prune::drop_task(conn, *key, &mut orphans)?);
            }
            Ok(())
        })?;
        self.applier.forget(keys);
        self.unchecked = true;
        for number in orphans.numbers {
            self.spill.remove(number);
        }
        Ok(dropped)
    }

    fn maybe_checkpoint(&mut self) {
        if self
            .tail
            .as_ref()
            .is_some_and(|(tail, _)| tail.position >= self.checked + CHECKPOINT_BYTES)
        {
            self.checkpoint("PASSIVE");
        }
    }

    /// Moves the write-ahead log to the database; if all of it could be, the journal's segments up to here may go.
    pub(crate) fn checkpoint(&mut self, mode: &str) {
        let Some((tail, dir)) = &self.tail else {
            return;
        };
        let position = tail.position;
        self.checked = position;
        let result: rusqlite::Result<(i64, i64, i64)> =
            self.conn
                .query_row(&format!("PRAGMA wal_checkpoint({mode})"), [], |row| {
                    row.try_into()
                });
        match result {
            Ok((0, log, moved)) if log == moved => {
                self.unchecked = false;
                self.shared.made_durable(position);
                if let Err(e) = tail::remove_before(dir, position) {
                    tracing::warn!(
                        "store: cannot remove old journal segments in {}: {e}",
                        dir.display()
                    );
                }
            }
            Ok(_) => tracing::debug!("store: a reader holds up the checkpoint"),
            Err(e) => self
                .shared
                .fault(Part::History, format!("cannot write the history: {e}")),
        }
    }
}

/// Does something in a transaction. When it fails, the applier's memory of it is forgotten too.
fn transaction(
    conn: &Connection,
    applier: &mut Applier,
    work: impl FnOnce(&Connection, &mut Applier) -> rusqlite::Result<()>,
) -> rusqlite::Result<()> {
    let done = conn
        .execute_batch("BEGIN IMMEDIATE")
        .and_then(|()| work(conn, applier))
        .and_then(|()| conn.execute_batch("COMMIT"));
    if done.is_err() {
        if !conn.is_autocommit() {
            drop(conn.execute_batch("ROLLBACK"));
        }
        if let Err(e) = applier.load(conn) {
            tracing::error!("store: cannot read the history: {e}");
        }
    }
    done
}

/// Applies the records that a tail has read, and passes over them.
pub(crate) fn apply_read(
    conn: &Connection,
    applier: &mut Applier,
    tail: &mut Tail,
) -> rusqlite::Result<()> {
    let mut records = tail.records();
    let mut end = tail.position;
    transaction(conn, applier, |conn, applier| {
        applier.apply(conn, &mut records)?;
        end += records.consumed as u64;
        db::set_meta_number(conn, "position", end)
    })?;
    tail.position = end;
    Ok(())
}
