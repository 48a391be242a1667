//! The queue's [`Executor`]: hands tasks to runners and takes the outcomes back.
//!
//! There is one runner for each Nix whose events come, because its wall lets the files of one store through. A runner that dies costs its
//! running tasks one attempt each; the next task starts another. A runner whose secrets have changed on disk ends when its
//! runs have, and another one reads the new ones. What a runner says is bounded and checked: it may have been taken over.

use std::collections::{BTreeMap, HashMap};
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::Stdio;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use futures_util::future::BoxFuture;
use tokio::process::{Child, ChildStdin, ChildStdout, Command};
use tokio::sync::oneshot;

use super::frame;
use super::protocol::{COMMAND, Order, Purpose, Setup, Word};
use crate::capability::Services;
use crate::config::{Config, Plugin, Retry, suggestion};
use crate::dirs::Dirs;
use crate::event::{Event, HookEvent, HookKind, NixDirs};
use crate::nix::database::Database;
use crate::outcome::{Outcome, RunReport, Usage};
use crate::plugin::Artifact;
use crate::queue::worker::Executor;

/// Runners that are kept: a machine has one Nix, and a test a few.
const MAX_RUNNERS: usize = 4;

/// The plugins of one configuration, in processes of their own.
pub struct Supervisor {
    config: Config,
    dirs: Dirs,
    plugins: BTreeMap<String, Entry>,
    /// Starts programs for runners.
    services: Services,
    runners: tokio::sync::Mutex<BTreeMap<NixDirs, Arc<Runner>>>,
}

struct Entry {
    settings: Plugin,
    /// The hooks it serves; none: it cannot be read, and may serve any.
    hooks: Option<Vec<HookKind>>,
}

impl Supervisor {
    /// Reads what every plugin says about itself. Starts nothing.
    pub fn new(config: Config, dirs: &Dirs) -> Self {
        let mut plugins = BTreeMap::new();
        for (name, settings) in &config.plugins {
            // A gate has run inside the hook, where it can refuse; running it again could change nothing.
            let queued = settings.hooks.is_empty() || settings.hooks.iter().any(|hook| *hook != HookKind::BuilderSelection);
            if settings.gate || !queued {
                continue;
            }
            let hooks = Artifact::open(settings, &config).ok().map(|artifact| artifact.hooks().to_vec());
            plugins.insert(name.clone(), Entry { settings: settings.clone(), hooks });
        }
        let services = Services::new(&config, dirs);
        Self { config, dirs: dirs.clone(), plugins, services, runners: tokio::sync::Mutex::default() }
    }

    /// The runner for events of `nix`, started if there is none.
    async fn runner(&self, nix: &NixDirs) -> Result<Arc<Runner>, NoRunner> {
        let mut runners = self.runners.lock().await;
        if let Some(runner) = runners.get(nix)
            && runner.is_alive()
            && runner.secrets == stamps(&self.config)
        {
            return Ok(Arc::clone(runner));
        }
        runners.remove(nix);
        if runners.len() >= MAX_RUNNERS {
            // It ends with its last run.
            runners.pop_first();
        }
        let names = self.plugins.keys().cloned().collect();
        let setup = Setup::new(&self.config, &self.dirs, nix.clone(), names, Purpose::Queue);
        let runner = Runner::start(&setup, stamps(&self.config), self.config.clone(), self.services.clone()).await?;
        runners.insert(nix.clone(), Arc::clone(&runner));
        Ok(runner)
    }
}

impl Executor for Supervisor {
    fn wanted(&self, event: &Event) -> Vec<String> {
        let wants =
            |entry: &&Entry| serves(&entry.settings, entry.hooks.as_deref(), event.kind()) && admits(&entry.settings, event);
        self.plugins.values().filter(wants).map(|entry| entry.settings.name.clone()).collect()
    }

    fn retry(&self, plugin: &str) -> Retry {
        self.plugins.get(plugin).map(|entry| entry.settings.retry.clone()).unwrap_or_default()
    }

