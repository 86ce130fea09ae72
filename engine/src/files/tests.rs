use ipbroker_protocol::{
    message::{FsOp, FsReply, FsRequest, Staged},
    zmq::Message,
};

use super::{ops::Served, *};

const HELLO: &str = "2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824";

fn place_for_files() -> (tempfile::TempDir, FileHost) {
    let dir = tempfile::tempdir().unwrap();
    let cache = Cache::in_dir(dir.path().join("cache"), 1 << 20);
    let work_dir = dir.path().join("work");
    std::fs::create_dir(&work_dir).unwrap();
    (
        dir,
        FileHost {
            host: "box".into(),
            work_dir,
            cache,
        },
    )
}

fn ask(host: &FileHost, op: FsOp, path: &str, bytes: Option<&[u8]>, more: FsRequest) -> Served {
    host.serve(
        &FsRequest {
            op,
            path: path.into(),
            ..more
        },
        bytes,
    )
}

fn fine(
    host: &FileHost,
    op: FsOp,
    path: &str,
    bytes: Option<&[u8]>,
    more: FsRequest,
) -> (FsReply, Vec<u8>) {
    let (reply, buffer) = ask(host, op, path, bytes, more);
    assert_eq!(
        (reply.status.as_str(), &reply.evalue),
        ("ok", &None),
        "{op:?} {path}"
    );
    (reply, buffer.unwrap_or_default())
}

#[test]
fn a_session_of_operations() {
    let (_dir, host) = place_for_files();
    let none = FsRequest::default;
    fine(
        &host,
        FsOp::Mkdir,
        "a/b",
        None,
        FsRequest {
            recursive: true,
            ..none()
        },
    );
    fine(
        &host,
        FsOp::Put,
        "a/b/f",
        Some(b"hello"),
        FsRequest {
            mode: Some(0o640),
            ..none()
        },
    );
    fine(
        &host,
        FsOp::Put,
        "a/b/f",
        Some(b" world"),
        FsRequest {
            offset: 5,
            ..none()
        },
    );
    fine(
        &host,
        FsOp::Put,
        "a/b/f",
        Some(b"!"),
        FsRequest {
            append: true,
            ..none()
        },
    );
    let (reply, bytes) = fine(&host, FsOp::Get, "a/b/f", None, none());
    assert_eq!(
        (bytes.as_slice(), reply.eof, reply.stat.unwrap().mode),
        (&b"hello world!"[..], true, 0o640)
    );
    let (reply, bytes) = fine(
        &host,
        FsOp::Get,
        "a/b/f",
        None,
        FsRequest {
            offset: 6,
            length: Some(3),
            ..none()
        },
    );
    assert_eq!((bytes.as_slice(), reply.eof), (&b"wor"[..], false));
    fine(
        &host,
        FsOp::Ln,
        "a/link",
        None,
        FsRequest {
            to: "b/f".into(),
            ..none()
        },
    );
    fine(&host, FsOp::Mkfifo, "a/pipe", None, none());
    let (reply, _) = fine(&host, FsOp::Ls, "a", None, none());
    let listed: Vec<(&str, &str)> = reply
        .entries
        .iter()
        .map(|e| (e.name.as_str(), e.kind.as_str()))
        .collect();
    assert_eq!(listed, [("b", "dir"), ("link", "link"), ("pipe", "fifo")]);
    assert_eq!(reply.entries[1].to.as_deref(), Some("b/f"));
    assert_eq!(
        fine(&host, FsOp::Stat, "a/link", None, none())
            .0
            .stat
            .unwrap()
            .size,
        12
    );
    fine(
        &host,
        FsOp::Chmod,
        "a/b/f",
        None,
        FsRequest {
            mode: Some(0o600),
            ..none()
        },
    );
    assert_eq!(
        fine(&host, FsOp::Exists, "a/b/f", None, none())
            .0
            .stat
            .unwrap()
            .mode,
        0o600
    );
    assert_eq!(
        fine(&host, FsOp::Exists, "a/zz/f", None, none()).0.exists,
        Some(false)
    );
    fine(&host, FsOp::Rm, "a/link", None, none());
    assert_eq!(ask(&host, FsOp::Rmdir, "a", None, none()).0.status, "error");
    fine(
        &host,
        FsOp::Rm,
        "a",
        None,
        FsRequest {
            recursive: true,
            ..none()
        },
    );
    let new = fine(&host, FsOp::Newdir, "", None, none()).0.path.unwrap();
    fine(&host, FsOp::Rmdir, &new, None, none());
    assert_eq!(
        fine(&host, FsOp::Pwd, "", None, none()).0.path.unwrap(),
        host.work_dir.to_string_lossy()
    );
}

