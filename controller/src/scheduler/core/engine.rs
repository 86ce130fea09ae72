//! What the core keeps of an engine.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::id::{NONE, TaskId};
use super::types::{EngineKey, Grant, HostSpec, Hwm, Nanos};

/// A slot for an engine.
#[derive(Debug)]
pub(super) struct Engine {
    pub generation: u32,
    pub slot: u32,
    /// Slot in use: registered, or awaited after a restart.
    pub used: bool,
    /// Registered.
    pub live: bool,
    /// It has said that it leaves: it is given nothing more.
    pub leaving: bool,
    /// It has said that it stops what it runs, and leaves.
    pub stopping: bool,
    /// It was told to stop what it runs, and to leave.
    pub dismissed: bool,
    pub uuid: TaskId,
    pub name: Box<str>,
    pub id: u32,
    pub hosts: Box<[Box<str>]>,
    pub tags: Box<[Box<str>]>,
    pub capabilities: Box<[Box<str>]>,
    pub needs: u64,
    pub can_give_back: bool,
    pub hwm: Hwm,
    /// Members it holds, those included that have their outcome already.
    pub load: u32,
    /// How many of these wait for other tasks, so that it may be given as many more.
    pub waits: u32,
    /// While some do: it takes only tasks of a higher priority, which are deeper than the calls that wait.
    pub floor: i32,
    /// What these are expected to take, in ns.
    pub ahead: u64,
    pub bytes: u64,
    /// Its single tasks, oldest first.
    pub head: u32,
    pub tail: u32,
    /// Chunks of arrays that it has: the array, and the first member.
    pub chunks: BTreeSet<(u32, u32)>,
    pub last_used: u64,
    /// Indexed pools it belongs to.
    pub pools: Vec<u32>,
    /// Classes it may take from.
    pub classes: Vec<u32>,
    /// Where the next look at a long list of classes begins.
    pub rotate: u32,
    /// Smoothed time of a message there and back, in ns.
    pub overhead: f64,
    /// When it last answered, or was first given something.
    pub progress: Nanos,
    /// Members asked back, and until when that is waited for.
    pub recalled: u32,
    pub recall_until: Nanos,
    pub completed: u64,
    pub run_time: Nanos,
    /// Figures last put into the indexes.
    pub standing: (bool, bool, bool, u32, u64),
    /// Its host, and what it says of it.
    pub host: u32,
    pub machine: Arc<HostSpec>,
    /// What its task was granted of it, if that asked.
    pub grant: Option<Arc<Grant>>,
    /// Hosts that its task holds as a whole.
    pub whole: Vec<u32>,
    /// What it holds was started while something is kept on its host.
    pub newcomer: bool,
    /// The class that it is kept for.
    pub kept_for: u32,
    /// It has no room for plain tasks now, for its host's sake.
    pub closed: bool,
    /// When an awaited engine is given up.
    pub absent_at: Nanos,
    /// When it has to go.
    pub ends: Nanos,
}

/// Message time assumed before the first is measured, and its bounds.
pub(super) const OVERHEAD: f64 = 300_000.0;
pub(super) const OVERHEAD_LEAST: f64 = 100_000.0;
pub(super) const OVERHEAD_MOST: f64 = 50_000_000.0;

impl Engine {
    pub(super) fn new(slot: u32) -> Self {
        Engine {
            generation: 0,
            slot,
            used: false,
            live: false,
            leaving: false,
            stopping: false,
            dismissed: false,
            uuid: TaskId::default(),
            name: "".into(),
            id: 0,
            hosts: Box::new([]),
            tags: Box::new([]),
            capabilities: Box::new([]),
            needs: 0,
            can_give_back: false,
            hwm: Hwm::Auto,
            load: 0,
            waits: 0,
            floor: 0,
            ahead: 0,
            bytes: 0,
            head: NONE,
            tail: NONE,
            chunks: BTreeSet::new(),
            last_used: 0,
            pools: Vec::new(),
            classes: Vec::new(),
            rotate: 0,
            overhead: OVERHEAD,
            progress: 0,
            recalled: 0,
            recall_until: 0,
            completed: 0,
            run_time: 0,
            standing: (false, false, false, 0, 0),
            host: NONE,
            machine: Arc::default(),
            grant: None,
            whole: Vec::new(),
            newcomer: false,
            kept_for: NONE,
            closed: false,
            absent_at: 0,
            ends: Nanos::MAX,
        }
    }

    /// Members it holds that do not wait for others.
    pub(super) fn active(&self) -> u32 {
        self.load.saturating_sub(self.waits)
    }

    pub(super) fn key(&self) -> EngineKey {
        EngineKey {
            slot: self.slot,
            generation: self.generation,
        }
    }

    /// It may be given a task that asks for resources, as far as its other tasks go.
    pub(super) fn idle(&self) -> bool {
        self.live && !self.leaving && self.load == 0 && self.kept_for == NONE
    }

    /// What it holds, for explanations.
    pub(super) fn busy_with(&self) -> String {
        match self.load {
            1 => "is busy with a task".to_owned(),
            tasks => format!("is busy with {tasks} tasks"),
        }
    }

    /// How a user knows it.
    pub(super) fn describe(&self) -> String {
        if !self.live && self.hosts.is_empty() {
            return format!("engine {}", self.name);
        }
        match self.hosts.first() {
            Some(host) => format!("engine {} ({host})", self.id),
            None => format!("engine {}", self.id),
        }
    }
}
