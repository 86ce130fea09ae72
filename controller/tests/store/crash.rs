//! A process that writes is killed at any moment; what it said it had flushed is there.

use std::io::{BufRead, BufReader, Write};
use std::process::{Command, Stdio};
use std::time::Duration;

use ipbroker_controller::store::{self, Exception, Keep, Options, Outcome};
use rand::RngExt;

use crate::kit::*;

const DIR: &str = "STORE_CRASH_DIR";

/// Every so many rounds leave something that stays open, and so is never pruned: it must not fill the bound.
const OPEN: u64 = 500;

fn crash_options(dir: &std::path::Path) -> Options {
    // Small bounds: rotation, pruning and checkpoints happen all the time.
    Options {
        keep: Keep {
            age: None,
            bytes: Some(20_000_000),
        },
        segment_bytes: 256 << 10,
        ..options(dir)
    }
}

/// The process that gets killed: writes, and prints a line for what it has flushed.
#[test]
#[ignore = "a helper process of `killed_at_any_moment`"]
fn writes_until_killed() {
    let Some(dir) = std::env::var_os(DIR) else {
        panic!("only to be started by killed_at_any_moment")
    };
    let (_store, mut journal, handle, recovered) =
        store::open(&crash_options(dir.as_ref())).unwrap();
    let mut out = std::io::stdout().lock();
    let large = vec![1u8; 400 << 10];
    // An array stays open over all lives; ten members more end with each round.
    let array = recovered.tasks.iter().find(|t| t.msg_id == "array");
    let (array, mut ended) = match array {
        Some(task) => (
            task.key,
            task.ended.last().map_or(0, |(range, _)| range.end),
        ),
        None => (
            submit(&mut journal, &handle, "array", 1_000_000_000, &[]),
            0,
        ),
    };
    for round in handle.next_key().. {
        let (done, open) = (format!("done-{round}"), format!("open-{round}"));
        let key = submit(
            &mut journal,
            &handle,
            &done,
            1,
            &[
                &[2; 2000],
                if round.is_multiple_of(8) { &large } else { b"" },
            ],
        );
        journal.dispatched(key, 0..1, 1, "e");
        finish(&mut journal, key, &done, Outcome::Ok, &[b"r"]);
        if round.is_multiple_of(OPEN) {
            let key = submit(&mut journal, &handle, &open, 1, &[&[3; 5000]]);
            journal.dispatched(key, 0..1, 1, "e");
        }
        let failed = [(ended, Exception::Ended(Outcome::Error))];
        let failed = if round.is_multiple_of(16) {
            &failed[..]
        } else {
            &[]
        };
        finish_range(&mut journal, array, ended..ended + 10, failed, false, &[]);
        ended += 10;
        journal.flush().unwrap();
        writeln!(out, "{round} {ended}").unwrap();
        out.flush().unwrap();
    }
}

#[test]
fn killed_at_any_moment() {
    let dir = tempfile::tempdir().unwrap();
    let mut rng = rand::rng();
    let (mut rounds, mut ended) = (Vec::new(), 0);
    let lives = std::env::var("STORE_CRASHES").map_or(12, |n| n.parse().unwrap());
    let mut checked_pruning = false;
    for life in 0..lives {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args([
                "--ignored",
                "--exact",
                "crash::writes_until_killed",
                "--nocapture",
            ])
            .env(DIR, dir.path())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut out = BufReader::new(child.stdout.take().unwrap());
        let mut line = String::new();
        // It runs once it has said something.
        let mut read = |line: &mut String| {
            line.clear();
            out.read_line(line).unwrap() > 0
        };
        let note = |line: &str, rounds: &mut Vec<u64>, ended: &mut u64| {
            let mut numbers = line.split_whitespace().map(str::parse::<u64>);
            if let (Some(Ok(round)), Some(Ok(now)), true) =
                (numbers.next(), numbers.next(), line.ends_with('\n'))
            {
                rounds.push(round);
                *ended = now;
                true
            } else {
                false
            }
        };
        while read(&mut line) && !note(&line, &mut rounds, &mut ended) {}
        std::thread::sleep(Duration::from_millis(rng.random_range(0..300)));
        child.kill().unwrap();
        child.wait().unwrap();
        while read(&mut line) {
            note(&line, &mut rounds, &mut ended);
        }

        let (store, journal, handle, recovered) = store::open(&crash_options(dir.path())).unwrap();
        let last = *rounds.last().unwrap();
        // The newest are never pruned: the bound has room for more than these.
        let newest: Vec<String> = rounds
            .iter()
            .rev()
            .take(20)
            .map(|r| format!("done-{r}"))
            .collect();
        for record in ask(|a| handle.records(newest.clone(), None, a)).unwrap() {
            assert_eq!(record.fields["result_content"]["status"], "ok");
            assert_eq!(record.buffers[0], [2; 2000]);
            let round: u64 = record.fields["msg_id"].as_str().unwrap()[5..]
                .parse()
                .unwrap();
            assert_eq!(
                record.buffers[1].len(),
                if round.is_multiple_of(8) {
                    400 << 10
                } else {
                    0
                },
                "its file is whole"
            );
        }
        assert_eq!(
            ask(|a| handle.records(newest, None, a)).unwrap().len(),
            rounds.len().min(20),
            "life {life}, up to {last}"
        );
        // What is open is there, however much has been pruned.
        for round in rounds.iter().filter(|r| r.is_multiple_of(OPEN)) {
            let id = format!("open-{round}");
            let task = recovered
                .tasks
                .iter()
                .find(|t| t.msg_id == id)
                .unwrap_or_else(|| panic!("{id} is lost"));
            assert!(task.dispatched.len() == 1 && task.frames[4] == [3; 5000]);
        }
        let array = recovered
            .tasks
            .iter()
            .find(|t| t.msg_id == "array")
            .unwrap();
        let have = array.ended.last().unwrap().0.end;
        assert!(
            have == ended || have == ended + 10,
            "{have} members have ended, {ended} were flushed"
        );
        checked_pruning |= handle.status().pruned > 0 || last > 3000;
        drop(journal);
        store.close();
        let check = rusqlite::Connection::open(dir.path().join("ipbroker.db")).unwrap();
        let sound: String = check
            .query_row("PRAGMA integrity_check", [], |row| row.get(0))
            .unwrap();
        assert_eq!(sound, "ok");
        // Files and their table agree.
        let (files, named) = (
            std::fs::read_dir(dir.path().join("ipbroker.buffers"))
                .unwrap()
                .count(),
            check
                .query_row("SELECT COUNT(*) FROM file", [], |row| row.get::<_, i64>(0))
                .unwrap(),
        );
        assert_eq!(files as i64, named);
        let stray: i64 = check
            .query_row(
                "SELECT COUNT(*) FROM piece WHERE task NOT IN (SELECT key FROM task)",
                [],
                |row| row.get(0),
            )
            .unwrap();
        assert_eq!(stray, 0);
    }
    let check = rusqlite::Connection::open(dir.path().join("ipbroker.db")).unwrap();
    let kept: i64 = check
        .query_row("SELECT COUNT(*) FROM task WHERE status = 'ok'", [], |row| {
            row.get(0)
        })
        .unwrap();
    assert!(
        kept < rounds.len() as i64 || checked_pruning,
        "pruning went on meanwhile"
    );
}
