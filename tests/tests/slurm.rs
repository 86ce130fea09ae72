//! Engines through Slurm: a real one, of one node, started by the test.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{Command, Output},
    time::Duration,
};

use ipbroker_tests::{
    Cluster, LIMIT,
    batch::{free_port, grows_and_shrinks},
    eventually,
};
use rustix::process::{Pid, Signal, geteuid, kill_process};

/// A Slurm of one node with eight processors, whatever the machine has.
struct Slurm {
    dir: tempfile::TempDir,
}

fn run(program: &str, args: &[&str], conf: &Path) -> Output {
    Command::new(program)
        .args(args)
        .env("SLURM_CONF", conf)
        .output()
        .unwrap_or_else(|e| panic!("{program}: {e}"))
}

impl Slurm {
    fn start() -> Option<Slurm> {
        let there = ["slurmctld", "slurmd", "munged"]
            .iter()
            .all(|p| Path::new("/usr/sbin").join(p).exists());
        if !(there && geteuid().is_root()) && std::env::var_os("IPBROKER_LAB").is_none() {
            eprintln!("skipped: needs root, slurm-wlm and munge");
            return None;
        }
        let dir = tempfile::Builder::new()
            .prefix("ipbroker-slurm-")
            .tempdir()
            .expect("a directory");
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).expect("permissions");
        let slurm = Slurm { dir };
        let path = slurm.dir.path();
        for sub in ["ctld", "slurmd"] {
            fs::create_dir(path.join(sub)).expect("a directory");
        }
        let key: Vec<u8> = (0..1024).map(|_| rand::random()).collect();
        fs::write(path.join("munge.key"), key).expect("a key");
        fs::set_permissions(path.join("munge.key"), fs::Permissions::from_mode(0o400))
            .expect("permissions");
        let node = rustix::system::uname()
            .nodename()
            .to_string_lossy()
            .split('.')
            .next()
            .unwrap_or("node")
            .to_owned();
        let p = path.display();
        let text = format!(
            "ClusterName=ipbroker\nSlurmctldHost={node}(127.0.0.1)\nSlurmUser=root\nSlurmdUser=root\nSlurmctldPort={}\nSlurmdPort={}\nAuthType=auth/munge\n\
             AuthInfo=socket={p}/munge.socket\nCredType=cred/munge\nStateSaveLocation={p}/ctld\nSlurmdSpoolDir={p}/slurmd\nSlurmctldPidFile={p}/slurmctld.pid\n\
             SlurmdPidFile={p}/slurmd.pid\nSlurmctldLogFile={p}/slurmctld.log\nSlurmdLogFile={p}/slurmd.log\nProctrackType=proctrack/linuxproc\nTaskPlugin=task/none\n\
             MpiDefault=none\nSelectType=select/cons_tres\nSelectTypeParameters=CR_CPU\nSlurmdParameters=config_overrides\nReturnToService=2\nKillWait=2\n\
             NodeName={node} NodeAddr=127.0.0.1 CPUs=8 State=UNKNOWN\nPartitionName=debug Nodes=ALL Default=YES MaxTime=INFINITE State=UP\n",
            free_port(),
            free_port()
        );
        fs::write(slurm.conf(), text).expect("slurm.conf");
        let file = |name: &str| format!("{p}/{name}");
        let munged = run(
            "munged",
            &[
                "--force",
                &format!("--key-file={}", file("munge.key")),
                &format!("--socket={}", file("munge.socket")),
                &format!("--pid-file={}", file("munged.pid")),
                &format!("--log-file={}", file("munged.log")),
                &format!("--seed-file={}", file("munged.seed")),
            ],
            &slurm.conf(),
        );
        assert!(munged.status.success(), "{munged:?}");
        assert!(run("slurmctld", &["-c"], &slurm.conf()).status.success());
        eventually("slurmctld", LIMIT, || {
            run("sinfo", &[], &slurm.conf())
                .status
                .success()
                .then_some(())
        });
        assert!(run("slurmd", &[], &slurm.conf()).status.success());
        eventually("an idle node", LIMIT, || {
            slurm
                .says("sinfo", &["-h", "-o", "%T"])
                .contains("idle")
                .then_some(())
        });
        Some(slurm)
    }

    fn conf(&self) -> PathBuf {
        self.dir.path().join("slurm.conf")
    }

    fn says(&self, program: &str, args: &[&str]) -> String {
        String::from_utf8_lossy(&run(program, args, &self.conf()).stdout).into_owned()
    }
}

