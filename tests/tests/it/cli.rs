//! What the programs say when something is wrong, and their help.

use std::{fs, net::TcpListener, os::unix::fs::PermissionsExt, process::Command};

use ipbroker_tests::{Cluster, Finished, LIMIT, eventually, programs};

#[track_caller]
fn ends(cluster: &Cluster, mut command: Command, args: &[&str]) -> Finished {
    command.args(args);
    programs::run(command, cluster.dir(), "", LIMIT)
}

/// It failed, in few lines, none of them a panic, and said each of `words`.
#[track_caller]
fn fails_with(run: &Finished, words: &[&str]) {
    assert_ne!(run.code(), 0, "{run:?}");
    assert!(!run.stderr.contains("panicked"), "{}", run.stderr);
    assert!(run.stderr.lines().count() <= 12, "{}", run.stderr);
    for word in words {
        assert!(run.stderr.contains(word), "no {word:?} in: {}", run.stderr);
    }
}

#[test]
fn help_has_an_example() {
    let place = Cluster::builder().prepare();
    let help = ends(&place, place.bare("ipclient"), &["--help"])
        .ok()
        .stdout;
    let commands = help.split("Commands:\n").nth(1).unwrap();
    let commands = commands.split("\n\n").next().unwrap();
    let commands = commands
        .lines()
        .filter_map(|line| line.strip_prefix("  ")?.split(' ').next())
        .filter(|name| !matches!(*name, "" | "help"));
    let mut calls: Vec<(&str, Vec<&str>)> = vec![("ipctl", vec![]), ("ipengine", vec![])];
    calls.extend(commands.map(|name| ("ipclient", vec![name])));
    assert!(calls.len() > 20, "{calls:?}");
    for (program, mut args) in calls {
        args.push("--help");
        let help = ends(&place, place.bare(program), &args).ok();
        assert!(
            help.stdout.contains("xample"),
            "{program} {args:?}:\n{}",
            help.stdout
        );
    }
}

#[test]
fn completions() {
    let place = Cluster::builder().prepare();
    for shell in ["bash", "zsh", "fish"] {
        let script = ends(&place, place.bare("ipclient"), &["completions", shell]).ok();
        assert!(script.stdout.contains("ipclient"), "{shell}");
    }
}

#[test]
fn what_cannot_be_is_refused_by_name() {
    let place = Cluster::builder().prepare();
    let run = ends(&place, place.command("ipctl"), &["--nodb", "-n", "5000000"]);
    fails_with(&run, &["5000000", "65535"]);
    for program in ["ipctl", "ipengine"] {
        let run = ends(&place, place.command(program), &["--cluster-id=a/b"]);
        fails_with(&run, &["a cluster id has no slash", "a/b"]);
    }
    let map = ["map", "--local=1", "echo {}", ":::", "x"];
    let mut nowhere = place.bare("ipclient");
    nowhere.env("TMPDIR", "/nonexistent");
    let run = ends(&place, nowhere, &map);
    fails_with(&run, &["in /nonexistent: ", "TMPDIR"]);
    let mut without = vec![
        map[0],
        map[1],
        "--local-option=--engine-program=/nonexistent",
    ];
    without.extend(&map[2..]);
    let run = ends(&place, place.bare("ipclient"), &without);
    fails_with(&run, &["cannot start /nonexistent"]);
    let run = ends(&place, place.bare("ipclient"), &["abort"]);
    fails_with(&run, &["nothing to abort", "--all"]);
    for (program, args) in [
        ("ipengine", ["--idle", "soon"]),
        ("ipctl", ["--lease", "1x"]),
        ("ipclient", ["--connect-timeout", "never"]),
    ] {
        let run = ends(&place, place.bare(program), &args);
        fails_with(&run, &[args[0], "a time such as 90s, 10m, 2h or 1d"]);
    }
}

