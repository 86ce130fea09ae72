//! The tasks of a submission, what they wait for and how far they are: read from the history, within bounds of size and time.

use std::collections::HashMap;
use std::ops::Range;

use ipbroker_protocol::array::{member_id, split_id};
use ipbroker_protocol::dependency::Dependency;
use ipbroker_protocol::kind;
use ipbroker_protocol::message::{GraphReply, GraphRequest, GraphTask};
use rusqlite::{Connection, OptionalExtension, params};
use serde::Deserialize;

use super::apply::{array_outcomes, held};
use super::event::Outcome;
use super::query::Reader;
use super::row::{Message, find_key, member_argument};
use super::unpack::Glance;
use crate::error::NamedError;

/// Tasks that are told, and what lies between them.
const TASKS: usize = 2000;
const EDGES: usize = 50_000;
/// Rows that are looked at: those of other clients lie between.
const ROWS: usize = 20_000;
/// Bytes that are read of what is packed.
const BYTES: usize = 16 << 20;
/// So many keys before the first unfinished task belong to the part of a large submission that is told.
const BEFORE: u64 = TASKS as u64 / 4;
/// A name is cut after so many characters.
const NAME: usize = 100;

/// What of a task's metadata says what it waits for.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Links {
    after: Dependency,
    follow: Dependency,
}

/// A row of `task`, without what is not needed here.
struct Row {
    key: u64,
    id: String,
    count: u64,
    name: Option<String>,
    kind: Option<String>,
    status: String,
    request: Message,
    /// The content of an error.
    error: Option<Vec<u8>>,
}

/// The part that has been read.
#[derive(Default)]
struct Part {
    tasks: Vec<GraphTask>,
    /// Where the members of each submission are in it.
    places: HashMap<String, Range<u32>>,
    edges: usize,
    members: u64,
    /// The last key in it.
    last: u64,
}

impl Reader {
    /// The tasks of a submission.
    ///
    /// # Errors
    /// When its first task is not known, or the database cannot be read.
    pub(super) fn graph(
        &self,
        conn: &Connection,
        request: &GraphRequest,
    ) -> Result<GraphReply, NamedError> {
        let Some((first, _)) = find_key(conn, &request.msg_id)? else {
            let what = format!("nothing is recorded of a task {:?}", request.msg_id);
            return Err(NamedError::key(what));
        };
        let wanted = match request.tasks {
            0 => u64::MAX,
            tasks => tasks,
        };
        let client = client_of(conn, first)?;
        let (mut part, whole) = self.part(conn, first, client.as_deref(), wanted)?;
        if !whole
            && let Some(open) = first_open(conn, first, client.as_deref())?
            && open > first + BEFORE
        {
            for from in [open - BEFORE, open] {
                (part, _) = self.part(conn, from, client.as_deref(), u64::MAX)?;
                if part.last >= open {
                    break;
                }
            }
        }
        let tasks = part.tasks;
        Ok(GraphReply { tasks, whole })
    }

    /// What a client has submitted from this key on, up to so many tasks; and whether that is all.
    fn part(
        &self,
        conn: &Connection,
        first: u64,
        client: Option<&str>,
        wanted: u64,
    ) -> Result<(Part, bool), NamedError> {
        // Of other clients' rows nothing long is read.
        let mut select = conn.prepare_cached(
            "SELECT key, client_uuid IS ?2 AND queue = 'task', msg_id, count, COALESCE(name, label), msg_type, status, request_file,
                    CASE WHEN client_uuid IS ?2 THEN metadata END,
                    CASE WHEN client_uuid IS ?2 AND count BETWEEN 2 AND ?3 AND msg_type = 'command_request' THEN content END,
                    CASE WHEN client_uuid IS ?2 AND count BETWEEN 2 AND ?3 AND msg_type = 'command_request' THEN buffers END,
                    CASE WHEN client_uuid IS ?2 AND status = 'error' THEN result_content END
                 FROM task WHERE key >= ?1 ORDER BY key",
        )?;
        let mut rows = select.query(params![first, client, TASKS as i64])?;
        let (mut part, mut looked, mut bytes) = (Part::default(), 0, 0);
        while part.members < wanted {
            let Some(row) = rows.next()? else {
                return Ok((part, true));
            };
            looked += 1;
            if looked > ROWS || bytes > BYTES {
                return Ok((part, false));
            }
            if row.get::<_, Option<bool>>(1)? != Some(true) {
                continue;
            }
            let read = || -> rusqlite::Result<Row> {
                Ok(Row {
                    key: row.get(0)?,
                    id: row.get(2)?,
                    count: row.get(3)?,
                    name: row.get(4)?,
                    kind: row.get(5)?,
                    status: row.get(6)?,
                    request: Message {
                        file: row.get(7)?,
                        metadata: row.get(8)?,
                        content: row.get(9)?,
                        buffers: row.get(10)?,
                        ..Message::default()
                    },
                    error: row.get(11)?,
                })
            };
            let row = read()?;
            let Message {
                metadata,
                content,
                buffers,
                ..
            } = &row.request;
            let read = [metadata, content, buffers, &row.error]
                .into_iter()
                .flatten();
            bytes += read.map(Vec::len).sum::<usize>();
            if !self.add(conn, &mut part, row)? {
                return Ok((part, false));
            }
        }
        Ok((part, true))
    }

