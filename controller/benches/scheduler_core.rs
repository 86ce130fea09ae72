//! What events of the scheduler core cost: `cargo bench -p ipbroker-controller --bench scheduler_core`.

use std::collections::VecDeque;

use divan::{Bencher, counter::ItemsCount};
use ipbroker_controller::scheduler::core::*;
use ipbroker_protocol::resources::ONE;

/// The allocator of the program.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() {
    divan::main();
}

struct Bench {
    core: Core,
    needs: Needs,
    next: u64,
    held: VecDeque<(GroupKey, EngineKey, std::ops::Range<u32>)>,
}

impl Bench {
    fn new(scheme: Builtin, engines: usize, hwm: Hwm) -> Self {
        let mut core = Core::new(
            Config {
                hwm,
                ..Config::default()
            },
            Box::new(scheme),
        );
        let capabilities = vec!["apply".to_owned()];
        for i in 0..engines {
            let uuid = format!("engine-{i}");
            let spec = EngineSpec {
                uuid: &uuid,
                capabilities: &capabilities,
                can_give_back: true,
                ..EngineSpec::default()
            };
            core.engine_joined(0, &spec);
        }
        let needs = core.needs(&["apply"]);
        Bench {
            core,
            needs,
            next: 0,
            held: VecDeque::new(),
        }
    }

    fn submit(&mut self, after: Option<&Dependency>) {
        self.submit_with(after, None);
    }

    fn submit_with(&mut self, after: Option<&Dependency>, request: Option<&Request>) {
        self.next += 1;
        let id = format!("t_{}", self.next);
        let spec = GroupSpec {
            msg_id: &id,
            client: b"client",
            needs: self.needs,
            after,
            requests: request.map(std::slice::from_ref).unwrap_or_default(),
            ..GroupSpec::default()
        };
        self.core.submit(self.next * 1000, &spec).expect("a new id");
        self.act();
    }

    fn reply(&mut self) {
        let Some((group, engine, range)) = self.held.pop_front() else {
            return;
        };
        self.core.replied(
            self.next * 1000,
            engine,
            group,
            &Report::all(range, Outcome::Ok, 1000),
        );
        self.act();
    }

    fn act(&mut self) {
        while let Some(action) = self.core.poll() {
            if let Action::Dispatch {
                group,
                engine,
                range,
                ..
            } = action
            {
                self.held.push_back((group, engine, range));
            }
        }
    }
}

/// Submission, dispatch and reply of a task while so many wait.
#[divan::bench(args = [0, 1_000, 1_000_000])]
fn round_trip(bencher: Bencher<'_, '_>, waiting: u64) {
    let mut bench = Bench::new(Builtin::LeastLoad, 2, Hwm::Fixed(100));
    while bench.next < waiting {
        bench.submit(None);
    }
    bencher.counter(ItemsCount::new(1_000u32)).bench_local(|| {
        for _ in 0..1_000 {
            bench.submit(None);
            bench.reply();
        }
    });
}

/// The same with 1,000 engines, by scheme.
#[divan::bench(args = Builtin::ALL)]
fn thousand_engines(bencher: Bencher<'_, '_>, scheme: Builtin) {
    let mut bench = Bench::new(scheme, 1_000, Hwm::Fixed(4));
    for _ in 0..2_000 {
        bench.submit(None);
    }
    bencher.counter(ItemsCount::new(1_000u32)).bench_local(|| {
        for _ in 0..1_000 {
            bench.submit(None);
            bench.reply();
        }
    });
}

/// The same with the high-water mark that follows from task times.
#[divan::bench]
fn auto(bencher: Bencher<'_, '_>) {
    let mut bench = Bench::new(Builtin::LeastLoad, 2, Hwm::Auto);
    for _ in 0..1_000 {
        bench.submit(None);
    }
    bencher.counter(ItemsCount::new(1_000u32)).bench_local(|| {
        for _ in 0..1_000 {
            bench.submit(None);
            bench.reply();
        }
    });
}

/// A chain of 20,000 tasks, submitted at once and run.
#[divan::bench(sample_count = 10)]
fn chain(bencher: Bencher<'_, '_>) {
    bencher.counter(ItemsCount::new(20_000u32)).bench_local(|| {
        let mut bench = Bench::new(Builtin::LeastLoad, 2, Hwm::Fixed(1));
        bench.submit(None);
        for i in 1..20_000 {
            bench.submit(Some(&Dependency {
                ids: vec![format!("t_{i}")],
                ..Dependency::default()
            }));
        }
        while !bench.held.is_empty() {
            bench.reply();
        }
        assert!(bench.core.is_empty());
    });
}

