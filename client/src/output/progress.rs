//! How far a run is: a bar on a terminal, log lines elsewhere.

use std::fmt::Write;
use std::io::{IsTerminal, Write as _};
use std::time::{Duration, Instant};

use indicatif::{HumanCount, ProgressBar, ProgressDrawTarget, ProgressState, ProgressStyle};
use ipbroker_client::job::{JobResult, JobStatus, log_time, timedelta};
use jiff::Timestamp;
use jiff::tz::TimeZone;

use super::{plural, shown};

/// Where progress goes.
pub(crate) enum Progress {
    /// A bar that is redrawn.
    Bar(ProgressBar),
    /// A line for each job, as Bakapara writes them.
    Log { zone: TimeZone, lines: String },
    /// A line a second: how far it is.
    Position {
        total: u64,
        began: Instant,
        said: Instant,
    },
    /// Nothing but messages.
    Quiet,
}

/// What is said where there is no terminal.
pub(crate) enum Detail {
    /// A line for each job.
    Jobs,
    /// How far it is.
    Position,
}

/// Jobs a second: as many digits as mean something.
fn rate(jobs: f64) -> String {
    if jobs < 10.0 {
        format!("{jobs:.1}/s")
    } else {
        format!("{}/s", HumanCount(jobs.round() as u64))
    }
}

fn log(zone: &TimeZone, lines: &mut String, text: &str) {
    *lines += &format!("{} {text}\n", log_time(Timestamp::now(), zone));
}

impl Progress {
    /// A bar where stderr is a terminal, else log lines, or neither.
    pub(crate) fn new(detail: Option<Detail>, zone: &TimeZone) -> Self {
        if std::io::stderr().is_terminal() {
            let bar =
                ProgressBar::with_draw_target(Some(0), ProgressDrawTarget::stderr_with_hz(10));
            let style = "{bar:30.green/dim} {human_pos}/{human_len} {rate}  ETA {eta}  {msg}";
            if let Ok(style) = ProgressStyle::with_template(style) {
                bar.set_style(style.with_key(
                    "rate",
                    |state: &ProgressState, out: &mut dyn Write| {
                        // Nobody can be told that the terminal is gone.
                        let _ = out.write_str(&rate(state.per_sec()));
                    },
                ));
            }
            bar.enable_steady_tick(Duration::from_millis(200));
            Self::Bar(bar)
        } else {
            let now = Instant::now();
            match detail {
                Some(Detail::Jobs) => Self::Log {
                    zone: zone.clone(),
                    lines: String::new(),
                },
                Some(Detail::Position) => Self::Position {
                    total: 0,
                    began: now,
                    said: now,
                },
                None => Self::Quiet,
            }
        }
    }

    /// How many jobs there are, as far as is known.
    pub(crate) fn total(&mut self, of: u64) {
        match self {
            Self::Bar(bar) => bar.set_length(of),
            Self::Position { total, .. } => *total = of,
            _ => {}
        }
    }

    /// The first line.
    pub(crate) fn started(&mut self, total: u64, engines: usize) {
        if let Self::Log { zone, lines } = self {
            let (jobs, engines) = (plural(total, "job"), plural(engines as u64, "engine"));
            log(zone, lines, &format!("total {jobs} on {engines}"));
        }
    }

    /// A job ended.
    pub(crate) fn finished(&mut self, (done, total): (u64, u64), result: &JobResult, cmd: &str) {
        let Self::Log { zone, lines } = self else {
            return;
        };
        let at = log_time(result.received.unwrap_or_else(Timestamp::now), zone);
        let host = result.host.as_deref().unwrap_or("?");
        let cmd = shown(cmd);
        let elapsed = result.elapsed().map_or_else(|| "?".to_owned(), timedelta);
        *lines += &match (result.status, result.code) {
            (JobStatus::Ok, _) if result.up_to_date => {
                format!("{at} [{done}/{total}] up to date on {host}: {cmd}\n")
            }
            (JobStatus::Ok, Some(code)) => {
                format!("{at} [{done}/{total}] returned {code} in {elapsed} sec on {host}: {cmd}\n")
            }
            (status, _) => {
                let why = result.error.as_deref().unwrap_or("no reason given");
                let why = why.replace('\n', " ");
                let why = shown(&why);
                let word = if status == JobStatus::Aborted {
                    "aborted"
                } else {
                    "failed"
                };
                format!("{at} [{done}/{total}] {word} ({why}): {cmd}\n")
            }
        };
    }

