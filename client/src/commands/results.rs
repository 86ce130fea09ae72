//! `ipclient results`: result lines of tasks that were submitted before.

use std::io::{BufWriter, Write};
use std::process::ExitCode;

use clap::Args;
use ipbroker_client::job::{JobResult, JobStatus, parse_line, write_line};
use ipbroker_client::protocol::array::{View, member_id, split_id};
use ipbroker_client::protocol::message::{CommandResult, types};
use ipbroker_client::protocol::time;
use ipbroker_client::protocol::zmq::Message;
use ipbroker_client::{Client, Record};
use jiff::tz::TimeZone;
use serde_json::{Map, Value, json};

use super::Outcome;
use super::past::unpack;
use crate::cli::ClusterArgs;
use crate::failure::Failure;
use crate::output::plural;
use crate::runner::files;

/// Ids in one question to the hub.
pub(super) const CHUNK: usize = 1000;

/// Print result lines of tasks, as `ipclient run` prints them
#[derive(Debug, Args)]
#[command(after_help = "\
The exit status is 0 only if all of them are done and ended well.

Files that a submitted job's `get` names are written, relative to the directory in which it was submitted; the controller \
keeps them as long as the result, so that they can be written again.

Example:
  ipclient results $(cat ids) > results.json")]
pub(crate) struct ResultsArgs {
    /// Ids of tasks; none: all that the controller has a record of
    #[arg(value_name = "ID")]
    ids: Vec<String>,
    /// Print only: do not write the files that jobs name in `get`
    #[arg(long)]
    no_get: bool,
    /// Print JSON: this is so in any case
    #[arg(long)]
    json: bool,
}

pub(crate) fn main(args: ResultsArgs, cluster: &ClusterArgs) -> Outcome {
    let client = cluster.connect()?;
    let ids = if args.ids.is_empty() {
        client.history()?
    } else {
        args.ids.clone()
    };
    let zone = TimeZone::system();
    let mut out = BufWriter::new(std::io::stdout());
    let mut line = String::new();
    let (mut pending, mut failed) = (0u64, 0u64);
    let mut requests = Requests {
        client: &client,
        array: (String::new(), Vec::new()),
    };
    each(&client, &ids, &mut |id, record| {
        let Some(record) = record else {
            pending += 1;
            return Ok(());
        };
        line.clear();
        let files = (!args.no_get).then_some(&client);
        let job = requests.line(id, record)?;
        failed += print((id, &job), record, files, &zone, &mut line);
        Ok(out.write_all(line.as_bytes())?)
    })?;
    out.flush()?;
    if pending > 0 {
        let verb = if pending == 1 { "is" } else { "are" };
        eprintln!(
            "ipclient: {} {verb} not done yet (see `ipclient wait`)",
            plural(pending, "task")
        );
    }
    Ok(ExitCode::from(u8::from(pending + failed > 0)))
}

/// Appends a task's line; 1 if it did not end well. With a client the files of its `get` are written first.
fn print(
    (id, job): (&str, &str),
    record: &Record,
    files: Option<&Client>,
    zone: &TimeZone,
    text: &mut String,
) -> u64 {
    let mut result = result(id, record);
    if let Some(client) = files
        && result.status == JobStatus::Ok
        && let Err(reason) = fetch(client, id, record, result.code == Some(0))
    {
        result.status = JobStatus::Error;
        result.error = Some(reason);
    }
    let has_result = job.contains("\"result\"")
        && serde_json::from_str::<Value>(job).is_ok_and(|object| object.get("result").is_some());
    write_line(job, has_result, &result, zone, text);
    u64::from(!result.success())
}

/// What tasks were asked.
struct Requests<'a> {
    client: &'a Client,
    /// The last array, and its members' requests.
    array: (String, Vec<Message>),
}

impl Requests<'_> {
    /// A task's job line: as it was submitted; of a task of `run` or of a program, what its request says.
    fn line(&mut self, id: &str, record: &Record) -> Result<String, Failure> {
        if let Some(Value::String(line)) = record.metadata.get("job") {
            return Ok(line.clone());
        }
        let kind = record.header.get("msg_type").and_then(Value::as_str);
        let content = match split_id(id) {
            _ if kind != Some(types::COMMAND_REQUEST) => None,
            (array, Some(index)) => {
                if self.array.0 != array {
                    self.array = (array.to_owned(), self.client.request_buffers(array)?);
                }
                let view = match &self.array.1[..] {
                    [offsets, blob] => View::new(offsets, blob, record.members().unwrap_or(0)).ok(),
                    _ => None,
                };
                view.and_then(|view| unpack(view.get(usize::try_from(index).ok()?)))
            }
            (id, None) => {
                let query = Map::from_iter([("msg_id".to_owned(), id.into())]);
                let found = self.client.records(&query, &["msg_id", "content"])?;
                let content = found.first().and_then(|record| record.extra.get("content"));
                content.and_then(Value::as_object).cloned()
            }
        };
        Ok(content
            .map_or_else(|| json!({ "id": id }), Value::Object)
            .to_string())
    }
}

