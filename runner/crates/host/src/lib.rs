//! Runs plugins in a sandbox. Plugins are untrusted code: they can use what the configuration
//! grants and nothing else.
//!
//! The processes that run guests (the runner, the gate, `hookrun test`) call [`Host::prepare`],
//! restrict themselves ([`wall`]), and then call [`ReadyPlugin::link`] and
//! [`LinkedPlugin::run_event`] or [`LinkedPlugin::select`]. They use events, outcomes and reports,
//! but never the engine.
//!
//! * [`examine`]: examines a component without running it, in a contained process, and stores the
//!   result ([`examination_cache`]). [`metadata`]: the metadata that the component contains.
//!   [`config_schema`]: its schema, with bounded cost.
//! * [`Host`] turns a table of the configuration into an [`Artifact`] (checked), a [`ReadyPlugin`]
//!   (code open) and a [`LinkedPlugin`] (mapped). [`compiled_cache`]: the cache of compiled
//!   plugins.
//! * [`engine`]: compilation and interruption. [`bindings`]: generated from the WIT.
//! * [`run`]: one run. [`stopped`]: the message of a run that a trap ended. [`limits`],
//!   [`run_clock`]: its limits. [`host_call`]: all functions that a guest can call, and the checks
//!   that each call passes.
//! * [`compile`]: the compiler, in a contained child process. [`contain`]: such child processes.
//!   [`wall`]: Landlock and seccomp.
//! * [`bundled`]: the plugins that are part of the program.

mod artifact;
pub mod bindings;
pub mod bundled;
mod cache_directory;
pub mod compile;
pub mod compiled_cache;
pub mod config_schema;
pub mod contain;
mod convert;
pub mod engine;
mod error;
pub mod examination_cache;
pub mod examine;
mod host;
pub mod host_call;
pub mod limits;
mod linked;
pub mod metadata;
mod output;
pub mod pack;
mod run;
mod run_clock;
mod stopped;
pub use hookrun_system::wall;

pub use artifact::{Artifact, Component};
pub use compile::Compiler;
pub use error::PluginError;
pub use host::{Host, Known};
pub use linked::{LinkedPlugin, ReadyPlugin};
