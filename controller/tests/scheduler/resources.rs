//! Resources: single situations.

use ipbroker_controller::scheduler::core::*;

fn core() -> Core {
    let config = Config {
        hwm: Hwm::Fixed(1),
        ..Config::default()
    };
    Core::new(config, Box::new(Builtin::LeastLoad))
}

fn host(key: &str, cores: u32, gpus: &[&str]) -> HostSpec {
    HostSpec {
        key: key.into(),
        cores: (0..cores).collect(),
        sums: vec![("memory".into(), 8_000_000)],
        lists: vec![("gpus".into(), gpus.iter().map(|g| (*g).into()).collect())],
    }
}

fn join(core: &mut Core, uuid: &str, host: &HostSpec) -> EngineKey {
    core.engine_joined(
        0,
        &EngineSpec {
            uuid,
            capabilities: &["run".to_owned(), "array".to_owned()],
            host: Some(host),
            ..EngineSpec::default()
        },
    )
}

fn amounts(request: &[(&str, u64)]) -> Request {
    let mut request: Request = request.iter().map(|(n, a)| ((*n).into(), *a)).collect();
    request.sort();
    request
}

/// It asks for one of several.
fn ask_any(core: &mut Core, id: &str, requests: &[&[(&str, u64)]]) -> GroupKey {
    let requests: Vec<Request> = requests.iter().map(|request| amounts(request)).collect();
    let spec = GroupSpec {
        msg_id: id,
        client: b"me",
        needs: core.needs(&["run"]),
        requests: &requests,
        ..GroupSpec::default()
    };
    core.submit(0, &spec).expect("a new id")
}

fn ask(core: &mut Core, id: &str, count: u32, request: &[(&str, u64)]) -> GroupKey {
    let spec = GroupSpec {
        msg_id: id,
        client: b"me",
        count,
        needs: core.needs(&["run"]),
        requests: &[amounts(request)],
        ..GroupSpec::default()
    };
    core.submit(0, &spec).expect("a new id")
}

/// Group, engine, names of what was granted.
fn given(core: &mut Core) -> Vec<(GroupKey, EngineKey, Vec<String>)> {
    let mut given = Vec::new();
    while let Some(action) = core.poll() {
        if let Action::Dispatch {
            group,
            engine,
            grant,
            ..
        } = action
        {
            let names = grant.iter().flat_map(|grant| grant.iter());
            let names = names
                .filter(|g| *g.name != *"cpus")
                .flat_map(|g| g.names.iter().map(|n| n.to_string()));
            given.push((group, engine, names.collect()));
        }
    }
    given
}

fn answer(core: &mut Core, engine: EngineKey, group: GroupKey, member: u32) {
    let report = Report::all(member..member + 1, Outcome::Ok, MILLISECOND);
    core.replied(0, engine, group, &report);
}

#[test]
fn a_large_task_is_overtaken_for_a_while_only() {
    let mut core = core();
    let spec = host("h", 4, &[]);
    let engines: Vec<EngineKey> = (0..4)
        .map(|i| join(&mut core, &format!("e{i}"), &spec))
        .collect();
    let mut busy: Vec<(GroupKey, EngineKey)> = Vec::new();
    for i in 0..4 {
        ask(&mut core, &format!("first{i}"), 1, &[]);
    }
    let large = ask(&mut core, "large", 1, &[("cpus", 4000)]);
    for i in 0..100 {
        ask(&mut core, &format!("small{i}"), 1, &[]);
    }
    busy.extend(given(&mut core).into_iter().map(|(g, e, _)| (g, e)));
    assert_eq!(busy.len(), 4);
    let mut overtook = 0;
    while busy.iter().all(|(group, _)| *group != large) {
        let (group, engine) = busy.remove(0);
        answer(&mut core, engine, group, 0);
        let new = given(&mut core);
        overtook += new.iter().filter(|(group, ..)| *group != large).count();
        busy.extend(new.into_iter().map(|(g, e, _)| (g, e)));
        assert!(overtook <= 8, "{overtook} went before it");
    }
    assert_eq!(busy.len(), 1, "it has the host for itself");
    assert!(overtook >= 4, "small ones fill what would idle");
    assert!(core.hosts()[0].kept.is_none());
    // Then all goes on.
    answer(&mut core, busy[0].1, large, 0);
    assert_eq!(given(&mut core).len(), engines.len());
}

