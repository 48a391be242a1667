//! The state of the running worker for `hookrun status`, in a small file that is replaced on
//! changes.
//!
//! It is valid only while the process that it names holds the worker's lock.

use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::{lock, spawn};
use hookrun_nix::dirs::Dirs;
use hookrun_nix::outcome::Transfer;

/// The state of a worker.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", default)]
pub struct WorkerState {
    /// The process id.
    pub pid: u32,
    /// Its version.
    pub version: String,
    /// The priority relative to builds.
    pub priority: String,
    /// The time when it started, in milliseconds since 1970.
    pub started_ms: u64,
    /// The time when it last applied a change of configuration, plugins or secrets; 0 if it has not
    /// since it started.
    pub refreshed_ms: u64,
    /// Problems, each with the fix: a change that could not be applied, or a spool that cannot be
    /// watched.
    pub problems: Vec<String>,
    /// The problem of the worker's own program.
    pub own_problem: Option<String>,
    /// The uploads in progress.
    pub transfers: Vec<Transfer>,
}

/// The running worker, as other processes see it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Running {
    /// The process id; 0 if it is not visible from here.
    pub pid: i32,
    /// The state that it has written; none if it has not written one yet.
    pub said: Option<WorkerState>,
    /// Whether its program was replaced since it started.
    pub is_replaced: bool,
}

impl Running {
    /// Returns the worker that runs on these directories, if this user can see one.
    pub fn find(dirs: &Dirs) -> Option<Self> {
        let pid = lock::holder(&dirs.worker_lock())?;
        let program = hookrun_system::process::program_of(pid);
        let is_replaced = program.is_some_and(|program| spawn::is_deleted(&program));
        Some(Self { pid, said: WorkerState::of(dirs, pid), is_replaced })
    }
}

impl std::fmt::Display for Running {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut parts = Vec::new();
        if self.pid > 0 {
            parts.push(format!("process {}", self.pid));
        }
        if let Some(said) = &self.said {
            parts.push(format!("version {}", said.version));
            if !said.priority.is_empty() {
                parts.push(format!("{} priority", said.priority));
            }
        }
        if self.is_replaced {
            parts.push("its program was replaced since".to_owned());
        }
        let parts = parts.join(", ");
        if parts.is_empty() { write!(f, "runs") } else { write!(f, "runs ({parts})") }
    }
}

/// A longer file was not written by hookrun.
const MAX_SIZE: u64 = 1 << 20;

impl WorkerState {
    /// Reads the state of the worker with the process id `pid`; none if it has not written one yet.
    pub fn of(dirs: &Dirs, pid: i32) -> Option<Self> {
        use std::io::Read as _;
        let mut text = String::new();
        std::fs::File::open(dirs.worker_state())
            .ok()?
            .take(MAX_SIZE)
            .read_to_string(&mut text)
            .ok()?;
        let state: Self = serde_json::from_str(&text).ok()?;
        (i64::from(state.pid) == i64::from(pid)).then_some(state)
    }

    /// Writes the file.
    ///
    /// # Errors
    /// Returns the error of the system; in that case the file is not changed.
    pub fn write(&self, dirs: &Dirs) -> std::io::Result<()> {
        let path = dirs.worker_state();
        let temporary = path.with_added_extension("new");
        write_new(&temporary, &serde_json::to_vec(self)?)?;
        std::fs::rename(&temporary, &path)
    }
}

fn write_new(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    let mut options = std::fs::OpenOptions::new();
    // Only users who may read the journal may read this file.
    options.write(true).create(true).truncate(true).mode(0o600).custom_flags(libc::O_NOFOLLOW);
    options.open(path)?.write_all(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_state_file_is_valid_only_for_its_process() {
        let dir = tempfile::tempdir().unwrap();
        let dirs = Dirs { config: dir.path().join("c"), state: dir.path().to_owned() };
        assert_eq!(WorkerState::of(&dirs, 7), None);
        let state = WorkerState { pid: 7, problems: vec!["p".into()], ..WorkerState::default() };
        state.write(&dirs).unwrap();
        assert_eq!(WorkerState::of(&dirs, 7), Some(state));
        assert_eq!(WorkerState::of(&dirs, 8), None);
    }
}