impl Drop for Slurm {
    fn drop(&mut self) {
        let _ = run("scancel", &["--user=root"], &self.conf());
        for daemon in ["slurmd", "slurmctld", "munged"] {
            let pid = fs::read_to_string(self.dir.path().join(format!("{daemon}.pid")))
                .ok()
                .and_then(|t| t.trim().parse().ok())
                .and_then(Pid::from_raw);
            if let Some(pid) = pid {
                let _ = kill_process(pid, Signal::TERM);
                let start = std::time::Instant::now();
                while kill_process(pid, Signal::CONT).is_ok()
                    && start.elapsed() < Duration::from_secs(5)
                {
                    std::thread::sleep(Duration::from_millis(20));
                }
            }
        }
    }
}

#[test]
fn engines_of_a_batch_job() {
    let Some(slurm) = Slurm::start() else { return };
    let conf = slurm.conf().display().to_string();
    let mut cluster = Cluster::builder()
        .env("SLURM_CONF", &conf)
        .args([
            "--restore",
            "--engines",
            "slurm",
            "-n",
            "4",
            "--",
            "--partition=debug",
            "--time=10",
        ])
        .start();
    cluster.wait_engines(4);
    assert!(
        slurm
            .says("squeue", &["-h", "-o", "%j %T %C"])
            .starts_with("ipengine RUNNING 4"),
        "{}",
        slurm.says("squeue", &[])
    );
    let jobs: String = (0..40)
        .map(|_| "{\"cmd\": \"echo $SLURM_PROCID\"}\n")
        .collect();
    let lines = cluster
        .client_with(&["run", "--capture"], &jobs, 2 * LIMIT)
        .ok()
        .json_lines();
    let ranks: std::collections::BTreeSet<&str> = lines
        .iter()
        .filter_map(|l| l["result"]["stdout"].as_str())
        .map(str::trim)
        .collect();
    assert!(
        lines.len() == 40 && ranks.is_subset(&["0", "1", "2", "3"].into()) && ranks.len() > 1,
        "{ranks:?}"
    );
    // A controller that comes after a crash takes the job over.
    let queue = slurm.says("squeue", &["-h", "-o", "%i"]);
    cluster.controller().kill();
    cluster.start_controller();
    cluster.wait_engines(4);
    assert_eq!(slurm.says("squeue", &["-h", "-o", "%i"]), queue);
    eventually("word of it", LIMIT, || {
        let log = cluster.controller().stderr();
        log.contains("4 engine(s) of the earlier controller")
            .then_some(())
    });
    let controller = cluster.controller.take().expect("a controller");
    controller.signal(Signal::INT);
    controller.finish(2 * LIMIT).ok();
    assert_eq!(slurm.says("squeue", &["-h"]), "");
}

#[test]
fn a_refused_job_is_told() {
    let Some(slurm) = Slurm::start() else { return };
    let conf = slurm.conf().display().to_string();
    let cluster = Cluster::builder().env("SLURM_CONF", &conf).prepare();
    let mut command = cluster.command("ipctl");
    command.args(["--engines", "slurm", "-n", "2", "--", "--partition=nowhere"]);
    let refused = ipbroker_tests::programs::run(command, cluster.dir(), "", LIMIT);
    assert!(
        refused.code() != 0
            && refused.stderr.contains("sbatch has refused the job")
            && refused.stderr.contains("nvalid partition"),
        "{}",
        refused.stderr
    );
}