/// As for IPython.
#[test]
fn ipythondir_may_begin_with_a_tilde() {
    let place = Cluster::builder().prepare();
    let at_home = |name: &str| {
        let mut command = place.bare(name);
        command.env("HOME", place.dir()).env("IPYTHONDIR", "~/x");
        command
    };
    let mut controller = at_home("ipctl");
    controller.args(["-n", "1", "--nodb"]);
    let _controller = programs::Program::spawn(controller, place.dir());
    let file = place.path("x/profile_default/security/ipcontroller-client.json");
    eventually("the connection file", LIMIT, || file.exists().then_some(()));
    let run = ends(&place, at_home("ipclient"), &["map", "echo {}", ":::", "x"]).ok();
    assert_eq!(run.stdout, "x\n");
}

#[test]
fn waiting_needs_no_store() {
    for store in ["--nodb", "--sqlitedb"] {
        let cluster = Cluster::builder().args(["-n", "1", store]).start();
        let submit = |cmd: &str| {
            let line = format!("{{\"cmd\": \"{cmd}\"}}\n");
            let submitted = cluster.client_with(&["submit", "-"], &line, LIMIT).ok();
            submitted.stdout.trim().to_owned()
        };
        let (good, bad) = (submit("sleep 1"), submit("exit 3"));
        cluster.client(&["wait", &good]).ok();
        let ended = cluster.client(&["wait", &good, &bad]);
        assert_eq!(ended.code(), 1, "{store}");
        assert!(
            ended.stderr.contains("1 of 2 tasks"),
            "{store}: {}",
            ended.stderr
        );
    }
}

/// A page for each program and subcommand, with every option of its `--help`.
#[test]
fn man_pages() {
    let place = Cluster::builder().prepare();
    for (program, words) in [
        ("ipctl", &["man"][..]),
        ("ipengine", &["--man"]),
        ("ipclient", &["man"]),
    ] {
        let to = |dir| [words, &[dir]].concat();
        ends(&place, place.bare(program), &to("made/man1")).ok();
        fails_with(
            &ends(&place, place.bare(program), &to("/proc/none")),
            &["cannot write man pages into /proc/none"],
        );
        let pages = place.dir().join("made/man1");
        let own = format!("{program}.1");
        let starts = |name: &str| name == own || name.starts_with(&format!("{program}-"));
        for entry in fs::read_dir(&pages).unwrap() {
            let name = entry.unwrap().file_name().into_string().unwrap();
            // Whole pages of the `help` subcommand say nothing.
            if !starts(&name) || name.contains("-help") {
                continue;
            }
            let page = fs::read_to_string(pages.join(&name)).unwrap();
            assert!(page.contains(".SH SYNOPSIS"), "{name}: {page}");
            let page = page.replace("\\-", "-");
            let words = name.trim_end_matches(".1").strip_prefix(program).unwrap();
            // `fs` has subcommands of its own; the name of another has a hyphen.
            let words = words.trim_start_matches('-').replacen("fs-", "fs ", 1);
            let help: Vec<&str> = words.split_whitespace().chain(["--help"]).collect();
            let help = ends(&place, place.bare(program), &help).ok().stdout;
            // What they do is further to the right.
            let names = help.lines().filter(|line| !line.starts_with("        "));
            let words = names.map(str::split_whitespace);
            for option in words.flat_map(|line| line.take_while(|word| word.starts_with('-'))) {
                let long = option.strip_prefix("--").unwrap_or_default();
                let long = long.split([',', '=', '[']).next().unwrap_or_default();
                assert!(page.contains(&format!("--{long}")), "{name}: no --{long}");
            }
        }
        assert!(pages.join(&own).exists(), "{own}");
    }
}

#[test]
fn an_unknown_option_is_refused_by_name() {
    let place = Cluster::builder().prepare();
    for program in ["ipctl", "ipengine", "ipclient"] {
        fails_with(
            &ends(&place, place.bare(program), &["--no-such-option=3"]),
            &["no-such-option"],
        );
    }
    fails_with(
        &ends(&place, place.command("ipctl"), &["--Hub.no_such_trait=3"]),
        &["no_such_trait"],
    );
    fails_with(
        &ends(&place, place.command("ipctl"), &["--scheme=fastest"]),
        &["fastest"],
    );
    fails_with(
        &ends(&place, place.command("ipctl"), &["--hwm=many"]),
        &["many"],
    );
}

