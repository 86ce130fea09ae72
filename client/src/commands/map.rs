//! `ipclient map`: one command for many arguments, as GNU parallel runs it.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::atomic::Ordering;
use std::time::Duration;

use clap::Args;
use crossbeam_channel::Receiver;
use ipbroker_client::job::{Job, Transfer};
use ipbroker_client::protocol::spawn;
use ipbroker_client::protocol::time;
use jiff::tz::TimeZone;
use rand::seq::SliceRandom;
use serde_json::json;

use super::{Outcome, run};
use crate::blocks::{Blocks, PipeArgs};
use crate::cli::{ClusterArgs, EndArgs, JobArgs, LocalArgs, size};
use crate::failure::Failure;
use crate::inputs::{InputArgs, Record, Records};
use crate::joblog::{Joblog, Skip};
use crate::local::{self, LocalCluster};
use crate::locate::{Locate, LocateArgs};
use crate::output;
use crate::output::jobs::{Directory, Logged, Ordered, Outputs};
use crate::output::progress::{Detail, Progress};
use crate::runner::{Options, Printer, Runner, halt};
use crate::source::Line;
use crate::template::{Style, Template, Values};

/// Run a command once for each argument, and print what each prints, whole, as it ends
#[derive(Debug, Args)]
#[command(
    args_override_self = true,
    override_usage = "ipclient map [OPTIONS] COMMAND ::: ARGUMENT...\n       ipclient map [OPTIONS] -a FILE COMMAND\n       … | ipclient map [OPTIONS] COMMAND",
    after_help = "\
In COMMAND, {} is the argument, {.} the argument without its extension, {/} its last component, {//} its directory, \
{/.} its last component without extension, {#} the number of the job, {%} that of the engine, {1} {2} {-1} {2.} {1/} … \
the arguments of several sources or columns one by one; without any of these the arguments come last. Arguments are \
quoted for the shell. Without COMMAND each argument is a command. `:::` may come several times: every argument of one \
source with every one of the others; `:::+` links a source to the one before; `::::` and `::::+` read files.

docs/coming-from/parallel.md says what is as in GNU parallel and what is not.

The exit status is 0 if every job ended with code 0, 130 after Ctrl-C, and with --halt that of the job that ended it.

Example:
  ipclient map 'gzip -k {}' ::: *.txt
  ls | ipclient map --local 4 -k 'wc -l <{} >{.}.count'
  ipclient map 'convert -size {1}x{2} in.png out-{1}-{2}.png' ::: 100 200 ::: 300 400"
)]
pub(crate) struct MapArgs {
    /// What stands from the first `:::` or its like on.
    #[arg(skip)]
    pub(crate) data: Option<Vec<OsString>>,
    /// The command, with replacement strings (several words are joined by blanks)
    #[arg(value_name = "COMMAND")]
    command: Vec<String>,
    /// Print in the order of the arguments
    #[arg(short, long, alias = "keeporder")]
    keep_order: bool,
    /// Print the arguments and a tab before each line of output
    #[arg(long)]
    tag: bool,
    /// Print this, with replacement strings, and a tab before each line of output
    #[arg(long, value_name = "TEXT", conflicts_with = "tag")]
    tagstring: Option<String>,
    /// Print the lines of jobs that run as they come, not each job's output whole as it ends
    #[arg(long, visible_aliases = ["lb", "ungroup"], aliases = ["linebuffer", "line-buffered"],  short = 'u', conflicts_with_all = ["json", "results"])]
    line_buffer: bool,
    /// Write the output into files below DIR, a directory for each argument, and print nothing; with replacement
    /// strings: into the file of this name, and this with .err
    #[arg(long, value_name = "DIR", conflicts_with_all = ["json", "tag", "tagstring"])]
    results: Option<String>,
    /// Print result lines, as `ipclient run` does, with the output in `stdout` and `stderr`
    #[arg(long, conflicts_with_all = ["tag", "tagstring"])]
    json: bool,
    /// Print each job's output whole: this is so in any case, but for --line-buffer
    #[arg(long, aliases = ["will-cite", "no-notice", "gnu"])]
    group: bool,
    /// Print the commands instead of running them
    #[arg(long, alias = "dryrun")]
    dry_run: bool,
    /// Print each command on stdout before its output
    #[arg(short)]
    verbose: bool,
    /// Print each command on stderr before its output
    #[arg(
        short = 't',
        long = "verbose",
        alias = "trace",
        conflicts_with = "verbose"
    )]
    trace: bool,
    /// Bytes of output to keep of each job
    #[arg(long, value_name = "BYTES", default_value = "64M", value_parser = size)]
    max_output: u64,
    /// Also without a terminal, say on stderr every second how far it is
    #[arg(long, visible_alias = "eta", alias = "progress")]
    bar: bool,
    /// Another word for {}
    #[arg(short = 'I', long, value_name = "WORD")]
    replace: Option<String>,
    /// Know {..} {...} {/..} {/...} {+/} {+.} {+..} {+...} {##}, too
    #[arg(long)]
    plus: bool,
    /// Quote the words of the command for the shell
    #[arg(short, long)]
    quote: bool,
    #[command(flatten)]
    input: InputArgs,
    #[command(flatten)]
    pipe: PipeArgs,
    #[command(flatten)]
    running: RunningArgs,
    #[command(flatten)]
    end: EndArgs,
    #[command(flatten)]
    local: LocalArgs,
    #[command(flatten)]
    jobs: JobArgs,
    #[command(flatten)]
    locate: LocateArgs,
}

