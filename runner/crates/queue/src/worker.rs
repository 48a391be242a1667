//! The worker: takes events from the spool into the journal and runs the tasks.
//!
//! Called by `hookrun drain`, `hookrun daemon` and the worker that a hook starts. Only one runs at
//! a time ([`super::lock`]). It may be killed at any instruction: an event is in the journal before
//! its spool file is removed, and an interrupted attempt is repeated. It knows only the names of
//! plugins: an [`Executor`] runs them.
//!
//! This file contains the loop. `lifecycle` contains the lock and the handling of temporary errors,
//! `intake` the way from the spool into the journal, `step` the start and end of attempts, and
//! `upkeep` the regular maintenance.

mod clock;
mod executor;
mod intake;
mod lifecycle;
mod notice;
mod options;
mod priority;
mod schedule;
mod service;
mod state_file;
mod step;
mod upkeep;
mod watch;

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use tokio::task::{Id, JoinSet};
use tokio::time::Instant;

use super::breaker::Breaker;
use super::journal::{Damage, Journal, Task};
use super::spawn;
use super::spool::Reader;
use super::trust::Trust;
use hookrun_config as config;
use hookrun_nix::dirs::Dirs;
use hookrun_nix::outcome::{Outcome, RunReport};

pub use clock::{Clock, SystemClock};
pub use executor::{Executor, Refreshed};
pub use lifecycle::{asked_to_stop, run};
pub use notice::Notice;
pub use options::{Mode, Options, Summary, WorkerError};
pub use priority::lower as lower_priority;
use service::Service;
pub use state_file::{Running, WorkerState};
use watch::FileWatch;

/// The interval at which the spool, the journal and the files of plugins are checked even if no
/// change is reported, because watching may fail and clocks may be set.
const SAFETY_POLL: Duration = Duration::from_secs(30);
/// The time for running attempts to end after a request to stop. The queue is durable, and systemd
/// kills the service after 90 s.
pub const STOP_LIMIT: Duration = Duration::from_secs(10);
/// Changes of files within this time are applied together, because an installation writes several
/// files.
const SETTLE: Duration = Duration::from_millis(200);

/// The interval at which the progress of uploads is stored.
const TRANSFERS: Duration = Duration::from_secs(2);

/// While many attempts run, those that end within this time are recorded together.
const GATHER: Duration = Duration::from_millis(2);

struct Worker<'a> {
    dirs: Dirs,
    executor: Arc<dyn Executor>,
    settings: config::Worker,
    options: Options,
    observer: &'a mut (dyn FnMut(Notice<'_>) + Send),
    summary: &'a mut Summary,
    journal: Journal,
    reader: Reader,
    /// Build users whose events are left in the spool for now.
    over_share: BTreeSet<u32>,
    said_of_rejected: intake::Lines,
    watch: FileWatch,
    state: WorkerState,
    /// A check of the executor's files, while it runs.
    refreshing: Option<BoxFuture<'static, Refreshed>>,
    runs: JoinSet<RunReport>,
    running: HashMap<Id, Run>,
    /// The number of running attempts by plugin.
    in_flight: BTreeMap<String, usize>,
    /// Attempts that have ended and are not recorded yet.
    ended: Vec<(Run, RunReport)>,
    /// Plugins that may have due tasks.
    due: BTreeSet<String>,
    /// Tasks that were read ahead, by plugin.
    ready: BTreeMap<String, VecDeque<Task>>,
    breakers: BTreeMap<String, Breaker>,
    /// For each plugin, the event whose refused task is tested for all its refused tasks.
    tries: BTreeMap<String, String>,
    /// The latest time that was seen.
    latest_ms: u64,
    upkeep_ms: u64,
    refresh_ms: u64,
    idle_since: Option<u64>,
    /// The time when the uploads in progress were last read.
    transfers_seen: Instant,
    service: Service,
    stopped: bool,
}

/// A running attempt.
#[derive(Debug)]
struct Run {
    task: Task,
    number: u32,
    start_ms: u64,
    /// The time that counted towards `give-up-after` before it, and the time when the previous
    /// attempt ended.
    age_ms: u64,
    last_ms: Option<u64>,
    /// Whether it is the test of an open breaker.
    is_try: bool,
}

