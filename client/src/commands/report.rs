//! `ipclient report`: how a past run went, as one HTML file that needs nothing else.

use std::collections::{BTreeMap, HashMap};
use std::fmt::Write;

use clap::Args;
use ipbroker_client::protocol::array::without_ids;

use super::Outcome;
use super::past::{End, PastArgs, Run, begin, draw, steps, tasks};
use crate::cli::ClusterArgs;
use crate::output::table::duration;
use crate::output::{clock, plural};

/// Rows of a table.
const ROWS: usize = 20;

/// Boxes in the picture of the engines; with more tasks neighbours share one.
const BOXES: usize = 4000;

/// Width of a picture, in its own units.
const WIDTH: f64 = 960.0;

const STYLE: &str = include_str!("report.css");

/// Write how past tasks went as one HTML file: times, engines, failures, the critical path
#[derive(Debug, Args)]
#[command(after_help = "\
The file needs nothing else: no network, no scripts; its pictures are SVG.

Example:
  ipclient report --since 1h -o report.html
  ipclient report $(cat ids) -o report.html")]
pub(crate) struct ReportArgs {
    #[command(flatten)]
    past: PastArgs,
}

pub(crate) fn main(args: ReportArgs, cluster: &ClusterArgs) -> Outcome {
    draw(&args.past, cluster, "", |runs, out| {
        out.write_all(report(runs).as_bytes())
    })
}

/// What the numbers come from.
struct Facts<'a> {
    runs: &'a [Run],
    /// Those that ran, with when they began and ended, by their end.
    ran: Vec<(&'a Run, f64, f64)>,
    begin: f64,
    end: f64,
    engines: BTreeMap<(u32, &'a str), usize>,
}

impl<'a> Facts<'a> {
    fn new(runs: &'a [Run]) -> Self {
        let mut ran: Vec<(&Run, f64, f64)> = runs
            .iter()
            .filter_map(|run| run.ran.map(|(begun, ended)| (run, begun, ended.max(begun))))
            .collect();
        ran.sort_by(|a, b| a.2.total_cmp(&b.2));
        let begin = begin(runs);
        let end = ran.last().map_or(begin, |(_, _, ended)| *ended).max(begin);
        let mut engines: BTreeMap<(u32, &str), usize> =
            ran.iter().map(|(run, ..)| (engine(run), 0)).collect();
        for (row, place) in engines.values_mut().enumerate() {
            *place = row;
        }
        Self {
            runs,
            ran,
            begin,
            end,
            engines,
        }
    }

    fn makespan(&self) -> f64 {
        self.end - self.begin
    }

    fn busy(&self) -> f64 {
        self.ran.iter().map(|(_, begun, ended)| ended - begun).sum()
    }

    fn ended(&self, end: End) -> u64 {
        self.runs
            .iter()
            .filter(|run| run.end == end)
            .map(|run| run.count)
            .sum()
    }

    /// Where a moment is in a picture.
    fn x(&self, time: f64) -> f64 {
        LEFT + (WIDTH - LEFT - 10.0) * (time - self.begin) / self.makespan().max(1e-9)
    }
}

/// Room for names beside a picture.
const LEFT: f64 = 60.0;

fn engine(run: &Run) -> (u32, &str) {
    (run.engine.unwrap_or(0), run.host.as_str())
}

fn escape(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => safe.push_str("&amp;"),
            '<' => safe.push_str("&lt;"),
            '>' => safe.push_str("&gt;"),
            '"' => safe.push_str("&quot;"),
            c => safe.push(c),
        }
    }
    safe
}

fn date(time: f64) -> String {
    clock(time, "%F %T %Z")
}

/// The value below which the share `q` of sorted ones lies; each stands for so many tasks.
fn quantile(sorted: &[(f64, u64)], q: f64) -> f64 {
    let all: u64 = sorted.iter().map(|(_, count)| count).sum();
    let mut place = (all.saturating_sub(1) as f64 * q).round() as u64;
    for (value, count) in sorted {
        if place < *count {
            return *value;
        }
        place -= count;
    }
    0.0
}

