//! The peer's requests, answered as its hub does.

use std::collections::HashMap;

use ipbroker_protocol::{
    message::{Registration, RegistrationReply, types},
    value::Map,
    zmq::Message,
};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::{ask::Asker, registry::Engine, renew::renewed, run::Hub};
use crate::{
    error::NamedError,
    relay::mux,
    scheduler::command::{Command, EngineTasks, TaskQueues, TaskState},
    store::{FIELDS, Lookup, Outcome, Part, Purge, Record, StoredRequest},
};

/// The fields of a record, without the two of buffers.
fn fields() -> Vec<String> {
    let fields = FIELDS.iter().filter(|field| !field.ends_with("buffers"));
    fields.map(|field| (*field).to_owned()).collect()
}

/// What a query of the history finds. There may be very many records: they are packed as they are, not turned into a [`Value`] first.
#[derive(Serialize)]
struct DbReply {
    status: &'static str,
    records: Vec<Map>,
    buffer_lens: Option<Vec<usize>>,
    result_buffer_lens: Option<Vec<usize>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    next: Option<u64>,
}

impl Hub {
    /// Serves a request of the peer's; `false`: it is none.
    pub(super) fn peer_request(&mut self, asker: &Asker, content: &Value) -> bool {
        match asker.msg_type.as_str() {
            types::REGISTRATION_REQUEST => self.register(asker, content),
            types::UNREGISTRATION_REQUEST => self.unregister(content),
            types::CONNECTION_REQUEST => {
                let engines: Map = self
                    .registry
                    .iter()
                    .map(|(id, engine)| (id.to_string(), engine.profile.uuid.clone().into()))
                    .collect();
                self.reply(asker, &json!({"status": "ok", "engines": engines}));
            }
            "queue_request" => self.queue_status(asker, content),
            "load_request" => self.load(asker, content),
            "result_request" => self.results(asker, content),
            "history_request" => {
                let answer = self.found(asker, |hub, to, ids: Vec<String>| {
                    hub.reply(&to, &json!({"status": "ok", "history": ids}));
                });
                self.links.store.history(answer);
            }
            "db_request" => self.db_query(asker, content),
            "purge_request" => self.purge(asker, content),
            "resubmit_request" => self.resubmit(asker, content),
            types::SHUTDOWN_REQUEST => self.shutdown_requested(asker),
            "become_dask_request" => self.become_dask(asker, content),
            "stop_distributed_request" => {
                self.dask.stop();
                self.reply(asker, &json!({"status": "ok"}));
            }
            _ => return false,
        }
        true
    }

    fn register(&mut self, asker: &Asker, content: &Value) {
        let registration = match Registration::deserialize(content) {
            Ok(registration) => registration,
            Err(error) => {
                return self.fail(asker, "ValueError", format!("bad registration: {error}"));
            }
        };
        let uuid = registration.uuid.clone();
        match self.registry.begin(registration) {
            Ok(mut engines) => {
                tracing::debug!(uuid, ?engines, "accepting registration");
                let reply = RegistrationReply {
                    status: "ok".into(),
                    // None: these are of a process.
                    id: engines.remove(&uuid),
                    engines,
                    hb_period: self.settings.ping.as_millis() as u64,
                    connection_info: Some(self.settings.connection_info.clone()),
                    durable: self.settings.durable,
                    pure: self.settings.scheme == "pure",
                    incarnation: self.settings.incarnation.clone(),
                    evalue: None,
                };
                self.reply(asker, &reply);
            }
            Err(refusal) => {
                tracing::error!(uuid, "registration refused: {refusal}");
                self.fail(asker, "KeyError", refusal.to_string());
            }
        }
    }

    fn unregister(&mut self, content: &Value) {
        let id = content["id"].as_u64().and_then(|id| u32::try_from(id).ok());
        let Some(id) = id else {
            return self
                .query
                .refuse("bad unregistration", &"it names no engine");
        };
        match self.registry.uuid_of(id).map(str::to_owned) {
            Some(uuid) => self.stopped(&uuid, "has ended"),
            None => tracing::debug!(id, "already unregistered"),
        }
    }

