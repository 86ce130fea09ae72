//! Jobs on their way through the cluster: what `run` and `map` have in common.

mod events;
mod failures;
pub(crate) mod files;
pub(crate) mod halt;
pub(crate) mod place;
mod submit;
mod waits;

use std::path::Path;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, never, select};
use ipbroker_client::job::{Job, JobResult, JobStatus, directory};
use ipbroker_client::protocol::message::{Command, Unschedulable};
use ipbroker_client::protocol::spawn;
use ipbroker_client::{Batch, Client, Notice};

use crate::cli::JobArgs;
use crate::failure::Failure;
use crate::local::Pulse;
use crate::output::progress::Progress;
use crate::output::{jobs_wait, plural};
use crate::resume::Jobs;
use crate::source::{self, Line};
use events::{Event, Events, Printed};
use failures::Failed;
use halt::{Halt, What};
pub(crate) use submit::Seen;
use waits::Waits;

/// Output is flushed at least this often, and at once when nothing happens.
const FLUSH: Duration = Duration::from_millis(50);
/// A stream is not read ahead of its results by more jobs than this.
const OUTSTANDING: u64 = 200_000;
/// Jobs of a stream that are submitted together, at most.
const BATCH: usize = 1000;
/// How long the controller may take to say that it stops the jobs of somebody who presses Ctrl-C, …
const STOP: Duration = Duration::from_secs(2);
/// … and those that `--halt` stops.
const HALT: Duration = Duration::from_secs(30);
/// Bytes of output that are looked at for a job's last words.
const PEEK: u64 = 4096;

/// What the jobs of one call have in common.
#[derive(Default)]
pub(crate) struct Options {
    /// Where jobs without `cd` run, and relative ones begin.
    pub(crate) cwd: String,
    /// Defaults.
    pub(crate) jobs: JobArgs,
    /// Bytes of output to return, for jobs that do not say.
    pub(crate) capture: Option<u64>,
    /// Refuse what would have to wait for engines.
    pub(crate) no_wait: bool,
    /// Engines of a private cluster, which are on their way.
    pub(crate) coming: Option<u32>,
    /// Whether that cluster is still there.
    pub(crate) pulse: Option<Pulse>,
    /// The name of the source, for messages.
    pub(crate) source: String,
    /// What a job's number is the number of, and how those that failed are run again.
    pub(crate) unit: &'static str,
    pub(crate) again: &'static str,
    /// When the rest is given up.
    pub(crate) halt: Option<Halt>,
    /// Jobs of a stream that may be under way at one time.
    pub(crate) window: Option<u64>,
    /// How many jobs a stream will have, where that is known.
    pub(crate) expected: Option<u64>,
    /// Inputs that are sent before go to the hosts that a job prefers, not to all: elsewhere it gets them with its message.
    pub(crate) near: bool,
    /// Print what jobs print as it comes.
    pub(crate) live: bool,
    /// Look at the output of jobs that do not want it returned, for the last words of those that fail.
    pub(crate) peek: bool,
}

impl Options {
    /// A job as an engine takes it, with what holds for all jobs where it does not say otherwise.
    pub(crate) fn command(&self, job: &Job) -> Command {
        let mut command = job.command(&self.cwd);
        match self.jobs.wd.as_deref().filter(|_| job.cd.is_none()) {
            None => {}
            Some("...") => command.scratch = true,
            Some(wd) => {
                command.cd = Some(directory(&self.cwd, wd));
                command.scratch = job.scratch;
            }
        }
        command.capture = job.capture.unwrap_or_else(|| self.capture());
        command.stream = self.live;
        command.limit = self.jobs.limit(command.limit, &job.placement);
        command
    }

    /// Bytes of output that jobs return which do not say.
    fn capture(&self) -> u64 {
        match self.capture {
            Some(bytes) => bytes,
            None if self.peek => PEEK,
            None => 0,
        }
    }
}

