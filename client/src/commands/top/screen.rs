//! What is on the screen, as lines. Nothing is said by colour.

use ipbroker_client::protocol::message::{
    EngineSample, FailureSample, HostSample, SubmissionSample,
};
use unicode_width::UnicodeWidthChar;

use super::state::{State, Table};
use super::terminal::{Line, Look};
use crate::output::plural;

const HELP: &str = "q quit  Tab next  arrows choose  Enter explain  a abort  r run failures again";

/// The screen, `height` lines of at most `width` columns.
pub(super) fn draw(state: &State, width: usize, height: usize) -> Vec<Line> {
    let mut lines = vec![(title(state), Look::Bold), (counts(state), Look::Plain)];
    if let Some(sample) = &state.sample {
        lines.extend(hosts(&sample.hosts).map(|text| (text, Look::Plain)));
        let troubles = sample.troubles.iter().take(3);
        lines.extend(troubles.map(|text| (format!("! {text}"), Look::Bold)));
        // At the bottom a line of help; a table has a heading and at least one row.
        let room = height.saturating_sub(lines.len() + 1);
        let failures = match sample.failures.len() {
            0 => 0,
            count => (count.min(5) + 1).min(room / 3),
        };
        let submissions = (sample.submissions.len() + 1)
            .max(2)
            .min((room - failures).div_ceil(2));
        let engines = (room - failures).saturating_sub(submissions);
        let rows = sample.submissions.iter().rev();
        let rows = rows.map(|row| submission(state, row));
        lines.extend(table(state, Table::Submissions, rows, submissions));
        let rows = sample.engines.iter().map(|row| engine(sample.time, row));
        lines.extend(table(state, Table::Engines, rows, engines));
        lines.resize(
            height.saturating_sub(failures + 1).max(lines.len()),
            (String::new(), Look::Plain),
        );
        let rows = sample.failures.iter().rev();
        let rows = rows.map(|row| failure(sample.time, row));
        lines.extend(table(state, Table::Failures, rows, failures));
    }
    lines.truncate(height.saturating_sub(1));
    lines.resize(height.saturating_sub(1), (String::new(), Look::Plain));
    match &state.question {
        Some((question, _)) => {
            over(
                &mut lines,
                &format!("{question} y: yes, any other key: no"),
                width,
                height,
            );
        }
        None if state.said.is_empty() => lines.push((HELP.into(), Look::Plain)),
        None => over(&mut lines, &state.said, width, height),
    }
    let fitted = lines.into_iter().map(|(text, look)| Line {
        text: fit(&text, width),
        look,
    });
    fitted.take(height).collect()
}

/// Puts a text over the last lines, in as many as it takes.
fn over(lines: &mut Vec<(String, Look)>, text: &str, width: usize, height: usize) {
    let mut parts = Vec::new();
    let mut part = String::new();
    for word in text.split_whitespace() {
        if !part.is_empty() && columns(&part) + 1 + columns(word) > width {
            parts.push(std::mem::take(&mut part));
        }
        if !part.is_empty() {
            part.push(' ');
        }
        part += word;
    }
    parts.push(part);
    lines.truncate(height.saturating_sub(parts.len()));
    lines.extend(parts.into_iter().map(|part| (part, Look::Reversed)));
}

/// A heading and the rows around the chosen one, `room` lines in all.
fn table(
    state: &State,
    table: Table,
    rows: impl Iterator<Item = String>,
    room: usize,
) -> Vec<(String, Look)> {
    if room == 0 {
        return Vec::new();
    }
    let here = state.table == table;
    let mark = if here { " <" } else { "" };
    let heading = match table {
        Table::Submissions => "Submission   Ended           Failed Pace               First task",
        Table::Engines => "Engine Host             Has   Ended     For   Works on",
        Table::Failures => "Failures Last      What they said last",
    };
    let mut lines = vec![(format!("{heading}{mark}"), Look::Heading)];
    let place = state.place(table).unwrap_or(0);
    let shown = room - 1;
    let first = (place + 1).saturating_sub(shown);
    for (index, row) in rows.enumerate().skip(first).take(shown) {
        let chosen = here && index == place;
        lines.push((row, if chosen { Look::Reversed } else { Look::Plain }));
    }
    lines
}

