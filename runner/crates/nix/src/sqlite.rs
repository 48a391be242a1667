//! The format versions of hookrun's own databases, kept in SQLite's `user_version`.
//!
//! A crate such as `rusqlite_migration` is not used: it reads the version before it begins its
//! transaction, so two sessions that create the same database at the same time would fail.

use rusqlite::{Connection, TransactionBehavior};

/// The error of [`migrate`].
#[derive(Debug, thiserror::Error)]
pub enum MigrationError {
    /// The database has a version of a later release.
    #[error("version {version} was written by a later release")]
    Newer {
        /// The database's version.
        version: usize,
    },
    /// SQLite reports an error.
    #[error(transparent)]
    Sqlite(#[from] rusqlite::Error),
}

/// Returns the version of a database; 0 for a new one.
///
/// # Errors
/// The database cannot be read.
pub fn version(connection: &Connection) -> rusqlite::Result<usize> {
    let version: i64 = connection.query_row("PRAGMA user_version", [], |row| row.get(0))?;
    Ok(usize::try_from(version).unwrap_or(usize::MAX))
}

/// Migrates a database to the newest version. The migration with index n leads from version n to n
/// + 1. All of them run in one transaction, so other processes may do the same at the same time.
///
/// # Errors
/// A later release wrote the database, or SQLite reports an error.
pub fn migrate(connection: &mut Connection, migrations: &[&str]) -> Result<(), MigrationError> {
    let newest = migrations.len();
    // Usually the database has the newest version, so no lock is needed.
    if version(connection)? == newest {
        return Ok(());
    }
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    let version = version(&transaction)?;
    if version > newest {
        return Err(MigrationError::Newer { version });
    }
    for migration in migrations.iter().skip(version) {
        transaction.execute_batch(migration)?;
    }
    transaction.pragma_update(None, "user_version", i64::try_from(newest).unwrap_or(i64::MAX))?;
    Ok(transaction.commit()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIGRATIONS: [&str; 2] = ["CREATE TABLE a (x)", "ALTER TABLE a ADD COLUMN y"];

    #[test]
    fn an_earlier_version_is_migrated_and_a_later_one_is_refused() {
        let mut connection = Connection::open_in_memory().unwrap();
        migrate(&mut connection, &MIGRATIONS[..1]).unwrap();
        connection.execute("INSERT INTO a (x) VALUES (1)", []).unwrap();
        migrate(&mut connection, &MIGRATIONS).unwrap();
        migrate(&mut connection, &MIGRATIONS).unwrap();
        assert_eq!(version(&connection).unwrap(), 2);
        connection.execute("INSERT INTO a (x, y) VALUES (1, 2)", []).unwrap();
        let refused = migrate(&mut connection, &MIGRATIONS[..1]);
        assert!(matches!(refused, Err(MigrationError::Newer { version: 2 })), "{refused:?}");
    }

    #[test]
    fn processes_that_create_the_same_database_do_not_disturb_each_other() {
        let directory = tempfile::tempdir().unwrap();
        let path = &directory.path().join("d.sqlite");
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(move || {
                    let mut connection = Connection::open(path).unwrap();
                    connection.busy_timeout(std::time::Duration::from_secs(20)).unwrap();
                    migrate(&mut connection, &MIGRATIONS).unwrap();
                    connection.execute("INSERT INTO a (x, y) VALUES (1, 2)", []).unwrap();
                });
            }
        });
    }
}
