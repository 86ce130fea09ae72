//! The start: replays what the journal has and the database has not, and reads what an earlier controller left unfinished.

use std::collections::HashSet;
use std::fs::{self, File};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::atomic::Ordering::Relaxed;

use ipbroker_protocol::session::Packer;
use rangemap::RangeSet;
use rusqlite::Connection;
use serde_json::json;

use super::apply::{Applier, array_outcomes, held};
use super::event::Outcome;
use super::prune;
use super::row::{FULL, Task};
use super::shared::Shared;
use super::spill::Spill;
use super::tail::{self, Found, Tail};
use super::unpack::{Glance, format_time};
use super::writer::apply_read;
use super::{Recovered, RecoveredDispatch, RecoveredTask, StoreError, db, now_us};

/// So many of the latest outcomes are handed over.
const OUTCOMES: i64 = 100_000;

/// Held while a controller uses a profile or a store; it ends with the process, however that ends.
#[derive(Debug)]
pub(crate) struct Lock(#[allow(dead_code, reason = "held for its lock")] File);

impl Lock {
    pub(crate) fn take(path: &Path) -> Result<Lock, StoreError> {
        let file = File::options()
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(path)
            .map_err(StoreError::io("cannot open", path))?;
        match rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Lock(file)),
            Err(rustix::io::Errno::WOULDBLOCK) => Err(StoreError::Locked {
                path: path.to_owned(),
            }),
            // A file system without locks: better unlocked than not at all.
            Err(e) => {
                tracing::warn!(
                    "cannot lock {}: {e}; do not start a second ipctl on it",
                    path.display()
                );
                Ok(Lock(file))
            }
        }
    }
}

/// Replays the journal into the database; `shared` then says where the journal goes on.
pub(crate) fn replay(
    conn: &Connection,
    applier: &mut Applier,
    dir: &Path,
    shared: &Shared,
) -> Result<(), StoreError> {
    let io = |action| StoreError::io(action, dir);
    let sql = StoreError::sqlite(dir);
    let committed = db::meta_number(conn, "position").map_err(sql)?.unwrap_or(0);
    let next_key: u64 = conn
        .query_row("SELECT COALESCE(MAX(key), 0) + 1 FROM task", [], |row| {
            row.get(0)
        })
        .map_err(sql)?;
    let kept_key = db::meta_number(conn, "next_key").map_err(sql)?.unwrap_or(1);
    shared.next_key.fetch_max(next_key.max(kept_key), Relaxed);
    applier.load(conn).map_err(sql)?;

    let mut tail = Tail::new(dir, committed);
    let segments = tail::segments(dir).map_err(io("cannot list"))?;
    if let Some(first) = segments.first()
        && *first > committed
    {
        tracing::warn!(
            "the history ends at {committed}, the journal begins at {first}: what was between is lost"
        );
        tail.position = *first;
    }
    loop {
        match tail
            .read(u64::MAX)
            .map_err(io("cannot read the journal in"))?
        {
            Found::End => break,
            Found::Records => apply_read(conn, applier, &mut tail).map_err(sql)?,
            Found::Broken => match tail.skip().map_err(io("cannot list"))? {
                Some(skipped) => tracing::error!(
                    "{skipped} bytes of the journal in {} cannot be read",
                    dir.display()
                ),
                // A tail that was being written when the controller died.
                None => break,
            },
        }
    }
    tail::cut(dir, tail.position).map_err(io("cannot cut the journal in"))?;
    for at in [&shared.written, &shared.applied] {
        at.store(tail.position, Relaxed);
    }
    db::set_meta_number(conn, "position", tail.position).map_err(sql)?;
    db::set_meta_number(conn, "next_key", shared.next_key.load(Relaxed)).map_err(sql)?;
    Ok(())
}

