//! `hookrun drain`, `hookrun daemon` and the worker that a hook starts. All run the queue's worker
//! with the plugins of the configuration.

use std::io::IsTerminal;
use std::sync::Arc;

use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;

use super::output::{self, Format, printable};
use super::{CliError, Context};
use crate::supervise::supervisor::Supervisor;
use hookrun_nix::event::now_ms;
use hookrun_nix::exit_code::Exit;
use hookrun_nix::outcome::Class;
use hookrun_queue::journal::{Journal, Open};
use hookrun_queue::lock::{self, LockError};
use hookrun_queue::worker::{self, Mode, Notice, Options, Summary, WorkerError};
use hookrun_queue::{spawn, spool, waiter};

#[derive(Debug, clap::Args)]
#[command(after_help = "\
Takes all events and runs every due task. If another worker runs, this command waits until that
worker has done so. Waiting tasks stay in the queue. Ends on SIGINT and SIGTERM; interrupted tasks
run again later.

Exit code 0: all tasks are done. 1: tasks are dead, lost, refused or waiting.

Examples:
  hookrun drain
  hookrun drain --format json")]
pub(super) struct DrainArgs {
    /// The output format of the summary
    #[arg(long, value_enum, default_value_t)]
    format: Format,
}

#[derive(Debug, clap::Args)]
#[command(after_help = "\
Stops on SIGTERM and SIGINT. The queue is durable, so interrupted tasks run again later.

Example:
  hookrun daemon          in a systemd unit: see examples/systemd/hookrun.service")]
pub(super) struct DaemonArgs {}

#[derive(Debug, clap::Args)]
pub(super) struct WorkerArgs {
    /// Exit when idle
    #[arg(long)]
    spawned: bool,
    /// Run no tasks; start a worker when a build user hands over an event
    #[arg(long, conflicts_with = "spawned")]
    waits: bool,
}

/// The summary, as `--format json` prints it.
#[derive(Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
struct DrainReport<'a> {
    taken: u64,
    rejected: u64,
    attempts: &'a std::collections::BTreeMap<Class, u64>,
    waiting: u64,
    refused: u64,
    dead: u64,
    lost: u64,
    next_ms: Option<u64>,
}

pub(super) fn drain(context: &Context, args: &DrainArgs) -> Result<Exit, CliError> {
    let progress = Progress::new(std::io::stderr().is_terminal());
    let mut summary = loop {
        match work(context, Mode::Drain, &mut |notice| progress.show(&notice)) {
            // The running worker does the work. If it exits before the queue is empty, this process
            // continues.
            Err(Stop::Held(_)) => {
                if wait_for_other(context)? {
                    break Summary::default();
                }
            }
            Err(Stop::Failed(error)) => return Err(error),
            Ok(summary) => break summary,
        }
    };
    progress.finish();
    summary.open = open_tasks(context)?;
    // Tasks that became due after the worker's last check count as waiting.
    summary.open.waiting += summary.open.due;
    match args.format {
        Format::Json => output::json(&report(&summary))?,
        Format::Text => output::print(&text(&summary))?,
    }
    let open = summary.open;
    let all_done = !open.failed() && open.waiting + open.running == 0;
    Ok(if all_done { Exit::Done } else { Exit::Failed })
}

pub(super) fn daemon(context: &Context, _args: &DaemonArgs) -> Result<Exit, CliError> {
    work(context, Mode::Daemon, &mut |notice| say(&notice)).map_err(CliError::from)?;
    Ok(Exit::Done)
}

pub(super) fn worker(context: &Context, args: &WorkerArgs) -> Result<Exit, CliError> {
    if args.waits {
        return waiter::run(&context.dirs)
            .map(|()| Exit::Done)
            .map_err(|error| CliError::environment(anyhow::anyhow!(error)));
    }
    let mode = if args.spawned {
        Mode::Spawned { idle_exit: context.config()?.worker.idle_exit }
    } else {
        Mode::Drain
    };
    let mut observer = |notice: Notice<'_>| {
        spawn::bound_log(&context.dirs);
        say(&notice);
    };
    match work(context, mode, &mut observer) {
        Ok(summary) if args.spawned => {
            let dirs = &context.dirs;
            let left = if summary.replaced {
                spawn::successor(dirs, spawn::SPAWNED)
            } else {
                waiter::leave_behind(dirs, &context.config()?)
            };
            if let Err(error) = left {
                hookrun_nix::terminal::say(&format!(
                    "the next process cannot be started ({error})"
                ));
            }
            Ok(Exit::Done)
        }
        // If two hooks start a worker at the same time, one worker serves both.
        Ok(_) | Err(Stop::Held(_)) => Ok(Exit::Done),
        Err(Stop::Failed(error)) => Err(error),
    }
}

/// The reason why a worker did not run.
enum Stop {
    /// Another worker runs.
    Held(LockError),
    /// The worker failed.
    Failed(CliError),
}

impl From<CliError> for Stop {
    fn from(error: CliError) -> Self {
        Self::Failed(error)
    }
}

impl From<Stop> for CliError {
    fn from(stop: Stop) -> Self {
        match stop {
            Stop::Held(error) => Self::environment(error),
            Stop::Failed(error) => error,
        }
    }
}

/// The interval at which the progress of a running worker is checked.
const LOOK: std::time::Duration = std::time::Duration::from_millis(50);

