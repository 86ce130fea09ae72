//! `--results FILE`: result lines are appended as jobs end, and say the next time what need not be run again.
//!
//! A job is known again by its line: the object without its `result`. Of several lines that are the same each is a job of
//! its own, a *copy*; the result of a copy says which one it is. The last result of a copy counts. The file is locked as
//! long as the run lasts, written a whole line at a time, and never shortened but for the rest of a line that was cut.

use std::collections::HashMap;
use std::fs::File;
use std::io::{BufRead, BufReader, Seek, SeekFrom, Write};
use std::path::Path;

use clap::ValueEnum;
use ipbroker_client::Client;
use ipbroker_client::job::{Condition, Graph, Job};
use serde_json::Value;
use sha2::{Digest, Sha256};

use crate::failure::Failure;
use crate::locked;

/// Which of the jobs that have a result are run again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub(crate) enum Rerun {
    /// Those that did not end with code 0
    #[default]
    Failed,
    /// Those that ended with code 0
    Ok,
    /// All
    All,
    /// None: only jobs without a result are run
    None,
}

/// What a line says, whatever blanks are between its words.
type Identity = [u8; 16];

/// How a job ended in a run before.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Past {
    ok: bool,
    host: Option<String>,
}

/// What becomes of a job in this run.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Next {
    /// It is run, without the dependencies that are met already.
    Run,
    /// It has its result.
    Done,
    /// What it depends on ended otherwise than it needs, and is not run again.
    Impossible(String),
}

/// The results of earlier runs, and what this one makes of them.
pub(crate) struct Resume {
    file: File,
    rerun: Rerun,
    past: HashMap<Identity, Vec<Option<Past>>>,
    /// How many lines of the file of jobs are the same; nothing for a stream.
    copies: HashMap<Identity, u32>,
    seen: HashMap<Identity, u32>,
    /// Jobs with ids that are not run in this run.
    settled: HashMap<String, Past>,
    /// Whose jobs were the last: the client that was killed, if one was.
    last: Option<String>,
    /// Jobs that are not run again, and those of them that failed.
    pub(crate) done: u64,
    pub(crate) failed: u64,
}

impl Resume {
    /// Opens and locks the results, mends their end, and reads them. `jobs`: all there are, unless they come as a stream.
    pub(crate) fn open(path: &Path, rerun: Rerun, jobs: Option<&[Job]>) -> Result<Self, Failure> {
        let problem = locked::problem("--results", path);
        let taken =
            "another `ipclient run` writes to it: wait until it has ended, or name another file";
        let (mut file, regular) = locked::open("--results", path, taken)?;
        if !regular {
            return Err(problem(std::io::Error::other("not a regular file")));
        }
        let mut copies = HashMap::new();
        for job in jobs.unwrap_or_default() {
            *copies.entry(identity(&job.text)).or_default() += 1;
        }
        let mut resume = Self {
            file: file.try_clone().map_err(&problem)?,
            rerun,
            past: HashMap::new(),
            copies,
            seen: HashMap::new(),
            settled: HashMap::new(),
            last: None,
            done: 0,
            failed: 0,
        };
        resume.read(&mut file, path)?;
        Ok(resume)
    }

    /// Says what is done already.
    pub(crate) fn tell(&self, running: usize) {
        if self.done > 0 {
            let failed = match self.failed {
                0 => String::new(),
                failed => format!(", {failed} of them failed (see --rerun)"),
            };
            eprintln!(
                "ipclient: {} of {} jobs have their results already{failed}",
                self.done,
                self.done + running as u64
            );
        }
    }

    /// Stops what an earlier run has left, which was killed a moment ago: the lock says that it is gone.
    pub(crate) fn stop_earlier(&self, client: &Client) {
        if let Some(session) = self
            .last
            .as_deref()
            .filter(|last| *last != client.session_id())
        {
            // Without it the controller does so when it misses that client.
            let _ = client.abort_session(session);
        }
    }

    /// Where results are appended.
    pub(crate) fn file(&self) -> std::io::Result<File> {
        self.file.try_clone()
    }

