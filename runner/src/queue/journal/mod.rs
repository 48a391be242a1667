//! The worker's database: events, tasks, attempts (SQLite, `schema-1.sql`).
//!
//! Written by the one worker; `hookrun status` and `hookrun log` read it at the same time (write-ahead log). The worker may be
//! killed at any instruction: an event's row and its tasks come in one transaction that is synced before the spool file goes, and the id
//! is the key, so an event that is seen twice is taken once. What an attempt gave is synced later: if it is lost, the attempt
//! is made again, which plugins must bear anyway.

mod change;
mod query;

use std::path::{Path, PathBuf};
use std::time::Duration;

use rusqlite::{Connection, OpenFlags, OptionalExtension as _, Transaction, TransactionBehavior, params};
use serde::Serialize as _;

use super::retry::Next;
use crate::dirs::Dirs;
use crate::event::{Event, HookEvent};
use crate::outcome::RunReport;

pub use change::Selection;
pub use query::{AttemptRow, LogFilter, PluginCounts, TaskRow};

/// The database's name in [`Dirs::journal`].
const FILE: &str = "journal.sqlite";
/// What brings a database from version n to n + 1, in order.
const MIGRATIONS: [&str; 1] = [include_str!("schema-1.sql")];
/// How long a statement waits for another process's lock: readers never block the worker for long.
const BUSY_TIMEOUT: Duration = Duration::from_secs(10);
/// Ended events and their attempts are kept this long.
const RETENTION: Duration = Duration::from_hours(30 * 24);

/// Why the journal cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    /// SQLite or the file system says no.
    #[error("the journal {} cannot be used ({error}); its directory must be writable for the user that runs the worker", path.display())]
    Sqlite {
        /// The database.
        path: PathBuf,
        /// What SQLite says.
        #[source]
        error: rusqlite::Error,
    },
    /// Its directory cannot be made, or a damaged one cannot be set aside.
    #[error("the journal {} cannot be made ({error}); make its directory writable for the user that runs the worker", path.display())]
    Io {
        /// The database.
        path: PathBuf,
        /// What the system says.
        #[source]
        error: std::io::Error,
    },
    /// Written by a later release.
    #[error("the journal {} has version {version}, and this hookrun knows up to {}; a newer hookrun wrote it: run that one", path.display(), MIGRATIONS.len())]
    Newer {
        /// The database.
        path: PathBuf,
        /// Its `user_version`.
        version: usize,
    },
}

/// A task that is to run.
#[derive(Debug, Clone, PartialEq)]
pub struct Task {
    /// The plugin's name.
    pub plugin: String,
    /// The event.
    pub event: Event,
}

/// What became of an event that the worker took.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Taken {
    /// It is in the journal, with so many tasks.
    New(usize),
    /// An earlier event that says the same has not ended; that one stands for both.
    Merged(String),
    /// It was in the journal before.
    Known {
        /// Have its tasks ended?
        ended: bool,
    },
}

/// How many tasks are open.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Open {
    /// May run now.
    pub due: u64,
    /// Wait for their time.
    pub waiting: u64,
    /// Run.
    pub running: u64,
    /// Could not begin.
    pub refused: u64,
    /// Dead letters.
    pub dead: u64,
    /// When the first of those that wait may run.
    pub next_ms: Option<u64>,
}

/// The journal, open.
#[derive(Debug)]
pub struct Journal {
    connection: Connection,
    path: PathBuf,
}

impl Journal {
    /// Opens the journal for the worker: made if it is not there, brought to the newest version, checked. A damaged one is set
    /// aside and a new one begun; then the second value says so.
    ///
    /// # Errors
    /// If it cannot be opened or made, or a later release wrote it.
    pub fn open(dirs: &Dirs) -> Result<(Self, Option<String>), JournalError> {
        use std::os::unix::fs::DirBuilderExt as _;
        let path = dirs.journal().join(FILE);
        let io = |error| JournalError::Io { path: path.clone(), error };
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(dirs.journal()).map_err(io)?;
        match Self::open_checked(&path) {
            Ok(journal) => Ok((journal, None)),
            Err(JournalError::Sqlite { error, .. }) if is_damage(&error) => {
                let aside = path.with_added_extension(format!("damaged-{}", crate::event::now_ms()));
                std::fs::rename(&path, &aside).map_err(io)?;
                for suffix in ["-wal", "-shm"] {
                    let with_suffix = |path: &Path| PathBuf::from(format!("{}{suffix}", path.display()));
                    match std::fs::rename(with_suffix(&path), with_suffix(&aside)) {
                        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(io(error)),
                        _ => {}
                    }
                }
                let notice = format!(
                    "the journal was damaged ({error}) and is set aside as {}; a new one is begun, and what it still held open must be \
                     built or checked again",
                    aside.display()
                );
                Self::open_checked(&path).map(|journal| (journal, Some(notice)))
            }
            Err(error) => Err(error),
        }
    }

