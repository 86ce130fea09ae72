//! Turns records of the journal into rows: what happened to a task within one transaction is folded into one statement.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use ipbroker_protocol::session::Packer;
use rangemap::RangeMap;
use rusqlite::{Connection, OptionalExtension, params};

use super::db;
use super::event::{
    Event, Exception, Finished, Frames, Outcome, Stream, Submitted, TaskRef, exceptions,
};
use super::fold::{Fold, Folds, Keyed, Parts, ResultColumns, Times, head, some};
use super::row::find_key;
use super::shared::Shared;
use super::unpack::parse_time;
use super::update;

/// A name column holds this much.
pub(crate) const NAME_CHARS: usize = 200;

/// What an engine holds of an array: `lo, hi, engine, attempt, at`.
pub(crate) type HeldRange = (u64, u64, String, u32, i64);

/// Applies records; remembers only which arrays are open.
#[derive(Debug)]
pub(crate) struct Applier {
    packing: Packer,
    shared: Arc<Shared>,
    arrays: Keyed<Held>,
    /// Spill files that no row names: to be removed after the commit.
    pub(crate) garbage: Vec<u64>,
    /// Tasks in the last transaction: the next will have about as many.
    folds: usize,
    /// Since the last commit.
    pub(crate) submissions: u64,
    pub(crate) finishes: u64,
}

#[derive(Debug, Default)]
struct Held {
    ranges: Vec<HeldRange>,
    changed: bool,
}

impl Applier {
    pub(crate) fn new(packing: Packer, shared: Arc<Shared>) -> Self {
        Applier {
            packing,
            shared,
            arrays: Keyed::default(),
            garbage: Vec::new(),
            folds: 0,
            submissions: 0,
            finishes: 0,
        }
    }

    /// Learns which arrays are open: at the start, and after a transaction that failed.
    pub(crate) fn load(&mut self, conn: &Connection) -> rusqlite::Result<()> {
        self.arrays.clear();
        self.garbage.clear();
        (self.submissions, self.finishes) = (0, 0);
        let mut open = conn.prepare_cached(
            "SELECT t.key, h.ranges FROM task t LEFT JOIN held h ON h.task = t.key WHERE t.completed IS NULL AND t.count > 1",
        )?;
        let mut rows = open.query([])?;
        while let Some(row) = rows.next()? {
            let held = Held {
                ranges: parse_held(row.get(1)?),
                changed: false,
            };
            self.arrays.insert(row.get(0)?, held);
        }
        Ok(())
    }

    /// Tasks that are no more.
    pub(crate) fn forget(&mut self, keys: &[u64]) {
        for key in keys {
            self.arrays.remove(key);
        }
    }

