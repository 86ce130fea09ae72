//! What only our own programs ask; about one task: `explain.rs`.

use std::time::Instant;

use ipbroker_protocol::{
    message::{
        AbortReply, AbortRequest, EngineDied, EngineInfo, LeaseReply, LeaseRequest, ScaleRequest,
        Stats, types,
    },
    route,
    value::AnyMap,
    zmq::Message,
};
use serde::Deserialize;
use serde_json::{Value, json};

use super::{Notice, ask::Asker, peer::strings, run::Hub, watch::counts};
use crate::{
    error::NamedError,
    relay::{iopub, mux},
    scheduler::{
        command::{Aborted, ByEngine, Command, Departure, Selection},
        core::Totals,
    },
    store::{Lookup, StoredReply},
};

/// Bytes of buffers in one `replies_reply`.
const REPLIES: usize = 256 << 20;

/// The most engines that one request adds: more is a mistake.
const ADDED_MOST: u32 = 1000;

impl Hub {
    /// Serves a request of our own programs'; `false`: it is none.
    pub(super) fn own_request(&mut self, asker: &Asker, content: Value) -> bool {
        match asker.msg_type.as_str() {
            types::LEASE_REQUEST => self.lease(asker, content),
            types::ABORT_REQUEST => self.abort(asker, content),
            types::EXPLAIN_REQUEST => self.explain(asker, &content),
            types::OUTPUT_REQUEST => self.output(asker, content),
            types::GRAPH_REQUEST => self.graph(asker, content),
            types::SEARCH_REQUEST => self.search(asker, content),
            types::STATS_REQUEST => {
                let to = asker.clone();
                let answer = self.then(move |hub, stats: Stats| hub.reply_ok(&to, &stats));
                self.links.tasks.send(Command::Stats(answer));
            }
            types::WEB_REQUEST => match self.settings.web.clone() {
                Some(web) => self.reply_ok(asker, &web),
                None => {
                    let what = "this controller has no page: start it with `ipctl --web`";
                    self.fail(asker, "RuntimeError", what.to_owned());
                }
            },
            types::ENGINES_REQUEST => self.engines(asker),
            types::SCALE_REQUEST => self.scale(asker, content),
            types::STATUS_REQUEST => self.status(asker),
            types::EVENTS_REQUEST => self.events(asker, content),
            types::REPLIES_REQUEST => self.replies(asker, &content),
            types::ENGINE_DIED => self.died(asker, content),
            _ => return false,
        }
        true
    }

    fn scale(&mut self, asker: &Asker, content: Value) {
        let Some(ScaleRequest { add, remove, now }) = self.read(asker, content) else {
            return;
        };
        let done = match add {
            0 if !remove.is_empty() => self.remove_engines(remove, now),
            1..=ADDED_MOST if remove.is_empty() => self.add_engines(add),
            _ => {
                let what = format!("a scale_request has `add`, 1 to {ADDED_MOST}, or `remove`");
                Err(NamedError::value(what))
            }
        };
        match done {
            Ok(done) => self.reply_ok(asker, &done),
            Err(error) => self.reply_error(asker, &error),
        }
    }

    fn add_engines(&mut self, more: u32) -> Result<Value, NamedError> {
        if !self.settings.adds {
            let what = "ipctl starts engines on its host only with `-n`; `ipengine -n N`, started by hand, adds some on any host";
            return Err(NamedError::new("RuntimeError", what));
        }
        (self.tell)(Notice::Wanted(more));
        Ok(json!({"added": more}))
    }

    fn remove_engines(&mut self, engines: Vec<Value>, now: bool) -> Result<Value, NamedError> {
        let ids = self.targets(&Value::Array(engines))?;
        for engine in ids.iter().filter_map(|id| self.registry.by_id(*id)) {
            let uuid = &engine.profile.uuid;
            // Others than ours know nothing but an end at once, nor can a DEALER leave one out.
            let drain = !now && engine.profile.is_ours() && self.settings.scheme != "pure";
            if !drain {
                let uuid = uuid.clone();
                self.links.tasks.send(Command::EngineDismissed { uuid });
            }
            let content = match drain {
                true => json!({"restart": false, "drain": true}),
                false => json!({"restart": false}),
            };
            (self.links.control).send(uuid, types::SHUTDOWN_REQUEST, &content);
        }
        Ok(json!({"removed": ids}))
    }

    fn lease(&mut self, asker: &Asker, content: Value) {
        let Some(LeaseRequest { closes }) = self.read(asker, content) else {
            return;
        };
        if closes {
            // Nobody is left to be answered.
            return self.leases.close(&asker.session);
        }
        self.leases.renew(&asker.session, Instant::now());
        let reply = LeaseReply {
            incarnation: self.settings.incarnation.clone(),
            lease: self.leases.seconds(),
            troubles: self.all_troubles(),
            bundles: self.settings.scheme != "pure",
        };
        self.reply(asker, &reply);
    }