/// 20,000 tasks after one, and one after 20,000.
#[divan::bench(sample_count = 10)]
fn fan(bencher: Bencher<'_, '_>) {
    bencher.counter(ItemsCount::new(20_002u32)).bench_local(|| {
        let mut bench = Bench::new(Builtin::LeastLoad, 2, Hwm::Fixed(10));
        bench.submit(None);
        for _ in 0..20_000 {
            bench.submit(Some(&Dependency {
                ids: vec!["t_1".to_owned()],
                ..Dependency::default()
            }));
        }
        let all = (2..=20_001).map(|i| format!("t_{i}")).collect();
        bench.submit(Some(&Dependency {
            ids: all,
            ..Dependency::default()
        }));
        while !bench.held.is_empty() {
            bench.reply();
        }
        assert!(bench.core.is_empty());
    });
}

/// 20,000 tasks with 60,000 edges to earlier ones.
#[divan::bench(sample_count = 10)]
fn random_graph(bencher: Bencher<'_, '_>) {
    bencher.counter(ItemsCount::new(20_000u32)).bench_local(|| {
        let mut bench = Bench::new(Builtin::LeastLoad, 2, Hwm::Fixed(10));
        let mut x = 1u64;
        for i in 0..20_000u64 {
            let mut ids = Vec::new();
            for _ in 0..3 {
                x = x.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                if i > 0 {
                    ids.push(format!("t_{}", 1 + (x >> 33) % i));
                }
            }
            bench.submit(Some(&Dependency {
                ids,
                ..Dependency::default()
            }));
        }
        while !bench.held.is_empty() {
            bench.reply();
        }
        assert!(bench.core.is_empty());
    });
}

/// Tasks on a host of 64 cores and 8 GPUs with as many engines as cores, all submitted first: plain ones, or every other one
/// with a request of five kinds.
#[divan::bench(args = [false, true], sample_count = 10)]
fn resources(bencher: Bencher<'_, '_>, mixed: bool) {
    const TASKS: u32 = 100_000;
    let capabilities = vec!["apply".to_owned()];
    let host = HostSpec {
        key: "host".into(),
        cores: (0..64).collect(),
        sums: vec![("memory".into(), (256 << 30) * ONE)],
        lists: vec![(
            "gpus".into(),
            (0..8).map(|gpu| gpu.to_string().into()).collect(),
        )],
    };
    let requests: Vec<Request> = [
        vec![("cpus", 4)],
        vec![("cpus", 1), ("gpus", 1)],
        vec![("cpus", 2), ("memory", 16 << 30)],
        vec![("cpus", 16)],
        vec![("cpus", 1), ("memory", 64 << 30)],
    ]
    .iter()
    .map(|request| {
        let amounts = request.iter();
        amounts
            .map(|(name, amount)| ((*name).into(), amount * ONE))
            .collect()
    })
    .collect();
    bencher.counter(ItemsCount::new(TASKS)).bench_local(|| {
        let mut bench = Bench::new(Builtin::LeastLoad, 0, Hwm::Auto);
        for slot in 0..64 {
            let uuid = format!("engine-{slot}");
            bench.core.engine_joined(
                0,
                &EngineSpec {
                    uuid: &uuid,
                    capabilities: &capabilities,
                    host: Some(&host),
                    can_give_back: true,
                    ..EngineSpec::default()
                },
            );
        }
        for number in 0..TASKS {
            let asks = mixed && number % 2 == 0;
            let request = &requests[number as usize / 2 % requests.len()];
            bench.submit_with(None, asks.then_some(request));
        }
        while !bench.held.is_empty() {
            bench.reply();
        }
        assert!(bench.core.is_empty());
    });
}

/// An array of a million members, handed out in chunks and answered.
#[divan::bench(sample_count = 10)]
fn array(bencher: Bencher<'_, '_>) {
    bencher
        .counter(ItemsCount::new(1_000_000u32))
        .bench_local(|| {
            let mut bench = Bench::new(Builtin::LeastLoad, 2, Hwm::Fixed(1_000));
            let spec = GroupSpec {
                msg_id: "a",
                client: b"c",
                needs: bench.needs,
                count: 1_000_000,
                ..GroupSpec::default()
            };
            bench.core.submit(0, &spec).expect("a new id");
            bench.act();
            while !bench.held.is_empty() {
                bench.reply();
            }
            assert!(bench.core.is_empty());
        });
}