/// How the jobs are run.
#[derive(Debug, Args)]
#[command(next_help_heading = "Running")]
struct RunningArgs {
    /// Run at most N jobs at a time, or jobs on N% of the engines, on all but N (-N), on all (0) [default: 0]
    #[arg(short = 'j', visible_short_alias = 'P', long = "jobs", alias = "max-procs", value_name = "N", value_parser = slots, allow_negative_numbers = true)]
    slots: Option<Slots>,
    /// Give the rest up when so many jobs have failed (succeeded, ended): now,fail=1, soon,success=10%, soon,done=3, never;
    /// now: what runs is stopped
    #[arg(long, alias = "halt-on-error", value_name = "WHEN", value_parser = halt::parse, allow_hyphen_values = true, default_value = "never", hide_default_value = true)]
    halt: std::option::Option<halt::Halt>,
    /// Time between the starts of jobs: seconds, or 90s, 15m, 2h
    #[arg(long, value_name = "TIME", value_parser = time::duration)]
    delay: Option<Duration>,
    /// Write a line for each job that ends, in GNU parallel's format
    #[arg(long, value_name = "FILE")]
    joblog: Option<PathBuf>,
    /// Leave out jobs that are in the --joblog (known by their numbers)
    #[arg(long, requires = "joblog")]
    resume: bool,
    /// Leave out jobs that ended well according to the --joblog
    #[arg(long, requires = "joblog", conflicts_with = "resume")]
    resume_failed: bool,
    /// Set this variable (or exported function) for the jobs as it is here (may be repeated)
    #[arg(long, value_name = "NAME")]
    env: Vec<String>,
    /// Send this file, with replacement strings, before the job; it then runs in a directory of its own (may be repeated)
    #[arg(long, visible_aliases = ["transfer-file", "basefile"], value_name = "FILE")]
    transferfile: Vec<String>,
    /// Fetch this file, with replacement strings, after the job, which runs in a directory of its own (may be repeated)
    #[arg(long = "return", value_name = "FILE")]
    returned: Vec<String>,
    /// Remove the files that were sent and fetched: this is done in any case
    #[arg(long)]
    cleanup: bool,
    /// --transferfile {} --return FILE --cleanup
    #[arg(long, value_name = "FILE")]
    trc: Vec<String>,
    /// Fail at once if there are no engines, instead of waiting for them
    #[arg(long)]
    no_wait: bool,
}

/// Short options that other programs have, too.
const SHORT: &str = "0CEILNPXadjlmnqrtuv";