    fn run<'a>(&'a self, plugin: &'a str, event: &'a Event, attempt: u32) -> BoxFuture<'a, RunReport> {
        Box::pin(async move {
            if !self.plugins.contains_key(plugin) {
                let hint = suggestion(plugin, self.plugins.keys().map(String::as_str));
                return RunReport::refused(format!(
                    "plugin `{plugin}` is no longer in the configuration; {hint}, or add [plugins.{plugin}] again"
                ));
            }
            match self.runner(&event.nix).await {
                Ok(runner) => runner.run(plugin, event, attempt).await,
                Err(NoRunner::Refused(reason)) => RunReport::refused(reason),
                Err(NoRunner::Died(how)) => died(&how),
            }
        })
    }
}

/// Does the plugin serve this hook? One that cannot be read may have any that the configuration does not exclude.
pub fn serves(settings: &Plugin, hooks: Option<&[HookKind]>, hook: HookKind) -> bool {
    (settings.hooks.is_empty() || settings.hooks.contains(&hook)) && hooks.is_none_or(|hooks| hooks.contains(&hook))
}

/// Does the event pass the plugin's filter?
pub fn admits(settings: &Plugin, event: &Event) -> bool {
    settings.filter.admits_name(event.name()) && settings.filter.max_nar_size.is_none_or(|max| nar_size(event) <= max)
}

/// The size of all valid outputs together, in bytes; 0 if Nix's database does not tell, so that no event is lost for it.
fn nar_size(event: &Event) -> u64 {
    let HookEvent::PostBuild(build) = &event.hook else { return 0 };
    let paths: Vec<String> = build.outputs.iter().map(|output| output.path.clone()).collect();
    let infos = Database::open(&event.nix).and_then(|database| database.path_infos(&paths));
    infos.map_or(0, |infos| infos.into_iter().flatten().map(|info| info.nar_size).sum())
}

/// A file with a secret, as it was when it was read.
type Stamp = (PathBuf, Option<(u64, SystemTime)>);

/// All files with secrets that the configuration names.
fn stamps(config: &Config) -> Vec<Stamp> {
    let keys = config.signing_keys.values().map(|key| Some(&key.file));
    let stores = config.object_stores.values().flat_map(|store| {
        let from = &store.credentials;
        [&from.access_key_id_file, &from.secret_access_key_file, &from.session_token_file].map(Option::as_ref)
    });
    let mails = config.mail.values().flat_map(|mail| [mail.password_file.as_ref(), mail.ca_file.as_ref()]);
    let stamp = |path: &PathBuf| {
        let found = std::fs::metadata(path).ok();
        found.and_then(|found| Some((found.len(), found.modified().ok()?)))
    };
    keys.chain(stores).chain(mails).flatten().map(|path| (path.clone(), stamp(path))).collect()
}

/// Why there is no runner.
enum NoRunner {
    /// It cannot be had until somebody mends something.
    Refused(String),
    /// It did not get as far; the next one may.
    Died(String),
}

/// One runner.
struct Runner {
    input: tokio::sync::Mutex<ChildStdin>,
    next: AtomicU64,
    runs: Arc<Runs>,
    secrets: Vec<Stamp>,
}

/// The runs of one runner; none once it is gone.
type Runs = Mutex<Option<HashMap<u64, oneshot::Sender<RunReport>>>>;

impl Runner {
    async fn start(setup: &Setup, secrets: Vec<Stamp>, config: Config, services: Services) -> Result<Arc<Self>, NoRunner> {
        let died = |error: std::io::Error| NoRunner::Died(format!("it cannot be started: {error}"));
        let mut child = spawn().map_err(died)?;
        let gone = || died(std::io::Error::other("its pipes are gone"));
        let mut input = child.stdin.take().ok_or_else(gone)?;
        let mut output = child.stdout.take().ok_or_else(gone)?;
        frame::send(&mut input, setup).await.map_err(died)?;
        match frame::receive::<Word>(&mut output).await.map_err(died)? {
            Some(Word::Ready(raised)) => {
                tracing::debug!(identity = raised.identity, missing = raised.missing.join("; "), "a runner is ready");
            }
            Some(Word::Unwalled(reason)) => return Err(NoRunner::Refused(reason)),
            Some(_) | None => return Err(NoRunner::Died(how(child.wait().await))),
        }
        let runner = Arc::new(Self {
            input: tokio::sync::Mutex::new(input),
            next: AtomicU64::new(0),
            runs: Arc::new(Mutex::new(Some(HashMap::new()))),
            secrets,
        });
        let (runs, weak) = (Arc::clone(&runner.runs), Arc::downgrade(&runner));
        tokio::spawn(async move {
            let reason = listen(&mut output, &runs, &weak, &config, &services).await;
            // What cannot be understood is not listened to any more.
            let _ended = child.start_kill();
            let ended = child.wait().await;
            let message = reason.unwrap_or_else(|| how(ended));
            end(&runs, &message);
        });
        Ok(runner)
    }

