//! The question to a policy and its answer. Has the same fields as
//! `plugin-sdk/wit/builder-selection-0.1.0`, so that the plugin host only copies them.

use serde::{Deserialize, Serialize};

/// Successful builds that this machine has recorded.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct PastBuilds {
    /// The number of builds.
    pub count: u32,
    /// The median duration in seconds, without transfers.
    pub median_seconds: f64,
}

/// The derivation to build.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Candidate {
    /// The full store path of the `.drv` file.
    pub drv_path: String,
    /// The derivation's name, as in its store path without `.drv`.
    pub name: String,
    /// The package name: `pname` in the derivation's environment, or else the name up to the
    /// version.
    pub pname: String,
    /// The version; empty if there is none.
    pub version: String,
    /// The system, such as `x86_64-linux`, or [`BUILTIN`].
    pub system: String,
    /// The required system features, sorted.
    pub required_features: Vec<String>,
    /// Whether the builder is built into Nix.
    pub builtin: bool,
    /// Whether the output hash is fixed in the derivation.
    pub fixed_output: bool,
    /// Whether `preferLocalBuild` is set.
    pub prefer_local: bool,
    /// The words of `hookrunHints` in the derivation's environment.
    pub hints: Vec<(String, String)>,
    /// The expected duration in seconds on a machine with speed factor 1, from past builds of this
    /// package name.
    pub expected_seconds: Option<f64>,
    /// The size of the closure of the inputs in bytes, if known.
    pub input_bytes: Option<u64>,
    /// The length of the longest chain of derivations that depend on this one, if known.
    pub dependents_depth: Option<u32>,
    /// Additional values by name.
    pub details: Vec<(String, String)>,
}

/// The system of derivations that every Nix can build (`builtin:fetchurl` and others).
pub const BUILTIN: &str = "builtin";

/// A machine whose system and features allow it to build the candidate.
///
/// Unknown values are left out when it is sent to the process of a policy, because there may be
/// thousands of machines.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Machine {
    /// The store URI of the machines file; names the machine in the answer.
    pub uri: String,
    /// The number of concurrent builds (column 4).
    pub slots: u32,
    /// The number of busy slots.
    pub load: u32,
    /// The speed factor (column 5).
    pub speed_factor: f64,
    /// The supported features (column 6).
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub supported_features: Vec<String>,
    /// The mandatory features (column 7).
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub mandatory_features: Vec<String>,
    /// False after recent failures to connect.
    pub healthy: bool,
    /// The time that a recent connection took, in milliseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub connect_ms: Option<u32>,
    /// Builds of this package name on this machine.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub past: Option<PastBuilds>,
    /// For each busy slot whose build has an expected duration: the seconds until the expected end,
    /// in ascending order.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub busy_seconds: Vec<f64>,
    /// The size of the inputs that are not on the machine yet, in bytes, if known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub missing_bytes: Option<u64>,
    /// The transfer rate of recent copies to the machine, in bytes per second.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bytes_per_second: Option<f64>,
    /// Additional values by name.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub details: Vec<(String, String)>,
}

/// Returns a machine as a line with only a URI describes it: one slot, idle, factor 1.
impl Default for Machine {
    fn default() -> Self {
        Self {
            uri: String::default(),
            slots: 1,
            load: 0,
            speed_factor: 1.0,
            supported_features: Vec::default(),
            mandatory_features: Vec::default(),
            healthy: true,
            connect_ms: None,
            past: None,
            busy_seconds: Vec::new(),
            missing_bytes: None,
            bytes_per_second: None,
            details: Vec::new(),
        }
    }
}

impl Machine {
    /// Returns whether a slot is free.
    pub const fn has_free_slot(&self) -> bool {
        self.load < self.slots
    }
}

