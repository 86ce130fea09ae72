//! Two scheduling schemes of one's own, tried on the scheduler's core alone: no controller runs.
//!
//! A scheme makes an [`Index`] for each set of engines that some tasks are restricted to. The index hears of each
//! change of an engine that has room (`set`), of each that has none any more (`remove`), and chooses. For a few
//! engines a function is enough: see [`own_scheme`]; IPython parallel's schemes are such functions.
//!
//! Run it: `cargo run -p ipbroker-controller --example own_scheme`

use ipbroker_controller::scheduler::core::{
    Action, Candidate, Config, Core, EngineKey, EngineSpec, GroupSpec, Hwm, Index, Outcome, Report,
    Scheme, own_scheme,
};
use rand::rngs::SmallRng;

/// The engine that was given work last, as long as it has room: keeps the others free, say to switch them off.
struct Packing;

impl Scheme for Packing {
    fn name(&self) -> &str {
        "packing"
    }

    fn index(&self) -> Box<dyn Index> {
        Box::new(PackingIndex::default())
    }
}

#[derive(Default)]
struct PackingIndex {
    /// By how recently they were used, the last one at the end.
    engines: Vec<Candidate>,
}

impl Index for PackingIndex {
    fn set(&mut self, candidate: Candidate) {
        self.remove(candidate.engine);
        let at = self
            .engines
            .partition_point(|c| c.last_used <= candidate.last_used);
        self.engines.insert(at, candidate);
    }

    fn remove(&mut self, engine: EngineKey) {
        self.engines.retain(|c| c.engine != engine);
    }

    fn choose(&mut self, _rng: &mut SmallRng, refused: &[EngineKey]) -> Option<EngineKey> {
        self.engines
            .iter()
            .rev()
            .map(|c| c.engine)
            .find(|engine| !refused.contains(engine))
    }
}

fn run(scheme: Box<dyn Scheme>) {
    let mut core = Core::new(
        Config {
            hwm: Hwm::Fixed(3),
            ..Config::default()
        },
        scheme,
    );
    println!("{}:", core.scheme());
    let capabilities = ["command".to_owned()];
    for uuid in ["a", "b", "c"] {
        core.engine_joined(
            0,
            &EngineSpec {
                uuid,
                capabilities: &capabilities,
                ..EngineSpec::default()
            },
        );
    }
    let needs = core.needs(&["command"]);
    for i in 0..6 {
        let spec = GroupSpec {
            msg_id: &format!("task {i}"),
            client: b"me",
            needs,
            ..GroupSpec::default()
        };
        core.submit(i, &spec).expect("a new id");
        while let Some(action) = core.poll() {
            if let Action::Dispatch {
                group,
                engine,
                range,
                ..
            } = action
            {
                println!("  task {i} goes to engine {}", engine.slot());
                if i == 3 {
                    core.replied(i, engine, group, &Report::all(range, Outcome::Ok, 0));
                }
            }
        }
    }
}

fn main() {
    run(Box::new(Packing));
    // The same as a function of the candidates, least recently used first.
    run(own_scheme("packing, short", |candidates, _rng| {
        candidates.len() - 1
    }));
}