/// Removes spill files that nothing names, and rows that nothing will ever finish.
pub(crate) fn tidy(conn: &Connection, spill: &Spill, shared: &Shared) -> Result<(), StoreError> {
    let sql = StoreError::sqlite(Path::new("history"));
    let named = || -> rusqlite::Result<HashSet<u64>> {
        let mut select = conn.prepare("SELECT number FROM file")?;
        select.query_map([], |row| row.get(0))?.collect()
    };
    let named = named().map_err(sql)?;
    let mut last = 0;
    let files = spill
        .list()
        .map_err(StoreError::io("cannot list", Path::new("buffers")))?;
    for (number, bytes) in files {
        last = last.max(number);
        if named.contains(&number) {
            shared.file_bytes.fetch_add(bytes, Relaxed);
        } else {
            spill.remove(number);
        }
    }
    last = last.max(named.into_iter().max().unwrap_or(0));
    shared.next_file.store(last + 1, Relaxed);
    // Output whose task never came.
    let mut orphans = prune::Orphans::default();
    let mut early = || -> rusqlite::Result<()> {
        conn.execute_batch("BEGIN IMMEDIATE")?;
        let keys: Vec<u64> = conn
            .prepare("SELECT key FROM task WHERE completed IS NULL AND queue IS NULL")?
            .query_map([], |row| row.get(0))?
            .collect::<Result<_, _>>()?;
        for key in keys {
            prune::drop_task(conn, key, &mut orphans)?;
        }
        conn.execute_batch("COMMIT")
    };
    early().map_err(sql)?;
    let stray = orphans.numbers.into_iter();
    stray.for_each(|number| spill.remove(number));
    Ok(())
}

/// What an earlier controller left. Without `restore`, and for direct requests always, what is unfinished is closed.
pub(crate) fn recover(
    conn: &Connection,
    spill: &Spill,
    packing: Packer,
    restore: bool,
) -> Result<Recovered, StoreError> {
    let sql = StoreError::sqlite(Path::new("history"));
    abandon(conn, packing, restore).map_err(sql)?;
    let mut recovered = Recovered::default();
    let mut read = || -> rusqlite::Result<()> {
        let mut meta =
            conn.prepare("SELECT substr(name, 6), value FROM meta WHERE name LIKE 'user.%'")?;
        let mut rows = meta.query([])?;
        while let Some(row) = rows.next()? {
            recovered.meta.insert(row.get(0)?, row.get(1)?);
        }
        let mut latest = conn.prepare(
            "SELECT msg_id, status FROM task WHERE completed IS NOT NULL ORDER BY completed DESC LIMIT ?1",
        )?;
        let mut rows = latest.query([OUTCOMES])?;
        while let Some(row) = rows.next()? {
            if let Some(outcome) = Outcome::of(row.get_ref(1)?.as_str()?) {
                recovered.outcomes.push((row.get(0)?, outcome));
            }
        }
        recovered.outcomes.reverse();
        let mut open =
            conn.prepare(&format!("SELECT {FULL}, attempt, retries, arrived, dispatched FROM task WHERE completed IS NULL ORDER BY key"))?;
        let columns = open.column_count();
        let mut rows = open.query([])?;
        while let Some(row) = rows.next()? {
            let task = Task::full(row)?;
            let attempt: u32 = row.get(columns - 4)?;
            let retries: Option<u32> = row.get(columns - 3)?;
            let arrived: Option<i64> = row.get(columns - 2)?;
            let dispatched: Option<i64> = row.get(columns - 1)?;
            let engine: Option<String> = row.get(7)?;
            let frames = match task.request.frames(spill, packing) {
                Ok(frames) => frames,
                Err(e) => {
                    tracing::error!(
                        "task {} cannot be taken up again, its buffers cannot be read: {e}",
                        task.msg_id
                    );
                    continue;
                }
            };
            let mut found = RecoveredTask {
                key: task.key,
                msg_id: task.msg_id,
                client: task.client,
                received: arrived.unwrap_or_else(now_us),
                count: task.count,
                frames,
                attempt,
                retries,
                waiting: Vec::new(),
                dispatched: Vec::new(),
                ended: Vec::new(),
            };
            if task.count > 1 {
                members(conn, &mut found)?;
            } else if task.status == "dispatched" {
                found.dispatched.push(RecoveredDispatch {
                    range: 0..1,
                    engine: engine.unwrap_or_default(),
                    attempt,
                    at: dispatched.unwrap_or(0),
                });
            } else {
                found.waiting.push(0..1);
            }
            recovered.tasks.push(found);
        }
        Ok(())
    };
    read().map_err(sql)?;
    Ok(recovered)
}

