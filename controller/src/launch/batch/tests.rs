use std::{os::unix::fs::PermissionsExt, sync::Mutex, time::Instant};

use super::*;

fn plan(system: &str, engines: u32, dir: &Path) -> Plan {
    Plan {
        system: System::find(system).unwrap(),
        engines,
        growth: None,
        time: Duration::ZERO,
        options: vec!["--partition=debug".into()],
        template: None,
        program: "/opt/my tools/ipengine".into(),
        connection_file: "/home/me/.ipython/profile_default/security/ipcontroller-engine.json"
            .into(),
        dir: dir.to_owned(),
        engine_args: vec!["--tag".into(), "it's".into()],
        record: dir.join("record"),
        adopt: false,
    }
}

fn script(system: &str, engines: u32) -> String {
    let dir = tempfile::tempdir().unwrap();
    let path = write_script(&plan(system, engines, dir.path())).unwrap();
    fs::read_to_string(path)
        .unwrap()
        .replace(&dir.path().display().to_string(), "/DIR")
}

const COMMAND: &str = r"'/opt/my tools/ipengine' --file /home/me/.ipython/profile_default/security/ipcontroller-engine.json --tag 'it'\''s'";

#[test]
fn scripts_are_what_the_manuals_ask_for() {
    // sbatch(1): options before the first command; %j is the job's number. squeue(1): %e is the time at which it ends.
    let end = r#": "${SLURM_JOB_END_TIME:=$(date +%s -d "$(squeue --noheader --format=%e --jobs=$SLURM_JOB_ID)" 2>/dev/null)}""#;
    assert_eq!(
        script("slurm", 64),
        format!(
            "#!/bin/sh\n#SBATCH --job-name=ipengine\n#SBATCH --ntasks=64\n#SBATCH --output=/DIR/ipengine-%j.log\n#SBATCH --open-mode=append\n{end}\nexport SLURM_JOB_END_TIME\nexec srun --kill-on-bad-exit=0 {COMMAND}\n"
        )
    );
    // qsub(1B) of OpenPBS: -J X-Y with X < Y, so an array of one is none.
    assert_eq!(
        script("pbs", 4),
        format!(
            "#!/bin/sh\n#PBS -V\n#PBS -N ipengine\n#PBS -j oe\n#PBS -o /DIR/\n#PBS -J 1-4\ncd \"$PBS_O_WORKDIR\"\nexec {COMMAND}\n"
        )
    );
    assert!(!script("pbs", 1).contains("-J"));
    // qsub(1) of Grid Engine: lines that begin with #$; -t for array jobs. What `qstat -j` lists is hard_resource_list in some.
    let limit = r"limit=$(qstat -j $JOB_ID 2>/dev/null | sed -n 's/^hard.resource_list:.*h_rt=\([0-9]*\).*/\1/p')";
    assert_eq!(
        script("sge", 4),
        format!(
            "#!/bin/sh\n#$ -S /bin/sh\n#$ -V\n#$ -cwd\n#$ -N ipengine\n#$ -j y\n#$ -o /DIR/\n#$ -t 1-4\n{limit}\nexec {COMMAND} ${{limit:+--time-limit=$limit}}\n"
        )
    );
    // bsub(1): -J "name[1-n]"; the script comes on standard input.
    assert_eq!(
        script("lsf", 4),
        format!(
            "#!/bin/sh\n#BSUB -J \"ipengine[1-4]\"\n#BSUB -oo /DIR/ipengine-%J-%I.log\nexec {COMMAND}\n"
        )
    );
    // condor_submit(1): new-style arguments are in double quotes, with single quotes doubled inside.
    let condor = script("htcondor", 4);
    assert!(
        condor.contains("executable = /opt/my tools/ipengine\n"),
        "{condor}"
    );
    assert!(
        condor.contains("arguments = \"'--file' 'ipcontroller-engine.json' '--tag' 'it''s'\"\n"),
        "{condor}"
    );
    assert!(condor.contains("transfer_input_files = /home/me/.ipython/profile_default/security/ipcontroller-engine.json\n") && condor.ends_with("queue 4\n"), "{condor}");
}

#[test]
fn jobs_are_as_long_as_tasks_ask_unless_somebody_says_otherwise() {
    let dir = tempfile::tempdir().unwrap();
    let lines = [
        ("slurm", "#SBATCH --time=13", "--time=8:00:00"),
        ("pbs", "#PBS -l walltime=725", "-lnodes=1,walltime=3600"),
        ("sge", "#$ -l h_rt=725", "h_rt=1:0:0"),
        ("lsf", "#BSUB -W 13", "-W"),
    ];
    for (system, line, option) in lines {
        let mut plan = plan(system, 1, dir.path());
        assert!(!script(system, 1).contains("time:"));
        plan.time = Duration::from_millis(425_500);
        let path = write_script(&plan).unwrap();
        let text = fs::read_to_string(path).unwrap();
        assert!(text.lines().any(|l| l == line), "{text}");
        let takes_time = |option: &str| {
            let options = [option.to_owned()];
            (plan.system).takes_time(plan.system.template, &options)
        };
        assert!(takes_time("--partition=h_r-t") && !takes_time(option));
        assert!(!plan.system.takes_time("exec srun {program} {args}", &[]));
    }
}

