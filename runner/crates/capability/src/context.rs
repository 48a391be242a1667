//! The context of a run: the plugin's configuration and capabilities, and the paths of the event.

use std::path::PathBuf;

use crate::CapabilityError;
use crate::grants::{Effective, Wants};
use hookrun_config::{Limit, Plugin};
use hookrun_nix::event::{Event, HookEvent, NixDirs};

/// A plugin's configuration and capabilities.
#[derive(Debug)]
pub struct PluginContext {
    /// Its table in the configuration.
    pub plugin: Plugin,
    /// The configuration's file, for messages.
    pub config_file: PathBuf,
    /// Its `config` table, as JSON.
    pub config_json: String,
    /// The capabilities that its metadata wants.
    pub wants: Wants,
    /// The capabilities that are both wanted and granted.
    pub effective: Effective,
}

impl PluginContext {
    /// Checks that `wanted` is within a limit of the plugin.
    ///
    /// # Errors
    /// Returns `limit`, with the line to write.
    pub fn within(&self, limit: Limit, wanted: u64) -> Result<(), CapabilityError> {
        let Plugin { name, limits, .. } = &self.plugin;
        let allowed = limits.get(limit);
        if wanted > allowed {
            return Err(CapabilityError::limit(limit.reached(name, allowed, Some(wanted))));
        }
        Ok(())
    }
}

/// The store paths that the event of this run is about: the roots of the `nix-store` grant.
#[derive(Debug, Clone)]
pub struct EventScope {
    /// The Nix that called the hook.
    pub nix: NixDirs,
    /// Full store paths: the derivation and its outputs. Empty for builder selection.
    pub paths: Vec<String>,
    /// The event's id, which names the task together with the plugin. Empty for builder selection.
    pub event: String,
}

impl EventScope {
    /// Returns the scope of `event`.
    pub fn of(event: &Event) -> Self {
        let paths = match &event.hook {
            HookEvent::PostBuild(build) => {
                let outputs = build.outputs.iter().map(|output| output.path.clone());
                [build.drv_path.clone()].into_iter().chain(outputs).collect()
            }
            HookEvent::Diff(diff) => {
                vec![
                    diff.drv_path.clone(),
                    diff.output.path.clone(),
                    diff.previous.clone(),
                    diff.current.clone(),
                ]
            }
        };
        Self { nix: event.nix.clone(), paths, event: event.id.clone() }
    }
}
