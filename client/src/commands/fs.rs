//! `ipclient fs`: files on the engines' hosts.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Args, Subcommand};
use ipbroker_client::Host;
use ipbroker_client::protocol::message::{Command, FsOp, FsReply, FsRequest, FsStat};

use super::Outcome;
use crate::cli::ClusterArgs;
use crate::failure::Failure;
use crate::output::{clock, json};

/// Work with files on the engines' hosts, as the engines' user
///
/// HOSTS is a host's name, alias or address, an engine's number, several of them with commas between, or `all`. Relative
/// paths begin in the engine's working directory, `~/` in its user's home.
#[derive(Debug, Args)]
#[command(
    after_help = "Example:\n  ipclient fs put all data.txt /tmp/data.txt\n  ipclient fs ls a,b /tmp\n  ipclient fs get a result.txt ."
)]
pub(crate) struct FsArgs {
    #[command(subcommand)]
    action: Action,
    /// Print one line of JSON for each host
    #[arg(long, global = true)]
    json: bool,
}

#[derive(Debug, Args)]
struct At {
    /// Names of hosts or numbers of engines, with commas between, or `all`
    hosts: String,
    /// Which path
    path: String,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// List a directory
    #[command(after_help = "Example:\n  ipclient fs ls a,b /tmp")]
    Ls {
        /// Names of hosts or numbers of engines, with commas between, or `all`
        hosts: String,
        /// Which directory
        #[arg(default_value = ".")]
        path: String,
    },
    /// Tell kind, size, permissions and time of a path
    #[command(after_help = "Example:\n  ipclient fs stat a /etc/hostname --json")]
    Stat(At),
    /// Succeed if a path is there (on every host)
    #[command(after_help = "Example:\n  ipclient fs exists all /data && ipclient run jobs")]
    Exists(At),
    /// Make a directory
    #[command(after_help = "Example:\n  ipclient fs mkdir --parents all /tmp/work/in")]
    Mkdir {
        #[command(flatten)]
        at: At,
        /// Also those above it; no error if it is there
        #[arg(long)]
        parents: bool,
        /// Permission bits, octal
        #[arg(short, long, value_parser = octal)]
        mode: Option<u32>,
    },
    /// Make a directory of a new name and print it
    #[command(after_help = "Example:\n  dir=$(ipclient fs newdir a)")]
    Newdir {
        /// Names of hosts or numbers of engines, with commas between, or `all`
        hosts: String,
        /// In which directory [default: the host's temporary one]
        #[arg(default_value = "", hide_default_value = true)]
        path: String,
    },
    /// Print the engine's working directory
    #[command(after_help = "Example:\n  ipclient fs pwd all")]
    Pwd {
        /// Names of hosts or numbers of engines, with commas between, or `all`
        hosts: String,
    },
    /// Remove files
    #[command(after_help = "Example:\n  ipclient fs rm -r all /tmp/work")]
    Rm {
        /// Names of hosts or numbers of engines, with commas between, or `all`
        hosts: String,
        /// Which
        #[arg(required = true)]
        paths: Vec<String>,
        /// Directories with all that is in them
        #[arg(short, long)]
        recursive: bool,
        /// No error for what is not there
        #[arg(short, long)]
        force: bool,
    },
    /// Remove an empty directory
    #[command(after_help = "Example:\n  ipclient fs rmdir a /tmp/work")]
    Rmdir(At),
    /// Send a local file (`-`: standard input)
    #[command(after_help = "Example:\n  ipclient fs put all model.bin /tmp/model.bin")]
    Put {
        /// Names of hosts or numbers of engines, with commas between, or `all`
        hosts: String,
        /// Which local file
        local: PathBuf,
        /// Its path there [default: the same name]
        #[arg(default_value = "", hide_default_value = true)]
        path: String,
    },
    /// Fetch a file; from several hosts each gets the host's name behind its own
    #[command(after_help = "Example:\n  ipclient fs get a,b /tmp/out.txt results/")]
    Get {
        /// Names of hosts or numbers of engines, with commas between, or `all`
        hosts: String,
        /// Which file there
        path: String,
        /// Local file or directory
        #[arg(default_value = ".")]
        local: PathBuf,
    },
    /// Print a file
    #[command(after_help = "Example:\n  ipclient fs cat a /etc/hostname")]
    Cat(At),
    /// Write standard input to a file
    #[command(after_help = "Example:\n  echo hello | ipclient fs write all /tmp/hello")]
    Write {
        #[command(flatten)]
        at: At,
        /// At its end
        #[arg(short, long)]
        append: bool,
    },
    /// Change permission bits
    #[command(after_help = "Example:\n  ipclient fs chmod all 755 /tmp/tool")]
    Chmod {
        /// Names of hosts or numbers of engines, with commas between, or `all`
        hosts: String,
        /// Octal
        #[arg(value_parser = octal)]
        mode: u32,
        /// Which path
        path: String,
    },
    /// Make a symbolic link
    #[command(after_help = "Example:\n  ipclient fs ln all /data/v2 /tmp/data")]
    Ln {
        /// Names of hosts or numbers of engines, with commas between, or `all`
        hosts: String,
        /// Where it points
        to: String,
        /// The link
        path: String,
    },
    /// Make a named pipe
    #[command(after_help = "Example:\n  ipclient fs mkfifo a /tmp/pipe")]
    Mkfifo {
        #[command(flatten)]
        at: At,
        /// Permission bits, octal
        #[arg(short, long, value_parser = octal)]
        mode: Option<u32>,
    },
    /// Run a command at once, beside the queue
    #[command(after_help = "Example:\n  ipclient fs run all 'df -h /tmp'")]
    Run {
        /// Names of hosts or numbers of engines, with commas between, or `all`
        hosts: String,
        /// The command, for a shell
        #[arg(required = true, trailing_var_arg = true)]
        command: Vec<String>,
    },
}

