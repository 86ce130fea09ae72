//! Engines on other hosts: three of them, with real SSH servers (see `tests/hosts/lab`).

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

use ipbroker_tests::{Finished, LIMIT, Lab, eventually, programs::Program};
use rustix::process::Signal;
use serde_json::Value;

const HOSTS: [&str; 3] = ["a", "b", "c"];

/// Waits for a line of the controller's log.
#[track_caller]
fn says(controller: &Program, text: &str, limit: Duration) {
    eventually(&format!("the controller to say {text:?}"), limit, || {
        controller.stderr().contains(text).then_some(())
    });
}

/// Ends the controller as a user does, and sees that nothing is left on any host.
#[track_caller]
fn stop(lab: &Lab, controller: Program, hosts: &[&str]) {
    controller.signal(Signal::INT);
    let ended = controller.finish(LIMIT);
    assert_eq!(ended.code(), 0, "{}", ended.stderr);
    lab.wait_for_nothing(hosts);
}

fn jobs(count: usize, cmd: &str) -> String {
    // The client's directory, the default, is not there on the hosts.
    (0..count)
        .map(|i| format!("{{\"n\": {i}, \"cmd\": \"{cmd}\", \"cd\": \"/tmp\"}}\n"))
        .collect()
}

/// Results by host; every one must have ended with 0.
#[track_caller]
fn hosts_of(lines: &[Value]) -> BTreeMap<String, usize> {
    let mut hosts = BTreeMap::new();
    for line in lines {
        let result = &line["result"];
        assert_eq!(
            (result["status"].as_str(), result["code"].as_i64()),
            (Some("ok"), Some(0)),
            "{line}"
        );
        *hosts
            .entry(result["host"].as_str().unwrap_or("?").to_owned())
            .or_default() += 1;
    }
    hosts
}

fn two_thousand_jobs(args: &[&str]) {
    let Some(lab) = Lab::up(&HOSTS) else { return };
    let start = Instant::now();
    let controller = lab.controller(args);
    lab.wait_for_engines(6);
    eprintln!("6 engines on 3 hosts after {:?}", start.elapsed());
    let start = Instant::now();
    let done = lab
        .run(
            "ipclient",
            &["run", "--capture"],
            &jobs(2000, "hostname"),
            4 * LIMIT,
        )
        .ok();
    eprintln!("2000 jobs in {:?}", start.elapsed());
    let lines = done.json_lines();
    assert_eq!(lines.len(), 2000);
    for line in &lines {
        assert_eq!(
            line["result"]["stdout"].as_str().map(str::trim),
            line["result"]["host"].as_str(),
            "{line}"
        );
    }
    let hosts = hosts_of(&lines);
    assert_eq!(
        hosts.keys().collect::<Vec<_>>(),
        HOSTS.iter().collect::<Vec<_>>(),
        "{hosts:?}"
    );
    says(&controller, "Deployed 6 engine(s) over 3 host(s)", LIMIT);
    stop(&lab, controller, &HOSTS);
}

#[test]
fn jobs_over_three_hosts() {
    two_thousand_jobs(&["--ip=*", "--hosts", "a:2,b:2", "c:2"]);
}

#[test]
fn jobs_over_three_hosts_through_tunnels() {
    two_thousand_jobs(&["--hosts", "a", "b", "c", "-n", "6", "--tunnel"]);
}

/// `ipclient run --hosts`: a cluster for one call.
#[test]
fn one_command_over_hosts() {
    let Some(lab) = Lab::up(&["a", "b"]) else {
        return;
    };
    let lines = |directory: &str| -> String {
        let job = format!("{{\"cmd\": \"hostname\"{directory}}}\n");
        job.repeat(20)
    };
    // Nobody is at the last one; the jobs may be over before that is known, so what is said of it is looked at below.
    let over = ["run", "--capture", "--hosts", "a:1,b:1,10.77.0.99:1"];
    // Its own directory is not there.
    let strange = lab.run("ipclient", &over, &lines(""), 4 * LIMIT);
    assert_eq!(strange.code(), 1, "{}", strange.stderr);
    for words in [
        "cannot enter directory",
        "--wd DIR names one that they have",
    ] {
        assert!(strange.stderr.contains(words), "{}", strange.stderr);
    }
    lab.wait_for_nothing(&["a", "b"]);
    for wd in ["~", "..."] {
        let args = [&over[..], &["--wd", wd]].concat();
        let run = lab.run("ipclient", &args, &lines(""), 4 * LIMIT).ok();
        let hosts = hosts_of(&run.json_lines());
        assert_eq!(hosts.values().sum::<usize>(), 20, "{hosts:?}");
    }
    lab.wait_for_nothing(&["a", "b"]);
    let nowhere = lab.run(
        "ipclient",
        &["run", "--hosts", "10.77.0.99"],
        &lines(""),
        4 * LIMIT,
    );
    assert_eq!(nowhere.code(), 1, "{}", nowhere.stderr);
    let last = nowhere.stderr.lines().last().unwrap_or_default();
    assert!(
        last.contains("no host could start an engine: 10.77.0.99: no connection"),
        "{}",
        nowhere.stderr
    );
}

