//! The second wall: the operating system restricts a process that runs guests, in case the first
//! wall (the engine and the grants) has a hole.
//!
//! A [`Wall`] is a description; [`Wall::raise`] applies it to this process permanently. This
//! happens before any guest code is mapped, and while the process has one thread, because users,
//! capabilities and Landlock belong to threads. The steps are, in this order:
//!
//! 1. no core dumps and no debugger (the process is not dumpable), no new privileges;
//! 2. another user, or the same one without capabilities;
//! 3. Landlock: only files below the listed directories, and TCP connections to the listed ports;
//! 4. seccomp: only the system calls that guests and their host functions need. No exec, no new
//!    process, no ptrace, no mount, no Unix socket, no packet socket, no io_uring, no bpf, no keys.
//!
//! On macOS the system's own sandbox (`sandbox_init`) replaces steps 3 and 4. It restricts files
//! and the network, but neither ports nor system calls.
//!
//! [`Raised::missing`] lists what the system lacks; `[worker] require-sandbox = true` makes that an
//! error. Called by the runner (`hookrun runner`), the compile child, the gate and `hookrun
//! test`; depends on none of them.

mod identity;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::os;

pub use identity::{Identity, User};

/// What a process that runs guests may do.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Wall {
    /// Files and directories that may be read, with everything below. Missing ones are ignored.
    pub read: BTreeSet<PathBuf>,
    /// Directories in which files may be created, changed and removed. Missing ones are ignored.
    pub write: BTreeSet<PathBuf>,
    /// TCP ports that may be connected to.
    pub connect: BTreeSet<u16>,
    /// Whether it may use the network.
    pub network: bool,
    /// The user that it becomes.
    pub identity: Identity,
    /// Whether it is an error if the kernel lacks a part of the wall.
    pub required: bool,
}

/// A wall that was raised.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Raised {
    /// The user of the process, in words.
    pub identity: String,
    /// What the kernel lacks; empty if the wall is complete.
    pub missing: Vec<String>,
}

/// The reason why the wall was not raised. The process must not run guests.
#[derive(Debug, thiserror::Error)]
pub enum WallError {
    /// There are other threads, to which the wall would not apply.
    #[error(
        "the sandbox cannot be set up: this process has {0} threads instead of one; an emulator such as qemu-user adds threads, so plugins cannot run in it; elsewhere this is a bug in hookrun"
    )]
    Threads(usize),
    /// The kernel lacks a part that the configuration requires.
    #[error(
        "the sandbox is incomplete, but [worker] has `require-sandbox = true`: {}",
        .0.join("; ")
    )]
    Missing(Vec<String>),
    /// A step failed.
    #[error(
        "the sandbox cannot be set up: {step} failed ({error}); `hookrun status` shows what this kernel supports"
    )]
    Step {
        /// The step.
        step: &'static str,
        /// The error of the system.
        error: String,
    },
}

impl WallError {
    pub(crate) fn step(step: &'static str, error: &dyn std::fmt::Display) -> Self {
        Self::Step { step, error: error.to_string() }
    }
}

impl Wall {
    /// Allows only computing: no files, no network. For the policy of builder selection,
    /// compilation and `hookrun test`.
    pub fn closed(identity: Identity) -> Self {
        Self { identity, ..Self::default() }
    }

    /// Allows reading below `path`.
    #[must_use]
    pub fn reading(mut self, path: impl AsRef<Path>) -> Self {
        self.read.insert(path.as_ref().to_owned());
        self
    }

    /// Applies the wall to this process. This cannot be undone.
    ///
    /// # Errors
    /// A part of it cannot be applied; the process must end.
    pub fn raise(&self) -> Result<Raised, WallError> {
        alone()?;
        let missing = self.admit(missing())?;
        let identity = os::raise(self)?;
        Ok(Raised { identity, missing })
    }
}

impl Wall {
    /// Returns the missing parts, or an error if all parts are required.
    fn admit(&self, missing: Vec<String>) -> Result<Vec<String>, WallError> {
        if self.required && !missing.is_empty() {
            return Err(WallError::Missing(missing));
        }
        Ok(missing)
    }
}

/// How long a thread that has ended may still be listed.
const THREAD_GONE: Duration = Duration::from_millis(500);

/// Checks that this process has one thread. A thread that was just joined may still be listed by
/// the kernel for a moment.
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

/// Returns what this system lacks of the wall, in sentences; empty if the wall is complete.
pub fn missing() -> Vec<String> {
    os::missing()
}

/// Describes the user of this process in a wall with [`Identity::Powerless`].
pub fn powerless() -> String {
    os::powerless()
}

/// Prevents dumps of this process's memory, which contains secrets.
pub(crate) fn forbid_core_dumps() -> Result<(), WallError> {
    use rustix::process::{Resource, Rlimit, setrlimit};
    setrlimit(Resource::Core, Rlimit { current: Some(0), maximum: Some(0) })
        .map_err(|error| WallError::step("forbidding core dumps", &error))
}

#[cfg(test)]
mod tests;
