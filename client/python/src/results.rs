//! Replies as Python values: pickles and out-of-band buffers are passed on, errors become tuples.

use std::sync::Arc;

use ipbroker_client::protocol::message::types;
use ipbroker_client::{Part, Reply, TaskError};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::{PyByteArray, PyBytes, PyDict, PyList, PyTuple};
use serde::Deserialize;

/// What a delivery is, as Python tells it: a result, the error of a single call, members of an array, their common error.
const OK: u8 = 0;
const ERROR: u8 = 1;
const MEMBERS: u8 = 2;
const MEMBERS_ERROR: u8 = 3;
/// … or of job lines.
pub(crate) const JOBS: u8 = 4;

/// Why a call has no result.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Failure {
    status: String,
    ename: String,
    evalue: String,
    traceback: Vec<String>,
    /// The exception itself, pickled.
    exception: Option<serde_bytes::ByteBuf>,
}

impl From<&TaskError> for Failure {
    fn from(error: &TaskError) -> Self {
        Self {
            status: if error.aborted { "aborted" } else { "error" }.into(),
            ename: error.ename.clone(),
            evalue: error.evalue.clone(),
            traceback: error.traceback.clone(),
            exception: None,
        }
    }
}

impl Failure {
    fn other(evalue: impl ToString) -> Self {
        Self {
            status: "error".into(),
            ename: "BadReply".into(),
            evalue: evalue.to_string(),
            ..Self::default()
        }
    }

    /// `(ename, evalue, traceback, exception, aborted)`.
    fn tuple<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyTuple>> {
        let exception = self
            .exception
            .as_ref()
            .map(|pickled| PyBytes::new(py, pickled));
        let aborted = self.status == "aborted" || self.ename == "TaskAborted";
        let ename = match self.ename.as_str() {
            "" if aborted => "TaskAborted",
            "" => "Error",
            name => name,
        };
        (
            ename,
            &self.evalue,
            PyList::new(py, &self.traceback)?,
            exception,
            aborted,
        )
            .into_pyobject(py)
    }
}

/// `(kind, tag, lo, hi, metadata, value, more)`; what value and more are depends on the kind.
pub(crate) fn delivery<'py>(
    py: Python<'py>,
    tag: u64,
    part: &Part,
) -> PyResult<Bound<'py, PyTuple>> {
    let (lo, hi) = (part.lo, part.hi);
    let reply = match &part.outcome {
        Ok(reply) => reply,
        Err(error) => {
            // Without a reply nobody can say whether it was an array: Python knows.
            let failure = Failure::from(&**error).tuple(py)?;
            return (MEMBERS_ERROR, tag, lo, hi, py.None(), failure, py.None()).into_pyobject(py);
        }
    };
    let metadata = PyBytes::new(py, reply.metadata());
    if reply.has_members() {
        return members(py, tag, (lo, hi), reply, metadata);
    }
    if hi - lo > 1 || !reply.is_well() {
        let failure: Failure = reply.content().unwrap_or_else(Failure::other);
        let kind = if hi - lo > 1 { MEMBERS_ERROR } else { ERROR };
        let failure = failure.tuple(py)?;
        return (kind, tag, lo, hi, metadata, failure, py.None()).into_pyobject(py);
    }
    let mut buffers = reply.buffers();
    let value = match buffers.next() {
        Some(pickled) => PyBytes::new(py, pickled),
        None => PyBytes::new(py, b""),
    };
    let content = reply.packed_content();
    // A plain {"status": "ok"} is ten and a few bytes; what was printed makes it longer.
    let printed = (content.len() > 16).then(|| (PyBytes::new(py, content), reply.parent_id()));
    let more = match (buffers.len(), printed) {
        // As most are.
        (0, None) => None,
        (_, printed) => {
            // Bytes that what is unpickled may write to, as if it were its own.
            let outside = PyList::new(py, buffers.map(|buffer| PyByteArray::new(py, buffer)))?;
            Some((outside, printed))
        }
    };
    (OK, tag, lo, hi, metadata, value, more).into_pyobject(py)
}

