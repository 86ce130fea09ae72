//! What is shown and chosen, apart from how it is drawn.

use std::collections::{HashMap, VecDeque};

use ipbroker_client::protocol::message::{Sample, SubmissionSample};
use ratatui::crossterm::event::{KeyCode, KeyEvent, KeyModifiers};

use super::News;
use super::page::{Page, Target};
use super::rows::{Row, Table, rows};
use crate::output::{cut, plural};

/// Over how many seconds a rate is taken.
const RATE: f64 = 5.0;

/// What is to be done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Act {
    Quit,
    /// Give the terminal to the shell for a while.
    Stop,
    /// All of this session.
    AbortSession(String),
    /// This task.
    Abort(String),
    /// These once more.
    Resubmit(Vec<String>),
    /// A task's page.
    Open(Target),
}

#[derive(Debug, Default)]
pub(super) struct State {
    /// The newest.
    pub(super) sample: Option<Box<Sample>>,
    /// Why there is no newer one.
    pub(super) lost: Option<String>,
    pub(super) table: Table,
    /// The row chosen in each table, by what it is about: rows come and go.
    chosen: HashMap<usize, String>,
    /// The column by which each table is sorted.
    pub(super) sorted: [Option<usize>; 3],
    /// What rows must have in them, and whether it is being typed.
    pub(super) filter: String,
    pub(super) typing: bool,
    /// The newest submission is always the chosen one.
    pub(super) follow: bool,
    /// All keys are shown.
    pub(super) help: bool,
    /// What is shown instead of the tables.
    pub(super) page: Option<Page>,
    /// To be answered with y before it is done.
    pub(super) question: Option<(String, Act)>,
    /// What the last act came to.
    pub(super) said: String,
    /// Tasks that had ended, of all and of each submission.
    ended: VecDeque<(f64, u64, HashMap<String, u64>)>,
}

impl State {
    pub(super) fn heard(&mut self, news: News) {
        let sample = match news {
            Ok(sample) => sample,
            Err(why) => {
                self.lost = Some(why);
                return;
            }
        };
        let all = sample.tasks.completed + sample.tasks.failed + sample.tasks.aborted;
        let each = sample
            .submissions
            .iter()
            .map(|row| (row.id.clone(), row.done()));
        // Another controller counts anew.
        if self.ended.back().is_some_and(|last| last.1 > all) {
            self.ended.clear();
        }
        self.ended.push_back((sample.time, all, each.collect()));
        while self
            .ended
            .front()
            .is_some_and(|first| first.0 < sample.time - RATE)
        {
            self.ended.pop_front();
        }
        self.lost = None;
        self.keep_name(&sample);
        self.sample = Some(sample);
        self.choose_newest();
    }

    /// Without a history, the command of the page's task is known only while the task runs.
    fn keep_name(&self, sample: &Sample) {
        let Some(mut told) = self.page.as_ref().and_then(|page| page.lock().ok()) else {
            return;
        };
        let mut engines = sample.engines.iter();
        if let Some(engine) = engines.find(|engine| engine.task.as_ref() == Some(&told.id))
            && told.name.is_none()
        {
            told.name.clone_from(&engine.what);
        }
    }

    /// Tasks that end in a second: of a submission, or of all.
    pub(super) fn rate(&self, of: Option<&SubmissionSample>) -> f64 {
        let value = |at: &(f64, u64, HashMap<String, u64>)| match of {
            None => Some(at.1),
            Some(row) => at.2.get(&row.id).copied(),
        };
        let (Some(first), Some(last)) = (
            self.ended.iter().find(|at| value(at).is_some()),
            self.ended.back(),
        ) else {
            return 0.0;
        };
        let (time, Some(before), Some(now)) = (last.0 - first.0, value(first), value(last)) else {
            return 0.0;
        };
        if time > 0.0 {
            now.saturating_sub(before) as f64 / time
        } else {
            0.0
        }
    }

    /// The place of the chosen row.
    pub(super) fn place(&self, table: Table, rows: &[Row]) -> Option<usize> {
        let chosen = self.chosen.get(&(table as usize));
        let place = chosen.and_then(|chosen| rows.iter().position(|row| row.key == *chosen));
        (!rows.is_empty()).then_some(place.unwrap_or(0))
    }