/// Writes the files that a submitted job names in `get`; those of a failed one only where there are any.
fn fetch(client: &Client, id: &str, record: &Record, all: bool) -> Result<(), String> {
    let text = |key: &str| record.metadata.get(key).and_then(Value::as_str);
    let (Some(line), Some(dir)) = (text("job"), text("job_dir")) else {
        return Ok(());
    };
    let job = parse_line(1, line.as_bytes()).map_err(|error| format!("get: {error}"))?;
    let buffers = client
        .result_buffers(id)
        .map_err(|error| format!("get: {error}"))?;
    if buffers.len() < job.get.len() && all {
        return Err("get: the controller does not have the files".into());
    }
    files::fetch(dir, &job, buffers.iter().map(|buffer| &buffer[..]), all)
}

type Tell<'a> = dyn FnMut(&str, Option<&Record>) -> Result<(), Failure> + 'a;

/// Tells of each of these tasks, of an array member by member; of those that are not done there is no record.
pub(crate) fn each(client: &Client, ids: &[String], tell: &mut Tell<'_>) -> Result<(), Failure> {
    for chunk in ids.chunks(CHUNK) {
        let outcomes = client.outcomes(chunk, true)?;
        for id in chunk {
            let record = outcomes.records.get(id);
            match record.and_then(Record::members) {
                // A member's record has the metadata of its array.
                Some(count) if split_id(id).1.is_none() => {
                    let members: Vec<String> = (0..count).map(|at| member_id(id, at)).collect();
                    each(client, &members, tell)?;
                }
                _ => tell(id, record)?,
            }
        }
    }
    Ok(())
}

/// The `result` of a task as the store has it.
pub(crate) fn result(id: &str, record: &Record) -> JobResult {
    let content = if record.result_content.is_empty() {
        record.extra.get("content").cloned().unwrap_or_default()
    } else {
        Value::Object(record.result_content.clone())
    };
    let is_command = content.get("code").is_some();
    let mut command: CommandResult = serde_json::from_value(content).unwrap_or_default();
    let text = |key: &str| {
        record
            .result_metadata
            .get(key)
            .and_then(Value::as_str)
            .map(str::to_owned)
    };
    if command.status.is_empty() {
        command.status = text("status").unwrap_or_else(|| "error".into());
    }
    command.started = command.started.or_else(|| text("started"));
    command.completed = command.completed.or_else(|| text("completed"));
    command.host = command.host.or_else(|| text("host"));
    command.engine_id = command.engine_id.or_else(|| {
        record
            .result_metadata
            .get("engine_id")
            .and_then(Value::as_u64)
            .and_then(|id| u32::try_from(id).ok())
    });
    let mut result = JobResult::from_command(command);
    // A function that returned is a job that went well.
    if !is_command && result.status == JobStatus::Ok {
        result.code = Some(0);
    }
    let date = |text: Option<&str>| text.and_then(time::parse);
    result.submitted = date(record.submitted.as_deref())
        .or_else(|| date(record.header.get("date").and_then(Value::as_str)));
    result.received = date(record.received.as_deref());
    result.msg_id = Some(id.to_owned());
    result
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_become_results() {
        let record: Record = serde_json::from_value(json!({
            "header": {"date": "2014-12-13T01:17:05Z"},
            "metadata": {"job": "{\"cmd\": \"false\"}"},
            "result_metadata": {"status": "ok", "started": "2014-12-13T01:17:06Z"},
            "result_content": {"status": "ok", "code": 1, "host": "h", "engine_id": 2},
            "received": "2014-12-13T01:17:07Z"
        }))
        .unwrap();
        let result = result("a", &record);
        assert_eq!(
            (result.code, result.host.as_deref(), result.engine_id),
            (Some(1), Some("h"), Some(2))
        );
        assert!(
            result.started.is_some() && result.submitted.is_some() && result.received.is_some()
        );
        assert!(!result.success());
    }

    #[test]
    fn lost_tasks_say_why() {
        let record: Record = serde_json::from_value(json!({
            "result_content": {"status": "error", "ename": "EngineError", "evalue": "engine 3 died", "traceback": []}
        }))
        .unwrap();
        let result = result("a", &record);
        assert_eq!(result.status, JobStatus::Error);
        assert_eq!(result.error.as_deref(), Some("EngineError: engine 3 died"));
    }
}
