//! An engine with a function of its own, and a client that calls it:
//! `scratch-engine engine FILE`, `scratch-engine call FILE`, `scratch-engine curve` (says whether libzmq has CURVE).

use std::{env, error::Error, time::Duration};

use ipbroker_client::Client;
use ipbroker_engine::{Engine, protocol::zmq};

fn main() -> Result<(), Box<dyn Error>> {
    ipbroker_engine::init();
    let words: Vec<String> = env::args().skip(1).collect();
    match words.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["engine", file] => Ok(Engine::builder()
            .function("square", |_, x: f64| Ok::<_, String>(x * x))
            .connection_file(file)
            .run()?),
        ["call", file] => {
            let client = Client::builder().file(file).connect()?;
            if client.wait_for_engines(1, Some(Duration::from_secs(30))) == 0 {
                return Err("no engine came".into());
            }
            let squares: Vec<f64> = client.load_balanced_view().map("square", [1.0, 2.0, 3.0])?.get()?;
            (squares == [1.0, 4.0, 9.0]).then_some(()).ok_or_else(|| format!("{squares:?}").into())
        }
        ["curve"] => {
            println!("{}", zmq::has("curve") == Some(true));
            Ok(())
        }
        _ => Err("engine FILE | call FILE | curve".into()),
    }
}
