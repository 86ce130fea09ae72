//! A task as an engine holds it: the request's frames and what was read of them.

use ipbroker_protocol::{
    envelope::Envelope,
    message::{Held, Require, types},
    resources::Grant,
    session::{Session, UnpackError},
    socket::routing,
};
use serde::Deserialize;

/// What a task asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// A shell job.
    Command,
    /// A call of a function.
    Function,
    /// A call of ipyparallel's, for the engine's Jupyter kernel.
    Apply,
    /// Code for the engine's Jupyter kernel.
    Execute,
}

impl Kind {
    /// A Jupyter kernel is asked for it.
    pub(crate) fn is_for_kernel(self) -> bool {
        matches!(self, Self::Apply | Self::Execute)
    }

    /// The type of its reply.
    pub(crate) fn reply(self) -> &'static str {
        match self {
            Self::Command => types::COMMAND_REPLY,
            Self::Function => types::FUNCTION_REPLY,
            Self::Apply => types::APPLY_REPLY,
            Self::Execute => types::EXECUTE_REPLY,
        }
    }

    /// What it is called in the types of request and reply.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Command => "command",
            Self::Function => "function",
            Self::Apply => "apply",
            Self::Execute => "execute",
        }
    }
}

/// The way by which a task came, and its reply goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Via {
    /// The scheduler: what is unstarted may be given back.
    Task,
    /// The direct relay or a broadcast leaf: the task is this engine's.
    Direct,
}

/// The metadata of a request that an engine looks at.
#[derive(Debug, Clone, PartialEq, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Wants {
    /// Members of an array that comes whole, as on the pure path.
    pub(crate) array: Option<u64>,
    /// The members `lo..hi` of an array.
    pub(crate) range: Option<(u64, u64)>,
    /// Each of them is told of by itself.
    pub(crate) each: bool,
    /// Higher runs earlier; what a call submits runs before what it was submitted with.
    pub(crate) priority: Option<i32>,
    /// How often it was given out before.
    pub(crate) attempt: Option<u32>,
    /// What the host must have.
    pub(crate) require: Option<Require>,
    /// What it has of the host's resources.
    pub(crate) granted: Grant,
    /// Which of its alternatives that is, from 1, if it has several.
    pub(crate) alternative: Option<u32>,
    /// Names of the hosts that it holds as wholes, this one first.
    pub(crate) nodelist: Vec<String>,
    /// Keys that a broadcast's reply repeats.
    pub(crate) is_broadcast: Option<bool>,
    pub(crate) is_coalescing: Option<bool>,
    pub(crate) original_msg_id: Option<String>,
    /// What the client calls the request; repeated, too.
    pub(crate) label: Option<String>,
}

/// One request, or one range of an array's members.
#[derive(Debug)]
pub(crate) struct Task {
    pub(crate) envelope: Envelope,
    pub(crate) msg_id: String,
    pub(crate) kind: Kind,
    pub(crate) via: Via,
    pub(crate) wants: Wants,
}

impl Task {
    /// Reads a task request with this id.
    pub(crate) fn read(
        session: &Session,
        envelope: Envelope,
        kind: Kind,
        msg_id: String,
    ) -> Result<Self, UnpackError> {
        let mut wants: Wants = session.packer.unpack(envelope.metadata())?;
        wants.range = wants.range.or_else(|| wants.array.map(|count| (0, count)));
        let via = match envelope.identities().first() {
            Some(first) if &first[..] == routing::TASK => Via::Task,
            _ => Via::Direct,
        };
        Ok(Self {
            envelope,
            msg_id,
            kind,
            via,
            wants,
        })
    }

    /// The members; an ordinary task is one.
    pub(crate) fn members(&self) -> u64 {
        self.wants.range.map_or(1, |(lo, hi)| hi.saturating_sub(lo))
    }

    /// The task as holdings name it.
    pub(crate) fn held(&self) -> Held {
        let (lo, hi) = self.wants.range.unwrap_or((0, 1));
        (self.msg_id.clone(), lo, hi)
    }
}
