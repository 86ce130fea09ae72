//! Random frames on every socket of a controller that works meanwhile, and those who do not hold the key.
//!
//! The long form: `IPBROKER_HOSTILE_SECONDS=3600 cargo nextest run -P long --workspace --no-capture junk_on_every_socket`.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use ipbroker_tests::{
    Cluster, LIMIT, RawClient, eventually,
    raw::value,
    wire::{DELIMITER, Signer, Wire},
};
use rand::{RngExt, SeedableRng, rngs::StdRng};
use serde_json::json;

#[test]
fn a_request_that_is_wrong_is_told_what_is_wrong() {
    let cluster = Cluster::with_engines(1);
    let client = RawClient::new(&cluster, "task");
    let ask = |metadata, content, buffers: &[Vec<u8>]| {
        let header = client.wire.send(
            &client.socket,
            "command_request",
            metadata,
            content,
            buffers,
        );
        client.reply(header["msg_id"].as_str().unwrap()).content
    };
    let offsets = [1u32, 1].map(u32::to_le_bytes).concat();
    for (answer, says) in [
        (ask(json!({}), json!({}), &[]), "`cmd`"),
        (
            ask(json!({"timeout": "x"}), json!({"cmd": "true"}), &[]),
            "`timeout`",
        ),
        (
            ask(json!({}), json!({"cmd": "true", "capture": "x"}), &[]),
            "`capture`",
        ),
        (
            ask(
                json!({"array": 1}),
                json!({"cmd": "true"}),
                &[offsets, vec![0x80]],
            ),
            "begin with 0",
        ),
    ] {
        assert_eq!(answer["ename"], "ValueError", "{answer}");
        assert!(
            answer["evalue"].as_str().unwrap().contains(says),
            "{answer}"
        );
    }
}

/// Who did not ask for acknowledgements gets none, whatever it sends twice.
#[test]
fn what_is_sent_twice_is_answered_in_kind() {
    let cluster = Cluster::with_engines(1);
    let client = RawClient::new(&cluster, "task");
    for ack in [false, true] {
        let header = client.wire.header("command_request");
        let frames = client.wire.frames(
            &header,
            &json!({}),
            &json!({"ack": ack}),
            &json!({"cmd": "true"}),
            &[],
        );
        for _ in 0..2 {
            client.socket.send_multipart(&frames, 0).unwrap();
        }
        let last = client.command("true", json!({}));
        let mut acks = 0;
        loop {
            let message = client.wire.receive(&client.socket, 30_000).unwrap();
            acks += usize::from(message.msg_type() == "submit_ack");
            if message.parent_id() == last {
                break;
            }
        }
        assert_eq!(acks > 0, ack);
    }
}

/// Zero to twenty frames: noise, pieces of messages, whole messages that somebody bent.
fn junk(random: &mut StdRng, sample: &[Vec<u8>], engines: &[(u64, String)]) -> Vec<Vec<u8>> {
    let count = random.random_range(0..=20usize);
    let mut frames: Vec<Vec<u8>> = (0..count)
        .map(|_| match random.random_range(0..8) {
            0 => Vec::new(),
            1 => DELIMITER.to_vec(),
            2 => engines[random.random_range(0..engines.len())]
                .1
                .as_bytes()
                .to_vec(),
            3 => sample[random.random_range(0..sample.len())].clone(),
            4 => vec![0xdf, 0xff, 0xff, 0xff, 0xff],
            5 => vec![0x81; random.random_range(0..100_000)],
            6 => vec![0x91; 10_000],
            _ => (0..random.random_range(0..300))
                .map(|_| random.random())
                .collect(),
        })
        .collect();
    if random.random_range(0..3) == 0 {
        frames = sample.to_vec();
        let at = random.random_range(0..frames.len());
        match random.random_range(0..4) {
            0 => frames.truncate(at),
            1 => frames[at].clear(),
            2 => {
                let length = frames[at].len();
                frames[at].truncate(random.random_range(0..=length));
            }
            _ => {
                if let Some(byte) = frames[at].first_mut() {
                    *byte ^= 1 << random.random_range(0..8);
                }
            }
        }
    }
    if frames.is_empty() {
        frames.push(Vec::new());
    }
    frames
}

