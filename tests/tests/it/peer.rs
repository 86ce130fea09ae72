//! What a user of `ipcontroller` has already: its configuration file, its environment, its rules for CURVE and packers.

use std::fs;

use ipbroker_tests::{
    cluster::Cluster,
    wait::{LIMIT, eventually},
};
use serde_json::Value;

/// What the client's connection file says.
fn connection(cluster: &Cluster) -> Value {
    let text = fs::read(cluster.connection_file("client")).unwrap();
    serde_json::from_slice(&text).unwrap()
}

#[test]
fn the_configuration_file_of_the_profile_is_applied_and_the_rest_of_it_named() {
    let mut cluster = Cluster::builder().arg("--nodb").prepare();
    fs::create_dir_all(cluster.profile()).unwrap();
    fs::write(
        cluster.profile().join("ipcontroller_config.py"),
        "c = get_config()  #noqa\nimport os\nc.HeartMonitor.period = 200\nc.IPController.location = 'here'\n\
         c.TaskScheduler.scheme_name = 'lru'\nc.IPController.use_threads = True\n",
    )
    .unwrap();
    cluster.start_controller();
    let info = connection(&cluster);
    assert_eq!(info["location"], "here");
    assert_eq!(info["task_scheme"], "lru");
    let log = cluster.controller().stderr();
    let named: Vec<&str> = log
        .lines()
        .filter(|line| line.contains("not applied"))
        .collect();
    assert_eq!(named.len(), 2, "{log}");
    assert!(named[0].contains("ipcontroller_config.py:2: not applied: import os"));
    assert!(
        named[1].contains("ipcontroller_config.py:6: ")
            && named[1].contains("IPController.use_threads")
    );
}

#[test]
fn a_bad_value_in_the_configuration_file_is_told_with_its_line() {
    let cluster = Cluster::builder().prepare();
    fs::create_dir_all(cluster.profile()).unwrap();
    fs::write(
        cluster.profile().join("ipcontroller_config.py"),
        "c = get_config()\n\nc.HeartMonitor.period = 'often'\n",
    )
    .unwrap();
    let ended = cluster.command("ipctl").output().unwrap();
    assert!(!ended.status.success());
    let said = String::from_utf8_lossy(&ended.stderr);
    assert!(said.contains("ipcontroller_config.py:3: "), "{said}");
    assert!(!cluster.connection_file("client").exists());
}

#[test]
fn curve_is_on_off_loopback_and_where_it_is_asked_for() {
    for (args, env, on) in [
        (&["--ip=127.0.0.1"][..], None, false),
        (&["--ip=127.0.0.1"], Some("1"), true),
        (&["--curve"], None, true),
        (&["--ip=*"], None, true),
        (&["--ip=*", "--no-curve"], None, false),
    ] {
        let mut builder = Cluster::builder().arg("--nodb").args(args.iter().copied());
        if let Some(value) = env {
            builder = builder.env("IPP_ENABLE_CURVE", value);
        }
        let cluster = builder.start();
        let info = connection(&cluster);
        assert_eq!(info["curve_serverkey"].is_string(), on, "{args:?} {env:?}");
        // The server's key is the secret then, and nothing is signed.
        assert_eq!(info["key"] == "", on, "{args:?} {env:?}");
    }
}

#[test]
fn the_packer_is_msgpack_unless_a_python_cluster_starts_us() {
    let cluster = Cluster::builder().arg("--nodb").start();
    assert_eq!(connection(&cluster)["pack"], "msgpack");
    drop(cluster);
    // As ipp.Cluster does it: no arguments, where to work in the environment.
    let cluster = Cluster::builder().prepare();
    let mut command = cluster.bare("ipctl");
    command
        .env("IPP_PROFILE_DIR", cluster.profile())
        .env("IPP_CLUSTER_ID", "c1");
    let controller = ipbroker_tests::programs::Program::spawn(command, cluster.dir());
    let file = cluster
        .profile()
        .join("security/ipcontroller-c1-client.json");
    let info: Value = eventually("the connection file", LIMIT, || {
        serde_json::from_slice(&fs::read(&file).ok()?).ok()
    });
    assert_eq!(info["pack"], "json");
    drop(controller);
}