#[test]
fn small_tasks_fill_what_a_large_one_leaves() {
    let mut core = core();
    let spec = host("h", 4, &["0"]);
    for i in 0..4 {
        join(&mut core, &format!("e{i}"), &spec);
    }
    // It waits for the only GPU, not for cpus.
    let first = ask(&mut core, "first", 1, &[("gpus", 1000)]);
    ask(&mut core, "second", 1, &[("gpus", 1000)]);
    let (_, on, _) = given(&mut core)[0].clone();
    let mut overtook = 0;
    for i in 0..200 {
        let small = ask(&mut core, &format!("small{i}"), 1, &[]);
        for (group, engine, _) in given(&mut core) {
            assert_eq!(group, small);
            overtook += 1;
            answer(&mut core, engine, group, 0);
        }
    }
    assert!(overtook == 200, "{overtook}: there were cpus to spare");
    answer(&mut core, on, first, 0);
    assert_eq!(given(&mut core)[0].2, ["0"]);
}

#[test]
fn members_of_an_array_ask_each_for_itself() {
    let mut core = core();
    let spec = host("h", 8, &["a", "b"]);
    for i in 0..4 {
        join(&mut core, &format!("e{i}"), &spec);
    }
    let array = ask(&mut core, "array", 5, &[("gpus", 1000)]);
    let two = given(&mut core);
    let names: Vec<&str> = two.iter().map(|(_, _, names)| names[0].as_str()).collect();
    assert_eq!(names, ["a", "b"]);
    answer(&mut core, two[1].1, array, 1);
    let next = given(&mut core);
    assert_eq!(next.len(), 1);
    assert_eq!(next[0].2, ["b"]);
    // What has its outcome already is held until its engine says that it has stopped.
    core.abort(0, &Selector::Ids(&["array".to_owned()]), true);
    core.tick(60 * SECOND);
    ask(&mut core, "next", 1, &[("gpus", 1000)]);
    assert_eq!(given(&mut core), []);
    answer(&mut core, two[0].1, array, 0);
    assert_eq!(given(&mut core)[0].2, ["a"]);
}

#[test]
fn the_first_alternative_that_is_free_is_taken() {
    let mut core = core();
    let (rich, wide) = (host("rich", 2, &["a"]), host("wide", 8, &[]));
    let gpu = join(&mut core, "e0", &rich);
    join(&mut core, "e1", &rich);
    let first_wide = join(&mut core, "e2", &wide);
    join(&mut core, "e3", &wide);
    let either: &[&[(&str, u64)]] = &[&[("gpus", 1000)], &[("cpus", 8000)]];
    // The GPU, although the wide host's engines are as good for the scheme.
    let one = ask_any(&mut core, "one", either);
    let begun = given(&mut core);
    assert_eq!((begun[0].0, &begun[0].2[..]), (one, &["a".to_owned()][..]));
    // The next has to do with cpus, and the third waits for whichever comes first.
    let two = ask_any(&mut core, "two", either);
    let next = given(&mut core);
    assert_eq!(
        (next[0].0, next[0].1.slot() >= first_wide.slot()),
        (two, true)
    );
    let three = ask_any(&mut core, "three", either);
    assert_eq!(given(&mut core), []);
    let why = core.explain(0, "three").text;
    assert!(why.contains("1 cpu and 1 gpu, or 8 cpus free"), "{why}");
    let has = core.explain(0, "two").text;
    assert!(has.contains("It has alternative 2: 8 cpus."), "{has}");
    answer(&mut core, begun[0].1, one, 0);
    let last = given(&mut core);
    assert_eq!((last[0].0, &last[0].2[..]), (three, &["a".to_owned()][..]));
    assert!([gpu, begun[0].1].contains(&last[0].1) || last[0].1.slot() < first_wide.slot());
    // What none has is said of each.
    ask_any(
        &mut core,
        "never",
        &[&[("gpus", 2000)], &[("cpus", 64_000)]],
    );
    let why = core.explain(0, "never").text;
    assert!(
        why.contains("the most gpus that one has is 1; the most cpus that one has is 8"),
        "{why}"
    );
}

