use std::{
    path::Path,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use super::*;

fn wait_for(what: &str, mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !done() {
        assert!(Instant::now() < deadline, "{what} did not happen");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// A job that ignores TERM and has a child in a session of its own, and one without its environment; returns after all run.
fn stubborn(id: &str, dir: &Path) -> Child {
    let script = "trap '' TERM; setsid bash -c 'trap \"\" TERM; touch child; while :; do sleep 0.1; done' & \
                  env -i setsid -f bash -c 'echo $$ > pid; mv pid hidden; exec sleep 600'; \
                  while :; do sleep 0.1; done";
    let mut command = Command::new("/bin/bash");
    command
        .args(["-c", &format!("ulimit -Sm {}; {script}", number(id, 7))])
        .current_dir(dir)
        .env(MARK, mark(id))
        .process_group(0)
        .stdin(Stdio::null());
    let child = command.spawn().unwrap();
    wait_for("the job's children", || {
        dir.join("child").exists() && dir.join("hidden").exists()
    });
    child
}

fn hidden_runs(dir: &Path) -> bool {
    let pid = std::fs::read_to_string(dir.join("hidden")).unwrap();
    crate::job::stat(pid.trim().parse().unwrap()).is_some_and(|stat| !stat.zombie)
}

fn marked_count(id: &str) -> usize {
    crate::job::pids()
        .filter(|pid| {
            std::fs::read(format!("/proc/{pid}/environ"))
                .is_ok_and(|text| String::from_utf8_lossy(&text).contains(id))
        })
        .filter(|pid| crate::job::stat(*pid).is_some_and(|stat| !stat.zombie))
        .count()
}

#[test]
fn sweep_ends_group_and_strays() {
    let dir = tempfile::tempdir().unwrap();
    let id = uuid::Uuid::new_v4().to_string();
    let mut job = stubborn(&id, dir.path());
    assert!(marked_count(&id) >= 2);
    let other = marked_count("no-such-mark");
    // Reaps as init would, or the group would stay as a zombie.
    let pid = job.id() as i32;
    let waiter = std::thread::spawn(move || job.wait());
    sweep(&[pid], &id, Duration::from_millis(100));
    waiter.join().unwrap().unwrap();
    assert_eq!((marked_count(&id), other), (0, 0));
    assert!(!hidden_runs(dir.path()));
}

#[test]
fn the_shell_reaper_kills_when_its_pipe_ends() {
    let dir = tempfile::tempdir().unwrap();
    let id = uuid::Uuid::new_v4().to_string();
    let shared = Shared::new(1).unwrap();
    let reaper = Reaper::start(&shared, &id, vec!["u".into()], Duration::from_millis(100)).unwrap();
    let mut job = stubborn(&id, dir.path());
    let waiter = std::thread::spawn(move || job.wait());
    assert!(marked_count(&id) >= 2);
    reaper.finish();
    waiter.join().unwrap().unwrap();
    wait_for("the end of the job", || {
        marked_count(&id) == 0 && !hidden_runs(dir.path())
    });
}
