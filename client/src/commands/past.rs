//! Runs of the past, from the controller's history: what `ipclient trace` and `ipclient report` draw.

use std::collections::{HashMap, HashSet};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Args;
use ipbroker_client::protocol::array::{View, member_id, split_id};
use ipbroker_client::protocol::dependency::Dependency;
use ipbroker_client::protocol::kind::{of_command, of_name, plain};
use ipbroker_client::protocol::message::CommandResult;
use ipbroker_client::protocol::session::Packer;
use ipbroker_client::protocol::time;
use ipbroker_client::protocol::value::AnyMap;
use ipbroker_client::{Client, PastReply, Record};
use jiff::Timestamp;
use rangemap::RangeSet;
use serde_json::{Map, Value, json};

use super::Outcome;
use super::results::{CHUNK, result};
use crate::cli::ClusterArgs;
use crate::failure::Failure;
use crate::output::{cut, plural};

/// Which tasks of the history.
#[derive(Debug, Args)]
pub(crate) struct PastArgs {
    /// Ids of tasks; none: all that the controller has a record of
    #[arg(value_name = "ID", conflicts_with = "since")]
    ids: Vec<String>,
    /// Only what was submitted in the last while (90s, 10m, 2h, 3d) or after a date (2026-11-28T20:00:00Z)
    #[arg(long, value_name = "WHEN", value_parser = since)]
    since: Option<Timestamp>,
    /// File to write; `-`: standard output
    #[arg(short, long, value_name = "FILE")]
    output: PathBuf,
}

/// Draws the tasks that were asked for into a file, and says which: `then` is what to do with it.
pub(crate) fn draw(
    args: &PastArgs,
    cluster: &ClusterArgs,
    then: &str,
    content: impl FnOnce(&[Run], &mut dyn Write) -> std::io::Result<()>,
) -> Outcome {
    let runs = runs(&cluster.connect()?, args)?;
    if write(&args.output, |out| content(&runs, out))? {
        let (tasks, file) = (plural(tasks(&runs), "task"), args.output.display());
        eprintln!("ipclient: {tasks} in {file}{then}");
    }
    Ok(ExitCode::SUCCESS)
}

/// Writes a file whole, or standard output; whether it was a file.
fn write(
    path: &Path,
    content: impl FnOnce(&mut dyn Write) -> std::io::Result<()>,
) -> Result<bool, Failure> {
    if path.as_os_str() == "-" {
        let mut out = BufWriter::new(std::io::stdout().lock());
        content(&mut out)?;
        out.flush()?;
        return Ok(false);
    }
    let failed =
        |error: std::io::Error| Failure::new(format!("cannot write {}: {error}", path.display()));
    let mut out = BufWriter::new(std::fs::File::create(path).map_err(failed)?);
    content(&mut out)
        .and_then(|()| out.flush())
        .map_err(failed)?;
    Ok(true)
}

/// `--since`.
fn since(text: &str) -> Result<Timestamp, String> {
    if let Some(date) = time::parse(text) {
        return Ok(date);
    }
    // A number alone may as well be meant as a date.
    let has_unit = text.ends_with(|c: char| c.is_ascii_alphabetic());
    time::parse_duration(text)
        .filter(|ago| has_unit && (0.0..1e9).contains(ago))
        .map(|ago| time::shifted(Timestamp::now(), -ago))
        .ok_or_else(|| {
            "a while like 90s, 10m, 2h, 3d, or a date like 2026-11-28T20:00:00Z".to_owned()
        })
}

/// How a task ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum End {
    Ok,
    Failed,
    Aborted,
    /// It has not, as far as the history knows.
    #[default]
    Open,
}

impl End {
    pub(crate) fn word(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Failed => "failed",
            Self::Aborted => "aborted",
            Self::Open => "unfinished",
        }
    }

    fn of(word: &str) -> Self {
        match word {
            "ok" => Self::Ok,
            "aborted" => Self::Aborted,
            _ => Self::Failed,
        }
    }
}

