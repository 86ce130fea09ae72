//! Answers queries from the history: on a thread of its own with its own connection, or, in memory, on the store thread.

use crossbeam_channel::Receiver;
use ipbroker_protocol::session::Packer;
use rusqlite::types::Value as Sql;
use rusqlite::{Connection, OptionalExtension, params_from_iter};
use serde_json::{Map, Value};

use super::event::Outcome;
use super::filter::{FIELDS, Filter, Op};
use super::handle::{Lookup, Part, Purge, Query, Record, StoredReply, StoredRequest};
use super::row::{FULL, LIGHT, Piece, Task, find_key, is_light};
use super::spill::Spill;
use crate::error::NamedError;

/// A reply has at most this many records, and this many bytes of buffers: what is larger than memory is no answer.
const MOST_RECORDS: usize = 2_000_000;
const MOST_BYTES: u64 = 4 << 30;

type Answered<T> = Result<T, NamedError>;

/// Answers queries on a connection.
#[derive(Debug, Clone)]
pub(crate) struct Reader {
    pub(crate) packing: Packer,
    pub(crate) spill: Spill,
}

impl Reader {
    /// The reader thread: runs until the store thread ends.
    pub(crate) fn serve(&self, conn: &Connection, queries: &Receiver<Query>) {
        for query in queries {
            query(Ok((self, conn)));
        }
    }

    pub(crate) fn records(
        &self,
        conn: &Connection,
        msg_ids: &[String],
        keys: Option<&[String]>,
    ) -> Answered<Vec<Record>> {
        let mut found = Found::default();
        for msg_id in msg_ids {
            if let Some(task) = Task::load(conn, msg_id, &self.spill, self.packing)? {
                found.push(task.record(keys, &self.spill, self.packing)?)?;
            }
        }
        Ok(found.records)
    }

    pub(crate) fn find(
        &self,
        conn: &Connection,
        query: &Map<String, Value>,
        keys: Option<&[String]>,
        part: Option<Part>,
    ) -> Answered<(Vec<Record>, Option<u64>)> {
        let filter = Filter::parse(query)?;
        // As with the peer, no keys are all keys.
        let keys = keys.filter(|k| !k.is_empty());
        if let Some(keys) = keys {
            let bad: Vec<_> = keys
                .iter()
                .filter(|k| !FIELDS.contains(&k.as_str()))
                .map(|k| format!("'{k}'"))
                .collect();
            if !bad.is_empty() {
                return Err(NamedError::key(format!(
                    "Bad record key(s): [{}]",
                    bad.join(", ")
                )));
            }
        }
        if let Some(ids) = named_ids(&filter) {
            let mut found = Found::default();
            let mut seen = std::collections::HashSet::new();
            for id in ids.into_iter().filter(|id| seen.insert(id.clone())) {
                if let Some(task) = Task::load(conn, &id, &self.spill, self.packing)?
                    && filter.matches(&|name| task.field(name, self.packing))
                {
                    found.push(task.record(keys, &self.spill, self.packing)?)?;
                }
            }
            return Ok((found.records, None));
        }
        let mut tested = Vec::new();
        filter.fields(&mut tested);
        let light_test = tested.iter().all(|f| is_light(f));
        let light_record = keys.is_some_and(|keys| keys.iter().all(|k| is_light(k)));
        let (mut conditions, mut values) = narrow(&filter);
        let columns = if light_test { LIGHT } else { FULL };
        let order = match part {
            None => "submitted, key",
            Some(part) => {
                values.push(Sql::Integer(part.after.cast_signed()));
                conditions.push(format!("key > ?{}", values.len()));
                "key"
            }
        };
        let conditions = match conditions.join(" AND ") {
            all if all.is_empty() => all,
            all => format!(" WHERE {all}"),
        };
        let sql = format!("SELECT {columns} FROM task{conditions} ORDER BY {order}");
        let mut select = conn.prepare_cached(&sql)?;
        let mut rows = select.query(params_from_iter(values))?;
        let mut found = Found::default();
        while let Some(row) = rows.next()? {
            let read = if light_test {
                Task::light(row)
            } else {
                Task::full(row)
            };
            let mut task = read?;
            if !filter.matches(&|name| task.field(name, self.packing)) {
                continue;
            }
            let key = task.key;
            if light_test && !light_record {
                match Task::by_key(conn, task.key)? {
                    Some(full) => task = full,
                    None => continue,
                }
            }
            if !light_record {
                task.count_members(conn)?;
            }
            found.push(task.record(keys, &self.spill, self.packing)?)?;
            if part.is_some_and(|part| found.records.len() >= part.limit) {
                return Ok((found.records, Some(key)));
            }
        }
        Ok((found.records, None))
    }

