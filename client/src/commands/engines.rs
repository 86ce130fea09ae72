//! `ipclient engines`.

use std::process::ExitCode;

use clap::Args;
use ipbroker_client::protocol::{message::EngineInfo, resources};

use super::Outcome;
use crate::cli::ClusterArgs;
use crate::output::{json, table};

/// List the engines
#[derive(Debug, Args)]
#[command(
    after_help = "Example:\n  ipclient engines\n  ipclient engines --json | jq '.[].host[0]'"
)]
pub(crate) struct EnginesArgs {
    /// Print JSON
    #[arg(long)]
    json: bool,
}

pub(crate) fn main(args: EnginesArgs, cluster: &ClusterArgs) -> Outcome {
    let client = cluster.connect()?;
    let mut engines = client.engines()?;
    engines.sort_by_key(|engine| engine.id);
    if args.json {
        return json::print(&engines);
    }
    if engines.is_empty() {
        eprintln!("ipclient: no engines are registered: start some with `ipengine -n 4`");
        return Ok(ExitCode::SUCCESS);
    }
    let headings = [
        "ID",
        "Host",
        "Kind",
        "PID",
        "Cores",
        "Tags",
        "Running",
        "Done",
        "Up",
        "Ping",
        "Clock",
        "Limits",
        "Holds",
        "Host's free",
    ];
    let mut rows = table::table(&headings, &[0, 3, 4, 6, 7, 8, 9, 10]);
    for engine in &engines {
        let known = |value: Option<String>| value.unwrap_or_else(|| "-".into());
        let number = |value: Option<u32>| known(value.map(|value| value.to_string()));
        rows.add_row(vec![
            engine.id.to_string(),
            known(engine.host.first().cloned()),
            engine.kind.clone(),
            number(engine.pid),
            number(engine.cores),
            known((!engine.tags.is_empty()).then(|| engine.tags.join(","))),
            engine.outstanding.to_string(),
            engine.completed.to_string(),
            table::duration(engine.age),
            known(engine.ping.map(|ms| format!("{ms:.1} ms"))),
            known(engine.clock.map(|seconds| format!("{seconds:+.3} s"))),
            known(engine.limits.clone()),
            holds(engine),
            free(engine),
        ]);
    }
    table::print(&rows)?;
    Ok(ExitCode::SUCCESS)
}

/// What its task was granted, or the task that it is kept for.
fn holds(engine: &EngineInfo) -> String {
    if let Some(task) = &engine.kept_for {
        return format!("(kept for {task})");
    }
    if engine.holds.is_empty() {
        return "-".into();
    }
    let parts = engine.holds.iter().map(|(name, granted)| {
        let amount = resources::words(name, resources::amount(granted.amount).unwrap_or(0));
        match granted.names.is_empty() {
            true => format!("{amount} {name}"),
            false => format!("{amount} {name} ({})", granted.names.join(",")),
        }
    });
    parts.collect::<Vec<_>>().join(", ")
}

/// What its host has left, of how much.
fn free(engine: &EngineInfo) -> String {
    if engine.resources.is_empty() {
        return "-".into();
    }
    let parts = engine.resources.iter().map(|(name, stock)| {
        let words = |units| resources::words(name, resources::amount(units).unwrap_or(0));
        format!("{} of {} {name}", words(stock.free), words(stock.total))
    });
    parts.collect::<Vec<_>>().join(", ")
}
