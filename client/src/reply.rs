//! A reply as it came: packed until someone asks for a value.

use std::sync::{Arc, OnceLock};

use ipbroker_protocol::array::{View, member_id};
use ipbroker_protocol::frames::Frames;
use ipbroker_protocol::message::{CommandResult, ErrorContent, ParentRef, ReplyMetadata};
use ipbroker_protocol::session::Packer;
use ipbroker_protocol::time;
use jiff::Timestamp;
use serde::Deserialize;
use serde::de::DeserializeOwned;

use crate::error::{Error, Result, TaskError};

/// Metadata of a reply.
#[derive(Debug, Clone, PartialEq, Default, Deserialize)]
#[serde(default)]
pub struct ReplyInfo {
    /// `ok`, `error` or `aborted`.
    pub status: String,
    /// The engine's uuid.
    pub engine: Option<String>,
    /// The engine's number.
    pub engine_id: Option<u32>,
    /// The engine's host.
    pub host: Option<String>,
    /// When it began: ISO 8601 UTC, in the controller's clock.
    pub started: Option<String>,
    /// When it ended.
    pub completed: Option<String>,
    /// Run time in s; of a range, the sum.
    pub duration: Option<f64>,
    /// The members that the reply is about.
    pub range: Option<(u64, u64)>,
    /// Members that did not end well.
    pub failed: Vec<(u64, String)>,
    /// One value stands for all members.
    pub same: bool,
    /// How often it had been given to an engine before: tries, and what was given back.
    pub attempt: u32,
}

/// What the content of an array's reply tells of one member: seconds from the range's beginning to its own, its run time in
/// s, and what it printed.
#[derive(Debug, Clone, Deserialize)]
pub struct MemberInfo(f64, f64, pub Option<String>, pub Option<String>);

impl MemberInfo {
    /// Puts the member's times in place of its range's.
    pub fn place(&self, info: &mut ReplyInfo) {
        let began: Option<Timestamp> = info.started.as_deref().and_then(|text| text.parse().ok());
        if let Some(began) = began {
            let started = time::shifted(began, self.0);
            info.started = Some(time::utc(started));
            info.completed = Some(time::utc(time::shifted(started, self.1)));
        }
        info.duration = Some(self.1);
    }
}

/// The members of which an array's reply tells by themselves, from its content.
pub fn members(content: &[u8]) -> Vec<MemberInfo> {
    #[derive(Deserialize, Default)]
    #[serde(default)]
    struct Content {
        members: Vec<MemberInfo>,
    }
    member_map::<Content>(content).unwrap_or_default().members
}

/// What members of a range from `lo` printed, as the content of its reply tells it: which one, on stdout, on stderr.
pub fn printed(content: &[u8], lo: u64) -> Vec<(u64, String, String)> {
    type Printed = (u64, Option<String>, Option<String>);
    #[derive(Deserialize, Default)]
    #[serde(default)]
    struct Content {
        members: Vec<MemberInfo>,
        printed: Vec<Printed>,
    }
    let Content { members, printed } = member_map(content).unwrap_or_default();
    let members = (lo..).zip(members);
    let each = members.map(|(at, MemberInfo(_, _, stdout, stderr))| (at, stdout, stderr));
    let all = each.chain(printed);
    let some = all.filter(|(_, stdout, stderr)| stdout.is_some() || stderr.is_some());
    let text = |text: Option<String>| text.unwrap_or_default();
    some.map(|(at, stdout, stderr)| (at, text(stdout), text(stderr)))
        .collect()
}

/// One reply: of a task, or of a range of an array.
#[derive(Debug)]
pub struct Reply {
    frames: Frames,
    /// Where its header is.
    header: usize,
    packer: Packer,
    array: bool,
    /// When it arrived here, by the controller's clock.
    pub received: Timestamp,
    info: OnceLock<ReplyInfo>,
    members: OnceLock<Vec<MemberInfo>>,
    checked: OnceLock<bool>,
}

impl Reply {
    pub(crate) fn new(frames: Frames, packer: Packer, array: bool, received: Timestamp) -> Self {
        // Identities, delimiter, signature.
        let header = frames.parts().map_or(0, |(identities, _)| identities + 2);
        Self {
            frames,
            header,
            packer,
            array,
            received,
            info: OnceLock::new(),
            members: OnceLock::new(),
            checked: OnceLock::new(),
        }
    }

    /// Its metadata.
    pub fn info(&self) -> &ReplyInfo {
        self.info.get_or_init(|| {
            let mut info: ReplyInfo = self.packer.unpack(self.metadata()).unwrap_or_default();
            info.failed.sort_unstable();
            info
        })
    }

