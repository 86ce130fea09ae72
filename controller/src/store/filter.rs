//! The peer's query language: `{field: value}` or `{field: {"$op": value, …}}`, all of which must hold; and `$and`, `$or`, `$not`.

use std::cmp::Ordering;

use serde_json::{Map, Value};

use super::unpack::parse_time;
use crate::error::NamedError;

/// The fields of a record, in the peer's order.
pub(crate) const FIELDS: [&str; 23] = [
    "msg_id",
    "header",
    "metadata",
    "content",
    "buffers",
    "submitted",
    "client_uuid",
    "engine_uuid",
    "started",
    "completed",
    "resubmitted",
    "received",
    "result_header",
    "result_metadata",
    "result_content",
    "result_buffers",
    "queue",
    "execute_input",
    "execute_result",
    "error",
    "stdout",
    "stderr",
    "label",
];

/// Nesting that is still answered.
const DEPTH: usize = 32;

/// Whether a field is a time.
pub(crate) fn is_time(field: &str) -> bool {
    matches!(field, "submitted" | "started" | "completed" | "received")
}

/// A condition on records.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Filter {
    All(Vec<Filter>),
    Any(Vec<Filter>),
    Not(Box<Filter>),
    Field(String, Op, Value),
}

/// What a field is compared by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Op {
    Lt,
    Gt,
    Lte,
    Gte,
    Eq,
    Ne,
    In,
    Nin,
    All,
    Mod,
    Exists,
    Glob,
}

impl Op {
    fn parse(name: &str) -> Option<Op> {
        Some(match name {
            "$lt" => Op::Lt,
            "$gt" => Op::Gt,
            "$lte" => Op::Lte,
            "$gte" => Op::Gte,
            "$eq" => Op::Eq,
            "$ne" => Op::Ne,
            "$in" => Op::In,
            "$nin" => Op::Nin,
            "$all" => Op::All,
            "$mod" => Op::Mod,
            "$exists" => Op::Exists,
            "$glob" => Op::Glob,
            _ => return None,
        })
    }
}

/// A time, as the fields that are times are compared.
fn time(value: &Value) -> Value {
    match value {
        Value::String(text) => parse_time(text).map_or(Value::Null, Value::from),
        Value::Array(list) => list.iter().map(time).collect(),
        other => other.clone(),
    }
}

impl Filter {
    /// Reads a query.
    pub(crate) fn parse(query: &Map<String, Value>) -> Result<Filter, NamedError> {
        Self::all(query, DEPTH)
    }

    fn all(query: &Map<String, Value>, depth: usize) -> Result<Filter, NamedError> {
        let mut tests = Vec::new();
        for (name, value) in query {
            Self::test(name, value, depth, &mut tests)?;
        }
        Ok(Filter::All(tests))
    }

    fn list(name: &str, value: &Value, depth: usize) -> Result<Vec<Filter>, NamedError> {
        let wrong = || NamedError::value(format!("{name} takes a list of queries"));
        let depth = depth
            .checked_sub(1)
            .ok_or_else(|| NamedError::value("the query is nested too deeply"))?;
        let list = value.as_array().ok_or_else(wrong)?;
        list.iter()
            .map(|q| Self::all(q.as_object().ok_or_else(wrong)?, depth))
            .collect()
    }

    fn test(
        name: &str,
        value: &Value,
        depth: usize,
        tests: &mut Vec<Filter>,
    ) -> Result<(), NamedError> {
        match name {
            "$and" => tests.push(Filter::All(Self::list(name, value, depth)?)),
            "$or" => tests.push(Filter::Any(Self::list(name, value, depth)?)),
            "$nor" => tests.push(Filter::Not(Box::new(Filter::Any(Self::list(
                name, value, depth,
            )?)))),
            _ if !FIELDS.contains(&name) || matches!(name, "buffers" | "result_buffers") => {
                return Err(NamedError::key(format!(
                    "Illegal testing key(s): {{'{name}'}}"
                )));
            }
            _ => match value {
                Value::Object(ops) => Self::ops(name, ops, depth, tests)?,
                other => tests.push(Self::field(name, Op::Eq, other)),
            },
        }
        Ok(())
    }

