//! What the hub asks and tells.

use std::{
    collections::{BTreeSet, VecDeque},
    sync::Arc,
    time::Duration,
};

use ipbroker_protocol::{
    array::member_id,
    envelope::Envelope,
    message::{HeaderRef, Holds, ParentRef, Stats, Unschedulable, types},
    resources::Grant,
    route,
    session::Empty,
    zmq::Message,
};

use super::{
    Outgoing, Scheduler, engines,
    frames::at,
    groups::Group,
    intake::nanos,
    resources::{self, LastKnown},
};
use crate::mailbox::Answer;
use crate::scheduler::{
    command::{
        Aborted, Command, Departure, EngineProfile, EngineTasks, Explanation, Selection,
        TaskQueues, TaskState,
    },
    core::{self, EngineKey, EngineSpec, GroupKey, Held, Selector, Span},
};

/// How long the last word of an engine may take after the hub has heard that it left.
const GOODBYE: Duration = Duration::from_secs(5);

impl Scheduler {
    pub(super) fn command(&mut self, command: Command) {
        match command {
            Command::EngineJoined(profile) => self.engine_joined(&profile),
            // Its last word is on its way, on another connection.
            Command::EngineLeft {
                uuid,
                departure: Departure::Clean,
            } if self.engines.is_leaving(&uuid) => {
                self.goodbyes
                    .push_back((self.begun.elapsed() + GOODBYE, uuid));
            }
            Command::EngineLeft { uuid, departure } => self.engine_left(&uuid, departure),
            Command::EngineDismissed { uuid } => {
                if let Some(engine) = self.core.engine(&uuid) {
                    self.core.engine_dismissed(self.now(), engine);
                }
            }
            Command::Settled(answer) => self.settled.push(answer),
            Command::ClientGone { session, answer } => {
                self.kept.forget_client(session.as_bytes());
                let selector = Selector::Client {
                    client: session.as_bytes(),
                    keep_detached: true,
                };
                answer(self.abort(&selector, true));
            }
            Command::Attached(answer) => {
                let sessions = self.core.attached().into_iter();
                answer(
                    sessions
                        .map(|session| String::from_utf8_lossy(session).into_owned())
                        .collect(),
                );
            }
            Command::QueueStatus { verbose, answer } => answer(self.queues(verbose)),
            Command::TaskStates { ids, answer } => {
                let states = ids.iter().map(|id| state(self.core.state(id)));
                let states: Vec<TaskState> = states.collect();
                let end = |state| matches!(state, &TaskState::Done | &TaskState::Failed);
                let ended = states.iter().any(end);
                self.answer_written(answer, states, ended);
            }
            Command::Demand {
                limit,
                longest,
                answer,
            } => answer(self.core.demand(limit, longest)),
            Command::Given(answer) => answer(self.given),
            Command::Totals(answer) => answer(self.core.totals(None)),
            Command::Abort {
                selection,
                kill,
                answer,
            } => {
                let selector = match &selection {
                    Selection::Ids(ids) => Selector::Ids(ids),
                    Selection::Session(session) => Selector::Client {
                        client: session.as_bytes(),
                        keep_detached: false,
                    },
                    Selection::All => Selector::All,
                };
                answer(self.abort(&selector, kill));
            }
            Command::Explain { id, answer } => {
                let explanation = self.explain(&id);
                let ended = matches!(explanation.state, TaskState::Done | TaskState::Failed);
                self.answer_written(answer, explanation, ended);
            }
            Command::Unschedulable { session, answer } => {
                let found = self.core.unschedulable(session.as_bytes()).into_iter();
                let found = found.filter_map(|(first, tasks, text)| {
                    let lacked = self.groups.get(first.group)?.lacked.as_deref();
                    Some(Unschedulable {
                        msg_id: self.ids(&[first]).pop()?,
                        tasks,
                        text: with_last_word(text, lacked),
                    })
                });
                answer(found.collect());
            }
            Command::EngineOf { id, answer } => {
                let key = self.core.engine_of(&id);
                let engine = key.and_then(|key| self.engines.get(key));
                answer(engine.map(|engine| engine.uuid.to_string()));
            }
            Command::Stats(answer) => answer(self.stats()),
            Command::Watch(answer) => answer(Box::new(self.watched())),
            Command::Inject { frames, answer } => answer(self.inject(frames)),
            Command::Shutdown => {}
        }
    }

