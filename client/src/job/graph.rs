//! The graph of a job file: ids resolved, cycles refused, jobs in an order in which they can be submitted.

use super::line::Job;
use std::collections::HashMap;

/// Why the jobs of a file are no acyclic graph.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum GraphError {
    /// Two jobs have one id.
    #[error("{file}:{line}: id {id:?} is already the id of line {first}")]
    Duplicate {
        /// The file.
        file: String,
        /// The later line.
        line: u64,
        /// The earlier line.
        first: u64,
        /// The id of both.
        id: String,
    },
    /// A dependency names a job that is not in the file.
    #[error("{file}:{line}: \"{key}\" names {id:?}, which is the id of no job in the file")]
    Unknown {
        /// The file.
        file: String,
        /// The line.
        line: u64,
        /// `after` or `follow`.
        key: &'static str,
        /// The name.
        id: String,
    },
    /// Jobs that wait for each other.
    #[error("{file}:{line}: these jobs form a cycle and could never start: {cycle}")]
    Cycle {
        /// The file.
        file: String,
        /// The first line of the cycle.
        line: u64,
        /// The cycle, in words.
        cycle: String,
    },
}

/// Who waits for whom, by position in the list of jobs.
#[derive(Debug, Default)]
pub struct Graph {
    /// Jobs whose dependencies all stand in earlier levels; the first level has none.
    pub levels: Vec<Vec<usize>>,
    /// Position of each id.
    pub by_id: HashMap<String, usize>,
}

impl Graph {
    /// Checks the jobs of `file` and orders them.
    pub fn new(file: &str, jobs: &[Job]) -> Result<Graph, GraphError> {
        let mut by_id = HashMap::new();
        for (index, job) in jobs.iter().enumerate() {
            let Some(id) = &job.id else { continue };
            if let Some(first) = by_id.insert(id.clone(), index) {
                return Err(GraphError::Duplicate {
                    file: file.into(),
                    line: job.line,
                    first: jobs[first].line,
                    id: id.clone(),
                });
            }
        }
        let mut needs: Vec<Vec<usize>> = vec![Vec::new(); jobs.len()];
        let mut dependents: HashMap<usize, Vec<usize>> = HashMap::new();
        for (index, job) in jobs.iter().enumerate() {
            for (key, ids) in [
                ("after", &job.placement.after),
                ("follow", &job.placement.follow),
            ] {
                for id in ids {
                    let Some(&on) = by_id.get(id) else {
                        return Err(GraphError::Unknown {
                            file: file.into(),
                            line: job.line,
                            key,
                            id: id.clone(),
                        });
                    };
                    needs[index].push(on);
                    dependents.entry(on).or_default().push(index);
                }
            }
        }
        let mut waiting: Vec<usize> = needs.iter().map(Vec::len).collect();
        let mut levels = Vec::new();
        let mut level: Vec<usize> = (0..jobs.len()).filter(|&i| waiting[i] == 0).collect();
        let mut placed = 0;
        while !level.is_empty() {
            placed += level.len();
            let mut next = Vec::new();
            for index in &level {
                for &dependent in dependents.get(index).map_or(&[][..], Vec::as_slice) {
                    waiting[dependent] -= 1;
                    if waiting[dependent] == 0 {
                        next.push(dependent);
                    }
                }
            }
            next.sort_unstable();
            levels.push(std::mem::replace(&mut level, next));
        }
        if placed < jobs.len() {
            return Err(cycle(file, jobs, &needs, &waiting));
        }
        Ok(Graph { levels, by_id })
    }

    /// The graph in the language of Graphviz.
    pub fn dot(&self, jobs: &[Job]) -> String {
        use std::fmt::Write;
        let mut text = String::from(
            "digraph jobs {\n  rankdir=LR;\n  node [shape=box, fontname=\"monospace\"];\n",
        );
        for (index, job) in jobs.iter().enumerate() {
            let mut label: String = job.cmd.chars().take(60).collect();
            if job.cmd.chars().nth(60).is_some() {
                label.push('…');
            }
            if let Some(id) = &job.id {
                label = format!("{id}\n{label}");
            }
            let _ = writeln!(text, "  n{index} [label={}];", quote(&label));
        }
        for (index, job) in jobs.iter().enumerate() {
            let on = match job.placement.on {
                super::Condition::Success => "",
                super::Condition::Failure => "failure",
                super::Condition::Always => "always",
            };
            let any = if job.placement.any { "any" } else { "" };
            let label = [on, any]
                .iter()
                .filter(|s| !s.is_empty())
                .copied()
                .collect::<Vec<_>>()
                .join(" ");
            for (ids, style) in [
                (&job.placement.after, "solid"),
                (&job.placement.follow, "dashed"),
            ] {
                for id in ids {
                    if let Some(&from) = self.by_id.get(id) {
                        let label = if label.is_empty() {
                            String::new()
                        } else {
                            format!(", label={}", quote(&label))
                        };
                        let _ = writeln!(text, "  n{from} -> n{index} [style={style}{label}];");
                    }
                }
            }
        }
        text.push_str("}\n");
        text
    }
}

fn quote(text: &str) -> String {
    format!(
        "\"{}\"",
        text.replace('\\', "\\\\")
            .replace('"', "\\\"")
            .replace('\n', "\\n")
    )
}

