//! Random histories against the model. `IPBROKER_SCHEDULER_EVENTS=N` runs at least N events;
//! `IPBROKER_SCHEDULER_SCRIPT=FILE` replays a script as a failure prints it.

use std::cell::Cell;

use proptest::prelude::*;
use proptest::test_runner::{Config as Runner, TestRunner};

use crate::model::World;
use crate::script::{KINDS, Kind, Op, Script};

fn kind() -> impl Strategy<Value = Kind> {
    prop_oneof![
        30 => Just(Kind::Submit),
        40 => Just(Kind::Reply),
        4 => Just(Kind::GiveBack),
        5 => Just(Kind::Join),
        3 => Just(Kind::Leave),
        2 => Just(Kind::Leaving),
        2 => Just(Kind::Dismiss),
        4 => Just(Kind::Abort),
        8 => Just(Kind::Tick),
        6 => Just(Kind::Answer),
    ]
}

fn script(most: usize) -> impl Strategy<Value = Script> {
    let op = (kind(), any::<[u16; 4]>()).prop_map(|(kind, n)| Op { kind, n });
    (any::<[u16; 4]>(), proptest::collection::vec(op, 1..most))
        .prop_map(|(settings, ops)| Script { settings, ops })
}

/// How many events there were, and how often something was kept on a host.
fn run(scripts: u32, most: usize) -> (u64, u64) {
    let events = Cell::new(0);
    let kept = Cell::new(0);
    let config = Runner {
        cases: scripts,
        failure_persistence: None,
        max_shrink_iters: 20_000,
        ..Runner::default()
    };
    let result = TestRunner::new(config).run(&script(most), |script| {
        let caught = std::panic::catch_unwind(|| World::run(&script));
        match caught {
            Ok(Ok(world)) => {
                events.set(events.get() + world.events);
                kept.set(kept.get() + world.keepings);
                Ok(())
            }
            Ok(Err(text)) => Err(TestCaseError::fail(text)),
            Err(panic) => {
                let text = panic.downcast_ref::<String>().cloned();
                let text = text.or_else(|| panic.downcast_ref::<&str>().map(|s| s.to_string()));
                Err(TestCaseError::fail(text.unwrap_or_default()))
            }
        }
    });
    if let Err(proptest::test_runner::TestError::Fail(reason, script)) = result {
        panic!("{reason}\nreplay with IPBROKER_SCHEDULER_SCRIPT=FILE, FILE being:\n{script}");
    }
    result.expect("the runner works");
    (events.get(), kept.get())
}

#[test]
fn random_histories() {
    if let Some(file) = std::env::var_os("IPBROKER_SCHEDULER_SCRIPT") {
        let text = std::fs::read_to_string(file).expect("the script can be read");
        World::run(&text.parse().expect("a script")).unwrap_or_else(|e| panic!("{e}"));
        return;
    }
    let wanted: u64 = std::env::var("IPBROKER_SCHEDULER_EVENTS")
        .ok()
        .map_or(60_000, |n| n.parse().expect("a number"));
    let (mut events, mut kept) = (0, 0);
    while events < wanted {
        // Many short histories, and some in which much waits.
        for (scripts, most) in [(400, 60), (30, 400)] {
            let (more, keepings) = run(scripts, most);
            events += more;
            kept += keepings;
        }
    }
    eprintln!("{events} events; something was kept {kept} times");
    assert!(kept > 0, "the histories are too tame");
}

#[test]
fn scripts_can_be_replayed() {
    let ops = KINDS
        .iter()
        .map(|&(kind, _)| Op {
            kind,
            n: [1, 2, 3, 65535],
        })
        .collect();
    let script = Script {
        settings: [1, 2, 3, 4],
        ops,
    };
    let again: Script = script.to_string().parse().expect("what it printed");
    assert_eq!(again.ops, script.ops);
    assert_eq!(again.settings, script.settings);
}
