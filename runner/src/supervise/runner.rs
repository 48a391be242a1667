//! The runner: a process that reads what its plugins need, drops all privileges that they do not
//! need, and runs guests until its supervisor closes the pipe. [`super::supervisor`] and
//! [`super::policy`] start it as a hidden command. It knows nothing about the queue.
//!
//! It does the following in this order, with a single thread until the sandbox is active: it reads
//! the set-up from the pipe, reads the plugins (and has a contained child compile them), reads the
//! secrets, creates directories, and enters the sandbox. After that it maps native code and starts
//! threads.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::OwnedFd;
use std::panic::AssertUnwindSafe;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use futures_util::future::FutureExt as _;
use tokio::io::BufReader;
use tokio::net::unix::pipe;
use tokio::sync::mpsc::UnboundedReceiver;
use tokio::sync::oneshot;

use super::needs;
use super::protocol::{FromRunner, Purpose, RunnerSetup, ToRunner};
use super::{frame, protocol};
use hookrun_builders::PolicyError;
use hookrun_capability::grants::Effective;
use hookrun_capability::mail::Delegated;
use hookrun_capability::state::Pairs;
use hookrun_capability::{CapabilityError, Services};
use hookrun_config::{Config, KeyError, Limit};
use hookrun_host::wall::{Identity, Raised, Wall};
use hookrun_host::{Compiler, Host, LinkedPlugin, PluginError, ReadyPlugin};
use hookrun_nix::dirs::Dirs;
use hookrun_nix::exit_code::Exit;
use hookrun_nix::outcome::{Outcome, RunReport};
use hookrun_queue::spawn;
use hookrun_queue::worker::defect;

/// The interval at which the supervisor is told about uploads in progress.
const TRANSFERS: Duration = Duration::from_secs(1);

/// A plugin at a stage, or the reason why it cannot be used, with the fix.
type OrReason<T> = Result<T, String>;

/// Plugins with open code and with secrets, before the sandbox.
pub struct Readied {
    plugins: BTreeMap<String, OrReason<ReadyPlugin>>,
    /// The plugins that are not compiled, if this host does not compile.
    uncompiled: Vec<String>,
    services: Services,
    config: Config,
    /// Whether it uses its services. A policy does not, whatever its grants are.
    used: bool,
}

/// Plugins that can run.
pub struct RunnerPlugins {
    plugins: BTreeMap<String, OrReason<LinkedPlugin>>,
    /// The plugins that are still to be compiled.
    uncompiled: Vec<String>,
    services: Services,
}

impl Readied {
    /// Reads the plugins called `names`, and their secrets if `secrets` is set.
    pub fn new(
        config: Config,
        services: Services,
        host: &Host,
        names: &[String],
        secrets: bool,
    ) -> Self {
        let mut uncompiled = Vec::new();
        let plugins = names
            .iter()
            .map(|name| {
                let settings =
                    config.plugins.get(name).ok_or_else(|| format!("there is no [plugins.{name}]"));
                let ready = settings.and_then(|settings| {
                    host.prepare(settings, &config).map_err(|error| {
                        if matches!(error, PluginError::NotCompiled(_)) {
                            uncompiled.push(name.clone());
                        }
                        error.to_string()
                    })
                });
                let held = ready.and_then(|ready| {
                    if secrets {
                        // The operator has to fix this, so the task is kept and does not run out of
                        // attempts.
                        services.hold_secrets(name, ready.artifact().effective()).map_err(
                            |KeyError { keys, message }| {
                                let keys: Vec<&str> = keys.iter().map(String::as_str).collect();
                                config.error(&keys, message).to_string()
                            },
                        )?;
                    }
                    Ok(ready)
                });
                (name.clone(), held)
            })
            .collect();
        Self { plugins, uncompiled, services, config, used: secrets }
    }

    /// Starts a process that compiles the remaining plugins, for the next hook. Must be called
    /// before the sandbox is entered.
    pub fn compile_for_next_hook(&self, dirs: &Dirs) {
        if !self.uncompiled.is_empty() {
            let arguments: Vec<&str> =
                ["compile"].into_iter().chain(self.uncompiled.iter().map(String::as_str)).collect();
            // If this fails, the next hook tries again, and `hookrun check` reports the error.
            let _started = spawn::detached(dirs, &arguments);
        }
    }

