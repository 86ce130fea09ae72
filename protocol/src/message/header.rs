//! Message headers.

use std::borrow::Cow;

use serde::{Deserialize, Serialize};

use crate::value::Map;

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
    /// The requester's session id.
    #[serde(borrow, default)]
    pub session: Cow<'a, str>,
    /// When the request was made.
    #[serde(borrow, default)]
    pub date: Cow<'a, str>,
}
