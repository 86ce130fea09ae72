//! `--hwm=auto` in virtual time: engines, messages and a controller with plain costs around the real core.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};
use std::ops::Range;

use ipbroker_controller::scheduler::core::*;
use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};

const MICROSECOND: Nanos = 1_000;

/// What messages cost.
const ONE_WAY: Nanos = 100 * MICROSECOND;
const CONTROLLER: Nanos = 6 * MICROSECOND;
const ENGINE: Nanos = 12 * MICROSECOND;
/// Engines report on a chunk this often.
const FLUSH: Nanos = 10 * MILLISECOND;

type Item = (GroupKey, Range<u32>);

enum Event {
    /// Reaches the engine.
    Given(usize, Item),
    Recalled(usize, Vec<Item>),
    /// The engine is done with what it was at.
    Free(usize),
    /// Reaches the controller.
    Reply(usize, Item, Nanos),
    Back(usize, Item),
    Wake,
}

struct Engine {
    key: EngineKey,
    queue: VecDeque<Item>,
    busy: bool,
}

struct Simulation {
    core: Core,
    engines: Vec<Engine>,
    events: BinaryHeap<Reverse<(Nanos, u64)>>,
    what: std::collections::HashMap<u64, Event>,
    next: u64,
    controller_free: Nanos,
    wake_at: Nanos,
    /// Run times: by the first group's index for single tasks, by member for an array.
    runs: Vec<Nanos>,
    numbers: std::collections::HashMap<GroupKey, usize>,
    messages: u64,
    done: u64,
}

impl Simulation {
    fn new(hwm: Hwm, engines: usize) -> Self {
        let mut core = Core::new(
            Config {
                hwm,
                ..Config::default()
            },
            Box::new(Builtin::LeastLoad),
        );
        let capabilities = vec!["run".to_owned()];
        let engines = (0..engines)
            .map(|i| Engine {
                key: core.engine_joined(
                    0,
                    &EngineSpec {
                        uuid: &format!("e{i}"),
                        capabilities: &capabilities,
                        can_give_back: true,
                        ..EngineSpec::default()
                    },
                ),
                queue: VecDeque::new(),
                busy: false,
            })
            .collect();
        Simulation {
            core,
            engines,
            events: BinaryHeap::new(),
            what: Default::default(),
            next: 0,
            controller_free: 0,
            wake_at: Nanos::MAX,
            runs: Vec::new(),
            numbers: Default::default(),
            messages: 0,
            done: 0,
        }
    }

    fn at(&mut self, time: Nanos, event: Event) {
        self.next += 1;
        self.events.push(Reverse((time, self.next)));
        self.what.insert(self.next, event);
    }

    /// Carries out what the core wants; the controller sends one message after another.
    fn act(&mut self, now: Nanos) {
        while let Some(action) = self.core.poll() {
            match action {
                Action::Dispatch {
                    group,
                    range,
                    engine,
                    ..
                } => {
                    self.messages += 1;
                    self.controller_free = self.controller_free.max(now) + CONTROLLER;
                    self.at(
                        self.controller_free + ONE_WAY,
                        Event::Given(engine.slot(), (group, range)),
                    );
                }
                Action::Recall { engine, items } => {
                    self.controller_free = self.controller_free.max(now) + CONTROLLER;
                    self.at(
                        self.controller_free + ONE_WAY,
                        Event::Recalled(engine.slot(), items),
                    );
                }
                Action::Release { .. } | Action::Requeue { .. } => {}
                other => panic!("{other:?}"),
            }
        }
        if let Some(at) = self.core.next_wakeup()
            && at < self.wake_at
        {
            self.wake_at = at;
            self.at(at, Event::Wake);
        }
    }

    fn start(&mut self, now: Nanos, engine: usize) {
        if self.engines[engine].busy {
            return;
        }
        let Some((group, range)) = self.engines[engine].queue.pop_front() else {
            return;
        };
        // As much of a chunk as fits into the time between two reports.
        let first = self.numbers[&group];
        let (mut end, mut run) = (range.start, 0);
        while end < range.end && (end == range.start || run < FLUSH) {
            run += self.runs[first + end as usize];
            end += 1;
        }
        if end < range.end {
            self.engines[engine]
                .queue
                .push_front((group, end..range.end));
        }
        self.engines[engine].busy = true;
        let done = now + ENGINE + run;
        self.at(done, Event::Free(engine));
        self.at(
            done + ONE_WAY,
            Event::Reply(engine, (group, range.start..end), run),
        );
    }

    fn go(&mut self, tasks: u64) -> Nanos {
        let mut last = 0;
        self.act(0);
        while let Some(Reverse((time, id))) = self.events.pop() {
            match self.what.remove(&id).expect("each once") {
                Event::Given(engine, item) => {
                    self.engines[engine].queue.push_back(item);
                    self.start(time, engine);
                }
                Event::Free(engine) => {
                    self.engines[engine].busy = false;
                    self.start(time, engine);
                }
                Event::Recalled(engine, items) => {
                    for (group, range) in items {
                        let queue = &mut self.engines[engine].queue;
                        let mut kept = VecDeque::new();
                        let mut back = Vec::new();
                        for (g, r) in queue.drain(..) {
                            let (lo, hi) = (r.start.max(range.start), r.end.min(range.end));
                            if g != group || lo >= hi {
                                kept.push_back((g, r));
                                continue;
                            }
                            back.push((g, lo..hi));
                            for part in [r.start..lo, hi..r.end] {
                                if !part.is_empty() {
                                    kept.push_back((g, part));
                                }
                            }
                        }
                        *queue = kept;
                        for item in back {
                            self.at(time + ONE_WAY, Event::Back(engine, item));
                        }
                    }
                }
                Event::Reply(engine, (group, range), run) => {
                    self.controller_free = self.controller_free.max(time) + CONTROLLER;
                    let (now, key) = (self.controller_free, self.engines[engine].key);
                    self.messages += 1;
                    self.done += u64::from(range.end - range.start);
                    let deliver =
                        self.core
                            .replied(now, key, group, &Report::all(range, Outcome::Ok, run));
                    assert_eq!(deliver, Deliver::All);
                    last = now;
                    self.act(now);
                }
                Event::Back(engine, (group, range)) => {
                    self.controller_free = self.controller_free.max(time) + CONTROLLER;
                    let (now, key) = (self.controller_free, self.engines[engine].key);
                    self.core.given_back(now, key, group, range);
                    self.act(now);
                }
                Event::Wake => {
                    self.wake_at = Nanos::MAX;
                    self.core.tick(time);
                    self.act(time);
                }
            }
        }
        assert_eq!(self.done, tasks, "everything was done");
        last
    }

