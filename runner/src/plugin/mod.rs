//! The sandbox: runs plugins, which are strangers' code, and lets them do what the configuration grants and no more.
//!
//! The queue and the builder selection call [`Host::load`] and then [`LinkedPlugin::run_event`] or [`LinkedPlugin::select`]; they
//! see events, outcomes and reports, never the engine. No guest code is mapped before the process has dropped what it does not
//! need, which is the caller's part.
//!
//! * [`metadata`]: what a component says about itself, read without running it. [`grants`]: what it may do; pure.
//! * [`load`]: [`Artifact`] (checked) to [`LinkedPlugin`] (native code). [`artifact`]: the cache of compiled plugins.
//! * [`engine`]: compilation, interruption, and the table of what is linked. [`bindings`]: generated.
//! * [`run`]: one run. [`limits`], [`run_clock`]: what bounds it. [`host_call`]: the choke point that every host call passes.
//! * [`executor`], [`policy`]: plugins as the queue's and the builder selection's servants.
//! * [`bundled`]: the plugins inside this binary.

pub mod artifact;
pub mod bindings;
pub mod bundled;
mod convert;
pub mod engine;
mod error;
pub mod executor;
pub mod grants;
pub mod host_call;
pub mod limits;
pub mod load;
pub mod metadata;
mod output;
pub mod policy;
mod run;
mod run_clock;

pub use error::PluginError;
pub use load::{Artifact, Host, LinkedPlugin};
