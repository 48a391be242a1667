//! Which unfinished events have garbage-collector roots, how old they are and how large.

use rusqlite::{OptionalExtension as _, params};

use super::{Journal, JournalError, query, sql_count, sql_time};
use crate::event::{Event, NixDirs};

/// All roots together.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Roots {
    /// Roots.
    pub count: u64,
    /// Bytes of what they keep, without what that refers to; a root whose size is not known yet
    /// counts as nothing.
    pub bytes: u64,
}

impl Journal {
    /// Up to `limit` unfinished events with roots whose size nobody has found out yet.
    ///
    /// # Errors
    /// What SQLite says.
    pub fn unmeasured(&self, limit: usize) -> Result<Vec<Event>, JournalError> {
        self.read(|connection| {
            let mut statement = connection.prepare_cached(
                "SELECT body FROM events WHERE ended_ms IS NULL AND rooted > 0 AND nar_size IS NULL LIMIT ?1",
            )?;
            let rows = statement.query_map([sql_count(limit)], |row| query::json(row, 0))?;
            rows.collect()
        })
    }

    /// The unfinished events with roots that are older than `taken_before_ms`, or with which all
    /// newer ones are larger than `max_size` bytes together; the first value says which: true, too
    /// old.
    ///
    /// # Errors
    /// What SQLite says.
    pub fn rooted_beyond(
        &self,
        taken_before_ms: u64,
        max_size: u64,
    ) -> Result<Vec<(bool, Event)>, JournalError> {
        self.read(|connection| {
            let mut statement = connection.prepare_cached(
                "SELECT taken_ms < ?1, body FROM
                     (SELECT taken_ms, body, sum(nar_size) OVER (ORDER BY id DESC) AS size FROM events WHERE ended_ms IS NULL AND rooted > 0)
                 WHERE taken_ms < ?1 OR size > ?2",
            )?;
            let rows = statement.query_map(params![sql_time(taken_before_ms), sql_time(max_size)], |row| {
                Ok((row.get(0)?, query::json(row, 1)?))
            })?;
            rows.collect()
        })
    }

    /// The stores of unfinished events with roots.
    ///
    /// # Errors
    /// What SQLite says.
    pub fn rooted_stores(&self) -> Result<Vec<NixDirs>, JournalError> {
        self.read(|connection| {
            let mut statement = connection
                .prepare_cached("SELECT DISTINCT body ->> '$.nix' FROM events WHERE ended_ms IS NULL AND rooted > 0")?;
            let rows = statement.query_map([], |row| query::json(row, 0))?;
            rows.collect()
        })
    }

    /// All roots together.
    ///
    /// # Errors
    /// What SQLite says.
    pub fn roots(&self) -> Result<Roots, JournalError> {
        self.read(|connection| {
            connection.query_row(
                "SELECT coalesce(sum(rooted), 0), coalesce(sum(nar_size), 0) FROM events WHERE ended_ms IS NULL AND rooted > 0",
                [],
                |row| Ok(Roots { count: query::count(row, 0)?, bytes: query::count(row, 1)? }),
            )
        })
    }

    /// Sizes that were found out, by event id.
    ///
    /// # Errors
    /// What SQLite says.
    pub fn measured(&mut self, sizes: &[(String, u64)]) -> Result<(), JournalError> {
        self.write(|transaction| {
            let mut statement =
                transaction.prepare_cached("UPDATE events SET nar_size = ?2 WHERE id = ?1")?;
            sizes.iter().try_for_each(|(id, size)| {
                statement.execute(params![id, sql_time(*size)]).map(drop)
            })
        })
    }

    /// The roots of an event are gone, and its tasks are not.
    ///
    /// # Errors
    /// What SQLite says.
    pub fn unrooted(&mut self, event: &str) -> Result<(), JournalError> {
        self.write(|transaction| {
            transaction
                .prepare_cached("UPDATE events SET rooted = 0 WHERE id = ?1")?
                .execute([event])
                .map(drop)
        })
    }

    /// Is the event unfinished, and has it roots? None: it is not in the journal.
    ///
    /// # Errors
    /// What SQLite says.
    pub fn is_rooted(&self, event: &str) -> Result<Option<bool>, JournalError> {
        self.read(|connection| {
            connection
                .prepare_cached("SELECT ended_ms IS NULL AND rooted > 0 FROM events WHERE id = ?1")?
                .query_row([event], |row| row.get(0))
                .optional()
        })
    }
}
