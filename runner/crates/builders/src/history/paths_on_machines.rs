//! Statements about store paths on machines, as far as builds have copied them there. The result is
//! an estimate, because machines collect garbage too.

use std::collections::BTreeMap;

use rusqlite::params;

use super::write::signed;
use super::{Record, RecordError};

/// The time in milliseconds after which a path may have been deleted from a machine.
const BELIEVED_FOR_MS: u64 = 14 * 24 * 60 * 60 * 1000;

impl Record {
    /// Records that `paths` are on `machine`.
    ///
    /// # Errors
    /// If the database cannot be written.
    pub fn record_paths_on<'p>(
        &mut self,
        machine: &str,
        paths: impl IntoIterator<Item = &'p str>,
        now_ms: u64,
    ) -> Result<(), RecordError> {
        let write = |connection: &mut rusqlite::Connection| {
            let transaction =
                connection.transaction_with_behavior(rusqlite::TransactionBehavior::Immediate)?;
            {
                let mut statement = transaction.prepare_cached(
                    "insert into present (path, machine, seen_ms) values (?1, ?2, ?3)
                     on conflict (path, machine) do update set seen_ms = ?3",
                )?;
                for path in paths {
                    statement.execute(params![path, machine, signed(now_ms)])?;
                }
            }
            transaction.commit()
        };
        write(&mut self.connection).map_err(|error| self.failed(error))
    }

    /// Returns for each machine, by URI, how many bytes of `paths` (with their sizes) it has.
    /// Unknown machines are missing.
    ///
    /// # Errors
    /// The database cannot be read.
    pub fn bytes_present(
        &self,
        paths: &[(String, u64)],
        now_ms: u64,
    ) -> Result<BTreeMap<String, u64>, RecordError> {
        let query = || -> Result<BTreeMap<String, u64>, rusqlite::Error> {
            let since = signed(now_ms.saturating_sub(BELIEVED_FOR_MS));
            let mut present = BTreeMap::new();
            let mut statement = self
                .connection
                .prepare_cached("select machine from present where path = ?1 and seen_ms >= ?2")?;
            for (path, size) in paths {
                for machine in
                    statement.query_map(params![path, since], |row| row.get::<_, String>(0))?
                {
                    let bytes: &mut u64 = present.entry(machine?).or_default();
                    *bytes = bytes.saturating_add(*size);
                }
            }
            Ok(present)
        };
        query().map_err(|error| self.failed(error))
    }

    /// Deletes rows that are too old.
    ///
    /// # Errors
    /// If the database cannot be written.
    pub(crate) fn forget_present(&self, now_ms: u64) -> Result<(), RecordError> {
        self.execute(
            "delete from present where seen_ms < ?1",
            params![signed(now_ms.saturating_sub(BELIEVED_FOR_MS))],
        )
    }
}
