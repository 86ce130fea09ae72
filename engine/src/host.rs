//! What this host is called, and what it has.

use std::net::{IpAddr, UdpSocket};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::UNIX_EPOCH;

use ipbroker_protocol::resources::{GPUS, MEMORY, Pool, Pools};
use ipbroker_protocol::{message::HostLoad, size, socket::host_name};

use crate::job;

/// All names of this host: full, short, given aliases, addresses. `controller` is the address it connects to: on
/// loopback this host is `localhost` too, unless it has aliases: then it was started from elsewhere, through a tunnel.
pub(crate) fn names(aliases: &[String], controller: &str) -> Vec<String> {
    let node = host_name();
    let mut names = vec![node.clone()];
    names.extend(node.split('.').next().map(str::to_owned));
    names.extend(names_of(&read("/etc/hosts"), &node));
    names.extend(aliases.iter().cloned());
    let loopback = controller == "localhost"
        || controller
            .parse::<IpAddr>()
            .is_ok_and(|ip| ip.is_loopback());
    if loopback && aliases.is_empty() {
        names.extend(["localhost".to_owned(), "127.0.0.1".to_owned()]);
    }
    names.extend(
        route_to(controller)
            .into_iter()
            .filter(|ip| !ip.is_loopback())
            .map(|ip| ip.to_string()),
    );
    names.extend(ipv4(&read("/proc/net/fib_trie")));
    names.extend(ipv6(&read("/proc/net/if_inet6")));
    let mut seen = std::collections::HashSet::new();
    names.retain(|name| !name.is_empty() && seen.insert(name.clone()));
    names
}

/// A file of the system; nothing where there is none.
fn read(path: impl AsRef<Path>) -> String {
    std::fs::read_to_string(path).unwrap_or_default()
}

/// How many cores this process may use.
pub(crate) fn cores() -> u32 {
    std::thread::available_parallelism()
        .map_or(1, |cores| u32::try_from(cores.get()).unwrap_or(u32::MAX))
}

/// Which machine this is: engines that say the same share its cpus, memory and devices. The kernel says which boot of
/// which machine it runs; containers and name spaces with another name for themselves are machines of their own.
pub(crate) fn machine() -> String {
    let (boot, id) = (
        read("/proc/sys/kernel/random/boot_id"),
        read("/etc/machine-id"),
    );
    let parts = [&*host_name(), boot.trim(), id.trim()];
    let mut parts: Vec<&str> = parts.into_iter().filter(|part| !part.is_empty()).collect();
    // The boot is enough, where it can be read.
    parts.truncate(2);
    parts.join("/")
}

/// Numbers of the cores that this process may use.
pub(crate) fn cpuset() -> Vec<u32> {
    let Ok(set) = rustix::thread::sched_getaffinity(None) else {
        return (0..cores()).collect();
    };
    let mut cores: Vec<u32> = (0..rustix::thread::CpuSet::MAX_CPU)
        .filter(|core| set.is_set(*core))
        .filter_map(|core| u32::try_from(core).ok())
        .collect();
    // A control group may allow less time than there are cores.
    cores.truncate(self::cores() as usize);
    cores
}

/// What this host has beside its cores, as far as it can be seen, and what the user adds.
pub(crate) fn resources(given: &Pools) -> Pools {
    let mut pools = Pools::new();
    if let Some(bytes) = memory() {
        pools.insert(MEMORY.to_owned(), Pool::Sum(bytes as f64));
    }
    let visible = ["CUDA_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES"]
        .iter()
        .find_map(|name| std::env::var(name).ok());
    let gpus = match visible {
        Some(list) => devices(&list),
        None => nvidia(),
    };
    if !gpus.is_empty() {
        pools.insert(GPUS.to_owned(), Pool::Names(gpus));
    }
    pools.extend(given.clone());
    pools
}

/// The entries of a variable that lists GPUs: what follows an entry that is none is not seen.
fn devices(list: &str) -> Vec<String> {
    let mut seen = std::collections::HashSet::new();
    list.split(',')
        .map(str::trim)
        .take_while(|entry| !entry.is_empty() && *entry != "-1" && *entry != "NoDevFiles")
        .filter(|entry| *entry != "none" && seen.insert((*entry).to_owned()))
        .map(str::to_owned)
        .collect()
}

/// The GPUs that the driver of NVIDIA knows, by number.
fn nvidia() -> Vec<String> {
    let count = std::fs::read_dir("/proc/driver/nvidia/gpus").map_or(0, Iterator::count);
    (0..count).map(|index| index.to_string()).collect()
}

/// Bytes of memory that jobs here may use: what the machine has, or what its control group leaves.
fn memory() -> Option<u64> {
    let meminfo = std::fs::read_to_string("/proc/meminfo").ok()?;
    let all = size_in(&meminfo, "MemTotal:")?;
    let group = read("/proc/self/cgroup");
    let limit = group
        .lines()
        .find_map(|line| line.strip_prefix("0::"))
        .and_then(|path| limit_of(path.trim()));
    Some(limit.map_or(all, |limit| limit.min(all)))
}