    /// Applies records within the caller's transaction.
    pub(crate) fn apply<'a>(
        &mut self,
        conn: &Connection,
        records: impl Iterator<Item = &'a [u8]>,
    ) -> rusqlite::Result<()> {
        let mut folds = Folds::with_room(self.folds);
        for record in records {
            let Some(event) = Event::decode(record) else {
                tracing::error!(
                    "store: a record of kind {:?} cannot be read",
                    record.first()
                );
                continue;
            };
            self.event(conn, &mut folds, event)?;
        }
        self.folds = folds.list.len();
        self.write(conn, &mut folds)?;
        self.write_held(conn)
    }

    fn event<'a>(
        &mut self,
        conn: &Connection,
        folds: &mut Folds<'a>,
        event: Event<'a>,
    ) -> rusqlite::Result<()> {
        match event {
            Event::Submitted(submitted) => {
                self.submissions += 1;
                self.shared.next_key.fetch_max(submitted.key + 1, Relaxed);
                if submitted.count > 1 {
                    self.arrays.insert(submitted.key, Held::default());
                }
                folds.submitted(submitted);
            }
            Event::Dispatched {
                key,
                lo,
                hi,
                attempt,
                at,
                engine,
            } => match self.arrays.get_mut(&key) {
                Some(held) => held.add((lo, hi, engine.to_owned(), attempt, at)),
                None => {
                    let fold = folds.at(key);
                    fold.dispatched = Some((engine, attempt, at));
                    fold.requeued = false;
                }
            },
            Event::Requeued {
                key,
                lo,
                hi,
                retries,
            } => match self.arrays.get_mut(&key) {
                Some(held) => held.remove(lo, hi),
                None => {
                    let fold = folds.at(key);
                    fold.requeued = true;
                    fold.retries = retries;
                }
            },
            Event::Finished(finished) => self.finished(conn, folds, finished)?,
            Event::Output {
                msg_id,
                stream,
                text,
            } => {
                self.write(conn, folds)?;
                self.output(conn, msg_id, stream, text)?;
            }
            Event::Update { msg_id, fields } => {
                self.write(conn, folds)?;
                self.placeholder(conn, msg_id)?;
                tolerate(
                    update::apply(conn, msg_id, fields, self.packing),
                    "a change of a record",
                )?;
            }
            Event::Meta { name, value } => {
                conn.prepare_cached("INSERT INTO meta VALUES (?1, ?2) ON CONFLICT (name) DO UPDATE SET value = excluded.value")?
                    .execute((format!("user.{name}"), value))?;
            }
        }
        Ok(())
    }

    fn finished<'a>(
        &mut self,
        conn: &Connection,
        folds: &mut Folds<'a>,
        finished: Finished<'a>,
    ) -> rusqlite::Result<()> {
        self.finishes += 1;
        let key = match finished.task {
            TaskRef::Key(key) => Some(key),
            TaskRef::Id(id) => match folds.key_of(id) {
                Some(key) => Some(key),
                None => conn
                    .prepare_cached("SELECT key FROM task WHERE msg_id = ?1")?
                    .query_row([id], |row| row.get(0))
                    .optional()?,
            },
        };
        let Some(key) = key else {
            self.garbage
                .extend((finished.frames.file != 0).then_some(finished.frames.file));
            return Ok(());
        };
        if finished.late {
            self.write(conn, folds)?;
            return self.late(conn, key, &finished);
        }
        if let Some(held) = self.arrays.get_mut(&key) {
            held.remove(finished.lo, finished.hi);
            self.piece(conn, key, &finished)?;
            if finished.done {
                self.arrays.remove(&key);
                conn.prepare_cached("DELETE FROM held WHERE task = ?1")?
                    .execute([key])?;
                let outcome = array_outcome(conn, key)?;
                folds.at(key).ended = Some((outcome, finished.received));
            }
            return Ok(());
        }
        if folds.at(key).finished.is_some() {
            return self.late(conn, key, &finished);
        }
        folds.at(key).finished = Some(finished);
        Ok(())
    }

    /// Writes the folds.
    fn write(&mut self, conn: &Connection, folds: &mut Folds<'_>) -> rusqlite::Result<()> {
        let folds = std::mem::take(folds);
        if folds.list.is_empty() {
            return Ok(());
        }
        let mut insert = conn.prepare_cached(INSERT)?;
        for fold in &folds.list {
            match &fold.submitted {
                Some(submitted) => {
                    if let Err(e) = self.insert(&mut insert, fold, submitted) {
                        if e.sqlite_error_code() != Some(rusqlite::ErrorCode::ConstraintViolation) {
                            tolerate(Err(e), submitted.msg_id)?;
                            continue;
                        }
                        self.insert_again(conn, &mut insert, fold, submitted)?;
                    }
                    self.file(conn, fold.key, &submitted.frames)?;
                    if let Some(finished) = &fold.finished {
                        self.file(conn, fold.key, &finished.frames)?;
                    }
                }
                None => self.update(conn, fold)?,
            }
            if let (Some(retries), None) = (fold.retries, &fold.finished) {
                conn.prepare_cached("UPDATE task SET retries = ?2 WHERE key = ?1")?
                    .execute((fold.key, retries))?;
            }
        }
        Ok(())
    }

    fn insert(
        &self,
        insert: &mut rusqlite::CachedStatement<'_>,
        fold: &Fold<'_>,
        submitted: &Submitted<'_>,
    ) -> rusqlite::Result<usize> {
        let request = Parts::of(&submitted.frames);
        let header = Parts::glance(request.header, self.packing);
        let metadata = Parts::glance(request.metadata, self.packing);
        let named = matches!(
            header.msg_type.as_deref(),
            Some("command_request" | "function_request")
        );
        let content = Parts::glance(request.content.filter(|_| named), self.packing);
        let name = content
            .cmd
            .as_deref()
            .or(content.name.as_deref())
            .map(|n| head(n, NAME_CHARS));
        let submitted_at = header
            .date
            .as_deref()
            .and_then(parse_time)
            // A date of later than that is of another clock.
            .map_or(submitted.received, |date| date.min(submitted.received));
        let result = ResultColumns::of(fold, self.packing);
        insert.execute(params![
            fold.key,
            submitted.msg_id,
            submitted.queue.as_str(),
            submitted.count,
            header.msg_type.as_deref(),
            name,
            metadata.label.as_deref(),
            submitted.client,
            header.session.as_deref(),
            result.status(submitted.count > 1),
            fold.dispatched.map_or(0, |d| d.1),
            result.engine,
            result.code,
            submitted_at,
            submitted.received,
            fold.dispatched.map(|d| d.2),
            result.started,
            result.completed,
            result.received,
            request.header,
            request.parent,
            request.metadata,
            request.content,
            request.buffers,
            request.file,
            result.parts.header,
            result.parts.metadata,
            result.parts.content,
            result.parts.buffers,
            result.parts.file,
        ])
    }

    /// The id is taken: by a row that was made for output that came first, which is filled in; or by an older task, which goes.
    fn insert_again(
        &mut self,
        conn: &Connection,
        insert: &mut rusqlite::CachedStatement<'_>,
        fold: &Fold<'_>,
        submitted: &Submitted<'_>,
    ) -> rusqlite::Result<()> {
        let old: Option<(u64, bool)> = conn
            .prepare_cached("SELECT key, queue IS NULL FROM task WHERE msg_id = ?1")?
            .query_row([submitted.msg_id], |row| row.try_into())
            .optional()?;
        let Some((old, placeholder)) = old else {
            tracing::error!("store: key {} of {} is taken", fold.key, submitted.msg_id);
            return Ok(());
        };
        conn.execute_batch("DROP TABLE IF EXISTS temp.early; CREATE TEMP TABLE early AS SELECT * FROM task WHERE 0")?;
        conn.execute(
            "INSERT INTO temp.early SELECT * FROM task WHERE key = ?1",
            [old],
        )?;
        let mut orphans = super::prune::Orphans::default();
        super::prune::drop_task(conn, old, &mut orphans)?;
        self.garbage.extend(orphans.numbers);
        if let Err(e) = self.insert(insert, fold, submitted) {
            return tolerate(Err(e), submitted.msg_id);
        }
        if placeholder {
            conn.execute(
                "UPDATE task SET (execute_input, execute_result, error, stdout, stderr, extra) =
                 (SELECT execute_input, execute_result, error, stdout, stderr, extra FROM temp.early) WHERE key = ?1",
                [fold.key],
            )?;
        }
        conn.execute_batch("DROP TABLE temp.early")
    }

    /// A task that was in the database before this transaction.
    fn update(&mut self, conn: &Connection, fold: &Fold<'_>) -> rusqlite::Result<()> {
        let key = fold.key;
        if let Some((outcome, at)) = fold.ended {
            conn.prepare_cached(
                "UPDATE task SET status = ?2, completed = ?3, received = ?3 WHERE key = ?1",
            )?
            .execute((key, outcome.as_str(), at))?;
        }
        if let Some(finished) = &fold.finished {
            let result = ResultColumns::of(fold, self.packing);
            let changed = conn.prepare_cached(FINISH)?.execute(params![
                key,
                result.status(false),
                fold.dispatched.map(|d| d.1),
                result.engine,
                result.code,
                fold.dispatched.map(|d| d.2),
                result.started,
                result.completed,
                result.received,
                result.parts.header,
                result.parts.metadata,
                result.parts.content,
                result.parts.buffers,
                result.parts.file,
            ]);
            match changed {
                Ok(0) => self.late(conn, fold.key, finished)?,
                Ok(_) => self.file(conn, fold.key, &finished.frames)?,
                Err(e) => tolerate(Err(e), "a result")?,
            }
        } else if fold.requeued {
            conn.prepare_cached(
                "UPDATE task SET status = 'waiting', engine_uuid = NULL, attempt = MAX(attempt, ?2) WHERE key = ?1 AND completed IS NULL",
            )?
            .execute((key, fold.dispatched.map_or(0, |d| d.1)))?;
        } else if let Some((engine, attempt, at)) = fold.dispatched {
            conn.prepare_cached(
                "UPDATE task SET status = 'dispatched', engine_uuid = ?2, attempt = ?3, dispatched = ?4 WHERE key = ?1 AND completed IS NULL",
            )?
            .execute((key, engine, attempt, at))?;
        }
        Ok(())
    }

    fn piece(
        &mut self,
        conn: &Connection,
        key: u64,
        finished: &Finished<'_>,
    ) -> rusqlite::Result<()> {
        let parts = Parts::of(&finished.frames);
        let times = Times::of(&parts, finished.received, self.packing);
        let inserted = conn.prepare_cached(PIECE)?.execute(params![
            key,
            finished.lo,
            finished.hi,
            finished.outcome.as_str(),
            (!finished.exceptions.is_empty()).then_some(finished.exceptions),
            some(finished.engine),
            times.started,
            times.completed,
            finished.received,
            parts.header,
            parts.metadata,
            parts.content,
            parts.buffers,
            parts.file,
        ]);
        tolerate(inserted.map(drop), "a result of an array")?;
        self.file(conn, key, &finished.frames)
    }

    /// A result that comes too late. One that is known already is only sent again, by an engine that saw no acknowledgement.
    fn late(
        &mut self,
        conn: &Connection,
        key: u64,
        finished: &Finished<'_>,
    ) -> rusqlite::Result<()> {
        self.garbage
            .extend((finished.frames.file != 0).then_some(finished.frames.file));
        let parts = Parts::of(&finished.frames);
        conn.prepare_cached(
            "INSERT INTO late (task, lo, hi, status, engine_uuid, received, result_metadata, result_content)
             SELECT ?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8 WHERE EXISTS (SELECT 1 FROM task WHERE key = ?1
             AND (count > 1 OR completed IS NULL OR engine_uuid IS NOT ?5 OR status IS NOT ?4))
             AND NOT EXISTS (SELECT 1 FROM piece WHERE task = ?1 AND lo = ?2 AND hi = ?3 AND engine_uuid IS ?5 AND status = ?4)
             AND NOT EXISTS (SELECT 1 FROM late WHERE task = ?1 AND lo = ?2 AND hi = ?3 AND engine_uuid IS ?5)",
        )?
        .execute(params![
            key,
            finished.lo,
            finished.hi,
            finished.outcome.as_str(),
            some(finished.engine),
            finished.received,
            parts.metadata,
            parts.content,
        ])
        .map(drop)
    }

    fn file(&self, conn: &Connection, key: u64, frames: &Frames<'_>) -> rusqlite::Result<()> {
        if frames.file != 0 {
            conn.prepare_cached("INSERT OR IGNORE INTO file VALUES (?1, ?2, ?3)")?
                .execute((frames.file, key, frames.size))?;
        }
        Ok(())
    }

    fn output(
        &self,
        conn: &Connection,
        msg_id: &str,
        stream: Stream,
        text: &str,
    ) -> rusqlite::Result<()> {
        let key = self.placeholder(conn, msg_id)?;
        let sql = match stream {
            Stream::Stdout => "UPDATE task SET stdout = COALESCE(stdout, '') || ?2 WHERE key = ?1",
            Stream::Stderr => "UPDATE task SET stderr = COALESCE(stderr, '') || ?2 WHERE key = ?1",
        };
        tolerate(
            conn.prepare_cached(sql)?.execute((key, text)).map(drop),
            "output",
        )
    }

    /// The row of a task, which is made for what comes before it. A member of an array has its array's: a row of its own
    /// would hide what that says of it.
    fn placeholder(&self, conn: &Connection, msg_id: &str) -> rusqlite::Result<u64> {
        if let Some((key, _)) = find_key(conn, msg_id)? {
            return Ok(key);
        }
        let key = self.shared.next_key.fetch_add(1, Relaxed);
        conn.prepare_cached("INSERT INTO task (key, msg_id, status) VALUES (?1, ?2, 'waiting')")?
            .execute((key, msg_id))?;
        Ok(key)
    }

    fn write_held(&mut self, conn: &Connection) -> rusqlite::Result<()> {
        for (key, held) in self.arrays.iter_mut().filter(|(_, held)| held.changed) {
            held.changed = false;
            let ranges = serde_json::to_string(&held.ranges).unwrap_or_default();
            conn.prepare_cached("INSERT INTO held VALUES (?1, ?2) ON CONFLICT (task) DO UPDATE SET ranges = excluded.ranges")?
                .execute((key, ranges))?;
        }
        Ok(())
    }
}