    fn ops(
        name: &str,
        ops: &Map<String, Value>,
        depth: usize,
        tests: &mut Vec<Filter>,
    ) -> Result<(), NamedError> {
        for (op, operand) in ops {
            if op == "$not" {
                let depth = depth
                    .checked_sub(1)
                    .ok_or_else(|| NamedError::value("the query is nested too deeply"))?;
                let mut inner = Vec::new();
                Self::test(name, operand, depth, &mut inner)?;
                tests.push(Filter::Not(Box::new(Filter::All(inner))));
                continue;
            }
            let known = Op::parse(op)
                .ok_or_else(|| NamedError::key(format!("Unsupported operator: '{op}'")))?;
            let fits = match known {
                Op::In | Op::Nin | Op::All => operand.is_array(),
                Op::Mod => operand
                    .as_array()
                    .is_some_and(|l| l.len() == 2 && l.iter().all(Value::is_i64)),
                Op::Glob => operand.is_string(),
                _ => true,
            };
            if !fits {
                return Err(NamedError::value(format!("{op} cannot take {operand}")));
            }
            tests.push(Self::field(name, known, operand));
        }
        Ok(())
    }

    fn field(name: &str, op: Op, operand: &Value) -> Filter {
        let typed = is_time(name) && !matches!(op, Op::Exists | Op::Glob);
        Filter::Field(
            name.to_owned(),
            op,
            if typed {
                time(operand)
            } else {
                operand.clone()
            },
        )
    }

    /// Whether a record matches; times among its fields are integers here.
    pub(crate) fn matches(&self, get: &dyn Fn(&str) -> Value) -> bool {
        match self {
            Filter::All(list) => list.iter().all(|f| f.matches(get)),
            Filter::Any(list) => list.iter().any(|f| f.matches(get)),
            Filter::Not(inner) => !inner.matches(get),
            Filter::Field(name, op, operand) => compare(*op, &get(name), operand),
        }
    }

    /// The fields it looks at.
    pub(crate) fn fields<'a>(&'a self, into: &mut Vec<&'a str>) {
        match self {
            Filter::All(list) | Filter::Any(list) => list.iter().for_each(|f| f.fields(into)),
            Filter::Not(inner) => inner.fields(into),
            Filter::Field(name, ..) => into.push(name),
        }
    }
}

fn compare(op: Op, value: &Value, operand: &Value) -> bool {
    let within = |list: &Value| {
        list.as_array()
            .is_some_and(|l| l.iter().any(|o| equal(value, o)))
    };
    match op {
        Op::Eq => equal(value, operand),
        Op::Ne => !equal(value, operand),
        Op::Lt => order(value, operand) == Some(Ordering::Less),
        Op::Gt => order(value, operand) == Some(Ordering::Greater),
        Op::Lte => matches!(
            order(value, operand),
            Some(Ordering::Less | Ordering::Equal)
        ),
        Op::Gte => matches!(
            order(value, operand),
            Some(Ordering::Greater | Ordering::Equal)
        ),
        Op::In => within(operand),
        Op::Nin => !within(operand),
        Op::All => operand.as_array().is_some_and(|all| {
            all.iter().all(|o| match value {
                Value::Array(items) => items.iter().any(|item| equal(item, o)),
                one => equal(one, o),
            })
        }),
        Op::Mod => {
            let number = |i: usize| operand.get(i).and_then(Value::as_i64);
            match (value.as_i64(), number(0), number(1)) {
                // As Python's: the sign is the divisor's.
                (Some(v), Some(d), Some(r)) if d != 0 => v.checked_rem(d).is_some_and(|m| {
                    (if m != 0 && (m < 0) != (d < 0) {
                        m + d
                    } else {
                        m
                    }) == r
                }),
                _ => false,
            }
        }
        Op::Exists => {
            let wanted = match operand {
                Value::Bool(wanted) => *wanted,
                Value::Null => false,
                Value::Number(n) => n.as_f64() != Some(0.0),
                _ => true,
            };
            value.is_null() != wanted
        }
        Op::Glob => match (value, operand) {
            (Value::String(text), Value::String(pattern)) => glob(pattern, text),
            _ => false,
        },
    }
}