fn octal(text: &str) -> Result<u32, String> {
    u32::from_str_radix(text, 8)
        .ok()
        .filter(|&mode| mode <= 0o7777)
        .ok_or_else(|| "octal permission bits are needed, such as 755".to_owned())
}

/// What is the same for all operations.
struct Fs {
    hosts: Vec<Host>,
    json: bool,
}

pub(crate) fn main(args: FsArgs, cluster: &ClusterArgs) -> Outcome {
    let open = |hosts: &str| -> Result<Fs, Failure> {
        let names: Vec<&str> = hosts.split(',').filter(|h| !h.is_empty()).collect();
        if names.is_empty() {
            return Err(Failure::usage("no host is named"));
        }
        let hosts = cluster.connect()?.hosts(&names)?;
        let json = args.json;
        Ok(Fs { hosts, json })
    };
    match args.action {
        Action::Ls { hosts, path } => open(&hosts)?.each(&plain(FsOp::Ls, &path), entries),
        Action::Stat(At { hosts, path }) => open(&hosts)?
            .each(&plain(FsOp::Stat, &path), |reply| {
                reply.stat.iter().map(|stat| long(stat) + "\n").collect()
            }),
        Action::Exists(At { hosts, path }) => {
            open(&hosts)?.each(&plain(FsOp::Exists, &path), |reply| {
                let there = reply.exists == Some(true);
                if there { "yes\n" } else { "no\n" }.to_owned()
            })
        }
        Action::Mkdir { at, parents, mode } => {
            let request = FsRequest {
                recursive: parents,
                mode,
                ..plain(FsOp::Mkdir, &at.path)
            };
            open(&at.hosts)?.each(&request, nothing)
        }
        Action::Newdir { hosts, path } => open(&hosts)?.each(&plain(FsOp::Newdir, &path), place),
        Action::Pwd { hosts } => open(&hosts)?.each(&plain(FsOp::Pwd, ""), place),
        Action::Rm {
            hosts,
            paths,
            recursive,
            force,
        } => open(&hosts)?.remove(&paths, recursive, force),
        Action::Rmdir(At { hosts, path }) => {
            open(&hosts)?.each(&plain(FsOp::Rmdir, &path), nothing)
        }
        Action::Put { hosts, local, path } => open(&hosts)?.put(&local, &path),
        Action::Get { hosts, path, local } => open(&hosts)?.get(&path, &local),
        Action::Cat(At { hosts, path }) => open(&hosts)?.cat(&path),
        Action::Write { at, append } => open(&at.hosts)?.spread(&at.path, append),
        Action::Chmod { hosts, mode, path } => {
            let request = FsRequest {
                mode: Some(mode),
                ..plain(FsOp::Chmod, &path)
            };
            open(&hosts)?.each(&request, nothing)
        }
        Action::Ln { hosts, to, path } => {
            let request = FsRequest {
                to,
                ..plain(FsOp::Ln, &path)
            };
            open(&hosts)?.each(&request, nothing)
        }
        Action::Mkfifo { at, mode } => {
            let request = FsRequest {
                mode,
                ..plain(FsOp::Mkfifo, &at.path)
            };
            open(&at.hosts)?.each(&request, nothing)
        }
        Action::Run { hosts, command } => open(&hosts)?.run(&command),
    }
}

