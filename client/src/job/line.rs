//! One job line, read and checked key by key.

use super::error::LineError;
use super::keys::{Keys, kind, no_nul, other_side, wrong};
use ipbroker_protocol::dependency::Dependency;
use ipbroker_protocol::message::{Command, Limit, Require, TaskRequest};
use ipbroker_protocol::resources::{MEMORY, Request};
use serde_json::{Map, Value};
use std::collections::{BTreeMap, HashMap};
use std::ops::Range;

/// When a dependency counts as met.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Condition {
    /// The named jobs succeeded.
    #[default]
    Success,
    /// The named jobs failed.
    Failure,
    /// The named jobs ended, however.
    Always,
}

/// Where and when a job may run. Jobs whose placements are equal travel as one array.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Placement {
    /// Hosts it must run on (any of them); empty: any host.
    pub host: Vec<String>,
    /// Hosts it should run on.
    pub prefer: Vec<String>,
    /// Seconds to wait for one of `prefer`.
    pub prefer_wait: Option<f64>,
    /// Tags the engine must have, all of them.
    pub tags: Vec<String>,
    /// Higher runs earlier, among the jobs of one client.
    pub priority: Option<i32>,
    /// Programs, files and variables the host must have.
    pub require: Require,
    /// How often a failed job is started again.
    pub retries: Option<u32>,
    /// Seconds before the first of these; twice as long before each further one.
    pub retry_delay: Option<f64>,
    /// How often it is started again after its engine was lost; `None`: that uses up a retry.
    pub max_crashes: Option<u32>,
    /// Seconds it may wait for its dependencies.
    pub timeout: Option<f64>,
    /// Ids of jobs that must have ended before.
    pub after: Vec<String>,
    /// Ids of jobs on whose engine it must run.
    pub follow: Vec<String>,
    /// One of `after` (`follow`) is enough.
    pub any: bool,
    /// Which end of `after` and `follow` counts.
    pub on: Condition,
    /// What it needs of its host, by name: `cpus`, `gpus`, `memory` (bytes) and those of `--resource`.
    pub resources: Request,
    /// Alternatives of that, in order of preference; what one of them does not name is as in `resources`.
    pub alternatives: Vec<Request>,
    /// So many whole hosts, and none of these; 0: none.
    pub nodes: u32,
    /// Seconds it may run, as its limit says.
    pub time: Option<f64>,
}

impl Placement {
    /// The scheduling metadata of a job that is placed so: `ids` are the message ids by the jobs' own.
    pub fn request(&self, ids: &HashMap<String, String>) -> TaskRequest {
        TaskRequest {
            after: self.dependency(&self.after, ids),
            follow: self.dependency(&self.follow, ids),
            timeout: self.timeout,
            time: self.time,
            retries: self.retries.unwrap_or(0),
            retry_delay: self.retry_delay,
            max_crashes: self.max_crashes,
            hosts: self.host.clone(),
            prefer: self.prefer.clone(),
            prefer_wait: self.prefer_wait,
            tags: self.tags.clone(),
            priority: self.priority.unwrap_or(0),
            require: self.require.clone(),
            resources: self.resources.clone(),
            any: self.alternatives.clone(),
            nodes: self.nodes,
            ack: true,
            ..TaskRequest::default()
        }
    }

    /// What `after` or `follow` asks for: `ids` are the message ids by the jobs' own, empty for jobs that were not sent.
    pub fn dependency(&self, names: &[String], ids: &HashMap<String, String>) -> Dependency {
        let known = names.iter().filter_map(|name| ids.get(name));
        let (unsent, mut ids): (Vec<_>, Vec<_>) = known.cloned().partition(String::is_empty);
        // What was not sent has failed.
        if self.any && self.on != Condition::Success && !unsent.is_empty() {
            ids.clear();
        }
        Dependency {
            ids,
            all: !self.any,
            success: self.on != Condition::Failure,
            failure: self.on != Condition::Success,
        }
    }

