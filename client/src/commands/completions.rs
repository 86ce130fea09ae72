//! `ipclient completions`.

use std::process::ExitCode;

use clap::{Args, CommandFactory};
use clap_complete::Shell;

use super::Outcome;
use crate::cli::Cli;

/// Print completions for a shell
#[derive(Debug, Args)]
#[command(
    after_help = "Example:\n  ipclient completions bash > ~/.local/share/bash-completion/completions/ipclient"
)]
pub(crate) struct CompletionsArgs {
    /// The shell
    shell: Shell,
}

pub(crate) fn main(args: CompletionsArgs) -> Outcome {
    clap_complete::generate(
        args.shell,
        &mut Cli::command(),
        "ipclient",
        &mut std::io::stdout(),
    );
    Ok(ExitCode::SUCCESS)
}