    /// The chosen row's place in the sample, if this is the table that keys are for.
    fn chosen(&self, table: Table) -> Option<(&Sample, usize)> {
        let rows = rows(self, table);
        let place = self.place(table, &rows).filter(|_| self.table == table)?;
        Some((self.sample.as_deref()?, rows[place].at))
    }

    fn choose(&mut self, step: isize) {
        let mut rows = rows(self, self.table);
        if let Some(place) = self.place(self.table, &rows) {
            let place = place.saturating_add_signed(step).min(rows.len() - 1);
            let chosen = rows.swap_remove(place).key;
            self.chosen.insert(self.table as usize, chosen);
            self.follow &= self.table != Table::Submissions;
        }
    }

    fn choose_newest(&mut self) {
        let newest = self.sample.as_ref().and_then(|all| all.submissions.last());
        if let Some(newest) = newest.filter(|_| self.follow) {
            let table = Table::Submissions as usize;
            self.chosen.insert(table, newest.id.clone());
        }
    }

    pub(super) fn say(&mut self, text: impl Into<String>) {
        self.said = text.into();
    }

    /// What a key asks for.
    pub(super) fn key(&mut self, key: KeyEvent) -> Option<Act> {
        let key = match (key.code, key.modifiers.contains(KeyModifiers::CONTROL)) {
            (KeyCode::Char('c' | 'd'), true) => return Some(Act::Quit),
            (KeyCode::Char('z'), true) => return Some(Act::Stop),
            (_, true) => return None,
            (code, false) => code,
        };
        if let Some((_, act)) = self.question.take() {
            return (key == KeyCode::Char('y')).then_some(act);
        }
        self.said.clear();
        if self.typing {
            self.type_filter(key);
            return None;
        }
        if std::mem::take(&mut self.help) && key != KeyCode::Char('q') {
            return None;
        }
        let tables = self.page.is_none();
        match key {
            KeyCode::Char('q') => return Some(Act::Quit),
            KeyCode::Char('?') => self.help = true,
            KeyCode::Char('a') => self.ask_abort(),
            KeyCode::Char('r') => self.ask_resubmit(),
            KeyCode::Esc if tables => self.filter.clear(),
            KeyCode::Esc => self.page = None,
            KeyCode::Tab if tables => self.turn(1),
            KeyCode::BackTab if tables => self.turn(2),
            KeyCode::Up | KeyCode::Char('k') if tables => self.choose(-1),
            KeyCode::Down | KeyCode::Char('j') if tables => self.choose(1),
            KeyCode::PageUp if tables => self.choose(-10),
            KeyCode::PageDown if tables => self.choose(10),
            KeyCode::Home if tables => self.choose(isize::MIN),
            KeyCode::End if tables => self.choose(isize::MAX),
            KeyCode::Enter if tables => return self.about(),
            KeyCode::Char('/') if tables => self.typing = true,
            KeyCode::Char('s') if tables => self.sort(),
            KeyCode::Char('f') if tables => {
                self.follow = !self.follow;
                self.choose_newest();
            }
            _ => {}
        }
        None
    }

    fn type_filter(&mut self, key: KeyCode) {
        match key {
            KeyCode::Char(letter) => self.filter.push(letter),
            KeyCode::Backspace => drop(self.filter.pop()),
            KeyCode::Enter => self.typing = false,
            KeyCode::Esc => {
                self.typing = false;
                self.filter.clear();
            }
            _ => {}
        }
    }

    fn turn(&mut self, steps: usize) {
        self.table = Table::ALL[(self.table as usize + steps) % Table::ALL.len()];
    }

    /// By the next column, and after the last as they come.
    fn sort(&mut self) {
        let by = &mut self.sorted[self.table as usize];
        let next = by.map_or(0, |by| by + 1);
        *by = (next < self.table.columns().len()).then_some(next);
    }

