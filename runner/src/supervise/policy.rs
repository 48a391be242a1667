//! Runs a plugin as the policy of builder selection, in its own process without access to files and
//! network. The session, which may be root and starts Nix's own hook, maps no guest code.
//!
//! The other process cannot open the plugin's state, so the state is sent with the question and
//! returned with the answer.

use std::io::BufReader;
use std::process::{Child, ChildStdin, ChildStdout, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::frame;
use super::process::how;
use super::protocol::{COMMAND, FromRunner, Purpose, Question, RunnerSetup};
use hookrun_builders::{Candidate, Decision, LocalMachine, Machine, Policy, PolicyError};
use hookrun_capability::state::{Pairs, Stores};
use hookrun_config::{Config, Limit, Plugin};
use hookrun_host::{Compiler, Host, Known, PluginError};
use hookrun_nix::dirs::Dirs;
use hookrun_nix::event::{HookKind, NixDirs};
use hookrun_queue::spawn;
use hookrun_system::child::Preparation;
use hookrun_system::process;

/// The time to find and compile the policy while Nix is blocked. It is shorter than the deadline of
/// the policy, so that there is time to start and to ask it. Both steps are needed once for each
/// plugin; the bundled policy takes a third of this time on a busy machine.
const PREPARE_TIME: Duration = Duration::from_millis(1500);

/// Returns whether a plugin of `config` may be a policy. A plugin without a configured list of
/// hooks may be one; [`chooser`] finds out which hooks it serves.
pub fn may_choose(config: &Config) -> bool {
    config.plugins.values().any(may_serve)
}

fn may_serve(plugin: &Plugin) -> bool {
    plugin.hooks.is_empty() || plugin.hooks.contains(&HookKind::BuilderSelection)
}

/// Returns the policy: the first plugin by name that serves the hook. If the configuration does not
/// list its hooks, a stored verdict is used, or the plugin is examined. A plugin that cannot be
/// read is skipped; `hookrun check` reports it.
///
/// # Errors
/// There is no policy, or it is not known in time.
fn chooser<'a>(config: &'a Config, host: &Host) -> Result<&'a Plugin, PolicyError> {
    let serves = |exports: &[HookKind]| exports.contains(&HookKind::BuilderSelection);
    let mut unknown = None;
    for plugin in config.plugins.values().filter(|plugin| may_serve(plugin)) {
        if !plugin.hooks.is_empty() {
            return Ok(plugin);
        }
        let is_policy = match host.known(plugin) {
            Known::Exports(exports) => serves(&exports),
            Known::Refused => false,
            Known::Nothing => match host.open(plugin, config) {
                Ok(artifact) => serves(artifact.hooks()),
                Err(PluginError::NotCompiled(why)) => {
                    unknown.get_or_insert((plugin, why));
                    false
                }
                Err(_) => false,
            },
        };
        if is_policy {
            return Ok(plugin);
        }
    }
    let Some((plugin, why)) = unknown else { return Err(PolicyError::NoPolicy) };
    // If this fails, the next hook tries again, and `hookrun check` reports the error.
    let _started = spawn::detached(&Dirs::from_env(), &["compile", plugin.name.as_str()]);
    Err(PolicyError::NotReady(why.to_string()))
}

/// A policy in its own process. It is created and used on the policy's own thread, so the session
/// never waits longer than the policy's deadline.
pub struct PluginPolicy {
    name: String,
    /// The store of the plugin's state, if it has one, and its size limit in bytes.
    state: Option<(Stores, u64)>,
    process: Mutex<Process>,
}

