//! Queries of events and tasks, for `hookrun status`, `hookrun queue` and `hookrun sync`.

use std::collections::BTreeSet;

use rusqlite::{Row, ToSql};

use super::columns::{count, json, number, optional_text, read_class, text, time};
use super::{FILE, Journal, JournalError, TaskState, sql_count, sql_time};
use hookrun_nix::dirs::Dirs;
use hookrun_nix::event::{Event, HookEvent, now_ms};
use hookrun_nix::outcome::Class;

/// The number of tasks of one plugin in each state.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct PluginCounts {
    /// The plugin's name in the configuration.
    pub plugin: String,
    /// Tasks that may run now.
    pub due: u64,
    /// Tasks that wait for their time, for another task, or until the plugin's service is available
    /// again.
    pub waiting: u64,
    /// Running tasks.
    pub running: u64,
    /// Tasks that succeeded.
    pub done: u64,
    /// Dead letters.
    pub dead: u64,
    /// Tasks that cannot run any longer.
    pub lost: u64,
    /// Tasks that are kept until the operator fixes something.
    pub refused: u64,
    /// The time when Nix called the hook for the oldest task that has not ended, in milliseconds
    /// since 1970.
    pub oldest_ms: Option<u64>,
    /// The time when the first waiting task may run.
    pub next_ms: Option<u64>,
}

/// The expression for the source of an event, from its body. Events of earlier releases do not
/// contain it, and count as events of hooks.
pub(super) const ORIGIN: &str =
    "coalesce(CASE WHEN json_valid(body) THEN json_extract(body, '$.origin') END, 'hook')";

/// The expression for the state of a task, in the word that all commands use, from the columns of
/// `tasks`. `?1` is the time. Tasks of a plugin with an open breaker wait, whatever their own time
/// is.
pub(super) const STATE: &str = "CASE tasks.state
     WHEN 'pending' THEN CASE WHEN tasks.not_before_ms > ?1 OR EXISTS
         (SELECT 1 FROM breakers WHERE breakers.plugin = tasks.plugin) THEN 'waiting' ELSE 'due' END
     WHEN 'blocked' THEN 'waiting'
     ELSE tasks.state END";

/// The expression for the time when a task may run next, as far as it is known.
pub(super) const NEXT: &str = "CASE tasks.state
     WHEN 'pending' THEN nullif(max(tasks.not_before_ms, coalesce(
         (SELECT until_ms FROM breakers WHERE breakers.plugin = tasks.plugin), 0)), 0)
     WHEN 'refused' THEN nullif(tasks.not_before_ms, 0) END";

/// The event of a row.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct EventRef {
    /// Its id.
    #[serde(rename = "event")]
    pub id: String,
    /// `post-build` or `diff`.
    pub kind: String,
    /// The source of the event: `hook` or `sync`.
    pub origin: String,
    /// The derivation's name.
    pub name: String,
    /// The derivation's store path.
    pub drv_path: String,
}

impl EventRef {
    /// Reads it from the first columns (id, kind, name, path of the derivation) and the column
    /// `origin`.
    pub(super) fn read(row: &Row<'_>, origin: usize) -> rusqlite::Result<Self> {
        Ok(Self {
            id: text(row, 0)?,
            kind: text(row, 1)?,
            origin: text(row, origin)?,
            name: text(row, 2)?,
            drv_path: text(row, 3)?,
        })
    }
}

/// A task, as commands show it.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct TaskRow {
    /// Its event.
    #[serde(flatten)]
    pub event: EventRef,
    /// The plugin's name in the configuration.
    pub plugin: String,
    /// The state of the task.
    pub state: TaskState,
    /// The number of attempts that have begun.
    pub attempts: u32,
    /// The time when it may run next.
    pub not_before_ms: Option<u64>,
    /// The class of the last attempt.
    pub class: Option<Class>,
    /// The message of the last attempt.
    pub message: Option<String>,
    /// The time when it last changed.
    pub updated_ms: u64,
}

/// The device and inode of a journal's file. Another file is another journal.
pub type FileId = (u64, u64);

impl Journal {
    /// Returns the numbers of tasks of every plugin that has any.
    ///
    /// # Errors
    /// SQLite reports an error.
    pub fn counts(&self, now_ms: u64) -> Result<Vec<PluginCounts>, JournalError> {
        self.counts_of(None, now_ms)
    }

    /// Returns the number of events that were handed over since `since_ms`, and the numbers of
    /// their tasks by plugin. If an event was merged into an earlier one, that one counts instead.
    ///
    /// # Errors
    /// SQLite reports an error.
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

