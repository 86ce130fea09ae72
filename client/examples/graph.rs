//! Tasks that depend on others: two halves, and a third that starts when both have ended well, where the first one ran.

use ipbroker_client::{Client, Result, protocol::message::Command};

fn main() -> Result<()> {
    let client = Client::builder().profile("default").connect()?;
    client.wait_for_engines(1, None);
    let view = client.load_balanced_view();
    let command = |cmd: &str| Command {
        cmd: cmd.into(),
        capture: 1024,
        ..Command::default()
    };

    let first = view.command(&command("echo $((20 + 1))"))?;
    let second = view.command(&command("echo $((40 + 2))"))?;
    let ids = [first.msg_ids(), second.msg_ids()].concat();
    let last = view
        .clone()
        .after(ids)
        .follow(first.msg_ids())
        .command(&command("echo both are done"))?;
    let result = last.get()?;
    println!(
        "{:?} on engine {:?}, as the first ran on {:?}",
        result.stdout.unwrap_or_default(),
        result.engine_id,
        first.get()?.engine_id
    );

    // What can never happen fails at once, with the reason.
    let failing = view.command(&command("exit 3"))?;
    let never = view.after(failing.msg_ids()).command(&command("true"))?;
    println!("{}", never.get().unwrap_err());
    Ok(())
}
