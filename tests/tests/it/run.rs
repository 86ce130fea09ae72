//! `ipclient run`: job lines in, the same lines with results out (document 000).

use std::{fs, io::Write, process::Stdio, time::Duration};

use ipbroker_protocol::time;
use ipbroker_tests::{
    Cluster, Finished, LIMIT, eventually,
    programs::{self, Program},
};
use rustix::process::Signal;
use serde_json::{Value, json};

/// A directory without a cluster; `run --local` brings its own.
fn place() -> Cluster {
    Cluster::builder().prepare()
}

/// `ipclient run --local 2 ARGS jobs.jsonl`.
#[track_caller]
fn local(place: &Cluster, args: &[&str], jobs: &[Value]) -> Finished {
    let lines: String = jobs.iter().map(|job| format!("{job}\n")).collect();
    place.write("jobs.jsonl", &lines);
    let mut command = place.bare("ipclient");
    command
        .args(["run", "--local", "2"])
        .args(args)
        .arg("jobs.jsonl");
    programs::run(command, place.dir(), "", LIMIT * 2)
}

/// The result of the job with this command.
#[track_caller]
fn result<'a>(lines: &'a [Value], cmd: &str) -> &'a Value {
    let line = lines.iter().find(|line| line["cmd"] == cmd);
    &line.unwrap_or_else(|| panic!("no result for {cmd:?} in {lines:#?}"))["result"]
}

/// `2014-12-13T01:17:05.593718`, or without a fraction.
fn is_isoformat(value: &Value) -> bool {
    let text = value.as_str().unwrap_or_default();
    let shape: String = text
        .chars()
        .map(|c| if c.is_ascii_digit() { '9' } else { c })
        .collect();
    shape == "9999-99-99T99:99:99.999999" || shape == "9999-99-99T99:99:99"
}

/// `0:00:10.006281`, or without a fraction.
fn is_timedelta(value: &Value) -> bool {
    let text = value.as_str().unwrap_or_default();
    let shape: String = text
        .chars()
        .map(|c| if c.is_ascii_digit() { '9' } else { c })
        .collect();
    shape == "9:99:99.999999" || shape == "9:99:99"
}

