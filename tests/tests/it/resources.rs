//! What jobs need of their hosts: cpus, GPUs, memory, and what `--resource` adds.

use std::process::Command;

use ipbroker_tests::{Cluster, LIMIT, eventually, programs};
use rustix::process::Signal;
use serde_json::{Value, json};

fn lines(jobs: &[Value]) -> String {
    jobs.iter().map(|job| format!("{job}\n")).collect()
}

/// Fails if another job has the same thing at the same time.
fn alone(name: &str) -> String {
    format!("mkdir \"held.{name}\" && sleep 0.05 && rmdir \"held.{name}\"")
}

#[track_caller]
fn run(cluster: &Cluster, args: &[&str], jobs: &[Value]) -> Vec<Value> {
    cluster.write("jobs.jsonl", &lines(jobs));
    let args = [&["run"], args, &["jobs.jsonl"]].concat();
    cluster.client(&args).json_lines()
}

#[track_caller]
fn all_well(results: &[Value]) {
    for line in results {
        assert_eq!(line["result"]["code"], 0, "{line}");
    }
}

/// What `ipclient engines` says.
fn engines(cluster: &Cluster) -> Vec<Value> {
    let listed = cluster.client(&["engines", "--json"]);
    serde_json::from_str(&listed.stdout).expect("a list of engines")
}

#[test]
fn nobody_holds_the_same_thing_twice() {
    let cluster = Cluster::builder()
        .env("CUDA_VISIBLE_DEVICES", "3,GPU-x")
        .args([
            "-n",
            "6",
            "--nodb",
            "--resource",
            "port=[7001,7002]",
            "--resource=lic=1.5",
        ])
        .start();
    cluster.wait_engines(6);
    let mut jobs: Vec<Value> = Vec::new();
    for number in 0..12 {
        let cmd = alone("$CUDA_VISIBLE_DEVICES");
        jobs.push(json!({"cmd": cmd, "gpus": 1, "number": number}));
        jobs.push(json!({"cmd": alone("$IPBROKER_RESOURCE_PORT"), "resources": {"port": 1}}));
        // Two of these at most: a third would need 1.8.
        let two = "n=$(ls -d lic.* 2>/dev/null | wc -l); touch lic.$$; sleep 0.05; rm lic.$$; test $n -lt 2";
        jobs.push(json!({"cmd": two, "resources": {"lic": 0.6}}));
    }
    jobs.push(json!({"cmd": "test $CUDA_VISIBLE_DEVICES = 3,GPU-x && test $IPBROKER_GPUS = 3,GPU-x", "gpus": 2}));
    jobs.push(json!({"cmd": "test $OMP_NUM_THREADS = 6 && test -n \"$IPBROKER_CPUS\"", "cpus": 6}));
    jobs.push(json!({"cmd": "test -z \"$OMP_NUM_THREADS$IPBROKER_CPUS\""}));
    let results = run(&cluster, &[], &jobs);
    assert_eq!(results.len(), jobs.len());
    all_well(&results);
    let both: Vec<&str> = results
        .iter()
        .filter(|line| line["gpus"] == 1)
        .filter_map(|line| line["cmd"].as_str())
        .collect();
    assert_eq!(both.len(), 12);
    let listed = engines(&cluster);
    let stocks = &listed[0]["resources"];
    assert_eq!(
        stocks["gpus"],
        json!({"total": 2.0, "free": 2.0, "names": ["3", "GPU-x"]})
    );
    assert_eq!(stocks["lic"]["free"], 1.5);
    assert!(stocks["cpus"]["total"].as_f64().unwrap() >= 6.0, "{stocks}");
    assert!(
        listed.iter().all(|engine| engine["holds"].is_null()),
        "{listed:?}"
    );
}

#[test]
fn wide_jobs_run_alone_and_are_not_starved() {
    let cluster = Cluster::with_engines(4);
    let cpus = engines(&cluster)[0]["resources"]["cpus"]["total"].clone();
    // While a wide job runs nobody else does.
    let narrow = "touch n.$$; sleep 0.02; test ! -e wide; code=$?; rm n.$$; exit $code";
    let wide = "touch wide; sleep 0.05; test $(ls n.* 2>/dev/null | wc -l) = 0; code=$?; rm wide; exit $code";
    let mut jobs: Vec<Value> = (0..20).map(|_| json!({"cmd": narrow})).collect();
    // Those that say the same are one array, and come before it but for its priority.
    jobs.push(json!({"cmd": wide, "cpus": cpus, "priority": 1}));
    jobs.extend((0..150).map(|_| json!({"cmd": narrow})));
    let results = run(&cluster, &[], &jobs);
    all_well(&results);
    let place = results.iter().position(|line| line["cmd"] == wide).unwrap();
    assert!(place < 120, "the wide job came {place}th of {}", jobs.len());
}

