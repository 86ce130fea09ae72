//! `ipclient run --results`: what has its result is not run again.

use std::{collections::BTreeMap, fs, path::Path, process::Command};

use ipbroker_tests::{Cluster, Finished, LIMIT, eventually, programs, programs::Program};
use serde_json::{Value, json};

fn place() -> Cluster {
    Cluster::builder().prepare()
}

/// `ipclient run --local 2 --results results.jsonl ARGS jobs.jsonl`.
fn command(place: &Cluster, args: &[&str]) -> Command {
    let mut command = place.bare("ipclient");
    command
        .args(["run", "--local", "2", "--results", "results.jsonl"])
        .args(args)
        .arg("jobs.jsonl");
    command
}

#[track_caller]
fn run(place: &Cluster, args: &[&str]) -> Finished {
    programs::run(command(place, args), place.dir(), "", LIMIT * 2)
}

fn write(place: &Cluster, jobs: &[Value]) {
    let lines: String = jobs.iter().map(|job| format!("{job}\n")).collect();
    place.write("jobs.jsonl", &lines);
}

/// The whole lines of the results.
fn results(path: &Path) -> Vec<Value> {
    let text = fs::read_to_string(path).unwrap_or_default();
    text.split_inclusive('\n')
        .filter(|line| line.ends_with('\n'))
        .map(|line| serde_json::from_str(line).unwrap_or_else(|_| panic!("not JSON: {line}")))
        .collect()
}

/// The commands that this run ended, in the order of the alphabet.
fn ended(run: &Finished) -> Vec<String> {
    let mut ended: Vec<String> = run
        .json_lines()
        .iter()
        .map(|line| line["cmd"].as_str().unwrap().to_owned())
        .collect();
    ended.sort();
    ended
}

#[test]
fn only_what_is_not_there_failed_or_changed() {
    let place = place();
    let mut jobs = vec![
        json!({"cmd": "true"}),
        json!({"cmd": "test -e flag"}),
        json!({"cmd": "echo same >> same"}),
        json!({"cmd": "echo same >> same"}),
    ];
    write(&place, &jobs);
    let first = run(&place, &[]);
    assert_eq!((first.code(), ended(&first).len()), (1, 4));
    assert_eq!(place.read("same"), "same\nsame\n");
    // What failed.
    place.write("flag", "");
    let second = run(&place, &[]).ok();
    assert_eq!(ended(&second), ["test -e flag"]);
    assert!(
        second
            .stderr
            .contains("3 of 4 jobs have their results already"),
        "{}",
        second.stderr
    );
    // Nothing is left: no cluster is started.
    let mut third = command(&place, &[]);
    third.env("PATH", "/nowhere");
    let third = programs::run(third, place.dir(), "", LIMIT).ok();
    assert_eq!(third.stdout, "");
    // What is new, what has changed, and one more of the same.
    jobs[0] = json!({"cmd": "true", "n": 1});
    jobs.push(json!({"cmd": "echo new"}));
    jobs.push(json!({"cmd": "echo same >> same"}));
    write(&place, &jobs);
    let fourth = run(&place, &[]).ok();
    assert_eq!(ended(&fourth), ["echo new", "echo same >> same", "true"]);
    assert_eq!(place.read("same"), "same\n".repeat(3));
    // The same jobs as a stream.
    let lines = place.read("jobs.jsonl");
    let mut stream = place.bare("ipclient");
    stream.args(["run", "--local", "1", "--results", "results.jsonl"]);
    let fifth = programs::run(
        stream,
        place.dir(),
        &(lines + "{\"cmd\": \"echo last\"}\n"),
        LIMIT,
    );
    assert_eq!(ended(&fifth.ok()), ["echo last"]);
    assert_eq!(results(&place.path("results.jsonl")).len(), 4 + 1 + 3 + 1);
}

#[test]
fn what_is_run_again_can_be_chosen() {
    let place = place();
    write(&place, &[json!({"cmd": "true"}), json!({"cmd": "false"})]);
    assert_eq!(run(&place, &[]).code(), 1);
    let again = |which: &str| {
        let run = run(&place, &["--rerun", which]);
        assert_eq!(run.code(), 1, "one has failed, now or before");
        ended(&run)
    };
    assert_eq!(again("ok"), ["true"]);
    assert_eq!(again("failed"), ["false"]);
    assert_eq!(again("all"), ["false", "true"]);
    assert_eq!(again("none"), [""; 0]);
    let alone = place.bare("ipclient");
    let mut alone = alone;
    alone.args(["run", "--rerun", "all", "jobs.jsonl"]);
    let refused = programs::run(alone, place.dir(), "", LIMIT);
    assert!(
        refused.code() == 2 && refused.stderr.contains("--results"),
        "{}",
        refused.stderr
    );
}

