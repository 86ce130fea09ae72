//! What is fuzzed: each target takes any bytes and must return. `fuzz/` gives them to libFuzzer, `fuzz_run` mutates valid
//! inputs on stable Rust.

use std::fmt::Debug;

use ipbroker_client::job::{Graph, Job, parse_line};
use ipbroker_protocol::{
    array::{View, split_id},
    bundle,
    connection::{ClientConnection, Common, EngineConnection},
    dependency::Dependency,
    envelope::Envelope,
    frames::Frames,
    message::*,
    session::{Packer, Session, UnpackError},
    value::Value,
};
use rand::{RngExt, rngs::SmallRng};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::json;

/// A name, what it does with bytes, and valid inputs to start from.
#[derive(Clone, Copy)]
pub struct Target {
    /// Its name on the command line.
    pub name: &'static str,
    /// Must return whatever it is given.
    pub run: fn(&[u8]),
    /// Valid inputs.
    pub seeds: fn() -> Vec<Vec<u8>>,
}

/// All of them.
pub const TARGETS: [Target; 5] = [
    Target {
        name: "envelope",
        run: envelope,
        seeds: envelope_seeds,
    },
    Target {
        name: "messages",
        run: messages,
        seeds: message_seeds,
    },
    Target {
        name: "arrays",
        run: arrays,
        seeds: array_seeds,
    },
    Target {
        name: "connection_files",
        run: connection_files,
        seeds: connection_seeds,
    },
    Target {
        name: "job_lines",
        run: job_lines,
        seeds: job_seeds,
    },
];

/// Bytes as frames: a length byte (255: two more follow) before each.
fn frames(mut bytes: &[u8]) -> Vec<zmq::Message> {
    let mut frames = Vec::new();
    while let [length, rest @ ..] = bytes {
        let (length, rest) = match (length, rest) {
            (255, [low, high, rest @ ..]) => (usize::from(u16::from_le_bytes([*low, *high])), rest),
            (length, rest) => (usize::from(*length), rest),
        };
        let (frame, rest) = rest.split_at(length.min(rest.len()));
        frames.push(frame.into());
        bytes = rest;
    }
    frames
}

fn unframes(frames: &[Vec<u8>]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for frame in frames {
        match u8::try_from(frame.len()) {
            Ok(length) if length < 255 => bytes.push(length),
            _ => {
                bytes.push(255);
                bytes.extend((frame.len() as u16).to_le_bytes());
            }
        }
        bytes.extend(frame);
    }
    bytes
}

/// Frames of any number and content, as a socket delivers them.
pub fn envelope(bytes: &[u8]) {
    let Ok(mut envelope) = Envelope::parse(frames(bytes)) else {
        return;
    };
    let session = Session::with_id("fuzz".into(), b"key", Packer::Msgpack);
    let _ = session.verify(&envelope);
    let _ = HeaderRef::read(Packer::Msgpack, envelope.header());
    let _ = ParentRef::read(Packer::Msgpack, envelope.parent_header());
    let _ = Packer::Msgpack.unpack::<TaskMetadata>(envelope.metadata());
    if let Ok(messages) = bundle::unpack_loose(envelope.content(), envelope.identities()) {
        let mut count = 0;
        for frames in messages {
            let _ = Envelope::parse(frames);
            count += 1;
        }
        assert!(count <= envelope.content().len());
    }
    if envelope.identities().len() >= 2 {
        envelope.swap_identities(0, 1);
    }
    let again = envelope.duplicate();
    assert_eq!(again.maps(), envelope.maps());
    assert_eq!(again.buffers().len(), envelope.buffers().len());
    envelope.set_identities([zmq::Message::from("somebody")]);
    assert_eq!(
        Envelope::parse(envelope.into_frames())
            .expect("still a message")
            .maps(),
        again.maps()
    );
}

fn envelope_seeds() -> Vec<Vec<u8>> {
    let wire = crate::wire::Wire::new(json!({"pack": "msgpack", "key": "key"}));
    let message = |metadata, buffers: &[Vec<u8>]| {
        let mut frames = vec![b"engine".to_vec(), b"client".to_vec()];
        let header = wire.header("command_request");
        frames.extend(wire.frames(
            &header,
            &json!({}),
            &metadata,
            &json!({"cmd": "true"}),
            buffers,
        ));
        unframes(&frames)
    };
    let mut bundle = Vec::new();
    let session = Session::with_id("fuzz".into(), b"key", Packer::Msgpack);
    let inner = |id: &str| {
        let mut frames = vec![zmq::Message::from("engine"), zmq::Message::from("client")];
        let header = wire.header(id);
        let maps = wire.frames(&header, &json!({}), &json!({}), &json!({}), &[]);
        frames.extend(maps.iter().map(|frame| zmq::Message::from(&frame[..])));
        frames
    };
    let messages = [inner("a"), inner("b")].map(Frames::from);
    bundle::send(&session, (1, None), messages, |frames| {
        bundle = frames.iter().map(|frame| frame.to_vec()).collect();
    });
    vec![
        unframes(&bundle),
        message(json!({}), &[]),
        message(
            json!({"targets": ["a"], "after": ["b"], "follow": {"dependencies": ["c"], "all": true}, "retries": 3}),
            &[vec![1], vec![2; 300]],
        ),
    ]
}

