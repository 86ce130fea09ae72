//! Each scheme and the pure path: two clients at once, every result once, to the right one.

use std::{collections::HashMap, thread};

use ipbroker_tests::{Cluster, RawClient, raw::value};
use serde_json::json;

const CALLS: usize = 10_000;

/// Four engines in two processes, 20,000 calls from two clients at once.
fn two_clients(scheme: &str) {
    let mut cluster = Cluster::builder()
        .args(["--nodb", &format!("--scheme={scheme}")])
        .start();
    cluster.start_engines(2);
    cluster.start_engines(2);
    cluster.wait_engines(4);
    let used = thread::scope(|scope| {
        let clients: Vec<_> = ["left", "right"]
            .into_iter()
            .map(|side| {
                let client = RawClient::new(&cluster, "task");
                scope.spawn(move || {
                    let mut asked = HashMap::new();
                    for number in 0..CALLS {
                        let argument = json!([side, number]);
                        asked.insert(client.call("echo", &argument, json!({})), argument);
                    }
                    let mut engines = HashMap::new();
                    for (id, reply) in client.replies(CALLS) {
                        assert_eq!(value(&reply), asked[&id]);
                        let engine = reply.metadata["engine"]
                            .as_str()
                            .expect("the engine's uuid")
                            .to_owned();
                        *engines.entry(engine).or_insert(0) += 1;
                    }
                    engines
                })
            })
            .collect();
        let mut used: HashMap<String, usize> = HashMap::new();
        for client in clients {
            for (engine, count) in client.join().expect("a client") {
                *used.entry(engine).or_insert(0) += count;
            }
        }
        used
    });
    assert_eq!(used.values().sum::<usize>(), 2 * CALLS);
    assert_eq!(used.len(), 4, "every engine had a share: {used:?}");
}

#[test]
fn leastload() {
    two_clients("leastload");
}

#[test]
fn lru() {
    two_clients("lru");
}

#[test]
fn plainrandom() {
    two_clients("plainrandom");
}

#[test]
fn twobin() {
    two_clients("twobin");
}

#[test]
fn weighted() {
    two_clients("weighted");
}

#[test]
fn pure() {
    two_clients("pure");
}

#[test]
fn pure_refuses_what_it_cannot_do() {
    let mut cluster = Cluster::builder().args(["--nodb", "--scheme=pure"]).start();
    cluster.start_engines(1);
    let engines = cluster.wait_engines(1);
    let client = RawClient::new(&cluster, "task");
    let empty = json!({"targets": [], "after": [], "follow": [], "timeout": null, "retries": 0});
    assert_eq!(
        value(&client.reply(&client.call("echo", &json!(1), empty))),
        1
    );
    for metadata in [
        json!({"after": ["x"]}),
        json!({"follow": ["x"]}),
        json!({"targets": [engines[0].1]}),
        json!({"retries": 3}),
    ] {
        let reply = client.reply(&client.call("echo", &json!(1), metadata.clone()));
        assert_eq!(reply.content["status"], "error", "{metadata}");
        assert!(
            reply.content["evalue"]
                .as_str()
                .unwrap_or_default()
                .contains("pure"),
            "{metadata}: {}",
            reply.content
        );
    }
}

/// Engines come and go in good order while tasks run: only what one was doing when it was told to go is lost, and its
/// client is told.
fn engines_come_and_go(scheme: &str) {
    let mut cluster = Cluster::builder()
        .args(["--nodb", &format!("--scheme={scheme}")])
        .start();
    cluster.start_engines(1);
    cluster.wait_engines(1);
    let client = RawClient::new(&cluster, "task");
    let first: Vec<String> = (0..200)
        .map(|_| client.call("sleep", &json!(0.01), json!({})))
        .collect();
    let mut replies = HashMap::new();
    let leaves = 3;
    for round in 0..leaves {
        cluster.start_engines(1);
        cluster.wait_engines(2);
        // Some are answered, some wait on the engine that leaves, some are on their way.
        let more: Vec<String> = (0..200)
            .map(|_| client.call("sleep", &json!(0.01), json!({})))
            .collect();
        replies.extend(client.replies(50));
        let leaving = cluster.engines.remove(0);
        leaving.signal(rustix::process::Signal::TERM);
        for _ in 0..50 {
            client.call("noop", &json!(round), json!({}));
        }
        leaving.finish(ipbroker_tests::LIMIT).ok();
        assert_eq!(more.len(), 200);
    }
    let all = first.len() + leaves * 250;
    replies.extend(client.replies(all - replies.len()));
    assert_eq!(replies.len(), all, "each once");
    let lost: Vec<_> = replies
        .values()
        .filter(|reply| reply.content["status"] != "ok")
        .map(|reply| &reply.content)
        .collect();
    assert!(
        lost.len() <= leaves,
        "only what they were doing: {} {:?}",
        lost.len(),
        lost.first()
    );
    assert_eq!(
        value(&client.reply(&client.call("echo", &json!("still here"), json!({})))),
        "still here"
    );
}

