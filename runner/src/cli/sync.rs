//! `hookrun sync`: valid paths that no hook reported, handed over as if one had: what was
//! substituted, what was built before hookrun was there, what a hook could not keep. Nix never
//! calls a hook again for a path that is valid.
//!
//! Reads Nix's database and the journal, writes to the spool as hooks do. `hookrun ci` uses
//! [`enqueue`] where a daemon ignores a user's hooks.

use std::collections::{BTreeSet, HashMap};
use std::ffi::{OsStr, OsString};
use std::fmt::Write as _;
use std::io::IsTerminal as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, anyhow};
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;

use super::output::{self, Format, printable};
use super::{CliError, Context, since};
use crate::config::Filter;
use crate::dirs::Dirs;
use crate::event::{Event, HookEvent, NixDirs, Origin, Output, PostBuild, derivation_name};
use crate::exit_code::Exit;
use crate::nix::database::{Database, Registered};
use crate::nix::{self, is_store_path, output_name_from_path};
use crate::queue::journal::Journal;
use crate::queue::spool::{self, Place};
use crate::queue::{roots, spawn};

#[derive(Debug, clap::Args)]
#[command(after_help = "\
Something has to say which paths are meant. Each derivation is one event, with those of its outputs that are meant. Paths that the journal knows
are left out (`hookrun queue retry` is for them), and paths without a derivation, such as sources: plugins are told what was built.

Exit code 0: all of it is handed over, or was before. 1: a named path has no derivation.

Examples:
  hookrun sync --dry-run --since 3d            what would it be?
  hookrun sync --since 2026-11-01 --built      what was built here since then
  hookrun sync ./result                        this path
  hookrun sync nixpkgs#hello                   this installable
  hookrun sync --all --name '!*-source'        everything that is valid")]
pub(super) struct Args {
    /// Store paths, links to them, derivations, or installables as `nix path-info` takes them
    #[arg(value_name = "PATH")]
    paths: Vec<OsString>,
    /// Only what became valid since then: 2h or 3d ago, a date, or a time such as
    /// 2026-11-23T06:00:00Z
    #[arg(long, value_name = "TIME", value_parser = since::parse)]
    since: Option<u64>,
    /// Only paths whose name matches this pattern with * and ?; a leading ! turns it round
    #[arg(long, value_name = "GLOB")]
    name: Option<String>,
    /// Only what was built here, not what was substituted or copied
    #[arg(long)]
    built: bool,
    /// All valid paths
    #[arg(long)]
    all: bool,
    /// Also what the journal knows
    #[arg(long)]
    force: bool,
    /// Show what would be handed over, and do nothing
    #[arg(long, short = 'n')]
    dry_run: bool,
    /// How to print
    #[arg(long, value_enum, default_value_t)]
    format: Format,
}

/// Which paths are meant. All that is set has to hold.
#[derive(Debug, Default)]
pub(super) struct Wanted {
    /// Valid since then; milliseconds since 1970.
    pub(super) since_ms: Option<u64>,
    /// A pattern as in a plugin's filter.
    pub(super) name: Option<String>,
    /// Built here.
    pub(super) built: bool,
    /// These paths.
    pub(super) only: Option<BTreeSet<String>>,
}

/// What is done with them.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Mode {
    /// Also those that the journal knows.
    pub(super) force: bool,
    /// Nothing.
    pub(super) dry_run: bool,
}

/// What came of it, as `--format json` prints it.
#[derive(Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(super) struct Report {
    /// Events handed over, or that would be.
    pub(super) enqueued: usize,
    /// Their derivations.
    derivations: Vec<String>,
    /// Their outputs.
    paths: Vec<String>,
    /// Paths that the journal knows.
    known: usize,
    /// Paths without a derivation.
    without_derivation: usize,
}

pub(super) fn run(context: &Context, args: &Args) -> Result<Exit, CliError> {
    if args.paths.is_empty()
        && args.since.is_none()
        && args.name.is_none()
        && !args.built
        && !args.all
    {
        return Err(CliError::usage(
            "which paths? name some, or write --since TIME, --name GLOB, --built or --all (--dry-run shows what it would be)",
        ));
    }
    let nix = NixDirs::from_env();
    let only = if args.paths.is_empty() { None } else { Some(named(&args.paths, &nix)?) };
    let named = only.is_some();
    let wanted = Wanted { since_ms: args.since, name: args.name.clone(), built: args.built, only };
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
        Mode { force: args.force, dry_run: args.dry_run },
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

/// How far it is.
#[derive(Debug, Clone, Copy)]
pub(super) struct Progress<'a> {
    done: usize,
    of: usize,
    name: &'a str,
}

