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

/// The content `{"status": "ok"}` has ten and a few bytes; what was printed makes it longer.
const PLAIN: usize = 16;

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
    /// What came before it in a list of calls, pickled.
    results: Option<serde_bytes::ByteBuf>,
}

/// What a call printed.
#[derive(Deserialize, Default)]
#[serde(default)]
struct Printed {
    stdout: String,
    stderr: String,
}

impl From<&TaskError> for Failure {
    fn from(error: &TaskError) -> Self {
        Self {
            status: if error.aborted { "aborted" } else { "error" }.into(),
            ename: error.ename.clone(),
            evalue: error.evalue.clone(),
            traceback: error.traceback.clone(),
            ..Self::default()
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

    /// `(ename, evalue, traceback, exception, aborted, results)`.
    fn tuple<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyTuple>> {
        let [exception, results] = [&self.exception, &self.results]
            .map(|pickled| pickled.as_ref().map(|pickled| PyBytes::new(py, pickled)));
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
            results,
        )
            .into_pyobject(py)
    }
}

/// What a task prints is told by try: nothing else says where one ends and the next begins.
pub(crate) fn try_of(msg_id: &str, attempt: u32) -> String {
    format!("{msg_id} {attempt}")
}

/// `(kind, tag, lo, hi, metadata, value, more)`; what value and more are depends on the kind. Calls that travelled together
/// are members, with a list of tags.
pub(crate) fn delivery<'py>(
    py: Python<'py>,
    tag: impl IntoPyObject<'py>,
    each: bool,
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
        return members(py, tag, each, (lo, hi), reply, metadata);
    }
    if each || hi - lo > 1 || !reply.is_well() {
        let failure: Failure = reply.content().unwrap_or_else(Failure::other);
        let kind = if each || hi - lo > 1 {
            MEMBERS_ERROR
        } else {
            ERROR
        };
        let failure = failure.tuple(py)?;
        return (kind, tag, lo, hi, metadata, failure, py.None()).into_pyobject(py);
    }
    let mut buffers = reply.buffers();
    let value = match buffers.next() {
        Some(pickled) => PyBytes::new(py, pickled),
        None => PyBytes::new(py, b""),
    };
    let content = reply.packed_content();
    let more = if buffers.len() == 0 && content.len() <= PLAIN {
        // As most are.
        None
    } else {
        // Bytes that what is unpickled may write to, as if it were its own.
        let outside = PyList::new(py, buffers.map(|buffer| PyByteArray::new(py, buffer)))?;
        let Printed { stdout, stderr } = unpack(content).unwrap_or_default();
        let printed = (!stdout.is_empty() || !stderr.is_empty()).then(|| {
            (
                try_of(&reply.parent_id(), reply.info().attempt),
                stdout,
                stderr,
            )
        });
        Some((outside, PyBytes::new(py, content), printed))
    };
    (OK, tag, lo, hi, metadata, value, more).into_pyobject(py)
}

/// Values: one pickle a member (None where there is none), or one that stands for all of them.
fn members<'py>(
    py: Python<'py>,
    tag: impl IntoPyObject<'py>,
    each: bool,
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
    let content = reply.packed_content();
    let (begin, _) = info.range.unwrap_or((lo, hi));
    let mut printed = Vec::new();
    if content.len() > PLAIN {
        printed = ipbroker_client::printed(content, begin);
    }
    let printed = printed.into_iter();
    let printed = printed.filter(|(at, ..)| (lo..hi).contains(at));
    let printed: Vec<_> = printed
        .map(|(at, stdout, stderr)| (try_of(&reply.msg_id(at), info.attempt), stdout, stderr))
        .collect();
    if !each {
        let more = (failures, info.duration.unwrap_or(0.0), printed);
        return (MEMBERS, tag, lo, hi, metadata, values, more).into_pyobject(py);
    }
    let more = (failures, PyBytes::new(py, content), printed);
    (MEMBERS, tag, lo, hi, metadata, values, more).into_pyobject(py)
}

/// What a reply's metadata and content tell of its call, as a dict: engine_id, host, started, completed, stdout, stderr, …;
/// with an index, of that member of an array.
#[pyfunction]
#[pyo3(signature = (metadata, content=None, index=None))]
pub(crate) fn reply_info<'py>(
    py: Python<'py>,
    metadata: &[u8],
    content: Option<&[u8]>,
    index: Option<u64>,
) -> PyResult<Bound<'py, PyDict>> {
    let bad = |error: String| PyValueError::new_err(format!("{}: {error}", types::FUNCTION_REPLY));
    let mut info: ipbroker_client::ReplyInfo = unpack(metadata).map_err(bad)?;
    let mut printed: Printed = content
        .map(unpack)
        .transpose()
        .map_err(bad)?
        .unwrap_or_default();
    if let (Some(index), Some((lo, _)), Some(content)) = (index, info.range, content) {
        let failed = info.failed.iter().find(|(at, _)| *at == index);
        info.status = failed.map_or("ok", |(_, how)| how).to_owned();
        let members = ipbroker_client::members(content);
        if let Some(member) = members.into_iter().nth(index.wrapping_sub(lo) as usize) {
            member.place(&mut info);
            printed.stdout = member.2.unwrap_or_default();
            printed.stderr = member.3.unwrap_or_default();
        }
    }
    let dict = PyDict::new(py);
    dict.set_item("status", info.status)?;
    dict.set_item("engine", info.engine)?;
    dict.set_item("engine_id", info.engine_id)?;
    dict.set_item("host", info.host)?;
    dict.set_item("started", info.started)?;
    dict.set_item("completed", info.completed)?;
    dict.set_item("duration", info.duration)?;
    dict.set_item("attempt", info.attempt)?;
    dict.set_item("stdout", printed.stdout)?;
    dict.set_item("stderr", printed.stderr)?;
    Ok(dict)
}

/// MessagePack, or JSON in a cluster that packs that.
fn unpack<T: for<'de> Deserialize<'de>>(bytes: &[u8]) -> Result<T, String> {
    if bytes.first() == Some(&b'{') {
        return serde_json::from_slice(bytes).map_err(|error| error.to_string());
    }
    rmp_serde::from_slice(bytes).map_err(|error| error.to_string())
}
