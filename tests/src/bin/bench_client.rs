//! A client that keeps a number of tasks in flight, checks that each is answered once, and prints how fast that was as JSON.

use std::{
    path::PathBuf,
    time::{Duration, Instant},
};

use clap::Parser;
use ipbroker_tests::wire::{DELIMITER, Wire};
use serde_json::{Value, json};

#[derive(Parser)]
struct Options {
    /// The connection file of a controller.
    #[arg(long, conflicts_with = "connect")]
    file: Option<PathBuf>,
    /// The endpoint of a bare proxy instead.
    #[arg(long)]
    connect: Option<String>,
    /// The channel: task or mux.
    #[arg(long, default_value = "task")]
    channel: String,
    /// How many tasks.
    #[arg(long, default_value_t = 100_000)]
    count: usize,
    /// How many of them may be unanswered.
    #[arg(long, default_value_t = 1000)]
    in_flight: usize,
    /// Tasks before the clock starts.
    #[arg(long, default_value_t = 0)]
    warmup: usize,
    /// The size of each task's buffer.
    #[arg(long, default_value_t = 16)]
    buffer: usize,
    /// Wait until this many engines are registered.
    #[arg(long, default_value_t = 0)]
    engines: usize,
    /// Send everything first, then say `sent` and start the clock with the first reply.
    #[arg(long)]
    backlog: bool,
    /// Give up when nothing comes for this many seconds.
    #[arg(long, default_value_t = 60)]
    limit: u64,
}

fn fail(error: &str) -> ! {
    eprintln!("bench_client: {error}");
    std::process::exit(1)
}

fn main() {
    let options = Options::parse();
    let context = zmq::Context::new();
    let wire = match &options.file {
        Some(file) => Wire::load(file).unwrap_or_else(|error| fail(&error)),
        None => Wire::new(json!({"pack": "msgpack", "key": "bench"})),
    };
    let engines = if options.file.is_some() {
        wait_engines(&context, &wire, options.engines)
    } else {
        Vec::new()
    };
    let socket = context.socket(zmq::DEALER).expect("a socket");
    socket
        .set_identity(wire.session.as_bytes())
        .expect("identity");
    socket.set_sndhwm(0).expect("hwm");
    socket.set_rcvhwm(0).expect("hwm");
    socket.set_linger(0).expect("linger");
    let endpoint = options
        .connect
        .clone()
        .unwrap_or_else(|| wire.endpoint(&options.channel));
    socket
        .connect(&endpoint)
        .unwrap_or_else(|error| fail(&format!("{endpoint}: {error}")));
    if options.channel == "mux" && options.connect.is_none() && engines.is_empty() {
        fail("no engine to send to");
    }
    let targets = if options.channel == "mux" {
        engines
    } else {
        Vec::new()
    };

    let mut load = Load::new(&wire, socket, targets, &options);
    if options.warmup > 0 {
        load.run(options.warmup, options.in_flight, false);
    }
    if options.count == 0 {
        return;
    }
    let figures = load.run(options.count, options.in_flight, options.backlog);
    println!("{figures}");
}

/// The uuids of the engines, once there are enough of them.
fn wait_engines(context: &zmq::Context, wire: &Wire, wanted: usize) -> Vec<String> {
    let socket = wire.connect(context, zmq::DEALER, None, "registration");
    let start = Instant::now();
    loop {
        wire.send(&socket, "connection_request", json!({}), json!({}), &[]);
        match wire.receive(&socket, 10_000) {
            Ok(reply) => {
                let engines = reply.content["engines"]
                    .as_object()
                    .cloned()
                    .unwrap_or_default();
                if engines.len() >= wanted {
                    return engines
                        .values()
                        .filter_map(|uuid| Some(uuid.as_str()?.to_owned()))
                        .collect();
                }
            }
            Err(error) => fail(&error),
        }
        if start.elapsed() > Duration::from_secs(120) {
            fail(&format!("{wanted} engines did not register within 120 s"));
        }
        std::thread::sleep(Duration::from_millis(2));
    }
}

struct Load<'a> {
    wire: &'a Wire,
    socket: zmq::Socket,
    targets: Vec<String>,
    header: Vec<u8>,
    id_at: usize,
    parent: Vec<u8>,
    metadata: Vec<u8>,
    content: Vec<u8>,
    buffer: usize,
    /// Large buffers, allocated before the clock starts.
    ready: Vec<zmq::Message>,
    next: usize,
    limit_ms: i64,
}

