//! The indexes behind the built-in schemes.

use rand::RngExt;
use rand::rngs::SmallRng;

use super::EngineKey;
use super::id::NONE;
use super::scheme::{Candidate, Index};

/// Where each engine stands in a vector, by slot.
#[derive(Default)]
struct Positions(Vec<u32>);

impl Positions {
    fn get(&self, engine: EngineKey) -> Option<usize> {
        self.0
            .get(engine.slot())
            .copied()
            .filter(|&p| p != NONE)
            .map(|p| p as usize)
    }

    fn set(&mut self, engine: EngineKey, at: usize) {
        if self.0.len() <= engine.slot() {
            self.0.resize(engine.slot() + 1, NONE);
        }
        self.0[engine.slot()] = at as u32;
    }

    fn clear(&mut self, engine: EngineKey) {
        self.0[engine.slot()] = NONE;
    }
}

/// A binary heap that knows where everybody is: `leastload` and `lru`.
pub(super) struct Ordered {
    by_load: bool,
    heap: Vec<Candidate>,
    at: Positions,
}

impl Ordered {
    pub(super) fn by_load() -> Self {
        Ordered {
            by_load: true,
            heap: Vec::new(),
            at: Positions::default(),
        }
    }

    pub(super) fn by_use() -> Self {
        Ordered {
            by_load: false,
            heap: Vec::new(),
            at: Positions::default(),
        }
    }

    fn key(&self, at: usize) -> (u32, u64) {
        let c = &self.heap[at];
        (if self.by_load { c.load } else { 0 }, c.last_used)
    }

    fn swap(&mut self, a: usize, b: usize) {
        self.heap.swap(a, b);
        self.at.set(self.heap[a].engine, a);
        self.at.set(self.heap[b].engine, b);
    }

    fn sift(&mut self, mut at: usize) {
        while at > 0 && self.key(at) < self.key((at - 1) / 2) {
            self.swap(at, (at - 1) / 2);
            at = (at - 1) / 2;
        }
        loop {
            let mut least = at;
            for child in [2 * at + 1, 2 * at + 2] {
                if child < self.heap.len() && self.key(child) < self.key(least) {
                    least = child;
                }
            }
            if least == at {
                return;
            }
            self.swap(at, least);
            at = least;
        }
    }
}

impl Index for Ordered {
    fn set(&mut self, candidate: Candidate) {
        let at = match self.at.get(candidate.engine) {
            Some(at) => {
                self.heap[at] = candidate;
                at
            }
            None => {
                self.heap.push(candidate);
                self.at.set(candidate.engine, self.heap.len() - 1);
                self.heap.len() - 1
            }
        };
        self.sift(at);
    }

    fn remove(&mut self, engine: EngineKey) {
        let Some(at) = self.at.get(engine) else {
            return;
        };
        self.at.clear(engine);
        self.heap.swap_remove(at);
        if at < self.heap.len() {
            self.at.set(self.heap[at].engine, at);
            self.sift(at);
        }
    }

    fn choose(&mut self, _rng: &mut SmallRng, refused: &[EngineKey]) -> Option<EngineKey> {
        if refused.is_empty() {
            return self.heap.first().map(|c| c.engine);
        }
        // Below a node that is not refused nothing is better: at most 2 * refused + 1 nodes are seen.
        let mut best: Option<usize> = None;
        let mut open = vec![0];
        while let Some(at) = open.pop() {
            if at >= self.heap.len() || best.is_some_and(|b| self.key(b) <= self.key(at)) {
                continue;
            }
            if refused.contains(&self.heap[at].engine) {
                open.extend([2 * at + 1, 2 * at + 2]);
            } else {
                best = Some(at);
            }
        }
        best.map(|at| self.heap[at].engine)
    }
}

/// An unordered vector: `plainrandom` and `twobin`.
pub(super) struct Dense {
    two: bool,
    list: Vec<Candidate>,
    at: Positions,
}

impl Dense {
    pub(super) fn random() -> Self {
        Dense {
            two: false,
            list: Vec::new(),
            at: Positions::default(),
        }
    }

    pub(super) fn two_bin() -> Self {
        Dense {
            two: true,
            list: Vec::new(),
            at: Positions::default(),
        }
    }
}

impl Index for Dense {
    fn set(&mut self, candidate: Candidate) {
        match self.at.get(candidate.engine) {
            Some(at) => self.list[at] = candidate,
            None => {
                self.at.set(candidate.engine, self.list.len());
                self.list.push(candidate);
            }
        }
    }

    fn remove(&mut self, engine: EngineKey) {
        let Some(at) = self.at.get(engine) else {
            return;
        };
        self.at.clear(engine);
        self.list.swap_remove(at);
        if let Some(moved) = self.list.get(at) {
            self.at.set(moved.engine, at);
        }
    }

