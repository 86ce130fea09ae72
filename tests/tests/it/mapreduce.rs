//! `ipclient mapreduce` and `--locate` (document 003).

use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::PermissionsExt,
    path::Path,
    process::{Command, Stdio},
};

use ipbroker_tests::{Cluster, Finished, LIMIT, Program, eventually, program, programs};
use serde_json::Value;

/// One word a line, and nothing else.
const WORDS: &str = "tr -cs A-Za-z '\\n' | sed '/^$/d'";

fn place() -> Cluster {
    Cluster::builder().prepare()
}

#[track_caller]
fn mapreduce(place: &Cluster, args: &[&str]) -> Finished {
    let mut command = place.bare("ipclient");
    command.args(["mapreduce", "--local", "2"]).args(args);
    programs::run(command, place.dir(), "", LIMIT * 2)
}

/// What a shell says to the same.
#[track_caller]
fn shell(place: &Cluster, command: &str) -> String {
    let mut bash = Command::new("/bin/bash");
    bash.current_dir(place.dir())
        .args(["-o", "pipefail", "-c", command])
        .env("LC_ALL", "C");
    programs::run(bash, place.dir(), "", LIMIT).ok().stdout
}

fn sorted(text: &str) -> Vec<&str> {
    let mut lines: Vec<&str> = text.lines().collect();
    lines.sort_unstable();
    lines
}

/// The documentation, as a text of some size.
fn write_texts(dir: &Path) {
    let docs = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs");
    for name in ["tasks", "start", "operations", "coming-from"] {
        let pages = fs::read_dir(docs.join(name))
            .unwrap()
            .map(|entry| entry.unwrap().path());
        let mut pages: Vec<_> = pages
            .filter(|path| path.extension().is_some_and(|e| e == "md"))
            .collect();
        pages.sort();
        let text: String = pages
            .iter()
            .map(|page| fs::read_to_string(page).unwrap())
            .collect();
        fs::write(dir.join(format!("{name}.txt")), text).unwrap();
    }
    fs::write(dir.join("empty.txt"), "").unwrap();
    fs::write(dir.join("last.txt"), "no line break at the end").unwrap();
}

/// Small chunks: several mappers a file; the last files go together.
#[test]
fn words_are_counted_as_a_shell_counts_them() {
    let place = place();
    write_texts(place.dir());
    let files = [
        "tasks.txt",
        "start.txt",
        "empty.txt",
        "operations.txt",
        "last.txt",
    ];
    let counted = shell(
        &place,
        &format!("cat {} | {WORDS} | sort | uniq -c", files.join(" ")),
    );
    let small = ["--map-chunksize", "10K", "--reducers", "3"];
    let run = |more: &[&str], reducer: &str| {
        let args = [&small[..], more, &[WORDS, reducer], &files].concat();
        mapreduce(&place, &args).ok()
    };
    let plain = run(&[], "uniq -c");
    assert_eq!(sorted(&plain.stdout), sorted(&counted));
    assert!(
        plain.stderr.contains("total 3 jobs on 2 engines"),
        "{}",
        plain.stderr
    );
    // The reducers' own output, in files; each is sorted, and no key is in two of them.
    let sum = "awk -F'\\t' '{ n[$1] += $2 } END { for (w in n) printf \"%7d %s\\n\", n[w], w }' | sort -k2";
    let combiner = "uniq -c | awk '{ print $2 \"\\t\" $1 }'";
    let json = run(&["--combiner", combiner, "-o", "counts", "--json"], sum);
    let parts = ["part-00000", "part-00001", "part-00002"]
        .map(|part| place.read(&format!("counts/{part}")));
    assert!(parts.iter().all(|part| !part.is_empty()));
    assert_eq!(sorted(&parts.concat()), sorted(&counted));
    let said: Value = serde_json::from_str(&json.stdout).unwrap();
    assert_eq!(
        (&said["files"], &said["sent"], &said["reduce"]["jobs"]),
        (&5.into(), &false.into(), &3.into())
    );
    assert!(said["map"]["jobs"].as_u64().unwrap() > 5, "{said}");
    // A second run does not mix its files with those.
    let again = mapreduce(&place, &["-o", "counts", "cat", "cat", "last.txt"]);
    assert_eq!(again.code(), 2);
    assert_eq!(
        again.stderr,
        "ipclient: --output counts: there are files in it already: name a new directory\n"
    );
}

#[test]
fn bytes_are_bytes() {
    let place = place();
    let mut noise = Vec::new();
    let mut state = 1u32;
    for _ in 0..200_000 {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        noise.push((state >> 24) as u8);
    }
    noise.push(b'\n');
    fs::write(place.path("noise"), &noise).unwrap();
    let key = "k".repeat(1_000_000);
    place.write("long", &format!("{key}\t1\nb\n{key}\t2\n"));
    mapreduce(
        &place,
        &[
            "-o",
            "out",
            "--map-chunksize",
            "30K",
            "cat",
            "cat",
            "noise",
            "long",
        ],
    )
    .ok();
    let out = shell(
        &place,
        "cmp <(cat out/* | sort) <(cat noise long | sort) && echo same",
    );
    assert_eq!(out, "same\n");
    // Values of a key stay in the order of the input.
    let count = mapreduce(&place, &["cat", "cut -f2", "long"]).ok();
    assert_eq!(sorted(&count.stdout), ["1", "2", "b"]);
}

