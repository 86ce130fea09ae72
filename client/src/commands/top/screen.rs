//! What is on the screen. Nothing is said by colour.

use std::sync::PoisonError;

use ipbroker_client::protocol::message::SubmissionSample;
use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Modifier, Stylize};
use ratatui::text::{Line, Span, Text};
use ratatui::widgets::{
    Block, Cell, Clear, HighlightSpacing, Padding, Paragraph, Row, Table as Widget, TableState,
    Wrap,
};

use super::page::Told;
use super::rows::{Table, rows};
use super::state::State;
use crate::output::{clock, plural};

const HELP: &str = "q quit  ? keys  Tab next  Enter task  a abort  r run  / find  s sort  f follow";
const PAGE_HELP: &str = "q quit  ? keys  Esc back  a abort  r run again";
const KEYS: &str = "\
q, Ctrl-C     quit; Ctrl-Z: back to the shell for a while
Tab           the next table
arrows, j, k  choose a row; also Page Up, Page Down, Home, End
Enter         the page of the task that the row is about; Esc: back
/             show the rows that have a text in them; Esc: all
s             sort by the next column (its heading has a *)
f             follow: the newest submission stays chosen
a             abort the submission, or the task of the engine or page
r             run the failures, or the task of the page, again";

pub(super) fn draw(frame: &mut Frame<'_>, state: &State) {
    let foot = match (&*state.said, &state.page) {
        ("", Some(_)) => PAGE_HELP.to_owned(),
        ("", None) if state.typing => format!("/{}_  Enter: keep  Esc: all", state.filter),
        ("", None) if !state.filter.is_empty() => format!("/{}  Esc: all", state.filter),
        ("", None) => HELP.to_owned(),
        (said, _) => said.to_owned(),
    };
    let rows = if state.said.is_empty() { 1 } else { 2 };
    let [all, bottom] =
        Layout::vertical([Constraint::Fill(1), Constraint::Length(rows)]).areas(frame.area());
    let foot = Paragraph::new(foot).wrap(Wrap::default());
    frame.render_widget(if rows > 1 { foot.reversed() } else { foot }, bottom);
    match &state.page {
        Some(page) => {
            let told = page.lock().unwrap_or_else(PoisonError::into_inner);
            draw_page(frame, all, state, &told);
        }
        None => draw_tables(frame, all, state),
    }
    if let Some((question, _)) = &state.question {
        dialog(
            frame,
            &format!("{question}\n\ny: yes, any other key: no"),
            7,
        );
    } else if state.help {
        dialog(frame, KEYS, 11);
    }
}

/// A text over what is there.
fn dialog(frame: &mut Frame<'_>, text: &str, height: u16) {
    let area = frame.area();
    let area = area.centered(Constraint::Length(72), Constraint::Length(height));
    frame.render_widget(Clear, area);
    let text = Paragraph::new(text).wrap(Wrap::default()).reversed();
    frame.render_widget(text.block(Block::new().padding(Padding::uniform(1))), area);
}

fn draw_tables(frame: &mut Frame<'_>, area: Rect, state: &State) {
    let mut top = vec![Line::from(title(state)).bold(), Line::from(counts(state))];
    let Some(sample) = &state.sample else {
        return frame.render_widget(Text::from(top), area);
    };
    let troubles = sample.troubles.iter().take(3);
    top.extend(troubles.map(|text| Line::from(format!("! {text}")).bold()));
    // A table has a heading and at least one row.
    let room = usize::from(area.height).saturating_sub(top.len());
    let failures = match sample.failures.len() {
        0 => 0,
        count => (count.min(5) + 1).min(room / 3),
    };
    let submissions = (sample.submissions.len() + 1).max(2);
    let submissions = submissions.min((room - failures).div_ceil(2));
    let lengths = [
        top.len(),
        submissions,
        room - failures - submissions,
        failures,
    ];
    let areas: [Rect; 4] = Layout::vertical(lengths.map(|rows| rows as u16)).areas(area);
    frame.render_widget(Text::from(top), areas[0]);
    for (table, area) in Table::ALL.into_iter().zip(&areas[1..]) {
        draw_table(frame, *area, state, table);
    }
}