    fn choose(&mut self, rng: &mut SmallRng, refused: &[EngineKey]) -> Option<EngineKey> {
        let first = uniform(&self.list, rng, refused)?;
        if !self.two {
            return Some(first.engine);
        }
        let second = uniform(&self.list, rng, refused)?;
        Some(if second.last_used < first.last_used {
            second.engine
        } else {
            first.engine
        })
    }
}

/// Draws that may be refused this often before the refused ones are sorted out one by one.
const DRAWS: usize = 8;

fn uniform(list: &[Candidate], rng: &mut SmallRng, refused: &[EngineKey]) -> Option<Candidate> {
    if list.is_empty() {
        return None;
    }
    for _ in 0..DRAWS {
        let drawn = list[rng.random_range(0..list.len())];
        if !refused.contains(&drawn.engine) {
            return Some(drawn);
        }
    }
    let allowed: Vec<&Candidate> = list
        .iter()
        .filter(|c| !refused.contains(&c.engine))
        .collect();
    if allowed.is_empty() {
        None
    } else {
        Some(*allowed[rng.random_range(0..allowed.len())])
    }
}

/// A vector with a Fenwick tree over the weights: `weighted`.
#[derive(Default)]
pub(super) struct Weighted {
    list: Vec<Candidate>,
    at: Positions,
    tree: Vec<u64>,
}

/// An idle engine weighs a million times as much as one with one task, as in IPython parallel's
/// `1 / (1e-6 + load)`; whole numbers, so that nothing drifts.
fn weight(load: u32) -> u64 {
    const ONE: f64 = (1u64 << 20) as f64;
    ((ONE / (1e-6 + f64::from(load))) as u64).max(1)
}

impl Weighted {
    fn add(&mut self, at: usize, change: i64) {
        let mut node = at + 1;
        while node < self.tree.len() {
            self.tree[node] = self.tree[node].wrapping_add_signed(change);
            node += node & node.wrapping_neg();
        }
    }

    fn grow(&mut self) {
        let size = (self.list.len() + 1).next_power_of_two().max(8) * 2;
        self.tree = vec![0; size + 1];
        for at in 0..self.list.len() {
            self.add(at, weight(self.list[at].load) as i64);
        }
    }

    fn total(&self) -> u64 {
        let mut sum = 0u64;
        let mut node = self.list.len();
        while node > 0 {
            sum += self.tree[node];
            node -= node & node.wrapping_neg();
        }
        sum
    }

    /// The entry in which the running sum of weights passes `target`.
    fn find(&self, mut target: u64) -> usize {
        let mut node = 0;
        let mut step = (self.tree.len() - 1).next_power_of_two();
        while step > 0 {
            let next = node + step;
            if next < self.tree.len() && self.tree[next] <= target {
                target -= self.tree[next];
                node = next;
            }
            step /= 2;
        }
        node.min(self.list.len() - 1)
    }

    fn draw(&self, rng: &mut SmallRng, refused: &[EngineKey]) -> Option<Candidate> {
        if self.list.is_empty() {
            return None;
        }
        let total = self.total();
        for _ in 0..DRAWS {
            let drawn = self.list[self.find(rng.random_range(0..total))];
            if !refused.contains(&drawn.engine) {
                return Some(drawn);
            }
        }
        let allowed: Vec<&Candidate> = self
            .list
            .iter()
            .filter(|c| !refused.contains(&c.engine))
            .collect();
        let total: u64 = allowed.iter().map(|c| weight(c.load)).sum();
        if total == 0 {
            return None;
        }
        let mut target = rng.random_range(0..total);
        for c in allowed {
            match target.checked_sub(weight(c.load)) {
                Some(rest) => target = rest,
                None => return Some(*c),
            }
        }
        None
    }
}

impl Index for Weighted {
    fn set(&mut self, candidate: Candidate) {
        match self.at.get(candidate.engine) {
            Some(at) => {
                let change = weight(candidate.load) as i64 - weight(self.list[at].load) as i64;
                self.list[at] = candidate;
                self.add(at, change);
            }
            None => {
                let at = self.list.len();
                self.at.set(candidate.engine, at);
                self.list.push(candidate);
                if at + 1 >= self.tree.len() {
                    self.grow();
                } else {
                    self.add(at, weight(candidate.load) as i64);
                }
            }
        }
    }

    fn remove(&mut self, engine: EngineKey) {
        let Some(at) = self.at.get(engine) else {
            return;
        };
        self.at.clear(engine);
        let last = self.list.len() - 1;
        let (gone, moved) = (
            weight(self.list[at].load) as i64,
            weight(self.list[last].load) as i64,
        );
        self.add(last, -moved);
        self.list.swap_remove(at);
        if at < last {
            self.add(at, moved - gone);
            self.at.set(self.list[at].engine, at);
        }
    }

    fn choose(&mut self, rng: &mut SmallRng, refused: &[EngineKey]) -> Option<EngineKey> {
        let first = self.draw(rng, refused)?;
        let second = self.draw(rng, refused)?;
        Some(if second.load < first.load {
            second.engine
        } else {
            first.engine
        })
    }
}
