//! Tasks for engines that the caller chooses.

use std::collections::BTreeMap;
use std::sync::Arc;

use ipbroker_protocol::message::{Command, CommandResult, FunctionCall, TaskRequest, types};
use ipbroker_protocol::zmq::Message;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::json;

use super::load_balanced::pack;
use crate::client::{Client, Outgoing};
use crate::error::{Error, Result};
use crate::result::{AsyncMapResult, AsyncResult, TaskSet};

/// Names of the functions by which every engine of ours keeps values.
mod builtin {
    /// Argument: a map of names and values.
    pub(super) const PUSH: &str = "__push__";
    /// Argument: a name; result: its value.
    pub(super) const PULL: &str = "__pull__";
}

/// A view of chosen engines: each call runs on all of them.
///
/// ```no_run
/// # let client = ipbroker_client::Client::builder().connect()?;
/// let everywhere = client.direct_view();
/// let answers: Vec<String> = everywhere.apply("echo", &"hello")?.get()?;      // one for each engine
/// let on_two = client.direct_view_of(&[0, 1])?;
/// # let _ = (answers, on_two);
/// # Ok::<(), ipbroker_client::Error>(())
/// ```
#[derive(Debug, Clone)]
pub struct DirectView {
    client: Client,
    /// Number and uuid.
    targets: Vec<(u32, String)>,
}

impl DirectView {
    pub(crate) fn new(client: Client, targets: Vec<(u32, String)>) -> Self {
        Self { client, targets }
    }

    /// Numbers of its engines.
    pub fn ids(&self) -> Vec<u32> {
        self.targets.iter().map(|(id, _)| *id).collect()
    }

    fn some(&self) -> Result<()> {
        if self.targets.is_empty() {
            Err(Error::NoEngines(": start some with `ipengine`".into()))
        } else {
            Ok(())
        }
    }

    /// One task on each engine.
    fn each<R, C: Serialize>(
        &self,
        msg_type: &str,
        content: &C,
        buffers: impl FnMut(usize) -> Result<Vec<Message>>,
    ) -> Result<AsyncMapResult<R>> {
        self.some()?;
        let buffers = (0..self.targets.len()).map(buffers);
        self.in_turn(msg_type, content, buffers)
    }

    /// A task for each of these buffers, in turn on one engine after the other.
    fn in_turn<R, C: Serialize>(
        &self,
        msg_type: &str,
        content: &C,
        buffers: impl Iterator<Item = Result<Vec<Message>>>,
    ) -> Result<AsyncMapResult<R>> {
        let set = Arc::new(TaskSet::default());
        let metadata = TaskRequest::default();
        for (buffers, (_, uuid)) in buffers.zip(self.targets.iter().cycle()) {
            let tag = set.expect(1, false);
            let task = Outgoing {
                msg_type,
                metadata: &metadata,
                content,
                buffers: buffers?,
                tag,
            };
            let id = self.client.submit_direct(uuid, task, set.clone())?;
            set.name(tag, id);
        }
        Ok(AsyncResult::new(self.client.clone(), set))
    }

    /// Calls a function on every engine of the view; results in the order of [`DirectView::ids`].
    ///
    /// # Errors
    /// [`Error::NoEngines`], [`Error::Encode`], [`Error::Closed`].
    pub fn apply<R: DeserializeOwned>(
        &self,
        name: &str,
        argument: &(impl Serialize + ?Sized),
    ) -> Result<AsyncMapResult<R>> {
        let packed = pack(argument)?;
        self.each(types::FUNCTION_REQUEST, &FunctionCall::named(name), |_| {
            Ok(vec![Message::from(&packed[..])])
        })
    }

    /// Runs a command on every engine of the view.
    ///
    /// # Errors
    /// As [`DirectView::apply`].
    pub fn command(&self, command: &Command) -> Result<AsyncMapResult<CommandResult>> {
        self.each(types::COMMAND_REQUEST, command, |_| Ok(Vec::new()))
    }

    /// Calls a function once for each argument, in turn on one engine after the other.
    ///
    /// # Errors
    /// As [`DirectView::apply`].
    pub fn map<R: DeserializeOwned, A: Serialize>(
        &self,
        name: &str,
        arguments: impl IntoIterator<Item = A>,
    ) -> Result<AsyncMapResult<R>> {
        self.some()?;
        let pack = |argument| Ok(vec![Message::from(pack(&argument)?)]);
        let buffers = arguments.into_iter().map(pack);
        self.in_turn(types::FUNCTION_REQUEST, &FunctionCall::named(name), buffers)
    }

