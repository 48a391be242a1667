//! Reads `hookrun.toml` into a checked [`Config`]. Every error names the file, the line, the key
//! and the fix.
//!
//! Each file contains one element of the configuration, with its default and its documentation.
//! Parsing is pure: the files that the configuration names are not opened here.

mod builders;
pub mod bundled;
mod error;
mod filter;
mod grant;
pub mod http;
mod last;
pub mod limits;
mod lines;
mod mail;
mod object_store;
mod paths;
mod plugin;
mod quantity;
pub mod resources;
mod retry;
mod signing_key;
mod worker;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::Deserialize;

pub use builders::Builders;
pub use error::{ConfigError, KeyError, nearest, suggestion};
pub use filter::Filter;
pub use grant::{Capability, Grant, StoreScope, Want, Wants};
pub use http::{HttpCredential, HttpGrant};
pub use last::{ConfigText, check_named_file, is_missing, must_exist};
pub use limits::{Limit, Limits};
use lines::Lines;
pub use mail::{Mail, MailTransport};
pub use object_store::{Credentials, ObjectStore, profiles_config_file, profiles_file};
pub use paths::SecretFile;
pub use plugin::{Plugin, PluginSource, TaskOrder};
pub use resources::{Amounts, Resources};
pub use retry::Retry;
pub use signing_key::SigningKey;
pub use worker::{Priority, Start, Worker};

/// The configuration of an installation without a file: a plugin that sends mail about builds that
/// are not reproducible to a maildir, and the policy speed-factor.
pub const EMBEDDED: &str = include_str!("default.toml");

/// A checked configuration: every name it uses is defined in it.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub struct Config {
    /// The file that it was read from.
    #[serde(skip)]
    pub path: PathBuf,
    /// Whether it is [`EMBEDDED`], because there is no file at `path`.
    #[serde(skip)]
    pub embedded: bool,
    /// Whether it is the copy that a worker last used, because its file is missing.
    #[serde(skip)]
    pub is_last: bool,
    /// The text, which is passed to other processes of hookrun so that all use the same
    /// configuration.
    #[serde(skip)]
    pub text: String,
    #[serde(skip)]
    lines: Lines,
    pub worker: Worker,
    pub builders: Builders,
    pub plugins: BTreeMap<String, Plugin>,
    pub object_stores: BTreeMap<String, ObjectStore>,
    pub signing_keys: BTreeMap<String, SigningKey>,
    pub mail: BTreeMap<String, Mail>,
    #[serde(rename = "http-credentials")]
    credential_tables: BTreeMap<String, http::CredentialTable>,
    /// The credentials of `[http-credentials.NAME]`, after the tables were checked.
    #[serde(skip)]
    pub http_credentials: BTreeMap<String, HttpCredential>,
}

