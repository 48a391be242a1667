//! Changes by the operator while a worker runs: dead letters and others are retried or removed.
//!
//! Changes only tasks that no worker runs: dead, lost, refused and waiting ones. Each change is one
//! transaction, so it is done completely or not at all.

use rusqlite::params;

use super::attempts::{end_event, unblock};
use super::query::TaskRow;
use super::{Journal, JournalError, TaskState, columns, sql_count, sql_time};
use hookrun_nix::event::Event;

/// Selects tasks. All conditions that are set must hold.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TaskSelection {
    /// Prefixes of event ids; empty for all events.
    pub events: Vec<String>,
    /// The plugin's name.
    pub plugin: Option<String>,
    /// A part of the derivation's name or store path.
    pub derivation: Option<String>,
    /// The states; empty for all.
    pub states: Vec<TaskState>,
}

impl TaskSelection {
    /// Returns whether the task is selected.
    pub fn has(&self, task: &TaskRow) -> bool {
        let Self { events, plugin, derivation, states } = self;
        (events.is_empty() || events.iter().any(|event| task.event.id.starts_with(event.as_str())))
            && plugin.as_ref().is_none_or(|plugin| *plugin == task.plugin)
            && derivation.as_ref().is_none_or(|part| task.event.drv_path.contains(part.as_str()))
            && (states.is_empty() || states.contains(&task.state))
    }
}

impl Journal {
    /// Makes a dead, lost, refused or waiting task due, with a new count of attempts if it was not
    /// waiting. The event is open again. Returns false if the task has another state by now.
    ///
    /// # Errors
    /// SQLite reports an error.
    pub fn revive(&mut self, event: &str, plugin: &str, now_ms: u64) -> Result<bool, JournalError> {
        self.write(|transaction| {
            let changed = transaction.execute(
                "UPDATE tasks SET state = 'pending', not_before_ms = 0, attempts = 0, age_ms = 0, last_ms = NULL, updated_ms = ?3
                 WHERE event = ?1 AND plugin = ?2
                 AND (state IN ('dead', 'lost', 'refused')
                      OR (state = 'pending' AND (not_before_ms > ?3 OR EXISTS (SELECT 1 FROM breakers WHERE plugin = ?2))))",
                params![event, plugin, sql_time(now_ms)],
            )?;
            if changed > 0 {
                transaction.execute("UPDATE events SET ended_ms = NULL WHERE id = ?1", [event])?;
            }
            Ok(changed > 0)
        })
    }

    /// Records the number of roots of an event that was opened again and whose roots were created
    /// again.
    ///
    /// # Errors
    /// SQLite reports an error.
    pub fn rooted(&mut self, event: &str, count: usize) -> Result<(), JournalError> {
        self.write(|transaction| {
            transaction
                .execute(
                    "UPDATE events SET rooted = max(rooted, ?2) WHERE id = ?1",
                    params![event, sql_count(count)],
                )
                .map(drop)
        })
    }

    /// Removes a task that is dead, lost, refused, due or waiting; its attempts stay in the log. A
    /// running task is not changed. The second value is whether the event's roots may be removed.
    ///
    /// # Errors
    /// SQLite reports an error.
    pub fn discard(
        &mut self,
        event: &str,
        plugin: &str,
        now_ms: u64,
    ) -> Result<(bool, bool), JournalError> {
        self.write(|transaction| {
            let changed = transaction.execute(
                "DELETE FROM tasks WHERE event = ?1 AND plugin = ?2
                 AND state IN ('dead', 'lost', 'refused', 'blocked', 'pending')",
                params![event, plugin],
            )?;
            if changed > 0 {
                unblock(transaction, event, plugin)?;
            }
            let ended = changed > 0 && end_event(transaction, event, now_ms)?;
            Ok((changed > 0, ended))
        })
    }

    /// Returns the event called `id`, as the hook handed it over; none if it does not exist or
    /// cannot be read.
    ///
    /// # Errors
    /// SQLite reports an error.
    pub fn event(&self, id: &str) -> Result<Option<Event>, JournalError> {
        self.read(|connection| {
            let mut rows = connection.prepare("SELECT body FROM events WHERE id = ?1")?;
            let mut rows = rows.query([id])?;
            Ok(rows.next()?.and_then(|row| columns::json(row, 0).ok()))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::journal::{Attempt, DueOrder, EndedAttempt, Incoming, Task};
    use crate::retry::Next;
    use crate::tests::post_build;
    use hookrun_nix::dirs::Dirs;
    use hookrun_nix::outcome::{Outcome, RunReport};

    /// Returns a journal with one dead letter.
    fn with_a_dead_letter() -> (tempfile::TempDir, Dirs, Event) {
        let directory = tempfile::tempdir().unwrap();
        let dirs = Dirs { config: directory.path().join("c"), state: directory.path().to_owned() };
        let (mut journal, _) = Journal::open(&dirs).unwrap();
        let event = post_build("hello-1.0");
        journal
            .take(
                &[Incoming { event: &event, uid: 0, plugins: vec!["cache".into()], rooted: 0 }],
                1,
            )
            .unwrap();
        let number = begin(&mut journal, &event, 2);
        let outcome =
            Outcome::Failed { message: "no".to_owned(), transient: false, retry_after_ms: None };
        let report = RunReport::from(outcome);
        let attempt = Attempt { event: &event.id, plugin: "cache", number, start_ms: 2, end_ms: 3 };
        let ended = EndedAttempt { attempt, report: &report, next: Next::Dead, age_ms: 1 };
        assert_eq!(journal.step(&[ended], &[], 3).unwrap().0, [false], "it keeps its roots");
        (directory, dirs, event)
    }

    fn begin(journal: &mut Journal, event: &Event, now: u64) -> u32 {
        let task = Task { plugin: "cache".into(), event: event.clone() };
        journal.step(&[], &[task], now).unwrap().1.remove(0).unwrap().number
    }

    fn due(journal: &Journal) -> Vec<Task> {
        journal.due("cache", 100, 10, DueOrder::Oldest).unwrap().0
    }

    #[test]
    fn a_dead_letter_is_revived_once() {
        let (_directory, dirs, event) = with_a_dead_letter();
        let mut journal = Journal::open_to_change(&dirs).unwrap().unwrap();
        assert!(journal.revive(&event.id, "cache", 10).unwrap());
        assert!(!journal.revive(&event.id, "cache", 10).unwrap(), "it is due already");
        assert_eq!(due(&journal).len(), 1);
        assert_eq!(journal.event(&event.id).unwrap(), Some(event.clone()));
        assert_eq!(begin(&mut journal, &event, 11), 1, "the count of attempts starts again");
        assert!(!journal.revive(&event.id, "cache", 12).unwrap(), "running tasks are not changed");
        assert_eq!(journal.discard(&event.id, "cache", 12).unwrap(), (false, false));
    }

    #[test]
    fn a_dropped_task_is_removed_and_its_attempts_stay() {
        let (_directory, dirs, event) = with_a_dead_letter();
        let mut journal = Journal::open_to_change(&dirs).unwrap().unwrap();
        assert!(journal.discard(&event.id, "cache", 10).unwrap().0);
        assert!(due(&journal).is_empty());
        assert_eq!(journal.open_tasks(10).unwrap().dead, 0);
    }

    #[test]
    fn a_missing_journal_is_none() {
        let directory = tempfile::tempdir().unwrap();
        let dirs = Dirs { config: directory.path().join("c"), state: directory.path().to_owned() };
        assert!(Journal::open_to_change(&dirs).unwrap().is_none());
    }
}