pub(super) fn title(state: &State) -> String {
    let Some(sample) = &state.sample else {
        let waiting = || "ipbroker: waiting for the controller".to_owned();
        return state.lost.clone().unwrap_or_else(waiting);
    };
    let busy = sample
        .engines
        .iter()
        .filter(|engine| engine.outstanding > 0);
    let title = format!(
        "ipbroker  up {}  {}  {}, {} busy  {}",
        short(sample.uptime),
        sample.scheme,
        plural(sample.engines.len() as u64, "engine"),
        busy.count(),
        plural(sample.clients, "client")
    );
    match &state.lost {
        Some(lost) => format!("no answer ({lost}); before: {title}"),
        None => title,
    }
}

pub(super) fn counts(state: &State) -> String {
    let Some(sample) = &state.sample else {
        return String::new();
    };
    let tasks = sample.tasks;
    let blocked = match tasks.blocked {
        0 => String::new(),
        blocked => format!(" (+{blocked} for others)"),
    };
    format!(
        "waiting {}{blocked}  running {}  ended {}  failed {}  aborted {}  {:.1}/s",
        tasks.ready,
        tasks.running + tasks.direct,
        tasks.completed,
        tasks.failed,
        tasks.aborted,
        state.rate(None)
    )
}

/// How loaded the hosts are, the busiest first, in a line.
fn hosts(hosts: &[HostSample]) -> Option<String> {
    let loads = hosts.iter().filter_map(|host| Some((host, host.load?)));
    let mut loads: Vec<_> = loads.collect();
    loads.sort_by(|(_, a), (_, b)| b.cpu.total_cmp(&a.cpu));
    let texts = loads.iter().map(|(host, load)| {
        let (cpu, memory) = (100.0 * load.cpu, percent(load.memory));
        format!(
            "{} {cpu:.0}% {memory:.0}%",
            fit(&host.host, host.host.len().min(16))
        )
    });
    (!loads.is_empty()).then(|| format!("cpu, memory: {}", texts.collect::<Vec<_>>().join("  ")))
}

/// How much of something is used.
pub(super) fn percent((used, all): (u64, u64)) -> f64 {
    100.0 * used as f64 / all.max(1) as f64
}

/// Seconds in at most five letters.
pub(super) fn short(seconds: f64) -> String {
    match seconds.max(0.0) {
        s if s < 10.0 => format!("{s:.1}s"),
        s if s < 120.0 => format!("{s:.0}s"),
        s if s < 7200.0 => format!("{:.0}m", s / 60.0),
        s if s < 172_800.0 => format!("{:.0}h", s / 3600.0),
        s => format!("{:.0}d", s / 86_400.0),
    }
}

/// How fast a submission goes and how long it still takes, or took.
pub(super) fn pace(state: &State, row: &SubmissionSample) -> String {
    if let Some(ended) = row.ended {
        return format!("took {}", short(ended - row.begun));
    }
    let rate = state.rate(Some(row));
    if rate > 0.0 {
        let left = row.total.saturating_sub(row.done()) as f64 / rate;
        format!("{rate:.1}/s {} left", short(left))
    } else {
        "-".to_owned()
    }
}

fn submission(state: &State, row: &SubmissionSample) -> String {
    let full = (10 * row.done()).checked_div(row.total).unwrap_or(0);
    let full = usize::try_from(full.min(10)).unwrap_or(0);
    let bar = format!("[{}{}]", "#".repeat(full), ".".repeat(10 - full));
    let ended = format!("{}/{}", row.done(), row.total);
    let failed = match row.failed {
        0 => String::new(),
        failed => failed.to_string(),
    };
    let pace = pace(state, row);
    format!("{bar} {ended:<15} {failed:<6} {pace:<18} {}", row.what)
}