#[test]
fn dependencies_on_what_is_done_are_met() {
    let place = place();
    let jobs = [
        json!({"id": "c", "cmd": "cat b > c", "after": ["b"]}),
        json!({"id": "a", "cmd": "echo a >> a"}),
        json!({"id": "b", "cmd": "test -e flag && cat a > b", "after": ["a"]}),
        json!({"id": "mourn", "cmd": "echo sad >> sad", "after": ["b"], "on": "failure"}),
    ];
    write(&place, &jobs);
    assert_eq!(run(&place, &[]).code(), 1);
    assert_eq!(place.read("sad"), "sad\n");
    place.write("flag", "");
    let again = run(&place, &[]).ok();
    assert_eq!(ended(&again), ["cat b > c", "test -e flag && cat a > b"]);
    assert_eq!(place.read("c"), "a\n");
    // A new job that waits for a failure which did not happen cannot run, nor can what waits for it.
    let mut more = jobs.to_vec();
    more.push(json!({"id": "x", "cmd": "touch x", "after": ["b"], "on": "failure"}));
    more.push(json!({"id": "y", "cmd": "touch y", "after": ["x"]}));
    more.push(json!({"id": "z", "cmd": "touch z", "after": ["x", "b"], "any": true}));
    write(&place, &more);
    let impossible = run(&place, &[]);
    assert_eq!(impossible.code(), 1);
    for line in impossible.json_lines() {
        let error = line["result"]["error"].as_str().unwrap_or("");
        assert_eq!(
            error.starts_with("ImpossibleDependency"),
            line["id"] != "z",
            "{line}"
        );
    }
    assert!(!place.path("x").exists() && !place.path("y").exists() && place.path("z").exists());
}

/// Killed again and again, its results cut in the middle of a line, and in the end all is done; what had its result
/// was not run again.
#[test]
fn kill_9_loses_nothing() {
    const JOBS: usize = 400;
    let place = place();
    fs::create_dir(place.path("ran")).unwrap();
    let jobs: Vec<Value> = (0..JOBS)
        .map(|n| json!({"cmd": format!("echo x >> ran/{n}; sleep 0.01"), "n": n}))
        .collect();
    write(&place, &jobs);
    let path = place.path("results.jsonl");
    let ran = |n: u64| {
        fs::read_to_string(place.path("ran").join(n.to_string())).map_or(0, |text| text.len() / 2)
    };
    let mut kills = 0;
    for more in [1, 17, 60, 3] {
        let before = results(&path).len();
        let mut client = Program::spawn(command(&place, &[]), place.dir());
        eventually("some results", LIMIT, || {
            assert!(client.running(), "{}", client.stderr());
            (results(&path).len() >= before + more).then_some(())
        });
        client.kill();
        kills += 1;
        // Its cluster ends with it: nobody else runs jobs when the next one begins.
        eventually("the private cluster to end", LIMIT, || {
            place.processes().is_empty().then_some(())
        });
        let known = results(&path);
        let counts: BTreeMap<u64, usize> = known
            .iter()
            .map(|line| line["n"].as_u64().unwrap())
            .map(|n| (n, ran(n)))
            .collect();
        assert_eq!(counts.len(), known.len(), "a job has two results");
        // As if the machine had stopped while the next one was written.
        let mut text = fs::read(&path).unwrap();
        let line = format!("{}\n", known[0]);
        text.extend(&line.as_bytes()[..line.len() * kills / 5]);
        fs::write(&path, &text).unwrap();
        let mut client = Program::spawn(command(&place, &[]), place.dir());
        eventually("the next results", LIMIT, || {
            assert!(client.running(), "{}", client.stderr());
            let text = fs::read_to_string(&path).unwrap();
            (text.lines().count() > known.len() + 1).then_some(())
        });
        client.kill();
        eventually("the private cluster to end", LIMIT, || {
            place.processes().is_empty().then_some(())
        });
        assert!(client.stderr().contains("was cut"), "{}", client.stderr());
        for (n, count) in counts {
            assert_eq!(ran(n), count, "job {n} had its result and ran again");
        }
    }
    run(&place, &[]).ok();
    let lines = results(&path);
    assert_eq!(lines.len(), JOBS, "one result for each job");
    let seen: std::collections::BTreeSet<u64> = lines
        .iter()
        .map(|line| line["n"].as_u64().unwrap())
        .collect();
    assert!(seen.len() == JOBS && (0..JOBS as u64).all(|n| ran(n) > 0));
}