#[test]
fn a_host_that_is_cut_off_comes_back() {
    let Some(lab) = Lab::up(&["a", "b"]) else {
        return;
    };
    let controller = lab.controller(&["--hosts", "a:2,b:2", "--tunnel"]);
    lab.wait_for_engines(4);
    let running = lab.spawn_with(
        "ipclient",
        &["run", "--capture"],
        &jobs(120, "sleep 0.5; hostname"),
    );
    eventually("the first results", LIMIT, || {
        running.stdout().lines().count().ge(&8).then_some(())
    });
    lab.verb("cut", &["b"]);
    says(&controller, "b: the SSH connection was lost", 2 * LIMIT);
    lab.verb("heal", &["b"]);
    says(&controller, "b: connected again", 2 * LIMIT);
    // What its engines said meanwhile, and say later, comes after.
    says(&controller, "[b] ", LIMIT);
    says(&controller, "waiting 60 s for it", LIMIT);
    let lines = running.finish(4 * LIMIT).ok().json_lines();
    assert_eq!(hosts_of(&lines).values().sum::<usize>(), 120);
    // The same engines, not new ones.
    assert!(
        !controller.stderr().contains("starting them again"),
        "{}",
        controller.stderr()
    );
    assert_eq!(lab.wait_for_engines(4).len(), 4);
    stop(&lab, controller, &["a", "b"]);
}

/// What runs on a host, by process id.
fn engine_processes(lab: &Lab, host: &str) -> BTreeSet<String> {
    let all = lab.root(host, "ps -eo pid=,args=");
    let engines = all.lines().filter(|l| l.contains("/ipengine-"));
    engines
        .filter_map(|l| l.split_whitespace().next())
        .map(str::to_owned)
        .collect()
}

/// A controller dies, and another takes over: its engines count, whatever way they come.
fn survivors_count(way: &str) {
    let Some(lab) = Lab::up(&["a", "b"]) else {
        return;
    };
    let controller = lab.controller(&["--hosts", "a:2,b:2", way]);
    lab.wait_for_engines(4);
    says(&controller, "Deployed 4 engine(s) over 2 host(s)", LIMIT);
    let before = ["a", "b"].map(|host| engine_processes(&lab, host));
    let done = lab.run(
        "ipclient",
        &["submit", "-"],
        &jobs(8, "sleep 4; hostname"),
        LIMIT,
    );
    let ids = done.ok().stdout;
    controller.signal(Signal::KILL);
    controller.finish(LIMIT);

    let controller = lab.spawn("ipctl", &["--restore", "--hosts", "a:2,b:3", way]);
    says(
        &controller,
        "Deployed 5 engine(s) over 2 host(s)",
        2 * LIMIT,
    );
    lab.wait_for_engines(5);
    let log = controller.stderr();
    for host in ["a", "b"] {
        let line = format!("{host}: 2 engine(s) of the earlier controller live");
        assert!(log.contains(&line), "no {line:?} in\n{log}");
    }
    let after = ["a", "b"].map(|host| engine_processes(&lab, host));
    assert_eq!(before[0], after[0]);
    assert!(after[1].is_superset(&before[1]) && after[1].len() == 2);
    let ids: Vec<&str> = ids.lines().collect();
    let wait = [&["wait"][..], &ids].concat();
    lab.run("ipclient", &wait, "", 4 * LIMIT).ok();
    let results = [&["results"][..], &ids].concat();
    let lines = lab.run("ipclient", &results, "", LIMIT).ok().json_lines();
    assert_eq!(hosts_of(&lines).values().sum::<usize>(), 8);
    // Those that were taken over end with the others.
    stop(&lab, controller, &["a", "b"]);
}

#[test]
fn survivors_count_after_a_crash() {
    survivors_count("--ip=*");
}

#[test]
fn survivors_count_after_a_crash_through_tunnels() {
    survivors_count("--tunnel");
}

#[test]
fn engines_outlive_the_ssh_server_and_hear_of_the_end() {
    let Some(lab) = Lab::up(&["a", "b"]) else {
        return;
    };
    let controller = lab.controller(&["--ip=*", "--hosts", "a:1,b:1"]);
    lab.wait_for_engines(2);
    lab.verb("sshd", &["b", "kill"]);
    says(&controller, "b: the SSH connection was lost", LIMIT);
    // Without a tunnel the engines need no SSH to work, nor to be told that it is over.
    let lines = lab
        .run("ipclient", &["run"], &jobs(20, "sleep 0.1"), 2 * LIMIT)
        .ok()
        .json_lines();
    assert_eq!(hosts_of(&lines).len(), 2);
    let stopped = lab.run("ipclient", &["shutdown"], "", LIMIT);
    stopped.ok();
    controller.finish(LIMIT).ok();
    lab.wait_for_nothing(&["a", "b"]);
}

