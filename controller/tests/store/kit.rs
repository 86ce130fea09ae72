//! What the tests of the store share: messages, waiting for answers.

use std::path::Path;
use std::sync::mpsc;
use std::time::Duration;

use ipbroker_controller::error::NamedError;
use ipbroker_controller::store::{
    Answer, Exception, Finish, Journal, Lookup, Options, Outcome, Queue, Record, StoreHandle,
    Submission, TaskRef,
};
use serde_json::{Map, Value, json};

pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

pub(crate) fn options(dir: &Path) -> Options {
    Options {
        restore: true,
        ..Options::new(dir)
    }
}

pub(crate) fn pack(value: &Value) -> Vec<u8> {
    rmp_serde::to_vec_named(value).unwrap()
}

/// The frames of a request.
pub(crate) fn request(msg_id: &str, buffers: &[&[u8]]) -> Vec<Vec<u8>> {
    let header = json!({"msg_id": msg_id, "msg_type": "apply_request", "session": "client-1", "username": "me",
        "date": "2026-01-02T03:04:05.000006Z", "version": "5.3"});
    let mut frames = vec![
        pack(&header),
        pack(&json!({})),
        pack(&json!({"label": "lab"})),
        pack(&json!({"a": 5})),
    ];
    frames.extend(buffers.iter().map(|b| b.to_vec()));
    frames
}

/// The frames of a reply.
pub(crate) fn reply(msg_id: &str, buffers: &[&[u8]]) -> Vec<Vec<u8>> {
    let header = json!({"msg_id": format!("r-{msg_id}"), "msg_type": "apply_reply", "session": "engine-1",
        "date": "2026-01-02T03:04:07.000001Z"});
    let metadata = json!({"started": "2026-01-02T03:04:06Z", "engine": "engine-1", "status": "ok"});
    let mut frames = vec![
        pack(&header),
        pack(&json!({"msg_id": msg_id})),
        pack(&metadata),
        pack(&json!({"status": "ok"})),
    ];
    frames.extend(buffers.iter().map(|b| b.to_vec()));
    frames
}

pub(crate) fn slices(frames: &[Vec<u8>]) -> Vec<&[u8]> {
    frames.iter().map(Vec::as_slice).collect()
}

pub(crate) fn submit(
    journal: &mut Journal,
    handle: &StoreHandle,
    msg_id: &str,
    count: u64,
    buffers: &[&[u8]],
) -> u64 {
    let key = handle.next_key();
    let frames = request(msg_id, buffers);
    let submission = Submission {
        key,
        msg_id,
        client: b"ident",
        queue: Queue::Task,
        count,
        frames: &slices(&frames),
    };
    journal.submitted(&submission).unwrap();
    key
}

pub(crate) fn finish(
    journal: &mut Journal,
    key: u64,
    msg_id: &str,
    outcome: Outcome,
    buffers: &[&[u8]],
) {
    let frames = reply(msg_id, buffers);
    journal.finished(&Finish {
        task: TaskRef::Key(key),
        range: 0..1,
        outcome,
        exceptions: &[],
        engine: "engine-1",
        done: true,
        late: false,
        frames: &slices(&frames),
    });
}

pub(crate) fn finish_range(
    journal: &mut Journal,
    key: u64,
    range: std::ops::Range<u64>,
    exceptions: &[(u64, Exception)],
    done: bool,
    buffers: &[&[u8]],
) {
    let frames = reply("array", buffers);
    journal.finished(&Finish {
        task: TaskRef::Key(key),
        range,
        outcome: Outcome::Ok,
        exceptions,
        engine: "engine-1",
        done,
        late: false,
        frames: &slices(&frames),
    });
}

/// Asks and waits for the answer.
pub(crate) fn ask<T: Send + 'static>(asking: impl FnOnce(Answer<T>)) -> Result<T, NamedError> {
    let (sender, receiver) = mpsc::channel();
    asking(Box::new(move |answer| drop(sender.send(answer))));
    receiver.recv_timeout(PATIENCE).expect("the store answers")
}

pub(crate) fn find(
    handle: &StoreHandle,
    query: Value,
    keys: Option<&[&str]>,
) -> Result<Vec<Record>, NamedError> {
    let Value::Object(query) = query else {
        panic!("a query is a map")
    };
    let keys = keys.map(|k| k.iter().map(ToString::to_string).collect());
    ask(|answer| handle.find(query, keys, None, answer)).map(|(records, _)| records)
}

pub(crate) fn records(handle: &StoreHandle, ids: &[&str]) -> Vec<Record> {
    ask(|answer| handle.records(ids.iter().map(ToString::to_string).collect(), None, answer))
        .unwrap()
}

pub(crate) fn history(handle: &StoreHandle) -> Vec<String> {
    ask(|answer| handle.history(answer)).unwrap()
}

pub(crate) fn outcomes(handle: &StoreHandle, ids: &[&str]) -> Vec<Lookup> {
    let found =
        ask(|answer| handle.outcomes(ids.iter().map(ToString::to_string).collect(), answer))
            .unwrap();
    assert_eq!(found.iter().map(|f| f.0.as_str()).collect::<Vec<_>>(), ids);
    found.into_iter().map(|f| f.1).collect()
}

pub(crate) fn settle(handle: &StoreHandle) {
    let (sender, receiver) = mpsc::channel();
    handle.settle(move || sender.send(()).unwrap_or(()));
    receiver.recv_timeout(PATIENCE).expect("the store settles");
}

pub(crate) fn fields(value: Value) -> Map<String, Value> {
    match value {
        Value::Object(map) => map,
        _ => panic!("fields are a map"),
    }
}

/// Waits until something holds.
pub(crate) fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = std::time::Instant::now() + PATIENCE;
    while !holds() {
        assert!(
            std::time::Instant::now() < deadline,
            "waited in vain until {what}"
        );
        std::thread::sleep(Duration::from_millis(5));
    }
}
