//! `ipclient completions`.

use std::io::Write;
use std::process::ExitCode;

use clap::{Args, CommandFactory};
use clap_complete::Shell;

use super::Outcome;
use crate::cli::{Cli, ClusterArgs};

/// Print completions for a shell
#[derive(Debug, Args)]
#[command(
    after_help = "Example:\n  ipclient completions bash > ~/.local/share/bash-completion/completions/ipclient"
)]
pub(crate) struct CompletionsArgs {
    /// The shell
    shell: Shell,
}

pub(crate) fn main(args: CompletionsArgs, _: &ClusterArgs) -> Outcome {
    // Into memory first: what writes it would panic where nobody reads.
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "ipclient", &mut script);
    std::io::stdout().write_all(&script)?;
    Ok(ExitCode::SUCCESS)
}
