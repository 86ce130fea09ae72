//! `ipclient submit`: hand jobs over and go.

use std::collections::{HashMap, VecDeque};
use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use crossbeam_channel::{Receiver, Sender, select};
use ipbroker_client::job::Job;
use ipbroker_client::protocol::message::types;
use ipbroker_client::{Client, Error, IMPOSSIBLE, Notice, Outgoing, Part, Sink};

use super::{Outcome, run};
use crate::cli::{ClusterArgs, JobArgs, size};
use crate::failure::Failure;
use crate::runner::files::{self, Files};
use crate::runner::{Options, Seen};
use crate::source::{self, Line};

/// Hand jobs over to the controller and print their ids, a line each, once it holds them
#[derive(Debug, Args)]
#[command(mut_arg("tags", |tags| tags.alias("tag")), after_help = "\
Jobs are lines as for `ipclient run`. They outlive this program: see `ipclient wait` and `ipclient results`.

Files that `put` names are read and sent now; those that `get` names stay with the controller, as part of the result, until \
`ipclient results` writes them.

Example:
  ipclient submit jobs.json > ids
  ipclient wait $(cat ids) && ipclient results $(cat ids)")]
pub(crate) struct SubmitArgs {
    /// File of jobs, checked whole before any is submitted; `-` or none: standard input
    #[arg(value_name = "FILE")]
    file: Option<PathBuf>,
    /// Keep up to BYTES (64K) of stdout and of stderr for the result
    #[arg(long, value_name = "BYTES", num_args = 0..=1, require_equals = true, default_missing_value = "64K", value_parser = size)]
    capture: Option<u64>,
    #[command(flatten)]
    jobs: JobArgs,
}

/// Tells which submissions are safe.
struct Acks(Sender<u64>);

impl Sink for Acks {
    fn deliver(&self, tag: u64, _: Part) {
        // A result is the best of acknowledgements.
        let _ = self.0.send(tag);
    }

    fn acked(&self, tag: u64) {
        let _ = self.0.send(tag);
    }
}

struct Submitter {
    client: Client,
    options: Options,
    sink: Arc<Acks>,
    files: Files,
    /// Whether the controller keeps results; none: not asked yet.
    keeps: Option<bool>,
    names: HashMap<String, String>,
    /// Ids in order, and whether each is acknowledged; the first not printed has tag `printed`.
    ids: VecDeque<(String, bool)>,
    printed: u64,
}

pub(crate) fn main(args: SubmitArgs, cluster: &ClusterArgs) -> Outcome {
    let name = source::name(args.file.as_deref());
    let file = match &args.file {
        Some(path) if !source::is_stream(Some(path)) => {
            let jobs = source::read_file(path)?;
            let graph = source::graph(&name, &jobs)?;
            Some((jobs, graph))
        }
        _ => None,
    };
    let cwd = run::cwd()?;
    for job in file.iter().flat_map(|(jobs, _)| jobs) {
        files::look(&cwd, job).map_err(|error| {
            Failure::usage(format!(
                "{name}:{}: {error}; nothing was submitted",
                job.line
            ))
        })?;
    }
    let client = cluster.connect()?;
    let options = Options {
        cwd,
        jobs: args.jobs,
        capture: args.capture,
        source: name,
        ..Options::default()
    };
    let (sender, acks) = crossbeam_channel::unbounded();
    let sink = Arc::new(Acks(sender));
    let mut submitter = Submitter {
        client,
        options,
        sink,
        files: Files::default(),
        keeps: None,
        names: HashMap::new(),
        ids: VecDeque::new(),
        printed: 0,
    };
    let mut bad = 0u64;
    match file {
        Some((jobs, graph)) => {
            // Ids are printed in the order of submission: what others depend on first.
            for level in &graph.levels {
                for &at in level {
                    let job = &jobs[at];
                    submitter
                        .submit(job)?
                        .map_err(|error| submitter.at(job, &error))?;
                }
            }
        }
        None => {
            let lines = source::stream();
            let mut seen = Seen::default();
            let mut open = true;
            while open {
                select! {
                    recv(lines) -> batch => match batch {
                        Ok(batch) => for line in batch {
                            bad += u64::from(!submitter.take(line, &mut seen)?);
                        },
                        Err(_) => open = false,
                    },
                    recv(acks) -> tag => submitter.acknowledged(tag.into_iter())?,
                }
            }
        }
    }
    submitter.wait(&acks)?;
    Ok(ExitCode::from(u8::from(bad > 0)))
}

