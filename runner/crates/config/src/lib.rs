//! Reads `hookrun.toml` into a checked [`Config`]. Every error names the file, the line, the key and
//! the fix.
//!
//! Each file has one element of the configuration, with its default and its documentation. Reading
//! is pure: no file that the configuration names is opened here, secrets least of all.

pub mod bundled;
mod error;
pub mod http;
mod last;
pub mod limits;
mod paths;
mod plugin;
mod raw;
pub mod resources;
mod services;
mod worker;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

pub use error::{ConfigError, nearest, suggestion};
pub use http::{HttpCredential, HttpGrant};
pub use last::{is_away, must_be_there, named_is_there};
pub use limits::{Limit, Limits};
pub use paths::SecretFile;
pub use plugin::{Filter, Grant, Plugin, PluginSource, Retry, StoreScope, TaskOrder};
pub use resources::{Amounts, Resources};
pub use services::{Credentials, Mail, MailTransport, ObjectStore, SigningKey};
pub use services::{profiles_config_file, profiles_file};
pub use worker::{Builders, Priority, Start, Worker};

/// The configuration of an installation without a file: mails about non-reproducible builds into a
/// maildir, and the speed-factor policy.
pub const EMBEDDED: &str = include_str!("default.toml");

/// A checked configuration: every name it uses is defined in it.
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    /// Where it was read from.
    pub path: PathBuf,
    /// Is it [`EMBEDDED`], because there is no file at `path`?
    pub embedded: bool,
    /// Is it the one that a worker last took up, because its file is away?
    pub is_last: bool,
    /// What was read, so that another process of hookrun works with the same.
    pub text: String,
    /// `[worker]`.
    pub worker: Worker,
    /// `[builders]`.
    pub builders: Builders,
    /// `[plugins.NAME]`, by name.
    pub plugins: BTreeMap<String, Plugin>,
    /// `[object-stores.NAME]`.
    pub object_stores: BTreeMap<String, ObjectStore>,
    /// `[signing-keys.NAME]`.
    pub signing_keys: BTreeMap<String, SigningKey>,
    /// `[mail.NAME]`.
    pub mail: BTreeMap<String, Mail>,
    /// `[http-credentials.NAME]`.
    pub http_credentials: BTreeMap<String, HttpCredential>,
    lines: Lines,
}

impl Config {
    /// Reads and checks the configuration at `path`, or [`EMBEDDED`] if there is no file.
    ///
    /// # Errors
    /// The first thing that is wrong, with its line and its fix.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        match std::fs::read_to_string(path) {
            Ok(text) => Self::parse(path, &text),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                Self::parse(path, EMBEDDED).map(|config| Self { embedded: true, ..config })
            }
            Err(error) => Err(ConfigError {
                path: path.to_owned(),
                line: None,
                message: format!(
                    "cannot be read ({error}); make it readable for the user that runs hookrun"
                ),
            }),
        }
    }

    /// Checks the text of a configuration.
    ///
    /// # Errors
    /// As [`Config::load`].
    pub fn parse(path: &Path, text: &str) -> Result<Self, ConfigError> {
        raw::parse(path, text)
    }

    /// The line of a key, such as `["plugins", "cache", "grant"]`, or of its nearest parent that is
    /// there.
    pub fn line_of(&self, keys: &[&str]) -> Option<usize> {
        self.lines.of(keys)
    }

    /// The line of a key, if it is there itself.
    pub fn exact_line_of(&self, keys: &[&str]) -> Option<usize> {
        self.lines.at(keys)
    }

    /// The TCP ports that the `http` grants of all plugins need, for a wall that lets out
    /// connections to named ports only.
    pub fn http_ports(&self) -> std::collections::BTreeSet<u16> {
        self.plugins.values().flat_map(|plugin| http::ports(&plugin.grant.http)).collect()
    }

    /// Every file that the configuration comes from or names: itself, plugins, secrets,
    /// certificates. What a process that goes on for long looks at for changes.
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
            [&from.access_key_id_file, &from.secret_access_key_file, &from.session_token_file]
        });
        // Where nothing else says where credentials come from, a profile may have them.
        let profiles = self.object_stores.values().any(|store| {
            store.credentials.access_key_id_file.is_none()
                && store.url.as_deref().is_some_and(|url| url.starts_with("s3:"))
        });
        let profiles = profiles.then(profiles_file).flatten().filter(|file| file.is_file());
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
            .chain(profiles.as_ref());
        let mut files: Vec<PathBuf> = std::iter::once(&self.path).chain(all).cloned().collect();
        files.sort();
        files.dedup();
        files
    }

    /// An error about the key `keys`.
    pub fn error(&self, keys: &[&str], message: impl Into<String>) -> ConfigError {
        ConfigError { path: self.path.clone(), line: self.line_of(keys), message: message.into() }
    }
}

/// The lines of all keys, by dotted path.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Lines(BTreeMap<Vec<String>, usize>);

impl Lines {
    fn of(&self, keys: &[&str]) -> Option<usize> {
        (1..=keys.len()).rev().find_map(|length| self.at(keys.get(..length)?))
    }

    fn at(&self, keys: &[&str]) -> Option<usize> {
        let path: Vec<String> = keys.iter().map(|key| (*key).to_owned()).collect();
        self.0.get(&path).copied()
    }
}

#[cfg(test)]
mod tests;
