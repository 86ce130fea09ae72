//! What our own programs ask about a task: why it is where it is, what it has written, which others it waits for.

use ipbroker_protocol::message::{
    GraphReply, OutputReply, OutputRequest, SearchReply, Unschedulable, types,
};
use serde_json::{Map, Value, json};

use super::{ask::Asker, run::Hub};
use crate::{
    error::NamedError,
    scheduler::command::{Command, Explanation, TaskState},
    scheduler::task::last_line,
    store::Record,
};

impl Hub {
    pub(super) fn explain(&mut self, asker: &Asker, content: &Value) {
        let to = asker.clone();
        let id = match &content["msg_id"] {
            Value::String(id) => id.to_owned(),
            Value::Null => {
                let session = asker.session.clone();
                let answer = self.then(move |hub, waits: Vec<Unschedulable>| {
                    hub.reply(&to, &json!({"status": "ok", "waits": waits}));
                });
                let ask = Command::Unschedulable { session, answer };
                return self.links.tasks.send(ask);
            }
            _ => {
                return self.fail(
                    asker,
                    "ValueError",
                    "the msg_id of an explain_request is a text",
                );
            }
        };
        let (to, wanted) = (asker.clone(), id.clone());
        let answer = self.then(move |hub, explanation: Explanation| {
            match explanation.state {
                TaskState::Unknown => {}
                TaskState::Done | TaskState::Failed => {
                    return hub.explain_past(to, wanted, explanation);
                }
                _ => return hub.explained(&to, &explanation),
            }
            let id = wanted.clone();
            hub.direct(Some(vec![wanted]), move |hub, direct| match direct.keys().next() {
                Some(uuid) => {
                    let id = hub.registry.by_uuid(uuid).map_or(String::new(), |engine| format!(" {}", engine.profile.id));
                    let text = format!("It was sent directly to engine{id} ({uuid}), which has not answered yet.");
                    hub.explained(&to, &Explanation { state: TaskState::Running, text, engines: Vec::new() });
                }
                None => {
                    let text = format!("Nothing is known of a task {id}.");
                    let unknown = Explanation { state: TaskState::Unknown, text, engines: Vec::new() };
                    hub.explain_past(to, id, unknown);
                }
            });
        });
        self.links.tasks.send(Command::Explain { id, answer });
    }

    /// What a running task has written: its engine knows.
    pub(super) fn output(&mut self, asker: &Asker, content: Value) {
        let Some(request) = self.read::<OutputRequest>(asker, content) else {
            return;
        };
        if request.msg_id.is_empty() {
            return self.fail(asker, "ValueError", "an output_request names a msg_id");
        }
        let (to, id) = (asker.clone(), request.msg_id.clone());
        let answer = self.then(move |hub, engine: Option<String>| {
            if let Some(engine) = engine {
                return hub.output_of(to, &engine, request);
            }
            let ids = Some(vec![request.msg_id.clone()]);
            hub.direct(ids, move |hub, direct| match direct.keys().next() {
                Some(engine) => hub.output_of(to, engine, request),
                // It waits, or has ended, or nobody knows it.
                None => hub.reply_ok(&to, &OutputReply::default()),
            });
        });
        self.links.tasks.send(Command::EngineOf { id, answer });
    }

    fn output_of(&mut self, to: Asker, engine: &str, request: OutputRequest) {
        if !self.is_ours(engine) {
            let what = format!("engine {engine} does not tell what its tasks have written");
            return self.fail(&to, "NotImplementedError", what);
        }
        let name = engine.to_owned();
        let answer = self.then(move |hub, content: Option<Value>| match content {
            Some(content) => hub.reply(&to, &content),
            None => hub.fail(&to, "EngineError", format!("engine {name} does not answer")),
        });
        let control = &self.links.control;
        control.ask(engine, types::OUTPUT_REQUEST, &request, Some(answer));
    }

    /// Which tasks of a submission wait for which: the store knows, also of those that have ended.
    pub(super) fn graph(&mut self, asker: &Asker, content: Value) {
        let Some(request) = self.read(asker, content) else {
            return;
        };
        let answer = self.found(asker, |hub, to, graph: GraphReply| {
            hub.reply_ok(&to, &graph)
        });
        self.links.store.graph(request, answer);
    }

    /// Tasks by words of them: the store knows all that there ever were.
    pub(super) fn search(&mut self, asker: &Asker, content: Value) {
        let Some(request) = self.read(asker, content) else {
            return;
        };
        let answer = self.found(asker, |hub, to, found: SearchReply| {
            hub.reply_ok(&to, &found)
        });
        self.links.store.search(request, answer);
    }

