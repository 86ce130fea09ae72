//! Profile directories: `$IPYTHONDIR/profile_NAME`, with connection files below `security/`.

use std::{
    env, fs, io,
    path::{Path, PathBuf},
};

/// Why there is no profile directory to work in.
#[derive(Debug, thiserror::Error)]
pub enum ProfileError {
    /// Neither `$IPYTHONDIR` nor `$HOME` says where profiles live.
    #[error("no home directory: set $HOME or $IPYTHONDIR, or give --profile-dir")]
    NoHome,
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
    /// [`ProfileError::NoHome`] when nothing says where profiles live.
    pub fn find(
        name: Option<&str>,
        dir: Option<&Path>,
        cluster_id: Option<&str>,
    ) -> Result<Self, ProfileError> {
        let cluster_id = cluster_id
            .map(str::to_owned)
            .or_else(|| env::var("IPP_CLUSTER_ID").ok())
            .unwrap_or_default();
        let from_env = || {
            env::var_os("IPP_PROFILE_DIR")
                .filter(|dir| !dir.is_empty() && name.is_none())
                .map(PathBuf::from)
        };
        let dir = match dir.map(Path::to_path_buf).or_else(from_env) {
            Some(dir) => dir,
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
    if let Some(dir) = env::var_os("IPYTHONDIR").filter(|dir| !dir.is_empty()) {
        return Ok(dir.into());
    }
    env::home_dir()
        .filter(|home| !home.as_os_str().is_empty())
        .map(|home| home.join(".ipython"))
        .ok_or(ProfileError::NoHome)
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
    }
}