#[test]
fn an_alternative_that_is_kept_is_not_waited_for_when_another_comes_free() {
    let mut core = core();
    let spec = host("h", 4, &["a"]);
    for i in 0..4 {
        join(&mut core, &format!("e{i}"), &spec);
    }
    let holder = ask(&mut core, "holder", 1, &[("gpus", 1000)]);
    let gpu = given(&mut core)[0].1;
    let mut busy: Vec<(GroupKey, EngineKey)> = Vec::new();
    for i in 0..100 {
        ask(&mut core, &format!("small{i}"), 1, &[]);
        busy.extend(given(&mut core).into_iter().map(|(g, e, _)| (g, e)));
    }
    let spec = GroupSpec {
        msg_id: "either",
        client: b"me",
        priority: 1,
        needs: core.needs(&["run"]),
        requests: &[amounts(&[("cpus", 4000)]), amounts(&[("gpus", 1000)])],
        ..GroupSpec::default()
    };
    let either = core.submit(0, &spec).expect("a new id");
    while core.hosts()[0].kept.is_none() {
        let (group, engine) = busy.remove(0);
        answer(&mut core, engine, group, 0);
        busy.extend(given(&mut core).into_iter().map(|(g, e, _)| (g, e)));
    }
    answer(&mut core, gpu, holder, 0);
    let now = given(&mut core);
    assert!(
        now.iter()
            .any(|(group, _, names)| (*group, &names[..]) == (either, &["a".to_owned()][..])),
        "{now:?}"
    );
    assert!(core.hosts()[0].kept.is_none());
}

/// It asks for so many whole hosts.
fn ask_nodes(core: &mut Core, id: &str, nodes: u32, retries: u32) -> GroupKey {
    let spec = GroupSpec {
        msg_id: id,
        client: b"me",
        needs: core.needs(&["run"]),
        nodes,
        retries,
        may_return: true,
        ..GroupSpec::default()
    };
    core.submit(0, &spec).expect("a new id")
}

/// Three hosts of two engines each.
fn three_hosts(core: &mut Core) -> Vec<EngineKey> {
    let mut engines = Vec::new();
    for name in ["a", "b", "c"] {
        let spec = host(name, 2, &[]);
        for nth in 0..2 {
            engines.push(join(core, &format!("{name}{nth}"), &spec));
        }
    }
    engines
}

fn held(core: &Core) -> usize {
    core.hosts().iter().filter(|h| h.held_by.is_some()).count()
}

#[test]
fn whole_hosts_are_held_and_come_free_once() {
    let mut core = core();
    three_hosts(&mut core);
    let wide = ask_nodes(&mut core, "wide", 2, 0);
    let begun = given(&mut core);
    assert_eq!((begun.len(), begun[0].0, held(&core)), (1, wide, 2));
    let other = ask_nodes(&mut core, "other", 2, 0);
    // One host is left for what is small, two engines of it.
    for i in 0..5 {
        ask(&mut core, &format!("small{i}"), 1, &[]);
    }
    let small = given(&mut core);
    assert_eq!(small.len(), 2);
    let why = core.explain(0, "other").text;
    assert!(
        why.contains("until 2 whole hosts are free at once"),
        "{why}"
    );
    answer(&mut core, begun[0].1, wide, 0);
    let next = given(&mut core);
    assert_eq!((next[0].0, held(&core)), (other, 2));
    assert_eq!(next.len(), 1);
    answer(&mut core, next[0].1, other, 0);
    assert_eq!((given(&mut core).len(), held(&core)), (3, 0));
    // What there are too few hosts for is said at once.
    ask_nodes(&mut core, "four", 4, 0);
    let why = core.explain(0, "four").text;
    assert!(
        why.contains("asks for 4 whole hosts, and there are 3"),
        "{why}"
    );
}