    pub(crate) fn requests(
        &self,
        conn: &Connection,
        msg_ids: Vec<String>,
    ) -> Answered<Vec<StoredRequest>> {
        let mut requests = Vec::new();
        for msg_id in msg_ids {
            let Some((key, member)) = find_key(conn, &msg_id)? else {
                continue;
            };
            let Some(task) = Task::by_key(conn, key)? else {
                continue;
            };
            // A record that was made for output has no request.
            if task.request.header.is_some() {
                let frames = task.request.frames(&self.spill, self.packing)?;
                requests.push(StoredRequest {
                    msg_id,
                    member,
                    count: task.count,
                    client: task.client,
                    frames,
                });
            }
        }
        Ok(requests)
    }

    pub(crate) fn replies(
        &self,
        conn: &Connection,
        msg_ids: Vec<String>,
    ) -> Answered<Vec<StoredReply>> {
        let mut replies = Vec::new();
        for msg_id in msg_ids {
            let Some((key, None)) = find_key(conn, &msg_id)? else {
                continue;
            };
            let Some(task) = Task::by_key(conn, key)? else {
                continue;
            };
            // A reply's parent is the request's header; it is not kept twice.
            let parent = task.request.header;
            if task.count > 1 {
                for piece in Piece::all(conn, key)? {
                    let Some(outcome) = Outcome::of(&piece.status) else {
                        continue;
                    };
                    let mut frames = piece.result.frames(&self.spill, self.packing)?;
                    frames[1] = parent.clone().unwrap_or_default();
                    replies.push(StoredReply {
                        msg_id: msg_id.clone(),
                        range: piece.lo..piece.hi,
                        outcome,
                        frames,
                    });
                }
            } else if let Some(outcome) = Outcome::of(&task.status) {
                let mut frames = task.result.frames(&self.spill, self.packing)?;
                frames[1] = parent.unwrap_or_default();
                replies.push(StoredReply {
                    msg_id,
                    range: 0..1,
                    outcome,
                    frames,
                });
            }
        }
        Ok(replies)
    }
}

/// What a query has found, within bounds.
#[derive(Default)]
struct Found {
    records: Vec<Record>,
    bytes: u64,
}

impl Found {
    fn push(&mut self, record: Record) -> Answered<()> {
        let frames = record.buffers.iter().chain(&record.result_buffers);
        self.bytes += frames.map(|f| f.len() as u64).sum::<u64>();
        self.records.push(record);
        if self.records.len() > MOST_RECORDS || self.bytes > MOST_BYTES {
            return Err(NamedError::value(format!(
                "more than {MOST_RECORDS} records or {} GiB of buffers match: narrow the query, or ask for fewer keys",
                MOST_BYTES >> 30
            )));
        }
        Ok(())
    }
}

/// The ids a record must have one of, if the query says so.
fn named_ids(filter: &Filter) -> Option<Vec<String>> {
    let text = |v: &Value| v.as_str().map(str::to_owned);
    match filter {
        Filter::All(list) => list.iter().find_map(named_ids),
        Filter::Field(name, Op::Eq, value) if name == "msg_id" && value.is_string() => {
            Some(text(value).into_iter().collect())
        }
        Filter::Field(name, Op::In, Value::Array(list)) if name == "msg_id" => {
            Some(list.iter().filter_map(text).collect())
        }
        _ => None,
    }
}

