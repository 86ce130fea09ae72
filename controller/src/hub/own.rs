//! What only our own programs ask.

use std::time::Instant;

use ipbroker_protocol::{
    array::View,
    envelope::DELIMITER,
    message::{
        AbortReply, AbortRequest, EngineDied, EngineInfo, GraphReply, GraphRequest, Header,
        LeaseReply, OutputReply, OutputRequest, Stats, types,
    },
    route,
    session::{Packer, Session},
    value::{AnyMap, Map},
    zmq::Message,
};
use serde::Deserialize;
use serde_json::{Value, json};

use super::{
    ask::{Asker, HubError},
    peer::{renewed_header, strings},
    run::Hub,
};
use crate::{
    relay::{iopub, mux},
    scheduler::command::{
        Aborted, Command, Departure, Explanation, Selection, TaskState, TaskTotals,
    },
    store::{Lookup, StoredReply, StoredRequest},
};

/// Bytes of buffers in one `replies_reply`.
const REPLIES: usize = 256 << 20;

impl Hub {
    /// Serves a request of our own programs'; `false`: it is none.
    pub(super) fn own_request(&mut self, asker: &Asker, content: Value) -> bool {
        match asker.msg_type.as_str() {
            types::LEASE_REQUEST => self.lease(asker),
            types::ABORT_REQUEST => self.abort(asker, content),
            types::EXPLAIN_REQUEST => self.explain(asker, &content),
            types::OUTPUT_REQUEST => self.output(asker, content),
            types::GRAPH_REQUEST => self.graph(asker, content),
            types::STATS_REQUEST => {
                let to = asker.clone();
                let answer = self.then(move |hub, stats: Stats| hub.reply_ok(&to, &stats));
                self.links.tasks.send(Command::Stats { answer });
            }
            types::WEB_REQUEST => match self.settings.web.clone() {
                Some(web) => self.reply_ok(asker, &web),
                None => {
                    let what = "this controller has no page: start it with `ipctl --web`";
                    self.reply_error(asker, &HubError::new("RuntimeError", what.to_owned()));
                }
            },
            types::ENGINES_REQUEST => self.engines(asker),
            types::STATUS_REQUEST => self.status(asker),
            types::EVENTS_REQUEST => self.events(asker, content),
            types::REPLIES_REQUEST => self.replies(asker, &content),
            types::ENGINE_DIED => self.died(asker, content),
            _ => return false,
        }
        true
    }

    /// Answers with a content that has no `status` of its own.
    pub(super) fn reply_ok(&mut self, to: &Asker, content: &impl serde::Serialize) {
        let mut content = serde_json::to_value(content).unwrap_or_default();
        content["status"] = "ok".into();
        self.reply(to, &content, Vec::new());
    }

    fn lease(&mut self, asker: &Asker) {
        self.leases.renew(&asker.session, Instant::now());
        let reply = LeaseReply {
            incarnation: self.settings.incarnation.clone(),
            lease: self.leases.seconds(),
            troubles: self.all_troubles(),
            bundles: self.settings.scheme != "pure",
        };
        self.reply(asker, &reply, Vec::new());
    }

    /// Clients of an earlier controller have a lease from now on: one that vanished with it takes its tasks along.
    pub(super) fn await_clients(&mut self) {
        let answer = self.then(move |hub, sessions: Vec<String>| {
            for session in sessions {
                hub.leases.renew(&session, Instant::now());
            }
        });
        self.links.tasks.send(Command::Attached { answer });
    }

    /// A client's lease ran out: its tasks that are not detached go with it.
    pub(super) fn client_gone(&mut self, session: String) {
        tracing::debug!(session, "a client is gone: its lease ran out");
        let name = session.clone();
        let answer = self.then(move |hub, report: Aborted| {
            let running: usize = report.running.iter().map(|(_, ids)| ids.len()).sum();
            if !report.aborted.is_empty() || running > 0 {
                tracing::info!(
                    session = name,
                    waiting = report.aborted.len(),
                    running,
                    "a client is gone: its lease ran out, its tasks are dropped"
                );
            }
            hub.stop_running(&report.running, true);
        });
        self.links
            .tasks
            .send(Command::ClientGone { session, answer });
    }

