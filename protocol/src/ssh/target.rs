//! Where a host is and how to log in there: the user's `~/.ssh/config`, then the system's.

use std::{
    collections::HashMap,
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use ssh2_config::{HostParams, ParseRule, SshConfig};

use super::SshError;

/// What holds for all hosts: configuration files and how strict to be.
#[derive(Debug, Clone)]
pub struct Settings {
    configs: Vec<SshConfig>,
    home: PathBuf,
    accept_new: bool,
    timeout: Duration,
}

/// One host, with everything that the configuration says about it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// The name that the user gave.
    pub alias: String,
    /// The name or address to connect to.
    pub address: String,
    /// Its port.
    pub port: u16,
    /// The user to log in as.
    pub user: String,
    /// Hosts to go through, first the nearest.
    pub jumps: Vec<String>,
    /// The name under which its key is on file, if not the address.
    pub key_alias: Option<String>,
    /// Files of known keys, the user's own first: that is where a new key is written.
    pub known_hosts: Vec<PathBuf>,
    /// Trust a key that was never seen (a changed one is never trusted).
    pub accept_new: bool,
    /// Key files named in the configuration.
    pub identities: Vec<PathBuf>,
    /// Use no other keys than those.
    pub identities_only: bool,
    /// The agent's socket, if not `$SSH_AUTH_SOCK`; `none` turns the agent off.
    pub agent: Option<String>,
    /// How long connecting may take.
    pub timeout: Duration,
    /// Key files tried when the configuration names none.
    pub default_identities: Vec<PathBuf>,
}

impl Settings {
    /// Reads `~/.ssh/config` (or `config`) and `/etc/ssh/ssh_config`. A file that is not there says nothing.
    ///
    /// # Errors
    /// When the user's file cannot be read or parsed, or `config` is given and missing.
    pub fn load(config: Option<&Path>) -> Result<Self, SshError> {
        let home = home();
        let mut configs = Vec::new();
        let user_file = config.map_or_else(|| home.join(".ssh/config"), Path::to_path_buf);
        if config.is_some() || user_file.exists() {
            configs.push(read_config(&user_file, &home)?);
        }
        // The system's file is not the user's to mend: what we cannot read there we do without.
        match read_config(Path::new("/etc/ssh/ssh_config"), &home) {
            Ok(parsed) => configs.push(parsed),
            Err(e) => tracing::debug!("{e}"),
        }
        Ok(Self {
            configs,
            home,
            accept_new: false,
            timeout: Duration::from_secs(20),
        })
    }

    /// Trust the keys of hosts seen for the first time.
    #[must_use]
    pub fn accept_new(mut self, yes: bool) -> Self {
        self.accept_new = yes;
        self
    }

