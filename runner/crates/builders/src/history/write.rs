//! Statements for sessions. Each call is one transaction.

use rusqlite::{OptionalExtension as _, params};

use super::rows::{BuildOutcome, DecisionRow, MachineHealth, Move, NewBuild};
use super::{BUILDS_KEPT, DECISIONS_KEPT, KEPT_FOR, Record, RecordError};

/// The number of builds after which old rows are deleted.
const CLEAN_EVERY: i64 = 256;
/// The time in milliseconds after which a postponed derivation counts as new.
const POSTPONED_APART_MS: u64 = 120_000;
/// The weight of the newest copy in the average of transfer rates.
const NEWEST_SPEED: f64 = 0.3;
/// The longest message that is kept.
const MAX_ERROR: usize = 1000;

/// The end of a build.
#[derive(Debug, Clone, PartialEq)]
pub struct BuildEnd<'a> {
    /// The store URI of the last machine.
    pub machine: &'a str,
    /// The speed factor of that machine.
    pub speed_factor: f64,
    /// The time that it waited for a slot.
    pub waited_ms: u64,
    /// The time when the last machine had the inputs.
    pub started_ms: Option<u64>,
    /// The time when it ended.
    pub ended_ms: u64,
    /// The duration of the build in seconds, without copies.
    pub seconds: Option<f64>,
    /// The outcome.
    pub outcome: BuildOutcome,
    /// The reason, if it did not succeed.
    pub detail: Option<&'a str>,
    /// The size of the inputs.
    pub input_bytes: Option<u64>,
    /// The machines that lost it.
    pub moves: &'a [Move],
}

impl Record {
    /// Records that the machine answered, and resets its failures.
    ///
    /// # Errors
    /// If the database cannot be written.
    pub fn machine_answered(
        &self,
        machine: &str,
        connect_ms: u32,
        now_ms: u64,
    ) -> Result<(), RecordError> {
        self.execute(
            "insert into health (machine, failures, succeeded_ms, connect_ms) values (?1, 0, ?2, ?3)
             on conflict (machine) do update set failures = 0, retry_ms = null, succeeded_ms = ?2, connect_ms = ?3",
            params![machine, signed(now_ms), connect_ms],
        )
    }

    /// Records that the machine failed in an attempt that began at `began_ms`. An attempt that
    /// began before the last answer is ignored; one that began before the last failure counts as
    /// the same failure. `retry_ms` maps the number of failures to the time of the next attempt.
    ///
    /// # Errors
    /// If the database cannot be written.
    pub fn machine_failed(
        &mut self,
        machine: &str,
        why: &str,
        began_ms: u64,
        now_ms: u64,
        retry_ms: impl FnOnce(u32) -> u64,
    ) -> Result<(), RecordError> {
        let why: String = why.chars().take(MAX_ERROR).collect();
        let write = |connection: &mut rusqlite::Connection| {
            let transaction =
                connection.transaction_with_behavior(rusqlite::TransactionBehavior::Immediate)?;
            let known: Option<(u32, Option<i64>, Option<i64>)> = transaction
                .query_row(
                    "select failures, failed_ms, succeeded_ms from health where machine = ?1",
                    [machine],
                    |row| row.try_into(),
                )
                .optional()?;
            let (failures, failed, succeeded) = known.unwrap_or_default();
            let began = signed(began_ms);
            if succeeded.is_some_and(|succeeded| succeeded > began) {
                return Ok(());
            }
            let failures = if failures > 0 && failed.is_some_and(|failed| failed > began) {
                failures
            } else {
                failures + 1
            };
            transaction.execute(
                "insert into health (machine, failures, last_error, failed_ms, retry_ms) values (?1, ?2, ?3, ?4, ?5)
                 on conflict (machine) do update set failures = ?2, last_error = ?3, failed_ms = ?4, retry_ms = ?5",
                params![machine, failures, why, signed(now_ms), signed(retry_ms(failures))],
            )?;
            transaction.commit()
        };
        write(&mut self.connection).map_err(|error| self.failed(error))
    }

    /// Records the transfer rate of a copy to the machine.
    ///
    /// # Errors
    /// If the database cannot be written.
    pub fn machine_copied(&self, machine: &str, bytes_per_second: f64) -> Result<(), RecordError> {
        self.execute(
            "update health set bytes_per_second = coalesce(bytes_per_second * (1 - ?3) + ?2 * ?3, ?2) where machine = ?1",
            params![machine, bytes_per_second, NEWEST_SPEED],
        )
    }

