//! Job lines as a library's caller submits them: all at once; each has its result as it ends.

use std::collections::HashMap;
use std::sync::Arc;

use ipbroker_protocol::array::{Packed, member_id};
use ipbroker_protocol::message::{Command, TaskRequest, types};
use ipbroker_protocol::zmq::Message;
use jiff::Timestamp;

use crate::client::{Client, Outgoing};
use crate::error::{Error, Result};
use crate::io::{Part, Sink};
use crate::job::{Graph, Job, JobResult, Placement, rename};

/// Members and bytes of one array message.
const ARRAY_MEMBERS: usize = 20_000;
const ARRAY_BYTES: usize = 8 << 20;

/// One submission.
struct Group {
    id: String,
    array: bool,
    submitted: Timestamp,
    /// Places of its members among the jobs.
    members: Vec<usize>,
}

impl Group {
    fn msg_id(&self, member: u64) -> String {
        if self.array {
            member_id(&self.id, member)
        } else {
            self.id.clone()
        }
    }
}

/// Jobs that are submitted together. Those that share a placement travel as one array; dependencies are theirs alone.
pub struct Batch {
    client: Client,
    cwd: String,
    groups: Vec<Group>,
    /// Message ids by the jobs' own ids, and the other way round.
    ids: HashMap<String, String>,
    names: HashMap<String, String>,
}

impl Batch {
    /// Submits jobs; relative directories begin at `cwd`. `sink` hears of tags from `tag` on: [`Batch::results`] reads what
    /// it is given, tags less `tag`. Files of jobs (`put`, `get`) do not travel: such a job is refused.
    ///
    /// # Errors
    /// Unknown ids and cycles, before anything is submitted; [`Error::Closed`].
    pub fn submit(
        client: &Client,
        cwd: &str,
        jobs: &[Job],
        sink: &Arc<dyn Sink>,
        tag: u64,
    ) -> Result<Self> {
        let graph = Graph::new("jobs", jobs)
            .map_err(|error| Error::Job(format!("{error}; nothing was submitted")))?;
        if let Some(job) = jobs
            .iter()
            .find(|job| !job.put.is_empty() || !job.get.is_empty())
        {
            return Err(Error::Job(format!(
                "jobs:{}: \"put\" and \"get\" are for `ipclient run`; nothing was submitted",
                job.line
            )));
        }
        let mut batch = Self {
            client: client.clone(),
            cwd: cwd.to_owned(),
            groups: Vec::new(),
            ids: HashMap::new(),
            names: HashMap::new(),
        };
        for level in &graph.levels {
            batch.level(jobs, level, sink, tag)?;
        }
        Ok(batch)
    }

    fn level(
        &mut self,
        jobs: &[Job],
        which: &[usize],
        sink: &Arc<dyn Sink>,
        tag: u64,
    ) -> Result<()> {
        // Groups keep the order in which their first jobs came.
        let mut order: Vec<(&Placement, Vec<usize>)> = Vec::new();
        let mut known: HashMap<String, usize> = HashMap::new();
        for &at in which {
            let placement = &jobs[at].placement;
            let group = *known.entry(format!("{placement:?}")).or_insert_with(|| {
                order.push((placement, Vec::new()));
                order.len() - 1
            });
            order[group].1.push(at);
        }
        for (placement, members) in &order {
            let metadata = self.metadata(placement);
            if let [at] = members[..] {
                let command = jobs[at].command(&self.cwd);
                self.send(jobs, &[at], &metadata, &command, Vec::new(), sink, tag)?;
                continue;
            }
            let mut rest = &members[..];
            while !rest.is_empty() {
                let template = Command {
                    cd: Some(self.cwd.clone()),
                    ..Command::default()
                };
                let mut packed = Packed::new();
                for &at in rest.iter().take(ARRAY_MEMBERS) {
                    let mut command = jobs[at].command(&self.cwd);
                    // What the template says need not be said again.
                    command.cd = command.cd.filter(|cd| *cd != self.cwd);
                    packed.push_with(|blob| {
                        let packer = &mut rmp_serde::Serializer::new(blob).with_struct_map();
                        // A map with string keys into memory: it cannot fail.
                        let _ = serde::Serialize::serialize(&command, packer);
                    })?;
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
                let buffers = vec![Message::from(offsets), Message::from(blob)];
                self.send(jobs, now, &metadata, &template, buffers, sink, tag)?;
            }
        }
        Ok(())
    }

    #[expect(
        clippy::too_many_arguments,
        reason = "one message, and whom to tell of it"
    )]
    fn send(
        &mut self,
        jobs: &[Job],
        which: &[usize],
        metadata: &TaskRequest,
        content: &Command,
        buffers: Vec<Message>,
        sink: &Arc<dyn Sink>,
        tag: u64,
    ) -> Result<()> {
        let submitted = Timestamp::now();
        let task = Outgoing {
            msg_type: types::COMMAND_REQUEST,
            metadata,
            content,
            buffers,
            tag: tag + self.groups.len() as u64,
        };
        let group = Group {
            id: self.client.submit(task, sink.clone())?,
            array: metadata.array.is_some(),
            submitted,
            members: which.to_vec(),
        };
        for (member, &at) in (0..).zip(which) {
            if let Some(name) = &jobs[at].id {
                let msg_id = group.msg_id(member);
                self.names.insert(msg_id.clone(), name.clone());
                self.ids.insert(name.clone(), msg_id);
            }
        }
        self.groups.push(group);
        Ok(())
    }

    fn metadata(&self, placement: &Placement) -> TaskRequest {
        let dependency = |names: &[String]| placement.dependency(names, &self.ids);
        TaskRequest {
            after: dependency(&placement.after),
            follow: dependency(&placement.follow),
            timeout: placement.timeout,
            retries: placement.retries.unwrap_or(0),
            retry_delay: placement.retry_delay,
            max_crashes: placement.max_crashes,
            hosts: placement.host.clone(),
            prefer: placement.prefer.clone(),
            prefer_wait: placement.prefer_wait,
            tags: placement.tags.clone(),
            priority: placement.priority.unwrap_or(0),
            require: placement.require.clone(),
            resources: placement.resources.clone(),
            ack: true,
            ..TaskRequest::default()
        }
    }

    /// Ids of all messages.
    pub fn msg_ids(&self) -> Vec<String> {
        self.groups.iter().map(|group| group.id.clone()).collect()
    }

    /// The results of jobs that have ended, by their places; `group` is the tag less that of [`Batch::submit`].
    pub fn results(&self, group: u64, part: &Part) -> Vec<(usize, JobResult)> {
        let Some(group) = self.groups.get(group as usize) else {
            return Vec::new();
        };
        (part.lo..part.hi)
            .filter_map(|member| {
                let at = *group.members.get(member as usize)?;
                let (result, received) = match &part.outcome {
                    Ok(reply) => (
                        JobResult::from_command(reply.command(member)),
                        reply.received,
                    ),
                    Err(error) => (JobResult::from_error(error), Timestamp::now()),
                };
                let mut result = result.with(group.msg_id(member), group.submitted, received);
                if let Some(error) = &mut result.error {
                    *error = rename(error, self.client.session_id(), &self.names);
                }
                Some((at, result))
            })
            .collect()
    }
}