    /// What it tells of one member.
    pub fn member_info(&self, index: u64) -> ReplyInfo {
        let mut info = self.info().clone();
        let (lo, _) = info.range.take().unwrap_or_default();
        if self.has_members() {
            let failed = info.failed.iter().find(|(at, _)| *at == index);
            info.status = failed.map_or("ok".into(), |(_, how)| how.clone());
            info.failed = Vec::new();
        }
        let members = self.members.get_or_init(|| members(self.packed_content()));
        if let Some(member) = members.get(index.wrapping_sub(lo) as usize) {
            member.place(&mut info);
        }
        info
    }

    /// Id of the request.
    pub fn parent_id(&self) -> String {
        ParentRef::read(self.packer, &self.frames[self.header + 1])
            .map(|parent| parent.msg_id.into_owned())
            .unwrap_or_default()
    }

    /// Its metadata, packed.
    pub fn metadata(&self) -> &[u8] {
        &self.frames[self.header + 2]
    }

    /// Its content, packed.
    pub fn packed_content(&self) -> &[u8] {
        &self.frames[self.header + 3]
    }

    /// The buffers after the content.
    pub fn buffers(&self) -> impl ExactSizeIterator<Item = &[u8]> {
        (self.header + 4..self.frames.len()).map(|at| &self.frames[at])
    }

    /// Whether it says that it ended well; sooner known than all that [`Reply::info`] tells.
    pub fn is_well(&self) -> bool {
        ReplyMetadata::read(self.packer, self.metadata())
            .is_ok_and(|metadata| metadata.status == "ok")
    }

    /// How many of the members `lo..hi` did not end well.
    pub(crate) fn failures(&self, lo: u64, hi: u64) -> u64 {
        let Ok(metadata) = ReplyMetadata::read(self.packer, self.metadata()) else {
            return 0;
        };
        if metadata.status != "ok" && metadata.failed.is_empty() {
            return hi - lo;
        }
        let failed = metadata.failed.iter();
        failed.filter(|(index, _)| (lo..hi).contains(index)).count() as u64
    }

    /// Id of member `index`.
    pub fn msg_id(&self, index: u64) -> String {
        if self.array {
            member_id(&self.parent_id(), index)
        } else {
            self.parent_id()
        }
    }

    /// Its content.
    ///
    /// # Errors
    /// [`Error::Decode`] when it is something else.
    pub fn content<T: DeserializeOwned>(&self) -> Result<T> {
        self.packer
            .unpack(self.packed_content())
            .map(|value: Owned<T>| value.0)
            .map_err(|error| Error::Decode {
                msg_id: self.parent_id(),
                reason: error.to_string(),
            })
    }

    /// Whether it is the reply of an array, with the values of some of its members.
    pub fn has_members(&self) -> bool {
        self.array && self.buffers().len() > 0
    }

    /// Whether member `index` of an array, whose values are here, ended well: the status is that of all together.
    pub fn is_member_ok(&self, index: u64) -> bool {
        let info = self.info();
        let failed = info.failed.binary_search_by_key(&index, |(at, _)| *at);
        failed.is_err() && (info.status == "ok" || !info.failed.is_empty())
    }

    /// The packed value of a member of an array: its result, or the map that says why there is none.
    ///
    /// # Errors
    /// [`Error::Decode`] when the reply has no such member, or is damaged.
    pub fn member(&self, index: u64) -> Result<&[u8]> {
        let bad = |reason: String| Error::Decode {
            msg_id: self.msg_id(index),
            reason,
        };
        let info = self.info();
        let (lo, hi) = info
            .range
            .ok_or_else(|| bad("the reply names no range".into()))?;
        if index < lo || index >= hi {
            return Err(bad(format!("the reply is about members {lo} to {hi}")));
        }
        let mut buffers = self.buffers();
        let (Some(offsets), Some(blob), None) = (buffers.next(), buffers.next(), buffers.next())
        else {
            return Err(bad("the reply of an array has two buffers".into()));
        };
        // Offsets are checked once a reply, not once a member.
        let count = if info.same { 1 } else { hi - lo };
        let checked = *self
            .checked
            .get_or_init(|| View::new(offsets, blob, count).is_ok());
        if !checked {
            return Err(bad("its table of offsets is damaged".into()));
        }
        let at = if info.same { 0 } else { index - lo };
        Ok(View::trusted(offsets, blob).get(at as usize))
    }

