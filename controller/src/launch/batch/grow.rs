//! The thread that keeps batch jobs: it watches them, submits more while tasks wait, and cancels them at the end.
//!
//! Invariants: the engines of all jobs, waiting ones included, are never more than `max`; those that stay are `min` again as
//! soon as the batch system allows; no more than [`BACKLOG`] jobs wait in its queue; after a job that was refused, that
//! cannot run, that ended before any engine of it came, or for whose engines there was nothing to do, nothing is submitted for a
//! time that doubles with each such failure in a row; nor is before the batch system has said what became of an earlier controller's jobs. For tasks that may run longer than
//! the batch system allows nothing is submitted, and what waits beside them is none the worse. A job that no task has waited for as long as
//! an engine may be idle leaves the queue.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use ipbroker_protocol::wake::Wake;
use serde_json::json;

use super::{
    BatchError, Demand, Growth, Job, JobState, LaunchEvent, Plan, Recorded, Sink, Ways, cancel,
    last_words, recorded, state, submit, template, why, write_record, write_script,
};

/// How often jobs are looked at that run; others six times as often.
const WATCH: Duration = Duration::from_secs(3);

/// Jobs that may wait in the queue of the batch system.
const BACKLOG: usize = 4;

/// How long the engines of a job that runs may take to come: until then they are counted as coming.
const COMING: Duration = Duration::from_secs(10);

/// How long nothing is submitted after a failure, and at most.
const BACK_OFF: (Duration, Duration) = (Duration::from_secs(10), Duration::from_secs(600));

/// A job, and what is known of it.
struct Watched {
    job: Job,
    state: JobState,
    /// Since when it is in this state.
    since: Instant,
    /// Engines that had joined when it was submitted, and tasks that had been given to engines.
    joined: u64,
    given: Option<u64>,
    /// Since when it waits in the queue though no task waits for it.
    needless: Option<Instant>,
}

/// See the head of this file.
pub(super) struct Keeper {
    plan: Plan,
    sink: Sink,
    ways: Ways,
    stop: Arc<AtomicBool>,
    joined: Arc<AtomicU64>,
    wake: Wake,
    jobs: Vec<Watched>,
    /// Those of an earlier controller of which the batch system has said nothing yet.
    unsure: Vec<Job>,
    /// Failures in a row, what the last one was, and until when nothing is submitted.
    failures: u32,
    trouble: Option<String>,
    retry: Instant,
    too_long: Option<TooLong>,
    /// Engines were wanted when that was asked last.
    wanted: bool,
}

/// Tasks that may run for `time` are too long for the batch system, until it is tried again.
struct TooLong {
    time: Duration,
    trouble: String,
    until: Instant,
}

impl Keeper {
    pub(super) fn new(
        plan: Plan,
        sink: Sink,
        ways: Ways,
        (stop, joined): (Arc<AtomicBool>, Arc<AtomicU64>),
        wake: Wake,
    ) -> Self {
        Self {
            plan,
            sink,
            ways,
            stop,
            joined,
            wake,
            jobs: Vec::new(),
            unsure: Vec::new(),
            failures: 0,
            trouble: None,
            retry: Instant::now(),
            too_long: None,
            wanted: false,
        }
    }

    fn progress(&self, host: String, step: String) {
        (self.sink)(LaunchEvent::Progress { host, step });
    }

    fn failed(&self, host: impl Into<String>, reason: String) {
        let host = host.into();
        (self.sink)(LaunchEvent::Failed { host, reason });
    }

    fn name(&self, job: &str) -> String {
        format!("{} job {job}", self.plan.system.name)
    }

    /// Takes over what an earlier controller has left, and submits what is there from the beginning.
    pub(super) fn begin(&mut self) -> Result<(), BatchError> {
        self.unsure = recorded(&self.plan);
        self.take_over()
    }

    /// Takes over what is left of an earlier controller's jobs; when that is known of all, submits what lacks.
    fn take_over(&mut self) -> Result<(), BatchError> {
        self.trouble = None;
        for job in std::mem::take(&mut self.unsure) {
            match state(self.plan.system, &job.number) {
                None => self.unsure.push(job),
                Some(JobState::Gone) => {}
                Some(_) => {
                    let step = format!("{} engine(s) of the earlier controller", job.engines);
                    self.progress(self.name(&job.number), step);
                    self.watch(job);
                }
            }
        }
        if let Some(job) = self.unsure.first() {
            let (query, _) = (self.plan.system.query)(&job.number);
            let name = self.name(&job.number);
            self.fail(format!(
                "{query} does not say what became of {name} of the earlier controller"
            ));
            self.failed(
                self.plan.system.name,
                self.trouble.clone().unwrap_or_default(),
            );
        } else {
            self.failures = 0;
            match self.plan.growth {
                None if self.jobs.is_empty() => {
                    self.submit(self.plan.engines, true, Duration::ZERO)?;
                }
                None => {}
                Some(growth) => self.fill(growth)?,
            }
        }
        self.tell();
        Ok(())
    }

