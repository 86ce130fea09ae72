//! Dependencies, through sockets.

use std::time::{Duration, Instant};

use ipbroker_tests::{Cluster, LIMIT, RawClient, eventually, raw::value};
use rand::{RngExt, SeedableRng, rngs::StdRng};
use serde_json::{Value, json};

/// Submits tasks 0.., each after the tasks that `after` names, all at once; returns the time until the last reply.
fn submit_all(
    client: &RawClient,
    count: usize,
    mut after: impl FnMut(usize) -> Vec<usize>,
) -> Duration {
    let start = Instant::now();
    let mut ids: Vec<String> = Vec::with_capacity(count);
    for number in 0..count {
        let after: Vec<&String> = after(number)
            .into_iter()
            .map(|number| &ids[number])
            .collect();
        let metadata = if after.is_empty() {
            json!({})
        } else {
            json!({"after": after})
        };
        ids.push(client.call("noop", &Value::Null, metadata));
    }
    let replies = client.replies(count);
    let took = start.elapsed();
    for id in &ids {
        assert_eq!(
            replies[id].content["status"], "ok",
            "{}",
            replies[id].content
        );
    }
    took
}

#[test]
fn alone_chain_fan_and_random_graph() {
    const TASKS: usize = 20_000;
    let mut cluster = Cluster::builder().arg("--nodb").start();
    cluster.start_engines(2);
    cluster.wait_engines(2);
    let client = RawClient::new(&cluster, "task");
    let report = |name: &str, took: Duration| {
        println!("{name}: {:.0} tasks/s", TASKS as f64 / took.as_secs_f64())
    };
    submit_all(&client, 2_000, |_| Vec::new());
    report("independent", submit_all(&client, TASKS, |_| Vec::new()));
    report(
        "chain",
        submit_all(&client, TASKS, |number| {
            number.checked_sub(1).into_iter().collect()
        }),
    );
    report(
        "fan out and in",
        submit_all(&client, TASKS, |number| match number {
            0 => Vec::new(),
            last if last == TASKS - 1 => (1..last).collect(),
            _ => vec![0],
        }),
    );
    let mut random = StdRng::seed_from_u64(5);
    report(
        "random, three edges a task",
        submit_all(&client, TASKS, |number| {
            let mut edges: Vec<usize> = (0..number.min(3))
                .map(|_| random.random_range(0..number))
                .collect();
            edges.sort_unstable();
            edges.dedup();
            edges
        }),
    );
}

fn two_engines() -> (Cluster, RawClient) {
    let cluster = Cluster::with_engines(2);
    let client = RawClient::new(&cluster, "task");
    (cluster, client)
}

#[test]
fn what_can_never_run_fails_at_once() {
    let (_cluster, client) = two_engines();
    let unknown = client.reply(&client.command("true", json!({"after": ["not-an-id"]})));
    assert_eq!(
        unknown.content["ename"], "InvalidDependency",
        "{}",
        unknown.content
    );
    let bad = client.call("sleep", &json!("no number"), json!({}));
    let after = client.call(
        "noop",
        &Value::Null,
        json!({"after": {"dependencies": [bad], "all": true, "success": true, "failure": false}}),
    );
    let on_failure = client.call(
        "echo",
        &json!("ran"),
        json!({"after": {"dependencies": [bad], "all": true, "success": false, "failure": true}}),
    );
    let mut seen = 0;
    while seen < 3 {
        let reply = client.wire.receive(&client.socket, 30_000).unwrap();
        match reply.parent_id() {
            id if id == bad => assert_eq!(reply.content["status"], "error"),
            id if id == after => assert_eq!(
                reply.content["ename"], "ImpossibleDependency",
                "{}",
                reply.content
            ),
            id if id == on_failure => assert_eq!(value(&reply), "ran"),
            _ => continue,
        }
        seen += 1;
    }
}

#[test]
fn follow_goes_where_the_other_ran() {
    let (_cluster, client) = two_engines();
    let firsts: Vec<String> = (0..40)
        .map(|_| client.call("noop", &Value::Null, json!({})))
        .collect();
    let seconds: Vec<String> = firsts
        .iter()
        .map(|first| client.call("noop", &Value::Null, json!({"follow": [first]})))
        .collect();
    let replies = client.replies(80);
    for (first, second) in firsts.iter().zip(&seconds) {
        assert_eq!(
            replies[first].metadata["engine"],
            replies[second].metadata["engine"]
        );
    }
}

#[test]
fn a_timeout_runs_while_the_task_waits() {
    let (_cluster, client) = two_engines();
    let first = client.call("sleep", &json!(30), json!({}));
    let waits = client.call(
        "noop",
        &Value::Null,
        json!({"after": [first], "timeout": 0.5}),
    );
    let start = Instant::now();
    let reply = client.reply(&waits);
    assert_eq!(reply.content["ename"], "TaskTimeout", "{}", reply.content);
    assert!(start.elapsed() < Duration::from_secs(10));
}

#[test]
fn a_graph_in_a_file() {
    let cluster = Cluster::with_engines(2);
    let jobs = [
        json!({"id": "c", "after": ["a", "b"], "cmd": "cat a b > c"}),
        json!({"id": "a", "cmd": "sleep 0.2; echo a > a"}),
        json!({"id": "b", "cmd": "echo b > b"}),
        json!({"id": "bad", "cmd": "exit 4"}),
        json!({"id": "never", "after": ["bad"], "cmd": "touch never"}),
        json!({"id": "cleanup", "after": ["bad"], "on": "failure", "cmd": "touch cleanup"}),
    ];
    cluster.write(
        "graph.jsonl",
        &jobs
            .iter()
            .map(|job| format!("{job}\n"))
            .collect::<String>(),
    );
    let run = cluster.client(&["run", "graph.jsonl"]);
    assert_ne!(run.code(), 0);
    let lines = run.json_lines();
    assert_eq!(lines.len(), 6, "{}", run.stdout);
    assert_eq!(cluster.read("c"), "a\nb\n");
    assert!(cluster.path("cleanup").exists() && !cluster.path("never").exists());
    let never = lines.iter().find(|line| line["id"] == "never").unwrap();
    assert!(
        never["result"]["error"]
            .as_str()
            .unwrap()
            .contains("ImpossibleDependency"),
        "{never}"
    );
    let dot = cluster.client(&["graph", "graph.jsonl"]).ok();
    assert!(
        dot.stdout.contains("digraph") && dot.stdout.contains("->"),
        "{}",
        dot.stdout
    );
}