fn plain(op: FsOp, path: &str) -> FsRequest {
    FsRequest {
        op,
        path: path.into(),
        ..FsRequest::default()
    }
}

fn nothing(_: &FsReply) -> String {
    String::new()
}

fn place(reply: &FsReply) -> String {
    format!("{}\n", reply.path.as_deref().unwrap_or_default())
}

fn entries(reply: &FsReply) -> String {
    let entries = reply.entries.iter();
    entries.map(|entry| long(entry) + "\n").collect()
}

/// A line as `ls -l` writes it.
fn long(stat: &FsStat) -> String {
    let kind = match stat.kind.as_str() {
        "dir" => 'd',
        "link" => 'l',
        "fifo" => 'p',
        "socket" => 's',
        "block" => 'b',
        "char" => 'c',
        _ => '-',
    };
    let mut bits = String::new();
    for shift in [6, 3, 0] {
        for (bit, letter) in [(4, 'r'), (2, 'w'), (1, 'x')] {
            let set = stat.mode >> shift & bit != 0;
            bits.push(if set { letter } else { '-' });
        }
    }
    let time = clock(stat.mtime, "%Y-%m-%d %H:%M");
    let to = stat.to.as_ref().map(|to| format!(" -> {to}"));
    let to = to.unwrap_or_default();
    format!("{kind}{bits} {:>12} {time} {}{to}", stat.size, stat.name)
}

impl Fs {
    /// Does something on every host; one that fails is told of, and the others go on.
    fn on_all(&self, mut act: impl FnMut(&Host) -> Result<bool, Failure>) -> Outcome {
        let mut good = true;
        for host in &self.hosts {
            match act(host) {
                Ok(ok) => good &= ok,
                Err(failure) => {
                    eprintln!("ipclient: {failure}");
                    good = false;
                }
            }
        }
        Ok(ExitCode::from(u8::from(!good)))
    }

    fn heading(&self, host: &Host) -> io::Result<()> {
        match self.hosts.len() {
            0 | 1 => Ok(()),
            _ => writeln!(io::stdout(), "{}:", host.name()),
        }
    }

    fn line(&self, host: &Host, reply: &FsReply) -> Result<(), Failure> {
        let mut reply = reply.clone();
        reply.host = host.name().to_owned();
        json::print(&reply).map(drop)
    }

    /// One request on every host, and what is printed of its answer.
    fn each(&self, request: &FsRequest, text: impl Fn(&FsReply) -> String) -> Outcome {
        self.on_all(|host| {
            let reply = host.request(request)?;
            let good = reply.exists != Some(false);
            if self.json {
                self.line(host, &reply)?;
                return Ok(good);
            }
            if matches!(
                request.op,
                FsOp::Ls | FsOp::Stat | FsOp::Exists | FsOp::Newdir | FsOp::Pwd
            ) {
                self.heading(host)?;
            }
            io::stdout().write_all(text(&reply).as_bytes())?;
            Ok(good)
        })
    }

    fn remove(&self, paths: &[String], recursive: bool, force: bool) -> Outcome {
        self.on_all(|host| {
            for path in paths {
                // A broken link is not there for `exists`, but can be removed: so only a refusal of both counts.
                let there = plain(FsOp::Exists, path);
                let request = FsRequest {
                    recursive,
                    ..plain(FsOp::Rm, path)
                };
                if let Err(error) = host.request(&request)
                    && !(force && host.request(&there)?.exists == Some(false))
                {
                    return Err(error.into());
                }
            }
            Ok(true)
        })
    }

    fn put(&self, local: &Path, path: &str) -> Outcome {
        let failed = |e: io::Error| Failure::new(format!("{}: {e}", local.display()));
        let name = local.file_name().map(|n| n.to_string_lossy().into_owned());
        let path = match (path, name) {
            ("", Some(name)) => name,
            ("", None) => return Err(Failure::usage("a path on the host is needed")),
            (dir, Some(name)) if dir.ends_with('/') => format!("{dir}{name}"),
            (path, _) => path.to_owned(),
        };
        if local == Path::new("-") {
            return self.spread(&path, false);
        }
        let mode = fs::metadata(local).map_err(failed)?.permissions().mode() & 0o7777;
        self.on_all(|host| {
            let size = host.put(File::open(local).map_err(failed)?, &path, Some(mode))?;
            self.moved(host, &path, size)
        })
    }

