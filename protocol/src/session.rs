//! Packing and signing: what turns typed maps into frames and checks the frames that come back.

use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};

use hmac::{Hmac, KeyInit, Mac};
use jiff::Timestamp;
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use sha2::Sha256;
use subtle::ConstantTimeEq;
use zmq::Message;

use crate::{
    envelope::{DELIMITER, Envelope, copies},
    frames::Frames,
    message::Header,
    time,
    value::{AnyMap, Map},
};

/// How maps are packed. Headers are relayed as they are, so a cluster has one packer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Packer {
    /// MessagePack with string keys.
    #[default]
    Msgpack,
    /// JSON; `orjson` in a connection file means the same bytes.
    #[serde(alias = "orjson")]
    Json,
}

impl Packer {
    /// The name in connection files.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Msgpack => "msgpack",
            Self::Json => "json",
        }
    }

    /// Packs one map.
    ///
    /// # Panics
    /// Never for this crate's types: they have string keys and no failing `Serialize`.
    pub fn pack<T: Serialize + ?Sized>(self, value: &T) -> Vec<u8> {
        match self {
            Self::Msgpack => {
                // Room for a header.
                let mut packed = Vec::with_capacity(256);
                rmp_serde::encode::write_named(&mut packed, value).expect("string-keyed maps pack");
                packed
            }
            Self::Json => serde_json::to_vec(value).expect("string-keyed maps pack"),
        }
    }

    /// Unpacks one map, borrowing from `bytes` where the type does.
    ///
    /// # Errors
    /// [`UnpackError`] when the bytes are not a map of this shape.
    pub fn unpack<'a, T: Deserialize<'a>>(self, bytes: &'a [u8]) -> Result<T, UnpackError> {
        match self {
            Self::Msgpack => {
                let mut unpacker = rmp_serde::Deserializer::from_read_ref(bytes);
                unpacker.set_max_depth(MAX_DEPTH);
                T::deserialize(&mut unpacker).map_err(|error| UnpackError(error.to_string()))
            }
            Self::Json => {
                serde_json::from_slice(bytes).map_err(|error| UnpackError(error.to_string()))
            }
        }
    }
}

impl Packer {
    /// Unpacks a map of which an error says which key is wrong.
    ///
    /// # Errors
    /// [`UnpackError`] when the bytes are not such a map.
    pub fn unpack_map<T: DeserializeOwned>(self, bytes: &[u8]) -> Result<T, UnpackError> {
        self.unpack(bytes).map_err(|error| {
            let AnyMap(map) = self.unpack(bytes).unwrap_or_default();
            let wrong = map.into_iter().find_map(|(key, value)| {
                let one = Map::from_iter([(key.clone(), value)]);
                let why = serde_json::from_value::<T>(one.into()).err()?;
                Some(UnpackError(format!("`{key}`: {why}")))
            });
            wrong.unwrap_or(error)
        })
    }
}

/// The version of Jupyter's messaging protocol that headers name.
const VERSION: &str = "5.3";

/// Maps nested deeper than this are refused: no message needs it, and a stack has an end.
const MAX_DEPTH: usize = 100;

/// A frame that does not unpack.
#[derive(Debug, Clone, thiserror::Error)]
#[error("cannot unpack: {0}")]
pub struct UnpackError(String);

/// A signature that is not that of the frames under the cluster's key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("wrong signature: the sender does not hold this cluster's key")]
pub struct WrongSignature;

/// Signs and checks with the cluster's key; cheap to clone.
#[derive(Clone)]
pub struct Signer(Option<Hmac<Sha256>>);

impl std::fmt::Debug for Signer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(if self.0.is_some() {
            "Signer(key)"
        } else {
            "Signer(unsigned)"
        })
    }
}

impl Signer {
    /// A signer for `key`; an empty key means that messages are not signed.
    #[must_use]
    pub fn new(key: &[u8]) -> Self {
        if key.is_empty() {
            return Self(None);
        }
        Self(Some(
            Hmac::new_from_slice(key).expect("HMAC takes a key of any length"),
        ))
    }