/// Measures how loaded the host is.
#[derive(Debug, Default)]
pub(crate) struct Meter {
    /// Ticks of all cores until the last reading: busy ones, and all.
    ticks: (u64, u64),
}

impl Meter {
    /// The load now, that of the cores since the last reading (at first, since the host started).
    pub(crate) fn read(&mut self, scratch: &Path) -> Option<HostLoad> {
        let now = ticks(&std::fs::read_to_string("/proc/stat").ok()?)?;
        let (busy, all) = (
            now.0.saturating_sub(self.ticks.0),
            now.1 - self.ticks.1.min(now.1),
        );
        self.ticks = now;
        let meminfo = std::fs::read_to_string("/proc/meminfo").ok()?;
        let (total, free) = (
            size_in(&meminfo, "MemTotal:")?,
            size_in(&meminfo, "MemAvailable:")?,
        );
        let disk = rustix::fs::statvfs(scratch).ok();
        let disk = disk.map(|of| {
            (
                (of.f_blocks - of.f_bfree) * of.f_frsize,
                of.f_blocks * of.f_frsize,
            )
        });
        Some(HostLoad {
            cpu: if all == 0 {
                0.0
            } else {
                busy as f64 / all as f64
            },
            memory: (total.saturating_sub(free), total),
            disk: disk.unwrap_or_default(),
        })
    }
}

/// Busy ticks of all cores, and all ticks: the first line of /proc/stat. Those of guests are in the user's already.
fn ticks(stat: &str) -> Option<(u64, u64)> {
    let line = stat.lines().next()?.strip_prefix("cpu ")?;
    let ticks: Vec<u64> = line
        .split_whitespace()
        .take(8)
        .map_while(|word| word.parse().ok())
        .collect();
    let idle = ticks.get(3)? + ticks.get(4)?;
    let all = ticks.iter().sum::<u64>();
    Some((all - idle, all))
}

/// A line of /proc/meminfo.
fn size_in(meminfo: &str, name: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix(name))?;
    size::parse(line)
}

/// The least that a control group or one above it allows.
fn limit_of(path: &str) -> Option<u64> {
    let mut least = None;
    let mut at = std::path::PathBuf::from(format!("/sys/fs/cgroup{path}"));
    while at.starts_with("/sys/fs/cgroup") {
        let text = read(at.join("memory.max"));
        if let Ok(limit) = text.trim().parse::<u64>() {
            least = Some(least.map_or(limit, |least: u64| least.min(limit)));
        }
        if !at.pop() {
            break;
        }
    }
    least
}

/// The address from which this host speaks to another; nothing is sent.
fn route_to(controller: &str) -> Option<IpAddr> {
    let socket = UdpSocket::bind("0.0.0.0:0").ok()?;
    socket.connect((controller, 9)).ok()?;
    Some(socket.local_addr().ok()?.ip())
}

/// Names that a hosts file has on the lines of this one.
fn names_of(hosts: &str, node: &str) -> Vec<String> {
    hosts
        .lines()
        .map(|line| {
            line.split('#')
                .next()
                .unwrap_or_default()
                .split_ascii_whitespace()
                .skip(1)
                .collect::<Vec<_>>()
        })
        .filter(|names| names.contains(&node))
        .flatten()
        .filter(|name| !name.starts_with("localhost") && !name.starts_with("ip6-"))
        .map(str::to_owned)
        .collect()
}

/// Local addresses in `/proc/net/fib_trie`: the line before each `/32 host LOCAL`.
fn ipv4(trie: &str) -> Vec<String> {
    let lines: Vec<&str> = trie.lines().map(str::trim).collect();
    lines
        .windows(2)
        .filter(|pair| pair[1] == "/32 host LOCAL")
        .filter_map(|pair| pair[0].strip_prefix("|-- "))
        .filter(|address| !address.starts_with("127."))
        .map(str::to_owned)
        .collect()
}

/// Global addresses in `/proc/net/if_inet6`.
fn ipv6(table: &str) -> Vec<String> {
    table
        .lines()
        .filter_map(|line| {
            let fields: Vec<&str> = line.split_ascii_whitespace().collect();
            let (address, scope) = (
                u128::from_str_radix(fields.first()?, 16).ok()?,
                *fields.get(3)?,
            );
            (scope == "00").then(|| std::net::Ipv6Addr::from(address).to_string())
        })
        .collect()
}

/// The seconds that are left of the allocation of Slurm or PBS that this process is in, if that says it.
#[must_use]
pub fn allocated() -> Option<f64> {
    let number = |name| std::env::var(name).ok()?.parse::<f64>().ok();
    let now = || UNIX_EPOCH.elapsed().ok();
    let slurm = || Some(number("SLURM_JOB_END_TIME")? - now()?.as_secs_f64());
    let pbs = || Some(number("PBS_WALLTIME")? - age("PBS_JOBID").unwrap_or(0.0));
    let left = slurm().or_else(left_in_slurm).or_else(pbs)?;
    (left < 1e9).then_some(left.max(0.0))
}

