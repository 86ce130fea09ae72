//! Single situations: what the models do not cover.

use std::collections::BTreeMap;

use ipbroker_controller::scheduler::core::*;

fn core_with(config: Config, scheme: Builtin) -> Core {
    Core::new(config, Box::new(scheme))
}

fn names(names: &[&str]) -> Vec<String> {
    names.iter().map(|n| n.to_string()).collect()
}

fn join(core: &mut Core, now: Nanos, uuid: &str) -> EngineKey {
    let capabilities = names(&["run", "array"]);
    core.engine_joined(
        now,
        &EngineSpec {
            uuid,
            hosts: &names(&["node"]),
            capabilities: &capabilities,
            can_give_back: true,
            ..EngineSpec::default()
        },
    )
}

fn submit(core: &mut Core, now: Nanos, msg_id: &str, client: &[u8], count: u32) -> GroupKey {
    let needs = core.needs(&["run"]);
    core.submit(
        now,
        &GroupSpec {
            msg_id,
            client,
            count,
            needs,
            ..GroupSpec::default()
        },
    )
    .expect("a new id")
}

fn drain(core: &mut Core) -> Vec<Action> {
    std::iter::from_fn(|| core.poll()).collect()
}

fn dispatches(actions: &[Action]) -> Vec<(GroupKey, std::ops::Range<u32>, EngineKey)> {
    actions
        .iter()
        .filter_map(|a| match a {
            Action::Dispatch {
                group,
                range,
                engine,
                ..
            } => Some((*group, range.clone(), *engine)),
            _ => None,
        })
        .collect()
}

/// Chi-square of counts against expected shares, and its limit at p = 0.001.
fn chi_square(counts: &[u64], shares: &[f64]) -> (f64, f64) {
    let total: u64 = counts.iter().sum();
    let chi = counts
        .iter()
        .zip(shares)
        .map(|(&c, s)| (c as f64 - s * total as f64).powi(2) / (s * total as f64))
        .sum();
    // Wilson and Hilferty's approximation.
    let k = (counts.len() - 1) as f64;
    (
        chi,
        k * (1.0 - 2.0 / (9.0 * k) + 3.09 * (2.0 / (9.0 * k)).sqrt()).powi(3),
    )
}

/// How often each rank of least recent use is chosen among `n` engines that stay as loaded as `loads` says.
fn choices(scheme: Builtin, loads: &[u32], draws: usize) -> Vec<u64> {
    use rand::SeedableRng;
    let mut core = core_with(
        Config {
            hwm: Hwm::Unlimited,
            ..Config::default()
        },
        scheme,
    );
    let keys: Vec<EngineKey> = (0..loads.len())
        .map(|i| join(&mut core, 0, &format!("e{i}")))
        .collect();
    let mut index = scheme.index();
    let mut rng = rand::rngs::SmallRng::seed_from_u64(7);
    for (i, key) in keys.iter().enumerate() {
        // Set twice, with other figures first: an index must follow.
        index.set(Candidate {
            engine: *key,
            load: 9,
            last_used: 999 - i as u64,
        });
        index.set(Candidate {
            engine: *key,
            load: loads[i],
            last_used: i as u64,
        });
    }
    let mut counts = vec![0; loads.len()];
    for _ in 0..draws {
        let chosen = index.choose(&mut rng, &[]).expect("there are candidates");
        counts[keys.iter().position(|k| *k == chosen).expect("a candidate")] += 1;
    }
    counts
}

