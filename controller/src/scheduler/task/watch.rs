//! What those who watch are told of tasks: rows of submissions, failures by what they said, work done by engines.
//!
//! All of it is counted as it happens, in a few additions a message, and told only when it is asked for. What would cost
//! more than that is bounded in time: of many failures in a second some are read and the others only counted, and
//! [`Slice`]s are kept only while somebody watches, and then only so many between two samples.

use std::{borrow::Cow, collections::VecDeque};

use foldhash::HashMap;
use ipbroker_protocol::{
    array::{View, without_ids},
    kind as kinds,
    message::{FailureSample, Slice, SubmissionSample},
    session::Packer,
    value::AnyMap,
};
use serde::Deserialize;
use serde_json::Value;
use slab::Slab;

use super::{Scheduler, frames::at, groups::Group};
use crate::scheduler::{
    command::{EngineWork, WATCH_BUCKETS, Watched},
    core::{EngineKey, Nanos, Outcome, SECOND, Span},
};

/// A client that submits again within this time of its last outcome goes on with the same row.
const PAUSE: Nanos = SECOND;

/// Rows of submissions: those that ended first are dropped, and beyond the second limit clients share one.
const ROWS: usize = 200;
const MOST_ROWS: usize = 2000;

/// Different failures that are told apart; the one that was seen least recently is dropped.
const FAILURES: usize = 100;
/// Ids that are kept of each.
const FAILED_IDS: usize = 20;
/// Failures whose words are read in one second.
const LOOKS: usize = 500;
/// Of one reply.
const LOOKS_AT_ONCE: usize = 20;
/// What the others are counted under.
const UNREAD: &str = "(more failures at once than were looked at)";

/// Work that is kept between two samples.
const SLICES: usize = 1000;
/// It is kept for so long after the last sample.
const WATCHED: Nanos = 3 * SECOND;

/// Engines whose task is told, and the most tasks one of them may hold for it.
const TOLD_ENGINES: usize = 256;
const TOLD_LOAD: u64 = 2000;

/// A line is cut after so many characters.
const LINE: usize = 200;
/// Requests beyond this are not read.
const CONTENT: usize = 256 << 10;

/// What has been counted.
#[derive(Default)]
pub(super) struct Watch {
    rows: Slab<Row>,
    by_session: HashMap<Box<[u8]>, usize>,
    /// The row of the last submission: most come one after the other from one client.
    last: Option<(Box<[u8]>, usize)>,
    failures: VecDeque<Failure>,
    /// Failures read since this moment.
    looks: (Nanos, usize),
    slices: Vec<Slice>,
    slices_until: Nanos,
    durations: [u64; WATCH_BUCKETS.len() + 1],
    seconds: f64,
    submitted: u64,
    /// When each engine, by slot, answered last.
    answered: Vec<Nanos>,
}

struct Row {
    session: Box<[u8]>,
    id: Box<str>,
    what: Box<str>,
    total: u64,
    completed: u64,
    failed: u64,
    aborted: u64,
    dependent: u64,
    begun: Nanos,
    ended: Nanos,
}

impl Row {
    fn is_over(&self) -> bool {
        self.completed + self.failed + self.aborted >= self.total
    }
}

struct Failure {
    text: String,
    count: u64,
    last: Nanos,
    ids: VecDeque<String>,
}

/// How many members ended how.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Ended {
    pub(super) completed: u64,
    pub(super) failed: u64,
    pub(super) aborted: u64,
}

impl Ended {
    /// `count` members ended alike.
    pub(super) fn all(count: u64, outcome: Outcome) -> Self {
        let mut ended = Self::default();
        ended.add(count, outcome);
        ended
    }

    fn add(&mut self, count: u64, outcome: Outcome) {
        match outcome {
            Outcome::Ok => self.completed += count,
            Outcome::Aborted => self.aborted += count,
            Outcome::Error | Outcome::Unmet => self.failed += count,
        }
    }

    /// Members `lo..hi`, all of which ended as `default` but for some.
    pub(super) fn of(lo: u32, hi: u32, default: Outcome, exceptions: &[(u32, Outcome)]) -> Self {
        let mut ended = Self::default();
        let mut alike = u64::from(hi - lo);
        for (_, outcome) in exceptions.iter().filter(|(i, _)| (lo..hi).contains(i)) {
            ended.add(1, *outcome);
            alike -= 1;
        }
        ended.add(alike, default);
        ended
    }
}

