//! What the user chooses: where the history is kept, how much of it, and when a write counts as done.

use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use ipbroker_protocol::{session::Packer, size, time};

/// Where the history of tasks is kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Backend {
    /// `--nodb`: nothing is kept and nothing survives the controller.
    None,
    /// `--dictdb`: the most recent tasks, in memory.
    Memory {
        /// At most this many records.
        records: usize,
        /// At most this many bytes of frames.
        bytes: u64,
    },
    /// `--sqlitedb`, the default: journal and SQLite database in the profile directory.
    Sqlite,
}

impl Backend {
    /// The memory history with its default bounds.
    #[must_use]
    pub const fn memory() -> Self {
        Backend::Memory {
            records: 10_000,
            bytes: 1 << 30,
        }
    }
}

/// When what is written to the journal counts as safe (`--sync`).
///
/// All three survive the death of any *process*: what was written is in the page cache. They differ in what a power failure
/// or a crash of the kernel can take.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum SyncMode {
    /// Acknowledge after `write`; the disk is synced about once a second.
    None,
    /// Acknowledge a submission after `fsync` (in groups): what was acknowledged is there after a power failure. Outcomes and
    /// dispatches of the last second may be forgotten: such a task is reported lost or, with retries left, runs again.
    #[default]
    Ack,
    /// The whole promise extends to power failures: every batch is synced before its dispatches and replies leave.
    Full,
}

impl FromStr for SyncMode {
    type Err = String;
    fn from_str(s: &str) -> Result<Self, String> {
        match s {
            "none" => Ok(SyncMode::None),
            "ack" => Ok(SyncMode::Ack),
            "full" => Ok(SyncMode::Full),
            _ => Err(format!("'{s}' is not a sync mode: use none, ack or full")),
        }
    }
}

/// How long and how much of finished tasks is kept (`--keep 7d,10GB`); either bound may be missing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Keep {
    /// Finished tasks older than this are dropped.
    pub age: Option<Duration>,
    /// The oldest finished tasks are dropped while the history is larger than this.
    pub bytes: Option<u64>,
}

impl FromStr for Keep {
    type Err = String;
    fn from_str(s: &str) -> Result<Self, String> {
        let mut keep = Keep::default();
        for part in s
            .split(',')
            .map(str::trim)
            .filter(|p| !p.is_empty() && *p != "all")
        {
            // A number alone may as well be the one as the other.
            let has_unit = part.ends_with(|c: char| c.is_ascii_alphabetic());
            let age = time::duration(part).ok().filter(|_| has_unit);
            let size = size::parse(part).filter(|_| has_unit);
            match (age, size) {
                (Some(age), _) => keep.age = Some(age),
                (None, Some(bytes)) => keep.bytes = Some(bytes),
                (None, None) => {
                    return Err(format!(
                        "'{part}' is neither an age (30s, 90m, 12h, 7d, 4w) nor a size (500MB, 10GB)"
                    ));
                }
            }
        }
        Ok(keep)
    }
}

/// How a store is opened.
#[derive(Debug, Clone)]
pub struct Options {
    /// The profile directory: `NAME.db`, `NAME.journal/` and `NAME.buffers/` live in it.
    pub dir: PathBuf,
    /// `ipbroker`, or `ipbroker-CLUSTERID`: clusters that share a profile do not share a store.
    pub name: String,
    /// Where the history is kept.
    pub backend: Backend,
    /// When a write counts as done.
    pub sync: SyncMode,
    /// What is pruned.
    pub keep: Keep,
    /// How the messages are packed.
    pub packing: Packer,
    /// Whether unfinished tasks of an earlier controller are taken up again (`--restore`). Without it they are marked aborted.
    pub restore: bool,
    /// The store may lag this many bytes behind before [`StoreHandle::over_bound`](super::StoreHandle::over_bound) says so.
    pub lag_bound: u64,
    /// A journal segment is closed when it is larger than this.
    pub segment_bytes: u64,
}

impl Options {
    /// The defaults, in this profile directory.
    #[must_use]
    pub fn new(dir: impl Into<PathBuf>) -> Self {
        Options {
            dir: dir.into(),
            name: "ipbroker".into(),
            backend: Backend::Sqlite,
            sync: SyncMode::default(),
            keep: Keep::default(),
            packing: Packer::default(),
            restore: false,
            lag_bound: 256 << 20,
            segment_bytes: 64 << 20,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keep_reads_ages_and_sizes() {
        let keep: Keep = "7d,10GB".parse().unwrap();
        assert_eq!(keep.age, Some(Duration::from_secs(7 * 86_400)));
        assert_eq!(keep.bytes, Some(10 << 30));
        assert_eq!(
            "90m".parse::<Keep>().unwrap().age,
            Some(Duration::from_secs(5400))
        );
        assert_eq!("20 MB".parse::<Keep>().unwrap().bytes, Some(20 << 20));
        assert_eq!(
            "4w".parse::<Keep>().unwrap().age,
            Some(Duration::from_secs(28 * 86_400))
        );
        assert_eq!("all".parse::<Keep>().unwrap(), Keep::default());
        assert!(
            "seven days"
                .parse::<Keep>()
                .unwrap_err()
                .contains("seven days")
        );
        assert!("7".parse::<Keep>().is_err());
    }
}
