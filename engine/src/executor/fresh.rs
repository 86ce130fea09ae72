//! `creates` and `needs`: a job whose files are up to date is not run, as make has it.

use std::fs;
use std::io;
use std::path::PathBuf;
use std::time::SystemTime;

/// Whether all of `creates` are there and none of them is older than one of `needs`; which of `needs` is missing.
pub(super) fn up_to_date(
    creates: impl Iterator<Item = PathBuf>,
    needs: impl Iterator<Item = PathBuf>,
) -> Result<bool, String> {
    let time = |path: &PathBuf| -> io::Result<SystemTime> { fs::metadata(path)?.modified() };
    let newest = needs
        .map(|path| time(&path).map_err(|error| format!("needs {}: {error}", path.display())))
        .try_fold(None, |newest, time| {
            Ok::<_, String>(newest.max(Some(time?)))
        })?;
    let mut creates = creates.peekable();
    if creates.peek().is_none() {
        return Ok(false);
    }
    Ok(creates.all(|path| time(&path).is_ok_and(|time| Some(time) >= newest)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;
    use std::time::Duration;

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
            up_to_date(paths(creates).into_iter(), paths(needs).into_iter())
        };
        assert_eq!(ask(&[&new], &[&old]), Ok(true));
        assert_eq!(ask(&[&new], &[&new]), Ok(true));
        assert_eq!(ask(&[&new, &newer], &[&old, &new]), Ok(true));
        assert_eq!(ask(&[&old, &newer], &[&new]), Ok(false));
        assert_eq!(ask(&[&new, &missing], &[&old]), Ok(false));
        assert_eq!(ask(&[&new], &[]), Ok(true));
        assert_eq!(ask(&[], &[&old]), Ok(false));
        assert!(ask(&[&new], &[&missing]).unwrap_err().contains("missing"));
    }
}