/// Unpacks as T; what could be unpacked and packed again must unpack to the same bytes once more.
fn one<T: DeserializeOwned + Serialize>(packer: Packer, bytes: &[u8]) {
    if let Ok(value) = packer.unpack::<T>(bytes) {
        let packed = packer.pack(&value);
        if let Ok(again) = packer.unpack::<T>(&packed) {
            assert_eq!(packer.pack(&again), packed);
        }
    }
}

fn only<T: DeserializeOwned>(packer: Packer, bytes: &[u8]) {
    let _ = packer.unpack::<T>(bytes);
}

/// What is read the short way is what serde unpacks.
fn same<T: Debug>(read: &Result<T, UnpackError>, unpacked: &Result<T, UnpackError>) {
    match (read, unpacked) {
        (Ok(read), Ok(unpacked)) => assert_eq!(format!("{read:?}"), format!("{unpacked:?}")),
        _ => assert_eq!(read.is_ok(), unpacked.is_ok()),
    }
}

/// The typed messages; the first byte chooses packer and type.
const MESSAGES: &[fn(Packer, &[u8])] = &[
    one::<Header>,
    one::<Command>,
    one::<CommandResult>,
    one::<FunctionCall>,
    one::<ErrorContent>,
    one::<Acked>,
    one::<AbortRequest>,
    one::<Registration>,
    one::<FsRequest>,
    |packer, bytes| same(&HeaderRef::read(packer, bytes), &packer.unpack(bytes)),
    |packer, bytes| same(&ParentRef::read(packer, bytes), &packer.unpack(bytes)),
    |packer, bytes| same(&ReplyMetadata::read(packer, bytes), &packer.unpack(bytes)),
    only::<TaskMetadata>,
    only::<SubmitAck>,
    only::<ResumeRequest>,
    only::<ResumeReply>,
    only::<AbortReply>,
    only::<GiveBackRequest>,
    only::<FsReply>,
    only::<RegistrationReply>,
    only::<LeaseReply>,
    only::<EngineDied>,
    only::<ClockNotice>,
    only::<ReceivedNotice>,
    only::<EngineInfo>,
    only::<Stats>,
    only::<Dependency>,
    only::<Value>,
    only::<Leaving>,
    only::<Waiting>,
    only::<LeaveReply>,
    one::<EventsRequest>,
    only::<Sample>,
    one::<OutputRequest>,
    one::<OutputReply>,
    one::<ScaleRequest>,
    one::<WebReply>,
    one::<GraphRequest>,
    one::<GraphReply>,
    one::<SearchRequest>,
    one::<SearchReply>,
];

/// Any bytes as any message.
pub fn messages(bytes: &[u8]) {
    let [first, rest @ ..] = bytes else {
        return;
    };
    let packer = if first & 128 == 0 {
        Packer::Msgpack
    } else {
        Packer::Json
    };
    MESSAGES[usize::from(first & 127) % MESSAGES.len()](packer, rest);
}

