//! `hookrun status`: shows what runs, what waits, what failed, and what is wrong.

use std::fmt::Write as _;
use std::io::IsTerminal as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Serialize;

use super::output::{self, Format, Style, printable, styled};
use super::{CliError, Context, sandbox, state_dir};
use hookrun_nix::event::now_ms;
use hookrun_nix::exit_code::Exit;
use hookrun_nix::outcome::Transfer;
use hookrun_queue::journal::{OpenBreaker, PluginCounts, PluginRecord, Roots, TaskRow, TaskState};
use hookrun_queue::worker::Running;
use hookrun_queue::{health, lock, spool};

/// Dead letters that are shown one by one; `hookrun log --outcome dead` has all.
const SHOWN_DEAD: usize = 5;
/// Reasons of set-aside files that are shown one by one, the newest.
const SHOWN_REASONS: usize = 3;
/// How far back a plugin's successes and failures are counted.
const RECENT: Duration = Duration::from_hours(24);
/// The shortest time between two looks: a look counts all tasks.
const SHORTEST: Duration = Duration::from_millis(100);
/// Home, and clear what is below (ECMA-48 sections 8.3.21 and 8.3.39): what was there stays on the
/// screen when the command is ended.
const REDRAW: &str = "\u{1b}[H\u{1b}[J";

#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  hookrun status
  hookrun status --watch                 repeat until Ctrl-C
  hookrun status --format json | jq '.plugins[] | select(.dead > 0)'

With --watch, --format json prints one JSON object per line.

Exit code 0, whatever the state is; a program reads `problems`.")]
pub(super) struct Args {
    /// The output format
    #[arg(long, value_enum, default_value_t)]
    format: Format,
    /// Repeat: on a terminal in place, else one block after the other
    #[arg(long, short)]
    watch: bool,
    /// With --watch: the time between two screens, such as 500ms or 10s; at least 100ms
    #[arg(long, value_name = "TIME", value_parser = interval, default_value = "2s", requires = "watch")]
    interval: Duration,
}

/// One plugin: its tasks, and how its newest attempts went.
#[derive(Debug, Serialize)]
struct Plugin {
    #[serde(flatten)]
    counts: PluginCounts,
    /// Of the last 24 hours.
    #[serde(flatten)]
    record: PluginRecord,
}

/// The whole status, as `--format json` prints it.
#[derive(Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
struct Status {
    config: String,
    config_is_embedded: bool,
    /// Where it comes from, if not from its file.
    #[serde(skip)]
    config_origin: &'static str,
    state: String,
    /// The worker's process, if one runs; 0 where its number is not visible from here.
    worker: Option<i32>,
    /// Its version.
    worker_version: Option<String>,
    /// The worker in words.
    #[serde(skip)]
    worker_is: String,
    /// Who guests run as when this user's worker runs them.
    guests: String,
    /// Events that no worker has taken yet.
    spooled: usize,
    /// Spool files that were set aside.
    rejected: usize,
    /// Milliseconds since Nix called the hook for the oldest task that has not ended.
    oldest_age_ms: Option<u64>,
    /// When the worker last took up a change of configuration, plugins or secrets; milliseconds
    /// since 1970.
    refreshed_ms: Option<u64>,
    /// What keeps the outputs of unfinished events and dead letters from the garbage collector.
    roots: Roots,
    plugins: Vec<Plugin>,
    /// Plugins whose tasks wait together because what they need seems to be down.
    breakers: Vec<OpenBreaker>,
    /// Uploads that are under way.
    transfers: Vec<Upload>,
    dead: Vec<TaskRow>,
    /// What somebody should look at, each with the fix.
    problems: Vec<String>,
}

/// An upload that is under way.
#[derive(Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
struct Upload {
    #[serde(flatten)]
    transfer: Transfer,
    /// On average since it began.
    bytes_per_second: u64,
}

impl Upload {
    fn at(transfer: Transfer, now_ms: u64) -> Self {
        let ms = now_ms.saturating_sub(transfer.since_ms).max(1);
        let bytes_per_second = transfer.bytes.saturating_mul(1000) / ms;
        Self { transfer, bytes_per_second }
    }
}

