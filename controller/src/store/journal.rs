//! The journal: what the task thread appends, in segments `ipbroker.journal/POSITION.log` named by the position of their first byte.

use std::fs::{self, File};
use std::io;
use std::ops::Range;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering::{Relaxed, Release};
use std::time::{Duration, Instant};

use crossbeam_channel::Sender;

use super::event::{Batch, Finish, Submission};
use super::handle::Request;
use super::options::SyncMode;
use super::shared::{Part, Shared};
use super::spill::Spill;
use super::{StoreError, now_us};

/// How far the journal has come: bytes since its beginning, over all segments.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Position(pub(crate) u64);

/// Space set aside for dispatches and outcomes when the disk is full.
const RESERVE: u64 = 16 << 20;
/// How often a fault is looked at again.
const PROBE: Duration = Duration::from_secs(1);

/// The writing end, owned by the task thread.
#[derive(Debug)]
pub struct Journal {
    sink: Sink,
    shared: Arc<Shared>,
    batch: Batch,
}

#[derive(Debug)]
enum Sink {
    Off,
    /// Batches go to the memory history.
    Channel(Sender<Request>, Spill),
    Disk(Disk),
}

#[derive(Debug)]
struct Disk {
    config: DiskConfig,
    file: Arc<File>,
    /// Position of the file's first byte.
    base: u64,
    /// Whole records in the file.
    len: u64,
    want_durable: bool,
    reserve: Reserve,
    last_probe: Instant,
}

impl Journal {
    fn new(sink: Sink, shared: Arc<Shared>) -> Self {
        Journal {
            sink,
            shared,
            batch: Batch::default(),
        }
    }

    pub(crate) fn off(shared: Arc<Shared>) -> Self {
        Self::new(Sink::Off, shared)
    }

    pub(crate) fn memory(shared: Arc<Shared>, requests: Sender<Request>, spill: Spill) -> Self {
        Self::new(Sink::Channel(requests, spill), shared)
    }

    /// Continues at `shared.written` with a new segment.
    pub(crate) fn disk(config: DiskConfig, shared: Arc<Shared>) -> Result<Self, StoreError> {
        let base = shared.written.load(Relaxed);
        let path = segment_path(&config.dir, base);
        let file = new_segment(&path).map_err(StoreError::io("cannot create", &path))?;
        let disk = Disk {
            file: Arc::new(file),
            base,
            len: 0,
            want_durable: false,
            reserve: Reserve::new(config.dir.join("reserve")),
            last_probe: Instant::now(),
            config,
        };
        disk.announce(&shared);
        Ok(Self::new(Sink::Disk(disk), shared))
    }

    /// Where large frames go; `None`: nothing is recorded.
    fn spill(&self) -> Option<&Spill> {
        match &self.sink {
            Sink::Off => None,
            Sink::Channel(_, spill) => Some(spill),
            Sink::Disk(disk) => Some(&disk.config.spill),
        }
    }

    /// Whether anything is recorded: under `--nodb` the frames need not be gathered.
    #[must_use]
    pub fn keeps(&self) -> bool {
        !matches!(self.sink, Sink::Off)
    }

    /// Records a submission.
    ///
    /// # Errors
    /// A large buffer could not be written: nothing was recorded, the task must be refused.
    pub fn submitted(&mut self, submission: &Submission<'_>) -> io::Result<()> {
        let Some(spill) = self.spill() else {
            return Ok(());
        };
        let (placed, file) = spill.place(submission.frames)?;
        self.batch.submitted(submission, now_us(), &placed, file);
        Ok(())
    }

    /// Records that members of a task are about to be sent to an engine; `attempt` counts from 1.
    pub fn dispatched(&mut self, key: u64, range: Range<u64>, attempt: u32, engine: &str) {
        if self.keeps() {
            self.batch
                .dispatched(key, &range, attempt, now_us(), engine);
        }
    }

    /// Records that dispatched members wait again: given back, lost, or failed with so many retries left.
    pub fn requeued(&mut self, key: u64, range: Range<u64>, retries: u32) {
        if self.keeps() {
            self.batch.requeued(key, &range, retries);
        }
    }

