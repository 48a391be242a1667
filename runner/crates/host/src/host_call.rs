//! The choke point that every call of a guest passes. A host function of a capability is one
//! [`RunState::call`]; a function of WASI with an effect is one `wasi_call` ([`wasi`], [`io`],
//! [`http`]). Both check the grant, count the call, bound its bytes, list items and time, and
//! record and trace its use. Errors become the `error` record of `hookrun:host/types`.
//!
//! A refusal is a value for the guest, never a trap; only a limit on the whole run ends the run.
//! WASI's functions have no room for a refusal that names a limit, so there a limit ends the run
//! too.
//!
//! # What the shape guarantees
//!
//! * The fields of [`RunState`] are private to this file and its children. What a capability works
//!   with is a [`CallContext`], which only a call that passed hands out: no host function reaches
//!   services, state, log or handles otherwise.
//!
//!   ```compile_fail,E0616
//!   fn around(state: &mut crate::host_call::RunState) {
//!       let _ = &state.services;
//!   }
//!   ```
//!
//! * The linker is private to [`imports`]. Nothing else can offer a guest a function, and what
//!   leaves that file can only instantiate.
//!
//!   ```compile_fail,E0599
//!   fn around(imports: &mut crate::host_call::Imports) {
//!       let _ = imports.instance("acme:power/shell");
//!   }
//!   ```
//!
//! * wasmtime's WASI asks for a `WasiView`, and [`RunState`] is none: no `add_to_linker` of
//!   wasmtime's can be given a store of ours, nor a [`WasiCtx`] with a directory in it, because
//!   only [`wasi`] makes one.
//!
//!   ```compile_fail,E0277
//!   fn around(linker: &mut wasmtime::component::Linker<crate::host_call::RunState>) {
//!       let _ = wasmtime_wasi::p2::add_to_linker_async(linker);
//!   }
//!   ```
//!
//! What it does not guarantee: Rust cannot keep the body of a host function from opening a file or
//! a socket by itself, without what a [`CallContext`] holds. That is for the reader of a capability
//! to see, and for the operating system's wall to stop.
//!
//! # A host function
//!
//! ```ignore
//! async fn exists(&mut self, store: String, keys: Vec<String>) -> Result<Result<Vec<bool>, Error>>
//! {
//!     let need = Need::Named(Capability::ObjectStore, &store);
//!     let call = HostCall::new(need, "exists", keys.wire_size())
//!         .items(keys.len());
//!     let name = store.clone();
//!     self.call(call, |context| {
//!         Box::pin(async move { context.services().object_stores().exists(&name, &keys).await })
//!     })
//!     .await
//! }
//! ```

mod admission;
mod call;
mod call_context;
mod config;
#[cfg(feature = "escape-drill")]
mod escape_attempts;
mod http;
mod imports;
mod io;
mod log;
mod mail;
mod nix_store;
mod object_store;
mod signing;
mod state;
mod wasi;
mod wire_size;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::future::BoxFuture;
use wasmtime::Result;
use wasmtime::component::{Resource, ResourceTable, ResourceTableError};
use wasmtime_wasi::WasiCtx;

use self::admission::Refused;
pub use self::call::HostCall;
pub use self::call_context::CallContext;
use self::http::RunHttp;
pub use self::imports::Imports;
pub use self::wire_size::WireSize;
use super::bindings::hookrun::host::types::Error;
use super::limits::{Allocations, CallName, LimitReached};
use super::output::GuestOutput;
use super::run_clock::RunClock;
use hookrun_capability::state::Transaction;
use hookrun_capability::{CapabilityError, ErrorKind, PluginContext, RunLog, Scope, Services};
use hookrun_config::{Limit, Plugin};
use hookrun_nix::outcome::Usage;

/// The data of one run's store: what it may, what it has used. All of it is private to the choke
/// point.
pub struct RunState {
    plugin: Arc<PluginContext>,
    services: Services,
    scope: Scope,
    clock: RunClock,
    log: RunLog,
    state: Transaction,
    handles: ResourceTable,
    wasi: WasiCtx,
    wasi_table: ResourceTable,
    http: RunHttp,
    allocations: Allocations,
    calls: BTreeMap<CallName, u64>,
    denied: BTreeMap<CallName, u64>,
    spent: BTreeMap<Limit, u64>,
    host_calls: u64,
    wasi_calls: u64,
    host_bytes: u64,
    /// What the guest's clock said when the run began.
    begun: Duration,
    reached: Option<LimitReached>,
    /// What the operator has to fix: the message of the first host call that was refused for it.
    refused: Option<String>,
    progress: bool,
}

