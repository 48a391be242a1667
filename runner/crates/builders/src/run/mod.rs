//! Carries out what was decided: Nix's own hook, failover, builds of this machine, the end.
//!
//! * [`failover`]: which machines are left for a build. [`driver`]: goes through them, before and
//!   after the accept. [`delegate`]: what follows an accept.
//! * [`stock`]: Nix's own hook as a process; [`stock_program`] finds it, [`stock_names`] restores
//!   the machine's name in its output, [`stock_output`] tells from its output how the build ended.
//! * [`local_builds`]: builds that are left to this machine.
//! * [`shutdown`]: what happens on SIGTERM. [`descendants`]: the processes to end then.

pub(crate) mod delegate;
pub(crate) mod descendants;
pub(crate) mod driver;
pub(crate) mod failover;
pub mod local_builds;
pub(crate) mod shutdown;
pub mod stock;
pub(crate) mod stock_names;
pub mod stock_output;
pub(crate) mod stock_program;
