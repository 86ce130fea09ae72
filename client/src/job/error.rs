//! What can be wrong with a job line.

/// Why one line is no job.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LineError {
    /// The line is no JSON at all.
    #[error("not JSON: {0}")]
    NotJson(String),
    /// The line is JSON, but no object.
    #[error("a job must be a JSON object like {{\"cmd\": \"…\"}}, not {0}")]
    NotObject(&'static str),
    /// The line has no `cmd`.
    #[error("no \"cmd\": a job must say which command to run")]
    NoCommand,
    /// A key holds a value of the wrong type.
    #[error("\"{key}\" must be {expected}, not {found}")]
    WrongType {
        /// The key.
        key: &'static str,
        /// What it must be.
        expected: &'static str,
        /// What it is.
        found: String,
    },
    /// A key holds a value that cannot be used.
    #[error("\"{key}\" {problem}")]
    WrongValue {
        /// The key.
        key: &'static str,
        /// What is wrong with its value.
        problem: String,
    },
    /// The line has a key that means nothing, and is nearly one that does.
    #[error("{key:?} means nothing in a job; did you mean {meant:?}?")]
    UnknownKey {
        /// The key.
        key: String,
        /// The one that was probably meant.
        meant: &'static str,
    },
    /// The line is not UTF-8.
    #[error("not UTF-8 text")]
    NotText,
}

impl LineError {
    pub(super) fn value(key: &'static str, problem: impl Into<String>) -> Self {
        let problem = problem.into();
        Self::WrongValue { key, problem }
    }
}

/// A bad job line and where it stands.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{file}:{line}: {error}")]
pub struct JobError {
    /// Name of the file (`stdin` for the standard input).
    pub file: String,
    /// Number of the line, from 1.
    pub line: u64,
    /// What is wrong.
    pub error: LineError,
}
