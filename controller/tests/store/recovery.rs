//! What a controller finds that starts after another has ended or died.

use std::fs;
use std::path::Path;

use ipbroker_controller::store::{
    self, Exception, Lookup, Options, Outcome, RecoveredDispatch, StoreError, SyncMode,
};
use proptest::prelude::*;

use crate::kit::*;

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), target).unwrap();
        }
    }
}

#[test]
fn unfinished_tasks_come_back_as_they_were() {
    let dir = tempfile::tempdir().unwrap();
    let large = vec![5u8; 2 << 20];
    let (store, mut journal, handle, recovered) = store::open(&options(dir.path())).unwrap();
    assert!(recovered.tasks.is_empty());
    let waiting = submit(&mut journal, &handle, "waiting", 1, &[b"x", &large]);
    let dispatched = submit(&mut journal, &handle, "dispatched", 1, &[]);
    journal.dispatched(dispatched, 0..1, 1, "engine-0");
    journal.requeued(dispatched, 0..1, 3);
    journal.dispatched(dispatched, 0..1, 2, "engine-1");
    let back = submit(&mut journal, &handle, "back", 1, &[]);
    journal.flush().unwrap();
    settle(&handle);
    journal.dispatched(back, 0..1, 1, "engine-1");
    journal.requeued(back, 0..1, 1);
    let done = submit(&mut journal, &handle, "done", 1, &[]);
    finish(&mut journal, done, "done", Outcome::Error, &[]);
    let array = submit(&mut journal, &handle, "array", 100, &[]);
    journal.dispatched(array, 0..50, 1, "engine-1");
    journal.dispatched(array, 50..60, 1, "engine-2");
    finish_range(
        &mut journal,
        array,
        0..10,
        &[
            (3, Exception::Ended(Outcome::Aborted)),
            (5, Exception::Retry),
        ],
        false,
        &[],
    );
    journal.requeued(array, 20..30, 0);
    journal.set_meta("engines", "next=7");
    let position = journal.flush().unwrap();
    settle(&handle);
    drop(journal);
    store.close();

    let (store, journal, handle, recovered) = store::open(&options(dir.path())).unwrap();
    assert!(
        journal.durable() >= position,
        "what is in the database is durable"
    );
    assert_eq!(recovered.meta["engines"], "next=7");
    assert_eq!(recovered.outcomes, [("done".to_owned(), Outcome::Error)]);
    let ids: Vec<&str> = recovered.tasks.iter().map(|t| t.msg_id.as_str()).collect();
    assert_eq!(ids, ["waiting", "dispatched", "back", "array"]);
    let [w, d, b, a] = &recovered.tasks[..] else {
        unreachable!()
    };
    assert_eq!(
        (w.key, w.count, w.attempt, w.client.as_slice()),
        (waiting, 1, 0, &b"ident"[..])
    );
    assert_eq!((w.waiting.first(), w.dispatched.len()), (Some(&(0..1)), 0));
    assert!(w.frames == request("waiting", &[b"x", &large]));
    assert_eq!(
        (d.attempt, d.waiting.len(), d.dispatched[0].engine.as_str()),
        (2, 0, "engine-1")
    );
    assert_eq!((d.dispatched[0].attempt, d.dispatched[0].at > 0), (2, true));
    assert_eq!((w.retries, d.retries, b.retries), (None, Some(3), Some(1)));
    assert_eq!((b.attempt, b.waiting.len(), b.dispatched.len()), (1, 1, 0));
    assert_eq!((a.key, a.count), (array, 100));
    assert_eq!(a.waiting, [5..6, 20..30, 60..100]);
    let held: Vec<_> = a
        .dispatched
        .iter()
        .map(|RecoveredDispatch { range, engine, .. }| (range.clone(), engine.as_str()))
        .collect();
    assert_eq!(
        held,
        [
            (10..20, "engine-1"),
            (30..50, "engine-1"),
            (50..60, "engine-2")
        ]
    );
    assert_eq!(
        a.ended,
        [
            (0..3, Outcome::Ok),
            (3..4, Outcome::Aborted),
            (4..5, Outcome::Ok),
            (6..10, Outcome::Ok)
        ]
    );
    assert!(handle.next_key() > array, "keys are never used again");
    store.close();
}

#[test]
fn without_restore_unfinished_tasks_are_closed() {
    let dir = tempfile::tempdir().unwrap();
    let (store, mut journal, handle, _) = store::open(&options(dir.path())).unwrap();
    submit(&mut journal, &handle, "m1", 1, &[]);
    submit(&mut journal, &handle, "arr", 5, &[]);
    journal.flush().unwrap();
    store.close();
    let fresh = Options {
        restore: false,
        ..options(dir.path())
    };
    let (store, _journal, handle, recovered) = store::open(&fresh).unwrap();
    assert!(recovered.tasks.is_empty());
    assert_eq!(
        outcomes(&handle, &["m1", "arr"]),
        [Lookup::Done(Outcome::Aborted); 2]
    );
    let record = &records(&handle, &["m1"])[0];
    assert_eq!(record.fields["result_content"]["ename"], "TaskAborted");
    assert_eq!(record.fields["result_header"]["msg_type"], "apply_reply");
    store.close();
}

