//! `creates` and `needs`: a job whose files are up to date is not run, as make has it. But what a job has written that
//! failed or was stopped is not up to date, whole though it may look: it gets the time 0, which is older than everything.

use std::fs::{self, File};
use std::io;
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};

fn time(path: &PathBuf) -> io::Result<SystemTime> {
    fs::metadata(path)?.modified()
}

/// Whether all of `creates` are there and none of them is older than one of `needs`; which of `needs` is missing.
pub(super) fn up_to_date(
    creates: &[PathBuf],
    needs: impl Iterator<Item = PathBuf>,
) -> Result<bool, String> {
    let newest = needs
        .map(|path| time(&path).map_err(|error| format!("needs {}: {error}", path.display())))
        .try_fold(None, |newest, time| {
            Ok::<_, String>(newest.max(Some(time?)))
        })?;
    let newest = newest.max(Some(DISTRUSTED + Duration::from_nanos(1)));
    let fresh = |path| time(path).is_ok_and(|time| Some(time) >= newest);
    Ok(!creates.is_empty() && creates.iter().all(fresh))
}

/// The time of files that nobody should rely on.
const DISTRUSTED: SystemTime = SystemTime::UNIX_EPOCH;

/// What a job creates, as it was before the job ran.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct Before(Vec<(PathBuf, Option<SystemTime>)>);

impl Before {
    pub(crate) fn new(creates: Vec<PathBuf>) -> Self {
        let with_time = |path: PathBuf| {
            let time = time(&path).ok();
            (path, time)
        };
        Self(creates.into_iter().map(with_time).collect())
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The job has not ended well: what it has written is not up to date.
    pub(crate) fn distrust(&self) {
        for (path, before) in &self.0 {
            let written = fs::metadata(path).is_ok_and(|now| {
                // Opening a pipe would wait for its other end.
                (now.is_file() || now.is_dir()) && now.modified().ok() != *before
            });
            // Whoever may not change the time of a file that its job has written cannot be helped.
            if written && let Ok(file) = File::open(path) {
                let _ = file.set_modified(DISTRUSTED);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_make_has_it() {
        let dir = tempfile::tempdir().unwrap();
        let file = |name: &str, age: u64| {
            let path = dir.path().join(name);
            let file = File::create(&path).unwrap();
            file.set_modified(SystemTime::now() - Duration::from_secs(age))
                .unwrap();
            path
        };
        let (old, new, newer) = (file("old", 300), file("new", 200), file("newer", 100));
        let missing = dir.path().join("missing");
        let ask = |creates: &[&PathBuf], needs: &[&PathBuf]| {
            let paths = |of: &[&PathBuf]| of.iter().map(|path| (*path).clone()).collect::<Vec<_>>();
            up_to_date(&paths(creates), paths(needs).into_iter())
        };
        assert_eq!(ask(&[&new], &[&old]), Ok(true));
        assert_eq!(ask(&[&new], &[&new]), Ok(true));
        assert_eq!(ask(&[&new, &newer], &[&old, &new]), Ok(true));
        assert_eq!(ask(&[&old, &newer], &[&new]), Ok(false));
        assert_eq!(ask(&[&new, &missing], &[&old]), Ok(false));
        assert_eq!(ask(&[&new], &[]), Ok(true));
        assert_eq!(ask(&[], &[&old]), Ok(false));
        assert!(ask(&[&new], &[&missing]).unwrap_err().contains("missing"));
        // Of what a failed job has not touched nothing is known that was not known before.
        let before = Before::new(vec![new.clone(), missing.clone(), newer.clone()]);
        File::create(&missing).unwrap();
        File::create(&newer).unwrap();
        before.distrust();
        assert_eq!(ask(&[&new], &[]), Ok(true));
        assert_eq!(ask(&[&missing], &[]), Ok(false));
        assert_eq!(ask(&[&newer], &[]), Ok(false));
    }
}
