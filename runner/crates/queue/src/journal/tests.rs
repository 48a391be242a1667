//! Tests of the journal, and the scene that they share.

mod attempts;
mod ingest;
mod limits;
mod opening;
mod query;

use std::path::Path;

use super::*;
use crate::retry::{Next, Uncounted};
use crate::tests::{diff, post_build};
use hookrun_nix::dirs::Dirs;
use hookrun_nix::event::{Event, Origin};
use hookrun_nix::outcome::{Class, LogLine, Outcome, RunReport, Usage};

struct Scene {
    dir: tempfile::TempDir,
    dirs: Dirs,
    journal: Journal,
}

impl Scene {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let dirs = Dirs { config: dir.path().join("none"), state: dir.path().to_owned() };
        let (journal, notice) = Journal::open(&dirs).unwrap();
        assert_eq!(notice, None);
        Self { dir, dirs, journal }
    }

    /// Returns another worker, after a change of the file.
    fn reopen(self, meanwhile: impl FnOnce(&Path)) -> (Self, Option<Damage>) {
        let Self { dir, dirs, journal } = self;
        drop(journal);
        meanwhile(&dirs.journal().join(FILE));
        let (journal, notice) = Journal::open(&dirs).unwrap();
        (Self { dir, dirs, journal }, notice)
    }

    fn take(&mut self, event: &Event, plugins: &[&str]) -> IngestResult {
        self.take_wanted(event, plugins.iter().map(|plugin| NewTask::from(*plugin)).collect())
    }

    fn take_wanted(&mut self, event: &Event, plugins: Vec<NewTask>) -> IngestResult {
        self.journal
            .take(&[Incoming { event, uid: 0, plugins, rooted: 1 }], 1000)
            .unwrap()
            .remove(0)
    }

    fn begin(&mut self, event: &Event, plugin: &str, now: u64) -> Option<u32> {
        let task = Task { plugin: plugin.into(), event: event.clone() };
        self.journal.step(&[], &[task], now).unwrap().1.remove(0).map(|begun| begun.number)
    }

    fn due(&self, plugin: &str, now: u64) -> Vec<String> {
        let tasks = self.journal.due(plugin, now, 99, DueOrder::Oldest).unwrap().0;
        tasks.into_iter().map(|task| task.event.name().to_owned()).collect()
    }

    fn attempt(&mut self, event: &Event, plugin: &str, outcome: Outcome, next: Next) -> bool {
        // The task may run whatever it was waiting for.
        let number = self.begin(event, plugin, 1_000_000).unwrap();
        let log = vec![LogLine { level: "info".into(), message: "said".into(), fields: vec![] }];
        let report =
            RunReport { usage: Usage { memory: 65536, ..Usage::default() }, log, ..outcome.into() };
        let attempt = Attempt { event: &event.id, plugin, number, start_ms: 2000, end_ms: 2500 };
        self.journal
            .step(&[EndedAttempt { attempt, report: &report, next, age_ms: 0 }], &[], 2500)
            .unwrap()
            .0
            .remove(0)
    }

    fn states(&self) -> Vec<(String, String)> {
        let mut statement = self
            .journal
            .connection
            .prepare("SELECT plugin, state FROM tasks ORDER BY event, plugin")
            .unwrap();
        let rows = statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?))).unwrap();
        rows.map(Result::unwrap).collect()
    }
}

fn done() -> Outcome {
    Outcome::Done { message: "uploaded".into(), details: vec![] }
}

fn failed() -> Outcome {
    Outcome::Failed { message: "no answer".into(), transient: true, retry_after_ms: None }
}
