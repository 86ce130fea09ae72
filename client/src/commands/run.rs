//! `ipclient run`: job lines in, the same lines with their results out.

use std::collections::HashMap;
use std::collections::hash_map::DefaultHasher;
use std::fs::File;
use std::hash::{Hash, Hasher};
use std::io::{BufWriter, IsTerminal, Stdout, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::sync::{Arc, Mutex, PoisonError};

use clap::{Args, ValueEnum};
use crossbeam_channel::Receiver;
use ipbroker_client::job::{Job, JobResult, write_line};
use ipbroker_client::protocol::spawn;
use jiff::tz::TimeZone;

use super::{Outcome, stats};
use crate::cli::{ClusterArgs, EndArgs, JobArgs, LocalArgs, size};
use crate::failure::Failure;
use crate::local::{self, LocalCluster};
use crate::locate::{Locate, LocateArgs};
use crate::output::progress::{Detail, Progress};
use crate::resume::{Jobs, Next, Rerun, Resume};
use crate::runner::halt::Halt;
use crate::runner::{Options, Printer, Runner, Slot, Summary};
use crate::source::{self, Line};

/// Run jobs, one JSON object a line; each comes back with its result as it ends
#[derive(Debug, Args)]
#[command(mut_arg("tags", |tags| tags.alias("tag")), after_help = "\
Keys of a job: cmd (the command, for bash), cd, out, err (files), host (list), and: id, after, follow (lists of ids), \
any, on (success, failure, always), timeout, retries, retry_delay, max_crashes, prefer, prefer_wait, tags, priority, require, unmet_exit, \
cpus, gpus, memory, resources ({\"name\": amount}), any (alternatives of these), nodes (whole hosts), time, env, stdin, limit, capture, scratch, creates and needs (files: run only if one of creates is missing, or older than one of needs), put (files to send before, as a list or {\"here\": \"there\"}), get (files to fetch after, as a list or \
{\"there\": \"here\"}; a job with either runs in a directory of its own unless it has cd). Other keys are yours and come back. The same object comes back with `result`: code, submitted, started, completed, \
received, elapsed, engine_id, host, pyerr, pyout, status (ok, error, aborted), msg_id, error.

The exit status is 0 if every job ended with code 0, 130 after Ctrl-C.

Example:
  echo '{\"cmd\": \"sort big.txt\", \"out\": \"sorted.txt\"}' | ipclient run --local 4
  ipclient run jobs.json > results.json
  ipclient run jobs.json --results results.json   # once more does what is left")]
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
    /// Append the results to FILE, and do not run again what has its result there (see --rerun)
    #[arg(long, value_name = "FILE")]
    results: Option<PathBuf>,
    /// Which of the jobs that have a result in --results are run again [default: failed]
    #[arg(long, value_name = "WHICH", requires = "results", value_enum)]
    rerun: Option<Rerun>,
    /// When a job has failed: go on, start no other job, or also stop those that run
    #[arg(long, value_name = "WHAT", value_enum, default_value_t)]
    on_fail: OnFail,
    /// Refuse jobs that would have to wait for engines, hosts, tags or resources that none has
    #[arg(long)]
    no_wait: bool,
    #[command(flatten)]
    end: EndArgs,
    #[command(flatten)]
    jobs: JobArgs,
    #[command(flatten)]
    locate: LocateArgs,
    #[command(flatten)]
    local: LocalArgs,
}

/// What the first failure of a job means for the others.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub(crate) enum OnFail {
    /// Nothing: all are run
    #[default]
    Continue,
    /// What no engine has taken yet is not run
    Stop,
    /// The same, and what runs is stopped
    Kill,
}

pub(crate) fn main(args: RunArgs, cluster: &ClusterArgs) -> Outcome {
    let streaming = source::is_stream(args.file.as_deref());
    let name = source::name(args.file.as_deref());
    let mut outdir = args.outdir.as_deref().map(OutDir::new).transpose()?;
    // A file is looked at before a cluster is bothered: cycles and unknown ids, too.
    let file = args.file.as_deref().filter(|_| !streaming);
    let jobs = file.map(|file| read(file, outdir.as_mut())).transpose()?;
    let graph = jobs.as_ref().map(|jobs| source::graph(&name, jobs));
    let graph = graph.transpose()?;
    let mut resume = open_results(&args, jobs.as_deref())?;
    let mut jobs = match (jobs, &graph, &mut resume) {
        (Some(jobs), Some(graph), Some(resume)) => Some(resume.filter(graph, jobs)),
        (jobs, ..) => jobs.map(Jobs::from),
    };
    if let (Some(jobs), Some(resume)) = (&jobs, &resume) {
        resume.tell(jobs.jobs.len());
        if jobs.jobs.is_empty() {
            let code = u8::from(resume.failed > 0);
            notify(&args.end, resume.done, resume.failed, code);
            return Ok(ExitCode::from(code));
        }
    }
    let mut locate = args.locate.locate();
    for job in jobs.iter_mut().flat_map(|jobs| &mut jobs.jobs) {
        locate.prefer_inputs(job);
    }
    let (client, private) = local::connect(&args.local, cluster)?;
    if let (Some(resume), None) = (&resume, &private) {
        resume.stop_earlier(&client);
    }
    let zone = TimeZone::system();
    let options = Options {
        cwd: cwd()?,
        again: again(&args),
        jobs: args.jobs,
        capture: args.capture,
        no_wait: args.no_wait,
        coming: args.local.engines(),
        pulse: private.as_ref().map(LocalCluster::pulse),
        source: name,
        unit: "line",
        halt: match args.on_fail {
            OnFail::Continue => None,
            OnFail::Stop => Some(Halt::at_failure(false)),
            OnFail::Kill => Some(Halt::at_failure(true)),
        },
        peek: std::io::stderr().is_terminal(),
        ..Options::default()
    };
    let progress = Progress::new(Some(Detail::Jobs), &zone);
    let results = resume.as_ref().map(Resume::file).transpose()?;
    let mut printer = Lines::new(zone, results);
    let runner = Runner::new(client.clone(), options, progress, &mut printer)?;
    let resume = Arc::new(Mutex::new(resume));
    let mut summary = match jobs {
        Some(jobs) => runner.run_all(jobs)?,
        None => runner.run_stream(changed(source::stream(), outdir, resume.clone(), locate))?,
    };
    if let Some(resume) = &*resume.lock().unwrap_or_else(PoisonError::into_inner) {
        summary.failed += resume.failed;
        if streaming {
            resume.tell(summary.total as usize);
        }
    }
    end(&args.end, summary, client, private)
}

/// The jobs of a file, with the files of `--outdir`.
fn read(file: &Path, outdir: Option<&mut OutDir>) -> Result<Vec<Job>, Failure> {
    let mut jobs = source::read_file(file)?;
    if let Some(outdir) = outdir {
        for job in &mut jobs {
            outdir.apply(job).map_err(|why| {
                let name = source::name(Some(file));
                Failure::usage(format!("{name}:{}: {why}; nothing was submitted", job.line))
            })?;
        }
    }
    Ok(jobs)
}

/// How what failed is run again.
fn again(args: &RunArgs) -> &'static str {
    match (&args.results, args.rerun.unwrap_or_default()) {
        (Some(_), Rerun::Failed) => "the same command once more runs only these and what is new",
        (Some(_), _) => "the same command with --rerun failed runs only these and what is new",
        (None, _) => {
            "with --results FILE from the first run on, the same command once more runs only what is left"
        }
    }
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
    args: &EndArgs,
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
    if args.stats {
        stats::report(&client);
    }
    drop(client);
    drop(private);
    let code = match (summary.signal, summary.halted) {
        (Some(signal), _) => 128 + signal as u8,
        (None, Some(code)) => code,
        (None, None) => u8::from(summary.failed > 0),
    };
    notify(args, summary.total, summary.failed, code);
    Ok(ExitCode::from(code))
}

