//! The queue's [`Executor`]: passes tasks to runners and returns their outcomes.
//!
//! There is one runner for each Nix that has events, because a sandbox allows the files of only one
//! store. When the configuration, a plugin or a secret changes on disk, new runners are started
//! beside the old ones. They take over if they can use every plugin that worked before. Active runs
//! end in the runner in which they began.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::SystemTime;

use futures_util::future::BoxFuture;
use sha2::{Digest as _, Sha256};

use super::process::{NoRunner, Runner, no_process};
use super::protocol::{Purpose, RunnerSetup};
use hookrun_capability::Services;
use hookrun_config::{self as config, Config, Plugin, Retry, StoreScope, TaskOrder, suggestion};
use hookrun_host::{Compiler, Host};
use hookrun_nix::database::Database;
use hookrun_nix::dirs::Dirs;
use hookrun_nix::event::{Event, HookEvent, HookKind, NixDirs};
use hookrun_nix::outcome::Transfer;
use hookrun_nix::outcome::{FailureCause, Outcome, RunReport};
use hookrun_queue::journal::NewTask;
use hookrun_queue::outputs;
use hookrun_queue::worker::{Executor, Refreshed};

/// The maximum number of runners. A machine usually has one Nix; tests use a few.
const MAX_RUNNERS: usize = 4;

/// The plugins of one configuration, in their own processes.
pub struct Supervisor {
    dirs: Dirs,
    current: RwLock<Arc<Current>>,
    runners: tokio::sync::Mutex<Runners>,
    /// Plugin and event of each run that was in a process that died, until the run has ended.
    suspects: Mutex<BTreeSet<(String, String)>>,
    alone: tokio::sync::Mutex<()>,
    seen: Mutex<FileStates>,
}

type Runners = BTreeMap<NixDirs, Arc<Runner>>;

/// A configuration, and the metadata of its plugins at the time when it was read.
struct Current {
    config: Config,
    plugins: BTreeMap<String, PluginEntry>,
    /// The services that start programs for runners.
    services: Services,
}

struct PluginEntry {
    settings: Plugin,
    /// The hooks that the plugin serves; none if it cannot be read, so that it may serve any.
    hooks: Option<Vec<HookKind>>,
    order: TaskOrder,
}

/// The state of the files at the last check.
struct FileStates {
    stamps: Vec<WatchedFile>,
    problems: Vec<String>,
}

impl Current {
    /// Reads the metadata of every plugin. Starts nothing.
    fn new(config: Config, dirs: &Dirs) -> Self {
        let host = Host::new(dirs, Compiler::Contained(config.worker.user.clone()));
        let mut plugins = BTreeMap::new();
        for (name, settings) in &config.plugins {
            if !is_queued(settings) {
                continue;
            }
            let artifact = host.open(settings, &config).ok();
            let hooks = artifact.as_ref().map(|artifact| artifact.hooks().to_vec());
            let asked = artifact.map(|artifact| artifact.description().metadata.order);
            let order = settings.order.or(asked).unwrap_or_default();
            plugins.insert(name.clone(), PluginEntry { settings: settings.clone(), hooks, order });
        }
        let services = Services::new(&config, dirs);
        Self { config, plugins, services }
    }

    /// Stores the configuration for the case that its file is missing.
    fn keep(&self, dirs: &Dirs) {
        if let Err(error) = self.config.keep(dirs) {
            tracing::warn!(
                "{} cannot be written ({error}); make space there",
                dirs.last_config().display()
            );
        }
    }

    async fn start_runner(&self, dirs: &Dirs, nix: &NixDirs) -> Result<Arc<Runner>, NoRunner> {
        let names = self.plugins.keys().cloned().collect();
        let setup = RunnerSetup::new(&self.config, dirs, nix.clone(), names, Purpose::Queue);
        Runner::start(&setup, self.config.clone(), self.services.clone()).await
    }
}

impl Supervisor {
    /// Reads the metadata of every plugin. Starts nothing.
    pub fn new(config: Config, dirs: &Dirs) -> Self {
        let seen = FileStates { stamps: stamps(&config), problems: Vec::new() };
        let current = Current::new(config, dirs);
        current.keep(dirs);
        Self {
            dirs: dirs.clone(),
            current: RwLock::new(Arc::new(current)),
            runners: tokio::sync::Mutex::default(),
            suspects: Mutex::default(),
            alone: tokio::sync::Mutex::default(),
            seen: Mutex::new(seen),
        }
    }

