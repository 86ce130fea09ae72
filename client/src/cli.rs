//! The command line.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use clap::builder::NonEmptyStringValueParser;
use clap::{Args, CommandFactory, FromArgMatches, Parser};
use ipbroker_client::job::{Limit, Placement, parse_size};
use ipbroker_client::protocol::resources::{self, Request};
#[cfg(feature = "ssh")]
use ipbroker_client::protocol::ssh::Settings;
use ipbroker_client::protocol::{time, usage};
use ipbroker_client::{Client, ClientBuilder};

use crate::commands::{self, Command};
use crate::failure::Failure;
use crate::inputs::SIGNS;

/// Run commands and functions on the engines of a cluster.
#[derive(Debug, Parser)]
#[command(
    name = "ipclient",
    version,
    propagate_version = true,
    max_term_width = 100
)]
#[command(
    after_help = "Example:\n  ipctl -n 4 &\n  ipclient map 'gzip -k {}' ::: *.txt\n  ipclient stats"
)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) cluster: ClusterArgs,
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// Which cluster.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Cluster")]
pub(crate) struct ClusterArgs {
    /// Name of the profile
    #[arg(short, long, global = true, value_name = "NAME")]
    pub(crate) profile: Option<String>,
    /// Directory of the profile [default: $IPYTHONDIR/profile_NAME]
    #[arg(long, global = true, value_name = "DIR")]
    pub(crate) profile_dir: Option<PathBuf>,
    /// Which of several clusters of the profile
    #[arg(long, global = true, value_name = "ID")]
    pub(crate) cluster_id: Option<String>,
    /// The connection file itself, ipcontroller-client.json
    #[arg(
        long = "file",
        global = true,
        value_name = "CONNECTION.json",
        id = "connection_file"
    )]
    pub(crate) file: Option<PathBuf>,
    /// Reach the controller through this SSH server, and read the connection file there
    #[arg(long, global = true, value_name = "[USER@]HOST")]
    pub(crate) ssh: Option<String>,
    /// Trust the key of an SSH server seen for the first time
    #[arg(long, global = true)]
    pub(crate) accept_new: bool,
    /// How long to wait for the controller's first answer (90s, 10m)
    #[arg(long, global = true, value_name = "TIME", default_value = "10s", value_parser = time::duration)]
    pub(crate) connect_timeout: Duration,
}

impl ClusterArgs {
    pub(crate) fn connect(&self) -> Result<Client, Failure> {
        Ok(self.configured()?.connect()?)
    }

    /// With the user's configuration of SSH, where that is needed.
    pub(crate) fn configured(&self) -> Result<ClientBuilder, Failure> {
        let mut builder = Client::builder().timeout(self.connect_timeout);
        if let Some(profile) = &self.profile {
            builder = builder.profile(profile);
        }
        if let Some(dir) = &self.profile_dir {
            builder = builder.profile_dir(dir);
        }
        if let Some(id) = &self.cluster_id {
            builder = builder.cluster_id(id);
        }
        if let Some(file) = &self.file {
            builder = builder.file(file);
        }
        if let Some(server) = &self.ssh {
            builder = builder.ssh(server);
        }
        #[cfg(feature = "ssh")]
        let builder = if self.ssh.is_some() || self.accept_new {
            let settings = Settings::load(None).map_err(ipbroker_client::Error::from)?;
            builder.ssh_settings(settings.accept_new(self.accept_new))
        } else {
            builder
        };
        Ok(builder)
    }
}

