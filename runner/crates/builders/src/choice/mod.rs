//! Chooses where a candidate is built.
//!
//! * [`candidate`]: the facts about one candidate. [`drv_attributes`]: the attributes of its
//!   derivation.
//! * [`pool`]: the machines of a session. [`health`]: decides whether a machine may be used.
//! * [`policy`]: the trait, and the rule of Nix itself. [`policy_thread`]: asks a policy, within a
//!   time limit.
//! * [`decide`]: finds the answer to a candidate. [`answer`]: the answers. [`before_accept`]:
//!   searches a machine before the answer. [`explanation`]: the reasons for it.

pub(crate) mod answer;
mod before_accept;
pub(crate) mod candidate;
pub(crate) mod decide;
pub(crate) mod drv_attributes;
pub(crate) mod explanation;
pub mod health;
pub mod policy;
pub mod policy_thread;
pub(crate) mod pool;
