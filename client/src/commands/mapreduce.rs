//! `ipclient mapreduce`: files through a mapper and a reducer, which are commands, as Hadoop's streaming has them. Engines
//! sort what mappers write, and part it by key; the client passes the parts on to the reducers, and looks into none.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use clap::Args;
use ipbroker_client::Client;
use ipbroker_client::job::{Job, JobResult, Transfer, directory};
use ipbroker_client::protocol::message::{EngineInfo, FsOp, FsRequest};
use jiff::tz::TimeZone;
use serde_json::{Value, json};

use super::{Outcome, map, run};
use crate::cli::{ClusterArgs, EndArgs, JobArgs, LocalArgs, size};
use crate::failure::Failure;
use crate::local::{self, LocalCluster};
use crate::locate::LocateArgs;
use crate::output::json;
use crate::output::progress::{Detail, Progress};
use crate::pieces::{Input, Piece, chunks};
use crate::runner::halt::Halt;
use crate::runner::place::is_on;
use crate::runner::{Options, Printer, Runner, Slot, Summary};
use crate::template::quote;

/// Run MAPPER over the lines of files, sort what it prints by key on the engines, and run REDUCER over that
#[derive(Debug, Args)]
#[command(after_help = "\
MAPPER reads lines and writes lines `key TAB value` (a line without a tab is a key). REDUCER reads such lines, all of a key one \
after the other, and writes what it likes. Both are commands for bash, and run in this directory (see --wd), or, with \
--transferfile, in a new one on the engine's host. Bytes are bytes: nothing need be UTF-8.

Small files are mapped together, large ones are cut between two lines. Engines whose hosts have the files read them there; \
where one has not, the client sends them. Keys are compared byte by byte; the output of the reducers is printed in the order \
of their numbers, and is sorted in each. An engine's host needs bash, sort and awk.

The exit status is 0 if every mapper and every reducer ended with code 0, 130 after Ctrl-C.

