//! Resubmission: a stored request under a new id.

use crate::store::StoredRequest;
use ipbroker_protocol::{
    array::View,
    envelope::DELIMITER,
    message::{Header, types},
    session::{Packer, Session},
    time,
    value::{AnyMap, Map},
    zmq::Message,
};

/// Metadata of a resubmitted task of ours that goes with it; the peer's hub keeps none.
const KEPT: [&str; 18] = [
    "hosts",
    "prefer",
    "prefer_wait",
    "tags",
    "require",
    "resources",
    "any",
    "nodes",
    "retries",
    "retry_delay",
    "max_crashes",
    "priority",
    "timeout",
    "time",
    "array",
    "label",
    "job",
    "job_dir",
];

/// A stored request under a new id: the id, and the frames from the delimiter on.
pub(super) fn renewed(
    session: &Session,
    task: &StoredRequest,
) -> Result<(String, Vec<Message>), String> {
    let [header, _, metadata, content, buffers @ ..] = task.frames.as_slice() else {
        return Err(format!("the record of {} is not whole", task.msg_id));
    };
    let unreadable = |error| format!("the record of {} cannot be read: {error}", task.msg_id);
    let old: Header = session.unpack(header).map_err(unreadable)?;
    let AnyMap(metadata) = session.unpack(metadata).map_err(unreadable)?;
    let id = session.next_id();
    let header_map = session.pack(&Header {
        msg_id: id.clone(),
        date: time::now_utc(),
        ..old.clone()
    });
    let ours = matches!(
        old.msg_type.as_str(),
        types::COMMAND_REQUEST | types::FUNCTION_REQUEST
    );
    let mut kept = Map::new();
    if ours {
        kept.extend(
            metadata
                .into_iter()
                .filter(|(key, _)| KEPT.contains(&key.as_str())),
        );
    }
    let mut content = content.clone();
    let mut buffers: Vec<Vec<u8>> = buffers.to_vec();
    if let Some(member) = task.member.filter(|_| kept.contains_key("array")) {
        (content, buffers) = one_member(session, task, member, &old.msg_type, content, buffers)?;
        kept.remove("array");
    }
    let metadata = session.pack(&kept);
    let maps: [&[u8]; 4] = [&header_map, header, &metadata, &content];
    let buffers = buffers.into_iter().map(Message::from).collect();
    let frames = session.packed(Vec::new(), maps, buffers).into_frames();
    debug_assert_eq!(&frames[0][..], DELIMITER);
    Ok((id, frames))
}

/// Content and buffers of one member of an array as a task of its own.
fn one_member(
    session: &Session,
    task: &StoredRequest,
    member: u64,
    msg_type: &str,
    content: Vec<u8>,
    buffers: Vec<Vec<u8>>,
) -> Result<(Vec<u8>, Vec<Vec<u8>>), String> {
    let argument = match buffers.as_slice() {
        [offsets, blob, ..] => {
            let view = View::new(offsets, blob, task.count).map_err(|error| error.to_string())?;
            Some(
                view.get(usize::try_from(member).unwrap_or(usize::MAX))
                    .to_vec(),
            )
        }
        _ => None,
    };
    if msg_type == types::FUNCTION_REQUEST {
        return Ok((
            content,
            vec![argument.unwrap_or_else(|| Packer::Msgpack.pack(&member))],
        ));
    }
    let unreadable = |error| format!("member {member} of {} cannot be read: {error}", task.msg_id);
    let AnyMap(mut command) = session.unpack(&content).map_err(unreadable)?;
    if let Some(argument) = argument {
        let AnyMap(own) = Packer::Msgpack.unpack(&argument).map_err(unreadable)?;
        command.extend(own);
    }
    Ok((session.pack(&command), Vec::new()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use ipbroker_protocol::{array::Packed, envelope::Envelope};
    use serde_json::{Value, json};

    fn stored(
        session: &Session,
        msg_type: &str,
        metadata: &Value,
        buffers: Vec<Vec<u8>>,
        member: Option<u64>,
    ) -> StoredRequest {
        let content = json!({"cmd": "echo", "cd": "/tmp", "name": "f"});
        let envelope = session.message(
            Vec::new(),
            &session.header(msg_type),
            None,
            metadata,
            &content,
            Vec::new(),
        );
        let mut frames: Vec<Vec<u8>> = envelope.maps().iter().map(|map| map.to_vec()).collect();
        frames.extend(buffers);
        StoredRequest {
            msg_id: "a".into(),
            member,
            count: 3,
            client: Vec::new(),
            frames,
        }
    }

    fn renew(session: &Session, task: &StoredRequest) -> (Header, Map, Map, Vec<Vec<u8>>) {
        let (id, frames) = renewed(session, task).unwrap();
        let envelope = Envelope::parse(frames).unwrap();
        session.verify(&envelope).unwrap();
        let header: Header = session.unpack(envelope.header()).unwrap();
        assert_eq!(header.msg_id, id);
        let map = |bytes: &[u8]| session.unpack::<AnyMap>(bytes).unwrap().0;
        let buffers = envelope
            .buffers()
            .iter()
            .map(|buffer| buffer.to_vec())
            .collect();
        (
            header,
            map(envelope.metadata()),
            map(envelope.content()),
            buffers,
        )
    }

    #[test]
    fn python_tasks_are_renewed_as_the_peer_does() {
        let session = Session::new(b"k", Packer::Json);
        let task = stored(
            &session,
            "apply_request",
            &json!({"retries": 3, "after": ["x"]}),
            vec![vec![1, 2]],
            None,
        );
        let old: Header = session.unpack(&task.frames[0]).unwrap();
        let (header, metadata, content, buffers) = renew(&session, &task);
        assert_ne!(header.msg_id, old.msg_id);
        assert_eq!(
            (header.session, header.msg_type),
            (old.session, old.msg_type)
        );
        assert!(metadata.is_empty());
        assert_eq!(
            (content["cmd"].as_str(), buffers),
            (Some("echo"), vec![vec![1, 2]])
        );
    }

    #[test]
    fn a_member_of_an_array_becomes_a_task() {
        let session = Session::new(b"k", Packer::Msgpack);
        let mut packed = Packed::new();
        for n in 0..3 {
            packed
                .push(&Packer::Msgpack.pack(&json!({"cmd": format!("echo {n}")})))
                .unwrap();
        }
        let (offsets, blob) = packed.into_buffers();
        let metadata = json!({"array": 3, "tags": ["gpu"], "ack": true, "after": ["x"]});
        let task = stored(
            &session,
            types::COMMAND_REQUEST,
            &metadata,
            vec![offsets, blob],
            Some(2),
        );
        let (_, metadata, content, buffers) = renew(&session, &task);
        assert_eq!(Value::Object(metadata), json!({"tags": ["gpu"]}));
        assert_eq!(
            (content["cmd"].as_str(), content["cd"].as_str()),
            (Some("echo 2"), Some("/tmp"))
        );
        assert!(buffers.is_empty());
        let task = stored(
            &session,
            types::FUNCTION_REQUEST,
            &json!({"array": 3}),
            Vec::new(),
            Some(1),
        );
        assert_eq!(renew(&session, &task).3, [vec![1]]);
    }
}
