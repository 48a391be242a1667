//! What Nix and a build hook say to each other.
//!
//! [`settings`] come first, then one [`request`] after the other; [`reply`] is the one answer to
//! each, as a type that must be used up.

pub mod reply;
pub mod request;
pub mod settings;