    fn is_alive(&self) -> bool {
        self.runs.lock().unwrap_or_else(PoisonError::into_inner).is_some()
    }

    async fn run(self: &Arc<Self>, plugin: &str, event: &Event, attempt: u32) -> RunReport {
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let (report, reported) = oneshot::channel();
        match self.runs.lock().unwrap_or_else(PoisonError::into_inner).as_mut() {
            Some(runs) => drop(runs.insert(id, report)),
            None => return died("it is gone"),
        }
        let order = Order::Run { id, plugin: plugin.to_owned(), event: Box::new(event.clone()), attempt };
        if let Err(error) = frame::send(&mut *self.input.lock().await, &order).await {
            return died(&error.to_string());
        }
        reported.await.unwrap_or_else(|_| died("it is gone"))
    }
}

fn spawn() -> std::io::Result<Child> {
    let mut command = std::process::Command::new("/proc/self/exe");
    command.arg0("hookrun").arg(COMMAND).current_dir("/");
    Command::from(command).stdin(Stdio::piped()).stdout(Stdio::piped()).kill_on_drop(true).spawn()
}

/// Hears a runner out until it ends; gives a reason if it is the supervisor that ends it.
async fn listen(
    output: &mut ChildStdout,
    runs: &Runs,
    runner: &std::sync::Weak<Runner>,
    config: &Config,
    services: &Services,
) -> Option<String> {
    loop {
        match frame::receive(output).await {
            Ok(Some(Word::Ended { id, report })) => {
                let waiting = runs.lock().unwrap_or_else(PoisonError::into_inner).as_mut().and_then(|runs| runs.remove(&id));
                if let Some(waiting) = waiting {
                    // A worker that stops does not wait for its runs.
                    let _told = waiting.send(*report);
                }
            }
            Ok(Some(Word::Mail { id, message })) => {
                let (services, runner) = (services.clone(), runner.clone());
                let plugin = config.plugins.get(&message.plugin).cloned();
                tokio::spawn(async move {
                    let result = match plugin {
                        Some(plugin) => services.mail().send_for(&plugin, &message).await,
                        None => Err(crate::capability::CapabilityError::not_found("there is no such plugin")),
                    };
                    if let Some(runner) = runner.upgrade() {
                        // A runner that is gone is noticed by who listens to it.
                        let _told = frame::send(&mut *runner.input.lock().await, &Order::Mailed { id, result }).await;
                    }
                });
            }
            Ok(Some(Word::Ready(_) | Word::Unwalled(_) | Word::Selected { .. })) => {
                return Some("it said what it should not".to_owned());
            }
            Ok(None) => return None,
            Err(error) => return Some(format!("it cannot be understood: {error}")),
        }
    }
}

/// Nobody waits for ever: every run of a runner that is gone has its report.
fn end(runs: &Runs, message: &str) {
    let waiting = runs.lock().unwrap_or_else(PoisonError::into_inner).take();
    for waiting in waiting.into_iter().flat_map(HashMap::into_values) {
        let _told = waiting.send(died(message));
    }
}

fn how(ended: std::io::Result<std::process::ExitStatus>) -> String {
    ended.map_or_else(|error| error.to_string(), |status| format!("it ended with {status}"))
}

/// One attempt is lost; the next one has another process.
fn died(how: &str) -> RunReport {
    let message = format!(
        "the process that runs plugins died in this run ({how}); it is tried again; if it happens each time, lower `memory` under \
         [plugins.NAME.limits] or look into the kernel's log"
    );
    let outcome = Outcome::Failed { message, transient: true, retry_after_ms: None };
    RunReport { outcome, usage: Usage::default(), log: Vec::new() }
}
