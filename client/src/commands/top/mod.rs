//! `ipclient top`: the cluster in a terminal.

mod page;
mod plain;
mod rows;
mod screen;
mod state;

use std::io::{self, IsTerminal};
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use crossbeam_channel::{Receiver, Sender};
use ipbroker_client::Client;
use ipbroker_client::protocol::message::Sample;
use ipbroker_client::protocol::time;
use ratatui::backend::CrosstermBackend;
use ratatui::crossterm::{event, execute, terminal};
use ratatui::layout::Rect;
use ratatui::{DefaultTerminal, Terminal, TerminalOptions, Viewport};
use rustix::process::{getpgrp, getsid};
use signal_hook::consts::{SIGCONT, SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGTSTP};
use signal_hook::iterator::Signals;
use signal_hook::low_level::emulate_default_handler;

use self::state::{Act, State};
use super::Outcome;
use crate::cli::ClusterArgs;
use crate::failure::Failure;

/// The pause after an answer that did not come.
const PAUSE: Duration = Duration::from_secs(1);

/// Watch the cluster in the terminal: submissions, engines, failures
#[derive(Debug, Args)]
#[command(after_help = "\
Keys: q quits, ? shows all keys, Tab goes to the next table, arrows choose a row, Enter opens the page of its task, a aborts, \
r runs failures again, / filters, s sorts, f follows the newest submission; a and r ask first.

Example:
  ipclient top
  ipclient top --plain --interval 10")]
pub(crate) struct TopArgs {
    /// Print plain lines again and again: for screen readers, files and pipes
    #[arg(long)]
    plain: bool,
    /// Time between two prints with --plain
    #[arg(long, value_name = "TIME", default_value = "2s", value_parser = time::duration, requires = "plain")]
    interval: Duration,
}

/// What comes from the cluster: a sample, or why there is none.
type News = Result<Box<Sample>, String>;

/// What happens: threads wait for it, and nothing on the screen waits for the controller.
enum Event {
    Key(event::KeyEvent),
    /// The terminal has another size, or a page has something new.
    Redraw,
    News(News),
    /// What became of a request.
    Said(String),
    Signal(i32),
    /// The terminal is gone.
    Gone(io::Error),
}

pub(crate) fn main(args: TopArgs, cluster: &ClusterArgs) -> Outcome {
    let able = std::env::var_os("TERM").is_some_and(|term| !term.is_empty() && term != "dumb");
    let terminal = able && io::stdout().is_terminal() && io::stdin().is_terminal();
    if !args.plain && !terminal {
        return Err(Failure::usage(
            "top needs a terminal; `ipclient top --plain` and `ipclient events` do not",
        ));
    }
    let client = cluster.connect()?;
    if args.plain {
        return plain::run(&client, args.interval);
    }
    let (send, events) = crossbeam_channel::bounded(64);
    // The terminal is given back before the program ends by them.
    let mut signals = Signals::new([SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGTSTP, SIGCONT])?;
    let tell = send.clone();
    spawn("signals", move || {
        for signal in signals.forever() {
            let _ = tell.send(Event::Signal(signal));
        }
    })?;
    listen(&client, send.clone())?;
    let end = open().map_err(Failure::from).and_then(|mut terminal| {
        let end = read_keys(send.clone()).map_err(Failure::from);
        let end = end.and_then(|()| watch(&mut terminal, &client, &send, &events));
        let _ = terminal.show_cursor();
        // Where the terminal is gone, dropping it panics: it writes to standard error that it failed.
        std::mem::forget(terminal);
        end
    });
    let _ = ratatui::try_restore();
    end
}

fn spawn(name: &str, body: impl FnOnce() + Send + 'static) -> io::Result<()> {
    ipbroker_client::protocol::spawn(name, body).map(drop)
}

fn listen(client: &Client, events: Sender<Event>) -> io::Result<()> {
    let client = client.clone();
    spawn("samples", move || {
        let mut after = 0;
        loop {
            let news = client.events(after).map(Box::new);
            let failed = news.is_err();
            if let Ok(sample) = &news {
                after = sample.seq;
            }
            let news = Event::News(news.map_err(|error| error.to_string()));
            if events.send(news).is_err() {
                return;
            }
            if failed {
                std::thread::sleep(PAUSE);
            }
        }
    })
}

