//! One host: what it has, who holds how much of it, and what it keeps for whom. How hosts are used is in [`super::hosts`].

use std::sync::Arc;

use ipbroker_protocol::resources::{Amount, CPUS, ONE};

use super::id::NONE;
use super::types::{Grant, Granted, HostSpec, Name, Names, Request};

/// What a plain task counts as.
pub(super) const PLAIN: Amount = ONE;

/// One resource of a host.
#[derive(Debug, Default)]
pub(super) struct Stock {
    pub total: Amount,
    pub used: Amount,
    /// Its units, where they have names.
    pub units: Units,
}

/// Units with names, and how much of each is granted. Grants share the names.
#[derive(Debug, Default)]
pub(super) struct Units {
    names: Arc<[Name]>,
    granted: Vec<Amount>,
}

impl Units {
    pub(super) fn new(names: impl Iterator<Item = Name>) -> Self {
        let names: Arc<[Name]> = names.collect();
        Units {
            granted: vec![0; names.len()],
            names,
        }
    }

    /// Those of which nothing is granted.
    pub(super) fn free(&self) -> impl Iterator<Item = &Name> {
        let all = self.names.iter().zip(&self.granted);
        all.filter(|(_, granted)| **granted == 0)
            .map(|(name, _)| name)
    }

    /// `amount`, of as many units, of which least is granted.
    fn take(&mut self, amount: Amount, count: usize) -> Names {
        let count = count.min(self.granted.len());
        let mut at = Vec::with_capacity(count);
        let free = (0..).zip(&self.granted);
        at.extend(
            free.filter(|(_, granted)| **granted == 0)
                .map(|(at, _)| at)
                .take(count),
        );
        if at.len() < count {
            at = (0..self.granted.len() as u32).collect();
            at.sort_by_key(|&at| self.granted[at as usize]);
            at.truncate(count);
            at.sort_unstable();
        }
        for (part, &at) in parts(amount, count).zip(&at) {
            self.granted[at as usize] += part;
        }
        Names {
            list: self.names.clone(),
            at,
        }
    }

    /// Counts what was granted, or is given back.
    fn mark(&mut self, granted: &Granted, taken: bool) {
        let names = &granted.names;
        // Positions differ if the host was described anew, or the controller restarted.
        let same = Arc::ptr_eq(&self.names, &names.list);
        for (part, &at) in parts(granted.amount, names.at.len()).zip(&names.at) {
            let name = &names.list[at as usize];
            let at = match same {
                true => Some(at as usize),
                false => self.names.iter().position(|unit| unit == name),
            };
            let Some(load) = at.and_then(|at| self.granted.get_mut(at)) else {
                continue;
            };
            *load = if taken {
                *load + part
            } else {
                load.saturating_sub(part)
            };
        }
    }
}

/// How much of each of `count` units: the last one stands for all that is left.
fn parts(amount: Amount, count: usize) -> impl Iterator<Item = Amount> {
    let mut left = amount;
    (1..=count).map(move |nth| {
        let part = if nth == count { left } else { left.min(ONE) };
        left -= part;
        part
    })
}

/// What is kept for a class on a host.
#[derive(Debug)]
pub(super) struct Reservation {
    /// The engine that will run it.
    pub engine: u32,
    pub class: u32,
    pub request: Arc<Request>,
    /// What was started since, of each resource of `request`.
    pub newcomers: Vec<Amount>,
    /// Another number for each.
    pub serial: u64,
}

/// A host.
#[derive(Debug)]
pub(super) struct Host {
    pub key: Box<str>,
    /// Registered engines.
    pub engines: Vec<u32>,
    /// What they say of it, and how many say so.
    pub specs: Vec<(Arc<HostSpec>, u32)>,
    /// The cpus that it has by that.
    pub said_cpus: Amount,
    /// Engines that count on it: registered, or awaited after a restart.
    pub refs: u32,
    /// By name.
    pub stocks: Vec<(Name, Stock)>,
    /// Engines that hold plain tasks.
    pub plain: u32,
    /// Engines that hold a task with resources.
    pub held: u32,
    pub reservation: Option<Reservation>,
    /// The engine whose task holds all of it.
    pub held_by: u32,
    /// The number of times that something was kept when it came to be kept as a whole; 0: it is not.
    pub kept_whole: u64,
    /// Pools that it has no room for now.
    pub blocked: Vec<u32>,
    /// There is a cpu for another plain task.
    pub open: bool,
    /// It was full, and has a cpu again.
    pub reopened: bool,
    /// It is among those to be looked at.
    pub changed: bool,
}

impl Host {
    pub(super) fn new(key: &str) -> Self {
        Host {
            key: key.into(),
            engines: Vec::new(),
            specs: Vec::new(),
            said_cpus: 0,
            refs: 0,
            stocks: Vec::new(),
            plain: 0,
            held: 0,
            reservation: None,
            held_by: NONE,
            kept_whole: 0,
            blocked: Vec::new(),
            open: true,
            reopened: false,
            changed: false,
        }
    }

    /// A registered engine says this of it; whether no other did.
    pub(super) fn joined(&mut self, slot: u32, spec: &HostSpec) -> (Arc<HostSpec>, bool) {
        self.engines.push(slot);
        match self.specs.iter_mut().find(|(said, _)| **said == *spec) {
            Some((said, count)) => {
                *count += 1;
                (said.clone(), false)
            }
            None => {
                let said = Arc::new(spec.clone());
                self.specs.push((said.clone(), 1));
                (said, true)
            }
        }
    }

