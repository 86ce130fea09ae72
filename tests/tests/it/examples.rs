//! The examples of the documentation, as their reader runs them: for the default profile, with nothing said.

use std::process::Command;

use ipbroker_client::Client;
use ipbroker_tests::{
    cluster::Cluster,
    programs::{Finished, Program, run},
    wait::{LIMIT, eventually},
};

/// An example that runs to its end.
#[track_caller]
fn example(cluster: &Cluster, name: &str) -> Finished {
    let command = cluster.bare(&format!("examples/{name}"));
    run(command, cluster.dir(), "", LIMIT * 2).ok()
}

#[test]
fn an_executor_of_ones_own_has_a_state_for_each_engine() {
    let cluster = Cluster::with_engines(0);
    let mut command = cluster.bare("examples/executor");
    let connection = std::fs::read_to_string(cluster.connection_file("engine"));
    command.env(
        "IPP_CONNECTION_INFO",
        connection.expect("the engines' file"),
    );
    let _engines = Program::spawn(command, cluster.dir());
    let file = cluster.connection_file("client");
    let client = Client::builder().file(file).connect().expect("a client");
    assert_eq!(client.wait_for_engines(2, Some(LIMIT)), 2);
    let view = client.direct_view();
    let call = |engine: usize, name: &str, number: u64| -> Vec<u64> {
        let view = client
            .direct_view_of(&view.ids()[engine..=engine])
            .expect("it is there");
        let result = view.apply(name, &number).expect("it is sent");
        result.get().expect("a number")
    };
    assert_eq!(call(0, "primes_below", 1000), [168]);
    assert_eq!(call(0, "primes_below", 100), [25]);
    assert_eq!(call(0, "known", 0), [1000]);
    assert_eq!(call(1, "known", 0), [2]);
    let error = client
        .load_balanced_view()
        .apply::<u64>("primes_below", &u64::MAX);
    let error = error.expect("it is sent").get().expect_err("too much");
    assert!(error.to_string().contains("is too much for"), "{error}");
}

#[test]
fn examples_of_the_documentation_run() {
    let cluster = Cluster::builder().prepare();
    let start = |command: Command| Program::spawn(command, cluster.dir());
    let mut command = cluster.bare("examples/scheme");
    command.arg("--nodb");
    let mut controller = start(command);
    let file = cluster.path("ipython/profile_default/security/ipcontroller-client.json");
    eventually("the connection files", LIMIT, || {
        assert!(controller.running(), "{}", controller.stderr());
        file.exists().then_some(())
    });
    let status = run(
        {
            let mut command = cluster.bare("ipclient");
            command.args(["status", "--json"]);
            command
        },
        cluster.dir(),
        "",
        LIMIT,
    )
    .ok();
    assert!(status.stdout.contains("\"even\""), "{}", status.stdout);
    let _engines = start(cluster.bare("examples/functions"));

    let map = example(&cluster, "map").stdout;
    let mut lines = map.lines();
    assert_eq!(lines.next(), Some("[3, 5]"));
    // The sum of the roots of 0 to 999,999.
    let sum = lines.next().expect("a second line");
    assert!(sum.starts_with("666666166.459 after "), "{sum}");
    let error = lines.next().expect("a third line");
    assert!(error.contains("-1 has no root on "), "{error}");

    assert_eq!(example(&cluster, "awaits").stdout, "41\n");

    let graph = example(&cluster, "graph").stdout;
    assert!(graph.contains("both are done"), "{graph}");
    assert!(graph.contains("ImpossibleDependency"), "{graph}");

    let files = example(&cluster, "files").stdout;
    assert!(
        files.contains("3 lines, \"ONE\\nTWO\\nTHREE\\n\""),
        "{files}"
    );

    let progress = example(&cluster, "progress").stdout;
    assert!(progress.contains("4 of 4"), "{progress}");
    assert!(progress.contains("100 calls, 0 failed"), "{progress}");
}
