//! What process groups use, by reading `/proc`.

use rustix::process::Pid;

/// One process as `/proc/PID/stat` tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ProcessStat {
    /// Its process group.
    pub group: i32,
    /// Whether it has ended and waits for its parent.
    pub zombie: bool,
    /// Its resident pages.
    pub resident: u64,
    /// Its parent.
    pub parent: i32,
    /// When it was started, in clock ticks since the boot.
    pub started: u64,
}

/// Reads `/proc/PID/stat`.
pub(crate) fn stat(pid: i32) -> Option<ProcessStat> {
    parse(&std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
}

fn parse(text: &str) -> Option<ProcessStat> {
    // The name in parentheses may hold blanks and parentheses: fields count from the last one.
    let rest = &text[text.rfind(')')? + 1..];
    let fields: Vec<&str> = rest.split_ascii_whitespace().collect();
    Some(ProcessStat {
        group: fields.get(2)?.parse().ok()?,
        zombie: matches!(*fields.first()?, "Z" | "X"),
        parent: fields.get(1)?.parse().ok()?,
        started: fields.get(19)?.parse().ok()?,
        resident: fields.get(21)?.parse::<i64>().ok()?.try_into().unwrap_or(0),
    })
}

/// All process ids of the machine.
pub(crate) fn pids() -> impl Iterator<Item = i32> {
    std::fs::read_dir("/proc")
        .into_iter()
        .flatten()
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
}

/// Bytes that the processes of a group have in memory.
pub(super) fn of_group(group: Pid) -> u64 {
    let group = group.as_raw_nonzero().get();
    let pages: u64 = pids()
        .filter_map(stat)
        .filter(|stat| stat.group == group && !stat.zombie)
        .map(|stat| stat.resident)
        .sum();
    pages * rustix::param::page_size() as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_stat_lines_with_strange_names() {
        let line = "42 (a) b (c) S 1 77 77 0 -1 4194560 1 0 0 0 0 0 0 0 20 0 1 0 100 1000000 250 184467 1 1 0 0 0";
        assert_eq!(
            parse(line),
            Some(ProcessStat {
                group: 77,
                zombie: false,
                resident: 250,
                parent: 1,
                started: 100,
            })
        );
        assert_eq!(parse("nonsense"), None);
    }

    #[test]
    fn our_own_group_uses_memory() {
        assert!(of_group(rustix::process::getpgrp()) > 100_000);
    }
}