fn message_seeds() -> Vec<Vec<u8>> {
    let samples = [
        json!({"msg_id": "a_1", "msg_type": "apply_request", "username": "u", "session": "s", "date": "2026-01-02T03:04:05.678901Z", "version": "5.3", "more": [1, null]}),
        json!({"cmd": "true", "cd": "/tmp", "env": {"A": "b"}, "stdin": "x", "out": "o", "err": "e", "umask": 18, "limit": {"time": 1.5, "memory": 1000}, "capture": 65536, "put": [], "get": [], "scratch": true}),
        json!({"status": "ok", "code": 0, "started": "2026-01-02T03:04:05.678901Z", "completed": "2026-01-02T03:04:05Z", "elapsed": 0.5, "host": "h", "engine_id": 3, "stdout": "x", "stderr": "", "truncated": false}),
        json!({"status": "error", "ename": "E", "evalue": "why", "traceback": ["a", "b"], "name": "f"}),
        json!({"msg_ids": ["a", "b:3"], "duplicate": [], "all": true, "kill": true, "session": "s", "count": 4, "unknown": [], "pending": ["x"], "ranges": [["a", 0, 5]]}),
        json!({"uuid": "u", "id": 3, "capabilities": ["command", "array"], "functions": ["noop"], "host": ["h", "h.example"], "pid": 5, "cores": 2, "machine": "m", "resources": {"memory": 1000, "lic": 1.5, "gpus": ["0", "1"]}, "cpuset": [0, 1], "tags": ["rack1"], "version": "0.1.0", "restored": {"running": [], "queued": [], "finished": []}}),
        json!({"targets": [["u", 1]], "after": {"dependencies": ["a"], "all": true, "success": true, "failure": false}, "follow": ["b"], "timeout": 3.5, "retries": 2, "retry_delay": 0.5, "max_crashes": 3, "hosts": ["h"], "prefer": ["p"], "prefer_wait": 1, "tags": ["t"], "priority": -1, "resources": {"cpus": 1.5, "gpus": 1, "lic": 0.1}, "any": [{"gpus": 1}, {"cpus": 16}], "nodes": 2, "nodelist": ["a", "b"], "alternative": 1, "granted": {"cpus": {"amount": 1.5, "names": ["0", "1"]}}, "require": {"programs": ["p"], "files": ["/f"], "variables": ["V"]}, "detach": true, "ack": true, "array": 10, "range": [2, 5], "failed": [[3, "error"]], "same": true, "attempt": 1, "duration": 0.25, "engine": "u", "status": "ok", "started": "2026-01-02T03:04:05Z", "dependencies_met": true}),
        json!({"op": "stat", "path": "/tmp", "data": [1, 2], "mode": 420, "status": "ok", "id": 1, "hb_period": 3.0, "incarnation": "i", "lease": 15.0, "durable": true, "offset": -47.5, "uuids": {"u": ["a"]}, "reason": "r", "tasks": [["00ff", "a", "apply_request"]], "nodes": [], "jobs": []}),
        json!({"msg_id": "a", "tasks": [{"id": "a:1", "name": "true", "state": "ok", "count": 300, "after": [0, 1]}], "whole": true, "text": "true", "before": "a"}),
    ];
    let mut seeds = Vec::new();
    for number in 0..MESSAGES.len() as u8 {
        for sample in &samples {
            let mut packed = vec![number];
            packed.extend(Packer::Msgpack.pack(sample));
            seeds.push(packed);
            let mut packed = vec![number | 128];
            packed.extend(Packer::Json.pack(sample));
            seeds.push(packed);
        }
    }
    seeds
}

/// Array buffers: a count, then offsets and blob.
pub fn arrays(bytes: &[u8]) {
    let [count, at, rest @ ..] = bytes else {
        return;
    };
    let (offsets, blob) = rest.split_at(usize::from(*at).min(rest.len()));
    if let Ok(view) = View::new(offsets, blob, u64::from(*count)) {
        let total: usize = (0..view.len()).map(|index| view.get(index).len()).sum();
        assert!(total <= blob.len());
        if view.len() >= 2 {
            let (offsets, blob) = view.slice(1, view.len());
            let part = View::new(&offsets, &blob, view.len() as u64 - 1)
                .expect("a part of a good array is good");
            assert_eq!(part.get(0), view.get(1));
        }
    }
    if let Ok(text) = std::str::from_utf8(rest) {
        let _ = split_id(text);
    }
}

fn array_seeds() -> Vec<Vec<u8>> {
    let mut good = vec![3, 16];
    for offset in [0u32, 2, 2, 7] {
        good.extend(offset.to_le_bytes());
    }
    good.extend(b"abcdefg");
    vec![good, b"\x00\x00id:17".to_vec()]
}

/// A connection file.
pub fn connection_files(bytes: &[u8]) {
    fn each(common: &Common) {
        let _ = (common.packer(), common.session(), common.curve());
    }
    if let Ok(client) = serde_json::from_slice::<ClientConnection>(bytes) {
        each(&client.common);
        let _ = serde_json::to_vec(&client).expect("what was read can be written");
    }
    if let Ok(engine) = serde_json::from_slice::<EngineConnection>(bytes) {
        each(&engine.common);
        let _ = serde_json::to_vec(&engine).expect("what was read can be written");
    }
}