    fn read(&mut self, file: &mut File, path: &Path) -> Result<(), Failure> {
        let name = path.display();
        let problem = locked::problem("--results", path);
        let mut reader = BufReader::with_capacity(1 << 17, &*file);
        let (mut whole, mut number, mut line) = (0u64, 0u64, Vec::new());
        loop {
            line.clear();
            if reader.read_until(b'\n', &mut line).map_err(&problem)? == 0 {
                return Ok(());
            }
            number += 1;
            let ended = line.ends_with(b"\n");
            let known = line.trim_ascii().is_empty() && ended || self.take(&line);
            if known && ended {
                whole += line.len() as u64;
                continue;
            }
            if ended {
                return Err(Failure::usage(format!(
                    "{name}:{number}: not a result line: is this the file of an earlier `--results`? (nothing was submitted)"
                )));
            }
            drop(reader);
            if known {
                // An editor left out the last line break.
                return file.write_all(b"\n").map_err(&problem);
            }
            // A run was killed, or the machine stopped, in the middle of this line.
            let cut = line.first() == Some(&b'{') || line.iter().all(|byte| *byte == 0);
            if !cut {
                return Err(Failure::usage(format!(
                    "{name}:{number}: neither a result line nor the beginning of one: is this the file of an earlier `--results`?"
                )));
            }
            eprintln!(
                "ipclient: {name}:{number}: this line was cut: it is removed, and its job is run again"
            );
            file.set_len(whole).map_err(&problem)?;
            return file.seek(SeekFrom::End(0)).map(drop).map_err(&problem);
        }
    }

    /// Notes a result line; false if it is none.
    fn take(&mut self, line: &[u8]) -> bool {
        let Ok(Value::Object(mut object)) = serde_json::from_slice(line) else {
            return false;
        };
        let Some(Value::Object(result)) = object.shift_remove("result") else {
            return false;
        };
        let session = result
            .get("msg_id")
            .and_then(Value::as_str)
            .and_then(|id| id.rsplit_once('_'));
        self.last = session.map(|(session, _)| session.to_owned());
        let past = Past {
            ok: result.get("status").and_then(Value::as_str) == Some("ok")
                && result.get("code").and_then(Value::as_i64) == Some(0),
            host: result
                .get("host")
                .and_then(Value::as_str)
                .map(str::to_owned),
        };
        let identity = hash(&Value::Object(object));
        let copies = self.copies.get(&identity).copied().unwrap_or(1) as usize;
        let known = self.past.entry(identity).or_default();
        let at = match result.get("copy").and_then(Value::as_u64) {
            Some(copy) => (copy as usize).saturating_sub(1),
            // Not written with this file of jobs: it is the next one's.
            None => (0..copies)
                .find(|at| known.get(*at).is_none_or(Option::is_none))
                .filter(|_| copies > 1)
                .unwrap_or(0),
        };
        // More copies than a file has lines are nobody's.
        if at < 1 << 24 {
            if known.len() <= at {
                known.resize(at + 1, None);
            }
            known[at] = Some(past);
        }
        true
    }

    /// What becomes of the next job; those that it depends on have been asked for before.
    pub(crate) fn next(&mut self, job: &mut Job) -> Next {
        let identity = identity(&job.text);
        let seen = self.seen.entry(identity).or_default();
        *seen += 1;
        let copy = *seen;
        if copy > 1 || self.copies.get(&identity).is_some_and(|copies| *copies > 1) {
            job.copy = Some(copy);
        }
        let past = self
            .past
            .get(&identity)
            .and_then(|copies| copies.get(copy as usize - 1).cloned().flatten());
        // What a failed job has left is not what it creates: its host may have had no time to say so.
        if past.as_ref().is_some_and(|past| !past.ok) {
            job.creates.clear();
        }
        if let Some(past) = past
            && !self.again(past.ok)
        {
            self.done += 1;
            self.failed += u64::from(!past.ok);
            if let Some(id) = &job.id {
                self.settled.insert(id.clone(), past);
            }
            return Next::Done;
        }
        match self.meet(job) {
            Ok(()) => Next::Run,
            Err(error) => {
                if let Some(id) = &job.id {
                    let past = Past {
                        ok: false,
                        host: None,
                    };
                    self.settled.insert(id.clone(), past);
                }
                Next::Impossible(error)
            }
        }
    }

    fn again(&self, ok: bool) -> bool {
        match self.rerun {
            Rerun::Failed => !ok,
            Rerun::Ok => ok,
            Rerun::All => true,
            Rerun::None => false,
        }
    }

    /// Takes the dependencies out of a job that are settled already.
    fn meet(&self, job: &mut Job) -> Result<(), String> {
        let (on, any) = (job.placement.on, job.placement.any);
        let good = |past: &Past| match on {
            Condition::Success => past.ok,
            Condition::Failure => !past.ok,
            Condition::Always => true,
        };
        let mut hosts = Vec::new();
        for (key, ids) in [
            ("after", &mut job.placement.after),
            ("follow", &mut job.placement.follow),
        ] {
            let settled: Vec<(&String, &Past)> = ids
                .iter()
                .filter_map(|id| Some((id, self.settled.get(id)?)))
                .collect();
            let bad = settled.iter().find(|(_, past)| !good(past));
            let met = any && settled.iter().any(|(_, past)| good(past));
            if let Some((id, past)) = bad
                && (!any || !met && settled.len() == ids.len())
            {
                let how = if past.ok { "succeeded" } else { "failed" };
                return Err(format!(
                    "ImpossibleDependency: \"{key}\" names {id:?}, which {how} and is not run again"
                ));
            }
            if key == "follow" {
                let known = settled.iter().filter_map(|(_, past)| past.host.clone());
                hosts.extend(known);
            }
            ids.retain(|id| !met && !self.settled.contains_key(id));
        }
        // Its engine may be gone, but what it left is on its host.
        if job.placement.prefer.is_empty() {
            job.placement.prefer = hosts;
        }
        Ok(())
    }