#[test]
fn what_makes_no_sense_is_said_in_a_line() {
    let cluster = Cluster::with_engines(1);
    let bad = |job: Value| {
        cluster.write("jobs.jsonl", &lines(&[job]));
        let run = cluster.client(&["run", "jobs.jsonl"]);
        assert_ne!(run.code(), 0);
        assert_eq!(run.stderr.lines().count(), 1, "{}", run.stderr);
        run.stderr
    };
    for cpus in [json!(0), json!(-1), json!(1e9), json!("four")] {
        let text = bad(json!({"cmd": "true", "cpus": cpus}));
        assert!(
            text.contains("jobs.jsonl:1: \"cpus\" must be a number of cpus"),
            "{text}"
        );
    }
    let text = bad(json!({"cmd": "true", "cpu": 2}));
    assert!(text.contains("did you mean \"cpus\"?"), "{text}");
    for option in ["--resource=lic", "--resource=1=1", "--resource=cpus=-1"] {
        for name in ["ipctl", "ipengine"] {
            let mut command: Command = cluster.command(name);
            command.arg(option);
            let ended = programs::run(command, cluster.dir(), "", LIMIT);
            assert_ne!(ended.code(), 0, "{name} {option}");
            assert_eq!(ended.stderr.lines().count(), 1, "{}", ended.stderr);
        }
    }
    // The wire is not the command line: whoever speaks it is answered in the same way.
    let wire = cluster.wire();
    let context = zmq::Context::new();
    let socket = wire.connect(&context, zmq::DEALER, None, "task");
    for resources in [json!({"cpus": 0}), json!({"a b": 1}), json!({"gpus": 0.5})] {
        wire.send(
            &socket,
            "command_request",
            json!({"resources": resources}),
            json!({"cmd": "true"}),
            &[],
        );
        let reply = wire.receive(&socket, 10_000).expect("a reply");
        assert_eq!(reply.content["ename"], "ValueError", "{resources}");
    }
}

#[test]
fn what_no_host_has_is_said_at_once() {
    let mut cluster = Cluster::with_engines(2);
    let id = cluster
        .client_with(
            &["submit", "-"],
            &lines(&[json!({"cmd": "true", "gpus": 64})]),
            LIMIT,
        )
        .stdout;
    let why = cluster.client(&["explain", id.trim()]).stdout;
    assert!(
        why.contains("It asks for 1 cpu and 64 gpus, and no host has that: none has any gpus"),
        "{why}"
    );
    let jobs = [
        json!({"cmd": "true", "gpus": 64, "timeout": "0.3s"}),
        json!({"cmd": "true", "nodes": 9, "timeout": 0.3}),
    ];
    let late = run(&cluster, &[], &jobs);
    for (job, lacks) in late.iter().zip(["none has any gpus", "there is 1 whose"]) {
        let error = job["result"]["error"].as_str().unwrap_or_default();
        assert!(
            error.contains("its timeout of 0.3 s. It asks for ") && error.contains(lacks),
            "{error}"
        );
    }
    cluster.write(
        "jobs.jsonl",
        &lines(&[json!({"cmd": "true", "resources": {"lic": 2}})]),
    );
    let refused = cluster.client(&["run", "--no-wait", "jobs.jsonl"]);
    assert_ne!(refused.code(), 0);
    assert!(
        refused.stderr.contains("no engine has a host with 2 lic"),
        "{}",
        refused.stderr
    );
    let waiting = cluster.start_client(&["run", "jobs.jsonl"]);
    eventually("a word about what is lacking", LIMIT, || {
        waiting
            .stderr()
            .contains("line 1 waits: It asks for 1 cpu and 2 lic, and no host has that: none has any lic.")
            .then_some(())
    });
    // An engine that comes later tells what its host has; others of the host share it.
    let mut command = cluster.command("ipengine");
    command.args(["--resource", "lic=2"]);
    cluster
        .engines
        .push(programs::Program::spawn(command, cluster.dir()));
    let ended = waiting.finish(LIMIT);
    assert_eq!(ended.code(), 0, "{}", ended.stderr);
    // On the pure path there are no resources.
    let pure = Cluster::builder()
        .args(["-n", "1", "--scheme=pure", "--nodb"])
        .start();
    pure.wait_engines(1);
    let results = run(&pure, &[], &[json!({"cmd": "true", "cpus": 1})]);
    let error = results[0]["result"]["error"].as_str().unwrap_or_default();
    assert!(error.contains("resources"), "{error}");
}