/// A job that has not ended.
#[derive(Clone, Default)]
pub(crate) struct Slot {
    /// Its place in the order of input, from 0.
    pub(crate) index: u64,
    pub(crate) line: u64,
    pub(crate) text: Box<str>,
    pub(crate) has_result: bool,
    /// Which of several jobs with the same line.
    pub(crate) copy: Option<u32>,
    pub(crate) cmd: Box<str>,
    /// Where its standard error goes, if the file is on this host.
    pub(crate) err: Option<Box<Path>>,
    /// Its output was asked for.
    pub(crate) captures: bool,
    /// Bytes of its output and its errors that have come while it runs; none: the rest comes as it ends.
    pub(crate) seen: [Option<u64>; 2],
}

/// Takes results as they come.
pub(crate) trait Printer {
    /// A job ended.
    fn finished(&mut self, slot: &Slot, result: &JobResult) -> std::io::Result<()>;
    /// A job that runs has printed this; `anew`: it runs again, and begins anew.
    fn printed(
        &mut self,
        slot: &Slot,
        errors: bool,
        anew: bool,
        text: &str,
    ) -> std::io::Result<()> {
        let _ = (slot, errors, anew, text);
        Ok(())
    }
    /// Nothing more for the moment.
    fn flush(&mut self) -> std::io::Result<()>;
    /// Nothing more at all.
    fn end(&mut self) -> std::io::Result<()> {
        self.flush()
    }
    /// Its output and the progress bar may be on one terminal.
    fn shares_terminal(&self) -> bool;
}

/// How it all ended.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Summary {
    pub(crate) total: u64,
    pub(crate) failed: u64,
    /// The exit status, if `--halt` ended it.
    pub(crate) halted: Option<u8>,
    /// The signal that ended it.
    pub(crate) signal: Option<i32>,
    /// It ended at once, at the second signal.
    pub(crate) hurried: bool,
}

pub(crate) struct Runner<'a> {
    client: Client,
    options: Options,
    progress: Progress,
    printer: &'a mut dyn Printer,
    events: Events,
    slots: Vec<Option<Slot>>,
    batch: Batch,
    seen: Seen,
    files: files::Files,
    done: u64,
    failed: u64,
    /// The first failures, for the end.
    failures: Vec<Failed>,
    /// Some of them because their host does not have the directory.
    strange: bool,
    /// Jobs that count for `--halt`, and the exit status if they were enough.
    counted: u64,
    halted: Option<u8>,
    /// Jobs, bad lines included.
    total: u64,
    signal: Option<i32>,
    last_flush: Instant,
    unflushed: bool,
    last_tick: Instant,
    said_no_engines: bool,
    waits: Waits,
    /// The controller has said that it ends.
    shut_down: bool,
}

impl<'a> Runner<'a> {
    pub(crate) fn new(
        client: Client,
        options: Options,
        progress: Progress,
        printer: &'a mut dyn Printer,
    ) -> Result<Self, Failure> {
        let events = Events::new()?;
        if options.live {
            client.listen(events.sink.clone())?;
        }
        let now = Instant::now();
        Ok(Self {
            batch: Batch::new(&client, events.sink.clone(), 0),
            client,
            options,
            progress,
            printer,
            events,
            slots: Vec::new(),
            seen: Seen::default(),
            files: files::Files::default(),
            done: 0,
            failed: 0,
            failures: Vec::new(),
            strange: false,
            counted: 0,
            halted: None,
            total: 0,
            signal: None,
            last_flush: now,
            unflushed: false,
            last_tick: now,
            said_no_engines: false,
            waits: Waits::new(now),
            shut_down: false,
        })
    }

    fn engines(&self) -> usize {
        self.client
            .engine_count()
            .max(self.options.coming.unwrap_or(0) as usize)
    }

