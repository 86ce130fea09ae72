//! Tasks that run wherever there is room.

use std::sync::Arc;

use ipbroker_protocol::array::Packed;
use ipbroker_protocol::dependency::Dependency;
use ipbroker_protocol::message::{
    Command, CommandResult, FunctionCall, Require, TaskRequest, types,
};
use ipbroker_protocol::resources::{CPUS, GPUS, MEMORY, Request};
use ipbroker_protocol::zmq::Message;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::imap::Imap;
use crate::client::{Client, Outgoing};
use crate::error::{Error, Result};
use crate::result::{AsyncMapResult, AsyncResult, Many, One, TaskSet};

/// Values of one array message; a longer list goes as several.
const ARRAY_BYTES: usize = 64 << 20;
/// Members of one array message.
const ARRAY_MEMBERS: usize = 4 << 20;

/// A view of the whole cluster through the scheduler. Clones are independent: set options on one of them.
///
/// ```no_run
/// # let client = ipbroker_client::Client::builder().connect()?;
/// let view = client.load_balanced_view();
/// let first = view.apply::<f64>("root", &2.0)?;
/// // On a host with a GPU to spare, once the first has ended well.
/// let second = view.clone().after(first.msg_ids()).gpus(1).apply::<f64>("root", &3.0)?;
/// let roots: Vec<f64> = view.retries(2).map("root", [4.0, 9.0])?.get()?;
/// # let _ = (second, roots);
/// # Ok::<(), ipbroker_client::Error>(())
/// ```
#[derive(Debug, Clone)]
pub struct LoadBalancedView {
    client: Client,
    options: TaskRequest,
}

impl LoadBalancedView {
    pub(crate) fn new(client: Client) -> Self {
        Self {
            client,
            options: TaskRequest {
                ack: true,
                ..TaskRequest::default()
            },
        }
    }

    /// Tasks wait until these have ended well.
    #[must_use]
    pub fn after(self, ids: impl IntoIterator<Item = impl Into<String>>) -> Self {
        let ids = ids.into_iter().map(Into::into).collect();
        self.after_dependency(Dependency {
            ids,
            ..Dependency::default()
        })
    }

    /// Tasks wait for this.
    #[must_use]
    pub fn after_dependency(mut self, after: Dependency) -> Self {
        self.options.after = after;
        self
    }

    /// Tasks run on the engine that ran these.
    #[must_use]
    pub fn follow(self, ids: impl IntoIterator<Item = impl Into<String>>) -> Self {
        let ids = ids.into_iter().map(Into::into).collect();
        self.follow_dependency(Dependency {
            ids,
            ..Dependency::default()
        })
    }

    /// Tasks run where this says.
    #[must_use]
    pub fn follow_dependency(mut self, follow: Dependency) -> Self {
        self.options.follow = follow;
        self
    }

    /// How often a failed task is tried again.
    #[must_use]
    pub fn retries(mut self, retries: u32) -> Self {
        self.options.retries = retries;
        self
    }

    /// Seconds before the first retry; twice as long before each further one, an hour at most.
    #[must_use]
    pub fn retry_delay(mut self, seconds: f64) -> Self {
        self.options.retry_delay = Some(seconds);
        self
    }

    /// How often a task is run again whose engine was lost, without using up retries.
    #[must_use]
    pub fn max_crashes(mut self, crashes: u32) -> Self {
        self.options.max_crashes = Some(crashes);
        self
    }

    /// Seconds that a task may wait, for other tasks or for an engine; then it fails with `TaskTimeout`.
    #[must_use]
    pub fn timeout(mut self, seconds: f64) -> Self {
        self.options.timeout = Some(seconds);
        self
    }

    /// Only these hosts (any of their names).
    #[must_use]
    pub fn hosts(mut self, hosts: impl IntoIterator<Item = impl Into<String>>) -> Self {
        self.options.hosts = hosts.into_iter().map(Into::into).collect();
        self
    }

    /// These hosts or tags rather than others, waiting up to `wait` seconds for them.
    #[must_use]
    pub fn prefer(
        mut self,
        places: impl IntoIterator<Item = impl Into<String>>,
        wait: Option<f64>,
    ) -> Self {
        self.options.prefer = places.into_iter().map(Into::into).collect();
        self.options.prefer_wait = wait;
        self
    }

    /// Only engines with all of these tags.
    #[must_use]
    pub fn tags(mut self, tags: impl IntoIterator<Item = impl Into<String>>) -> Self {
        self.options.tags = tags.into_iter().map(Into::into).collect();
        self
    }

    /// Only these engines, by uuid.
    #[must_use]
    pub fn targets(mut self, uuids: impl IntoIterator<Item = impl Into<String>>) -> Self {
        self.options.targets = uuids.into_iter().map(Into::into).collect();
        self
    }