#[test]
fn what_is_wrong_is_said_in_one_line() {
    let place = place();
    place.write("a.txt", "a\n");
    place.write("empty.txt", "");
    for (args, code, said) in [
        (&["cat", "cat", "none.txt"][..], 2, "none.txt: No such file"),
        (&["cat", "cat", "."], 2, ".: is no regular file"),
        (&["cat", "cat", "empty.txt"], 1, "every file is empty"),
        (&["cat", "cat"], 2, "<FILE>"),
        (&["", "cat", "a.txt"], 2, "MAPPER is empty"),
        (&["--reducers", "0", "cat", "cat", "a.txt"], 2, "--reducers"),
        (
            &["--map-chunksize", "0", "cat", "cat", "a.txt"],
            2,
            "at least one byte",
        ),
        (&["--json", "cat", "cat", "a.txt"], 2, "--output"),
        (
            &["--transferfile", "none.py", "cat", "cat", "a.txt"],
            2,
            "none.py: No such file",
        ),
    ] {
        let run = mapreduce(&place, args);
        assert_eq!(
            (run.code(), run.stderr.lines().count()),
            (code, 1),
            "{run:?}"
        );
        assert!(run.stderr.contains(said), "{run:?}");
    }
    for (args, code, said) in [
        (
            &["exit 3", "cat", "a.txt"][..],
            3,
            "map job 1: exit status 3: exit 3 < a.txt",
        ),
        (&["cat", "nosuch", "a.txt"], 127, "exit status 127: nosuch"),
        (&["cat", "cat", "--wd", "/no/such", "a.txt"], 1, "--wd"),
    ] {
        let run = mapreduce(&place, args);
        assert_eq!((run.code(), run.stdout.as_str()), (code, ""), "{run:?}");
        assert!(run.stderr.contains(said), "{run:?}");
    }
}

/// An engine on what is another host to everybody: another name, and none of the directory `hidden`. None: not allowed here.
fn elsewhere(cluster: &Cluster, name: &str, hidden: &Path) -> Option<Program> {
    let spaces = ["--mount", "--uts", "--map-root-user"];
    let allowed = Command::new("unshare")
        .args(spaces)
        .arg("true")
        .stderr(Stdio::null())
        .status();
    if !allowed.is_ok_and(|status| status.success()) {
        eprintln!("skipped: no namespaces here");
        return None;
    }
    let engine = cluster.command("ipengine");
    let mut command = Command::new("unshare");
    command.args(spaces).args(["sh", "-c"]);
    command.arg("hostname \"$1\" && mount -t tmpfs none \"$2\" && shift 2 && exec \"$@\"");
    command
        .args(["sh", name])
        .arg(hidden)
        .arg(program("ipengine"));
    command.args(engine.get_args()).current_dir("/");
    command.envs(
        engine
            .get_envs()
            .filter_map(|(name, value)| Some((name, value?))),
    );
    command.env("XDG_CACHE_HOME", cluster.path(name));
    Some(Program::spawn(command, cluster.dir()))
}

/// One of two hosts has neither the files nor this directory: all goes with the jobs, and each part to one host only.
#[test]
fn files_reach_hosts_that_share_none() {
    let mut cluster = Cluster::builder().prepare();
    let data = cluster.path("data");
    fs::create_dir(&data).unwrap();
    write_texts(&data);
    fs::write(data.join("words.sh"), format!("#!/bin/sh\n{WORDS}\n")).unwrap();
    fs::set_permissions(data.join("words.sh"), fs::Permissions::from_mode(0o755)).unwrap();
    cluster.start_controller();
    let (Some(_a), Some(_b)) = (
        elsewhere(&cluster, "host-a", &data),
        elsewhere(&cluster, "host-b", &data),
    ) else {
        return;
    };
    cluster.wait_engines(2);
    let run = |args: &[&str]| {
        let mut command = cluster.command("ipclient");
        command.arg("mapreduce").args(args).current_dir(&data);
        programs::run(command, cluster.dir(), "", LIMIT * 2).ok()
    };
    let args = [
        "--transferfile",
        "words.sh",
        "--map-chunksize",
        "20K",
        "--reducers",
        "4",
        "--json",
        "-o",
        "../out",
    ];
    let said = run(&[
        &args[..],
        &[
            "./words.sh",
            "uniq -c",
            "tasks.txt",
            "start.txt",
            "last.txt",
        ],
    ]
    .concat());
    let counted = shell(
        &cluster,
        &format!("cd data && cat tasks.txt start.txt last.txt | {WORDS} | sort | uniq -c"),
    );
    assert_eq!(sorted(&shell(&cluster, "cat out/*")), sorted(&counted));
    let said: Value = serde_json::from_str(&said.stdout).unwrap();
    assert_eq!(said["sent"], true);
    let hosts: BTreeMap<String, u64> =
        serde_json::from_value(said["reduce"]["hosts"].clone()).unwrap();
    assert_eq!(
        hosts,
        BTreeMap::from([("host-a".into(), 2), ("host-b".into(), 2)])
    );
    // What one reducer reads was not sent to both.
    let cached = |host: &str| {
        shell(&cluster, &format!("ls {host}/ipbroker/files"))
            .lines()
            .map(str::to_owned)
            .collect::<Vec<_>>()
    };
    let both = cached("host-a")
        .iter()
        .filter(|name| cached("host-b").contains(name))
        .count();
    assert_eq!(both, 1, "words.sh alone");
}

