//! A plugin as the policy of builder selection.

use crate::builders::{Candidate, Decision, LocalMachine, Machine, Policy, PolicyError};
use crate::capability::Services;
use crate::config::{Config, Plugin};
use crate::dirs::Dirs;
use crate::event::HookKind;
use crate::plugin::{Artifact, Host, LinkedPlugin};

/// The name of the plugin that chooses builders: the first by name that serves the hook. One whose configuration does not list its hooks
/// is asked for them; one that cannot be read is left to `hookrun check`.
pub fn chooser(config: &Config) -> Option<String> {
    let serves = |plugin: &Plugin| match plugin.hooks.as_slice() {
        [] => Artifact::open(plugin, config).is_ok_and(|artifact| artifact.hooks().contains(&HookKind::BuilderSelection)),
        hooks => hooks.contains(&HookKind::BuilderSelection),
    };
    config.plugins.values().find(|plugin| serves(plugin)).map(|plugin| plugin.name.clone())
}

/// Asks a plugin. Made and used on the policy's own thread: the session never waits for Wasm longer than the policy's deadline.
pub struct PluginPolicy {
    plugin: LinkedPlugin,
    services: Services,
    runtime: tokio::runtime::Runtime,
}

impl PluginPolicy {
    /// Loads the plugin `name` of `config`.
    ///
    /// # Errors
    /// It does not load; the text ends in the fix.
    pub fn load(config: &Config, name: &str) -> Result<Box<dyn Policy>, PolicyError> {
        let dirs = Dirs::from_env();
        let unavailable = |error: &dyn std::fmt::Display| PolicyError::Unavailable(error.to_string());
        let settings = config
            .plugins
            .get(name)
            .ok_or_else(|| PolicyError::Unavailable(format!("there is no [plugins.{name}] in {}", config.path.display())))?;
        let plugin = Host::new(&dirs).load(settings, config).map_err(|error| unavailable(&error))?;
        let runtime =
            tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(|error| unavailable(&error))?;
        Ok(Box::new(Self { plugin, services: Services::new(config, &dirs), runtime }))
    }
}

impl Policy for PluginPolicy {
    fn select(&self, candidate: &Candidate, machines: &[Machine], local: &LocalMachine) -> Result<Decision, PolicyError> {
        let (decision, _report) = self.runtime.block_on(self.plugin.select(&self.services, candidate, machines, local));
        decision
    }
}
