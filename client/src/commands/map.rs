//! `ipclient map`: one command for many arguments.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io::{BufRead, BufReader, IsTerminal, Read, Write};
use std::path::{Path, PathBuf};

use clap::Args;
use ipbroker_client::job::{Job, JobResult, JobStatus};
use jiff::tz::TimeZone;
use serde_json::json;

use super::{Outcome, run, stats};
use crate::cli::{ClusterArgs, JobArgs, LocalArgs, size};
use crate::failure::Failure;
use crate::local::{self, LocalCluster};
use crate::output::progress::Progress;
use crate::runner::{Options, Printer, Runner, Slot};
use crate::source::Line;
use crate::template::Template;

/// Run a command once for each argument, and print what each prints, whole, as it ends
#[derive(Debug, Args)]
#[command(
    override_usage = "ipclient map [OPTIONS] COMMAND ::: ARGUMENT...\n       ipclient map [OPTIONS] --each-line FILE COMMAND",
    after_help = "\
In COMMAND, {} is the argument, {.} the argument without its extension, {/} its last component, {//} its directory, \
{/.} its last component without extension, {#} the number of the job; without any of these the argument comes last. \
Arguments are quoted for the shell.

The exit status is 0 if every job ended with code 0, 130 after Ctrl-C.

Example:
  ipclient map 'gzip -k {}' ::: *.txt
  ls | ipclient map --local 4 -k --each-line - 'wc -l <{} >{.}.count'"
)]
pub(crate) struct MapArgs {
    /// The command, with placeholders (several words are joined by blanks)
    #[arg(value_name = "COMMAND", required = true)]
    command: Vec<String>,
    /// Take the arguments from the lines of FILE (`-`: standard input, as they come)
    #[arg(long, value_name = "FILE")]
    each_line: Option<PathBuf>,
    /// Print in the order of the arguments
    #[arg(short, long)]
    keep_order: bool,
    /// Print result lines, as `ipclient run` does, with the output in `stdout` and `stderr`
    #[arg(long)]
    json: bool,
    /// Bytes of output to keep of each job
    #[arg(long, value_name = "BYTES", default_value = "64M", value_parser = size)]
    max_output: u64,
    /// Fail at once if there are no engines, instead of waiting for them
    #[arg(long)]
    no_wait: bool,
    #[command(flatten)]
    local: LocalArgs,
    /// Print the tables of `ipclient stats` on stderr at the end
    #[arg(long)]
    stats: bool,
    #[command(flatten)]
    jobs: JobArgs,
}

pub(crate) fn main(args: MapArgs, cluster: &ClusterArgs, data: Option<Vec<OsString>>) -> Outcome {
    let template = Template::new(&args.command.join(" "));
    let jobs = match (&args.each_line, data) {
        (None, None) => {
            return Err(Failure::usage(
                "no arguments: add `::: ARGUMENT...` or --each-line FILE (see `ipclient map --help`)",
            ));
        }
        (Some(_), Some(_)) => {
            return Err(Failure::usage(
                "either `:::` or --each-line, not both (see `ipclient map --help`)",
            ));
        }
        (None, Some(data)) => Some(from_arguments(&template, data)?),
        (Some(file), None) if file != Path::new("-") => {
            let text = std::fs::read(file)
                .map_err(|error| Failure::usage(format!("{}: {error}", file.display())))?;
            let text = String::from_utf8(text)
                .map_err(|_| Failure::usage(format!("{}: not UTF-8 text", file.display())))?;
            Some(
                (1..)
                    .zip(text.lines())
                    .map(|(number, line)| job(&template, number, line))
                    .collect(),
            )
        }
        (Some(_), None) => None,
    };
    let (client, private) = local::connect(&args.local, cluster)?;
    let zone = TimeZone::system();
    let options = Options {
        cwd: run::cwd()?,
        jobs: args.jobs,
        capture: Some(args.max_output),
        no_wait: args.no_wait,
        coming: args.local.local,
        pulse: private.as_ref().map(LocalCluster::pulse),
        source: if jobs.is_some() {
            "map".into()
        } else {
            "stdin".into()
        },
    };
    let progress = Progress::new(false, &zone);
    let mut lines;
    let mut outputs;
    let mut ordered;
    let mut printer: &mut dyn Printer = if args.json {
        lines = run::Lines::new(zone);
        &mut lines
    } else {
        outputs = Outputs {
            terminal: std::io::stdout().is_terminal(),
        };
        &mut outputs
    };
    if args.keep_order {
        ordered = Ordered {
            inner: printer,
            next: 0,
            early: BTreeMap::new(),
        };
        printer = &mut ordered;
    }
    let runner = Runner::new(client.clone(), options, progress, printer)?;
    let summary = match jobs {
        Some(jobs) => runner.run_all(jobs)?,
        None => runner.run_stream(stream(template))?,
    };
    if args.stats && !summary.hurried {
        stats::report(&client);
    }
    run::end(summary, client, private)
}

fn from_arguments(template: &Template, data: Vec<OsString>) -> Result<Vec<Job>, Failure> {
    if data.iter().any(|argument| {
        [":::", ":::+", "::::", "::::+"]
            .iter()
            .any(|sign| argument == sign)
    }) {
        return Err(Failure::usage(
            "only one `:::` is known: combine the arguments before (see `ipclient map --help`)",
        ));
    }
    (1..)
        .zip(data)
        .map(|(number, argument)| {
            let argument = argument.into_string().map_err(|argument| {
                Failure::usage(format!(
                    "argument {} is not UTF-8",
                    argument.to_string_lossy()
                ))
            })?;
            Ok(job(template, number, &argument))
        })
        .collect()
}

