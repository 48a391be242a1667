//! What supervisor and runner say to each other.

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

/// The hidden command of a runner.
pub(super) const COMMAND: &str = "runner";

/// The first message to a runner: all it needs to know.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Setup {
    config: PathBuf,
    text: String,
    pub(super) dirs: Dirs,
    /// The Nix whose events it gets.
    pub(super) nix: NixDirs,
    /// The plugins it runs.
    pub(super) plugins: Vec<String>,
    pub(super) purpose: Purpose,
    /// How long its plugins may take to get ready; no longer than their limits where it is none.
    pub(super) patience: Option<Duration>,
}

/// What a runner is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Purpose {
    /// Tasks of the queue: its plugins' services are let through its wall.
    Queue,
    /// Builder selection: nothing is.
    Policy,
}

impl Setup {
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

    /// The same for somebody who waits only until then.
    pub(super) fn until(self, until: Instant) -> Self {
        Self { patience: Some(until.saturating_duration_since(Instant::now())), ..self }
    }

    /// The configuration, as the supervisor read it.
    pub(super) fn config(&self) -> Result<Config, ConfigError> {
        Config::parse(&self.config, &self.text)
    }
}

/// To a runner.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Order {
    /// Run a plugin on an event.
    Run { id: u64, plugin: String, event: Box<Event>, attempt: u32 },
    /// What became of a message for a program.
    Mailed { id: u64, result: Result<(), CapabilityError> },
    /// Ask the policy. Its plugin's state comes along, because it can open no file.
    Select {
        candidate: Box<Candidate>,
        machines: Vec<Machine>,
        local: Box<LocalMachine>,
        state: Pairs,
    },
}

/// [`Order::Select`] as it is sent: there may be thousands of machines, and none is copied.
#[derive(Debug, Serialize)]
pub(super) enum Question<'a> {
    Select {
        candidate: &'a Candidate,
        machines: &'a [Machine],
        local: &'a LocalMachine,
        state: &'a Pairs,
    },
}

/// From a runner.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Word {
    /// The wall stands. Plugins that cannot be used are named, with the reason.
    Ready(Raised, BTreeMap<String, String>),
    /// It does not, and nothing will run: why.
    Unwalled(String),
    /// The uploads that are under way.
    Transfers(Vec<Transfer>),
    /// A run ended.
    Ended { id: u64, report: Box<RunReport> },
    /// A message for a program that the runner may not start.
    Mail { id: u64, mail: ProgramMail },
    /// The policy's answer, and its plugin's state after it.
    Selected { decision: Result<Decision, PolicyError>, state: Pairs },
}
