//! What Prometheus scrapes.

use std::fmt;

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric, MetricEncoder, NoLabelSet, text::encode},
    metrics::{MetricType, counter::ConstCounter, gauge::ConstGauge},
    registry::{Registry, Unit},
};

use crate::{hub::watch::Snapshot, scheduler::command::WATCH_BUCKETS};

/// A format, and its content type.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Format {
    /// What Prometheus asks for, and who does not say.
    OpenMetrics,
    /// What older programs read, `promtool check metrics` among them.
    Text,
}

impl Format {
    /// What is asked for by an Accept header.
    pub(super) fn accepted(accept: &str) -> Self {
        if accept.contains("text/plain") && !accept.contains("application/openmetrics-text") {
            Self::Text
        } else {
            Self::OpenMetrics
        }
    }

    pub(super) fn content_type(self) -> &'static str {
        match self {
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
            Self::Text => "text/plain; version=0.0.4; charset=utf-8",
        }
    }
}

/// A sample in one of the formats.
pub(super) fn text(snapshot: &Snapshot, format: Format) -> String {
    let mut registry = Registry::default();
    registry.register_collector(Box::new(Scrape(snapshot.clone())));
    let mut text = String::new();
    // Into memory: it cannot fail.
    let _ = encode(&mut text, &registry);
    if format == Format::OpenMetrics {
        return text;
    }
    // The older format has no units, no end, and counters are declared by the names that their values have.
    let lines: Vec<&str> = text.lines().collect();
    let is_counter = |name: &str| lines.contains(&format!("# TYPE {name} counter").as_str());
    let mut older = String::new();
    for line in &lines {
        let mut words = line.splitn(4, ' ');
        match (words.next(), words.next(), words.next(), words.next()) {
            (Some("#"), Some("UNIT" | "EOF"), ..) => {}
            (Some("#"), Some(what), Some(name), Some(rest)) if is_counter(name) => {
                older += &format!("# {what} {name}_total {rest}\n");
            }
            _ => older += &format!("{line}\n"),
        }
    }
    older
}

#[derive(Debug)]
struct Scrape(Snapshot);

/// One metric after the other.
struct Writer<'a>(DescriptorEncoder<'a>);

impl Writer<'_> {
    fn one(
        &mut self,
        name: &str,
        help: &str,
        unit: Option<&Unit>,
        metric: &impl EncodeMetric,
    ) -> fmt::Result {
        let encoder = self
            .0
            .encode_descriptor(name, help, unit, metric.metric_type())?;
        metric.encode(encoder)
    }

    /// A metric with a label of few values.
    fn by(
        &mut self,
        (name, help): (&str, &str),
        label: &str,
        kind: MetricType,
        values: &[(&str, u64)],
    ) -> fmt::Result {
        let mut encoder = self.0.encode_descriptor(name, help, None, kind)?;
        for (value, count) in values {
            let labels = [(label, *value)];
            let family = encoder.encode_family(&labels)?;
            match kind {
                MetricType::Counter => ConstCounter::new(*count).encode(family)?,
                _ => ConstGauge::new(i64::try_from(*count).unwrap_or(i64::MAX)).encode(family)?,
            }
        }
        Ok(())
    }
}

/// Run times, as they were counted.
struct Durations<'a>(&'a Snapshot);

impl EncodeMetric for Durations<'_> {
    fn encode(&self, mut encoder: MetricEncoder<'_>) -> fmt::Result {
        let counts = &self.0.durations;
        let bounds = WATCH_BUCKETS.into_iter().chain([f64::MAX]);
        let buckets: Vec<(f64, u64)> = bounds
            .zip(counts.iter().copied().chain(std::iter::repeat(0)))
            .collect();
        encoder.encode_histogram::<NoLabelSet>(self.0.seconds, counts.iter().sum(), &buckets, None)
    }

    fn metric_type(&self) -> MetricType {
        MetricType::Histogram
    }
}