    /// Why such a job can never run, if it waits for the success of one that was not sent; `ids` as for
    /// [`dependency`](Self::dependency).
    pub fn impossible(&self, ids: &HashMap<String, String>) -> Option<String> {
        if self.on != Condition::Success {
            return None;
        }
        let unsent = |name: &&String| ids.get(*name).is_some_and(String::is_empty);
        [("after", &self.after), ("follow", &self.follow)]
            .into_iter()
            .find_map(|(key, names)| {
                let name = names.iter().find(unsent)?;
                let others = self.any && !names.iter().all(|name| unsent(&name));
                (!others).then(|| format!("\"{key}\" names {name:?}, which was not run"))
            })
    }
}

/// A job line.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Job {
    /// Number of the line, from 1.
    pub line: u64,
    /// The object as it was written.
    pub text: Box<str>,
    /// The object already has a `result`, to be replaced.
    pub has_result: bool,
    /// A key that means nothing here: the user's own, which comes back with the result.
    pub own_key: Option<Box<str>>,
    /// Which of several jobs with the same line it is, from 1.
    pub copy: Option<u32>,
    /// Its name for `after` and `follow` of others.
    pub id: Option<String>,
    /// The command.
    pub cmd: String,
    /// What people see instead of the command.
    pub title: Option<Box<str>>,
    /// Working directory.
    pub cd: Option<String>,
    /// File for the standard output.
    pub out: Option<String>,
    /// File for the standard error.
    pub err: Option<String>,
    /// Environment variables, added to the engine's.
    pub env: BTreeMap<String, String>,
    /// Text for the standard input.
    pub stdin: Option<String>,
    /// The same of bytes, whatever they are.
    pub stdin_bytes: Option<Vec<u8>>,
    /// Time and memory limits.
    pub limit: Limit,
    /// Bytes of each output to put into the result.
    pub capture: Option<u64>,
    /// Files that it writes: it is run only if one is missing, or older than one of `needs`.
    pub creates: Vec<String>,
    /// Files that must be there when it starts.
    pub needs: Vec<String>,
    /// The exit code by which it says that its engine lacks what it needs.
    pub unmet_exit: Option<i32>,
    /// Run in a fresh directory that is removed after.
    pub scratch: bool,
    /// Files that are sent before the start.
    pub put: Vec<Transfer>,
    /// Files that are fetched after the end.
    pub get: Vec<Transfer>,
    /// Where and when.
    pub placement: Placement,
}

/// A file that goes with a job.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Transfer {
    /// Its path here, relative to the client's directory.
    pub local: String,
    /// Its path there, relative to the job's directory.
    pub remote: String,
    /// Only these of its bytes; they go along with the job.
    pub part: Option<Range<u64>>,
}

impl Transfer {
    /// A file that is named once: the same relative path on both sides, or its name alone on the other one when that
    /// would lead elsewhere. `out`: `path` is the one here.
    pub fn of(path: &str, out: bool) -> Self {
        Self::between(path.to_owned(), other_side(path), out)
    }

    /// A file that has both names; `out`: it goes from here to there.
    pub(super) fn between(from: String, to: String, out: bool) -> Self {
        let (local, remote) = if out { (from, to) } else { (to, from) };
        Self {
            local,
            remote,
            part: None,
        }
    }
}

/// The directory `cd`, which begins at `cwd` if it is relative.
pub fn directory(cwd: &str, cd: &str) -> String {
    if cd.starts_with('/') || cd == "~" || cd.starts_with("~/") {
        return cd.to_owned();
    }
    format!("{}/{cd}", cwd.trim_end_matches('/'))
}

impl Job {
    /// Whether it has files that move.
    pub fn has_files(&self) -> bool {
        !self.put.is_empty() || !self.get.is_empty()
    }

