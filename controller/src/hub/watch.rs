//! Samples of the whole cluster, for whoever watches: the page, metrics, `ipclient top` and `ipclient events`.
//!
//! One sample serves all who wait for one, at most four times a second, and none is taken while nobody does. Nothing
//! waits for a watcher: programs get an answer to a question that they ask again when they want more, and the page's
//! thread finds the newest sample in a place of its own ([`tokio::sync::watch`]).

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    sync::Arc,
    time::{Duration, Instant},
};

use ipbroker_protocol::{
    message::{EngineSample, EventsRequest, HostSample, Sample, Slice, TaskCounts},
    time::unix_seconds,
};
use serde_json::Value;

use super::{ask::Asker, peer::Rows, run::Hub};
use crate::{
    relay::mux,
    scheduler::{
        command::{Command, EngineWork, Watched},
        core::Totals,
    },
};

/// Counts as they are told; `direct`: of tasks that went past the scheduler.
pub(super) fn counts(tasks: &Totals, direct: u64) -> TaskCounts {
    TaskCounts {
        ready: tasks.ready,
        blocked: tasks.blocked,
        running: tasks.running,
        direct,
        completed: tasks.completed,
        failed: tasks.failed,
        aborted: tasks.aborted,
    }
}

/// The least time between two samples.
const PERIOD: Duration = Duration::from_millis(250);

/// With a page that nobody has open, for the history that it begins with.
const IDLE_PERIOD: Duration = Duration::from_secs(2);

/// Of the page's place with no page open: its thread has two.
const RECEIVERS: usize = 2;

/// Programs that may wait for a sample at once.
const WAITING: usize = 256;

/// Slices kept for those who come late, and points of the history: an hour of [`IDLE_PERIOD`].
const SLICES: usize = 5000;
const HISTORY: usize = 1800;

/// A sample, and what only metrics tell.
#[derive(Debug, Clone, Default)]
pub(crate) struct Snapshot {
    pub(crate) sample: Sample,
    pub(crate) submitted: u64,
    /// As [`Watched`] has them.
    pub(crate) durations: Vec<u64>,
    pub(crate) seconds: f64,
    pub(crate) python_engines: usize,
    pub(crate) store_lag: u64,
    pub(crate) store_bytes: u64,
    pub(crate) relay_bytes: usize,
    pub(crate) refused: u64,
}

/// A point of the history: time, tasks that wait, that run, that have ended well, in an error, and aborted.
pub(crate) type Point = (f64, u64, u64, u64, u64, u64);

/// What the page begins with.
#[derive(Debug, Clone, Default)]
pub(crate) struct Past {
    pub(crate) points: Vec<Point>,
    pub(crate) slices: Vec<Slice>,
}

/// Where the page's thread finds the newest sample.
pub(crate) type Place = tokio::sync::watch::Sender<Arc<Snapshot>>;

type Waiter = Box<dyn FnOnce(&mut Hub, &Snapshot) + Send>;

/// What the hub knows of watchers.
pub(super) struct Watch {
    waiting: Vec<Waiter>,
    page: Option<Place>,
    /// A sample is being taken.
    asked: bool,
    next: Instant,
    latest: Arc<Snapshot>,
    /// The last slices, each with the number of its sample.
    slices: VecDeque<(u64, Slice)>,
    points: VecDeque<Point>,
}

impl Watch {
    pub(super) fn new(page: Option<Place>) -> Self {
        Self {
            waiting: Vec::new(),
            page,
            asked: false,
            next: Instant::now(),
            latest: Arc::default(),
            slices: VecDeque::new(),
            points: VecDeque::new(),
        }
    }

    /// When a sample is to be taken, if anybody wants one.
    pub(super) fn due(&self) -> Option<Instant> {
        if self.asked {
            return None;
        }
        let page = self.page.as_ref();
        let open = page.is_some_and(|page| page.receiver_count() > RECEIVERS);
        // The first one begins the history.
        let first = page.is_some() && self.points.is_empty();
        if open || first || !self.waiting.is_empty() {
            Some(self.next)
        } else {
            page.map(|_| self.next + (IDLE_PERIOD - PERIOD))
        }
    }
}

impl Hub {
    /// `events_request`.
    pub(super) fn events(&mut self, asker: &Asker, content: Value) {
        let Some(EventsRequest { after }) = self.read(asker, content) else {
            return;
        };
        if self.watch.waiting.len() >= WAITING {
            let what = format!("{WAITING} programs watch this cluster already");
            return self.fail(asker, "RuntimeError", what);
        }
        let to = asker.clone();
        self.sample_then(move |hub, snapshot| {
            let mut sample = snapshot.sample.clone();
            // A number from another life of the controller is no number of ours.
            if after > 0 && after < sample.seq {
                let slices = hub.watch.slices.iter();
                let newer = slices.filter(|(seq, _)| *seq > after);
                sample.slices = newer.map(|(_, slice)| slice.clone()).collect();
            }
            hub.reply_ok(&to, &sample);
        });
    }

    /// Calls `then` with the next sample.
    pub(crate) fn sample_then(&mut self, then: impl FnOnce(&mut Hub, &Snapshot) + Send + 'static) {
        self.watch.waiting.push(Box::new(then));
    }

    /// What a page that is opened now begins with.
    pub(crate) fn past(&self) -> Past {
        let slices = self.watch.slices.iter();
        Past {
            points: self.watch.points.iter().copied().collect(),
            slices: slices.map(|(_, slice)| slice.clone()).collect(),
        }
    }

