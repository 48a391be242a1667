//! `[plugins.NAME]`: the source of a plugin, its hooks, its grants and its retries.

use std::path::PathBuf;

use serde::de::Error as _;
use serde::{Deserialize, Deserializer};

use super::{Config, Filter, Grant, KeyError, Limits, Retry, bundled, nearest, suggestion};
use hookrun_nix::event::HookKind;

/// One plugin of the configuration.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Plugin {
    #[serde(skip)]
    pub name: String,
    pub source: PluginSource,
    /// The hooks that it serves; if empty, all that it exports.
    #[serde(default)]
    pub hooks: Vec<HookKind>,
    #[serde(default)]
    pub filter: Filter,
    #[serde(default)]
    pub retry: Retry,
    /// Maximum number of concurrent runs. If unset, only the worker's concurrency limits them.
    pub concurrency: Option<usize>,
    /// The order in which its tasks run. If unset, the order that its metadata asks for.
    pub order: Option<TaskOrder>,
    /// Whether it runs inside the post-build hook, where its failure fails the build.
    #[serde(default)]
    pub gate: bool,
    #[serde(default = "empty_table", deserialize_with = "json")]
    pub config: serde_json::Value,
    #[serde(default)]
    pub grant: Grant,
    #[serde(default)]
    pub limits: Limits,
}

fn empty_table() -> serde_json::Value {
    serde_json::Value::Object(serde_json::Map::new())
}

fn json<'de, D: Deserializer<'de>>(deserializer: D) -> Result<serde_json::Value, D::Error> {
    let table = toml::Table::deserialize(deserializer)?;
    serde_json::to_value(table).map_err(D::Error::custom)
}

/// The source of a component.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PluginSource {
    /// Part of this program: `bundled:s3-upload`.
    Bundled(String),
    /// A file; a relative path is relative to the configuration's directory.
    File(PathBuf),
}

impl std::fmt::Display for PluginSource {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Bundled(name) => write!(f, "bundled:{name}"),
            Self::File(path) => write!(f, "{}", path.display()),
        }
    }
}

impl<'de> Deserialize<'de> for PluginSource {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let source = String::deserialize(deserializer)?;
        match source.strip_prefix("bundled:") {
            Some(name) if bundled::NAMES.contains(&name) => Ok(Self::Bundled(name.to_owned())),
            Some(name) => {
                let hint = suggestion(name, bundled::NAMES.iter().copied());
                Err(D::Error::custom(format!("no plugin `{name}` is bundled; {hint}")))
            }
            None if source.contains("://") => Err(D::Error::custom(format!(
                "source `{source}` is not supported; write a path or `bundled:NAME`"
            ))),
            None => Ok(Self::File(PathBuf::from(source))),
        }
    }
}

/// The order in which a plugin's tasks run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum TaskOrder {
    /// In the order of arrival, several at once; a failed task runs again later.
    #[default]
    Any,
    /// The tasks of a build's dependencies end before the build's own task starts.
    DependenciesFirst,
}

impl std::fmt::Display for TaskOrder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Any => "any",
            Self::DependenciesFirst => "dependencies-first",
        })
    }
}

impl Plugin {
    /// Checks the table; `config` has the elements that grants name.
    pub(super) fn check(&self, config: &Config) -> Result<(), KeyError> {
        let name = &self.name;
        if name.is_empty()
            || !name.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.'))
            || name.starts_with('.')
        {
            return Err(KeyError::new(
                &[],
                format!(
                    "the plugin name `{name}` may have letters, digits, `-`, `_` and `.` only; \
                     rename the table"
                ),
            ));
        }
        if self.gate && !self.hooks.is_empty() && !self.hooks.contains(&HookKind::PostBuild) {
            return Err(KeyError::new(
                &["gate"],
                "only a post-build plugin can be a gate; remove `gate = true`",
            ));
        }
        self.check_names(config)?;
        if self.concurrency == Some(0) {
            return Err(KeyError::new(
                &["concurrency"],
                "`concurrency` must be at least 1; write `concurrency = 1`",
            ));
        }
        self.retry.check().map_err(|error| error.below(&["retry"]))
    }

    /// Checks that every table named in the grant exists.
    fn check_names(&self, config: &Config) -> Result<(), KeyError> {
        for (key, section, granted) in self.grant.names() {
            let defined = config.names(section);
            if let Some(unknown) = granted.iter().find(|name| !defined.contains(&name.as_str())) {
                let hint = match nearest(unknown, defined.iter().copied()) {
                    Some(near) => format!("did you mean `{near}`?"),
                    None => "add that table".to_owned(),
                };
                let (name, table) = (&self.name, toml_key(unknown));
                return Err(KeyError::new(
                    &["grant", key],
                    format!(
                        "the grant `{key}` of plugin `{name}` names `{unknown}`, and there is no \
                         [{section}.{table}]; {hint}"
                    ),
                ));
            }
        }
        Ok(())
    }
}

/// Returns a table key as TOML writes it: quoted unless bare.
fn toml_key(key: &str) -> String {
    if !key.is_empty() && key.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_')) {
        key.to_owned()
    } else {
        format!("\"{key}\"")
    }
}
