//! Guests that run in this process, without Nix: a configuration, the real engine, and services
//! that keep everything in memory.
//!
//! The tests of single runs use it.

use std::fmt::Display;
use std::path::PathBuf;

use hookrun_capability::Services;
use hookrun_capability::nix_store::sample::Sample;
use hookrun_config::Config;
use hookrun_host::{Compiler, Host, LinkedPlugin};
use hookrun_nix::dirs::Dirs;
use hookrun_nix::event::{Event, HookEvent, PostBuild};
use hookrun_nix::outcome::RunReport;
use toml::{Table, toml};

use crate::guests::guest;
use crate::lab::{ConfigFile, PluginTable};

/// A directory for a configuration and compiled plugins.
pub struct Sandbox {
    _directory: tempfile::TempDir,
    /// The configuration file and the state directory.
    pub dirs: Dirs,
    /// Loads plugins.
    pub host: Host,
}

/// The services that a configuration of [`Sandbox`] has unless the test defines them.
fn services() -> ConfigFile {
    ConfigFile::default()
        .object_store("cache", Table::new())
        .mail("default", Table::new())
        .signing_key("cache.example.org-1", "in-memory")
}

impl Default for Sandbox {
    fn default() -> Self {
        Self::new()
    }
}

impl Sandbox {
    /// Makes an empty sandbox.
    pub fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path().canonicalize().unwrap();
        let dirs = Dirs { config: root.join("hookrun.toml"), state: root.join("state") };
        Self { host: Host::new(&dirs, Compiler::InProcess), dirs, _directory: directory }
    }

    /// Parses a configuration with the services of this sandbox. A [`PluginTable`] alone is the
    /// plugin `x`.
    pub fn config(&self, file: impl Into<ConfigFile>) -> Config {
        self.parse(&services().and(file))
    }

    fn parse(&self, text: &impl Display) -> Config {
        Config::parse(&self.dirs.config, &text.to_string()).unwrap()
    }

    /// Loads the plugin `x`.
    pub fn load(&self, file: impl Into<ConfigFile>) -> (LinkedPlugin, Services) {
        let config = self.config(file);
        let plugin = self.host.load(config.plugins.get("x").unwrap(), &config).unwrap();
        (plugin, Services::in_memory(&config, &self.dirs))
    }

    /// Runs the plugin `x` for the event [`built`].
    pub async fn run(&self, table: PluginTable) -> RunReport {
        let (plugin, services) = self.load(table);
        plugin.run_event(&services, &built(), 1).await
    }

    /// Returns the error of loading the plugin `x`, which is the guest `name`. `rest` are the lines
    /// of its table after `source`, as text because the errors name lines. The directories of the
    /// sandbox and of the guests are replaced by words.
    pub fn refused(&self, name: &str, rest: &str) -> String {
        let (source, services) = (guest(name).unwrap(), services());
        let source_line = toml! { source = (source.display().to_string()) };
        let config = self.parse(&format!("[plugins.x]\n{source_line}{rest}\n{services}"));
        let message =
            self.host.open(config.plugins.get("x").unwrap(), &config).unwrap_err().to_string();
        self.shown(&message).replace(&source.display().to_string(), "GUEST")
    }

    /// Returns `text` with the directory of the sandbox replaced by a word.
    pub fn shown(&self, text: &str) -> String {
        text.replace(&self.root().display().to_string(), "ROOT")
    }

    /// Returns the directory of the sandbox.
    pub fn root(&self) -> PathBuf {
        self.dirs.config.parent().unwrap().to_owned()
    }
}

/// Returns the event of a build of the sample store's derivation.
pub fn built() -> Event {
    let (drv_path, outputs) = Sample::built();
    Event::now(HookEvent::PostBuild(PostBuild { drv_path, outputs }))
}
