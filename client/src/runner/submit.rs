//! Jobs into messages: those that share a placement travel as one array.

use std::collections::HashMap;
use std::sync::Arc;

use ipbroker_client::job::{Job, Placement, rename};
use ipbroker_client::protocol::array::{Packed, member_id};
use ipbroker_client::protocol::message::{Command, TaskRequest, types};
use ipbroker_client::protocol::resources::Request;
use ipbroker_client::protocol::zmq::Message;
use ipbroker_client::{Outgoing, Sink};
use jiff::Timestamp;

use super::files::has_files;
use super::{Options, Runner};
use crate::cli::JobArgs;
use crate::failure::Failure;

/// Members and bytes of one array message.
const ARRAY_MEMBERS: usize = 20_000;
const ARRAY_BYTES: usize = 8 << 20;

/// One submission.
pub(crate) struct Group {
    pub(crate) id: String,
    pub(crate) array: bool,
    pub(crate) submitted: Timestamp,
    /// Places of its members' slots.
    pub(crate) members: Arc<[u32]>,
}

impl Group {
    pub(crate) fn msg_id(&self, member: u64) -> String {
        if self.array {
            member_id(&self.id, member)
        } else {
            self.id.clone()
        }
    }
}

/// Everything submitted so far.
#[derive(Default)]
pub(crate) struct Submitted {
    pub(crate) groups: Vec<Group>,
    /// Message ids by the jobs' own ids.
    pub(super) ids: HashMap<String, String>,
    /// The jobs' own ids by message ids.
    names: HashMap<String, String>,
    /// Lines of jobs with ids, for a stream.
    seen: HashMap<String, u64>,
}

impl Submitted {
    /// Message ids in an error, replaced by the names that the user gave.
    pub(crate) fn rename(&self, text: &str, session: &str) -> String {
        rename(text, session, &self.names)
    }

    /// On a stream a job may depend on lines before it only.
    pub(crate) fn check_stream(&mut self, job: &Job, options: &Options) -> Result<(), String> {
        let at = format!("{}:{}", options.source, job.line);
        for (key, ids) in [
            ("after", &job.placement.after),
            ("follow", &job.placement.follow),
        ] {
            if let Some(id) = ids.iter().find(|id| !self.seen.contains_key(*id)) {
                return Err(format!(
                    "{at}: \"{key}\" names {id:?}, which is the id of no earlier line (in a file it may come later)"
                ));
            }
        }
        if let Some(id) = &job.id {
            if let Some(first) = self.seen.get(id) {
                return Err(format!("{at}: id {id:?} is already the id of line {first}"));
            }
            self.seen.insert(id.clone(), job.line);
        }
        Ok(())
    }
}

/// The scheduling metadata of a job.
pub(crate) fn metadata(
    placement: &Placement,
    options: &Options,
    ids: &HashMap<String, String>,
) -> TaskRequest {
    let defaults = &options.jobs;
    let dependency = |names: &[String]| placement.dependency(names, ids);
    let or = |own: &[String], default: &[String]| {
        if own.is_empty() {
            default.to_vec()
        } else {
            own.to_vec()
        }
    };
    TaskRequest {
        after: dependency(&placement.after),
        follow: dependency(&placement.follow),
        timeout: placement
            .timeout
            .or(defaults.timeout.map(|t| t.as_secs_f64())),
        retries: placement.retries.or(defaults.retries).unwrap_or(0),
        retry_delay: placement.retry_delay.or(defaults.retry_delay),
        max_crashes: placement.max_crashes.or(defaults.max_crashes),
        hosts: or(&placement.host, &defaults.hosts),
        prefer: placement.prefer.clone(),
        prefer_wait: placement.prefer_wait,
        tags: or(&placement.tags, &defaults.tags),
        priority: placement.priority.or(defaults.priority).unwrap_or(0),
        require: placement.require.clone(),
        resources: asked(placement, defaults),
        ack: true,
        ..TaskRequest::default()
    }
}

/// What a job needs of its host: what it says, and the defaults for what it does not.
pub(crate) fn asked(placement: &Placement, defaults: &JobArgs) -> Request {
    let mut request = defaults.request();
    request.extend(placement.resources.clone());
    // None of something is what a job has that does not name it.
    request.retain(|_, units| *units > 0.0);
    request
}

