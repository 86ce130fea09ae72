//! `ipclient map` beside GNU parallel: the same commands, the same output.

use std::{fs, path::Path, process::Command};

use ipbroker_tests::{Cluster, Finished, LIMIT, eventually, programs};
use rustix::process::Signal;

const COMMANDS: &str = include_str!("parallel.sh");

/// The directory that the commands expect.
fn prepare(dir: &Path) {
    let _ = fs::remove_dir_all(dir);
    fs::create_dir_all(dir.join("d")).unwrap();
    for (name, text) in [
        ("nums", "1\n2\n3\n"),
        ("letters", "a\nb\nc\n"),
        ("words", "a b\nc d\n"),
        ("table.csv", "x,y\n1,2\n3,4\n"),
        ("d/a.tar.gz", ""),
        ("d/b.txt", ""),
    ] {
        fs::write(dir.join(name), text).unwrap();
    }
}

/// Runs a line of bash in which P is `program`.
fn bash(cluster: &Cluster, program: &str, line: &str) -> Finished {
    let dir = cluster.path("work");
    prepare(&dir);
    let script = format!(
        "fun() {{ echo \"fun $*\"; }}\nexport -f fun\nP() {{ {program} \"$@\"; }}\n{line}\n"
    );
    let mut command = Command::new("bash");
    command
        .args(["-c", &script])
        .current_dir(&dir)
        .env("HOME", cluster.path("home"))
        .env("LC_ALL", "C.UTF-8")
        .env("X", "the value of X");
    programs::run(command, cluster.dir(), "", LIMIT)
}

/// Each is a few hundred programs: three tests, each with a third of the lines.
#[test]
fn prints_what_gnu_parallel_prints() {
    compare(0);
}

#[test]
fn prints_what_gnu_parallel_prints_too() {
    compare(1);
}

#[test]
fn prints_what_gnu_parallel_prints_as_well() {
    compare(2);
}

fn compare(part: usize) {
    if Command::new("parallel").arg("--version").output().is_err() {
        eprintln!("left out: there is no GNU parallel (scripts/setup installs it)");
        return;
    }
    let cluster = Cluster::with_engines(2);
    // It asks to be cited, once.
    fs::create_dir_all(cluster.path("home/.parallel")).unwrap();
    fs::write(cluster.path("home/.parallel/will-cite"), "").unwrap();
    let map = format!(
        "'{}' --profile-dir '{}' map",
        programs::program("ipclient").display(),
        cluster.profile().display()
    );
    let lines: Vec<&str> = COMMANDS
        .lines()
        .filter(|line| !line.is_empty() && !line.starts_with('#'))
        .collect();
    assert!(lines.len() > 60);
    for line in lines.into_iter().skip(part).step_by(3) {
        let theirs = bash(&cluster, "parallel -j2", line);
        let ours = bash(&cluster, &map, line);
        assert!(
            !theirs.stdout.is_empty(),
            "{line} prints nothing: {}",
            theirs.stderr
        );
        assert_eq!(ours.stdout, theirs.stdout, "{line}\n{}", ours.stderr);
    }
}

/// A job log begun by either is gone on with by the other.
#[test]
fn a_job_log_is_readable_by_both() {
    if Command::new("parallel").arg("--version").output().is_err() {
        return;
    }
    let cluster = Cluster::with_engines(2);
    fs::create_dir_all(cluster.path("home/.parallel")).unwrap();
    fs::write(cluster.path("home/.parallel/will-cite"), "").unwrap();
    let map = format!(
        "'{}' --profile-dir '{}' map",
        programs::program("ipclient").display(),
        cluster.profile().display()
    );
    let line = "P -k --joblog log 'test {} != 1' ::: 0 1; Q -k --joblog log --resume-failed 'echo {}' ::: 0 1 2; \
                P -k --joblog log --resume 'echo {}' ::: 0 1 2 3 4; Q -k --joblog log --resume 'echo {}' ::: 0 1 2 3 4 5";
    for (first, second) in [("parallel -j2", &map[..]), (&map[..], "parallel -j2")] {
        let line = format!("Q() {{ {second} \"$@\"; }}\n{line}");
        let run = bash(&cluster, first, &line);
        assert_eq!(run.stdout, "1\n2\n3\n4\n5\n", "{first}: {}", run.stderr);
    }
}

