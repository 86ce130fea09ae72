//! The `result` of a job line and the line as it is printed.

use super::value::{isoformat, timedelta};
use jiff::Timestamp;
use jiff::tz::TimeZone;
use serde::de::IgnoredAny;
use serde_json::Value;
use std::fmt::Write;

/// Bytes of each output that `capture` keeps when no number is given.
pub const CAPTURE: u64 = 64 * 1024;

/// How a job ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum JobStatus {
    /// It ran, whatever its code.
    #[default]
    Ok,
    /// It could not be run, or was lost.
    Error,
    /// It was aborted.
    Aborted,
}

impl JobStatus {
    /// The word in the result.
    pub fn as_str(self) -> &'static str {
        match self {
            JobStatus::Ok => "ok",
            JobStatus::Error => "error",
            JobStatus::Aborted => "aborted",
        }
    }
}

/// What is known of a job that ended.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct JobResult {
    /// The shell's exit code.
    pub code: Option<i64>,
    /// When the client submitted it.
    pub submitted: Option<Timestamp>,
    /// When it started.
    pub started: Option<Timestamp>,
    /// When it ended.
    pub completed: Option<Timestamp>,
    /// When the client had its result.
    pub received: Option<Timestamp>,
    /// Number of the engine.
    pub engine_id: Option<i64>,
    /// Host of the engine.
    pub host: Option<String>,
    /// How it ended.
    pub status: JobStatus,
    /// The id of its message.
    pub msg_id: Option<String>,
    /// Why it could not be run.
    pub error: Option<String>,
    /// A Python engine's exception.
    pub pyerr: Option<String>,
    /// A Python engine's output.
    pub pyout: Option<String>,
    /// Its standard output, where captured.
    pub stdout: Option<String>,
    /// Its standard error, where captured.
    pub stderr: Option<String>,
    /// Its standard output as it was, where that is no UTF-8.
    pub stdout_bytes: Option<Vec<u8>>,
    /// Its standard error as it was, where that is no UTF-8.
    pub stderr_bytes: Option<Vec<u8>>,
    /// More was written than was captured.
    pub truncated: bool,
    /// It was not run: what it creates was up to date.
    pub up_to_date: bool,
    /// Which of several jobs with the same line this is the result of, from 1.
    pub copy: Option<u32>,
}

impl JobResult {
    /// A job that never ran, and why.
    pub fn refused(error: impl Into<String>) -> Self {
        Self {
            status: JobStatus::Error,
            error: Some(error.into()),
            ..Self::default()
        }
    }

    /// True if it ran and its code is 0.
    pub fn success(&self) -> bool {
        self.status == JobStatus::Ok && self.code == Some(0)
    }

    /// What was captured of its standard output, byte by byte.
    pub fn output(&self) -> &[u8] {
        let text = self.stdout.as_deref().unwrap_or_default();
        self.stdout_bytes.as_deref().unwrap_or(text.as_bytes())
    }

    /// What was captured of its standard error, byte by byte.
    pub fn errors(&self) -> &[u8] {
        let text = self.stderr.as_deref().unwrap_or_default();
        self.stderr_bytes.as_deref().unwrap_or(text.as_bytes())
    }

    /// Run time in microseconds.
    pub fn elapsed(&self) -> Option<i64> {
        let (started, completed) = (self.started?, self.completed?);
        // Both are printed in whole microseconds: subtract what is printed.
        Some(completed.as_microsecond() - started.as_microsecond())
    }

    /// As JSON, in the order of Bakapara's documentation.
    pub fn write(&self, zone: &TimeZone, to: &mut String) {
        let time = |t: Option<Timestamp>| t.map(|t| isoformat(t, zone));
        to.push_str("{\"code\": ");
        number(to, self.code);
        for (key, value) in [
            ("submitted", time(self.submitted)),
            ("started", time(self.started)),
            ("completed", time(self.completed)),
            ("received", time(self.received)),
            ("elapsed", self.elapsed().map(timedelta)),
        ] {
            entry(to, key, value.as_deref());
        }
        to.push_str(", \"engine_id\": ");
        number(to, self.engine_id);
        entry(to, "host", self.host.as_deref());
        entry(to, "pyerr", self.pyerr.as_deref());
        entry(to, "pyout", self.pyout.as_deref());
        entry(to, "status", Some(self.status.as_str()));
        entry(to, "msg_id", self.msg_id.as_deref());
        entry(to, "error", self.error.as_deref());
        if let Some(stdout) = &self.stdout {
            entry(to, "stdout", Some(stdout));
        }
        if let Some(stderr) = &self.stderr {
            entry(to, "stderr", Some(stderr));
        }
        if self.truncated {
            to.push_str(", \"truncated\": true");
        }
        if self.up_to_date {
            to.push_str(", \"up_to_date\": true");
        }
        if let Some(copy) = self.copy {
            let _ = write!(to, ", \"copy\": {copy}");
        }
        to.push('}');
    }
}

