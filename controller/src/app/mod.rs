//! The program: from a command line to a controller that runs, and back to nothing.

mod bind;
mod files;
mod log;
mod settings;
mod threads;

use std::{
    ffi::OsString,
    fs,
    io::{self, Read, Write},
    time::{Duration, Instant},
};

use clap::CommandFactory;
use crossbeam_channel::{Receiver, Sender, unbounded};
use ipbroker_protocol::{
    connection::{self, ConnectionError, EngineConnection},
    profile::{Profile, ProfileError, Role},
    shell::quote,
    socket, spawn,
};

use self::settings::Settings;
use crate::{
    cli::{self, Action, Cli},
    hub::Notice,
    launch::local::{Local, LocalEvent},
    scheduler::core::Scheme,
    store::{Lock, StoreError},
};

/// How long engines may take to end when the controller does.
const GRACE: Duration = Duration::from_secs(5);

/// Descriptors for a few hundred engines and clients; more are asked of the system anyway.
const DESCRIPTORS: u64 = 1024;

/// Why the controller cannot run. Its text is one line for the user.
#[derive(Debug, thiserror::Error)]
pub enum AppError {
    /// The command line.
    #[error("{0}")]
    Usage(String),
    /// clap's own errors, help and version; already laid out.
    #[error("{0}")]
    Clap(#[from] clap::Error),
    /// The profile directory.
    #[error(transparent)]
    Profile(#[from] ProfileError),
    /// A connection file.
    #[error(transparent)]
    Connection(#[from] ConnectionError),
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The CURVE keys.
    #[error("{0}")]
    Curve(String),
    /// A port.
    #[error("cannot listen on {url}: {reason}; choose other --ports, --port or --ip{hint}")]
    Bind {
        /// Which address.
        url: String,
        /// The system's word.
        reason: String,
        /// What else might be wrong.
        hint: &'static str,
    },
    /// Sockets, threads, descriptors.
    #[error("{what}: {source}")]
    System {
        /// What was tried.
        what: String,
        /// The system's word.
        source: io::Error,
    },
    /// Engines cannot be started.
    #[error("{0}")]
    Launch(String),
}

impl AppError {
    /// For `map_err`: what was tried.
    fn system(what: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let what = what.into();
        move |source| AppError::System { what, source }
    }
}

/// What the main thread waits for.
#[derive(Debug)]
pub(crate) enum MainEvent {
    /// A signal, standard input at its end, or a client's request.
    Stop(String),
    /// An engine came or went.
    Engine(Notice),
    /// A local engine process.
    Local(LocalEvent),
    /// No host could start an engine, and why.
    NoHost(String),
}

/// Runs the program with these arguments (without its name).
///
/// # Errors
/// [`AppError`], to be shown to the user.
pub fn main(args: Vec<OsString>) -> Result<(), AppError> {
    start(args, None)
}

/// Runs the program with these arguments (without its name) and a scheme of the caller's own, whatever `--scheme` says.
///
/// # Errors
/// [`AppError`], to be shown to the user.
pub fn with_scheme(args: Vec<OsString>, scheme: Box<dyn Scheme>) -> Result<(), AppError> {
    start(args, Some(scheme))
}

fn start(args: Vec<OsString>, own: Option<Box<dyn Scheme>>) -> Result<(), AppError> {
    let args = cli::expand(args).map_err(AppError::Usage)?;
    let cli = cli::parse(&args)?;
    let cluster = &cli.cluster;
    match &cli.command {
        Some(Action::Completions { shell }) => {
            // Into memory first: what writes it would panic where nobody reads.
            let mut script = Vec::new();
            clap_complete::generate(*shell, &mut Cli::command(), "ipctl", &mut script);
            return io::stdout()
                .write_all(&script)
                .map_err(AppError::system("cannot write the completions"));
        }
        Some(Action::Man { dir }) => {
            return fs::create_dir_all(dir)
                .and_then(|()| clap_mangen::generate_to(Cli::command(), dir))
                .map_err(AppError::system(format!(
                    "cannot write man pages into {}",
                    dir.display()
                )));
        }
        Some(Action::ConnectionString) => {
            let profile = find_profile(cluster)?;
            return connection_string(&profile);
        }
        None => {}
    }
    let profile = find_profile(cluster)?;
    profile.create()?;
    // Before keys and files of another one that runs could be replaced. A store has a lock of its own, which earlier
    // versions know.
    let lock = format!("pid/ipctl{}.lock", profile.cluster_id());
    let _lock = Lock::take(&profile.dir().join(lock))?;
    let (mut cli, skipped) = settings::with_config(&profile, &args, cli)?;
    log::init(&cli.logging, &profile)?;
    for line in skipped {
        tracing::warn!("{line}");
    }
    if let Some(own) = &own {
        cli.tasks.scheme = own.name().to_owned();
    }
    run(Settings::new(cli, profile)?, own)
}

fn find_profile(cluster: &cli::ClusterArgs) -> Result<Profile, ProfileError> {
    Profile::find(
        cluster.profile.as_deref(),
        cluster.profile_dir.as_deref(),
        cluster.cluster_id.as_deref(),
    )
}

/// Runs a controller until it is told to stop.
fn run(settings: Settings, own: Option<Box<dyn Scheme>>) -> Result<(), AppError> {
    let begun = Instant::now();
    match socket::raise_descriptors(DESCRIPTORS) {
        Ok(limit) => tracing::debug!(limit, "open descriptors"),
        Err(error) => tracing::warn!("{error}"),
    }
    let (events, waiting) = unbounded();
    // Before anything is started, so that a signal always finds somebody who stops it.
    catch_signals(&events)?;
    if settings.exit_with_parent {
        watch_stdin(&events)?;
    }
    let controller = threads::start(&settings, own, &events)?;
    files::write(&settings, &controller.ports)?;
    tracing::info!(
        scheme = settings.tasks.scheme,
        packer = settings.packer.name(),
        curve = settings.curve.is_some(),
        ms = begun.elapsed().as_millis() as u64,
        "controller running, connection files in {}",
        settings.profile.security_dir().display()
    );
    let result = serve(&settings, &controller, &events, &waiting);
    controller.stop(!settings.network.reuse);
    files::remove(&settings);
    tracing::info!("controller stopped");
    result
}

/// Starts engines, then waits for the end.
fn serve(
    settings: &Settings,
    controller: &threads::Controller,
    events: &Sender<MainEvent>,
    waiting: &Receiver<MainEvent>,
) -> Result<(), AppError> {
    let tell = events.clone();
    let mut local = Local::new(&settings.local_plan(), move |event| {
        let _ = tell.send(MainEvent::Local(event));
    });
    if settings.local_engines > 0 {
        local
            .start(settings.local_engines, settings.network.restore)
            .map_err(AppError::Launch)?;
    }
    let mut remote = settings.start_remote(controller, events)?;
    let mut hopeless = None;
    let mut engines = 0u32;
    let why = loop {
        match waiting.recv() {
            Ok(MainEvent::Stop(why)) => break why,
            Ok(MainEvent::Local(event)) => {
                if let Err(why) = local.event(event) {
                    hopeless = Some(why);
                    break "its engines cannot run".to_owned();
                }
            }
            Ok(MainEvent::NoHost(why)) => {
                if engines == 0 {
                    hopeless = Some(why);
                    break "it has no engines".to_owned();
                }
            }
            Ok(MainEvent::Engine(notice)) => match notice {
                Notice::Joined(engine) => {
                    engines += 1;
                    tracing::debug!(id = engine.id, pid = engine.pid, "joined");
                    local.joined(engine.pid);
                    if let Some(remote) = &mut remote {
                        remote.joined();
                    }
                }
                Notice::Left(engine) => {
                    engines = engines.saturating_sub(1);
                    tracing::debug!(id = engine.id, pid = engine.pid, "left");
                }
                Notice::Shutdown => break "a client asked for it".to_owned(),
                Notice::Wanted(more) => {
                    if let Err(why) = local.start(more, false) {
                        tracing::error!("{why}");
                    }
                }
            },
            Err(_) => break "its own threads are gone".to_owned(),
        }
    };
    tracing::info!("stopping: {why}");
    if let Some(remote) = &mut remote {
        remote.stop(GRACE);
    }
    local.stop(GRACE, || {
        matches!(waiting.try_recv(), Ok(MainEvent::Stop(_)))
    });
    hopeless.map_or(Ok(()), |why| Err(AppError::Launch(why)))
}

fn catch_signals(events: &Sender<MainEvent>) -> Result<(), AppError> {
    use signal_hook::{
        consts::{SIGHUP, SIGINT, SIGTERM},
        iterator::Signals,
    };
    let system = || AppError::system("cannot catch signals");
    let mut signals = Signals::new([SIGINT, SIGTERM, SIGHUP]).map_err(system())?;
    let events = events.clone();
    spawn("signals", move || {
        for (count, signal) in signals.forever().enumerate() {
            let name = signal_hook::low_level::signal_name(signal).unwrap_or("a signal");
            let _ = events.send(MainEvent::Stop(name.to_owned()));
            // Whoever presses Ctrl-C over and over does not want to wait.
            if count >= 3 {
                std::process::exit(130);
            }
        }
    })
    .map_err(system())?;
    Ok(())
}

fn watch_stdin(events: &Sender<MainEvent>) -> Result<(), AppError> {
    let events = events.clone();
    spawn("stdin", move || {
        let mut sink = [0; 256];
        let mut stdin = io::stdin().lock();
        while matches!(stdin.read(&mut sink), Ok(1..)) {}
        let _ = events.send(MainEvent::Stop("standard input was closed".into()));
    })
    .map_err(AppError::system("cannot watch standard input"))?;
    Ok(())
}

/// Prints what starts an engine on a host that shares no files with this one.
fn connection_string(profile: &Profile) -> Result<(), AppError> {
    let file = profile.connection_file(Role::Engine);
    if !file.exists() {
        return Err(AppError::Usage(format!(
            "no connection file {}: is a controller running for this profile? Start one with `ipctl`",
            file.display()
        )));
    }
    let mut engine: EngineConnection = connection::load(&file)?;
    let host = engine
        .common
        .interface
        .strip_prefix("tcp://")
        .unwrap_or_default()
        .to_owned();
    if settings::is_loopback(&host) && engine.common.ssh.is_empty() {
        eprintln!(
            "ipctl: this controller listens on {host} only: engines elsewhere need `ipctl --ip='*'`, or a tunnel \
             (`ipengine --ssh user@this-host`)"
        );
    } else if matches!(host.as_str(), "*" | "0.0.0.0")
        && socket::is_this_host(&engine.common.location)
        && let Some(address) = files::outward_address()
    {
        // The host's name may not resolve elsewhere.
        engine.common.location = address;
    }
    let json =
        serde_json::to_string(&engine).map_err(|error| AppError::Usage(error.to_string()))?;
    writeln!(
        io::stdout(),
        "IPP_CONNECTION_INFO={} ipengine",
        quote(&json)
    )
    .map_err(AppError::system("cannot write to standard output"))
}