#[test]
fn one_run_at_a_time_and_no_other_file() {
    let place = place();
    write(
        &place,
        &[json!({"cmd": "until [ -e go ]; do sleep 0.05; done"})],
    );
    let first = Program::spawn(command(&place, &[]), place.dir());
    eventually("the results' file", LIMIT, || {
        place.path("results.jsonl").exists().then_some(())
    });
    let refused = eventually("the lock", LIMIT, || {
        let second = run_briefly(&place);
        second
            .stderr
            .contains("another `ipclient run`")
            .then_some(second)
    });
    assert_eq!((refused.code(), refused.stderr.lines().count()), (2, 1));
    place.write("go", "");
    first.finish(LIMIT).ok();
    run(&place, &[]).ok();
    for (text, words) in [
        ("notes of mine\n", "not a result line"),
        ("{\"cmd\": \"true\"}\n", "not a result line"),
        ("notes", "neither a result line"),
    ] {
        place.write("results.jsonl", text);
        let refused = run_briefly(&place);
        assert_eq!((refused.code(), refused.stderr.lines().count()), (2, 1));
        assert!(refused.stderr.contains(words), "{}", refused.stderr);
        assert_eq!(place.read("results.jsonl"), text);
    }
    for path in ["jobs.jsonl", "/dev/null", "/no/such/dir/results", "."] {
        let mut other = place.bare("ipclient");
        other.args(["run", "jobs.jsonl", "--results", path]);
        let refused = programs::run(other, place.dir(), "", LIMIT);
        assert_eq!(
            (refused.code(), refused.stderr.lines().count()),
            (2, 1),
            "{path}"
        );
        assert!(refused.stderr.contains(path), "{}", refused.stderr);
    }
}

/// Without a cluster: it is refused before it would need one, or does not find one.
fn run_briefly(place: &Cluster) -> Finished {
    let mut command = place.command("ipclient");
    command.args(["run", "jobs.jsonl", "--results", "results.jsonl"]);
    programs::run(command, place.dir(), "", LIMIT)
}

#[test]
fn what_is_up_to_date_is_not_run() {
    let place = place();
    place.write("in", "1\n");
    write(
        &place,
        &[
            json!({"id": "a", "cmd": "cat in > a; echo a >> ran", "creates": "a", "needs": ["in"]}),
            json!({"id": "b", "cmd": "cat a a > b; echo b >> ran", "creates": ["b"], "needs": "a", "after": ["a"]}),
            json!({"id": "c", "cmd": "echo c >> ran", "creates": "c", "needs": ["nowhere"]}),
        ],
    );
    let run = |rerun: bool| {
        let mut command = place.bare("ipclient");
        command.args(["run", "--local", "2", "jobs.jsonl"]);
        let run = programs::run(command, place.dir(), "", LIMIT * 2);
        assert_eq!(run.code(), 1, "{}", run.stderr);
        let lines = run.json_lines();
        let of = |id: &str| lines.iter().find(|line| line["id"] == id).unwrap()["result"].clone();
        let error = of("c")["error"].as_str().unwrap().to_owned();
        assert!(error.contains("nowhere"), "{error}");
        for id in ["a", "b"] {
            let result = of(id);
            assert_eq!(result["code"], 0, "{result}");
            assert_eq!(result["up_to_date"] == true, !rerun, "{id}: {result}");
        }
        place.read("ran")
    };
    assert_eq!(run(true), "a\nb\n");
    assert_eq!(run(false), "a\nb\n");
    // What its input is older than is made again, and what is made of it.
    place.write("in", "2\n");
    assert_eq!(run(true), "a\nb\na\nb\n");
    assert_eq!(place.read("b"), "2\n2\n");
}

