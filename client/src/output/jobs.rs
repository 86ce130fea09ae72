//! What the jobs of `ipclient map` print, and where it goes.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::io::{self, Write};
use std::path::Path;

use ipbroker_client::job::{JobResult, JobStatus};
use serde_json::Value;

use super::{shown, shown_on};
use crate::joblog::Joblog;
use crate::runner::{Printer, Slot};
use crate::template::{Template, Values};

/// What is to be written while the progress bar is out of the way: to the standard output, or to the standard error.
#[derive(Default)]
struct Pending(Vec<(bool, Vec<u8>)>);

impl Pending {
    fn output(&mut self, bytes: Vec<u8>) {
        self.0.push((false, bytes));
    }

    fn errors(&mut self, bytes: impl Into<Vec<u8>>) {
        self.0.push((true, bytes.into()));
    }

    fn write(&mut self) -> io::Result<()> {
        for (errors, bytes) in self.0.drain(..) {
            if errors {
                let _ = io::stderr().write_all(&bytes);
            } else {
                io::stdout().write_all(&bytes)?;
            }
        }
        io::stdout().flush()
    }

    /// What the output itself does not say.
    fn complain(&mut self, slot: &Slot, result: &JobResult) {
        let (line, cmd) = (slot.line, shown(&slot.cmd));
        if result.truncated {
            self.errors(format!(
                "ipclient: job {line}: its output is longer than --max-output: {cmd}\n"
            ));
        }
        if result.status != JobStatus::Ok {
            let why = shown(result.error.as_deref().unwrap_or(result.status.as_str()));
            self.errors(format!("ipclient: job {line}: {why}: {cmd}\n"));
        }
    }
}

/// What jobs print, to where they would have printed it.
pub(crate) struct Outputs {
    pending: Pending,
    /// What stands before each line.
    tag: Option<Template>,
    /// The command goes before, on stdout.
    verbose: bool,
    /// The same on stderr.
    trace: bool,
    /// Jobs that have printed something and run, by their places.
    live: HashMap<u64, Live>,
}

/// What a job that runs has printed, of its output and of its errors.
#[derive(Default)]
struct Live {
    /// Bytes that were passed on.
    passed: [usize; 2],
    /// The line that it has begun.
    begun: [Vec<u8>; 2],
}

impl Outputs {
    pub(crate) fn new(tag: Option<Template>, verbose: bool, trace: bool) -> Self {
        let pending = Pending::default();
        Self {
            pending,
            tag,
            verbose,
            trace,
            live: HashMap::new(),
        }
    }

    fn begins(&mut self, slot: &Slot, tags: &[Option<String>; 2]) {
        if self.verbose {
            let command = format!("{}\n", shown_on(&io::stdout(), &slot.cmd));
            self.pending
                .output(tagged(tags[0].as_deref(), command.as_bytes()));
        }
        if self.trace {
            let command = shown_on(&io::stderr(), &slot.cmd);
            self.pending.errors(format!("{command}\n"));
        }
    }

    /// What is put before a job's lines, on stdout and on stderr.
    fn tags(&self, slot: &Slot, result: &JobResult) -> [Option<String>; 2] {
        let tag = self.tag.as_ref().map(|tag| fill(tag, slot, result));
        let tag = tag.as_deref();
        [
            tag.map(|tag| shown_on(&io::stdout(), tag).into()),
            tag.map(|tag| shown_on(&io::stderr(), tag).into()),
        ]
    }
}

/// The arguments of a job, as its line has them.
fn arguments(slot: &Slot) -> Vec<String> {
    let Ok(Value::Object(mut line)) = serde_json::from_str(&slot.text) else {
        return Vec::new();
    };
    let words = match (line.remove("arg"), line.remove("args")) {
        (Some(word), _) => vec![word],
        (None, Some(Value::Array(words))) => words,
        _ => Vec::new(),
    };
    let text = |word| match word {
        Value::String(word) => word,
        other => other.to_string(),
    };
    words.into_iter().map(text).collect()
}

fn fill(template: &Template, slot: &Slot, result: &JobResult) -> String {
    template.expand(&Values {
        arguments: &arguments(slot),
        number: slot.line,
        total: None,
        slot: Some(result.engine_id.map_or(1, |id| id as u64 + 1)),
        quote: false,
    })
}

