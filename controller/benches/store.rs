//! What the store costs: `cargo bench -p ipbroker-controller --bench store`.
//!
//! Prints, for each history, tasks per second with everything in the history at the end, and CPU time per task of the whole
//! process: making the records, the journal, the database. CPU time is what counts beside a scheduler on the same cores.

use std::time::{Duration, Instant};

use ipbroker_controller::store::{
    self, Backend, Finish, Journal, Options, Outcome, Queue, StoreHandle, Submission, SyncMode,
    TaskRef,
};
use rustix::time::{ClockId, clock_gettime};

const HEADER: &[u8] = b"\x86\xa6msg_id\xd9\x2c0123456789abcdef0123456789abcdef_1234_000000\xa8msg_type\xadapply_request\
\xa8username\xa4user\xa7session\xd9\x200123456789abcdef0123456789abcdef\xa4date\xbb2026-01-02T03:04:05.000006Z\xa7version\xa35.3";
const METADATA: &[u8] =
    b"\x86\xa7targets\x90\xa5after\x90\xa6follow\x90\xa7timeout\xc0\xa7retries\0\xa5label\xc0";
const REPLY: &[u8] =
    b"\x84\xa6engine\xd9\x2401234567-89ab-cdef-0123-456789abcdef\xa6status\xa2ok\xa7started\
\xbb2026-01-02T03:04:05.000006Z\xb0dependencies_met\xc3";
const ENGINE: &str = "01234567-89ab-cdef-0123-456789abcdef";
const BATCH: usize = 32;

fn cpu() -> Duration {
    let t = clock_gettime(ClockId::ProcessCPUTime);
    Duration::new(
        t.tv_sec.unsigned_abs(),
        u32::try_from(t.tv_nsec).unwrap_or(0),
    )
}

fn submit(journal: &mut Journal, key: u64, msg_id: &str, count: u64, frames: &[&[u8]]) {
    let (client, queue) = (&b"0123456789abcdef"[..], Queue::Task);
    let submission = Submission {
        key,
        msg_id,
        client,
        queue,
        count,
        frames,
    };
    journal.submitted(&submission).expect("there is room");
}

fn finish(
    journal: &mut Journal,
    key: u64,
    range: std::ops::Range<u64>,
    done: bool,
    frames: &[&[u8]],
) {
    journal.dispatched(key, range.clone(), 1, ENGINE);
    let (task, outcome) = (TaskRef::Key(key), Outcome::Ok);
    journal.finished(&Finish {
        task,
        range,
        outcome,
        exceptions: &[],
        engine: ENGINE,
        done,
        late: false,
        frames,
    });
}

/// Lets `tasks` pass as the task thread would, `behind` of them in flight: batches of submissions, dispatches and outcomes.
fn singles(journal: &mut Journal, handle: &StoreHandle, tasks: usize, behind: usize) {
    let buffers = [vec![7u8; 150], vec![8u8; 100]];
    let request = [HEADER, b"\x80", METADATA, b"\x80", &buffers[0], &buffers[1]];
    let reply = [HEADER, HEADER, REPLY, b"\x81\xa6status\xa2ok", &buffers[1]];
    let mut keys = std::collections::VecDeque::new();
    for i in 0..tasks + behind {
        if i < tasks {
            let key = handle.next_key();
            keys.push_back(key);
            let msg_id = format!("0123456789abcdef0123456789abcdef_1234_{i}");
            submit(journal, key, &msg_id, 1, &request);
        }
        if i >= behind
            && let Some(key) = keys.pop_front()
        {
            finish(journal, key, 0..1, true, &reply);
        }
        if i % BATCH == 0 {
            journal.want_durable();
            journal.flush().expect("there is room");
            while handle.over_bound() {
                std::thread::sleep(Duration::from_millis(1));
            }
        }
    }
}

/// An array of this many members, answered in pieces of 500.
fn array(journal: &mut Journal, handle: &StoreHandle, members: u64) {
    let key = handle.next_key();
    submit(
        journal,
        key,
        "array",
        members,
        &[HEADER, b"\x80", METADATA, b"\x80"],
    );
    let (offsets, blob) = (vec![1u8; 2004], vec![2u8; 1500]);
    let reply = [HEADER, HEADER, REPLY, b"\x80", &offsets[..], &blob[..]];
    for lo in (0..members).step_by(500) {
        finish(journal, key, lo..lo + 500, lo + 500 == members, &reply);
        journal.flush().expect("there is room");
    }
}

fn measure(
    name: &str,
    tasks: usize,
    change: impl Fn(&mut Options),
    work: impl Fn(&mut Journal, &StoreHandle),
) {
    let dir = tempfile::tempdir_in(".").expect("a directory");
    let mut options = Options::new(dir.path());
    change(&mut options);
    let (store, mut journal, handle, _) = store::open(&options).expect("the store opens");
    let (wall, before) = (Instant::now(), cpu());
    work(&mut journal, &handle);
    journal.flush().expect("there is room");
    let appended = wall.elapsed();
    let (sender, receiver) = std::sync::mpsc::channel();
    handle.settle(move || sender.send(()).unwrap_or(()));
    receiver.recv().expect("the store settles");
    let (wall, cpu) = (wall.elapsed(), cpu() - before);
    let per = |d: Duration| d.as_secs_f64() * 1e6 / tasks as f64;
    println!(
        "{name:<30} {:>9.0} tasks/s {:>7.2} us CPU/task {:>6.2} us/task to append {:>6.0} bytes/task",
        tasks as f64 / wall.as_secs_f64(),
        per(cpu),
        per(appended),
        handle.status().bytes as f64 / tasks as f64,
    );
    drop(journal);
    store.close();
}

fn main() {
    let tasks = std::env::var("TASKS")
        .ok()
        .and_then(|n| n.parse().ok())
        .unwrap_or(300_000);
    let flow = |behind: usize| {
        move |journal: &mut Journal, handle: &StoreHandle| singles(journal, handle, tasks, behind)
    };
    measure(
        "--nodb (driving only)",
        tasks,
        |o| o.backend = Backend::None,
        flow(1000),
    );
    measure("database, 1,000 in flight", tasks, |_| {}, flow(1000));
    measure(
        "database, --sync=none",
        tasks,
        |o| o.sync = SyncMode::None,
        flow(1000),
    );
    measure("database, 100,000 waiting", tasks, |_| {}, flow(100_000));
    measure(
        "database, --keep 50MB",
        tasks,
        |o| o.keep.bytes = Some(50_000_000),
        flow(1000),
    );
    measure(
        "memory",
        tasks,
        |o| o.backend = Backend::memory(),
        flow(1000),
    );
    measure(
        "database, arrays",
        1_000_000,
        |_| {},
        |journal, handle| array(journal, handle, 1_000_000),
    );
}
