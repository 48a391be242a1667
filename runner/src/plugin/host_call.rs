//! The choke point. Every host function of every capability is one [`RunState::call`]: there the grant is checked, the call
//! counted, its bytes bounded, its use recorded and traced, and errors become the `error` record of `hookrun:host/types`.
//!
//! A host function has no other way to do anything: the fields of [`RunState`] are private to this file, and what a
//! capability works with ([`Inside`]) is given only to the closure of a call that passed. A refusal is a value for the guest,
//! never a trap; only a limit on the whole run ([`Limit::HostCalls`], [`Limit::HostBytes`]) ends the run.
//!
//! A host function looks like this:
//!
//! ```ignore
//! async fn exists(&mut self, store: String, keys: Vec<String>) -> Result<Result<Vec<bool>, Error>> {
//!     let call = HostCall::new(Need::ObjectStore(&store), "exists", keys.crossing());
//!     let name = store.clone();
//!     self.call(call, |inside| Box::pin(async move { inside.services().object_store().exists(&name, &keys).await })).await
//! }
//! ```

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use futures_util::future::BoxFuture;
use wasmtime::Result;
use wasmtime::component::{Resource, ResourceTable};
use wasmtime_wasi::{WasiCtx, WasiCtxView, WasiView};

use super::bindings::hookrun::host::types::Error;
use super::grants::{Effective, Need, Refusal, Wants};
use super::limits::{Allocations, LimitReached};
use crate::capability::state::Transaction;
use crate::capability::{CapabilityError, ErrorKind, RunLog, Services};
use crate::config::{Limit, Plugin};
use crate::event::{Event, HookEvent, NixDirs};
use crate::outcome::Usage;

/// A plugin as capabilities see it.
#[derive(Debug)]
pub struct PluginContext {
    /// Its table in the configuration.
    pub plugin: Plugin,
    /// The configuration's file, for messages.
    pub config_file: PathBuf,
    /// Its `config` table, as JSON.
    pub config_json: String,
    /// What its metadata wants.
    pub wants: Wants,
    /// What it has.
    pub effective: Effective,
}

/// What the event of this run is about: the roots of the `nix-store` grant.
#[derive(Debug, Clone)]
pub struct Scope {
    /// The Nix that called.
    pub nix: NixDirs,
    /// Full store paths: the derivation and its outputs. Empty for builder selection.
    pub paths: Vec<String>,
}

impl Scope {
    /// The scope of `event`.
    pub fn of(event: &Event) -> Self {
        let paths = match &event.hook {
            HookEvent::PostBuild(build) => {
                let outputs = build.outputs.iter().map(|output| output.path.clone());
                [build.drv_path.clone()].into_iter().chain(outputs).collect()
            }
            HookEvent::Diff(diff) => {
                vec![diff.drv_path.clone(), diff.output.path.clone(), diff.previous.clone(), diff.current.clone()]
            }
        };
        Self { nix: event.nix.clone(), paths }
    }
}

/// One host call, described.
#[derive(Debug, Clone, Copy)]
pub struct HostCall<'a> {
    need: Need<'a>,
    function: &'static str,
    sent: u64,
}

impl<'a> HostCall<'a> {
    /// The call of `function` with arguments of `sent` bytes, that needs `need`.
    pub fn new(need: Need<'a>, function: &'static str, sent: u64) -> Self {
        Self { need, function, sent }
    }
}

/// What crosses the border counts: bytes of the strings and lists in a value, without its fixed part.
pub trait Crossing {
    /// The count.
    fn crossing(&self) -> u64;
}

macro_rules! free {
    ($($ty:ty),+) => { $(impl Crossing for $ty { fn crossing(&self) -> u64 { 0 } })+ };
}
free!((), bool, u32, u64, i32);

impl Crossing for u8 {
    fn crossing(&self) -> u64 {
        1
    }
}

impl Crossing for String {
    fn crossing(&self) -> u64 {
        self.len() as u64
    }
}

impl<T: Crossing> Crossing for Option<T> {
    fn crossing(&self) -> u64 {
        self.as_ref().map_or(0, Crossing::crossing)
    }
}

/// A list costs a word for each element beside the elements, so that a million empty strings are not free.
impl<T: Crossing> Crossing for Vec<T> {
    fn crossing(&self) -> u64 {
        let word = if size_of::<T>() <= 1 { 0 } else { 8 * self.len() as u64 };
        word + self.iter().map(Crossing::crossing).sum::<u64>()
    }
}

impl<A: Crossing, B: Crossing> Crossing for (A, B) {
    fn crossing(&self) -> u64 {
        self.0.crossing() + self.1.crossing()
    }
}

impl<T: 'static> Crossing for Resource<T> {
    fn crossing(&self) -> u64 {
        0
    }
}

