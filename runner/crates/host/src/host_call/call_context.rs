//! The context of one host call. Only the choke point makes one, for the time of a call that
//! passed its checks.

use std::collections::BTreeMap;
use std::time::Duration;

use wasmtime::component::{Resource, ResourceTable};

use super::{PluginContext, Scope};
use hookrun_capability::state::Transaction;
use hookrun_capability::{CapabilityError, RunLog, Services};
use hookrun_config::Limit;

/// What a host function may use during a call that passed its checks.
pub struct CallContext<'a> {
    pub(super) plugin: &'a PluginContext,
    pub(super) services: &'a Services,
    pub(super) scope: &'a Scope,
    pub(super) log: &'a RunLog,
    pub(super) state: &'a mut Transaction,
    pub(super) handles: &'a mut ResourceTable,
    pub(super) table: &'a mut ResourceTable,
    pub(super) spent: &'a mut BTreeMap<Limit, u64>,
    pub(super) begun: Duration,
}

impl<'a> CallContext<'a> {
    pub fn plugin(&self) -> &'a PluginContext {
        self.plugin
    }

    pub fn services(&self) -> &'a Services {
        self.services
    }

    /// What the event is about.
    pub fn scope(&self) -> &'a Scope {
        self.scope
    }

    pub fn log(&self) -> &'a RunLog {
        self.log
    }

    /// The plugin's key-value store as this run sees it.
    pub fn state(&mut self) -> &mut Transaction {
        self.state
    }

    /// Checks that `wanted` is within a limit of the plugin.
    ///
    /// # Errors
    /// `limit`, with the line to write.
    pub fn within(&self, limit: Limit, wanted: u64) -> Result<(), CapabilityError> {
        self.plugin.within(limit, wanted)
    }

    /// Takes `amount` of what the plugin may use in one run.
    ///
    /// # Errors
    /// `limit`: there is not as much left; nothing is taken.
    pub fn spend(&mut self, limit: Limit, amount: u64) -> Result<(), CapabilityError> {
        let spent = self.spent.get(&limit).copied().unwrap_or_default().saturating_add(amount);
        self.within(limit, spent)?;
        self.spent.insert(limit, spent);
        Ok(())
    }

    /// Gives the guest a handle to `value`.
    ///
    /// # Errors
    /// The limit on handles is reached.
    pub fn open<T: Send + 'static>(&mut self, value: T) -> Result<Resource<T>, CapabilityError> {
        let plugin = &self.plugin.plugin;
        let allowed = plugin.limits.get(Limit::Handles);
        self.handles.push(value).map_err(|_| {
            CapabilityError::limit(Limit::Handles.reached(
                &plugin.name,
                allowed,
                Some(allowed.saturating_add(1)),
            ))
        })
    }

    /// Returns the value of the guest's handle.
    ///
    /// # Errors
    /// The handle is not open (the engine checks handles before a call, so this is a defect of the
    /// host).
    pub fn resolve<T: Send + 'static>(&self, handle: &Resource<T>) -> Result<&T, CapabilityError> {
        self.handles
            .get(handle)
            .map_err(|error| CapabilityError::invalid(format!("handle {}: {error}", handle.rep())))
    }
}