#[test]
fn schemes_choose_as_defined() {
    const N: usize = 12;
    let draws = 60_000;
    let even = [1u32; N];
    let (chi, limit) = chi_square(
        &choices(Builtin::PlainRandom, &even, draws),
        &[1.0 / N as f64; N],
    );
    assert!(chi < limit, "plainrandom: {chi} > {limit}");

    // The less recently used of two: rank i is chosen with (2 (n - i) - 1) / n^2.
    let shares: Vec<f64> = (0..N)
        .map(|i| (2.0 * (N - i) as f64 - 1.0) / (N * N) as f64)
        .collect();
    let (chi, limit) = chi_square(&choices(Builtin::TwoBin, &even, draws), &shares);
    assert!(chi < limit, "twobin: {chi} > {limit}");

    // Two drawn with weight 1 / load, the less loaded of them.
    let loads: Vec<u32> = (1..=N as u32).collect();
    let weights: Vec<f64> = loads.iter().map(|&l| 1.0 / (1e-6 + f64::from(l))).collect();
    let total: f64 = weights.iter().sum();
    let shares: Vec<f64> = (0..N)
        .map(|i| {
            let (own, above): (f64, f64) = (weights[i], weights[i + 1..].iter().sum());
            (own * own + 2.0 * own * above) / (total * total)
        })
        .collect();
    let (chi, limit) = chi_square(&choices(Builtin::Weighted, &loads, draws), &shares);
    assert!(chi < limit, "weighted: {chi} > {limit}");

    // An idle engine weighs a million times as much as one with a task.
    let counts = choices(Builtin::Weighted, &[1, 0, 3, 2], 10_000);
    assert!(counts[1] > 9_990, "{counts:?}");

    assert_eq!(choices(Builtin::Lru, &[5, 0, 1], 10), [10, 0, 0]);
    assert_eq!(
        choices(Builtin::LeastLoad, &[5, 1, 0, 0], 10),
        [0, 0, 10, 0]
    );
}

#[test]
fn schemes_heed_refusals() {
    use rand::SeedableRng;
    for &scheme in Builtin::ALL {
        let mut core = core_with(Config::default(), scheme);
        let keys: Vec<EngineKey> = (0..40)
            .map(|i| join(&mut core, 0, &format!("e{i}")))
            .collect();
        let mut index = scheme.index();
        let mut rng = rand::rngs::SmallRng::seed_from_u64(3);
        for (i, key) in keys.iter().enumerate() {
            index.set(Candidate {
                engine: *key,
                load: (i % 5) as u32,
                last_used: i as u64,
            });
        }
        for gone in 0..40 {
            for _ in 0..20 {
                let chosen = index
                    .choose(&mut rng, &keys[..gone])
                    .expect("some are left");
                assert!(!keys[..gone].contains(&chosen), "{}", scheme.name());
            }
        }
        assert_eq!(index.choose(&mut rng, &keys), None);
        for key in &keys[1..] {
            index.remove(*key);
        }
        assert_eq!(index.choose(&mut rng, &[]), Some(keys[0]));
    }
}

#[test]
fn a_scheme_of_ones_own() {
    // The most loaded engine that has room: fills one after the other.
    let pack = own_scheme("pack", |candidates, _| {
        let most = candidates.iter().map(|c| c.load).max();
        candidates
            .iter()
            .position(|c| Some(c.load) == most)
            .unwrap_or(0)
    });
    let mut core = Core::new(
        Config {
            hwm: Hwm::Fixed(3),
            ..Config::default()
        },
        pack,
    );
    assert_eq!(core.scheme(), "pack");
    let engines = [join(&mut core, 0, "a"), join(&mut core, 0, "b")];
    for i in 0..5 {
        submit(&mut core, 0, &format!("t{i}"), b"c", 1);
    }
    let given: Vec<EngineKey> = dispatches(&drain(&mut core))
        .into_iter()
        .map(|d| d.2)
        .collect();
    assert_eq!(
        given,
        [engines[0], engines[0], engines[0], engines[1], engines[1]]
    );
}

#[test]
fn clients_take_turns() {
    let mut core = core_with(
        Config {
            hwm: Hwm::Fixed(1),
            ..Config::default()
        },
        Builtin::LeastLoad,
    );
    let engine = join(&mut core, 0, "e");
    for i in 0..10_000 {
        submit(&mut core, 0, &format!("a{i}"), b"ann", 1);
    }
    let mut now = 0;
    let mut running = dispatches(&drain(&mut core))[0].0;
    let mut step = |core: &mut Core, running: &mut GroupKey| {
        now += MILLISECOND;
        core.replied(
            now,
            engine,
            *running,
            &Report::all(0..1, Outcome::Ok, MILLISECOND),
        );
        *running = dispatches(&drain(core))[0].0;
    };
    for _ in 0..100 {
        step(&mut core, &mut running);
    }
    for i in 0..10 {
        submit(&mut core, 100 * MILLISECOND, &format!("b{i}"), b"bob", 1);
    }
    // Bob's ten tasks are done after about twenty turns.
    for _ in 0..24 {
        step(&mut core, &mut running);
    }
    assert_eq!(core.totals(Some(b"bob")).completed, 10);
    assert!(core.totals(Some(b"ann")).completed > 110);
}

