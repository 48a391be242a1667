//! `hookrun log`: shows attempts and their outcomes.

use std::fmt::Write as _;
use std::time::Duration;

use super::follow::Follower;
use super::output::{self, Format, Style, printable, style_of, styled};
use super::{CliError, Context, differences, since, state_dir};
use hookrun_nix::event::Origin;
use hookrun_nix::exit_code::Exit;
use hookrun_nix::outcome::Class;
use hookrun_queue::journal::{AttemptRow, EndedAs, LogFilter, TaskState};

/// The interval of `--follow`: short enough for users, and cheap for the machine.
const LOOK: Duration = Duration::from_millis(250);

/// The values of `--outcome`: the classes of an attempt, and `dead` for dead letters and lost
/// tasks.
const OUTCOMES: [&str; 10] = [
    "done",
    "transient",
    "permanent",
    "trapped",
    "limit",
    "refused",
    "lost",
    "interrupted",
    "failed",
    "dead",
];

#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  hookrun log                                 the newest 50 attempts
  hookrun log --derivation hello --verbose    with all differences, log messages and usage
  hookrun log --outcome dead --since 1day     dead letters since yesterday
  hookrun log --all --format json             everything, for a program
  hookrun log --follow --plugin cache         new attempts, until Ctrl-C

With --follow, --format json prints one JSON object per line. If a worker starts a new journal, the
attempts in it are shown as well.

Exit code 2: the plugin does not exist. 4: the journal cannot be read, for example because it
belongs to another user.")]
pub(super) struct Args {
    /// Show only derivations whose name or store path contains TEXT
    #[arg(long, value_name = "TEXT")]
    derivation: Option<String>,
    /// Show only attempts of this plugin
    #[arg(long, value_name = "NAME")]
    plugin: Option<String>,
    /// Show only attempts with this outcome; `failed` is every outcome except `done`, and `dead`
    /// shows all attempts of dead letters and lost tasks
    #[arg(long, value_parser = OUTCOMES)]
    outcome: Option<String>,
    /// Show only attempts that ended since: 2h or 3d ago, a date, or a time such as
    /// 2026-11-23T06:00:00Z
    #[arg(long, value_name = "TIME", value_parser = since::parse)]
    since: Option<u64>,
    /// Show the newest COUNT attempts
    #[arg(long, value_name = "COUNT", default_value_t = 50, conflicts_with = "all")]
    limit: usize,
    /// Show all attempts
    #[arg(long)]
    all: bool,
    /// Print new attempts as they end, until Ctrl-C
    #[arg(long, short)]
    follow: bool,
    /// Also show all differences, what the plugin logged, and what it used
    #[arg(long, short)]
    verbose: bool,
    /// The output format
    #[arg(long, value_enum, default_value_t)]
    format: Format,
}

pub(super) fn run(context: &Context, args: &Args) -> Result<Exit, CliError> {
    let filter = LogFilter {
        derivation: args.derivation.clone(),
        plugin: args.plugin.clone(),
        outcome: args.outcome.as_deref().map(|word| match word {
            "failed" => EndedAs::Failed,
            "dead" => EndedAs::Dead,
            word => EndedAs::Class(Class::from_word(word).unwrap_or(Class::Unreadable)),
        }),
        since_ms: args.since,
        after: None,
        limit: (!args.all).then_some(args.limit),
    };
    let journal = state_dir::journal(context)?;
    state_dir::known_plugin(context, journal.as_ref(), args.plugin.as_deref())?;
    drop(journal);
    let mut follower = Follower::new(&context.dirs, filter);
    let rows = follower.first().map_err(CliError::environment)?;
    if rows.is_empty() && args.format == Format::Text {
        eprintln!("no matching attempt is recorded in {}", context.dirs.state.display());
    }
    match args.format {
        Format::Json if args.follow => lines(&rows)?,
        Format::Json => output::json(&rows)?,
        Format::Text => output::print(&text(&rows, args.verbose, output::colours()))?,
    }
    if !args.follow {
        return Ok(Exit::Done);
    }
    loop {
        // Ctrl-C ends the process, as for `tail -f`. There is nothing to clean up.
        std::thread::sleep(LOOK);
        let rows = follower.next();
        match args.format {
            Format::Json => lines(&rows)?,
            Format::Text => output::print(&text(&rows, args.verbose, output::colours()))?,
        }
    }
}

