//! Task ids as 128-bit keyed hashes: strings stay with the caller.

use std::hash::{BuildHasher, Hash, Hasher};

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
        high.write(text);
        // Tasks of a session are numbered and come in that order. Neighbours are close in the tables, and so in the
        // processor's cache; the upper bits, by which a table tells what is close apart, differ.
        let (rest, number) = split_number(text);
        low.write(rest);
        low.write_usize(text.len());
        low.write_u32(number / NEIGHBOURS);
        let at = u64::from(number % NEIGHBOURS);
        let low = low.finish().wrapping_add(at) ^ (at << 57);
        TaskId {
            low,
            high: high.finish(),
        }
    }

    /// The hash of anything.
    pub(super) fn of(&self, what: &impl Hash) -> TaskId {
        TaskId {
            low: self.low.hash_one(what),
            high: self.high.hash_one(what),
        }
    }
}

/// So many ids in a row are close to each other: few enough that nobody can crowd a table with chosen ids.
const NEIGHBOURS: u32 = 128;

/// The number that an id ends with, 0 if there is none, and what precedes it.
fn split_number(id: &[u8]) -> (&[u8], u32) {
    let ends = id.iter().rev().take(9);
    let digits = ends.take_while(|byte| byte.is_ascii_digit()).count();
    let (rest, digits) = id.split_at(id.len() - digits);
    let append = |number, digit: &u8| number * 10 + u32::from(digit - b'0');
    (rest, digits.iter().fold(0, append))
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
    fn numbers_are_split_off() {
        let of = |id: &'static str| split_number(id.as_bytes());
        assert_eq!(of("a_17"), (&b"a_"[..], 17));
        assert_eq!(of("a_0"), (&b"a_"[..], 0));
        assert_eq!(of("a_017"), (&b"a_"[..], 17));
        assert_eq!(of("4123456789"), (&b"4"[..], 123_456_789));
        assert_eq!(of("a_"), (&b"a_"[..], 0));
        assert_eq!(of(""), (&b""[..], 0));
    }

    #[test]
    fn ids_are_told_apart_by_each_half() {
        let hasher = IdHasher::new(7);
        let mut seen = [(); 2].map(|()| std::collections::HashSet::new());
        let texts = (0..3000).flat_map(|n| {
            [
                format!("a_{n}"),
                format!("a_0{n}"),
                format!("{n}"),
                format!("b{n}_"),
            ]
        });
        for text in texts.chain(["".into(), "a_".into()]) {
            let id = hasher.id(text.as_bytes());
            assert!(seen[0].insert(id.low), "{text}");
            assert!(seen[1].insert(id.high), "{text}");
        }
    }
}
