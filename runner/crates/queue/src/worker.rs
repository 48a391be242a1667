//! The worker: takes events from the spool into the journal and runs the tasks.
//!
//! Called by `hookrun drain`, `hookrun daemon` and the worker that a hook starts. Only one runs at
//! a time ([`super::lock`]). It may be killed at any instruction: an event is in the journal before
//! its spool file is removed, and an interrupted attempt is made again. It knows only the names of
//! plugins: an [`Executor`] runs them.
//!
//! This file contains the loop. `lifecycle`: the lock, and errors that can pass. `intake`: from the
//! spool into the journal. `step`: attempts end and begin. `upkeep`: regular maintenance.

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
use watch::Watch;

/// The spool, the journal and the files of plugins are looked at this often even if nobody reports
/// a change: watching may fail, and clocks may be set.
const SAFETY_POLL: Duration = Duration::from_secs(30);
/// How long runs may still take once the worker is asked to stop. The queue is durable; systemd
/// kills after 90 s.
pub const STOP_LIMIT: Duration = Duration::from_secs(10);
/// Changes of files within this time are taken up together: an installation writes more than one.
const SETTLE: Duration = Duration::from_millis(200);

/// How often it is written down how far uploads are.
const TRANSFERS: Duration = Duration::from_secs(2);

/// While many run, those that end within this time are written down together.
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
    watch: Watch,
    state: WorkerState,
    /// A look at the executor's files, while it lasts.
    refreshing: Option<BoxFuture<'static, Refreshed>>,
    runs: JoinSet<RunReport>,
    running: HashMap<Id, Run>,
    /// Runs in flight, by plugin.
    in_flight: BTreeMap<String, usize>,
    /// Runs that have ended and are not written down yet.
    ended: Vec<(Run, RunReport)>,
    /// Plugins that may have tasks that are due.
    due: BTreeSet<String>,
    /// Tasks read ahead, by plugin.
    ready: BTreeMap<String, VecDeque<Task>>,
    breakers: BTreeMap<String, Breaker>,
    /// Events of refused tasks that run as a try for all refused ones of their plugin, by plugin.
    tries: BTreeMap<String, String>,
    /// The latest time that was seen.
    latest_ms: u64,
    upkeep_ms: u64,
    refresh_ms: u64,
    idle_since: Option<u64>,
    /// When the uploads under way were last looked at.
    transfers_seen: Instant,
    service: Service,
    stopped: bool,
}

/// A run in flight.
#[derive(Debug)]
struct Run {
    task: Task,
    number: u32,
    start_ms: u64,
    /// What counted towards `give-up-after` before it, and when the attempt before it ended.
    age_ms: u64,
    last_ms: Option<u64>,
    /// Whether an open breaker waits for it.
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
                "{interrupted} attempts of the worker before did not end; they are made again"
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
        let (mut watch, unwatched) = Watch::new(dirs, reader.directories());
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
            // Due when what is in the spool now is taken.
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
                "the spool cannot be watched ({error}), and is looked at every {poll} s; raise fs.inotify.max_user_watches"
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
        // However much is in the spool: a service manager does not wait for long.
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
                // Each file that is taken is a change of the spool, so that something is always
                // ready below: runs and signals have their turn here.
                tokio::task::yield_now().await;
            }
            tokio::select! {
                // Who asks it to stop comes first, however much there is to do. Runs that ended
                // while others of these came are found by the turn.
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

    /// What is looked at now and then. Commands read the journal's file, of which this process may
    /// have all it needs in memory.
    fn poll(&mut self) -> Result<(), WorkerError> {
        if self.journal.is_in_place() {
            self.journal.verify()?;
        }
        self.look()
    }

    /// What is looked at now and then, and when something came into the spool.
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
            // What nobody reported.
            self.refresh_after(Duration::ZERO);
        }
        Ok(())
    }

    /// A worker that a hook started makes way for the new program when nothing runs; for another
    /// one somebody else has to.
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

    /// Upkeep, if it is due. It waits for events that are being taken, whose roots it must not take
    /// for orphans, but not for ever.
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
                "configuration or plugins have changed and are taken up; {again} refused tasks may run again"
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

    /// Writes down how far uploads are, now and then while tasks run.
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

    /// How long there is nothing to do; none: the worker is to end.
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
                    // A refused one is tried now and then.
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
            // Once more into the spool: the last look may be older than the last event.
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

    /// Lets what runs end, for a while, and gives the rest back.
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

/// The future's value, if there is one.
async fn or_never<T>(future: &mut Option<BoxFuture<'static, T>>) -> T {
    match future {
        Some(future) => future.await,
        None => std::future::pending().await,
    }
}

/// The report of a run that ended in a defect of hookrun itself. It is retried as a trap is.
pub fn defect() -> RunReport {
    let message =
        "an internal error of hookrun ended the run; please report it with the worker's log"
            .to_owned();
    Outcome::Trapped { message }.into()
}

#[cfg(test)]
mod tests;