    /// The page of the task that the chosen row is about.
    fn about(&mut self) -> Option<Act> {
        let target = match (self.table, self.chosen(self.table)?) {
            (Table::Submissions, (sample, at)) => {
                let row = &sample.submissions[at];
                let own = format!("{}_", row.session);
                let mut tasks = sample.engines.iter().filter_map(|row| row.task.as_ref());
                Some(Target::FirstOf {
                    id: row.id.clone(),
                    total: row.total,
                    running: tasks.find(|task| task.starts_with(&own)).cloned(),
                })
            }
            (Table::Engines, (sample, at)) => sample.engines[at].task.clone().map(Target::Task),
            (Table::Failures, (sample, at)) => {
                let last = sample.failures[at].ids.last();
                last.cloned().map(Target::Task)
            }
        };
        if target.is_none() {
            self.say("no task is known there");
        }
        target.map(Act::Open)
    }

    /// The task of the page: its id, and its state.
    fn on_page(&self) -> Option<(String, String)> {
        let told = self.page.as_ref()?.lock().ok()?;
        Some((told.id.clone(), told.why.state.clone()))
    }

    fn ask_abort(&mut self) {
        if self.page.is_some() {
            match self.on_page() {
                Some((id, state)) if matches!(&*state, "waiting" | "running") => {
                    self.question = Some((format!("Abort {id}?"), Act::Abort(id)));
                }
                _ => self.say("this task does not wait or run"),
            }
            return;
        }
        if let Some((sample, at)) = self.chosen(Table::Engines)
            && let Some(id) = sample.engines[at].task.clone()
        {
            let what = sample.engines[at].what.as_deref().unwrap_or_default();
            let question = format!("Abort {id} ({})?", cut(what, 60));
            self.question = Some((question, Act::Abort(id)));
            return;
        }
        let row = self.chosen(Table::Submissions);
        let row = row.map(|(sample, at)| &sample.submissions[at]);
        match row.map(|row| (row, row.total.saturating_sub(row.done()))) {
            Some((row, open @ 1..)) => {
                let question = format!(
                    "Abort {} of this client ({}), running ones too?",
                    plural(open, "task"),
                    cut(&row.what, 60)
                );
                self.question = Some((question, Act::AbortSession(row.session.clone())));
            }
            _ => self.say("choose what has not ended (Tab, arrows), then a"),
        }
    }

