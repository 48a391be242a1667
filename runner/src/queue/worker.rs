//! The worker: takes the spool into the journal and runs the tasks.
//!
//! Called by `hookrun drain`, `hookrun daemon` and the worker that a hook starts. There is one at a time ([`super::lock`]). It may be
//! killed at any instruction: what it took is in the journal before the spool file goes, and an attempt that it did not end is
//! made again. It knows nothing of plugins but their names: an [`Executor`] runs them.

mod schedule;

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::{BoxFuture, FutureExt as _};
use notify::Watcher as _;
use rand::RngExt as _;
use tokio::sync::mpsc;
use tokio::task::{Id, JoinSet};
use tokio::time::Instant;

use super::journal::{Attempt, Journal, JournalError, Open, Taken, Task};
use super::lock::{LockError, WorkerLock};
use super::retry::{self, Next};
use super::roots;
use super::spool::{self, Reader};
use super::trust::Trust;
use crate::config::Retry;
use crate::dirs::Dirs;
use crate::event::{Event, now_ms};
use crate::outcome::{Outcome, RunReport, Usage};

/// Events taken in one transaction: enough to share its sync, few enough to start the first soon.
const BATCH: usize = 256;
/// Tasks of one plugin read ahead from the journal.
const READ_AHEAD: usize = 32;
/// The spool and the journal are looked at this often even if nobody reports a change: watching may fail, and clocks may be set.
const SAFETY_POLL: Duration = Duration::from_secs(30);
/// How long runs may still take once the worker is asked to stop. The queue is durable; systemd kills after 90 s.
pub const STOP_LIMIT: Duration = Duration::from_secs(10);

/// Runs plugins for the worker. The worker calls it from one task and awaits several runs at once.
pub trait Executor: Send + Sync + 'static {
    /// The names of the plugins that are to get this event. Called once for each event, when it is taken; no plugin: the event is
    /// ended at once.
    fn wanted(&self, event: &Event) -> Vec<String>;

    /// How a plugin is retried. Called after each failed attempt.
    fn retry(&self, plugin: &str) -> Retry;

    /// Runs a plugin on an event; `attempt` counts from 1. It must end by itself (the plugin's limits see to it). A plugin
    /// that is no longer configured is [`Outcome::Refused`]. May be dropped before it ends, when the worker stops.
    fn run<'a>(&'a self, plugin: &'a str, event: &'a Event, attempt: u32) -> BoxFuture<'a, RunReport>;
}

/// When the worker ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// When nothing can run now.
    Drain,
    /// When it is told to.
    Daemon,
    /// When nothing has been open for this long. Tasks that wait for their time are open.
    Spawned {
        /// How long.
        idle_exit: Duration,
    },
}

/// How the worker works.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Options {
    /// When it ends.
    pub mode: Mode,
    /// Tasks at once; at least 1.
    pub concurrency: usize,
    /// How long runs may still take once it is asked to stop; [`STOP_LIMIT`].
    pub stop_limit: Duration,
}

/// Something happened that a log or a progress bar wants to know.
#[derive(Debug)]
pub enum Notice<'a> {
    /// Something to look at: a file was set aside, the journal was damaged, the spool cannot be watched.
    Warning(&'a str),
    /// An event was taken, with so many tasks.
    Took {
        /// The event.
        event: &'a Event,
        /// Its tasks.
        tasks: usize,
    },
    /// An event was taken that says what an earlier one says.
    Merged {
        /// The event.
        event: &'a Event,
        /// The earlier one's id.
        into: &'a str,
    },
    /// An attempt begins.
    Began {
        /// The event.
        event: &'a Event,
        /// The plugin's name.
        plugin: &'a str,
        /// 1 for the first.
        attempt: u32,
    },
    /// An attempt ended.
    Ended {
        /// The event.
        event: &'a Event,
        /// The plugin's name.
        plugin: &'a str,
        /// 1 for the first.
        attempt: u32,
        /// How.
        report: &'a RunReport,
        /// What comes next.
        next: Next,
    },
}