#[test]
fn no_controller() {
    let place = Cluster::builder().prepare();
    let run = ends(&place, place.command("ipclient"), &["status"]);
    fails_with(&run, &["ipctl"]);
}

#[test]
fn a_stale_connection_file() {
    let mut cluster = Cluster::builder().arg("--nodb").start();
    let stale = fs::read(cluster.connection_file("client")).unwrap();
    cluster.stop_controller();
    fs::write(cluster.connection_file("client"), stale).unwrap();
    let run = cluster.client(&["status"]);
    fails_with(&run, &["127.0.0.1"]);
}

#[test]
fn a_connection_file_that_is_none() {
    let place = Cluster::builder().prepare();
    for text in ["", "{", "[]", "{}", "{\"interface\": 5}"] {
        let file = place.write("connection.json", text);
        let run = ends(
            &place,
            place.bare("ipclient"),
            &["--file", file.to_str().unwrap(), "status"],
        );
        fails_with(&run, &["connection.json"]);
        let run = ends(
            &place,
            place.bare("ipengine"),
            &["--file", file.to_str().unwrap()],
        );
        fails_with(&run, &["connection.json"]);
    }
}

#[test]
fn a_wrong_key() {
    let cluster = Cluster::with_engines(1);
    let mut info = cluster.wire().info;
    info["key"] = "somebody-elses".into();
    let file = cluster.write("wrong.json", &info.to_string());
    let run = ends(
        &cluster,
        cluster.bare("ipclient"),
        &["--file", file.to_str().unwrap(), "status"],
    );
    fails_with(&run, &[]);
}

#[test]
fn a_port_in_use() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    let place = Cluster::builder().prepare();
    let run = ends(&place, place.command("ipctl"), &["--port", &port, "--nodb"]);
    fails_with(&run, &[&port]);
}

#[test]
fn a_profile_directory_that_cannot_be() {
    let place = Cluster::builder().prepare();
    place.write("file", "");
    let run = ends(
        &place,
        place.bare("ipctl"),
        &["--profile-dir", "file/profile", "--nodb"],
    );
    fails_with(&run, &["file/profile"]);
}

#[test]
fn tables_come_as_json_too() {
    let cluster = Cluster::with_engines(2);
    cluster
        .client(&["map", "echo {}", ":::", "a", "b", "c"])
        .ok();
    for name in ["status", "engines", "stats"] {
        let table = cluster.client(&[name]).ok();
        assert!(!table.stdout.trim().is_empty(), "{name}");
        let json = cluster.client(&[name, "--json"]).ok();
        let values: Vec<serde_json::Value> = serde_json::Deserializer::from_str(&json.stdout)
            .into_iter()
            .collect::<Result<_, _>>()
            .expect("JSON");
        assert!(!values.is_empty(), "{name}");
    }
    let stats = cluster.client(&["stats"]).ok().stdout;
    for column in [
        "Node",
        "CPUs",
        "Jobs",
        "Sec/Job",
        "Node Time Sec",
        "job count",
        "% of all jobs",
        "job time sum",
        "time per job",
        "job server",
    ] {
        assert!(stats.contains(column), "{column} in\n{stats}");
    }
}

/// `| head -1` is no error.
#[test]
fn who_has_read_enough_is_told_nothing() {
    let cluster = Cluster::builder().args(["-n", "1"]).start();
    cluster.wait_engines(1);
    let ids = cluster.client_with(&["submit", "-"], "{\"cmd\": \"true\"}\n", LIMIT);
    let id = ids.ok().stdout.trim().to_owned();
    cluster.client(&["wait", &id]).ok();
    for args in [
        &["status"][..],
        &["status", "--json"],
        &["engines"],
        &["stats"],
        &["explain", &id],
        &["results", &id],
        &["events", "--samples", "1"],
        &["top", "--plain"],
        &["completions", "bash"],
        &["map", "--dry-run", "true", ":::", "1"],
    ] {
        let (nobody, out) = std::io::pipe().unwrap();
        drop(nobody);
        let mut command = cluster.command("ipclient");
        let ended = command.args(args).stdout(out).output().unwrap();
        let said = String::from_utf8_lossy(&ended.stderr);
        assert_eq!(said, "", "{args:?}");
        assert!(
            matches!(ended.status.code(), Some(0 | 141)),
            "{args:?}: {ended:?}"
        );
    }
}

