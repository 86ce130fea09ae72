//! Messages between the cluster and a kernel: each has its own key, and perhaps its own packer.

use ipbroker_protocol::{
    envelope::{Envelope, copies},
    message::{ErrorContent, HeaderRef, ParentRef},
    session::{Packer, Session, UnpackError},
    value::{AnyMap, Map},
    zmq::Message,
};
use serde::Deserialize;
use serde_json::json;

/// A map in the other packing.
fn repack(bytes: &[u8], from: Packer, to: Packer) -> Result<Vec<u8>, UnpackError> {
    if from == to {
        return Ok(bytes.to_vec());
    }
    Ok(to.pack(&from.unpack::<AnyMap>(bytes)?))
}

/// A changed map in the other packing.
fn change(
    bytes: &[u8],
    from: Packer,
    to: Packer,
    change: impl FnOnce(&mut Map),
) -> Result<Vec<u8>, UnpackError> {
    let AnyMap(mut map) = from.unpack(bytes)?;
    change(&mut map);
    Ok(to.pack(&map))
}

/// A request of the cluster, as a kernel understands it.
pub(super) fn to_kernel(
    request: &Envelope,
    cluster: &Session,
    kernel: &Session,
    identities: Vec<Message>,
) -> Result<Envelope, UnpackError> {
    let (from, to) = (cluster.packer, kernel.packer);
    let [header, parent, metadata, content] = request.maps();
    let execute =
        HeaderRef::read(from, header).is_ok_and(|header| header.msg_type == "execute_request");
    let content = if execute {
        change(content, from, to, |content| {
            // Keys that the message specification demands and ipyparallel leaves out.
            for (key, value) in [
                ("silent", json!(false)),
                ("store_history", json!(true)),
                ("user_expressions", json!({})),
            ] {
                content.entry(key).or_insert(value);
            }
            // Nobody is there to answer `input()`; and it is the engine that holds the queue which an error ends.
            for key in ["allow_stdin", "stop_on_error"] {
                content.insert(key.to_owned(), json!(false));
            }
        })?
    } else {
        repack(content, from, to)?
    };
    let maps = [
        repack(header, from, to)?,
        repack(parent, from, to)?,
        repack(metadata, from, to)?,
        content,
    ];
    Ok(kernel.packed(
        identities,
        maps.each_ref().map(Vec::as_slice),
        copies(request.buffers()),
    ))
}

/// A message of a kernel, as the cluster understands it: `engine` says in its metadata whose it is.
pub(super) fn to_cluster(
    message: &Envelope,
    kernel: &Session,
    cluster: &Session,
    identities: Vec<Message>,
    engine: &str,
) -> Result<Envelope, UnpackError> {
    let (from, to) = (kernel.packer, cluster.packer);
    let [header, parent, metadata, content] = message.maps();
    let maps = [
        repack(header, from, to)?,
        repack(parent, from, to)?,
        change(metadata, from, to, |metadata| {
            metadata.entry("engine").or_insert(json!(engine));
        })?,
        repack(content, from, to)?,
    ];
    Ok(cluster.packed(
        identities,
        maps.each_ref().map(Vec::as_slice),
        copies(message.buffers()),
    ))
}

/// The reply to a request that ran code.
#[derive(Debug)]
pub(crate) struct Reply {
    /// `ok`, `error` or `aborted`.
    pub(crate) status: String,
    /// The error's name.
    pub(crate) ename: String,
    /// The content, as the cluster packs it.
    pub(crate) content: Vec<u8>,
    /// What follows it.
    pub(crate) buffers: Vec<Message>,
    /// The kernel has published nothing about the request, not even its end.
    pub(crate) quiet: bool,
    /// The code was `exit` or the like: the kernel ends a little later.
    pub(super) exits: bool,
}