    fn moved(&self, host: &Host, path: &str, size: u64) -> Result<bool, Failure> {
        if self.json {
            let stat = FsStat {
                size,
                ..FsStat::default()
            };
            let reply = FsReply {
                status: "ok".into(),
                path: Some(path.into()),
                stat: Some(stat),
                ..FsReply::default()
            };
            self.line(host, &reply)?;
        }
        Ok(true)
    }

    /// Standard input to all hosts: kept, because it can be read once only.
    fn spread(&self, path: &str, append: bool) -> Outcome {
        let mut text = Vec::new();
        io::Read::read_to_end(&mut io::stdin().lock(), &mut text)?;
        self.on_all(|host| {
            if append {
                host.append(&text, path)?;
            } else {
                host.put(&text[..], path, None)?;
            }
            self.moved(host, path, text.len() as u64)
        })
    }

    fn get(&self, path: &str, local: &Path) -> Outcome {
        let name = Path::new(path)
            .file_name()
            .map(|n| n.to_string_lossy().into_owned())
            .ok_or_else(|| Failure::usage(format!("`{path}` names no file")))?;
        let base = if local.is_dir() {
            local.join(name)
        } else {
            local.to_owned()
        };
        self.on_all(|host| {
            let to = if self.hosts.len() > 1 {
                let mut name = base.clone().into_os_string();
                name.push(format!(".{}", host.name()));
                PathBuf::from(name)
            } else {
                base.clone()
            };
            let failed = |e: io::Error| Failure::new(format!("{}: {e}", to.display()));
            let dir = to
                .parent()
                .filter(|p| !p.as_os_str().is_empty())
                .unwrap_or(Path::new("."));
            // Whole or not at all.
            let mut file = tempfile::NamedTempFile::new_in(dir).map_err(failed)?;
            let (size, mode) = host.get(path, &mut file)?;
            if let Some(mode) = mode {
                file.as_file()
                    .set_permissions(fs::Permissions::from_mode(mode & 0o777))
                    .map_err(failed)?;
            }
            file.persist(&to).map_err(|e| failed(e.error))?;
            self.moved(host, &to.to_string_lossy(), size)
        })
    }

    fn cat(&self, path: &str) -> Outcome {
        self.on_all(|host| {
            self.heading(host)?;
            let mut out = io::stdout().lock();
            host.get(path, &mut out)?;
            out.flush()?;
            Ok(true)
        })
    }

    fn run(&self, words: &[String]) -> Outcome {
        let command = Command {
            cmd: words.join(" "),
            capture: 64 << 20,
            ..Command::default()
        };
        let mut code = 0;
        let outcome = self.on_all(|host| {
            let result = host.run(command.clone())?;
            if result.status != "ok" {
                let why = result.evalue.unwrap_or_else(|| result.status.clone());
                return Err(Failure::new(format!("{}: {why}", host.name())));
            }
            code = code.max(result.code.unwrap_or(1));
            if self.json {
                let reply = FsReply {
                    status: "ok".into(),
                    result: Some(result),
                    ..FsReply::default()
                };
                self.line(host, &reply)?;
                return Ok(true);
            }
            self.heading(host)?;
            io::stdout().write_all(result.output())?;
            io::stdout().flush()?;
            let _ = io::stderr().write_all(result.errors());
            Ok(true)
        })?;
        if outcome == ExitCode::SUCCESS {
            return Ok(ExitCode::from(code.clamp(0, 255) as u8));
        }
        Ok(outcome)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_read_like_ls() {
        let stat = FsStat {
            name: "pipe".into(),
            kind: "fifo".into(),
            size: 0,
            mode: 0o640,
            to: None,
            ..FsStat::default()
        };
        let line = long(&stat);
        assert!(
            line.starts_with("prw-r----- ") && line.ends_with(" pipe"),
            "{line}"
        );
        let link = FsStat {
            name: "l".into(),
            kind: "link".into(),
            to: Some("/there".into()),
            ..FsStat::default()
        };
        assert!(long(&link).ends_with(" l -> /there"));
    }

    #[test]
    fn modes_are_octal() {
        assert_eq!(octal("755"), Ok(0o755));
        assert!(octal("8").is_err() && octal("77777").is_err());
    }
}
