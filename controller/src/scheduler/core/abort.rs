//! Aborts.

use std::ops::Range;

use super::Core;
use super::clients::{Bucket, End};
use super::group::{ABORTED, DETACHED, KILLED, Stage};
use super::id::{NONE, split_member};
use super::past::Found;
use super::types::{AbortReport, Action, FailKind, GroupKey, Nanos, Selector, TaskState};

/// What is said of what was aborted while it waited.
pub(super) const UNRUN: &str = "aborted before it ran";

impl Core {
    /// Aborts. Waiting members are answered at once and never run. Running ones are never tried again; with `kill`
    /// their engines are told to stop them (a success that was already on its way still counts, an error does not:
    /// its outcome is `aborted`), without it they run on and their own outcome is final.
    pub fn abort(&mut self, now: Nanos, what: &Selector<'_>, kill: bool) -> AbortReport {
        self.now = now;
        let mut report = AbortReport::default();
        match what {
            Selector::Ids(ids) => {
                for id in *ids {
                    let state = self.abort_id(id, kill, &mut report);
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
                self.abort_where(Some(client), *keep_detached, kill, &mut report);
            }
            Selector::All => self.abort_where(None, false, kill, &mut report),
        }
        self.settle();
        report
    }

    fn abort_where(
        &mut self,
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
            self.abort_members(key, 0..count, kill, report);
        }
    }

    fn abort_id(&mut self, id: &str, kill: bool, report: &mut AbortReport) -> TaskState {
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
        self.abort_members(key, range, kill, report);
        state
    }

    fn abort_members(
        &mut self,
        key: GroupKey,
        range: Range<u32>,
        kill: bool,
        report: &mut AbortReport,
    ) {
        let index = key.index;
        if self.groups[index].array().is_none() {
            return self.abort_single(index, key, 0, kill, report);
        }
        let array = self.groups[index].members_mut();
        for (lo, hi) in array.done.gaps(range.start, range.end) {
            array.aborted.insert(lo, hi);
        }
        let waiting = array.waiting.overlap(range.start, range.end);
        array.waiting.remove(range.start, range.end);
        let none_left = array.waiting.is_empty();
        let children = array.children_in(&range);
        let client = self.groups[index].client;
        let bucket = Bucket::of_waiting(self.groups[index].stage);
        if none_left && !waiting.is_empty() {
            self.unlink(index);
            self.stop_waiting(index);
        }
        for (member, child) in children {
            self.abort_single(child, key, member, kill, report);
        }
        let mut killing = false;
        for (_, lo, hi, flight) in self.flights(index, range.start, range.end) {
            let engine = self.engines[flight.engine as usize].key();
            for (lo, hi) in self.groups[index].members().done.gaps(lo, hi) {
                report.running.push((engine, key, lo..hi));
                if kill {
                    killing = true;
                    self.groups[index].members_mut().killed.insert(lo, hi);
                    self.actions.push_back(Action::Stop {
                        engine,
                        group: key,
                        range: lo..hi,
                    });
                }
            }
        }
        if killing {
            self.arm_abort(index);
        }
        for (lo, hi) in waiting {
            report.aborted.push((key, lo..hi));
            self.say_failed(index, lo, hi, FailKind::TaskAborted, UNRUN, None);
            self.count_end(client, bucket, End::Aborted, hi - lo);
            self.members_over(index, lo, hi, false, None);
        }
    }

    fn abort_single(
        &mut self,
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
                    self.arm_abort(index);
                    self.actions.push_back(Action::Stop {
                        engine,
                        group: key,
                        range: member..member + 1,
                    });
                }
            }
            Stage::Blocked | Stage::Queued => {
                report.aborted.push((key, member..member + 1));
                self.fail_waiting(index, FailKind::TaskAborted, UNRUN);
            }
            Stage::Free | Stage::Resting | Stage::Over => {}
        }
    }

    /// Engines did not answer in time for what they were told to stop.
    pub(super) fn abort_overdue(&mut self, index: u32) {
        let text = "aborted; its engine did not say in time that it stopped";
        if self.groups[index].array().is_none() {
            if self.groups[index].stage == Stage::Flying {
                let slot = self.groups[index].engine;
                debug_assert_ne!(slot, NONE);
                let engine = self.engines[slot as usize].key();
                self.fail_running(index, FailKind::TaskAborted, text, Some(engine));
            }
            return;
        }
        let count = self.groups[index].count;
        for (_, lo, hi, flight) in self.flights(index, 0, count) {
            let array = self.groups[index].members();
            let engine = self.engines[flight.engine as usize].key();
            for (lo, hi) in array.killed.overlap(lo, hi) {
                for (lo, hi) in self.groups[index].members().done.gaps(lo, hi) {
                    self.fail_members(index, lo..hi, FailKind::TaskAborted, text, Some(engine));
                }
            }
        }
    }
}