    /// Runs jobs that are all known, but for those that are refused.
    pub(crate) fn run_all(mut self, Jobs { jobs, refused }: Jobs) -> Result<Summary, Failure> {
        self.check_engines()?;
        let graph = source::graph(&self.options.source, &jobs)?;
        place::check(&self.client, &self.options, &jobs)?;
        self.total = jobs.len() as u64;
        self.progress.total(self.total);
        self.progress.started(self.total, self.engines());
        self.progress.flush();
        let slots = (0..).zip(&jobs);
        self.slots = slots
            .map(|(index, job)| Some(self.slot(index, job)))
            .collect();
        for (index, why) in &refused {
            self.refuse(*index, &jobs[*index], why)?;
        }
        for level in &graph.levels {
            let mut level = std::borrow::Cow::from(level);
            if !refused.is_empty() {
                level.to_mut().retain(|at| !refused.contains_key(at));
            }
            self.submit(0, &jobs, &level)?;
        }
        drop((jobs, graph));
        self.tell_no_engines();
        self.finish(None)
    }

    /// Runs jobs as they come.
    pub(crate) fn run_stream(mut self, lines: Receiver<Vec<Line>>) -> Result<Summary, Failure> {
        self.check_engines()?;
        self.progress.total(self.options.expected.unwrap_or(0));
        self.finish(Some(lines))
    }

    fn slot(&self, index: u64, job: &Job) -> Slot {
        let cd = job.cd.as_ref().or(self.options.jobs.wd.as_ref());
        let err = job.err.as_ref().map(|err| {
            let cwd = Path::new(&self.options.cwd);
            cwd.join(cd.map_or(".", String::as_str)).join(err).into()
        });
        Slot {
            index,
            line: job.line,
            text: job.text.clone(),
            has_result: job.has_result,
            copy: job.copy,
            cmd: job.title.as_deref().unwrap_or(&job.cmd).into(),
            err,
            captures: job.capture.is_some(),
            seen: [Some(0); 2],
        }
    }

    /// Without waiting, no engines is an error.
    fn check_engines(&self) -> Result<(), Failure> {
        if self.options.no_wait
            && self.options.coming.is_none()
            && self.client.wait_for_engines(1, Some(Duration::ZERO)) == 0
        {
            return Err(Failure::new(
                "no engines are registered: start some with `ipengine -n 4` (or do without --no-wait: jobs then wait for them)",
            ));
        }
        Ok(())
    }

    fn tell_no_engines(&mut self) {
        let waiting = self.total - self.done;
        if self.engines() == 0 && waiting > 0 && !self.said_no_engines {
            self.said_no_engines = true;
            self.progress.say(&format!(
                "no engines are registered: {}; `ipengine -n 4` starts some, `ipclient status` shows what a batch system was asked for",
                jobs_wait(waiting)
            ));
        }
    }

    /// What no engine has that is here, once each.
    fn tell_waits(&mut self, waits: &[Unschedulable]) {
        self.waits.answered();
        for wait in waits {
            let place = self.batch.place(&wait.msg_id);
            // It may have ended meanwhile.
            let slot = place.and_then(|index| self.slots.get(index)?.as_ref());
            if let Some(slot) = slot.filter(|_| self.waits.is_new(&wait.text)) {
                let (unit, line) = (self.options.unit, slot.line);
                let others = match wait.tasks {
                    0 | 1 => String::new(),
                    tasks => format!(", and {}", plural(tasks - 1, "other")),
                };
                self.progress
                    .say(&format!("{unit} {line} waits{others}: {}", wait.text));
            }
        }
    }

