//! `hookrun queue`: tasks one by one, beside a worker that runs.

use std::fmt::Write as _;
use std::io::IsTerminal as _;
use std::time::{Duration, Instant};

use indicatif::ProgressBar;
use serde::Serialize;

use super::drain::open_tasks;
use super::output::{self, Format, Style, printable, style_of, styled};
use super::{CliError, Context, differences, state_dir};
use crate::event::{Event, HookEvent, Origin, now_ms};
use crate::exit_code::Exit;
use crate::queue::journal::{AttemptRow, Journal, LogFilter, Open, Selection, TaskRow};
use crate::queue::{lock, roots, spool};

/// How often progress is looked at.
const LOOK: Duration = Duration::from_millis(100);
/// Characters of an event's id in a list: they tell apart what a person sees at once, and are taken
/// as they are.
const SHORT_ID: usize = 13;

#[derive(Debug, clap::Subcommand)]
pub(super) enum Command {
    /// The tasks that have not ended well; with --all, every one
    List(ListArgs),
    /// One event with its tasks and their attempts
    Show(ShowArgs),
    /// Give tasks that were given up or refused all their attempts again, and those that wait their
    /// time now
    Retry(ChangeArgs),
    /// Remove tasks that were given up, were refused or wait; the log keeps their attempts
    Drop(ChangeArgs),
    /// Wait until nothing is left to do
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
    /// Only what was given up
    #[arg(long)]
    dead: bool,
}

impl Which {
    fn selection(&self) -> Selection {
        Selection {
            events: self.events.clone(),
            plugin: self.plugin.clone(),
            derivation: self.derivation.clone(),
            states: if self.dead { vec!["dead"] } else { Vec::new() },
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
    /// Also those that ended well
    #[arg(long)]
    all: bool,
    /// How to print
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
    /// How to print
    #[arg(long, value_enum, default_value_t)]
    format: Format,
}

#[derive(Debug, clap::Args)]
#[command(after_help = "\
Something has to say which tasks are meant; a worker that runs takes the change up at once. Exit code 1: no task was meant.

Examples:
  hookrun queue retry --dead                   all that was given up
  hookrun queue retry --plugin cache           of this plugin, also what waits for its next attempt
  hookrun queue drop 0192f3a1-7c7e")]
pub(super) struct ChangeArgs {
    #[command(flatten)]
    which: Which,
}

#[derive(Debug, clap::Args)]
#[command(after_help = "\
Exit code 0: nothing is left. 1: something was given up or refused meanwhile, or the time is over. 4: there is work and no worker.

Examples:
  hookrun queue wait
  hookrun queue wait --timeout 10m && echo uploaded")]
pub(super) struct WaitArgs {
    /// Give up after this time, such as 90s or 2h
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration)]
    timeout: Option<Duration>,
}

