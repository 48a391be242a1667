//! Write plugins for hookrun: sandboxed WebAssembly components that Nix's hooks call.
//!
//! A plugin is a type that implements one or more of the traits [`PostBuild`], [`Diff`] and
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
//! file in `hookrun.toml`, and run it with `hookrun test`. The crate also compiles natively, so
//! that a plugin can be unit-tested with the host in memory of [`testing`]. Without one, host calls
//! of a native build return an error, and [`log`] writes to standard error.
//!
//! A plugin can use a capability only if its `wants` in [`plugin!`] ask for it and the
//! configuration grants it. A refused call returns an [`Error`] that names the line to write; it
//! does not trap.

#![deny(missing_docs)]

extern crate self as hookrun_sdk;

pub mod binary_cache;
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
pub mod testing;

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