    /// Compiles all configured plugins that are not compiled yet, on a separate thread. This
    /// includes policies and gates, which no runner of the queue uses and whose hooks do not wait
    /// long for a compiler. Removes files of plugins of earlier configurations.
    pub fn compile_all(&self) {
        let (current, dirs) = (self.current(), self.dirs.clone());
        let body = move || {
            let compiler = Compiler::Contained(current.config.worker.user.clone());
            // Errors are reported where the plugin is used.
            let _ready = Host::new(&dirs, compiler).prepare_all(&current.config);
        };
        // Without a thread, each plugin is compiled when it is used.
        let _started = std::thread::Builder::new().name("compile".to_owned()).spawn(body);
    }

    fn current(&self) -> Arc<Current> {
        Arc::clone(&self.current.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Returns the runner for events of `nix`, and starts one if necessary.
    async fn runner(&self, nix: &NixDirs) -> Result<Arc<Runner>, NoRunner> {
        let mut runners = self.runners.lock().await;
        if let Some(runner) = runners.get(nix).filter(|runner| runner.is_alive()) {
            return Ok(Arc::clone(runner));
        }
        runners.remove(nix);
        if runners.len() >= MAX_RUNNERS {
            // The removed runner ends with its last run.
            runners.pop_first();
        }
        let runner = self.current().start_runner(&self.dirs, nix).await?;
        runners.insert(nix.clone(), Arc::clone(&runner));
        Ok(runner)
    }

    /// Runs a plugin in a runner, or alone in its own runner if it was in a process that died.
    async fn run_in_runner(&self, plugin: &str, event: &Event, attempt: u32) -> RunReport {
        let run = (plugin.to_owned(), event.id.clone());
        let suspects = || self.suspects.lock().unwrap_or_else(PoisonError::into_inner);
        let is_suspect = suspects().contains(&run);
        // One suspect at a time: a run that does not fit into memory beside others does not fit
        // beside another suspect either.
        let _alone = if is_suspect { Some(self.alone.lock().await) } else { None };
        let runner = if is_suspect {
            self.current().start_runner(&self.dirs, &event.nix).await
        } else {
            self.runner(&event.nix).await
        };
        let ended = match runner {
            Ok(runner) => runner.run(plugin, event, attempt).await,
            Err(NoRunner::Refused(reason)) => return RunReport::refused(reason),
            Err(NoRunner::Died(how)) => return no_process(&how),
        };
        match ended {
            Ok(report) => {
                suspects().remove(&run);
                report
            }
            Err(death) => {
                suspects().insert(run);
                death.report()
            }
        }
    }

    /// Applies changes on disk, if they are valid.
    async fn look(&self) -> Refreshed {
        let current = self.current();
        // The state directory may not have existed when this process started.
        current.keep(&self.dirs);
        let stamps = stamps(&current.config);
        {
            let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
            if seen.stamps == stamps {
                return Refreshed { changed: false, problems: seen.problems.clone() };
            }
            seen.stamps = stamps;
        }
        let refreshed = match Config::load(&self.dirs.config) {
            Ok(config) if config.embedded && !current.config.embedded => Refreshed {
                changed: false,
                problems: vec![format!(
                    "{} does not exist, so the worker keeps the previous configuration; restore the file, or create an empty one to run without a configuration",
                    self.dirs.config.display()
                )],
            },
            Ok(config) => self.replace(&current, Current::new(config, &self.dirs)).await,
            Err(error) => Refreshed {
                changed: false,
                problems: vec![format!("{error}; the worker keeps the previous configuration")],
            },
        };
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        seen.problems.clone_from(&refreshed.problems);
        if refreshed.changed {
            // The new configuration may name other files.
            seen.stamps = self::stamps(&self.current().config);
        }
        refreshed
    }

    /// Replaces `current` by `next`, unless a plugin that works now would stop working.
    async fn replace(&self, current: &Current, next: Current) -> Refreshed {
        let alive: Runners = {
            let runners = self.runners.lock().await;
            runners
                .iter()
                .filter(|(_, runner)| runner.is_alive())
                .map(|(nix, runner)| (nix.clone(), Arc::clone(runner)))
                .collect()
        };
        let mut fresh = Runners::new();
        let mut problems = BTreeMap::new();
        for (nix, old) in &alive {
            let runner = match next.start_runner(&self.dirs, nix).await {
                Ok(runner) => runner,
                Err(NoRunner::Refused(reason) | NoRunner::Died(reason)) => {
                    let problem = format!(
                        "the new configuration cannot be applied: {reason}; the worker keeps the previous one"
                    );
                    return Refreshed { changed: false, problems: vec![problem] };
                }
            };
            let works_now = |name: &String| {
                current.plugins.contains_key(name) && !old.problems().contains_key(name)
            };
            let broken: Vec<String> = runner
                .problems()
                .iter()
                .filter(|(name, _)| works_now(name))
                .map(|(_, reason)| format!("{reason}; the previous state stays in use"))
                .collect();
            if !broken.is_empty() {
                return Refreshed { changed: false, problems: broken };
            }
            problems.extend(runner.problems().clone());
            fresh.insert(nix.clone(), runner);
        }
        // Swap both under the lock, so that new runs use the new configuration.
        let mut runners = self.runners.lock().await;
        next.keep(&self.dirs);
        *self.current.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(next);
        *runners = fresh;
        drop(runners);
        self.compile_all();
        Refreshed { changed: true, problems: problems.into_values().collect() }
    }
}

impl Executor for Supervisor {
    fn settings(&self) -> config::Worker {
        self.current().config.worker.clone()
    }

    fn wanted(&self, event: &Event) -> Vec<NewTask> {
        let current = self.current();
        let wants = |entry: &&PluginEntry| {
            (event.plugins.is_empty() || event.plugins.contains(&entry.settings.name))
                && serves(&entry.settings, entry.hooks.as_deref(), event.kind())
                && admits(&entry.settings, event)
        };
        let mut reached = None;
        let wanted = |entry: &PluginEntry| NewTask {
            plugin: entry.settings.name.clone(),
            after: (entry.order == TaskOrder::DependenciesFirst)
                .then(|| reached.get_or_insert_with(|| reaches(event)).clone()),
        };
        current.plugins.values().filter(wants).map(wanted).collect()
    }

    fn wants(&self) -> String {
        let current = self.current();
        let mut digest = Sha256::new();
        for PluginEntry { settings, hooks, order: _ } in current.plugins.values() {
            let filter = &settings.filter;
            digest.update(format!("{:?}\n", (&settings.name, &settings.hooks, hooks, filter)));
        }
        format!("{:x}", digest.finalize())
    }

    fn retry(&self, plugin: &str) -> Retry {
        self.current()
            .plugins
            .get(plugin)
            .map(|entry| entry.settings.retry.clone())
            .unwrap_or_default()
    }

    fn concurrency(&self, plugin: &str) -> Option<usize> {
        self.current().plugins.get(plugin)?.settings.concurrency
    }

    fn run<'a>(
        &'a self,
        plugin: &'a str,
        event: &'a Event,
        attempt: u32,
    ) -> BoxFuture<'a, RunReport> {
        Box::pin(async move {
            let current = self.current();
            if !current.plugins.contains_key(plugin) {
                let hint = suggestion(plugin, current.plugins.keys().map(String::as_str));
                return RunReport::refused(format!(
                    "plugin `{plugin}` is no longer in the configuration; {hint}, or add [plugins.{plugin}] again"
                ));
            }
            let reads_store = current
                .plugins
                .get(plugin)
                .is_some_and(|entry| entry.settings.grant.nix_store != StoreScope::None);
            let event = &outputs::settled(event.clone());
            let missing = if reads_store { outputs::missing(event) } else { None };
            let report = match missing.as_ref().and_then(|missing| cannot_begin(event, missing)) {
                Some(report) => return report,
                None => self.run_in_runner(plugin, event, attempt).await,
            };
            match (missing, &report.outcome) {
                // The existing outputs were handled, but some outputs are missing.
                (Some(missing), Outcome::Done { .. }) if event.seen_valid => {
                    RunReport { outcome: lost(event, &missing), ..report }
                }
                _ => report,
            }
        })
    }