fn draw_table(frame: &mut Frame<'_>, area: Rect, state: &State, table: Table) {
    let rows = rows(state, table);
    let mut shown = TableState::default().with_selected(state.place(table, &rows));
    let columns = table.columns().iter().enumerate();
    let heading = columns.map(|(column, (name, _))| {
        let sorted = state.sorted[table as usize] == Some(column);
        let follow = state.follow && table == Table::Submissions && column == 0;
        let marks = [(sorted, "*"), (follow, " f")].map(|(is, mark)| if is { mark } else { "" });
        Cell::from(format!("{name}{}", marks.concat())).underlined()
    });
    let widths = table.columns().iter().map(|(_, width)| match width {
        0 => Constraint::Fill(1),
        width => Constraint::Length(*width),
    });
    let here = state.table == table;
    let rows = rows
        .into_iter()
        .map(|row| Row::new(row.cells.into_iter().map(|(text, _)| text)));
    let widget = Widget::new(rows, widths)
        .header(Row::new(heading).bold())
        .highlight_spacing(HighlightSpacing::Always)
        .highlight_symbol(if here { "> " } else { "  " });
    let widget = if here {
        widget.row_highlight_style(Modifier::REVERSED)
    } else {
        widget
    };
    frame.render_stateful_widget(widget, area, &mut shown);
}

fn draw_page(frame: &mut Frame<'_>, area: Rect, state: &State, told: &Told) {
    let engines = state.sample.iter().flat_map(|sample| &sample.engines);
    let mut engines = engines.filter(|engine| engine.task.as_deref() == Some(&told.id));
    let engine = engines.next();
    let mut head = vec![Line::from(format!("Task {}", told.id)).bold()];
    let mut add = |name: &str, text: String| head.push(Line::from(format!("{name:<8}{text}")));
    let name = engine.and_then(|engine| engine.what.as_ref());
    if let Some(name) = name.or(told.name.as_ref()) {
        add("what", name.clone());
    }
    if let Some(engine) = engine {
        add("where", format!("engine {} on {}", engine.id, engine.host));
        if let (Some(since), Some(sample)) = (engine.since, &state.sample) {
            let time = short(sample.time - since);
            add("since", format!("{}, for {time}", clock(since, "%H:%M:%S")));
        }
    }
    add("state", told.why.state.clone());
    add("why", told.why.text.clone());
    let engines = &told.why.engines;
    for (engine, reason) in engines.iter().take(3) {
        add("", format!("engine {engine}: {reason}"));
    }
    if engines.len() > 3 {
        add("", format!("and {} more", engines.len() - 3));
    }
    let mut failures = state.sample.iter().flat_map(|sample| &sample.failures);
    if let Some(failure) = failures.find(|failure| failure.ids.contains(&told.id)) {
        add("said", failure.text.clone());
    }
    if !told.trouble.is_empty() {
        add("!", told.trouble.clone());
    }
    let [out, err] = &told.text;
    let err_share = Constraint::Fill(u16::from(!err.is_empty()));
    let areas = [Constraint::Length(9), Constraint::Fill(2), err_share];
    let areas: [Rect; 3] = Layout::vertical(areas).areas(area);
    frame.render_widget(Paragraph::new(head).wrap(Wrap { trim: false }), areas[0]);
    written(frame, areas[1], "standard output", out);
    if !err.is_empty() {
        written(frame, areas[2], "standard error", err);
    }
}

