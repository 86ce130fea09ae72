//! A map whose shape is not known: unknown keys are kept, and MessagePack binaries become base64 text as in Jupyter's JSON.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde::{
    Deserialize, Deserializer, Serialize,
    de::{DeserializeSeed, MapAccess, SeqAccess, Visitor},
};

/// A string-keyed map of anything.
pub type Map = serde_json::Map<String, serde_json::Value>;

/// Reads a value that may be null, which stands for its default.
///
/// # Errors
/// When it is neither.
pub fn or_null<'de, T, D>(deserializer: D) -> Result<T, D::Error>
where
    T: Default + Deserialize<'de>,
    D: Deserializer<'de>,
{
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

/// Any packed value, decoded from either packer.
#[derive(Debug, Clone, PartialEq, Serialize, Default)]
#[serde(transparent)]
pub struct Value(pub serde_json::Value);

impl<'de> Deserialize<'de> for Value {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let base64 = |bytes: &[u8]| STANDARD.encode(bytes).into();
        deserializer.deserialize_any(Any(base64)).map(Value)
    }
}

/// A map whose values may hold binaries; unknown keys live here.
#[derive(Debug, Clone, PartialEq, Serialize, Default)]
#[serde(transparent)]
pub struct AnyMap(pub Map);

impl<'de> Deserialize<'de> for AnyMap {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match Value::deserialize(deserializer)?.0 {
            serde_json::Value::Object(map) => Ok(AnyMap(map)),
            other => Err(serde::de::Error::custom(format_args!(
                "a map was expected, not {other}"
            ))),
        }
    }
}

/// Visits any value; what bytes become says this function. [`Value`]: base64 with padding, as Jupyter's JSON has it.
#[derive(Clone, Copy)]
pub struct Any(pub fn(&[u8]) -> serde_json::Value);

impl<'de> DeserializeSeed<'de> for Any {
    type Value = serde_json::Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Any {
    type Value = serde_json::Value;

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("any value")
    }
    fn visit_bool<E>(self, v: bool) -> Result<Self::Value, E> {
        Ok(v.into())
    }
    fn visit_i64<E>(self, v: i64) -> Result<Self::Value, E> {
        Ok(v.into())
    }
    fn visit_u64<E>(self, v: u64) -> Result<Self::Value, E> {
        Ok(v.into())
    }
    fn visit_f64<E>(self, v: f64) -> Result<Self::Value, E> {
        Ok(v.into())
    }
    fn visit_str<E>(self, v: &str) -> Result<Self::Value, E> {
        Ok(v.into())
    }
    fn visit_string<E>(self, v: String) -> Result<Self::Value, E> {
        Ok(v.into())
    }
    fn visit_bytes<E>(self, v: &[u8]) -> Result<Self::Value, E> {
        Ok((self.0)(v))
    }
    fn visit_unit<E>(self) -> Result<Self::Value, E> {
        Ok(serde_json::Value::Null)
    }
    fn visit_none<E>(self) -> Result<Self::Value, E> {
        Ok(serde_json::Value::Null)
    }
    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_any(self)
    }
    fn visit_newtype_struct<D: Deserializer<'de>>(
        self,
        deserializer: D,
    ) -> Result<Self::Value, D::Error> {
        // A MessagePack extension: (tag, bytes).
        deserializer.deserialize_any(self)
    }
    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Self::Value, A::Error> {
        let mut items = Vec::new();
        while let Some(item) = seq.next_element_seed(self)? {
            items.push(item);
        }
        Ok(items.into())
    }
    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut items = Map::new();
        while let Some((key, value)) = map.next_entry_seed(self, self)? {
            let key = match key {
                serde_json::Value::String(key) => key,
                other => other.to_string(),
            };
            items.insert(key, value);
        }
        Ok(items.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::session::Packer;

    #[test]
    fn binaries_become_base64() {
        // {"a": bytes "fo", 1: nil}
        let packed = [0x82, 0xa1, b'a', 0xc4, 2, b'f', b'o', 0x01, 0xc0];
        let AnyMap(map) = Packer::Msgpack.unpack(&packed).unwrap();
        assert_eq!(map["a"], "Zm8=");
        assert!(map["1"].is_null());
    }
}
