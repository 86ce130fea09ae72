//! The batch systems: their scripts, commands and answers.

use std::time::Duration;

use ipbroker_protocol::shell::quote;

use super::Plan;

/// One batch system.
///
/// In a template `{n}` or `{engines}` is the number of engines, `{program}` the quoted ipengine, `{args}` its quoted options, `{dir}` the
/// directory of the output files, `{array:…}` a line that is there only for more than one engine (the `…`), `{time:…}` one that
/// is there only if the tasks that wait say how long the job must be: in it `{minutes}` or `{seconds}`.
#[derive(Debug)]
pub(crate) struct System {
    /// Its name on the command line.
    pub name: &'static str,
    /// The command that takes a script.
    pub submit: &'static str,
    /// Whether it takes it on standard input.
    pub script_on_stdin: bool,
    pub template: &'static str,
    /// The job's number in what the submit command prints.
    pub number: fn(&str) -> Option<String>,
    /// The command that tells the job's state.
    pub query: fn(&str) -> (&'static str, Vec<String>),
    /// What it says of the job of that number: success, standard output, standard error.
    pub state: fn(&str, bool, &str, &str) -> Option<JobState>,
    /// The command that says why a job cannot run, and how that line begins.
    pub why: Option<(&'static [&'static str], &'static str)>,
    /// The command that ends a job.
    pub cancel: &'static str,
    /// How options begin that say how long a job may run; those of `-l` contain it.
    pub limits: &'static [&'static str],
    /// Words by which it says that a job is longer than it may be.
    pub too_long: &'static [&'static str],
}

/// How a job is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum JobState {
    /// In the queue, in the system's words.
    Waiting(String),
    /// At least a part of it runs.
    Running,
    /// It is in the queue, and will not run by itself.
    Stuck(String),
    /// It has ended, or was never there.
    Gone,
}

/// PartitionTimeLimit, QOSMaxWallDurationPerJobLimit, …; where `sbatch` enforces limits: Requested time limit is invalid.
const SLURM_TOO_LONG: [&str; 3] = ["TimeLimit", "MaxWallDuration", "time limit is invalid"];

