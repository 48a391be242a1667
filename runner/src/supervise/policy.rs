//! A plugin as the policy of builder selection: in a process of its own, which can open no file and
//! reach no network. The session, which may be root and starts Nix's own hook, maps no guest code.
//!
//! The plugin's state, which the other process cannot open, travels with the question and back with
//! the answer.

use std::io::BufReader;
use std::os::unix::process::CommandExt as _;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::{Mutex, PoisonError};

use super::frame;
use super::protocol::{COMMAND, Purpose, Question, Setup, Word};
use crate::builders::{Candidate, Decision, LocalMachine, Machine, Policy, PolicyError};
use crate::capability::state::{Pairs, Stores};
use crate::config::{Config, Limit, Plugin};
use crate::dirs::Dirs;
use crate::event::{HookKind, NixDirs};
use crate::plugin::Artifact;

/// The name of the plugin that chooses builders: the first by name that serves the hook. One whose
/// configuration does not list its hooks is asked for them; one that cannot be read is left to
/// `hookrun check`.
pub fn chooser(config: &Config) -> Option<String> {
    let serves = |plugin: &Plugin| match plugin.hooks.as_slice() {
        [] => Artifact::open(plugin, config)
            .is_ok_and(|artifact| artifact.hooks().contains(&HookKind::BuilderSelection)),
        hooks => hooks.contains(&HookKind::BuilderSelection),
    };
    config.plugins.values().find(|plugin| serves(plugin)).map(|plugin| plugin.name.clone())
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
    /// Starts a process for the plugin `name` of `config`.
    ///
    /// # Errors
    /// It does not load; the text ends in the fix.
    pub fn load(config: &Config, name: &str) -> Result<Box<dyn Policy>, PolicyError> {
        let dirs = Dirs::from_env();
        let unavailable = |error: String| PolicyError::Unavailable(error);
        let settings = config.plugins.get(name).ok_or_else(|| {
            PolicyError::Unavailable(format!(
                "there is no [plugins.{name}] in {}",
                config.path.display()
            ))
        })?;
        let artifact =
            Artifact::open(settings, config).map_err(|error| unavailable(error.to_string()))?;
        let allowed = settings.limits.get(Limit::StateBytes);
        let state =
            artifact.effective().state.then(|| (Stores::durable(dirs.policy_state()), allowed));
        let setup =
            Setup::new(config, &dirs, NixDirs::from_env(), vec![name.to_owned()], Purpose::Policy);
        let process = Process::start(&setup).map_err(unavailable)?;
        Ok(Box::new(Self { name: name.to_owned(), state, process: Mutex::new(process) }))
    }
}

impl Process {
    fn start(setup: &Setup) -> Result<Self, String> {
        let failed = |error: std::io::Error| {
            format!("the process that runs the policy cannot be started ({error})")
        };
        let mut command = Command::new("/proc/self/exe");
        command
            .arg0("hookrun")
            .arg(COMMAND)
            .current_dir("/")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped());
        // SAFETY: between fork and exec; one async-signal-safe system call on numbers. It dies with
        // this thread, which lives as long as the session, also when the session is killed.
        unsafe {
            command.pre_exec(|| match libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) {
                0 => Ok(()),
                _ => Err(std::io::Error::last_os_error()),
            });
        }
        let mut child = command.spawn().map_err(failed)?;
        let gone = || failed(std::io::Error::other("its pipes are gone"));
        let mut input = child.stdin.take().ok_or_else(gone)?;
        let output = child.stdout.take().ok_or_else(gone)?;
        frame::write(&mut input, setup).map_err(failed)?;
        let mut process = Self { child, input, output: BufReader::new(output) };
        match frame::read::<Word>(&mut process.output).map_err(failed)? {
            Some(Word::Ready(..)) => Ok(process),
            Some(Word::Unwalled(reason)) => Err(reason),
            Some(_) | None => Err(failed(std::io::Error::other("it ended"))),
        }
    }

    fn ask(
        &mut self,
        question: &Question<'_>,
    ) -> std::io::Result<(Result<Decision, PolicyError>, Pairs)> {
        frame::write(&mut self.input, question)?;
        match frame::read(&mut self.output)? {
            Some(Word::Selected { decision, state }) => Ok((decision, state)),
            _ => Err(std::io::Error::other("it ended")),
        }
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