#[test]
fn four_lines() {
    let place = place();
    let elsewhere = place.path("elsewhere");
    fs::create_dir(&elsewhere).unwrap();
    let jobs = [
        json!({"cmd": "echo one | tr a-z A-Z", "out": "one.out"}),
        json!({"cmd": "false | true"}),
        json!({"cmd": "cat /no/such/file", "err": place.path("cat.err")}),
        json!({"cmd": "pwd", "cd": elsewhere, "out": "pwd.out"}),
    ];
    let run = local(&place, &[], &jobs);
    assert_ne!(run.code(), 0, "two jobs failed");
    let lines = run.json_lines();
    assert_eq!(lines.len(), 4, "{}", run.stdout);
    let codes: Vec<&Value> = jobs
        .iter()
        .map(|job| &result(&lines, job["cmd"].as_str().unwrap())["code"])
        .collect();
    assert_eq!(codes, [0, 1, 1, 0]);
    assert_eq!(place.read("one.out"), "ONE\n");
    assert!(place.read("cat.err").contains("/no/such/file"));
    // `out` is relative to `cd`, as the shell has it.
    let written = fs::read_to_string(elsewhere.join("pwd.out"))
        .or_else(|_| fs::read_to_string(place.path("pwd.out")));
    assert_eq!(
        written.unwrap().trim(),
        elsewhere.canonicalize().unwrap().to_str().unwrap()
    );
    for line in &lines {
        let result = &line["result"];
        for key in [
            "code",
            "submitted",
            "started",
            "completed",
            "received",
            "elapsed",
            "engine_id",
            "host",
        ] {
            assert!(!result[key].is_null(), "{key} in {line}");
        }
        for key in ["pyerr", "pyout", "status", "msg_id", "error"] {
            assert!(result.get(key).is_some(), "{key} in {line}");
        }
        assert_eq!(result["status"], "ok");
        for key in ["submitted", "started", "completed", "received"] {
            assert!(is_isoformat(&result[key]), "{key} in {line}");
        }
        assert!(is_timedelta(&result["elapsed"]), "{line}");
        assert!(
            result["started"].as_str() <= result["completed"].as_str(),
            "{line}"
        );
    }
    // The keys that went in come out, in their order and first.
    let line = run
        .stdout
        .lines()
        .find(|line| line.contains("one.out"))
        .unwrap();
    assert!(
        line.starts_with(r#"{"cmd":"echo one | tr a-z A-Z","out":"one.out", "result": {"#),
        "{line}"
    );
}

#[test]
fn the_working_directory_is_the_clients() {
    let place = place();
    let run = local(&place, &["--capture"], &[json!({"cmd": "pwd"})]).ok();
    let lines = run.json_lines();
    assert_eq!(
        lines[0]["result"]["stdout"].as_str().unwrap().trim(),
        place.dir().canonicalize().unwrap().to_str().unwrap()
    );
}

#[test]
fn a_bad_line_in_a_file_submits_nothing() {
    for (bad, what) in [
        ("{\"cmd\": ", "not JSON"),
        ("[1]", "an array"),
        ("{\"cd\": \"/\"}", "no cmd"),
        ("{\"cmd\": 5}", "cmd a number"),
        ("{\"cmd\": \"true\", \"cd\": [1]}", "cd an array"),
    ] {
        let place = place();
        place.write(
            "jobs.jsonl",
            &format!("{}\n\n{bad}\n", json!({"cmd": "touch ran"})),
        );
        let mut command = place.bare("ipclient");
        command.args(["run", "--local", "1", "jobs.jsonl"]);
        let run = programs::run(command, place.dir(), "", LIMIT);
        assert_ne!(run.code(), 0, "{what}");
        assert!(
            run.stderr.contains("jobs.jsonl") && run.stderr.contains('3'),
            "{what}: {}",
            run.stderr
        );
        assert_eq!(run.stdout, "", "{what}");
        assert!(!place.path("ran").exists(), "{what}: the good line was run");
    }
}

#[test]
fn a_bad_line_in_a_stream_gets_a_result() {
    let place = place();
    let mut command = place.bare("ipclient");
    command.args(["run", "--local", "1", "-"]);
    let input = "{\"cmd\": \"true\"}\nnot json\n{\"cmd\": 5}\n{\"cmd\": \"echo x\"}\n{\"cmd\": \"true\",}\n{'cmd': 'true'}\n";
    let run = programs::run(command, place.dir(), input, LIMIT);
    assert_ne!(run.code(), 0);
    let lines = run.json_lines();
    assert_eq!(lines.len(), 6, "{}", run.stdout);
    assert_eq!(
        lines
            .iter()
            .filter(|line| line["result"]["status"] == "ok")
            .count(),
        2,
        "{}",
        run.stdout
    );
    assert_eq!(
        lines
            .iter()
            .filter(|line| line["result"]["error"].is_string())
            .count(),
        4,
        "{}",
        run.stdout
    );
}

#[test]
fn what_waits_for_a_job_that_was_not_run() {
    let place = place();
    let jobs = [
        json!({"id": "a", "cmd": "cat missing", "put": ["missing"]}),
        json!({"id": "b", "cmd": "touch b", "after": ["a"]}),
        json!({"cmd": "touch c", "after": ["b"]}),
        json!({"cmd": "touch d", "after": ["a"], "on": "failure"}),
        json!({"cmd": "touch e", "after": ["a", "z"], "any": true}),
        json!({"cmd": "touch f", "follow": ["a"], "any": true}),
        json!({"id": "z", "cmd": "touch z"}),
    ];
    let input: String = jobs.iter().map(|job| format!("{job}\n")).collect();
    place.write("jobs.jsonl", &input);
    for from in ["jobs.jsonl", "-"] {
        let mut command = place.bare("ipclient");
        command.args(["run", "--local", "2", from]);
        // On a stream what they wait for comes first.
        let input = if from == "-" {
            let (z, others) = jobs.split_last().unwrap();
            let lines = std::iter::once(z).chain(others);
            lines.map(|job| format!("{job}\n")).collect()
        } else {
            String::new()
        };
        let run = programs::run(command, place.dir(), &input, LIMIT);
        assert_ne!(run.code(), 0);
        let lines = run.json_lines();
        for (cmd, key, name) in [
            ("touch b", "after", "a"),
            ("touch c", "after", "b"),
            ("touch f", "follow", "a"),
        ] {
            assert_eq!(
                result(&lines, cmd)["error"],
                format!("ImpossibleDependency: \"{key}\" names {name:?}, which was not run"),
            );
        }
        for name in ["b", "c", "f"] {
            assert!(!place.path(name).exists(), "{name} was run");
        }
        for name in ["d", "e", "z"] {
            fs::remove_file(place.path(name)).unwrap();
        }
    }
}

#[test]
fn a_job_that_is_too_large_fails_alone() {
    let mut place = place();
    place.start_controller_with(&["--max-message=1M", "-n", "1"]);
    let job = |kilobytes: usize| json!({"cmd": "wc -c", "stdin": "x".repeat(kilobytes << 10), "capture": true});
    let mut jobs: Vec<Value> = (0..5).map(|_| job(400)).collect();
    jobs.insert(1, job(2000));
    jobs.push(json!({"cmd": "true", "after": ["large"]}));
    jobs[1]["id"] = json!("large");
    let input: String = jobs.iter().map(|job| format!("{job}\n")).collect();
    let file = place.write("jobs.jsonl", &input);
    let run = place.client(&["run", file.to_str().unwrap()]);
    let lines = run.json_lines();
    assert_eq!(lines.len(), 7, "{}", run.stderr);
    for line in lines {
        let error = line["result"]["error"].as_str().unwrap_or_default();
        match line["id"].as_str() {
            Some(_) => assert!(error.contains("larger --max-message"), "{error}"),
            None if line["cmd"] == "true" => assert!(error.contains("\"large\""), "{error}"),
            None => assert_eq!(line["result"]["stdout"], "409600\n", "{error}"),
        }
    }
    // Handed over one by one: what cannot go is told, and so is what waits for it; the others go.
    let submit = place.client_with(&["submit", "-"], &input, LIMIT);
    assert_eq!((submit.code(), submit.stdout.lines().count()), (1, 5));
    assert!(submit.stderr.contains("stdin:2: ") && submit.stderr.contains("stdin:7: "));
    let ids: Vec<&str> = submit.stdout.lines().collect();
    place.client(&[&["wait"], &ids[..]].concat()).ok();
}

/// All times are by the controller's clock, whatever the client's says.
#[test]
fn a_clients_clock_does_not_matter() {
    let mut place = place();
    place.start_controller_with(&["-n", "1"]);
    for ahead in ["+47s", "-3600s"] {
        let mut command = place.bare("ipclient");
        command
            .env("LD_PRELOAD", "/usr/$LIB/faketime/libfaketimeMT.so.1")
            .env("FAKETIME", ahead)
            .env("FAKETIME_DONT_FAKE_MONOTONIC", "1")
            .args(["run", "--profile-dir"])
            .arg(place.profile())
            .arg("-");
        let run = programs::run(command, place.dir(), "{\"cmd\": \"true\"}\n", LIMIT).ok();
        assert!(!run.stderr.contains("preload"), "{}", run.stderr);
        let printed = run.json_lines().remove(0)["result"].take();
        let id = printed["msg_id"].as_str().unwrap().to_owned();
        let stored = eventually("its record", LIMIT, || {
            let results = place.client(&["results", &id]).json_lines();
            Some(results.first()?["result"].clone())
        });
        for result in [&printed, &stored] {
            let at = |key: &str| {
                let moment = time::parse(result[key].as_str().unwrap());
                moment.unwrap().as_microsecond()
            };
            let spent = at("received") - at("submitted");
            let waited = at("started") - at("submitted");
            assert!((1..30_000_000).contains(&spent), "{ahead}: {result}");
            assert!((0..30_000_000).contains(&waited), "{ahead}: {result}");
        }
    }
}

#[test]
fn results_tell_what_was_run() {
    let mut place = place();
    place.start_controller_with(&["-n", "1"]);
    let input = "{\"cmd\": \"true\", \"priority\": 3}\n{\"cmd\": \"echo a\"}\n{\"cmd\": \"echo b\", \"cd\": \"/\"}\n";
    let file = place.write("jobs.jsonl", input);
    let run = place.client(&["run", file.to_str().unwrap()]).ok();
    let ids: Vec<String> = run
        .json_lines()
        .iter()
        .map(|line| line["result"]["msg_id"].as_str().unwrap().to_owned())
        .collect();
    let ids: Vec<&str> = ids.iter().map(String::as_str).collect();
    let results = place.client(&[&["wait"], &ids[..]].concat()).ok();
    assert_eq!(results.stdout, "");
    let lines = place
        .client(&[&["results"], &ids[..]].concat())
        .ok()
        .json_lines();
    for (printed, stored) in run.json_lines().iter().zip(&lines) {
        assert_eq!(printed["cmd"], stored["cmd"]);
        assert_eq!(printed["result"]["code"], stored["result"]["code"]);
    }
    assert_eq!(lines.iter().filter(|line| line["cd"] == "/").count(), 1);
}

#[test]
fn what_cannot_run_says_why() {
    let place = place();
    let jobs = [
        json!({"cmd": "echo a", "cd": "/no/such/directory"}),
        json!({"cmd": "echo b", "out": "/no/such/directory/out"}),
        json!({"cmd": "no-such-command-here"}),
        json!({"cmd": "exit 3"}),
        json!({"cmd": "kill -9 $$"}),
    ];
    let run = local(&place, &[], &jobs);
    assert_ne!(run.code(), 0);
    let lines = run.json_lines();
    for cmd in ["echo a", "echo b"] {
        let result = result(&lines, cmd);
        assert_eq!(result["status"], "error", "{result}");
        assert!(
            result["error"]
                .as_str()
                .unwrap()
                .contains("/no/such/directory"),
            "{result}"
        );
    }
    for (cmd, code) in [
        ("no-such-command-here", 127),
        ("exit 3", 3),
        ("kill -9 $$", 137),
    ] {
        let result = result(&lines, cmd);
        assert_eq!(
            (&result["status"], &result["code"]),
            (&json!("ok"), &json!(code)),
            "{result}"
        );
    }
}

#[test]
fn output_of_a_gigabyte() {
    let place = place();
    let flood = "head -c 1000000000 /dev/zero | tr '\\0' y";
    let run = local(
        &place,
        &["--capture"],
        &[
            json!({"cmd": flood}),
            json!({"cmd": "echo small; echo bad >&2"}),
        ],
    )
    .ok();
    let lines = run.json_lines();
    let kept = result(&lines, flood)["stdout"].as_str().unwrap().len();
    assert!((1..=64 * 1024).contains(&kept), "{kept} bytes kept");
    let small = result(&lines, "echo small; echo bad >&2");
    assert_eq!(
        (&small["stdout"], &small["stderr"]),
        (&json!("small\n"), &json!("bad\n"))
    );
}

#[test]
fn outdir_gives_each_job_its_own_files() {
    let place = place();
    let run = local(
        &place,
        &["--outdir", "outputs"],
        &[
            json!({"cmd": "echo first"}),
            json!({"cmd": "echo second >&2"}),
        ],
    )
    .ok();
    assert_eq!(run.json_lines().len(), 2);
    let mut texts: Vec<String> = fs::read_dir(place.path("outputs"))
        .unwrap()
        .map(|entry| fs::read_to_string(entry.unwrap().path()).unwrap())
        .collect();
    texts.sort();
    assert_eq!(texts, ["", "", "first\n", "second\n"]);
    // An id may be what another job's files are called already: one would write over the other's output.
    for (id, other) in [("2", None), ("a/b", Some("a_b"))] {
        let mut second = json!({"cmd": "echo second"});
        if let Some(other) = other {
            second["id"] = json!(other);
        }
        let jobs = [json!({"cmd": "echo first", "id": id}), second];
        let name = id.replace('/', "_");
        let words = format!("the same files {name}.out and {name}.err");
        let run = local(&place, &["--outdir", "twice"], &jobs);
        assert_eq!((run.code(), run.stderr.lines().count()), (2, 1));
        assert!(
            run.stderr.contains("jobs.jsonl:2: ") && run.stderr.contains(&words),
            "{}",
            run.stderr
        );
        // Of a stream the first runs before the second is known.
        let mut stream = place.bare("ipclient");
        stream.args(["run", "--local", "1", "--outdir", "twice", "-"]);
        let input = format!("{}\n{}\n", jobs[0], jobs[1]);
        let lines = programs::run(stream, place.dir(), &input, LIMIT * 2).json_lines();
        assert_eq!(result(&lines, "echo first")["code"], 0, "{lines:?}");
        let error = result(&lines, "echo second")["error"].as_str().unwrap();
        assert!(error.contains(&words), "{error}");
    }
}

/// A line whose command reads its input, and a text that no cache of this host has.
fn job_with_input(place: &Cluster) -> (Value, String) {
    let text = format!("{}\n", place.dir().display());
    place.write("in.dat", &text);
    (json!({"cmd": "cat in.dat", "put": ["in.dat"]}), text)
}

#[test]
fn inputs_reach_engines_that_have_just_started() {
    let place = place();
    let (job, text) = job_with_input(&place);
    let run = local(&place, &["--capture"], &[job]).ok();
    assert_eq!(
        result(&run.json_lines(), "cat in.dat")["stdout"],
        json!(text)
    );
}

#[test]
fn inputs_reach_engines_that_come_later() {
    let mut cluster = Cluster::builder().arg("--nodb").start();
    let (job, text) = job_with_input(&cluster);
    cluster.write("jobs.jsonl", &format!("{job}\n"));
    let run = cluster.start_client(&["run", "--capture", "jobs.jsonl"]);
    eventually("the job to wait", LIMIT, || {
        run.stderr()
            .contains("no engines are registered")
            .then_some(())
    });
    cluster.start_engines(1);
    let run = run.finish(LIMIT).ok();
    assert_eq!(
        result(&run.json_lines(), "cat in.dat")["stdout"],
        json!(text)
    );
}

/// `run` sends an input again when its host is gone, and with it what that had in its cache; nobody sends that of a job that
/// was submitted: it fails, and says so.
#[test]
fn inputs_that_went_with_their_host_are_sent_again_or_named() {
    let mut cluster = Cluster::builder().start();
    let other_host = |cluster: &mut Cluster, cache: &str| {
        let mut command = cluster.command("ipengine");
        command.env("XDG_CACHE_HOME", cluster.path(cache));
        let engine = programs::Program::spawn(command, cluster.dir());
        cluster.engines.push(engine);
    };
    other_host(&mut cluster, "first");
    cluster.wait_engines(1);
    let busy = "{\"cmd\": \"touch busy; sleep 600\"}\n";
    cluster.client_with(&["submit"], busy, LIMIT).ok();
    eventually("a busy engine", LIMIT, || {
        cluster.path("busy").exists().then_some(())
    });
    cluster.write("in.dat", &"x".repeat(2 << 20));
    let job = json!({"cmd": "wc -c < in.dat", "put": ["in.dat"]});
    cluster.write("jobs.jsonl", &format!("{job}\n"));
    let submitted = cluster.client(&["submit", "jobs.jsonl"]).ok().stdout;
    let run = cluster.start_client(&["run", "--capture", "jobs.jsonl"]);
    eventually("both to wait", LIMIT, || {
        (cluster.status()["tasks"]["ready"] == 2).then_some(())
    });
    cluster.engines[0].kill();
    other_host(&mut cluster, "second");
    let run = run.finish(LIMIT).ok();
    let lines = run.json_lines();
    assert_eq!(result(&lines, "wc -c < in.dat")["stdout"], "2097152\n");
    let id = submitted.trim();
    assert_eq!(cluster.client(&["wait", id]).code(), 1);
    let why = cluster.client(&["explain", id]).ok().stdout;
    let cache = format!("cache {}/ipbroker/files", cluster.path("second").display());
    for words in ["MissingInput", "input in.dat ", &cache] {
        assert!(why.contains(words) && why.lines().count() == 1, "{why}");
    }
}

#[test]
fn a_daemon_does_not_outlive_its_cluster() {
    let place = place();
    let jobs = [
        json!({"cmd": "sleep 300 & echo started"}),
        json!({"cmd": "setsid sleep 301 & echo started"}),
    ];
    let run = local(&place, &["--capture"], &jobs).ok();
    assert!(
        run.took < Duration::from_secs(20),
        "a job waited for its daemon: {:?}",
        run.took
    );
    assert_eq!(run.json_lines().len(), 2);
    eventually("the daemons to be gone", LIMIT, || {
        place.processes().is_empty().then_some(())
    });
}

#[test]
fn a_job_that_finds_out_what_its_engine_lacks_goes_to_another() {
    let place = place();
    let cmd =
        "echo $IPBROKER_ENGINE_ID >> ran; [ $IPBROKER_ENGINE_ID != \"$(head -1 ran)\" ] || exit 75";
    let jobs = [json!({"cmd": cmd, "unmet_exit": 75})];
    let run = local(&place, &[], &jobs).ok();
    assert_eq!(result(&run.json_lines(), cmd)["code"], 0);
    let mut ran: Vec<String> = place.read("ran").lines().map(str::to_owned).collect();
    ran.sort();
    assert_eq!(ran, ["0", "1"]);
    let run = local(&place, &[], &[json!({"cmd": "true", "unmet_exit": 0})]);
    assert!(
        run.stderr.contains("an exit code from 1 to 255"),
        "{}",
        run.stderr
    );
    assert_ne!(run.code(), 0);
}

/// Whatever no engine has is told while a run waits, once a reason; what waits for its turn is not.
#[test]
fn what_jobs_wait_for_that_no_engine_has_is_told_once() {
    let cluster = Cluster::with_engines(2);
    let mut command = cluster.command("ipclient");
    command.arg("run").stdin(Stdio::piped());
    let mut run = Program::spawn(command, cluster.dir());
    let mut stdin = run.stdin();
    let mut send = |jobs: &[Value]| {
        let lines: String = jobs.iter().map(|job| format!("{job}\n")).collect();
        stdin.write_all(lines.as_bytes()).unwrap();
    };
    let told = |run: &Program, words: &[&str]| {
        eventually("a word of what is lacking", LIMIT, || {
            let said = run.stderr();
            let line = said.lines().find(|line| line.contains(words[0]))?;
            words
                .iter()
                .for_each(|words| assert!(line.contains(words), "{words}: {line}"));
            Some(())
        });
    };
    let waits = "until [ -e go ]; do sleep 0.1; done";
    send(&[
        json!({"cmd": "exit 75", "unmet_exit": 75}),
        json!({"cmd": "true", "tags": ["gpu"]}),
        json!({"cmd": "true", "tags": ["gpu"]}),
        json!({"cmd": "true", "host": "nowhere.example"}),
    ]);
    told(
        &run,
        &[
            "line 1 waits: No engine is registered that may take it. It failed or lacked what it requires on 2 of them.",
            "ended with code 75",
        ],
    );
    told(
        &run,
        &["line 2 waits, and 1 other: No engine is registered that has the tags gpu."],
    );
    told(
        &run,
        &["line 4 waits: No engine is registered that is on nowhere.example."],
    );
    send(&vec![json!({"cmd": waits}); 4]);
    eventually("the engines to be busy", LIMIT, || {
        let status = cluster.status();
        (status["tasks"]["running"] == 2 && status["tasks"]["ready"] == 6).then_some(())
    });
    send(&[json!({"cmd": "true", "tags": ["fpga"]})]);
    told(
        &run,
        &["line 9 waits: No engine is registered that has the tags fpga."],
    );
    assert_eq!(
        run.stderr().matches(" waits").count(),
        4,
        "{}",
        run.stderr()
    );
    drop(stdin);
    cluster.client(&["abort", "--all"]).ok();
    assert_eq!(run.finish(LIMIT).code(), 1);

    // A lone call of `map` as well, and what it waits for may still come.
    let mut command = cluster.command("ipclient");
    command
        .args(["map", "--tags", "gpu", "echo", ":::", "a", "b"])
        .stdin(Stdio::null());
    let map = Program::spawn(command, cluster.dir());
    told(
        &map,
        &["ipclient: job 1 waits, and 1 other: No engine is registered that has the tags gpu."],
    );
    let mut command = cluster.command("ipengine");
    command.args(["--tags", "gpu"]);
    let _engine = Program::spawn(command, cluster.dir());
    let ended = map.finish(LIMIT).ok();
    assert_eq!(ended.stdout.split_whitespace().count(), 2);
    assert_eq!(
        ended.stderr.matches(" waits").count(),
        1,
        "{}",
        ended.stderr
    );
}

#[test]
fn interrupted() {
    let place = place();
    let mut jobs = String::from("{\"cmd\": \"echo done\"}\n");
    (0..50).for_each(|number| {
        jobs += &format!(
            "{}\n",
            json!({"cmd": format!("sleep 100; touch ran.{number}")})
        )
    });
    place.write("jobs.jsonl", &jobs);
    let mut command = place.bare("ipclient");
    command.args(["run", "--local", "2", "jobs.jsonl"]);
    let run = programs::Program::spawn(command, place.dir());
    eventually("the first result", LIMIT, || {
        run.stdout().contains("\"echo done\"").then_some(())
    });
    run.signal(Signal::INT);
    let run = run.finish(LIMIT);
    assert_eq!(run.code(), 130, "{}", run.stderr);
    let lines = run.json_lines();
    assert_eq!(result(&lines, "echo done")["code"], 0);
    assert!(
        lines
            .iter()
            .all(|line| line["cmd"] == "echo done" || line["result"]["status"] == "aborted"),
        "{}",
        run.stdout
    );
    eventually("everything to be gone", LIMIT, || {
        place.processes().is_empty().then_some(())
    });
}

#[test]
fn interrupted_without_a_controller() {
    for signal in [Signal::KILL, Signal::STOP] {
        let mut cluster = Cluster::with_engines(1);
        let run = cluster.start_client(&["map", "touch running; sleep 300; echo {}", ":::", "x"]);
        eventually("the job to run", LIMIT, || {
            cluster.path("running").exists().then_some(())
        });
        cluster.controller().signal(signal);
        // A thread that still runs might answer.
        let pid = cluster.controller().pid().as_raw_nonzero();
        eventually("all threads of the controller to stop", LIMIT, || {
            let stopped = |thread: fs::DirEntry| {
                let stat = fs::read_to_string(thread.path().join("stat")).unwrap_or_default();
                let (_, state) = stat.rsplit_once(") ").unwrap_or(("", "gone"));
                !state.starts_with(['R', 'S', 'D'])
            };
            let threads = fs::read_dir(format!("/proc/{pid}/task"));
            let mut threads = threads.into_iter().flatten().flatten();
            threads.all(stopped).then_some(())
        });
        run.signal(Signal::INT);
        let ended = run.finish(Duration::from_secs(20));
        assert_eq!(ended.code(), 130, "{}", ended.stderr);
        assert!(
            ended.stderr.contains("could not be stopped"),
            "{}",
            ended.stderr
        );
        cluster.controller().kill();
    }
}

#[test]
fn no_engines() {
    let mut cluster = Cluster::builder().arg("--nodb").start();
    cluster.write("jobs.jsonl", "{\"cmd\": \"true\"}\n");
    let refused = cluster.client(&["run", "--no-wait", "jobs.jsonl"]);
    assert_ne!(refused.code(), 0);
    assert!(
        refused.stderr.to_lowercase().contains("no engine"),
        "{}",
        refused.stderr
    );
    let waiting = cluster.start_client(&["run", "jobs.jsonl"]);
    eventually("the client to say that there are no engines", LIMIT, || {
        waiting
            .stderr()
            .to_lowercase()
            .contains("no engine")
            .then_some(())
    });
    cluster.start_engines(1);
    assert_eq!(
        waiting.finish(LIMIT).ok().json_lines()[0]["result"]["code"],
        0
    );
}

#[test]
fn an_unknown_host() {
    let cluster = Cluster::with_engines(1);
    cluster.write(
        "jobs.jsonl",
        "{\"cmd\": \"true\", \"host\": [\"nowhere.example\"]}\n",
    );
    let refused = cluster.client(&["run", "--no-wait", "jobs.jsonl"]);
    assert_ne!(refused.code(), 0);
    assert!(
        format!("{}{}", refused.stderr, refused.stdout).contains("nowhere.example"),
        "{}",
        refused.stderr
    );
    let own = rustix::system::uname()
        .nodename()
        .to_str()
        .unwrap()
        .to_owned();
    cluster.write(
        "here.jsonl",
        &format!(
            "{}\n",
            json!({"cmd": "true", "host": ["nowhere.example", own]})
        ),
    );
    cluster.client(&["run", "here.jsonl"]).ok();
}

#[test]
fn three_thousand_jobs_of_every_ending() {
    let place = place();
    let jobs: Vec<Value> = (0..3000)
        .map(|number| json!({"cmd": format!("exit {}", number % 7), "number": number}))
        .collect();
    let run = local(&place, &[], &jobs);
    assert!(run.code() != 0, "most jobs failed");
    let mut seen = vec![false; jobs.len()];
    for line in run.json_lines() {
        let number = line["number"].as_u64().expect("unknown keys are kept") as usize;
        assert!(
            !std::mem::replace(&mut seen[number], true),
            "job {number} twice"
        );
        assert_eq!(line["result"]["code"], (number % 7) as u64);
    }
    assert!(seen.iter().all(|seen| *seen));
}

#[test]
fn map_prints_as_gnu_parallel_does() {
    let cluster = Cluster::with_engines(2);
    let out = cluster
        .client(&[
            "map",
            "-k",
            "echo {} {.} {/} {//} {#}",
            ":::",
            "/a/b.txt",
            "two words",
            "$HOME",
        ])
        .ok();
    assert_eq!(
        out.stdout,
        "/a/b.txt /a/b b.txt /a 1\ntwo words two words two words . 2\n$HOME $HOME $HOME . 3\n"
    );
    let out = cluster
        .client_with(
            &["map", "-k", "wc -c <<<{}", "--each-line", "-"],
            "x\nyy\n",
            LIMIT,
        )
        .ok();
    assert_eq!(out.stdout, "2\n3\n");
}
