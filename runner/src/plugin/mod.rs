//! The sandbox: runs plugins, which are strangers' code, and lets them do what the configuration
//! grants and no more.
//!
//! The processes that run guests ([`crate::supervise`], [`crate::gate`], `hookrun test`) call
//! [`Host::prepare`], put up their wall ([`crate::wall`]), and then call [`Host::link`] and
//! [`LinkedPlugin::run_event`] or [`LinkedPlugin::select`]; they see events, outcomes and reports,
//! never the engine.
//!
//! * [`examine`]: what is known of a component without running it, found out by a contained process
//!   and kept ([`verdicts`]). [`metadata`]: what it says about itself. [`config_schema`]: its
//!   schema, bounded. [`grants`]: what it may do; pure.
//! * [`load`]: [`Artifact`] (checked) to [`ReadyPlugin`] (code open) to [`LinkedPlugin`] (mapped).
//!   [`artifact`]: the cache of compiled plugins.
//! * [`engine`]: compilation, interruption, and the table of what is linked. [`bindings`]:
//!   generated.
//! * [`run`]: one run. [`limits`], [`run_clock`]: what bounds it. [`host_call`]: the choke point
//!   that every host call passes.
//! * [`compile`]: the compiler, in a contained child. [`contain`]: such children.
//! * [`bundled`]: the plugins inside this binary.

pub mod artifact;
pub mod bindings;
pub mod bundled;
pub mod compile;
pub mod config_schema;
pub mod contain;
mod convert;
pub mod engine;
mod error;
pub mod examine;
pub mod host_call;
pub mod limits;
pub mod load;
pub mod metadata;
mod output;
mod run;
mod run_clock;
pub mod verdicts;

pub use compile::Compiler;
pub use error::PluginError;
pub use load::{Artifact, Component, Host, Known, LinkedPlugin, ReadyPlugin};