#[test]
fn numbers_and_states_are_understood() {
    let number = |system: &str, text: &str| (System::find(system).unwrap().number)(text);
    assert_eq!(
        number("slurm", "sbatch: note\nSubmitted batch job 4711\n").as_deref(),
        Some("4711")
    );
    assert_eq!(
        number("pbs", "123[].server.lab\n").as_deref(),
        Some("123[].server.lab")
    );
    assert_eq!(
        number(
            "sge",
            "Your job-array 5.1-4:1 (\"ipengine\") has been submitted\n"
        )
        .as_deref(),
        Some("5")
    );
    assert_eq!(
        number("lsf", "Job <88> is submitted to default queue <normal>.\n").as_deref(),
        Some("88")
    );
    assert_eq!(
        number(
            "htcondor",
            "Submitting job(s)....\n4 job(s) submitted to cluster 12.\n"
        )
        .as_deref(),
        Some("12")
    );
    assert_eq!(number("slurm", "sbatch: error\n"), None);

    let state = |system: &str, ok: bool, out: &str, err: &str| {
        (System::find(system).unwrap().state)("5", ok, out, err)
    };
    assert_eq!(
        state("slurm", true, "PENDING Resources\n", ""),
        Some(JobState::Waiting("pending (Resources)".into()))
    );
    assert_eq!(
        state("slurm", true, "RUNNING None\n", ""),
        Some(JobState::Running)
    );
    assert_eq!(state("slurm", true, "", ""), Some(JobState::Gone));
    assert_eq!(
        state(
            "slurm",
            false,
            "",
            "slurm_load_jobs error: Invalid job id specified"
        ),
        Some(JobState::Gone)
    );
    assert_eq!(
        state("slurm", false, "", "Unable to contact slurm controller"),
        None
    );
    let qstat = |s: &str| {
        format!(
            "Job id            Name             User              Time Use S Queue\n----------------  ---------------- ----------------  -------- - -----\n123[].server      ipengine         me                0 {s} workq\n"
        )
    };
    assert_eq!(
        state("pbs", true, &qstat("Q"), ""),
        Some(JobState::Waiting("state Q".into()))
    );
    assert_eq!(state("pbs", true, &qstat("B"), ""), Some(JobState::Running));
    assert_eq!(
        state(
            "pbs",
            false,
            "",
            "qstat: 123[].server Job has finished, use -x"
        ),
        Some(JobState::Gone)
    );
    let sge = |s: &str| {
        format!(
            "job-ID  prior   name       user         state submit/start at     queue  slots ja-task-ID\n---\n      5 0.55500 ipengine   me           {s}    11/20/2026 10:00:00 all.q@h 1 1\n"
        )
    };
    assert_eq!(
        state("sge", true, &sge("qw"), ""),
        Some(JobState::Waiting("state qw".into()))
    );
    assert_eq!(state("sge", true, &sge("r"), ""), Some(JobState::Running));
    assert_eq!(
        state("sge", true, &sge("Eqw"), ""),
        Some(JobState::Stuck("state Eqw".into()))
    );
    // That of another job says nothing of this one.
    let other = sge("r").replace("      5 ", "     15 ");
    assert_eq!(state("sge", true, &other, ""), Some(JobState::Gone));
    assert_eq!(state("sge", true, "", ""), Some(JobState::Gone));
    assert_eq!(
        state("lsf", true, "PEND\nRUN\n", ""),
        Some(JobState::Running)
    );
    assert_eq!(state("lsf", true, "DONE\nEXIT\n", ""), Some(JobState::Gone));
    assert_eq!(
        state("lsf", false, "", "Job <88> is not found"),
        Some(JobState::Gone)
    );
    assert_eq!(
        state("htcondor", true, "1\n1\n", ""),
        Some(JobState::Waiting("idle".into()))
    );
    assert_eq!(
        state("htcondor", true, "2\n1\n", ""),
        Some(JobState::Running)
    );
    assert_eq!(state("htcondor", true, "", ""), Some(JobState::Gone));
}

#[test]
fn unknown_systems_and_refusals_are_told() {
    assert!(System::find("fugaku").is_none());
    let dir = tempfile::tempdir().unwrap();
    let mut plan = plan("slurm", 2, dir.path());
    plan.template = Some(dir.path().join("none"));
    assert!(
        write_script(&plan)
            .unwrap_err()
            .to_string()
            .contains("none")
    );
}