/// The machine on which Nix runs.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct LocalMachine {
    /// Whether it can build the candidate (system, features, and `max-jobs` greater than 0).
    pub able: bool,
    /// Whether Nix reports a free local slot.
    pub willing: bool,
    /// The value of `max-jobs`.
    pub slots: u32,
    /// The speed, on the scale of column 5; none if it is not configured.
    pub speed_factor: Option<f64>,
    /// Builds of this package name on this machine.
    pub past: Option<PastBuilds>,
    /// The number of builds, of all Nix commands on this machine, that wait in hookrun for a
    /// machine.
    pub waiting: u32,
    /// The number of builds that the calling Nix command was told to run on this machine, and that
    /// are running or about to start.
    pub running: u32,
    /// Whether the calling Nix divides the load by the speed factor as whole numbers (2.19 and
    /// older).
    pub whole_speed_factors: bool,
    /// Additional values by name.
    pub details: Vec<(String, String)>,
}

/// The decision of a policy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Decision {
    /// The action.
    pub action: Action,
    /// The reason, in one sentence for users.
    pub reason: String,
    /// The longest time before the policy is asked again, in milliseconds; none for no limit.
    pub ask_again_ms: Option<u64>,
}

impl Decision {
    /// Returns a decision without a limit on waiting.
    pub fn new(action: Action, reason: impl Into<String>) -> Self {
        Self { action, reason: reason.into(), ask_again_ms: None }
    }
}

/// What to do with a candidate.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Action {
    /// These machines, by URI, in this order: the first with a free slot is taken. If all are full,
    /// the build waits for one of these. Others are used when all of these are lost or refuse.
    Machines(Vec<String>),
    /// Build here, now or when a slot is free.
    Local,
    /// Ask again later. Nix does so after `build-poll-interval`, 5 s by default.
    Postpone,
    /// No preference: Nix builds on this machine if it can.
    Decline,
}

impl Action {
    /// Returns the word in the interface.
    pub const fn as_str(&self) -> &'static str {
        match self {
            Self::Machines(_) => "machines",
            Self::Local => "local",
            Self::Postpone => "postpone",
            Self::Decline => "decline",
        }
    }

    /// Parses the word in the interface. `machines` is used only with that word.
    ///
    /// # Errors
    /// Returns an error if the word is not one of the four.
    pub fn from_word(word: &str, machines: Vec<String>) -> Result<Self, PolicyError> {
        match word {
            "machines" => Ok(Self::Machines(machines)),
            "local" => Ok(Self::Local),
            "postpone" => Ok(Self::Postpone),
            "decline" => Ok(Self::Decline),
            _ => Err(PolicyError::Invalid(format!(
                "action `{word}` is not one of `machines`, `local`, `postpone` and `decline`"
            ))),
        }
    }
}

/// The reason why a policy gave no usable answer. Each text is in lower case.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error, serde::Serialize, serde::Deserialize)]
pub enum PolicyError {
    /// The policy is not available: no configuration, no plugin, or wrong grants.
    #[error("{0}")]
    Unavailable(String),
    /// No configured plugin is a policy. This is not an error, so it is not reported.
    #[error("no plugin serves `builder-selection`")]
    NoPolicy,
    /// The policy is still being compiled. This is not an error, so it is not reported.
    #[error("{0}")]
    NotReady(String),
    /// The policy failed, trapped or reached a limit.
    #[error("{0}")]
    Failed(String),
    /// The answer cannot be carried out.
    #[error("invalid answer: {0}")]
    Invalid(String),
    /// The policy did not answer in time.
    #[error("it did not answer within {0:?}")]
    TimedOut(std::time::Duration),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unknown_values_of_a_machine_are_not_written() {
        let plain = Machine { uri: "ssh://m".into(), ..Machine::default() };
        let known = Machine {
            slots: 4,
            load: 1,
            speed_factor: 2.5,
            supported_features: std::iter::once("kvm".to_owned()).collect(),
            mandatory_features: std::iter::once("gpu".to_owned()).collect(),
            healthy: false,
            connect_ms: Some(3),
            past: Some(PastBuilds { count: 2, median_seconds: 1.5 }),
            busy_seconds: vec![0.5],
            missing_bytes: Some(9),
            bytes_per_second: Some(1e6),
            details: vec![("a".to_owned(), "b".to_owned())],
            ..plain.clone()
        };
        for (machine, longest) in [(plain, 80), (known, 400)] {
            let text = serde_json::to_string(&machine).unwrap();
            assert!(text.len() <= longest, "{text}");
            assert_eq!(serde_json::from_str::<Machine>(&text).unwrap(), machine);
        }
    }
}
