//! What is recorded is what is answered, by the database and by the memory history alike.

use ipbroker_controller::store::{
    self, Backend, Exception, Keep, Lookup, Options, Outcome, Purge, Stream,
};
use ipbroker_protocol::message::{GraphReply, GraphRequest};
use serde_json::{Value, json};

use crate::kit::*;

/// Runs a test on both histories.
fn on_both(test: impl Fn(Options)) {
    for backend in [Backend::Sqlite, Backend::memory()] {
        let dir = tempfile::tempdir().unwrap();
        test(Options {
            backend,
            ..options(dir.path())
        });
    }
}

#[test]
fn a_record_has_the_peers_fields() {
    on_both(|options| {
        let (store, mut journal, handle, _) = store::open(&options).unwrap();
        let key = submit(&mut journal, &handle, "m1", 1, &[b"one", b"two"]);
        journal.flush().unwrap();
        let record = &records(&handle, &["m1"])[0];
        assert_eq!(
            record.fields.len(),
            21,
            "all of empty_record but the buffers: {:?}",
            record.fields
        );
        assert_eq!(record.fields["submitted"], "2026-01-02T03:04:05.000006Z");
        assert_eq!(record.fields["header"]["msg_type"], "apply_request");
        assert_eq!(record.fields["content"], json!({"a": 5}));
        assert_eq!(record.fields["client_uuid"], "client-1");
        assert_eq!(record.fields["label"], "lab");
        assert_eq!(record.fields["queue"], "task");
        assert_eq!(record.fields["stdout"], "");
        for unset in [
            "completed",
            "started",
            "received",
            "engine_uuid",
            "result_content",
            "result_header",
            "error",
        ] {
            assert_eq!(record.fields[unset], Value::Null, "{unset}");
        }
        assert_eq!(record.buffers, [b"one", b"two"]);
        assert!(record.result_buffers.is_empty());

        journal.dispatched(key, 0..1, 1, "engine-1");
        journal.flush().unwrap();
        assert_eq!(
            records(&handle, &["m1"])[0].fields["engine_uuid"],
            "engine-1"
        );
        finish(&mut journal, key, "m1", Outcome::Ok, &[b"result"]);
        journal.flush().unwrap();
        let record = &records(&handle, &["m1"])[0];
        assert_eq!(record.fields["started"], "2026-01-02T03:04:06.000000Z");
        assert_eq!(record.fields["completed"], "2026-01-02T03:04:07.000001Z");
        assert!(record.fields["received"].is_string());
        assert_eq!(record.fields["result_content"], json!({"status": "ok"}));
        assert_eq!(record.fields["result_metadata"]["engine"], "engine-1");
        assert_eq!(record.result_buffers, [b"result"]);
        assert_eq!(
            outcomes(&handle, &["m1", "m2"]),
            [Lookup::Done(Outcome::Ok), Lookup::Unknown]
        );
        // All at once is the same.
        let key = submit(&mut journal, &handle, "m2", 1, &[b"one", b"two"]);
        journal.dispatched(key, 0..1, 1, "engine-1");
        finish(&mut journal, key, "m2", Outcome::Ok, &[b"result"]);
        journal.flush().unwrap();
        let mut folded = records(&handle, &["m2"]).remove(0);
        for differs in ["msg_id", "header", "result_header", "received"] {
            folded
                .fields
                .insert(differs.into(), record.fields[differs].clone());
        }
        assert_eq!(&folded, record);
        store.close();
    });
}

#[test]
fn large_buffers_come_back() {
    on_both(|options| {
        let (store, mut journal, handle, _) = store::open(&options).unwrap();
        let (large, larger) = (vec![7u8; 300 << 10], vec![9u8; 3 << 20]);
        let key = submit(&mut journal, &handle, "m1", 1, &[&large, b"small", &larger]);
        finish(&mut journal, key, "m1", Outcome::Ok, &[b"x", &larger]);
        journal.flush().unwrap();
        let record = &records(&handle, &["m1"])[0];
        assert!(record.buffers == [large.clone(), b"small".to_vec(), larger.clone()]);
        assert!(record.result_buffers == [b"x".to_vec(), larger.clone()]);
        assert!(handle.status().bytes >= (6 << 20) + (300 << 10));
        assert_eq!(ask(|a| handle.purge(Purge::All, a)), Ok(1));
        until("the files are gone", || handle.status().bytes < 1 << 20);
        assert!(records(&handle, &["m1"]).is_empty());
        store.close();
    });
}