    fn abort(&mut self, asker: &Asker, content: Value) {
        let request = match AbortRequest::deserialize(content) {
            Ok(request) => request,
            Err(error) => {
                return self.reply_error(asker, &HubError::new("ValueError", error.to_string()));
            }
        };
        let selection = match (request.msg_ids, request.session, request.all) {
            (Some(ids), None, false) => Selection::Ids(ids),
            (None, Some(session), false) => Selection::Session(session),
            (None, None, true) => Selection::All,
            _ => {
                let what = "an abort_request names msg_ids, or a session, or all";
                return self.reply_error(asker, &HubError::new("ValueError", what));
            }
        };
        let (to, kill, wanted) = (asker.clone(), request.kill, selection.clone());
        let answer = self.then(move |hub, report: Aborted| {
            let ids = match wanted {
                Selection::Ids(_) => Some(report.unknown.clone()),
                Selection::All => None,
                // Direct tasks belong to views, which abort by id.
                Selection::Session(_) => Some(Vec::new()),
            };
            let answer = hub.then(move |hub, direct| hub.aborted(&to, report, direct, kill));
            hub.links.mux.send(mux::Request::Running { ids, answer });
        });
        self.links.tasks.send(Command::Abort {
            selection,
            kill,
            answer,
        });
    }

    fn aborted(
        &mut self,
        to: &Asker,
        mut report: Aborted,
        direct: Vec<(String, Vec<String>)>,
        kill: bool,
    ) {
        for (_, ids) in &direct {
            report.unknown.retain(|unknown| !ids.contains(unknown));
        }
        report.running.extend(direct);
        self.stop_running(&report.running, kill);
        let stopping = report.running.iter().map(|(_, ids)| ids.len() as u64).sum();
        let reply = AbortReply {
            status: "ok".into(),
            aborted: report.aborted.len() as u64,
            stopping: if kill { stopping } else { 0 },
            done: report.finished,
            unknown: report.unknown,
        };
        if reply.unknown.is_empty() {
            return self.reply(to, &reply, Vec::new());
        }
        // The task thread forgets what is done; the store may know it.
        let (to, ids) = (to.clone(), reply.unknown.clone());
        let answer = self.stored(move |hub, found: Result<Vec<(String, Lookup)>, HubError>| {
            let mut reply = reply;
            for (id, lookup) in found.unwrap_or_default() {
                if matches!(lookup, Lookup::Done(_)) {
                    reply.unknown.retain(|unknown| *unknown != id);
                    reply.done.push(id);
                }
            }
            hub.reply(&to, &reply, Vec::new());
        });
        self.links.store.outcomes(ids, answer);
    }

    /// Tells engines to drop tasks that they have not begun and, with `kill`, to stop those they have.
    fn stop_running(&mut self, running: &[(String, Vec<String>)], kill: bool) {
        for (uuid, ids) in running.iter().filter(|(_, ids)| !ids.is_empty()) {
            let ours = self
                .registry
                .by_uuid(uuid)
                .is_some_and(|engine| engine.profile.is_ours());
            let request = AbortRequest {
                msg_ids: Some(ids.clone()),
                kill: kill && ours,
                ..AbortRequest::default()
            };
            self.links
                .control
                .send(uuid, types::ABORT_REQUEST, &request);
            if kill && !ours {
                for id in ids {
                    self.links
                        .iopub
                        .send(iopub::Request::Interrupt(uuid.clone(), id.clone()));
                }
            }
        }
    }