fn connection_seeds() -> Vec<Vec<u8>> {
    let mut client = json!({
        "ssh": "", "interface": "tcp://127.0.0.1", "registration": 1, "control": 2, "mux": 3, "task": 4, "task_scheme": "leastload",
        "iopub": 5, "notification": 6, "broadcast": 7, "key": "k", "curve_serverkey": null, "location": "h", "pack": "msgpack",
        "unpack": "msgpack", "signature_scheme": "hmac-sha256",
    });
    let plain = client.to_string().into_bytes();
    client["curve_serverkey"] = json!("rq:rM>}U?@Lns47E1%kR.o@n%FcmmsL/@{H8]yf7");
    client["hb_ping"] = json!(8);
    client["hb_pong"] = json!(9);
    client["broadcast"] = json!([7, 10]);
    vec![plain, client.to_string().into_bytes()]
}

/// A file of job lines.
pub fn job_lines(bytes: &[u8]) {
    let mut jobs: Vec<Job> = Vec::new();
    for (number, line) in bytes.split(|byte| *byte == b'\n').enumerate() {
        if let Ok(job) = parse_line(number as u64 + 1, line) {
            let _ = job.command("/tmp");
            jobs.push(job);
        }
    }
    if let Ok(graph) = Graph::new("fuzz", &jobs) {
        let _ = graph.dot(&jobs);
    }
}

fn job_seeds() -> Vec<Vec<u8>> {
    let all = json!({
        "id": "a", "cmd": "true", "cd": "~/x", "out": "o", "err": "e", "env": {"A": "b"}, "stdin": "x", "limit": {"time": 3, "memory": "1G"},
        "capture": "64k", "scratch": true, "host": ["h"], "prefer": ["p"], "prefer_wait": 1.5, "tags": ["t"], "priority": 3,
        "require": {"programs": ["p"]}, "retries": 2, "timeout": 5, "after": ["b"], "follow": "c", "any": true, "on": "always",
        "put": ["f"], "get": ["g"], "result": {"code": 0},
    });
    vec![
        b"{\"cmd\": \"echo one | tr a-z A-Z\", \"out\": \"one\"}\n{\"cmd\": \"false\"}".to_vec(),
        all.to_string().into_bytes(),
        b"{\"id\": \"a\", \"cmd\": \"x\"}\n{\"id\": \"b\", \"after\": \"a\", \"cmd\": \"y\"}\n{\"id\": \"c\", \"follow\": [\"a\", \"b\"], \"cmd\": \"z\"}".to_vec(),
    ]
}

/// Bytes that mean much: MessagePack's markers, JSON's signs, ends of ranges.
const MARKERS: &[u8] = b"\x00\x7f\x80\x81\x8f\x90\x9f\xa0\xbf\xc0\xc1\xc2\xc4\xc6\xc7\xc9\xca\xcb\xcf\xd0\xd3\xd4\xd8\xd9\xdb\xdc\xdd\xde\xdf\xe0\xff{}[]\",:\\09-eE.\n";

/// Changes an input a little, or mixes another one into it.
pub fn mutate(random: &mut SmallRng, input: &mut Vec<u8>, seeds: &[Vec<u8>]) {
    let at = random.random_range(0..=input.len());
    let end = random.random_range(at..=input.len().min(at + 40));
    match random.random_range(0..9) {
        0 if at < input.len() => input[at] ^= 1 << random.random_range(0..8),
        1 if at < input.len() => input[at] = MARKERS[random.random_range(0..MARKERS.len())],
        2 => input.insert(at, MARKERS[random.random_range(0..MARKERS.len())]),
        3 => {
            input.drain(at..end);
        }
        4 => {
            let piece = input[at..end].to_vec();
            let most = if random.random_range(0..1000) == 0 {
                2000
            } else {
                4
            };
            let times = random.random_range(1..=most);
            for _ in 0..times {
                input.splice(at..at, piece.iter().copied());
            }
        }
        5 => {
            let other = &seeds[random.random_range(0..seeds.len())];
            let from = random.random_range(0..=other.len());
            let to = random.random_range(from..=other.len().min(from + 60));
            input.splice(at..end, other[from..to].iter().copied());
        }
        6 => input.truncate(at),
        7 => {
            let noise: Vec<u8> = (0..random.random_range(0..16))
                .map(|_| random.random())
                .collect();
            input.splice(at..end, noise);
        }
        _ => {
            let big: [u8; 8] = [u64::MAX, 1 << 63, 1 << 32, 0x7fff_ffff, 0]
                [random.random_range(0..5)]
            .to_be_bytes();
            let width = [1, 2, 4, 8][random.random_range(0..4)];
            input.splice(at..end.min(at + width), big[8 - width..].iter().copied());
        }
    }
}