    /// Higher runs earlier, among this client's tasks.
    #[must_use]
    pub fn priority(mut self, priority: i32) -> Self {
        self.options.priority = priority;
        self
    }

    /// Cpus that each task needs of its host; fractions are allowed. One that asks for nothing counts as one.
    #[must_use]
    pub fn cpus(self, cpus: f64) -> Self {
        self.resource(CPUS, cpus)
    }

    /// GPUs that each task needs; a command sees them in `CUDA_VISIBLE_DEVICES`.
    #[must_use]
    pub fn gpus(self, gpus: u32) -> Self {
        self.resource(GPUS, gpus.into())
    }

    /// Bytes of memory that each task needs. A command that uses more is ended.
    #[must_use]
    pub fn memory(self, bytes: u64) -> Self {
        self.resource(MEMORY, bytes as f64)
    }

    /// How much each task needs of a resource that engines were given by `--resource`. What makes no sense is refused by
    /// the controller.
    #[must_use]
    pub fn resource(mut self, name: &str, amount: f64) -> Self {
        self.options.resources.insert(name.to_owned(), amount);
        self
    }

    /// Alternatives of what each task needs, in order of preference: it has the first that can be had. What one of them does
    /// not name is as said by [`Self::cpus`] and the others.
    #[must_use]
    pub fn any(mut self, alternatives: impl IntoIterator<Item = Request>) -> Self {
        self.options.any = alternatives.into_iter().collect();
        self
    }

    /// Whole hosts that each task holds while it runs; a command finds the names of all in the file that `IPBROKER_NODEFILE`
    /// names. It asks for no resources then, and no host by name.
    #[must_use]
    pub fn nodes(mut self, nodes: u32) -> Self {
        self.options.nodes = nodes;
        self
    }

    /// What the engine's host must have.
    #[must_use]
    pub fn require(mut self, require: Require) -> Self {
        self.options.require = require;
        self
    }

    /// Tasks outlive this client.
    #[must_use]
    pub fn detach(mut self, detach: bool) -> Self {
        self.options.detach = detach;
        self
    }

    /// Whether the controller acknowledges submissions, and unacknowledged ones are sent again to a restarted one (default).
    #[must_use]
    pub fn acknowledged(mut self, ack: bool) -> Self {
        self.options.ack = ack;
        self
    }

    /// Calls a function of the engines by name.
    ///
    /// # Errors
    /// [`Error::Encode`], [`Error::Closed`].
    pub fn apply<R: DeserializeOwned>(
        &self,
        name: &str,
        argument: &(impl Serialize + ?Sized),
    ) -> Result<AsyncResult<R, One>> {
        let set = Arc::new(TaskSet::default());
        let content = FunctionCall::named(name);
        let buffers = vec![Message::from(pack(argument)?)];
        let options = &self.options;
        self.send(&set, types::FUNCTION_REQUEST, options, &content, buffers)?;
        Ok(AsyncResult::new(self.client.clone(), set))
    }

    /// Calls a function once for each argument. The calls travel as arrays: one message for many.
    ///
    /// # Errors
    /// [`Error::Encode`], [`Error::Closed`].
    pub fn map<R: DeserializeOwned, A: Serialize>(
        &self,
        name: &str,
        arguments: impl IntoIterator<Item = A>,
    ) -> Result<AsyncMapResult<R>> {
        let content = FunctionCall::named(name);
        self.arrays(types::FUNCTION_REQUEST, &content, arguments)
    }

    /// Calls a function once for each number from 0 to `count`: the number is the argument, and nothing else travels.
    ///
    /// # Errors
    /// [`Error::Closed`].
    pub fn map_count<R: DeserializeOwned>(
        &self,
        name: &str,
        count: u64,
    ) -> Result<AsyncMapResult<R>> {
        let set = Arc::new(TaskSet::default());
        if count > 0 {
            let content = FunctionCall::named(name);
            self.array(&set, types::FUNCTION_REQUEST, &content, count, Vec::new())?;
        }
        Ok(AsyncResult::<R, Many>::new(self.client.clone(), set))
    }

    /// Calls a function once for each chunk of `size` arguments; it takes and returns lists.
    ///
    /// # Errors
    /// [`Error::Encode`], [`Error::Closed`].
    pub fn map_chunks<R: DeserializeOwned, A: Serialize>(
        &self,
        name: &str,
        arguments: impl IntoIterator<Item = A>,
        size: usize,
    ) -> Result<AsyncMapResult<Vec<R>>> {
        let size = size.max(1);
        let mut arguments = arguments.into_iter();
        self.map(
            name,
            std::iter::from_fn(|| {
                let chunk: Vec<A> = arguments.by_ref().take(size).collect();
                (!chunk.is_empty()).then_some(chunk)
            }),
        )
    }

