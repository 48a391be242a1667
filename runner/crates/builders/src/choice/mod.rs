//! Chooses where a candidate is built.
//!
//! * [`candidate`]: all that is known of one candidate; [`drv_attributes`]: what its derivation
//!   says.
//! * [`pool`]: the machines of a session. [`health`]: whether a machine may be used.
//! * [`policy`]: the trait, and the rule of Nix itself. [`policy_thread`]: asks it, within a time
//!   limit.
//! * [`decide`]: from a candidate to an answer. [`explanation`]: why each machine was or was not
//!   taken.

pub(crate) mod candidate;
pub(crate) mod decide;
pub(crate) mod drv_attributes;
pub(crate) mod explanation;
pub mod health;
pub mod policy;
pub mod policy_thread;
pub(crate) mod pool;
