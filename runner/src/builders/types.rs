//! What a policy is told and what it answers. Mirrors `plugin-sdk/wit/builder-selection-0.1.0`, so that the plugin room only
//! copies fields.

/// The derivation to place.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Candidate {
    /// Full store path of the `.drv`.
    pub drv_path: String,
    /// The derivation's name, as in its store path without `.drv`.
    pub name: String,
    /// `x86_64-linux`, ..., or [`BUILTIN`].
    pub system: String,
    /// The system features it requires, sorted.
    pub required_features: Vec<String>,
    /// More, by name.
    pub details: Vec<(String, String)>,
}

/// The system of derivations that any Nix can build (`builtin:fetchurl` and the like).
pub const BUILTIN: &str = "builtin";

/// A machine that can take the candidate: its system and features fit.
#[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Machine {
    /// The store URI of the machines file; names the machine in the answer.
    pub uri: String,
    /// Builds at once (column 4).
    pub slots: u32,
    /// Slots that are busy now.
    pub load: u32,
    /// Column 5.
    pub speed_factor: f64,
    /// False after recent failures to connect.
    pub healthy: bool,
    /// More, by name.
    pub details: Vec<(String, String)>,
}

impl Machine {
    /// Is a slot free?
    pub const fn has_free_slot(&self) -> bool {
        self.load < self.slots
    }
}

/// This machine.
#[derive(Debug, Clone, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
pub struct LocalMachine {
    /// Could it build the candidate at all (system, features, `max-jobs` over 0)?
    pub able: bool,
    /// Is a local build slot free right now?
    pub willing: bool,
    /// `max-jobs`.
    pub slots: u32,
    /// More, by name.
    pub details: Vec<(String, String)>,
}

/// The answer of a policy.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Decision {
    /// What to do.
    pub action: Action,
    /// One sentence for people: why.
    pub reason: String,
}

/// What to do with a candidate.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub enum Action {
    /// Try these machines, by URI, in this order.
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
    pub fn from_word(word: &str, machines: Vec<String>) -> Result<Self, super::PolicyError> {
        match word {
            "machines" => Ok(Self::Machines(machines)),
            "local" => Ok(Self::Local),
            "postpone" => Ok(Self::Postpone),
            "decline" => Ok(Self::Decline),
            _ => Err(super::PolicyError::Invalid(format!(
                "action `{word}` is none of `machines`, `local`, `postpone`, `decline`"
            ))),
        }
    }
}