    /// Records that a build was accepted. Returns its number for [`Record::end_build`].
    ///
    /// # Errors
    /// If the database cannot be written.
    pub fn begin_build(&self, build: &NewBuild<'_>) -> Result<i64, RecordError> {
        let NewBuild { candidate, command, machine, accepted_ms } = build;
        self.execute(
            "insert into builds (drv_path, name, pname, system, command, machine, speed_factor, accepted_ms, features)
             values (?1, ?2, ?3, ?4, ?5, ?6, 1, ?7, ?8)",
            params![
                candidate.drv_path,
                candidate.name,
                candidate.pname,
                candidate.system,
                command,
                machine,
                signed(*accepted_ms),
                serde_json::to_string(&candidate.required_features).unwrap_or_default()
            ],
        )?;
        let id = self.connection.last_insert_rowid();
        if id % CLEAN_EVERY == 0 {
            self.clean(id, *accepted_ms)?;
        }
        Ok(id)
    }

    /// Records how a build ended.
    ///
    /// # Errors
    /// If the database cannot be written.
    pub fn end_build(&self, id: i64, ended: &BuildEnd<'_>) -> Result<(), RecordError> {
        let BuildEnd {
            machine,
            speed_factor,
            waited_ms,
            started_ms,
            ended_ms,
            seconds,
            outcome,
            detail,
            input_bytes,
            moves,
        } = ended;
        let detail: Option<String> = detail.map(|text| text.chars().take(MAX_ERROR).collect());
        self.execute(
            "update builds set machine = ?2, speed_factor = ?3, waited_ms = ?4, started_ms = ?5, ended_ms = ?6, seconds = ?7,
             outcome = ?8, detail = ?9, input_bytes = ?10, moves = ?11 where id = ?1",
            params![
                id,
                machine,
                speed_factor,
                signed(*waited_ms),
                started_ms.map(signed),
                signed(*ended_ms),
                seconds,
                outcome.as_str(),
                detail,
                input_bytes.map(signed),
                serde_json::to_string(moves).unwrap_or_else(|_| "[]".to_owned()),
            ],
        )
    }

    /// Records that the end of the build is unknown.
    ///
    /// # Errors
    /// If the database cannot be written.
    pub fn abandon(&self, id: i64, detail: &str, now_ms: u64) -> Result<(), RecordError> {
        self.execute(
            "update builds set ended_ms = ?2, outcome = ?3, detail = ?4 where id = ?1 and outcome is null",
            params![id, signed(now_ms), BuildOutcome::Abandoned.as_str(), detail],
        )
    }

    /// Records an answer and the decision.
    ///
    /// # Errors
    /// If the database cannot be written.
    pub fn decided(&self, decision: &DecisionRow) -> Result<(), RecordError> {
        let Ok(text) = serde_json::to_string(decision) else { return Ok(()) };
        let DecisionRow { at_ms, candidate, .. } = decision;
        self.execute(
            "insert into decisions (drv_path, name, at_ms, decision) values (?1, ?2, ?3, ?4)",
            params![candidate.drv_path, candidate.name, signed(*at_ms), text],
        )?;
        let id = self.connection.last_insert_rowid();
        self.execute("delete from decisions where id <= ?1", params![id - DECISIONS_KEPT])
    }

    /// Records that the derivation is postponed. Returns the first time, in milliseconds since
    /// 1970.
    ///
    /// # Errors
    /// If the database cannot be written.
    pub fn postponed(&self, drv_path: &str, now_ms: u64) -> Result<u64, RecordError> {
        let gap = signed(now_ms.saturating_sub(POSTPONED_APART_MS));
        self.execute("delete from postponed where last_ms < ?1", params![gap])?;
        self.connection
            .query_row(
                "insert into postponed (drv_path, first_ms, last_ms) values (?1, ?2, ?2)
                 on conflict (drv_path) do update set last_ms = ?2 returning first_ms",
                params![drv_path, signed(now_ms)],
                |row| row.get(0),
            )
            .map(|first: i64| u64::try_from(first).unwrap_or_default())
            .map_err(|error| self.failed(error))
    }

    fn clean(&self, newest: i64, now_ms: u64) -> Result<(), RecordError> {
        let old =
            signed(now_ms.saturating_sub(u64::try_from(KEPT_FOR.as_millis()).unwrap_or(u64::MAX)));
        self.execute(
            "delete from builds where id <= ?1 or accepted_ms < ?2",
            params![newest - BUILDS_KEPT, old],
        )?;
        self.execute("delete from local_builds where declined_ms < ?1", params![old])?;
        self.forget_present(now_ms)?;
        self.execute(
            "delete from health where max(coalesce(failed_ms, 0), coalesce(succeeded_ms, 0)) < ?1",
            params![old],
        )
    }

    pub(crate) fn execute(
        &self,
        statement: &str,
        values: impl rusqlite::Params,
    ) -> Result<(), RecordError> {
        let executed = self
            .connection
            .prepare_cached(statement)
            .and_then(|mut statement| statement.execute(values));
        executed.map(|_rows| ()).map_err(|error| self.failed(error))
    }
}

/// Converts to the signed integers of SQLite.
pub(crate) fn signed(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

impl MachineHealth {
    /// Returns the health of an unknown machine.
    pub fn unknown(machine: &str) -> Self {
        Self { machine: machine.to_owned(), ..Self::default() }
    }
}
