//! The connection to a cluster, as Python holds it.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use ipbroker_client::job::parse_line;
use ipbroker_client::protocol::array::Packed;
use ipbroker_client::protocol::message::{FunctionCall, types};
use ipbroker_client::protocol::zmq::Message;
use ipbroker_client::{Batch, Client, Error, Notice, Part, Sink, Template};
use jiff::tz::TimeZone;
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict, PyList, PySlice, PyTuple};
use serde::Serialize;
use serde_bytes::ByteBuf;

use crate::error::raise;
use crate::options;
use crate::queue::{Queue, Tags};
use crate::results;

/// Bytes that are copied at once: few enough to stay in the processor's cache on their way.
const BLOCK: usize = 256 << 10;

/// A callable with a view's options, packed: what its calls have in common.
#[pyclass(frozen, module = "ipbroker._native")]
pub(crate) struct Call {
    template: Template,
}

/// A connection to a controller.
#[pyclass(frozen, module = "ipbroker._native", name = "Client")]
pub(crate) struct NativeClient {
    client: Mutex<Option<Client>>,
    queue: Arc<Queue>,
    /// Job lines that are on their way, by number.
    batches: Mutex<HashMap<u64, Arc<Running>>>,
    session: String,
    connection_file: PathBuf,
    /// The process that connected: a child that was forked has the memory, but not the thread.
    pid: u32,
}

/// Job lines that were submitted together.
struct Running {
    batch: Batch,
    left: AtomicUsize,
}

/// Tags of job lines: this bit, the number that Python knows them by, and the place of their message.
const JOBS: u64 = 1 << 63;
const JOBS_SHIFT: u32 = 32;

/// The bytes of a memoryview. (The stable ABI has no buffers before Python 3.11.)
fn bytes_of(memory: &Bound<'_, PyAny>) -> PyResult<Vec<u8>> {
    let (py, size) = (memory.py(), memory.len()?);
    let mut bytes = Vec::with_capacity(size);
    while bytes.len() < size {
        let block = PySlice::new(py, bytes.len() as isize, (bytes.len() + BLOCK) as isize, 1);
        let block = memory.get_item(block)?.call_method0("tobytes")?;
        let block = block.cast::<PyBytes>()?.as_bytes();
        py.detach(|| bytes.extend_from_slice(block));
    }
    Ok(bytes)
}

impl NativeClient {
    fn batches(&self) -> MutexGuard<'_, HashMap<u64, Arc<Running>>> {
        self.batches.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What became of job lines: `(kind, number, [(place, JSON)], whether all have ended, …)`.
    fn jobs<'py>(
        &self,
        py: Python<'py>,
        tag: u64,
        part: &Part,
    ) -> PyResult<Option<Bound<'py, PyTuple>>> {
        let number = (tag & !JOBS) >> JOBS_SHIFT;
        let Some(running) = self.batches().get(&number).cloned() else {
            return Ok(None);
        };
        let results = running.batch.results(tag & ((1 << JOBS_SHIFT) - 1), part);
        let left = running.left.fetch_sub(results.len(), Ordering::Relaxed) - results.len();
        if left == 0 {
            self.batches().remove(&number);
        }
        let zone = TimeZone::system();
        let results: Vec<(usize, String)> = results
            .into_iter()
            .map(|(at, result)| {
                let mut json = String::new();
                result.write(&zone, &mut json);
                (at, json)
            })
            .collect();
        let none = py.None();
        (
            results::JOBS,
            number,
            0,
            0,
            none.clone_ref(py),
            results,
            none,
        )
            .into_pyobject(py)
            .map(Some)
    }

    fn client(&self, py: Python<'_>) -> PyResult<Client> {
        self.client
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
            .ok_or_else(|| raise(py, &Error::Closed))
    }

    /// Asks the cluster something, without Python's lock; the answer as JSON.
    fn ask<T: Serialize + Send>(
        &self,
        py: Python<'_>,
        ask: impl FnOnce(&Client) -> ipbroker_client::Result<T> + Send,
    ) -> PyResult<String> {
        let client = self.client(py)?;
        let answer = py
            .detach(|| ask(&client))
            .map_err(|error| raise(py, &error))?;
        serde_json::to_string(&answer).map_err(|error| PyValueError::new_err(error.to_string()))
    }
}

impl Drop for NativeClient {
    fn drop(&mut self) {
        let client = self
            .client
            .get_mut()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        if std::process::id() != self.pid {
            // Its thread and its sockets are the parent's.
            std::mem::forget(client);
        }
    }
}

