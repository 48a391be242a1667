//! Builder selection: what answers Nix's `build-hook`.
//!
//! Nix offers a derivation (a [`Candidate`]); this room finds the machines that can take it, asks a [`Policy`], and delegates
//! to the build hook that Nix ships, so that the transport stays Nix's own. It must never leave a candidate without exactly
//! one answer, and never start a build by itself.
//!
//! * [`types`]: what a policy is told and what it answers. [`policy`]: the trait, and the rule of Nix itself.
//! * [`load`]: busy slots, from Nix's own lock files.

pub mod load;
pub mod policy;
pub mod types;

pub use policy::{Policy, PolicyError, StockRule};
pub use types::{Action, Candidate, Decision, LocalMachine, Machine};