    /// Answers with what may tell that tasks have ended: not before that is in the journal, as whoever asks reads the rest
    /// in the history. While nothing can be written, the state alone is better than nothing.
    fn answer_written<T: Send + 'static>(&mut self, answer: Answer<T>, value: T, ended: bool) {
        match ended && !self.stuck {
            true => (self.settled).push(Box::new(move |()| answer(value))),
            false => answer(value),
        }
    }

    fn engine_joined(&mut self, profile: &Arc<EngineProfile>) {
        let now = self.now();
        let host_spec = resources::host_spec(profile);
        let key = self.core.engine_joined(
            now,
            &EngineSpec {
                uuid: &profile.uuid,
                id: profile.id,
                hosts: &profile.host,
                tags: &profile.tags,
                capabilities: profile.capabilities(),
                can_give_back: profile.can("give_back"),
                host: host_spec.as_ref(),
                stays: profile.stays.map(|seconds| nanos(Some(seconds))),
            },
        );
        self.engines
            .join(key, profile, self.durable, self.begun.elapsed());
        let machine = profile.machine.as_deref().unwrap_or_default();
        if !machine.is_empty() && !profile.returns {
            self.keep_last_known(
                profile.id,
                LastKnown::new(&profile.uuid, machine, Grant::new(), Vec::new()),
            );
        }
        self.heed_early(&profile.uuid, key);
        // The question comes after all that was given to the engine so far.
        self.act();
        if profile.is_ours() && profile.returns {
            self.ask_holds(key);
        }
    }

    /// Asks an engine what it holds of what was given to it.
    fn ask_holds(&mut self, key: EngineKey) {
        let (now, since) = (self.now(), self.begun.elapsed());
        let header = self.session.header(types::HOLDS_REQUEST);
        let Some(uuid) = self.engines.ask(key, &header.msg_id, now, since) else {
            return;
        };
        let question =
            self.session
                .message(Vec::new(), &header, None, &Empty {}, &Empty {}, Vec::new());
        self.out
            .push(Outgoing::Engine(uuid, question.into_frames().into()));
    }

    /// Asks again who has not answered, and who has had a task for long: should only its connection to this socket have
    /// broken, nobody else would notice what was lost with it.
    pub(super) fn ask_silent(&mut self) {
        for key in self.engines.due(self.begun.elapsed()) {
            let long = Duration::from_nanos(
                self.core
                    .oldest_given(key)
                    .map_or(0, |since| self.now().saturating_sub(since)),
            );
            if self.engines.is_asked(key) || long > engines::LONG {
                self.ask_holds(key);
            }
        }
    }

    /// An engine tells what it holds.
    pub(super) fn engine_holds(&mut self, engine: EngineKey, envelope: &Envelope) {
        let session = self.session.clone();
        let holds: Holds = match session.unpack(envelope.content()) {
            Ok(holds) => holds,
            Err(error) => return self.junk_engines.refuse("holds_reply", &error),
        };
        let parent = match ParentRef::read(session.packer, envelope.parent_header()) {
            Ok(parent) => parent,
            Err(error) => return self.junk_engines.refuse("parent header", &error),
        };
        let Some((asked, keeps)) = self.engines.answered(engine, &parent.msg_id) else {
            return;
        };
        let number = |value: u64| u32::try_from(value).unwrap_or(u32::MAX);
        let held: Vec<Held<'_>> = [&holds.running, &holds.finished, &holds.queued]
            .into_iter()
            .flatten()
            .map(|(id, lo, hi)| Held {
                msg_id: id,
                range: (number(*lo), number(*hi)),
            })
            .collect();
        let now = self.now();
        let groups = &self.groups;
        let may = |group| keeps && groups.get(group).is_some_and(Group::can_be_sent);
        self.core.engine_holds(now, engine, asked, &held, &may);
    }

    /// Engines that were taken off the books and whose last word did not come are gone without it.
    pub(super) fn miss_goodbyes(&mut self) {
        let now = self.begun.elapsed();
        while self.goodbyes.front().is_some_and(|(due, _)| *due <= now)
            && let Some((_, uuid)) = self.goodbyes.pop_front()
        {
            // Unless its last word came, or it has come back.
            if self.engines.is_leaving(&uuid) {
                self.engine_left(&uuid, Departure::Clean);
            }
        }
    }

    pub(super) fn engine_left(&mut self, uuid: &str, departure: Departure) {
        let Some(key) = self.core.engine(uuid) else {
            return;
        };
        let (started, reason) = match departure {
            Departure::Clean => (None, "the engine left".to_owned()),
            Departure::Silent => (None, "its heartbeat stopped".to_owned()),
            Departure::Died { reason, started } => (Some(started), reason),
        };
        // What was sent without a copy cannot be sent again, whether it was started or not.
        let started = started.map(|mut started| {
            for span in self.core.outstanding(key) {
                if let Some(group) = self
                    .groups
                    .get(span.group)
                    .filter(|group| !group.can_be_sent())
                {
                    started.push(group.msg_id.to_string());
                }
            }
            started
        });
        let now = self.now();
        self.core.engine_left(now, key, started.as_deref(), &reason);
        self.act();
        self.engines.leave(uuid);
        let connection = route::connection(uuid);
        if !self.engines.any_by(connection) {
            self.engine_outbox.forget(connection.as_bytes());
        }
    }

    fn queues(&self, verbose: bool) -> TaskQueues {
        let mut engines: Vec<EngineTasks> = self
            .engines
            .iter()
            .map(|engine| {
                let counts = self.core.engine_totals(engine.key);
                EngineTasks {
                    uuid: engine.uuid.to_string(),
                    running: counts.outstanding,
                    completed: counts.completed,
                    running_ids: match verbose {
                        true => self.ids(&self.core.outstanding(engine.key)),
                        false => Vec::new(),
                    },
                    ..EngineTasks::default()
                }
            })
            .collect();
        self.add_resources(&mut engines);
        let counts = self.core.totals(None);
        let unassigned_ids = match verbose {
            true => self.ids(&self.core.unassigned()),
            false => Vec::new(),
        };
        TaskQueues {
            engines,
            unassigned: counts.ready + counts.blocked,
            unassigned_ids,
        }
    }

    fn abort(&mut self, selector: &Selector<'_>, kill: bool) -> Aborted {
        let now = self.now();
        let report = self.core.abort(now, selector, kill);
        let ids: &[String] = match selector {
            Selector::Ids(ids) => ids,
            _ => &[],
        };
        let mut aborted = Aborted::default();
        for (id, state) in ids.iter().zip(report.ids) {
            match state {
                core::TaskState::Unknown => {
                    self.overtaken.add(id);
                    aborted.unknown.push(id.clone());
                }
                core::TaskState::Ok | core::TaskState::Failed => aborted.finished.push(id.clone()),
                core::TaskState::Blocked | core::TaskState::Waiting | core::TaskState::Running => {}
            }
        }
        // The names go with the groups once the core's actions are carried out.
        aborted.aborted = report
            .aborted
            .into_iter()
            .flat_map(|(group, range)| self.ids(&[Span { group, range }]))
            .collect();
        for (engine, group, range) in report.running {
            let Some(engine) = self.engines.get(engine) else {
                continue;
            };
            let (uuid, ids) = (engine.uuid.to_string(), self.ids(&[Span { group, range }]));
            aborted.running.entry(uuid).or_default().extend(ids);
        }
        aborted
    }

    /// A task has come whose abort was here before it, by another socket.
    pub(super) fn abort_at_once(&mut self, ids: &[String]) {
        let report = self.core.abort(self.now(), &Selector::Ids(ids), true);
        for (engine, group, range) in report.running {
            self.stop(engine, group, range);
        }
    }

    fn explain(&self, id: &str) -> Explanation {
        let explanation = self.core.explain(self.now(), id);
        let engines = explanation
            .engines
            .into_iter()
            .map(|(key, why)| {
                (
                    self.engines
                        .get(key)
                        .map_or(String::new(), |engine| engine.uuid.to_string()),
                    why,
                )
            })
            .collect();
        let lacked = self
            .core
            .find(id)
            .and_then(|key| self.groups.get(key)?.lacked.as_deref());
        Explanation {
            state: state(explanation.state),
            text: with_last_word(explanation.text, lacked),
            engines,
        }
    }

    fn stats(&self) -> Stats {
        Stats {
            nodes: self.engines.hosts(),
            preferred: self.preferred.0,
            preferred_met: self.preferred.1,
            uptime: self.begun.elapsed().as_secs_f64(),
        }
    }

    /// A submission by the hub: nobody waits for its reply.
    fn inject(&mut self, frames: Vec<Message>) -> Result<String, String> {
        let mut all = vec![Message::new()];
        all.extend(frames);
        if all.len() < at::BUFFERS {
            return Err("not a message".into());
        }
        let packed = all[at::HEADER].to_vec();
        let header =
            HeaderRef::read(self.session.packer, &packed).map_err(|error| error.to_string())?;
        self.submit(all, &header)?;
        Ok(header.msg_id.into_owned())
    }

    /// The ids of members, as users know them.
    pub(super) fn ids(&self, spans: &[Span]) -> Vec<String> {
        let one = |key: GroupKey, index: u32| {
            let group = self.groups.get(key)?;
            Some(if group.count == 1 {
                group.msg_id.to_string()
            } else {
                member_id(&group.msg_id, u64::from(index))
            })
        };
        spans
            .iter()
            .flat_map(|span| {
                span.range
                    .clone()
                    .filter_map(move |index| one(span.group, index))
            })
            .collect()
    }
}

