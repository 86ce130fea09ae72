//! The `ipengine` that is sent to a host: which one runs there, what it needs, what it is called there.

use std::{
    env, fs, io,
    path::{Path, PathBuf},
};

use sha2::{Digest, Sha256};

/// An `ipengine` on this host.
#[derive(Debug, Clone)]
pub(crate) struct Program {
    pub path: PathBuf,
    pub size: u64,
    /// SHA-256, the first 16 hexadecimal digits: its name in the hosts' caches.
    pub hash: String,
    /// The machine it runs on, as `uname -m` calls it.
    pub machine: &'static str,
    /// The glibc it needs.
    pub glibc: (u32, u32),
}

/// Why there is no program to send.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ProgramError {
    /// It is not there.
    #[error("no ipengine beside ipctl ({path}: {source}): build it, or name one with --engine-program", path = path.display())]
    Read { path: PathBuf, source: io::Error },
    /// It is no program for Linux.
    #[error("{path} is not a program for Linux (no ELF file): name an ipengine with --engine-program", path = path.display())]
    Format { path: PathBuf },
}

/// Where an `ipengine` may lie for hosts on which the one beside `ipctl` does not run, relative to `ipctl`: those that
/// `scripts/release` builds in the same tree, and those of other machines in an installation.
const OTHERS: [&str; 4] = [
    "../release-2.17/ipengine",
    "../release-aarch64/ipengine",
    "../lib/ipbroker/ipengine-x86_64",
    "../lib/ipbroker/ipengine-aarch64",
];

/// The programs that may be sent, the preferred one first.
#[derive(Debug, Clone)]
pub(crate) struct Programs {
    first: Program,
    others: Vec<Program>,
}

impl Programs {
    /// The given program alone, or the `ipengine` beside this one and those for hosts where that does not run.
    pub(crate) fn find(given: Option<&Path>) -> Result<Self, ProgramError> {
        match given {
            Some(path) => Ok(Self {
                first: Program::read(path)?,
                others: Vec::new(),
            }),
            None => Self::beside(&env::current_exe().unwrap_or_else(|_| "ipctl".into())),
        }
    }

    fn beside(ipctl: &Path) -> Result<Self, ProgramError> {
        let first = Program::read(&ipctl.with_file_name("ipengine"))?;
        let others = OTHERS
            .iter()
            .map(|path| ipctl.with_file_name(path))
            // One that is not there, or only half written, is none.
            .filter_map(|path| Program::read(&path).ok());
        Ok(Self {
            first,
            others: others.collect(),
        })
    }

    /// The preferred one.
    pub(crate) fn first(&self) -> &Program {
        &self.first
    }

    /// All of them.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &Program> {
        std::iter::once(&self.first).chain(&self.others)
    }

    /// The first that runs on a host.
    pub(crate) fn for_host(
        &self,
        system: &str,
        machine: &str,
        glibc: Option<(u32, u32)>,
    ) -> Result<&Program, String> {
        if let Some(program) = self
            .iter()
            .find(|program| program.unfit(system, machine, glibc).is_none())
        {
            return Ok(program);
        }
        // Of the machine's own kind one that is too new says more than one for another kind.
        let nearest = self
            .iter()
            .filter(|program| program.machine == machine)
            .min_by_key(|program| program.glibc)
            .unwrap_or(&self.first);
        nearest
            .unfit(system, machine, glibc)
            .map_or(Ok(nearest), Err)
    }
}

impl Program {
    /// Looks at a program.
    pub(crate) fn read(path: &Path) -> Result<Self, ProgramError> {
        let path = path.to_owned();
        let bytes = fs::read(&path).map_err(|source| ProgramError::Read {
            path: path.clone(),
            source,
        })?;
        let machine = machine(&bytes).ok_or_else(|| ProgramError::Format { path: path.clone() })?;
        let hash = ipbroker_protocol::hex(&Sha256::digest(&bytes)[..8]);
        Ok(Self {
            size: bytes.len() as u64,
            hash,
            machine,
            glibc: needed_glibc(&bytes),
            path,
        })
    }

    /// Its name in a cache directory.
    pub(crate) fn cached_name(&self) -> String {
        format!("ipengine-{}", self.hash)
    }

    /// Why it cannot run on a host, if so, and which file can.
    pub(crate) fn unfit(
        &self,
        system: &str,
        machine: &str,
        glibc: Option<(u32, u32)>,
    ) -> Option<String> {
        let by_hand = "or build it there and start it by hand (`ipctl connection-string`)";
        let take = format!(
            "name the ipengine of ipbroker-{}-{machine}-linux.tar.gz with --engine-program (`scripts/release` makes it; glibc 2.17 is enough for it), {by_hand}",
            env!("CARGO_PKG_VERSION")
        );
        let own = |number: (u32, u32)| format!("{}.{}", number.0, number.1);
        if system != "Linux" {
            return Some(format!(
                "the host runs {system}, our ipengine needs Linux: build one there and start it by hand (`ipctl connection-string`)"
            ));
        }
        if machine != self.machine {
            return Some(format!(
                "the host is a {machine}, our ipengine is for {}: {take}",
                self.machine
            ));
        }
        match glibc {
            None => Some(format!(
                "the host has no glibc (musl?), our ipengine needs glibc {}: build one there and start it by hand (`ipctl connection-string`)",
                own(self.glibc)
            )),
            Some(have) if have < self.glibc => Some(format!(
                "the host has glibc {}, our ipengine needs {} or later: {take}",
                own(have),
                own(self.glibc)
            )),
            Some(_) => None,
        }
    }
}

