//! Opens the journal: creates, migrates and checks it, and replaces a damaged one.

use std::path::{Path, PathBuf};

use rusqlite::{Connection, OpenFlags};

use super::{BUSY_TIMEOUT, FILE, Journal, JournalError, MIGRATIONS, columns};
use hookrun_nix::dirs::Dirs;
use hookrun_nix::event::Event;
use hookrun_nix::layout;
use hookrun_nix::sqlite::{self, MigrationError};

/// A journal that could not be used any longer, and what could be read of it.
#[derive(Debug, Default, PartialEq)]
pub struct Damage {
    /// One line: the reason, the new name of the old file, and what was lost.
    pub notice: String,
    /// Unfinished events that could still be read. They are taken again, and their tasks start from
    /// the beginning.
    pub salvaged: Vec<Event>,
}

impl Journal {
    /// Opens the journal for the worker: creates it if necessary, migrates it to the newest
    /// version, and checks it. A damaged journal is renamed and replaced by a new one; then the
    /// second value contains what could be read of the old one.
    ///
    /// # Errors
    /// The journal cannot be opened or created, or a later release wrote it.
    pub fn open(dirs: &Dirs) -> Result<(Self, Option<Damage>), JournalError> {
        let path = dirs.journal().join(FILE);
        let io = |error| JournalError::Io { path: path.clone(), error };
        layout::make_own(&dirs.journal()).map_err(io)?;
        match Self::open_checked(&path) {
            Ok(journal) => Ok((journal, None)),
            Err(JournalError::Sqlite { error, .. }) if is_damage(&error) => {
                Self::begin_anew(&path, &error.to_string())
            }
            Err(error) => Err(error),
        }
    }

    /// Replaces a journal that turned out to be damaged while it was used, even if it can be
    /// opened.
    ///
    /// # Errors
    /// Returns the errors of [`Journal::open`].
    pub fn open_anew(dirs: &Dirs, reason: &str) -> Result<(Self, Option<Damage>), JournalError> {
        Self::begin_anew(&dirs.journal().join(FILE), reason)
    }

    fn begin_anew(path: &Path, reason: &str) -> Result<(Self, Option<Damage>), JournalError> {
        let aside =
            set_aside(path).map_err(|error| JournalError::Io { path: path.to_owned(), error })?;
        let journal = Self::open_checked(path)?;
        let salvaged = salvage_file(&aside);
        let notice = format!(
            "the journal was damaged ({reason}) and was renamed to {}; a new one was started with the {} unfinished events that could be read; run `hookrun sync` to queue missing ones",
            aside.display(),
            salvaged.len(),
        );
        Ok((journal, Some(Damage { notice, salvaged })))
    }

    /// Opens the journal for reading, also while a worker runs; returns none if it does not exist
    /// yet.
    ///
    /// # Errors
    /// The journal cannot be opened, or has another version.
    pub fn open_read_only(dirs: &Dirs) -> Result<Option<Self>, JournalError> {
        Self::open_beside(dirs, OpenFlags::SQLITE_OPEN_READ_ONLY)
    }

    /// Opens the existing journal for changing tasks, also while a worker runs; returns none if it
    /// does not exist yet.
    ///
    /// # Errors
    /// The journal cannot be opened for writing, or has another version.
    pub fn open_to_change(dirs: &Dirs) -> Result<Option<Self>, JournalError> {
        let journal = Self::open_beside(dirs, OpenFlags::SQLITE_OPEN_READ_WRITE)?;
        if let Some(journal) = &journal {
            journal.read(|connection| connection.pragma_update(None, "foreign_keys", true))?;
        }
        Ok(journal)
    }

    fn open_beside(dirs: &Dirs, flags: OpenFlags) -> Result<Option<Self>, JournalError> {
        let path = dirs.journal().join(FILE);
        if std::fs::symlink_metadata(&path)
            .is_err_and(|error| error.kind() == std::io::ErrorKind::NotFound)
        {
            return Ok(None);
        }
        let sqlite = |error| JournalError::Sqlite { path: path.clone(), error };
        let connection = Connection::open_with_flags(&path, flags).map_err(sqlite)?;
        connection.busy_timeout(BUSY_TIMEOUT).map_err(sqlite)?;
        match sqlite::version(&connection).map_err(sqlite)? {
            // The worker is creating it.
            0 => Ok(None),
            version if version > MIGRATIONS.len() => Err(JournalError::Newer { path, version }),
            _ => Ok(Some(Self { connection, path, inode: None })),
        }
    }

