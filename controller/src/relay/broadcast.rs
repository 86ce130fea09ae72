//! One message to many engines: the root takes it from the client, the leaf `id % leaves` hands each engine its copy, and
//! the answers come back one by one or, coalesced, as one message with all buffers.

use foldhash::{HashMap, HashMapExt};
use ipbroker_protocol::{
    envelope::Envelope,
    message::{ErrorContent, Header, ParentRef},
    session::Session,
    value::{AnyMap, Map},
    zmq::Message,
};
use serde::Deserialize;
use serde_json::{Value, json};

use super::{BATCH, failure, is_anonymous, lane::Lane, reply_type};

/// The root and the leaves.
pub(crate) struct Broadcast {
    root: Lane,
    leaves: Vec<Lane>,
    casts: HashMap<String, Cast>,
}

/// A broadcast that has not been answered by all.
#[derive(Debug)]
struct Cast {
    client: Box<[u8]>,
    header: Header,
    coalescing: bool,
    targets: Vec<Target>,
    waiting: usize,
    /// What a coalesced reply is made of: the last reply, or the first that is an error.
    reply: Option<Parts>,
    failed: bool,
}

impl Cast {
    /// The answer of this engine has come, or never will; `None`: it was not awaited.
    fn answered(&mut self, uuid: &str) -> Option<&mut Target> {
        let target = self
            .targets
            .iter_mut()
            .find(|target| target.uuid == uuid && !target.answered)?;
        target.answered = true;
        self.waiting -= 1;
        Some(target)
    }
}

#[derive(Debug)]
struct Target {
    uuid: String,
    id: u64,
    answered: bool,
    buffers: Vec<Message>,
}

#[derive(Debug)]
struct Parts {
    header: Vec<u8>,
    parent: Vec<u8>,
    metadata: Map,
    content: Vec<u8>,
}

/// What a broadcast's metadata must hold.
#[derive(Debug, Deserialize)]
struct Targets {
    targets: Vec<(String, u64)>,
    #[serde(default)]
    is_coalescing: bool,
}

impl Broadcast {
    pub(crate) fn new(root: Lane, leaves: Vec<Lane>) -> Self {
        Self {
            root,
            leaves,
            casts: HashMap::new(),
        }
    }

    /// The root and the leaves.
    pub(crate) fn lanes(&self) -> impl Iterator<Item = &Lane> {
        std::iter::once(&self.root).chain(&self.leaves)
    }

    /// Handles what has come in, and retries what could not go out.
    pub(crate) fn turn(&mut self, session: &Session) {
        for leaf in 0..self.leaves.len() {
            self.leaves[leaf].flush();
            for _ in 0..BATCH {
                let Some(reply) = self.leaves[leaf].receive(2, session) else {
                    break;
                };
                self.replied(session, leaf, reply);
            }
        }
        self.root.flush();
        for _ in 0..BATCH {
            let Some(request) = self.root.receive(1, session) else {
                break;
            };
            self.submitted(session, request);
        }
    }

    /// Hands each target its copy.
    fn submitted(&mut self, session: &Session, mut request: Envelope) {
        let header = session.unpack::<Header>(request.header());
        let metadata = session.unpack::<AnyMap>(request.metadata());
        let (header, metadata) = match (header, metadata) {
            (Ok(header), Ok(AnyMap(metadata))) => (header, metadata),
            (Err(error), _) | (_, Err(error)) => return self.root.refuse("bad broadcast", &error),
        };
        let Targets {
            targets,
            is_coalescing,
        } = match Targets::deserialize(Value::Object(metadata.clone())) {
            Ok(targets) => targets,
            Err(error) => return self.root.refuse("bad broadcast", &error),
        };
        let client: Box<[u8]> = request.identities()[0][..].into();
        if targets.is_empty() {
            let error = ErrorContent::new("NoEnginesRegistered", "a broadcast to no engine");
            let ids = vec![Message::from(&client[..])];
            let reply = failure(session, ids, request.header(), &header.msg_type, "", &error);
            return self.root.send_or_drop(reply.into_frames());
        }
        let buffers = request.take_buffers();
        let content = request.content();
        let parent = request.parent_header();
        let mut unroutable = Vec::new();
        let last = targets.len() - 1;
        let mut originals = Some(buffers);
        for (index, (uuid, id)) in targets.iter().enumerate() {
            let copy = if index == last {
                originals.take().unwrap_or_default()
            } else {
                originals
                    .iter()
                    .flatten()
                    .map(|buffer| Message::from(&buffer[..]))
                    .collect()
            };
            let maps = [
                session.pack(&target_header(&header, uuid)),
                parent.to_vec(),
                session.pack(&target_metadata(&metadata, &header.msg_id, uuid, *id)),
            ];
            let ids = vec![Message::from(uuid.as_str()), Message::from(&client[..])];
            let message = session.packed(ids, [&maps[0], &maps[1], &maps[2], content], copy);
            let leaf = (*id % self.leaves.len() as u64) as usize;
            if let Err(refused) = self.leaves[leaf].send(message.into_frames()) {
                let why = format!("engine {id} ({uuid}) {}", refused.why());
                unroutable.push((uuid.clone(), why));
            }
        }
        let targets: Vec<Target> = targets
            .into_iter()
            .map(|(uuid, id)| Target {
                uuid,
                id,
                answered: false,
                buffers: Vec::new(),
            })
            .collect();
        let waiting = targets.len();
        let original = header.msg_id.clone();
        let cast = Cast {
            client,
            header,
            coalescing: is_coalescing,
            targets,
            waiting,
            reply: None,
            failed: false,
        };
        self.casts.insert(original.clone(), cast);
        for (uuid, why) in unroutable {
            self.lost(session, &original, &uuid, &why);
        }
    }