#[test]
fn an_engine_that_dies_gives_its_gpu_back_once() {
    let mut cluster = Cluster::builder()
        .env("CUDA_VISIBLE_DEVICES", "0,1")
        .args(["--nodb"])
        .start();
    cluster.start_engines(1);
    cluster.wait_engines(1);
    let job =
        json!({"cmd": "echo $CUDA_VISIBLE_DEVICES >> had; touch started; sleep 60", "gpus": 2});
    cluster.write("jobs.jsonl", &lines(&[job]));
    let waiting = cluster.start_client(&["run", "jobs.jsonl"]);
    eventually("the job", LIMIT, || {
        cluster.path("started").exists().then_some(())
    });
    let holds = &engines(&cluster)[0]["holds"]["gpus"];
    assert_eq!(*holds, json!({"amount": 2.0, "names": ["0", "1"]}));
    cluster.start_engines(3);
    cluster.wait_engines(4);
    cluster.engines[0].signal(Signal::KILL);
    assert_ne!(waiting.finish(LIMIT).code(), 0);
    cluster.wait_engines(3);
    let stock = engines(&cluster)[0]["resources"]["gpus"].clone();
    assert_eq!(
        stock,
        json!({"total": 2.0, "free": 2.0, "names": ["0", "1"]})
    );
    let jobs: Vec<Value> = (0..8)
        .map(|n| json!({"cmd": alone("$CUDA_VISIBLE_DEVICES"), "gpus": 1, "number": n}))
        .collect();
    all_well(&run(&cluster, &[], &jobs));
}

#[test]
fn a_restarted_controller_knows_who_holds_what() {
    let mut cluster = Cluster::builder()
        .env("CUDA_VISIBLE_DEVICES", "0,1")
        .start();
    cluster.start_engines(3);
    cluster.wait_engines(3);
    let long = "echo $CUDA_VISIBLE_DEVICES > first; while [ ! -e go ]; do sleep 0.05; done";
    let first = cluster.client_with(
        &["submit", "-"],
        &lines(&[json!({"cmd": long, "gpus": 1})]),
        LIMIT,
    );
    eventually("the first job", LIMIT, || {
        cluster.path("first").exists().then_some(())
    });
    cluster.controller().signal(Signal::KILL);
    cluster.controller = None;
    cluster.start_controller_with(&["--restore"]);
    cluster.wait_engines(3);
    // The other GPU is free, both together are not.
    let jobs = [json!({"cmd": "echo $CUDA_VISIBLE_DEVICES", "gpus": 1})];
    let results = run(&cluster, &["--capture"], &jobs);
    all_well(&results);
    let had = cluster.read("first");
    assert_ne!(results[0]["result"]["stdout"], had.as_str());
    let both = cluster.client_with(
        &["submit", "-"],
        &lines(&[json!({"cmd": "touch both", "gpus": 2})]),
        LIMIT,
    );
    let why = cluster.client(&["explain", both.stdout.trim()]).stdout;
    assert!(why.contains("has 1 of 2 gpus free"), "{why}");
    assert!(!cluster.path("both").exists());
    cluster.write("go", "");
    let ids = [first.stdout.trim(), both.stdout.trim()];
    let waited = cluster.client(&["wait", ids[0], ids[1]]);
    assert_eq!(waited.code(), 0, "{}", waited.stderr);
    assert!(cluster.path("both").exists());
}

