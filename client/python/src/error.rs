//! The library's errors as Python exceptions: those of `ipbroker.errors`, found by name when one is raised.

use ipbroker_client::Error;
use pyo3::exceptions::{PyConnectionError, PyTimeoutError};
use pyo3::prelude::*;

/// The exception that stands for an error.
pub(crate) fn raise(py: Python<'_>, error: &Error) -> PyErr {
    let name = match error {
        Error::QueryTimeout { .. } | Error::Timeout { .. } => {
            return PyTimeoutError::new_err(error.to_string());
        }
        Error::NoConnectionFile { .. }
        | Error::NoController { .. }
        | Error::ShutDown
        | Error::NoAnswer { .. }
        | Error::WrongKey { .. }
        | Error::Connection(_)
        | Error::Profile(_) => "ConnectionError",
        Error::Closed => "ClosedError",
        Error::Job(_) => "JobError",
        _ => "IpbrokerError",
    };
    let text = error.to_string().replace(
        "Start one with `ipctl`, or use `--local N`",
        "start one with `ipctl --python`, or use ipbroker.Cluster()",
    );
    let found = py
        .import("ipbroker.errors")
        .and_then(|errors| errors.getattr(name))
        .and_then(|class| class.call1((text.as_str(),)));
    match found {
        Ok(exception) => PyErr::from_value(exception),
        Err(_) => PyConnectionError::new_err(text),
    }
}
