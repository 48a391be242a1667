//! What `hookrun status` and `hookrun log` ask the journal.

use std::collections::{BTreeMap, BTreeSet};

use rusqlite::{Row, ToSql};

use super::{FILE, Journal, JournalError, sql_count, sql_time};
use crate::dirs::Dirs;
use crate::event::{Event, HookEvent};
use crate::evidence::Evidence;
use crate::outcome::{LogLine, Usage};

/// The tasks of one plugin, counted.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct PluginCounts {
    /// Its name in the configuration.
    pub plugin: String,
    /// May run now.
    pub due: u64,
    /// Wait for their time.
    pub waiting: u64,
    /// Run.
    pub running: u64,
    /// Ended well.
    pub done: u64,
    /// Dead letters.
    pub dead: u64,
    /// Could not begin.
    pub refused: u64,
    /// When Nix called the hook for the oldest that has not ended; milliseconds since 1970.
    pub oldest_ms: Option<u64>,
    /// When the first of those that wait may run.
    pub next_ms: Option<u64>,
}

/// The column with who told of an event, from its body: events of earlier releases do not say, and
/// came from hooks for all that is known.
const ORIGIN: &str =
    "coalesce(CASE WHEN json_valid(body) THEN json_extract(body, '$.origin') END, 'hook')";

/// A task, for people.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct TaskRow {
    /// The event's id.
    pub event: String,
    /// `post-build` or `diff`.
    pub kind: String,
    /// Who told of the event: `hook` or `sync`.
    pub origin: String,
    /// The derivation's name.
    pub name: String,
    /// The derivation's store path.
    pub drv_path: String,
    /// The plugin's name.
    pub plugin: String,
    /// `pending`, `blocked`, `running`, `done`, `dead` or `refused`.
    pub state: String,
    /// Attempts begun.
    pub attempts: u32,
    /// When it may run.
    pub not_before_ms: Option<u64>,
    /// Class of the last attempt.
    pub class: Option<String>,
    /// Sentence of the last attempt.
    pub message: Option<String>,
    /// When it last changed.
    pub updated_ms: u64,
}

/// One attempt, for people.
#[derive(Debug, Clone, PartialEq, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct AttemptRow {
    /// Its row: later attempts have greater ones.
    #[serde(skip)]
    pub id: i64,
    /// The event's id.
    pub event: String,
    /// `post-build` or `diff`.
    pub kind: String,
    /// Who told of the event: `hook` or `sync`.
    pub origin: String,
    /// The derivation's name.
    pub name: String,
    /// The derivation's store path.
    pub drv_path: String,
    /// The plugin's name.
    pub plugin: String,
    /// 1 for the first.
    pub number: u32,
    /// When it began.
    pub start_ms: u64,
    /// When it ended.
    pub end_ms: u64,
    /// `done`, `permanent`, `transient`, `trapped`, `limit`, `refused` or `interrupted`.
    pub class: String,
    /// Its sentence.
    pub message: String,
    /// State of the task now; `dropped` if somebody removed it.
    pub state: String,
    /// When the task may run again, while it is pending.
    pub not_before_ms: Option<u64>,
    /// What it used; none if it was interrupted.
    pub usage: Option<Usage>,
    /// What the plugin logged.
    pub log: Vec<LogLine>,
    /// Of a diff event: what the comparison found.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub evidence: Option<Evidence>,
}

/// How an attempt that is asked for ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EndedAs {
    /// With this class, such as `done`.
    Class(String),
    /// With any class but `done`.
    Failed,
    /// Its task was given up.
    Dead,
}

/// What a plugin's newest attempts gave.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct PluginRecord {
    /// Attempts that ended well in the time asked for.
    pub succeeded: u64,
    /// Attempts that did not; those that a worker's end cut short do not count.
    pub failed: u64,
    /// When an attempt last ended well.
    pub last_success_ms: Option<u64>,
}

/// A journal's file: device and inode. Another one stands for another journal.
pub type FileId = (u64, u64);

