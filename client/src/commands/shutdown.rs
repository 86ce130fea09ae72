//! `ipclient shutdown`.

use std::process::ExitCode;

use clap::Args;

use super::Outcome;
use crate::cli::ClusterArgs;

/// End the controller and all its engines
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  ipclient shutdown --profile mezcal")]
pub(crate) struct ShutdownArgs {}

pub(crate) fn main(_: ShutdownArgs, cluster: &ClusterArgs) -> Outcome {
    cluster.connect()?.shutdown()?;
    Ok(ExitCode::SUCCESS)
}