    /// Takes a sample if it is time for one.
    pub(super) fn watch(&mut self, now: Instant) {
        if self.watch.due().is_none_or(|due| due > now) {
            return;
        }
        self.watch.asked = true;
        self.watch.next = now + PERIOD;
        let answer = self.then(move |hub, tasks: Box<Watched>| {
            let answer = hub.then(move |hub, direct| {
                let answer = hub.then(move |hub, bytes: usize| {
                    let rows = Rows::direct_only(direct);
                    hub.sampled(*tasks, &rows, bytes);
                });
                hub.links.mux.send(mux::Request::Bytes(answer));
            });
            let verbose = false;
            hub.links.mux.send(mux::Request::Status { verbose, answer });
        });
        self.links.tasks.send(Command::Watch(answer));
    }

    fn sampled(&mut self, tasks: Watched, direct: &Rows, relay_bytes: usize) {
        let snapshot = self.snapshot(tasks, direct, relay_bytes);
        let sample = &snapshot.sample;
        let counts = sample.tasks;
        let point = (
            sample.time,
            counts.ready + counts.blocked,
            counts.running + counts.direct,
            counts.completed,
            counts.failed,
            counts.aborted,
        );
        let watch = &mut self.watch;
        watch.asked = false;
        let last = watch.points.back().map_or(0.0, |(time, ..)| *time);
        if sample.time - last >= IDLE_PERIOD.as_secs_f64() * 0.9 {
            if watch.points.len() >= HISTORY {
                watch.points.pop_front();
            }
            watch.points.push_back(point);
        }
        let new = sample.slices.iter().cloned();
        watch.slices.extend(new.map(|slice| (sample.seq, slice)));
        let surplus = watch.slices.len().saturating_sub(SLICES);
        watch.slices.drain(..surplus);
        watch.latest = Arc::new(snapshot);
        let latest = watch.latest.clone();
        if let Some(page) = &watch.page {
            page.send_replace(latest.clone());
        }
        for waiter in std::mem::take(&mut watch.waiting) {
            waiter(self, &latest);
        }
    }

    fn snapshot(&self, mut tasks: Watched, direct: &Rows, relay_bytes: usize) -> Snapshot {
        let time = unix_seconds();
        let begun = time - tasks.now;
        let at = |seconds: f64| begun + seconds;
        let by_uuid = tasks.engines.iter().map(|row| (row.uuid.as_str(), row));
        let by_uuid: HashMap<&str, &EngineWork> = by_uuid.collect();
        let engines = self.registry.iter().map(|(id, engine)| {
            let profile = &engine.profile;
            let work = by_uuid.get(profile.uuid.as_str());
            let direct = direct.direct(&profile.uuid);
            EngineSample {
                id,
                host: profile.host.first().cloned().unwrap_or_default(),
                kind: profile.kind().into(),
                outstanding: direct.running + work.map_or(0, |work| work.outstanding),
                completed: direct.completed + work.map_or(0, |work| work.completed),
                task: work.and_then(|work| work.task.clone()),
                what: work.and_then(|work| work.what.clone()),
                task_kind: work.and_then(|work| work.task_kind.clone()),
                since: work.and_then(|work| work.since).map(at),
                leaving: work.is_some_and(|work| work.leaving),
            }
        });
        let engines: Vec<EngineSample> = engines.collect();
        let mut hosts: BTreeMap<&str, HostSample> = BTreeMap::new();
        for (sample, (_, engine)) in engines.iter().zip(self.registry.iter()) {
            let host = hosts.entry(&sample.host).or_default();
            host.engines += 1;
            host.busy += u64::from(sample.outstanding > 0);
            host.load = host.load.or(engine.load);
        }
        let hosts = hosts.into_iter().map(|(name, host)| HostSample {
            host: name.to_owned(),
            ..host
        });
        let hosts: Vec<HostSample> = hosts.collect();
        for row in &mut tasks.submissions {
            (row.begun, row.ended) = (at(row.begun), row.ended.map(at));
        }
        for row in &mut tasks.failures {
            row.last = at(row.last);
        }
        for slice in &mut tasks.slices {
            (slice.begun, slice.ended) = (at(slice.begun), at(slice.ended));
        }
        let store = self.links.store.status();
        Snapshot {
            sample: Sample {
                seq: self.watch.latest.sample.seq + 1,
                time,
                uptime: self.started.elapsed().as_secs_f64(),
                incarnation: self.settings.incarnation.clone(),
                version: env!("CARGO_PKG_VERSION").into(),
                scheme: self.settings.scheme.clone(),
                clients: self.leases.len() as u64,
                tasks: counts(&tasks.totals, direct.all_direct()),
                engines,
                hosts,
                submissions: tasks.submissions,
                failures: tasks.failures,
                slices: tasks.slices,
                troubles: self.all_troubles(),
            },
            submitted: tasks.submitted,
            durations: tasks.durations,
            seconds: tasks.seconds,
            python_engines: self
                .registry
                .iter()
                .filter(|(_, engine)| !engine.profile.is_ours())
                .count(),
            store_lag: store.lag,
            store_bytes: store.bytes,
            relay_bytes,
            refused: self.junk_total.get(),
        }
    }

    /// A request of the page: the same as programs make, but for its way.
    pub(crate) fn page_request(
        &mut self,
        msg_type: &str,
        content: Value,
        answer: tokio::sync::mpsc::UnboundedSender<Value>,
    ) {
        self.serve(&Asker::page(msg_type, answer), content);
    }
}
