//! `ipctl`: the controller.

use std::process::ExitCode;

use ipbroker_controller::app::{self, AppError};

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
            eprintln!("ipctl: {}", one_line(&error));
            ExitCode::from(2)
        }
        Err(error) => {
            eprintln!("ipctl: {error}");
            ExitCode::FAILURE
        }
    }
}

/// A usage error in one line: what, where, and what to do.
fn one_line(error: &clap::Error) -> String {
    let text = error.render().to_string();
    let told: Vec<&str> = text
        .lines()
        .map(str::trim)
        .take_while(|line| !line.starts_with("Usage:") && !line.starts_with("For more"))
        .filter(|line| !line.is_empty() && !line.starts_with("tip: to pass"))
        .map(|line| {
            line.trim_start_matches("error: ")
                .trim_start_matches("tip: ")
        })
        .collect();
    format!(
        "{} (see `ipctl --help`)",
        told.join("; ").replace(":; ", ": ")
    )
}