impl Watch {
    /// Tasks were submitted, with dependencies or without: their row.
    pub(super) fn submitted(
        &mut self,
        now: Nanos,
        session: &[u8],
        (count, dependent): (u32, bool),
        id: &str,
        what: impl FnOnce() -> String,
    ) -> usize {
        let row = self.row(now, session, id, what);
        self.submitted += u64::from(count);
        if let Some(row) = self.rows.get_mut(row) {
            row.total += u64::from(count);
            row.dependent += if dependent { u64::from(count) } else { 0 };
        }
        row
    }

    /// The row that a client's submission belongs to.
    fn row(
        &mut self,
        now: Nanos,
        session: &[u8],
        id: &str,
        what: impl FnOnce() -> String,
    ) -> usize {
        let known = match &self.last {
            Some((last, row)) if **last == *session => Some(*row),
            _ => self.by_session.get(session).copied(),
        };
        if let Some(index) = known
            && let Some(row) = self.rows.get(index)
            && (!row.is_over() || now < row.ended + PAUSE)
        {
            if self
                .last
                .as_ref()
                .is_none_or(|(last, _)| **last != *session)
            {
                self.last = Some((session.into(), index));
            }
            return index;
        }
        self.make_room();
        let index = if self.rows.len() >= MOST_ROWS {
            // So many clients at once that nobody would read a row each.
            self.rows.iter().next().expect("there are many").0
        } else {
            self.rows.insert(Row {
                session: session.into(),
                id: id.into(),
                what: what().into(),
                total: 0,
                completed: 0,
                failed: 0,
                aborted: 0,
                dependent: 0,
                begun: now,
                ended: now,
            })
        };
        self.by_session.insert(session.into(), index);
        self.last = Some((session.into(), index));
        index
    }

    /// Drops rows that ended first.
    fn make_room(&mut self) {
        while self.rows.len() >= ROWS {
            let over = self.rows.iter().filter(|(_, row)| row.is_over());
            let Some((oldest, _)) = over.min_by_key(|(_, row)| row.ended) else {
                return;
            };
            self.rows.remove(oldest);
            self.by_session.retain(|_, row| *row != oldest);
            self.last.take_if(|(_, row)| *row == oldest);
        }
    }

    /// Members of a row have their final outcome.
    pub(super) fn ended(&mut self, now: Nanos, row: usize, ended: Ended) {
        if let Some(row) = self.rows.get_mut(row) {
            row.completed += ended.completed;
            row.failed += ended.failed;
            row.aborted += ended.aborted;
            row.ended = now;
        }
    }

    /// Reads what `count` failed members of a reply said, as far as there is time for it; `said`: the reply from its content on,
    /// and its first member.
    pub(super) fn look_at_failures(
        &mut self,
        packer: Packer,
        group: &Group,
        failed: impl Iterator<Item = u32>,
        count: u64,
        (said, lo): (&[&[u8]], u32),
        now: Nanos,
    ) {
        let looks = self.looks(now, count);
        for index in failed.take(looks) {
            let text = last_words(packer, value(said, group.is_array, index - lo));
            self.failed(now, &text, Some(group.id_of(index)), 1);
        }
        let unread = count - looks as u64;
        if unread > 0 {
            self.failed(now, UNREAD, None, unread);
        }
    }

    /// How many of `count` failures of one reply may be read now.
    fn looks(&mut self, now: Nanos, count: u64) -> usize {
        if now >= self.looks.0 + SECOND {
            self.looks = (now, 0);
        }
        let wanted = usize::try_from(count).unwrap_or(usize::MAX);
        let looks = wanted.min(LOOKS_AT_ONCE).min(LOOKS - self.looks.1);
        self.looks.1 += looks;
        looks
    }

    /// A failure that said `text`, whatever tasks that names; `id`: of a task that did.
    pub(super) fn failed(&mut self, now: Nanos, text: &str, id: Option<String>, count: u64) {
        let text = without_ids(text);
        let at = self.failures.iter().position(|known| known.text == text);
        let mut failure = match at.and_then(|at| self.failures.remove(at)) {
            Some(known) => known,
            None => {
                if self.failures.len() >= FAILURES {
                    self.failures.pop_front();
                }
                Failure {
                    text,
                    count: 0,
                    last: now,
                    ids: VecDeque::new(),
                }
            }
        };
        failure.count += count;
        failure.last = now;
        if let Some(id) = id {
            if failure.ids.len() >= FAILED_IDS {
                failure.ids.pop_front();
            }
            failure.ids.push_back(id);
        }
        self.failures.push_back(failure);
    }