#[test]
fn what_cannot_be_started_is_told_in_words() {
    let Some(lab) = Lab::up(&["good", "changed", "full", "wrong", "new"]) else {
        return;
    };
    lab.verb("rekey", &["changed"]);
    lab.root(
        "full",
        "dd if=/dev/zero of=/home/filler bs=1M 2>/dev/null; test -s /home/filler",
    );
    lab.root("wrong", "echo > /home/alice/.ssh/authorized_keys");
    let known = lab.home().join(".ssh/known_hosts");
    let text = std::fs::read_to_string(&known).expect("known hosts");
    let without: String = text
        .lines()
        .filter(|l| !l.starts_with("10.77.0.15 "))
        .map(|l| format!("{l}\n"))
        .collect();
    std::fs::write(&known, without).expect("known hosts");
    let controller = lab.controller(&[
        "--tunnel",
        "--hosts",
        "good:1,changed:1,full:1,wrong:1,new:1,10.77.0.99:1",
    ]);
    says(
        &controller,
        "Deployed 1 engine(s) over 1 host(s)",
        2 * LIMIT,
    );
    let log = controller.stderr();
    for words in [
        "changed: THE HOST KEY HAS CHANGED",
        "No space left on device",
        "wrong: alice@10.77.0.14 accepts none of our keys",
        "new: the host key of 10.77.0.15 is not known",
        "10.77.0.99: no connection to 10.77.0.99 port 22",
    ] {
        assert!(log.contains(words), "no {words:?} in\n{log}");
    }
    let lines = lab
        .run("ipclient", &["run"], &jobs(5, "true"), LIMIT)
        .ok()
        .json_lines();
    assert_eq!(hosts_of(&lines).keys().collect::<Vec<_>>(), ["good"]);
    stop(
        &lab,
        controller,
        &["good", "full", "wrong", "new", "changed"],
    );

    // A program that cannot run there: for another machine, or for a newer system.
    let own = std::fs::read(ipbroker_tests::program("ipengine")).expect("ipengine");
    let mut other = own.clone();
    other[18] = 183;
    let newer = [&own[..], b"\0GLIBC_2.99\0"].concat();
    for (name, bytes, words) in [
        (
            "other",
            other,
            "good: the host is a x86_64, our ipengine is for aarch64: name the ipengine of ipbroker-",
        ),
        (
            "newer",
            newer,
            "our ipengine needs 2.99 or later: name the ipengine of ipbroker-",
        ),
    ] {
        let path = lab.home().join(name);
        std::fs::write(&path, bytes).expect("a program");
        let path = path.to_str().expect("a path");
        let args = ["--hosts", "good:1", "--engine-program", path];
        // No host is left that could give it engines: so it ends.
        let ended = lab.run("ipctl", &args, "", 2 * LIMIT);
        assert_eq!(ended.code(), 1, "{}", ended.stderr);
        let last = ended.stderr.lines().last().unwrap_or_default();
        assert!(
            last.contains("no host could start an engine: good: "),
            "{last}"
        );
        // On another kind of machine the words would be the other way round.
        if cfg!(target_arch = "x86_64") {
            assert!(last.contains(words), "{last}");
        }
        lab.wait_for_nothing(&["good"]);
    }

    // The same host, trusted when it is asked for; its key is on file after that.
    let controller = lab.controller(&["--tunnel", "--hosts", "new:1", "--accept-new"]);
    lab.wait_for_engines(1);
    assert!(
        std::fs::read_to_string(&known)
            .expect("known hosts")
            .contains("\n10.77.0.15 ssh-ed25519 ")
    );
    stop(&lab, controller, &["new"]);
    // A private cluster is told, too.
    std::fs::remove_file(&known).expect("known hosts");
    let map = "map --accept-new --hosts new:1 --wd ... echo ::: x";
    let map: Vec<&str> = map.split(' ').collect();
    let mapped = lab.run("ipclient", &map, "", 2 * LIMIT);
    assert_eq!(
        (mapped.code(), &*mapped.stdout),
        (0, "x\n"),
        "{}",
        mapped.stderr
    );
    lab.wait_for_nothing(&["new"]);
}

