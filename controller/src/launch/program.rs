//! The `ipengine` that is sent to hosts: which one, what it needs, what it is called there.

use std::{
    env, fs, io,
    path::{Path, PathBuf},
};

use sha2::{Digest, Sha256};

/// An `ipengine` on this host.
#[derive(Debug, Clone)]
pub struct Program {
    /// Where it is.
    pub path: PathBuf,
    /// How long it is.
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
pub enum ProgramError {
    /// It is not there.
    #[error("no ipengine beside ipctl ({path}: {source}): build it, or name one with --engine-program", path = path.display())]
    Read {
        /// Where it was looked for.
        path: PathBuf,
        /// Why it cannot be read.
        source: io::Error,
    },
    /// It is no program for Linux.
    #[error("{path} is not a program for Linux (no ELF file): name an ipengine with --engine-program", path = path.display())]
    Format {
        /// The file.
        path: PathBuf,
    },
}

impl Program {
    /// Looks at the given program, or at the `ipengine` beside this one.
    ///
    /// # Errors
    /// When it cannot be read or is no ELF file.
    pub fn find(given: Option<&Path>) -> Result<Self, ProgramError> {
        let path = match given {
            Some(path) => path.to_owned(),
            None => env::current_exe()
                .map(|exe| exe.with_file_name("ipengine"))
                .unwrap_or_else(|_| "ipengine".into()),
        };
        let bytes = fs::read(&path).map_err(|source| ProgramError::Read {
            path: path.clone(),
            source,
        })?;
        let machine = machine(&bytes).ok_or_else(|| ProgramError::Format { path: path.clone() })?;
        let hash = Sha256::digest(&bytes)
            .iter()
            .take(8)
            .map(|b| format!("{b:02x}"))
            .collect();
        Ok(Self {
            size: bytes.len() as u64,
            hash,
            machine,
            glibc: needed_glibc(&bytes),
            path,
        })
    }

    /// Its name in a cache directory.
    #[must_use]
    pub fn cached_name(&self) -> String {
        format!("ipengine-{}", self.hash)
    }

    /// Why it cannot run on a host, if so.
    #[must_use]
    pub fn unfit(&self, system: &str, machine: &str, glibc: Option<(u32, u32)>) -> Option<String> {
        let advice = "build ipengine there, or for it, and start it there by hand (`ipctl connection-string`), or name it with --engine-program";
        if system != "Linux" {
            return Some(format!(
                "the host runs {system}, our ipengine needs Linux: {advice}"
            ));
        }
        if machine != self.machine {
            return Some(format!(
                "the host is a {machine}, our ipengine is for {}: {advice}",
                self.machine
            ));
        }
        match glibc {
            None => Some(format!(
                "the host has no glibc (musl?), our ipengine needs glibc {}.{}: {advice}",
                self.glibc.0, self.glibc.1
            )),
            Some(have) if have < self.glibc => Some(format!(
                "the host has glibc {}.{}, our ipengine needs {}.{} or later: build it on the oldest of your systems, then {advice}",
                have.0, have.1, self.glibc.0, self.glibc.1
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

    #[test]
    fn this_very_program_fits_this_host() {
        let own = Program::find(Some(&env::current_exe().unwrap())).unwrap();
        assert_eq!(own.machine, env::consts::ARCH);
        assert!(own.glibc > (2, 0) && own.glibc < (3, 0), "{:?}", own.glibc);
        assert_eq!(own.hash.len(), 16);
        assert_eq!(
            own.unfit("Linux", own.machine, Some((own.glibc.0, own.glibc.1 + 1))),
            None
        );
        assert!(
            own.unfit("Linux", own.machine, Some((2, 0)))
                .unwrap()
                .contains("glibc 2.0")
        );
        assert!(
            own.unfit("Linux", own.machine, None)
                .unwrap()
                .contains("musl")
        );
        assert!(
            own.unfit("Linux", "riscv64", Some((9, 0)))
                .unwrap()
                .contains("riscv64")
        );
        assert!(
            own.unfit("FreeBSD", own.machine, Some((9, 0)))
                .unwrap()
                .contains("FreeBSD")
        );
    }

    #[test]
    fn what_is_no_program_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let script = dir.path().join("ipengine");
        assert!(
            Program::find(Some(&script))
                .unwrap_err()
                .to_string()
                .contains("--engine-program")
        );
        fs::write(&script, "#!/bin/sh\n").unwrap();
        assert!(
            Program::find(Some(&script))
                .unwrap_err()
                .to_string()
                .contains("no ELF")
        );
    }
}