    /// Takes out of a file's jobs what need not be run; what cannot be run comes with the reason.
    pub(crate) fn filter(&mut self, graph: &Graph, mut jobs: Vec<Job>) -> Jobs {
        let mut next: Vec<Option<Next>> = jobs.iter().map(|_| None).collect();
        // Copies have no ids and the same dependencies: they are of one level, in the order of their lines.
        for at in graph.levels.iter().flatten().copied() {
            next[at] = Some(self.next(&mut jobs[at]));
        }
        let mut kept = Jobs::default();
        for (mut job, next) in jobs.into_iter().zip(next) {
            match next {
                Some(Next::Done) => {}
                Some(Next::Impossible(why)) => {
                    // It waits for nobody any more, least of all for who is left out.
                    job.placement.after.clear();
                    job.placement.follow.clear();
                    kept.refused.insert(kept.jobs.len(), why);
                    kept.jobs.push(job);
                }
                Some(Next::Run) | None => kept.jobs.push(job),
            }
        }
        kept
    }
}

/// The jobs to be run.
#[derive(Default)]
pub(crate) struct Jobs {
    pub(crate) jobs: Vec<Job>,
    /// Those that end before they begin, by their place in `jobs`, and why.
    pub(crate) refused: HashMap<usize, String>,
}

impl From<Vec<Job>> for Jobs {
    fn from(jobs: Vec<Job>) -> Self {
        let refused = HashMap::new();
        Self { jobs, refused }
    }
}

fn identity(text: &str) -> Identity {
    match serde_json::from_str(text) {
        Ok(Value::Object(mut object)) => {
            object.shift_remove("result");
            hash(&Value::Object(object))
        }
        _ => hash(&Value::from(text)),
    }
}

fn hash(value: &Value) -> Identity {
    let mut identity = Identity::default();
    identity.copy_from_slice(&Sha256::digest(value.to_string())[..16]);
    identity
}

#[cfg(test)]
mod tests {
    use super::*;
    use ipbroker_client::job::{JobResult, parse_line, write_line};
    use jiff::tz::TimeZone;

    fn jobs(lines: &[&str]) -> Vec<Job> {
        (1..)
            .zip(lines)
            .map(|(number, line)| parse_line(number, line.as_bytes()).unwrap())
            .collect()
    }

    fn line(text: &str, code: i64, copy: Option<u32>) -> String {
        let result = JobResult {
            code: Some(code),
            host: Some("h".into()),
            copy,
            ..JobResult::default()
        };
        let mut line = String::new();
        let has_result = text.contains("result");
        write_line(text, has_result, &result, &TimeZone::UTC, &mut line);
        line
    }

