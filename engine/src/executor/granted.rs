//! What a task was granted of its host, as the task sees it: variables, and the cores it runs on.

use std::ffi::OsString;

use ipbroker_protocol::resources::{self, CPUS, GPUS, Grant, Granted, MEMORY};
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

/// Variables for a job: `None` removes one.
pub(super) fn variables(grant: &Grant) -> Vec<(OsString, Option<OsString>)> {
    let mut env: Vec<(OsString, Option<OsString>)> = Vec::new();
    let mut set = |name: String, value: String| env.push((name.into(), Some(value.into())));
    for (name, granted) in grant {
        set(resources::variable(name), value(granted));
        match name.as_str() {
            // Programs that ask the system how many cores there are would take all of them.
            CPUS => set(
                "OMP_NUM_THREADS".into(),
                (granted.amount.floor().max(1.0) as u64).to_string(),
            ),
            GPUS => {
                for variable in ["CUDA_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES"] {
                    set(variable.into(), value(granted));
                }
            }
            _ => {}
        }
    }
    env
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
        let variables: Vec<String> = variables(&grant)
            .into_iter()
            .map(|(name, value)| {
                format!(
                    "{}={}",
                    name.to_string_lossy(),
                    value.unwrap_or_default().to_string_lossy()
                )
            })
            .collect();
        assert_eq!(
            variables,
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
