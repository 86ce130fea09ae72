//! `ipctl` with a scheduling scheme of one's own: the least recently used engine that holds an even number of tasks.
//! It takes every option of `ipctl`.
//!
//! Run it: `cargo run -p ipbroker-controller --example scheme -- -n 2`

use std::process::ExitCode;

use ipbroker_controller::{app, scheduler::core::own_scheme};

fn main() -> ExitCode {
    // The candidates come least recently used first; the answer is the position of the one to take.
    let scheme = own_scheme("even", |candidates, _random| {
        candidates
            .iter()
            .position(|candidate| candidate.load % 2 == 0)
            .unwrap_or(0)
    });
    match app::with_scheme(std::env::args_os().skip(1).collect(), scheme) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("ipctl: {error}");
            ExitCode::FAILURE
        }
    }
}
