//! Runs a plugin as a [`Policy`] in this process, with services in memory. Simulations use it,
//! because they ask a policy thousands of times. The process must have entered its sandbox before
//! ([`super::prepare`]).

use tokio::runtime::Runtime;

use super::Subject;
use hookrun_builders::choice::policy::Policy;
use hookrun_builders::{Candidate, Decision, LocalMachine, Machine, PolicyError};
use hookrun_capability::Services;
use hookrun_host::{LinkedPlugin, ReadyPlugin};
use hookrun_nix::dirs::Dirs;
use hookrun_nix::event::HookKind;

/// A policy in this process.
pub struct PolicyHere {
    plugin: LinkedPlugin,
    services: Services,
    runtime: Runtime,
}

impl PolicyHere {
    /// Maps the subject's plugin.
    ///
    /// # Errors
    /// The plugin does not load, or it is not a policy; the error is one line with the fix.
    pub fn new(subject: &Subject, ready: ReadyPlugin, dirs: &Dirs) -> Result<Self, String> {
        let plugin = ready.link(&subject.config).map_err(|error| subject.explain(error))?;
        if !plugin.hooks().contains(&HookKind::BuilderSelection) {
            return Err(format!(
                "plugin `{}` is not a policy: it does not export the hook `builder-selection`",
                subject.plugin.name
            ));
        }
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime
            .map_err(|error| format!("the runtime of plugins cannot be started ({error})"))?;
        Ok(Self { plugin, services: Services::in_memory(&subject.config, dirs), runtime })
    }
}

impl Policy for PolicyHere {
    fn select(
        &self,
        candidate: &Candidate,
        machines: &[Machine],
        local: &LocalMachine,
    ) -> Result<Decision, PolicyError> {
        let answer =
            self.runtime.block_on(self.plugin.select(&self.services, candidate, machines, local)).0;
        answer.and_then(|decision| {
            hookrun_builders::choice::policy::checked(decision, machines, local)
        })
    }
}