    fn open_checked(path: &Path) -> Result<Self, JournalError> {
        let sqlite = |error| JournalError::Sqlite { path: path.to_owned(), error };
        let mut connection = Connection::open(path).map_err(sqlite)?;
        prepare(&connection).map_err(sqlite)?;
        sqlite::migrate(&mut connection, &MIGRATIONS).map_err(|error| match error {
            MigrationError::Newer { version } => {
                JournalError::Newer { path: path.to_owned(), version }
            }
            MigrationError::Sqlite(error) => sqlite(error),
        })?;
        Ok(Self { connection, path: path.to_owned(), inode: inode(path) })
    }

    /// Returns whether the open file still has its name. SQLite would continue to write to a file
    /// that was removed.
    pub fn is_in_place(&self) -> bool {
        inode(&self.path) == self.inode
    }

    /// Checks that the file can still be opened as a journal.
    ///
    /// # Errors
    /// The file is not a journal any longer, or SQLite cannot read it.
    pub fn verify(&self) -> Result<(), JournalError> {
        let look = || {
            let flags = OpenFlags::SQLITE_OPEN_READ_ONLY;
            let connection = Connection::open_with_flags(&self.path, flags)?;
            connection.busy_timeout(BUSY_TIMEOUT)?;
            sqlite::version(&connection)
        };
        look().map(drop).map_err(|error| JournalError::Sqlite { path: self.path.clone(), error })
    }

    /// Returns the unfinished events, for another journal if this one's file was removed.
    pub fn salvage(&self) -> Vec<Event> {
        salvage(&self.connection)
    }
}

/// Returns device and inode of a file.
fn inode(path: &Path) -> Option<(u64, u64)> {
    use std::os::unix::fs::MetadataExt as _;
    std::fs::symlink_metadata(path).ok().map(|found| (found.dev(), found.ino()))
}

/// Renames a damaged database and the files that belong to it; returns the new name.
fn set_aside(path: &Path) -> std::io::Result<PathBuf> {
    let aside = path.with_added_extension(format!("damaged-{}", hookrun_nix::event::now_ms()));
    std::fs::rename(path, &aside)?;
    for suffix in ["-wal", "-shm"] {
        let with_suffix = |path: &Path| PathBuf::from(format!("{}{suffix}", path.display()));
        match std::fs::rename(with_suffix(path), with_suffix(&aside)) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    Ok(aside)
}

fn salvage_file(path: &Path) -> Vec<Event> {
    Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_WRITE)
        .map(|old| salvage(&old))
        .unwrap_or_default()
}

/// Reads row by row from both ends, up to the first row that cannot be read, because damage is
/// usually in one place.
fn salvage(connection: &Connection) -> Vec<Event> {
    let mut found = std::collections::BTreeMap::new();
    for order in ["ASC", "DESC"] {
        // Dead letters with roots may still be retried.
        let sql = format!(
            "SELECT body FROM events WHERE ended_ms IS NULL OR rooted > 0 ORDER BY id {order}"
        );
        let Ok(mut statement) = connection.prepare(&sql) else { continue };
        let Ok(mut rows) = statement.query([]) else { continue };
        while let Ok(Some(row)) = rows.next() {
            // An event that cannot be read does not affect others.
            if let Ok(event) = columns::json::<Event>(row, 0) {
                found.insert(event.id.clone(), event);
            }
        }
    }
    found.into_values().collect()
}

/// The number of pages in the write-ahead log before a checkpoint, 16 MiB, so that a page that
/// changes with every event is seldom written to the database.
const CHECKPOINT_PAGES: u32 = 4096;

/// Configures a connection that writes, and checks the database.
fn prepare(connection: &Connection) -> rusqlite::Result<()> {
    connection.busy_timeout(BUSY_TIMEOUT)?;
    connection.pragma_update(None, "journal_mode", "WAL")?;
    connection.pragma_update(None, "synchronous", "NORMAL")?;
    connection.pragma_update(None, "foreign_keys", true)?;
    connection.pragma_update(None, "wal_autocheckpoint", CHECKPOINT_PAGES)?;
    let found: String = connection.query_row("PRAGMA quick_check(1)", [], |row| row.get(0))?;
    if found != "ok" {
        let error = rusqlite::ffi::Error::new(rusqlite::ffi::SQLITE_CORRUPT);
        return Err(rusqlite::Error::SqliteFailure(error, Some(found)));
    }
    Ok(())
}

pub(super) fn is_damage(error: &rusqlite::Error) -> bool {
    matches!(
        error.sqlite_error_code(),
        Some(rusqlite::ErrorCode::DatabaseCorrupt | rusqlite::ErrorCode::NotADatabase)
    )
}
