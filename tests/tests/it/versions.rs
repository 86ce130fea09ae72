//! Programs of different versions meet: those that can work together do, the others end with one line that says why.

use std::fs;

use ipbroker_tests::{Cluster, LIMIT, RawClient, programs::run};
use serde_json::{Value, json};

/// What an engine says when it registers.
fn registration(uuid: &str, protocol: Option<u32>) -> Value {
    let mut content = json!({"uuid": uuid, "capabilities": ["command"], "version": "0.0.9"});
    if let Some(protocol) = protocol {
        content["protocol"] = protocol.into();
    }
    content
}

#[test]
fn an_engine_with_another_protocol_is_refused_with_one_clear_line() {
    let mut cluster = Cluster::with_engines(1);
    let raw = RawClient::new(&cluster, "registration");
    for protocol in [Some(0), Some(3), None] {
        let reply = raw.ask(
            "registration_request",
            registration("other-version", protocol),
        );
        let why = reply.content["evalue"].as_str().unwrap_or_default();
        assert_eq!(reply.content["status"], "error", "{:?}", reply.content);
        // Those who say nothing are of the time when there was but one.
        let protocol = protocol.unwrap_or(1);
        let says =
            format!("it speaks protocol {protocol} (ipengine 0.0.9), this controller speaks 2");
        assert!(
            why.contains(&says) && why.contains("same version as ipctl"),
            "{why}"
        );
        assert!(!why.contains('\n'), "{why}");
        assert!(cluster.controller().stderr().contains(&says));
    }
    // The refused ones do not count, and the others work on.
    let done = cluster.client_with(&["run", "--capture"], "{\"cmd\": \"echo ok\"}\n", LIMIT);
    assert_eq!(done.ok().json_lines()[0]["result"]["stdout"], "ok\n");
}

#[test]
fn a_program_does_not_connect_to_a_controller_with_another_protocol() {
    let cluster = Cluster::with_engines(1);
    for (side, program, words) in [
        ("client", "ipclient", &["status", "--file"][..]),
        ("engine", "ipengine", &["--file"]),
    ] {
        let mut info: Value =
            serde_json::from_slice(&fs::read(cluster.connection_file(side)).unwrap()).unwrap();
        assert_eq!(info["protocol"], 2, "what ipctl writes");
        info["protocol"] = 3.into();
        let file = cluster.write(&format!("{side}.json"), &info.to_string());
        let mut command = cluster.bare(program);
        command.args(words).arg(&file);
        let ended = run(command, cluster.dir(), "", LIMIT);
        assert_eq!(ended.code(), 1, "{}", ended.stderr);
        let said = ended.stderr.trim_end();
        assert!(
            said.starts_with(program)
                && said.contains("speaks protocol 3, this program 2: it is older")
                && said.lines().count() == 1,
            "{said}"
        );
    }
}