    /// Returns the effective capabilities of the usable plugins.
    pub fn effective(&self) -> Vec<&Effective> {
        self.plugins.values().flatten().map(|ready| ready.artifact().effective()).collect()
    }

    /// Returns the services of the plugins.
    pub fn services(&self) -> &Services {
        &self.services
    }

    /// Maps and links the plugins. Must be called inside the sandbox.
    pub fn link(self) -> RunnerPlugins {
        let Self { plugins, uncompiled, services, config, used } = self;
        let link = |ready: ReadyPlugin| ready.link(&config).map_err(|error| error.to_string());
        let plugins = plugins
            .into_iter()
            .map(|(name, ready)| {
                let linked = ready.and_then(link).and_then(|linked| {
                    if used {
                        writable(&services, linked.effective())?;
                    }
                    Ok(linked)
                });
                (name, linked)
            })
            .collect();
        RunnerPlugins { plugins, uncompiled, services }
    }
}

/// Checks that this process can write to the directories of the plugin's services. Called inside
/// the sandbox, so as the user of the guests.
fn writable(services: &Services, effective: &Effective) -> Result<(), String> {
    let stores = effective
        .object_store
        .iter()
        .map(|name| ("object store", name, services.object_stores().needs_of(name)));
    let mails =
        effective.mail.iter().map(|name| ("mail transport", name, services.mail().needs_of(name)));
    let unwritable =
        stores.chain(mails).find_map(|(what, name, reach)| needs::unwritable(what, name, &reach));
    unwritable.map_or(Ok(()), Err)
}

impl RunnerPlugins {
    /// Returns the plugin called `name`.
    ///
    /// # Errors
    /// The reason why it cannot be used.
    pub fn get(&self, name: &str) -> Result<&LinkedPlugin, String> {
        match self.plugins.get(name) {
            Some(Ok(linked)) => Ok(linked),
            Some(Err(reason)) => Err(reason.clone()),
            None => Err(format!(
                "plugin `{name}` is not loaded in this process; this is a defect of hookrun, please report it"
            )),
        }
    }

    /// Returns the plugins that cannot be used, each with the reason.
    pub fn problems(&self) -> BTreeMap<String, String> {
        let problem = |(name, plugin): (&String, &OrReason<LinkedPlugin>)| {
            Some((name.clone(), plugin.as_ref().err()?.clone()))
        };
        self.plugins.iter().filter_map(problem).collect()
    }

    /// Returns the services of the plugins.
    pub fn services(&self) -> &Services {
        &self.services
    }

    /// Runs a plugin on an event.
    pub async fn run(
        &self,
        name: &str,
        event: &hookrun_nix::event::Event,
        attempt: u32,
    ) -> RunReport {
        match self.get(name) {
            Ok(linked) => linked.run_event(&self.services, event, attempt).await,
            Err(reason) => RunReport::refused(reason),
        }
    }
}

/// Runs the runner process. Standard input and output are the pipes.
pub fn main() -> Exit {
    hookrun_system::signals::unblock();
    match life() {
        Ok(()) => Exit::Done,
        Err(error) => {
            // The message goes to the worker's log.
            hookrun_nix::terminal::say(&format!("the process that runs plugins ends: {error}"));
            Exit::Internal
        }
    }
}

fn life() -> io::Result<()> {
    let (mut input, mut output) = (io::stdin().lock(), io::stdout().lock());
    let Some(setup) = frame::read::<RunnerSetup>(&mut input)? else { return Ok(()) };
    let (running, raised) = match behind_wall(&setup) {
        Ok(behind) => behind,
        Err(reason) => return frame::write(&mut output, &FromRunner::Unwalled(reason)),
    };
    frame::write(&mut output, &FromRunner::Ready(raised, running.problems()))?;
    drop((input, output));
    match setup.purpose {
        Purpose::Queue => {
            let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
            // Messages are read on a thread of the runtime, so that a run starts on the thread that
            // read its order, and no other thread has to be woken.
            runtime.block_on(async {
                tokio::spawn(serve(Arc::new(running))).await.map_err(io::Error::other)?
            })
        }
        Purpose::Policy => {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            runtime.block_on(answer(&running, &setup))
        }
    }
}