#[pymethods]
impl NativeClient {
    #[new]
    #[pyo3(signature = (profile=None, profile_dir=None, cluster_id=None, file=None, ssh=None, timeout=10.0, grace=300.0))]
    #[allow(clippy::too_many_arguments)] // they are Python's, by name
    fn new(
        py: Python<'_>,
        profile: Option<String>,
        profile_dir: Option<PathBuf>,
        cluster_id: Option<String>,
        file: Option<PathBuf>,
        ssh: Option<String>,
        timeout: f64,
        grace: f64,
    ) -> PyResult<Self> {
        let mut builder = Client::builder();
        if let Some(profile) = profile {
            builder = builder.profile(profile);
        }
        if let Some(dir) = profile_dir {
            builder = builder.profile_dir(dir);
        }
        if let Some(id) = cluster_id {
            builder = builder.cluster_id(id);
        }
        if let Some(file) = file {
            builder = builder.file(file);
        }
        if let Some(server) = ssh {
            builder = builder.ssh(server);
        }
        let seconds = |name: &str, seconds| {
            Duration::try_from_secs_f64(seconds)
                .map_err(|error| PyValueError::new_err(format!("{name}: {error}")))
        };
        let builder = builder
            .timeout(seconds("timeout", timeout)?)
            .grace(seconds("grace", grace)?);
        let (client, connection_file) = py
            .detach(|| Ok((builder.connect()?, builder.connection_file()?)))
            .map_err(|error: Error| raise(py, &error))?;
        Ok(Self {
            session: client.session_id().to_owned(),
            client: Mutex::new(Some(client)),
            queue: Arc::default(),
            batches: Mutex::default(),
            connection_file,
            pid: std::process::id(),
        })
    }

    /// Part of every task's id.
    #[getter]
    fn session(&self) -> &str {
        &self.session
    }

    /// Where the cluster was found.
    #[getter]
    fn connection_file(&self) -> PathBuf {
        self.connection_file.clone()
    }

    /// A callable, pickled, with a view's options.
    fn call(
        &self,
        py: Python<'_>,
        code: &[u8],
        name: &str,
        python: Option<&str>,
        options: &Bound<'_, PyDict>,
    ) -> PyResult<Call> {
        let (options, limit) = options::read(options)?;
        let content = FunctionCall {
            name: name.to_owned(),
            code: Some(ByteBuf::from(code)),
            python: python.map(str::to_owned),
            limit,
        };
        let client = self.client(py)?;
        Ok(Call {
            template: client.template(types::FUNCTION_REQUEST, options, &content),
        })
    }

    /// Looks at a view's options.
    fn check(&self, py: Python<'_>, options: &Bound<'_, PyDict>) -> PyResult<()> {
        options::read(options)?;
        self.client(py).map(drop)
    }

    /// Submits one call; its id. `outside`: memory that its pickle refers to.
    fn submit(
        &self,
        py: Python<'_>,
        call: &Call,
        arguments: &[u8],
        outside: Option<Vec<Bound<'_, PyAny>>>,
        tag: u64,
    ) -> PyResult<String> {
        let client = self.client(py)?;
        let mut buffers = vec![Message::from(arguments)];
        for memory in outside.unwrap_or_default() {
            buffers.push(Message::from(bytes_of(&memory)?));
        }
        client
            .submit_like(&call.template, None, buffers, self.queue.clone(), tag)
            .map_err(|error| raise(py, &error))
    }

    /// Submits a call for each of these arguments, as one array; its id.
    fn submit_array(
        &self,
        py: Python<'_>,
        call: &Call,
        arguments: &Bound<'_, PyList>,
        tag: u64,
    ) -> PyResult<String> {
        let client = self.client(py)?;
        let mut packed = Packed::new();
        for pickled in arguments {
            packed
                .push(pickled.cast::<PyBytes>()?.as_bytes())
                .map_err(|error| PyValueError::new_err(error.to_string()))?;
        }
        let count = packed.len() as u64;
        let queue = self.queue.clone();
        py.detach(|| {
            let (offsets, blob) = packed.into_buffers();
            let buffers = vec![Message::from(offsets), Message::from(blob)];
            client.submit_like(&call.template, Some(count), buffers, queue, tag)
        })
        .map_err(|error| raise(py, &error))
    }

    /// Submits job lines (JSON objects); the ids of their messages. `wait_results` tells of them by `number`.
    fn run_jobs(
        &self,
        py: Python<'_>,
        lines: Vec<String>,
        cwd: &str,
        number: u64,
    ) -> PyResult<Vec<String>> {
        let client = self.client(py)?;
        let sink: Arc<dyn Sink> = self.queue.clone();
        py.detach(|| {
            let mut jobs = Vec::with_capacity(lines.len());
            for (line, text) in (1..).zip(&lines) {
                jobs.push(parse_line(line, text.as_bytes()).map_err(|error| {
                    Error::Job(format!("jobs:{line}: {error}; nothing was submitted"))
                })?);
            }
            // Results may come before this returns: whoever fetches them waits for the table.
            let mut batches = self.batches();
            let tag = JOBS | number << JOBS_SHIFT;
            let batch = Batch::submit(&client, cwd, &jobs, &sink, tag)?;
            let ids = batch.msg_ids();
            let left = AtomicUsize::new(jobs.len());
            batches.insert(number, Arc::new(Running { batch, left }));
            Ok(ids)
        })
        .map_err(|error: Error| raise(py, &error))
    }