/// All that are known.
pub(crate) static SYSTEMS: [System; 5] = [
    System {
        name: "slurm",
        submit: "sbatch",
        script_on_stdin: false,
        // One task an engine: Slurm says where, and counts its cores. Before version 23 it does not tell a job when that ends.
        template: "#!/bin/sh\n#SBATCH --job-name=ipengine\n#SBATCH --ntasks={n}\n#SBATCH --output={dir}/ipengine-%j.log\n#SBATCH --open-mode=append\n{time:#SBATCH --time={minutes}}\n: \"${SLURM_JOB_END_TIME:=$(date +%s -d \"$(squeue --noheader --format=%e --jobs=$SLURM_JOB_ID)\" 2>/dev/null)}\"\nexport SLURM_JOB_END_TIME\nexec srun --kill-on-bad-exit=0 {program} {args}\n",
        number: |text| {
            text.lines()
                .find_map(|l| l.strip_prefix("Submitted batch job "))
                .and_then(first_number)
        },
        query: |job| {
            (
                "squeue",
                ["--noheader", "--format=%T %r", "--jobs", job]
                    .map(str::to_owned)
                    .to_vec(),
            )
        },
        state: |_, ok, out, err| match out.lines().find(|l| !l.trim().is_empty()) {
            Some(line) => Some(match line.split_once(' ').unwrap_or((line, "")) {
                ("RUNNING" | "COMPLETING" | "STOPPED" | "SUSPENDED", _) => JobState::Running,
                (
                    "COMPLETED" | "FAILED" | "CANCELLED" | "TIMEOUT" | "NODE_FAIL"
                    | "OUT_OF_MEMORY" | "BOOT_FAIL" | "DEADLINE",
                    _,
                ) => JobState::Gone,
                (state, why) => {
                    let said = format!("{} ({why})", state.to_lowercase());
                    match SLURM_TOO_LONG.iter().any(|words| why.contains(words)) {
                        true => JobState::Stuck(said),
                        false => JobState::Waiting(said),
                    }
                }
            }),
            None if ok || err.contains("Invalid job id") => Some(JobState::Gone),
            None => None,
        },
        why: None,
        cancel: "scancel",
        limits: &["--time", "-t"],
        too_long: &SLURM_TOO_LONG,
    },
    System {
        name: "pbs",
        submit: "qsub",
        script_on_stdin: false,
        template: "#!/bin/sh\n#PBS -V\n#PBS -N ipengine\n#PBS -j oe\n#PBS -o {dir}/\n{array:#PBS -J 1-{n}}\n{time:#PBS -l walltime={seconds}}\ncd \"$PBS_O_WORKDIR\"\nexec {program} {args}\n",
        number: |text| {
            text.lines()
                .map(str::trim)
                .find(|l| l.starts_with(|c: char| c.is_ascii_digit()))
                .map(str::to_owned)
        },
        query: |job| ("qstat", vec![job.to_owned()]),
        state: |_, ok, out, err| match out
            .lines()
            .rev()
            .find(|l| l.starts_with(|c: char| c.is_ascii_digit()))
        {
            // Job id, Name, User, Time Use, S, Queue; an array that has begun is B.
            Some(line) => Some(match line.split_whitespace().rev().nth(1).unwrap_or("") {
                "R" | "B" | "E" | "S" => JobState::Running,
                "F" | "X" | "C" => JobState::Gone,
                state => JobState::Waiting(format!("state {state}")),
            }),
            None if ok || err.contains("Unknown Job") || err.contains("has finished") => {
                Some(JobState::Gone)
            }
            None => None,
        },
        why: None,
        cancel: "qdel",
        limits: &["walltime"],
        too_long: &[],
    },
    System {
        name: "sge",
        submit: "qsub",
        script_on_stdin: false,
        // It tells a job how long it may run only when asked, in seconds.
        template: "#!/bin/sh\n#$ -S /bin/sh\n#$ -V\n#$ -cwd\n#$ -N ipengine\n#$ -j y\n#$ -o {dir}/\n{array:#$ -t 1-{n}}\n{time:#$ -l h_rt={seconds}}\nlimit=$(qstat -j $JOB_ID 2>/dev/null | sed -n 's/^hard.resource_list:.*h_rt=\\([0-9]*\\).*/\\1/p')\nexec {program} {args} ${limit:+--time-limit=$limit}\n",
        // Your job 4 ("ipengine") …, Your job-array 5.1-4:1 ("ipengine") …
        number: |text| {
            text.lines()
                .find_map(|l| l.trim().strip_prefix("Your job"))
                .and_then(first_number)
        },
        query: |_| ("qstat", Vec::new()),
        // `qstat -j` knows no state: it is looked up in the list, whose columns are id, priority, name, user, state.
        state: |job, ok, out, _| {
            if !ok {
                return None;
            }
            let states: Vec<&str> = out
                .lines()
                .filter(|l| l.split_whitespace().next() == Some(job))
                .filter_map(|l| l.split_whitespace().nth(4))
                .collect();
            Some(
                match states
                    .iter()
                    .find(|s| s.contains(['r', 't']))
                    .or(states.first())
                {
                    Some(s) if s.contains(['r', 't', 'd']) => JobState::Running,
                    Some(s) if s.contains('E') => JobState::Stuck(format!("state {s}")),
                    Some(s) => JobState::Waiting(format!("state {s}")),
                    None => JobState::Gone,
                },
            )
        },
        why: Some((&["qstat", "-j"], "error reason")),
        cancel: "qdel",
        limits: &["h_rt"],
        too_long: &[],
    },
    System {
        name: "lsf",
        submit: "bsub",
        script_on_stdin: true,
        template: "#!/bin/sh\n#BSUB -J \"ipengine[1-{n}]\"\n#BSUB -oo {dir}/ipengine-%J-%I.log\n{time:#BSUB -W {minutes}}\nexec {program} {args}\n",
        number: |text| {
            text.split_once("Job <")
                .and_then(|(_, rest)| first_number(rest))
        },
        query: |job| {
            (
                "bjobs",
                ["-noheader", "-o", "stat", job].map(str::to_owned).to_vec(),
            )
        },
        state: |_, ok, out, err| {
            let states: Vec<&str> = out
                .lines()
                .map(str::trim)
                .filter(|l| !l.is_empty())
                .collect();
            if states.is_empty() {
                return (ok || err.contains("is not found")).then_some(JobState::Gone);
            }
            let waiting = states
                .iter()
                .find(|s| matches!(**s, "PEND" | "PSUSP" | "WAIT"));
            Some(
                if states
                    .iter()
                    .any(|s| matches!(*s, "RUN" | "USUSP" | "SSUSP" | "UNKWN" | "PROV"))
                {
                    JobState::Running
                } else if let Some(state) = waiting {
                    JobState::Waiting(state.to_lowercase())
                } else {
                    JobState::Gone
                },
            )
        },
        why: None,
        cancel: "bkill",
        limits: &["-W"],
        too_long: &["RUNLIMIT"],
    },
    System {
        name: "htcondor",
        submit: "condor_submit",
        script_on_stdin: false,
        // Arguments in Condor's own quoting: the whole in double quotes, each in single ones.
        template: "universe = vanilla\nexecutable = {program:raw}\narguments = {args:condor}\nshould_transfer_files = YES\nwhen_to_transfer_output = ON_EXIT\ntransfer_executable = True\ntransfer_input_files = {connection:raw}\noutput = {dir:raw}/ipengine-$(Cluster)-$(Process).log\nerror = {dir:raw}/ipengine-$(Cluster)-$(Process).log\nlog = {dir:raw}/ipengine.condor\nqueue {n}\n",
        number: |text| {
            text.split_once("submitted to cluster ")
                .and_then(|(_, rest)| first_number(rest))
        },
        query: |job| {
            (
                "condor_q",
                [job, "-format", "%d\n", "JobStatus"]
                    .map(str::to_owned)
                    .to_vec(),
            )
        },
        state: |_, ok, out, _| {
            if !ok {
                return None;
            }
            let states: Vec<&str> = out
                .lines()
                .map(str::trim)
                .filter(|l| l.len() == 1)
                .collect();
            Some(if states.iter().any(|s| matches!(*s, "2" | "6" | "7")) {
                JobState::Running
            } else if states.contains(&"5") {
                JobState::Waiting("held".to_owned())
            } else if states.contains(&"1") {
                JobState::Waiting("idle".to_owned())
            } else {
                JobState::Gone
            })
        },
        why: None,
        cancel: "condor_rm",
        limits: &[],
        too_long: &[],
    },
];

