//! Which events have garbage-collector roots, how old they are and how large: those that have not
//! ended, and those with a dead letter.

use rusqlite::{OptionalExtension as _, params};

use super::{Journal, JournalError, query, sql_count, sql_time};
use hookrun_nix::event::{Event, NixDirs};

/// All roots together.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Roots {
    /// Roots.
    pub count: u64,
    /// Bytes of what they keep, without what that refers to; a root whose size is not known yet
    /// counts as nothing.
    pub bytes: u64,
    /// How many of these are there for dead letters only.
    pub dead_count: u64,
    /// Bytes of what those keep.
    pub dead_bytes: u64,
}

impl Journal {
    /// Up to `limit` events with roots whose size nobody has found out yet.
    ///
    /// # Errors
    /// SQLite reports an error.
    pub fn unmeasured(&self, limit: usize) -> Result<Vec<Event>, JournalError> {
        self.read(|connection| {
            let mut statement = connection.prepare_cached(
                "SELECT body, id FROM events WHERE rooted > 0 AND nar_size IS NULL LIMIT ?1",
            )?;
            let rows =
                statement.query_map([sql_count(limit)], |row| Ok(query::event(row, 0, 1).ok()))?;
            rows.filter_map(Result::transpose).collect()
        })
    }

    /// The events with roots that are older than `taken_before_ms`, or with which all newer ones
    /// are larger than `max_size` bytes together; the first value says which: true, too old. For
    /// the size dead letters come after everything that has not ended, so that they cost it no
    /// root.
    ///
    /// # Errors
    /// SQLite reports an error.
    pub fn rooted_beyond(
        &self,
        taken_before_ms: u64,
        max_size: u64,
    ) -> Result<Vec<(bool, Event)>, JournalError> {
        self.read(|connection| {
            let mut statement = connection.prepare_cached(
                "SELECT taken_ms < ?1, body FROM
                     (SELECT taken_ms, body, sum(nar_size) OVER (ORDER BY ended_ms IS NOT NULL, id DESC) AS size FROM events WHERE rooted > 0)
                 WHERE taken_ms < ?1 OR size > ?2",
            )?;
            let rows = statement.query_map(params![sql_time(taken_before_ms), sql_time(max_size)], |row| {
                Ok(query::json(row, 1).ok().map(|event| (row.get(0), event)))
            })?;
            let readable = rows.filter_map(Result::transpose);
            readable.map(|row| row.and_then(|(too_old, event)| Ok((too_old?, event)))).collect()
        })
    }

    /// The stores of events with roots.
    ///
    /// # Errors
    /// SQLite reports an error.
    pub fn rooted_stores(&self) -> Result<Vec<NixDirs>, JournalError> {
        self.read(|connection| {
            let mut statement = connection
                .prepare_cached("SELECT DISTINCT CASE WHEN json_valid(body) THEN body ->> '$.nix' END FROM events WHERE rooted > 0")?;
            let rows = statement.query_map([], |row| Ok(query::json(row, 0).ok()))?;
            rows.filter_map(Result::transpose).collect()
        })
    }

    /// All roots together.
    ///
    /// # Errors
    /// SQLite reports an error.
    pub fn roots(&self) -> Result<Roots, JournalError> {
        self.read(|connection| {
            connection.query_row(
                "SELECT coalesce(sum(rooted), 0), coalesce(sum(nar_size), 0),
                        coalesce(sum(rooted) FILTER (WHERE ended_ms IS NOT NULL), 0),
                        coalesce(sum(nar_size) FILTER (WHERE ended_ms IS NOT NULL), 0)
                 FROM events WHERE rooted > 0",
                [],
                |row| {
                    Ok(Roots {
                        count: query::count(row, 0)?,
                        bytes: query::count(row, 1)?,
                        dead_count: query::count(row, 2)?,
                        dead_bytes: query::count(row, 3)?,
                    })
                },
            )
        })
    }

    /// Sizes that were found out, by event id.
    ///
    /// # Errors
    /// SQLite reports an error.
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
    /// SQLite reports an error.
    pub fn unrooted(&mut self, event: &str) -> Result<(), JournalError> {
        self.write(|transaction| {
            transaction
                .prepare_cached("UPDATE events SET rooted = 0 WHERE id = ?1")?
                .execute([event])
                .map(drop)
        })
    }

    /// Is something of the event still to be done or to be tried again, so that it has roots? None:
    /// it is not in the journal.
    ///
    /// # Errors
    /// SQLite reports an error.
    pub fn is_rooted(&self, event: &str) -> Result<Option<bool>, JournalError> {
        self.read(|connection| {
            connection
                .prepare_cached("SELECT rooted > 0 FROM events WHERE id = ?1")?
                .query_row([event], |row| row.get(0))
                .optional()
        })
    }
}
