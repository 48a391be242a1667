//! The subject of `hookrun test`: a configured plugin, or a file (or bundled plugin) that is not
//! configured and gets all grants that it wants, with services in memory.

use std::path::{Path, PathBuf};

use hookrun_config::{
    self as config, Capability, Config, ConfigError, Grant, Limit, Plugin, PluginSource, Want,
    Wants,
};
use hookrun_host::examine::{Examination, Sample, SampleConfig};
use hookrun_host::{Component, Host, PluginError, bundled};
use hookrun_nix::event::HookKind;

/// The names of the services for a plugin that is not configured. The examples of the bundled
/// plugins use the same names, and the help of `hookrun test` documents them.
const OBJECT_STORE: &str = "cache";
const SIGNING_KEY: &str = "cache.example.org-1";
const MAIL: &str = "default";
/// The name that messages use instead of a file for a configuration that was made for the test.
const SAMPLE: &str = "sample configuration";
/// The configuration file in a working directory.
const HERE: &str = "hookrun.toml";

/// A plugin to test, and its configuration.
#[derive(Debug)]
pub struct Subject {
    /// The plugin to test.
    pub plugin: Plugin,
    /// The configuration that contains the plugin.
    pub config: Config,
    /// The origin of `config`.
    pub origin: Origin,
    /// Notes about configurations that were not used, with the reason.
    pub notes: Vec<String>,
}

/// The origin of a subject's configuration.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    /// A file, or the built-in configuration.
    Configured,
    /// Made for the test, with sample services, and grants for everything that the plugin wants.
    Samples(SampleConfig),
}

/// The configuration files to search.
#[derive(Debug, Clone)]
pub struct Files<'a> {
    /// The configuration of this process.
    pub config: &'a Path,
    /// Whether the user chose it, by `--config` or `HOOKRUN_CONFIG`. In that case it must exist,
    /// and no other file is read.
    pub chosen: bool,
    /// The working directory, whose `hookrun.toml` is read first; empty for that of the process.
    pub directory: &'a Path,
}

/// Changes to the subject.
#[derive(Debug, Clone, Copy, Default)]
pub struct Changes<'a> {
    /// Lines `key = value` (TOML) for the plugin's `config`.
    pub set: &'a [String],
    /// Capabilities that are not granted.
    pub deny: &'a [String],
    /// Lines `limit=value` for the plugin's limits.
    pub limits: &'a [String],
}

/// The reason why there is nothing to test.
#[derive(Debug, thiserror::Error)]
pub enum SubjectError {
    /// The name is not a file, a bundled plugin or a configured plugin.
    #[error("there is no file `{name}`, {looked}; write a path, `bundled:NAME` ({}) or the name of a configured plugin", hookrun_config::bundled::NAMES.join(", "))]
    Missing {
        /// The requested name.
        name: String,
        /// The places where the plugin was looked for.
        looked: String,
    },
    /// The path does not exist.
    #[error(
        "there is no file `{0}`; build it with `cargo build --release --target wasm32-wasip2`, from a crate with `crate-type = [\"cdylib\"]`"
    )]
    NoFile(String),
    /// The plugin cannot be read or examined.
    #[error("plugin {source_name}: {reason}")]
    Unreadable {
        /// The file or bundled name.
        source_name: String,
        /// The rest of the message, which ends with the fix.
        reason: String,
    },
    /// The file is not a plugin.
    #[error("plugin {source_name} {reason}")]
    NoPlugin {
        /// The file or bundled name.
        source_name: String,
        /// The rest of the message, which ends with the fix.
        reason: String,
    },
    /// The configuration is not valid.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// An option is not valid, or does not fit the plugin.
    #[error("{0}")]
    Option(String),
    /// A denied capability is required.
    #[error(
        "plugin `{plugin}` does not load without {capabilities}, as its metadata says (`Want::Required`); deny only optional capabilities, or make it optional in the plugin"
    )]
    DeniedRequired {
        /// The plugin's name.
        plugin: String,
        /// The capabilities, as text.
        capabilities: String,
    },
}

