//! Opens a store: recovers, then starts its threads.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::thread::JoinHandle;

use crossbeam_channel::{Sender, bounded, unbounded};

use super::apply::Applier;
use super::handle::{Request, StoreHandle};
use super::journal::{DiskConfig, Journal};
use super::options::{Backend, Options};
use super::prune::Limits;
use super::query::Reader;
use super::recover::{self, Lock};
use super::shared::Shared;
use super::spill::Spill;
use super::tail::Tail;
use super::writer::{Queries, Writer};
use super::{Recovered, StoreError, db, sync};

/// A store that runs. Closing or dropping it writes what is left; the journal may go first or after.
#[derive(Debug)]
pub struct Store {
    requests: Option<Sender<Request>>,
    sync: Option<(Arc<Shared>, Sender<()>)>,
    threads: Vec<JoinHandle<()>>,
    _lock: Option<Lock>,
}

/// What opening a store gives.
pub type Opened = (Store, Journal, StoreHandle, Recovered);

impl Store {
    /// Commits all that was flushed, and ends the threads.
    pub fn close(self) {
        drop(self);
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        if let Some(requests) = self.requests.take() {
            drop(requests.send(Request::Stop));
        }
        if let Some((shared, bell)) = self.sync.take() {
            shared.stopping.store(true, Relaxed);
            let _ = bell.try_send(());
        }
        for thread in self.threads.drain(..) {
            if thread.join().is_err() {
                tracing::error!("a thread of the store panicked");
            }
        }
    }
}

fn spawn(name: &str, run: impl FnOnce() + Send + 'static) -> Result<JoinHandle<()>, StoreError> {
    ipbroker_protocol::spawn(name, run)
        .map_err(StoreError::io("cannot start the thread", Path::new(name)))
}

/// Opens the store of a profile, taking up what an earlier controller left, and starts its threads.
///
/// # Errors
/// Another controller has it, or its files cannot be used.
pub fn open(options: &Options) -> Result<Opened, StoreError> {
    match options.backend {
        Backend::None => {
            let shared = Shared::new("none", u64::MAX);
            let store = Store {
                requests: None,
                sync: None,
                threads: Vec::new(),
                _lock: None,
            };
            let handle = StoreHandle {
                shared: Arc::clone(&shared),
                requests: None,
                spill: None,
            };
            Ok((store, Journal::off(shared), handle, Recovered::default()))
        }
        Backend::Memory { records, bytes } => open_memory(options, records, bytes),
        Backend::Sqlite => open_sqlite(options),
    }
}

fn open_memory(options: &Options, records: usize, bytes: u64) -> Result<Opened, StoreError> {
    let shared = Shared::new("memory", options.lag_bound);
    let spill = Spill::memory(Arc::clone(&shared));
    let (requests, inbox) = unbounded();
    let (bell, rings) = bounded(1);
    let reader = Reader {
        packing: options.packing,
        spill: spill.clone(),
    };
    let applier = Applier::new(options.packing, Arc::clone(&shared));
    let limits = Limits {
        bytes: Some(bytes),
        records: Some(records as u64),
        ..options.keep.into()
    };
    let queries = Queries::Here(reader);
    let writer = Writer::new(
        db::open(None)?,
        applier,
        &shared,
        spill.clone(),
        limits,
        None,
        queries,
    );
    let thread = spawn("store", move || {
        // There is no journal to ring; the bell must not count as hung up.
        let _bell = bell;
        writer.run(&inbox, &rings);
    })?;
    let journal = Journal::memory(Arc::clone(&shared), requests.clone(), spill.clone());
    let handle = StoreHandle {
        shared,
        requests: Some(requests.clone()),
        spill: Some(spill),
    };
    let store = Store {
        requests: Some(requests),
        sync: None,
        threads: vec![thread],
        _lock: None,
    };
    Ok((store, journal, handle, Recovered::default()))
}

fn open_sqlite(options: &Options) -> Result<Opened, StoreError> {
    let path = |suffix: &str| options.dir.join(format!("{}.{suffix}", options.name));
    let (db_path, journal_dir, buffers) = (path("db"), path("journal"), path("buffers"));
    recover::private_dir(&journal_dir)?;
    let lock = Lock::take(&journal_dir.join("lock"))?;
    let shared = Shared::new("sqlite", options.lag_bound);
    recover::private_dir(&buffers)?;
    let spill = Spill::dir(&buffers, Arc::clone(&shared))
        .map_err(StoreError::io("cannot make", &buffers))?;
    private_file(&db_path)?;
    let conn = db::open(Some(&db_path))?;
    let mut applier = Applier::new(options.packing, Arc::clone(&shared));
    recover::replay(&conn, &mut applier, &journal_dir, &shared)?;
    recover::tidy(&conn, &spill, &shared)?;
    let recovered = recover::recover(&conn, &spill, options.packing, options.restore)?;
    let sql = StoreError::sqlite(&db_path);
    applier.load(&conn).map_err(sql)?;
    shared
        .db_bytes
        .store(db::bytes(&conn).map_err(sql)?, Relaxed);

    let (requests, inbox) = unbounded();
    let (bell, rings) = bounded(1);
    let (sync_bell, sync_rings) = bounded(1);
    let position = shared.written.load(Relaxed);
    let (queries, asked) = unbounded();
    let mut writer = Writer::new(
        conn,
        applier,
        &shared,
        spill.clone(),
        options.keep.into(),
        Some((Tail::new(&journal_dir, position), journal_dir.clone())),
        Queries::Thread(queries),
    );
    // What was replayed is durable from here on, and its segments go.
    writer.checkpoint("TRUNCATE");
    let config = DiskConfig {
        dir: journal_dir.clone(),
        segment_bytes: options.segment_bytes,
        sync: options.sync,
        spill: spill.clone(),
        bell: bell.clone(),
        sync_bell: sync_bell.clone(),
    };
    let journal = Journal::disk(config, Arc::clone(&shared))?;
    let reader_conn = db::open_reader(&db_path)?;
    let reader = Reader {
        packing: options.packing,
        spill: spill.clone(),
    };
    let syncer = (Arc::clone(&shared), spill.clone(), journal_dir);
    let threads = vec![
        spawn("store", move || {
            // When the journal is dropped first, the bell must not count as hung up.
            let _bell = bell;
            writer.run(&inbox, &rings);
        })?,
        spawn("store-read", move || reader.serve(&reader_conn, &asked))?,
        spawn("store-sync", move || {
            sync::run(&sync_rings, &syncer.0, &syncer.1, &syncer.2)
        })?,
    ];
    let handle = StoreHandle {
        shared,
        requests: Some(requests.clone()),
        spill: Some(spill),
    };
    let store = Store {
        requests: Some(requests),
        sync: Some((Arc::clone(&handle.shared), sync_bell)),
        threads,
        _lock: Some(lock),
    };
    Ok((store, journal, handle, recovered))
}

/// Tasks may be secret: as the connection files, only for their owner. SQLite gives the files beside it the same mode.
fn private_file(path: &Path) -> Result<(), StoreError> {
    use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
    std::fs::OpenOptions::new()
        .append(true)
        .create(true)
        .mode(0o600)
        .open(path)
        .and_then(|file| file.set_permissions(std::fs::Permissions::from_mode(0o600)))
        .map_err(StoreError::io("cannot protect", path))
}
