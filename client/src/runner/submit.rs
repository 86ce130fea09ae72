//! Jobs into messages.

use std::collections::HashMap;

use ipbroker_client::job::{Job, Placement};
use ipbroker_client::protocol::message::{Command, TaskRequest};
use ipbroker_client::{IMPOSSIBLE, by_placement};

use super::files::Way;
use super::{Options, Runner};
use crate::failure::Failure;

/// The lines of a stream with ids, so far.
#[derive(Default)]
pub(crate) struct Seen(HashMap<String, u64>);

impl Seen {
    /// On a stream a job may depend on lines before it only.
    pub(crate) fn check(&mut self, job: &Job, options: &Options) -> Result<(), String> {
        let at = format!("{}:{}", options.source, job.line);
        for (key, ids) in [
            ("after", &job.placement.after),
            ("follow", &job.placement.follow),
        ] {
            if let Some(id) = ids.iter().find(|id| !self.0.contains_key(*id)) {
                return Err(format!(
                    "{at}: \"{key}\" names {id:?}, which is the id of no earlier line (in a file it may come later)"
                ));
            }
        }
        if let Some(id) = &job.id {
            if let Some(first) = self.0.get(id) {
                return Err(format!("{at}: id {id:?} is already the id of line {first}"));
            }
            self.0.insert(id.clone(), job.line);
        }
        Ok(())
    }
}

impl Options {
    /// The scheduling metadata of a job.
    pub(crate) fn request(
        &self,
        placement: &Placement,
        ids: &HashMap<String, String>,
    ) -> TaskRequest {
        self.jobs.placement(placement).request(ids)
    }
}

impl Runner<'_> {
    /// Submits `jobs[at]` for each of `which`; their slots begin at `base`.
    pub(crate) fn submit(
        &mut self,
        base: usize,
        jobs: &[Job],
        which: &[usize],
    ) -> Result<(), Failure> {
        for group in by_placement(jobs, which) {
            let first = &jobs[group[0]];
            if let Some(why) = first.placement.impossible(self.batch.ids()) {
                self.batch.fail(base, jobs, &group, IMPOSSIBLE, &why);
                continue;
            }
            if first.has_files() {
                let index = base + group[0];
                if let Some(reason) = self.submit_with_files(index, first, Way::Cache)? {
                    self.refuse(index, first, &reason)?;
                }
                continue;
            }
            let options = &self.options;
            // A member can say that it wants more than the template, not that it wants nothing.
            let some_want_none = group.iter().any(|&at| jobs[at].capture == Some(0));
            let template = Command {
                cd: Some(options.cwd.clone()),
                capture: if some_want_none { 0 } else { options.capture() },
                ..Command::default()
            };
            let request = options.request(&first.placement, self.batch.ids());
            self.batch
                .add(base, jobs, &group, request, &template, |job| {
                    options.command(job)
                })?;
        }
        Ok(())
    }
}
