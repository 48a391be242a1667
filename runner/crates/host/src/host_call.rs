//! The single entry point of every call of a guest. A host function of a capability is one
//! [`RunState::call`]; a function of WASI with an effect is one `wasi_call` ([`wasi`], [`io`],
//! [`http`]). Both check the grant, count the call, limit its bytes, list items and time, and
//! record and trace it. Errors become the `error` record of `hookrun:host/types`.
//!
//! A refusal is a value for the guest, never a trap; only a limit on the whole run ends the run.
//! WASI's functions cannot return a refusal that names a limit, so there a limit ends the run too.
//!
//! # Guarantees
//!
//! * The fields of [`RunState`] are private to this file and its submodules. Capabilities work with
//!   a [`CallContext`], which exists only during a call that passed the checks. A host function
//!   cannot access services, state, log or handles in any other way.
//!
//!   ```compile_fail,E0616
//!   fn around(state: &mut crate::host_call::RunState) {
//!       let _ = &state.services;
//!   }
//!   ```
//!
//! * The linker is private to [`imports`]. No other module can offer a function to a guest; the
//!   type that [`imports`] exports can only instantiate.
//!
//!   ```compile_fail,E0599
//!   fn around(imports: &mut crate::host_call::Imports) {
//!       let _ = imports.instance("acme:power/shell");
//!   }
//!   ```
//!
//! * wasmtime's WASI requires a `WasiView`, which [`RunState`] does not implement. Therefore no
//!   `add_to_linker` of wasmtime accepts a store of this crate, and no [`WasiCtx`] with a directory
//!   can be used, because only [`wasi`] creates one.
//!
//!   ```compile_fail,E0277
//!   fn around(linker: &mut wasmtime::component::Linker<crate::host_call::RunState>) {
//!       let _ = wasmtime_wasi::p2::add_to_linker_async(linker);
//!   }
//!   ```
//!
//! Not guaranteed: Rust cannot prevent the body of a host function from opening a file or a socket
//! by itself, without a [`CallContext`]. Reviewers have to find that, and the operating system's
//! sandbox stops it.
//!
//! # Example of a host function
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
mod binary_cache;
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
use hookrun_capability::script::{Called, SLOW, Scripted};
use hookrun_capability::state::Transaction;
use hookrun_capability::{CapabilityError, ErrorKind, EventScope, PluginContext, RunLog, Services};
use hookrun_config::{Limit, Plugin};
use hookrun_nix::outcome::Usage;

/// The data of one run's store: its grants and limits, and its use of them. All fields are private
/// to this module.
pub struct RunState {
    plugin: Arc<PluginContext>,
    services: Services,
    scope: EventScope,
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
    /// The reading of the guest's clock at the beginning of the run.
    begun: Duration,
    reached: Option<LimitReached>,
    /// The problem that the operator has to fix: the message of the first host call that was
    /// refused because of one.
    refused: Option<String>,
    progress: bool,
    /// The arguments of the call that is made next, as text for the record of a test.
    arguments: String,
}

/// Number of WASI handles for each of [`Limit::Handles`]. A pollable takes two, and the standard
/// streams and timers of a language runtime take about twelve.
const WASI_HANDLES: usize = 4;

