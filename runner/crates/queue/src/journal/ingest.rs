//! Adds events with their tasks to the journal, in one transaction.

use rusqlite::{OptionalExtension as _, Transaction, params};
use serde::Serialize as _;

use super::{Journal, JournalError, columns, sql_count, sql_time};
use hookrun_nix::event::{Event, HookEvent};

/// An event to take.
#[derive(Debug)]
pub struct Incoming<'a> {
    /// The event.
    pub event: &'a Event,
    /// The uid of the user who handed it over.
    pub uid: u32,
    /// The tasks to create.
    pub plugins: Vec<NewTask>,
    /// The number of its outputs that have roots.
    pub rooted: usize,
}

/// A task to create for an event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewTask {
    /// The plugin's name in the configuration.
    pub plugin: String,
    /// For a plugin that wants dependencies first: the closure of the event's outputs. Tasks of the
    /// same plugin whose events have one of these paths as an output run before this one.
    pub after: Option<Vec<String>>,
}

impl From<&str> for NewTask {
    fn from(plugin: &str) -> Self {
        Self { plugin: plugin.to_owned(), after: None }
    }
}

/// The result of taking an event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum IngestResult {
    /// It was added to the journal, with this number of tasks.
    New(usize),
    /// An equal event that has not ended exists, and is used for both.
    Merged(String),
    /// It is already in the journal.
    Known {
        /// Whether its tasks have ended.
        ended: bool,
    },
}

/// The unfinished events of one user in the journal.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Share {
    /// The number of events.
    pub events: u64,
    /// Their total size in bytes.
    pub bytes: u64,
}

