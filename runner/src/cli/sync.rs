//! `hookrun sync`: queues valid paths that no hook reported: substituted paths, paths from before
//! hookrun was installed, and paths whose event could not be stored. Nix never calls a hook again
//! for a path that is valid.
//!
//! It reads Nix's database and the journal, and writes to the spool as hooks do. `hookrun ci` uses
//! [`enqueue`] if a daemon ignores the user's hooks.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ffi::{OsStr, OsString};
use std::fmt::Write as _;
use std::io::IsTerminal as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, anyhow};
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;

use super::output::{self, Format, printable};
use super::{CliError, Context, since};
use crate::supervise::supervisor;
use hookrun_config::{Config, ConfigText, Filter, suggestion};
use hookrun_nix::database::{Database, Registered};
use hookrun_nix::derivation::MAX_SIZE;
use hookrun_nix::dirs::Dirs;
use hookrun_nix::event::{
    Event, HookEvent, HookKind, NixDirs, Origin, Output, PostBuild, derivation_name,
};
use hookrun_nix::exit_code::Exit;
use hookrun_nix::{self as nix, is_store_path, output_name_from_path};
use hookrun_queue::journal::Journal;
use hookrun_queue::spool::{self, SpoolPlace};
use hookrun_queue::{roots, spawn};
use hookrun_system::process::describe_end;

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

/// Selects paths. All conditions that are set must hold.
#[derive(Debug, Default)]
pub(super) struct PathSelection {
    /// The path became valid at this time or later, in milliseconds since 1970.
    pub(super) since_ms: Option<u64>,
    /// The name matches this pattern, as in a plugin's filter.
    pub(super) name: Option<String>,
    /// The path was built here.
    pub(super) built: bool,
    /// The path is one of these.
    pub(super) only: Option<BTreeSet<String>>,
    /// The plugin to queue the paths for; none for all plugins that want them.
    pub(super) plugin: Option<String>,
}

/// Options for [`enqueue`].
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Options {
    /// Also queue paths that are in the journal.
    pub(super) force: bool,
    /// Change nothing.
    pub(super) dry_run: bool,
}

/// The result, as `--format json` prints it.
#[derive(Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(super) struct SyncReport {
    /// The number of events that were queued, or would be.
    pub(super) enqueued: usize,
    /// The derivations of these events.
    derivations: Vec<String>,
    /// The outputs of these events.
    paths: Vec<String>,
    /// The number of events that name only this plugin, because others already have the paths.
    only_for: BTreeMap<String, usize>,
    /// The number of paths that every plugin already has.
    known: usize,
    /// The number of paths that no plugin's filter admits.
    unwanted: usize,
    /// The number of paths without a derivation.
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

/// Called with the progress.
#[derive(Debug, Clone, Copy)]
pub(super) struct Progress<'a> {
    done: usize,
    of: usize,
    name: &'a str,
}

