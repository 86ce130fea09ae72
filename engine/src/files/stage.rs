//! Inputs put into place before a job, outputs fetched after it, and its scratch directory.

use std::{
    fs::{self, Permissions},
    io::{self, Read},
    os::unix::fs::PermissionsExt,
    path::Path,
};

use ipbroker_protocol::{message::Staged, zmq::Message};

use super::{Cache, FileError, unwaiting};

/// A new directory that nobody else on this host can look into.
pub(crate) fn private_dir(prefix: &str, parent: &Path) -> io::Result<tempfile::TempDir> {
    tempfile::Builder::new()
        .prefix(prefix)
        .permissions(Permissions::from_mode(0o700))
        .tempdir_in(parent)
}

/// Puts a job's inputs into `dir`: from the message's buffers, which the cache keeps, or from the cache.
pub(crate) fn place(
    cache: &Cache,
    dir: &Path,
    put: &[Staged],
    buffers: &[Message],
) -> Result<(), FileError> {
    for input in put {
        let path = dir.join(&input.path);
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent).map_err(FileError::io("make", parent))?;
        }
        if let Some(index) = input.buffer {
            let bytes = buffers.get(index).ok_or_else(|| {
                FileError::Request(format!(
                    "input {}: the message has no buffer {index}",
                    input.path
                ))
            })?;
            // Without a hash nobody can ask for it again.
            if !input.sha256.is_empty() {
                cache.store(&input.sha256, 0, bytes, true)?;
            }
            fs::write(&path, &bytes[..]).map_err(FileError::io("write", &path))?;
        } else {
            cache.copy(&input.path, &input.sha256, &path)?;
        }
        let mode = if input.mode == 0 {
            0o644
        } else {
            input.mode & 0o7777
        };
        fs::set_permissions(&path, fs::Permissions::from_mode(mode))
            .map_err(FileError::io("change", &path))?;
    }
    Ok(())
}

/// What the outputs of one job may have together: a reply is held in memory here, at the controller and at the client.
const LARGEST_OUTPUTS: u64 = 1 << 30;

/// Reads a job's outputs in `dir`, in their order; a missing one is an empty buffer, and the first error is returned
/// beside.
pub(crate) fn collect(dir: &Path, get: &[String]) -> (Vec<Message>, Option<FileError>) {
    let mut failed = None;
    let mut left = LARGEST_OUTPUTS;
    let buffers = get
        .iter()
        .map(|path| {
            let path = dir.join(path);
            match read(&path, &mut left) {
                Ok(bytes) => Message::from(bytes),
                Err(source) => {
                    failed.get_or_insert(FileError::Io {
                        what: "fetch",
                        path,
                        source,
                    });
                    Message::new()
                }
            }
        })
        .collect();
    (buffers, failed)
}

/// Reads a file that has no more than `left` bytes.
fn read(path: &Path, left: &mut u64) -> io::Result<Vec<u8>> {
    let too_much = || {
        io::Error::other(format!(
            "more than {} MiB in all: too much for a reply; write it outside of the job's own directory, and fetch it with `ipclient fs get`",
            LARGEST_OUTPUTS >> 20
        ))
    };
    let file = unwaiting().read(true).open(path)?;
    if file.metadata()?.len() > *left {
        return Err(too_much());
    }
    let mut bytes = Vec::new();
    // It may still grow.
    file.take(*left + 1).read_to_end(&mut bytes)?;
    *left = left.checked_sub(bytes.len() as u64).ok_or_else(too_much)?;
    Ok(bytes)
}
