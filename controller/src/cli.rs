//! The command line of `ipctl`: ipcontroller's spellings, plus our own.

use std::{ffi::OsString, path::PathBuf, str::FromStr, time::Duration};

use clap::{ArgAction, Args, Parser, Subcommand, builder::PossibleValuesParser};

use ipbroker_protocol::{resources, size, time, usage};
use tracing::Level;

use crate::{
    launch::args::HostArgs,
    scheduler::core::{Builtin, Hwm},
    store::{Keep, SyncMode},
};

/// The examples below `ipctl --help`.
const EXAMPLES: &str = "\
Examples:
  ipctl -n 4                           a controller and four local engines, until Ctrl-C
  ipctl --scheme=lru --hwm=10          another scheme, ten tasks ahead on each engine
  ipctl --ip='*' --ports=10101-10120   all interfaces, fixed ports (CURVE is on off loopback)
  ipctl --hosts a:4,b:4 --tunnel       eight engines on two hosts, everything through SSH
  ipctl --engines slurm -n 64 -- --time=8:00:00      sixty-four as a job of Slurm
  ipctl -n 4 --web                     the same, and a page to watch it
  ipctl --restore -n 4                 take up the work of a controller that crashed
  ipctl connection-string              what to paste on a host that shares no files with this one

Every option may also be written the way ipcontroller takes it, e.g. --TaskScheduler.hwm=10.";

/// The controller of an ipbroker cluster: a drop-in for ipcontroller.
#[derive(Debug, Clone, Parser)]
#[command(name = "ipctl", version, after_help = EXAMPLES, args_override_self = true, subcommand_negates_reqs = true, max_term_width = 100)]
pub(crate) struct Cli {
    /// What to do instead of running a controller.
    #[command(subcommand)]
    pub command: Option<Action>,

    /// Which cluster.
    #[command(flatten)]
    pub cluster: ClusterArgs,

    /// Engines in all, counting those that come back with --restore: local ones, or shared out over --hosts by cores
    #[arg(short = 'n', long = "n", value_name = "N", help_heading = "Engines", value_parser = clap::value_parser!(u32).range(..=65_535))]
    pub engines: Option<u32>,

    /// What tasks may ask for of this host, for its local engines: NAME=4, NAME=16GB or NAME=[a,b,c] (may be repeated; cpus,
    /// gpus and memory are found by themselves)
    #[arg(long = "resource", value_name = "NAME=AMOUNT", value_parser = resource, help_heading = "Engines", action = clap::ArgAction::Append)]
    pub resources: Vec<String>,

    /// Local engines run a task that asks for cpus on just the cores that it is granted
    #[arg(long, help_heading = "Engines")]
    pub pin: bool,

    /// Engines on other hosts.
    #[command(flatten)]
    pub hosts: HostArgs,

    /// Where the controller listens.
    #[command(flatten)]
    pub network: NetworkArgs,

    /// How tasks are scheduled and kept.
    #[command(flatten)]
    pub tasks: TaskArgs,

    /// The page and metrics.
    #[command(flatten)]
    pub web: WebArgs,

    /// What is logged, and where to.
    #[command(flatten)]
    pub logging: LogArgs,

    /// End when standard input is closed
    #[arg(long, hide = true)]
    pub exit_with_parent: bool,
}

/// The argument of `--resource`, which goes on to the engines as it is.
fn resource(text: &str) -> Result<String, String> {
    resources::parse_pool(text).map(|_| text.to_owned())
}

/// What `ipctl` can do besides running.
#[derive(Debug, Clone, Subcommand)]
pub(crate) enum Action {
    /// Print what to paste on another host to start engines there, keys included
    #[command(after_help = "Example:\n  ipctl connection-string | ssh host sh")]
    ConnectionString,
    /// Print a completion script for a shell
    #[command(
        after_help = "Example:\n  ipctl completions bash > ~/.local/share/bash-completion/completions/ipctl"
    )]
    Completions {
        /// Which shell
        shell: clap_complete::Shell,
    },
    /// Write the man pages into a directory
    #[command(after_help = "Example:\n  ipctl man ~/.local/share/man/man1 && man ipctl")]
    Man {
        /// The directory; made if missing
        dir: PathBuf,
    },
}