    /// What became of a task, as the history has it; `or`: what is said if that does not know it.
    fn explain_past(&mut self, to: Asker, id: String, mut or: Explanation) {
        let answer = self.then(move |hub, found: Result<Vec<Record>, NamedError>| {
            if let Some(record) = found.unwrap_or_default().first() {
                let fields = &record.fields;
                (or.state, or.text) = match fields["completed"].is_null() {
                    false => (TaskState::Done, hub.ended_words(fields)),
                    true if or.state == TaskState::Unknown => (
                        TaskState::Waiting,
                        "It is recorded as unfinished.".to_owned(),
                    ),
                    true => (or.state, or.text),
                };
            }
            hub.explained(&to, &or);
        });
        let keys = [
            "engine_uuid",
            "completed",
            "result_metadata",
            "result_content",
        ];
        let keys = keys.map(str::to_owned).to_vec();
        self.links.store.records(vec![id], Some(keys), answer);
    }

    /// How a task ended: where, at which try, after how long, with what.
    fn ended_words(&self, fields: &Map<String, Value>) -> String {
        let (metadata, content) = (&fields["result_metadata"], &fields["result_content"]);
        if let (Some(count), [ok, error, aborted]) = (
            content["count"].as_u64(),
            ["ok", "error", "aborted"].map(|key| &content[key]),
        ) {
            return format!(
                "It has ended: of its {count} tasks {ok} ended well, {error} failed, {aborted} were aborted; ID:INDEX names one of them."
            );
        }
        let text = |key: &str| content[key].as_str().unwrap_or_default();
        let code = content["code"]
            .as_i64()
            .filter(|_| text("ename").is_empty());
        let what = match (text("status"), code) {
            ("ok", None | Some(0)) => "It ended well",
            ("aborted", _) => "It was aborted",
            _ => "It failed",
        };
        let engine = fields["engine_uuid"].as_str().unwrap_or_default();
        let known = self
            .registry
            .by_uuid(engine)
            .map(|engine| engine.profile.id.into());
        let id = metadata.get("engine_id").cloned().or(known);
        let place = match (
            id.as_ref().and_then(Value::as_u64),
            metadata["host"].as_str(),
        ) {
            (Some(id), Some(host)) => format!(" on engine {id} ({host})"),
            (Some(id), None) => format!(" on engine {id}"),
            _ => String::new(),
        };
        let attempt = metadata["attempt"].as_u64().filter(|attempt| *attempt > 0);
        // Not tries: what was given back unstarted counts, too.
        let given = attempt.map_or(String::new(), |attempt| {
            format!(", given out {} times", attempt + 1)
        });
        let duration = metadata["duration"].as_f64();
        let took = duration.map_or(String::new(), |s| format!(", after {s:.1} s"));
        let mut why: Vec<String> = match (text("ename"), text("evalue")) {
            ("", _) => Vec::new(),
            (ename, evalue) => {
                let lines: Vec<&str> = evalue.lines().map(str::trim).collect();
                vec![format!("{ename}: {}", lines.join("; "))]
            }
        };
        why.extend(match code {
            None | Some(0) => None,
            Some(code @ 129..) => Some(format!("exit code {code} (signal {})", code - 128)),
            Some(code) => Some(format!("exit code {code}")),
        });
        let said = last_line(text("stderr"));
        if !said.is_empty() && what != "It ended well" {
            why.push(format!("the last line of its stderr is: {said}"));
        }
        let why = why.join("; ");
        let colon = if why.is_empty() { "." } else { ": " };
        format!("{what}{place}{given}{took}{colon}{why}")
    }

    fn explained(&mut self, to: &Asker, explanation: &Explanation) {
        let state = match explanation.state {
            TaskState::Waiting => "waiting",
            TaskState::Running => "running",
            TaskState::Done | TaskState::Failed => "done",
            TaskState::Unknown => "unknown",
        };
        let engines: Vec<(String, &String)> = explanation
            .engines
            .iter()
            .map(|(uuid, why)| {
                let name = self.registry.by_uuid(uuid).map(|engine| {
                    let host = engine.profile.host.first().map_or("", String::as_str);
                    format!("{} {host}", engine.profile.id)
                        .trim_end()
                        .to_owned()
                });
                (name.unwrap_or_else(|| uuid.clone()), why)
            })
            .collect();
        let mut text = explanation.text.clone();
        if explanation.state == TaskState::Waiting
            && let Some(batch) = &self.batch
        {
            text = format!("{text} {}", batch_words(batch));
        }
        let reply = json!({"status": "ok", "state": state, "text": text, "engines": engines});
        self.reply(to, &reply);
    }
}

/// What a batch system was asked for, for somebody whose task waits.
fn batch_words(batch: &Value) -> String {
    let system = batch["system"].as_str().unwrap_or_default();
    let jobs = batch["jobs"].as_array().map_or(&[][..], Vec::as_slice);
    let word = |job: &Value| {
        let text = |key: &str| job[key].as_str().unwrap_or_default().to_owned();
        let engines = match job["engines"].as_u64().unwrap_or_default() {
            1 => "1 engine".to_owned(),
            engines => format!("{engines} engines"),
        };
        format!("{} ({engines}, {})", text("job"), text("state"))
    };
    let mut words: Vec<String> = jobs.iter().map(word).collect();
    words.extend(batch["trouble"].as_str().map(str::to_owned));
    if words.is_empty() {
        words.push("none".to_owned());
    }
    format!("Jobs of {system}: {}.", words.join(", "))
}
