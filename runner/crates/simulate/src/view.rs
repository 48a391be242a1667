//! The data that a rule may read during a simulation: what a host could know at that time.

use std::collections::HashMap;

use super::trace::{Trace, TraceDerivation, TraceMachine};
use hookrun_builders::slots::reservations::Account;
use hookrun_config::{Amounts, Resources};

/// The data that a rule may read.
pub struct View<'a> {
    /// The trace. Rules must not read `work_s`, `speed`, and the `out_mb` of derivations that are
    /// not built.
    pub(super) trace: &'a Trace,
    pub(super) now: f64,
    pub(super) running: Vec<Vec<RunningBuild>>,
    /// Whether an output is on a machine, by machine and then by derivation.
    pub(super) there: Vec<Vec<bool>>,
    /// The longest chain of dependents, by derivation.
    pub(super) depth: &'a [u32],
    /// The configured resources besides slots.
    pub(super) limits: &'a Resources,
    /// The used amounts of these resources.
    pub(super) account: Account<'a>,
}

#[derive(Debug, Clone, Copy)]
pub(super) struct RunningBuild {
    pub(super) id: usize,
    pub(super) since: f64,
}

impl View<'_> {
    /// Returns the number of machines.
    pub fn machines(&self) -> usize {
        self.trace.machines.len()
    }

    /// Returns name, slots, speed factor, features and transfer speed.
    pub fn machine(&self, machine: usize) -> Option<MachineView<'_>> {
        let TraceMachine {
            name, slots, speed_factor, mb_per_s, features, mandatory_features, ..
        } = self.trace.machines.get(machine)?;
        let load = u32::try_from(self.running.get(machine)?.len()).unwrap_or(u32::MAX);
        Some(MachineView {
            name,
            slots: *slots,
            load,
            speed_factor: *speed_factor,
            mb_per_s: *mb_per_s,
            features,
            mandatory_features,
        })
    }

    /// Returns the current time, in seconds.
    pub const fn now(&self) -> f64 {
        self.now
    }

    /// Returns whether the derivation fits on the machine.
    pub fn fits(&self, machine: usize, id: usize) -> bool {
        let (Some(machine), Some(derivation)) =
            (self.trace.machines.get(machine), self.trace.derivations.get(id))
        else {
            return false;
        };
        machine.fits(derivation) && self.limits.never(&machine.name, &self.takes(id)).is_none()
    }

    /// Returns the resources that it needs besides a slot.
    pub fn takes(&self, id: usize) -> Amounts {
        // Usually nothing is limited.
        let features = self.trace.derivations.get(id).filter(|_| !self.limits.is_empty());
        features.map(|derivation| self.limits.takes(&derivation.features)).unwrap_or_default()
    }

    /// Returns whether `machine` has enough of them left.
    pub fn has_room(&self, machine: usize, takes: &Amounts) -> bool {
        self.name(machine).is_some_and(|name| self.account.short(name, takes).is_none())
    }

    /// Returns the used amounts of each limited resource.
    pub const fn account(&self) -> &Account<'_> {
        &self.account
    }

    /// The name.
    pub fn name(&self, machine: usize) -> Option<&str> {
        self.trace.machines.get(machine).map(|machine| machine.name.as_str())
    }

    /// Returns whether a slot is free.
    pub fn free(&self, machine: usize) -> bool {
        self.machine(machine).is_some_and(|machine| machine.load < machine.slots)
    }

    /// Returns the known facts about a derivation.
    pub fn derivation(&self, id: usize) -> Option<DerivationView<'_>> {
        let TraceDerivation { pname, history_s, system, features, command, .. } =
            self.trace.derivations.get(id)?;
        Some(DerivationView {
            pname,
            expected: *history_s,
            system: system.as_deref(),
            features,
            command: command.as_deref(),
            depth: self.depth.get(id).copied().unwrap_or(0),
        })
    }

    /// Returns the size in MB of the direct inputs that are not on `machine`. They are built, so
    /// their size is known.
    pub fn missing_mb(&self, machine: usize, id: usize) -> f64 {
        let Some(derivation) = self.trace.derivations.get(id) else { return 0.0 };
        let missing = |dep: &&usize| {
            !self.there.get(machine).and_then(|there| there.get(**dep)).copied().unwrap_or(false)
        };
        derivation
            .deps
            .iter()
            .filter(missing)
            .filter_map(|dep| self.trace.derivations.get(*dep))
            .map(|dep| dep.out_mb)
            .sum()
    }

    /// Returns the number of running builds of each Nix command.
    pub fn running_by_command(&self) -> HashMap<&str, usize> {
        let mut count = HashMap::new();
        for running in self.running.iter().flatten() {
            let derivation = self.trace.derivations.get(running.id);
            *count
                .entry(derivation.and_then(|d| d.command.as_deref()).unwrap_or_default())
                .or_default() += 1;
        }
        count
    }

    /// Returns the seconds until builds with an expected duration should end, in ascending order.
    pub fn busy_seconds(&self, machine: usize) -> Vec<f64> {
        let (Some(running), Some(factor)) =
            (self.running.get(machine), self.trace.machines.get(machine).map(|m| m.speed_factor))
        else {
            return Vec::new();
        };
        let left = |running: &RunningBuild| {
            let expected = self.trace.derivations.get(running.id)?.history_s? / factor;
            // The same estimate as that of sessions.
            Some((running.since + expected - self.now).max(0.0))
        };
        let mut busy: Vec<f64> = running.iter().filter_map(left).collect();
        busy.sort_by(f64::total_cmp);
        busy
    }
}

/// A machine as a host knows it.
#[derive(Debug, Clone, Copy)]
pub struct MachineView<'a> {
    /// The name.
    pub name: &'a str,
    /// The number of concurrent builds.
    pub slots: u32,
    /// The number of running builds.
    pub load: u32,
    /// The speed factor in the machines file.
    pub speed_factor: f64,
    /// The measured transfer rate.
    pub mb_per_s: f64,
    /// The supported features.
    pub features: &'a [String],
    /// The mandatory features.
    pub mandatory_features: &'a [String],
}

/// A derivation as a host knows it.
#[derive(Debug, Clone, Copy)]
pub struct DerivationView<'a> {
    /// The package name.
    pub pname: &'a str,
    /// The expected duration in seconds at speed factor 1.
    pub expected: Option<f64>,
    /// Its system.
    pub system: Option<&'a str>,
    /// The required features.
    pub features: &'a [String],
    /// The Nix command that asked.
    pub command: Option<&'a str>,
    /// The longest chain of derivations that depend on it.
    pub depth: u32,
}
