//! Sets of member indices as disjoint ranges.

use std::collections::BTreeMap;

/// A set of `u32` that is cheap while it consists of few ranges.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct RangeSet {
    ranges: BTreeMap<u32, u32>,
    len: u32,
}

impl RangeSet {
    pub(super) fn full(count: u32) -> Self {
        let mut set = RangeSet::default();
        set.insert(0, count);
        set
    }

    pub(super) fn len(&self) -> u32 {
        self.len
    }

    pub(super) fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Of how many ranges it consists.
    pub(super) fn pieces(&self) -> usize {
        self.ranges.len()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (u32, u32)> + '_ {
        self.ranges.iter().map(|(&lo, &hi)| (lo, hi))
    }

    pub(super) fn contains(&self, index: u32) -> bool {
        self.ranges
            .range(..=index)
            .next_back()
            .is_some_and(|(_, &hi)| index < hi)
    }

    /// Adds all of `lo..hi`.
    pub(super) fn insert(&mut self, mut lo: u32, mut hi: u32) {
        if lo >= hi {
            return;
        }
        if let Some((&before, &end)) = self.ranges.range(..=lo).next_back()
            && end >= lo
        {
            if end >= hi {
                return;
            }
            lo = before;
            self.len -= end - before;
            self.ranges.remove(&before);
        }
        while let Some((&next, &end)) = self.ranges.range(lo..=hi).next() {
            self.len -= end - next;
            self.ranges.remove(&next);
            hi = hi.max(end);
        }
        self.len += hi - lo;
        self.ranges.insert(lo, hi);
    }

    /// Takes away all of `lo..hi`.
    pub(super) fn remove(&mut self, lo: u32, hi: u32) {
        for (from, to) in self.overlap(lo, hi) {
            let (&start, &end) = self
                .ranges
                .range(..=from)
                .next_back()
                .expect("an overlap lies in a range");
            self.ranges.remove(&start);
            if start < from {
                self.ranges.insert(start, from);
            }
            if to < end {
                self.ranges.insert(to, end);
            }
            self.len -= to - from;
        }
    }

    /// The parts of `lo..hi` that are in the set.
    pub(super) fn overlap(&self, lo: u32, hi: u32) -> Vec<(u32, u32)> {
        let mut parts = Vec::new();
        if lo >= hi {
            return parts;
        }
        let start = self.ranges.range(..=lo).next_back().map_or(lo, |(&s, _)| s);
        for (&s, &e) in self.ranges.range(start..hi) {
            let (from, to) = (s.max(lo), e.min(hi));
            if from < to {
                parts.push((from, to));
            }
        }
        parts
    }

    /// The parts of `lo..hi` that are not in the set.
    pub(super) fn gaps(&self, lo: u32, hi: u32) -> Vec<(u32, u32)> {
        let mut parts = Vec::new();
        let mut at = lo;
        for (from, to) in self.overlap(lo, hi) {
            if at < from {
                parts.push((at, from));
            }
            at = to;
        }
        if at < hi {
            parts.push((at, hi));
        }
        parts
    }

    /// Takes the first range out, or its first `most` members.
    pub(super) fn take_first(&mut self, most: u32) -> Option<(u32, u32)> {
        let (&lo, &hi) = self.ranges.iter().next()?;
        self.ranges.remove(&lo);
        let end = hi.min(lo.saturating_add(most));
        if end < hi {
            self.ranges.insert(end, hi);
        }
        self.len -= end - lo;
        Some((lo, end))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    proptest! {
        #[test]
        fn is_a_set(ops in proptest::collection::vec((0u8..4, 0u32..40, 0u32..40), 1..60)) {
            let mut set = RangeSet::default();
            let mut model = BTreeSet::new();
            for (op, a, b) in ops {
                match op {
                    0 | 1 => { set.insert(a, b); model.extend(a..b.max(a)); }
                    2 => { set.remove(a, b); model.retain(|i| !(a..b).contains(i)); }
                    _ => {
                        if let Some((lo, hi)) = set.take_first(b.max(1)) {
                            for i in lo..hi { prop_assert!(model.pop_first() == Some(i)); }
                        } else { prop_assert!(model.is_empty()); }
                    }
                }
                prop_assert_eq!(set.len() as usize, model.len());
                let flat: Vec<u32> = set.iter().flat_map(|(l, h)| l..h).collect();
                prop_assert_eq!(&flat, &model.iter().copied().collect::<Vec<_>>());
                for w in set.iter().collect::<Vec<_>>().windows(2) { prop_assert!(w[0].1 < w[1].0); }
                let gaps: Vec<u32> = set.gaps(5, 30).into_iter().flat_map(|(l, h)| l..h).collect();
                prop_assert_eq!(gaps, (5..30).filter(|i| !model.contains(i)).collect::<Vec<_>>());
                prop_assert_eq!(set.contains(a), model.contains(&a));
            }
        }
    }
}