#[test]
fn files_tags_and_places() {
    let Some(lab) = Lab::up(&["a", "b"]) else {
        return;
    };
    let list = lab.home().join("hosts");
    std::fs::write(&list, "# two racks\na:1 rack1\nb:1 rack2 gpu\n").expect("a file");
    let controller = lab.controller(&["--tunnel", "--hosts-file", list.to_str().expect("a path")]);
    let engines = lab.wait_for_engines(2);
    let tags: BTreeMap<String, Value> = engines
        .iter()
        .map(|e| {
            (
                e["host"][0].as_str().unwrap_or("?").to_owned(),
                e["tags"].clone(),
            )
        })
        .collect();
    assert_eq!(tags["b"], serde_json::json!(["rack2", "gpu"]));
    // By name, by full name, by alias and by address; and never `localhost`, though the tunnel ends there.
    let input = ["b", "b.lab", "10.77.0.12"]
        .map(|h| format!("{{\"cmd\": \"hostname\", \"cd\": \"/tmp\", \"host\": [\"{h}\"]}}\n"))
        .concat();
    let lines = lab
        .run("ipclient", &["run"], &input, LIMIT)
        .ok()
        .json_lines();
    assert_eq!(hosts_of(&lines), BTreeMap::from([("b".to_owned(), 3)]));
    assert!(
        engines
            .iter()
            .all(|e| !e["host"].to_string().contains("localhost")),
        "{engines:?}"
    );

    // Where they would rather be, by host and by rack; what became of it is counted.
    let input = ["a", "b", "rack1", "rack2"]
        .map(|p| format!("{{\"cmd\": \"hostname\", \"cd\": \"/tmp\", \"prefer\": [\"{p}\"], \"prefer_wait\": 20}}\n"))
        .concat();
    let lines = lab
        .run("ipclient", &["run"], &input, LIMIT)
        .ok()
        .json_lines();
    for line in &lines {
        let wanted = if ["a", "rack1"].iter().any(|p| line["prefer"][0] == *p) {
            "a"
        } else {
            "b"
        };
        assert_eq!(line["result"]["host"], wanted, "{line}");
    }
    let stats = lab.run("ipclient", &["stats"], "", LIMIT).ok().stdout;
    eprintln!("{stats}");
    assert!(stats.contains("4 of 4"), "{stats}");

    let fs =
        |args: &[&str], input: &str| lab.run("ipclient", &[&["fs"], args].concat(), input, LIMIT);
    let big: String = (0..1_000_000).map(|i| format!("{i}\n")).collect();
    std::fs::write(lab.home().join("big"), &big).expect("a file");
    fs(&["put", "all", "big", "/tmp/big"], "").ok();
    assert_eq!(
        lab.on("b", "cksum < /tmp/big"),
        lab.on("a", "cksum < /tmp/big")
    );
    fs(&["get", "b", "/tmp/big", "back"], "").ok();
    assert!(std::fs::read_to_string(lab.home().join("back")).expect("fetched") == big);
    fs(&["write", "a", "/tmp/note"], "hello\n").ok();
    fs(&["write", "--append", "a", "/tmp/note"], "again\n").ok();
    assert_eq!(
        fs(&["cat", "a", "/tmp/note"], "").ok().stdout,
        "hello\nagain\n"
    );
    assert_eq!(fs(&["exists", "a,b", "/tmp/note"], "").code(), 1);
    assert_eq!(fs(&["pwd", "b"], "").ok().stdout.trim(), "/home/alice");
    fs(&["mkdir", "--parents", "a,b", "/tmp/deep/er"], "").ok();
    let there = fs(&["stat", "--json", "b", "/tmp/deep/er"], "").ok().stdout;
    assert!(there.contains("\"kind\":\"dir\""), "{there}");
    assert_eq!(fs(&["mkdir", "a", "/tmp/deep/er"], "").code(), 1);
    let dir = fs(&["newdir", "b"], "").ok().stdout.trim().to_owned();
    fs(&["mkfifo", "b", &format!("{dir}/pipe")], "").ok();
    fs(&["ln", "b", "pipe", &format!("{dir}/link")], "").ok();
    fs(&["chmod", "b", "700", &format!("{dir}/pipe")], "").ok();
    let listed = fs(&["ls", "b", &dir], "").ok().stdout;
    assert!(
        listed.contains("prwx------") && listed.contains("link -> pipe"),
        "{listed}"
    );
    assert_eq!(fs(&["rmdir", "b", &dir], "").code(), 1);
    fs(&["rm", "-r", "b", &dir], "").ok();
    assert_eq!(fs(&["run", "b", "exit 7"], "").code(), 7);
    let refused = fs(&["cat", "b", "/root/secret"], "");
    assert!(
        refused.code() == 1 && refused.stderr.contains("b: "),
        "{}",
        refused.stderr
    );
    stop(&lab, controller, &["a", "b"]);
}

