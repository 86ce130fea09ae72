//! `ipctl`: the controller.

use std::process::ExitCode;

use ipbroker_controller::app::{self, AppError};

/// libzmq allocates for every frame, and it uses this one too.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    match app::main(std::env::args_os().skip(1).collect()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(AppError::Clap(error)) => {
            let _ = error.print();
            if error.use_stderr() {
                ExitCode::from(2)
            } else {
                ExitCode::SUCCESS
            }
        }
        Err(error) => {
            eprintln!("ipctl: {error}");
            ExitCode::FAILURE
        }
    }
}