    /// The error that the whole reply is, if it is one.
    fn whole_error(&self, index: u64) -> Option<TaskError> {
        let info = self.info();
        if info.status == "ok" || self.has_members() {
            return None;
        }
        let content: ErrorContent = self
            .packer
            .unpack(self.packed_content())
            .unwrap_or_default();
        let status = if content.status.is_empty() {
            info.status.clone()
        } else {
            content.status.clone()
        };
        (status != "ok").then(|| self.error(index, &status, content))
    }

    fn error(&self, index: u64, status: &str, content: ErrorContent) -> TaskError {
        let info = self.info();
        let aborted = status == "aborted" || content.ename == "TaskAborted";
        TaskError {
            msg_id: self.msg_id(index),
            ename: match content.ename.is_empty() {
                true if aborted => "TaskAborted".into(),
                true => "Error".into(),
                false => content.ename,
            },
            evalue: if content.evalue.is_empty() && aborted {
                "aborted".into()
            } else {
                content.evalue
            },
            traceback: content.traceback,
            aborted,
            engine_id: info.engine_id,
            host: info.host.clone(),
        }
    }

    fn is_command(&self) -> bool {
        // The header's type decides; "command_reply" cannot be part of another key or value of a header of ours.
        self.frames[self.header]
            .windows(13)
            .any(|window| window == b"command_reply")
    }

    /// The value of member `index` (0 for a task that is no array).
    ///
    /// # Errors
    /// [`Error::Task`] when it failed, [`Error::Decode`] when it is of another type.
    pub fn value<R: DeserializeOwned>(&self, index: u64) -> Result<R> {
        if let Some(error) = self.whole_error(index) {
            return Err(Arc::new(error).into());
        }
        let decode = |bytes: &[u8]| {
            rmp_serde::from_slice::<R>(bytes).map_err(|error| Error::Decode {
                msg_id: self.msg_id(index),
                reason: error.to_string(),
            })
        };
        if self.array {
            let bytes = self.member(index)?;
            if !self.is_member_ok(index) {
                let content: ErrorContent = member_map(bytes).unwrap_or_default();
                // A command that ran is a result, whatever its code.
                if self.is_command() && content.status == "ok" {
                    return decode(bytes);
                }
                let status = content.status.clone();
                return Err(Arc::new(self.error(index, &status, content)).into());
            }
            return decode(bytes);
        }
        if self.is_command() {
            return self.content();
        }
        match self.buffers().next() {
            Some(buffer) => decode(buffer),
            None => decode(&[0xc0]),
        }
    }

    /// What became of the command of member `index`, failures included.
    pub fn command(&self, index: u64) -> CommandResult {
        let info = self.info();
        let mut result = if let Some(error) = self.whole_error(index) {
            CommandResult {
                status: if error.aborted { "aborted" } else { "error" }.into(),
                ename: Some(error.ename),
                evalue: Some(error.evalue),
                // A command that was stopped has a code and output all the same.
                ..self
                    .packer
                    .unpack(self.packed_content())
                    .unwrap_or_default()
            }
        } else {
            let unpacked = if self.array {
                self.member(index)
                    .map_err(|e| e.to_string())
                    .and_then(member_map)
            } else {
                self.packer
                    .unpack::<CommandResult>(self.packed_content())
                    .map_err(|error| error.to_string())
            };
            unpacked.unwrap_or_else(|error| CommandResult {
                status: "error".into(),
                ename: Some("BadReply".into()),
                evalue: Some(format!("the engine's reply does not unpack: {error}")),
                ..CommandResult::default()
            })
        };
        if result.status.is_empty() {
            result.status.clone_from(&info.status);
        }
        result.host = result.host.or_else(|| info.host.clone());
        result.engine_id = result.engine_id.or(info.engine_id);
        if !self.array {
            result.started = result.started.or_else(|| info.started.clone());
            result.completed = result.completed.or_else(|| info.completed.clone());
        }
        result
    }
}

/// A map among the values of an array: MessagePack, or JSON in a cluster that packs that.
fn member_map<T: DeserializeOwned>(bytes: &[u8]) -> std::result::Result<T, String> {
    // No map of MessagePack begins with this byte.
    if bytes.first() == Some(&b'{') {
        return serde_json::from_slice(bytes).map_err(|error| error.to_string());
    }
    rmp_serde::from_slice(bytes).map_err(|error| error.to_string())
}

/// Helps [`Packer::unpack`], which may borrow, to a type that does not.
struct Owned<R>(R);

impl<'de, R: DeserializeOwned> Deserialize<'de> for Owned<R> {
    fn deserialize<D: serde::Deserializer<'de>>(
        deserializer: D,
    ) -> std::result::Result<Self, D::Error> {
        R::deserialize(deserializer).map(Owned)
    }
}