#[test]
fn a_controller_restart() {
    let config = Config {
        hwm: Hwm::Fixed(16),
        ..Config::default()
    };
    let mut core = core_with(config, Builtin::LeastLoad);
    let needs = core.needs(&["run"]);
    let plain = |id| GroupSpec {
        msg_id: id,
        client: b"c",
        needs,
        ..GroupSpec::default()
    };
    core.restore(0, &plain("kept"), 1, &[], &[("e", 0, 1)])
        .expect("new");
    core.restore(0, &plain("lost"), 1, &[], &[("e", 0, 1)])
        .expect("new");
    core.restore(0, &plain("done"), 1, &[(0, 1, true)], &[])
        .expect("new");
    core.restore(0, &plain("gone"), 1, &[], &[("never", 0, 1)])
        .expect("new");
    let many = GroupSpec {
        count: 10,
        ..plain("many")
    };
    core.restore(0, &many, 1, &[(0, 4, true)], &[("e", 4, 8)])
        .expect("new");
    let waits = Dependency {
        ids: names(&["done", "many:1"]),
        ..Dependency::default()
    };
    core.restore(
        0,
        &GroupSpec {
            after: Some(&waits),
            ..plain("next")
        },
        0,
        &[],
        &[],
    )
    .expect("new");
    assert_eq!(core.state("done"), TaskState::Ok);
    assert_eq!(core.state("kept"), TaskState::Running);
    assert_eq!(core.state("next"), TaskState::Waiting);
    assert!(core.explain(0, "kept").text.contains("awaited"));
    assert!(dispatches(&drain(&mut core)).is_empty());

    let holds = [
        Held {
            msg_id: "kept",
            range: (0, 1),
        },
        Held {
            msg_id: "many",
            range: (4, 6),
        },
    ];
    let capabilities = names(&["run"]);
    let spec = EngineSpec {
        uuid: "e",
        capabilities: &capabilities,
        ..EngineSpec::default()
    };
    let engine = core.engine_joined(SECOND, &spec);
    let before: Vec<_> = dispatches(&drain(&mut core));
    assert!(
        before.iter().all(|d| core.find("lost") != Some(d.0)),
        "until it has answered, it may have it"
    );
    core.engine_holds(SECOND, engine, SECOND - 1, &holds, &|_| true);
    let given: Vec<_> = [before, dispatches(&drain(&mut core))].concat();
    let of = |core: &Core, id: &str| {
        let key = core.find(id).expect("live");
        let mut spans: Vec<_> = given
            .iter()
            .filter(|d| d.0 == key)
            .map(|d| d.1.clone())
            .collect();
        spans.sort_by_key(|r| r.start);
        spans.into_iter().flatten().collect::<Vec<u32>>()
    };
    assert_eq!(of(&core, "lost"), [0]);
    assert_eq!(of(&core, "kept"), [] as [u32; 0]);
    assert_eq!(of(&core, "next"), [0]);
    let kept = core.find("kept").expect("live");
    assert_eq!(
        core.replied(SECOND, engine, kept, &Report::all(0..1, Outcome::Ok, 0)),
        Deliver::All
    );
    let next_wakeup = core.next_wakeup().expect("the other engine is awaited");
    core.tick(next_wakeup);
    let actions = drain(&mut core);
    let gone = actions.iter().find_map(|a| match a {
        Action::Fail { kind, .. } => Some(*kind),
        _ => None,
    });
    assert_eq!(gone, Some(FailKind::EngineError));
    let many = core.find("many").expect("live");
    assert_eq!(
        core.replied(
            2 * SECOND,
            engine,
            many,
            &Report::all(4..10, Outcome::Ok, 0)
        ),
        Deliver::All
    );
    assert_eq!(core.state("many"), TaskState::Ok);
}

