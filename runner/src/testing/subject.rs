//! What `hookrun test` tests: a plugin of the configuration as it stands there, or a file (or
//! bundled plugin) with everything it wants granted from in-memory services.

use std::path::{Path, PathBuf};

use crate::config::{Config, ConfigError, HttpGrant, Plugin, PluginSource, StoreScope};
use crate::plugin::grants::Want;
use crate::plugin::{bundled, metadata};

/// The services that a plugin outside of a configuration is offered. Names that the bundled
/// plugins' examples use.
const OBJECT_STORE: &str = "cache";
const SIGNING_KEY: &str = "cache.example.org-1";
const MAIL: &str = "default";

/// A plugin to test, and the configuration it stands in.
#[derive(Debug)]
pub struct Subject {
    /// The plugin.
    pub plugin: Plugin,
    /// Its configuration.
    pub config: Config,
}

/// Why there is nothing to test.
#[derive(Debug, thiserror::Error)]
pub enum SubjectError {
    /// Neither a file, nor bundled, nor configured.
    #[error("there is no file `{name}`, and no [plugins.{name}] in {}; write a path, `bundled:NAME` ({}) or a name of the configuration", config.display(), bundled::NAMES.join(", "))]
    Missing {
        /// What was asked for.
        name: String,
        /// The configuration that was looked at.
        config: PathBuf,
    },
    /// It cannot be read.
    #[error("{} cannot be read ({error}); make it readable for you", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What the system says.
        error: std::io::Error,
    },
    /// It is no plugin.
    #[error("plugin {source_name} {reason}")]
    NoPlugin {
        /// The file or bundled name.
        source_name: String,
        /// A fragment that ends in the fix.
        reason: String,
    },
    /// The configuration is wrong.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// `--set` or `--deny` is wrong.
    #[error("{0}")]
    Option(String),
}

/// Capabilities by the words of `--deny`.
pub const CAPABILITIES: [&str; 6] =
    ["nix-store", "object-store", "signing", "mail", "state", "http"];

impl Subject {
    /// Finds what `name` names. `set` are lines `key = value` (TOML) for the plugin's `config`;
    /// `deny` are capabilities that are not granted.
    ///
    /// # Errors
    /// There is no such plugin, or the options do not fit it.
    pub fn find(
        name: &str,
        config_file: &Path,
        set: &[String],
        deny: &[String],
    ) -> Result<Self, SubjectError> {
        let path = Path::new(name);
        let bundled_name = name.strip_prefix("bundled:");
        let mut subject = if bundled_name.is_some() || path.is_file() {
            Self::with_everything(name)?
        } else {
            let missing =
                || SubjectError::Missing { name: name.to_owned(), config: config_file.to_owned() };
            if path.components().count() > 1 {
                return Err(missing());
            }
            let config = Config::load(config_file)?;
            let plugin = config.plugins.get(name).cloned().ok_or_else(missing)?;
            Self { plugin, config }
        };
        subject.set(set)?;
        for capability in deny {
            let grant = &mut subject.plugin.grant;
            match capability.as_str() {
                "nix-store" => grant.nix_store = StoreScope::None,
                "object-store" => grant.object_store.clear(),
                "signing" => grant.signing.clear(),
                "mail" => grant.mail.clear(),
                "state" => grant.state = false,
                "http" => grant.http.clear(),
                other => {
                    let known = CAPABILITIES.join(", ");
                    return Err(SubjectError::Option(format!(
                        "there is no capability `{other}` to deny; known: {known}"
                    )));
                }
            }
        }
        Ok(subject)
    }