/// Hands over the wanted paths that the journal does not know, one event for each derivation,
/// oldest first.
///
/// # Errors
/// The database or the journal cannot be read, or an event can be put nowhere: then those before it
/// are kept.
pub(super) fn enqueue(
    dirs: &Dirs,
    wanted: &Wanted,
    mode: Mode,
    progress: &mut dyn FnMut(Progress<'_>),
) -> Result<Report, CliError> {
    let nix = NixDirs::from_env();
    let database = Database::open(&nix).map_err(CliError::environment)?;
    let registered = database
        .registered(wanted.since_ms.map(|since| since.div_ceil(1000)))
        .map_err(CliError::environment)?;
    let known = match Journal::open_read_only(dirs).map_err(CliError::environment)? {
        Some(journal) if !mode.force => journal.outputs(None).map_err(CliError::environment)?,
        _ => BTreeSet::new(),
    };
    let mut report = Report::default();
    let plan = plan(registered, wanted, &known, &nix.store.to_string_lossy(), &mut report);
    let of = plan.len();
    for (done, (drv_path, paths)) in plan.into_iter().enumerate() {
        progress(Progress { done, of, name: derivation_name(&drv_path) });
        if !mode.dry_run {
            let built =
                PostBuild { outputs: outputs(&drv_path, &paths), drv_path: drv_path.clone() };
            let event = Event { origin: Origin::Sync, ..Event::now(HookEvent::PostBuild(built)) };
            // Before the event, as hooks do it.
            roots::make(&event);
            match spool::put(dirs, &event) {
                Ok(Place::Spool) => {}
                Ok(Place::Fallback { path, reason }) => {
                    roots::remove(&event);
                    // Nobody waits here, so nothing has to be kept somewhere else.
                    let _gone = std::fs::remove_file(path);
                    return Err(CliError::environment(anyhow!(
                        "{reason}; {done} of {of} events are handed over"
                    )));
                }
                Err(error) => {
                    roots::remove(&event);
                    return Err(CliError::environment(
                        anyhow::Error::new(error)
                            .context(format!("{done} of {of} events are handed over")),
                    ));
                }
            }
        }
        report.enqueued += 1;
        report.derivations.push(drv_path);
        report.paths.extend(paths);
    }
    if report.enqueued > 0 && !mode.dry_run {
        spawn::if_wanted(dirs).map_err(|error| {
            CliError::environment(anyhow!("no worker was started ({error}); the events are kept"))
        })?;
    }
    Ok(report)
}

/// The events to be: derivation and outputs, those first whose first output became valid first.
fn plan(
    registered: Vec<Registered>,
    wanted: &Wanted,
    known: &BTreeSet<String>,
    store: &str,
    report: &mut Report,
) -> Vec<(String, Vec<String>)> {
    let filter = Filter { name: wanted.name.clone(), max_nar_size: None };
    let mut plan: Vec<(String, Vec<String>)> = Vec::new();
    let mut places: HashMap<String, usize> = HashMap::new();
    for Registered { path, deriver, ultimate } in registered {
        let Wanted { since_ms: _, name: _, built, only } = wanted;
        let meant = filter.admits_name(derivation_name(&path))
            && (ultimate || !built)
            && only.as_ref().is_none_or(|only| only.contains(&path))
            // A derivation is no output.
            && !is_derivation(&path);
        if !meant {
            continue;
        }
        let Some(deriver) =
            deriver.filter(|deriver| is_store_path(store, deriver) && is_derivation(deriver))
        else {
            report.without_derivation += 1;
            continue;
        };
        if known.contains(&path) {
            report.known += 1;
            continue;
        }
        let place = *places.entry(deriver.clone()).or_insert(plan.len());
        match plan.get_mut(place) {
            Some((_, paths)) => paths.push(path),
            None => plan.push((deriver, vec![path])),
        }
    }
    plan
}

fn is_derivation(path: &str) -> bool {
    Path::new(path).extension().is_some_and(|extension| extension == "drv")
}

/// The outputs with their names: as the derivation says, or else as their paths do.
fn outputs(drv_path: &str, paths: &[String]) -> Vec<Output> {
    let by_derivation = nix::outputs_of(drv_path).unwrap_or_default();
    let name = |path: &String| {
        let known = by_derivation
            .iter()
            .find(|output| output.path == *path)
            .map(|output| output.name.clone());
        known
            .unwrap_or_else(|| output_name_from_path(drv_path, path).unwrap_or_default().to_owned())
    };
    let mut outputs: Vec<Output> =
        paths.iter().map(|path| Output { name: name(path), path: path.clone() }).collect();
    outputs.sort();
    outputs
}

/// The store paths that arguments mean.
fn named(arguments: &[OsString], nix: &NixDirs) -> Result<BTreeSet<String>, CliError> {
    let database = Database::open(nix).map_err(CliError::environment)?;
    let mut found = BTreeSet::new();
    for argument in arguments {
        let shown = argument.to_string_lossy();
        let paths = match store_path(argument, nix) {
            Some(path) if is_derivation(&path) => {
                let outputs = nix::outputs_of(&path).map_err(CliError::environment)?;
                outputs.into_iter().map(|output| output.path).collect()
            }
            Some(path) => vec![path],
            None => installable(argument)?,
        };
        let infos = database.path_infos(&paths).map_err(CliError::environment)?;
        let valid: Vec<String> = infos.into_iter().flatten().map(|info| info.path).collect();
        if valid.is_empty() {
            return Err(CliError::usage(format!(
                "`{shown}` is not valid in {}; build it first",
                nix.store.display()
            )));
        }
        found.extend(valid);
    }
    Ok(found)
}

/// The store path that a file system path is, or leads to; none if it is something else.
fn store_path(argument: &OsStr, nix: &NixDirs) -> Option<String> {
    let store = nix.store.to_string_lossy();
    let within = |path: &Path| {
        let first = path.strip_prefix(&nix.store).ok()?.components().next()?;
        let path = nix.store.join(first).to_str()?.to_owned();
        is_store_path(&store, &path).then_some(path)
    };
    // A store path may be a symbolic link itself.
    within(Path::new(argument))
        .or_else(|| within(&std::fs::canonicalize(PathBuf::from(argument)).ok()?))
}

/// What Nix makes of an installable.
fn installable(argument: &OsStr) -> Result<Vec<String>, CliError> {
    let output = nix::command("nix")
        .args(["--extra-experimental-features", "nix-command flakes", "path-info"])
        .arg(argument)
        .stdin(std::process::Stdio::null())
        .output()
        .context("`nix` does not start; install Nix, or name store paths that are there")
        .map_err(CliError::environment)?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        return Err(CliError::usage(format!(
            "`{}` is no valid path and no installable that is built: {}",
            argument.to_string_lossy(),
            said.trim()
        )));
    }
    Ok(String::from_utf8_lossy(&output.stdout).lines().map(str::to_owned).collect())
}

