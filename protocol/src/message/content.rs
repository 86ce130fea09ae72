//! Contents of task requests and replies.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_bytes::ByteBuf;

use super::{Require, is_default};
use crate::value::Map;

/// Content of `command_request`: one shell job. In an array, each member's map replaces keys of this template.
#[serde_with::apply(_ => #[serde(skip_serializing_if = "is_default")])]
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Command {
    /// The command, run by `/bin/bash -o pipefail -c`.
    #[serde_with(skip_apply)]
    pub cmd: String,
    /// Working directory.
    pub cd: Option<String>,
    /// Variables set on top of the engine's environment.
    pub env: BTreeMap<String, String>,
    /// Text for standard input (none: `/dev/null`).
    pub stdin: Option<String>,
    /// The same of bytes that are no text, in base64.
    pub stdin_base64: Option<String>,
    /// File for standard input, on the engine's host.
    pub stdin_file: Option<String>,
    /// File for standard output.
    pub out: Option<String>,
    /// File for standard error.
    pub err: Option<String>,
    /// The job's umask, octal digits.
    pub umask: Option<String>,
    /// Bytes of standard output and of standard error to return; 0: dropped.
    pub capture: u64,
    /// Also publish the output on IOPub as it comes.
    pub stream: bool,
    /// Limits for the whole process group.
    pub limit: Limit,
    /// What the host must have.
    pub require: Require,
    /// An exit code that means "this engine lacks what I need": the job goes to another one.
    pub unmet_exit: Option<i32>,
    /// Files that it writes: it is not run if all are there and none is older than one of `needs`.
    pub creates: Vec<String>,
    /// Files that must be there.
    pub needs: Vec<String>,
    /// Run in a scratch directory of its own, removed after.
    pub scratch: bool,
    /// Files that are put into place before the start; their bytes are in the message's buffers or the engine's cache.
    pub put: Vec<Staged>,
    /// Files that are returned after the end, as buffers of the reply in this order.
    pub get: Vec<String>,
    /// Keys of later versions.
    #[serde(flatten)]
    pub extra: Map,
}

/// A file that goes with a job.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Staged {
    /// Path on the engine's host, relative to the job's directory.
    pub path: String,
    /// SHA-256 of the bytes, hex.
    pub sha256: String,
    /// Permission bits.
    pub mode: u32,
    /// Index of the message's buffer with the bytes; none: the engine has them in its cache.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub buffer: Option<usize>,
}

/// Limits of a command's whole process group.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Limit {
    /// Seconds of wall-clock time.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub time: Option<f64>,
    /// Bytes of resident memory.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory: Option<u64>,
}

impl Limit {
    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.time.is_none() && self.memory.is_none()
    }
}

/// Content of `command_reply`, and each member's value in an array reply.
#[serde_with::apply(_ => #[serde(skip_serializing_if = "is_default")])]
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct CommandResult {
    /// `ok`: it ran, whatever its code; `error`: it could not be run; `aborted`.
    #[serde_with(skip_apply)]
    pub status: String,
    /// The shell's exit code; 128 + n after signal n.
    #[serde_with(skip_apply)]
    pub code: Option<i32>,
    /// When it began: ISO 8601 UTC, in the controller's clock.
    #[serde_with(skip_apply)]
    pub started: Option<String>,
    /// When it ended.
    #[serde_with(skip_apply)]
    pub completed: Option<String>,
    /// Run time in s, by a monotonic clock.
    #[serde_with(skip_apply)]
    pub elapsed: Option<f64>,
    /// The engine's host.
    pub host: Option<String>,
    /// The engine's id.
    pub engine_id: Option<u32>,
    /// Captured standard output (bytes that are no UTF-8 are replaced).
    pub stdout: Option<String>,
    /// Captured standard error.
    pub stderr: Option<String>,
    /// The output as it was, where it is no UTF-8.
    pub stdout_bytes: Option<ByteBuf>,
    /// The same of standard error.
    pub stderr_bytes: Option<ByteBuf>,
    /// Bytes of output beyond what was captured.
    pub truncated: u64,
    /// It was not run: what it creates is up to date.
    pub up_to_date: bool,
    /// Which limit ended it: `time` or `memory`.
    pub limit: Option<String>,
    /// Error name, when status is not `ok`.
    pub ename: Option<String>,
    /// What went wrong, in words.
    pub evalue: Option<String>,
    /// The peer's key; always empty here.
    pub traceback: Vec<String>,
}

impl Command {
    /// What it reads, where that comes with it.
    ///
    /// # Errors
    /// When it is not base64 although it says so.
    pub fn input(&self) -> Result<Option<Vec<u8>>, base64::DecodeError> {
        match (&self.stdin, &self.stdin_base64) {
            (Some(text), _) => Ok(Some(text.clone().into_bytes())),
            (None, text) => text.as_ref().map(|text| STANDARD.decode(text)).transpose(),
        }
    }

    /// It reads this.
    pub fn set_input(&mut self, bytes: Vec<u8>) {
        match String::from_utf8(bytes) {
            Ok(text) => self.stdin = Some(text),
            Err(bytes) => self.stdin_base64 = Some(STANDARD.encode(bytes.as_bytes())),
        }
    }
}

impl CommandResult {
    /// What was captured of its standard output, byte by byte.
    #[must_use]
    pub fn output(&self) -> &[u8] {
        let text = self.stdout.as_deref().unwrap_or_default();
        (self.stdout_bytes.as_deref()).map_or(text.as_bytes(), |bytes| bytes)
    }