/// What holds for all jobs of a call, where the job itself does not say otherwise.
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "Jobs")]
pub(crate) struct JobArgs {
    /// Start a failed job again, up to N times
    #[arg(long, value_name = "N")]
    pub(crate) retries: Option<u32>,
    /// Wait before the first retry (90s, 15m); twice as long before each further one
    #[arg(long, value_name = "TIME", value_parser = time::duration)]
    pub(crate) retry_delay: Option<Duration>,
    /// Start a job again whose engine was lost, up to N times, without using up retries
    #[arg(long, value_name = "N")]
    pub(crate) max_crashes: Option<u32>,
    /// How long a job may wait before it fails with TaskTimeout (90s, 15m, 2h)
    #[arg(long, value_name = "TIME", value_parser = time::duration)]
    pub(crate) timeout: Option<Duration>,
    /// Higher runs earlier, among one client's jobs
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    pub(crate) priority: Option<i32>,
    /// Only engines with this tag (may be repeated)
    #[arg(long, value_name = "TAG", value_parser = NonEmptyStringValueParser::new())]
    pub(crate) tags: Vec<String>,
    /// Only engines on this host (may be repeated: any of them)
    #[arg(long = "host", value_name = "HOST", value_parser = NonEmptyStringValueParser::new())]
    pub(crate) hosts: Vec<String>,
    /// Cpus that a job needs (1 if nothing is said)
    #[arg(long, value_name = "N", value_parser = |text: &str| units(resources::CPUS, text))]
    pub(crate) cpus: Option<f64>,
    /// GPUs that a job needs; it sees them in CUDA_VISIBLE_DEVICES
    #[arg(long, value_name = "N", value_parser = |text: &str| units(resources::GPUS, text))]
    pub(crate) gpus: Option<f64>,
    /// Memory that a job needs, like 512M or 16G; more than that ends it
    #[arg(long, value_name = "BYTES", value_parser = |text: &str| units(resources::MEMORY, text))]
    pub(crate) memory: Option<f64>,
    /// An amount that a job needs of what `ipengine --resource` gives (may be repeated)
    #[arg(long = "resource", value_name = "NAME=AMOUNT", value_parser = resources::parse_request)]
    pub(crate) resources: Vec<(String, f64)>,
    /// An alternative of what a job needs (may be repeated, in order of preference: the first that can be had is taken)
    #[arg(long = "any", value_name = "NAME=AMOUNT,…", value_parser = alternative)]
    pub(crate) alternatives: Vec<Request>,
    /// Whole hosts that a job holds: it runs on one of them, with the names of all in the file $IPBROKER_NODEFILE
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=i64::from(resources::NODES_MOST)),
        conflicts_with_all = ["cpus", "gpus", "memory", "resources", "alternatives", "hosts"])]
    pub(crate) nodes: Option<u32>,
    /// Directory of jobs that name none (`cd`), relative to this one; `...`: a new one for each
    #[arg(long, value_name = "DIR", visible_alias = "workdir")]
    pub(crate) wd: Option<String>,
    /// How long a job may run (90s, 15m, 2h, 1d)
    #[arg(long, value_name = "TIME", value_parser = time::duration)]
    pub(crate) time: Option<Duration>,
}

impl JobArgs {
    /// What jobs that say nothing of it need of their host.
    fn request(&self) -> Request {
        let named = [
            (resources::CPUS, self.cpus),
            (resources::GPUS, self.gpus),
            (resources::MEMORY, self.memory),
        ];
        let named = named
            .into_iter()
            .filter_map(|(name, units)| Some((name.to_owned(), units?)));
        self.resources.iter().cloned().chain(named).collect()
    }

    /// Where and when a job runs: what it says, and these for what it does not.
    pub(crate) fn placement(&self, own: &Placement) -> Placement {
        let mut placement = own.clone();
        let asks = !own.resources.is_empty() || !own.alternatives.is_empty();
        if own.nodes == 0 && !asks && own.host.is_empty() {
            placement.nodes = self.nodes.unwrap_or(0);
        }
        if own.host.is_empty() {
            placement.host.clone_from(&self.hosts);
        }
        if own.tags.is_empty() {
            placement.tags.clone_from(&self.tags);
        }
        let timeout = self.timeout.map(|timeout| timeout.as_secs_f64());
        placement.timeout = own.timeout.or(timeout);
        placement.time = own.time.or(self.time.map(|time| time.as_secs_f64()));
        placement.retries = own.retries.or(self.retries);
        placement.retry_delay = own
            .retry_delay
            .or(self.retry_delay.map(|delay| delay.as_secs_f64()));
        placement.max_crashes = own.max_crashes.or(self.max_crashes);
        placement.priority = own.priority.or(self.priority);
        if placement.nodes > 0 {
            // It has all of its hosts.
            return placement;
        }
        let mut resources = self.request();
        resources.extend(own.resources.clone());
        // None of something is what a job has that does not name it.
        resources.retain(|_, units| *units > 0.0);
        placement.resources = resources;
        if own.alternatives.is_empty() {
            placement.alternatives.clone_from(&self.alternatives);
        }
        placement
    }

