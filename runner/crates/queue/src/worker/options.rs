//! The options of a worker, its summary and its errors.

use hookrun_nix::outcome::Class;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use super::{Clock, STOP_LIMIT, SystemClock};
use crate::journal::{JournalError, Open};
use crate::lock::LockError;

/// The condition for a worker to end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// No task can run now.
    Drain,
    /// The worker is asked to stop.
    Daemon,
    /// No task has been open for this time. Waiting tasks are open.
    Spawned {
        /// The time without an open task.
        idle_exit: Duration,
    },
}

/// The options of a worker.
#[derive(Clone)]
pub struct Options {
    /// The condition for it to end.
    pub mode: Mode,
    /// The time for running attempts to end after a request to stop; usually [`STOP_LIMIT`].
    pub stop_limit: Duration,
    /// The clock.
    pub clock: Arc<dyn Clock>,
}

impl Options {
    /// Returns options with the machine's clock.
    pub fn new(mode: Mode) -> Self {
        Self { mode, stop_limit: STOP_LIMIT, clock: Arc::new(SystemClock) }
    }
}

/// What a worker did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Summary {
    /// The number of events taken from the spool.
    pub taken: u64,
    /// The number of rejected spool files.
    pub rejected: u64,
    /// The number of attempts by class.
    pub attempts: BTreeMap<Class, u64>,
    /// The remaining tasks.
    pub open: Open,
    /// Whether the worker's program was replaced while it ran.
    pub replaced: bool,
}

/// The reason why the worker did not run or could not continue.
#[derive(Debug, thiserror::Error)]
pub enum WorkerError {
    /// Another worker runs, or the lock cannot be taken.
    #[error(transparent)]
    Lock(#[from] LockError),
    /// The journal cannot be used.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// The journal was removed while the worker ran.
    #[error("the journal {} was removed or replaced while the worker ran; its unfinished events were queued again", path.display())]
    Gone {
        /// The directory of the journal.
        path: std::path::PathBuf,
    },
    /// The state directory cannot be created.
    #[error("{} cannot be created ({error}); run the worker as root, or set HOOKRUN_STATE_DIR to a directory that you may write to", path.display())]
    State {
        /// The path of the spool.
        path: std::path::PathBuf,
        /// The error of the system.
        #[source]
        error: std::io::Error,
    },
}
