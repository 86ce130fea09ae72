//! What a task was granted of its host, as the task sees it: variables, and the cores it runs on.

use std::ffi::OsString;

use ipbroker_protocol::resources::{self, CPUS, GPUS, Grant, Granted, MEMORY};
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
use tempfile::TempDir;

use crate::{files::FileError, process::Process, task::Wants};

/// By which programs know their GPUs.
const VISIBLE: [&str; 2] = ["CUDA_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES"];

/// The file with the names of a task's hosts, one a line.
const NODES: &str = "nodes";

/// What a task is told of what it has.
pub(super) struct Told {
    pub(super) variables: Vec<(String, OsString)>,
    /// A directory with the file that one of them names.
    _nodes: Option<TempDir>,
}

/// Tells a task what it has; the file with the names of its hosts, if it holds whole ones, goes with what is returned.
pub(super) fn tell(process: &Process, wants: &Wants) -> Result<Told, FileError> {
    let mut variables = variables(&wants.granted, wants.alternative);
    let mut nodes = None;
    if !wants.nodelist.is_empty() {
        let made = process.scratch()?;
        let file = made.path().join(NODES);
        std::fs::write(&file, wants.nodelist.join("\n") + "\n")
            .map_err(FileError::io("write", &file))?;
        let count = wants.nodelist.len().to_string();
        variables.push(("IPBROKER_NODES".into(), count.into()));
        variables.push(("IPBROKER_NODEFILE".into(), file.into()));
        nodes = Some(made);
    }
    Ok(Told {
        variables,
        _nodes: nodes,
    })
}

/// Variables that say what was granted. `alternative`: which of several it is, from 1.
fn variables(grant: &Grant, alternative: Option<u32>) -> Vec<(String, OsString)> {
    let mut variables: Vec<(String, OsString)> = Vec::new();
    let mut set = |name: String, value: String| variables.push((name, value.into()));
    if let Some(alternative) = alternative {
        set("IPBROKER_ALTERNATIVE".into(), alternative.to_string());
        // A program that asks whether there are GPUs is not to find those of others.
        if !grant.contains_key(GPUS) {
            for variable in VISIBLE {
                set(variable.into(), String::new());
            }
        }
    }
    for (name, granted) in grant {
        set(resources::variable(name), value(granted));
        match name.as_str() {
            // Programs that ask the system how many cores there are would take all of them.
            CPUS => set(
                "OMP_NUM_THREADS".into(),
                (granted.amount.floor().max(1.0) as u64).to_string(),
            ),
            GPUS => {
                for variable in VISIBLE {
                    set(variable.into(), value(granted));
                }
            }
            _ => {}
        }
    }
    variables
}

/// The names of what was granted, or how much.
fn value(granted: &Granted) -> String {
    if granted.names.is_empty() {
        granted.amount.to_string()
    } else {
        granted.names.join(",")
    }
}

/// The memory limit of a job: its own, and what it asked for, so that what was promised to others is kept.
pub(super) fn memory_limit(grant: &Grant, own: Option<u64>) -> Option<u64> {
    let granted = grant.get(MEMORY).map(|granted| granted.amount as u64);
    own.into_iter().chain(granted).min()
}

/// While this lives, what this thread starts runs on the granted cores only.
pub(super) struct Pinned(CpuSet);

impl Pinned {
    /// `None`: no cores were named, or the system does not let us.
    pub(super) fn new(grant: &Grant) -> Option<Self> {
        let mut wanted = CpuSet::new();
        let names = &grant.get(CPUS)?.names;
        for core in names.iter().filter_map(|name| name.parse::<usize>().ok()) {
            if core < CpuSet::MAX_CPU {
                wanted.set(core);
            }
        }
        if wanted.count() == 0 {
            return None;
        }
        let before = sched_getaffinity(None).ok()?;
        if let Err(error) = sched_setaffinity(None, &wanted) {
            tracing::warn!(%error, cores = names.join(","), "cannot pin a task");
            return None;
        }
        Some(Self(before))
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        if let Err(error) = sched_setaffinity(None, &self.0) {
            tracing::warn!(%error, "cannot undo the pinning of a task");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_job_sees_what_it_was_granted() {
        let granted = |amount: f64, names: &[&str]| Granted {
            amount,
            names: names.iter().map(|name| (*name).to_owned()).collect(),
        };
        let grant = Grant::from([
            ("cpus".to_owned(), granted(2.0, &["0", "3"])),
            ("gpus".to_owned(), granted(1.0, &["1"])),
            ("lic-a".to_owned(), granted(0.5, &[])),
            ("memory".to_owned(), granted(1024.0, &[])),
        ]);
        let told = |grant: &Grant, alternative| -> Vec<String> {
            let text =
                |(name, value): (String, OsString)| format!("{name}={}", value.to_string_lossy());
            let variables = variables(grant, alternative);
            variables.into_iter().map(text).collect()
        };
        assert_eq!(
            told(&grant, None),
            [
                "IPBROKER_CPUS=0,3",
                "OMP_NUM_THREADS=2",
                "IPBROKER_GPUS=1",
                "CUDA_VISIBLE_DEVICES=1",
                "ROCR_VISIBLE_DEVICES=1",
                "IPBROKER_RESOURCE_LIC_A=0.5",
                "IPBROKER_MEMORY=1024",
            ]
        );
        assert!(told(&grant, Some(1)).contains(&"CUDA_VISIBLE_DEVICES=1".to_owned()));
        // Without a GPU of its own it sees none.
        let cpus = Grant::from([("cpus".to_owned(), granted(2.0, &[]))]);
        assert_eq!(
            told(&cpus, Some(2))[..3],
            [
                "IPBROKER_ALTERNATIVE=2",
                "CUDA_VISIBLE_DEVICES=",
                "ROCR_VISIBLE_DEVICES="
            ]
        );
    }

    #[test]
    fn memory_that_was_asked_for_is_a_limit() {
        let granted = Granted {
            amount: 100.0,
            ..Granted::default()
        };
        let grant = Grant::from([("memory".to_owned(), granted)]);
        assert_eq!(memory_limit(&grant, None), Some(100));
        assert_eq!(memory_limit(&grant, Some(50)), Some(50));
        assert_eq!(memory_limit(&Grant::new(), Some(50)), Some(50));
        assert_eq!(memory_limit(&Grant::new(), None), None);
    }

    #[test]
    fn pinning_ends_with_the_task() {
        let before = sched_getaffinity(None).unwrap();
        let first = (0..CpuSet::MAX_CPU)
            .find(|core| before.is_set(*core))
            .unwrap();
        let grant = Grant::from([(
            "cpus".to_owned(),
            Granted {
                amount: 1.0,
                names: vec![first.to_string()],
            },
        )]);
        let pinned = Pinned::new(&grant).unwrap();
        assert_eq!(sched_getaffinity(None).unwrap().count(), 1);
        drop(pinned);
        assert!(sched_getaffinity(None).unwrap() == before);
    }
}