    /// Records an outcome. A large result that cannot be written is left out of the history (and reported), the outcome is not.
    pub fn finished(&mut self, finish: &Finish<'_>) {
        let Some(spill) = self.spill() else {
            return;
        };
        let (placed, file) = spill.place_result(finish.frames);
        self.batch.finished(finish, now_us(), &placed, file);
    }

    /// Records a value that a later controller finds in [`Recovered::meta`](super::Recovered::meta).
    pub fn set_meta(&mut self, name: &str, value: &str) {
        if self.keeps() {
            self.batch.meta(name, value);
        }
    }

    /// Asks for the next flush to be synced at once: an acknowledgement waits for it.
    pub fn want_durable(&mut self) {
        if let Sink::Disk(disk) = &mut self.sink {
            disk.want_durable = true;
        }
    }

    /// Writes what was recorded since the last flush. Cheap when that is nothing; call it at least every second.
    ///
    /// # Errors
    /// Nothing of the batch counts; it is kept, and the next flush writes it first. Hold back everything it causes.
    pub fn flush(&mut self) -> io::Result<Position> {
        match &mut self.sink {
            Sink::Channel(requests, _) if !self.batch.is_empty() => {
                let bytes = std::mem::take(&mut self.batch.bytes);
                self.shared.queued.fetch_add(bytes.len() as u64, Relaxed);
                // A store thread that is gone takes nothing with it but the history.
                drop(requests.send(Request::Batch(bytes)));
            }
            Sink::Off | Sink::Channel(..) => {}
            Sink::Disk(disk) => {
                disk.probe(&self.shared);
                if !self.batch.is_empty() {
                    disk.write(&self.batch.bytes, &self.shared)?;
                    self.batch.bytes.clear();
                    if self.batch.bytes.capacity() > 8 << 20 {
                        self.batch.bytes = Vec::new();
                    }
                } else if std::mem::take(&mut disk.want_durable) {
                    disk.ring_sync();
                }
            }
        }
        Ok(Position(self.shared.written.load(Relaxed)))
    }

    /// Up to where everything survives a power failure (under `--sync=none`: the death of the process).
    #[must_use]
    pub fn durable(&self) -> Position {
        Position(self.shared.durable.load(Relaxed))
    }
}

/// What a journal on disk needs.
#[derive(Debug)]
pub(crate) struct DiskConfig {
    pub(crate) dir: PathBuf,
    pub(crate) segment_bytes: u64,
    pub(crate) sync: SyncMode,
    pub(crate) spill: Spill,
    /// Wakes the store thread; holds at most one ring.
    pub(crate) bell: Sender<()>,
    /// Wakes the sync thread.
    pub(crate) sync_bell: Sender<()>,
}

impl Disk {
    fn write(&mut self, bytes: &[u8], shared: &Shared) -> io::Result<()> {
        if self.len > 0 && self.len + bytes.len() as u64 > self.config.segment_bytes {
            self.rotate(shared);
        }
        if let Err(first) = self.file.write_all_at(bytes, self.len) {
            let full = matches!(
                first.kind(),
                io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded
            );
            let rescued =
                full && self.reserve.spend() && self.file.write_all_at(bytes, self.len).is_ok();
            let what = if rescued {
                "; running tasks go on from the reserve, new ones must wait"
            } else {
                ""
            };
            shared.fault(
                Part::Journal,
                format!(
                    "cannot write the journal in {}: {first}{what}",
                    self.config.dir.display()
                ),
            );
            self.last_probe = Instant::now();
            if !rescued {
                return Err(first);
            }
        } else if self.reserve.state != Space::Spent {
            shared.heal(Part::Journal);
        }
        self.len += bytes.len() as u64;
        if self.config.sync == SyncMode::Full {
            // The batch is in the file, but it may not count before it is synced.
            if let Err(e) = sync_all(shared, &self.config.spill, &self.config.dir) {
                self.len -= bytes.len() as u64;
                shared.fault(
                    Part::Journal,
                    format!(
                        "cannot sync the journal in {}: {e}",
                        self.config.dir.display()
                    ),
                );
                return Err(e);
            }
        }
        let end = self.base + self.len;
        shared.written.store(end, Release);
        match self.config.sync {
            SyncMode::Ack => {
                if std::mem::take(&mut self.want_durable) {
                    self.ring_sync();
                }
            }
            SyncMode::None | SyncMode::Full => shared.made_durable(end),
        }
        let _ = self.config.bell.try_send(());
        Ok(())
    }

