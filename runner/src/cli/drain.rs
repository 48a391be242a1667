//! `hookrun drain`, `hookrun daemon` and the worker that a hook starts: the queue's worker with the
//! plugins of the configuration.

use std::io::IsTerminal;
use std::sync::Arc;

use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;

use super::output::{self, Format, printable};
use super::{CliError, Context};
use crate::event::now_ms;
use crate::exit_code::Exit;
use crate::queue::journal::{Journal, Open};
use crate::queue::lock::{self, LockError};
use crate::queue::worker::{self, Mode, Notice, Options, Summary, WorkerError};
use crate::queue::{spawn, spool, waiter};
use crate::supervise::supervisor::Supervisor;

#[derive(Debug, clap::Args)]
#[command(after_help = "\
Takes all events and runs every task that may run now; where a worker runs already, waits until it has done so. Tasks that wait for their next
attempt stay for later.

Exit code 0: nothing failed and nothing is left. 1: something was given up or refused, or waits for its next attempt.

Examples:
  hookrun drain
  hookrun drain --format json")]
pub(super) struct DrainArgs {
    /// How to print the summary
    #[arg(long, value_enum, default_value_t)]
    format: Format,
}

#[derive(Debug, clap::Args)]
#[command(after_help = "\
Stops on SIGTERM and SIGINT; the queue is durable, so what runs then is done again later.

Example:
  hookrun daemon          in a systemd unit: see examples/systemd/hookrun.service")]
pub(super) struct DaemonArgs {}

#[derive(Debug, clap::Args)]
pub(super) struct WorkerArgs {
    /// Leave when idle
    #[arg(long)]
    spawned: bool,
    /// Do not work: start a worker when a build user hands something over
    #[arg(long, conflicts_with = "spawned")]
    waits: bool,
}

/// The summary as `--format json` prints it.
#[derive(Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
struct Report<'a> {
    taken: u64,
    rejected: u64,
    attempts: &'a std::collections::BTreeMap<&'static str, u64>,
    waiting: u64,
    refused: u64,
    dead: u64,
    next_ms: Option<u64>,
}

pub(super) fn drain(context: &Context, args: &DrainArgs) -> Result<Exit, CliError> {
    let progress = Progress::new(std::io::stderr().is_terminal());
    let dead_before = open_tasks(context)?.dead;
    let mut summary = loop {
        match work(context, Mode::Drain, &mut |notice| progress.show(&notice)) {
            // The work is done by the worker that runs; when it leaves before the queue is empty,
            // this one goes on.
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
    // What has become due since the worker looked has waited too.
    summary.open.waiting += summary.open.due;
    match args.format {
        Format::Json => output::json(&report(&summary))?,
        Format::Text => output::print(&text(&summary))?,
    }
    let Open { refused, waiting, dead, .. } = summary.open;
    Ok(if dead > dead_before || refused > 0 || waiting > 0 { Exit::Failed } else { Exit::Done })
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
                crate::terminal::say(&format!("no process was left behind ({error})"));
            }
            Ok(Exit::Done)
        }
        // Two hooks may start a worker at the same time; one of them serves both.
        Ok(_) | Err(Stop::Held(_)) => Ok(Exit::Done),
        Err(Stop::Failed(error)) => Err(error),
    }
}

/// Why a worker did not work.
enum Stop {
    /// Another one runs.
    Held(LockError),
    /// It could not.
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

/// How often a running worker's progress is looked at.
const LOOK: std::time::Duration = std::time::Duration::from_millis(50);

/// Waits while another worker works. True: it has done all that can be done now. False: it has
/// left.
fn wait_for_other(context: &Context) -> Result<bool, CliError> {
    while lock::is_held(&context.dirs.worker_lock()) {
        // The spool first: an event that leaves it is in the journal already.
        let spooled = spool::depth(&context.dirs);
        let Open { due, running, .. } = open_tasks(context)?;
        if spooled == 0 && due == 0 && running == 0 {
            return Ok(true);
        }
        std::thread::sleep(LOOK);
    }
    Ok(false)
}

/// How many tasks are open; none without a journal.
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
    // Somebody waits for a drain.
    if mode != Mode::Drain {
        worker::lower_priority(config.worker.priority);
    }
    let executor = Supervisor::new(config, &context.dirs);
    executor.compile_all();
    // The worker reads pipes and writes its journal; guests run in other processes. With more
    // threads they would only wake each other.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(CliError::environment)?;
    runtime.block_on(async {
        let stop = worker::asked_to_stop().map_err(CliError::environment)?;
        worker::run(&context.dirs, Arc::new(executor), Options::new(mode), stop, observer)
            .await
            .map_err(|error| match error {
                WorkerError::Lock(held @ LockError::Held { .. }) => Stop::Held(held),
                other => Stop::Failed(CliError::environment(other)),
            })
    })
}

/// One line on standard error for what a journal of a service should have.
fn say(notice: &Notice<'_>) {
    match notice {
        Notice::Began { .. } | Notice::Took { .. } => {}
        Notice::Warning(_) | Notice::Merged { .. } | Notice::Ended { .. } => {
            crate::terminal::say(&printable(&notice.to_string()));
        }
    }
}

fn report(summary: &Summary) -> Report<'_> {
    let Summary { taken, rejected, attempts, open, .. } = summary;
    Report {
        taken: *taken,
        rejected: *rejected,
        attempts,
        waiting: open.waiting,
        refused: open.refused,
        dead: open.dead,
        next_ms: open.next_ms,
    }
}

fn text(summary: &Summary) -> String {
    let Summary { taken, rejected, attempts, open, .. } = summary;
    let mut parts = vec![format!("{taken} {} taken", if *taken == 1 { "event" } else { "events" })];
    parts.extend(attempts.iter().map(|(class, count)| format!("{count} {class}")));
    if *rejected > 0 {
        parts.push(format!("{rejected} spool files set aside (hookrun status says where)"));
    }
    if open.refused > 0 {
        parts.push(format!(
            "{} kept until the configuration is right (hookrun status says why)",
            open.refused
        ));
    }
    if open.waiting > 0 {
        let next = open.next_ms.map(|time| {
            format!(", the next in {}", output::duration(time.saturating_sub(now_ms()).max(1)))
        });
        parts.push(format!(
            "{} wait for their next attempt{}",
            open.waiting,
            next.unwrap_or_default()
        ));
    }
    if open.dead > 0 {
        parts.push(format!("{} given up in all (hookrun log --outcome dead)", open.dead));
    }
    format!("{}\n", parts.join(", "))
}

/// Lines for attempts, and on a terminal a bar below them.
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
                    // Tasks of earlier workers were not counted when they were taken.
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
