//! Errors as programs of the peer's name them.

use std::borrow::Cow;

/// An error with the name of a Python exception.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{ename}: {evalue}")]
pub struct NamedError {
    /// The exception's name.
    pub ename: Cow<'static, str>,
    /// Its message.
    pub evalue: String,
}

impl NamedError {
    pub(crate) fn new(ename: impl Into<Cow<'static, str>>, evalue: impl Into<String>) -> Self {
        NamedError {
            ename: ename.into(),
            evalue: evalue.into(),
        }
    }
    pub(crate) fn key(evalue: impl Into<String>) -> Self {
        Self::new("KeyError", evalue)
    }
    pub(crate) fn value(evalue: impl Into<String>) -> Self {
        Self::new("ValueError", evalue)
    }
}
