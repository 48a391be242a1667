//! The phases that all capabilities have in common. [`Services`](crate::Services) runs them.

use std::path::{Path, PathBuf};

use hookrun_config::{Config, Grant, KeyError};
use hookrun_nix::dirs::Dirs;

/// The service behind a capability. The host functions check grants and limits; a service does not.
pub trait Service: std::fmt::Debug + Send + Sync {
    /// Creates the service of an installation, once per process and configuration. Opens no
    /// connections. A service that cannot work reports that when it is used.
    fn configure(config: &Config, dirs: &Dirs) -> Self
    where
        Self: Sized;

    /// Creates a service that keeps everything in memory and sends nothing, for `hookrun test`.
    fn in_memory(config: &Config, dirs: &Dirs) -> Self
    where
        Self: Sized;

    /// Checks the configuration of this service, for `hookrun check`. Sends nothing.
    fn check(&self, _config: &Config, _dirs: &Dirs) -> Vec<ServiceFinding> {
        Vec::new()
    }

    /// Returns what a plugin with `grant` needs from the operating system for this service.
    fn sandbox_needs(&self, _grant: &Grant, _dirs: &Dirs) -> SandboxNeeds {
        SandboxNeeds::default()
    }

    /// Reads and keeps the secrets that `plugin` uses with `grant`. It is called before the sandbox
    /// closes, after which they cannot be read.
    ///
    /// # Errors
    /// Returns the key that names a secret that cannot be used.
    fn hold_secrets(&self, _plugin: &str, _grant: &Grant) -> Result<(), KeyError> {
        Ok(())
    }
}

/// A result of [`Service::check`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ServiceFinding {
    /// Something that works, in one line.
    Good(String),
    /// Something that works and should be changed.
    Warning(KeyError),
    /// Something that does not work as it is configured.
    Problem(KeyError),
}

impl ServiceFinding {
    /// Returns the finding of a check whose success has a description.
    pub(crate) fn of(checked: Result<String, KeyError>) -> Self {
        checked.map_or_else(Self::Problem, Self::Good)
    }
}

/// Requirements of a service that the sandbox of its process must allow.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SandboxNeeds {
    /// Directories in which it writes.
    pub directories: Vec<PathBuf>,
    /// Files and directories that it reads again while it runs.
    pub reads: Vec<PathBuf>,
    /// TCP ports that it connects to, on any machine.
    pub ports: Vec<u16>,
}

impl SandboxNeeds {
    /// Returns the need for one directory.
    pub fn directory(path: &Path) -> Self {
        Self { directories: vec![path.to_owned()], ..Self::default() }
    }

    /// Returns the need for these ports.
    pub fn ports(ports: impl IntoIterator<Item = u16>) -> Self {
        Self { ports: ports.into_iter().collect(), ..Self::default() }
    }

    /// Returns the union of both needs.
    #[must_use]
    pub fn and(mut self, other: Self) -> Self {
        self.directories.extend(other.directories);
        self.reads.extend(other.reads);
        self.ports.extend(other.ports);
        self
    }

    /// Returns a directory that the configuration names and that does not exist. Directories below
    /// the state directory are created by the worker.
    pub fn missing_directory(&self, dirs: &Dirs) -> Option<&Path> {
        let named = self.directories.iter().filter(|directory| !directory.starts_with(&dirs.state));
        named.map(PathBuf::as_path).find(|directory| !directory.is_dir())
    }
}
