//! Just enough reading of headers, metadata and contents: a few fields quickly while writing, all of them when asked.

use std::borrow::Cow;

use serde::de::{Deserialize, Deserializer, IgnoredAny};
use serde_json::Value;

use ipbroker_protocol::{session::Packer, time, value::Any};

/// The fields of headers, metadata and contents that have columns. What has another type than expected is not there.
#[derive(Debug, Default, serde::Deserialize)]
#[serde(default)]
pub(crate) struct Glance<'a> {
    #[serde(borrow, deserialize_with = "text")]
    pub(crate) date: Option<Cow<'a, str>>,
    #[serde(borrow, deserialize_with = "text")]
    pub(crate) session: Option<Cow<'a, str>>,
    #[serde(borrow, deserialize_with = "text")]
    pub(crate) msg_type: Option<Cow<'a, str>>,
    #[serde(borrow, deserialize_with = "text")]
    pub(crate) label: Option<Cow<'a, str>>,
    #[serde(borrow, deserialize_with = "text")]
    pub(crate) started: Option<Cow<'a, str>>,
    #[serde(borrow, deserialize_with = "text")]
    pub(crate) completed: Option<Cow<'a, str>>,
    #[serde(borrow, deserialize_with = "text")]
    pub(crate) cmd: Option<Cow<'a, str>>,
    #[serde(borrow, deserialize_with = "text")]
    pub(crate) name: Option<Cow<'a, str>>,
    #[serde(borrow, deserialize_with = "text")]
    pub(crate) ename: Option<Cow<'a, str>>,
    #[serde(deserialize_with = "integer")]
    pub(crate) code: Option<i64>,
    #[serde(deserialize_with = "integer")]
    pub(crate) array: Option<i64>,
    pub(crate) same: Option<bool>,
}

impl<'a> Glance<'a> {
    pub(crate) fn at(packed: &'a [u8], packing: Packer) -> Self {
        packing.unpack(packed).unwrap_or_default()
    }
}

fn text<'de, D: Deserializer<'de>>(d: D) -> Result<Option<Cow<'de, str>>, D::Error> {
    Ok(match Scalar::deserialize(d)? {
        Scalar::Text(text) => Some(text),
        _ => None,
    })
}

fn integer<'de, D: Deserializer<'de>>(d: D) -> Result<Option<i64>, D::Error> {
    Ok(match Scalar::deserialize(d)? {
        Scalar::Integer(value) => Some(value),
        _ => None,
    })
}

#[derive(serde::Deserialize)]
#[serde(untagged)]
enum Scalar<'a> {
    Text(#[serde(borrow)] Cow<'a, str>),
    Integer(i64),
    Other(IgnoredAny),
}

/// Anything, as JSON: bytes become text if they are, else lists of numbers; numbers JSON has not become null.
struct Loose(Value);

impl<'de> Deserialize<'de> for Loose {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        let text = |bytes: &[u8]| {
            std::str::from_utf8(bytes).map_or_else(|_| bytes.to_vec().into(), Value::from)
        };
        d.deserialize_any(Any(text)).map(Loose)
    }
}

/// Unpacks whatever this is; what cannot be unpacked is null.
pub(crate) fn unpack(packed: &[u8], packing: Packer) -> Value {
    if packed.is_empty() {
        return Value::Null;
    }
    let loose = packing.unpack(packed);
    loose.map_or(Value::Null, |Loose(value)| value)
}

/// Whether this is an empty map.
pub(crate) fn is_empty_map(packed: &[u8]) -> bool {
    matches!(packed, [] | [0x80] | b"{}")
}

/// An ISO 8601 time as microseconds since 1970; without an offset it is local, as with the peer.
pub(crate) fn parse_time(text: &str) -> Option<i64> {
    if text.len() < 19 || text.as_bytes()[4] != b'-' {
        return None;
    }
    if let Ok(at) = text.parse::<jiff::Timestamp>() {
        return Some(at.as_microsecond());
    }
    let local: jiff::civil::DateTime = text.parse().ok()?;
    local
        .to_zoned(jiff::tz::TimeZone::system())
        .ok()
        .map(|z| z.timestamp().as_microsecond())
}

/// A time as everybody writes it on the wire.
pub(crate) fn format_time(us: i64) -> String {
    jiff::Timestamp::from_microsecond(us).map_or_else(|_| String::new(), time::utc)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn times_go_round() {
        let us = 1_700_000_000_123_456;
        assert_eq!(format_time(us), "2023-11-14T22:13:20.123456Z");
        assert_eq!(parse_time(&format_time(us)), Some(us));
        assert_eq!(parse_time("2023-11-14T23:13:20.123456+01:00"), Some(us));
        assert_eq!(
            parse_time("2023-11-14T22:13:20Z"),
            Some(1_700_000_000_000_000)
        );
        assert_eq!(parse_time("not a time, surely"), None);
        assert!(
            parse_time("2023-11-14T22:13:20.5").is_some(),
            "local times are read"
        );
    }

    #[test]
    fn glances_survive_odd_types() {
        let odd = json!({"date": 5, "session": "s", "msg_type": ["x", {"y": 1}], "code": 127, "label": null, "name": {"a": [1]}});
        for packing in [Packer::Msgpack, Packer::Json] {
            let packed = packing.pack(&odd);
            let glance = Glance::at(&packed, packing);
            assert_eq!(glance.session.as_deref(), Some("s"));
            assert_eq!(glance.code, Some(127));
            assert!(
                glance.date.is_none()
                    && glance.msg_type.is_none()
                    && glance.label.is_none()
                    && glance.name.is_none()
            );
        }
        assert!(Glance::at(b"\xff\xff", Packer::Msgpack).date.is_none());
    }

    #[test]
    fn anything_unpacks() {
        // {"b": bin "hi", 1: bin ff, "f": NaN}
        let packed = b"\x83\xa1b\xc4\x02hi\x01\xc4\x01\xff\xa1f\xcb\x7f\xf8\0\0\0\0\0\0";
        assert_eq!(
            unpack(packed, Packer::Msgpack),
            json!({"b": "hi", "1": [255], "f": null})
        );
        assert_eq!(unpack(b"\x81", Packer::Msgpack), Value::Null);
        let value = json!({"a": [1, -2, 3.5, "x", null, true], "m": {"n": {}}});
        for packing in [Packer::Msgpack, Packer::Json] {
            assert_eq!(unpack(&packing.pack(&value), packing), value);
        }
    }
}
