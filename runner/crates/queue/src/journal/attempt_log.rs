//! Queries of attempts, for `hookrun log` and `hookrun status`.

use std::collections::BTreeMap;

use rusqlite::ToSql;

use super::columns::{count, json, number, optional_text, read_class, text, time};
use super::query::{EventRef, NEXT, ORIGIN, STATE};
use super::{Journal, JournalError, TaskState, sql_count, sql_time};
use hookrun_nix::event::{Event, HookEvent, now_ms};
use hookrun_nix::evidence::Evidence;
use hookrun_nix::outcome::{Class, LogLine, Usage};

/// The number of newest attempts that [`Journal::records`] reads, so that its time does not grow
/// with the journal.
const RECORD_ROWS: i64 = 20_000;

/// An attempt, as commands show it.
#[derive(Debug, Clone, PartialEq, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct AttemptRow {
    /// The number of its row, which is greater for later attempts.
    #[serde(skip)]
    pub id: i64,
    /// Its event.
    #[serde(flatten)]
    pub event: EventRef,
    /// The plugin's name in the configuration.
    pub plugin: String,
    /// The number of the attempt, from 1.
    pub number: u32,
    /// The time when it began.
    pub start_ms: u64,
    /// The time when it ended.
    pub end_ms: u64,
    /// The class of the attempt.
    pub class: Class,
    /// The message of the attempt.
    pub message: String,
    /// The current state of the task.
    pub state: TaskState,
    /// The time when the task may run again.
    pub not_before_ms: Option<u64>,
    /// The resources that it used; none if it was interrupted.
    pub usage: Option<Usage>,
    /// The messages that the plugin logged.
    pub log: Vec<LogLine>,
    /// For a diff event: the result of the comparison.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub evidence: Option<Evidence>,
}

/// The outcome of the selected attempts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EndedAs {
    /// Attempts with this class.
    Class(Class),
    /// Attempts with any class except `done`.
    Failed,
    /// Attempts of dead letters and lost tasks.
    Dead,
}

/// The results of a plugin's newest attempts.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct PluginRecord {
    /// The number of successful attempts in the selected time.
    pub succeeded: u64,
    /// The number of failed attempts, without those that the end of a worker interrupted.
    pub failed: u64,
    /// The time of the last successful attempt.
    pub last_success_ms: Option<u64>,
}

/// Selects attempts.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LogFilter {
    /// A part of the derivation's name or store path.
    pub derivation: Option<String>,
    /// The plugin's name.
    pub plugin: Option<String>,
    /// The outcome.
    pub outcome: Option<EndedAs>,
    /// The attempt ended at this time or later, in milliseconds since 1970.
    pub since_ms: Option<u64>,
    /// The row comes after this one.
    pub after: Option<i64>,
    /// The number of newest attempts; none for all.
    pub limit: Option<usize>,
}

impl Journal {
    /// Returns the attempts that the filter admits, oldest first, with the current state of their
    /// tasks.
    ///
    /// # Errors
    /// SQLite reports an error.
    pub fn log(&self, filter: &LogFilter) -> Result<Vec<AttemptRow>, JournalError> {
        let LogFilter { derivation, plugin, outcome, since_ms, after, limit } = filter;
        let (class, failed, dead) = match outcome {
            None => (None, false, false),
            Some(EndedAs::Class(class)) => (Some(class), false, false),
            Some(EndedAs::Failed) => (None, true, false),
            Some(EndedAs::Dead) => (None, false, true),
        };
        let since = since_ms.map(sql_time);
        let limit = limit.map_or(-1, sql_count);
        self.read(|connection| {
            let mut statement = connection.prepare_cached(&format!(
                "SELECT attempts.event, kind, name, drv_path, attempts.plugin, number, start_ms, end_ms, attempts.class, attempts.message,
                        coalesce({STATE}, 'dropped'), {NEXT}, usage, log, attempts.id, {ORIGIN},
                        CASE kind WHEN 'diff' THEN body END
                 FROM attempts JOIN events ON events.id = attempts.event
                      LEFT JOIN tasks ON tasks.event = attempts.event AND tasks.plugin = attempts.plugin
                 WHERE (?2 IS NULL OR instr(name, ?2) OR instr(drv_path, ?2)) AND (?3 IS NULL OR attempts.plugin = ?3)
                       AND (?4 IS NULL OR attempts.class = ?4) AND (?5 IS NULL OR end_ms >= ?5)
                       AND (NOT ?7 OR attempts.class <> 'done') AND (NOT ?8 OR state IN ('dead', 'lost'))
                       AND (?9 IS NULL OR attempts.id > ?9)
                 ORDER BY attempts.id DESC LIMIT ?6"
            ))?;
            let now = sql_time(now_ms());
            let values: [&dyn ToSql; 9] =
                [&now, derivation, plugin, &class, &since, &limit, &failed, &dead, after];
            let rows = statement.query_map(values, |row| {
                let class = read_class(&text(row, 8)?);
                Ok(AttemptRow {
                    id: row.get(14)?,
                    event: EventRef::read(row, 15)?,
                    plugin: text(row, 4)?,
                    number: number(row, 5)?,
                    start_ms: count(row, 6)?,
                    end_ms: count(row, 7)?,
                    message: text(row, 9)?,
                    state: TaskState::from_query(&text(row, 10)?),
                    not_before_ms: time(row, 11)?,
                    // If the value cannot be read, the attempt is shown without it.
                    usage: if class == Class::Interrupted { None } else { json(row, 12).ok() },
                    log: json(row, 13).unwrap_or_default(),
                    class,
                    evidence: optional_text(row, 16)?.and_then(|body| evidence(&body)),
                })
            })?;
            let mut rows: Vec<AttemptRow> = rows.collect::<rusqlite::Result<_>>()?;
            rows.reverse();
            Ok(rows)
        })
    }

    /// Returns the results of the newest attempts of every plugin, counted from `since_ms`.
    ///
    /// # Errors
    /// SQLite reports an error.
    pub fn records(&self, since_ms: u64) -> Result<BTreeMap<String, PluginRecord>, JournalError> {
        self.read(|connection| {
            let mut statement = connection.prepare_cached(
                "SELECT plugin, count(*) FILTER (WHERE class = 'done' AND end_ms >= ?1),
                        count(*) FILTER (WHERE class NOT IN ('done', 'interrupted') AND end_ms >= ?1),
                        max(end_ms) FILTER (WHERE class = 'done')
                 FROM attempts WHERE id > (SELECT max(id) FROM attempts) - ?2 GROUP BY plugin",
            )?;
            let rows = statement.query_map(rusqlite::params![sql_time(since_ms), RECORD_ROWS], |row| {
                let record =
                    PluginRecord { succeeded: count(row, 1)?, failed: count(row, 2)?, last_success_ms: time(row, 3)? };
                Ok((text(row, 0)?, record))
            })?;
            rows.collect()
        })
    }

    /// Returns the row of the newest attempt; 0 if there is none.
    ///
    /// # Errors
    /// SQLite reports an error.
    pub fn newest_attempt(&self) -> Result<i64, JournalError> {
        self.read(|connection| {
            connection.query_row("SELECT coalesce(max(id), 0) FROM attempts", [], |row| row.get(0))
        })
    }
}

/// Returns the result of the comparison in a diff event; none if this release cannot read the
/// event.
fn evidence(body: &str) -> Option<Evidence> {
    match serde_json::from_str(body) {
        Ok(Event { hook: HookEvent::Diff(diff), .. }) => Some(diff.evidence),
        _ => None,
    }
}
