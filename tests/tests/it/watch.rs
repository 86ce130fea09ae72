//! What a cluster tells those who watch it: the page and its stream, metrics, events.

use std::{
    ffi::OsString,
    fs,
    io::{Read, Write},
    net::Shutdown,
    os::unix::fs::PermissionsExt,
    process::{Command, Stdio},
    time::{Duration, Instant, SystemTime},
};

use ipbroker_tests::{
    Cluster, LIMIT, Program, RawClient, batch::free_port, eventually, fuzz::mutate, http::Page,
    program,
};
use rand::{RngExt, SeedableRng, rngs::SmallRng};
use rustix::process::{Pid, Signal};
use serde_json::{Value, json};

/// A cluster with a page.
#[track_caller]
fn watched(args: &[&str]) -> (Cluster, Page) {
    let mut cluster = Cluster::builder().args(args.iter().copied()).start();
    let page = eventually("the page's address", LIMIT, || {
        Page::printed(&cluster.controller().stdout())
    });
    (cluster, page)
}

/// The value of a metric.
#[track_caller]
fn metric(text: &str, name: &str) -> f64 {
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    let value = line.and_then(|value| value.parse().ok());
    value.unwrap_or_else(|| panic!("no {name} in\n{text}"))
}

/// What Prometheus' own tool says of metrics, where it is installed (Debian's package `prometheus`).
fn promtool(metrics: &str) -> Option<String> {
    let mut tool = Command::new("promtool")
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .ok()?;
    tool.stdin.take()?.write_all(metrics.as_bytes()).ok()?;
    let said = tool.wait_with_output().ok()?;
    Some(String::from_utf8_lossy(&[said.stdout, said.stderr].concat()).into_owned())
}

/// Prometheus itself, where it is installed, scrapes with what docs/tasks/metrics.md says.
#[test]
fn prometheus_scrapes() {
    if Command::new("prometheus")
        .arg("--version")
        .output()
        .is_err()
    {
        eprintln!("skipped: no prometheus here");
        return;
    }
    let (cluster, page) = watched(&["--nodb", "--web", "-n", "1"]);
    cluster.wait_engines(1);
    cluster
        .client(&["map", "true {}", ":::", "1", "2", "3"])
        .ok();
    let token = cluster.profile().join("security/ipcontroller-web.token");
    // JSON is YAML, too.
    let config = json!({
        "global": {"scrape_interval": "1s", "scrape_timeout": "1s"},
        "scrape_configs": [{
            "job_name": "ipbroker",
            "authorization": {"credentials_file": token},
            "static_configs": [{"targets": [format!("127.0.0.1:{}", page.port)]}],
        }],
    });
    cluster.write("prometheus.yml", &config.to_string());
    let port = free_port();
    let mut prometheus = Command::new("prometheus");
    prometheus.arg(format!(
        "--config.file={}",
        cluster.path("prometheus.yml").display()
    ));
    prometheus.arg(format!(
        "--storage.tsdb.path={}",
        cluster.path("tsdb").display()
    ));
    prometheus.arg(format!("--web.listen-address=127.0.0.1:{port}"));
    let prometheus = Program::spawn(prometheus, cluster.dir());
    let scraped = Page {
        port,
        token: String::new(),
    };
    let query = format!(
        "GET /api/v1/query?query=ipbroker_tasks_finished_total HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nConnection: close\r\n\r\n"
    );
    eventually("what it has scraped", LIMIT, || {
        let answer = scraped.send(&query).ok()?;
        let answer: Value = serde_json::from_str(&answer.body).ok()?;
        let rows = answer["data"]["result"].as_array()?;
        let ok = rows.iter().find(|row| row["metric"]["outcome"] == "ok")?;
        (ok["value"][1] == "3" && ok["metric"]["job"] == "ipbroker").then_some(())
    });
    drop(prometheus);
}

#[test]
fn only_who_has_the_token_is_answered() {
    let (mut cluster, page) = watched(&["--nodb", "--web"]);
    let token = page.token.clone();
    let query = |path: &str, token: &str| format!("{path}?token={token}");
    for path in [
        "/",
        "/page.js",
        "/page.css",
        "/events",
        "/metrics",
        "/nothing",
        "/ask/abort_request",
    ] {
        assert_eq!(page.get(path, &[]).status, 401, "{path}");
        assert_eq!(page.get(&query(path, ""), &[]).status, 403, "{path}");
        let wrong = "0".repeat(token.len());
        assert_eq!(page.get(&query(path, &wrong), &[]).status, 403, "{path}");
        assert_eq!(
            page.get(path, &[&format!("Authorization: Bearer {wrong}")])
                .status,
            403
        );
    }
    let home = page.get(&query("/", &token), &[]);
    assert_eq!(home.status, 200);
    assert!(
        home.body.contains(&format!("page.js?token={token}")),
        "{}",
        home.body
    );
    for line in [
        "content-security-policy: default-src 'none'",
        "x-content-type-options: nosniff",
        "referrer-policy: no-referrer",
        "cache-control: no-store",
    ] {
        assert!(home.head.contains(line), "no {line} in {}", home.head);
    }
    assert!(!home.head.contains("set-cookie"), "{}", home.head);
    assert_eq!(page.own("/nothing").status, 404);
    assert_eq!(page.own("/metrics").status, 200);
    // Another name that leads here, and another page in the same browser.
    let own = query("/metrics", &token);
    for line in [
        "Host: evil.example",
        "Host: 127.0.0.1.evil.example",
        "Host: LOCALHOST.evil.example",
        "Origin: http://evil.example",
        "Origin: null",
    ] {
        assert_eq!(page.get(&own, &[line]).status, 403, "{line}");
    }
    for host in ["localhost", "LOCALHOST"] {
        let tunnel = [
            &format!("Host: {host}:9999")[..],
            "Origin: http://localhost:9999",
        ];
        assert_eq!(page.get(&own, &tunnel).status, 200, "{host}");
    }
    // A form of another page cannot set this type, nor read.
    for (kind, status) in [
        ("text/plain", 415),
        ("text/plain; application/json", 415),
        ("application/json-seq", 415),
        ("application/json; charset=utf-8", 200),
        ("Application/JSON", 200),
    ] {
        let form = format!(
            "POST /ask/status_request?token={token} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\
             Content-Type: {kind}\r\nContent-Length: 2\r\n\r\n{{}}"
        );
        assert_eq!(page.send(&form).unwrap().status, status, "{kind}");
    }
    assert_eq!(page.post("/ask/shutdown_request", "{}").status, 404);
    assert_eq!(page.post("/metrics", "{}").status, 405);
    assert_eq!(page.post("/ask/status_request", "[").status, 400);
    let file = cluster.profile().join("security/ipcontroller-web.token");
    assert_eq!(fs::read_to_string(&file).unwrap().trim(), token);
    assert_eq!(
        fs::metadata(&file).unwrap().permissions().mode() & 0o777,
        0o600
    );
    cluster.stop_controller().ok();
    assert!(!file.exists());
}

/// What can no longer run names the tasks that it waited for, and is one row of the failures all the same.
#[test]
fn failures_that_differ_in_ids_alone_are_one_row() {
    let cluster = Cluster::builder().args(["-n", "1"]).start();
    cluster.wait_engines(1);
    let pair = |n| {
        let (first, then) = (format!("f{n}"), "true");
        let first = json!({"cmd": "exit 3", "id": first, "priority": n});
        format!(
            "{first}\n{}\n",
            json!({"cmd": then, "after": [first["id"]]})
        )
    };
    cluster.write("jobs.jsonl", &(0..5).map(pair).collect::<String>());
    assert_eq!(cluster.client(&["run", "jobs.jsonl"]).code(), 1);
    let said =
        "ImpossibleDependency: it must run after all of … succeed, which cannot happen any more";
    let sample = cluster.client(&["events", "--json", "--samples", "1"]).ok();
    let sample: Value = serde_json::from_str(&sample.stdout).unwrap();
    let rows = sample["failures"].as_array().unwrap().iter();
    let mut rows: Vec<_> = rows
        .map(|row| (row["text"].as_str(), row["count"].as_u64()))
        .collect();
    rows.sort_unstable();
    assert_eq!(
        rows,
        [(Some(said), Some(5)), (Some("exit code 3"), Some(5))]
    );
    let report = cluster.client(&["report", "-o", "-"]).ok().stdout;
    let row = report.split(said).nth(1).expect("its row");
    assert!(row.starts_with("</td><td>5</td>"), "{row}");
    assert_eq!(report.matches(said).count(), 1);
}