    /// The command as an engine takes it. A relative `cd` is below `cwd`, which is also the default.
    pub fn command(&self, cwd: &str) -> Command {
        let cd = self.cd.as_ref();
        let cd = cd.map_or_else(|| cwd.to_owned(), |cd| directory(cwd, cd));
        // Who sends files along shares none: the client's directory is not there.
        let moves = self.cd.is_none() && self.has_files();
        let mut command = Command {
            cmd: self.cmd.clone(),
            cd: (!moves).then_some(cd),
            env: self.env.clone(),
            stdin: self.stdin.clone(),
            out: self.out.clone(),
            err: self.err.clone(),
            capture: self.capture.unwrap_or(0),
            limit: self.limit,
            require: self.placement.require.clone(),
            unmet_exit: self.unmet_exit,
            creates: self.creates.clone(),
            needs: self.needs.clone(),
            scratch: self.scratch || moves,
            get: self.get.iter().map(|file| file.remote.clone()).collect(),
            ..Command::default()
        };
        if let Some(bytes) = &self.stdin_bytes {
            command.set_input(bytes.clone());
        }
        command
    }
}

/// Reads one line (without its line break).
pub fn parse_line(line: u64, bytes: &[u8]) -> Result<Job, LineError> {
    let text = std::str::from_utf8(bytes)
        .map_err(|_| LineError::NotText)?
        .trim();
    let value: Value = serde_json::from_str(text).map_err(|e| {
        let hint = "a job is an object like {\"cmd\": \"…\"}";
        if !text.starts_with('{') {
            return LineError::NotJson(hint.into());
        }
        // The message names "line 1" of its own input: only the column means something here.
        let text = e.to_string();
        let what = text
            .rfind(" at line ")
            .map_or(text.as_str(), |at| &text[..at]);
        LineError::NotJson(format!(
            "{what} (column {}); {hint} on one line",
            e.column()
        ))
    })?;
    let object = match value {
        Value::Object(object) => object,
        other => return Err(LineError::NotObject(kind(&other))),
    };
    let mut job = from_object(&object)?;
    job.line = line;
    job.has_result = object.contains_key("result");
    job.own_key = object
        .keys()
        .find(|key| !KEYS.contains(&key.as_str()))
        .map(|key| key.as_str().into());
    job.text = text.into();
    Ok(job)
}

/// All keys that mean something.
const KEYS: [&str; 36] = [
    "after",
    "any",
    "capture",
    "cd",
    "cmd",
    "cpus",
    "creates",
    "env",
    "err",
    "follow",
    "get",
    "gpus",
    "host",
    "id",
    "limit",
    "max_crashes",
    "memory",
    "needs",
    "nodes",
    "on",
    "out",
    "prefer",
    "prefer_wait",
    "priority",
    "put",
    "require",
    "resources",
    "result",
    "retries",
    "retry_delay",
    "scratch",
    "stdin",
    "tags",
    "time",
    "timeout",
    "unmet_exit",
];

/// What other programs call some of these.
const ALIASES: [(&str, &str); 12] = [
    ("command", "cmd"),
    ("cores", "cpus"),
    ("cwd", "cd"),
    ("depends", "after"),
    ("gpu", "gpus"),
    ("mem", "memory"),
    ("ncpus", "cpus"),
    ("ram", "memory"),
    ("threads", "cpus"),
    ("time_limit", "time"),
    ("walltime", "time"),
    ("workdir", "cd"),
];

/// The key that a user probably meant with one that means nothing.
fn meant(key: &str) -> Option<&'static str> {
    if KEYS.contains(&key) || key.len() < 3 {
        return None;
    }
    let lower = key.to_lowercase();
    if let Some((_, meant)) = ALIASES.iter().find(|(alias, _)| *alias == lower) {
        return Some(meant);
    }
    let near = |known: &&&str| {
        let most = if known.len() < 7 { 1 } else { 2 };
        known.len() > 3 && strsim::osa_distance(&lower, known) <= most
    };
    KEYS.iter().find(near).copied()
}