/// Half a file has the time of a whole one.
#[test]
fn what_a_failed_job_leaves_is_not_up_to_date() {
    let place = place();
    let jobs = [
        json!({"id": "retried", "creates": "a", "retries": 1,
            "cmd": "echo half > a; test -e failed || { touch failed; exit 3; }; echo whole > a"}),
        json!({"id": "crashed", "creates": "b", "max_crashes": 1,
            "cmd": "echo half > b; test -e crashed || { touch crashed; kill -9 $PPID; sleep 60; }; echo whole > b"}),
        json!({"id": "stopped", "creates": "c", "limit": {"time": 0.3},
            "cmd": "echo half > c; test -e stopped || { touch stopped; sleep 60; }; echo whole > c"}),
    ];
    write(&place, &jobs);
    let run = || {
        let mut command = place.bare("ipclient");
        command.args(["run", "--local", "1", "jobs.jsonl"]);
        programs::run(command, place.dir(), "", LIMIT * 2)
    };
    let first = run();
    assert_eq!(first.code(), 1, "{}", first.stderr);
    assert_eq!(
        ["a", "b", "c"].map(|name| place.read(name)),
        ["whole\n", "whole\n", "half\n"],
        "{}",
        first.stdout
    );
    let second = run().ok();
    for line in second.json_lines() {
        let up_to_date = line["result"]["up_to_date"] == true;
        assert_eq!(up_to_date, line["id"] != "stopped", "{line}");
    }
    assert_eq!(place.read("c"), "whole\n");
}

/// A client that is killed takes its private cluster along: the half files of what ran are known as such.
#[test]
fn half_files_of_a_killed_run_are_made_again() {
    let place = place();
    let job = "echo half > a; test -e begun || { touch begun; sleep 60; }; echo whole > a";
    write(&place, &[json!({"cmd": job, "creates": "a"})]);
    let mut killed = Program::spawn(command(&place, &[]), place.dir());
    eventually("the job to begin", LIMIT, || {
        place.path("begun").exists().then_some(())
    });
    killed.kill();
    eventually("the private cluster to end", LIMIT, || {
        place.processes().is_empty().then_some(())
    });
    run(&place, &[]).ok();
    assert_eq!(place.read("a"), "whole\n");
}

#[test]
fn the_first_failure_may_be_the_last() {
    let place = place();
    let jobs: Vec<Value> = (0..40)
        .map(|n| json!({"cmd": format!("echo {n} >> ran; sleep 0.05; test {n} != 2"), "n": n}))
        .collect();
    write(&place, &jobs);
    let stopped = run(&place, &["--on-fail", "stop"]);
    assert_eq!(stopped.code(), 1);
    let ran = place.read("ran").lines().count();
    assert!((3..40).contains(&ran), "{ran} jobs ran");
    // What ran has its result, what did not has none.
    assert_eq!(stopped.json_lines().len(), ran, "{}", stopped.stderr);
    assert!(
        stopped.stderr.contains("no more jobs are started"),
        "{}",
        stopped.stderr
    );
    let killed = run(&place, &["--on-fail", "kill"]);
    assert_eq!(killed.code(), 1);
    // The next one does what was dropped.
    assert_eq!(run(&place, &[]).code(), 1);
    let mut ok: Vec<u64> = results(&place.path("results.jsonl"))
        .iter()
        // One that was killed as it ended has code 0, too, and is done again.
        .filter(|line| line["result"]["status"] == "ok" && line["result"]["code"] == 0)
        .map(|line| line["n"].as_u64().unwrap())
        .collect();
    ok.sort_unstable();
    assert_eq!(ok, (0..40).filter(|n| *n != 2).collect::<Vec<_>>());
}

