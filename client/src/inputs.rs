//! The arguments of `ipclient map`, as GNU parallel takes them: several sources, combined or linked, split into columns.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{BufRead, BufReader, IsTerminal, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use clap::Args;
use regex_lite::Regex;

use crate::blocks::unescape;
use crate::failure::Failure;
use crate::source;

/// The words that begin a source.
pub(crate) const SIGNS: [&str; 4] = [":::", ":::+", "::::", "::::+"];

/// Where arguments come from and what is made of them.
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "Arguments")]
pub(crate) struct InputArgs {
    /// Take the arguments from the lines of FILE (`-`: standard input, as they come); may be repeated, as `::::`
    #[arg(short = 'a', long, visible_aliases = ["each-line"], value_name = "FILE")]
    arg_file: Vec<PathBuf>,
    /// Link all sources: first with first, second with second; a shorter one begins again
    #[arg(long, visible_alias = "xapply")]
    link: bool,
    /// Split each argument into columns {1}, {2}, … at this regular expression
    #[arg(short = 'C', long, value_name = "REGEX")]
    colsep: Option<Regex>,
    /// The first line of each source names it (its columns): {name} stands for the value. REGEX must be `:`
    #[arg(long, value_name = ":", value_parser = [":"])]
    header: Option<String>,
    /// Remove blanks around each argument (n: none, l: left, r: right, lr or rl: both)
    #[arg(long, value_name = "SIDES", value_parser = ["n", "l", "r", "lr", "rl"])]
    trim: Option<String>,
    /// Arguments in files end with a NUL byte instead of a line break
    #[arg(short = '0', long, conflicts_with = "delimiter")]
    null: bool,
    /// Arguments in files end with this (also \n, \t, \0)
    #[arg(short = 'd', long, value_name = "TEXT", value_parser = delimiter)]
    delimiter: Option<Delimiter>,
    /// An argument that is this one is the end of its source
    #[arg(short = 'E', value_name = "WORD", allow_hyphen_values = true)]
    end: Option<String>,
    /// Leave out empty arguments
    #[arg(short = 'r', long, visible_alias = "no-run-if-empty")]
    no_empty: bool,
    /// Run the jobs in random order
    #[arg(long)]
    pub(crate) shuf: bool,
    /// Give each job N arguments, {1} to {N}; 0: run it once for each and give it none
    #[arg(
        short = 'N',
        visible_short_alias = 'n',
        long,
        visible_alias = "max-replace-args",
        value_name = "N"
    )]
    pub(crate) max_args: Option<usize>,
    /// Give each job LINES lines of the input as arguments; with --pipe a record is so many lines
    #[arg(short = 'L', visible_short_alias = 'l', long, value_name = "LINES", value_parser = clap::value_parser!(u32).range(1..), conflicts_with_all = ["context", "many"])]
    pub(crate) max_lines: Option<u32>,
    /// Give each job as many arguments (N at most) as make all engines busy; a word with {} is repeated for each
    #[arg(short = 'X')]
    pub(crate) context: bool,
    /// Give each job as many arguments (N at most) as make all engines busy; {} stands for all of them
    #[arg(short = 'm', conflicts_with = "context")]
    pub(crate) many: bool,
    /// Give each job as many arguments (N at most) as a command line takes
    #[arg(long, conflicts_with_all = ["context", "many", "max_lines"])]
    pub(crate) xargs: bool,
}

/// What arguments end with: at least a byte.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Delimiter(Vec<u8>);

fn delimiter(text: &str) -> Result<Delimiter, String> {
    match unescape(text) {
        empty if empty.is_empty() => Err("at least a character is needed".into()),
        bytes => Ok(Delimiter(bytes)),
    }
}

/// The arguments of one job.
pub(crate) type Record = Vec<String>;

