//! The options of `ipctl` that say where its engines run.

use std::{path::PathBuf, time::Duration};

use clap::Args;
use ipbroker_protocol::time;

use super::{
    batch::Growth,
    hosts::{self, HostSpec, HostsError},
};

/// Engines on other hosts.
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "Engines")]
pub(crate) struct HostArgs {
    /// Hosts to start engines on over SSH: a:4,b:4, or a b c with -n (else one engine for each core)
    #[arg(long, value_name = "HOST[:ENGINES]", num_args = 1.., conflicts_with = "hosts_file")]
    pub hosts: Vec<String>,
    /// File of hosts: one `host[:engines] [tags…]` a line, or an ipcluster_config.py
    #[arg(long, value_name = "FILE")]
    pub hosts_file: Option<PathBuf>,
    /// Let engines on other hosts reach the controller through their SSH connection
    #[arg(long)]
    pub tunnel: bool,
    /// Trust the keys of hosts seen for the first time (never a changed one)
    #[arg(long)]
    pub accept_new: bool,
    /// SSH configuration instead of ~/.ssh/config
    #[arg(long, value_name = "FILE")]
    pub ssh_config: Option<PathBuf>,
    /// The ipengine to send to hosts, instead of the one beside ipctl
    #[arg(long, value_name = "FILE")]
    pub engine_program: Option<PathBuf>,
    /// Engines run Python calls too, with this interpreter of their host (3.9 or later) [default: $IPBROKER_PYTHON, python3]
    #[arg(long, value_name = "INTERPRETER", num_args = 0..=1, require_equals = true, default_missing_value = "")]
    pub python: Option<String>,
    /// Engines own a Jupyter kernel each and run what ipyparallel sends: the name of a kernelspec of their host, or
    /// `ipyparallel`, its own kernel
    #[arg(long, value_name = "NAME")]
    pub kernel: Option<String>,
    /// Start the -n engines through a batch system; options for its submit command come after `--`
    #[arg(
        long = "engines",
        id = "batch_system",
        value_name = "SYSTEM",
        conflicts_with_all = ["hosts", "hosts_file"],
        value_parser = ["slurm", "pbs", "sge", "lsf", "htcondor"],
        ignore_case = true
    )]
    pub batch_system: Option<String>,
    /// Let the cluster grow: submit jobs of -n engines each while tasks wait, up to so many engines in all
    #[arg(long, value_name = "ENGINES", requires = "batch_system", value_parser = clap::value_parser!(u32).range(1..))]
    pub max: Option<u32>,
    /// How many of --max are there in any case
    #[arg(long, value_name = "ENGINES", requires = "max", default_value_t = 0)]
    pub min: u32,
    /// How long an engine beyond --min may be idle before its job is ended (90s, 10m, 1h)
    #[arg(long, value_name = "TIME", requires = "max", default_value = "60s", value_parser = time::duration)]
    pub idle: Duration,
    /// Script for the batch system instead of the built-in one, with {engines}, {program} and {args}
    #[arg(long, value_name = "FILE", requires = "batch_system")]
    pub batch_template: Option<PathBuf>,
    /// Options for the batch system's submit command
    #[arg(last = true, value_name = "BATCH-OPTIONS", requires = "batch_system")]
    pub batch_options: Vec<String>,
    /// Hosts to start at the same time
    #[arg(long, value_name = "N", default_value_t = 32)]
    pub parallel: usize,
}

impl HostArgs {
    /// What these options say to `ipengine`, wherever it is started.
    pub(crate) fn engine_args(&self) -> Vec<String> {
        let python = self.python.iter().map(|program| match program.as_str() {
            "" => "--python".to_owned(),
            program => format!("--python={program}"),
        });
        let kernel = self.kernel.iter().map(|name| format!("--kernel={name}"));
        python.chain(kernel).collect()
    }

    /// How the cluster grows, if it does.
    pub(crate) fn growth(&self) -> Option<Growth> {
        let (min, idle) = (self.min, self.idle);
        self.max.map(|max| Growth { min, max, idle })
    }

    /// The hosts asked for; empty: none.
    pub(crate) fn hosts(&self) -> Result<Vec<HostSpec>, HostsError> {
        match &self.hosts_file {
            Some(file) => hosts::read_file(file),
            None => hosts::parse_list(&self.hosts),
        }
    }
}
