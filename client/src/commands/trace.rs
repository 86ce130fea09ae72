//! `ipclient trace`: past tasks as Perfetto and chrome://tracing read them.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io::Write;

use clap::Args;
use serde_json::{Value, json};

use super::Outcome;
use super::past::{PastArgs, Run, begin, draw, steps};
use crate::cli::ClusterArgs;

/// Tasks whose waiting is drawn one by one; of more only how many waited is.
const WAITING: usize = 5000;

/// The counters have at most about so many values: those of a million tasks would be larger than all else.
const COUNTS: usize = 20_000;

/// Write past tasks as a trace for Perfetto (ui.perfetto.dev) or chrome://tracing
#[derive(Debug, Args)]
#[command(after_help = "\
A track for each engine shows what it ran; arrows lead from a task to those that waited for it; two counters show how many \
waited and ran. Tasks of up to 5000 have a track for their waiting, too.

Example:
  ipclient trace --since 1h -o trace.json
  ipclient trace $(cat ids) -o - | gzip > trace.json.gz")]
pub(crate) struct TraceArgs {
    #[command(flatten)]
    past: PastArgs,
}

pub(crate) fn main(args: TraceArgs, cluster: &ClusterArgs) -> Outcome {
    draw(&args.past, cluster, ": open it in ui.perfetto.dev", trace)
}

/// Microseconds since the first submission.
fn micros(time: f64, begin: f64) -> f64 {
    ((time - begin) * 1e6 * 1000.0).round() / 1000.0
}

fn trace(runs: &[Run], out: &mut dyn Write) -> std::io::Result<()> {
    let begin = begin(runs);
    let at = |time: f64| micros(time, begin);
    // A process for each host, a thread for each engine.
    let mut hosts: BTreeMap<&str, usize> = BTreeMap::new();
    for run in runs.iter().filter(|run| run.ran.is_some()) {
        let next = hosts.len() + 2;
        hosts.entry(run.host.as_str()).or_insert(next);
    }
    let mut events = Events { out, any: false };
    events
        .out
        .write_all(b"{\"displayTimeUnit\":\"ms\",\"traceEvents\":[\n")?;
    events.name("process_name", 1, None, "queue")?;
    for (host, pid) in &hosts {
        events.name(
            "process_name",
            *pid,
            None,
            if host.is_empty() { "engines" } else { host },
        )?;
    }
    // Of a thread 0 Perfetto makes another one of its process.
    let tid = |engine: u32| u64::from(engine) + 1;
    let engine = |run: &Run| (hosts[run.host.as_str()], run.engine.unwrap_or(0));
    let ran = runs.iter().filter(|run| run.ran.is_some());
    let engines: BTreeSet<(usize, u32)> = ran.map(engine).collect();
    for (pid, engine) in engines {
        let name = format!("engine {engine}");
        events.name("thread_name", pid, Some(tid(engine)), &name)?;
    }
    let place = |run: &Run| {
        let (pid, engine) = engine(run);
        (pid, tid(engine))
    };
    let by_id: HashMap<&str, &Run> = runs.iter().map(|run| (run.id.as_str(), run)).collect();
    let mut flow = 0u64;
    let few = runs.len() <= WAITING;
    for run in runs {
        let Some((begun, ended)) = run.ran else {
            continue;
        };
        let (pid, tid) = place(run);
        let mut arguments = json!({"id": run.id, "outcome": run.end.word(), "waited_ms": (begun - run.submitted) * 1e3});
        if run.count > 1 {
            arguments["tasks"] = run.count.into();
        }
        if !run.said.is_empty() {
            arguments["said"] = run.said.as_str().into();
        }
        events.put(&json!({
            "ph": "X", "pid": pid, "tid": tid, "ts": at(begun), "dur": micros(ended, begun).max(0.001),
            "name": run.name, "cat": run.end.word(), "args": arguments,
        }))?;
        if few {
            for (phase, time) in [("b", run.submitted), ("e", begun.max(run.submitted))] {
                events.put(&json!({
                    "ph": phase, "pid": 1, "tid": 1, "ts": at(time), "id2": {"local": run.id}, "name": run.name, "cat": "waiting",
                }))?;
            }
        }
        for id in &run.after {
            let Some((before, (started, finished))) =
                by_id.get(id.as_str()).and_then(|run| Some((run, run.ran?)))
            else {
                continue;
            };
            flow += 1;
            let (from_pid, from_tid) = place(before);
            // A flow begins and ends inside of slices, also after Perfetto has made whole nanoseconds of their times.
            let inside = (micros(finished, started) / 2.0).clamp(0.0, 1.0);
            events.put(&json!({
                "ph": "s", "pid": from_pid, "tid": from_tid, "ts": at(finished) - inside, "id": flow, "name": "after",
                "cat": "dependency",
            }))?;
            events.put(&json!({
                "ph": "f", "bp": "e", "pid": pid, "tid": tid, "ts": at(begun), "id": flow, "name": "after",
                "cat": "dependency",
            }))?;
        }
    }
    let steps = steps(runs);
    let (mut waiting, mut running) = (0, 0);
    let span = steps.last().map_or(0.0, |last| last.0 - begin);
    let apart = if steps.len() > COUNTS {
        span / COUNTS as f64
    } else {
        0.0
    };
    let mut counted = f64::NEG_INFINITY;
    for (index, (time, more_waiting, more_running)) in steps.iter().enumerate() {
        (waiting, running) = (waiting + more_waiting, running + more_running);
        let next = steps.get(index + 1).map_or(f64::INFINITY, |next| next.0);
        if next > *time && next - counted > apart {
            counted = *time;
            for (name, value) in [("waiting", waiting), ("running", running)] {
                events.put(&json!({
                    "ph": "C", "pid": 1, "ts": at(*time), "name": name, "args": {"tasks": value},
                }))?;
            }
        }
    }
    events.out.write_all(b"\n]}\n")
}