#[test]
fn files_go_with_jobs() {
    let Some(lab) = Lab::up(&["a", "b"]) else {
        return;
    };
    let controller = lab.controller(&["--tunnel", "--hosts", "a:1,b:1"]);
    lab.wait_for_engines(2);
    let here = |name: &str| lab.home().join(name);
    std::fs::create_dir(here("in")).expect("a directory");
    let big: String = (0..1_000_000).map(|i| format!("{i}\n")).collect();
    std::fs::write(here("in/big"), &big).expect("a file");
    std::fs::write(here("tool"), "#!/bin/sh\nwc -l < in/big\n").expect("a file");
    std::fs::set_permissions(
        here("tool"),
        std::os::unix::fs::PermissionsExt::from_mode(0o755),
    )
    .expect("permissions");
    let input: String = (0..10)
        .map(|i| format!("{{\"cmd\": \"./tool > count; pwd\", \"put\": [\"in/big\", \"tool\"], \"get\": {{\"count\": \"out/{i}\"}}}}\n"))
        .collect();
    let lines = lab
        .run("ipclient", &["run", "--capture"], &input, 2 * LIMIT)
        .ok()
        .json_lines();
    hosts_of(&lines);
    let dirs: std::collections::BTreeSet<String> = lines
        .iter()
        .map(|l| l["result"]["stdout"].to_string())
        .collect();
    assert_eq!(dirs.len(), 10, "each has a directory of its own: {dirs:?}");
    for i in 0..10 {
        let count = std::fs::read_to_string(here(&format!("out/{i}"))).expect("fetched");
        assert_eq!(count.trim(), "1000000");
    }
    for host in ["a", "b"] {
        // Kept once, by its hash; the jobs' directories are gone.
        assert_eq!(
            lab.on(host, "ls ~/.cache/ipbroker/files | wc -l").trim(),
            "2"
        );
        assert_eq!(
            lab.on(host, "ls -d /tmp/ipbroker-job-* 2>/dev/null | wc -l")
                .trim(),
            "0"
        );
    }
    let missing = lab.run(
        "ipclient",
        &["run"],
        "{\"cmd\": \"true\", \"put\": [\"not-there\"]}\n",
        LIMIT,
    );
    assert!(
        missing.code() == 1 && missing.stdout.contains("not-there"),
        "{}",
        missing.stdout
    );
    // A host whose cache was emptied behind our back gets the bytes again.
    lab.on("b", "rm -rf ~/.cache/ipbroker/files");
    let one = "{\"cmd\": \"./tool\", \"put\": [\"in/big\", \"tool\"], \"host\": [\"b\"]}\n";
    lab.run("ipclient", &["run"], one, LIMIT).ok();
    submitted_files(&lab);
    stop(&lab, controller, &["a", "b"]);
}

/// `put` and `get` of jobs that outlive their client.
fn submitted_files(lab: &Lab) {
    let here = |name: &str| lab.home().join(name);
    // Small inputs travel with the job, large ones go to the hosts.
    let input = "{\"cmd\": \"./tool > count\", \"put\": [\"in/big\", \"tool\"], \"get\": {\"count\": \"later/1\"}}\n\
                 {\"cmd\": \"cat tool > copy\", \"put\": [\"tool\"], \"get\": {\"copy\": \"later/2\"}}\n\
                 {\"cmd\": \"exit 3\", \"get\": {\"none\": \"later/3\"}}\n";
    let missing = "{\"cmd\": \"true\", \"put\": [\"not-there\"]}\n";
    std::fs::write(here("bad"), format!("{input}{missing}")).expect("a file");
    let refused = lab.run("ipclient", &["submit", "bad"], "", LIMIT);
    assert!(
        refused.code() == 2
            && refused.stdout.is_empty()
            && refused.stderr.starts_with("ipclient: bad:4: put: ")
            && refused.stderr.contains("nothing was submitted"),
        "{}",
        refused.stderr
    );
    let done = lab.run("ipclient", &["submit", "-"], input, LIMIT).ok();
    let ids: Vec<&str> = done.stdout.lines().collect();
    // The files need not be there any more.
    std::fs::remove_file(here("tool")).expect("the tool");
    let wait = [&["wait"][..], &ids].concat();
    assert_eq!(lab.run("ipclient", &wait, "", 2 * LIMIT).code(), 1);
    assert!(!here("later").exists(), "`wait` writes nothing");
    // From another directory: they belong where the job was submitted.
    let print = |args: &[&str]| {
        let mut command = lab.command("ipclient", &[args, &ids].concat());
        command.current_dir(lab.home().join("in"));
        let done = ipbroker_tests::programs::run(command, &lab.home(), "", LIMIT);
        assert_eq!(done.code(), 1, "{}", done.stderr);
        done.json_lines()
    };
    print(&["results", "--no-get"]);
    assert!(!here("later").exists());
    let lines = print(&["results"]);
    let codes: Vec<&Value> = lines.iter().map(|l| &l["result"]["code"]).collect();
    assert_eq!(codes, [0, 0, 3], "{lines:?}");
    let read = |name: &str| std::fs::read_to_string(here(name)).expect("fetched");
    assert_eq!(read("later/1").trim(), "1000000");
    assert_eq!(read("later/2"), "#!/bin/sh\nwc -l < in/big\n");
    assert!(!here("later/3").exists());
    for host in ["a", "b"] {
        let left = lab.on(host, "ls -d /tmp/ipbroker-job-* 2>/dev/null | wc -l");
        assert_eq!(left.trim(), "0");
    }
}

