//! What one message costs: parsing, signing, checking, unpacking. `cargo bench -p ipbroker-protocol`.
#![allow(missing_docs)]

use divan::{Bencher, black_box};
use ipbroker_protocol::{
    array::{Packed, View},
    envelope::Envelope,
    message::{HeaderRef, TaskMetadata, TaskRequest},
    session::{Packer, Session},
    zmq::Message,
};

fn main() {
    divan::main();
}

fn request(session: &Session) -> Envelope {
    let metadata = TaskRequest {
        ack: true,
        ..TaskRequest::default()
    };
    let content = serde_json::json!({"name": "noop"});
    let header = session.header("function_request");
    session.message(
        vec![Message::from("client")],
        &header,
        None,
        &metadata,
        &content,
        vec![Message::from("argument")],
    )
}

#[divan::bench]
fn build_and_sign(bencher: Bencher<'_, '_>) {
    let session = Session::new(b"a key of the cluster", Packer::Msgpack);
    bencher.bench(|| request(black_box(&session)));
}

#[divan::bench]
fn parse(bencher: Bencher<'_, '_>) {
    let session = Session::new(b"a key of the cluster", Packer::Msgpack);
    bencher
        .with_inputs(|| request(&session).into_frames())
        .bench_values(Envelope::parse);
}

#[divan::bench]
fn verify(bencher: Bencher<'_, '_>) {
    let session = Session::new(b"a key of the cluster", Packer::Msgpack);
    let envelope = request(&session);
    bencher.bench(|| session.verify(black_box(&envelope)));
}

#[divan::bench(args = ["msgpack", "json"])]
fn unpack_header(bencher: Bencher<'_, '_>, packer: &str) {
    let packer = if packer == "json" {
        Packer::Json
    } else {
        Packer::Msgpack
    };
    let envelope = request(&Session::new(b"", packer));
    bencher.bench(|| {
        HeaderRef::read(packer, black_box(envelope.header())).map(|header| header.msg_id.len())
    });
}

#[divan::bench(args = ["msgpack", "json"])]
fn unpack_metadata(bencher: Bencher<'_, '_>, packer: &str) {
    let packer = if packer == "json" {
        Packer::Json
    } else {
        Packer::Msgpack
    };
    let envelope = request(&Session::new(b"", packer));
    bencher.bench(|| packer.unpack::<TaskMetadata>(black_box(envelope.metadata())));
}

#[divan::bench]
fn slice_1000_of_an_array(bencher: Bencher<'_, '_>) {
    let mut packed = Packed::new();
    for index in 0..100_000u32 {
        packed.push(&index.to_le_bytes()).expect("fits");
    }
    let (offsets, blob) = packed.into_buffers();
    bencher.bench(|| View::trusted(&offsets, &blob).slice(black_box(50_000), black_box(51_000)));
}