#[test]
fn pure_engines_come_and_go() {
    engines_come_and_go("pure");
}

#[test]
fn leastload_engines_come_and_go() {
    engines_come_and_go("leastload");
}

#[test]
fn twobin_engines_come_and_go() {
    engines_come_and_go("twobin");
}

/// The members of an array that an engine had not begun go to another one.
fn an_array_outlives_its_engine(scheme: &str) {
    const MEMBERS: u64 = 400;
    let mut cluster = Cluster::builder()
        .args(["--nodb", &format!("--scheme={scheme}")])
        .start();
    cluster.start_engines(1);
    cluster.start_engines(1);
    cluster.wait_engines(2);
    let client = RawClient::new(&cluster, "task");
    let quick = client.array("echo", &vec![json!("x"); MEMBERS as usize]);
    let slow = client.array("sleep", &vec![json!(0.01); MEMBERS as usize]);
    let mut answered = HashMap::from([(quick, 0), (slow.clone(), 0)]);
    let mut failed = 0;
    let mut leaving = Some(cluster.engines.remove(0));
    while answered.values().any(|members| *members < MEMBERS) {
        let reply = client.wire.receive(&client.socket, 60_000).unwrap();
        if reply.msg_type() == "submit_ack" {
            continue;
        }
        let (Some(lo), Some(hi)) = (
            reply.metadata["range"][0].as_u64(),
            reply.metadata["range"][1].as_u64(),
        ) else {
            panic!("{} {}", reply.metadata, reply.content);
        };
        failed += match reply.metadata["failed"].as_array() {
            Some(failed) => failed.len() as u64,
            None if reply.content["status"] == "ok" => 0,
            None => hi - lo,
        };
        *answered.get_mut(reply.parent_id()).expect("ours") += hi - lo;
        if reply.parent_id() == slow
            && let Some(leaving) = leaving.take()
        {
            leaving.signal(rustix::process::Signal::TERM);
            leaving.finish(ipbroker_tests::LIMIT).ok();
        }
    }
    assert!(answered.values().all(|members| *members == MEMBERS));
    assert!(failed <= 1, "only the member at work: {failed}");
}

#[test]
fn pure_array_outlives_its_engine() {
    an_array_outlives_its_engine("pure");
}

#[test]
fn leastload_array_outlives_its_engine() {
    an_array_outlives_its_engine("leastload");
}

/// What an engine had announced when it was killed is told to its clients; nothing is answered twice.
#[test]
fn pure_tells_what_a_crash_costs() {
    const TASKS: u64 = 60;
    let mut cluster = Cluster::builder().args(["--nodb", "--scheme=pure"]).start();
    cluster.start_engines(1);
    let engines = cluster.wait_engines(1);
    let client = RawClient::new(&cluster, "task");
    for _ in 0..TASKS {
        client.call("sleep", &json!(0.05), json!({}));
    }
    let mut replies = client.replies(3);
    let hub = RawClient::new(&cluster, "registration");
    let id = engines[0].0.to_string();
    let status = || hub.ask("queue_request", json!({})).content[&id].clone();
    ipbroker_tests::eventually("all tasks to be announced", ipbroker_tests::LIMIT, || {
        let status = status();
        let count = |key: &str| status[key].as_u64().unwrap_or_default();
        (count("tasks") + count("completed") == TASKS).then_some(())
    });
    let mut engine = cluster.engines.remove(0);
    engine.kill();
    cluster.start_engines(1);
    replies.extend(client.replies(TASKS as usize - replies.len()));
    assert_eq!(replies.len() as u64, TASKS);
    let lost = replies
        .values()
        .filter(|reply| reply.content["ename"] == "EngineError")
        .count();
    let done = replies
        .values()
        .filter(|reply| reply.content["status"] == "ok")
        .count();
    assert_eq!((lost + done) as u64, TASKS);
    assert!(lost > 0, "it was killed long before the end");
    // An announcement that stays without an answer would be counted for ever.
    let after = RawClient::new(&cluster, "task");
    for round in 0..3000 {
        after.call("noop", &json!(round), json!({}));
    }
    after.replies(3000);
    let totals = hub.ask("status_request", json!({})).content;
    assert_eq!(totals["tasks"]["running"], 0, "{totals}");
}