#[test]
fn a_large_content_comes_back() {
    on_both(|options| {
        let (store, mut journal, handle, _) = store::open(&options).unwrap();
        let mut frames = request("m1", &[b"b"]);
        let text = "x".repeat(1 << 20);
        frames[3] = pack(&json!({ "stdin": text }));
        let submission = store::Submission {
            key: handle.next_key(),
            msg_id: "m1",
            client: b"c",
            queue: store::Queue::Task,
            count: 1,
            frames: &slices(&frames),
        };
        journal.submitted(&submission).unwrap();
        journal.flush().unwrap();
        let record = &records(&handle, &["m1"])[0];
        assert!(record.fields["content"]["stdin"] == text.as_str());
        assert_eq!(record.buffers, [b"b"]);
        let stored = ask(|a| handle.requests(vec!["m1".into()], a)).unwrap();
        assert!(stored[0].frames == frames && stored[0].client == b"c");
        store.close();
    });
}

#[test]
fn queries_find_what_the_peer_would() {
    on_both(|options| {
        let (store, mut journal, handle, _) = store::open(&options).unwrap();
        let ids: Vec<String> = (0..16).map(|i| format!("m{i:02}")).collect();
        for (i, id) in ids.iter().enumerate() {
            let key = submit(&mut journal, &handle, id, 1, &[b"payload"]);
            if i % 2 == 0 {
                finish(
                    &mut journal,
                    key,
                    id,
                    if i % 4 == 0 {
                        Outcome::Ok
                    } else {
                        Outcome::Error
                    },
                    &[b"r"],
                );
            }
        }
        journal.flush().unwrap();
        assert_eq!(history(&handle), ids);
        let names = |query: Value| -> Vec<String> {
            let found = find(&handle, query, Some(&["submitted"])).unwrap();
            found
                .iter()
                .map(|r| r.fields["msg_id"].as_str().unwrap().to_owned())
                .collect()
        };
        assert_eq!(names(json!({"msg_id": {"$ne": ""}})).len(), 16);
        assert_eq!(names(json!({"msg_id": null})).len(), 0);
        assert_eq!(names(json!({"msg_id": {"$in": ids[..4]}})), ids[..4]);
        assert_eq!(names(json!({"msg_id": {"$nin": ids[4..]}})), ids[..4]);
        assert_eq!(names(json!({"completed": null})).len(), 8);
        assert_eq!(
            names(json!({"completed": {"$ne": null}, "engine_uuid": "engine-1"})).len(),
            8
        );
        assert_eq!(names(json!({"engine_uuid": "engine-2"})).len(), 0);
        let tic = "2026-01-02T03:04:05.000006Z";
        assert_eq!(names(json!({"submitted": tic})).len(), 16);
        assert_eq!(names(json!({"submitted": {"$lt": tic}})).len(), 0);
        assert_eq!(names(json!({"submitted": {"$gte": tic}})).len(), 16);
        assert_eq!(
            names(json!({"$or": [{"msg_id": "m03"}, {"msg_id": {"$glob": "m*5"}}]})),
            ["m03", "m05", "m15"]
        );
        assert_eq!(
            names(json!({"content": {"$eq": {"a": 5}}, "msg_id": {"$lt": "m02"}})),
            ["m00", "m01"]
        );

        let found = find(
            &handle,
            json!({"msg_id": "m00"}),
            Some(&["submitted", "completed"]),
        )
        .unwrap();
        assert_eq!(
            found[0].fields.keys().collect::<Vec<_>>(),
            ["msg_id", "submitted", "completed"]
        );
        assert!(found[0].buffers.is_empty());
        let found = find(
            &handle,
            json!({"completed": {"$ne": null}}),
            Some(&["result_buffers"]),
        )
        .unwrap();
        assert!(
            found
                .iter()
                .all(|r| r.result_buffers == [b"r"] && r.buffers.is_empty())
        );
        let bad = find(&handle, json!({}), Some(&["nonsense"])).unwrap_err();
        assert_eq!(
            (&*bad.ename, bad.evalue.as_str()),
            ("KeyError", "Bad record key(s): ['nonsense']")
        );
        store.close();
    });
}

