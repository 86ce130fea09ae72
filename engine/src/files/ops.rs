//! The operations that clients ask for by `fs_request`: no more than the engine's user may do.

use std::{
    fs,
    io::{Read, Seek, SeekFrom, Write},
    os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt},
    path::{Path, PathBuf},
};

use ipbroker_protocol::message::{FsOp, FsReply, FsRequest, FsStat};
use rustix::fs::{CWD, FileType, Mode, mknodat};

use super::{Cache, FileError, private_dir, unwaiting};

/// More than this is read in several requests: a message is held in memory.
const LARGEST_READ: u64 = 256 << 20;

/// Where file operations happen.
#[derive(Debug)]
pub(crate) struct FileHost {
    /// The host's name, for the replies.
    pub(crate) host: String,
    /// Where relative paths begin.
    pub(crate) work_dir: PathBuf,
    /// The host's cache of inputs.
    pub(crate) cache: Cache,
}

/// A reply and its buffer.
pub(crate) type Served = (FsReply, Option<Vec<u8>>);

impl FileHost {
    /// Where a path of a client is.
    pub(crate) fn resolve(&self, path: &str) -> PathBuf {
        match path.strip_prefix('~') {
            Some("") => std::env::home_dir().unwrap_or_else(|| self.work_dir.clone()),
            Some(rest) if rest.starts_with('/') => std::env::home_dir()
                .unwrap_or_else(|| self.work_dir.clone())
                .join(&rest[1..]),
            _ => self.work_dir.join(path),
        }
    }

    /// Serves any request but [`FsOp::Run`].
    pub(crate) fn serve(&self, request: &FsRequest, bytes: Option<&[u8]>) -> Served {
        let mut reply = FsReply {
            status: "ok".into(),
            host: self.host.clone(),
            ..FsReply::default()
        };
        match self.try_serve(request, bytes, &mut reply) {
            Ok(buffer) => (reply, buffer),
            Err(error) => (self.refuse(&error), None),
        }
    }

    /// An error reply.
    pub(crate) fn refuse(&self, error: &FileError) -> FsReply {
        FsReply {
            status: "error".into(),
            ename: Some(error.ename().into()),
            evalue: Some(format!("{}: {error}", self.host)),
            host: self.host.clone(),
            ..FsReply::default()
        }
    }

    fn try_serve(
        &self,
        request: &FsRequest,
        bytes: Option<&[u8]>,
        reply: &mut FsReply,
    ) -> Result<Option<Vec<u8>>, FileError> {
        let path = self.resolve(&request.path);
        let path = path.as_path();
        let needs_bytes = || {
            bytes.ok_or_else(|| {
                FileError::Request("the bytes to write are missing: buffer 0".into())
            })
        };
        let one_hash = || {
            request
                .sha256
                .first()
                .ok_or_else(|| FileError::Request("the hash of the bytes is missing".into()))
        };
        match request.op {
            FsOp::Ls => {
                for entry in fs::read_dir(path).map_err(FileError::io("list", path))? {
                    let entry = entry.map_err(FileError::io("list", path))?;
                    // An entry may go while we look.
                    if let Ok(meta) = entry.metadata() {
                        reply.entries.push(describe(&entry.path(), &meta));
                    }
                }
                reply.entries.sort_by(|a, b| a.name.cmp(&b.name));
            }
            FsOp::Stat => {
                let meta = fs::metadata(path).map_err(FileError::io("look at", path))?;
                reply.stat = Some(describe(path, &meta));
            }
            FsOp::Exists => match fs::metadata(path) {
                Ok(meta) => {
                    reply.exists = Some(true);
                    reply.stat = Some(describe(path, &meta));
                }
                Err(error)
                    if matches!(
                        error.kind(),
                        std::io::ErrorKind::NotFound | std::io::ErrorKind::NotADirectory
                    ) =>
                {
                    reply.exists = Some(false);
                }
                Err(source) => return Err(FileError::io("look at", path)(source)),
            },
            FsOp::Mkdir => {
                if request.recursive {
                    fs::create_dir_all(path)
                } else {
                    fs::create_dir(path)
                }
                .map_err(FileError::io("make directory", path))?;
                set_mode(path, request.mode)?;
            }
            FsOp::Newdir => {
                let parent = if request.path.is_empty() {
                    std::env::temp_dir()
                } else {
                    path.to_owned()
                };
                let dir = private_dir("ipbroker-", &parent)
                    .map_err(FileError::io("make a directory in", &parent))?
                    .keep();
                reply.path = Some(dir.to_string_lossy().into_owned());
            }
            FsOp::Pwd => reply.path = Some(self.work_dir.to_string_lossy().into_owned()),
            FsOp::Rm => {
                let meta = fs::symlink_metadata(path).map_err(FileError::io("remove", path))?;
                if meta.is_dir() && request.recursive {
                    fs::remove_dir_all(path)
                } else {
                    fs::remove_file(path)
                }
                .map_err(FileError::io("remove", path))?;
            }
            FsOp::Rmdir => fs::remove_dir(path).map_err(FileError::io("remove", path))?,
            FsOp::Put => {
                write(path, request, needs_bytes()?)?;
                set_mode(path, request.mode)?;
            }
            FsOp::Get => return read(path, request, reply).map(Some),
            FsOp::Chmod => {
                if request.mode.is_none() {
                    return Err(FileError::Request("chmod needs a mode".into()));
                }
                set_mode(path, request.mode)?;
            }
            FsOp::Ln => std::os::unix::fs::symlink(&request.to, path)
                .map_err(FileError::io("link", path))?,
            FsOp::Mkfifo => {
                let mode = Mode::from_raw_mode(request.mode.unwrap_or(0o666));
                mknodat(CWD, path, FileType::Fifo, mode, 0)
                    .map_err(|error| FileError::io("make named pipe", path)(error.into()))?;
            }
            FsOp::Have => {
                reply.have = request
                    .sha256
                    .iter()
                    .filter(|sha256| self.cache.has(sha256))
                    .cloned()
                    .collect();
            }
            FsOp::Cache => {
                self.cache
                    .store(one_hash()?, request.offset, needs_bytes()?, request.eof)?
            }
            FsOp::Run => return Err(FileError::Request("run needs a command".into())),
        }
        Ok(None)
    }
}

