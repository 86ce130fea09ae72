//! Message headers.

use std::borrow::Cow;

use serde::{Deserialize, Serialize};

use crate::{
    fields::fields,
    session::{Packer, UnpackError},
    value::Map,
};

/// A message's header, owned.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Header {
    /// Unique id of the message; a task is known by its request's.
    pub msg_id: String,
    /// What the message is, one of [`super::types`].
    pub msg_type: String,
    /// The sender's user name.
    #[serde(default)]
    pub username: String,
    /// The sender's session id.
    #[serde(default)]
    pub session: String,
    /// When it was made: ISO 8601, UTC.
    #[serde(default)]
    pub date: String,
    /// Version of the Jupyter protocol.
    #[serde(default)]
    pub version: String,
    /// Keys that this version does not know.
    #[serde(flatten)]
    pub extra: Map,
}

/// A header as the hot path needs it: borrowed, only what routes.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct HeaderRef<'a> {
    /// Unique id of the message.
    #[serde(borrow)]
    pub msg_id: Cow<'a, str>,
    /// What the message is.
    #[serde(borrow)]
    pub msg_type: Cow<'a, str>,
    /// The sender's session id.
    #[serde(borrow, default)]
    pub session: Cow<'a, str>,
    /// When it was made.
    #[serde(borrow, default)]
    pub date: Cow<'a, str>,
}

/// The parent header of a reply: only whose reply it is.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
pub struct ParentRef<'a> {
    /// The request's id; empty when there is no parent.
    #[serde(borrow, default)]
    pub msg_id: Cow<'a, str>,
    /// The request's type.
    #[serde(borrow, default)]
    pub msg_type: Cow<'a, str>,
}

impl<'a> HeaderRef<'a> {
    /// Reads a packed header; the same as unpacking it, several times faster.
    ///
    /// # Errors
    /// [`UnpackError`] when the bytes are no header.
    pub fn read(packer: Packer, packed: &'a [u8]) -> Result<Self, UnpackError> {
        if packer == Packer::Msgpack
            && let Some([Some(msg_id), Some(msg_type), session, date]) =
                texts(packed, ["msg_id", "msg_type", "session", "date"])
        {
            return Ok(Self {
                msg_id: msg_id.into(),
                msg_type: msg_type.into(),
                session: session.unwrap_or_default().into(),
                date: date.unwrap_or_default().into(),
            });
        }
        packer.unpack(packed)
    }

    /// Only the date of a packed header.
    ///
    /// # Errors
    /// [`UnpackError`] when the bytes are no header.
    pub fn date(packer: Packer, packed: &'a [u8]) -> Result<Cow<'a, str>, UnpackError> {
        match text(packer, packed, "date") {
            Some(date) => Ok(date.into()),
            None => Ok(Self::read(packer, packed)?.date),
        }
    }
}

impl<'a> ParentRef<'a> {
    /// Only the request's id of a packed parent header.
    ///
    /// # Errors
    /// As [`ParentRef::read`].
    pub fn id(packer: Packer, packed: &'a [u8]) -> Result<Cow<'a, str>, UnpackError> {
        match text(packer, packed, "msg_id") {
            Some(id) => Ok(id.into()),
            None => Ok(Self::read(packer, packed)?.msg_id),
        }
    }

    /// Reads a packed parent header; the same as unpacking it, several times faster.
    ///
    /// # Errors
    /// [`UnpackError`] when the bytes are neither a header nor an empty map.
    pub fn read(packer: Packer, packed: &'a [u8]) -> Result<Self, UnpackError> {
        if packer == Packer::Msgpack
            && let Some(texts) = texts(packed, ["msg_id", "msg_type"])
        {
            let [msg_id, msg_type] = texts.map(|text| text.unwrap_or_default().into());
            return Ok(Self { msg_id, msg_type });
        }
        packer.unpack(packed)
    }
}

/// One text of a header, if it is there and serde is not needed to read it.
fn text<'a>(packer: Packer, packed: &'a [u8], name: &str) -> Option<&'a str> {
    if packer != Packer::Msgpack {
        return None;
    }
    let [field] = fields(packed, [name])?;
    field?.text()
}

/// Texts of a header, unless it takes serde to read it.
fn texts<'a, const N: usize>(packed: &'a [u8], names: [&str; N]) -> Option<[Option<&'a str>; N]> {
    let found = fields(packed, names)?;
    let mut texts = [None; N];
    for (text, field) in texts.iter_mut().zip(found) {
        if let Some(field) = field {
            *text = Some(field.text()?);
        }
    }
    Some(texts)
}
