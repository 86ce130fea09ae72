//! Finding and killing all that the jobs of one engine process started.

use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process, kill_process_group, test_kill_process_group};

use crate::job::{pids, stat};

/// The variable that every job and all its descendants have: the ids of the engine processes around them, outermost
/// first, separated by colons.
pub(crate) const MARK: &str = "IPBROKER_ENGINE";

/// The value of [`MARK`] for the jobs of the engine process `id`.
#[must_use]
pub(crate) fn mark(id: &str) -> String {
    match std::env::var(MARK) {
        Ok(outer) if !outer.is_empty() => format!("{outer}:{id}"),
        _ => id.to_owned(),
    }
}

/// The variable that names a job's task, or member of an array.
pub(crate) const TASK: &str = "IPBROKER_TASK";

/// Kills what a stopped job left in groups and sessions of its own.
pub(crate) fn kill_strays(task: &str) {
    for pid in marked(TASK, |value| value == task.as_bytes()) {
        let _ = kill_process(pid, Signal::KILL);
    }
}

/// The processes with such a mark, whatever group or session they have moved to. Only a process that cleared its
/// environment or belongs to somebody else escapes.
fn marked(name: &str, is_it: impl Fn(&[u8]) -> bool) -> Vec<Pid> {
    let own = std::process::id();
    pids()
        .filter(|pid| u32::try_from(*pid) != Ok(own))
        .filter(|pid| {
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

/// Ends these groups and all that carries the mark: TERM, and KILL for what is left after `grace`. Returns when
/// nothing is left, at the latest some seconds later (a process in uninterruptible sleep dies when it can).
pub(crate) fn sweep(groups: &[i32], id: &str, grace: Duration) {
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
        let marked = marked(MARK, |ids| {
            ids.split(|byte| *byte == b':')
                .any(|one| one == id.as_bytes())
        });
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
