//! `ipclient events`: what happens in the cluster, as it happens.

use std::collections::HashMap;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::Args;
use ipbroker_client::protocol::message::Sample;
use ipbroker_client::{Client, Notice};

use super::Outcome;
use crate::cli::ClusterArgs;
use crate::failure::Failure;
use crate::output::{self, clock, plural};

/// How long a controller that does not answer is waited for, and the pause before it is asked again.
const PATIENCE: Duration = Duration::from_secs(60);
const PAUSE: Duration = Duration::from_secs(1);

/// Print what happens in the cluster, as it happens
#[derive(Debug, Args)]
#[command(after_help = "\
One line for each thing that has changed: engines that come and go, submissions that begin, go on (at most once a second) \
and end, failures by what they said, troubles of the controller. With --json one line for each sample, at most four a second.

Example:
  ipclient events
  ipclient events --json | jq -c .tasks")]
pub(crate) struct EventsArgs {
    /// Print samples as JSON, one a line
    #[arg(long)]
    json: bool,
    /// End after N samples
    #[arg(long, value_name = "N")]
    samples: Option<u64>,
}

pub(crate) fn main(args: EventsArgs, cluster: &ClusterArgs) -> Outcome {
    let client = cluster.connect()?;
    let mut news = News::default();
    let mut samples = Samples::new(&client);
    for _ in 0..args.samples.unwrap_or(u64::MAX) {
        let sample = samples.next()?;
        let mut text = String::new();
        if args.json {
            text = serde_json::to_string(&sample).map_err(std::io::Error::from)? + "\n";
        } else {
            for (time, line) in news.of(&sample) {
                text += &format!("{} {line}\n", moment(time, sample.time));
            }
        }
        if !output::print(&text)? {
            break;
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// The time of the day here, with the date if that is not today's.
fn moment(time: f64, now: f64) -> String {
    let today = clock(time, "%F") == clock(now, "%F");
    clock(time, if today { "%H:%M:%S" } else { "%F %H:%M:%S" })
}

/// One sample after the other, also where a controller is started again.
pub(super) struct Samples<'a> {
    client: &'a Client,
    after: u64,
    silent: Option<Instant>,
}

impl<'a> Samples<'a> {
    pub(super) fn new(client: &'a Client) -> Self {
        Self {
            client,
            after: 0,
            silent: None,
        }
    }

    pub(super) fn next(&mut self) -> Result<Sample, Failure> {
        loop {
            let error = match self.client.events(self.after) {
                Ok(sample) => {
                    self.after = sample.seq;
                    self.silent = None;
                    return Ok(sample);
                }
                Err(error) => error,
            };
            let mut notices = self.client.take_notices().into_iter();
            let over = notices.any(|notice| matches!(notice, Notice::ShutDown));
            let since = self.silent.get_or_insert_with(|| {
                if !over {
                    eprintln!("ipclient: {error}: waiting for the controller");
                }
                Instant::now()
            });
            if over || since.elapsed() > PATIENCE {
                return Err(error.into());
            }
            std::thread::sleep(PAUSE);
        }
    }
}

/// What was told already.
#[derive(Default)]
struct News {
    incarnation: String,
    engines: HashMap<u32, String>,
    /// Tasks of a submission that had ended when it was last told of, and when that was.
    submissions: HashMap<String, (u64, f64, bool)>,
    failures: HashMap<String, u64>,
    troubles: Vec<String>,
}

impl News {
    /// What is new in this sample, each with the time at which it happened, as far as that is known.
    fn of(&mut self, sample: &Sample) -> Vec<(f64, String)> {
        let (now, mut lines) = (sample.time, Vec::new());
        if self.incarnation != sample.incarnation {
            if !self.incarnation.is_empty() {
                lines.push((now, "another controller answers".to_owned()));
            }
            *self = Self {
                incarnation: sample.incarnation.clone(),
                ..Self::default()
            };
        }
        let engines: HashMap<u32, String> = sample
            .engines
            .iter()
            .map(|engine| (engine.id, engine.host.clone()))
            .collect();
        for engine in &sample.engines {
            if !self.engines.contains_key(&engine.id) {
                let line = format!("engine {} on {} is there", engine.id, engine.host);
                lines.push((now, line));
            }
        }
        let mut gone: Vec<_> = self.engines.iter().collect();
        gone.sort();
        for (id, host) in gone {
            if !engines.contains_key(id) {
                lines.push((now, format!("engine {id} on {host} is gone")));
            }
        }
        self.engines = engines;
        let mut submissions = HashMap::new();
        for row in &sample.submissions {
            let (done, over) = (row.done(), row.ended.is_some());
            let (before, told, was_over) = match self.submissions.get(&row.id) {
                Some(known) => *known,
                None => {
                    let tasks = plural(row.total, "task");
                    let line = format!("{} begins: {tasks}, {}", row.id, row.what);
                    lines.push((row.begun, line));
                    (0, now, false)
                }
            };
            let due = now >= told + 1.0 && done > before;
            if (over && !was_over) || (due && !over) {
                let mut line = format!("{} {done} of {} ended", row.id, row.total);
                for (count, word) in [(row.failed, "failed"), (row.aborted, "aborted")] {
                    if count > 0 {
                        line += &format!(", {count} {word}");
                    }
                }
                if let Some(ended) = row.ended {
                    line += &format!(", after {:.1} s", ended - row.begun);
                }
                lines.push((row.ended.unwrap_or(now), line));
                submissions.insert(row.id.clone(), (done, now, over));
            } else {
                submissions.insert(row.id.clone(), (before, told, was_over && over));
            }
        }
        self.submissions = submissions;
        for failure in &sample.failures {
            let known = self.failures.insert(failure.text.clone(), failure.count);
            let new = failure.count.saturating_sub(known.unwrap_or(0));
            if new > 0 {
                let id = failure.ids.last().map_or("?", String::as_str);
                let line = format!("{new} failed: {} (the last: {id})", failure.text);
                lines.push((failure.last, line));
            }
        }
        for trouble in &sample.troubles {
            if !self.troubles.contains(trouble) {
                lines.push((now, format!("trouble: {trouble}")));
            }
        }
        self.troubles.clone_from(&sample.troubles);
        lines.sort_by(|a, b| a.0.total_cmp(&b.0));
        lines
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ipbroker_client::protocol::message::{EngineSample, SubmissionSample};

    #[test]
    fn only_what_is_new_is_told() {
        let mut news = News::default();
        let line = |time: f64, line: &str| (time, line.to_owned());
        let mut sample = Sample {
            time: 10.0,
            incarnation: "i".into(),
            engines: vec![EngineSample {
                id: 3,
                host: "h".into(),
                ..EngineSample::default()
            }],
            submissions: vec![SubmissionSample {
                id: "a".into(),
                what: "true".into(),
                total: 2,
                begun: 4.0,
                ..SubmissionSample::default()
            }],
            ..Sample::default()
        };
        let first = news.of(&sample);
        assert_eq!(
            first,
            [
                line(4.0, "a begins: 2 tasks, true"),
                line(10.0, "engine 3 on h is there")
            ]
        );
        assert!(news.of(&sample).is_empty());
        sample.time = 12.0;
        sample.submissions[0].completed = 1;
        assert_eq!(news.of(&sample), [line(12.0, "a 1 of 2 ended")]);
        sample.submissions[0].failed = 1;
        sample.submissions[0].ended = Some(11.5);
        sample.engines.clear();
        let last = news.of(&sample);
        assert_eq!(
            last,
            [
                line(11.5, "a 2 of 2 ended, 1 failed, after 7.5 s"),
                line(12.0, "engine 3 on h is gone")
            ]
        );
        assert!(news.of(&sample).is_empty());
    }
}
