//! Open breakers outlive the worker: the next one does not begin by asking a dead service for every
//! task.

use rusqlite::params;

use super::{Journal, JournalError, query, sql_time};

/// An open breaker, as the journal keeps it.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct OpenBreaker {
    /// The plugin's name in the configuration.
    pub plugin: String,
    /// When it opened; milliseconds since 1970.
    pub since_ms: u64,
    /// When the next task is tried.
    pub until_ms: u64,
    /// Tries that failed since it opened.
    pub trips: u32,
    /// The last failure's sentence.
    pub message: String,
}

impl Journal {
    /// The open breakers.
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
                    plugin: query::text(row, 0)?,
                    since_ms: query::count(row, 1)?,
                    until_ms: query::count(row, 2)?,
                    trips: query::number(row, 3)?,
                    message: query::text(row, 4)?,
                })
            })?;
            rows.collect()
        })
    }

    /// Keeps an open breaker.
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

    /// A breaker has closed. What failed while it was open may run now, in the order of its events:
    /// the service is back. True if it was open.
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