    /// How long connecting to a host may take, unless its `ConnectTimeout` says otherwise.
    #[must_use]
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// Looks up `[user@]host[:port]`; a user or port given here goes before the configuration's.
    ///
    /// # Errors
    /// When `spec` has no host, or a port that is none.
    pub fn target(&self, spec: &str) -> Result<Target, SshError> {
        let (user, host, port) = split_spec(spec).ok_or_else(|| SshError::Spec {
            spec: spec.to_owned(),
        })?;
        let mut merged: Option<HostParams> = None;
        for config in &self.configs {
            let params = config.query(host);
            match &mut merged {
                Some(first) => {
                    let own = first.unsupported_fields.clone();
                    first.overwrite_if_none(&params);
                    first.unsupported_fields =
                        params.unsupported_fields.into_iter().chain(own).collect();
                }
                None => merged = Some(params),
            }
        }
        let params = merged.unwrap_or_else(|| SshConfig::default().query(host));
        let other = Other(&params.unsupported_fields);
        let local_user = local_user();
        let user = user
            .map(str::to_owned)
            .or(params.user)
            .unwrap_or_else(|| local_user.clone());
        let address = params.host_name.map_or_else(
            || host.to_owned(),
            |name| name.replace("%h", host).replace("%%", "%"),
        );
        let home = self.home.to_string_lossy().into_owned();
        let expand = |text: &str| {
            let text = text
                .strip_prefix("~/")
                .map_or_else(|| text.to_owned(), |rest| format!("{home}/{rest}"));
            text.replace("%d", &home)
                .replace("%h", &address)
                .replace("%n", host)
                .replace("%r", &user)
                .replace("%u", &local_user)
                .replace("%%", "%")
        };
        let identities = params
            .identity_file
            .unwrap_or_default()
            .iter()
            .map(|p| PathBuf::from(expand(&p.to_string_lossy())))
            .collect();
        let files = |key: &str, default: &[&str]| -> Vec<PathBuf> {
            let given = other.words(key);
            let names = if given.is_empty() {
                default.iter().map(|&s| s.to_owned()).collect()
            } else {
                given
            };
            names
                .iter()
                .filter(|n| *n != "none")
                .map(|n| PathBuf::from(expand(n)))
                .collect()
        };
        let mut known_hosts = files(
            "userknownhostsfile",
            &["~/.ssh/known_hosts", "~/.ssh/known_hosts2"],
        );
        known_hosts.extend(files(
            "globalknownhostsfile",
            &["/etc/ssh/ssh_known_hosts", "/etc/ssh/ssh_known_hosts2"],
        ));
        let lenient = other
            .word("stricthostkeychecking")
            .is_some_and(|w| matches!(w.as_str(), "no" | "off" | "accept-new"));
        Ok(Target {
            alias: host.to_owned(),
            address: address.clone(),
            port: port.or(params.port).unwrap_or(22),
            user: user.clone(),
            jumps: params
                .proxy_jump
                .unwrap_or_default()
                .into_iter()
                .filter(|j| !j.eq_ignore_ascii_case("none"))
                .collect(),
            key_alias: other.word("hostkeyalias"),
            known_hosts,
            accept_new: self.accept_new || lenient,
            identities,
            identities_only: other.word("identitiesonly").is_some_and(|w| w == "yes"),
            agent: other.word("identityagent").map(|a| expand(&a)),
            timeout: params.connect_timeout.unwrap_or(self.timeout),
            default_identities: ["id_ed25519", "id_ecdsa", "id_rsa"]
                .iter()
                .map(|n| self.home.join(".ssh").join(n))
                .collect(),
        })
    }
}

/// The options that the parser keeps as words only.
struct Other<'a>(&'a HashMap<String, Vec<String>>);

impl Other<'_> {
    fn words(&self, key: &str) -> Vec<String> {
        self.0
            .iter()
            .find(|(k, _)| k.eq_ignore_ascii_case(key))
            .map(|(_, v)| v.clone())
            .unwrap_or_default()
    }

    fn word(&self, key: &str) -> Option<String> {
        self.words(key).into_iter().next()
    }
}

/// `[ssh://][user@]host[:port]`, with IPv6 addresses in brackets.
fn split_spec(spec: &str) -> Option<(Option<&str>, &str, Option<u16>)> {
    let spec = spec.trim();
    let rest = spec
        .strip_prefix("ssh://")
        .unwrap_or(spec)
        .trim_end_matches('/');
    let (user, rest) = match rest.rsplit_once('@') {
        Some((user, rest)) => (Some(user).filter(|u| !u.is_empty()), rest),
        None => (None, rest),
    };
    let (host, port) = if let Some(inner) = rest.strip_prefix('[') {
        let (host, tail) = inner.split_once(']')?;
        (
            host,
            tail.strip_prefix(':').map(str::parse).transpose().ok()?,
        )
    } else {
        match rest.split_once(':') {
            // More than one colon: a bare IPv6 address.
            Some((_, tail)) if tail.contains(':') => (rest, None),
            Some((host, port)) => (host, Some(port.parse().ok()?)),
            None => (rest, None),
        }
    };
    (!host.is_empty() && !host.starts_with('-') && !host.contains(char::is_whitespace))
        .then_some((user, host, port))
}

fn read_config(path: &Path, home: &Path) -> Result<SshConfig, SshError> {
    let text = fs::read_to_string(path).map_err(|source| SshError::Config {
        path: path.to_owned(),
        reason: source.to_string(),
    })?;
    let rules = ParseRule::ALLOW_UNKNOWN_FIELDS | ParseRule::ALLOW_UNSUPPORTED_FIELDS;
    SshConfig::default()
        .home_dir(home)
        .parse(&mut without_match(&text).as_bytes(), rules)
        .map_err(|e| SshError::Config {
            path: path.to_owned(),
            reason: e.to_string(),
        })
}

