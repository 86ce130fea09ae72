//! What command line, environment and configuration file come to.

use std::{
    env,
    ffi::OsString,
    net::{IpAddr, ToSocketAddrs},
    ops::Deref,
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use crossbeam_channel::Sender;
use ipbroker_protocol::{
    connection::{self, ClientConnection, Common, EngineConnection},
    profile::{Profile, Role},
    session::Packer,
    socket::{self, CurveServer},
};

use super::{AppError, MainEvent, files, threads};
use crate::{
    cli::{self, Cli},
    config_py,
    launch::{LaunchEvent, Launcher, Sink, args::HostArgs, batch, hosts::HostSpec, local},
    store::Backend,
};

#[cfg(feature = "ssh")]
use crate::launch::ssh::{self, Tools};

/// What is needed to go to other hosts: a program without SSH never has it.
#[cfg(not(feature = "ssh"))]
#[derive(Debug, Clone)]
enum Tools {}

/// Everything that a controller is told: the command line, and what that comes to here.
#[derive(Debug)]
pub(super) struct Settings {
    cli: Cli,
    /// Where its files are.
    pub(super) profile: Profile,
    /// `tcp://ADDRESS`, to bind and for the files.
    pub(super) interface: String,
    /// This host as others see it.
    pub(super) location: String,
    /// The files that are there, when they are to be used again.
    pub(super) earlier: Option<(ClientConnection, EngineConnection)>,
    /// Key that signs messages.
    pub(super) key: String,
    /// CURVE keys, when it is on.
    pub(super) curve: Option<CurveServer>,
    /// How messages are packed.
    pub(super) packer: Packer,
    /// Where the history is kept.
    pub(super) backend: Backend,
    /// Local engines.
    pub(super) local_engines: u32,
    /// The hosts for engines elsewhere, and what is needed to go there.
    remote: Option<(Vec<HostSpec>, Tools)>,
}

impl Deref for Settings {
    type Target = Cli;

    fn deref(&self) -> &Cli {
        &self.cli
    }
}

/// Puts the assignments of `ipcontroller_config.py` before the command line; returns the lines that were not applied.
pub(super) fn with_config(
    profile: &Profile,
    args: &[OsString],
    cli: Cli,
) -> Result<(Cli, Vec<String>), AppError> {
    let path = profile.dir().join("ipcontroller_config.py");
    let config = config_py::load(&path)
        .map_err(AppError::system(format!("cannot read {}", path.display())))?;
    let mut notes: Vec<String> = config
        .skipped
        .iter()
        .map(|skipped| {
            format!(
                "{}:{}: not applied: {} ({})",
                path.display(),
                skipped.line,
                skipped.text,
                skipped.why
            )
        })
        .collect();
    let mut options: Vec<OsString> = Vec::new();
    for (line, option) in &config.options {
        // Where the profile is has been decided: this file is in it.
        if option.starts_with("--profile") || option.starts_with("--cluster-id") {
            notes.push(format!(
                "{}:{line}: not applied: {option} (say it on the command line)",
                path.display()
            ));
            continue;
        }
        match cli::parse(&[option.into()]) {
            Ok(_) => options.push(option.into()),
            Err(error) => {
                let text = error.to_string();
                let why = text
                    .lines()
                    .next()
                    .unwrap_or_default()
                    .trim_start_matches("error: ")
                    .to_owned();
                return Err(AppError::Usage(format!("{}:{line}: {why}", path.display())));
            }
        }
    }
    if options.is_empty() {
        return Ok((cli, notes));
    }
    options.extend(args.iter().cloned());
    Ok((cli::parse(&options)?, notes))
}

/// Whether an address cannot be reached from other hosts.
pub(super) fn is_loopback(ip: &str) -> bool {
    ip == "localhost" || ip.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

pub(super) fn variable(name: &str) -> Option<String> {
    env::var(name).ok().filter(|value| !value.is_empty())
}

impl Settings {
    pub(super) fn new(mut cli: Cli, profile: Profile) -> Result<Self, AppError> {
        let network = &mut cli.network;
        network.reuse |= network.restore;
        let earlier = network.reuse.then(|| load_earlier(&profile)).flatten();
        let files = earlier.as_ref();
        let (client, engine) = files.map(|(c, e)| (&c.common, &e.common)).unzip();
        let ip = match engine {
            Some(engine) => engine.interface.trim_start_matches("tcp://").to_owned(),
            None => listening_address(&network.ip)?,
        };
        // ipp.Cluster says where to work through these; its clients need not have msgpack.
        let by_cluster =
            env::var_os("IPP_CLUSTER_ID").is_some() || env::var_os("IPP_PROFILE_DIR").is_some();
        let packer = match (client, network.packer.as_deref()) {
            (Some(client), _) => client.packer()?,
            (None, Some("json")) => Packer::Json,
            (None, Some(_)) => Packer::Msgpack,
            (None, None) if by_cluster => Packer::Json,
            (None, None) => Packer::Msgpack,
        };
        let wants_curve = match client {
            Some(client) => client
                .curve_serverkey
                .as_ref()
                .is_some_and(|key| !key.is_empty()),
            None if network.no_curve => false,
            None => {
                network.curve
                    || variable("IPP_ENABLE_CURVE").as_deref() == Some("1")
                    || !is_loopback(&ip)
            }
        };
        let curve = if wants_curve {
            Some(files::curve_keys(&profile, client)?)
        } else {
            None
        };
        let given_key = network
            .session_key
            .take()
            .or_else(|| env::var("IPP_SESSION_KEY").ok());
        let key = match (client, given_key) {
            (Some(client), _) => client.key.clone(),
            (None, Some(key)) => key,
            // CURVE authenticates whoever connects: the peer signs nothing then.
            (None, None) if curve.is_some() => String::new(),
            (None, None) => uuid::Uuid::new_v4().to_string(),
        };
        if !is_loopback(&ip) && curve.is_none() {
            tracing::warn!(
                "listening on {ip} without CURVE: the key protects what is executed, but whoever can reach the ports can \
                 read all output"
            );
        }
        let location = match (engine, &network.location) {
            (_, Some(location)) => location.clone(),
            (Some(engine), None) => engine.location.clone(),
            (None, None) => socket::host_name(),
        };
        let (tasks, hosts) = (&cli.tasks, &cli.hosts);
        let backend = if tasks.nodb {
            Backend::None
        } else if tasks.dictdb
            || (!tasks.sqlitedb && !network.reuse && variable("IPP_CLUSTER_ID").is_some())
        {
            // A cluster with an id that ipp.Cluster made up is never started again: as with the peer, its history is in
            // memory and leaves nothing behind.
            Backend::memory()
        } else {
            Backend::Sqlite
        };
        let elsewhere =
            !hosts.hosts.is_empty() || hosts.hosts_file.is_some() || hosts.batch_system.is_some();
        if let Some(max) = hosts.max
            && hosts.min > max
        {
            let min = hosts.min;
            return Err(AppError::Usage(format!(
                "--min {min} is more than --max {max}"
            )));
        }
        if hosts.batch_system.is_some() && cli.engines.is_none() && hosts.max.is_none() {
            return Err(AppError::Usage(
                "--engines needs -n: how many engines to start, or --max: how many there may be while tasks wait".into(),
            ));
        }
        if network.lease < Duration::from_secs(1) {
            return Err(AppError::Usage("--lease is at least 1s".into()));
        }
        if cli.web.web.is_some() && !cfg!(feature = "web") {
            return Err(AppError::Usage(
                "--web: this ipctl was built without its page, as scripts/quickstart builds it; `cargo build --release` builds one that has it".into(),
            ));
        }
        let ssh = |given: &mut String, earlier: Option<&Common>| {
            if let Some(earlier) = earlier.filter(|_| given.is_empty()) {
                given.clone_from(&earlier.ssh);
            }
        };
        ssh(&mut network.ssh, client);
        ssh(&mut network.enginessh, engine);
        Ok(Self {
            interface: format!("tcp://{ip}"),
            location,
            key,
            curve,
            packer,
            backend,
            local_engines: if elsewhere {
                0
            } else {
                cli.engines.unwrap_or(0)
            },
            remote: remote_plan(hosts)?,
            earlier,
            profile,
            cli,
        })
    }

    /// Name of the store's files in the profile directory.
    pub(super) fn store_name(&self) -> String {
        match self.profile.cluster_id() {
            "" => "ipbroker".into(),
            id => format!("ipbroker-{id}"),
        }
    }

    /// Where the hub keeps the ids of the engines: as the peer's.
    pub(super) fn state_file(&self) -> PathBuf {
        self.profile
            .log_dir()
            .join(format!("engines{}.json", self.profile.cluster_id()))
    }

    pub(super) fn local_plan(&self) -> local::Plan {
        let mut arguments: Vec<OsString> = vec![
            "--file".into(),
            self.profile.connection_file(Role::Engine).into(),
        ];
        if let Some(level) = self.logging.level() {
            arguments.push(format!("--log-level={}", level.as_str().to_lowercase()).into());
        }
        arguments.extend(self.hosts.engine_args().into_iter().map(OsString::from));
        for text in &self.resources {
            arguments.push(format!("--resource={text}").into());
        }
        if self.pin {
            arguments.push("--pin".into());
        }
        if self.exit_with_parent {
            // A private cluster: no other controller will come for its engines.
            arguments.push("--exit-with-parent".into());
        }
        local::Plan {
            program: self.hosts.engine_program.clone(),
            arguments,
            record: self.record_file("engines"),
        }
    }

    /// Where a controller that comes after a crash finds what was started.
    fn record_file(&self, what: &str) -> PathBuf {
        let name = format!("ipctl-{what}{}.json", self.profile.cluster_id());
        self.profile.dir().join("pid").join(name)
    }

    /// Starts the engines on other hosts, if any are asked for.
    pub(super) fn start_remote(
        &self,
        controller: &threads::Controller,
        events: &Sender<MainEvent>,
    ) -> Result<Option<Box<dyn Launcher>>, AppError> {
        let events = events.clone();
        let sink: Sink = Arc::new(move |event: LaunchEvent| {
            if event.is_warning() {
                tracing::warn!("{event}");
            } else {
                tracing::info!("{event}");
            }
            if let LaunchEvent::Settled { engines, failed } = event
                && engines.is_empty()
                && let [(host, reason), others @ ..] = &failed[..]
            {
                let (host, reason) = (host.clone(), reason.clone());
                let first = LaunchEvent::Failed { host, reason };
                let more = match others.len() {
                    0 => String::new(),
                    1 => " (and another host)".to_owned(),
                    more => format!(" (and {more} more hosts)"),
                };
                let why = format!("no host could start an engine: {first}{more}");
                let _ = events.send(MainEvent::NoHost(why));
            }
        });
        // With other keys and ports an earlier controller's engines would not find us.
        let adopt = self.network.restore && self.earlier.is_some();
        let batch_system = self.hosts.batch_system.as_deref();
        if let Some(system) = batch_system.and_then(batch::System::find) {
            let plan = batch::Plan {
                system,
                engines: self.engines.unwrap_or(1),
                growth: self.hosts.growth(),
                time: Duration::ZERO,
                options: self.hosts.batch_options.clone(),
                template: self.hosts.batch_template.clone(),
                program: local::engine_program(self.hosts.engine_program.as_deref()),
                connection_file: self.profile.connection_file(Role::Engine),
                dir: self.profile.log_dir(),
                engine_args: self.hosts.engine_args(),
                record: self.record_file("batch"),
                adopt,
            };
            let launcher = batch::BatchLauncher::start(plan, sink, controller.ways())
                .map_err(|error| AppError::Launch(error.to_string()))?;
            return Ok(Some(Box::new(launcher)));
        }
        let Some((hosts, tools)) = self.remote.clone() else {
            return Ok(None);
        };
        self.start_over_ssh(hosts, tools, controller, sink, adopt)
    }

    #[cfg(not(feature = "ssh"))]
    fn start_over_ssh(
        &self,
        _: Vec<HostSpec>,
        tools: Tools,
        _: &threads::Controller,
        _: Sink,
        _: bool,
    ) -> Result<Option<Box<dyn Launcher>>, AppError> {
        match tools {}
    }

    #[cfg(feature = "ssh")]
    fn start_over_ssh(
        &self,
        hosts: Vec<HostSpec>,
        tools: Tools,
        controller: &threads::Controller,
        sink: Sink,
        adopt: bool,
    ) -> Result<Option<Box<dyn Launcher>>, AppError> {
        let plan = ssh::Plan {
            hosts,
            total: self.engines,
            tunnel: self.hosts.tunnel,
            tools,
            parallel: self.hosts.parallel,
            engine_args: self
                .logging
                .level()
                .iter()
                .map(|level| format!("--log-level={level}"))
                .chain(self.hosts.engine_args())
                .collect(),
            connection: files::engine_connection(self, &controller.ports),
            location_given: self.network.location.is_some(),
            record: self.record_file("hosts"),
            adopt,
        };
        let launcher = ssh::SshLauncher::start(plan, sink)
            .map_err(|error| AppError::Launch(error.to_string()))?;
        Ok(Some(Box::new(launcher)))
    }
}

/// The hosts that are asked for, and what is needed to go there: what is wrong with either is told before anything runs.
fn remote_plan(args: &HostArgs) -> Result<Option<(Vec<HostSpec>, Tools)>, AppError> {
    let launch = |error: &dyn std::fmt::Display| AppError::Launch(error.to_string());
    let hosts = args.hosts().map_err(|error| launch(&error))?;
    if hosts.is_empty() {
        return Ok(None);
    }
    #[cfg(not(feature = "ssh"))]
    return Err(launch(
        &"--hosts: this ipctl was built without SSH, as scripts/quickstart builds it; `cargo build --release` builds one that has it",
    ));
    #[cfg(feature = "ssh")]
    {
        let tools = Tools::find(
            args.ssh_config.as_deref(),
            args.accept_new,
            args.engine_program.as_deref(),
        );
        Ok(Some((hosts, tools.map_err(|error| launch(&error))?)))
    }
}

/// The connection files that are there; a warning when they are of no use.
fn load_earlier(profile: &Profile) -> Option<(ClientConnection, EngineConnection)> {
    let (client, engine) = (
        profile.connection_file(Role::Client),
        profile.connection_file(Role::Engine),
    );
    if !client.exists() && !engine.exists() {
        return None;
    }
    let load = || -> Result<(ClientConnection, EngineConnection), String> {
        let client: ClientConnection =
            connection::load(&client).map_err(|error| error.to_string())?;
        let engine: EngineConnection =
            connection::load(&engine).map_err(|error| error.to_string())?;
        let agree = client.common.key == engine.common.key
            && client.registration == engine.registration
            && client.common.pack == engine.common.pack
            && client.common.curve_serverkey == engine.common.curve_serverkey;
        if agree {
            Ok((client, engine))
        } else {
            Err("the two connection files do not belong together".into())
        }
    };
    load()
        .inspect_err(|error| tracing::warn!("connection files not used again: {error}"))
        .ok()
}

/// The address to bind: `*`, an IP address, or that of a host name.
fn listening_address(ip: &str) -> Result<String, AppError> {
    if matches!(ip, "*" | "0.0.0.0") || ip.parse::<IpAddr>().is_ok() {
        return Ok(ip.to_owned());
    }
    let addresses = (ip, 0).to_socket_addrs();
    addresses
        .ok()
        .and_then(|mut all| all.find(|address| address.is_ipv4()))
        .map(|address| address.ip().to_string())
        .ok_or_else(|| {
            AppError::Usage(format!(
                "--ip={ip}: no IPv4 address of this name; give an address, or * for all"
            ))
        })
}
