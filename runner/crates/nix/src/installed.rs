//! Finds the Nix of this machine: its program, and the version and settings that it reports. Used
//! by `hookrun doctor` and `hookrun builders`.
//!
//! Nix prints all settings with their values, including secrets. Only the settings that are listed
//! here are kept.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use super::bounded;

/// The time for Nix to answer.
const PATIENCE: Duration = Duration::from_secs(20);

/// The settings that are kept.
pub const KEPT: [&str; 16] = [
    "build-hook",
    "build-poll-interval",
    "build-users-group",
    "builders",
    "builders-use-substitutes",
    "diff-hook",
    "extra-platforms",
    "max-jobs",
    "post-build-hook",
    "run-diff-hook",
    "sandbox",
    "store",
    "system",
    "system-features",
    "trusted-public-keys",
    "trusted-users",
];

/// The implementation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Flavour {
    /// NixOS/nix, or a distribution of it with the same protocol.
    Nix,
    /// Lix.
    Lix,
}

/// A version: major, minor, patch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, serde::Serialize)]
pub struct Version(pub u32, pub u32, pub u32);

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(major, minor, patch) = self;
        write!(f, "{major}.{minor}.{patch}")
    }
}

/// A setting.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Setting {
    /// The value, as in nix.conf.
    pub value: String,
    /// The value without a line in any nix.conf.
    pub default: String,
}

/// An installed Nix.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Installed {
    /// The program `nix`.
    pub program: PathBuf,
    /// The full output of `nix --version`.
    pub version_output: String,
    /// The implementation.
    pub flavour: Flavour,
    /// Its version.
    pub version: Version,
    /// Its settings for this user.
    pub settings: BTreeMap<String, Setting>,
}

/// The reason why there is no Nix to examine.
#[derive(Debug, thiserror::Error)]
pub enum NixError {
    /// There is no `nix` in `PATH`.
    #[error(
        "there is no program `nix` in PATH; install Nix, or add the directory of its programs to PATH"
    )]
    Missing,
    /// The program does not answer.
    #[error("`{} {arguments}` {problem}", program.display())]
    Mute {
        /// The program.
        program: PathBuf,
        /// The arguments.
        arguments: String,
        /// What happened instead of an answer.
        problem: String,
    },
}

impl Installed {
    /// Finds the `nix` in `PATH`, and asks for its version and settings.
    ///
    /// # Errors
    /// Returns an error if there is no `nix`, or if it does not answer.
    pub fn find() -> Result<Self, NixError> {
        let program = in_path("nix").ok_or(NixError::Missing)?;
        let version_output = ask(&program, &["--version"])?.trim().to_owned();
        let (flavour, version) = identify(&version_output).ok_or_else(|| NixError::Mute {
            program: program.clone(),
            arguments: "--version".to_owned(),
            problem: format!(
                "printed `{version_output}`, which is not a version that hookrun knows"
            ),
        })?;
        let json = settings_json(&program, version)?;
        Ok(Self { program, version_output, flavour, version, settings: kept(&json) })
    }

    /// Returns the value of a setting; empty if this Nix has no such setting.
    pub fn setting(&self, name: &str) -> &str {
        self.settings.get(name).map(|setting| setting.value.as_str()).unwrap_or_default()
    }

    /// Returns whether it divides load by speed factor as whole numbers and accepts only those in
    /// column 5 (2.19 and older, and Lix, which is 2.18).
    pub fn whole_speed_factors(&self) -> bool {
        self.flavour == Flavour::Lix || self.version < Version(2, 20, 0)
    }
}

/// Returns the first executable of this name in `PATH`.
pub fn in_path(name: &str) -> Option<PathBuf> {
    let executable = |program: &PathBuf| {
        program.is_file()
            && rustix::fs::access(program.as_path(), rustix::fs::Access::EXEC_OK).is_ok()
    };
    std::env::split_paths(&std::env::var_os("PATH")?)
        .map(|directory| directory.join(name))
        .find(executable)
}

/// Parses the output of `nix --version`: `nix (Nix) 2.8.0`, `nix (Lix, like Nix) 2.91.1`, `nix
/// (Determinate Nix 3.8.2) 2.30.1`.
pub fn identify(version_output: &str) -> Option<(Flavour, Version)> {
    let flavour = if version_output.contains("Lix") { Flavour::Lix } else { Flavour::Nix };
    let mut numbers = version_output
        .split_ascii_whitespace()
        .last()?
        .split(|c: char| !c.is_ascii_digit())
        .map(str::parse::<u32>);
    let (major, minor) = (numbers.next()?.ok()?, numbers.next()?.ok()?);
    let patch = numbers.next().and_then(Result::ok).unwrap_or(0);
    Some((flavour, Version(major, minor, patch)))
}

