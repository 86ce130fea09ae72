//! Engines through Grid Engine: a real one, of one host, started by the test.

use std::{
    collections::BTreeSet,
    fs,
    os::unix::fs::{PermissionsExt, symlink},
    path::Path,
    process::{Command, Output},
    time::Duration,
};

use ipbroker_tests::{
    Cluster, ClusterBuilder, LIMIT, Program,
    batch::{free_port, grows_and_shrinks},
    eventually,
    programs::{self, MARK, kill_marked, marked},
};
use rustix::process::{Signal, geteuid};

/// A Grid Engine of one host with eight slots, whatever the machine has.
struct GridEngine {
    dir: tempfile::TempDir,
    env: Vec<(&'static str, String)>,
    mark: String,
    daemons: Vec<Program>,
}

/// The text with other values for these of its keys.
fn set(text: &str, values: &[(&str, &str)]) -> String {
    let line = |line: &str| {
        let key = line.split_whitespace().next();
        let value = values.iter().find(|(name, _)| Some(*name) == key);
        match value {
            Some((name, value)) => format!("{name} {value}\n"),
            None => format!("{line}\n"),
        }
    };
    text.lines().map(line).collect()
}

impl GridEngine {
    fn start() -> Option<GridEngine> {
        let there = [
            "/usr/sbin/sge_qmaster",
            "/usr/sbin/sge_execd",
            "/usr/bin/qsub",
        ]
        .iter()
        .all(|p| Path::new(p).exists());
        if !(there && geteuid().is_root()) && std::env::var_os("IPBROKER_LAB").is_none() {
            eprintln!("skipped: needs root and gridengine-master, -exec and -client");
            return None;
        }
        let dir = tempfile::Builder::new()
            .prefix("ipbroker-gridengine-")
            .tempdir()
            .expect("a directory");
        let p = dir.path().display().to_string();
        let env = vec![
            ("SGE_ROOT", p.clone()),
            ("SGE_CELL", "default".to_owned()),
            ("SGE_QMASTER_PORT", free_port().to_string()),
            ("SGE_EXECD_PORT", free_port().to_string()),
            // What it prints is changed and given back below.
            ("SGE_SINGLE_LINE", "1".to_owned()),
        ];
        let mut grid = GridEngine {
            dir,
            env,
            mark: uuid::Uuid::new_v4().to_string(),
            daemons: Vec::new(),
        };
        // The name that it knows this host by.
        let node = grid.says("gethostname", &["-name"]).trim().to_owned();
        assert!(!node.is_empty(), "this host's name has no address");
        for sub in ["default/common", "qmaster/job_scripts", "execd"] {
            fs::create_dir_all(grid.dir.path().join(sub)).expect("a directory");
        }
        symlink("/usr/share/gridengine/util", grid.dir.path().join("util")).expect("a link");
        let spool = format!("{p}/default/common;{p}/qmaster");
        grid.write(
            "default/common/bootstrap",
            &format!(
                "admin_user root\ndefault_domain none\nignore_fqdn true\nspooling_method classic\nspooling_lib libspoolc\n\
                 spooling_params {spool}\nbinary_path /usr/lib/gridengine\nqmaster_spool_dir {p}/qmaster\nsecurity_mode none\n\
                 listener_threads 1\nworker_threads 1\nscheduler_threads 1\n"
            ),
        );
        grid.write("default/common/act_qmaster", &format!("{node}\n"));
        // Where the host's name is an address of the loopback, that has two names.
        grid.write(
            "default/common/host_aliases",
            &format!("{node} localhost\n"),
        );
        let defaults = fs::read_to_string("/usr/share/gridengine/default-configuration")
            .expect("the package's configuration");
        let configuration = grid.write(
            "configuration",
            &set(
                &defaults,
                &[
                    ("execd_spool_dir", &format!("{p}/execd")),
                    ("min_uid", "0"),
                    ("min_gid", "0"),
                    ("mailer", "/bin/true"),
                    ("administrator_mail", "none"),
                ],
            ),
        );
        let resources = "/usr/share/gridengine/util/resources";
        grid.does("spoolinit", &["classic", "libspoolc", &spool, "init"]);
        grid.does("spooldefaults", &["configuration", &configuration]);
        grid.does(
            "spooldefaults",
            &["complexes", &format!("{resources}/centry")],
        );
        grid.does(
            "spooldefaults",
            &["usersets", &format!("{resources}/usersets")],
        );
        grid.does("spooldefaults", &["managers", "root"]);
        grid.daemon("sge_qmaster");
        eventually("sge_qmaster", LIMIT, || {
            grid.run("qconf", &["-sh"]).status.success().then_some(())
        });
        grid.does("qconf", &["-as", &node]);
        let quick = [
            ("schedule_interval", "0:0:1"),
            ("flush_submit_sec", "1"),
            ("flush_finish_sec", "1"),
            ("job_load_adjustments", "NONE"),
        ];
        let scheduler = grid.write("scheduler", &set(&grid.says("qconf", &["-ssconf"]), &quick));
        grid.does("qconf", &["-Msconf", &scheduler]);
        grid.daemon("sge_execd");
        eventually("an execution host", LIMIT, || {
            (grid.says("qconf", &["-sel"]).trim() == node).then_some(())
        });
        // However loaded the machine is with other tests.
        let all = [
            ("qname", "all.q"),
            ("hostlist", &node),
            ("slots", "8"),
            ("load_thresholds", "NONE"),
            ("pe_list", "NONE"),
        ];
        let queue = grid.write("queue", &set(&grid.says("qconf", &["-sq"]), &all));
        grid.does("qconf", &["-Aq", &queue]);
        Some(grid)
    }

