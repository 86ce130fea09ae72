//! What is shown and chosen, apart from how it is drawn.

use std::collections::{HashMap, VecDeque};

use ipbroker_client::protocol::message::{Sample, SubmissionSample};

use super::News;

/// Over how many seconds a rate is taken.
const RATE: f64 = 5.0;

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
}

/// A key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Key {
    Letter(char),
    Up,
    Down,
    Next,
    Before,
    Enter,
    Escape,
}

/// What is to be done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Act {
    Quit,
    /// All of this session.
    Abort(String),
    /// These once more.
    Resubmit(Vec<String>),
    /// Why this is where it is.
    Explain(String),
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
        self.sample = Some(sample);
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

    /// What the rows of a table are about, in the order in which they are shown.
    pub(super) fn rows(&self, table: Table) -> Vec<String> {
        let Some(sample) = &self.sample else {
            return Vec::new();
        };
        let submissions = sample.submissions.iter().rev();
        let failures = sample.failures.iter().rev();
        let engines = sample.engines.iter();
        match table {
            Table::Submissions => submissions.map(|row| row.id.clone()).collect(),
            Table::Engines => engines.map(|row| row.id.to_string()).collect(),
            Table::Failures => failures.map(|row| row.text.clone()).collect(),
        }
    }

    /// The place of the chosen row.
    pub(super) fn place(&self, table: Table) -> Option<usize> {
        let rows = self.rows(table);
        if rows.is_empty() {
            return None;
        }
        let chosen = self.chosen.get(&(table as usize));
        Some(
            chosen
                .and_then(|chosen| rows.iter().position(|row| row == chosen))
                .unwrap_or(0),
        )
    }

    fn choose(&mut self, step: isize) {
        let rows = self.rows(self.table);
        if let Some(place) = self.place(self.table) {
            let place = place.saturating_add_signed(step).min(rows.len() - 1);
            self.chosen.insert(self.table as usize, rows[place].clone());
        }
    }

    pub(super) fn say(&mut self, text: String) {
        self.said = text;
    }

    /// What a key asks for.
    pub(super) fn key(&mut self, key: Key) -> Option<Act> {
        if let Some((_, act)) = self.question.take() {
            return (key == Key::Letter('y')).then_some(act);
        }
        self.said.clear();
        match key {
            Key::Letter('q') => return Some(Act::Quit),
            Key::Next => self.turn(1),
            Key::Before => self.turn(2),
            Key::Up | Key::Letter('k') => self.choose(-1),
            Key::Down | Key::Letter('j') => self.choose(1),
            Key::Enter => return self.about().map(Act::Explain),
            Key::Letter('a') => self.ask_abort(),
            Key::Letter('r') => self.ask_resubmit(),
            Key::Letter(_) | Key::Escape => {}
        }
        None
    }

    fn turn(&mut self, steps: usize) {
        self.table = Table::ALL[(self.table as usize + steps) % Table::ALL.len()];
    }

    /// The task that the chosen row is about.
    fn about(&self) -> Option<String> {
        let sample = self.sample.as_ref()?;
        let place = self.place(self.table)?;
        match self.table {
            // A submission is known by its first task.
            Table::Submissions => self.rows(self.table).into_iter().nth(place),
            Table::Engines => sample.engines.get(place)?.task.clone(),
            Table::Failures => sample.failures.iter().rev().nth(place)?.ids.last().cloned(),
        }
    }

    fn ask_abort(&mut self) {
        let Some((sample, place)) = self.sample.as_ref().zip(self.place(Table::Submissions)) else {
            return;
        };
        let Some(row) = sample.submissions.iter().rev().nth(place) else {
            return;
        };
        let open = row.total.saturating_sub(row.done());
        if self.table != Table::Submissions || open == 0 {
            self.said = "choose a submission that has not ended (Tab, arrows), then a".into();
            return;
        }
        let question = format!(
            "Abort {open} tasks of this client ({}), running ones too?",
            row.what
        );
        self.question = Some((question, Act::Abort(row.session.clone())));
    }

    fn ask_resubmit(&mut self) {
        let chosen = self.sample.as_ref().zip(self.place(Table::Failures));
        let row = chosen.and_then(|(sample, place)| sample.failures.iter().rev().nth(place));
        match row.filter(|row| self.table == Table::Failures && !row.ids.is_empty()) {
            Some(row) => {
                let question =
                    format!("Run {} of these tasks again ({})?", row.ids.len(), row.text);
                self.question = Some((question, Act::Resubmit(row.ids.clone())));
            }
            None => self.said = "choose a failure (Tab, arrows), then r".into(),
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

    #[test]
    fn the_chosen_row_stays_though_others_come() {
        let mut state = State::default();
        state.heard(Ok(sample(1, &[("a", 5, 0), ("b", 5, 0)])));
        assert_eq!(state.place(Table::Submissions), Some(0));
        state.key(Key::Down);
        state.key(Key::Down);
        assert_eq!(state.place(Table::Submissions), Some(1));
        state.heard(Ok(sample(2, &[("a", 5, 0), ("b", 5, 0), ("c", 5, 0)])));
        assert_eq!(state.place(Table::Submissions), Some(2));
        state.heard(Ok(sample(3, &[("c", 5, 0)])));
        assert_eq!(state.place(Table::Submissions), Some(0));
    }

    #[test]
    fn nothing_is_done_without_a_yes() {
        let mut state = State::default();
        assert_eq!(state.key(Key::Letter('a')), None);
        state.heard(Ok(sample(1, &[("a", 5, 1)])));
        assert_eq!(state.key(Key::Letter('a')), None);
        assert!(state.question.as_ref().unwrap().0.contains("4 tasks"));
        assert_eq!(state.key(Key::Letter('n')), None);
        assert!(state.question.is_none());
        state.key(Key::Letter('a'));
        assert_eq!(
            state.key(Key::Letter('y')),
            Some(Act::Abort("session of a".into()))
        );
        assert_eq!(state.key(Key::Letter('r')), None);
        assert!(state.said.contains("choose a failure"));
        let mut failed = sample(2, &[("a", 5, 1)]);
        failed.failures.push(FailureSample {
            text: "no".into(),
            ids: vec!["a:3".into()],
            ..FailureSample::default()
        });
        state.heard(Ok(failed));
        state.key(Key::Before);
        state.key(Key::Letter('r'));
        assert_eq!(
            state.key(Key::Letter('y')),
            Some(Act::Resubmit(vec!["a:3".into()]))
        );
        assert_eq!(state.key(Key::Letter('q')), Some(Act::Quit));
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
}
