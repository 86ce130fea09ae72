//! A controller of a few lines: it answers at once, and misbehaves when told to.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use ipbroker_client::Client;
use ipbroker_client::protocol::PROTOCOL;
use ipbroker_client::protocol::array::{Packed, View, split_id};
use ipbroker_client::protocol::connection::{ClientConnection, save};
use ipbroker_client::protocol::envelope::Envelope;
use ipbroker_client::protocol::message::{
    Acked, Command, CommandResult, Header, ResumeReply, ResumeRequest, SubmitAck,
};
use ipbroker_client::protocol::session::{Packer, Session};
use ipbroker_client::protocol::socket;
use ipbroker_client::protocol::zmq::{self, Message, PollItem, Socket};
use serde_json::{Value, json};

#[derive(Default)]
pub(crate) struct Seen {
    pub(crate) submissions: usize,
    pub(crate) direct: usize,
    pub(crate) acked: Vec<String>,
}

#[derive(Default)]
struct Shared {
    seen: Mutex<Seen>,
    changed: Condvar,
    stop: AtomicBool,
    deaf: AtomicBool,
    mute: AtomicBool,
    orders: Mutex<Vec<Order>>,
}

enum Order {
    Restart,
    Leave(u32),
    RefuseAll,
}

pub(crate) struct Fake {
    pub(crate) connection: ClientConnection,
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

struct Sockets {
    hub: Socket,
    task: Socket,
    mux: Socket,
    publish: Socket,
}

struct Server {
    sockets: Sockets,
    session: Session,
    shared: Arc<Shared>,
    incarnation: u32,
    /// Ids that this incarnation has accepted.
    known: Vec<String>,
    unanswered: Vec<Envelope>,
}

pub(crate) fn connect(
    connection: &ClientConnection,
    timeout: Duration,
) -> Result<Client, ipbroker_client::Error> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("ipcontroller-client.json");
    save(&path, connection).unwrap();
    Client::builder().file(path).timeout(timeout).connect()
}

impl Fake {
    pub(crate) fn start() -> Self {
        let context = zmq::Context::new();
        let mut connection = ClientConnection {
            task_scheme: "leastload".into(),
            ..ClientConnection::default()
        };
        connection.common.interface = "tcp://127.0.0.1".into();
        connection.common.key = "secret".into();
        connection.common.protocol = PROTOCOL;
        connection.common.pack = "msgpack".into();
        let bind = |kind| {
            let socket = if kind == zmq::ROUTER {
                socket::router(&context)
            } else {
                socket::open(&context, kind)
            }
            .unwrap();
            let port = socket::bind(&socket, "tcp://127.0.0.1", 0).unwrap();
            (socket, port)
        };
        let (hub, registration) = bind(zmq::ROUTER);
        let (task, task_port) = bind(zmq::ROUTER);
        let (mux, mux_port) = bind(zmq::ROUTER);
        let (publish, notification) = bind(zmq::PUB);
        (connection.registration, connection.task, connection.mux) =
            (registration, task_port, mux_port);
        connection.notification = notification;
        let shared = Arc::new(Shared::default());
        let mut server = Server {
            sockets: Sockets {
                hub,
                task,
                mux,
                publish,
            },
            session: Session::new(b"secret", Packer::Msgpack),
            shared: shared.clone(),
            incarnation: 0,
            known: Vec::new(),
            unanswered: Vec::new(),
        };
        let thread = std::thread::spawn(move || server.run());
        Self {
            connection,
            shared,
            thread: Some(thread),
        }
    }

    pub(crate) fn client(&self) -> Client {
        connect(&self.connection, Duration::from_secs(10)).unwrap()
    }

    pub(crate) fn seen<T>(&self, look: impl Fn(&Seen) -> T) -> T {
        look(&self.shared.seen.lock().unwrap())
    }

    pub(crate) fn until(&self, what: &str, is: impl Fn(&Seen) -> bool) {
        let deadline = Instant::now() + Duration::from_secs(20);
        let mut seen = self.shared.seen.lock().unwrap();
        while !is(&seen) {
            assert!(Instant::now() < deadline, "never: {what}");
            seen = self
                .shared
                .changed
                .wait_timeout(seen, Duration::from_millis(100))
                .unwrap()
                .0;
        }
    }

    /// Takes submissions and forgets them, unacknowledged.
    pub(crate) fn deaf(&self, deaf: bool) {
        self.shared.deaf.store(deaf, Ordering::SeqCst);
    }

    /// Acknowledges submissions and does not answer.
    pub(crate) fn mute(&self, mute: bool) {
        self.shared.mute.store(mute, Ordering::SeqCst);
    }

