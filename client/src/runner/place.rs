//! Jobs that ask for hosts, tags or resources that no engine has: said at once, or refused.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use crossbeam_channel::Sender;
use ipbroker_client::Client;
use ipbroker_client::job::{Job, Placement};
use ipbroker_client::protocol::message::EngineInfo;
use ipbroker_client::protocol::resources::{self, Amount, Request};

use super::Options;
use super::events::Event;
use crate::failure::Failure;
use crate::output::jobs_wait;

/// What a job asks for and whom it concerns.
type Wishes = BTreeMap<Wish, Vec<u64>>;

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
            Wish::Hosts(hosts) => hosts.iter().any(|host| {
                engine
                    .host
                    .iter()
                    .any(|name| name.eq_ignore_ascii_case(host))
            }),
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
            wishes.entry(wish).or_default().push(job.line);
        }
    }
    wishes
}

/// The wishes that no engine meets, in words.
fn unmet(wishes: &Wishes, engines: &[EngineInfo]) -> Vec<(String, Vec<u64>)> {
    wishes
        .iter()
        .filter(|(wish, _)| !wish.met_by(engines))
        .map(|(wish, lines)| (wish.words(), lines.clone()))
        .collect()
}

fn lines_in_words(lines: &[u64]) -> String {
    let mut words: Vec<String> = lines.iter().take(5).map(u64::to_string).collect();
    if lines.len() > 5 {
        words.push("…".into());
    }
    let plural = if lines.len() == 1 { "line" } else { "lines" };
    format!("{plural} {}", words.join(", "))
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

fn messages(wishes: &Wishes, engines: &[EngineInfo]) -> Vec<String> {
    unmet(wishes, engines)
        .into_iter()
        .map(|(wish, lines)| {
            format!(
                "{} for {wish} ({}): no engine has it; {}",
                jobs_wait(lines.len() as u64),
                lines_in_words(&lines),
                where_engines_are(engines)
            )
        })
        .collect()
}

/// Before a file is submitted: refuses with `--no-wait`, else looks in the background and says what it finds.
pub(crate) fn check(
    client: &Client,
    options: &Options,
    jobs: &[Job],
    say: &Sender<Event>,
) -> Result<(), Failure> {
    let wishes = wishes(jobs, options);
    if wishes.is_empty() {
        return Ok(());
    }
    if !options.no_wait {
        tell(client.clone(), wishes, options.coming, say.clone());
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
    client.wait_for_engines(coming, Some(Duration::from_secs(10)));
    Ok(client.engines()?)
}

/// Why the first of these wishes cannot be met now.
fn refusal(wishes: &Wishes, engines: &[EngineInfo], options: &Options) -> Option<String> {
    let (wish, lines) = unmet(wishes, engines).into_iter().next()?;
    Some(format!(
        "{}:{}: no engine has {wish}; {}",
        options.source,
        lines[0],
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

/// Says which jobs of a stream wait for what.
pub(crate) fn check_stream(client: &Client, options: &Options, jobs: &[Job], say: &Sender<Event>) {
    let wishes = wishes(jobs, options);
    if !wishes.is_empty() {
        tell(client.clone(), wishes, options.coming, say.clone());
    }
}

/// Looks in the background: the jobs need not wait for the answer.
fn tell(client: Client, wishes: Wishes, coming: Option<u32>, say: Sender<Event>) {
    let _ = std::thread::Builder::new()
        .name("place".into())
        .spawn(move || {
            client.wait_for_engines(coming.unwrap_or(1) as usize, Some(Duration::from_secs(5)));
            // If the hub does not answer there is nothing to tell; the jobs themselves will.
            if let Ok(engines) = client.engines() {
                for message in messages(&wishes, &engines) {
                    let _ = say.send(Event::Say(message));
                }
            }
        });
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
    fn says_who_waits_for_what() {
        let wishes = Wishes::from([
            (Wish::Hosts(vec!["a".into(), "x".into()]), vec![1]),
            (Wish::Hosts(vec!["x".into()]), vec![2, 3, 4, 5, 6, 7]),
            (Wish::Tags(vec!["gpu".into(), "big".into()]), vec![9]),
            (Wish::Resources(vec![vec![("cpus".into(), 2000)]]), vec![10]),
            (
                Wish::Resources(vec![
                    vec![("cpus".into(), 4000), ("gpus".into(), 1000)],
                    vec![("cpus".into(), 16_000)],
                ]),
                vec![11],
            ),
        ]);
        let mut engines = [engine(&["a.org", "A"], &["gpu"]), engine(&["b"], &["big"])];
        let stock = Stock {
            total: 2.0,
            ..Stock::default()
        };
        for engine in &mut engines {
            engine.resources = BTreeMap::from([("cpus".to_owned(), stock.clone())]);
        }
        assert_eq!(
            messages(&wishes, &engines),
            [
                "6 jobs wait for host x (lines 2, 3, 4, 5, 6, …): no engine has it; engines are on a.org, b",
                "1 job waits for tag gpu and big (line 9): no engine has it; engines are on a.org, b",
                "1 job waits for a host with 4 cpus and 1 gpus, or 16 cpus (line 11): no engine has it; engines are on a.org, b"
            ]
        );
        assert_eq!(messages(&wishes, &[]).len(), 5);
    }
}