impl Subject {
    /// Finds the plugin called `name`: a file or a bundled plugin, with the configuration that has
    /// it as a `source` if there is one; else a configured plugin of this name.
    ///
    /// # Errors
    /// There is no such plugin, a configuration is not valid, or the changes do not fit the plugin.
    pub fn find(
        name: &str,
        files: &Files<'_>,
        host: &Host,
        changes: &Changes<'_>,
    ) -> Result<Self, SubjectError> {
        let path = Path::new(name);
        let source = match name.strip_prefix("bundled:") {
            Some(bundled) => Some(PluginSource::Bundled(bundled.to_owned())),
            None if path.is_file() => Some(PluginSource::File(path.to_owned())),
            None => None,
        };
        let mut subject = match source {
            Some(source) => Self::of_source(name, &source, files, host)?,
            None if path.components().count() > 1 || path.extension().is_some() => {
                return Err(SubjectError::NoFile(name.to_owned()));
            }
            None => Self::of_name(name, files)?,
        };
        subject.deny(changes.deny, host)?;
        subject.limit(changes.limits)?;
        subject.set(changes.set)?;
        let Self { plugin, config, .. } = &mut subject;
        config.plugins.insert(plugin.name.clone(), plugin.clone());
        Ok(subject)
    }

    /// Returns a configured plugin.
    fn of_name(name: &str, files: &Files<'_>) -> Result<Self, SubjectError> {
        let mut looked = Vec::new();
        for (path, exists) in files.candidates() {
            let config = files.load(&path)?;
            if let Some(plugin) = config.plugins.get(name).cloned() {
                return Ok(Self::configured(plugin, config));
            }
            looked.push(if exists {
                format!("no [plugins.{name}] in {}", path.display())
            } else {
                format!("no configuration {}", path.display())
            });
        }
        Err(SubjectError::Missing { name: name.to_owned(), looked: looked.join(", ") })
    }

    /// Returns a file or a bundled plugin. The system's configuration, which may not be readable,
    /// is used only if the user chose it.
    fn of_source(
        name: &str,
        source: &PluginSource,
        files: &Files<'_>,
        host: &Host,
    ) -> Result<Self, SubjectError> {
        let near = if files.chosen { Some(files.config.to_owned()) } else { files.here() };
        let Some(path) = near else { return Self::with_everything(name, Vec::new(), host) };
        let config = files.load(&path)?;
        let mut with_source = config.plugins.values().filter(|plugin| same(&plugin.source, source));
        match (with_source.next(), with_source.next()) {
            (Some(plugin), None) => {
                let plugin = plugin.clone();
                Ok(Self::configured(plugin, config))
            }
            (Some(one), Some(other)) => Err(SubjectError::Option(format!(
                "{name} is the `source` of several plugins in {}; write the name of one of them, such as `{}` or `{}`",
                path.display(),
                one.name,
                other.name,
            ))),
            (None, _) => {
                let note = format!(
                    "{} is not used: no plugin in it has the source `{name}`",
                    path.display()
                );
                Self::with_everything(name, vec![note], host)
            }
        }
    }

    fn configured(plugin: Plugin, config: Config) -> Self {
        Self { plugin, config, origin: Origin::Configured, notes: Vec::new() }
    }

    /// Returns a plugin that is not configured: it gets all grants that it wants, and its
    /// configuration comes from its schema.
    fn with_everything(
        name: &str,
        mut notes: Vec<String>,
        host: &Host,
    ) -> Result<Self, SubjectError> {
        let source = match name.strip_prefix("bundled:") {
            Some(bundled) => PluginSource::Bundled(bundled.to_owned()),
            None => {
                let unreadable = |error: std::io::Error| SubjectError::Unreadable {
                    source_name: name.to_owned(),
                    reason: error.to_string(),
                };
                PluginSource::File(std::path::absolute(name).map_err(unreadable)?)
            }
        };
        let (_, examination) = examine(host, name, &source, &serde_json::json!({}))?;
        let Examination { description, sample: Sample { table, from }, .. } = examination;
        let metadata = description.metadata;
        let services = format!(
            "[object-stores.{OBJECT_STORE}]\n[signing-keys.\"{SIGNING_KEY}\"]\nfile = \"in-memory\"\n[mail.{MAIL}]\n"
        );
        let mut config = Config::parse(Path::new(SAMPLE), &services)?;
        let plugin_name: String = metadata
            .name
            .chars()
            .map(|c| if c.is_ascii_alphanumeric() || c == '-' { c } else { '-' })
            .collect();
        // A policy may have fewer grants than other plugins. A plugin that also serves other hooks
        // is tested as one of those, with all its grants.
        let mut grant = everything(&metadata.wants, &config);
        let mut hooks = Vec::new();
        if description.exports == [HookKind::BuilderSelection] {
            grant = everything(&metadata.wants.of_policy(), &config);
        } else if description.exports.contains(&HookKind::BuilderSelection)
            && !grant.beyond_policy().is_empty()
        {
            hooks = description.exports;
            hooks.retain(|hook| *hook != HookKind::BuilderSelection);
            notes.push(
                "the hook `builder-selection` is not tested: a policy may not have the other grants; to test it, write a table with `hooks = [\"builder-selection\"]` in hookrun.toml"
                    .to_owned(),
            );
        }
        let plugin = Plugin {
            name: plugin_name.clone(),
            source,
            hooks,
            filter: config::Filter::default(),
            retry: config::Retry::default(),
            concurrency: None,
            order: None,
            gate: false,
            config: table,
            grant,
            limits: config::Limits::default(),
        };
        config.plugins.insert(plugin_name, plugin.clone());
        Ok(Self { plugin, config, origin: Origin::Samples(from), notes })
    }

