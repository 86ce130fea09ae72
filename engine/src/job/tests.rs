use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use super::*;

fn go(job: &Job) -> Result<Finished, JobError> {
    let running = Arc::new(Running::default());
    let warden = Warden::new(Duration::from_millis(300));
    let (generation, _) = running.begin();
    run(job, &running, generation, &warden, &mut ())
}

fn shell(cmd: &str) -> Job {
    Job {
        cmd: cmd.into(),
        capture: Some(64 * 1024),
        ..Job::default()
    }
}

#[test]
fn codes_are_the_shells() {
    for (cmd, code) in [
        ("true", 0),
        ("false | true", 1),
        ("exit 7", 7),
        ("no-such-program-anywhere", 127),
        ("kill -9 $$", 137),
    ] {
        for capture in [None, Some(100)] {
            let finished = go(&Job {
                capture,
                ..shell(cmd)
            })
            .unwrap();
            assert_eq!(finished.code, code, "{cmd}");
            assert_eq!(finished.stopped, None);
        }
    }
    assert_eq!(go(&shell("kill -9 $$")).unwrap().signal, Some(9));
}

#[test]
fn output_is_capped_and_streamed() {
    let running = Arc::new(Running::default());
    let warden = Warden::new(Duration::from_millis(300));
    let (generation, _) = running.begin();
    #[derive(Default)]
    struct Count {
        streamed: usize,
        group: Option<rustix::process::Pid>,
    }
    impl Observer for Count {
        fn spawned(&mut self, group: rustix::process::Pid) {
            self.group = Some(group);
        }
        fn output(&mut self, stream: Stream, bytes: &[u8]) {
            if stream == Stream::Stdout {
                self.streamed += bytes.len();
            }
        }
    }
    let job = Job {
        capture: Some(1000),
        ..shell("head -c 30000000 /dev/zero; echo oops >&2")
    };
    let mut count = Count::default();
    let finished = run(&job, &running, generation, &warden, &mut count).unwrap();
    assert!(count.group.is_some());
    assert_eq!(
        (
            finished.stdout.bytes.len(),
            finished.stdout.total,
            count.streamed
        ),
        (1000, 30_000_000, 1000)
    );
    assert_eq!(finished.stderr.bytes, b"oops\n");
    assert_eq!(finished.stderr.total, 5);
}

#[test]
fn files_directory_environment_and_input() {
    let dir = tempfile::tempdir().unwrap();
    let job = Job {
        cd: Some(dir.path().to_owned()),
        env: vec![("WHO".into(), Some("me".into())), ("HOME".into(), None)],
        stdin: Input::Bytes(b"typed\n".to_vec()),
        out: Some("out.txt".into()),
        err: Some("err.txt".into()),
        umask: Some(0o077),
        ..shell("cat; echo $WHO ${HOME-unset} $PWD; umask; pwd -P >&2")
    };
    assert_eq!(go(&job).unwrap().code, 0);
    let path = dir.path().display();
    let out = std::fs::read_to_string(dir.path().join("out.txt")).unwrap();
    assert_eq!(out, format!("typed\nme unset {path}\n0077\n"));
    assert!(
        std::fs::read_to_string(dir.path().join("err.txt"))
            .unwrap()
            .ends_with('\n')
    );
    use std::os::unix::fs::PermissionsExt;
    assert_eq!(
        std::fs::metadata(dir.path().join("out.txt"))
            .unwrap()
            .permissions()
            .mode()
            & 0o777,
        0o600
    );
    // One file for both keeps the order of writing.
    let both = Job {
        err: Some("out.txt".into()),
        ..Job {
            cmd: "echo a; echo b >&2; echo c".into(),
            ..job.clone()
        }
    };
    go(&both).unwrap();
    assert_eq!(
        std::fs::read_to_string(dir.path().join("out.txt")).unwrap(),
        "a\nb\nc\n"
    );
    let from_file = Job {
        stdin: Input::File("out.txt".into()),
        out: None,
        ..Job {
            cmd: "tac".into(),
            ..job
        }
    };
    assert_eq!(go(&from_file).unwrap().stdout.bytes, b"c\nb\na\n");
}

