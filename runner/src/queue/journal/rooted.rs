//! Which unfinished events have garbage-collector roots, how old they are and how large.

use rusqlite::{OptionalExtension as _, params};

use super::{Journal, JournalError, query, sql_time};
use crate::event::Event;

/// An unfinished event with roots.
#[derive(Debug, Clone, PartialEq)]
pub struct Rooted {
    /// The event.
    pub event: Event,
    /// When it was taken; milliseconds since 1970.
    pub taken_ms: u64,
    /// Bytes of its outputs, where that was found out.
    pub nar_size: Option<u64>,
}

/// All roots together.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Roots {
    /// Roots.
    pub count: u64,
    /// Bytes of what they keep, without what that refers to; a root whose size is not known yet counts as nothing.
    pub bytes: u64,
}

impl Journal {
    /// The unfinished events that have roots, the newest first.
    ///
    /// # Errors
    /// What SQLite says.
    pub fn rooted(&self) -> Result<Vec<Rooted>, JournalError> {
        self.read(|connection| {
            let mut statement = connection.prepare_cached(
                "SELECT body, taken_ms, nar_size FROM events WHERE ended_ms IS NULL AND rooted > 0 ORDER BY id DESC",
            )?;
            let rows = statement.query_map([], |row| {
                Ok(Rooted { event: query::json(row, 0)?, taken_ms: query::count(row, 1)?, nar_size: query::time(row, 2)? })
            })?;
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
            let mut statement = transaction.prepare_cached("UPDATE events SET nar_size = ?2 WHERE id = ?1")?;
            sizes.iter().try_for_each(|(id, size)| statement.execute(params![id, sql_time(*size)]).map(drop))
        })
    }

    /// The roots of an event are gone, and its tasks are not.
    ///
    /// # Errors
    /// What SQLite says.
    pub fn unrooted(&mut self, event: &str) -> Result<(), JournalError> {
        self.write(|transaction| {
            transaction.prepare_cached("UPDATE events SET rooted = 0 WHERE id = ?1")?.execute([event]).map(drop)
        })
    }

    /// Is an event of this id in the journal?
    ///
    /// # Errors
    /// What SQLite says.
    pub fn knows(&self, event: &str) -> Result<bool, JournalError> {
        self.read(|connection| {
            let found: Option<i64> = connection
                .prepare_cached("SELECT 1 FROM events WHERE id = ?1")?
                .query_row([event], |row| row.get(0))
                .optional()?;
            Ok(found.is_some())
        })
    }
}