fn number(to: &mut String, value: Option<i64>) {
    match value {
        Some(value) => {
            let _ = write!(to, "{value}");
        }
        None => to.push_str("null"),
    }
}

fn entry(to: &mut String, key: &str, value: Option<&str>) {
    let _ = write!(to, ", \"{key}\": ");
    match value {
        Some(value) => string(to, value),
        None => to.push_str("null"),
    }
}

fn string(to: &mut String, value: &str) {
    if value.bytes().all(|b| b >= 0x20 && b != b'"' && b != b'\\') {
        to.push('"');
        to.push_str(value);
        to.push('"');
    } else {
        to.push_str(&Value::from(value).to_string());
    }
}

/// Appends the job's line with its result and a line break. The object is kept as it was written, number by number:
/// the result is put behind its last key, or replaces the one it came with.
pub fn write_line(
    text: &str,
    has_result: bool,
    result: &JobResult,
    zone: &TimeZone,
    to: &mut String,
) {
    if has_result && let Ok(Value::Object(mut object)) = serde_json::from_str(text) {
        let mut new = String::with_capacity(400);
        result.write(zone, &mut new);
        object.insert(
            "result".into(),
            serde_json::from_str(&new).unwrap_or(Value::Null),
        );
        let _ = writeln!(to, "{}", Value::Object(object));
        return;
    }
    // What was sent was read before; what never was may be anything.
    let object = result.msg_id.is_some() || serde_json::from_str::<IgnoredAny>(text).is_ok();
    match text.strip_suffix('}').map(str::trim_end) {
        Some(open) if open.len() > 1 && object => {
            // A job may be written over several lines in the middle of a pretty printer's output: one line here.
            to.extend(
                open.chars()
                    .map(|c| if c == '\n' || c == '\r' { ' ' } else { c }),
            );
            to.push_str(", \"result\": ");
        }
        // Not an object: what was read goes along as text.
        _ => {
            to.push_str("{\"line\": ");
            string(to, text);
            to.push_str(", \"result\": ");
        }
    }
    result.write(zone, to);
    to.push_str("}\n");
}

#[cfg(test)]
mod tests {
    use super::*;

    fn result() -> JobResult {
        let at = |text: &str| Some(text.parse().unwrap());
        JobResult {
            code: Some(0),
            submitted: at("2014-12-13T01:17:03Z"),
            started: at("2014-12-13T01:17:04.559970Z"),
            completed: at("2014-12-13T01:17:14.566251Z"),
            received: at("2014-12-13T01:17:15.614301Z"),
            engine_id: Some(3),
            host: Some("mezcal06".into()),
            msg_id: Some("48fb:1".into()),
            ..JobResult::default()
        }
    }

    #[test]
    fn a_line_keeps_its_own_spelling() {
        let mut line = String::new();
        write_line(
            r#"{"cmd": "a \u00e9", "n": 1.10, "z": 123456789012345678901234567890 }"#,
            false,
            &result(),
            &TimeZone::UTC,
            &mut line,
        );
        assert_eq!(
            line,
            concat!(
                r#"{"cmd": "a \u00e9", "n": 1.10, "z": 123456789012345678901234567890, "result": {"code": 0, "#,
                r#""submitted": "2014-12-13T01:17:03", "started": "2014-12-13T01:17:04.559970", "completed": "2014-12-13T01:17:14.566251", "#,
                r#""received": "2014-12-13T01:17:15.614301", "elapsed": "0:00:10.006281", "engine_id": 3, "host": "mezcal06", "#,
                r#""pyerr": null, "pyout": null, "status": "ok", "msg_id": "48fb:1", "error": null}}"#,
                "\n"
            )
        );
    }

    #[test]
    fn an_old_result_is_replaced() {
        let mut line = String::new();
        write_line(
            r#"{"result": {"code": 9}, "cmd": "a"}"#,
            true,
            &result(),
            &TimeZone::UTC,
            &mut line,
        );
        assert!(line.starts_with(r#"{"result":{"code":0,"#), "{line}");
        assert!(line.ends_with("\"cmd\":\"a\"}\n"));
        assert_eq!(line.matches("result").count(), 1);
    }

    #[test]
    fn what_is_no_object_still_gets_a_result() {
        let mut line = String::new();
        write_line(
            "oops \"x\"",
            false,
            &JobResult::refused("stdin:1: not JSON"),
            &TimeZone::UTC,
            &mut line,
        );
        let value: Value = serde_json::from_str(&line).unwrap();
        assert_eq!(value["line"], "oops \"x\"");
        assert_eq!(value["result"]["status"], "error");
        assert_eq!(value["result"]["error"], "stdin:1: not JSON");
        assert_eq!(value["result"]["code"], Value::Null);
    }
}