    fn explain(&mut self, asker: &Asker, content: &Value) {
        let Some(id) = content["msg_id"].as_str().map(str::to_owned) else {
            return self.reply_error(
                asker,
                &HubError::new("ValueError", "an explain_request names a msg_id"),
            );
        };
        let (to, wanted) = (asker.clone(), id.clone());
        let answer = self.then(move |hub, explanation: Explanation| {
            if explanation.state != TaskState::Unknown {
                return hub.explained(&to, &explanation);
            }
            let id = wanted.clone();
            let answer = hub.then(move |hub, direct: Vec<(String, Vec<String>)>| match direct.first() {
                Some((uuid, _)) => {
                    let id = hub.registry.by_uuid(uuid).map_or(String::new(), |engine| format!(" {}", engine.profile.id));
                    let text = format!("It was sent directly to engine{id} ({uuid}), which has not answered yet.");
                    hub.explained(&to, &Explanation { state: TaskState::Running, text, engines: Vec::new() });
                }
                None => hub.explain_past(to, id),
            });
            hub.links.mux.send(mux::Request::Running { ids: Some(vec![wanted]), answer });
        });
        self.links.tasks.send(Command::Explain { id, answer });
    }

    /// What a running task has written: its engine knows.
    fn output(&mut self, asker: &Asker, content: Value) {
        let request = match OutputRequest::deserialize(content) {
            Ok(request) if !request.msg_id.is_empty() => request,
            Ok(_) => {
                let error = HubError::new("ValueError", "an output_request names a msg_id");
                return self.reply_error(asker, &error);
            }
            Err(error) => {
                return self.reply_error(asker, &HubError::new("ValueError", error.to_string()));
            }
        };
        let (to, id) = (asker.clone(), request.msg_id.clone());
        let answer = self.then(move |hub, engine: Option<String>| {
            if let Some(engine) = engine {
                return hub.output_of(to, &engine, request);
            }
            let ids = Some(vec![request.msg_id.clone()]);
            let answer = hub.then(move |hub, direct: Vec<(String, Vec<String>)>| {
                match direct.first() {
                    Some((engine, _)) => hub.output_of(to, engine, request),
                    // It waits, or has ended, or nobody knows it.
                    None => hub.reply_ok(&to, &OutputReply::default()),
                }
            });
            hub.links.mux.send(mux::Request::Running { ids, answer });
        });
        self.links.tasks.send(Command::EngineOf { id, answer });
    }

    fn output_of(&mut self, to: Asker, engine: &str, request: OutputRequest) {
        if !self.is_ours(engine) {
            let what = format!("engine {engine} does not tell what its tasks have written");
            return self.reply_error(&to, &HubError::new("NotImplementedError", what));
        }
        let name = engine.to_owned();
        let answer = self.then(move |hub, content: Option<Value>| match content {
            Some(content) => hub.reply(&to, &content, Vec::new()),
            None => {
                let error = HubError::new("EngineError", format!("engine {name} does not answer"));
                hub.reply_error(&to, &error);
            }
        });
        let control = &self.links.control;
        control.ask(engine, types::OUTPUT_REQUEST, &request, answer);
    }

    /// Which tasks of a submission wait for which: the store knows, also of those that have ended.
    fn graph(&mut self, asker: &Asker, content: Value) {
        let request = match GraphRequest::deserialize(content) {
            Ok(request) => request,
            Err(error) => {
                return self.reply_error(asker, &HubError::new("ValueError", error.to_string()));
            }
        };
        let to = asker.clone();
        let answer = self.stored(
            move |hub, found: Result<GraphReply, HubError>| match found {
                Ok(graph) => hub.reply_ok(&to, &graph),
                Err(error) => hub.reply_error(&to, &error),
            },
        );
        self.links.store.graph(request, answer);
    }

