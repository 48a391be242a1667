//! The services behind the interfaces of `hookrun:host`, and the grants that give them to a plugin.
//!
//! Every capability has a row in `hookrun_config::Capability`, which defines what can be granted,
//! and a [`Service`], whose phases are configure, check, sandbox needs and hold secrets. Its host
//! functions are in `hookrun-host` (`host_call/`), one file per interface. They check grants and
//! limits and count calls; a service does none of this.

pub mod binary_cache;
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
pub mod script;
mod service;
pub mod signing;
pub mod state;

use std::sync::Arc;

pub use context::{EventScope, PluginContext};
pub use error::{CapabilityError, ErrorKind};
pub use log::RunLog;
pub use service::{SandboxNeeds, Service, ServiceFinding};

use crate::grants::Effective;
use hookrun_config::{Config, KeyError};
use hookrun_nix::dirs::Dirs;

/// Defines [`Services`] from the rows below.
macro_rules! services {
    ($($(#[$doc:meta])* $name:ident: $service:ty,)+) => {
        /// The services behind the capabilities. They are created once per process and
        /// configuration, and shared by all runs.
        #[derive(Debug, Clone)]
        pub struct Services {
            clock: Arc<dyn clock::Clock>,
            random: Arc<dyn random::Random>,
            script: Option<Arc<script::Script>>,
            $($name: Arc<$service>,)+
        }

        impl Services {
            /// Creates the services of an installation. Opens no connections, and only the files
            /// that `http` grants name, because a process in its sandbox cannot open them later.
            pub fn new(config: &Config, dirs: &Dirs) -> Self {
                Self {
                    clock: Arc::new(clock::SystemClock::new()),
                    random: Arc::new(random::SystemRandom),
                    script: None,
                    $($name: Arc::new(Service::configure(config, dirs)),)+
                }
            }

            /// Creates services that keep everything in memory and send nothing, for `hookrun
            /// test`.
            pub fn in_memory(config: &Config, dirs: &Dirs) -> Self {
                Self {
                    clock: Arc::new(clock::SystemClock::new()),
                    random: Arc::new(random::SystemRandom),
                    script: None,
                    $($name: Arc::new(Service::in_memory(config, dirs)),)+
                }
            }

            /// Returns all services in the order in which they are checked.
            fn all(&self) -> [&dyn Service; [$(stringify!($name)),+].len()] {
                [$(&*self.$name),+]
            }

            $($(#[$doc])* pub fn $name(&self) -> &Arc<$service> {
                &self.$name
            })+
        }
    };
}

services! {
    /// The uploads to binary caches.
    binary_caches: binary_cache::BinaryCaches,
    /// The signing keys.
    signing_keys: signing::SigningKeys,
    /// The object stores.
    object_stores: object_store::ObjectStores,
    /// The sender of HTTP requests.
    http: http::Client,
    /// The mail transports.
    mail: mail::Mailer,
    /// The plugins' key-value stores.
    state: state::Stores,
    /// The Nix stores.
    nix_stores: nix_store::NixStores,
}

impl Services {
    /// Creates the services of a policy, whose sandbox permits nothing: its `state` is set by its
    /// parent.
    pub fn for_policy(config: &Config, dirs: &Dirs) -> Self {
        let mut without_secrets = config.clone();
        without_secrets.http_credentials.clear();
        Self { state: Arc::new(state::Stores::in_memory()), ..Self::new(&without_secrets, dirs) }
    }

    /// Replaces the source of time.
    #[must_use]
    pub fn with_clock(self, clock: Arc<dyn clock::Clock>) -> Self {
        Self { clock, ..self }
    }

    /// Replaces the source of random numbers.
    #[must_use]
    pub fn with_random(self, random: Arc<dyn random::Random>) -> Self {
        Self { random, ..self }
    }

    /// The same with scripted answers and a record of the calls, for `hookrun test`.
    #[must_use]
    pub fn with_script(self, script: Arc<script::Script>) -> Self {
        Self { script: Some(script), ..self }
    }

    /// The scripted answers of a test.
    pub fn script(&self) -> Option<&Arc<script::Script>> {
        self.script.as_ref()
    }

    /// Replaces the object stores.
    #[must_use]
    pub fn with_object_stores(self, object_stores: Arc<object_store::ObjectStores>) -> Self {
        Self { object_stores, ..self }
    }

    /// Returns the clock that guests see.
    pub fn clock(&self) -> &Arc<dyn clock::Clock> {
        &self.clock
    }

    /// Returns the random numbers that guests see.
    pub fn random(&self) -> &dyn random::Random {
        &*self.random
    }

    /// Checks the configuration of every service. Sends nothing.
    pub fn check(&self, config: &Config, dirs: &Dirs) -> Vec<ServiceFinding> {
        self.all().into_iter().flat_map(|service| service.check(config, dirs)).collect()
    }

    /// Returns what a plugin with these capabilities needs from the operating system.
    pub fn sandbox_needs(&self, effective: &Effective, dirs: &Dirs) -> SandboxNeeds {
        let needs = self.all().into_iter().map(|service| service.sandbox_needs(effective, dirs));
        needs.fold(SandboxNeeds::default(), SandboxNeeds::and)
    }

    /// Reads and keeps every secret that `plugin` may use according to `effective`. Must be called
    /// before this process loses the right to read them.
    ///
    /// # Errors
    /// Returns the key that names a secret that cannot be used.
    pub fn hold_secrets(&self, plugin: &str, effective: &Effective) -> Result<(), KeyError> {
        self.all().into_iter().try_for_each(|service| service.hold_secrets(plugin, effective))
    }

    /// Replaces the sender of HTTP requests, for example by one with another resolver.
    #[must_use]
    pub fn with_http(self, http: http::Client) -> Self {
        Self { http: Arc::new(http), ..self }
    }
}