/// Whether a short option after the command is the command's or ours nobody can tell, unless the command is one word with
/// blanks in it.
pub(crate) fn check_order(
    words: &[OsString],
    matches: &clap::ArgMatches,
) -> Result<(), clap::Error> {
    let first = matches
        .get_raw("command")
        .and_then(|mut command| command.next())
        .filter(|first| !first.to_string_lossy().contains(char::is_whitespace));
    let mut after = words
        .iter()
        .map(OsString::as_os_str)
        .skip_while(|word| *word != "map");
    let Some(first) = first.filter(|first| after.any(|word| word == *first)) else {
        return Ok(());
    };
    let before_end = |word: &&std::ffi::OsStr| *word != "--";
    let ambiguous = |word: &std::ffi::OsStr| {
        let text = word.to_string_lossy();
        let short = text.strip_prefix('-').and_then(|rest| rest.chars().next());
        short
            .is_some_and(|short| SHORT.contains(short))
            .then(|| text.into_owned())
    };
    let ended = words.iter().any(|word| word == "--");
    match after
        .take_while(before_end)
        .find_map(ambiguous)
        .filter(|_| !ended)
    {
        None => Ok(()),
        Some(option) => Err(clap::Error::raw(
            clap::error::ErrorKind::ArgumentConflict,
            format!(
                "{option} after the command may be its own: put it before the command, or quote the command: '{} {option} …'\n",
                first.to_string_lossy()
            ),
        )),
    }
}

/// An error that an option of the command's own may have made says so.
pub(crate) fn explain_order(
    error: clap::Error,
    words: &[OsString],
    map: &clap::Command,
) -> clap::Error {
    let takes_value = |word: &str| {
        let is_meant = |arg: &&clap::Arg| match word.strip_prefix("--") {
            Some(long) => arg
                .get_long_and_visible_aliases()
                .is_some_and(|names| names.contains(&long)),
            // The last of several in one word.
            None => (arg.get_short_and_visible_aliases())
                .is_some_and(|names| word.chars().next_back().is_some_and(|c| names.contains(&c))),
        };
        let arg = map.get_arguments().find(is_meant);
        word.starts_with('-') && arg.is_some_and(|arg| arg.get_action().takes_values())
    };
    let words: Vec<_> = words.iter().map(|word| word.to_string_lossy()).collect();
    let start = words
        .iter()
        .position(|word| word == "map")
        .map_or(0, |at| at + 1);
    let command = (start..words.len())
        .find(|&at| !words[at].starts_with('-') && !takes_value(&words[at - 1]));
    let own = command.filter(|&at| !words[at].contains(char::is_whitespace));
    match own.and_then(|at| words[at..].iter().find(|word| word.starts_with('-'))) {
        Some(option) if error.exit_code() != 0 && option != "--" => clap::Error::raw(
            error.kind(),
            format!(
                "{option} after the command may be its own: put it before the command, or quote the command\n"
            ),
        ),
        _ => error,
    }
}

/// How many jobs run at a time.
#[derive(Debug, Clone, Copy)]
enum Slots {
    All,
    Count(usize),
    /// All but so many.
    But(usize),
    Percent(f64),
}

impl Slots {
    /// Of so many engines; none: of as many as there will be.
    fn of(self, engines: usize) -> Option<usize> {
        match self {
            Self::All => None,
            Self::Count(count) => Some(count),
            Self::But(count) => Some(engines.saturating_sub(count).max(1)),
            Self::Percent(part) if part >= 100.0 => None,
            Self::Percent(part) => Some(((engines as f64 * part / 100.0) as usize).max(1)),
        }
    }
}

fn slots(text: &str) -> Result<Slots, String> {
    let number = |text: &str| text.parse::<usize>().ok();
    let slots = match (text.strip_suffix('%'), text.chars().next()) {
        (Some(part), _) => (part.parse().ok().filter(|part| *part > 0.0)).map(Slots::Percent),
        (_, Some('+')) => number(&text[1..]).map(|_| Slots::All),
        (_, Some('-')) => number(&text[1..]).map(Slots::But),
        _ => number(text).map(|count| match count {
            0 => Slots::All,
            count => Slots::Count(count),
        }),
    };
    slots.ok_or_else(|| "a number of jobs is needed, or a part of the engines like 50%".to_owned())
}

/// The jobs, and whether they come only with time.
struct Jobs {
    jobs: Box<dyn Iterator<Item = Result<Job, Failure>> + Send>,
    streaming: bool,
}

/// What is filled in for each job.
struct Templates {
    command: Template,
    context: bool,
    put: Vec<Template>,
    get: Vec<Template>,
    env: BTreeMap<String, String>,
    locate: Locate,
}