    /// An engine has answered for `count` members, on which it has worked for so many seconds.
    pub(super) fn worked(
        &mut self,
        now: Nanos,
        engine: EngineKey,
        seconds: f64,
        count: u32,
        slice: impl FnOnce() -> Option<(u32, Outcome, String, String)>,
    ) {
        let each = seconds / f64::from(count.max(1));
        let bucket = WATCH_BUCKETS.partition_point(|bound| *bound < each);
        self.durations[bucket] += u64::from(count);
        self.seconds += seconds;
        let slot = engine.slot();
        if slot >= self.answered.len() {
            self.answered.resize(slot + 1, 0);
        }
        self.answered[slot] = now;
        if now < self.slices_until
            && self.slices.len() < SLICES
            && let Some((engine, outcome, id, kind)) = slice()
        {
            let took = (seconds * SECOND as f64) as u64;
            self.slices.push(Slice {
                engine,
                begun: now.saturating_sub(took) as f64 / SECOND as f64,
                ended: now as f64 / SECOND as f64,
                outcome: match outcome {
                    Outcome::Ok => "ok",
                    Outcome::Aborted => "aborted",
                    Outcome::Error | Outcome::Unmet => "failed",
                }
                .to_owned(),
                count,
                id,
                kind,
            });
        }
    }
}

impl Scheduler {
    /// A sample for those who watch.
    pub(super) fn watched(&mut self) -> Watched {
        let now = self.now();
        let seconds = |at: Nanos| at as f64 / SECOND as f64;
        let mut engines = Vec::new();
        for engine in self.engines.iter() {
            let totals = self.core.engine_totals(engine.key);
            let mut work = EngineWork {
                uuid: engine.uuid.to_string(),
                outstanding: totals.outstanding,
                completed: totals.completed,
                ..EngineWork::default()
            };
            if engines.len() < TOLD_ENGINES
                && (1..=TOLD_LOAD).contains(&totals.outstanding)
                && let Some((span, since)) = self.core.oldest_held(engine.key)
                && let Some(group) = self.groups.get(span.group)
            {
                let index = span.range.start;
                let answered = self.watch.answered.get(engine.key.slot());
                let range = index..index + 1;
                work.task = self.ids(&[Span { range, ..span }]).pop();
                work.what = Some(describe(
                    self.session.packer,
                    group.reply_type,
                    &group.frames(),
                    group.is_array.then_some(index),
                ));
                work.task_kind = Some(kind_of(group, index));
                work.since = Some(seconds(since.max(answered.copied().unwrap_or(0))));
            }
            work.leaving = engine.leaving;
            engines.push(work);
        }
        self.watch.slices_until = now + WATCHED;
        let watch = &mut self.watch;
        let mut submissions: Vec<SubmissionSample> = watch
            .rows
            .iter()
            .map(|(_, row)| SubmissionSample {
                id: row.id.to_string(),
                session: String::from_utf8_lossy(&row.session).into_owned(),
                what: row.what.to_string(),
                total: row.total,
                completed: row.completed,
                failed: row.failed,
                aborted: row.aborted,
                dependent: row.dependent,
                begun: seconds(row.begun),
                ended: row.is_over().then(|| seconds(row.ended)),
            })
            .collect();
        submissions.sort_by(|a, b| a.begun.total_cmp(&b.begun));
        let failures = watch.failures.iter().map(|failure| FailureSample {
            text: failure.text.clone(),
            count: failure.count,
            last: seconds(failure.last),
            ids: failure.ids.iter().cloned().collect(),
        });
        Watched {
            now: seconds(now),
            totals: self.core.totals(None),
            submitted: watch.submitted,
            engines,
            submissions,
            failures: failures.collect(),
            slices: std::mem::take(&mut watch.slices),
            durations: watch.durations.to_vec(),
            seconds: watch.seconds,
        }
    }
}

/// What a reply says of a member: of its frames from the content on, and the member's place in it.
pub(super) fn value<'a>(frames: &[&'a [u8]], is_array: bool, at: u32) -> &'a [u8] {
    match frames {
        [_, offsets, blob, ..] if is_array => {
            // One value may stand for all.
            let at = if offsets.len() == 8 { 0 } else { at };
            View::trusted(offsets, blob).get(at as usize)
        }
        [content, ..] => content,
        [] => &[],
    }
}