/// Queues the selected paths that are not in the journal, as one event for each derivation, oldest
/// first.
///
/// # Errors
/// The database or the journal cannot be read, or an event cannot be written. In that case earlier
/// events are kept.
pub(super) fn enqueue(
    dirs: &Dirs,
    wanted: &PathSelection,
    mode: Options,
    progress: &mut dyn FnMut(Progress<'_>),
) -> Result<SyncReport, CliError> {
    let nix = NixDirs::from_env();
    let database = Database::open(&nix).map_err(CliError::environment)?;
    let registered = database
        .registered(wanted.since_ms.map(|since| since.div_ceil(1000)))
        .map_err(CliError::environment)?;
    let takers = takers(dirs, wanted.plugin.as_deref(), mode.force)?;
    let mut report = SyncReport::default();
    let plan = plan(registered, wanted, &takers, &nix.store.to_string_lossy(), &mut report);
    let of = plan.len();
    for (done, PlannedEvent { drv_path, paths, plugins }) in plan.into_iter().enumerate() {
        progress(Progress { done, of, name: derivation_name(&drv_path) });
        let built =
            PostBuild { outputs: outputs(&nix, &drv_path, &paths), drv_path: drv_path.clone() };
        let event = Event {
            origin: Origin::Sync,
            plugins: plugins.clone(),
            ..Event::now(HookEvent::PostBuild(built))
        };
        if !mode.dry_run {
            // Roots are created before the event is written, as in hooks.
            roots::make(&event);
            match spool::put(dirs, &event) {
                Ok(SpoolPlace::Spool) => {}
                Ok(SpoolPlace::Fallback { path, reason }) => {
                    roots::remove(&event);
                    // The command reports the error, so a fallback directory is not used.
                    let _gone = std::fs::remove_file(path);
                    return Err(CliError::environment(anyhow!(
                        "{reason}; {done} of {of} events were queued"
                    )));
                }
                Err(error) => {
                    roots::remove(&event);
                    return Err(CliError::environment(
                        anyhow::Error::new(error)
                            .context(format!("{done} of {of} events were queued")),
                    ));
                }
            }
        }
        report.enqueued += 1;
        for plugin in plugins {
            *report.only_for.entry(plugin).or_default() += 1;
        }
        report.derivations.push(drv_path);
        report.paths.extend(paths);
    }
    if report.enqueued > 0 && !mode.dry_run && spawn::may_start(dirs) {
        spawn::if_wanted(dirs, &ConfigText::in_force(dirs)?).map_err(|error| {
            CliError::environment(anyhow!("no worker was started ({error}); the events are kept"))
        })?;
    }
    Ok(report)
}

/// A plugin that takes post-build events, and the outputs that it already has.
struct PluginPaths {
    name: String,
    filter: Filter,
    known: BTreeSet<String>,
}

/// Returns the plugins that may get paths: the one named `only`, or all.
fn takers(dirs: &Dirs, only: Option<&str>, force: bool) -> Result<Vec<PluginPaths>, CliError> {
    let config = Config::in_force(dirs)?;
    let journal = Journal::open_read_only(dirs).map_err(CliError::environment)?;
    let plugins = supervisor::queued(&config, dirs, HookKind::PostBuild);
    if let Some(name) = only
        && !plugins.iter().any(|plugin| plugin.name == name)
    {
        let hint = suggestion(name, plugins.iter().map(|plugin| plugin.name.as_str()));
        return Err(CliError::usage(format!(
            "no plugin `{name}` in {} takes post-build events; {hint}",
            config.path.display()
        )));
    }
    if plugins.is_empty() {
        // The journal also keeps events without a plugin, for plugins that are added later.
        let known = match &journal {
            Some(journal) if !force => journal.outputs(None).map_err(CliError::environment)?,
            _ => BTreeSet::new(),
        };
        return Ok(vec![PluginPaths { name: String::new(), filter: Filter::default(), known }]);
    }
    let meant = plugins.into_iter().filter(|plugin| only.is_none_or(|only| plugin.name == only));
    meant
        .map(|plugin| {
            let known = match &journal {
                Some(journal) if !force => {
                    journal.outputs_for(&plugin.name).map_err(CliError::environment)?
                }
                _ => BTreeSet::new(),
            };
            Ok(PluginPaths { name: plugin.name.clone(), filter: plugin.filter.clone(), known })
        })
        .collect()
}

/// An event to be written.
#[derive(Debug, PartialEq, Eq)]
struct PlannedEvent {
    drv_path: String,
    paths: Vec<String>,
    /// The plugins that it is for; empty for all that want it.
    plugins: Vec<String>,
}

/// Returns the events, in the order in which their first outputs became valid. Outputs of one
/// derivation that are for the same plugins form one event.
fn plan(
    registered: Vec<Registered>,
    wanted: &PathSelection,
    takers: &[PluginPaths],
    store: &str,
    report: &mut SyncReport,
) -> Vec<PlannedEvent> {
    let filter = Filter { name: wanted.name.clone(), max_nar_size: None };
    let mut plan: Vec<PlannedEvent> = Vec::new();
    let mut places: HashMap<(String, Vec<String>), usize> = HashMap::new();
    for Registered { path, deriver, ultimate } in registered {
        let PathSelection { since_ms: _, name: _, built, only, plugin: _ } = wanted;
        let meant = filter.admits_name(derivation_name(&path))
            && (ultimate || !built)
            && only.as_ref().is_none_or(|only| only.contains(&path))
            // A derivation is not an output.
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
        // The plugins whose filters admit the path, and those of them that do not have it.
        let admitting: Vec<&PluginPaths> = takers
            .iter()
            .filter(|taker| taker.filter.admits_name(derivation_name(&deriver)))
            .collect();
        let lacking: Vec<String> = admitting
            .iter()
            .filter(|taker| !taker.known.contains(&path))
            .map(|taker| taker.name.clone())
            .collect();
        if admitting.is_empty() {
            report.unwanted += 1;
            continue;
        }
        if lacking.is_empty() {
            report.known += 1;
            continue;
        }
        let all = wanted.plugin.is_none() && lacking.len() == admitting.len();
        let plugins = if all { Vec::new() } else { lacking };
        let place = *places.entry((deriver.clone(), plugins.clone())).or_insert(plan.len());
        match plan.get_mut(place) {
            Some(planned) => planned.paths.push(path),
            None => plan.push(PlannedEvent { drv_path: deriver, paths: vec![path], plugins }),
        }
    }
    plan
}

fn is_derivation(path: &str) -> bool {
    Path::new(path).extension().is_some_and(|extension| extension == "drv")
}

/// Returns the outputs with their names, from the derivation or else from their paths.
fn outputs(nix: &NixDirs, drv_path: &str, paths: &[String]) -> Vec<Output> {
    let by_derivation = hookrun_nix::outputs_of(nix, drv_path, MAX_SIZE).unwrap_or_default();
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

/// Returns the store paths that the arguments name.
fn named(arguments: &[OsString], nix: &NixDirs) -> Result<BTreeSet<String>, CliError> {
    let database = Database::open(nix).map_err(CliError::environment)?;
    let mut found = BTreeSet::new();
    for argument in arguments {
        let shown = argument.to_string_lossy();
        let paths = match store_path(argument, nix) {
            Some(path) if is_derivation(&path) => {
                let outputs =
                    hookrun_nix::outputs_of(nix, &path, MAX_SIZE).map_err(CliError::environment)?;
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

/// Returns the store path to which a file system path leads; none if it is not one.
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

/// Asks Nix for the store paths of an installable.
fn installable(argument: &OsStr) -> Result<Vec<String>, CliError> {
    let output = nix::command("nix")
        .args(["--extra-experimental-features", "nix-command flakes", "path-info"])
        .arg(argument)
        .stdin(std::process::Stdio::null())
        .output()
        .context("`nix` cannot be started; install Nix, or name existing store paths")
        .map_err(CliError::environment)?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        return Err(CliError::usage(format!(
            "`{}` is neither a valid path nor an installable that is built: `nix path-info` {}",
            argument.to_string_lossy(),
            describe_end(output.status, &said)
        )));
    }
    Ok(String::from_utf8_lossy(&output.stdout).lines().map(str::to_owned).collect())
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

    fn planned(wanted: &PathSelection, known: &[&str]) -> (Vec<String>, SyncReport) {
        planned_for(wanted, &[taker("cache", None, known)])
    }

    fn taker(name: &str, filter: Option<&str>, known: &[&str]) -> PluginPaths {
        PluginPaths {
            name: name.to_owned(),
            filter: Filter { name: filter.map(str::to_owned), max_nar_size: None },
            known: known.iter().map(|name| path(name)).collect(),
        }
    }

    fn planned_for(wanted: &PathSelection, takers: &[PluginPaths]) -> (Vec<String>, SyncReport) {
        let registered = vec![
            row("a", Some("a"), true),
            row("a-dev", Some("a"), true),
            row("b", Some("b"), false),
            row("a.drv", None, true),
            row("source", None, true),
        ];
        let mut report = SyncReport::default();
        let plan = plan(registered, wanted, takers, "/nix/store", &mut report);
        let shown = |PlannedEvent { drv_path, paths, plugins }: PlannedEvent| {
            let plugins = if plugins.is_empty() { "all".to_owned() } else { plugins.join("+") };
            format!("{} {} {plugins}", derivation_name(&drv_path), paths.len())
        };
        (plan.into_iter().map(shown).collect(), report)
    }

    #[test]
    fn each_derivation_becomes_one_event() {
        let (plan, report) = planned(&PathSelection::default(), &[]);
        assert_eq!(plan, ["a 2 all", "b 1 all"]);
        assert_eq!(report.without_derivation, 1, "the source; derivations are not reported");
    }

    #[test]
    fn unselected_and_known_paths_are_left_out() {
        let plan = |wanted: PathSelection, known: &[&str]| planned(&wanted, known).0;
        assert_eq!(
            plan(PathSelection::default(), &["a", "b"]),
            ["a 1 all"],
            "an output that was not reported"
        );
        assert_eq!(
            plan(PathSelection { built: true, ..PathSelection::default() }, &[]),
            ["a 2 all"]
        );
        assert_eq!(
            plan(PathSelection { name: Some("!*-dev".into()), ..PathSelection::default() }, &[]),
            ["a 1 all", "b 1 all"]
        );
        assert_eq!(
            plan(PathSelection { only: Some([path("b")].into()), ..PathSelection::default() }, &[]),
            ["b 1 all"]
        );
    }

    #[test]
    fn each_plugin_gets_the_paths_that_it_lacks() {
        let takers = [
            taker("first", None, &["a", "a-dev"]),
            taker("second", None, &["a-dev"]),
            taker("third", Some("b"), &[]),
        ];
        let (plan, report) = planned_for(&PathSelection::default(), &takers);
        assert_eq!(plan, ["a 1 second", "b 1 all"]);
        assert_eq!((report.known, report.unwanted), (1, 0));
        let for_third = PathSelection { plugin: Some("third".into()), ..PathSelection::default() };
        let (plan, report) = planned_for(&for_third, &takers[2..]);
        assert_eq!(plan, ["b 1 third"], "also where it is the only one");
        assert_eq!(report.unwanted, 2);
    }
}
