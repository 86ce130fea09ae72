//! `--no-wait`: jobs that ask for hosts, tags or resources that no engine has are refused.

use std::collections::{BTreeMap, BTreeSet};

use ipbroker_client::Client;
use ipbroker_client::job::{Job, Placement};
use ipbroker_client::protocol::message::EngineInfo;
use ipbroker_client::protocol::resources::{self, Amount, Request};

use super::Options;
use crate::failure::Failure;
use crate::local;

/// What is asked for, and the first line that does.
type Wishes = BTreeMap<Wish, u64>;

/// Amounts by name.
type Asked = Vec<(String, Amount)>;

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Wish {
    /// One of these hosts.
    Hosts(Vec<String>),
    /// All of these tags.
    Tags(Vec<String>),
    /// So many hosts, of engines with all of these tags.
    Nodes(u32, Vec<String>),
    /// A host with all of one of these.
    Resources(Vec<Asked>),
}

impl Wish {
    fn met(&self, engine: &EngineInfo) -> bool {
        match self {
            Wish::Hosts(hosts) => hosts.iter().any(|host| is_on(engine, host)),
            Wish::Tags(tags) | Wish::Nodes(_, tags) => {
                tags.iter().all(|tag| engine.tags.contains(tag))
            }
            // On the pure path nobody knows; the controller will say that it has none.
            Wish::Resources(_) if engine.resources.is_empty() => true,
            Wish::Resources(alternatives) => alternatives.iter().any(|asked| {
                asked.iter().all(|(name, amount)| {
                    let total = engine.resources.get(name).map_or(0.0, |stock| stock.total);
                    resources::amount(total).is_some_and(|total| *amount <= total)
                })
            }),
        }
    }

    fn met_by(&self, engines: &[EngineInfo]) -> bool {
        let mut able = engines.iter().filter(|engine| self.met(engine));
        match self {
            // On the pure path nobody knows; the controller will say that it has none.
            Wish::Nodes(nodes, _) if engines.iter().any(|engine| !engine.resources.is_empty()) => {
                let hosts: BTreeSet<_> = able.map(|engine| engine.host.first()).collect();
                hosts.len() >= *nodes as usize
            }
            _ => able.next().is_some(),
        }
    }

    fn words(&self) -> String {
        match self {
            Wish::Hosts(hosts) => format!("host {}", hosts.join(" or ")),
            Wish::Tags(tags) => format!("tag {}", tags.join(" and ")),
            Wish::Nodes(1, _) => "a whole host".to_owned(),
            Wish::Nodes(nodes, _) => format!("{nodes} whole hosts"),
            Wish::Resources(alternatives) => {
                let words = |(name, amount): &(String, Amount)| {
                    format!("{} {name}", resources::words(name, *amount))
                };
                let all = |asked: &Asked| {
                    let parts: Vec<String> = asked.iter().map(words).collect();
                    parts.join(" and ")
                };
                let parts: Vec<String> = alternatives.iter().map(all).collect();
                format!("a host with {}", parts.join(", or "))
            }
        }
    }
}

/// Whether an engine's host has this name.
pub(crate) fn is_on(engine: &EngineInfo, host: &str) -> bool {
    let mut names = engine.host.iter();
    names.any(|name| name.eq_ignore_ascii_case(host))
}

fn wishes(jobs: &[Job], options: &Options) -> Wishes {
    let mut wishes = Wishes::new();
    for job in jobs {
        let Placement {
            host,
            tags,
            resources,
            alternatives,
            nodes,
            ..
        } = options.jobs.placement(&job.placement);
        let amounts = |request: Request| -> Asked {
            let amount = |(name, units)| Some((name, resources::amount(units)?));
            request.into_iter().filter_map(amount).collect()
        };
        let mut asked: Vec<Asked> = alternatives
            .into_iter()
            .map(|own| amounts(resources.clone().into_iter().chain(own).collect()))
            .collect();
        if asked.is_empty() && !resources.is_empty() {
            asked.push(amounts(resources));
        }
        let asks = [
            (!host.is_empty()).then_some(Wish::Hosts(host)),
            (nodes > 0).then(|| Wish::Nodes(nodes, tags.clone())),
            (!tags.is_empty()).then_some(Wish::Tags(tags)),
            (!asked.is_empty()).then_some(Wish::Resources(asked)),
        ];
        for wish in asks.into_iter().flatten() {
            wishes.entry(wish).or_insert(job.line);
        }
    }
    wishes
}

