//! `hookrun queue`: shows and changes individual tasks, also while a worker runs.

mod change;
mod list;
mod show;
mod wait;

use std::collections::BTreeSet;

use self::change::TaskChange;
use super::output::{self, Format};
use super::{CliError, Context, differences, state_dir};
use hookrun_nix::exit_code::Exit;
use hookrun_queue::journal::{TaskRow, TaskSelection, TaskState};

/// The number of ids that a message names.
const SHOWN_IDS: usize = 5;

#[derive(Debug, clap::Subcommand)]
pub(super) enum Command {
    /// List the tasks that are not done; with --all, all tasks
    List(list::Args),
    /// Show one event with its tasks and their attempts
    Show(show::Args),
    /// Retry dead, lost, refused and waiting tasks now
    Retry(change::Args),
    /// Remove dead, lost, refused and waiting tasks; the log keeps their attempts
    Drop(change::Args),
    /// Wait until all tasks have ended
    Wait(wait::Args),
}

#[derive(Debug, clap::Args)]
struct Which {
    /// Beginnings of event ids, as `hookrun queue list` shows them
    events: Vec<String>,
    /// Only tasks of this plugin
    #[arg(long, value_name = "NAME")]
    plugin: Option<String>,
    /// Only derivations whose name or store path contains TEXT
    #[arg(long, value_name = "TEXT")]
    derivation: Option<String>,
    /// Only dead letters and lost tasks
    #[arg(long)]
    dead: bool,
}

impl Which {
    fn selection(&self) -> TaskSelection {
        TaskSelection {
            events: self.events.clone(),
            plugin: self.plugin.clone(),
            derivation: self.derivation.clone(),
            states: if self.dead { vec![TaskState::Dead, TaskState::Lost] } else { Vec::new() },
        }
    }
}

pub(super) fn run(context: &Context, command: &Command) -> Result<Exit, CliError> {
    match command {
        Command::List(args) => list::run(context, args),
        Command::Show(args) => show::run(context, args),
        Command::Retry(args) => change::run(context, args, TaskChange::Retry),
        Command::Drop(args) => change::run(context, args, TaskChange::Drop),
        Command::Wait(args) => wait::run(context, args),
    }
}

/// Checks that each beginning of an id matches only one event, so that no other event is changed by
/// mistake.
fn unambiguous(selection: &TaskSelection, tasks: &[TaskRow]) -> Result<(), CliError> {
    for event in &selection.events {
        let ids: BTreeSet<&str> = tasks
            .iter()
            .map(|task| task.event.id.as_str())
            .filter(|id| id.starts_with(event.as_str()))
            .collect();
        one_event(event, &ids)?;
    }
    Ok(())
}

/// Returns the only event whose id begins with `beginning`.
fn one_event<'a>(beginning: &str, ids: &BTreeSet<&'a str>) -> Result<&'a str, CliError> {
    match ids.iter().collect::<Vec<_>>().as_slice() {
        [] => Err(CliError::usage(format!(
            "no event begins with `{beginning}`; see `hookrun queue list --all`"
        ))),
        [one] => Ok(one),
        many => Err(CliError::usage(format!(
            "{} events begin with `{beginning}`, such as {}; write more characters of the id",
            many.len(),
            many.iter().take(SHOWN_IDS).map(|id| **id).collect::<Vec<_>>().join(", ")
        ))),
    }
}
