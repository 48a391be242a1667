//! The worker's database: events, tasks, attempts (SQLite, `schema.sql`).
//!
//! Written by the one worker; `hookrun status` and `hookrun log` read it at the same time
//! (write-ahead log). The worker may be killed at any instruction: an event's row and its tasks
//! come in one transaction that is synced before the spool file goes, and the id is the key, so an
//! event that is seen twice is taken once. What an attempt gave is synced later: if it is lost, the
//! attempt is made again, which plugins must bear anyway.
//!
//! [`open`](Journal::open): made, migrated, checked. [`take`](Journal::take): events come in.
//! [`step`](Journal::step): tasks begin and end. The files beside this one hold one of these each;
//! `query` answers the commands, `operator` makes the changes of `hookrun queue`.

mod attempts;
mod breakers;
mod ingest;
mod open;
mod operator;
mod query;
mod roots;
mod state;

use std::path::PathBuf;
use std::time::Duration;

use rusqlite::{Connection, Transaction, TransactionBehavior};

pub use attempts::{Attempt, Begun, Ended, Order, Task, Unreadable};
pub use breakers::OpenBreaker;
pub use ingest::{Incoming, Share, Taken, Wanted};
pub use open::Damage;
pub use operator::Selection;
pub use query::{
    AttemptRow, EndedAs, EventRef, FileId, LogFilter, PluginCounts, PluginRecord, TaskRow, file_id,
};
pub use roots::Roots;
pub use state::TaskState;

/// The database's name in [`Dirs::journal`](hookrun_nix::dirs::Dirs::journal).
const FILE: &str = "journal.sqlite";
/// The migrations from each version to the next.
const MIGRATIONS: [&str; 1] = [include_str!("schema.sql")];
/// How long a statement waits for another process's lock: readers never block the worker for long.
const BUSY_TIMEOUT: Duration = Duration::from_secs(10);

/// Why the journal cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    /// SQLite or the file system says no.
    #[error("the journal {} cannot be used ({error}); {}", path.display(), fix(error))]
    Sqlite {
        /// The database.
        path: PathBuf,
        /// The error of SQLite.
        #[source]
        error: rusqlite::Error,
    },
    /// Its directory cannot be made, or a damaged one cannot be set aside.
    #[error("the journal {} cannot be made ({error}); make its directory writable for the user that runs the worker", path.display())]
    Io {
        /// The database.
        path: PathBuf,
        /// What the system says.
        #[source]
        error: std::io::Error,
    },
    /// Written by a later release.
    #[error("the journal {} has version {version}, and this hookrun knows up to {}; a newer hookrun wrote it: run that one", path.display(), MIGRATIONS.len())]
    Newer {
        /// The database.
        path: PathBuf,
        /// Its `user_version`.
        version: usize,
    },
}

impl JournalError {
    /// Returns whether the file is damaged, so that a new journal has to replace it.
    pub fn is_damage(&self) -> bool {
        match self {
            Self::Sqlite { error, .. } => open::is_damage(error),
            Self::Io { .. } | Self::Newer { .. } => false,
        }
    }
}

/// What to do about an error of SQLite.
fn fix(error: &rusqlite::Error) -> &'static str {
    match error.sqlite_error_code() {
        Some(rusqlite::ErrorCode::DiskFull) => "make space there",
        _ if open::is_damage(error) => {
            "run `hookrun drain`: it sets the file aside and goes on with what can be read of it"
        }
        _ => "its directory must be writable for the user that runs the worker",
    }
}

/// How many tasks are open.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Open {
    /// May run now.
    pub due: u64,
    /// Wait for their time, for another task, or until their plugin's service is available again.
    pub waiting: u64,
    /// Running.
    pub running: u64,
    /// Kept until the operator fixes something.
    pub refused: u64,
    /// Dead letters.
    pub dead: u64,
    /// Cannot be done any more.
    pub lost: u64,
    /// When the first of those that wait may run.
    pub next_ms: Option<u64>,
}

impl Open {
    /// Returns whether there are dead, lost or refused tasks.
    pub fn failed(&self) -> bool {
        self.dead > 0 || self.lost > 0 || self.refused > 0
    }
}

/// The journal, open.
#[derive(Debug)]
pub struct Journal {
    connection: Connection,
    path: PathBuf,
    /// Device and number of the file, for the one that writes.
    inode: Option<(u64, u64)>,
}

impl Journal {
    /// How many tasks are open, and when the next may run.
    ///
    /// # Errors
    /// SQLite reports an error.
    pub fn open_tasks(&self, now_ms: u64) -> Result<Open, JournalError> {
        self.read(|connection| {
            connection.query_row(
                "SELECT count(*) FILTER (WHERE state = 'pending' AND not_before_ms <= ?1 AND until_ms IS NULL),
                        count(*) FILTER (WHERE state = 'blocked' OR (state = 'pending' AND (not_before_ms > ?1 OR until_ms IS NOT NULL))),
                        count(*) FILTER (WHERE state = 'running'), count(*) FILTER (WHERE state = 'refused'),
                        min(max(not_before_ms, coalesce(until_ms, 0))) FILTER (WHERE state = 'pending' AND (not_before_ms > ?1 OR until_ms > ?1)),
                        (SELECT count(*) FROM tasks WHERE state = 'dead'), (SELECT count(*) FROM tasks WHERE state = 'lost')
                 FROM tasks LEFT JOIN breakers ON breakers.plugin = tasks.plugin
                 WHERE state IN ('pending', 'blocked', 'running', 'refused')",
                [sql_time(now_ms)],
                |row| {
                    Ok(Open {
                        due: query::count(row, 0)?,
                        waiting: query::count(row, 1)?,
                        running: query::count(row, 2)?,
                        refused: query::count(row, 3)?,
                        next_ms: query::time(row, 4)?,
                        dead: query::count(row, 5)?,
                        lost: query::count(row, 6)?,
                    })
                },
            )
        })
    }

    fn write<T>(
        &mut self,
        work: impl FnOnce(&Transaction<'_>) -> rusqlite::Result<T>,
    ) -> Result<T, JournalError> {
        let path = &self.path;
        let connection = &mut self.connection;
        let result = (|| {
            let transaction =
                connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
            let value = work(&transaction)?;
            transaction.commit()?;
            Ok(value)
        })();
        result.map_err(|error| JournalError::Sqlite { path: path.clone(), error })
    }

    fn read<T>(
        &self,
        work: impl FnOnce(&Connection) -> rusqlite::Result<T>,
    ) -> Result<T, JournalError> {
        work(&self.connection)
            .map_err(|error| JournalError::Sqlite { path: self.path.clone(), error })
    }
}

/// SQLite's integers are signed.
fn sql_time(ms: u64) -> i64 {
    i64::try_from(ms).unwrap_or(i64::MAX)
}

fn sql_count(count: usize) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests;
