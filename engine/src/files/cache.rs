//! Inputs of jobs by the hash of their bytes, so that what has not changed is not sent again.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Seek, SeekFrom, Write},
    path::{Path, PathBuf},
    time::SystemTime,
};

use ipbroker_protocol::sha256 as hash;

use super::FileError;

/// What the cache may hold; the files used longest ago go first.
const LIMIT: u64 = 10 << 30;

/// A directory of files named by their SHA-256. Several engine processes of a host share it.
#[derive(Debug, Clone)]
pub(crate) struct Cache {
    dir: PathBuf,
    limit: u64,
}

impl Cache {
    /// `$XDG_CACHE_HOME/ipbroker/files`, `~/.cache/ipbroker/files`, or below the temporary directory.
    pub(crate) fn find() -> Self {
        let base = std::env::var_os("XDG_CACHE_HOME")
            .filter(|dir| !dir.is_empty())
            .map(PathBuf::from)
            .or_else(|| {
                std::env::home_dir()
                    .filter(|home| !home.as_os_str().is_empty())
                    .map(|home| home.join(".cache"))
            })
            .unwrap_or_else(std::env::temp_dir);
        Self::in_dir(base.join("ipbroker/files"), LIMIT)
    }

    /// A cache in this directory.
    pub(crate) fn in_dir(dir: PathBuf, limit: u64) -> Self {
        Self { dir, limit }
    }

    fn path(&self, sha256: &str) -> Result<PathBuf, FileError> {
        if sha256.len() != 64 || !sha256.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return Err(FileError::Request(format!(
                "{sha256:?} is no SHA-256 in hex"
            )));
        }
        Ok(self.dir.join(sha256.to_ascii_lowercase()))
    }

    /// Whether the file of this hash is here. It counts as used now.
    pub(crate) fn has(&self, sha256: &str) -> bool {
        let Ok(path) = self.path(sha256) else {
            return false;
        };
        match File::open(path) {
            Ok(file) => {
                let _ = file.set_modified(SystemTime::now());
                true
            }
            Err(_) => false,
        }
    }

    /// Takes a part of the file of this hash; with the last one the whole is checked.
    pub(crate) fn store(
        &self,
        sha256: &str,
        offset: u64,
        bytes: &[u8],
        last: bool,
    ) -> Result<(), FileError> {
        let path = self.path(sha256)?;
        fs::create_dir_all(&self.dir).map_err(FileError::io("make", &self.dir))?;
        if offset == 0 && last {
            return self.store_whole(path, sha256, bytes);
        }
        let part = path.with_extension("part");
        let mut file = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .read(true)
            .open(&part)
            .map_err(FileError::io("write", &part))?;
        let write = |file: &mut File| -> io::Result<()> {
            file.seek(SeekFrom::Start(offset))?;
            file.write_all(bytes)?;
            file.set_len(offset + bytes.len() as u64)
        };
        write(&mut file).map_err(FileError::io("write", &part))?;
        if last {
            file.rewind().map_err(FileError::io("read", &part))?;
            let found = hash(&mut file).map_err(FileError::io("read", &part))?;
            if !found.eq_ignore_ascii_case(sha256) {
                let _ = fs::remove_file(&part);
                return Err(FileError::Hash {
                    path,
                    found,
                    expected: sha256.to_owned(),
                });
            }
            fs::rename(&part, &path).map_err(FileError::io("rename", &part))?;
            self.evict(&path);
        }
        Ok(())
    }

    fn store_whole(&self, path: PathBuf, sha256: &str, bytes: &[u8]) -> Result<(), FileError> {
        let found = hash(bytes).map_err(FileError::io("read", &path))?;
        if !found.eq_ignore_ascii_case(sha256) {
            return Err(FileError::Hash {
                path,
                found,
                expected: sha256.to_owned(),
            });
        }
        if self.has(sha256) {
            return Ok(());
        }
        // A name of its own: several engines of a host may get the same file at once.
        let mut file =
            tempfile::NamedTempFile::new_in(&self.dir).map_err(FileError::io("write", &path))?;
        file.write_all(bytes)
            .map_err(FileError::io("write", &path))?;
        file.persist(&path)
            .map_err(|error| FileError::io("write", &path)(error.error))?;
        self.evict(&path);
        Ok(())
    }

    /// Copies the input `name` of this hash to `to`; a job may change its copy.
    pub(crate) fn copy(&self, name: &str, sha256: &str, to: &Path) -> Result<(), FileError> {
        if !self.has(sha256) {
            return Err(FileError::NotCached {
                path: name.to_owned(),
                sha256: sha256.to_owned(),
                cache: self.dir.clone(),
            });
        }
        fs::copy(self.path(sha256)?, to)
            .map(drop)
            .map_err(FileError::io("write", to))
    }

    /// Removes the files used longest ago until the cache fits; never `keep`.
    fn evict(&self, keep: &Path) {
        let mut files: Vec<(SystemTime, u64, PathBuf)> = fs::read_dir(&self.dir)
            .into_iter()
            .flatten()
            .filter_map(|entry| {
                let entry = entry.ok()?;
                let meta = entry.metadata().ok()?;
                Some((meta.modified().ok()?, meta.len(), entry.path()))
            })
            .collect();
        let mut total: u64 = files.iter().map(|(_, size, _)| size).sum();
        files.sort_unstable();
        for (_, size, path) in files {
            if total <= self.limit {
                return;
            }
            if path != keep && fs::remove_file(&path).is_ok() {
                total -= size;
            }
        }
    }
}