/// Values: one pickle a member (None where there is none), or one that stands for all of them.
fn members<'py>(
    py: Python<'py>,
    tag: u64,
    (lo, hi): (u64, u64),
    reply: &Arc<Reply>,
    metadata: Bound<'py, PyBytes>,
) -> PyResult<Bound<'py, PyTuple>> {
    let info = reply.info();
    let failures = PyDict::new(py);
    let fail = |index: u64, failure: Failure| -> PyResult<()> {
        failures.set_item(index, failure.tuple(py)?)
    };
    let mut damaged = None;
    let mut value = |index: u64| match reply.member(index) {
        Ok(bytes) => Some(bytes),
        Err(error) => {
            damaged = Some(error.to_string());
            None
        }
    };
    let values: Bound<'py, PyAny> = if info.same && info.failed.is_empty() && info.status == "ok" {
        value(lo)
            .map(|bytes| PyBytes::new(py, bytes).into_any())
            .unwrap_or_else(|| PyList::empty(py).into_any())
    } else {
        let mut bytes = Vec::with_capacity((hi - lo) as usize);
        for index in lo..hi {
            let packed = value(index);
            if packed.is_some() && reply.is_member_ok(index) {
                bytes.push(packed);
                continue;
            }
            if let Some(packed) = packed {
                fail(
                    index,
                    rmp_serde::from_slice(packed).unwrap_or_else(Failure::other),
                )?;
            }
            bytes.push(None);
        }
        let bytes = bytes
            .into_iter()
            .map(|bytes| bytes.map(|bytes| PyBytes::new(py, bytes)));
        PyList::new(py, bytes.collect::<Vec<_>>())?.into_any()
    };
    if let Some(reason) = damaged {
        let failure = Failure::other(reason).tuple(py)?;
        return (MEMBERS_ERROR, tag, lo, hi, metadata, failure, py.None()).into_pyobject(py);
    }
    let more = (failures, info.duration.unwrap_or(0.0));
    (MEMBERS, tag, lo, hi, metadata, values, more).into_pyobject(py)
}

/// What a reply's metadata and content tell of its call, as a dict: engine_id, host, started, completed, stdout, stderr, ….
#[pyfunction]
pub(crate) fn reply_info<'py>(
    py: Python<'py>,
    metadata: &[u8],
    content: Option<&[u8]>,
) -> PyResult<Bound<'py, PyDict>> {
    #[derive(Deserialize, Default)]
    #[serde(default)]
    struct Printed {
        stdout: Option<String>,
        stderr: Option<String>,
    }
    let bad = |error: String| PyValueError::new_err(format!("{}: {error}", types::FUNCTION_REPLY));
    let info: ipbroker_client::ReplyInfo = unpack(metadata).map_err(bad)?;
    let printed: Printed = content
        .map(unpack)
        .transpose()
        .map_err(bad)?
        .unwrap_or_default();
    let dict = PyDict::new(py);
    dict.set_item("status", info.status)?;
    dict.set_item("engine", info.engine)?;
    dict.set_item("engine_id", info.engine_id)?;
    dict.set_item("host", info.host)?;
    dict.set_item("started", info.started)?;
    dict.set_item("completed", info.completed)?;
    dict.set_item("duration", info.duration)?;
    dict.set_item("attempt", info.attempt)?;
    dict.set_item("stdout", printed.stdout.unwrap_or_default())?;
    dict.set_item("stderr", printed.stderr.unwrap_or_default())?;
    Ok(dict)
}

/// MessagePack, or JSON in a cluster that packs that.
fn unpack<T: for<'de> Deserialize<'de>>(bytes: &[u8]) -> Result<T, String> {
    if bytes.first() == Some(&b'{') {
        return serde_json::from_slice(bytes).map_err(|error| error.to_string());
    }
    rmp_serde::from_slice(bytes).map_err(|error| error.to_string())
}
