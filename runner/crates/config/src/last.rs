//! The configuration that a worker last used, kept in the state directory.
//!
//! A deployment tool may replace `hookrun.toml` in two steps, and a file system may be mounted
//! late. While the file is missing, the last configuration stays in force, also for the next
//! worker: events that arrive meanwhile must not be matched against the built-in configuration. An
//! empty `hookrun.toml` is a valid configuration without plugins.

use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::{Config, ConfigError};
use hookrun_nix::dirs::Dirs;

/// The stored copy: the text, and the path that it was read from.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Last {
    path: PathBuf,
    text: String,
}

/// The text of an installation's configuration before it is parsed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConfigText {
    /// The file that it comes from.
    pub path: PathBuf,
    /// The content of the file.
    pub text: String,
    origin: Origin,
}

/// The source of an installation's configuration.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
enum Origin {
    /// The configuration file.
    File,
    /// The copy of the configuration that a worker last used; the file is missing.
    Last,
    /// The configuration [`super::EMBEDDED`], because there has never been a file.
    Embedded,
}

impl ConfigText {
    /// Reads the configuration of an installation: its file, or the copy that a worker last used if
    /// the file is missing, or [`super::EMBEDDED`] if there is no copy.
    ///
    /// # Errors
    /// Returns an error if the file cannot be read, or if `HOOKRUN_CONFIG` names a file that does
    /// not exist.
    pub fn in_force(dirs: &Dirs) -> Result<Self, ConfigError> {
        if let Some(text) = Self::of_file(&dirs.config)? {
            return Ok(text);
        }
        check_named_file()?;
        Ok(match last(dirs) {
            Some(Last { path, text }) => Self { path, text, origin: Origin::Last },
            None => Self::embedded(&dirs.config),
        })
    }

    /// Reads `path`; returns `None` if there is no such file.
    ///
    /// # Errors
    /// Returns an error if the file cannot be read.
    pub(crate) fn of_file(path: &Path) -> Result<Option<Self>, ConfigError> {
        match std::fs::read_to_string(path) {
            Ok(text) => Ok(Some(Self { path: path.to_owned(), text, origin: Origin::File })),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(ConfigError {
                path: path.to_owned(),
                line: None,
                message: format!(
                    "cannot be read ({error}); make it readable for the user that runs hookrun"
                ),
            }),
        }
    }

    /// Returns the embedded configuration in place of the file `path`.
    pub(crate) fn embedded(path: &Path) -> Self {
        Self { path: path.to_owned(), text: super::EMBEDDED.to_owned(), origin: Origin::Embedded }
    }

    /// Returns whether a plugin may have `gate = true`. It is never false if one has it, but may be
    /// true if none has. Searching the text takes a hook less time than parsing it.
    pub fn may_have_gate(&self) -> bool {
        let is_comment = |line: &str| line.trim_start().starts_with('#');
        // A quoted key can contain an escape.
        let may_have = |line: &str| line.contains("gate") || line.contains("\\u");
        self.text.lines().any(|line| !is_comment(line) && may_have(line))
    }

    /// Parses and checks the text.
    ///
    /// # Errors
    /// Returns the errors of [`Config::parse`].
    pub fn parse(&self) -> Result<Config, ConfigError> {
        Config::parse(&self.path, &self.text).map(|config| Config {
            embedded: self.origin == Origin::Embedded,
            is_last: self.origin == Origin::Last,
            ..config
        })
    }
}

impl Config {
    /// Returns the configuration of an installation: see [`ConfigText::in_force`].
    ///
    /// # Errors
    /// Returns the errors of [`ConfigText::in_force`] and [`Config::parse`].
    pub fn in_force(dirs: &Dirs) -> Result<Self, ConfigError> {
        ConfigText::in_force(dirs)?.parse()
    }

    /// Stores the configuration as the last one that a worker used, if it was read from its file.
    ///
    /// # Errors
    /// Returns the error of the system. The previous copy is then unchanged.
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

    /// Returns a note about the source, to print after the path; empty if the file was read.
    pub fn origin(&self) -> &'static str {
        if self.is_last {
            " (missing: the last configuration that a worker used stays in force; restore the file, or create an empty one to use no plugins)"
        } else if self.embedded {
            " (missing: the built-in configuration is used)"
        } else {
            ""
        }
    }
}

/// Returns whether there is no such file. A file that cannot be examined counts as present.
pub fn is_missing(path: &Path) -> bool {
    std::fs::metadata(path).is_err_and(|error| error.kind() == std::io::ErrorKind::NotFound)
}

/// Checks that the file that `HOOKRUN_CONFIG` names exists, if the variable is set. A wrong name is
/// a mistake and never selects the embedded configuration.
///
/// # Errors
/// Returns an error if the file does not exist.
pub fn check_named_file() -> Result<(), ConfigError> {
    match std::env::var_os("HOOKRUN_CONFIG").filter(|value| !value.is_empty()) {
        Some(path) => must_exist(Path::new(&path), "HOOKRUN_CONFIG"),
        None => Ok(()),
    }
}

/// Checks that `path`, which the option or variable `who` names, exists.
///
/// # Errors
/// Returns an error if the file does not exist.
pub fn must_exist(path: &Path, who: &str) -> Result<(), ConfigError> {
    if !is_missing(path) {
        return Ok(());
    }
    Err(ConfigError {
        path: path.to_owned(),
        line: None,
        message: format!(
            "does not exist, but {who} names it; correct the path, create the file, or omit {who} to use the default file"
        ),
    })
}

/// Returns the copy that was stored for this configuration file.
fn last(dirs: &Dirs) -> Option<Last> {
    let text = std::fs::read(dirs.last_config()).ok()?;
    serde_json::from_slice::<Last>(&text).ok().filter(|last| last.path == dirs.config)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gate_is_seen_in_the_text_unless_it_is_a_comment() {
        let text = |text: &str| ConfigText {
            path: PathBuf::new(),
            text: text.to_owned(),
            origin: Origin::File,
        };
        for with in ["gate = true", " x = { gate=true }", "\"g\\u0061te\" = true"] {
            assert!(text(with).may_have_gate(), "{with}");
        }
        for without in ["", "# gate = true", "[worker]\n  # gate", crate::EMBEDDED] {
            assert!(!text(without).may_have_gate(), "{without}");
        }
    }

    #[test]
    fn a_missing_file_leaves_the_last_configuration_in_force() {
        let directory = tempfile::tempdir().unwrap();
        let dirs =
            Dirs { config: directory.path().join("hookrun.toml"), state: directory.path().into() };
        let write = |text: &str| std::fs::write(&dirs.config, text).unwrap();
        assert!(Config::in_force(&dirs).unwrap().embedded, "there has never been a file");
        write("[worker]\nconcurrency = 7\n");
        let config = Config::in_force(&dirs).unwrap();
        config.keep(&dirs).unwrap();
        std::fs::remove_file(&dirs.config).unwrap();
        let last = Config::in_force(&dirs).unwrap();
        assert!(last.is_last && !last.embedded);
        assert_eq!(last.worker, config.worker);
        last.keep(&dirs).unwrap();
        assert!(last.origin().contains("stays in force"));
        let other = Dirs { config: directory.path().join("other.toml"), ..dirs.clone() };
        assert!(Config::in_force(&other).unwrap().embedded, "the copy belongs to another file");
        write("");
        assert_eq!(
            Config::in_force(&dirs).unwrap().plugins.len(),
            0,
            "an empty file disables all plugins"
        );
    }
}