/// Waits while another worker runs. Returns true if it has done everything that can be done now, or
/// if this process was asked to stop; false if it has exited before.
fn wait_for_other(context: &Context) -> Result<bool, CliError> {
    runtime()?.block_on(async {
        // The worker in this process has installed signal handlers, so signals no longer end the
        // process by themselves.
        let mut stop = std::pin::pin!(worker::asked_to_stop().map_err(CliError::environment)?);
        while lock::is_held(&context.dirs.worker_lock()) {
            // The spool is read first, because an event that leaves it is already in the journal.
            let spooled = spool::depth(&context.dirs);
            let open = Journal::open_read_only(&context.dirs).and_then(|journal| {
                journal.map(|journal| journal.open_tasks(now_ms())).transpose()
            });
            let busy = match open {
                Ok(open) => {
                    let Open { due, running, .. } = open.unwrap_or_default();
                    due > 0 || running > 0
                }
                // The worker notices the damage and starts a new journal.
                Err(error) if error.is_damage() => true,
                Err(error) => return Err(CliError::environment(error)),
            };
            if spooled == 0 && !busy {
                return Ok(true);
            }
            tokio::select! {
                () = &mut stop => return Ok(true),
                () = tokio::time::sleep(LOOK) => {}
            }
        }
        Ok(false)
    })
}

/// Returns a runtime with a single thread. The worker reads pipes and writes its journal, and
/// guests run in other processes, so more threads would only wake each other.
fn runtime() -> Result<tokio::runtime::Runtime, CliError> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(CliError::environment)
}

/// Returns the number of open tasks; none without a journal.
pub(super) fn open_tasks(context: &Context) -> Result<Open, CliError> {
    match Journal::open_read_only(&context.dirs).map_err(CliError::environment)? {
        Some(journal) => journal.open_tasks(now_ms()).map_err(CliError::environment),
        None => Ok(Open::default()),
    }
}

fn work(
    context: &Context,
    mode: Mode,
    observer: &mut (dyn FnMut(Notice<'_>) + Send),
) -> Result<Summary, Stop> {
    let config = context.config()?;
    // A user waits for a drain.
    if mode != Mode::Drain {
        worker::lower_priority(config.worker.priority);
    }
    let executor = Supervisor::new(config, &context.dirs);
    executor.compile_all();
    runtime()?.block_on(async {
        let stop = worker::asked_to_stop().map_err(CliError::environment)?;
        worker::run(&context.dirs, Arc::new(executor), Options::new(mode), stop, observer)
            .await
            .map_err(|error| match error {
                WorkerError::Lock(held @ LockError::Held { .. }) => Stop::Held(held),
                other => Stop::Failed(CliError::environment(other)),
            })
    })
}

/// Prints one line to standard error, for the log of the service.
fn say(notice: &Notice<'_>) {
    match notice {
        Notice::Began { .. } | Notice::Took { .. } => {}
        Notice::Warning(_) | Notice::Merged { .. } | Notice::Ended { .. } => {
            hookrun_nix::terminal::say(&printable(&notice.to_string()));
        }
    }
}

fn report(summary: &Summary) -> DrainReport<'_> {
    let Summary { taken, rejected, attempts, open, .. } = summary;
    DrainReport {
        taken: *taken,
        rejected: *rejected,
        attempts,
        waiting: open.waiting,
        refused: open.refused,
        dead: open.dead,
        lost: open.lost,
        next_ms: open.next_ms,
    }
}

fn text(summary: &Summary) -> String {
    let Summary { taken, rejected, attempts, open, .. } = summary;
    let mut parts = vec![format!("{taken} {} taken", if *taken == 1 { "event" } else { "events" })];
    parts.extend(attempts.iter().map(|(class, count)| format!("{count} {class}")));
    if *rejected > 0 {
        parts.push(format!("{rejected} spool files were rejected (see `hookrun status`)"));
    }
    let mut left = Vec::new();
    if open.running > 0 {
        left.push(format!("{} running", open.running));
    }
    if open.waiting > 0 {
        let next = open.next_ms.map(|time| {
            format!(" (next attempt in {})", output::duration(time.saturating_sub(now_ms()).max(1)))
        });
        left.push(format!("{} waiting{}", open.waiting, next.unwrap_or_default()));
    }
    if open.refused > 0 {
        left.push(format!("{} refused (see `hookrun status`)", open.refused));
    }
    if open.dead > 0 {
        left.push(format!("{} dead (see `hookrun log --outcome dead`)", open.dead));
    }
    if open.lost > 0 {
        left.push(format!("{} lost (see `hookrun log --outcome dead`)", open.lost));
    }
    let taken = parts.join(", ");
    if left.is_empty() {
        format!("{taken}\n")
    } else {
        format!("{taken}; in the queue: {}\n", left.join(", "))
    }
}

/// Prints a line for each attempt, and on a terminal a progress bar below them.
struct Progress {
    bar: Option<ProgressBar>,
}

impl Progress {
    fn new(terminal: bool) -> Self {
        let bar = terminal.then(|| {
            let bar = ProgressBar::new(0);
            if let Ok(style) =
                ProgressStyle::with_template("{spinner} {bar:30} {pos}/{len} tasks  {wide_msg}")
            {
                bar.set_style(style);
            }
            bar
        });
        Self { bar }
    }

    fn show(&self, notice: &Notice<'_>) {
        if let Some(bar) = &self.bar {
            match notice {
                Notice::Took { tasks, .. } => bar.inc_length(*tasks as u64),
                Notice::Began { event, plugin, .. } => {
                    bar.set_message(format!("{plugin} on {}", printable(event.name())));
                }
                Notice::Ended { .. } => {
                    // The total does not include tasks of earlier workers.
                    if bar.length().is_none_or(|length| bar.position() >= length) {
                        bar.inc_length(1);
                    }
                    bar.inc(1);
                }
                Notice::Warning(_) | Notice::Merged { .. } => {}
            }
        }
        match &self.bar {
            Some(bar) => bar.suspend(|| say(notice)),
            None => say(notice),
        }
    }

    fn finish(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}