    fn explain_past(&mut self, to: Asker, id: String) {
        let asked = vec![id.clone()];
        let answer = self.stored(move |hub, found: Result<Vec<(String, Lookup)>, HubError>| {
            let (state, text) = match found.unwrap_or_default().first() {
                Some((_, Lookup::Done(outcome))) => (
                    TaskState::Done,
                    format!("It has ended: {}.", outcome.as_str()),
                ),
                Some((_, Lookup::Pending)) => (
                    TaskState::Waiting,
                    "It is recorded as unfinished.".to_owned(),
                ),
                _ => (
                    TaskState::Unknown,
                    format!("Nothing is known of a task {id}."),
                ),
            };
            hub.explained(
                &to,
                &Explanation {
                    state,
                    text,
                    engines: Vec::new(),
                },
            );
        });
        self.links.store.outcomes(asked, answer);
    }

    fn explained(&mut self, to: &Asker, explanation: &Explanation) {
        let state = match explanation.state {
            TaskState::Waiting => "waiting",
            TaskState::Running => "running",
            TaskState::Done => "done",
            TaskState::Unknown => "unknown",
        };
        let engines: Vec<(String, &String)> = explanation
            .engines
            .iter()
            .map(|(uuid, why)| {
                let name = self.registry.by_uuid(uuid).map(|engine| {
                    let host = engine.profile.hosts.first().map_or("", String::as_str);
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
            text = format!("{text}; {}", batch_words(batch));
        }
        let reply = json!({"status": "ok", "state": state, "text": text, "engines": engines});
        self.reply(to, &reply, Vec::new());
    }

    fn engines(&mut self, asker: &Asker) {
        let to = asker.clone();
        self.engine_tasks(false, move |hub, rows| {
            let engines: Vec<EngineInfo> = hub
                .registry
                .iter()
                .map(|(id, engine)| {
                    let profile = &engine.profile;
                    let (direct, scheduled) =
                        (rows.direct(&profile.uuid), rows.scheduled(&profile.uuid));
                    let (ping, clock) = hub.heart.of(route::connection(&profile.uuid));
                    EngineInfo {
                        id,
                        uuid: profile.uuid.clone(),
                        kind: if profile.is_ours() {
                            "ipengine"
                        } else {
                            "python"
                        }
                        .into(),
                        host: profile.hosts.clone(),
                        pid: profile.pid,
                        cores: profile.cores,
                        tags: profile.tags.clone(),
                        capabilities: profile.capabilities.clone(),
                        outstanding: direct.running + scheduled.running,
                        completed: direct.completed + scheduled.completed,
                        age: engine.registered.elapsed().as_secs_f64(),
                        ping: ping.map(|ping| ping.as_secs_f64() * 1000.0),
                        clock,
                        limits: profile.limits.clone(),
                        version: profile.version.clone(),
                        resources: scheduled.resources,
                        holds: scheduled.holds,
                        kept_for: scheduled.kept_for,
                    }
                })
                .collect();
            hub.reply(
                &to,
                &json!({"status": "ok", "engines": engines}),
                Vec::new(),
            );
        });
    }

    fn status(&mut self, asker: &Asker) {
        let to = asker.clone();
        let answer = self.then(move |hub, tasks: TaskTotals| {
            let answer = hub.then(move |hub, direct: Vec<(String, Vec<String>)>| {
                let answer = hub
                    .then(move |hub, bytes: usize| hub.status_reply(&to, &tasks, &direct, bytes));
                hub.links.mux.send(mux::Request::Bytes(answer));
            });
            hub.links
                .mux
                .send(mux::Request::Running { ids: None, answer });
        });
        self.links.tasks.send(Command::Totals {
            session: None,
            answer,
        });
    }

    fn status_reply(
        &mut self,
        to: &Asker,
        tasks: &TaskTotals,
        direct: &[(String, Vec<String>)],
        relay_bytes: usize,
    ) {
        let python = self
            .registry
            .iter()
            .filter(|(_, engine)| !engine.profile.is_ours())
            .count();
        let direct: usize = direct.iter().map(|(_, ids)| ids.len()).sum();
        let store = self.links.store.status();
        let recorded = if store.backend == "none" {
            json!({"backend": "none"})
        } else {
            json!({
                "backend": store.backend,
                "lag": store.lag,
                "lag_bound": store.lag_bound,
                "unsynced": store.unsynced,
                "bytes": store.bytes,
                "submissions": store.submissions,
                "finishes": store.finishes,
                "pruned": store.pruned,
            })
        };
        let reply = json!({
            "status": "ok",
            "version": env!("CARGO_PKG_VERSION"),
            "pid": std::process::id(),
            "incarnation": self.settings.incarnation,
            "uptime": self.started.elapsed().as_secs_f64(),
            "scheme": self.settings.scheme,
            "engines": self.registry.len(),
            "python_engines": python,
            "clients": self.leases.len(),
            "tasks": {
                "ready": tasks.ready,
                "blocked": tasks.blocked,
                "running": tasks.running,
                "direct": direct,
                "completed": tasks.completed,
                "failed": tasks.failed,
                "aborted": tasks.aborted,
            },
            "store": recorded,
            "relay_bytes": relay_bytes,
            "refused_messages": self.junk_total.get(),
            "troubles": self.all_troubles(),
            "batch": self.batch,
        });
        self.reply(to, &reply, Vec::new());
    }

    /// How past tasks ended, range by range: what a member of an array did is in the buffers of its range.
    fn replies(&mut self, asker: &Asker, content: &Value) {
        let to = asker.clone();
        let answer = self.stored(move |hub, found: Result<Vec<StoredReply>, HubError>| {
            let found = match found {
                Ok(found) => found,
                Err(error) => return hub.reply_error(&to, &error),
            };
            let (mut rows, mut buffers, mut bytes) = (Vec::new(), Vec::new(), 0);
            for reply in found {
                let map = |at: usize| {
                    let frame = reply.frames.get(at).map_or(&[][..], Vec::as_slice);
                    let AnyMap(map) = hub.session.unpack(frame).unwrap_or_default();
                    map
                };
                let (metadata, content) = (map(2), map(3));
                let own = reply.frames.get(4..).unwrap_or_default();
                bytes += own.iter().map(Vec::len).sum::<usize>();
                let kept = metadata.contains_key("range") && bytes <= REPLIES;
                rows.push(json!({
                    "msg_id": reply.msg_id,
                    "range": [reply.range.start, reply.range.end],
                    "outcome": reply.outcome.as_str(),
                    "metadata": metadata,
                    "content": content,
                    "buffers": kept.then_some(own.len()),
                }));
                if kept {
                    buffers.extend(own.iter().map(|buffer| Message::from(&buffer[..])));
                }
            }
            hub.reply(&to, &json!({"status": "ok", "replies": rows}), buffers);
        });
        self.links
            .store
            .replies(strings(&content["msg_ids"]), answer);
    }

    /// An engine process has ended; its reaper knows what each of its engines had started.
    fn died(&mut self, asker: &Asker, content: Value) {
        let EngineDied { uuids, reason } = match EngineDied::deserialize(content) {
            Ok(died) => died,
            Err(error) => return self.query.refuse("bad engine_died", &error),
        };
        for (uuid, started) in uuids {
            let departure = Departure::Died {
                reason: reason.clone(),
                started,
            };
            if self.registry.by_uuid(&uuid).is_some() {
                self.depart(&uuid, departure, &format!("died: {reason}"), false);
            } else {
                // It died while there was no controller, or has not come back to this one: its tasks wait for it.
                self.registry.forget(&uuid);
                self.unsaved = true;
                self.links
                    .tasks
                    .send(Command::EngineLeft { uuid, departure });
            }
        }
        // Not before it is written: until it is answered, the reaper says it again.
        let to = asker.clone();
        let answer = self.then(move |hub, ()| hub.reply_ok(&to, &json!({})));
        self.links.tasks.send(Command::Settled { answer });
    }
}

/// Metadata of a resubmitted task of ours that goes with it; the peer's hub keeps none.
const KEPT: [&str; 19] = [
    "hosts",
    "prefer",
    "prefer_wait",
    "tags",
    "require",
    "resources",
    "any",
    "nodes",
    "retries",
    "retry_delay",
    "max_crashes",
    "priority",
    "timeout",
    "time",
    "array",
    "wide",
    "label",
    "job",
    "job_dir",
];

/// A stored request under a new id: the id, and the frames from the delimiter on.
pub(super) fn renewed(
    session: &Session,
    task: &StoredRequest,
) -> Result<(String, Vec<Message>), String> {
    let [header, _, metadata, content, buffers @ ..] = task.frames.as_slice() else {
        return Err(format!("the record of {} is not whole", task.msg_id));
    };
    let unreadable = |error| format!("the record of {} cannot be read: {error}", task.msg_id);
    let old: Header = session.unpack(header).map_err(unreadable)?;
    let AnyMap(metadata) = session.unpack(metadata).map_err(unreadable)?;
    let id = session.next_id();
    let header_map = session.pack(&renewed_header(&old, id.clone()));
    let ours = matches!(
        old.msg_type.as_str(),
        types::COMMAND_REQUEST | types::FUNCTION_REQUEST
    );
    let mut kept = Map::new();
    if ours {
        kept.extend(
            metadata
                .into_iter()
                .filter(|(key, _)| KEPT.contains(&key.as_str())),
        );
    }
    let mut content = content.clone();
    let mut buffers: Vec<Vec<u8>> = buffers.to_vec();
    if let Some(member) = task.member.filter(|_| kept.contains_key("array")) {
        (content, buffers) = one_member(session, task, member, &old.msg_type, content, buffers)?;
        kept.remove("array");
        kept.remove("wide");
    }
    let metadata = session.pack(&kept);
    let maps: [&[u8]; 4] = [&header_map, header, &metadata, &content];
    let buffers = buffers.into_iter().map(Message::from).collect();
    let frames = session.packed(Vec::new(), maps, buffers).into_frames();
    debug_assert_eq!(&frames[0][..], DELIMITER);
    Ok((id, frames))
}

/// Content and buffers of one member of an array as a task of its own.
fn one_member(
    session: &Session,
    task: &StoredRequest,
    member: u64,
    msg_type: &str,
    content: Vec<u8>,
    buffers: Vec<Vec<u8>>,
) -> Result<(Vec<u8>, Vec<Vec<u8>>), String> {
    let argument = match buffers.as_slice() {
        [offsets, blob, ..] => {
            let view = View::new(offsets, blob, task.count).map_err(|error| error.to_string())?;
            Some(
                view.get(usize::try_from(member).unwrap_or(usize::MAX))
                    .to_vec(),
            )
        }
        _ => None,
    };
    if msg_type == types::FUNCTION_REQUEST {
        return Ok((
            content,
            vec![argument.unwrap_or_else(|| Packer::Msgpack.pack(&member))],
        ));
    }
    let unreadable = |error| format!("member {member} of {} cannot be read: {error}", task.msg_id);
    let AnyMap(mut command) = session.unpack(&content).map_err(unreadable)?;
    if let Some(argument) = argument {
        let AnyMap(own) = Packer::Msgpack.unpack(&argument).map_err(unreadable)?;
        command.extend(own);
    }
    Ok((session.pack(&command), Vec::new()))
}

/// What a batch system was asked for, for somebody whose task waits.
fn batch_words(batch: &Value) -> String {
    let system = batch["system"].as_str().unwrap_or_default();
    let jobs = batch["jobs"].as_array().map_or(&[][..], Vec::as_slice);
    let word = |job: &Value| {
        let text = |key: &str| job[key].as_str().unwrap_or_default().to_owned();
        format!(
            "job {} of {} engine(s) {}",
            text("job"),
            job["engines"],
            text("state")
        )
    };
    let mut words: Vec<String> = jobs.iter().map(word).collect();
    words.extend(batch["trouble"].as_str().map(str::to_owned));
    if words.is_empty() {
        words.push("no job".to_owned());
    }
    format!("{system}: {}", words.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;
    use ipbroker_protocol::{array::Packed, envelope::Envelope};

    fn stored(
        session: &Session,
        msg_type: &str,
        metadata: &Value,
        buffers: Vec<Vec<u8>>,
        member: Option<u64>,
    ) -> StoredRequest {
        let content = json!({"cmd": "echo", "cd": "/tmp", "name": "f"});
        let envelope = session.message(
            Vec::new(),
            &session.header(msg_type),
            None,
            metadata,
            &content,
            Vec::new(),
        );
        let mut frames: Vec<Vec<u8>> = envelope.maps().iter().map(|map| map.to_vec()).collect();
        frames.extend(buffers);
        StoredRequest {
            msg_id: "a".into(),
            member,
            count: 3,
            client: Vec::new(),
            frames,
        }
    }

    fn renew(session: &Session, task: &StoredRequest) -> (Header, Map, Map, Vec<Vec<u8>>) {
        let (id, frames) = renewed(session, task).unwrap();
        let envelope = Envelope::parse(frames).unwrap();
        session.verify(&envelope).unwrap();
        let header: Header = session.unpack(envelope.header()).unwrap();
        assert_eq!(header.msg_id, id);
        let map = |bytes: &[u8]| session.unpack::<AnyMap>(bytes).unwrap().0;
        let buffers = envelope
            .buffers()
            .iter()
            .map(|buffer| buffer.to_vec())
            .collect();
        (
            header,
            map(envelope.metadata()),
            map(envelope.content()),
            buffers,
        )
    }

    #[test]
    fn python_tasks_are_renewed_as_the_peer_does() {
        let session = Session::new(b"k", Packer::Json);
        let task = stored(
            &session,
            "apply_request",
            &json!({"retries": 3, "after": ["x"]}),
            vec![vec![1, 2]],
            None,
        );
        let old: Header = session.unpack(&task.frames[0]).unwrap();
        let (header, metadata, content, buffers) = renew(&session, &task);
        assert_ne!(header.msg_id, old.msg_id);
        assert_eq!(
            (header.session, header.msg_type),
            (old.session, old.msg_type)
        );
        assert!(metadata.is_empty());
        assert_eq!(
            (content["cmd"].as_str(), buffers),
            (Some("echo"), vec![vec![1, 2]])
        );
    }

    #[test]
    fn a_member_of_an_array_becomes_a_task() {
        let session = Session::new(b"k", Packer::Msgpack);
        let mut packed = Packed::new();
        for n in 0..3 {
            packed
                .push(&Packer::Msgpack.pack(&json!({"cmd": format!("echo {n}")})))
                .unwrap();
        }
        let (offsets, blob) = packed.into_buffers();
        let metadata = json!({"array": 3, "tags": ["gpu"], "ack": true, "after": ["x"]});
        let task = stored(
            &session,
            types::COMMAND_REQUEST,
            &metadata,
            vec![offsets, blob],
            Some(2),
        );
        let (_, metadata, content, buffers) = renew(&session, &task);
        assert_eq!(Value::Object(metadata), json!({"tags": ["gpu"]}));
        assert_eq!(
            (content["cmd"].as_str(), content["cd"].as_str()),
            (Some("echo 2"), Some("/tmp"))
        );
        assert!(buffers.is_empty());
        let task = stored(
            &session,
            types::FUNCTION_REQUEST,
            &json!({"array": 3}),
            Vec::new(),
            Some(1),
        );
        assert_eq!(renew(&session, &task).3, [vec![1]]);
    }
}
