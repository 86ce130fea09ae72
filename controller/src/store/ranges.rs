//! A map from ranges of members to something, neighbours with the same value joined.

use std::collections::BTreeMap;
use std::ops::Range;

/// Ranges that do not overlap, by their start.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct RangeMap<T> {
    map: BTreeMap<u64, (u64, T)>,
}

impl<T: Clone + PartialEq> RangeMap<T> {
    pub(crate) fn new() -> Self {
        RangeMap {
            map: BTreeMap::new(),
        }
    }

    /// Takes a range out.
    pub(crate) fn remove(&mut self, range: Range<u64>) {
        if range.is_empty() {
            return;
        }
        // One that begins before may reach into the range, or past it.
        if let Some((&lo, (hi, value))) = self.map.range(..range.start).next_back()
            && *hi > range.start
        {
            let (hi, value) = (*hi, value.clone());
            self.map.insert(lo, (range.start, value.clone()));
            if hi > range.end {
                self.map.insert(range.end, (hi, value));
            }
        }
        let inside: Vec<u64> = self.map.range(range.clone()).map(|(lo, _)| *lo).collect();
        for lo in inside {
            if let Some((hi, value)) = self.map.remove(&lo)
                && hi > range.end
            {
                self.map.insert(range.end, (hi, value));
            }
        }
    }

    /// Sets a range to a value, whatever it was.
    pub(crate) fn insert(&mut self, mut range: Range<u64>, value: T) {
        if range.is_empty() {
            return;
        }
        self.remove(range.clone());
        if let Some((&lo, (hi, before))) = self.map.range(..range.start).next_back()
            && *hi == range.start
            && *before == value
        {
            range.start = lo;
        }
        if let Some((hi, after)) = self.map.get(&range.end)
            && *after == value
        {
            let (hi, end) = (*hi, range.end);
            self.map.remove(&end);
            range.end = hi;
        }
        self.map.insert(range.start, (range.end, value));
    }

    /// All ranges in order.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (Range<u64>, &T)> {
        self.map.iter().map(|(lo, (hi, value))| (*lo..*hi, value))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn behaves_like_an_array(steps in prop::collection::vec((0u64..40, 0u64..40, prop::option::of(0u8..3)), 0..40)) {
            let mut naive = vec![None; 40];
            let mut map = RangeMap::new();
            for (a, b, value) in steps {
                let range = a.min(b)..a.max(b);
                for slot in &mut naive[range.start as usize..range.end as usize] {
                    *slot = value;
                }
                match value {
                    Some(value) => map.insert(range, value),
                    None => map.remove(range),
                }
                let mut seen = vec![None; 40];
                let mut last: Option<(u64, u8)> = None;
                for (range, value) in map.iter() {
                    prop_assert!(!range.is_empty());
                    prop_assert!(last != Some((range.start, *value)), "neighbours are joined");
                    last = Some((range.end, *value));
                    for i in range {
                        prop_assert!(seen[i as usize].replace(*value).is_none(), "ranges do not overlap");
                    }
                }
                prop_assert_eq!(&seen, &naive);
            }
        }
    }
}
