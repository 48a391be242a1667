//! The rules that a simulation compares: Nix's own, and a policy with hookrun's queue.

use super::engine::{Placement, Rule};
use super::view::{MachineView, View};
use hookrun_builders::choice::policy::{Policy, StockRule};
use hookrun_builders::slots::assignment::waits_for_resources;
use hookrun_config::Amounts;
use hookrun_nix::selection::{Action, Candidate, LocalMachine, Machine};

/// Nix's own build hook: chooses the best machine with a free slot, or postpones.
#[derive(Debug, Clone, Copy, Default)]
pub struct Stock(pub StockRule);

impl Rule for Stock {
    fn offered(&mut self, view: &View<'_>, id: usize) -> Placement {
        let mut indexes = Vec::new();
        let mut machines = Vec::new();
        for index in (0..view.machines()).filter(|index| view.fits(*index, id)) {
            if let Some(MachineView { slots, load, speed_factor, .. }) = view.machine(index) {
                indexes.push(index);
                machines.push(Machine { slots, load, speed_factor, ..Machine::default() });
            }
        }
        let best = self.0.ranked(&machines).first().and_then(|best| indexes.get(*best).copied());
        best.map_or(Placement::Postpone, Placement::On)
    }

    fn freed(&mut self, _: &View<'_>, _: usize) -> Option<usize> {
        None
    }
}

/// A policy with the queue in which builds wait for a slot.
pub struct Queued<'a> {
    policy: &'a dyn Policy,
    waiting: Vec<Waiting>,
    arrived: u64,
    /// The first error of the policy.
    pub problem: Option<String>,
}

struct Waiting {
    id: usize,
    depth: u32,
    expected: Option<f64>,
    arrived: u64,
    /// The time of the last question, in seconds.
    since: f64,
    command: String,
    machines: Vec<usize>,
    takes: Amounts,
}

impl Waiting {
    /// Whether its resources are kept free for it.
    fn is_kept_for(&self, view: &View<'_>) -> bool {
        let with_slot = self
            .machines
            .iter()
            .filter(|machine| view.free(**machine))
            .filter_map(|machine| view.name(*machine));
        waits_for_resources(
            &self.takes,
            milliseconds(view.now() - self.since),
            with_slot,
            view.account(),
        )
    }
}

impl<'a> Queued<'a> {
    /// Returns whether the resources of `build` are free on `machine` and not reserved for an older
    /// build.
    fn may_have(&self, view: &View<'_>, build: &Waiting, machine: usize) -> bool {
        let name = view.name(machine).unwrap_or_default();
        let gives_way = |older: &&Waiting| {
            older.arrived < build.arrived
                && older.machines.contains(&machine)
                && view.account().compete(name, &build.takes, &older.takes)
                && older.is_kept_for(view)
        };
        view.has_room(machine, &build.takes) && !self.waiting.iter().any(|older| gives_way(&older))
    }

    /// Returns a rule with an empty queue.
    pub fn new(policy: &'a dyn Policy) -> Self {
        Self { policy, waiting: Vec::new(), arrived: 0, problem: None }
    }
}

/// Returns a build as a policy gets it in the simulation.
pub fn question(
    view: &View<'_>,
    id: usize,
    waiting: usize,
) -> Option<(Candidate, Vec<usize>, Vec<Machine>, LocalMachine)> {
    let derivation = view.derivation(id)?;
    let candidate = Candidate {
        drv_path: format!("/nix/store/{id:0>32}-{}.drv", derivation.pname),
        name: derivation.pname.to_owned(),
        pname: derivation.pname.to_owned(),
        system: derivation.system.unwrap_or("x86_64-linux").to_owned(),
        required_features: derivation.features.to_vec(),
        builtin: derivation.system == Some("builtin"),
        expected_seconds: derivation.expected,
        dependents_depth: Some(derivation.depth),
        ..Candidate::default()
    };
    let takes = view.takes(id);
    let mut indexes = Vec::new();
    let mut machines = Vec::new();
    for index in (0..view.machines()).filter(|index| view.fits(*index, id)) {
        let Some(machine) = view.machine(index) else { continue };
        indexes.push(index);
        machines.push(Machine {
            uri: machine.name.into(),
            slots: machine.slots,
            // As in the hook, a machine without enough resources is offered as full.
            load: if view.has_room(index, &takes) { machine.load } else { machine.slots },
            speed_factor: machine.speed_factor,
            supported_features: machine.features.to_vec(),
            mandatory_features: machine.mandatory_features.to_vec(),
            busy_seconds: view.busy_seconds(index),
            missing_bytes: Some(bytes(view.missing_mb(index, id))),
            bytes_per_second: Some(machine.mb_per_s * 1e6),
            ..Machine::default()
        });
    }
    let local = LocalMachine {
        waiting: u32::try_from(waiting).unwrap_or(u32::MAX),
        ..LocalMachine::default()
    };
    Some((candidate, indexes, machines, local))
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "sizes are positive and below 2^53"
)]
fn bytes(mb: f64) -> u64 {
    (mb * 1e6) as u64
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a time that has passed is positive and below 2^53"
)]
fn milliseconds(seconds: f64) -> u64 {
    (seconds * 1000.0) as u64
}

