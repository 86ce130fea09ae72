//! Which members of an array have been received.

use std::collections::BTreeMap;

/// Disjoint ranges `lo..hi`, neighbours merged.
#[derive(Debug, Default)]
pub(crate) struct Ranges(BTreeMap<u64, u64>);

impl Ranges {
    /// Adds `lo..hi` and returns the parts of it that are new.
    pub(crate) fn add(&mut self, lo: u64, hi: u64) -> Vec<(u64, u64)> {
        let mut new = Vec::new();
        let (mut low, mut high, mut at) = (lo, hi, lo);
        let first = self
            .0
            .range(..=lo)
            .next_back()
            .filter(|(_, end)| **end >= lo)
            .map_or(lo, |(start, _)| *start);
        let touched: Vec<(u64, u64)> = self.0.range(first..=hi).map(|(a, b)| (*a, *b)).collect();
        for (start, end) in touched {
            if start > at {
                new.push((at, start));
            }
            at = at.max(end);
            low = low.min(start);
            high = high.max(end);
            self.0.remove(&start);
        }
        if at < hi {
            new.push((at, hi));
        }
        if low < high {
            self.0.insert(low, high);
        }
        new
    }

    /// All ranges.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (u64, u64)> + '_ {
        self.0.iter().map(|(lo, hi)| (*lo, *hi))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_new_members_are_reported() {
        let mut ranges = Ranges::default();
        assert_eq!(ranges.add(10, 20), [(10, 20)]);
        assert_eq!(ranges.add(10, 20), []);
        assert_eq!(ranges.add(5, 12), [(5, 10)]);
        assert_eq!(ranges.add(30, 40), [(30, 40)]);
        assert_eq!(ranges.add(0, 50), [(0, 5), (20, 30), (40, 50)]);
        assert_eq!(ranges.iter().collect::<Vec<_>>(), [(0, 50)]);
        assert_eq!(ranges.add(50, 60), [(50, 60)]);
        assert_eq!(ranges.iter().collect::<Vec<_>>(), [(0, 60)]);
        assert_eq!(ranges.add(7, 7), []);
    }

    #[test]
    fn against_a_naive_set() {
        let mut seed = 1u64;
        let mut random = |n: u64| {
            seed = seed
                .wrapping_mul(6364136223846793005)
                .wrapping_add(1442695040888963407);
            (seed >> 33) % n
        };
        let mut ranges = Ranges::default();
        let mut naive = std::collections::BTreeSet::new();
        for _ in 0..2000 {
            let lo = random(300);
            let hi = lo + random(12);
            let new: Vec<u64> = ranges
                .add(lo, hi)
                .into_iter()
                .flat_map(|(a, b)| a..b)
                .collect();
            let expected: Vec<u64> = (lo..hi).filter(|i| naive.insert(*i)).collect();
            assert_eq!(new, expected);
        }
        let all: Vec<u64> = ranges.iter().flat_map(|(a, b)| a..b).collect();
        assert_eq!(all, naive.into_iter().collect::<Vec<_>>());
    }
}