/// `text` with `tag` and a tab before each of its lines.
fn tagged(tag: Option<&str>, text: &[u8]) -> Vec<u8> {
    let Some(tag) = tag else {
        return text.to_vec();
    };
    let lines = text.split_inclusive(|&byte| byte == b'\n');
    lines
        .flat_map(|line| [tag.as_bytes(), b"\t", line].concat())
        .collect()
}

impl Printer for Outputs {
    fn finished(&mut self, slot: &Slot, result: &JobResult) -> io::Result<()> {
        let tags = self.tags(slot, result);
        let passed = match self.live.remove(&slot.index) {
            Some(live) => live.passed,
            None => {
                self.begins(slot, &tags);
                [0; 2]
            }
        };
        let rest = |of: usize, text: &[u8]| {
            tagged(
                tags[of].as_deref(),
                text.get(passed[of]..).unwrap_or_default(),
            )
        };
        self.pending.output(rest(0, result.output()));
        self.pending.errors(rest(1, result.errors()));
        self.pending.complain(slot, result);
        Ok(())
    }

    fn printed(&mut self, slot: &Slot, errors: bool, anew: bool, text: &str) -> io::Result<()> {
        let tags = self.tags(slot, &JobResult::default());
        if anew || !self.live.contains_key(&slot.index) {
            self.live.insert(slot.index, Live::default());
            self.begins(slot, &tags);
        }
        let (live, of) = (
            self.live.entry(slot.index).or_default(),
            usize::from(errors),
        );
        live.begun[of].extend_from_slice(text.as_bytes());
        let end = live.begun[of].iter().rposition(|byte| *byte == b'\n');
        let lines: Vec<u8> = live.begun[of]
            .drain(..end.map_or(0, |end| end + 1))
            .collect();
        live.passed[of] += lines.len();
        if errors {
            self.pending.errors(tagged(tags[1].as_deref(), &lines));
        } else {
            self.pending.output(tagged(tags[0].as_deref(), &lines));
        }
        Ok(())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.pending.write()
    }

    fn shares_terminal(&self) -> bool {
        true
    }
}

/// Bytes of a file's name on Linux.
const NAME_LONGEST: usize = 255;

/// `--results`: the output of each job in files of its own.
pub(crate) struct Directory {
    pending: Pending,
    name: Template,
    headers: Vec<String>,
}

impl Directory {
    pub(crate) fn new(name: Template, headers: &[String]) -> Self {
        let headers = headers.to_vec();
        let pending = Pending::default();
        Self {
            pending,
            name,
            headers,
        }
    }
}

/// What is too long for a name is cut, and the job's number tells it from others.
fn file_name(mut value: String, line: u64) -> String {
    let number = format!("~{line}");
    if value.len() > NAME_LONGEST {
        let most = NAME_LONGEST - number.len();
        let end = (0..=most).rev().find(|&end| value.is_char_boundary(end));
        value.truncate(end.unwrap_or(0));
        value += &number;
    }
    value
}

impl Printer for Directory {
    fn finished(&mut self, slot: &Slot, result: &JobResult) -> io::Result<()> {
        let mut name = fill(&self.name, slot, result);
        let plain = self.name.is_plain();
        if plain {
            let values = arguments(slot);
            for (place, value) in (1..).zip(&values) {
                let number = place.to_string();
                let header = self.headers.get(place - 1).unwrap_or(&number);
                // As GNU parallel writes what cannot be a name.
                let value = value
                    .replace('\\', "\\\\")
                    .replace('/', "\\_")
                    .replace('\0', "\\0")
                    .replace('\t', "\\t");
                name = format!(
                    "{name}/{header}/{}",
                    if value.is_empty() {
                        "\\0".into()
                    } else {
                        file_name(value, slot.line)
                    }
                );
            }
            if values.is_empty() {
                name = format!("{name}/{}", slot.line);
            }
        }
        let directory = plain || name.ends_with('/');
        let file = |of: &str| match (directory, of) {
            (true, _) => format!("{}/{of}", name.trim_end_matches('/')),
            (false, "stdout") => name.clone(),
            (false, "stderr") => format!("{name}.err"),
            (false, _) => format!("{name}.{of}"),
        };
        for (of, text) in [
            ("stdout", result.output()),
            ("stderr", result.errors()),
            ("seq", slot.line.to_string().as_bytes()),
        ] {
            let path = file(of);
            let write = || {
                fs::create_dir_all(Path::new(&path).parent().unwrap_or(Path::new(".")))?;
                fs::write(&path, text)
            };
            write().map_err(|error| io::Error::new(error.kind(), format!("{path}: {error}")))?;
        }
        self.pending.complain(slot, result);
        Ok(())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.pending.write()
    }