fn set_mode(path: &Path, mode: Option<u32>) -> Result<(), FileError> {
    let Some(mode) = mode else { return Ok(()) };
    fs::set_permissions(path, fs::Permissions::from_mode(mode & 0o7777))
        .map_err(FileError::io("change", path))
}

fn write(path: &Path, request: &FsRequest, bytes: &[u8]) -> Result<(), FileError> {
    let mut file = unwaiting()
        .create(true)
        .append(request.append)
        .write(true)
        .truncate(request.offset == 0 && !request.append)
        .open(path)
        .map_err(FileError::io("write", path))?;
    if request.offset > 0 && !request.append {
        file.seek(SeekFrom::Start(request.offset))
            .map_err(FileError::io("write", path))?;
    }
    file.write_all(bytes).map_err(FileError::io("write", path))
}

fn read(path: &Path, request: &FsRequest, reply: &mut FsReply) -> Result<Vec<u8>, FileError> {
    let mut file = unwaiting()
        .read(true)
        .open(path)
        .map_err(FileError::io("read", path))?;
    let meta = file.metadata().map_err(FileError::io("read", path))?;
    if meta.is_dir() {
        return Err(FileError::io("read", path)(
            std::io::ErrorKind::IsADirectory.into(),
        ));
    }
    if request.offset > 0 {
        file.seek(SeekFrom::Start(request.offset))
            .map_err(FileError::io("read", path))?;
    }
    let length = request.length.unwrap_or(LARGEST_READ).min(LARGEST_READ);
    let mut bytes = Vec::new();
    file.take(length)
        .read_to_end(&mut bytes)
        .map_err(FileError::io("read", path))?;
    // Files of /proc have no size: their end is where reading stops short.
    reply.eof = (bytes.len() as u64) < length || request.offset + bytes.len() as u64 >= meta.len();
    reply.stat = Some(describe(path, &meta));
    Ok(bytes)
}

fn describe(path: &Path, meta: &fs::Metadata) -> FsStat {
    let kind = meta.file_type();
    let kind = match () {
        () if kind.is_dir() => "dir",
        () if kind.is_symlink() => "link",
        () if kind.is_fifo() => "fifo",
        () if kind.is_socket() => "socket",
        () if kind.is_block_device() => "block",
        () if kind.is_char_device() => "char",
        () => "file",
    };
    FsStat {
        name: path.file_name().map_or_else(
            || path.to_string_lossy().into_owned(),
            |name| name.to_string_lossy().into_owned(),
        ),
        kind: kind.into(),
        size: meta.size(),
        mode: meta.mode() & 0o7777,
        mtime: meta.mtime() as f64 + meta.mtime_nsec() as f64 / 1e9,
        uid: meta.uid(),
        gid: meta.gid(),
        to: fs::read_link(path)
            .ok()
            .map(|to| to.to_string_lossy().into_owned()),
    }
}
