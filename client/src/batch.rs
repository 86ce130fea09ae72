//! Job lines as messages: those that share a placement travel as one array, and each has its result as it ends.

use std::collections::HashMap;
use std::sync::Arc;

use ipbroker_protocol::array::{Packed, member_id, split_id};
use ipbroker_protocol::message::{Command, TaskRequest, types};
use ipbroker_protocol::session::Session;
use ipbroker_protocol::zmq::Message;
use jiff::Timestamp;

use crate::client::{Client, Outgoing};
use crate::error::{Error, Result, TaskError};
use crate::io::{Part, Sink};
use crate::job::{Graph, Job, JobResult, Placement, rename};

/// Members and bytes of one array message.
const ARRAY_MEMBERS: usize = 20_000;
const ARRAY_BYTES: usize = 8 << 20;

/// The name of the error of a job that waits for what cannot come.
pub const IMPOSSIBLE: &str = "ImpossibleDependency";

/// One submission.
struct Group {
    /// Empty: it was not sent.
    id: String,
    array: bool,
    submitted: Timestamp,
    /// Places of its members among the jobs.
    members: Box<[u32]>,
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
    /// As long as something may be submitted: who keeps a batch for its results does not keep the connection open.
    client: Option<Client>,
    session: Arc<Session>,
    sink: Arc<dyn Sink>,
    tag: u64,
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
        if let Some(job) = jobs.iter().find(|job| job.has_files()) {
            return Err(Error::Job(format!(
                "jobs:{}: \"put\" and \"get\" are for `ipclient run`; nothing was submitted",
                job.line
            )));
        }
        let mut batch = Self::new(client, sink.clone(), tag);
        let template = Command {
            cd: Some(cwd.to_owned()),
            ..Command::default()
        };
        for level in &graph.levels {
            for group in by_placement(jobs, level) {
                let placement = &jobs[group[0]].placement;
                if let Some(why) = placement.impossible(&batch.ids) {
                    batch.fail(0, jobs, &group, IMPOSSIBLE, &why);
                    continue;
                }
                let request = placement.request(&batch.ids);
                batch.add(0, jobs, &group, request, &template, |job| job.command(cwd))?;
            }
        }
        batch.client = None;
        Ok(batch)
    }

    /// Nothing yet: for [`Batch::add`].
    pub fn new(client: &Client, sink: Arc<dyn Sink>, tag: u64) -> Self {
        Self {
            client: Some(client.clone()),
            session: client.session().clone(),
            sink,
            tag,
            groups: Vec::new(),
            ids: HashMap::new(),
            names: HashMap::new(),
        }
    }

    /// Submits `jobs[at]` for each of `which`, as few messages with these metadata; their results have places from `base`
    /// on. Directory and capture of `template` are those of members that say nothing else.
    /// Those that are larger than what the controller takes, and those that wait for what was not sent, fail at once.
    ///
    /// # Errors
    /// [`Error::Closed`].
    pub fn add(
        &mut self,
        base: usize,
        jobs: &[Job],
        which: &[usize],
        metadata: TaskRequest,
        template: &Command,
        command: impl Fn(&Job) -> Command,
    ) -> Result<()> {
        let client = self.client.as_ref().ok_or(Error::Closed)?;
        let most = client.array_bytes(ARRAY_BYTES);
        let mut rest = which;
        let mut member = Vec::new();
        while let [first, ..] = rest {
            let mut packed = Packed::new();
            for &at in rest.iter().take(ARRAY_MEMBERS) {
                let mut command = command(&jobs[at]);
                // What the template says need not be said again.
                if command.cd == template.cd {
                    command.cd = None;
                }
                if command.capture == template.capture {
                    command.capture = 0;
                }
                member.clear();
                let packer = &mut rmp_serde::Serializer::new(&mut member).with_struct_map();
                // A map with string keys into memory: it cannot fail.
                let _ = serde::Serialize::serialize(&command, packer);
                if !packed.is_empty() && packed.bytes() + member.len() > most {
                    break;
                }
                packed.push(&member)?;
            }
            let (now, later) = rest.split_at(packed.len());
            rest = later;
            let sent = if now.len() == 1 {
                let command = command(&jobs[*first]);
                self.send(base, jobs, now, &metadata, &command, Vec::new())
            } else {
                let metadata = TaskRequest {
                    array: Some(now.len() as u64),
                    ..metadata.clone()
                };
                let (offsets, blob) = packed.into_buffers();
                let buffers = vec![Message::from(offsets), Message::from(blob)];
                self.send(base, jobs, now, &metadata, template, buffers)
            };
            match sent {
                Err(error @ Error::TooLarge { .. }) => {
                    self.fail(base, jobs, now, "TooLarge", &error.to_string());
                }
                sent => sent?,
            }
        }
        Ok(())
    }

    /// Fails `jobs[at]` for each of `which` unsent.
    pub fn fail(&mut self, base: usize, jobs: &[Job], which: &[usize], ename: &str, evalue: &str) {
        let tag = self.tag + self.groups.len() as u64;
        which
            .iter()
            .filter_map(|&at| jobs[at].id.as_deref())
            .for_each(|name| self.unsent(name));
        self.groups.push(Group {
            id: String::new(),
            array: true,
            submitted: self.session.now(),
            members: which.iter().map(|at| (base + at) as u32).collect(),
        });
        let error = TaskError {
            ename: ename.to_owned(),
            evalue: evalue.to_owned(),
            ..TaskError::default()
        };
        let part = Part {
            lo: 0,
            hi: which.len() as u64,
            outcome: Err(Arc::new(error)),
        };
        self.sink.deliver(tag, part);
        self.sink.flush();
    }

    /// The job of this id is not sent: what waits for its success can never run.
    pub fn unsent(&mut self, name: &str) {
        self.ids.entry(name.to_owned()).or_default();
    }

    /// Submits `jobs[at]` for each of `which` as one message: an array, if its metadata say so.
    ///
    /// # Errors
    /// [`Error::Closed`], [`Error::TooLarge`].
    pub fn send(
        &mut self,
        base: usize,
        jobs: &[Job],
        which: &[usize],
        metadata: &TaskRequest,
        content: &Command,
        buffers: Vec<Message>,
    ) -> Result<()> {
        let client = self.client.as_ref().ok_or(Error::Closed)?;
        let submitted = self.session.now();
        let task = Outgoing {
            msg_type: types::COMMAND_REQUEST,
            metadata,
            content,
            buffers,
            tag: self.tag + self.groups.len() as u64,
        };
        let group = Group {
            id: client.submit(task, self.sink.clone())?,
            array: metadata.array.is_some(),
            submitted,
            members: which.iter().map(|at| (base + at) as u32).collect(),
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

    /// Message ids by the jobs' own ids; empty for those that were not sent.
    pub fn ids(&self) -> &HashMap<String, String> {
        &self.ids
    }

    /// The place of the job with this id: of a message, or of a member of one.
    pub fn place(&self, msg_id: &str) -> Option<usize> {
        let (id, member) = split_id(msg_id);
        // What prints was probably submitted lately.
        let group = self.groups.iter().rev().find(|group| group.id == id)?;
        let at = usize::try_from(member.unwrap_or(0)).ok()?;
        group.members.get(at).map(|place| *place as usize)
    }

    /// Ids of all messages.
    pub fn msg_ids(&self) -> Vec<String> {
        let sent = self.groups.iter().filter(|group| !group.id.is_empty());
        sent.map(|group| group.id.clone()).collect()
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
                    Err(error) => (JobResult::from_error(error), self.session.now()),
                };
                let mut result = result.with(group.msg_id(member), group.submitted, received);
                if group.id.is_empty() {
                    (result.msg_id, result.submitted) = (None, None);
                }
                if let Some(error) = &mut result.error {
                    *error = rename(error, &self.session.id, &self.names);
                }
                Some((at as usize, result))
            })
            .collect()
    }
}

/// `which` of the jobs, together where their placements are equal, in the order in which the first of each came. A job
/// with files is alone: they are buffers of its own message.
pub fn by_placement(jobs: &[Job], which: &[usize]) -> Vec<Vec<usize>> {
    let plain = Placement::default();
    let mut groups: Vec<Vec<usize>> = Vec::new();
    let mut known: HashMap<String, usize> = HashMap::new();
    for &at in which {
        let job = &jobs[at];
        let key = if job.has_files() {
            format!("#{at}")
        } else if job.placement == plain {
            String::new()
        } else {
            format!("{:?}", job.placement)
        };
        let group = *known.entry(key).or_insert_with(|| {
            groups.push(Vec::new());
            groups.len() - 1
        });
        groups[group].push(at);
    }
    groups
}