    /// Opens the journal for reading, beside a worker; none if there is none yet.
    ///
    /// # Errors
    /// If it cannot be opened, or has another version.
    pub fn open_read_only(dirs: &Dirs) -> Result<Option<Self>, JournalError> {
        let path = dirs.journal().join(FILE);
        if std::fs::symlink_metadata(&path).is_err_and(|error| error.kind() == std::io::ErrorKind::NotFound) {
            return Ok(None);
        }
        let sqlite = |error| JournalError::Sqlite { path: path.clone(), error };
        let connection = Connection::open_with_flags(&path, OpenFlags::SQLITE_OPEN_READ_ONLY).map_err(sqlite)?;
        connection.busy_timeout(BUSY_TIMEOUT).map_err(sqlite)?;
        let version = user_version(&connection).map_err(sqlite)?;
        match version.cmp(&MIGRATIONS.len()) {
            std::cmp::Ordering::Greater => Err(JournalError::Newer { path, version }),
            // The worker has not got so far yet: it is as good as not there.
            std::cmp::Ordering::Less => Ok(None),
            std::cmp::Ordering::Equal => Ok(Some(Self { connection, path })),
        }
    }

    fn open_checked(path: &Path) -> Result<Self, JournalError> {
        let sqlite = |error| JournalError::Sqlite { path: path.to_owned(), error };
        let mut connection = Connection::open(path).map_err(sqlite)?;
        let version = prepare(&connection).map_err(sqlite)?;
        if version > MIGRATIONS.len() {
            return Err(JournalError::Newer { path: path.to_owned(), version });
        }
        migrate(&mut connection, version).map_err(sqlite)?;
        Ok(Self { connection, path: path.to_owned() })
    }

    /// What a worker does when it starts: attempts that the worker before did not end are written down as interrupted and count as
    /// made; tasks that were refused may run again, since the configuration may have been mended; what ended long ago is
    /// forgotten. Gives the number of interrupted attempts.
    ///
    /// # Errors
    /// What SQLite says.
    pub fn resume(&mut self, now_ms: u64) -> Result<usize, JournalError> {
        self.write(|transaction| {
            transaction.execute(
                "INSERT INTO attempts (event, plugin, number, start_ms, end_ms, class, message, usage, log)
                 SELECT event, plugin, attempts, updated_ms, ?1, 'interrupted', 'the worker ended during this attempt', '{}', '[]'
                 FROM tasks WHERE state = 'running'",
                [sql_time(now_ms)],
            )?;
            let interrupted = transaction.execute(
                "UPDATE tasks SET state = 'pending', not_before_ms = 0, class = 'interrupted',
                 message = 'the worker ended during this attempt', updated_ms = ?1 WHERE state = 'running'",
                [sql_time(now_ms)],
            )?;
            transaction.execute("UPDATE tasks SET state = 'pending', not_before_ms = 0 WHERE state = 'refused'", [])?;
            let before = now_ms.saturating_sub(u64::try_from(RETENTION.as_millis()).unwrap_or(u64::MAX));
            transaction.execute(
                "DELETE FROM events WHERE ended_ms < ?1
                 AND NOT EXISTS (SELECT 1 FROM tasks WHERE event = events.id AND state = 'dead')",
                [sql_time(before)],
            )?;
            Ok(interrupted)
        })
    }

    /// Takes events, each with the plugins that want it and the number of its outputs that are rooted. Durable when it
    /// returns: then the spool files may go.
    ///
    /// # Errors
    /// What SQLite says; then nothing was taken.
    pub fn take(&mut self, events: &[(&Event, Vec<String>, usize)], now_ms: u64) -> Result<Vec<Taken>, JournalError> {
        self.synchronous("FULL")?;
        let taken = self.write(|transaction| {
            events.iter().map(|(event, plugins, rooted)| take_one(transaction, event, plugins, *rooted, now_ms)).collect()
        });
        self.synchronous("NORMAL")?;
        taken
    }