    fn watch(&mut self, job: Job) {
        self.jobs.push(Watched {
            job,
            state: JobState::Waiting("submitted".into()),
            since: Instant::now(),
            joined: self.joined.load(Ordering::Relaxed),
            given: (self.ways.given)(),
            needless: None,
        });
    }

    /// Submits a job of so many engines, for tasks that may run so long.
    fn submit(&mut self, engines: u32, stays: bool, time: Duration) -> Result<(), BatchError> {
        let mut plan = self.plan.clone();
        (plan.engines, plan.time) = (engines, time);
        if let (Some(growth), false) = (&self.plan.growth, stays) {
            plan.engine_args
                .push(format!("--idle={}", growth.idle.as_secs_f64()));
        }
        let script = write_script(&plan)?;
        let number = submit(&plan, &script)?;
        let step = format!("submitted {engines} engine(s) ({})", script.display());
        self.progress(self.name(&number), step);
        self.watch(Job {
            number,
            engines,
            stays,
            time,
        });
        Ok(())
    }

    fn engines(&self, count: impl Fn(&Watched) -> bool) -> u32 {
        let counted = self.jobs.iter().filter(|watched| count(watched));
        counted.map(|watched| watched.job.engines).sum()
    }

    fn in_queue(&self) -> usize {
        let waits = |watched: &&Watched| matches!(watched.state, JobState::Waiting(_));
        self.jobs.iter().filter(waits).count()
    }

    /// Submits what lacks of the engines that stay.
    fn fill(&mut self, growth: Growth) -> Result<(), BatchError> {
        loop {
            let lacking = growth
                .min
                .saturating_sub(self.engines(|watched| watched.job.stays));
            let room = growth.max.saturating_sub(self.engines(|_| true));
            let engines = lacking.min(room).min(self.plan.engines);
            if engines == 0 {
                return Ok(());
            }
            self.submit(engines, true, Duration::ZERO)?;
        }
    }

    /// Submits more while tasks wait, and cancels what none waits for any more.
    fn grow(&mut self, growth: Growth) -> Result<(), BatchError> {
        self.fill(growth)?;
        let limit = u64::from(growth.max) + 1;
        let template = template(&self.plan)?;
        let as_asked = (self.plan.system).takes_time(&template, &self.plan.options);
        let short = |too_long: &TooLong| too_long.time - Duration::from_nanos(1);
        let longest = self.too_long.as_ref().map_or(Duration::MAX, short);
        let Some(demand) = (self.ways.demand)(limit, as_asked.then_some(longest)) else {
            return Ok(());
        };
        self.wanted = !demand.is_empty();
        self.cancel_needless(growth, &demand);
        // What is for long tasks is for short ones, too.
        let mut wanted = 0;
        for (time, more) in demand {
            wanted += more;
            while let Some(engines) = self.lacking(growth, wanted, time) {
                match self.submit(engines, false, time) {
                    // The next look asks for what is shorter.
                    Err(error) if self.is_too_long(time, &error.to_string()) => return Ok(()),
                    done => done?,
                }
            }
        }
        Ok(())
    }

    /// Whether that is why a job for tasks that may run so long was refused, or cannot run: then that is noted.
    fn is_too_long(&mut self, time: Duration, why: &str) -> bool {
        let system = self.plan.system;
        let is = !time.is_zero() && system.too_long.iter().any(|words| why.contains(words));
        if is {
            self.too_long = Some(TooLong {
                time,
                trouble: format!(
                    "{why}; nothing is submitted to {} for tasks that may run {} min or longer",
                    system.name,
                    time.as_secs().div_ceil(60)
                ),
                until: Instant::now() + BACK_OFF.1,
            });
        }
        is
    }

    /// Engines that will come and stay so long.
    fn coming(&self, time: Duration) -> u64 {
        let comes = |watched: &Watched| match watched.state {
            _ if watched.job.time < time => false,
            JobState::Waiting(_) => true,
            _ => watched.since.elapsed() < COMING,
        };
        self.engines(comes).into()
    }

