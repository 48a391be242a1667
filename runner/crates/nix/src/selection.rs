//! The question to a policy and its answer. Mirrors `plugin-sdk/wit/builder-selection-0.1.0`, so
//! that the plugin host only copies fields.

use serde::{Deserialize, Serialize};

/// Builds that ended well, as this machine remembers them.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct PastBuilds {
    /// How many.
    pub count: u32,
    /// Median duration in seconds, transfers not counted.
    pub median_seconds: f64,
}

/// The derivation to place.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Candidate {
    /// Full store path of the `.drv`.
    pub drv_path: String,
    /// The derivation's name, as in its store path without `.drv`.
    pub name: String,
    /// Its package name: `pname` of its environment, or its name up to the version.
    pub pname: String,
    /// Its version; empty where it has none.
    pub version: String,
    /// `x86_64-linux`, ..., or [`BUILTIN`].
    pub system: String,
    /// The system features it requires, sorted.
    pub required_features: Vec<String>,
    /// Whether Nix builds it itself.
    pub builtin: bool,
    /// Whether its hash is known before the build.
    pub fixed_output: bool,
    /// Whether `preferLocalBuild` is set.
    pub prefer_local: bool,
    /// The words of `hookrunHints` in its environment.
    pub hints: Vec<(String, String)>,
    /// Seconds that builds of this package name took, on a machine of speed factor 1.
    pub expected_seconds: Option<f64>,
    /// Size of its inputs with all they need, where that is known.
    pub input_bytes: Option<u64>,
    /// How many derivations stand one after another behind this one, where that is known.
    pub dependents_depth: Option<u32>,
    /// More, by name.
    pub details: Vec<(String, String)>,
}

/// The system of derivations that any Nix can build (`builtin:fetchurl` and the like).
pub const BUILTIN: &str = "builtin";

/// A machine that can take the candidate: its system and features fit.
///
/// On its way to the process of a policy what is not known takes no room: there may be thousands of
/// machines.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Machine {
    /// The store URI of the machines file; names the machine in the answer.
    pub uri: String,
    /// Builds at once (column 4).
    pub slots: u32,
    /// Slots that are busy now.
    pub load: u32,
    /// Column 5.
    pub speed_factor: f64,
    /// Column 6.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub supported_features: Vec<String>,
    /// Column 7.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub mandatory_features: Vec<String>,
    /// False after recent failures to connect.
    pub healthy: bool,
    /// How long a connection took lately, in milliseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub connect_ms: Option<u32>,
    /// Builds of this package name on this machine.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub past: Option<PastBuilds>,
    /// For busy slots whose build has an expected duration: seconds until it should end, the
    /// soonest first.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub busy_seconds: Vec<f64>,
    /// Size of the inputs that are not on that machine yet, where that is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub missing_bytes: Option<u64>,
    /// Bytes a second that copies to it reached lately.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bytes_per_second: Option<f64>,
    /// More, by name.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub details: Vec<(String, String)>,
}

/// A machine as a line with nothing but a URI describes it: one slot, idle, factor 1.
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

/// This machine: what it can do, and what waits on it.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct LocalMachine {
    /// Whether it can build the candidate at all (system, features, `max-jobs` above 0).
    pub able: bool,
    /// Whether a local build slot is free now.
    pub willing: bool,
    /// `max-jobs`.
    pub slots: u32,
    /// How fast it is, on the scale of column 5; none: nobody said.
    pub speed_factor: Option<f64>,
    /// Builds of this package name on this machine.
    pub past: Option<PastBuilds>,
    /// Builds of all Nix commands on this machine that wait in hookrun for a machine.
    pub waiting: u32,
    /// Builds that the calling Nix command was told to do on this machine, and that run or are
    /// about to start.
    pub running: u32,
    /// Whether the calling Nix divides load by speed factor as whole numbers (2.19 and older).
    pub whole_speed_factors: bool,
    /// More, by name.
    pub details: Vec<(String, String)>,
}

/// The answer of a policy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Decision {
    /// What to do.
    pub action: Action,
    /// The reason, in one sentence for users.
    pub reason: String,
    /// The longest to wait before the question is asked again, in milliseconds; none: as long as it
    /// takes.
    pub ask_again_ms: Option<u64>,
}

impl Decision {
    /// Without a bound on waiting.
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
    /// No opinion: Nix builds here if it can.
    Decline,
}

impl Action {
    /// The word of the interface.
    pub const fn as_str(&self) -> &'static str {
        match self {
            Self::Machines(_) => "machines",
            Self::Local => "local",
            Self::Postpone => "postpone",
            Self::Decline => "decline",
        }
    }

    /// From the word of the interface; `machines` counts only for that word.
    ///
    /// # Errors
    /// A word that is none of the four.
    pub fn from_word(word: &str, machines: Vec<String>) -> Result<Self, PolicyError> {
        match word {
            "machines" => Ok(Self::Machines(machines)),
            "local" => Ok(Self::Local),
            "postpone" => Ok(Self::Postpone),
            "decline" => Ok(Self::Decline),
            _ => Err(PolicyError::Invalid(format!(
                "action `{word}` is none of `machines`, `local`, `postpone`, `decline`"
            ))),
        }
    }
}

/// Why a policy gave no usable answer. Every text is a lower-case fragment.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error, serde::Serialize, serde::Deserialize)]
pub enum PolicyError {
    /// The policy could not be had: no configuration, no plugin, wrong grants.
    #[error("{0}")]
    Unavailable(String),
    /// No plugin of the configuration is a policy. Nothing is wrong, so nobody is told.
    #[error("no plugin serves `builder-selection`")]
    Nobody,
    /// It is still being compiled. Nothing is wrong, so nobody is told.
    #[error("{0}")]
    Unready(String),
    /// It failed, trapped or hit a limit.
    #[error("{0}")]
    Failed(String),
    /// It answered something that cannot be done.
    #[error("invalid answer: {0}")]
    Invalid(String),
    /// It did not answer in time.
    #[error("it did not answer within {0:?}")]
    TimedOut(std::time::Duration),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_is_written_short_and_read_whole() {
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