/// A command of 100 KB, that writes as much as is captured: its row has its first line, and its failure the last that it wrote.
#[test]
fn what_says_much_is_told_in_a_line() {
    let cluster = Cluster::builder().args(["--nodb", "-n", "1"]).start();
    cluster.wait_engines(1);
    let script = "seq 20000; echo no \u{202e}input >&2; exit 1; ".to_owned() + &"x".repeat(100_000);
    let job = json!({"cmd": script, "capture": true});
    let run = cluster.client_with(&["run", "-"], &format!("{job}\n"), LIMIT);
    assert_eq!(run.code(), 1);
    let sample = cluster.client(&["events", "--json", "--samples", "1"]).ok();
    let sample: Value = serde_json::from_str(&sample.stdout).unwrap();
    assert_eq!(sample["failures"][0]["text"], json!("no  input"));
    let what = sample["submissions"][0]["what"].as_str().unwrap();
    assert!(what.starts_with("seq 20000; echo no  input"), "{what}");
    assert_eq!(what.chars().count(), 201);
}

#[test]
fn metrics_and_events_say_what_status_says() {
    let (cluster, page) = watched(&["--nodb", "--web", "-n", "2"]);
    cluster.wait_engines(2);
    let mut events = page.events();
    let (name, past) = events.next().expect("an event");
    assert_eq!(name, "past");
    assert_eq!(past["readonly"], json!(false));
    let lines: String = (0..40)
        .map(|n| match n % 10 {
            0 => format!("{{\"cmd\": \"echo broken {} >&2; exit 3\"}}\n", n % 20),
            _ => "{\"cmd\": \"true\"}\n".to_owned(),
        })
        .collect();
    let run = cluster.client_with(&["run", "--capture", "-"], &lines, LIMIT);
    assert_ne!(run.code(), 0, "{run:?}");
    let sample = events
        .map(|(_, sample)| sample)
        .find(|sample| {
            sample["tasks"]["completed"] == json!(36) && sample["tasks"]["failed"] == json!(4)
        })
        .expect("a sample after the run");
    let status = cluster.status();
    for key in [
        "ready",
        "blocked",
        "running",
        "direct",
        "completed",
        "failed",
        "aborted",
    ] {
        assert_eq!(sample["tasks"][key], status["tasks"][key], "{key}");
    }
    let submission = &sample["submissions"][0];
    assert_eq!(
        (
            &submission["total"],
            &submission["completed"],
            &submission["failed"]
        ),
        (&json!(40), &json!(36), &json!(4))
    );
    assert_eq!(submission["what"], json!("echo broken 0 >&2; exit 3"));
    assert!(submission["ended"].is_number(), "{submission}");
    let failures = sample["failures"].as_array().unwrap();
    let mut said: Vec<(&str, u64, usize)> = failures
        .iter()
        .map(|row| {
            let ids = row["ids"].as_array().unwrap().len();
            (
                row["text"].as_str().unwrap(),
                row["count"].as_u64().unwrap(),
                ids,
            )
        })
        .collect();
    said.sort_unstable();
    assert_eq!(said, [("broken 0", 2, 2), ("broken 10", 2, 2)]);
    let bearer = format!("Authorization: Bearer {}", page.token);
    let open = page.get(
        "/metrics",
        &[
            &bearer,
            "Accept: application/openmetrics-text; version=1.0.0",
        ],
    );
    assert!(
        open.head
            .contains("content-type: application/openmetrics-text"),
        "{}",
        open.head
    );
    assert!(open.body.ends_with("# EOF\n"), "{}", open.body);
    assert_eq!(
        metric(&open.body, "ipbroker_tasks_finished_total{outcome=\"ok\"}"),
        36.0
    );
    // Who does not say gets the same; the scheme's name is in any case, and a head is the same without its body.
    let lower = format!("authorization: bearer {}", page.token);
    let head = format!(
        "HEAD /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n{lower}\r\n\r\n"
    );
    for plain in [page.get("/metrics", &[&lower]), page.send(&head).unwrap()] {
        let kind = "content-type: application/openmetrics-text";
        assert!(
            plain.status == 200 && plain.head.contains(kind),
            "{}",
            plain.head
        );
    }
    assert_eq!(page.send(&head).unwrap().body, "");
    let metrics = page.get("/metrics", &[&bearer, "Accept: text/plain"]);
    assert!(
        metrics
            .head
            .contains("content-type: text/plain; version=0.0.4"),
        "{}",
        metrics.head
    );
    if let Some(said) = promtool(&metrics.body) {
        assert_eq!(said, "");
    }
    let text = &metrics.body;
    assert_eq!(
        metric(text, "ipbroker_tasks_finished_total{outcome=\"ok\"}"),
        36.0
    );
    assert_eq!(
        metric(text, "ipbroker_tasks_finished_total{outcome=\"failed\"}"),
        4.0
    );
    assert_eq!(metric(text, "ipbroker_tasks_submitted_total"), 40.0);
    assert_eq!(metric(text, "ipbroker_task_duration_seconds_count"), 40.0);
    assert_eq!(metric(text, "ipbroker_engines{kind=\"ipengine\"}"), 2.0);
    // Who comes later sees what was done before.
    let (_, past) = page.events().next().expect("an event");
    let slices = past["slices"].as_array().unwrap();
    let members: u64 = slices
        .iter()
        .filter_map(|slice| slice["count"].as_u64())
        .sum();
    assert_eq!(members, 40, "{slices:?}");
    assert!(
        slices
            .iter()
            .any(|slice| slice["outcome"] == json!("failed"))
    );
}

#[test]
fn what_runs_is_told_and_can_be_ended_and_begun_again() {
    let (cluster, page) = watched(&["--web", "-n", "1"]);
    cluster.wait_engines(1);
    let id = cluster
        .client_with(&["submit", "-"], "{\"cmd\": \"sleep 77\"}\n", LIMIT)
        .ok();
    let id = id.stdout.trim().to_owned();
    let runs = |id: &str| {
        page.events()
            .map(|(_, sample)| sample)
            .find(|sample| sample["engines"][0]["task"] == json!(id))
            .expect("a sample with the task")
    };
    let sample = runs(&id);
    let engine = &sample["engines"][0];
    assert_eq!(
        (&engine["what"], &engine["outstanding"]),
        (&json!("sleep 77"), &json!(1))
    );
    assert!(engine["since"].as_f64() <= sample["time"].as_f64());
    let session = sample["submissions"][0]["session"]
        .as_str()
        .unwrap()
        .to_owned();
    let why = page.post("/ask/explain_request", &json!({"msg_id": id}).to_string());
    assert!(why.body.contains("\"running\""), "{}", why.body);
    let abort = page.post(
        "/ask/abort_request",
        &json!({"session": session, "kill": true}).to_string(),
    );
    assert!(abort.body.contains("\"stopping\":1"), "{}", abort.body);
    let ended = page.events().map(|(_, sample)| sample);
    let ended = ended
        .filter(|sample| sample["tasks"]["aborted"] == json!(1))
        .map(drop)
        .next();
    assert!(ended.is_some());
    let again = page.post(
        "/ask/resubmit_request",
        &json!({"msg_ids": [id]}).to_string(),
    );
    let again: Value = serde_json::from_str(&again.body).unwrap();
    let new = again["resubmitted"][&id]
        .as_str()
        .unwrap_or_else(|| panic!("{again}"));
    runs(new);
}