    /// Up to `limit` tasks of one plugin that may run now, those that may run longest first.
    ///
    /// # Errors
    /// What SQLite says. A row whose event is not readable is an error of the database.
    pub fn due(&self, plugin: &str, now_ms: u64, limit: usize) -> Result<Vec<Task>, JournalError> {
        self.read(|connection| {
            let mut statement = connection.prepare_cached(
                "SELECT events.body FROM tasks JOIN events ON events.id = tasks.event
                 WHERE state = 'pending' AND plugin = ?1 AND not_before_ms <= ?2 ORDER BY not_before_ms, tasks.event LIMIT ?3",
            )?;
            let rows = statement.query_map(params![plugin, sql_time(now_ms), sql_count(limit)], |row| {
                Ok(Task { plugin: plugin.to_owned(), event: query::json(row, 0)? })
            })?;
            rows.collect()
        })
    }

    /// The plugins that have a task that may run now. Looks at one row a plugin, however many there are.
    ///
    /// # Errors
    /// What SQLite says.
    pub fn due_plugins(&self, now_ms: u64) -> Result<Vec<String>, JournalError> {
        self.read(|connection| {
            let mut statement = connection.prepare_cached(
                "WITH RECURSIVE waiting (plugin) AS (
                     SELECT min(plugin) FROM tasks WHERE state = 'pending'
                     UNION ALL
                     SELECT (SELECT min(plugin) FROM tasks WHERE state = 'pending' AND plugin > waiting.plugin)
                     FROM waiting WHERE waiting.plugin IS NOT NULL)
                 SELECT plugin FROM waiting WHERE EXISTS
                     (SELECT 1 FROM tasks WHERE state = 'pending' AND plugin = waiting.plugin AND not_before_ms <= ?1)",
            )?;
            let rows = statement.query_map([sql_time(now_ms)], |row| row.get(0))?;
            rows.collect()
        })
    }

    /// When the first of the tasks that wait may run.
    ///
    /// # Errors
    /// What SQLite says.
    pub fn next_due(&self, now_ms: u64) -> Result<Option<u64>, JournalError> {
        self.read(|connection| {
            let mut statement = connection
                .prepare_cached("SELECT min(not_before_ms) FROM tasks WHERE state = 'pending' AND not_before_ms > ?1")?;
            statement.query_row([sql_time(now_ms)], |row| query::time(row, 0))
        })
    }

    /// Marks a task as running; gives the number of this attempt.
    ///
    /// # Errors
    /// What SQLite says.
    pub fn begin(&mut self, event: &str, plugin: &str, now_ms: u64) -> Result<u32, JournalError> {
        self.write(|transaction| {
            transaction.query_row(
                "UPDATE tasks SET state = 'running', attempts = attempts + 1, updated_ms = ?3 WHERE event = ?1 AND plugin = ?2 RETURNING attempts",
                params![event, plugin, sql_time(now_ms)],
                |row| row.get(0),
            )
        })
    }

    /// Writes down how an attempt ended and what comes next; true if that was the event's last open task, so that its roots may
    /// go. Refused tasks are open.
    ///
    /// # Errors
    /// What SQLite says.
    pub fn finish(&mut self, attempt: &Attempt<'_>, report: &RunReport, next: Next) -> Result<bool, JournalError> {
        let Attempt { event, plugin, number, start_ms, end_ms } = *attempt;
        let (state, not_before_ms) = match next {
            Next::Done => ("done", 0),
            Next::Dead => ("dead", 0),
            Next::Refused => ("refused", 0),
            Next::Retry { after } => {
                ("pending", end_ms.saturating_add(u64::try_from(after.as_millis()).unwrap_or(u64::MAX)))
            }
        };
        let class = report.outcome.class();
        let message = report.outcome.message();
        let json = |value: Result<String, serde_json::Error>| {
            value.map_err(|error| rusqlite::Error::ToSqlConversionFailure(Box::new(error)))
        };
        self.write(|transaction| {
            transaction
                .prepare_cached(
                    "INSERT INTO attempts (event, plugin, number, start_ms, end_ms, class, message, usage, log) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9)",
                )?
                .execute(params![
                    event,
                    plugin,
                    number,
                    sql_time(start_ms),
                    sql_time(end_ms),
                    class,
                    message,
                    json(serde_json::to_string(&report.usage))?,
                    json(serde_json::to_string(&report.log))?,
                ])?;
            transaction
                .prepare_cached("UPDATE tasks SET state = ?3, not_before_ms = ?4, class = ?5, message = ?6, updated_ms = ?7 WHERE event = ?1 AND plugin = ?2")?
                .execute(params![event, plugin, state, sql_time(not_before_ms), class, message, sql_time(end_ms)])?;
            end_event(transaction, event, end_ms)
        })
    }

    /// Takes a running task back, as if this attempt had not been begun: the worker stops.
    ///
    /// # Errors
    /// What SQLite says.
    pub fn give_back(&mut self, event: &str, plugin: &str, now_ms: u64) -> Result<(), JournalError> {
        self.write(|transaction| {
            transaction
                .execute(
                    "UPDATE tasks SET state = 'pending', attempts = attempts - 1, not_before_ms = 0, updated_ms = ?3
                     WHERE event = ?1 AND plugin = ?2 AND state = 'running'",
                    params![event, plugin, sql_time(now_ms)],
                )
                .map(drop)
        })
    }

    /// How many tasks are open, and when the next may run.
    ///
    /// # Errors
    /// What SQLite says.
    pub fn open_tasks(&self, now_ms: u64) -> Result<Open, JournalError> {
        self.read(|connection| {
            connection.query_row(
                "SELECT count(*) FILTER (WHERE state = 'pending' AND not_before_ms <= ?1),
                        count(*) FILTER (WHERE state = 'pending' AND not_before_ms > ?1),
                        count(*) FILTER (WHERE state = 'running'), count(*) FILTER (WHERE state = 'refused'),
                        min(not_before_ms) FILTER (WHERE state = 'pending' AND not_before_ms > ?1),
                        (SELECT count(*) FROM tasks WHERE state = 'dead')
                 FROM tasks WHERE state IN ('pending', 'running', 'refused')",
                [sql_time(now_ms)],
                |row| {
                    Ok(Open {
                        due: query::count(row, 0)?,
                        waiting: query::count(row, 1)?,
                        running: query::count(row, 2)?,
                        refused: query::count(row, 3)?,
                        next_ms: query::time(row, 4)?,
                        dead: query::count(row, 5)?,
                    })
                },
            )
        })
    }

    fn synchronous(&self, level: &str) -> Result<(), JournalError> {
        self.read(|connection| connection.pragma_update(None, "synchronous", level))
    }

    fn write<T>(&mut self, work: impl FnOnce(&Transaction<'_>) -> rusqlite::Result<T>) -> Result<T, JournalError> {
        let path = &self.path;
        let connection = &mut self.connection;
        let result = (|| {
            let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
            let value = work(&transaction)?;
            transaction.commit()?;
            Ok(value)
        })();
        result.map_err(|error| JournalError::Sqlite { path: path.clone(), error })
    }

    fn read<T>(&self, work: impl FnOnce(&Connection) -> rusqlite::Result<T>) -> Result<T, JournalError> {
        work(&self.connection).map_err(|error| JournalError::Sqlite { path: self.path.clone(), error })
    }
}

