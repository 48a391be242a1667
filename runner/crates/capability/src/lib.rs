//! The services behind the interfaces of `hookrun:host`, and the grants that give them to a plugin.
//!
//! Every capability has a row in `hookrun_config::Capability`, which says what can be granted, and
//! a [`Service`], whose phases are configure, check, sandbox needs and hold secrets. Its host
//! functions are in `hookrun-host` (`host_call/`), one file per interface: they check grants and
//! limits and count calls, and a service never does.

pub mod clock;
mod context;
mod error;
pub mod grants;
pub mod http;
mod log;
pub mod mail;
pub mod nix_store;
pub mod object_store;
pub mod random;
mod service;
pub mod signing;
pub mod state;

use std::sync::Arc;

pub use context::{PluginContext, Scope};
pub use error::{CapabilityError, ErrorKind};
pub use log::RunLog;
pub use service::{Finding, SandboxNeeds, Service};

use crate::grants::Effective;
use hookrun_config::{Config, KeyError};
use hookrun_nix::dirs::Dirs;

/// The services behind the capabilities. Made once per process and configuration, shared by all
/// runs.
#[derive(Debug, Clone)]
pub struct Services {
    clock: Arc<dyn clock::Clock>,
    random: Arc<dyn random::Random>,
    state: Arc<state::Stores>,
    mail: Arc<mail::Mailer>,
    nix_stores: Arc<nix_store::NixStores>,
    object_stores: Arc<object_store::ObjectStores>,
    signing_keys: Arc<signing::SigningKeys>,
    http: Arc<http::Client>,
}

impl Services {
    /// The services of an installation. Opens no connection, and no file but those that `http`
    /// grants name, because a process in its sandbox could not do that later.
    pub fn new(config: &Config, dirs: &Dirs) -> Self {
        Self {
            clock: Arc::new(clock::SystemClock::new()),
            random: Arc::new(random::SystemRandom),
            state: Arc::new(Service::configure(config, dirs)),
            mail: Arc::new(Service::configure(config, dirs)),
            nix_stores: Arc::new(Service::configure(config, dirs)),
            object_stores: Arc::new(Service::configure(config, dirs)),
            signing_keys: Arc::new(Service::configure(config, dirs)),
            http: Arc::new(Service::configure(config, dirs)),
        }
    }

    /// All services, in the order in which they are checked.
    fn all(&self) -> [&dyn Service; 6] {
        [
            &*self.signing_keys,
            &*self.object_stores,
            &*self.http,
            &*self.mail,
            &*self.state,
            &*self.nix_stores,
        ]
    }

    /// The services of a policy, whose sandbox allows nothing: `state` is what was put into it.
    pub fn for_policy(config: &Config, dirs: &Dirs) -> Self {
        let mut without_secrets = config.clone();
        without_secrets.http_credentials.clear();
        Self { state: Arc::new(state::Stores::in_memory()), ..Self::new(&without_secrets, dirs) }
    }

    /// Services that keep everything in memory and send nothing, for `hookrun test`.
    pub fn in_memory(config: &Config, dirs: &Dirs) -> Self {
        Self {
            clock: Arc::new(clock::SystemClock::new()),
            random: Arc::new(random::SystemRandom),
            state: Arc::new(Service::in_memory(config, dirs)),
            mail: Arc::new(Service::in_memory(config, dirs)),
            nix_stores: Arc::new(Service::in_memory(config, dirs)),
            object_stores: Arc::new(Service::in_memory(config, dirs)),
            signing_keys: Arc::new(Service::in_memory(config, dirs)),
            http: Arc::new(Service::in_memory(config, dirs)),
        }
    }

    /// The same with another source of time.
    #[must_use]
    pub fn with_clock(self, clock: Arc<dyn clock::Clock>) -> Self {
        Self { clock, ..self }
    }

    /// The same with another source of random numbers.
    #[must_use]
    pub fn with_random(self, random: Arc<dyn random::Random>) -> Self {
        Self { random, ..self }
    }

    /// The same with other object stores.
    #[must_use]
    pub fn with_object_stores(self, object_stores: Arc<object_store::ObjectStores>) -> Self {
        Self { object_stores, ..self }
    }

    /// The time that guests see.
    pub fn clock(&self) -> &Arc<dyn clock::Clock> {
        &self.clock
    }

    /// The random numbers that guests see.
    pub fn random(&self) -> &dyn random::Random {
        &*self.random
    }

    /// Checks what the configuration says of every service. Sends nothing.
    pub fn check(&self, config: &Config, dirs: &Dirs) -> Vec<Finding> {
        self.all().into_iter().flat_map(|service| service.check(config, dirs)).collect()
    }

    /// What a plugin that has `effective` needs of the operating system for its services.
    pub fn sandbox_needs(&self, effective: &Effective, dirs: &Dirs) -> SandboxNeeds {
        let needs = self.all().into_iter().map(|service| service.sandbox_needs(effective, dirs));
        needs.fold(SandboxNeeds::default(), SandboxNeeds::and)
    }

    /// Reads every secret that `plugin`, with `effective`, uses, and keeps it. Called before this
    /// process loses the right to read them.
    ///
    /// # Errors
    /// The key that names a secret that cannot be used.
    pub fn hold_secrets(&self, plugin: &str, effective: &Effective) -> Result<(), KeyError> {
        self.all().into_iter().try_for_each(|service| service.hold_secrets(plugin, effective))
    }

    /// The plugins' key-value stores.
    pub fn state(&self) -> &state::Stores {
        &self.state
    }

    /// The mail transports.
    pub fn mail(&self) -> &mail::Mailer {
        &self.mail
    }

    /// The Nix stores.
    pub fn nix_stores(&self) -> &Arc<nix_store::NixStores> {
        &self.nix_stores
    }

    /// The object stores.
    pub fn object_stores(&self) -> &object_store::ObjectStores {
        &self.object_stores
    }

    /// The sender of HTTP requests.
    pub fn http(&self) -> &Arc<http::Client> {
        &self.http
    }

    /// The same with another sender, such as one with a resolver of its own.
    #[must_use]
    pub fn with_http(self, http: http::Client) -> Self {
        Self { http: Arc::new(http), ..self }
    }

    /// The signing keys.
    pub fn signing_keys(&self) -> &Arc<signing::SigningKeys> {
        &self.signing_keys
    }
}