    /// Another incarnation, which knows nothing.
    pub(crate) fn restart(&self) {
        self.shared.orders.lock().unwrap().push(Order::Restart);
    }

    pub(crate) fn engine_leaves(&self, id: u32) {
        self.shared.orders.lock().unwrap().push(Order::Leave(id));
    }

    /// Answers all that is unanswered with an error.
    pub(crate) fn refuse_all(&self) {
        self.shared.orders.lock().unwrap().push(Order::RefuseAll);
    }
}

impl Drop for Fake {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        let _ = self.thread.take().unwrap().join();
    }
}

impl Server {
    fn run(&mut self) {
        let mut frames = Vec::new();
        while !self.shared.stop.load(Ordering::SeqCst) {
            let mut items: Vec<PollItem<'_>> =
                [&self.sockets.hub, &self.sockets.task, &self.sockets.mux]
                    .map(|socket| socket.as_poll_item(zmq::POLLIN))
                    .into();
            zmq::poll(&mut items, 20).unwrap();
            let orders = std::mem::take(&mut *self.shared.orders.lock().unwrap());
            for order in orders {
                self.obey(order);
            }
            while socket::recv(&self.sockets.hub, &mut frames).unwrap() {
                self.hub(std::mem::take(&mut frames));
            }
            while socket::recv(&self.sockets.task, &mut frames).unwrap() {
                let envelope = Envelope::parse(std::mem::take(&mut frames)).unwrap();
                self.session.verify(&envelope).unwrap();
                self.task(envelope);
            }
            while socket::recv(&self.sockets.mux, &mut frames).unwrap() {
                let mut envelope = Envelope::parse(std::mem::take(&mut frames)).unwrap();
                self.see(|seen| seen.direct += 1);
                // Client and engine: the answer goes back through the relay, which swaps them.
                assert_eq!(envelope.identities().len(), 2);
                if !self.shared.mute.load(Ordering::SeqCst) {
                    let client = Message::from(&envelope.identities()[0][..]);
                    let engine = Message::from(&envelope.identities()[1][..]);
                    envelope.set_identities([client, engine]);
                    self.answer(&envelope, true);
                }
            }
        }
    }

    fn see(&self, change: impl FnOnce(&mut Seen)) {
        change(&mut self.shared.seen.lock().unwrap());
        self.shared.changed.notify_all();
    }

    fn obey(&mut self, order: Order) {
        match order {
            Order::Restart => {
                self.incarnation += 1;
                self.known.clear();
            }
            Order::Leave(id) => {
                let uuid = format!("uuid{id}");
                let mut message = self.session.request(
                    "unregistration_notification",
                    &json!({"id": id, "uuid": uuid}),
                );
                message.set_identities([Message::from("unregistration_notification")]);
                socket::send(&self.sockets.publish, message.into_frames()).unwrap();
            }
            Order::RefuseAll => {
                for request in std::mem::take(&mut self.unanswered) {
                    let metadata = json!({"status": "error"});
                    let content = json!({"status": "error", "ename": "Refused", "evalue": "so told", "traceback": []});
                    self.reply(&request, &metadata, &content, Vec::new(), false);
                }
            }
        }
    }

    fn hub(&self, frames: Vec<Message>) {
        let envelope = Envelope::parse(frames).unwrap();
        if self.session.verify(&envelope).is_err() {
            return;
        }
        let header: Header = self.session.unpack(envelope.header()).unwrap();
        let (kind, content) = match header.msg_type.as_str() {
            "connection_request" => (
                "connection_reply",
                json!({"status": "ok", "engines": {"0": "uuid0", "1": "uuid1"}}),
            ),
            "lease_request" => (
                "lease_reply",
                json!({"incarnation": self.incarnation.to_string(), "lease": 15.0}),
            ),
            other => panic!("{other}"),
        };
        socket::send(
            &self.sockets.hub,
            self.session.reply(&envelope, kind, &content).into_frames(),
        )
        .unwrap();
    }