    /// The direct and scheduled tasks of all engines.
    pub(super) fn engine_tasks(
        &self,
        verbose: bool,
        rest: impl FnOnce(&mut Hub, Rows) + Send + 'static,
    ) {
        let answer = self.then(move |hub, tasks: TaskQueues| {
            let answer = hub.then(move |hub, direct| {
                rest(
                    hub,
                    Rows {
                        direct: by_uuid(direct),
                        scheduled: by_uuid(tasks.engines),
                        unassigned: tasks.unassigned,
                        ids: tasks.unassigned_ids,
                    },
                );
            });
            hub.links.mux.send(mux::Request::Status { verbose, answer });
        });
        self.links
            .tasks
            .send(Command::QueueStatus { verbose, answer });
    }

    fn queue_status(&mut self, asker: &Asker, content: &Value) {
        let targets = match self.targets(&content["targets"]) {
            Ok(targets) => targets,
            Err(error) => return self.hub_error(asker, &error),
        };
        let verbose = content["verbose"].as_bool().unwrap_or(false);
        let to = asker.clone();
        self.engine_tasks(verbose, move |hub, rows| {
            let mut reply = Map::new();
            reply.insert("status".into(), "ok".into());
            for id in targets {
                let (direct, scheduled) = rows.of(hub.registry.by_id(id));
                let row = if verbose {
                    let completed: Vec<&String> = direct.completed_ids.iter().chain(&scheduled.completed_ids).collect();
                    json!({"queue": direct.running_ids, "tasks": scheduled.running_ids, "completed": completed})
                } else {
                    let completed = direct.completed + scheduled.completed;
                    json!({"queue": direct.running, "tasks": scheduled.running, "completed": completed})
                };
                reply.insert(id.to_string(), row);
            }
            let unassigned = if verbose { json!(rows.ids) } else { json!(rows.unassigned) };
            reply.insert("unassigned".into(), unassigned);
            hub.reply(&to, &reply);
        });
    }

    fn load(&mut self, asker: &Asker, content: &Value) {
        let targets = match self.targets(&content["targets"]) {
            Ok(targets) => targets,
            Err(error) => return self.hub_error(asker, &error),
        };
        let to = asker.clone();
        self.engine_tasks(false, move |hub, rows| {
            let mut reply = Map::new();
            reply.insert("status".into(), "ok".into());
            for id in targets {
                let (direct, scheduled) = rows.of(hub.registry.by_id(id));
                reply.insert(id.to_string(), (direct.running + scheduled.running).into());
            }
            hub.reply(&to, &reply);
        });
    }

    /// Which of these tasks are unfinished, as far as task thread and direct relay know.
    fn states(
        &self,
        ids: Vec<String>,
        rest: impl FnOnce(&mut Hub, Vec<TaskState>) + Send + 'static,
    ) {
        let wanted = ids.clone();
        let answer = self.then(move |hub, tasks: Vec<TaskState>| {
            let answer = hub.then(move |hub, direct: Vec<TaskState>| {
                let both = tasks.into_iter().zip(direct);
                let states = both.map(|(task, direct)| {
                    if direct == TaskState::Running {
                        direct
                    } else {
                        task
                    }
                });
                rest(hub, states.collect());
            });
            hub.links.mux.send(mux::Request::States {
                ids: wanted,
                answer,
            });
        });
        self.links.tasks.send(Command::TaskStates { ids, answer });
    }