/// A command may hold what would drive the terminal of who looks at it.
#[test]
fn commands_are_shown_harmless() {
    let cluster = Cluster::builder().args(["-n", "1"]).start();
    cluster.wait_engines(1);
    let line = "{\"cmd\": \"exit 3 # \\u001b[2J\\u009b1m\\u202egpj\"}\n";
    let run = cluster.client_with(&["run", "-"], line, LIMIT);
    assert!(
        run.stderr.contains("exit 3 # \\x1b[2J\\x9b1m\\x202egpj"),
        "{}",
        run.stderr
    );
    let map = cluster.client(&[
        "map",
        "--max-output",
        "1",
        "echo {} \u{1b}[2J",
        ":::",
        "long",
    ]);
    assert!(
        map.stderr.contains("longer than --max-output"),
        "{}",
        map.stderr
    );
    let bad = cluster.client(&["results", "no\u{1b}[2Jtask"]);
    for stderr in [run.stderr, map.stderr, bad.stderr] {
        let drives = |c: char| c.is_control() && c != '\n';
        assert!(!stderr.contains(drives), "{stderr:?}");
    }
}

#[test]
fn engines_that_can_never_start_end_the_start() {
    let place = Cluster::builder().prepare();
    let script = place.path("ipengine");
    // Fewer descriptors than any engine process asks for.
    let limited = format!(
        "#!/bin/sh\nexec prlimit --nofile=32:32 {} \"$@\"\n",
        programs::program("ipengine").display()
    );
    fs::write(&script, limited).unwrap();
    fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).unwrap();
    let mut command = place.command("ipctl");
    command.arg("--engine-program").arg(&script);
    let run = ends(&place, command, &["-n", "2", "--nodb"]);
    let why = "open descriptors are needed and the hard limit is 32";
    fails_with(&run, &[why, "2 engines cannot be started here"]);
    assert!(!run.stderr.contains("starting it again"), "{}", run.stderr);
}

#[test]
fn who_cannot_write_says_so_and_stops_the_jobs() {
    let cluster = Cluster::with_engines(1);
    let full_of = |program: &str, args: &str, input: &str| {
        let mut command = Command::new("sh");
        let program = ipbroker_tests::programs::program(program);
        let line = format!("exec '{}' {args} > /dev/full", program.display());
        command.args(["-c", &line]).current_dir(cluster.dir());
        ipbroker_tests::programs::run(command, cluster.dir(), input, LIMIT)
    };
    let full = |args: &str, input: &str| full_of("ipclient", args, input);
    let profile = cluster.profile();
    let profile = format!("--profile-dir '{}'", profile.display());
    fails_with(&full(&format!("{profile} stats"), ""), &["No space left"]);
    for (program, args) in [
        ("ipctl", "completions bash"),
        ("ipengine", "--completions bash"),
        ("ipclient", "completions bash"),
    ] {
        fails_with(&full_of(program, args, ""), &["No space left"]);
    }
    let jobs: String = (0..100)
        .map(|number| format!("{{\"cmd\": \"sleep 0.1; echo >> ran; echo {number}\"}}\n"))
        .collect();
    cluster.write("jobs.jsonl", &jobs);
    let run = full(&format!("{profile} run jobs.jsonl"), "");
    fails_with(&run, &["cannot write the results: No space left"]);
    let ran = cluster.read("ran").lines().count();
    cluster
        .client_with(&["run"], "{\"cmd\": \"true\"}\n", LIMIT)
        .ok();
    let after = cluster.read("ran").lines().count();
    assert!(after <= ran + 1, "{ran} jobs had run, then {after}");
}

#[test]
fn a_task_that_nobody_knows_is_named() {
    let cluster = Cluster::builder().args(["-n", "1"]).start();
    for subcommand in ["abort", "output", "results", "resubmit", "wait"] {
        let run = cluster.client(&[subcommand, "nope"]);
        fails_with(&run, &["no such task: nope"]);
    }
}
