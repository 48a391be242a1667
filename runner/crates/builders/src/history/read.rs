//! Queries of the record.

use std::collections::BTreeMap;

use rusqlite::{Row, params};

use super::rows::{BuildOutcome, BuildRow, DecisionRow, MachineHealth, Past};
use super::{Record, RecordError};
use crate::slots::sessions::Command;
use hookrun_nix::selection::PastBuilds;

/// The number of past builds of one package name that are read, newest first. Older builds are of
/// other versions.
const PAST_BUILDS: i64 = 32;
/// The reason of a build whose session was killed before it could record one.
const KILLED: &str = "Nix and the build hook were killed";

/// Selects rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RowSelection<'a> {
    /// The newest rows, up to this number.
    Last(u32),
    /// All rows of the derivation with this store path.
    Derivation(&'a str),
}

impl Record {
    /// Returns the health of every machine that was ever tried, by URI.
    ///
    /// # Errors
    /// The database cannot be read.
    pub fn machines(&self) -> Result<BTreeMap<String, MachineHealth>, RecordError> {
        let query = || -> Result<BTreeMap<String, MachineHealth>, rusqlite::Error> {
            let mut statement = self.connection.prepare_cached(
                "select machine, failures, last_error, failed_ms, retry_ms, succeeded_ms, connect_ms, bytes_per_second from health",
            )?;
            let rows = statement.query_map([], |row| {
                Ok(MachineHealth {
                    machine: row.get(0)?,
                    failures: row.get(1)?,
                    last_error: row.get(2)?,
                    failed_ms: time(row, 3)?,
                    retry_ms: time(row, 4)?,
                    succeeded_ms: time(row, 5)?,
                    connect_ms: row.get(6)?,
                    bytes_per_second: row.get(7)?,
                })
            })?;
            rows.map(|row| row.map(|health| (health.machine.clone(), health))).collect()
        };
        query().map_err(|error| self.failed(error))
    }

    /// Returns past durations of `pname` on `system`.
    ///
    /// # Errors
    /// The database cannot be read.
    pub fn past(&self, pname: &str, system: &str) -> Result<Past, RecordError> {
        let query = || -> Result<Vec<(String, f64, f64)>, rusqlite::Error> {
            let mut statement = self.connection.prepare_cached(
                "select machine, seconds, speed_factor from builds
                 where pname = ?1 and system = ?2 and outcome = 'built' and seconds is not null order by ended_ms desc limit ?3",
            )?;
            let rows =
                statement.query_map(params![pname, system, PAST_BUILDS], |row| row.try_into())?;
            rows.collect()
        };
        Ok(past(&query().map_err(|error| self.failed(error))?))
    }

    /// Returns builds, newest first.
    ///
    /// # Errors
    /// The database cannot be read.
    pub fn builds(&self, selection: RowSelection<'_>) -> Result<Vec<BuildRow>, RecordError> {
        let (condition, limit, drv_path) = conditions(selection);
        let query = || -> Result<Vec<BuildRow>, rusqlite::Error> {
            let mut statement = self.connection.prepare_cached(&format!(
                "select id, drv_path, name, pname, system, command, machine, speed_factor, accepted_ms, waited_ms, started_ms, ended_ms,
                 seconds, outcome, detail, input_bytes, moves, features from builds where {condition} order by id desc limit ?1"
            ))?;
            let rows = statement.query_map(params![limit, drv_path], build)?;
            rows.collect()
        };
        query().map_err(|error| self.failed(error))
    }

    /// Returns decisions, newest first.
    ///
    /// # Errors
    /// The database cannot be read.
    pub fn decisions(&self, selection: RowSelection<'_>) -> Result<Vec<DecisionRow>, RecordError> {
        let (condition, limit, drv_path) = conditions(selection);
        let query = || -> Result<Vec<String>, rusqlite::Error> {
            let mut statement = self.connection.prepare_cached(&format!(
                "select decision from decisions where {condition} order by id desc limit ?1"
            ))?;
            let rows = statement.query_map(params![limit, drv_path], |row| row.get(0))?;
            rows.collect()
        };
        let texts = query().map_err(|error| self.failed(error))?;
        Ok(texts.iter().filter_map(|text| serde_json::from_str(text).ok()).collect())
    }
}

fn conditions(selection: RowSelection<'_>) -> (&'static str, i64, &str) {
    match selection {
        RowSelection::Last(count) => ("?2 = ''", i64::from(count), ""),
        RowSelection::Derivation(drv_path) => ("drv_path = ?2", -1, drv_path),
    }
}

fn build(row: &Row<'_>) -> Result<BuildRow, rusqlite::Error> {
    let outcome: Option<String> = row.get(13)?;
    let outcome =
        outcome.and_then(|word| BuildOutcome::ALL.into_iter().find(|known| known.as_str() == word));
    let moves: String = row.get(16)?;
    let features: Option<String> = row.get(17)?;
    let command: String = row.get(5)?;
    // A killed session has written no outcome. No session outlives its Nix.
    let killed = outcome.is_none() && Command::is_gone(&command);
    let (outcome, why) = if killed {
        (Some(BuildOutcome::Abandoned), Some(KILLED.to_owned()))
    } else {
        (outcome, None)
    };
    Ok(BuildRow {
        id: row.get(0)?,
        drv_path: row.get(1)?,
        name: row.get(2)?,
        pname: row.get(3)?,
        system: row.get(4)?,
        required_features: features
            .and_then(|text| serde_json::from_str(&text).ok())
            .unwrap_or_default(),
        command,
        machine: row.get(6)?,
        speed_factor: row.get(7)?,
        accepted_ms: time(row, 8)?.unwrap_or_default(),
        waited_ms: time(row, 9)?,
        started_ms: time(row, 10)?,
        ended_ms: time(row, 11)?,
        seconds: row.get(12)?,
        outcome,
        detail: row.get::<_, Option<String>>(14)?.or(why),
        input_bytes: time(row, 15)?,
        moves: serde_json::from_str(&moves).unwrap_or_default(),
    })
}

/// Reads a count, which SQLite stores as a signed number.
fn time(row: &Row<'_>, index: usize) -> Result<Option<u64>, rusqlite::Error> {
    Ok(row.get::<_, Option<i64>>(index)?.and_then(|value| u64::try_from(value).ok()))
}

/// Returns medians of (machine, seconds, speed factor).
fn past(builds: &[(String, f64, f64)]) -> Past {
    let expected_seconds =
        median(builds.iter().map(|(_, seconds, factor)| seconds * factor).collect());
    let mut by_machine: BTreeMap<String, Vec<f64>> = BTreeMap::new();
    for (machine, seconds, _) in builds {
        by_machine.entry(machine.clone()).or_default().push(*seconds);
    }
    let machines = by_machine.into_iter().filter_map(|(machine, seconds)| {
        let count = u32::try_from(seconds.len()).unwrap_or(u32::MAX);
        median(seconds).map(|median_seconds| (machine, PastBuilds { count, median_seconds }))
    });
    Past { expected_seconds, machines: machines.collect() }
}

pub(crate) fn median(mut values: Vec<f64>) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    let (upper, lower) =
        (values.get(values.len() / 2)?, values.get(values.len().saturating_sub(1) / 2)?);
    Some(f64::midpoint(*upper, *lower))
}
