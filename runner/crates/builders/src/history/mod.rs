//! What is remembered about machines and builds.
//!
//! [`History`] is a session's access: it opens the database ([`Record`]) when it is first needed
//! and closes it while a build waits or runs. It helps and never hurts: what cannot be read is
//! unknown, what cannot be written is forgotten.
//!
//! [`Record`] is the database: [`rows`] are its types, [`read`] and [`write`] its statements,
//! [`local_builds`] and [`paths_on_machines`] those of two tables. [`render`] makes a machines file
//! from what is known.

mod local_builds;
mod paths_on_machines;
mod read;
mod record;
pub mod render;
mod rows;
mod write;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::choice::health;
use hookrun_nix::selection::{Candidate, PastBuilds};

pub use local_builds::LocalBuild;
pub use read::Selection;
pub use record::{BUILDS_KEPT, DECISIONS_KEPT, KEPT_FOR, Record, RecordError};
pub use rows::{
    BuildRow, DecisionRow, MachineHealth, Move, NewBuild, Outcome, Past, Verdict, now_ms,
};
pub use write::Ended;

/// Makes a row of an answer, once Nix has it.
pub type Explain = Box<dyn FnOnce() -> DecisionRow>;

/// A session's access to what is remembered.
pub struct History {
    /// [`Dirs::builders`](hookrun_nix::dirs::Dirs::builders).
    directory: PathBuf,
    /// How long a machine is out after its first failure.
    retry_after: Duration,
    state: State,
    /// Does Nix wait for nothing any more?
    has_time: bool,
    /// Answers that Nix has, or is about to have, and that are not written yet.
    unsaved: Vec<Explain>,
    /// Builds left to this machine by these answers.
    unsaved_local: Vec<(Candidate, LocalBuild)>,
}

#[derive(Debug)]
enum State {
    Closed,
    Open(Record),
    /// It could not be opened: not tried again.
    Unusable,
}

impl History {
    /// What is in `directory`.
    pub fn new(directory: PathBuf, retry_after: Duration) -> Self {
        Self {
            directory,
            retry_after,
            state: State::Closed,
            has_time: false,
            unsaved: Vec::new(),
            unsaved_local: Vec::new(),
        }
    }

    /// Where it is.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Frees what an open database takes; the next use opens it again.
    pub fn close(&mut self) {
        self.save();
        if let State::Open(_) = self.state {
            self.state = State::Closed;
        }
    }

    /// Nix waits for nothing any more: others' writes may take longer.
    pub fn allow_slow_writes(&mut self) {
        self.has_time = true;
        match &self.state {
            State::Open(record) => record.allow_slow_writes(),
            // It may have been busy.
            State::Unusable => self.state = State::Closed,
            State::Closed => {}
        }
    }

    fn with<T: Default>(&mut self, act: impl FnOnce(&mut Record) -> Result<T, RecordError>) -> T {
        if matches!(self.state, State::Closed) {
            self.state = Record::open(&self.directory).map_or(State::Unusable, State::Open);
            if let (true, State::Open(record)) = (self.has_time, &self.state) {
                record.allow_slow_writes();
            }
        }
        let State::Open(record) = &mut self.state else { return T::default() };
        let result = act(record);
        // Nix is blocked: one wait for others is enough for one session.
        if !self.has_time && result.as_ref().is_err_and(RecordError::is_busy) {
            self.state = State::Unusable;
        }
        result.unwrap_or_default()
    }

    /// Health of all machines, by URI.
    pub fn machines(&mut self) -> BTreeMap<String, MachineHealth> {
        self.with(|record| record.machines())
    }

    /// Past durations.
    pub fn past(&mut self, pname: &str, system: &str) -> Past {
        self.with(|record| record.past(pname, system))
    }

    /// The machine answered after this time.
    pub fn answered(&mut self, machine: &str, took: Duration) {
        let took = u32::try_from(took.as_millis()).unwrap_or(u32::MAX);
        self.with(|record| record.machine_answered(machine, took, now_ms()));
    }

    /// The machine failed in an attempt that began then, by the clock that its answers are written
    /// down by.
    pub fn failed(&mut self, machine: &str, why: &str, began_ms: u64) {
        let (first, chance, now) = (self.retry_after, rand::random::<f64>(), now_ms());
        let retry = |failures| {
            let out = health::time_out(failures, first, chance);
            now.saturating_add(u64::try_from(out.as_millis()).unwrap_or(u64::MAX))
        };
        self.with(|record| record.machine_failed(machine, why, began_ms, now, retry));
    }

    /// Copies to the machine reached this speed.
    pub fn copied(&mut self, machine: &str, bytes_per_second: f64) {
        self.with(|record| record.machine_copied(machine, bytes_per_second));
    }