#[test]
fn changes_output_and_purges() {
    on_both(|options| {
        let (store, mut journal, handle, _) = store::open(&options).unwrap();
        let mut recorder = handle.recorder();
        for id in ["m1", "m2", "m3"] {
            let key = submit(&mut journal, &handle, id, 1, &[]);
            if id != "m3" {
                finish(&mut journal, key, id, Outcome::Ok, &[]);
            }
        }
        journal.flush().unwrap();
        recorder.output("m1", Stream::Stdout, "hello ");
        recorder.output("m1", Stream::Stdout, "there");
        recorder.update(
            "m1",
            &fields(json!({"error": {"ename": "E"}, "label": "group_a", "display_data": {"x": 1}})),
        );
        recorder.update(
            "m2",
            &fields(json!({"resubmitted": "m9", "completed": "2027-01-01T00:00:00Z"})),
        );
        // Output may come before what it belongs to.
        recorder.output("early", Stream::Stderr, "first");
        recorder.flush();
        let record = &records(&handle, &["m1"])[0];
        assert_eq!(record.fields["stdout"], "hello there");
        assert_eq!(record.fields["error"], json!({"ename": "E"}));
        assert_eq!(record.fields["label"], "group_a");
        assert_eq!(record.fields["display_data"], json!({"x": 1}));
        assert_eq!(records(&handle, &["m2"])[0].fields["resubmitted"], "m9");
        assert_eq!(
            records(&handle, &["m2"])[0].fields["completed"],
            "2027-01-01T00:00:00.000000Z"
        );
        assert_eq!(outcomes(&handle, &["early"]), [Lookup::Unknown]);
        submit(&mut journal, &handle, "early", 1, &[b"b"]);
        journal.flush().unwrap();
        let early = &records(&handle, &["early"])[0];
        assert_eq!(
            (&early.fields["stderr"], early.buffers.len()),
            (&json!("first"), 1)
        );
        assert_eq!(outcomes(&handle, &["early"]), [Lookup::Pending]);

        assert_eq!(
            ask(|a| handle.purge(Purge::Ids(vec!["m1".into(), "none".into()]), a)),
            Ok(1)
        );
        assert_eq!(
            outcomes(&handle, &["m1", "m2"]),
            [Lookup::Unknown, Lookup::Done(Outcome::Ok)]
        );
        assert_eq!(
            ask(|a| handle.purge(Purge::Engine("engine-2".into()), a)),
            Ok(0)
        );
        assert_eq!(
            ask(|a| handle.purge(Purge::Engine("engine-1".into()), a)),
            Ok(1)
        );
        assert_eq!(ask(|a| handle.purge(Purge::All, a)), Ok(0));
        assert_eq!(
            outcomes(&handle, &["m3"]),
            [Lookup::Pending],
            "unfinished tasks stay"
        );
        store.close();
    });
}

#[test]
fn direct_requests_are_recorded_without_the_journal() {
    on_both(|options| {
        let (store, _journal, handle, _) = store::open(&options).unwrap();
        let mut recorder = handle.recorder();
        let frames = request("d1", &[b"b"]);
        let frames = slices(&frames);
        let submission = store::Submission {
            key: handle.next_key(),
            msg_id: "d1",
            client: b"c",
            queue: store::Queue::Mux,
            count: 1,
            frames: &frames,
        };
        recorder.submitted(&submission);
        let finish = store::Finish {
            task: store::TaskRef::Id("d1"),
            range: 0..1,
            outcome: Outcome::Error,
            exceptions: &[],
            engine: "engine-1",
            done: true,
            late: false,
            frames: &[],
        };
        recorder.finished(&finish);
        recorder.flush();
        // The second result changes nothing.
        recorder.finished(&store::Finish {
            outcome: Outcome::Ok,
            ..finish
        });
        recorder.flush();
        assert_eq!(outcomes(&handle, &["d1"]), [Lookup::Done(Outcome::Error)]);
        let record = &records(&handle, &["d1"])[0];
        assert_eq!(
            (
                &record.fields["queue"],
                record.fields["completed"].is_string()
            ),
            (&json!("mux"), true)
        );
        store.close();
    });
}

