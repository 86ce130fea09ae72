//! A private cluster for one call: `--local N`, `--hosts a,b`.

use std::fs::{File, Permissions};
use std::io::{Read, Seek, SeekFrom};
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use ipbroker_client::{Client, protocol::usage};
use tempfile::TempDir;

use crate::cli::{ClusterArgs, LocalArgs};
use crate::failure::Failure;

/// How long the private controller may take to write its connection file.
const START: Duration = Duration::from_secs(30);
/// How long one that cannot be reached may take to say why.
const END: Duration = Duration::from_secs(5);
/// How long its engines may take.
pub(crate) const ENGINES: Duration = Duration::from_secs(10);
/// How long it may take to end.
const STOP: Duration = Duration::from_secs(15);

/// A controller with its engines that lives as long as this value (and this process).
pub(crate) struct LocalCluster {
    child: Arc<Mutex<Child>>,
    dir: TempDir,
    log: Arc<File>,
}

/// Connects to the private cluster that `--local` or `--hosts` asks for, or else to the one that is named.
pub(crate) fn connect(
    args: &LocalArgs,
    cluster: &ClusterArgs,
) -> Result<(Client, Option<LocalCluster>), Failure> {
    if args.engines().is_none() {
        return Ok((cluster.connect()?, None));
    }
    let mut private = LocalCluster::start(args, cluster)?;
    let client = private.connect(cluster.connect_timeout)?;
    Ok((client, Some(private)))
}

/// Tells whether the private cluster is still there, and what it said last if it is not. What it warned of since the last time.
pub(crate) type Pulse = Box<dyn FnMut() -> Result<Vec<String>, Failure>>;

impl LocalCluster {
    fn start(args: &LocalArgs, cluster: &ClusterArgs) -> Result<Self, Failure> {
        usage::check_system().map_err(Failure::new)?;
        let program = find("ipctl")?;
        let dir = tempfile::Builder::new()
            .prefix("ipclient-")
            .permissions(Permissions::from_mode(0o700))
            .tempdir()
            .map_err(no_tempdir)?;
        let log = File::options()
            .read(true)
            .append(true)
            .create_new(true)
            .open(dir.path().join("ipctl.log"))?;
        // The shell outlives both of us and removes the directory, even if both are killed. ipctl itself ends at the end
        // of its standard input, which is ours to hold.
        let mut command = Command::new("/bin/sh");
        command
            .args([
                "-c",
                "dir=$1; shift; \"$@\"; rm -rf -- \"$dir\"",
                "ipclient-local",
            ])
            .arg(dir.path())
            .arg(program)
            .arg(format!("--profile-dir={}", dir.path().display()))
            .arg("--cluster-id=")
            .arg("--exit-with-parent");
        if let Some(count) = args.local {
            command.arg(format!("-n={count}"));
        } else {
            // It works wherever SSH does; jobs are few beside what a tunnel carries.
            command.args([
                format!("--hosts={}", args.hosts.join(",")),
                "--tunnel".into(),
            ]);
            if cluster.accept_new {
                command.arg("--accept-new");
            }
        }
        let store = ["--nodb", "--dictdb", "--sqlitedb"];
        if !args
            .local_options
            .iter()
            .any(|option| store.contains(&option.as_str()))
        {
            command.arg("--nodb");
        }
        command.args(&args.local_options);
        // Ctrl-C is for us: we decide when the cluster ends.
        command.process_group(0);
        command
            .env_remove("IPP_CONNECTION_INFO")
            .env_remove("IPP_CLUSTER_ID")
            .env_remove("IPP_PROFILE_DIR");
        let child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(log.try_clone()?)
            .spawn()
            .map_err(|error| {
                Failure::new(format!(
                    "cannot start /bin/sh for a private cluster: {error}"
                ))
            })?;
        Ok(Self {
            child: Arc::new(Mutex::new(child)),
            dir,
            log: Arc::new(log),
        })
    }

