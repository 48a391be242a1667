//! The typed events of the post-build hook and the diff hook.
//!
//! A hook writes an event to the spool, and a worker reads it, possibly one of a later release. So
//! the format carries [`FORMAT`], and readers refuse a format that they do not know. Builder
//! selection is answered immediately and does not use the spool; its question is
//! [`crate::selection::Candidate`].

use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use crate::caller::Caller;
use crate::evidence::Evidence;

/// The version of the serialised form.
pub const FORMAT: u32 = 1;

/// An event.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Event {
    /// The [`FORMAT`] of the writer.
    pub format: u32,
    /// The unique id, which is sortable by time: a UUID version 7 (RFC 9562) in its hyphenated
    /// form.
    pub id: String,
    /// The time when the hook was called, in milliseconds since 1970.
    pub time_ms: u64,
    /// The machine's host name.
    pub host: String,
    /// The directories of the Nix that called.
    pub nix: NixDirs,
    /// The source of the event. Releases that did not write it had only hooks and `hookrun sync`.
    #[serde(default)]
    pub origin: Origin,
    /// The caller of Nix, if it was looked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub caller: Option<Caller>,
    /// The plugins that the event is for; empty for all that want it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub plugins: Vec<String>,
    /// Whether the outputs were valid when the worker took the event.
    #[serde(default)]
    pub seen_valid: bool,
    /// The call of the hook.
    pub hook: HookEvent,
}

/// The source of an event. It is shown to users; plugins do not get it, and no decision depends on
/// it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Origin {
    /// Nix called the hook.
    #[default]
    Hook,
    /// `hookrun sync`, or `hookrun ci` at its end, found outputs that were valid and not reported.
    Sync,
}

impl Origin {
    /// Returns the word used in lists and in JSON.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Hook => "hook",
            Self::Sync => "sync",
        }
    }
}

/// The call of a hook.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum HookEvent {
    /// A derivation was built.
    PostBuild(PostBuild),
    /// Two builds of the same output differ.
    Diff(Diff),
}

/// A derivation that was built: `DRV_PATH` and `OUT_PATHS` of the post-build hook.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct PostBuild {
    /// The full store path of the `.drv` file.
    pub drv_path: String,
    /// The outputs, from `OUT_PATHS` and from the derivation itself (Nix 2.8.0 passes an empty
    /// `OUT_PATHS`). If neither names any, as for content-addressed outputs, it is empty, and the
    /// worker asks Nix's database.
    pub outputs: Vec<Output>,
}

/// Two different builds of the same output: the four arguments of the diff hook, and the result of
/// the comparison.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Diff {
    /// The full store path of the `.drv` file.
    pub drv_path: String,
    /// The output that differs; `name` is empty if the derivation does not contain it.
    pub output: Output,
    /// Argument 1: the previous result (registered with `--check`).
    pub previous: String,
    /// Argument 2: the current result (`.check` with `--check`).
    pub current: String,
    /// The differences.
    pub evidence: Evidence,
}

/// An output of a derivation.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Output {
    /// The name, such as `out` or `dev`; empty if unknown.
    pub name: String,
    /// The full store path.
    pub path: String,
}

/// The directories of the Nix that called, from its environment variables as the hook inherited
/// them, or Nix's defaults.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct NixDirs {
    /// `NIX_STORE_DIR`, by default `/nix/store`.
    pub store: PathBuf,
    /// `NIX_STATE_DIR`, by default `/nix/var/nix`.
    pub state: PathBuf,
    /// `NIX_CONF_DIR`, by default `/etc/nix`.
    pub conf: PathBuf,
    /// The directory with the files of `store`, in a store with another root (`--store ROOT`,
    /// `store = local?root=ROOT`); none if it is `store`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub real_store: Option<PathBuf>,
}

impl NixDirs {
    /// Returns these directories, for a store without another root.
    pub fn new(
        store: impl Into<PathBuf>,
        state: impl Into<PathBuf>,
        conf: impl Into<PathBuf>,
    ) -> Self {
        let (store, state, conf) = (store.into(), state.into(), conf.into());
        Self { store, state, conf, real_store: None }
    }