fn report(runs: &[Run]) -> String {
    let facts = Facts::new(runs);
    let tasks = plural(tasks(runs), "task");
    let (busy, makespan) = (facts.busy(), facts.makespan());
    let engines = facts.engines.len();
    // Of members that ran in one go, each waited for the first, and took its part of the time.
    let mut waits: Vec<(f64, u64)> = facts
        .ran
        .iter()
        .map(|(run, begun, _)| ((begun - run.submitted).max(0.0), run.count))
        .collect();
    let mut times: Vec<(f64, u64)> = facts
        .ran
        .iter()
        .map(|(run, begun, ended)| ((ended - begun) / run.count.max(1) as f64, run.count))
        .collect();
    waits.sort_by(|a, b| a.0.total_cmp(&b.0));
    times.sort_by(|a, b| a.0.total_cmp(&b.0));
    let utilisation = 100.0 * busy / (makespan * engines.max(1) as f64).max(1e-9);
    let mut html = String::new();
    // Into memory: it cannot fail.
    let _ = write!(
        html,
        "<!doctype html>\n<html lang=\"en\">\n<meta charset=\"utf-8\">\n<meta name=\"viewport\" content=\"width=device-width\">\n\
         <title>ipbroker: {tasks}, {}</title>\n<style>\n{STYLE}</style>\n<h1>{tasks}</h1>\n<p>From {} to {}.</p>\n",
        date(facts.begin),
        date(facts.begin),
        date(facts.end)
    );
    html += "<dl>\n";
    for (name, value) in [
        ("makespan", duration(makespan)),
        ("run time of all", duration(busy)),
        ("engines", engines.to_string()),
        ("utilisation", format!("{utilisation:.0} %")),
        ("waited, median", duration(quantile(&waits, 0.5))),
        ("waited, 95 %", duration(quantile(&waits, 0.95))),
        ("ran, median", duration(quantile(&times, 0.5))),
        ("ran, longest", duration(quantile(&times, 1.0))),
        ("ended well", facts.ended(End::Ok).to_string()),
        ("failed", facts.ended(End::Failed).to_string()),
        ("aborted", facts.ended(End::Aborted).to_string()),
        ("unfinished", facts.ended(End::Open).to_string()),
    ] {
        let _ = writeln!(html, "<div><dt>{name}</dt><dd>{value}</dd></div>");
    }
    html += "</dl>\n";
    html += "<h2>Waiting and running</h2>\n";
    html += &load(&facts);
    html += "<h2>Engines</h2>\n";
    html += &gantt(&facts);
    html += &hosts(&facts);
    html += "<h2>How long they ran</h2>\n";
    html += &histogram(&times);
    html += "<h2>Critical path</h2>\n";
    html += &path(&facts);
    html += "<h2>Slowest</h2>\n";
    html += &slowest(&facts);
    html += "<h2>Failures</h2>\n";
    html += &failures(&facts);
    html += "</html>\n";
    html
}

/// A picture with a title for who cannot see it.
fn svg(height: f64, title: &str, inner: &str) -> String {
    format!(
        "<svg viewBox=\"0 0 {WIDTH} {height}\" role=\"img\" aria-label=\"{title}\">\n{inner}</svg>\n"
    )
}

/// The times below a picture.
fn axis(facts: &Facts<'_>, y: f64) -> String {
    (0..=4)
        .map(|at| {
            let seconds = facts.makespan() * f64::from(at) / 4.0;
            let anchor = if at == 4 { "end" } else { "start" };
            format!(
                "<text x=\"{:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\">{}</text>\n",
                facts.x(facts.begin + seconds),
                duration(seconds)
            )
        })
        .collect()
}