pub(super) fn run(context: &Context, command: &Command) -> Result<Exit, CliError> {
    match command {
        Command::List(args) => list(context, args),
        Command::Show(args) => show(context, args),
        Command::Retry(args) => change(context, &args.which, Change::Retry),
        Command::Drop(args) => change(context, &args.which, Change::Drop),
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
    tasks.retain(|task| selection.has(task) && (args.all || task.state != "done"));
    match args.format {
        Format::Json => output::json(&tasks)?,
        Format::Text => output::print(&table(&tasks, output::colours()))?,
    }
    Ok(Exit::Done)
}

fn table(tasks: &[TaskRow], colours: bool) -> String {
    if tasks.is_empty() {
        return "no tasks\n".to_owned();
    }
    let mut rows: Vec<Vec<String>> = vec![
        ["event", "state", "plugin", "derivation", "attempts", "last"]
            .map(|head| styled(head, Style::Faint, colours))
            .to_vec(),
    ];
    rows.extend(tasks.iter().map(|task| {
        let id = task.event.get(..SHORT_ID).unwrap_or(&task.event);
        vec![
            styled(id, Style::Faint, colours),
            styled(&state(task), style_of(&task.state), colours),
            styled(&task.plugin, Style::Strong, colours),
            printable(&name(task)),
            task.attempts.to_string(),
            printable(task.message.as_deref().unwrap_or_default()),
        ]
    }));
    output::table(&rows)
}

/// The derivation's name, and who told of it where that was no hook.
fn name(task: &TaskRow) -> String {
    if task.origin == Origin::Hook.as_str() {
        task.name.clone()
    } else {
        format!("{} ({})", task.name, task.origin)
    }
}

/// The state in words, with the time for what waits.
fn state(task: &TaskRow) -> String {
    match (task.state.as_str(), task.not_before_ms) {
        ("pending", Some(when)) if when > now_ms() => {
            format!("waits {}", output::duration(when - now_ms()))
        }
        ("pending", _) => "due".to_owned(),
        (state, _) => state.to_owned(),
    }
}

/// One event, as `--format json` prints it.
#[derive(Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
struct Shown {
    event: Option<Event>,
    tasks: Vec<TaskRow>,
    attempts: Vec<AttemptRow>,
}

fn show(context: &Context, args: &ShowArgs) -> Result<Exit, CliError> {
    let Some(journal) = state_dir::journal(context)? else {
        return Err(CliError::environment(anyhow::anyhow!(
            "there is no journal yet; a worker makes it, such as `hookrun drain`"
        )));
    };
    let mut tasks = journal.tasks().map_err(CliError::environment)?;
    tasks.retain(|task| task.event.starts_with(&args.event));
    let mut ids: Vec<&str> = tasks.iter().map(|task| task.event.as_str()).collect();
    ids.dedup();
    let id = match ids.as_slice() {
        [] => {
            return Err(CliError::usage(format!(
                "no event begins with `{}`; see `hookrun queue list --all`",
                args.event
            )));
        }
        [one] => (*one).to_owned(),
        many => {
            let message = format!(
                "{} events begin with `{}`, such as {}; write more of the id",
                many.len(),
                args.event,
                many.join(", ")
            );
            return Err(CliError::usage(message));
        }
    };
    let mut attempts = journal.log(&LogFilter::default()).map_err(CliError::environment)?;
    attempts.retain(|attempt| attempt.event == id);
    let shown =
        Shown { event: journal.event(&id).map_err(CliError::environment)?, tasks, attempts };
    match args.format {
        Format::Json => output::json(&shown)?,
        Format::Text => output::print(&text(&id, &shown, output::colours()))?,
    }
    Ok(Exit::Done)
}

fn text(id: &str, shown: &Shown, colours: bool) -> String {
    let mut text = format!("{}\n", styled(id, Style::Strong, colours));
    if let Some(event) = &shown.event {
        let _ = writeln!(
            text,
            "{} of {} at {}, told by {}",
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
        let word = styled(&state(task), style_of(&task.state), colours);
        let _ = writeln!(text, "\n{}  {word}", styled(&task.plugin, Style::Strong, colours));
        for attempt in shown.attempts.iter().filter(|attempt| attempt.plugin == task.plugin) {
            let class = styled(&attempt.class, style_of(&attempt.class), colours);
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
enum Change {
    Retry,
    Drop,
}

fn change(context: &Context, which: &Which, change: Change) -> Result<Exit, CliError> {
    let selection = which.selection();
    if selection == Selection::default() {
        return Err(CliError::usage(
            "which tasks? name events, or write --dead, --plugin NAME or --derivation TEXT (`hookrun queue list` shows them)".to_owned(),
        ));
    }
    state_dir::check(context)?;
    let journal = Journal::open_to_change(&context.dirs).map_err(CliError::environment)?;
    state_dir::known_plugin(context, journal.as_ref(), selection.plugin.as_deref())?;
    let Some(mut journal) = journal else {
        output::print("no tasks\n")?;
        return Ok(Exit::Failed);
    };
    let tasks = journal.tasks().map_err(CliError::environment)?;
    let mut count = 0_usize;
    for task in tasks.iter().filter(|task| selection.has(task)) {
        let (event, plugin) = (task.event.as_str(), task.plugin.as_str());
        let changed = match change {
            Change::Retry => {
                let changed =
                    journal.revive(event, plugin, now_ms()).map_err(CliError::environment)?;
                if changed
                    && let Some(event) = journal.event(event).map_err(CliError::environment)?
                {
                    // Its roots went when it had ended; what was collected since cannot be had
                    // back, and the plugin will say so.
                    roots::make(&event);
                }
                changed
            }
            Change::Drop => {
                let (changed, ended) =
                    journal.discard(event, plugin, now_ms()).map_err(CliError::environment)?;
                if ended && let Some(event) = journal.event(event).map_err(CliError::environment)? {
                    roots::remove(&event);
                }
                changed
            }
        };
        if changed {
            count += 1;
            let word = if change == Change::Retry { "again" } else { "dropped" };
            output::print(&format!("{word}: {plugin} on {}\n", printable(&task.name)))?;
        }
    }
    if count == 0 {
        output::print("no tasks: none of these was given up, was refused or waits\n")?;
        return Ok(Exit::Failed);
    }
    if change == Change::Retry {
        if lock::is_held(&context.dirs.worker_lock()) {
            wake(context);
        } else {
            output::print(
                "no worker runs: `hookrun drain` does them now, or the next hook's worker\n",
            )?;
        }
    }
    Ok(Exit::Done)
}

/// The worker watches the spool, not the journal: something comes and goes there.
fn wake(context: &Context) {
    let path = context.dirs.spool().join(format!(".wake-{}", std::process::id()));
    // If that fails, the worker looks by itself within half a minute.
    let _woken = std::fs::write(&path, "").and_then(|()| std::fs::remove_file(&path));
}

fn wait(context: &Context, args: &WaitArgs) -> Result<Exit, CliError> {
    let begun = Instant::now();
    let dead_before = open_tasks(context)?.dead;
    let bar = std::io::stderr().is_terminal().then(ProgressBar::new_spinner);
    loop {
        // The spool first: an event that leaves it is in the journal already.
        let spooled = spool::depth(&context.dirs);
        let Open { due, waiting, running, refused, dead, next_ms } = open_tasks(context)?;
        let open = spooled as u64 + due + waiting + running;
        if let Some(bar) = &bar {
            let next = next_ms
                .filter(|_| running + due == 0)
                .map(|when| output::duration(when.saturating_sub(now_ms())));
            let next = next.map(|next| format!(", next attempt in {next}")).unwrap_or_default();
            bar.set_message(format!("{open} left, {running} running{next}"));
            bar.tick();
        }
        let ended = if open == 0 {
            let failed = dead > dead_before || refused > 0;
            let verdict = if failed {
                "something was given up or refused: see `hookrun status`\n"
            } else {
                "nothing is left to do\n"
            };
            Some((if failed { Exit::Failed } else { Exit::Done }, verdict.to_owned()))
        } else if args.timeout.is_some_and(|timeout| begun.elapsed() >= timeout) {
            Some((
                Exit::Failed,
                format!(
                    "the time is over, and {open} tasks or events are left: see `hookrun queue list`\n"
                ),
            ))
        } else if !lock::is_held(&context.dirs.worker_lock()) && !has_come(context) {
            let message = format!(
                "{open} tasks or events are left and no worker runs; run `hookrun drain`, or start the service"
            );
            return Err(CliError::environment(anyhow::Error::msg(message)));
        } else {
            None
        };
        if let Some((exit, verdict)) = ended {
            if let Some(bar) = &bar {
                bar.finish_and_clear();
            }
            output::print(&verdict)?;
            return Ok(exit);
        }
        std::thread::sleep(LOOK);
    }
}

/// A worker that a hook has started needs a moment to take its lock.
fn has_come(context: &Context) -> bool {
    (0..20).any(|_| {
        std::thread::sleep(LOOK);
        lock::is_held(&context.dirs.worker_lock())
            || open_tasks(context).is_ok_and(|open| open == Open::default())
    })
}