impl std::fmt::Display for Notice<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Warning(message) => write!(f, "{message}"),
            Self::Took { event, tasks } => write!(f, "{} of {}: {tasks} tasks", event.kind(), event.name()),
            Self::Merged { event, into } => {
                write!(f, "{} of {}: the same as {into}, which has not ended", event.kind(), event.name())
            }
            Self::Began { event, plugin, attempt } => write!(f, "{plugin} on {}: attempt {attempt}", event.name()),
            Self::Ended { event, plugin, attempt, report, next } => {
                write!(
                    f,
                    "{plugin} on {}: attempt {attempt} {}: {}",
                    event.name(),
                    report.outcome.class(),
                    report.outcome.message()
                )?;
                match next {
                    Next::Done => Ok(()),
                    Next::Dead => write!(f, "; given up"),
                    Next::Refused => write!(f, "; tried again by the next worker"),
                    Next::Retry { after } => write!(f, "; again in {:.1} s", after.as_secs_f64()),
                }
            }
        }
    }
}

/// What a worker did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Summary {
    /// Events taken from the spool.
    pub taken: u64,
    /// Spool files set aside.
    pub rejected: u64,
    /// Attempts by class.
    pub attempts: BTreeMap<&'static str, u64>,
    /// What is left.
    pub open: Open,
}

/// Why the worker did not run or could not go on.
#[derive(Debug, thiserror::Error)]
pub enum WorkerError {
    /// Another worker runs, or the lock cannot be taken.
    #[error(transparent)]
    Lock(#[from] LockError),
    /// The journal cannot be used.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// The state directory cannot be made.
    #[error("{} cannot be made ({error}); run the worker as root, or set HOOKRUN_STATE_DIR to a directory that you may write", path.display())]
    State {
        /// The spool.
        path: std::path::PathBuf,
        /// What the system says.
        #[source]
        error: std::io::Error,
    },
}

/// Runs a worker until its mode says it is done or `stop` is ready.
///
/// # Errors
/// If another worker runs, or the state directory or the journal cannot be used.
pub async fn run(
    dirs: &Dirs,
    executor: Arc<dyn Executor>,
    options: Options,
    stop: impl Future<Output = ()> + Send,
    observer: &mut (dyn FnMut(Notice<'_>) + Send),
) -> Result<Summary, WorkerError> {
    spool::make_directory(&dirs.spool()).map_err(|error| WorkerError::State { path: dirs.spool(), error })?;
    let mut lock = WorkerLock::take(&dirs.worker_lock())?;
    let mut worker = Worker::open(dirs, executor, options, observer)?;
    let mut stop = std::pin::pin!(stop);
    loop {
        worker.work(stop.as_mut()).await?;
        drop(lock);
        // A hook may have handed over while the lock was held, and so have started no other worker.
        if worker.stopped || !matches!(options.mode, Mode::Spawned { .. }) || spool::depth(dirs) == 0 {
            break;
        }
        match WorkerLock::take(&dirs.worker_lock()) {
            Ok(again) => lock = again,
            // Another one has come, and takes it.
            Err(LockError::Held { .. }) => break,
            Err(error) => return Err(error.into()),
        }
    }
    worker.summary.open = worker.journal.open_tasks(now_ms())?;
    Ok(worker.summary)
}

/// Ready when the process is asked to end: SIGTERM or SIGINT.
///
/// # Errors
/// If the signals cannot be waited for.
pub fn asked_to_stop() -> std::io::Result<impl Future<Output = ()> + Send> {
    use tokio::signal::unix::{SignalKind, signal};
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    })
}

struct Worker<'a> {
    executor: Arc<dyn Executor>,
    options: Options,
    observer: &'a mut (dyn FnMut(Notice<'_>) + Send),
    journal: Journal,
    reader: Reader,
    changes: mpsc::Receiver<()>,
    /// Keeps the watch; none if the spool cannot be watched.
    _watcher: Option<notify::RecommendedWatcher>,
    runs: JoinSet<RunReport>,
    running: HashMap<Id, Run>,
    /// Tasks read ahead, by plugin.
    ready: BTreeMap<String, VecDeque<Task>>,
    stopped: bool,
    summary: Summary,
}

/// A run in flight.
struct Run {
    task: Task,
    number: u32,
    start_ms: u64,
}