/// One word a line, and nothing else.
const WORDS: &str = "tr -cs A-Za-z '\\n' | sed '/^$/d'";

/// Puts the documentation where the controller lives, a text for each of its directories; and counts its words, in
/// lines as `uniq -c` has them.
fn texts(lab: &Lab) -> (Vec<String>, BTreeSet<String>) {
    let docs = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs");
    let mut counts = BTreeMap::<String, usize>::new();
    let names = ["tasks", "start", "operations", "coming-from"].map(|name| {
        let mut text = String::new();
        for page in std::fs::read_dir(docs.join(name)).expect("a directory") {
            let page = page.expect("an entry").path();
            if page.extension().is_some_and(|e| e == "md") {
                text += &std::fs::read_to_string(page).expect("a page");
            }
        }
        let words = text.split(|c: char| !c.is_ascii_alphabetic());
        for word in words.filter(|word| !word.is_empty()) {
            *counts.entry(word.to_owned()).or_default() += 1;
        }
        let name = format!("{name}.txt");
        std::fs::write(lab.home().join(&name), text).expect("a file");
        name
    });
    let lines = counts.iter().map(|(word, n)| format!("{n} {word}"));
    (names.to_vec(), lines.collect())
}

/// What reducers printed, as `texts` has it. A line that comes twice is found.
#[track_caller]
fn counted(output: &str) -> BTreeSet<String> {
    let lines: BTreeSet<String> = output.lines().map(|l| l.trim().to_owned()).collect();
    assert_eq!(lines.len(), output.lines().count(), "a word came twice");
    lines
}

fn mapreduce<'a>(more: &[&'a str], files: &'a [String]) -> Vec<&'a str> {
    let args = ["mapreduce", "--hosts", "a:1,b:1", "--map-chunksize", "16K"];
    let files = files.iter().map(String::as_str);
    args.into_iter()
        .chain(more.iter().copied())
        .chain(files)
        .collect()
}

#[test]
fn words_are_counted_on_hosts_that_share_nothing() {
    let Some(lab) = Lab::up(&["a", "b"]) else {
        return;
    };
    let (files, expected) = texts(&lab);
    // The client's directory is not there.
    let args = mapreduce(&[WORDS, "uniq -c"], &files);
    let strange = lab.run("ipclient", &args, "", 4 * LIMIT);
    assert_eq!(
        (strange.code(), strange.stdout.as_str()),
        (1, ""),
        "{}",
        strange.stderr
    );
    assert!(
        strange
            .stderr
            .contains("name a directory that all hosts have with --wd"),
        "{}",
        strange.stderr
    );
    let args = mapreduce(
        &["--wd", "...", "--json", "-o", "counts", WORDS, "uniq -c"],
        &files,
    );
    let said = lab.run("ipclient", &args, "", 4 * LIMIT).ok().stdout;
    let said: Value = serde_json::from_str(&said).expect("JSON");
    assert_eq!(said["sent"], true, "{said}");
    for stage in ["map", "reduce"] {
        for host in ["a", "b"] {
            assert!(said[stage]["hosts"][host].is_u64(), "{said}");
        }
    }
    let parts = ["part-00000", "part-00001"]
        .map(|part| std::fs::read_to_string(lab.home().join("counts").join(part)).expect("a part"));
    assert!(counted(&parts.concat()) == expected, "{parts:?}");
    lab.wait_for_nothing(&["a", "b"]);
}

/// One of two hosts is cut off while it maps, or while it reduces; `more`: how often a job may lose its engine.
fn a_host_dies_under(stage: &str, more: &[&str]) -> Option<(Finished, BTreeSet<String>)> {
    let lab = Lab::up(&["a", "b"])?;
    let (files, expected) = texts(&lab);
    // Long enough to be found at it.
    let slow = |of: &str, then: &str| match of == stage {
        true => format!("touch /tmp/at-it; sleep 1; {then}"),
        false => then.to_owned(),
    };
    let (mapper, reducer) = (slow("map", WORDS), slow("reduce", "uniq -c"));
    let args = [
        &[
            "--wd",
            "...",
            "--reducers",
            "8",
            "--local-option=--ping=200",
        ],
        more,
        &[&mapper, &reducer],
    ];
    let running = lab.spawn("ipclient", &mapreduce(&args.concat(), &files));
    eventually("a job of b", 2 * LIMIT, || {
        let there = lab.on("b", "ls /tmp");
        there.contains("at-it").then_some(())
    });
    lab.verb("cut", &["b"]);
    Some((running.finish(4 * LIMIT), expected))
}