#[test]
fn failures_are_told_at_the_end() {
    let place = place();
    let mut jobs: Vec<Value> = (1..=7)
        .map(|n| json!({"cmd": format!("echo first >&2; echo 'last words of {n}' >&2; exit {n}")}))
        .collect();
    jobs.push(json!({"cmd": "echo into a file >&2; exit 9", "err": "e"}));
    jobs.push(json!({"cmd": "true"}));
    write(&place, &jobs);
    let failed = run(&place, &["--capture"]);
    assert_eq!(failed.code(), 1);
    let told = failed
        .stderr
        .split_once("ipclient: 8 of 9 jobs failed\n")
        .expect("it is told")
        .1;
    // The first five that ended, each with its last line: which those are is not said, as two engines work.
    let lines: Vec<&str> = told.lines().collect();
    let shown: Vec<&[&str]> = lines
        .chunks(2)
        .take_while(|pair| pair[0].starts_with("  line "))
        .collect();
    assert_eq!(shown.len(), 5, "{told}");
    for pair in shown {
        let words = match pair[0].split_once("'last words of ") {
            Some((_, rest)) => format!("last words of {}", &rest[..1]),
            None => "into a file".to_owned(),
        };
        assert_eq!(pair[1].trim(), words, "{told}");
    }
    assert!(
        told.contains("exit status") && told.contains("and 3 more"),
        "{told}"
    );
    assert!(told.contains("the same command once more"), "{told}");
    // The same command would not run them.
    let others = run(&place, &["--rerun", "all"]);
    assert!(
        others
            .stderr
            .contains("the same command with --rerun failed"),
        "{}",
        others.stderr
    );
    // In files, when the output is not captured, and on a terminal anyway.
    write(&place, &jobs[6..]);
    let files = run(&place, &["--rerun", "all"]);
    assert!(
        files.stderr.contains("      into a file\n"),
        "{}",
        files.stderr
    );
    assert!(
        !files.stderr.contains("      last words"),
        "{}",
        files.stderr
    );
    let line = format!(
        "'{}' run --local 1 jobs.jsonl > out",
        programs::program("ipclient").display()
    );
    let mut terminal = Command::new("script");
    terminal
        .args(["-qefc", &line, "typescript"])
        .current_dir(place.dir())
        .env("TERM", "xterm");
    let shown = programs::run(terminal, place.dir(), "", LIMIT);
    assert_eq!(shown.code(), 1, "{}", shown.stdout);
    assert!(
        shown.stdout.contains("last words of 7\r\n  line"),
        "{}",
        shown.stdout
    );
    // Nothing of theirs changes the terminal.
    write(
        &place,
        &[json!({"cmd": "tput -T xterm setaf 1 >&2; printf 'in red\\a' >&2; false"})],
    );
    let red = run(&place, &["--capture"]);
    assert!(red.stderr.contains("\n      in red\n"), "{:?}", red.stderr);
    // What was looked at is not part of the result.
    assert!(
        !place.read("out").contains("stderr"),
        "{}",
        place.read("out")
    );
}

#[test]
fn the_end_is_notified() {
    let place = place();
    write(&place, &[json!({"cmd": "true"}), json!({"cmd": "false"})]);
    let notify = "echo $IPBROKER_JOBS $IPBROKER_FAILED $IPBROKER_STATUS > told; echo said";
    let failed = run(&place, &["--notify", notify]);
    assert_eq!(failed.json_lines().len(), 2, "only results on stdout");
    assert_eq!(
        (
            place.read("told").as_str(),
            failed.stderr.contains("said\n")
        ),
        ("2 1 1\n", true)
    );
    let bad = run(&place, &["--rerun", "none", "--notify", "exit 3"]);
    assert!(bad.stderr.contains("--notify"), "{}", bad.stderr);
}

/// On a shared cluster the jobs of the killed client would run on beside the new ones.
#[test]
fn what_a_killed_run_has_left_is_stopped() {
    let cluster = Cluster::with_engines(1);
    write(
        &cluster,
        &[
            json!({"cmd": "true"}),
            json!({"cmd": "echo $$ >> pids; [ -e go ] || sleep 600"}),
        ],
    );
    let args = ["run", "jobs.jsonl", "--results", "results.jsonl"];
    let mut first = cluster.start_client(&args);
    let pids = || fs::read_to_string(cluster.path("pids")).unwrap_or_default();
    eventually("the second job", LIMIT, || {
        (!pids().is_empty()).then_some(())
    });
    eventually("the first result", LIMIT, || {
        (results(&cluster.path("results.jsonl")).len() == 1).then_some(())
    });
    first.kill();
    cluster.write("go", "");
    // The only engine is free again at once.
    let again = cluster.client(&args).ok();
    assert_eq!(again.json_lines().len(), 1);
    assert_eq!(pids().lines().count(), 2);
    let old = pids().lines().next().unwrap().to_owned();
    assert!(!Path::new("/proc").join(old).exists());
}
