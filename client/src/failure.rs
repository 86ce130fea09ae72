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
        let words: Vec<_> = self.message.split_whitespace().collect();
        f.write_str(&crate::output::shown(&words.join(" ")))
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
        // Whoever reads has seen enough (`| head`): nothing is said, as of a program that SIGPIPE ends.
        if error.kind() == std::io::ErrorKind::BrokenPipe {
            return Self {
                message: String::new(),
                code: 128 + 13,
            };
        }
        Self::new(error.to_string())
    }
}