    /// The loop: results, lines, signals, until nothing is left.
    fn finish(mut self, mut input: Option<Receiver<Vec<Line>>>) -> Result<Summary, Failure> {
        let nothing = never();
        loop {
            if self.halted.is_some() || self.signal.is_some() {
                input = None;
            }
            if input.is_none() && self.done == self.total {
                break;
            }
            if self.shut_down && self.done == self.total {
                self.end_printing()?;
                self.tell_failures();
                return Err(Failure::new(
                    "the controller has shut down: the rest was not run",
                ));
            }
            let window = self.options.window.unwrap_or(OUTSTANDING);
            let full = self.shut_down || self.total - self.done >= window;
            let lines = if full {
                &nothing
            } else {
                input.as_ref().unwrap_or(&nothing)
            };
            let wait = if self.unflushed {
                FLUSH.saturating_sub(self.last_flush.elapsed())
            } else {
                Duration::from_millis(500)
            };
            select! {
                recv(self.events.receiver) -> event => match event {
                    Ok(event) => if let Some(summary) = self.take_event(event)? {
                        return Ok(summary);
                    },
                    Err(_) => break,
                },
                recv(lines) -> batch => match batch {
                    Ok(mut batch) => {
                        while self.options.window.is_none() && batch.len() < BATCH
                            && let Ok(more) = lines.try_recv()
                        {
                            batch.extend(more);
                        }
                        self.take_lines(batch)?;
                    }
                    Err(_) => input = None,
                },
                default(wait) => {}
            }
            self.tidy()?;
        }
        self.end_printing()?;
        self.progress
            .position(self.done, self.failed, self.engines());
        self.progress.end(if self.signal.is_some() {
            "interrupted"
        } else {
            "completed"
        });
        if self.signal.is_none() {
            self.tell_failures();
        }
        Ok(self.summary(false))
    }

    /// Some: this is the end, at once.
    fn take_event(&mut self, event: Event) -> Result<Option<Summary>, Failure> {
        match event {
            Event::Parts(parts) => {
                for (tag, part) in parts {
                    self.take(tag, &part)?;
                }
            }
            Event::Signal(_) if self.signal.is_some() => {
                self.end_printing()?;
                self.progress.end("interrupted");
                return Ok(Some(self.summary(true)));
            }
            Event::Signal(signal) => {
                self.signal = Some(signal);
                self.interrupt();
            }
            Event::AbortFailed(why) => {
                self.progress
                    .say(&format!("the jobs could not be stopped: {why}"));
                return Ok(Some(self.summary(true)));
            }
            Event::Printed(printed) => self.printed(printed)?,
            Event::Waits(waits) => self.tell_waits(&waits),
        }
        Ok(None)
    }

    fn summary(&self, hurried: bool) -> Summary {
        Summary {
            total: self.total,
            failed: self.failed,
            halted: self.halted,
            signal: self.signal,
            hurried,
        }
    }

    /// Flushes in time, moves the bar, passes on what the library noticed.
    fn tidy(&mut self) -> Result<(), Failure> {
        if self.unflushed && (self.last_flush.elapsed() >= FLUSH || self.done == self.total) {
            self.unflushed = false;
            self.last_flush = Instant::now();
            let shared = self.printer.shares_terminal();
            let printer = &mut *self.printer;
            let written = self.progress.aside(shared, || printer.flush());
            written.map_err(|error| self.unwritable(&error))?;
            self.progress
                .position(self.done, self.failed, self.engines());
            self.progress.flush();
        }
        if self.last_tick.elapsed() >= Duration::from_millis(500) {
            self.last_tick = Instant::now();
            let warnings = self.options.pulse.as_mut().map(|pulse| pulse());
            for warning in warnings.transpose()?.into_iter().flatten() {
                self.progress.say(&warning);
            }
            self.progress
                .position(self.done, self.failed, self.engines());
            self.tell_no_engines();
            let goes_on = self.signal.is_none() && self.halted.is_none() && !self.shut_down;
            if goes_on && self.done < self.total {
                let coming = self.options.coming.unwrap_or(0) as usize;
                let all_here = self.client.engine_count() >= coming;
                (self.waits).ask(&self.client, all_here, &self.events.sender);
            }
            for notice in self.client.take_notices() {
                self.shut_down = match &notice {
                    Notice::ShutDown => true,
                    Notice::Back => false,
                    _ => self.shut_down,
                };
                let text = match &notice {
                    Notice::Gone(_) => format!("{notice}: waiting for it to come back"),
                    _ => notice.to_string(),
                };
                self.progress.say(&text);
            }
        }
        Ok(())
    }