/// Returns all settings as JSON. `show-config` became `config show` in 2.20; both are experimental
/// since 2.4.
fn settings_json(program: &Path, version: Version) -> Result<String, NixError> {
    let experimental: &[&str] = if version >= Version(2, 4, 0) {
        &["--extra-experimental-features", "nix-command"]
    } else {
        &[]
    };
    let words: &[&str] = if version >= Version(2, 20, 0) && version.0 == 2 {
        &["config", "show", "--json"]
    } else {
        &["show-config", "--json"]
    };
    let other: &[&str] =
        if words.len() == 3 { &["show-config", "--json"] } else { &["config", "show", "--json"] };
    ask(program, &[experimental, words].concat())
        .or_else(|first| ask(program, &[experimental, other].concat()).map_err(|_| first))
}

fn ask(program: &Path, arguments: &[&str]) -> Result<String, NixError> {
    let mute = |problem: String| NixError::Mute {
        program: program.to_owned(),
        arguments: arguments.join(" "),
        problem,
    };
    let mut command = Command::new(program);
    // `nix::command` is not used, because it removes the settings of the environment, which are
    // wanted here. Nothing is built.
    command.args(arguments).env(super::NESTED, "1").env_remove("DRV_PATH").env_remove("OUT_PATHS");
    let said = bounded::run(&mut command, PATIENCE).map_err(|error| mute(error.to_string()))?;
    if said.status.success() {
        return Ok(said.stdout);
    }
    let last = said.stderr.lines().rfind(|line| !line.trim().is_empty()).unwrap_or_default();
    Err(mute(hookrun_system::process::describe_end(said.status, last)))
}

/// Returns the settings to keep from Nix's JSON.
fn kept(json: &str) -> BTreeMap<String, Setting> {
    let all: serde_json::Value = serde_json::from_str(json).unwrap_or_default();
    let setting = |name: &&str| {
        let found = all.get(name)?;
        let text = |key: &str| found.get(key).map(words).unwrap_or_default();
        Some(((*name).to_owned(), Setting { value: text("value"), default: text("defaultValue") }))
    };
    KEPT.iter().filter_map(setting).collect()
}

fn words(value: &serde_json::Value) -> String {
    match value {
        serde_json::Value::String(text) => text.clone(),
        serde_json::Value::Array(items) => items.iter().map(words).collect::<Vec<_>>().join(" "),
        serde_json::Value::Null => String::new(),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn versions_are_parsed_and_ordered() {
        let identified = [
            "nix (Nix) 2.8.0",
            "nix (Nix) 2.26.3",
            "nix (Nix) 2.35pre20260901_abcdef",
            "nix (Lix, like Nix) 2.94.0-pre20250101",
            "nix (Determinate Nix 3.8.2) 2.30.1",
        ]
        .map(|version_output| identify(version_output).unwrap());
        let expected = [
            (Flavour::Nix, Version(2, 8, 0)),
            (Flavour::Nix, Version(2, 26, 3)),
            (Flavour::Nix, Version(2, 35, 0)),
            (Flavour::Lix, Version(2, 94, 0)),
            (Flavour::Nix, Version(2, 30, 1)),
        ];
        assert_eq!(identified, expected);
        assert_eq!(identify("nix"), None);
    }

    #[test]
    fn only_named_settings_are_kept() {
        let json = r#"{"access-tokens":{"value":"github.com=s3cret"},"system-features":{"value":["kvm","benchmark"],"defaultValue":[]},
            "run-diff-hook":{"value":true,"defaultValue":false},"max-jobs":{"value":4}}"#;
        let settings = kept(json);
        let shown: Vec<String> =
            settings.iter().map(|(name, setting)| format!("{name}={}", setting.value)).collect();
        assert_eq!(shown, ["max-jobs=4", "run-diff-hook=true", "system-features=kvm benchmark"]);
    }

    proptest! {
        #[test]
        fn any_words_are_identified_or_refused(version_output: String, json: String) {
            let _ = identify(&version_output);
            let _ = kept(&json);
        }
    }
}