    fn write(&self, name: &str, text: &str) -> String {
        let path = self.dir.path().join(name);
        fs::write(&path, text).expect("a file");
        path.display().to_string()
    }

    fn daemon(&mut self, name: &str) {
        // In the foreground, and not for longer than this test however that ends.
        let mut command = Command::new("setpriv");
        command
            .args(["--pdeathsig", "KILL", name])
            .current_dir(&self.dir)
            .envs(self.env.iter().map(|(name, value)| (name, value)))
            .env("SGE_ND", "1")
            .env(MARK, &self.mark);
        self.daemons.push(Program::spawn(command, self.dir.path()));
    }

    fn run(&self, program: &str, args: &[&str]) -> Output {
        // Some of its programs are for its own scripts only.
        let own = Path::new("/usr/lib/gridengine").join(program);
        let program = match program {
            "gethostname" | "spoolinit" | "spooldefaults" => own.as_path(),
            _ => Path::new(program),
        };
        Command::new(program)
            .args(args)
            .envs(self.env.iter().map(|(name, value)| (name, value)))
            .output()
            .unwrap_or_else(|e| panic!("{}: {e}", program.display()))
    }

    #[track_caller]
    fn does(&self, program: &str, args: &[&str]) {
        let output = self.run(program, args);
        assert!(output.status.success(), "{program} {args:?}: {output:?}");
    }

    fn says(&self, program: &str, args: &[&str]) -> String {
        String::from_utf8_lossy(&self.run(program, args).stdout).into_owned()
    }

    /// The numbers and states of the tasks of jobs that wait or run; those that wait of one job are one.
    fn tasks(&self) -> Vec<(String, String)> {
        let list = self.says("qstat", &[]);
        let words = |line: &str| {
            let mut words = line.split_whitespace().map(str::to_owned);
            Some((words.next()?, words.nth(3)?))
        };
        list.lines().skip(2).filter_map(words).collect()
    }