#[test]
fn a_member_of_an_array_is_told_of_as_a_task_of_its_own_is() {
    let (cluster, page) = watched(&["--web", "-n", "1"]);
    cluster.wait_engines(1);
    let jobs = "{\"cmd\": \"echo well\"}\n{\"cmd\": \"echo bad >&2; exit 3\"}\n";
    let run = cluster.client_with(&["run", "--capture", "-"], jobs, LIMIT);
    assert_eq!(run.code(), 1, "{run:?}");
    let lines = |text: &str| -> Vec<Value> {
        let lines = text.lines().map(serde_json::from_str);
        lines.collect::<Result<_, _>>().unwrap()
    };
    let id_of = |line: &Value| line["result"]["msg_id"].as_str().unwrap().to_owned();
    let mut ids: Vec<String> = lines(&run.stdout).iter().map(id_of).collect();
    ids.sort();
    assert!(ids[0].ends_with(":0") && ids[1].ends_with(":1"), "{ids:?}");
    let told = || {
        let results = cluster.client(&["results", &ids[0], &ids[1]]);
        assert_eq!(results.code(), 1, "{results:?}");
        for (line, (code, out, err)) in lines(&results.stdout)
            .iter()
            .zip([(0, "well\n", ""), (3, "", "bad\n")])
        {
            let result = &line["result"];
            assert_eq!(
                (&result["status"], &result["code"]),
                (&json!("ok"), &json!(code))
            );
            assert_eq!(
                (&result["stdout"], &result["stderr"]),
                (&json!(out), &json!(err))
            );
        }
        let output = cluster.client(&["output", &ids[1]]).ok();
        assert_eq!((&*output.stdout, &*output.stderr), ("", "bad\n"));
        let question = json!({"msg_ids": [ids[1]], "buffers": false}).to_string();
        let shown: Value =
            serde_json::from_str(&page.post("/ask/result_request", &question).body).unwrap();
        let shown = &shown[&ids[1]]["result_content"];
        assert_eq!(
            (&shown["code"], &shown["stderr"]),
            (&json!(3), &json!("bad\n"))
        );
    };
    told();
    // It is still known after it was run again, which may be done as often as one likes.
    for _ in 0..2 {
        let question = json!({"msg_ids": [ids[1]]}).to_string();
        let again = page.post("/ask/resubmit_request", &question);
        let again: Value = serde_json::from_str(&again.body).unwrap();
        let new = again["resubmitted"][&ids[1]].as_str();
        let new = new.unwrap_or_else(|| panic!("{again}"));
        assert_eq!(cluster.client(&["wait", new]).code(), 1);
        told();
    }
    let report = cluster.client(&["report", "-o", "-"]).ok();
    assert!(
        report.stdout.contains("<h1>4 tasks</h1>"),
        "{}",
        report.stdout
    );
}

#[test]
fn what_a_task_writes_can_be_read_while_it_runs() {
    for scheme in ["leastload", "pure"] {
        let (cluster, page) = watched(&["--web", "-n", "1", &format!("--scheme={scheme}")]);
        cluster.wait_engines(1);
        let jobs = "{\"cmd\": \"echo one; echo oops >&2; while [ ! -e go ]; do sleep 0.02; done; echo zwölf\"}\n\
                    {\"cmd\": \"echo later\"}\n";
        let submitted = cluster.client_with(&["submit", "--capture", "-"], jobs, LIMIT);
        let ids: Vec<String> = submitted.ok().stdout.lines().map(str::to_owned).collect();
        let output = |id: &str| cluster.client(&["output", id]);
        eventually("what it has written so far", LIMIT, || {
            let now = output(&ids[0]);
            (now.code() == 0 && now.stdout == "one\n" && now.stderr == "oops\n").then_some(())
        });
        let question = json!({"msg_id": ids[0], "seen": [1, 0]}).to_string();
        let told = page.post("/ask/output_request", &question);
        let told: Value = serde_json::from_str(&told.body).unwrap();
        assert_eq!(told["text"], json!(["ne\n", "oops\n"]));
        assert_eq!(
            (&told["running"], &told["seen"]),
            (&json!(true), &json!([4, 5]))
        );
        let early = output(&ids[1]);
        assert_eq!(early.code(), 1, "{}", early.stdout);
        assert!(
            early.stderr.contains("has written nothing yet"),
            "{}",
            early.stderr
        );
        let followers: Vec<_> = ids
            .iter()
            .map(|id| cluster.start_client(&["output", "--follow", id]))
            .collect();
        eventually("the first lines", LIMIT, || {
            (followers[0].stdout() == "one\n").then_some(())
        });
        cluster.write("go", "");
        if scheme == "pure" {
            // Nothing is recorded there.
            for follower in followers {
                let ended = follower.finish(LIMIT);
                assert!(
                    ended.stderr.contains("nothing is kept of it"),
                    "{}",
                    ended.stderr
                );
            }
            continue;
        }
        for (follower, text) in followers.into_iter().zip(["one\nzwölf\n", "later\n"]) {
            assert_eq!(follower.finish(LIMIT).ok().stdout, text);
        }
        let after = output(&ids[0]).ok();
        assert_eq!((&*after.stdout, &*after.stderr), ("one\nzwölf\n", "oops\n"));
        let unknown = output("nonsense");
        assert_eq!(
            (unknown.code(), &*unknown.stderr),
            (1, "ipclient: no such task: nonsense\n")
        );
    }
}

/// Then a sample every two seconds is enough, for the history with which a page begins.
#[test]
fn a_page_that_nobody_has_open_costs_little() {
    let (cluster, _page) = watched(&["--nodb", "--web"]);
    let sampled = || -> u64 {
        let samples = cluster.client(&["events", "--json", "--samples", "1"]);
        samples.ok().json_lines()[0]["seq"].as_u64().unwrap()
    };
    let (before, begun) = (sampled(), Instant::now());
    eventually("some seconds", LIMIT, || {
        (begun.elapsed().as_secs() >= 5).then_some(())
    });
    let (samples, seconds) = (sampled() - before, begun.elapsed().as_secs());
    assert!(
        samples <= 2 + seconds / 2,
        "{samples} samples in {seconds} s"
    );
}

