//! The options of a worker, its summary and its errors.

use hookrun_nix::outcome::Class;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use super::{Clock, STOP_LIMIT, SystemClock};
use crate::journal::{JournalError, Open};
use crate::lock::LockError;

/// When the worker ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// When nothing can run now.
    Drain,
    /// When it is told to.
    Daemon,
    /// When nothing has been open for this long. Tasks that wait for their time are open.
    Spawned {
        /// How long.
        idle_exit: Duration,
    },
}

/// How the worker works.
#[derive(Clone)]
pub struct Options {
    /// When it ends.
    pub mode: Mode,
    /// How long runs may still take once it is asked to stop; [`STOP_LIMIT`].
    pub stop_limit: Duration,
    /// What time it is.
    pub clock: Arc<dyn Clock>,
}

impl Options {
    /// On this machine's clock.
    pub fn new(mode: Mode) -> Self {
        Self { mode, stop_limit: STOP_LIMIT, clock: Arc::new(SystemClock) }
    }
}

/// What a worker did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Summary {
    /// Events taken from the spool.
    pub taken: u64,
    /// Spool files set aside.
    pub rejected: u64,
    /// Attempts by class.
    pub attempts: BTreeMap<Class, u64>,
    /// What is left.
    pub open: Open,
    /// Whether the worker's program was replaced while it ran.
    pub replaced: bool,
}

/// Why the worker did not run or could not go on.
#[derive(Debug, thiserror::Error)]
pub enum WorkerError {
    /// Another worker runs, or the lock cannot be taken.
    #[error(transparent)]
    Lock(#[from] LockError),
    /// The journal cannot be used.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// Somebody has removed the journal while the worker ran.
    #[error("the journal {} was removed or replaced while the worker ran; its unfinished events are handed over again", path.display())]
    Gone {
        /// Its directory.
        path: std::path::PathBuf,
    },
    /// The state directory cannot be made.
    #[error("{} cannot be made ({error}); run the worker as root, or set HOOKRUN_STATE_DIR to a directory that you may write", path.display())]
    State {
        /// The spool.
        path: std::path::PathBuf,
        /// What the system says.
        #[source]
        error: std::io::Error,
    },
}