/// Nobody names a time: the partition's own limit is that of the allocation, whoever starts engines in it.
#[test]
fn the_limit_of_the_partition_is_known() {
    let Some(slurm) = Slurm::start() else { return };
    let conf = slurm.conf().display().to_string();
    slurm.says(
        "scontrol",
        &["update", "PartitionName=debug", "DefaultTime=20"],
    );
    for by_hand in [false, true] {
        let mut builder = Cluster::builder().env("SLURM_CONF", &conf).arg("--nodb");
        if !by_hand {
            builder = builder.args(["--engines", "slurm", "-n", "1"]);
        }
        let cluster = builder.start();
        let engine = format!(
            "exec '{}' --profile-dir '{}'",
            ipbroker_tests::program("ipengine").display(),
            cluster.profile().display()
        );
        if by_hand {
            slurm.says("sbatch", &["--output=/dev/null", "--wrap", &engine]);
        }
        cluster.wait_engines(1);
        let jobs =
            "{\"cmd\": \"true\", \"time\": \"15m\"}\n{\"cmd\": \"true\", \"time\": \"2h\"}\n";
        let ids = cluster.client_with(&["submit"], jobs, LIMIT).ok().stdout;
        let ids: Vec<&str> = ids.lines().collect();
        cluster.client_with(&["wait", ids[0]], "", LIMIT).ok();
        let why = cluster.client(&["explain", ids[1]]).ok().stdout;
        assert!(
            why.contains("No engine is registered that stays for 120 min.")
                && why.contains("has to go in 1"),
            "{by_hand}: {why}"
        );
        cluster.client(&["shutdown"]).ok();
        eventually("the end of the allocation", 2 * LIMIT, || {
            slurm.says("squeue", &["-h"]).is_empty().then_some(())
        });
    }
}

#[test]
fn a_cluster_grows_while_tasks_wait_and_shrinks_when_idle() {
    let Some(slurm) = Slurm::start() else { return };
    let conf = slurm.conf().display().to_string();
    grows_and_shrinks("slurm", &[("SLURM_CONF", conf)], || {
        slurm.says("squeue", &["-h", "-o", "%i"]).lines().count()
    });
}

#[test]
fn engines_are_asked_for_as_far_as_they_could_run_what_waits() {
    let Some(slurm) = Slurm::start() else { return };
    let conf = slurm.conf().display().to_string();
    let cluster = Cluster::builder()
        .env("SLURM_CONF", &conf)
        .args([
            "--engines",
            "slurm",
            "--max",
            "4",
            "--idle",
            "4s",
            "--",
            "--time=20",
        ])
        .start();
    let jobs = "{\"cmd\": \"true\", \"time\": \"2h\"}\n{\"cmd\": \"true\", \"gpus\": 3}\n";
    let waits = cluster.client_with(&["submit"], jobs, LIMIT).ok().stdout;
    let status = || cluster.status();
    let jobs = |status: &serde_json::Value| status["batch"]["jobs"].as_array().map(Vec::len);
    // An engine shows what there is: neither these nor any time of theirs is enough.
    eventually("an engine", 2 * LIMIT, || {
        (status()["engines"].as_u64() > Some(0)).then_some(())
    });
    for (id, words) in waits.lines().zip(["stays for 120 min", "3 gpus"]) {
        let why = cluster.client(&["explain", id]).ok().stdout;
        assert!(why.contains(words), "{why}");
    }
    eventually("no job of Slurm", 2 * LIMIT, || {
        (jobs(&status()) == Some(0)).then_some(())
    });
    // What they can run brings them again, and nothing else does.
    let more = "{\"cmd\": \"true\", \"time\": \"5m\"}\n";
    let id = cluster.client_with(&["submit"], more, LIMIT).ok().stdout;
    cluster
        .client_with(&["wait", id.trim()], "", 2 * LIMIT)
        .ok();
    let status = status();
    assert!(
        status["tasks"]["ready"] == 2 && jobs(&status) <= Some(1),
        "{status}"
    );
}

