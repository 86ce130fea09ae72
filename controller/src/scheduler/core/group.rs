//! What the core keeps of a group, and the slab it is kept in.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use super::auto::Estimate;
use super::id::{NONE, TaskId};
use super::ranges::RangeSet;
use super::types::{EngineKey, GroupKey, Nanos};

/// Where a group's own queue entry stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    /// Unused slot of the slab.
    Free,
    /// In its class's list of groups that wait for other tasks.
    Blocked,
    /// In a lane.
    Queued,
    /// A single task on an engine, in the engine's list.
    Flying,
    /// In no list: an array of which nothing waits, or a group between two stages.
    Resting,
    /// It has its outcome, and its engine has not answered yet.
    Over,
}

/// May go back to an engine on which it failed.
pub(super) const MAY_RETURN: u8 = 1;
/// Survives its client.
pub(super) const DETACHED: u8 = 2;
/// Aborted: never run again.
pub(super) const ABORTED: u8 = 4;
/// Aborted with kill: an error is answered as aborted.
pub(super) const KILLED: u8 = 8;
/// Given to an engine that had nothing else: its round trip tells the message time.
pub(super) const FIRST: u8 = 16;
/// In the lane's set of returned entries rather than in its list.
pub(super) const RETURNED: u8 = 32;

/// A host that it held is gone: it is stopped, and counts as lost unless it ends well.
pub(super) const HOST_LOST: u8 = 64;
/// An engine did not have its inputs, which no engine brings along.
pub(super) const LACKS_INPUT: u8 = 128;

/// A group, or a member split from an array.
// Two cache lines, not three.
#[derive(Debug)]
#[repr(align(128))]
pub(super) struct Group {
    pub id: TaskId,
    /// Order of becoming runnable; 0: never was.
    pub seq: u64,
    pub bytes: u64,
    /// When it was dispatched (single tasks) or began to wait.
    pub since: Nanos,
    pub extra: Option<Box<Extra>>,
    pub generation: u32,
    pub count: u32,
    pub class: u32,
    pub client: u32,
    pub lane: u32,
    pub next: u32,
    pub prev: u32,
    pub retries: u32,
    pub attempt: u32,
    pub priority: i32,
    /// Slot of the engine it is on (single tasks).
    pub engine: u32,
    /// What was charged for it, in [`EST_UNIT`]s.
    pub est: u32,
    pub stage: Stage,
    pub flags: u8,
}

/// Estimates are kept in units of 256 ns.
pub(super) const EST_UNIT: u32 = 8;

/// What only some groups have.
#[derive(Debug)]
pub(super) struct Extra {
    /// The class its specification gives, where `class` is narrowed by follow or preference.
    pub base: u32,
    /// The array it was split from.
    pub parent: u32,
    /// Its index there.
    pub index: u32,
    /// The class of preferred engines, while it waits for one.
    pub preferred: u32,
    pub prefer_wait: Nanos,
    /// Before the next retry.
    pub retry_delay: Nanos,
    /// It failed, and waits until then.
    pub retry_at: Nanos,
    /// How often it may still lose its engine; [`NONE`]: that uses up a retry.
    pub crashes: u32,
    pub timeout: Nanos,
    pub timeout_at: Nanos,
    pub prefer_at: Nanos,
    pub abort_at: Nanos,
    pub after: Option<Box<Dep>>,
    pub follow: Option<Box<Dep>>,
    pub array: Option<Box<Array>>,
}

impl Default for Extra {
    fn default() -> Self {
        Extra {
            base: NONE,
            parent: NONE,
            index: 0,
            preferred: NONE,
            prefer_wait: 0,
            retry_delay: 0,
            retry_at: 0,
            crashes: NONE,
            timeout: 0,
            timeout_at: 0,
            prefer_at: 0,
            abort_at: 0,
            after: None,
            follow: None,
            array: None,
        }
    }
}

impl Extra {
    /// The dependency of this kind.
    pub(super) fn dep_mut(&mut self, follow: bool) -> &mut Option<Box<Dep>> {
        match follow {
            true => &mut self.follow,
            false => &mut self.after,
        }
    }
}

/// A dependency and how far it is.
#[derive(Debug)]
pub(super) struct Dep {
    /// Ids as written, for explanations and look-ups.
    pub ids: Box<[Box<str>]>,
    pub all: bool,
    pub success: bool,
    pub failure: bool,
    /// Outcomes still to come.
    pub pending: u32,
    pub good: u32,
    pub bad: u32,
    /// An id that, as the store says, nobody knows.
    pub invalid: Option<Box<str>>,
    /// Where the good ones ran (follow only; none twice).
    pub places: Vec<EngineKey>,
}

/// The members of an array.
#[derive(Debug, Default)]
pub(super) struct Array {
    pub waiting: RangeSet,
    pub done: RangeSet,
    pub failed: RangeSet,
    /// Aborted members: never run again.
    pub aborted: RangeSet,
    /// Those of them that engines were told to stop.
    pub killed: RangeSet,
    /// Those of which a host that they held is gone.
    pub host_lost: RangeSet,
    /// On engines, by first member.
    pub flights: BTreeMap<u32, Flight>,
    /// Members that became groups of their own, by index.
    pub children: BTreeMap<u32, u32>,
    /// Where finished members ran: first member to (end, engine).
    pub places: BTreeMap<u32, (u32, EngineKey)>,
    /// Members others depend on.
    pub watched: BTreeSet<u32>,
    pub estimate: Estimate,
}

