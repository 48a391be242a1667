//! Builder selection: Nix asks where to build a derivation.

use crate::bindings::builder_selection::exports::hookrun::builder_selection::builder_selection as wit;
pub use wit::{Candidate, LocalMachine, Machine};

/// A policy that says where a derivation is built.
///
/// ```
/// use hookrun_sdk::BuilderSelection;
/// use hookrun_sdk::builder_selection::{Candidate, Decision, LocalMachine, Machine};
///
/// struct FirstFree;
///
/// impl BuilderSelection for FirstFree {
///     fn select(_: Candidate, machines: Vec<Machine>, local: LocalMachine) -> Result<Decision, String> {
///         match machines.into_iter().find(|machine| machine.healthy && machine.load < machine.slots) {
///             Some(machine) => Ok(Decision::machines([machine.uri], "the first with a free slot")),
///             None if local.able => Ok(Decision::local("no machine is free")),
///             None => Ok(Decision::postpone("everything is busy")),
///         }
///     }
/// }
/// ```
pub trait BuilderSelection {
    /// Called once per candidate while Nix waits; 2 s by default. `machines` are those whose system and features fit.
    ///
    /// # Errors
    /// A sentence for the log; Nix's own rule then decides, as it does after a trap, a time-out or an invalid answer.
    fn select(candidate: Candidate, machines: Vec<Machine>, local: LocalMachine) -> Result<Decision, String>;
}

/// The answer of a policy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Decision {
    /// Where to build.
    pub action: Action,
    /// One sentence for people: why.
    pub reason: String,
}

/// Where to build.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Try these machines in order, by the URIs they were offered with.
    Machines(Vec<String>),
    /// Here, now or when a slot is free.
    Local,
    /// Ask again later.
    Postpone,
    /// No opinion: Nix builds here if it can.
    Decline,
}

impl Decision {
    /// Try these machines, by URI, best first.
    pub fn machines(uris: impl IntoIterator<Item = impl Into<String>>, reason: impl Into<String>) -> Self {
        Self { action: Action::Machines(uris.into_iter().map(Into::into).collect()), reason: reason.into() }
    }

    /// Build here.
    pub fn local(reason: impl Into<String>) -> Self {
        Self { action: Action::Local, reason: reason.into() }
    }

    /// Ask again later.
    pub fn postpone(reason: impl Into<String>) -> Self {
        Self { action: Action::Postpone, reason: reason.into() }
    }

    /// No opinion.
    pub fn decline(reason: impl Into<String>) -> Self {
        Self { action: Action::Decline, reason: reason.into() }
    }
}

impl From<Decision> for wit::Decision {
    fn from(Decision { action, reason }: Decision) -> Self {
        let (action, machines) = match action {
            Action::Machines(uris) => ("machines", uris),
            Action::Local => ("local", Vec::new()),
            Action::Postpone => ("postpone", Vec::new()),
            Action::Decline => ("decline", Vec::new()),
        };
        Self { action: action.to_owned(), machines, reason }
    }
}
