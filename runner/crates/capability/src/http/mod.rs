//! Outgoing `wasi:http`: the standard interface, so that HTTP clients of any language work, with
//! hookrun's own sender.
//!
//! A request is first admitted as a host call (`hookrun_host`, `host_call/http.rs`), which checks
//! the grants (`hookrun_config::http`). Then a task ([`send`]) checks its headers, adds a
//! credential that the guest never sees ([`credential`]), looks the name up once, checks every
//! address ([`address`], [`resolve`]), and connects to an address that is permitted.
//! wasmtime-wasi-http is built without a sender, so requests cannot be sent in any other way. A
//! problem becomes a code for the guest and a line in the run's log ([`problem`]), never a trap.
//!
//! Files are read in [`Client::new`], which runs before the process gives up the right to read
//! them.

pub mod address;
mod body;
mod canned;
mod credential;

mod problem;
pub mod resolve;
mod send;
pub(crate) mod tls;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

pub use body::{About, header_bytes};
pub use canned::Requested;
use credential::Credential;
pub use problem::stream_error_code;
use resolve::{Resolve, System};
pub use send::{Exchange, HttpResponse};

use crate::{SandboxNeeds, Service, ServiceFinding};
use hookrun_config::http::Scheme;
use hookrun_config::{Config, Grant, HttpCredential, HttpGrant, KeyError};
use hookrun_nix::dirs::Dirs;

/// Sends the requests of all plugins of a configuration.
#[derive(Debug)]
pub struct Client {
    settings: BTreeMap<String, HttpCredential>,
    /// The credentials that grants name, or the key and a sentence about the error.
    credentials: BTreeMap<String, Result<Arc<Credential>, (&'static str, String)>>,
    /// The trusted authorities by `ca-file`; `None` stands for the system's.
    trust: BTreeMap<Option<PathBuf>, Result<Arc<rustls::ClientConfig>, String>>,
    resolver: Arc<dyn Resolve>,
    /// Records the requests instead of sending them.
    canned: Option<Mutex<Vec<Requested>>>,
}

impl Service for Client {
    fn configure(config: &Config, _dirs: &Dirs) -> Self {
        Self::new(config)
    }

    fn in_memory(config: &Config, _dirs: &Dirs) -> Self {
        Self::in_memory(config)
    }

    fn check(&self, config: &Config, _dirs: &Dirs) -> Vec<ServiceFinding> {
        let grants = config.plugins.iter().flat_map(|(plugin, settings)| {
            settings.grant.http.iter().map(move |grant| (plugin, grant))
        });
        let checked = |(plugin, grant): (&String, &HttpGrant)| {
            let url = grant.url.as_ref().map(ToString::to_string).unwrap_or_default();
            self.check(plugin, grant).map(|()| format!("plugin {plugin}: http {url}"))
        };
        grants.map(checked).map(ServiceFinding::of).collect()
    }

    fn sandbox_needs(&self, grant: &Grant, _dirs: &Dirs) -> SandboxNeeds {
        SandboxNeeds::ports(hookrun_config::http::ports(&grant.http))
    }

    fn hold_secrets(&self, plugin: &str, grant: &Grant) -> Result<(), KeyError> {
        // `configure` has read the credentials.
        grant.http.iter().try_for_each(|grant| self.check(plugin, grant))
    }
}

impl Client {
    /// Creates the sender for the grants of `config`, and reads the credentials and certificates
    /// that they name. A file that cannot be read is reported when it is used, and by
    /// [`Client::check`].
    pub fn new(config: &Config) -> Self {
        let grants = || config.plugins.values().flat_map(|plugin| &plugin.grant.http);
        let named: BTreeSet<&String> =
            grants().filter_map(|grant| grant.credential.as_ref()).collect();
        let credentials = named
            .into_iter()
            .filter_map(|name| {
                Some((name.clone(), Credential::load(name, config.http_credentials.get(name)?)))
            })
            .collect();
        let secure =
            |grant: &&HttpGrant| grant.url.as_ref().is_some_and(|url| url.scheme == Scheme::Https);
        let files: BTreeSet<Option<PathBuf>> =
            grants().filter(secure).map(|grant| grant.ca_file.clone()).collect();
        let trust =
            files.into_iter().map(|file| (file.clone(), tls::trust(file.as_deref()))).collect();
        Self {
            settings: config.http_credentials.clone(),
            credentials,
            trust,
            resolver: Arc::new(System),
            canned: None,
        }
    }

    /// Creates a sender that reads no file, sends nothing and answers every request, for `hookrun
    /// test`.
    pub fn in_memory(config: &Config) -> Self {
        Self {
            settings: config.http_credentials.clone(),
            credentials: BTreeMap::new(),
            trust: BTreeMap::new(),
            resolver: Arc::new(System),
            canned: Some(Mutex::default()),
        }
    }

    /// Replaces the resolver.
    #[must_use]
    pub fn resolving(self, resolver: Arc<dyn Resolve>) -> Self {
        Self { resolver, ..self }
    }

    /// Checks whether the files that a grant names can be used.
    ///
    /// # Errors
    /// Returns the key that names the file, and the fix.
    pub fn check(&self, plugin: &str, grant: &HttpGrant) -> Result<(), KeyError> {
        if let Some(name) = &grant.credential
            && let Some(Err((key, message))) = self.credentials.get(name)
        {
            return Err(KeyError::new(&["http-credentials", name, key], message.as_str()));
        }
        if let Some(Err(message)) = self.trust.get(&grant.ca_file) {
            return Err(KeyError::new(&["plugins", plugin, "grant", "http"], message.as_str()));
        }
        Ok(())
    }

    fn is_canned(&self) -> bool {
        self.canned.is_some()
    }

    fn resolver(&self) -> &dyn Resolve {
        &*self.resolver
    }

    /// Returns whether the credential `name` sets the header.
    fn sets(&self, name: &str, header: &str) -> bool {
        self.settings.get(name).is_some_and(|settings| settings.sets(header))
    }

    fn credential(&self, name: &str) -> Result<Arc<Credential>, &str> {
        match self.credentials.get(name) {
            Some(Ok(credential)) => Ok(credential.clone()),
            Some(Err((_, message))) => Err(message),
            None => Err("its credential was not there when the process started; start it again"),
        }
    }

    fn trust(&self, ca_file: Option<&Path>) -> Result<Arc<rustls::ClientConfig>, &str> {
        match self.trust.get(&ca_file.map(Path::to_owned)) {
            Some(Ok(config)) => Ok(config.clone()),
            Some(Err(message)) => Err(message),
            None => Err("its certificates were not there when the process started; start it again"),
        }
    }
}
