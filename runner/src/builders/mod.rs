//! Builder selection: what answers Nix's `build-hook`.
//!
//! Nix offers a derivation (a [`Candidate`]); this room finds the machines that can take it, asks a [`Policy`], and delegates
//! to the build hook that Nix ships, so that the transport stays Nix's own. It must never leave a candidate without exactly
//! one answer, and never start a build by itself.
//!
//! * [`types`]: what a policy is told and what it answers. [`policy`]: the trait, and the rule of Nix itself. [`asker`]: asks
//!   it, with a time limit.
//! * [`settings`], [`request`]: what Nix says; [`described`]: what the derivation says. [`reply`]: the one answer, as a type that must be used up.
//! * [`session`]: the conversation. [`stock`]: delegation to Nix's own hook, with [`fds`]. [`hook`]: the process.
//! * [`simulate`]: what would have been, on a recorded or generated trace.
//! * [`probe`]: can a machine really build for us?
//! * [`load`]: busy slots, from Nix's own lock files.

pub mod asker;
pub mod described;
pub mod fds;
pub mod hook;
pub mod load;
pub mod policy;
pub mod probe;
pub mod reply;
pub mod request;
pub mod session;
pub mod settings;
pub mod simulate;
pub mod stock;
pub mod types;

pub use policy::{Policy, PolicyError, StockRule};
pub use types::{Action, Candidate, Decision, LocalMachine, Machine, PastBuilds};
