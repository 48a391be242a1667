//! The second wall: what the operating system refuses to a process that runs guests, should the
//! first wall (the engine, the grants) have a hole.
//!
//! A [`Wall`] is a plain description; [`Wall::raise`] puts it round this process, for good. It is
//! raised before any guest code is mapped, and while the process has one thread, because users,
//! capabilities and Landlock belong to threads. In this order:
//!
//! 1. no core dumps and no debugger (the process is not dumpable), no new privileges;
//! 2. another user, or the same one without a single capability;
//! 3. Landlock: files beneath the listed directories, TCP connections to the listed ports,
//!    nothing else;
//! 4. seccomp: the system calls that guests and their host functions need. No exec, no new
//!    process, no ptrace, no mount, no Unix socket, no packet socket, no io_uring, no bpf, no keys.
//!
//! On macOS steps 3 and 4 are its own sandbox (`sandbox_init`), which knows files and the network,
//! but neither ports nor system calls.
//!
//! What the system lacks is in [`Raised::missing`]; `[worker] require-sandbox = true` makes that an
//! error. Called by the runner (`hookrun runner`), the compile child, the gate and `hookrun
//! test`; knows none of them.

mod identity;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::os;

pub use identity::{Identity, User};

/// What a process that runs guests may still do.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Wall {
    /// Files and directories that may be read, with everything beneath. What is not there is left
    /// out.
    pub read: BTreeSet<PathBuf>,
    /// Directories in which files may be made, changed and removed. What is not there is left out.
    pub write: BTreeSet<PathBuf>,
    /// TCP ports that may be connected to.
    pub connect: BTreeSet<u16>,
    /// May it use the network at all?
    pub network: bool,
    /// Who it becomes.
    pub identity: Identity,
    /// Is a kernel that lacks a part of the wall an error?
    pub required: bool,
}

/// A wall that stands.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Raised {
    /// Who the process is now, in words.
    pub identity: String,
    /// What the kernel lacks; empty if the wall is whole.
    pub missing: Vec<String>,
}

/// Why the wall does not stand. The process must not run guests.
#[derive(Debug, thiserror::Error)]
pub enum WallError {
    /// There are other threads, on which the wall would not be.
    #[error(
        "the sandbox cannot be put up: this process has {0} threads and not one, a defect of hookrun"
    )]
    Threads(usize),
    /// The kernel lacks something, and the configuration wants all of it.
    #[error("the sandbox is not whole, and `require-sandbox = true` under [worker] wants it so: {}", .0.join("; "))]
    Missing(Vec<String>),
    /// A step failed.
    #[error(
        "the sandbox cannot be put up: {step} failed ({error}); see `hookrun status` for what this kernel has"
    )]
    Step {
        /// Which.
        step: &'static str,
        /// What the system says.
        error: String,
    },
}

impl WallError {
    pub(crate) fn step(step: &'static str, error: &dyn std::fmt::Display) -> Self {
        Self::Step { step, error: error.to_string() }
    }
}

impl Wall {
    /// Nothing but computing: no file, no network. For the policy of builder selection, compilation
    /// and `hookrun test`.
    pub fn closed(identity: Identity) -> Self {
        Self { identity, ..Self::default() }
    }

    /// Allows reading beneath `path`.
    #[must_use]
    pub fn reading(mut self, path: impl AsRef<Path>) -> Self {
        self.read.insert(path.as_ref().to_owned());
        self
    }

    /// Puts the wall round this process. There is no way back.
    ///
    /// # Errors
    /// A part of it does not stand; the process must end.
    pub fn raise(&self) -> Result<Raised, WallError> {
        alone()?;
        let missing = self.admit(missing())?;
        let identity = os::raise(self)?;
        Ok(Raised { identity, missing })
    }
}

impl Wall {
    /// Without what the system lacks it stands only if not all of it is required.
    fn admit(&self, missing: Vec<String>) -> Result<Vec<String>, WallError> {
        if self.required && !missing.is_empty() {
            return Err(WallError::Missing(missing));
        }
        Ok(missing)
    }
}

/// How long a thread that has ended may still be seen.
const THREAD_GONE: Duration = Duration::from_millis(500);

/// Has this process one thread? One that was joined a moment ago may still be on the kernel's list.
fn alone() -> Result<(), WallError> {
    let begun = Instant::now();
    loop {
        let threads = os::threads();
        if threads == 1 {
            return Ok(());
        }
        if begun.elapsed() > THREAD_GONE {
            return Err(WallError::Threads(threads));
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// What this kernel lacks of the wall, in sentences; empty: nothing.
pub fn missing() -> Vec<String> {
    os::missing()
}

/// No dump of this process's memory, which holds secrets.
pub(crate) fn forbid_core_dumps() -> Result<(), WallError> {
    use rustix::process::{Resource, Rlimit, setrlimit};
    setrlimit(Resource::Core, Rlimit { current: Some(0), maximum: Some(0) })
        .map_err(|error| WallError::step("forbidding core dumps", &error))
}

#[cfg(test)]
mod tests;
