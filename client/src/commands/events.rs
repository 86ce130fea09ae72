//! `ipclient events`: what happens in the cluster, as it happens.

use std::collections::HashMap;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::Args;
use ipbroker_client::protocol::message::Sample;
use ipbroker_client::{Client, Notice};
use jiff::Timestamp;
use jiff::tz::TimeZone;

use super::Outcome;
use crate::cli::ClusterArgs;
use crate::failure::Failure;
use crate::output::{self, plural};

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
            let clock = clock(sample.time);
            for line in news.of(&sample) {
                text += &format!("{clock} {line}\n");
            }
        }
        if !output::print(&text)? {
            break;
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// The time of the day here.
pub(super) fn clock(time: f64) -> String {
    let time = Timestamp::from_nanosecond((time * 1e9) as i128);
    let time = time.unwrap_or_else(|_| Timestamp::now());
    let here = time.to_zoned(TimeZone::system());
    here.strftime("%H:%M:%S").to_string()
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
    fn of(&mut self, sample: &Sample) -> Vec<String> {
        let mut lines = Vec::new();
        if self.incarnation != sample.incarnation {
            if !self.incarnation.is_empty() {
                lines.push("another controller answers".to_owned());
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
                lines.push(format!("engine {} on {} is there", engine.id, engine.host));
            }
        }
        let mut gone: Vec<_> = self.engines.iter().collect();
        gone.sort();
        for (id, host) in gone {
            if !engines.contains_key(id) {
                lines.push(format!("engine {id} on {host} is gone"));
            }
        }
        self.engines = engines;
        let mut submissions = HashMap::new();
        for row in &sample.submissions {
            let (done, over) = (row.done(), row.ended.is_some());
            let (before, told, was_over) = match self.submissions.get(&row.id) {
                Some(known) => *known,
                None => {
                    lines.push(format!(
                        "{} begins: {}, {}",
                        row.id,
                        plural(row.total, "task"),
                        row.what
                    ));
                    (0, sample.time, false)
                }
            };
            let due = sample.time >= told + 1.0 && done > before;
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
                lines.push(line);
                submissions.insert(row.id.clone(), (done, sample.time, over));
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
                lines.push(format!("{new} failed: {} (the last: {id})", failure.text));
            }
        }
        for trouble in &sample.troubles {
            if !self.troubles.contains(trouble) {
                lines.push(format!("trouble: {trouble}"));
            }
        }
        self.troubles.clone_from(&sample.troubles);
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
                ..SubmissionSample::default()
            }],
            ..Sample::default()
        };
        let first = news.of(&sample);
        assert_eq!(first, ["engine 3 on h is there", "a begins: 2 tasks, true"]);
        assert!(news.of(&sample).is_empty());
        sample.time = 12.0;
        sample.submissions[0].completed = 1;
        assert_eq!(news.of(&sample), ["a 1 of 2 ended"]);
        sample.submissions[0].failed = 1;
        sample.submissions[0].ended = Some(11.5);
        sample.engines.clear();
        let last = news.of(&sample);
        assert_eq!(
            last,
            [
                "engine 3 on h is gone",
                "a 2 of 2 ended, 1 failed, after 11.5 s"
            ]
        );
        assert!(news.of(&sample).is_empty());
    }
}