/// Keeps 50 tasks in flight until it is told to stop; each must be answered once, and rightly. Returns how many there were.
fn load(wire: Wire, ended: &AtomicBool) -> u64 {
    let client = RawClient::with(wire, "task");
    let mut open = HashMap::new();
    let mut number = 0;
    loop {
        while open.len() < 50 && !ended.load(Ordering::Relaxed) {
            open.insert(client.call("echo", &json!(number), json!({})), number);
            number += 1;
        }
        if open.is_empty() {
            return number;
        }
        let reply = client
            .wire
            .receive(&client.socket, 60_000)
            .unwrap_or_else(|error| panic!("{} tasks are not answered: {error}", open.len()));
        let expected = open.remove(reply.parent_id());
        assert_eq!(Some(value(&reply)), expected.map(|number| json!(number)));
    }
}

/// Resident memory of a process in MB.
fn resident(pid: i32) -> u64 {
    let text = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = text
        .lines()
        .find(|line| line.starts_with("VmRSS:"))
        .unwrap();
    let kilobytes: u64 = line.split_whitespace().nth(1).unwrap().parse().unwrap();
    kilobytes / 1024
}

fn every_socket(args: &[&str], rounds: usize) {
    let long = std::env::var("IPBROKER_HOSTILE_SECONDS").map_or(Duration::ZERO, |seconds| {
        Duration::from_secs(seconds.parse().expect("a number of seconds"))
    });
    let cluster = Cluster::builder()
        .args(["-n", "2"])
        .args(args.iter().copied())
        .start();
    let engines = cluster.wait_engines(2);
    let mut random = StdRng::seed_from_u64(7);
    let client = RawClient::new(&cluster, "task");
    let wire = client.wire.clone();
    let ended = Arc::new(AtomicBool::new(false));
    let work = {
        let (wire, ended) = (cluster.wire(), ended.clone());
        std::thread::spawn(move || load(wire, &ended))
    };
    let pid = cluster.controller.as_ref().unwrap().pid();
    let pid = pid.as_raw_nonzero().get();
    let (begun, mut early, mut sent) = (Instant::now(), 0, 0u64);
    let engine_wire = Wire::load(&cluster.connection_file("engine")).unwrap();
    let sample = wire.frames(
        &wire.header("function_request"),
        &json!({}),
        &json!({}),
        &json!({"name": "noop"}),
        &[vec![0xc0]],
    );
    let context = zmq::Context::new();
    let mut endpoints = wire.endpoints();
    endpoints.extend(engine_wire.endpoints());
    assert!(endpoints.len() > 12, "{endpoints:?}");
    if args.contains(&"--scheme=pure") {
        // Whoever connects to a DEALER gets a share of what it sends; without CURVE it asks nobody's name.
        let engines_side = engine_wire.endpoint("task");
        endpoints.retain(|(_, endpoint)| *endpoint != engines_side);
    }
    for round in 0.. {
        if round >= rounds && begun.elapsed() >= long {
            break;
        }
        if round == rounds / 2 {
            early = resident(pid);
        }
        for (channel, endpoint) in &endpoints {
            let kind = match channel.as_str() {
                "iopub" => [zmq::PUB, zmq::XPUB][round % 2],
                "notification" | "hb_ping" => zmq::XSUB,
                _ => [zmq::DEALER, zmq::ROUTER, zmq::REQ][round % 3],
            };
            let socket = context.socket(kind).unwrap();
            socket.set_linger(200).unwrap();
            // The controller's own name, as its engines know it. Rarely in the long form: libzmq keeps the connection from
            // which a name was taken.
            if round % if round < rounds { 4 } else { 256 } == 3 {
                socket.set_identity(b"ipbroker.task").unwrap();
            }
            socket.connect(endpoint).unwrap();
            for _ in 0..10 {
                let _ = socket.send_multipart(junk(&mut random, &sample, &engines), zmq::DONTWAIT);
                sent += 1;
            }
        }
        let id = client.call("echo", &json!(round), json!({}));
        assert_eq!(value(&client.reply(&id)), round);
    }
    ended.store(true, Ordering::Relaxed);
    let done = work.join().expect("the load's tasks are unharmed");
    let late = resident(pid);
    println!(
        "{sent} random messages in {:.0} s beside {done} tasks; resident memory {early} MB, at the end {late} MB",
        begun.elapsed().as_secs_f64()
    );
    assert!(
        late < early * 3 / 2 + 64,
        "{early} MB have become {late} MB"
    );
    let hub = RawClient::new(&cluster, "registration");
    assert_eq!(
        hub.ask("connection_request", json!({})).content["engines"]
            .as_object()
            .unwrap()
            .len(),
        2
    );
    assert_eq!(cluster.registered(), engines, "the same engines as before");
}

