//! `hookrun status`: shows running, waiting and failed tasks, and problems.

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

/// The number of dead letters that are shown; `hookrun log --outcome dead` shows all.
const SHOWN_DEAD: usize = 5;
/// The number of newest rejected files whose reasons are shown.
const SHOWN_REASONS: usize = 3;
/// The period for which a plugin's successes and failures are counted.
const RECENT: Duration = Duration::from_hours(24);
/// The shortest interval, because each screen counts all tasks.
const SHORTEST: Duration = Duration::from_millis(100);
/// Moves the cursor home and clears the screen below (ECMA-48 sections 8.3.21 and 8.3.39). The last
/// contents stay on the screen when the command ends.
const REDRAW: &str = "\u{1b}[H\u{1b}[J";

#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  hookrun status
  hookrun status --watch                 repeat until Ctrl-C
  hookrun status --format json | jq '.plugins[] | select(.dead > 0)'

With --watch, --format json prints one JSON object per line.

The exit code is 0, whatever the state is; programs can read `problems`.")]
pub(super) struct Args {
    /// The output format
    #[arg(long, value_enum, default_value_t)]
    format: Format,
    /// Repeat; on a terminal the output is replaced, otherwise it is appended
    #[arg(long, short)]
    watch: bool,
    /// With --watch: the interval, such as 500ms or 10s; at least 100ms
    #[arg(long, value_name = "TIME", value_parser = interval, default_value = "2s", requires = "watch")]
    interval: Duration,
}

/// A plugin with its tasks and its recent attempts.
#[derive(Debug, Serialize)]
struct Plugin {
    #[serde(flatten)]
    counts: PluginCounts,
    /// The attempts of the last 24 hours.
    #[serde(flatten)]
    record: PluginRecord,
}

/// The whole status, as `--format json` prints it.
#[derive(Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
struct Status {
    config: String,
    config_is_embedded: bool,
    /// The origin of the configuration, if it is not its file.
    #[serde(skip)]
    config_origin: &'static str,
    state: String,
    /// The process id of the running worker; 0 if it is not visible from here.
    worker: Option<i32>,
    /// The version of the worker.
    worker_version: Option<String>,
    /// The state of the worker, as text.
    #[serde(skip)]
    worker_is: String,
    /// The user that guests run as when the current user runs the worker.
    guests: String,
    /// The number of events that no worker has taken yet.
    spooled: usize,
    /// The number of rejected spool files.
    rejected: usize,
    /// The age of the oldest task that has not ended, counted from the call of the hook, in
    /// milliseconds.
    oldest_age_ms: Option<u64>,
    /// The time when the worker last applied a change of configuration, plugins or secrets, in
    /// milliseconds since 1970.
    refreshed_ms: Option<u64>,
    /// The roots that protect the outputs of unfinished events and dead letters from the garbage
    /// collector.
    roots: Roots,
    plugins: Vec<Plugin>,
    /// Plugins whose circuit breaker is open.
    breakers: Vec<OpenBreaker>,
    /// Uploads in progress.
    transfers: Vec<Upload>,
    dead: Vec<TaskRow>,
    /// Problems, each with the fix.
    problems: Vec<String>,
}

/// An upload in progress.
#[derive(Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
struct Upload {
    #[serde(flatten)]
    transfer: Transfer,
    /// The average rate since it began.
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

/// Parses the value of `--interval`.
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
                .push(format!("{error} (builds continue and events are kept, but no plugin runs)"));
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
        status
            .problems
            .push(format!("{files} rejected; the reasons are in {}, the newest:", place.display()));
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
        // The journal of another user is not a problem of the queue. The rest of the status is
        // still valid.
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

/// Describes the worker. `waiter` is the process that starts one for build users.
fn worker_is(running: Option<&Running>, waiter: Option<i32>) -> String {
    match (running, waiter) {
        (Some(running), _) => running.to_string(),
        (None, Some(pid)) => {
            format!("does not run (hooks start it; process {pid} starts it for build users)")
        }
        (None, None) => "does not run".to_owned(),
    }
}

/// Returns the reasons of the newest rejected files. Each has a file with its reason beside it.
fn newest_reasons(directory: &Path) -> Vec<String> {
    let entries =
        std::fs::read_dir(directory).into_iter().flatten().flatten().map(|entry| entry.path());
    let mut files: Vec<PathBuf> = entries
        .filter(|path| path.extension().is_some_and(|extension| extension == "reason"))
        .collect();
    // The names begin with the time.
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
                format!(", {count} of them for dead letters ({})", bytesize::ByteSize(dead_bytes))
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
            "\n{}: the service that {plugin} needs has been down since {since}: {}; next attempt in {next} (failed attempts: {trips}); to try now, run `hookrun queue retry --plugin {plugin}`",
            styled("waits", Style::Warning, colours),
            printable(message),
        );
    }
    if !status.dead.is_empty() {
        let _ = writeln!(
            text,
            "\n{} (to see all, run `hookrun log --outcome dead`)",
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
        let _ = writeln!(text, "\n{}", styled("problems", Style::Bad, colours));
        for problem in &status.problems {
            let _ = writeln!(text, "  {}", printable(problem));
        }
    }
    text
}

/// Returns the row of a plugin.
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

/// Rounds milliseconds down to full seconds.
const fn seconds(ms: u64) -> u64 {
    if ms < 1000 { ms } else { ms / 1000 * 1000 }
}

fn counted(count: usize, one: &str, many: &str) -> String {
    if count == 1 { format!("1 {one}") } else { format!("{count} {many}") }
}