    /// Waits for the connection file and connects.
    fn connect(&mut self, timeout: Duration) -> Result<Client, Failure> {
        let builder = Client::builder()
            .profile_dir(self.dir.path())
            .cluster_id("")
            .timeout(timeout);
        let path = builder.connection_file()?;
        let deadline = Instant::now() + START;
        while !path.exists() {
            if lock(&self.child).try_wait()?.is_some() {
                return Err(Failure::new(format!(
                    "the private ipctl did not start: {}",
                    last_words(&self.log)
                )));
            }
            if Instant::now() > deadline {
                return Err(Failure::new(format!(
                    "the private ipctl is not up after {} s",
                    START.as_secs()
                )));
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        builder.connect().map_err(|error| {
            // One that ends again at once, as it cannot start its engines, has said why; it may need a moment for that.
            let deadline = Instant::now() + END;
            while Instant::now() < deadline {
                if matches!(lock(&self.child).try_wait(), Ok(Some(_))) {
                    return ended(&self.log);
                }
                std::thread::sleep(Duration::from_millis(2));
            }
            error.into()
        })
    }

    /// For whoever wants to notice when the cluster ends too early.
    pub(crate) fn pulse(&self) -> Pulse {
        let (child, log) = (self.child.clone(), self.log.clone());
        let mut told = 0;
        Box::new(move || match lock(&child).try_wait()? {
            None => Ok(warnings(&log, &mut told)),
            Some(_) => Err(ended(&log)),
        })
    }

    /// Lets go without waiting: the cluster ends by itself.
    pub(crate) fn abandon(mut self) {
        drop(lock(&self.child).stdin.take());
        self.dir.disable_cleanup(true);
        // Not dropped: that would wait.
        std::mem::forget(self);
    }
}

fn ended(log: &File) -> Failure {
    Failure::new(format!(
        "the private cluster has ended too early: {}",
        last_words(log)
    ))
}

/// A temporary directory cannot be made.
pub(crate) fn no_tempdir(error: std::io::Error) -> Failure {
    let (dir, error) = (std::env::temp_dir(), error.to_string());
    // What follows is a name that was made up.
    let words = error.split(" at path ").next().unwrap_or_default();
    Failure::new(format!(
        "no temporary directory can be made in {}: {words}; $TMPDIR names another place",
        dir.display()
    ))
}

fn lock(child: &Mutex<Child>) -> MutexGuard<'_, Child> {
    child.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Drop for LocalCluster {
    fn drop(&mut self) {
        let mut child = lock(&self.child);
        drop(child.stdin.take());
        let deadline = Instant::now() + STOP;
        let mut pause = Duration::from_millis(1);
        while matches!(child.try_wait(), Ok(None)) {
            if Instant::now() > deadline {
                if let Some(group) = rustix::process::Pid::from_raw(child.id() as i32) {
                    let _ =
                        rustix::process::kill_process_group(group, rustix::process::Signal::KILL);
                }
                let _ = child.wait();
                break;
            }
            std::thread::sleep(pause);
            pause = (pause * 2).min(Duration::from_millis(20));
        }
    }
}

/// What ipctl's log warns of, in the whole lines from `told` on.
fn warnings(log: &File, told: &mut u64) -> Vec<String> {
    let mut text = vec![0; 1 << 16];
    let read = log.read_at(&mut text, *told).unwrap_or(0);
    let whole = text[..read].iter().rposition(|&byte| byte == b'\n');
    let text = String::from_utf8_lossy(&text[..whole.map_or(0, |end| end + 1)]);
    *told += whole.map_or(0, |end| end as u64 + 1);
    let lines = text.lines().filter_map(|line| line.split_once("WARN "));
    lines.map(|(_, words)| words.to_owned()).collect()
}

/// What ipctl said last; the file may be removed already, we still hold it.
fn last_words(mut log: &File) -> String {
    let mut text = String::new();
    let _ = log
        .seek(SeekFrom::Start(0))
        .and_then(|_| log.read_to_string(&mut text));
    let mut lines = text.lines().filter(|line| !line.trim().is_empty());
    let last = lines.clone().next_back();
    // What it ends with is said under its name; what its log says goes before.
    let error = lines.find_map(|line| line.strip_prefix("ipctl: "));
    error
        .or(last)
        .unwrap_or("it said nothing")
        .trim()
        .to_owned()
}

/// A program of ours: beside this one, else on `PATH`.
fn find(name: &str) -> Result<PathBuf, Failure> {
    let beside = std::env::current_exe()
        .ok()
        .and_then(|exe| Some(exe.parent()?.join(name)));
    let on_path = std::env::var_os("PATH").unwrap_or_default();
    let is_program = |path: &Path| {
        rustix::fs::access(path, rustix::fs::Access::EXEC_OK).is_ok() && path.is_file()
    };
    beside
        .into_iter()
        .chain(std::env::split_paths(&on_path).map(|dir| dir.join(name)))
        .find(|path| is_program(path))
        .ok_or_else(|| {
            Failure::new(format!(
                "no {name} beside ipclient nor on PATH: install it there, or do without --local"
            ))
        })
}
