//! How far ahead an engine is given work (`--hwm=auto`), and how large chunks are.
//!
//! Without work ahead an engine idles for one message time per task; with it, tasks may wait behind a long
//! one while another engine is free. So tasks are given ahead only where the message time is at least a
//! fiftieth of the task time, and then as much as covers twice the message time. Chunks of arrays are
//! sized for [`CHUNK`], and never beyond an even share of half of what is left, unless that were so quick
//! that the message would cost more than it.

use super::engine::{Engine, OVERHEAD, OVERHEAD_LEAST, OVERHEAD_MOST};
use super::types::{Hwm, MILLISECOND, Nanos};

/// Task time assumed of what never ran: nothing is given ahead before it is known.
pub(super) const UNKNOWN: Nanos = 100 * MILLISECOND;
/// Run time a chunk is sized for.
pub(super) const CHUNK: Nanos = 10 * MILLISECOND;
/// Members in a chunk at most.
pub(super) const CHUNK_MOST: u32 = 1 << 16;
/// A task is long when it takes this many message times.
const LONG: f64 = 50.0;
/// Members an engine holds at most in auto mode.
const LOAD_MOST: u32 = 1 << 17;
/// Bytes an engine holds at most ahead in auto mode.
const BYTES_MOST: u64 = 64 << 20;
/// The estimate follows the last so many tasks.
const MEMORY: f64 = 32.0;

/// A running mean of task times.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Estimate {
    mean: f64,
    count: u32,
}

impl Estimate {
    pub(super) fn get(&self) -> Option<Nanos> {
        (self.count > 0).then_some(self.mean as Nanos)
    }

    /// `count` tasks took `run` together.
    pub(super) fn learn(&mut self, run: Nanos, count: u32) {
        let weight = f64::from(count);
        let known = f64::from(self.count).min(MEMORY);
        let share = (weight / (known + weight)).max((weight / MEMORY).min(1.0));
        self.mean += (run as f64 / weight - self.mean) * share;
        self.count = self.count.saturating_add(count);
    }
}

impl Engine {
    /// Whether there is room for any task, and for one that may be run again.
    pub(super) fn room(&self) -> (bool, bool) {
        if !self.live || self.leaving || self.closed {
            return (false, false);
        }
        match self.hwm {
            Hwm::Unlimited => (true, true),
            Hwm::Fixed(most) => (self.active() < most, self.active() < most),
            Hwm::Auto if self.active() == 0 => (true, true),
            Hwm::Auto if self.recalled > 0 => (false, false),
            Hwm::Auto => {
                let fits = self.fits();
                (fits && self.can_give_back, fits)
            }
        }
    }

    fn fits(&self) -> bool {
        let mean = self.ahead / u64::from(self.load);
        let cover = if self.chunks.is_empty() {
            2.0 * self.overhead
        } else {
            (2.0 * self.overhead).max(CHUNK as f64)
        };
        mean as f64 <= LONG * self.overhead
            && ((self.ahead - mean) as f64) < cover
            && self.active() < LOAD_MOST
            && self.bytes < BYTES_MOST
    }

    /// Members of an array to give it now, of `left` that wait for `engines`.
    pub(super) fn chunk(&self, left: u32, engines: usize, estimate: Option<Nanos>) -> u32 {
        let share = left.div_ceil(2 * engines.max(1) as u32);
        let worth = match estimate {
            Some(time) => self.overhead.min(OVERHEAD) as Nanos / time.max(1),
            None => 1,
        };
        let most = match self.hwm {
            Hwm::Fixed(most) => most.saturating_sub(self.active()),
            Hwm::Unlimited => CHUNK_MOST,
            Hwm::Auto => match estimate {
                None => 1,
                Some(time) if time as f64 > LONG * self.overhead => 1,
                Some(time) => (CHUNK.max(self.overhead as Nanos) / time.max(1))
                    .clamp(1, u64::from(CHUNK_MOST)) as u32,
            },
        };
        let least = worth.min(u64::from(left)) as u32;
        share.max(least).min(most).max(1)
    }

    /// A message there and back took this long besides the run.
    pub(super) fn learn_overhead(&mut self, overhead: Nanos) {
        let sample = (overhead as f64).clamp(OVERHEAD_LEAST, OVERHEAD_MOST);
        // Quick down, slow up: queues on the way only ever add to it.
        let share = if sample < self.overhead { 0.25 } else { 0.05 };
        self.overhead += (sample - self.overhead) * share;
    }
}
