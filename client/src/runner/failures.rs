//! The end of a run: what failed, with its last words, and how to run it again.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;

use ipbroker_client::job::{JobResult, JobStatus};

use super::{PEEK, Runner, Slot};
use crate::output::cut;

/// Failures that are told.
const TOLD: usize = 5;
/// Characters of a command or of its last words.
const SHOWN: usize = 100;
/// … and of the reason, which is ours.
const REASON: usize = 400;

/// A job that failed.
pub(super) struct Failed {
    line: u64,
    why: String,
    cmd: String,
    last: Option<String>,
}

impl Runner<'_> {
    pub(super) fn note_failure(&mut self, slot: &Slot, result: &JobResult) {
        if self.failures.len() >= TOLD {
            return;
        }
        let why = match (result.status, result.code, &result.error) {
            (JobStatus::Ok, Some(code), None) => format!("exit status {code}"),
            (_, _, Some(error)) => short(error, REASON),
            (status, ..) => status.as_str().to_owned(),
        };
        // The words of an engine on a host that does not have our directory.
        self.strange |= why.contains("cannot enter directory");
        let ran = result.started.is_some();
        let last = match (&result.stderr, &slot.err) {
            (Some(stderr), _) if !stderr.trim().is_empty() => last_line(stderr),
            (_, Some(file)) if ran => tail(file).as_deref().and_then(last_line),
            _ => None,
        };
        self.failures.push(Failed {
            line: slot.line,
            why,
            cmd: short(&slot.cmd, SHOWN),
            last,
        });
    }

    /// The first of them, and how to run them again.
    pub(super) fn tell_failures(&mut self) {
        if self.failures.is_empty() {
            return;
        }
        let unit = self.options.unit;
        let mut text = format!("{} of {} jobs failed", self.failed, self.total);
        for failed in &self.failures {
            let Failed {
                line,
                why,
                cmd,
                last,
            } = failed;
            text += &format!("\n  {unit} {line}: {why}: {cmd}");
            if let Some(last) = last {
                text += &format!("\n      {last}");
            }
        }
        let more = self.failed - self.failures.len() as u64;
        if more > 0 {
            text += &format!("\n  and {more} more");
        }
        if self.strange {
            text += "\n  where hosts do not have this directory: --wd DIR names one that they have (`~` is everybody's), --wd ... makes one for each";
        }
        if !self.options.again.is_empty() {
            text += &format!("\n  to run them again: {}", self.options.again);
        }
        eprintln!("ipclient: {text}");
    }
}

fn short(text: &str, most: usize) -> String {
    let line = printable(text)
        .split_whitespace()
        .collect::<Vec<_>>()
        .join(" ");
    cut(&line, most)
}

/// `text` without what would change the terminal: colours that a job began stay on when its line is cut, or shown alone.
fn printable(text: &str) -> String {
    let mut chars = text.chars().peekable();
    let mut plain = String::with_capacity(text.len());
    while let Some(char) = chars.next() {
        if char == '\x1b' {
            // It goes with what belongs to it: `ESC [ … m`, and `ESC ( B` of `tput sgr0`.
            match chars.next_if(|char| ['[', '('].contains(char)) {
                Some('[') => drop(chars.find(|char| ('@'..='~').contains(char))),
                Some(_) => drop(chars.next()),
                None => {}
            }
        } else if !char.is_control() || char.is_whitespace() {
            plain.push(char);
        }
    }
    plain
}

fn last_line(text: &str) -> Option<String> {
    text.lines()
        .rfind(|line| !line.trim().is_empty())
        .map(|line| short(line, SHOWN))
}

/// The end of a file, if it is here.
fn tail(path: &Path) -> Option<String> {
    let mut file = File::open(path)
        .ok()
        .filter(|file| file.metadata().is_ok_and(|meta| meta.is_file()))?;
    let size = file.metadata().ok()?.len();
    file.seek(SeekFrom::Start(size.saturating_sub(PEEK))).ok()?;
    let mut bytes = Vec::new();
    file.take(PEEK).read_to_end(&mut bytes).ok()?;
    Some(String::from_utf8_lossy(&bytes).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn last_words() {
        assert_eq!(
            last_line("one\ntwo  three\n\n").as_deref(),
            Some("two three")
        );
        assert_eq!(last_line(" \n"), None);
        assert_eq!(
            last_line("\x1b[1;31merror:\x1b(B\x1b[m no\u{8}\x07 file\x1b[").as_deref(),
            Some("error: no file")
        );
        assert_eq!(short(&"ä".repeat(200), SHOWN).chars().count(), SHOWN + 1);
    }
}
