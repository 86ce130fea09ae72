//! What the hub tells and asks.

use ipbroker_protocol::{
    message::HeaderRef,
    zmq::{self, Message},
};

use super::Pure;
use crate::scheduler::{
    command::{
        Aborted, Command, EngineTasks, EngineWork, Explanation, Selection, TaskQueues, TaskState,
        Watched,
    },
    core::Totals,
    task::frames::at,
};

impl Pure {
    pub(super) fn command(&mut self, command: Command) -> zmq::Result<()> {
        match command {
            Command::EngineJoined(profile) => {
                self.gone.remove(&profile.uuid);
                let known = self.known.entry(profile.uuid.clone()).or_default();
                known.ours = profile.is_ours();
            }
            Command::EngineLeft { uuid, departure } => self.departed(uuid, departure)?,
            Command::EngineDismissed { .. } => {}
            Command::QueueStatus { answer, .. } => {
                let counts = self.books.counts();
                let engines = self.known.iter().map(|(uuid, known)| EngineTasks {
                    uuid: uuid.clone(),
                    running: counts.get(uuid.as_str()).copied().unwrap_or_default(),
                    completed: known.completed,
                    ..EngineTasks::default()
                });
                answer(TaskQueues {
                    engines: engines.collect(),
                    ..TaskQueues::default()
                });
            }
            Command::TaskStates { ids, answer } => {
                answer(ids.iter().map(|id| self.state(id)).collect());
            }
            Command::Totals(answer) => answer(Totals {
                running: self.books.len() as u64,
                ..Totals::default()
            }),
            // Nothing is known of what waits.
            Command::Given(answer) => answer(0),
            Command::Demand { answer, .. } => answer(Vec::new()),
            Command::Abort {
                selection, answer, ..
            } => answer(self.abort(selection)),
            Command::Explain { id, answer } => answer(Explanation {
                state: self.state(&id),
                text: "this controller runs --scheme=pure: libzmq hands tasks out in turn, and nobody knows of a task \
                       until an engine has announced it"
                    .into(),
                engines: Vec::new(),
            }),
            Command::Unschedulable { answer, .. } => answer(Vec::new()),
            Command::EngineOf { id, answer } => {
                let engines = self.books.engines(&id);
                answer(engines.first().map(|uuid| (*uuid).to_owned()));
            }
            // Nobody here sees how a task ends.
            Command::Watch(answer) => {
                let counts = self.books.counts();
                let engines = self.known.iter().map(|(uuid, known)| EngineWork {
                    uuid: uuid.clone(),
                    outstanding: counts.get(uuid.as_str()).copied().unwrap_or_default(),
                    completed: known.completed,
                    ..EngineWork::default()
                });
                let running = self.books.len() as u64;
                answer(Box::new(Watched {
                    totals: Totals {
                        running,
                        ..Totals::default()
                    },
                    engines: engines.collect(),
                    ..Watched::default()
                }));
            }
            Command::Stats(answer) => answer(ipbroker_protocol::message::Stats::default()),
            Command::Inject { mut frames, answer } => {
                frames.insert(0, Message::new());
                let id = frames
                    .get(at::HEADER)
                    .and_then(|header| HeaderRef::read(self.session.packer, header).ok())
                    .map(|header| header.msg_id.into_owned());
                match id {
                    Some(id) => {
                        self.again.push_back(frames);
                        answer(Ok(id));
                    }
                    None => answer(Err("not a message".into())),
                }
            }
            Command::Settled(answer) => answer(()),
            Command::Attached(answer) => answer(Vec::new()),
            Command::ClientGone { answer, .. } => answer(Aborted::default()),
            Command::Shutdown => {}
        }
        Ok(())
    }

    fn state(&self, id: &str) -> TaskState {
        if self.books.contains(id) {
            TaskState::Running
        } else {
            TaskState::Unknown
        }
    }

    /// Only what engines have announced can be found; the hub tells them to stop it.
    fn abort(&self, selection: Selection) -> Aborted {
        let mut aborted = Aborted::default();
        let ids = match selection {
            Selection::Ids(ids) => ids,
            Selection::All | Selection::Session(_) => self.books.ids(),
        };
        for id in ids {
            let engines = self.books.engines(&id);
            if engines.is_empty() {
                aborted.unknown.push(id);
                continue;
            }
            for engine in engines {
                let its = aborted.running.entry(engine.to_owned()).or_default();
                its.push(id.clone());
            }
        }
        aborted
    }
}
