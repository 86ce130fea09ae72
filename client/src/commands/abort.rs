//! `ipclient abort`.

use std::process::ExitCode;

use clap::Args;

use super::Outcome;
use crate::cli::ClusterArgs;
use crate::failure::Failure;
use crate::output::json;

/// Stop tasks: those that wait at once, those that run within a second
#[derive(Debug, Args)]
#[command(after_help = "\
The id of an array stands for all of its members, ID:INDEX for one of them.

Example:
  ipclient abort $(cat ids)
  ipclient abort --all")]
pub(crate) struct AbortArgs {
    /// Ids of tasks
    #[arg(value_name = "ID", conflicts_with = "all")]
    ids: Vec<String>,
    /// Every task there is
    #[arg(long)]
    all: bool,
    /// Leave the running ones alone
    #[arg(long, conflicts_with = "all")]
    waiting: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

pub(crate) fn main(args: AbortArgs, cluster: &ClusterArgs) -> Outcome {
    if args.ids.is_empty() && !args.all {
        return Err(Failure::usage(
            "nothing to abort: name tasks by their ids, or all of them with --all",
        ));
    }
    let client = cluster.connect()?;
    let reply = if args.all {
        client.abort_all()?
    } else {
        client.abort(&args.ids, !args.waiting)?
    };
    if args.json {
        json::print(&reply)?;
    } else {
        let done = if reply.done.is_empty() {
            String::new()
        } else {
            format!(", {} already done", reply.done.len())
        };
        eprintln!(
            "ipclient: {} aborted, {} being stopped{done}",
            reply.aborted, reply.stopping
        );
    }
    if let Some(id) = reply.unknown.first() {
        let more = if reply.unknown.len() > 1 {
            format!(" (and {} more)", reply.unknown.len() - 1)
        } else {
            String::new()
        };
        return Err(Failure::new(format!("no such task: {id}{more}")));
    }
    Ok(ExitCode::SUCCESS)
}
