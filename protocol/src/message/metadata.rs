//! Metadata of task requests and replies.

use std::borrow::Cow;

use serde::{Deserialize, Deserializer, Serialize};

use super::is_default;
use crate::{
    dependency::Dependency,
    fields::fields,
    resources::Request,
    session::{Packer, UnpackError},
    value::{Value, or_null},
};

/// Scheduling metadata of a task request, as the scheduler reads it. Every key may be absent, null or empty.
#[derive(Debug, Clone, PartialEq, Default, Deserialize)]
#[serde(default)]
pub struct TaskMetadata {
    /// Engines (uuids) that may run it; empty: any.
    #[serde(deserialize_with = "list_or_null")]
    pub targets: Vec<String>,
    /// When it may run.
    pub after: Dependency,
    /// Where it may run: on the engine that ran these.
    pub follow: Dependency,
    /// Seconds it may wait; `None` and values ≤ 0: for ever.
    pub timeout: Option<f64>,
    /// Seconds it may run: it goes to an engine that stays so long.
    pub time: Option<f64>,
    /// How often it is tried again.
    pub retries: Option<u32>,
    /// Seconds before the first retry; twice as long before each further one.
    pub retry_delay: Option<f64>,
    /// How often it is run again after its engine was lost, apart from `retries`; `None`: that uses up a retry.
    pub max_crashes: Option<u32>,
    /// Hosts that may run it (any name of the host); empty: any.
    #[serde(deserialize_with = "list_or_null")]
    pub hosts: Vec<String>,
    /// Hosts or tags where it would rather run.
    #[serde(deserialize_with = "list_or_null")]
    pub prefer: Vec<String>,
    /// Seconds it waits for a preferred place before it goes anywhere.
    pub prefer_wait: Option<f64>,
    /// Tags its engine must have.
    #[serde(deserialize_with = "list_or_null")]
    pub tags: Vec<String>,
    /// Higher runs first, among one client's tasks.
    pub priority: Option<i32>,
    /// What it needs of its host, by name; one cpu if it says nothing.
    pub resources: Option<Request>,
    /// Alternatives of that, in order of preference; what one of them does not name is as in `resources`.
    pub any: Option<Vec<Request>>,
    /// So many whole hosts, which it holds while it runs.
    pub nodes: Option<u32>,
    /// It outlives its client.
    pub detach: Option<bool>,
    /// Its client wants `submit_ack` and acknowledges results.
    pub ack: Option<bool>,
    /// Number of members, for an array.
    pub array: Option<u64>,
    /// The array's members are told of one by one: they are calls of their own.
    pub each: Option<bool>,
    /// The members `lo..hi` of an array that this message is about.
    pub range: Option<(u64, u64)>,
    /// Fail at once, instead of waiting, when no registered engine could take it.
    pub no_wait: Option<bool>,
}

/// Metadata that our client puts on a task request.
#[serde_with::apply(_ => #[serde(skip_serializing_if = "is_default")])]
#[derive(Debug, Clone, PartialEq, Default, Serialize)]
pub struct TaskRequest {
    /// Engines (uuids) that may run it.
    pub targets: Vec<String>,
    /// When it may run.
    #[serde_with(skip_apply)]
    #[serde(skip_serializing_if = "Dependency::is_empty")]
    pub after: Dependency,
    /// Where it may run.
    #[serde_with(skip_apply)]
    #[serde(skip_serializing_if = "Dependency::is_empty")]
    pub follow: Dependency,
    /// Seconds it may wait.
    pub timeout: Option<f64>,
    /// Seconds it may run: it goes to an engine that stays so long.
    pub time: Option<f64>,
    /// How often it is tried again.
    pub retries: u32,
    /// Seconds before the first retry; twice as long before each further one.
    pub retry_delay: Option<f64>,
    /// How often it is run again after its engine was lost, apart from `retries`.
    pub max_crashes: Option<u32>,
    /// Hosts that may run it.
    pub hosts: Vec<String>,
    /// Where it would rather run.
    pub prefer: Vec<String>,
    /// Seconds it waits for a preferred place.
    pub prefer_wait: Option<f64>,
    /// Tags its engine must have.
    pub tags: Vec<String>,
    /// Higher runs first.
    pub priority: i32,
    /// What it needs of its host, by name.
    pub resources: Request,
    /// Alternatives of that, in order of preference; what one of them does not name is as in `resources`.
    pub any: Vec<Request>,
    /// So many whole hosts.
    pub nodes: u32,
    /// What the engine checks before the start.
    pub require: Require,
    /// It outlives its client.
    pub detach: bool,
    /// Acknowledge it.
    pub ack: bool,
    /// Number of members, for an array.
    pub array: Option<u64>,
    /// The array's members are told of one by one: when each ran, what it printed.
    pub each: bool,
    /// The job line as its user wrote it: kept with the record, so that results can be printed on it later.
    pub job: Option<String>,
    /// The directory where paths of the job's user begin, kept with it.
    pub job_dir: Option<String>,
}