impl Array {
    /// Those of these members that became groups of their own.
    pub(super) fn children_in(&self, range: &Range<u32>) -> Vec<(u32, u32)> {
        let children = self.children.range(range.clone());
        children.map(|(&member, &child)| (member, child)).collect()
    }
}

/// A chunk on an engine.
#[derive(Clone, Copy, Debug)]
pub(super) struct Flight {
    pub hi: u32,
    pub engine: u32,
    pub since: Nanos,
    /// Per member, in [`EST_UNIT`]s.
    pub est: u32,
    pub first: bool,
}

impl Group {
    pub(super) fn is(&self, flag: u8) -> bool {
        self.flags & flag != 0
    }

    pub(super) fn set(&mut self, flag: u8, on: bool) {
        if on {
            self.flags |= flag;
        } else {
            self.flags &= !flag;
        }
    }

    pub(super) fn array(&self) -> Option<&Array> {
        self.extra.as_ref()?.array.as_deref()
    }

    pub(super) fn array_mut(&mut self) -> Option<&mut Array> {
        self.extra.as_mut()?.array.as_deref_mut()
    }

    /// Of what is an array, as the caller knows.
    pub(super) fn members(&self) -> &Array {
        self.array().expect("only arrays have members")
    }

    pub(super) fn members_mut(&mut self) -> &mut Array {
        self.array_mut().expect("only arrays have members")
    }

    pub(super) fn extra_mut(&mut self) -> &mut Extra {
        self.extra.get_or_insert_default()
    }

    /// How often it may still lose its engine, apart from retries.
    pub(super) fn crashes(&self) -> Option<u32> {
        let extra = self.extra.as_ref()?;
        (extra.crashes != NONE).then_some(extra.crashes)
    }

    /// It may run again after losing its engine.
    pub(super) fn is_retryable(&self) -> bool {
        self.crashes().unwrap_or(self.retries) > 0
    }

    pub(super) fn parent(&self) -> Option<u32> {
        self.extra.as_ref().map(|e| e.parent).filter(|&p| p != NONE)
    }

    pub(super) fn index(&self) -> u32 {
        self.extra.as_ref().map_or(0, |e| e.index)
    }

    /// Members that wait (for an engine or for other tasks).
    pub(super) fn waiting(&self) -> u32 {
        match (self.array(), self.stage) {
            (Some(array), _) => array.waiting.len(),
            (None, Stage::Blocked | Stage::Queued) => 1,
            _ => 0,
        }
    }
}

/// Groups by index, in pieces, so that growing never moves those that are there.
#[derive(Default)]
pub(super) struct Groups {
    pieces: Vec<Vec<Group>>,
    free: u32,
    len: usize,
    live: usize,
}

const PIECE: usize = 4096;

impl Groups {
    pub(super) fn live(&self) -> usize {
        self.live
    }

    /// Puts a group into a slot; its generation tells it from earlier ones there.
    pub(super) fn insert(&mut self, mut group: Group) -> u32 {
        self.live += 1;
        if self.free != 0 {
            let index = self.free - 1;
            let slot = &mut self[index];
            group.generation = slot.generation;
            let next = slot.next;
            *slot = group;
            self.free = next;
            return index;
        }
        if self.len == self.pieces.len() * PIECE {
            self.pieces.push(Vec::with_capacity(PIECE));
        }
        let index = self.len as u32;
        self.pieces[self.len / PIECE].push(group);
        self.len += 1;
        index
    }

    pub(super) fn free(&mut self, index: u32) {
        let next = self.free;
        let slot = &mut self[index];
        slot.stage = Stage::Free;
        slot.extra = None;
        slot.generation = slot.generation.wrapping_add(1);
        slot.next = next;
        self.free = index + 1;
        self.live -= 1;
    }

    pub(super) fn get(&self, key: GroupKey) -> Option<&Group> {
        let group = self
            .pieces
            .get(key.index as usize / PIECE)?
            .get(key.index as usize % PIECE)?;
        (group.generation == key.generation && group.stage != Stage::Free).then_some(group)
    }

    pub(super) fn key(&self, index: u32) -> GroupKey {
        GroupKey {
            index,
            generation: self[index].generation,
        }
    }

    /// All that are in use.
    pub(super) fn iter(&self) -> impl Iterator<Item = (u32, &Group)> + '_ {
        self.pieces
            .iter()
            .flatten()
            .enumerate()
            .filter(|(_, g)| g.stage != Stage::Free)
            .map(|(i, g)| (i as u32, g))
    }
}

impl std::ops::Index<u32> for Groups {
    type Output = Group;
    fn index(&self, index: u32) -> &Group {
        &self.pieces[index as usize / PIECE][index as usize % PIECE]
    }
}

impl std::ops::IndexMut<u32> for Groups {
    fn index_mut(&mut self, index: u32) -> &mut Group {
        &mut self.pieces[index as usize / PIECE][index as usize % PIECE]
    }
}