#[test]
fn two_controllers_do_not_share_a_store() {
    let dir = tempfile::tempdir().unwrap();
    let first = store::open(&options(dir.path())).unwrap();
    assert!(matches!(
        store::open(&options(dir.path())),
        Err(StoreError::Locked { .. })
    ));
    let other = Options {
        name: "ipbroker-two".into(),
        ..options(dir.path())
    };
    store::open(&other).unwrap().0.close();
    first.0.close();
    drop(first.1);
    store::open(&options(dir.path())).unwrap().0.close();
}

#[test]
fn segments_are_deleted_and_positions_grow() {
    let dir = tempfile::tempdir().unwrap();
    let small = Options {
        segment_bytes: 64 << 10,
        ..options(dir.path())
    };
    let segments = || {
        let names = fs::read_dir(dir.path().join("ipbroker.journal")).unwrap();
        names
            .filter(|e| {
                e.as_ref()
                    .unwrap()
                    .file_name()
                    .to_string_lossy()
                    .ends_with(".log")
            })
            .count()
    };
    let mut last = None;
    for round in 0..3 {
        let (store, mut journal, handle, _) = store::open(&small).unwrap();
        for i in 0..500 {
            let id = format!("m{round}-{i}");
            let key = submit(&mut journal, &handle, &id, 1, &[&[0; 1000]]);
            finish(&mut journal, key, &id, Outcome::Ok, &[]);
            let position = journal.flush().unwrap();
            assert!(last < Some(position));
            last = Some(position);
        }
        until("old segments are gone", || segments() <= 1);
        assert_eq!(history(&handle).len(), (round + 1) * 500);
        store.close();
    }
}

#[test]
fn acknowledgements_follow_the_disk() {
    for sync in [SyncMode::None, SyncMode::Ack, SyncMode::Full] {
        let dir = tempfile::tempdir().unwrap();
        let (store, mut journal, handle, _) = store::open(&Options {
            sync,
            ..options(dir.path())
        })
        .unwrap();
        let (sender, receiver) = std::sync::mpsc::channel();
        handle.on_durable(move || sender.send(()).unwrap_or(()));
        for i in 0..20 {
            submit(&mut journal, &handle, &format!("m{i}"), 1, &[]);
            journal.want_durable();
            let position = journal.flush().unwrap();
            if sync != SyncMode::Ack {
                assert!(journal.durable() >= position);
            }
            while journal.durable() < position {
                receiver
                    .recv_timeout(PATIENCE)
                    .expect("the store says when it is durable");
            }
        }
        store.close();
    }
}

/// A journal of some events that the database has not seen, and what a controller finds for each number of whole records.
#[test]
fn a_journal_may_end_at_any_byte() {
    // Written with the store thread kept from applying: the directory is copied right after the last flush, and the database
    // is left out of the copy.
    let dir = tempfile::tempdir().unwrap();
    let (store, mut journal, handle, _) = store::open(&options(dir.path())).unwrap();
    let mut expected = vec![(0u64, Vec::new())];
    let mut open: Vec<String> = Vec::new();
    let path = fs::read_dir(dir.path().join("ipbroker.journal"))
        .unwrap()
        .map(|e| e.unwrap().path())
        .find(|p| p.extension().is_some_and(|e| e == "log"))
        .unwrap();
    for i in 0..6 {
        let id = format!("m{i}");
        let key = submit(&mut journal, &handle, &id, 1, &[b"abc"]);
        open.push(id.clone());
        journal.flush().unwrap();
        expected.push((fs::metadata(&path).unwrap().len(), open.clone()));
        if i % 2 == 0 {
            finish(&mut journal, key, &id, Outcome::Ok, &[b"r"]);
            open.pop();
            journal.flush().unwrap();
            expected.push((fs::metadata(&path).unwrap().len(), open.clone()));
        }
    }
    let bytes = fs::read(&path).unwrap();
    let base = u64::from_str_radix(path.file_stem().unwrap().to_str().unwrap(), 16).unwrap();
    store.close();

    // Every byte near the ends of records, and every seventh in between: each opening makes a database.
    let ends: Vec<u64> = expected.iter().map(|e| e.0).collect();
    let near = |cut: u64| ends.iter().any(|end| cut.abs_diff(*end) <= 9);
    for cut in (0..=bytes.len() as u64).filter(|cut| near(*cut) || cut % 37 == 0) {
        let copy = tempfile::tempdir().unwrap();
        let torn = copy.path().join("ipbroker.journal");
        fs::create_dir_all(&torn).unwrap();
        let kept = usize::try_from(cut).unwrap();
        fs::write(torn.join(format!("{base:016x}.log")), &bytes[..kept]).unwrap();
        let (store, mut journal, handle, recovered) = store::open(&options(copy.path())).unwrap();
        let whole = expected.iter().rev().find(|(end, _)| *end <= cut).unwrap();
        let found: Vec<&String> = recovered.tasks.iter().map(|t| &t.msg_id).collect();
        assert_eq!(found, whole.1.iter().collect::<Vec<_>>(), "cut at {cut}");
        // And it goes on from there.
        let key = submit(&mut journal, &handle, "next", 1, &[]);
        finish(&mut journal, key, "next", Outcome::Ok, &[]);
        journal.flush().unwrap();
        assert_eq!(
            outcomes(&handle, &["next"]),
            [Lookup::Done(Outcome::Ok)],
            "cut at {cut}"
        );
        store.close();
    }
}