/// Which profile and which of its clusters.
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "Cluster")]
pub(crate) struct ClusterArgs {
    /// Profile: $IPYTHONDIR/profile_NAME, made if missing
    #[arg(long, global = true, value_name = "NAME")]
    pub profile: Option<String>,
    /// Profile directory, wherever it is [env: IPP_PROFILE_DIR]
    #[arg(long, global = true, value_name = "DIR")]
    pub profile_dir: Option<PathBuf>,
    /// Name of the cluster, for several in one profile [env: IPP_CLUSTER_ID]
    #[arg(long, global = true, value_name = "ID")]
    pub cluster_id: Option<String>,
}

/// Sockets and connection files.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Network")]
pub(crate) struct NetworkArgs {
    /// Address to listen on; `*` for all interfaces
    #[arg(long, value_name = "IP", default_value = "127.0.0.1")]
    pub ip: String,
    /// Port of the hub's registration socket
    #[arg(long, value_name = "PORT")]
    pub port: Option<u16>,
    /// Ports to use, in this order, e.g. 10101-10120,10130; then any
    #[arg(long, value_name = "PORTS", value_parser = Ports::from_str)]
    pub ports: Option<Ports>,
    /// Name or address of this host as others see it
    #[arg(long, value_name = "HOST")]
    pub location: Option<String>,
    /// SSH server through which clients connect ([user@]host[:port])
    #[arg(
        long,
        value_name = "SERVER",
        default_value = "",
        hide_default_value = true
    )]
    pub ssh: String,
    /// SSH server through which engines connect
    #[arg(
        long,
        value_name = "SERVER",
        default_value = "",
        hide_default_value = true
    )]
    pub enginessh: String,
    /// Keep the connection files at the end, and use those that are there: same ports, same key
    #[arg(long)]
    pub reuse: bool,
    /// Take up what an earlier controller left: its connection files, engines and unfinished tasks
    #[arg(long)]
    pub restore: bool,
    /// Encrypt and authenticate with CURVE [env: IPP_ENABLE_CURVE] [default: on when --ip is not loopback]
    #[arg(long, overrides_with = "no_curve")]
    pub curve: bool,
    /// No CURVE even when --ip is not loopback
    #[arg(long, overrides_with = "curve")]
    pub no_curve: bool,
    /// Key that signs messages [env: IPP_SESSION_KEY] [default: a new one]
    #[arg(long, hide = true, value_name = "KEY")]
    pub session_key: Option<String>,
    /// How messages are packed [default: msgpack, or json when ipp.Cluster starts us]
    #[arg(long, value_name = "PACKER", value_parser = ["msgpack", "json"])]
    pub packer: Option<String>,
    /// The largest message, its frames together: 64M, 2G
    #[arg(long, value_name = "SIZE", default_value = "2G", value_parser = max_message)]
    pub max_message: u64,
    /// Period of the heartbeat in ms
    #[arg(long, value_name = "MS", default_value_t = 3000, value_parser = clap::value_parser!(u64).range(10..))]
    pub ping: u64,
    /// Heartbeats in a row that an engine may miss
    #[arg(long, value_name = "N", default_value_t = 10)]
    pub misses: u32,
    /// Without a sign of life for so long, a client counts as gone (peers' clients give none)
    #[arg(long, value_name = "TIME", default_value = "15s", value_parser = time::duration)]
    pub lease: Duration,
}

fn schemes() -> impl Iterator<Item = String> {
    let scheduled = Builtin::ALL.iter().map(Builtin::to_string);
    scheduled.chain(["pure".to_owned()])
}