#[test]
fn engines_are_added_and_removed() {
    let (cluster, page) = watched(&["--nodb", "--web", "-n", "2"]);
    cluster.wait_engines(2);
    assert_eq!(page.events().next().unwrap().1["adds"], json!(true));
    let scale = |what: Value| -> Value {
        let answer = page.post("/ask/scale_request", &what.to_string());
        serde_json::from_str(&answer.body).unwrap_or_else(|e| panic!("{e}: {answer:?}"))
    };
    assert_eq!(scale(json!({"add": 2}))["added"], json!(2));
    cluster.wait_engines(4);
    // One that is removed ends what it runs first, and is given nothing more.
    let job = "echo $IPBROKER_ENGINE_ID >> ran; until [ -e go ]; do sleep 0.02; done; [ -e well ]";
    let line = format!("{}\n", json!({"cmd": job, "retries": 1}));
    cluster.write("jobs.jsonl", &line);
    let run = cluster.start_client(&["run", "jobs.jsonl"]);
    let ran = |count: usize| {
        eventually("its runs", LIMIT, || {
            let ran = std::fs::read_to_string(cluster.path("ran")).unwrap_or_default();
            (ran.ends_with('\n') && ran.lines().count() == count).then_some(ran)
        })
    };
    let id: u64 = ran(1).trim().parse().expect("an id");
    assert_eq!(scale(json!({"remove": [id]}))["removed"], json!([id]));
    page.events()
        .map(|(_, sample)| sample["engines"].clone())
        .find(|engines| {
            let mut engines = engines.as_array().into_iter().flatten();
            engines.any(|engine| engine["id"] == id && engine["leaving"] == json!(true))
        })
        .expect("it leaves");
    let others = cluster.client(&[
        "map",
        "-k",
        "echo $IPBROKER_ENGINE_ID",
        ":::",
        "1",
        "2",
        "3",
        "4",
    ]);
    assert!(
        others
            .ok()
            .stdout
            .lines()
            .all(|other| other != id.to_string())
    );
    assert_eq!(cluster.registered().len(), 4, "it still runs its task");
    // At once: the task runs elsewhere, if it may run again, and that was no failure of its own.
    assert_eq!(
        scale(json!({"remove": [id], "now": true}))["removed"],
        json!([id])
    );
    cluster.wait_engines(3);
    ran(2);
    cluster.write("go", "");
    let failed = run.finish(LIMIT);
    assert_eq!(
        cluster.read("ran").lines().count(),
        3,
        "one run and its retry: {failed:?}"
    );
    // An array on one that is removed: each member runs once.
    std::fs::remove_file(cluster.path("go")).unwrap();
    let line =
        "{\"cmd\": \"echo $IPBROKER_ENGINE_ID >> array; until [ -e go ]; do sleep 0.02; done\"}\n";
    cluster.write("array.jsonl", &line.repeat(9));
    let run = cluster.start_client(&["run", "array.jsonl"]);
    let first = eventually("its first runs", LIMIT, || {
        let ran = std::fs::read_to_string(cluster.path("array")).ok()?;
        (ran.lines().count() == 3).then(|| ran.lines().next().unwrap().to_owned())
    });
    scale(json!({"remove": [first.parse::<u64>().unwrap()]}));
    cluster.write("go", "");
    let results = run.finish(LIMIT).ok().json_lines();
    assert_eq!(
        (results.len(), cluster.read("array").lines().count()),
        (9, 9)
    );
    cluster.wait_engines(2);
    for wrong in [
        json!({}),
        json!({"add": 1, "remove": [0]}),
        json!({"add": 100_000}),
        json!({"remove": [id]}),
        json!({"add": -1}),
    ] {
        assert_eq!(scale(wrong.clone())["status"], "error", "{wrong}");
    }
    // Who has started none here adds none here.
    let (_cluster, page) = watched(&["--nodb", "--web"]);
    assert_eq!(page.events().next().unwrap().1["adds"], json!(false));
    let refused = page.post("/ask/scale_request", "{\"add\": 1}");
    assert!(refused.body.contains("ipengine -n N"), "{refused:?}");
}

#[test]
fn a_page_that_only_shows() {
    let (_cluster, page) = watched(&["--nodb", "--web", "--web-readonly"]);
    assert_eq!(page.events().next().unwrap().1["readonly"], json!(true));
    for name in ["abort_request", "resubmit_request", "scale_request"] {
        let answer = page.post(&format!("/ask/{name}"), "{\"all\": true}");
        assert_eq!(answer.status, 403, "{answer:?}");
        assert!(answer.body.contains("--web-readonly"), "{answer:?}");
    }
    assert_eq!(page.post("/ask/status_request", "{}").status, 200);
}

#[test]
fn those_who_never_read_delay_nothing() {
    let (cluster, page) = watched(&["--nodb", "--web", "-n", "2"]);
    cluster.wait_engines(2);
    // Some ask and never read, many never finish their request.
    let mut stuck = Vec::new();
    for _ in 0..16 {
        let mut stream = page.connect().unwrap();
        let request = format!(
            "GET /events?token={} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n",
            page.token
        );
        stream.write_all(request.as_bytes()).unwrap();
        stuck.push(stream);
    }
    for _ in 0..1000 {
        let Ok(mut stream) = page.connect() else {
            break;
        };
        let _ = stream.write_all(b"GET / HTTP/1.1\r\nHost: 127.");
        stuck.push(stream);
    }
    let arguments: Vec<String> = (0..500).map(|n| n.to_string()).collect();
    let mut words = vec!["map", "echo {}", ":::"];
    words.extend(arguments.iter().map(String::as_str));
    let run = cluster.client(&words).ok();
    assert_eq!(run.stdout.lines().count(), 500);
    // Those who are too slow are sent away, and there is room again.
    let answer = eventually("room for one more", Duration::from_secs(60), || {
        let request = format!(
            "GET /metrics?token={} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n",
            page.token
        );
        page.send(&request).ok()
    });
    assert_eq!(
        metric(
            &answer.body,
            "ipbroker_tasks_finished_total{outcome=\"ok\"}"
        ),
        500.0
    );
    drop(stuck);
}

#[test]
fn who_shows_no_token_takes_no_place() {
    let (_cluster, page) = watched(&["--nodb", "--web"]);
    let mut strangers = Vec::new();
    for _ in 0..200 {
        let mut stream = page.connect().unwrap();
        let _ = stream.write_all(b"GET / HTTP/1.1\r\nHost: 127.");
        strangers.push(stream);
        if strangers.len() % 40 == 0 {
            assert_eq!(page.get("/metrics", &[]).status, 401);
            let answer = page.get(&format!("/metrics?token={}", page.token), &[]);
            assert_eq!(answer.status, 200, "beside {} others", strangers.len());
        }
    }
}

#[test]
fn who_shows_the_token_and_never_reads_keeps_nobody_out() {
    let (_cluster, page) = watched(&["--nodb", "--web"]);
    let mut others = Vec::new();
    for path in ["/events", "/"] {
        for _ in 0..200 {
            let mut stream = page.connect().unwrap();
            let token = &page.token;
            let request = format!("GET {path}?token={token} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n");
            // One whose place was needed need not be told.
            let _ = stream.write_all(request.as_bytes());
            others.push(stream);
            if others.len() % 40 == 0 {
                let answer = page.own("/metrics");
                assert_eq!(answer.status, 200, "beside {} others", others.len());
            }
        }
    }
    assert_eq!(page.events().next().unwrap().0, "past");
}

#[test]
fn broken_requests_harm_nothing() {
    let (mut cluster, page) = watched(&["--web"]);
    let head = format!(
        "Host: 127.0.0.1\r\nAuthorization: Bearer {}\r\n",
        page.token
    );
    let get = |path: &str| format!("GET {path} HTTP/1.1\r\n{head}Accept: text/plain;q=0.5\r\n\r\n");
    let post = |name: &str, content: Value| {
        let (content, kind) = (
            content.to_string(),
            "Content-Type: application/json; charset=utf-8",
        );
        let length = content.len();
        format!(
            "POST /ask/{name} HTTP/1.1\r\n{head}{kind}\r\nContent-Length: {length}\r\n\r\n{content}"
        )
    };
    let seeds = [
        get("/"),
        get("/events"),
        get(&format!("/metrics?token={}", page.token)),
        post("explain_request", json!({"msg_id": "a_1:3"})),
        post("graph_request", json!({"msg_id": "a_1", "tasks": 5})),
        post("search_request", json!({"text": "a", "before": ""})),
        post("output_request", json!({"msg_id": "a_1", "seen": [0, 0]})),
        post(
            "result_request",
            json!({"msg_ids": ["a_1"], "buffers": false}),
        ),
        post("resubmit_request", json!({"msg_ids": ["a_1"]})),
        post("abort_request", json!({"msg_ids": ["a_1"], "kill": true})),
        post("scale_request", json!({"remove": [0], "now": true})),
    ];
    let seeds = seeds.map(String::into_bytes);
    let mut random = SmallRng::seed_from_u64(17);
    for at in 0..3000 {
        let mut request = seeds[at % seeds.len()].clone();
        for _ in 0..random.random_range(0..4) {
            mutate(&mut random, &mut request, &seeds);
        }
        let mut stream = page.connect().unwrap();
        // What is refused early need not be read to its end.
        let _ = stream.write_all(&request);
        let _ = stream.shutdown(Shutdown::Write);
        if let Err(error) = stream.read(&mut [0; 100]) {
            let kind = error.kind();
            assert_eq!(
                kind,
                std::io::ErrorKind::ConnectionReset,
                "{}",
                request.escape_ascii()
            );
        }
    }
    assert_eq!(page.own("/metrics").status, 200);
    let said = cluster.controller().stderr();
    assert!(!said.contains("panicked"), "{said}");
}