impl<'a> Worker<'a> {
    fn open(
        dirs: &Dirs,
        executor: Arc<dyn Executor>,
        options: Options,
        observer: &'a mut (dyn FnMut(Notice<'_>) + Send),
    ) -> Result<Self, WorkerError> {
        let (mut journal, damage) = Journal::open(dirs)?;
        if let Some(damage) = damage {
            observer(Notice::Warning(&damage));
        }
        let interrupted = journal.resume(now_ms())?;
        if interrupted > 0 {
            observer(Notice::Warning(&format!(
                "{interrupted} attempts of the worker before did not end; they are made again"
            )));
        }
        let (sender, changes) = mpsc::channel(1);
        let watcher = watch(dirs, sender);
        if let Err(error) = &watcher {
            let poll = SAFETY_POLL.as_secs();
            observer(Notice::Warning(&format!(
                "the spool cannot be watched ({error}), and is looked at every {poll} s; raise fs.inotify.max_user_watches"
            )));
        }
        Ok(Self {
            executor,
            options,
            observer,
            journal,
            reader: Reader::new(dirs, Trust::from_env()),
            changes,
            _watcher: watcher.ok(),
            runs: JoinSet::new(),
            running: HashMap::new(),
            ready: BTreeMap::new(),
            stopped: false,
            summary: Summary::default(),
        })
    }

    async fn work(&mut self, mut stop: std::pin::Pin<&mut (impl Future<Output = ()> + Send)>) -> Result<(), WorkerError> {
        let mut look = true;
        let mut idle_since = None;
        loop {
            if look {
                self.take_spooled()?;
            }
            self.start_due()?;
            let mut sleep = SAFETY_POLL;
            if self.runs.is_empty() {
                let now = now_ms();
                let open = self.journal.open_tasks(now)?;
                let ended = match self.options.mode {
                    Mode::Drain => open.due == 0,
                    Mode::Daemon => false,
                    Mode::Spawned { idle_exit } => {
                        let idle = open.due == 0 && open.waiting == 0;
                        let since = idle.then(|| *idle_since.get_or_insert_with(Instant::now));
                        idle_since = since;
                        let left = since.map(|since| idle_exit.saturating_sub(since.elapsed()));
                        sleep = sleep.min(left.unwrap_or(sleep));
                        left == Some(Duration::ZERO)
                    }
                };
                // Once more into the spool: the last look may be older than the last event.
                if ended && self.take_spooled()? == 0 {
                    return Ok(());
                }
                if let Some(next) = open.next_ms {
                    sleep = sleep.min(Duration::from_millis(next.saturating_sub(now)));
                }
                if ended || open.due > 0 {
                    continue;
                }
            } else {
                idle_since = None;
                if let Some(next) = self.journal.next_due(now_ms())? {
                    sleep = sleep.min(Duration::from_millis(next.saturating_sub(now_ms())));
                }
            }
            tokio::select! {
                Some(ended) = self.runs.join_next_with_id() => {
                    look = false;
                    self.ended(ended)?;
                }
                Some(()) = self.changes.recv() => look = true,
                () = tokio::time::sleep(sleep.max(Duration::from_millis(1))) => look = true,
                () = stop.as_mut() => {
                    self.stopped = true;
                    return self.stop().await;
                }
            }
        }
    }

    /// Takes what is in the spool into the journal; gives how many events that were.
    fn take_spooled(&mut self) -> Result<u64, WorkerError> {
        let mut count = 0;
        loop {
            let scan = self.reader.scan(BATCH);
            for reason in &scan.rejected {
                self.summary.rejected += 1;
                (self.observer)(Notice::Warning(&format!("set aside: {reason}")));
            }
            if scan.events.is_empty() {
                return Ok(count);
            }
            let rows: Vec<_> = scan
                .events
                .iter()
                // Roots that a crash lost, or that the hook might not make, are made here.
                .map(|spooled| (&spooled.event, self.executor.wanted(&spooled.event), roots::make(&spooled.event)))
                .collect();
            let taken = self.journal.take(&rows, now_ms())?;
            for (spooled, taken) in scan.events.iter().zip(&taken) {
                let event = &spooled.event;
                match taken {
                    Taken::New(tasks) => {
                        self.summary.taken += 1;
                        (self.observer)(Notice::Took { event, tasks: *tasks });
                    }
                    Taken::Merged(into) => {
                        self.summary.taken += 1;
                        (self.observer)(Notice::Merged { event, into });
                    }
                    Taken::Known { .. } => {}
                }
                if matches!(taken, Taken::New(0) | Taken::Merged(_) | Taken::Known { ended: true }) {
                    roots::remove(event);
                }
                match std::fs::remove_file(&spooled.path) {
                    Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                        let path = spooled.path.display();
                        (self.observer)(Notice::Warning(&format!(
                            "{path} is in the journal and cannot be removed ({error}); remove it"
                        )));
                        self.reader.ignore(spooled.path.clone());
                    }
                    _ => {}
                }
            }
            count += scan.events.len() as u64;
            if !scan.more {
                return Ok(count);
            }
        }
    }

    /// Starts runs until there are as many as may be or no task is due.
    fn start_due(&mut self) -> Result<(), WorkerError> {
        while self.runs.len() < self.options.concurrency.max(1) {
            let Some(task) = self.next_task()? else { return Ok(()) };
            let start_ms = now_ms();
            let number = self.journal.begin(&task.event.id, &task.plugin, start_ms)?;
            (self.observer)(Notice::Began { event: &task.event, plugin: &task.plugin, attempt: number });
            let executor = Arc::clone(&self.executor);
            let Task { plugin, event } = task.clone();
            let run = async move { executor.run(&plugin, &event, number).await };
            let handle =
                self.runs.spawn(AssertUnwindSafe(run).catch_unwind().map(|report| report.unwrap_or_else(|_| defect())));
            self.running.insert(handle.id(), Run { task, number, start_ms });
        }
        Ok(())
    }

    /// The task whose turn it is.
    fn next_task(&mut self) -> Result<Option<Task>, WorkerError> {
        let now = now_ms();
        let due = self.journal.due_plugins(now)?;
        let mut running: BTreeMap<&str, usize> = BTreeMap::new();
        for run in self.running.values() {
            *running.entry(&run.task.plugin).or_default() += 1;
        }
        let Some(plugin) = schedule::next_plugin(&due, &running, self.options.concurrency.max(1)) else { return Ok(None) };
        let ready = self.ready.entry(plugin.to_owned()).or_default();
        if ready.is_empty() {
            // What is read ahead is still pending in the journal, so all of it must have been started before more is read.
            ready.extend(self.journal.due(plugin, now, READ_AHEAD)?);
        }
        Ok(ready.pop_front())
    }

    fn ended(&mut self, ended: Result<(Id, RunReport), tokio::task::JoinError>) -> Result<(), WorkerError> {
        let (id, report) = ended.unwrap_or_else(|error| (error.id(), defect()));
        let Some(Run { task: Task { plugin, event }, number, start_ms }) = self.running.remove(&id) else { return Ok(()) };
        let next = retry::next(&report.outcome, number, &self.executor.retry(&plugin), rand::rng().random());
        let attempt = Attempt { event: &event.id, plugin: &plugin, number, start_ms, end_ms: now_ms().max(start_ms) };
        if self.journal.finish(&attempt, &report, next)? {
            roots::remove(&event);
        }
        *self.summary.attempts.entry(report.outcome.class()).or_default() += 1;
        (self.observer)(Notice::Ended { event: &event, plugin: &plugin, attempt: number, report: &report, next });
        Ok(())
    }

    /// Lets what runs end, for a while, and gives the rest back.
    async fn stop(&mut self) -> Result<(), WorkerError> {
        let limit = Instant::now() + self.options.stop_limit;
        while let Ok(Some(ended)) = tokio::time::timeout_at(limit, self.runs.join_next_with_id()).await {
            self.ended(ended)?;
        }
        self.runs.shutdown().await;
        for (_, run) in self.running.drain() {
            self.journal.give_back(&run.task.event.id, &run.task.plugin, now_ms())?;
        }
        Ok(())
    }
}

/// The report of a run that ended in a defect of hookrun itself. It is retried as a trap is.
fn defect() -> RunReport {
    let message = "hookrun failed inside while it ran the plugin; please report this with the worker's log".to_owned();
    RunReport { outcome: Outcome::Trapped { message }, usage: Usage::default(), log: Vec::new() }
}

/// Sends on every change of the spool; one message stands for many.
fn watch(dirs: &Dirs, sender: mpsc::Sender<()>) -> notify::Result<notify::RecommendedWatcher> {
    let mut watcher = notify::recommended_watcher(move |_| {
        // Full: a message waits already. Closed: the worker has ended.
        let _sent = sender.try_send(());
    })?;
    watcher.watch(&dirs.spool(), notify::RecursiveMode::NonRecursive)?;
    Ok(watcher)
}

#[cfg(test)]
mod tests;