impl<'a> Worker<'a> {
    fn open(
        dirs: &Dirs,
        (mut journal, damage): (Journal, Option<Damage>),
        executor: Arc<dyn Executor>,
        options: Options,
        observer: &'a mut (dyn FnMut(Notice<'_>) + Send),
        summary: &'a mut Summary,
    ) -> Result<Self, WorkerError> {
        let now = options.clock.now_ms();
        if let Some(damage) = damage {
            observer(Notice::Warning(&damage.notice));
            intake::hand_over_again(dirs, &damage.salvaged, observer);
        }
        let interrupted = journal.resume(now)?;
        if interrupted > 0 {
            observer(Notice::Warning(&format!(
                "{interrupted} attempts of the previous worker were interrupted and are repeated"
            )));
        }
        journal.readmit(None)?;
        journal.clock_was_set(now, upkeep::CLOCK_SLACK_MS)?;
        let breakers = journal
            .breakers()?
            .into_iter()
            .map(|open| (open.plugin, Breaker::reopened(open.since_ms, open.until_ms, open.trips)))
            .collect();
        let reader = Reader::new(dirs, Trust::from_env());
        let (mut watch, unwatched) = FileWatch::new(dirs, reader.directories());
        watch.follow(&executor.files());
        let settings = executor.settings();
        let priority = settings.priority.as_str().to_owned();
        let mut worker = Self {
            dirs: dirs.clone(),
            settings,
            executor,
            service: Service::new(options.mode == Mode::Daemon),
            options,
            observer,
            summary,
            journal,
            reader,
            over_share: BTreeSet::new(),
            said_of_rejected: intake::Lines::default(),
            watch,
            state: WorkerState {
                pid: std::process::id(),
                version: env!("CARGO_PKG_VERSION").to_owned(),
                priority,
                started_ms: now,
                ..WorkerState::default()
            },
            refreshing: None,
            runs: JoinSet::new(),
            running: HashMap::new(),
            in_flight: BTreeMap::new(),
            ended: Vec::new(),
            due: BTreeSet::new(),
            ready: BTreeMap::new(),
            breakers,
            tries: BTreeMap::new(),
            latest_ms: now,
            // Due after the current contents of the spool were taken.
            upkeep_ms: now.saturating_sub(millis(upkeep::INTERVAL)),
            refresh_ms: now,
            idle_since: None,
            transfers_seen: Instant::now(),
            stopped: false,
        };
        worker.unwatched(unwatched);
        worker.say_state();
        Ok(worker)
    }

    fn now_ms(&self) -> u64 {
        self.options.clock.now_ms()
    }

    fn warn(&mut self, message: &str) {
        (self.observer)(Notice::Warning(message));
    }

    fn unwatched(&mut self, error: Option<String>) {
        if let Some(error) = error {
            let poll = SAFETY_POLL.as_secs();
            self.warn(&format!(
                "the spool cannot be watched ({error}) and is checked every {poll} s; raise fs.inotify.max_user_watches"
            ));
        }
    }

    fn say_state(&mut self) {
        if let Err(error) = self.state.write(&self.dirs) {
            self.warn(&format!(
                "{} cannot be written ({error}); make space there",
                self.dirs.worker_state().display()
            ));
        }
    }

    async fn work(
        &mut self,
        mut stop: Pin<&mut (impl Future<Output = ()> + Send)>,
    ) -> Result<(), WorkerError> {
        self.match_unwanted()?;
        self.look()?;
        // The service is ready even if the spool is full, because a service manager does not wait
        // for long.
        self.service.ready();
        loop {
            if self.now_ms().saturating_sub(self.latest_ms) >= millis(SAFETY_POLL) {
                self.poll()?;
            }
            self.take_some()?;
            self.keep_up()?;
            self.turn()?;
            self.show_transfers();
            let sleep = if self.reader.has_more() {
                Duration::ZERO
            } else {
                let Some(sleep) = self.pause()? else { return Ok(()) };
                sleep
            };
            self.service.alive(self.in_flight.values().sum());
            let clock = Arc::clone(&self.options.clock);
            if sleep.is_zero() {
                // Each file that is taken changes the spool, so one of the branches below is always
                // ready. Yield here, so that runs and signals are handled as well.
                tokio::task::yield_now().await;
            }
            tokio::select! {
                // A request to stop comes first, however much work there is. Other runs that ended
                // meanwhile are found by `turn`.
                biased;
                () = stop.as_mut() => {
                    self.stopped = true;
                    return self.stop().await;
                }
                refreshed = or_never(&mut self.refreshing) => {
                    self.refreshing = None;
                    self.refreshed(refreshed)?;
                }
                changed = self.watch.changed() => {
                    for (directory, name) in changed.arrived {
                        self.reader.came(directory, name);
                    }
                    if changed.spool {
                        self.look()?;
                    }
                    if changed.files {
                        self.refresh_after(SETTLE);
                    }
                }
                Some(ended) = self.runs.join_next_with_id() => {
                    self.ended(ended);
                    self.gather().await;
                }
                () = tokio::time::sleep(TRANSFERS), if !self.in_flight.is_empty() => {}
                () = std::future::ready(()), if sleep.is_zero() => {}
                () = clock.sleep(sleep), if !sleep.is_zero() => self.poll()?,
            }
        }
    }

    /// Performs the regular checks. Commands read the journal's file, but this process may have all
    /// its pages in memory, so the file is verified.
    fn poll(&mut self) -> Result<(), WorkerError> {
        if self.journal.is_in_place() {
            self.journal.verify()?;
        }
        self.look()
    }

    /// Performs the checks that are also needed when files arrived in the spool.
    fn look(&mut self) -> Result<(), WorkerError> {
        let now = self.now_ms();
        if now.saturating_add(upkeep::CLOCK_SLACK_MS) < self.latest_ms {
            let back = Duration::from_millis(self.latest_ms.saturating_sub(now)).as_secs();
            let moved = self.journal.clock_was_set(now, upkeep::CLOCK_SLACK_MS)?;
            self.warn(&format!(
                "the clock was set back by {back} s; {moved} waiting tasks were rescheduled"
            ));
            self.breakers.values_mut().for_each(|breaker| breaker.clock_was_set(now));
            self.upkeep_ms = self.upkeep_ms.min(now);
            self.refresh_ms = self.refresh_ms.min(now);
        }
        self.latest_ms = now;
        if !self.journal.is_in_place() {
            return Err(WorkerError::Gone { path: self.dirs.journal() });
        }
        let unwatched = self.watch.follow_spool();
        self.unwatched(unwatched);
        self.notice_upgrade();
        self.say_left_out();
        self.reader.look_again();
        self.forget_closed_breakers()?;
        self.try_refused(now)?;
        self.due = self.journal.due_plugins(now)?.into_iter().collect();
        if now.saturating_sub(self.refresh_ms) >= millis(SAFETY_POLL) {
            // Finds changes that were not reported.
            self.refresh_after(Duration::ZERO);
        }
        Ok(())
    }

    /// Ends a worker that a hook has started if its program was replaced and no attempt runs. Other
    /// workers must be restarted by the operator.
    fn notice_upgrade(&mut self) {
        if self.summary.replaced || !spawn::is_replaced() {
            return;
        }
        self.summary.replaced = true;
        if matches!(self.options.mode, Mode::Daemon) {
            let problem = "its program was replaced; run `systemctl restart hookrun`".to_owned();
            self.warn(&problem);
            self.state.own_problem = Some(problem);
            self.say_state();
        }
    }

    /// Performs maintenance, if it is due. It waits while events are being taken, because their
    /// roots must not count as orphans, but only for a limited time.
    fn keep_up(&mut self) -> Result<(), WorkerError> {
        let now = self.now_ms();
        let intervals = if self.reader.has_more() { 2 } else { 1 };
        if now.saturating_sub(self.upkeep_ms) >= millis(upkeep::INTERVAL).saturating_mul(intervals)
        {
            self.upkeep_ms = now;
            for notice in upkeep::run(&mut self.journal, &self.settings, now)? {
                self.warn(&notice);
            }
        }
        Ok(())
    }

    fn refresh_after(&mut self, settle: Duration) {
        self.refresh_ms = self.now_ms();
        if self.refreshing.is_none() {
            let (executor, settle) = (Arc::clone(&self.executor), self.options.clock.sleep(settle));
            self.refreshing = Some(Box::pin(async move {
                settle.await;
                executor.refresh().await
            }));
        }
    }

    fn refreshed(&mut self, refreshed: Refreshed) -> Result<(), WorkerError> {
        let Refreshed { changed, problems } = refreshed;
        for problem in problems
            .iter()
            .filter(|problem| !self.state.problems.contains(problem))
            .cloned()
            .collect::<Vec<_>>()
        {
            self.warn(&problem);
        }
        if changed {
            self.settings = self.executor.settings();
            self.watch.follow(&self.executor.files());
            let again = self.journal.readmit(None)?;
            self.tries.clear();
            self.warn(&format!(
                "the new configuration or plugins were applied; {again} refused tasks may run again"
            ));
            self.state.refreshed_ms = self.now_ms();
            self.match_unwanted()?;
            self.due = self.journal.due_plugins(self.now_ms())?.into_iter().collect();
        }
        if changed || problems != self.state.problems {
            self.state.problems = problems;
            self.say_state();
        }
        Ok(())
    }

    /// Stores the progress of uploads at intervals while tasks run.
    fn show_transfers(&mut self) {
        let transfers = if self.in_flight.is_empty() {
            Vec::new()
        } else if self.transfers_seen.elapsed() >= TRANSFERS {
            self.transfers_seen = Instant::now();
            self.executor.transfers()
        } else {
            return;
        };
        if transfers != self.state.transfers {
            self.state.transfers = transfers;
            self.say_state();
        }
    }

    /// Returns the time without work; none if the worker is to end.
    fn pause(&mut self) -> Result<Option<Duration>, WorkerError> {
        let now = self.now_ms();
        let mut sleep = SAFETY_POLL.min(self.service.interval());
        if self.in_flight.is_empty() && self.ended.is_empty() {
            let open = self.journal.open_tasks(now)?;
            let can_run = self.something_can_run(now)?;
            let ended = match self.options.mode {
                Mode::Drain => !can_run,
                Mode::Daemon => false,
                Mode::Spawned { idle_exit } => {
                    // Refused tasks are tested at intervals.
                    let idle = open.due == 0 && open.waiting == 0 && open.refused == 0;
                    let since = idle.then(|| *self.idle_since.get_or_insert(now));
                    self.idle_since = since;
                    let idle_for =
                        since.map(|since| Duration::from_millis(now.saturating_sub(since)));
                    let left = idle_for.map(|passed| idle_exit.saturating_sub(passed));
                    sleep = sleep.min(left.unwrap_or(sleep));
                    left == Some(Duration::ZERO) || self.summary.replaced
                }
            };
            // The spool is checked once more, because an event may have arrived after the last
            // check.
            if ended {
                self.reader.look_again();
                if self.take_some()? == 0 && !self.reader.has_more() {
                    return Ok(None);
                }
            }
            if ended || can_run {
                self.due = self.journal.due_plugins(now)?.into_iter().collect();
                return Ok(Some(Duration::ZERO));
            }
        } else {
            self.idle_since = None;
        }
        let next = self.journal.next_due(now)?.into_iter().chain(self.next_try(now)?).min();
        if let Some(next) = next {
            sleep = sleep.min(Duration::from_millis(next.saturating_sub(now).max(1)));
        }
        Ok(Some(sleep.max(Duration::from_millis(1))))
    }

    /// Waits for running attempts for a limited time, and gives the others back.
    async fn stop(&mut self) -> Result<(), WorkerError> {
        self.service.stopping();
        let limit = Instant::now() + self.options.stop_limit;
        while let Ok(Some(ended)) =
            tokio::time::timeout_at(limit, self.runs.join_next_with_id()).await
        {
            self.ended(ended);
        }
        self.runs.shutdown().await;
        self.settle(&[])?;
        let now = self.now_ms();
        for (_, run) in self.running.drain() {
            self.journal.give_back(&run.task.event.id, &run.task.plugin, now)?;
        }
        Ok(())
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// Waits for the future's value; for ever if there is no future.
async fn or_never<T>(future: &mut Option<BoxFuture<'static, T>>) -> T {
    match future {
        Some(future) => future.await,
        None => std::future::pending().await,
    }
}

/// Returns the report of a run that ended because of a defect of hookrun. It is retried like a
/// trap.
pub fn defect() -> RunReport {
    let message =
        "an internal error of hookrun ended the run; please report it with the worker's log"
            .to_owned();
    Outcome::Trapped { message }.into()
}

#[cfg(test)]
mod tests;