    /// What was captured of its standard error, byte by byte.
    #[must_use]
    pub fn errors(&self) -> &[u8] {
        let text = self.stderr.as_deref().unwrap_or_default();
        (self.stderr_bytes.as_deref()).map_or(text.as_bytes(), |bytes| bytes)
    }
}

/// Content of `function_request`: which function. A Rust function's argument is the first buffer, in MessagePack; a Python
/// call's is the pickled `(args, kwargs)`, with its out-of-band buffers behind it.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct FunctionCall {
    /// The name under which the engine registered it; of a Python callable, its qualified name, for people.
    pub name: String,
    /// A Python call: the callable, pickled.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub code: Option<ByteBuf>,
    /// The `major.minor` version of Python that `code` needs, when it has functions by value.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub python: Option<String>,
    /// Limits of a Python call, of its interpreter and what that starts.
    #[serde(skip_serializing_if = "Limit::is_empty")]
    pub limit: Limit,
}

impl FunctionCall {
    /// A call of one of the engine's own functions.
    #[must_use]
    pub fn named(name: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            ..Self::default()
        }
    }
}

/// Content of an error reply, as the peer's.
#[serde_with::skip_serializing_none]
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct ErrorContent {
    /// `error` or `aborted`.
    pub status: String,
    /// The error's name, e.g. `ImpossibleDependency`.
    pub ename: String,
    /// What went wrong, in words.
    pub evalue: String,
    /// Lines of a traceback; Python clients want the key.
    pub traceback: Vec<String>,
    /// Where it went wrong, as the peer has it.
    pub engine_info: Option<Map>,
    /// The exception of a Python call, pickled, where it could be.
    pub exception: Option<ByteBuf>,
    /// Results that a list of Python calls had given before its interpreter died: pickled lists, one behind the other.
    pub results: Option<ByteBuf>,
}

impl ErrorContent {
    /// The name of the unmet dependency of a task whose inputs are not where it was to run.
    pub const MISSING_INPUT: &str = "MissingInput";

    /// An error with its name and words.
    #[must_use]
    pub fn new(ename: &str, evalue: impl Into<String>) -> Self {
        let status = if ename == "TaskAborted" {
            "aborted"
        } else {
            "error"
        };
        Self {
            status: status.into(),
            ename: ename.into(),
            evalue: evalue.into(),
            ..Self::default()
        }
    }
}

/// Content of `submit_ack`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct SubmitAck {
    /// Tasks that the controller holds.
    pub msg_ids: Vec<String>,
    /// Those of them that it held already.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub duplicate: Vec<String>,
}

/// Content of `result_ack` and `reply_ack`: whole tasks, and ranges of arrays.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Acked {
    /// Tasks whose reply was received.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub msg_ids: Vec<String>,
    /// Ranges `(msg_id, lo, hi)` of arrays whose reply was received.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub ranges: Vec<(String, u64, u64)>,
}

/// Content of `resume_request`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct ResumeRequest {
    /// Tasks whose outcome the client still lacks.
    pub pending: Vec<String>,
    /// Ranges of arrays that it has already, so that they are not sent again.
    pub received: Vec<(String, u64, u64)>,
}

/// Content of `resume_reply`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct ResumeReply {
    /// Tasks that the controller does not know: submit them again.
    pub unknown: Vec<String>,
    /// Tasks that wait or run.
    pub pending: Vec<String>,
}

/// Content of `abort_request`.
#[serde_with::apply(_ => #[serde(skip_serializing_if = "is_default")])]
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct AbortRequest {
    /// Tasks or members to abort.
    pub msg_ids: Option<Vec<String>>,
    /// Every task there is.
    pub all: bool,
    /// Every task of one client.
    pub session: Option<String>,
    /// Running ones too.
    pub kill: bool,
}

/// Content of `scale_request`.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct ScaleRequest {
    /// So many engines more, on the controller's host.
    pub add: u32,
    /// Engines to end, by id or uuid: each when what it runs has ended.
    pub remove: Vec<serde_json::Value>,
    /// They end at once, and what they run is stopped.
    pub now: bool,
}

/// Content of `abort_reply`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct AbortReply {
    /// `ok`, or `error` with `evalue`.
    pub status: String,
    /// Members that ended at once.
    pub aborted: u64,
    /// Members that run and are being stopped.
    pub stopping: u64,
    /// Ids that had ended before.
    pub done: Vec<String>,
    /// Ids that nobody knows.
    pub unknown: Vec<String>,
}

/// Content of `give_back_request`.
#[serde_with::skip_serializing_none]
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct GiveBackRequest {
    /// At most this many members, from the end of the queue.
    pub count: Option<u64>,
    /// These tasks, or ranges of arrays.
    pub tasks: Option<Vec<super::Held>>,
    /// These tasks or members.
    pub msg_ids: Option<Vec<String>>,
}

/// Content of `output_request`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct OutputRequest {
    /// A task, or a member of an array.
    pub msg_id: String,
    /// Bytes of its standard output and standard error that were told before.
    pub seen: [u64; 2],
}

/// Content of `output_reply`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct OutputReply {
    /// `ok`, or `error` with `evalue`.
    pub status: String,
    /// Whether it runs.
    pub running: bool,
    /// What it has written since, of standard output and standard error: the last 64 KiB of each at most.
    pub text: [String; 2],
    /// Bytes that it has written in all.
    pub seen: [u64; 2],
}

/// What tasks wait for that no engine has.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Unschedulable {
    /// The first of the tasks.
    pub msg_id: String,
    /// How many there are.
    pub tasks: u64,
    /// In words.
    pub text: String,
}