#[test]
fn killed_and_resumed() {
    let cluster = Cluster::with_engines(2);
    let args = [
        "map",
        "--joblog",
        "log",
        "--resume",
        "echo {} >> ran; sleep 0.02",
        ":::",
    ];
    let numbers: Vec<String> = (1..=100).map(|n| n.to_string()).collect();
    let all: Vec<&str> = args
        .into_iter()
        .chain(numbers.iter().map(String::as_str))
        .collect();
    let mut first = cluster.start_client(&all);
    let logged = || fs::read_to_string(cluster.path("log")).map_or(0, |log| log.lines().count());
    eventually("some jobs in the log", LIMIT, || {
        (logged() > 10).then_some(())
    });
    first.kill();
    let before: Vec<String> = cluster
        .read("log")
        .lines()
        .skip(1)
        .map(str::to_owned)
        .collect();
    // As if it had been killed while it wrote the next line.
    let log = cluster.read("log") + "77\tvm\t17959";
    cluster.write("log", &log);
    // The controller still stops what the first one had left.
    cluster.client(&["abort", "--all"]);
    cluster.client(&all).ok();
    let log = cluster.read("log");
    let mut seqs: Vec<u64> = log
        .lines()
        .skip(1)
        .map(|line| line.split('\t').next().unwrap().parse().unwrap())
        .collect();
    seqs.sort_unstable();
    assert_eq!(
        seqs,
        (1..=100).collect::<Vec<u64>>(),
        "each job is logged once"
    );
    let ran = cluster.read("ran");
    for line in before {
        let number = line.split('\t').next().unwrap();
        assert_eq!(
            ran.lines().filter(|ran| *ran == number).count(),
            1,
            "{line}"
        );
    }
}

#[test]
fn what_was_stopped_has_not_ended() {
    let cluster = Cluster::with_engines(2);
    let run = |how: &str| {
        let mut args = vec!["map", "--joblog", "log", how];
        args.extend(["[ -e go ] || { touch ran; sleep 600; }; echo {} >> ended"]);
        args.extend([":::", "a", "b", "c"]);
        cluster.start_client(&args)
    };
    let stopped = run("--resume");
    eventually("a job that runs", LIMIT, || {
        cluster.path("ran").exists().then_some(())
    });
    stopped.signal(Signal::INT);
    assert_eq!(stopped.finish(LIMIT).code(), 130);
    cluster.write("go", "");
    run("--resume").finish(LIMIT).ok();
    let ended = cluster.read("ended");
    let mut ended: Vec<&str> = ended.lines().collect();
    ended.sort_unstable();
    assert_eq!(ended, ["a", "b", "c"]);
}

#[test]
fn results_of_long_arguments_have_names_of_their_own() {
    let cluster = Cluster::with_engines(1);
    let long = "é".repeat(200);
    let args = ["map", "--results", "out", "echo {#}", ":::", "a"];
    let [one, two] = ["1", "2"].map(|end| long.clone() + end);
    cluster.client(&[&args[..], &[&one, &two]].concat()).ok();
    assert_eq!(cluster.read("out/1/a/stdout"), "1\n");
    for number in [2, 3] {
        let name = format!("out/1/{}~{number}/stdout", "é".repeat(126));
        assert_eq!(cluster.read(&name), format!("{number}\n"));
    }
}

#[test]
fn what_cannot_be_is_said_in_one_line() {
    let place = Cluster::builder().prepare();
    place.write("notes", "my notes\n");
    for (args, word) in [
        (&["echo", "::::", "/no/such/file"][..], "/no/such/file"),
        (&["-N", "x", "echo", ":::", "a"], "--max-args"),
        (&["--halt", "later,fail=1", "echo", ":::", "a"], "--halt"),
        (&["--colsep", "(", "echo", ":::", "a"], "--colsep"),
        (&["--resume", "echo", ":::", "a"], "--joblog"),
        (
            &["--joblog", "notes", "--resume", "echo", ":::", "a"],
            "notes",
        ),
        (
            &["--joblog", "/no/such/dir/log", "echo", ":::", "a"],
            "/no/such/dir/log",
        ),
        (
            &["--shuf", "--joblog", "log", "--resume", "echo", ":::", "a"],
            "--shuf",
        ),
        (&["-j", "half", "echo", ":::", "a"], "map --help"),
        (&["-q", "perl", "-e", "1", ":::", "a"], "quote the command"),
        (&["--tags=", "echo", ":::", "a"], "--tags"),
        (&["--pipe", "cat", ":::", "a"], "--pipe"),
        (&["--pipe"], "--pipe"),
        (&["--block", "1M", "cat"], "--pipe"),
        (&["--pipe", "--block", "0", "cat"], "--block"),
        (&["--cleanup", "echo", ":::", "a"], "--cleanup"),
        (&["--env", "_", "echo", ":::", "a"], "--env"),
        (&["-j", "0%", "echo", ":::", "a"], "--jobs"),
        (&["wc", "-l", "2", ":::", "a"], "quote the command"),
        (&["--header", "x", "echo", ":::", "a"], "--header"),
        (&["-d", "", "echo", ":::", "a"], "--delimiter"),
        (&["echo", "::::", "-", "-"], "once"),
    ] {
        let mut command = place.command("ipclient");
        command.arg("map").args(args);
        let run = programs::run(command, place.dir(), "", LIMIT);
        assert_eq!(
            (run.code(), run.stderr.lines().count()),
            (2, 1),
            "{args:?}: {}",
            run.stderr
        );
        assert!(run.stderr.contains(word), "{args:?}: {}", run.stderr);
    }
    assert_eq!(place.read("notes"), "my notes\n");
    assert!(!place.path("log").exists());
}

