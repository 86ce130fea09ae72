//! What those who hold no key can take of a controller: memory and descriptors, during and after.

use std::{thread, time::Duration};

use ipbroker_tests::{Cluster, LIMIT, RawClient, Stranger, eventually, raw::value, wire::Wire};
use rustix::process::{Pid, Resource, Rlimit, getrlimit, setrlimit};
use serde_json::json;

/// What the strangers may add at most, and what may be left of it, in MB.
const MOST: u64 = 256;
const LEFT: u64 = 64;

/// Memory of a process in MB: `VmRSS` or, since the last [`forget_peak`], `VmHWM`.
fn memory(pid: Pid, what: &str) -> u64 {
    let text = std::fs::read_to_string(format!("/proc/{}/status", pid.as_raw_nonzero())).unwrap();
    let line = text.lines().find(|line| line.starts_with(what)).unwrap();
    let kilobytes: u64 = line.split_whitespace().nth(1).unwrap().parse().unwrap();
    kilobytes / 1024
}

fn forget_peak(pid: Pid) {
    std::fs::write(format!("/proc/{}/clear_refs", pid.as_raw_nonzero()), "5").unwrap();
}

/// Bytes that the system takes for a connection whose reader is slow.
fn buffered() -> u64 {
    ["rmem", "wmem"]
        .map(|side| {
            let sizes = std::fs::read_to_string(format!("/proc/sys/net/ipv4/tcp_{side}")).unwrap();
            let most = sizes.split_whitespace().last().unwrap();
            most.parse::<u64>().unwrap()
        })
        .iter()
        .sum()
}

/// Every channel: its name, its endpoint, and what a peer of it is.
fn channels(cluster: &Cluster) -> Vec<(String, String, &'static str)> {
    let mut all = Vec::new();
    for side in ["client", "engine"] {
        let wire = Wire::load(&cluster.connection_file(side)).unwrap();
        for (channel, endpoint) in wire.endpoints() {
            let kind = match (channel.as_str(), side) {
                ("iopub", "engine") => "PUB",
                ("iopub" | "notification" | "hb_ping", _) => "SUB",
                _ => "DEALER",
            };
            all.push((format!("{side} {channel}"), endpoint, kind));
        }
    }
    assert!(all.len() > 12, "{all:?}");
    all
}