/// Seen in the chaos tests: an engine registered twice after a restart, and what it was given between was given to another
/// engine as well, because the second list was made before it had arrived.
#[test]
fn what_was_given_after_the_question_stays() {
    for kept in [true, false] {
        let config = Config {
            hwm: Hwm::Fixed(16),
            ..Config::default()
        };
        let mut core = core_with(config, Builtin::LeastLoad);
        let engine = join(&mut core, 0, "e");
        let early = submit(&mut core, 1, "early", b"c", 1);
        let array = submit(&mut core, 2, "array", b"c", 4);
        let given = dispatches(&drain(&mut core));
        assert_eq!(given.iter().map(|d| d.1.len()).sum::<usize>(), 5);
        assert_eq!(join(&mut core, 3, "e"), engine, "registered again");
        submit(&mut core, 5, "between", b"c", 1);
        assert_eq!(dispatches(&drain(&mut core)).len(), 1);
        let holds = [Held {
            msg_id: "array",
            range: (1, 3),
        }];
        core.engine_holds(6, engine, 4, &holds, &|_| kept);
        let actions = drain(&mut core);
        assert_eq!(core.state("between"), TaskState::Running);
        if kept {
            let mut again = dispatches(&actions);
            again.sort_by_key(|d| (d.0 != early, d.1.start));
            let members: u32 = again.iter().map(|d| d.1.end - d.1.start).sum();
            assert_eq!((again[0].0, members), (early, 3), "{actions:?}");
            assert!(again[1..].iter().all(|d| d.0 == array && d.1 != (1..3)));
        } else {
            // Its reply may be what was lost: it is not run again without being asked for.
            assert!(dispatches(&actions).is_empty());
            let failed: u32 = actions
                .iter()
                .map(|a| match a {
                    Action::Fail { range, kind, .. } => {
                        assert_eq!(*kind, FailKind::EngineError);
                        range.end - range.start
                    }
                    _ => 0,
                })
                .sum();
            assert_eq!(failed, 3, "{actions:?}");
        }
        core.engine_holds(7, engine, 4, &[], &|_| kept);
        assert_eq!(core.state("between"), TaskState::Running);
    }
}

/// However short the tasks of its client were so far, nobody knows how long those of a new array take.
#[test]
fn each_engine_tries_one_member_of_a_new_array() {
    let mut core = core_with(Config::default(), Builtin::LeastLoad);
    let engines = ["e", "f"].map(|uuid| join(&mut core, 0, uuid));
    let mut now = 0;
    for number in 0..2 {
        let id = format!("array {number}");
        let key = submit(&mut core, now, &id, b"c", 100_000);
        let mut first = dispatches(&drain(&mut core));
        first.sort_by_key(|(_, range, _)| range.start);
        let tried: Vec<u32> = first
            .iter()
            .map(|(_, range, _)| range.end - range.start)
            .collect();
        assert_eq!(tried, [1, 1], "{first:?}");
        assert!(first[0].2 != first[1].2 && engines.contains(&first[0].2));
        let mut given = first;
        while let Some((_, range, engine)) = given.pop() {
            now += 300_000;
            let report = Report::all(
                range.clone(),
                Outcome::Ok,
                u64::from(range.end - range.start) * 200,
            );
            assert_eq!(core.replied(now, engine, key, &report), Deliver::All);
            given.extend(dispatches(&drain(&mut core)));
        }
        assert_eq!(core.state(&id), TaskState::Ok);
    }
}

#[test]
fn a_members_id_is_taken() {
    let mut core = core_with(Config::default(), Builtin::LeastLoad);
    submit(&mut core, 0, "array", b"c", 6);
    let mut again = |msg_id| {
        let needs = core.needs(&["run"]);
        core.submit(
            0,
            &GroupSpec {
                msg_id,
                client: b"c",
                count: 1,
                needs,
                ..GroupSpec::default()
            },
        )
    };
    let refused = Err(Refusal::Duplicate(TaskState::Waiting));
    assert_eq!(again("array:5"), refused);
    assert_eq!(again("array"), refused);
    assert!(again("array:6").is_ok() && again("other:5").is_ok());
}

