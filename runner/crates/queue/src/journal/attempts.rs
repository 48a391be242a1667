//! The worker's queries and changes while it runs tasks: which tasks are due, which begin, and how
//! they ended.

use std::collections::BTreeSet;
use std::time::Duration;

use rusqlite::{OptionalExtension as _, Transaction, params};

use super::state::Stored;
use super::{Journal, JournalError, columns, sql_count, sql_time};
use crate::retry::Next;
use hookrun_nix::event::Event;
use hookrun_nix::outcome::RunReport;

/// A task to run.
#[derive(Debug, Clone, PartialEq)]
pub struct Task {
    /// The plugin's name in the configuration.
    pub plugin: String,
    /// The event that the plugin handles.
    pub event: Event,
}

/// The order in which due tasks are returned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DueOrder {
    /// In the order in which Nix called the hooks.
    Oldest,
    /// Those first that have been due for the longest time, so a failed task comes after tasks that
    /// were not tried since.
    LongestDue,
}

/// An attempt, as the worker knows it.
#[derive(Debug, Clone, Copy)]
pub struct Attempt<'a> {
    /// The event's id.
    pub event: &'a str,
    /// The plugin's name.
    pub plugin: &'a str,
    /// The number of the attempt, from 1.
    pub number: u32,
    /// The time when it began.
    pub start_ms: u64,
    /// The time when it ended.
    pub end_ms: u64,
}

/// An attempt that ended, with the next step of its task.
#[derive(Debug, Clone, Copy)]
pub struct EndedAttempt<'a> {
    /// The attempt.
    pub attempt: Attempt<'a>,
    /// The result of the run.
    pub report: &'a RunReport,
    /// The next step.
    pub next: Next,
    /// The time that counts towards `give-up-after`, including this attempt.
    pub age_ms: u64,
}

/// An attempt that begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StartedAttempt {
    /// The number of the attempt, from 1.
    pub number: u32,
    /// The time that counted towards `give-up-after` when the last attempt ended.
    pub age_ms: u64,
    /// The time when the last attempt ended; none before the first one, and if the task was refused
    /// since.
    pub last_ms: Option<u64>,
}

/// A due task that cannot run, because its row is damaged.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unreadable {
    /// The event's id.
    pub event: String,
    /// The problem.
    pub reason: String,
}

/// The size of the events that are read ahead, in bytes. One event is read whatever its size is.
const READ_AHEAD_BYTES: usize = 1 << 20;

impl Journal {
    /// Called when a worker starts: records attempts that the previous worker did not end as
    /// interrupted, and counts them. Returns their number.
    ///
    /// # Errors
    /// SQLite reports an error.
    pub fn resume(&mut self, now_ms: u64) -> Result<usize, JournalError> {
        self.write(|transaction| {
            transaction.execute(
                "INSERT INTO attempts (event, plugin, number, start_ms, end_ms, class, message, usage, log)
                 SELECT event, plugin, attempts, updated_ms, ?1, 'interrupted', 'the worker ended during this attempt', '{}', '[]'
                 FROM tasks WHERE state = 'running'",
                [sql_time(now_ms)],
            )?;
            let interrupted = transaction.execute(
                "UPDATE tasks SET state = 'pending', not_before_ms = 0, class = 'interrupted', last_ms = ?1,
                 message = 'the worker ended during this attempt', updated_ms = ?1 WHERE state = 'running'",
                [sql_time(now_ms)],
            )?;
            // A damaged number or word would prevent its task from ever running.
            transaction.execute(
                "UPDATE tasks SET not_before_ms = 0, attempts = 0, age_ms = 0, last_ms = NULL, updated_ms = ?1
                 WHERE typeof(not_before_ms) <> 'integer' OR typeof(attempts) <> 'integer' OR typeof(age_ms) <> 'integer'
                       OR typeof(updated_ms) <> 'integer' OR typeof(last_ms) NOT IN ('integer', 'null')",
                [sql_time(now_ms)],
            )?;
            transaction.execute(
                "UPDATE tasks SET state = 'pending', not_before_ms = 0
                 WHERE state NOT IN ('pending', 'blocked', 'running', 'done', 'dead', 'lost', 'refused')",
                [],
            )?;
            Ok(interrupted)
        })
    }