fn equal(a: &Value, b: &Value) -> bool {
    match (a, b) {
        (Value::Number(x), Value::Number(y)) => x == y || x.as_f64() == y.as_f64(),
        _ => a == b,
    }
}

fn order(a: &Value, b: &Value) -> Option<Ordering> {
    match (a, b) {
        (Value::Number(x), Value::Number(y)) => match (x.as_i64(), y.as_i64()) {
            (Some(x), Some(y)) => Some(x.cmp(&y)),
            _ => x.as_f64()?.partial_cmp(&y.as_f64()?),
        },
        (Value::String(x), Value::String(y)) => Some(x.cmp(y)),
        (Value::Bool(x), Value::Bool(y)) => Some(x.cmp(y)),
        _ => None,
    }
}

/// Matches as Python's fnmatch: `*`, `?`, `[abc]`, `[a-c]`, `[!abc]`.
pub(crate) fn glob(pattern: &str, text: &str) -> bool {
    let (p, t): (Vec<char>, Vec<char>) = (pattern.chars().collect(), text.chars().collect());
    let (mut pi, mut ti) = (0, 0);
    // Where to go on when the last star has to take one more.
    let mut star: Option<(usize, usize)> = None;
    while ti < t.len() {
        let step = match p.get(pi) {
            Some('*') => {
                star = Some((pi + 1, ti));
                pi += 1;
                continue;
            }
            Some('?') => Some(1),
            Some('[') => match set(&p[pi..], t[ti]) {
                Some((true, len)) => Some(len),
                Some((false, _)) => None,
                None => (t[ti] == '[').then_some(1),
            },
            Some(c) => (*c == t[ti]).then_some(1),
            None => None,
        };
        match (step, star) {
            (Some(len), _) => {
                pi += len;
                ti += 1;
            }
            (None, Some((after, taken))) => {
                star = Some((after, taken + 1));
                (pi, ti) = (after, taken + 1);
            }
            (None, None) => return false,
        }
    }
    p[pi..].iter().all(|c| *c == '*')
}