/// What a command needs on its engine's host; anything lacking is an unmet dependency there.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Require {
    /// Programs on the `PATH`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub programs: Vec<String>,
    /// Files or directories that exist.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub files: Vec<String>,
    /// Environment variables that are set.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub variables: Vec<String>,
}

impl Require {
    /// Whether nothing is required.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.programs.is_empty() && self.files.is_empty() && self.variables.is_empty()
    }
}

/// Metadata of a reply, as the scheduler reads it.
#[derive(Debug, Clone, PartialEq, Default, Deserialize)]
#[serde(default)]
pub struct ReplyMetadata<'a> {
    /// `ok`, `error` or `aborted`.
    #[serde(borrow)]
    pub status: Cow<'a, str>,
    /// False when the engine lacked what the task needs.
    pub dependencies_met: Option<bool>,
    /// The engine's uuid.
    #[serde(borrow)]
    pub engine: Option<Cow<'a, str>>,
    /// Run time in s; of a range, the sum.
    pub duration: Option<f64>,
    /// When it began.
    #[serde(borrow)]
    pub started: Option<Cow<'a, str>>,
    /// The members `lo..hi` that this reply is about.
    pub range: Option<(u64, u64)>,
    /// Members that did not end well: index and `error`, `aborted` or `unmet`.
    #[serde(deserialize_with = "or_null", borrow)]
    pub failed: Vec<(u64, Cow<'a, str>)>,
}

impl<'a> ReplyMetadata<'a> {
    /// Reads packed metadata of a reply; the same as unpacking it, several times faster if it is of a single task.
    ///
    /// # Errors
    /// [`UnpackError`] when the bytes are something else.
    pub fn read(packer: Packer, packed: &'a [u8]) -> Result<Self, UnpackError> {
        if packer == Packer::Msgpack
            && let Some(metadata) = Self::plain(packed)
        {
            return Ok(metadata);
        }
        packer.unpack(packed)
    }

    /// That of a single task, unless it takes serde to read it.
    fn plain(packed: &'a [u8]) -> Option<Self> {
        let names = [
            "status",
            "engine",
            "started",
            "dependencies_met",
            "duration",
            "range",
            "failed",
        ];
        let [status, engine, started, met, duration, None, None] = fields(packed, names)? else {
            return None;
        };
        let mut metadata = Self::default();
        if let Some(status) = status {
            metadata.status = status.text()?.into();
        }
        for (field, text) in [
            (engine, &mut metadata.engine),
            (started, &mut metadata.started),
        ] {
            if let Some(field) = field.filter(|field| !field.is_nil()) {
                *text = Some(field.text()?.into());
            }
        }
        if let Some(met) = met.filter(|met| !met.is_nil()) {
            metadata.dependencies_met = Some(met.bool()?);
        }
        if let Some(duration) = duration.filter(|duration| !duration.is_nil()) {
            metadata.duration = Some(duration.f64()?);
        }
        Some(metadata)
    }
}

fn list_or_null<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<String>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged, expecting = "a list of names")]
    enum Shape {
        Null,
        One(String),
        // Targets of a broadcast are [uuid, id] pairs: the scheduler has no use for them, so they do not fail here.
        Many(Vec<Value>),
    }
    Ok(match Shape::deserialize(deserializer)? {
        Shape::Null => Vec::new(),
        Shape::One(name) => vec![name],
        Shape::Many(names) => {
            let names = names.iter().filter_map(|Value(name)| name.as_str());
            names.map(str::to_owned).collect()
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::session::Packer;

    #[test]
    fn the_peers_empty_keys_are_no_constraint() {
        let text = br#"{"targets":[],"after":[],"follow":null,"timeout":null,"retries":0,"unknown":{"a":1}}"#;
        let metadata: TaskMetadata = Packer::Json.unpack(text).unwrap();
        assert_eq!(
            metadata,
            TaskMetadata {
                retries: Some(0),
                ..TaskMetadata::default()
            }
        );
    }

    #[test]
    fn what_we_send_is_what_the_scheduler_reads() {
        let request = TaskRequest {
            hosts: vec!["a".into()],
            array: Some(3),
            ack: true,
            ..TaskRequest::default()
        };
        for packer in [Packer::Msgpack, Packer::Json] {
            let packed = packer.pack(&request);
            let metadata: TaskMetadata = packer.unpack(&packed).unwrap();
            assert_eq!(
                (metadata.hosts.len(), metadata.array, metadata.ack),
                (1, Some(3), Some(true))
            );
            let reply = serde_json::json!({"failed": [[3, "error"]], "range": [2, 9]});
            let packed = packer.pack(&reply);
            let read: ReplyMetadata<'_> = packer.unpack(&packed).unwrap();
            assert_eq!((read.range, read.failed.len()), (Some((2, 9)), 1));
        }
    }
}