    fn results(&mut self, asker: &Asker, content: &Value) {
        let mut ids = strings(&content["msg_ids"]);
        ids.sort();
        ids.dedup();
        let flag = |key: &str| content[key].as_bool().unwrap_or(false);
        let status_only = flag("status_only") || flag("statusonly");
        let with_buffers = content["buffers"].as_bool().unwrap_or(true);
        let to = asker.clone();
        self.states(ids.clone(), move |hub, states| {
            let (pending, rest): (Vec<_>, Vec<_>) = ids
                .into_iter()
                .zip(states)
                .partition(|(_, state)| matches!(state, TaskState::Waiting | TaskState::Running));
            let pending: Vec<String> = pending.into_iter().map(|(id, _)| id).collect();
            let ids: Vec<String> = rest.iter().map(|(id, _)| id.clone()).collect();
            if status_only {
                let unknown: Vec<String> = rest
                    .iter()
                    .filter(|(_, state)| *state == TaskState::Unknown)
                    .map(|(id, _)| id.clone())
                    .collect();
                let failed = rest
                    .iter()
                    .filter(|(_, state)| *state == TaskState::Failed)
                    .map(|(id, _)| id.clone());
                // Ours alone ask without buffers, and for that.
                let failed = (!with_buffers).then(|| failed.collect());
                if unknown.is_empty() {
                    return hub.result_status(&to, pending, ids, failed, Vec::new());
                }
                let answer = hub.found(&to, move |hub, to, found| {
                    hub.result_status(&to, pending, ids, failed, found);
                });
                return hub.links.store.outcomes(unknown, answer);
            }
            if ids.is_empty() {
                return hub.reply(
                    &to,
                    &json!({"status": "ok", "pending": pending, "completed": []}),
                );
            }
            let answer = hub.found(&to, move |hub, to, records| {
                hub.result_records(&to, pending, &ids, records);
            });
            // Nobody asks here for what went in.
            let mut keys = fields();
            if with_buffers {
                keys.push("result_buffers".into());
            }
            let ids = rest.into_iter().map(|(id, _)| id).collect();
            hub.links.store.records(ids, Some(keys), answer);
        });
    }

    fn result_status(
        &mut self,
        to: &Asker,
        mut pending: Vec<String>,
        mut completed: Vec<String>,
        mut failed: Option<Vec<String>>,
        found: Vec<(String, Lookup)>,
    ) {
        for (id, lookup) in found {
            match lookup {
                Lookup::Done(Outcome::Ok) => {}
                Lookup::Done(_) => failed.iter_mut().for_each(|failed| failed.push(id.clone())),
                Lookup::Pending => {
                    completed.retain(|other| *other != id);
                    pending.push(id);
                }
                Lookup::Unknown => return self.reply_error(to, &no_such(&id)),
            }
        }
        let mut reply = json!({"status": "ok", "pending": pending, "completed": completed});
        if let Some(failed) = failed {
            reply["failed"] = json!(failed);
        }
        self.reply(to, &reply);
    }

    fn result_records(
        &mut self,
        to: &Asker,
        mut pending: Vec<String>,
        ids: &[String],
        records: Vec<Record>,
    ) {
        let mut reply = Map::new();
        let mut completed = Vec::new();
        let mut buffers = Vec::new();
        let mut by_id: HashMap<String, Record> = records
            .into_iter()
            .filter_map(|record| Some((record.fields.get("msg_id")?.as_str()?.to_owned(), record)))
            .collect();
        for id in ids {
            let Some(record) = by_id.remove(id) else {
                return self.reply_error(to, &no_such(id));
            };
            let field = |key: &str| record.fields.get(key).cloned().unwrap_or(Value::Null);
            if field("completed").is_null() {
                pending.push(id.clone());
                continue;
            }
            let io = json!({
                "execute_input": field("execute_input"),
                "execute_result": field("execute_result"),
                "error": field("error"),
                "stdout": field("stdout"),
                "stderr": field("stderr"),
            });
            let entry = json!({
                "header": field("header"),
                "metadata": field("metadata"),
                "result_metadata": field("result_metadata"),
                "result_header": field("result_header"),
                "result_content": field("result_content"),
                "submitted": field("submitted"),
                "received": field("received"),
                "engine_uuid": field("engine_uuid"),
                "buffers": record.result_buffers.len(),
                "io": io,
            });
            buffers.extend(record.result_buffers.into_iter().map(Message::from));
            completed.push(id.clone());
            reply.insert(id.clone(), entry);
        }
        reply.insert("status".into(), "ok".into());
        reply.insert("pending".into(), pending.into());
        reply.insert("completed".into(), completed.into());
        self.reply_with(to, &reply, buffers);
    }