    /// A build was accepted.
    pub fn began(&mut self, build: &NewBuild<'_>) -> Option<i64> {
        let id = self.with(|record| record.begin_build(build).map(Some))?;
        crate::run::shutdown::taken(&self.directory, id);
        Some(id)
    }

    /// It has ended.
    pub fn ended(&mut self, id: Option<i64>, ended: &Ended<'_>) {
        if let Some(id) = id {
            self.with(|record| record.end_build(id, ended));
            crate::run::shutdown::closed();
        }
    }

    /// An answer to Nix, to be written by [`History::save`]: Nix does not wait for that.
    pub fn decided(&mut self, explain: Explain) {
        self.unsaved.push(explain);
    }

    /// Writes down what was decided. To be called once Nix has its answer.
    pub fn save(&mut self) {
        for explain in std::mem::take(&mut self.unsaved) {
            self.with(|record| record.decided(&explain()));
        }
        for (candidate, build) in std::mem::take(&mut self.unsaved_local) {
            self.with(|record| record.begin_local(&candidate, &build));
        }
    }

    /// How long builds of this package took on this machine.
    pub fn past_local(&mut self, pname: &str, system: &str) -> Option<PastBuilds> {
        self.with(|record| record.past_local(pname, system))
    }

    /// Nix is told to build `candidate` here; to be written by [`History::save`].
    pub fn left_here(&mut self, candidate: Candidate, build: LocalBuild) {
        self.unsaved_local.push((candidate, build));
    }

    /// Builds left to this machine that are not known to have ended.
    pub fn open_local(&mut self) -> Vec<LocalBuild> {
        self.with(|record| record.open_local(now_ms()))
    }

    /// One of them has ended well, and took so long where that is known.
    pub fn ended_here(&mut self, drv_path: &str, ended_ms: u64, seconds: Option<f64>) {
        self.with(|record| record.end_local(drv_path, ended_ms, seconds));
    }

    /// It goes to a machine after all.
    pub fn not_here(&mut self, drv_path: &str) {
        // Most never were: what reads is in nobody's way.
        if self.open_local().iter().any(|build| build.drv_path == drv_path) {
            self.with(|record| record.not_local(drv_path));
        }
    }

    /// `paths` are on `machine` now.
    pub fn record_paths_on<'p>(&mut self, machine: &str, paths: impl IntoIterator<Item = &'p str>) {
        self.with(|record| record.record_paths_on(machine, paths, now_ms()));
    }

    /// How many bytes of `paths` are on each machine that something is known of, by URI.
    pub fn bytes_present(&mut self, paths: &[(String, u64)]) -> BTreeMap<String, u64> {
        self.with(|record| record.bytes_present(paths, now_ms()))
    }

    /// Since when, in milliseconds since 1970, is the derivation postponed? Now is once more.
    pub fn postponed(&mut self, drv_path: &str) -> Option<u64> {
        self.with(|record| record.postponed(drv_path, now_ms()).map(Some))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_written_is_forgotten() {
        let mut history = History::new(PathBuf::from("/proc/nowhere"), Duration::from_secs(1));
        history.answered("ssh://m", Duration::ZERO);
        history.failed("ssh://m", "x", now_ms());
        assert!(history.machines().is_empty());
        assert_eq!(history.postponed("a"), None);
    }

    #[test]
    fn a_locked_database_is_waited_for_once_while_nix_is_blocked() {
        let directory = tempfile::tempdir().unwrap();
        let new = || History::new(directory.path().to_owned(), Duration::from_secs(1));
        new().answered("ssh://m", Duration::ZERO);
        let mut other =
            rusqlite::Connection::open(directory.path().join("builders.sqlite")).unwrap();
        let immediate = rusqlite::TransactionBehavior::Immediate;
        let held = other.transaction_with_behavior(immediate).unwrap();
        let mut history = new();
        history.failed("ssh://m", "x", now_ms());
        assert!(matches!(history.state, State::Unusable), "no second wait");
        assert!(history.machines().is_empty());
        drop(held);
        history.allow_slow_writes();
        assert_eq!(history.machines().len(), 1, "it is tried again when Nix is not blocked");
    }

    #[test]
    fn what_was_written_is_there_after_a_rest() {
        let directory = tempfile::tempdir().unwrap();
        let mut history = History::new(directory.path().to_owned(), Duration::from_secs(10));
        history.failed("ssh://m", "x", now_ms());
        history.close();
        let machine = history.machines().remove("ssh://m").unwrap();
        assert_eq!(machine.failures, 1);
        let out = machine.retry_ms.unwrap() - machine.failed_ms.unwrap();
        assert!((7_500..=12_500).contains(&out), "{out}");
    }
}