impl Journal {
    /// Takes events. They are durable when it returns, so that the spool files may be removed.
    ///
    /// # Errors
    /// SQLite reports an error; in that case nothing was taken.
    pub fn take(
        &mut self,
        events: &[Incoming<'_>],
        now_ms: u64,
    ) -> Result<Vec<IngestResult>, JournalError> {
        self.synchronous("FULL")?;
        let taken = self.write(|transaction| {
            events.iter().map(|incoming| take_one(transaction, incoming, now_ms)).collect()
        });
        self.synchronous("NORMAL")?;
        taken
    }

    /// Returns up to `limit` events that no plugin wanted, sorted by id, with ids after `after`.
    ///
    /// # Errors
    /// SQLite reports an error.
    pub fn unwanted(&self, after: &str, limit: usize) -> Result<Vec<Event>, JournalError> {
        self.read(|connection| {
            let mut statement = connection.prepare_cached(
                "SELECT body FROM events WHERE unwanted = 1 AND id > ?1 ORDER BY id LIMIT ?2",
            )?;
            let rows = statement.query_map(params![after, sql_count(limit)], |row| {
                Ok(columns::json(row, 0).ok())
            })?;
            rows.filter_map(Result::transpose).collect()
        })
    }

    /// Adds tasks to events that no plugin wanted before.
    ///
    /// # Errors
    /// SQLite reports an error; in that case nothing was changed.
    pub fn want(&mut self, events: &[Incoming<'_>], now_ms: u64) -> Result<(), JournalError> {
        self.write(|transaction| {
            for Incoming { event, uid: _, plugins, rooted } in events {
                let opened = transaction
                    .prepare_cached(
                        "UPDATE events SET unwanted = 0, ended_ms = NULL, rooted = ?2, body = ?3 WHERE id = ?1 AND unwanted = 1",
                    )?
                    .execute(params![
                        event.id,
                        sql_count(*rooted),
                        serde_json::to_string(event)
                            .map_err(|error| rusqlite::Error::ToSqlConversionFailure(Box::new(error)))?,
                    ])?;
                if opened > 0 {
                    make_tasks(transaction, event, plugins, now_ms)?;
                }
            }
            Ok(())
        })
    }

    /// Returns the value that is stored under `name`.
    ///
    /// # Errors
    /// SQLite reports an error.
    pub fn note(&self, name: &str) -> Result<Option<String>, JournalError> {
        self.read(|connection| {
            connection
                .prepare_cached("SELECT value FROM notes WHERE name = ?1")?
                .query_row([name], |row| columns::text(row, 0))
                .optional()
        })
    }

    /// Stores `value` under `name`.
    ///
    /// # Errors
    /// SQLite reports an error.
    pub fn set_note(&mut self, name: &str, value: &str) -> Result<(), JournalError> {
        self.write(|transaction| {
            transaction
                .execute(
                    "INSERT OR REPLACE INTO notes (name, value) VALUES (?1, ?2)",
                    [name, value],
                )
                .map(drop)
        })
    }

    /// Returns the unfinished events of a user in the journal.
    ///
    /// # Errors
    /// SQLite reports an error.
    pub fn share(&self, uid: u32) -> Result<Share, JournalError> {
        self.read(|connection| {
            connection
                .prepare_cached(
                    "SELECT count(*), coalesce(sum(length(body)), 0) FROM events
                     WHERE uid = ?1 AND ended_ms IS NULL",
                )?
                .query_row([uid], |row| {
                    Ok(Share {
                        events: super::columns::count(row, 0)?,
                        bytes: super::columns::count(row, 1)?,
                    })
                })
        })
    }

    fn synchronous(&self, level: &str) -> Result<(), JournalError> {
        self.read(|connection| connection.pragma_update(None, "synchronous", level))
    }
}

fn take_one(
    transaction: &Transaction<'_>,
    incoming: &Incoming<'_>,
    now_ms: u64,
) -> rusqlite::Result<IngestResult> {
    let Incoming { event, uid, plugins, rooted } = incoming;
    let json = |value: Result<String, serde_json::Error>| {
        value.map_err(|error| rusqlite::Error::ToSqlConversionFailure(Box::new(error)))
    };
    let known = transaction
        .prepare_cached("SELECT ended_ms IS NOT NULL FROM events WHERE id = ?1")?
        .query_row([&event.id], |row| row.get(0))
        .optional()?;
    if let Some(ended) = known {
        return Ok(IngestResult::Known { ended });
    }
    let same = json(same(event))?;
    // An equal event counts only if it has a task for each plugin that wants this one, because
    // plugins may have been added since.
    let names: Vec<&str> = plugins.iter().map(|wanted| wanted.plugin.as_str()).collect();
    let earlier: Option<String> = transaction
        .prepare_cached(
            "SELECT id FROM events WHERE same = ?1 AND ended_ms IS NULL AND json_array_length(?2) > 0 AND NOT EXISTS
                 (SELECT 1 FROM json_each(?2) AS name WHERE NOT EXISTS
                      (SELECT 1 FROM tasks WHERE tasks.event = events.id AND tasks.plugin = name.value))
             ORDER BY id LIMIT 1",
        )?
        .query_row([&same, &json(serde_json::to_string(&names))?], |row| row.get(0))
        .optional()?;
    let ended = (earlier.is_some() || plugins.is_empty()).then_some(sql_time(now_ms));
    transaction
        .prepare_cached(
            "INSERT INTO events (id, time_ms, taken_ms, kind, name, drv_path, same, merged_into, rooted, uid, ended_ms, body, unwanted)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13)",
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
            // The roots of an event without tasks are removed immediately.
            if ended.is_some() { 0 } else { sql_count(*rooted) },
            uid,
            ended,
            json(serde_json::to_string(event))?,
            earlier.is_none() && plugins.is_empty(),
        ])?;
    if let Some(earlier) = earlier {
        return Ok(IngestResult::Merged(earlier));
    }
    make_tasks(transaction, event, plugins, now_ms)?;
    Ok(IngestResult::New(plugins.len()))
}

fn make_tasks(
    transaction: &Transaction<'_>,
    event: &Event,
    plugins: &[NewTask],
    now_ms: u64,
) -> rusqlite::Result<()> {
    let json = |value: Result<String, serde_json::Error>| {
        value.map_err(|error| rusqlite::Error::ToSqlConversionFailure(Box::new(error)))
    };
    let mut statement = transaction.prepare_cached(
        "INSERT INTO tasks (event, plugin, state, updated_ms) VALUES (?1, ?2, ?3, ?4)",
    )?;
    for NewTask { plugin, after } in plugins {
        let blocked = match after {
            Some(paths) => {
                wait_for(transaction, event, plugin, &json(serde_json::to_string(paths))?)?
            }
            None => false,
        };
        statement.execute(params![
            event.id,
            plugin,
            if blocked { "blocked" } else { "pending" },
            sql_time(now_ms)
        ])?;
    }
    if plugins.iter().any(|wanted| wanted.after.is_some()) {
        let mut statement = transaction
            .prepare_cached("INSERT OR IGNORE INTO outputs (path, event) VALUES (?1, ?2)")?;
        for path in event.output_paths() {
            statement.execute([path, event.id.as_str()])?;
        }
    }
    Ok(())
}

/// Records which open tasks of the plugin run first. Returns whether there is one. `paths` is a
/// JSON list.
fn wait_for(
    transaction: &Transaction<'_>,
    event: &Event,
    plugin: &str,
    paths: &str,
) -> rusqlite::Result<bool> {
    let noted = transaction
        .prepare_cached(
            "INSERT OR IGNORE INTO waits_for (on_event, plugin, event)
             SELECT tasks.event, ?2, ?3 FROM json_each(?1) AS path
                 JOIN outputs ON outputs.path = path.value
                 JOIN tasks ON tasks.event = outputs.event AND tasks.plugin = ?2
             WHERE tasks.state IN ('pending', 'blocked', 'running', 'refused') AND tasks.event <> ?3",
        )?
        .execute([paths, plugin, event.id.as_str()])?;
    Ok(noted > 0)
}

/// Returns a string that is equal for equal events: hook, store, derivation and outputs, and for
/// the diff hook the evidence.
fn same(event: &Event) -> Result<String, serde_json::Error> {
    let mut text = Vec::new();
    let mut serializer = serde_json::Serializer::new(&mut text);
    match &event.hook {
        HookEvent::PostBuild(post_build) => {
            (&event.nix.store, "post-build", post_build).serialize(&mut serializer)?;
        }
        HookEvent::Diff(diff) => (&event.nix.store, "diff", diff).serialize(&mut serializer)?,
    }
    Ok(crate::envelope::digest(&text))
}