    /// Keeps a value on every engine, under a name.
    ///
    /// # Errors
    /// As [`DirectView::apply`].
    pub fn push<T: Serialize>(&self, name: &str, value: &T) -> Result<AsyncMapResult<()>> {
        self.apply(builtin::PUSH, &BTreeMap::from([(name, value)]))
    }

    /// The value of that name on every engine.
    ///
    /// # Errors
    /// As [`DirectView::apply`].
    pub fn pull<R: DeserializeOwned>(&self, name: &str) -> Result<AsyncMapResult<R>> {
        self.apply(builtin::PULL, name)
    }

    /// Cuts a list into as many parts as there are engines and keeps one on each.
    ///
    /// # Errors
    /// As [`DirectView::apply`].
    pub fn scatter<T: Serialize>(&self, name: &str, values: &[T]) -> Result<AsyncMapResult<()>> {
        let count = self.targets.len();
        self.each(
            types::FUNCTION_REQUEST,
            &FunctionCall::named(builtin::PUSH),
            |at| {
                let part = &values[cut(values.len(), count, at)..cut(values.len(), count, at + 1)];
                Ok(vec![Message::from(pack(&BTreeMap::from([(name, part)]))?)])
            },
        )
    }

    /// The parts of a scattered list, put together again; waits for them.
    ///
    /// # Errors
    /// As [`DirectView::apply`], and [`Error::Task`] where an engine has no such list.
    pub fn gather<R: DeserializeOwned>(&self, name: &str) -> Result<Vec<R>> {
        let parts: AsyncMapResult<Vec<R>> = self.pull(name)?;
        Ok(parts.get()?.into_iter().flatten().collect())
    }

    /// As [`DirectView::apply`], by one message that the controller multiplies: for large arguments and many engines.
    ///
    /// # Errors
    /// As [`DirectView::apply`].
    pub fn broadcast<R: DeserializeOwned>(
        &self,
        name: &str,
        argument: &(impl Serialize + ?Sized),
    ) -> Result<AsyncMapResult<R>> {
        self.some()?;
        let set = Arc::new(TaskSet::default());
        let tag = set.expect(self.targets.len() as u64, false);
        let targets: Vec<(String, u32)> = self
            .targets
            .iter()
            .map(|(id, uuid)| (uuid.clone(), *id))
            .collect();
        let metadata = json!({ "is_broadcast": true, "is_coalescing": false, "targets": &targets });
        let id = self.client.submit_broadcast(
            targets.iter().map(|(uuid, _)| uuid.clone()).collect(),
            (
                types::FUNCTION_REQUEST,
                &metadata,
                &FunctionCall::named(name),
            ),
            vec![Message::from(pack(argument)?)],
            set.clone(),
        )?;
        set.name(tag, id);
        Ok(AsyncResult::new(self.client.clone(), set))
    }

    /// Tells the engines of the view to end.
    ///
    /// # Errors
    /// [`Error::QueryTimeout`] when one does not answer.
    pub fn shutdown(&self) -> Result<()> {
        for (_, uuid) in &self.targets {
            self.client.control(
                uuid,
                types::SHUTDOWN_REQUEST,
                &BTreeMap::from([("restart", false)]),
            )?;
        }
        Ok(())
    }
}

/// Where part `at` of `count` begins: sizes differ by one at most.
fn cut(len: usize, count: usize, at: usize) -> usize {
    let (size, more) = (len / count, len % count);
    at * size + at.min(more)
}

#[cfg(test)]
mod tests {
    use super::cut;

    #[test]
    fn parts_are_even_and_whole() {
        for len in 0..30 {
            for count in 1..9 {
                let sizes: Vec<usize> = (0..count)
                    .map(|at| cut(len, count, at + 1) - cut(len, count, at))
                    .collect();
                assert_eq!(sizes.iter().sum::<usize>(), len);
                assert!(sizes.iter().max().unwrap() - sizes.iter().min().unwrap() <= 1);
            }
        }
    }
}