    /// The limits of a job that has `own` ones, and asks for what `placement` says.
    pub(crate) fn limit(&self, own: Limit, placement: &Placement) -> Limit {
        let one = placement.nodes == 0
            && placement.alternatives.is_empty()
            && self.alternatives.is_empty();
        let says = placement.resources.contains_key(resources::MEMORY);
        let memory = self.memory.filter(|bytes| *bytes > 0.0 && one && !says);
        let memory = memory.map(|bytes| bytes as u64);
        Limit {
            time: own.time.or(self.time.map(|time| time.as_secs_f64())),
            memory: own.memory.into_iter().chain(memory).min(),
        }
    }
}

/// `gpus=1,cpus=2`
fn alternative(text: &str) -> Result<Request, String> {
    let mut request = Request::new();
    for part in text.split(',') {
        let (name, units) = resources::parse_request(part)?;
        if request.insert(name.clone(), units).is_some() {
            return Err(format!("{name} is there twice"));
        }
    }
    Ok(request)
}

fn units(name: &str, text: &str) -> Result<f64, String> {
    resources::parse_request(&format!("{name}={text}")).map(|(_, units)| units)
}

/// What happens at the end.
#[derive(Debug, Clone, Default, Args)]
pub(crate) struct EndArgs {
    /// Run COMMAND at the end, with IPBROKER_JOBS, IPBROKER_FAILED and IPBROKER_STATUS (the exit status) in its
    /// environment; `bell` rings the terminal's
    #[arg(long, value_name = "COMMAND")]
    pub(crate) notify: Option<String>,
    /// Print the tables of `ipclient stats` on stderr at the end
    #[arg(long)]
    pub(crate) stats: bool,
}

/// A private cluster for one call.
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "Private cluster")]
pub(crate) struct LocalArgs {
    /// Start N local engines for this call alone, and stop them after it
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..), group = "private")]
    pub(crate) local: Option<u32>,
    /// Start engines on these hosts over SSH for this call alone: a:4,b:4, or a,b (then one for each core)
    #[arg(
        id = "hosts_over_ssh",
        long = "hosts",
        value_name = "HOST[:ENGINES]",
        value_delimiter = ',',
        group = "private"
    )]
    pub(crate) hosts: Vec<String>,
    /// An option for the private ipctl (may be repeated), e.g. --local-option=--scheme=lru
    #[arg(
        long = "local-option",
        value_name = "OPTION",
        requires = "private",
        allow_hyphen_values = true
    )]
    pub(crate) local_options: Vec<String>,
}

impl LocalArgs {
    /// How many engines will be there, as far as that is known; `None`: no private cluster is asked for.
    pub(crate) fn engines(&self) -> Option<u32> {
        let on = |host: &String| host.rsplit_once(':').and_then(|(_, n)| n.parse().ok());
        let over_ssh = self.hosts.iter().map(|host| on(host).unwrap_or(1)).sum();
        self.local.or((!self.hosts.is_empty()).then_some(over_ssh))
    }
}

pub(crate) fn size(text: &str) -> Result<u64, String> {
    parse_size(text)
        .ok_or_else(|| "a number of bytes is needed, or a size like 64K or 2M".to_owned())
}

/// Parses the process's arguments. What follows `:::` (or one of its like) is data, not options, and comes back apart.
pub(crate) fn parse(arguments: Vec<OsString>) -> Result<(Cli, Option<Vec<OsString>>), clap::Error> {
    let sign = |argument: &OsString| SIGNS.iter().any(|sign| argument == sign);
    let (options, data) = match arguments.iter().position(sign) {
        Some(at) => (arguments[..at].to_vec(), Some(arguments[at..].to_vec())),
        None => (arguments, None),
    };
    let mut cli = Cli::command();
    let matches = cli.try_get_matches_from_mut(&options).map_err(|error| {
        match cli.find_subcommand("map") {
            Some(map)
                if options
                    .get(1..)
                    .is_some_and(|words| words.iter().any(|w| w == "map")) =>
            {
                commands::map::explain_order(error, &options, map)
            }
            _ => error,
        }
    })?;
    if let Some(map) = matches.subcommand_matches("map") {
        commands::map::check_order(&options, map)?;
    }
    Ok((Cli::from_arg_matches(&matches)?, data))
}