fn job(template: &Template, number: u64, argument: &str) -> Job {
    let cmd = template.expand(argument, number);
    let text = json!({ "cmd": cmd, "arg": argument }).to_string().into();
    Job {
        line: number,
        text,
        cmd,
        ..Job::default()
    }
}

/// Arguments from the standard input, a line each, as they come.
fn stream(template: Template) -> crossbeam_channel::Receiver<Vec<Line>> {
    let (sender, receiver) = crossbeam_channel::bounded(8);
    let _ = std::thread::Builder::new()
        .name("stdin".into())
        .spawn(move || read_arguments(&template, std::io::stdin(), &sender));
    receiver
}

fn read_arguments(
    template: &Template,
    input: impl Read,
    sender: &crossbeam_channel::Sender<Vec<Line>>,
) {
    let mut input = BufReader::with_capacity(1 << 17, input);
    let (mut number, mut batch, mut text) = (0, Vec::new(), Vec::new());
    loop {
        text.clear();
        let end = !matches!(input.read_until(b'\n', &mut text), Ok(n) if n > 0);
        if !end {
            number += 1;
            let line = text.strip_suffix(b"\n").unwrap_or(&text);
            let argument = String::from_utf8_lossy(line);
            batch.push(Line::Job(Box::new(job(template, number, &argument))));
        }
        let more = !end && input.buffer().contains(&b'\n') && batch.len() < 1000;
        if !more && !batch.is_empty() && sender.send(std::mem::take(&mut batch)).is_err() {
            return;
        }
        if end {
            return;
        }
    }
}

/// What jobs print, to where they would have printed it.
struct Outputs {
    terminal: bool,
}

impl Printer for Outputs {
    fn finished(&mut self, slot: &Slot, result: &JobResult) -> std::io::Result<()> {
        if let Some(stdout) = &result.stdout {
            std::io::stdout().lock().write_all(stdout.as_bytes())?;
        }
        let mut err = std::io::stderr().lock();
        if let Some(stderr) = &result.stderr {
            let _ = err.write_all(stderr.as_bytes());
        }
        if result.truncated {
            let _ = writeln!(
                err,
                "ipclient: job {}: its output is longer than --max-output: {}",
                slot.line, slot.cmd
            );
        }
        if result.status != JobStatus::Ok {
            let why = result.error.as_deref().unwrap_or(result.status.as_str());
            let _ = writeln!(err, "ipclient: job {}: {why}: {}", slot.line, slot.cmd);
        }
        Ok(())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        std::io::stdout().flush()
    }

    fn shares_terminal(&self) -> bool {
        self.terminal
    }
}

/// Holds back what comes before its turn.
struct Ordered<'a> {
    inner: &'a mut dyn Printer,
    next: u64,
    early: BTreeMap<u64, (Slot, JobResult)>,
}

impl Printer for Ordered<'_> {
    fn finished(&mut self, slot: &Slot, result: &JobResult) -> std::io::Result<()> {
        if slot.index != self.next {
            self.early
                .insert(slot.index, (slot.clone(), result.clone()));
            return Ok(());
        }
        self.inner.finished(slot, result)?;
        self.next += 1;
        while let Some((slot, result)) = self.early.remove(&self.next) {
            self.inner.finished(&slot, &result)?;
            self.next += 1;
        }
        Ok(())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.inner.flush()
    }

    fn end(&mut self) -> std::io::Result<()> {
        // After an interruption there are gaps: what finished is printed all the same.
        for (slot, result) in std::mem::take(&mut self.early).into_values() {
            self.inner.finished(&slot, &result)?;
        }
        self.inner.end()
    }

    fn shares_terminal(&self) -> bool {
        self.inner.shares_terminal()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Default)]
    struct Seen(Vec<u64>);

    impl Printer for Seen {
        fn finished(&mut self, slot: &Slot, _: &JobResult) -> std::io::Result<()> {
            self.0.push(slot.index);
            Ok(())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
        fn shares_terminal(&self) -> bool {
            false
        }
    }

    #[test]
    fn order_is_kept() {
        let mut seen = Seen::default();
        let mut ordered = Ordered {
            inner: &mut seen,
            next: 0,
            early: BTreeMap::new(),
        };
        let slot = |index| Slot {
            index,
            line: index + 1,
            text: "".into(),
            has_result: false,
            cmd: "".into(),
        };
        for index in [2, 0, 3, 1, 5, 7] {
            ordered
                .finished(&slot(index), &JobResult::default())
                .unwrap();
        }
        ordered.end().unwrap();
        assert_eq!(seen.0, [0, 1, 2, 3, 5, 7]);
    }

    #[test]
    fn a_second_source_is_refused_and_no_argument() {
        for sign in [":::", ":::+", "::::", "::::+"] {
            let data = ["a", sign, "b"].map(OsString::from).to_vec();
            let refused = from_arguments(&Template::new("echo"), data).unwrap_err();
            assert!(refused.to_string().starts_with("only one `:::`"), "{sign}");
        }
    }

    #[test]
    fn lines_become_jobs() {
        let (sender, receiver) = crossbeam_channel::unbounded();
        read_arguments(&Template::new("echo {} {#}"), &b"a b\n\nc"[..], &sender);
        drop(sender);
        let commands: Vec<String> = receiver
            .iter()
            .flatten()
            .map(|line| match line {
                Line::Job(job) => job.cmd,
                Line::Bad { .. } => unreachable!(),
            })
            .collect();
        assert_eq!(commands, ["echo 'a b' 1", "echo '' 2", "echo c 3"]);
    }
}
