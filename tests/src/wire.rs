//! The wire as a stranger would write it from the documents: small, slow and independent of the protocol crate, so that both
//! cannot be wrong in the same way. (The benchmarks use it too, for everything outside of their inner loops.)

use std::{fs, path::Path};

use hmac::{Hmac, KeyInit, Mac};
use serde_json::{Map, Value, json};
use sha2::Sha256;

/// The frame between identities and the signed part.
pub const DELIMITER: &[u8] = b"<IDS|MSG>";

/// Signs messages with one key; an empty key signs nothing.
#[derive(Clone)]
pub struct Signer(Option<Hmac<Sha256>>);

impl Signer {
    /// A signer for the `key` of a connection file.
    pub fn new(key: &[u8]) -> Signer {
        Signer((!key.is_empty()).then(|| Hmac::new_from_slice(key).expect("any key will do")))
    }

    /// The hexadecimal signature of the four packed maps.
    pub fn sign(&self, parts: [&[u8]; 4]) -> Vec<u8> {
        let Some(keyed) = &self.0 else {
            return Vec::new();
        };
        let mut mac = keyed.clone();
        parts.iter().for_each(|part| mac.update(part));
        let digest = mac.finalize().into_bytes();
        const DIGITS: &[u8; 16] = b"0123456789abcdef";
        digest
            .iter()
            .flat_map(|byte| [DIGITS[(byte >> 4) as usize], DIGITS[(byte & 15) as usize]])
            .collect()
    }
}

/// How maps are packed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Packer {
    /// MessagePack, the default of this project.
    MsgPack,
    /// JSON, the default of ipyparallel.
    Json,
}

impl Packer {
    /// Packs one map.
    pub fn pack(self, value: &Value) -> Vec<u8> {
        match self {
            Packer::MsgPack => rmp_serde::to_vec_named(value).expect("a JSON value packs"),
            Packer::Json => serde_json::to_vec(value).expect("a JSON value packs"),
        }
    }

    /// Unpacks one map.
    pub fn unpack(self, bytes: &[u8]) -> Result<Value, String> {
        match self {
            Packer::MsgPack => rmp_serde::from_slice(bytes).map_err(|error| error.to_string()),
            Packer::Json => serde_json::from_slice(bytes).map_err(|error| error.to_string()),
        }
    }
}

/// A parsed message.
#[derive(Debug, Clone)]
pub struct Parsed {
    /// What stood before the delimiter.
    pub identities: Vec<Vec<u8>>,
    /// The header map.
    pub header: Value,
    /// The header of the request, or an empty map.
    pub parent: Value,
    /// The metadata map.
    pub metadata: Value,
    /// The content map.
    pub content: Value,
    /// Whatever followed.
    pub buffers: Vec<Vec<u8>>,
}

impl Parsed {
    /// The message type in the header.
    pub fn msg_type(&self) -> &str {
        self.header["msg_type"].as_str().unwrap_or_default()
    }

    /// The id of the request that this answers.
    pub fn parent_id(&self) -> &str {
        self.parent["msg_id"].as_str().unwrap_or_default()
    }
}

/// A connection file together with what is needed to speak to whom it names.
#[derive(Clone)]
pub struct Wire {
    /// The connection file, as it is.
    pub info: Value,
    /// Packs as the file says.
    pub packer: Packer,
    /// Signs with the key of the file.
    pub signer: Signer,
    /// The session in our headers, and the identity of our sockets.
    pub session: String,
}

impl Wire {
    /// Reads a connection file.
    pub fn load(file: &Path) -> Result<Wire, String> {
        let text = fs::read(file).map_err(|error| format!("{}: {error}", file.display()))?;
        let info: Value = serde_json::from_slice(&text)
            .map_err(|error| format!("{}: {error}", file.display()))?;
        Ok(Wire::new(info))
    }

    /// Speaks as `info` (a connection file's content) says.
    pub fn new(info: Value) -> Wire {
        let packer = if info["pack"] == "msgpack" {
            Packer::MsgPack
        } else {
            Packer::Json
        };
        let signer = Signer::new(info["key"].as_str().unwrap_or_default().as_bytes());
        Wire {
            info,
            packer,
            signer,
            session: uuid::Uuid::new_v4().simple().to_string(),
        }
    }

    /// The endpoint of a channel.
    pub fn endpoint(&self, channel: &str) -> String {
        let interface = self.info["interface"].as_str().unwrap_or("tcp://127.0.0.1");
        let port = match &self.info[channel] {
            Value::Array(ports) => ports.first().cloned().unwrap_or_default(),
            port => port.clone(),
        };
        format!("{interface}:{port}")
    }