#[test]
fn junk_on_every_socket() {
    every_socket(&[], 60);
}

#[test]
fn junk_on_every_socket_of_a_pure_cluster() {
    every_socket(&["--scheme=pure", "--nodb"], 60);
}

/// Without CURVE anybody who reaches the port can take an engine's name, and what is sent to it. Under CURVE nobody can.
#[test]
fn under_curve_nobody_takes_a_name() {
    let cluster = Cluster::builder()
        .args(["-n", "1", "--nodb", "--curve", "--ping", "200"])
        .start();
    let engines = cluster.wait_engines(1);
    let mut wire = Wire::load(&cluster.connection_file("engine")).unwrap();
    assert!(wire.info["curve_serverkey"].is_string());
    let somebody_elses = zmq::z85_encode(&zmq::CurveKeyPair::new().unwrap().public_key).unwrap();
    let context = zmq::Context::new();
    let mut thieves = Vec::new();
    for key in [json!(null), json!(somebody_elses)] {
        wire.info["curve_serverkey"] = key;
        for channel in [
            "task",
            "mux",
            "control",
            "broadcast",
            "registration",
            "hb_pong",
        ] {
            let thief = wire.connect(
                &context,
                zmq::DEALER,
                Some(engines[0].1.as_bytes()),
                channel,
            );
            let _ = thief.send_multipart([b"junk".to_vec(), DELIMITER.to_vec()], zmq::DONTWAIT);
            thieves.push(thief);
        }
        for channel in ["iopub", "hb_ping"] {
            let listener = wire.connect(&context, zmq::SUB, None, channel);
            listener.set_subscribe(b"").unwrap();
            thieves.push(listener);
        }
    }
    let client = RawClient::new(&cluster, "task");
    for number in 0..100 {
        let id = client.call("sleep", &json!(0.01), json!({"number": number}));
        assert_eq!(value(&client.reply(&id)), json!(0.01));
    }
    assert_eq!(cluster.registered(), engines);
    for thief in &thieves {
        assert!(
            thief.recv_multipart(zmq::DONTWAIT).is_err(),
            "nobody told them anything"
        );
    }
}

#[test]
fn a_wrong_key_changes_nothing() {
    let cluster = Cluster::with_engines(1);
    for channel in ["task", "mux", "control", "registration", "broadcast"] {
        let mut wire = cluster.wire();
        for key in [&b""[..], b"guessed"] {
            wire.signer = Signer::new(key);
            let client = RawClient::with(wire.clone(), channel);
            let engine = cluster.registered()[0].1.clone();
            let header = wire.header("command_request");
            let mut frames = if channel == "task" || channel == "registration" {
                Vec::new()
            } else {
                vec![engine.into_bytes()]
            };
            let cmd = format!("touch {}", cluster.path("intruded").display());
            let content = json!({"cmd": cmd, "msg_ids": []});
            frames.extend(wire.frames(&header, &json!({}), &json!({}), &content, &[]));
            client.socket.send_multipart(frames, 0).unwrap();
            let shutdown = wire.header("shutdown_request");
            client
                .socket
                .send_multipart(
                    wire.frames(&shutdown, &json!({}), &json!({}), &json!({}), &[]),
                    0,
                )
                .unwrap();
        }
    }
    // All sockets have been read past those messages when a good one sent after them is answered.
    let client = RawClient::new(&cluster, "task");
    for _ in 0..50 {
        assert_eq!(
            client.reply(&client.command("true", json!({}))).content["code"],
            0
        );
    }
    assert!(!cluster.path("intruded").exists());
    assert_eq!(cluster.registered().len(), 1);
}