    fn take_lines(&mut self, batch: Vec<Line>) -> Result<(), Failure> {
        if self.total == 0 {
            self.progress.started(batch.len() as u64, self.engines());
        }
        let base = self.slots.len();
        let mut jobs = Vec::with_capacity(batch.len());
        let mut good = Vec::with_capacity(batch.len());
        let mut bad = Vec::new();
        for line in batch {
            let index = self.slots.len() as u64;
            self.total += 1;
            match line {
                Line::Job(job) => {
                    let slot = self.slot(index, &job);
                    self.slots.push(Some(slot));
                    match self.seen.check(&job, &self.options) {
                        Ok(()) => good.push(jobs.len()),
                        Err(error) => bad.push((index as usize, error)),
                    }
                    jobs.push(*job);
                }
                Line::Refused(job, why) => {
                    let slot = self.slot(index, &job);
                    self.slots.push(Some(slot));
                    jobs.push(Job {
                        id: job.id,
                        ..Job::default()
                    });
                    bad.push((index as usize, why));
                }
                Line::Bad { line, text, error } => {
                    let slot = Slot {
                        index,
                        line,
                        text: text.into(),
                        cmd: "not a job".into(),
                        ..Slot::default()
                    };
                    self.slots.push(Some(slot));
                    // A place of its own keeps the others' in step.
                    jobs.push(Job::default());
                    bad.push((index as usize, error.to_string()));
                }
            }
        }
        if self.options.no_wait {
            let refused = place::refused(&self.client, &self.options, &jobs)?;
            good.retain(|at| !refused.contains_key(at));
            bad.extend(refused.into_iter().map(|(at, error)| (base + at, error)));
        }
        for (index, error) in bad {
            self.refuse(index, &jobs[index - base], &error)?;
        }
        let expected = self.options.expected.unwrap_or(0);
        self.progress.total(self.total.max(expected));
        // In a stream a job depends on earlier lines only; those of this very batch go first, one by one.
        let (free, bound): (Vec<usize>, Vec<usize>) = good.into_iter().partition(|at| {
            jobs[*at].placement.after.is_empty() && jobs[*at].placement.follow.is_empty()
        });
        self.submit(base, &jobs, &free)?;
        for at in bound {
            self.submit(base, &jobs, &[at])?;
        }
        self.tell_no_engines();
        self.waits.moved();
        Ok(())
    }

    fn take(&mut self, tag: u64, part: &ipbroker_client::Part) -> Result<(), Failure> {
        let reply = part.outcome.as_deref().ok();
        for (index, result) in self.batch.results(tag, part) {
            if let Some(result) = self.settle_files(index, reply, result)? {
                self.ended(index, &result)?;
            }
        }
        Ok(())
    }

    /// A job that runs has printed something: passed on while nothing is missing, and as long as it is text.
    fn printed(&mut self, printed: Printed) -> Result<(), Failure> {
        let Printed {
            msg_id,
            errors,
            at,
            mut text,
        } = printed;
        let slot = self.batch.place(&msg_id);
        let Some(slot) = slot.and_then(|index| self.slots.get_mut(index)?.as_mut()) else {
            return Ok(());
        };
        let of = usize::from(errors);
        let anew = at == 0 && slot.seen[of] != Some(0);
        if anew {
            slot.seen = [Some(0); 2];
        }
        let Some(seen) = slot.seen[of] else {
            return Ok(());
        };
        if at > seen {
            // It began before we were listening: its engine still knows that.
            let mut before = slot.seen.map(|seen| seen.unwrap_or(u64::MAX));
            before[1 - of] = u64::MAX;
            let now = self.client.output(&msg_id, before).unwrap_or_default();
            let whole = now.seen[of].checked_sub(now.text[of].len() as u64) == Some(seen);
            match whole && now.running {
                true => text.clone_from(&now.text[of]),
                false => text = char::REPLACEMENT_CHARACTER.into(),
            }
        } else if at < seen {
            // Its engine has told us more already.
            match text.get((seen - at) as usize..) {
                Some(rest) => text = rest.to_owned(),
                None => return Ok(()),
            }
        }
        if text.contains(char::REPLACEMENT_CHARACTER) {
            slot.seen[of] = None;
            return Ok(());
        }
        slot.seen[of] = Some(seen + text.len() as u64);
        let written = self.printer.printed(slot, errors, anew, &text);
        self.unflushed = true;
        written.map_err(|error| self.unwritable(&error))
    }