/// Some cycle among the jobs that could not be placed: follow dependencies until one repeats.
fn cycle(file: &str, jobs: &[Job], needs: &[Vec<usize>], waiting: &[usize]) -> GraphError {
    let mut seen: HashMap<usize, usize> = HashMap::new();
    let mut path = Vec::new();
    let mut at = waiting.iter().position(|&n| n > 0).unwrap_or(0);
    while !seen.contains_key(&at) {
        seen.insert(at, path.len());
        path.push(at);
        match needs[at].iter().find(|&&on| waiting[on] > 0) {
            Some(&on) => at = on,
            None => break,
        }
    }
    let start = seen.get(&at).copied().unwrap_or(0);
    let mut around: Vec<usize> = path[start..].to_vec();
    // `around` goes from a job to what it waits for: begin at the earliest line.
    let first = around
        .iter()
        .enumerate()
        .min_by_key(|(_, i)| jobs[**i].line)
        .map_or(0, |(at, _)| at);
    around.rotate_left(first);
    let name = |i: &usize| {
        format!(
            "line {} ({:?})",
            jobs[*i].line,
            jobs[*i].id.as_deref().unwrap_or("?")
        )
    };
    let mut words: Vec<String> = around.iter().take(20).map(name).collect();
    if around.len() > 20 {
        words.push(format!("… {} more", around.len() - 20));
    }
    words.push(name(&around[0]));
    GraphError::Cycle {
        file: file.into(),
        line: jobs[around[0]].line,
        cycle: words.join(" waits for "),
    }
}

/// Message ids of a client's `session` in an error, replaced by the names that the user gave to these jobs.
pub fn rename(text: &str, session: &str, names: &HashMap<String, String>) -> String {
    let mut renamed = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find(session) {
        let (before, found) = rest.split_at(at);
        let end = found
            .find(|c: char| !(c.is_ascii_alphanumeric() || "-_:".contains(c)))
            .unwrap_or(found.len());
        let id = found[..end].trim_end_matches(':');
        renamed += before;
        match names.get(id) {
            Some(name) => renamed += &format!("{name:?}"),
            None => renamed += id,
        }
        rest = &found[id.len()..];
    }
    renamed + rest
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::job::parse_line;

    fn jobs(lines: &[&str]) -> Vec<Job> {
        lines
            .iter()
            .enumerate()
            .map(|(i, l)| parse_line(i as u64 + 1, l.as_bytes()).unwrap())
            .collect()
    }

    #[test]
    fn later_lines_may_be_needed_by_earlier_ones() {
        let jobs = jobs(&[
            r#"{"cmd":"c","id":"c","after":["a","b"]}"#,
            r#"{"cmd":"a","id":"a"}"#,
            r#"{"cmd":"b","id":"b","follow":["a"]}"#,
            r#"{"cmd":"d"}"#,
        ]);
        let graph = Graph::new("f", &jobs).unwrap();
        assert_eq!(graph.levels, [vec![1, 3], vec![2], vec![0]]);
        let dot = graph.dot(&jobs);
        assert!(
            dot.contains("n1 -> n0 [style=solid]") && dot.contains("n1 -> n2 [style=dashed]"),
            "{dot}"
        );
    }

    #[test]
    fn what_cannot_run_is_refused_with_lines() {
        let text = |lines: &[&str]| Graph::new("f.json", &jobs(lines)).unwrap_err().to_string();
        assert_eq!(
            text(&[r#"{"cmd":"a","after":["x"]}"#]),
            "f.json:1: \"after\" names \"x\", which is the id of no job in the file"
        );
        assert_eq!(
            text(&[r#"{"cmd":"a","id":"x"}"#, r#"{"cmd":"b","id":"x"}"#]),
            "f.json:2: id \"x\" is already the id of line 1"
        );
        assert_eq!(
            text(&[
                r#"{"cmd":"a","id":"a","after":["z"]}"#,
                r#"{"cmd":"b","id":"b","after":["c"]}"#,
                r#"{"cmd":"c","id":"c","follow":["b"]}"#,
                r#"{"cmd":"z","id":"z","after":["c"]}"#,
            ]),
            "f.json:2: these jobs form a cycle and could never start: line 2 (\"b\") waits for line 3 (\"c\") waits for line 2 (\"b\")"
        );
        assert!(
            text(&[r#"{"cmd":"a","id":"a","after":["a"]}"#])
                .contains("line 1 (\"a\") waits for line 1")
        );
    }

    #[test]
    fn users_read_their_own_names() {
        let names = HashMap::from([("s-1_2:14".to_owned(), "prep".to_owned())]);
        assert_eq!(
            rename("after all of s-1_2:14, s-1_3: gone", "s-1", &names),
            "after all of \"prep\", s-1_3: gone"
        );
        assert_eq!(rename("nothing here", "s-1", &names), "nothing here");
    }

    #[test]
    fn a_long_chain_does_not_overflow_the_stack() {
        let lines: Vec<String> = (0..50_000)
            .map(|i| format!(r#"{{"cmd":"x","id":{i},"after":[{}]}}"#, (i + 1) % 50_000))
            .collect();
        let jobs = jobs(&lines.iter().map(String::as_str).collect::<Vec<_>>());
        assert!(matches!(
            Graph::new("f", &jobs),
            Err(GraphError::Cycle { .. })
        ));
    }
}
