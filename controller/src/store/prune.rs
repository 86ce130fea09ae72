//! Dropping what is old, in steps so small that nothing else waits for them.

use std::time::Duration;

use rusqlite::Connection;

use super::now_us;
use super::options::Keep;

/// Tasks that a step drops at most.
pub(crate) const STEP: usize = 256;
/// Pages that a step gives back to the file system.
const VACUUM_PAGES: u32 = 512;

/// What the history may not exceed.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Limits {
    pub(crate) age: Option<Duration>,
    pub(crate) bytes: Option<u64>,
    pub(crate) records: Option<u64>,
}

impl From<Keep> for Limits {
    fn from(keep: Keep) -> Self {
        Limits {
            age: keep.age,
            bytes: keep.bytes,
            records: None,
        }
    }
}

/// What the next step drops.
#[derive(Debug, Default)]
pub(crate) struct Due {
    /// Finished tasks, oldest first; empty if nothing has to go.
    pub(crate) keys: Vec<u64>,
    /// They go only until the history has no more bytes than this.
    pub(crate) down_to: Option<u64>,
}

/// Looks what has to go, given the bytes of the history.
pub(crate) fn due(conn: &Connection, limits: &Limits, bytes: u64) -> rusqlite::Result<Due> {
    let mut due = Due {
        keys: Vec::new(),
        down_to: limits.bytes.filter(|bound| bytes > *bound),
    };
    let too_many = match limits.records {
        Some(bound) => {
            let mut count = conn.prepare_cached("SELECT COUNT(*) FROM task")?;
            let count: u64 = count.query_row([], |row| row.get(0))?;
            count.saturating_sub(bound)
        }
        None => 0,
    };
    let (before, most) = if due.down_to.is_some() {
        (i64::MAX, STEP)
    } else if too_many > 0 {
        (
            i64::MAX,
            usize::try_from(too_many).map_or(STEP, |n| n.min(STEP)),
        )
    } else if let Some(age) = limits.age {
        let age = i64::try_from(age.as_micros()).unwrap_or(i64::MAX);
        (now_us().saturating_sub(age), STEP)
    } else {
        return Ok(due);
    };
    let mut select = conn.prepare_cached(
        "SELECT key FROM task WHERE completed IS NOT NULL AND completed < ?1 ORDER BY completed, key LIMIT ?2",
    )?;
    due.keys = select
        .query_map((before, most), |row| row.get(0))?
        .collect::<Result<_, _>>()?;
    Ok(due)
}

/// Files whose rows are gone: to be removed after the commit.
#[derive(Debug, Default)]
pub(crate) struct Orphans {
    pub(crate) numbers: Vec<u64>,
    pub(crate) bytes: u64,
}

/// Drops a task with all that belongs to it.
pub(crate) fn drop_task(
    conn: &Connection,
    key: u64,
    orphans: &mut Orphans,
) -> rusqlite::Result<bool> {
    {
        let mut select = conn.prepare_cached("SELECT number, bytes FROM file WHERE task = ?1")?;
        let mut rows = select.query([key])?;
        while let Some(row) = rows.next()? {
            orphans.numbers.push(row.get(0)?);
            orphans.bytes += row.get::<_, u64>(1)?;
        }
    }
    for table in ["file", "piece", "held", "late"] {
        conn.prepare_cached(&format!("DELETE FROM {table} WHERE task = ?1"))?
            .execute([key])?;
    }
    Ok(conn
        .prepare_cached("DELETE FROM task WHERE key = ?1")?
        .execute([key])?
        > 0)
}

/// Gives pages back when a fourth of the file is empty; true if there are more.
pub(crate) fn shrink(conn: &Connection) -> rusqlite::Result<bool> {
    let free: i64 = conn.pragma_query_value(None, "freelist_count", |row| row.get(0))?;
    let all: i64 = conn.pragma_query_value(None, "page_count", |row| row.get(0))?;
    if free < 1024 || free * 4 < all {
        return Ok(false);
    }
    let mut vacuum = conn.prepare_cached(&format!("PRAGMA incremental_vacuum({VACUUM_PAGES})"))?;
    let mut rows = vacuum.query([])?;
    while rows.next()?.is_some() {}
    Ok(true)
}
