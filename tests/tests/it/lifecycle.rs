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
    cluster.engines.remove(0).finish(LIMIT);
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
