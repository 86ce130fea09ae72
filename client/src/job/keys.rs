//! The keys of a job line, each taken with the type that it must have.

use std::collections::BTreeMap;

use ipbroker_protocol::message::{Limit, Require};
use ipbroker_protocol::resources::{self, CPUS, GPUS, MEMORY, NODES_MOST, Request};
use ipbroker_protocol::size;
use ipbroker_protocol::time::parse_duration;
use serde_json::{Map, Value};

use super::error::LineError;
use super::line::{Condition, Transfer};

/// The object's keys with their types; `null` counts as absent.
pub(super) struct Keys<'a>(pub(super) &'a Map<String, Value>);

impl Keys<'_> {
    pub(super) fn get(&self, key: &'static str) -> Option<&Value> {
        self.0.get(key).filter(|v| !v.is_null())
    }

    /// The value of a key that `take` takes; the others are not what is `expected`.
    fn read<T>(
        &self,
        key: &'static str,
        expected: &'static str,
        take: impl FnOnce(&Value) -> Option<T>,
    ) -> Result<Option<T>, LineError> {
        self.get(key)
            .map(|value| take(value).ok_or_else(|| wrong(key, expected, value)))
            .transpose()
    }

    pub(super) fn string(&self, key: &'static str) -> Result<Option<String>, LineError> {
        self.read(key, "a string", |value| value.as_str().map(str::to_owned))
    }

    pub(super) fn path(&self, key: &'static str) -> Result<Option<String>, LineError> {
        match self.string(key)? {
            None => Ok(None),
            Some(path) if path.is_empty() => Err(LineError::value(key, "is empty")),
            Some(path) => no_nul(key, &path).map(Some),
        }
    }

    pub(super) fn boolean(&self, key: &'static str) -> Result<Option<bool>, LineError> {
        self.read(key, "true or false", Value::as_bool)
    }

    pub(super) fn integer(&self, key: &'static str) -> Result<Option<i32>, LineError> {
        self.read(key, "an integer", |value| value.as_i64()?.try_into().ok())
    }

    pub(super) fn count(&self, key: &'static str) -> Result<Option<u32>, LineError> {
        self.read(key, "a whole number from 0", |value| {
            value.as_u64()?.try_into().ok()
        })
    }

    pub(super) fn exit_code(&self, key: &'static str) -> Result<Option<i32>, LineError> {
        self.read(key, "an exit code from 1 to 255", |value| {
            let code = value.as_i64().filter(|code| (1..=255).contains(code))?;
            code.try_into().ok()
        })
    }

    pub(super) fn strings(&self, key: &'static str) -> Result<Vec<String>, LineError> {
        const EXPECTED: &str = "a string or a list of strings";
        let items = match self.get(key) {
            None => return Ok(Vec::new()),
            Some(Value::String(one)) => return Ok(vec![one.clone()]),
            Some(Value::Array(items)) => items,
            Some(other) => return Err(wrong(key, EXPECTED, other)),
        };
        items
            .iter()
            .map(|item| match item {
                Value::String(text) => Ok(text.clone()),
                other => Err(LineError::WrongType {
                    key,
                    expected: EXPECTED,
                    found: format!("a list with {}", kind(other)),
                }),
            })
            .collect()
    }

    /// A list of paths that are the same here and there, or an object of those that are not: `{"FROM": "TO"}`.
    pub(super) fn transfers(
        &self,
        key: &'static str,
        out: bool,
    ) -> Result<Vec<Transfer>, LineError> {
        const EXPECTED: &str = "a list of paths, or an object {\"FROM\": \"TO\"}";
        let text = |value| Value::as_str(value).ok_or_else(|| wrong(key, EXPECTED, value));
        let transfer = |from: &str, to: &str| {
            if from.is_empty() || to.is_empty() {
                return Err(LineError::value(key, "has an empty path"));
            }
            let (from, to) = (no_nul(key, from)?, no_nul(key, to)?);
            Ok(Transfer::between(from, to, out))
        };
        match self.get(key) {
            None => Ok(Vec::new()),
            Some(Value::Array(items)) => items
                .iter()
                .map(|item| text(item).and_then(|path| transfer(path, &other_side(path))))
                .collect(),
            Some(Value::Object(map)) => map
                .iter()
                .map(|(from, to)| transfer(from, text(to)?))
                .collect(),
            Some(other) => Err(wrong(key, EXPECTED, other)),
        }
    }

    /// A list of paths; a single one may stand for itself.
    pub(super) fn paths(&self, key: &'static str) -> Result<Vec<String>, LineError> {
        let paths = self.strings(key)?;
        if paths.iter().any(String::is_empty) {
            return Err(LineError::value(key, "has an empty path"));
        }
        paths.iter().map(|path| no_nul(key, path)).collect()
    }

    pub(super) fn id(&self) -> Result<Option<String>, LineError> {
        self.get("id").map(|value| id("id", value)).transpose()
    }

    /// A list of ids; a single one may stand for itself.
    pub(super) fn ids(&self, key: &'static str) -> Result<Vec<String>, LineError> {
        match self.get(key) {
            None => Ok(Vec::new()),
            Some(Value::Array(items)) => items.iter().map(|item| id(key, item)).collect(),
            Some(one @ (Value::String(_) | Value::Number(_))) => Ok(vec![id(key, one)?]),
            Some(other) => Err(wrong(key, "an id or a list of ids", other)),
        }
    }

    pub(super) fn condition(&self) -> Result<Condition, LineError> {
        const EXPECTED: &str = "\"success\", \"failure\" or \"always\"";
        match self.get("on") {
            None => Ok(Condition::Success),
            Some(Value::String(text)) => match text.as_str() {
                "success" => Ok(Condition::Success),
                "failure" => Ok(Condition::Failure),
                "always" => Ok(Condition::Always),
                other => Err(LineError::WrongType {
                    key: "on",
                    expected: EXPECTED,
                    found: format!("{other:?}"),
                }),
            },
            Some(other) => Err(wrong("on", EXPECTED, other)),
        }
    }

    pub(super) fn env(&self) -> Result<BTreeMap<String, String>, LineError> {
        const EXPECTED: &str = "an object of strings";
        let key = "env";
        let Some(value) = self.get(key) else {
            return Ok(BTreeMap::new());
        };
        let Value::Object(vars) = value else {
            return Err(wrong(key, EXPECTED, value));
        };
        vars.iter()
            .map(|(name, value)| {
                let Value::String(text) = value else {
                    let found = format!("an object where {name:?} is {}", kind(value));
                    return Err(LineError::WrongType {
                        key,
                        expected: EXPECTED,
                        found,
                    });
                };
                if name.is_empty() || name.contains(['=', '\0']) || text.contains('\0') {
                    let problem = format!("has an impossible variable {name:?}");
                    return Err(LineError::value(key, problem));
                }
                Ok((name.clone(), text.clone()))
            })
            .collect()
    }

    pub(super) fn limit(&self) -> Result<Limit, LineError> {
        let key = "limit";
        let Some(value) = self.get(key) else {
            return Ok(Limit::default());
        };
        let Value::Object(limits) = value else {
            return Err(wrong(
                key,
                "an object like {\"time\": 60, \"memory\": \"2G\"}",
                value,
            ));
        };
        let mut limit = Limit::default();
        for (name, value) in limits {
            match (name.as_str(), value) {
                (_, Value::Null) => {}
                ("time", value) => limit.time = Some(seconds("limit.time", value)?),
                ("memory", value) => limit.memory = Some(bytes("limit.memory", value)?),
                (other, _) => {
                    let problem =
                        format!("has {other:?}: only \"time\" and \"memory\" can be limited");
                    return Err(LineError::value(key, problem));
                }
            }
        }
        Ok(limit)
    }

    /// What the job needs of its host.
    pub(super) fn resources(&self) -> Result<Request, LineError> {
        let mut request = Request::new();
        for key in [CPUS, GPUS, MEMORY] {
            if let Some(value) = self.get(key) {
                let problem = |must| format!("must be {must}, not {}", found(value));
                let units =
                    units(key, value).map_err(|must| LineError::value(key, problem(must)))?;
                request.insert(key.to_owned(), units);
            }
        }
        let key = "resources";
        let Some(value) = self.get(key) else {
            return Ok(request);
        };
        let Value::Object(named) = value else {
            return Err(wrong(key, "an object like {\"license\": 1}", value));
        };
        for (name, value) in named {
            let problem = if !resources::is_name(name) {
                format!("has {name:?}, which cannot be the name of a resource")
            } else if request.contains_key(name) {
                format!("asks for {name} twice: give \"{name}\" or an entry here")
            } else {
                match units(name, value) {
                    Ok(units) => {
                        request.insert(name.clone(), units);
                        continue;
                    }
                    Err(must) => format!("is an object where {name:?} must be {must}"),
                }
            };
            return Err(LineError::value(key, problem));
        }
        Ok(request)
    }

    /// `any`: whether one dependency is enough, or alternatives of what the job needs of its host.
    pub(super) fn any(&self) -> Result<(bool, Vec<Request>), LineError> {
        const EXPECTED: &str = "true or false (whether one of \"after\" is enough), or a list of alternatives like [{\"gpus\": 1}, {\"cpus\": 16}]";
        let key = "any";
        let items = match self.get(key) {
            None => return Ok((false, Vec::new())),
            Some(Value::Bool(any)) => return Ok((*any, Vec::new())),
            Some(Value::Array(items)) => items,
            Some(other) => return Err(wrong(key, EXPECTED, other)),
        };
        if items.is_empty() {
            return Err(LineError::value(key, "is a list without an alternative"));
        }
        let alternative = |(nth, item): (usize, &Value)| {
            let problem = |what: String| {
                LineError::value(key, format!("has an alternative {} {what}", nth + 1))
            };
            let Value::Object(object) = item else {
                return Err(problem(format!("that is {}, not an object", kind(item))));
            };
            let differs = [CPUS, GPUS, MEMORY, "resources"];
            if let Some(other) = object.keys().find(|key| !differs.contains(&key.as_str())) {
                let only = "only cpus, gpus, memory and resources can differ";
                return Err(problem(format!("with {other:?}: {only}")));
            }
            let request = Keys(object).resources();
            request.map_err(|error| problem(format!("whose {error}")))
        };
        let all: Result<_, _> = items.iter().enumerate().map(alternative).collect();
        Ok((false, all?))
    }

    /// `nodes`: how many whole hosts it holds; 0: none is asked for.
    pub(super) fn nodes(&self) -> Result<u32, LineError> {
        const EXPECTED: &str = "a whole number of hosts from 1, at most 1000000";
        const ALONE: [&str; 7] = [CPUS, GPUS, MEMORY, "resources", "host", "prefer", "follow"];
        let take = |value: &Value| {
            let nodes = value.as_u64()?.try_into().ok()?;
            (1..=NODES_MOST).contains(&nodes).then_some(nodes)
        };
        let Some(nodes) = self.read("nodes", EXPECTED, take)? else {
            return Ok(0);
        };
        let list = self.get("any").filter(|any| any.is_array()).map(|_| "any");
        let other = ALONE.into_iter().find(|key| self.get(key).is_some());
        match other.or(list) {
            None => Ok(nodes),
            Some(other) => Err(LineError::value(
                "nodes",
                format!(
                    "cannot stand beside {other:?}: such a job holds whole hosts, with all they have"
                ),
            )),
        }
    }

    /// Seconds, or a duration like `90s`, `15m`, `2h`, `1d`.
    pub(super) fn duration(&self, key: &'static str) -> Result<Option<f64>, LineError> {
        self.get(key).map(|value| seconds(key, value)).transpose()
    }

    pub(super) fn capture(&self) -> Result<Option<u64>, LineError> {
        match self.get("capture") {
            None => Ok(None),
            Some(Value::Bool(false)) => Ok(Some(0)),
            Some(Value::Bool(true)) => Ok(Some(super::outcome::CAPTURE)),
            Some(value) => bytes("capture", value).map(Some),
        }
    }

    pub(super) fn require(&self) -> Result<Require, LineError> {
        const EXPECTED: &str =
            "an object of lists: {\"programs\": […], \"files\": […], \"variables\": […]}";
        let key = "require";
        let Some(value) = self.get(key) else {
            return Ok(Require::default());
        };
        let Value::Object(object) = value else {
            return Err(wrong(key, EXPECTED, value));
        };
        if let Some(other) = object
            .keys()
            .find(|k| !["programs", "files", "variables"].contains(&k.as_str()))
        {
            let problem = format!(
                "has {other:?}: only \"programs\", \"files\" and \"variables\" can be required"
            );
            return Err(LineError::value(key, problem));
        }
        let keys = Keys(object);
        Ok(Require {
            programs: keys.strings("programs")?,
            files: keys.strings("files")?,
            variables: keys.strings("variables")?,
        })
    }
}

