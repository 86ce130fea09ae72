//! Jupyter kernels: each logical engine may own one, and speaks for it. The kernel is a process of its own that is spoken to
//! over `ipc://` sockets in a private directory; what the cluster says to an engine goes on to the kernel, one request that
//! runs code at a time, and what the kernel says comes back under the engine's name. A kernel that dies takes only the
//! request that it ran with it: the next one finds another kernel.
//!
//! The worker of the engine has the shell channel and waits for replies; [`side`] has everything that comes and goes beside.

mod side;
mod spec;
mod wire;

use std::{
    fmt, io,
    os::{
        fd::OwnedFd,
        unix::{net::UnixStream, process::CommandExt},
    },
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::Arc,
    thread::JoinHandle,
    time::{Duration, Instant},
};

use crossbeam_channel::Sender;
use ipbroker_protocol::{
    envelope::Envelope,
    session::{Packer, Session},
    socket, spawn,
    wake::Waker,
    zmq::{self, Context, Socket},
};
use parking_lot::Mutex;
use rustix::process::{Pid, PidfdFlags, Signal, kill_process, kill_process_group, pidfd_open};
use serde_json::json;
use tempfile::TempDir;

use crate::{
    executor::{Interpreter, Status, ended},
    files::private_dir,
    job::{Ask, Interrupt, stat},
    logical_engine::LogicalEngine,
    process::Process,
    reaper::{self, MARK},
};
use spec::Spec;

/// How long a kernel may take until it answers for the first time.
const START: Duration = Duration::from_secs(60);

/// How long a kernel may take to end when it is told to.
const END: Duration = Duration::from_secs(1);

/// How long after its end a request's reply may come.
const SILENCE: Duration = Duration::from_secs(1);

/// A kernel that ends sooner than this, and was asked for nothing, has ended at its start.
const STEADY: Duration = Duration::from_secs(30);

/// How many in a row may do so, and how long the third waits for its start; each further one waits twice as long.
const STILLBORN: (u32, Duration) = (6, Duration::from_millis(250));

/// How often a wait looks whether the engine leaves.
const LOOK: Duration = Duration::from_millis(100);

/// The kernels of an engine process.
pub(crate) struct Kernels {
    /// How often one that died is replaced before its engine leaves.
    pub(crate) restarts: u32,
    /// The profile whose configuration and startup files are theirs.
    pub(crate) profile: Option<PathBuf>,
    /// Further arguments of theirs.
    pub(crate) options: Vec<String>,
    spec: Spec,
    /// The interpreter that was named for them.
    python: PathBuf,
    context: Context,
}

impl fmt::Debug for Kernels {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.spec.fmt(f)
    }
}

/// The request that a kernel has last said to be done with.
type Ended = Mutex<String>;

/// Passes signals for what kernels run on to them: those that do not ask this process to end.
///
/// # Errors
/// The system's.
pub(crate) fn pass_signals(engines: Vec<Arc<LogicalEngine>>) -> io::Result<()> {
    use signal_hook::{consts, iterator::Signals};
    let mut signals = vec![consts::SIGUSR1, consts::SIGUSR2];
    if !io::IsTerminal::is_terminal(&io::stdin()) {
        signals.push(consts::SIGINT);
    }
    let mut signals = Signals::new(signals)?;
    let pass = move || {
        for signal in signals.forever().filter_map(Signal::from_named_raw) {
            for line in engines.iter().filter_map(|engine| engine.line()) {
                line.signal(signal);
            }
        }
    };
    spawn("signals", pass)?;
    Ok(())
}

/// Whether an engine has a kernel.
#[derive(Debug, Default)]
pub(crate) enum Slot {
    /// It has none yet.
    #[default]
    Empty,
    /// It has.
    Lives(Box<Kernel>),
    /// None could be started, for this reason.
    Broken(String),
}

impl Slot {
    /// The way to the Python calls of the kernel, for whoever asks first; why there is none, if that is known.
    pub(crate) fn interpreter(&mut self) -> Result<Interpreter, Option<String>> {
        match self {
            Self::Lives(kernel) => {
                kernel.asked = true;
                kernel.calls.take().ok_or(None)
            }
            Self::Broken(why) => Err(Some(why.clone())),
            Self::Empty => Err(None),
        }
    }
}