    /// Returns the directories in this process's environment.
    pub fn from_env() -> Self {
        let dir = |name: &str, default: &str| {
            std::env::var_os(name)
                .filter(|value| !value.is_empty())
                .map_or_else(|| PathBuf::from(default), PathBuf::from)
        };
        Self::new(
            dir("NIX_STORE_DIR", "/nix/store"),
            dir("NIX_STATE_DIR", "/nix/var/nix"),
            dir("NIX_CONF_DIR", "/etc/nix"),
        )
    }

    /// Returns the path of a store path's files.
    pub fn real_path(&self, store_path: &str) -> PathBuf {
        let below = self.real_store.as_ref().and_then(|real| {
            Some(real.join(Path::new(store_path).strip_prefix(&self.store).ok()?))
        });
        below.unwrap_or_else(|| PathBuf::from(store_path))
    }
}

impl Event {
    /// Returns an event with the current time, this machine, and the directories of the Nix that
    /// called.
    pub fn now(hook: HookEvent) -> Self {
        Self {
            format: FORMAT,
            id: uuid::Uuid::now_v7().to_string(),
            time_ms: now_ms(),
            host: rustix::system::uname().nodename().to_string_lossy().into_owned(),
            nix: NixDirs::from_env(),
            origin: Origin::Hook,
            caller: None,
            plugins: Vec::new(),
            seen_valid: false,
            hook,
        }
    }

    /// Returns the full store path of the derivation.
    pub fn drv_path(&self) -> &str {
        match &self.hook {
            HookEvent::PostBuild(event) => &event.drv_path,
            HookEvent::Diff(event) => &event.drv_path,
        }
    }

    /// Returns the derivation's name: its store path without directory, hash and `.drv`.
    pub fn name(&self) -> &str {
        derivation_name(self.drv_path())
    }

    /// Returns the valid outputs of the event. Results of `--check` are not valid outputs.
    pub fn output_paths(&self) -> Vec<&str> {
        match &self.hook {
            HookEvent::PostBuild(event) => {
                event.outputs.iter().map(|output| output.path.as_str()).collect()
            }
            HookEvent::Diff(_) => Vec::new(),
        }
    }

    /// Returns the hook of the event.
    pub fn kind(&self) -> HookKind {
        match &self.hook {
            HookEvent::PostBuild(_) => HookKind::PostBuild,
            HookEvent::Diff(_) => HookKind::Diff,
        }
    }
}

/// One of Nix's three hooks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum HookKind {
    /// `post-build-hook`.
    PostBuild,
    /// `diff-hook`.
    Diff,
    /// `build-hook`.
    BuilderSelection,
}

impl HookKind {
    /// All hooks.
    pub const ALL: [Self; 3] = [Self::PostBuild, Self::Diff, Self::BuilderSelection];

    /// Returns the word used in configuration, metadata and messages.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::PostBuild => "post-build",
            Self::Diff => "diff",
            Self::BuilderSelection => "builder-selection",
        }
    }

    /// Returns the setting of Nix that names the hook.
    pub const fn setting(self) -> &'static str {
        match self {
            Self::PostBuild => "post-build-hook",
            Self::Diff => "diff-hook",
            Self::BuilderSelection => "build-hook",
        }
    }
}

impl std::fmt::Display for HookKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Returns the name in a derivation's store path, such as `hello-2.12` for
/// `/nix/store/<hash>-hello-2.12.drv`. Other text is returned unchanged.
pub fn derivation_name(drv_path: &str) -> &str {
    let base = drv_path.rsplit('/').next().unwrap_or(drv_path);
    let base = base.strip_suffix(".drv").unwrap_or(base);
    match base.split_once('-') {
        Some((hash, name)) if hash.len() == 32 && !name.is_empty() => name,
        _ => base,
    }
}

/// Returns the time in milliseconds since 1970; 0 if the clock is before that.
pub fn now_ms() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |elapsed| u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn derivation_names_are_taken_from_store_paths() {
        assert_eq!(
            derivation_name("/nix/store/00bgd045z0d4icpbc2yyz4gx48ak44la-hello-2.12.drv"),
            "hello-2.12"
        );
        assert_eq!(derivation_name("odd"), "odd");
    }
}
