//! Resources on their way between the wire and the core, and across a restart.

use std::collections::{BTreeMap, HashMap};

use ipbroker_protocol::{
    message::{Stock, TaskMetadata},
    resources::{self, Amount, Grant, Granted, NODES_MOST, Pool, Request},
};
use serde::{Deserialize, Serialize};

use super::{Scheduler, frames::Had};
use crate::scheduler::{
    command::{EngineProfile, EngineTasks},
    core::{self, EngineKey, HostSpec},
};

/// Resources that a request may name.
const NAMES_MOST: usize = 32;

/// Alternatives that a request may have.
const ALTERNATIVES_MOST: usize = 16;

/// What is remembered of an engine across a restart: where it is, and what the last task that asked was granted.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct LastKnown {
    uuid: String,
    host: String,
    #[serde(default)]
    grant: Grant,
    /// Hosts that the task holds as wholes.
    #[serde(default)]
    nodes: Vec<String>,
}

impl LastKnown {
    pub(super) fn new(uuid: &str, host: &str, grant: Grant, nodes: Vec<String>) -> Self {
        Self {
            uuid: uuid.to_owned(),
            host: host.to_owned(),
            grant,
            nodes,
        }
    }
}

/// Before the number of an engine, the name under which that is kept in the journal: numbers are used again, so that it does not grow.
const LAST_KNOWN: &str = "seat.";

/// What a submission asks for, as the core has it: alternatives, none if it asks for nothing.
pub(super) fn requests(wire: &TaskMetadata) -> Result<Vec<core::Request>, String> {
    if let Some(nodes) = wire.nodes.filter(|nodes| *nodes > 0) {
        let others = [
            (!wire.hosts.is_empty(), "host"),
            (!wire.targets.is_empty(), "targets"),
            (!wire.prefer.is_empty(), "prefer"),
            (!wire.follow.is_empty(), "follow"),
            (
                wire.resources.as_ref().is_some_and(|r| !r.is_empty()),
                "resources",
            ),
            (wire.any.as_ref().is_some_and(|any| !any.is_empty()), "any"),
        ];
        if nodes > NODES_MOST {
            return Err(format!(
                "it asks for {nodes} whole hosts; {NODES_MOST} are possible"
            ));
        }
        return match others.iter().find(|(there, _)| *there) {
            Some((_, other)) => Err(format!("nodes cannot stand beside {other}")),
            None => Ok(Vec::new()),
        };
    }
    let common = wire.resources.clone().unwrap_or_default();
    let any = wire.any.as_deref().unwrap_or_default();
    if any.len() > ALTERNATIVES_MOST {
        return Err(format!(
            "it has {} alternatives; {ALTERNATIVES_MOST} are possible",
            any.len()
        ));
    }
    if any.is_empty() {
        let request = request(&common)?;
        return Ok(if request.is_empty() {
            Vec::new()
        } else {
            vec![request]
        });
    }
    any.iter()
        .map(|own| {
            let mut all = common.clone();
            all.extend(own.clone());
            request(&all)
        })
        .collect()
}

fn request(wire: &Request) -> Result<core::Request, String> {
    if wire.len() > NAMES_MOST {
        return Err(format!(
            "it asks for {} resources; {NAMES_MOST} are possible",
            wire.len()
        ));
    }
    let mut request = core::Request::new();
    for (name, units) in wire {
        if !resources::is_name(name) {
            return Err(format!("{name:?} cannot be the name of a resource"));
        }
        resources::check(name, *units)
            .map_err(|must| format!("{name} must be {must}, not {units}"))?;
        match resources::amount(*units) {
            Some(0) | None => {}
            Some(amount) => request.push((name.as_str().into(), amount)),
        }
    }
    request.sort_unstable();
    Ok(request)
}

