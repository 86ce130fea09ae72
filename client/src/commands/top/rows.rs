//! The tables: what is in their rows, which of them are shown, and in which order.

use std::collections::HashMap;

use ipbroker_client::protocol::message::{EngineSample, FailureSample, HostLoad, SubmissionSample};

use super::screen::{few, pace, percent, short};
use super::state::State;

/// The tables.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) enum Table {
    #[default]
    Submissions,
    Engines,
    Failures,
}

impl Table {
    pub(super) const ALL: [Self; 3] = [Self::Submissions, Self::Engines, Self::Failures];

    /// Headings and widths; the last column takes what is left.
    pub(super) fn columns(self) -> &'static [(&'static str, u16)] {
        match self {
            Self::Submissions => &[
                ("Submission", 12),
                ("Ended", 13),
                ("Failed", 7),
                ("Pace", 18),
                ("First task", 0),
            ],
            Self::Engines => &[
                ("Engine", 7),
                ("Host", 14),
                ("Cpu", 4),
                ("Mem", 4),
                ("Has", 4),
                ("Ended", 7),
                ("For", 5),
                ("Works on", 0),
            ],
            Self::Failures => &[("Failures", 9), ("Last", 9), ("What they said last", 0)],
        }
    }
}

/// What is shown, and the number by which it is sorted, the largest first; equal ones go by the text.
type Cell = (String, f64);

/// A row of a table.
pub(super) struct Row {
    /// Its place in the sample.
    pub(super) at: usize,
    /// What it is about, by which it is known again in the next sample.
    pub(super) key: String,
    pub(super) cells: Vec<Cell>,
}

/// The rows that have the text of the filter in them, as they are sorted.
pub(super) fn rows(state: &State, table: Table) -> Vec<Row> {
    let Some(sample) = &state.sample else {
        return Vec::new();
    };
    let row = |(at, (key, cells))| Row { at, key, cells };
    let mut rows: Vec<Row> = match table {
        Table::Submissions => {
            let rows = sample.submissions.iter().enumerate().rev();
            rows.map(|(at, of)| row((at, (of.id.clone(), submission(state, of)))))
                .collect()
        }
        Table::Engines => {
            let loads = sample.hosts.iter().map(|host| (&*host.host, host.load));
            let loads: HashMap<&str, Option<HostLoad>> = loads.collect();
            let load = |of: &EngineSample| *loads.get(&*of.host)?;
            let rows = sample.engines.iter().enumerate();
            rows.map(|(at, of)| row((at, (of.id.to_string(), engine(sample.time, of, load(of))))))
                .collect()
        }
        Table::Failures => {
            let rows = sample.failures.iter().enumerate().rev();
            rows.map(|(at, of)| row((at, (of.text.clone(), failure(sample.time, of)))))
                .collect()
        }
    };
    let filter = state.filter.to_lowercase();
    rows.retain(|row| {
        let mut texts = row.cells.iter().map(|(text, _)| text);
        texts.any(|text| text.to_lowercase().contains(&filter))
    });
    if let Some(by) = state.sorted[table as usize] {
        rows.sort_by(|a, b| {
            let ((a, first), (b, second)) = (&a.cells[by], &b.cells[by]);
            second.total_cmp(first).then_with(|| a.cmp(b))
        });
    }
    rows
}

fn submission(state: &State, row: &SubmissionSample) -> Vec<Cell> {
    let part = row.done() as f64 / row.total.max(1) as f64;
    let full = (10.0 * part.min(1.0)) as usize;
    let bar = format!("[{}{}]", "#".repeat(full), ".".repeat(10 - full));
    let ended = format!("{}/{}", few(row.done()), few(row.total));
    vec![
        (bar, part),
        (ended, row.done() as f64),
        (some(row.failed), row.failed as f64),
        (pace(state, row), state.rate(Some(row))),
        (row.what.clone(), 0.0),
    ]
}

fn engine(now: f64, row: &EngineSample, load: Option<HostLoad>) -> Vec<Cell> {
    let cell = |value: Option<f64>| {
        let text = value.map_or_else(String::new, |value| format!("{value:.0}%"));
        (text, value.unwrap_or(0.0))
    };
    let since = row.since.map(|since| now - since);
    let what = match &row.what {
        Some(what) => what,
        None if row.outstanding == 0 => "idle",
        None => "",
    };
    vec![
        (row.id.to_string(), -f64::from(row.id)),
        (row.host.clone(), 0.0),
        cell(load.map(|load| 100.0 * load.cpu)),
        cell(load.map(|load| percent(load.memory))),
        (some(row.outstanding), row.outstanding as f64),
        (few(row.completed), row.completed as f64),
        (
            since.map_or_else(String::new, short),
            since.unwrap_or_default(),
        ),
        (
            if row.leaving {
                format!("(leaves after this) {what}")
            } else {
                what.to_owned()
            },
            0.0,
        ),
    ]
}

fn failure(now: f64, row: &FailureSample) -> Vec<Cell> {
    vec![
        (few(row.count), row.count as f64),
        (format!("{} ago", short(now - row.last)), row.last),
        (row.text.clone(), 0.0),
    ]
}

/// Nothing for none.
fn some(count: u64) -> String {
    match count {
        0 => String::new(),
        count => few(count),
    }
}
