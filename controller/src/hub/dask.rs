//! `become_dask`: a dask.distributed scheduler as a process of its own, if Python and `distributed` are there.

use std::{
    env,
    ffi::OsStr,
    fs,
    io::{self, BufRead, BufReader},
    os::unix::ffi::OsStrExt,
    path::{Path, PathBuf},
    process::{Child, ChildStdin, Command, Stdio},
};

use serde_json::{Value, json};

use super::{Event, ask::Asker, run::Hub};
use crate::error::NamedError;
use ipbroker_protocol::spawn;

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
        let _ = spawn("dask", move || self.child.wait());
    }
}

/// Pythons that may have `distributed`, the likeliest first: `$IPBROKER_PYTHON` alone if it is set; else that of the program
/// that started us (`ipp.Cluster`, `ipcluster`), that of the virtual environment, and the one on the path.
fn pythons() -> Vec<PathBuf> {
    let given = |name| env::var_os(name).filter(|value| !value.is_empty());
    if let Some(python) = given("IPBROKER_PYTHON") {
        return vec![python.into()];
    }
    let environment = given("VIRTUAL_ENV").map(|dir| Path::new(&dir).join("bin/python3"));
    let mut pythons: Vec<PathBuf> = parent_python().into_iter().chain(environment).collect();
    pythons.push("python3".into());
    pythons.dedup();
    pythons
}

/// The interpreter of our parent process, if it is a Python, by the name it was started with: that is what tells a virtual
/// environment.
fn parent_python() -> Option<PathBuf> {
    let parent = Path::new("/proc").join(rustix::process::getppid()?.as_raw_nonzero().to_string());
    let line = fs::read(parent.join("cmdline")).ok()?;
    let program = OsStr::from_bytes(line.split(|byte| *byte == 0).next()?);
    let name = Path::new(program).file_name()?.to_str()?;
    if !name.starts_with("python") {
        return None;
    }
    // One without a slash is on the path; a relative one is seen from where the parent works.
    Some(if Path::new(program) == Path::new(name) {
        program.into()
    } else {
        fs::read_link(parent.join("cwd")).ok()?.join(program)
    })
}

/// Starts a scheduler with the first Python that can.
fn start(arguments: &Value) -> Result<(Running, Value), NamedError> {
    let mut tried = Vec::new();
    for python in pythons() {
        match start_with(&python, arguments) {
            Ok(Ok(started)) => return Ok(started),
            Ok(Err(error)) => return Err(error),
            Err(why) => tried.push(format!("{}: {why}", python.display())),
        }
    }
    Err(NamedError::new(
        "ImportError",
        format!(
            "no dask scheduler, for want of a Python with `distributed` ({}); `pip install distributed` there, or start \
             ipctl with IPBROKER_PYTHON set to a Python that has it",
            tried.join("; ")
        ),
    ))
}

/// `Err`: another Python may do better.
fn start_with(
    python: &Path,
    arguments: &Value,
) -> Result<Result<(Running, Value), NamedError>, String> {
    let mut child = Command::new(python)
        .args(["-c", SCRIPT, &arguments.to_string()])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .map_err(|error| error.to_string())?;
    let stdin = child.stdin.take();
    let mut line = String::new();
    let mut stdout = child.stdout.take().map(BufReader::new);
    if let Some(stdout) = &mut stdout {
        stdout
            .read_line(&mut line)
            .map_err(|error| error.to_string())?;
    }
    let said: Value = serde_json::from_str(&line).unwrap_or_default();
    if said["address"].is_string() {
        // Whatever it prints later must not block it.
        let _ = spawn("dask output", move || {
            stdout.map(|mut stdout| io::copy(&mut stdout, &mut io::sink()))
        });
        return Ok(Ok((Running { child, stdin }, said)));
    }
    drop(stdin);
    let _ = child.wait();
    let text = |key: &str| said[key].as_str().unwrap_or_default().to_owned();
    match text("ename").as_str() {
        "ImportError" => Err(text("evalue")),
        "" => Err("ended without a word".into()),
        _ => Ok(Err(NamedError::new(text("ename"), text("evalue")))),
    }
}

impl Hub {
    pub(super) fn become_dask(&mut self, asker: &Asker, content: &Value) {
        if let Some((_, said)) = &self.dask.running {
            let reply = dask_reply(said);
            return self.reply(asker, &reply);
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
        let started = spawn("dask", move || {
            let result = start(&arguments);
            post.send(Event::Continue(Box::new(move |hub| {
                hub.dask_started(result)
            })));
        });
        if let Err(error) = started {
            self.dask_started(Err(NamedError::new(
                "RuntimeError",
                format!("no dask scheduler: {error}"),
            )));
        }
    }

    fn dask_started(&mut self, result: Result<(Running, Value), NamedError>) {
        let waiting = std::mem::take(&mut self.dask.waiting);
        match result {
            Ok((running, said)) => {
                tracing::info!(address = %said["address"], "dask scheduler running");
                for asker in &waiting {
                    self.reply(asker, &dask_reply(&said));
                }
                self.dask.running = Some((running, said));
            }
            Err(error) => {
                tracing::warn!("{error}");
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