/// A task, or members of an array of functions that an engine ran in one go. Times are seconds since 1970.
#[derive(Debug, Clone, Default)]
pub(crate) struct Run {
    pub(crate) id: String,
    /// How many.
    pub(crate) count: u64,
    /// It in a line.
    pub(crate) name: String,
    /// Of what kind it is: its program, or its function.
    pub(crate) kind: String,
    pub(crate) submitted: f64,
    /// When it began, if it did, and when it ended.
    pub(crate) ran: Option<(f64, f64)>,
    pub(crate) engine: Option<u32>,
    pub(crate) host: String,
    pub(crate) end: End,
    /// The last line of what a failed one said.
    pub(crate) said: String,
    /// Ids of the tasks that it waited for.
    pub(crate) after: Vec<String>,
}

impl Run {
    pub(crate) fn seconds(&self) -> f64 {
        self.ran
            .map_or(0.0, |(begun, ended)| (ended - begun).max(0.0))
    }
}

/// How many tasks these are.
pub(crate) fn tasks(runs: &[Run]) -> u64 {
    runs.iter().map(|run| run.count).sum()
}

/// When the first of them was submitted.
pub(crate) fn begin(runs: &[Run]) -> f64 {
    let submitted = runs.iter().map(|run| run.submitted);
    submitted.fold(f64::INFINITY, f64::min)
}

/// How many more wait and run from which moment on, in the order of time.
pub(crate) fn steps<'a>(runs: impl IntoIterator<Item = &'a Run>) -> Vec<(f64, i64, i64)> {
    let mut steps = Vec::new();
    for run in runs {
        let count = i64::try_from(run.count).unwrap_or(i64::MAX);
        steps.push((run.submitted, count, 0));
        match run.ran {
            Some((begun, ended)) => steps.extend([(begun, -count, 1), (ended, 0, -1)]),
            None if run.end == End::Open => {}
            // It may have ended without having run.
            None => steps.push((run.submitted, -count, 0)),
        }
    }
    steps.sort_by(|a, b| a.0.total_cmp(&b.0));
    steps
}

/// Tasks by id; of an array, which members if not all.
type Wanted = HashMap<String, Option<Vec<u64>>>;

/// The tasks that were asked for, in the order in which they were submitted.
fn runs(client: &Client, args: &PastArgs) -> Result<Vec<Run>, Failure> {
    let (mut runs, mut arrays) = (Vec::new(), Vec::new());
    let wanted = find(client, args, &mut |record| match record.members() {
        Some(_) => arrays.push(record),
        None => runs.push(task(&record)),
    })?;
    if runs.is_empty() && arrays.is_empty() {
        return Err(Failure::new(
            "the controller has no record of any such task: nothing to report",
        ));
    }
    for record in &arrays {
        let id = id_of(record);
        let members = array(client, id, record)?;
        let only = wanted.get(id).and_then(Option::as_ref);
        runs.extend(members.into_iter().filter(|run| {
            match (only, split_id(&run.id).1) {
                (Some(only), Some(index)) => only
                    .iter()
                    .any(|at| (index..index + run.count).contains(at)),
                _ => true,
            }
        }));
    }
    runs.sort_by(|a, b| a.submitted.total_cmp(&b.submitted));
    Ok(runs)
}

