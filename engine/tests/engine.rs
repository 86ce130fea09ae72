//! `ipengine` as a process, in front of a controller that is a few sockets of this test.

use std::{
    cell::RefCell,
    collections::HashMap,
    io::Write,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use ipbroker_protocol::{
    PROTOCOL,
    connection::{self, EngineConnection},
    envelope::Envelope,
    message::{EngineDied, Header, Registration, types},
    route,
    session::{Packer, Session},
    socket::{self, routing},
    zmq::{self, Context, Message, Socket},
};
use serde_json::{Value, json};

const PATIENCE: Duration = Duration::from_secs(60);

/// The controller's side of the sockets that these tests need.
struct Controller {
    session: Session,
    hub: Socket,
    task: Socket,
    control: Socket,
    ping: Socket,
    pong: Socket,
    _others: Vec<Socket>,
    _context: Context,
    dir: tempfile::TempDir,
    /// Of all engine processes: each tells the hub of its engine's death, again and again until it is answered.
    reapers: RefCell<Vec<i32>>,
}

/// Answers the reapers and waits for them to end: they would outlive the test.
impl Drop for Controller {
    fn drop(&mut self) {
        if std::thread::panicking() {
            return;
        }
        let reapers = self.reapers.take();
        wait_for("the reapers' end", || {
            let mut frames = Vec::new();
            while socket::recv(&self.hub, &mut frames).unwrap() {
                let envelope = Envelope::parse(std::mem::take(&mut frames)).unwrap();
                let header: Header = self.session.unpack(envelope.header()).unwrap();
                if header.msg_type == types::ENGINE_DIED {
                    let reply = json!({"status": "ok"});
                    let reply = self
                        .session
                        .reply(&envelope, types::ENGINE_DIED_REPLY, &reply);
                    // It may have asked on an earlier connection.
                    let _ = socket::send(&self.hub, reply.into_frames());
                }
            }
            !reapers.iter().any(|pid| running(*pid))
        });
    }
}

impl Controller {
    fn new() -> Self {
        let context = Context::new();
        let mut connection = EngineConnection::default();
        connection.common.protocol = PROTOCOL;
        connection.common.interface = "tcp://127.0.0.1".into();
        connection.common.key = "secret".into();
        connection.common.pack = "msgpack".into();
        connection.common.unpack = "msgpack".into();
        let bound = |name: &[u8]| {
            let socket = socket::router(&context).unwrap();
            socket.set_identity(name).unwrap();
            let port = socket::bind(&socket, "tcp://127.0.0.1", 0).unwrap();
            (socket, port)
        };
        let open = |kind| {
            let socket = socket::open(&context, kind).unwrap();
            let port = socket::bind(&socket, "tcp://127.0.0.1", 0).unwrap();
            (socket, port)
        };
        let (hub, port) = bound(b"hub");
        connection.registration = port;
        let (task, port) = bound(routing::TASK);
        connection.task = port;
        let (control, port) = bound(routing::CONTROL);
        connection.control = port;
        let (mux, port) = bound(routing::MUX);
        connection.mux = port;
        let (leaf, port) = bound(&routing::broadcast(0));
        connection.broadcast = vec![port];
        let (ping, port) = open(zmq::PUB);
        connection.hb_ping = port;
        let (pong, port) = bound(b"pong");
        connection.hb_pong = port;
        let (iopub, port) = open(zmq::SUB);
        connection.iopub = port;
        let dir = tempfile::tempdir().unwrap();
        connection::save(&dir.path().join("engine.json"), &connection).unwrap();
        Self {
            session: Session::new(b"secret", Packer::Msgpack),
            hub,
            task,
            control,
            ping,
            pong,
            _others: vec![mux, leaf, iopub],
            _context: context,
            dir,
            reapers: RefCell::default(),
        }
    }

    /// Starts an engine process and registers its engines; their uuids.
    fn engine(&self, count: usize) -> (Process, Vec<String>) {
        let child = Command::new(env!("CARGO_BIN_EXE_ipengine"))
            .args(["-n", &count.to_string(), "--file"])
            .arg(self.dir.path().join("engine.json"))
            .args(["--log-level", "WARN", "--tags", "a,b"])
            .stdin(Stdio::null())
            .spawn()
            .unwrap();
        let process = Process(child);
        let (identities, header, envelope) = self.recv(&self.hub);
        assert_eq!(header.msg_type, types::REGISTRATION_REQUEST);
        let registration: Registration = self.session.unpack(envelope.content()).unwrap();
        assert_eq!(registration.uuid.as_bytes(), identities[0]);
        assert_eq!(registration.tags, ["a", "b"]);
        assert_eq!(registration.functions, ["echo", "noop", "sleep"]);
        assert!(!registration.host.is_empty());
        let engines = registration.engines.into_iter();
        let uuids: Vec<String> = engines.map(|engine| engine.uuid).collect();
        assert_eq!(uuids.len(), count);
        let ids: HashMap<&String, usize> = uuids.iter().zip(0..).collect();
        let content = json!({"status": "ok", "engines": ids, "hb_period": 60_000});
        let reply = self
            .session
            .reply(&envelope, types::REGISTRATION_REPLY, &content);
        socket::send(&self.hub, reply.into_frames()).unwrap();
        let pid = process.0.id();
        let children = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"));
        self.reapers.borrow_mut().extend(
            children
                .unwrap_or_default()
                .split_whitespace()
                .filter_map(|pid| pid.parse::<i32>().ok()),
        );
        (process, uuids)
    }

    fn recv(&self, socket: &Socket) -> (Vec<Vec<u8>>, Header, Envelope) {
        assert_eq!(
            socket
                .poll(zmq::POLLIN, PATIENCE.as_millis() as i64)
                .unwrap(),
            1,
            "nothing came"
        );
        let mut frames = Vec::new();
        assert!(socket::recv(socket, &mut frames).unwrap());
        route::strip(&mut frames);
        let envelope = Envelope::parse(frames).unwrap();
        self.session.verify(&envelope).unwrap();
        let identities = envelope
            .identities()
            .iter()
            .map(|identity| identity.to_vec())
            .collect();
        let header = self.session.unpack(envelope.header()).unwrap();
        (identities, header, envelope)
    }

    /// Sends a message to an engine, for a client; its id. The engine may still be about to connect.
    fn send(
        &self,
        socket: &Socket,
        uuid: &str,
        msg_type: &str,
        metadata: &Value,
        content: &Value,
        buffers: &[&[u8]],
    ) -> String {
        let header = self.session.header(msg_type);
        let deadline = Instant::now() + PATIENCE;
        loop {
            let identities = [uuid, "client"].map(Message::from).into();
            let buffers = buffers
                .iter()
                .map(|buffer| Message::from(*buffer))
                .collect();
            let message = self
                .session
                .message(identities, &header, None, metadata, content, buffers);
            let mut frames = message.into_frames();
            route::add(&mut frames);
            match socket::send(socket, frames) {
                Ok(()) => return header.msg_id,
                Err(zmq::Error::EHOSTUNREACH) => {
                    assert!(Instant::now() < deadline, "the engine does not connect")
                }
                Err(error) => panic!("{error}"),
            }
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    fn command(&self, uuid: &str, content: &Value) -> String {
        self.send(
            &self.task,
            uuid,
            types::COMMAND_REQUEST,
            &json!({}),
            content,
            &[],
        )
    }

    /// The next reply on the task channel: the id it answers, its metadata and content.
    fn reply(&self) -> (String, Value, Value, Envelope) {
        let (identities, header, envelope) = self.recv(&self.task);
        assert_eq!(identities.last().unwrap(), b"client", "{}", header.msg_type);
        let parent: Header = self.session.unpack(envelope.parent_header()).unwrap();
        let metadata = self.session.unpack(envelope.metadata()).unwrap();
        let content = self.session.unpack(envelope.content()).unwrap();
        (parent.msg_id, metadata, content, envelope)
    }
}

/// A process that does not outlive its test.
struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn wait_for(what: &str, mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !done() {
        assert!(Instant::now() < deadline, "{what} did not happen");
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn running(pid: i32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit(')')
        .next()
        .is_some_and(|rest| !rest.trim().is_empty() && !rest.trim().starts_with('Z'))
}

/// A job that ignores TERM, with a child in a session of its own; the process ids of both.
fn stubborn(controller: &Controller, uuid: &str) -> (String, [i32; 2]) {
    let file = controller.dir.path().join("pids");
    let cmd = "trap '' TERM; setsid bash -c 'trap \"\" TERM; echo $$ >> pids.new; while :; do sleep 0.2; done' & \
               while [ ! -s pids.new ]; do sleep 0.01; done; echo $$ >> pids.new; mv pids.new pids; while :; do sleep 0.2; done";
    let id = controller.command(uuid, &json!({"cmd": cmd, "cd": controller.dir.path()}));
    wait_for("the job", || file.exists());
    let pids: Vec<i32> = std::fs::read_to_string(file)
        .unwrap()
        .lines()
        .map(|line| line.parse().unwrap())
        .collect();
    (id, [pids[0], pids[1]])
}

#[test]
fn tasks_heartbeat_and_control_at_once() {
    let controller = Controller::new();
    let (_process, uuids) = controller.engine(2);
    let sleep = controller.send(
        &controller.task,
        &uuids[0],
        types::FUNCTION_REQUEST,
        &json!({}),
        &json!({"name": "sleep"}),
        &[&rmp_serde::to_vec(&600.0).unwrap()],
    );
    // While that runs, the process's heart beats…
    let mut frames = Vec::new();
    wait_for("the heartbeat", || {
        controller.ping.send("ping-1", 0).unwrap();
        controller.pong.poll(zmq::POLLIN, 100).unwrap() == 1
    });
    socket::recv(&controller.pong, &mut frames).unwrap();
    assert_eq!(&frames[0][..], route::connection(&uuids[0]).as_bytes());
    assert_eq!(&frames[1][..], b"ping-1");
    let clock: f64 = frames[2].as_str().unwrap().parse().unwrap();
    assert!(clock > 1.6e9);
    // … the other engine works…
    let job = controller.command(
        &uuids[1],
        &json!({"cmd": "echo out; echo err >&2; exit 3", "capture": 10}),
    );
    let (id, metadata, content, _) = controller.reply();
    assert_eq!(
        (id, &content["code"], &content["status"]),
        (job, &json!(3), &json!("ok"))
    );
    assert_eq!(
        (&content["stdout"], &content["stderr"]),
        (&json!("out\n"), &json!("err\n"))
    );
    assert_eq!(
        (&metadata["status"], &metadata["engine"]),
        (&json!("error"), &json!(uuids[1]))
    );
    // … and an abort is obeyed.
    controller.send(
        &controller.control,
        &uuids[0],
        types::ABORT_REQUEST,
        &json!({}),
        &json!({"msg_ids": [sleep], "kill": true}),
        &[],
    );
    let (_, header, _) = controller.recv(&controller.control);
    assert_eq!(header.msg_type, types::ABORT_REPLY);
    let (id, metadata, content, _) = controller.reply();
    assert_eq!(
        (id, &metadata["status"], &content["ename"]),
        (sleep, &json!("aborted"), &json!("TaskAborted"))
    );
}

#[test]
fn an_aborted_job_ends_with_all_it_started() {
    let controller = Controller::new();
    let (_process, uuids) = controller.engine(1);
    let (id, pids) = stubborn(&controller, &uuids[0]);
    let begin = Instant::now();
    let content = json!({"msg_ids": [id], "kill": true});
    controller.send(
        &controller.control,
        &uuids[0],
        types::ABORT_REQUEST,
        &json!({}),
        &content,
        &[],
    );
    let (answered, metadata, ..) = controller.reply();
    assert_eq!((answered, &metadata["status"]), (id, &json!("aborted")));
    assert!(begin.elapsed() < Duration::from_secs(20));
    wait_for("the end of its processes", || {
        !pids.iter().any(|pid| running(*pid))
    });
}

#[test]
fn a_killed_engine_takes_its_jobs_along_and_is_reported() {
    let controller = Controller::new();
    let (mut process, uuids) = controller.engine(2);
    let (id, pids) = stubborn(&controller, &uuids[1]);
    let waiting = controller.command(&uuids[1], &json!({"cmd": "true"}));
    process.0.kill().unwrap();
    let (_, header, envelope) = controller.recv(&controller.hub);
    assert_eq!(header.msg_type, types::ENGINE_DIED);
    let died: EngineDied = controller.session.unpack(envelope.content()).unwrap();
    assert_eq!(died.uuids[&uuids[0]], [] as [&str; 0]);
    assert_eq!(died.uuids[&uuids[1]], [id], "{waiting} was never started");
    assert!(
        !pids.iter().any(|pid| running(*pid)),
        "reported when all is over"
    );
}

#[test]
fn a_terminated_engine_gives_back_what_it_has_not_started() {
    let controller = Controller::new();
    let (mut process, uuids) = controller.engine(1);
    let (id, pids) = stubborn(&controller, &uuids[0]);
    let waiting = controller.command(&uuids[0], &json!({"cmd": "true"}));
    let offsets: Vec<u8> = [0u32, 1, 2]
        .iter()
        .flat_map(|offset| offset.to_le_bytes())
        .collect();
    let array = controller.send(
        &controller.task,
        &uuids[0],
        types::FUNCTION_REQUEST,
        &json!({"array": 9, "range": [4, 6]}),
        &json!({"name": "echo"}),
        &[&offsets, b"\x01\x02"],
    );
    // The engine has them when it answers what was sent after them.
    let empty = json!({"tasks": []});
    controller.send(
        &controller.task,
        &uuids[0],
        types::GIVE_BACK_REQUEST,
        &json!({}),
        &empty,
        &[],
    );
    let probe = controller.send(
        &controller.task,
        &uuids[0],
        "kernel_info_request",
        &json!({}),
        &json!({}),
        &[],
    );
    assert_eq!(controller.reply().0, probe);
    let pid = rustix::process::Pid::from_child(&process.0);
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    // It asks first, and waits for the word that nothing more comes.
    let (_, header, _) = controller.recv(&controller.task);
    assert_eq!(header.msg_type, types::LEAVE_REQUEST);
    let word = json!({"uuids": [uuids[0]]});
    controller.send(
        &controller.task,
        &uuids[0],
        types::LEAVE_REPLY,
        &json!({}),
        &word,
        &[],
    );
    let mut given = HashMap::new();
    for _ in 0..2 {
        let (_, header, envelope) = controller.recv(&controller.task);
        assert_eq!(header.msg_type, types::GIVEN_BACK);
        let parent: Header = controller.session.unpack(envelope.parent_header()).unwrap();
        let metadata: Value = controller.session.unpack(envelope.metadata()).unwrap();
        given.insert(
            parent.msg_id,
            (metadata["range"].clone(), envelope.buffers().len()),
        );
    }
    // A whole request is the client's identity, the delimiter, the signature and four maps.
    assert_eq!(given[&waiting], (Value::Null, 7));
    assert_eq!(given[&array], (json!([4, 6]), 0));
    let (answered, _, content, _) = controller.reply();
    assert_eq!((answered, &content["ename"]), (id, &json!("EngineError")));
    let (_, header, envelope) = controller.recv(&controller.task);
    assert_eq!(header.msg_type, types::LEFT_NOTICE);
    let content: Value = controller.session.unpack(envelope.content()).unwrap();
    assert_eq!(content["uuid"], uuids[0]);
    controller.send(
        &controller.task,
        &uuids[0],
        types::LEAVE_REPLY,
        &json!({}),
        &json!({"left": [uuids[0]]}),
        &[],
    );
    let (_, header, _) = controller.recv(&controller.hub);
    assert_eq!(header.msg_type, types::UNREGISTRATION_REQUEST);
    assert!(process.0.wait().unwrap().success());
    assert!(!pids.iter().any(|pid| running(*pid)));
}

#[test]
fn junk_is_survived() {
    let controller = Controller::new();
    let (_process, uuids) = controller.engine(1);
    let first = controller.command(&uuids[0], &json!({"cmd": "true"}));
    assert_eq!(controller.reply().0, first);
    let junk: [&[&[u8]]; 5] = [
        &[b""],
        &[b"client", b"<IDS|MSG>"],
        &[
            b"client",
            b"<IDS|MSG>",
            b"bad",
            b"\x80",
            b"\x80",
            b"\x80",
            b"\x80",
        ],
        &[b"<IDS|MSG>", b"", b"\xc1", b"\xff", b"", b""],
        &[b"a", b"b", b"c", b"d", b"e", b"f", b"g"],
    ];
    for socket in [&controller.task, &controller.control, &controller.hub] {
        for frames in junk {
            let process = route::connection(&uuids[0]).as_bytes();
            for way in [&[process][..], &[process, uuids[0].as_bytes()]] {
                let frames = way.iter().chain(frames).copied();
                socket::send(socket, frames.map(Message::from)).unwrap();
            }
        }
    }
    // Signed, but not what it says.
    for (msg_type, content) in [
        (types::COMMAND_REQUEST, json!({"cmd": 5})),
        (types::FUNCTION_REQUEST, json!([])),
        (
            types::COMMAND_REQUEST,
            json!({"cmd": "true", "env": {"": "x"}}),
        ),
    ] {
        let id = controller.send(
            &controller.task,
            &uuids[0],
            msg_type,
            &json!({}),
            &content,
            &[],
        );
        let (answered, metadata, ..) = controller.reply();
        assert_eq!((answered, &metadata["status"]), (id, &json!("error")));
    }
    let last = controller.command(&uuids[0], &json!({"cmd": "true"}));
    assert_eq!(controller.reply().0, last);
}

#[test]
fn wrong_options_and_files_are_told_in_a_line() {
    let run = |args: &[&str]| {
        let output = Command::new(env!("CARGO_BIN_EXE_ipengine"))
            .args(args)
            .env_remove("IPP_CONNECTION_INFO")
            .stdin(Stdio::null())
            .output()
            .unwrap();
        (
            output.status.success(),
            String::from_utf8_lossy(&output.stderr).into_owned()
                + &String::from_utf8_lossy(&output.stdout),
        )
    };
    let (ok, text) = run(&["--no-such-option"]);
    assert!(!ok && text.contains("--no-such-option"), "{text}");
    let (ok, text) = run(&["--file", "/no/such/file.json", "--wait", "0.1"]);
    assert!(
        !ok && text.contains("/no/such/file.json") && text.contains("ipctl"),
        "{text}"
    );
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(b"{}").unwrap();
    let (ok, text) = run(&["--file", file.path().to_str().unwrap()]);
    assert!(
        !ok && text.contains(file.path().to_str().unwrap()),
        "{text}"
    );
    let (ok, text) = run(&["--help"]);
    assert!(
        ok && text.contains("Examples:") && text.contains("--grace"),
        "{text}"
    );
    let (ok, text) = run(&["--completions", "bash"]);
    assert!(ok && text.contains("_ipengine"), "{text}");
}