struct Process {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

impl Drop for Process {
    fn drop(&mut self) {
        // The process may hang, so it is killed.
        let _ended = self.child.kill().and_then(|()| self.child.wait());
    }
}

impl PluginPolicy {
    /// Starts a process for the policy of `config`.
    ///
    /// # Errors
    /// There is no policy, or it does not load; the text ends with the fix.
    pub fn load(config: &Config) -> Result<Box<dyn Policy>, PolicyError> {
        let dirs = Dirs::from_env();
        let until = Instant::now() + PREPARE_TIME;
        let compiler = Compiler::Within(config.worker.user.clone(), until);
        let plugin = chooser(config, &Host::new(&dirs, compiler))?;
        let (name, allowed) = (plugin.name.clone(), plugin.limits.get(Limit::StateBytes));
        // A plugin that does not want its state does not get it.
        let state = plugin.grant.state.then(|| (Stores::durable(dirs.policy_state()), allowed));
        let setup = RunnerSetup::new(
            config,
            &dirs,
            NixDirs::from_env(),
            vec![name.clone()],
            Purpose::Policy,
        );
        let process = Process::start(&setup.until(until)).map_err(PolicyError::Unavailable)?;
        Ok(Box::new(Self { name, state, process: Mutex::new(process) }))
    }
}

impl Process {
    fn start(setup: &RunnerSetup) -> Result<Self, String> {
        let failed = |error: std::io::Error| {
            format!("the process that runs the policy cannot be started: {error}")
        };
        let mut command = process::this_program();
        command.arg(COMMAND).current_dir("/").stdin(Stdio::piped()).stdout(Stdio::piped());
        // The process ends with this thread, which lives as long as the session, also if the
        // session is killed.
        let preparation = Preparation { dies_with_parent: true, ..Preparation::default() };
        let mut child = preparation.add_to(&mut command).spawn().map_err(|error| {
            failed(std::io::Error::other(process::describe_start(&command, &error)))
        })?;
        let gone = || failed(std::io::Error::other("it has no pipes"));
        let input = child.stdin.take().ok_or_else(gone)?;
        let output = child.stdout.take().ok_or_else(gone)?;
        let mut process = Self { child, input, output: BufReader::new(output) };
        let answer = frame::write(&mut process.input, setup)
            .and_then(|()| frame::read::<FromRunner>(&mut process.output));
        match answer {
            Ok(Some(FromRunner::Ready(..))) => Ok(process),
            Ok(Some(FromRunner::Unwalled(reason))) => Err(reason),
            Ok(Some(_) | None) | Err(_) => Err(failed(process.ended())),
        }
    }

    fn ask(
        &mut self,
        question: &Question<'_>,
    ) -> std::io::Result<(Result<Decision, PolicyError>, Pairs)> {
        let answer =
            frame::write(&mut self.input, question).and_then(|()| frame::read(&mut self.output));
        match answer {
            Ok(Some(FromRunner::Selected { decision, state })) => Ok((decision, state)),
            _ => Err(self.ended()),
        }
    }

    /// Describes how the process ended after it closed its pipe. A process that has already exited
    /// keeps its exit status when it is killed.
    fn ended(&mut self) -> std::io::Error {
        let ended = self.child.kill().and_then(|()| self.child.wait());
        std::io::Error::other(how(ended))
    }
}

impl Policy for PluginPolicy {
    fn select(
        &self,
        candidate: &Candidate,
        machines: &[Machine],
        local: &LocalMachine,
    ) -> Result<Decision, PolicyError> {
        let before = match &self.state {
            Some((stores, _)) => {
                stores.load(&self.name).map_err(|error| PolicyError::Failed(error.message))?
            }
            None => Pairs::new(),
        };
        let question = Question::Select { candidate, machines, local, state: &before };
        let mut process = self.process.lock().unwrap_or_else(PoisonError::into_inner);
        let (decision, after) = process.ask(&question).map_err(|error| {
            PolicyError::Unavailable(format!(
                "the process that runs the policy has ended ({error})"
            ))
        })?;
        if let Some((stores, allowed)) = &self.state {
            // The other process checks this too, but a guest may have taken it over.
            let size: u64 = after.iter().map(|(key, value)| (key.len() + value.len()) as u64).sum();
            if size > *allowed {
                return Err(PolicyError::Failed(Limit::StateBytes.reached(
                    &self.name,
                    *allowed,
                    Some(size),
                )));
            }
            stores
                .save(&self.name, &before, &after)
                .map_err(|error| PolicyError::Failed(error.message))?;
        }
        decision
    }
}
