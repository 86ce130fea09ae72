//! `ipclient explain`.

use std::io::Write;
use std::process::ExitCode;

use clap::Args;

use super::Outcome;
use crate::cli::ClusterArgs;
use crate::failure::Failure;
use crate::output::json;

/// Say why a task is waiting, or what became of it
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  ipclient explain $(head -1 ids)")]
pub(crate) struct ExplainArgs {
    /// Id of a task
    #[arg(value_name = "ID")]
    id: String,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

pub(crate) fn main(args: ExplainArgs, cluster: &ClusterArgs) -> Outcome {
    let client = cluster.connect()?;
    let explanation = client.explain(&args.id)?;
    if args.json {
        return json::print(&explanation);
    }
    if explanation.state == "unknown" {
        let text = if explanation.text.is_empty() {
            format!("no such task: {}", args.id)
        } else {
            explanation.text
        };
        return Err(Failure::new(text));
    }
    let mut out = std::io::stdout().lock();
    writeln!(out, "{}", explanation.text)?;
    for (engine, reason) in &explanation.engines {
        writeln!(out, "  engine {engine}: {reason}")?;
    }
    Ok(ExitCode::SUCCESS)
}
