//! `hookrun queue list`: lists tasks.

use std::collections::{BTreeMap, BTreeSet};

use super::super::output::{Style, printable, style_of, styled};
use super::{CliError, Context, Format, Which, output, state_dir};
use hookrun_nix::event::{Origin, now_ms};
use hookrun_nix::exit_code::Exit;
use hookrun_queue::journal::{TaskRow, TaskState};

/// The minimum number of characters of an event's id in a list, which are its time. More are shown
/// for events of the same millisecond.
const SHORT_ID: usize = 13;

#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  hookrun queue list
  hookrun queue list --dead --plugin cache
  hookrun queue list --all --format json")]
pub(in crate::cli) struct Args {
    #[command(flatten)]
    which: Which,
    /// Also the tasks that are done
    #[arg(long)]
    all: bool,
    /// The output format
    #[arg(long, value_enum, default_value_t)]
    format: Format,
}

pub(super) fn run(context: &Context, args: &Args) -> Result<Exit, CliError> {
    let selection = args.which.selection();
    let journal = state_dir::journal(context)?;
    state_dir::known_plugin(context, journal.as_ref(), selection.plugin.as_deref())?;
    let mut tasks = match journal {
        Some(journal) => journal.tasks().map_err(CliError::environment)?,
        None => Vec::new(),
    };
    let ids = ShortIds::of(&tasks);
    tasks.retain(|task| selection.has(task) && (args.all || task.state != TaskState::Done));
    match args.format {
        Format::Json => output::json(&tasks)?,
        Format::Text => output::print(&table(&tasks, &ids, output::colours()))?,
    }
    Ok(Exit::Done)
}

/// For each event's id, the number of characters that make it unique.
struct ShortIds(BTreeMap<String, usize>);

impl ShortIds {
    fn of(tasks: &[TaskRow]) -> Self {
        let ids: BTreeSet<&str> = tasks.iter().map(|task| task.event.id.as_str()).collect();
        let in_common =
            |a: &str, b: &str| a.bytes().zip(b.bytes()).take_while(|(a, b)| a == b).count();
        let sorted: Vec<&str> = ids.into_iter().collect();
        let with_next: Vec<usize> =
            sorted.iter().zip(sorted.iter().skip(1)).map(|(a, b)| in_common(a, b)).collect();
        let length = |place: usize| {
            let before = place.checked_sub(1).and_then(|before| with_next.get(before));
            let shared = before.into_iter().chain(with_next.get(place)).max();
            shared.map_or(SHORT_ID, |shared| SHORT_ID.max(shared + 1))
        };
        Self(
            sorted
                .iter()
                .enumerate()
                .map(|(place, id)| ((*id).to_owned(), length(place)))
                .collect(),
        )
    }

    fn shown<'a>(&self, id: &'a str) -> &'a str {
        self.0.get(id).and_then(|length| id.get(..*length)).unwrap_or(id)
    }
}

fn table(tasks: &[TaskRow], ids: &ShortIds, colours: bool) -> String {
    if tasks.is_empty() {
        return "no tasks\n".to_owned();
    }
    let mut rows: Vec<Vec<String>> = vec![
        ["event", "state", "plugin", "derivation", "attempts", "last"]
            .map(|head| styled(head, Style::Faint, colours))
            .to_vec(),
    ];
    rows.extend(tasks.iter().map(|task| {
        vec![
            styled(ids.shown(&task.event.id), Style::Faint, colours),
            styled(&state(task), style_of(task.state.as_str()), colours),
            styled(&task.plugin, Style::Strong, colours),
            printable(&name(task)),
            task.attempts.to_string(),
            printable(task.message.as_deref().unwrap_or_default()),
        ]
    }));
    output::table(&rows)
}

/// Returns the derivation's name, and the source of the event if it was not a hook.
fn name(task: &TaskRow) -> String {
    if task.event.origin == Origin::Hook.as_str() {
        task.event.name.clone()
    } else {
        format!("{} ({})", task.event.name, task.event.origin)
    }
}

/// Returns the state of the task, with the remaining time if it waits.
pub(super) fn state(task: &TaskRow) -> String {
    match (task.state, task.not_before_ms) {
        (TaskState::Waiting, Some(when)) if when > now_ms() => {
            format!("waiting {}", output::duration(when - now_ms()))
        }
        (state, _) => state.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use hookrun_queue::journal::EventRef;

    #[test]
    fn ids_are_shortened_as_long_as_they_stay_unique() {
        let task = |event: &str| TaskRow {
            event: EventRef { id: event.to_owned(), ..EventRef::default() },
            plugin: String::new(),
            state: TaskState::Due,
            attempts: 0,
            not_before_ms: None,
            class: None,
            message: None,
            updated_ms: 0,
        };
        let ids = [
            "01a21d30-5312-7a00-8000-000000000000",
            "01a21d30-5312-7b00-8000-000000000000",
            "01a21d30-5312-7b08-8000-000000000000",
            "01a21d30-5399-7000-8000-000000000000",
        ];
        // Two tasks of one event.
        let tasks: Vec<TaskRow> = ids.iter().chain([&ids[0]]).map(|id| task(id)).collect();
        let short = ShortIds::of(&tasks);
        let shown: Vec<&str> = ids.iter().map(|id| short.shown(id)).collect();
        assert_eq!(
            shown,
            ["01a21d30-5312-7a", "01a21d30-5312-7b00", "01a21d30-5312-7b08", "01a21d30-5399"]
        );
    }
}