#[test]
fn what_cannot_run_says_where() {
    let missing = Job {
        cd: Some("/no/such/dir".into()),
        ..shell("true")
    };
    assert!(
        go(&missing)
            .unwrap_err()
            .to_string()
            .contains("/no/such/dir")
    );
    let unwritable = Job {
        out: Some("/no/such/dir/out".into()),
        ..shell("true")
    };
    assert!(
        go(&unwritable)
            .unwrap_err()
            .to_string()
            .contains("/no/such/dir/out for standard output")
    );
    let file = Job {
        cd: Some("/etc/passwd".into()),
        ..shell("true")
    };
    assert!(matches!(go(&file), Err(JobError::Directory { .. })));
}

#[test]
fn a_command_of_any_length_runs() {
    let long = format!("echo {} | wc -c", "x".repeat(300_000));
    assert_eq!(go(&shell(&long)).unwrap().stdout.bytes, b"300001\n");
}

#[test]
fn a_daemon_does_not_hold_the_job() {
    let start = Instant::now();
    let finished = go(&shell("echo started; sleep 100 & ")).unwrap();
    assert!(start.elapsed() < Duration::from_secs(5));
    assert_eq!(finished.stdout.bytes, b"started\n");
    let group = finished.left.unwrap();
    rustix::process::kill_process_group(group, rustix::process::Signal::KILL).unwrap();
}

fn stopped(
    cmd: &str,
    job: Job,
    stop: impl FnOnce(&Arc<Running>, &Warden, u64) + Send,
) -> (Finished, Duration) {
    let running = Arc::new(Running::default());
    let warden = Warden::new(Duration::from_millis(300));
    let (generation, _) = running.begin();
    let start = Instant::now();
    std::thread::scope(|scope| {
        let ended = scope.spawn(|| {
            let job = Job {
                cmd: cmd.into(),
                ..job
            };
            run(&job, &running, generation, &warden, &mut ()).unwrap()
        });
        stop(&running, &warden, generation);
        let finished = ended.join().unwrap();
        assert!(running.finish().is_some());
        (finished, start.elapsed())
    })
}

#[test]
fn abort_ends_the_group_in_a_second() {
    let dir = tempfile::tempdir().unwrap();
    let ready = dir.path().join("ready");
    let cmd = format!(
        "trap '' TERM; (trap '' TERM; sleep 61.5; true) & touch {}; while true; do sleep 1; done",
        ready.display()
    );
    let (finished, took) = stopped(&cmd, Job::default(), |running, warden, generation| {
        let deadline = Instant::now() + Duration::from_secs(20);
        while !ready.exists() {
            assert!(Instant::now() < deadline);
            std::thread::yield_now();
        }
        assert!(warden.stop(running, generation, Stop::Aborted));
        // A second abort changes nothing; an old one hits nobody.
        assert!(!warden.stop(running, generation, Stop::Aborted));
        assert!(!warden.stop(running, generation + 1, Stop::Aborted));
    });
    assert_eq!(
        (finished.code, finished.stopped),
        (137, Some(Stop::Aborted))
    );
    assert!(took < Duration::from_secs(15), "{took:?}");
}

#[test]
fn limits_stop_and_name_the_cause() {
    let (finished, _) = stopped(
        "sleep 62.5",
        Job {
            time_limit: Some(0.05),
            ..Job::default()
        },
        |_, _, _| {},
    );
    assert_eq!(
        (finished.code, finished.stopped),
        (143, Some(Stop::TimeLimit(0.05)))
    );
    let greedy = "x=$(head -c 60000000 /dev/zero | tr '\\0' x); sleep 63.5";
    let (finished, _) = stopped(
        greedy,
        Job {
            memory_limit: Some(30_000_000),
            ..Job::default()
        },
        |_, _, _| {},
    );
    assert!(
        matches!(finished.stopped, Some(Stop::MemoryLimit { limit: 30_000_000, used }) if used > 30_000_000),
        "{finished:?}"
    );
}
