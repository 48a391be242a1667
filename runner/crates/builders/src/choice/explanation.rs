//! The reason why each machine was or was not taken, for the record. Computed after Nix has its
//! answer, because there may be thousands of machines.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use crate::choice::pool::{Availabilities, Decided, Offered};
use crate::history::{ConsideredMachine, DecisionRow, now_ms};
use hookrun_config::Resources;
use hookrun_nix::machines::MachineLine;
use hookrun_nix::selection::{Candidate, Machine};

/// The data for an explanation.
#[derive(Debug)]
pub(crate) struct Explanation {
    /// The Nix process that asked.
    pub(crate) command: String,
    pub(crate) candidate: Candidate,
    /// Whether this machine had a free slot.
    pub(crate) local_willing: bool,
    pub(crate) machines: Arc<Vec<MachineLine>>,
    /// The configured resources besides slots.
    pub(crate) limits: Resources,
    /// The machines that were offered; none if neither a policy nor a rule was asked.
    pub(crate) offered: Option<Offered>,
    pub(crate) availabilities: Availabilities,
    /// Machines that did not take the build, with the reason.
    pub(crate) skipped: BTreeMap<String, String>,
    pub(crate) decided: Decided,
    /// The machines of the answer, in order.
    pub(crate) ranked: Vec<String>,
    pub(crate) taken: Option<String>,
    /// The answer to Nix.
    pub(crate) answer: String,
    /// The time of the answer, in milliseconds since 1970.
    pub(crate) at_ms: u64,
}

impl Explanation {
    /// Explains an answer that is given now, without a machine.
    pub(crate) fn now(
        command: String,
        candidate: Candidate,
        decided: Decided,
        availabilities: Availabilities,
        answer: &str,
    ) -> Self {
        Self {
            command,
            candidate,
            local_willing: false,
            machines: Arc::default(),
            limits: Resources::default(),
            offered: None,
            availabilities,
            skipped: BTreeMap::new(),
            decided,
            ranked: Vec::new(),
            taken: None,
            answer: answer.to_owned(),
            at_ms: now_ms(),
        }
    }

    /// Returns the row for the database.
    pub(crate) fn row(self) -> DecisionRow {
        let machines = self.verdicts();
        let Self { command, candidate, local_willing, decided, answer, at_ms, .. } = self;
        let Decided { decided_by, decision } = decided;
        DecisionRow {
            at_ms,
            candidate,
            command,
            local_willing,
            decided_by: decided_by.to_string(),
            action: decision.action.as_str().to_owned(),
            reason: decision.reason,
            answer,
            machines,
        }
    }

    /// Returns all machines with the reason why each was or was not taken.
    fn verdicts(&self) -> Vec<ConsideredMachine> {
        let Self { candidate, limits, availabilities, skipped, taken, .. } = self;
        let machines = self.offered.iter().flat_map(|offered| offered.machines.iter()).rev();
        let seen: HashMap<&str, &Machine> =
            machines.map(|machine| (machine.uri.as_str(), machine)).collect();
        let short = |line: &MachineLine| {
            self.offered.as_ref().and_then(|offered| offered.short.get(line.uri.as_str()))
        };
        let takes = limits.takes(&candidate.required_features);
        let places: HashMap<&str, usize> = self
            .ranked
            .iter()
            .enumerate()
            .rev()
            .map(|(place, uri)| (uri.as_str(), place))
            .collect();
        let verdict = |line: &MachineLine| {
            let seen = seen.get(line.uri.as_str()).copied();
            let place = places.get(line.uri.as_str()).copied();
            let is_taken = taken.as_ref() == Some(&line.uri);
            let reason = match (seen, place) {
                _ if !line.fits(&candidate.system, &candidate.required_features) => {
                    misfit(line, candidate)
                }
                _ if let Some(why) = limits.never(&line.uri, &takes) => why,
                _ if skipped.contains_key(line.uri.as_str()) => {
                    skipped.get(line.uri.as_str()).cloned().unwrap_or_default()
                }
                _ if is_taken => "taken".to_owned(),
                _ if !availabilities.is_usable(&line.uri) => availabilities.why_not(&line.uri),
                _ if let Some((left, _)) = short(line) => left.why(),
                (Some(machine), Some(_)) if !machine.has_free_slot() => "full".to_owned(),
                (_, Some(_)) => "another machine was better or had a free slot first".to_owned(),
                (Some(machine), None) if !machine.has_free_slot() => {
                    "full, and not chosen".to_owned()
                }
                (_, None) => "not chosen".to_owned(),
            };
            ConsideredMachine {
                machine: line.uri.clone(),
                slots: line.max_jobs,
                load: short(line)
                    .map_or_else(|| seen.map_or(0, |machine| machine.load), |(_, load)| *load),
                speed_factor: line.speed_factor,
                missing_bytes: seen.and_then(|machine| machine.missing_bytes),
                rank: place.and_then(|place| u32::try_from(place + 1).ok()),
                taken: is_taken,
                reason,
            }
        };
        self.machines.iter().map(verdict).collect()
    }
}

/// Returns the reason why a machine does not fit.
fn misfit(line: &MachineLine, candidate: &Candidate) -> String {
    let missing: Vec<&str> = candidate
        .required_features
        .iter()
        .filter(|feature| {
            !line.supported_features.contains(*feature)
                && !line.mandatory_features.contains(*feature)
        })
        .map(String::as_str)
        .collect();
    if !line.fits(&candidate.system, &[]) && line.mandatory_features.is_empty() {
        format!("it builds for {}, not for {}", line.systems.join(", "), candidate.system)
    } else if !missing.is_empty() {
        format!("it lacks the features {}", missing.join(", "))
    } else if line.systems.contains(&candidate.system) {
        let mandatory: Vec<&str> = line.mandatory_features.iter().map(String::as_str).collect();
        format!("it is kept for derivations that require {}", mandatory.join(", "))
    } else {
        format!("it builds for {}, not for {}", line.systems.join(", "), candidate.system)
    }
}
