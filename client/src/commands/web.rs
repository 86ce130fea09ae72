//! `ipclient web`.

use std::io::Write;
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;

use super::Outcome;
use crate::cli::ClusterArgs;
use crate::failure::Failure;

/// How long a page on this host may take to answer.
const HERE: Duration = Duration::from_secs(2);

/// Print the address of the page of `ipctl --web`; through SSH, lead it here until Ctrl-C
#[derive(Debug, Args)]
#[command(after_help = "\
The page is on the loopback of the controller's host. With --ssh, or where the connection file names an SSH server, a port of
this host leads there as long as this runs.

Example:
  ipclient web
  ipclient --ssh me@head-node web")]
pub(crate) struct WebArgs {}

pub(crate) fn main(_: WebArgs, cluster: &ClusterArgs) -> Outcome {
    let page = cluster.connect()?.web()?;
    #[cfg(feature = "ssh")]
    if let Some((_open, port)) = cluster.configured()?.forward(page.port)? {
        use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

        let mut signals = signal_hook::iterator::Signals::new([SIGHUP, SIGINT, SIGTERM])?;
        writeln!(std::io::stdout(), "{}", page.url(port))?;
        eprintln!("ipclient: the page is there until Ctrl-C");
        signals.forever().next();
        return Ok(ExitCode::SUCCESS);
    }
    let port = page.port;
    let here = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    if TcpStream::connect_timeout(&here, HERE).is_err() {
        return Err(Failure::new(format!(
            "the page is on the controller's host, port {port} of its loopback: `ipclient --ssh HOST web` leads it here"
        )));
    }
    writeln!(std::io::stdout(), "{}", page.url(port))?;
    Ok(ExitCode::SUCCESS)
}
