//! Two processes for one queue. The *supervisor* reads the spool, owns the journal, the schedule
//! and the roots, may be root, and never maps guest code. The *runner* reads the secrets that its
//! plugins' grants name, enters its sandbox ([`hookrun_host::wall`]), and only then maps and runs
//! guests. They communicate over two pipes.
//!
//! * [`supervisor`]: the queue's executor; keeps one runner for each Nix store, and applies changes
//!   on disk. `process`: one runner as the supervisor sees it.
//! * [`runner`]: the runner process. [`needs`]: the permissions of its sandbox, computed from the
//!   grants.
//! * [`tryout`]: a process in the same sandbox that tries services, for `hookrun check`.
//! * [`policy`]: a runner for builder selection, in a sandbox that allows nothing.
//! * [`protocol`], [`frame`]: the messages and their encoding. The supervisor accepts nothing from
//!   a runner except the outcomes of runs.

mod frame;
pub mod needs;
pub mod policy;
mod process;
mod protocol;
pub mod runner;
pub mod supervisor;
pub mod tryout;

/// Reads messages of a runner until the end, and returns their number. Used by the fuzz targets.
///
/// # Errors
/// A message is incomplete, too long, or not one that a runner sends.
pub fn read_messages(from: &mut impl std::io::Read) -> std::io::Result<usize> {
    let mut count = 0;
    while frame::read::<protocol::FromRunner>(from)?.is_some() {
        count += 1;
    }
    Ok(count)
}