#[test]
fn the_pages_port_and_token() {
    let (mut cluster, page) = watched(&["--nodb", "--reuse", "--web"]);
    let port = format!("--web={}", page.port);
    let mut second = cluster.bare("ipctl");
    second.args(["--profile-dir", "other", "--nodb", &port]);
    let run = ipbroker_tests::programs::run(second, cluster.dir(), "", LIMIT);
    assert_ne!(run.code(), 0);
    assert!(
        run.stderr.contains(&page.port.to_string()) && run.stderr.contains("--web=PORT"),
        "{}",
        run.stderr
    );
    // Who scrapes need not be told anew after a restart.
    cluster.stop_controller().ok();
    cluster.start_controller_with(&[&port]);
    let again = eventually("the page's address", LIMIT, || {
        Page::printed(&cluster.controller().stdout())
    });
    assert_eq!((again.port, again.token), (page.port, page.token));
}

/// What the page is told of a submission, as one line a task: name, state, what it waits for.
fn graph(page: &Page, request: &Value) -> Vec<String> {
    let answer = page.post("/ask/graph_request", &request.to_string());
    let answer: Value = serde_json::from_str(&answer.body).unwrap_or_else(|e| panic!("{e}"));
    let tasks = answer["tasks"].as_array();
    let tasks = tasks.unwrap_or_else(|| panic!("{answer}")).iter();
    tasks
        .map(|task| {
            format!("{} {} {}", task["name"], task["state"], task["after"]).replace('"', "")
        })
        .collect()
}

#[test]
fn a_graph_as_it_runs() {
    let (cluster, page) = watched(&["--web", "-n", "2"]);
    cluster.wait_engines(2);
    // The first two are members of one array.
    let jobs = [
        json!({"id": "a", "cmd": "while [ ! -e go ]; do sleep 0.02; done # a"}),
        json!({"id": "b", "cmd": "exit 3 # b"}),
        json!({"id": "c", "after": "a", "cmd": "true # c"}),
        json!({"id": "d", "after": ["a", "b"], "cmd": "true # d"}),
        json!({"id": "e", "after": "c", "follow": "a", "cmd": "true # e"}),
    ];
    let lines: String = jobs.iter().map(|job| format!("{job}\n")).collect();
    let ids = cluster.client_with(&["submit", "-"], &lines, LIMIT).ok();
    let ids: Vec<&str> = ids.stdout.lines().collect();
    let row = page
        .events()
        .map(|(_, sample)| sample["submissions"][0].clone())
        .find(|row| row["total"] == json!(5))
        .expect("a sample with the submission");
    assert_eq!(row["dependent"], json!(3));
    let request = json!({"msg_id": row["id"], "tasks": row["total"]});
    let told = |name: &str, wanted: [&str; 5]| {
        let mut last = Vec::new();
        eventually(name, LIMIT, || {
            let mut told = graph(&page, &request);
            told.sort();
            if told != last {
                // Shown if it stays so.
                eprintln!("{told:#?}");
                last.clone_from(&told);
            }
            (told == wanted).then_some(())
        });
    };
    told(
        "the graph while a task runs",
        [
            "exit 3 # b failed []",
            "true # c waiting [0]",
            "true # d impossible [0,1]",
            "true # e waiting [0,2]",
            "while [ ! -e go ]; do sleep 0.02; done # a running []",
        ],
    );
    // It is what is said of each task by itself.
    let answer = page.post("/ask/graph_request", &request.to_string());
    let answer: Value = serde_json::from_str(&answer.body).unwrap();
    assert_eq!(answer["whole"], json!(true));
    for task in answer["tasks"].as_array().unwrap() {
        let id = task["id"].as_str().unwrap();
        assert!(ids.contains(&id), "{id} is none of {ids:?}");
        let explained = cluster.client(&["explain", "--json", id]).ok();
        let explained: Value = serde_json::from_str(&explained.stdout).unwrap();
        match task["state"].as_str().unwrap() {
            "failed" | "impossible" => assert_eq!(explained["state"], json!("done")),
            state => assert_eq!(explained["state"], json!(state)),
        }
    }
    cluster.write("go", "");
    told(
        "the graph at the end",
        [
            "exit 3 # b failed []",
            "true # c ok [0]",
            "true # d impossible [0,1]",
            "true # e ok [0,2]",
            "while [ ! -e go ]; do sleep 0.02; done # a ok []",
        ],
    );
    for (content, word) in [
        (json!({"msg_id": "nobody"}), "KeyError"),
        (json!({}), "KeyError"),
        (json!({"msg_id": 5}), "ValueError"),
        (json!({"msg_id": row["id"], "tasks": -1}), "ValueError"),
    ] {
        let answer = page.post("/ask/graph_request", &content.to_string());
        assert!(answer.body.contains(word), "{content}: {}", answer.body);
    }
    for token in ["", "?token=", "?token=0123"] {
        let answer = page.get(&format!("/ask/graph_request{token}"), &[]);
        assert!(
            matches!(answer.status, 401 | 403),
            "{token}: {}",
            answer.status
        );
    }
    let (_cluster, page) = watched(&["--nodb", "--web"]);
    let answer = page.post("/ask/graph_request", &request.to_string());
    assert!(answer.body.contains("keeps no history"), "{}", answer.body);
}

#[test]
fn of_a_large_graph_a_part_is_told() {
    let (cluster, page) = watched(&["--web"]);
    let client = RawClient::new(&cluster, "task");
    let first = client.call("noop", &Value::Null, json!({}));
    for _ in 0..2500 {
        client.call("noop", &Value::Null, json!({"after": first}));
    }
    let request = json!({"msg_id": first, "tasks": 2501});
    let told = eventually("the tasks", LIMIT, || {
        let answer = page.post("/ask/graph_request", &request.to_string());
        let told: Value = serde_json::from_str(&answer.body).unwrap();
        (told["tasks"].as_array()?.len() == 2000).then_some(told)
    });
    assert_eq!(told["whole"], json!(false));
    let [first, .., last] = &told["tasks"].as_array().unwrap()[..] else {
        panic!("{told}")
    };
    assert_eq!(
        (&first["name"], &first["state"]),
        (&json!("noop"), &json!("waiting"))
    );
    assert_eq!(last["after"], json!([0]));
}

/// A cluster that has run a graph (as single messages), an array with a failure, and keeps a history.
#[track_caller]
fn past() -> Cluster {
    let cluster = Cluster::builder().args(["-n", "2"]).start();
    cluster.wait_engines(2);
    let mut lines = String::new();
    for n in 0..30 {
        lines += &format!("{{\"cmd\": \"echo {n}\"}}\n");
    }
    lines += "{\"cmd\": \"echo cannot read input >&2; exit 4\"}\n";
    lines += "{\"id\": \"first\", \"cmd\": \"sleep 0.3\"}\n";
    lines += "{\"id\": \"second\", \"cmd\": \"sleep 0.2 # second\", \"after\": [\"first\"]}\n";
    lines += "{\"id\": \"third\", \"cmd\": \"sleep 0.1 # third\", \"after\": [\"second\"]}\n";
    cluster.write("jobs.jsonl", &lines);
    let run = cluster.client(&["run", "--capture", "jobs.jsonl"]);
    assert_eq!(run.code(), 1, "{run:?}");
    let id = cluster
        .client_with(&["submit", "-"], "{\"cmd\": \"true # submitted\"}\n", LIMIT)
        .ok();
    cluster.client(&["wait", id.stdout.trim()]).ok();
    cluster
}

