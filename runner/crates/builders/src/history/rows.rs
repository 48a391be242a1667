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

/// The known health of one machine. [`crate::choice::health`] interprets it.
#[derive(Debug, Clone, PartialEq, Default, Serialize)]
pub struct MachineHealth {
    /// The store URI.
    pub machine: String,
    /// The number of failures since it last answered.
    pub failures: u32,
    /// The last failure, in lower case.
    pub last_error: Option<String>,
    /// The time of the last failure.
    pub failed_ms: Option<u64>,
    /// The time before which it is not tried again.
    pub retry_ms: Option<u64>,
    /// The time when it last answered.
    pub succeeded_ms: Option<u64>,
    /// The duration of that answer, in milliseconds.
    pub connect_ms: Option<u32>,
    /// The rate of recent copies to it, in bytes per second.
    pub bytes_per_second: Option<f64>,
}

/// The outcome of a delegated build.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum BuildOutcome {
    /// The outputs are on this machine.
    Built,
    /// The build itself failed, or ended in a way that is not understood.
    Failed,
    /// No machine was left for it.
    Lost,
    /// Nix has exited.
    Abandoned,
}

impl BuildOutcome {
    /// All variants.
    pub const ALL: [Self; 4] = [Self::Built, Self::Failed, Self::Lost, Self::Abandoned];

    /// Returns the word in the database.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Built => "built",
            Self::Failed => "failed",
            Self::Lost => "lost",
            Self::Abandoned => "abandoned",
        }
    }
}

/// A machine that lost a build.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Move {
    /// The store URI.
    pub machine: String,
    /// The reason, in lower case.
    pub why: String,
}

/// A build that a session has accepted.
#[derive(Debug, Clone, PartialEq)]
pub struct NewBuild<'a> {
    /// The derivation.
    pub candidate: &'a Candidate,
    /// The Nix process that asked; see [`crate::slots::sessions::Command`].
    pub command: &'a str,
    /// The URI of the first machine.
    pub machine: &'a str,
    /// The time when Nix got the answer.
    pub accepted_ms: u64,
}

/// A delegated build.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct BuildRow {
    /// The number of the row; later builds have higher ones.
    pub id: i64,
    /// The full store path of the `.drv` file.
    pub drv_path: String,
    /// The name.
    pub name: String,
    /// The package name.
    pub pname: String,
    /// Its system.
    pub system: String,
    /// The required features; empty for builds of earlier releases.
    pub required_features: Vec<String>,
    /// The Nix process that asked.
    pub command: String,
    /// The store URI of the last machine.
    pub machine: String,
    /// The speed factor of that machine at the time.
    pub speed_factor: f64,
    /// The time when Nix was told that it is accepted.
    pub accepted_ms: u64,
    /// The time that it waited for a slot.
    pub waited_ms: Option<u64>,
    /// The time when the machine had the inputs.
    pub started_ms: Option<u64>,
    /// The time when it ended; none if it runs or its session was killed.
    pub ended_ms: Option<u64>,
    /// The duration of the build in seconds, without copies.
    pub seconds: Option<f64>,
    /// The outcome.
    pub outcome: Option<BuildOutcome>,
    /// The reason, if it did not succeed.
    pub detail: Option<String>,
    /// The size of the closure of its inputs, in bytes.
    pub input_bytes: Option<u64>,
    /// The machines that lost it, in order.
    pub moves: Vec<Move>,
}

/// Past durations of one package name on one system.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Past {
    /// The median duration in seconds at speed factor 1, over all machines.
    pub expected_seconds: Option<f64>,
    /// The past builds by store URI.
    pub machines: BTreeMap<String, PastBuilds>,
}

/// One machine in a decision.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ConsideredMachine {
    /// The store URI.
    pub machine: String,
    /// The number of slots.
    pub slots: u32,
    /// The number of busy slots.
    pub load: u32,
    /// The speed factor (column 5).
    pub speed_factor: f64,
    /// The size of the inputs to send, in bytes, if it was known.
    #[serde(default)]
    pub missing_bytes: Option<u64>,
    /// The rank in the policy's decision, from 1.
    pub rank: Option<u32>,
    /// Whether it was chosen.
    pub taken: bool,
    /// The reason why it was or was not chosen, in lower case.
    pub reason: String,
}

/// One answer to Nix, with the reasons for it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DecisionRow {
    /// The time of the answer.
    pub at_ms: u64,
    /// The derivation, as the policy got it.
    pub candidate: Candidate,
    /// The Nix process that asked.
    pub command: String,
    /// Whether this machine had a free slot (`willing`).
    pub local_willing: bool,
    /// The origin of the decision: `policy`, or `Nix's rule` with the reason.
    pub decided_by: String,
    /// The action of the decision: `machines`, `local`, `postpone` or `decline`.
    pub action: String,
    /// The reason in the decision.
    pub reason: String,
    /// The answer to Nix: `accept`, `decline` or `postpone`, with details.
    pub answer: String,
    /// All machines, in the order of the setting `builders`.
    pub machines: Vec<ConsideredMachine>,
}