#[derive(Debug, Clone)]
enum Step {
    Submit,
    Dispatch(usize),
    Requeue(usize),
    Finish(usize),
    Flush,
    Settle,
    Crash,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        4 => Just(Step::Submit),
        4 => (0usize..64).prop_map(Step::Dispatch),
        1 => (0usize..64).prop_map(Step::Requeue),
        3 => (0usize..64).prop_map(Step::Finish),
        3 => Just(Step::Flush),
        1 => Just(Step::Settle),
        1 => Just(Step::Crash),
    ];
    prop::collection::vec(step, 1..60)
}

#[derive(Debug, Clone, PartialEq)]
enum State {
    Waiting,
    Dispatched,
    Done,
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, ..ProptestConfig::default() })]

    /// Whatever is flushed is found again, whenever the files are looked at; nothing else is.
    #[test]
    fn what_was_flushed_is_found(steps in steps()) {
        let mut dir = tempfile::tempdir().unwrap();
        let mut opened = Some(store::open(&options(dir.path())).unwrap());
        // By number of the task: its key, its state, and its attempts; now, and when it was last flushed.
        let mut now: Vec<(u64, State, u32)> = Vec::new();
        let mut flushed = now.clone();
        for step in steps.iter().chain([&Step::Flush, &Step::Crash]) {
            let (_, journal, handle, _) = opened.as_mut().unwrap();
            match step {
                Step::Submit => {
                    let key = submit(journal, handle, &format!("m{}", now.len()), 1, &[b"x"]);
                    now.push((key, State::Waiting, 0));
                }
                Step::Dispatch(i) => if let Some((key, state @ State::Waiting, attempt)) = now.get_mut(*i) {
                    *attempt += 1;
                    *state = State::Dispatched;
                    journal.dispatched(*key, 0..1, *attempt, "e");
                },
                Step::Requeue(i) => if let Some((key, state @ State::Dispatched, _)) = now.get_mut(*i) {
                    *state = State::Waiting;
                    journal.requeued(*key, 0..1, 0);
                },
                Step::Finish(i) => if let Some((key, state @ State::Dispatched, _)) = now.get_mut(*i) {
                    *state = State::Done;
                    finish(journal, *key, &format!("m{i}"), Outcome::Ok, &[]);
                },
                Step::Flush => {
                    journal.flush().unwrap();
                    flushed.clone_from(&now);
                }
                Step::Settle => settle(handle),
                Step::Crash => {
                    // The files as they are this moment are what a killed controller leaves.
                    let copied = tempfile::tempdir().unwrap();
                    copy_live(dir.path(), copied.path());
                    let (store, journal, _, _) = opened.take().unwrap();
                    drop(journal);
                    store.close();
                    dir = copied;
                    opened = Some(store::open(&options(dir.path())).unwrap());
                    now.clone_from(&flushed);
                    let (_, _, handle, recovered) = opened.as_ref().unwrap();
                    let mut found = recovered.tasks.iter();
                    for (i, (key, state, attempt)) in now.iter().enumerate() {
                        if *state == State::Done {
                            prop_assert_eq!(outcomes(handle, &[&format!("m{i}")]), [Lookup::Done(Outcome::Ok)]);
                            continue;
                        }
                        let task = found.next().unwrap();
                        prop_assert_eq!((task.key, &task.msg_id, task.attempt), (*key, &format!("m{i}"), *attempt));
                        prop_assert_eq!(!task.waiting.is_empty(), *state == State::Waiting);
                        prop_assert_eq!(!task.dispatched.is_empty(), *state == State::Dispatched);
                    }
                    prop_assert!(found.next().is_none());
                }
            }
        }
        opened.unwrap().0.close();
    }
}

/// Copies the files of a store that runs. The database goes first, the journal last: what the copied database lacks, the journal
/// has, as its segments are far larger than these tests write.
fn copy_live(from: &Path, to: &Path) {
    // A database and its log that are copied while they change need not fit together: take them by SQLite's own means.
    let live = rusqlite::Connection::open(from.join("ipbroker.db")).unwrap();
    live.busy_timeout(PATIENCE).unwrap();
    live.execute("VACUUM INTO ?1", [to.join("ipbroker.db").to_str().unwrap()])
        .unwrap();
    copy(&from.join("ipbroker.journal"), &to.join("ipbroker.journal"));
    copy(&from.join("ipbroker.buffers"), &to.join("ipbroker.buffers"));
}
