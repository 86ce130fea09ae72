//! Disks that are full, databases that cannot be written.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use ipbroker_controller::store::{self, Lookup, Options, Outcome};

use crate::kit::*;

/// A small file system of its own, if we may mount one.
struct SmallDisk(PathBuf);

impl SmallDisk {
    fn new(megabytes: u32) -> Option<SmallDisk> {
        let dir =
            std::env::temp_dir().join(format!("ipbroker-small-{}-{megabytes}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", &format!("size={megabytes}m"), "none"])
            .arg(&dir)
            .output()
            .is_ok_and(|out| out.status.success());
        if !mounted {
            fs::remove_dir(&dir).unwrap();
            eprintln!("no small disk: mounting is not allowed here");
            return None;
        }
        Some(SmallDisk(dir))
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        drop(Command::new("umount").arg("-l").arg(&self.0).status());
        drop(fs::remove_dir(&self.0));
    }
}

#[test]
fn a_full_disk_loses_nothing_that_was_flushed() {
    let Some(disk) = SmallDisk::new(48) else {
        return;
    };
    let small = Options {
        segment_bytes: 1 << 20,
        ..options(&disk.0)
    };
    let (store, mut journal, handle, _) = store::open(&small).unwrap();
    let running = submit(&mut journal, &handle, "running", 1, &[]);
    journal.dispatched(running, 0..1, 1, "engine-1");
    journal.flush().unwrap();
    settle(&handle);
    // Somebody else fills the disk.
    let ballast = disk.0.join("ballast");
    let filled = fs::write(&ballast, vec![0u8; 48 << 20]);
    assert!(filled.is_err(), "the disk is full");

    let mut accepted = Vec::new();
    let payload = vec![1u8; 50 << 10];
    for i in 0..2000 {
        if handle.over_bound() {
            break;
        }
        let id = format!("m{i}");
        submit(&mut journal, &handle, &id, 1, &[&payload]);
        journal
            .flush()
            .expect("the reserve takes the first that does not fit");
        accepted.push(id);
    }
    assert!(handle.over_bound(), "no more tasks are taken");
    assert!(
        handle
            .status()
            .faults
            .iter()
            .any(|f| f.contains("No space")),
        "{:?}",
        handle.status()
    );
    // What runs goes on.
    finish(&mut journal, running, "running", Outcome::Ok, &[]);
    journal.flush().expect("there is a reserve for outcomes");
    // A large buffer has no room, its task is refused.
    let large = vec![1u8; 30 << 20];
    let frames = request("large", &[&large]);
    let submission = store::Submission {
        key: handle.next_key(),
        msg_id: "large",
        client: b"",
        queue: store::Queue::Task,
        count: 1,
        frames: &slices(&frames),
    };
    assert!(journal.submitted(&submission).is_err());

    fs::remove_file(&ballast).unwrap();
    until("tasks are taken again", || {
        journal.flush().unwrap();
        !handle.over_bound()
    });
    until("the history is written again", || {
        handle.status().faults.is_empty() && handle.status().lag == 0
    });
    submit(&mut journal, &handle, "after", 1, &[]);
    journal.flush().unwrap();
    settle(&handle);
    drop(journal);
    store.close();

    let (store, _journal, handle, recovered) = store::open(&small).unwrap();
    accepted.push("after".into());
    let found: Vec<&String> = recovered.tasks.iter().map(|t| &t.msg_id).collect();
    assert_eq!(found, accepted.iter().collect::<Vec<_>>());
    assert_eq!(outcomes(&handle, &["running"]), [Lookup::Done(Outcome::Ok)]);
    store.close();
}

#[test]
fn a_batch_that_cannot_be_written_is_written_later() {
    let Some(disk) = SmallDisk::new(128) else {
        return;
    };
    let (store, mut journal, handle, _) = store::open(&options(&disk.0)).unwrap();
    let ballast = disk.0.join("ballast");
    assert!(fs::write(&ballast, vec![0u8; 128 << 20]).is_err());
    // More than the reserve.
    let ids: Vec<String> = (0..200).map(|i| format!("m{i}")).collect();
    for id in &ids {
        submit(&mut journal, &handle, id, 1, &[&vec![4u8; 100 << 10]]);
    }
    let error = journal.flush().unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::StorageFull);
    assert!(journal.flush().is_err(), "still");
    assert!(handle.over_bound());
    fs::remove_file(&ballast).unwrap();
    journal.flush().expect("the same batch fits now");
    drop(journal);
    store.close();
    let (store, _journal, _handle, recovered) = store::open(&options(&disk.0)).unwrap();
    let found: Vec<&String> = recovered.tasks.iter().map(|t| &t.msg_id).collect();
    assert_eq!(found, ids.iter().collect::<Vec<_>>(), "all of it, and once");
    store.close();
}

#[test]
fn a_database_that_somebody_locks_only_lags() {
    let dir = tempfile::tempdir().unwrap();
    let (store, mut journal, handle, _) = store::open(&options(dir.path())).unwrap();
    settle(&handle);
    let other = rusqlite::Connection::open(dir.path().join("ipbroker.db")).unwrap();
    other.busy_timeout(PATIENCE).unwrap();
    other.execute_batch("BEGIN IMMEDIATE").unwrap();
    for i in 0..100 {
        let key = submit(&mut journal, &handle, &format!("m{i}"), 1, &[]);
        finish(&mut journal, key, &format!("m{i}"), Outcome::Ok, &[]);
        journal.flush().unwrap();
    }
    assert!(handle.status().lag > 0);
    other.execute_batch("ROLLBACK").unwrap();
    until("it catches up", || handle.status().lag == 0);
    assert_eq!(history(&handle).len(), 100);
    store.close();
}

#[test]
fn the_database_can_be_read_meanwhile() {
    let dir = tempfile::tempdir().unwrap();
    let (store, mut journal, handle, _) = store::open(&options(dir.path())).unwrap();
    let other = rusqlite::Connection::open(dir.path().join("ipbroker.db")).unwrap();
    // A reader in the middle of its transaction.
    other
        .execute_batch("BEGIN; SELECT COUNT(*) FROM tasks")
        .unwrap();
    for i in 0..2000 {
        let key = submit(&mut journal, &handle, &format!("m{i}"), 1, &[&[0; 3000]]);
        finish(&mut journal, key, &format!("m{i}"), Outcome::Ok, &[]);
        journal.flush().unwrap();
    }
    settle(&handle);
    assert_eq!(handle.status().lag, 0);
    other.execute_batch("COMMIT").unwrap();
    let (count, when): (i64, String) = other
        .query_row(
            "SELECT COUNT(*), MIN(submitted) FROM tasks WHERE status = 'ok'",
            [],
            |r| Ok((r.get(0)?, r.get(1)?)),
        )
        .unwrap();
    assert_eq!((count, when.len()), (2000, 19));
    store.close();
}