    /// Takes jobs out of the queue that have not been needed for as long as an engine may be idle, the newest first.
    fn cancel_needless(&mut self, growth: Growth, demand: &Demand) {
        let mut wanted = 0;
        let wanted = demand.iter().map(|&(time, more)| {
            wanted += more;
            (time, wanted)
        });
        // By time: how many engines more will come than are wanted.
        let mut spare: Vec<(Duration, u64)> = wanted
            .map(|(time, wanted)| (time, self.coming(time).saturating_sub(wanted)))
            .collect();
        for at in (0..self.jobs.len()).rev() {
            let watched = &mut self.jobs[at];
            let (engines, time) = (u64::from(watched.job.engines), watched.job.time);
            let needed = (spare.iter()).any(|(of, spare)| *of <= time && *spare < engines);
            let waits = matches!(watched.state, JobState::Waiting(_));
            if needed || watched.job.stays || !waits {
                watched.needless = None;
                continue;
            }
            for (_, spare) in spare.iter_mut().filter(|(of, _)| *of <= time) {
                *spare -= engines;
            }
            let since = *watched.needless.get_or_insert_with(Instant::now);
            if since.elapsed() < growth.idle {
                continue;
            }
            // It is asked again if it is still there after the same time.
            watched.needless = Some(Instant::now());
            let number = &*self.jobs[at].job.number;
            let host = self.name(number);
            match cancel(self.plan.system, &[number], false) {
                Ok(()) => self.progress(host, "cancelled: no task waits for it any more".into()),
                Err(reason) => self.failed(host, reason),
            }
        }
    }

    /// How many engines the next job is, of those that are wanted for so long.
    fn lacking(&self, growth: Growth, wanted: u64, time: Duration) -> Option<u32> {
        let coming = self.coming(time);
        let room = growth.max.saturating_sub(self.engines(|_| true));
        let wanted = u32::try_from(wanted.saturating_sub(coming)).unwrap_or(u32::MAX);
        let engines = room.min(wanted).min(self.plan.engines);
        (engines > 0 && self.in_queue() < BACKLOG).then_some(engines)
    }

    fn fail(&mut self, why: String) {
        let (first, most) = BACK_OFF;
        let pause = first.saturating_mul(1 << self.failures.min(10)).min(most);
        self.failures += 1;
        self.retry = Instant::now() + pause;
        self.trouble = Some(format!(
            "{why}; nothing is submitted to {} for {} s",
            self.plan.system.name,
            pause.as_secs()
        ));
    }

    fn refused(&mut self, error: &BatchError) {
        self.failed(self.plan.system.name, error.to_string());
        self.fail(error.to_string());
    }

    pub(super) fn run(mut self) {
        loop {
            if self.stop.load(Ordering::Acquire) {
                return self.end();
            }
            let mut changed = self.look();
            match self.plan.growth {
                _ if !self.unsure.is_empty() => {
                    if Instant::now() >= self.retry
                        && let Err(error) = self.take_over()
                    {
                        self.refused(&error);
                        changed = true;
                    }
                }
                None if self.jobs.is_empty() => return self.tell(),
                None => {}
                Some(growth) if Instant::now() >= self.retry => {
                    let before = self.jobs.len();
                    changed |= self.trouble.take().is_some();
                    let over = |too_long: &mut TooLong| Instant::now() >= too_long.until;
                    changed |= self.too_long.take_if(over).is_some();
                    let known = self.too_long.as_ref().map(|known| known.time);
                    if let Err(error) = self.grow(growth) {
                        self.refused(&error);
                    }
                    changed |= self.jobs.len() != before || self.trouble.is_some();
                    changed |= self.too_long.as_ref().map(|known| known.time) != known;
                }
                Some(_) => {}
            }
            if changed {
                self.tell();
            }
            // Each look is a command a job.
            let crowd = 1 + self.jobs.len() as u32 / 16;
            let quick = self.plan.growth.is_some() || self.in_queue() > 0;
            self.wake
                .wait(crowd * if quick { WATCH / 6 } else { WATCH });
            self.wake.clear();
        }
    }

