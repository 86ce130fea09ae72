//! What is said to a host's shell, and what its answers mean.

use ipbroker_protocol::ssh::quote;
use serde::{Deserialize, Serialize};

use crate::launch::program::{Program, Programs, version};

/// What a host is like.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Probe {
    pub(super) system: String,
    pub(super) machine: String,
    pub(super) glibc: Option<(u32, u32)>,
    pub(super) cores: u32,
    /// The client's address as the host sees it.
    pub(super) client: Option<String>,
    /// Where programs are kept.
    pub(super) cache: String,
    /// The names of those programs of ours that are there.
    pub(super) cached: Vec<String>,
    /// The process that serves this connection; while it lives, its forwarded ports are taken.
    pub(super) sshd: Option<u32>,
}

/// Runs a script in a POSIX shell, whatever the user's own shell is. No newlines, no exclamation marks: not every shell
/// takes them in quotes.
fn sh(script: &str) -> String {
    debug_assert!(!script.contains(['\n', '!']));
    format!("/bin/sh -c {}", quote(script))
}

pub(super) fn probe(programs: &Programs) -> String {
    let cached: String = programs
        .iter()
        .map(|program| {
            format!(
                "f=$c/{name}; if [ -x \"$f\" ] && [ $(wc -c <\"$f\") -eq {size} ]; then echo ipb:cached={name}; fi; ",
                name = program.cached_name(),
                size = program.size,
            )
        })
        .collect();
    sh(&format!(
        "c=${{XDG_CACHE_HOME:-$HOME/.cache}}/ipbroker; p=$$; \
         until grep -qs ^sshd /proc/$p/comm || [ $p -le 1 ]; do p=$(cut -d\" \" -f4 /proc/$p/stat); done; \
         echo; echo ipb:system=$(uname -s); echo ipb:machine=$(uname -m); \
         echo ipb:glibc=$(getconf GNU_LIBC_VERSION 2>/dev/null); \
         echo ipb:cores=$(nproc 2>/dev/null || getconf _NPROCESSORS_ONLN); \
         echo ipb:client=$SSH_CONNECTION; echo \"ipb:cache=$c\"; echo ipb:sshd=$p; \
         {cached}echo ipb:end="
    ))
}

pub(super) fn parse_probe(output: &str) -> Option<Probe> {
    let mut probe = Probe::default();
    let mut complete = false;
    // A login script may have its own say before.
    for (key, value) in output
        .lines()
        .filter_map(|l| l.strip_prefix("ipb:")?.split_once('='))
    {
        let value = value.trim();
        match key {
            "system" => value.clone_into(&mut probe.system),
            "machine" => value.clone_into(&mut probe.machine),
            "glibc" => probe.glibc = value.strip_prefix("glibc ").and_then(version),
            "cores" => probe.cores = value.parse().unwrap_or(1),
            "client" => probe.client = value.split_whitespace().next().map(str::to_owned),
            "cache" => value.clone_into(&mut probe.cache),
            "cached" => probe.cached.push(value.to_owned()),
            "sshd" => probe.sshd = value.parse().ok().filter(|&p| p > 1),
            "end" => complete = true,
            _ => {}
        }
    }
    (complete && !probe.system.is_empty()).then_some(probe)
}

/// Takes the program from standard input into the cache, whole or not at all. It reads to the end even when the disk is
/// full, else the sender would wait for it for ever.
pub(super) fn store(program: &Program, cache: &str) -> String {
    sh(&format!(
        "umask 077; c={cache}; t=$c/.new-$$; \
         mkdir -p \"$c\" && cat >\"$t\" && [ $(wc -c <\"$t\") -eq {size} ] && chmod 700 \"$t\" && mv -f \"$t\" \"$c\"/{name}; r=$?; \
         if [ $r -ne 0 ]; then df -Pk \"$c\" 2>/dev/null | tail -n 1 >&2; rm -f \"$t\"; cat >/dev/null; fi; exit $r",
        cache = quote(cache),
        size = program.size,
        name = program.cached_name(),
    ))
}

/// Starts the engines in place of the shell, after saying which process they are.
///
/// Their standard error is a file without a name, which a `tail` passes on: a pipe would end with the connection, and what
/// they say later would be lost. Where there is no such `tail` it is the connection's own.
pub(super) fn start(program: &Program, cache: &str, args: &[String]) -> String {
    let args: Vec<String> = args.iter().map(|a| quote(a)).collect();
    sh(&format!(
        "echo; echo ipb:pid=$$ $(cut -d\" \" -f22 /proc/$$/stat); p={path}; \
         tail --pid=1 -s 1 -n 0 /dev/null >/dev/null 2>&1 && e=$(mktemp 2>/dev/null) || exec \"$p\" {args}; \
         exec 4<\"$e\" 5>>\"$e\"; rm -f \"$e\"; echo {STDERR_MARK} >&2; \
         (/bin/sh -c \"echo ipb:tail=\\$\\$; exec {tail} -n +1 >&2 2>/dev/null\" <&4 4<&- 5>&- &); \
         exec 4<&-; exec \"$p\" {args} 2>&5 5>&-",
        path = quote(&format!("{cache}/{}", program.cached_name())),
        args = args.join(" "),
        tail = tail("$$"),
    ))
}

