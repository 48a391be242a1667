//! A runner as the supervisor sees it: its process, its pipes, and its runs.
//!
//! Its messages are limited and checked, because a guest may have taken it over. If a runner dies
//! with only one run, that run ended it. With several runs the cause is not known: the supervisor
//! repeats each of them alone, and only then counts the attempt.

use std::collections::{BTreeMap, HashMap};
use std::process::Stdio;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::io::BufReader;
use tokio::process::{Child, ChildStdin, ChildStdout, Command};
use tokio::sync::oneshot;

use super::frame;
use super::protocol::{COMMAND, FromRunner, RunnerSetup, ToRunner};
use hookrun_capability::Services;
use hookrun_config::Config;
use hookrun_nix::event::Event;
use hookrun_nix::outcome::Transfer;
use hookrun_nix::outcome::{FailureCause, Outcome, RunReport};
use hookrun_system::process::describe_start;

/// The maximum number of uploads of one runner that are shown.
const MAX_TRANSFERS: usize = 64;
/// The maximum length of a path or store name in them, in bytes (`PATH_MAX`).
const MAX_NAME: usize = 4096;

/// The reason why there is no runner.
pub(super) enum NoRunner {
    /// It cannot be started until the operator fixes something.
    Refused(String),
    /// It ended during its set-up; the next one may work.
    Died(String),
}

pub(super) struct Runner {
    input: tokio::sync::Mutex<ChildStdin>,
    next: AtomicU64,
    runs: Arc<Runs>,
    /// The plugins that it cannot use, each with the reason.
    problems: BTreeMap<String, String>,
    /// The uploads in progress, according to its last message.
    transfers: Mutex<Vec<Transfer>>,
}

/// A run that ended because the runner's process ended.
pub(super) struct Death {
    /// How the process ended.
    pub(super) how: String,
    /// Whether it was the only run in the process.
    pub(super) alone: bool,
}

/// The runs of one runner; none after it has ended.
type Runs = Mutex<Option<HashMap<u64, oneshot::Sender<Result<RunReport, Death>>>>>;

impl Runner {
    pub(super) async fn start(
        setup: &RunnerSetup,
        config: Config,
        services: Services,
    ) -> Result<Arc<Self>, NoRunner> {
        let died = |error: std::io::Error| NoRunner::Died(format!("it cannot be started: {error}"));
        let mut child = spawn().map_err(died)?;
        let gone = || died(std::io::Error::other("it has no pipes"));
        let mut input = child.stdin.take().ok_or_else(gone)?;
        let mut output =
            BufReader::with_capacity(frame::BUFFER, child.stdout.take().ok_or_else(gone)?);
        let answer = match frame::send(&mut input, setup).await {
            Ok(()) => frame::receive::<FromRunner>(&mut output).await,
            Err(error) => Err(error),
        };
        let problems = match answer {
            Ok(Some(FromRunner::Ready(raised, problems))) => {
                tracing::debug!(
                    identity = raised.identity,
                    missing = raised.missing.join("; "),
                    "a runner is ready"
                );
                problems
            }
            Ok(Some(FromRunner::Unwalled(reason))) => return Err(NoRunner::Refused(reason)),
            Ok(Some(_) | None) => return Err(NoRunner::Died(how(child.wait().await))),
            Err(error) => {
                // A process that has already exited keeps its exit status when it is killed.
                let _killed = child.start_kill();
                let how = how(child.wait().await);
                return Err(NoRunner::Died(format!("{how} during its set-up: {error}")));
            }
        };
        let runner = Arc::new(Self {
            input: tokio::sync::Mutex::new(input),
            next: AtomicU64::new(0),
            runs: Arc::new(Mutex::new(Some(HashMap::new()))),
            problems,
            transfers: Mutex::default(),
        });
        let (runs, weak) = (Arc::clone(&runner.runs), Arc::downgrade(&runner));
        tokio::spawn(async move {
            let reason = listen(&mut output, &runs, &weak, &config, &services).await;
            // Nothing can be read after a message that cannot be parsed.
            let _ended = child.start_kill();
            let ended = child.wait().await;
            let message = reason.unwrap_or_else(|| how(ended));
            end(&runs, &message);
        });
        Ok(runner)
    }

    /// Returns the plugins that it cannot use, each with the reason.
    pub(super) fn problems(&self) -> &BTreeMap<String, String> {
        &self.problems
    }