    /// Calls a function for each argument, with at most `in_flight` calls on their way: for arguments without an end.
    ///
    /// # Errors
    /// [`Error::Closed`], [`Error::Encode`] for the first argument. What happens later ends the results, behind those of the
    /// calls before it.
    pub fn imap<R: DeserializeOwned, A: Serialize, I: IntoIterator<Item = A>>(
        &self,
        name: &str,
        arguments: I,
        in_flight: usize,
    ) -> Result<Imap<R, I::IntoIter>> {
        Imap::new(
            self.client.clone(),
            &self.options,
            name,
            arguments.into_iter(),
            in_flight,
        )
    }

    /// Runs a shell command.
    ///
    /// # Errors
    /// [`Error::Closed`].
    pub fn command(&self, command: &Command) -> Result<AsyncResult<CommandResult, One>> {
        let set = Arc::new(TaskSet::default());
        let metadata = self.options_of(command);
        let msg_type = types::COMMAND_REQUEST;
        self.send(&set, msg_type, &metadata, command, Vec::new())?;
        Ok(AsyncResult::new(self.client.clone(), set))
    }

    /// Runs many shell commands. Each may replace any key of `template`. Where they may go is the template's to say: of a
    /// command's own `limit.time` and `require` the engine alone hears.
    ///
    /// # Errors
    /// [`Error::Encode`], [`Error::Closed`].
    pub fn commands<A: Serialize>(
        &self,
        template: &Command,
        commands: impl IntoIterator<Item = A>,
    ) -> Result<AsyncMapResult<CommandResult>> {
        let view = Self {
            client: self.client.clone(),
            options: self.options_of(template),
        };
        view.arrays(types::COMMAND_REQUEST, template, commands)
    }

    /// The options of a command: what it says itself is for the scheduler, too.
    fn options_of(&self, command: &Command) -> TaskRequest {
        let mut metadata = self.options.clone();
        metadata.time = command.limit.time;
        if metadata.require.is_empty() {
            metadata.require = command.require.clone();
        }
        metadata
    }

    fn arrays<R: DeserializeOwned, A: Serialize, C: Serialize>(
        &self,
        msg_type: &str,
        content: &C,
        members: impl IntoIterator<Item = A>,
    ) -> Result<AsyncMapResult<R>> {
        let set = Arc::new(TaskSet::default());
        let most = self.client.array_bytes(ARRAY_BYTES);
        let mut packed = Packed::new();
        let mut value = Vec::new();
        for member in members {
            value.clear();
            pack_into(&member, &mut value)?;
            if packed.len() >= ARRAY_MEMBERS
                || (!packed.is_empty() && packed.bytes() + value.len() > most)
            {
                let packed = std::mem::take(&mut packed);
                self.packed_array(&set, msg_type, content, packed)?;
            }
            packed.push(&value)?;
        }
        if !packed.is_empty() {
            self.packed_array(&set, msg_type, content, packed)?;
        }
        Ok(AsyncResult::new(self.client.clone(), set))
    }

    fn packed_array<C: Serialize>(
        &self,
        set: &Arc<TaskSet>,
        msg_type: &str,
        content: &C,
        packed: Packed,
    ) -> Result<()> {
        let count = packed.len() as u64;
        let (offsets, blob) = packed.into_buffers();
        let buffers = vec![Message::from(offsets), Message::from(blob)];
        self.array(set, msg_type, content, count, buffers)
    }

    fn array<C: Serialize>(
        &self,
        set: &Arc<TaskSet>,
        msg_type: &str,
        content: &C,
        count: u64,
        buffers: Vec<Message>,
    ) -> Result<()> {
        let metadata = TaskRequest {
            array: Some(count),
            ..self.options.clone()
        };
        self.send(set, msg_type, &metadata, content, buffers)
    }

    fn send<C: Serialize>(
        &self,
        set: &Arc<TaskSet>,
        msg_type: &str,
        metadata: &TaskRequest,
        content: &C,
        buffers: Vec<Message>,
    ) -> Result<()> {
        let tag = set.expect(metadata.array.unwrap_or(1), metadata.array.is_some());
        let task = Outgoing {
            msg_type,
            metadata,
            content,
            buffers,
            tag,
        };
        let id = self.client.submit(task, set.clone())?;
        set.name(tag, id);
        Ok(())
    }
}

/// Packs an argument as engines read it.
pub(crate) fn pack<T: Serialize + ?Sized>(value: &T) -> Result<Vec<u8>> {
    rmp_serde::to_vec_named(value).map_err(|error| Error::Encode(error.to_string()))
}

fn pack_into<T: Serialize + ?Sized>(value: &T, blob: &mut Vec<u8>) -> Result<()> {
    value
        .serialize(&mut rmp_serde::Serializer::new(blob).with_struct_map())
        .map_err(|error| Error::Encode(error.to_string()))
}