/// Scheduling and history.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Tasks")]
pub(crate) struct TaskArgs {
    /// How an engine is chosen
    #[arg(long, value_name = "SCHEME", default_value = "leastload",
          value_parser = PossibleValuesParser::new(schemes()))]
    pub scheme: String,
    /// Tasks an engine is given ahead: a number (0: no limit) or auto
    #[arg(long, value_name = "N", default_value = "auto", value_parser = Hwm::from_str)]
    pub hwm: Hwm,
    /// Keep no history
    #[arg(long, overrides_with_all = ["dictdb", "sqlitedb"])]
    pub nodb: bool,
    /// Keep a bounded history in memory: the last 10,000 tasks
    #[arg(long, overrides_with_all = ["nodb", "sqlitedb"])]
    pub dictdb: bool,
    /// Keep the history in the profile directory (the default)
    #[arg(long, overrides_with_all = ["nodb", "dictdb"])]
    pub sqlitedb: bool,
    /// How long, and how much of, finished tasks stay in the history: 7d, 10GB, or both (7d,10GB)
    #[arg(long, value_name = "AGE,SIZE", default_value = "all", value_parser = Keep::from_str)]
    pub keep: Keep,
    /// What survives a power failure: none, ack (what was acknowledged), full (also what was started and how it ended)
    #[arg(long, value_name = "MODE", default_value = "ack", value_parser = SyncMode::from_str)]
    pub sync: SyncMode,
}

/// The page and metrics.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Watching")]
pub(crate) struct WebArgs {
    /// Serve a page, /events and /metrics on 127.0.0.1, and print the page's address with its token [default port: any]
    #[arg(
        long,
        value_name = "PORT",
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "0"
    )]
    pub web: Option<u16>,
    /// The page shows only: nothing can be aborted or submitted again there
    #[arg(long, requires = "web")]
    pub web_readonly: bool,
}

/// Logging.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Logging")]
pub(crate) struct LogArgs {
    /// Log everything (--log-level=debug)
    #[arg(long)]
    pub debug: bool,
    /// A name (debug, info, warning, error, critical) or number (10, 20, 30, 40, 50)
    #[arg(long, value_name = "LEVEL", value_parser = usage::level, global = true)]
    pub log_level: Option<Level>,
    /// Log to a file in the profile's log directory
    #[arg(long, action = ArgAction::SetTrue)]
    pub log_to_file: bool,
}

impl LogArgs {
    /// What is logged, if that was said.
    pub(crate) fn level(&self) -> Option<Level> {
        self.log_level.or(self.debug.then_some(Level::DEBUG))
    }
}

/// Reads a command line, without the program's name.
pub(crate) fn parse(args: &[OsString]) -> Result<Cli, clap::Error> {
    Cli::try_parse_from(std::iter::once(&OsString::from("ipctl")).chain(args))
}

/// `--max-message`.
fn max_message(text: &str) -> Result<u64, String> {
    size::parse(text)
        .filter(|size| (1 << 20..1 << 60).contains(size))
        .ok_or_else(|| "a size from 1M, like 64M or 2G".into())
}

/// `--ports`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Ports(pub Vec<u16>);

impl FromStr for Ports {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let bad = || "ports and ranges with commas between, like 10101-10120,10130".to_owned();
        let port = |text: &str| {
            text.trim()
                .parse::<u16>()
                .ok()
                .filter(|port| *port > 0)
                .ok_or_else(bad)
        };
        let mut ports = Vec::new();
        for part in text.split(',') {
            match part.split_once('-') {
                Some((low, high)) => {
                    let (low, high) = (port(low)?, port(high)?);
                    if low > high {
                        return Err(bad());
                    }
                    ports.extend(low..=high);
                }
                None => ports.push(port(part)?),
            }
        }
        Ok(Self(ports))
    }
}

