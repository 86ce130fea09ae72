use std::time::Duration;

use ipbroker_protocol::{session::Packer, socket::routing, zmq::Message};
use serde_json::json;

use super::*;
use crate::task::Kind;

fn engine() -> LogicalEngine {
    LogicalEngine::new(0, "u".into(), Arc::new(Session::new(b"k", Packer::Msgpack)))
}

/// A task of the scheduler, or a direct one; its id.
fn task(engine: &LogicalEngine, via: &[u8], range: Option<(u64, u64)>) -> (Task, String) {
    let session = engine.session();
    let header = session.header("function_request");
    let identities = vec![Message::from(via), Message::from("client")];
    let metadata = json!({"range": range});
    let envelope = session.message(
        identities,
        &header,
        None,
        &metadata,
        &json!({"name": "noop"}),
        Vec::new(),
    );
    let task = Task::read(&session, envelope, Kind::Function, header.msg_id.clone()).unwrap();
    (task, header.msg_id)
}

fn push(engine: &LogicalEngine, range: Option<(u64, u64)>) -> String {
    let (task, id) = task(engine, routing::TASK, range);
    engine.push(task);
    id
}

fn ranges(returned: Vec<Returned>) -> Vec<(String, u64, u64)> {
    returned
        .into_iter()
        .map(|one| match one {
            Returned::Task(task) => task.held(),
            Returned::Range(id, lo, hi, _) => (id, lo, hi),
        })
        .collect()
}

#[test]
fn a_range_is_claimed_in_strides_and_told_as_held() {
    let engine = engine();
    let id = push(&engine, Some((10, 20)));
    let waiting = push(&engine, None);
    assert_eq!(engine.next().unwrap().msg_id, id);
    assert_eq!(engine.claim(4), Claim::Run(10, 14));
    let (running, queued) = engine.holding();
    assert_eq!(running, [(id.clone(), 10, 14)]);
    assert_eq!(queued, [(waiting, 0, 1), (id.clone(), 14, 20)]);
    engine.answered(&id, 10, 12);
    assert_eq!(engine.holding().0, [(id, 12, 14)]);
    assert_eq!(engine.claim(u64::MAX), Claim::Run(14, 20));
    assert_eq!(engine.claim(1), Claim::Done);
    engine.done();
    assert!(!engine.is_idle());
}

#[test]
fn the_last_is_given_back_first_and_what_runs_stays() {
    let engine = engine();
    let running = push(&engine, Some((0, 10)));
    let array = push(&engine, Some((0, 6)));
    let last = push(&engine, None);
    engine.push(task(&engine, routing::MUX, None).0);
    engine.next().unwrap();
    assert_eq!(engine.claim(3), Claim::Run(0, 3));
    assert_eq!(
        ranges(engine.give_back(3)),
        [(last, 0, 1), (array.clone(), 4, 6)]
    );
    assert_eq!(
        ranges(engine.give_back(100)),
        [(array, 0, 4), (running, 3, 10)]
    );
    assert_eq!(engine.claim(1), Claim::Done);
    engine.done();
    assert!(!engine.is_idle(), "a direct request is nobody else's");
}

#[test]
fn where_the_scheduler_keeps_no_request_a_range_goes_back_with_it() {
    let engine = engine();
    engine.keep_whole(true);
    let (task, id) = task(&engine, routing::TASK, Some((0, 10)));
    let request: Vec<Vec<u8>> = task.envelope.frames()[1..]
        .iter()
        .map(|frame| frame.to_vec())
        .collect();
    engine.push(task);
    engine.next().unwrap();
    assert_eq!(engine.claim(3), Claim::Run(0, 3));
    let returned = engine.give_back(u64::MAX);
    let [Returned::Range(msg_id, 3, 10, frames)] = &returned[..] else {
        panic!("{returned:?}");
    };
    assert_eq!(*msg_id, id);
    assert!(frames.iter().map(|frame| &frame[..]).eq(request.iter()));
}

#[test]
fn named_ranges_are_given_back() {
    let engine = engine();
    let first = push(&engine, Some((0, 10)));
    let second = push(&engine, Some((0, 10)));
    let third = push(&engine, None);
    engine.next().unwrap();
    assert_eq!(engine.claim(2), Claim::Run(0, 2));
    let asked = [
        (first.clone(), 5, 10),
        (second.clone(), 7, 10),
        (third.clone(), 0, 1),
        ("other".into(), 0, 1),
    ];
    assert_eq!(
        ranges(engine.give_back_these(&asked)),
        [
            (first.clone(), 5, 10),
            (second.clone(), 7, 10),
            (third, 0, 1)
        ]
    );
    // What has begun stays, whoever asks.
    assert_eq!(
        ranges(engine.give_back_these(&[(first.clone(), 0, 5)])),
        [(first, 2, 5)]
    );
    assert_eq!(
        ranges(engine.give_back_these(&[(second.clone(), 0, 7)])),
        [(second, 0, 7)]
    );
    assert_eq!(engine.claim(1), Claim::Done);
}