impl Reply {
    /// One that never was a kernel's.
    pub(super) fn error(cluster: &Session, ename: &str, words: &str) -> Self {
        Self {
            status: "error".to_owned(),
            ename: ename.to_owned(),
            content: cluster.pack(&ErrorContent::new(ename, words)),
            buffers: Vec::new(),
            quiet: false,
            exits: false,
        }
    }

    /// Says which engine an error is from; ipykernel itself has but a place for it.
    pub(crate) fn name_engine(&mut self, cluster: &Session, info: &serde_json::Value) {
        if self.status == "error"
            && let Ok(AnyMap(mut content)) = cluster.unpack(&self.content)
        {
            content.insert("engine_info".to_owned(), info.clone());
            content.entry("traceback").or_insert(json!([]));
            self.content = cluster.pack(&content);
        }
    }
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Content {
    status: String,
    ename: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Payloads {
    payload: Vec<Payload>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Payload {
    source: String,
    keepkernel: bool,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Metadata {
    quiet: bool,
}

/// Reads what came on the shell channel; none if it is not the reply to that request.
pub(super) fn reply(
    frames: Vec<Message>,
    msg_id: &str,
    kernel: &Session,
    cluster: &Session,
) -> Option<Reply> {
    let mut message = Envelope::parse(frames).ok()?;
    kernel.verify(&message).ok()?;
    let parent: ParentRef<'_> = kernel.packer.unpack(message.parent_header()).ok()?;
    if parent.msg_id != msg_id {
        return None;
    }
    let content = repack(message.content(), kernel.packer, cluster.packer);
    let Content { status, ename } = kernel.unpack(message.content()).unwrap_or_default();
    let Payloads { payload } = kernel.unpack(message.content()).unwrap_or_default();
    let exits = |payload: &Payload| payload.source == "ask_exit" && !payload.keepkernel;
    let Metadata { quiet } = kernel.unpack(message.metadata()).unwrap_or_default();
    Some(match content {
        Ok(content) => Reply {
            status,
            ename,
            content,
            buffers: message.take_buffers(),
            quiet,
            exits: payload.iter().any(exits),
        },
        Err(error) => Reply::error(
            cluster,
            "ValueError",
            &format!("the kernel's reply: {error}"),
        ),
    })
}

/// What a published message is, as far as it matters on the way.
#[derive(Debug)]
pub(super) enum About {
    /// A greeting to a subscriber.
    Welcome,
    /// The kernel has done with the request of this id.
    Idle(String),
    /// Anything else.
    Other,
}

/// The id of the request that a message is about; empty: of none.
pub(super) fn parent(message: &Envelope, kernel: &Session) -> String {
    let parent: ParentRef<'_> = kernel
        .packer
        .unpack(message.parent_header())
        .unwrap_or_default();
    parent.msg_id.into_owned()
}

/// Looks at a published message.
pub(super) fn about(message: &Envelope, kernel: &Session) -> About {
    let Ok(header) = HeaderRef::read(kernel.packer, message.header()) else {
        return About::Other;
    };
    match &*header.msg_type {
        "iopub_welcome" => About::Welcome,
        "status" => {
            let AnyMap(content) = kernel.unpack(message.content()).unwrap_or_default();
            match content.get("execution_state") {
                Some(state) if state == "idle" => About::Idle(parent(message, kernel)),
                _ => About::Other,
            }
        }
        _ => About::Other,
    }
}

/// The topic under which an engine publishes what its kernel has published.
pub(super) fn topic(message: &Envelope, kernel: &Session, engine: u32) -> String {
    let msg_type = HeaderRef::read(kernel.packer, message.header())
        .map(|header| header.msg_type.into_owned())
        .unwrap_or_default();
    let name = match msg_type.as_str() {
        "stream" => {
            let AnyMap(content) = kernel.unpack(message.content()).unwrap_or_default();
            let name = content.get("name").and_then(|name| name.as_str());
            name.unwrap_or("stdout").to_owned()
        }
        "display_data" | "update_display_data" => "displaypub".to_owned(),
        _ => msg_type,
    };
    format!("engine.{engine}.{name}")
}
