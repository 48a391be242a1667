//! The durable queue. An event that a hook has handed over is not lost.
//!
//! * [`hand_over`]: the post-build and diff hooks, from Nix's call to a durable file. [`guard`]:
//!   keeps the process that Nix waits for away from file systems.
//! * [`spool`]: the directory of those files; a rename commits one. [`envelope`]: their format.
//!   [`trust`]: whose files are accepted.
//! * [`outputs`]: finds the outputs of an event in Nix's database. [`roots`]: protects them from
//!   the garbage collector while tasks of the event are open.
//! * [`spawn`]: starts a detached worker when none runs. [`lock`]: allows one worker only.
//!   [`waiter`]: starts a worker for events of build users. [`arrivals`]: watches the spool.
//! * [`journal`]: the worker's database of events, tasks and attempts. [`retry`]: when a task is
//!   tried again. [`breaker`]: the circuit breaker of each plugin.
//! * [`health`]: findings about the spool for `hookrun status`.
//! * [`worker`]: takes events from the spool into the journal, and runs the tasks.
//!
//! Hooks use only the modules above the journal, and take no lock that another hook may hold.

// Standard output belongs to commands, and Nix reads the standard error of hooks, so only
// `hookrun_nix::terminal::say` writes there.
#![cfg_attr(not(test), warn(clippy::print_stdout, clippy::print_stderr))]

pub use hookrun_system::arrivals;
pub mod breaker;
pub mod envelope;
pub mod guard;
pub mod hand_over;
pub mod health;
pub mod journal;
pub mod lock;
pub mod outputs;
pub mod retry;
pub mod roots;
pub mod spawn;
pub mod spool;
pub mod trust;
pub mod waiter;
pub mod worker;

#[cfg(test)]
pub(crate) mod tests;