fn where_engines_are(engines: &[EngineInfo]) -> String {
    let hosts: BTreeSet<&str> = engines
        .iter()
        .filter_map(|engine| engine.host.first())
        .map(String::as_str)
        .collect();
    match hosts.len() {
        0 => "there are no engines yet".to_owned(),
        _ => format!(
            "engines are on {}",
            hosts.into_iter().take(10).collect::<Vec<_>>().join(", ")
        ),
    }
}

/// Before a file is submitted: with `--no-wait`, whether all of it can run.
pub(crate) fn check(client: &Client, options: &Options, jobs: &[Job]) -> Result<(), Failure> {
    if !options.no_wait {
        return Ok(());
    }
    let wishes = wishes(jobs, options);
    if wishes.is_empty() {
        return Ok(());
    }
    match refusal(&wishes, &engines(client, options)?, options) {
        None => Ok(()),
        Some(error) => Err(Failure::new(format!("{error}; nothing was submitted"))),
    }
}

/// The engines, those of a private cluster included.
fn engines(client: &Client, options: &Options) -> Result<Vec<EngineInfo>, Failure> {
    let coming = options.coming.unwrap_or(0) as usize;
    client.wait_for_engines(coming, Some(local::ENGINES));
    Ok(client.engines()?)
}

/// Why the first of these wishes cannot be met now.
fn refusal(wishes: &Wishes, engines: &[EngineInfo], options: &Options) -> Option<String> {
    let (wish, line) = wishes.iter().find(|(wish, _)| !wish.met_by(engines))?;
    Some(format!(
        "{}:{line}: no engine has {}; {}",
        options.source,
        wish.words(),
        where_engines_are(engines)
    ))
}

/// Jobs of a stream that are refused with `--no-wait`, by their place in `jobs`.
pub(crate) fn refused(
    client: &Client,
    options: &Options,
    jobs: &[Job],
) -> Result<BTreeMap<usize, String>, Failure> {
    let wishes: Vec<Wishes> = jobs
        .iter()
        .map(|job| wishes(std::slice::from_ref(job), options))
        .collect();
    if wishes.iter().all(Wishes::is_empty) {
        return Ok(BTreeMap::new());
    }
    let engines = engines(client, options)?;
    Ok((0..)
        .zip(&wishes)
        .filter_map(|(at, wishes)| Some((at, refusal(wishes, &engines, options)?)))
        .collect())
}

#[cfg(test)]
mod tests {
    use ipbroker_client::protocol::message::Stock;

    use super::*;

    fn engine(hosts: &[&str], tags: &[&str]) -> EngineInfo {
        EngineInfo {
            host: hosts.iter().map(|h| h.to_string()).collect(),
            tags: tags.iter().map(|t| t.to_string()).collect(),
            ..EngineInfo::default()
        }
    }

    #[test]
    fn says_who_would_wait_for_what() {
        let mut engines = [engine(&["a.org", "A"], &["gpu"]), engine(&["b"], &["big"])];
        let stock = Stock {
            total: 2.0,
            ..Stock::default()
        };
        for engine in &mut engines {
            engine.resources = BTreeMap::from([("cpus".to_owned(), stock.clone())]);
        }
        let hosts = |names: &[&str]| Wish::Hosts(names.iter().map(|n| n.to_string()).collect());
        let cpus = |cpus| vec![("cpus".to_owned(), cpus)];
        let both = vec![("cpus".into(), 4000), ("gpus".into(), 1000)];
        let cases = [
            (hosts(&["a", "x"]), None),
            (hosts(&["x"]), Some("host x")),
            (
                Wish::Tags(vec!["gpu".into(), "big".into()]),
                Some("tag gpu and big"),
            ),
            (Wish::Resources(vec![cpus(2000)]), None),
            (
                Wish::Resources(vec![both, cpus(16_000)]),
                Some("a host with 4 cpus and 1 gpus, or 16 cpus"),
            ),
        ];
        let options = Options {
            source: "jobs".into(),
            ..Options::default()
        };
        for (wish, lacking) in cases {
            let refused = refusal(&Wishes::from([(wish, 3)]), &engines, &options);
            let words = |wish| format!("jobs:3: no engine has {wish}; engines are on a.org, b");
            assert_eq!(refused, lacking.map(words));
        }
    }
}
