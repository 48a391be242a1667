//! The sandbox: runs plugins, which are strangers' code, and lets them do what the configuration
//! grants and no more.
//!
//! The processes that run guests ([`crate::supervise`], [`crate::gate`], `hookrun test`) call
//! [`Host::prepare`], put up their wall ([`crate::wall`]), and then call [`Host::link`] and
//! [`LinkedPlugin::run_event`] or [`LinkedPlugin::select`]; they see events, outcomes and reports,
//! never the engine.
//!
//! * [`metadata`]: what a component says about itself, read without running it. [`config_schema`]:
//!   its schema, bounded. [`grants`]: what it may do; pure.
//! * [`load`]: [`Artifact`] (checked) to [`ReadyPlugin`] (code open) to [`LinkedPlugin`] (mapped).
//!   [`artifact`]: the cache of compiled plugins.
//! * [`engine`]: compilation, interruption, and the table of what is linked. [`bindings`]:
//!   generated.
//! * [`run`]: one run. [`limits`], [`run_clock`]: what bounds it. [`host_call`]: the choke point
//!   that every host call passes.
//! * [`compile`]: the compiler, in a contained child.
//! * [`bundled`]: the plugins inside this binary.

pub mod artifact;
pub mod bindings;
pub mod bundled;
pub mod compile;
pub mod config_schema;
mod convert;
pub mod engine;
mod error;
pub mod grants;
pub mod host_call;
pub mod limits;
pub mod load;
pub mod metadata;
mod output;
mod run;
mod run_clock;

pub use compile::Compiler;
pub use error::PluginError;
pub use load::{Artifact, Host, LinkedPlugin, ReadyPlugin};