/// `[offsets, blob]` of these values.
fn packed(values: &[&[u8]]) -> [Vec<u8>; 2] {
    let mut offsets = 0u32.to_le_bytes().to_vec();
    let mut blob = Vec::new();
    for value in values {
        blob.extend_from_slice(value);
        offsets.extend_from_slice(&(blob.len() as u32).to_le_bytes());
    }
    [offsets, blob]
}

#[test]
fn members_of_arrays_are_expanded_when_asked_for() {
    on_both(|options| {
        let (store, mut journal, handle, _) = store::open(&options).unwrap();
        let arguments = packed(&[b"a0", b"a1", b"a2", b"a3", b"a4", b"a5"]);
        let key = submit(
            &mut journal,
            &handle,
            "arr",
            6,
            &[&arguments[0], &arguments[1]],
        );
        journal.dispatched(key, 0..4, 1, "engine-1");
        let results = packed(&[b"r1", b"r2", b"r3"]);
        finish_range(
            &mut journal,
            key,
            1..4,
            &[(2, Exception::Ended(Outcome::Error)), (3, Exception::Retry)],
            false,
            &[&results[0], &results[1]],
        );
        journal.flush().unwrap();
        let found = records(&handle, &["arr:1", "arr:4", "arr:6", "arr", "arr:x"]);
        assert_eq!(found.len(), 3, "of those that exist");
        assert_eq!(found[0].fields["msg_id"], "arr:1");
        assert_eq!(found[0].fields["header"]["msg_id"], "arr:1");
        assert_eq!(found[0].fields["result_content"], json!({"status": "ok"}));
        assert_eq!(
            (
                found[0].buffers[0].as_slice(),
                found[0].result_buffers[0].as_slice()
            ),
            (&b"a1"[..], &b"r1"[..])
        );
        assert_eq!(
            (&found[1].fields["completed"], found[1].result_buffers.len()),
            (&Value::Null, 0)
        );
        assert_eq!(
            (found[1].buffers[0].as_slice(), found[2].buffers.len()),
            (&b"a4"[..], 2)
        );
        let pending = Lookup::Pending;
        assert_eq!(
            outcomes(
                &handle,
                &["arr:0", "arr:1", "arr:2", "arr:3", "arr:6", "arr"]
            ),
            [
                pending,
                Lookup::Done(Outcome::Ok),
                Lookup::Done(Outcome::Error),
                pending,
                Lookup::Unknown,
                pending
            ]
        );
        // The rest, and the one that was tried again.
        let one = packed(&[b"again"]);
        finish_range(&mut journal, key, 3..4, &[], false, &[&one[0], &one[1]]);
        let rest = packed(&[b"r4", b"r5"]);
        finish_range(
            &mut journal,
            key,
            4..6,
            &[(5, Exception::Ended(Outcome::Aborted))],
            false,
            &[&rest[0], &rest[1]],
        );
        let first = packed(&[b"r0"]);
        finish_range(&mut journal, key, 0..1, &[], true, &[&first[0], &first[1]]);
        journal.flush().unwrap();
        assert_eq!(
            outcomes(&handle, &["arr", "arr:3"]),
            [Lookup::Done(Outcome::Error), Lookup::Done(Outcome::Ok)]
        );
        let found = records(&handle, &["arr", "arr:3"]);
        assert_eq!(
            found[0].fields["result_content"],
            json!({"status": "error", "count": 6, "ok": 4, "error": 1, "aborted": 1})
        );
        assert_eq!(found[1].result_buffers, [b"again"]);
        assert_eq!(history(&handle), ["arr"]);
        let replies = ask(|a| handle.replies(vec!["arr".into()], a)).unwrap();
        assert_eq!(
            replies.iter().map(|r| r.range.clone()).collect::<Vec<_>>(),
            [1..4, 3..4, 4..6, 0..1]
        );
        let mut whole = reply("array", &[&first[0], &first[1]]);
        whole[1] = request("arr", &[])[0].clone();
        assert_eq!(
            replies[3].frames, whole,
            "as it came, answering the request's header"
        );
        let stored = ask(|a| handle.requests(vec!["arr:3".into()], a)).unwrap();
        assert_eq!((stored[0].member, stored[0].count), (Some(3), 6));
        store.close();
    });
}

