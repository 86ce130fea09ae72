//! Files that one run appends to, and no other one at the same time.

use std::fs::File;
use std::io::Error;
use std::path::Path;

use rustix::fs::{FlockOperation, flock};

use crate::failure::Failure;

/// The file of an option, as messages about it begin with: `--results out.jsonl: …`.
pub(crate) fn problem(option: &str, path: &Path) -> impl Fn(Error) -> Failure {
    let name = format!("{option} {}", path.display());
    move |error| Failure::usage(format!("{name}: {error}"))
}

/// Opens a file to read it and to append to it, and locks it for as long as it is open. `taken`: what is said if another
/// one has it. What is no regular file cannot be kept from others, and is not locked: `false`.
pub(crate) fn open(option: &str, path: &Path, taken: &str) -> Result<(File, bool), Failure> {
    let problem = problem(option, path);
    let file = File::options()
        .read(true)
        .append(true)
        .create(true)
        .open(path)
        .map_err(&problem)?;
    let regular = file.metadata().map_err(&problem)?.is_file();
    if regular {
        flock(&file, FlockOperation::NonBlockingLockExclusive).map_err(|error| match error {
            rustix::io::Errno::WOULDBLOCK => problem(Error::other(taken)),
            error => problem(error.into()),
        })?;
    }
    Ok((file, regular))
}