impl Submitter {
    /// False: the line is no job, and its writer has been told.
    fn take(&mut self, line: Line, seen: &mut Seen) -> Result<bool, Failure> {
        let error = match line {
            Line::Job(job) => match seen.check(&job, &self.options) {
                Ok(()) => match self.submit(&job)? {
                    Ok(()) => return Ok(true),
                    Err(error) => self.at(&job, &error).message,
                },
                Err(error) => error,
            },
            Line::Refused(job, error) => self.at(&job, &error).message,
            Line::Bad { error, .. } => error.to_string(),
        };
        eprintln!("ipclient: {error}");
        Ok(false)
    }

    /// An error that belongs to a job's line.
    fn at(&self, job: &Job, error: &str) -> Failure {
        Failure::usage(format!("{}:{}: {error}", self.options.source, job.line))
    }

    /// The inner error: the job's inputs cannot be had.
    fn submit(&mut self, job: &Job) -> Result<Result<(), String>, Failure> {
        let sent = match job.placement.impossible(&self.names) {
            Some(why) => Err(format!("{IMPOSSIBLE}: {why}")),
            None => self.send(job)?,
        };
        if let (Err(_), Some(name)) = (&sent, &job.id) {
            self.names.entry(name.clone()).or_default();
        }
        Ok(sent)
    }

    fn send(&mut self, job: &Job) -> Result<Result<(), String>, Failure> {
        let inputs = self
            .files
            .stage_detached(&self.client, &self.options.cwd, job);
        let (put, buffers) = match inputs {
            Ok(inputs) => inputs,
            Err(reason) => return Ok(Err(reason)),
        };
        let mut metadata = self.options.request(&job.placement, &self.names);
        metadata.detach = true;
        metadata.job = Some(job.text.to_string());
        if !job.get.is_empty() {
            if !self.results_are_kept()? {
                return Ok(Err(
                    "get: this controller keeps no results (--nodb), so that the files could never be fetched: use `ipclient run`".into(),
                ));
            }
            metadata.job_dir = Some(self.options.cwd.clone());
        }
        let mut command = self.options.command(job);
        command.put = put;
        let task = Outgoing {
            msg_type: types::COMMAND_REQUEST,
            metadata: &metadata,
            content: &command,
            buffers,
            tag: self.printed + self.ids.len() as u64,
        };
        let id = match self.client.submit(task, self.sink.clone()) {
            Err(error @ Error::TooLarge { .. }) => return Ok(Err(error.to_string())),
            sent => sent?,
        };
        if let Some(name) = &job.id {
            self.names.insert(name.clone(), id.clone());
        }
        self.ids.push_back((id, false));
        Ok(Ok(()))
    }

    fn results_are_kept(&mut self) -> Result<bool, Failure> {
        if self.keeps.is_none() {
            let status = self.client.status()?;
            let store = status.get("store");
            self.keeps = Some(store.is_none_or(|store| store["backend"] != "none"));
        }
        Ok(self.keeps == Some(true))
    }

    fn acknowledged(&mut self, tags: impl Iterator<Item = u64>) -> Result<(), Failure> {
        for tag in tags {
            // A result that comes after its acknowledgement says nothing new.
            let Some(at) = tag.checked_sub(self.printed) else {
                continue;
            };
            if let Some((_, acked)) = self.ids.get_mut(at as usize) {
                *acked = true;
            }
        }
        let mut out = std::io::stdout().lock();
        while self.ids.front().is_some_and(|(_, acked)| *acked) {
            if let Some((id, _)) = self.ids.pop_front() {
                writeln!(out, "{id}")?;
                self.printed += 1;
            }
        }
        Ok(out.flush()?)
    }

    fn wait(&mut self, acks: &Receiver<u64>) -> Result<(), Failure> {
        while !self.ids.is_empty() {
            let first = acks.recv_timeout(Duration::from_millis(500)).ok();
            self.acknowledged(first.into_iter().chain(acks.try_iter()))?;
            for notice in self.client.take_notices() {
                let count = self.ids.len();
                match &notice {
                    Notice::Gone(_) => {
                        eprintln!("ipclient: {notice}: {count} jobs are not acknowledged yet")
                    }
                    Notice::ShutDown => {
                        return Err(Failure::new(format!(
                            "{notice}; {count} jobs were not acknowledged"
                        )));
                    }
                    _ => eprintln!("ipclient: {notice}"),
                }
            }
        }
        Ok(())
    }
}