fn counted(paths: usize) -> String {
    if paths == 1 { "1 path".to_owned() } else { format!("{paths} paths") }
}

fn text(report: &Report, dry_run: bool) -> String {
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
        if dry_run { "would be handed over" } else { "handed over" }
    );
    if report.known > 0 {
        let _ = write!(
            text,
            ", {} in the journal already (--force takes them too)",
            counted(report.known)
        );
    }
    if report.without_derivation > 0 {
        let _ = write!(text, ", {} without a derivation", counted(report.without_derivation));
    }
    text.push('\n');
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    const HASH: &str = "00bgd045z0d4icpbc2yyz4gx48ak44la";

    fn path(name: &str) -> String {
        format!("/nix/store/{HASH}-{name}")
    }

    fn row(name: &str, deriver: Option<&str>, ultimate: bool) -> Registered {
        Registered {
            path: path(name),
            deriver: deriver.map(|name| path(&format!("{name}.drv"))),
            ultimate,
        }
    }

    fn planned(wanted: &Wanted, known: &[&str]) -> (Vec<String>, Report) {
        let registered = vec![
            row("a", Some("a"), true),
            row("a-dev", Some("a"), true),
            row("b", Some("b"), false),
            row("a.drv", None, true),
            row("source", None, true),
        ];
        let known = known.iter().map(|name| path(name)).collect();
        let mut report = Report::default();
        let plan = plan(registered, wanted, &known, "/nix/store", &mut report);
        (
            plan.into_iter()
                .map(|(drv, paths)| format!("{} {}", derivation_name(&drv), paths.len()))
                .collect(),
            report,
        )
    }

    #[test]
    fn one_event_for_each_derivation() {
        let (plan, report) = planned(&Wanted::default(), &[]);
        assert_eq!(plan, ["a 2", "b 1"]);
        assert_eq!(
            report.without_derivation, 1,
            "the source; derivations themselves are nothing to report"
        );
    }

    #[test]
    fn what_is_not_meant_or_known_is_left_out() {
        let plan = |wanted: Wanted, known: &[&str]| planned(&wanted, known).0;
        assert_eq!(plan(Wanted::default(), &["a", "b"]), ["a 1"], "an output that nobody reported");
        assert_eq!(plan(Wanted { built: true, ..Wanted::default() }, &[]), ["a 2"]);
        assert_eq!(
            plan(Wanted { name: Some("!*-dev".into()), ..Wanted::default() }, &[]),
            ["a 1", "b 1"]
        );
        assert_eq!(
            plan(Wanted { only: Some([path("b")].into()), ..Wanted::default() }, &[]),
            ["b 1"]
        );
    }
}
