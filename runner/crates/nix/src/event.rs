//! The typed events of the post-build hook and the diff hook.
//!
//! A hook writes an event to the spool, and a worker reads it, possibly one of a later release. So
//! the format carries [`FORMAT`], and readers refuse a format that they do not know. Builder
//! selection is answered at once and never spooled; its question is
//! [`crate::selection::Candidate`].

use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use crate::caller::Caller;
use crate::evidence::Evidence;

/// Version of the serialised form.
pub const FORMAT: u32 = 1;

/// One event.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Event {
    /// [`FORMAT`] of the writer.
    pub format: u32,
    /// Unique and sortable by time: a UUID version 7 (RFC 9562), in its hyphenated form.
    pub id: String,
    /// Milliseconds since 1970 when the hook was called.
    pub time_ms: u64,
    /// The machine's host name.
    pub host: String,
    /// The directories of the Nix that called.
    pub nix: NixDirs,
    /// Who told of it. Releases that did not write it knew hooks only, but for `hookrun sync`.
    #[serde(default)]
    pub origin: Origin,
    /// Who had Nix build, where it was looked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub caller: Option<Caller>,
    /// The plugins that it is for; none: for all that want it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub plugins: Vec<String>,
    /// Whether the outputs were valid when the worker took the event.
    #[serde(default)]
    pub seen_valid: bool,
    /// What happened.
    pub hook: HookEvent,
}

/// Who told of an event. A label for people: plugins are not told, and nothing is decided by it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Origin {
    /// Nix called the hook.
    #[default]
    Hook,
    /// `hookrun sync`, or `hookrun ci` at its end, found the outputs valid and untold of.
    Sync,
}

impl Origin {
    /// The word used in lists and in JSON.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Hook => "hook",
            Self::Sync => "sync",
        }
    }
}

/// What happened, per hook.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum HookEvent {
    /// A derivation was built.
    PostBuild(PostBuild),
    /// Two builds of one output differ.
    Diff(Diff),
}

/// A derivation was built: the post-build hook's `DRV_PATH` and `OUT_PATHS`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct PostBuild {
    /// Full store path of the `.drv`.
    pub drv_path: String,
    /// Its outputs, from `OUT_PATHS` and from the derivation itself (Nix 2.8.0 passes an empty
    /// `OUT_PATHS`). Empty where neither tells, as for content-addressed outputs: the worker asks
    /// Nix's database.
    pub outputs: Vec<Output>,
}

/// Two builds of one output differ: the diff hook's four arguments, and what a comparison found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Diff {
    /// Full store path of the `.drv`.
    pub drv_path: String,
    /// The output that differs; `name` is empty where the derivation does not tell.
    pub output: Output,
    /// Argument 1: the previous result (registered with `--check`).
    pub previous: String,
    /// Argument 2: the current result (`.check` with `--check`).
    pub current: String,
    /// What differs.
    pub evidence: Evidence,
}

/// One output of a derivation.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Output {
    /// `out`, `dev`, ...; empty if unknown.
    pub name: String,
    /// Full store path.
    pub path: String,
}

/// Where the Nix that called keeps its things. Nix's own variables, as the hook inherited them, or
/// Nix's defaults.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct NixDirs {
    /// `NIX_STORE_DIR`, by default `/nix/store`.
    pub store: PathBuf,
    /// `NIX_STATE_DIR`, by default `/nix/var/nix`.
    pub state: PathBuf,
    /// `NIX_CONF_DIR`, by default `/etc/nix`.
    pub conf: PathBuf,
    /// Where the files of `store` are, in a store with another root (`--store ROOT`, `store =
    /// local?root=ROOT`); none: in `store`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub real_store: Option<PathBuf>,
}

impl NixDirs {
    /// These directories, in a store without another root.
    pub fn new(
        store: impl Into<PathBuf>,
        state: impl Into<PathBuf>,
        conf: impl Into<PathBuf>,
    ) -> Self {
        let (store, state, conf) = (store.into(), state.into(), conf.into());
        Self { store, state, conf, real_store: None }
    }

    /// The directories as this process's environment names them.
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

    /// Where the files of a store path are.
    pub fn real_path(&self, store_path: &str) -> PathBuf {
        let below = self.real_store.as_ref().and_then(|real| {
            Some(real.join(Path::new(store_path).strip_prefix(&self.store).ok()?))
        });
        below.unwrap_or_else(|| PathBuf::from(store_path))
    }
}

impl Event {
    /// An event that happens now, on this machine, in the Nix that called.
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

    /// Full store path of the derivation.
    pub fn drv_path(&self) -> &str {
        match &self.hook {
            HookEvent::PostBuild(event) => &event.drv_path,
            HookEvent::Diff(event) => &event.drv_path,
        }
    }

    /// The derivation's name: its store path without directory, hash and `.drv`.
    pub fn name(&self) -> &str {
        derivation_name(self.drv_path())
    }

    /// The valid outputs it speaks of. The results of `--check` are none.
    pub fn output_paths(&self) -> Vec<&str> {
        match &self.hook {
            HookEvent::PostBuild(event) => {
                event.outputs.iter().map(|output| output.path.as_str()).collect()
            }
            HookEvent::Diff(_) => Vec::new(),
        }
    }

    /// Which hook this is.
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
    /// All of them.
    pub const ALL: [Self; 3] = [Self::PostBuild, Self::Diff, Self::BuilderSelection];

    /// The word used in configuration, metadata and messages.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::PostBuild => "post-build",
            Self::Diff => "diff",
            Self::BuilderSelection => "builder-selection",
        }
    }
}

impl std::fmt::Display for HookKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

/// `/nix/store/<hash>-hello-2.12.drv` -> `hello-2.12`; what does not look like that comes back as
/// it is.
pub fn derivation_name(drv_path: &str) -> &str {
    let base = drv_path.rsplit('/').next().unwrap_or(drv_path);
    let base = base.strip_suffix(".drv").unwrap_or(base);
    match base.split_once('-') {
        Some((hash, name)) if hash.len() == 32 && !name.is_empty() => name,
        _ => base,
    }
}

/// Milliseconds since 1970; 0 on a clock before that.
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