/// A map that may be packed in either way: members' own maps need not be packed as messages are.
fn unpack<'a, T: Deserialize<'a>>(packer: Packer, bytes: &'a [u8]) -> Option<T> {
    let packer = match bytes.first() {
        Some(b'{') => Packer::Json,
        Some(0x80..=0x8f | 0xde | 0xdf) => Packer::Msgpack,
        _ => packer,
    };
    packer.unpack(bytes).ok()
}

/// A text, read where it lies.
#[derive(Deserialize)]
struct Text<'a>(#[serde(borrow)] Cow<'a, str>);

/// What names a task.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Named<'a> {
    #[serde(borrow)]
    cmd: Option<Text<'a>>,
    #[serde(borrow)]
    name: Option<Text<'a>>,
}

/// What a failed task said: there may be megabytes of it.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Said<'a> {
    #[serde(borrow)]
    ename: Option<Text<'a>>,
    #[serde(borrow)]
    evalue: Option<Text<'a>>,
    #[serde(borrow)]
    stderr: Option<Text<'a>>,
    code: Option<i64>,
}

/// Of what kind a member is: its program, its function, or what was asked for.
pub(super) fn kind_of(group: &Group, index: u32) -> String {
    let frames = group.frames();
    let own = argument(&frames, group.is_array.then_some(index));
    let named = |bytes: &[u8]| {
        if bytes.len() > CONTENT {
            return None;
        }
        let Named { cmd, name } = match bytes.first() {
            Some(b'{') => serde_json::from_slice(bytes).ok()?,
            _ => rmp_serde::from_slice(bytes).ok()?,
        };
        let name = name.map(|Text(name)| kinds::of_name(&name));
        cmd.map(|Text(cmd)| kinds::of_command(&cmd)).or(name)
    };
    let texts = own.into_iter().chain(frames.get(at::CONTENT).copied());
    let mut kinds = texts.filter_map(named).filter(|kind| !kind.is_empty());
    kinds
        .next()
        .unwrap_or_else(|| kind(group.reply_type).to_owned())
}

fn kind(reply_type: &str) -> &str {
    reply_type.strip_suffix("_reply").unwrap_or(reply_type)
}

/// What a request's array has for one of its members.
fn argument<'a>(frames: &[&'a [u8]], index: Option<u32>) -> Option<&'a [u8]> {
    let [offsets, blob, ..] = frames.get(at::BUFFERS..)? else {
        return None;
    };
    Some(View::trusted(offsets, blob).get(index? as usize))
}

/// A task in a line. `member`: which one of an array. `frames`: from the client's identity on.
pub(super) fn describe(
    packer: Packer,
    reply_type: &str,
    frames: &[&[u8]],
    index: Option<u32>,
) -> String {
    let own = argument(frames, index);
    let text = |bytes: Option<&&[u8]>| {
        let bytes = bytes.filter(|bytes| bytes.len() <= CONTENT)?;
        let AnyMap(map) = unpack(packer, bytes)?;
        ["cmd", "name", "code"]
            .iter()
            .find_map(|key| map.get(*key).and_then(Value::as_str).map(line))
            .filter(|line| !line.is_empty())
    };
    text(own.as_ref())
        .or_else(|| text(frames.get(at::CONTENT)))
        .unwrap_or_else(|| kind(reply_type).to_owned())
}

/// The first line that says something, cut if it is long.
fn line(text: &str) -> String {
    cut(text.lines().map(str::trim).find(|line| !line.is_empty()))
}

pub(crate) fn last_line(text: &str) -> String {
    cut(text
        .lines()
        .rev()
        .map(str::trim)
        .find(|line| !line.is_empty()))
}

fn cut(line: Option<&str>) -> String {
    let mut chars = line.unwrap_or_default().chars().map(kinds::plain);
    let mut line: String = chars.by_ref().take(LINE).collect();
    if chars.next().is_some() {
        line.push('…');
    }
    line
}