#[expect(clippy::cast_precision_loss, reason = "a bound of years would lose milliseconds")]
fn seconds(ms: u64) -> f64 {
    ms as f64 / 1000.0
}

impl Rule for Queued<'_> {
    fn offered(&mut self, view: &View<'_>, id: usize) -> Placement {
        // A build that is asked about again keeps its place.
        let before = self.waiting.iter().position(|waiting| waiting.id == id);
        let before = before
            .map(|place| self.waiting.swap_remove(place))
            .map(|waiting| (waiting.arrived, waiting.since));
        let Some((candidate, indexes, machines, local)) = question(view, id, self.waiting.len())
        else {
            return Placement::Postpone;
        };
        if machines.is_empty() {
            return Placement::Postpone;
        }
        let decision = match self.policy.select(&candidate, &machines, &local) {
            Ok(decision) => decision,
            Err(error) => {
                self.problem.get_or_insert_with(|| error.to_string());
                StockRule::default().decide(&candidate, &machines, &local)
            }
        };
        let Action::Machines(uris) = decision.action else {
            return Placement::Postpone;
        };
        let wanted: Vec<usize> = uris
            .iter()
            .filter_map(|uri| {
                machines
                    .iter()
                    .position(|machine| machine.uri == *uri)
                    .and_then(|place| indexes.get(place).copied())
            })
            .collect();
        self.arrived += 1;
        let (arrived, since) = before.unwrap_or((self.arrived, view.now()));
        let build = Waiting {
            id,
            depth: candidate.dependents_depth.unwrap_or(0),
            expected: candidate.expected_seconds,
            arrived,
            since,
            command: view.derivation(id).and_then(|d| d.command).unwrap_or_default().to_owned(),
            machines: wanted,
            takes: view.takes(id),
        };
        if let Some(machine) = build
            .machines
            .iter()
            .copied()
            .find(|machine| view.free(*machine) && self.may_have(view, &build, *machine))
        {
            return Placement::On(machine);
        }
        self.waiting.push(build);
        Placement::Waits(decision.ask_again_ms.map(seconds))
    }

    /// Uses the order of [`hookrun_builders::slots::assignment`]: the command with the fewest
    /// running builds, then the longest chain of dependents, then the longest build (an unknown one
    /// may be the longest), then the oldest.
    fn freed(&mut self, view: &View<'_>, machine: usize) -> Option<usize> {
        let running = view.running_by_command();
        let of = |command: &str| running.get(command).copied().unwrap_or(0);
        let expected = |waiting: &Waiting| waiting.expected.unwrap_or(f64::INFINITY);
        let best = self
            .waiting
            .iter()
            .enumerate()
            .filter(|(_, waiting)| {
                waiting.machines.contains(&machine) && self.may_have(view, waiting, machine)
            })
            .min_by(|(_, a), (_, b)| {
                of(&a.command)
                    .cmp(&of(&b.command))
                    .then(b.depth.cmp(&a.depth))
                    .then(expected(b).total_cmp(&expected(a)))
                    .then(a.arrived.cmp(&b.arrived))
            })
            .map(|(place, _)| place)?;
        Some(self.waiting.swap_remove(best).id)
    }
}
