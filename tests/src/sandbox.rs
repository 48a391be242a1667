//! Guests in this process, without Nix: a configuration, the real engine, and services that keep
//! everything in memory.
//!
//! Called by the tests that look at one run from close by.

use std::path::PathBuf;

use hookrun_capability::Services;
use hookrun_capability::nix_store::sample::Sample;
use hookrun_config::Config;
use hookrun_host::{Compiler, Host, LinkedPlugin};
use hookrun_nix::dirs::Dirs;
use hookrun_nix::event::{Event, HookEvent, PostBuild};
use hookrun_nix::outcome::RunReport;

use crate::guests::guest;

/// A place for configurations and compiled plugins.
pub struct Sandbox {
    _directory: tempfile::TempDir,
    /// Where it is.
    pub dirs: Dirs,
    /// What loads plugins.
    pub host: Host,
}

/// What a configuration of [`Sandbox`] defines beside the plugin and the object store `cache`.
const SERVICES: &str =
    "[mail.default]\n[signing-keys.\"cache.example.org-1\"]\nfile = \"in-memory\"\n";

impl Default for Sandbox {
    fn default() -> Self {
        Self::new()
    }
}

impl Sandbox {
    /// An empty one.
    pub fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path().canonicalize().unwrap();
        let dirs = Dirs { config: root.join("hookrun.toml"), state: root.join("state") };
        Self { host: Host::new(&dirs, Compiler::InProcess), dirs, _directory: directory }
    }

    /// A configuration with the plugin `x` from the guest `name`; `rest` is the rest of its table,
    /// and more tables.
    pub fn config(&self, name: &str, rest: &str) -> Config {
        // A test may define the object store itself.
        let store =
            if rest.contains("[object-stores.cache]") { "" } else { "[object-stores.cache]\n" };
        let text = format!(
            "[plugins.x]\nsource = \"{}\"\n{rest}\n{store}{SERVICES}",
            guest(name).unwrap().display()
        );
        Config::parse(&self.dirs.config, &text).unwrap()
    }

    /// The plugin `x` of [`Sandbox::config`], loaded.
    pub fn load(&self, name: &str, rest: &str) -> (LinkedPlugin, Services) {
        let config = self.config(name, rest);
        let plugin = self.host.load(config.plugins.get("x").unwrap(), &config).unwrap();
        (plugin, Services::in_memory(&config, &self.dirs))
    }

    /// One run for [`built`].
    pub async fn run(&self, name: &str, rest: &str) -> RunReport {
        let (plugin, services) = self.load(name, rest);
        plugin.run_event(&services, &built(), 1).await
    }

    /// Why the plugin `x` does not load, with this place and the guest's left out.
    pub fn refused(&self, name: &str, rest: &str) -> String {
        let config = self.config(name, rest);
        let message =
            self.host.open(config.plugins.get("x").unwrap(), &config).unwrap_err().to_string();
        self.shown(&message).replace(&guest(name).unwrap().display().to_string(), "GUEST")
    }

    /// `text` with this place left out.
    pub fn shown(&self, text: &str) -> String {
        text.replace(&self.root().display().to_string(), "ROOT")
    }

    /// Where it is.
    pub fn root(&self) -> PathBuf {
        self.dirs.config.parent().unwrap().to_owned()
    }
}

/// The sample store's derivation was built.
pub fn built() -> Event {
    let (drv_path, outputs) = Sample::built();
    Event::now(HookEvent::PostBuild(PostBuild { drv_path, outputs }))
}