/// The last lines of it that there is room for.
fn written(frame: &mut Frame<'_>, area: Rect, name: &str, text: &str) {
    let name = if text.is_empty() {
        format!("{name}: nothing")
    } else {
        name.to_owned()
    };
    let rows = usize::from(area.height).saturating_sub(1);
    let mut lines: Vec<Line<'_>> = text
        .lines()
        .rev()
        .take(rows)
        .map(|line| {
            // What a line shows in the end, where it is written over.
            let line = line
                .trim_end_matches('\r')
                .rsplit('\r')
                .next()
                .unwrap_or_default();
            Line::from(line.replace('\t', "    "))
        })
        .collect();
    lines.push(Line::from(Span::from(name).bold().underlined()));
    lines.reverse();
    frame.render_widget(Text::from(lines), area);
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

/// How much of something is used.
pub(super) fn percent((used, all): (u64, u64)) -> f64 {
    100.0 * used as f64 / all.max(1) as f64
}

/// A count in at most five letters.
pub(super) fn few(count: u64) -> String {
    match count {
        0..100_000 => count.to_string(),
        100_000..10_000_000 => format!("{}k", count / 1000),
        _ => format!("{}M", count / 1_000_000),
    }
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

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use ipbroker_client::protocol::message::{EngineSample, FailureSample, Sample};
    use ratatui::Terminal;
    use ratatui::backend::TestBackend;
    use ratatui::crossterm::event::KeyCode;

    use super::*;

    fn text(state: &State, width: u16, height: u16) -> String {
        let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
        terminal.draw(|frame| draw(frame, state)).unwrap();
        terminal.backend().to_string()
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
        let page = Told {
            id: "a_1".into(),
            text: ["one\n\x1b[31mtwo\tthree\r\n".into(), "10%\r20%\r\n".into()],
            ..Told::default()
        };
        let all = text(&state, 80, 24);
        for part in [
            "[#####.....] 5/10",
            "100 engines, 100 busy",
            "! the disk is full",
            "failure 8",
            "q quit",
            "10s   sleep 1",
            "> [##",
        ] {
            assert!(all.contains(part), "no {part:?} in\n{all}");
        }
        for turn in 0..4 {
            for (width, height) in [(80, 24), (20, 4), (1, 1), (300, 100), (80, 0)] {
                assert!(!text(&state, width, height).contains('\x1b'));
            }
            match turn {
                0 => drop(state.key(KeyCode::Char('a').into())),
                1 => {
                    assert!(text(&state, 80, 24).contains("Abort 5 tasks"));
                    state.key(KeyCode::Char('n').into());
                    state.key(KeyCode::Char('?').into());
                }
                _ => {
                    state.key(KeyCode::Char('n').into());
                    state.page = Some(Arc::new(Mutex::new(Told { ..page.clone() })));
                }
            }
        }
        let all = text(&state, 80, 24);
        for part in [
            "Task a_1",
            "two    three",
            "standard error",
            "20%",
            "Esc back",
        ] {
            assert!(all.contains(part), "no {part:?} in\n{all}");
        }
        assert!(!all.contains("10%"));
        assert!(text(&State::default(), 80, 24).contains("waiting for the controller"));
    }

    #[test]
    fn counts_are_not_cut() {
        for (count, text) in [
            (99_999, "99999"),
            (1_000_000, "1000k"),
            (9_999_999, "9999k"),
            (12_345_678, "12M"),
        ] {
            assert_eq!(few(count), text);
        }
        let mut state = full();
        let mut sample = state.sample.take().unwrap();
        sample.submissions.push(SubmissionSample {
            total: 1_000_000,
            completed: 999_999,
            failed: 1,
            ..SubmissionSample::default()
        });
        state.heard(Ok(sample));
        let all = text(&state, 80, 24);
        assert!(all.contains("1000k/1000k"), "{all}");
    }

    #[test]
    fn help_fits() {
        assert!(HELP.len() <= 80);
        let mut state = full();
        for _ in 0..40 {
            state.key(KeyCode::Down.into());
        }
        let all = text(&state, 80, 24);
        assert_eq!(all.matches("> [##").count(), 1, "{all}");
        state.key(KeyCode::Char('?').into());
        let all = text(&state, 80, 24);
        assert!(KEYS.lines().all(|line| all.contains(line)), "{all}");
    }
}