    /// Makes one refused task of each plugin except `running` due, if it is time to test the
    /// plugin's refused tasks: the one that was tried longest ago. The others wait for another
    /// `delay`, so that a service that refuses credentials is not asked for every task. Returns
    /// plugin and event of the tests.
    ///
    /// # Errors
    /// SQLite reports an error.
    pub fn try_refused(
        &mut self,
        now_ms: u64,
        running: &BTreeSet<&str>,
        delay: impl Fn(&str) -> Duration,
    ) -> Result<Vec<(String, String)>, JournalError> {
        let mut tries: Vec<(String, String)> = self.read(|connection| {
            let mut statement = connection.prepare_cached(
                "SELECT plugin, event FROM
                     (SELECT plugin, event, row_number() OVER (PARTITION BY plugin ORDER BY updated_ms, event) AS place,
                             min(not_before_ms) OVER (PARTITION BY plugin) AS next
                      FROM tasks WHERE state = 'refused')
                 WHERE place = 1 AND next <= ?1",
            )?;
            let rows =
                statement.query_map([sql_time(now_ms)], |row| Ok((row.get(0)?, row.get(1)?)))?;
            rows.collect()
        })?;
        tries.retain(|(plugin, _)| !running.contains(plugin.as_str()));
        if tries.is_empty() {
            return Ok(tries);
        }
        self.write(|transaction| {
            for (plugin, event) in &tries {
                transaction.execute(
                    "UPDATE tasks SET state = 'pending', not_before_ms = 0
                     WHERE event = ?1 AND plugin = ?2 AND state = 'refused'",
                    params![event, plugin],
                )?;
                transaction.execute(
                    "UPDATE tasks SET not_before_ms = ?2 WHERE plugin = ?1 AND state = 'refused'",
                    params![plugin, sql_time(later(now_ms, delay(plugin)))],
                )?;
            }
            Ok(())
        })?;
        Ok(tries)
    }

    /// Makes refused tasks due, of one plugin or of all, because the configuration, a plugin or a
    /// secret has changed, or a test has succeeded. Returns their number.
    ///
    /// # Errors
    /// SQLite reports an error.
    pub fn readmit(&mut self, plugin: Option<&str>) -> Result<usize, JournalError> {
        self.write(|transaction| {
            transaction.execute(
                "UPDATE tasks SET state = 'pending', not_before_ms = 0
                 WHERE state = 'refused' AND (?1 IS NULL OR plugin = ?1)",
                [plugin],
            )
        })
    }

    /// Removes events that ended longer than `keep` ago, with their attempts. Dead letters stay
    /// until the operator decides.
    ///
    /// # Errors
    /// SQLite reports an error.
    pub fn forget(&mut self, keep: Duration, now_ms: u64) -> Result<usize, JournalError> {
        let before = now_ms.saturating_sub(u64::try_from(keep.as_millis()).unwrap_or(u64::MAX));
        self.write(|transaction| {
            transaction.execute(
                "DELETE FROM events WHERE ended_ms < ?1
                 AND NOT EXISTS (SELECT 1 FROM tasks WHERE event = events.id AND state IN ('dead', 'lost'))",
                [sql_time(before)],
            )
        })
    }

