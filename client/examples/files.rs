//! Files on the hosts of the engines: sent, used by a command, fetched, removed.

use ipbroker_client::{
    Client, Result,
    protocol::message::{Command, FsOp, FsRequest},
};

fn main() -> Result<()> {
    let client = Client::builder().profile("default").connect()?;
    client.wait_for_engines(1, None);
    for host in client.hosts(&["all"])? {
        let path = format!("/tmp/ipbroker-example-{}", client.session_id());
        host.put("one\ntwo\nthree\n".as_bytes(), &path, Some(0o600))?;
        let count = host.run(Command {
            cmd: format!("wc -l < {path}; tr a-z A-Z < {path} > {path}.upper"),
            capture: 1024,
            ..Command::default()
        })?;
        let mut upper = Vec::new();
        host.get(&format!("{path}.upper"), &mut upper)?;
        println!(
            "{}: {} lines, {:?}",
            host.name(),
            count.stdout.unwrap_or_default().trim(),
            String::from_utf8_lossy(&upper)
        );
        for path in [path.clone(), format!("{path}.upper")] {
            host.request(&FsRequest {
                op: FsOp::Rm,
                path,
                ..FsRequest::default()
            })?;
        }
    }
    Ok(())
}