#[test]
fn a_chunk_is_answered_in_parts() {
    let mut core = core_with(
        Config {
            hwm: Hwm::Unlimited,
            ..Config::default()
        },
        Builtin::LeastLoad,
    );
    let engine = join(&mut core, 0, "e");
    let key = submit(&mut core, 0, "a", b"c", 64);
    let mut members: BTreeMap<u32, u32> = BTreeMap::new();
    for (_, range, _) in dispatches(&drain(&mut core)) {
        for m in range {
            *members.entry(m).or_default() += 1;
        }
    }
    assert!(members.len() == 64 && members.values().all(|&n| n == 1));
    let failed = [(5, Outcome::Error), (9, Outcome::Aborted)];
    assert_eq!(
        core.replied(
            1,
            engine,
            key,
            &Report {
                exceptions: &failed,
                ..Report::all(4..20, Outcome::Ok, 160)
            }
        ),
        Deliver::All
    );
    assert_eq!(
        core.replied(1, engine, key, &Report::all(4..20, Outcome::Ok, 160)),
        Deliver::Nothing
    );
    assert_eq!(
        core.replied(1, engine, key, &Report::all(0..6, Outcome::Ok, 60)),
        Deliver::Some(std::iter::once(0..4).collect())
    );
    assert_eq!(core.state("a:5"), TaskState::Failed);
    assert_eq!(core.state("a:6"), TaskState::Ok);
    assert_eq!(
        core.replied(2, engine, key, &Report::all(20..64, Outcome::Ok, 60)),
        Deliver::All
    );
    assert_eq!(core.state("a"), TaskState::Failed);
    assert_eq!(core.state("a:9"), TaskState::Failed);
    assert_eq!(core.state("a:64"), TaskState::Unknown);
    assert!(drain(&mut core).contains(&Action::Release { group: key }));
    assert!(core.is_empty());
}

#[test]
fn preference_waits_and_then_goes_anywhere() {
    let mut core = core_with(
        Config {
            hwm: Hwm::Fixed(1),
            ..Config::default()
        },
        Builtin::LeastLoad,
    );
    let capabilities = names(&["run"]);
    let on = |core: &mut Core, uuid: &str, host: &str| {
        let hosts = names(&[host]);
        core.engine_joined(
            0,
            &EngineSpec {
                uuid,
                hosts: &hosts,
                capabilities: &capabilities,
                ..EngineSpec::default()
            },
        )
    };
    let near = on(&mut core, "n", "near");
    let needs = core.needs(&["run"]);
    let prefer = names(&["NEAR"]);
    let spec = |id| GroupSpec {
        msg_id: id,
        client: b"c",
        needs,
        prefer: &prefer,
        prefer_wait: SECOND,
        ..GroupSpec::default()
    };
    core.submit(0, &spec("a")).expect("new");
    core.submit(0, &spec("b")).expect("new");
    let far = on(&mut core, "f", "far");
    core.submit(0, &spec("c")).expect("new");
    let first = dispatches(&drain(&mut core));
    assert_eq!(first.iter().map(|d| d.2).collect::<Vec<_>>(), [near]);
    assert!(
        core.explain(0, "b").text.contains("prefers"),
        "{}",
        core.explain(0, "b").text
    );
    assert_eq!(core.next_wakeup(), Some(SECOND));
    core.replied(
        SECOND / 2,
        near,
        first[0].0,
        &Report::all(0..1, Outcome::Ok, 0),
    );
    assert_eq!(dispatches(&drain(&mut core))[0].2, near);
    core.tick(SECOND);
    let last = dispatches(&drain(&mut core));
    assert_eq!(
        (last.len(), last[0].2, Some(last[0].0)),
        (1, far, core.find("c"))
    );
    assert_eq!(core.next_wakeup(), None);
}

