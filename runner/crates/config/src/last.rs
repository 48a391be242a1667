//! The configuration that a worker last used, kept in the state directory.
//!
//! A deployment tool may replace `hookrun.toml` in two steps, and a file system may come late.
//! While the file is away, the last configuration stays in force, also for the next worker: events
//! that arrive meanwhile must not be matched against the built-in configuration. An empty file
//! means that there was no configuration.

use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::{Config, ConfigError};
use hookrun_nix::dirs::Dirs;

/// The file that is kept: the text, and the path that it was read from.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Last {
    path: PathBuf,
    text: String,
}

impl Config {
    /// Returns the configuration of an installation: from its file, from what a worker last used if
    /// the file is away, or [`super::EMBEDDED`] if there never was one.
    ///
    /// # Errors
    /// As [`Config::load`], and if the file is away that `HOOKRUN_CONFIG` names.
    pub fn in_force(dirs: &Dirs) -> Result<Self, ConfigError> {
        if is_away(&dirs.config) {
            named_is_there()?;
            if let Some(last) = last(dirs) {
                return Self::parse(&last.path, &last.text)
                    .map(|config| Self { is_last: true, ..config });
            }
        }
        Self::load(&dirs.config)
    }

    /// Keeps it as the one that a worker used last. A configuration that is in no file is not kept.
    ///
    /// # Errors
    /// The error of the system; the file that was kept before is unchanged.
    pub fn keep(&self, dirs: &Dirs) -> std::io::Result<()> {
        if self.embedded || self.is_last {
            return Ok(());
        }
        let kept = Last { path: self.path.clone(), text: self.text.clone() };
        if last(dirs).as_ref() == Some(&kept) {
            return Ok(());
        }
        let path = dirs.last_config();
        let temporary = path.with_added_extension("new");
        let mut options = std::fs::OpenOptions::new();
        options.write(true).create(true).truncate(true).mode(0o600).custom_flags(libc::O_NOFOLLOW);
        options.open(&temporary)?.write_all(&serde_json::to_vec(&kept)?)?;
        std::fs::rename(&temporary, &path)
    }

    /// Returns the words after its path that say where it comes from; empty if that is its file.
    pub fn origin(&self) -> &'static str {
        if self.is_last {
            " (not there: the last one that a worker took up goes on; put it back, or make it an empty file to go on without it)"
        } else if self.embedded {
            " (not there: the built-in one)"
        } else {
            ""
        }
    }
}

/// Returns whether there is no such file. A file that cannot be examined counts as present.
pub fn is_away(path: &Path) -> bool {
    std::fs::metadata(path).is_err_and(|error| error.kind() == std::io::ErrorKind::NotFound)
}

/// Checks that the file named by `HOOKRUN_CONFIG`, if it is set, exists. A wrong name is a mistake,
/// and never means the embedded configuration.
///
/// # Errors
/// The file does not exist.
pub fn named_is_there() -> Result<(), ConfigError> {
    match std::env::var_os("HOOKRUN_CONFIG").filter(|value| !value.is_empty()) {
        Some(path) => must_be_there(Path::new(&path), "HOOKRUN_CONFIG"),
        None => Ok(()),
    }
}

/// As [`named_is_there`], for a path that `who` names.
///
/// # Errors
/// The file does not exist.
pub fn must_be_there(path: &Path, who: &str) -> Result<(), ConfigError> {
    if !is_away(path) {
        return Ok(());
    }
    Err(ConfigError {
        path: path.to_owned(),
        line: None,
        message: format!(
            "is not there, and {who} names it; correct the path, put the file there, or leave {who} out for the default"
        ),
    })
}

/// Returns what is kept for this configuration file.
fn last(dirs: &Dirs) -> Option<Last> {
    let text = std::fs::read(dirs.last_config()).ok()?;
    serde_json::from_slice::<Last>(&text).ok().filter(|last| last.path == dirs.config)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_is_away_leaves_the_last_configuration_in_force() {
        let directory = tempfile::tempdir().unwrap();
        let dirs =
            Dirs { config: directory.path().join("hookrun.toml"), state: directory.path().into() };
        let write = |text: &str| std::fs::write(&dirs.config, text).unwrap();
        assert!(Config::in_force(&dirs).unwrap().embedded, "there never was one");
        write("[worker]\nconcurrency = 7\n");
        let config = Config::in_force(&dirs).unwrap();
        config.keep(&dirs).unwrap();
        std::fs::remove_file(&dirs.config).unwrap();
        let last = Config::in_force(&dirs).unwrap();
        assert!(last.is_last && !last.embedded);
        assert_eq!(last.worker, config.worker);
        last.keep(&dirs).unwrap();
        assert!(last.origin().contains("goes on"));
        let other = Dirs { config: directory.path().join("other.toml"), ..dirs.clone() };
        assert!(Config::in_force(&other).unwrap().embedded, "of another file");
        write("");
        assert_eq!(Config::in_force(&dirs).unwrap().plugins.len(), 0, "on purpose");
    }
}