/// What an engine says of its host, as the core has it. What makes no sense is left out.
pub(super) fn host_spec(profile: &EngineProfile) -> Option<HostSpec> {
    let key = profile.machine.as_deref()?;
    let mut spec = HostSpec {
        key: key.into(),
        cores: profile.cpuset.clone(),
        ..HostSpec::default()
    };
    for (name, pool) in &profile.resources {
        if !resources::is_name(name) {
            continue;
        }
        match pool {
            Pool::Sum(units) => {
                if let Some(amount) = resources::amount(*units) {
                    spec.sums.push((name.as_str().into(), amount));
                }
            }
            Pool::Names(names) => spec.lists.push((
                name.as_str().into(),
                names.iter().map(|n| n.as_str().into()).collect(),
            )),
        }
    }
    Some(spec)
}

/// A grant as engines read it.
pub(super) fn to_wire(grant: &core::Grant) -> Grant {
    grant
        .iter()
        .map(|one| {
            let names = one.names.iter().map(|name| name.to_string()).collect();
            let amount = resources::units(one.amount);
            (one.name.to_string(), Granted { amount, names })
        })
        .collect()
}

fn from_wire(grant: &Grant) -> core::Grant {
    grant
        .iter()
        .filter_map(|(name, one)| {
            Some(core::Granted {
                name: name.as_str().into(),
                amount: resources::amount(one.amount)?,
                names: one.names.iter().map(|n| n.as_str().into()).collect(),
            })
        })
        .collect()
}

impl Scheduler {
    /// Tells the core where engines were, and what their tasks had.
    pub(super) fn restore_last_known(&mut self, meta: &BTreeMap<String, String>) {
        for (name, text) in meta.iter().filter(|(name, _)| name.starts_with(LAST_KNOWN)) {
            match serde_json::from_str::<LastKnown>(text) {
                Ok(known) => {
                    let grant = (!known.grant.is_empty()).then(|| from_wire(&known.grant));
                    self.core
                        .restore_last_known(&known.uuid, &known.host, grant, &known.nodes);
                }
                Err(error) => {
                    tracing::warn!(name, %error, "what is stored of an engine cannot be read")
                }
            }
        }
    }

    /// Keeps where an engine is, and what its task has.
    pub(super) fn keep_last_known(&mut self, id: u32, known: LastKnown) {
        if !self.journal.keeps() {
            return;
        }
        if let Ok(text) = serde_json::to_string(&known) {
            self.journal.set_meta(&format!("{LAST_KNOWN}{id}"), &text);
        }
    }

    /// Keeps what the engine's next task has: of its host, or whole hosts, each with an engine.
    pub(super) fn keep_holdings(&mut self, engine: EngineKey, had: &Had, nodes: &[EngineKey]) {
        let Some(entry) = self.engines.get(engine) else {
            return;
        };
        let machines = nodes.iter().filter_map(|&key| self.engines.get(key));
        let machines = machines.map(|engine| engine.machine.to_string()).collect();
        let known = LastKnown::new(&entry.uuid, &entry.machine, had.granted.clone(), machines);
        self.keep_last_known(entry.id, known);
    }

