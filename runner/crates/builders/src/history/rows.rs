//! The rows of the database, as types.

use std::collections::BTreeMap;
use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use hookrun_nix::selection::{Candidate, PastBuilds};

/// Returns the time in milliseconds since 1970.
pub fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

/// The known health of one machine. [`crate::choice::health`] decides what follows from it.
#[derive(Debug, Clone, PartialEq, Default, Serialize)]
pub struct MachineHealth {
    /// Store URI.
    pub machine: String,
    /// Failures since it last answered.
    pub failures: u32,
    /// The last failure, a lower-case fragment.
    pub last_error: Option<String>,
    /// The time of the last failure.
    pub failed_ms: Option<u64>,
    /// It is not tried again before this time.
    pub retry_ms: Option<u64>,
    /// When it last answered.
    pub succeeded_ms: Option<u64>,
    /// How long that answer took, in milliseconds.
    pub connect_ms: Option<u32>,
    /// Recent speed of copies to it.
    pub bytes_per_second: Option<f64>,
}

/// How a delegated build ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    /// Its outputs are here.
    Built,
    /// The build itself failed, or ended in a way that is not understood.
    Failed,
    /// No machine was left to go to.
    Lost,
    /// Nix went away.
    Abandoned,
}

impl Outcome {
    /// All variants.
    pub const ALL: [Self; 4] = [Self::Built, Self::Failed, Self::Lost, Self::Abandoned];

    /// The word in the database.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Built => "built",
            Self::Failed => "failed",
            Self::Lost => "lost",
            Self::Abandoned => "abandoned",
        }
    }
}

/// A machine that a build was taken away from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Move {
    /// Its store URI.
    pub machine: String,
    /// Why, a lower-case fragment.
    pub why: String,
}

/// A build that a session has accepted.
#[derive(Debug, Clone, PartialEq)]
pub struct NewBuild<'a> {
    /// What is built.
    pub candidate: &'a Candidate,
    /// Which Nix process asked; see [`crate::slots::sessions::Command`].
    pub command: &'a str,
    /// The first choice, by URI.
    pub machine: &'a str,
    /// When Nix got the answer.
    pub accepted_ms: u64,
}

/// A delegated build.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct BuildRow {
    /// Number of the row; a later build has a higher one.
    pub id: i64,
    /// Full store path of the `.drv`.
    pub drv_path: String,
    /// Its name.
    pub name: String,
    /// Its package name.
    pub pname: String,
    /// Its system.
    pub system: String,
    /// The features it required. Empty for builds of earlier releases.
    pub required_features: Vec<String>,
    /// The Nix process that asked.
    pub command: String,
    /// Store URI of the machine it ended on.
    pub machine: String,
    /// That machine's speed factor then.
    pub speed_factor: f64,
    /// When Nix was told that it is accepted.
    pub accepted_ms: u64,
    /// How long it then waited for a slot.
    pub waited_ms: Option<u64>,
    /// When the machine had its inputs.
    pub started_ms: Option<u64>,
    /// When it ended. None: it runs, or its session was killed.
    pub ended_ms: Option<u64>,
    /// How long it was built, copies not counted.
    pub seconds: Option<f64>,
    /// How it ended.
    pub outcome: Option<Outcome>,
    /// The reason, if it did not succeed.
    pub detail: Option<String>,
    /// Size of its inputs with all they need.
    pub input_bytes: Option<u64>,
    /// Machines it was taken away from, in order.
    pub moves: Vec<Move>,
}

/// Past durations of one package name on one system.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Past {
    /// Median seconds at speed factor 1, over all machines.
    pub expected_seconds: Option<f64>,
    /// By store URI.
    pub machines: BTreeMap<String, PastBuilds>,
}

/// One machine in a decision.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Verdict {
    /// Store URI.
    pub machine: String,
    /// Slots, and how many were busy.
    pub slots: u32,
    /// Busy slots.
    pub load: u32,
    /// Column 5.
    pub speed_factor: f64,
    /// Bytes of inputs that would have to be sent there, where that was known.
    #[serde(default)]
    pub missing_bytes: Option<u64>,
    /// Its place in the policy's ranking, from 1.
    pub rank: Option<u32>,
    /// Whether it was taken.
    pub taken: bool,
    /// Why it was or was not taken, a lower-case fragment.
    pub reason: String,
}

/// One answer to Nix, and how it came about.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DecisionRow {
    /// The time of the answer.
    pub at_ms: u64,
    /// The derivation, as the policy saw it.
    pub candidate: Candidate,
    /// The Nix process that asked.
    pub command: String,
    /// Whether this machine had a free slot (`willing`).
    pub local_willing: bool,
    /// Who decided: `policy`, or `Nix's rule` and why.
    pub decided_by: String,
    /// `machines`, `local`, `postpone` or `decline`, as decided.
    pub action: String,
    /// The reason in the policy's words.
    pub reason: String,
    /// The answer to Nix: `accept`, `decline` or `postpone`, and details.
    pub answer: String,
    /// All machines, in the order of the setting `builders`.
    pub machines: Vec<Verdict>,
}
