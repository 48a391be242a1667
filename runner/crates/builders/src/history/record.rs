//! The database with the history of machines: health, builds, decisions. It is one SQLite database,
//! `builders.sqlite` in [`Dirs::builders`](hookrun_nix::dirs::Dirs::builders).
//!
//! It is SQLite with a write-ahead log, because many sessions write at once without a worker, each
//! opens it only for some milliseconds, and any may be killed at any instruction. It is not synced:
//! a power failure loses some statistics, never a build. Everything is limited: [`BUILDS_KEPT`],
//! [`DECISIONS_KEPT`], [`KEPT_FOR`].
//!
//! Sessions write ([`Record::open`]); `hookrun builders` and the policy's past durations read:
//!
//! * [`Record::read`]: opens an existing database without changing anything; `None` if there is
//!   none.
//! * [`Record::machines`]: [`MachineHealth`](super::MachineHealth) of every machine ever tried, by
//!   URI.
//! * [`Record::past`]: [`Past`](super::Past) durations of one package name: by machine, and
//!   expected at speed factor 1.
//! * [`Record::builds`]: [`BuildRow`](super::BuildRow)s, newest first: all of one derivation, or a
//!   number of them.
//! * [`Record::decisions`]: [`DecisionRow`](super::DecisionRow)s, in the same way.
//! * [`Record::open_local`], [`Record::past_local`]: builds on this machine.
//!   [`Record::bytes_present`]: the paths on machines.
//!
//! Waiting and running builds are not here but in [`crate::slots::sessions::live`], because they
//! end with their processes.
//!
//! Errors must not affect a build: a session treats every error as an empty history.

use std::path::{Path, PathBuf};
use std::time::Duration;

use hookrun_nix::sqlite::{self, MigrationError};
use rusqlite::{Connection, OpenFlags};

use crate::private;

/// The name of the database in its directory.
const FILE: &str = "builders.sqlite";
/// The migrations from each version to the next.
const MIGRATIONS: [&str; 1] = [include_str!("schema.sql")];
/// The time that a session waits for the write of another one, which takes less than a millisecond.
/// Nix is blocked meanwhile.
const BUSY_TIMEOUT: Duration = Duration::from_millis(500);
/// The same time for a session whose build is accepted. Nix is no longer blocked, and data that is
/// not written is lost.
const PATIENCE: Duration = Duration::from_secs(10);
/// The number of builds that are kept.
pub const BUILDS_KEPT: i64 = 20_000;
/// The number of decisions that are kept.
pub const DECISIONS_KEPT: i64 = 2_000;
/// The time after which builds and machines that were not seen again are deleted.
pub const KEPT_FOR: Duration = Duration::from_hours(180 * 24);

/// The reason why the database cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    /// SQLite or the file system reports an error.
    #[error("{} cannot be used ({error}); make its directory writable for the user that Nix builds as, or delete it: builder history then starts over", path.display())]
    Sqlite {
        /// The path of the database.
        path: PathBuf,
        /// The error of SQLite.
        #[source]
        error: rusqlite::Error,
    },
    /// The directory cannot be created.
    #[error("{} cannot be created ({error}); make the state directory writable for the user that Nix builds as", path.display())]
    Io {
        /// The directory.
        path: PathBuf,
        /// The error of the system.
        #[source]
        error: std::io::Error,
    },
    /// The database belongs to another user.
    #[error("{} may only be read by its owner, the user that Nix builds as; run this command as that user, for instance with sudo", path.display())]
    Forbidden {
        /// The directory.
        path: PathBuf,
    },
    /// A later release wrote the database.
    #[error("{} has version {version}, but this hookrun reads versions up to {}; install the newer hookrun that wrote it", path.display(), MIGRATIONS.len())]
    Newer {
        /// The path of the database.
        path: PathBuf,
        /// The database's `user_version`.
        version: usize,
    },
}

impl RecordError {
    /// Returns whether another session held the lock for too long.
    pub fn is_busy(&self) -> bool {
        let Self::Sqlite { error, .. } = self else { return false };
        matches!(
            error.sqlite_error_code(),
            Some(rusqlite::ErrorCode::DatabaseBusy | rusqlite::ErrorCode::DatabaseLocked)
        )
    }
}

