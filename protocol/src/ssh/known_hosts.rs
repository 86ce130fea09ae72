//! Is this host the one it was last time?

use std::{
    fs::{self, OpenOptions},
    io::{ErrorKind, Write},
    os::unix::fs::OpenOptionsExt,
};

use base64::{
    Engine as _, engine::general_purpose::STANDARD, engine::general_purpose::STANDARD_NO_PAD,
};
use ssh2::{
    CheckResult, HashType, HostKeyType, KnownHostFileKind, KnownHosts, MethodType, Session,
};

use super::{SshError, Target};

/// The keys on file for one host, read before the handshake: they also say which type of key to ask for.
pub(super) struct Known {
    known: KnownHosts,
    revoked: KnownHosts,
    types: Vec<String>,
    name: String,
    port: u16,
}

impl Known {
    /// Reads the target's files. Lines that cannot be read are skipped, as OpenSSH does.
    pub(super) fn load(session: &Session, target: &Target) -> Result<Self, SshError> {
        let failed = |source| SshError::session(&target.alias, "read known hosts", source);
        let mut this = Self {
            known: session.known_hosts().map_err(failed)?,
            revoked: session.known_hosts().map_err(failed)?,
            types: Vec::new(),
            name: target
                .key_alias
                .clone()
                .unwrap_or_else(|| target.address.clone())
                .to_lowercase(),
            // With an alias OpenSSH looks for the bare name.
            port: if target.key_alias.is_some() {
                22
            } else {
                target.port
            },
        };
        for file in &target.known_hosts {
            match fs::read_to_string(file) {
                Ok(text) => text.lines().for_each(|line| this.add_line(line)),
                Err(e) if e.kind() == ErrorKind::NotFound => {}
                Err(source) => {
                    let doing = format!("read {}", file.display());
                    return Err(SshError::io(&target.alias, &doing, source));
                }
            }
        }
        Ok(this)
    }

