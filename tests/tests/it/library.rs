//! The client library against a running cluster.

use std::{
    collections::BTreeSet,
    future::Future,
    pin::pin,
    sync::Arc,
    task::{Context, Poll, Wake, Waker},
    thread::{self, Thread},
    time::Duration,
};

use ipbroker_client::{Client, Error};
use ipbroker_protocol::message::Command;
use ipbroker_tests::{Cluster, LIMIT, eventually};

fn connected(engines: usize) -> (Cluster, Client) {
    let cluster = Cluster::with_engines(engines);
    let client = Client::builder()
        .file(cluster.connection_file("client"))
        .connect()
        .expect("a client");
    assert_eq!(client.wait_for_engines(engines, Some(LIMIT)), engines);
    (cluster, client)
}

#[test]
fn apply_and_its_errors() {
    let (_cluster, client) = connected(2);
    let view = client.load_balanced_view();
    let echoed: String = view.apply("echo", "hello").unwrap().get().unwrap();
    assert_eq!(echoed, "hello");
    let pair: (u32, Vec<bool>) = view
        .apply("echo", &(7, vec![true, false]))
        .unwrap()
        .get()
        .unwrap();
    assert_eq!(pair, (7, vec![true, false]));
    let wrong = view.apply::<()>("sleep", "a while").unwrap();
    assert!(wrong.wait(Some(LIMIT)));
    assert!(!wrong.successful());
    let text = wrong.get().unwrap_err().to_string();
    assert!(text.contains("TypeError"), "{text}");
    // An engine that has it may still come: it waits.
    let missing = view.apply::<()>("no-such-function", &()).unwrap();
    assert!(!missing.wait(Some(Duration::from_millis(300))));
    missing.abort().unwrap();
    let slow = view.apply::<f64>("sleep", &30.0).unwrap();
    assert!(!slow.wait(Some(Duration::from_millis(50))) && !slow.ready());
    assert!(matches!(
        slow.get_timeout(Duration::from_millis(50)),
        Err(Error::Timeout { .. })
    ));
    slow.abort().unwrap();
    assert!(slow.wait(Some(LIMIT)));
    let text = slow.get().unwrap_err().to_string();
    assert!(text.to_lowercase().contains("abort"), "{text}");
}

#[test]
fn maps_of_every_kind() {
    let (_cluster, client) = connected(3);
    let view = client.load_balanced_view();
    let numbers: Vec<u64> = (0..5000).collect();
    let result = view.map::<u64, _>("echo", &numbers).unwrap();
    assert_eq!(
        result.iter().collect::<Result<Vec<_>, _>>().unwrap(),
        numbers
    );
    assert_eq!(result.get().unwrap(), numbers);
    assert_eq!(
        result
            .slice(10..13)
            .into_iter()
            .collect::<Result<Vec<_>, _>>()
            .unwrap(),
        [10, 11, 12]
    );
    assert_eq!(
        result.msg_ids().into_iter().collect::<BTreeSet<_>>().len(),
        5000
    );
    assert_eq!(
        (result.progress(), result.len(), result.failed()),
        ((5000, 5000), 5000, 0)
    );
    assert!(result.metadata(4999).unwrap().engine.is_some());
    let chunks = view
        .map_chunks::<u64, _>("echo", numbers.iter().copied(), 64)
        .unwrap()
        .get()
        .unwrap();
    assert_eq!(chunks.concat(), numbers);
    let counted = view.map_count::<u64>("echo", 100_000).unwrap();
    assert_eq!(counted.get().unwrap(), (0..100_000).collect::<Vec<u64>>());
    let unordered = view.map::<u64, _>("echo", &numbers).unwrap();
    let seen: BTreeSet<u64> = unordered
        .iter_unordered()
        .map(|item| item.1.unwrap())
        .collect();
    assert_eq!(seen.len(), 5000);
    assert!(
        view.map::<u64, u64>("echo", [])
            .unwrap()
            .get()
            .unwrap()
            .is_empty()
    );
    // Arguments without an end, of which some are taken.
    let first: Vec<u64> = view
        .imap("echo", 0u64.., 50)
        .unwrap()
        .take(500)
        .collect::<Result<_, _>>()
        .unwrap();
    assert_eq!(first, (0..500).collect::<Vec<_>>());
}