/// What strangers do to all channels with `attack`, one after the other and then at once, costs no more than it may, and is given back.
fn costs_little(cluster: &mut Cluster, attack: impl Fn(&str, &str, &'static str) + Sync) {
    let (before, peak) = is_given_back(cluster, attack);
    assert!(peak < before + MOST, "{before} MB have become {peak} MB");
}

/// What strangers do to all channels harms nobody, and what it costs is given back. Returns the memory before, and the most.
fn is_given_back(
    cluster: &mut Cluster,
    attack: impl Fn(&str, &str, &'static str) + Sync,
) -> (u64, u64) {
    let pid = cluster.controller().pid();
    let channels = channels(cluster);
    let before = memory(pid, "VmRSS");
    forget_peak(pid);
    let mut said = Vec::new();
    for (name, endpoint, kind) in &channels {
        attack(name, endpoint, kind);
        said.push(format!("{name} {}", memory(pid, "VmHWM")));
    }
    thread::scope(|scope| {
        for (name, endpoint, kind) in &channels {
            scope.spawn(|| attack(name, endpoint, kind));
        }
    });
    let peak = memory(pid, "VmHWM");
    // Nothing has happened to those who were there.
    let client = RawClient::new(cluster, "task");
    assert_eq!(
        value(&client.reply(&client.call("echo", &json!(1), json!({})))),
        json!(1)
    );
    let mut after = 0;
    println!("resident memory {before} MB; peaks {said:?}, all at once {peak} MB");
    eventually(
        "the memory to be given back",
        Duration::from_secs(10),
        || {
            after = memory(pid, "VmRSS");
            (after < before + LEFT).then_some(())
        },
    );
    println!("given back: {after} MB");
    (before, peak)
}

fn cluster() -> Cluster {
    let cluster = Cluster::builder()
        .args(["-n", "1", "--nodb", "--max-message=64M"])
        .start();
    cluster.wait_engines(1);
    cluster
}

#[test]
fn a_frame_of_a_gibibyte() {
    costs_little(&mut cluster(), |name, endpoint, kind| {
        let sent = Stranger::connect(endpoint, kind).unwrap().frame(1 << 30);
        assert!(
            sent < (4 << 20) + buffered(),
            "{name} took {sent} bytes of it"
        );
    });
}

#[test]
fn a_frame_that_almost_ends() {
    costs_little(&mut cluster(), |_, endpoint, kind| {
        let _ = Stranger::connect(endpoint, kind).unwrap().frame(63 << 20);
    });
}

#[test]
fn a_message_that_never_ends() {
    for size in [1, 40, 1 << 20] {
        costs_little(&mut cluster(), |name, endpoint, kind| {
            let sent = Stranger::connect(endpoint, kind)
                .unwrap()
                .frames(size, 1 << 30);
            // An eighth more than a message may have is for the frames themselves (protocol/libzmq.patch).
            assert!(
                sent < (76 << 20) + buffered(),
                "{name} took {sent} bytes in frames of {size}"
            );
        });
    }
}

/// Whole messages wait until they are refused: how many large ones do, on a busy machine, is the system's to say.
#[test]
fn messages_without_end() {
    for (size, most) in [(63 << 20, 200 << 20), (40, 8 << 20)] {
        is_given_back(&mut cluster(), |_, endpoint, kind| {
            Stranger::connect(endpoint, kind)
                .unwrap()
                .messages(size, most);
        });
    }
}

#[test]
fn three_thousand_that_say_hello() {
    let limit = getrlimit(Resource::Nofile);
    setrlimit(
        Resource::Nofile,
        Rlimit {
            current: limit.maximum,
            ..limit
        },
    )
    .unwrap();
    let mut cluster = cluster();
    let pid = cluster.controller().pid();
    let before = memory(pid, "VmRSS");
    forget_peak(pid);
    for (name, endpoint, kind) in channels(&cluster) {
        let mut strangers: Vec<_> = (0..3000)
            .map(|_| Stranger::connect(&endpoint, kind).unwrap())
            .collect();
        for stranger in &mut strangers {
            stranger.say(b"hello").unwrap();
        }
        println!("{name}: {} MB", memory(pid, "VmRSS"));
    }
    let peak = memory(pid, "VmHWM");
    let mut after = 0;
    eventually(
        "the memory to be given back",
        Duration::from_secs(10),
        || {
            after = memory(pid, "VmRSS");
            (after < before + LEFT).then_some(())
        },
    );
    println!("resident memory {before} MB, peak {peak} MB, after {after} MB");
    assert!(peak < before + MOST, "{before} MB have become {peak} MB");
}

#[test]
fn a_name_that_is_taken_over_leaves_nothing() {
    let mut cluster = cluster();
    let pid = cluster.controller().pid().as_raw_nonzero();
    let open = || {
        std::fs::read_dir(format!("/proc/{pid}/fd"))
            .unwrap()
            .count()
    };
    let wire = cluster.wire();
    let context = zmq::Context::new();
    let idle = open();
    let thieves: Vec<_> = (0..100)
        .map(|_| {
            let thief = wire.connect(&context, zmq::DEALER, Some(b"somebody"), "task");
            thief.set_reconnect_ivl(-1).unwrap();
            thief.send("hello", 0).unwrap();
            thief
        })
        .collect();
    eventually(
        "the connections of those who have lost the name to end",
        LIMIT,
        || (open() < idle + 10).then_some(()),
    );
    drop(thieves);
}