#[test]
fn hosts_are_kept_for_a_task_that_waits_for_whole_ones() {
    let mut core = core();
    three_hosts(&mut core);
    let mut busy: std::collections::VecDeque<(GroupKey, EngineKey)> = Default::default();
    for i in 0..6 {
        ask(&mut core, &format!("first{i}"), 1, &[]);
    }
    let wide = ask_nodes(&mut core, "wide", 3, 0);
    for i in 0..200 {
        ask(&mut core, &format!("small{i}"), 1, &[]);
    }
    busy.extend(given(&mut core).into_iter().map(|(g, e, _)| (g, e)));
    let mut overtook = 0;
    while held(&core) == 0 {
        let (group, engine) = busy.pop_front().expect("somebody is busy");
        answer(&mut core, engine, group, 0);
        let new = given(&mut core);
        overtook += new.iter().filter(|(group, ..)| *group != wide).count();
        busy.extend(new.into_iter().map(|(g, e, _)| (g, e)));
        assert!(overtook <= 13, "{overtook} went before it");
    }
    assert!(overtook >= 6, "small ones fill what would idle: {overtook}");
    assert_eq!(busy.len(), 1, "it has all hosts for itself");
    answer(&mut core, busy[0].1, wide, 0);
    assert_eq!(given(&mut core).len(), 6);
}

#[test]
fn who_loses_a_host_is_stopped_and_tried_again() {
    let mut core = core();
    let engines = three_hosts(&mut core);
    let wide = ask_nodes(&mut core, "wide", 2, 1);
    let first = given(&mut core)[0].1;
    let kin = |key: EngineKey| engines.iter().position(|e| *e == key).expect("known") / 2;
    let states = core.hosts();
    let other = states
        .iter()
        .find(|h| h.held_by == Some(first) && !h.engines.contains(&first))
        .expect("it holds two");
    let lost = other.engines.clone();
    assert_ne!(kin(lost[0]), kin(first));
    core.engine_left(0, lost[0], None, "");
    assert!(
        std::iter::from_fn(|| core.poll()).next().is_none(),
        "one engine is left there"
    );
    core.engine_left(0, lost[1], None, "");
    let stopped = std::iter::from_fn(|| core.poll()).any(
        |action| matches!(action, Action::Stop { engine, group, .. } if (engine, group) == (first, wide)),
    );
    assert!(stopped);
    core.replied(
        0,
        first,
        wide,
        &Report::all(0..1, Outcome::Aborted, MILLISECOND),
    );
    // Two hosts are left.
    let again = given(&mut core);
    assert_eq!((again[0].0, held(&core)), (wide, 2));
    // The second loss is its end: no retry is left.
    let rest = core.hosts();
    let other = rest
        .iter()
        .find(|h| !h.engines.contains(&again[0].1))
        .expect("two hosts");
    for key in other.engines.clone() {
        core.engine_left(0, key, None, "");
    }
    core.replied(
        0,
        again[0].1,
        wide,
        &Report::all(0..1, Outcome::Error, MILLISECOND),
    );
    let failed = std::iter::from_fn(|| core.poll()).any(|action| {
        matches!(action, Action::Fail { kind: FailKind::EngineError, text, .. } if text.contains("a host that the task held was lost"))
    });
    assert!(failed);
    assert_eq!(held(&core), 0);
}

