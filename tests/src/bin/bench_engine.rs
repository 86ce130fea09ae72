//! No-op engines that answer as fast as they can. They register as any engine does, so that `ipctl`, `ipcontroller` and a bare
//! proxy can be measured with the same ones.

use std::{collections::HashSet, path::PathBuf, sync::Arc, thread, time::Duration};

use clap::Parser;
use ipbroker_tests::wire::{DELIMITER, Wire};
use serde_json::json;

#[derive(Parser)]
struct Options {
    /// The connection file of a controller.
    #[arg(long, conflicts_with = "connect")]
    file: Option<PathBuf>,
    /// The endpoint of a bare proxy instead.
    #[arg(long)]
    connect: Option<String>,
    /// How many engines.
    #[arg(short = 'n', long, default_value_t = 2)]
    engines: usize,
    /// How many threads serve them.
    #[arg(long, default_value_t = 2)]
    threads: usize,
    /// Send all buffers back, however large.
    #[arg(long)]
    echo: bool,
    /// Connect to the direct channel too.
    #[arg(long)]
    mux: bool,
}

/// The packed frames of a reply that stay the same but for the id.
struct Template {
    header: Vec<u8>,
    id_at: usize,
    metadata: Vec<u8>,
    content: Vec<u8>,
}

impl Template {
    fn new(wire: &Wire, uuid: &str) -> Template {
        let mut header = wire.header("apply_reply");
        let id = format!("{uuid}_{:010}", 0);
        header["msg_id"] = json!(id);
        let header = wire.packer.pack(&header);
        let id_at = find(&header, id.as_bytes()).expect("the id is in the header") + id.len() - 10;
        let started = "2026-01-02T03:04:05.678901Z";
        let metadata =
            json!({"engine": uuid, "status": "ok", "started": started, "dependencies_met": true});
        Template {
            header,
            id_at,
            metadata: wire.packer.pack(&metadata),
            content: wire.packer.pack(&json!({"status": "ok"})),
        }
    }
}

fn find(haystack: &[u8], needle: &[u8]) -> Option<usize> {
    haystack
        .windows(needle.len())
        .position(|window| window == needle)
}

struct Shell {
    socket: zmq::Socket,
    template: Template,
    count: u64,
}

fn main() {
    let options = Options::parse();
    let context = zmq::Context::new();
    let _ = rustix::process::setrlimit(rustix::process::Resource::Nofile, {
        let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
        rustix::process::Rlimit {
            current: limit.maximum,
            maximum: limit.maximum,
        }
    });
    let wire = match &options.file {
        Some(file) => Wire::load(file).unwrap_or_else(|error| fail(&error)),
        None => Wire::new(json!({"pack": "msgpack", "key": "bench"})),
    };
    let uuids: Vec<String> = (0..options.engines)
        .map(|_| uuid::Uuid::new_v4().to_string())
        .collect();

    let mut shells: Vec<Vec<Shell>> = Vec::new();
    shells.resize_with(options.threads.min(options.engines), Vec::new);
    let lanes = shells.len();
    for (number, uuid) in uuids.iter().enumerate() {
        let socket = context.socket(zmq::ROUTER).expect("a socket");
        socket.set_identity(uuid.as_bytes()).expect("identity");
        socket.set_sndhwm(0).expect("hwm");
        socket.set_rcvhwm(0).expect("hwm");
        socket.set_linger(0).expect("linger");
        match &options.connect {
            Some(endpoint) => socket.connect(endpoint).expect("connect"),
            None => {
                socket.connect(&wire.endpoint("task")).expect("connect");
                if options.mux {
                    socket.connect(&wire.endpoint("mux")).expect("connect");
                }
            }
        }
        shells[number % lanes].push(Shell {
            socket,
            template: Template::new(&wire, uuid),
            count: 0,
        });
    }
    let wire = Arc::new(wire);
    let threads: Vec<_> = shells
        .into_iter()
        .map(|shells| {
            let (wire, echo) = (wire.clone(), options.echo);
            thread::spawn(move || serve(&wire, shells, echo))
        })
        .collect();
    if options.file.is_some() {
        register(&wire, uuids);
    } else {
        println!("ready");
    }
    for thread in threads {
        let _ = thread.join();
    }
}

fn fail(error: &str) -> ! {
    eprintln!("bench_engine: {error}");
    std::process::exit(1)
}

/// Answers tasks for ever.
fn serve(wire: &Wire, mut shells: Vec<Shell>, echo: bool) {
    let mut frames: Vec<zmq::Message> = Vec::new();
    loop {
        if let [shell] = &mut shells[..] {
            answer(wire, shell, &mut frames, echo, 0);
            continue;
        }
        let ready: Vec<bool> = {
            let mut items: Vec<_> = shells
                .iter()
                .map(|shell| shell.socket.as_poll_item(zmq::POLLIN))
                .collect();
            zmq::poll(&mut items, -1).expect("poll");
            items.iter().map(zmq::PollItem::is_readable).collect()
        };
        for (shell, _) in shells.iter_mut().zip(ready).filter(|(_, ready)| *ready) {
            while answer(wire, shell, &mut frames, echo, zmq::DONTWAIT) {}
        }
    }
}