    fn replied(&mut self, session: &Session, leaf: usize, mut reply: Envelope) {
        let parent = match ParentRef::read(session.packer, reply.parent_header()) {
            Ok(parent) => parent,
            Err(error) => return self.leaves[leaf].refuse("bad reply", &error),
        };
        let uuid = String::from_utf8_lossy(&reply.identities()[0]).into_owned();
        let Some(original) = parent
            .msg_id
            .strip_suffix(&format!("_{uuid}"))
            .map(str::to_owned)
        else {
            return self.leaves[leaf].refuse("bad reply", &"it belongs to no broadcast");
        };
        let Some(cast) = self.casts.get_mut(&original) else {
            return;
        };
        let coalescing = cast.coalescing;
        let Some(target) = cast.answered(&uuid) else {
            return;
        };
        if coalescing {
            target.buffers = reply.take_buffers();
        } else {
            if cast.waiting == 0 {
                self.casts.remove(&original);
            }
            reply.swap_identities(0, 1);
            return self.root.send_or_drop(reply.into_frames());
        }
        let metadata = session
            .unpack::<AnyMap>(reply.metadata())
            .unwrap_or_default()
            .0;
        let ok = metadata.get("status").and_then(Value::as_str) == Some("ok");
        if !cast.failed {
            cast.failed = !ok;
            cast.reply = Some(Parts {
                header: reply.header().to_vec(),
                parent: reply.parent_header().to_vec(),
                metadata,
                content: reply.content().to_vec(),
            });
        }
        if cast.waiting == 0 {
            self.coalesced(session, &original);
        }
    }

    /// An engine will not answer.
    fn lost(&mut self, session: &Session, original: &str, uuid: &str, why: &str) {
        let Some(cast) = self.casts.get_mut(original) else {
            return;
        };
        if cast.answered(uuid).is_none() {
            return;
        }
        let error = ErrorContent::new("EngineError", why);
        let header = target_header(&cast.header, uuid);
        let packed = session.pack(&header);
        if cast.coalescing {
            if !cast.failed {
                cast.failed = true;
                let mut metadata = Map::new();
                metadata.insert("status".into(), "error".into());
                metadata.insert("engine".into(), uuid.into());
                cast.reply = Some(Parts {
                    header: session.pack(&session.header(&reply_type(&header.msg_type))),
                    parent: packed,
                    metadata,
                    content: session.pack(&error),
                });
            }
            if cast.waiting == 0 {
                self.coalesced(session, original);
            }
            return;
        }
        let ids = vec![Message::from(&cast.client[..])];
        let reply = failure(session, ids, &packed, &header.msg_type, uuid, &error);
        if cast.waiting == 0 {
            self.casts.remove(original);
        }
        self.root.send_or_drop(reply.into_frames());
    }

    /// All have answered: one reply with all buffers, in the order of the targets.
    fn coalesced(&mut self, session: &Session, original: &str) {
        let Some(mut cast) = self.casts.remove(original) else {
            return;
        };
        let Some(mut parts) = cast.reply.take() else {
            return;
        };
        let targets: Vec<Value> = cast
            .targets
            .iter()
            .map(|target| json!([target.uuid, target.id]))
            .collect();
        for (key, value) in [
            ("broadcast_targets", Value::from(targets)),
            ("original_msg_id", original.into()),
            ("is_broadcast", true.into()),
            ("is_coalescing", true.into()),
        ] {
            parts.metadata.insert(key.into(), value);
        }
        let buffers = cast
            .targets
            .into_iter()
            .flat_map(|target| target.buffers)
            .collect();
        let metadata = session.pack(&parts.metadata);
        let ids = vec![Message::from(&cast.client[..])];
        let reply = session.packed(
            ids,
            [&parts.header, &parts.parent, &metadata, &parts.content],
            buffers,
        );
        self.root.send_or_drop(reply.into_frames());
    }

    /// An engine has left: who waits for its answer is told, unless its client notices by itself.
    pub(crate) fn engine_left(&mut self, session: &Session, uuid: &str, why: &str) {
        let waits = |target: &Target| target.uuid == uuid && !target.answered;
        let concerned: Vec<(String, bool)> = self
            .casts
            .iter()
            .filter(|(_, cast)| cast.targets.iter().any(waits))
            .map(|(original, cast)| (original.clone(), is_anonymous(&cast.client)))
            .collect();
        for (original, anonymous) in concerned {
            if !anonymous {
                self.lost(session, &original, uuid, why);
            } else if let Some(cast) = self.casts.get_mut(&original) {
                while cast.answered(uuid).is_some() {}
                // Of a coalescing one the Python client has given all up.
                if cast.coalescing || cast.waiting == 0 {
                    self.casts.remove(&original);
                }
            }
        }
    }
}

/// The header of one engine's copy.
fn target_header(header: &Header, uuid: &str) -> Header {
    Header {
        msg_id: format!("{}_{uuid}", header.msg_id),
        ..header.clone()
    }
}

fn target_metadata(metadata: &Map, original: &str, uuid: &str, id: u64) -> Map {
    let mut copy = metadata.clone();
    copy.insert("original_msg_id".into(), original.into());
    copy.insert("targets".into(), json!([[uuid, id]]));
    copy
}