impl Held {
    fn add(&mut self, range: HeldRange) {
        self.ranges.push(range);
        self.changed = true;
    }

    fn remove(&mut self, lo: u64, hi: u64) {
        self.changed = true;
        let mut cut = Vec::new();
        self.ranges.retain_mut(|held| {
            if held.0 >= hi || held.1 <= lo {
                return true;
            }
            if held.1 > hi {
                cut.push((hi, held.1, held.2.clone(), held.3, held.4));
            }
            held.1 = lo;
            held.0 < held.1
        });
        self.ranges.extend(cut);
    }
}

/// Passes on what trying again may cure; says and skips what it will not.
fn tolerate(result: rusqlite::Result<()>, what: &str) -> rusqlite::Result<()> {
    match result {
        Err(e) if !db::may_pass(&e) => {
            tracing::error!("store: {what} cannot be kept in the history: {e}");
            Ok(())
        }
        other => other,
    }
}

/// The outcomes of an array's members, `None` where a member has ended and is tried again.
pub(crate) fn array_outcomes(
    conn: &Connection,
    key: u64,
) -> rusqlite::Result<RangeMap<u64, Outcome>> {
    let mut map = RangeMap::new();
    let mut pieces = conn.prepare_cached(
        "SELECT lo, hi, status, exceptions FROM piece WHERE task = ?1 ORDER BY id",
    )?;
    let mut rows = pieces.query([key])?;
    while let Some(row) = rows.next()? {
        let range: Range<u64> = row.get(0)?..row.get(1)?;
        if let Some(outcome) = Outcome::of(row.get_ref(2)?.as_str()?)
            && !range.is_empty()
        {
            map.insert(range, outcome);
        }
        if let Some(packed) = row.get_ref(3)?.as_blob_or_null()? {
            for (member, exception) in exceptions(packed) {
                match exception {
                    Exception::Ended(outcome) => map.insert(member..member + 1, outcome),
                    Exception::Retry => map.remove(member..member + 1),
                }
            }
        }
    }
    Ok(map)
}