    fn task(&mut self, envelope: Envelope) {
        let header: Header = self.session.unpack(envelope.header()).unwrap();
        match header.msg_type.as_str() {
            "result_ack" => {
                let acked: Acked = self.session.unpack(envelope.content()).unwrap();
                self.see(|seen| seen.acked.extend(acked.msg_ids));
                return;
            }
            "resume_request" => {
                let request: ResumeRequest = self.session.unpack(envelope.content()).unwrap();
                let (pending, unknown) = request
                    .pending
                    .into_iter()
                    .partition(|id| self.known.contains(id));
                let reply = self.session.reply(
                    &envelope,
                    "resume_reply",
                    &ResumeReply { unknown, pending },
                );
                socket::send(&self.sockets.task, reply.into_frames()).unwrap();
                return;
            }
            _ => {}
        }
        assert_eq!(split_id(&header.msg_id).1, None);
        self.see(|seen| seen.submissions += 1);
        if self.shared.deaf.load(Ordering::SeqCst) {
            return;
        }
        self.known.push(header.msg_id.clone());
        let ack = SubmitAck {
            msg_ids: vec![header.msg_id],
            duplicate: Vec::new(),
        };
        let mut ack = self.session.request("submit_ack", &ack);
        ack.set_identities([Message::from(&envelope.identities()[0][..])]);
        socket::send(&self.sockets.task, ack.into_frames()).unwrap();
        if self.shared.mute.load(Ordering::SeqCst) {
            self.unanswered.push(envelope);
        } else {
            self.answer(&envelope, false);
        }
    }

    fn answer(&self, request: &Envelope, direct: bool) {
        let metadata: Value = self.session.unpack(request.metadata()).unwrap();
        let header: Header = self.session.unpack(request.header()).unwrap();
        let content: Value = self.session.unpack(request.content()).unwrap();
        let name = content["name"].as_str().unwrap_or_default().to_owned();
        let ok = json!({"status": "ok", "duration": 0.001, "engine_id": 0});
        let Some(count) = metadata["array"].as_u64() else {
            if header.msg_type == "command_request" {
                let command: Command = self.session.unpack(request.content()).unwrap();
                return self.reply(request, &ok, &ran(&command), Vec::new(), direct);
            }
            let buffers = vec![Message::from(&request.buffers()[0][..])];
            return self.reply(request, &ok, &json!({"status": "ok"}), buffers, direct);
        };
        if name == "refused" {
            let metadata = json!({"status": "error", "range": [0, count]});
            let content = json!({"status": "error", "ename": "Refused", "evalue": "so told", "traceback": []});
            return self.reply(request, &metadata, &content, Vec::new(), direct);
        }
        let third = count / 3;
        for (lo, hi) in [
            (2 * third, count),
            (third, 2 * third),
            (0, third),
            (0, count),
        ] {
            // The last one repeats the others: it must not count again.
            if lo == hi {
                continue;
            }
            let mut metadata = ok.clone();
            metadata["range"] = json!([lo, hi]);
            let mut failed = Vec::new();
            let mut packed = Packed::new();
            if request.buffers().is_empty() {
                metadata["same"] = true.into();
                packed.push(&[0xc0]).unwrap();
            } else {
                let view = View::new(&request.buffers()[0], &request.buffers()[1], count).unwrap();
                for index in lo..hi {
                    let value = view.get(index as usize);
                    if header.msg_type == "command_request" {
                        let command: Command = rmp_serde::from_slice(value).unwrap();
                        packed
                            .push(&rmp_serde::to_vec_named(&ran(&command)).unwrap())
                            .unwrap();
                    } else if name == "odd_fails" && index % 2 == 1 {
                        let error = json!({"status": "error", "ename": "Odd", "evalue": "odd", "traceback": []});
                        packed
                            .push(&rmp_serde::to_vec_named(&error).unwrap())
                            .unwrap();
                        metadata["status"] = "error".into();
                        failed.push((index, "error"));
                    } else {
                        packed.push(value).unwrap();
                    }
                }
            }
            metadata["failed"] = json!(failed);
            let (offsets, blob) = packed.into_buffers();
            let buffers = vec![Message::from(offsets), Message::from(blob)];
            self.reply(
                request,
                &metadata,
                &json!({"status": "ok"}),
                buffers,
                direct,
            );
        }
    }

    fn reply<C: serde::Serialize>(
        &self,
        request: &Envelope,
        metadata: &Value,
        content: &C,
        buffers: Vec<Message>,
        direct: bool,
    ) {
        let header: Header = self.session.unpack(request.header()).unwrap();
        let kind = header.msg_type.replace("_request", "_reply");
        let identities = request
            .identities()
            .iter()
            .map(|frame| Message::from(&frame[..]))
            .collect();
        let reply = self.session.message(
            identities,
            &self.session.header(&kind),
            Some(request.header()),
            metadata,
            content,
            buffers,
        );
        let socket = if direct {
            &self.sockets.mux
        } else {
            &self.sockets.task
        };
        // A client that is gone is none of our business.
        let _ = socket::send(socket, reply.into_frames());
    }
}

/// `exit N` ends with code N.
fn ran(command: &Command) -> CommandResult {
    let code = command
        .cmd
        .strip_prefix("exit ")
        .map(|code| code.parse().unwrap());
    CommandResult {
        status: "ok".into(),
        code,
        ..CommandResult::default()
    }
}
