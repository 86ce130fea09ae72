//! What dies, and what becomes of the tasks.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use ipbroker_tests::{Cluster, LIMIT, RawClient, eventually};
use rustix::process::{Pid, Signal};
use serde_json::{Value, json};

/// 1,000 jobs over two engine processes; one is killed while its jobs run. Their outcomes, each with what the job wrote.
fn kill_one(asked: &Value) -> (Cluster, Vec<(Value, String)>) {
    let mut cluster = Cluster::builder().arg("--nodb").start();
    cluster.start_engines(2);
    cluster.start_engines(2);
    cluster.wait_engines(4);
    let client = RawClient::new(&cluster, "task");
    let ids: Vec<String> = (0..1000)
        .map(|number| {
            client.command(
                &format!("echo begun >> job.{number}; sleep 0.01; echo ended >> job.{number}"),
                asked.clone(),
            )
        })
        .collect();
    let mut outcomes: HashMap<String, Value> = HashMap::new();
    while outcomes.len() < ids.len() {
        let reply = client
            .wire
            .receive(&client.socket, 60_000)
            .unwrap_or_else(|error| panic!("{} of 1000: {error}", outcomes.len()));
        assert!(
            outcomes
                .insert(reply.parent_id().to_owned(), reply.content)
                .is_none(),
            "a second reply"
        );
        if outcomes.len() == 100 {
            // Between two jobs nothing would be lost.
            eventually("a job that runs there", LIMIT, || {
                cluster.engines[0].signal(Signal::STOP);
                let runs = runs_a_job(cluster.engines[0].pid());
                if !runs {
                    cluster.engines[0].signal(Signal::CONT);
                }
                runs.then(|| cluster.engines[0].kill())
            });
        }
    }
    let jobs = ids
        .iter()
        .enumerate()
        .map(|(number, id)| {
            let wrote = std::fs::read_to_string(cluster.path(&format!("job.{number}")));
            (outcomes.remove(id).unwrap(), wrote.unwrap_or_default())
        })
        .collect();
    (cluster, jobs)
}

/// Whether a process of an engine has a job that it has not heard the end of.
fn runs_a_job(engine: Pid) -> bool {
    let threads = std::fs::read_dir(format!("/proc/{engine}/task")).expect("its threads");
    threads.flatten().any(|thread| {
        let children = std::fs::read_to_string(thread.path().join("children")).unwrap_or_default();
        children.split_whitespace().any(|child| {
            // A job that has just ended has no command line.
            let line = std::fs::read(format!("/proc/{child}/cmdline"));
            line.is_ok_and(|line| line.is_empty() || line.windows(4).any(|part| part == b"job."))
        })
    })
}

#[test]
fn an_engine_process_is_killed_in_the_middle() {
    let (cluster, jobs) = kill_one(&json!({}));
    let (done, lost): (Vec<_>, Vec<_>) = jobs
        .iter()
        .partition(|(outcome, _)| outcome["status"] == "ok");
    assert!(
        done.iter().all(|(_, wrote)| wrote == "begun\nended\n"),
        "a job ran more than once"
    );
    assert!(!lost.is_empty());
    for (outcome, wrote) in &lost {
        assert_eq!(outcome["ename"], "EngineError", "{outcome}");
        assert!("begun\nended\n".starts_with(wrote), "{wrote}");
    }
    // What had ended died with its answer on its way; what had not, ran: one an engine.
    let running = lost.iter().filter(|(_, wrote)| !wrote.ends_with("ended\n"));
    assert!(
        running.count() <= 2,
        "only what ran on the two engines is lost: {lost:?}"
    );
    cluster.wait_engines(2);
}

#[test]
fn retried_where_asked() {
    for asked in [json!({"retries": 2}), json!({"max_crashes": 2})] {
        let (_cluster, jobs) = kill_one(&asked);
        let lost: Vec<_> = jobs
            .iter()
            .filter(|(outcome, _)| outcome["status"] != "ok")
            .collect();
        assert!(lost.is_empty(), "{asked}: {lost:?}");
    }
}

