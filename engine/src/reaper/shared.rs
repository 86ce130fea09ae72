//! What outlives a killed engine process: a piece of memory, shared with the reaper, that tells which process groups
//! run and which tasks were started.
//!
//! Layout: a table of process groups (8 bytes an engine), then two halves that are written in turn. A half is
//! `epoch u64 | record* | 0 u16`, a record `length u16 | engine u32 | id`. Each id is written *before* its task starts,
//! so that a task whose id is not there was never started. A half holds tens of thousands of ids, far more than an
//! engine is ever given ahead: what has been overwritten was answered long ago.

use std::{
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    sync::atomic::{AtomicI32, Ordering},
};

use parking_lot::Mutex;
use rustix::{
    fs::{MemfdFlags, memfd_create},
    io::{Errno, pread, pwrite},
};

/// Bytes of one half.
const HALF: u64 = 4 << 20;

/// Bytes before the first record of a half.
const EPOCH: u64 = 8;

/// The writing side, in the engine process.
#[derive(Debug)]
pub(crate) struct Shared {
    memory: OwnedFd,
    engines: u64,
    /// What the table says.
    groups: Box<[AtomicI32]>,
    at: Mutex<Cursor>,
}

#[derive(Debug)]
struct Cursor {
    epoch: u64,
    offset: u64,
    line: Vec<u8>,
}

impl Shared {
    /// Memory for so many logical engines.
    ///
    /// # Errors
    /// When the process has no descriptors or memory left.
    pub(crate) fn new(engines: usize) -> Result<Self, Errno> {
        let memory = memfd_create("ipbroker-shared", MemfdFlags::CLOEXEC)?;
        let shared = Self {
            memory,
            engines: engines as u64,
            groups: (0..engines).map(|_| AtomicI32::new(0)).collect(),
            at: Mutex::new(Cursor {
                epoch: 1,
                offset: EPOCH,
                line: Vec::new(),
            }),
        };
        rustix::fs::ftruncate(&shared.memory, shared.engines * 8 + 2 * HALF)?;
        pwrite(&shared.memory, &1u64.to_le_bytes(), shared.base(1))?;
        Ok(shared)
    }

    /// The memory itself, to be handed to the reaper.
    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.memory.as_fd()
    }

    fn base(&self, epoch: u64) -> u64 {
        self.engines * 8 + (epoch % 2) * HALF
    }

    /// The process group that an engine runs now; 0: none.
    pub(crate) fn group(&self, engine: usize, group: i32) {
        let Some(told) = self.groups.get(engine) else {
            // A job of no engine; the sweep finds it by its mark.
            return;
        };
        if told.swap(group, Ordering::Relaxed) == group {
            return;
        }
        let _ = pwrite(
            &self.memory,
            &i64::from(group).to_le_bytes(),
            engine as u64 * 8,
        );
    }

    /// These tasks of an engine are about to start.
    pub(crate) fn started<'a>(&self, engine: usize, ids: impl IntoIterator<Item = &'a str>) {
        let mut guard = self.at.lock();
        let cursor = &mut *guard;
        cursor.line.clear();
        for id in ids {
            let id = &id.as_bytes()[..id.len().min(1024)];
            cursor
                .line
                .extend_from_slice(&(id.len() as u16).to_le_bytes());
            cursor
                .line
                .extend_from_slice(&(engine as u32).to_le_bytes());
            cursor.line.extend_from_slice(id);
        }
        // The end mark; the next record overwrites it.
        cursor.line.extend_from_slice(&[0; 2]);
        if cursor.offset + cursor.line.len() as u64 > HALF {
            cursor.epoch += 1;
            cursor.offset = EPOCH;
            let mut start = cursor.epoch.to_le_bytes().to_vec();
            start.extend_from_slice(&[0; 2]);
            let _ = pwrite(&self.memory, &start, self.base(cursor.epoch));
        }
        let _ = pwrite(
            &self.memory,
            &cursor.line,
            self.base(cursor.epoch) + cursor.offset,
        );
        cursor.offset += cursor.line.len() as u64 - 2;
    }
}

/// What it said when its writer died.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Testament {
    /// Process groups that ran.
    pub groups: Vec<i32>,
    /// The ids that each engine had started, oldest first.
    pub started: Vec<Vec<String>>,
}

/// Reads that of so many logical engines.
///
/// # Errors
/// When the memory cannot be read.
pub(crate) fn read(memory: impl AsFd, engines: usize) -> Result<Testament, Errno> {
    let mut bytes = vec![0; engines * 8 + 2 * HALF as usize];
    let mut filled = 0;
    while filled < bytes.len() {
        match pread(&memory, &mut bytes[filled..], filled as u64)? {
            0 => break,
            count => filled += count,
        }
    }
    let (table, halves) = bytes.split_at(engines * 8);
    let groups = table
        .chunks_exact(8)
        .filter_map(|slot| i32::try_from(i64::from_le_bytes(slot.try_into().ok()?)).ok())
        .filter(|group| *group > 1)
        .collect();
    let mut halves: Vec<&[u8]> = halves.chunks_exact(HALF as usize).collect();
    halves.sort_by_key(|half| u64::from_le_bytes(half[..8].try_into().unwrap_or_default()));
    let mut started = vec![Vec::new(); engines];
    for half in halves {
        let mut rest = &half[EPOCH as usize..];
        while let [low, high, after @ ..] = rest {
            let length = usize::from(u16::from_le_bytes([*low, *high]));
            if length == 0 || after.len() < 4 + length {
                break;
            }
            let (engine, after) = after.split_at(4);
            let engine = u32::from_le_bytes(engine.try_into().unwrap_or_default()) as usize;
            let (id, after) = after.split_at(length);
            if let Some(ids) = started.get_mut(engine) {
                ids.push(String::from_utf8_lossy(id).into_owned());
            }
            rest = after;
        }
    }
    Ok(Testament { groups, started })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_ids_and_the_groups_survive() {
        let shared = Shared::new(3).unwrap();
        shared.group(0, 77);
        shared.group(2, 99);
        shared.group(0, 0);
        shared.started(1, ["a", "b"]);
        shared.started(2, ["c"]);
        let testament = read(shared.fd(), 3).unwrap();
        assert_eq!(testament.groups, [99]);
        assert_eq!(
            testament.started,
            [vec![], vec!["a".to_owned(), "b".into()], vec!["c".into()]]
        );
    }

    #[test]
    fn old_ids_give_way_and_recent_ones_stay() {
        let shared = Shared::new(1).unwrap();
        let count = 400_000;
        for id in 0..count {
            shared.started(0, [format!("session-of-a-client_{id}").as_str()]);
        }
        let started = read(shared.fd(), 1).unwrap().started.remove(0);
        assert!(started.len() > 100_000, "{}", started.len());
        for (back, id) in started.iter().rev().enumerate() {
            assert_eq!(*id, format!("session-of-a-client_{}", count - 1 - back));
        }
    }
}
