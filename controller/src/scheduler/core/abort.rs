//! Aborts.

use std::ops::Range;

use super::Core;
use super::clients::Bucket;
use super::group::{ABORTED, DETACHED, KILLED, Stage};
use super::id::{NONE, split_member};
use super::past::Found;
use super::types::{AbortReport, Action, FailKind, GroupKey, Nanos, Selector, TaskState};

impl Core {
    /// Aborts. Waiting members are answered at once and never run. Running ones are never tried again; with `kill`
    /// their engines are told to stop them (a success that was already on its way still counts, an error does not:
    /// its outcome is `aborted`), without it they run on and their own outcome is final.
    pub fn abort(&mut self, now: Nanos, what: &Selector<'_>, kill: bool) -> AbortReport {
        let mut report = AbortReport::default();
        match what {
            Selector::Ids(ids) => {
                for id in *ids {
                    let state = self.abort_id(now, id, kill, &mut report);
                    report.ids.push(state);
                }
            }
            Selector::Client {
                client,
                keep_detached,
            } => {
                let Some(&client) = self.client_index.get(*client) else {
                    return report;
                };
                self.abort_where(now, Some(client), *keep_detached, kill, &mut report);
            }
            Selector::All => self.abort_where(now, None, false, kill, &mut report),
        }
        self.settle(now);
        report
    }

    fn abort_where(
        &mut self,
        now: Nanos,
        client: Option<u32>,
        keep: bool,
        kill: bool,
        report: &mut AbortReport,
    ) {
        let mut left = client.map_or(usize::MAX, |c| self.clients[c as usize].groups as usize);
        if left == 0 {
            return;
        }
        let mut found = Vec::new();
        for (index, group) in self.groups.iter() {
            if client.is_none_or(|c| c == group.client) {
                if group.parent().is_none()
                    && group.stage != Stage::Over
                    && !(keep && group.is(DETACHED))
                {
                    found.push(self.groups.key(index));
                }
                left -= 1;
                if left == 0 {
                    break;
                }
            }
        }
        for key in found {
            let count = self.groups[key.index].count;
            self.abort_members(now, key, 0..count, kill, report);
        }
    }

    fn abort_id(
        &mut self,
        now: Nanos,
        id: &str,
        kill: bool,
        report: &mut AbortReport,
    ) -> TaskState {
        let state = self.state(id);
        let (index, range) = match self.ids.find(self.hasher.id(id.as_bytes()), &self.groups) {
            Some(Found::Live(index)) => (index, 0..self.groups[index].count),
            Some(Found::Past(_)) => return state,
            None => {
                let Some((base, member)) = split_member(id) else {
                    return state;
                };
                match self.ids.find(self.hasher.id(base.as_bytes()), &self.groups) {
                    Some(Found::Live(index)) if member < self.groups[index].count => {
                        (index, member..member + 1)
                    }
                    _ => return state,
                }
            }
        };
        let key = self.groups.key(index);
        self.abort_members(now, key, range, kill, report);
        state
    }

    fn abort_members(
        &mut self,
        now: Nanos,
        key: GroupKey,
        range: Range<u32>,
        kill: bool,
        report: &mut AbortReport,
    ) {
        let index = key.index;
        if self.groups[index].array().is_none() {
            return self.abort_single(now, index, key, 0, kill, report);
        }
        let array = self.groups[index].array_mut().expect("checked");
        for (lo, hi) in array.done.gaps(range.start, range.end) {
            array.aborted.insert(lo, hi);
        }
        let waiting = array.waiting.overlap(range.start, range.end);
        array.waiting.remove(range.start, range.end);
        let none_left = array.waiting.is_empty();
        let children: Vec<(u32, u32)> = array
            .children
            .range(range.clone())
            .map(|(&m, &c)| (m, c))
            .collect();
        let (client, stage) = (self.groups[index].client, self.groups[index].stage);
        let bucket = if stage == Stage::Blocked {
            Bucket::Blocked
        } else {
            Bucket::Ready
        };
        if none_left && !waiting.is_empty() {
            self.unlink(index);
            self.stop_waiting(index);
        }
        for (member, child) in children {
            self.abort_single(now, child, key, member, kill, report);
        }
        let mut killing = false;
        for (_, lo, hi, flight) in self.flights(index, range.start, range.end) {
            let engine = self.engines[flight.engine as usize].key();
            let parts = self.groups[index]
                .array()
                .expect("checked")
                .done
                .gaps(lo, hi);
            for (lo, hi) in parts {
                report.running.push((engine, key, lo..hi));
                if kill {
                    killing = true;
                    self.groups[index]
                        .array_mut()
                        .expect("checked")
                        .killed
                        .insert(lo, hi);
                    self.actions.push_back(Action::Stop {
                        engine,
                        group: key,
                        range: lo..hi,
                    });
                }
            }
        }
        if killing {
            self.arm_abort(now, index);
        }
        for (lo, hi) in waiting {
            report.aborted.push((key, lo..hi));
            self.say_failed(
                index,
                lo,
                hi,
                FailKind::TaskAborted,
                "aborted before it ran",
                None,
            );
            self.count_end(client, bucket, super::clients::End::Aborted, hi - lo);
            self.members_over(now, index, lo, hi, false, None);
        }
    }

    fn abort_single(
        &mut self,
        now: Nanos,
        index: u32,
        key: GroupKey,
        member: u32,
        kill: bool,
        report: &mut AbortReport,
    ) {
        match self.groups[index].stage {
            Stage::Flying => {
                let engine = self.engines[self.groups[index].engine as usize].key();
                report.running.push((engine, key, member..member + 1));
                self.groups[index].set(ABORTED, true);
                if kill {
                    self.groups[index].set(KILLED, true);
                    self.arm_abort(now, index);
                    self.actions.push_back(Action::Stop {
                        engine,
                        group: key,
                        range: member..member + 1,
                    });
                }
            }
            Stage::Blocked | Stage::Queued => {
                report.aborted.push((key, member..member + 1));
                self.fail_waiting(now, index, FailKind::TaskAborted, "aborted before it ran");
            }
            Stage::Free | Stage::Resting | Stage::Over => {}
        }
    }

    /// Engines did not answer in time for what they were told to stop.
    pub(super) fn abort_overdue(&mut self, now: Nanos, index: u32) {
        let text = "aborted; its engine did not say in time that it stopped";
        if self.groups[index].array().is_none() {
            if self.groups[index].stage == Stage::Flying {
                let slot = self.groups[index].engine;
                debug_assert_ne!(slot, NONE);
                let engine = self.engines[slot as usize].key();
                self.fail_running(now, index, FailKind::TaskAborted, text, Some(engine));
            }
            return;
        }
        let count = self.groups[index].count;
        for (_, lo, hi, flight) in self.flights(index, 0, count) {
            let array = self.groups[index].array().expect("checked");
            let engine = self.engines[flight.engine as usize].key();
            for (lo, hi) in array.killed.overlap(lo, hi) {
                for (lo, hi) in self.groups[index]
                    .array()
                    .expect("checked")
                    .done
                    .gaps(lo, hi)
                {
                    self.fail_members(
                        now,
                        index,
                        lo..hi,
                        FailKind::TaskAborted,
                        text,
                        Some(engine),
                    );
                }
            }
        }
    }
}
