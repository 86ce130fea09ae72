//! Values that an engine holds for its clients, by name.

use std::{collections::HashMap, io::Cursor};

use parking_lot::Mutex;
use serde::{Deserialize, Serialize, de::DeserializeOwned, de::IgnoredAny};

use super::FunctionError;

/// Named values, packed. Clients push and pull them; functions read and write them.
#[derive(Debug, Default)]
pub struct Values(Mutex<HashMap<String, Vec<u8>>>);

impl Values {
    /// Reads a value.
    ///
    /// # Errors
    /// `NameError` when there is none of this name, `TypeError` when it is of another type.
    pub fn get<T: DeserializeOwned>(&self, name: &str) -> Result<T, FunctionError> {
        let map = self.0.lock();
        let packed = map
            .get(name)
            .ok_or_else(|| FunctionError::new("NameError", format!("no value {name:?} here")))?;
        rmp_serde::from_slice(packed)
            .map_err(|error| FunctionError::new("TypeError", format!("value {name:?}: {error}")))
    }

    /// Sets a value.
    ///
    /// # Errors
    /// `TypeError` when it cannot be packed.
    pub fn set<T: Serialize + ?Sized>(&self, name: &str, value: &T) -> Result<(), FunctionError> {
        let packed = rmp_serde::to_vec_named(value)
            .map_err(|error| FunctionError::new("TypeError", format!("value {name:?}: {error}")))?;
        self.0.lock().insert(name.to_owned(), packed);
        Ok(())
    }

    /// Removes a value; whether there was one.
    pub fn remove(&self, name: &str) -> bool {
        self.0.lock().remove(name).is_some()
    }

    /// The names, sorted.
    #[must_use]
    pub fn names(&self) -> Vec<String> {
        let mut names: Vec<String> = self.0.lock().keys().cloned().collect();
        names.sort_unstable();
        names
    }

    /// Forgets everything.
    pub fn clear(&self) {
        self.0.lock().clear();
    }

    /// Takes a packed map of names to values; the values stay packed as they are.
    pub(super) fn push(&self, packed: &[u8]) -> Result<(), FunctionError> {
        let wrong = |what: &dyn std::fmt::Display| {
            FunctionError::new("TypeError", format!("push takes a map: {what}"))
        };
        let (&marker, rest) = packed.split_first().ok_or_else(|| wrong(&"nothing came"))?;
        let (count, header) = match (marker, rest) {
            (0x80..=0x8f, _) => (u32::from(marker & 15), 1),
            (0xde, [a, b, ..]) => (u32::from(u16::from_be_bytes([*a, *b])), 3),
            (0xdf, [a, b, c, d, ..]) => (u32::from_be_bytes([*a, *b, *c, *d]), 5),
            _ => return Err(wrong(&"this is none")),
        };
        let mut cursor = Cursor::new(packed);
        cursor.set_position(header);
        let mut pushed = Vec::new();
        for _ in 0..count {
            let name = String::deserialize(&mut rmp_serde::Deserializer::new(&mut cursor))
                .map_err(|e| wrong(&e))?;
            let from = cursor.position() as usize;
            IgnoredAny::deserialize(&mut rmp_serde::Deserializer::new(&mut cursor))
                .map_err(|e| wrong(&e))?;
            pushed.push((name, packed[from..cursor.position() as usize].to_vec()));
        }
        self.0.lock().extend(pushed);
        Ok(())
    }

    /// Appends the packed values of one name, or the array of the values of a list of names.
    pub(super) fn pull(
        &self,
        packed: &[u8],
        host: &str,
        id: u32,
        out: &mut Vec<u8>,
    ) -> Result<(), FunctionError> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Names {
            One(String),
            Many(Vec<String>),
        }
        let names = rmp_serde::from_slice(packed).map_err(|error| {
            FunctionError::new(
                "TypeError",
                format!("pull takes a name or a list of names: {error}"),
            )
        })?;
        let map = self.0.lock();
        let missing = |name| {
            FunctionError::new(
                "NameError",
                format!("no value {name:?} on engine {id} ({host})"),
            )
        };
        match names {
            Names::One(name) => out.extend_from_slice(map.get(&name).ok_or_else(|| missing(name))?),
            Names::Many(names) => {
                out.push(0xdd);
                out.extend_from_slice(&(names.len() as u32).to_be_bytes());
                for name in names {
                    out.extend_from_slice(map.get(&name).ok_or_else(|| missing(name))?);
                }
            }
        }
        Ok(())
    }
}