    fn transfers(&self) -> Vec<Transfer> {
        // While a runner is being started, no uploads are shown.
        let Ok(runners) = self.runners.try_lock() else { return Vec::new() };
        let alive = runners.values().filter(|runner| runner.is_alive());
        alive.flat_map(|runner| runner.transfers()).collect()
    }

    fn files(&self) -> Vec<PathBuf> {
        self.current().config.files()
    }

    fn refresh(&self) -> BoxFuture<'_, Refreshed> {
        Box::pin(self.look())
    }
}

/// Returns the report of a run that cannot begin, because no output of the event is valid.
fn cannot_begin(event: &Event, missing: &(usize, String)) -> Option<RunReport> {
    let count = event.output_paths().len();
    if missing.0 < count {
        return None;
    }
    if event.seen_valid {
        return Some(lost(event, missing).into());
    }
    let message = format!(
        "no output of {} is valid in the Nix store with the database below {}: it may not have been copied there yet, or the build used a store with another root that Nix did not report to the hook; set that store with the setting `store` of Nix 2.4 or later",
        event.drv_path(),
        event.nix.state.display(),
    );
    let outcome = Outcome::Failed { message, transient: true, retry_after_ms: None };
    Some(RunReport { cause: FailureCause::Event, ..outcome.into() })
}

