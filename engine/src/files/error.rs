//! What goes wrong with files, always with the path.

use std::{
    io,
    path::{Path, PathBuf},
};

use ipbroker_protocol::message::ErrorContent;

/// An operation on a file that failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FileError {
    /// The system refused.
    #[error("cannot {what} {path}: {source}", path = path.display())]
    Io {
        what: &'static str,
        path: PathBuf,
        source: io::Error,
    },
    /// Bytes that are not those that were announced.
    #[error("{path}: the bytes have SHA-256 {found}, not {expected}", path = path.display())]
    Hash {
        path: PathBuf,
        found: String,
        expected: String,
    },
    /// An input that came neither with the message nor before.
    #[error("input {path} (SHA-256 {sha256}) is not in the cache {cache}", cache = cache.display())]
    NotCached {
        path: String,
        sha256: String,
        cache: PathBuf,
    },
    /// A request that makes no sense.
    #[error("{0}")]
    Request(String),
}

impl FileError {
    /// Adds what was done to which path.
    pub(crate) fn io<'a>(
        what: &'static str,
        path: &'a Path,
    ) -> impl FnOnce(io::Error) -> Self + 'a {
        move |source| Self::Io {
            what,
            path: path.to_owned(),
            source,
        }
    }

    /// The name as Python has it.
    pub(crate) fn ename(&self) -> &'static str {
        match self {
            Self::Io { source, .. } => os_error(source),
            Self::Hash { .. } | Self::Request(_) => "ValueError",
            // Another engine's host may have it.
            Self::NotCached { .. } => ErrorContent::MISSING_INPUT,
        }
    }
}

/// The name of the system's error as Python has it.
pub(crate) fn os_error(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::NotFound => "FileNotFoundError",
        io::ErrorKind::PermissionDenied => "PermissionError",
        io::ErrorKind::AlreadyExists => "FileExistsError",
        io::ErrorKind::IsADirectory => "IsADirectoryError",
        io::ErrorKind::NotADirectory => "NotADirectoryError",
        _ => "OSError",
    }
}
