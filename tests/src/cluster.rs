//! A cluster of real processes with directories and ports of its own.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use rustix::process::Signal;
use serde_json::{Value, json};

use crate::{
    programs::{Finished, MARK, Program, kill_marked, marked, program, run},
    wait::{LIMIT, eventually},
    wire::Wire,
};

/// What a cluster is started with.
#[derive(Default, Clone)]
pub struct ClusterBuilder {
    args: Vec<String>,
    env: Vec<(String, String)>,
}

impl ClusterBuilder {
    /// Adds an option of `ipctl`.
    pub fn arg(self, arg: &str) -> ClusterBuilder {
        self.args([arg])
    }

    /// Adds options of `ipctl`.
    pub fn args<I: IntoIterator<Item = S>, S: Into<String>>(mut self, args: I) -> ClusterBuilder {
        self.args.extend(args.into_iter().map(Into::into));
        self
    }

    /// Adds a variable to the environment of everything that is started.
    pub fn env(mut self, name: &str, value: &str) -> ClusterBuilder {
        self.env.push((name.into(), value.into()));
        self
    }

    /// Starts the controller and waits until its connection files are there.
    #[track_caller]
    pub fn start(self) -> Cluster {
        let mut cluster = self.prepare();
        cluster.start_controller();
        cluster
    }

    /// The directories only; nothing is started yet.
    #[track_caller]
    pub fn prepare(self) -> Cluster {
        let dir = tempfile::Builder::new()
            .prefix("ipbroker-test-")
            .tempdir()
            .expect("a temporary directory");
        Cluster {
            mark: uuid::Uuid::new_v4().to_string(),
            dir,
            builder: self,
            controller: None,
            engines: Vec::new(),
        }
    }
}

/// A controller, its engines, and the directory they live in; all of it is gone when this is dropped.
pub struct Cluster {
    // Dropped in this order: engines, controller, what escaped both (`Drop`, below, runs first), directory.
    /// Engine processes that were started beside the controller's own.
    pub engines: Vec<Program>,
    /// The controller, when it runs.
    pub controller: Option<Program>,
    builder: ClusterBuilder,
    mark: String,
    dir: tempfile::TempDir,
}

impl Cluster {
    /// A cluster to be described further.
    pub fn builder() -> ClusterBuilder {
        ClusterBuilder::default()
    }

    /// `ipctl -n N --nodb`, with its engines registered.
    #[track_caller]
    pub fn with_engines(n: usize) -> Cluster {
        let cluster = Cluster::builder()
            .args(["-n", &n.to_string(), "--nodb"])
            .start();
        cluster.wait_engines(n);
        cluster
    }

    /// The directory that belongs to this test.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// A path in that directory.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// The profile directory.
    pub fn profile(&self) -> PathBuf {
        self.path("profile")
    }

    /// A connection file: `client` or `engine`.
    pub fn connection_file(&self, side: &str) -> PathBuf {
        self.profile()
            .join(format!("security/ipcontroller-{side}.json"))
    }

    /// A program with this cluster's environment, its working directory the test's.
    pub fn bare(&self, name: &str) -> Command {
        let mut command = Command::new(program(name));
        command
            .current_dir(self.dir())
            .env(MARK, &self.mark)
            .env("IPYTHONDIR", self.path("ipython"));
        for name in [
            "IPP_PROFILE_DIR",
            "IPP_CLUSTER_ID",
            "IPP_SESSION_KEY",
            "IPP_ENABLE_CURVE",
            "IPP_CONNECTION_INFO",
            "RUST_LOG",
        ] {
            command.env_remove(name);
        }
        command.envs(self.builder.env.iter().map(|(name, value)| (name, value)));
        command
    }

    /// The same, with `--profile-dir`.
    pub fn command(&self, name: &str) -> Command {
        let mut command = self.bare(name);
        command.arg("--profile-dir").arg(self.profile());
        command
    }

    /// Starts the controller (again) and waits until its connection files are there.
    #[track_caller]
    pub fn start_controller(&mut self) {
        self.start_controller_with(&[]);
    }