/// One attempt, as the worker knows it.
#[derive(Debug, Clone, Copy)]
pub struct Attempt<'a> {
    /// The event's id.
    pub event: &'a str,
    /// The plugin's name.
    pub plugin: &'a str,
    /// 1 for the first.
    pub number: u32,
    /// When it began.
    pub start_ms: u64,
    /// When it ended.
    pub end_ms: u64,
}

/// Settings of every connection that writes, and the check; gives the version.
fn prepare(connection: &Connection) -> rusqlite::Result<usize> {
    connection.busy_timeout(BUSY_TIMEOUT)?;
    connection.pragma_update(None, "journal_mode", "WAL")?;
    connection.pragma_update(None, "synchronous", "NORMAL")?;
    connection.pragma_update(None, "foreign_keys", true)?;
    let found: String = connection.query_row("PRAGMA quick_check(1)", [], |row| row.get(0))?;
    if found != "ok" {
        let error = rusqlite::ffi::Error::new(rusqlite::ffi::SQLITE_CORRUPT);
        return Err(rusqlite::Error::SqliteFailure(error, Some(found)));
    }
    user_version(connection)
}

fn migrate(connection: &mut Connection, version: usize) -> rusqlite::Result<()> {
    for (number, migration) in MIGRATIONS.iter().enumerate().skip(version) {
        let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        transaction.execute_batch(migration)?;
        transaction.pragma_update(None, "user_version", sql_count(number + 1))?;
        transaction.commit()?;
    }
    Ok(())
}

