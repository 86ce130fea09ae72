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

#[test]
#[ignore = "fails about every other time: tasks in flight to a leaving engine are lost without a word (known limit of pure)"]
fn pure_engines_come_and_go() {
    let mut cluster = Cluster::builder().args(["--nodb", "--scheme=pure"]).start();
    cluster.start_engines(1);
    cluster.wait_engines(1);
    let client = RawClient::new(&cluster, "task");
    let first: Vec<String> = (0..200)
        .map(|_| client.call("sleep", &json!(0.01), json!({})))
        .collect();
    cluster.start_engines(1);
    cluster.wait_engines(2);
    // A clean leave loses nothing: what it has not started goes back.
    let leaving = cluster.engines.remove(0);
    leaving.signal(rustix::process::Signal::TERM);
    leaving.finish(ipbroker_tests::LIMIT);
    let replies = client.replies(first.len());
    let lost: Vec<_> = replies
        .values()
        .filter(|reply| reply.content["status"] != "ok")
        .map(|reply| &reply.content)
        .collect();
    assert!(lost.len() <= 1, "only what it was doing: {lost:?}");
    assert_eq!(
        value(&client.reply(&client.call("echo", &json!("still here"), json!({})))),
        "still here"
    );
}