/// Finds the records of the tasks that were asked for; a member has that of its array.
fn find(
    client: &Client,
    args: &PastArgs,
    found: &mut dyn FnMut(Record),
) -> Result<Wanted, Failure> {
    let keys = [
        "msg_id",
        "header",
        "metadata",
        "content",
        "submitted",
        "received",
        "engine_uuid",
        "result_metadata",
        "result_content",
        "result_header",
        "completed",
        "started",
        "label",
    ];
    let mut wanted = Wanted::new();
    if args.ids.is_empty() {
        let submitted = match args.since {
            Some(since) => json!({"$gte": time::utc(since)}),
            None => json!({"$ne": null}),
        };
        let query = Map::from_iter([("submitted".to_owned(), submitted)]);
        for part in client.records_in_parts(&query, &keys) {
            part?.into_iter().for_each(&mut *found);
        }
        return Ok(wanted);
    }
    for id in &args.ids {
        match split_id(id) {
            (array, Some(index)) => {
                let members = wanted.entry(array.to_owned());
                if let Some(members) = members.or_insert_with(|| Some(Vec::new())) {
                    members.push(index);
                }
            }
            (id, None) => {
                wanted.insert(id.to_owned(), None);
            }
        }
    }
    let mut known = HashSet::new();
    let ids: Vec<&String> = wanted.keys().collect();
    for chunk in ids.chunks(CHUNK) {
        let query = Map::from_iter([("msg_id".to_owned(), json!({"$in": chunk}))]);
        for record in client.records(&query, &keys)? {
            known.insert(id_of(&record).to_owned());
            found(record);
        }
    }
    if let Some(missing) = args.ids.iter().find(|id| !known.contains(split_id(id).0)) {
        return Err(Failure::new(format!(
            "the controller has no record of {missing} (a task that nobody knows, or --nodb)"
        )));
    }
    Ok(wanted)
}

fn id_of(record: &Record) -> &str {
    text(&record.extra, "msg_id")
}

fn seconds(date: Option<Timestamp>) -> Option<f64> {
    date.map(|date| date.as_nanosecond() as f64 / 1e9)
}

fn parsed(text: Option<&str>) -> Option<f64> {
    seconds(time::parse(text?))
}

fn text<'a>(map: &'a Map<String, Value>, key: &str) -> &'a str {
    map.get(key).and_then(Value::as_str).unwrap_or_default()
}

fn number(map: &Map<String, Value>, key: &str) -> Option<u32> {
    u32::try_from(map.get(key)?.as_u64()?).ok()
}

/// Characters of a line that fit into a table.
const SHOWN: usize = 160;

fn line(text: &str) -> String {
    let line = text.lines().map(str::trim).find(|line| !line.is_empty());
    shown(line.unwrap_or_default())
}

fn last_line(text: &str) -> String {
    let line = text.lines().map(str::trim).rfind(|line| !line.is_empty());
    shown(line.unwrap_or_default())
}

fn shown(line: &str) -> String {
    cut(line, SHOWN).chars().map(plain).collect()
}

/// What was asked for.
fn content(record: &Record) -> Option<&Map<String, Value>> {
    record.extra.get("content")?.as_object()
}

/// Its type, without what all requests have.
fn asked(record: &Record) -> &str {
    let kind = text(&record.header, "msg_type");
    kind.strip_suffix("_request").unwrap_or(kind)
}

/// A task in a line: its command, the name of its function, its label, or its kind.
fn name(content: Option<&Map<String, Value>>, record: &Record) -> String {
    let label = record.extra.get("label").and_then(Value::as_str);
    ["cmd", "name", "code"]
        .iter()
        .map(|key| line(content.map_or("", |content| text(content, key))))
        .chain(label.map(line))
        .find(|line| !line.is_empty())
        .unwrap_or_else(|| asked(record).to_owned())
}

/// Of what kind it is, as a sample of the cluster says.
fn kind(content: Option<&Map<String, Value>>, record: &Record) -> String {
    let text = |key| content.map_or("", |content| text(content, key));
    match (text("cmd"), text("name")) {
        ("", "") => asked(record).to_owned(),
        ("", name) => of_name(name),
        (cmd, _) => of_command(cmd),
    }
}

/// What it waited for.
fn after(record: &Record) -> Vec<String> {
    let ids = |key: &str| {
        let value = record.metadata.get(key).cloned().unwrap_or_default();
        serde_json::from_value::<Dependency>(value)
            .unwrap_or_default()
            .ids
    };
    let mut all = ids("after");
    all.extend(ids("follow"));
    all
}

