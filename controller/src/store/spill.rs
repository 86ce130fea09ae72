//! Frames that are too large for a record: together in a file of their own, `ipbroker.buffers/NUMBER`, or for the memory history in a map.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Mutex};

use rustix::fs::{Advice, fadvise};

use super::event::Frame;
use super::shared::{Part, Shared, lock};

/// A frame of this size or more is not kept in a record.
pub(crate) const LARGE_FRAME: usize = 256 << 10;
/// Nor are further frames once a record holds this much.
pub(crate) const LARGE_RECORD: usize = 1 << 20;
/// The header, parent header and metadata always are.
const MAPS: usize = 3;

/// A result that could not be spilled is kept in the record itself up to this size.
const RESCUE: usize = 16 << 20;

/// Where large frames are.
#[derive(Debug, Clone)]
pub(crate) struct Spill {
    place: Place,
    shared: Arc<Shared>,
}

#[derive(Debug, Clone)]
enum Place {
    Dir(Arc<Path>),
    Memory(Arc<Mutex<HashMap<u64, Vec<u8>>>>),
}

impl Spill {
    pub(crate) fn dir(dir: &Path, shared: Arc<Shared>) -> io::Result<Self> {
        fs::create_dir_all(dir)?;
        Ok(Spill {
            place: Place::Dir(dir.into()),
            shared,
        })
    }

    pub(crate) fn memory(shared: Arc<Shared>) -> Self {
        Spill {
            place: Place::Memory(Arc::default()),
            shared,
        }
    }

    /// Decides where each frame goes, and takes the large ones there. An error is a fault of the store.
    pub(crate) fn place<'a>(&self, frames: &[&'a [u8]]) -> io::Result<(Vec<Frame<'a>>, u64)> {
        let mut placed: Vec<Frame<'a>> = Vec::with_capacity(frames.len());
        let mut inline = 0usize;
        let mut large: Vec<&[u8]> = Vec::new();
        let mut offset = 0u64;
        for (i, frame) in frames.iter().enumerate() {
            if i < MAPS || (frame.len() < LARGE_FRAME && inline + frame.len() <= LARGE_RECORD) {
                inline += frame.len();
                placed.push(Frame::Inline(frame));
            } else {
                let len = frame.len() as u64;
                placed.push(Frame::Spilled { offset, len });
                large.push(frame);
                offset += len;
            }
        }
        let file = if large.is_empty() {
            0
        } else {
            self.write(&large, offset).inspect_err(|e| {
                let what = format!("cannot write a buffer file: {e}");
                self.shared.fault(Part::Spill, what);
            })?
        };
        Ok((placed, file))
    }

    /// Places the frames of a result so that it cannot fail.
    pub(crate) fn place_result<'a>(&self, frames: &[&'a [u8]]) -> (Vec<Frame<'a>>, u64) {
        if let Ok(placed) = self.place(frames) {
            if placed.1 != 0 {
                self.shared.heal(Part::Spill);
            }
            return placed;
        }
        let size: usize = frames.iter().map(|f| f.len()).sum();
        let kept = if size <= RESCUE {
            frames.len()
        } else {
            frames.len().min(MAPS)
        };
        if kept < frames.len() {
            tracing::error!("store: a result of {size} bytes could not be kept; its outcome is");
        }
        (frames[..kept].iter().map(|f| Frame::Inline(f)).collect(), 0)
    }

    fn path(dir: &Path, number: u64) -> PathBuf {
        dir.join(format!("{number:016x}"))
    }

    /// Writes these frames and says their number. A file that cannot be written whole is removed.
    fn write(&self, frames: &[&[u8]], bytes: u64) -> io::Result<u64> {
        let number = self.shared.next_file.fetch_add(1, Relaxed);
        match &self.place {
            Place::Memory(files) => {
                lock(files).insert(number, frames.concat());
            }
            Place::Dir(dir) => {
                let path = Self::path(dir, number);
                let written = (|| {
                    let mut file = File::options()
                        .write(true)
                        .create_new(true)
                        .mode(0o600)
                        .open(&path)?;
                    frames.iter().try_for_each(|frame| file.write_all(frame))
                })();
                if let Err(e) = written {
                    drop(fs::remove_file(&path));
                    return Err(e);
                }
                let mut unsynced = self.shared.unsynced();
                unsynced.spills.push(number);
                unsynced.new_files = true;
            }
        }
        self.shared.file_bytes.fetch_add(bytes, Relaxed);
        Ok(number)
    }

    /// Reads one frame back.
    pub(crate) fn read(&self, number: u64, offset: u64, len: u64) -> io::Result<Vec<u8>> {
        let (start, len) = (offset as usize, len as usize);
        match &self.place {
            Place::Memory(files) => lock(files)
                .get(&number)
                .and_then(|file| file.get(start..start.checked_add(len)?))
                .map(<[u8]>::to_vec)
                .ok_or_else(|| io::ErrorKind::NotFound.into()),
            Place::Dir(dir) => {
                let mut frame = vec![0; len];
                File::open(Self::path(dir, number))?.read_exact_at(&mut frame, offset)?;
                Ok(frame)
            }
        }
    }

    /// Removes a file; one that is not there is removed.
    pub(crate) fn remove(&self, number: u64) {
        let bytes = match &self.place {
            Place::Memory(files) => lock(files)
                .remove(&number)
                .map_or(0, |file| file.len() as u64),
            Place::Dir(dir) => {
                let path = Self::path(dir, number);
                let bytes = fs::metadata(&path).map_or(0, |m| m.len());
                fs::remove_file(&path).map_or(0, |()| bytes)
            }
        };
        let subtract = |all: u64| Some(all.saturating_sub(bytes));
        let _ = self
            .shared
            .file_bytes
            .fetch_update(Relaxed, Relaxed, subtract);
    }

    /// The numbers of all files there are, with their sizes.
    pub(crate) fn list(&self) -> io::Result<Vec<(u64, u64)>> {
        let mut files = Vec::new();
        if let Place::Dir(dir) = &self.place {
            for entry in fs::read_dir(dir)? {
                let entry = entry?;
                if let Some(number) = entry
                    .file_name()
                    .to_str()
                    .and_then(|n| u64::from_str_radix(n, 16).ok())
                {
                    files.push((number, entry.metadata()?.len()));
                }
            }
        }
        Ok(files)
    }

    /// Makes files, and with `dirs` their directory, survive a power failure.
    pub(crate) fn sync(&self, numbers: &[u64], dirs: bool) -> io::Result<()> {
        let Place::Dir(dir) = &self.place else {
            return Ok(());
        };
        for number in numbers {
            match File::open(Self::path(dir, *number)) {
                Ok(file) => {
                    file.sync_data()?;
                    // It is on the disk and will hardly be read soon: its memory serves the next one.
                    let _ = fadvise(&file, 0, None, Advice::DontNeed);
                }
                // Pruned meanwhile.
                Err(e) if e.kind() == io::ErrorKind::NotFound => {}
                Err(e) => return Err(e),
            }
        }
        if dirs {
            File::open(dir)?.sync_all()
        } else {
            Ok(())
        }
    }
}