impl Collector for Scrape {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let Snapshot { sample, .. } = &self.0;
        let tasks = sample.tasks;
        let mut to = Writer(encoder);
        let gauge = |value: u64| ConstGauge::new(i64::try_from(value).unwrap_or(i64::MAX));
        to.by(
            ("ipbroker_tasks_finished", "Tasks that have ended"),
            "outcome",
            MetricType::Counter,
            &[
                ("ok", tasks.completed),
                ("failed", tasks.failed),
                ("aborted", tasks.aborted),
            ],
        )?;
        to.one(
            "ipbroker_tasks_submitted",
            "Tasks that clients have submitted",
            None,
            &ConstCounter::new(self.0.submitted),
        )?;
        to.by(
            ("ipbroker_tasks", "Tasks that have not ended"),
            "state",
            MetricType::Gauge,
            &[
                ("ready", tasks.ready),
                ("blocked", tasks.blocked),
                ("running", tasks.running),
                ("direct", tasks.direct),
            ],
        )?;
        to.one(
            "ipbroker_task_duration",
            "Run times of tasks",
            Some(&Unit::Seconds),
            &Durations(&self.0),
        )?;
        let engines = sample.engines.len();
        to.by(
            ("ipbroker_engines", "Registered engines"),
            "kind",
            MetricType::Gauge,
            &[
                (
                    "ipengine",
                    (engines - self.0.python_engines.min(engines)) as u64,
                ),
                ("python", self.0.python_engines as u64),
            ],
        )?;
        let outstanding = sample.engines.iter().map(|engine| engine.outstanding);
        let busy = outstanding.filter(|tasks| *tasks > 0).count() as u64;
        let bytes = Some(&Unit::Bytes);
        for (name, help, unit, value) in [
            ("engines_busy", "Engines that have a task", None, busy),
            ("clients", "Clients that hold a lease", None, sample.clients),
            (
                "store_lag",
                "Journal not yet in the history",
                bytes,
                self.0.store_lag,
            ),
            (
                "store_size",
                "Size of the history",
                bytes,
                self.0.store_bytes,
            ),
            (
                "relay_queue",
                "Messages that wait for slow peers",
                bytes,
                self.0.relay_bytes as u64,
            ),
            (
                "troubles",
                "What is wrong, as `ipclient status` says it in words",
                None,
                sample.troubles.len() as u64,
            ),
        ] {
            to.one(&format!("ipbroker_{name}"), help, unit, &gauge(value))?;
        }
        to.one(
            "ipbroker_messages_refused",
            "Messages that were none, or not signed",
            None,
            &ConstCounter::new(self.0.refused),
        )?;
        let start = ConstGauge::new(sample.time - sample.uptime);
        to.one(
            "ipbroker_start_time",
            "When the controller started",
            Some(&Unit::Seconds),
            &start,
        )?;
        let labels = [
            ("version", sample.version.as_str()),
            ("scheme", sample.scheme.as_str()),
        ];
        let mut build = to.0.encode_descriptor(
            "ipbroker_build_info",
            "The controller's version and scheme, always 1",
            None,
            MetricType::Gauge,
        )?;
        ConstGauge::new(1i64).encode(build.encode_family(&labels)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_prometheus_names() {
        let mut snapshot = Snapshot {
            durations: vec![0, 3, 1],
            seconds: 0.25,
            ..Snapshot::default()
        };
        snapshot.sample.tasks.completed = 7;
        let open = text(&snapshot, Format::OpenMetrics);
        for line in [
            "ipbroker_tasks_finished_total{outcome=\"ok\"} 7",
            "ipbroker_tasks{state=\"blocked\"} 0",
            "ipbroker_task_duration_seconds_bucket{le=\"0.005\"} 3",
            "ipbroker_task_duration_seconds_bucket{le=\"+Inf\"} 4",
            "ipbroker_task_duration_seconds_sum 0.25",
            "ipbroker_task_duration_seconds_count 4",
            "# TYPE ipbroker_tasks_finished counter",
            "# EOF",
        ] {
            assert!(
                open.lines().any(|have| have == line),
                "no {line:?} in\n{open}"
            );
        }
        let older = text(&snapshot, Format::Text);
        for line in [
            "ipbroker_tasks_finished_total{outcome=\"ok\"} 7",
            "# TYPE ipbroker_tasks_finished_total counter",
            "# HELP ipbroker_tasks_finished_total Tasks that have ended",
            "# TYPE ipbroker_tasks gauge",
        ] {
            assert!(
                older.lines().any(|have| have == line),
                "no {line:?} in\n{older}"
            );
        }
        assert!(
            !older.contains("# EOF") && !older.contains("# UNIT"),
            "{older}"
        );
        // Every name is declared once.
        for kind in ["# TYPE ", "# HELP "] {
            let mut names: Vec<&str> = open
                .lines()
                .filter_map(|line| line.strip_prefix(kind)?.split(' ').next())
                .collect();
            let all = names.len();
            names.sort_unstable();
            names.dedup();
            assert_eq!(names.len(), all, "{open}");
        }
    }

    #[test]
    fn prometheus_is_given_what_it_asks_for() {
        let prometheus =
            "application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.5,*/*;q=0.1";
        assert_eq!(Format::accepted(prometheus), Format::OpenMetrics);
        for other in ["", "*/*", "text/html,application/xhtml+xml"] {
            assert_eq!(Format::accepted(other), Format::OpenMetrics);
        }
        let older = "text/plain;version=0.0.4;q=0.5,*/*;q=0.1";
        assert_eq!(Format::accepted(older), Format::Text);
    }
}