/// Handles of WASI for each of [`Limit::Handles`]: a pollable is two, and a runtime's standard
/// streams and timers are a dozen.
const WASI_HANDLES: usize = 4;

impl RunState {
    /// The state of a run that begins.
    pub(super) fn new(
        plugin: Arc<PluginContext>,
        services: Services,
        scope: Scope,
        clock: RunClock,
        log: RunLog,
        (stdout, stderr): (&GuestOutput, &GuestOutput),
    ) -> Self {
        let limits = &plugin.plugin.limits;
        let capacity = usize::try_from(limits.get(Limit::Handles)).unwrap_or(usize::MAX);
        let mut handles = ResourceTable::new();
        handles.set_max_capacity(capacity);
        let mut wasi_table = ResourceTable::new();
        wasi_table.set_max_capacity(capacity.saturating_mul(WASI_HANDLES));
        Self {
            allocations: Allocations::new(limits),
            http: RunHttp::new(limits),
            state: services.state().begin(&plugin.plugin.name),
            begun: services.clock().monotonic(),
            plugin,
            services,
            scope,
            clock,
            log,
            handles,
            wasi: wasi::context(stdout, stderr),
            wasi_table,
            calls: BTreeMap::new(),
            denied: BTreeMap::new(),
            spent: BTreeMap::new(),
            host_calls: 0,
            wasi_calls: 0,
            host_bytes: 0,
            reached: None,
            refused: None,
            progress: false,
        }
    }

    /// Component handles the engine may hold for a run: those of capabilities and those of WASI,
    /// with room for what is being passed, so that [`CallContext::open`] refuses first.
    pub fn max_component_handles(plugin: &Plugin) -> usize {
        usize::try_from(plugin.limits.get(Limit::Handles))
            .unwrap_or(usize::MAX)
            .saturating_mul(2 + 2 * WASI_HANDLES)
    }

    /// One host call: the only way from a guest into a capability.
    ///
    /// # Errors
    /// Ends the run: a limit on the whole run was reached.
    pub async fn call<R, F>(&mut self, call: HostCall<'_>, work: F) -> Result<Result<R, Error>>
    where
        R: WireSize + Send,
        F: for<'r> FnOnce(CallContext<'r>) -> BoxFuture<'r, Result<R, CapabilityError>> + Send,
    {
        let passed = self.guarded(call, work).await?;
        Ok(match passed {
            Ok(result) => result,
            Err(refused) => Err(self.explain(&refused)),
        }
        .map_err(wit_error))
    }

    /// As [`RunState::call`], for the few functions whose type has no room for an error: what would
    /// be one ends the run.
    ///
    /// # Errors
    /// Ends the run.
    pub async fn call_without_error<R, F>(&mut self, call: HostCall<'_>, work: F) -> Result<R>
    where
        R: WireSize + Send,
        F: for<'r> FnOnce(CallContext<'r>) -> BoxFuture<'r, Result<R, CapabilityError>> + Send,
    {
        match self.guarded(call, work).await? {
            Ok(result) => result.map_err(|error| wasmtime::Error::msg(error.message)),
            Err(refused) => Err(self.end(refused)),
        }
    }

