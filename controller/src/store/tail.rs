//! Reads the journal behind its writer, and after a crash.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use super::event::Records;
use super::journal::segment_path;

/// Read at a time, unless a record is larger.
const CHUNK: usize = 4 << 20;

/// Reads from a position on, over segments.
#[derive(Debug)]
pub(crate) struct Tail {
    dir: PathBuf,
    segment: Option<(u64, File)>,
    pub(crate) position: u64,
    buffer: Vec<u8>,
    filled: usize,
}

/// What a read found.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Found {
    /// Records, in [`Tail::records`].
    Records,
    /// Nothing (more), up to the limit.
    End,
    /// Something that is no record, or no segment, at the position.
    Broken,
}

impl Tail {
    pub(crate) fn new(dir: &Path, position: u64) -> Self {
        Tail {
            dir: dir.to_owned(),
            segment: None,
            position,
            buffer: Vec::new(),
            filled: 0,
        }
    }

    /// Reads some whole records between the position and `limit`. Moving the position is up to the caller.
    pub(crate) fn read(&mut self, limit: u64) -> io::Result<Found> {
        self.filled = 0;
        if self.position >= limit {
            return Ok(Found::End);
        }
        let no_segment = if limit == u64::MAX {
            Found::End
        } else {
            Found::Broken
        };
        loop {
            let Some((base, file)) = &self.segment else {
                self.segment = open_segment(&self.dir, self.position)?;
                if self.segment.is_none() {
                    return Ok(no_segment);
                }
                continue;
            };
            let want = usize::try_from(limit - self.position)
                .unwrap_or(usize::MAX)
                .min(CHUNK);
            let got = fill(file, self.position - base, &mut self.buffer, want)?;
            if got == 0 {
                // The end of this segment: the next one begins at the position, or there is none.
                let base = *base;
                self.segment =
                    open_segment(&self.dir, self.position)?.filter(|next| next.0 != base);
                if self.segment.is_none() {
                    return Ok(no_segment);
                }
                continue;
            }
            self.filled = got;
            if let Some(whole) = Records::needed(&self.buffer[..got])
                && whole > got
                && got == want
            {
                // A record that is larger than a chunk.
                let offset = self.position - base;
                let len = file.metadata()?.len().saturating_sub(offset);
                if whole as u64 <= len {
                    self.filled = fill(file, offset, &mut self.buffer, whole)?;
                }
            }
            return Ok(if self.records().next().is_some() {
                Found::Records
            } else {
                Found::Broken
            });
        }
    }

    /// The records that were read.
    pub(crate) fn records(&self) -> Records<'_> {
        Records::new(&self.buffer[..self.filled])
    }

    /// Passes over something broken, to the start of the next segment, if there is one.
    pub(crate) fn skip(&mut self) -> io::Result<Option<u64>> {
        let next = segments(&self.dir)?
            .into_iter()
            .find(|base| *base > self.position);
        Ok(next.map(|base| {
            self.segment = None;
            base - std::mem::replace(&mut self.position, base)
        }))
    }

    /// The memory of a large chunk is given back.
    pub(crate) fn rest(&mut self) {
        if self.buffer.len() > CHUNK {
            self.buffer = Vec::new();
        }
    }
}

/// Reads up to `want` bytes; fewer only at the end of the file.
fn fill(file: &File, offset: u64, buffer: &mut Vec<u8>, want: usize) -> io::Result<usize> {
    if buffer.len() < want {
        buffer.resize(want, 0);
    }
    let mut got = 0;
    while got < want {
        match file.read_at(&mut buffer[got..want], offset + got as u64) {
            Ok(0) => break,
            Ok(n) => got += n,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(got)
}

/// The positions at which segments begin, in order.
pub(crate) fn segments(dir: &Path) -> io::Result<Vec<u64>> {
    let mut bases = Vec::new();
    for entry in fs::read_dir(dir)? {
        let name = entry?.file_name();
        let base = name
            .to_str()
            .and_then(|n| n.strip_suffix(".log"))
            .and_then(|n| u64::from_str_radix(n, 16).ok());
        bases.extend(base);
    }
    bases.sort_unstable();
    Ok(bases)
}

/// The segment that has this position.
fn open_segment(dir: &Path, position: u64) -> io::Result<Option<(u64, File)>> {
    let Some(base) = segments(dir)?
        .into_iter()
        .rev()
        .find(|base| *base <= position)
    else {
        return Ok(None);
    };
    Ok(Some((base, File::open(segment_path(dir, base))?)))
}

/// Cuts the segment that has this position there, so that the next one continues it; removes what begins later.
pub(crate) fn cut(dir: &Path, position: u64) -> io::Result<()> {
    for base in segments(dir)? {
        let path = segment_path(dir, base);
        if base >= position {
            fs::remove_file(&path)?;
        } else {
            let file = File::options().write(true).open(&path)?;
            if file.metadata()?.len() > position - base {
                file.set_len(position - base)?;
            }
        }
    }
    Ok(())
}

/// Removes the segments that end at or before a position.
pub(crate) fn remove_before(dir: &Path, position: u64) -> io::Result<()> {
    let bases = segments(dir)?;
    for pair in bases.windows(2) {
        if pair[1] <= position {
            fs::remove_file(segment_path(dir, pair[0]))?;
        }
    }
    Ok(())
}
