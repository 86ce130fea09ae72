//! `ipclient`: commands and functions on the engines of a cluster, from the command line.

mod blocks;
mod cli;
mod commands;
mod failure;
mod inputs;
mod joblog;
mod local;
mod locate;
mod locked;
mod output;
mod pieces;
mod resume;
mod runner;
mod source;
mod template;

use std::process::ExitCode;

use cli::one_line;
use commands::Command;
use failure::Failure;
use ipbroker_client::protocol::usage;

fn main() -> ExitCode {
    tracing_subscriber::fmt()
        // Who logs to a connection or terminal that is gone must live on: the default is to panic.
        .log_internal_errors(false)
        .with_env_filter(
            tracing_subscriber::EnvFilter::try_from_env("IPCLIENT_LOG")
                .unwrap_or_else(|_| "warn".into()),
        )
        .with_writer(std::io::stderr)
        .init();
    let arguments: Vec<_> = std::env::args_os().collect();
    let (mut cli, data) = match cli::parse(arguments.clone()) {
        Ok(parsed) => parsed,
        Err(error)
            if error.exit_code() == 0
                || error.kind()
                    == clap::error::ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand =>
        {
            // --help, --version, no argument at all
            let _ = error.print();
            return ExitCode::from(error.exit_code() as u8);
        }
        Err(error) => return fail(&Failure::usage(one_line(&error, &arguments))),
    };
    match (&mut cli.command, data) {
        (Command::Map(args), data) => args.data = data,
        (_, None) => {}
        (_, Some(_)) => {
            return fail(&Failure::usage(
                "`:::` and its like belong to `ipclient map` (see `ipclient map --help`)",
            ));
        }
    }
    match commands::dispatch(cli.command, &cli.cluster) {
        Ok(code) => code,
        Err(failure) => fail(&failure),
    }
}

fn fail(failure: &Failure) -> ExitCode {
    if !failure.message.is_empty() {
        usage::complain("ipclient", failure);
    }
    ExitCode::from(failure.code)
}
