//! A Python interpreter that outlives its calls: the process, and the frames that go to it and come back.
//!
//! Frames are `kind u8, number u64, parts u32, length u64 of each part, parts`, little-endian, on a socket pair that is the
//! interpreter's standard input; the other side is `worker.py`. What a call prints comes through pipes, so that C code
//! and child processes are heard too.

use std::{
    collections::HashMap,
    ffi::{OsStr, OsString},
    io::{self, IoSlice, PipeReader, Read, Write},
    ops::Range,
    os::{
        fd::{AsFd, OwnedFd},
        unix::{
            ffi::OsStrExt,
            net::UnixStream,
            process::{CommandExt, ExitStatusExt},
        },
    },
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use ipbroker_protocol::wake::Wake;
use parking_lot::Mutex;
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    fs::{MemfdFlags, memfd_create},
    net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg},
    process::{
        Pid, PidfdFlags, Signal, WaitId, WaitIdOptions, kill_process_group, pidfd_open, waitid,
    },
};

use crate::job::{Captured, Observer, Stream};

/// The other side.
const WORKER: &str = include_str!("worker.py");

/// Sent along where the host has none.
const CLOUDPICKLE: &str = include_str!("cloudpickle.py");

/// Reads the worker from the socket, and makes it a module beside the calls' `__main__`. Until the worker hears of interrupts,
/// one would only end the interpreter with a traceback that nobody wants.
const BOOTSTRAP: &str = "\
import _signal, sys, types
_signal.signal(_signal.SIGINT, _signal.SIG_IGN)
def start():
    worker = sys.modules['_ipbroker_worker'] = types.ModuleType('_ipbroker_worker')
    with open(0, 'rb', 0, closefd=False) as file:
        length, source = int.from_bytes(file.read(4), 'little'), b''
        while len(source) < length:
            source += file.read(length - len(source)) or sys.exit('the engine is gone')
    exec(compile(source, '<worker of ipengine>', 'exec'), worker.__dict__)
    del globals()['start']
    worker.main()
start()";

/// Kinds of frames to the interpreter.
mod to {
    pub(super) const CALL: u8 = 1;
    pub(super) const FUNCTION: u8 = 2;
    pub(super) const FORGET: u8 = 3;
    pub(super) const RESUME: u8 = 4;
}

/// Kinds of frames from the interpreter.
mod from {
    pub(super) const READY: u8 = 1;
    pub(super) const RESULT: u8 = 2;
    pub(super) const UNMET: u8 = 4;
    pub(super) const WAITS: u8 = 5;
    pub(super) const RESUMES: u8 = 6;
    pub(super) const KEPT: u8 = 7;
}

/// Bytes that are read at once: few enough to be in the processor's cache when they are copied to where they stay.
const INPUT: usize = 256 << 10;

/// In a call: it is no member of an array.
const NO_INDEX: u64 = u64::MAX;

/// Parts at least this large travel by themselves.
const LARGE: usize = 64 << 10;

/// Functions that an interpreter keeps, and their bytes; beyond, it forgets all and is sent again what is called.
const FUNCTIONS: (usize, usize) = (1000, 256 << 20);

/// Bytes of each output that are passed on as they come.
const STREAMED: usize = 1 << 20;

/// So long after a word of it an interpreter is taken to live.
const FRESH: Duration = Duration::from_millis(1);

/// Which interpreters an engine starts.
#[derive(Debug, Clone)]
pub(crate) struct Python {
    /// The program, as it was asked for.
    pub(crate) program: PathBuf,
    /// `major.minor`.
    pub(crate) version: String,
    /// The connection file by which calls reach the cluster that they run on, where this host has it.
    pub(crate) client: Option<PathBuf>,
}

impl Python {
    /// Asks a program for its version.
    ///
    /// # Errors
    /// In words, when it is no Python, or too old.
    pub(crate) fn find(program: &Path) -> Result<Self, String> {
        let script = "import sys; print('%d.%d' % sys.version_info[:2])";
        let shown = program.display();
        let output = Command::new(program)
            .args(["-I", "-S", "-c", script])
            .stdin(Stdio::null())
            .output()
            .map_err(|error| {
                format!(
                    "cannot start {shown}: {error}; name an interpreter with --python=INTERPRETER"
                )
            })?;
        let version = String::from_utf8_lossy(&output.stdout).trim().to_owned();
        let minor = version
            .strip_prefix("3.")
            .and_then(|minor| minor.parse::<u32>().ok());
        match minor {
            Some(9..) => Ok(Self {
                program: program.to_owned(),
                version,
                client: None,
            }),
            _ if version.is_empty() => Err(format!(
                "{shown} is no Python interpreter (it ended with {}); name one with --python=INTERPRETER",
                ended(output.status)
            )),
            _ => Err(format!(
                "{shown} is Python {version}; calls need 3.9 or later: --python=INTERPRETER"
            )),
        }
    }
}

