//! Who waits for an engine, and whose turn it is.
//!
//! In each class every client has a *lane*: its groups by priority, then in the order in which they first
//! became runnable. Between clients the one served least goes first, measured in the time its tasks take.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap};

use super::Core;
use super::group::{Group, Groups, RETURNED, Stage};
use super::id::NONE;
use super::pools::Class;

/// The queue of one class.
#[derive(Default)]
pub(super) struct ClassQueue {
    /// Entries in all its lanes.
    pub len: u32,
    pub lanes: Vec<u32>,
    /// Lanes by how much their clients were served when last looked at (that only ever grows), then by client, so that
    /// all classes agree on whose turn it is.
    turns: BinaryHeap<Reverse<(u64, u32, u32)>>,
}

/// Groups of one client in one class.
pub(super) struct Lane {
    pub class: u32,
    pub client: u32,
    /// The highest priority at which something waits.
    top: Level,
    rest: BTreeMap<i32, Level>,
    pub len: u32,
    in_turns: bool,
}

/// Groups of one priority.
#[derive(Debug)]
struct Level {
    priority: i32,
    head: u32,
    tail: u32,
    /// Those that wait again, by their first turn: `(seq, member, group)`.
    returned: BTreeSet<(u64, u32, u32)>,
}

impl Level {
    fn new(priority: i32) -> Self {
        Level {
            priority,
            head: NONE,
            tail: NONE,
            returned: BTreeSet::new(),
        }
    }

    fn is_empty(&self) -> bool {
        self.head == NONE && self.returned.is_empty()
    }

    fn first(&self, groups: &Groups) -> u32 {
        match self.returned.first() {
            Some(&(seq, _, group)) if self.head == NONE || seq <= groups[self.head].seq => group,
            _ => self.head,
        }
    }
}

fn entry_of(index: u32, group: &Group) -> (u64, u32, u32) {
    (group.seq, group.index(), index)
}

/// What an engine should take next.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pick {
    pub class: u32,
    pub group: u32,
    /// The class that comes first in turn, and waits for more than is free here ([`NONE`]: this one does).
    pub overtakes: u32,
}

/// Whose turn it is: the client's share, the client, the priority, the order of becoming runnable.
type TurnKey = (u64, u32, Reverse<i32>, u64, u32);

/// Beyond this many classes with waiting tasks for one engine, the order between classes is only a rotation.
pub(super) const CLASSES_SEEN: usize = 64;

impl Core {
    fn lane_of(&mut self, class: u32, client: u32) -> u32 {
        if let Some(&lane) = self.lane_index.get(&(class, client)) {
            return lane;
        }
        let lane = self.lanes.insert(Lane {
            class,
            client,
            top: Level::new(0),
            rest: BTreeMap::new(),
            len: 0,
            in_turns: false,
        }) as u32;
        self.lane_index.insert((class, client), lane);
        self.pools.classes[class as usize].queue.lanes.push(lane);
        self.clients[client as usize].lanes.push(lane);
        lane
    }

    /// Puts a group into the queue of its class.
    pub(super) fn enqueue(&mut self, index: u32) {
        let (class, client) = (self.groups[index].class, self.groups[index].client);
        let lane_index = self.lane_of(class, client);
        self.activate(client);
        self.clients[client as usize].queued += 1;
        let lane = &mut self.lanes[lane_index as usize];
        let priority = self.groups[index].priority;
        let level = if lane.top.priority == priority {
            &mut lane.top
        } else if lane.len == 0 {
            lane.top.priority = priority;
            &mut lane.top
        } else if priority > lane.top.priority {
            let lower = std::mem::replace(&mut lane.top, Level::new(priority));
            lane.rest.insert(lower.priority, lower);
            &mut lane.top
        } else {
            lane.rest
                .entry(priority)
                .or_insert_with(|| Level::new(priority))
        };
        lane.len += 1;
        let group = &mut self.groups[index];
        group.stage = Stage::Queued;
        group.lane = lane_index;
        if group.seq == 0 {
            self.next_seq += 1;
            group.seq = self.next_seq;
            group.set(RETURNED, false);
            group.next = NONE;
            group.prev = level.tail;
            let tail = std::mem::replace(&mut level.tail, index);
            if tail == NONE {
                level.head = index;
            } else {
                self.groups[tail].next = index;
            }
        } else {
            group.set(RETURNED, true);
            level.returned.insert(entry_of(index, &self.groups[index]));
        }
        let entry = &mut self.pools.classes[class as usize];
        self.asking += u64::from(entry.asks);
        let queue = &mut entry.queue;
        queue.len += 1;
        let lane = &mut self.lanes[lane_index as usize];
        if !lane.in_turns {
            lane.in_turns = true;
            queue.turns.push(Reverse((
                self.clients[client as usize].served,
                client,
                lane_index,
            )));
        }
    }

