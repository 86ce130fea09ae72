//! Several messages that travel as one: one frame, one signature.
//!
//! A bundle is a message of the type `bundle` whose content is a MessagePack array of messages (whatever packer the cluster
//! has). Each is an array of byte strings: its frames without the routing identity of the bundle itself and without its
//! signature, which is that of the bundle. It is only a way to travel: whoever receives one goes on as if its messages had
//! come one by one, and whoever sends one had them ready at the same time anyway.

use std::sync::Arc;

use rmp::{decode, encode};
use zmq::Message;

use crate::{
    envelope::DELIMITER,
    frames::{Frames, slices},
    message::types,
    session::Session,
};

/// Messages in a bundle at most.
const MOST: usize = 256;

/// Bytes in a bundle at most: less than the least `--max-message`.
const BYTES: usize = 48 << 10;

/// A message larger than this travels alone: copying it costs more than sending it.
pub const LARGE: usize = 4 << 10;

/// Frames that a message in a bundle has at most.
const FRAMES: u32 = 16;

/// Why the content of a bundle is none.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not a bundle: {0}")]
pub struct BundleError(&'static str);

/// A message, and the engine that it is for where that shares the peer's connection: its uuid comes before the frames.
#[derive(Debug)]
pub struct Addressed {
    /// The engine's uuid.
    pub engine: Option<Arc<str>>,
    /// The rest.
    pub frames: Frames,
}

impl From<Frames> for Addressed {
    fn from(frames: Frames) -> Self {
        Self {
            engine: None,
            frames,
        }
    }
}

impl Addressed {
    fn engine(&self) -> Option<&[u8]> {
        self.engine.as_ref().map(|engine| engine.as_bytes())
    }

    /// How many frames, and bytes in them.
    fn size(&self) -> (usize, usize) {
        let (frames, engine) = (&self.frames, self.engine());
        (
            frames.len() + usize::from(engine.is_some()),
            frames.bytes() + engine.map_or(0, <[u8]>::len),
        )
    }
}

/// Sends messages for one peer in their order, together where that is cheaper. What has no signature yet is signed.
///
/// Each begins with `routing` frames (none or one) that lead to the peer; or `peer` does, which is none of them.
pub fn send(
    session: &Session,
    (routing, peer): (usize, Option<&[u8]>),
    messages: impl IntoIterator<Item = impl Into<Addressed>>,
    mut send: impl FnMut(Vec<Message>),
) {
    let alone = |message: Addressed| {
        let way = peer.into_iter().chain(message.engine());
        let way: Vec<Message> = way.map(Message::from).collect();
        let mut frames = session.sealed(message.frames);
        frames.splice(..0, way);
        frames
    };
    let mut leave = |waiting: &mut Vec<Addressed>| match waiting.len() {
        0 => {}
        1 => waiting.drain(..).map(alone).for_each(&mut send),
        _ => {
            let way = (0..routing).map(|at| &waiting[0].frames[at]).chain(peer);
            let identities = way.map(Message::from).collect();
            let content = pack(waiting, routing);
            waiting.clear();
            let (_, header) = session.packed_header(types::BUNDLE);
            let maps = [
                &header[..],
                session.empty_map(),
                session.empty_map(),
                &content,
            ];
            send(session.packed(identities, maps, Vec::new()).into_frames());
        }
    };
    let mut waiting: Vec<Addressed> = Vec::new();
    let mut bytes = 0;
    for message in messages {
        let message = message.into();
        let (count, size) = message.size();
        let (count, size) = (count - routing, size + 3 * count);
        let large = size > LARGE || count > FRAMES as usize;
        if large || waiting.len() == MOST || bytes + size > BYTES {
            leave(&mut waiting);
            bytes = 0;
        }
        waiting.push(message);
        if large {
            leave(&mut waiting);
        } else {
            bytes += size;
        }
    }
    leave(&mut waiting);
}

fn pack(messages: &[Addressed], routing: usize) -> Vec<u8> {
    const WRITES: &str = "a vector takes what is written";
    let sizes = messages.iter().map(Addressed::size);
    let size: usize = sizes.map(|(count, size)| size + 3 * count).sum();
    let mut content = Vec::with_capacity(size + 3);
    encode::write_array_len(&mut content, messages.len() as u32).expect(WRITES);
    for message in messages {
        let (count, _) = message.size();
        encode::write_array_len(&mut content, (count - routing - 1) as u32).expect(WRITES);
        if let Some(engine) = message.engine() {
            encode::write_bin(&mut content, engine).expect(WRITES);
        }
        let mut signature = usize::MAX;
        for at in routing..message.frames.len() {
            let frame = &message.frames[at];
            if at != signature {
                encode::write_bin(&mut content, frame).expect(WRITES);
                if signature == usize::MAX && frame == DELIMITER {
                    signature = at + 1;
                }
            }
        }
    }
    content
}

/// The messages in a bundle's content, as `make` makes them of their frames, which begin with `before`; signatures are empty.
///
/// # Errors
/// When it is not the content of a bundle; no message of it is to be looked at then.
pub fn unpack<'a, T>(
    content: &'a [u8],
    before: &[&'a [u8]],
    mut make: impl FnMut(&[&'a [u8]]) -> T,
) -> Result<Vec<T>, BundleError> {
    let mut rest = content;
    let count = array(&mut rest)?;
    let mut messages = Vec::with_capacity((count as usize).min(MOST));
    let mut message: Vec<&[u8]> = Vec::with_capacity(before.len() + FRAMES as usize + 1);
    for _ in 0..count {
        let frames = array(&mut rest)?;
        if frames > FRAMES {
            return Err(BundleError("a message in it has too many frames"));
        }
        message.clear();
        message.extend(before);
        let mut found = false;
        for _ in 0..frames {
            let frame = bytes(&mut rest)?;
            message.push(frame);
            if frame == DELIMITER && !found {
                found = true;
                message.push(&[]);
            }
        }
        messages.push(make(&message));
    }
    match rest {
        [] => Ok(messages),
        _ => Err(BundleError("something follows its messages")),
    }
}

/// As [`unpack`], with the frames as libzmq has them.
///
/// # Errors
/// As [`unpack`].
pub fn unpack_loose(content: &[u8], before: &[Message]) -> Result<Vec<Vec<Message>>, BundleError> {
    let before = slices(before);
    unpack(content, &before, |frames| {
        frames.iter().map(|frame| Message::from(*frame)).collect()
    })
}

fn array(rest: &mut &[u8]) -> Result<u32, BundleError> {
    decode::read_array_len(rest).map_err(|_| BundleError("an array is missing"))
}

fn bytes<'a>(rest: &mut &'a [u8]) -> Result<&'a [u8], BundleError> {
    let length =
        decode::read_bin_len(rest).map_err(|_| BundleError("a frame is no byte string"))?;
    let (frame, after) = rest
        .split_at_checked(length as usize)
        .ok_or(BundleError("a frame is cut off"))?;
    *rest = after;
    Ok(frame)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{envelope::Envelope, session::Packer};
    use proptest::prelude::*;

    fn message(routing: &str, parts: &[Vec<u8>]) -> Vec<Message> {
        let mut frames = vec![Message::from(routing), Message::from("client")];
        frames.push(Message::from(DELIMITER));
        frames.push(Message::new());
        frames.extend(parts.iter().map(|part| Message::from(&part[..])));
        frames
    }

    proptest! {
        /// Whatever waits together arrives as it was, in its order, signed by those who hold the key.
        #[test]
        fn what_is_bundled_arrives_as_it_was(
            parts in prop::collection::vec(prop::collection::vec(prop::collection::vec(any::<u8>(), 0..6000), 4..8), 0..40)
        ) {
            let session = Session::new(b"key", Packer::Msgpack);
            // Some as they are, some in one piece, which makes no difference.
            let sent = parts.iter().enumerate().map(|(at, parts)| {
                let message = Frames::from(message("peer", parts));
                if at % 2 == 0 { message } else { message.packed().into() }
            });
            let mut arrived = Vec::new();
            let mut bundles = 0;
            send(&session, (1, None), sent, |frames| {
                assert_eq!(&frames[0][..], b"peer");
                let envelope = Envelope::parse(frames).unwrap();
                session.verify(&envelope).unwrap();
                if envelope.identities().len() == 1 {
                    bundles += 1;
                    arrived.extend(unpack_loose(envelope.content(), envelope.identities()).unwrap());
                } else {
                    arrived.push(envelope.into_frames());
                }
            });
            prop_assert!(bundles == 0 || arrived.len() > bundles);
            prop_assert_eq!(arrived.len(), parts.len());
            for (frames, parts) in arrived.iter().zip(&parts) {
                prop_assert_eq!(&frames[1][..], b"client");
                let got: Vec<Vec<u8>> = frames[4..].iter().map(|frame| frame.to_vec()).collect();
                prop_assert_eq!(&got, parts);
            }
        }

        #[test]
        fn whatever_comes_is_no_reason_to_panic(content in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = unpack_loose(&content, &[]);
        }
    }
}
