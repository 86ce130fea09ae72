//! Clients: fairness between them, how long their tasks take, and their counts.

use super::Core;
use super::auto::{Estimate, UNKNOWN};
use super::group::Stage;
use super::types::{MILLISECOND, Nanos, SECOND, Totals};

/// What the core keeps of a client.
pub(super) struct Client {
    pub name: Box<[u8]>,
    /// Groups in memory.
    pub groups: u32,
    /// Groups in lanes.
    pub queued: u32,
    /// Work given to it, on a scale that all clients share.
    pub served: u64,
    /// What its tasks took beyond what was charged for them.
    debt: i64,
    /// Task times, by what the tasks need.
    estimates: Vec<(u64, Estimate)>,
    pub lanes: Vec<u32>,
    pub totals: Totals,
    idle: bool,
}

/// Where members are counted while they have no outcome.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Bucket {
    Blocked,
    Ready,
    Running,
}

impl Bucket {
    /// For what waits in this stage.
    pub(super) fn of_waiting(stage: Stage) -> Self {
        match stage {
            Stage::Blocked => Self::Blocked,
            _ => Self::Ready,
        }
    }
}

/// How members end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    Ok,
    Failed,
    Aborted,
}

/// Clients without tasks that are remembered.
const IDLE_MOST: usize = 1024;
/// Work charged for a task at least.
const LEAST: u64 = 20_000;
/// Work assumed of a task of which nothing is known.
const ASSUMED: u64 = MILLISECOND;
/// Nobody falls back further than this, however long nothing of his could run.
const LAG: u64 = 10 * SECOND;

impl Core {
    /// The client of this name.
    pub(super) fn client(&mut self, name: &[u8]) -> u32 {
        if let Some(&client) = self.client_index.get(name) {
            return client;
        }
        let client = self.clients.insert(Client {
            name: name.into(),
            groups: 0,
            queued: 0,
            served: self.virtual_time,
            debt: 0,
            estimates: Vec::new(),
            lanes: Vec::new(),
            totals: Totals::default(),
            idle: false,
        }) as u32;
        self.client_index.insert(name.into(), client);
        client
    }

    /// A group of the client is gone.
    pub(super) fn leave_client(&mut self, index: u32) {
        let client = &mut self.clients[index as usize];
        client.groups -= 1;
        if client.groups > 0 || client.idle {
            return;
        }
        client.idle = true;
        self.idle_clients.push_back(index);
        if self.idle_clients.len() > IDLE_MOST {
            let oldest = self.idle_clients.pop_front().expect("more than none");
            self.clients[oldest as usize].idle = false;
            if self.clients[oldest as usize].groups == 0 {
                let old = self.clients.remove(oldest as usize);
                self.client_index.remove(&old.name);
                self.free_lanes(old.lanes);
            }
        }
    }

    /// A client that had nothing waiting starts where the others are.
    pub(super) fn activate(&mut self, client: u32) {
        let client = &mut self.clients[client as usize];
        if client.queued == 0 {
            client.served = client.served.max(self.virtual_time);
        }
    }

    /// `count` tasks of the client were given out; each is expected to take `estimate`.
    pub(super) fn charge(&mut self, client: u32, count: u32, estimate: Option<Nanos>) {
        let client = &mut self.clients[client as usize];
        client.served = client.served.max(self.virtual_time.saturating_sub(LAG));
        self.virtual_time = self.virtual_time.max(client.served);
        let cost = u64::from(count) * estimate.unwrap_or(ASSUMED).max(LEAST);
        let settled = client.debt.clamp(-(cost as i64) / 2, cost as i64 * 8);
        client.debt -= settled;
        client.served += cost.saturating_add_signed(settled);
    }

    /// `count` tasks took `run` where each was charged with `estimate` (0: nothing was known).
    pub(super) fn learn(
        &mut self,
        client: u32,
        needs: u64,
        count: u32,
        run: Nanos,
        estimate: Nanos,
    ) {
        let client = &mut self.clients[client as usize];
        let charged = u64::from(count)
            * if estimate == UNKNOWN {
                ASSUMED
            } else {
                estimate.max(LEAST)
            };
        let took = run.max(u64::from(count) * LEAST);
        client.debt = client.debt.saturating_add(took as i64 - charged as i64);
        match client.estimates.iter_mut().find(|(n, _)| *n == needs) {
            Some((_, known)) => known.learn(run, count),
            None => {
                let mut first = Estimate::default();
                first.learn(run, count);
                client.estimates.push((needs, first));
            }
        }
    }

    /// How long a task takes, as far as is known.
    pub(super) fn estimate(&self, client: u32, needs: u64) -> Option<Nanos> {
        let client = &self.clients[client as usize];
        client
            .estimates
            .iter()
            .find(|(n, _)| *n == needs)
            .and_then(|(_, e)| e.get())
    }

    /// Members appear, or move from one count to another.
    pub(super) fn count(&mut self, client: u32, from: Option<Bucket>, to: Bucket, members: u32) {
        let members = u64::from(members);
        for totals in [&mut self.clients[client as usize].totals, &mut self.totals] {
            if let Some(from) = from {
                *bucket(totals, from) -= members;
            }
            *bucket(totals, to) += members;
        }
    }

    /// Members end.
    pub(super) fn count_end(&mut self, client: u32, from: Bucket, end: End, members: u32) {
        let members = u64::from(members);
        for totals in [&mut self.clients[client as usize].totals, &mut self.totals] {
            *bucket(totals, from) -= members;
            match end {
                End::Ok => totals.completed += members,
                End::Failed => totals.failed += members,
                End::Aborted => totals.aborted += members,
            }
        }
    }
}

fn bucket(totals: &mut Totals, bucket: Bucket) -> &mut u64 {
    match bucket {
        Bucket::Blocked => &mut totals.blocked,
        Bucket::Ready => &mut totals.ready,
        Bucket::Running => &mut totals.running,
    }
}