/// A running kernel, as its engine's worker has it.
pub(crate) struct Kernel {
    child: Child,
    pid: Pid,
    pidfd: OwnedFd,
    shell: Socket,
    session: Arc<Session>,
    /// How many its engine has had, with this one, and how many before it, without a gap, have ended at their start.
    count: u32,
    stillborn: u32,
    born: Instant,
    /// It was asked for something.
    asked: bool,
    /// How it ended, for its calls.
    status: Status,
    /// Where it runs Python calls too: the way to them, until somebody takes it.
    calls: Option<Interpreter>,
    /// What it said that it has done with.
    ended: Arc<Ended>,
    /// It speaks ipyparallel's dialect.
    pub(crate) parallel: bool,
    by_message: bool,
    line: Line,
    side: Option<JoinHandle<()>>,
    dir: TempDir,
}

impl fmt::Debug for Kernel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Kernel")
            .field("pid", &self.pid)
            .finish_non_exhaustive()
    }
}

/// What is to be said to a kernel beside the requests that run code.
#[derive(Debug)]
pub(crate) enum Word {
    /// A message for its control channel.
    Control(Envelope),
    /// A message for its shell channel: completion, comms, …
    Shell(Envelope),
    /// Interrupt what you run.
    Interrupt,
    /// End.
    Shutdown,
    /// The kernel is gone: so may you.
    Gone,
}

/// The way to a kernel's [`side`].
#[derive(Debug, Clone)]
pub(crate) struct Line {
    words: Sender<Word>,
    waker: Waker,
    pid: Pid,
}

impl Line {
    /// Says something; it comes back if the kernel is gone.
    pub(crate) fn say(&self, word: Word) -> Result<(), Word> {
        self.words.send(word).map_err(|refused| refused.0)?;
        self.waker.wake();
        Ok(())
    }

    /// Ends the kernel without asking it: another one follows.
    pub(crate) fn kill(&self) {
        let _ = kill_process_group(self.pid, Signal::KILL);
    }

    /// Sends a signal to the kernel, not to what it has started.
    pub(crate) fn signal(&self, signal: Signal) -> bool {
        kill_process(self.pid, signal).is_ok()
    }
}

/// Why there is no kernel.
struct Failed {
    why: String,
    /// The next one would fail like this one.
    for_good: bool,
}

impl From<String> for Failed {
    fn from(why: String) -> Self {
        Self {
            why,
            for_good: false,
        }
    }
}

/// How a request ended.
#[derive(Debug)]
pub(crate) enum Answer {
    /// With a reply, packed as the cluster packs.
    Reply(wire::Reply),
    /// With the kernel, and how that ended.
    Gone(String),
}

impl Kernels {
    /// Kernels of this kind.
    ///
    /// # Errors
    /// In words, when there is no such kernelspec.
    pub(crate) fn find(name: &str, python: &Path) -> Result<Self, String> {
        Ok(Self {
            restarts: u32::MAX,
            profile: None,
            options: Vec::new(),
            spec: Spec::find(name, python)?,
            python: python.to_owned(),
            context: Context::new(),
        })
    }

    /// Whether they are ipyparallel's own, in this interpreter.
    pub(crate) fn run_in(&self, python: &Path) -> bool {
        self.spec.parallel && self.python == python
    }