fn read_keys(events: Sender<Event>) -> io::Result<()> {
    spawn("keys", move || {
        loop {
            let event = match event::read() {
                Ok(event::Event::Key(key)) if key.is_press() => Event::Key(key),
                Ok(event::Event::Resize(..)) => Event::Redraw,
                Ok(_) => continue,
                Err(error) => Event::Gone(error),
            };
            let gone = matches!(event, Event::Gone(_));
            if events.send(event).is_err() || gone {
                return;
            }
        }
    })
}

fn open() -> io::Result<DefaultTerminal> {
    let terminal = ratatui::try_init()?;
    if terminal.size()?.area() > 0 {
        return Ok(terminal);
    }
    // A serial line does not tell.
    let viewport = Viewport::Fixed(Rect::new(0, 0, 80, 24));
    Terminal::with_options(
        CrosstermBackend::new(io::stdout()),
        TerminalOptions { viewport },
    )
}

/// Stops as other programs do by Ctrl-Z: the shell has the terminal until it says to go on.
fn stop(terminal: &mut DefaultTerminal) -> io::Result<()> {
    if getpgrp() == getsid(None)? {
        // No shell with job control: nobody would.
        return Ok(());
    }
    terminal.show_cursor()?;
    ratatui::try_restore()?;
    emulate_default_handler(SIGTSTP)?;
    again(terminal)
}

/// Takes the terminal again after a stop: the shell has used it.
fn again(terminal: &mut DefaultTerminal) -> io::Result<()> {
    terminal::disable_raw_mode()?;
    terminal::enable_raw_mode()?;
    execute!(io::stdout(), terminal::EnterAlternateScreen)?;
    terminal.hide_cursor()?;
    // Draws all of it. `clear` would ask where the cursor is, and the thread that reads keys would get the answer.
    let area = terminal.get_frame().area();
    terminal.resize(area)
}

fn watch(
    terminal: &mut DefaultTerminal,
    client: &Client,
    send: &Sender<Event>,
    events: &Receiver<Event>,
) -> Outcome {
    let mut state = State::default();
    loop {
        terminal.draw(|frame| screen::draw(frame, &state))?;
        // There is always a sender: this function has one.
        for event in events.recv().into_iter().chain(events.try_iter()) {
            match event {
                Event::Redraw => {}
                Event::News(news) => state.heard(news),
                Event::Said(text) => state.say(text),
                Event::Signal(SIGTSTP) => stop(terminal)?,
                Event::Signal(SIGCONT) => again(terminal)?,
                Event::Signal(signal) => {
                    return Ok(ExitCode::from(u8::try_from(128 + signal).unwrap_or(1)));
                }
                Event::Gone(error) => return Err(error.into()),
                Event::Key(key) => match state.key(key) {
                    Some(Act::Quit) => return Ok(ExitCode::SUCCESS),
                    Some(Act::Stop) => stop(terminal)?,
                    Some(Act::Open(target)) => {
                        state.page = Some(page::open(client, target, send)?);
                    }
                    // A controller that is gone leaves it without an answer for long: keys and signals go on.
                    Some(act) => {
                        let (client, send) = (client.clone(), send.clone());
                        spawn("act", move || {
                            let _ = send.send(Event::Said(carry_out(&client, act)));
                        })?;
                    }
                    None => {}
                },
            }
        }
    }
}

/// Does it, and says in a line what became of it.
fn carry_out(client: &Client, act: Act) -> String {
    let aborted = match act {
        Act::Quit | Act::Stop | Act::Open(_) => return String::new(),
        Act::Resubmit(ids) => {
            let new = client.resubmit(&ids);
            return new.map_or_else(
                |error| error.to_string(),
                |new| format!("{} submitted again", new.len()),
            );
        }
        Act::AbortSession(session) => client.abort_session(&session),
        Act::Abort(id) => client.abort(&[id], true),
    };
    match aborted {
        Ok(reply) => format!(
            "aborted {} that waited; {} that run are being stopped",
            reply.aborted, reply.stopping
        ),
        Err(error) => error.to_string(),
    }
}
