//! What batch systems have in common.

use std::{fs, net::TcpListener};

use rustix::process::Signal;

use crate::{Cluster, LIMIT, eventually};

/// A port that nobody listens at now.
pub fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0")
        .and_then(|l| l.local_addr())
        .expect("a port")
        .port()
}

/// `ipctl --engines SYSTEM --min 1 --max 4 --idle 2s` with more work than that, and then without; `jobs` counts those in the system's queue.
#[track_caller]
pub fn grows_and_shrinks(system: &str, env: &[(&str, String)], jobs: impl Fn() -> usize) {
    let builder = env
        .iter()
        .fold(Cluster::builder(), |builder, (name, value)| {
            builder.env(name, value)
        });
    let mut cluster = builder
        .args([
            "--engines",
            system,
            "--min",
            "1",
            "--max",
            "4",
            "--idle",
            "2s",
        ])
        .start();
    cluster.wait_engines(1);
    // Each job is there until all four have been seen at once.
    let gather = format!(
        "touch {0}/$IPBROKER_ENGINE_ID; until [ -e {0}/all ]; do sleep 0.1; done",
        cluster.dir().join("seen").display()
    );
    let seen = cluster.dir().join("seen");
    fs::create_dir(&seen).expect("a directory");
    let input: String = (0..12)
        .map(|_| format!("{}\n", serde_json::json!({"cmd": gather})))
        .collect();
    let ids = cluster.client_with(&["submit"], &input, LIMIT).ok().stdout;
    let count = || cluster.status()["engines"].as_u64().expect("a number");
    eventually("four engines", 2 * LIMIT, || {
        let there = count();
        assert!(there <= 4, "{there} engines");
        (there == 4).then_some(())
    });
    let status = cluster.status();
    assert_eq!(status["batch"]["max"], 4, "{status}");
    let engines = |job: &serde_json::Value| job["engines"].as_u64();
    let told = status["batch"]["jobs"].as_array().expect("jobs");
    assert_eq!(told.iter().filter_map(engines).sum::<u64>(), 4, "{status}");
    // What waits is told what was asked for.
    let last = ids.lines().last().expect("an id");
    let why = cluster.client(&["explain", last]).ok().stdout;
    assert!(why.contains(&format!("Jobs of {system}: ")), "{why}");
    fs::write(seen.join("all"), "").expect("a file");
    let mut wait = vec!["wait"];
    wait.extend(ids.lines());
    cluster.client_with(&wait, "", 2 * LIMIT).ok();
    eventually("one engine, and one job", 2 * LIMIT, || {
        (count() == 1 && jobs() == 1).then_some(())
    });
    let controller = cluster.controller.take().expect("a controller");
    controller.signal(Signal::INT);
    controller.finish(2 * LIMIT).ok();
    eventually("an empty queue", LIMIT, || (jobs() == 0).then_some(()));
}