/// How a trait of the peer's is spelled here.
enum Spelling {
    /// `--NAME=VALUE`
    Value(&'static str),
    /// `--NAME` when true; the other, if any, when false.
    Switch(&'static str, Option<&'static str>),
    /// One of the three databases.
    Database,
}

/// Options of ours for traits of the peer's, by class and trait.
fn spelling(class: &str, name: &str) -> Option<Spelling> {
    use Spelling::{Database, Switch, Value};
    Some(match (class, name) {
        ("IPController" | "HubFactory" | "IPControllerApp", name) => match name {
            "ip" => Value("ip"),
            "regport" => Value("port"),
            "ports" => Value("ports"),
            "location" => Value("location"),
            "ssh_server" => Value("ssh"),
            "engine_ssh_server" => Value("enginessh"),
            "reuse_files" => Switch("reuse", None),
            "restore_engines" => Switch("restore", None),
            "enable_curve" => Switch("curve", Some("no-curve")),
            "db_class" => Database,
            name => return common(name),
        },
        ("TaskScheduler", "scheme_name") => Value("scheme"),
        ("TaskScheduler", "hwm") => Value("hwm"),
        ("HeartMonitor", "period") => Value("ping"),
        ("HeartMonitor", "max_heartmonitor_misses") => Value("misses"),
        ("Session", "key") => Value("session-key"),
        ("Session", "packer" | "unpacker") => Value("packer"),
        ("ProfileDir", "location") => Value("profile-dir"),
        ("BaseParallelApplication" | "BaseIPythonApplication" | "Application", name) => {
            return common(name);
        }
        _ => return None,
    })
}

fn common(name: &str) -> Option<Spelling> {
    Some(match name {
        "cluster_id" => Spelling::Value("cluster-id"),
        "profile" => Spelling::Value("profile"),
        "log_level" => Spelling::Value("log-level"),
        "log_to_file" => Spelling::Switch("log-to-file", None),
        _ => return None,
    })
}

/// Our option for `Class.trait = value`; `Ok(None)` when the value asks for nothing.
/// `Err(None)`: not a trait that `ipctl` has; `Err(Some(text))`: its value makes no sense.
pub(crate) fn translate(
    class: &str,
    name: &str,
    value: &str,
) -> Result<Option<String>, Option<String>> {
    match spelling(class, name).ok_or(None)? {
        Spelling::Value(option) => Ok(Some(format!("--{option}={value}"))),
        Spelling::Switch(on, off) => match value.to_ascii_lowercase().as_str() {
            "true" | "1" => Ok(Some(format!("--{on}"))),
            "false" | "0" => Ok(off.map(|off| format!("--{off}"))),
            _ => Err(Some(format!(
                "`{class}.{name}` is True or False, not `{value}`"
            ))),
        },
        Spelling::Database => match value
            .rsplit('.')
            .next()
            .unwrap_or(value)
            .to_ascii_lowercase()
            .as_str()
        {
            "nodb" => Ok(Some("--nodb".into())),
            "dictdb" => Ok(Some("--dictdb".into())),
            "sqlitedb" => Ok(Some("--sqlitedb".into())),
            _ => Err(Some(format!(
                "ipctl has no database `{value}`: NoDB, DictDB or SQLiteDB"
            ))),
        },
    }
}

/// Rewrites `--Class.trait=value` and `--Class.trait value` into our options.
pub(crate) fn expand(args: impl IntoIterator<Item = OsString>) -> Result<Vec<OsString>, String> {
    let mut expanded = Vec::new();
    let mut args = args.into_iter().peekable();
    while let Some(arg) = args.next() {
        if arg == "--" {
            expanded.push(arg);
            expanded.extend(args);
            break;
        }
        let text = arg.to_string_lossy();
        let Some((class, rest)) = text
            .strip_prefix("--")
            .and_then(|option| option.split_once('.'))
            .filter(|(class, _)| {
                class.starts_with(|first: char| first.is_ascii_uppercase()) && !class.contains('=')
            })
        else {
            // The peer's switches may be given a value.
            match text
                .strip_prefix("--log-to-file=")
                .map(str::to_ascii_lowercase)
                .as_deref()
            {
                Some("true" | "1") => expanded.push("--log-to-file".into()),
                Some("false" | "0") => {}
                _ => expanded.push(arg),
            }
            continue;
        };
        let (name, value) = match rest.split_once('=') {
            Some((name, value)) => (name.to_owned(), value.to_owned()),
            None => {
                let value = args.next_if(|next| !next.to_string_lossy().starts_with("--"));
                let value = value
                    .ok_or_else(|| format!("option `{text}` needs a value: `{text}=VALUE`"))?;
                (rest.to_owned(), value.to_string_lossy().into_owned())
            }
        };
        match translate(class, &name, &value) {
            Ok(Some(option)) => expanded.push(option.into()),
            Ok(None) => {}
            Err(None) => {
                return Err(format!(
                    "ipctl has no option `--{class}.{name}`: see `ipctl --help` for those it has"
                ));
            }
            Err(Some(why)) => return Err(why),
        }
    }
    Ok(expanded)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(args: &[&str]) -> Result<Cli, String> {
        let args = expand(args.iter().map(OsString::from))?;
        Cli::try_parse_from(std::iter::once(OsString::from("ipctl")).chain(args))
            .map_err(|error| error.to_string())
    }

    #[test]
    fn the_command_line_is_sound() {
        use clap::CommandFactory;
        Cli::command().debug_assert();
    }

    #[test]
    fn ipcontrollers_spellings_are_taken() {
        let cli = parse(&[
            "--ip=*",
            "--hwm",
            "3",
            "--ping=250",
            "--dictdb",
            "--log-level=10",
            "--profile=iptest",
        ])
        .unwrap();
        assert_eq!(
            (cli.network.ip.as_str(), cli.tasks.hwm, cli.network.ping),
            ("*", Hwm::Fixed(3), 250)
        );
        assert!(cli.tasks.dictdb && cli.cluster.profile.as_deref() == Some("iptest"));
        let cli = parse(&[
            "--TaskScheduler.scheme_name=lru",
            "--HeartMonitor.period",
            "200",
            "--IPController.db_class=NoDB",
            "--IPController.reuse_files=True",
            "--IPController.restore_engines=False",
            "--IPController.ports=1000-1002,2000",
        ])
        .unwrap();
        assert_eq!((cli.tasks.scheme.as_str(), cli.network.ping), ("lru", 200));
        assert!(cli.tasks.nodb && cli.network.reuse && !cli.network.restore);
        assert_eq!(cli.network.ports, Some(Ports(vec![1000, 1001, 1002, 2000])));
    }

    #[test]
    fn the_last_word_counts() {
        let cli = parse(&[
            "--dictdb",
            "--nodb",
            "--curve",
            "--no-curve",
            "--ping=1000",
            "--ping=20",
        ])
        .unwrap();
        assert!(cli.tasks.nodb && !cli.tasks.dictdb && cli.network.no_curve && !cli.network.curve);
        assert_eq!(cli.network.ping, 20);
    }

    #[test]
    fn anything_else_is_refused_by_name() {
        for (args, name) in [
            (
                &["--IPController.use_threads=True"][..],
                "--IPController.use_threads",
            ),
            (&["--Foo.bar=1"], "--Foo.bar"),
            (&["--mongodb"], "--mongodb"),
            (&["--scheme=fastest"], "fastest"),
            (&["--IPController.db_class=MongoDB"], "MongoDB"),
            (&["--hwm=lots"], "lots"),
            (&["--log-level=loud"], "loud"),
            (&["--ports=5-1"], "5-1"),
            (&["-n", "5000000"], "5000000"),
        ] {
            let error = parse(args).unwrap_err();
            assert!(error.contains(name), "{error}");
        }
    }

    #[test]
    fn cluster_options_go_before_or_after_a_subcommand() {
        let cli = parse(&["connection-string", "--profile", "x", "--cluster-id=y"]).unwrap();
        assert!(matches!(cli.command, Some(Action::ConnectionString)));
        assert_eq!(
            (
                cli.cluster.profile.as_deref(),
                cli.cluster.cluster_id.as_deref()
            ),
            (Some("x"), Some("y"))
        );
        assert!(parse(&["--profile", "x", "connection-string"]).is_ok());
    }
}
