//! Stores open circuit breakers, so that the next worker does not start by trying every task with a
//! service that is down.

use rusqlite::params;

use super::{Journal, JournalError, columns, sql_time};

/// An open breaker, as the journal stores it.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct OpenBreaker {
    /// The plugin's name in the configuration.
    pub plugin: String,
    /// The time when it opened, in milliseconds since 1970.
    pub since_ms: u64,
    /// The time of the next test.
    pub until_ms: u64,
    /// The number of failed tests since it opened.
    pub trips: u32,
    /// The message of the last failure.
    pub message: String,
}

impl Journal {
    /// Returns the open breakers.
    ///
    /// # Errors
    /// SQLite reports an error.
    pub fn breakers(&self) -> Result<Vec<OpenBreaker>, JournalError> {
        self.read(|connection| {
            let mut statement = connection.prepare_cached(
                "SELECT plugin, since_ms, until_ms, trips, message FROM breakers ORDER BY plugin",
            )?;
            let rows = statement.query_map([], |row| {
                Ok(OpenBreaker {
                    plugin: columns::text(row, 0)?,
                    since_ms: columns::count(row, 1)?,
                    until_ms: columns::count(row, 2)?,
                    trips: columns::number(row, 3)?,
                    message: columns::text(row, 4)?,
                })
            })?;
            rows.collect()
        })
    }

    /// Stores an open breaker.
    ///
    /// # Errors
    /// SQLite reports an error.
    pub fn keep_breaker(&mut self, breaker: &OpenBreaker) -> Result<(), JournalError> {
        let OpenBreaker { plugin, since_ms, until_ms, trips, message } = breaker;
        self.write(|transaction| {
            transaction
                .prepare_cached("INSERT OR REPLACE INTO breakers (plugin, since_ms, until_ms, trips, message) VALUES (?1, ?2, ?3, ?4, ?5)")?
                .execute(params![plugin, sql_time(*since_ms), sql_time(*until_ms), trips, message])
                .map(drop)
        })
    }

    /// Removes a breaker that has closed. Tasks that failed while it was open become due in the
    /// order of their events, because the service is available again. Returns whether the breaker
    /// was open.
    ///
    /// # Errors
    /// SQLite reports an error.
    pub fn close_breaker(&mut self, plugin: &str, now_ms: u64) -> Result<bool, JournalError> {
        self.write(|transaction| {
            let closed =
                transaction.execute("DELETE FROM breakers WHERE plugin = ?1", [plugin])?;
            transaction
                .execute(
                    "UPDATE tasks SET not_before_ms = ?2 WHERE plugin = ?1 AND state = 'pending' AND class = 'transient' AND not_before_ms > ?2",
                    params![plugin, sql_time(now_ms)],
                )?;
            Ok(closed > 0)
        })
    }
}