#[test]
fn a_trace_of_the_past() {
    let cluster = past();
    cluster.client(&["trace", "-o", "trace.json"]).ok();
    let trace: Value = serde_json::from_str(&cluster.read("trace.json")).unwrap();
    let events = trace["traceEvents"].as_array().unwrap();
    let of = |phase: &str| -> Vec<&Value> {
        events.iter().filter(|event| event["ph"] == phase).collect()
    };
    let slices = of("X");
    assert_eq!(slices.len(), 35, "{slices:?}");
    let named = |name: &str| {
        *slices
            .iter()
            .find(|slice| slice["name"] == name)
            .unwrap_or_else(|| panic!("no {name}"))
    };
    for n in 0..30 {
        named(&format!("echo {n}"));
    }
    let failed = named("echo cannot read input >&2; exit 4");
    assert_eq!(
        (&failed["cat"], &failed["args"]["said"]),
        (&json!("failed"), &json!("cannot read input"))
    );
    let (first, second, third) = (
        named("sleep 0.3"),
        named("sleep 0.2 # second"),
        named("sleep 0.1 # third"),
    );
    let end = |slice: &Value| slice["ts"].as_f64().unwrap() + slice["dur"].as_f64().unwrap();
    assert!(first["dur"].as_f64().unwrap() > 250e3, "{first}");
    assert!(
        end(first) <= second["ts"].as_f64().unwrap() + 1.0
            && end(second) <= third["ts"].as_f64().unwrap() + 1.0
    );
    // Two dependencies, each an arrow with two ends.
    let (begins, ends) = (of("s"), of("f"));
    assert_eq!((begins.len(), ends.len()), (2, 2));
    let threads: Vec<&Value> = of("M")
        .into_iter()
        .filter(|event| event["name"] == "thread_name")
        .collect();
    assert_eq!(threads.len(), 2, "{threads:?}");
    // Only what was asked for.
    let only = cluster
        .client(&["trace", "-o", "-", second["args"]["id"].as_str().unwrap()])
        .ok();
    let only: Value = serde_json::from_str(&only.stdout).unwrap();
    let only = only["traceEvents"].as_array().unwrap().iter();
    let names: Vec<&Value> = only
        .filter(|event| event["ph"] == "X")
        .map(|event| &event["name"])
        .collect();
    assert_eq!(names, ["sleep 0.2 # second"]);
    for (args, word) in [
        (&["trace", "-o", "t", "--since", "yesterday"][..], "2h"),
        (&["trace", "-o", "t", "no-such-id"], "no-such-id"),
        (&["trace", "-o", "none/t"], "none/t"),
        (&["trace"], "--output"),
    ] {
        let run = cluster.client(args);
        assert_ne!(run.code(), 0);
        assert!(
            run.stderr.contains(word) && run.stderr.lines().count() == 1,
            "{}",
            run.stderr
        );
    }
}

/// The history is read a part at a time, so that the hub has time for others.
#[test]
fn a_long_past_is_read_in_parts() {
    let cluster = Cluster::builder().start();
    let jobs: String = (0..4500)
        .map(|n| format!("{{\"cmd\": \"true {n}\"}}\n"))
        .collect();
    let ids = cluster.client_with(&["submit", "-"], &jobs, LIMIT).ok();
    let ids: Vec<&str> = ids.stdout.lines().collect();
    let part = |after: &Value, limit: Value| {
        let client = RawClient::new(&cluster, "registration");
        let query = json!({"submitted": {"$ne": null}});
        let request = json!({"query": query, "keys": ["msg_id"], "after": after, "limit": limit});
        client.ask("db_request", request).content
    };
    eventually("the history to have them", LIMIT, || {
        let drawn = cluster.client(&["trace", "-o", "trace.json"]);
        drawn
            .stderr
            .contains("4500 tasks in trace.json")
            .then_some(())
    });
    for (after, limit) in [(0, json!(0)), (0, json!("5")), (-1, json!(5))] {
        let refused = part(&json!(after), limit);
        assert_eq!(refused["ename"], json!("ValueError"), "{refused}");
    }
    let (mut found, mut sizes, mut after) = (Vec::new(), Vec::new(), json!(0));
    while !after.is_null() {
        let mut part = part(&after, json!(2000));
        let records = part["records"].as_array().expect("records");
        sizes.push(records.len());
        found.extend(
            records
                .iter()
                .map(|record| record["msg_id"].as_str().unwrap().to_owned()),
        );
        after = part["next"].take();
    }
    assert_eq!(sizes, [2000, 2000, 500]);
    assert_eq!(found, ids);
}

#[test]
fn a_report_of_the_past() {
    let cluster = past();
    cluster
        .client(&["report", "--since", "1h", "-o", "report.html"])
        .ok();
    let html = cluster.read("report.html");
    for part in [
        "<h1>35 tasks</h1>",
        "<dt>ended well</dt><dd>34</dd>",
        "<dt>failed</dt><dd>1</dd>",
        "<dt>engines</dt><dd>2</dd>",
        "cannot read input",
        "The longest chain of tasks that waited for each other: 3 tasks",
        "sleep 0.1 # third",
    ] {
        assert!(html.contains(part), "no {part:?} in\n{html}");
    }
    assert!(
        !html.contains("<script") && !html.contains("http"),
        "{html}"
    );
    let none = cluster.client(&["report", "--since", "0s", "-o", "none.html"]);
    assert_ne!(none.code(), 0);
    assert!(none.stderr.contains("nothing to report") && !cluster.path("none.html").exists());
}

#[test]
fn events_as_they_happen() {
    let mut cluster = Cluster::builder().arg("--nodb").start();
    let told = cluster.start_client(&["events"]);
    cluster.start_engines(1);
    cluster.wait_engines(1);
    let said = |word: &str| {
        eventually(word, LIMIT, || {
            let stdout = told.stdout();
            stdout
                .lines()
                .find(|line| line.contains(word))
                .map(str::to_owned)
        })
    };
    said("engine 0 on");
    let line = "{\"cmd\": \"echo not today >&2; false\"}\n";
    cluster.client_with(&["run", "--capture", "-"], &line.repeat(3), LIMIT);
    said("begins: 3 tasks, echo not today >&2; false");
    said("3 of 3 ended, 3 failed");
    said("failed: not today");
    // Who comes later is told when it was.
    let clock = |line: String| line.split(' ').next().unwrap().to_owned();
    let ended = clock(said("3 of 3 ended"));
    let second = || SystemTime::UNIX_EPOCH.elapsed().unwrap().as_secs();
    let now = second();
    eventually("another second", LIMIT, || (second() > now).then_some(()));
    let later = cluster.client(&["events", "--samples", "1"]).ok().stdout;
    let line = later.lines().find(|line| line.contains("3 of 3 ended"));
    assert_eq!(
        clock(line.expect("it is told").to_owned()),
        ended,
        "{later}"
    );
    cluster.engines.clear();
    said("is gone");
    let json = cluster.client(&["events", "--json", "--samples", "2"]).ok();
    let samples = json.json_lines();
    assert_eq!(samples.len(), 2);
    assert_eq!(
        samples[1]["seq"].as_u64(),
        samples[0]["seq"].as_u64().map(|seq| seq + 1)
    );
    assert_eq!(samples[1]["tasks"]["failed"], json!(3));
}

/// Engines tell with their heartbeats how loaded their host is.
#[test]
fn hosts_are_watched() {
    let cluster = Cluster::builder()
        .args(["--nodb", "-n", "2", "--ping", "200"])
        .start();
    cluster.wait_engines(2);
    let client = RawClient::new(&cluster, "task");
    client.command("while :; do :; done", json!({}));
    let hosts = || {
        let sample = cluster.client(&["events", "--json", "--samples", "1"]).ok();
        sample.json_lines()[0]["hosts"].clone()
    };
    let host = eventually("a host with a busy engine and a busy core", LIMIT, || {
        let host = hosts()[0].clone();
        let busy = host["busy"] == json!(1) && host["load"]["cpu"].as_f64()? > 0.1;
        busy.then_some(host)
    });
    assert_eq!(host["engines"], json!(2), "{host}");
    assert!(host["load"]["cpu"].as_f64().unwrap() <= 1.0, "{host}");
    for what in ["memory", "disk"] {
        let [used, all] = [0, 1].map(|at| host["load"][what][at].as_u64().unwrap());
        assert!(0 < used && used < all, "{what}: {host}");
    }
    let plain = cluster.start_client(&["top", "--plain", "--interval", "0.3"]);
    eventually("top to show it", LIMIT, || {
        let text = plain.stdout();
        (text.contains(", 1 of 2 engines busy, cpu ") && text.contains(" %, memory ")).then_some(())
    });
}