    /// Removes the oldest ended events of each user except root and `own` beyond `most`, including
    /// dead letters, because a build user can hand over any number.
    ///
    /// # Errors
    /// SQLite reports an error.
    pub fn forget_beyond(&mut self, most: u64, own: u32) -> Result<usize, JournalError> {
        self.write(|transaction| {
            transaction.execute(
                "DELETE FROM events WHERE id IN (
                     SELECT id FROM (
                         SELECT id, row_number() OVER (
                             PARTITION BY uid ORDER BY ended_ms DESC, id DESC
                         ) AS number
                         FROM events WHERE ended_ms IS NOT NULL AND uid NOT IN (0, ?1)
                     ) WHERE number > ?2
                 )",
                params![own, i64::try_from(most).unwrap_or(i64::MAX)],
            )
        })
    }

    /// Corrects waiting tasks after the clock was set back: each waits as long as planned, not
    /// until a time that is now far away. A difference of up to `slack_ms` is not a step of the
    /// clock. Returns the number of corrected tasks.
    ///
    /// # Errors
    /// SQLite reports an error.
    pub fn clock_was_set(&mut self, now_ms: u64, slack_ms: u64) -> Result<usize, JournalError> {
        self.write(|transaction| {
            let values = params![sql_time(now_ms), sql_time(now_ms.saturating_add(slack_ms))];
            transaction
                .execute("UPDATE breakers SET until_ms = ?1, since_ms = min(since_ms, ?1) WHERE since_ms > ?2", values)?;
            transaction.execute(
                "UPDATE tasks SET not_before_ms = ?1 WHERE state = 'refused' AND not_before_ms > ?1",
                [sql_time(now_ms)],
            )?;
            transaction.execute(
                "UPDATE tasks SET not_before_ms = not_before_ms - updated_ms + ?1, updated_ms = ?1
                 WHERE state = 'pending' AND not_before_ms > ?1 AND updated_ms > ?2",
                values,
            )
        })
    }

    /// Returns up to `limit` due tasks of one plugin, and those whose events cannot be read.
    ///
    /// # Errors
    /// SQLite reports an error.
    pub fn due(
        &self,
        plugin: &str,
        now_ms: u64,
        limit: usize,
        order: DueOrder,
    ) -> Result<(Vec<Task>, Vec<Unreadable>), JournalError> {
        let sql = match order {
            DueOrder::Oldest => {
                "SELECT events.body, tasks.event FROM tasks INDEXED BY tasks_order LEFT JOIN events ON events.id = tasks.event
                 WHERE state = 'pending' AND plugin = ?1 AND not_before_ms <= ?2 ORDER BY tasks.event LIMIT ?3"
            }
            DueOrder::LongestDue => {
                "SELECT events.body, tasks.event FROM tasks INDEXED BY tasks_plugin LEFT JOIN events ON events.id = tasks.event
                 WHERE state = 'pending' AND plugin = ?1 AND not_before_ms <= ?2 ORDER BY not_before_ms, tasks.event LIMIT ?3"
            }
        };
        self.read(|connection| {
            let mut statement = connection.prepare_cached(sql)?;
            let mut rows = statement.query(params![plugin, sql_time(now_ms), sql_count(limit)])?;
            let (mut tasks, mut unreadable, mut bytes) = (Vec::new(), Vec::new(), 0);
            while let Some(row) = rows.next()? {
                bytes += columns::bytes(row, 0)?.len();
                match columns::event(row, 0, 1) {
                    Ok(event) => tasks.push(Task { plugin: plugin.to_owned(), event }),
                    Err(reason) => {
                        unreadable.push(Unreadable { event: columns::text(row, 1)?, reason });
                    }
                }
                if bytes >= READ_AHEAD_BYTES {
                    break;
                }
            }
            Ok((tasks, unreadable))
        })
    }

    /// Returns the plugins that have a due task. Reads only one row per plugin.
    ///
    /// # Errors
    /// SQLite reports an error.
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
            let rows = statement.query_map([sql_time(now_ms)], |row| columns::text(row, 0))?;
            rows.collect()
        })
    }

    /// Returns the time when the first waiting task may run, or a refused one is tested.
    ///
    /// # Errors
    /// SQLite reports an error.
    pub fn next_due(&self, now_ms: u64) -> Result<Option<u64>, JournalError> {
        self.read(|connection| {
            let mut statement = connection
                .prepare_cached("SELECT min(not_before_ms) FROM tasks WHERE state IN ('pending', 'refused') AND not_before_ms > ?1")?;
            statement.query_row([sql_time(now_ms)], |row| columns::time(row, 0))
        })
    }

    /// Performs one step of the worker in one transaction: records how attempts ended, and marks
    /// tasks as running. Returns for each ended attempt whether it was the event's last open task,
    /// so that its roots may be removed; and for each task to begin its attempt, or none if the
    /// task was removed or rescheduled since it was read.
    ///
    /// # Errors
    /// SQLite reports an error; in that case nothing was changed.
    pub fn step(
        &mut self,
        ended: &[EndedAttempt<'_>],
        begin: &[Task],
        now_ms: u64,
    ) -> Result<(Vec<bool>, Vec<Option<StartedAttempt>>), JournalError> {
        self.write(|transaction| {
            let ended = ended
                .iter()
                .map(|ended| finish(transaction, ended))
                .collect::<rusqlite::Result<_>>()?;
            let begun = begin
                .iter()
                .map(|task| begin_one(transaction, task, now_ms))
                .collect::<rusqlite::Result<_>>()?;
            Ok((ended, begun))
        })
    }

    /// Makes a task lost, with `message` as the reason. The second value is whether it was the
    /// event's last open task.
    ///
    /// # Errors
    /// SQLite reports an error.
    pub fn lose(
        &mut self,
        event: &str,
        plugin: &str,
        message: &str,
        now_ms: u64,
    ) -> Result<(), JournalError> {
        self.write(|transaction| {
            transaction.execute(
                "UPDATE tasks SET state = 'lost', class = 'unreadable', message = ?3, updated_ms = ?4 WHERE event = ?1 AND plugin = ?2",
                params![event, plugin, message, sql_time(now_ms)],
            )?;
            unblock(transaction, event, plugin)?;
            end_event(transaction, event, now_ms)?;
            // The roots cannot be determined any longer; the next sweep finds them.
            transaction.execute("UPDATE events SET rooted = 0 WHERE id = ?1", [event]).map(drop)
        })
    }

    /// Resets a running task as if this attempt had not begun, because the worker stops.
    ///
    /// # Errors
    /// SQLite reports an error.
    pub fn give_back(
        &mut self,
        event: &str,
        plugin: &str,
        now_ms: u64,
    ) -> Result<(), JournalError> {
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
}

fn later(now_ms: u64, after: Duration) -> u64 {
    now_ms.saturating_add(u64::try_from(after.as_millis()).unwrap_or(u64::MAX))
}

fn begin_one(
    transaction: &Transaction<'_>,
    task: &Task,
    now_ms: u64,
) -> rusqlite::Result<Option<StartedAttempt>> {
    transaction
        .prepare_cached(
            "UPDATE tasks SET state = 'running', attempts = attempts + 1, updated_ms = ?3
             WHERE event = ?1 AND plugin = ?2 AND state = 'pending' AND not_before_ms <= ?3 RETURNING attempts, age_ms, last_ms",
        )?
        .query_row(params![task.event.id, task.plugin, sql_time(now_ms)], |row| {
            let (number, age_ms) = (columns::number(row, 0)?, columns::count(row, 1)?);
            Ok(StartedAttempt { number, age_ms, last_ms: columns::time(row, 2)? })
        })
        .optional()
}

/// Returns whether the event's roots may be removed: the event has ended, and none of its tasks is
/// dead. Refused tasks are open.
fn finish(transaction: &Transaction<'_>, ended: &EndedAttempt<'_>) -> rusqlite::Result<bool> {
    let EndedAttempt { attempt, report, next, age_ms } = *ended;
    let Attempt { event, plugin, number, start_ms, end_ms } = attempt;
    let (state, not_before_ms, uncounted) = match next {
        Next::Done => (Stored::Done, 0, 0),
        Next::Dead => (Stored::Dead, 0, 0),
        Next::Lost => (Stored::Lost, 0, 0),
        Next::Refused { after } => (Stored::Refused, later(end_ms, after), 1),
        Next::Retry { after } => (Stored::Pending, later(end_ms, after), 0),
        Next::Again { after, .. } => (Stored::Pending, later(end_ms, after), 1),
    };
    let json = |value: Result<String, serde_json::Error>| {
        value.map_err(|error| rusqlite::Error::ToSqlConversionFailure(Box::new(error)))
    };
    let (class, message) = (report.outcome.class(), report.outcome.message());
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
        .prepare_cached(
            "UPDATE tasks SET state = ?3, not_before_ms = ?4, class = ?5, message = ?6, updated_ms = ?7, attempts = attempts - ?8,
             age_ms = ?9, last_ms = CASE WHEN ?3 = 'refused' THEN NULL ELSE ?7 END
             WHERE event = ?1 AND plugin = ?2",
        )?
        .execute(params![
            event,
            plugin,
            state,
            sql_time(not_before_ms),
            class,
            message,
            sql_time(end_ms),
            uncounted,
            sql_time(age_ms),
        ])?;
    if matches!(next, Next::Done | Next::Dead | Next::Lost) {
        unblock(transaction, event, plugin)?;
        end_event(transaction, event, end_ms)
    } else {
        Ok(false)
    }
}

/// Makes tasks due that waited for this task and for no other.
pub(super) fn unblock(
    transaction: &Transaction<'_>,
    event: &str,
    plugin: &str,
) -> rusqlite::Result<()> {
    let mut waiting = transaction.prepare_cached(
        "DELETE FROM waits_for WHERE on_event = ?1 AND plugin = ?2 RETURNING event",
    )?;
    let waiting: Vec<String> =
        waiting.query_map([event, plugin], |row| row.get(0))?.collect::<rusqlite::Result<_>>()?;
    for event in waiting {
        transaction
            .prepare_cached(
                "UPDATE tasks SET state = 'pending' WHERE event = ?1 AND plugin = ?2 AND state = 'blocked'
                 AND NOT EXISTS (SELECT 1 FROM waits_for WHERE event = ?1 AND plugin = ?2)",
            )?
            .execute([event.as_str(), plugin])?;
    }
    Ok(())
}

/// Ends an event that has no open task. Returns whether its roots may be removed. A dead letter
/// keeps them, because it may be tried again.
pub(super) fn end_event(
    transaction: &Transaction<'_>,
    event: &str,
    now_ms: u64,
) -> rusqlite::Result<bool> {
    let ended = transaction
        .prepare_cached(
            "UPDATE events SET ended_ms = coalesce(ended_ms, ?2) WHERE id = ?1
             AND NOT EXISTS (SELECT 1 FROM tasks WHERE event = ?1 AND state IN ('pending', 'blocked', 'running', 'refused'))",
        )?
        .execute(params![event, sql_time(now_ms)])?;
    if ended == 0 {
        return Ok(false);
    }
    transaction.prepare_cached("DELETE FROM outputs WHERE event = ?1")?.execute([event])?;
    let unrooted = transaction
        .prepare_cached(
            "UPDATE events SET rooted = 0
             WHERE id = ?1 AND NOT EXISTS (SELECT 1 FROM tasks WHERE event = ?1 AND state = 'dead')",
        )?
        .execute([event])?;
    Ok(unrooted > 0)
}
