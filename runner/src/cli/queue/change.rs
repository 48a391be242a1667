//! `hookrun queue retry` and `hookrun queue drop`: change tasks.

use std::fmt::Write as _;

use rustix::fs::{Timespec, Timestamps};
use serde::Serialize;

use super::super::output::printable;
use super::{CliError, Context, Format, Which, output, state_dir, unambiguous};
use hookrun_nix::event::now_ms;
use hookrun_nix::exit_code::Exit;
use hookrun_nix::layout::{Directory, Use};
use hookrun_queue::journal::{Journal, OpenBreaker, TaskRow, TaskSelection, TaskState};
use hookrun_queue::{lock, roots};

#[derive(Debug, clap::Args)]
#[command(after_help = "\
At least one event or option must select tasks. A running worker applies the change immediately.
`retry` starts the count of attempts again, and closes the circuit breakers of the selected plugins.
Exit code 1: nothing was changed.

Examples:
  hookrun queue retry --dead                   dead letters and lost tasks
  hookrun queue retry --plugin cache           all tasks of this plugin, including waiting ones
  hookrun queue drop 0192f3a1-7c7e")]
pub(in crate::cli) struct Args {
    #[command(flatten)]
    which: Which,
    /// The output format
    #[arg(long, value_enum, default_value_t)]
    format: Format,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum TaskChange {
    Retry,
    Drop,
}

/// The result of `retry` and `drop`, as `--format json` prints it.
#[derive(Debug, Default, Serialize)]
#[serde(rename_all = "kebab-case")]
struct Changed {
    /// The changed tasks, as they were before.
    tasks: Vec<TaskRow>,
    /// Plugins whose circuit breaker was closed.
    closed_breakers: Vec<String>,
    /// Whether a worker runs.
    worker: bool,
}

pub(super) fn run(context: &Context, args: &Args, change: TaskChange) -> Result<Exit, CliError> {
    let selection = args.which.selection();
    if selection == TaskSelection::default() {
        return Err(CliError::usage(
            "no tasks selected: name events, or write --dead, --plugin NAME or --derivation TEXT (`hookrun queue list` shows them)".to_owned(),
        ));
    }
    state_dir::check(context)?;
    let journal = Journal::open_to_change(&context.dirs).map_err(CliError::environment)?;
    state_dir::known_plugin(context, journal.as_ref(), selection.plugin.as_deref())?;
    let mut changed =
        Changed { worker: lock::is_held(&context.dirs.worker_lock()), ..Changed::default() };
    if let Some(mut journal) = journal {
        let tasks = journal.tasks().map_err(CliError::environment)?;
        unambiguous(&selection, &tasks)?;
        let selected: Vec<TaskRow> = tasks.into_iter().filter(|task| selection.has(task)).collect();
        for task in &selected {
            let done = match change {
                TaskChange::Retry => revive(&mut journal, task)?,
                TaskChange::Drop => discard(&mut journal, task)?,
            };
            if done {
                changed.tasks.push(task.clone());
            }
        }
        if change == TaskChange::Retry {
            changed.closed_breakers = close_breakers(&mut journal, &selection, &selected)?;
        }
    }
    let nothing = changed.tasks.is_empty() && changed.closed_breakers.is_empty();
    if change == TaskChange::Retry && changed.worker && !nothing {
        wake(context);
    }
    match args.format {
        Format::Json => output::json(&changed)?,
        Format::Text => output::print(&text(&changed, change))?,
    }
    Ok(if nothing { Exit::Failed } else { Exit::Done })
}

fn text(changed: &Changed, change: TaskChange) -> String {
    let mut text = String::new();
    for plugin in &changed.closed_breakers {
        let _ = writeln!(text, "breaker closed: {plugin}");
    }
    let word = if change == TaskChange::Retry { "again" } else { "dropped" };
    for TaskRow { plugin, event, .. } in &changed.tasks {
        let _ = writeln!(text, "{word}: {plugin} on {}", printable(&event.name));
    }
    if text.is_empty() {
        text.push_str(match change {
            TaskChange::Retry => "no matching task is dead, lost, refused or waiting\n",
            TaskChange::Drop => "no matching task is dead, lost, refused, due or waiting\n",
        });
    } else if change == TaskChange::Retry && !changed.worker {
        text.push_str("no worker runs; run `hookrun drain` to run the tasks now, or wait for the worker that the next hook starts\n");
    }
    text
}

/// Closes the open circuit breakers of the selected plugins, because the operator asks for an
/// attempt now.
fn close_breakers(
    journal: &mut Journal,
    selection: &TaskSelection,
    tasks: &[TaskRow],
) -> Result<Vec<String>, CliError> {
    let mut closed = Vec::new();
    for OpenBreaker { plugin, .. } in journal.breakers().map_err(CliError::environment)? {
        let meant = selection.plugin.as_ref() == Some(&plugin)
            || tasks.iter().any(|task| task.plugin == plugin && task.state != TaskState::Done);
        if meant && journal.close_breaker(&plugin, now_ms()).map_err(CliError::environment)? {
            closed.push(plugin);
        }
    }
    Ok(closed)
}

/// Makes a task due again. Returns whether it was changed.
fn revive(journal: &mut Journal, task: &TaskRow) -> Result<bool, CliError> {
    let (event, plugin) = (task.event.id.as_str(), task.plugin.as_str());
    let changed = journal.revive(event, plugin, now_ms()).map_err(CliError::environment)?;
    if changed && let Some(event) = journal.event(event).map_err(CliError::environment)? {
        // The roots may have been removed because of their limits. If the outputs were collected
        // too, the task is lost and reports that.
        let made = roots::make(&event);
        journal.rooted(&event.id, made).map_err(CliError::environment)?;
    }
    Ok(changed)
}

/// Removes a task. Returns whether it was removed.
fn discard(journal: &mut Journal, task: &TaskRow) -> Result<bool, CliError> {
    let (event, plugin) = (task.event.id.as_str(), task.plugin.as_str());
    let (changed, unrooted) =
        journal.discard(event, plugin, now_ms()).map_err(CliError::environment)?;
    if unrooted && let Some(event) = journal.event(event).map_err(CliError::environment)? {
        roots::remove(&event);
    }
    Ok(changed)
}

/// Wakes the worker by setting the times of the spool directory, because the worker watches the
/// spool and not the journal. No file is created there, because other users may have created links
/// with any name.
fn wake(context: &Context) {
    let now = Timespec { tv_sec: 0, tv_nsec: rustix::fs::UTIME_NOW };
    let times = Timestamps { last_access: now, last_modification: now };
    // If that fails, the worker checks within half a minute.
    let _woken = Directory::open(&context.dirs.spool(), Use::List)
        .and_then(|spool| rustix::fs::futimens(&spool, &times));
}
