//! `ipclient stats`: the tables of dispy and of Parallel Python.

use std::fmt::Write;
use std::io::{self, Write as _};
use std::process::ExitCode;

use clap::Args;
use ipbroker_client::Client;
use ipbroker_client::protocol::message::Stats;

use super::Outcome;
use crate::cli::ClusterArgs;
use crate::output::json;

/// Show how many jobs ran where, and how long they took
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  ipclient stats\n  ipclient stats --json | jq '.nodes[].jobs'")]
pub(crate) struct StatsArgs {
    /// Print JSON
    #[arg(long)]
    json: bool,
}

pub(crate) fn main(args: StatsArgs, cluster: &ClusterArgs) -> Outcome {
    let client = cluster.connect()?;
    let stats = client.stats()?;
    if args.json {
        return json::print(&stats);
    }
    io::stdout().write_all(tables(&stats).as_bytes())?;
    Ok(ExitCode::SUCCESS)
}

/// The tables on stderr, after a run.
pub(crate) fn report(client: &Client) {
    match client.stats() {
        Ok(stats) => eprint!("{}", tables(&stats)),
        Err(error) => eprintln!("ipclient: no statistics: {error}"),
    }
}

fn tables(stats: &Stats) -> String {
    let mut text = String::new();
    let per_job = |time: f64, jobs: u64| if jobs == 0 { 0.0 } else { time / jobs as f64 };
    let width = stats
        .nodes
        .iter()
        .map(|node| node.node.chars().count())
        .max()
        .unwrap_or(0)
        .max(21);
    let _ = writeln!(
        text,
        "{:<width$} | CPUs |       Jobs |    Sec/Job | Node Time Sec",
        "Node"
    );
    let _ = writeln!(text, "{}", "-".repeat(width + 50));
    for node in &stats.nodes {
        let _ = writeln!(
            text,
            "{:<width$} | {:>4} | {:>10} | {:>10.3} | {:>13.3}",
            node.node,
            node.cpus,
            node.jobs,
            per_job(node.time, node.jobs),
            node.time
        );
    }
    let all: u64 = stats.nodes.iter().map(|node| node.jobs).sum();
    // The sum of nothing is -0.
    let time = 0.0 + stats.nodes.iter().map(|node| node.time).sum::<f64>();
    let cpus: u32 = stats.nodes.iter().map(|node| node.cpus).sum();
    let _ = writeln!(
        text,
        "\nTotal job time: {time:.3} sec, wall time: {:.3} sec",
        stats.uptime
    );
    let _ = writeln!(text, "\nJob execution statistics:");
    let _ = writeln!(
        text,
        " job count | % of all jobs | job time sum | time per job | job server"
    );
    for node in &stats.nodes {
        let percent = if all == 0 {
            0.0
        } else {
            node.jobs as f64 * 100.0 / all as f64
        };
        let _ = writeln!(
            text,
            "{:>10} | {:>13.2} | {:>12.4} | {:>12.6} | {}",
            node.jobs,
            percent,
            node.time,
            per_job(node.time, node.jobs),
            node.node
        );
    }
    let _ = writeln!(
        text,
        "Time elapsed since server creation {:.3}",
        stats.uptime
    );
    let _ = writeln!(text, "{all} jobs done, {cpus} engines");
    if stats.preferred > 0 {
        let percent = stats.preferred_met as f64 * 100.0 / stats.preferred as f64;
        let _ = writeln!(
            text,
            "{} of {} jobs ran where they prefer to ({percent:.1}%)",
            stats.preferred_met, stats.preferred
        );
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use ipbroker_client::protocol::message::NodeStats;

    #[test]
    fn both_tables_are_printed() {
        let node = |node: &str, cpus, jobs, time| NodeStats {
            node: node.into(),
            cpus,
            jobs,
            time,
        };
        let stats = Stats {
            nodes: vec![
                node("127.0.0.1 (localhost)", 2, 5, 80.1),
                node("b", 1, 15, 7.5),
            ],
            uptime: 2.0,
            ..Stats::default()
        };
        let text = tables(&stats);
        assert!(
            text.contains(
                "Node                  | CPUs |       Jobs |    Sec/Job | Node Time Sec\n"
            ),
            "{text}"
        );
        assert!(
            text.contains(
                "127.0.0.1 (localhost) |    2 |          5 |     16.020 |        80.100\n"
            ),
            "{text}"
        );
        assert!(
            text.contains(
                " job count | % of all jobs | job time sum | time per job | job server\n"
            ),
            "{text}"
        );
        assert!(
            text.contains("        15 |         75.00 |       7.5000 |     0.500000 | b\n"),
            "{text}"
        );
        let empty = tables(&Stats::default());
        assert!(
            empty.contains("0 jobs done") && empty.contains("job time: 0.000 sec"),
            "{empty}"
        );
    }
}