impl Config {
    /// Reads and checks the configuration at `path`, or [`EMBEDDED`] if there is no file.
    ///
    /// # Errors
    /// Returns the first error, with its line and its fix.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        ConfigText::of_file(path)?.unwrap_or_else(|| ConfigText::embedded(path)).parse()
    }

    /// Checks the text of a configuration.
    ///
    /// # Errors
    /// Returns the errors of [`Config::load`].
    pub fn parse(path: &Path, text: &str) -> Result<Self, ConfigError> {
        let mut config: Self =
            toml::from_str(text).map_err(|error| ConfigError::syntax(path, text, &error))?;
        path.clone_into(&mut config.path);
        text.clone_into(&mut config.text);
        config.lines = Lines::read(text);
        config.check().map_err(|KeyError { keys, message }| {
            let keys: Vec<&str> = keys.iter().map(String::as_str).collect();
            config.error(&keys, message)
        })?;
        paths::anchor(&mut config);
        Ok(config)
    }

    /// Replaces the file and the lines of messages by those of a text in which the tables of
    /// `plugin` stand at the top, such as a scenario of `hookrun test`.
    #[must_use]
    pub fn located_in(mut self, path: &Path, text: &str, plugin: &str) -> Self {
        path.clone_into(&mut self.path);
        self.lines = Lines::moved(text, &["config", "grant", "limits"], &["plugins", plugin]);
        self
    }

    /// Runs the checks that need more than one value, in the order of the file's elements.
    fn check(&mut self) -> Result<(), KeyError> {
        self.worker.check().map_err(|error| error.below(&["worker"]))?;
        self.builders.check().map_err(|error| error.below(&["builders"]))?;
        for (name, table) in std::mem::take(&mut self.credential_tables) {
            let credential =
                table.checked(&name).map_err(|error| error.below(&["http-credentials", &name]))?;
            self.http_credentials.insert(name, credential);
        }
        for (name, plugin) in &mut self.plugins {
            plugin.name.clone_from(name);
        }
        for (name, plugin) in &self.plugins {
            plugin.check(self).map_err(|error| error.below(&["plugins", name]))?;
        }
        Ok(())
    }

    /// Returns the names defined in a section of named tables, such as `object-stores`.
    pub fn names(&self, section: &str) -> Vec<&str> {
        fn keys<T>(tables: &BTreeMap<String, T>) -> Vec<&str> {
            tables.keys().map(String::as_str).collect()
        }
        match section {
            "object-stores" => keys(&self.object_stores),
            "signing-keys" => keys(&self.signing_keys),
            "mail" => keys(&self.mail),
            "http-credentials" => keys(&self.http_credentials),
            _ => Vec::new(),
        }
    }

    /// Returns the line of a key, such as `["plugins", "cache", "grant"]`, or of its nearest parent
    /// in the file.
    pub fn line_of(&self, keys: &[&str]) -> Option<usize> {
        self.lines.of(keys)
    }

    /// Returns the line of a key, if the key is in the file.
    pub fn exact_line_of(&self, keys: &[&str]) -> Option<usize> {
        self.lines.at(keys)
    }

    /// Returns the TCP ports that the `http` grants of all plugins need, for a sandbox that allows
    /// connections to named ports only.
    pub fn http_ports(&self) -> std::collections::BTreeSet<u16> {
        self.plugins.values().flat_map(|plugin| http::ports(&plugin.grant.http)).collect()
    }

    /// Returns every file that the configuration consists of or names: itself, plugins, secrets and
    /// certificates. Long-running processes watch them for changes.
    pub fn files(&self) -> Vec<PathBuf> {
        let plugins = self.plugins.values().filter_map(|plugin| match &plugin.source {
            PluginSource::File(path) => Some(path),
            PluginSource::Bundled(_) => None,
        });
        let certificates = self
            .plugins
            .values()
            .flat_map(|plugin| plugin.grant.http.iter().filter_map(|grant| grant.ca_file.as_ref()));
        let keys = self.signing_keys.values().map(|key| &key.file);
        let stores = self.object_stores.values().flat_map(|store| {
            let from = &store.credentials;
            [
                &from.access_key_id_file,
                &from.secret_access_key_file,
                &from.session_token_file,
                &store.ca_file,
                &store.client_certificate_file,
                &store.client_key_file,
            ]
        });
        // If no other source of credentials is configured, they may come from a profile.
        let has_profiles = self.object_stores.values().any(|store| {
            store.credentials.access_key_id_file.is_none()
                && store.url.as_deref().is_some_and(|url| url.starts_with("s3:"))
        });
        let profiles = [profiles_file(), profiles_config_file()].into_iter().flatten();
        let profiles: Vec<PathBuf> =
            profiles.filter(|file| has_profiles && file.is_file()).collect();
        let mails = self.mail.values().flat_map(|mail| [&mail.password_file, &mail.ca_file]);
        let credentials = self
            .http_credentials
            .values()
            .flat_map(|credential| credential.files().into_iter().map(|(_, path)| path));
        let optional = stores.chain(mails).filter_map(Option::as_ref);
        let all = plugins
            .chain(certificates)
            .chain(keys)
            .chain(optional)
            .chain(credentials)
            .chain(&profiles);
        let mut files: Vec<PathBuf> = std::iter::once(&self.path).chain(all).cloned().collect();
        files.sort();
        files.dedup();
        files
    }

    /// Returns an error about the key `keys`.
    pub fn error(&self, keys: &[&str], message: impl Into<String>) -> ConfigError {
        ConfigError { path: self.path.clone(), line: self.line_of(keys), message: message.into() }
    }
}

#[cfg(test)]
mod tests;
