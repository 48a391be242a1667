//! `hookrun sync`: queues valid paths that no hook reported: substituted paths, paths from before
//! hookrun was installed, and paths whose event could not be stored. Nix never calls a hook again
//! for a path that is valid.
//!
//! It reads Nix's database and the journal, and writes to the spool as hooks do. `hookrun ci` uses
//! [`enqueue()`] if a daemon ignores the user's hooks.

mod enqueue;
mod named;
mod plan;

use std::ffi::OsString;
use std::fmt::Write as _;
use std::io::IsTerminal as _;

use indicatif::{ProgressBar, ProgressStyle};

pub(super) use self::enqueue::{Options, PathSelection, SyncReport, enqueue};
use self::named::named;
pub(super) use self::named::{installable, store_path};
use super::output::{self, Format, printable};
use super::{CliError, Context, since};
use hookrun_nix::event::NixDirs;
use hookrun_nix::exit_code::Exit;

#[derive(Debug, clap::Args)]
#[command(after_help = "\
At least one path or option must select paths. Each derivation becomes one event, with its selected
outputs. For each plugin that takes built paths, paths that are already in the journal are skipped
(use `hookrun queue retry` for them). Paths without a derivation, such as sources, are skipped too.

Exit code 0: all paths were queued, now or before. 1: a named path has no derivation.

Examples:
  hookrun sync --dry-run --since 3d            show what would be queued
  hookrun sync --since 2026-11-01 --built      paths that were built here since then
  hookrun sync ./result                        this path
  hookrun sync nixpkgs#hello                   this installable
  hookrun sync --all --name '!*-source'        all valid paths except for sources
  hookrun sync --all --plugin cache2           fill a second cache")]
pub(super) struct Args {
    /// Store paths, links to them, derivations, or installables as `nix path-info` takes them
    #[arg(value_name = "PATH")]
    paths: Vec<OsString>,
    /// Only paths that became valid since this time: 2h or 3d ago, a date, or a time such as
    /// 2026-11-23T06:00:00Z
    #[arg(long, value_name = "TIME", value_parser = since::parse)]
    since: Option<u64>,
    /// Only paths whose name matches this pattern with * and ?; a leading ! inverts the pattern
    #[arg(long, value_name = "GLOB")]
    name: Option<String>,
    /// Only paths that were built here, and not substituted or copied
    #[arg(long)]
    built: bool,
    /// All valid paths
    #[arg(long)]
    all: bool,
    /// Queue the paths for this plugin only
    #[arg(long, value_name = "NAME")]
    plugin: Option<String>,
    /// Also queue paths that are already in the journal
    #[arg(long)]
    force: bool,
    /// Show what would be queued, and change nothing
    #[arg(long, short = 'n')]
    dry_run: bool,
    /// The output format
    #[arg(long, value_enum, default_value_t)]
    format: Format,
}

pub(super) fn run(context: &Context, args: &Args) -> Result<Exit, CliError> {
    if args.paths.is_empty()
        && args.since.is_none()
        && args.name.is_none()
        && !args.built
        && !args.all
    {
        return Err(CliError::usage(
            "no paths selected: name paths, or write --since TIME, --name GLOB, --built or --all (--dry-run shows the selection)",
        ));
    }
    let nix = NixDirs::from_env();
    let only = if args.paths.is_empty() { None } else { Some(named(&args.paths, &nix)?) };
    let named = only.is_some();
    let wanted = PathSelection {
        since_ms: args.since,
        name: args.name.clone(),
        built: args.built,
        only,
        plugin: args.plugin.clone(),
    };
    let bar = std::io::stderr().is_terminal().then(|| {
        let bar = ProgressBar::new(0);
        if let Ok(style) = ProgressStyle::with_template("{bar:30} {pos}/{len} events  {wide_msg}") {
            bar.set_style(style);
        }
        bar
    });
    let report = enqueue(
        &context.dirs,
        &wanted,
        Options { force: args.force, dry_run: args.dry_run },
        &mut |progress| {
            if let Some(bar) = &bar {
                bar.set_length(progress.of as u64);
                bar.set_position(progress.done as u64);
                bar.set_message(printable(progress.name));
            }
        },
    );
    if let Some(bar) = &bar {
        bar.finish_and_clear();
    }
    let report = report?;
    match args.format {
        Format::Json => output::json(&report)?,
        Format::Text => output::print(&text(&report, args.dry_run))?,
    }
    Ok(if named && report.without_derivation > 0 { Exit::Failed } else { Exit::Done })
}

fn counted(paths: usize) -> String {
    if paths == 1 { "1 path".to_owned() } else { format!("{paths} paths") }
}

fn text(report: &SyncReport, dry_run: bool) -> String {
    let mut text = String::new();
    if dry_run {
        for path in &report.paths {
            let _ = writeln!(text, "{}", printable(path));
        }
    }
    let events = if report.enqueued == 1 { "event" } else { "events" };
    let _ = write!(
        text,
        "{} {events} {}",
        report.enqueued,
        if dry_run { "would be queued" } else { "handed over" }
    );
    for (plugin, count) in &report.only_for {
        let _ = write!(text, ", {count} for {plugin} only");
    }
    if report.known > 0 {
        let _ = write!(
            text,
            ", {} already in the journal (--force includes them)",
            counted(report.known)
        );
    }
    if report.unwanted > 0 {
        let _ =
            write!(text, ", {} excluded by the filters of all plugins", counted(report.unwanted));
    }
    if report.without_derivation > 0 {
        let _ = write!(text, ", {} without a derivation", counted(report.without_derivation));
    }
    text.push('\n');
    text
}
