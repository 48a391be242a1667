//! The machines of one session: which fit, how they stand, what the policy is told of them, and
//! what it answered.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::Path;
use std::sync::Arc;

use super::asker::Asker;
use super::health::{Probe, Standing, standing};
use super::lease::{self, Activity, Wanted};
use super::load::SlotFiles;
use super::memory::Memory;
use super::policy::StockRule;
use super::record::{MachineHealth, Past, now_ms};
use super::resources::{Account, Left};
use super::settings::Settings;
use hookrun_config::Resources;
use hookrun_nix::database::Inputs;
use hookrun_nix::machines::MachineLine;
use hookrun_nix::selection::PolicyError;
use hookrun_nix::selection::{Candidate, Decision, LocalMachine, Machine};
use hookrun_nix::shared::Text;

/// What the settings say, worked out once.
pub struct Pool {
    /// Nix's settings.
    pub settings: Settings,
    /// All machines. Shared, because there may be thousands.
    pub machines: Arc<Vec<MachineLine>>,
    /// Nix's slot files.
    pub slot_files: SlotFiles,
    /// Indexes of machines that failed in this session.
    pub failed: BTreeSet<usize>,
    /// Derivations that the policy has postponed in this session, since when in milliseconds since
    /// 1970.
    pub postponed: HashMap<String, u64>,
    /// The policy's failure has been told.
    pub told: bool,
    /// What builds take besides a slot.
    pub limits: Resources,
}

/// What a build needs, and what of it is on which machine.
#[derive(Debug, Clone, Default)]
pub struct Present {
    /// What it needs.
    pub inputs: Inputs,
    /// Bytes of the largest of that, by store URI; none of machines that nothing is known of.
    on: BTreeMap<String, u64>,
}

impl Present {
    /// Of `inputs`, as far as it is remembered.
    pub fn of(inputs: Inputs, memory: &mut Memory) -> Self {
        let on = if inputs.largest.is_empty() {
            BTreeMap::new()
        } else {
            memory.bytes_present(&inputs.largest)
        };
        Self { inputs, on }
    }

    /// What is not on this machine, in bytes. Small inputs are taken to be where the large ones
    /// are.
    fn missing(&self, uri: &str) -> Option<u64> {
        let largest: u64 = self.inputs.largest.iter().map(|(_, size)| size).sum();
        self.on.get(uri).map(|present| largest.saturating_sub(*present))
    }
}

/// Machines as a policy sees them.
#[derive(Debug)]
pub struct Offered {
    /// In the order of the setting `builders`. Shared with the policy's thread.
    pub machines: Arc<[Machine]>,
    /// Those that have a slot free and not what else the build takes: offered as full. With the
    /// slots that are busy.
    pub(super) short: HashMap<Text, (Left, u32)>,
}

/// How machines stand for one candidate.
#[derive(Debug)]
pub struct Standings {
    health: BTreeMap<String, MachineHealth>,
    /// Of those that something is known of.
    by_uri: HashMap<Text, Standing>,
    /// Machines that are due, and that this session may try. Kept until it is known what came of
    /// it. `None`: it was handed on.
    probes: BTreeMap<Text, Option<Probe>>,
}

impl Standings {
    /// Of `machines`, now.
    pub fn of<'a>(machines: impl Iterator<Item = &'a MachineLine>, memory: &mut Memory) -> Self {
        let (health, now) = (memory.machines(), now_ms());
        let mut by_uri = HashMap::new();
        let mut probes = BTreeMap::new();
        for line in machines {
            // There may be thousands, and of most nothing is known.
            let Some(known) = health.get(line.uri.as_str()) else { continue };
            let found = standing(Some(known), now);
            if found == Standing::Due
                && let Some(probe) = Probe::take(memory.directory(), &line.uri)
            {
                probes.insert(line.uri.clone(), Some(probe));
            }
            by_uri.insert(line.uri.clone(), found);
        }
        Self { health, by_uri, probes }
    }

    /// How it stands.
    pub fn standing(&self, uri: &str) -> Standing {
        self.by_uri.get(uri).copied().unwrap_or(Standing::Unknown)
    }

    /// May this session use it?
    pub fn is_usable(&self, uri: &str) -> bool {
        match self.standing(uri) {
            Standing::Proven | Standing::Unknown => true,
            Standing::Due => self.probes.contains_key(uri),
            Standing::Out { .. } => false,
        }
    }

    /// The right to try `uri`, if it is due, for who connects to it later.
    pub fn take_probe(&mut self, uri: &str) -> Option<Probe> {
        self.probes.get_mut(uri)?.take()
    }

    /// The first time that one of `uris` is tried again, in seconds from now.
    pub fn soonest_seconds<'a>(&self, uris: impl Iterator<Item = &'a str>) -> Option<u64> {
        let out = uris.filter_map(|uri| match self.standing(uri) {
            Standing::Out { ms } => Some(ms.div_ceil(1000)),
            Standing::Proven | Standing::Unknown | Standing::Due => None,
        });
        out.min()
    }

    /// Why it is not usable.
    pub fn why_not(&self, uri: &str) -> String {
        let Some(health) = self.health.get(uri) else { return "out".to_owned() };
        let why = health.last_error.as_deref().unwrap_or("no reason known");
        match self.standing(uri) {
            Standing::Out { ms } => {
                format!(
                    "out for {} s more after {} failures in a row: {why}",
                    ms.div_ceil(1000),
                    health.failures
                )
            }
            _ => format!("another build tries whether it is back: {why}"),
        }
    }
}

