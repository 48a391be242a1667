//! The context of one host call. It is created only by [`super::RunState::call`], for the time of a
//! call that passed its checks.

use std::collections::BTreeMap;
use std::time::Duration;

use wasmtime::component::{Resource, ResourceTable};

use super::{EventScope, PluginContext};
use hookrun_capability::state::Transaction;
use hookrun_capability::{CapabilityError, RunLog, Services};
use hookrun_config::Limit;

/// The objects that a host function may use during a call that passed its checks.
pub struct CallContext<'a> {
    pub(super) plugin: &'a PluginContext,
    pub(super) services: &'a Services,
    pub(super) scope: &'a EventScope,
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

    /// Returns the store paths that the event is about.
    pub fn scope(&self) -> &'a EventScope {
        self.scope
    }

    pub fn log(&self) -> &'a RunLog {
        self.log
    }

    /// Returns the plugin's key-value store as this run sees it.
    pub fn state(&mut self) -> &mut Transaction {
        self.state
    }

    /// Checks that `wanted` is within a limit of the plugin.
    ///
    /// # Errors
    /// Returns `limit`, with the line to write.
    pub fn within(&self, limit: Limit, wanted: u64) -> Result<(), CapabilityError> {
        self.plugin.within(limit, wanted)
    }

    /// Takes `amount` from what the plugin may use in one run.
    ///
    /// # Errors
    /// Returns `limit` if less than `amount` is left. Nothing is taken then.
    pub fn spend(&mut self, limit: Limit, amount: u64) -> Result<(), CapabilityError> {
        let spent = self.spent.get(&limit).copied().unwrap_or_default().saturating_add(amount);
        self.within(limit, spent)?;
        self.spent.insert(limit, spent);
        Ok(())
    }

    /// Opens a handle to `value` for the guest.
    ///
    /// # Errors
    /// Returns an error if the limit on handles is reached.
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

    /// Returns the value of a handle of the guest.
    ///
    /// # Errors
    /// Returns an error if the handle is not open. The engine checks handles before a call, so this
    /// is a defect of the host.
    pub fn resolve<T: Send + 'static>(&self, handle: &Resource<T>) -> Result<&T, CapabilityError> {
        self.handles
            .get(handle)
            .map_err(|error| CapabilityError::invalid(format!("handle {}: {error}", handle.rep())))
    }
}
