//! The history of machines and builds.
//!
//! [`History`] is a session's access: it opens the database ([`Record`]) when it is first needed,
//! and closes it while a build waits or runs. Errors never affect a build: data that cannot be read
//! counts as unknown, and data that cannot be written is dropped.
//!
//! [`Record`] is the database: [`rows`] are its types, [`read`] and [`mod@write`] its statements,
//! [`local_builds`] and [`paths_on_machines`] those of two tables. [`render`] makes a machines file
//! from it.

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
pub use read::RowSelection;
pub use record::{BUILDS_KEPT, DECISIONS_KEPT, KEPT_FOR, Record, RecordError};
pub use rows::{
    BuildOutcome, BuildRow, ConsideredMachine, DecisionRow, MachineHealth, Move, NewBuild, Past,
    now_ms,
};
pub use write::BuildEnd;

/// Creates the row of an answer, after Nix has it.
pub type Explain = Box<dyn FnOnce() -> DecisionRow>;

/// A session's access to the history.
pub struct History {
    /// [`Dirs::builders`](hookrun_nix::dirs::Dirs::builders).
    directory: PathBuf,
    /// The time for which a machine is out after its first failure.
    retry_after: Duration,
    state: State,
    /// Whether Nix is no longer blocked on this session.
    has_time: bool,
    /// Answers that are not written yet.
    unsaved: Vec<Explain>,
    /// Builds on this machine that follow from these answers.
    unsaved_local: Vec<(Candidate, LocalBuild)>,
}

#[derive(Debug)]
enum State {
    Closed,
    Open(Record),
    /// The database could not be opened, and is not tried again.
    Unusable,
}

impl History {
    /// Returns a history with the database in `directory`.
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

    /// Returns the directory of the database.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Writes unsaved data and closes the database. The next use opens it again.
    pub fn close(&mut self) {
        self.save();
        if let State::Open(_) = self.state {
            self.state = State::Closed;
        }
    }

    /// Allows a longer busy timeout, because Nix is no longer blocked.
    pub fn allow_slow_writes(&mut self) {
        self.has_time = true;
        match &self.state {
            State::Open(record) => record.allow_slow_writes(),
            // The database may have been busy.
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
        // Nix is blocked, so a session waits only once for others.
        if !self.has_time && result.as_ref().is_err_and(RecordError::is_busy) {
            self.state = State::Unusable;
        }
        result.unwrap_or_default()
    }

    /// Returns the health of all machines, by URI.
    pub fn machines(&mut self) -> BTreeMap<String, MachineHealth> {
        self.with(|record| record.machines())
    }

    /// Returns past durations of a package.
    pub fn past(&mut self, pname: &str, system: &str) -> Past {
        self.with(|record| record.past(pname, system))
    }

    /// Records that the machine answered after this time.
    pub fn answered(&mut self, machine: &str, took: Duration) {
        let took = u32::try_from(took.as_millis()).unwrap_or(u32::MAX);
        self.with(|record| record.machine_answered(machine, took, now_ms()));
    }

    /// Records that the machine failed in an attempt that began at `began_ms`, in milliseconds
    /// since 1970.
    pub fn failed(&mut self, machine: &str, why: &str, began_ms: u64) {
        let (first, chance, now) = (self.retry_after, rand::random::<f64>(), now_ms());
        let retry = |failures| {
            let out = health::time_out(failures, first, chance);
            now.saturating_add(u64::try_from(out.as_millis()).unwrap_or(u64::MAX))
        };
        self.with(|record| record.machine_failed(machine, why, began_ms, now, retry));
    }

    /// Records the speed of a copy to the machine.
    pub fn copied(&mut self, machine: &str, bytes_per_second: f64) {
        self.with(|record| record.machine_copied(machine, bytes_per_second));
    }

    /// Records that a build was accepted. Returns its number.
    pub fn began(&mut self, build: &NewBuild<'_>) -> Option<i64> {
        let id = self.with(|record| record.begin_build(build).map(Some))?;
        crate::run::shutdown::taken(&self.directory, id);
        Some(id)
    }

    /// Records how a build ended.
    pub fn ended(&mut self, id: Option<i64>, ended: &BuildEnd<'_>) {
        if let Some(id) = id {
            self.with(|record| record.end_build(id, ended));
            crate::run::shutdown::closed();
        }
    }

    /// Keeps an answer for [`History::save`], so that Nix does not wait for the write.
    pub fn decided(&mut self, explain: Explain) {
        self.unsaved.push(explain);
    }

    /// Writes the kept answers. Must be called after Nix has its answer.
    pub fn save(&mut self) {
        for explain in std::mem::take(&mut self.unsaved) {
            self.with(|record| record.decided(&explain()));
        }
        for (candidate, build) in std::mem::take(&mut self.unsaved_local) {
            self.with(|record| record.begin_local(&candidate, &build));
        }
    }

    /// Returns the durations of this package's builds on this machine.
    pub fn past_local(&mut self, pname: &str, system: &str) -> Option<PastBuilds> {
        self.with(|record| record.past_local(pname, system))
    }

    /// Keeps a build on this machine for [`History::save`].
    pub fn left_here(&mut self, candidate: Candidate, build: LocalBuild) {
        self.unsaved_local.push((candidate, build));
    }

    /// Returns the builds on this machine that are not known to have ended.
    pub fn open_local(&mut self) -> Vec<LocalBuild> {
        self.with(|record| record.open_local(now_ms()))
    }

    /// Records that a local build has succeeded, with its duration if that is known.
    pub fn ended_here(&mut self, drv_path: &str, ended_ms: u64, seconds: Option<f64>) {
        self.with(|record| record.end_local(drv_path, ended_ms, seconds));
    }

    /// Records that the build goes to another machine after all.
    pub fn not_here(&mut self, drv_path: &str) {
        // Most builds were never on this machine, and reading blocks no other session.
        if self.open_local().iter().any(|build| build.drv_path == drv_path) {
            self.with(|record| record.not_local(drv_path));
        }
    }

    /// Records that `paths` are on `machine`.
    pub fn record_paths_on<'p>(&mut self, machine: &str, paths: impl IntoIterator<Item = &'p str>) {
        self.with(|record| record.record_paths_on(machine, paths, now_ms()));
    }

    /// Returns for each known machine, by URI, how many bytes of `paths` it has.
    pub fn bytes_present(&mut self, paths: &[(String, u64)]) -> BTreeMap<String, u64> {
        self.with(|record| record.bytes_present(paths, now_ms()))
    }

    /// Records that the derivation is postponed. Returns the first time, in milliseconds since
    /// 1970.
    pub fn postponed(&mut self, drv_path: &str) -> Option<u64> {
        self.with(|record| record.postponed(drv_path, now_ms()).map(Some))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn data_that_cannot_be_written_is_dropped() {
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
    fn written_data_can_be_read_after_closing() {
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
