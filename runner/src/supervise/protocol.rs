//! The messages between supervisor and runner.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use hookrun_builders::{Candidate, Decision, LocalMachine, Machine, PolicyError};
use hookrun_capability::CapabilityError;
use hookrun_capability::mail::ProgramMail;
use hookrun_capability::state::Pairs;
use hookrun_config::{Config, ConfigError};
use hookrun_host::wall::Raised;
use hookrun_nix::dirs::Dirs;
use hookrun_nix::event::{Event, NixDirs};
use hookrun_nix::outcome::RunReport;
use hookrun_nix::outcome::Transfer;

/// The name of a runner's hidden command.
pub(super) const COMMAND: &str = "runner";

/// The first message to a runner, with everything that it needs.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct RunnerSetup {
    config: PathBuf,
    text: String,
    pub(super) dirs: Dirs,
    /// The Nix of its events.
    pub(super) nix: NixDirs,
    pub(super) plugins: Vec<String>,
    pub(super) purpose: Purpose,
    /// The time for its plugins to become ready; if there is none, only their limits apply.
    pub(super) patience: Option<Duration>,
}

/// The purpose of a runner.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Purpose {
    /// Tasks of the queue. The sandbox allows the services of its plugins.
    Queue,
    /// Builder selection. The sandbox allows nothing.
    Policy,
}

impl RunnerSetup {
    pub(super) fn new(
        config: &Config,
        dirs: &Dirs,
        nix: NixDirs,
        plugins: Vec<String>,
        purpose: Purpose,
    ) -> Self {
        Self {
            config: config.path.clone(),
            text: config.text.clone(),
            dirs: dirs.clone(),
            nix,
            plugins,
            purpose,
            patience: None,
        }
    }

    /// Limits the time for its plugins to become ready.
    pub(super) fn until(self, until: Instant) -> Self {
        Self { patience: Some(until.saturating_duration_since(Instant::now())), ..self }
    }

    /// Parses the configuration that the supervisor has read.
    pub(super) fn config(&self) -> Result<Config, ConfigError> {
        Config::parse(&self.config, &self.text)
    }
}

/// A message to a runner.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum ToRunner {
    /// Run a plugin on an event.
    Run { id: u64, plugin: String, event: Box<Event>, attempt: u32 },
    /// The result of a message that was given to a program.
    Mailed { id: u64, result: Result<(), CapabilityError> },
    /// Asks the policy. The message contains its plugin's state, because the runner can open no
    /// file.
    Select {
        candidate: Box<Candidate>,
        machines: Vec<Machine>,
        local: Box<LocalMachine>,
        state: Pairs,
    },
}

/// [`ToRunner::Select`] with borrowed contents. There may be thousands of machines, so they are not
/// copied.
#[derive(Debug, Serialize)]
pub(super) enum Question<'a> {
    Select {
        candidate: &'a Candidate,
        machines: &'a [Machine],
        local: &'a LocalMachine,
        state: &'a Pairs,
    },
}

/// A message from a runner.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum FromRunner {
    /// The sandbox is active. Contains the plugins that cannot be used, with the reasons.
    Ready(Raised, BTreeMap<String, String>),
    /// The sandbox could not be activated, so nothing will run. Contains the reason.
    Unwalled(String),
    /// The uploads in progress.
    Transfers(Vec<Transfer>),
    /// A run ended.
    Ended { id: u64, report: Box<RunReport> },
    /// A message for a program that the runner may not start.
    Mail { id: u64, mail: ProgramMail },
    /// The policy's answer, and its plugin's state after it.
    Selected { decision: Result<Decision, PolicyError>, state: Pairs },
}