#[test]
fn whole_hosts_are_held_again_after_a_restart() {
    let mut core = core();
    core.restore_last_known("a0", "a", None, &["a".to_owned(), "b".to_owned()]);
    let spec = GroupSpec {
        msg_id: "old",
        client: b"me",
        needs: core.needs(&["run"]),
        nodes: 2,
        ..GroupSpec::default()
    };
    let old = core.restore(0, &spec, 1, &[], &[("a0", 0, 1)]).unwrap();
    for i in 0..6 {
        ask(&mut core, &format!("small{i}"), 1, &[]);
    }
    let engines = three_hosts(&mut core);
    assert_eq!(given(&mut core).len(), 2, "the third host is free");
    assert_eq!(held(&core), 2);
    answer(&mut core, engines[0], old, 0);
    assert_eq!((given(&mut core).len(), held(&core)), (4, 0));
}

#[test]
fn what_is_held_stays_held_when_a_pool_shrinks() {
    let mut core = core();
    let (small, large) = (host("h", 2, &["a"]), host("h", 4, &["a", "b"]));
    let plain = join(&mut core, "e0", &small);
    let rich = join(&mut core, "e1", &large);
    join(&mut core, "e2", &small);
    ask(&mut core, "both", 1, &[("gpus", 2000), ("cpus", 3000)]);
    let holder = given(&mut core)[0].1;
    assert!([plain, rich].contains(&holder) || core.engines().contains(&holder));
    if holder != rich {
        core.engine_left(0, rich, None, "");
        let state = &core.hosts()[0];
        let gpus = state.stocks.iter().find(|s| *s.0 == *"gpus").unwrap();
        assert_eq!((gpus.1, gpus.2), (1000, 2000), "{state:?}");
        ask(&mut core, "one", 1, &[("gpus", 1000)]);
        assert_eq!(given(&mut core), []);
        core.engine_left(0, holder, None, "");
        assert_eq!(given(&mut core)[0].2, ["a"]);
    }
}

#[test]
fn holdings_come_back_after_a_restart() {
    let mut core = core();
    let grant = |name: &str| {
        vec![
            Granted {
                name: "cpus".into(),
                amount: 1000,
                names: ["1".into()].into_iter().collect(),
            },
            Granted {
                name: "gpus".into(),
                amount: 1000,
                names: [name.into()].into_iter().collect(),
            },
        ]
    };
    core.restore_last_known("e0", "h", Some(grant("b")), &[]);
    core.restore_last_known("e1", "h", None, &[]);
    let needs = core.needs(&["run"]);
    let requests = [amounts(&[("gpus", 1000)])];
    let spec = GroupSpec {
        msg_id: "old",
        client: b"me",
        needs,
        requests: &requests,
        ..GroupSpec::default()
    };
    let old = core.restore(0, &spec, 1, &[], &[("e0", 0, 1)]).unwrap();
    let spec = GroupSpec {
        msg_id: "plain",
        client: b"me",
        needs,
        ..GroupSpec::default()
    };
    core.restore(0, &spec, 1, &[], &[("e1", 0, 1)]).unwrap();
    ask(&mut core, "new", 2, &[("gpus", 1000)]);
    ask(&mut core, "wide", 1, &[("cpus", 4000)]);
    // The engines that are awaited count, though only another has come.
    let spec = host("h", 4, &["a", "b"]);
    join(&mut core, "e2", &spec);
    let first = given(&mut core);
    assert_eq!(first.len(), 1);
    assert_eq!(first[0].2, ["a"]);
    let state = core.hosts()[0].clone();
    let cpus = state.stocks.iter().find(|s| *s.0 == *"cpus").unwrap();
    assert_eq!((cpus.1, cpus.2), (4000, 3000), "{state:?}");
    join(&mut core, "e3", &spec);
    assert_eq!(given(&mut core), []);
    let e0 = join(&mut core, "e0", &spec);
    answer(&mut core, e0, old, 0);
    assert_eq!(given(&mut core)[0].2, ["b"]);
}

