//! File operations on an engine's host: `fs_request`, sent to one engine on MUX, and `fs_reply`.

use serde::{Deserialize, Serialize};

use super::{Command, CommandResult, is_default};

/// One file operation. Relative paths are below the engine's working directory, `~/` is its user's home.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum FsOp {
    /// Entries of the directory `path` → `entries`.
    Ls,
    /// What `path` is → `stat`; follows links.
    Stat,
    /// Whether `path` is there → `exists`, and `stat` when it is.
    #[default]
    Exists,
    /// Makes the directory `path` (`recursive`: and those above it; one that is there is no error then).
    Mkdir,
    /// Makes a directory of a new name in `path` (or in the temporary directory) → `path`.
    Newdir,
    /// The engine's working directory → `path`.
    Pwd,
    /// Removes a file or link (`recursive`: or a whole directory).
    Rm,
    /// Removes an empty directory.
    Rmdir,
    /// Writes buffer 0 to `path` at `offset` (0 begins anew, unless `append`); `mode` sets its permission bits.
    Put,
    /// Reads `length` bytes (all) of `path` from `offset` → buffer 0, `stat`, `eof`.
    Get,
    /// Sets the permission bits of `path` to `mode`.
    Chmod,
    /// Makes `path` a symbolic link to `to`.
    Ln,
    /// Makes the named pipe `path`.
    Mkfifo,
    /// Runs `command` at once, beside whatever the engine is doing → `result`.
    Run,
    /// Which of `sha256` the host's cache holds → `have`.
    Have,
    /// Puts buffer 0, whose hash is `sha256[0]`, into the host's cache; `offset` as in `put`, checked when `eof`.
    Cache,
}

/// Content of `fs_request`.
#[serde_with::apply(_ => #[serde(skip_serializing_if = "is_default")])]
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct FsRequest {
    /// What to do.
    #[serde_with(skip_apply)]
    pub op: FsOp,
    /// With what.
    pub path: String,
    /// Where a link points.
    pub to: String,
    /// Permission bits.
    pub mode: Option<u32>,
    /// Where to begin.
    #[serde_with(skip_apply)]
    pub offset: u64,
    /// How much to read.
    pub length: Option<u64>,
    /// With all that is in it, or above it.
    pub recursive: bool,
    /// Write at the end.
    pub append: bool,
    /// This is the last part of a file for the cache.
    pub eof: bool,
    /// Hashes, hex.
    pub sha256: Vec<String>,
    /// What to run.
    pub command: Option<Command>,
}

/// What a path is.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct FsStat {
    /// The name in its directory.
    pub name: String,
    /// `file`, `dir`, `link`, `fifo`, `socket`, `block`, `char`.
    pub kind: String,
    /// Bytes.
    pub size: u64,
    /// Permission bits.
    pub mode: u32,
    /// Last change: seconds since 1970.
    pub mtime: f64,
    /// Number of its owner.
    pub uid: u32,
    /// Number of its group.
    pub gid: u32,
    /// Where a link points.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub to: Option<String>,
}

/// Content of `fs_reply`.
#[serde_with::apply(_ => #[serde(skip_serializing_if = "is_default")])]
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct FsReply {
    /// `ok` or `error`.
    #[serde_with(skip_apply)]
    pub status: String,
    /// Error name: `OSError`, …
    pub ename: Option<String>,
    /// What went wrong, with host and path.
    pub evalue: Option<String>,
    /// The host that answers.
    #[serde_with(skip_apply)]
    pub host: String,
    /// A directory.
    pub path: Option<String>,
    /// Whether it is there.
    pub exists: Option<bool>,
    /// What it is.
    pub stat: Option<FsStat>,
    /// What is in it, by name.
    pub entries: Vec<FsStat>,
    /// Buffer 0 reaches the end of the file.
    pub eof: bool,
    /// Hashes that the cache holds.
    pub have: Vec<String>,
    /// How the command ended.
    pub result: Option<CommandResult>,
}