#[test]
fn explanations_name_what_is_missing() {
    let mut core = core_with(Config::default(), Builtin::LeastLoad);
    let needs = core.needs(&["run"]);
    let (hosts, tags) = (names(&["mars"]), names(&["gpu"]));
    let base = GroupSpec {
        client: b"c",
        needs,
        ..GroupSpec::default()
    };
    core.submit(
        0,
        &GroupSpec {
            msg_id: "h",
            hosts: &hosts,
            ..base
        },
    )
    .expect("new");
    assert_eq!(core.explain(0, "h").text, "No engine is registered.");
    join(&mut core, 0, "e");
    core.submit(
        0,
        &GroupSpec {
            msg_id: "t",
            tags: &tags,
            ..base
        },
    )
    .expect("new");
    let dep = Dependency {
        ids: names(&["h", "t"]),
        ..Dependency::default()
    };
    core.submit(
        0,
        &GroupSpec {
            msg_id: "d",
            after: Some(&dep),
            ..base
        },
    )
    .expect("new");
    let why = core.explain(0, "h");
    assert!(
        why.text.contains("mars") && why.engines[0].1.contains("not on mars"),
        "{why:?}"
    );
    assert!(core.explain(0, "t").engines[0].1.contains("gpu"));
    let waits = core.unschedulable(b"c");
    let waits = waits.iter().map(|(.., tasks, why)| (*tasks, &**why));
    assert_eq!(
        waits.collect::<Vec<_>>(),
        [
            (
                1,
                "No engine is registered that is on mars. It runs as soon as one registers that can."
            ),
            (
                1,
                "No engine is registered that has the tags gpu. It runs as soon as one registers that can."
            )
        ]
    );
    assert_eq!(core.unschedulable(b"another"), []);
    assert!(
        core.explain(0, "d").text.contains("h, t"),
        "{}",
        core.explain(0, "d").text
    );
    assert_eq!(core.explain(0, "x").state, TaskState::Unknown);
    drain(&mut core);
    core.submit(
        0,
        &GroupSpec {
            msg_id: "n",
            tags: &tags,
            no_wait: true,
            ..base
        },
    )
    .expect("new");
    assert!(matches!(
        drain(&mut core)[0],
        Action::Fail {
            kind: FailKind::NoEngine,
            ..
        }
    ));
}

/// No engine brings a task's inputs along: it waits for one that may have them, as long as one is there.
#[test]
fn a_task_without_its_inputs_fails_when_no_engine_is_left() {
    for lacks_input in [true, false] {
        let hwm = Hwm::Fixed(1);
        let mut core = core_with(
            Config {
                hwm,
                ..Config::default()
            },
            Builtin::LeastLoad,
        );
        let busy = join(&mut core, 0, "busy");
        submit(&mut core, 0, "other", b"c", 1);
        let engine = join(&mut core, 0, "e");
        let key = submit(&mut core, 0, "t", b"c", 1);
        drain(&mut core);
        if lacks_input {
            core.lacks_input(key);
        }
        let unmet = Report {
            range: 0..1,
            outcome: Outcome::Unmet,
            exceptions: &[],
            run: 0,
        };
        core.replied(0, engine, key, &unmet);
        let failed = |core: &mut Core| {
            drain(core).into_iter().find_map(|action| match action {
                Action::Fail { group, kind, .. } if group == key => Some(kind),
                _ => None,
            })
        };
        assert_eq!(failed(&mut core), None, "it waits for the busy one");
        core.engine_left(0, busy, None, "");
        let kind = lacks_input.then_some(FailKind::MissingInput);
        assert_eq!(failed(&mut core), kind);
    }
}

#[test]
fn a_long_chain_of_impossible_tasks_does_not_recurse() {
    let mut core = core_with(
        Config {
            hwm: Hwm::Fixed(1),
            ..Config::default()
        },
        Builtin::LeastLoad,
    );
    let engine = join(&mut core, 0, "e");
    let first = submit(&mut core, 0, "t0", b"c", 1);
    let needs = core.needs(&["run"]);
    for i in 1..100_000 {
        let dep = Dependency {
            ids: vec![format!("t{}", i - 1)],
            ..Dependency::default()
        };
        let spec = GroupSpec {
            msg_id: &format!("t{i}"),
            client: b"c",
            needs,
            after: Some(&dep),
            ..GroupSpec::default()
        };
        core.submit(0, &spec).expect("new");
    }
    drain(&mut core);
    core.replied(1, engine, first, &Report::all(0..1, Outcome::Error, 0));
    let failed = drain(&mut core)
        .iter()
        .filter(|a| matches!(a, Action::Fail { .. }))
        .count();
    assert_eq!(failed, 99_999);
    assert!(core.is_empty());
}

