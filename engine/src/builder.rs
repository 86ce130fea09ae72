//! How a program becomes an engine.

use std::{
    fmt::Display,
    os::unix::net::UnixStream,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicI64, AtomicU32},
    },
    time::{Duration, Instant},
};

use ipbroker_protocol::{
    connection::EngineConnection,
    profile::{Profile, ProfileError, Role},
    resources::{Pool, Pools},
    route, socket, usage, wake,
};
use parking_lot::Mutex;
use serde::{Serialize, de::DeserializeOwned};

use crate::{
    connect::{self, ConnectError, Controller, Source},
    executor::{Flusher, Python},
    files::{Cache, FileHost},
    function::{Context, Executor, FunctionError, Registry},
    io::{Left, ServeError, Server},
    job::{Limits, Warden},
    kernel::{self, Kernels},
    logical_engine::LogicalEngine,
    process::{Outbox, Process},
    reaper::{self, Reaper, Shared},
    settings::Settings,
};

/// Descriptors of a process: its sockets' own and their connections.
const DESCRIPTORS: u64 = 64;

/// … of one logical engine: of what it runs, and on the pure path of a socket of its own.
const DESCRIPTORS_EACH: u64 = 4;

/// … and of one with connections of its own, to ipyparallel's controller.
const DESCRIPTORS_ALONE: u64 = 10;

/// … and of its kernel: four sockets, what they are connected by, and the process.
const DESCRIPTORS_KERNEL: u64 = 24;

/// Why an engine could not start, or ended by itself.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// There is no connection to a controller to be had.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// There is no profile directory.
    #[error(transparent)]
    Profile(#[from] ProfileError),
    /// A directory cannot be used.
    #[error("working directory {path}: {source}; name another one with --work-dir", path = path.display())]
    WorkDir {
        /// Which one.
        path: PathBuf,
        /// The system's word.
        source: std::io::Error,
    },
    /// The system has no more of something.
    #[error("cannot start: {what}: {source}")]
    System {
        /// Of what.
        what: &'static str,
        /// The system's word.
        source: std::io::Error,
    },
    /// There is no Python to run calls with.
    #[error("--python: {0}")]
    Python(String),
    /// Tried again, it would fail in the same way: there is no such Jupyter kernel, the system lacks `/proc`, …
    #[error("{0}")]
    Hopeless(String),
    /// It ended because it could not go on.
    #[error("{0}")]
    Serve(String),
}

impl From<ServeError> for EngineError {
    fn from(error: ServeError) -> Self {
        match error {
            ServeError::Hopeless(why) => Self::Hopeless(why),
            other => Self::Serve(other.to_string()),
        }
    }
}

fn system(what: &'static str) -> impl FnOnce(std::io::Error) -> EngineError {
    move |source| EngineError::System { what, source }
}

/// One engine process: one or several logical engines, each with an id and a uuid of its own.
///
/// ```no_run
/// use ipbroker_engine::Engine;
///
/// // First of all: this program may have been started again as its own reaper.
/// ipbroker_engine::init();
/// Engine::builder()
///     .engines(4)
///     .function("add", |_, (a, b): (i64, i64)| Ok::<_, String>(a + b))
///     .function("wait", |context, seconds: f64| {
///         // Cooperative: an aborted call returns early.
///         let aborted = context.token().wait(std::time::Duration::from_secs_f64(seconds));
///         Ok::<_, String>(!aborted)
///     })
///     .run()?;
/// # Ok::<(), ipbroker_engine::EngineError>(())
/// ```
pub struct Engine {
    server: Server,
    process: Arc<Process>,
    stop: Handle,
}

impl std::fmt::Debug for Engine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Engine")
            .field("process", &self.process)
            .finish_non_exhaustive()
    }
}

/// Asks a running [`Engine`] to leave, from another thread.
#[derive(Debug, Clone)]
pub struct Handle(Arc<UnixStream>);

impl Handle {
    /// The engine gives back what it has not started, stops what runs, unregisters and returns from
    /// [`Engine::run`] within two seconds. Asked a second time, it returns at once.
    pub fn stop(&self) {
        use std::io::Write;
        // When the other end is gone, so is the engine.
        let _ = (&*self.0).write_all(&[1]);
    }
}

impl Engine {
    /// An engine with the built-in functions, one logical engine, and the default profile's controller.
    #[must_use]
    pub fn builder() -> Builder {
        Builder::default()
    }

    /// A handle by which to stop it.
    #[must_use]
    pub fn handle(&self) -> Handle {
        self.stop.clone()
    }

