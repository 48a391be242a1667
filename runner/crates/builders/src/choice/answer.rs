//! The answers to a candidate.

use crate::run::delegate::{Accepted, First};

/// The answer to a candidate.
pub(crate) enum Answer {
    /// The build goes to a machine, now or when a slot is free.
    Accepted(Box<Accepted>),
    /// Nix builds on this machine, if it can.
    Declined(NotAccepted),
    /// Nix asks again later.
    Postponed(NotAccepted),
    /// There are no machines: Nix does not ask again in this command.
    Never,
}

/// The reason why a candidate is not accepted.
pub(crate) enum NotAccepted {
    /// The policy or Nix's rule has decided so.
    Decided,
    SlotsTaken,
    /// Nix's own hook fails on this machine, with the reason.
    HookFails(String),
}

impl Answer {
    /// Returns the text for the record.
    pub(super) fn text(&self) -> String {
        match self {
            Self::Accepted(accepted) => match accepted.first {
                First::Connected(_) => "accept, after connecting".to_owned(),
                First::Slot { .. } => "accept, before connecting".to_owned(),
                First::Queue => "accept: it waits for a slot".to_owned(),
            },
            Self::Declined(NotAccepted::Decided) => "decline".to_owned(),
            Self::Declined(NotAccepted::SlotsTaken) => {
                "decline: every slot is taken, and this machine is free".to_owned()
            }
            Self::Declined(NotAccepted::HookFails(why)) => {
                format!("decline: {}", cannot_start(why))
            }
            Self::Postponed(NotAccepted::Decided) => "postpone".to_owned(),
            Self::Postponed(NotAccepted::SlotsTaken) => "postpone: every slot is taken".to_owned(),
            Self::Postponed(NotAccepted::HookFails(why)) => {
                format!("postpone: {}", cannot_start(why))
            }
            Self::Never => "decline-permanently".to_owned(),
        }
    }

    /// Returns the machine that was taken.
    pub(super) fn taken(&self) -> Option<String> {
        let Self::Accepted(accepted) = self else { return None };
        match &accepted.first {
            First::Connected(connected) => Some(connected.machine.clone()),
            First::Slot { machine, .. } => Some(machine.clone()),
            First::Queue => None,
        }
    }
}

/// Describes a failure of Nix's own hook on this machine.
pub(super) fn cannot_start(why: &str) -> String {
    format!("this machine cannot start remote builds: {why}")
}
