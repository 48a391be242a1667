//! `hookrun queue`: shows and changes individual tasks, also while a worker runs.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::io::IsTerminal as _;
use std::time::{Duration, Instant};

use indicatif::ProgressBar;
use rustix::fs::{Timespec, Timestamps};
use serde::Serialize;

use super::drain::open_tasks;
use super::output::{self, Format, Style, printable, style_of, styled};
use super::{CliError, Context, differences, state_dir};
use hookrun_nix::event::{Event, HookEvent, Origin, now_ms};
use hookrun_nix::exit_code::Exit;
use hookrun_nix::layout::{Directory, Use};
use hookrun_queue::journal::{
    AttemptRow, Journal, LogFilter, Open, OpenBreaker, TaskRow, TaskSelection, TaskState,
};
use hookrun_queue::{lock, roots, spool};

/// The interval at which progress is checked.
const LOOK: Duration = Duration::from_millis(100);
/// The minimum number of characters of an event's id in a list, which are its time. More are shown
/// for events of the same millisecond.
const SHORT_ID: usize = 13;
/// The number of ids that a message names.
const SHOWN_IDS: usize = 5;

#[derive(Debug, clap::Subcommand)]
pub(super) enum Command {
    /// List the tasks that are not done; with --all, all tasks
    List(ListArgs),
    /// Show one event with its tasks and their attempts
    Show(ShowArgs),
    /// Retry dead, lost, refused and waiting tasks now
    Retry(ChangeArgs),
    /// Remove dead, lost, refused and waiting tasks; the log keeps their attempts
    Drop(ChangeArgs),
    /// Wait until all tasks have ended
    Wait(WaitArgs),
}

#[derive(Debug, clap::Args)]
pub(super) struct Which {
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

#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  hookrun queue list
  hookrun queue list --dead --plugin cache
  hookrun queue list --all --format json")]
pub(super) struct ListArgs {
    #[command(flatten)]
    which: Which,
    /// Also the tasks that are done
    #[arg(long)]
    all: bool,
    /// The output format
    #[arg(long, value_enum, default_value_t)]
    format: Format,
}

#[derive(Debug, clap::Args)]
#[command(after_help = "\
Example:
  hookrun queue show 0192f3a1-7c7e")]
pub(super) struct ShowArgs {
    /// The beginning of an event's id
    event: String,
    /// The output format
    #[arg(long, value_enum, default_value_t)]
    format: Format,
}

#[derive(Debug, clap::Args)]
#[command(after_help = "\
At least one event or option must select tasks. A running worker applies the change immediately.
`retry` starts the count of attempts again, and closes the circuit breakers of the selected plugins.
Exit code 1: nothing was changed.

Examples:
  hookrun queue retry --dead                   dead letters and lost tasks
  hookrun queue retry --plugin cache           all tasks of this plugin, including waiting ones
  hookrun queue drop 0192f3a1-7c7e")]
pub(super) struct ChangeArgs {
    #[command(flatten)]
    which: Which,
    /// The output format
    #[arg(long, value_enum, default_value_t)]
    format: Format,
}

#[derive(Debug, clap::Args)]
#[command(after_help = "\
Exit code 0: all tasks are done. 1: tasks are dead, lost or refused, or the timeout has passed. 4:
there is work and no worker.

Examples:
  hookrun queue wait
  hookrun queue wait --timeout 10m && echo uploaded")]
pub(super) struct WaitArgs {
    /// Give up after this time, such as 90s or 2h
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration)]
    timeout: Option<Duration>,
    /// The output format
    #[arg(long, value_enum, default_value_t)]
    format: Format,
}

pub(super) fn run(context: &Context, command: &Command) -> Result<Exit, CliError> {
    match command {
        Command::List(args) => list(context, args),
        Command::Show(args) => show(context, args),
        Command::Retry(args) => change(context, args, TaskChange::Retry),
        Command::Drop(args) => change(context, args, TaskChange::Drop),
        Command::Wait(args) => wait(context, args),
    }
}