#[test]
fn memory_is_a_limit_and_cores_are_pinned() {
    let cluster = Cluster::builder()
        .args(["-n", "2", "--nodb", "--pin", "--resource", "memory=1G"])
        .start();
    cluster.wait_engines(2);
    let cpu = "set -- $(taskset -cp $$); test \"${!#}\" = \"$IPBROKER_CPUS\"";
    let eat = "head -c 300M /dev/zero | tail -c 1 | wc -c; python3 -c 'x = bytearray(300 << 20); import time; time.sleep(5)'";
    let jobs = [
        json!({"cmd": cpu, "cpus": 1}),
        json!({"cmd": eat, "memory": "100M"}),
        json!({"cmd": "echo begun; sleep 30", "time": 0.3, "capture": 100}),
    ];
    let results = run(&cluster, &[], &jobs);
    let of = |cmd: &str| &results.iter().find(|line| line["cmd"] == cmd).unwrap()["result"];
    assert_eq!(of(cpu)["code"], 0, "{}", of(cpu));
    assert!(
        of(eat)["error"]
            .as_str()
            .unwrap_or_default()
            .contains("limit"),
        "{}",
        of(eat)
    );
    let late = of("echo begun; sleep 30");
    let error = late["error"].as_str().unwrap_or_default();
    assert!(error.contains("time limit"), "{late}");
    assert_eq!(
        (&late["code"], &late["stdout"]),
        (&json!(143), &json!("begun\n"))
    );
    // As options, for jobs that say nothing.
    let printed = cluster.client(&[
        "map",
        "--cpus",
        "2",
        "--memory",
        "200M",
        "echo $OMP_NUM_THREADS $IPBROKER_MEMORY #",
        ":::",
        "x",
    ]);
    assert_eq!(printed.stdout, format!("2 {}\n", 200 << 20));
    let refused = cluster.client(&["map", "--cpus", "0", "true", ":::", "x"]);
    assert_eq!(refused.stderr.lines().count(), 1, "{}", refused.stderr);
    assert_ne!(refused.code(), 0);
}

#[test]
fn plain_jobs_do_not_wait_for_cpus() {
    // More engines than any of our machines has cores for.
    let cluster = Cluster::with_engines(12);
    let all = "touch here.$$; for i in $(seq 400); do test $(ls here.* | wc -l) = 12 && exit 0; sleep 0.05; done; exit 1";
    let jobs: Vec<Value> = (0..12).map(|_| json!({"cmd": all})).collect();
    all_well(&run(&cluster, &[], &jobs));
}

/// Starts an engine process that counts as a host of that name.
fn start_host(cluster: &mut Cluster, name: &str, engines: u32, gpus: &str, args: &[&str]) {
    let inner = cluster.command("ipengine");
    let mut command = Command::new("unshare");
    if !rustix::process::geteuid().is_root() {
        command.arg("--map-root-user");
    }
    command
        .args(["--uts", "sh", "-c", "hostname $0 && exec \"$@\"", name])
        .arg(inner.get_program())
        .args(inner.get_args())
        .args(["-n", &engines.to_string()])
        .args(args)
        .current_dir(cluster.dir());
    for (name, value) in inner.get_envs() {
        match value {
            Some(value) => command.env(name, value),
            None => command.env_remove(name),
        };
    }
    command.env("CUDA_VISIBLE_DEVICES", gpus);
    let engine = programs::Program::spawn(command, cluster.dir());
    cluster.engines.push(engine);
}