#[test]
fn errors_name_host_and_path() {
    let (_dir, host) = place_for_files();
    let (reply, _) = ask(&host, FsOp::Get, "no/such", None, FsRequest::default());
    assert_eq!(reply.ename.as_deref(), Some("FileNotFoundError"));
    let text = reply.evalue.unwrap();
    assert!(
        text.starts_with("box: cannot read ") && text.contains("no/such"),
        "{text}"
    );
    assert_eq!(
        ask(&host, FsOp::Get, ".", None, FsRequest::default())
            .0
            .ename
            .as_deref(),
        Some("IsADirectoryError")
    );
    assert_eq!(
        ask(&host, FsOp::Put, "x", None, FsRequest::default())
            .0
            .ename
            .as_deref(),
        Some("ValueError")
    );
}

#[test]
fn the_cache_takes_parts_checks_and_forgets() {
    let (dir, host) = place_for_files();
    let store = |bytes: &[u8], offset, eof, sha256: &str| {
        let more = FsRequest {
            offset,
            eof,
            sha256: vec![sha256.into()],
            ..FsRequest::default()
        };
        ask(&host, FsOp::Cache, "", Some(bytes), more).0
    };
    let have = || {
        fine(
            &host,
            FsOp::Have,
            "",
            None,
            FsRequest {
                sha256: vec![HELLO.into(), "0".repeat(64)],
                ..FsRequest::default()
            },
        )
        .0
        .have
    };
    assert!(have().is_empty());
    assert_eq!(store(b"hel", 0, false, HELLO).status, "ok");
    assert!(have().is_empty());
    assert_eq!(store(b"lo", 3, true, HELLO).status, "ok");
    assert_eq!(have(), [HELLO]);
    assert_eq!(
        store(b"other", 0, true, &"1".repeat(64)).ename.as_deref(),
        Some("ValueError")
    );
    assert_eq!(store(b"x", 0, true, "../../etc").status, "error");
    let small = Cache::in_dir(dir.path().join("cache"), 3);
    let other = "a".repeat(64);
    small.store(HELLO, 0, b"hello", true).unwrap();
    assert!(
        small.has(HELLO) && !small.has(&other),
        "what was just stored stays"
    );
}

#[test]
fn inputs_and_outputs_of_a_job() {
    let (dir, host) = place_for_files();
    let scratch = private_dir("ipbroker-job-", dir.path()).unwrap();
    let path = scratch.path().to_owned();
    let staged = |path: &str, buffer| Staged {
        path: path.into(),
        sha256: HELLO.into(),
        mode: 0o755,
        buffer,
    };
    let missing = place(&host.cache, &path, &[staged("in", None)], &[]).unwrap_err();
    assert_eq!(missing.ename(), "MissingInput");
    place(
        &host.cache,
        &path,
        &[staged("d/in", Some(0))],
        &[Message::from("hello")],
    )
    .unwrap();
    place(&host.cache, &path, &[staged("again", None)], &[]).unwrap();
    let (buffers, failed) = collect(&path, &["again".into(), "none".into(), "d/in".into()]);
    let texts: Vec<&[u8]> = buffers.iter().map(|buffer| &buffer[..]).collect();
    assert_eq!(texts, [&b"hello"[..], b"", b"hello"]);
    assert!(failed.unwrap().to_string().contains("none"));
    drop(scratch);
    assert!(!path.exists());
}
