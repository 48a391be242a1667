//! A plugin as the policy of builder selection: in a process of its own, which can open no file and
//! reach no network. The session, which may be root and starts Nix's own hook, maps no guest code.
//!
//! The plugin's state, which the other process cannot open, travels with the question and back with
//! the answer.

use std::io::BufReader;
use std::process::{Child, ChildStdin, ChildStdout, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::frame;
use super::process::how;
use super::protocol::{COMMAND, Purpose, Question, Setup, Word};
use hookrun_builders::{Candidate, Decision, LocalMachine, Machine, Policy, PolicyError};
use hookrun_capability::state::{Pairs, Stores};
use hookrun_config::{Config, Limit, Plugin};
use hookrun_host::{Compiler, Host, Known, PluginError};
use hookrun_nix::dirs::Dirs;
use hookrun_nix::event::{HookKind, NixDirs};
use hookrun_queue::spawn;
use hookrun_system::child::Preparation;
use hookrun_system::process;

/// How long finding out which plugin chooses, and compiling it, may take while Nix waits: within
/// the deadline of the policy, with time left to start it and to ask it. Both are done once for
/// each plugin; the bundled policy takes a third of it on a busy machine.
const PREPARE_TIME: Duration = Duration::from_millis(1500);

/// May a plugin of `config` choose builders? One whose configuration does not list its hooks may:
/// which it serves is found out when it is asked ([`chooser`]).
pub fn may_choose(config: &Config) -> bool {
    config.plugins.values().any(may_serve)
}

fn may_serve(plugin: &Plugin) -> bool {
    plugin.hooks.is_empty() || plugin.hooks.contains(&HookKind::BuilderSelection)
}

/// The plugin that chooses builders: the first by name that serves the hook. What is known of one
/// whose configuration does not list its hooks is looked up; if that is nothing, it is found out,
/// and one that cannot be read is left to `hookrun check`.
///
/// # Errors
/// There is none, or it is not known in time.
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
                Err(PluginError::NotAhead(why)) => {
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
    let Some((plugin, why)) = unknown else { return Err(PolicyError::Nobody) };
    // Else the next hook tries again; `hookrun check` says what is wrong.
    let _started = spawn::detached(&Dirs::from_env(), &["compile", plugin.name.as_str()]);
    Err(PolicyError::Unready(why.to_string()))
}

/// Asks a plugin. Made and used on the policy's own thread: the session never waits for it longer
/// than the policy's deadline.
pub struct PluginPolicy {
    name: String,
    /// Where the plugin's state is, if it has one, and how many bytes it may have.
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
        // It may hang.
        let _ended = self.child.kill().and_then(|()| self.child.wait());
    }
}

impl PluginPolicy {
    /// Starts a process for the plugin of `config` that chooses builders.
    ///
    /// # Errors
    /// There is none, or it does not load; the text ends in the fix.
    pub fn load(config: &Config) -> Result<Box<dyn Policy>, PolicyError> {
        let dirs = Dirs::from_env();
        let until = Instant::now() + PREPARE_TIME;
        let compiler = Compiler::Within(config.worker.user.clone(), until);
        let plugin = chooser(config, &Host::new(&dirs, compiler))?;
        let (name, allowed) = (plugin.name.clone(), plugin.limits.get(Limit::StateBytes));
        // One that does not want it does not get at it.
        let state = plugin.grant.state.then(|| (Stores::durable(dirs.policy_state()), allowed));
        let setup =
            Setup::new(config, &dirs, NixDirs::from_env(), vec![name.clone()], Purpose::Policy);
        let process = Process::start(&setup.until(until)).map_err(PolicyError::Unavailable)?;
        Ok(Box::new(Self { name, state, process: Mutex::new(process) }))
    }
}

impl Process {
    fn start(setup: &Setup) -> Result<Self, String> {
        let failed = |error: std::io::Error| {
            format!("the process that runs the policy cannot be started: {error}")
        };
        let mut command = process::this_program();
        command.arg(COMMAND).current_dir("/").stdin(Stdio::piped()).stdout(Stdio::piped());
        // It dies with this thread, which lives as long as the session, also when the session is
        // killed.
        let preparation = Preparation { dies_with_parent: true, ..Preparation::default() };
        let mut child = preparation.add_to(&mut command).spawn().map_err(|error| {
            failed(std::io::Error::other(process::describe_start(&command, &error)))
        })?;
        let gone = || failed(std::io::Error::other("its pipes are gone"));
        let input = child.stdin.take().ok_or_else(gone)?;
        let output = child.stdout.take().ok_or_else(gone)?;
        let mut process = Self { child, input, output: BufReader::new(output) };
        let answer = frame::write(&mut process.input, setup)
            .and_then(|()| frame::read::<Word>(&mut process.output));
        match answer {
            Ok(Some(Word::Ready(..))) => Ok(process),
            Ok(Some(Word::Unwalled(reason))) => Err(reason),
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
            Ok(Some(Word::Selected { decision, state })) => Ok((decision, state)),
            _ => Err(self.ended()),
        }
    }

    /// Describes how the process ended, which has closed its pipe. A process that is ending keeps
    /// its exit status when it is killed.
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
            PolicyError::Unavailable(format!("the process that runs the policy is gone ({error})"))
        })?;
        if let Some((stores, allowed)) = &self.state {
            // The other process has seen to it, unless it was taken over.
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
