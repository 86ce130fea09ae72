//! `ipclient man`.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, CommandFactory};

use super::Outcome;
use crate::cli::{Cli, ClusterArgs};
use crate::failure::Failure;

/// Write the man pages, one for each subcommand, into a directory
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  ipclient man ~/.local/share/man/man1 && man ipclient-run")]
pub(crate) struct ManArgs {
    /// The directory; made if missing
    dir: PathBuf,
}

pub(crate) fn main(args: ManArgs, _: &ClusterArgs) -> Outcome {
    std::fs::create_dir_all(&args.dir)
        .and_then(|()| clap_mangen::generate_to(Cli::command(), &args.dir))
        .map_err(|error| {
            Failure::new(format!(
                "cannot write man pages into {}: {error}",
                args.dir.display()
            ))
        })?;
    Ok(ExitCode::SUCCESS)
}