/// What the policy was told of the machines, and who decided what.
#[derive(Debug)]
pub struct Decided {
    /// Who.
    pub decided_by: String,
    /// What.
    pub decision: Decision,
}

impl Pool {
    /// Indexes of the machines that can take the candidate and have not failed.
    pub fn fitting(&self, candidate: &Candidate) -> Vec<usize> {
        let takes = self.limits.takes(&candidate.required_features);
        let fits = |(index, machine): &(usize, &MachineLine)| {
            !self.failed.contains(index)
                && machine.fits(&candidate.system, &candidate.required_features)
                && self.limits.never(&machine.uri, &takes).is_none()
        };
        self.machines.iter().enumerate().filter(fits).map(|(index, _)| index).collect()
    }

    /// The same machines, for a question that is asked later.
    #[must_use]
    pub fn clone_for_asking(&self) -> Self {
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

    /// The first machine with this URI among `fitting`. Two lines with one URI share their slots,
    /// in Nix too.
    pub fn index_of(&self, uri: &str, fitting: &[usize]) -> Option<usize> {
        fitting
            .iter()
            .copied()
            .find(|index| self.machines.get(*index).is_some_and(|line| line.uri == uri))
    }

    /// Machines to wait for, by URI.
    pub fn wanted(&self, uris: &[Text], fitting: &[usize]) -> Vec<Wanted> {
        wanted(fitting.iter().filter_map(|index| self.machines.get(*index)), uris)
    }

    /// Those machines with their load, as a policy sees them.
    pub fn offered(
        &self,
        candidate: &Candidate,
        fitting: &[usize],
        standings: &Standings,
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
            let health = standings.health.get(line.uri.as_str());
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
                healthy: standings.is_usable(&line.uri),
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

    /// Asks the policy, or Nix's own rule in its place, which sees only usable machines. The second
    /// value is what to tell about a policy that failed, once.
    pub fn decide(
        &mut self,
        candidate: &Candidate,
        offered: &Arc<[Machine]>,
        local: &LocalMachine,
        policy: Option<&mut Asker>,
    ) -> (Decided, Option<String>) {
        let mut tell = None;
        let decided_by = match policy.map(|policy| policy.ask(candidate, offered, local)) {
            Some(Ok(decision)) => {
                return (Decided { decided_by: "policy".to_owned(), decision }, None);
            }
            Some(Err(PolicyError::Nobody)) | None => "Nix's rule".to_owned(),
            Some(Err(error)) => {
                let is_news = !matches!(error, PolicyError::Unready(_))
                    && !std::mem::replace(&mut self.told, true);
                tell = is_news.then(|| failed_policy(&error));
                format!("Nix's rule, because the policy gave no answer ({error})")
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

    /// Why no machine is left, in one line.
    pub fn nobody(&self, candidate: &Candidate) -> String {
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

/// Those of `uris` that are among `machines`, with their slots. Of two lines with one URI the first
/// counts.
pub fn wanted<'a>(machines: impl Iterator<Item = &'a MachineLine>, uris: &[Text]) -> Vec<Wanted> {
    let mut slots: HashMap<&str, Option<u32>> =
        uris.iter().map(|uri| (uri.as_str(), None)).collect();
    let mut unknown = slots.len();
    for line in machines {
        if let Some(slots @ None) = slots.get_mut(line.uri.as_str()) {
            *slots = Some(line.max_jobs);
            unknown -= 1;
        }
        // There may be thousands of machines, and a few wanted.
        if unknown == 0 {
            break;
        }
    }
    let wanted =
        |uri: &Text| Some(Wanted { machine: uri.clone(), slots: (*slots.get(uri.as_str())?)? });
    uris.iter().filter_map(wanted).collect()
}

fn failed_policy(error: &PolicyError) -> String {
    format!("the builder-selection policy gave no answer ({error}); Nix's own rule is used")
}

/// Seconds until the builds of sessions should end, by machine, the soonest first.
fn busy_seconds(builders: &Path) -> BTreeMap<Text, Vec<f64>> {
    let now = now_ms();
    let mut busy: BTreeMap<Text, Vec<f64>> = BTreeMap::new();
    for live in lease::live(&lease::directory(builders)) {
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