/// All records, in order.
pub(crate) struct Records {
    /// What `{name}` stands for, by place: from --header.
    pub(crate) names: Vec<String>,
    /// They come from the standard input, when they come.
    pub(crate) streaming: bool,
    /// Their end was not the end of the input: it could not be read on.
    pub(crate) cut: Arc<AtomicBool>,
    pub(crate) records: Box<dyn Iterator<Item = Record> + Send>,
}

enum Source {
    Words(Vec<String>),
    File(PathBuf),
}

/// A source, and whether it is linked to the one before.
type Linked = (Source, bool);

impl InputArgs {
    /// The records that `-a` and `data` (what follows the command, from its first sign on) stand for.
    pub(crate) fn records(&self, data: Vec<OsString>) -> Result<Records, Failure> {
        let mut sources: Vec<Linked> = self
            .arg_file
            .iter()
            .map(|file| (Source::File(file.clone()), false))
            .collect();
        sources.extend(parse(data)?);
        if sources.is_empty() {
            if std::io::stdin().is_terminal() {
                return Err(Failure::usage(
                    "no arguments: add `::: ARGUMENT...` or -a FILE, or send them to the standard input (see `ipclient map --help`)",
                ));
            }
            sources.push((Source::File("-".into()), false));
        }
        let stdin =
            |source: &Linked| matches!(&source.0, Source::File(file) if file == Path::new("-"));
        if sources.iter().filter(|source| stdin(source)).count() > 1 {
            return Err(Failure::usage(
                "the standard input can be read once only: two sources name `-`",
            ));
        }
        if self.header.is_none()
            && let [source] = &sources[..]
            && stdin(source)
        {
            let this = self.clone();
            // What came before has been run already.
            let cut = Arc::new(AtomicBool::new(false));
            let end = cut.clone();
            let lines = self.lines(std::io::stdin()).map_while(move |line| {
                line.inspect_err(|why| {
                    eprintln!("ipclient: stdin: {why}: what follows was not run");
                    end.store(true, Ordering::Relaxed);
                })
                .ok()
            });
            return Ok(Records {
                cut,
                names: Vec::new(),
                streaming: true,
                records: Box::new(lines.map(move |line| this.columns(&line))),
            });
        }
        let (mut names, mut columns) = (Vec::new(), Vec::new());
        for (source, linked) in sources {
            let mut records = self.read(source)?.into_iter();
            if self.header.is_some() {
                names.extend(records.next().unwrap_or_default());
            }
            columns.push((
                records.collect(),
                linked || self.link && !columns.is_empty(),
            ));
        }
        Ok(Records {
            names,
            streaming: false,
            cut: Arc::default(),
            records: Box::new(combine(columns, self.link)?),
        })
    }

    fn read(&self, source: Source) -> Result<Vec<Record>, Failure> {
        let path = match source {
            Source::Words(words) => {
                let wanted = |word: &&String| !(self.no_empty && word.is_empty());
                let words = words
                    .iter()
                    .take_while(|word| self.end.as_ref() != Some(*word));
                let words = words.filter(wanted);
                return Ok(words.map(|word| self.columns(word)).collect());
            }
            Source::File(path) => path,
        };
        let name = source::name(Some(&path));
        let input: Box<dyn Read + Send> = if source::is_stream(Some(&path)) {
            Box::new(std::io::stdin())
        } else {
            let problem = |error| Failure::usage(format!("{name}: {error}"));
            let file = File::open(&path).map_err(problem)?;
            // A directory can be opened, but not read.
            if file.metadata().map_err(problem)?.is_dir() {
                return Err(problem(std::io::ErrorKind::IsADirectory.into()));
            }
            Box::new(file)
        };
        let lines = self.lines(input).map(|line| match line {
            Ok(line) => Ok(self.columns(&line)),
            Err(why) => Err(Failure::usage(format!("{name}: {why}"))),
        });
        lines.collect()
    }