    /// The same, with more options.
    #[track_caller]
    pub fn start_controller_with(&mut self, more: &[&str]) {
        // A file of an earlier life would be mistaken for the new one.
        let file = self.connection_file("client");
        let before = fs::metadata(&file).and_then(|meta| meta.modified()).ok();
        let mut command = self.command("ipctl");
        command.args(&self.builder.args).args(more);
        let mut controller = Program::spawn(command, self.dir());
        eventually("the connection files of ipctl", LIMIT, || {
            assert!(
                controller.running(),
                "ipctl ended:\n{}",
                controller.stderr()
            );
            let written = fs::metadata(&file).and_then(|meta| meta.modified()).ok();
            (written.is_some() && written != before && self.connection_file("engine").exists())
                .then_some(())
        });
        self.controller = Some(controller);
    }

    /// The running controller.
    #[track_caller]
    pub fn controller(&mut self) -> &mut Program {
        self.controller
            .as_mut()
            .expect("the controller was started")
    }

    /// Starts an engine process with `n` engines.
    #[track_caller]
    pub fn start_engines(&mut self, n: usize) -> &mut Program {
        let mut command = self.command("ipengine");
        command.args(["-n", &n.to_string()]);
        self.engines.push(Program::spawn(command, self.dir()));
        self.engines.last_mut().expect("just pushed")
    }

    /// The wire of this cluster, as a client.
    #[track_caller]
    pub fn wire(&self) -> Wire {
        Wire::load(&self.connection_file("client")).expect("a connection file")
    }

    /// The ids and uuids of the registered engines, as the hub tells any client.
    pub fn registered(&self) -> Vec<(u64, String)> {
        let Ok(wire) = Wire::load(&self.connection_file("client")) else {
            return Vec::new();
        };
        let context = zmq::Context::new();
        let socket = wire.connect(&context, zmq::DEALER, None, "registration");
        wire.send(&socket, "connection_request", json!({}), json!({}), &[]);
        let Ok(reply) = wire.receive(&socket, 5_000) else {
            return Vec::new();
        };
        let Value::Object(engines) = &reply.content["engines"] else {
            return Vec::new();
        };
        let mut engines: Vec<_> = engines
            .iter()
            .filter_map(|(id, uuid)| Some((id.parse().ok()?, uuid.as_str()?.to_owned())))
            .collect();
        engines.sort();
        engines
    }

    /// Waits until exactly `n` engines are registered.
    #[track_caller]
    pub fn wait_engines(&self, n: usize) -> Vec<(u64, String)> {
        let mut last = Vec::new();
        eventually(&format!("{n} registered engines"), LIMIT, || {
            last = self.registered();
            (last.len() == n).then(|| last.clone())
        })
    }

    /// What `ipclient status` says.
    #[track_caller]
    pub fn status(&self) -> Value {
        let status = self.client(&["status", "--json"]).ok();
        status.json_lines().remove(0)
    }

    /// Runs `ipclient` with `args` to its end.
    #[track_caller]
    pub fn client(&self, args: &[&str]) -> Finished {
        self.client_with(args, "", LIMIT * 2)
    }

    /// The same, with standard input and a limit.
    #[track_caller]
    pub fn client_with(&self, args: &[&str], input: &str, limit: Duration) -> Finished {
        let mut command = self.command("ipclient");
        command.args(args);
        run(command, self.dir(), input, limit)
    }

    /// Starts `ipclient` with `args` and does not wait.
    #[track_caller]
    pub fn start_client(&self, args: &[&str]) -> Program {
        let mut command = self.command("ipclient");
        command.args(args);
        command.stdin(std::process::Stdio::null());
        Program::spawn(command, self.dir())
    }

    /// Everything of this cluster that runs now, as pid and command line.
    pub fn processes(&self) -> Vec<(i32, String)> {
        marked(&self.mark)
    }

    /// Stops the controller with SIGTERM and returns how it ended.
    #[track_caller]
    pub fn stop_controller(&mut self) -> Finished {
        let controller = self.controller.take().expect("the controller was started");
        controller.signal(Signal::TERM);
        controller.finish(LIMIT)
    }

    /// Writes a file in the test's directory.
    #[track_caller]
    pub fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.path(name);
        fs::write(&path, text).expect("the test's directory can be written");
        path
    }

    /// Reads a file of the test's directory.
    #[track_caller]
    pub fn read(&self, name: &str) -> String {
        fs::read_to_string(self.path(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        self.controller = None;
        self.engines.clear();
        kill_marked(&self.mark);
    }
}