#[test]
fn some_of_many_fail() {
    let (_cluster, client) = connected(2);
    let commands = client.load_balanced_view().commands(
        &Command::default(),
        (0..50).map(|number| {
            std::collections::BTreeMap::from([("cmd", format!("exit {}", number % 3))])
        }),
    );
    let codes: Vec<_> = commands
        .unwrap()
        .get()
        .unwrap()
        .into_iter()
        .map(|result| result.code)
        .collect();
    assert_eq!(
        codes,
        (0..50).map(|number| Some(number % 3)).collect::<Vec<_>>()
    );
}

#[test]
fn calls_beside_those_that_fail_have_their_results() {
    let (_cluster, client) = connected(1);
    let seconds: Vec<f64> = (0..50).map(|at| f64::from(at % 3 - 1) / 100.0).collect();
    for retries in [0, 2] {
        let view = client.load_balanced_view().retries(retries);
        let slept = view.map::<f64, _>("sleep", &seconds).unwrap();
        let mut results: Vec<_> = slept.iter_unordered().collect();
        results.sort_unstable_by_key(|(at, _)| *at);
        for ((_, result), wanted) in results.into_iter().zip(&seconds) {
            match result {
                Ok(slept) => assert_eq!(slept, *wanted),
                Err(Error::Task(error)) => {
                    assert_eq!((*wanted, &*error.ename), (-0.01, "ValueError"));
                }
                Err(error) => panic!("{error}"),
            }
        }
        assert_eq!(slept.failed(), 17);
        assert!(matches!(slept.get(), Err(Error::Task(error)) if error.ename == "ValueError"));
    }
}

#[test]
fn results_do_not_wait_for_a_long_call_behind_them() {
    let (_cluster, client) = connected(1);
    let mut seconds = vec![0.0; 100];
    seconds[60] = 600.0;
    let slept = client.load_balanced_view();
    let slept = slept.map::<f64, _>("sleep", seconds).unwrap();
    let first: Vec<f64> = slept.iter().take(60).map(Result::unwrap).collect();
    assert_eq!(first, [0.0; 60]);
    assert!(slept.progress().0 <= 60);
    slept.abort().unwrap();
    assert!(slept.wait(Some(LIMIT)));
}

#[test]
fn engines_hold_values() {
    let (_cluster, client) = connected(3);
    let all = client.direct_view();
    assert_eq!(all.ids(), [0, 1, 2]);
    all.push("answer", &42).unwrap().get().unwrap();
    assert_eq!(
        all.pull::<i32>("answer").unwrap().get().unwrap(),
        [42, 42, 42]
    );
    let values: Vec<u32> = (0..100).collect();
    all.scatter("part", &values).unwrap().get().unwrap();
    assert_eq!(all.gather::<u32>("part").unwrap(), values);
    let one = client.direct_view_of(&[1]).unwrap();
    one.push("answer", &1).unwrap().get().unwrap();
    assert_eq!(
        all.pull::<i32>("answer").unwrap().get().unwrap(),
        [42, 1, 42]
    );
    assert!(all.pull::<i32>("nothing").unwrap().get().is_err());
    assert_eq!(
        all.map::<u32, _>("echo", values.iter().copied())
            .unwrap()
            .get()
            .unwrap(),
        values
    );
    assert!(client.direct_view_of(&[17]).is_err());
}

#[test]
fn a_broadcast_reaches_all() {
    let (_cluster, client) = connected(5);
    let all = client.direct_view();
    let large = vec![3u8; 1 << 20];
    let echoed: Vec<Vec<u8>> = all.broadcast("echo", &large).unwrap().get().unwrap();
    assert_eq!(echoed.len(), 5);
    assert!(echoed.iter().all(|value| *value == large));
}

/// Wakes a thread.
struct Unpark(Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Unpark>) {
        self.0.unpark();
    }
}

fn block_on<F: Future>(future: F) -> F::Output {
    let mut future = pin!(future);
    let waker = Waker::from(Arc::new(Unpark(thread::current())));
    loop {
        match future.as_mut().poll(&mut Context::from_waker(&waker)) {
            Poll::Ready(output) => return output,
            Poll::Pending => thread::park_timeout(LIMIT),
        }
    }
}