#[test]
fn the_first_alternative_that_can_be_had_is_taken() {
    let mut cluster = Cluster::builder().start();
    start_host(&mut cluster, "rich", 2, "7", &[]);
    start_host(&mut cluster, "poor", 2, "", &["--resource=seat=[s]"]);
    cluster.wait_engines(4);
    // A job with nothing to lose waits until it may end; the file says what it had.
    let job = |name: &str, any: Value| {
        let cmd = format!(
            "echo $IPBROKER_ALTERNATIVE $(hostname) gpu=$CUDA_VISIBLE_DEVICES seat=$IPBROKER_RESOURCE_SEAT > {name}.new; mv {name}.new {name}; while [ ! -e go.{name} ]; do sleep 0.02; done"
        );
        json!({"cmd": cmd, "any": any})
    };
    let had = |cluster: &Cluster, name: &str| {
        eventually(name, LIMIT, || cluster.path(name).exists().then_some(()));
        cluster.read(name).trim().to_owned()
    };
    let either = json!([{"gpus": 1, "cpus": 0.5}, {"resources": {"seat": 1}, "memory": "64M"}]);
    let explain = |cluster: &Cluster, id: &str| cluster.client(&["explain", id]).stdout;
    let first = submit(&cluster, job("first", either.clone()));
    assert_eq!(had(&cluster, "first"), "1 rich gpu=7 seat=");
    assert!(
        explain(&cluster, &first).contains("It has alternative 1: 0.5 cpus and 1 gpu."),
        "{}",
        explain(&cluster, &first)
    );
    let second = submit(&cluster, job("second", either.clone()));
    assert_eq!(had(&cluster, "second"), "2 poor gpu= seat=s");
    // Both are gone: the third has whichever comes first.
    let third = submit(&cluster, job("third", either.clone()));
    let why = explain(&cluster, &third);
    assert!(
        why.contains("0.5 cpus and 1 gpu, or 1 cpu, 64.0 MiB memory and 1 seat free"),
        "{why}"
    );
    assert!(!cluster.path("third").exists());
    cluster.write("go.second", "");
    assert_eq!(had(&cluster, "third"), "2 poor gpu= seat=s");
    for name in ["first", "third"] {
        cluster.write(&format!("go.{name}"), "");
    }
    let waited = cluster.client(&["wait", &first, &second, &third]);
    assert_eq!(waited.code(), 0, "{}", waited.stderr);
    // Run again it asks anew.
    let again = cluster.client(&["resubmit", &third]);
    assert_eq!(again.code(), 0, "{}", again.stderr);
    let waited = cluster.client(&["wait", again.stdout.trim()]);
    assert_eq!(waited.code(), 0, "{}", waited.stderr);
    assert_eq!(had(&cluster, "third"), "1 rich gpu=7 seat=");
    // Members of an array have each their own, and options say the same.
    let gpus = cluster.client(&[
        "map",
        "--any=gpus=1,cpus=0.5",
        "--any=cpus=1",
        "echo $IPBROKER_ALTERNATIVE$CUDA_VISIBLE_DEVICES; sleep 0.05 #",
        ":::",
        "a",
        "b",
        "c",
        "d",
        "e",
        "f",
    ]);
    let seen: std::collections::BTreeSet<&str> = gpus.stdout.lines().collect();
    assert_eq!(seen, ["17", "2"].into(), "{}", gpus.stdout);
}

#[test]
fn alternatives_survive_a_restart_and_bad_ones_are_said() {
    let mut cluster = Cluster::builder().env("CUDA_VISIBLE_DEVICES", "0").start();
    cluster.start_engines(4);
    cluster.wait_engines(4);
    for (any, says) in [
        (json!([]), "is a list without an alternative"),
        (json!(3), "must be true or false"),
        (json!([{"any": [{}]}]), "has an alternative 1 with \"any\""),
        (
            json!([{}, {"cpus": -1}]),
            "has an alternative 2 whose \"cpus\" must be",
        ),
    ] {
        cluster.write("jobs.jsonl", &lines(&[json!({"cmd": "true", "any": any})]));
        let run = cluster.client(&["run", "jobs.jsonl"]);
        assert_ne!(run.code(), 0);
        assert_eq!(run.stderr.lines().count(), 1, "{}", run.stderr);
        assert!(run.stderr.contains(says), "{any}: {}", run.stderr);
    }
    for option in [
        "--any=gpus",
        "--any=cpus=1,cpus=2",
        "--any=gpus=0.5",
        "--any=",
    ] {
        let run = cluster.client(&["map", option, "true", ":::", "x"]);
        assert_ne!(run.code(), 0, "{option}");
        assert_eq!(run.stderr.lines().count(), 1, "{}", run.stderr);
    }
    cluster.write(
        "jobs.jsonl",
        &lines(&[json!({"cmd": "true", "any": [{"gpus": 2}, {"cpus": 900}]})]),
    );
    let refused = cluster.client(&["run", "--no-wait", "jobs.jsonl"]);
    assert_ne!(refused.code(), 0);
    assert!(
        refused
            .stderr
            .contains("no engine has a host with 2 gpus, or 900 cpus"),
        "{}",
        refused.stderr
    );
    // What waits when the controller is killed still has its alternatives in the next one.
    let hold = json!({"cmd": "touch held; while [ ! -e go ]; do sleep 0.02; done", "gpus": 1});
    let waits =
        json!({"cmd": "echo $IPBROKER_ALTERNATIVE > had", "any": [{"gpus": 1}, {"cpus": 900}]});
    let hold = cluster
        .client_with(&["submit", "-"], &lines(&[hold]), LIMIT)
        .stdout;
    eventually("the first job", LIMIT, || {
        cluster.path("held").exists().then_some(())
    });
    let waits = cluster
        .client_with(&["submit", "-"], &lines(&[waits]), LIMIT)
        .stdout;
    cluster.controller().signal(Signal::KILL);
    cluster.controller = None;
    cluster.start_controller_with(&["--restore"]);
    let why = eventually("the task", LIMIT, || {
        let why = cluster.client(&["explain", waits.trim()]).stdout;
        why.contains("1 gpu, or 900 cpus").then_some(why)
    });
    assert!(!cluster.path("had").exists(), "{why}");
    cluster.write("go", "");
    let waited = cluster.client(&["wait", hold.trim(), waits.trim()]);
    assert_eq!(waited.code(), 0, "{}", waited.stderr);
    assert_eq!(cluster.read("had").trim(), "1");
}