    /// Returns the events handed over since `since_ms` that no plugin got, and no earlier equal
    /// event either. Events that this release cannot read are left out.
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
                "SELECT tasks.plugin,
                        count(*) FILTER (WHERE state = 'pending' AND not_before_ms <= ?1 AND until_ms IS NULL),
                        count(*) FILTER (WHERE state = 'blocked' OR (state = 'pending' AND (not_before_ms > ?1 OR until_ms IS NOT NULL))),
                        count(*) FILTER (WHERE state = 'running'), count(*) FILTER (WHERE state = 'done'),
                        count(*) FILTER (WHERE state = 'dead'), count(*) FILTER (WHERE state = 'lost'),
                        count(*) FILTER (WHERE state = 'refused'),
                        min(events.time_ms) FILTER (WHERE state IN ('pending', 'blocked', 'running', 'refused')),
                        min(max(not_before_ms, coalesce(until_ms, 0)))
                            FILTER (WHERE state = 'pending' AND (not_before_ms > ?1 OR until_ms > ?1))
                 FROM tasks JOIN events ON events.id = tasks.event LEFT JOIN breakers ON breakers.plugin = tasks.plugin
                 WHERE ?2 IS NULL OR events.id IN (SELECT coalesce(merged_into, id) FROM events WHERE time_ms >= ?2)
                 GROUP BY tasks.plugin ORDER BY tasks.plugin",
            )?;
            let rows = statement.query_map(rusqlite::params![sql_time(now_ms), since_ms.map(sql_time)], |row| {
                Ok(PluginCounts {
                    plugin: text(row, 0)?,
                    due: count(row, 1)?,
                    waiting: count(row, 2)?,
                    running: count(row, 3)?,
                    done: count(row, 4)?,
                    dead: count(row, 5)?,
                    lost: count(row, 6)?,
                    refused: count(row, 7)?,
                    oldest_ms: time(row, 8)?,
                    next_ms: time(row, 9)?,
                })
            })?;
            rows.collect()
        })
    }

    /// Returns the store paths of the outputs in post-build events, in all of them or in those
    /// handed over since `since_ms`. Events that this release cannot read are left out.
    ///
    /// # Errors
    /// SQLite reports an error.
    pub fn outputs(&self, since_ms: Option<u64>) -> Result<BTreeSet<String>, JournalError> {
        self.read(|connection| {
            let mut statement = connection
                .prepare_cached("SELECT body FROM events WHERE kind = 'post-build' AND (?1 IS NULL OR time_ms >= ?1)")?;
            output_paths(statement.query([since_ms.map(sql_time)])?)
        })
    }

    /// Returns the outputs of the events for which this plugin has a task that was done or can
    /// still be done.
    ///
    /// # Errors
    /// SQLite reports an error.
    pub fn outputs_for(&self, plugin: &str) -> Result<BTreeSet<String>, JournalError> {
        self.read(|connection| {
            let mut statement = connection.prepare_cached(
                "SELECT body FROM events JOIN tasks ON tasks.event = events.id
                 WHERE kind = 'post-build' AND plugin = ?1 AND state <> 'lost'",
            )?;
            output_paths(statement.query([plugin])?)
        })
    }

    /// Returns the tasks in one of these states, such as `dead`, starting with those that changed
    /// last.
    ///
    /// # Errors
    /// SQLite reports an error.
    pub fn tasks_in_state(
        &self,
        states: &[TaskState],
        limit: usize,
    ) -> Result<Vec<TaskRow>, JournalError> {
        let states: Vec<&str> = states.iter().map(|state| state.as_str()).collect();
        let states = format!("[\"{}\"]", states.join("\",\""));
        self.some_tasks(
            "WHERE state IN (SELECT value FROM json_each(?2)) ORDER BY updated_ms DESC, event LIMIT ?3",
            &[&sql_time(now_ms()), &states, &sql_count(limit)],
        )
    }

    /// Returns all tasks, sorted by the time of their events.
    ///
    /// # Errors
    /// SQLite reports an error.
    pub fn tasks(&self) -> Result<Vec<TaskRow>, JournalError> {
        self.some_tasks("ORDER BY time_ms, event, plugin", &[&sql_time(now_ms())])
    }

    fn some_tasks(&self, which: &str, values: &[&dyn ToSql]) -> Result<Vec<TaskRow>, JournalError> {
        self.read(|connection| {
            let mut statement = connection.prepare_cached(&format!(
                "SELECT event, kind, name, drv_path, plugin, {STATE}, attempts, {NEXT}, class, message, updated_ms,
                        {ORIGIN}
                 FROM tasks JOIN events ON events.id = tasks.event {which}"
            ))?;
            let rows = statement.query_map(values, |row| {
                Ok(TaskRow {
                    event: EventRef::read(row, 11)?,
                    plugin: text(row, 4)?,
                    state: TaskState::from_query(&text(row, 5)?),
                    attempts: number(row, 6)?,
                    not_before_ms: time(row, 7)?,
                    class: optional_text(row, 8)?.map(|word| read_class(&word)),
                    message: optional_text(row, 9)?,
                    updated_ms: count(row, 10)?,
                })
            })?;
            rows.collect()
        })
    }

    /// Returns the plugins that have tasks or attempts.
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

    /// Returns a number that changes when another process has changed the journal
    /// (<https://www.sqlite.org/pragma.html#pragma_data_version>).
    ///
    /// # Errors
    /// SQLite reports an error.
    pub fn data_version(&self) -> Result<i64, JournalError> {
        self.read(|connection| connection.query_row("PRAGMA data_version", [], |row| row.get(0)))
    }
}

/// Returns the identity of the journal's file; none if it does not exist.
pub fn file_id(dirs: &Dirs) -> Option<FileId> {
    use std::os::unix::fs::MetadataExt as _;
    std::fs::metadata(dirs.journal().join(FILE)).ok().map(|found| (found.dev(), found.ino()))
}

/// Returns the outputs of the events in the first column. Events that this release cannot read are
/// left out.
fn output_paths(mut bodies: rusqlite::Rows<'_>) -> rusqlite::Result<BTreeSet<String>> {
    let mut paths = BTreeSet::new();
    while let Some(row) = bodies.next()? {
        if let Ok(Event { hook: HookEvent::PostBuild(event), .. }) = json(row, 0) {
            paths.extend(event.outputs.into_iter().map(|output| output.path));
        }
    }
    Ok(paths)
}