fn from_object(object: &Map<String, Value>) -> Result<Job, LineError> {
    let keys = Keys(object);
    if let Some((key, meant)) = object.keys().find_map(|key| Some((key, meant(key)?))) {
        let key = key.clone();
        return Err(LineError::UnknownKey { key, meant });
    }
    let resources = keys.resources()?;
    let (any, alternatives) = keys.any()?;
    let mut limit = keys.limit()?;
    if let Some(seconds) = keys.duration("time")? {
        if limit.time.is_some() {
            let problem = "says the same as \"limit\": give one of them";
            return Err(LineError::value("time", problem));
        }
        limit.time = Some(seconds);
    }
    // What was promised to others is kept; of alternatives the engine knows which it is.
    let memory = resources.get(MEMORY).filter(|_| alternatives.is_empty());
    if let Some(&bytes) = memory.filter(|bytes| **bytes > 0.0) {
        let bytes = bytes as u64;
        limit.memory = Some(limit.memory.map_or(bytes, |limit| limit.min(bytes)));
    }
    let cmd = match object.get("cmd") {
        None => return Err(LineError::NoCommand),
        Some(Value::String(cmd)) => no_nul("cmd", cmd)?,
        Some(other) => return Err(wrong("cmd", "a string", other)),
    };
    if cmd.trim().is_empty() {
        return Err(LineError::value("cmd", "is empty"));
    }
    let job = Job {
        id: keys.id()?,
        cmd,
        cd: keys.path("cd")?,
        out: keys.path("out")?,
        err: keys.path("err")?,
        env: keys.env()?,
        stdin: keys.string("stdin")?,
        limit,
        capture: keys.capture()?,
        creates: keys.paths("creates")?,
        needs: keys.paths("needs")?,
        unmet_exit: keys.exit_code("unmet_exit")?,
        scratch: keys.boolean("scratch")?.unwrap_or(false),
        put: keys.transfers("put", true)?,
        get: keys.transfers("get", false)?,
        placement: Placement {
            host: keys.strings("host")?,
            prefer: keys.strings("prefer")?,
            prefer_wait: keys.duration("prefer_wait")?,
            tags: keys.strings("tags")?,
            priority: keys.integer("priority")?,
            require: keys.require()?,
            retries: keys.count("retries")?,
            retry_delay: keys.duration("retry_delay")?,
            max_crashes: keys.count("max_crashes")?,
            timeout: keys.duration("timeout")?,
            after: keys.ids("after")?,
            follow: keys.ids("follow")?,
            any,
            on: keys.condition()?,
            resources,
            alternatives,
            nodes: keys.nodes()?,
            time: limit.time,
        },
        ..Job::default()
    };
    let fresh = job.scratch || job.cd.is_none() && job.has_files();
    if fresh && !job.creates.is_empty() {
        let problem =
            "can mean nothing in a directory that is new for each job (scratch, put, get)";
        return Err(LineError::value("creates", problem));
    }
    Ok(job)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Job, LineError> {
        parse_line(1, text.as_bytes())
    }

    fn error(text: &str) -> String {
        parse(text).unwrap_err().to_string()
    }

    #[test]
    fn files_that_go_with_a_job() {
        let job = parse(
            r#"{"cmd": "x", "put": ["in/a.txt", "/data/b", "../c"], "get": {"out.txt": "results/1.txt"}}"#,
        )
        .unwrap();
        let pairs = |files: &[Transfer]| -> Vec<(String, String)> {
            files
                .iter()
                .map(|f| (f.local.clone(), f.remote.clone()))
                .collect()
        };
        let pair = |local: &str, remote: &str| (local.to_owned(), remote.to_owned());
        assert_eq!(
            pairs(&job.put),
            [
                pair("in/a.txt", "in/a.txt"),
                pair("/data/b", "b"),
                pair("../c", "c")
            ]
        );
        assert_eq!(pairs(&job.get), [pair("results/1.txt", "out.txt")]);
        // The client's directory is not there: it runs in one of its own.
        let command = job.command("/home/me");
        assert!(command.cd.is_none() && command.scratch && command.get == ["out.txt"]);
        let placed = parse(r#"{"cmd": "x", "cd": "/tmp", "put": ["a"]}"#)
            .unwrap()
            .command("/home/me");
        assert!(placed.cd.as_deref() == Some("/tmp") && !placed.scratch);
        for bad in [
            r#"{"cmd": "x", "put": "a"}"#,
            r#"{"cmd": "x", "get": [1]}"#,
            r#"{"cmd": "x", "put": {"a": ""}}"#,
        ] {
            let text = error(bad);
            assert!(text.contains("put") || text.contains("get"), "{text}");
        }
    }

    #[test]
    fn a_line_with_every_key() {
        let job = parse(
            r#"{"cmd": "wc -l", "cd": "/tmp", "out": "o", "err": "e", "host": ["a", "b"], "id": 7, "after": ["x", 3],
                "follow": ["y"], "any": true, "on": "always", "timeout": 1.5, "retries": 2, "retry_delay": 0.5, "max_crashes": 3, "prefer": ["c"],
                "prefer_wait": 3, "tags": ["gpu"], "priority": -4, "require": {"programs": ["gcc"]},
                "env": {"A": "1"}, "stdin": "in", "limit": {"time": 60, "memory": "2G"}, "capture": true,
                "creates": "c", "needs": ["n"], "mine": {"kept": 1}}"#,
        )
        .unwrap();
        assert_eq!(job.cmd, "wc -l");
        assert_eq!(job.id.as_deref(), Some("7"));
        assert_eq!(job.placement.after, ["x", "3"]);
        assert_eq!(job.placement.host, ["a", "b"]);
        assert_eq!(job.placement.on, Condition::Always);
        assert_eq!(job.placement.priority, Some(-4));
        assert_eq!(job.placement.require.programs, ["gcc"]);
        assert_eq!(
            job.limit,
            Limit {
                time: Some(60.0),
                memory: Some(2 << 30)
            }
        );
        assert_eq!(job.capture, Some(65536));
        assert_eq!(
            (job.creates, job.needs),
            (vec!["c".to_owned()], vec!["n".to_owned()])
        );
        assert!(!job.has_result);
    }

    #[test]
    fn a_key_that_is_nearly_one_is_refused() {
        for (key, meant) in [
            ("aftr", "after"),
            ("Host", "host"),
            ("hosts", "host"),
            ("retires", "retries"),
            ("tag", "tags"),
            ("cpu", "cpus"),
            ("gpu", "gpus"),
            ("mem", "memory"),
            ("resource", "resources"),
            ("walltime", "time"),
        ] {
            let line = format!(r#"{{"cmd": "x", "{key}": 1}}"#);
            let expected = format!("{key:?} means nothing in a job; did you mean {meant:?}?");
            assert_eq!(error(&line), expected);
        }
        let own = |text: &str| parse(text).unwrap().own_key;
        assert_eq!(
            own(r#"{"cmd": "x", "number": 1, "n": 1}"#),
            Some("number".into())
        );
        // What an earlier run printed may be run again.
        assert_eq!(
            own(r#"{"cmd": "x", "after": [], "result": {"code": 1}}"#),
            None
        );
    }

    #[test]
    fn alternatives_of_a_job() {
        let line = r#"{"cmd": "x", "memory": "1G", "any": [{"gpus": 1, "cpus": 2}, {"cpus": 16, "memory": "4G"}, {}]}"#;
        let job = parse(line).unwrap();
        let placement = &job.placement;
        assert!(!placement.any);
        let second = Request::from([
            ("cpus".to_owned(), 16.0),
            ("memory".to_owned(), f64::from(1 << 30) * 4.0),
        ]);
        assert_eq!(placement.alternatives.len(), 3);
        assert_eq!(placement.alternatives[1], second);
        assert_eq!(job.limit.memory, None);
        for (any, says) in [
            ("3", "\"any\" must be true or false"),
            ("[]", "\"any\" is a list without an alternative"),
            (
                "[1]",
                "has an alternative 1 that is a number, not an object",
            ),
            (
                r#"[{}, {"any": []}]"#,
                "has an alternative 2 with \"any\": only cpus, gpus",
            ),
            (
                r#"[{"cpus": 0}]"#,
                "has an alternative 1 whose \"cpus\" must be a number of cpus above 0",
            ),
        ] {
            let text = error(&format!(r#"{{"cmd": "x", "any": {any}}}"#));
            assert!(text.contains(says), "{any}: {text}");
        }
    }

    #[test]
    fn whole_hosts_of_a_job() {
        let nodes = |line: &str| parse(line).unwrap().placement.nodes;
        assert_eq!(nodes(r#"{"cmd": "x", "nodes": 4, "tags": ["mpi"]}"#), 4);
        assert_eq!(nodes(r#"{"cmd": "x"}"#), 0);
        for bad in ["0", "-1", "1.5", "1000000000", "\"four\"", "[2]"] {
            let text = error(&format!(r#"{{"cmd": "x", "nodes": {bad}}}"#));
            let says = "\"nodes\" must be a whole number of hosts from 1, at most 1000000";
            assert!(text.contains(says), "{bad}: {text}");
        }
        for other in [
            r#""cpus": 1"#,
            r#""host": ["a"]"#,
            r#""follow": ["a"]"#,
            r#""any": [{}]"#,
        ] {
            let text = error(&format!(r#"{{"cmd": "x", "nodes": 2, {other}}}"#));
            assert!(
                text.contains("\"nodes\" cannot stand beside"),
                "{other}: {text}"
            );
        }
    }

    #[test]
    fn resources_of_a_job() {
        let job = parse(
            r#"{"cmd": "x", "cpus": 4, "gpus": 1, "memory": "16GB", "resources": {"lic": 0.5}, "time": "2h"}"#,
        )
        .unwrap();
        let asked: Vec<(&str, f64)> = job
            .placement
            .resources
            .iter()
            .map(|(name, units)| (name.as_str(), *units))
            .collect();
        let gib = f64::from(1 << 30);
        assert_eq!(
            asked,
            [
                ("cpus", 4.0),
                ("gpus", 1.0),
                ("lic", 0.5),
                ("memory", 16.0 * gib)
            ]
        );
        assert_eq!(job.limit.memory, Some(16 << 30));
        assert_eq!(job.limit.time, Some(7200.0));
        let both = parse(r#"{"cmd": "x", "memory": "2G", "limit": {"memory": "1G"}}"#).unwrap();
        assert_eq!(both.limit.memory, Some(1 << 30));
        let cpus = "\"cpus\" must be a number of cpus above 0, at most 1000000, not ";
        for (value, found) in [
            ("0", "the number 0"),
            ("-1", "the number -1"),
            ("1e9", "the number 1000000000.0"),
            ("\"four\"", "the string \"four\""),
        ] {
            let line = format!(r#"{{"cmd": "x", "cpus": {value}}}"#);
            assert_eq!(error(&line), format!("{cpus}{found}"));
        }
        for (line, says) in [
            (r#"{"cmd": "x", "gpus": 0.5}"#, "a whole number of gpus"),
            (
                r#"{"cmd": "x", "memory": "lots"}"#,
                "\"memory\" must be a number of bytes",
            ),
            (
                r#"{"cmd": "x", "resources": {"a b": 1}}"#,
                "\"resources\" has \"a b\"",
            ),
            (
                r#"{"cmd": "x", "resources": {"lic": -1}}"#,
                "where \"lic\" must be a number from 0",
            ),
            (
                r#"{"cmd": "x", "resources": 4}"#,
                "\"resources\" must be an object",
            ),
            (
                r#"{"cmd": "x", "cpus": 1, "resources": {"cpus": 2}}"#,
                "asks for cpus twice",
            ),
            (
                r#"{"cmd": "x", "time": "soon"}"#,
                "\"time\" must be a number of seconds",
            ),
            (
                r#"{"cmd": "x", "time": 1, "limit": {"time": 2}}"#,
                "says the same as \"limit\"",
            ),
        ] {
            let text = error(line);
            assert!(text.contains(says), "{line}: {text}");
        }
    }

    #[test]
    fn null_is_absent_and_own_keys_do_not_matter() {
        let job =
            parse(r#" {"cmd":"a","cd":null,"host":null,"result":{"code":1},"x":[]} "#).unwrap();
        assert_eq!(
            (job.cd, job.placement.host.len(), job.has_result),
            (None, 0, true)
        );
        assert!(job.text.starts_with('{') && job.text.ends_with('}'));
    }

    #[test]
    fn errors_say_what_is_wrong() {
        assert_eq!(
            error("hello"),
            "not JSON: a job is an object like {\"cmd\": \"…\"}"
        );
        assert_eq!(
            error(r#"{"cmd": "a""#),
            "not JSON: EOF while parsing an object (column 11); a job is an object like {\"cmd\": \"…\"} on one line"
        );
        assert_eq!(
            error("[1]"),
            "a job must be a JSON object like {\"cmd\": \"…\"}, not a list"
        );
        assert_eq!(
            error("{}"),
            "no \"cmd\": a job must say which command to run"
        );
        assert_eq!(
            error(r#"{"cmd": 5}"#),
            "\"cmd\" must be a string, not the number 5"
        );
        assert_eq!(error(r#"{"cmd": " "}"#), "\"cmd\" is empty");
        assert_eq!(
            error(r#"{"cmd": "a", "cd": ["x"]}"#),
            "\"cd\" must be a string, not a list"
        );
        assert_eq!(
            error(r#"{"cmd": "a", "host": 3}"#),
            "\"host\" must be a string or a list of strings, not the number 3"
        );
        assert_eq!(
            error(r#"{"cmd": "a", "host": [1]}"#),
            "\"host\" must be a string or a list of strings, not a list with a number"
        );
        assert_eq!(
            error(r#"{"cmd": "a", "retries": -1}"#),
            "\"retries\" must be a whole number from 0, not the number -1"
        );
        assert_eq!(
            error(r#"{"cmd": "a", "timeout": "soon"}"#)
                .split(',')
                .next()
                .unwrap(),
            "\"timeout\" must be a number of seconds from 0"
        );
        assert_eq!(
            error(r#"{"cmd": "a", "on": "never"}"#),
            "\"on\" must be \"success\", \"failure\" or \"always\", not \"never\""
        );
        assert!(error(r#"{"cmd": "a", "env": {"A": 1}}"#).contains("where \"A\" is a number"));
        assert!(error(r#"{"cmd": "a\u0000b"}"#).contains("NUL"));
        assert!(error(r#"{"cmd": "a", "creates": "b", "put": ["c"]}"#).contains("\"creates\""));
        assert!(error(r#"{"cmd": "a", "needs": [""]}"#).contains("empty path"));
        assert!(
            error(r#"{"cmd": "a", "limit": {"cpu": 1}}"#).contains("only \"time\" and \"memory\"")
        );
        assert_eq!(parse_line(1, b"\xff\xfe"), Err(LineError::NotText));
    }

    #[test]
    fn deep_nesting_is_an_error_not_a_crash() {
        let deep = "[".repeat(100_000);
        assert!(matches!(parse(&deep), Err(LineError::NotJson(_))));
    }
}