fn engine(now: f64, row: &EngineSample) -> String {
    let since = row
        .since
        .map_or_else(String::new, |since| short(now - since));
    let what = match &row.what {
        Some(what) => what,
        None if row.outstanding == 0 => "idle",
        None => "",
    };
    let (host, has, ended) = (fit(&row.host, 16), row.outstanding, row.completed);
    format!(
        "{:<6} {host:<16} {has:<5} {ended:<9} {since:<5} {what}",
        row.id
    )
}

fn failure(now: f64, row: &FailureSample) -> String {
    let ago = format!("{} ago", short(now - row.last));
    format!("{:<8} {ago:<9} {}", row.count, row.text)
}

/// How many columns a terminal takes for it.
fn columns(text: &str) -> usize {
    text.chars().filter_map(UnicodeWidthChar::width).sum()
}

/// As much of it as fits; what would steer the terminal is left out.
fn fit(text: &str, width: usize) -> String {
    let mut fitted = String::new();
    let mut taken = 0;
    for c in text.chars() {
        let Some(wide) = c.width() else {
            continue;
        };
        if taken + wide > width {
            break;
        }
        taken += wide;
        fitted.push(c);
    }
    fitted
}

#[cfg(test)]
mod tests {
    use super::super::state::Key;
    use super::*;
    use ipbroker_client::protocol::message::Sample;

    fn text(lines: &[Line]) -> String {
        lines.iter().map(|line| line.text.clone() + "\n").collect()
    }

    fn full() -> State {
        let submissions = (0..50).map(|n| SubmissionSample {
            id: n.to_string(),
            what: "sleep 1\x1b[31m".into(),
            total: 10,
            completed: 5,
            ..SubmissionSample::default()
        });
        let engines = (0..100).map(|id| EngineSample {
            id,
            host: "a-host-with-a-long-name.example".into(),
            outstanding: 1,
            what: Some("sleep 1".into()),
            since: Some(90.0),
            ..EngineSample::default()
        });
        let failures = (0..9).map(|n| FailureSample {
            text: format!("failure {n} {}", "長".repeat(100)),
            count: 1,
            ..FailureSample::default()
        });
        let mut state = State::default();
        state.heard(Ok(Box::new(Sample {
            time: 100.0,
            scheme: "leastload".into(),
            submissions: submissions.collect(),
            engines: engines.collect(),
            failures: failures.collect(),
            troubles: vec!["the disk is full".into()],
            ..Sample::default()
        })));
        state
    }

    #[test]
    fn it_fits_into_any_terminal() {
        let mut state = full();
        for asked in [false, true] {
            if asked {
                state.key(Key::Letter('a'));
            }
            for (width, height) in [(80, 24), (20, 4), (1, 1), (300, 100), (80, 0)] {
                let lines = draw(&state, width, height);
                assert_eq!(lines.len(), height, "{width}×{height}");
                for line in &lines {
                    assert!(columns(&line.text) <= width, "{line:?}");
                    assert!(!line.text.contains('\x1b'), "{line:?}");
                }
            }
        }
        assert_eq!(draw(&State::default(), 80, 24).len(), 24);
    }

    #[test]
    fn what_matters_is_there_in_80_by_24() {
        let mut state = full();
        let shown = text(&draw(&state, 80, 24));
        for part in [
            "[#####.....] 5/10",
            "100 engines, 100 busy",
            "! the disk is full",
            "failure 8",
            "q quit",
            "10s   sleep 1",
            "Submission",
            "Engine",
        ] {
            assert!(shown.contains(part), "no {part:?} in\n{shown}");
        }
        for _ in 0..40 {
            state.key(Key::Down);
        }
        let lines = draw(&state, 80, 24);
        assert!(lines.iter().any(|line| line.look == Look::Reversed));
        state.key(Key::Letter('a'));
        assert!(text(&draw(&state, 80, 24)).contains("Abort 5 tasks"));
        state.key(Key::Letter('n'));
        assert!(text(&draw(&state, 80, 24)).contains("q quit"));
    }
}
