//! The garbage-collector roots of events, with their age and size. Unfinished events and events
//! with a dead letter have roots.

use rusqlite::{OptionalExtension as _, params};

use super::{Journal, JournalError, columns, sql_count, sql_time};
use hookrun_nix::event::{Event, NixDirs};

/// The sum of all roots.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Roots {
    /// The number of roots.
    pub count: u64,
    /// The size of the rooted paths in bytes, without their closures. Roots of unknown size are not
    /// included.
    pub bytes: u64,
    /// The number of roots that exist only for dead letters.
    pub dead_count: u64,
    /// The size of their paths in bytes.
    pub dead_bytes: u64,
}

impl Journal {
    /// Returns up to `limit` events with roots of unknown size.
    ///
    /// # Errors
    /// SQLite reports an error.
    pub fn unmeasured(&self, limit: usize) -> Result<Vec<Event>, JournalError> {
        self.read(|connection| {
            let mut statement = connection.prepare_cached(
                "SELECT body, id FROM events WHERE rooted > 0 AND nar_size IS NULL LIMIT ?1",
            )?;
            let rows = statement
                .query_map([sql_count(limit)], |row| Ok(columns::event(row, 0, 1).ok()))?;
            rows.filter_map(Result::transpose).collect()
        })
    }

    /// Returns the events whose roots are older than `taken_before_ms`, or which together with all
    /// newer ones exceed `max_size` bytes. The first value is whether the roots are too old. For
    /// the size, dead letters come after all unfinished events, so that they do not take roots from
    /// them.
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
                Ok(columns::json(row, 1).ok().map(|event| (row.get(0), event)))
            })?;
            let readable = rows.filter_map(Result::transpose);
            readable.map(|row| row.and_then(|(too_old, event)| Ok((too_old?, event)))).collect()
        })
    }

    /// Returns the stores of events with roots.
    ///
    /// # Errors
    /// SQLite reports an error.
    pub fn rooted_stores(&self) -> Result<Vec<NixDirs>, JournalError> {
        self.read(|connection| {
            let mut statement = connection
                .prepare_cached("SELECT DISTINCT CASE WHEN json_valid(body) THEN body ->> '$.nix' END FROM events WHERE rooted > 0")?;
            let rows = statement.query_map([], |row| Ok(columns::json(row, 0).ok()))?;
            rows.filter_map(Result::transpose).collect()
        })
    }

    /// Returns the sum of all roots.
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
                        count: columns::count(row, 0)?,
                        bytes: columns::count(row, 1)?,
                        dead_count: columns::count(row, 2)?,
                        dead_bytes: columns::count(row, 3)?,
                    })
                },
            )
        })
    }

    /// Stores measured sizes by event id.
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

    /// Records that the roots of an event were removed while it still has tasks.
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

    /// Returns whether the event has roots, because a task is open or can be retried; none if the
    /// event is not in the journal.
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
