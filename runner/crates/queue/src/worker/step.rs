//! One step of the worker: records attempts that have ended, and begins others, in one transaction
//! of the journal.

use std::collections::{BTreeSet, VecDeque};
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::FutureExt as _;
use rand::RngExt as _;
use tokio::task::{Id, JoinError};

use super::schedule::{self, Ready};
use super::{GATHER, Notice, Run, Worker, WorkerError, defect};
use crate::breaker::{Admission, Breaker, BreakerChange, ServiceSign};
use crate::journal::{Attempt, DueOrder, EndedAttempt, OpenBreaker, Task, Unreadable};
use crate::retry::{self, AttemptState, Next};
use crate::roots;
use hookrun_nix::outcome::RunReport;

/// The number of tasks of one plugin that are read ahead from the journal.
const READ_AHEAD: usize = 64;

impl Worker<'_> {
    /// Records what has ended, and starts runs until the limit is reached or no task is due.
    pub(super) fn turn(&mut self) -> Result<(), WorkerError> {
        while let Some(ended) = self.runs.try_join_next_with_id() {
            self.ended(ended);
        }
        loop {
            let begin = self.choose()?;
            if begin.is_empty() && self.ended.is_empty() {
                return Ok(());
            }
            self.settle(&begin)?;
        }
    }

    /// Waits for a moment after a run has ended, so that other runs that end soon share its
    /// transaction, until a quarter of the runs have ended. The remaining runs keep the runner busy
    /// meanwhile. With up to four runs there is no waiting.
    pub(super) async fn gather(&mut self) {
        let mut over = self.options.clock.sleep(GATHER);
        while self.ended.len().saturating_mul(3) < self.running.len() {
            tokio::select! {
                biased;
                Some(ended) = self.runs.join_next_with_id() => self.ended(ended),
                () = &mut over => return,
            }
        }
    }

    /// Adds a run that has ended.
    pub(super) fn ended(&mut self, ended: Result<(Id, RunReport), JoinError>) {
        let (id, report) = ended.unwrap_or_else(|error| (error.id(), defect()));
        if let Some(run) = self.running.remove(&id) {
            let plugin = run.task.plugin.as_str();
            if let Some(count) = self.in_flight.get_mut(plugin) {
                *count = count.saturating_sub(1);
                if *count == 0 {
                    self.in_flight.remove(plugin);
                }
            }
            self.ended.push((run, report));
        }
    }

    /// Chooses the tasks to start. They count as running from here on.
    fn choose(&mut self) -> Result<Vec<Task>, WorkerError> {
        let now = self.now_ms();
        let most = self.settings.concurrency.max(1);
        let mut chosen: Vec<Task> = Vec::new();
        let mut exhausted: Vec<String> = Vec::new();
        while self.in_flight.values().sum::<usize>() < most {
            let ready =
                self.due.iter().filter(|plugin| !exhausted.contains(plugin)).map(|plugin| {
                    let bound = self.executor.concurrency(plugin).unwrap_or(usize::MAX);
                    Ready { plugin, most: self.places(plugin, bound, now) }
                });
            let Some(plugin) =
                schedule::next_plugin(ready, &self.in_flight, most).map(ToOwned::to_owned)
            else {
                break;
            };
            let already = chosen.iter().any(|task| task.plugin == plugin);
            match self.next_task(&plugin, already, now)? {
                Some(task) => {
                    *self.in_flight.entry(plugin).or_default() += 1;
                    chosen.push(task);
                }
                // The journal does not contain the changes of this turn yet.
                None if already => exhausted.push(plugin),
                None => drop(self.due.remove(&plugin)),
            }
        }
        Ok(chosen)
    }

    /// Returns the number of runs that the plugin's limit and its breaker allow.
    fn places(&self, plugin: &str, bound: usize, now_ms: u64) -> usize {
        match self.breakers.get(plugin).map_or(Admission::All, |breaker| breaker.admits(now_ms)) {
            Admission::All => bound,
            // One run, besides those that were running when the breaker opened.
            Admission::One => {
                self.in_flight.get(plugin).copied().unwrap_or(0).saturating_add(1).min(bound)
            }
            Admission::Nothing { .. } => 0,
        }
    }

    fn next_task(
        &mut self,
        plugin: &str,
        already: bool,
        now_ms: u64,
    ) -> Result<Option<Task>, WorkerError> {
        if self.breakers.get(plugin).is_some_and(Breaker::is_open) {
            if already {
                return Ok(None);
            }
            self.ready.remove(plugin);
            // Another task each time, because one task may be the only one that fails.
            return Ok(self.read_due(plugin, 1, DueOrder::LongestDue, now_ms)?.pop());
        }
        if !already && self.ready.get(plugin).is_none_or(VecDeque::is_empty) {
            let tasks = self.read_due(plugin, READ_AHEAD, DueOrder::Oldest, now_ms)?;
            self.ready.insert(plugin.to_owned(), tasks.into());
        }
        Ok(self.ready.get_mut(plugin).and_then(VecDeque::pop_front))
    }

    /// Reads due tasks of a plugin. Tasks whose events cannot be read are lost, and the next ones
    /// are read instead.
    fn read_due(
        &mut self,
        plugin: &str,
        limit: usize,
        order: DueOrder,
        now_ms: u64,
    ) -> Result<Vec<Task>, WorkerError> {
        loop {
            let (tasks, unreadable) = self.journal.due(plugin, now_ms, limit, order)?;
            for Unreadable { event, reason } in &unreadable {
                let message = format!(
                    "its event cannot be read ({reason}), because the journal is damaged; run `hookrun sync` to queue missing paths, and `hookrun queue drop {event}` to remove the task"
                );
                self.journal.lose(event, plugin, &message, now_ms)?;
                self.warn(&format!("{plugin} on event {event}: {message}"));
            }
            if !tasks.is_empty() || unreadable.is_empty() {
                return Ok(tasks);
            }
        }
    }

    /// Records what has ended and that the tasks in `begin` begin, and starts them.
    pub(super) fn settle(&mut self, begin: &[Task]) -> Result<(), WorkerError> {
        let now = self.now_ms();
        let ended = std::mem::take(&mut self.ended);
        let mut changes = Vec::new();
        let next: Vec<(Next, u64)> =
            ended.iter().map(|(run, report)| self.judge(run, report, now, &mut changes)).collect();
        let rows: Vec<EndedAttempt<'_>> = ended
            .iter()
            .zip(&next)
            .map(|((run, report), (next, age_ms))| EndedAttempt {
                attempt: attempt(run, now),
                report,
                next: *next,
                age_ms: *age_ms,
            })
            .collect();
        let (last, begun) = self.journal.step(&rows, begin, now)?;
        for (((run, report), (next, _)), last) in ended.iter().zip(&next).zip(last) {
            let Run { task: Task { plugin, event }, number, .. } = run;
            if last {
                roots::remove(event);
            }
            // Another task may be due now: the same one again, or one that waited for it.
            self.due.insert(plugin.clone());
            *self.summary.attempts.entry(report.outcome.class()).or_default() += 1;
            (self.observer)(Notice::Ended { event, plugin, attempt: *number, report, next: *next });
        }
        for (run, report) in &ended {
            self.note_try(run, report)?;
        }
        for (plugin, change, message) in changes {
            self.keep_breaker(plugin, change, message, now)?;
        }
        for (task, begun) in begin.iter().zip(begun) {
            match begun {
                Some(begun) => {
                    let is_try = self.breakers.get_mut(&task.plugin).is_some_and(Breaker::began);
                    let run = Run {
                        task: task.clone(),
                        number: begun.number,
                        start_ms: now,
                        age_ms: begun.age_ms,
                        last_ms: begun.last_ms,
                        is_try,
                    };
                    self.start(run);
                }
                // The task was removed or rescheduled meanwhile.
                None => self.not_begun(&task.plugin),
            }
        }
        Ok(())
    }

    /// Starts refused tasks whose time for a test has come.
    pub(super) fn try_refused(&mut self, now_ms: u64) -> Result<(), WorkerError> {
        let executor = &self.executor;
        let delay = |plugin: &str| retry::refused_delay(&executor.retry(plugin));
        let running: BTreeSet<&str> = self
            .running
            .values()
            .filter(|run| self.tries.get(&run.task.plugin) == Some(&run.task.event.id))
            .map(|run| run.task.plugin.as_str())
            .collect();
        let tries = self.journal.try_refused(now_ms, &running, delay)?;
        self.tries.extend(tries);
        Ok(())
    }

    /// Makes all refused tasks of a plugin due, if this run was a test for them and the service has
    /// answered.
    fn note_try(&mut self, run: &Run, report: &RunReport) -> Result<(), WorkerError> {
        let Task { plugin, event } = &run.task;
        if self.tries.get(plugin) == Some(&event.id) {
            self.tries.remove(plugin);
            if ServiceSign::of(report) == ServiceSign::Answers {
                let again = self.journal.readmit(Some(plugin))?;
                if again > 0 {
                    self.warn(&format!(
                        "{plugin}: the cause of the refusal is fixed; {again} refused tasks run again"
                    ));
                }
            }
        }
        Ok(())
    }

    fn not_begun(&mut self, plugin: &str) {
        if let Some(count) = self.in_flight.get_mut(plugin) {
            *count = count.saturating_sub(1);
            if *count == 0 {
                self.in_flight.remove(plugin);
            }
        }
    }

    /// Returns the next step after an attempt, and the time that counts towards `give-up-after`
    /// now. Changes of breakers are added to `changes`.
    fn judge(
        &mut self,
        run: &Run,
        report: &RunReport,
        now: u64,
        changes: &mut Vec<(String, BreakerChange, String)>,
    ) -> (Next, u64) {
        let plugin = &run.task.plugin;
        let retry = self.executor.retry(plugin);
        let breaker = self.breakers.entry(plugin.clone()).or_default();
        let age = retry::age(
            &retry,
            Duration::from_millis(run.age_ms),
            Duration::from_millis(run.last_ms.map_or(0, |last| run.start_ms.saturating_sub(last))),
            Duration::from_millis(now.saturating_sub(run.start_ms)),
        );
        let standing = AttemptState {
            attempts: run.number,
            age,
            outage: breaker.is_open(),
            progress: report.progress,
            cause: report.cause,
        };
        let mut random = rand::rng();
        let next = retry::next(&report.outcome, standing, &retry, random.random());
        let change =
            breaker.ended(ServiceSign::of(report), run.is_try, now, &retry, random.random());
        if change != BreakerChange::None {
            changes.push((plugin.clone(), change, report.outcome.message().to_owned()));
        }
        (next, super::millis(age))
    }

    fn keep_breaker(
        &mut self,
        plugin: String,
        change: BreakerChange,
        message: String,
        now: u64,
    ) -> Result<(), WorkerError> {
        match change {
            BreakerChange::None => {}
            BreakerChange::Open { since_ms, until_ms, trips } => {
                if trips == 0 {
                    self.warn(&format!(
                        "{plugin}: its service seems to be unavailable ({message}); its tasks wait while one at a time is tried, and attempts are not counted"
                    ));
                }
                self.ready.remove(&plugin);
                self.journal.keep_breaker(&OpenBreaker {
                    plugin,
                    since_ms,
                    until_ms,
                    trips,
                    message,
                })?;
            }
            BreakerChange::Closed => {
                self.warn(&format!("{plugin}: its service is available again"));
                self.journal.close_breaker(&plugin, now)?;
                self.ready.remove(&plugin);
                self.due.insert(plugin);
            }
        }
        Ok(())
    }

    fn start(&mut self, run: Run) {
        (self.observer)(Notice::Began {
            event: &run.task.event,
            plugin: &run.task.plugin,
            attempt: run.number,
        });
        let executor = Arc::clone(&self.executor);
        let (Task { plugin, event }, number) = (run.task.clone(), run.number);
        let future = async move { executor.run(&plugin, &event, number).await };
        let future = AssertUnwindSafe(future)
            .catch_unwind()
            .map(|report| report.unwrap_or_else(|_| defect()));
        let handle = self.runs.spawn(future);
        self.running.insert(handle.id(), run);
    }

    /// Returns whether the circuit breaker of its plugin lets a due task begin now.
    pub(super) fn something_can_run(&self, now_ms: u64) -> Result<bool, WorkerError> {
        let admitted = |plugin: &String| self.places(plugin, 1, now_ms) > 0;
        Ok(self.journal.due_plugins(now_ms)?.iter().any(admitted))
    }

    /// Returns the time of the next test of the first open breaker with due tasks.
    pub(super) fn next_try(&self, now_ms: u64) -> Result<Option<u64>, WorkerError> {
        if !self.breakers.values().any(Breaker::is_open) {
            return Ok(None);
        }
        let due = self.journal.due_plugins(now_ms)?;
        let times =
            due.iter().filter_map(|plugin| match self.breakers.get(plugin)?.admits(now_ms) {
                Admission::Nothing { until_ms } if until_ms > now_ms => Some(until_ms),
                _ => None,
            });
        Ok(times.min())
    }

    /// Closes breakers that the operator has closed in the journal by asking for another attempt.
    pub(super) fn forget_closed_breakers(&mut self) -> Result<(), WorkerError> {
        if self.breakers.values().any(Breaker::is_open) {
            let open = self.journal.breakers()?;
            self.breakers.retain(|plugin, breaker| {
                !breaker.is_open() || open.iter().any(|open| open.plugin == *plugin)
            });
        }
        Ok(())
    }
}

fn attempt(run: &Run, now: u64) -> Attempt<'_> {
    let Run { task: Task { plugin, event }, number, start_ms, .. } = run;
    Attempt {
        event: &event.id,
        plugin,
        number: *number,
        start_ms: *start_ms,
        end_ms: now.max(*start_ms),
    }
}