    /// The signature of the four packed maps, in hex; empty when messages are not signed.
    #[must_use]
    pub fn sign(&self, maps: [&[u8]; 4]) -> Signature {
        let Some(mac) = &self.0 else {
            return Signature {
                hex: [0; 64],
                len: 0,
            };
        };
        let mut mac = mac.clone();
        for map in maps {
            mac.update(map);
        }
        const DIGITS: &[u8; 16] = b"0123456789abcdef";
        let mut hex = [0; 64];
        for (pair, byte) in hex.chunks_exact_mut(2).zip(mac.finalize().into_bytes()) {
            pair[0] = DIGITS[usize::from(byte >> 4)];
            pair[1] = DIGITS[usize::from(byte & 15)];
        }
        Signature { hex, len: 64 }
    }

    /// Checks a signature in constant time.
    ///
    /// # Errors
    /// [`WrongSignature`] when it is not the signature of these maps. Without a key everything passes.
    pub fn verify(&self, signature: &[u8], maps: [&[u8]; 4]) -> Result<(), WrongSignature> {
        if self.0.is_none() {
            return Ok(());
        }
        let right = self.sign(maps).hex;
        // Word by word: byte by byte takes as long as hashing them.
        let word = |text: &[u8; 64], at: usize| {
            u64::from_ne_bytes(std::array::from_fn(|byte| text[at * 8 + byte]))
        };
        if let Ok(signature) = <&[u8; 64]>::try_from(signature)
            && (0..8)
                .fold(0, |differ, at| {
                    differ | (word(&right, at) ^ word(signature, at))
                })
                .ct_eq(&0)
                .into()
        {
            Ok(())
        } else {
            Err(WrongSignature)
        }
    }
}

/// A hex signature on the stack.
#[derive(Clone, Copy)]
pub struct Signature {
    hex: [u8; 64],
    len: usize,
}

impl AsRef<[u8]> for Signature {
    fn as_ref(&self) -> &[u8] {
        &self.hex[..self.len]
    }
}

/// Who we are on the wire: session id, user name, key and packer.
#[derive(Debug)]
pub struct Session {
    /// The session id, part of every header; for our clients also the socket identity.
    pub id: String,
    /// The user's name, part of every header.
    pub username: String,
    /// How maps are packed.
    pub packer: Packer,
    signer: Signer,
    count: AtomicU64,
    /// Microseconds that this clock is ahead of the controller's.
    ahead: AtomicI64,
}

impl Session {
    /// A new session with a random id.
    #[must_use]
    pub fn new(key: &[u8], packer: Packer) -> Self {
        Self::with_id(uuid::Uuid::new_v4().to_string(), key, packer)
    }

    /// A session with a given id (an engine's is its uuid).
    #[must_use]
    pub fn with_id(id: String, key: &[u8], packer: Packer) -> Self {
        let username = std::env::var("USER").unwrap_or_else(|_| "username".into());
        Self {
            id,
            username,
            packer,
            signer: Signer::new(key),
            count: AtomicU64::new(0),
            ahead: AtomicI64::new(0),
        }
    }

    /// The signer of this session's key.
    #[must_use]
    pub fn signer(&self) -> &Signer {
        &self.signer
    }

    /// Now, by the controller's clock as far as it is known.
    pub fn now(&self) -> Timestamp {
        let ahead = self.ahead.load(Ordering::Relaxed);
        time::shifted(Timestamp::now(), -(ahead as f64) / 1e6)
    }

    /// What the controller dated so came between these moments of this host's clock: sets how far that is ahead, where it
    /// cannot be right. The way back is taken to be short.
    pub fn heard_date(&self, date: Timestamp, asked: Timestamp, answered: Timestamp) {
        let right = (asked..=answered).contains(&date);
        let ahead = answered.as_microsecond() - date.as_microsecond();
        self.ahead
            .store(if right { 0 } else { ahead }, Ordering::Relaxed);
    }

