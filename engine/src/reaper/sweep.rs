//! Finding and killing all that the jobs of one engine process started.

use std::{
    ops::RangeInclusive,
    time::{Duration, Instant},
};

use rustix::process::{
    Pid, Resource, Rlimit, Signal, getrlimit, kill_process, kill_process_group, prlimit, setrlimit,
    test_kill_process_group,
};

use crate::job::{pids, stat};

/// The variable that every job and all its descendants have: the ids of the engine processes around them, outermost
/// first, separated by colons.
pub(crate) const MARK: &str = "IPBROKER_ENGINE";

/// The value of [`MARK`] for the jobs of the engine process `id`.
pub(crate) fn mark(id: &str) -> String {
    match std::env::var(MARK) {
        Ok(outer) if !outer.is_empty() => format!("{outer}:{id}"),
        _ => id.to_owned(),
    }
}

/// The variable that names a job's task, or member of an array.
pub(crate) const TASK: &str = "IPBROKER_TASK";

/// The number of the job `count` of the engine process `id`; 0: of its interpreters and kernels.
///
/// An environment can be cleared, and a process can leave its group, its session and its parent. What it inherits even
/// then is its limits, and one of them Linux keeps without heeding it: `ulimit -m`, the memory that it may have. The soft
/// one of a job is this number of KiB: more than any machine has, for those who look.
pub(crate) fn number(id: &str, count: u32) -> u64 {
    let engine = id
        .get(..7)
        .and_then(|digits| u64::from_str_radix(digits, 16).ok());
    1 << 52 | engine.unwrap_or_default() << 24 | u64::from(count)
}

/// The highest [`number`] of a job.
pub(crate) const JOBS: u32 = (1 << 24) - 1;

/// Whether this process may give its jobs a [`number`]: somebody has limited the memory of others.
pub(crate) fn numbered() -> bool {
    getrlimit(Resource::Rss).maximum.is_none()
}

/// Gives a process its [`number`]; `None` takes it from this one.
pub(crate) fn set_number(of: Option<(Pid, u64)>) {
    let Rlimit { maximum, .. } = getrlimit(Resource::Rss);
    let limit = |current| Rlimit { current, maximum };
    let _ = match of {
        Some((pid, number)) => {
            prlimit(Some(pid), Resource::Rss, limit(Some(number << 10))).map(|_| ())
        }
        None => setrlimit(Resource::Rss, limit(maximum)),
    };
}

/// The [`number`] of a process.
fn number_of(pid: i32) -> Option<u64> {
    let limits = std::fs::read_to_string(format!("/proc/{pid}/limits")).ok()?;
    let line = limits
        .lines()
        .find_map(|line| line.strip_prefix("Max resident set"))?;
    let soft: u64 = line.split_ascii_whitespace().next()?.parse().ok()?;
    Some(soft >> 10)
}

/// Ends what a stopped job left in groups and sessions of its own, as [`sweep`] does.
pub(crate) fn end_strays(task: &str, number: u64, grace: Duration) {
    let strays = || marked(TASK, |value| value == task.as_bytes(), number..=number);
    end(&[], strays, grace);
}

/// The processes with such a mark or number, whatever group or session they have moved to. Only a process that cleared its
/// environment and set this limit, or belongs to somebody else, escapes.
fn marked(name: &str, is_it: impl Fn(&[u8]) -> bool, numbers: RangeInclusive<u64>) -> Vec<Pid> {
    let own = std::process::id();
    pids()
        .filter(|pid| u32::try_from(*pid) != Ok(own))
        .filter(|pid| {
            if number_of(*pid).is_some_and(|number| numbers.contains(&number)) {
                return true;
            }
            let Ok(environment) = std::fs::read(format!("/proc/{pid}/environ")) else {
                return false;
            };
            environment.split(|byte| *byte == 0).any(|entry| {
                entry
                    .strip_prefix(name.as_bytes())
                    .and_then(|rest| rest.strip_prefix(b"="))
                    .is_some_and(&is_it)
            })
        })
        .filter(|pid| stat(*pid).is_some_and(|stat| !stat.zombie))
        .filter_map(Pid::from_raw)
        .collect()
}

/// Ends these groups and all that carries the mark of an engine process: TERM, and KILL for what is left after `grace`.
/// Returns when nothing is left, at the latest some seconds later (a process in uninterruptible sleep dies when it can).
pub(crate) fn sweep(groups: &[i32], id: &str, grace: Duration) {
    let mine = |ids: &[u8]| {
        ids.split(|byte| *byte == b':')
            .any(|one| one == id.as_bytes())
    };
    let numbers = number(id, 0)..=number(id, JOBS);
    end(groups, || marked(MARK, mine, numbers.clone()), grace);
}

fn end(groups: &[i32], marked: impl Fn() -> Vec<Pid>, grace: Duration) {
    let groups: Vec<Pid> = groups
        .iter()
        .filter_map(|group| Pid::from_raw(*group))
        .collect();
    let start = Instant::now();
    let mut signal = Some(Signal::TERM);
    loop {
        let living: Vec<Pid> = groups
            .iter()
            .copied()
            .filter(|group| test_kill_process_group(*group).is_ok() && alive(*group))
            .collect();
        let marked = marked();
        if living.is_empty() && marked.is_empty()
            || start.elapsed() > grace + Duration::from_secs(5)
        {
            return;
        }
        if let Some(signal) = signal {
            for group in living {
                let _ = kill_process_group(group, signal);
                let _ = kill_process_group(group, Signal::CONT);
            }
            for pid in marked {
                let _ = kill_process(pid, signal);
                let _ = kill_process(pid, Signal::CONT);
            }
        }
        signal = (start.elapsed() >= grace).then_some(Signal::KILL);
        std::thread::sleep(Duration::from_millis(10).max(start.elapsed() / 10));
    }
}

/// Whether a group has members that are not only waiting for their parent.
fn alive(group: Pid) -> bool {
    let group = group.as_raw_nonzero().get();
    pids()
        .filter_map(stat)
        .any(|stat| stat.group == group && !stat.zombie)
}