    /// The commands that are run, after the refusals of those that cannot be.
    fn run(results: &str, rerun: Rerun, lines: &[&str]) -> (Vec<String>, Vec<Job>) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("results.jsonl");
        std::fs::write(&path, results).unwrap();
        let jobs = jobs(lines);
        let graph = Graph::new("f", &jobs).unwrap();
        let mut resume = Resume::open(&path, rerun, Some(&jobs)).unwrap();
        let kept = resume.filter(&graph, jobs);
        let words = (0..)
            .zip(&kept.jobs)
            .map(|(at, job)| kept.refused.get(&at).unwrap_or(&job.cmd).clone())
            .collect();
        (words, kept.jobs)
    }

    const LINES: [&str; 3] = [
        r#"{"cmd": "a"}"#,
        r#"{"cmd": "b", "n": [1, 2]}"#,
        r#"{"cmd": "c"}"#,
    ];

    #[test]
    fn what_has_no_good_result_is_run() {
        let results = line(LINES[0], 0, None) + &line(LINES[1], 3, None);
        let cmds = |rerun| run(&results, rerun, &LINES).0;
        assert_eq!(cmds(Rerun::Failed), ["b", "c"]);
        assert_eq!(cmds(Rerun::Ok), ["a", "c"]);
        assert_eq!(cmds(Rerun::None), ["c"]);
        assert_eq!(cmds(Rerun::All), ["a", "b", "c"]);
        // Its last result counts; other blanks are no change, another value is one.
        let later = results + &line(LINES[1], 0, None) + &line(LINES[0], 1, None);
        let changed = [
            r#"{"cmd":"a"}"#,
            r#"{"cmd":"b","n":[1,2]}"#,
            r#"{"cmd": "b", "n": [1]}"#,
        ];
        assert_eq!(run(&later, Rerun::Failed, &changed).0, ["a", "b"]);
    }

    #[test]
    fn an_old_result_in_a_job_is_not_part_of_it() {
        let old = r#"{"cmd": "a", "result": {"code": 1}, "x": [1, 2]}"#;
        let results = line(old, 0, None);
        assert!(run(&results, Rerun::Failed, &[old]).0.is_empty());
        assert!(
            run(&results, Rerun::Failed, &[r#"{"cmd": "a", "x": [1, 2]}"#])
                .0
                .is_empty()
        );
    }

    #[test]
    fn copies_are_counted_one_by_one() {
        let same = [LINES[0]; 3];
        let copies = |results: &str| -> Vec<u32> {
            let jobs = run(results, Rerun::Failed, &same).1;
            jobs.iter().map(|job| job.copy.unwrap()).collect()
        };
        let of = |code, copy| line(LINES[0], code, Some(copy));
        assert_eq!(copies(""), [1, 2, 3]);
        assert_eq!(copies(&(of(0, 3) + &of(1, 1))), [1, 2]);
        assert_eq!(
            copies(&(of(0, 3) + &of(1, 1) + &of(0, 1) + &of(1, 3))),
            [2, 3]
        );
        // Results of a run without copies.
        assert_eq!(copies(&line(LINES[0], 0, None).repeat(2)), [3]);
    }

    #[test]
    fn dependencies_on_what_is_done_are_met() {
        let lines = [
            r#"{"cmd": "b", "id": "b", "after": ["a", "x"], "follow": "a"}"#,
            r#"{"cmd": "a", "id": "a"}"#,
            r#"{"cmd": "x", "id": "x"}"#,
            r#"{"cmd": "any", "id": "any", "after": ["a", "x"], "any": true}"#,
            r#"{"cmd": "bad", "id": "bad", "after": "a", "on": "failure"}"#,
            r#"{"cmd": "worse", "after": "bad"}"#,
            r#"{"cmd": "always", "after": "bad", "on": "always"}"#,
        ];
        let (words, jobs) = run(&line(lines[1], 0, None), Rerun::Failed, &lines);
        assert_eq!(words[..3], ["b", "x", "any"]);
        assert_eq!(
            words[3],
            "ImpossibleDependency: \"after\" names \"a\", which succeeded and is not run again"
        );
        assert_eq!(
            words[4],
            "ImpossibleDependency: \"after\" names \"bad\", which failed and is not run again"
        );
        assert_eq!(words[5], "always");
        assert_eq!(jobs[0].placement.after, ["x"]);
        assert!(jobs[0].placement.follow.is_empty() && jobs[0].placement.prefer == ["h"]);
        assert!(jobs[2].placement.after.is_empty() && jobs[5].placement.after.is_empty());
        // What failed and is not run again is a failure that others may wait for.
        let results = line(lines[1], 1, None);
        let (words, _) = run(&results, Rerun::None, &lines);
        assert!(words[0].starts_with("Impossible") && words[3] == "bad" && words[4] == "worse");
    }

    #[test]
    fn a_cut_end_is_mended_and_other_files_are_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("r");
        let open = |text: &[u8]| {
            std::fs::write(&path, text).unwrap();
            let opened = Resume::open(&path, Rerun::Failed, None);
            let past = opened.map(|resume| resume.past.len());
            (past, std::fs::read(&path).unwrap())
        };
        let good = line(LINES[0], 0, None);
        for cut in 1..good.len() - 2 {
            let text = good.clone() + &good[..cut];
            let (past, left) = open(text.as_bytes());
            assert!(past.unwrap() == 1 && left == good.as_bytes(), "{cut}");
        }
        let (past, left) = open(good.trim_end().as_bytes());
        assert!(past.unwrap() == 1 && left == good.as_bytes());
        let (past, left) = open(&[good.as_bytes(), &[0; 700]].concat());
        assert!(past.unwrap() == 1 && left == good.as_bytes());
        for text in ["notes", "{\"cmd\": \"a\"}\n", "one\ntwo", &(good + "x\n")] {
            let (past, left) = open(text.as_bytes());
            assert!(past.is_err() && left == text.as_bytes(), "{text}");
        }
    }
}