    fn add_line(&mut self, line: &str) {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            return;
        }
        let (revoked, line) = match line.strip_prefix("@revoked") {
            Some(rest) => (true, rest.trim_start()),
            None if line.starts_with('@') => return,
            None => (false, line),
        };
        let mut words = line.split_whitespace();
        let (Some(names), Some(kind), Some(key)) = (words.next(), words.next(), words.next())
        else {
            return;
        };
        let Ok(raw) = STANDARD.decode(key) else {
            return;
        };
        // libssh2 knows hashed names but no patterns, so those are matched here.
        let own = format!("{} {kind} {key}", self.hostname());
        let line = if names.contains(['*', '?', '!']) {
            if !self.matches(names) {
                return;
            }
            own.as_str()
        } else {
            line
        };
        let set = if revoked {
            &mut self.revoked
        } else {
            &mut self.known
        };
        if set.read_str(line, KnownHostFileKind::OpenSSH).is_err() {
            tracing::debug!("known hosts: skipped a line with a key of type {kind}");
            return;
        }
        if !revoked
            && matches!(
                self.known.check_port(&self.name, self.port, &raw),
                CheckResult::Match
            )
            && !self.types.iter().any(|t| t == kind)
        {
            self.types.push(kind.to_owned());
        }
    }

    /// The host as a known_hosts line names it.
    fn hostname(&self) -> String {
        if self.port == 22 {
            self.name.clone()
        } else {
            format!("[{}]:{}", self.name, self.port)
        }
    }

    fn matches(&self, patterns: &str) -> bool {
        let name = self.hostname();
        let mut found = false;
        for pattern in patterns.split(',') {
            match pattern.strip_prefix('!') {
                Some(not) if glob(not.to_lowercase().as_bytes(), name.as_bytes()) => return false,
                Some(_) => {}
                None => found |= glob(pattern.to_lowercase().as_bytes(), name.as_bytes()),
            }
        }
        found
    }

    /// Asks the server for a key of a type that is on file, else any other of its keys would look like a changed one.
    pub(super) fn prefer_known_types(&self, session: &Session) {
        let mut order: Vec<&str> = Vec::new();
        for kind in &self.types {
            match kind.as_str() {
                "ssh-rsa" => order.extend(["rsa-sha2-512", "rsa-sha2-256", "ssh-rsa"]),
                other => order.push(other),
            }
        }
        if order.is_empty() {
            return;
        }
        let supported = session
            .supported_algs(MethodType::HostKey)
            .unwrap_or_default();
        order.retain(|kind| supported.contains(kind));
        // The others stay as a last resort, so that a host with only a new key is told apart from one that speaks no SSH.
        order.extend(
            supported
                .iter()
                .copied()
                .filter(|kind| !self.types.iter().any(|t| t == kind) && !kind.contains("rsa")),
        );
        if let Err(e) = session.method_pref(MethodType::HostKey, &order.join(",")) {
            tracing::debug!("host key preference: {e}");
        }
    }

    /// Checks the key that the server has shown; writes a new one down if the target allows it.
    pub(super) fn check(&self, session: &Session, target: &Target) -> Result<(), SshError> {
        let host = target.alias.clone();
        let Some((key, kind)) = session.host_key() else {
            let reason = "the server has shown no host key";
            return Err(SshError::lost(&host, reason));
        };
        let kind = type_name(kind);
        let fingerprint = fingerprint(session);
        let files = target
            .known_hosts
            .first()
            .map_or_else(|| "no file".to_owned(), |file| file.display().to_string());
        if matches!(
            self.revoked.check_port(&self.name, self.port, key),
            CheckResult::Match
        ) {
            return Err(SshError::HostKeyRevoked {
                host,
                kind,
                fingerprint,
                files,
            });
        }
        match self.known.check_port(&self.name, self.port, key) {
            CheckResult::Match => Ok(()),
            CheckResult::Mismatch => Err(SshError::HostKeyChanged {
                host,
                name: self.hostname(),
                kind,
                fingerprint,
                files,
            }),
            CheckResult::NotFound | CheckResult::Failure if target.accept_new => {
                tracing::info!("{host}: trusting the new host key {kind} {fingerprint}");
                self.remember(target, kind, key)
            }
            CheckResult::NotFound | CheckResult::Failure => Err(SshError::HostKeyUnknown {
                host,
                name: self.hostname(),
                kind,
                fingerprint,
                files,
            }),
        }
    }

    /// Appends the key to the user's file, as one line in one write: many hosts are added at once.
    fn remember(&self, target: &Target, kind: &str, key: &[u8]) -> Result<(), SshError> {
        let Some(file) = target.known_hosts.first() else {
            return Ok(());
        };
        let doing = format!("write {}", file.display());
        let failed = |source| SshError::io(&target.alias, &doing, source);
        if let Some(dir) = file.parent() {
            fs::create_dir_all(dir).map_err(failed)?;
        }
        let missing_newline =
            fs::read(file).is_ok_and(|text| text.last().is_some_and(|&b| b != b'\n'));
        let line = format!(
            "{}{} {kind} {}\n",
            if missing_newline { "\n" } else { "" },
            self.hostname(),
            STANDARD.encode(key)
        );
        let mut out = OpenOptions::new()
            .create(true)
            .append(true)
            .mode(0o600)
            .open(file)
            .map_err(failed)?;
        out.write_all(line.as_bytes()).map_err(failed)
    }
}

fn type_name(kind: HostKeyType) -> &'static str {
    match kind {
        HostKeyType::Rsa => "ssh-rsa",
        HostKeyType::Dss => "ssh-dss",
        HostKeyType::Ecdsa256 => "ecdsa-sha2-nistp256",
        HostKeyType::Ecdsa384 => "ecdsa-sha2-nistp384",
        HostKeyType::Ecdsa521 => "ecdsa-sha2-nistp521",
        HostKeyType::Ed25519 => "ssh-ed25519",
        HostKeyType::Unknown => "unknown",
    }
}