pub(crate) fn main(mut args: Box<MapArgs>, cluster: &ClusterArgs) -> Outcome {
    let records = args.records()?;
    let cut = records.as_ref().map(|records| records.cut.clone());
    let names = records
        .as_ref()
        .map_or_else(Vec::new, |records| records.names.clone());
    let style = Style {
        whole: args.replace.as_deref(),
        plus: args.plus,
        names: &names,
        quoted: false,
    };
    let templates = args.templates(&style)?;
    let skip = match (args.running.resume, args.running.resume_failed) {
        (true, _) => Skip::Logged,
        (_, true) => Skip::Succeeded,
        _ => Skip::Nothing,
    };
    if args.dry_run {
        return args.show(records, templates);
    }
    let joblog = args.running.joblog.as_deref();
    let joblog = joblog.map(|path| Joblog::open(path, skip)).transpose()?;
    let (client, private) = local::connect(&args.local, cluster)?;
    let engines = match args.local.engines() {
        Some(count) => count as usize,
        None => client.wait_for_engines(1, Some(Duration::ZERO)).max(1),
    };
    let window = args.running.slots.and_then(|slots| slots.of(engines));
    let slots = window.unwrap_or(engines);
    let Jobs { jobs, streaming } = args.jobs(records, templates, slots)?;
    let skipped = joblog
        .as_ref()
        .map(|log| log.skip.clone())
        .unwrap_or_default();
    let mut jobs =
        jobs.filter(move |job| !job.as_ref().is_ok_and(|job| skipped.contains(&job.line)));
    let known: Option<Vec<Job>> = match streaming {
        true => None,
        false => Some(jobs.by_ref().collect::<Result<_, Failure>>()?),
    };
    let one_by_one = window.is_some()
        || args.running.delay.is_some()
        || args.running.halt.is_some_and(|halt| !halt.now);
    let zone = TimeZone::system();
    let options = Options {
        cwd: run::cwd()?,
        capture: Some(args.max_output),
        no_wait: args.running.no_wait,
        coming: args.local.engines(),
        pulse: private.as_ref().map(LocalCluster::pulse),
        source: if streaming { "stdin" } else { "map" }.into(),
        halt: args.running.halt,
        window: one_by_one.then_some(slots as u64),
        expected: known.as_ref().map(|jobs| jobs.len() as u64),
        jobs: args.jobs.clone(),
        live: args.line_buffer,
        unit: "job",
        again: match &args.running.joblog {
            Some(_) => "add --resume-failed",
            None => "run with --joblog FILE, and then once more with --resume-failed",
        },
        ..Options::default()
    };
    let progress = Progress::new(args.bar.then_some(Detail::Position), &zone);
    let mut printer = args.printer(&style, zone)?;
    if args.keep_order {
        printer = Box::new(Ordered::new(printer));
    }
    if let Some(log) = joblog {
        printer = Box::new(Logged {
            inner: printer,
            log,
        });
    }
    let runner = Runner::new(client.clone(), options, progress, &mut *printer)?;
    let delay = args.running.delay.unwrap_or_default();
    let summary = match known {
        Some(jobs) if !one_by_one => runner.run_all(jobs.into())?,
        known => {
            let jobs = known.into_iter().flatten().map(Ok).chain(jobs);
            runner.run_stream(feed(jobs, one_by_one, delay))?
        }
    };
    let code = run::end(&args.end, summary, client, private)?;
    match cut {
        Some(cut) if cut.load(Ordering::Relaxed) => Ok(ExitCode::from(2)),
        _ => Ok(code),
    }
}

impl MapArgs {
    /// The arguments; with `--pipe` there are none.
    fn records(&mut self) -> Result<Option<Records>, Failure> {
        if self.input.shuf && (self.running.resume || self.running.resume_failed) {
            return Err(Failure::usage(
                "--shuf gives jobs other numbers each time, by which --resume and --resume-failed know them: some would never \
                 be run: leave --shuf out",
            ));
        }
        match (self.pipe.pipe, self.data.take()) {
            (true, Some(_)) => Err(Failure::usage(
                "--pipe reads the standard input: it takes no arguments (see `ipclient map --help`)",
            )),
            (true, None) => Ok(None),
            (false, data) => self.input.records(data.unwrap_or_default()).map(Some),
        }
    }