/// With what the last engine lacked.
fn with_last_word(text: String, lacked: Option<&str>) -> String {
    match lacked {
        Some(lacked) => format!("{text} The last engine said: {lacked}"),
        None => text,
    }
}

fn state(state: core::TaskState) -> TaskState {
    match state {
        core::TaskState::Unknown => TaskState::Unknown,
        core::TaskState::Blocked | core::TaskState::Waiting => TaskState::Waiting,
        core::TaskState::Running => TaskState::Running,
        core::TaskState::Ok => TaskState::Done,
        core::TaskState::Failed => TaskState::Failed,
    }
}

/// Ids that were to be aborted and are not known, the oldest forgotten first: a submission and its abort come by two sockets,
/// and the abort may be the faster one.
#[derive(Debug, Default)]
pub(super) struct Overtaken {
    ids: BTreeSet<Box<str>>,
    order: VecDeque<Box<str>>,
}

impl Overtaken {
    /// So many are remembered.
    const MOST: usize = 10_000;

    fn add(&mut self, id: &str) {
        if self.ids.insert(id.into()) {
            self.order.push_back(id.into());
            if self.order.len() > Self::MOST
                && let Some(oldest) = self.order.pop_front()
            {
                self.ids.remove(&oldest);
            }
        }
    }

    /// Those of them that mean this task or members of it; they are remembered no longer.
    pub(super) fn take(&mut self, msg_id: &str) -> Vec<String> {
        if self.ids.is_empty() {
            return Vec::new();
        }
        // `;` comes next after the `:` before the index of a member.
        let [members, end] = [":", ";"].map(|last| format!("{msg_id}{last}").into_boxed_str());
        let members = self.ids.range(members..end).map(|id| String::from(&**id));
        let mut meant: Vec<String> = members.collect();
        meant.push(msg_id.to_owned());
        meant.retain(|id| self.ids.remove(&**id));
        meant
    }
}