/// Which members of an array wait, are held, have ended.
fn members(conn: &Connection, task: &mut RecoveredTask) -> rusqlite::Result<()> {
    let ended = array_outcomes(conn, task.key)?;
    let all = (task.count > 0).then_some(0..task.count);
    let mut waiting = RangeSet::from_iter(all);
    for (range, outcome) in ended {
        waiting.remove(range.clone());
        task.ended.push((range, outcome));
    }
    for (lo, hi, engine, attempt, at) in held(conn, task.key)? {
        if lo < hi {
            waiting.remove(lo..hi);
        }
        task.attempt = task.attempt.max(attempt);
        task.dispatched.push(RecoveredDispatch {
            range: lo..hi,
            engine,
            attempt,
            at,
        });
    }
    task.dispatched.sort_by_key(|d| d.range.start);
    task.waiting = waiting.into_iter().collect();
    Ok(())
}

/// Closes what no controller will finish any more: aborted, with a reply that says why.
fn abandon(conn: &Connection, packing: Packer, restore: bool) -> rusqlite::Result<()> {
    let which = if restore {
        "completed IS NULL AND queue IS NOT 'task'"
    } else {
        "completed IS NULL"
    };
    let open: Vec<(u64, Option<Vec<u8>>, String)> = conn
        .prepare(&format!(
            "SELECT key, header, msg_id FROM task WHERE {which}"
        ))?
        .query_map([], |row| row.try_into())?
        .collect::<Result<_, _>>()?;
    if open.is_empty() {
        return Ok(());
    }
    let now = now_us();
    let why =
        "the controller ended before this task did, and was started again without taking it up";
    let content = packing.pack(
        &json!({"status": "aborted", "ename": "TaskAborted", "evalue": why, "traceback": []}),
    );
    let metadata = packing.pack(&json!({"status": "aborted", "completed": format_time(now)}));
    conn.execute_batch("BEGIN IMMEDIATE")?;
    let mut update = conn.prepare(
        "UPDATE task SET status = ?2, completed = ?3, received = ?3, result_header = ?4, result_metadata = ?5,
         result_content = ?6 WHERE key = ?1",
    )?;
    for (key, header, msg_id) in &open {
        let glance = Glance::at(header.as_deref().unwrap_or_default(), packing);
        let kind = glance.msg_type.as_deref().unwrap_or("apply_request");
        let header = json!({"msg_id": format!("{msg_id}-abandoned"), "msg_type": kind.replace("_request", "_reply"),
            "username": "ipctl", "session": "", "date": format_time(now), "version": "5.3"});
        update.execute((
            key,
            Outcome::Aborted.as_str(),
            now,
            packing.pack(&header),
            &metadata,
            &content,
        ))?;
    }
    conn.execute_batch(
        "DELETE FROM held WHERE task NOT IN (SELECT key FROM task WHERE completed IS NULL)",
    )?;
    conn.execute_batch("COMMIT")?;
    tracing::warn!(
        "{} unfinished tasks of an earlier controller were closed as aborted (`ipctl --restore` would have taken \
         them up; `ipclient resubmit ID...` submits them again)",
        open.len()
    );
    Ok(())
}

/// Makes a directory that only its owner may look into.
pub(crate) fn private_dir(path: &Path) -> Result<(), StoreError> {
    use std::os::unix::fs::DirBuilderExt;
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .map_err(StoreError::io("cannot make", path))
}