fn lost(event: &Event, (count, first): &(usize, String)) -> Outcome {
    let more = match count.saturating_sub(1) {
        0 => String::new(),
        more => format!(" and {more} more outputs"),
    };
    Outcome::Lost {
        message: format!(
            "{first}{more} is not valid in the Nix store any longer; build {} again and run `hookrun queue retry {id}`, or remove the task with \
             `hookrun queue drop {id}`",
            event.drv_path(),
            id = event.id,
        ),
    }
}

/// Returns whether the queue runs the plugin. A gate runs inside the hook, where it can refuse a
/// build, so running it again would have no effect.
fn is_queued(settings: &Plugin) -> bool {
    let for_queue = settings.hooks.is_empty()
        || settings.hooks.iter().any(|hook| *hook != HookKind::BuilderSelection);
    for_queue && !settings.gate
}

/// Returns the plugins that get events of this hook from the queue.
pub fn queued<'a>(config: &'a Config, dirs: &Dirs, hook: HookKind) -> Vec<&'a Plugin> {
    let host = Host::new(dirs, Compiler::Contained(config.worker.user.clone()));
    let hooks_of = |settings: &Plugin| {
        host.open(settings, config).ok().map(|artifact| artifact.hooks().to_vec())
    };
    let takes = |settings: &&Plugin| {
        is_queued(settings) && serves(settings, hooks_of(settings).as_deref(), hook)
    };
    config.plugins.values().filter(takes).collect()
}

/// Returns whether the plugin serves this hook. A plugin that cannot be read may serve every hook
/// that the configuration does not exclude.
pub fn serves(settings: &Plugin, hooks: Option<&[HookKind]>, hook: HookKind) -> bool {
    (settings.hooks.is_empty() || settings.hooks.contains(&hook))
        && hooks.is_none_or(|hooks| hooks.contains(&hook))
}

/// Returns whether the event passes the plugin's filter.
pub fn admits(settings: &Plugin, event: &Event) -> bool {
    settings.filter.admits_name(event.name())
        && settings.filter.max_nar_size.is_none_or(|max| nar_size(event) <= max)
}

/// Returns the total size of all valid outputs in bytes; 0 if Nix's database cannot be read, so
/// that no event is lost.
fn nar_size(event: &Event) -> u64 {
    let HookEvent::PostBuild(build) = &event.hook else { return 0 };
    let paths: Vec<String> = build.outputs.iter().map(|output| output.path.clone()).collect();
    let infos = Database::open(&event.nix).and_then(|database| database.path_infos(&paths));
    infos.map_or(0, |infos| infos.into_iter().flatten().map(|info| info.nar_size).sum())
}

/// Returns the closure of the event's outputs; nothing if Nix's database cannot be read, so that no
/// event waits for ever.
fn reaches(event: &Event) -> Vec<String> {
    let outputs: Vec<String> = event.output_paths().into_iter().map(ToOwned::to_owned).collect();
    let closure = Database::open(&event.nix).and_then(|database| database.closure(&outputs));
    closure.into_iter().flatten().filter(|path| !outputs.contains(path)).collect()
}

/// The state of a file: size, time, device and inode number.
type WatchedFile = (PathBuf, Option<(u64, SystemTime, u64, u64)>);

/// Returns the state of all files that the configuration consists of or names.
fn stamps(config: &Config) -> Vec<WatchedFile> {
    config
        .files()
        .into_iter()
        .map(|path| (stamp(&path), path))
        .map(|(stamp, path)| (path, stamp))
        .collect()
}

fn stamp(path: &Path) -> Option<(u64, SystemTime, u64, u64)> {
    use std::os::unix::fs::MetadataExt as _;
    let found = std::fs::metadata(path).ok()?;
    Some((found.len(), found.modified().ok()?, found.dev(), found.ino()))
}
