//! `ipclient wait`: until tasks are done.

use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::Args;
use ipbroker_client::protocol::time;

use super::Outcome;
use crate::cli::ClusterArgs;
use crate::failure::Failure;

/// Ids in one question to the hub.
const CHUNK: usize = 5000;

/// Wait until tasks are done
#[derive(Debug, Args)]
#[command(after_help = "\
The exit status is 0 only if all of them ended well. Files of `get` are written by `ipclient results`.

Example:
  ipclient wait && ipclient stats
  ipclient wait --timeout 60 $(cat ids)")]
pub(crate) struct WaitArgs {
    /// Ids of tasks; none: everything that is unfinished now
    #[arg(value_name = "ID")]
    ids: Vec<String>,
    /// Give up after this time
    #[arg(long, value_name = "TIME", value_parser = time::duration)]
    timeout: Option<Duration>,
}

pub(crate) fn main(args: WaitArgs, cluster: &ClusterArgs) -> Outcome {
    let client = cluster.connect()?;
    let ids = if args.ids.is_empty() {
        client.unfinished()?
    } else {
        args.ids
    };
    let deadline = args.timeout.map(|timeout| Instant::now() + timeout);
    let mut pending = ids.clone();
    let mut pause = Duration::from_millis(20);
    let mut failed = 0;
    loop {
        let mut still = Vec::new();
        for chunk in pending.chunks(CHUNK) {
            let outcomes = client.outcomes(chunk, false)?;
            failed += outcomes.failed.len();
            still.extend(outcomes.pending);
        }
        pending = still;
        if pending.is_empty() {
            break;
        }
        let left = deadline.map_or(pause, |deadline| {
            deadline.saturating_duration_since(Instant::now())
        });
        if left.is_zero() {
            let (count, all) = (pending.len(), ids.len());
            return Err(Failure::new(format!(
                "{count} of {all} tasks are not done yet"
            )));
        }
        std::thread::sleep(pause.min(left));
        pause = (pause * 3 / 2).min(Duration::from_millis(500));
    }
    if failed > 0 {
        eprintln!(
            "ipclient: {failed} of {} tasks did not end well (see `ipclient results`)",
            ids.len()
        );
        return Ok(ExitCode::FAILURE);
    }
    Ok(ExitCode::SUCCESS)
}