pub(super) fn run(context: &Context, args: &Args) -> Result<Exit, CliError> {
    if !args.watch {
        let status = gather(context)?;
        match args.format {
            Format::Json => output::json(&status)?,
            Format::Text => output::print(&text(&status, output::colours()))?,
        }
        return Ok(Exit::Done);
    }
    let terminal = std::io::stdout().is_terminal();
    loop {
        let status = gather(context)?;
        match args.format {
            Format::Json => output::json_line(&status)?,
            Format::Text => {
                let head = output::time(now_ms());
                let body = text(&status, output::colours());
                let shown = if terminal {
                    format!("{REDRAW}{head}\n\n{body}")
                } else {
                    format!("--- {head}\n{body}\n")
                };
                output::print(&shown)?;
            }
        }
        std::thread::sleep(args.interval);
    }
}

/// A time between two looks.
fn interval(text: &str) -> Result<Duration, String> {
    let interval = humantime::parse_duration(text).map_err(|error| error.to_string())?;
    if interval < SHORTEST {
        let shortest = humantime::format_duration(SHORTEST);
        return Err(format!("the shortest interval is {shortest}"));
    }
    Ok(interval)
}

fn gather(context: &Context) -> Result<Status, CliError> {
    let dirs = &context.dirs;
    let now = now_ms();
    let mut problems = Vec::new();
    let mut guests = sandbox::guests(None);
    let mut start = None;
    let mut config_origin = "";
    let embedded = match context.config() {
        Ok(config) => {
            guests = sandbox::guests(Some(&config));
            problems.extend(sandbox::problems(&config));
            start = Some(config.worker.start);
            config_origin = config.origin();
            if config.is_last {
                problems.push(format!("{}{config_origin}", dirs.config.display()));
            }
            config.embedded
        }
        Err(error) => {
            problems
                .push(format!("{error} (builds go on and events are kept, but no plugin runs)"));
            false
        }
    };
    let running = Running::find(dirs);
    let worker = running.as_ref().map(|running| running.pid);
    let health = health::check(dirs, worker.is_some());
    problems.extend(health.problems);
    let mut status = Status {
        config: dirs.config.display().to_string(),
        config_is_embedded: embedded,
        config_origin,
        state: dirs.state.display().to_string(),
        worker,
        worker_version: running
            .as_ref()
            .and_then(|running| Some(running.said.as_ref()?.version.clone())),
        worker_is: if lock::can_be_seen(&dirs.worker_lock()) {
            worker_is(running.as_ref(), lock::holder(&dirs.waiter_lock()))
        } else {
            "cannot be seen by this user".to_owned()
        },
        guests,
        spooled: spool::depth(dirs) + health.elsewhere,
        rejected: spool::count_rejected(&dirs.rejected()),
        oldest_age_ms: None,
        refreshed_ms: None,
        roots: Roots::default(),
        plugins: Vec::new(),
        breakers: Vec::new(),
        transfers: Vec::new(),
        dead: Vec::new(),
        problems,
    };
    if status.rejected > 0 {
        let place = dirs.rejected();
        let files = counted(status.rejected, "spool file was", "spool files were");
        status.problems.push(format!(
            "{files} set aside; the reasons are in {}, the newest:",
            place.display()
        ));
        status.problems.extend(newest_reasons(&place));
    }
    if let Some(said) = running.and_then(|running| running.said) {
        status.refreshed_ms = Some(said.refreshed_ms).filter(|time| *time > 0);
        status.transfers =
            said.transfers.into_iter().map(|upload| Upload::at(upload, now)).collect();
        status.problems.extend(
            said.own_problem
                .into_iter()
                .chain(said.problems)
                .map(|problem| format!("worker: {problem}")),
        );
    }
    match state_dir::journal(context) {
        Ok(Some(journal)) => {
            status.roots = journal.roots().map_err(CliError::environment)?;
            status.breakers = journal.breakers().map_err(CliError::environment)?;
            let since = now.saturating_sub(u64::try_from(RECENT.as_millis()).unwrap_or(u64::MAX));
            let mut records = journal.records(since).map_err(CliError::environment)?;
            let counts = journal.counts(now).map_err(CliError::environment)?;
            let with_record = |counts: PluginCounts| {
                let record = records.remove(&counts.plugin).unwrap_or_default();
                Plugin { counts, record }
            };
            status.plugins = counts.into_iter().map(with_record).collect();
            status.dead = journal
                .tasks_in_state(&[TaskState::Dead, TaskState::Lost], SHOWN_DEAD)
                .map_err(CliError::environment)?;
            let oldest = status.plugins.iter().filter_map(|plugin| plugin.counts.oldest_ms).min();
            status.oldest_age_ms = oldest.map(|time| now.saturating_sub(time));
            let refused = journal
                .tasks_in_state(&[TaskState::Refused], SHOWN_DEAD)
                .map_err(CliError::environment)?;
            let mut messages: Vec<String> =
                refused.into_iter().filter_map(|task| task.message).collect();
            messages.sort();
            messages.dedup();
            status.problems.extend(messages);
        }
        Ok(None) => {}
        // Another user's journal is not a defect of the queue; the rest of the picture still holds.
        Err(error) => status.problems.push(error.to_string()),
    }
    if let (Some(start), None) = (start, status.worker)
        && lock::can_be_seen(&dirs.worker_lock())
    {
        // A task that was running when the worker ended is due again.
        let due = status.plugins.iter().map(|plugin| plugin.counts.due + plugin.counts.running);
        let due: u64 = due.sum();
        let spooled = spool::oldest_ms(dirs).map(|time| now.saturating_sub(time));
        let due_age = status.oldest_age_ms.filter(|_| due > 0);
        let age = Duration::from_millis(spooled.max(due_age).unwrap_or_default());
        let waiting = due.saturating_add(status.spooled as u64);
        status.problems.extend(health::stalled(start, waiting, age));
    }
    Ok(status)
}