    /// Serves until it is told to leave: by a signal, by [`Handle::stop`], by the controller, or because there was no
    /// controller for the grace period (that is an error).
    ///
    /// # Errors
    /// [`EngineError::Serve`] when it could not go on.
    pub fn run(self) -> Result<(), EngineError> {
        let served = self.server.run();
        let reaper = self.process.reaper.lock().take();
        match reaper {
            Some(_) if matches!(served, Ok(Left::AtOnce)) => {}
            Some(reaper) => reaper.finish(),
            None => {}
        }
        served?;
        Ok(())
    }
}

/// Sets an [`Engine`] up.
#[derive(Debug)]
pub struct Builder {
    engines: usize,
    functions: Registry,
    python: Option<PathBuf>,
    kernel: Option<(String, PathBuf)>,
    kernel_options: Vec<String>,
    kernel_restarts: u32,
    settings: Settings,
    pin: bool,
    work_dir: Option<PathBuf>,
    connection: Option<EngineConnection>,
    file: Option<PathBuf>,
    profile: Option<Profile>,
    wait: Duration,
    kill_grace: Duration,
    signals: bool,
}

impl Default for Builder {
    fn default() -> Self {
        Self {
            engines: 1,
            functions: Registry::new(),
            python: None,
            kernel: None,
            kernel_options: Vec::new(),
            kernel_restarts: u32::MAX,
            settings: Settings {
                grace: Duration::from_secs(60),
                idle: None,
                ends: None,
                tags: Vec::new(),
                aliases: Vec::new(),
                first_id: None,
                resources: Pools::new(),
            },
            pin: false,
            work_dir: None,
            connection: None,
            file: None,
            profile: None,
            wait: Duration::from_secs(10),
            kill_grace: Duration::from_millis(500),
            signals: true,
        }
    }
}

impl Builder {
    /// How many logical engines there are; each runs one task at a time.
    #[must_use]
    pub fn engines(mut self, count: usize) -> Self {
        self.engines = count.max(1);
        self
    }