    /// Sees to it that an engine has a running kernel, if one can be had. An engine whose first kernel cannot be started, or
    /// whose kernel died once too often, is to leave.
    pub(crate) fn ensure(&self, process: &Arc<Process>, engine: &Arc<LogicalEngine>) {
        let mut slot = engine.kernel.lock();
        if engine.closing() || engine.given_up().is_some() {
            return;
        }
        let (mut count, mut stillborn) = (1, 0);
        if let Slot::Lives(kernel) = &mut *slot {
            // One whose first thread has ended is not to be waited for yet, and yet will never answer.
            let dying = stat(kernel.pid.as_raw_nonzero().get()).is_none_or(|stat| stat.zombie);
            if !dying && !kernel.wait(Duration::ZERO) {
                return;
            }
            let cause = kernel.end();
            *engine.line.lock() = None;
            let at_start = !kernel.asked && kernel.born.elapsed() < STEADY;
            stillborn = if at_start { kernel.stillborn + 1 } else { 0 };
            let hopeless = stillborn == STILLBORN.0;
            let what = match hopeless {
                true => {
                    format!("its kernel was ended {stillborn} times just after its start, at last")
                }
                false => "its kernel was ended".to_owned(),
            };
            if kernel.count > self.restarts || hopeless {
                *slot = Slot::Broken(format!("{}: {what} by {cause}", process.files.host));
                let why = format!("engine {}: {what} by {cause}", engine.id());
                return engine.give_up(why, hopeless);
            }
            tracing::warn!(
                engine = engine.id(),
                "its kernel was ended by {cause}: starting another"
            );
            count = kernel.count + 1;
        }
        // The old one's directory and thread go first.
        *slot = Slot::Empty;
        let until = Instant::now() + pause(stillborn);
        while !engine.closing() && Instant::now() < until {
            std::thread::sleep(LOOK);
        }
        *slot = match self.start(process, engine, (count, stillborn)) {
            Ok(kernel) => Slot::Lives(Box::new(kernel)),
            Err(Failed { why, for_good }) => {
                let why = format!(
                    "{}: cannot start the kernel {}: {why}",
                    process.files.host, self.spec.name
                );
                if count == 1 || stillborn > 0 {
                    // It is said when the engine has left.
                    engine.give_up(why.clone(), for_good);
                } else if !engine.closing() {
                    tracing::error!(engine = engine.id(), "{why}");
                }
                Slot::Broken(why)
            }
        };
    }

    /// Starts a kernel and waits until it answers.
    fn start(
        &self,
        process: &Arc<Process>,
        engine: &Arc<LogicalEngine>,
        (count, stillborn): (u32, u32),
    ) -> Result<Kernel, Failed> {
        let Spec {
            parallel,
            by_message,
            ..
        } = self.spec;
        let system = |error: io::Error| error.to_string();
        // Of ipyparallel's kernels the cluster's packer is understood, others know JSON.
        let packer = if parallel {
            engine.session().packer
        } else {
            Packer::Json
        };
        let key = uuid::Uuid::new_v4().to_string();
        let session = Arc::new(Session::new(key.as_bytes(), packer));
        // Its key is in there, and its sockets.
        let dir = private_dir("ipbroker-kernel-", &place()).map_err(system)?;
        process.tell_reaper(&reaper::Line::Directory(dir.path().to_owned()));
        let base = dir.path().join("kernel").display().to_string();
        let file = dir.path().join("connection.json");
        let connection = json!({
            "transport": "ipc", "ip": base, "key": key, "signature_scheme": "hmac-sha256", "kernel_name": self.spec.name,
            "shell_port": 1, "iopub_port": 2, "stdin_port": 3, "control_port": 4, "hb_port": 5,
        });
        std::fs::write(&file, connection.to_string()).map_err(system)?;
        let connect = |kind, port: u32| -> zmq::Result<Socket> {
            let socket = socket::open(&self.context, kind)?;
            socket.set_reconnect_ivl(20)?;
            socket.set_linger(0)?;
            if kind == zmq::SUB {
                socket.set_subscribe(b"")?;
            }
            socket.connect(&format!("ipc://{base}-{port}"))?;
            Ok(socket)
        };
        let sockets = |error: zmq::Error| error.to_string();
        let shell = connect(zmq::DEALER, 1).map_err(sockets)?;
        let ended = Arc::new(Ended::default());
        let side = side::Side {
            iopub: connect(zmq::SUB, 2).map_err(sockets)?,
            control: connect(zmq::DEALER, 4).map_err(sockets)?,
            shell: connect(zmq::DEALER, 1).map_err(sockets)?,
            session: session.clone(),
            ended: ended.clone(),
            parallel,
        };

        let (mut command, calls) = self.command(process, &file, packer).map_err(system)?;
        let program = command.get_program().display().to_string();
        let mut child = command
            .env(MARK, &process.mark)
            .env("IPBROKER_ENGINE_ID", engine.id().to_string())
            .env("IPBROKER_ENGINE_UUID", &engine.uuid)
            .current_dir(&process.files.work_dir)
            .process_group(0)
            // What is said to people at a terminal; errors and logs go to ours.
            .stdout(Stdio::null())
            .spawn()
            .map_err(|error| Failed {
                why: format!("{program}: {error}"),
                for_good: error.kind() == io::ErrorKind::NotFound,
            })?;
        let pid = Pid::from_child(&child);
        process.number_interpreter(pid);
        let status = Status::default();
        let started = pidfd_open(pid, PidfdFlags::empty())
            .map_err(io::Error::from)
            .and_then(|pidfd| {
                let life = || Ok::<_, io::Error>((pid, pidfd.try_clone()?));
                let calls =
                    calls.map(|calls| Interpreter::of_kernel(status.clone(), life()?, calls));
                let side = side.start(process.clone(), engine.clone(), life()?)?;
                Ok((pidfd, calls.transpose()?, side))
            });
        let (pidfd, calls, (line, thread)) = match started {
            Ok(started) => started,
            Err(error) => {
                let _ = child.kill();
                let _ = child.wait();
                return Err(error.to_string().into());
            }
        };
        let mut kernel = Kernel {
            child,
            pid,
            pidfd,
            shell,
            session,
            count,
            stillborn,
            born: Instant::now(),
            asked: false,
            status,
            calls,
            ended,
            parallel,
            by_message,
            line: line.clone(),
            side: Some(thread),
            dir,
        };
        kernel.get_ready(engine, &program)?;
        *engine.line.lock() = Some(line);
        Ok(kernel)
    }

