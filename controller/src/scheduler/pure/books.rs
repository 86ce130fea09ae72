//! What engines have announced and not answered: the little that the pure path knows of its tasks.

use std::{mem, ops::Range};

use foldhash::HashMap;
use rangemap::RangeSet;

/// A task, or a range of an array, on an engine.
#[derive(Debug)]
struct Announced {
    engine: String,
    client: Vec<u8>,
    msg_type: String,
    /// The members of a range that are not answered; empty for an ordinary task.
    open: RangeSet<u64>,
}

/// What was on an engine when it went.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Lost {
    pub(super) client: Vec<u8>,
    pub(super) msg_id: String,
    pub(super) msg_type: String,
    /// Members of an array; empty for an ordinary task.
    pub(super) open: RangeSet<u64>,
}

/// All that is announced.
#[derive(Debug, Default)]
pub(super) struct Books {
    tasks: HashMap<String, Announced>,
    /// Ranges, by the id of their array.
    arrays: HashMap<String, Vec<Announced>>,
    ranges: usize,
}

impl Books {
    pub(super) fn len(&self) -> usize {
        self.tasks.len() + self.ranges
    }

    pub(super) fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// An engine has this task, or this range, written `MSGID:LO-HI`.
    pub(super) fn received(&mut self, engine: &str, client: Vec<u8>, id: String, msg_type: String) {
        let mut announced = Announced {
            engine: engine.to_owned(),
            client,
            msg_type,
            open: RangeSet::new(),
        };
        match range_of(&id) {
            Some((msg_id, range)) => {
                announced.open.insert(range);
                let parts = self.arrays.entry(msg_id.to_owned()).or_default();
                parts.push(announced);
                self.ranges += 1;
            }
            None => drop(self.tasks.insert(id, announced)),
        }
    }

    /// A reply has come, or what was not started comes back; the engine that is done with a task or range by it.
    pub(super) fn replied(&mut self, msg_id: &str, range: Option<(u64, u64)>) -> Option<String> {
        let Some((lo, hi)) = range else {
            return self.tasks.remove(msg_id).map(|task| task.engine);
        };
        if lo >= hi {
            return None;
        }
        let parts = self.arrays.get_mut(msg_id)?;
        let has = |part: &Announced| part.open.get(&lo).is_some_and(|open| hi <= open.end);
        let at = parts.iter().position(has)?;
        parts[at].open.remove(lo..hi);
        if !parts[at].open.is_empty() {
            return None;
        }
        let engine = parts.swap_remove(at).engine;
        self.ranges -= 1;
        if parts.is_empty() {
            self.arrays.remove(msg_id);
        }
        Some(engine)
    }

    /// Takes out what was on an engine.
    pub(super) fn lost(&mut self, engine: &str) -> Vec<Lost> {
        let of_it = |task: &Announced| task.engine == engine;
        let lost = |msg_id: String, task: Announced| Lost {
            client: task.client,
            msg_id,
            msg_type: task.msg_type,
            open: task.open,
        };
        let mut all: Vec<Lost> = self
            .tasks
            .extract_if(|_, task| of_it(task))
            .map(|(id, task)| lost(id, task))
            .collect();
        for (msg_id, parts) in &mut self.arrays {
            let (its, others) = mem::take(parts).into_iter().partition::<Vec<_>, _>(of_it);
            *parts = others;
            self.ranges -= its.len();
            all.extend(its.into_iter().map(|part| lost(msg_id.clone(), part)));
        }
        self.arrays.retain(|_, parts| !parts.is_empty());
        all
    }

    /// Whether some of the task, or of the array, is on an engine.
    pub(super) fn contains(&self, id: &str) -> bool {
        self.tasks.contains_key(id) || self.arrays.contains_key(id)
    }

    /// The engines that have the task, or ranges of the array.
    pub(super) fn engines(&self, id: &str) -> Vec<&str> {
        let parts = self.arrays.get(id).into_iter().flatten();
        self.tasks
            .get(id)
            .into_iter()
            .chain(parts)
            .map(|task| task.engine.as_str())
            .collect()
    }

    /// How many tasks and ranges each engine has.
    pub(super) fn counts(&self) -> HashMap<&str, u64> {
        let mut counts = HashMap::default();
        for task in self.tasks.values().chain(self.arrays.values().flatten()) {
            *counts.entry(task.engine.as_str()).or_default() += 1;
        }
        counts
    }

    /// Ids of all tasks and arrays.
    pub(super) fn ids(&self) -> Vec<String> {
        self.tasks
            .keys()
            .chain(self.arrays.keys())
            .cloned()
            .collect()
    }
}

/// Reads `MSGID:LO-HI`.
fn range_of(id: &str) -> Option<(&str, Range<u64>)> {
    let (msg_id, range) = id.rsplit_once(':')?;
    let (lo, hi) = range.split_once('-')?;
    let range = lo.parse().ok()?..hi.parse().ok()?;
    (!range.is_empty()).then_some((msg_id, range))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn books(ids: &[(&str, &str)]) -> Books {
        let mut books = Books::default();
        for (engine, id) in ids {
            books.received(
                engine,
                b"c".to_vec(),
                (*id).to_owned(),
                "function_request".into(),
            );
        }
        books
    }

    #[test]
    fn what_is_answered_or_given_back_is_not_lost() {
        let mut books = books(&[("e", "a"), ("e", "b"), ("f", "c"), ("e", "d")]);
        assert_eq!(books.replied("a", None).as_deref(), Some("e"));
        assert_eq!(books.replied("a", None), None);
        assert_eq!(books.replied("d", None).as_deref(), Some("e"));
        assert_eq!(books.counts(), HashMap::from_iter([("e", 1), ("f", 1)]));
        let lost = books.lost("e");
        assert_eq!(lost.len(), 1);
        assert!(lost[0].msg_id == "b" && lost[0].open.is_empty());
        assert!(books.contains("c") && !books.contains("b"));
        assert_eq!(books.len(), 1);
    }

    #[test]
    fn ranges_are_answered_in_parts() {
        let mut books = books(&[("e", "x:0-10"), ("f", "x:10-20"), ("e", "x:20-30")]);
        assert_eq!(books.replied("x", Some((3, 5))), None);
        assert_eq!(books.replied("x", Some((10, 20))).as_deref(), Some("f"));
        assert_eq!(books.replied("x", Some((7, 10))), None);
        assert_eq!(books.replied("x", Some((5, 5))), None);
        assert_eq!(books.len(), 2);
        let lost = books.lost("e").into_iter();
        let open: RangeSet<u64> = lost.flat_map(|lost| lost.open).collect();
        assert_eq!(open, RangeSet::from_iter([0..3, 5..7, 20..30]));
        assert!(books.is_empty() && !books.contains("x"));
    }
}