/// Prepares everything before the sandbox, enters it, and links the plugins.
fn behind_wall(setup: &RunnerSetup) -> Result<(RunnerPlugins, Raised), String> {
    let mut config = setup.config().map_err(|error| error.to_string())?;
    // The secrets of other plugins are not read here.
    config.plugins.retain(|name, _| setup.plugins.contains(name));
    let required = config.worker.require_sandbox;
    let identity = needs::identity(&config)?;
    let user = config.worker.user.clone();
    let compiler = match setup.patience {
        Some(patience) => Compiler::Within(user, Instant::now() + patience),
        None => Compiler::Contained(user),
    };
    let services = match setup.purpose {
        Purpose::Queue => Services::new(&config, &setup.dirs),
        Purpose::Policy => Services::for_policy(&config, &setup.dirs),
    };
    let host = match setup.purpose {
        Purpose::Queue => Host::new(&setup.dirs, compiler).with_pool(config.worker.concurrency),
        Purpose::Policy => Host::new(&setup.dirs, compiler),
    };
    let readied =
        Readied::new(config, services, &host, &setup.plugins, setup.purpose == Purpose::Queue);
    readied.compile_for_next_hook(&setup.dirs);
    let wall = match setup.purpose {
        Purpose::Queue => queue_wall(&readied, setup, identity)?,
        Purpose::Policy => Wall::closed(identity).reading(setup.dirs.artifacts()),
    };
    let raised = Wall { required, ..wall }.raise().map_err(|error| error.to_string())?;
    Ok((readied.link(), raised))
}

fn queue_wall(readied: &Readied, setup: &RunnerSetup, identity: Identity) -> Result<Wall, String> {
    let variable = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty());
    let wall = needs::wall(
        &readied.effective(),
        readied.services(),
        &setup.dirs,
        &setup.nix,
        identity,
        variable,
    );
    needs::make_directories(&wall, &setup.dirs)?;
    Ok(wall)
}

type Output = Arc<tokio::sync::Mutex<pipe::Sender>>;

fn pipes() -> io::Result<(BufReader<pipe::Receiver>, Output)> {
    let own = |fd: std::os::fd::BorrowedFd<'_>| fd.try_clone_to_owned();
    let (input, output): (OwnedFd, OwnedFd) = (
        own(std::os::fd::AsFd::as_fd(&io::stdin()))?,
        own(std::os::fd::AsFd::as_fd(&io::stdout()))?,
    );
    let output = pipe::Sender::from_owned_fd(output)?;
    Ok((
        BufReader::with_capacity(frame::BUFFER, pipe::Receiver::from_owned_fd(input)?),
        Arc::new(tokio::sync::Mutex::new(output)),
    ))
}

/// Runs what the supervisor orders until it closes the pipe. All runs are concurrent; the
/// supervisor limits their number.
async fn serve(running: Arc<RunnerPlugins>) -> io::Result<()> {
    let (mut input, output) = pipes()?;
    let mails: Mails = Arc::default();
    let delegated = running.services().mail().delegate();
    tokio::spawn(forward_mail(delegated, Arc::clone(&mails), Arc::clone(&output)));
    tokio::spawn(report_transfers(Arc::clone(&running), Arc::clone(&output)));
    while let Some(order) = frame::receive(&mut input).await? {
        match order {
            ToRunner::Run { id, plugin, event, attempt } => {
                let (running, output) = (Arc::clone(&running), Arc::clone(&output));
                tokio::spawn(async move {
                    // A panic is a defect of hookrun. It ends only this run, and its task gets a
                    // report.
                    let run = AssertUnwindSafe(running.run(&plugin, &event, attempt));
                    let report = run.catch_unwind().await.unwrap_or_else(|_| defect());
                    // Without a supervisor the loop above ends.
                    let _told = tell(&output, id, report).await;
                });
            }
            ToRunner::Mailed { id, result } => {
                let answer = mails.lock().unwrap_or_else(PoisonError::into_inner).remove(&id);
                if let Some(answer) = answer {
                    // The run may have ended meanwhile.
                    let _told = answer.send(result);
                }
            }
            ToRunner::Select { .. } => {
                return Err(io::Error::other("an order for a policy, a defect of hookrun"));
            }
        }
    }
    // Runs that are still active have no supervisor to report to.
    std::process::exit(0)
}

/// Tells the supervisor about uploads in progress when they change.
async fn report_transfers(running: Arc<RunnerPlugins>, output: Output) {
    let mut reported = Vec::new();
    loop {
        tokio::time::sleep(TRANSFERS).await;
        let transfers = running.services().object_stores().transfers();
        if transfers != reported {
            reported.clone_from(&transfers);
            let word = FromRunner::Transfers(transfers);
            // Without a supervisor there is nothing left to report.
            if frame::send(&mut *output.lock().await, &word).await.is_err() {
                return;
            }
        }
    }
}

