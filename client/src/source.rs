//! Where jobs come from: a file, checked whole before anything is submitted, or a stream, job by job.

use std::io::{BufRead, BufReader, Read};
use std::path::Path;

use crossbeam_channel::{Receiver, Sender};
use ipbroker_client::job::{Graph, Job, JobError, LineError, parse_line};
use ipbroker_client::protocol::spawn;

use crate::failure::Failure;

/// Jobs that a stream hands over at once, at most.
const BATCH: usize = 1000;

/// A line of a stream: a job, or what was wrong with it and how it read.
pub(crate) enum Line {
    Job(Box<Job>),
    /// A job that cannot be run, and why.
    Refused(Box<Job>, String),
    Bad {
        line: u64,
        text: String,
        error: JobError,
    },
}

/// `-` and nothing mean the standard input.
pub(crate) fn is_stream(file: Option<&Path>) -> bool {
    file.is_none_or(|file| file == Path::new("-"))
}

/// The name of a source in messages.
pub(crate) fn name(file: Option<&Path>) -> String {
    match file {
        Some(path) if !is_stream(file) => path.display().to_string(),
        _ => "stdin".into(),
    }
}

/// The order of jobs that depend on each other: unknown ids and cycles are refused.
pub(crate) fn graph(name: &str, jobs: &[Job]) -> Result<Graph, Failure> {
    Graph::new(name, jobs)
        .map_err(|error| Failure::usage(format!("{error}; nothing was submitted")))
}

/// Reads all jobs of a file; one bad line, and there are none.
pub(crate) fn read_file(path: &Path) -> Result<Vec<Job>, Failure> {
    let name = path.display().to_string();
    let bytes = if is_stream(Some(path)) {
        let mut bytes = Vec::new();
        std::io::stdin().read_to_end(&mut bytes).map(|_| bytes)
    } else {
        std::fs::read(path)
    }
    .map_err(|error| Failure::usage(format!("{name}: {error}")))?;
    parse(&name, &bytes)
}

/// What some editors write before the first line.
const BOM: &[u8] = "\u{feff}".as_bytes();

fn parse(name: &str, bytes: &[u8]) -> Result<Vec<Job>, Failure> {
    let bytes = bytes.strip_prefix(BOM).unwrap_or(bytes);
    let mut jobs = Vec::new();
    let mut first = None;
    let mut bad = 0u64;
    for (number, line) in (1..).zip(bytes.split(|b| *b == b'\n')) {
        if line.trim_ascii().is_empty() {
            continue;
        }
        match parse_line(number, line) {
            Ok(job) => jobs.push(job),
            Err(error) => {
                bad += 1;
                first.get_or_insert(JobError {
                    file: name.to_owned(),
                    line: number,
                    error,
                });
            }
        }
    }
    match first {
        None => {
            if let Some(job) = jobs.iter().find(|job| job.own_key.is_some()) {
                tell_own_key(name, job);
            }
            Ok(jobs)
        }
        Some(error) => {
            let more = match bad - 1 {
                0 => String::new(),
                1 => " (and 1 more bad line)".to_owned(),
                n => format!(" (and {n} more bad lines)"),
            };
            // What a list of commands looks like.
            let plain = jobs.is_empty() && matches!(error.error, LineError::NotJson(_));
            let hint = match plain && !bytes.trim_ascii_start().starts_with(b"{") {
                true => format!(" (plain commands, one a line: `ipclient map :::: {name}`)"),
                false => String::new(),
            };
            Err(Failure::usage(format!(
                "{error}{more}; nothing was submitted{hint}"
            )))
        }
    }
}

/// Said once: all lines may have the same.
fn tell_own_key(name: &str, job: &Job) {
    if let Some(key) = &job.own_key {
        eprintln!(
            "ipclient: {name}:{}: {key:?} means nothing to ipclient; it comes back with the result",
            job.line
        );
    }
}

/// Reads the standard input on a thread of its own. What has been typed so far is handed over at once; the channel is
/// short, so that a fast writer waits for slow jobs.
pub(crate) fn stream() -> Receiver<Vec<Line>> {
    let (sender, receiver) = crossbeam_channel::bounded(8);
    // The thread ends with its input or its listener; a blocked read ends with the process.
    let _ = spawn("stdin", move || read_stream(std::io::stdin(), &sender));
    receiver
}

fn read_stream(input: impl Read, sender: &Sender<Vec<Line>>) {
    let mut input = BufReader::with_capacity(1 << 18, input);
    let mut number = 0;
    let mut batch = Vec::new();
    let mut text = Vec::new();
    let mut told = false;
    loop {
        text.clear();
        let end = !matches!(input.read_until(b'\n', &mut text), Ok(n) if n > 0);
        if !end {
            number += 1;
            let text = text
                .strip_prefix(BOM)
                .filter(|_| number == 1)
                .unwrap_or(&text);
            if let Some(line) = one(number, text) {
                if let Line::Job(job) = &line
                    && job.own_key.is_some()
                    && !std::mem::replace(&mut told, true)
                {
                    tell_own_key("stdin", job);
                }
                batch.push(line);
            }
        }
        let more = !end && input.buffer().contains(&b'\n') && batch.len() < BATCH;
        if !more && !batch.is_empty() && sender.send(std::mem::take(&mut batch)).is_err() {
            return;
        }
        if end {
            return;
        }
    }
}

fn one(number: u64, text: &[u8]) -> Option<Line> {
    let text = text.trim_ascii();
    if text.is_empty() {
        return None;
    }
    Some(match parse_line(number, text) {
        Ok(job) => Line::Job(Box::new(job)),
        Err(error) => Line::Bad {
            line: number,
            text: String::from_utf8_lossy(text).into_owned(),
            error: JobError {
                file: "stdin".into(),
                line: number,
                error,
            },
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_good_or_refused_whole() {
        let jobs = parse("f", b"{\"cmd\":\"a\"}\n\n  \n{\"cmd\":\"b\"}").unwrap();
        assert_eq!(jobs.iter().map(|job| job.line).collect::<Vec<_>>(), [1, 4]);
        let failure = parse("f.json", b"{\"cmd\":\"a\"}\noops\n{}\n").unwrap_err();
        assert_eq!(
            failure.to_string(),
            "f.json:2: not JSON: a job is an object like {\"cmd\": \"…\"} (and 1 more bad line); nothing was submitted"
        );
        assert_eq!(failure.code, 2);
    }

    #[test]
    fn a_stream_hands_over_good_and_bad_lines() {
        let (sender, receiver) = crossbeam_channel::unbounded();
        read_stream(&b"{\"cmd\":\"a\"}\nbad\n\n{\"cmd\":\"b\"}"[..], &sender);
        drop(sender);
        let lines: Vec<Line> = receiver.iter().flatten().collect();
        let numbers: Vec<(u64, bool)> = lines
            .iter()
            .map(|line| match line {
                Line::Job(job) => (job.line, true),
                Line::Refused(job, _) => (job.line, false),
                Line::Bad { line, .. } => (*line, false),
            })
            .collect();
        assert_eq!(numbers, [(1, true), (2, false), (4, true)]);
    }
}