    /// What starts a kernel with this connection file, and, where it runs Python calls too, the way to them.
    fn command(
        &self,
        process: &Process,
        file: &Path,
        packer: Packer,
    ) -> io::Result<(Command, Option<UnixStream>)> {
        let shown = file.display().to_string();
        let argv = self.spec.argv.iter();
        let mut argv = argv.map(|word| word.replace("{connection_file}", &shown));
        let mut command = Command::new(argv.next().unwrap_or_default());
        command.args(argv);
        if self.spec.parallel {
            let packer = packer.name();
            command.args([
                format!("--Session.packer={packer}"),
                format!("--Session.unpacker={packer}"),
            ]);
            if let Some(dir) = &self.profile {
                command.env("IPP_PROFILE_DIR", dir);
            }
        }
        command.args(&self.options);
        let mut calls = None;
        let python = process.python.as_ref();
        if let Some(python) = python.filter(|_| process.kernels_run_calls()) {
            let (ours, theirs) = UnixStream::pair()?;
            command
                .stdin(OwnedFd::from(theirs))
                .env("IPBROKER_CALLS", "");
            if let Some(file) = &python.client {
                command.env("IPBROKER_CONNECTION", file);
            }
            calls = Some(ours);
        } else {
            command.stdin(Stdio::null());
        }
        command.envs(&self.spec.env);
        Ok((command, calls))
    }
}

/// How long the next kernel waits for its start when so many have ended at theirs.
fn pause(stillborn: u32) -> Duration {
    match stillborn {
        0 | 1 => Duration::ZERO,
        more => STILLBORN.1 * (1 << (more - 2)),
    }
}

/// Where the directory of the sockets is made: their paths have no more than 107 bytes.
fn place() -> PathBuf {
    let place = std::env::temp_dir();
    match place.as_os_str().len() {
        ..60 => place,
        _ => "/tmp".into(),
    }
}

impl Kernel {
    /// Waits for the answer to a first question.
    fn get_ready(&mut self, engine: &LogicalEngine, program: &str) -> Result<(), Failed> {
        let begun = Instant::now();
        let question = self.session.request("kernel_info_request", &json!({}));
        socket::send(&self.shell, question.into_frames()).map_err(|error| error.to_string())?;
        let mut frames = Vec::new();
        loop {
            let ended = self.wait(LOOK);
            if let Ok(true) = socket::recv(&self.shell, &mut frames) {
                return Ok(());
            }
            if ended {
                return Err(self.never_was(program));
            }
            if engine.closing() {
                return Err("the engine leaves".to_owned().into());
            }
            if begun.elapsed() > START {
                return Err(format!("it has not answered for {} s", START.as_secs()).into());
            }
        }
    }