/// What a host function works with, once its call has passed.
pub struct Inside<'a> {
    plugin: &'a PluginContext,
    services: &'a Services,
    scope: &'a Scope,
    log: &'a RunLog,
    state: &'a mut Transaction,
    handles: &'a mut ResourceTable,
}

impl<'a> Inside<'a> {
    /// The plugin that calls.
    pub fn plugin(&self) -> &'a PluginContext {
        self.plugin
    }

    /// What the capabilities have behind them.
    pub fn services(&self) -> &'a Services {
        self.services
    }

    /// What the event is about.
    pub fn scope(&self) -> &'a Scope {
        self.scope
    }

    /// The log of this run.
    pub fn log(&self) -> &'a RunLog {
        self.log
    }

    /// The plugin's key-value store as this run sees it.
    pub fn state(&mut self) -> &mut Transaction {
        self.state
    }

    /// Gives the guest a handle to `value`.
    ///
    /// # Errors
    /// The limit on handles is reached.
    pub fn open<T: Send + 'static>(&mut self, value: T) -> Result<Resource<T>, CapabilityError> {
        let plugin = &self.plugin.plugin;
        let allowed = plugin.limits.get(Limit::Handles);
        self.handles.push(value).map_err(|_| {
            CapabilityError::limit(Limit::Handles.reached(&plugin.name, allowed, Some(allowed.saturating_add(1))))
        })
    }

    /// What the guest's handle stands for.
    ///
    /// # Errors
    /// The handle is not open (the engine checks handles before a call, so this is a defect of the host).
    pub fn resolve<T: Send + 'static>(&self, handle: &Resource<T>) -> Result<&T, CapabilityError> {
        self.handles.get(handle).map_err(|error| CapabilityError::invalid(format!("handle {}: {error}", handle.rep())))
    }
}

/// The data of one run's store: what it may, what it has used. All of it is private to the choke point.
pub struct RunState {
    plugin: Arc<PluginContext>,
    services: Services,
    scope: Scope,
    log: RunLog,
    state: Transaction,
    handles: ResourceTable,
    wasi: WasiCtx,
    wasi_table: ResourceTable,
    allocations: Allocations,
    usage: Usage,
    reached: Option<LimitReached>,
}

/// Streams and pollables of WASI that a run may have open; ordinary toolchains need a handful.
const WASI_HANDLES: usize = 256;

impl RunState {
    /// The state of a run that begins.
    pub fn new(plugin: Arc<PluginContext>, services: Services, scope: Scope, log: RunLog, wasi: WasiCtx) -> Self {
        let limits = &plugin.plugin.limits;
        let mut handles = ResourceTable::new();
        handles.set_max_capacity(usize::try_from(limits.get(Limit::Handles)).unwrap_or(usize::MAX));
        let mut wasi_table = ResourceTable::new();
        wasi_table.set_max_capacity(WASI_HANDLES);
        let allocations = Allocations::new(limits);
        let state = services.state().begin(&plugin.plugin.name);
        Self {
            plugin,
            services,
            scope,
            log,
            state,
            handles,
            wasi,
            wasi_table,
            allocations,
            usage: Usage::default(),
            reached: None,
        }
    }

    /// Component handles the engine may hold for a run: those of capabilities and those of WASI, with room for what is being
    /// passed, so that [`Inside::open`] refuses first.
    pub fn max_component_handles(plugin: &Plugin) -> usize {
        usize::try_from(plugin.limits.get(Limit::Handles))
            .unwrap_or(usize::MAX)
            .saturating_mul(2)
            .saturating_add(WASI_HANDLES)
    }

    /// One host call: the only way from a guest into a capability.
    ///
    /// # Errors
    /// Ends the run: a limit on the whole run was reached.
    pub async fn call<R, F>(&mut self, call: HostCall<'_>, work: F) -> Result<Result<R, Error>>
    where
        R: Crossing + Send,
        F: for<'r> FnOnce(Inside<'r>) -> BoxFuture<'r, Result<R, CapabilityError>> + Send,
    {
        self.guarded(call, work).await.map(|result| result.map_err(wit_error))
    }

    /// As [`RunState::call`], for the few functions whose type has no room for an error: what would be one ends the run.
    ///
    /// # Errors
    /// Ends the run.
    pub async fn call_without_error<R, F>(&mut self, call: HostCall<'_>, work: F) -> Result<R>
    where
        R: Crossing + Send,
        F: for<'r> FnOnce(Inside<'r>) -> BoxFuture<'r, Result<R, CapabilityError>> + Send,
    {
        match self.guarded(call, work).await? {
            Ok(result) => Ok(result),
            Err(error) if error.kind == ErrorKind::Limit => Err(self.stop(Limit::CallBytes, None)),
            Err(error) => Err(wasmtime::Error::msg(error.message)),
        }
    }