/// `--notify`
fn notify(args: &EndArgs, jobs: u64, failed: u64, code: u8) {
    let ran = match args.notify.as_deref() {
        None => return,
        Some("bell") => {
            eprint!("\x07");
            return;
        }
        Some(command) => Command::new("/bin/sh")
            .args(["-c", command])
            .env("IPBROKER_JOBS", jobs.to_string())
            .env("IPBROKER_FAILED", failed.to_string())
            .env("IPBROKER_STATUS", code.to_string())
            .stdin(Stdio::null())
            // Ours is for results.
            .stdout(std::io::stderr())
            .status(),
    };
    match ran {
        Ok(status) if status.success() => {}
        Ok(status) => eprintln!("ipclient: --notify: the command ended with {status}"),
        Err(error) => eprintln!("ipclient: --notify: /bin/sh: {error}"),
    }
}

/// `--outdir`.
struct OutDir {
    dir: String,
    /// Hashes of the names that were given, and the lines that have them: a stream may have millions.
    taken: HashMap<u64, u64>,
}

impl OutDir {
    fn new(dir: &Path) -> Result<Self, Failure> {
        let problem = |error| Failure::usage(format!("--outdir {}: {error}", dir.display()));
        std::fs::create_dir_all(dir).map_err(problem)?;
        let dir = dir.canonicalize().map_err(problem)?;
        dir.into_os_string()
            .into_string()
            .map(|dir| Self {
                dir,
                taken: HashMap::new(),
            })
            .map_err(|_| Failure::usage("--outdir: its path is not UTF-8"))
    }