    /// Adds a function that tasks call by `name`. Argument and result are anything that serde knows. The call fails with
    /// the error that is returned, under its type's name, or under the one that a
    /// [`FunctionError`](crate::function::FunctionError) gives it; a panic is an error too.
    #[must_use]
    pub fn function<T, R, E, F>(mut self, name: &str, function: F) -> Self
    where
        T: DeserializeOwned,
        R: Serialize,
        E: Display + 'static,
        F: Fn(&Context<'_>, T) -> Result<R, E> + Send + Sync + 'static,
    {
        self.functions.add(name, function);
        self
    }

    /// Adds functions of these names, which are all run by an [`Executor`] that `make` makes, one for each logical engine. Where
    /// it cannot be made, as on a host that lacks a device, `make` returns [`FunctionError::unmet`].
    #[must_use]
    pub fn executor<X: Executor + 'static>(
        mut self,
        names: impl IntoIterator<Item = impl Into<String>>,
        make: impl Fn(&Context<'_>) -> Result<X, FunctionError> + Send + Sync + 'static,
    ) -> Self {
        self.functions.add_executor(names, make);
        self
    }

    /// Runs Python calls too, with this interpreter (3.9 or later): one process a logical engine, started when the first
    /// call comes. The engines have the tags `python` and `python3.N`.
    #[must_use]
    pub fn python(mut self, interpreter: Option<PathBuf>) -> Self {
        self.python = interpreter;
        self
    }

    /// Each logical engine owns a Jupyter kernel of this kind and runs what ipyparallel's clients send with it: the name of a
    /// kernelspec, or `ipyparallel`, which is that package's own kernel in the given interpreter. It becomes a tag.
    #[must_use]
    pub fn kernel(mut self, name: Option<String>, interpreter: impl Into<PathBuf>) -> Self {
        self.kernel = name.map(|name| (name, interpreter.into()));
        self
    }

    /// Further arguments for the kernels' command lines.
    #[must_use]
    pub fn kernel_options(mut self, options: impl IntoIterator<Item = impl Into<String>>) -> Self {
        self.kernel_options = options.into_iter().map(Into::into).collect();
        self
    }

    /// How often a kernel that died is replaced before its engine leaves instead. Default: always.
    #[must_use]
    pub fn kernel_restarts(mut self, most: u32) -> Self {
        self.kernel_restarts = most;
        self
    }

    /// Tags by which tasks choose engines: racks, `gpu`, …
    #[must_use]
    pub fn tags(mut self, tags: impl IntoIterator<Item = impl Into<String>>) -> Self {
        self.settings.tags = tags.into_iter().map(Into::into).collect();
        self
    }

    /// Further names of this host, by which jobs may name it; the first is the one to show.
    #[must_use]
    pub fn host_aliases(mut self, names: impl IntoIterator<Item = impl Into<String>>) -> Self {
        self.settings.aliases = names.into_iter().map(Into::into).collect();
        self
    }

    /// The id that the first engine would like to have; the others follow it.
    #[must_use]
    pub fn first_id(mut self, id: Option<u32>) -> Self {
        self.settings.first_id = id;
        self
    }

    /// Adds what tasks may ask for of this host, or replaces what was found by itself: amounts, or names of which a task has
    /// each alone. All engines of a host share it, whoever started them.
    #[must_use]
    pub fn resource(mut self, name: &str, pool: Pool) -> Self {
        self.settings.resources.insert(name.to_owned(), pool);
        self
    }

    /// Whether a task that asks for cpus runs on just the cores that it was granted. Default: no.
    #[must_use]
    pub fn pin(mut self, yes: bool) -> Self {
        self.pin = yes;
        self
    }

    /// How long the engine waits for a controller that is gone, running on meanwhile. Default: 60 s.
    #[must_use]
    pub fn grace(mut self, grace: Duration) -> Self {
        self.settings.grace = grace;
        self
    }

    /// How long the engine may be idle, all logical engines of it, before it leaves. Default: for ever.
    #[must_use]
    pub fn idle(mut self, limit: Option<Duration>) -> Self {
        self.settings.idle = limit;
        self
    }

    /// How long the engine may stay: tasks that may run for longer are not given to it. Default: as long as it is wanted.
    #[must_use]
    pub fn time_limit(mut self, limit: Option<Duration>) -> Self {
        self.settings.ends = limit.and_then(|limit| Instant::now().checked_add(limit));
        self
    }

    /// How long a job may take to obey TERM before KILL. Default: 0.5 s.
    #[must_use]
    pub fn kill_grace(mut self, grace: Duration) -> Self {
        self.kill_grace = grace;
        self
    }

    /// Where jobs without `cd` run and relative paths begin. Default: the current directory.
    #[must_use]
    pub fn work_dir(mut self, dir: impl Into<PathBuf>) -> Self {
        self.work_dir = Some(dir.into());
        self
    }

    /// The controller, as its engine connection file has it.
    #[must_use]
    pub fn connection(mut self, connection: EngineConnection) -> Self {
        self.connection = Some(connection);
        self
    }

    /// The controller's engine connection file.
    #[must_use]
    pub fn connection_file(mut self, path: impl Into<PathBuf>) -> Self {
        self.file = Some(path.into());
        self
    }

    /// The profile where the connection file is. Default: as `ipengine` without options finds it.
    #[must_use]
    pub fn profile(mut self, profile: Profile) -> Self {
        self.profile = Some(profile);
        self
    }

    /// How long to wait for the connection file to appear. Default: 10 s.
    #[must_use]
    pub fn wait(mut self, wait: Duration) -> Self {
        self.wait = wait;
        self
    }

    /// Whether SIGINT and SIGTERM make the engine leave (a second one: at once). Default: yes.
    #[must_use]
    pub fn handle_signals(mut self, yes: bool) -> Self {
        self.signals = yes;
        self
    }

    fn controller(&self) -> Result<Controller, EngineError> {
        if let Some(connection) = &self.connection {
            return Ok(Controller::new(connection.clone(), Source::Given)?);
        }
        if let Some(file) = &self.file {
            return Ok(connect::from_file(file, self.wait)?);
        }
        if self.profile.is_none()
            && let Some(controller) = connect::from_environment()?
        {
            return Ok(controller);
        }
        let profile = match &self.profile {
            Some(profile) => profile.clone(),
            None => Profile::find(None, None, None)?,
        };
        profile.create()?;
        Ok(connect::from_file(
            &profile.connection_file(Role::Engine),
            self.wait,
        )?)
    }

    fn find_python(&mut self) -> Result<Option<Python>, EngineError> {
        let python = self.python.as_deref().map(Python::find).transpose();
        let python = python.map_err(EngineError::Python)?;
        if let Some(python) = &python {
            let version = format!("python{}", python.version);
            self.settings.tags.extend(["python".to_owned(), version]);
        }
        Ok(python)
    }

    fn find_kernels(&mut self) -> Result<Option<Kernels>, EngineError> {
        let Some((name, python)) = &self.kernel else {
            return Ok(None);
        };
        let mut kernels = Kernels::find(name, python)
            .map_err(|error| EngineError::Hopeless(format!("--kernel: {error}")))?;
        kernels.restarts = self.kernel_restarts;
        kernels.profile = (self.profile.as_ref()).map(|profile| profile.dir().to_owned());
        kernels.options = std::mem::take(&mut self.kernel_options);
        self.settings.tags.push(name.clone());
        Ok(Some(kernels))
    }

    fn find_work_dir(&self) -> Result<PathBuf, EngineError> {
        match &self.work_dir {
            Some(dir) => dir.canonicalize(),
            None => std::env::current_dir(),
        }
        .map_err(|source| EngineError::WorkDir {
            path: self.work_dir.clone().unwrap_or_else(|| ".".into()),
            source,
        })
    }

    /// Finds the controller and gets everything ready; nothing is served yet.
    ///
    /// # Errors
    /// [`EngineError`] saying what is missing.
    pub fn build(mut self) -> Result<Engine, EngineError> {
        usage::check_system().map_err(EngineError::Hopeless)?;
        let count = self.engines;
        let mut python = self.find_python()?;
        let kernels = self.find_kernels()?;
        let work_dir = self.find_work_dir()?;
        let controller = self.controller()?;
        let peer = controller.connection.common.is_peer();
        let alone = if peer { DESCRIPTORS_ALONE } else { 0 };
        let kernel = kernels.as_ref().map_or(0, |_| DESCRIPTORS_KERNEL);
        let each = DESCRIPTORS_EACH + alone + kernel;
        socket::raise_descriptors(count as u64 * each + DESCRIPTORS).map_err(|error| {
            EngineError::Hopeless(format!("{count} engines in one process: {error}"))
        })?;
        if let Some(python) = &mut python {
            python.client = controller.client_file();
        }

        // Before any thread and any other process: who ends the jobs, whatever becomes of us.
        let limits = Limits::detect();
        let shared = Shared::new(count)
            .map_err(|error| system("memory to share with the reaper")(error.into()))?;
        let id = uuid::Uuid::new_v4().to_string();
        let uuid = |index| match peer {
            true => uuid::Uuid::new_v4().to_string(),
            false => route::uuid(&id, index),
        };
        let uuids: Vec<String> = (0..count).map(uuid).collect();
        let mut reaper = Reaper::start(&shared, &id, uuids.clone(), self.kill_grace)
            .map_err(system("the reaper"))?;
        reaper.tell(&controller.for_reaper());

        let (write, read) = UnixStream::pair().map_err(system("descriptors"))?;
        if self.signals {
            take_signals(&write, kernels.is_some()).map_err(system("signal handlers"))?;
        }
        let (waker, wake) = wake::pair().map_err(system("descriptors"))?;
        let process = Arc::new(Process {
            mark: reaper::mark(&id),
            id,
            functions: self.functions,
            python,
            kernels,
            files: FileHost {
                host: socket::host_name(),
                work_dir,
                cache: Cache::find(),
            },
            scratch: std::env::temp_dir(),
            warden: Warden::new(self.kill_grace),
            limits,
            shared,
            max_message: controller.connection.common.max_message,
            jobs: reaper::numbered().then(AtomicU32::default),
            pin: self.pin,
            reaper: Mutex::new(Some(reaper)),
            flusher: Flusher::default(),
            outbox: Outbox::new(waker),
            offset: AtomicI64::default(),
        });
        let mut engines = Vec::with_capacity(count);
        for (index, uuid) in uuids.into_iter().enumerate() {
            let session = controller.session(&uuid)?;
            engines.push(Arc::new(LogicalEngine::new(index, uuid, session)));
        }
        if self.signals && process.kernels.is_some() {
            kernel::pass_signals(engines.clone()).map_err(system("signal handlers"))?;
        }
        tracing::info!(
            "{count} engine(s) on {}, controller {} ({})",
            process.files.host,
            controller.address(),
            controller.source
        );
        let server = Server::new(
            self.settings,
            process.clone(),
            engines,
            controller,
            wake,
            read,
        )?;
        Ok(Engine {
            server,
            process,
            stop: Handle(Arc::new(write)),
        })
    }

    /// [`build`](Self::build), then [`Engine::run`].
    ///
    /// # Errors
    /// As both.
    pub fn run(self) -> Result<(), EngineError> {
        self.build()?.run()
    }
}

/// Signals become bytes on a socket that the server polls. Where there are kernels, SIGINT is for what they run, unless it
/// was typed.
fn take_signals(write: &UnixStream, kernels: bool) -> std::io::Result<()> {
    use signal_hook::{consts, low_level::pipe};
    use std::io::IsTerminal;
    pipe::register(consts::SIGTERM, write.try_clone()?)?;
    if !kernels || std::io::stdin().is_terminal() {
        pipe::register(consts::SIGINT, write.try_clone()?)?;
    }
    if std::io::stdin().is_terminal() {
        pipe::register(consts::SIGHUP, write.try_clone()?)?;
    } else {
        // Started over a connection that may break and come back: the grace period decides.
        signal_hook::flag::register(consts::SIGHUP, Arc::default())?;
    }
    Ok(())
}
