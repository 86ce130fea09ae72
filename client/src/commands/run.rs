//! `ipclient run`: job lines in, the same lines with their results out.

use std::io::{BufWriter, IsTerminal, Stdout, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Args;
use ipbroker_client::job::{Job, JobResult, write_line};
use jiff::tz::TimeZone;

use super::{Outcome, stats};
use crate::cli::{ClusterArgs, JobArgs, LocalArgs, size};
use crate::failure::Failure;
use crate::local::{self, LocalCluster};
use crate::output::progress::Progress;
use crate::runner::{Options, Printer, Runner, Slot, Summary};
use crate::source::{self, Line};

/// Run jobs, one JSON object a line; each comes back with its result as it ends
#[derive(Debug, Args)]
#[command(after_help = "\
Keys of a job: cmd (the command, for bash), cd, out, err (files), host (list), and: id, after, follow (lists of ids), \
any, on (success, failure, always), timeout, retries, prefer, prefer_wait, tags, priority, require, env, stdin, limit, \
capture, scratch, put (files to send before, as a list or {\"here\": \"there\"}), get (files to fetch after, as a list or \
{\"there\": \"here\"}; a job with either runs in a directory of its own unless it has cd). Other keys are kept. The same object comes back with `result`: code, submitted, started, completed, \
received, elapsed, engine_id, host, pyerr, pyout, status (ok, error, aborted), msg_id, error.

The exit status is 0 if every job ended with code 0, 130 after Ctrl-C.

Example:
  echo '{\"cmd\": \"sort big.txt\", \"out\": \"sorted.txt\"}' | ipclient run --local 4
  ipclient run jobs.json > results.json")]
pub(crate) struct RunArgs {
    /// File of jobs, checked whole before any is run; `-` or none: standard input, run as it comes
    #[arg(value_name = "FILE")]
    file: Option<PathBuf>,
    /// Give each job that names none its own files DIR/N.out and DIR/N.err (N: its id or line)
    #[arg(long, value_name = "DIR")]
    outdir: Option<PathBuf>,
    /// Put up to BYTES (64K) of stdout and of stderr into the result
    #[arg(long, value_name = "BYTES", num_args = 0..=1, require_equals = true, default_missing_value = "64K", value_parser = size)]
    capture: Option<u64>,
    /// Refuse jobs that would have to wait for engines, hosts or tags
    #[arg(long)]
    no_wait: bool,
    /// Print the tables of `ipclient stats` on stderr at the end
    #[arg(long)]
    stats: bool,
    #[command(flatten)]
    jobs: JobArgs,
    #[command(flatten)]
    local: LocalArgs,
}

pub(crate) fn main(args: RunArgs, cluster: &ClusterArgs) -> Outcome {
    let streaming = source::is_stream(args.file.as_deref());
    let outdir = args.outdir.as_deref().map(OutDir::new).transpose()?;
    // A file is looked at before a cluster is bothered.
    let jobs = match &args.file {
        Some(file) if !streaming => {
            let mut jobs = source::read_file(file)?;
            if let Some(outdir) = &outdir {
                jobs.iter_mut().for_each(|job| outdir.apply(job));
            }
            Some(jobs)
        }
        _ => None,
    };
    if let Some(jobs) = &jobs {
        // Cycles and unknown ids, too.
        ipbroker_client::job::Graph::new(&source::name(args.file.as_ref()), jobs)
            .map_err(|error| Failure::usage(format!("{error}; nothing was submitted")))?;
    }
    let (client, private) = local::connect(&args.local, cluster)?;
    let zone = TimeZone::system();
    let options = Options {
        cwd: cwd()?,
        jobs: args.jobs,
        capture: args.capture,
        no_wait: args.no_wait,
        coming: args.local.local,
        pulse: private.as_ref().map(LocalCluster::pulse),
        source: source::name(args.file.as_ref()),
    };
    let progress = Progress::new(true, &zone);
    let mut printer = Lines::new(zone);
    let runner = Runner::new(client.clone(), options, progress, &mut printer)?;
    let summary = match jobs {
        Some(jobs) => runner.run_all(jobs)?,
        None => {
            let lines = source::stream();
            match outdir {
                None => runner.run_stream(lines)?,
                Some(outdir) => runner.run_stream(with_outdir(lines, outdir))?,
            }
        }
    };
    if args.stats && !summary.hurried {
        stats::report(&client);
    }
    end(summary, client, private)
}

/// The directory that jobs run in unless they say otherwise.
pub(crate) fn cwd() -> Result<String, Failure> {
    // The way the user came, where it is right: /home/me/data rather than what it is a link to.
    let real = std::env::current_dir()
        .map_err(|error| Failure::new(format!("the working directory cannot be found: {error}")))?;
    let dir = std::env::var_os("PWD")
        .map(PathBuf::from)
        .filter(|dir| dir.is_absolute() && dir.canonicalize().is_ok_and(|found| found == real))
        .unwrap_or(real);
    dir.into_os_string().into_string().map_err(|dir| {
        Failure::new(format!(
            "the working directory {} is not UTF-8",
            dir.to_string_lossy()
        ))
    })
}

/// Stops what was started, and the exit status.
pub(crate) fn end(
    summary: Summary,
    client: ipbroker_client::Client,
    private: Option<LocalCluster>,
) -> Outcome {
    if summary.hurried {
        if let Some(private) = private {
            private.abandon();
        }
        let _ = std::io::stdout().flush();
        std::process::exit(128 + summary.signal.unwrap_or(2));
    }
    drop(client);
    drop(private);
    Ok(match summary.signal {
        Some(signal) => ExitCode::from(128 + signal as u8),
        None if summary.failed > 0 => ExitCode::FAILURE,
        None => ExitCode::SUCCESS,
    })
}

/// `--outdir`.
struct OutDir(String);

impl OutDir {
    fn new(dir: &Path) -> Result<Self, Failure> {
        let problem = |error| Failure::usage(format!("--outdir {}: {error}", dir.display()));
        std::fs::create_dir_all(dir).map_err(problem)?;
        let dir = dir.canonicalize().map_err(problem)?;
        dir.into_os_string()
            .into_string()
            .map(Self)
            .map_err(|_| Failure::usage("--outdir: its path is not UTF-8"))
    }

    fn apply(&self, job: &mut Job) {
        let name = match &job.id {
            Some(id) => id.replace(['/', '\0'], "_"),
            None => job.line.to_string(),
        };
        let dir = &self.0;
        job.out.get_or_insert_with(|| format!("{dir}/{name}.out"));
        job.err.get_or_insert_with(|| format!("{dir}/{name}.err"));
    }
}

fn with_outdir(
    lines: crossbeam_channel::Receiver<Vec<Line>>,
    outdir: OutDir,
) -> crossbeam_channel::Receiver<Vec<Line>> {
    let (sender, receiver) = crossbeam_channel::bounded(1);
    let _ = std::thread::Builder::new()
        .name("outdir".into())
        .spawn(move || {
            for mut batch in lines {
                for line in &mut batch {
                    if let Line::Job(job) = line {
                        outdir.apply(job);
                    }
                }
                if sender.send(batch).is_err() {
                    return;
                }
            }
        });
    receiver
}

/// Result lines on the standard output.
pub(crate) struct Lines {
    zone: TimeZone,
    out: BufWriter<Stdout>,
    line: String,
    terminal: bool,
}

impl Lines {
    pub(crate) fn new(zone: TimeZone) -> Self {
        let out = std::io::stdout();
        let terminal = out.is_terminal();
        Self {
            zone,
            out: BufWriter::with_capacity(1 << 17, out),
            line: String::new(),
            terminal,
        }
    }
}

impl Printer for Lines {
    fn finished(&mut self, slot: &Slot, result: &JobResult) -> std::io::Result<()> {
        self.line.clear();
        write_line(
            &slot.text,
            slot.has_result,
            result,
            &self.zone,
            &mut self.line,
        );
        self.out.write_all(self.line.as_bytes())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.out.flush()
    }

    fn shares_terminal(&self) -> bool {
        self.terminal
    }
}
