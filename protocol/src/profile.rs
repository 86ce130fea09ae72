//! Profile directories: `$IPYTHONDIR/profile_NAME`, with connection files below `security/`.

use std::{
    env, fs,
    io::{self, Write},
    path::{Path, PathBuf},
};

/// Why there is no profile directory to work in.
#[derive(Debug, thiserror::Error)]
pub enum ProfileError {
    /// Neither `$IPYTHONDIR` nor `$HOME` says where profiles live.
    #[error("no home directory: set $HOME or $IPYTHONDIR, or give --profile-dir")]
    NoHome,
    /// The cluster id is part of the names of files.
    #[error("a cluster id has no slash: {0:?}; give another one with --cluster-id")]
    ClusterId(String),
    /// It cannot be made or written.
    #[error("profile directory {path}: {source}; give another one with --profile-dir")]
    Io {
        /// Which directory.
        path: PathBuf,
        /// The system's word.
        source: io::Error,
    },
}

/// One profile, and perhaps one of several clusters in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Profile {
    dir: PathBuf,
    cluster_id: String,
}

/// Which connection file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// `…-client.json`
    Client,
    /// `…-engine.json`
    Engine,
}

impl Profile {
    /// Finds a profile: an explicit directory, else `$IPP_PROFILE_DIR` (unless a name is given), else `$IPYTHONDIR/profile_NAME`.
    /// Nothing is created.
    ///
    /// # Errors
    /// [`ProfileError::NoHome`] when nothing says where profiles live, [`ProfileError::ClusterId`].
    pub fn find(
        name: Option<&str>,
        dir: Option<&Path>,
        cluster_id: Option<&str>,
    ) -> Result<Self, ProfileError> {
        let cluster_id = cluster_id
            .map(str::to_owned)
            .or_else(|| env::var("IPP_CLUSTER_ID").ok())
            .unwrap_or_default();
        if cluster_id.contains('/') {
            return Err(ProfileError::ClusterId(cluster_id));
        }
        let from_env = || {
            env::var_os("IPP_PROFILE_DIR")
                .filter(|dir| !dir.is_empty() && name.is_none())
                .map(PathBuf::from)
        };
        let dir = match dir.map(Path::to_path_buf).or_else(from_env) {
            Some(dir) => expanded(dir)?,
            None => ipython_dir()?.join(format!("profile_{}", name.unwrap_or("default"))),
        };
        Ok(Self { dir, cluster_id })
    }

    /// The directory.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The cluster id; empty: the profile's only cluster.
    #[must_use]
    pub fn cluster_id(&self) -> &str {
        &self.cluster_id
    }

    /// The directory of the connection files.
    #[must_use]
    pub fn security_dir(&self) -> PathBuf {
        self.dir.join("security")
    }

    /// The directory of log files.
    #[must_use]
    pub fn log_dir(&self) -> PathBuf {
        self.dir.join("log")
    }

    /// Makes the directories that a controller or an engine writes to.
    ///
    /// # Errors
    /// [`ProfileError::Io`] naming the directory.
    pub fn create(&self) -> Result<(), ProfileError> {
        use std::os::unix::fs::DirBuilderExt;
        for (dir, mode) in [
            (self.dir.clone(), 0o755),
            (self.security_dir(), 0o700),
            (self.log_dir(), 0o755),
            (self.dir.join("pid"), 0o755),
        ] {
            fs::DirBuilder::new()
                .recursive(true)
                .mode(mode)
                .create(&dir)
                .map_err(|source| ProfileError::Io { path: dir, source })?;
        }
        Ok(())
    }

    /// Path of a connection file: `ipcontroller-client.json`, `ipcontroller-CLUSTERID-engine.json`.
    #[must_use]
    pub fn connection_file(&self, role: Role) -> PathBuf {
        let role = match role {
            Role::Client => "client",
            Role::Engine => "engine",
        };
        let name = match self.cluster_id.as_str() {
            "" => format!("ipcontroller-{role}.json"),
            id => format!("ipcontroller-{id}-{role}.json"),
        };
        self.security_dir().join(name)
    }
}

/// `$IPYTHONDIR`, or `~/.ipython`.
///
/// # Errors
/// [`ProfileError::NoHome`] when neither is known.
pub fn ipython_dir() -> Result<PathBuf, ProfileError> {
    match env::var_os("IPYTHONDIR").filter(|dir| !dir.is_empty()) {
        Some(dir) => expanded(dir.into()),
        None => Ok(home()?.join(".ipython")),
    }
}

fn home() -> Result<PathBuf, ProfileError> {
    env::home_dir()
        .filter(|home| !home.as_os_str().is_empty())
        .ok_or(ProfileError::NoHome)
}

/// `~` that no shell has expanded is the home directory, as for IPython.
fn expanded(dir: PathBuf) -> Result<PathBuf, ProfileError> {
    match dir.strip_prefix("~") {
        Ok(rest) => Ok(home()?.join(rest)),
        Err(_) => Ok(dir),
    }
}

/// Replaces a file by one that only its owner can read; whoever reads it meanwhile has one or the other.
///
/// # Errors
/// The system's word alone: which path, the caller knows, and the temporary file's changes each time.
pub fn replace(path: &Path, text: &[u8]) -> io::Result<()> {
    let write = || -> io::Result<()> {
        let dir = path.parent().unwrap_or(Path::new("."));
        let mut file = tempfile::NamedTempFile::new_in(dir)?;
        file.write_all(text)?;
        file.persist(path)?;
        Ok(())
    };
    write().map_err(|error| match error.to_string().split_once(" at path ") {
        Some((words, _)) => io::Error::new(error.kind(), words.to_owned()),
        None => error,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_named_as_the_peers() {
        let profile = Profile::find(None, Some(Path::new("/p")), Some("")).unwrap();
        assert_eq!(
            profile.connection_file(Role::Client),
            Path::new("/p/security/ipcontroller-client.json")
        );
        let profile = Profile::find(None, Some(Path::new("/p")), Some("abc")).unwrap();
        assert_eq!(
            profile.connection_file(Role::Engine),
            Path::new("/p/security/ipcontroller-abc-engine.json")
        );
        let refused = Profile::find(None, Some(Path::new("/p")), Some("a/b"));
        assert!(refused.unwrap_err().to_string().contains("\"a/b\""));
    }

    #[test]
    fn a_home_directory_is_found() {
        let profile = Profile::find(None, Some(Path::new("~/p")), Some("")).unwrap();
        assert_eq!(profile.dir(), env::home_dir().unwrap().join("p"));
        let profile = Profile::find(None, Some(Path::new("./~")), Some("")).unwrap();
        assert_eq!(profile.dir(), Path::new("./~"));
    }
}