/// Jobs run where the command says that their inputs lie, and `stats` counts them.
#[test]
fn jobs_run_where_their_inputs_lie() {
    let mut cluster = Cluster::builder().prepare();
    cluster.start_controller();
    let _engines = ["alpha", "beta"].map(|alias| {
        let mut command = cluster.command("ipengine");
        command.args(["--alias", alias]);
        Program::spawn(command, cluster.dir())
    });
    let engines = eventually("two engines", LIMIT, || {
        let engines: Vec<Value> =
            serde_json::from_str(&cluster.client(&["engines", "--json"]).stdout).ok()?;
        (engines.len() == 2).then_some(engines)
    });
    let number = |alias: &str| {
        let has = |engine: &&Value| {
            engine["host"]
                .as_array()
                .unwrap()
                .iter()
                .any(|name| name == alias)
        };
        engines.iter().find(has).unwrap()["id"].clone()
    };
    for name in ["a1", "a2", "b1", "b2"] {
        cluster.write(name, &format!("{name}\n"));
    }
    // It is asked once for each file, and tells nothing of what it does not know.
    let locate = "echo {} >> asked; case {} in a*) echo alpha;; b*) printf 'gamma\\nbeta beta';; *) echo lost >&2; exit 1;; esac";
    let map = cluster
        .client(&[
            "map",
            "--json",
            "--locate",
            locate,
            "cat {1} {2}",
            ":::",
            "a1",
            "a2",
            "b1",
            "b2",
            ":::",
            "/dev/null",
        ])
        .ok();
    for line in map.json_lines() {
        let there = if line["args"][0].as_str().unwrap().starts_with('a') {
            "alpha"
        } else {
            "beta"
        };
        assert_eq!(line["result"]["engine_id"], number(there), "{line}");
    }
    assert_eq!(
        sorted(&cluster.read("asked")),
        ["/dev/null", "a1", "a2", "b1", "b2"]
    );
    assert_eq!(
        map.stderr
            .matches("ipclient: --locate: /dev/null: lost")
            .count(),
        1,
        "{}",
        map.stderr
    );
    let stats = |n: u64| {
        let stats: Value =
            serde_json::from_str(&cluster.client(&["stats", "--json"]).ok().stdout).unwrap();
        assert_eq!(
            (&stats["preferred"], &stats["preferred_met"]),
            (&n.into(), &n.into()),
            "{stats}"
        );
    };
    stats(4);
    // What a job itself prefers holds.
    let jobs = r#"{"cmd": "cat a1 b1 b2", "needs": ["a1", "b1", "b2"]}
{"cmd": "cat a1", "put": ["a1"]}
{"cmd": "cat a2", "needs": ["a2"], "prefer": ["beta"]}
"#;
    let run = |input: &str, args: &[&str]| {
        let mut all = vec!["run", "--locate", locate];
        all.extend(args);
        let lines = cluster.client_with(&all, input, LIMIT).ok().json_lines();
        let mut where_run: Vec<(String, Value)> = lines
            .iter()
            .map(|line| {
                (
                    line["cmd"].as_str().unwrap().to_owned(),
                    line["result"]["engine_id"].clone(),
                )
            })
            .collect();
        where_run.sort_by(|a, b| a.0.cmp(&b.0));
        where_run.into_iter().map(|(_, id)| id).collect::<Vec<_>>()
    };
    let expected = [number("alpha"), number("beta"), number("beta")];
    assert_eq!(run(jobs, &[]), expected);
    cluster.write("jobs", jobs);
    assert_eq!(run("", &["jobs"]), expected);
    stats(10);
    let args = [
        "mapreduce",
        "--map-chunksize",
        "1",
        "--reducers",
        "1",
        "-o",
        "out",
        "--json",
        "--locate",
        locate,
        "cat; echo $IPBROKER_ENGINE_ID",
        "cat",
        "a1",
        "b1",
        "b2",
    ];
    cluster.client(&args).ok();
    let lines = cluster.read("out/part-00000");
    let beta = number("beta").to_string();
    assert_eq!(
        lines.lines().filter(|line| *line == beta).count(),
        2,
        "{lines}"
    );
}