/// How many waited and ran over time.
fn load(facts: &Facts<'_>) -> String {
    let (high, points) = (150.0, 480usize);
    let steps = steps(facts.runs.iter().filter(|run| run.ran.is_some()));
    let (mut now, mut at) = ([0, 0], 0);
    let mut series: Vec<(f64, [i64; 2])> = Vec::with_capacity(points + 1);
    for point in 0..=points {
        let time = facts.begin + facts.makespan() * point as f64 / points as f64;
        // Of what changes between two points the most is drawn.
        let mut most = now;
        while let Some((_, waiting, running)) = steps.get(at).filter(|step| step.0 <= time) {
            now = [now[0] + waiting, now[1] + running];
            most = [most[0].max(now[0]), most[1].max(now[1])];
            at += 1;
        }
        series.push((time, most));
    }
    let mut inner = String::new();
    for (of, (name, class)) in [("waiting", "aborted"), ("running", "ok")]
        .into_iter()
        .enumerate()
    {
        let counts = series.iter().map(|(_, counts)| counts[of]);
        let most = counts.max().unwrap_or(0).max(1);
        let half = (high - 40.0) / 2.0;
        let base = if class == "ok" {
            high - 20.0
        } else {
            half + 10.0
        };
        let mut points = format!("{:.1},{base:.1}", facts.x(facts.begin));
        for (time, counts) in &series {
            let y = base - (half - 8.0) * counts[of] as f64 / most as f64;
            let _ = write!(points, " {:.1},{y:.1}", facts.x(*time));
        }
        let _ = write!(points, " {:.1},{base:.1}", facts.x(facts.end));
        let _ = writeln!(
            inner,
            "<polygon class=\"{class}\" points=\"{points}\"/>\n<text x=\"0\" y=\"{:.1}\">{name}</text>\n<text x=\"0\" y=\"{:.1}\">≤ {most}</text>",
            base - half + 20.0,
            base - half + 34.0
        );
    }
    inner += &axis(facts, high - 4.0);
    svg(high, "How many tasks waited and ran over time", &inner)
}

/// What each engine ran and when.
fn gantt(facts: &Facts<'_>) -> String {
    let high = if facts.engines.len() > 40 { 6.0 } else { 16.0 };
    let bottom = facts.engines.len() as f64 * high + 4.0;
    let mut inner = String::new();
    for ((id, host), row) in &facts.engines {
        if high > 10.0 || row % 5 == 0 {
            let y = *row as f64 * high + high - 3.0;
            let _ = writeln!(
                inner,
                "<text x=\"0\" y=\"{y:.1}\">{id} {}</text>",
                escape(host).chars().take(6).collect::<String>()
            );
        }
    }
    // With very many tasks neighbours on an engine become one box, whose outcome is the worst.
    let shortest = if facts.ran.len() > BOXES {
        facts.makespan() * facts.engines.len() as f64 / BOXES as f64
    } else {
        0.0
    };
    let kinds = kinds(facts);
    let hue = |run: &Run| kinds.iter().position(|kind| *kind == run.kind);
    let mut open: HashMap<usize, (f64, f64, u64, &Run)> = HashMap::new();
    let mut draw = |row: usize, (begun, ended, count, run): (f64, f64, u64, &Run)| {
        let (x, width) = (facts.x(begun), (facts.x(ended) - facts.x(begun)).max(0.5));
        let what = if count > 1 {
            format!("{count} tasks")
        } else {
            escape(&run.name)
        };
        let (hue, y) = (hue(run).unwrap_or(HUES), row as f64 * high + 1.0);
        // Its colour says of what kind it is, its shape how it ended.
        let part = if run.end == End::Ok { 1.0 } else { 0.5 } * (high - 2.0);
        let (took, end) = (duration(ended - begun), run.end.word());
        let _ = write!(
            inner,
            "<g><title>{what}: {end}, {took}</title><rect class=\"k{hue}\" x=\"{x:.1}\" y=\"{y:.1}\" width=\"{width:.1}\" height=\"{part:.1}\"/>"
        );
        if run.end == End::Failed {
            let y = y + part;
            let _ = write!(
                inner,
                "<rect class=\"failed\" x=\"{x:.1}\" y=\"{y:.1}\" width=\"{width:.1}\" height=\"{part:.1}\"/>"
            );
        }
        inner += "</g>\n";
    };
    for (run, begun, ended) in &facts.ran {
        let row = facts.engines[&engine(run)];
        match open.get_mut(&row) {
            Some(last) if begun - last.1 < shortest / 2.0 && ended - last.0 < shortest => {
                last.1 = *ended;
                last.2 += run.count;
                if run.end == End::Failed {
                    last.3 = run;
                }
            }
            _ => {
                if let Some(last) = open.insert(row, (*begun, *ended, run.count, run)) {
                    draw(row, last);
                }
            }
        }
    }
    for (row, last) in open {
        draw(row, last);
    }
    inner += &axis(facts, bottom + 12.0);
    let mut key = kinds
        .iter()
        .enumerate()
        .fold(String::new(), |key, (hue, kind)| {
            key + &format!("<span class=\"k{hue}\">■</span> {} &emsp;", escape(kind))
        });
    if facts.ran.iter().any(|(run, ..)| hue(run).is_none()) {
        let _ = write!(key, "<span class=\"k{HUES}\">■</span> others");
    }
    svg(bottom + 16.0, "What each engine ran over time", &inner)
        + &format!(
            "<p class=\"key\">{key}</p>\n<p class=\"key\">A whole box ended well; one with a red lower half failed, half a box was aborted.</p>\n"
        )
}

