//! The services behind the interfaces of `hookrun:host`, and the grants that give them to a plugin.
//!
//! Every capability has the same phases: *configure* once per process ([`Services`]), *grant* per
//! plugin ([`grants`]), *hold* its secrets before the sandbox closes ([`Services::hold`]), and then
//! the host functions, which are in `hookrun-host` (`host_call/`), one file per interface. A service
//! never looks at grants or limits and never counts calls: the host functions do that for all of
//! them.
//!
//! To add a capability: its interface in `plugin-sdk/wit`, its service here, a field in
//! [`Services`], a variant in [`grants::Need`], its host functions in `host_call/`, and a line in the
//! table of `host_call/imports.rs`.

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
pub mod signing;
pub mod state;

use std::path::{Path, PathBuf};
use std::sync::Arc;

pub use context::{PluginContext, Scope};
pub use error::{CapabilityError, ErrorKind};
pub use log::RunLog;

use crate::grants::Effective;
use hookrun_config::Config;
use hookrun_nix::dirs::Dirs;

/// What a service needs of the operating system: the wall of its process lets this through.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Reach {
    /// Directories in which it writes.
    pub directories: Vec<PathBuf>,
    /// TCP ports it connects to, on any machine.
    pub ports: Vec<u16>,
}

impl Reach {
    /// One directory.
    pub fn directory(path: &Path) -> Self {
        Self { directories: vec![path.to_owned()], ports: Vec::new() }
    }

    /// These ports.
    pub fn ports(ports: impl IntoIterator<Item = u16>) -> Self {
        Self { directories: Vec::new(), ports: ports.into_iter().collect() }
    }

    /// This and that.
    #[must_use]
    pub fn and(mut self, other: Self) -> Self {
        self.directories.extend(other.directories);
        self.ports.extend(other.ports);
        self
    }
}

/// What the capabilities have behind them. Made once per process and configuration, shared by all
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
    /// grants name (a process behind its walls could not, later): a service that cannot work says
    /// so when it is used.
    pub fn new(config: &Config, dirs: &Dirs) -> Self {
        Self {
            clock: Arc::new(clock::SystemClock::new()),
            random: Arc::new(random::SystemRandom),
            state: Arc::new(state::Stores::durable(dirs.plugin_state())),
            mail: Arc::new(mail::Mailer::new(config, dirs)),
            nix_stores: Arc::new(nix_store::NixStores::real()),
            object_stores: Arc::new(object_store::ObjectStores::new(config, dirs)),
            signing_keys: Arc::new(signing::SigningKeys::new(config)),
            http: Arc::new(http::Client::new(config)),
        }
    }

    /// The services of a policy, whose wall lets nothing through: `state` is what was put into it.
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
            state: Arc::new(state::Stores::in_memory()),
            mail: Arc::new(mail::Mailer::capturing(config, dirs)),
            nix_stores: Arc::new(nix_store::NixStores::sample()),
            object_stores: Arc::new(object_store::ObjectStores::in_memory(config, dirs)),
            signing_keys: Arc::new(signing::SigningKeys::throwaway(config)),
            http: Arc::new(http::Client::in_memory(config)),
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

    /// What guests take for time.
    pub fn clock(&self) -> &Arc<dyn clock::Clock> {
        &self.clock
    }

    /// What guests take for chance.
    pub fn random(&self) -> &dyn random::Random {
        &*self.random
    }

    /// What a plugin that has `effective` needs of the operating system for its services.
    pub fn reach(&self, effective: &Effective, dirs: &Dirs) -> Reach {
        let stores = effective.object_store.iter().map(|name| self.object_stores.reach(name));
        let mails = effective.mail.iter().map(|name| self.mail.reach(name));
        let state = effective.state.then(|| Reach::directory(&dirs.plugin_state()));
        let http = (!effective.http.is_empty())
            .then(|| Reach::ports(hookrun_config::http::ports(&effective.http)));
        stores.chain(mails).chain(state).chain(http).fold(Reach::default(), Reach::and)
    }

    /// Reads every secret that `plugin`, with `effective`, uses, and keeps it: this process is
    /// about to lose the right to.
    ///
    /// # Errors
    /// The keys of the configuration that name what cannot be used, and why.
    pub fn hold(&self, plugin: &str, effective: &Effective) -> Result<(), (Vec<String>, String)> {
        let keys = |keys: [&str; 3]| keys.map(str::to_owned).to_vec();
        for key in &effective.signing {
            let held = self.signing_keys.hold(key);
            held.map_err(|error| (keys(["signing-keys", key, "file"]), error.message))?;
        }
        for store in &effective.object_store {
            let held = self.object_stores.hold(store);
            held.map_err(|error| (keys(["object-stores", store, "url"]), error.message))?;
        }
        for transport in &effective.mail {
            self.mail.hold(transport);
        }
        // Read when the services were made.
        effective.http.iter().try_for_each(|grant| self.http.check(plugin, grant))
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