/// Conditions that every match fulfils, so that the database need not read the others.
fn narrow(filter: &Filter) -> (Vec<String>, Vec<Sql>) {
    let (mut conditions, mut values) = (Vec::new(), Vec::new());
    fn visit(filter: &Filter, conditions: &mut Vec<String>, values: &mut Vec<Sql>) {
        match filter {
            Filter::All(list) => list.iter().for_each(|f| visit(f, conditions, values)),
            Filter::Field(name, op, operand) if is_light(name) => {
                let sql = match (op, operand) {
                    (Op::Eq, Value::Null) => return conditions.push(format!("{name} IS NULL")),
                    (Op::Ne, Value::Null) => return conditions.push(format!("{name} IS NOT NULL")),
                    (Op::Eq, _) => "=",
                    (Op::Lt, _) => "<",
                    (Op::Lte, _) => "<=",
                    (Op::Gt, _) => ">",
                    (Op::Gte, _) => ">=",
                    _ => return,
                };
                let value = match operand {
                    Value::String(text) => Sql::Text(text.clone()),
                    Value::Number(n) => match n.as_i64() {
                        Some(n) => Sql::Integer(n),
                        None => return,
                    },
                    _ => return,
                };
                values.push(value);
                conditions.push(format!("{name} {sql} ?{}", values.len()));
            }
            _ => {}
        }
    }
    visit(filter, &mut conditions, &mut values);
    (conditions, values)
}

pub(super) fn history(conn: &Connection) -> rusqlite::Result<Vec<String>> {
    let mut select = conn.prepare_cached(
        "SELECT msg_id FROM task WHERE submitted IS NOT NULL ORDER BY submitted, key",
    )?;
    select.query_map([], |row| row.get(0))?.collect()
}

pub(super) fn outcomes(
    conn: &Connection,
    msg_ids: Vec<String>,
) -> rusqlite::Result<Vec<(String, Lookup)>> {
    let mut found = Vec::with_capacity(msg_ids.len());
    for msg_id in msg_ids {
        let lookup = match find_key(conn, &msg_id)? {
            None => Lookup::Unknown,
            Some((key, None)) => {
                let status: Option<(String, bool)> = conn
                    .prepare_cached("SELECT status, queue IS NOT NULL FROM task WHERE key = ?1")?
                    .query_row([key], |row| row.try_into())
                    .optional()?;
                match status {
                    Some((status, true)) => {
                        Outcome::of(&status).map_or(Lookup::Pending, Lookup::Done)
                    }
                    _ => Lookup::Unknown,
                }
            }
            Some((key, Some(member))) => {
                let outcome = Piece::of(conn, key, member)?.and_then(|piece| piece.outcome(member));
                outcome.map_or(Lookup::Pending, Lookup::Done)
            }
        };
        found.push((msg_id, lookup));
    }
    Ok(found)
}

pub(super) fn purge_keys(conn: &Connection, what: &Purge) -> rusqlite::Result<Vec<u64>> {
    let collect = |sql: &str, value: &[&str]| -> rusqlite::Result<Vec<u64>> {
        let mut select = conn.prepare_cached(sql)?;
        select
            .query_map(params_from_iter(value), |row| row.get(0))?
            .collect()
    };
    match what {
        Purge::All => collect("SELECT key FROM task WHERE completed IS NOT NULL", &[]),
        Purge::Engine(uuid) => collect(
            "SELECT key FROM task WHERE engine_uuid = ?1 AND completed IS NOT NULL",
            &[uuid],
        ),
        Purge::Ids(ids) => {
            let mut keys = Vec::new();
            for id in ids {
                if let Some((key, None)) = find_key(conn, id)? {
                    keys.push(key);
                }
            }
            Ok(keys)
        }
    }
}
