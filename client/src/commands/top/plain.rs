//! `ipclient top --plain`: lines that can be read aloud, searched and kept.

use std::process::ExitCode;
use std::time::{Duration, Instant};

use ipbroker_client::Client;

use super::screen;
use super::state::State;
use crate::commands::Outcome;
use crate::commands::events::Samples;
use crate::output;

pub(super) fn run(client: &Client, interval: Duration) -> Outcome {
    let mut state = State::default();
    let mut next = Instant::now();
    let mut samples = Samples::new(client);
    loop {
        // A rate wants two samples; every one is heard, though not every one is printed.
        let sample = samples.next()?;
        state.heard(Ok(Box::new(sample)));
        if Instant::now() < next {
            continue;
        }
        next = Instant::now() + interval;
        if !output::print(&text(&state))? {
            return Ok(ExitCode::SUCCESS);
        }
    }
}

fn text(state: &State) -> String {
    let Some(sample) = &state.sample else {
        return String::new();
    };
    let mut text = format!("{}\n{}\n", screen::title(state), screen::counts(state));
    for row in sample
        .submissions
        .iter()
        .rev()
        .filter(|row| row.ended.is_none())
    {
        text += &format!(
            "submission {}: {} of {} ended, {} failed, {}: {}\n",
            row.id,
            row.done(),
            row.total,
            row.failed,
            screen::pace(state, row),
            row.what
        );
    }
    for engine in &sample.engines {
        let does = match (&engine.what, engine.since) {
            (Some(what), Some(since)) => {
                format!("{what}, for {}", screen::short(sample.time - since))
            }
            _ if engine.outstanding > 0 => format!("has {} tasks", engine.outstanding),
            _ => "idle".to_owned(),
        };
        let leaves = if engine.leaving { ", leaves" } else { "" };
        text += &format!(
            "engine {} on {}, {} ended{leaves}: {does}\n",
            engine.id, engine.host, engine.completed
        );
    }
    for host in &sample.hosts {
        let load = host.load.map_or_else(String::new, |load| {
            format!(
                ", cpu {:.0} %, memory {:.0} %, scratch disk {:.0} %",
                100.0 * load.cpu,
                screen::percent(load.memory),
                screen::percent(load.disk)
            )
        });
        text += &format!(
            "host {}, {} of {} busy{load}\n",
            host.host,
            host.busy,
            output::plural(host.engines, "engine")
        );
    }
    for failure in sample.failures.iter().rev().take(5) {
        text += &format!("{} failed: {}\n", failure.count, failure.text);
    }
    for trouble in &sample.troubles {
        text += &format!("trouble: {trouble}\n");
    }
    text + "\n"
}
