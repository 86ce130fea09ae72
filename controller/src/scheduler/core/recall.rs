//! Work that was given ahead goes to another engine when one is free (`--hwm=auto`).
//!
//! When an engine has nothing to do, nothing waits that it could take; what it could take is behind other
//! tasks on other engines. These are asked to give back what they have not started: all of it from one whose
//! task takes longer than expected, a share where the work given ahead is worth the messages.

use super::Core;
use super::group::{ABORTED, Stage};
use super::types::{Action, GroupKey, Hwm, MILLISECOND, Nanos};
use std::ops::Range;

/// Recalls are looked for at most this often.
const INTERVAL: Nanos = MILLISECOND / 2;
/// An engine is given at least this long to give back.
const PATIENCE: Nanos = 20 * MILLISECOND;
/// Engines of ours report on a chunk this often.
const FLUSH: Nanos = 20 * MILLISECOND;
/// Idle engines looked at for each task.
const IDLE_SEEN: usize = 16;

impl Core {
    /// An engine went idle: recalls may be worth it.
    pub(super) fn plan_recall(&mut self) {
        if self.given_ahead == 0 {
            return;
        }
        let at = self.now.max(self.last_recall + INTERVAL);
        self.recall_at = Some(self.recall_at.map_or(at, |before| before.min(at)));
    }

    /// Looks for tasks that an idle engine could take off another.
    pub(super) fn recall(&mut self) {
        self.last_recall = self.now;
        self.recall_at = None;
        let mut next: Option<Nanos> = None;
        let mut wake = |at: Nanos| next = Some(next.map_or(at, |n: Nanos| n.min(at)));
        let mut expired = Vec::new();
        let mut idle = Vec::new();
        for &slot in &self.live {
            let engine = &self.engines[slot as usize];
            if engine.recalled > 0 {
                if engine.recall_until <= self.now {
                    expired.push(slot)
                } else {
                    wake(engine.recall_until)
                }
            }
            if engine.load == 0 && !engine.leaving {
                idle.push(slot);
            }
        }
        for slot in expired {
            self.engines[slot as usize].recalled = 0;
            self.refresh(slot);
            self.hungry.push_back(slot);
        }
        let mut victims = Vec::new();
        if !idle.is_empty() && self.given_ahead > 0 {
            for &slot in &self.live {
                let engine = &self.engines[slot as usize];
                if engine.active() < 2
                    || engine.recalled > 0
                    || engine.leaving
                    || !engine.can_give_back
                    || engine.hwm != Hwm::Auto
                {
                    continue;
                }
                let mean = engine.ahead / u64::from(engine.load);
                let overhead = engine.overhead as Nanos;
                let flush = if engine.chunks.is_empty() { 0 } else { FLUSH };
                let overdue = engine.progress + 2 * mean + 2 * overhead + flush;
                let left = engine.active() - 1;
                if overdue <= self.now {
                    victims.push((u64::MAX, left, slot));
                } else if u64::from(left) * mean > 3 * overhead {
                    let share = left as usize * idle.len() / (idle.len() + 1);
                    victims.push((engine.ahead, share.max(1) as u32, slot));
                } else {
                    wake(overdue);
                }
            }
        }
        victims.sort_by_key(|v| std::cmp::Reverse(v.0));
        let mut takers = idle.len();
        for (_, most, slot) in victims {
            if takers == 0 {
                wake(self.now + INTERVAL);
                break;
            }
            let items = self.recallable(slot, most, &idle);
            let count: u32 = items.iter().map(|(_, r)| r.end - r.start).sum();
            if count == 0 {
                continue;
            }
            takers = takers.saturating_sub(count as usize);
            let engine = &mut self.engines[slot as usize];
            engine.recalled = count;
            engine.recall_until = self.now + PATIENCE.max(4 * engine.overhead as Nanos);
            wake(engine.recall_until);
            let engine = engine.key();
            self.refresh(slot);
            self.actions.push_back(Action::Recall { engine, items });
        }
        self.recall_at = next;
        self.settle();
    }

    /// Up to `most` members that the engine has probably not started and that an idle engine may take, newest first.
    fn recallable(&self, slot: u32, most: u32, idle: &[u32]) -> Vec<(GroupKey, Range<u32>)> {
        let mut items = Vec::new();
        let mut left = most;
        let holdings = self.holdings(slot);
        for (at, holding) in holdings.iter().enumerate().rev() {
            if left == 0 {
                break;
            }
            let group = &self.groups[holding.group];
            let oldest = u32::from(at == 0);
            let fits = idle
                .iter()
                .take(IDLE_SEEN)
                .any(|&s| self.suits(s, group.class));
            if !fits || group.stage == Stage::Over || group.is(ABORTED) {
                continue;
            }
            match holding.chunk {
                None if oldest == 1 => {}
                None => {
                    let key = self.groups.key(group.parent().unwrap_or(holding.group));
                    items.push((key, group.index()..group.index() + 1));
                    left -= 1;
                }
                Some((lo, hi)) => {
                    let count = (hi - lo - oldest).min(left);
                    if count > 0 {
                        items.push((self.groups.key(holding.group), hi - count..hi));
                        left -= count;
                    }
                }
            }
        }
        items
    }

    /// Whether the engine may take tasks of the class.
    pub(super) fn suits(&self, slot: u32, class: u32) -> bool {
        let entry = &self.pools.classes[class as usize];
        let engine = &self.engines[slot as usize];
        !entry.refused.contains(&engine.key()) && self.constraints(class).matches(engine, self.now)
    }
}
