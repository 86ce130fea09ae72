//! Jobs on their way through the cluster: what `run` and `map` have in common.

mod events;
pub(crate) mod files;
mod place;
mod submit;

use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, never, select};
use ipbroker_client::job::{Job, JobResult, JobStatus};
use ipbroker_client::{Client, Notice};
use jiff::Timestamp;

use crate::cli::JobArgs;
use crate::failure::Failure;
use crate::local::Pulse;
use crate::output::progress::Progress;
use crate::source::Line;
use events::{Event, Events};
pub(crate) use submit::{Submitted, metadata};

/// Output is flushed at least this often, and at once when nothing happens.
const FLUSH: Duration = Duration::from_millis(50);
/// A stream is not read ahead of its results by more jobs than this.
const OUTSTANDING: u64 = 200_000;

/// What the jobs of one call have in common.
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
}

/// A job that has not ended.
#[derive(Clone)]
pub(crate) struct Slot {
    /// Its place in the order of input, from 0.
    pub(crate) index: u64,
    pub(crate) line: u64,
    pub(crate) text: Box<str>,
    pub(crate) has_result: bool,
    pub(crate) cmd: Box<str>,
}

/// Takes results as they come.
pub(crate) trait Printer {
    /// A job ended.
    fn finished(&mut self, slot: &Slot, result: &JobResult) -> std::io::Result<()>;
    /// Nothing more for the moment.
    fn flush(&mut self) -> std::io::Result<()>;
    /// Nothing more at all.
    fn end(&mut self) -> std::io::Result<()> {
        self.flush()
    }
    /// Its output and the progress bar are on one terminal.
    fn shares_terminal(&self) -> bool;
}

/// How it all ended.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Summary {
    pub(crate) failed: u64,
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
    submitted: submit::Submitted,
    files: files::Files,
    done: u64,
    failed: u64,
    /// Jobs, bad lines included.
    total: u64,
    signal: Option<i32>,
    last_flush: Instant,
    unflushed: bool,
    last_tick: Instant,
    said_no_engines: bool,
}

impl<'a> Runner<'a> {
    pub(crate) fn new(
        client: Client,
        options: Options,
        progress: Progress,
        printer: &'a mut dyn Printer,
    ) -> Result<Self, Failure> {
        let events = Events::new()?;
        let now = Instant::now();
        Ok(Self {
            client,
            options,
            progress,
            printer,
            events,
            slots: Vec::new(),
            submitted: submit::Submitted::default(),
            files: files::Files::default(),
            done: 0,
            failed: 0,
            total: 0,
            signal: None,
            last_flush: now,
            unflushed: false,
            last_tick: now,
            said_no_engines: false,
        })
    }

    fn engines(&self) -> usize {
        self.client
            .engine_count()
            .max(self.options.coming.unwrap_or(0) as usize)
    }

    /// Runs jobs that are all known.
    pub(crate) fn run_all(mut self, jobs: Vec<Job>) -> Result<Summary, Failure> {
        self.check_engines()?;
        let graph = ipbroker_client::job::Graph::new(&self.options.source, &jobs)
            .map_err(|error| Failure::usage(format!("{error}; nothing was submitted")))?;
        place::check(&self.client, &self.options, &jobs, &self.events.sender)?;
        self.total = jobs.len() as u64;
        self.progress.total(self.total);
        self.progress.started(self.total, self.engines());
        self.progress.flush();
        self.slots
            .extend((0..).zip(&jobs).map(|(index, job)| Some(slot(index, job))));
        for level in &graph.levels {
            self.submit(0, &jobs, level)?;
        }
        drop((jobs, graph));
        self.tell_no_engines();
        self.finish(None)
    }

