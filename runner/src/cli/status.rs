//! `hookrun status`: what runs, what waits, what failed, and what is wrong.

use std::fmt::Write as _;

use serde::Serialize;

use super::output::{self, Format, Style, printable, styled};
use super::{CliError, Context, sandbox};
use crate::event::now_ms;
use crate::exit_code::Exit;
use crate::queue::journal::{Journal, OpenBreaker, PluginCounts, Roots, TaskRow};
use crate::queue::worker::WorkerState;
use crate::queue::{lock, spool};

/// Dead letters that are shown one by one; `hookrun log --outcome dead` has all.
const SHOWN_DEAD: usize = 5;

#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  hookrun status
  hookrun status --format json | jq '.plugins[] | select(.dead > 0)'

Exit code 0 whatever the state is; a program reads `problems`.")]
pub(super) struct Args {
    /// How to print
    #[arg(long, value_enum, default_value_t)]
    format: Format,
}

/// All of it, as `--format json` prints it.
#[derive(Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
struct Status {
    config: String,
    config_is_embedded: bool,
    state: String,
    /// The worker's process, if one runs; 0 where its number is not visible from here.
    worker: Option<i32>,
    /// Who guests run as when this user's worker runs them.
    guests: String,
    /// Events that no worker has taken yet.
    spooled: usize,
    /// Spool files that were set aside.
    rejected: usize,
    /// Milliseconds since Nix called the hook for the oldest task that has not ended.
    oldest_age_ms: Option<u64>,
    /// When the worker last took up a change of configuration, plugins or secrets; milliseconds since 1970.
    refreshed_ms: Option<u64>,
    /// What keeps the outputs of unfinished events from the garbage collector.
    roots: Roots,
    plugins: Vec<PluginCounts>,
    /// Plugins whose tasks wait together because what they need seems to be down.
    breakers: Vec<OpenBreaker>,
    dead: Vec<TaskRow>,
    /// What somebody should look at, each with the fix.
    problems: Vec<String>,
}

pub(super) fn run(context: &Context, args: &Args) -> Result<Exit, CliError> {
    let status = gather(context)?;
    match args.format {
        Format::Json => output::json(&status)?,
        Format::Text => output::print(&text(&status, output::colours()))?,
    }
    Ok(Exit::Done)
}

fn gather(context: &Context) -> Result<Status, CliError> {
    let dirs = &context.dirs;
    let now = now_ms();
    let mut problems = Vec::new();
    let mut guests = sandbox::guests(None);
    let embedded = match context.config() {
        Ok(config) => {
            guests = sandbox::guests(Some(&config));
            problems.extend(sandbox::problems(&config));
            config.embedded
        }
        Err(error) => {
            problems.push(format!("{error} (builds go on, events are kept, nothing is done with them)"));
            false
        }
    };
    let mut status = Status {
        config: dirs.config.display().to_string(),
        config_is_embedded: embedded,
        state: dirs.state.display().to_string(),
        worker: lock::holder(&dirs.worker_lock()),
        guests,
        spooled: spool::depth(dirs),
        rejected: spool::count_rejected(&dirs.rejected()),
        oldest_age_ms: None,
        refreshed_ms: None,
        roots: Roots::default(),
        plugins: Vec::new(),
        breakers: Vec::new(),
        dead: Vec::new(),
        problems,
    };
    if status.rejected > 0 {
        let place = dirs.rejected();
        status.problems.push(format!(
            "{} spool files were set aside; the reasons are in {}",
            status.rejected,
            place.display()
        ));
    }
    if let Some(said) = status.worker.and_then(|pid| WorkerState::of(dirs, pid)) {
        status.refreshed_ms = Some(said.refreshed_ms).filter(|time| *time > 0);
        status.problems.extend(said.problems.into_iter().map(|problem| format!("worker: {problem}")));
    }
    match Journal::open_read_only(dirs) {
        Ok(Some(journal)) => {
            status.roots = journal.roots().map_err(CliError::environment)?;
            status.breakers = journal.breakers().map_err(CliError::environment)?;
            status.plugins = journal.counts(now).map_err(CliError::environment)?;
            status.dead = journal.tasks_in_state("dead", SHOWN_DEAD).map_err(CliError::environment)?;
            let oldest = status.plugins.iter().filter_map(|plugin| plugin.oldest_ms).min();
            status.oldest_age_ms = oldest.map(|time| now.saturating_sub(time));
            let refused = journal.tasks_in_state("refused", SHOWN_DEAD).map_err(CliError::environment)?;
            let mut messages: Vec<String> = refused.into_iter().filter_map(|task| task.message).collect();
            messages.sort();
            messages.dedup();
            status.problems.extend(messages);
        }
        Ok(None) => {}
        // Another user's journal is no defect of the queue; the rest of the picture still holds.
        Err(error) => status.problems.push(error.to_string()),
    }
    Ok(status)
}