    /// What has arrived since this was last asked: results, what was printed, bytes of that which were dropped. Waits for
    /// something. None: the client is closed.
    #[expect(clippy::type_complexity, reason = "a tuple, as Python reads it")]
    fn wait_results<'py>(
        &self,
        py: Python<'py>,
    ) -> PyResult<Option<(Bound<'py, PyList>, Vec<(String, String, String)>, usize)>> {
        let Some(arrived) = py.detach(|| self.queue.take()) else {
            return Ok(None);
        };
        let deliveries = PyList::empty(py);
        for (tags, part) in arrived.parts {
            match tags {
                Tags::One(tag) if tag & JOBS != 0 => {
                    if let Some(jobs) = self.jobs(py, tag, &part)? {
                        deliveries.append(jobs)?;
                    }
                }
                Tags::One(tag) => deliveries.append(results::delivery(py, tag, false, &part)?)?,
                Tags::Each(tags) => {
                    deliveries.append(results::delivery(py, tags.into_vec(), true, &part)?)?;
                }
            }
        }
        Ok(Some((deliveries, arrived.printed, arrived.dropped)))
    }

    /// What calls print arrives, from now on.
    fn listen(&self, py: Python<'_>) -> PyResult<()> {
        self.client(py)?
            .listen(self.queue.clone())
            .map_err(|error| raise(py, &error))
    }

    /// Ends tasks, running ones too with `kill`. Without `wait` the answer is not waited for.
    #[pyo3(signature = (ids, kill=true, wait=true))]
    fn abort(&self, py: Python<'_>, ids: Vec<String>, kill: bool, wait: bool) -> PyResult<String> {
        if wait {
            return self.ask(py, |client| client.abort(&ids, kill));
        }
        self.client(py)?
            .abort_soon(&ids, kill)
            .map_err(|error| raise(py, &error))?;
        Ok("{}".into())
    }

    /// Ends every task of this client.
    fn abort_session(&self, py: Python<'_>) -> PyResult<String> {
        self.ask(py, |client| client.abort_session(client.session_id()))
    }

    /// The engines, as JSON.
    fn engines(&self, py: Python<'_>) -> PyResult<String> {
        self.ask(py, Client::engines)
    }

    /// How many engines are registered, as far as this client has heard: asks nobody.
    fn engine_count(&self, py: Python<'_>) -> PyResult<usize> {
        Ok(self.client(py)?.engine_count())
    }

    /// Waits so many seconds until `count` engines are there; how many there are. Returns early when a signal comes.
    fn wait_for_engines(&self, py: Python<'_>, count: usize, timeout: f64) -> PyResult<usize> {
        let client = self.client(py)?;
        let timeout = Duration::try_from_secs_f64(timeout.max(0.0)).unwrap_or(Duration::MAX);
        Ok(py.detach(|| client.wait_for_engines(count, Some(timeout))))
    }

    /// How the cluster is, as JSON.
    fn status(&self, py: Python<'_>) -> PyResult<String> {
        self.ask(py, Client::status)
    }

    /// Jobs and run times by host, as JSON.
    fn stats(&self, py: Python<'_>) -> PyResult<String> {
        self.ask(py, Client::stats)
    }

    /// Why a task waits, or what became of it, as JSON.
    fn explain(&self, py: Python<'_>, id: &str) -> PyResult<String> {
        self.ask(py, |client| client.explain(id))
    }

    /// Whether an engine works on a task just now.
    fn running(&self, py: Python<'_>, id: &str) -> PyResult<bool> {
        let client = self.client(py)?;
        let all = [u64::MAX; 2];
        py.detach(|| client.output(id, all))
            .map(|output| output.running)
            .map_err(|error| raise(py, &error))
    }

    /// Ids of every task that the store knows, as JSON.
    fn history(&self, py: Python<'_>) -> PyResult<String> {
        self.ask(py, Client::history)
    }

    /// Records of tasks by id, as JSON.
    fn records(&self, py: Python<'_>, ids: Vec<String>) -> PyResult<String> {
        self.ask(py, |client| Ok(client.outcomes(&ids, true)?.records))
    }

    /// Ends the controller and what it started.
    fn shutdown(&self, py: Python<'_>) -> PyResult<()> {
        let client = self.client(py)?;
        py.detach(|| client.shutdown())
            .map_err(|error| raise(py, &error))
    }

    /// What happened to the controller since this was last asked, in words.
    fn notices(&self, py: Python<'_>) -> PyResult<Vec<String>> {
        let words = |notice| match notice {
            Notice::Gone(_) => format!("{notice}: waiting for it to come back"),
            notice => notice.to_string(),
        };
        Ok(self
            .client(py)?
            .take_notices()
            .into_iter()
            .map(words)
            .collect())
    }

    /// Closes the connection; what is still awaited fails.
    fn close(&self, py: Python<'_>) {
        let client = self
            .client
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        if std::process::id() != self.pid {
            std::mem::forget(client);
            return;
        }
        py.detach(|| {
            drop(client);
            self.queue.close();
        });
    }
}