    /// Every endpoint that the file names, with its key.
    pub fn endpoints(&self) -> Vec<(String, String)> {
        const CHANNELS: [&str; 9] = [
            "registration",
            "notification",
            "control",
            "mux",
            "task",
            "iopub",
            "hb_ping",
            "hb_pong",
            "broadcast",
        ];
        CHANNELS
            .iter()
            .filter(|channel| !self.info[**channel].is_null())
            .map(|channel| ((*channel).to_owned(), self.endpoint(channel)))
            .collect()
    }

    /// A socket that is connected to a channel; it never lingers.
    pub fn connect(
        &self,
        context: &zmq::Context,
        kind: zmq::SocketType,
        identity: Option<&[u8]>,
        channel: &str,
    ) -> zmq::Socket {
        let socket = context.socket(kind).expect("a socket");
        socket.set_linger(0).expect("linger");
        if let Some(identity) = identity {
            socket.set_identity(identity).expect("identity");
        }
        if let Some(server) = self.info["curve_serverkey"]
            .as_str()
            .filter(|key| !key.is_empty())
        {
            let pair = zmq::CurveKeyPair::new().expect("libzmq has CURVE");
            socket
                .set_curve_serverkey(&zmq::z85_decode(server).expect("a Z85 key"))
                .expect("server key");
            socket
                .set_curve_publickey(&pair.public_key)
                .expect("public key");
            socket
                .set_curve_secretkey(&pair.secret_key)
                .expect("secret key");
        }
        socket.connect(&self.endpoint(channel)).expect("connect");
        socket
    }

    /// A header with a fresh id.
    pub fn header(&self, msg_type: &str) -> Value {
        json!({
            "msg_id": uuid::Uuid::new_v4().to_string(),
            "msg_type": msg_type,
            "username": "tests",
            "session": self.session,
            "date": "2026-01-02T03:04:05.678901Z",
            "version": "5.3",
        })
    }

    /// The frames from the delimiter on, signed.
    pub fn frames(
        &self,
        header: &Value,
        parent: &Value,
        metadata: &Value,
        content: &Value,
        buffers: &[Vec<u8>],
    ) -> Vec<Vec<u8>> {
        let maps = [header, parent, metadata, content].map(|map| self.packer.pack(map));
        let signature = self.signer.sign([&maps[0], &maps[1], &maps[2], &maps[3]]);
        let mut frames = vec![DELIMITER.to_vec(), signature];
        frames.extend(maps);
        frames.extend_from_slice(buffers);
        frames
    }

    /// Sends one request and returns its header.
    pub fn send(
        &self,
        socket: &zmq::Socket,
        msg_type: &str,
        metadata: Value,
        content: Value,
        buffers: &[Vec<u8>],
    ) -> Value {
        let header = self.header(msg_type);
        let empty = Value::Object(Map::new());
        socket
            .send_multipart(
                self.frames(&header, &empty, &metadata, &content, buffers),
                0,
            )
            .expect("send");
        header
    }

    /// Takes a received message apart; a wrong signature is an error.
    pub fn parse(&self, frames: Vec<Vec<u8>>) -> Result<Parsed, String> {
        let at = frames
            .iter()
            .position(|frame| frame == DELIMITER)
            .ok_or("no delimiter")?;
        let [signature, header, parent, metadata, content, buffers @ ..] = &frames[at + 1..] else {
            return Err(format!(
                "only {} frames after the delimiter",
                frames.len() - at - 1
            ));
        };
        if *signature != self.signer.sign([header, parent, metadata, content]) {
            return Err("wrong signature".into());
        }
        Ok(Parsed {
            identities: frames[..at].to_vec(),
            header: self.packer.unpack(header)?,
            parent: self.packer.unpack(parent)?,
            metadata: self.packer.unpack(metadata)?,
            content: self.packer.unpack(content)?,
            buffers: buffers.to_vec(),
        })
    }

    /// Receives one message within `limit_ms`.
    pub fn receive(&self, socket: &zmq::Socket, limit_ms: i64) -> Result<Parsed, String> {
        match socket.poll(zmq::POLLIN, limit_ms) {
            Ok(0) => Err(format!("nothing came within {limit_ms} ms")),
            Ok(_) => self.parse(
                socket
                    .recv_multipart(0)
                    .map_err(|error| error.to_string())?,
            ),
            Err(error) => Err(error.to_string()),
        }
    }
}
