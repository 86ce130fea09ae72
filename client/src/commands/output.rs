//! `ipclient output`: what a task has written, also while it runs.

use std::io::Write;
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use ipbroker_client::Client;
use ipbroker_client::protocol::array::split_id;
use serde_json::Value;

use super::Outcome;
use crate::cli::ClusterArgs;
use crate::failure::Failure;

/// How often it is looked for more.
pub(super) const PAUSE: Duration = Duration::from_millis(500);

/// Print what a task has written to standard output and standard error, also while it runs
#[derive(Debug, Args)]
#[command(after_help = "\
Of a running task that writes much, the last 64 KiB; of one that has ended, what was kept of it (--capture of `ipclient run`). \
Beyond what --capture keeps (64 KiB unless it says more) nothing is seen, also while it runs. \
What goes into files of the task's own (`out`, `err`, >) is not seen here.

Example:
  ipclient output --follow 5f2c_17")]
pub(crate) struct OutputArgs {
    /// Id of a task, or of a member of an array (ID:INDEX)
    #[arg(value_name = "ID")]
    id: String,
    /// Go on until the task has ended; wait for it to begin
    #[arg(short, long)]
    follow: bool,
}

pub(crate) fn main(args: OutputArgs, cluster: &ClusterArgs) -> Outcome {
    let client = cluster.connect()?;
    let id = &args.id;
    let mut seen = [0; 2];
    let mut known = false;
    loop {
        let more = more(&client, id, &mut seen)?;
        if let Some(more) = &more {
            print(&more.text)?;
            if !(more.running && args.follow) {
                return Ok(ExitCode::SUCCESS);
            }
        } else if !args.follow {
            return Err(nothing(&client, id)?);
        } else if client.explain(id)?.state == "unknown" {
            return Err(match known {
                true => Failure::new(format!("{id} has ended, and nothing is kept of it")),
                false => nothing(&client, id)?,
            });
        }
        known = true;
        std::thread::sleep(PAUSE);
    }
}

/// What a task has written since it was last looked for.
pub(super) struct More {
    /// To standard output and standard error.
    pub(super) text: [String; 2],
    pub(super) running: bool,
    /// It was begun again, elsewhere: this is from its beginning.
    pub(super) anew: bool,
}

/// What a task has written beyond the bytes that were `seen`; `None`: it does not run, and nothing is kept of it.
pub(super) fn more(
    client: &Client,
    id: &str,
    seen: &mut [u64; 2],
) -> Result<Option<More>, Failure> {
    let mut now = client.output(id, *seen)?;
    let anew = now.running
        && now
            .seen
            .iter()
            .zip(*seen)
            .any(|(now, before)| *now < before);
    if anew {
        now = client.output(id, [0; 2])?;
    }
    if now.running {
        *seen = now.seen;
        return Ok(Some(More {
            text: now.text,
            running: true,
            anew,
        }));
    }
    let rest = |at: usize, all: &str| all.get(seen[at] as usize..).unwrap_or_default().to_owned();
    Ok(ended(client, id)?.map(|[out, err]| More {
        text: [rest(0, &out), rest(1, &err)],
        running: false,
        anew: false,
    }))
}

fn print([out, err]: &[String; 2]) -> Result<(), Failure> {
    let (mut stdout, mut stderr) = (std::io::stdout().lock(), std::io::stderr().lock());
    stdout.write_all(out.as_bytes())?;
    stdout.flush()?;
    stderr.write_all(err.as_bytes())?;
    Ok(())
}

/// What is kept of a task that has ended.
fn ended(client: &Client, id: &str) -> Result<Option<[String; 2]>, Failure> {
    let Ok(outcomes) = client.outcomes(&[id.to_owned()], true) else {
        return Ok(None);
    };
    let Some(record) = outcomes.records.get(id) else {
        return Ok(None);
    };
    // A member's record has the metadata of its array.
    if let Some(count) = record.members()
        && split_id(id).1.is_none()
    {
        return Err(Failure::usage(format!(
            "{id} is an array: name one of its members, {id}:0 to {id}:{}",
            count.saturating_sub(1)
        )));
    }
    let content = match record.extra.get("content") {
        Some(Value::Object(content)) if record.result_content.is_empty() => content,
        _ => &record.result_content,
    };
    let text = |key: &str| content.get(key).and_then(Value::as_str).map(str::to_owned);
    Ok(Some(
        ["stdout", "stderr"].map(|key| text(key).unwrap_or_default()),
    ))
}

/// Why nothing can be printed.
fn nothing(client: &Client, id: &str) -> Result<Failure, Failure> {
    let why = client.explain(id)?;
    Ok(match why.state.as_str() {
        "unknown" => Failure::new(format!("no such task: {id}")),
        _ => Failure::new(format!("{id} has written nothing yet: {}", why.text)),
    })
}
