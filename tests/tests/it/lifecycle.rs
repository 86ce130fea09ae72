//! How the programs start and end.

use std::{fs, os::unix::fs::PermissionsExt, process::Command, time::Instant};

use ipbroker_tests::{Cluster, LIMIT, RawClient, eventually, program, programs};
use rustix::process::Signal;
use serde_json::json;

#[test]
fn starts_and_stops_without_a_trace() {
    for signal in [Signal::TERM, Signal::INT] {
        let mut cluster = Cluster::with_engines(4);
        for side in ["client", "engine"] {
            let mode = fs::metadata(cluster.connection_file(side))
                .unwrap()
                .permissions()
                .mode();
            assert_eq!(mode & 0o777, 0o600, "{side}");
        }
        let client = RawClient::new(&cluster, "task");
        client.command("sleep 300", json!({}));
        eventually("the job to run", LIMIT, || {
            cluster
                .processes()
                .iter()
                .any(|(_, line)| line.starts_with("sleep 300"))
                .then_some(())
        });
        let controller = cluster.controller.take().unwrap();
        controller.signal(signal);
        let ended = controller.finish(LIMIT);
        assert!(
            ended.code() == 0 || ended.code() == 130,
            "{}: {}",
            ended.code(),
            ended.stderr
        );
        assert!(
            !cluster.connection_file("client").exists()
                && !cluster.connection_file("engine").exists()
        );
        eventually("everything to be gone", LIMIT, || {
            cluster.processes().is_empty().then_some(())
        });
    }
}

/// Nobody waits in vain for the end of an engine, whatever it may have been for.
#[test]
fn engines_that_leave_are_answered() {
    for scheme in ["leastload", "pure"] {
        let scheme = format!("--scheme={scheme}");
        let mut cluster = Cluster::builder().args([&scheme, "--nodb"]).start();
        cluster.start_engines(2);
        cluster.wait_engines(2);
        let client = RawClient::new(&cluster, "task");
        let done = client.reply(&client.command("true", json!({})));
        assert_eq!(done.content["code"], 0);
        let engines = cluster.engines.pop().unwrap();
        engines.signal(Signal::TERM);
        let left = engines.finish(LIMIT).ok();
        assert!(!left.stderr.contains("WARN"), "{scheme}: {}", left.stderr);
    }
}

#[test]
fn two_controllers_do_not_share_a_profile() {
    let mut cluster = Cluster::builder().args(["-n", "1", "--nodb"]).start();
    let files = ["client", "engine"].map(|side| cluster.connection_file(side));
    let read = || files.each_ref().map(|file| fs::read(file).unwrap());
    let before = read();
    for store in ["--nodb", "--sqlitedb", "--reuse"] {
        let mut second = cluster.command("ipctl");
        second.arg(store);
        let ended = programs::run(second, cluster.dir(), "", LIMIT);
        assert_eq!(ended.code(), 1, "{store}: {}", ended.stderr);
        assert!(
            ended.stderr.contains("another ipctl uses"),
            "{store}: {}",
            ended.stderr
        );
        assert_eq!(ended.stderr.lines().count(), 1, "{store}: {}", ended.stderr);
    }
    assert!(read() == before);
    let run = cluster.client(&["map", "echo {}", ":::", "x"]).ok();
    assert_eq!(run.stdout, "x\n");
    // One that was killed leaves no lock, whatever of it lives on.
    cluster.controller().kill();
    cluster.start_controller();
    // Another cluster of the profile has a lock of its own.
    let mut other = cluster.command("ipctl");
    other.args(["--cluster-id", "second", "--nodb"]);
    let mut other = programs::Program::spawn(other, cluster.dir());
    let file = cluster
        .profile()
        .join("security/ipcontroller-second-client.json");
    eventually("the other's connection file", LIMIT, || {
        file.exists().then_some(())
    });
    assert!(other.running());
}

#[test]
fn a_clean_end_is_told_to_those_who_wait() {
    for by_client in [false, true] {
        let mut cluster = Cluster::with_engines(1);
        let jobs = cluster.start_client(&["map", "sleep 300; echo {}", ":::", "a", "b"]);
        eventually("a job to run", LIMIT, || {
            let processes = cluster.processes();
            let runs = |(_, line): &(i32, String)| line.starts_with("sleep 300");
            processes.iter().any(runs).then_some(())
        });
        let wait = cluster.start_client(&["wait"]);
        let wire = cluster.wire();
        let context = zmq::Context::new();
        let socket = wire.connect(&context, zmq::DEALER, None, "registration");
        eventually("both to hold a lease", LIMIT, || {
            wire.send(&socket, "status_request", json!({}), json!({}), &[]);
            let status = wire.receive(&socket, 5_000).ok()?;
            (status.content["clients"] == 2).then_some(())
        });
        if by_client {
            cluster.client(&["shutdown"]).ok();
            cluster.controller.take().unwrap().finish(LIMIT).ok();
        } else {
            cluster.stop_controller();
        }
        for client in [jobs, wait] {
            let ended = client.finish(LIMIT);
            assert_eq!(ended.code(), 1, "{}", ended.stderr);
            let told = |words| ended.stderr.contains(words);
            assert!(told("the controller has shut down"), "{}", ended.stderr);
            assert!(!told("to come back"), "{}", ended.stderr);
        }
    }
}

