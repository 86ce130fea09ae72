//! Graph dependencies: `after` and `follow` of a task.

use serde::{
    Deserialize, Deserializer, Serialize,
    de::{IgnoredAny, MapAccess, SeqAccess, Visitor},
};

/// A set of message ids and how their outcomes count.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Dependency {
    /// The tasks depended on.
    #[serde(rename = "dependencies")]
    pub ids: Vec<String>,
    /// All of them (default), or any one.
    pub all: bool,
    /// Whether a success counts (default).
    pub success: bool,
    /// Whether a failure counts (default: no).
    pub failure: bool,
}

impl Default for Dependency {
    fn default() -> Self {
        Self {
            ids: Vec::new(),
            all: true,
            success: true,
            failure: false,
        }
    }
}

impl Dependency {
    /// Whether nothing is depended on.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.ids.is_empty()
    }
}

/// On the wire a list of ids, a map, one id, or nothing.
impl<'de> Deserialize<'de> for Dependency {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Shape;
        impl<'de> Visitor<'de> for Shape {
            type Value = Dependency;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("a list of message ids or {dependencies, all, success, failure}")
            }
            fn visit_unit<E>(self) -> Result<Dependency, E> {
                Ok(Dependency::default())
            }
            fn visit_none<E>(self) -> Result<Dependency, E> {
                Ok(Dependency::default())
            }
            fn visit_str<E>(self, id: &str) -> Result<Dependency, E> {
                Ok(Dependency {
                    ids: vec![id.to_owned()],
                    ..Dependency::default()
                })
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Dependency, A::Error> {
                let mut ids = Vec::new();
                while let Some(id) = seq.next_element()? {
                    ids.push(id);
                }
                Ok(Dependency {
                    ids,
                    ..Dependency::default()
                })
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Dependency, A::Error> {
                let mut dependency = Dependency::default();
                while let Some(key) = map.next_key::<std::borrow::Cow<'_, str>>()? {
                    match &*key {
                        "dependencies" => {
                            dependency.ids =
                                map.next_value::<Option<Vec<String>>>()?.unwrap_or_default()
                        }
                        "all" => dependency.all = map.next_value()?,
                        "success" => dependency.success = map.next_value()?,
                        "failure" => dependency.failure = map.next_value()?,
                        _ => drop(map.next_value::<IgnoredAny>()?),
                    }
                }
                Ok(dependency)
            }
        }
        deserializer.deserialize_any(Shape)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::session::Packer;

    #[test]
    fn takes_every_shape() {
        for (json, ids, all) in [
            ("null", 0, true),
            ("[]", 0, true),
            ("[\"a\",\"b\"]", 2, true),
            ("\"a\"", 1, true),
            (
                "{\"dependencies\":[\"a\"],\"all\":false,\"success\":true,\"failure\":true,\"more\":[1]}",
                1,
                false,
            ),
        ] {
            let dependency: Dependency = Packer::Json.unpack(json.as_bytes()).unwrap();
            assert_eq!((dependency.ids.len(), dependency.all), (ids, all), "{json}");
        }
        assert!(Packer::Json.unpack::<Dependency>(b"7").is_err());
    }
}
