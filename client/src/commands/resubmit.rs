//! `ipclient resubmit`.

use std::io::Write;
use std::process::ExitCode;

use clap::Args;

use super::Outcome;
use crate::cli::ClusterArgs;
use crate::output::json;

/// Submit tasks again, and print their new ids
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  ipclient resubmit $(cat ids) > new-ids")]
pub(crate) struct ResubmitArgs {
    /// Ids of tasks
    #[arg(value_name = "ID", required = true)]
    ids: Vec<String>,
    /// Print JSON: new ids by the old ones
    #[arg(long)]
    json: bool,
}

pub(crate) fn main(args: ResubmitArgs, cluster: &ClusterArgs) -> Outcome {
    let client = cluster.connect()?;
    let new = client.resubmit(&args.ids)?;
    if args.json {
        return json::print(&new);
    }
    let mut out = std::io::stdout().lock();
    for id in &args.ids {
        if let Some(id) = new.get(id) {
            writeln!(out, "{id}")?;
        }
    }
    Ok(ExitCode::SUCCESS)
}