#[test]
fn crashes_count_apart_from_retries() {
    let cluster = Cluster::with_engines(2);
    let client = RawClient::new(&cluster, "task");
    let deadly = |name: &str, asked: Value| {
        client.command(&format!("echo x >> {name}; kill -9 $PPID"), asked)
    };
    let ends = |name: &str, asked: Value, runs: usize| {
        let id = deadly(name, asked);
        let reply = client.wire.receive(&client.socket, 60_000).unwrap();
        assert_eq!(reply.parent_id(), id);
        assert_eq!(reply.content["ename"], "EngineError", "{}", reply.content);
        assert_eq!(cluster.read(name).lines().count(), runs, "{name}");
    };
    ends("apart", json!({"max_crashes": 2, "retries": 9}), 3);
    ends("none", json!({"max_crashes": 0, "retries": 9}), 1);
    ends("retried", json!({"retries": 1}), 2);
    // Failures use up retries, and none of the crashes.
    let id = client.command(
        "echo x >> failed; false",
        json!({"max_crashes": 9, "retries": 1}),
    );
    assert_eq!(client.reply(&id).content["code"], 1);
    assert_eq!(cluster.read("failed").lines().count(), 2);
}

/// A batch system that ends an allocation sends a signal to all its processes: the job did not fail, its engine leaves.
#[test]
fn a_signal_for_all_takes_the_engine_not_the_job() {
    let mut cluster = Cluster::builder().start();
    cluster.start_engines(1);
    cluster.start_engines(1);
    cluster.wait_engines(2);
    let client = RawClient::new(&cluster, "task");
    let deadly = "echo x >> ran; (trap '' TERM; kill $$; sleep 0.1; kill $PPID) & wait";
    let twice = format!("[ -e ran ] || {{ {deadly}; }}");
    let reply = client.reply(&client.command(&twice, json!({"max_crashes": 1})));
    assert_eq!(reply.content["code"], 0, "{}", reply.content);
    assert_eq!(cluster.read("ran").lines().count(), 1);
    let reply = client.reply(&client.command(deadly, json!({})));
    assert_eq!(reply.content["ename"], "EngineError", "{}", reply.content);
}

