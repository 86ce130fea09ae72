//! The command line of `ipengine`.

use std::{
    ffi::OsString,
    fs,
    io::{self, Write as _},
    path::PathBuf,
    process::ExitCode,
    time::Duration,
};

use clap::{CommandFactory, Parser, builder::NonEmptyStringValueParser};
use clap_complete::Shell;
use ipbroker_engine::{
    Engine, EngineError, allocated,
    protocol::{
        profile::{Profile, ProfileError},
        resources::{self, Pool},
        socket, time, usage,
    },
};
use rustix::process::Signal;
use tracing::Level;

use crate::gateway::{self, WayError};

const EXAMPLES: &str = "\
Examples:
  ipengine                                  one engine for the controller of the default profile
  ipengine -n 8 --tags rack7,gpu            eight engines that tasks may choose by tag
  ipengine --file ipcontroller-engine.json  the controller that this file describes
  ipengine --ssh me@front.example.org       a controller behind SSH, of my default profile there";

/// Runs tasks of ipbroker's controller: N engines in one process.
#[derive(Debug, Parser)]
#[command(name = "ipengine", version, after_help = EXAMPLES)]
pub(crate) struct Options {
    /// How many engines; each runs one task at a time
    #[arg(short = 'n', long = "engines", value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..))]
    engines: u16,
    /// Name of the profile: $IPYTHONDIR/profile_NAME
    #[arg(long, value_name = "NAME")]
    pub(crate) profile: Option<String>,
    /// The profile directory itself
    #[arg(long, value_name = "DIR")]
    pub(crate) profile_dir: Option<PathBuf>,
    /// Which of several clusters in the profile
    #[arg(long, value_name = "ID")]
    pub(crate) cluster_id: Option<String>,
    /// The controller's connection file, ipcontroller-engine.json (`-`: standard input); else $IPP_CONNECTION_INFO may hold
    /// its text
    #[arg(long, value_name = "FILE")]
    pub(crate) file: Option<PathBuf>,
    /// Reach the controller through this SSH server, and read the connection file there
    #[arg(long, value_name = "[USER@]HOST")]
    pub(crate) ssh: Option<String>,
    /// Trust the key of an SSH server seen for the first time
    #[arg(long)]
    pub(crate) accept_new: bool,
    /// How long to wait for the connection file to appear (90s, 10m, 1h)
    #[arg(long, value_name = "TIME", default_value = "10s", value_parser = time::duration)]
    wait: Duration,
    /// How long the controller may be away before the engines leave
    #[arg(long, value_name = "TIME", default_value = "60s", value_parser = time::duration)]
    grace: Duration,
    /// How long the engines stay without a task [default: for ever]
    #[arg(long, value_name = "TIME", value_parser = time::duration)]
    idle: Option<Duration>,
    /// How long the engines may stay: a job whose `time` is longer than what is left goes elsewhere [default: what
    /// Slurm or PBS says of its allocation, else no limit]
    #[arg(long, value_name = "TIME", value_parser = time::duration)]
    time_limit: Option<Duration>,
    /// Tags by which tasks choose engines
    #[arg(long, value_name = "TAG,…", value_delimiter = ',', value_parser = NonEmptyStringValueParser::new())]
    tags: Vec<String>,
    /// Further names by which jobs may name this host
    #[arg(long, value_name = "NAME,…", value_delimiter = ',', value_parser = NonEmptyStringValueParser::new())]
    alias: Vec<String>,
    /// What tasks may ask for of this host: NAME=4, NAME=16GB or NAME=[a,b,c] (may be repeated; cpus, gpus and memory are
    /// found by themselves)
    #[arg(long, value_name = "NAME=AMOUNT", value_parser = resources::parse_pool)]
    resource: Vec<(String, Pool)>,
    /// Run a task that asks for cpus on just the cores that it is granted
    #[arg(long)]
    pin: bool,
    /// The id that the first engine asks for
    #[arg(long, value_name = "ID")]
    id: Option<u32>,
    /// Where jobs without a directory run
    #[arg(long, value_name = "DIR")]
    work_dir: Option<PathBuf>,
    /// Log everything (--log-level=debug)
    #[arg(long)]
    debug: bool,
    /// A name (debug, info, warning, error, critical) or number (10, 20, 30, 40, 50)
    #[arg(long, value_name = "LEVEL", default_value = "info", value_parser = usage::level)]
    log_level: Level,
    /// Run Python calls too, with this interpreter (3.9 or later): one process an engine [default: $IPBROKER_PYTHON, python3]
    #[arg(long, value_name = "INTERPRETER", num_args = 0..=1, require_equals = true, default_missing_value = "")]
    python: Option<OsString>,
    /// Own a Jupyter kernel each and run what ipyparallel sends: the name of a kernelspec, or `ipyparallel`, its own kernel
    /// in the interpreter that --python names, else $IPBROKER_PYTHON or python3
    #[arg(long, value_name = "NAME")]
    kernel: Option<String>,
    /// How often a kernel that died is replaced before its engine leaves instead [default: always]
    #[arg(long, value_name = "N", requires = "kernel")]
    kernel_restarts: Option<u32>,
    /// Code for each kernel to run first
    #[arg(short = 'c', value_name = "CODE", requires = "kernel")]
    startup_command: Option<String>,
    /// A script for each kernel to run first
    #[arg(short = 's', value_name = "FILE", requires = "kernel")]
    startup_script: Option<String>,
    /// Print completions for a shell and end
    #[arg(long, value_name = "SHELL")]
    completions: Option<Shell>,
    /// Write the man page into a directory and end
    #[arg(long, value_name = "DIR")]
    man: Option<PathBuf>,
    /// End with the process that has started this one
    #[arg(long, hide = true)]
    exit_with_parent: bool,
}