    /// Why it ended before it answered.
    fn never_was(&mut self, program: &str) -> Failed {
        let cause = self.end();
        let why = match std::fs::read_to_string(self.dir.path().join("lacking")) {
            Ok(module) if module == "msgpack" => format!(
                "{program} has no module msgpack, by which this cluster packs its messages: `{program} -m pip install msgpack`, or start ipctl with --packer=json"
            ),
            Ok(module) => {
                format!("{program} has no module {module}: `{program} -m pip install {module}`")
            }
            Err(_) => format!("it ended with {cause} before it answered"),
        };
        Failed {
            why,
            // Who is killed may have been in somebody's way.
            for_good: cause.starts_with("exit code"),
        }
    }

    /// Waits until there may be something on the shell channel; true when the kernel has ended.
    fn wait(&self, limit: Duration) -> bool {
        let mut items = [
            self.shell.as_poll_item(zmq::POLLIN),
            zmq::PollItem::from_fd(std::os::fd::AsRawFd::as_raw_fd(&self.pidfd), zmq::POLLIN),
        ];
        // An interrupted wait is a short one.
        let _ = zmq::poll(&mut items, limit.as_millis() as i64);
        items[1].is_readable()
    }

    /// How what it runs is interrupted.
    pub(crate) fn interrupt(&self) -> (Pid, Interrupt) {
        let ask = self.by_message.then(|| {
            let line = self.line.clone();
            Ask(Box::new(move || drop(line.say(Word::Interrupt))))
        });
        (self.pid, Interrupt::Kernel(ask))
    }

    /// Hands a request over and waits for its reply.
    pub(crate) fn ask(&mut self, request: &Envelope, msg_id: &str, cluster: &Session) -> Answer {
        self.asked = true;
        let sent = wire::to_kernel(request, cluster, &self.session, Vec::new())
            .map_err(|error| error.to_string())
            .and_then(|request| {
                socket::send(&self.shell, request.into_frames()).map_err(|error| error.to_string())
            });
        if let Err(error) = sent {
            return Answer::Reply(wire::Reply::error(cluster, "ValueError", &error));
        }
        let mut frames = Vec::new();
        let mut done = None;
        loop {
            let gone = self.wait(SILENCE);
            while let Ok(true) = socket::recv(&self.shell, &mut frames) {
                // The reply to a request that was given up is dropped.
                if let Some(reply) =
                    wire::reply(std::mem::take(&mut frames), msg_id, &self.session, cluster)
                {
                    // What it was given meanwhile would end with it.
                    let begun = Instant::now();
                    while reply.exits && begun.elapsed() < END && !self.wait(END) {}
                    return Answer::Reply(reply);
                }
            }
            if gone {
                return Answer::Gone(self.end());
            }
            // An interrupt that hits ipykernel's own code takes the reply with it.
            if done.is_some_and(|since: Instant| since.elapsed() >= SILENCE) {
                return Answer::Reply(wire::Reply::error(
                    cluster,
                    "KeyboardInterrupt",
                    "interrupted: the kernel gave no reply",
                ));
            }
            if done.is_none() && *self.ended.lock() == msg_id {
                done = Some(Instant::now());
            }
        }
    }

    /// What ended it; ends what is left of it.
    fn end(&mut self) -> String {
        let _ = kill_process_group(self.pid, Signal::KILL);
        let mut known = self.status.lock();
        match self.child.wait() {
            Ok(status) => ended(*known.insert(status)),
            Err(error) => error.to_string(),
        }
    }
}

impl Drop for Kernel {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) {
            let _ = self.line.say(Word::Shutdown);
            let begun = Instant::now();
            while begun.elapsed() < END && !self.wait(END / 10) {
                let _ = socket::recv(&self.shell, &mut Vec::new());
            }
            self.end();
        }
        let _ = self.line.say(Word::Gone);
        if let Some(side) = self.side.take() {
            let _ = side.join();
        }
    }
}
