//! Tasks that are found by words of them: in the whole history, the newest first, within bounds of size and time.

use ipbroker_protocol::array::member_id;
use ipbroker_protocol::message::{GraphTask, SearchReply, SearchRequest};
use rusqlite::{Connection, Row};

use super::apply::NAME_CHARS;
use super::event::Outcome;
use super::graph::line;
use super::query::Reader;
use super::row::{Message, find_key, member_argument};
use super::unpack::Glance;
use crate::error::NamedError;

/// Tasks that are told at once, and members of one array.
const TASKS: usize = 50;
const MEMBERS: usize = 10;
/// Rows and bytes that are looked at, at once.
const ROWS: usize = 20_000;
const BYTES: usize = 16 << 20;

impl Reader {
    /// The newest tasks with this text in their id, command or function.
    ///
    /// # Errors
    /// When the text is empty, the task to begin at is not known, or the database cannot be read.
    pub(super) fn search(
        &self,
        conn: &Connection,
        request: &SearchRequest,
    ) -> Result<SearchReply, NamedError> {
        let text = request.text.trim().to_lowercase();
        if text.is_empty() {
            return Err(NamedError::value("a search_request has a `text`"));
        }
        let before = match &*request.before {
            "" => i64::MAX.cast_unsigned(),
            id => match find_key(conn, id)? {
                Some((key, _)) => key,
                None => {
                    return Err(NamedError::key(format!(
                        "nothing is recorded of a task {id:?}"
                    )));
                }
            },
        };
        let mut select = conn
            .prepare_cached(
                "SELECT key, msg_id, count, COALESCE(name, label), msg_type, status,
                    CASE WHEN status = 'error' THEN result_content END, request_file,
                    CASE WHEN msg_type = 'command_request' AND (count > 1 OR length(name) >= ?2) THEN content END,
                    CASE WHEN msg_type = 'command_request' AND count > 1 THEN buffers END
                 FROM task WHERE key < ?1 ORDER BY key DESC",
            )?;
        let mut rows = select.query((before, NAME_CHARS))?;
        let (mut reply, mut looked, mut bytes) = (SearchReply::default(), 0, 0);
        while let Some(row) = rows.next()? {
            bytes += self.look(conn, row, &text, &mut reply.tasks)?;
            looked += 1;
            if reply.tasks.len() >= TASKS || looked >= ROWS || bytes >= BYTES {
                reply.before = Some(row.get(1)?);
                break;
            }
        }
        Ok(reply)
    }

    /// Adds what there is of this submission. How many bytes were read.
    fn look(
        &self,
        conn: &Connection,
        row: &Row<'_>,
        text: &str,
        found: &mut Vec<GraphTask>,
    ) -> Result<usize, NamedError> {
        let read = || -> rusqlite::Result<_> {
            let request = Message {
                file: row.get(7)?,
                content: row.get(8)?,
                buffers: row.get(9)?,
                ..Message::default()
            };
            let name: Option<String> = row.get(3)?;
            let kind: Option<String> = row.get(4)?;
            Ok((
                row.get(0)?,
                row.get::<_, String>(1)?,
                row.get(2)?,
                name,
                kind,
                request,
            ))
        };
        let (key, id, count, name, kind, request) = read()?;
        let has = |what: &str| what.to_lowercase().contains(text);
        let name = name.unwrap_or_default();
        let task = |id: String, what: &str, state: &str, count: u64| GraphTask {
            id,
            name: match line(what) {
                named if named.is_empty() => {
                    let kind = kind.as_deref().unwrap_or_default();
                    kind.strip_suffix("_request").unwrap_or(kind).to_owned()
                }
                named => named,
            },
            state: state.to_owned(),
            count,
            after: Vec::new(),
        };
        let whole = || -> rusqlite::Result<&str> {
            let status: String = row.get(5)?;
            let error: Option<Vec<u8>> = row.get(6)?;
            let running = matches!(&*status, "dispatched" | "running");
            Ok(self.state(Outcome::of(&status), running, error.as_deref()))
        };
        let size = [&request.content, &request.buffers];
        let size = size.into_iter().flatten().map(Vec::len).sum();
        let content = request.content.as_deref().unwrap_or_default();
        // Of a long command its row has the start.
        let long = || has(&Glance::at(content, self.packing).cmd.unwrap_or_default());
        if has(&id) || has(&name) || (count == 1 && !content.is_empty() && long()) {
            found.push(task(id, &name, whole()?, count));
            return Ok(size);
        }
        if request.buffers.is_none() {
            return Ok(size);
        }
        // What is in a file that was removed meanwhile is not found.
        let Ok((_, arguments)) = request.content_and_buffers(&self.spill) else {
            return Ok(size);
        };
        let size = size + arguments.iter().map(|buffer| buffer.len()).sum::<usize>();
        let mut members: Vec<(u64, String)> = Vec::new();
        let mut all = 0;
        for member in 0..count {
            let Some(own) = member_argument(&arguments, member) else {
                break;
            };
            if let Some(cmd) = Glance::at(own, self.packing).cmd
                && has(&cmd)
            {
                all += 1;
                if members.len() < MEMBERS {
                    members.push((member, cmd.into_owned()));
                }
            }
        }
        if all > members.len() as u64 {
            let state = whole()?;
            found.push(task(id, &members[0].1, state, all));
        } else if !members.is_empty() {
            let states = self.states(conn, key, count)?;
            let told = members.into_iter();
            found.extend(told.map(|(member, cmd)| {
                task(member_id(&id, member), &cmd, states[member as usize], 1)
            }));
        }
        Ok(size)
    }
}