    /// A job that ends before it begins.
    fn refuse(&mut self, index: usize, job: &Job, why: &str) -> Result<(), Failure> {
        if let Some(name) = &job.id {
            self.batch.unsent(name);
        }
        let mut result = JobResult::refused(why);
        result.received = Some(self.client.now());
        self.ended(index, &result)
    }

    fn ended(&mut self, index: usize, result: &JobResult) -> Result<(), Failure> {
        let Some(slot) = self.slots.get_mut(index).and_then(Option::take) else {
            return Ok(());
        };
        self.done += 1;
        self.waits.moved();
        // After Ctrl-C, jobs that never started are dropped without a line.
        let dropped = (self.signal.is_some() || self.halted.is_some())
            && result.status == JobStatus::Aborted
            && result.started.is_none();
        if !result.success() && !dropped {
            self.failed += 1;
            self.note_failure(&slot, result);
        }
        let bare;
        let mut result = result;
        if self.options.peek && self.options.capture.is_none() && !slot.captures {
            bare = JobResult {
                stdout: None,
                stderr: None,
                stdout_bytes: None,
                stderr_bytes: None,
                truncated: false,
                ..result.clone()
            };
            result = &bare;
        }
        if !dropped {
            let written = self.printer.finished(&slot, result);
            written.map_err(|error| self.unwritable(&error))?;
            self.progress
                .finished((self.done, self.total), result, &slot.cmd);
        }
        self.unflushed = true;
        self.consider_halt(&slot, result);
        Ok(())
    }

    /// The reader has gone (`| head`), or the disk is full: so the work ends, too.
    fn unwritable(&self, error: &std::io::Error) -> Failure {
        let _ = self.client.abort_session(self.client.session_id());
        Failure::new(format!("cannot write the results: {error}"))
    }

    /// The rest of what there is to print.
    fn end_printing(&mut self) -> Result<(), Failure> {
        let shared = self.printer.shares_terminal();
        let printer = &mut *self.printer;
        let written = self
            .progress
            .aside(shared, || printer.end().and_then(|()| printer.flush()));
        written.map_err(|error| self.unwritable(&error))
    }

    /// Whether this job was one too many.
    fn consider_halt(&mut self, slot: &Slot, result: &JobResult) {
        let Some(halt) = self.options.halt else {
            return;
        };
        if self.halted.is_some() || self.signal.is_some() || !halt.counts(result.success()) {
            return;
        }
        self.counted += 1;
        let total = self.options.expected.unwrap_or(self.total).max(self.total);
        if !halt.reached(self.counted, total) {
            return;
        }
        let how = match halt.what {
            What::Fail => "failed",
            What::Success => "succeeded",
            What::Done => "ended",
        };
        let own = result.code.and_then(|code| u8::try_from(code).ok());
        self.halted = Some(halt.status(own.unwrap_or(1), self.failed, total));
        self.progress.say(&format!(
            "no more jobs are started: {} {} {how}: {}",
            self.options.unit, slot.line, slot.cmd
        ));
        self.abort(halt.now);
    }

    /// First Ctrl-C: what waits is dropped, what runs is stopped; its results still come.
    fn interrupt(&mut self) {
        self.progress
            .say("interrupted: stopping the jobs (once more to leave at once)");
        self.abort(true);
    }

    /// Drops what waits; with `kill` what runs is stopped, too.
    fn abort(&mut self, kill: bool) {
        let (client, sender) = (self.client.clone(), self.events.sender.clone());
        let ids = self.batch.msg_ids();
        let limit = if self.signal.is_some() { STOP } else { HALT };
        let _ = spawn("abort", move || {
            let aborted = if kill {
                client.abort_own(limit)
            } else {
                client.abort(&ids, false)
            };
            if let Err(error) = aborted {
                let _ = sender.send(Event::AbortFailed(error.to_string()));
            }
        });
    }
}