#[test]
fn clients_that_have_closed_are_not_counted() {
    let cluster = Cluster::builder().arg("--lease=10m").start();
    let status = || cluster.status();
    for _ in 0..3 {
        status();
    }
    eventually("no other client", LIMIT, || {
        (status()["clients"] == 1).then_some(())
    });
}

/// An upgrade: one that keeps its ports and key is stopped, and the next one takes up what waits.
#[test]
fn clients_wait_for_a_controller_that_keeps_its_key() {
    let mut cluster = Cluster::builder().arg("--reuse").start();
    let jobs = cluster.start_client(&["map", "echo {}", ":::", "x"]);
    eventually("the job to wait", LIMIT, || {
        (cluster.status()["tasks"]["ready"] == 1).then_some(())
    });
    cluster.stop_controller();
    eventually("the client to notice", LIMIT, || {
        jobs.stderr()
            .contains("waiting for it to come back")
            .then_some(())
    });
    cluster.start_controller_with(&["--restore"]);
    cluster.start_engines(1);
    assert_eq!(jobs.finish(LIMIT * 2).ok().stdout, "x\n");
}

#[test]
fn reuse_keeps_ports_and_key() {
    let mut cluster = Cluster::builder().args(["--reuse", "--nodb"]).start();
    let before = fs::read_to_string(cluster.connection_file("client")).unwrap();
    cluster.stop_controller();
    assert!(cluster.connection_file("client").exists());
    cluster.start_controller();
    assert_eq!(
        fs::read_to_string(cluster.connection_file("client")).unwrap(),
        before
    );
}

/// An engine that was removed ends when what it runs has ended, whatever controller it comes back to meanwhile.
#[test]
fn a_removed_engine_stays_removed_when_it_comes_back() {
    let mut cluster = Cluster::builder().arg("--reuse").start();
    cluster.start_engines(1);
    cluster.wait_engines(1);
    let job = "touch {}; until [ -e go ]; do sleep 0.05; done";
    let run = cluster.start_client(&["map", job, ":::", "first", "second"]);
    eventually("the first job", LIMIT, || {
        cluster.path("first").exists().then_some(())
    });
    let context = zmq::Context::new();
    let wire = cluster.wire();
    let hub = wire.connect(&context, zmq::DEALER, None, "registration");
    let remove = json!({"add": 0, "remove": [0], "now": false});
    wire.send(&hub, "scale_request", json!({}), remove, &[]);
    let removed = wire.receive(&hub, 10_000).expect("a reply").content;
    assert_eq!(removed["removed"], json!([0]), "{removed}");
    eventually("the engine to know", LIMIT, || {
        let said = cluster.engines[0].stderr();
        said.contains("leaving when it has ended what it runs")
            .then_some(())
    });
    cluster.controller().kill();
    cluster.start_controller_with(&["--restore"]);
    cluster.wait_engines(1);
    cluster.write("go", "");
    eventually("the engine to end", LIMIT, || {
        (!cluster.engines[0].running()).then_some(())
    });
    assert!(
        !cluster.path("second").exists(),
        "it was given nothing more"
    );
    cluster.start_engines(1);
    run.finish(LIMIT).ok();
    assert!(cluster.path("second").exists());
}

#[test]
fn an_engine_leaves_when_the_controller_is_gone_for_good() {
    let mut cluster = Cluster::builder().args(["--nodb", "--ping", "200"]).start();
    let mut command = cluster.command("ipengine");
    command.args(["-n", "2", "--grace", "2"]);
    let engine = programs::Program::spawn(command, cluster.dir());
    cluster.wait_engines(2);
    cluster.controller().kill();
    engine.finish(LIMIT);
    eventually("everything to be gone", LIMIT, || {
        cluster.processes().is_empty().then_some(())
    });
}

#[test]
fn the_hub_shuts_all_down() {
    let mut cluster = Cluster::builder().arg("--nodb").start();
    cluster.start_engines(2);
    cluster.wait_engines(2);
    cluster.client(&["shutdown"]).ok();
    cluster.controller.take().unwrap().finish(LIMIT);
    let log = cluster.engines.remove(0).finish(LIMIT).ok().stderr;
    // They do not wait for a controller that has said goodbye.
    assert_eq!(log.matches("leaving: it was told to").count(), 2, "{log}");
    assert!(!log.contains("WARN"), "{log}");
}

