//! How many engines the tasks that are ready could use, and for how long: what a cluster that grows asks.

use std::collections::BTreeMap;

use ipbroker_protocol::resources::{Amount, CPUS, ONE};

use super::Core;
use super::group::Stage;
use super::types::{Name, Nanos};

/// The most that any engine so far had of its host and of its time; the next ones will be like them.
#[derive(Default)]
pub(super) struct Most {
    stocks: BTreeMap<Name, Amount>,
    stays: Nanos,
    /// If the next ones stay as long as tasks ask: how long that may be.
    longest: Option<Nanos>,
}

/// So many engines, which stay so long.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Demand {
    /// How many.
    pub engines: u64,
    /// For tasks that say how long they may run, the longest of these; 0: for tasks that do not say it.
    pub time: Nanos,
}

impl Core {
    /// An engine is there, and its host is counted.
    pub(super) fn note_most(&mut self, slot: u32) {
        let engine = &self.engines[slot as usize];
        self.most.stays = self.most.stays.max(engine.ends.saturating_sub(self.now));
        for (name, stock) in self.hosts.of(engine).iter().flat_map(|host| &host.stocks) {
            let most = self.most.stocks.entry(name.clone()).or_default();
            *most = (*most).max(stock.total);
        }
    }

    /// Whether an engine like the best so far could run tasks of the class; before there was any, one might.
    pub(super) fn might_run(&self, class: u32) -> bool {
        let had = |name: &str| self.most.stocks.get(name).copied().unwrap_or(0);
        let mut requests = self.requests(class).peekable();
        let (time, stays) = (self.constraints(class).time, self.most.stays);
        let unknown = stays == 0;
        let stays = if unknown { Nanos::MAX } else { stays };
        time <= self.most.longest.unwrap_or(stays)
            && (unknown
                || requests.peek().is_none()
                || requests.any(|request| request.iter().all(|(name, n)| *n <= had(name))))
    }

    /// How many engines the tasks that are ready could use at once, counted up to `limit`: one each, more where a task asks
    /// for more cpus than an engine stands for, or for whole hosts; none for what more engines like those so far could not
    /// run. `longest`: they will stay as long as is asked for here, and that may be so long; if so, those for tasks that say
    /// how long they may run are apart, and come first.
    pub fn demand(&mut self, limit: u64, longest: Option<Nanos>) -> Vec<Demand> {
        let as_asked = longest.is_some();
        self.most.longest = longest;
        let engines = self.live.iter().map(|&slot| &self.engines[slot as usize]);
        let (mut on_a_host, mut cpus) = (1, ONE);
        for host in engines.filter_map(|engine| self.hosts.of(engine)) {
            let count = host.engines.len().max(1) as u64;
            on_a_host = on_a_host.max(count);
            cpus = cpus.max(host.total(CPUS) / count);
        }
        let (mut timed, mut others) = (Demand::default(), Demand::default());
        for (class, entry) in &self.pools.classes {
            let class = class as u32;
            if entry.queue.len == 0 || !self.might_run(class) {
                continue;
            }
            let request = self.requests(class).next();
            let asked =
                request.and_then(|request| request.iter().find(|(name, _)| **name == *CPUS));
            let asked = asked.map_or(0, |(_, amount)| amount.div_ceil(cpus));
            let each = asked.max(u64::from(entry.nodes) * on_a_host).max(1);
            let time = self.constraints(class).time;
            let demand = match as_asked && time > 0 {
                true => &mut timed,
                false => &mut others,
            };
            if as_asked {
                demand.time = demand.time.max(time);
            }
            if demand.engines == limit {
                continue;
            }
            let waiting = self.members_of_class(class).into_iter();
            let waiting = waiting.map(|group| &self.groups[group]);
            let waiting = waiting.filter(|group| group.stage != Stage::Blocked);
            let tasks: u64 = waiting.map(|group| u64::from(group.waiting())).sum();
            demand.engines = limit.min(demand.engines + tasks * each);
        }
        let some = |demand: &Demand| demand.engines > 0;
        [timed, others].into_iter().filter(some).collect()
    }
}