/// An ordinary task.
fn task(record: &Record) -> Run {
    let id = id_of(record);
    let result = result(id, record);
    let extra = |key: &str| record.extra.get(key).and_then(Value::as_str);
    let begun = seconds(result.started).or_else(|| parsed(extra("started")));
    let ended = seconds(result.completed).or_else(|| parsed(extra("completed")));
    let end = match extra("completed") {
        None => End::Open,
        Some(_) if result.success() => End::Ok,
        Some(_)
            if text(&record.result_content, "status") == "aborted"
                || text(&record.result_metadata, "status") == "aborted" =>
        {
            End::Aborted
        }
        Some(_) => End::Failed,
    };
    Run {
        id: id.to_owned(),
        count: 1,
        name: name(content(record), record),
        kind: kind(content(record), record),
        submitted: seconds(result.submitted).unwrap_or(0.0),
        ran: begun.zip(ended),
        engine: result.engine_id.and_then(|id| u32::try_from(id).ok()),
        host: result.host.clone().unwrap_or_default(),
        end,
        said: if end == End::Failed {
            words(&record.result_content)
        } else {
            String::new()
        },
        after: after(record),
    }
}

/// The last line of what a failed task said.
fn words(content: &Map<String, Value>) -> String {
    let error = match (text(content, "ename"), last_line(text(content, "evalue"))) {
        ("", evalue) => evalue,
        (ename, evalue) => format!("{ename}: {evalue}"),
    };
    [error, last_line(text(content, "stderr"))]
        .into_iter()
        .find(|said| !said.is_empty())
        .or_else(|| Some(format!("exit code {}", content.get("code")?.as_i64()?)))
        .unwrap_or_else(|| "failed".to_owned())
}

/// The members of an array.
fn array(client: &Client, id: &str, record: &Record) -> Result<Vec<Run>, Failure> {
    let count = record.members().unwrap_or(0);
    let submitted = parsed(record.submitted.as_deref())
        .or_else(|| parsed(record.header.get("date").and_then(Value::as_str)))
        .unwrap_or(0.0);
    let after = after(record);
    let request = client.request_buffers(id)?;
    let arguments = match &request[..] {
        [offsets, blob] => View::new(offsets, blob, count).ok(),
        _ => None,
    };
    let run = |index: u64, count: u64| {
        let own = arguments.and_then(|view| unpack(view.get(usize::try_from(index).ok()?)));
        let own = own.filter(|own| own.contains_key("cmd"));
        Run {
            id: member_id(id, index),
            count,
            name: name(own.as_ref().or_else(|| content(record)), record),
            kind: kind(own.as_ref().or_else(|| content(record)), record),
            submitted,
            after: after.clone(),
            ..Run::default()
        }
    };
    let mut runs = Vec::new();
    let mut open = RangeSet::new();
    if count > 0 {
        open.insert(0..count);
    }
    // The last word on a member counts: a reply that came late is the one before.
    for reply in client.replies(&[id.to_owned()])?.iter().rev() {
        let (lo, hi) = reply.range;
        if lo >= hi {
            continue;
        }
        for part in open.overlapping(lo..hi) {
            let members = (part.start.max(lo), part.end.min(hi));
            answered(reply, members, &run, &mut runs);
        }
        open.remove(lo..hi);
    }
    runs.extend(open.into_iter().flatten().map(|index| run(index, 1)));
    Ok(runs)
}