/// Whether a set `[…]` has a character, and the set's length; `None` if it is not closed.
fn set(p: &[char], c: char) -> Option<(bool, usize)> {
    let negated = p.get(1) == Some(&'!');
    let start = 1 + usize::from(negated);
    // A bracket that comes first is an element.
    let end = (start + 1..p.len()).find(|i| p[*i] == ']')?;
    let inside = &p[start..end];
    let mut found = false;
    let mut i = 0;
    while i < inside.len() {
        if i + 2 < inside.len() && inside[i + 1] == '-' {
            found |= (inside[i]..=inside[i + 2]).contains(&c);
            i += 3;
        } else {
            found |= inside[i] == c;
            i += 1;
        }
    }
    Some((found != negated, end + 1))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn check(query: Value, record: Value) -> bool {
        let filter = Filter::parse(query.as_object().unwrap()).unwrap();
        filter.matches(&|name| {
            let value = record[name].clone();
            if is_time(name) { time(&value) } else { value }
        })
    }

    #[test]
    fn operators_are_the_peers() {
        let record = json!({"msg_id": "m1", "queue": "task", "completed": null, "label": "group_a/sub", "engine_uuid": "e1",
            "submitted": "2026-01-02T03:04:05.000006Z", "content": {"a": 5}});
        for (query, expected) in [
            (json!({}), true),
            (json!({"msg_id": "m1"}), true),
            (json!({"msg_id": null}), false),
            (json!({"msg_id": {"$ne": null}}), true),
            (json!({"msg_id": {"$ne": ""}}), true),
            (json!({"msg_id": {"$in": ["m0", "m1"]}}), true),
            (json!({"msg_id": {"$nin": ["m0", "m1"]}}), false),
            (json!({"completed": null}), true),
            (json!({"completed": {"$ne": null}}), false),
            (json!({"completed": {"$exists": false}}), true),
            (json!({"submitted": {"$exists": true}}), true),
            (json!({"submitted": "2026-01-02T03:04:05.000006Z"}), true),
            (
                json!({"submitted": "2026-01-02T04:04:05.000006+01:00"}),
                true,
            ),
            (
                json!({"submitted": {"$lt": "2026-01-02T03:04:05.000006Z"}}),
                false,
            ),
            (
                json!({"submitted": {"$lte": "2026-01-02T03:04:05.000006Z"}}),
                true,
            ),
            (
                json!({"submitted": {"$gt": "2026-01-02T03:04:05Z", "$lt": "2026-01-02T03:04:06Z"}}),
                true,
            ),
            (
                json!({"submitted": {"$gte": "2026-01-02T03:04:06Z"}}),
                false,
            ),
            (json!({"completed": {"$lt": "2030-01-01T00:00:00Z"}}), false),
            (json!({"label": {"$glob": "group_a*"}}), true),
            (json!({"label": {"$glob": "group_?"}}), false),
            (json!({"content": {"$eq": {"a": 5}}}), true),
            (json!({"$or": [{"msg_id": "x"}, {"queue": "task"}]}), true),
            (json!({"$and": [{"msg_id": "x"}, {"queue": "task"}]}), false),
            (json!({"$nor": [{"msg_id": "x"}, {"queue": "mux"}]}), true),
            (json!({"queue": {"$not": {"$eq": "task"}}}), false),
            (json!({"queue": {"$not": "mux"}}), true),
            (json!({"queue": {"$all": ["task"]}}), true),
            (json!({"queue": {"$all": ["task", "mux"]}}), false),
        ] {
            assert_eq!(check(query.clone(), record.clone()), expected, "{query}");
        }
        assert!(
            compare(Op::Mod, &json!(-1), &json!([4, 3])),
            "Python's modulo"
        );
        assert!(!compare(Op::Mod, &json!(5), &json!([4, 3])));
    }

    #[test]
    fn errors_are_the_peers() {
        let parse = |q: Value| Filter::parse(q.as_object().unwrap()).unwrap_err();
        assert_eq!(
            parse(json!({"msg_id": {"$foo": 1}})).evalue,
            "Unsupported operator: '$foo'"
        );
        assert_eq!(
            parse(json!({"nonsense": 1})).evalue,
            "Illegal testing key(s): {'nonsense'}"
        );
        assert_eq!(parse(json!({"nonsense": 1})).ename, "KeyError");
        assert_eq!(parse(json!({"msg_id": {"$in": 1}})).ename, "ValueError");
        let mut deep = json!({"msg_id": "x"});
        for _ in 0..100 {
            deep = json!({"$or": [deep]});
        }
        assert!(parse(deep).evalue.contains("deeply"));
    }

    #[test]
    fn globs_are_fnmatch() {
        for (pattern, text, expected) in [
            ("group_b/subgroup_[ab]", "group_b/subgroup_a", true),
            ("group_b/subgroup_[ab]", "group_b/subgroup_c", false),
            ("*/subgroup_a", "group_a/subgroup_a", true),
            ("*[*]*", "label*task", true),
            ("*[*]*", "label?task", false),
            ("*[?]*", "label?task", true),
            ("[!a-c]x", "dx", true),
            ("[!a-c]x", "bx", false),
            ("[]]", "]", true),
            ("[x", "[x", true),
            ("a*b*c", "aXbXbXc", true),
            ("a*b*c", "aXbXbX", false),
            ("", "", true),
            ("*", "", true),
            ("?", "", false),
        ] {
            assert_eq!(glob(pattern, text), expected, "{pattern} {text}");
        }
    }
}
