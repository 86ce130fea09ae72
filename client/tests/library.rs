//! The library against a controller that does exactly what a test wants.

mod fake;

use std::sync::{Arc, mpsc};
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;

use fake::Fake;
use ipbroker_client::protocol::message::{Command, FunctionCall, TaskRequest, types};
use ipbroker_client::protocol::session::Empty;
use ipbroker_client::protocol::zmq::Message;
use ipbroker_client::{Client, Error, LoadBalancedView, Outgoing, Part, Sink};

const LIMIT: Duration = Duration::from_secs(20);

#[test]
fn one_call() {
    let fake = Fake::start();
    let client = fake.client();
    assert_eq!(client.ids(), [0, 1]);
    let result = client
        .load_balanced_view()
        .apply::<String>("echo", "hello")
        .unwrap();
    assert_eq!(result.get_timeout(LIMIT).unwrap(), "hello");
    assert!(result.ready() && result.successful());
    assert_eq!(result.msg_ids().len(), 1);
    assert_eq!(result.metadata(0).unwrap().engine_id, Some(0));
    fake.until("the result is acknowledged", |seen| {
        seen.acked == result.msg_ids()
    });
}

#[test]
fn a_map_is_one_array_and_keeps_its_order() {
    let fake = Fake::start();
    let client = fake.client();
    let result = client
        .load_balanced_view()
        .map::<u64, _>("echo", 0..1000u64)
        .unwrap();
    assert_eq!(
        result.get_timeout(LIMIT).unwrap(),
        (0..1000).collect::<Vec<_>>()
    );
    assert_eq!(fake.seen(|seen| seen.submissions), 1);
    // The controller answers in ranges, the last one first.
    let mut unordered: Vec<usize> = Vec::new();
    for (index, value) in result.iter_unordered() {
        assert_eq!(value.unwrap(), index as u64);
        unordered.push(index);
    }
    assert_ne!(unordered[0], 0);
    unordered.sort_unstable();
    assert_eq!(unordered, (0..1000).collect::<Vec<_>>());
    assert_eq!(
        result
            .slice(10..13)
            .into_iter()
            .map(Result::unwrap)
            .collect::<Vec<_>>(),
        [10, 11, 12]
    );
    let counted = client
        .load_balanced_view()
        .map_count::<()>("noop", 100_000)
        .unwrap();
    assert_eq!(counted.get_timeout(LIMIT).unwrap().len(), 100_000);
}

#[test]
fn members_fail_one_by_one() {
    let fake = Fake::start();
    let client = fake.client();
    let result = client
        .load_balanced_view()
        .map::<u64, _>("odd_fails", 0..10u64)
        .unwrap();
    assert!(result.wait(Some(LIMIT)));
    assert_eq!(result.failed(), 5);
    assert!(!result.successful());
    for (index, value) in result.iter().enumerate() {
        match value {
            Ok(value) => assert_eq!(value, index as u64),
            Err(Error::Task(error)) => {
                assert_eq!((index % 2, error.ename.as_str()), (1, "Odd"));
                assert_eq!(error.msg_id, result.msg_ids()[index]);
            }
            Err(other) => panic!("{other}"),
        }
    }
    assert!(matches!(result.get(), Err(Error::Task(_))));
    // A whole array that ends in an error is one reply.
    let result = client
        .load_balanced_view()
        .map::<u64, _>("refused", 0..7u64)
        .unwrap();
    assert!(result.wait(Some(LIMIT)));
    assert_eq!(result.failed(), 7);
}

#[test]
fn times_that_are_none_are_refused() {
    let fake = Fake::start();
    let client = fake.client();
    let view = client.load_balanced_view();
    for seconds in [-1.0, f64::NAN, f64::INFINITY] {
        let refused = |view: LoadBalancedView, option: &str| {
            let words = format!("{option} must be a number of seconds from 0, not {seconds}");
            let call = view.apply::<u64>("echo", &1).map(drop);
            let map = view.map::<u64, _>("echo", [1]).map(drop);
            let imap = view.imap::<u64, _, _>("echo", [1], 1).map(drop);
            for result in [call, map, imap] {
                assert_eq!(result.expect_err("an error").to_string(), words);
            }
        };
        refused(view.clone().timeout(seconds), "timeout");
        refused(view.clone().retry_delay(seconds), "retry_delay");
        let preferring = view.clone().prefer(["a"], Some(seconds));
        refused(preferring, "prefer_wait");
    }
    assert_eq!(fake.seen(|seen| seen.submissions), 0);
    let result = view.timeout(0.0).apply::<u64>("echo", &1).unwrap();
    assert_eq!(result.get_timeout(LIMIT).unwrap(), 1);
}