    /// Runs jobs as they come.
    pub(crate) fn run_stream(self, lines: Receiver<Vec<Line>>) -> Result<Summary, Failure> {
        self.check_engines()?;
        self.progress.total(0);
        self.finish(Some(lines))
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
            let jobs = if waiting == 1 {
                "job waits"
            } else {
                "jobs wait"
            };
            self.progress.say(&format!(
                "no engines are registered: {waiting} {jobs}; start some with `ipengine -n 4`"
            ));
        }
    }

    /// The loop: results, lines, signals, until nothing is left.
    fn finish(mut self, mut input: Option<Receiver<Vec<Line>>>) -> Result<Summary, Failure> {
        let nothing = never();
        loop {
            if input.is_none() && self.done == self.total {
                break;
            }
            let full = self.total - self.done >= OUTSTANDING;
            let source = if full {
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
                    Ok(Event::Parts(parts)) => {
                        for (tag, part) in parts {
                            self.take(tag, &part)?;
                        }
                    }
                    Ok(Event::Signal(signal)) => {
                        if self.signal.is_some() {
                            self.printer.end()?;
                            self.printer.flush()?;
                            self.progress.end("interrupted");
                            return Ok(Summary { failed: self.failed, signal: self.signal, hurried: true });
                        }
                        self.signal = Some(signal);
                        input = None;
                        self.interrupt();
                    }
                    Ok(Event::AbortFailed(why)) => {
                        self.progress.say(&format!("the jobs could not be stopped: {why}"));
                        return Ok(Summary { failed: self.failed, signal: self.signal, hurried: true });
                    }
                    Ok(Event::Say(text)) => self.progress.say(&text),
                    Err(_) => break,
                },
                recv(source) -> batch => match batch {
                    Ok(batch) => self.take_lines(batch)?,
                    Err(_) => input = None,
                },
                default(wait) => {}
            }
            self.tidy()?;
        }
        self.printer.end()?;
        self.printer.flush()?;
        self.progress
            .position(self.done, self.failed, self.engines());
        self.progress.end(if self.signal.is_some() {
            "interrupted"
        } else {
            "completed"
        });
        Ok(Summary {
            failed: self.failed,
            signal: self.signal,
            hurried: false,
        })
    }

    /// Flushes in time, moves the bar, passes on what the library noticed.
    fn tidy(&mut self) -> Result<(), Failure> {
        if self.unflushed && (self.last_flush.elapsed() >= FLUSH || self.done == self.total) {
            self.unflushed = false;
            self.last_flush = Instant::now();
            let shared = self.printer.shares_terminal();
            let printer = &mut *self.printer;
            self.progress.aside(shared, || printer.flush())?;
            self.progress
                .position(self.done, self.failed, self.engines());
            self.progress.flush();
        }
        if self.last_tick.elapsed() >= Duration::from_millis(500) {
            self.last_tick = Instant::now();
            if let Some(pulse) = &self.options.pulse {
                pulse()?;
            }
            self.progress
                .position(self.done, self.failed, self.engines());
            self.tell_no_engines();
            for notice in self.client.take_notices() {
                let text = match notice {
                    Notice::Gone(silence) => {
                        format!(
                            "the controller has not answered for {} s: waiting for it to come back",
                            silence.as_secs()
                        )
                    }
                    Notice::Back => "the controller is back".to_owned(),
                    Notice::ShutDown => "the controller has shut down".to_owned(),
                    Notice::Trouble(trouble) => format!("the controller is in trouble: {trouble}"),
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
                    self.slots.push(Some(slot(index, &job)));
                    match self.submitted.check_stream(&job, &self.options) {
                        Ok(()) => good.push(jobs.len()),
                        Err(error) => bad.push((index as usize, error)),
                    }
                    jobs.push(*job);
                }
                Line::Bad { line, text, error } => {
                    let slot = Slot {
                        index,
                        line,
                        text: text.into(),
                        has_result: false,
                        cmd: "not a job".into(),
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
        } else {
            place::check_stream(&self.client, &self.options, &jobs, &self.events.sender);
        }
        for (index, error) in bad {
            let mut result = JobResult::refused(error);
            result.received = Some(Timestamp::now());
            self.ended(index, &result)?;
        }
        self.progress.total(self.total);
        // In a stream a job depends on earlier lines only; those of this very batch go first, one by one.
        let (free, bound): (Vec<usize>, Vec<usize>) = good.into_iter().partition(|at| {
            jobs[*at].placement.after.is_empty() && jobs[*at].placement.follow.is_empty()
        });
        self.submit(base, &jobs, &free)?;
        for at in bound {
            self.submit(base, &jobs, &[at])?;
        }
        self.tell_no_engines();
        Ok(())
    }

    fn take(&mut self, tag: u64, part: &ipbroker_client::Part) -> Result<(), Failure> {
        let Some(group) = self.submitted.groups.get(tag as usize) else {
            return Ok(());
        };
        let (submitted, members) = (group.submitted, group.members.clone());
        for member in part.lo..part.hi {
            let Some(&index) = members.get(member as usize) else {
                continue;
            };
            let (result, received) = match &part.outcome {
                Ok(reply) => (
                    JobResult::from_command(reply.command(member)),
                    reply.received,
                ),
                Err(error) => (JobResult::from_error(error), Timestamp::now()),
            };
            let msg_id = self.submitted.groups[tag as usize].msg_id(member);
            let mut result = result.with(msg_id, submitted, received);
            if let Some(error) = &mut result.error {
                *error = self.submitted.rename(error, self.client.session_id());
            }
            let reply = part.outcome.as_ref().ok().map(|reply| &**reply);
            if let Some(result) = self.settle_files(index as usize, reply, result)? {
                self.ended(index as usize, &result)?;
            }
        }
        Ok(())
    }

    fn ended(&mut self, index: usize, result: &JobResult) -> Result<(), Failure> {
        let Some(slot) = self.slots.get_mut(index).and_then(Option::take) else {
            return Ok(());
        };
        self.done += 1;
        if !result.success() {
            self.failed += 1;
        }
        // After Ctrl-C, jobs that never started are dropped without a line.
        let dropped = self.signal.is_some()
            && result.status == JobStatus::Aborted
            && result.started.is_none();
        if !dropped {
            let written = self.printer.finished(&slot, result);
            if let Err(error) = written {
                // The reader has gone (`| head`): so does the work.
                let _ = self.client.abort_session(self.client.session_id());
                return Err(Failure::new(format!("cannot write the results: {error}")));
            }
            self.progress
                .finished((self.done, self.total), result, &slot.cmd);
        }
        self.unflushed = true;
        Ok(())
    }

    /// First Ctrl-C: what waits is dropped, what runs is stopped; its results still come.
    fn interrupt(&mut self) {
        self.progress
            .say("interrupted: stopping the jobs (once more to leave at once)");
        let (client, sender) = (self.client.clone(), self.events.sender.clone());
        let _ = std::thread::Builder::new()
            .name("abort".into())
            .spawn(move || {
                if let Err(error) = client.abort_session(client.session_id()) {
                    let _ = sender.send(Event::AbortFailed(error.to_string()));
                }
            });
    }
}

fn slot(index: u64, job: &Job) -> Slot {
    Slot {
        index,
        line: job.line,
        text: job.text.clone(),
        has_result: job.has_result,
        cmd: job.cmd.as_str().into(),
    }
}