    /// Takes a group out of its lane.
    pub(super) fn dequeue(&mut self, index: u32) {
        let group = &self.groups[index];
        let (lane_index, priority, next, prev) =
            (group.lane, group.priority, group.next, group.prev);
        let lane = &mut self.lanes[lane_index as usize];
        let at_top = lane.top.priority == priority;
        let level = if at_top {
            &mut lane.top
        } else {
            lane.rest
                .get_mut(&priority)
                .expect("a queued group has a level")
        };
        if group.is(RETURNED) {
            level.returned.remove(&entry_of(index, group));
        } else {
            match prev {
                NONE => level.head = next,
                _ => self.groups[prev].next = next,
            }
            match next {
                NONE => level.tail = prev,
                _ => self.groups[next].prev = prev,
            }
        }
        if level.is_empty() {
            if !at_top {
                lane.rest.remove(&priority);
            } else if let Some((_, level)) = lane.rest.pop_last() {
                lane.top = level;
            }
        }
        lane.len -= 1;
        self.clients[lane.client as usize].queued -= 1;
        let class = lane.class;
        let entry = &mut self.pools.classes[class as usize];
        entry.queue.len -= 1;
        self.asking -= u64::from(entry.asks);
        self.groups[index].stage = Stage::Resting;
        if entry.queue.len == 0 {
            self.unreserve(class);
        }
    }

    /// The lane whose client has been served least.
    fn turn(&mut self, class: u32) -> Option<u32> {
        let queue = &mut self.pools.classes[class as usize].queue;
        if queue.len == 0 {
            return None;
        }
        if let [only] = queue.lanes[..] {
            return Some(only);
        }
        loop {
            let mut top = queue.turns.peek_mut()?;
            let Reverse((served, _, index)) = *top;
            let lane = &mut self.lanes[index as usize];
            if lane.len == 0 {
                lane.in_turns = false;
                std::collections::binary_heap::PeekMut::pop(top);
                continue;
            }
            let now = self.clients[lane.client as usize].served;
            if now > served {
                top.0.0 = now;
                continue;
            }
            return Some(index);
        }
    }

    /// The same among lanes with something of a higher priority than this: for engines of which a call waits.
    fn turn_above(&self, class: u32, floor: i32) -> Option<u32> {
        let queue = &self.pools.classes[class as usize].queue;
        let lanes = queue.lanes.iter().copied().filter(|&lane| {
            let lane = &self.lanes[lane as usize];
            lane.len > 0 && lane.top.priority > floor
        });
        lanes.min_by_key(|&lane| {
            let client = self.lanes[lane as usize].client;
            (self.clients[client as usize].served, client)
        })
    }

    /// What the engine should take next: of the client served least, the highest priority, what came first.
    pub(super) fn pick(&mut self, slot: u32) -> Option<Pick> {
        self.refresh(slot);
        let engine = &self.engines[slot as usize];
        if engine.kept_for != NONE && engine.waits == 0 {
            return self.pick_kept(slot, engine.kept_for);
        }
        let (any, retry) = engine.room();
        let idle = engine.idle();
        if !any && !retry && !idle {
            return None;
        }
        let floor = (engine.waits > 0).then_some(engine.floor);
        let count = engine.classes.len();
        let start = engine.rotate as usize;
        let mut best: Option<(TurnKey, (u32, u32))> = None;
        let mut first: Option<(TurnKey, u32)> = None;
        let (mut seen, mut passed) = (0, 0);
        for step in 0..count {
            let class = self.engines[slot as usize].classes[(start + step) % count];
            if self.pools.classes[class as usize].queue.len == 0 {
                continue;
            }
            let lane = match floor {
                None => self.turn(class),
                Some(floor) => self.turn_above(class, floor),
            };
            let Some(lane_index) = lane else {
                continue;
            };
            let lane = &self.lanes[lane_index as usize];
            let group = lane.top.first(&self.groups);
            let key = (
                self.clients[lane.client as usize].served,
                lane.client,
                Reverse(lane.top.priority),
                self.groups[group].seq,
                self.groups[group].index(),
            );
            // What comes after something that it may take is not looked at any closer.
            if best.as_ref().is_none_or(|(k, _)| key < *k) {
                let takes = if self.pools.classes[class as usize].asks {
                    idle && self.has_any_now(class, slot)
                } else {
                    any || (retry && self.constraints(class).retryable)
                };
                if !takes {
                    if passed < CLASSES_SEEN
                        && floor.is_none()
                        && first.as_ref().is_none_or(|(k, _)| key < *k)
                        && self.waits_here(slot, class)
                    {
                        passed += 1;
                        first = Some((key, class));
                    }
                    continue;
                }
                best = Some((key, (class, group)));
            }
            seen += 1;
            if seen == CLASSES_SEEN {
                self.engines[slot as usize].rotate = ((start + step + 1) % count) as u32;
                break;
            }
        }
        let (key, (class, group)) = best?;
        let overtakes = first.filter(|(k, _)| *k < key).map_or(NONE, |(_, c)| c);
        if overtakes != NONE && self.overtaken(slot, overtakes) {
            self.reserve(slot, overtakes);
            // Of whole hosts others may be kept.
            if self.engines[slot as usize].kept_for == overtakes {
                return self.pick_kept(slot, overtakes);
            }
        }
        Some(Pick {
            class,
            group,
            overtakes,
        })
    }