    /// A call of WASI that does not wait.
    fn wasi_call<R: WireSize>(
        &mut self,
        call: HostCall<'_>,
        work: impl FnOnce(CallContext<'_>) -> Result<R>,
    ) -> Result<R> {
        if let Some(refused) = self.enter(&call)? {
            return Err(self.end(refused));
        }
        let entered = Instant::now();
        let result = work(self.context());
        self.leave_wasi(&call, entered, result)
    }

    /// A call of WASI that may wait.
    async fn wasi_waiting<R, F>(&mut self, call: HostCall<'_>, work: F) -> Result<R>
    where
        R: WireSize + Send,
        F: for<'r> FnOnce(&'r mut ResourceTable) -> BoxFuture<'r, Result<R>> + Send,
    {
        if let Some(refused) = self.enter(&call)? {
            return Err(self.end(refused));
        }
        let entered = Instant::now();
        let deadline = self.clock.deadline();
        match tokio::time::timeout_at(deadline.at, work(&mut self.wasi_table)).await {
            Ok(result) => self.leave_wasi(&call, entered, result),
            Err(_) => Err(self.stop_in(call, deadline.limit, None)),
        }
    }

    fn leave_wasi<R: WireSize>(
        &mut self,
        call: &HostCall<'_>,
        entered: Instant,
        result: Result<R>,
    ) -> Result<R> {
        let received = result.as_ref().map_or(0, WireSize::wire_size);
        if let Some(refused) =
            self.leave(call, entered, received, result.is_err().then_some("failed"))?
        {
            return Err(self.end(refused));
        }
        result.map_err(|error| match error.downcast_ref() {
            Some(ResourceTableError::Full) => self.stop_in(*call, Limit::Handles, None),
            _ => error,
        })
    }

    async fn guarded<R, F>(
        &mut self,
        call: HostCall<'_>,
        work: F,
    ) -> Result<Result<Result<R, CapabilityError>, Refused>>
    where
        R: WireSize + Send,
        F: for<'r> FnOnce(CallContext<'r>) -> BoxFuture<'r, Result<R, CapabilityError>> + Send,
    {
        if let Some(refused) = self.enter(&call)? {
            return Ok(Err(refused));
        }
        let entered = Instant::now();
        let waiting = call.waiting.then(|| self.clock.wait());
        let deadline = self.clock.deadline();
        let Ok(result) = tokio::time::timeout_at(deadline.at, work(self.context())).await else {
            return Err(self.stop_in(call, deadline.limit, None));
        };
        drop(waiting);
        match &result {
            Ok(_) => self.progress |= call.lasting,
            Err(error) if error.kind == ErrorKind::Refused => {
                self.refused.get_or_insert_with(|| error.message.clone());
            }
            Err(_) => {}
        }
        let (received, error) = match &result {
            Ok(value) => (value.wire_size(), None),
            Err(error) => (error.message.len() as u64, Some(error.kind.as_str())),
        };
        Ok(match self.leave(&call, entered, received, error)? {
            Some(refused) => Err(refused),
            None => Ok(result),
        })
    }

    fn context(&mut self) -> CallContext<'_> {
        CallContext {
            plugin: &self.plugin,
            services: &self.services,
            scope: &self.scope,
            log: &self.log,
            state: &mut self.state,
            handles: &mut self.handles,
            table: &mut self.wasi_table,
            spent: &mut self.spent,
            begun: self.begun,
        }
    }

    /// The guest gave a handle back.
    ///
    /// # Errors
    /// The handle is not open.
    pub fn close<T: Send + 'static>(&mut self, handle: Resource<T>) -> Result<()> {
        self.handles.delete(handle)?;
        Ok(())
    }

    /// For [`wasmtime::Store::limiter`].
    pub fn allocations(&mut self) -> &mut Allocations {
        &mut self.allocations
    }

    /// The limit that ended the run, if one did.
    pub fn reached(&self) -> Option<LimitReached> {
        self.reached.or(self.allocations.reached())
    }

    /// A part of a call has done something that outlives the run, however the call ended.
    pub fn progressed(&mut self) {
        self.progress = true;
    }

    /// A part of a call failed whose other part succeeded.
    pub fn failed(&mut self, error: &Error) {
        if error.kind == ErrorKind::Refused.as_str() {
            self.refused.get_or_insert_with(|| error.message.clone());
        }
    }

    /// Returns what the operator has to fix, if a host call was refused for it.
    pub fn refused(&self) -> Option<&str> {
        self.refused.as_deref()
    }

    /// Returns whether a call has succeeded whose effect outlives the run.
    pub fn made_progress(&self) -> bool {
        self.progress
    }

    /// What was used so far.
    pub fn usage(&self) -> Usage {
        let named = |calls: &BTreeMap<CallName, u64>| {
            calls.iter().map(|(name, count)| (name.to_string(), *count)).collect()
        };
        Usage {
            memory: self.allocations.peak_memory(),
            host_calls: self.host_calls,
            wasi_calls: self.wasi_calls,
            host_bytes: self.host_bytes,
            log_bytes: self.log.bytes(),
            calls: named(&self.calls),
            denied: named(&self.denied),
            ..Usage::default()
        }
    }

    /// Makes what the run wrote to its state durable: the run returned.
    ///
    /// # Errors
    /// The state cannot be written.
    pub async fn commit(&mut self) -> Result<(), CapabilityError> {
        self.state.commit().await
    }
}

/// The error as the interfaces have it.
pub fn wit_error(error: CapabilityError) -> Error {
    Error {
        kind: error.kind.as_str().to_owned(),
        message: error.message,
        retry_after_ms: error
            .retry_after
            .map(|wait| u64::try_from(wait.as_millis()).unwrap_or(u64::MAX)),
    }
}

impl super::bindings::hookrun::host::types::Host for RunState {}
