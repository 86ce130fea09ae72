//! A host whose network goes away and comes back, while it works (network namespaces: see `tests/hosts/lab`).

use std::{collections::BTreeMap, time::Instant};

use ipbroker_tests::{LIMIT, Lab, eventually};
use rustix::process::Signal;

const JOBS: usize = 160;

/// Jobs that append a line to a file of their own on two hosts, one of which is cut off until `heal_when` says so. What
/// became of them: starts and status of each.
fn cut(ping: &str, heal_when: impl Fn(&Lab, Instant) -> bool) -> Option<Vec<(usize, String)>> {
    let lab = Lab::up(&["a", "b"])?;
    let controller = lab.controller(&["--hosts", "a:2,b:2", "--ping", ping]);
    lab.wait_for_engines(4);
    let jobs: String = (0..JOBS)
        .map(|n| {
            format!(
                "{{\"n\": {n}, \"cmd\": \"echo {n} >> /tmp/starts; sleep 0.25\", \"cd\": \"/tmp\"}}\n"
            )
        })
        .collect();
    let running = lab.spawn_with("ipclient", &["run"], &jobs);
    eventually("the first results", LIMIT, || {
        running.stdout().lines().count().ge(&8).then_some(())
    });
    let begun = Instant::now();
    lab.verb("cut", &["b"]);
    eventually("the time to mend the network", 4 * LIMIT, || {
        heal_when(&lab, begun).then_some(())
    });
    lab.verb("heal", &["b"]);
    let done = running.finish(6 * LIMIT);
    let lines = done.json_lines();
    assert_eq!(lines.len(), JOBS, "one result for each: {}", done.stderr);
    assert_eq!(lab.wait_for_engines(4).len(), 4);
    let mut starts: BTreeMap<usize, usize> = BTreeMap::new();
    for host in ["a", "b"] {
        for line in lab.on(host, "cat /tmp/starts").lines() {
            *starts.entry(line.parse().expect("a number")).or_default() += 1;
        }
    }
    let outcomes = lines
        .iter()
        .map(|line| {
            let n = usize::try_from(line["n"].as_u64().expect("a number")).expect("small");
            let result = &line["result"];
            let status = match result["status"].as_str() {
                Some("ok") => "ok".to_owned(),
                _ => result["error"].to_string(),
            };
            (starts.get(&n).copied().unwrap_or(0), status)
        })
        .collect();
    controller.signal(Signal::INT);
    let ended = controller.finish(LIMIT);
    assert_eq!(ended.code(), 0, "{}", ended.stderr);
    lab.wait_for_nothing(&["a", "b"]);
    Some(outcomes)
}

#[test]
fn a_short_partition_loses_nothing() {
    // The limit is 11 pings: 22 s.
    let Some(outcomes) = cut("2000", |_, begun| begun.elapsed().as_secs_f64() > 4.0) else {
        return;
    };
    for (starts, status) in outcomes {
        assert_eq!((starts, status.as_str()), (1, "ok"));
    }
}

#[test]
fn a_long_partition_is_told_and_runs_nothing_twice() {
    // The limit is 11 pings: 2.2 s.
    let Some(outcomes) = cut("200", |lab, _| lab.engines().len() == 2) else {
        return;
    };
    let mut lost = 0;
    for (starts, status) in outcomes {
        assert!(starts <= 1, "run {starts} times: {status}");
        if status == "ok" {
            assert_eq!(starts, 1);
        } else {
            assert!(status.contains("lost while it ran the task"), "{status}");
            lost += 1;
        }
    }
    assert!(lost > 0, "what the lost host had is reported lost");
}
