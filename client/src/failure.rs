//! How the program ends when it cannot do what was asked.

use std::fmt;

/// One line for the user, and the exit status.
#[derive(Debug)]
pub(crate) struct Failure {
    pub(crate) message: String,
    pub(crate) code: u8,
}

impl Failure {
    pub(crate) fn new(message: impl Into<String>) -> Self {
        Self {
            message: message.into(),
            code: 1,
        }
    }

    /// A wrong option or file.
    pub(crate) fn usage(message: impl Into<String>) -> Self {
        Self {
            message: message.into(),
            code: 2,
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Whatever a library says, a user reads one line.
        f.write_str(
            &self
                .message
                .split_whitespace()
                .collect::<Vec<_>>()
                .join(" "),
        )
    }
}

impl From<ipbroker_client::Error> for Failure {
    fn from(error: ipbroker_client::Error) -> Self {
        // What the peer's protocol calls it.
        if let ipbroker_client::Error::Refused { message, .. } = &error
            && let Some(id) = message.strip_prefix("KeyError: No such message: ")
        {
            return Self::new(format!("no such task: {id}"));
        }
        Self::new(error.to_string())
    }
}

impl From<std::io::Error> for Failure {
    fn from(error: std::io::Error) -> Self {
        Self::new(error.to_string())
    }
}