fn user_version(connection: &Connection) -> rusqlite::Result<usize> {
    let version: i64 = connection.query_row("PRAGMA user_version", [], |row| row.get(0))?;
    Ok(usize::try_from(version).unwrap_or(usize::MAX))
}

fn is_damage(error: &rusqlite::Error) -> bool {
    matches!(error.sqlite_error_code(), Some(rusqlite::ErrorCode::DatabaseCorrupt | rusqlite::ErrorCode::NotADatabase))
}

fn take_one(
    transaction: &Transaction<'_>,
    event: &Event,
    plugins: &[String],
    rooted: usize,
    now_ms: u64,
) -> rusqlite::Result<Taken> {
    let json = |value: Result<String, serde_json::Error>| {
        value.map_err(|error| rusqlite::Error::ToSqlConversionFailure(Box::new(error)))
    };
    let known = transaction
        .prepare_cached("SELECT ended_ms IS NOT NULL FROM events WHERE id = ?1")?
        .query_row([&event.id], |row| row.get(0))
        .optional()?;
    if let Some(ended) = known {
        return Ok(Taken::Known { ended });
    }
    let same = json(same(event))?;
    let earlier: Option<String> = transaction
        .prepare_cached("SELECT id FROM events WHERE same = ?1 AND ended_ms IS NULL ORDER BY id LIMIT 1")?
        .query_row([&same], |row| row.get(0))
        .optional()?;
    let ended = (earlier.is_some() || plugins.is_empty()).then_some(sql_time(now_ms));
    transaction
        .prepare_cached(
            "INSERT INTO events (id, time_ms, taken_ms, kind, name, drv_path, same, merged_into, rooted, ended_ms, body)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11)",
        )?
        .execute(params![
            event.id,
            sql_time(event.time_ms),
            sql_time(now_ms),
            event.kind().as_str(),
            event.name(),
            event.drv_path(),
            same,
            earlier,
            sql_count(rooted),
            ended,
            json(serde_json::to_string(event))?,
        ])?;
    if let Some(earlier) = earlier {
        return Ok(Taken::Merged(earlier));
    }
    let mut statement =
        transaction.prepare_cached("INSERT INTO tasks (event, plugin, state, updated_ms) VALUES (?1, ?2, 'pending', ?3)")?;
    for plugin in plugins {
        statement.execute(params![event.id, plugin, sql_time(now_ms)])?;
    }
    Ok(Taken::New(plugins.len()))
}

/// What two events have in common that say the same: hook, store, derivation and outputs, and for the diff hook the evidence.
fn same(event: &Event) -> Result<String, serde_json::Error> {
    let mut text = Vec::new();
    let mut serializer = serde_json::Serializer::new(&mut text);
    match &event.hook {
        HookEvent::PostBuild(post_build) => (&event.nix.store, "post-build", post_build).serialize(&mut serializer)?,
        HookEvent::Diff(diff) => (&event.nix.store, "diff", diff).serialize(&mut serializer)?,
    }
    Ok(super::envelope::digest(&text))
}

/// Ends an event that has no open task; true if it ended now.
fn end_event(transaction: &Transaction<'_>, event: &str, now_ms: u64) -> rusqlite::Result<bool> {
    let ended = transaction
        .prepare_cached(
            "UPDATE events SET ended_ms = ?2 WHERE id = ?1 AND ended_ms IS NULL
             AND NOT EXISTS (SELECT 1 FROM tasks WHERE event = ?1 AND state IN ('pending', 'running', 'refused'))",
        )?
        .execute(params![event, sql_time(now_ms)])?;
    Ok(ended > 0)
}

/// SQLite's integers are signed.
fn sql_time(ms: u64) -> i64 {
    i64::try_from(ms).unwrap_or(i64::MAX)
}

fn sql_count(count: usize) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests;
