//! Errors and warnings that Nix's own hook prints before its answer.

use crate::run::stock::Offer;
use crate::run::stock_output::{is_about_machine, plain};

/// The number of lines of ssh that are reported for a machine that cannot be reached; these are the
/// last ones.
const SSH_LINES: usize = 3;

/// Errors and warnings of the stock hook before its answer, held back until it is known whether
/// they matter.
#[derive(Debug, Default)]
pub(super) struct Complaints {
    /// The error about the machine.
    machine: Option<String>,
    /// The first error that is not about the machine.
    error: Option<String>,
    /// The first warning.
    warning: Option<String>,
    /// The last lines that are not from Nix. With `ssh-ng://` the output of ssh is separate.
    ssh: Vec<String>,
    /// All messages, unchanged, for a machine that is used nevertheless.
    pub(super) lines: Vec<Vec<u8>>,
}

impl Complaints {
    /// Keeps an error or a warning of the stock hook. Returns `false` for every other line.
    pub(super) fn takes(&mut self, line: &[u8]) -> bool {
        let Some(json) = line.strip_prefix(b"@nix ".as_slice()) else {
            self.ssh.push(plain(&String::from_utf8_lossy(line)));
            self.ssh.retain(|line| !line.is_empty());
            self.ssh.drain(..self.ssh.len().saturating_sub(SSH_LINES));
            return false;
        };
        let Ok(message) = serde_json::from_slice::<serde_json::Value>(json) else { return false };
        if message.get("action").and_then(|action| action.as_str()) != Some("msg") {
            return false;
        }
        let text = message
            .get("raw_msg")
            .or_else(|| message.get("msg"))
            .and_then(|text| text.as_str())
            .unwrap_or_default();
        let place = match message.get("level").and_then(serde_json::Value::as_u64) {
            Some(0) if is_about_machine(text) => &mut self.machine,
            Some(0) => &mut self.error,
            Some(1) => &mut self.warning,
            _ => return false,
        };
        place.get_or_insert_with(|| plain(text));
        self.lines.push(line.to_vec());
        true
    }

    /// Returns the error about the machine, with the reason from ssh.
    pub(super) fn of_machine(self) -> Option<String> {
        let why = self.machine?;
        let said = self.ssh.into_iter().filter(|line| !why.contains(line.as_str()));
        let said = said.collect::<Vec<_>>().join("; ");
        Some(if said.is_empty() { why } else { format!("{why}: {said}") })
    }

    /// Returns the result for a hook that has `done` this instead of answering. The machine is not
    /// the cause, because the hook prints an error about a machine that it cannot use, and
    /// declines.
    pub(super) fn without_answer(self, done: &str) -> Offer {
        if self.machine.is_some() {
            return self.of_machine().map_or(Offer::Full, Offer::Failed);
        }
        let said = self.error.or(self.warning);
        Offer::Here(said.unwrap_or_else(|| format!("Nix's own build hook {done}")))
    }
}