/// A number of units of a resource, or what it must be.
fn units(name: &str, value: &Value) -> Result<f64, String> {
    let number = match value {
        Value::Number(number) => number.as_f64(),
        Value::String(text) if !matches!(name, CPUS | GPUS) => resources::parse_units(text),
        _ => None,
    };
    let number = number.unwrap_or(f64::NAN);
    resources::check(name, number).map(|()| number)
}

/// Where a file goes that is named once: the same relative path, or its name alone when that would lead elsewhere.
pub(super) fn other_side(path: &str) -> String {
    let inside = !path.starts_with(['/', '~']) && !path.split('/').any(|part| part == "..");
    if inside {
        path.to_owned()
    } else {
        path.rsplit('/').next().unwrap_or(path).to_owned()
    }
}

pub(super) fn no_nul(key: &'static str, text: &str) -> Result<String, LineError> {
    if text.contains('\0') {
        return Err(LineError::value(key, "contains a NUL character"));
    }
    Ok(text.to_owned())
}

fn id(key: &'static str, value: &Value) -> Result<String, LineError> {
    match value {
        Value::String(text) if !text.is_empty() => Ok(text.clone()),
        Value::Number(number) if !number.is_f64() => Ok(number.to_string()),
        other => Err(wrong(
            key,
            if key == "id" {
                "a string or an integer"
            } else {
                "a list of ids"
            },
            other,
        )),
    }
}