#[test]
fn explanations_say_what_is_lacking() {
    let mut core = core();
    ask(&mut core, "large", 1, &[("cpus", 64_000)]);
    assert!(
        core.explain(0, "large")
            .text
            .contains("No engine is registered")
    );
    join(&mut core, "e0", &host("h", 4, &["a"]));
    let text = core.explain(0, "large").text;
    assert!(
        text.contains("asks for 64 cpus, and no host has that: the most cpus that one has is 4"),
        "{text}"
    );
    let needs = core.needs(&["run"]);
    let requests = [amounts(&[("gpus", 2000)])];
    let spec = GroupSpec {
        msg_id: "now",
        client: b"me",
        needs,
        requests: &requests,
        no_wait: true,
        ..GroupSpec::default()
    };
    core.submit(0, &spec).unwrap();
    let failed = std::iter::from_fn(|| core.poll()).any(|a| {
        matches!(
            a,
            Action::Fail {
                kind: FailKind::NoEngine,
                ..
            }
        )
    });
    assert!(failed, "it says at once that it cannot");
    ask(&mut core, "one", 1, &[("gpus", 1000)]);
    ask(&mut core, "two", 1, &[("gpus", 1000)]);
    join(&mut core, "e1", &host("h", 4, &["a"]));
    let why = core.explain(0, "two");
    assert!(
        why.engines
            .iter()
            .any(|(_, r)| r.contains("has 0 of 1 gpus free")),
        "{why:?}"
    );
}

/// Tasks of a stated mix: how long each takes, and what it asks for.
fn mix(count: u64) -> Vec<(u64, Request)> {
    let mut x = 88_172_645_463_325_252u64;
    let mut random = move |below: u64| {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        x % below
    };
    (0..count)
        .map(|_| {
            let time = 50 + random(100);
            let request: &[(&str, u64)] = match random(20) {
                0 => &[("cpus", 16_000)],
                1..=3 => &[("cpus", 4000)],
                4..=5 => &[("cpus", 1000), ("gpus", 1000)],
                6 => &[("cpus", 8000), ("gpus", 2000)],
                7..=9 => &[("cpus", 2000)],
                _ => &[("cpus", 1000)],
            };
            (time, amounts(request))
        })
        .collect()
}

/// When the last of them ends, if each that fits is started in this order wherever it fits first.
fn list_schedule(tasks: &[(u64, Request)], order: &[usize], hosts: usize) -> u64 {
    let total = |name: &str| if name == "cpus" { 16_000 } else { 4000 };
    let mut used: Vec<std::collections::BTreeMap<&str, u64>> = vec![Default::default(); hosts];
    let mut running: std::collections::BTreeSet<(u64, usize, usize)> = Default::default();
    let mut waiting: Vec<usize> = order.to_vec();
    let mut now = 0;
    loop {
        waiting.retain(|&task| {
            let request = &tasks[task].1;
            let place = used.iter().position(|used| {
                let free = |(name, amount): &(Name, u64)| {
                    used.get(&**name).copied().unwrap_or(0) + amount <= total(name)
                };
                request.iter().all(free)
            });
            if let Some(host) = place {
                for (name, amount) in request {
                    *used[host].entry(name).or_default() += amount;
                }
                running.insert((now + tasks[task].0, task, host));
            }
            place.is_none()
        });
        let Some((end, task, host)) = running.pop_first() else {
            return now;
        };
        now = end;
        for (name, amount) in &tasks[task].1 {
            *used[host].get_mut(&**name).expect("taken") -= amount;
        }
    }
}