    /// Where it stands.
    pub(crate) fn position(&mut self, done: u64, failed: u64, engines: usize) {
        let failed = if failed > 0 {
            format!("{failed} failed, ")
        } else {
            String::new()
        };
        match self {
            Self::Bar(bar) => {
                bar.set_position(done);
                bar.set_message(format!("{failed}{}", plural(engines as u64, "engine")));
            }
            Self::Position { total, began, said }
                if said.elapsed() >= Duration::from_secs(1) || done == *total && done > 0 =>
            {
                *said = Instant::now();
                let left = total.saturating_sub(done) as f64;
                let eta = match done {
                    0 => "?".to_owned(),
                    _ => format!("{:.0}s", began.elapsed().as_secs_f64() / done as f64 * left),
                };
                eprintln!("ipclient: {done} of {total} jobs, {failed}ETA {eta}");
            }
            _ => {}
        }
    }

    /// A message to the user.
    pub(crate) fn say(&mut self, text: &str) {
        match self {
            Self::Bar(bar) => bar.suspend(|| eprintln!("ipclient: {text}")),
            Self::Log { zone, lines } => log(zone, lines, text),
            Self::Position { .. } | Self::Quiet => eprintln!("ipclient: {text}"),
        }
        self.flush();
    }

    /// Writes what is held back.
    pub(crate) fn flush(&mut self) {
        if let Self::Log { lines, .. } = self
            && !lines.is_empty()
        {
            // Nobody can be told that stderr is closed.
            let _ = std::io::stderr().write_all(lines.as_bytes());
            lines.clear();
        }
    }

    /// Runs `write` while the bar is out of the way, where both share a terminal.
    pub(crate) fn aside<T>(&self, shared: bool, write: impl FnOnce() -> T) -> T {
        match self {
            Self::Bar(bar) if shared => bar.suspend(write),
            _ => write(),
        }
    }

    /// The last line.
    pub(crate) fn end(&mut self, word: &str) {
        match self {
            Self::Bar(bar) => bar.abandon(),
            Self::Log { zone, lines } => log(zone, lines, word),
            Self::Position { .. } | Self::Quiet => {}
        }
        self.flush();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_are_for_people() {
        assert_eq!(rate(72.9402), "73/s");
        assert_eq!(rate(0.25), "0.2/s");
        assert_eq!(rate(12_345.6), "12,346/s");
    }

    #[test]
    fn log_lines_are_bakaparas() {
        let mut progress = Progress::Log {
            zone: TimeZone::UTC,
            lines: String::new(),
        };
        let at = |text: &str| Some(text.parse().unwrap());
        let result = JobResult {
            code: Some(0),
            started: at("2014-12-21T10:39:49.280556Z"),
            completed: at("2014-12-21T10:39:59.288Z"),
            received: at("2014-12-21T10:39:59.288Z"),
            host: Some("mezcal06.cl.ecei.tohoku.ac.jp".into()),
            ..JobResult::default()
        };
        progress.finished((1, 100), &result, "sleep 10");
        let lost = JobResult {
            received: result.received,
            ..JobResult::refused("EngineError: engine 3 died")
        };
        progress.finished((2, 100), &lost, "a\n\x1b[2J\u{9b}b");
        let Progress::Log { lines, .. } = progress else {
            unreachable!()
        };
        assert_eq!(
            lines,
            "2014-12-21 10:39:59,288 [1/100] returned 0 in 0:00:10.007444 sec on mezcal06.cl.ecei.tohoku.ac.jp: sleep 10\n\
             2014-12-21 10:39:59,288 [2/100] failed (EngineError: engine 3 died): a\\n\\x1b[2J\\x9bb\n"
        );
    }
}