    fn cluster(&self) -> ClusterBuilder {
        self.env
            .iter()
            .fold(Cluster::builder(), |builder, (name, value)| {
                builder.env(name, value)
            })
    }
}

impl Drop for GridEngine {
    fn drop(&mut self) {
        let _ = self.run("qdel", &["*"]);
        let start = std::time::Instant::now();
        while !self.tasks().is_empty() && start.elapsed() < Duration::from_secs(5) {
            std::thread::sleep(Duration::from_millis(50));
        }
        while self.daemons.pop().is_some() {}
        kill_marked(&self.mark);
    }
}

fn end(mut cluster: Cluster, grid: &GridEngine) {
    let controller = cluster.controller.take().expect("a controller");
    controller.signal(Signal::INT);
    controller.finish(2 * LIMIT).ok();
    // It has cancelled all, and waited for a while.
    let left = grid.tasks();
    assert!(
        left.iter().all(|(_, state)| state.contains('d')),
        "{left:?}"
    );
    eventually("an empty queue", LIMIT, || {
        grid.tasks().is_empty().then_some(())
    });
}

#[test]
fn engines_of_a_batch_job() {
    let Some(grid) = GridEngine::start() else {
        return;
    };
    let mut cluster = grid
        .cluster()
        .args([
            "--restore",
            "--engines",
            "sge",
            "-n",
            "4",
            "--",
            "-l",
            "h_rt=600",
        ])
        .start();
    cluster.wait_engines(4);
    let running = vec![("1".to_owned(), "r".to_owned()); 4];
    eventually("four tasks of a job", LIMIT, || {
        (grid.tasks() == running).then_some(())
    });
    let jobs = "{\"cmd\": \"echo $SGE_TASK_ID; sleep 0.1\"}\n".repeat(40);
    let lines = cluster
        .client_with(&["run", "--capture"], &jobs, 2 * LIMIT)
        .ok()
        .json_lines();
    let ranks: BTreeSet<&str> = lines
        .iter()
        .filter_map(|l| l["result"]["stdout"].as_str())
        .map(str::trim)
        .collect();
    assert!(
        lines.len() == 40 && ranks.is_subset(&["1", "2", "3", "4"].into()) && ranks.len() > 1,
        "{ranks:?}"
    );
    // A controller that comes after a crash takes the job over.
    cluster.controller().kill();
    cluster.start_controller();
    cluster.wait_engines(4);
    assert_eq!(grid.tasks(), running);
    eventually("word of it", LIMIT, || {
        let log = cluster.controller().stderr();
        log.contains("4 engine(s) of the earlier controller")
            .then_some(())
    });
    end(cluster, &grid);
}

#[test]
fn many_jobs_end_with_the_controller() {
    let Some(grid) = GridEngine::start() else {
        return;
    };
    let cluster = grid
        .cluster()
        .args(["--engines", "sge", "--min", "8", "--max", "8"])
        .start();
    cluster.wait_engines(8);
    let jobs: BTreeSet<String> = grid.tasks().into_iter().map(|(job, _)| job).collect();
    assert_eq!(jobs.len(), 8, "{jobs:?}");
    end(cluster, &grid);
}

#[test]
fn a_cluster_grows_while_tasks_wait_and_shrinks_when_idle() {
    let Some(grid) = GridEngine::start() else {
        return;
    };
    grows_and_shrinks("sge", &grid.env, || grid.tasks().len());
}

#[test]
fn a_refused_job_is_told_and_nothing_submitted_for_a_while() {
    let Some(grid) = GridEngine::start() else {
        return;
    };
    let cluster = grid.cluster().prepare();
    let mut command = cluster.command("ipctl");
    command.args(["--engines", "sge", "-n", "2", "--", "-q", "nowhere"]);
    let refused = programs::run(command, cluster.dir(), "", LIMIT);
    assert!(
        refused.code() != 0
            && refused.stderr.contains("qsub has refused the job")
            && refused.stderr.contains("unknown queue \"nowhere\""),
        "{}",
        refused.stderr
    );
    let cluster = grid
        .cluster()
        .args(["--engines", "sge", "--max", "2", "--", "-l", "quantum=1"])
        .start();
    let id = cluster
        .client_with(&["submit"], "{\"cmd\": \"true\"}\n", LIMIT)
        .ok()
        .stdout;
    let trouble = eventually("what came of it", LIMIT, || {
        let status = cluster.status();
        status["batch"]["trouble"].as_str().map(str::to_owned)
    });
    let words = [
        "unknown resource \"quantum\"",
        "nothing is submitted to sge for 10 s",
    ];
    assert!(
        words.iter().all(|words| trouble.contains(words)) && trouble.lines().count() == 1,
        "{trouble}"
    );
    let why = cluster.client(&["explain", id.trim()]).ok().stdout;
    assert!(why.contains(words[0]), "{why}");
    end(cluster, &grid);
}

#[test]
fn a_job_that_ends_before_its_engine_came_is_told_with_its_last_words() {
    let Some(grid) = GridEngine::start() else {
        return;
    };
    let cluster = grid.cluster().prepare();
    let program = cluster.write("program", "#!/bin/sh\necho no such library >&2\nexit 3\n");
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).expect("permissions");
    let mut command = cluster.command("ipctl");
    command
        .args(["--engines", "sge", "--min", "1", "--max", "1"])
        .arg("--engine-program")
        .arg(program);
    let controller = Program::spawn(command, cluster.dir());
    eventually("its last words", 2 * LIMIT, || {
        let log = controller.stderr();
        log.contains("no such library").then_some(())
    });
    let trouble = eventually("what came of it", LIMIT, || {
        let status = cluster.status();
        status["batch"]["trouble"].as_str().map(str::to_owned)
    });
    assert!(
        trouble.contains("ended before an engine of it came; nothing is submitted to sge for 10 s"),
        "{trouble}"
    );
    controller.signal(Signal::INT);
    controller.finish(2 * LIMIT).ok();
}

