//! `ipctl`: the controller.

use std::process::ExitCode;

use ipbroker_controller::app::{self, AppError};
use ipbroker_protocol::usage;

/// libzmq allocates for every frame, and it uses this one too.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    match app::main(std::env::args_os().skip(1).collect()) {
        Ok(()) => ExitCode::SUCCESS,
        // --help, --version
        Err(AppError::Clap(error)) if !error.use_stderr() => {
            let _ = error.print();
            ExitCode::SUCCESS
        }
        Err(AppError::Clap(error)) => {
            let text = error.render().to_string();
            usage::complain("ipctl", usage::one_line(&text, "ipctl"));
            ExitCode::from(2)
        }
        Err(error) => {
            usage::complain("ipctl", error);
            ExitCode::FAILURE
        }
    }
}