    /// `--dry-run`
    fn show(&self, records: Option<Records>, templates: Templates) -> Outcome {
        let engines = self.local.engines().unwrap_or(1) as usize;
        let slots = self.running.slots.and_then(|slots| slots.of(engines));
        for job in self
            .jobs(records, templates, slots.unwrap_or(engines))?
            .jobs
        {
            let mut out = std::io::stdout().lock();
            let cmd = job?.cmd;
            writeln!(out, "{}", output::shown_on(&out, &cmd))?;
        }
        Ok(ExitCode::SUCCESS)
    }

    fn templates(&self, style: &Style<'_>) -> Result<Templates, Failure> {
        if self.pipe.pipe && self.command.is_empty() {
            return Err(Failure::usage(
                "--pipe needs a command (see `ipclient map --help`)",
            ));
        }
        let running = &self.running;
        let (mut put, mut get) = (running.transferfile.clone(), running.returned.clone());
        if !running.trc.is_empty() {
            put.push("{}".into());
            get.extend(running.trc.iter().cloned());
        }
        if running.cleanup && put.is_empty() && get.is_empty() {
            return Err(Failure::usage(
                "--cleanup: there is nothing to clean up without --transferfile or --return",
            ));
        }
        let all = |texts: Vec<String>| {
            texts
                .iter()
                .map(|text| Template::new(text, style))
                .collect()
        };
        let append = !self.pipe.pipe && self.input.max_args != Some(0);
        let quoted = Style {
            quoted: self.quote,
            ..*style
        };
        Ok(Templates {
            command: Template::command(&self.command, &quoted, append),
            context: self.input.context,
            put: all(put),
            get: all(get),
            env: environment(&running.env)?,
            locate: if self.dry_run {
                LocateArgs::default()
            } else {
                self.locate.clone()
            }
            .locate(),
        })
    }

    /// The jobs for `slots` engines.
    fn jobs(
        &self,
        records: Option<Records>,
        mut templates: Templates,
        slots: usize,
    ) -> Result<Jobs, Failure> {
        let input = &self.input;
        let lines = input.max_lines.map(|lines| lines as usize);
        let Some(records) = records else {
            let mut blocks = Blocks::new(&self.pipe, lines, input.max_args, std::io::stdin());
            let mut number = 0;
            let next = move || {
                number += 1;
                let block = match blocks.next() {
                    Ok(block) => Ok(block?),
                    Err(error) => Err(Failure::new(format!("stdin: {error}"))),
                };
                Some(block.map(|block| Job {
                    stdin_bytes: Some(block),
                    ..templates.job(number, &[], None)
                }))
            };
            let (jobs, streaming) = (Box::new(std::iter::from_fn(next)), true);
            return Ok(Jobs { jobs, streaming });
        };
        let gather = input.context || input.many;
        let (size, most) = match gather || input.xargs {
            true => (input.max_args.unwrap_or(usize::MAX), LONGEST),
            false => (lines.or(input.max_args).unwrap_or(1), usize::MAX),
        };
        let mut streaming = records.streaming;
        let mut records = records.records;
        // What is left for the last job goes to all engines.
        let mut last = Vec::new();
        if gather || input.shuf || templates.command.needs_total() {
            streaming = false;
            let mut all: Vec<Record> = records.collect();
            if input.shuf {
                all.shuffle(&mut rand::rng());
            }
            if gather && size > 0 {
                last = all.split_off(all.len().saturating_sub(1) / size * size);
            }
            records = Box::new(all.into_iter());
        }
        let share = last.len().div_ceil(slots).max(1);
        let last = group(last.into_iter(), share, most);
        let mut groups: Box<dyn Iterator<Item = Record> + Send> =
            Box::new(group(records, size, most).chain(last));
        let mut total = None;
        if templates.command.needs_total() {
            let all: Vec<Record> = groups.collect();
            total = Some(all.len() as u64);
            groups = Box::new(all.into_iter());
        }
        let jobs = (1..)
            .zip(groups)
            .map(move |(number, record)| Ok(templates.job(number, &record, total)));
        let jobs = Box::new(jobs);
        Ok(Jobs { jobs, streaming })
    }

