//! Several hosts on one machine: network namespaces with real SSH servers, made by `tests/hosts/lab`.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::{Command, Output},
    time::Duration,
};

use crate::{
    programs::{Finished, Program, program, run},
    wait::{LIMIT, eventually},
};

/// Hosts, and the place where the controller lives; all of it is gone when this is dropped.
pub struct Lab {
    dir: tempfile::TempDir,
}

impl Lab {
    /// Hosts of these names. `None` where that is impossible: not root, or no namespaces, `ip` or `sshd`; the test has
    /// nothing to say then, unless `$IPBROKER_LAB=require`.
    pub fn up(hosts: &[&str]) -> Option<Lab> {
        let there = |name: &str| {
            env::split_paths(&env::var_os("PATH").unwrap_or_default())
                .any(|d| d.join(name).exists())
        };
        let possible = rustix::process::geteuid().is_root()
            && ["ip", "unshare", "nsenter", "ssh-keygen"]
                .iter()
                .all(|n| there(n))
            && Path::new("/usr/sbin/sshd").exists();
        if !possible && env::var_os("IPBROKER_LAB").is_none() {
            eprintln!("skipped: several hosts need root, iproute2, util-linux and openssh-server");
            return None;
        }
        let dir = tempfile::Builder::new()
            .prefix("ipbroker-lab-")
            .tempdir()
            .expect("a temporary directory");
        let lab = Lab { dir };
        let output = Command::new(Self::script())
            .arg("up")
            .arg(lab.state())
            .args(hosts)
            .output()
            .expect("tests/hosts/lab runs");
        assert!(
            output.status.success(),
            "lab up: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        fs::create_dir_all(lab.logs()).expect("a directory");
        Some(lab)
    }

    /// The script that makes laboratories.
    pub fn script() -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("hosts/lab")
    }

    /// The directory that the script knows it by.
    pub fn state(&self) -> PathBuf {
        self.dir.path().join("lab")
    }

    fn logs(&self) -> PathBuf {
        self.dir.path().join("logs")
    }

    /// The controller's home directory.
    pub fn home(&self) -> PathBuf {
        self.state().join("home")
    }

    /// One verb of the script.
    #[track_caller]
    pub fn verb(&self, verb: &str, args: &[&str]) -> Output {
        let output = Command::new(Self::script())
            .arg(verb)
            .arg(self.state())
            .args(args)
            .output()
            .expect("tests/hosts/lab runs");
        assert!(
            output.status.success(),
            "lab {verb} {args:?}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        output
    }

    /// A command on a host, as its user.
    #[track_caller]
    pub fn on(&self, host: &str, command: &str) -> String {
        String::from_utf8_lossy(&self.verb("on", &[host, "sh", "-c", command]).stdout).into_owned()
    }

    /// A command on a host, as root.
    #[track_caller]
    pub fn root(&self, host: &str, command: &str) -> String {
        String::from_utf8_lossy(&self.verb("root", &[host, "sh", "-c", command]).stdout)
            .into_owned()
    }

    /// A built program where the controller lives.
    pub fn command(&self, name: &str, args: &[&str]) -> Command {
        let mut command = Command::new(Self::script());
        command
            .arg("ctl")
            .arg(self.state())
            .arg(program(name))
            .args(args)
            .current_dir(self.home());
        for (variable, _) in
            env::vars().filter(|(v, _)| v.starts_with("IPP_") || v.starts_with("IPYTHON"))
        {
            command.env_remove(variable);
        }
        command
    }

    /// Starts a program where the controller lives.
    #[track_caller]
    pub fn spawn(&self, name: &str, args: &[&str]) -> Program {
        Program::spawn(self.command(name, args), &self.logs())
    }

    /// Starts a program there with `input` on its standard input.
    #[track_caller]
    pub fn spawn_with(&self, name: &str, args: &[&str], input: &str) -> Program {
        let file = self.logs().join(format!("{name}.in"));
        fs::write(&file, input).expect("the test's directory can be written");
        let mut command = self.command(name, args);
        command.stdin(fs::File::open(file).expect("just written"));
        Program::spawn(command, &self.logs())
    }

    /// Runs a program there to its end.
    #[track_caller]
    pub fn run(&self, name: &str, args: &[&str], input: &str, limit: Duration) -> Finished {
        run(self.command(name, args), &self.logs(), input, limit)
    }

    /// Starts a controller and waits for its connection files.
    #[track_caller]
    pub fn controller(&self, args: &[&str]) -> Program {
        let mut program = self.spawn("ipctl", args);
        let file = self
            .home()
            .join(".ipython/profile_default/security/ipcontroller-client.json");
        eventually("the connection file", LIMIT, || {
            assert!(program.running(), "ipctl has ended: {}", program.stderr());
            file.exists().then_some(())
        });
        program
    }

    /// Engines as `ipclient engines --json` tells them.
    #[track_caller]
    pub fn engines(&self) -> Vec<serde_json::Value> {
        let text = self
            .run("ipclient", &["engines", "--json"], "", LIMIT)
            .ok()
            .stdout;
        serde_json::from_str(&text).expect("a list of engines")
    }

    /// Waits until so many engines are registered.
    #[track_caller]
    pub fn wait_for_engines(&self, count: usize) -> Vec<serde_json::Value> {
        eventually(&format!("{count} engines"), 2 * LIMIT, || {
            let engines = self.engines();
            (engines.len() == count).then_some(engines)
        })
    }

    /// What runs on a host besides the host's own: nothing should, after the end.
    #[track_caller]
    pub fn processes(&self, host: &str) -> Vec<String> {
        self.root(host, "ps -eo args=")
            .lines()
            .map(str::trim)
            .filter(|l| {
                !l.is_empty()
                    && !["host-init", "sleep 3600", "ps -eo", "sh -c ps"]
                        .iter()
                        .any(|own| l.contains(own))
                    && !l.starts_with("sshd:")
                    && !l.starts_with("/usr/sbin/sshd")
            })
            .map(str::to_owned)
            .collect()
    }

    /// Waits until nothing of ours is left on these hosts.
    #[track_caller]
    pub fn wait_for_nothing(&self, hosts: &[&str]) {
        for host in hosts {
            let mut left = Vec::new();
            let start = std::time::Instant::now();
            while start.elapsed() < LIMIT {
                left = self.processes(host);
                if left.is_empty() {
                    break;
                }
                std::thread::sleep(Duration::from_millis(50));
            }
            assert!(left.is_empty(), "left on {host}: {left:#?}");
        }
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        let _ = Command::new(Self::script())
            .arg("down")
            .arg(self.state())
            .status();
    }
}