    fn singles(hwm: Hwm, engines: usize, runs: &[Nanos]) -> Nanos {
        let mut simulation = Simulation::new(hwm, engines);
        let needs = simulation.core.needs(&["run"]);
        simulation.runs = runs.to_vec();
        for i in 0..runs.len() {
            let spec = GroupSpec {
                msg_id: &format!("t{i}"),
                client: b"c",
                needs,
                ..GroupSpec::default()
            };
            let key = simulation.core.submit(0, &spec).expect("new");
            simulation.numbers.insert(key, i);
        }
        simulation.go(runs.len() as u64)
    }

    fn array(hwm: Hwm, engines: usize, runs: &[Nanos]) -> (Nanos, u64) {
        let mut simulation = Simulation::new(hwm, engines);
        let needs = simulation.core.needs(&["run"]);
        simulation.runs = runs.to_vec();
        let spec = GroupSpec {
            msg_id: "a",
            client: b"c",
            needs,
            count: runs.len() as u32,
            ..GroupSpec::default()
        };
        let key = simulation.core.submit(0, &spec).expect("new");
        simulation.numbers.insert(key, 0);
        (simulation.go(runs.len() as u64), simulation.messages)
    }
}

const FIXED: [u32; 8] = [1, 2, 4, 8, 16, 64, 256, 1024];

/// Auto against the best fixed high-water mark: (auto, best, which).
fn compare(name: &str, engines: usize, runs: &[Nanos]) -> (f64, f64) {
    let auto = Simulation::singles(Hwm::Auto, engines, runs) as f64 / 1e9;
    let (best, which) = FIXED
        .iter()
        .map(|&n| (Simulation::singles(Hwm::Fixed(n), engines, runs), n))
        .min()
        .map(|(time, n)| (time as f64 / 1e9, n))
        .expect("some");
    let ideal = runs.iter().sum::<Nanos>() as f64 / 1e9 / engines as f64;
    eprintln!("{name}: auto {auto:.4} s, best fixed {best:.4} s (hwm {which}), ideal {ideal:.4} s");
    assert!(
        auto <= 1.05 * best,
        "{name}: auto {auto} s, hwm {which} {best} s"
    );
    (auto, ideal)
}

fn shuffled(mut runs: Vec<Nanos>) -> Vec<Nanos> {
    let mut rng = SmallRng::seed_from_u64(5);
    for i in (1..runs.len()).rev() {
        runs.swap(i, rng.random_range(0..=i));
    }
    runs
}

fn mix(short: usize, long: usize) -> Vec<Nanos> {
    let mut runs = vec![MILLISECOND; short];
    runs.extend(vec![SECOND; long]);
    shuffled(runs)
}

#[test]
fn auto_no_op() {
    compare("no-op", 2, &vec![2 * MICROSECOND; 20_000]);
    compare("no-op, 16 engines", 16, &vec![2 * MICROSECOND; 20_000]);
}

#[test]
fn auto_one_millisecond() {
    compare("1 ms", 4, &vec![MILLISECOND; 8_000]);
    compare("10 ms", 4, &vec![10 * MILLISECOND; 2_000]);
}

#[test]
fn auto_mix() {
    for (short, long) in [(4_000, 400), (20_000, 400), (40_000, 200)] {
        let name = format!("{short} x 1 ms and {long} x 1 s");
        let (auto, ideal) = compare(&name, 4, &mix(short, long));
        assert!(
            auto <= 1.05 * ideal,
            "{name}: auto {auto} s, ideal {ideal} s"
        );
    }
}

#[test]
fn auto_arrays() {
    let no_op = vec![300; 1_000_000];
    let (time, messages) = Simulation::array(Hwm::Auto, 2, &no_op);
    let ideal = no_op.iter().sum::<Nanos>() / 2;
    eprintln!(
        "array of no-ops: {:.4} s, ideal {:.4} s, {messages} messages",
        time as f64 / 1e9,
        ideal as f64 / 1e9
    );
    assert!(time as f64 <= 1.05 * ideal as f64 && messages < 500);
    for (short, long) in [(8_000, 0), (4_000, 400), (40_000, 200)] {
        let runs = mix(short, long);
        let ideal = runs.iter().sum::<Nanos>() / 4;
        let (time, messages) = Simulation::array(Hwm::Auto, 4, &runs);
        eprintln!(
            "array of {short} x 1 ms and {long} x 1 s: {:.4} s, ideal {:.4} s, {messages} messages",
            time as f64 / 1e9,
            ideal as f64 / 1e9
        );
        assert!(time as f64 <= 1.05 * ideal as f64);
    }
}