/// Three hosts of two engines each.
fn three_hosts(cluster: &mut Cluster) {
    for name in ["a", "b", "c"] {
        start_host(cluster, name, 2, "", &[]);
    }
    cluster.wait_engines(6);
}

/// A command that says which hosts it has, and goes on until it may end.
fn holds_hosts(name: &str) -> String {
    format!(
        "(uname -n; echo $IPBROKER_NODES; cat $IPBROKER_NODEFILE; echo $IPBROKER_NODEFILE) > {name}.new; mv {name}.new {name}; while [ ! -e go.{name} ]; do sleep 0.02; done"
    )
}

/// What it has said: its hosts, and the file that names them.
fn hosts_had(cluster: &Cluster, name: &str, nodes: usize) -> (Vec<String>, String) {
    eventually(name, LIMIT, || cluster.path(name).exists().then_some(()));
    let text = cluster.read(name);
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines.len(), nodes + 3, "{text}");
    assert_eq!(lines[0], lines[2], "it runs on the first: {text}");
    assert_eq!(lines[1], nodes.to_string());
    let hosts = lines[2..nodes + 2].iter().map(|host| (*host).to_owned());
    let distinct: std::collections::BTreeSet<String> = hosts.clone().collect();
    assert_eq!(distinct.len(), nodes, "{text}");
    (hosts.collect(), lines[nodes + 2].to_owned())
}

fn submit(cluster: &Cluster, job: Value) -> String {
    let submitted = cluster.client_with(&["submit", "-"], &lines(&[job]), LIMIT);
    assert_eq!(submitted.code(), 0, "{}", submitted.stderr);
    submitted.stdout.trim().to_owned()
}

/// Jobs that run beside one that has these hosts have others.
fn run_elsewhere(cluster: &Cluster, hosts: &[String], count: usize) {
    let small: Vec<Value> = (0..count).map(|_| json!({"cmd": "uname -n"})).collect();
    for line in run(cluster, &["--capture"], &small) {
        let host = line["result"]["stdout"].as_str().unwrap_or_default().trim();
        assert!(
            !host.is_empty() && !hosts.iter().any(|h| h == host),
            "{line}"
        );
    }
}

#[test]
fn a_job_holds_whole_hosts() {
    let mut cluster = Cluster::builder().start();
    three_hosts(&mut cluster);
    let wide = submit(&cluster, json!({"cmd": holds_hosts("wide"), "nodes": 2}));
    let (hosts, file) = hosts_had(&cluster, "wide", 2);
    assert!(std::path::Path::new(&file).exists());
    // All else runs on the third host, and who asks for more waits.
    let other = submit(&cluster, json!({"cmd": holds_hosts("other"), "nodes": 2}));
    // Fewer than may overtake it.
    run_elsewhere(&cluster, &hosts, 4);
    let why = cluster.client(&["explain", &other]).stdout;
    assert!(why.contains("2 whole hosts are free at once"), "{why}");
    for engine in engines(&cluster) {
        let held = hosts.iter().any(|host| engine["host"][0] == host.as_str());
        assert_eq!(engine["resources"]["cpus"]["free"] == 0.0, held, "{engine}");
    }
    cluster.write("go.wide", "");
    hosts_had(&cluster, "other", 2);
    cluster.write("go.other", "");
    let waited = cluster.client(&["wait", &wide, &other]);
    assert_eq!(waited.code(), 0, "{}", waited.stderr);
    assert!(
        !std::path::Path::new(&file).exists(),
        "the file goes with the job"
    );
    for engine in engines(&cluster) {
        let cpus = &engine["resources"]["cpus"];
        assert_eq!(cpus["free"], cpus["total"], "{engine}");
    }
    // Each member of an array has its own, and so have jobs run again.
    let array = cluster.client(&[
        "map",
        "--nodes=3",
        "wc -l < $IPBROKER_NODEFILE #",
        ":::",
        "x",
        "y",
    ]);
    assert_eq!(array.stdout, "3\n3\n", "{}", array.stderr);
    std::fs::remove_file(cluster.path("wide")).unwrap();
    let again = cluster.client(&["resubmit", &wide]).stdout;
    assert_eq!(cluster.client(&["wait", again.trim()]).code(), 0);
    hosts_had(&cluster, "wide", 2);
}