/// The machine an ELF file is for.
fn machine(bytes: &[u8]) -> Option<&'static str> {
    if bytes.get(..4)? != b"\x7fELF" {
        return None;
    }
    let field = [*bytes.get(18)?, *bytes.get(19)?];
    let number = if *bytes.get(5)? == 1 {
        u16::from_le_bytes(field)
    } else {
        u16::from_be_bytes(field)
    };
    Some(match number {
        3 => "i686",
        21 => "ppc64le",
        22 => "s390x",
        40 => "armv7l",
        62 => "x86_64",
        183 => "aarch64",
        243 => "riscv64",
        258 => "loongarch64",
        _ => "machine of another kind",
    })
}

/// The newest `GLIBC_x.y` among the versions that the file asks its symbols of.
fn needed_glibc(bytes: &[u8]) -> (u32, u32) {
    const MARK: &[u8] = b"\0GLIBC_";
    bytes
        .windows(MARK.len())
        .enumerate()
        .filter(|(_, w)| *w == MARK)
        .filter_map(|(at, _)| {
            let rest = &bytes[at + MARK.len()..(at + MARK.len() + 16).min(bytes.len())];
            version(std::str::from_utf8(rest.split(|&b| b == 0).next()?).ok()?)
        })
        .max()
        .unwrap_or((0, 0))
}

/// `2.36` or `2.2.5`.
pub(super) fn version(text: &str) -> Option<(u32, u32)> {
    let mut parts = text.split('.');
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The least that is taken for a program: for a machine, needing a version of glibc.
    fn fake(path: &Path, machine: u8, glibc: &str) {
        let mut bytes = vec![0; 64];
        bytes[..6].copy_from_slice(b"\x7fELF\x02\x01");
        bytes[18] = machine;
        bytes.extend(format!("\0GLIBC_2.2.5\0GLIBC_{glibc}\0").bytes());
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
    }

    #[test]
    fn this_very_program_fits_this_host() {
        let own = Program::read(&env::current_exe().unwrap()).unwrap();
        assert_eq!(own.machine, env::consts::ARCH);
        assert!(own.glibc > (2, 0) && own.glibc < (3, 0), "{:?}", own.glibc);
        assert_eq!(own.hash.len(), 16);
        assert_eq!(own.unfit("Linux", own.machine, Some(own.glibc)), None);
        let reason = |system, machine, glibc| own.unfit(system, machine, glibc).unwrap();
        let tarball = |machine| {
            format!(
                "ipbroker-{}-{machine}-linux.tar.gz",
                env!("CARGO_PKG_VERSION")
            )
        };
        let old = reason("Linux", own.machine, Some((2, 0)));
        assert!(
            old.contains("glibc 2.0,") && old.contains(&tarball(own.machine)),
            "{old}"
        );
        let other = reason("Linux", "riscv64", Some((9, 0)));
        assert!(
            other.contains("a riscv64") && other.contains(&tarball("riscv64")),
            "{other}"
        );
        assert!(reason("Linux", own.machine, None).contains("musl"));
        assert!(reason("FreeBSD", own.machine, Some((9, 0))).contains("FreeBSD"));
    }

    #[test]
    fn each_host_is_sent_the_first_that_runs_there() {
        let dir = tempfile::tempdir().unwrap();
        let ipctl = dir.path().join("release/ipctl");
        let beside = dir.path().join("release/ipengine");
        let older = dir.path().join("release-2.17/ipengine");
        let other = dir.path().join("lib/ipbroker/ipengine-aarch64");
        fake(&beside, 62, "2.36");
        let alone = Programs::beside(&ipctl).unwrap();
        let error = alone
            .for_host("Linux", "x86_64", Some((2, 28)))
            .unwrap_err();
        assert!(
            error.contains("glibc 2.28, our ipengine needs 2.36"),
            "{error}"
        );

        fake(&older, 62, "2.17");
        fake(&other, 183, "2.17");
        let all = Programs::beside(&ipctl).unwrap();
        let sent = |machine, glibc| {
            let program = all.for_host("Linux", machine, Some(glibc)).unwrap();
            program.path.canonicalize().unwrap()
        };
        let canonical = |path: &Path| path.canonicalize().unwrap();
        assert_eq!(sent("x86_64", (2, 36)), canonical(&beside));
        assert_eq!(sent("x86_64", (2, 28)), canonical(&older));
        assert_eq!(sent("aarch64", (2, 28)), canonical(&other));
        let error = all.for_host("Linux", "x86_64", Some((2, 12))).unwrap_err();
        assert!(
            error.contains("glibc 2.12, our ipengine needs 2.17"),
            "{error}"
        );

        // Who names a program means that one.
        let given = Programs::find(Some(&beside)).unwrap();
        assert!(given.for_host("Linux", "x86_64", Some((2, 28))).is_err());
    }

    #[test]
    fn what_is_no_program_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let script = dir.path().join("ipengine");
        assert!(
            Programs::find(Some(&script))
                .unwrap_err()
                .to_string()
                .contains("--engine-program")
        );
        fs::write(&script, "#!/bin/sh\n").unwrap();
        assert!(
            Programs::find(Some(&script))
                .unwrap_err()
                .to_string()
                .contains("no ELF")
        );
    }
}