    /// While something is wrong: looks, once a second, whether it still is. Nothing else would find out, as no new task is taken.
    fn probe(&mut self, shared: &Shared) {
        let faulty = shared.is_faulty(Part::Journal) || shared.is_faulty(Part::Spill);
        if !faulty || self.last_probe.elapsed() < PROBE {
            return;
        }
        self.last_probe = Instant::now();
        let room = rustix::fs::statvfs(&self.config.dir)
            .is_ok_and(|s| s.f_bavail.saturating_mul(s.f_frsize) > 2 * RESERVE);
        if room && (self.reserve.state != Space::Spent || self.reserve.fill()) {
            shared.heal(Part::Journal);
            shared.heal(Part::Spill);
        }
    }

    fn ring_sync(&self) {
        let _ = self.config.sync_bell.try_send(());
    }

    /// Starts a new segment; when that is not possible the old one grows on.
    fn rotate(&mut self, shared: &Shared) {
        let base = self.base + self.len;
        match new_segment(&segment_path(&self.config.dir, base)) {
            Ok(file) => {
                self.file = Arc::new(file);
                self.base = base;
                self.len = 0;
                self.announce(shared);
            }
            Err(e) => tracing::debug!("store: cannot start a new journal segment: {e}"),
        }
    }

    fn announce(&self, shared: &Shared) {
        let mut unsynced = shared.unsynced();
        unsynced.segments.push(Arc::clone(&self.file));
        unsynced.new_files = true;
    }
}

/// Syncs spill files and directories, and closed segments, that have not been synced. What fails stays on the list.
pub(crate) fn sync_all(shared: &Shared, spill: &Spill, dir: &Path) -> io::Result<()> {
    let (segments, spills, new_files) = {
        let mut unsynced = shared.unsynced();
        (
            unsynced.segments.clone(),
            std::mem::take(&mut unsynced.spills),
            std::mem::take(&mut unsynced.new_files),
        )
    };
    let done = (|| {
        spill.sync(&spills, new_files)?;
        for segment in &segments {
            segment.sync_data()?;
        }
        if new_files {
            File::open(dir)?.sync_all()?;
        }
        Ok(())
    })();
    let mut unsynced = shared.unsynced();
    match done {
        Ok(()) => {
            // The last segment is still written to.
            let synced = segments.len().saturating_sub(1);
            unsynced.segments.drain(..synced);
        }
        Err(_) => {
            unsynced.spills.extend(spills);
            unsynced.new_files |= new_files;
        }
    }
    done
}

pub(crate) fn segment_path(dir: &Path, base: u64) -> PathBuf {
    dir.join(format!("{base:016x}.log"))
}

/// An empty segment. One that is there already has no whole record (a crash between making and writing it), or it would
/// have been read to its end.
fn new_segment(path: &Path) -> io::Result<File> {
    File::options()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(path)
}

/// A file of real blocks that is given up when the disk is full, so that what runs can be written to its end.
#[derive(Debug)]
struct Reserve {
    path: PathBuf,
    state: Space,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Space {
    Held,
    /// Given up; no new tasks until it is held again.
    Spent,
    /// Could not be had to begin with.
    None,
}

impl Reserve {
    fn new(path: PathBuf) -> Self {
        let mut reserve = Reserve {
            path,
            state: Space::None,
        };
        reserve.fill();
        reserve
    }
    fn spend(&mut self) -> bool {
        let held = self.state == Space::Held;
        if held {
            self.state = Space::Spent;
            drop(fs::remove_file(&self.path));
        }
        held
    }
    fn fill(&mut self) -> bool {
        let made = File::options()
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&self.path)
            .and_then(|f| {
                rustix::fs::fallocate(&f, rustix::fs::FallocateFlags::empty(), 0, RESERVE)
                    .map_err(io::Error::from)
            });
        match made {
            Ok(()) => self.state = Space::Held,
            Err(e) => {
                tracing::debug!("store: no reserve: {e}");
                drop(fs::remove_file(&self.path));
            }
        }
        self.state == Space::Held
    }
}
