//! Builder selection: answers Nix's `build-hook`.
//!
//! Nix offers a derivation (a [`Candidate`]). This crate finds the machines that can build it, asks
//! a [`Policy`], and delegates to the build hook that Nix ships, so that the transport stays Nix's
//! own. It must never leave a candidate without exactly one answer, and never start a build by
//! itself.
//!
//! The modules follow the phases of a session:
//!
//! * [`hook`]: the process. [`session`]: the conversation with Nix.
//! * [`protocol`]: the messages between Nix and a build hook.
//! * [`choice`]: decides where a candidate is built.
//! * [`slots`]: slots and other resources of machines, and their assignment to builds.
//! * [`run`]: Nix's own hook, failover, builds on this machine, and shutdown.
//! * [`history`]: the history of machines and builds.
//! * [`ssh`]: connections that builds share. [`probe`]: tests whether a machine can build.
//! * `private`: the ownership of all these files.

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