#[test]
fn a_job_that_loses_a_host_is_stopped() {
    let mut cluster = Cluster::builder().start();
    three_hosts(&mut cluster);
    cluster.write(
        "wide.jsonl",
        &lines(&[json!({"cmd": holds_hosts("wide"), "nodes": 2, "max_crashes": 1})]),
    );
    let running = cluster.start_client(&["run", "wide.jsonl"]);
    let process = |host: &str| ["a", "b", "c"].iter().position(|h| *h == host).unwrap();
    let (hosts, _) = hosts_had(&cluster, "wide", 2);
    std::fs::remove_file(cluster.path("wide")).unwrap();
    cluster.engines[process(&hosts[1])].signal(Signal::KILL);
    // It begins again, on the two that are left.
    let (hosts, _) = hosts_had(&cluster, "wide", 2);
    cluster.engines[process(&hosts[1])].signal(Signal::KILL);
    let ended = running.finish(LIMIT);
    assert_ne!(ended.code(), 0, "{}", ended.stdout);
    let result: Value = serde_json::from_str(ended.stdout.trim()).expect("a result");
    let error = result["result"]["error"].as_str().unwrap_or_default();
    assert!(
        error.starts_with("EngineError") && error.contains("a host that the task held was lost"),
        "{result}"
    );
    // The host that is left is free again.
    let small = run(&cluster, &["--capture"], &[json!({"cmd": "uname -n"})]);
    assert_eq!(small[0]["result"]["stdout"], format!("{}\n", hosts[0]));
    let refused = cluster.client(&["run", "--no-wait", "wide.jsonl"]);
    assert_ne!(refused.code(), 0, "{} {}", refused.stdout, refused.stderr);
    assert!(
        refused.stderr.contains("2 whole hosts"),
        "{}",
        refused.stderr
    );
    let never = submit(&cluster, json!({"cmd": "true", "nodes": 2}));
    let why = cluster.client(&["explain", &never]).stdout;
    assert!(
        why.contains("asks for 2 whole hosts, and there is 1"),
        "{why}"
    );
}

#[test]
fn whole_hosts_stay_held_when_the_controller_is_killed() {
    let mut cluster = Cluster::builder().start();
    three_hosts(&mut cluster);
    let wide = submit(&cluster, json!({"cmd": holds_hosts("wide"), "nodes": 2}));
    let (hosts, _) = hosts_had(&cluster, "wide", 2);
    cluster.controller().signal(Signal::KILL);
    cluster.controller = None;
    cluster.start_controller_with(&["--restore"]);
    cluster.wait_engines(6);
    run_elsewhere(&cluster, &hosts, 6);
    let other = submit(&cluster, json!({"cmd": "true", "nodes": 3}));
    cluster.write("go.wide", "");
    let waited = cluster.client(&["wait", &wide, &other]);
    assert_eq!(waited.code(), 0, "{}", waited.stderr);
}

#[test]
fn whole_hosts_that_make_no_sense_are_refused_in_a_line() {
    let cluster = Cluster::with_engines(1);
    for (job, says) in [
        (
            json!({"nodes": 0}),
            "must be a whole number of hosts from 1",
        ),
        (
            json!({"nodes": -1}),
            "must be a whole number of hosts from 1",
        ),
        (
            json!({"nodes": 1.5}),
            "must be a whole number of hosts from 1",
        ),
        (
            json!({"nodes": 1e9}),
            "must be a whole number of hosts from 1",
        ),
        (
            json!({"nodes": 2, "cpus": 4}),
            "cannot stand beside \"cpus\"",
        ),
        (
            json!({"nodes": 2, "host": ["a"]}),
            "cannot stand beside \"host\"",
        ),
    ] {
        let mut job = job;
        job["cmd"] = "true".into();
        cluster.write("jobs.jsonl", &lines(std::slice::from_ref(&job)));
        let run = cluster.client(&["run", "jobs.jsonl"]);
        assert_ne!(run.code(), 0);
        assert_eq!(run.stderr.lines().count(), 1, "{}", run.stderr);
        assert!(run.stderr.contains(says), "{job}: {}", run.stderr);
    }
    let clash = cluster.client(&["map", "--nodes=2", "--cpus=2", "true", ":::", "x"]);
    assert_ne!(clash.code(), 0);
    assert!(clash.stderr.contains("--cpus"), "{}", clash.stderr);
    let wire = cluster.wire();
    let context = zmq::Context::new();
    let socket = wire.connect(&context, zmq::DEALER, None, "task");
    for metadata in [
        json!({"nodes": 2, "hosts": ["a"]}),
        json!({"nodes": 2, "resources": {"cpus": 1}}),
        json!({"nodes": 1_000_000_000}),
    ] {
        wire.send(
            &socket,
            "command_request",
            metadata.clone(),
            json!({"cmd": "true"}),
            &[],
        );
        let reply = wire.receive(&socket, 10_000).expect("a reply");
        assert_eq!(reply.content["ename"], "ValueError", "{metadata}");
    }
}