/// Attempts that [`Journal::records`] looks at, the newest, so that it takes no longer the more
/// there are.
const RECORD_ROWS: i64 = 20_000;

/// Which attempts are asked for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LogFilter {
    /// Part of the derivation's name or store path.
    pub derivation: Option<String>,
    /// The plugin's name.
    pub plugin: Option<String>,
    /// How they ended.
    pub outcome: Option<EndedAs>,
    /// Ended since then; milliseconds since 1970.
    pub since_ms: Option<u64>,
    /// Rows after this one.
    pub after: Option<i64>,
    /// The newest so many; all, if none.
    pub limit: Option<usize>,
}

impl Journal {
    /// The tasks of every plugin that has any, counted.
    ///
    /// # Errors
    /// What SQLite says.
    pub fn counts(&self, now_ms: u64) -> Result<Vec<PluginCounts>, JournalError> {
        self.counts_of(None, now_ms)
    }

    /// How many events were handed over since `since_ms`, and their tasks, counted by plugin. An
    /// event that stands for one of them counts in its place.
    ///
    /// # Errors
    /// What SQLite says.
    pub fn since(
        &self,
        since_ms: u64,
        now_ms: u64,
    ) -> Result<(u64, Vec<PluginCounts>), JournalError> {
        let events = self.read(|connection| {
            connection.query_row(
                "SELECT count(*) FROM events WHERE time_ms >= ?1",
                [sql_time(since_ms)],
                |row| count(row, 0),
            )
        })?;
        Ok((events, self.counts_of(Some(since_ms), now_ms)?))
    }

    /// The events handed over since `since_ms` that no plugin was given, neither themselves nor an
    /// earlier event that says the same. Those that this release cannot read are left out.
    ///
    /// # Errors
    /// SQLite reports an error.
    pub fn events_without_tasks(&self, since_ms: u64) -> Result<Vec<Event>, JournalError> {
        self.read(|connection| {
            let mut statement = connection.prepare_cached(
                "SELECT body FROM events WHERE time_ms >= ?1 AND merged_into IS NULL
                        AND NOT EXISTS (SELECT 1 FROM tasks WHERE tasks.event = events.id)",
            )?;
            let bodies =
                statement.query_map([sql_time(since_ms)], |row| row.get::<_, String>(0))?;
            let bodies: Vec<String> = bodies.collect::<rusqlite::Result<_>>()?;
            Ok(bodies.iter().filter_map(|body| serde_json::from_str(body).ok()).collect())
        })
    }

    fn counts_of(
        &self,
        since_ms: Option<u64>,
        now_ms: u64,
    ) -> Result<Vec<PluginCounts>, JournalError> {
        self.read(|connection| {
            let mut statement = connection.prepare_cached(
                "SELECT plugin,
                        count(*) FILTER (WHERE state = 'pending' AND not_before_ms <= ?1),
                        count(*) FILTER (WHERE state = 'blocked' OR (state = 'pending' AND not_before_ms > ?1)),
                        count(*) FILTER (WHERE state = 'running'), count(*) FILTER (WHERE state = 'done'),
                        count(*) FILTER (WHERE state = 'dead'), count(*) FILTER (WHERE state = 'refused'),
                        min(events.time_ms) FILTER (WHERE state IN ('pending', 'blocked', 'running', 'refused')),
                        min(not_before_ms) FILTER (WHERE state = 'pending' AND not_before_ms > ?1)
                 FROM tasks JOIN events ON events.id = tasks.event
                 WHERE ?2 IS NULL OR events.id IN (SELECT coalesce(merged_into, id) FROM events WHERE time_ms >= ?2)
                 GROUP BY plugin ORDER BY plugin",
            )?;
            let rows = statement.query_map(rusqlite::params![sql_time(now_ms), since_ms.map(sql_time)], |row| {
                Ok(PluginCounts {
                    plugin: row.get(0)?,
                    due: count(row, 1)?,
                    waiting: count(row, 2)?,
                    running: count(row, 3)?,
                    done: count(row, 4)?,
                    dead: count(row, 5)?,
                    refused: count(row, 6)?,
                    oldest_ms: time(row, 7)?,
                    next_ms: time(row, 8)?,
                })
            })?;
            rows.collect()
        })
    }

