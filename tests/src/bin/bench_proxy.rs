//! The limit: libzmq's own proxy, a ROUTER for clients and a DEALER for engines, with nothing between them.

use clap::Parser;
// Brings libzmq in.
use ipbroker_tests as _;

#[derive(Parser)]
struct Options {
    /// Where clients connect.
    #[arg(long, default_value = "tcp://127.0.0.1:*")]
    frontend: String,
    /// Where engines connect.
    #[arg(long, default_value = "tcp://127.0.0.1:*")]
    backend: String,
}

fn main() -> zmq::Result<()> {
    let options = Options::parse();
    let context = zmq::Context::new();
    let bound = |kind, endpoint: &str| {
        let socket = context.socket(kind)?;
        socket.set_sndhwm(0)?;
        socket.set_rcvhwm(0)?;
        socket.bind(endpoint)?;
        let endpoint = socket.get_last_endpoint()?.expect("an endpoint is text");
        Ok::<_, zmq::Error>((socket, endpoint))
    };
    let (frontend, clients) = bound(zmq::ROUTER, &options.frontend)?;
    let (backend, engines) = bound(zmq::DEALER, &options.backend)?;
    println!("{clients} {engines}");
    zmq::proxy(&frontend, &backend)
}