#[test]
fn files_go_and_come() {
    let cluster = Cluster::with_engines(2);
    cluster.write("a.in", "one\n");
    cluster.write("b.in", "two\n");
    cluster
        .client(&[
            "map",
            "--trc",
            "{.}.out",
            "test -e {} && ls > seen && cat seen > {.}.out && tr a-z A-Z < {} >> {.}.out",
            ":::",
            "a.in",
            "b.in",
        ])
        .ok();
    // Each has seen its own file only, in a directory of its own.
    assert_eq!(cluster.read("a.out"), "a.in\nseen\nONE\n");
    assert_eq!(cluster.read("b.out"), "b.in\nseen\nTWO\n");
    assert!(!cluster.path("seen").exists());
}

#[test]
fn a_delay_and_a_limit_on_jobs_are_kept() {
    let cluster = Cluster::with_engines(3);
    fs::create_dir(cluster.path("running")).unwrap();
    let run = cluster
        .client(&[
            "map",
            "-j1",
            "-k",
            "ls running | wc -l; touch running/{}; sleep 0.1; rm running/{}",
            ":::",
            "a",
            "b",
            "c",
        ])
        .ok();
    assert_eq!(run.stdout, "0\n0\n0\n", "only one at a time");
    let run = cluster
        .client(&[
            "map",
            "--delay",
            "0.4",
            "-N0",
            "-k",
            "date +%s%N",
            ":::",
            "a",
            "b",
            "c",
        ])
        .ok();
    let times: Vec<u64> = run
        .stdout
        .lines()
        .map(|line| line.split(' ').next().unwrap().parse().unwrap())
        .collect();
    assert!(
        times.windows(2).all(|two| two[1] - two[0] > 200_000_000),
        "{times:?}"
    );
}

/// Whole lines of jobs that run, each with its tag, and nothing twice.
#[test]
fn lines_are_printed_as_they_come() {
    let cluster = Cluster::with_engines(2);
    let script = "echo begun; printf 'half a '; echo oops >&2; until [ -e go ]; do sleep 0.05; done; echo line; \
                  printf '\\377\\nend'";
    let mut expected = Vec::new();
    for options in [
        &["-u", "--tag"][..],
        &["-u", "--tag", "-j2"],
        &["-u", "--tag", "-k"],
    ] {
        let _ = fs::remove_file(cluster.path("go"));
        let args = [&["map"], options, &[script, ":::", "a", "b"]].concat();
        let run = cluster.start_client(&args);
        let first = if options.contains(&"-k") {
            "a\tbegun\n"
        } else {
            "b\tbegun\n"
        };
        eventually("what they have begun with", LIMIT, || {
            (run.stdout().contains(first) && run.stderr().contains("a\toops\n")).then_some(())
        });
        assert!(!run.stdout().contains("half"));
        cluster.write("go", "");
        let run = run.finish(LIMIT).ok();
        let mut lines: Vec<&str> = run.stdout.split_inclusive('\n').collect();
        assert_eq!(run.stderr.matches("oops").count(), 2, "{}", run.stderr);
        if options.contains(&"-k") {
            expected.extend(["a", "b"].map(|tag| {
                format!("{tag}\tbegun\n{tag}\thalf a line\n{tag}\t\u{fffd}\n{tag}\tend")
            }));
            assert_eq!(run.stdout, expected.concat());
        } else {
            lines.sort_unstable();
            assert_eq!(
                run.stdout.matches("half a line\n").count(),
                2,
                "{}",
                run.stdout
            );
            assert_eq!(run.stdout.matches("begun\n").count(), 2, "{}", run.stdout);
        }
    }
}

#[test]
fn halt_now_stops_what_runs() {
    let cluster = Cluster::with_engines(2);
    let run = cluster.client(&[
        "map",
        "--halt",
        "now,fail=1",
        ":::",
        "sleep 600",
        "sleep 0.2; exit 5",
        "touch never; sleep 600",
    ]);
    assert_eq!(run.code(), 5, "{}", run.stderr);
    assert!(
        run.stderr.contains("no more jobs are started") && run.took < LIMIT,
        "{}",
        run.stderr
    );
}

/// What jobs print stands on lines of its own, the progress bar below it.
#[test]
fn the_bar_is_out_of_the_way_of_the_output() {
    let cluster = Cluster::with_engines(1);
    let line = format!(
        "stty rows 24 cols 100; exec '{}' --profile-dir '{}' map 'sleep 0.3; echo out{{}}; echo err{{}} >&2' ::: 1 2 3",
        programs::program("ipclient").display(),
        cluster.profile().display()
    );
    // From util-linux: runs a command in a terminal of its own.
    let mut command = Command::new("script");
    command
        .args(["-qec", &line, "/dev/null"])
        .env("TERM", "xterm");
    let screen = programs::run(command, cluster.dir(), "", LIMIT).ok().stdout;
    for number in 1..=3 {
        // The line was cleared, or is new.
        let out = format!("\u{1b}[2Kout{number}\r\nerr{number}\r\n");
        assert!(screen.contains(&out), "{out:?} is not in {screen:?}");
    }
}
