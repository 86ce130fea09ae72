//! A client without a library: what it sends and gets is plain to see.

use std::collections::HashMap;

use serde_json::{Value, json};

use crate::{
    cluster::Cluster,
    wire::{Parsed, Wire},
};

/// A DEALER on one channel of a cluster.
pub struct RawClient {
    /// The wire it speaks.
    pub wire: Wire,
    /// Its socket, for those who send frames of their own.
    pub socket: zmq::Socket,
    _context: zmq::Context,
}

impl RawClient {
    /// Connects to `channel`.
    pub fn new(cluster: &Cluster, channel: &str) -> RawClient {
        RawClient::with(cluster.wire(), channel)
    }

    /// Connects as `wire` says.
    pub fn with(wire: Wire, channel: &str) -> RawClient {
        let context = zmq::Context::new();
        let identity = wire.session.clone();
        let socket = wire.connect(&context, zmq::DEALER, Some(identity.as_bytes()), channel);
        socket.set_sndhwm(0).expect("hwm");
        socket.set_rcvhwm(0).expect("hwm");
        RawClient {
            wire,
            socket,
            _context: context,
        }
    }

    /// Submits a call of a named function; returns its id.
    pub fn call(&self, name: &str, argument: &Value, metadata: Value) -> String {
        let argument = rmp_serde::to_vec_named(argument).expect("a JSON value packs");
        let header = self.wire.send(
            &self.socket,
            "function_request",
            metadata,
            json!({"name": name}),
            &[argument],
        );
        header["msg_id"].as_str().expect("an id").to_owned()
    }

    /// Submits an array of calls, one for each argument; returns its id.
    pub fn array(&self, name: &str, arguments: &[Value]) -> String {
        let mut offsets = 0u32.to_le_bytes().to_vec();
        let mut values = Vec::new();
        for argument in arguments {
            values.extend(rmp_serde::to_vec_named(argument).expect("a JSON value packs"));
            offsets.extend((values.len() as u32).to_le_bytes());
        }
        let header = self.wire.send(
            &self.socket,
            "function_request",
            json!({"array": arguments.len()}),
            json!({"name": name}),
            &[offsets, values],
        );
        header["msg_id"].as_str().expect("an id").to_owned()
    }

    /// The same, for one engine, on the direct channel.
    pub fn call_on(&self, engine: &str, name: &str, argument: &Value) -> String {
        let argument = rmp_serde::to_vec_named(argument).expect("a JSON value packs");
        let header = self.wire.header("function_request");
        let mut frames = vec![engine.as_bytes().to_vec()];
        frames.extend(self.wire.frames(
            &header,
            &json!({}),
            &json!({}),
            &json!({"name": name}),
            &[argument],
        ));
        self.socket.send_multipart(frames, 0).expect("send");
        header["msg_id"].as_str().expect("an id").to_owned()
    }

    /// Submits a command; returns its id.
    pub fn command(&self, cmd: &str, metadata: Value) -> String {
        let header = self.wire.send(
            &self.socket,
            "command_request",
            metadata,
            json!({"cmd": cmd}),
            &[],
        );
        header["msg_id"].as_str().expect("an id").to_owned()
    }

    /// Asks and waits for the answer to that very question.
    #[track_caller]
    pub fn ask(&self, msg_type: &str, content: Value) -> Parsed {
        let header = self
            .wire
            .send(&self.socket, msg_type, json!({}), content, &[]);
        self.reply(header["msg_id"].as_str().expect("an id"))
    }

    /// Waits for the reply to `id`; others that come meanwhile are dropped.
    #[track_caller]
    pub fn reply(&self, id: &str) -> Parsed {
        loop {
            let reply = self
                .wire
                .receive(&self.socket, 30_000)
                .unwrap_or_else(|error| panic!("no reply to {id}: {error}"));
            if reply.parent_id() == id {
                return reply;
            }
        }
    }

    /// Waits for `count` replies, each to another request.
    #[track_caller]
    pub fn replies(&self, count: usize) -> HashMap<String, Parsed> {
        let mut replies = HashMap::with_capacity(count);
        while replies.len() < count {
            let reply = self
                .wire
                .receive(&self.socket, 60_000)
                .unwrap_or_else(|error| panic!("{} of {count} replies: {error}", replies.len()));
            if reply.msg_type() == "submit_ack" {
                continue;
            }
            let id = reply.parent_id().to_owned();
            assert!(
                replies.insert(id.clone(), reply).is_none(),
                "a second reply to {id}"
            );
        }
        replies
    }
}

/// The result of a function, from the reply's first buffer.
#[track_caller]
pub fn value(reply: &Parsed) -> Value {
    assert_eq!(reply.content["status"], "ok", "{}", reply.content);
    let buffer = reply
        .buffers
        .first()
        .unwrap_or_else(|| panic!("a reply without a buffer: {reply:?}"));
    rmp_serde::from_slice(buffer).expect("MessagePack")
}