    /// A plugin outside of a configuration: what it wants is granted, and its configuration is its
    /// schema's first example.
    fn with_everything(name: &str) -> Result<Self, SubjectError> {
        let no_plugin =
            |reason: String| SubjectError::NoPlugin { source_name: name.to_owned(), reason };
        let source =
            match name.strip_prefix("bundled:") {
                Some(bundled) => PluginSource::Bundled(bundled.to_owned()),
                None => {
                    let path = Path::new(name);
                    PluginSource::File(std::path::absolute(path).map_err(|error| {
                        SubjectError::Unreadable { path: path.to_owned(), error }
                    })?)
                }
            };
        let wasm =
            read(&source).map_err(|error| SubjectError::Unreadable { path: name.into(), error })?;
        let wasm = wasm.ok_or_else(|| {
            no_plugin(format!("is not bundled; known: {}", bundled::NAMES.join(", ")))
        })?;
        let metadata = metadata::describe(&wasm).map_err(no_plugin)?.metadata;
        let services = format!(
            "[object-stores.{OBJECT_STORE}]\n[signing-keys.\"{SIGNING_KEY}\"]\nfile = \"in-memory\"\n[mail.{MAIL}]\n"
        );
        let mut config = Config::parse(Path::new("hookrun.toml"), &services)?;
        let plugin_name: String = metadata
            .name
            .chars()
            .map(|c| if c.is_ascii_alphanumeric() || c == '-' { c } else { '-' })
            .collect();
        let names = |want: Want, name: &str| {
            if want == Want::No { Vec::new() } else { vec![name.to_owned()] }
        };
        let example = metadata
            .config_schema
            .as_ref()
            .and_then(|schema| schema.get("examples")?.get(0))
            .cloned();
        let plugin = Plugin {
            name: plugin_name.clone(),
            source,
            hooks: Vec::new(),
            filter: crate::config::Filter::default(),
            retry: crate::config::Retry::default(),
            concurrency: None,
            order: None,
            gate: false,
            config: example.unwrap_or_else(|| serde_json::json!({})),
            grant: crate::config::Grant {
                nix_store: metadata.wants.nix_store,
                object_store: names(metadata.wants.object_store, OBJECT_STORE),
                signing: names(metadata.wants.signing, SIGNING_KEY),
                mail: names(metadata.wants.mail, MAIL),
                state: metadata.wants.state != Want::No,
                http: if metadata.wants.http == Want::No {
                    Vec::new()
                } else {
                    vec![HttpGrant::everything()]
                },
            },
            limits: crate::config::Limits::default(),
        };
        config.plugins.insert(plugin_name, plugin.clone());
        Ok(Self { plugin, config })
    }

    /// The component's bytes.
    ///
    /// # Errors
    /// They cannot be read.
    pub fn component(&self) -> Result<Vec<u8>, SubjectError> {
        let source = &self.plugin.source;
        let unreadable =
            |error| SubjectError::Unreadable { path: source.to_string().into(), error };
        read(source).map_err(unreadable)?.ok_or_else(|| SubjectError::NoPlugin {
            source_name: source.to_string(),
            reason: format!("is not bundled; known: {}", bundled::NAMES.join(", ")),
        })
    }

    fn set(&mut self, lines: &[String]) -> Result<(), SubjectError> {
        for line in lines {
            let table: toml::Table = toml::from_str(line).map_err(|error| {
                let message = error.message().replace('\n', " ");
                SubjectError::Option(format!(
                    "--set `{line}` is not `key = value` as in TOML ({message}); strings want quotes"
                ))
            })?;
            let values = serde_json::to_value(table).unwrap_or_default();
            if let (Some(config), serde_json::Value::Object(values)) =
                (self.plugin.config.as_object_mut(), values)
            {
                config.extend(values);
            }
        }
        self.config.plugins.insert(self.plugin.name.clone(), self.plugin.clone());
        Ok(())
    }
}

/// The component's bytes; none for a bundled plugin that there is not.
fn read(source: &PluginSource) -> std::io::Result<Option<Vec<u8>>> {
    match source {
        PluginSource::Bundled(name) => Ok(bundled::component(name).map(<[u8]>::to_vec)),
        PluginSource::File(path) => std::fs::read(path).map(Some),
    }
}
