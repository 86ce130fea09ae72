//! `become_dask`: a dask.distributed scheduler as a process of its own, if Python and `distributed` are there.

use std::{
    env,
    io::{BufRead, BufReader, Read},
    process::{Child, ChildStdin, Command, Stdio},
    thread,
};

use serde_json::{Value, json};

use super::{
    Event,
    ask::{Asker, HubError},
    run::Hub,
};

/// Runs until its standard input is closed; its first line says where it listens, or why it does not.
const SCRIPT: &str = r#"
import asyncio, json, sys

def say(**content):
    print(json.dumps(content), flush=True)

try:
    from distributed import Scheduler
except ImportError as error:
    say(ename="ImportError", evalue=str(error))
    sys.exit(1)

async def main():
    try:
        scheduler = Scheduler(**json.loads(sys.argv[1]))
        await scheduler.start()
    except Exception as error:
        say(ename=type(error).__name__, evalue=str(error))
        return
    say(ip=scheduler.ip, address=scheduler.address, port=scheduler.port)
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
    await scheduler.close()

asyncio.run(main())
"#;

/// The scheduler, if there is one.
#[derive(Debug, Default)]
pub(super) struct Dask {
    running: Option<(Running, Value)>,
    /// Asked for while it is starting.
    waiting: Vec<Asker>,
}

#[derive(Debug)]
struct Running {
    child: Child,
    /// Closing it ends the scheduler.
    stdin: Option<ChildStdin>,
}

impl Dask {
    /// Ends the scheduler.
    pub(super) fn stop(&mut self) {
        if let Some((running, _)) = self.running.take() {
            running.end();
        }
    }
}

impl Running {
    fn end(mut self) {
        drop(self.stdin.take());
        // Reaped in the background: the hub does not wait.
        let _ = thread::Builder::new()
            .name("dask".into())
            .spawn(move || self.child.wait());
    }
}

/// The Python to use: `$IPBROKER_PYTHON`, or the one on the path.
fn python() -> String {
    env::var("IPBROKER_PYTHON")
        .ok()
        .filter(|python| !python.is_empty())
        .unwrap_or_else(|| "python3".into())
}

fn start(arguments: &Value) -> Result<(Running, Value), HubError> {
    let python = python();
    let no_python = |error| {
        HubError::new(
            "RuntimeError",
            format!(
                "no dask scheduler: ipctl cannot start {python} ({error}); set IPBROKER_PYTHON to a Python that has `distributed`"
            ),
        )
    };
    let mut child = Command::new(&python)
        .args(["-c", SCRIPT, &arguments.to_string()])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .map_err(no_python)?;
    let stdin = child.stdin.take();
    let mut line = String::new();
    let mut stdout = child.stdout.take().map(BufReader::new);
    if let Some(stdout) = &mut stdout {
        stdout.read_line(&mut line).map_err(no_python)?;
    }
    let said: Value = serde_json::from_str(&line).unwrap_or_default();
    if said["address"].is_string() {
        // Whatever it prints later must not block it.
        let _ = thread::Builder::new()
            .name("dask output".into())
            .spawn(move || {
                let mut sink = Vec::new();
                stdout.map(|mut stdout| stdout.read_to_end(&mut sink))
            });
        return Ok((Running { child, stdin }, said));
    }
    drop(stdin);
    let _ = child.wait();
    let text = |key: &str| said[key].as_str().unwrap_or_default().to_owned();
    Err(match text("ename").as_str() {
        "ImportError" => HubError::new(
            "ImportError",
            format!(
                "no dask scheduler: {python} has no `distributed` ({}); `pip install distributed` there, or set \
                 IPBROKER_PYTHON to a Python that has it, and start ipctl again",
                text("evalue")
            ),
        ),
        "" => HubError::new(
            "RuntimeError",
            format!("no dask scheduler: {python} ended without a word"),
        ),
        ename => HubError::new(ename, text("evalue")),
    })
}

impl Hub {
    pub(super) fn become_dask(&mut self, asker: &Asker, content: &Value) {
        if let Some((_, said)) = &self.dask.running {
            let reply = dask_reply(said);
            return self.reply(asker, &reply, Vec::new());
        }
        self.dask.waiting.push(asker.clone());
        if self.dask.waiting.len() > 1 {
            return;
        }
        let arguments = match &content["scheduler_args"] {
            Value::Null => json!({}),
            arguments => arguments.clone(),
        };
        let post = self.post.clone();
        // Python takes a second to start: another thread waits for its first line.
        let started = thread::Builder::new().name("dask".into()).spawn(move || {
            let result = start(&arguments);
            post.send(Event::Continue(Box::new(move |hub| {
                hub.dask_started(result)
            })));
        });
        if let Err(error) = started {
            self.dask_started(Err(HubError::new(
                "RuntimeError",
                format!("no dask scheduler: {error}"),
            )));
        }
    }

    fn dask_started(&mut self, result: Result<(Running, Value), HubError>) {
        let waiting = std::mem::take(&mut self.dask.waiting);
        match result {
            Ok((running, said)) => {
                tracing::info!(address = %said["address"], "dask scheduler running");
                for asker in &waiting {
                    self.reply(asker, &dask_reply(&said), Vec::new());
                }
                self.dask.running = Some((running, said));
            }
            Err(error) => {
                tracing::warn!("{}: {}", error.ename, error.evalue);
                for asker in &waiting {
                    self.reply_error(asker, &error);
                }
            }
        }
    }
}

fn dask_reply(said: &Value) -> Value {
    json!({"status": "ok", "ip": said["ip"], "address": said["address"], "port": said["port"]})
}