    /// A message id that no other message has: `SESSION_N`.
    #[must_use]
    pub fn next_id(&self) -> String {
        format!("{}_{}", self.id, self.count.fetch_add(1, Ordering::Relaxed))
    }

    /// A header for a new message of this type.
    #[must_use]
    pub fn header(&self, msg_type: &str) -> Header {
        Header {
            msg_id: self.next_id(),
            msg_type: msg_type.to_owned(),
            username: self.username.clone(),
            session: self.id.clone(),
            date: time::utc(self.now()),
            version: VERSION.to_owned(),
            extra: serde_json::Map::new(),
        }
    }

    /// A packed header for a new message of this type, and its id: what [`Session::header`] gives, several times faster.
    #[must_use]
    pub fn packed_header(&self, msg_type: &str) -> (String, Vec<u8>) {
        let msg_id = self.next_id();
        let header = self.packed_header_of(&msg_id, msg_type);
        (msg_id, header)
    }

    /// The packed header of a request with this id.
    pub fn packed_header_of(&self, msg_id: &str, msg_type: &str) -> Vec<u8> {
        #[derive(Serialize)]
        struct Header<'a> {
            msg_id: &'a str,
            msg_type: &'a str,
            username: &'a str,
            session: &'a str,
            date: &'a str,
            version: &'a str,
        }
        self.pack(&Header {
            msg_id,
            msg_type,
            username: &self.username,
            session: &self.id,
            date: &time::utc(self.now()),
            version: VERSION,
        })
    }

    /// Packs a map with this session's packer.
    pub fn pack<T: Serialize + ?Sized>(&self, value: &T) -> Vec<u8> {
        self.packer.pack(value)
    }

    /// Unpacks a map with this session's packer.
    ///
    /// # Errors
    /// [`UnpackError`] when the bytes are not a map of this shape.
    pub fn unpack<T: DeserializeOwned>(&self, bytes: &[u8]) -> Result<T, UnpackError> {
        self.packer.unpack(bytes)
    }

    /// Packs and signs a message. `parent` is the packed parent header; `None` packs an empty map.
    pub fn message<M, C>(
        &self,
        identities: Vec<Message>,
        header: &Header,
        parent: Option<&[u8]>,
        metadata: &M,
        content: &C,
        buffers: Vec<Message>,
    ) -> Envelope
    where
        M: Serialize + ?Sized,
        C: Serialize + ?Sized,
    {
        let header = self.pack(header);
        let metadata = self.pack(metadata);
        let content = self.pack(content);
        self.packed(
            identities,
            [
                &header,
                parent.unwrap_or(self.empty_map()),
                &metadata,
                &content,
            ],
            buffers,
        )
    }

    /// A message without a signature: it gets one when it leaves ([`Session::seal`]), unless it travels in a bundle.
    #[must_use]
    pub fn unsigned(identities: Vec<Message>, maps: [&[u8]; 4], buffers: Vec<Message>) -> Envelope {
        Envelope::new(identities, Message::new(), maps.map(Message::from), buffers)
    }

    /// Signs maps that are packed already.
    #[must_use]
    pub fn packed(
        &self,
        identities: Vec<Message>,
        maps: [&[u8]; 4],
        buffers: Vec<Message>,
    ) -> Envelope {
        let signature = self.signer.sign(maps);
        Envelope::new(
            identities,
            Message::from(signature.as_ref()),
            maps.map(Message::from),
            buffers,
        )
    }

    /// Signs a message that has no signature yet (it came, or was to go, in a bundle).
    pub fn seal(&self, frames: &mut [Message]) {
        let delimiter = frames.iter().position(|frame| &frame[..] == DELIMITER);
        if let Some([_, signature, header, parent, metadata, content, ..]) =
            delimiter.map(|at| &mut frames[at..])
            && signature.is_empty()
        {
            let signed = self.signer.sign([header, parent, metadata, content]);
            *signature = Message::from(signed.as_ref());
        }
    }

    /// The frames as libzmq takes them, [sealed](Session::seal).
    #[must_use]
    pub fn sealed(&self, frames: Frames) -> Vec<Message> {
        let mut frames = frames.into_messages();
        self.seal(&mut frames);
        frames
    }

    /// A message with new header, no metadata: the usual request.
    pub fn request<C: Serialize + ?Sized>(&self, msg_type: &str, content: &C) -> Envelope {
        self.message(
            Vec::new(),
            &self.header(msg_type),
            None,
            &Empty {},
            content,
            Vec::new(),
        )
    }

    /// An answer to `request`: its identities, its header as parent.
    pub fn reply<C: Serialize + ?Sized>(
        &self,
        request: &Envelope,
        msg_type: &str,
        content: &C,
    ) -> Envelope {
        self.message(
            copies(request.identities()),
            &self.header(msg_type),
            Some(request.header()),
            &Empty {},
            content,
            Vec::new(),
        )
    }

    /// An empty map, packed.
    #[must_use]
    pub fn empty_map(&self) -> &'static [u8] {
        match self.packer {
            Packer::Msgpack => &[0x80],
            Packer::Json => b"{}",
        }
    }

    /// Checks the signature of a message.
    ///
    /// # Errors
    /// [`WrongSignature`] when the sender does not hold the key.
    pub fn verify(&self, envelope: &Envelope) -> Result<(), WrongSignature> {
        let parts = envelope.parts();
        self.signer.verify(parts.signature, parts.maps())
    }
}