    /// Looks how the jobs are; true if one is otherwise than before.
    fn look(&mut self) -> bool {
        let mut changed = false;
        let mut at = 0;
        // At the end there is no time for it.
        while at < self.jobs.len() && !self.stop.load(Ordering::Acquire) {
            let watched = &self.jobs[at];
            let (host, engines) = (self.name(&watched.job.number), watched.job.engines);
            match state(self.plan.system, &watched.job.number) {
                Some(JobState::Gone) => {
                    let watched = self.jobs.swap_remove(at);
                    self.gone(&watched, host);
                    changed = true;
                    continue;
                }
                Some(JobState::Stuck(state)) => {
                    let watched = self.jobs.swap_remove(at);
                    self.stuck(&watched, &state);
                    changed = true;
                    continue;
                }
                Some(state) if watched.state != state => {
                    if let JobState::Waiting(why) = &state {
                        self.progress(host, format!("waiting: {why}"));
                    } else {
                        (self.sink)(LaunchEvent::Started {
                            host: host.clone(),
                            engines,
                        });
                        if self.plan.growth.is_none() {
                            (self.sink)(LaunchEvent::Settled {
                                engines: vec![(host, engines)],
                                failed: Vec::new(),
                            });
                        }
                    }
                    let watched = &mut self.jobs[at];
                    (watched.state, watched.since) = (state, Instant::now());
                    changed = true;
                }
                // A system that does not answer for a while says nothing about the job.
                _ => {}
            }
            at += 1;
        }
        changed
    }

    /// A job that will not run is no job: it counts as a failed one, and does not stay in the queue.
    fn stuck(&mut self, watched: &Watched, state: &str) {
        let (system, number) = (self.plan.system, &*watched.job.number);
        let host = self.name(number);
        let why = why(system, number).map_or(String::new(), |why| format!(": {why}"));
        let reason = format!("{host} cannot run ({state}){why}");
        if let Err(error) = cancel(system, &[number], false) {
            self.failed(&*host, error);
        }
        self.failed(host, reason.clone());
        if !self.is_too_long(watched.job.time, &reason) {
            self.fail(reason);
        }
    }

    fn gone(&mut self, watched: &Watched, host: String) {
        if watched.needless.is_some() {
            return;
        }
        let came = self.joined.load(Ordering::Relaxed) > watched.joined;
        if self.plan.growth.is_none() || !came {
            for line in last_words(&self.plan.dir, &watched.job.number) {
                let host = host.clone();
                (self.sink)(LaunchEvent::Stderr { host, line });
            }
        }
        let idle = !watched.job.stays && (self.ways.given)() == watched.given;
        match self.plan.growth {
            None => {}
            Some(_) if !came => self.fail(format!("{host} ended before an engine of it came")),
            // Tasks that its engines cannot run would have it submitted again and again. Several such jobs are one failure.
            Some(_) if idle && self.wanted && Instant::now() >= self.retry => self.fail(format!(
                "{host} ended, and no task was given to an engine while it was there"
            )),
            Some(_) if idle => {}
            Some(_) => self.failures = 0,
        }
        // Engines that were idle have left, as they should.
        let status = (came && self.plan.growth.is_some()).then_some(0);
        (self.sink)(LaunchEvent::Ended { host, status });
    }

    /// Tells and notes what there is.
    fn tell(&self) {
        let jobs = self.jobs.iter().map(|watched| watched.job.clone());
        let recorded = Recorded {
            system: self.plan.system.name.to_owned(),
            jobs: jobs.chain(self.unsure.iter().cloned()).collect(),
        };
        write_record(&self.plan.record, &recorded);
        let job = |watched: &Watched| {
            let state = match &watched.state {
                JobState::Waiting(why) => format!("waiting: {why}"),
                JobState::Running => "running".to_owned(),
                JobState::Stuck(why) => why.clone(),
                JobState::Gone => "gone".to_owned(),
            };
            json!({"job": watched.job.number, "engines": watched.job.engines, "state": state})
        };
        let mut told = json!({
            "system": self.plan.system.name,
            "jobs": self.jobs.iter().map(job).collect::<Vec<_>>(),
        });
        if let Some(growth) = self.plan.growth {
            told["min"] = growth.min.into();
            told["max"] = growth.max.into();
        }
        let too_long = self.too_long.as_ref().map(|too_long| &too_long.trouble);
        if let Some(trouble) = self.trouble.as_ref().or(too_long) {
            told["trouble"] = trouble.clone().into();
        }
        (self.ways.tell)(told);
    }

    /// Cancels everything; the launcher does not wait for longer than its grace.
    fn end(self) {
        let jobs = self.jobs.iter().map(|watched| &watched.job);
        let numbers: Vec<&str> = jobs.chain(&self.unsure).map(|job| &*job.number).collect();
        if let Err(reason) = cancel(self.plan.system, &numbers, true) {
            self.failed(self.plan.system.name, reason);
        }
    }
}