/// The list of events, written as it grows.
struct Events<'a> {
    out: &'a mut dyn Write,
    any: bool,
}

impl Events<'_> {
    fn put(&mut self, event: &Value) -> std::io::Result<()> {
        if std::mem::replace(&mut self.any, true) {
            self.out.write_all(b",\n")?;
        }
        serde_json::to_writer(&mut *self.out, event).map_err(std::io::Error::from)
    }

    fn name(
        &mut self,
        what: &str,
        pid: usize,
        tid: Option<u64>,
        name: &str,
    ) -> std::io::Result<()> {
        let mut event = json!({"ph": "M", "pid": pid, "name": what, "args": {"name": name}});
        if let Some(tid) = tid {
            event["tid"] = tid.into();
        }
        self.put(&event)
    }
}

#[cfg(test)]
mod tests {
    use super::super::past::End;
    use super::*;

    #[test]
    fn arrows_begin_inside_of_slices() {
        // Perfetto counts whole nanoseconds.
        let nanos = |value: &Value| (value.as_f64().unwrap() * 1e3) as i64;
        for n in 0..500 {
            let begun = 1_796_031_721.268_762_8 + f64::from(n) * 0.123_456_7;
            let ended = begun + f64::from(n) * 0.000_01;
            let first = Run {
                id: "a".into(),
                count: 1,
                submitted: 1_796_031_721.0,
                ran: Some((begun, ended)),
                engine: Some(2),
                ..Run::default()
            };
            let second = Run {
                id: "b".into(),
                ran: Some((ended + 0.001, ended + 0.002)),
                after: vec!["a".into()],
                ..first.clone()
            };
            let mut text = Vec::new();
            trace(&[first, second], &mut text).unwrap();
            let trace: Value = serde_json::from_slice(&text).unwrap();
            let events = trace["traceEvents"].as_array().unwrap();
            let of = |phase: &str| events.iter().find(|event| event["ph"] == phase).unwrap();
            let (slice, arrow) = (of("X"), of("s"));
            let from = nanos(&slice["ts"]);
            let inside = from..(from + nanos(&slice["dur"])).max(from + 1);
            assert!(inside.contains(&nanos(&arrow["ts"])), "{slice} {arrow}");
        }
    }

    #[test]
    fn a_task_its_dependant_and_what_waited() {
        let first = Run {
            id: "a".into(),
            count: 1,
            name: "make".into(),
            submitted: 100.0,
            ran: Some((101.0, 103.5)),
            engine: Some(0),
            host: "h".into(),
            end: End::Ok,
            ..Run::default()
        };
        let second = Run {
            id: "b".into(),
            ran: Some((104.0, 105.0)),
            after: vec!["a".into(), "unknown".into()],
            end: End::Failed,
            said: "no".into(),
            ..first.clone()
        };
        let mut text = Vec::new();
        trace(&[first, second], &mut text).unwrap();
        let trace: Value = serde_json::from_slice(&text).unwrap();
        let events = trace["traceEvents"].as_array().unwrap();
        let of = |phase: &str| -> Vec<&Value> {
            events.iter().filter(|event| event["ph"] == phase).collect()
        };
        let slices = of("X");
        assert_eq!(slices.len(), 2);
        assert_eq!(
            (&slices[0]["ts"], &slices[0]["dur"]),
            (&json!(1e6), &json!(2.5e6))
        );
        assert_eq!(slices[0]["tid"], json!(1));
        assert_eq!((of("s").len(), of("f").len()), (1, 1));
        assert_eq!(of("s")[0]["id"], of("f")[0]["id"]);
        let last = of("C").into_iter().next_back().unwrap();
        assert_eq!(last["args"]["tasks"], json!(0));
    }
}