/// Prints each row as one line of JSON.
fn lines(rows: &[AttemptRow]) -> Result<(), CliError> {
    rows.iter().try_for_each(output::json_line)
}

/// Returns whether no later attempt of the same task is in `rows`.
fn is_last(rows: &[AttemptRow], row: &AttemptRow) -> bool {
    let same = |other: &&AttemptRow| other.event.id == row.event.id && other.plugin == row.plugin;
    rows.iter().filter(same).all(|other| other.id <= row.id)
}

fn text(rows: &[AttemptRow], verbose: bool, colours: bool) -> String {
    let mut text = String::new();
    for row in rows {
        // Each attempt has a line of its own, with its message below, because messages are long.
        let _ = write!(
            text,
            "{}  {}  {}  {}",
            styled(&output::time(row.end_ms), Style::Faint, colours),
            styled(row.class.as_str(), style_of(row.class.as_str()), colours),
            styled(&row.plugin, Style::Strong, colours),
            printable(&row.event.name),
        );
        let _ = write!(text, "  ({}, attempt {}", row.event.kind, row.number);
        if row.event.origin != Origin::Hook.as_str() {
            let _ = write!(text, ", {}", printable(&row.event.origin));
        }
        if let Some(usage) = &row.usage {
            let _ = write!(
                text,
                ", {}",
                output::duration(u64::try_from(usage.wall.as_millis()).unwrap_or(u64::MAX))
            );
        }
        text.push_str(")\n");
        let _ = writeln!(text, "    {}", printable(&row.message));
        if let Some(evidence) = &row.evidence {
            let most = if verbose { usize::MAX } else { differences::SOME };
            text.push_str(&differences::text(evidence, most, colours));
        }
        match (row.state, row.not_before_ms) {
            (TaskState::Lost, _) if row.class == Class::Lost => {
                let _ = writeln!(text, "    lost");
            }
            (TaskState::Dead, _) if row.class != Class::Done && is_last(rows, row) => {
                let _ =
                    writeln!(text, "    dead letter; to try it again, run `hookrun queue retry`");
            }
            (TaskState::Refused, _) => {
                let _ = writeln!(
                    text,
                    "    kept; tried again when the configuration, a plugin or a secret changes, and every few minutes"
                );
            }
            (TaskState::Waiting, Some(when)) => {
                let _ = writeln!(text, "    next attempt at {}", output::time(when));
            }
            _ => {}
        }
        if verbose {
            details(&mut text, row, colours);
        }
    }
    text
}

fn details(text: &mut String, row: &AttemptRow, colours: bool) {
    for line in &row.log {
        let fields = output::fields(&line.fields);
        let level = styled(&line.level, level_style(&line.level), colours);
        let _ = writeln!(text, "    {level}: {}{fields}", printable(&line.message));
    }
    if let Some(usage) = &row.usage {
        let _ = writeln!(
            text,
            "    used {} of memory, {} host calls ({} transferred), {} of log",
            output::bytes(usage.memory),
            usage.host_calls,
            output::bytes(usage.host_bytes),
            output::bytes(usage.log_bytes),
        );
    }
    let _ = writeln!(text, "    event {}, {}", row.event.id, printable(&row.event.drv_path));
}

pub(super) fn level_style(level: &str) -> Style {
    match level {
        "error" => Style::Bad,
        "warn" => Style::Warning,
        "trace" | "debug" => Style::Faint,
        _ => Style::Plain,
    }
}
