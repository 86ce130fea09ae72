//! `ipengine`: engines that run shell commands and built-in functions.

mod cli;
mod gateway;

use std::process::ExitCode;

fn main() -> ExitCode {
    ipbroker_engine::init();
    cli::main()
}