/// The last line of what a failed task said: of its standard error where that was captured, else its error, else its code.
pub(super) fn last_words(packer: Packer, value: &[u8]) -> String {
    let Some(said) = unpack::<Said<'_>>(packer, value) else {
        return "failed".to_owned();
    };
    let [ename, evalue, stderr] = [&said.ename, &said.evalue, &said.stderr]
        .map(|text| text.as_ref().map_or("", |Text(text)| text));
    let error = match (ename, last_line(evalue)) {
        ("", evalue) => evalue,
        (ename, evalue) if evalue.is_empty() => ename.to_owned(),
        (ename, evalue) => format!("{ename}: {evalue}"),
    };
    let words = [error, last_line(stderr)];
    if let Some(words) = words.into_iter().find(|words| !words.is_empty()) {
        return words;
    }
    match said.code {
        Some(code) if code > 128 => format!("exit code {code} (signal {})", code - 128),
        Some(code) => format!("exit code {code}"),
        None => "failed".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn row(watch: &Watch, index: usize) -> (u64, u64, bool) {
        let row = &watch.rows[index];
        (row.total, row.completed, row.is_over())
    }

    #[test]
    fn what_one_client_submits_without_a_pause_is_one_row() {
        let mut watch = Watch::default();
        let a = watch.submitted(1, b"a", (3, false), "a_1", || "x".into());
        let b = watch.submitted(2, b"b", (1, false), "b_1", || "y".into());
        assert_eq!(
            watch.submitted(3, b"a", (2, false), "a_2", || unreachable!()),
            a
        );
        assert_ne!(a, b);
        watch.ended(4, a, Ended::all(5, Outcome::Ok));
        assert_eq!(row(&watch, a), (5, 5, true));
        assert_eq!(
            watch.submitted(5, b"a", (1, false), "a_3", || unreachable!()),
            a
        );
        watch.ended(6, a, Ended::all(1, Outcome::Error));
        let later = watch.submitted(6 + PAUSE, b"a", (1, false), "a_4", || "z".into());
        assert_ne!(later, a);
    }

    #[test]
    fn rows_are_bounded() {
        let mut watch = Watch::default();
        for n in 0..3 * MOST_ROWS as u64 {
            let session = n.to_string();
            let row = watch.submitted(n, session.as_bytes(), (1, false), "id", String::new);
            if n % 2 == 0 && n < ROWS as u64 {
                watch.ended(n, row, Ended::all(1, Outcome::Ok));
            }
        }
        assert!(watch.rows.len() <= MOST_ROWS);
        for n in 0..10 * FAILURES {
            watch.failed(1, &n.to_string(), Some("id".into()), 1);
        }
        assert_eq!(watch.failures.len(), FAILURES);
    }

    #[test]
    fn failures_are_read_so_many_a_second() {
        let mut watch = Watch::default();
        let read: usize = (0..1000).map(|_| watch.looks(5, 1000)).sum();
        assert_eq!(read, LOOKS);
        assert_eq!(watch.looks(5 + SECOND, 3), 3);
    }

    #[test]
    fn outcomes_of_a_reply_are_counted() {
        let exceptions = [
            (1, Outcome::Error),
            (2, Outcome::Aborted),
            (9, Outcome::Error),
        ];
        let ended = Ended::of(0, 5, Outcome::Ok, &exceptions);
        assert_eq!((ended.completed, ended.failed, ended.aborted), (3, 1, 1));
        assert_eq!(Ended::of(0, 1, Outcome::Unmet, &[]).failed, 1);
    }

    #[test]
    fn the_last_line_is_what_counts() {
        let say = |value: Value| last_words(Packer::Msgpack, &Packer::Msgpack.pack(&value));
        assert_eq!(
            say(json!({"status": "ok", "code": 3, "stderr": "a\nb: bad\n\n"})),
            "b: bad"
        );
        assert_eq!(say(json!({"status": "ok", "code": 3})), "exit code 3");
        assert_eq!(say(json!({"code": 137})), "exit code 137 (signal 9)");
        assert_eq!(say(json!({"ename": "E", "evalue": "x\ny"})), "E: y");
        assert_eq!(last_words(Packer::Json, b"{\"ename\": \"E\"}"), "E");
        assert_eq!(last_words(Packer::Msgpack, b"junk"), "failed");
        let (much, last) = ("x\n".repeat(1 << 20), "no \u{202e}input\x1b[2J\n");
        let said =
            json!({"stdout": much, "stderr": format!("{much}{last}"), "ename": null, "code": 1});
        assert_eq!(say(said), "no  input [2J");
        let long = "é".repeat(LINE + 1);
        assert_eq!(last_line(&long).chars().count(), LINE + 1);
    }
}