/// An empty map.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub struct Empty {}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    #[test]
    fn signature_is_hmac_sha256_in_hex() {
        // From Python: hmac.new(b"key", b"abcd", "sha256").hexdigest()
        let signer = Signer::new(b"key");
        let signature = signer.sign([b"a", b"b", b"c", b"d"]);
        assert_eq!(
            std::str::from_utf8(signature.as_ref()).unwrap(),
            "2a31ec0ee8d878c9eece9fb0df79b3b90b2256240163aa5ee50d176d3d1121f8"
        );
        assert!(
            signer
                .verify(signature.as_ref(), [b"a", b"b", b"c", b"d"])
                .is_ok()
        );
        assert!(
            signer
                .verify(signature.as_ref(), [b"a", b"b", b"c", b"e"])
                .is_err()
        );
        assert!(signer.verify(b"", [b"a", b"b", b"c", b"d"]).is_err());
        assert!(Signer::new(b"").verify(b"anything", [b""; 4]).is_ok());
    }

    #[test]
    fn both_packers_round_trip() {
        for packer in [Packer::Msgpack, Packer::Json] {
            let session = Session::new(b"k", packer);
            let envelope = session.request("connection_request", &json!({"a": [1, "x", null]}));
            session.verify(&envelope).unwrap();
            let header: Header = session.unpack(envelope.header()).unwrap();
            assert_eq!(header.msg_type, "connection_request");
            let content: serde_json::Value = session.unpack(envelope.content()).unwrap();
            assert_eq!(content["a"][1], "x");
            assert_eq!(packer.pack(&Empty {}), session.empty_map());
        }
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            for packer in [Packer::Msgpack, Packer::Json] {
                let _ = packer.unpack::<Header>(&bytes);
                let _ = packer.unpack::<crate::message::TaskMetadata>(&bytes);
                let _ = packer.unpack::<crate::value::Value>(&bytes);
            }
        }
    }

    #[test]
    fn deep_nesting_is_refused() {
        let mut bytes = vec![0x91; 100_000];
        bytes.push(0xc0);
        assert!(
            Packer::Msgpack
                .unpack::<crate::value::Value>(&bytes)
                .is_err()
        );
        assert!(
            Packer::Json
                .unpack::<crate::value::Value>(&vec![b'['; 100_000])
                .is_err()
        );
    }
}
