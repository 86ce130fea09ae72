//! Several messages that travel as one: one frame, one signature.
//!
//! A bundle is a message of the type `bundle` whose content is a MessagePack array of messages (whatever packer the cluster
//! has). Each is an array of byte strings: its frames without the routing identity of the bundle itself and without its
//! signature, which is that of the bundle. It is only a way to travel: whoever receives one goes on as if its messages had
//! come one by one, and whoever sends one had them ready at the same time anyway.

use rmp::{decode, encode};
use zmq::Message;

use crate::{
    envelope::DELIMITER,
    message::types,
    session::{Empty, Session},
};

/// Messages in a bundle at most.
const MOST: usize = 256;

/// Bytes in a bundle at most: less than the least `--max-message`.
const BYTES: usize = 48 << 10;

/// A message larger than this travels alone: copying it costs more than sending it.
const LARGE: usize = 4 << 10;

/// Frames that a message in a bundle has at most.
const FRAMES: u32 = 16;

/// Why the content of a bundle is none.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not a bundle: {0}")]
pub struct BundleError(&'static str);

/// Sends messages for one peer in their order, together where that is cheaper. Each begins with `routing` frames that lead
/// to the peer; what has no signature yet is signed.
pub fn send(
    session: &Session,
    routing: usize,
    messages: impl IntoIterator<Item = Vec<Message>>,
    mut send: impl FnMut(Vec<Message>),
) {
    let mut waiting: Vec<Vec<Message>> = Vec::new();
    let mut bytes = 0;
    for mut message in messages {
        let size = message[routing..]
            .iter()
            .map(|frame| frame.len() + 3)
            .sum::<usize>();
        let large = size > LARGE || message.len() - routing > FRAMES as usize;
        if large || waiting.len() == MOST || bytes + size > BYTES {
            leave(session, routing, &mut waiting, &mut send);
            bytes = 0;
        }
        if large {
            session.seal(&mut message);
            send(message);
        } else {
            bytes += size;
            waiting.push(message);
        }
    }
    leave(session, routing, &mut waiting, &mut send);
}

fn leave(
    session: &Session,
    routing: usize,
    waiting: &mut Vec<Vec<Message>>,
    send: &mut impl FnMut(Vec<Message>),
) {
    match &mut waiting[..] {
        [] => {}
        [_] => {
            let mut message = waiting.remove(0);
            session.seal(&mut message);
            send(message);
        }
        [first, ..] => {
            let identities = first.drain(..routing).collect();
            first.splice(..0, std::iter::repeat_with(Message::new).take(routing));
            let content = pack(waiting, routing);
            waiting.clear();
            let header = session.pack(&session.header(types::BUNDLE));
            let metadata = session.pack(&Empty {});
            let maps = [&header[..], session.empty_map(), &metadata, &content];
            send(session.packed(identities, maps, Vec::new()).into_frames());
        }
    }
}

fn pack(messages: &[Vec<Message>], routing: usize) -> Vec<u8> {
    const WRITES: &str = "a vector takes what is written";
    let mut content = Vec::with_capacity(BYTES / 8);
    encode::write_array_len(&mut content, messages.len() as u32).expect(WRITES);
    for message in messages {
        let frames = &message[routing..];
        encode::write_array_len(&mut content, frames.len() as u32 - 1).expect(WRITES);
        let signature = frames
            .iter()
            .position(|frame| &frame[..] == DELIMITER)
            .map_or(usize::MAX, |at| at + 1);
        for (at, frame) in frames.iter().enumerate() {
            if at != signature {
                encode::write_bin(&mut content, frame).expect(WRITES);
            }
        }
    }
    content
}

/// The messages in a bundle's content, each after copies of `routing`, with an empty signature.
///
/// # Errors
/// When it is not the content of a bundle; no message of it is to be looked at then.
pub fn unpack(content: &[u8], routing: &[Message]) -> Result<Vec<Vec<Message>>, BundleError> {
    let mut rest = content;
    let count = array(&mut rest)?;
    let mut messages = Vec::with_capacity((count as usize).min(MOST));
    for _ in 0..count {
        let frames = array(&mut rest)?;
        if frames > FRAMES {
            return Err(BundleError("a message in it has too many frames"));
        }
        let mut message = Vec::with_capacity(routing.len() + frames as usize + 1);
        message.extend(routing.iter().map(|frame| Message::from(&frame[..])));
        for _ in 0..frames {
            let frame = bytes(&mut rest)?;
            message.push(Message::from(frame));
            if frame == DELIMITER && !message[..message.len() - 1].iter().any(is_delimiter) {
                message.push(Message::new());
            }
        }
        messages.push(message);
    }
    match rest {
        [] => Ok(messages),
        _ => Err(BundleError("something follows its messages")),
    }
}

fn is_delimiter(frame: &Message) -> bool {
    &frame[..] == DELIMITER
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
            let sent: Vec<_> = parts.iter().map(|parts| message("peer", parts)).collect();
            let mut arrived = Vec::new();
            let mut bundles = 0;
            send(&session, 1, sent, |frames| {
                assert_eq!(&frames[0][..], b"peer");
                let envelope = Envelope::parse(frames).unwrap();
                session.verify(&envelope).unwrap();
                if envelope.identities().len() == 1 {
                    bundles += 1;
                    arrived.extend(unpack(envelope.content(), envelope.identities()).unwrap());
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
            let _ = unpack(&content, &[]);
        }
    }
}