/// What engines hold of an array.
pub(crate) fn held(conn: &Connection, key: u64) -> rusqlite::Result<Vec<HeldRange>> {
    conn.prepare_cached("SELECT ranges FROM held WHERE task = ?1")?
        .query_row([key], |row| row.get(0))
        .optional()
        .map(|ranges| parse_held(ranges.flatten()))
}

fn parse_held(ranges: Option<String>) -> Vec<HeldRange> {
    ranges
        .and_then(|ranges| serde_json::from_str(&ranges).ok())
        .unwrap_or_default()
}

/// How an array ended whose members have: ok if all are, else error if one is, else aborted.
fn array_outcome(conn: &Connection, key: u64) -> rusqlite::Result<Outcome> {
    let mut whole = Outcome::Ok;
    for (_, outcome) in array_outcomes(conn, key)?.iter() {
        match (whole, outcome) {
            (_, Outcome::Error) => whole = Outcome::Error,
            (Outcome::Ok, Outcome::Aborted) => whole = Outcome::Aborted,
            _ => {}
        }
    }
    Ok(whole)
}

const INSERT: &str = "INSERT INTO task (key, msg_id, queue, count, msg_type, name, label, client, client_uuid, status, attempt,
    engine_uuid, code, submitted, arrived, dispatched, started, completed, received, header, parent_header, metadata, content,
    buffers, request_file, result_header, result_metadata, result_content, result_buffers, result_file)
    VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15, ?16, ?17, ?18, ?19, ?20, ?21, ?22, ?23, ?24, ?25,
    ?26, ?27, ?28, ?29, ?30)";

const FINISH: &str = "UPDATE task SET status = ?2, attempt = MAX(attempt, COALESCE(?3, 0)), engine_uuid = COALESCE(?4, engine_uuid),
    code = ?5, dispatched = COALESCE(?6, dispatched), started = ?7, completed = ?8, received = ?9, result_header = ?10,
    result_metadata = ?11, result_content = ?12, result_buffers = ?13, result_file = ?14
    WHERE key = ?1 AND completed IS NULL";

const PIECE: &str = "INSERT INTO piece (task, lo, hi, status, exceptions, engine_uuid, started, completed, received, result_header,
    result_metadata, result_content, result_buffers, result_file)
    VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14)";