#[test]
fn aborted_tasks_come_out_and_members_are_met_when_their_turn_comes() {
    let (engine, warden) = (engine(), Warden::new(Duration::from_millis(100)));
    let single = push(&engine, None);
    let array = push(&engine, Some((0, 5)));
    let again = push(&engine, None);
    let ids = [
        single.clone(),
        format!("{array}:1"),
        format!("{array}:3"),
        "unknown".into(),
    ];
    let out = engine.abort(&warden, Some(&ids), true);
    assert_eq!(out.len(), 1);
    assert_eq!(out[0].msg_id, single);
    engine.next().unwrap();
    let claims: Vec<Claim> = std::iter::repeat_with(|| engine.claim(1))
        .take_while(|claim| *claim != Claim::Done)
        .collect();
    assert_eq!(
        claims,
        [
            Claim::Run(0, 1),
            Claim::Aborted(1, 2),
            Claim::Run(2, 3),
            Claim::Aborted(3, 4),
            Claim::Run(4, 5)
        ]
    );
    engine.done();
    engine.next().unwrap();
    assert_eq!(engine.claim(1), Claim::Run(0, 1), "{again} was not aborted");
}

#[test]
fn a_running_member_is_stopped_and_the_rest_of_its_array_too() {
    let (engine, warden) = (engine(), Warden::new(Duration::from_millis(100)));
    let id = push(&engine, Some((0, 9)));
    let later = {
        // Another range of the same array waits behind.
        let (mut task, _) = task(&engine, routing::TASK, Some((20, 22)));
        task.msg_id.clone_from(&id);
        engine.push(task);
        id.clone()
    };
    engine.next().unwrap();
    assert_eq!(engine.claim(2), Claim::Run(0, 2));
    let (_, token) = engine.begin_member(0).unwrap();
    assert!(
        engine
            .abort(&warden, Some(&[format!("{id}:1")]), true)
            .is_empty()
    );
    assert!(!token.is_cancelled(), "that is the next one");
    assert!(
        engine
            .abort(&warden, Some(&[format!("{id}:0")]), true)
            .is_empty()
    );
    assert!(token.is_cancelled());
    assert_eq!(engine.running.finish(), Some(Stop::Aborted));
    assert_eq!(
        engine.begin_member(1).err(),
        Some(Stop::Aborted),
        "claimed, not begun"
    );
    assert_eq!(engine.claim(1), Claim::Run(2, 3));
    let (_, token) = engine.begin_member(2).unwrap();
    assert!(!token.is_cancelled(), "a token of its own");
    assert!(
        engine
            .abort(&warden, Some(std::slice::from_ref(&later)), true)
            .is_empty()
    );
    assert!(token.is_cancelled());
    engine.running.finish();
    assert_eq!(engine.claim(2), Claim::Aborted(3, 9));
    engine.done();
    engine.next().unwrap();
    assert_eq!(engine.claim(2), Claim::Aborted(20, 22));
}

#[test]
fn who_leaves_returns_everything_and_stops_what_runs() {
    let (engine, warden) = (engine(), Warden::new(Duration::from_millis(100)));
    let running = push(&engine, Some((0, 9)));
    let waiting = push(&engine, None);
    engine.next().unwrap();
    assert_eq!(engine.claim(1), Claim::Run(0, 1));
    let (_, token) = engine.begin_member(0).unwrap();
    assert_eq!(
        ranges(engine.close(&warden, "it is late")),
        [(waiting, 0, 1), (running, 1, 9)]
    );
    assert!(token.is_cancelled());
    assert_eq!(
        engine.running.finish(),
        Some(Stop::EngineLeaves("it is late".into()))
    );
    assert!(matches!(engine.begin_member(1), Err(Stop::EngineLeaves(_))));
    assert!(engine.next().is_none());
}

#[test]
fn who_is_to_leave_returns_what_is_not_begun_and_ends_what_runs() {
    let (engine, warden) = (engine(), Warden::new(Duration::from_millis(100)));
    let running = push(&engine, Some((0, 9)));
    let waiting = push(&engine, None);
    engine.next().unwrap();
    assert_eq!(engine.claim(1), Claim::Run(0, 1));
    let (_, token) = engine.begin_member(0).unwrap();
    assert_eq!(ranges(engine.drain()), [(waiting, 0, 1), (running, 1, 9)]);
    assert!(!token.is_cancelled());
    engine.running.finish();
    assert_eq!(engine.claim(1), Claim::Done);
    engine.done();
    assert!(engine.is_idle());
    assert!(engine.close(&warden, "now").is_empty());
}
