//! A task's page: what it is, why it is where it is, and what it writes, as it comes.

use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use crossbeam_channel::Sender;
use ipbroker_client::protocol::message::{GraphReply, GraphRequest, GraphTask, types};
use ipbroker_client::{Client, Explanation};

use super::{Event, spawn};
use crate::commands::output;

/// So many bytes of each stream are kept.
const KEPT: usize = 64 << 10;

/// Whose page it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Target {
    Task(String),
    /// The first unfinished task of a submission, which is known by its first one. Of what is not recorded, one that runs.
    FirstOf {
        id: String,
        total: u64,
        running: Option<String>,
    },
}

/// What is known of a task so far.
#[derive(Debug, Clone, Default)]
pub(super) struct Told {
    pub(super) id: String,
    /// Its command or the name of its function.
    pub(super) name: Option<String>,
    pub(super) why: Explanation,
    /// The end of what it has written to standard output and standard error.
    pub(super) text: [String; 2],
    /// Why more cannot be told.
    pub(super) trouble: String,
}

/// A page that is open: its thread ends when nobody holds it any more.
pub(super) type Page = Arc<Mutex<Told>>;

/// Opens a page, which is kept up to date until it is dropped.
pub(super) fn open(client: &Client, target: Target, events: &Sender<Event>) -> io::Result<Page> {
    let page = Page::default();
    let (weak, client, events) = (Arc::downgrade(&page), client.clone(), events.clone());
    spawn("page", move || {
        let (id, name) = find(&client, target);
        let mut seen = [0; 2];
        loop {
            let why = client.explain(&id);
            let more = output::more(&client, &id, &mut seen);
            let Some(page) = weak.upgrade() else {
                return;
            };
            let mut told = page.lock().unwrap_or_else(PoisonError::into_inner);
            (told.id, told.name) = (id.clone(), name.clone());
            told.trouble.clear();
            match why {
                Ok(why) => told.why = why,
                Err(error) => told.trouble = error.to_string(),
            }
            match more {
                Ok(Some(more)) => {
                    for (told, text) in told.text.iter_mut().zip(more.text) {
                        if more.anew {
                            told.clear();
                        }
                        *told += &text;
                        let mut from = told.len().saturating_sub(KEPT)..told.len();
                        told.drain(..from.find(|at| told.is_char_boundary(*at)).unwrap_or(0));
                    }
                }
                Ok(None) => {}
                Err(failure) => told.trouble = failure.to_string(),
            }
            let ended = matches!(&*told.why.state, "done" | "unknown");
            drop(told);
            drop(page);
            if events.send(Event::Redraw).is_err() || ended {
                return;
            }
            std::thread::sleep(output::PAUSE);
        }
    })?;
    Ok(page)
}

/// The task's id, and its name if it is recorded.
fn find(client: &Client, target: Target) -> (String, Option<String>) {
    let graph = |msg_id: &str, tasks| {
        let msg_id = msg_id.to_owned();
        let graph: Result<GraphReply, _> =
            client.query(types::GRAPH_REQUEST, &GraphRequest { msg_id, tasks });
        graph.map_or_else(|_| Vec::new(), |graph| graph.tasks)
    };
    match target {
        Target::Task(id) => {
            let mut tasks = graph(&id, 1).into_iter();
            let name = tasks.find(|task| task.id == id).map(|task| task.name);
            (id, name)
        }
        Target::FirstOf { id, total, running } => {
            let tasks = graph(&id, total);
            // What is written is told of a member only, not of a large array.
            let mut single = tasks.into_iter().filter(|task| task.count <= 1);
            let open = |task: &GraphTask| matches!(&*task.state, "waiting" | "running");
            match single.find(open) {
                Some(task) => (task.id, Some(task.name)),
                None => (running.unwrap_or(id), None),
            }
        }
    }
}