#[test]
fn words_are_counted_though_a_host_dies_that_maps() {
    let more = ["--max-crashes", "3"];
    let Some((ended, expected)) = a_host_dies_under("map", &more) else {
        return;
    };
    assert!(counted(&ended.ok().stdout) == expected);
}

#[test]
fn words_are_counted_though_a_host_dies_that_reduces() {
    let more = ["--max-crashes", "3"];
    let Some((ended, expected)) = a_host_dies_under("reduce", &more) else {
        return;
    };
    assert!(counted(&ended.ok().stdout) == expected);
}

#[test]
fn a_host_that_dies_under_mapreduce_is_told() {
    let Some((ended, _)) = a_host_dies_under("map", &[]) else {
        return;
    };
    assert_eq!(ended.code(), 1, "{}", ended.stderr);
    let line = "(b) was lost while it ran the task: its heartbeat stopped";
    assert!(ended.stderr.contains(line), "{}", ended.stderr);
}

#[test]
fn times_are_the_controllers() {
    let Some(lab) = Lab::up(&["a", "b"]) else {
        return;
    };
    lab.verb("clock", &["b", "47"]);
    let controller = lab.controller(&["--tunnel", "--hosts", "a:1,b:1", "--ping=200"]);
    let ahead = |engines: &[Value]| {
        engines
            .iter()
            .find(|e| e["host"][0] == "b")
            .and_then(|e| e["clock"].as_f64())
    };
    eventually("the offset of b", LIMIT, || {
        ahead(&lab.wait_for_engines(2)).filter(|o| (o - 47.0).abs() < 0.5)
    });
    let input = "{\"cmd\": \"sleep 0.2; date +%s\", \"cd\": \"/tmp\", \"host\": [\"b\"]}\n";
    let lines = lab
        .run("ipclient", &["run", "--capture"], input, LIMIT)
        .ok()
        .json_lines();
    let result = &lines[0]["result"];
    let time = |key: &str| {
        result[key]
            .as_str()
            .unwrap_or_else(|| panic!("no {key}: {result}"))
            .to_owned()
    };
    // All are ISO dates in one zone: text order is time order. In document 000 jobs end 47 s after they were received.
    let times = [
        time("submitted"),
        time("started"),
        time("completed"),
        time("received"),
    ];
    assert!(times.is_sorted(), "{times:?}");
    // The host itself really believes otherwise.
    let there: i64 = time("stdout").trim().parse().expect("seconds");
    let here = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .expect("after 1970")
        .as_secs()
        .cast_signed();
    assert!(there - here > 30, "{there} {here}");
    stop(&lab, controller, &["a", "b"]);
}

#[test]
fn clients_and_engines_come_through_ssh() {
    let Some(lab) = Lab::up(&["a"]) else { return };
    // The controller is on host a, on its loopback alone.
    lab.root("a", "mkdir -p /opt/ipbroker");
    for name in ["ipctl", "ipengine"] {
        let bytes = std::fs::read(ipbroker_tests::program(name)).expect("a program");
        let path = format!("{}/{name}", lab.home().display());
        std::fs::write(&path, bytes).expect("a copy");
        let mut copy = std::process::Command::new("sh");
        copy.arg("-c").arg(format!("'{}' root '{}' a sh -c 'cat > /opt/ipbroker/{name}; chmod 755 /opt/ipbroker/{name}' < '{path}'", Lab::script().display(), lab.state().display()));
        assert!(copy.status().expect("sh").success());
    }
    lab.on(
        "a",
        "cd && nohup /opt/ipbroker/ipctl -n 1 --web=8787 > ctl.log 2>&1 < /dev/null & true",
    );
    let engines = eventually("the controller behind SSH", LIMIT, || {
        let done = lab.run("ipclient", &["--ssh", "a", "engines", "--json"], "", LIMIT);
        let engines: Vec<Value> = serde_json::from_str(&done.stdout).ok()?;
        (engines.len() == 1).then_some(engines)
    });
    assert_eq!(engines[0]["host"][0], "a");
    let engine = lab.spawn("ipengine", &["--ssh", "a", "--tags", "outside"]);
    eventually("the engine behind SSH", LIMIT, || {
        let done = lab.run("ipclient", &["--ssh", "a", "engines", "--json"], "", LIMIT);
        let engines: Vec<Value> = serde_json::from_str(&done.stdout).ok()?;
        engines
            .iter()
            .any(|e| e["tags"] == serde_json::json!(["outside"]))
            .then_some(())
    });
    // The page comes here, too.
    let page = lab.spawn("ipclient", &["--ssh", "a", "web"]);
    let url = eventually("the address of the page", LIMIT, || {
        Some(page.stdout().lines().next()?.to_owned())
    });
    assert!(!url.contains(":8787/"), "{url}");
    let get = "import sys, urllib.request as r; print(r.urlopen(sys.argv[1], timeout=20).read().decode())";
    let html = lab.verb("ctl", &["python3", "-c", get, &url]).stdout;
    let html = String::from_utf8_lossy(&html);
    assert!(html.contains("<title>ipbroker"), "{html}");
    page.signal(Signal::INT);
    page.finish(LIMIT).ok();
    let input: String = (0..20)
        .map(|_| "{\"cmd\": \"true\", \"cd\": \"/tmp\"}\n")
        .collect();
    let lines = lab
        .run("ipclient", &["--ssh", "alice@a", "run", "-"], &input, LIMIT)
        .ok()
        .json_lines();
    assert_eq!(hosts_of(&lines).len(), 2, "{lines:?}");
    // The server's end comes and goes.
    lab.verb("sshd", &["a", "kill"]);
    lab.verb("sshd", &["a", "start"]);
    let lines = eventually("jobs through the new connection", 2 * LIMIT, || {
        let done = lab.run("ipclient", &["--ssh", "a", "run", "-"], &input, 2 * LIMIT);
        (done.code() == 0).then(|| done.json_lines())
    });
    assert_eq!(lines.len(), 20);
    lab.run("ipclient", &["--ssh", "a", "shutdown"], "", LIMIT)
        .ok();
    engine.finish(2 * LIMIT);
    lab.wait_for_nothing(&["a"]);
}