#[test]
fn the_address_of_the_page_is_told() {
    let mut cluster = Cluster::builder().args(["--nodb", "--web=0"]).start();
    let url = cluster.client(&["web"]).ok().stdout;
    let printed = cluster.controller().stdout();
    assert!(
        url.starts_with("http://127.0.0.1:") && printed.contains(&url),
        "{url} {printed}"
    );
    let without = Cluster::builder().arg("--nodb").start();
    let refused = without.client(&["web"]);
    assert_eq!(refused.code(), 1);
    assert!(refused.stderr.contains("ipctl --web"), "{}", refused.stderr);
}

/// The line that starts `ipclient top`, and what it has in its environment.
fn top_line(cluster: &Cluster) -> (String, Vec<(OsString, OsString)>) {
    let (program, profile) = (program("ipclient"), cluster.profile());
    let line = format!(
        "{} --profile-dir {} top",
        program.display(),
        profile.display()
    );
    let command = cluster.bare("ipclient");
    let environment = command.get_envs();
    let environment = environment.filter_map(|(name, value)| Some((name.into(), value?.into())));
    (line, environment.collect())
}

/// `ipclient top` in a terminal of 80 by 24, and where its keys go.
fn top(cluster: &Cluster) -> (Program, fs::File) {
    let fifo = cluster.path("keys");
    let made = Command::new("mkfifo").arg(&fifo).status().expect("mkfifo");
    assert!(made.success());
    // Of both directions: opening it waits for nobody.
    let keys = fs::OpenOptions::new()
        .read(true)
        .write(true)
        .open(&fifo)
        .unwrap();
    let (line, environment) = top_line(cluster);
    // From util-linux: runs a command in a terminal of its own.
    let mut command = Command::new("script");
    command
        .args(["-qec", &format!("stty rows 24 cols 80; exec {line}")])
        .arg("/dev/null")
        .envs(environment)
        .env("TERM", "xterm")
        .current_dir(cluster.dir())
        .stdin(keys.try_clone().unwrap());
    (Program::spawn(command, cluster.dir()), keys)
}

/// Waits until the terminal shows all of these; what it shows then.
#[track_caller]
fn shown(terminal: &Program, words: &[&str]) -> String {
    shows(words, || {
        let mut parser = vt100::Parser::new(24, 80, 0);
        parser.process(terminal.stdout().as_bytes());
        parser.screen().contents()
    })
}

#[track_caller]
fn shows(words: &[&str], screen: impl Fn() -> String) -> String {
    let mut last = String::new();
    for word in words {
        eventually(word, LIMIT, || {
            last = screen();
            last.contains(word).then_some(())
        });
    }
    last
}

/// Entering and leaving the other screen, as terminals are told.
const SCREEN: [&str; 2] = ["\x1b[?1049h", "\x1b[?1049l"];

#[test]
fn top_in_a_terminal() {
    let cluster = Cluster::builder().args(["--nodb", "-n", "2"]).start();
    cluster.wait_engines(2);
    let jobs =
        "{\"cmd\": \"echo bad luck >&2; exit 1\", \"capture\": 65536}\n{\"cmd\": \"sleep 88\"}\n";
    let id = cluster.client_with(&["submit", "-"], jobs, LIMIT).ok();
    let running = id.stdout.lines().nth(1).unwrap().to_owned();
    let (terminal, mut keys) = top(&cluster);
    let said = |words: &[&str]| shown(&terminal, words);
    said(&[
        "2 engines",
        "Submission",
        "1/2",
        "sleep 88",
        "bad luck",
        "q quit",
    ]);
    assert!(terminal.stdout().contains(SCREEN[0]));
    let mut press = |text: &str| keys.write_all(text.as_bytes()).unwrap();
    press("?");
    said(&["Page Up, Page Down"]);
    press(" /SLEEP 8");
    said(&["/SLEEP 8_"]);
    let filtered = eventually("only the engine that sleeps", LIMIT, || {
        let all = said(&["/SLEEP 8_"]);
        (!all.contains("idle") && !all.contains("bad luck")).then_some(all)
    });
    assert!(filtered.contains("sleep 88"), "{filtered}");
    press("\x7f\r");
    said(&["/SLEEP   Esc: all"]);
    press("\x1b");
    said(&["idle", "q quit"]);
    press("ssf");
    said(&["Ended*", "Submission f"]);
    // Abort asks first.
    press("a");
    said(&["Abort 1 task of this client"]);
    press("n");
    press("ay");
    said(&["being stopped"]);
    cluster.client(&["wait", "--timeout", "20", &running]);
    let status = cluster.status();
    assert_eq!(status["tasks"]["aborted"], json!(1), "{status}");
    press("q");
    let ended = terminal.finish(LIMIT).ok();
    assert!(ended.stdout.contains(SCREEN[1]), "{}", ended.stdout);
    // Nothing is said in colour.
    for color in ["\x1b[3", "\x1b[4", "\x1b[9"] {
        for end in ["0", "1", "2", "3", "4", "5", "6", "7", "8"] {
            let colored = format!("{color}{end}m");
            assert!(!ended.stdout.contains(&colored), "{colored:?}");
        }
    }
}

#[test]
fn top_gives_the_terminal_back_on_a_signal() {
    for signal in [Signal::TERM, Signal::HUP, Signal::INT, Signal::QUIT] {
        let cluster = Cluster::builder().arg("--nodb").start();
        let (terminal, _keys) = top(&cluster);
        shown(&terminal, &["q quit"]);
        let tops = cluster.processes().into_iter();
        let mut tops = tops.filter(|(_, line)| {
            line.contains("ipclient") && line.trim_end().ends_with(" top") && !line.contains("stty")
        });
        let (pid, _) = tops.next().expect("it runs");
        rustix::process::kill_process(Pid::from_raw(pid).unwrap(), signal).unwrap();
        let ended = terminal.finish(LIMIT);
        assert_eq!(ended.code(), 128 + signal.as_raw(), "{ended:?}");
        assert!(ended.stdout.contains(SCREEN[1]), "{}", ended.stdout);
    }
}

#[test]
fn top_opens_the_page_of_a_task() {
    let cluster = Cluster::builder().args(["-n", "1"]).start();
    cluster.wait_engines(1);
    let jobs = "{\"cmd\": \"echo bad luck >&2; exit 1\"}\n\
                {\"cmd\": \"echo one; until [ -e go ]; do sleep 0.02; done; echo oops >&2; sleep 66\"}\n\
                {\"cmd\": \"echo later\"}\n";
    let submitted = cluster.client_with(&["submit", "--capture", "-"], jobs, LIMIT);
    let ids: Vec<String> = submitted.ok().stdout.lines().map(str::to_owned).collect();
    let (terminal, mut keys) = top(&cluster);
    let mut press = |text: &str| keys.write_all(text.as_bytes()).unwrap();
    let page = |id: &str| format!("Task {id}");
    shown(&terminal, &["1/3", "bad luck"]);
    // The first of the submission that has not ended.
    press("\r");
    let words = [
        "echo one; until",
        "engine 0 on",
        "running",
        "one",
        "Esc back",
    ];
    shown(&terminal, &[&page(&ids[1])]);
    shown(&terminal, &words);
    cluster.write("go", "");
    shown(&terminal, &["standard error", "oops"]);
    // The failure, from the last table.
    press("\x1b");
    shown(&terminal, &["q quit", "Works on"]);
    press("\x1b[Z\r");
    shown(&terminal, &[&page(&ids[0])]);
    shown(&terminal, &["exit 1", "done", "said    ", "bad luck"]);
    press("r");
    shown(&terminal, &["again?"]);
    press("y");
    shown(&terminal, &["1 submitted again"]);
    // Of one that has ended as a whole: the first, with its command.
    cluster.client(&["abort", &ids[1], &ids[2]]).ok();
    press("\x1b");
    shown(&terminal, &["Works on", "4/4"]);
    press("\t\x1b[F\r");
    shown(
        &terminal,
        &[&page(&ids[0]), "what    echo bad luck", "exit 1"],
    );
    press("q");
    terminal.finish(LIMIT).ok();
}