/// Kinds of tasks that have a colour of their own.
const HUES: usize = 7;

/// Those with the most work.
fn kinds<'a>(facts: &Facts<'a>) -> Vec<&'a str> {
    let mut work: BTreeMap<&str, f64> = BTreeMap::new();
    for (run, begun, ended) in &facts.ran {
        *work.entry(&run.kind).or_default() += ended - begun;
    }
    let mut kinds: Vec<(&str, f64)> = work.into_iter().collect();
    kinds.sort_by(|a, b| b.1.total_cmp(&a.1));
    kinds.truncate(HUES);
    kinds.into_iter().map(|(kind, _)| kind).collect()
}

fn table(headings: &[&str], rows: &[Vec<String>]) -> String {
    let mut html = "<div class=\"scroll\"><table><tr>".to_owned();
    for heading in headings {
        let _ = write!(html, "<th>{heading}</th>");
    }
    html += "</tr>\n";
    for row in rows {
        html += "<tr>";
        for cell in row {
            let _ = write!(html, "<td>{}</td>", escape(cell));
        }
        html += "</tr>\n";
    }
    html + "</table></div>\n"
}

fn hosts(facts: &Facts<'_>) -> String {
    let mut hosts: BTreeMap<&str, (usize, u64, f64)> = BTreeMap::new();
    for (_, host) in facts.engines.keys() {
        hosts.entry(host).or_default().0 += 1;
    }
    for (run, begun, ended) in &facts.ran {
        let host = hosts.entry(run.host.as_str()).or_default();
        host.1 += run.count;
        host.2 += ended - begun;
    }
    let rows: Vec<Vec<String>> = hosts
        .iter()
        .map(|(host, (engines, tasks, seconds))| {
            let share = 100.0 * seconds / (facts.makespan() * *engines as f64).max(1e-9);
            vec![
                (*host).to_owned(),
                engines.to_string(),
                tasks.to_string(),
                duration(*seconds),
                format!("{share:.0} %"),
            ]
        })
        .collect();
    table(
        &["Host", "Engines", "Tasks", "Run time", "Utilisation"],
        &rows,
    )
}

/// Run times in classes of a factor of two.
fn histogram(times: &[(f64, u64)]) -> String {
    let class = |seconds: f64| seconds.max(1e-6).log2().floor() as i32;
    let mut counts: BTreeMap<i32, u64> = BTreeMap::new();
    for (seconds, tasks) in times {
        *counts.entry(class(*seconds)).or_default() += tasks;
    }
    let (Some((first, _)), Some((last, _))) = (counts.first_key_value(), counts.last_key_value())
    else {
        return "<p>None of them ran.</p>\n".to_owned();
    };
    let (first, last) = (*first, *last);
    let most = counts.values().max().copied().unwrap_or(1) as f64;
    let step = (WIDTH - LEFT) / f64::from(last - first + 1).max(8.0);
    let mut inner = String::new();
    for class in first..=last {
        let count = counts.get(&class).copied().unwrap_or(0);
        let height = 90.0 * count as f64 / most;
        let x = LEFT + step * f64::from(class - first);
        let bound = 2f64.powi(class);
        let name = if bound < 0.1 {
            format!("{:.3} ms", bound * 1e3)
        } else {
            duration(bound)
        };
        let _ = writeln!(
            inner,
            "<rect class=\"ok\" x=\"{x:.1}\" y=\"{:.1}\" width=\"{:.1}\" height=\"{height:.1}\"/>\n<text x=\"{x:.1}\" y=\"{:.1}\">{count}</text>\n\
             <text x=\"{x:.1}\" y=\"124\">{name}</text>",
            108.0 - height,
            step - 3.0,
            104.0 - height
        );
    }
    svg(
        128.0,
        "How many tasks ran for how long: each class begins at the time below it",
        &inner,
    )
}