    /// An engine is not here any more; whether it was the last that said this.
    pub(super) fn left(&mut self, slot: u32, spec: &Arc<HostSpec>) -> bool {
        let Some(at) = self.engines.iter().position(|&s| s == slot) else {
            return false;
        };
        self.engines.remove(at);
        let before = self.specs.len();
        self.specs.retain_mut(|(said, count)| {
            *count -= u32::from(Arc::ptr_eq(said, spec));
            *count > 0
        });
        self.specs.len() < before
    }

    /// Nothing here ever waits for what another task holds.
    pub(super) fn is_quiet(&self) -> bool {
        self.held == 0 && self.reservation.is_none() && self.blocked.is_empty() && self.open
    }

    /// Nothing runs here, and nothing is kept here for less than all of it.
    pub(super) fn is_free(&self) -> bool {
        self.plain == 0 && self.held == 0 && self.held_by == NONE && self.reservation.is_none()
    }

    fn stock(&self, name: &str) -> Option<&Stock> {
        // There are few: looking at all of them is the quickest.
        let mut stocks = self.stocks.iter();
        stocks.find(|(n, _)| **n == *name).map(|(_, stock)| stock)
    }

    pub(super) fn stock_mut(&mut self, name: &Name) -> &mut Stock {
        let at = match self.stocks.iter().position(|(n, _)| n == name) {
            Some(at) => at,
            None => {
                let at = self.stocks.partition_point(|(n, _)| n < name);
                self.stocks.insert(at, (name.clone(), Stock::default()));
                at
            }
        };
        &mut self.stocks[at].1
    }

    pub(super) fn total(&self, name: &str) -> Amount {
        self.stock(name).map_or(0, |stock| stock.total)
    }

    /// In use; of cpus, those of plain tasks too.
    pub(super) fn in_use(&self, name: &str, stock: &Stock) -> Amount {
        if self.held_by != NONE {
            stock.used.max(stock.total)
        } else if name == CPUS {
            stock.used + Amount::from(self.plain) * PLAIN
        } else {
            stock.used
        }
    }

    pub(super) fn used(&self, name: &str) -> Amount {
        self.stock(name).map_or(0, |stock| self.in_use(name, stock))
    }

    fn has_free(&self, name: &str, amount: Amount) -> bool {
        let stock = self.stock(name);
        stock.is_some_and(|stock| self.in_use(name, stock) + amount <= stock.total)
    }

    /// It has all that, whoever holds it now.
    pub(super) fn could(&self, request: &Request) -> bool {
        request
            .iter()
            .all(|(name, amount)| *amount <= self.total(name))
    }

    /// It has all that free.
    pub(super) fn fits(&self, request: &Request) -> bool {
        request.iter().all(|(n, amount)| self.has_free(n, *amount))
    }

    fn beside(&self, name: &str, amount: Amount) -> bool {
        if self.kept_whole > 0 {
            return false;
        }
        let Some(kept) = &self.reservation else {
            return true;
        };
        match kept.request.iter().position(|(n, _)| **n == *name) {
            Some(at) => kept.newcomers[at] + kept.request[at].1 + amount <= self.total(name),
            None => true,
        }
    }

    /// It has all that free, beside what it keeps for somebody.
    pub(super) fn admits(&self, request: &Request) -> bool {
        self.fits(request) && request.iter().all(|(n, amount)| self.beside(n, *amount))
    }

    pub(super) fn admits_plain(&self) -> bool {
        self.has_free(CPUS, PLAIN) && self.beside(CPUS, PLAIN)
    }

    /// Counts what was started while something is kept, or `None`: a plain task; true if something is.
    pub(super) fn newcomer(&mut self, grant: Option<&Grant>, comes: bool) -> bool {
        let Some(kept) = &mut self.reservation else {
            return false;
        };
        let mut count = |name: &str, amount| {
            if let Some(at) = kept.request.iter().position(|(n, _)| **n == *name) {
                let so_far = &mut kept.newcomers[at];
                *so_far = if comes {
                    *so_far + amount
                } else {
                    so_far.saturating_sub(amount)
                };
            }
        };
        match grant {
            Some(grant) => grant.iter().for_each(|one| count(&one.name, one.amount)),
            None => count(CPUS, PLAIN),
        }
        true
    }

    /// Takes what is asked for; the caller has seen that it is there.
    pub(super) fn take(&mut self, request: &Request) -> Grant {
        let mut grant = Grant::with_capacity(request.len());
        for (name, amount) in request {
            let stock = self.stock_mut(name);
            stock.used += amount;
            // A core may be shared by what asks for parts of it, other units are not.
            let count = match **name == *CPUS {
                true => amount.div_ceil(ONE),
                false => amount / ONE,
            };
            let names = stock.units.take(*amount, count as usize);
            grant.push(Granted {
                name: name.clone(),
                amount: *amount,
                names,
            });
        }
        grant
    }

    /// Marks as taken what was granted before a restart.
    pub(super) fn take_again(&mut self, grant: &Grant) {
        for granted in grant {
            let stock = self.stock_mut(&granted.name);
            stock.used += granted.amount;
            stock.units.mark(granted, true);
        }
    }

    pub(super) fn give_back(&mut self, grant: &Grant) {
        for granted in grant {
            let stock = self.stock_mut(&granted.name);
            stock.used = stock.used.saturating_sub(granted.amount);
            stock.units.mark(granted, false);
        }
    }
}