/// Reports how a run ended. If the report is too long for the pipe, it is replaced by one without a
/// log and with another outcome.
async fn tell(output: &Output, id: u64, report: RunReport) -> io::Result<()> {
    let mut output = output.lock().await;
    let mut word = FromRunner::Ended { id, report: Box::new(report) };
    match frame::send(&mut *output, &word).await {
        Err(error) if frame::is_too_long(&error) => {
            if let FromRunner::Ended { report, .. } = &mut word {
                report.log.clear();
                report.usage.calls.clear();
                report.usage.denied.clear();
                report.outcome = Outcome::LimitReached {
                    limit: Limit::OutputBytes.key().to_owned(),
                    message: format!(
                        "the result and the log of the run are too long to store ({error}); lower `output-bytes` and `log-bytes` under [plugins.NAME.limits], or make the plugin return less"
                    ),
                };
            }
            frame::send(&mut *output, &word).await
        }
        sent => sent,
    }
}

/// Where the answers about messages for programs go, by number.
type Mails = Arc<Mutex<BTreeMap<u64, oneshot::Sender<Result<(), CapabilityError>>>>>;

/// Sends messages for programs to the supervisor: this process may not start any.
async fn forward_mail(mut delegated: UnboundedReceiver<Delegated>, mails: Mails, output: Output) {
    let mut id = 0;
    while let Some((mail, answer)) = delegated.recv().await {
        id += 1;
        mails.lock().unwrap_or_else(PoisonError::into_inner).insert(id, answer);
        let sent = frame::send(&mut *output.lock().await, &FromRunner::Mail { id, mail }).await;
        let Err(error) = sent else { continue };
        // Without an answer the run learns that the supervisor is gone.
        let answer = mails.lock().unwrap_or_else(PoisonError::into_inner).remove(&id);
        if let Some(answer) = answer.filter(|_| frame::is_too_long(&error)) {
            let message = format!("the message is too long ({error})");
            let _told = answer.send(Err(CapabilityError::limit(message)));
        }
    }
}

/// Answers the questions of the session one after the other.
async fn answer(running: &RunnerPlugins, setup: &RunnerSetup) -> io::Result<()> {
    let (mut input, output) = pipes()?;
    let name = setup.plugins.first().map(String::as_str).unwrap_or_default();
    while let Some(order) = frame::receive(&mut input).await? {
        let ToRunner::Select { candidate, machines, local, state } = order else {
            return Err(io::Error::other("an order that is not for a policy, a defect of hookrun"));
        };
        let word = select(running, name, &candidate, &machines, &local, state).await;
        frame::send(&mut *output.lock().await, &word).await?;
    }
    Ok(())
}

async fn select(
    running: &RunnerPlugins,
    name: &str,
    candidate: &hookrun_builders::Candidate,
    machines: &[hookrun_builders::Machine],
    local: &hookrun_builders::LocalMachine,
    state: Pairs,
) -> protocol::FromRunner {
    let stores = running.services().state();
    stores.fill(name, state);
    let decision = match running.get(name) {
        Ok(linked) => linked.select(running.services(), candidate, machines, local).await.0,
        Err(reason) if running.uncompiled.iter().any(|uncompiled| uncompiled == name) => {
            Err(PolicyError::NotReady(reason))
        }
        Err(reason) => Err(PolicyError::Unavailable(reason)),
    };
    // A store in memory can always be read.
    FromRunner::Selected { decision, state: stores.load(name).unwrap_or_default() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_report_that_is_too_long_for_the_pipe_still_ends_its_run() {
        let (sender, mut receiver) = pipe::pipe().unwrap();
        let output: Output = Arc::new(tokio::sync::Mutex::new(sender));
        // Each of these characters takes six bytes in JSON.
        let message = "\u{1}".repeat(12 << 20);
        let report = RunReport::from(Outcome::Done { message, details: Vec::new() });
        tell(&output, 7, report).await.unwrap();
        let word = frame::receive::<FromRunner>(&mut receiver).await.unwrap();
        let Some(FromRunner::Ended { id: 7, report }) = word else { panic!("{word:?}") };
        assert_eq!(report.outcome.class().as_str(), "limit");
        assert!(report.outcome.message().contains("lower `output-bytes`"));
    }
}