#[test]
fn a_flood_of_connections() {
    let cluster = Cluster::with_engines(1);
    let endpoint = cluster.wire().endpoint("task").replace("tcp://", "");
    let sockets: Vec<_> = (0..500)
        .filter_map(|_| std::net::TcpStream::connect(&endpoint).ok())
        .collect();
    assert!(sockets.len() > 400, "{}", sockets.len());
    let client = RawClient::new(&cluster, "task");
    assert_eq!(
        client.reply(&client.command("true", json!({}))).content["code"],
        0
    );
    drop(sockets);
    assert_eq!(
        client.reply(&client.command("true", json!({}))).content["code"],
        0
    );
}

#[test]
fn connections_that_end_leave_nothing() {
    let mut cluster = Cluster::with_engines(1);
    let pid = cluster.controller().pid().as_raw_nonzero().get();
    let open = || {
        let open = std::fs::read_dir(format!("/proc/{pid}/fd"));
        open.unwrap().count()
    };
    let wire = cluster.wire();
    let context = zmq::Context::new();
    let channels = [
        ("registration", zmq::DEALER),
        ("control", zmq::DEALER),
        ("mux", zmq::DEALER),
        ("task", zmq::DEALER),
        ("iopub", zmq::SUB),
        ("notification", zmq::SUB),
    ];
    let idle = open();
    let come_and_go = || {
        let connected: Vec<_> = (0..40)
            .flat_map(|_| channels)
            .map(|(channel, kind)| wire.connect(&context, kind, None, channel))
            .collect();
        // Give or take what others open and close meanwhile.
        eventually("them to be connected", LIMIT, || {
            (open() + 40 > idle + connected.len()).then_some(())
        });
        drop(connected);
        eventually("them to be gone", LIMIT, || {
            (open() < idle + 40).then_some(())
        });
    };
    for _ in 0..10 {
        come_and_go();
    }
    let before = resident(pid);
    for _ in 0..30 {
        come_and_go();
    }
    // What libzmq has for 1200 connections to one socket is 40 MB. What was freed may be used again before it is given back.
    eventually("the memory of connections that ended", LIMIT, || {
        come_and_go();
        (resident(pid) < before + 20).then_some(())
    });
}

#[test]
fn no_descriptors_left() {
    let mut cluster = Cluster::with_engines(1);
    let task = RawClient::new(&cluster, "task");
    let hub = RawClient::new(&cluster, "registration");
    assert_eq!(
        task.reply(&task.command("true", json!({}))).content["code"],
        0
    );
    let troubles =
        |hub: &RawClient| hub.ask("status_request", json!({})).content["troubles"].clone();
    assert_eq!(troubles(&hub), json!([]));
    let pid = cluster.controller().pid().as_raw_nonzero().get();
    let open = std::fs::read_dir(format!("/proc/{pid}/fd"))
        .unwrap()
        .count();
    let limited = std::process::Command::new("prlimit")
        .args([
            "--pid",
            &pid.to_string(),
            &format!("--nofile={}", open + 10),
        ])
        .status();
    if !limited.is_ok_and(|status| status.success()) {
        eprintln!("skipped: no prlimit here");
        return;
    }
    let endpoint = cluster.wire().endpoint("task").replace("tcp://", "");
    let flood: Vec<_> = (0..50)
        .filter_map(|_| std::net::TcpStream::connect(&endpoint).ok())
        .collect();
    let told = eventually("the controller to say it", LIMIT, || {
        let told = troubles(&hub);
        (told != json!([])).then_some(told)
    });
    assert!(told.to_string().contains("Too many open files"), "{told}");
    assert!(
        cluster
            .controller()
            .stderr()
            .contains("Too many open files")
    );
    // Who is there goes on.
    assert_eq!(
        value(&task.reply(&task.call("echo", &json!(1), json!({})))),
        1
    );
    drop(flood);
    eventually("descriptors again", LIMIT, || {
        (troubles(&hub) == json!([])).then_some(())
    });
    let newcomer = RawClient::new(&cluster, "task");
    assert_eq!(
        newcomer.reply(&newcomer.command("true", json!({}))).content["code"],
        0
    );
}
