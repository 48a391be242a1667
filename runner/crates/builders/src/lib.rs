//! Builder selection: what answers Nix's `build-hook`.
//!
//! Nix offers a derivation (a [`Candidate`]); this room finds the machines that can take it, asks a
//! [`Policy`], and delegates to the build hook that Nix ships, so that the transport stays Nix's
//! own. It must never leave a candidate without exactly one answer, and never start a build by
//! itself.
//!
//! * [`policy`]: the trait, and the rule of Nix itself. [`asker`]: asks it, with a time limit.
//! * [`settings`], [`request`]: what Nix says; [`described`]: what the derivation says. [`reply`]:
//!   the one answer, as a type that must be used up.
//! * [`session`]: the conversation. [`case`], [`place`]: where a candidate goes, among the machines
//!   of [`pool`]. [`delegation`]: what follows an accept. [`failover`]: which machines are left.
//!   [`stock`]: Nix's own hook, with [`program`], [`ssh`]; [`speech`]: what its words
//!   mean.
//!   [`hook`]: the process; [`ending`]: what it does when it is asked to end.
//! * [`load`]: busy slots, from Nix's own lock files. [`slots`] takes them. [`resources`]: what
//!   builds take besides. [`queue`]: who gets one; [`lease`]: who waits and builds; [`held`]: files
//!   that count while their process lives; `private`: whose files all these are.
//! * [`local`]: builds that are left to this machine.
//! * [`explanation`]: why which machine. [`record`]: what is remembered, through [`memory`];
//!   [`health`]: what follows for a machine.
//! * [`probe`]: can a machine really build for us?

pub mod asker;
pub mod case;
pub mod delegation;
pub mod described;
pub mod ending;
pub mod explanation;
pub mod failover;
pub mod health;
pub mod held;
pub mod hook;
pub mod lease;
pub mod load;
pub mod local;
pub mod memory;
pub mod place;
pub mod policy;
pub mod pool;
mod private;
pub mod probe;
pub mod program;
pub mod queue;
pub mod record;
pub mod render;
pub mod reply;
pub mod request;
pub mod resources;
pub mod session;
pub mod settings;
pub mod slots;
pub mod speech;
pub mod ssh;
pub mod stock;

pub use hookrun_nix::selection::{
    Action, Candidate, Decision, LocalMachine, Machine, PastBuilds, PolicyError,
};
pub use policy::{Policy, StockRule};