impl<'a> Load<'a> {
    fn new(
        wire: &'a Wire,
        socket: zmq::Socket,
        targets: Vec<String>,
        options: &Options,
    ) -> Load<'a> {
        let mut header = wire.header("apply_request");
        let id = format!("{}_{:010}", wire.session, 0);
        header["msg_id"] = json!(id);
        let header = wire.packer.pack(&header);
        let at = header
            .windows(id.len())
            .position(|window| window == id.as_bytes())
            .expect("the id is in the header");
        let metadata =
            json!({"targets": [], "after": [], "follow": [], "timeout": null, "retries": 0});
        let large = if options.buffer > 1 << 16 {
            options.count + options.warmup
        } else {
            0
        };
        Load {
            wire,
            socket,
            targets,
            id_at: at + id.len() - 10,
            header,
            parent: wire.packer.pack(&json!({})),
            metadata: wire.packer.pack(&metadata),
            content: wire.packer.pack(&json!({})),
            buffer: options.buffer,
            ready: (0..large)
                .map(|_| zmq::Message::from(vec![7u8; options.buffer]))
                .collect(),
            next: 0,
            limit_ms: options.limit as i64 * 1000,
        }
    }

    fn send_one(&mut self) {
        let number = self.next;
        self.next += 1;
        decimal(&mut self.header[self.id_at..self.id_at + 10], number);
        let signature =
            self.wire
                .signer
                .sign([&self.header, &self.parent, &self.metadata, &self.content]);
        let buffer = match self.ready.pop() {
            Some(buffer) => buffer,
            None => zmq::Message::from(&[7u8; 1024][..self.buffer.min(1024)]),
        };
        let send = |frame: zmq::Message, flags| {
            if let Err(error) = self.socket.send(frame, flags) {
                fail(&format!("send: {error}"));
            }
        };
        if !self.targets.is_empty() {
            send(
                self.targets[number % self.targets.len()].as_str().into(),
                zmq::SNDMORE,
            );
        }
        for frame in [
            DELIMITER,
            &signature,
            &self.header,
            &self.parent,
            &self.metadata,
            &self.content,
        ] {
            send(frame.into(), zmq::SNDMORE);
        }
        send(buffer, 0);
    }

    /// Sends `count` tasks with at most `window` unanswered, and returns the figures.
    fn run(&mut self, count: usize, window: usize, backlog: bool) -> Value {
        let first = self.next;
        let mut sent_at: Vec<Instant> = Vec::with_capacity(count);
        let mut taken: Vec<u32> = vec![u32::MAX; count];
        let (mut done, mut failed, mut bytes) = (0, 0, 0);
        let mut sending = Duration::ZERO;
        let mut start = Instant::now();
        let mut first_reply = None;
        while done < count {
            while sent_at.len() < count && sent_at.len() - done < window {
                sent_at.push(Instant::now());
                self.send_one();
            }
            if backlog && sending.is_zero() {
                sending = start.elapsed();
                println!("sent");
            }
            match self.socket.poll(zmq::POLLIN, self.limit_ms) {
                Ok(0) => fail(&format!(
                    "{done} of {count} replies, then nothing for {} s",
                    self.limit_ms / 1000
                )),
                Ok(_) => {}
                Err(error) => fail(&format!("poll: {error}")),
            }
            while let Some(reply) = self.receive() {
                bytes += reply.bytes;
                let Some(number) = reply
                    .number
                    .checked_sub(first)
                    .filter(|number| *number < sent_at.len())
                else {
                    fail(&format!("a reply to {}, which was not asked", reply.number));
                };
                if taken[number] != u32::MAX {
                    fail(&format!("a second reply to {number}"));
                }
                if first_reply.is_none() {
                    first_reply = Some(Instant::now());
                    if backlog {
                        start = Instant::now();
                    }
                }
                taken[number] = sent_at[number]
                    .elapsed()
                    .as_nanos()
                    .min(u128::from(u32::MAX - 1)) as u32;
                done += 1;
                failed += usize::from(!reply.ok);
            }
        }
        let took = start.elapsed().as_secs_f64();
        taken.sort_unstable();
        let at = |part: f64| f64::from(taken[((count - 1) as f64 * part) as usize]) / 1e3;
        json!({
            "tasks": count, "seconds": took, "rate": count as f64 / took, "failed": failed, "reply_bytes": bytes,
            "p50_us": at(0.5), "p99_us": at(0.99), "max_us": at(1.0), "sending_s": sending.as_secs_f64(),
            "request_bytes_per_s": (count * self.buffer) as f64 / took,
        })
    }

    /// One reply, if there is one.
    fn receive(&self) -> Option<Reply> {
        let mut reply = Reply {
            number: usize::MAX,
            ok: false,
            bytes: 0,
        };
        let mut frame = zmq::Message::new();
        let (mut at, mut delimiter) = (0, None);
        loop {
            self.socket
                .recv(&mut frame, if at == 0 { zmq::DONTWAIT } else { 0 })
                .ok()?;
            match delimiter {
                None if &frame[..] == DELIMITER => delimiter = Some(at),
                None => {}
                Some(delimiter) => match at - delimiter {
                    // The parent header is our header: the number stands where we wrote it, unless somebody packed it anew.
                    3 => reply.number = self.number(&frame),
                    5 => reply.ok = frame.windows(2).any(|window| window == b"ok"),
                    6.. => reply.bytes += frame.len(),
                    _ => {}
                },
            }
            at += 1;
            if !frame.get_more() {
                return Some(reply);
            }
        }
    }

    fn number(&self, parent: &[u8]) -> usize {
        let session = self.wire.session.as_bytes();
        let prefix = self.id_at - session.len() - 1;
        let at = match parent.get(prefix..prefix + session.len()) {
            Some(found) if found == session => self.id_at,
            _ => match parent.windows(session.len() + 1).position(|found| {
                found[..session.len()] == *session && found[session.len()] == b'_'
            }) {
                Some(found) => found + session.len() + 1,
                None => return usize::MAX,
            },
        };
        parent[at..at + 10]
            .iter()
            .fold(0, |number, digit| number * 10 + usize::from(digit - b'0'))
    }
}

struct Reply {
    number: usize,
    ok: bool,
    bytes: usize,
}

fn decimal(into: &mut [u8], mut value: usize) {
    for digit in into.iter_mut().rev() {
        *digit = b'0' + (value % 10) as u8;
        value /= 10;
    }
}