#[test]
fn cycles_and_unknown_ids_are_refused_with_their_lines() {
    let cluster = Cluster::with_engines(1);
    for (jobs, word) in [
        (
            [
                "{\"id\": \"a\", \"after\": [\"b\"], \"cmd\": \"touch ran\"}",
                "{\"id\": \"b\", \"after\": [\"a\"], \"cmd\": \"touch ran\"}",
            ],
            "cycle",
        ),
        (
            [
                "{\"id\": \"a\", \"cmd\": \"touch ran\"}",
                "{\"id\": \"b\", \"after\": [\"nobody\"], \"cmd\": \"touch ran\"}",
            ],
            "nobody",
        ),
    ] {
        cluster.write("graph.jsonl", &jobs.join("\n"));
        let run = cluster.client_with(&["run", "graph.jsonl"], "", LIMIT);
        assert_ne!(run.code(), 0);
        assert!(
            run.stderr.contains(word) && run.stderr.contains("graph.jsonl:"),
            "{}",
            run.stderr
        );
        assert!(!cluster.path("ran").exists());
    }
}

#[test]
fn explain_says_how_a_task_ended() {
    let cluster = Cluster::builder().args(["-n", "1"]).start();
    cluster.wait_engines(1);
    let jobs = [
        json!({"cmd": "echo first >&2; echo oh no >&2; exit 3", "retries": 1}),
        json!({"cmd": "kill -9 $$"}),
        json!({"cmd": "cat", "cd": "/no/such/directory", "priority": 1}),
        json!({"cmd": "true", "priority": 2}),
        json!({"cmd": "exit 4", "id": "bad", "timeout": 60}),
        json!({"cmd": "true", "after": ["bad"]}),
    ];
    let jobs: String = jobs.iter().map(|job| format!("{job}\n")).collect();
    cluster.write("jobs.jsonl", &jobs);
    let ids = cluster.client(&["submit", "--capture", "jobs.jsonl"]);
    let ids = ids.ok().stdout;
    cluster.client(&["wait"]);
    let told = |id| cluster.client(&["explain", id]).ok().stdout;
    for (id, words) in ids.lines().zip([
        &[
            "It failed on engine 0 (",
            ", given out 2 times, after ",
            ": exit code 3; the last line of its stderr is: oh no\n",
        ][..],
        &["It failed on engine 0 (", "exit code 137 (signal 9)"],
        &["It failed on engine 0 (", "/no/such/directory"],
        &["It ended well on engine 0 ("],
        &["It failed on engine 0 (", "exit code 4"],
        &["It failed: ImpossibleDependency: "],
    ]) {
        let told = told(id);
        let all = words.iter().all(|words| told.contains(words));
        assert!(all && told.lines().count() == 1, "{words:?}: {told}");
    }
}

/// The history is written behind the scheduler, and what is said of an end comes from it: also at the very moment.
#[test]
fn explain_knows_an_end_at_once() {
    let cluster = Cluster::builder().start();
    let wire = cluster.wire();
    let context = zmq::Context::new();
    let tasks = wire.connect(&context, zmq::DEALER, None, "task");
    let hub = wire.connect(&context, zmq::DEALER, None, "registration");
    for round in 0..50 {
        let never = json!({"hosts": ["nowhere.example"]});
        let sent = wire.send(
            &tasks,
            "command_request",
            never,
            json!({"cmd": "true"}),
            &[],
        );
        let id = &sent["msg_id"];
        eventually("it to be known", LIMIT, || {
            let ask = json!({"msg_id": id});
            wire.send(&hub, "explain_request", json!({}), ask, &[]);
            let told = wire.receive(&hub, 10_000).expect("a reply");
            (told.content["state"] == "waiting").then_some(())
        });
        // In one go: the scheduler reads both before it writes what the first has done.
        let end = json!({"msg_ids": [id], "kill": false});
        wire.send(&hub, "abort_request", json!({}), end, &[]);
        wire.send(
            &hub,
            "explain_request",
            json!({}),
            json!({"msg_id": id}),
            &[],
        );
        let replies = [(); 2].map(|()| wire.receive(&hub, 10_000).expect("a reply").content);
        let told = replies.iter().find(|reply| reply["text"].is_string());
        let text = told.expect("an explanation")["text"].as_str().unwrap();
        assert!(
            text.starts_with("It was aborted: TaskAborted"),
            "{round}: {text}"
        );
    }
}

#[test]
fn explain_says_why_a_task_waits() {
    let cluster = Cluster::with_engines(1);
    let submitted = cluster
        .client_with(
            &["submit", "-"],
            "{\"cmd\": \"true\", \"host\": [\"nowhere.example\"]}\n",
            LIMIT,
        )
        .ok();
    let id = submitted.stdout.trim();
    let explained = cluster.client(&["explain", id]).ok();
    assert!(
        explained.stdout.contains("nowhere.example"),
        "{}",
        explained.stdout
    );
    cluster.client(&["abort", id]).ok();
}