/// The same of a Slurm that is too old to tell the job itself.
fn left_in_slurm() -> Option<f64> {
    let job = std::env::var("SLURM_JOB_ID").ok()?;
    // It has this long: a controller of Slurm that is away is waited for.
    let asked = Command::new("timeout")
        .args(["5", "squeue", "--noheader", "--format=%L", "--jobs", &job])
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .output();
    slurm_time(String::from_utf8(asked.ok()?.stdout).ok()?.trim())
}

/// Seconds of `1-02:03:04`, `2:03:04` or `3:04`; none of `UNLIMITED`.
fn slurm_time(text: &str) -> Option<f64> {
    let (days, time) = text.split_once('-').unwrap_or(("0", text));
    let mut parts = time.split(':').map(|part| part.parse::<f64>().ok());
    let seconds = parts.try_fold(0.0, |sum, part| Some(60.0 * sum + part?))?;
    Some(86_400.0 * days.parse::<f64>().ok()? + seconds)
}

/// For how many seconds a batch job has run here: as long as the oldest of our ancestors that has its id in this variable.
fn age(variable: &str) -> Option<f64> {
    let id = format!("{variable}={}", std::env::var(variable).ok()?);
    let is_of_job = |pid: i32| {
        let environment = std::fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
        let mut entries = environment.split(|byte| *byte == 0);
        entries.any(|entry| entry == id.as_bytes())
    };
    let mut oldest = job::stat(std::process::id().cast_signed())?;
    while is_of_job(oldest.parent)
        && let Some(parent) = job::stat(oldest.parent)
    {
        oldest = parent;
    }
    let uptime = std::fs::read_to_string("/proc/uptime").ok()?;
    let uptime: f64 = uptime.split(' ').next()?.parse().ok()?;
    Some(uptime - oldest.started as f64 / rustix::param::clock_ticks_per_second() as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_and_names_are_found() {
        let trie = "Main:\n  +-- 0.0.0.0/0 3 0 5\n     |-- 10.1.2.3\n        /32 host LOCAL\n     |-- 127.0.0.1\n        /32 host LOCAL\n     |-- 10.1.2.255\n        /32 link BROADCAST\n";
        assert_eq!(ipv4(trie), ["10.1.2.3"]);
        let table = "fe800000000000000000000000000001 02 40 20 80 eth0\n20010db8000000000000000000000007 02 40 00 80 eth0\n";
        assert_eq!(ipv6(table), ["2001:db8::7"]);
        let hosts = "127.0.0.1 localhost\n127.0.1.1 box.example.org box # me\n10.0.0.9 other\n";
        assert_eq!(names_of(hosts, "box"), ["box.example.org", "box"]);
    }

    #[test]
    fn devices_and_memory_are_found() {
        assert_eq!(devices("0, 2"), ["0", "2"]);
        assert_eq!(devices("GPU-8a,1,-1,3"), ["GPU-8a", "1"]);
        assert_eq!(devices("1,1"), ["1"]);
        assert!(devices("").is_empty() && devices("NoDevFiles").is_empty());
        assert_eq!(
            size_in("MemTotal:       24602156 kB\nMemFree: 1 kB\n", "MemTotal:"),
            Some(24_602_156 << 10)
        );
        // User, nice, system, idle, waiting, interrupts, stolen, and a guest that is in the user's.
        assert_eq!(
            ticks("cpu  5 1 2 80 8 1 1 2 4 0\ncpu0 1 1\n"),
            Some((12, 100))
        );
        let given = Pools::from([("lic".to_owned(), Pool::Sum(2.0))]);
        let pools = resources(&given);
        assert!(matches!(pools[MEMORY], Pool::Sum(bytes) if bytes > 1e6));
        assert_eq!(pools["lic"], Pool::Sum(2.0));
        assert_eq!(cpuset().len(), cores() as usize);
        assert!(machine().starts_with(&host_name()) && machine() == super::machine());
    }

    #[test]
    fn times_of_slurm_are_read() {
        assert_eq!(slurm_time("3:04"), Some(184.0));
        assert_eq!(slurm_time("2:03:04"), Some(7384.0));
        assert_eq!(slurm_time("1-02:03:04"), Some(93_784.0));
        for none in ["UNLIMITED", "INVALID", "NOT_SET", ""] {
            assert_eq!(slurm_time(none), None, "{none}");
        }
    }

    #[test]
    fn this_host_has_its_names() {
        let names = names(&[], "127.0.0.1");
        for name in [&host_name(), "localhost", "127.0.0.1"] {
            assert!(names.iter().any(|have| have == name), "{name} in {names:?}");
        }
        assert!(cores() >= 1);
        // Started from elsewhere, through a tunnel.
        let remote = super::names(&["alias".into()], "127.0.0.1");
        assert!(remote.contains(&"alias".to_owned()) && !remote.contains(&"localhost".to_owned()));
    }
}