    /// What a file holds, one by one, and why not more.
    fn lines<R: Read + Send + 'static>(
        &self,
        input: R,
    ) -> impl Iterator<Item = Result<String, String>> + Send + use<R> {
        let separator = match &self.delimiter {
            _ if self.null => vec![0],
            Some(Delimiter(bytes)) => bytes.clone(),
            None => vec![b'\n'],
        };
        let (end, no_empty) = (self.end.clone(), self.no_empty);
        let mut input = BufReader::with_capacity(1 << 17, input);
        let mut number = 0;
        let next = move || loop {
            let mut line = Vec::new();
            number += 1;
            let last = *separator.last().unwrap_or(&b'\n');
            loop {
                match input.read_until(last, &mut line) {
                    Ok(0) if line.is_empty() => return None,
                    Ok(0) => break,
                    Ok(_) if line.ends_with(&separator) => {
                        line.truncate(line.len() - separator.len());
                        break;
                    }
                    Ok(_) => {}
                    Err(error) => return Some(Err(error.to_string())),
                }
            }
            let Ok(line) = String::from_utf8(line) else {
                return Some(Err(format!("line {number} is not UTF-8 text")));
            };
            if end.as_ref() == Some(&line) {
                return None;
            }
            if !(no_empty && line.is_empty()) {
                return Some(Ok(line));
            }
        };
        // The end stays the end.
        std::iter::from_fn(next).fuse()
    }

    fn columns(&self, line: &str) -> Record {
        let trim = |value: &str| {
            let mut value = value;
            let sides = self.trim.as_deref().unwrap_or("n");
            if sides.contains('l') {
                value = value.trim_start();
            }
            if sides.contains('r') {
                value = value.trim_end();
            }
            value.to_owned()
        };
        match &self.colsep {
            None => vec![trim(line)],
            Some(colsep) => colsep.split(line).map(trim).collect(),
        }
    }
}

/// The sources that follow the command.
fn parse(words: Vec<OsString>) -> Result<Vec<Linked>, Failure> {
    let mut sources: Vec<Linked> = Vec::new();
    let mut sign = "";
    for word in words {
        if let Some(next) = SIGNS.iter().find(|sign| word == OsStr::new(sign)) {
            sign = next;
            if sign.starts_with("::::") {
                continue;
            }
            sources.push((Source::Words(Vec::new()), sign == ":::+"));
            continue;
        }
        let linked = sign == "::::+";
        match sources.last_mut() {
            _ if sign.starts_with("::::") => sources.push((Source::File(word.into()), linked)),
            Some((Source::Words(words), _)) => words.push(word.into_string().map_err(|word| {
                Failure::usage(format!("argument {} is not UTF-8", word.to_string_lossy()))
            })?),
            _ => {}
        }
    }
    Ok(sources)
}

