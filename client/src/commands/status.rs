//! `ipclient status`.

use std::io::Write;
use std::process::ExitCode;

use clap::Args;
use serde_json::Value;

use super::Outcome;
use crate::cli::ClusterArgs;
use crate::output::json;

/// Show how the cluster is: engines, tasks, store
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  ipclient status\n  ipclient status --json | jq .")]
pub(crate) struct StatusArgs {
    /// Print JSON
    #[arg(long)]
    json: bool,
}

pub(crate) fn main(args: StatusArgs, cluster: &ClusterArgs) -> Outcome {
    let client = cluster.connect()?;
    let status = client.status()?;
    if args.json {
        return json::print(&status);
    }
    let mut rows = Vec::new();
    for (key, value) in &status {
        if key != "status" {
            flatten(key, value, &mut rows);
        }
    }
    let width = rows
        .iter()
        .map(|(key, _)| key.chars().count())
        .max()
        .unwrap_or(0);
    let mut out = std::io::stdout().lock();
    for (key, value) in rows {
        writeln!(out, "{key:<width$}  {value}")?;
    }
    Ok(ExitCode::SUCCESS)
}

/// `{"tasks": {"waiting": 3}}` is the row `tasks waiting  3`.
fn flatten(key: &str, value: &Value, rows: &mut Vec<(String, String)>) {
    let name = key.replace('_', " ");
    match value {
        Value::Object(map) => {
            for (inner, value) in map {
                flatten(&format!("{name} {inner}"), value, rows);
            }
        }
        Value::Array(items) if items.is_empty() => {}
        Value::Array(items) => {
            let words: Vec<String> = items.iter().map(plain).collect();
            rows.push((name, words.join(", ")));
        }
        Value::Null => {}
        other => rows.push((name, plain(other) + unit(key))),
    }
}

/// What a figure counts, where its name does not say it.
fn unit(key: &str) -> &'static str {
    match key.rsplit(' ').next().unwrap_or(key) {
        "uptime" => " s",
        "lag" | "lag_bound" | "unsynced" | "bytes" | "relay_bytes" => " bytes",
        _ => "",
    }
}

fn plain(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Number(number) => match number.as_f64() {
            Some(float) if number.is_f64() => format!("{float:.3}"),
            _ => number.to_string(),
        },
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn nested_maps_become_rows() {
        let mut rows = Vec::new();
        flatten(
            "tasks",
            &json!({"ready": 3, "in_flight": {"a": "b"}, "none": null}),
            &mut rows,
        );
        flatten("lag", &json!(0.5), &mut rows);
        flatten("troubles", &json!(["disk full", "x"]), &mut rows);
        let rows: Vec<String> = rows
            .into_iter()
            .map(|(key, value)| format!("{key}={value}"))
            .collect();
        assert_eq!(
            rows,
            [
                "tasks ready=3",
                "tasks in flight a=b",
                "lag=0.500 bytes",
                "troubles=disk full, x"
            ]
        );
    }
}
