//! `ipclient graph`.

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use ipbroker_client::job::Graph;

use super::Outcome;
use crate::cli::ClusterArgs;
use crate::failure::Failure;
use crate::source;

/// Draw the dependencies of a file of jobs, in the language of Graphviz
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  ipclient graph jobs.json | dot -Tsvg > jobs.svg")]
pub(crate) struct GraphArgs {
    /// File of jobs; `-`: standard input
    #[arg(value_name = "FILE")]
    file: PathBuf,
}

pub(crate) fn main(args: GraphArgs, _: &ClusterArgs) -> Outcome {
    let jobs = source::read_file(&args.file)?;
    let graph = Graph::new(&source::name(Some(&args.file)), &jobs)
        .map_err(|error| Failure::usage(error.to_string()))?;
    std::io::stdout().write_all(graph.dot(&jobs).as_bytes())?;
    Ok(ExitCode::SUCCESS)
}