#[test]
fn a_retry_waits_for_its_delay() {
    let cluster = Cluster::builder().args(["-n", "1"]).start();
    cluster.wait_engines(1);
    let jobs = r#"{"cmd": "date +%s%N >> times; false", "retries": 2, "retry_delay": 0.4}"#;
    let run = cluster.client_with(&["run"], jobs, LIMIT);
    assert_eq!(run.code(), 1, "{}", run.stderr);
    let times: Vec<u64> = cluster
        .read("times")
        .lines()
        .map(|line| line.parse().unwrap())
        .collect();
    let waits: Vec<f64> = times
        .windows(2)
        .map(|pair| (pair[1] - pair[0]) as f64 / 1e9)
        .collect();
    assert!(
        waits.len() == 2 && waits[0] >= 0.4 && waits[1] >= 0.8,
        "{waits:?}"
    );
    // One that waits lets others by, says why it waits, and can be aborted.
    let submitted = cluster.client_with(
        &["submit", "--retries", "5", "--retry-delay", "1h"],
        r#"{"cmd": "touch failed; false"}"#,
        LIMIT,
    );
    let id = submitted.ok().stdout.trim().to_owned();
    let words = eventually("it to wait for its retry", LIMIT, || {
        let words = cluster.client(&["explain", &id]).ok().stdout;
        words.contains("tried again in").then_some(words)
    });
    let others = cluster.client_with(&["run"], r#"{"cmd": "true"}"#, LIMIT);
    assert_eq!(others.code(), 0, "{words}: {}", others.stderr);
    cluster.client(&["abort", &id]).ok();
    assert_eq!(result_of(&cluster, &id)["status"], "aborted");
}

/// A job's own directory is closed to others, and goes with its engine.
#[test]
fn a_killed_engine_takes_the_directories_of_its_jobs_with_it() {
    let mut cluster = Cluster::builder().arg("--nodb").start();
    cluster.start_engines(1);
    cluster.wait_engines(1);
    let jobs = "{\"cmd\": \"pwd > $OUT/where; touch mine; sleep 300\", \"scratch\": true}\n";
    let jobs = jobs.replace("$OUT", &cluster.dir().display().to_string());
    cluster.client_with(&["submit", "-"], &jobs, LIMIT).ok();
    let place = eventually("the job to run", LIMIT, || {
        let place = std::fs::read_to_string(cluster.path("where")).ok()?;
        let place = std::path::PathBuf::from(place.trim_end().to_owned());
        place.join("mine").exists().then_some(place)
    });
    let mode = std::os::unix::fs::MetadataExt::mode(&place.metadata().unwrap());
    assert_eq!(mode & 0o777, 0o700, "{}", place.display());
    cluster.engines[0].kill();
    eventually("its directory to be gone", LIMIT, || {
        (!place.exists()).then_some(())
    });
}

#[test]
fn a_killed_engine_takes_its_jobs_with_it() {
    let mut cluster = Cluster::builder().arg("--nodb").start();
    cluster.start_engines(2);
    cluster.wait_engines(2);
    let client = RawClient::new(&cluster, "task");
    client.command("sleep 301; true", json!({}));
    client.command("trap '' TERM HUP; setsid sleep 302; true", json!({}));
    let sleeping = |cluster: &Cluster| {
        let processes = cluster.processes();
        processes
            .iter()
            .filter(|(_, line)| line.starts_with("sleep 30"))
            .count()
    };
    eventually("both jobs to run", LIMIT, || {
        (sleeping(&cluster) == 2).then_some(())
    });
    cluster.engines[0].kill();
    eventually("the jobs to be gone", LIMIT, || {
        (sleeping(&cluster) == 0).then_some(())
    });
    for reply in client.replies(2).values() {
        assert_eq!(reply.content["ename"], "EngineError", "{}", reply.content);
    }
}

#[test]
fn a_local_engine_that_dies_is_started_again() {
    let cluster = Cluster::with_engines(2);
    let before = cluster.registered();
    for (pid, line) in cluster.processes() {
        if line.contains("ipengine") && !line.contains("reaper") {
            let _ = rustix::process::kill_process(
                rustix::process::Pid::from_raw(pid).unwrap(),
                Signal::KILL,
            );
        }
    }
    eventually("two new engines", LIMIT * 2, || {
        let now = cluster.registered();
        (now.len() == 2
            && now
                .iter()
                .all(|(_, uuid)| before.iter().all(|(_, old)| old != uuid)))
        .then_some(())
    });
    let client = RawClient::new(&cluster, "task");
    assert_eq!(
        client.reply(&client.command("true", json!({}))).content["code"],
        0
    );
}

#[test]
fn abort_stops_what_runs_within_a_second() {
    // With its store: `results` asks it.
    let cluster = Cluster::builder().args(["-n", "2"]).start();
    cluster.wait_engines(2);
    let submitted = {
        let lines: String = (0..6)
            .map(|number| format!("{}\n", json!({"cmd": format!("sleep 10{number}")})))
            .collect();
        cluster.client_with(&["submit", "-"], &lines, LIMIT).ok()
    };
    let ids: Vec<&str> = submitted.stdout.lines().collect();
    assert_eq!(ids.len(), 6, "{}", submitted.stdout);
    let sleeping = || {
        cluster
            .processes()
            .iter()
            .filter(|(_, line)| line.starts_with("sleep 10"))
            .count()
    };
    eventually("two jobs to run", LIMIT, || (sleeping() == 2).then_some(()));
    let start = Instant::now();
    cluster.client(&["abort", "--all"]).ok();
    eventually("the jobs to be gone", LIMIT, || {
        (sleeping() == 0).then_some(())
    });
    assert!(
        start.elapsed() < Duration::from_secs(3),
        "{:?}",
        start.elapsed()
    );
    let mut wait = vec!["results"];
    wait.extend(&ids);
    let results = eventually("six results", LIMIT, || {
        let lines = cluster.client(&wait).json_lines();
        (lines.len() == 6).then_some(lines)
    });
    assert!(
        results
            .iter()
            .all(|line| line["result"]["status"] == "aborted"),
        "{results:?}"
    );
}

/// What clears its environment, leaves its session and its parent ends with its job, or with its engine; and nothing else does.
#[test]
fn what_a_job_hides_ends_with_it() {
    let mut cluster = Cluster::builder().arg("--nodb").start();
    cluster.start_engines(2);
    cluster.wait_engines(2);
    let name = |number: u32| format!("sleep 300.{}{number}", std::process::id());
    let sleeping = || -> Vec<u32> {
        let lines: Vec<String> = std::fs::read_dir("/proc")
            .unwrap()
            .filter_map(|entry| std::fs::read_to_string(entry.ok()?.path().join("cmdline")).ok())
            .map(|line| line.replace('\0', " ").trim_end().to_owned())
            .collect();
        (1..=4)
            .filter(|number| lines.contains(&name(*number)))
            .collect()
    };
    let client = RawClient::new(&cluster, "task");
    let finished = client.command(&format!("env -i setsid -f {}", name(1)), json!({}));
    assert_eq!(client.reply(&finished).content["code"], 0);
    let stopped = client.command(
        &format!(
            "env -i setsid {} & env -i setsid -f {}; sleep 500",
            name(2),
            name(3)
        ),
        json!({}),
    );
    client.command(
        &format!("env -i setsid -f {}; sleep 500", name(4)),
        json!({}),
    );
    eventually("all to run", LIMIT, || {
        (sleeping() == [1, 2, 3, 4]).then_some(())
    });
    cluster.client(&["abort", &stopped]).ok();
    assert_eq!(client.reply(&stopped).content["status"], "aborted");
    assert_eq!(sleeping(), [1, 4]);
    cluster.engines[0].kill();
    eventually("the others to be gone", LIMIT, || {
        sleeping().is_empty().then_some(())
    });
}

/// A named pipe that nobody opens holds up its job, which can be stopped, and not its engine.
#[test]
fn a_pipe_without_another_end_holds_up_no_engine() {
    let cluster = Cluster::builder().args(["-n", "1", "--nodb"]).start();
    cluster.wait_engines(1);
    let client = RawClient::new(&cluster, "task");
    let ask = |mut content: Value| {
        content["cd"] = json!(cluster.dir());
        let (wire, socket) = (&client.wire, &client.socket);
        let header = wire.send(socket, "command_request", json!({}), content, &[]);
        header["msg_id"].as_str().unwrap().to_owned()
    };
    assert_eq!(
        client.reply(&ask(json!({"cmd": "mkfifo 'a b'"}))).content["code"],
        0
    );
    for key in ["out", "err", "stdin_file"] {
        let limited = ask(json!({"cmd": "true", key: "a b", "limit": {"time": 0.2}}));
        assert_eq!(client.reply(&limited).content["limit"], "time", "{key}");
    }
    let aborted = ask(json!({"cmd": "true", "out": "a b", "err": "a b"}));
    eventually("the job to run", LIMIT, || {
        let processes = cluster.processes();
        processes
            .iter()
            .any(|(_, line)| line.contains("exec >'a b'"))
            .then_some(())
    });
    cluster.client(&["abort", &aborted]).ok();
    assert_eq!(client.reply(&aborted).content["status"], "aborted");
    let read = ask(json!({"cmd": "echo one; echo two >&2", "out": "a b", "err": "a b"}));
    assert_eq!(
        std::fs::read_to_string(cluster.path("a b")).unwrap(),
        "one\ntwo\n"
    );
    assert_eq!(client.reply(&read).content["code"], 0);
}

#[test]
fn a_client_that_vanishes_takes_its_jobs_with_it() {
    let cluster = Cluster::builder().args(["-n", "1", "--nodb"]).start();
    cluster.wait_engines(1);
    let lines: String = (0..3)
        .map(|_| format!("{}\n", json!({"cmd": "sleep 200"})))
        .collect();
    cluster.write("jobs.jsonl", &lines);
    let mut run = cluster.start_client(&["run", "jobs.jsonl"]);
    let sleeping = || {
        cluster
            .processes()
            .iter()
            .filter(|(_, line)| line.starts_with("sleep 200"))
            .count()
    };
    eventually("a job to run", LIMIT, || (sleeping() == 1).then_some(()));
    run.kill();
    // The lease is 15 s by default.
    eventually("the job to be gone", LIMIT * 2, || {
        (sleeping() == 0).then_some(())
    });
    let idle = RawClient::new(&cluster, "task");
    assert_eq!(
        idle.reply(&idle.command("true", json!({}))).content["code"],
        0,
        "the queue is free again"
    );
}

#[test]
fn a_client_that_vanishes_with_its_controller_takes_its_jobs_with_it() {
    let mut cluster = Cluster::builder()
        .args(["--lease", "3", "--ping", "500"])
        .start();
    cluster.start_engines(1);
    cluster.wait_engines(1);
    cluster.write(
        "jobs.jsonl",
        "{\"cmd\": \"touch running; sleep 300\"}\n{\"cmd\": \"touch second\"}\n",
    );
    cluster.write("detached.jsonl", "{\"cmd\": \"touch detached\"}\n");
    let mut run = cluster.start_client(&["run", "jobs.jsonl"]);
    eventually("the job to run", LIMIT, || {
        cluster.path("running").exists().then_some(())
    });
    cluster.client(&["submit", "detached.jsonl"]).ok();
    run.kill();
    cluster.controller().kill();
    cluster.start_controller_with(&["--restore"]);
    eventually("the engine to be free for what is detached", LIMIT, || {
        cluster.path("detached").exists().then_some(())
    });
    let status = cluster.status();
    assert_eq!(status["tasks"]["ready"], 0, "{}", status);
    assert!(!cluster.path("second").exists(), "nobody waits for it");
}

#[test]
fn a_stopped_engine_is_given_up_and_taken_back() {
    let mut cluster = Cluster::builder().args(["--nodb", "--ping", "200"]).start();
    cluster.start_engines(1);
    cluster.start_engines(1);
    cluster.wait_engines(2);
    cluster.engines[0].signal(Signal::STOP);
    cluster.wait_engines(1);
    let client = RawClient::new(&cluster, "task");
    for _ in 0..20 {
        assert_eq!(
            client.reply(&client.command("true", json!({}))).content["code"],
            0
        );
    }
    cluster.engines[0].signal(Signal::CONT);
    cluster.wait_engines(2);
}

/// A file system of 64 MB at `dir`, if one may be mounted here; gone when this is dropped.
struct SmallDisk(std::path::PathBuf);

impl SmallDisk {
    fn at(dir: std::path::PathBuf) -> Option<SmallDisk> {
        std::fs::create_dir_all(&dir).unwrap();
        let mounted = std::process::Command::new("mount")
            .args(["-t", "tmpfs", "-o", "size=64m", "none"])
            .arg(&dir)
            .output()
            .is_ok_and(|output| output.status.success());
        if !mounted {
            eprintln!("skipped: mounting is not allowed here");
        }
        mounted.then_some(SmallDisk(dir))
    }

    /// Leaves not one byte free.
    fn fill(&self) {
        use std::io::Write;
        let mut options = std::fs::OpenOptions::new();
        let options = options.create(true).append(true);
        let mut file = options.open(self.0.join("filler")).unwrap();
        for size in [1 << 20, 4096] {
            while file.write_all(&vec![7; size]).is_ok() {}
        }
    }

    fn clear(&self) {
        std::fs::remove_file(self.0.join("filler")).unwrap();
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = std::process::Command::new("umount")
            .arg("-l")
            .arg(&self.0)
            .status();
    }
}

#[test]
fn a_full_disk_is_told_and_loses_nothing() {
    let mut cluster = Cluster::builder().prepare();
    let Some(disk) = SmallDisk::at(cluster.profile()) else {
        return;
    };
    cluster.start_controller_with(&[]);
    cluster.start_engines(2);
    cluster.wait_engines(2);
    let jobs = |range: std::ops::Range<usize>| -> String {
        // 20 KB of output each, so that the reserve is not for ever.
        range
            .map(|number| {
                let cmd = format!("echo x >> job.{number}; head -c 20000 /dev/zero | tr '\\0' x");
                format!("{}\n", json!({"cmd": cmd, "number": number}))
            })
            .collect()
    };
    cluster.write("first.jsonl", &jobs(0..100));
    cluster.write("second.jsonl", &jobs(100..200));
    let first = cluster
        .client(&["submit", "--capture", "first.jsonl"])
        .ok()
        .stdout;
    assert_eq!(first.lines().count(), 100);
    disk.fill();
    // What waits for room is not acknowledged, and the client waits with it.
    let second = cluster.start_client(&["submit", "--capture", "second.jsonl"]);
    eventually("the waiting client to hear why", LIMIT, || {
        // The controller may have made room meanwhile: what the first jobs gave goes from its journal into its database.
        disk.fill();
        second.stderr().contains("No space left").then_some(())
    });
    let troubles = eventually("the controller to say it", LIMIT, || {
        let status = cluster.status();
        let troubles = status["troubles"].to_string();
        (troubles != "[]").then_some(troubles)
    });
    assert!(troubles.contains("No space left"), "{troubles}");
    assert!(
        cluster.controller().stderr().contains("No space left"),
        "{}",
        cluster.controller().stderr()
    );
    // It may even be killed now.
    cluster.controller().kill();
    disk.clear();
    cluster.start_controller_with(&["--restore"]);
    let second = second.finish(LIMIT * 2).ok().stdout;
    assert_eq!(second.lines().count(), 100, "all are taken in the end");
    let mut results = vec!["results"];
    results.extend(first.lines().chain(second.lines()));
    let lines = eventually("200 results", LIMIT * 2, || {
        let lines = cluster.client(&results).json_lines();
        (lines.len() == 200).then_some(lines)
    });
    for line in lines {
        assert_eq!(line["result"]["status"], "ok", "{line}");
        assert_eq!(cluster.read(&format!("job.{}", line["number"])), "x\n");
    }
    eventually("the trouble to be over", LIMIT, || {
        (cluster.status()["troubles"] == json!([])).then_some(())
    });
}

/// What `ipclient results` says of a task, once it has ended.
fn result_of(cluster: &Cluster, id: &str) -> Value {
    eventually("its result", LIMIT, || {
        let mut lines = cluster.client(&["results", id]).json_lines();
        lines.pop().map(|mut line| line["result"].take())
    })
}

// With a heartbeat every 10 s an engine would be given up after 110 s, longer than these tests wait.

#[test]
fn trouble_that_lasts_is_told_once() {
    let mut cluster = Cluster::builder().arg("--nodb").start();
    cluster.start_engines(1);
    cluster.wait_engines(1);
    let run = cluster.start_client(&["map", "--tags", "nowhere", "echo {}", ":::", "x"]);
    let log = cluster.profile().join("log");
    std::fs::remove_dir_all(&log).unwrap();
    // Its place is noted, in a file there.
    let engine = cluster.engines.remove(0);
    engine.signal(Signal::TERM);
    engine.finish(LIMIT);
    let file = log.join("engines.json");
    let told = || run.stderr().matches(file.to_str().unwrap()).count();
    eventually("the client to hear of it", LIMIT, || {
        (told() > 0).then_some(())
    });
    let troubles = || cluster.status()["troubles"].clone();
    let first = troubles();
    // It is tried again ten times a second.
    for _ in 0..10 {
        assert_eq!(troubles(), first);
    }
    assert!(!first.to_string().contains(".tmp"), "{first}");
    assert_eq!(told(), 1, "{}", run.stderr());
}

#[test]
fn a_retry_that_waits_outlives_the_controller() {
    let mut cluster = Cluster::builder().args(["--ping", "10000"]).start();
    cluster.start_engines(1);
    cluster.wait_engines(1);
    let client = RawClient::new(&cluster, "task");
    let id = client.command(
        "echo x >> runs; sleep 300",
        json!({"retries": 1, "detach": true}),
    );
    let runs = |cluster: &Cluster, count: usize| {
        eventually("the job to run", LIMIT, || {
            let text = std::fs::read_to_string(cluster.path("runs")).unwrap_or_default();
            (text.lines().count() == count).then_some(())
        });
    };
    runs(&cluster, 1);
    cluster.engines[0].kill();
    eventually("the job to wait again", LIMIT, || {
        (cluster.status()["tasks"]["ready"] == 1).then_some(())
    });
    cluster.controller().kill();
    cluster.start_controller_with(&["--restore"]);
    cluster.start_engines(1);
    runs(&cluster, 2);
    // That was its retry, although another controller gave it.
    cluster.engines[1].kill();
    let result = result_of(&cluster, &id);
    assert_eq!(result["status"], "error", "{result}");
    assert!(result["error"].to_string().contains("lost"), "{result}");
    runs(&cluster, 2);
}

#[test]
fn an_engine_may_die_while_there_is_no_controller() {
    let mut cluster = Cluster::builder().args(["--ping", "10000"]).start();
    cluster.start_engines(1);
    cluster.wait_engines(1);
    let client = RawClient::new(&cluster, "task");
    let detach = || json!({"detach": true});
    let running = client.command("touch running; sleep 300", detach());
    eventually("the job to run", LIMIT, || {
        cluster.path("running").exists().then_some(())
    });
    let behind: Vec<String> = (0..5).map(|_| client.command("true", detach())).collect();
    eventually("all of them to be taken in", LIMIT, || {
        let status = cluster.status();
        let tasks = &status["tasks"];
        (tasks["ready"].as_u64().unwrap() + tasks["running"].as_u64().unwrap() == 6).then_some(())
    });
    cluster.controller().kill();
    cluster.engines[0].kill();
    cluster.start_controller_with(&["--restore"]);
    let result = result_of(&cluster, &running);
    assert!(
        result["error"]
            .to_string()
            .contains("the engine process died"),
        "its reaper has told: {result}"
    );
    cluster.start_engines(1);
    for id in &behind {
        assert_eq!(
            result_of(&cluster, id)["status"],
            "ok",
            "it had not started"
        );
    }
}

/// An abort goes by another socket than the task that it means, and may be there first.
#[test]
fn an_abort_may_overtake_its_task() {
    let cluster = Cluster::builder().arg("--nodb").start();
    let (tasks, hub) = (
        RawClient::new(&cluster, "task"),
        RawClient::new(&cluster, "registration"),
    );
    let [single, array] = [(); 2].map(|()| tasks.wire.header("function_request"));
    let id = |header: &Value| header["msg_id"].as_str().unwrap().to_owned();
    let meant = json!([id(&single), format!("{}:1", id(&array))]);
    let ask = json!({"msg_ids": &meant, "kill": true});
    assert_eq!(hub.ask("abort_request", ask).content["unknown"], meant);
    // Three arguments: offsets, then values.
    let offsets = [0u32, 1, 2, 3].map(u32::to_le_bytes).concat();
    for (header, metadata, buffers) in [
        (&single, json!({}), vec![vec![0xc0]]),
        (&array, json!({"array": 3}), vec![offsets, vec![0xc0; 3]]),
    ] {
        let (none, content) = (json!({}), json!({"name": "noop"}));
        let frames = tasks
            .wire
            .frames(header, &none, &metadata, &content, &buffers);
        tasks.socket.send_multipart(frames, 0).expect("send");
    }
    let reply = tasks.reply(&id(&single));
    assert_eq!(reply.content["ename"], "TaskAborted", "{}", reply.content);
    let reply = tasks.reply(&id(&array));
    assert_eq!(reply.metadata["range"], json!([1, 2]), "{}", reply.metadata);
    assert_eq!(reply.content["ename"], "TaskAborted", "{}", reply.content);
    for member in [0, 2] {
        let ask = json!({"msg_id": format!("{}:{member}", id(&array))});
        let told = hub.ask("explain_request", ask).content;
        assert_eq!(told["state"], "waiting", "{told}");
    }
}