type Packed = std::result::Result<u64, ()>;

struct Unpackable;

impl serde::Serialize for Unpackable {
    fn serialize<S: serde::Serializer>(&self, _: S) -> std::result::Result<S::Ok, S::Error> {
        Err(serde::ser::Error::custom("not this one"))
    }
}

#[test]
fn imap_bounds_what_is_on_its_way() {
    let fake = Fake::start();
    let client = fake.client();
    let view = client.load_balanced_view();
    let values: Vec<u64> = view
        .imap("echo", 0..5000u64, 16)
        .unwrap()
        .map(Result::unwrap)
        .collect();
    assert_eq!(values, (0..5000).collect::<Vec<_>>());
    let mut values: Vec<u64> = view
        .imap("echo", 0..500u64, 16)
        .unwrap()
        .unordered()
        .map(Result::unwrap)
        .collect();
    values.sort_unstable();
    assert_eq!(values, (0..500).collect::<Vec<_>>());
    assert!(
        view.imap::<u64, u64, _>("echo", [], 4)
            .unwrap()
            .next()
            .is_none()
    );
    // What cannot be packed ends it at its place.
    let numbers = |end: u64| (0..100u64).map(move |at| (at < end).then_some(at).ok_or(Unpackable));
    let mut imap = view.imap::<Packed, _, _>("echo", numbers(30), 16).unwrap();
    assert_eq!(imap.by_ref().take_while(Result::is_ok).count(), 30);
    assert!(imap.next().is_none());
    let refused = view.imap::<Packed, _, _>("echo", numbers(0), 16);
    assert!(matches!(refused.err(), Some(Error::Encode(_))));
    fake.mute(true);
    let before = fake.seen(|seen| seen.submissions);
    let mut imap = view
        .imap::<u64, _, _>("echo", 0..100u64, 16)
        .unwrap()
        .unordered();
    fake.until("as many as may be are there", |seen| {
        seen.submissions == before + 16
    });
    fake.refuse_all();
    assert!((0..16).all(|_| matches!(imap.next(), Some(Err(Error::Task(_))))));
    // Each answer may already have made room for another call.
    assert!(fake.seen(|seen| seen.submissions) <= before + 32);
}

#[test]
fn commands() {
    let fake = Fake::start();
    let client = fake.client();
    let view = client.load_balanced_view();
    let command = |cmd: &str| Command {
        cmd: cmd.into(),
        ..Command::default()
    };
    let result = view.command(&command("exit 3")).unwrap();
    assert_eq!(result.get_timeout(LIMIT).unwrap().code, Some(3));
    let results = view
        .commands(
            &Command::default(),
            (0..4).map(|n| command(&format!("exit {n}"))),
        )
        .unwrap();
    let codes: Vec<_> = results
        .get_timeout(LIMIT)
        .unwrap()
        .into_iter()
        .map(|result| result.code)
        .collect();
    assert_eq!(codes, [Some(0), Some(1), Some(2), Some(3)]);
}

#[test]
fn what_was_not_acknowledged_is_sent_again() {
    let fake = Fake::start();
    let client = fake.client();
    fake.deaf(true);
    let view = client.load_balanced_view();
    let one = view.apply::<u64>("echo", &5u64).unwrap();
    let many = view.map::<u64, _>("echo", 0..10u64).unwrap();
    fake.until("both are there", |seen| seen.submissions == 2);
    assert!(!one.wait(Some(Duration::from_millis(50))));
    fake.deaf(false);
    fake.restart();
    assert_eq!(one.get_timeout(LIMIT).unwrap(), 5);
    assert_eq!(
        many.get_timeout(LIMIT).unwrap(),
        (0..10).collect::<Vec<_>>()
    );
    assert_eq!(fake.seen(|seen| seen.submissions), 4);
}

