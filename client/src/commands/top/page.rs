//! A task's page: what it is, why it is where it is, and what it writes, as it comes.

use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use crossbeam_channel::Sender;
use ipbroker_client::protocol::array::split_id;
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
        let (id, mut name) = find(&client, target);
        let mut seen = [0; 2];
        loop {
            // The history may be a moment behind.
            if name.is_none() {
                name = named(tasks(&client, &id, 1), &id);
            }
            let why = client.explain(&id);
            let more = output::more(&client, &id, &mut seen);
            let Some(page) = weak.upgrade() else {
                return;
            };
            let mut told = page.lock().unwrap_or_else(PoisonError::into_inner);
            told.id.clone_from(&id);
            if name.is_some() {
                told.name.clone_from(&name);
            }
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
    let (id, tasks) = match target {
        Target::Task(id) => {
            let tasks = tasks(client, &id, 1);
            (id, tasks)
        }
        Target::FirstOf { id, total, running } => {
            let tasks = tasks(client, &id, total);
            // What is written is told of a member only, not of a large array.
            let single = tasks.iter().filter(|task| task.count <= 1);
            let is_open = |task: &&GraphTask| matches!(&*task.state, "waiting" | "running");
            let open = single.clone().find(is_open).map(|task| task.id.clone());
            let first = || single.clone().next().map(|task| task.id.clone());
            let id = open.or(running).or_else(first).unwrap_or(id);
            (id, tasks)
        }
    };
    let name = named(tasks, &id);
    (id, name)
}

/// The first tasks that were submitted together, as far as they are recorded.
fn tasks(client: &Client, first: &str, tasks: u64) -> Vec<GraphTask> {
    let msg_id = first.to_owned();
    let graph: Result<GraphReply, _> =
        client.query(types::GRAPH_REQUEST, &GraphRequest { msg_id, tasks });
    graph.map_or_else(|_| Vec::new(), |graph| graph.tasks)
}

/// The name of one of these; members of a large array have that of the array.
fn named(tasks: Vec<GraphTask>, id: &str) -> Option<String> {
    let mut tasks = tasks.into_iter();
    tasks
        .find(|task| task.id == id || task.id == split_id(id).0)
        .map(|task| task.name)
}