impl Options {
    /// Whether a profile or a cluster is named.
    pub(crate) fn names_profile(&self) -> bool {
        self.profile.is_some() || self.profile_dir.is_some() || self.cluster_id.is_some()
    }

    pub(crate) fn profile(&self) -> Result<Profile, ProfileError> {
        Profile::find(
            self.profile.as_deref(),
            self.profile_dir.as_deref(),
            self.cluster_id.as_deref(),
        )
    }
}

/// `--completions` and `--man`.
fn about(options: &Options) -> Result<(), String> {
    if let Some(shell) = options.completions {
        // Into memory first: what writes it would panic where nobody reads.
        let mut script = Vec::new();
        clap_complete::generate(shell, &mut Options::command(), "ipengine", &mut script);
        io::stdout()
            .write_all(&script)
            .map_err(|error| format!("cannot write the completions: {error}"))?;
    }
    if let Some(dir) = &options.man {
        fs::create_dir_all(dir)
            .and_then(|()| clap_mangen::generate_to(Options::command(), dir))
            .map_err(|error| format!("cannot write man pages into {}: {error}", dir.display()))?;
    }
    Ok(())
}

pub(crate) fn main() -> ExitCode {
    let (traits, arguments): (Vec<_>, Vec<_>) = std::env::args().partition(|word| is_trait(word));
    let options = match Options::try_parse_from(arguments) {
        Ok(options) => options,
        Err(error) if !error.use_stderr() => {
            // --help, --version
            let _ = error.print();
            return ExitCode::SUCCESS;
        }
        Err(error) => {
            let line = usage::one_line(&error.render().to_string(), "ipengine");
            usage::complain("ipengine", line);
            return ExitCode::from(2);
        }
    };
    if options.completions.is_some() || options.man.is_some() {
        return match about(&options) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                usage::complain("ipengine", &error);
                ExitCode::FAILURE
            }
        };
    }
    tracing_subscriber::fmt()
        // Who logs to a connection or terminal that is gone must live on: the default is to panic.
        .log_internal_errors(false)
        .with_max_level(match options.debug {
            true => Level::DEBUG,
            false => options.log_level,
        })
        .with_writer(std::io::stderr)
        .with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr()))
        .with_target(false)
        .init();
    match run(options, traits) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            usage::complain("ipengine", &error);
            match error {
                RunError::Engine(EngineError::Hopeless(_)) => ExitCode::from(usage::HOPELESS),
                _ => ExitCode::FAILURE,
            }
        }
    }
}

/// Why the program ended.
#[derive(Debug, thiserror::Error)]
enum RunError {
    #[error(transparent)]
    Engine(#[from] EngineError),
    #[error(transparent)]
    Way(#[from] WayError),
    #[error("{0} is an option for a Jupyter kernel: say which with --kernel")]
    Trait(String),
}

/// Whether an argument sets one of the kernel's own options, as ipyparallel's engine takes them: `--InteractiveShell.colors=…`.
fn is_trait(word: &str) -> bool {
    let class = word
        .strip_prefix("--")
        .and_then(|word| word.split_once('.'))
        .map(|(class, _)| class);
    class.is_some_and(|class| {
        class.starts_with(|c: char| c.is_ascii_uppercase())
            && class.chars().all(char::is_alphanumeric)
    })
}

fn run(mut options: Options, traits: Vec<String>) -> Result<(), RunError> {
    if let (Some(first), None) = (traits.first(), &options.kernel) {
        return Err(RunError::Trait(first.clone()));
    }
    if options.exit_with_parent {
        let _ = rustix::process::set_parent_process_death_signal(Some(Signal::TERM));
    }
    let way = gateway::find(&options)?;
    if matches!(way, Some((_, Some(_)))) && options.alias.is_empty() {
        // Through a tunnel the controller is on loopback, but this host is not `localhost` to its clients.
        options.alias.push(socket::host_name());
    }
    let mut builder = Engine::builder();
    // Open for as long as the engines run.
    let mut _tunnel = None;
    if let Some((connection, forwards)) = way {
        builder = builder.connection(connection);
        _tunnel = forwards;
    } else if let Some(file) = &options.file {
        builder = builder.connection_file(file);
    } else if options.names_profile() {
        builder = builder.profile(options.profile().map_err(EngineError::from)?);
    }
    let startup = [
        ("-c", options.startup_command),
        ("-s", options.startup_script),
    ];
    let startup = startup
        .into_iter()
        .filter_map(|(name, value)| Some([name.to_owned(), value?]))
        .flatten();
    let kernel_options: Vec<String> = traits.into_iter().chain(startup).collect();
    builder = builder
        .engines(options.engines.into())
        .tags(options.tags)
        .kernel(
            options.kernel,
            interpreter(options.python.clone().unwrap_or_default()),
        )
        .kernel_options(kernel_options)
        .kernel_restarts(options.kernel_restarts.unwrap_or(u32::MAX))
        .python(options.python.map(interpreter))
        .host_aliases(options.alias)
        .first_id(options.id)
        .pin(options.pin)
        .grace(options.grace)
        .idle(options.idle)
        .time_limit(
            options
                .time_limit
                .or_else(|| allocated().map(Duration::from_secs_f64)),
        )
        .wait(options.wait);
    for (name, pool) in options.resource {
        builder = builder.resource(&name, pool);
    }
    if let Some(dir) = options.work_dir {
        builder = builder.work_dir(dir);
    }
    Ok(builder.run()?)
}

/// The interpreter that `--python` means.
fn interpreter(named: OsString) -> PathBuf {
    [Some(named), std::env::var_os("IPBROKER_PYTHON")]
        .into_iter()
        .flatten()
        .find(|name| !name.is_empty())
        .map_or_else(|| "python3".into(), PathBuf::from)
}
