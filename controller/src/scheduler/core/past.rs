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

/// Marks an entry as past.
const PAST: u32 = 1 << 31;

/// The table of ids: five bytes an entry, as the ids are with the groups and in the ring.
pub(super) struct Ids {
    table: HashTable<u32>,
    ring: Vec<Past>,
    at: usize,
    most: usize,
}

fn id_of(entry: u32, groups: &Groups, ring: &[Past]) -> TaskId {
    if entry & PAST != 0 {
        ring[(entry & !PAST) as usize].id
    } else {
        groups[entry].id
    }
}

impl Ids {
    pub(super) fn new(most: usize) -> Self {
        Ids {
            table: HashTable::new(),
            ring: Vec::new(),
            at: 0,
            most: most.clamp(1, (PAST - 1) as usize),
        }
    }

    pub(super) fn find(&self, id: TaskId, groups: &Groups) -> Option<Found<'_>> {
        let entry = *self
            .table
            .find(id.hash(), |&e| id_of(e, groups, &self.ring) == id)?;
        Some(if entry & PAST != 0 {
            Found::Past(&self.ring[(entry & !PAST) as usize])
        } else {
            Found::Live(entry)
        })
    }

    /// A new group; its id must not be in the table.
    pub(super) fn insert(&mut self, index: u32, groups: &Groups) {
        let ring = &self.ring;
        self.table
            .insert_unique(groups[index].id.hash(), index, |&e| {
                id_of(e, groups, ring).hash()
            });
    }

    /// A slot of the ring; the oldest outcome may be forgotten for it.
    fn slot(&mut self) -> usize {
        if self.ring.len() < self.most {
            self.ring.len()
        } else {
            let slot = self.at;
            self.at = (self.at + 1) % self.most;
            let old = PAST | slot as u32;
            if let Ok(entry) = self
                .table
                .find_entry(self.ring[slot].id.hash(), |&e| e == old)
            {
                entry.remove();
            }
            slot
        }
    }

    fn keep(&mut self, slot: usize, past: Past) {
        if slot == self.ring.len() {
            self.ring.push(past);
        } else {
            self.ring[slot] = past;
        }
    }

    /// An outcome from the store; its id must not be in the table.
    pub(super) fn remember(&mut self, past: Past, groups: &Groups) {
        if self.find(past.id, groups).is_some() {
            return;
        }
        let slot = self.slot();
        let id = past.id;
        self.keep(slot, past);
        let ring = &self.ring;
        self.table
            .insert_unique(id.hash(), PAST | slot as u32, |&e| {
                id_of(e, groups, ring).hash()
            });
    }

    /// The live group `index` becomes past.
    pub(super) fn conclude(&mut self, index: u32, past: Past, groups: &Groups) {
        let slot = self.slot();
        let id = past.id;
        debug_assert_eq!(groups[index].id, id);
        if let Some(entry) = self.table.find_mut(id.hash(), |&e| e == index) {
            *entry = PAST | slot as u32;
        }
        self.keep(slot, past);
    }
}
