//! From an engine's reply to the `result` of a job line.

use ipbroker_protocol::message::CommandResult;
use ipbroker_protocol::time;
use jiff::Timestamp;

use super::outcome::{JobResult, JobStatus};
use crate::error::TaskError;

impl JobResult {
    /// What became of a command.
    pub fn from_command(result: CommandResult) -> Self {
        let status = match result.status.as_str() {
            "ok" => JobStatus::Ok,
            "aborted" => JobStatus::Aborted,
            _ => JobStatus::Error,
        };
        let named = |name: Option<String>, text: Option<String>| match (name, text) {
            (Some(name), Some(text)) if !text.is_empty() => Some(format!("{name}: {text}")),
            (name, text) => name.or(text),
        };
        let error = match (status, &result.limit) {
            (JobStatus::Ok, Some(limit)) => Some(format!("stopped: its {limit} limit was reached")),
            (JobStatus::Ok, None) => None,
            _ => named(result.ename, result.evalue).or_else(|| Some(status.as_str().to_owned())),
        };
        Self {
            code: result.code.map(i64::from),
            started: result.started.as_deref().and_then(time::parse),
            completed: result.completed.as_deref().and_then(time::parse),
            engine_id: result.engine_id.map(i64::from),
            host: result.host,
            status,
            error,
            stdout: result.stdout,
            stderr: result.stderr,
            stdout_bytes: result.stdout_bytes.map(|bytes| bytes.into_vec()),
            stderr_bytes: result.stderr_bytes.map(|bytes| bytes.into_vec()),
            truncated: result.truncated > 0,
            up_to_date: result.up_to_date,
            ..Self::default()
        }
    }

    /// A job whose reply never came.
    pub fn from_error(error: &TaskError) -> Self {
        Self {
            status: if error.aborted {
                JobStatus::Aborted
            } else {
                JobStatus::Error
            },
            error: Some(error.to_string()),
            engine_id: error.engine_id.map(i64::from),
            host: error.host.clone(),
            ..Self::default()
        }
    }

    /// With what only the client knows.
    #[must_use]
    pub fn with(mut self, msg_id: String, submitted: Timestamp, received: Timestamp) -> Self {
        self.msg_id = Some(msg_id);
        self.submitted = Some(submitted);
        self.received = Some(received);
        self
    }
}
