//! Many messages in one, as a client of another make would send and read them.

use ipbroker_tests::{
    Cluster, LIMIT, RawClient, eventually,
    raw::value,
    wire::{DELIMITER, Parsed},
};
use serde_bytes::ByteBuf;
use serde_json::{Value, json};

/// Sends messages (their frames from the delimiter on, signed) as one.
fn send(client: &RawClient, messages: &[Vec<Vec<u8>>]) {
    let bare: Vec<Vec<ByteBuf>> = messages
        .iter()
        .map(|frames| {
            let [delimiter, _signature, rest @ ..] = &frames[..] else {
                panic!("no message")
            };
            let frames = [delimiter].into_iter().chain(rest);
            frames.cloned().map(ByteBuf::from).collect()
        })
        .collect();
    send_content(client, &rmp_serde::to_vec(&bare).unwrap());
}

fn send_content(client: &RawClient, content: &[u8]) {
    let wire = &client.wire;
    let pack = |value: &Value| wire.packer.pack(value);
    let (header, empty) = (pack(&wire.header("bundle")), pack(&json!({})));
    let signature = wire.signer.sign([&header, &empty, &empty, content]);
    let frames = [
        DELIMITER.to_vec(),
        signature,
        header,
        empty.clone(),
        empty,
        content.to_vec(),
    ];
    client.socket.send_multipart(frames, 0).unwrap();
}

/// The next message's messages, and whether it was a bundle.
fn receive(client: &RawClient) -> (Vec<Parsed>, bool) {
    let wire = &client.wire;
    assert_eq!(
        client.socket.poll(zmq::POLLIN, 30_000).unwrap(),
        1,
        "nothing came"
    );
    let frames = client.socket.recv_multipart(0).unwrap();
    // A reply still has its engine's name before the delimiter.
    let begin = |frames: &[Vec<u8>]| frames.iter().position(|frame| frame == DELIMITER).unwrap();
    let [_, signature, header, parent, metadata, content, ..] = &frames[begin(&frames)..] else {
        panic!("{} frames", frames.len())
    };
    if wire.packer.unpack(header).unwrap()["msg_type"] != "bundle" {
        return (vec![wire.parse(frames).unwrap()], false);
    }
    assert_eq!(
        *signature,
        wire.signer.sign([header, parent, metadata, content])
    );
    let messages: Vec<Vec<ByteBuf>> = rmp_serde::from_slice(content).unwrap();
    assert!(messages.len() > 1, "a bundle of one");
    let parsed = messages.into_iter().map(|message| {
        let mut frames: Vec<Vec<u8>> = message.into_iter().map(ByteBuf::into_vec).collect();
        let begin = begin(&frames);
        let [_, header, parent, metadata, content, ..] = &frames[begin..] else {
            panic!("{} frames in a bundle", frames.len())
        };
        let signature = wire.signer.sign([header, parent, metadata, content]);
        frames.insert(begin + 1, signature);
        wire.parse(frames).unwrap()
    });
    (parsed.collect(), true)
}

fn call(client: &RawClient, metadata: &Value, argument: u64) -> (String, Vec<Vec<u8>>) {
    let header = client.wire.header("function_request");
    let argument = rmp_serde::to_vec(&argument).unwrap();
    let content = json!({"name": "echo"});
    let frames = client
        .wire
        .frames(&header, &json!({}), metadata, &content, &[argument]);
    (header["msg_id"].as_str().unwrap().to_owned(), frames)
}

#[test]
fn each_message_of_a_bundle_has_its_own_outcome() {
    for packer in ["msgpack", "json"] {
        let cluster = Cluster::builder()
            .args(["-n", "2", &format!("--packer={packer}")])
            .start();
        cluster.wait_engines(2);
        let client = RawClient::new(&cluster, "task");
        let mut together = 0;
        for round in 0..20 {
            let (ids, mut messages): (Vec<_>, Vec<_>) = (0..50)
                .map(|number| call(&client, &json!({"retries": number % 2}), number))
                .unzip();
            // One that is refused, and one that is no message, among them: the others are none the worse.
            let (refused, message) = call(&client, &json!({"array": 0}), 0);
            messages.insert(20, message);
            messages.insert(30, vec![DELIMITER.to_vec(), vec![], b"no header".to_vec()]);
            send(&client, &messages);
            let mut outcomes = std::collections::HashMap::new();
            while outcomes.len() < ids.len() + 1 {
                let (replies, bundle) = receive(&client);
                together += usize::from(bundle);
                for reply in replies {
                    let id = reply.parent_id().to_owned();
                    assert!(outcomes.insert(id, reply).is_none(), "round {round}: twice");
                }
            }
            assert_eq!(outcomes[&refused].content["ename"], "ValueError");
            for (number, id) in ids.iter().enumerate() {
                assert_eq!(value(&outcomes[id]), json!(number), "round {round}");
            }
        }
        assert!(together > 0, "{packer}: no replies came together");
    }
}

/// What can never run ends while its bundle is still being read: the messages after it are none the worse.
#[test]
fn what_ends_at_once_in_a_bundle_takes_no_other_with_it() {
    let cluster = Cluster::with_engines(1);
    let client = RawClient::new(&cluster, "task");
    let bad = client.command("exit 1", json!({}));
    assert_eq!(client.reply(&bad).content["code"], 1);
    let (ids, messages): (Vec<_>, Vec<_>) = (0..50)
        .map(|number| match number % 3 {
            0 => call(&client, &json!({"after": [bad]}), number),
            _ => call(&client, &json!({}), number),
        })
        .unzip();
    send(&client, &messages);
    let mut outcomes = std::collections::HashMap::new();
    while outcomes.len() < ids.len() {
        for reply in receive(&client).0 {
            let id = reply.parent_id().to_owned();
            assert!(outcomes.insert(id, reply).is_none(), "twice");
        }
    }
    for (number, id) in ids.iter().enumerate() {
        let reply = &outcomes[id];
        match number % 3 {
            0 => assert_eq!(reply.content["ename"], "ImpossibleDependency"),
            _ => assert_eq!(value(reply), json!(number)),
        }
    }
}

#[test]
fn what_is_no_bundle_is_refused() {
    let mut cluster = Cluster::builder().args(["-n", "1"]).start();
    cluster.wait_engines(1);
    let client = RawClient::new(&cluster, "task");
    for content in [
        &b""[..],
        b"\x92",
        b"\xdf\xff\xff\xff\xff",
        b"\xdd\xff\xff\xff\xff",
        b"\x91\x91\xc4\xff",
        b"\x91\x91\xa1x",
        b"\x90\x90",
    ] {
        send_content(&client, content);
    }
    // Neither is one in another looked at, whatever is in it.
    let (id, frames) = call(&client, &json!({}), 7);
    let inner = client.wire.frames(
        &client.wire.header("bundle"),
        &json!({}),
        &json!({}),
        &json!([[frames.len()]]),
        &[],
    );
    send(&client, &[inner]);
    send(&client, &[frames]);
    let reply = eventually("the good one's reply", LIMIT, || {
        receive(&client)
            .0
            .into_iter()
            .find(|reply| reply.parent_id() == id)
    });
    assert_eq!(value(&reply), json!(7));
    assert!(cluster.controller().running());
}
