//! `--joblog FILE`: a line for each job that ended, in GNU parallel's format, so that either can go on with it.

use std::collections::HashSet;
use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;

use ipbroker_client::job::JobResult;
use jiff::Timestamp;

use crate::failure::Failure;
use crate::locked;
use crate::runner::Slot;

const HEADER: &str = "Seq\tHost\tStarttime\tJobRuntime\tSend\tReceive\tExitval\tSignal\tCommand\n";

/// Which jobs of an earlier log are not run again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Skip {
    /// None: the log is begun anew.
    Nothing,
    /// Those that are in it.
    Logged,
    /// Those of them that ended with 0.
    Succeeded,
}

pub(crate) struct Joblog {
    file: File,
    /// Numbers of the jobs that are not run.
    pub(crate) skip: HashSet<u64>,
}

impl Joblog {
    /// Opens and locks the log, and reads it if there is something to go on with.
    pub(crate) fn open(path: &Path, skip: Skip) -> Result<Self, Failure> {
        let name = path.display();
        let problem = locked::problem("--joblog", path);
        let taken = "another `ipclient map` writes to it";
        let (mut file, regular) = locked::open("--joblog", path, taken)?;
        let mut done = HashSet::new();
        let mut whole = 0;
        if regular && skip != Skip::Nothing {
            let mut reader = BufReader::new(&file);
            let mut line = Vec::new();
            for number in 1.. {
                line.clear();
                // What was cut in the middle of a line is not in it.
                if reader.read_until(b'\n', &mut line).map_err(&problem)? == 0
                    || line.last() != Some(&b'\n')
                {
                    break;
                }
                if number > 1 {
                    let (seq, good) = read(&line).ok_or_else(|| {
                        Failure::usage(format!(
                            "{name}:{number}: not a line of a job log; nothing was submitted"
                        ))
                    })?;
                    if good || skip == Skip::Logged {
                        done.insert(seq);
                    }
                } else if !line.starts_with(b"Seq\t") {
                    return Err(Failure::usage(format!(
                        "{name}: not a job log; nothing was submitted"
                    )));
                }
                whole += line.len() as u64;
            }
        }
        if regular {
            file.set_len(whole).map_err(&problem)?;
        }
        if whole == 0 {
            file.write_all(HEADER.as_bytes()).map_err(&problem)?;
        }
        Ok(Self { file, skip: done })
    }

    /// Appends a job that ended.
    pub(crate) fn finished(&mut self, slot: &Slot, result: &JobResult) -> std::io::Result<()> {
        let started = result
            .started
            .unwrap_or_else(Timestamp::now)
            .as_microsecond();
        // Received: bytes. Who could not be run at all has no exit code; 255 is ssh's for that.
        let code = result.code.unwrap_or(255);
        let line = format!(
            "{}\t{}\t{:.3}\t{:10.3}\t0\t{}\t{}\t0\t{}\n",
            slot.line,
            result.host.as_deref().unwrap_or(":"),
            started as f64 / 1e6,
            result.elapsed().unwrap_or(0) as f64 / 1e6,
            result.output().len(),
            if code == 0 && !result.success() {
                255
            } else {
                code
            },
            slot.cmd.replace('\n', "\0"),
        );
        self.file.write_all(line.as_bytes())
    }
}

/// A line's job number, and whether it ended well.
fn read(line: &[u8]) -> Option<(u64, bool)> {
    let text = String::from_utf8_lossy(line);
    let mut columns = text.splitn(9, '\t');
    let seq = columns.next()?.parse().ok()?;
    let mut numbers = columns
        .skip(1)
        .take(6)
        .map(|column| column.trim().parse::<f64>());
    let rest: Vec<f64> = numbers.by_ref().collect::<Result<_, _>>().ok()?;
    let [_, _, _, _, code, signal] = rest[..] else {
        return None;
    };
    Some((seq, code == 0.0 && signal == 0.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parallels_lines_are_read() {
        assert_eq!(
            read(b"2\t:\t1795893988.437\t     0.026\t0\t0\t1\t0\texit\t1\n"),
            Some((2, false))
        );
        assert_eq!(
            read(b"12\t:\t1795893988.437\t     0.026\t0\t0\t0\t0\ttrue\n"),
            Some((12, true))
        );
        assert_eq!(
            read(b"3\t:\t1795893988.437\t     0.026\t0\t0\t0\t9\tkill\n"),
            Some((3, false))
        );
        assert_eq!(read(b"notes\n"), None);
    }

    #[test]
    fn what_is_logged_is_read_again() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let slot = |line| Slot {
            line,
            cmd: "echo a\tb\nc".into(),
            ..Slot::default()
        };
        let mut log = Joblog::open(&path, Skip::Nothing).unwrap();
        for (line, code) in [(3, 0), (1, 7)] {
            let result = JobResult {
                code: Some(code),
                ..JobResult::default()
            };
            log.finished(&slot(line), &result).unwrap();
        }
        assert!(Joblog::open(&path, Skip::Logged).is_err(), "it is locked");
        drop(log);
        let text = std::fs::read_to_string(&path).unwrap();
        std::fs::write(&path, text.clone() + "4\t:\t17").unwrap();
        assert_eq!(
            Joblog::open(&path, Skip::Succeeded).unwrap().skip,
            HashSet::from([3])
        );
        assert_eq!(
            Joblog::open(&path, Skip::Logged).unwrap().skip,
            HashSet::from([1, 3])
        );
        assert_eq!(std::fs::read_to_string(&path).unwrap(), text);
        std::fs::write(&path, "my notes\n").unwrap();
        assert!(Joblog::open(&path, Skip::Logged).is_err());
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "my notes\n");
        assert!(Joblog::open(&path, Skip::Nothing).unwrap().skip.is_empty());
        assert_eq!(std::fs::read_to_string(&path).unwrap(), HEADER);
    }
}
