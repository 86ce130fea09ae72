//! What people and programs read.

pub(crate) mod jobs;
pub(crate) mod json;
pub(crate) mod progress;
pub(crate) mod table;

use std::io::{ErrorKind, Result, Write};

/// `1 engine`, `3 engines`.
pub(crate) fn plural(count: u64, word: &str) -> String {
    if count == 1 {
        format!("1 {word}")
    } else {
        format!("{count} {word}s")
    }
}

/// `1 job waits`, `3 jobs wait`.
pub(crate) fn jobs_wait(count: u64) -> String {
    let verb = if count == 1 { "waits" } else { "wait" };
    format!("{} {verb}", plural(count, "job"))
}

/// The beginning of a line, `most` characters of it.
pub(crate) fn cut(line: &str, most: usize) -> String {
    match line.char_indices().nth(most) {
        Some((end, _)) => format!("{}…", &line[..end]),
        None => line.to_owned(),
    }
}

/// Prints a text at once; `false`: whoever reads has seen enough.
pub(crate) fn print(text: &str) -> Result<bool> {
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(false),
        printed => printed.map(|()| true),
    }
}