#[test]
fn last_words_are_those_of_the_job() {
    let dir = tempfile::tempdir().unwrap();
    for name in [
        "ipengine-6-1.log",
        "ipengine.o6.2",
        "ipengine.o61",
        "ipengine.sge",
    ] {
        fs::write(dir.path().join(name), format!("of {name}\n")).unwrap();
    }
    let mut words = last_words(dir.path(), "6[].server");
    words.sort();
    assert_eq!(words, ["of ipengine-6-1.log", "of ipengine.o6.2"]);
}

/// A launcher against a batch system made of shell scripts: what is submitted, watched and cancelled, in order.
#[test]
fn a_job_is_watched_and_cancelled() {
    static FAKE: System = System {
        name: "fake",
        submit: "/bin/sh",
        script_on_stdin: false,
        template: "{array:# array}\n# {engines} {program}\necho Submitted batch job 7; echo RUNNING None > state\n",
        number: |text| {
            text.strip_prefix("Submitted batch job ")
                .map(|s| s.trim().to_owned())
        },
        query: query_state,
        state: |_, ok, out, _| {
            Some(if ok && out.starts_with("RUNNING") {
                JobState::Running
            } else {
                JobState::Gone
            })
        },
        why: None,
        cancel: "",
        limits: &[],
        too_long: &[],
    };
    let dir = tempfile::tempdir().unwrap();
    let cancel = dir.path().join("cancel");
    fs::write(
        &cancel,
        "#!/bin/sh\nrm -f \"${0%/*}\"/state\necho \"$1\" > \"${0%/*}\"/cancelled\n",
    )
    .unwrap();
    fs::set_permissions(&cancel, fs::Permissions::from_mode(0o755)).unwrap();
    let state: &'static str = dir.path().join("state").display().to_string().leak();
    let system: &'static System = Box::leak(Box::new(System {
        cancel: cancel.display().to_string().leak(),
        ..copy(&FAKE)
    }));
    *STATE.lock().unwrap() = state.to_owned();
    let mut plan = plan("slurm", 3, dir.path());
    plan.system = system;
    plan.options.clear();
    let events = Arc::new(Mutex::new(Vec::new()));
    let sink: Sink = Arc::new({
        let events = events.clone();
        move |e| events.lock().unwrap().push(e)
    });
    let mut launcher = BatchLauncher::start(plan.clone(), sink, ways()).unwrap();
    let until = Instant::now() + Duration::from_secs(20);
    while !events
        .lock()
        .unwrap()
        .iter()
        .any(|e| matches!(e, LaunchEvent::Settled { .. }))
    {
        assert!(Instant::now() < until, "{:?}", events.lock().unwrap());
        thread::sleep(Duration::from_millis(10));
    }
    // Who comes after a crash submits nothing while the job is there.
    plan.adopt = true;
    let told = Arc::new(Mutex::new(Vec::new()));
    let sink: Sink = Arc::new({
        let told = told.clone();
        move |e| told.lock().unwrap().push(e)
    });
    let _second = BatchLauncher::start(plan, sink, ways()).unwrap();
    assert!(
        matches!(
            &told.lock().unwrap()[0],
            LaunchEvent::Progress { host, step }
                if host == "fake job 7" && step.contains("3 engine(s) of the earlier controller")
        ),
        "{:?}",
        told.lock().unwrap()
    );
    launcher.stop(Duration::from_secs(10));
    assert_eq!(
        fs::read_to_string(dir.path().join("cancelled")).unwrap(),
        "7\n"
    );
    let events = events.lock().unwrap();
    assert!(
        events.contains(&LaunchEvent::Started {
            host: "fake job 7".into(),
            engines: 3
        }),
        "{events:?}"
    );
    assert!(
        !events
            .iter()
            .any(|e| matches!(e, LaunchEvent::Ended { .. })),
        "{events:?}"
    );
}

fn ways() -> Ways {
    Ways {
        demand: Box::new(|_, _| None),
        given: Box::new(|| None),
        tell: Box::new(drop),
    }
}

static STATE: Mutex<String> = Mutex::new(String::new());

fn query_state(_: &str) -> (&'static str, Vec<String>) {
    ("cat", vec![STATE.lock().unwrap().clone()])
}

fn copy(s: &System) -> System {
    System {
        name: s.name,
        submit: s.submit,
        script_on_stdin: s.script_on_stdin,
        template: s.template,
        number: s.number,
        query: s.query,
        state: s.state,
        why: s.why,
        cancel: s.cancel,
        limits: s.limits,
        too_long: s.too_long,
    }
}