/// Members `lo..hi` as a reply tells of them.
fn answered(
    reply: &PastReply,
    (lo, hi): (u64, u64),
    run: &dyn Fn(u64, u64) -> Run,
    runs: &mut Vec<Run>,
) {
    let metadata = &reply.metadata;
    let same = metadata.get("same").and_then(Value::as_bool) == Some(true);
    let values = match &reply.frames[..] {
        [offsets, blob] => {
            let count = if same {
                1
            } else {
                reply.range.1 - reply.range.0
            };
            View::new(offsets, blob, count).ok()
        }
        _ => None,
    };
    let failed: HashMap<u64, String> = metadata
        .get("failed")
        .and_then(|failed| serde_json::from_value::<Vec<(u64, String)>>(failed.clone()).ok())
        .unwrap_or_default()
        .into_iter()
        .collect();
    let whole =
        parsed(Some(text(metadata, "started"))).zip(parsed(Some(text(metadata, "completed"))));
    let dressed = |mut run: Run| {
        run.engine = number(metadata, "engine_id");
        run.host = text(metadata, "host").to_owned();
        run.end = End::of(&reply.outcome);
        run
    };
    let commands = values.is_some_and(|values| {
        !values.is_empty()
            && unpack(values.get(0)).is_some_and(|value| value.contains_key("started"))
    });
    if !commands && failed.is_empty() {
        let mut run = dressed(run(lo, hi - lo));
        run.ran = whole;
        if run.end == End::Failed {
            run.said = words(&reply.content);
        }
        runs.push(run);
        return;
    }
    for index in lo..hi {
        let mut run = dressed(run(index, 1));
        let at = if same { 0 } else { index - reply.range.0 };
        let value = values.and_then(|values| unpack(values.get(usize::try_from(at).ok()?)));
        if !failed.is_empty() {
            run.end = failed.get(&index).map_or(End::Ok, |word| End::of(word));
        }
        if let Some(value) = value {
            if matches!(run.end, End::Failed) {
                run.said = words(&value);
            }
            if let Ok(result) = serde_json::from_value::<CommandResult>(value.into()) {
                run.ran =
                    parsed(result.started.as_deref()).zip(parsed(result.completed.as_deref()));
                run.engine = result.engine_id.or(run.engine);
                run.host = result.host.unwrap_or(run.host);
            }
        }
        runs.push(run);
    }
}

/// What a member of an array was asked.
pub(crate) fn unpack(bytes: &[u8]) -> Option<Map<String, Value>> {
    let packer = if bytes.first() == Some(&b'{') {
        Packer::Json
    } else {
        Packer::Msgpack
    };
    packer.unpack::<AnyMap>(bytes).ok().map(|AnyMap(map)| map)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whiles_and_dates() {
        let now = Timestamp::now();
        let ago = now.as_second() - since("2h").unwrap().as_second();
        assert!((7199..=7201).contains(&ago), "{ago}");
        let date = since("2026-11-28T20:00:00Z").unwrap();
        assert_eq!(time::utc(date), "2026-11-28T20:00:00.000000Z");
        for bad in ["", "h", "2", "-3s", "ä", "1e99d"] {
            assert!(since(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn names_cannot_steer_what_shows_them() {
        assert_eq!(line("\n a \u{202e}b\x1b[2J\nc"), "a  b [2J");
        assert_eq!(last_line("a\nb\u{2066}\x07c\n"), "b  c");
    }

    #[test]
    fn a_reply_about_functions_is_one_stretch() {
        let reply = PastReply {
            range: (0, 10),
            outcome: "ok".into(),
            metadata: serde_json::from_value(json!({
                "started": "2026-01-01T00:00:00Z", "completed": "2026-01-01T00:00:02Z", "engine_id": 3, "host": "h"
            }))
            .unwrap(),
            ..PastReply::default()
        };
        let run = |index: u64, count| Run {
            id: index.to_string(),
            count,
            ..Run::default()
        };
        let mut runs = Vec::new();
        answered(&reply, (4, 10), &run, &mut runs);
        let [run] = &runs[..] else { panic!("{runs:?}") };
        assert_eq!(
            (run.count, run.engine, run.seconds(), run.end),
            (6, Some(3), 2.0, End::Ok)
        );
    }
}
