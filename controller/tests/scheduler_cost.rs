//! What a waiting task costs in memory, and that events cost the same whatever waits. A test program of its own,
//! so that nothing else moves its memory.

use std::time::Instant;

use ipbroker_controller::scheduler::core::*;

fn resident() -> usize {
    let statm = std::fs::read_to_string("/proc/self/statm").expect("Linux");
    statm
        .split_whitespace()
        .nth(1)
        .and_then(|pages| pages.parse::<usize>().ok())
        .expect("pages")
        * 4096
}

struct Bench {
    core: Core,
    engines: Vec<EngineKey>,
    needs: Needs,
    next: u64,
    held: std::collections::VecDeque<(GroupKey, EngineKey)>,
}

impl Bench {
    fn new() -> Self {
        let mut core = Core::new(
            Config {
                hwm: Hwm::Fixed(8),
                ..Config::default()
            },
            Box::new(Builtin::LeastLoad),
        );
        let capabilities = vec!["apply".to_owned()];
        let join = |i| {
            let uuid = format!("engine-{i}");
            EngineSpecOwned {
                uuid,
                capabilities: capabilities.clone(),
            }
        };
        let engines = (0..2)
            .map(join)
            .map(|s| {
                let spec = EngineSpec {
                    uuid: &s.uuid,
                    capabilities: &s.capabilities,
                    ..EngineSpec::default()
                };
                core.engine_joined(0, &spec)
            })
            .collect();
        let needs = core.needs(&["apply"]);
        let mut bench = Bench {
            core,
            engines,
            needs,
            next: 0,
            held: Default::default(),
        };
        bench.act();
        bench
    }

    fn submit(&mut self) {
        self.next += 1;
        let id = format!("0d5c7a48-7d0a9c1b2e3f405162738495_1234_{}", self.next);
        let spec = GroupSpec {
            msg_id: &id,
            client: b"a client",
            needs: self.needs,
            bytes: 900,
            ..GroupSpec::default()
        };
        self.core.submit(self.next, &spec).expect("a new id");
        self.act();
    }

    fn reply(&mut self) {
        let (group, engine) = self.held.pop_front().expect("engines are busy");
        self.core.replied(
            self.next,
            engine,
            group,
            &Report::all(0..1, Outcome::Ok, 1000),
        );
        self.act();
    }

    fn act(&mut self) {
        while let Some(action) = self.core.poll() {
            if let Action::Dispatch { group, engine, .. } = action {
                self.held.push_back((group, engine));
            }
        }
    }

    /// The least time of a submission with a reply, of several rounds.
    fn cost(&mut self) -> f64 {
        (0..15)
            .map(|_| {
                let begun = Instant::now();
                for _ in 0..5_000 {
                    self.submit();
                    self.reply();
                }
                begun.elapsed().as_secs_f64() / 5_000.0 * 1e9
            })
            .fold(f64::MAX, f64::min)
    }
}

struct EngineSpecOwned {
    uuid: String,
    capabilities: Vec<String>,
}

#[test]
fn cost_of_waiting() {
    let mut bench = Bench::new();
    assert_eq!(bench.engines.len(), 2);
    while bench.next < 1_000 {
        bench.submit();
    }
    let few = bench.cost();
    let (before, first) = (resident(), bench.next);
    while bench.next < first + 1_000_000 {
        bench.submit();
    }
    let bytes = (resident() - before) as f64 / 1e6;
    let many = bench.cost();
    eprintln!("{bytes:.0} bytes a waiting task at 1,000,000");
    eprintln!(
        "submission, dispatch and reply: {few:.0} ns with 1,000 waiting, {many:.0} ns with 1,000,000"
    );
    assert!(bytes < 200.0);
    // Caches do not hold a million tasks, so it is not quite the same; in proportion it would be 1,000 times.
    assert!(many < 4.0 * few + 1_000.0);

    let before = resident();
    let needs = bench.needs;
    let array = GroupSpec {
        msg_id: "array",
        client: b"c",
        needs,
        count: 1_000_000,
        ..GroupSpec::default()
    };
    bench.core.submit(0, &array).expect("a new id");
    let bytes = resident().saturating_sub(before) as f64 / 1e6;
    eprintln!("{bytes:.3} bytes a waiting task of an array of 1,000,000");
    assert!(bytes <= 100.0);
}