#[test]
fn the_makespan_of_a_mix_is_near_the_best_of_many() {
    const HOSTS: usize = 3;
    let tasks = mix(300);
    let mut order: Vec<usize> = (0..tasks.len()).collect();
    let mut x = 7u64;
    let mut best = u64::MAX;
    for _ in 0..1000 {
        for at in (1..order.len()).rev() {
            x = x.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            order.swap(at, (x >> 33) as usize % (at + 1));
        }
        best = best.min(list_schedule(&tasks, &order, HOSTS));
    }
    let mut core = core();
    for host in 0..HOSTS {
        let spec = self::host(&format!("h{host}"), 16, &["0", "1", "2", "3"]);
        for engine in 0..16 {
            join(&mut core, &format!("e{host}.{engine}"), &spec);
        }
    }
    let mut keys = std::collections::HashMap::new();
    for (at, (_, request)) in tasks.iter().enumerate() {
        let spec = GroupSpec {
            msg_id: &format!("t{at}"),
            client: b"me",
            count: 1,
            needs: core.needs(&["run"]),
            requests: std::slice::from_ref(request),
            ..GroupSpec::default()
        };
        keys.insert(core.submit(0, &spec).expect("a new id"), at);
    }
    let (mut now, mut running, mut ended) = (0, std::collections::BTreeSet::new(), 0);
    loop {
        for (group, engine, _) in given(&mut core) {
            running.insert((now + tasks[keys[&group]].0, group, engine));
        }
        let Some((end, group, engine)) = running.pop_first() else {
            break;
        };
        now = end;
        ended += 1;
        core.tick(now * MILLISECOND);
        let report = Report::all(0..1, Outcome::Ok, MILLISECOND);
        core.replied(now * MILLISECOND, engine, group, &report);
    }
    assert_eq!(ended, tasks.len());
    eprintln!("makespan {now}, the best of 1000 random list schedules {best}");
    assert!(now * 100 <= best * 105, "{now} against {best}");
}

#[test]
fn demand_counts_what_more_engines_could_run() {
    let mut core = core();
    let cpus = |n: u64| [("cpus", n * 1000)];
    ask(&mut core, "wide", 2, &cpus(4));
    ask(&mut core, "gpu", 1, &[("gpus", 1000)]);
    ask_nodes(&mut core, "whole", 3, 0);
    let long = GroupSpec {
        msg_id: "long",
        client: b"me",
        needs: core.needs(&["run"]),
        time: 10 * SECOND,
        ..GroupSpec::default()
    };
    core.submit(0, &long).expect("a new id");
    // Nothing is known of engines: each stands for a cpu.
    let demand = |engines, time| Demand { engines, time };
    let all = 2 * 4 + 1 + 3 + 1;
    assert_eq!(core.demand(100, None), [demand(all, 0)]);
    assert_eq!(core.demand(5, None), [demand(5, 0)]);
    let apart = [demand(1, 10 * SECOND), demand(all - 1, 0)];
    assert_eq!(core.demand(100, Some(u64::MAX)), apart);
    // Where nothing may be so long, nothing is asked for it, and it is told.
    assert_eq!(core.demand(100, Some(9 * SECOND)), [demand(all - 1, 0)]);
    let why = core.explain(SECOND, "long");
    assert!(why.text.contains("stays for 0 min"), "{why:?}");
    // They have two cpus each, no GPU, and stay for 9 s. One of the wide tasks runs.
    let host = host("h", 4, &[]);
    for uuid in ["a", "b"] {
        core.engine_joined(
            0,
            &EngineSpec {
                uuid,
                capabilities: &["run".to_owned()],
                host: Some(&host),
                stays: Some(9 * SECOND),
                ..EngineSpec::default()
            },
        );
    }
    assert_eq!(core.demand(100, None), [demand(2 + 3 * 2, 0)]);
    let apart = [demand(1, 10 * SECOND), demand(2 + 3 * 2, 0)];
    assert_eq!(core.demand(100, Some(u64::MAX)), apart);
    core.demand(100, None);
    let why = core.explain(SECOND, "long");
    assert!(why.engines[0].1.contains("has to go in 0 min"), "{why:?}");
    // The next ones would be like them.
    for engine in core.engines() {
        core.engine_left(SECOND, engine, Some(&[]), "");
    }
    for id in ["long", "gpu"] {
        let why = core.explain(SECOND, id).text;
        assert!(
            why.contains("None that was here could have run it"),
            "{why}"
        );
    }
    let why = core.explain(SECOND, "wide").text;
    assert!(why.ends_with("No engine is registered."), "{why}");
}
