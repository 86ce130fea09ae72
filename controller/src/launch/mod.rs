//! Starting engines elsewhere, and stopping what was started.

pub(crate) mod args;
pub(crate) mod batch;
pub(crate) mod hosts;
pub(crate) mod local;
#[cfg(feature = "ssh")]
pub(crate) mod program;
#[cfg(feature = "ssh")]
pub(crate) mod ssh;

use std::{
    fmt, fs, io,
    path::Path,
    sync::Arc,
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use ipbroker_protocol::profile;
use serde::{Serialize, de::DeserializeOwned};

/// Something that runs engines for the controller.
pub(crate) trait Launcher: Send {
    /// An engine has joined the cluster.
    fn joined(&mut self) {}

    /// Stops all that it started, and returns when nothing of it is left or `grace` is over.
    fn stop(&mut self, grace: Duration);
}

/// Where a launcher's events go; called from its threads, so it must not block for long.
pub(crate) type Sink = Arc<dyn Fn(LaunchEvent) + Send + Sync>;

/// What a launcher has to tell. Its `Display` is the line for the user.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub(crate) enum LaunchEvent {
    /// A step on the way.
    Progress {
        host: String,
        /// What was done.
        step: String,
    },
    /// The engines of one host were started.
    Started { host: String, engines: u32 },
    /// No engines will come from there.
    Failed {
        host: String,
        /// Why, in words for the user.
        reason: String,
    },
    /// An engine wrote to its standard error.
    Stderr { host: String, line: String },
    /// The connection to a host broke; it is being made again.
    Lost { host: String, reason: String },
    /// It is back.
    Back { host: String },
    /// The engines of one host have ended.
    Ended {
        host: String,
        /// The exit status, where it is known.
        status: Option<i32>,
    },
    /// Everything has been tried: what runs where.
    Settled {
        /// Engines started, by host, in the order given.
        engines: Vec<(String, u32)>,
        /// Hosts that have none, and why.
        failed: Vec<(String, String)>,
    },
}

impl LaunchEvent {
    /// Whether the user should see it even when only warnings are shown.
    pub(crate) fn is_warning(&self) -> bool {
        match self {
            Self::Failed { .. } | Self::Lost { .. } | Self::Stderr { .. } => true,
            Self::Ended { status, .. } => *status != Some(0),
            Self::Settled { failed, .. } => !failed.is_empty(),
            Self::Progress { .. } | Self::Started { .. } | Self::Back { .. } => false,
        }
    }
}

impl fmt::Display for LaunchEvent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Progress { host, step } => write!(f, "{host}: {step}"),
            Self::Started { host, engines } => write!(f, "{host}: started {engines} engine(s)"),
            // The reasons name the host.
            Self::Failed { host, reason } | Self::Lost { host, reason }
                if reason.starts_with(host.as_str()) =>
            {
                f.write_str(reason)
            }
            Self::Failed { host, reason } => write!(f, "{host}: {reason}"),
            Self::Lost { host, reason } => write!(f, "{host}: {reason}"),
            Self::Stderr { host, line } => write!(f, "[{host}] {line}"),
            Self::Back { host } => write!(f, "{host}: connected again"),
            Self::Ended {
                host,
                status: Some(0),
            } => write!(f, "{host}: the engines ended"),
            Self::Ended {
                host,
                status: Some(status),
            } => write!(f, "{host}: the engines ended with status {status}"),
            Self::Ended { host, status: None } => write!(f, "{host}: the engines are gone"),
            Self::Settled { engines, failed } => {
                let total: u32 = engines.iter().map(|(_, n)| n).sum();
                write!(
                    f,
                    "Deployed {total} engine(s) over {} host(s). Distribution:",
                    engines.len()
                )?;
                let hosts = engines.iter().map(|(host, n)| (host, format!("{n:>4}")));
                let failed = failed.iter().map(|(host, _)| (host, "failed".to_owned()));
                let rows: Vec<_> = hosts.chain(failed).collect();
                let width = rows.iter().map(|(host, _)| host.len() + 1).max();
                let width = width.unwrap_or_default();
                for (host, what) in rows {
                    write!(f, "\n   {:width$} {what}", format!("{host}:"))?;
                }
                Ok(())
            }
        }
    }
}

/// Waits for threads that are ending, no longer than `grace`.
fn join(threads: impl IntoIterator<Item = JoinHandle<()>>, grace: Duration) {
    let threads = Vec::from_iter(threads);
    let until = Instant::now() + grace;
    while !threads.iter().all(JoinHandle::is_finished) && Instant::now() < until {
        thread::sleep(Duration::from_millis(10));
    }
    for thread in threads.into_iter().filter(JoinHandle::is_finished) {
        let _ = thread.join();
    }
}

/// Notes what runs, for a controller that comes after a crash.
fn write_record(path: &Path, what: &impl Serialize) {
    let written = serde_json::to_vec(what)
        .map_err(io::Error::from)
        .and_then(|bytes| profile::replace(path, &bytes));
    if let Err(error) = written {
        tracing::warn!("cannot write {}: {error}", path.display());
    }
}

/// What an earlier controller has noted, if that can be read.
fn read_record<T: DeserializeOwned>(path: &Path) -> Option<T> {
    serde_json::from_slice(&fs::read(path).ok()?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_summary_says_what_runs_where() {
        let event = LaunchEvent::Settled {
            engines: vec![("docker-host1".into(), 6), ("b".into(), 10)],
            failed: vec![("c".into(), "c: no".into())],
        };
        assert_eq!(
            event.to_string(),
            "Deployed 16 engine(s) over 2 host(s). Distribution:\n   docker-host1:    6\n   b:              10\n   c:            failed"
        );
    }
}