    /// The first of the class that the engine is kept for, if all is there that it asks for.
    fn pick_kept(&mut self, slot: u32, class: u32) -> Option<Pick> {
        let complete = match self.pools.classes[class as usize].nodes {
            0 => self.is_kept_complete(slot),
            _ => self.whole_hosts(class, Some(slot)).is_some(),
        };
        if !complete {
            return None;
        }
        let lane = self.turn(class)?;
        Some(Pick {
            class,
            group: self.lanes[lane as usize].top.first(&self.groups),
            overtakes: NONE,
        })
    }

    /// A task of the class would run on this engine if its host had more free, or it had nothing else to do.
    fn waits_here(&self, slot: u32, class: u32) -> bool {
        let engine = &self.engines[slot as usize];
        let Some(host) = self.hosts.of(engine) else {
            return false;
        };
        let entry = &self.pools.classes[class as usize];
        if entry.nodes > 0 {
            return self.has_enough_hosts(class);
        }
        match entry.asks {
            true => self.requests(class).any(|request| host.could(request)),
            false => engine.idle() && !host.open,
        }
    }

    /// Groups that wait in a class: queued and blocked.
    pub(super) fn members_of_class(&self, class: u32) -> Vec<u32> {
        let entry = &self.pools.classes[class as usize];
        let mut found = Vec::new();
        let walk = |found: &mut Vec<u32>, mut at: u32| {
            while at != NONE {
                found.push(at);
                at = self.groups[at].next;
            }
        };
        for &lane in &entry.queue.lanes {
            let lane = &self.lanes[lane as usize];
            for level in std::iter::once(&lane.top).chain(lane.rest.values()) {
                walk(&mut found, level.head);
                found.extend(level.returned.iter().map(|e| e.2));
            }
        }
        walk(&mut found, entry.blocked_head);
        found
    }

    /// Puts a group among those of its class that wait for other tasks.
    pub(super) fn block(&mut self, index: u32) {
        let class = self.groups[index].class;
        let entry = &mut self.pools.classes[class as usize];
        let tail = std::mem::replace(&mut entry.blocked_tail, index);
        if tail == NONE {
            entry.blocked_head = index;
        } else {
            self.groups[tail].next = index;
        }
        let group = &mut self.groups[index];
        group.stage = Stage::Blocked;
        group.prev = tail;
        group.next = NONE;
    }

    /// Takes a group out of whatever list it waits in.
    pub(super) fn unlink(&mut self, index: u32) {
        match self.groups[index].stage {
            Stage::Queued => self.dequeue(index),
            Stage::Blocked => {
                let group = &mut self.groups[index];
                let (class, next, prev) = (group.class, group.next, group.prev);
                group.stage = Stage::Resting;
                let entry = &mut self.pools.classes[class as usize];
                match prev {
                    NONE => entry.blocked_head = next,
                    _ => self.groups[prev].next = next,
                }
                match next {
                    NONE => entry.blocked_tail = prev,
                    _ => self.groups[next].prev = prev,
                }
            }
            Stage::Free | Stage::Flying | Stage::Resting | Stage::Over => {}
        }
    }

    /// Drops the lanes of a class that is dropped.
    pub(super) fn free_lanes_of(&mut self, class: &Class) {
        for &lane in &class.queue.lanes {
            let old = self.lanes.remove(lane as usize);
            self.lane_index.remove(&(old.class, old.client));
            self.clients[old.client as usize]
                .lanes
                .retain(|&l| l != lane);
        }
    }

    /// Drops the lanes of a client that is dropped.
    pub(super) fn free_lanes(&mut self, lanes: Vec<u32>) {
        for lane in lanes {
            let old = self.lanes.remove(lane as usize);
            self.lane_index.remove(&(old.class, old.client));
            let queue = &mut self.pools.classes[old.class as usize].queue;
            queue.lanes.retain(|&l| l != lane);
            if old.in_turns {
                queue.turns.retain(|Reverse((_, _, l))| *l != lane);
            }
        }
    }
}