    async fn guarded<R, F>(&mut self, call: HostCall<'_>, work: F) -> Result<Result<R, CapabilityError>>
    where
        R: Crossing + Send,
        F: for<'r> FnOnce(Inside<'r>) -> BoxFuture<'r, Result<R, CapabilityError>> + Send,
    {
        let name = format!("{}.{}", call.need.interface(), call.function);
        self.usage.host_calls += 1;
        if self.usage.host_calls > self.limit(Limit::HostCalls) {
            return Err(self.stop(Limit::HostCalls, Some(self.usage.host_calls)));
        }
        if let Err(refusal) = self.plugin.effective.check(&self.plugin.wants, call.need) {
            return Ok(Err(self.refuse(&name, &refusal)));
        }
        *self.usage.calls.entry(name.clone()).or_default() += 1;
        if let Some(error) = self.cross(&name, call.sent)? {
            return Ok(Err(error));
        }
        let begun = Instant::now();
        let result = work(Inside {
            plugin: &self.plugin,
            services: &self.services,
            scope: &self.scope,
            log: &self.log,
            state: &mut self.state,
            handles: &mut self.handles,
        })
        .await;
        tracing::trace!(
            plugin = self.plugin.plugin.name,
            call = name,
            micros = u64::try_from(begun.elapsed().as_micros()).unwrap_or(u64::MAX),
            error = result.as_ref().err().map(|error| error.kind.as_str()),
        );
        let received = match &result {
            Ok(value) => value.crossing(),
            Err(error) => error.message.len() as u64,
        };
        Ok(match self.cross(&name, received)? {
            Some(error) => Err(error),
            None => result,
        })
    }

    /// The guest gave a handle back.
    ///
    /// # Errors
    /// The handle is not open.
    pub fn close<T: Send + 'static>(&mut self, handle: Resource<T>) -> Result<()> {
        self.handles.delete(handle)?;
        Ok(())
    }

    /// Bytes cross the border: one call may move so many, and a run so many.
    fn cross(&mut self, name: &str, bytes: u64) -> Result<Option<CapabilityError>> {
        self.usage.host_bytes = self.usage.host_bytes.saturating_add(bytes);
        if self.usage.host_bytes > self.limit(Limit::HostBytes) {
            return Err(self.stop(Limit::HostBytes, Some(self.usage.host_bytes)));
        }
        let allowed = self.limit(Limit::CallBytes);
        Ok((bytes > allowed).then(|| {
            let message = Limit::CallBytes.reached(&self.plugin.plugin.name, allowed, Some(bytes));
            CapabilityError::limit(format!("{name}: {message}"))
        }))
    }

    fn refuse(&mut self, name: &str, refusal: &Refusal) -> CapabilityError {
        *self.usage.denied.entry(name.to_owned()).or_default() += 1;
        let message = refusal.message(&self.plugin.plugin.name, &self.plugin.config_file);
        tracing::debug!(plugin = self.plugin.plugin.name, call = name, "refused");
        CapabilityError::denied(message)
    }

    fn limit(&self, limit: Limit) -> u64 {
        self.plugin.plugin.limits.get(limit)
    }

    fn stop(&mut self, limit: Limit, wanted: Option<u64>) -> wasmtime::Error {
        let reached = LimitReached { limit, wanted };
        self.reached = Some(reached);
        reached.into()
    }

    /// For [`wasmtime::Store::limiter`].
    pub fn allocations(&mut self) -> &mut Allocations {
        &mut self.allocations
    }

    /// The limit that ended the run, if one did.
    pub fn reached(&self) -> Option<LimitReached> {
        self.reached.or(self.allocations.reached())
    }

    /// What was used so far.
    pub fn usage(&self) -> Usage {
        Usage { memory: self.allocations.peak_memory(), log_bytes: self.log.bytes(), ..self.usage.clone() }
    }

    /// Makes what the run wrote to its state durable: the run returned.
    ///
    /// # Errors
    /// The state cannot be written.
    pub async fn commit(&mut self) -> Result<(), CapabilityError> {
        self.state.commit().await
    }
}

impl WasiView for RunState {
    fn ctx(&mut self) -> WasiCtxView<'_> {
        WasiCtxView { ctx: &mut self.wasi, table: &mut self.wasi_table }
    }
}

fn wit_error(error: CapabilityError) -> Error {
    Error {
        kind: error.kind.as_str().to_owned(),
        message: error.message,
        retry_after_ms: error.retry_after.map(|wait| u64::try_from(wait.as_millis()).unwrap_or(u64::MAX)),
    }
}

impl super::bindings::hookrun::host::types::Host for RunState {}
