//! How memory limits are kept: by a control group where one is delegated to us, else by looking.

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::atomic::{AtomicU64, Ordering},
};

/// How the memory limits of jobs are kept in this process.
#[derive(Debug)]
pub(crate) enum Limits {
    /// The kernel keeps them, in a control group (version 2) for each limited job.
    Cgroup(Delegated),
    /// The warden looks at the processes of the group several times a second.
    Sampling,
}

/// A control group in which we may make others.
#[derive(Debug)]
pub(crate) struct Delegated {
    dir: PathBuf,
    count: AtomicU64,
}

/// The control group of one job.
#[derive(Debug)]
pub(crate) struct Cage {
    dir: PathBuf,
}

impl Limits {
    /// Takes the control group of this process, if it has been delegated and holds nobody else; call it before other
    /// processes are started.
    pub(crate) fn detect() -> Self {
        own_group()
            .and_then(|dir| Delegated::take(dir).ok())
            .map_or(Self::Sampling, Self::Cgroup)
    }

    /// As registrations tell it.
    pub(crate) fn name(&self) -> &'static str {
        match self {
            Self::Cgroup(_) => "cgroup",
            Self::Sampling => "sampling",
        }
    }

    /// A control group that keeps `memory`, where they are to be had.
    pub(crate) fn cage(&self, memory: u64) -> Option<Cage> {
        match self {
            Self::Cgroup(delegated) => delegated.cage(memory).ok(),
            Self::Sampling => None,
        }
    }
}

/// The directory of this process's group in the unified hierarchy.
fn own_group() -> Option<PathBuf> {
    let groups = fs::read_to_string("/proc/self/cgroup").ok()?;
    let mounts = fs::read_to_string("/proc/self/mounts").ok()?;
    group_dir(&groups, &mounts)
}

fn group_dir(groups: &str, mounts: &str) -> Option<PathBuf> {
    let path = groups.lines().find_map(|line| line.strip_prefix("0::"))?;
    let mount = mounts.lines().find_map(|line| {
        let mut fields = line.split(' ').skip(1);
        let (place, kind) = (fields.next()?, fields.next()?);
        (kind == "cgroup2").then_some(place)
    })?;
    Some(Path::new(mount).join(path.trim_start_matches('/')))
}

impl Delegated {
    /// Moves this process into a leaf of its group, for a group that delegates must hold no process itself.
    fn take(dir: PathBuf) -> io::Result<Self> {
        let controllers = fs::read_to_string(dir.join("cgroup.controllers"))?;
        let members = fs::read_to_string(dir.join("cgroup.procs"))?;
        let own = std::process::id().to_string();
        if !controllers
            .split_ascii_whitespace()
            .any(|name| name == "memory")
            || members.trim() != own
        {
            return Err(io::ErrorKind::Unsupported.into());
        }
        let leaf = dir.join("ipengine");
        if !leaf.exists() {
            fs::create_dir(&leaf)?;
        }
        fs::write(leaf.join("cgroup.procs"), &own)?;
        if let Err(error) = fs::write(dir.join("cgroup.subtree_control"), "+memory") {
            let _ = fs::write(dir.join("cgroup.procs"), &own);
            let _ = fs::remove_dir(&leaf);
            return Err(error);
        }
        Ok(Self {
            dir,
            count: AtomicU64::new(0),
        })
    }

    fn cage(&self, memory: u64) -> io::Result<Cage> {
        let number = self.count.fetch_add(1, Ordering::Relaxed);
        let dir = self
            .dir
            .join(format!("job-{}-{number}", std::process::id()));
        fs::create_dir(&dir)?;
        let cage = Cage { dir };
        fs::write(cage.dir.join("memory.max"), memory.to_string())?;
        // Not on every kernel.
        let _ = fs::write(cage.dir.join("memory.swap.max"), "0");
        let _ = fs::write(cage.dir.join("memory.oom.group"), "1");
        Ok(cage)
    }
}

impl Cage {
    /// What the job's shell does first.
    pub(crate) fn prelude(&self) -> String {
        let procs = self
            .dir
            .join("cgroup.procs")
            .to_string_lossy()
            .replace('\'', r"'\''");
        format!("echo $$ > '{procs}' || exit 126; ")
    }

    /// Whether the kernel killed the job for its memory; the most it used, where known.
    pub(crate) fn exceeded(&self) -> Option<u64> {
        let events = fs::read_to_string(self.dir.join("memory.events")).ok()?;
        let killed = events
            .lines()
            .find_map(|line| line.strip_prefix("oom_kill "))?;
        let peak = fs::read_to_string(self.dir.join("memory.peak")).ok();
        (killed.trim() != "0").then(|| {
            peak.and_then(|text| text.trim().parse().ok())
                .unwrap_or_default()
        })
    }
}

impl Drop for Cage {
    fn drop(&mut self) {
        // What the job left behind goes with it: an occupied group cannot be removed.
        let _ = fs::write(self.dir.join("cgroup.kill"), "1");
        for _ in 0..20 {
            match fs::remove_dir(&self.dir) {
                Err(error) if error.kind() == io::ErrorKind::ResourceBusy => {
                    std::thread::sleep(std::time::Duration::from_millis(5));
                }
                _ => return,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_the_unified_hierarchy() {
        let mounts = "cgroup /sys/fs/cgroup/memory cgroup rw,memory 0 0\ncgroup2 /sys/fs/cgroup/unified cgroup2 rw 0 0\n";
        assert_eq!(
            group_dir("4:memory:/x\n0::/user/a\n", mounts).unwrap(),
            Path::new("/sys/fs/cgroup/unified/user/a")
        );
        assert_eq!(group_dir("4:memory:/x\n", mounts), None);
        assert_eq!(group_dir("0::/\n", "proc /proc proc rw 0 0\n"), None);
    }

    #[test]
    fn a_group_without_memory_is_not_taken() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("cgroup.controllers"), "cpu pids\n").unwrap();
        fs::write(
            dir.path().join("cgroup.procs"),
            std::process::id().to_string(),
        )
        .unwrap();
        assert!(Delegated::take(dir.path().into()).is_err());
        fs::write(dir.path().join("cgroup.controllers"), "cpu memory\n").unwrap();
        fs::write(dir.path().join("cgroup.procs"), "1\n2\n").unwrap();
        assert!(Delegated::take(dir.path().into()).is_err());
    }
}
