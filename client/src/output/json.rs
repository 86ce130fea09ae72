//! JSON on the standard output.

use std::io::Write;
use std::process::ExitCode;

use serde::Serialize;

use crate::commands::Outcome;

/// One line of JSON.
pub(crate) fn print<T: Serialize + ?Sized>(value: &T) -> Outcome {
    let mut text = serde_json::to_vec(value).map_err(std::io::Error::from)?;
    text.push(b'\n');
    std::io::stdout().write_all(&text)?;
    Ok(ExitCode::SUCCESS)
}