#[test]
fn jobs_are_as_long_as_what_waits_for_them() {
    let Some(slurm) = Slurm::start() else { return };
    let conf = slurm.conf().display().to_string();
    let cluster = Cluster::builder()
        .env("SLURM_CONF", &conf)
        .args(["--engines", "slurm", "--max", "3", "--idle", "60s"])
        .start();
    let run = |job: &str| {
        let id = cluster.client_with(&["submit"], job, LIMIT).ok().stdout;
        cluster
            .client_with(&["wait", id.trim()], "", 2 * LIMIT)
            .ok();
    };
    let lengths = || {
        let queue = slurm.says("squeue", &["-h", "-o", "%l"]);
        let mut lengths: Vec<String> = queue.lines().map(str::to_owned).collect();
        lengths.sort();
        lengths
    };
    // The longest, and five minutes in which its engine starts.
    run("{\"cmd\": \"true\", \"time\": \"5m\"}\n");
    assert_eq!(lengths(), ["10:00"]);
    // Its engine is idle, and will be gone too early.
    run("{\"cmd\": \"true\", \"time\": \"2h\"}\n");
    assert_eq!(lengths(), ["10:00", "2:05:00"]);
    // Who does not say how long it takes goes anywhere.
    run("{\"cmd\": \"true\"}\n");
    assert_eq!(lengths().len(), 2);
}

/// Whether Slurm refuses such a job or leaves it in its queue for ever, nothing stays there, what may run for a shorter time is
/// none the worse, and who waits is told.
#[test]
fn what_is_longer_than_the_partition_allows_is_not_submitted() {
    let Some(slurm) = Slurm::start() else { return };
    let conf = slurm.conf().display().to_string();
    for enforced in [false, true] {
        slurm.says("scontrol", &["update", "PartitionName=debug", "MaxTime=60"]);
        if enforced {
            let mut text = fs::read_to_string(slurm.conf()).expect("slurm.conf");
            text += "EnforcePartLimits=ALL\n";
            text = text.replace("MaxTime=INFINITE", "MaxTime=60");
            fs::write(slurm.conf(), text).expect("slurm.conf");
            slurm.says("scontrol", &["reconfigure"]);
        }
        let cluster = Cluster::builder()
            .env("SLURM_CONF", &conf)
            .args(["--engines", "slurm", "--max", "3", "--idle", "1s"])
            .start();
        let jobs = "{\"cmd\": \"true\", \"time\": \"3h\"}\n{\"cmd\": \"true\", \"time\": \"2h\"}\n\
                    {\"cmd\": \"true\", \"time\": \"5m\"}\n{\"cmd\": \"true\"}\n";
        let ids = cluster.client_with(&["submit"], jobs, LIMIT).ok().stdout;
        let ids: Vec<&str> = ids.lines().collect();
        let wait = ["wait", ids[2], ids[3]];
        cluster.client_with(&wait, "", 2 * LIMIT).ok();
        eventually("an empty queue", 2 * LIMIT, || {
            slurm.says("squeue", &["-h"]).is_empty().then_some(())
        });
        let status = || {
            let status = cluster.client(&["status", "--json"]).ok();
            status.json_lines().remove(0)
        };
        eventually("that no job is there", LIMIT, || {
            let jobs = status()["batch"]["jobs"].as_array().map(Vec::len);
            (jobs == Some(0)).then_some(())
        });
        let told = "nothing is submitted to slurm for tasks that may run 120 min or longer";
        let status = status();
        let trouble = status["batch"]["trouble"].as_str().unwrap_or_default();
        assert!(trouble.contains(told), "enforced {enforced}: {status}");
        let why = cluster.client(&["explain", ids[1]]).ok().stdout;
        assert!(
            why.contains("stays for 120 min") && why.contains(told),
            "enforced {enforced}: {why}"
        );
    }
}

