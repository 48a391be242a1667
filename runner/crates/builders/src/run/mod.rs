//! Carries out decisions: Nix's own hook, failover, builds on this machine, and shutdown.
//!
//! * [`failover`]: the remaining machines of a build. [`driver`]: tries them, before and after the
//!   accept. [`delegate`]: the steps after an accept, with [`after_accept`] (the search for a
//!   machine) and [`messages`] (to Nix).
//! * [`stock`]: Nix's own hook as a process; [`stock_program`] finds it, [`stock_names`] restores
//!   the machine's name in its output, [`stock_output`] classifies its output, [`complaints`] its
//!   errors before the answer.
//! * [`local_builds`]: builds on this machine.
//! * [`shutdown`]: the handling of SIGTERM. [`descendants`]: the processes to end in that case.

mod after_accept;
mod complaints;
pub(crate) mod delegate;
pub(crate) mod descendants;
pub(crate) mod driver;
pub(crate) mod failover;
pub mod local_builds;
mod messages;
pub(crate) mod shutdown;
pub mod stock;
pub(crate) mod stock_names;
pub mod stock_output;
pub(crate) mod stock_program;