    fn db_query(&mut self, asker: &Asker, content: &Value) {
        let query = match &content["query"] {
            Value::Null => Map::new(),
            Value::Object(query) => query.clone(),
            _ => return self.fail(asker, "TypeError", "a query is a dict"),
        };
        let asked = match &content["keys"] {
            Value::Null => None,
            Value::String(key) => Some(vec![key.clone()]),
            keys => Some(strings(keys)),
        };
        let has = |key: &str| {
            asked
                .as_ref()
                .is_some_and(|keys| keys.iter().any(|asked| asked == key))
        };
        let (with_buffers, with_results) = (has("buffers"), has("result_buffers"));
        let mut keys = asked.clone().unwrap_or_else(fields);
        if !keys.iter().any(|key| key == "msg_id") {
            keys.push("msg_id".into());
        }
        let part = match (&content["limit"], &content["after"]) {
            (Value::Null, _) => None,
            (limit, after) => {
                let limit = limit.as_u64().filter(|limit| *limit > 0);
                let after = if after.is_null() {
                    Some(0)
                } else {
                    after.as_u64()
                };
                let Some((limit, after)) = limit.zip(after) else {
                    let what = "`limit` is a number, at least 1, and `after` the `next` of a reply";
                    return self.fail(asker, "ValueError", what);
                };
                let limit = usize::try_from(limit).unwrap_or(usize::MAX);
                Some(Part { after, limit })
            }
        };
        let answer = self.found_large(asker, move |(records, next): (Vec<Record>, _)| {
            let mut buffers = Vec::new();
            let (mut lens, mut result_lens, mut rows) = (Vec::new(), Vec::new(), Vec::new());
            for record in records {
                if with_buffers {
                    lens.push(record.buffers.len());
                    buffers.extend(record.buffers.into_iter().map(Message::from));
                }
                if with_results {
                    result_lens.push(record.result_buffers.len());
                    buffers.extend(record.result_buffers.into_iter().map(Message::from));
                }
                rows.push(record.fields);
            }
            let reply = DbReply {
                status: "ok",
                records: rows,
                buffer_lens: with_buffers.then_some(lens),
                result_buffer_lens: with_results.then_some(result_lens),
                next,
            };
            (reply, buffers)
        });
        self.links.store.find(query, Some(keys), part, answer);
    }

    fn purge(&mut self, asker: &Asker, content: &Value) {
        let mut purges = Vec::new();
        let mut ids = Vec::new();
        if content["msg_ids"] == "all" {
            purges.push(Purge::All);
        } else {
            ids = strings(&content["msg_ids"]);
            if !ids.is_empty() {
                purges.push(Purge::Ids(ids.clone()));
            }
            for id in content["engine_ids"].as_array().into_iter().flatten() {
                let engine = id
                    .as_u64()
                    .and_then(|id| self.registry.by_id(u32::try_from(id).ok()?));
                match engine {
                    Some(engine) => purges.push(Purge::Engine(engine.profile.uuid.clone())),
                    None => {
                        return self.fail(asker, "IndexError", format!("No such engine: {id}"));
                    }
                }
            }
        }
        let to = asker.clone();
        self.states(ids.clone(), move |hub, states| {
            let running =
                |state: &TaskState| matches!(state, TaskState::Waiting | TaskState::Running);
            if let Some(at) = states.iter().position(running) {
                return hub.fail(&to, "IndexError", format!("msg pending: {:?}", ids[at]));
            }
            hub.purge_next(to, purges);
        });
    }

