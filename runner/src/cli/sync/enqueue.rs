//! Queues the selected paths.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::anyhow;
use serde::Serialize;

use super::CliError;
use super::plan::{PlannedEvent, PluginPaths, plan};
use crate::supervise::supervisor;
use hookrun_config::{Config, ConfigText, Filter, suggestion};
use hookrun_nix::database::Database;
use hookrun_nix::derivation::MAX_SIZE;
use hookrun_nix::dirs::Dirs;
use hookrun_nix::event::{
    Event, HookEvent, HookKind, NixDirs, Origin, Output, PostBuild, derivation_name,
};
use hookrun_nix::output_name_from_path;
use hookrun_queue::journal::Journal;
use hookrun_queue::spool::{self, SpoolPlace};
use hookrun_queue::{roots, spawn};

/// Selects paths. All conditions that are set must hold.
#[derive(Debug, Default)]
pub(in crate::cli) struct PathSelection {
    /// The path became valid at this time or later, in milliseconds since 1970.
    pub(in crate::cli) since_ms: Option<u64>,
    /// The name matches this pattern, as in a plugin's filter.
    pub(in crate::cli) name: Option<String>,
    /// The path was built here.
    pub(in crate::cli) built: bool,
    /// The path is one of these.
    pub(in crate::cli) only: Option<BTreeSet<String>>,
    /// The plugin to queue the paths for; none for all plugins that want them.
    pub(in crate::cli) plugin: Option<String>,
}

/// Options for [`enqueue`].
#[derive(Debug, Clone, Copy, Default)]
pub(in crate::cli) struct Options {
    /// Also queue paths that are in the journal.
    pub(in crate::cli) force: bool,
    /// Change nothing.
    pub(in crate::cli) dry_run: bool,
}

/// The result, as `--format json` prints it.
#[derive(Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(in crate::cli) struct SyncReport {
    /// The number of events that were queued, or would be.
    pub(in crate::cli) enqueued: usize,
    /// The derivations of these events.
    pub(super) derivations: Vec<String>,
    /// The outputs of these events.
    pub(super) paths: Vec<String>,
    /// The number of events that name only this plugin, because others already have the paths.
    pub(super) only_for: BTreeMap<String, usize>,
    /// The number of paths that every plugin already has.
    pub(super) known: usize,
    /// The number of paths that no plugin's filter admits.
    pub(super) unwanted: usize,
    /// The number of paths without a derivation.
    pub(super) without_derivation: usize,
}

/// Called with the progress.
#[derive(Debug, Clone, Copy)]
pub(in crate::cli) struct Progress<'a> {
    pub(super) done: usize,
    pub(super) of: usize,
    pub(super) name: &'a str,
}

/// Queues the selected paths that are not in the journal, as one event for each derivation, oldest
/// first.
///
/// # Errors
/// The database or the journal cannot be read, or an event cannot be written. In that case earlier
/// events are kept.
pub(in crate::cli) fn enqueue(
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