    /// Clients of an earlier controller have a lease from now on: one that vanished with it takes its tasks along.
    pub(super) fn await_clients(&mut self) {
        let answer = self.then(move |hub, sessions: Vec<String>| {
            for session in sessions {
                hub.leases.renew(&session, Instant::now());
            }
        });
        self.links.tasks.send(Command::Attached(answer));
    }

    /// A client's lease ran out: its tasks that are not detached go with it.
    pub(super) fn client_gone(&mut self, session: String) {
        tracing::debug!(session, "a client is gone: its lease ran out");
        let name = session.clone();
        let answer = self.then(move |hub, report: Aborted| {
            let running: usize = report.running.values().map(Vec::len).sum();
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
        let Some(request) = self.read::<AbortRequest>(asker, content) else {
            return;
        };
        let selection = match (request.msg_ids, request.session, request.all) {
            (Some(ids), None, false) => Selection::Ids(ids),
            (None, Some(session), false) => Selection::Session(session),
            (None, None, true) => Selection::All,
            _ => {
                let what = "an abort_request names msg_ids, or a session, or all";
                return self.fail(asker, "ValueError", what);
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
            hub.direct(ids, move |hub, direct| {
                hub.aborted(&to, report, direct, kill)
            });
        });
        self.links.tasks.send(Command::Abort {
            selection,
            kill,
            answer,
        });
    }

    fn aborted(&mut self, to: &Asker, mut report: Aborted, direct: ByEngine, kill: bool) {
        for (uuid, ids) in direct {
            report.unknown.retain(|unknown| !ids.contains(unknown));
            report.running.entry(uuid).or_default().extend(ids);
        }
        self.stop_running(&report.running, kill);
        let stopping = report.running.values().map(|ids| ids.len() as u64).sum();
        let reply = AbortReply {
            status: "ok".into(),
            aborted: report.aborted.len() as u64,
            stopping: if kill { stopping } else { 0 },
            done: report.finished,
            unknown: report.unknown,
        };
        if reply.unknown.is_empty() {
            return self.reply(to, &reply);
        }
        // The task thread forgets what is done; the store may know it.
        let (to, ids) = (to.clone(), reply.unknown.clone());
        let answer = self.then(
            move |hub, found: Result<Vec<(String, Lookup)>, NamedError>| {
                let mut reply = reply;
                for (id, lookup) in found.unwrap_or_default() {
                    if matches!(lookup, Lookup::Done(_)) {
                        reply.unknown.retain(|unknown| *unknown != id);
                        reply.done.push(id);
                    }
                }
                hub.reply(&to, &reply);
            },
        );
        self.links.store.outcomes(ids, answer);
    }

    /// Tells engines to drop tasks that they have not begun and, with `kill`, to stop those they have.
    fn stop_running(&mut self, running: &ByEngine, kill: bool) {
        for (uuid, ids) in running.iter().filter(|(_, ids)| !ids.is_empty()) {
            let ours = self.is_ours(uuid);
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
                        kind: profile.kind().into(),
                        host: profile.host.clone(),
                        pid: profile.pid,
                        cores: profile.cores,
                        tags: profile.tags.clone(),
                        capabilities: profile.capabilities().to_vec(),
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
            hub.reply(&to, &json!({"status": "ok", "engines": engines}));
        });
    }

    fn status(&mut self, asker: &Asker) {
        let to = asker.clone();
        let answer = self.then(move |hub, tasks: Totals| {
            hub.direct(None, move |hub, direct| {
                let direct: usize = direct.values().map(Vec::len).sum();
                let answer =
                    hub.then(move |hub, bytes| hub.status_reply(&to, &tasks, direct, bytes));
                hub.links.mux.send(mux::Request::Bytes(answer));
            });
        });
        self.links.tasks.send(Command::Totals(answer));
    }

    fn status_reply(&mut self, to: &Asker, tasks: &Totals, direct: usize, relay_bytes: usize) {
        let python = self
            .registry
            .iter()
            .filter(|(_, engine)| engine.profile.runs_python())
            .count();
        let store = self.links.store.status();
        let recorded = match store.backend {
            "none" => json!({"backend": "none"}),
            _ => json!(store),
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
            "tasks": counts(tasks, direct as u64),
            "store": recorded,
            "relay_bytes": relay_bytes,
            "refused_messages": self.junk_total.get(),
            "troubles": self.all_troubles(),
            "batch": self.batch,
        });
        self.reply(to, &reply);
    }

    /// How past tasks ended, range by range: what a member of an array did is in the buffers of its range.
    fn replies(&mut self, asker: &Asker, content: &Value) {
        let answer = self.found(asker, |hub, to, found: Vec<StoredReply>| {
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
            hub.reply_with(&to, &json!({"status": "ok", "replies": rows}), buffers);
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
        self.links.tasks.send(Command::Settled(answer));
    }
}