/// What cannot run is not waited for.
#[test]
fn a_job_in_error_is_told_with_its_reason_and_deleted() {
    let Some(grid) = GridEngine::start() else {
        return;
    };
    let mut cluster = grid
        .cluster()
        .args([
            "--engines",
            "sge",
            "--max",
            "1",
            "--",
            "-o",
            "/no/such/directory/",
        ])
        .start();
    let id = cluster
        .client_with(&["submit"], "{\"cmd\": \"true\"}\n", LIMIT)
        .ok()
        .stdout;
    let trouble = eventually("what came of it", 2 * LIMIT, || {
        let status = cluster.status();
        status["batch"]["trouble"].as_str().map(str::to_owned)
    });
    let words = [
        "sge job 1 cannot run (state Eqw): ",
        "/no/such/directory",
        "nothing is submitted to sge for 10 s",
    ];
    assert!(
        words.iter().all(|words| trouble.contains(words)) && trouble.lines().count() == 1,
        "{trouble}"
    );
    let why = cluster.client(&["explain", id.trim()]).ok().stdout;
    assert!(why.contains(words[0]), "{why}");
    let log = cluster.controller().stderr();
    assert!(log.contains(words[0]), "{log}");
    eventually("that job to be gone", LIMIT, || {
        (!grid.tasks().iter().any(|(job, _)| job == "1")).then_some(())
    });
    end(cluster, &grid);
}

/// A controller that takes over does not guess what became of the jobs.
#[test]
fn nothing_is_submitted_beside_jobs_of_which_nothing_is_known() {
    let Some(grid) = GridEngine::start() else {
        return;
    };
    let tools = tempfile::tempdir().expect("a directory");
    let deaf = tools.path().join("deaf");
    let qstat = tools.path().join("qstat");
    let script = format!(
        "#!/bin/sh\n[ -e '{}' ] && exit 1\nexec /usr/bin/qstat \"$@\"\n",
        deaf.display()
    );
    fs::write(&qstat, script).expect("a file");
    fs::set_permissions(&qstat, fs::Permissions::from_mode(0o755)).expect("permissions");
    let path = std::env::var("PATH").unwrap_or_default();
    let path = format!("{}:{path}", tools.path().display());
    let mut cluster = grid
        .cluster()
        .env("PATH", &path)
        .args(["--restore", "--engines", "sge", "-n", "1"])
        .start();
    cluster.wait_engines(1);
    cluster.controller().kill();
    fs::write(&deaf, "").expect("a file");
    cluster.start_controller();
    let trouble = eventually("what it waits for", LIMIT, || {
        let status = cluster.status();
        status["batch"]["trouble"].as_str().map(str::to_owned)
    });
    assert!(
        trouble.contains("qstat does not say what became of sge job 1 of the earlier controller"),
        "{trouble}"
    );
    fs::remove_file(&deaf).expect("it was there");
    eventually("word of it", 2 * LIMIT, || {
        let log = cluster.controller().stderr();
        log.contains("1 engine(s) of the earlier controller")
            .then_some(())
    });
    assert_eq!(
        cluster.status()["batch"]["trouble"],
        serde_json::Value::Null
    );
    cluster.wait_engines(1);
    assert_eq!(grid.tasks(), [("1".to_owned(), "r".to_owned())]);
    end(cluster, &grid);
}

