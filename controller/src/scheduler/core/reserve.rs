//! What is kept for tasks that wait for more than is free.

use std::sync::Arc;

use ipbroker_protocol::resources::CPUS;

use super::Core;
use super::host::{PLAIN, Reservation};
use super::hosts::ROUNDS;
use super::id::NONE;
use super::types::Request;

impl Core {
    /// Keeps the engine, and what the class asks for, until it gets it.
    pub(super) fn reserve(&mut self, slot: u32, class: u32) {
        if self.pools.classes[class as usize].nodes > 0 {
            self.whole.kept_for = class;
            return self.keep_hosts();
        }
        let host = self.engines[slot as usize].host;
        let could =
            |request: &&Arc<Request>| self.hosts.get(host).is_some_and(|h| h.could(request));
        let request = match self.requests(class).find(could) {
            Some(request) => request.clone(),
            None => Arc::new(vec![(CPUS.into(), PLAIN)]),
        };
        self.uses += 1;
        self.hosts.slab[host as usize].reservation = Some(Reservation {
            serial: self.uses,
            engine: slot,
            class,
            newcomers: vec![0; request.len()],
            request,
        });
        self.engines[slot as usize].kept_for = class;
        self.pools.classes[class as usize].kept_on = host;
        let entry = &mut self.hosts.slab[host as usize];
        entry.open = entry.admits_plain();
        self.refresh_host(host, false);
    }

    /// Nothing is kept for the class any more.
    pub(super) fn unreserve(&mut self, class: u32) {
        if self.whole.kept_for == class {
            self.stop_keeping_hosts();
        }
        let entry = &mut self.pools.classes[class as usize];
        entry.overtaken = 0;
        let host = std::mem::replace(&mut entry.kept_on, NONE);
        if host == NONE {
            return;
        }
        let entry = &mut self.hosts.slab[host as usize];
        if let Some(kept) = entry.reservation.take() {
            self.engines[kept.engine as usize].kept_for = NONE;
        }
        let engines = entry.engines.clone();
        for slot in engines {
            self.engines[slot as usize].newcomer = false;
        }
        let entry = &mut self.hosts.slab[host as usize];
        entry.open = entry.admits_plain();
        self.refresh_host(host, true);
        self.host_changed(host);
        self.host_freed(host);
    }

    /// What is kept on an engine that cannot run it any more.
    pub(super) fn unreserve_engine(&mut self, slot: u32) {
        let class = self.engines[slot as usize].kept_for;
        if class == NONE {
            return;
        }
        match self.pools.classes[class as usize].nodes {
            0 => self.unreserve(class),
            _ => self.stop_keeping_engine(slot),
        }
    }

    /// Whether the engine and its host now have what is kept for its class.
    pub(super) fn is_kept_complete(&self, slot: u32) -> bool {
        let engine = &self.engines[slot as usize];
        engine.live
            && !engine.leaving
            && engine.load == 0
            && self
                .hosts
                .of(engine)
                .is_some_and(|host| match &host.reservation {
                    Some(kept) => {
                        host.fits(&kept.request)
                            || self.requests(kept.class).any(|other| host.fits(other))
                    }
                    None => false,
                })
    }

    /// Something that comes first in turn was passed over on this engine. True if the engine is to be kept for it.
    pub(super) fn overtaken(&mut self, slot: u32, class: u32) -> bool {
        let entry = &self.pools.classes[class as usize];
        let Some(host) = self.hosts.of(&self.engines[slot as usize]) else {
            return false;
        };
        // Hosts are kept as wholes for one class at a time, and what it still lacks is kept for nobody else.
        let keeping = self.whole.kept_for != NONE;
        if entry.nodes > 0 {
            let cpus = u64::from(entry.nodes).saturating_mul(host.total(CPUS));
            return !keeping && entry.overtaken >= ROUNDS.saturating_mul(cpus);
        }
        entry.kept_on == NONE
            && host.reservation.is_none()
            && !(keeping && self.lacks_hosts(self.whole.kept_for))
            && entry.overtaken >= ROUNDS * host.total(CPUS)
    }
}
