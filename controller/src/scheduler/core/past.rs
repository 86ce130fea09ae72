//! Ids in memory: live groups, and a bounded number of past outcomes.

use std::collections::BTreeMap;

use hashbrown::HashTable;

use super::group::{Array, Groups};
use super::id::TaskId;
use super::ranges::RangeSet;
use super::types::EngineKey;

/// Where a task ran.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) enum Places {
    /// Nowhere.
    #[default]
    None,
    /// On one engine.
    One(EngineKey),
    /// On several.
    Many(Box<[EngineKey]>),
}

impl Places {
    pub(super) fn of(mut engines: Vec<EngineKey>) -> Self {
        engines.sort();
        engines.dedup();
        match engines[..] {
            [] => Places::None,
            [one] => Places::One(one),
            _ => Places::Many(engines.into()),
        }
    }

    pub(super) fn as_slice(&self) -> &[EngineKey] {
        match self {
            Places::None => &[],
            Places::One(one) => std::slice::from_ref(one),
            Places::Many(many) => many,
        }
    }
}

/// How a task ended.
#[derive(Clone, Debug)]
pub(super) struct Past {
    pub id: TaskId,
    pub ok: bool,
    pub places: Places,
    /// The members of an array, unless that is too much to keep.
    pub members: Option<Box<Members>>,
}

/// How the members of an array ended.
#[derive(Clone, Debug)]
pub(super) struct Members {
    count: u32,
    failed: RangeSet,
    places: BTreeMap<u32, (u32, EngineKey)>,
}

/// Ranges kept of an array that is past.
const RANGES_MOST: usize = 64;

impl Members {
    pub(super) fn of(array: &Array, count: u32) -> Option<Box<Self>> {
        (array.failed.pieces() + array.places.len() <= RANGES_MOST).then(|| {
            Box::new(Members {
                count,
                failed: array.failed.clone(),
                places: array.places.clone(),
            })
        })
    }

    /// How a member ended; `None`: there is no such member.
    pub(super) fn outcome(&self, index: u32) -> Option<(bool, Places)> {
        (index < self.count).then(|| (!self.failed.contains(index), place_in(&self.places, index)))
    }
}

/// Where a member ran.
pub(super) fn place_in(places: &BTreeMap<u32, (u32, EngineKey)>, index: u32) -> Places {
    match places.range(..=index).next_back() {
        Some((_, &(hi, engine))) if index < hi => Places::One(engine),
        _ => Places::None,
    }
}

/// What an id in memory stands for.
#[derive(Clone, Copy, Debug)]
pub(super) enum Found<'a> {
    /// A group without its final outcome.
    Live(u32),
    /// One that has it.
    Past(&'a Past),
}

/// The tables of ids: five bytes an entry, as the ids are with the groups and in the ring. Most that is looked up is
/// live, and a table of what is live alone stays in the processor's cache.
pub(super) struct Ids {
    live: HashTable<u32>,
    past: HashTable<u32>,
    ring: Vec<Past>,
    at: usize,
    most: usize,
}

impl Ids {
    pub(super) fn new(most: usize) -> Self {
        Ids {
            live: HashTable::new(),
            past: HashTable::new(),
            ring: Vec::new(),
            at: 0,
            most: most.clamp(1, u32::MAX as usize),
        }
    }

    /// The group of that id that has no final outcome.
    pub(super) fn live(&self, id: TaskId, groups: &Groups) -> Option<u32> {
        let same = |&group: &u32| groups[group].id == id;
        self.live.find(id.hash(), same).copied()
    }

    pub(super) fn find(&self, id: TaskId, groups: &Groups) -> Option<Found<'_>> {
        if let Some(group) = self.live(id, groups) {
            return Some(Found::Live(group));
        }
        let same = |&slot: &u32| self.ring[slot as usize].id == id;
        let slot = *self.past.find(id.hash(), same)?;
        Some(Found::Past(&self.ring[slot as usize]))
    }

    /// A new group; its id must not be known.
    pub(super) fn insert(&mut self, index: u32, groups: &Groups) {
        let hash = |&group: &u32| groups[group].id.hash();
        self.live.insert_unique(hash(&index), index, hash);
    }

    /// The oldest outcome may be forgotten for a new one.
    fn keep(&mut self, past: Past) {
        let hash = past.id.hash();
        let slot = if self.ring.len() < self.most {
            self.ring.push(past);
            self.ring.len() - 1
        } else {
            let slot = self.at;
            self.at = (self.at + 1) % self.most;
            let old = std::mem::replace(&mut self.ring[slot], past);
            let same = |&kept: &u32| kept == slot as u32;
            if let Ok(entry) = self.past.find_entry(old.id.hash(), same) {
                entry.remove();
            }
            slot
        };
        let ring = &self.ring;
        self.past
            .insert_unique(hash, slot as u32, |&slot| ring[slot as usize].id.hash());
    }

    /// An outcome from the store, unless it is known.
    pub(super) fn remember(&mut self, past: Past, groups: &Groups) {
        if self.find(past.id, groups).is_none() {
            self.keep(past);
        }
    }

    /// The live group `index` becomes past.
    pub(super) fn conclude(&mut self, index: u32, past: Past, groups: &Groups) {
        debug_assert_eq!(groups[index].id, past.id);
        let same = |&group: &u32| group == index;
        if let Ok(entry) = self.live.find_entry(past.id.hash(), same) {
            entry.remove();
        }
        self.keep(past);
    }
}