/// A usage error in one line: what, where, and what to do. Errors in values do not say in which command they were made, and
/// the help of `ipclient` alone has none of its options.
pub(crate) fn one_line(error: &clap::Error, arguments: &[OsString]) -> String {
    let cli = Cli::command();
    let command = arguments
        .iter()
        .skip(1)
        .find_map(|word| cli.find_subcommand(word));
    let program = match command {
        Some(command) => format!("ipclient {}", command.get_name()),
        None => "ipclient".to_owned(),
    };
    usage::one_line(&error.render().to_string(), &program)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse_words(words: &[&str]) -> Result<(Cli, Option<Vec<OsString>>), clap::Error> {
        parse(words.iter().map(Into::into).collect())
    }

    #[test]
    fn definitions_hold() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_command_has_an_example() {
        for command in Cli::command().get_subcommands() {
            let help = command
                .get_after_help()
                .map(ToString::to_string)
                .unwrap_or_default();
            assert!(
                help.contains("Example"),
                "{} has no example",
                command.get_name()
            );
        }
    }

    #[test]
    fn cluster_options_stand_before_or_after_the_command() {
        for words in [
            &["ipclient", "--profile", "x", "--profile-dir=/p", "status"][..],
            &["ipclient", "status", "--profile=x", "--profile-dir", "/p"],
        ] {
            let (cli, _) = parse_words(words).unwrap();
            assert_eq!(cli.cluster.profile.as_deref(), Some("x"));
            assert_eq!(
                cli.cluster.profile_dir.as_deref(),
                Some(std::path::Path::new("/p"))
            );
        }
    }

    #[test]
    fn arguments_after_colons_are_data() {
        let (cli, data) = parse_words(&[
            "ipclient", "map", "echo {}", "-k", ":::", "-n", "a b", "--help",
        ])
        .unwrap();
        assert!(matches!(cli.command, Command::Map(_)));
        assert_eq!(data.unwrap(), [":::", "-n", "a b", "--help"]);
    }

    #[test]
    fn an_option_that_may_be_the_commands_is_not_taken_from_it() {
        for words in [
            &["ipclient", "map", "wc", "-l", "2", ":::", "f"][..],
            &["ipclient", "map", "tar", "-m", ":::", "f"],
            &["ipclient", "map", "sort", "-r", "f"],
        ] {
            let arguments: Vec<OsString> = words.iter().map(Into::into).collect();
            let line = one_line(&parse_words(words).unwrap_err(), &arguments);
            assert!(line.contains(words[3]) && line.contains("quote"), "{line}");
        }
        for words in [
            &["ipclient", "map", "-n", "2", "echo", "a", ":::", "f"][..],
            &["ipclient", "map", "wc -l", "-k", ":::", "f"],
            &["ipclient", "map", "-N2", "--", "wc", "-l", ":::", "f"],
        ] {
            assert!(parse_words(words).is_ok(), "{words:?}");
        }
    }

    #[test]
    fn usage_errors_are_one_line() {
        let told = |words: &[&str]| {
            let arguments: Vec<OsString> = words.iter().map(Into::into).collect();
            one_line(&parse_words(words).unwrap_err(), &arguments)
        };
        let line = told(&["ipclient", "run", "--frobnicate"]);
        assert!(
            !line.contains('\n')
                && line.contains("--frobnicate")
                && line.ends_with("(see `ipclient run --help`)"),
            "{line}"
        );
        let line = told(&["ipclient", "--profile", "x", "run", "--local", "many"]);
        assert!(
            line.contains("--local <N>")
                && line.ends_with("a whole number is needed (see `ipclient run --help`)"),
            "{line}"
        );
        let option = "--local-option=--scheme=lru";
        // Without a private cluster nobody would read it.
        for (others, good) in [
            (&[][..], false),
            (&["--local=2"], true),
            (&["--hosts=a,b"], true),
            (&["--local=2", "--hosts=a"], false),
        ] {
            let words = [&["ipclient", "run", option], others].concat();
            assert_eq!(parse_words(&words).is_ok(), good, "{others:?}");
        }
    }
}