/// One call.
#[derive(Debug, Clone, Copy)]
pub(super) struct Request<'a> {
    /// The function, pickled.
    pub(super) code: &'a [u8],
    /// The task.
    pub(super) msg_id: &'a str,
    /// Which member of an array it is.
    pub(super) index: Option<u64>,
    /// The task's priority.
    pub(super) priority: i32,
    /// What it is told of what it was granted.
    pub(super) variables: &'a [(String, OsString)],
    /// Arguments, pickled.
    pub(super) arguments: &'a [u8],
    /// Their out-of-band buffers.
    pub(super) buffers: &'a [ipbroker_protocol::zmq::Message],
}

/// What an interpreter says of a call.
#[derive(Debug)]
pub(super) enum Event {
    /// It is over.
    Ended(Answer),
    /// It waits for other tasks; until it goes on, the interpreter takes other calls.
    Waits,
    /// What it waits for is there: it goes on once it may.
    Resumes,
    /// It waits, and a task has come that may be worked on.
    Woken,
    /// It goes on; this is the beginning of its result, which is there whatever becomes of the interpreter.
    Kept(Vec<u8>),
}

/// How a call ended.
#[derive(Debug)]
pub(super) enum Answer {
    /// Its result, pickled, with the out-of-band buffers.
    Result(Vec<Vec<u8>>),
    /// The exception: name, words, traceback, pickled (or nothing); whether this host lacks what it needs.
    Error { parts: Vec<Vec<u8>>, unmet: bool },
    /// The interpreter is gone.
    Gone,
}

/// What a call writes: the beginning of both outputs, passed on as it comes.
pub(super) struct Output<'a> {
    observer: &'a mut dyn Observer,
    pub(super) kept: [Captured; 2],
}

impl<'a> Output<'a> {
    pub(super) fn new(observer: &'a mut dyn Observer) -> Self {
        Self {
            observer,
            kept: Default::default(),
        }
    }

    fn take(&mut self, stream: Stream, bytes: &[u8]) {
        let kept = &mut self.kept[usize::from(stream == Stream::Stderr)];
        let passed = &bytes[..bytes.len().min(STREAMED - kept.bytes.len())];
        if !passed.is_empty() {
            kept.bytes.extend_from_slice(passed);
            self.observer.output(stream, passed);
        }
        kept.total += bytes.len() as u64;
    }

    /// Says how much of it was not passed on.
    pub(super) fn end(&mut self) {
        for stream in [Stream::Stdout, Stream::Stderr] {
            let kept = &self.kept[usize::from(stream == Stream::Stderr)];
            let dropped = kept.total - kept.bytes.len() as u64;
            if dropped > 0 {
                let words = format!(
                    "\n[ipbroker: {dropped} more bytes of this call's output are left out]\n"
                );
                self.observer.output(stream, words.as_bytes());
            }
        }
    }
}

/// Whose the process is.
#[derive(Debug)]
enum Owner {
    /// The interpreter's own.
    Own(Child),
    /// A Jupyter kernel's, which runs calls beside what it is asked for, one of either at a time.
    Kernel(Status),
}

/// How a kernel has ended, once that is known: it is waited for by its owner, and asked for by its calls.
pub(crate) type Status = Arc<Mutex<Option<ExitStatus>>>;

/// The interpreter of a logical engine.
#[derive(Debug)]
pub(crate) struct Interpreter {
    owner: Owner,
    pub(super) pid: Pid,
    pidfd: OwnedFd,
    socket: UnixStream,
    /// Its standard output and error, until it closes them.
    printed: [Option<PipeReader>; 2],
    /// The other ends of these, as far as they are not there yet.
    outputs: Vec<OwnedFd>,
    /// Where it looks which call an interrupt means.
    pub(super) interrupts: Arc<OwnedFd>,
    /// Whether it has said that it is ready. Before, Python itself starts, and no signal should hit that; an interrupt is then
    /// found in `interrupts`.
    pub(super) ready: Arc<AtomicBool>,
    /// The number of the last call.
    pub(super) number: u64,
    /// When it last said something.
    heard: Instant,
    /// Calls that are to go on, heard while another was worked on.
    resuming: Vec<u64>,
    functions: HashMap<Vec<u8>, u64>,
    function_bytes: usize,
    input: Box<[u8]>,
    /// What of it was received and not yet read.
    unread: Range<usize>,
}