    fn ask_resubmit(&mut self) {
        if self.page.is_some() {
            match self.on_page() {
                Some((id, state)) if state == "done" => {
                    self.question = Some((format!("Run {id} again?"), Act::Resubmit(vec![id])));
                }
                _ => self.say("this task has not ended"),
            }
            return;
        }
        let row = self.chosen(Table::Failures);
        let row = row.map(|(sample, at)| &sample.failures[at]);
        match row.filter(|row| !row.ids.is_empty()) {
            Some(row) => {
                let (count, text) = (row.ids.len(), cut(&row.text, 60));
                let question = format!("Run {count} of these tasks again ({text})?");
                self.question = Some((question, Act::Resubmit(row.ids.clone())));
            }
            None => self.say("choose a failure (Tab, arrows), then r"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ipbroker_client::protocol::message::FailureSample;

    fn sample(seq: u64, rows: &[(&str, u64, u64)]) -> Box<Sample> {
        let submissions = rows.iter().map(|(id, total, completed)| SubmissionSample {
            id: (*id).to_owned(),
            session: format!("session of {id}"),
            total: *total,
            completed: *completed,
            ..SubmissionSample::default()
        });
        let mut sample = Sample {
            seq,
            time: seq as f64,
            submissions: submissions.collect(),
            ..Sample::default()
        };
        sample.tasks.completed = rows.iter().map(|row| row.2).sum();
        Box::new(sample)
    }

    fn press(code: KeyCode) -> KeyEvent {
        KeyEvent::new(code, KeyModifiers::NONE)
    }

    fn place(state: &State) -> Option<usize> {
        state.place(Table::Submissions, &rows(state, Table::Submissions))
    }

    #[test]
    fn the_chosen_row_stays_though_others_come() {
        let mut state = State::default();
        state.heard(Ok(sample(1, &[("a", 5, 0), ("b", 5, 0)])));
        assert_eq!(place(&state), Some(0));
        state.key(press(KeyCode::Down));
        state.key(press(KeyCode::Down));
        assert_eq!(place(&state), Some(1));
        state.heard(Ok(sample(2, &[("a", 5, 0), ("b", 5, 0), ("c", 5, 0)])));
        assert_eq!(place(&state), Some(2));
        state.heard(Ok(sample(3, &[("c", 5, 0)])));
        assert_eq!(place(&state), Some(0));
    }

    #[test]
    fn nothing_is_done_without_a_yes() {
        let mut state = State::default();
        assert_eq!(state.key(press(KeyCode::Char('a'))), None);
        state.heard(Ok(sample(1, &[("a", 5, 1)])));
        assert_eq!(state.key(press(KeyCode::Char('a'))), None);
        assert!(state.question.as_ref().unwrap().0.contains("4 tasks"));
        assert_eq!(state.key(press(KeyCode::Char('n'))), None);
        assert!(state.question.is_none());
        state.key(press(KeyCode::Char('a')));
        assert_eq!(
            state.key(press(KeyCode::Char('y'))),
            Some(Act::AbortSession("session of a".into()))
        );
        assert_eq!(state.key(press(KeyCode::Char('r'))), None);
        assert!(state.said.contains("choose a failure"));
        let mut failed = sample(2, &[("a", 5, 1)]);
        failed.failures.push(FailureSample {
            text: "no".into(),
            ids: vec!["a:3".into()],
            ..FailureSample::default()
        });
        state.heard(Ok(failed));
        state.key(press(KeyCode::BackTab));
        state.key(press(KeyCode::Char('r')));
        assert_eq!(
            state.key(press(KeyCode::Char('y'))),
            Some(Act::Resubmit(vec!["a:3".into()]))
        );
        assert_eq!(state.key(press(KeyCode::Char('q'))), Some(Act::Quit));
    }

    #[test]
    fn rates_are_of_the_last_seconds() {
        let mut state = State::default();
        for seq in 1..=10 {
            state.heard(Ok(sample(seq, &[("a", 100, seq * 3)])));
        }
        assert!((state.rate(None) - 3.0).abs() < 1e-9);
        let row = state.sample.clone().unwrap().submissions[0].clone();
        assert!((state.rate(Some(&row)) - 3.0).abs() < 1e-9);
        // Another controller.
        state.heard(Ok(sample(11, &[("z", 100, 1)])));
        assert_eq!(state.rate(None), 0.0);
    }

    #[test]
    fn rows_are_filtered_sorted_and_followed() {
        let mut state = State::default();
        let keys = |state: &mut State, keys: &str| {
            for key in keys.chars() {
                state.key(press(KeyCode::Char(key)));
            }
        };
        let shown = |state: &State| -> String {
            let rows = rows(state, Table::Submissions);
            rows.iter().map(|row| &*row.key).collect()
        };
        state.heard(Ok(sample(1, &[("a", 9, 3), ("b", 9, 1), ("c", 9, 2)])));
        assert_eq!(shown(&state), "cba");
        keys(&mut state, "s");
        assert_eq!(shown(&state), "acb");
        keys(&mut state, "/2/9");
        assert_eq!(shown(&state), "c");
        state.key(press(KeyCode::Backspace));
        state.key(press(KeyCode::Enter));
        assert_eq!((shown(&state), &*state.filter), ("c".into(), "2/"));
        state.key(press(KeyCode::Esc));
        keys(&mut state, "s");
        assert_eq!(shown(&state), "acb");
        keys(&mut state, "ssss");
        assert_eq!(shown(&state), "cba");
        keys(&mut state, "jf");
        assert_eq!(place(&state), Some(0));
        state.heard(Ok(sample(
            2,
            &[("a", 9, 3), ("b", 9, 1), ("c", 9, 2), ("d", 9, 0)],
        )));
        assert_eq!(place(&state), Some(0));
        keys(&mut state, "j");
        assert!(!state.follow);
    }
}