fn seconds(key: &'static str, value: &Value) -> Result<f64, LineError> {
    const EXPECTED: &str =
        "a number of seconds from 0, or a duration like \"90s\", \"15m\", \"2h\" or \"1d\"";
    match value {
        Value::String(text) => parse_duration(text),
        _ => value.as_f64().filter(|s| s.is_finite() && *s >= 0.0),
    }
    .ok_or_else(|| wrong(key, EXPECTED, value))
}

fn bytes(key: &'static str, value: &Value) -> Result<u64, LineError> {
    match value {
        Value::Number(number) => number.as_u64(),
        Value::String(text) => size::parse(text),
        _ => None,
    }
    .ok_or_else(|| {
        wrong(
            key,
            "a number of bytes, or a size like \"64K\" or \"2G\"",
            value,
        )
    })
}

pub(super) fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "true or false",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

fn found(value: &Value) -> String {
    match value {
        Value::Number(number) => format!("the number {number}"),
        Value::Bool(value) => value.to_string(),
        Value::String(text) if text.len() <= 40 => format!("the string {text:?}"),
        other => kind(other).to_owned(),
    }
}

pub(super) fn wrong(key: &'static str, expected: &'static str, value: &Value) -> LineError {
    let found = found(value);
    LineError::WrongType {
        key,
        expected,
        found,
    }
}