#[test]
fn what_is_in_a_profile_is_for_its_owner_alone() {
    let cluster = Cluster::builder().arg("--log-to-file").start();
    let mut files = Vec::new();
    let mut dirs = vec![cluster.profile()];
    while let Some(dir) = dirs.pop() {
        for entry in fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            match path.is_dir() {
                true => dirs.push(path),
                false => files.push(path),
            }
        }
    }
    for part in ["ipbroker.db", "ipbroker.db-shm", "ipctl-"] {
        let named = |file: &&std::path::PathBuf| file.to_string_lossy().contains(part);
        assert!(files.iter().find(named).is_some(), "{part} in {files:?}");
    }
    for file in files {
        let mode = fs::metadata(&file).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "{file:?}");
    }
}

#[test]
fn a_cluster_id_names_the_files() {
    let cluster = Cluster::builder().prepare();
    let mut command = cluster.command("ipctl");
    command.args(["--cluster-id", "second", "--nodb", "-n", "1"]);
    let _controller = programs::Program::spawn(command, cluster.dir());
    let file = cluster
        .profile()
        .join("security/ipcontroller-second-client.json");
    eventually("the connection file", LIMIT, || file.exists().then_some(()));
    let run = cluster
        .client(&["map", "--cluster-id", "second", "echo {}", ":::", "x"])
        .ok();
    assert_eq!(run.stdout, "x\n");
}

#[test]
fn four_engines_are_ready_soon() {
    let start = Instant::now();
    let cluster = Cluster::builder().args(["-n", "4", "--nodb"]).start();
    cluster.wait_engines(4);
    let took = start.elapsed();
    println!("ipctl -n 4 to four registered engines: {took:?} (debug build)");
    assert!(took.as_secs() < 5, "{took:?}");
}

#[test]
fn nothing_but_glibc_is_linked() {
    for name in ["ipctl", "ipengine", "ipclient"] {
        let output = Command::new("ldd")
            .arg(program(name))
            .output()
            .expect("ldd");
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        for line in text.lines() {
            let known = [
                "linux-vdso",
                "libc.so",
                "libm.so",
                "libpthread.so",
                "libdl.so",
                "librt.so",
                "ld-linux",
            ];
            assert!(
                known.iter().any(|known| line.contains(known)),
                "{name} links {line}"
            );
        }
    }
    assert_eq!(zmq::has("curve"), Some(true));
}

/// `2.36` of `GLIBC_2.36` or `ldd (…) 2.36`.
fn version(text: &str) -> Option<(u32, u32)> {
    let mut parts = text.trim().splitn(3, '.');
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

#[test]
fn the_readme_names_the_glibc_that_is_needed() {
    let output = |command: &mut Command| {
        let done = command.output().expect("binutils and ldd");
        assert!(done.status.success(), "{command:?}: {done:?}");
        String::from_utf8_lossy(&done.stdout).into_owned()
    };
    let readme = concat!(env!("CARGO_MANIFEST_DIR"), "/../README.md");
    let readme = std::fs::read_to_string(readme).expect("README.md");
    let told = readme
        .split_once(" or later, as built on Debian 12")
        .and_then(|(before, _)| version(before.rsplit('(').next()?))
        .expect("README.md says which glibc the programs need");
    let here = output(Command::new("ldd").arg("--version"));
    let here = here
        .lines()
        .next()
        .and_then(|line| version(line.rsplit(' ').next()?))
        .expect("a version of glibc");
    for name in ["ipctl", "ipengine", "ipclient"] {
        let versions = output(Command::new("readelf").arg("-VW").arg(program(name)));
        let needed = versions
            .split("GLIBC_")
            .skip(1)
            .filter_map(|rest| version(rest.split_whitespace().next()?))
            .max()
            .unwrap_or_else(|| panic!("{name} names no version of glibc"));
        eprintln!("{name} needs glibc {}.{}", needed.0, needed.1);
        // A newer system gives newer symbols.
        if here <= (2, 36) {
            assert!(
                needed <= told,
                "{name} needs {needed:?}, README.md says {told:?}"
            );
        }
    }
}

#[test]
fn every_ipcontroller_spelling() {
    let spellings: &[&[&str]] = &[
        &[
            "--ip=127.0.0.1",
            "--scheme",
            "lru",
            "--hwm=3",
            "--ping=500",
            "--nodb",
        ],
        &[
            "--ip",
            "127.0.0.1",
            "--scheme=twobin",
            "--hwm",
            "2",
            "--ping",
            "500",
            "--dictdb",
        ],
        &[
            "--location=localhost",
            "--reuse",
            "--sqlitedb",
            "--log-level=DEBUG",
        ],
        &["--log-level=10", "--log-to-file", "--nodb"],
        &["--debug", "--nodb", "--restore"],
        &[
            "--TaskScheduler.scheme_name=lru",
            "--TaskScheduler.hwm=1",
            "--HeartMonitor.period=300",
            "--IPController.reuse_files=True",
            "--nodb",
        ],
    ];
    for args in spellings {
        let cluster = Cluster::builder()
            .args(args.iter().copied())
            .args(["-n", "1"])
            .start();
        cluster.wait_engines(1);
        let client = RawClient::new(&cluster, "task");
        assert_eq!(
            client.reply(&client.command("true", json!({}))).content["code"],
            0,
            "{args:?}"
        );
    }
}