/// Receives one message and sends its reply; false if there was none.
fn answer(
    wire: &Wire,
    shell: &mut Shell,
    frames: &mut Vec<zmq::Message>,
    echo: bool,
    flags: i32,
) -> bool {
    frames.clear();
    loop {
        let mut frame = zmq::Message::new();
        if shell
            .socket
            .recv(&mut frame, if frames.is_empty() { flags } else { 0 })
            .is_err()
        {
            return false;
        }
        let more = frame.get_more();
        frames.push(frame);
        if !more {
            break;
        }
    }
    let Some(at) = frames.iter().position(|frame| &frame[..] == DELIMITER) else {
        return true;
    };
    if frames.len() < at + 6 {
        return true;
    }
    let template = &mut shell.template;
    shell.count += 1;
    decimal(
        &mut template.header[template.id_at..template.id_at + 10],
        shell.count,
    );
    let signature = wire.signer.sign([
        &template.header,
        &frames[at + 2],
        &template.metadata,
        &template.content,
    ]);
    let mut parts = frames.drain(..);
    for _ in 0..=at {
        send(
            &shell.socket,
            parts.next().expect("an identity"),
            zmq::SNDMORE,
        );
    }
    let (_signature, parent) = (parts.next(), parts.next().expect("a header"));
    let buffers: Vec<zmq::Message> = parts
        .skip(3)
        .filter(|buffer| echo || buffer.len() <= 1024)
        .collect();
    send(&shell.socket, signature, zmq::SNDMORE);
    send(&shell.socket, &template.header, zmq::SNDMORE);
    send(&shell.socket, parent, zmq::SNDMORE);
    send(&shell.socket, &template.metadata, zmq::SNDMORE);
    send(
        &shell.socket,
        &template.content,
        if buffers.is_empty() { 0 } else { zmq::SNDMORE },
    );
    let last = buffers.len();
    for (number, buffer) in buffers.into_iter().enumerate() {
        send(
            &shell.socket,
            buffer,
            if number + 1 == last { 0 } else { zmq::SNDMORE },
        );
    }
    true
}

fn send(socket: &zmq::Socket, frame: impl Into<zmq::Message>, flags: i32) {
    if let Err(error) = socket.send(frame, flags) {
        fail(&format!("send: {error}"));
    }
}

fn decimal(into: &mut [u8], mut value: u64) {
    for digit in into.iter_mut().rev() {
        *digit = b'0' + (value % 10) as u8;
        value /= 10;
    }
}

/// Registers all engines, prints `ready` when each has got its id, and answers heartbeats for ever after.
fn register(wire: &Wire, uuids: Vec<String>) {
    // A context holds about a thousand sockets, hence one for each kind.
    let (hearts, desks) = (zmq::Context::new(), zmq::Context::new());
    let connect = |context, kind, identity: &str, channel| {
        wire.connect(context, kind, Some(identity.as_bytes()), channel)
    };
    let ping = wire.connect(&hearts, zmq::SUB, None, "hb_ping");
    ping.set_subscribe(b"").expect("subscribe");
    let pongs: Vec<zmq::Socket> = uuids
        .iter()
        .map(|uuid| connect(&hearts, zmq::DEALER, uuid, "hb_pong"))
        .collect();
    // One after another by the dozen: a controller in Python falls over a thousand requests at once.
    let mut registrations: Vec<Option<zmq::Socket>> = uuids.iter().map(|_| None).collect();
    let mut waiting: HashSet<usize> = (0..uuids.len()).collect();
    let (mut asked, mut told) = (0, false);
    loop {
        while asked < uuids.len() && asked - (uuids.len() - waiting.len()) < 32 {
            let socket = connect(&desks, zmq::DEALER, &uuids[asked], "registration");
            wire.send(
                &socket,
                "registration_request",
                json!({}),
                json!({"uuid": uuids[asked]}),
                &[],
            );
            registrations[asked] = Some(socket);
            asked += 1;
        }
        let open: Vec<usize> = waiting
            .iter()
            .copied()
            .filter(|number| registrations[*number].is_some())
            .collect();
        let ready: Vec<usize> = {
            let mut items = vec![ping.as_poll_item(zmq::POLLIN)];
            items.extend(open.iter().filter_map(|number| {
                Some(registrations[*number].as_ref()?.as_poll_item(zmq::POLLIN))
            }));
            zmq::poll(&mut items, -1).expect("poll");
            open.iter()
                .zip(&items[1..])
                .filter(|(_, item)| item.is_readable())
                .map(|(number, _)| *number)
                .collect()
        };
        for number in ready {
            let socket = registrations[number]
                .as_ref()
                .expect("an open registration");
            match wire.receive(socket, 1_000) {
                Ok(reply) if reply.content["status"] == "ok" => waiting.remove(&number),
                Ok(reply) => fail(&format!("refused: {}", reply.content)),
                Err(error) => fail(&error),
            };
        }
        if waiting.is_empty() && !told {
            told = true;
            println!("ready");
        }
        while let Ok(beat) = ping.recv_bytes(zmq::DONTWAIT) {
            for pong in &pongs {
                let _ = pong.send(&beat[..], zmq::DONTWAIT);
            }
        }
        if told {
            // Only the heart is left to be served.
            registrations.clear();
            loop {
                match ping.recv_bytes(0) {
                    Ok(beat) => pongs.iter().for_each(|pong| {
                        let _ = pong.send(&beat[..], zmq::DONTWAIT);
                    }),
                    Err(_) => thread::sleep(Duration::from_millis(10)),
                }
            }
        }
    }
}