/// The worker in words; `waiter` is the process that starts one for build users.
fn worker_is(running: Option<&Running>, waiter: Option<i32>) -> String {
    match (running, waiter) {
        (Some(running), _) => running.to_string(),
        (None, Some(pid)) => {
            format!("does not run (hooks start it; for build users process {pid} does)")
        }
        (None, None) => "does not run".to_owned(),
    }
}

/// Why the newest set-aside files were: each has its reason beside it in a file of its own.
fn newest_reasons(directory: &Path) -> Vec<String> {
    let entries =
        std::fs::read_dir(directory).into_iter().flatten().flatten().map(|entry| entry.path());
    let mut files: Vec<PathBuf> = entries
        .filter(|path| path.extension().is_some_and(|extension| extension == "reason"))
        .collect();
    // Their names begin with the time.
    files.sort();
    let reasons = files.iter().rev().filter_map(|file| std::fs::read_to_string(file).ok());
    reasons.filter_map(|text| text.lines().next().map(str::to_owned)).take(SHOWN_REASONS).collect()
}

fn text(status: &Status, colours: bool) -> String {
    let mut text = String::new();
    let label = |name: &str| styled(&format!("{name:<15}"), Style::Faint, colours);
    let _ = writeln!(text, "{}{}{}", label("configuration"), status.config, status.config_origin);
    let _ = writeln!(text, "{}{}", label("state"), status.state);
    let _ = writeln!(text, "{}{}", label("worker"), status.worker_is);
    let _ = writeln!(text, "{}{}", label("guests run as"), status.guests);
    let _ = writeln!(
        text,
        "{}{}",
        label("spool"),
        counted(status.spooled, "event waits", "events wait")
    );
    if let Some(age) = status.oldest_age_ms {
        let _ = writeln!(text, "{}{}", label("oldest task"), output::duration(seconds(age)));
    }
    if status.roots.count > 0 {
        let Roots { count, bytes, dead_count, dead_bytes } = status.roots;
        let bytes = bytesize::ByteSize(bytes);
        let dead = match dead_count {
            0 => String::new(),
            count => {
                format!(", of these {count} of dead letters ({})", bytesize::ByteSize(dead_bytes))
            }
        };
        let _ = writeln!(text, "{}{count} ({bytes}){dead}", label("roots"));
    }
    if !status.plugins.is_empty() {
        text.push('\n');
        let mut rows = vec![
            [
                "plugin",
                "due",
                "waiting",
                "running",
                "done",
                "dead",
                "lost",
                "refused",
                "success (24 h)",
                "last success",
                "next attempt",
            ]
            .iter()
            .map(|head| styled(head, Style::Faint, colours))
            .collect(),
        ];
        rows.extend(status.plugins.iter().map(|plugin| row(plugin, now_ms(), colours)));
        text.push_str(&output::table(&rows));
    }
    for Upload { transfer, bytes_per_second } in &status.transfers {
        let Transfer { path, store, bytes, nar_size, since_ms: _ } = transfer;
        let _ = writeln!(
            text,
            "{} {} to {}: {} sent, of a NAR of {}; {}/s",
            styled("uploading", Style::Good, colours),
            printable(path),
            printable(store),
            output::bytes(*bytes),
            output::bytes(*nar_size),
            output::bytes(*bytes_per_second),
        );
    }
    for OpenBreaker { plugin, since_ms, until_ms, trips, message } in &status.breakers {
        let now = now_ms();
        let since = output::duration(now.saturating_sub(*since_ms));
        let next = output::duration(until_ms.saturating_sub(now));
        let _ = writeln!(
            text,
            "\n{}: the service that {plugin} needs is down since {since}: {}; next try in {next} (failed tries: {trips}); to try \
             now: hookrun queue retry --plugin {plugin}",
            styled("waits", Style::Warning, colours),
            printable(message),
        );
    }
    if !status.dead.is_empty() {
        let _ = writeln!(
            text,
            "\n{} (all: hookrun log --outcome dead)",
            styled("dead letters and lost tasks", Style::Bad, colours)
        );
        for task in &status.dead {
            let message = task.message.as_deref().unwrap_or_default();
            let _ = writeln!(
                text,
                "  {} {} on {}: {}",
                styled(task.state.as_str(), Style::Bad, colours),
                task.plugin,
                printable(&task.event.name),
                printable(message)
            );
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

/// A plugin's line of the table.
fn row(plugin: &Plugin, now: u64, colours: bool) -> Vec<String> {
    let Plugin { counts, record } = plugin;
    let PluginCounts {
        plugin,
        due,
        waiting,
        running,
        done,
        dead,
        lost,
        refused,
        oldest_ms: _,
        next_ms,
    } = counts;
    let PluginRecord { succeeded, failed, last_success_ms } = record;
    let number = |count: u64, style| {
        if count == 0 { "0".to_owned() } else { styled(&count.to_string(), style, colours) }
    };
    let dash = || "-".to_owned();
    let attempts = succeeded + failed;
    let style = if *failed == 0 { Style::Good } else { Style::Warning };
    let percent = succeeded.saturating_mul(100).checked_div(attempts);
    let success = percent
        .map_or_else(dash, |percent| styled(&format!("{percent}% of {attempts}"), style, colours));
    vec![
        styled(plugin, Style::Strong, colours),
        number(*due, Style::Warning),
        number(*waiting, Style::Warning),
        number(*running, Style::Plain),
        number(*done, Style::Good),
        number(*dead, Style::Bad),
        number(*lost, Style::Bad),
        number(*refused, Style::Bad),
        success,
        last_success_ms.map_or_else(dash, |when| {
            format!("{} ago", output::duration(seconds(now.saturating_sub(when))))
        }),
        next_ms.map_or_else(dash, |when| {
            format!("in {}", output::duration(seconds(when.saturating_sub(now))))
        }),
    ]
}

/// Milliseconds without a part of a second, where that is enough to know.
const fn seconds(ms: u64) -> u64 {
    if ms < 1000 { ms } else { ms / 1000 * 1000 }
}

fn counted(count: usize, one: &str, many: &str) -> String {
    if count == 1 { format!("1 {one}") } else { format!("{count} {many}") }
}
