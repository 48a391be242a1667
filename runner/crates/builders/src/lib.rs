//! Builder selection: what answers Nix's `build-hook`.
//!
//! Nix offers a derivation (a [`Candidate`]). This crate finds the machines that can build it, asks
//! a [`Policy`], and delegates to the build hook that Nix ships, so that the transport stays Nix's
//! own. It must never leave a candidate without exactly one answer, and never start a build by
//! itself.
//!
//! The modules follow the phases of a session:
//!
//! * [`hook`]: the process. [`session`]: the conversation with Nix.
//! * [`protocol`]: what Nix and a hook say to each other.
//! * [`choice`]: where a candidate is built.
//! * [`slots`]: slots of machines and what builds take besides, and who gets them.
//! * [`run`]: Nix's own hook, failover, builds that are left to this machine, the end.
//! * [`history`]: what is remembered of machines and builds.
//! * [`ssh`]: connections that builds share. [`probe`]: can a machine really build for us?
//! * `private`: whose files all these are.

pub mod choice;
pub mod history;
pub mod hook;
mod private;
pub mod probe;
pub mod protocol;
pub mod run;
pub mod session;
pub mod slots;
pub mod ssh;

pub use choice::policy::{Policy, StockRule};
pub use hookrun_nix::selection::{
    Action, Candidate, Decision, LocalMachine, Machine, PastBuilds, PolicyError,
};