    /// Adds a submission; `false`: there is no room for it.
    fn add(&self, conn: &Connection, part: &mut Part, row: Row) -> Result<bool, NamedError> {
        let begin = part.tasks.len();
        let metadata = row.request.metadata.as_deref().unwrap_or_default();
        let after = part.after(&self.packing.unpack(metadata).unwrap_or_default());
        let has_room = |members: usize| part.edges + after.len() * members <= EDGES;
        // An array that is too much in itself is told as one task.
        let members = match usize::try_from(row.count) {
            Ok(count) if count <= TASKS && has_room(count) => count,
            _ => 1,
        };
        if begin + members > TASKS || !has_room(members) {
            return Ok(false);
        }
        part.edges += after.len() * members;
        part.members += row.count;
        part.last = row.key;
        let place = begin as u32..(begin + members) as u32;
        part.places.insert(row.id.clone(), place);
        let kind = row.kind.as_deref().unwrap_or_default();
        let kind = kind.strip_suffix("_request").unwrap_or(kind);
        let name = row.name.as_deref().map(line).filter(|n| !n.is_empty());
        let name = name.unwrap_or_else(|| kind.to_owned());
        let task = |id: String, name: String, state: &str, count: u64| GraphTask {
            id,
            name,
            state: state.to_owned(),
            count,
            after: after.clone(),
        };
        if members == 1 {
            let running = match row.count {
                1 => row.status == "dispatched",
                _ => !held(conn, row.key)?.is_empty(),
            };
            let state = self.state(Outcome::of(&row.status), running, row.error.as_deref());
            part.tasks.push(task(row.id, name, state, row.count));
            return Ok(true);
        }
        // Commands differ by member; arguments of functions are not shown.
        let arguments = match row.request.buffers {
            Some(_) => row.request.content_and_buffers(&self.spill)?.1,
            None => Vec::new(),
        };
        let states = self.states(conn, row.key, row.count)?;
        for (member, state) in (0..).zip(states) {
            let own = member_argument(&arguments, member)
                .and_then(|own| Some(line(&Glance::at(own, self.packing).cmd?)));
            let id = member_id(&row.id, member);
            let name = own.unwrap_or_else(|| name.clone());
            part.tasks.push(task(id, name, state, 1));
        }
        Ok(true)
    }

    /// The state of each member of an array.
    pub(super) fn states(
        &self,
        conn: &Connection,
        key: u64,
        count: u64,
    ) -> rusqlite::Result<Vec<&'static str>> {
        let held = held(conn, key)?;
        let holds = |member: u64| held.iter().any(|(lo, hi, ..)| (*lo..*hi).contains(&member));
        let mut states: Vec<&str> = (0..count)
            .map(|member| self.state(None, holds(member), None))
            .collect();
        for (range, outcome) in array_outcomes(conn, key)?.iter() {
            for member in range.start..range.end.min(count) {
                let error = match outcome {
                    Outcome::Error => member_error(conn, key, member)?,
                    Outcome::Ok | Outcome::Aborted => None,
                };
                states[member as usize] = self.state(Some(*outcome), false, error.as_deref());
            }
        }
        Ok(states)
    }

    pub(super) fn state(
        &self,
        ended: Option<Outcome>,
        running: bool,
        error: Option<&[u8]>,
    ) -> &'static str {
        match ended {
            Some(Outcome::Ok) => "ok",
            Some(Outcome::Aborted) => "aborted",
            Some(Outcome::Error) => {
                let said = error.map(|content| Glance::at(content, self.packing));
                match said.and_then(|said| said.ename).as_deref() {
                    Some("ImpossibleDependency" | "InvalidDependency") => "impossible",
                    _ => "failed",
                }
            }
            None if running => "running",
            None => "waiting",
        }
    }
}

impl Part {
    /// Where in the list the tasks are that these links name.
    fn after(&self, links: &Links) -> Vec<u32> {
        let mut after = Vec::new();
        for id in links.after.ids.iter().chain(&links.follow.ids) {
            if let Some(all) = self.places.get(id) {
                after.extend(all.clone());
            } else if let (base, Some(member)) = split_id(id)
                && let Some(all) = self.places.get(base)
            {
                // Of an array that is told as one, any member is that one.
                let member = u32::try_from(member).unwrap_or(u32::MAX);
                after.push(all.start.saturating_add(member).min(all.end - 1));
            }
            if after.len() > EDGES {
                break;
            }
        }
        after.sort_unstable();
        after.dedup();
        after
    }
}

fn client_of(conn: &Connection, key: u64) -> rusqlite::Result<Option<String>> {
    conn.prepare_cached("SELECT client_uuid FROM task WHERE key = ?1")?
        .query_row([key], |row| row.get(0))
}

/// The first unfinished task of a client from this key on, as far as a bounded search finds one.
fn first_open(conn: &Connection, key: u64, client: Option<&str>) -> rusqlite::Result<Option<u64>> {
    let mut select = conn.prepare_cached(
        "SELECT key, client_uuid IS ?2 FROM task INDEXED BY task_open WHERE key >= ?1 AND completed IS NULL ORDER BY key",
    )?;
    let mut rows = select.query(params![key, client])?;
    for _ in 0..ROWS {
        let Some(row) = rows.next()? else { break };
        if row.get(1)? {
            return Ok(Some(row.get(0)?));
        }
    }
    Ok(None)
}

/// What was said of a member that failed.
fn member_error(conn: &Connection, key: u64, member: u64) -> rusqlite::Result<Option<Vec<u8>>> {
    conn.prepare_cached(
        "SELECT result_content FROM piece WHERE task = ?1 AND lo <= ?2 AND hi > ?2 ORDER BY id DESC LIMIT 1",
    )?
    .query_row((key, member), |row| row.get(0))
    .optional()
    .map(Option::flatten)
}

/// The first line that says something, cut if it is long; what would steer a terminal is left out.
pub(super) fn line(text: &str) -> String {
    let line = text.lines().map(str::trim).find(|line| !line.is_empty());
    line.unwrap_or_default()
        .chars()
        .take(NAME)
        .map(kind::plain)
        .collect()
}