    /// The store paths of outputs that post-build events told of, of all or of those handed over
    /// since `since_ms`. An event that this release cannot read tells none.
    ///
    /// # Errors
    /// What SQLite says.
    pub fn outputs(&self, since_ms: Option<u64>) -> Result<BTreeSet<String>, JournalError> {
        self.read(|connection| {
            let mut statement = connection
                .prepare_cached("SELECT body FROM events WHERE kind = 'post-build' AND (?1 IS NULL OR time_ms >= ?1)")?;
            let bodies = statement.query_map([since_ms.map(sql_time)], |row| row.get::<_, String>(0))?;
            let mut paths = BTreeSet::new();
            for body in bodies {
                if let Ok(Event { hook: HookEvent::PostBuild(event), .. }) = serde_json::from_str(&body?) {
                    paths.extend(event.outputs.into_iter().map(|output| output.path));
                }
            }
            Ok(paths)
        })
    }

    /// The tasks in one state, such as `dead`, those that changed last first.
    ///
    /// # Errors
    /// What SQLite says.
    pub fn tasks_in_state(&self, state: &str, limit: usize) -> Result<Vec<TaskRow>, JournalError> {
        self.some_tasks(
            "WHERE state = ?1 ORDER BY updated_ms DESC, event LIMIT ?2",
            &[&state, &sql_count(limit)],
        )
    }

    /// All tasks, oldest event first.
    ///
    /// # Errors
    /// What SQLite says.
    pub fn tasks(&self) -> Result<Vec<TaskRow>, JournalError> {
        self.some_tasks("ORDER BY time_ms, event, plugin", &[])
    }

    fn some_tasks(&self, which: &str, values: &[&dyn ToSql]) -> Result<Vec<TaskRow>, JournalError> {
        self.read(|connection| {
            let mut statement = connection.prepare_cached(&format!(
                "SELECT event, kind, name, drv_path, plugin, state, attempts, nullif(not_before_ms, 0), class, message, updated_ms,
                        {ORIGIN}
                 FROM tasks JOIN events ON events.id = tasks.event {which}"
            ))?;
            let rows = statement.query_map(values, |row| {
                Ok(TaskRow {
                    event: row.get(0)?,
                    kind: row.get(1)?,
                    name: row.get(2)?,
                    drv_path: row.get(3)?,
                    plugin: row.get(4)?,
                    state: row.get(5)?,
                    attempts: row.get(6)?,
                    not_before_ms: time(row, 7)?,
                    class: row.get(8)?,
                    message: row.get(9)?,
                    updated_ms: count(row, 10)?,
                    origin: row.get(11)?,
                })
            })?;
            rows.collect()
        })
    }