#[test]
fn nothing_is_kept_without_a_history() {
    let dir = tempfile::tempdir().unwrap();
    let (store, mut journal, handle, _) = store::open(&Options {
        backend: Backend::None,
        ..options(dir.path())
    })
    .unwrap();
    submit(&mut journal, &handle, "m1", 1, &[]);
    journal.flush().unwrap();
    assert_eq!(find(&handle, json!({}), None).unwrap_err().ename, "NoData");
    assert_eq!(ask(|a| handle.purge(Purge::All, a)), Ok(0));
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    store.close();
}

#[test]
fn the_memory_history_is_bounded() {
    let dir = tempfile::tempdir().unwrap();
    let backend = Backend::Memory {
        records: 100,
        bytes: 8 << 20,
    };
    let (store, mut journal, handle, _) = store::open(&Options {
        backend,
        ..options(dir.path())
    })
    .unwrap();
    for i in 0..1000 {
        let id = format!("m{i:04}");
        let key = submit(&mut journal, &handle, &id, 1, &[]);
        finish(&mut journal, key, &id, Outcome::Ok, &[]);
        journal.flush().unwrap();
    }
    until("only the latest are left", || history(&handle).len() == 100);
    assert!(history(&handle).contains(&"m0999".to_owned()));
    let large = vec![1u8; 1 << 20];
    for i in 0..40 {
        let id = format!("l{i:02}");
        let key = submit(&mut journal, &handle, &id, 1, &[]);
        finish(&mut journal, key, &id, Outcome::Ok, &[&large]);
        journal.flush().unwrap();
    }
    until("the bytes are within the bound", || {
        settle(&handle);
        handle.status().bytes <= 8 << 20
    });
    assert!(outcomes(&handle, &["l39"]) == [Lookup::Done(Outcome::Ok)]);
    store.close();
}

#[test]
fn the_database_keeps_to_its_size_and_age() {
    let dir = tempfile::tempdir().unwrap();
    let keep: Keep = "20MB".parse().unwrap();
    let (store, mut journal, handle, _) = store::open(&Options {
        keep,
        ..options(dir.path())
    })
    .unwrap();
    let payload = vec![3u8; 100 << 10];
    for i in 0..1000 {
        let id = format!("m{i:04}");
        let key = submit(&mut journal, &handle, &id, 1, &[]);
        finish(&mut journal, key, &id, Outcome::Ok, &[&payload]);
        journal.flush().unwrap();
    }
    until("the size is within the bound", || {
        settle(&handle);
        handle.status().bytes <= 20 << 20
    });
    assert!(handle.status().pruned >= 700, "{:?}", handle.status());
    let left = history(&handle);
    assert!(
        left.len() > 100 && left.last().unwrap() == "m0999" && !left.contains(&"m0000".to_owned())
    );
    store.close();
    // All of these completed in 2026 by their engine's clock, which is long ago by now or will be.
    let keep: Keep = "1s".parse().unwrap();
    let (store, _journal, handle, _) = store::open(&Options {
        keep,
        ..options(dir.path())
    })
    .unwrap();
    until("what is old is gone", || history(&handle).is_empty());
    store.close();
}

/// Submits a task that waits for others.
fn submit_after(
    journal: &mut store::Journal,
    handle: &store::StoreHandle,
    (msg_id, count): (&str, u64),
    after: &[&str],
) -> u64 {
    let key = handle.next_key();
    let mut frames = request(msg_id, &[]);
    frames[2] = pack(&json!({ "after": after }));
    let submission = store::Submission {
        key,
        msg_id,
        client: b"ident",
        queue: store::Queue::Task,
        count,
        frames: &slices(&frames),
    };
    journal.submitted(&submission).unwrap();
    key
}