#[test]
fn jobs_that_no_task_waits_for_any_more_leave_the_queue() {
    let Some(slurm) = Slurm::start() else { return };
    let conf = slurm.conf().display().to_string();
    let partition = |state: &str| {
        let state = format!("State={state}");
        slurm.says("scontrol", &["update", "PartitionName=debug", &state]);
    };
    let queued = |count: usize| {
        eventually(&format!("{count} jobs in the queue"), 2 * LIMIT, || {
            (slurm.says("squeue", &["-h"]).lines().count() == count).then_some(())
        });
    };
    partition("DOWN");
    let cluster = Cluster::builder()
        .env("SLURM_CONF", &conf)
        .args(["--engines", "slurm", "--max", "3", "--idle", "1s"])
        .start();
    let submit = |jobs: &str| cluster.client_with(&["submit"], jobs, LIMIT).ok().stdout;
    let ids = submit("{\"cmd\": \"true\"}\n{\"cmd\": \"true\"}\n");
    queued(2);
    let ids: Vec<&str> = ids.lines().collect();
    cluster.client(&["abort", ids[0]]).ok();
    queued(1);
    cluster.client(&["abort", ids[1]]).ok();
    queued(0);
    eventually("that no job is there", LIMIT, || {
        let status = cluster.client(&["status", "--json"]).ok();
        let batch = &status.json_lines().remove(0)["batch"];
        assert!(batch["trouble"].is_null(), "{batch}");
        (batch["jobs"].as_array()?.is_empty()).then_some(())
    });
    // What comes now is waited for.
    partition("UP");
    let id = submit("{\"cmd\": \"true\"}\n");
    let wait = ["wait", id.trim()];
    cluster.client_with(&wait, "", 2 * LIMIT).ok();
}

/// More engines may bring a second host, so they are asked for; there is none, and that is not tried again at once.
#[test]
fn jobs_whose_engines_have_nothing_to_do_are_not_submitted_again_at_once() {
    let Some(slurm) = Slurm::start() else { return };
    let conf = slurm.conf().display().to_string();
    let cluster = Cluster::builder()
        .env("SLURM_CONF", &conf)
        .args(["--engines", "slurm", "-n", "2", "--max", "2"])
        .args(["--idle", "1s"])
        .start();
    let job = "{\"cmd\": \"true\", \"nodes\": 2}\n";
    let id = cluster.client_with(&["submit"], job, LIMIT).ok().stdout;
    let told =
        "no task was given to an engine while it was there; nothing is submitted to slurm for 10 s";
    eventually("that it is told", 2 * LIMIT, || {
        let why = cluster.client(&["explain", id.trim()]).ok().stdout;
        why.contains(told).then_some(())
    });
    // The next one: after that time.
    eventually("another job", 2 * LIMIT, || {
        let status = cluster.client(&["status", "--json"]).ok();
        let batch = &status.json_lines().remove(0)["batch"];
        let job = batch["jobs"][0]["job"].as_str().map(str::to_owned);
        assert!(job.is_some() || batch["trouble"].is_string(), "{batch}");
        (job.as_deref() == Some("2")).then_some(())
    });
}

#[test]
fn after_a_refusal_nothing_is_submitted_for_a_while() {
    let cluster = Cluster::builder().prepare();
    let (fake, asked) = (cluster.path("sbatch"), cluster.path("asked"));
    let script = format!(
        "#!/bin/sh\necho >> {}\necho no nodes left >&2\nexit 1\n",
        asked.display()
    );
    fs::write(&fake, script).expect("a script");
    fs::set_permissions(&fake, fs::Permissions::from_mode(0o755)).expect("permissions");
    let path = std::env::var("PATH").expect("a PATH");
    let mut command = cluster.command("ipctl");
    command
        .args(["--engines", "slurm", "--max", "2"])
        .env("PATH", format!("{}:{path}", cluster.dir().display()));
    let controller = ipbroker_tests::programs::Program::spawn(command, cluster.dir());
    let submit = || {
        cluster
            .client_with(&["submit"], "{\"cmd\": \"true\"}\n", LIMIT)
            .ok()
            .stdout
    };
    let id = eventually("a controller", LIMIT, || {
        cluster.connection_file("client").exists().then(submit)
    });
    let why = eventually("what came of it", LIMIT, || {
        let why = cluster.client(&["explain", id.trim()]).ok().stdout;
        why.contains("no nodes left").then_some(why)
    });
    assert!(
        why.contains("nothing is submitted to slurm for 10 s"),
        "{why}"
    );
    // It is looked at twice a second.
    let begun = std::time::Instant::now();
    eventually("two seconds", LIMIT, || {
        (begun.elapsed().as_secs() >= 2).then_some(())
    });
    assert_eq!(cluster.read("asked"), "\n");
    controller.signal(Signal::INT);
    controller.finish(2 * LIMIT).ok();
}
