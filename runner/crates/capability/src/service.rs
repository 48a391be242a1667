//! The phases that all capabilities have in common. [`Services`](crate::Services) walks them.

use std::path::{Path, PathBuf};

use hookrun_config::{Config, Grant, KeyError};
use hookrun_nix::dirs::Dirs;

/// The service behind a capability. Grants and limits are checked by the host functions, never
/// here.
pub trait Service: std::fmt::Debug + Send + Sync {
    /// Configures the service of an installation, once per process and configuration. Opens no
    /// connection. A service that cannot work reports that when it is used.
    fn configure(config: &Config, dirs: &Dirs) -> Self
    where
        Self: Sized;

    /// A service that keeps everything in memory and sends nothing, for `hookrun test`.
    fn in_memory(config: &Config, dirs: &Dirs) -> Self
    where
        Self: Sized;

    /// Checks what the configuration says of this service, for `hookrun check`. Sends nothing.
    fn check(&self, _config: &Config, _dirs: &Dirs) -> Vec<Finding> {
        Vec::new()
    }

    /// What a plugin with `grant` needs of the operating system for this service.
    fn sandbox_needs(&self, _grant: &Grant, _dirs: &Dirs) -> SandboxNeeds {
        SandboxNeeds::default()
    }

    /// Reads the secrets that `plugin` uses with `grant`, and keeps them. Called before the sandbox
    /// closes, which takes the right to read them.
    ///
    /// # Errors
    /// The key that names a secret that cannot be used.
    fn hold_secrets(&self, _plugin: &str, _grant: &Grant) -> Result<(), KeyError> {
        Ok(())
    }
}

/// What [`Service::check`] found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Finding {
    /// Something that works, in one line.
    Good(String),
    /// Something that works and should be changed.
    Warning(KeyError),
    /// Something that does not work as it is configured.
    Problem(KeyError),
}

impl Finding {
    /// A finding from a check that names what works.
    pub(crate) fn of(checked: Result<String, KeyError>) -> Self {
        checked.map_or_else(Self::Problem, Self::Good)
    }
}

/// What a service needs of the operating system: the sandbox of its process allows this.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SandboxNeeds {
    /// Directories that it writes in.
    pub directories: Vec<PathBuf>,
    /// TCP ports that it connects to, on any machine.
    pub ports: Vec<u16>,
}

impl SandboxNeeds {
    /// Needs one directory.
    pub fn directory(path: &Path) -> Self {
        Self { directories: vec![path.to_owned()], ports: Vec::new() }
    }

    /// Needs these ports.
    pub fn ports(ports: impl IntoIterator<Item = u16>) -> Self {
        Self { directories: Vec::new(), ports: ports.into_iter().collect() }
    }

    /// Needs both.
    #[must_use]
    pub fn and(mut self, other: Self) -> Self {
        self.directories.extend(other.directories);
        self.ports.extend(other.ports);
        self
    }

    /// Returns a directory that the configuration names and that does not exist. Those below the
    /// state directory are made by the worker.
    pub fn missing_directory(&self, dirs: &Dirs) -> Option<&Path> {
        let named = self.directories.iter().filter(|directory| !directory.starts_with(&dirs.state));
        named.map(PathBuf::as_path).find(|directory| !directory.is_dir())
    }
}