/// The parser knows no `Match`; left in place, what stands under one would be taken for the host before it.
fn without_match(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut skipping = false;
    for line in text.lines() {
        let mut words = line
            .split(|c: char| c.is_whitespace() || c == '=')
            .filter(|w| !w.is_empty());
        let first = words.next().unwrap_or("");
        if first.eq_ignore_ascii_case("match") {
            let all = words.next().is_some_and(|w| w.eq_ignore_ascii_case("all"));
            skipping = !all;
            if all {
                out.push_str("Host *\n");
            }
            continue;
        }
        if first.eq_ignore_ascii_case("host") {
            skipping = false;
        }
        if !skipping {
            out.push_str(line);
            out.push('\n');
        }
    }
    out
}

/// The home directory: `$HOME`, else the user database's.
fn home() -> PathBuf {
    std::env::home_dir().unwrap_or_else(|| PathBuf::from("/"))
}

/// Who runs this program.
fn local_user() -> String {
    let uid = rustix::process::getuid().as_raw().to_string();
    let by_id = || {
        let passwd = fs::read_to_string("/etc/passwd").ok()?;
        passwd.lines().find_map(|line| {
            let mut fields = line.split(':');
            let (name, _, id) = (fields.next()?, fields.next()?, fields.next()?);
            (id == uid).then(|| name.to_owned())
        })
    };
    let named = |key| std::env::var(key).ok().filter(|v| !v.is_empty());
    named("USER")
        .or_else(|| named("LOGNAME"))
        .or_else(by_id)
        .unwrap_or(uid.clone())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(text: &str) -> Settings {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config");
        fs::write(&path, text).unwrap();
        Settings {
            configs: vec![read_config(&path, Path::new("/home/me")).unwrap()],
            home: "/home/me".into(),
            accept_new: false,
            timeout: Duration::from_secs(20),
        }
    }

    #[test]
    fn specs() {
        assert_eq!(split_spec("a"), Some((None, "a", None)));
        assert_eq!(split_spec("u@a:2222"), Some((Some("u"), "a", Some(2222))));
        assert_eq!(
            split_spec("ssh://u@[fe80::1]:22"),
            Some((Some("u"), "fe80::1", Some(22)))
        );
        assert_eq!(split_spec("fe80::1"), Some((None, "fe80::1", None)));
        for bad in ["", "u@", "a:x", "a:70000", "-oProxyCommand=x", "a b"] {
            assert_eq!(split_spec(bad), None, "{bad}");
        }
    }

    #[test]
    fn a_host_takes_what_the_configuration_says() {
        let settings = settings(
            "Host a\n  HostName 10.0.0.1\n  User alice\n  Port 2200\n  IdentityFile ~/.ssh/%h-key\n  IdentityFile /k2\n  IdentitiesOnly yes\n  ProxyJump gate,u@inner:2\n  UserKnownHostsFile ~/kh\n  HostKeyAlias alpha\n  StrictHostKeyChecking accept-new\n\
             Match host b exec \"true\"\n  User wrong\nHost *.lab\n  HostName %h.example.org\n  ConnectTimeout 3\n",
        );
        let a = settings.target("a").unwrap();
        assert_eq!(
            (a.address.as_str(), a.user.as_str(), a.port),
            ("10.0.0.1", "alice", 2200)
        );
        assert_eq!(
            a.identities,
            [
                PathBuf::from("/home/me/.ssh/10.0.0.1-key"),
                PathBuf::from("/k2")
            ]
        );
        assert_eq!(a.jumps, ["gate", "u@inner:2"]);
        assert_eq!(a.known_hosts[0], PathBuf::from("/home/me/kh"));
        assert_eq!(a.key_alias.as_deref(), Some("alpha"));
        assert!(a.identities_only && a.accept_new);
        let given = settings.target("bob@a:22").unwrap();
        assert_eq!(
            (given.user.as_str(), given.port, given.alias.as_str()),
            ("bob", 22, "a")
        );
        let b = settings.target("b").unwrap();
        assert_ne!(b.user, "wrong");
        assert!(!b.accept_new && b.jumps.is_empty() && b.port == 22);
        let c = settings.target("x.lab").unwrap();
        assert_eq!(
            (c.address.as_str(), c.timeout),
            ("x.lab.example.org", Duration::from_secs(3))
        );
    }

    #[test]
    fn a_broken_configuration_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config");
        fs::write(&path, "Host a\n  Port many\n").unwrap();
        let error = Settings::load(Some(&path)).unwrap_err().to_string();
        assert!(
            error.contains("config") && error.contains("port"),
            "{error}"
        );
        assert!(Settings::load(Some(&dir.path().join("none"))).is_err());
    }
}
