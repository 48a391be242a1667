//! Statements about builds on this machine: those that may still run, and the durations of the
//! others.

use rusqlite::params;

use super::read::median;
use super::write::signed;
use super::{Record, RecordError};
use hookrun_nix::selection::{Candidate, PastBuilds};

/// The number of past builds of one package name that are read, newest first.
const PAST_BUILDS: i64 = 32;
/// The number of open builds that are read, newest first; more than any machine runs at once.
const OPEN: i64 = 512;
/// The time in milliseconds after which the end of a build is no longer expected. Nix does not
/// report builds that failed.
const GIVEN_UP_AFTER_MS: u64 = 2 * 24 * 60 * 60 * 1000;

/// A build that was left to this machine and is not known to have ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LocalBuild {
    /// The full store path of the `.drv` file.
    pub drv_path: String,
    /// The Nix process that asked.
    pub command: String,
    /// The file that Nix keeps locked while it builds; empty if it is not known.
    pub lock: String,
    /// The time when Nix got the answer.
    pub declined_ms: u64,
    /// Whether this machine had a free slot, so that the build started immediately.
    pub willing: bool,
}

impl Record {
    /// Records that Nix builds `candidate` on this machine.
    ///
    /// # Errors
    /// If the database cannot be written.
    pub fn begin_local(
        &self,
        candidate: &Candidate,
        build: &LocalBuild,
    ) -> Result<(), RecordError> {
        let LocalBuild { drv_path, command, lock, declined_ms, willing } = build;
        self.execute(
            "insert into local_builds (drv_path, pname, system, command, lock, declined_ms, willing) values (?1, ?2, ?3, ?4, ?5, ?6, ?7)
             on conflict (drv_path) do update set command = ?4, lock = ?5, declined_ms = ?6, willing = ?7, ended_ms = null, seconds = null",
            params![drv_path, candidate.pname, candidate.system, command, lock, signed(*declined_ms), willing],
        )
    }

    /// Returns the builds that are not known to have ended, newest first.
    ///
    /// # Errors
    /// The database cannot be read.
    pub fn open_local(&self, now_ms: u64) -> Result<Vec<LocalBuild>, RecordError> {
        let query = || -> Result<Vec<LocalBuild>, rusqlite::Error> {
            let mut statement = self.connection.prepare_cached(
                "select drv_path, command, lock, declined_ms, willing from local_builds
                 where ended_ms is null and declined_ms >= ?1 order by declined_ms desc limit ?2",
            )?;
            let rows = statement.query_map(
                params![signed(now_ms.saturating_sub(GIVEN_UP_AFTER_MS)), OPEN],
                |row| {
                    Ok(LocalBuild {
                        drv_path: row.get(0)?,
                        command: row.get(1)?,
                        lock: row.get(2)?,
                        declined_ms: u64::try_from(row.get::<_, i64>(3)?).unwrap_or_default(),
                        willing: row.get(4)?,
                    })
                },
            )?;
            rows.collect()
        };
        query().map_err(|error| self.failed(error))
    }

    /// Records that a build has succeeded, with its duration if that is known.
    ///
    /// # Errors
    /// If the database cannot be written.
    pub fn end_local(
        &self,
        drv_path: &str,
        ended_ms: u64,
        seconds: Option<f64>,
    ) -> Result<(), RecordError> {
        self.execute(
            "update local_builds set ended_ms = ?2, seconds = ?3 where drv_path = ?1",
            params![drv_path, signed(ended_ms), seconds],
        )
    }

    /// Records that the build does not run on this machine after all.
    ///
    /// # Errors
    /// If the database cannot be written.
    pub fn not_local(&self, drv_path: &str) -> Result<(), RecordError> {
        self.execute(
            "delete from local_builds where drv_path = ?1 and ended_ms is null",
            params![drv_path],
        )
    }

    /// Returns the durations of builds of `pname` on this machine.
    ///
    /// # Errors
    /// The database cannot be read.
    pub fn past_local(&self, pname: &str, system: &str) -> Result<Option<PastBuilds>, RecordError> {
        let query = || -> Result<Vec<f64>, rusqlite::Error> {
            let mut statement = self.connection.prepare_cached(
                "select seconds from local_builds where pname = ?1 and system = ?2 and seconds is not null order by ended_ms desc limit ?3",
            )?;
            statement.query_map(params![pname, system, PAST_BUILDS], |row| row.get(0))?.collect()
        };
        let seconds = query().map_err(|error| self.failed(error))?;
        let count = u32::try_from(seconds.len()).unwrap_or(u32::MAX);
        Ok(median(seconds).map(|median_seconds| PastBuilds { count, median_seconds }))
    }
}
