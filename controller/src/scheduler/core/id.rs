//! Task ids as 128-bit keyed hashes: strings stay with the caller.

use std::hash::{BuildHasher, Hasher};

use foldhash::quality::FixedState;

/// Stands for "no index" wherever indices are `u32`.
pub(super) const NONE: u32 = u32::MAX;

/// The hash of a message id (or of another name that must be told apart from any other).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub(super) struct TaskId {
    low: u64,
    high: u64,
}

impl TaskId {
    /// For hash tables: the id is a hash already.
    pub(super) fn hash(self) -> u64 {
        self.low
    }
}

/// The key of the hash.
#[derive(Clone)]
pub(super) struct IdHasher {
    low: FixedState,
    high: FixedState,
}

impl IdHasher {
    pub(super) fn new(seed: u64) -> Self {
        IdHasher {
            low: FixedState::with_seed(seed ^ 0x9E37_79B9_7F4A_7C15),
            high: FixedState::with_seed(!seed ^ 0xC2B2_AE3D_27D4_EB4F),
        }
    }

    pub(super) fn id(&self, text: &[u8]) -> TaskId {
        let mut low = self.low.build_hasher();
        let mut high = self.high.build_hasher();
        low.write(text);
        high.write(text);
        TaskId {
            low: low.finish(),
            high: high.finish(),
        }
    }

    /// The hash of several names, with what separates them.
    pub(super) fn names<'a>(&self, names: impl Iterator<Item = &'a [u8]>) -> TaskId {
        let mut low = self.low.build_hasher();
        let mut high = self.high.build_hasher();
        for name in names {
            low.write_usize(name.len());
            high.write_usize(name.len());
            low.write(name);
            high.write(name);
        }
        TaskId {
            low: low.finish(),
            high: high.finish(),
        }
    }
}

/// `MSGID:INDEX` taken apart.
pub(super) fn split_member(id: &str) -> Option<(&str, u32)> {
    let (base, index) = id.rsplit_once(':')?;
    if index.is_empty() || !index.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    Some((base, index.parse().ok().filter(|&i| i != NONE)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn members_are_taken_apart() {
        assert_eq!(split_member("a_1:17"), Some(("a_1", 17)));
        assert_eq!(split_member("a:b:3"), Some(("a:b", 3)));
        assert_eq!(split_member("a:b"), None);
        assert_eq!(split_member("a:"), None);
        assert_eq!(split_member("a:4294967295"), None);
        assert_eq!(split_member("abc"), None);
    }

    #[test]
    fn names_do_not_run_together() {
        let hasher = IdHasher::new(1);
        let of = |names: &[&str]| hasher.names(names.iter().map(|n| n.as_bytes()));
        assert_ne!(of(&["ab", "c"]), of(&["a", "bc"]));
        assert_ne!(of(&["a"]), of(&["a", ""]));
    }
}