#[test]
fn what_was_acknowledged_and_forgotten_is_lost() {
    struct Told {
        acked: mpsc::Sender<u64>,
        parts: mpsc::Sender<Part>,
    }
    impl Sink for Told {
        fn deliver(&self, _: u64, part: Part) {
            let _ = self.parts.send(part);
        }
        fn acked(&self, tag: u64) {
            let _ = self.acked.send(tag);
        }
    }
    let fake = Fake::start();
    let client = fake.client();
    // The hub answers in order, the first lease before this: who knows no incarnation sees no restart.
    client
        .query_raw(types::CONNECTION_REQUEST, &Empty {})
        .unwrap();
    fake.mute(true);
    let (acked, acks) = mpsc::channel();
    let (parts, results) = mpsc::channel();
    let metadata = TaskRequest {
        ack: true,
        ..TaskRequest::default()
    };
    let content = FunctionCall::named("echo");
    let task = Outgoing {
        msg_type: types::FUNCTION_REQUEST,
        metadata: &metadata,
        content: &content,
        buffers: vec![Message::from(rmp_serde::to_vec_named(&5u64).unwrap())],
        tag: 7,
    };
    client
        .submit(task, Arc::new(Told { acked, parts }))
        .unwrap();
    // A client that has not read the acknowledgement when the controller restarts is right to submit again.
    assert_eq!(acks.recv_timeout(LIMIT), Ok(7));
    fake.mute(false);
    fake.restart();
    let part = results.recv_timeout(LIMIT).unwrap();
    assert_eq!((part.lo, part.hi), (0, 1));
    match part.outcome {
        Err(error) => assert_eq!(error.ename, "EngineError"),
        Ok(reply) => panic!("{reply:?}"),
    }
    assert_eq!(fake.seen(|seen| seen.submissions), 1);
}

#[test]
fn a_direct_task_ends_with_its_engine() {
    let fake = Fake::start();
    let client = fake.client();
    let view = client.direct_view();
    let result = view.apply::<u64>("echo", &7u64).unwrap();
    assert_eq!(result.get_timeout(LIMIT).unwrap(), [7, 7]);
    fake.mute(true);
    let result = client
        .direct_view_of(&[1])
        .unwrap()
        .apply::<u64>("echo", &7u64)
        .unwrap();
    fake.until("it is there", |seen| seen.direct == 3);
    fake.engine_leaves(1);
    match result.get_timeout(LIMIT) {
        Err(Error::Task(error)) => assert_eq!(error.ename, "EngineError"),
        other => panic!("{other:?}"),
    }
    assert_eq!(client.ids(), [0]);
    assert!(matches!(
        client.direct_view_of(&[1]),
        Err(Error::NoEngines(_))
    ));
}

#[test]
fn a_result_is_a_future() {
    struct Unpark(std::thread::Thread);
    impl Wake for Unpark {
        fn wake(self: Arc<Self>) {
            self.0.unpark();
        }
    }
    let fake = Fake::start();
    let client = fake.client();
    let mut future = std::pin::pin!(
        client
            .load_balanced_view()
            .map::<u64, _>("echo", 0..100u64)
            .unwrap()
    );
    let waker = Waker::from(Arc::new(Unpark(std::thread::current())));
    let deadline = std::time::Instant::now() + LIMIT;
    let values = loop {
        match future.as_mut().poll(&mut Context::from_waker(&waker)) {
            Poll::Ready(values) => break values.unwrap(),
            Poll::Pending => {
                assert!(std::time::Instant::now() < deadline, "never woken");
                std::thread::park_timeout(LIMIT);
            }
        }
    };
    assert_eq!(values, (0..100).collect::<Vec<_>>());
}

#[test]
fn nobody_there_and_nobody_known() {
    let fake = Fake::start();
    let dir = tempfile::tempdir().unwrap();
    let missing = Client::builder()
        .profile_dir(dir.path())
        .connect()
        .unwrap_err();
    assert!(
        matches!(missing, Error::NoConnectionFile { .. }),
        "{missing}"
    );
    let mut stale = fake.connection.clone();
    let unused = std::net::TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .port();
    stale.registration = unused;
    let error = fake::connect(&stale, Duration::from_secs(2)).unwrap_err();
    assert!(matches!(error, Error::NoController { .. }), "{error}");
    let mut other = fake.connection.clone();
    other.common.key = "another".into();
    let error = fake::connect(&other, Duration::from_millis(500)).unwrap_err();
    assert!(matches!(error, Error::NoAnswer { .. }), "{error}");
    assert!(error.to_string().contains("key"), "{error}");
}

#[test]
fn a_closed_client_ends_what_waits() {
    let fake = Fake::start();
    let client = fake.client();
    fake.mute(true);
    let mut imap = client
        .load_balanced_view()
        .imap::<u64, _, _>("echo", 0..3u64, 8)
        .unwrap();
    fake.until("they are there", |seen| seen.submissions == 3);
    fake.refuse_all();
    assert!(matches!(imap.next(), Some(Err(Error::Task(_)))));
    assert_eq!(imap.count(), 2);
}