fn list(context: &Context, args: &ListArgs) -> Result<Exit, CliError> {
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
fn state(task: &TaskRow) -> String {
    match (task.state, task.not_before_ms) {
        (TaskState::Waiting, Some(when)) if when > now_ms() => {
            format!("waiting {}", output::duration(when - now_ms()))
        }
        (state, _) => state.to_string(),
    }
}

/// One event, as `--format json` prints it.
#[derive(Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
struct EventReport {
    event: Option<Event>,
    tasks: Vec<TaskRow>,
    attempts: Vec<AttemptRow>,
}

fn show(context: &Context, args: &ShowArgs) -> Result<Exit, CliError> {
    let Some(journal) = state_dir::journal(context)? else {
        return Err(CliError::environment(anyhow::anyhow!(
            "there is no journal yet; run `hookrun drain` to create it"
        )));
    };
    let mut tasks = journal.tasks().map_err(CliError::environment)?;
    tasks.retain(|task| task.event.id.starts_with(&args.event));
    let id = {
        let ids: BTreeSet<&str> = tasks.iter().map(|task| task.event.id.as_str()).collect();
        one_event(&args.event, &ids)?.to_owned()
    };
    let mut attempts = journal.log(&LogFilter::default()).map_err(CliError::environment)?;
    attempts.retain(|attempt| attempt.event.id == id);
    let shown =
        EventReport { event: journal.event(&id).map_err(CliError::environment)?, tasks, attempts };
    match args.format {
        Format::Json => output::json(&shown)?,
        Format::Text => output::print(&text(&id, &shown, output::colours()))?,
    }
    Ok(Exit::Done)
}

fn text(id: &str, shown: &EventReport, colours: bool) -> String {
    let mut text = format!("{}\n", styled(id, Style::Strong, colours));
    if let Some(event) = &shown.event {
        let _ = writeln!(
            text,
            "{} of {} at {}, reported by {}",
            event.kind(),
            printable(event.drv_path()),
            output::time(event.time_ms),
            match event.origin {
                Origin::Hook => "the hook",
                Origin::Sync => "`hookrun sync`",
            }
        );
    }
    if let Some(Event { hook: HookEvent::Diff(diff), .. }) = &shown.event {
        text.push_str(&differences::text(&diff.evidence, usize::MAX, colours));
    }
    for task in &shown.tasks {
        let word = styled(&state(task), style_of(task.state.as_str()), colours);
        let _ = writeln!(text, "\n{}  {word}", styled(&task.plugin, Style::Strong, colours));
        for attempt in shown.attempts.iter().filter(|attempt| attempt.plugin == task.plugin) {
            let class = styled(attempt.class.as_str(), style_of(attempt.class.as_str()), colours);
            let _ = writeln!(
                text,
                "  {}  attempt {}  {class}",
                output::time(attempt.end_ms),
                attempt.number
            );
            let _ = writeln!(text, "    {}", printable(&attempt.message));
        }
    }
    text
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum TaskChange {
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

fn change(context: &Context, args: &ChangeArgs, change: TaskChange) -> Result<Exit, CliError> {
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
        Format::Text => output::print(&told(&changed, change))?,
    }
    Ok(if nothing { Exit::Failed } else { Exit::Done })
}

fn told(changed: &Changed, change: TaskChange) -> String {
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

/// The state of the tasks that `wait` waits for.
#[derive(Debug, Clone, Copy, Serialize)]
#[serde(rename_all = "kebab-case")]
struct RemainingTasks {
    /// Whether all tasks have ended.
    finished: bool,
    /// The number of events that no worker has taken.
    spooled: u64,
    due: u64,
    waiting: u64,
    running: u64,
    refused: u64,
    dead: u64,
    lost: u64,
    next_ms: Option<u64>,
}

impl RemainingTasks {
    fn look(context: &Context) -> Result<Self, CliError> {
        // The spool is read first, because an event that leaves it is already in the journal.
        let spooled = spool::depth(&context.dirs) as u64;
        let Open { due, waiting, running, refused, dead, lost, next_ms } = open_tasks(context)?;
        let finished = spooled + due + waiting + running == 0;
        Ok(Self { finished, spooled, due, waiting, running, refused, dead, lost, next_ms })
    }

    fn open(&self) -> u64 {
        self.spooled + self.due + self.waiting + self.running
    }

    fn failed(&self) -> bool {
        self.refused + self.dead + self.lost > 0
    }

    /// Formats the states of unsuccessful tasks with their numbers.
    fn failures(&self) -> String {
        let counts = [(self.dead, "dead"), (self.lost, "lost"), (self.refused, "refused")];
        let counts = counts.iter().filter(|(count, _)| *count > 0);
        counts.map(|(count, word)| format!("{count} {word}")).collect::<Vec<_>>().join(", ")
    }
}

fn wait(context: &Context, args: &WaitArgs) -> Result<Exit, CliError> {
    let begun = Instant::now();
    let bar = std::io::stderr().is_terminal().then(ProgressBar::new_spinner);
    let end = |left: &RemainingTasks, exit: Exit, verdict: String| {
        if let Some(bar) = &bar {
            bar.finish_and_clear();
        }
        match args.format {
            Format::Json => output::json(left)?,
            Format::Text => output::print(&verdict)?,
        }
        Ok(exit)
    };
    loop {
        let left = RemainingTasks::look(context)?;
        if left.finished && left.failed() {
            let verdict =
                format!("not all tasks are done: {}; see `hookrun status`\n", left.failures());
            return end(&left, Exit::Failed, verdict);
        }
        if left.finished {
            return end(&left, Exit::Done, "all tasks are done\n".to_owned());
        }
        let open = left.open();
        if args.timeout.is_some_and(|timeout| begun.elapsed() >= timeout) {
            let verdict = format!(
                "the timeout has passed, and {open} tasks or events are left: see `hookrun queue list`\n"
            );
            return end(&left, Exit::Failed, verdict);
        }
        if !lock::is_held(&context.dirs.worker_lock()) && !has_come(context)? {
            let message = format!(
                "{open} tasks or events are left, but no worker runs; run `hookrun drain`, or start the service"
            );
            return Err(CliError::environment(anyhow::Error::msg(message)));
        }
        if let Some(bar) = &bar {
            let next = left
                .next_ms
                .filter(|_| left.running + left.due == 0)
                .map(|when| output::duration(when.saturating_sub(now_ms())));
            let next = next.map(|next| format!(", next attempt in {next}")).unwrap_or_default();
            bar.set_message(format!("{open} left, {} running{next}", left.running));
            bar.tick();
        }
        std::thread::sleep(LOOK);
    }
}

/// Waits for a worker that a hook has started, which needs a moment to take its lock. Returns
/// whether it runs, or has done everything meanwhile.
fn has_come(context: &Context) -> Result<bool, CliError> {
    for _ in 0..20 {
        std::thread::sleep(LOOK);
        if lock::is_held(&context.dirs.worker_lock()) || RemainingTasks::look(context)?.finished {
            return Ok(true);
        }
    }
    Ok(false)
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
