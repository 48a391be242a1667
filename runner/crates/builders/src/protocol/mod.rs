//! The messages between Nix and a build hook.
//!
//! [`settings`] come first, then any number of [`request`]s. [`reply`] is the answer to each, as a
//! type that must be used.

pub mod reply;
pub mod request;
pub mod settings;
