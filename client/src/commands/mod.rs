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

use std::process::ExitCode;

use clap::Subcommand;

use crate::cli::ClusterArgs;
use crate::failure::Failure;

/// How a subcommand ends.
pub(crate) type Outcome = Result<ExitCode, Failure>;

macro_rules! subcommands {
    ($($name:ident: $module:ident, $args:ty;)*) => {
        #[derive(Debug, Subcommand)]
        pub(crate) enum Command { $($name($args),)* }

        /// Runs a subcommand.
        pub(crate) fn dispatch(command: Command, cluster: &ClusterArgs) -> Outcome {
            match command { $(Command::$name(args) => $module::main(args, cluster),)* }
        }
    };
}

// In the order of `ipclient --help`.
subcommands! {
    Run: run, run::RunArgs;
    Map: map, Box<map::MapArgs>;
    Mapreduce: mapreduce, Box<mapreduce::MapReduceArgs>;
    Submit: submit, submit::SubmitArgs;
    Wait: wait, wait::WaitArgs;
    Results: results, results::ResultsArgs;
    Status: status, status::StatusArgs;
    Engines: engines, engines::EnginesArgs;
    Abort: abort, abort::AbortArgs;
    Resubmit: resubmit, resubmit::ResubmitArgs;
    Stats: stats, stats::StatsArgs;
    Shutdown: shutdown, shutdown::ShutdownArgs;
    Explain: explain, explain::ExplainArgs;
    Output: output, output::OutputArgs;
    Events: events, events::EventsArgs;
    Top: top, top::TopArgs;
    Trace: trace, trace::TraceArgs;
    Report: report, report::ReportArgs;
    Graph: graph, graph::GraphArgs;
    Web: web, web::WebArgs;
    Fs: fs, fs::FsArgs;
    Completions: completions, completions::CompletionsArgs;
    Man: man, man::ManArgs;
}