    fn purge_next(&mut self, to: Asker, mut purges: Vec<Purge>) {
        let Some(purge) = purges.pop() else {
            return self.reply(&to, &json!({"status": "ok"}));
        };
        let answer = self.found(&to, move |hub, to, _| hub.purge_next(to, purges));
        self.links.store.purge(purge, answer);
    }

    fn resubmit(&mut self, asker: &Asker, content: &Value) {
        let ids = strings(&content["msg_ids"]);
        let answer = self.found(asker, move |hub, to, found: Vec<StoredRequest>| {
            let known = |id: &String| found.iter().any(|task| task.msg_id == *id);
            if let Some(id) = ids.iter().find(|id| !known(id)) {
                return hub.reply_error(&to, &no_such(id));
            }
            hub.resubmit_next(to, found, Map::new());
        });
        self.links
            .store
            .requests(strings(&content["msg_ids"]), answer);
    }

    /// Submits the next of these tasks under a new id, then the others.
    fn resubmit_next(&mut self, to: Asker, mut tasks: Vec<StoredRequest>, mut done: Map) {
        let Some(task) = tasks.pop() else {
            for (old, new) in &done {
                let fields = Map::from_iter([("resubmitted".to_owned(), new.clone())]);
                self.recorder.update(old, &fields);
            }
            return self.reply(&to, &json!({"status": "ok", "resubmitted": done}));
        };
        let (new, frames) = match renewed(&self.session, &task) {
            Ok(renewed) => renewed,
            Err(error) => return self.fail(&to, "ValueError", error),
        };
        let old = task.msg_id;
        let answer = self.then(move |hub, result: Result<String, String>| match result {
            Ok(_) => {
                done.insert(old, new.into());
                hub.resubmit_next(to, tasks, done);
            }
            Err(error) => hub.fail(&to, "ValueError", error),
        });
        self.links.tasks.send(Command::Inject { frames, answer });
    }
}

/// What both relays say of the engines, by their uuids: there may be ten thousand, each of which is looked for.
pub(super) struct Rows {
    direct: HashMap<String, EngineTasks>,
    scheduled: HashMap<String, EngineTasks>,
    unassigned: u64,
    ids: Vec<String>,
}

impl Rows {
    /// What the direct relay alone says.
    pub(super) fn direct_only(direct: Vec<EngineTasks>) -> Self {
        Self {
            direct: by_uuid(direct),
            scheduled: HashMap::new(),
            unassigned: 0,
            ids: Vec::new(),
        }
    }

    /// Tasks that were sent directly and are not answered.
    pub(super) fn all_direct(&self) -> u64 {
        self.direct.values().map(|row| row.running).sum()
    }

    /// The direct and the scheduled tasks of an engine.
    fn of(&self, engine: Option<&Engine>) -> (EngineTasks, EngineTasks) {
        let uuid = engine.map_or("", |engine| &engine.profile.uuid);
        (self.direct(uuid), self.scheduled(uuid))
    }

    pub(super) fn direct(&self, uuid: &str) -> EngineTasks {
        self.direct.get(uuid).cloned().unwrap_or_default()
    }

    pub(super) fn scheduled(&self, uuid: &str) -> EngineTasks {
        self.scheduled.get(uuid).cloned().unwrap_or_default()
    }
}

fn by_uuid(rows: Vec<EngineTasks>) -> HashMap<String, EngineTasks> {
    rows.into_iter()
        .map(|row| (row.uuid.clone(), row))
        .collect()
}

fn no_such(id: &str) -> NamedError {
    NamedError::key(format!("No such message: {id}"))
}

/// One string or a list of them.
pub(super) fn strings(value: &Value) -> Vec<String> {
    match value {
        Value::String(one) => vec![one.clone()],
        Value::Array(list) => list
            .iter()
            .filter_map(Value::as_str)
            .map(str::to_owned)
            .collect(),
        _ => Vec::new(),
    }
}
