//! Follows the journal for `hookrun log --follow`: returns new attempts, also if a worker replaces
//! a damaged journal.
//!
//! It reads SQLite's `data_version` a few times per second, which costs a read of shared memory. A
//! watch of the directory would report every write of the log, and would have to be renewed for
//! each new file.

use hookrun_nix::dirs::Dirs;
use hookrun_queue::journal::{self, AttemptRow, FileId, Journal, JournalError, LogFilter};

/// Returns the attempts that are new since the last call.
pub(super) struct Follower {
    dirs: Dirs,
    filter: LogFilter,
    /// The journal, open as long as the file is the same.
    journal: Option<Journal>,
    file: Option<FileId>,
    version: Option<i64>,
    /// The number of the newest row that was read.
    seen: i64,
}

impl Follower {
    /// Returns a follower of the attempts that `filter` admits. Its `limit` applies only to
    /// [`Follower::first`].
    pub(super) fn new(dirs: &Dirs, filter: LogFilter) -> Self {
        Self { dirs: dirs.clone(), filter, journal: None, file: None, version: None, seen: 0 }
    }

    /// Returns the attempts that already exist; none without a journal.
    ///
    /// # Errors
    /// The journal cannot be read.
    pub(super) fn first(&mut self) -> Result<Vec<AttemptRow>, JournalError> {
        let limit = self.filter.limit;
        let rows = self.look(limit);
        self.filter.limit = None;
        rows
    }

    /// Returns the attempts since the last call. If the journal cannot be read at the moment (it is
    /// being replaced or created), there are none.
    pub(super) fn next(&mut self) -> Vec<AttemptRow> {
        self.look(None).unwrap_or_else(|_| {
            // The next call opens the journal again and continues at this row.
            self.journal = None;
            self.version = None;
            Vec::new()
        })
    }

    fn look(&mut self, limit: Option<usize>) -> Result<Vec<AttemptRow>, JournalError> {
        let file = journal::file_id(&self.dirs);
        if file != self.file {
            self.journal = None;
            self.version = None;
            // A new journal numbers its rows from 1.
            if file.is_some() {
                self.seen = 0;
            }
            self.file = file;
        }
        if self.file.is_none() {
            return Ok(Vec::new());
        }
        if self.journal.is_none() {
            self.journal = Journal::open_read_only(&self.dirs)?;
        }
        let Some(journal) = &self.journal else { return Ok(Vec::new()) };
        let version = journal.data_version()?;
        if self.version == Some(version) {
            return Ok(Vec::new());
        }
        // Read before the rows, so that rows added in between are found by the next call.
        let newest = journal.newest_attempt()?;
        // SQLite reuses row numbers after the newest rows were deleted.
        let after = self.seen.min(newest);
        let rows = journal.log(&LogFilter { after: Some(after), limit, ..self.filter.clone() })?;
        self.seen = rows.last().map_or(newest, |row| row.id.max(newest));
        self.version = Some(version);
        Ok(rows)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use hookrun_nix::event::{Event, HookEvent, PostBuild};
    use hookrun_nix::outcome::{Outcome, RunReport};
    use hookrun_queue::journal::{Attempt, EndedAttempt, Incoming, Task};
    use hookrun_queue::retry::Next;

    fn attempt(journal: &mut Journal, name: &str, done: bool) {
        let drv_path = format!("/nix/store/00bgd045z0d4icpbc2yyz4gx48ak44la-{name}.drv");
        let event = Event::now(HookEvent::PostBuild(PostBuild { drv_path, outputs: Vec::new() }));
        journal
            .take(
                &[Incoming { event: &event, uid: 0, plugins: vec!["cache".into()], rooted: 0 }],
                1,
            )
            .unwrap();
        let task = Task { plugin: "cache".into(), event: event.clone() };
        let number = journal.step(&[], &[task], 2).unwrap().1.remove(0).unwrap().number;
        let outcome = if done {
            Outcome::Done { message: "well".to_owned(), details: Vec::new() }
        } else {
            Outcome::Failed { message: "no".to_owned(), transient: false, retry_after_ms: None }
        };
        let report = RunReport::from(outcome);
        let attempt = Attempt { event: &event.id, plugin: "cache", number, start_ms: 2, end_ms: 3 };
        let next = if done { Next::Done } else { Next::Dead };
        let ended = EndedAttempt { attempt, report: &report, next, age_ms: 1 };
        journal.step(&[ended], &[], 3).unwrap();
    }

    fn names(rows: Vec<AttemptRow>) -> Vec<String> {
        rows.into_iter().map(|row| row.event.name).collect()
    }

    #[test]
    fn each_new_attempt_is_returned_once_also_after_the_journal_was_replaced() {
        let directory = tempfile::tempdir().unwrap();
        let dirs = Dirs { config: directory.path().join("c"), state: directory.path().to_owned() };
        let mut follower =
            Follower::new(&dirs, LogFilter { limit: Some(1), ..LogFilter::default() });
        assert!(follower.first().unwrap().is_empty(), "no journal yet");
        let (mut journal, _) = Journal::open(&dirs).unwrap();
        attempt(&mut journal, "a", true);
        attempt(&mut journal, "b", false);
        assert_eq!(
            names(follower.next()),
            ["a", "b"],
            "the limit applies only to existing attempts"
        );
        assert!(follower.next().is_empty());
        attempt(&mut journal, "c", true);
        assert_eq!(names(follower.next()), ["c"]);
        drop(journal);
        std::fs::remove_dir_all(dirs.journal()).unwrap();
        assert!(follower.next().is_empty());
        let (mut journal, _) = Journal::open(&dirs).unwrap();
        attempt(&mut journal, "d", true);
        assert_eq!(names(follower.next()), ["d"]);
        let mut dead = Follower::new(
            &dirs,
            LogFilter { outcome: Some(journal::EndedAs::Dead), ..LogFilter::default() },
        );
        assert!(dead.first().unwrap().is_empty());
        attempt(&mut journal, "e", false);
        assert_eq!(names(dead.next()), ["e"]);
    }
}