    fn printer(&self, style: &Style<'_>, zone: TimeZone) -> Result<Box<dyn Printer>, Failure> {
        if self.json {
            return Ok(Box::new(run::Lines::new(zone, None)));
        }
        if let Some(results) = &self.results {
            return Ok(Box::new(Directory::new(
                Template::new(results, style),
                style.names,
            )));
        }
        let tag = match &self.tagstring {
            None if self.tag => Some("{}"),
            text => text.as_deref(),
        };
        let plain = Style {
            whole: None,
            ..*style
        };
        let tag = tag.map(|tag| Template::new(tag, if self.tag { &plain } else { style }));
        Ok(Box::new(Outputs::new(tag, self.verbose, self.trace)))
    }
}

/// Bytes of arguments that one command gets of many, well below what Linux takes.
const LONGEST: usize = 100_000;

/// Joins `size` records, or as many as have `most` bytes together; none of them for 0.
fn group(
    records: impl Iterator<Item = Record> + Send,
    size: usize,
    most: usize,
) -> impl Iterator<Item = Record> + Send {
    let mut records = records.peekable();
    let bytes = |record: &Record| record.iter().map(|value| value.len() + 3).sum::<usize>();
    std::iter::from_fn(move || {
        let mut group = records.next()?;
        if size == 0 {
            return Some(Record::new());
        }
        let mut length = bytes(&group);
        for _ in 1..size {
            let Some(more) = records.next_if(|next| length + bytes(next) <= most) else {
                break;
            };
            length += bytes(&more);
            group.extend(more);
        }
        Some(group)
    })
}

/// The variables and exported functions of `--env`, as far as they are set.
fn environment(names: &[String]) -> Result<BTreeMap<String, String>, Failure> {
    let mut set = BTreeMap::new();
    for name in names {
        if name.is_empty() || name == "_" || name.contains('=') {
            return Err(Failure::usage(format!(
                "--env {name:?}: the name of a variable is needed"
            )));
        }
        for name in [name.clone(), format!("BASH_FUNC_{name}%%")] {
            match std::env::var(&name) {
                Ok(value) => drop(set.insert(name, value)),
                Err(std::env::VarError::NotPresent) => {}
                Err(std::env::VarError::NotUnicode(_)) => {
                    return Err(Failure::usage(format!(
                        "--env {name}: its value is not UTF-8"
                    )));
                }
            }
        }
    }
    Ok(set)
}

impl Templates {
    fn job(&mut self, number: u64, arguments: &[String], total: Option<u64>) -> Job {
        let values = Values {
            arguments,
            number,
            total,
            slot: None,
            quote: true,
        };
        let cmd = if self.context {
            self.command.repeat(&values)
        } else {
            self.command.expand(&values)
        };
        let text = match arguments {
            [argument] => json!({ "cmd": cmd, "arg": argument }),
            _ => json!({ "cmd": cmd, "args": arguments }),
        };
        let plain = Values {
            quote: false,
            ..values
        };
        let files = |templates: &[Template], out| -> Vec<Transfer> {
            let paths = templates.iter().map(|template| template.expand(&plain));
            paths.map(|path| Transfer::of(&path, out)).collect()
        };
        let mut env = self.env.clone();
        if cmd.contains("PARALLEL_SEQ") {
            env.insert("PARALLEL_SEQ".into(), number.to_string());
        }
        let mut job = Job {
            line: number,
            text: text.to_string().into(),
            cmd,
            env,
            put: files(&self.put, true),
            get: files(&self.get, false),
            ..Job::default()
        };
        let inputs = arguments.iter().map(String::as_str);
        self.locate.prefer(&mut job, inputs);
        job
    }
}

/// Hands jobs over as they come, or, one by one, as they are asked for; with a pause between them.
pub(crate) fn feed(
    jobs: impl Iterator<Item = Result<Job, Failure>> + Send + 'static,
    one_by_one: bool,
    pause: Duration,
) -> Receiver<Vec<Line>> {
    let (sender, receiver) = crossbeam_channel::bounded(if one_by_one { 0 } else { 1000 });
    let _ = spawn("jobs", move || {
        for (at, job) in jobs.enumerate() {
            if at > 0 {
                std::thread::sleep(pause);
            }
            let end = job.is_err();
            let line = match job {
                Ok(job) => Line::Job(Box::new(job)),
                Err(failure) => Line::Refused(Box::default(), failure.to_string()),
            };
            if sender.send(vec![line]).is_err() || end {
                return;
            }
        }
    });
    receiver
}
