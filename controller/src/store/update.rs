//! Changes of single fields of a record, by the hub and from IOPub.

use ipbroker_protocol::session::Packer;
use rusqlite::Connection;
use rusqlite::types::Value as Sql;
use serde_json::{Map, Value};

use super::unpack::parse_time;

/// How a field of a record is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Text,
    Time,
    /// JSON text.
    Json,
    /// As on the wire.
    Packed,
}

/// The fields of a record that may be changed, and are columns of their own.
pub(crate) fn kind(field: &str) -> Option<Kind> {
    Some(match field {
        "client_uuid" | "engine_uuid" | "resubmitted" | "queue" | "execute_input" | "stdout"
        | "stderr" | "label" => Kind::Text,
        "submitted" | "started" | "completed" | "received" => Kind::Time,
        "execute_result" | "error" => Kind::Json,
        "header" | "metadata" | "content" | "result_header" | "result_metadata"
        | "result_content" => Kind::Packed,
        _ => return None,
    })
}

fn value(kind: Kind, value: &Value, packing: Packer) -> Sql {
    match (kind, value) {
        (_, Value::Null) => Sql::Null,
        (Kind::Text, Value::String(text)) => Sql::Text(text.clone()),
        (Kind::Text | Kind::Json, value) => Sql::Text(value.to_string()),
        (Kind::Time, Value::String(text)) => parse_time(text).map_or(Sql::Null, Sql::Integer),
        (Kind::Time, _) => Sql::Null,
        (Kind::Packed, value) => Sql::Blob(packing.pack(value)),
    }
}

/// Sets the fields (a JSON map) of a record.
pub(crate) fn apply(
    conn: &Connection,
    msg_id: &str,
    fields: &[u8],
    packing: Packer,
) -> rusqlite::Result<()> {
    let fields: Map<String, Value> = serde_json::from_slice(fields).unwrap_or_default();
    let mut extra = Map::new();
    let mut sets = Vec::new();
    let mut values = vec![Sql::Text(msg_id.to_owned())];
    for (field, new) in fields {
        match kind(&field) {
            Some(kind) => {
                values.push(value(kind, &new, packing));
                sets.push(format!("{field} = ?{}", values.len()));
            }
            None if field != "msg_id" => {
                extra.insert(field, new);
            }
            None => {}
        }
    }
    if !extra.is_empty() {
        values.push(Sql::Text(Value::Object(extra).to_string()));
        sets.push(format!(
            "extra = json_patch(COALESCE(extra, '{{}}'), ?{})",
            values.len()
        ));
    }
    if sets.is_empty() {
        return Ok(());
    }
    let sql = format!("UPDATE task SET {} WHERE msg_id = ?1", sets.join(", "));
    conn.prepare_cached(&sql)?
        .execute(rusqlite::params_from_iter(values))
        .map(drop)
}