/// The open database.
#[derive(Debug)]
pub struct Record {
    pub(crate) connection: Connection,
    path: PathBuf,
}

impl Record {
    /// Opens the database for writing, and creates it if necessary. A damaged one is deleted,
    /// because it contains only statistics.
    ///
    /// # Errors
    /// The database cannot be opened or created, or a later release wrote it.
    pub fn open(directory: &Path) -> Result<Self, RecordError> {
        private::directory(directory)
            .map_err(|error| RecordError::Io { path: directory.to_owned(), error })?;
        let path = directory.join(FILE);
        match Self::open_file(&path) {
            Err(RecordError::Sqlite { error, .. }) if is_damaged(&error) => {
                for name in [FILE.to_owned(), format!("{FILE}-wal"), format!("{FILE}-shm")] {
                    let _gone = std::fs::remove_file(directory.join(name));
                }
                Self::open_file(&path)
            }
            result => result,
        }
    }

    fn open_file(path: &Path) -> Result<Self, RecordError> {
        let failed = |error| RecordError::Sqlite { path: path.to_owned(), error };
        let mut connection = Connection::open(path).map_err(failed)?;
        connection.busy_timeout(BUSY_TIMEOUT).map_err(failed)?;
        // A power failure may lose the last transactions, but never the file
        // (https://www.sqlite.org/pragma.html#pragma_synchronous).
        connection
            .execute_batch("pragma journal_mode = wal; pragma synchronous = normal;")
            .map_err(failed)?;
        sqlite::migrate(&mut connection, &MIGRATIONS).map_err(|error| match error {
            MigrationError::Newer { version } => {
                RecordError::Newer { path: path.to_owned(), version }
            }
            MigrationError::Sqlite(error) => failed(error),
        })?;
        Ok(Self { connection, path: path.to_owned() })
    }

    /// Opens the database for reading. Returns `None` if it does not exist.
    ///
    /// # Errors
    /// The database cannot be read, or a later release wrote it.
    pub fn read(directory: &Path) -> Result<Option<Self>, RecordError> {
        let path = directory.join(FILE);
        match path.symlink_metadata() {
            Ok(_) => {}
            Err(error) if error.kind() == std::io::ErrorKind::PermissionDenied => {
                return Err(RecordError::Forbidden { path: directory.to_owned() });
            }
            Err(_) => return Ok(None),
        }
        let failed = |error| RecordError::Sqlite { path: path.clone(), error };
        // Another user cannot create the files that a write-ahead log needs. If there is no log,
        // the file contains all data (https://www.sqlite.org/wal.html, "Read-Only Databases").
        let connection = match connect_read_only(&path, false) {
            Err(error) => connect_read_only(&path, true).map_err(|_| failed(error))?,
            Ok(connection) => connection,
        };
        match sqlite::version(&connection).map_err(failed)? {
            0 => Ok(None),
            version if version <= MIGRATIONS.len() => Ok(Some(Self { connection, path })),
            version => Err(RecordError::Newer { path, version }),
        }
    }

    /// Allows a longer busy timeout, because Nix is no longer blocked.
    pub fn allow_slow_writes(&self) {
        // Only a handler is set, which cannot fail.
        let _set = self.connection.busy_timeout(PATIENCE);
    }

    pub(crate) fn failed(&self, error: rusqlite::Error) -> RecordError {
        RecordError::Sqlite { path: self.path.clone(), error }
    }
}

fn connect_read_only(path: &Path, immutable: bool) -> Result<Connection, rusqlite::Error> {
    let uri = hookrun_nix::database::file_uri(path, immutable);
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY
        | OpenFlags::SQLITE_OPEN_URI
        | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(uri, flags)?;
    connection.busy_timeout(BUSY_TIMEOUT)?;
    // SQLite opens the file only with the first statement.
    sqlite::version(&connection)?;
    Ok(connection)
}

fn is_damaged(error: &rusqlite::Error) -> bool {
    use rusqlite::ErrorCode::{DatabaseCorrupt, NotADatabase};
    matches!(error.sqlite_error_code(), Some(DatabaseCorrupt | NotADatabase))
}

#[cfg(test)]
mod tests;