#[test]
fn a_result_is_a_future() {
    let (_cluster, client) = connected(1);
    let view = client.load_balanced_view();
    let answer = block_on(async {
        let first: u64 = view.apply("echo", &20u64)?.await?;
        let second: Vec<u64> = view.map("echo", [first, 22])?.await?;
        Ok::<u64, Error>(second.iter().sum())
    });
    assert_eq!(answer.unwrap(), 42);
}

#[test]
fn two_threads_share_a_client() {
    let (_cluster, client) = connected(2);
    thread::scope(|scope| {
        for lane in 0..4u64 {
            let client = &client;
            scope.spawn(move || {
                let view = client.load_balanced_view();
                for number in 0..200 {
                    let argument = lane * 1000 + number;
                    assert_eq!(
                        view.apply::<u64>("echo", &argument).unwrap().get().unwrap(),
                        argument
                    );
                }
            });
        }
    });
}

/// Calls that are submitted one by one while many are under way travel together; each is a call of its own.
#[test]
fn a_loop_of_calls() {
    let (_cluster, client) = connected(2);
    let view = client.load_balanced_view();
    let busy: Vec<_> = (0..2)
        .map(|_| view.apply::<f64>("sleep", &600.0).unwrap())
        .collect();
    // Once the client has heard that the controller takes bundles, and many are under way.
    let mut early = Vec::new();
    eventually("calls to travel together", LIMIT, || {
        let call = view.apply::<u64>("echo", &0u64).unwrap();
        let together = call.msg_ids()[0].contains(':');
        early.push(call);
        together.then_some(())
    });
    let calls: Vec<_> = (0..2000u64)
        .map(|number| view.apply::<u64>("echo", &number).unwrap())
        .collect();
    let wrong = view.apply::<()>("sleep", "a while").unwrap();
    let ids: BTreeSet<_> = calls.iter().flat_map(|call| call.msg_ids()).collect();
    assert_eq!(ids.len(), calls.len());
    assert!(ids.iter().filter(|id| id.contains(':')).count() > 1900);
    calls[1500].abort().unwrap();
    for call in busy {
        call.abort().unwrap();
    }
    for (number, call) in calls.iter().enumerate() {
        let value = call.get_timeout(LIMIT);
        if number == 1500 {
            let text = value.unwrap_err().to_string();
            assert!(text.to_lowercase().contains("abort"), "{text}");
            continue;
        }
        assert_eq!(value.unwrap(), number as u64);
        let info = call.metadata(0).unwrap();
        assert_eq!((info.status.as_str(), info.range), ("ok", None));
        assert!(info.duration.unwrap() < 1.0 && call.successful());
    }
    assert!(matches!(wrong.get_timeout(LIMIT), Err(Error::Task(_))));
    let firsts: Vec<u64> = view
        .imap("echo", 0u64.., 200)
        .unwrap()
        .take(1000)
        .collect::<Result<_, _>>()
        .unwrap();
    assert_eq!(firsts, (0..1000).collect::<Vec<u64>>());
}

#[test]
fn dependencies_between_results() {
    let (_cluster, client) = connected(2);
    let view = client.load_balanced_view();
    let first = view.map_count::<u64>("echo", 100).unwrap();
    let second = view
        .clone()
        .after(first.msg_ids())
        .apply::<String>("echo", "after")
        .unwrap();
    assert_eq!(second.get_timeout(LIMIT).unwrap(), "after");
    assert!(first.ready());
}

#[test]
fn a_client_survives_a_restarted_controller() {
    let mut cluster = Cluster::builder().args(["-n", "2"]).start();
    cluster.wait_engines(2);
    let client = Client::builder()
        .file(cluster.connection_file("client"))
        .connect()
        .unwrap();
    let view = client.load_balanced_view().retries(3);
    let before: u64 = view.apply("echo", &1u64).unwrap().get().unwrap();
    let over = view.map::<f64, _>("sleep", vec![0.05; 100]).unwrap();
    cluster.controller().kill();
    cluster.start_controller_with(&["--restore"]);
    assert_eq!(over.get_timeout(LIMIT * 3).unwrap().len(), 100);
    assert_eq!(
        view.apply::<u64>("echo", &2u64)
            .unwrap()
            .get_timeout(LIMIT)
            .unwrap(),
        before + 1
    );
}