    /// Describes the origin of the plugin's configuration.
    pub fn configuration(&self) -> String {
        match self.origin {
            Origin::Configured if self.config.embedded => "the built-in configuration".to_owned(),
            Origin::Configured => {
                let line = self.config.line_of(&["plugins", &self.plugin.name]);
                let line = line.map(|line| format!(":{line}")).unwrap_or_default();
                format!("{}{line}", self.config.path.display())
            }
            Origin::Samples(from) => {
                let table = match from {
                    SampleConfig::Example => "`config` from the first example of its schema",
                    SampleConfig::Properties => {
                        "`config` from defaults and examples of its schema's required keys"
                    }
                    SampleConfig::Empty => "an empty `config`",
                };
                format!("{SAMPLE}, with all grants it wants and {table}")
            }
        }
    }

    /// Returns why the plugin does not load, with the fix. A sample configuration is not a file
    /// that the user can correct.
    pub fn explain(&self, error: PluginError) -> String {
        match (self.origin, error) {
            (Origin::Samples(_), PluginError::Table(ConfigError { message, .. })) => format!(
                "{message}; set a key with `--set 'KEY = VALUE'`, add an example to the schema, or write a [plugins.NAME] table with this \
                 `source` in {HERE}"
            ),
            (Origin::Samples(_), PluginError::Config(ConfigError { message, .. })) => message,
            (_, error) => error.to_string(),
        }
    }

    /// Returns the component and the result of its examination.
    ///
    /// # Errors
    /// The file cannot be read, or is not a plugin.
    pub fn examine(&self, host: &Host) -> Result<(Component, Examination), SubjectError> {
        let source = &self.plugin.source;
        examine(host, &source.to_string(), source, &self.plugin.config)
    }

    /// Removes grants.
    fn deny(&mut self, capabilities: &[String], host: &Host) -> Result<(), SubjectError> {
        if capabilities.is_empty() {
            return Ok(());
        }
        let wants = self.examine(host)?.1.description.metadata.wants;
        let grant = &mut self.plugin.grant;
        let mut required = Vec::new();
        for capability in capabilities {
            let found = Capability::ALL.into_iter().find(|known| known.name() == capability);
            let Some(found) = found else {
                let known = Capability::ALL.map(Capability::name).join(", ");
                return Err(SubjectError::Option(format!(
                    "there is no capability `{capability}` to deny; known: {known}"
                )));
            };
            found.revoke(grant);
            match wants.of(found) {
                Want::No => {
                    return Err(SubjectError::Option(format!(
                        "`--deny {capability}` changes nothing: plugin `{}` does not want `{capability}`; remove the option",
                        self.plugin.name
                    )));
                }
                Want::Optional => {}
                Want::Required => required.push(format!("`{capability}`")),
            }
        }
        if required.is_empty() {
            return Ok(());
        }
        Err(SubjectError::DeniedRequired {
            plugin: self.plugin.name.clone(),
            capabilities: required.join(", "),
        })
    }