    /// Returns its uploads in progress.
    pub(super) fn transfers(&self) -> Vec<Transfer> {
        self.transfers.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Returns whether the process is running.
    pub(super) fn is_alive(&self) -> bool {
        self.runs.lock().unwrap_or_else(PoisonError::into_inner).is_some()
    }

    /// Runs a plugin on an event.
    pub(super) async fn run(
        self: &Arc<Self>,
        plugin: &str,
        event: &Event,
        attempt: u32,
    ) -> Result<RunReport, Death> {
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let (report, reported) = oneshot::channel();
        match self.runs.lock().unwrap_or_else(PoisonError::into_inner).as_mut() {
            Some(runs) => drop(runs.insert(id, report)),
            None => return Err(gone("it has ended")),
        }
        let order = ToRunner::Run {
            id,
            plugin: plugin.to_owned(),
            event: Box::new(event.clone()),
            attempt,
        };
        match frame::send(&mut *self.input.lock().await, &order).await {
            Ok(()) => {}
            Err(error) if frame::is_too_long(&error) => {
                self.forget(id);
                let message = format!(
                    "the event of {} is too large for a plugin ({error}); run `hookrun queue drop {}`",
                    event.drv_path(),
                    event.id
                );
                let outcome = Outcome::Failed { message, transient: false, retry_after_ms: None };
                return Ok(RunReport { cause: FailureCause::Event, ..outcome.into() });
            }
            Err(error) => return Err(gone(&error.to_string())),
        }
        reported.await.unwrap_or_else(|_| Err(gone("it has ended")))
    }

    fn forget(&self, id: u64) {
        if let Some(runs) = self.runs.lock().unwrap_or_else(PoisonError::into_inner).as_mut() {
            runs.remove(&id);
        }
    }
}

fn spawn() -> std::io::Result<Child> {
    let mut command = hookrun_system::process::this_program();
    command.arg(COMMAND).current_dir("/").stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut command = Command::from(command);
    command.kill_on_drop(true).spawn().map_err(|error| {
        std::io::Error::new(error.kind(), describe_start(command.as_std(), &error))
    })
}

/// Reads messages of a runner until it ends. Returns a reason if the supervisor has to end it.
async fn listen(
    output: &mut BufReader<ChildStdout>,
    runs: &Runs,
    runner: &std::sync::Weak<Runner>,
    config: &Config,
    services: &Services,
) -> Option<String> {
    loop {
        match frame::receive(output).await {
            Ok(Some(FromRunner::Ended { id, report })) => {
                let waiting = runs
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .as_mut()
                    .and_then(|runs| runs.remove(&id));
                if let Some(waiting) = waiting {
                    // A worker that stops does not wait for its runs.
                    let _told = waiting.send(Ok(*report));
                }
            }
            Ok(Some(FromRunner::Transfers(mut transfers))) => {
                let is_short = |text: &str| text.len() <= MAX_NAME;
                transfers.retain(|transfer| is_short(&transfer.path) && is_short(&transfer.store));
                transfers.truncate(MAX_TRANSFERS);
                if let Some(runner) = runner.upgrade() {
                    *runner.transfers.lock().unwrap_or_else(PoisonError::into_inner) = transfers;
                }
            }
            Ok(Some(FromRunner::Mail { id, mail })) => {
                let (services, runner) = (services.clone(), runner.clone());
                let plugin = config.plugins.get(&mail.plugin).cloned();
                tokio::spawn(async move {
                    let result = match plugin {
                        Some(plugin) => services.mail().send_for(&plugin, mail).await,
                        None => Err(hookrun_capability::CapabilityError::not_found(
                            "there is no such plugin",
                        )),
                    };
                    if let Some(runner) = runner.upgrade() {
                        // The reader of its messages notices a runner that has ended.
                        let _told = frame::send(
                            &mut *runner.input.lock().await,
                            &ToRunner::Mailed { id, result },
                        )
                        .await;
                    }
                });
            }
            Ok(Some(
                FromRunner::Ready(..) | FromRunner::Unwalled(_) | FromRunner::Selected { .. },
            )) => {
                return Some("it sent a message that is not allowed".to_owned());
            }
            Ok(None) => return None,
            Err(error) => return Some(format!("its message cannot be parsed: {error}")),
        }
    }
}

/// Ends all runs of a runner that has ended, so that none waits for ever.
fn end(runs: &Runs, message: &str) {
    let waiting = runs.lock().unwrap_or_else(PoisonError::into_inner).take().unwrap_or_default();
    let alone = waiting.len() == 1;
    for waiting in waiting.into_values() {
        let _told = waiting.send(Err(Death { how: message.to_owned(), alone }));
    }
}

/// Returns the result for a run that did not begin because the process ended.
fn gone(how: &str) -> Death {
    Death { how: how.to_owned(), alone: false }
}

/// Describes the end of a process: its exit code or signal.
pub(super) fn how(ended: std::io::Result<std::process::ExitStatus>) -> String {
    ended.map_or_else(|error| error.to_string(), |status| format!("it ended with {status}"))
}

impl Death {
    /// Returns the report of the run. If it was the only one, it ended the process, which counts as
    /// a trap of the plugin. Otherwise the attempt is not counted.
    pub(super) fn report(self) -> RunReport {
        let Self { how, alone } = self;
        if alone {
            let message = format!(
                "the process that runs plugins died in this run ({how}); lower `memory` under [plugins.NAME.limits], or read the kernel's log"
            );
            return Outcome::Trapped { message }.into();
        }
        let message = format!(
            "the process that runs plugins died ({how}) while it ran this task and others; each of them runs again alone"
        );
        let outcome = Outcome::Failed { message, transient: true, retry_after_ms: None };
        RunReport { cause: FailureCause::Neighbour, ..outcome.into() }
    }
}

/// Returns the report of a run without a process. The next attempt may have one.
pub(super) fn no_process(how: &str) -> RunReport {
    let message = format!(
        "the process that runs plugins cannot be used ({how}); the task is tried again; read the log of the worker and of the kernel"
    );
    let outcome = Outcome::Failed { message, transient: true, retry_after_ms: None };
    RunReport { cause: FailureCause::Event, ..outcome.into() }
}