impl Interpreter {
    /// Starts one, and does not wait for it.
    ///
    /// # Errors
    /// The system's.
    pub(super) fn start<'a>(
        program: &Path,
        dir: &Path,
        environment: impl IntoIterator<Item = (&'a str, &'a OsStr)>,
    ) -> io::Result<Self> {
        let (socket, stdin) = UnixStream::pair()?;
        let ((stdout, their_stdout), (stderr, their_stderr)) = (io::pipe()?, io::pipe()?);
        let child = Command::new(program)
            .args(["-X", "faulthandler", "-c", BOOTSTRAP])
            .envs(environment)
            .current_dir(dir)
            .process_group(0)
            .stdin(OwnedFd::from(stdin))
            .stdout(their_stdout)
            .stderr(their_stderr)
            .spawn()?;
        let pid = Pid::from_child(&child);
        let pidfd = pidfd_open(pid, PidfdFlags::empty())?;
        Self::new(
            Owner::Own(child),
            (pid, pidfd),
            socket,
            [stdout, stderr],
            Vec::new(),
        )
    }

    /// That of a Jupyter kernel, which has the other end of the socket as its standard input.
    ///
    /// # Errors
    /// The system's.
    pub(crate) fn of_kernel(
        status: Status,
        life: (Pid, OwnedFd),
        socket: UnixStream,
    ) -> io::Result<Self> {
        let ((stdout, their_stdout), (stderr, their_stderr)) = (io::pipe()?, io::pipe()?);
        let outputs = vec![their_stdout.into(), their_stderr.into()];
        Self::new(
            Owner::Kernel(status),
            life,
            socket,
            [stdout, stderr],
            outputs,
        )
    }

    fn new(
        owner: Owner,
        (pid, pidfd): (Pid, OwnedFd),
        mut socket: UnixStream,
        printed: [PipeReader; 2],
        outputs: Vec<OwnedFd>,
    ) -> io::Result<Self> {
        let memory = memfd_create("ipbroker-interrupts", MemfdFlags::CLOEXEC)?;
        rustix::fs::ftruncate(&memory, 8)?;
        socket.write_all(&(WORKER.len() as u32).to_le_bytes())?;
        socket.write_all(WORKER.as_bytes())?;
        Ok(Self {
            owner,
            pid,
            pidfd,
            socket,
            printed: printed.map(Some),
            outputs,
            interrupts: Arc::new(memory),
            ready: Arc::default(),
            number: 0,
            heard: Instant::now(),
            resuming: Vec::new(),
            functions: HashMap::new(),
            function_bytes: 0,
            input: vec![0; INPUT].into(),
            unread: 0..0,
        })
    }

    /// Whether it still runs. One that has just answered is not asked for.
    pub(super) fn lives(&mut self) -> bool {
        if self.heard.elapsed() < FRESH {
            return true;
        }
        match &mut self.owner {
            Owner::Own(child) => matches!(child.try_wait(), Ok(None)),
            Owner::Kernel(_) => {
                let mut ended = [PollFd::new(&self.pidfd, PollFlags::IN)];
                matches!(poll(&mut ended, Some(&Timespec::default())), Ok(0))
            }
        }
    }

    /// How it ended; waits for that, and ends it if it only hung up.
    pub(super) fn end(&mut self) -> ExitStatus {
        if self.lives() {
            let _ = kill_process_group(self.pid, Signal::KILL);
        }
        let status = match &mut self.owner {
            Owner::Own(child) => child.wait().ok(),
            Owner::Kernel(status) => {
                let known = status.lock();
                // Its owner waits for it, too.
                let look = WaitIdOptions::EXITED | WaitIdOptions::NOWAIT;
                known.or_else(|| {
                    let ended = waitid(WaitId::PidFd(self.pidfd.as_fd()), look).ok()??;
                    let code = ended.exit_status().map(|code| code << 8);
                    code.or(ended.terminating_signal())
                        .map(ExitStatus::from_raw)
                })
            }
        };
        status.unwrap_or_else(|| ExitStatus::from_raw(0xff00))
    }

    /// Sends a call; it gets the next number, which was told to whoever may interrupt it.
    pub(super) fn begin(
        &mut self,
        request: &Request<'_>,
        output: &mut Output<'_>,
    ) -> io::Result<()> {
        if !self.ready.load(Ordering::SeqCst) {
            self.get_ready(output)?;
        }
        let function = self.function(request.code)?;
        let mut settings = function.to_le_bytes().to_vec();
        settings.extend_from_slice(&request.index.unwrap_or(NO_INDEX).to_le_bytes());
        settings.extend_from_slice(&request.priority.to_le_bytes());
        settings.extend_from_slice(request.msg_id.as_bytes());
        for (name, value) in request.variables {
            settings.push(0);
            settings.extend_from_slice(name.as_bytes());
            settings.push(b'=');
            settings.extend_from_slice(value.as_bytes());
        }
        let mut parts: Vec<&[u8]> = vec![&settings, request.arguments];
        parts.extend(request.buffers.iter().map(|buffer| &buffer[..]));
        self.send(to::CALL, self.number, &parts)
    }

    /// Waits for the next word about a call; with a bell, until that rings.
    pub(super) fn next(
        &mut self,
        number: u64,
        bell: Option<&Wake>,
        output: &mut Output<'_>,
    ) -> Event {
        self.try_next(number, bell, output).unwrap_or_else(|error| {
            tracing::debug!("the interpreter is gone: {error}");
            Event::Ended(Answer::Gone)
        })
    }

    fn try_next(
        &mut self,
        number: u64,
        bell: Option<&Wake>,
        output: &mut Output<'_>,
    ) -> io::Result<Event> {
        loop {
            if let Some(at) = self
                .resuming
                .iter()
                .position(|resuming| *resuming == number)
            {
                self.resuming.swap_remove(at);
                return Ok(Event::Resumes);
            }
            if let Some(bell) = bell
                && self.unread.is_empty()
                && self.rings(bell, output)?
            {
                return Ok(Event::Woken);
            }
            let (kind, about, parts) = self.receive(output)?;
            match kind {
                from::RESUMES => self.resuming.push(about),
                // A word about a call that was given up.
                _ if about != number => {}
                from::WAITS => return Ok(Event::Waits),
                from::KEPT => return Ok(Event::Kept(parts.into_iter().next().unwrap_or_default())),
                from::RESULT => return Ok(Event::Ended(Answer::Result(parts))),
                kind => {
                    return Ok(Event::Ended(Answer::Error {
                        parts,
                        unmet: kind == from::UNMET,
                    }));
                }
            }
        }
    }

    /// Lets a call go on that waited.
    pub(super) fn resume(&mut self, number: u64) -> io::Result<()> {
        self.send(to::RESUME, number, &[])
    }

    /// Waits for either the interpreter or the bell; true when the bell rang first.
    fn rings(&mut self, bell: &Wake, output: &mut Output<'_>) -> io::Result<bool> {
        loop {
            let [socket, ended, rung] = self.poll(Some(bell), output)?;
            if rung {
                bell.clear();
                return Ok(true);
            }
            if socket || ended {
                return Ok(false);
            }
        }
    }

    /// Waits until it is ready, and gives it what it needs.
    fn get_ready(&mut self, output: &mut Output<'_>) -> io::Result<()> {
        let (kind, _, parts) = self.receive(output)?;
        if kind != from::READY {
            return Err(io::Error::other("it did not say that it is ready"));
        }
        // Before it can look there: whoever writes there later sends a signal, too.
        self.ready.store(true, Ordering::SeqCst);
        let mut fds = vec![self.interrupts.as_fd()];
        fds.extend(self.outputs.iter().map(AsFd::as_fd));
        let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(3))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        control.push(SendAncillaryMessage::ScmRights(&fds));
        sendmsg(
            &self.socket,
            &[IoSlice::new(&[0])],
            &mut control,
            SendFlags::NOSIGNAL,
        )?;
        self.outputs.clear();
        let found = parts.get(1).is_some_and(|found| found == &[1]);
        let source = if found { "" } else { CLOUDPICKLE };
        self.send(to::FUNCTION, 0, &[source.as_bytes()])
    }

    /// The number by which it knows a function; it is sent if it does not.
    fn function(&mut self, code: &[u8]) -> io::Result<u64> {
        if let Some(number) = self.functions.get(code) {
            return Ok(*number);
        }
        if self.functions.len() >= FUNCTIONS.0 || self.function_bytes + code.len() > FUNCTIONS.1 {
            self.functions.clear();
            self.function_bytes = 0;
            self.send(to::FORGET, 0, &[])?;
        }
        let number = self.functions.len() as u64;
        self.send(to::FUNCTION, number, &[code])?;
        self.functions.insert(code.to_vec(), number);
        self.function_bytes += code.len();
        Ok(number)
    }

    fn send(&mut self, kind: u8, number: u64, parts: &[&[u8]]) -> io::Result<()> {
        let mut small = Vec::with_capacity(512);
        small.push(kind);
        small.extend_from_slice(&number.to_le_bytes());
        small.extend_from_slice(&(parts.len() as u32).to_le_bytes());
        for part in parts {
            small.extend_from_slice(&(part.len() as u64).to_le_bytes());
        }
        for part in parts {
            if part.len() < LARGE {
                small.extend_from_slice(part);
            } else {
                self.socket.write_all(&small)?;
                small.clear();
                self.socket.write_all(part)?;
            }
        }
        self.socket.write_all(&small)
    }

    fn receive(&mut self, output: &mut Output<'_>) -> io::Result<(u8, u64, Vec<Vec<u8>>)> {
        let head = self.take(13, output)?;
        let (kind, number) = (head[0], word(&head[1..9]));
        let count = u32::from_le_bytes([head[9], head[10], head[11], head[12]]) as usize;
        let lengths = self.take(8 * count, output)?;
        let mut parts = Vec::with_capacity(count);
        for length in lengths.chunks_exact(8) {
            parts.push(self.take(word(length) as usize, output)?);
        }
        Ok((kind, number, parts))
    }

    /// The next bytes of the stream.
    fn take(&mut self, length: usize, output: &mut Output<'_>) -> io::Result<Vec<u8>> {
        let mut bytes = Vec::with_capacity(length);
        loop {
            let count = self.unread.len().min(length - bytes.len());
            let from = self.unread.start;
            self.unread.start += count;
            bytes.extend_from_slice(&self.input[from..self.unread.start]);
            if bytes.len() == length {
                return Ok(bytes);
            }
            let mut input = std::mem::take(&mut self.input);
            let count = self.read(&mut input, output);
            self.input = input;
            self.unread = 0..count?;
        }
    }

    /// Reads from the socket, and meanwhile takes what is printed. All that a call has printed is taken before its outcome
    /// is read: it was written before, and the socket is looked at first.
    fn read(&mut self, buffer: &mut [u8], output: &mut Output<'_>) -> io::Result<usize> {
        loop {
            let [socket, ended, _] = self.poll(None, output)?;
            if socket {
                return match self.socket.read(buffer) {
                    Ok(0) => Err(io::ErrorKind::UnexpectedEof.into()),
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                    result => {
                        self.heard = Instant::now();
                        result
                    }
                };
            }
            if ended {
                // Who it has started may still hold the socket.
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
    }

    /// Waits until there is something, and takes what was printed: whether the socket can be read, the process has ended,
    /// the bell has rung.
    fn poll(&mut self, bell: Option<&Wake>, output: &mut Output<'_>) -> io::Result<[bool; 3]> {
        let socket = self.socket.as_fd();
        let fd = |fd| PollFd::from_borrowed_fd(fd, PollFlags::IN);
        // Nothing is asked of what stands in for a closed pipe or for no bell.
        let none = || PollFd::from_borrowed_fd(socket, PollFlags::empty());
        let [stdout, stderr] = self
            .printed
            .each_ref()
            .map(|pipe| pipe.as_ref().map_or_else(none, |pipe| fd(pipe.as_fd())));
        let bell = bell.map_or_else(none, |bell| fd(bell.as_fd()));
        let mut fds = [fd(socket), fd(self.pidfd.as_fd()), stdout, stderr, bell];
        loop {
            match poll(&mut fds, None) {
                Ok(_) => break,
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
        let [socket, ended, stdout, stderr, rung] = fds.each_ref().map(PollFd::revents);
        let streams = [(Stream::Stdout, stdout), (Stream::Stderr, stderr)];
        for (pipe, (stream, events)) in self.printed.iter_mut().zip(streams) {
            if events.contains(PollFlags::IN)
                && let Some(from) = pipe
            {
                let mut scratch = vec![0; LARGE];
                let count = from.read(&mut scratch)?;
                output.take(stream, &scratch[..count]);
            } else if events.contains(PollFlags::HUP) {
                *pipe = None;
            }
        }
        let rung = rung.contains(PollFlags::IN);
        Ok([!socket.is_empty(), !ended.is_empty(), rung])
    }
}

impl Drop for Interpreter {
    fn drop(&mut self) {
        if matches!(self.owner, Owner::Own(_)) {
            self.end();
        }
    }
}

fn word(bytes: &[u8]) -> u64 {
    bytes
        .iter()
        .rev()
        .fold(0, |word, byte| (word << 8) | u64::from(*byte))
}

/// How a process ended, in words.
pub(crate) fn ended(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("exit code {code}"),
        (None, Some(signal)) => {
            let name = signal_hook::low_level::signal_name(signal);
            let name = name.map(|name| format!(" ({name})")).unwrap_or_default();
            format!("signal {signal}{name}")
        }
        (None, None) => "an unknown cause".to_owned(),
    }
}
