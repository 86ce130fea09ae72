//! `--locate`: jobs run where their inputs lie, as a command of the file system tells.

use std::collections::HashMap;
use std::process::{Command, Stdio};

use clap::Args;
use ipbroker_client::job::Job;

use crate::output::cut;
use crate::template::{Style, Template, Values};

/// Where inputs lie.
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "Jobs")]
pub(crate) struct LocateArgs {
    /// Run COMMAND, with a file in place of {} or at its end, once for each file that a job reads: it prints the names of
    /// the hosts where that lies, and the job prefers them
    #[arg(long, value_name = "COMMAND")]
    locate: Option<String>,
}

impl LocateArgs {
    pub(crate) fn locate(&self) -> Locate {
        let command = self.locate.as_ref();
        Locate {
            command: command
                .map(|text| Template::command(std::slice::from_ref(text), &Style::default(), true)),
            known: HashMap::new(),
            told: false,
        }
    }
}

/// Asks once for each file.
pub(crate) struct Locate {
    command: Option<Template>,
    known: HashMap<String, Vec<String>>,
    told: bool,
}

impl Locate {
    /// A job line's inputs are the files of its `needs` and `put`.
    pub(crate) fn prefer_inputs(&mut self, job: &mut Job) {
        if self.command.is_some() {
            let put = job.put.iter().map(|file| &file.local);
            let inputs: Vec<String> = job.needs.iter().chain(put).cloned().collect();
            self.prefer(job, inputs.iter().map(String::as_str));
        }
    }

    /// The job prefers the hosts that hold most of `inputs`, unless it says itself what it prefers.
    pub(crate) fn prefer<'a>(&mut self, job: &mut Job, inputs: impl Iterator<Item = &'a str>) {
        let Some(command) = &self.command else {
            return;
        };
        if !job.placement.prefer.is_empty() {
            return;
        }
        let mut counts: Vec<(String, usize)> = Vec::new();
        for file in inputs {
            if !self.known.contains_key(file) {
                let hosts = hosts(command, file).unwrap_or_else(|why| {
                    if !std::mem::replace(&mut self.told, true) {
                        eprintln!("ipclient: --locate: {file}: {why}: its jobs run anywhere (this is said once)");
                    }
                    Vec::new()
                });
                self.known.insert(file.to_owned(), hosts);
            }
            for host in &self.known[file] {
                match counts.iter_mut().find(|(known, _)| known == host) {
                    Some((_, count)) => *count += 1,
                    None => counts.push((host.clone(), 1)),
                }
            }
        }
        let most = counts.iter().map(|(_, count)| *count).max();
        counts.retain(|(_, count)| Some(*count) == most);
        job.placement.prefer = counts.into_iter().map(|(host, _)| host).collect();
    }
}

fn hosts(command: &Template, file: &str) -> Result<Vec<String>, String> {
    let arguments = [file.to_owned()];
    let command = command.expand(&Values {
        arguments: &arguments,
        quote: true,
        ..Values::default()
    });
    let output = Command::new("/bin/sh")
        .args(["-c", &command])
        .stdin(Stdio::null())
        .output()
        .map_err(|error| format!("/bin/sh: {error}"))?;
    let mut hosts: Vec<String> = String::from_utf8_lossy(&output.stdout)
        .split_whitespace()
        .map(str::to_owned)
        .collect();
    hosts.sort_unstable();
    hosts.dedup();
    let errors = String::from_utf8_lossy(&output.stderr);
    let last = errors.lines().rfind(|line| !line.trim().is_empty());
    match (output.status.success(), last) {
        (true, _) => Ok(hosts),
        (false, Some(last)) => Err(cut(last, 200)),
        (false, None) => Err(format!("the command ended with {}", output.status)),
    }
}