    /// Two jobs with files of one name would lose what one of them writes.
    fn apply(&mut self, job: &mut Job) -> Result<(), String> {
        if job.out.is_some() && job.err.is_some() {
            return Ok(());
        }
        let name = match &job.id {
            Some(id) => id.replace(['/', '\0'], "_"),
            None => job.line.to_string(),
        };
        let mut hasher = DefaultHasher::new();
        name.hash(&mut hasher);
        if let Some(line) = self.taken.insert(hasher.finish(), job.line) {
            return Err(format!(
                "its output would go into the same files {name}.out and {name}.err of --outdir as that of line {line}: give it another id"
            ));
        }
        let dir = &self.dir;
        job.out.get_or_insert_with(|| format!("{dir}/{name}.out"));
        job.err.get_or_insert_with(|| format!("{dir}/{name}.err"));
        Ok(())
    }
}

/// `--results`: never the file of jobs itself.
fn open_results(args: &RunArgs, jobs: Option<&[Job]>) -> Result<Option<Resume>, Failure> {
    let Some(results) = &args.results else {
        return Ok(None);
    };
    let same = |file: &PathBuf| Some(file.canonicalize().ok()? == results.canonicalize().ok()?);
    if args.file.as_ref().and_then(same) == Some(true) {
        return Err(Failure::usage(format!(
            "--results {}: this is the file of jobs: name another one",
            results.display()
        )));
    }
    Resume::open(results, args.rerun.unwrap_or_default(), jobs).map(Some)
}

/// The lines of a stream with the files of `--outdir` and the hosts of `--locate`, without what has its result already.
fn changed(
    lines: Receiver<Vec<Line>>,
    mut outdir: Option<OutDir>,
    resume: Arc<Mutex<Option<Resume>>>,
    mut locate: Locate,
) -> Receiver<Vec<Line>> {
    let (sender, receiver) = crossbeam_channel::bounded(1);
    let mut change = move |line| {
        let Line::Job(mut job) = line else {
            return Some(line);
        };
        if let Some(Err(why)) = outdir.as_mut().map(|outdir| outdir.apply(&mut job)) {
            return Some(Line::Refused(job, why));
        }
        let mut resume = resume.lock().unwrap_or_else(PoisonError::into_inner);
        match resume
            .as_mut()
            .map_or(Next::Run, |resume| resume.next(&mut job))
        {
            Next::Run => {
                locate.prefer_inputs(&mut job);
                Some(Line::Job(job))
            }
            Next::Impossible(why) => Some(Line::Refused(job, why)),
            Next::Done => None,
        }
    };
    let _ = spawn("lines", move || {
        for batch in lines {
            let batch: Vec<Line> = batch.into_iter().filter_map(&mut change).collect();
            if !batch.is_empty() && sender.send(batch).is_err() {
                return;
            }
        }
    });
    receiver
}

/// Result lines, in the file of `--results` and on the standard output.
pub(crate) struct Lines {
    zone: TimeZone,
    out: Option<BufWriter<Stdout>>,
    results: Option<File>,
    line: String,
    terminal: bool,
}

impl Lines {
    pub(crate) fn new(zone: TimeZone, results: Option<File>) -> Self {
        let out = std::io::stdout();
        let terminal = out.is_terminal();
        // What is in a file need not run over the screen.
        let out = (!terminal || results.is_none()).then(|| BufWriter::with_capacity(1 << 17, out));
        Self {
            zone,
            out,
            results,
            line: String::new(),
            terminal,
        }
    }
}

impl Printer for Lines {
    fn finished(&mut self, slot: &Slot, result: &JobResult) -> std::io::Result<()> {
        let copy = slot.copy;
        let result = match copy {
            Some(_) => &JobResult {
                copy,
                ..result.clone()
            },
            None => result,
        };
        self.line.clear();
        write_line(
            &slot.text,
            slot.has_result,
            result,
            &self.zone,
            &mut self.line,
        );
        // At once and whole: whoever kills us has this result.
        if let Some(results) = &mut self.results {
            let written = results.write_all(self.line.as_bytes());
            written.map_err(|error| {
                std::io::Error::new(error.kind(), format!("--results: {error}"))
            })?;
        }
        match &mut self.out {
            Some(out) => out.write_all(self.line.as_bytes()),
            None => Ok(()),
        }
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.out.as_mut().map_or(Ok(()), Write::flush)
    }

    fn shares_terminal(&self) -> bool {
        self.terminal
    }
}