/// How a line begins that is there only if the job must be of some length.
const TIME: &str = "{time:";

/// Jobs are longer than the longest of their tasks by this, in which their engines start.
const STARTS: Duration = Duration::from_secs(300);

fn first_number(text: &str) -> Option<String> {
    let start = text.find(|c: char| c.is_ascii_digit())?;
    Some(
        text[start..]
            .chars()
            .take_while(char::is_ascii_digit)
            .collect(),
    )
}

impl System {
    /// The system of that name.
    pub(crate) fn find(name: &str) -> Option<&'static Self> {
        SYSTEMS
            .iter()
            .find(|system| system.name.eq_ignore_ascii_case(name))
    }

    /// Whether a job can be as long as tasks ask: nobody has said how long it is.
    pub(super) fn takes_time(&self, template: &str, options: &[String]) -> bool {
        let says = |option: &String| {
            self.limits
                .iter()
                .any(|limit| match limit.starts_with('-') {
                    true => option.starts_with(limit),
                    false => option.contains(limit),
                })
        };
        template.contains(TIME) && !options.iter().any(says)
    }

    pub(super) fn fill(&self, template: &str, plan: &Plan) -> String {
        let condor = self.name == "htcondor";
        // Condor brings the connection file along, into the job's own directory.
        let file = if condor {
            plan.connection_file
                .file_name()
                .unwrap_or_default()
                .to_string_lossy()
        } else {
            plan.connection_file.to_string_lossy()
        };
        let mut args = vec!["--file".to_owned(), file.into_owned()];
        args.extend(plan.engine_args.iter().cloned());
        let program = plan.program.to_string_lossy();
        let dir = plan.dir.to_string_lossy();
        let quoted: Vec<String> = args.iter().map(|a| quote(a)).collect();
        let condor_args: Vec<String> = args
            .iter()
            .map(|a| format!("'{}'", a.replace('\'', "''").replace('"', "\"\"")))
            .collect();
        let mut out = String::new();
        for line in template.lines() {
            let only = |head| line.strip_prefix(head)?.strip_suffix('}');
            let line = match (only("{array:"), only(TIME)) {
                (Some(_), _) if plan.engines == 1 => continue,
                (_, Some(_)) if plan.time.is_zero() => continue,
                (Some(inner), _) | (_, Some(inner)) => inner,
                (None, None) => line,
            };
            let seconds = (plan.time + STARTS).as_secs();
            let line = line
                .replace("{minutes}", &seconds.div_ceil(60).to_string())
                .replace("{seconds}", &seconds.to_string())
                .replace("{n}", &plan.engines.to_string())
                .replace("{engines}", &plan.engines.to_string())
                .replace("{program}", &quote(&program))
                .replace("{program:raw}", &program)
                .replace("{args}", &quoted.join(" "))
                .replace("{args:condor}", &format!("\"{}\"", condor_args.join(" ")))
                .replace("{connection:raw}", &plan.connection_file.to_string_lossy())
                .replace("{dir:raw}", &dir)
                .replace("{dir}", &dir);
            out.push_str(&line);
            out.push('\n');
        }
        out
    }
}