    fn shares_terminal(&self) -> bool {
        true
    }
}

/// `--joblog`: written as jobs end, in whatever order they are printed.
pub(crate) struct Logged {
    pub(crate) inner: Box<dyn Printer>,
    pub(crate) log: Joblog,
}

impl Printer for Logged {
    fn finished(&mut self, slot: &Slot, result: &JobResult) -> io::Result<()> {
        // What was stopped has not ended: --resume runs it.
        if result.status != JobStatus::Aborted {
            self.log.finished(slot, result)?;
        }
        self.inner.finished(slot, result)
    }

    fn printed(&mut self, slot: &Slot, errors: bool, anew: bool, text: &str) -> io::Result<()> {
        self.inner.printed(slot, errors, anew, text)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }

    fn end(&mut self) -> io::Result<()> {
        self.inner.end()
    }

    fn shares_terminal(&self) -> bool {
        self.inner.shares_terminal()
    }
}

/// Holds back what comes before its turn.
pub(crate) struct Ordered {
    inner: Box<dyn Printer>,
    next: u64,
    early: BTreeMap<u64, Early>,
}

/// What a job has printed before its turn, while it ran, and how it ended.
#[derive(Default)]
struct Early {
    printed: Vec<(Slot, bool, bool, String)>,
    ended: Option<(Slot, JobResult)>,
}

impl Ordered {
    pub(crate) fn new(inner: Box<dyn Printer>) -> Self {
        let (next, early) = (0, BTreeMap::new());
        Self { inner, next, early }
    }

    /// Prints what was held back of a job; whether it has ended.
    fn print(&mut self, early: Early) -> io::Result<bool> {
        for (slot, errors, anew, text) in early.printed {
            self.inner.printed(&slot, errors, anew, &text)?;
        }
        match early.ended {
            None => Ok(false),
            Some((slot, result)) => self.inner.finished(&slot, &result).map(|()| true),
        }
    }
}

impl Printer for Ordered {
    fn finished(&mut self, slot: &Slot, result: &JobResult) -> io::Result<()> {
        if slot.index != self.next {
            let early = self.early.entry(slot.index).or_default();
            early.ended = Some((slot.clone(), result.clone()));
            return Ok(());
        }
        self.inner.finished(slot, result)?;
        self.next += 1;
        while let Some(early) = self.early.remove(&self.next)
            && self.print(early)?
        {
            self.next += 1;
        }
        Ok(())
    }

    fn printed(&mut self, slot: &Slot, errors: bool, anew: bool, text: &str) -> io::Result<()> {
        if slot.index == self.next {
            return self.inner.printed(slot, errors, anew, text);
        }
        let early = self.early.entry(slot.index).or_default();
        early
            .printed
            .push((slot.clone(), errors, anew, text.to_owned()));
        Ok(())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.inner.flush()
    }

    fn end(&mut self) -> std::io::Result<()> {
        // After an interruption there are gaps: what finished is printed all the same.
        for early in std::mem::take(&mut self.early).into_values() {
            self.print(early)?;
        }
        self.inner.end()
    }

    fn shares_terminal(&self) -> bool {
        self.inner.shares_terminal()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::{Arc, Mutex};

    #[derive(Default, Clone)]
    struct Seen(Arc<Mutex<Vec<u64>>>);

    impl Printer for Seen {
        fn finished(&mut self, slot: &Slot, _: &JobResult) -> io::Result<()> {
            self.0.lock().unwrap().push(slot.index);
            Ok(())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
        fn shares_terminal(&self) -> bool {
            false
        }
    }

    fn slot(index: u64) -> Slot {
        Slot {
            index,
            line: index + 1,
            ..Slot::default()
        }
    }

    #[test]
    fn order_is_kept() {
        let seen = Seen::default();
        let mut ordered = Ordered::new(Box::new(seen.clone()));
        for index in [2, 0, 3, 1, 5, 7] {
            ordered
                .finished(&slot(index), &JobResult::default())
                .unwrap();
        }
        ordered.end().unwrap();
        assert_eq!(*seen.0.lock().unwrap(), [0, 1, 2, 3, 5, 7]);
    }

    #[test]
    fn each_line_is_tagged() {
        assert_eq!(tagged(Some("a 1"), b"x\n\ny"), b"a 1\tx\na 1\t\na 1\ty");
        assert_eq!(tagged(None, b"x"), b"x");
        assert_eq!(tagged(Some("a"), b""), b"");
    }
}
