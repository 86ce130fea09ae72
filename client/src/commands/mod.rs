//! One file for each subcommand.

pub(crate) mod abort;
pub(crate) mod completions;
pub(crate) mod engines;
pub(crate) mod events;
pub(crate) mod explain;
pub(crate) mod fs;
pub(crate) mod graph;
pub(crate) mod man;
pub(crate) mod map;
pub(crate) mod mapreduce;
pub(crate) mod output;
mod past;
pub(crate) mod report;
pub(crate) mod resubmit;
pub(crate) mod results;
pub(crate) mod run;
pub(crate) mod shutdown;
pub(crate) mod stats;
pub(crate) mod status;
pub(crate) mod submit;
pub(crate) mod top;
pub(crate) mod trace;
pub(crate) mod wait;
pub(crate) mod web;

use std::ffi::OsString;
use std::process::ExitCode;

use crate::cli::{ClusterArgs, Command};
use crate::failure::Failure;

/// How a subcommand ends.
pub(crate) type Outcome = Result<ExitCode, Failure>;

/// Runs a subcommand; `data` is what followed `:::`.
pub(crate) fn dispatch(
    command: Command,
    cluster: &ClusterArgs,
    data: Option<Vec<OsString>>,
) -> Outcome {
    match command {
        Command::Run(args) => run::main(args, cluster),
        Command::Map(args) => map::main(*args, cluster, data),
        Command::Mapreduce(args) => mapreduce::main(*args, cluster),
        Command::Submit(args) => submit::main(args, cluster),
        Command::Wait(args) => wait::main(args, cluster),
        Command::Results(args) => results::main(args, cluster),
        Command::Status(args) => status::main(args, cluster),
        Command::Engines(args) => engines::main(args, cluster),
        Command::Abort(args) => abort::main(args, cluster),
        Command::Resubmit(args) => resubmit::main(args, cluster),
        Command::Stats(args) => stats::main(args, cluster),
        Command::Shutdown(args) => shutdown::main(args, cluster),
        Command::Explain(args) => explain::main(args, cluster),
        Command::Output(args) => output::main(args, cluster),
        Command::Events(args) => events::main(args, cluster),
        Command::Top(args) => top::main(args, cluster),
        Command::Trace(args) => trace::main(args, cluster),
        Command::Report(args) => report::main(args, cluster),
        Command::Graph(args) => graph::main(args),
        Command::Web(_) => web::main(cluster),
        Command::Fs(args) => fs::main(args, cluster),
        Command::Completions(args) => completions::main(args),
        Command::Man(args) => man::main(args),
    }
}