#[test]
fn a_host_behind_another_one() {
    let Some(lab) = Lab::up(&["gate", "inner"]) else {
        return;
    };
    // Only the gate can reach it.
    lab.root("inner", "ip route add blackhole 10.77.0.1");
    let config = lab.home().join(".ssh/config");
    let text = std::fs::read_to_string(&config)
        .expect("the configuration")
        .replace("Host inner\n", "Host inner\n  ProxyJump gate\n");
    std::fs::write(&config, text).expect("the configuration");
    let controller = lab.controller(&["--hosts", "inner:2"]);
    lab.wait_for_engines(2);
    let lines = lab
        .run("ipclient", &["run"], &jobs(50, "true"), LIMIT)
        .ok()
        .json_lines();
    assert_eq!(hosts_of(&lines).keys().collect::<Vec<_>>(), ["inner"]);
    // The kernel here sees the gate alone, which is well.
    let cut = Instant::now();
    lab.verb("cut", &["inner"]);
    says(&controller, "inner: the SSH connection was lost", 2 * LIMIT);
    eprintln!(
        "a host behind another one is missed after {:?}",
        cut.elapsed()
    );
    lab.verb("heal", &["inner"]);
    says(&controller, "inner: connected again", 2 * LIMIT);
    lab.wait_for_engines(2);
    lab.run("ipclient", &["run"], &jobs(10, "true"), 2 * LIMIT)
        .ok();
    stop(&lab, controller, &["gate", "inner"]);
}

#[test]
fn twelve_engines_on_three_hosts() {
    let Some(lab) = Lab::up(&HOSTS) else { return };
    for run in ["sent", "cached"] {
        let start = Instant::now();
        let controller = lab.controller(&["--tunnel", "--hosts", "a:4,b:4,c:4"]);
        lab.wait_for_engines(12);
        eprintln!(
            "12 engines on 3 hosts, ipengine {run}: {:?}",
            start.elapsed()
        );
        stop(&lab, controller, &HOSTS);
        assert!(
            lab.on("a", "ls ~/.cache/ipbroker | wc -l").trim() == "1",
            "one program is kept"
        );
    }
}

#[test]
fn a_host_that_is_too_old_is_told_which_file_to_take() {
    let Some(lab) = Lab::up(&["a", "b"]) else {
        return;
    };
    // Its getconf, found first by what SSH runs, tells of an old glibc.
    lab.root(
        "b",
        "mkdir /home/alice/bin && cd /home/alice && printf '#!/bin/sh\\necho glibc 2.12\\n' >bin/getconf && chmod 755 bin/getconf \
         && echo PATH=/home/alice/bin:/usr/bin:/bin >.ssh/environment && chown -R 4711:4711 bin .ssh",
    );
    let controller = lab.controller(&["--hosts", "a:2,b:2"]);
    lab.wait_for_engines(2);
    let machine = std::env::consts::ARCH;
    says(
        &controller,
        "b: the host has glibc 2.12, our ipengine needs 2.",
        LIMIT,
    );
    let log = controller.stderr();
    let line = log.lines().find(|line| line.contains("glibc 2.12"));
    let tarball = format!(
        "name the ipengine of ipbroker-{}-{machine}-linux.tar.gz with --engine-program",
        env!("CARGO_PKG_VERSION")
    );
    assert!(line.is_some_and(|line| line.contains(&tarball)), "{log}");
    stop(&lab, controller, &["a", "b"]);
}