impl Runner<'_> {
    /// Submits `jobs[at]` for each of `which`; their slots begin at `base`.
    pub(crate) fn submit(
        &mut self,
        base: usize,
        jobs: &[Job],
        which: &[usize],
    ) -> Result<(), Failure> {
        let plain = Placement::default();
        // Groups keep the order in which their first jobs came.
        let mut order: Vec<Vec<usize>> = Vec::new();
        let mut groups: HashMap<String, usize> = HashMap::new();
        for &at in which {
            let placement = &jobs[at].placement;
            let key = if has_files(&jobs[at]) {
                // Its files are buffers of its own message.
                format!("#{at}")
            } else if *placement == plain {
                String::new()
            } else {
                format!("{placement:?}")
            };
            let group = *groups.entry(key).or_insert_with(|| {
                order.push(Vec::new());
                order.len() - 1
            });
            order[group].push(at);
        }
        for group in &order {
            if has_files(&jobs[group[0]]) {
                let index = base + group[0];
                if let Some(reason) = self.submit_with_files(index, &jobs[group[0]], false)? {
                    self.refuse(index, &reason)?;
                }
                continue;
            }
            let metadata = metadata(
                &jobs[group[0]].placement,
                &self.options,
                &self.submitted.ids,
            );
            if let [at] = group[..] {
                let command = self.options.command(&jobs[at]);
                self.send(base, jobs, &[at], metadata, &command, Vec::new())?;
            } else {
                self.arrays(base, jobs, group, &metadata)?;
            }
        }
        Ok(())
    }

    fn arrays(
        &mut self,
        base: usize,
        jobs: &[Job],
        group: &[usize],
        metadata: &TaskRequest,
    ) -> Result<(), Failure> {
        let cwd = self.options.cwd.clone();
        // A member can say that it wants more than the template, not that it wants nothing.
        let some_want_none = group.iter().any(|&at| jobs[at].capture == Some(0));
        let template = Command {
            cd: Some(cwd.clone()),
            capture: if some_want_none {
                0
            } else {
                self.options.capture()
            },
            ..Command::default()
        };
        let mut rest = group;
        while !rest.is_empty() {
            let mut packed = Packed::new();
            for &at in rest.iter().take(ARRAY_MEMBERS) {
                let mut command = self.options.command(&jobs[at]);
                // What the template says need not be said again.
                command.cd = command.cd.filter(|cd| *cd != cwd);
                if command.capture == template.capture {
                    command.capture = 0;
                }
                packed
                    .push_with(|blob| {
                        let packer = &mut rmp_serde::Serializer::new(blob).with_struct_map();
                        // A map with string keys into memory: it cannot fail.
                        let _ = serde::Serialize::serialize(&command, packer);
                    })
                    .map_err(|error| Failure::new(error.to_string()))?;
                if packed.bytes() >= ARRAY_BYTES {
                    break;
                }
            }
            let (now, later) = rest.split_at(packed.len());
            rest = later;
            let metadata = TaskRequest {
                array: Some(now.len() as u64),
                ..metadata.clone()
            };
            let (offsets, blob) = packed.into_buffers();
            self.send(
                base,
                jobs,
                now,
                metadata,
                &template,
                vec![Message::from(offsets), Message::from(blob)],
            )?;
        }
        Ok(())
    }

    pub(super) fn send(
        &mut self,
        base: usize,
        jobs: &[Job],
        which: &[usize],
        metadata: TaskRequest,
        content: &Command,
        buffers: Vec<Message>,
    ) -> Result<(), Failure> {
        let tag = self.submitted.groups.len() as u64;
        let submitted = Timestamp::now();
        let sink: Arc<dyn Sink> = self.events.sink.clone();
        let task = Outgoing {
            msg_type: types::COMMAND_REQUEST,
            metadata: &metadata,
            content,
            buffers,
            tag,
        };
        let id = self.client.submit(task, sink)?;
        let array = metadata.array.is_some();
        let members = which.iter().map(|at| (base + at) as u32).collect();
        let group = Group {
            id,
            array,
            submitted,
            members,
        };
        for (member, &at) in (0..).zip(which) {
            if let Some(name) = &jobs[at].id {
                let msg_id = group.msg_id(member);
                self.submitted.names.insert(msg_id.clone(), name.clone());
                self.submitted.ids.insert(name.clone(), msg_id);
            }
        }
        self.submitted.groups.push(group);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn users_read_their_own_names() {
        let names = HashMap::from([("s-1_2:14".to_owned(), "prep".to_owned())]);
        let submitted = Submitted {
            names,
            ..Submitted::default()
        };
        assert_eq!(
            submitted.rename("after all of s-1_2:14, s-1_3: gone", "s-1"),
            "after all of \"prep\", s-1_3: gone"
        );
        assert_eq!(submitted.rename("nothing here", "s-1"), "nothing here");
    }
}
