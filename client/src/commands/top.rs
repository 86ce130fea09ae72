//! `ipclient top`: the cluster in a terminal.

mod plain;
mod screen;
mod state;
mod terminal;

use std::io::IsTerminal;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use clap::Args;
use crossbeam_channel::Receiver;
use ipbroker_client::Client;
use ipbroker_client::protocol::message::Sample;
use signal_hook::consts::{SIGCONT, SIGHUP, SIGINT, SIGQUIT, SIGTERM};

use self::state::{Act, State};
use self::terminal::Terminal;
use super::Outcome;
use crate::cli::{ClusterArgs, seconds};
use crate::failure::Failure;

/// How long a key is waited for before it is looked for news and signals.
const TICK: Duration = Duration::from_millis(100);

/// The pause after an answer that did not come.
const PAUSE: Duration = Duration::from_secs(1);

/// Watch the cluster in the terminal: submissions, engines, failures
#[derive(Debug, Args)]
#[command(after_help = "\
Keys: q quits, Tab goes to the next table, arrows choose a row, Enter explains it, a aborts the submission, r runs the \
chosen failures again; a and r ask first.

Example:
  ipclient top
  ipclient top --plain --interval 10")]
pub(crate) struct TopArgs {
    /// Print plain lines again and again: for screen readers, files and pipes
    #[arg(long)]
    plain: bool,
    /// Seconds between two prints with --plain
    #[arg(long, value_name = "SECONDS", default_value = "2", value_parser = seconds, requires = "plain")]
    interval: Duration,
}

/// What comes from the cluster: a sample, or why there is none.
type News = Result<Box<Sample>, String>;

pub(crate) fn main(args: TopArgs, cluster: &ClusterArgs) -> Outcome {
    let able = std::env::var_os("TERM").is_some_and(|term| !term.is_empty() && term != "dumb");
    let terminal = able && std::io::stdout().is_terminal() && std::io::stdin().is_terminal();
    if !args.plain && !terminal {
        return Err(Failure::usage(
            "top needs a terminal; `ipclient top --plain` and `ipclient events` do not",
        ));
    }
    let client = cluster.connect()?;
    if args.plain {
        return plain::run(&client, args.interval);
    }
    // The terminal is given back before the program ends by them.
    let ended = Arc::new(AtomicUsize::new(0));
    for signal in [SIGHUP, SIGINT, SIGQUIT, SIGTERM] {
        signal_hook::flag::register_usize(signal, ended.clone(), signal.cast_unsigned() as usize)?;
    }
    let resumed = Arc::new(AtomicBool::new(false));
    signal_hook::flag::register(SIGCONT, resumed.clone())?;
    let news = listen(&client)?;
    let mut terminal = Terminal::open()?;
    watch(&mut terminal, &client, &news, (&ended, &resumed))
}

/// Asks for samples on a thread of its own: nothing on the screen waits for the controller.
fn listen(client: &Client) -> std::io::Result<Receiver<News>> {
    let (send, receive) = crossbeam_channel::bounded(4);
    let client = client.clone();
    let listen = move || {
        let mut after = 0;
        loop {
            let news = client
                .events(after)
                .map(Box::new)
                .map_err(|error| error.to_string());
            let failed = news.is_err();
            if let Ok(sample) = &news {
                after = sample.seq;
            }
            if send.send(news).is_err() {
                return;
            }
            if failed {
                std::thread::sleep(PAUSE);
            }
        }
    };
    std::thread::Builder::new()
        .name("samples".into())
        .spawn(listen)?;
    Ok(receive)
}

fn watch(
    terminal: &mut Terminal,
    client: &Client,
    news: &Receiver<News>,
    (ended, resumed): (&AtomicUsize, &AtomicBool),
) -> Outcome {
    let mut state = State::default();
    loop {
        for news in news.try_iter() {
            state.heard(news);
        }
        if resumed.swap(false, Ordering::Relaxed) {
            terminal.again()?;
        }
        let (width, height) = terminal.size();
        terminal.draw(&screen::draw(&state, width, height))?;
        for key in terminal.keys(TICK)? {
            match state.key(key) {
                Some(Act::Quit) => return Ok(ExitCode::SUCCESS),
                Some(act) => state.say(carry_out(client, act)),
                None => {}
            }
        }
        match u8::try_from(ended.load(Ordering::Relaxed)) {
            Ok(0) => {}
            signal => return Ok(ExitCode::from(128 + signal.unwrap_or(0))),
        }
    }
}

/// Does it, and says in a line what became of it.
fn carry_out(client: &Client, act: Act) -> String {
    let said = match act {
        Act::Quit => return String::new(),
        Act::Abort(session) => client.abort_session(&session).map(|reply| {
            format!(
                "aborted {} that waited; {} that run are being stopped",
                reply.aborted, reply.stopping
            )
        }),
        Act::Resubmit(ids) => client
            .resubmit(&ids)
            .map(|new| format!("{} submitted again", new.len())),
        Act::Explain(id) => client.explain(&id).map(|why| {
            let written = client.output(&id, [0; 2]).unwrap_or_default();
            let lines = written
                .text
                .iter()
                .filter_map(|text| text.lines().next_back());
            let last = lines.fold(String::new(), |all, line| format!("{all} | {line}"));
            format!("{id}: {}{last}", why.text)
        }),
    };
    said.unwrap_or_else(|error| error.to_string())
}