/// The chain of dependencies that took longest: what would have to be faster.
fn critical<'a>(facts: &Facts<'a>) -> Vec<&'a Run> {
    let by_id: HashMap<&str, usize> = facts
        .runs
        .iter()
        .enumerate()
        .map(|(at, run)| (run.id.as_str(), at))
        .collect();
    let before: Vec<Vec<usize>> = facts
        .runs
        .iter()
        .map(|run| {
            run.after
                .iter()
                .filter_map(|id| by_id.get(id.as_str()).copied())
                .collect()
        })
        .collect();
    // Longest chain that ends with each task. What a task waits for ended before it: in the order of ends all is known.
    let mut order: Vec<usize> = (0..facts.runs.len()).collect();
    let ended = |at: usize| facts.runs[at].ran.map_or(f64::INFINITY, |(_, ended)| ended);
    order.sort_by(|a, b| ended(*a).total_cmp(&ended(*b)));
    let mut chain: Vec<(f64, Option<usize>)> = vec![(0.0, None); facts.runs.len()];
    for at in order {
        let longest = before[at]
            .iter()
            .copied()
            .max_by(|a, b| chain[*a].0.total_cmp(&chain[*b].0));
        chain[at] = (
            facts.runs[at].seconds() + longest.map_or(0.0, |before| chain[before].0),
            longest,
        );
    }
    let mut path = Vec::new();
    // What never ran made nothing longer.
    let ran = (0..chain.len()).filter(|at| facts.runs[*at].ran.is_some());
    let mut next = ran.max_by(|a, b| chain[*a].0.total_cmp(&chain[*b].0));
    while let Some(at) = next {
        path.push(&facts.runs[at]);
        // Times of different clocks may contradict each other: a circle ends.
        next = chain[at].1.filter(|_| path.len() <= chain.len());
    }
    path.reverse();
    path
}

fn path(facts: &Facts<'_>) -> String {
    let path = critical(facts);
    let seconds: f64 = path.iter().map(|run| run.seconds()).sum();
    let share = 100.0 * seconds / facts.makespan().max(1e-9);
    let mut html = match path.len() {
        0 => return "<p>None of them ran.</p>\n".to_owned(),
        1 => format!(
            "<p>No chain of tasks that waited for each other took as long as this one: {}, {share:.0} % of the makespan.</p>\n",
            duration(seconds)
        ),
        count => format!(
            "<p>The longest chain of tasks that waited for each other: {count} tasks, {} of run time, {share:.0} % of the makespan. \
             More engines do not make the run shorter than this.</p>\n",
            duration(seconds)
        ),
    };
    let mut last = facts.begin;
    let mut rows = Vec::new();
    for run in path {
        // It cannot have waited before it was there.
        let since = last.max(run.submitted);
        let (begun, ended) = run.ran.unwrap_or((since, since));
        rows.push(vec![
            run.name.clone(),
            duration((begun - since).max(0.0)),
            duration(ended - begun),
            place(run),
            run.id.clone(),
        ]);
        last = ended;
    }
    html += &table(&["Task", "Waited", "Ran", "Engine", "Id"], &rows);
    html
}

fn place(run: &Run) -> String {
    run.engine
        .map_or(String::new(), |id| format!("{id} {}", run.host))
}

fn slowest(facts: &Facts<'_>) -> String {
    let mut slow: Vec<&(&Run, f64, f64)> = facts.ran.iter().collect();
    slow.sort_by(|a, b| (b.2 - b.1).total_cmp(&(a.2 - a.1)));
    let rows: Vec<Vec<String>> = slow
        .into_iter()
        .take(ROWS)
        .map(|(run, begun, ended)| {
            vec![
                run.name.clone(),
                duration(ended - begun),
                duration((begun - run.submitted).max(0.0)),
                place(run),
                run.end.word().into(),
                run.id.clone(),
            ]
        })
        .collect();
    table(&["Task", "Ran", "Waited", "Engine", "Outcome", "Id"], &rows)
}

