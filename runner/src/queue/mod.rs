//! The queue: an event once handed over by a hook is not lost.
//!
//! * [`hand_over`]: the thin hooks, from Nix's call to a durable file. [`guard`]: the process that
//!   Nix waits for touches no file system.
//! * [`spool`]: the directory of those files; a rename is the commit. [`envelope`]: their form.
//!   [`trust`]: whose are believed.
//! * [`outputs`]: which outputs an event speaks of, by Nix's database.
//! * [`roots`]: outputs are kept from the garbage collector while their tasks last.
//! * [`spawn`]: a hook starts a detached worker when none runs. [`lock`]: there is one worker.
//!   [`waiter`]: starts one for what build users hand over. [`arrivals`]: what comes into the
//!   spool.
//! * [`journal`]: the worker's database: events, tasks, attempts. [`retry`]: when a task is tried
//!   again. [`breaker`]: when a plugin's tasks wait together.
//! * [`health`]: what is wrong with the spool, for people.
//! * [`worker`]: takes the spool into the journal and runs the tasks.
//!
//! The hooks use everything above the journal and nothing below; they take no lock that another
//! hook may hold.

pub mod arrivals;
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