/// Every value of a source with every one of the others, the last changing fastest; linked ones step together: as far as
/// the shortest goes, or, with `wrap`, as far as the longest.
fn combine(
    sources: Vec<(Vec<Record>, bool)>,
    wrap: bool,
) -> Result<impl Iterator<Item = Record> + Send, Failure> {
    let mut groups: Vec<Vec<Record>> = Vec::new();
    let some = sources.iter().any(|(values, _)| !values.is_empty());
    for (mut values, linked) in sources {
        // Beside others, a source without a value has an empty one.
        if some && values.is_empty() {
            values.push(vec![String::new()]);
        }
        match groups.last_mut().filter(|_| linked) {
            None => groups.push(values),
            Some(before) => {
                let length = if wrap && !before.is_empty() && !values.is_empty() {
                    before.len().max(values.len())
                } else {
                    before.len().min(values.len())
                };
                let both = |at: usize| {
                    [&before[at % before.len()][..], &values[at % values.len()]].concat()
                };
                *before = (0..length).map(both).collect();
            }
        }
    }
    let count = groups
        .iter()
        .try_fold(1usize, |count, group| count.checked_mul(group.len()))
        .ok_or_else(|| {
            Failure::usage("these are more combinations of arguments than can be counted")
        })?;
    Ok((0..count).map(move |mut at| {
        let mut places = vec![0; groups.len()];
        for (place, group) in places.iter_mut().zip(&groups).rev() {
            *place = at % group.len();
            at /= group.len();
        }
        let values = places
            .iter()
            .zip(&groups)
            .flat_map(|(at, group)| &group[*at]);
        values.cloned().collect()
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn records(args: &InputArgs, words: &[&str]) -> Vec<String> {
        let records = args
            .records(words.iter().map(Into::into).collect())
            .unwrap();
        records.records.map(|record| record.join(" ")).collect()
    }

    #[test]
    fn sources_are_combined_or_linked() {
        let plain = InputArgs::default();
        let of = |words: &[&str]| records(&plain, words);
        assert_eq!(
            of(&[":::", "a", "b", ":::", "1", "2"]),
            ["a 1", "a 2", "b 1", "b 2"]
        );
        assert_eq!(
            of(&[":::", "a", "b", ":::+", "1", "2", "3"]),
            ["a 1", "b 2"]
        );
        assert_eq!(
            of(&[":::", "a", "b", ":::+", "c", ":::", "1", "2"]),
            ["a c 1", "a c 2"]
        );
        assert!(of(&[":::", ":::"]).is_empty() && of(&[":::"]).is_empty());
        assert_eq!(of(&[":::", "a", ":::", ":::+", "b"]), ["a  b"]);
        let linked = InputArgs {
            link: true,
            ..InputArgs::default()
        };
        assert_eq!(
            records(&linked, &[":::", "a", "b", "c", ":::", "1", "2"]),
            ["a 1", "b 2", "c 1"]
        );
    }

    #[test]
    fn files_are_read_as_they_are_said_to_be_written() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        std::fs::write(&path, "a, b\n\n c,d\nEND\ne,f").unwrap();
        let file = path.to_str().unwrap();
        let of = |args: InputArgs| records(&args, &["::::", file]);
        assert_eq!(of(InputArgs::default()), ["a, b", "", " c,d", "END", "e,f"]);
        let columns = InputArgs {
            colsep: Some(Regex::new(", *").unwrap()),
            trim: Some("lr".into()),
            end: Some("END".into()),
            no_empty: true,
            ..InputArgs::default()
        };
        assert_eq!(of(columns), ["a b", "c d"]);
        let other = InputArgs {
            delimiter: Some(delimiter(",").unwrap()),
            ..InputArgs::default()
        };
        assert_eq!(of(other), ["a", " b\n\n c", "d\nEND\ne", "f"]);
        let other = InputArgs {
            delimiter: Some(delimiter("\\nEND\\n").unwrap()),
            ..InputArgs::default()
        };
        assert_eq!(of(other), ["a, b\n\n c,d", "e,f"]);
        let header = InputArgs {
            header: Some(":".into()),
            colsep: Some(Regex::new(",").unwrap()),
            ..InputArgs::default()
        };
        let words = ["::::", file, ":::", "x", "1"].map(OsString::from).to_vec();
        let named = header.records(words).unwrap();
        assert_eq!(named.names, ["a", " b", "x"]);
        assert_eq!(named.records.count(), 4);
    }

    #[test]
    fn what_cannot_be_read_is_named() {
        let args = InputArgs::default();
        let failure = |words: &[&str]| {
            let words = words.iter().map(OsString::from).collect();
            args.records(words).map(|_| ()).unwrap_err().to_string()
        };
        assert!(failure(&["::::", "/no/such/file"]).starts_with("/no/such/file: "));
        assert!(failure(&["::::", "/"]).starts_with("/: "));
        assert!(failure(&["::::", "-", "-"]).contains("once only"));
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        std::fs::write(&path, b"a\n\xff\n").unwrap();
        assert!(failure(&["::::", path.to_str().unwrap()]).ends_with("line 2 is not UTF-8 text"));
    }
}
