//! Builder selection: Nix asks where to build a derivation.

use std::time::Duration;

use crate::bindings::builder_selection::exports::hookrun::builder_selection::builder_selection as wit;
pub use wit::{Candidate, LocalMachine, Machine, PastBuilds};

/// A policy that decides where a derivation is built.
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
    /// Chooses where to build the candidate. Called once per candidate while Nix is blocked, for at
    /// most 2 s by default. `machines` are those whose system and features fit.
    ///
    /// # Errors
    /// The message is written to the log, and Nix's own rule is used, as after a trap, a timeout or
    /// an invalid decision.
    fn select(
        candidate: Candidate,
        machines: Vec<Machine>,
        local: LocalMachine,
    ) -> Result<Decision, String>;
}

impl Machine {
    /// Returns an idle machine for tests, with one slot and speed factor 1.
    ///
    /// ```
    /// use hookrun_sdk::builder_selection::Machine;
    ///
    /// assert!(Machine::named("ssh://fast").healthy);
    /// ```
    pub fn named(uri: impl Into<String>) -> Self {
        let uri = uri.into();
        Self { uri, slots: 1, speed_factor: 1.0, healthy: true, ..Self::default() }
    }

    /// Returns the host name in the store URI: `fast1` for `ssh-ng://me@fast1:22?compress=true`. It
    /// is empty for a URI without a host, such as that of a local store.
    ///
    /// ```
    /// use hookrun_sdk::builder_selection::Machine;
    ///
    /// let machine = Machine { uri: "ssh-ng://me@fast1:22?compress=true".into(), ..Machine::default() };
    /// assert_eq!(machine.host(), "fast1");
    /// ```
    pub fn host(&self) -> &str {
        let rest = self.uri.split_once("://").map_or("", |(_, rest)| rest);
        let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
        let host = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
        match host.strip_prefix('[').and_then(|host| host.split_once(']')) {
            Some((address, _)) => address,
            None => host.split_once(':').map_or(host, |(host, _)| host),
        }
    }
}

/// The decision of a policy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Decision {
    /// Where to build.
    pub action: Action,
    /// The reason, in one sentence for users.
    pub reason: String,
    /// The longest time before the policy is asked again; `None` for no limit.
    pub ask_again: Option<Duration>,
}

/// Where to build.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Build on one of these machines, in order, named by the URIs with which they were offered.
    /// The first with a free slot is used. If all are full, the build waits for one of them. Other
    /// machines are used only if all of these are lost, refuse the build, or are out.
    Machines(Vec<String>),
    /// Build on this machine, now or when a slot is free.
    Local,
    /// Ask again later.
    Postpone,
    /// No preference: Nix builds on this machine if it can.
    Decline,
}

impl Decision {
    fn new(action: Action, reason: impl Into<String>) -> Self {
        Self { action, reason: reason.into(), ask_again: None }
    }

    /// Returns a decision to build on one of these machines, given by URI, best first.
    pub fn machines(
        uris: impl IntoIterator<Item = impl Into<String>>,
        reason: impl Into<String>,
    ) -> Self {
        Self::new(Action::Machines(uris.into_iter().map(Into::into).collect()), reason)
    }

    /// Returns a decision to build on this machine.
    pub fn local(reason: impl Into<String>) -> Self {
        Self::new(Action::Local, reason)
    }

    /// Returns a decision to ask again later.
    pub fn postpone(reason: impl Into<String>) -> Self {
        Self::new(Action::Postpone, reason)
    }

    /// Returns a decision without a preference.
    pub fn decline(reason: impl Into<String>) -> Self {
        Self::new(Action::Decline, reason)
    }

    /// Sets the longest time before the policy is asked again.
    #[must_use]
    pub fn ask_again(mut self, within: Duration) -> Self {
        self.ask_again = Some(within);
        self
    }
}

impl From<Decision> for wit::Decision {
    fn from(Decision { action, reason, ask_again }: Decision) -> Self {
        let (action, machines) = match action {
            Action::Machines(uris) => ("machines", uris),
            Action::Local => ("local", Vec::new()),
            Action::Postpone => ("postpone", Vec::new()),
            Action::Decline => ("decline", Vec::new()),
        };
        let ask_again_ms =
            ask_again.map(|within| u64::try_from(within.as_millis()).unwrap_or(u64::MAX));
        Self { action: action.to_owned(), machines, reason, ask_again_ms }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_host_of_a_store_uri() {
        for (uri, host) in [
            ("ssh://fast", "fast"),
            ("ssh-ng://me@fast1:22?compress=true", "fast1"),
            ("ssh://me@[2001:db8::1]:22", "2001:db8::1"),
            ("daemon", ""),
            ("local?root=/tmp/a@b", ""),
        ] {
            let machine = Machine { uri: uri.to_owned(), ..Machine::default() };
            assert_eq!(machine.host(), host, "{uri}");
        }
    }
}
