//! The options of a view as scheduling metadata.

use ipbroker_client::job::parse_size;
use ipbroker_client::protocol::dependency::Dependency;
use ipbroker_client::protocol::message::{Limit, Require, TaskRequest};
use ipbroker_client::protocol::resources::{self as pools, Request};
use pyo3::exceptions::{PyOverflowError, PyTypeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::{PyBool, PyDict, PyList, PyString};

/// Reads a view's options. Python's layer has put ids for futures and uuids for engines already.
pub(crate) fn read(options: &Bound<'_, PyDict>) -> PyResult<(TaskRequest, Limit)> {
    let mut limit = Limit::default();
    let mut request = TaskRequest {
        ack: true,
        ..TaskRequest::default()
    };
    let (mut any, mut on) = (false, String::from("success"));
    for (key, value) in options {
        let key: String = key.extract()?;
        let wrong = |error: PyErr| PyTypeError::new_err(format!("option {key}: {error}"));
        if value.is_none() {
            continue;
        }
        match key.as_str() {
            "targets" => request.targets = names(&key, &value)?,
            "after" => request.after.ids = names(&key, &value)?,
            "follow" => request.follow.ids = names(&key, &value)?,
            "any" if value.is_instance_of::<PyBool>() => any = value.extract()?,
            "any" => request.any = alternatives(&value)?,
            "on" => on = value.extract().map_err(wrong)?,
            "timeout" => request.timeout = seconds(&key, &value)?,
            "retries" => request.retries = whole(&key, &value, "a whole number from 0")?,
            "retry_delay" => request.retry_delay = seconds(&key, &value)?,
            "max_crashes" => {
                request.max_crashes = Some(whole(&key, &value, "a whole number from 0")?);
            }
            "host" => request.hosts = names(&key, &value)?,
            "prefer" => request.prefer = names(&key, &value)?,
            "prefer_wait" => request.prefer_wait = seconds(&key, &value)?,
            "tags" => request.tags = names(&key, &value)?,
            "priority" => {
                request.priority = whole(&key, &value, "a whole number of 32 bits")?;
            }
            "require" => request.require = require(&value)?,
            "cpus" | "gpus" | "memory" | "resources" => {
                resources(&mut request.resources, &key, &value)?;
            }
            "nodes" => {
                let nodes: i64 = value.extract().map_err(wrong)?;
                request.nodes = u32::try_from(nodes)
                    .ok()
                    .filter(|nodes| (1..=pools::NODES_MOST).contains(nodes))
                    .ok_or_else(|| {
                        PyValueError::new_err(format!(
                            "option nodes: must be a number of hosts from 1, not {nodes}"
                        ))
                    })?;
            }
            "limit" => limit = limits(&value)?,
            "detach" => request.detach = value.extract().map_err(wrong)?,
            _ => {
                return Err(PyTypeError::new_err(format!(
                    "unknown option {key:?}: there are after, follow, any, on, timeout, retries, retry_delay, max_crashes, host, prefer, prefer_wait, tags, priority, require, cpus, gpus, memory, resources, nodes, limit, targets, detach"
                )));
            }
        }
    }
    let (success, failure) = match on.as_str() {
        "success" => (true, false),
        "failure" => (false, true),
        "always" => (true, true),
        other => {
            return Err(PyValueError::new_err(format!(
                "option on: {other:?} is none of success, failure, always"
            )));
        }
    };
    for dependency in [&mut request.after, &mut request.follow] {
        let ids = std::mem::take(&mut dependency.ids);
        *dependency = Dependency {
            ids,
            all: !any,
            success,
            failure,
        };
    }
    request.time = limit.time;
    Ok((request, limit))
}

/// Alternatives of what the engine's host must have free.
fn alternatives(value: &Bound<'_, PyAny>) -> PyResult<Vec<Request>> {
    let wrong = || {
        PyTypeError::new_err(
            "option any: must be True or False (whether one of after is enough), or a list of alternatives like [{\"gpus\": 1}, {\"cpus\": 16}]",
        )
    };
    let mut all = Vec::new();
    for alternative in value.cast::<PyList>().map_err(|_| wrong())? {
        let mut request = Request::new();
        for (key, value) in alternative.cast::<PyDict>().map_err(|_| wrong())? {
            let key: String = key.extract()?;
            if !["cpus", "gpus", "memory", "resources"].contains(&&*key) {
                return Err(PyTypeError::new_err(format!(
                    "option any: alternative {} has {key:?}: only cpus, gpus, memory and resources can differ",
                    all.len() + 1
                )));
            }
            resources(&mut request, &key, &value)?;
        }
        all.push(request);
    }
    if all.is_empty() {
        return Err(PyValueError::new_err(
            "option any: is a list without an alternative",
        ));
    }
    Ok(all)
}

/// What the engine's host must have free: one of the names that are options, or those in `resources`.
fn resources(request: &mut Request, key: &str, value: &Bound<'_, PyAny>) -> PyResult<()> {
    if key != "resources" {
        return resource(request, key, &value.str()?.extract::<String>()?);
    }
    let named = value.cast::<PyDict>().map_err(|error| {
        PyTypeError::new_err(format!("option resources: {}", PyErr::from(error)))
    })?;
    for (name, units) in named {
        let (name, text): (String, String) = (name.extract()?, units.str()?.extract()?);
        resource(request, &name, &text)?;
    }
    Ok(())
}

/// An amount of what the engine's host must have free.
fn resource(request: &mut Request, name: &str, text: &str) -> PyResult<()> {
    let units = pools::parse_units(text).unwrap_or(f64::NAN);
    pools::check(name, units).map_err(|must| {
        PyValueError::new_err(format!("option {name}: must be {must}, not {text}"))
    })?;
    request.insert(name.to_owned(), units);
    Ok(())
}

/// What is said of an option's value that is none.
fn must(key: &str, be: &str, value: &Bound<'_, PyAny>) -> String {
    let shown = value.repr().map(|text| text.to_string());
    let shown = shown.unwrap_or_else(|_| "that".to_owned());
    format!("option {key}: must be {be}, not {shown}")
}

/// A number of seconds, as in jobs: what is none would be no limit at all, and nobody would notice.
fn seconds(key: &str, value: &Bound<'_, PyAny>) -> PyResult<Option<f64>> {
    let must = || must(key, "a number of seconds from 0", value);
    let seconds: f64 = value.extract().map_err(|_| PyTypeError::new_err(must()))?;
    if !seconds.is_finite() || seconds < 0.0 {
        return Err(PyValueError::new_err(must()));
    }
    Ok(Some(seconds))
}

fn whole<T: TryFrom<i64>>(key: &str, value: &Bound<'_, PyAny>, be: &str) -> PyResult<T> {
    let number: i64 = value.extract().map_err(|error: PyErr| {
        if error.is_instance_of::<PyOverflowError>(value.py()) {
            PyValueError::new_err(must(key, be, value))
        } else {
            PyTypeError::new_err(must(key, be, value))
        }
    })?;
    T::try_from(number).map_err(|_| PyValueError::new_err(must(key, be, value)))
}

/// A name, or several.
fn names(key: &str, value: &Bound<'_, PyAny>) -> PyResult<Vec<String>> {
    if let Ok(name) = value.cast::<PyString>() {
        return Ok(vec![name.extract()?]);
    }
    let wrong = || PyTypeError::new_err(must(key, "a string, or a list of strings", value));
    if value.is_instance_of::<PyDict>() {
        return Err(wrong());
    }
    let all = value.try_iter().map_err(|_| wrong())?;
    all.map(|name| name?.extract().map_err(|_| wrong()))
        .collect()
}

fn require(value: &Bound<'_, PyAny>) -> PyResult<Require> {
    let mut require = Require::default();
    let be = "a dict like {\"programs\": [\"ffmpeg\"]}";
    let named = value.cast::<PyDict>();
    for (key, value) in named.map_err(|_| PyTypeError::new_err(must("require", be, value)))? {
        let key: String = key.extract()?;
        let list = names(&format!("require: {key}"), &value)?;
        match key.as_str() {
            "programs" => require.programs = list,
            "files" => require.files = list,
            "variables" => require.variables = list,
            _ => {
                return Err(PyTypeError::new_err(format!(
                    "option require: {key:?} is none of programs, files, variables"
                )));
            }
        }
    }
    Ok(require)
}

/// `{"time": seconds, "memory": bytes or "2G"}`, of the interpreter and what it starts.
fn limits(value: &Bound<'_, PyAny>) -> PyResult<Limit> {
    let mut limit = Limit::default();
    let be = "a dict like {\"time\": 60, \"memory\": \"2G\"}";
    let named = value.cast::<PyDict>();
    for (key, value) in named.map_err(|_| PyTypeError::new_err(must("limit", be, value)))? {
        match key.extract::<String>()?.as_str() {
            _ if value.is_none() => {}
            "time" => limit.time = seconds("limit: time", &value)?,
            "memory" => {
                let text: String = value.str()?.extract()?;
                let be = "a number of bytes, or a size like 2G";
                let bytes = parse_size(&text)
                    .ok_or_else(|| PyValueError::new_err(must("limit: memory", be, &value)))?;
                limit.memory = Some(bytes);
            }
            other => {
                return Err(PyTypeError::new_err(format!(
                    "option limit: {other:?} is none of time, memory"
                )));
            }
        }
    }
    Ok(limit)
}