/// Two engines, each with a call that waits: what they wait for is given to them, nothing that is no deeper, and no more once
/// they go on.
#[test]
fn calls_that_wait_make_room() {
    let config = Config {
        hwm: Hwm::Fixed(1),
        ..Config::default()
    };
    let mut core = core_with(config, Builtin::LeastLoad);
    let engines = [join(&mut core, 1, "a"), join(&mut core, 1, "b")];
    for id in ["outer 1", "outer 2", "outer 3"] {
        submit(&mut core, 2, id, b"client", 1);
    }
    assert_eq!(dispatches(&drain(&mut core)).len(), 2);
    core.engine_waits(3, engines[0], 1, 0);
    assert!(dispatches(&drain(&mut core)).is_empty());
    let inner = |core: &mut Core, now, id: &str| {
        let needs = core.needs(&["run"]);
        let spec = GroupSpec {
            msg_id: id,
            client: b"client",
            count: 1,
            needs,
            priority: 1,
            ..GroupSpec::default()
        };
        core.submit(now, &spec).unwrap();
        dispatches(&drain(core))
            .iter()
            .map(|given| given.2)
            .collect::<Vec<_>>()
    };
    assert_eq!(inner(&mut core, 4, "inner 1"), [engines[0]]);
    assert!(inner(&mut core, 5, "inner 2").is_empty());
    core.engine_waits(6, engines[1], 1, 0);
    let given = dispatches(&drain(&mut core));
    assert_eq!(given.iter().map(|g| g.2).collect::<Vec<_>>(), [engines[1]]);
    // It goes on while the other call runs: it has one more than its mark, and gets nothing until both are over.
    core.engine_waits(7, engines[0], 0, 0);
    core.engine_waits(8, engines[1], 0, 0);
    assert!(dispatches(&drain(&mut core)).is_empty());
}

/// What is stopped because its engine was dismissed has not failed.
#[test]
fn what_a_dismissed_engine_stops_keeps_its_retries() {
    let config = Config {
        hwm: Hwm::Unlimited,
        ..Config::default()
    };
    for (count, crashes) in [(1, None), (1, Some(1)), (3, None), (3, Some(1))] {
        for answers in [true, false] {
            let mut core = core_with(config.clone(), Builtin::LeastLoad);
            let first = join(&mut core, 0, "first");
            let needs = core.needs(&["run"]);
            let spec = GroupSpec {
                msg_id: "a",
                client: b"c",
                count,
                needs,
                retries: if crashes.is_some() { 0 } else { 1 },
                crashes,
                may_return: true,
                ..GroupSpec::default()
            };
            let key = core.submit(0, &spec).expect("a new id");
            let once = submit(&mut core, 0, "once", b"c", 1);
            drain(&mut core);
            core.engine_dismissed(1, first);
            assert!(dispatches(&drain(&mut core)).is_empty());
            let second = join(&mut core, 2, "second");
            drain(&mut core);
            let failed = Report::all(0..count, Outcome::Error, 1);
            if answers {
                assert_eq!(core.replied(3, first, key, &failed), Deliver::Nothing);
                let said = core.replied(3, first, once, &Report::all(0..1, Outcome::Error, 1));
                assert_eq!(said, Deliver::All, "it may run once only");
            }
            core.engine_left(4, first, None, "");
            assert_eq!(core.state("once"), TaskState::Failed);
            // It runs again, with all of its retries.
            for left in (0..=1).rev() {
                let given = dispatches(&drain(&mut core));
                let members: u32 = given
                    .iter()
                    .map(|(_, range, _)| range.end - range.start)
                    .sum();
                assert_eq!(members, count, "{given:?}, {left} left");
                assert!(given.iter().all(|(_, _, engine)| *engine == second));
                let last = left == 0;
                if crashes.is_some() {
                    core.engine_left(5, second, None, "");
                    break;
                }
                let deliver = if last { Deliver::All } else { Deliver::Nothing };
                assert_eq!(core.replied(5, second, key, &failed), deliver);
            }
            if crashes.is_some() {
                let third = join(&mut core, 6, "third");
                assert!(!dispatches(&drain(&mut core)).is_empty(), "a loss is left");
                core.engine_left(7, third, None, "");
                drain(&mut core);
            }
            assert_eq!(core.state("a"), TaskState::Failed);
        }
    }
}