#[test]
fn the_page_of_a_task_keeps_its_command() {
    let cluster = Cluster::builder().args(["--nodb", "-n", "1"]).start();
    cluster.wait_engines(1);
    let job = "{\"cmd\": \"until [ -e go ]; do sleep 0.02; done # here\"}\n";
    cluster.client_with(&["submit", "-"], job, LIMIT).ok();
    let (terminal, mut keys) = top(&cluster);
    shown(&terminal, &["0/1", "until [ -e"]);
    keys.write_all(b"\r").unwrap();
    shown(&terminal, &["running", "what    until [ -e go ]"]);
    cluster.write("go", "");
    shown(&terminal, &["done"]);
    shown(&terminal, &["what    until [ -e go ]"]);
    keys.write_all(b"q").unwrap();
    terminal.finish(LIMIT).ok();
}

#[test]
fn top_in_tmux() {
    if !Command::new("tmux")
        .arg("-V")
        .output()
        .is_ok_and(|tmux| tmux.status.success())
    {
        eprintln!("skipped: no tmux here");
        return;
    }
    let cluster = Cluster::builder().args(["-n", "2"]).start();
    cluster.wait_engines(2);
    let job = "{\"cmd\": \"echo one; until [ -e go ]; do sleep 0.02; done; echo two; sleep 77\"}\n";
    let submitted = cluster.client_with(&["submit", "--capture", "-"], job, LIMIT);
    let id = submitted.ok().stdout.trim_end().to_owned();
    let (line, environment) = top_line(&cluster);
    let tmux = |args: &[&str]| {
        let mut command = Command::new("tmux");
        command
            .args(["-f", "/dev/null", "-S"])
            .arg(cluster.path("tmux"));
        let done = command
            .args(args)
            .envs(environment.iter().cloned())
            .env_remove("TMUX");
        let done = done.current_dir(cluster.dir()).output().expect("tmux");
        String::from_utf8_lossy(&done.stdout).into_owned()
    };
    let open = |name: &str, line: &str| {
        tmux(&[
            "new-session",
            "-d",
            "-s",
            name,
            "-x",
            "80",
            "-y",
            "24",
            line,
        ]);
    };
    let screen = || tmux(&["capture-pane", "-p", "-t", "=top:"]);
    let press = |keys: &[&str]| drop(tmux(&[&["send-keys", "-t", "=top:"], keys].concat()));
    open("top", &line);
    shows(&["2 engines", "0/1", "Works on", "echo one"], screen);
    press(&["Tab", "s", "s", "s", "s", "s"]);
    shows(&["Has*"], screen);
    press(&["Enter"]);
    shows(
        &[
            &format!("Task {id}"),
            "running",
            "standard output",
            "\none\n",
        ],
        screen,
    );
    cluster.write("go", "");
    shows(&["\none\ntwo\n"], screen);
    press(&["a"]);
    shows(&[&format!("Abort {id}?")], screen);
    press(&["y"]);
    shows(&["being stopped", "done"], screen);
    press(&["Escape"]);
    eventually("both engines to be idle", LIMIT, || {
        let all = screen();
        (all.matches(" idle").count() == 2 && all.contains("1/1")).then_some(())
    });
    // A request that nobody answers holds nothing up: neither keys nor the end.
    cluster.client_with(&["submit", "-"], job, LIMIT).ok();
    shows(&["0/1"], screen);
    let controller = cluster.controller.as_ref().expect("a controller");
    controller.signal(Signal::STOP);
    press(&["Tab", "Tab", "Home", "a"]);
    shows(&["Abort 1 task"], screen);
    press(&["y"]);
    press(&["?"]);
    shows(&["Ctrl-C     quit"], screen);
    // A key takes away what was said: it comes before that.
    press(&["Escape"]);
    eventually("the help to go", LIMIT, || {
        (!screen().contains("Ctrl-C     quit")).then_some(())
    });
    controller.signal(Signal::CONT);
    shows(&["being stopped"], screen);
    // Ctrl-Z and a signal leave the shell its terminal, and `fg` goes on with what there was.
    open("shell", "env PS1='$ ' bash --norc -i");
    let shell = || tmux(&["capture-pane", "-p", "-t", "=shell:"]);
    let typed = |keys: &[&str]| drop(tmux(&[&["send-keys", "-t", "=shell:"], keys].concat()));
    let tops = || {
        let program = program("ipclient").to_string_lossy().into_owned();
        let processes = cluster.processes().into_iter();
        let tops = processes
            .filter(|(_, line)| line.trim_end().ends_with(" top") && line.starts_with(&program));
        tops.map(|(pid, _)| pid).collect::<Vec<i32>>()
    };
    let other = tops();
    typed(&[&line, "Enter"]);
    for stop in ["key", "signal"] {
        shows(&["2 engines", "Works on", "q quit"], shell);
        match stop {
            "key" => typed(&["C-z"]),
            _ => {
                let mut ours = tops().into_iter().filter(|pid| !other.contains(pid));
                let ours = ours.next().expect("it runs");
                rustix::process::kill_process(Pid::from_raw(ours).unwrap(), Signal::TSTP).unwrap();
            }
        }
        shows(&["Stopped"], shell);
        assert!(!shell().contains("Works on"), "{}", shell());
        typed(&["fg", "Enter"]);
    }
    shows(&["2 engines", "Works on", "q quit"], shell);
    typed(&["q"]);
    // As long as it is there, it may take keys that are the shell's.
    eventually("the shell's turn", LIMIT, || {
        (tops() == other).then_some(())
    });
    typed(&["exit", "Enter"]);
    // The second one keeps tmux running.
    open("gone", &format!("trap '' HUP; {line}; echo $? > code"));
    shows(&["2 engines"], || {
        tmux(&["capture-pane", "-p", "-t", "=gone:"])
    });
    press(&["q"]);
    eventually("it to end", LIMIT, || {
        (tmux(&["list-sessions", "-F", "#S"]) == "gone\n").then_some(())
    });
    // A terminal that goes away ends it, too, and in order.
    tmux(&["kill-server"]);
    let code = eventually("it to end", LIMIT, || {
        let code = fs::read_to_string(cluster.path("code")).ok()?;
        code.trim_end().parse::<i32>().ok()
    });
    assert!([1, 128 + 1].contains(&code), "{code}");
}

#[test]
fn top_without_a_terminal() {
    let cluster = Cluster::builder().args(["--nodb", "-n", "1"]).start();
    cluster.wait_engines(1);
    let refused = cluster.client(&["top"]);
    assert_eq!(refused.code(), 2);
    assert!(refused.stderr.contains("--plain"), "{}", refused.stderr);
    cluster
        .client_with(&["submit", "-"], "{\"cmd\": \"sleep 99\"}\n", LIMIT)
        .ok();
    let plain = cluster.start_client(&["top", "--plain", "--interval", "0.3"]);
    eventually("two blocks", LIMIT, || {
        let stdout = plain.stdout();
        let blocks = stdout
            .split("\n\n")
            .filter(|block| block.contains("engine 0 on") && block.contains("sleep 99, for "));
        (blocks.count() >= 2 && !stdout.contains('\x1b')).then_some(())
    });
}
