//! The machines of one session: which of them fit a candidate, their health, their state as a
//! policy gets it, and the decision.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt;
use std::path::Path;
use std::sync::Arc;

use crate::choice::health::{Availability, Probe, availability};
use crate::choice::policy::StockRule;
use crate::choice::policy_thread::PolicyThread;
use crate::history::History;
use crate::history::{MachineHealth, Past, now_ms};
use crate::protocol::settings::Settings;
use crate::slots::reservations::{Account, ResourceUse};
use crate::slots::sessions::{self, Activity, WantedMachine};
use crate::slots::slot_files::SlotFiles;
use hookrun_config::Resources;
use hookrun_nix::database::Inputs;
use hookrun_nix::machines::MachineLine;
use hookrun_nix::selection::PolicyError;
use hookrun_nix::selection::{Candidate, Decision, LocalMachine, Machine};

/// The values that follow from the settings of one session.
pub(crate) struct Pool {
    pub(crate) settings: Settings,
    /// All machines. Shared, because there may be thousands.
    pub(crate) machines: Arc<Vec<MachineLine>>,
    pub(crate) slot_files: SlotFiles,
    /// Indexes of machines that failed in this session.
    pub(crate) failed: BTreeSet<usize>,
    /// Derivations that the policy has postponed in this session, each with the first time, in
    /// milliseconds since 1970.
    pub(crate) postponed: HashMap<String, u64>,
    /// Whether the failure of the policy was reported.
    pub(crate) told: bool,
    /// The configured resources besides slots.
    pub(crate) limits: Resources,
}

/// The inputs of a build, and the part of them that each machine has.
#[derive(Debug, Clone, Default)]
pub(crate) struct Present {
    pub(crate) inputs: Inputs,
    /// The size of the largest inputs on each machine, by store URI. Unknown machines are missing.
    on: BTreeMap<String, u64>,
}

impl Present {
    /// Looks up which machines have `inputs`.
    pub(crate) fn of(inputs: Inputs, history: &mut History) -> Self {
        let on = if inputs.largest.is_empty() {
            BTreeMap::new()
        } else {
            history.bytes_present(&inputs.largest)
        };
        Self { inputs, on }
    }

    /// Returns the number of bytes that this machine does not have. Small inputs are assumed to be
    /// where the large ones are.
    fn missing(&self, uri: &str) -> Option<u64> {
        let largest: u64 = self.inputs.largest.iter().map(|(_, size)| size).sum();
        self.on.get(uri).map(|present| largest.saturating_sub(*present))
    }
}

/// Machines as a policy gets them.
#[derive(Debug)]
pub(crate) struct Offered {
    /// The machines in the order of the setting `builders`. Shared with the policy's thread.
    pub(crate) machines: Arc<[Machine]>,
    /// Machines that have a free slot but lack another resource that the build needs, with their
    /// busy slots. They are offered as full.
    pub(crate) short: HashMap<String, (ResourceUse, u32)>,
}

/// The health of machines for one candidate.
#[derive(Debug)]
pub(crate) struct Availabilities {
    health: BTreeMap<String, MachineHealth>,
    /// Machines of which nothing is known are missing.
    by_uri: HashMap<String, Availability>,
    /// The right to try machines that are due, kept until the result is known. `None`: it was taken
    /// by [`Availabilities::take_probe`].
    probes: BTreeMap<String, Option<Probe>>,
}

