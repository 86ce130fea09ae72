//! The database: its file, its pragmas, its schema.

use std::path::Path;
use std::time::Duration;

use rusqlite::{Connection, ErrorCode, OpenFlags, OptionalExtension};

use super::StoreError;

const SCHEMA: &str = include_str!("schema.sql");
/// Grows with each change of the schema.
const VERSION: i64 = 2;

/// Opens the database for writing, and makes it if it is not there. `None` for one in memory.
pub(crate) fn open(path: Option<&Path>) -> Result<Connection, StoreError> {
    let file = path.unwrap_or(Path::new(":memory:"));
    let error = StoreError::sqlite(file);
    let conn = match path {
        Some(path) => Connection::open(path),
        None => Connection::open_in_memory(),
    }
    .map_err(error)?;
    let set_up = || -> rusqlite::Result<i64> {
        conn.busy_timeout(Duration::from_secs(10))?;
        conn.pragma_update(None, "page_size", 8192)?;
        conn.pragma_update(None, "auto_vacuum", "INCREMENTAL")?;
        if path.is_some() {
            conn.pragma_update_and_check(None, "journal_mode", "WAL", |_| Ok(()))?;
            conn.pragma_update(None, "synchronous", "NORMAL")?;
        }
        // Checkpoints are ours: segments are deleted after them.
        conn.pragma_update_and_check(None, "wal_autocheckpoint", 0, |_| Ok(()))?;
        conn.pragma_update(None, "cache_size", -32_768)?;
        conn.pragma_update(None, "temp_store", "MEMORY")?;
        conn.set_prepared_statement_cache_capacity(64);
        conn.pragma_query_value(None, "user_version", |row| row.get(0))
    };
    let found = set_up().map_err(error)?;
    if found > VERSION {
        return Err(StoreError::Version {
            path: file.to_owned(),
            found,
            known: VERSION,
        });
    }
    let create = || -> rusqlite::Result<()> {
        conn.execute_batch("BEGIN IMMEDIATE")?;
        if found == 1 {
            conn.execute_batch("ALTER TABLE task ADD COLUMN retries INTEGER")?;
        }
        conn.execute_batch(SCHEMA)?;
        conn.pragma_update(None, "user_version", VERSION)?;
        conn.execute_batch("COMMIT")
    };
    create().map_err(error)?;
    Ok(conn)
}

/// Opens the database for queries beside the writer.
pub(crate) fn open_reader(path: &Path) -> Result<Connection, StoreError> {
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let open = || -> rusqlite::Result<Connection> {
        let conn = Connection::open_with_flags(path, flags)?;
        conn.busy_timeout(Duration::from_secs(10))?;
        conn.pragma_update(None, "cache_size", -16_384)?;
        conn.set_prepared_statement_cache_capacity(32);
        Ok(conn)
    };
    open().map_err(StoreError::sqlite(path))
}

/// Reads a number from `meta`.
pub(crate) fn meta_number(conn: &Connection, name: &str) -> rusqlite::Result<Option<u64>> {
    conn.prepare_cached("SELECT value FROM meta WHERE name = ?1")?
        .query_row([name], |row| row.get(0))
        .optional()
}

/// Writes a number to `meta`.
pub(crate) fn set_meta_number(conn: &Connection, name: &str, value: u64) -> rusqlite::Result<()> {
    conn.prepare_cached(
        "INSERT INTO meta VALUES (?1, ?2) ON CONFLICT (name) DO UPDATE SET value = excluded.value",
    )?
    .execute((name, value))
    .map(drop)
}

/// Whether trying again may help: the disk, not the data, is the reason.
pub(crate) fn may_pass(error: &rusqlite::Error) -> bool {
    use ErrorCode::{
        CannotOpen, DatabaseBusy, DatabaseCorrupt, DatabaseLocked, DiskFull,
        FileLockingProtocolFailed, NotADatabase, OutOfMemory, PermissionDenied, ReadOnly,
        SystemIoFailure,
    };
    matches!(
        error.sqlite_error_code(),
        Some(
            CannotOpen
                | DatabaseBusy
                | DatabaseCorrupt
                | DatabaseLocked
                | DiskFull
                | FileLockingProtocolFailed
                | NotADatabase
                | OutOfMemory
                | PermissionDenied
                | ReadOnly
                | SystemIoFailure
        )
    )
}

/// Bytes of the pages in use.
pub(crate) fn bytes(conn: &Connection) -> rusqlite::Result<u64> {
    let pages: u64 = conn.pragma_query_value(None, "page_count", |row| row.get(0))?;
    let free: u64 = conn.pragma_query_value(None, "freelist_count", |row| row.get(0))?;
    let size: u64 = conn.pragma_query_value(None, "page_size", |row| row.get(0))?;
    Ok(pages.saturating_sub(free) * size)
}