fn text(status: &Status, colours: bool) -> String {
    let mut text = String::new();
    let label = |name: &str| styled(&format!("{name:<15}"), Style::Faint, colours);
    let config = if status.config_is_embedded {
        format!("{} (not there: the embedded one)", status.config)
    } else {
        status.config.clone()
    };
    let _ = writeln!(text, "{}{config}", label("configuration"));
    let _ = writeln!(text, "{}{}", label("state"), status.state);
    let worker = match status.worker {
        Some(0) => "runs".to_owned(),
        Some(pid) => format!("runs (process {pid})"),
        None => "does not run".to_owned(),
    };
    let _ = writeln!(text, "{}{worker}", label("worker"));
    let _ = writeln!(text, "{}{}", label("guests run as"), status.guests);
    let _ = writeln!(text, "{}{}", label("spool"), counted(status.spooled, "event waits", "events wait"));
    if let Some(age) = status.oldest_age_ms {
        let _ = writeln!(text, "{}{}", label("oldest task"), output::duration(age));
    }
    if status.roots.count > 0 {
        let Roots { count, bytes } = status.roots;
        let _ = writeln!(text, "{}{count} ({})", label("roots"), bytesize::ByteSize(bytes));
    }
    if !status.plugins.is_empty() {
        text.push('\n');
        let mut rows = vec![
            ["plugin", "due", "waiting", "running", "done", "dead", "refused"]
                .iter()
                .map(|head| styled(head, Style::Faint, colours))
                .collect(),
        ];
        for plugin in &status.plugins {
            let number =
                |count: u64, style| if count == 0 { "0".to_owned() } else { styled(&count.to_string(), style, colours) };
            rows.push(vec![
                styled(&plugin.plugin, Style::Strong, colours),
                number(plugin.due, Style::Warning),
                number(plugin.waiting, Style::Warning),
                number(plugin.running, Style::Plain),
                number(plugin.done, Style::Good),
                number(plugin.dead, Style::Bad),
                number(plugin.refused, Style::Bad),
            ]);
        }
        text.push_str(&output::table(&rows));
    }
    for OpenBreaker { plugin, since_ms, until_ms, trips, message } in &status.breakers {
        let now = now_ms();
        let since = output::duration(now.saturating_sub(*since_ms));
        let next = output::duration(until_ms.saturating_sub(now));
        let _ = writeln!(
            text,
            "\n{}: what {plugin} needs is down since {since}: {}; next try in {next} (failed tries: {trips}); at once: hookrun queue \
             retry --plugin {plugin}",
            styled("waits", Style::Warning, colours),
            printable(message),
        );
    }
    if !status.dead.is_empty() {
        let _ = writeln!(text, "\n{} (all: hookrun log --outcome dead)", styled("given up", Style::Bad, colours));
        for task in &status.dead {
            let message = task.message.as_deref().unwrap_or_default();
            let _ = writeln!(text, "  {} on {}: {}", task.plugin, printable(&task.name), printable(message));
        }
    }
    if !status.problems.is_empty() {
        let _ = writeln!(text, "\n{}", styled("to look at", Style::Bad, colours));
        for problem in &status.problems {
            let _ = writeln!(text, "  {}", printable(problem));
        }
    }
    text
}

fn counted(count: usize, one: &str, many: &str) -> String {
    if count == 1 { format!("1 {one}") } else { format!("{count} {many}") }
}