#[test]
fn a_job_goes_where_the_allocation_lasts_for_it() {
    let mut cluster = Cluster::builder().start();
    let start = |cluster: &mut Cluster, arg: &str, end: &str| {
        let mut command = cluster.command("ipengine");
        command.arg(arg).env("SLURM_JOB_END_TIME", end);
        let engine = programs::Program::spawn(command, cluster.dir());
        cluster.engines.push(engine);
    };
    // Half an hour by its option, and by what Slurm says.
    start(&mut cluster, "--time-limit=1800", "");
    cluster.wait_engines(1);
    let jobs: Vec<Value> = [("10m", "a"), ("2h", "b"), ("29m", "c")]
        .map(|(time, id)| json!({"cmd": "echo $IPBROKER_ENGINE_ID", "time": time, "id": id}))
        .into();
    let ids = cluster
        .client_with(&["submit", "--capture"], &lines(&jobs), LIMIT)
        .ok()
        .stdout;
    let ids: Vec<&str> = ids.lines().collect();
    cluster.client(&["wait", ids[0], ids[2]]).ok();
    let why = cluster.client(&["explain", ids[1]]).ok().stdout;
    for words in ["stays for 120 min", "has to go in 29 min"] {
        assert!(why.contains(words), "{why}");
    }
    let now = std::time::UNIX_EPOCH.elapsed().expect("a date").as_secs();
    start(&mut cluster, "-n=1", &(now + 1800).to_string());
    cluster.wait_engines(2);
    let why = cluster.client(&["explain", ids[1]]).ok().stdout;
    assert_eq!(why.matches("has to go in 29 min").count(), 2, "{why}");
    cluster.start_engines(1);
    cluster.client(&["wait", ids[1]]).ok();
    let results = cluster.client(&["results", ids[1]]).ok().json_lines();
    assert_eq!(results[0]["result"]["stdout"], "2\n", "{results:?}");
}

/// The time of a PBS job counts from the job's beginning, not from that of an engine that comes later.
#[test]
fn an_engine_that_starts_late_in_its_allocation_stays_as_long_as_that() {
    let mut cluster = Cluster::builder().start();
    let job = json!({"cmd": "true", "time": 60});
    let id = cluster
        .client_with(&["submit"], &lines(&[job]), LIMIT)
        .ok()
        .stdout;
    let engine = cluster.command("ipengine");
    let script = "touch begun; until [ -e go ]; do sleep 0.05; done; \"$@\" & wait";
    let mut command = std::process::Command::new("bash");
    command
        .current_dir(cluster.dir())
        .envs(
            engine
                .get_envs()
                .filter_map(|(key, value)| Some((key, value?))),
        )
        .envs([("PBS_JOBID", "7.server"), ("PBS_WALLTIME", "62")])
        .args(["-c", script, "sh"])
        .arg(engine.get_program())
        .args(engine.get_args());
    let begun = std::time::Instant::now();
    let allocation = programs::Program::spawn(command, cluster.dir());
    cluster.engines.push(allocation);
    // Two seconds of its 62 are gone when the engine comes.
    eventually("the job to be a while old", LIMIT, || {
        let old = begun.elapsed() > std::time::Duration::from_secs(3);
        (old && cluster.path("begun").exists()).then_some(())
    });
    cluster.write("go", "");
    cluster.wait_engines(1);
    let why = cluster.client(&["explain", id.trim()]).ok().stdout;
    assert!(why.contains("has to go in 0 min"), "{why}");
}