#[test]
fn a_job_that_qsub_takes_with_an_error_is_kept() {
    let Some(grid) = GridEngine::start() else {
        return;
    };
    // "Unable to run job: … Your job 1 has been submitted", and fails.
    let users = ["user_lists", "arusers", "all.q"];
    let changes = |how: &str| grid.does("qconf", &[&[how, "queue"], &users[..]].concat());
    changes("-mattr");
    let mut cluster = grid
        .cluster()
        .args(["--engines", "sge", "--max", "1"])
        .start();
    let id = cluster
        .client_with(&["submit"], "{\"cmd\": \"true\"}\n", LIMIT)
        .ok()
        .stdout;
    eventually("a job that waits", LIMIT, || {
        let told = cluster.status()["batch"]["jobs"].to_string();
        told.contains("state qw").then_some(())
    });
    let log = cluster.controller().stderr();
    assert!(log.contains("not allowed to run in any queue"), "{log}");
    changes("-dattr");
    cluster
        .client_with(&["wait", id.trim()], "", 2 * LIMIT)
        .ok();
    assert!(grid.tasks().iter().all(|(job, _)| job == "1"));
    end(cluster, &grid);
}

#[test]
fn what_runs_when_its_time_is_over_runs_again_in_the_next_job() {
    let Some(grid) = GridEngine::start() else {
        return;
    };
    let cluster = grid
        .cluster()
        .args([
            "--engines",
            "sge",
            "--max",
            "1",
            "--",
            "-l",
            "h_rt=0:0:15,s_rt=1:0:0",
        ])
        .start();
    let ran = cluster.path("ran");
    let cmd = format!(
        "echo $JOB_ID >> {0}; [ $(wc -l < {0}) = 2 ] || exec sleep 1000",
        ran.display()
    );
    let long = serde_json::json!({"cmd": "true", "time": "1h"});
    let jobs = format!(
        "{}\n{long}\n",
        serde_json::json!({"cmd": cmd, "max_crashes": 1})
    );
    let ids = cluster.client_with(&["submit"], &jobs, LIMIT).ok().stdout;
    let ids: Vec<&str> = ids.lines().collect();
    eventually("its first run", 2 * LIMIT, || ran.exists().then_some(()));
    // The engine knows how long it stays.
    let why = cluster.client(&["explain", ids[1]]).ok().stdout;
    assert!(why.contains("stays for 60 min"), "{why}");
    cluster.client_with(&["wait", ids[0]], "", 2 * LIMIT).ok();
    let ran = cluster.read("ran");
    let numbers: BTreeSet<&str> = ran.lines().collect();
    assert!(numbers.len() == 2, "{ran}");
    let asleep = |(_, line): &(i32, String)| line.contains("sleep 1000");
    let left = marked(&grid.mark).into_iter().chain(cluster.processes());
    assert_eq!(left.filter(asleep).collect::<Vec<_>>(), []);
    end(cluster, &grid);
}

#[test]
fn jobs_are_as_long_as_what_waits_for_them() {
    let Some(grid) = GridEngine::start() else {
        return;
    };
    let cluster = grid.cluster().args(["--engines", "sge", "--max", "1"]);
    let cluster = cluster.start();
    let job = "{\"cmd\": \"true\", \"time\": \"5m\"}\n";
    let id = cluster.client_with(&["submit"], job, LIMIT).ok().stdout;
    cluster
        .client_with(&["wait", id.trim()], "", 2 * LIMIT)
        .ok();
    // The longest, and five minutes in which its engine starts.
    let number = &grid.tasks()[0].0;
    let told = grid.says("qstat", &["-j", number]);
    assert!(told.contains("h_rt=600"), "{told}");
    end(cluster, &grid);
}