impl RunState {
    /// Creates the state of a new run.
    pub(super) fn new(
        plugin: Arc<PluginContext>,
        services: Services,
        scope: EventScope,
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
            arguments: String::new(),
        }
    }

    /// Keeps the arguments of the host call that follows, if a test records them.
    pub fn trace(&mut self, arguments: &[&dyn WireSize]) {
        if self.services.script().is_some() {
            self.arguments = wire_size::wave_arguments(arguments);
        }
    }

    /// Keeps a host call for a test that records them.
    fn keep(&self, call: &HostCall<'_>, arguments: String, result: String) {
        if let Some(script) = self.services.script()
            && call.is_of_hookrun()
        {
            script.keep(Called { call: call.name().to_string(), arguments, result });
        }
    }

    /// Returns how many component handles the engine may hold for a run: those of capabilities and
    /// of WASI, and some for values that are being passed, so that [`CallContext::open`] refuses
    /// first.
    pub fn max_component_handles(plugin: &Plugin) -> usize {
        usize::try_from(plugin.limits.get(Limit::Handles))
            .unwrap_or(usize::MAX)
            .saturating_mul(2 + 2 * WASI_HANDLES)
    }

    /// Runs one host call. Guests reach capabilities only through this function.
    ///
    /// # Errors
    /// Ends the run if a limit on the whole run is reached.
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

    /// Runs one host call like [`RunState::call`], for the few functions whose type has no error.
    /// An error ends the run.
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

    /// Runs a call of WASI that does not wait.
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

    /// Runs a call of WASI that may wait.
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
        let arguments = std::mem::take(&mut self.arguments);
        if let Some(refused) = self.enter(&call)? {
            let error: std::result::Result<(), _> = Err(self.explain(&refused));
            self.keep(&call, arguments, wire_size::wave_result(&error));
            return Ok(Err(refused));
        }
        let entered = Instant::now();
        let waiting = call.waiting.then(|| self.clock.wait());
        let deadline = self.clock.deadline();
        let script = self.services.script().filter(|_| call.is_of_hookrun());
        let scripted = script.and_then(|script| {
            call.scripted_names().find_map(|name| script.host_call(&name, &arguments))
        });
        let error = scripted.as_ref().and_then(|it| it.error(&call.name().to_string()));
        let mut result = match error {
            Some(error) => Err(error),
            None => {
                if scripted == Some(Scripted::Slow) {
                    tokio::time::sleep(SLOW).await;
                }
                match tokio::time::timeout_at(deadline.at, work(self.context())).await {
                    Ok(result) => result,
                    Err(_) => return Err(self.stop_in(call, deadline.limit, None)),
                }
            }
        };
        if scripted == Some(Scripted::Garbage)
            && let Ok(value) = &mut result
        {
            value.garble();
        }
        drop(waiting);
        if self.services.script().is_some() {
            self.keep(&call, arguments, wire_size::wave_result(&result));
        }
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

    /// Closes a handle of the guest.
    ///
    /// # Errors
    /// Returns an error if the handle is not open.
    pub fn close<T: Send + 'static>(&mut self, handle: Resource<T>) -> Result<()> {
        self.handles.delete(handle)?;
        Ok(())
    }

    /// Returns the limiter for [`wasmtime::Store::limiter`].
    pub fn allocations(&mut self) -> &mut Allocations {
        &mut self.allocations
    }

    /// Returns the limit that ended the run, if one did.
    pub fn reached(&self) -> Option<LimitReached> {
        self.reached.or(self.allocations.reached())
    }

    /// Records that part of a call had an effect that outlives the run, even if the call fails.
    pub fn progressed(&mut self) {
        self.progress = true;
    }

    /// Records an error of a part of a call that otherwise succeeded.
    pub fn failed(&mut self, error: &Error) {
        if error.kind == ErrorKind::Refused.as_str() {
            self.refused.get_or_insert_with(|| error.message.clone());
        }
    }

    /// Returns the problem that the operator has to fix, if a host call was refused because of one.
    pub fn refused(&self) -> Option<&str> {
        self.refused.as_deref()
    }

    /// Returns whether a call has succeeded whose effect outlives the run.
    pub fn made_progress(&self) -> bool {
        self.progress
    }

    /// Returns the resource usage so far.
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

    /// Commits the changes of the run to its state, after the guest returned.
    ///
    /// # Errors
    /// Returns an error if the state cannot be written.
    pub async fn commit(&mut self) -> Result<(), CapabilityError> {
        self.state.commit().await
    }
}

/// Converts the error to the record of the interfaces.
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