    /// What the hosts have, by engine.
    pub(super) fn add_resources(&self, rows: &mut [EngineTasks]) {
        let places: HashMap<String, usize> = rows
            .iter()
            .enumerate()
            .map(|(at, row)| (row.uuid.clone(), at))
            .collect();
        let place = |key: EngineKey| {
            let engine = self.engines.get(key)?;
            places.get(&*engine.uuid).copied()
        };
        for host in self.core.hosts() {
            let stocks: BTreeMap<String, Stock> = host
                .stocks
                .iter()
                .map(|(name, total, used, names)| {
                    let free: Amount = total.saturating_sub(*used);
                    let stock = Stock {
                        total: resources::units(*total),
                        free: resources::units(free),
                        names: names.iter().map(|name| name.to_string()).collect(),
                    };
                    (name.to_string(), stock)
                })
                .collect();
            let keys = host.engines;
            for at in keys.iter().copied().filter_map(place) {
                rows[at].resources.clone_from(&stocks);
            }
            for (key, grant) in &host.holders {
                if let Some(at) = place(*key) {
                    rows[at].holds = to_wire(grant);
                }
            }
            if let Some(kept) = host.kept
                && let (Some(at), Some(group)) = (place(kept.engine), self.groups.get(kept.group))
            {
                rows[at].kept_for = Some(group.msg_id.to_string());
            }
            // Nobody else runs there before the task ends that holds the host.
            if let Some(holder) = host.held_by
                && let Some(span) = self.core.outstanding(holder).first()
                && let Some(group) = self.groups.get(span.group)
            {
                for at in keys
                    .into_iter()
                    .filter(|key| *key != holder)
                    .filter_map(place)
                {
                    rows[at].kept_for = Some(group.msg_id.to_string());
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_makes_no_sense_is_refused_in_words() {
        let ask = |name: &str, units: f64| request(&Request::from([(name.to_owned(), units)]));
        assert_eq!(ask("cpus", 1.5), Ok(vec![("cpus".into(), 1500)]));
        assert_eq!(ask("gpus", 0.0), Ok(vec![]));
        for (name, units) in [
            ("cpus", 0.0),
            ("cpus", f64::NAN),
            ("gpus", 0.5),
            ("memory", f64::INFINITY),
            ("x", -1.0),
            ("", 1.0),
            ("a\nb", 1.0),
        ] {
            assert!(ask(name, units).is_err(), "{name:?} {units}");
        }
        let many = (0..40).map(|n| (format!("r{n}"), 1.0)).collect();
        assert!(request(&many).is_err());
    }

    #[test]
    fn alternatives_stand_on_what_is_common() {
        let one = |name: &str, units: f64| Request::from([(name.to_owned(), units)]);
        let wire = |any: Vec<Request>| TaskMetadata {
            resources: Some(Request::from([("cpus".into(), 2.0), ("lic".into(), 1.0)])),
            any: Some(any),
            ..TaskMetadata::default()
        };
        let two = requests(&wire(vec![one("gpus", 1.0), one("cpus", 16.0)])).unwrap();
        let amounts = |cpus: u64, other: (&str, u64)| -> core::Request {
            let mut all = vec![("cpus".into(), cpus), ("lic".into(), 1000)];
            all.extend((other.1 > 0).then(|| (other.0.into(), other.1)));
            all.sort();
            all
        };
        assert_eq!(
            two,
            [amounts(2000, ("gpus", 1000)), amounts(16_000, ("", 0))]
        );
        assert_eq!(requests(&wire(vec![])).unwrap().len(), 1);
        assert_eq!(requests(&TaskMetadata::default()), Ok(vec![]));
        assert!(requests(&wire(vec![one("gpus", 0.5)])).is_err());
        assert!(requests(&wire(vec![Request::new(); 17])).is_err());
        let mut whole = TaskMetadata {
            nodes: Some(2),
            ..TaskMetadata::default()
        };
        assert_eq!(requests(&whole), Ok(vec![]));
        whole.hosts = vec!["a".into()];
        assert!(requests(&whole).is_err());
    }

    #[test]
    fn a_grant_survives_the_way_to_the_journal() {
        let grant = vec![
            core::Granted {
                name: "cpus".into(),
                amount: 1500,
                names: ["0".into(), "1".into()].into_iter().collect(),
            },
            core::Granted {
                name: "gpus".into(),
                amount: 1000,
                names: ["GPU-a".into()].into_iter().collect(),
            },
        ];
        let known = LastKnown {
            uuid: "u".into(),
            host: "h".into(),
            grant: to_wire(&grant),
            nodes: vec!["h".into(), "i".into()],
        };
        let text = serde_json::to_string(&known).unwrap();
        let known: LastKnown = serde_json::from_str(&text).unwrap();
        assert_eq!(from_wire(&known.grant), grant);
    }
}
