//! Engines that share the connections of their process: each is still an engine of its own to everybody.

use std::{collections::HashSet, fs};

use ipbroker_tests::{Cluster, LIMIT, RawClient, eventually, raw::value};
use rustix::process::Pid;
use serde_json::json;

/// Calls every engine by its uuid; the answer must be its own.
#[track_caller]
fn each_answers_for_itself(cluster: &Cluster, engines: &[(u64, String)]) {
    let client = RawClient::new(cluster, "mux");
    let ids: Vec<String> = engines
        .iter()
        .map(|(id, uuid)| client.call_on(uuid, "echo", &json!(id)))
        .collect();
    let replies = client.replies(engines.len());
    for ((id, uuid), asked) in engines.iter().zip(&ids) {
        let reply = &replies[asked];
        assert_eq!(value(reply), json!(id));
        assert_eq!(reply.metadata["engine"], **uuid);
        assert_eq!(reply.metadata["engine_id"], *id);
    }
}

fn descriptors(pid: Pid) -> usize {
    fs::read_dir(format!("/proc/{}/fd", pid.as_raw_nonzero()))
        .unwrap()
        .count()
}

#[test]
fn a_thousand_engines_need_few_connections() {
    let mut cluster = Cluster::builder().args(["-n", "1000", "--nodb"]).start();
    let engines = cluster.wait_engines(1000);
    let pid = cluster.controller().pid();
    let open = descriptors(pid);
    assert!(open <= 300, "{open} descriptors");
    each_answers_for_itself(&cluster, &engines);
    let client = RawClient::new(&cluster, "task");
    let calls: Vec<_> = (0..5000)
        .map(|number| client.call("echo", &json!(number), json!({})))
        .collect();
    let replies = client.replies(calls.len());
    let worked: HashSet<_> = replies
        .values()
        .map(|reply| reply.metadata["engine"].as_str().unwrap().to_owned())
        .collect();
    for (number, id) in calls.iter().enumerate() {
        assert_eq!(value(&replies[id]), json!(number));
    }
    assert!(worked.len() > 500, "only {} engines worked", worked.len());
    assert!(cluster.controller().running());
}

#[test]
fn an_engine_leaves_and_those_of_its_process_stay() {
    for scheme in ["leastload", "pure"] {
        let mut cluster = Cluster::builder()
            .args(["--nodb", &format!("--scheme={scheme}")])
            .start();
        cluster.start_engines(4);
        let mut engines = cluster.wait_engines(4);
        let (_, leaves) = engines.remove(1);
        let client = RawClient::new(&cluster, "task");
        let calls: Vec<_> = (0..1000)
            .map(|number| client.call("echo", &json!(number), json!({})))
            .collect();
        let control = RawClient::new(&cluster, "control");
        let header = control.wire.header("shutdown_request");
        let none = json!({});
        let mut frames = vec![leaves.into_bytes()];
        frames.extend(control.wire.frames(&header, &none, &none, &none, &[]));
        control.socket.send_multipart(frames, 0).unwrap();
        let replies = client.replies(calls.len());
        for (number, call) in calls.iter().enumerate() {
            assert_eq!(value(&replies[call]), json!(number), "{scheme}");
        }
        eventually("three engines", LIMIT, || {
            (cluster.registered() == engines).then_some(())
        });
        each_answers_for_itself(&cluster, &engines);
    }
}

#[test]
fn a_process_registers_only_engines_of_its_own() {
    let cluster = Cluster::with_engines(1);
    let raw = RawClient::new(&cluster, "registration");
    for (uuid, engines) in [
        ("p", json!([{"uuid": "q_engine_0"}])),
        ("p", json!([{"uuid": "p_engine_0"}, {"uuid": "p"}])),
        ("a_engine_1", json!([])),
    ] {
        let content =
            json!({"uuid": uuid, "engines": engines, "capabilities": ["command"], "protocol": 2});
        let reply = raw.ask("registration_request", content);
        let why = reply.content["evalue"].as_str().unwrap_or_default();
        assert!(why.contains("_engine_NUMBER"), "{:?}", reply.content);
    }
}
