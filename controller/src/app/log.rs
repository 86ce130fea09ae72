//! Logging: to standard error, or to a file in the profile.

use std::{
    fs::{File, OpenOptions},
    io::{self, IsTerminal},
    os::unix::fs::OpenOptionsExt,
    sync::Arc,
};

use ipbroker_protocol::profile::Profile;
use tracing::Level;
use tracing_subscriber::util::SubscriberInitExt;

use super::AppError;
use crate::cli::LogArgs;

/// Opens the log.
///
/// # Errors
/// When the log file cannot be made.
pub(super) fn init(args: &LogArgs, profile: &Profile) -> Result<(), AppError> {
    let level = args.level().unwrap_or(Level::INFO);
    let format = tracing_subscriber::fmt()
        // Who logs to a connection or terminal that is gone must live on: the default is to panic.
        .log_internal_errors(false)
        .with_max_level(level)
        .with_target(false);
    // A second initialisation (tests in one process) is no error.
    if !args.log_to_file {
        let ansi = io::stderr().is_terminal();
        let _ = format
            .with_ansi(ansi)
            .with_writer(io::stderr)
            .finish()
            .try_init();
        return Ok(());
    }
    let name = match profile.cluster_id() {
        "" => format!("ipctl-{}.log", std::process::id()),
        id => format!("ipctl-{id}-{}.log", std::process::id()),
    };
    let path = profile.log_dir().join(name);
    let file: File = OpenOptions::new()
        .create(true)
        .append(true)
        .mode(0o600)
        .open(&path)
        .map_err(AppError::system(format!(
            "cannot write the log file {}",
            path.display()
        )))?;
    eprintln!("ipctl: logging to {}", path.display());
    let _ = format
        .with_ansi(false)
        .with_writer(Arc::new(file))
        .finish()
        .try_init();
    Ok(())
}