impl Availabilities {
    /// Reads the availability of `machines`.
    pub(crate) fn of<'a>(
        machines: impl Iterator<Item = &'a MachineLine>,
        history: &mut History,
    ) -> Self {
        let (health, now) = (history.machines(), now_ms());
        let mut by_uri = HashMap::new();
        let mut probes = BTreeMap::new();
        for line in machines {
            // There may be thousands of machines, and most of them are unknown.
            let Some(known) = health.get(line.uri.as_str()) else { continue };
            let found = availability(Some(known), now);
            if found == Availability::Due
                && let Some(probe) = Probe::take(history.directory(), &line.uri)
            {
                probes.insert(line.uri.clone(), Some(probe));
            }
            by_uri.insert(line.uri.clone(), found);
        }
        Self { health, by_uri, probes }
    }

    pub(crate) fn get(&self, uri: &str) -> Availability {
        self.by_uri.get(uri).copied().unwrap_or(Availability::Unknown)
    }

    /// Returns whether this session may use the machine.
    pub(crate) fn is_usable(&self, uri: &str) -> bool {
        match self.get(uri) {
            Availability::Proven | Availability::Unknown => true,
            Availability::Due => self.probes.contains_key(uri),
            Availability::Out { .. } => false,
        }
    }

    /// Takes the right to try a machine that is due.
    pub(crate) fn take_probe(&mut self, uri: &str) -> Option<Probe> {
        self.probes.get_mut(uri)?.take()
    }

    /// Returns the number of seconds until the first of `uris` is tried again.
    pub(crate) fn soonest_seconds<'a>(&self, uris: impl Iterator<Item = &'a str>) -> Option<u64> {
        let out = uris.filter_map(|uri| match self.get(uri) {
            Availability::Out { ms } => Some(ms.div_ceil(1000)),
            Availability::Proven | Availability::Unknown | Availability::Due => None,
        });
        out.min()
    }

    /// Returns why the machine may not be used.
    pub(crate) fn why_not(&self, uri: &str) -> String {
        let Some(health) = self.health.get(uri) else { return "out".to_owned() };
        let why = health.last_error.as_deref().unwrap_or("the reason is not known");
        match self.get(uri) {
            Availability::Out { ms } => {
                format!(
                    "out for {} more s after {} failures in a row: {why}",
                    ms.div_ceil(1000),
                    health.failures
                )
            }
            _ => format!("another build is testing whether it works again: {why}"),
        }
    }
}

/// A decision, and its origin.
#[derive(Debug)]
pub(crate) struct Decided {
    pub(crate) decided_by: DecidedBy,
    pub(crate) decision: Decision,
}

/// The origin of a decision. Displayed as the text for the record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum DecidedBy {
    Policy,
    /// Nix's rule, with the policy's error if the policy gave no answer.
    StockRule(Option<PolicyError>),
    /// The health of the machines, because all of them are out.
    Health,
}

impl fmt::Display for DecidedBy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Policy => f.write_str("policy"),
            Self::StockRule(None) => f.write_str("Nix's rule"),
            Self::StockRule(Some(error)) => {
                write!(f, "Nix's rule, because the policy gave no answer ({error})")
            }
            Self::Health => f.write_str("health of machines"),
        }
    }
}

impl Pool {
    /// Returns the indexes of the machines that can build the candidate and have not failed.
    pub(crate) fn fitting(&self, candidate: &Candidate) -> Vec<usize> {
        let takes = self.limits.takes(&candidate.required_features);
        let fits = |(index, machine): &(usize, &MachineLine)| {
            !self.failed.contains(index)
                && machine.fits(&candidate.system, &candidate.required_features)
                && self.limits.never(&machine.uri, &takes).is_none()
        };
        self.machines.iter().enumerate().filter(fits).map(|(index, _)| index).collect()
    }

    /// Copies the values that are needed to ask the policy again after an accept.
    #[must_use]
    pub(crate) fn clone_for_asking(&self) -> Self {
        Self {
            settings: self.settings.clone(),
            machines: Arc::clone(&self.machines),
            slot_files: self.slot_files.clone(),
            failed: self.failed.clone(),
            postponed: HashMap::new(),
            told: true,
            limits: self.limits.clone(),
        }
    }

    /// Returns the machines at `fitting` with their load, as a policy gets them.
    pub(crate) fn offered(
        &self,
        candidate: &Candidate,
        fitting: &[usize],
        availabilities: &Availabilities,
        past: &Past,
        present: &Present,
        builders: &Path,
    ) -> Offered {
        let takes = self.limits.takes(&candidate.required_features);
        let account = Account::now(&self.limits, builders);
        let mut short = HashMap::new();
        let lines: Vec<&MachineLine> =
            fitting.iter().filter_map(|index| self.machines.get(*index)).collect();
        let loads =
            self.slot_files.loads(lines.iter().map(|line| (line.uri.as_str(), line.max_jobs)));
        let mut busy = busy_seconds(builders);
        let machine = |(line, load): (&MachineLine, u32)| {
            let health = availabilities.health.get(line.uri.as_str());
            let load = match account.short(&line.uri, &takes) {
                Some(left) if load < line.max_jobs => {
                    short.insert(line.uri.clone(), (left, load));
                    line.max_jobs
                }
                _ => load,
            };
            Machine {
                uri: line.uri.clone(),
                slots: line.max_jobs,
                load,
                speed_factor: line.speed_factor,
                supported_features: line.supported_features.clone(),
                mandatory_features: line.mandatory_features.clone(),
                healthy: availabilities.is_usable(&line.uri),
                connect_ms: health.and_then(|health| health.connect_ms),
                past: past.machines.get(line.uri.as_str()).copied(),
                busy_seconds: busy.remove(&line.uri).unwrap_or_default(),
                missing_bytes: present.missing(&line.uri),
                bytes_per_second: health.and_then(|health| health.bytes_per_second),
                ..Machine::default()
            }
        };
        let machines = lines.into_iter().zip(loads).map(machine).collect();
        Offered { machines, short }
    }

