//! The worker's database: events, tasks, attempts (SQLite, `schema.sql`).
//!
//! Only the worker writes it; `hookrun status` and `hookrun log` read it at the same time
//! (write-ahead log). The worker may be killed at any instruction. An event and its tasks are
//! written in one transaction, which is synced before the spool file is removed; the id is the key,
//! so an event that is read twice is taken once. The result of an attempt is synced later. If it is
//! lost, the attempt is repeated, which plugins must tolerate in any case.
//!
//! [`open`](Journal::open) creates, migrates and checks the database. [`take`](Journal::take) adds
//! events. [`step`](Journal::step) begins and ends tasks. Each file of this module contains one of
//! these steps; `query` and `attempt_log` are for the commands, and `operator` for the changes of
//! `hookrun queue`.

mod attempt_log;
mod attempts;
mod breakers;
mod columns;
mod ingest;
mod open;
mod operator;
mod query;
mod roots;
mod state;

use std::path::PathBuf;
use std::time::Duration;

use rusqlite::{Connection, Transaction, TransactionBehavior};

pub use attempt_log::{AttemptRow, EndedAs, LogFilter, PluginRecord};
pub use attempts::{Attempt, DueOrder, EndedAttempt, StartedAttempt, Task, Unreadable};
pub use breakers::OpenBreaker;
pub use ingest::{Incoming, IngestResult, NewTask, Share};
pub use open::Damage;
pub use operator::TaskSelection;
pub use query::{EventRef, FileId, PluginCounts, TaskRow, file_id};
pub use roots::Roots;
pub use state::TaskState;

/// The name of the database in [`Dirs::journal`](hookrun_nix::dirs::Dirs::journal).
const FILE: &str = "journal.sqlite";
/// The migrations from each version to the next.
const MIGRATIONS: [&str; 1] = [include_str!("schema.sql")];
/// The time that a statement waits for another process's lock. Readers never block the worker for
/// long.
const BUSY_TIMEOUT: Duration = Duration::from_secs(10);

/// The reason why the journal cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    /// SQLite or the file system reports an error.
    #[error("the journal {} cannot be used ({error}); {}", path.display(), fix(error))]
    Sqlite {
        /// The path of the database.
        path: PathBuf,
        /// The error of SQLite.
        #[source]
        error: rusqlite::Error,
    },
    /// The directory cannot be created, or a damaged journal cannot be renamed.
    #[error("the journal {} cannot be created ({error}); make its directory writable for the user that runs the worker", path.display())]
    Io {
        /// The path of the database.
        path: PathBuf,
        /// The error of the system.
        #[source]
        error: std::io::Error,
    },
    /// A later release wrote the journal.
    #[error("the journal {} has version {version}, but this hookrun reads versions up to {}; install the newer hookrun that wrote it", path.display(), MIGRATIONS.len())]
    Newer {
        /// The path of the database.
        path: PathBuf,
        /// The database's `user_version`.
        version: usize,
    },
}

impl JournalError {
    /// Returns whether the file is damaged, so that it must be replaced by a new journal.
    pub fn is_damage(&self) -> bool {
        match self {
            Self::Sqlite { error, .. } => open::is_damage(error),
            Self::Io { .. } | Self::Newer { .. } => false,
        }
    }
}

/// Returns the fix for an error of SQLite.
fn fix(error: &rusqlite::Error) -> &'static str {
    match error.sqlite_error_code() {
        Some(rusqlite::ErrorCode::DiskFull) => "make space there",
        _ if open::is_damage(error) => {
            "run `hookrun drain`, which renames the file and continues with the events that can be read"
        }
        _ => "make its directory writable for the user that runs the worker",
    }
}

/// The numbers of open and failed tasks.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Open {
    /// Tasks that may run now.
    pub due: u64,
    /// Tasks that wait for their time, for another task, or until their plugin's service is
    /// available again.
    pub waiting: u64,
    /// Running tasks.
    pub running: u64,
    /// Tasks that are kept until the operator fixes something.
    pub refused: u64,
    /// Dead letters.
    pub dead: u64,
    /// Tasks that cannot run any longer.
    pub lost: u64,
    /// The time when the first waiting task may run.
    pub next_ms: Option<u64>,
}

impl Open {
    /// Returns whether there are dead, lost or refused tasks.
    pub fn failed(&self) -> bool {
        self.dead > 0 || self.lost > 0 || self.refused > 0
    }
}

/// The open journal.
#[derive(Debug)]
pub struct Journal {
    connection: Connection,
    path: PathBuf,
    /// Device and inode of the file, if this connection writes.
    inode: Option<(u64, u64)>,
}

impl Journal {
    /// Returns the numbers of open tasks, and the time when the next one may run.
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
                        due: columns::count(row, 0)?,
                        waiting: columns::count(row, 1)?,
                        running: columns::count(row, 2)?,
                        refused: columns::count(row, 3)?,
                        next_ms: columns::time(row, 4)?,
                        dead: columns::count(row, 5)?,
                        lost: columns::count(row, 6)?,
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

/// Converts a time, because SQLite's integers are signed.
fn sql_time(ms: u64) -> i64 {
    i64::try_from(ms).unwrap_or(i64::MAX)
}

fn sql_count(count: usize) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests;