#[test]
fn a_submission_is_a_graph() {
    on_both(|options| {
        let (store, mut journal, handle, _) = store::open(&options).unwrap();
        let graph = |msg_id: &str, tasks: u64| {
            let msg_id = msg_id.to_owned();
            ask(|answer| handle.graph(GraphRequest { msg_id, tasks }, answer))
        };
        let told = |graph: &GraphReply| -> Vec<(String, String, u64, Vec<u32>)> {
            let tasks = graph.tasks.iter().cloned();
            tasks
                .map(|task| (task.id, task.state, task.count, task.after))
                .collect()
        };
        let row = |id: &str, state: &str, count: u64, after: &[u32]| {
            (id.to_owned(), state.to_owned(), count, after.to_vec())
        };
        let pair = submit_after(&mut journal, &handle, ("pair", 2), &[]);
        submit_after(&mut journal, &handle, ("many", 5000), &["pair:1"]);
        submit_after(
            &mut journal,
            &handle,
            ("last", 1),
            &["pair", "many:7", "of another"],
        );
        submit_after(&mut journal, &handle, ("later", 1), &["last"]);
        journal.dispatched(pair, 1..2, 1, "engine-1");
        let failed = [(0, Exception::Ended(Outcome::Error))];
        finish_range(&mut journal, pair, 0..1, &failed, false, &[]);
        journal.flush().unwrap();
        let found = graph("pair", 5003).unwrap();
        let all = [
            row("pair:0", "failed", 1, &[]),
            row("pair:1", "running", 1, &[]),
            row("many", "waiting", 5000, &[1]),
            row("last", "waiting", 1, &[0, 1, 2]),
        ];
        assert_eq!(told(&found), all);
        assert!(found.whole);
        assert_eq!(graph("pair", 0).unwrap().tasks.len(), 5);
        assert_eq!(graph("nobody", 0).unwrap_err().ename, "KeyError");
        store.close();
    });
}

#[test]
fn of_a_large_graph_the_part_is_told_that_moves() {
    let dir = tempfile::tempdir().unwrap();
    let (store, mut journal, handle, _) = store::open(&options(dir.path())).unwrap();
    let ids: Vec<String> = (0..6000).map(|n| format!("t{n}")).collect();
    for (n, id) in ids.iter().enumerate() {
        let before = n.checked_sub(1).map(|before| ids[before].as_str());
        let key = submit_after(&mut journal, &handle, (id, 1), before.as_slice());
        if n < 4000 {
            finish(&mut journal, key, id, Outcome::Ok, &[]);
        }
    }
    // So much depends on so much that not all of it can be told.
    let roots: Vec<String> = (0..1000).map(|n| format!("r{n}")).collect();
    let roots: Vec<&str> = roots.iter().map(String::as_str).collect();
    for id in &roots {
        submit_after(&mut journal, &handle, (id, 1), &[]);
    }
    for n in 0..100 {
        submit_after(&mut journal, &handle, (&format!("u{n}"), 1), &roots);
    }
    journal.flush().unwrap();
    let graph = |msg_id: &str| {
        let (msg_id, tasks) = (msg_id.to_owned(), 0);
        ask(|answer| handle.graph(GraphRequest { msg_id, tasks }, answer)).unwrap()
    };
    let found = graph("t0");
    assert!(!found.whole && found.tasks.len() == 2000);
    assert_eq!(
        (&*found.tasks[0].id, &*found.tasks[0].state),
        ("t3500", "ok")
    );
    assert_eq!(
        (&*found.tasks[500].id, &*found.tasks[500].state),
        ("t4000", "waiting")
    );
    assert!(found.tasks[0].after.is_empty() && found.tasks[1].after == [0]);
    submit_after(&mut journal, &handle, ("array", 1800), &[]);
    submit_after(&mut journal, &handle, ("next", 1800), &["array"]);
    submit_after(&mut journal, &handle, ("last", 1), &["next", "array:1799"]);
    journal.flush().unwrap();
    let arrays = graph("array").tasks;
    assert_eq!(arrays.len(), 1802);
    assert_eq!((arrays[1800].count, arrays[1800].after.len()), (1800, 1800));
    assert_eq!(arrays[1801].after, [1799, 1800]);
    // What has not ended is there also where what was before it takes much room.
    for n in 0..600 {
        let id = format!("w{n}");
        let key = submit_after(&mut journal, &handle, (&id, 1), &[]);
        finish(&mut journal, key, &id, Outcome::Ok, &[]);
    }
    submit_after(&mut journal, &handle, ("open", 1800), &[]);
    journal.flush().unwrap();
    assert_eq!(graph("w0").tasks[0].id, "open:0");
    let dense = graph("r0");
    let edges: usize = dense.tasks.iter().map(|task| task.after.len()).sum();
    assert!(!dense.whole && edges == 50_000 && dense.tasks.len() == 1050);
    store.close();
}