fn fingerprint(session: &Session) -> String {
    session.host_key_hash(HashType::Sha256).map_or_else(
        || "of unknown fingerprint".to_owned(),
        |hash| format!("SHA256:{}", STANDARD_NO_PAD.encode(hash)),
    )
}

/// `*` and `?` as in known_hosts.
fn glob(pattern: &[u8], text: &[u8]) -> bool {
    match (pattern.first(), text.first()) {
        (None, None) => true,
        (Some(b'*'), _) => {
            glob(&pattern[1..], text) || (!text.is_empty() && glob(pattern, &text[1..]))
        }
        (Some(b'?'), Some(_)) => glob(&pattern[1..], &text[1..]),
        (Some(p), Some(t)) if p == t => glob(&pattern[1..], &text[1..]),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ssh::Settings;

    const ED: &str = "AAAAC3NzaC1lZDI1NTE5AAAAIOMqqnkVzrm0SdG6UOoqKLsabgH5C9okWi0dh2l9GKJl";
    const OTHER: &str = "AAAAC3NzaC1lZDI1NTE5AAAAIAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA";

    fn known(lines: &str, address: &str, port: u16) -> Known {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("known_hosts");
        fs::write(&file, lines).unwrap();
        let mut target = Settings::load(None)
            .unwrap()
            .target(&format!("{address}:{port}"))
            .unwrap();
        target.address = address.to_owned();
        target.known_hosts = vec![file];
        Known::load(&Session::new().unwrap(), &target).unwrap()
    }

    fn result(known: &Known, key: &str) -> &'static str {
        match known
            .known
            .check_port(&known.name, known.port, &STANDARD.decode(key).unwrap())
        {
            CheckResult::Match => "match",
            CheckResult::Mismatch => "mismatch",
            CheckResult::NotFound => "not found",
            CheckResult::Failure => "failure",
        }
    }

    #[test]
    fn plain_pattern_and_port() {
        let plain = known(
            &format!(
                "garbage\n@cert-authority * ssh-ed25519 {OTHER}\nhost.lab,10.0.0.1 ssh-ed25519 {ED} me\n"
            ),
            "10.0.0.1",
            22,
        );
        assert_eq!(plain.types, ["ssh-ed25519"]);
        assert_eq!(
            (result(&plain, ED), result(&plain, OTHER)),
            ("match", "mismatch")
        );
        let pattern = known(
            &format!("*.lab,!bad.lab ssh-ed25519 {ED}\n"),
            "good.lab",
            22,
        );
        assert_eq!(result(&pattern, ED), "match");
        assert_eq!(
            result(
                &known(&format!("*.lab,!bad.lab ssh-ed25519 {ED}\n"), "bad.lab", 22),
                ED
            ),
            "not found"
        );
        assert_eq!(
            result(
                &known(&format!("[h]:2222 ssh-ed25519 {ED}\n"), "h", 2222),
                ED
            ),
            "match"
        );
        assert_eq!(
            result(
                &known(&format!("[h]:2222 ssh-ed25519 {ED}\n"), "other", 2222),
                ED
            ),
            "not found"
        );
    }

    #[test]
    fn hashed_names() {
        // Made with `ssh-keygen -H` for 10.77.0.11.
        let file = include_str!("testdata/hashed_known_hosts");
        let hashed = known(file, "10.77.0.11", 22);
        assert_eq!(hashed.types, ["ssh-ed25519"]);
        assert_eq!(result(&hashed, ED), "match");
        assert_eq!(result(&hashed, OTHER), "mismatch");
        assert_eq!(result(&known(file, "10.77.0.12", 22), ED), "not found");
    }

    #[test]
    fn revoked_keys_are_kept_apart() {
        let known = known(&format!("@revoked * ssh-ed25519 {ED}\n"), "h", 22);
        assert!(matches!(
            known
                .revoked
                .check_port("h", 22, &STANDARD.decode(ED).unwrap()),
            CheckResult::Match
        ));
        assert_eq!(result(&known, ED), "not found");
    }
}