Example:
  ipclient mapreduce --local 4 'tr -cs A-Za-z \"\\n\"' 'uniq -c' *.txt
  ipclient mapreduce --transferfile count.py -o counts 'python3 count.py map' 'python3 count.py reduce' /data/*.log")]
pub(crate) struct MapReduceArgs {
    /// The command that reads the lines of the files
    #[arg(value_name = "MAPPER")]
    mapper: String,
    /// The command that reads what mappers wrote, sorted by key
    #[arg(value_name = "REDUCER")]
    reducer: String,
    /// What the mappers read
    #[arg(value_name = "FILE", required = true)]
    files: Vec<String>,
    /// A command that reads what one mapper wrote, sorted by key, and writes less of the same kind; often that of REDUCER
    #[arg(long, value_name = "COMMAND")]
    combiner: Option<String>,
    /// About so many bytes of the files for each mapper
    #[arg(long, value_name = "BYTES", default_value = "16M", value_parser = chunk)]
    map_chunksize: u64,
    /// So many reducers, each with its share of the keys [default: as many as there are engines]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=MOST_REDUCERS))]
    reducers: Option<u64>,
    /// As many reducers (up to 500) as the files have so many bytes
    #[arg(long, value_name = "BYTES", value_parser = chunk, conflicts_with = "reducers")]
    reduce_chunksize: Option<u64>,
    /// Write the reducers' output into files part-00000, … of this new directory instead of printing it
    #[arg(short, long, value_name = "DIR")]
    output: Option<PathBuf>,
    /// Send this file along; commands then run in a new directory with it (may be repeated)
    #[arg(long, value_name = "FILE")]
    transferfile: Vec<String>,
    /// Print how much was done, and where, as JSON
    #[arg(long, requires = "output")]
    json: bool,
    /// Fail at once if there are no engines, instead of waiting for them
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

/// A mapper has a file open for each.
const MOST_REDUCERS: u64 = 500;
/// Mappers whose input is on its way for each engine, where it has to be sent.
const AHEAD: u64 = 3;

fn chunk(text: &str) -> Result<u64, String> {
    size(text).and_then(|bytes| match bytes {
        0 => Err("at least one byte is needed".into()),
        bytes => Ok(bytes),
    })
}

pub(crate) fn main(mut args: Box<MapReduceArgs>, cluster: &ClusterArgs) -> Outcome {
    for (name, command) in [("MAPPER", &args.mapper), ("REDUCER", &args.reducer)] {
        if command.trim().is_empty() {
            return Err(Failure::usage(format!(
                "{name} is empty: a command is needed"
            )));
        }
    }
    let cwd = run::cwd()?;
    let inputs = args.files.iter().map(|name| Input::new(&cwd, name));
    let inputs = inputs.collect::<Result<Vec<Input>, Failure>>()?;
    let chunks = chunks(&inputs, args.map_chunksize)?;
    if chunks.is_empty() {
        return Err(Failure::new("there is nothing to map: every file is empty"));
    }
    for name in &args.transferfile {
        Input::new(&cwd, name)?;
    }
    let output = args.output.as_deref().map(new_directory).transpose()?;
    let work = tempfile::Builder::new()
        .prefix("ipclient-mapreduce-")
        .permissions(Permissions::from_mode(0o700))
        .tempdir()
        .map_err(local::no_tempdir)?;

    let (client, private) = local::connect(&args.local, cluster)?;
    if let Some(coming) = args.local.engines() {
        client.wait_for_engines(coming as usize, Some(local::ENGINES));
    }
    let engines = client.wait_for_engines(1, Some(Duration::ZERO)).max(1) as u64;
    let bytes: u64 = inputs.iter().map(|input| input.size).sum();
    let share = args.reduce_chunksize;
    let parts = args.reducers.or(share.map(|share| bytes.div_ceil(share)));
    let plan = Plan {
        parts: parts.unwrap_or(engines).clamp(1, MOST_REDUCERS),
        enter: enter(&cwd, args.jobs.wd.take(), !args.transferfile.is_empty()),
        in_place: in_place(&client, &args.jobs, &inputs),
        work: work.path(),
        inputs: &inputs,
        args: &args,
    };
    let stage = |jobs: Vec<Job>, unit, tally: &mut Tally| -> Result<Summary, Failure> {
        let began = Instant::now();
        let sent = unit == "map job" && !plan.in_place;
        let options = Options {
            cwd: cwd.clone(),
            jobs: args.jobs.clone(),
            no_wait: args.no_wait,
            coming: args.local.engines(),
            pulse: private.as_ref().map(LocalCluster::pulse),
            source: "mapreduce".into(),
            unit,
            halt: Some(Halt::at_failure(true)),
            window: sent.then_some(AHEAD * engines),
            expected: Some(jobs.len() as u64),
            near: unit == "reduce job",
            peek: true,
            ..Options::default()
        };
        let progress = Progress::new(Some(Detail::Jobs), &TimeZone::system());
        let runner = Runner::new(client.clone(), options, progress, tally)?;
        let summary = match sent {
            true => runner.run_stream(map::feed(jobs.into_iter().map(Ok), true, Duration::ZERO)),
            false => runner.run_all(jobs.into()),
        };
        tally.took = began.elapsed().as_secs_f64();
        summary
    };

    let mut locate = args.locate.locate();
    let mut maps = Vec::new();
    for (number, chunk) in (1..).zip(&chunks) {
        let mut job = plan.map(number, chunk);
        let names = chunk.iter().map(|piece| &*inputs[piece.input].name);
        locate.prefer(&mut job, names);
        maps.push(job);
    }
    let (mut mapped, mut reduced, mut between) = (Tally::default(), Tally::default(), 0);
    let mut summary = stage(maps, "map job", &mut mapped)?;
    if summary.failed == 0 && summary.signal.is_none() {
        let to = output.as_deref().unwrap_or(work.path());
        let jobs = plan.reduce(&client.engines()?, chunks.len(), to, &mut between)?;
        reduced.print = output.is_none().then(|| to.to_owned());
        let before = summary.total;
        summary = stage(jobs, "reduce job", &mut reduced)?;
        summary.total += before;
    }
    if args.json && !summary.hurried {
        json::print(&json!({
            "files": inputs.len(), "bytes": bytes, "sent": !plan.in_place,
            "map": mapped.json(), "bytes_between": between, "reduce": reduced.json(),
        }))?;
    }
    run::end(&args.end, summary, client, private)
}

/// A directory for the output, in which nothing is yet.
fn new_directory(dir: &Path) -> Result<PathBuf, Failure> {
    let problem = |error| Failure::usage(format!("--output {}: {error}", dir.display()));
    fs::create_dir_all(dir).map_err(problem)?;
    if fs::read_dir(dir).map_err(problem)?.next().is_some() {
        return Err(problem(io::Error::other(
            "there are files in it already: name a new directory",
        )));
    }
    dir.canonicalize().map_err(problem)
}

/// Whether every host that may run a job has these files, as they are here.
fn in_place(client: &Client, jobs: &JobArgs, inputs: &[Input]) -> bool {
    let names: Vec<&str> = match &jobs.hosts[..] {
        [] => vec!["all"],
        hosts => hosts.iter().map(String::as_str).collect(),
    };
    let Ok(hosts) = client.hosts(&names) else {
        return false;
    };
    hosts.iter().all(|host| {
        inputs.iter().filter(|input| input.size > 0).all(|input| {
            let request = FsRequest {
                op: FsOp::Stat,
                path: input.path.clone(),
                ..FsRequest::default()
            };
            let stat = host.request(&request).ok().and_then(|reply| reply.stat);
            stat.is_some_and(|stat| {
                stat.size == input.size && (stat.mtime - input.changed).abs() < 1e-3
            })
        })
    })
}

/// The shell's way to where commands run; none: they stay in the job's own directory.
fn enter(cwd: &str, wd: Option<String>, own: bool) -> String {
    let dir = match wd.as_deref() {
        Some("...") => return String::new(),
        None if own => return String::new(),
        wd => directory(cwd, wd.unwrap_or_default()),
    };
    let mut word = String::new();
    match dir.strip_prefix('~') {
        Some(rest) => {
            word.push_str("~/");
            quote(rest.trim_start_matches('/'), &mut word);
        }
        None => quote(&dir, &mut word),
    }
    format!(
        "cd {word} || {{ echo 'name a directory that all hosts have with --wd, or send what is needed with --transferfile' >&2; exit 1; }}"
    )
}

/// Sorts by key; values stay in their order.
const SORT: &str = r#"LC_ALL=C sort -s -t $'\t' -k 1,1 -T "$IPBROKER_SCRATCH""#;

/// Gives each key its part. The lines are sorted: a key's lines come together.
const PARTITION: &str = r#"LC_ALL=C awk '
BEGIN { for (i = 0; i < 256; i++) code[sprintf("%c", i)] = i }
{ end = index($0, "\t"); key = end ? substr($0, 1, end - 1) : $0 "" }
NR == 1 || key != last {
    hash = 0; bytes = length(key); if (bytes > 256) bytes = 256
    for (i = 1; i <= bytes; i++) hash = (hash * 31 + code[substr(key, i, 1)]) % 1000003
    part = ENVIRON["IPBROKER_SCRATCH"] "/part." hash % parts; last = key
}
{ print > part }' parts="#;

/// What jobs are made of.
struct Plan<'a> {
    parts: u64,
    enter: String,
    /// Engines read the files themselves.
    in_place: bool,
    /// Where parts are kept on their way.
    work: &'a Path,
    inputs: &'a [Input],
    args: &'a MapReduceArgs,
}

impl Plan<'_> {
    fn part(&self, map: usize, part: u64) -> PathBuf {
        self.work.join(format!("map-{map:06}.{part}"))
    }

    fn job(&self, line: usize, title: String, cmd: String) -> Job {
        let sent = self.args.transferfile.iter();
        Job {
            line: line as u64,
            cmd,
            title: Some(title.into()),
            put: sent.map(|path| Transfer::of(path, true)).collect(),
            ..Job::default()
        }
    }

    fn map(&self, number: usize, chunk: &[Piece]) -> Job {
        let (mut read, mut size, mut put, mut files) = (String::new(), 0, Vec::new(), Vec::new());
        for (at, piece) in chunk.iter().enumerate() {
            let input = &self.inputs[piece.input];
            let (start, length) = (piece.bytes.start, piece.bytes.end - piece.bytes.start);
            size += length + u64::from(!piece.ended);
            if self.in_place {
                let mut path = String::new();
                quote(&input.path, &mut path);
                read += &match length == input.size {
                    true => format!("cat -- {path}; "),
                    false => format!("tail -c +{} -- {path} | head -c {length}; ", start + 1),
                };
                files.push(input.path.clone());
            } else {
                read += &format!("cat \"$IPBROKER_SCRATCH/in.{at}\"; ");
                put.push(Transfer {
                    local: input.path.clone(),
                    remote: format!("in.{at}"),
                    part: Some(piece.bytes.clone()),
                });
            }
            if !piece.ended {
                read += "echo; ";
            }
        }
        let (enter, parts, mapper) = (&self.enter, self.parts, &self.args.mapper);
        let combine = self.args.combiner.as_ref();
        let combine = combine.map(|command| format!("{{ {command}\n}} | {SORT} | "));
        let combine = combine.unwrap_or_default();
        let cmd = format!(
            r#"{{ {read}}} > "$IPBROKER_SCRATCH/.in"
[ "$(wc -c < "$IPBROKER_SCRATCH/.in")" -eq {size} ] || {{ echo 'the files are not here as they are at the client' >&2; exit 1; }}
(for ((part = 0; part < {parts}; part++)); do : > "$IPBROKER_SCRATCH/part.$part" || exit; done) || exit
{enter}
{{ {mapper}
}} < "$IPBROKER_SCRATCH/.in" | {SORT} | {combine}{PARTITION}{parts}"#
        );
        let first = &self.inputs[chunk[0].input].name;
        let more = if chunk.len() > 1 { " …" } else { "" };
        let mut job = self.job(number, format!("{mapper} < {first}{more}"), cmd);
        job.put.append(&mut put);
        job.placement.require.files = files;
        job.get = (0..self.parts)
            .map(|part| Transfer {
                local: self.part(number, part).to_string_lossy().into_owned(),
                remote: format!("part.{part}"),
                part: None,
            })
            .collect();
        job
    }

    /// A reducer for each part of what `maps` mappers wrote, `between` bytes in all; they are spread over the hosts.
    fn reduce(
        &self,
        engines: &[EngineInfo],
        maps: usize,
        to: &Path,
        between: &mut u64,
    ) -> Result<Vec<Job>, Failure> {
        let JobArgs { hosts, tags, .. } = &self.args.jobs;
        let allowed = |engine: &&EngineInfo| {
            let named = |host: &String| is_on(engine, host);
            (hosts.is_empty() || hosts.iter().any(named))
                && tags.iter().all(|tag| engine.tags.contains(tag))
        };
        let places: Vec<&String> = engines
            .iter()
            .filter(allowed)
            .filter_map(|engine| engine.host.first())
            .collect();
        let mut jobs = Vec::new();
        for part in 0..self.parts {
            let mut put = Vec::new();
            for map in 1..=maps {
                let path = self.part(map, part);
                let size = fs::metadata(&path)?.len();
                *between += size;
                if size > 0 {
                    put.push(Transfer {
                        local: path.to_string_lossy().into_owned(),
                        remote: format!("map.{map:06}"),
                        part: None,
                    });
                }
            }
            let files = if put.is_empty() {
                ""
            } else {
                r#""$IPBROKER_SCRATCH"/map.*"#
            };
            let (enter, reducer) = (&self.enter, &self.args.reducer);
            let cmd = format!(
                r#"{SORT} -m -o "$IPBROKER_SCRATCH/.in" /dev/null {files} || exit
{enter}
{{ {reducer}
}} < "$IPBROKER_SCRATCH/.in" > "$IPBROKER_SCRATCH/out""#
            );
            let mut job = self.job(part as usize + 1, reducer.clone(), cmd);
            job.put.append(&mut put);
            if places.iter().any(|place| *place != places[0]) {
                let place = places[part as usize % places.len()];
                job.placement.prefer = vec![place.clone()];
                // Elsewhere it would lack its input.
                job.placement.prefer_wait = Some(FOR_LONG);
            }
            job.get = vec![Transfer {
                local: to.join(part_name(part)).to_string_lossy().into_owned(),
                remote: "out".into(),
                part: None,
            }];
            jobs.push(job);
        }
        Ok(jobs)
    }
}

/// Seconds.
const FOR_LONG: f64 = 1e6;

/// As Hadoop has it.
fn part_name(part: u64) -> String {
    format!("part-{part:05}")
}

/// What became of the jobs of one kind; the output of reducers, one after the other.
#[derive(Default)]
struct Tally {
    /// Seconds from the first job's way to the last one's end.
    took: f64,
    jobs: u64,
    /// Run times of the jobs together.
    seconds: f64,
    hosts: BTreeMap<String, u64>,
    /// The directory with what is to be printed, the first part that is not printed yet, and those that are there.
    print: Option<PathBuf>,
    next: u64,
    there: BTreeSet<u64>,
}

impl Tally {
    fn json(&self) -> Value {
        json!({ "jobs": self.jobs, "elapsed": self.took, "job_seconds": self.seconds, "hosts": self.hosts })
    }
}

impl Printer for Tally {
    fn finished(&mut self, slot: &Slot, result: &JobResult) -> io::Result<()> {
        if result.success() {
            self.jobs += 1;
            self.seconds += result.elapsed().unwrap_or(0) as f64 / 1e6;
            let host = result.host.clone().unwrap_or_default();
            *self.hosts.entry(host).or_default() += 1;
            self.there.insert(slot.index);
        }
        Ok(())
    }

    fn flush(&mut self) -> io::Result<()> {
        let Some(dir) = &self.print else {
            return Ok(());
        };
        let mut out = io::stdout().lock();
        while self.there.remove(&self.next) {
            let path = dir.join(part_name(self.next));
            io::copy(&mut File::open(&path)?, &mut out)?;
            fs::remove_file(path)?;
            self.next += 1;
        }
        out.flush()
    }

    fn shares_terminal(&self) -> bool {
        self.print.is_some()
    }
}