    /// The attempts that the filter admits, oldest first.
    ///
    /// # Errors
    /// What SQLite says.
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
                        coalesce(state, 'dropped'), CASE state WHEN 'pending' THEN nullif(not_before_ms, 0) END, usage, log,
                        attempts.id, {ORIGIN}, CASE kind WHEN 'diff' THEN body END
                 FROM attempts JOIN events ON events.id = attempts.event
                      LEFT JOIN tasks ON tasks.event = attempts.event AND tasks.plugin = attempts.plugin
                 WHERE (?1 IS NULL OR instr(name, ?1) OR instr(drv_path, ?1)) AND (?2 IS NULL OR attempts.plugin = ?2)
                       AND (?3 IS NULL OR attempts.class = ?3) AND (?4 IS NULL OR end_ms >= ?4)
                       AND (NOT ?6 OR attempts.class <> 'done') AND (NOT ?7 OR state = 'dead')
                       AND (?8 IS NULL OR attempts.id > ?8)
                 ORDER BY attempts.id DESC LIMIT ?5"
            ))?;
            let values: [&dyn ToSql; 8] = [derivation, plugin, &class, &since, &limit, &failed, &dead, after];
            let rows = statement.query_map(values, |row| {
                let class: String = row.get(8)?;
                Ok(AttemptRow {
                    id: row.get(14)?,
                    event: row.get(0)?,
                    kind: row.get(1)?,
                    name: row.get(2)?,
                    drv_path: row.get(3)?,
                    plugin: row.get(4)?,
                    number: row.get(5)?,
                    start_ms: count(row, 6)?,
                    end_ms: count(row, 7)?,
                    message: row.get(9)?,
                    state: row.get(10)?,
                    not_before_ms: time(row, 11)?,
                    usage: if class == "interrupted" { None } else { Some(json(row, 12)?) },
                    log: json(row, 13)?,
                    class,
                    origin: row.get(15)?,
                    evidence: row.get::<_, Option<String>>(16)?.and_then(|body| evidence(&body)),
                })
            })?;
            let mut rows: Vec<AttemptRow> = rows.collect::<rusqlite::Result<_>>()?;
            rows.reverse();
            Ok(rows)
        })
    }

    /// What the newest attempts of every plugin gave, counted from `since_ms` on.
    ///
    /// # Errors
    /// What SQLite says.
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
                Ok((row.get(0)?, record))
            })?;
            rows.collect()
        })
    }

    /// The plugins that have tasks or attempts.
    ///
    /// # Errors
    /// SQLite reports an error.
    pub fn plugins(&self) -> Result<Vec<String>, JournalError> {
        self.read(|connection| {
            let mut statement = connection
                .prepare_cached("SELECT plugin FROM tasks UNION SELECT plugin FROM attempts")?;
            let rows = statement.query_map([], |row| row.get(0))?;
            rows.collect()
        })
    }

    /// The row of the newest attempt; 0 if there is none.
    ///
    /// # Errors
    /// What SQLite says.
    pub fn newest_attempt(&self) -> Result<i64, JournalError> {
        self.read(|connection| {
            connection.query_row("SELECT coalesce(max(id), 0) FROM attempts", [], |row| row.get(0))
        })
    }

    /// A number that changes when another process has changed the journal
    /// (<https://www.sqlite.org/pragma.html#pragma_data_version>).
    ///
    /// # Errors
    /// What SQLite says.
    pub fn data_version(&self) -> Result<i64, JournalError> {
        self.read(|connection| connection.query_row("PRAGMA data_version", [], |row| row.get(0)))
    }
}

/// What the comparison of a diff event found; none if this release cannot read the event.
fn evidence(body: &str) -> Option<Evidence> {
    match serde_json::from_str(body) {
        Ok(Event { hook: HookEvent::Diff(diff), .. }) => Some(diff.evidence),
        _ => None,
    }
}

/// The journal's file as it is now; none if there is none.
pub fn file_id(dirs: &Dirs) -> Option<FileId> {
    use std::os::unix::fs::MetadataExt as _;
    std::fs::metadata(dirs.journal().join(FILE)).ok().map(|found| (found.dev(), found.ino()))
}

/// A count or a time that is never negative.
pub(super) fn count(row: &Row<'_>, column: usize) -> rusqlite::Result<u64> {
    Ok(u64::try_from(row.get::<_, i64>(column)?).unwrap_or(0))
}

pub(super) fn time(row: &Row<'_>, column: usize) -> rusqlite::Result<Option<u64>> {
    Ok(row.get::<_, Option<i64>>(column)?.map(|value| u64::try_from(value).unwrap_or(0)))
}

pub(super) fn json<T: serde::de::DeserializeOwned>(
    row: &Row<'_>,
    column: usize,
) -> rusqlite::Result<T> {
    let text: String = row.get(column)?;
    serde_json::from_str(&text).map_err(|error| {
        rusqlite::Error::FromSqlConversionFailure(
            column,
            rusqlite::types::Type::Text,
            Box::new(error),
        )
    })
}