    /// Sets limits.
    fn limit(&mut self, lines: &[String]) -> Result<(), SubjectError> {
        for line in lines {
            let (key, value) = line.split_once('=').ok_or_else(|| {
                SubjectError::Option(format!(
                    "--limit `{line}` is not `LIMIT=VALUE`; write for example `wall-time=2s`"
                ))
            })?;
            let (key, value) = (key.trim(), value.trim().trim_matches('"'));
            let limit = Limit::ALL.iter().copied().find(|limit| limit.key() == key);
            let limit = limit.ok_or_else(|| {
                let keys = Limit::ALL.iter().map(|limit| limit.key());
                SubjectError::Option(format!(
                    "--limit: there is no limit `{key}`; {}",
                    config::suggestion(key, keys)
                ))
            })?;
            let value = value
                .parse()
                .map_or_else(|_| toml::Value::String(value.to_owned()), toml::Value::Integer);
            let value = limit
                .parse(&value)
                .map_err(|message| SubjectError::Option(format!("--limit: {message}")))?;
            self.plugin.limits.set(limit, value);
        }
        Ok(())
    }

    /// Sets keys of the plugin's own configuration.
    fn set(&mut self, lines: &[String]) -> Result<(), SubjectError> {
        for line in lines {
            let table: toml::Table = toml::from_str(line).map_err(|error| {
                let message = error.message().replace('\n', " ");
                SubjectError::Option(format!(
                    "--set `{line}` is not `key = value` as in TOML ({message}); put quotes around strings"
                ))
            })?;
            merge(&mut self.plugin.config, serde_json::to_value(table).unwrap_or_default());
        }
        Ok(())
    }
}

impl Files<'_> {
    /// Returns the configuration files to search, in order, with whether each exists.
    fn candidates(&self) -> Vec<(PathBuf, bool)> {
        let here = if self.chosen { None } else { self.here() };
        let last = (self.config.to_owned(), self.config.exists());
        here.map(|path| (path, true)).into_iter().chain([last]).collect()
    }

    /// Returns `hookrun.toml` of the working directory, if it exists.
    fn here(&self) -> Option<PathBuf> {
        Some(self.directory.join(HERE)).filter(|path| path.is_file())
    }

    fn load(&self, path: &Path) -> Result<Config, SubjectError> {
        if self.chosen && !path.exists() {
            return Err(SubjectError::Config(ConfigError {
                path: path.to_owned(),
                line: None,
                message: "there is no such file; correct `--config` or HOOKRUN_CONFIG".to_owned(),
            }));
        }
        Ok(Config::load(path)?)
    }
}

/// Returns a grant of everything that is wanted, with the names of the sample configuration.
fn everything(wants: &Wants, config: &Config) -> Grant {
    let mut grant = Grant::default();
    for capability in Capability::ALL {
        if wants.of(capability) != Want::No {
            let names = capability.section().map(|section| config.names(section));
            let name = names.and_then(|names| names.first().copied()).unwrap_or_default();
            capability.give(&mut grant, wants, name);
        }
    }
    grant
}

/// Merges `new` into `value`: tables key by key, all other values as a whole.
fn merge(value: &mut serde_json::Value, new: serde_json::Value) {
    match (value, new) {
        (serde_json::Value::Object(table), serde_json::Value::Object(new)) => {
            for (key, new) in new {
                merge(table.entry(key).or_insert(serde_json::Value::Null), new);
            }
        }
        (value, new) => *value = new,
    }
}

/// Returns whether both name the same component.
fn same(one: &PluginSource, other: &PluginSource) -> bool {
    match (one, other) {
        (PluginSource::File(one), PluginSource::File(other)) => {
            let real = |path: &Path| path.canonicalize().ok();
            real(one).is_some_and(|one| Some(one) == real(other))
        }
        _ => one == other,
    }
}

fn examine(
    host: &Host,
    name: &str,
    source: &PluginSource,
    table: &serde_json::Value,
) -> Result<(Component, Examination), SubjectError> {
    let unreadable =
        |reason: String| SubjectError::Unreadable { source_name: name.to_owned(), reason };
    if let PluginSource::Bundled(bundled) = source
        && bundled::component(bundled).is_none()
    {
        let reason =
            format!("is not bundled; known: {}", hookrun_config::bundled::NAMES.join(", "));
        return Err(SubjectError::NoPlugin { source_name: name.to_owned(), reason });
    }
    let component = Component::read(source).map_err(unreadable)?;
    let examined =
        host.examine(&component, table).map_err(|error| unreadable(format!("it {error}")))?;
    let examination = examined
        .map_err(|reason| SubjectError::NoPlugin { source_name: name.to_owned(), reason })?;
    Ok((component, examination))
}

#[cfg(test)]
mod tests;
