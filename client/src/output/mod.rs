//! What people and programs read.

pub(crate) mod jobs;
pub(crate) mod json;
pub(crate) mod progress;
pub(crate) mod table;

use std::borrow::Cow;
use std::fmt::Write as _;
use std::io::{ErrorKind, IsTerminal, Result, Write};

use ipbroker_protocol::kind::plain;
use jiff::Timestamp;
use jiff::tz::TimeZone;

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

/// A moment, in seconds since 1970, as the clocks here show it.
pub(crate) fn clock(time: f64, format: &str) -> String {
    Timestamp::from_nanosecond((time * 1e9) as i128).map_or_else(
        |_| "-".to_owned(),
        |time| {
            time.to_zoned(TimeZone::system())
                .strftime(format)
                .to_string()
        },
    )
}

/// The beginning of a line, `most` characters of it.
pub(crate) fn cut(line: &str, most: usize) -> String {
    match line.char_indices().nth(most) {
        Some((end, _)) => format!("{}…", &line[..end]),
        None => line.to_owned(),
    }
}

/// A text in one line that cannot drive the terminal on which it is shown: control characters, and those that turn the
/// direction of what follows, are written as `\n` and `\x1b`.
pub(crate) fn shown(text: &str) -> Cow<'_, str> {
    let drives = |c: char| plain(c) != c && c != '\t';
    if !text.contains(drives) {
        return text.into();
    }
    let mut seen = String::with_capacity(text.len() + 8);
    for c in text.chars() {
        match c {
            '\n' => seen.push_str("\\n"),
            // Into memory: it cannot fail.
            c if drives(c) => drop(write!(seen, "\\x{:02x}", u32::from(c))),
            c => seen.push(c),
        }
    }
    seen.into()
}

/// A text as it is where a program reads it, and as [`shown`] on a terminal.
pub(crate) fn shown_on<'a>(stream: &impl IsTerminal, text: &'a str) -> Cow<'a, str> {
    match stream.is_terminal() {
        true => shown(text),
        false => text.into(),
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