fn failures(facts: &Facts<'_>) -> String {
    let mut groups: HashMap<String, (u64, &Run)> = HashMap::new();
    for run in facts.runs.iter().filter(|run| run.end == End::Failed) {
        groups.entry(without_ids(&run.said)).or_insert((0, run)).0 += run.count;
    }
    if groups.is_empty() {
        return "<p>None.</p>\n".to_owned();
    }
    let mut groups: Vec<_> = groups.into_iter().collect();
    groups.sort_by(|a, b| b.1.0.cmp(&a.1.0).then(a.0.cmp(&b.0)));
    let rows: Vec<Vec<String>> = groups
        .into_iter()
        .take(ROWS)
        .map(|(said, (count, run))| {
            vec![
                said,
                count.to_string(),
                run.name.clone(),
                place(run),
                run.id.clone(),
            ]
        })
        .collect();
    table(
        &[
            "What they said last",
            "How many",
            "The first of them",
            "Engine",
            "Id",
        ],
        &rows,
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(id: &str, ran: (f64, f64), engine: u32, after: &[&str]) -> Run {
        Run {
            id: id.into(),
            count: 1,
            name: format!("<{id}>"),
            ran: Some(ran),
            engine: Some(engine),
            host: "h".into(),
            end: End::Ok,
            after: after.iter().map(|id| (*id).to_owned()).collect(),
            ..Run::default()
        }
    }

    #[test]
    fn the_critical_path_is_the_longest_chain() {
        let runs = [
            run("a", (0.0, 2.0), 0, &[]),
            run("b", (2.0, 3.0), 0, &["a"]),
            run("c", (2.0, 6.0), 1, &["a"]),
            run("d", (6.5, 7.0), 0, &["b", "c", "unknown"]),
            run("e", (0.0, 6.0), 2, &[]),
            Run {
                ran: None,
                ..run("never", (0.0, 0.0), 0, &["d"])
            },
        ];
        let path: Vec<&str> = critical(&Facts::new(&runs))
            .iter()
            .map(|run| run.id.as_str())
            .collect();
        assert_eq!(path, ["a", "c", "d"]);
    }

    #[test]
    fn a_report_is_whole_and_escaped() {
        let mut runs = vec![
            run("a", (1.0, 2.0), 0, &[]),
            run("b", (1.0, 4.0), 1, &["a"]),
        ];
        runs[1].end = End::Failed;
        runs[1].said = "bad & ugly".into();
        let html = report(&runs);
        for part in [
            "<h1>2 tasks</h1>",
            "&lt;a&gt;",
            "bad &amp; ugly",
            "<dt>utilisation</dt><dd>50 %</dd>",
            "</html>",
        ] {
            assert!(html.contains(part), "no {part} in\n{html}");
        }
        assert_eq!(html.matches("<rect class=\"failed\"").count(), 1);
        assert!(
            !html.contains("<script") && !html.contains("http://") && !html.contains("https://")
        );
        assert_eq!(html.matches("<svg").count(), html.matches("</svg>").count());
    }

    #[test]
    fn members_weigh_as_many_tasks() {
        // Of an array 90 members, 0.1 s each, and ten tasks of their own of 5 s.
        let mut runs: Vec<Run> = (0..10)
            .map(|n| run(&n.to_string(), (20.0, 25.0), n, &[]))
            .collect();
        let mut array = run("array:0", (2.0, 11.0), 0, &[]);
        array.count = 90;
        runs.push(array);
        let html = report(&runs);
        for part in [
            "<h1>100 tasks</h1>",
            "<dt>ran, median</dt><dd>0.1 s</dd>",
            "<dt>ran, longest</dt><dd>5.0 s</dd>",
            "<dt>waited, median</dt><dd>2.0 s</dd>",
            "<dt>waited, 95 %</dt><dd>20.0 s</dd>",
            ">90</text>",
        ] {
            assert!(html.contains(part), "no {part} in\n{html}");
        }
        assert_eq!(quantile(&[], 0.5), 0.0);
    }

    #[test]
    fn nothing_has_waited_before_it_was_there() {
        let mut late = run("late", (5.5, 9.0), 0, &[]);
        late.submitted = 5.0;
        let html = report(&[run("early", (0.0, 1.0), 0, &[]), late]);
        let path = html.split("Critical path").nth(1).unwrap();
        let row = "<td>&lt;late&gt;</td><td>0.5 s</td><td>3.5 s</td>";
        assert!(path.contains(row), "no {row} in\n{path}");
    }

    #[test]
    fn very_many_tasks_share_boxes() {
        let runs: Vec<Run> = (0..20_000)
            .map(|n| {
                run(
                    &n.to_string(),
                    (f64::from(n) * 0.01, f64::from(n) * 0.01 + 0.009),
                    0,
                    &[],
                )
            })
            .collect();
        let boxes = report(&runs).matches("<rect class=").count();
        assert!(boxes < 2 * BOXES, "{boxes}");
    }
}