/// Follows standard input until the process ends.
fn tail(pid: &str) -> String {
    format!("tail -f -s 0.3 --pid={pid}")
}

/// The line of standard error before the engines' own.
pub(super) const STDERR_MARK: &str = "ipb:stderr";

/// The engines' process: its id, and when it began, because ids are used again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Process {
    pub(super) pid: u32,
    pub(super) began: u64,
}

pub(super) fn parse_process(output: &str) -> Option<Process> {
    output.lines().find_map(|line| {
        let mut words = line.strip_prefix("ipb:pid=")?.split_whitespace();
        Some(Process {
            pid: words.next()?.parse().ok()?,
            began: words.next()?.parse().ok()?,
        })
    })
}

pub(super) fn parse_tail(output: &str) -> Option<u32> {
    output
        .lines()
        .find_map(|line| line.strip_prefix("ipb:tail=")?.parse().ok())
}

/// Succeeds while the process is there.
fn alive(process: Process) -> String {
    format!(
        "[ \"$(cut -d\" \" -f22 /proc/{}/stat 2>/dev/null)\" = {} ]",
        process.pid, process.began
    )
}

/// Succeeds while the process is there, and prints how long its file of errors is, if it has one.
pub(super) fn is_alive(process: Process) -> String {
    let errors = errors(process);
    sh(&format!(
        "{} || exit 1; if [ -f {errors} ]; then wc -c <{errors}; fi",
        alive(process)
    ))
}

/// A process's standard error, which is a file where [`start`] has seen to it.
fn errors(process: Process) -> String {
    format!("/proc/{}/fd/2", process.pid)
}

/// Lasts as long as the process, or as its reader; passes on what it has written to its file of errors after `said` bytes.
pub(super) fn watch(process: Process, said: Option<u64>) -> String {
    let follow = said.map_or_else(String::new, |said| {
        format!(
            "if [ -f {errors} ]; then echo ipb:tail=$$; exec {} -c +{} <{errors} >&2 2>/dev/null; fi; ",
            tail(&process.pid.to_string()),
            said + 1,
            errors = errors(process),
        )
    });
    sh(&format!(
        "{follow}while {}; do echo; sleep 1; done",
        alive(process)
    ))
}

/// Empties the file of errors, so that it does not grow for ever.
pub(super) fn forget_errors(process: Process) -> String {
    sh(&format!("{} && : >{}", alive(process), errors(process)))
}

/// Asks the process to end.
pub(super) fn terminate(process: Process) -> String {
    sh(&format!("{} && kill -TERM {}", alive(process), process.pid))
}

/// Kills the process and what shares its session; its own reaper ends the jobs.
pub(super) fn kill(process: Process) -> String {
    sh(&format!(
        "{} && kill -KILL -{} {}",
        alive(process),
        process.pid,
        process.pid
    ))
}

/// Ends what a connection that is lost for us has left there: its server, which may still hold its ports, and the `tail`
/// that nobody reads.
pub(super) fn drop_connection(sshd: Option<u32>, tail: Option<u32>) -> String {
    let kill = |pid: Option<u32>, name: &str| {
        pid.map_or_else(String::new, |pid| {
            format!("if grep -qs ^{name} /proc/{pid}/comm; then kill {pid}; fi; ")
        })
    };
    sh(&format!("{}{}:", kill(sshd, "sshd"), kill(tail, "tail")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_found_among_noise() {
        let text = "Welcome!\nipb:nothing\nipb:system=Linux\nipb:machine=x86_64\nipb:glibc=glibc 2.36\nipb:cores=8\nipb:client=10.0.0.1 5 10.0.0.2 22\nipb:cache=/home/a b/.cache/ipbroker\nipb:sshd=77\nipb:cached=ipengine-1\nipb:cached=ipengine-2\nipb:end=\n";
        let probe = parse_probe(text).unwrap();
        assert_eq!(
            (probe.system.as_str(), probe.glibc, probe.cores),
            ("Linux", Some((2, 36)), 8)
        );
        assert_eq!(
            (
                probe.client.as_deref(),
                probe.cache.as_str(),
                probe.cached.join(" ").as_str(),
                probe.sshd
            ),
            (
                Some("10.0.0.1"),
                "/home/a b/.cache/ipbroker",
                "ipengine-1 ipengine-2",
                Some(77)
            )
        );
        assert_eq!(parse_probe("ipb:system=Linux\n"), None);
        assert_eq!(parse_probe("This account is disabled.\n"), None);
        assert_eq!(
            parse_process("x\nipb:pid=12 3456\n"),
            Some(Process {
                pid: 12,
                began: 3456
            })
        );
    }
}