    /// Asks the policy. If it gives no answer, Nix's own rule decides among the usable machines.
    /// The second value is a message about a policy that failed; there is one in each session.
    pub(crate) fn decide(
        &mut self,
        candidate: &Candidate,
        offered: &Arc<[Machine]>,
        local: &LocalMachine,
        policy: Option<&mut PolicyThread>,
    ) -> (Decided, Option<String>) {
        let mut tell = None;
        let decided_by = match policy.map(|policy| policy.ask(candidate, offered, local)) {
            Some(Ok(decision)) => {
                return (Decided { decided_by: DecidedBy::Policy, decision }, None);
            }
            Some(Err(PolicyError::NoPolicy)) | None => DecidedBy::StockRule(None),
            Some(Err(error)) => {
                let is_news = !matches!(error, PolicyError::NotReady(_))
                    && !std::mem::replace(&mut self.told, true);
                tell = is_news.then(|| failed_policy(&error));
                DecidedBy::StockRule(Some(error))
            }
        };
        let rule = StockRule { division: self.settings.division() };
        let healthy = offered.iter().filter(|machine| machine.healthy).count();
        let decision = if healthy == 0 || healthy == offered.len() {
            rule.decide(candidate, offered, local)
        } else {
            let healthy: Vec<Machine> =
                offered.iter().filter(|machine| machine.healthy).cloned().collect();
            rule.decide(candidate, &healthy, local)
        };
        (Decided { decided_by, decision }, tell)
    }

    /// Returns a message that no machine is left.
    pub(crate) fn nobody(&self, candidate: &Candidate) -> String {
        let Candidate { name, system, required_features, .. } = candidate;
        let features = if required_features.is_empty() {
            "no features".to_owned()
        } else {
            required_features.join(", ")
        };
        let (all, failed) = (self.machines.len(), self.failed.len());
        format!(
            "no machine can take {name} ({system}, {features}): of {all}, {failed} cannot be used and {} do not fit",
            all - failed
        )
    }
}

/// Returns those of `uris` that are among `machines`, with their slots. If two lines have the same
/// URI, the first counts.
pub(crate) fn wanted<'a>(
    machines: impl Iterator<Item = &'a MachineLine>,
    uris: &[String],
) -> Vec<WantedMachine> {
    let mut slots: HashMap<&str, Option<u32>> =
        uris.iter().map(|uri| (uri.as_str(), None)).collect();
    let mut unknown = slots.len();
    for line in machines {
        if let Some(slots @ None) = slots.get_mut(line.uri.as_str()) {
            *slots = Some(line.max_jobs);
            unknown -= 1;
        }
        // There may be thousands of machines, but only a few wanted ones.
        if unknown == 0 {
            break;
        }
    }
    let wanted = |uri: &String| {
        Some(WantedMachine { machine: uri.clone(), slots: (*slots.get(uri.as_str())?)? })
    };
    uris.iter().filter_map(wanted).collect()
}

fn failed_policy(error: &PolicyError) -> String {
    format!("the builder-selection policy gave no answer ({error}); Nix's own rule is used")
}

/// Returns the seconds until the builds of sessions should end, by machine, the soonest first.
fn busy_seconds(builders: &Path) -> BTreeMap<String, Vec<f64>> {
    let now = now_ms();
    let mut busy: BTreeMap<String, Vec<f64>> = BTreeMap::new();
    for live in sessions::live(&sessions::directory(builders)) {
        if let (Activity::Building(machine), Some(expected)) =
            (live.activity, live.expected_seconds)
        {
            let passed =
                std::time::Duration::from_millis(now.saturating_sub(live.since_ms)).as_secs_f64();
            busy.entry(machine).or_default().push((expected - passed).max(0.0));
        }
    }
    for seconds in busy.values_mut() {
        seconds.sort_by(f64::total_cmp);
    }
    busy
}
