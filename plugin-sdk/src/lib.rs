//! Write plugins for hookrun: sandboxed WebAssembly components that Nix's hooks call.
//!
//! A plugin is a type with one or more of the traits [`PostBuild`], [`Diff`] and
//! [`BuilderSelection`], and one [`plugin!`] that exports it:
//!
//! ```
//! use hookrun_sdk::{Failure, Outcome, PostBuild, log, post_build};
//!
//! struct Announce;
//!
//! impl PostBuild for Announce {
//!     fn handle(event: post_build::Event) -> Result<Outcome, Failure> {
//!         log::info(format!("{} was built", event.name));
//!         Ok(Outcome::new(format!("{} outputs", event.outputs.len())))
//!     }
//! }
//!
//! hookrun_sdk::plugin! {
//!     plugin: Announce,
//!     hooks: [PostBuild],
//! }
//! ```
//!
//! Build it with `cargo build --release --target wasm32-wasip2` (crate type `cdylib`), name the
//! file in `hookrun.toml`, and try it with `hookrun test`. The crate compiles for the machine's own
//! target too, so that the logic of a plugin can be unit-tested natively; host calls then give an
//! error, and [`log`] writes to standard error.
//!
//! What a plugin may do is decided by two keys: its own `wants` in [`plugin!`], and the grants of
//! the configuration. A refused call is an [`Error`] with the line to write, never a trap.

#![deny(missing_docs)]

extern crate self as hookrun_sdk;

#[doc(hidden)]
#[allow(
    clippy::all,
    clippy::pedantic,
    clippy::undocumented_unsafe_blocks,
    reason = "generated code"
)]
pub mod bindings;
pub mod builder_selection;
mod config;
pub mod diff;
mod error;
pub mod http;
pub mod log;
pub mod mail;
mod metadata;
pub mod nix_store;
pub mod object_store;
mod outcome;
mod plugin;
pub mod post_build;
pub mod signing;
pub mod state;

pub use builder_selection::BuilderSelection;
pub use config::{config, config_json};
pub use diff::Diff;
pub use error::{Error, ErrorKind};
pub use metadata::{Scope, TaskOrder, Want};
pub use outcome::{Failure, Outcome};
pub use post_build::PostBuild;

metadata::wants! {
    /// The least scope of [`nix_store`] it works with.
    nix_store: Scope = "nix-store",
    /// [`object_store`].
    object_store: Want = "object-store",
    /// [`signing`].
    signing: Want = "signing",
    /// [`mail`].
    mail: Want = "mail",
    /// [`state`].
    state: Want = "state",
    /// [`http`], or any other client over `wasi:http`.
    http: Want = "http",
}

#[doc(hidden)]
pub mod __private {
    pub use wit_bindgen;

    pub use crate::metadata::Metadata;
    pub use crate::plugin::Adapter;
}
