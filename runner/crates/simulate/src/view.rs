//! What a rule may look at while a trace is played: what a host could know then.

use std::collections::HashMap;

use super::trace::{Trace, TraceDerivation, TraceMachine};
use hookrun_builders::slots::reservations::Account;
use hookrun_config::{Amounts, Resources};

/// What a rule may look at.
pub struct View<'a> {
    /// The trace; a rule keeps its eyes off `work_s`, `speed` and the `out_mb` of what is not
    /// built.
    pub(super) trace: &'a Trace,
    pub(super) now: f64,
    pub(super) running: Vec<Vec<Running>>,
    /// By machine, then by derivation: is its output there?
    pub(super) there: Vec<Vec<bool>>,
    /// By derivation: the longest chain behind it.
    pub(super) depth: &'a [u32],
    /// What builds take besides a slot.
    pub(super) limits: &'a Resources,
    /// What is taken of that.
    pub(super) account: Account<'a>,
}

#[derive(Debug, Clone, Copy)]
pub(super) struct Running {
    pub(super) id: usize,
    pub(super) since: f64,
}

impl View<'_> {
    /// How many machines there are.
    pub fn machines(&self) -> usize {
        self.trace.machines.len()
    }

    /// Name, slots, speed factor, features, transfer.
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

    /// Now, in seconds.
    pub const fn now(&self) -> f64 {
        self.now
    }

    /// Does it fit there?
    pub fn fits(&self, machine: usize, id: usize) -> bool {
        let (Some(machine), Some(derivation)) =
            (self.trace.machines.get(machine), self.trace.derivations.get(id))
        else {
            return false;
        };
        machine.fits(derivation) && self.limits.never(&machine.name, &self.takes(id)).is_none()
    }

    /// What it takes besides a slot.
    pub fn takes(&self, id: usize) -> Amounts {
        // Mostly nothing is limited.
        let features = self.trace.derivations.get(id).filter(|_| !self.limits.is_empty());
        features.map(|derivation| self.limits.takes(&derivation.features)).unwrap_or_default()
    }

    /// Is enough of that left on `machine`?
    pub fn has_room(&self, machine: usize, takes: &Amounts) -> bool {
        self.name(machine).is_some_and(|name| self.account.short(name, takes).is_none())
    }

    /// What is taken of everything that is limited.
    pub const fn account(&self) -> &Account<'_> {
        &self.account
    }

    /// Its name.
    pub fn name(&self, machine: usize) -> Option<&str> {
        self.trace.machines.get(machine).map(|machine| machine.name.as_str())
    }

    /// Is a slot free?
    pub fn free(&self, machine: usize) -> bool {
        self.machine(machine).is_some_and(|machine| machine.load < machine.slots)
    }

    /// What is known of a derivation.
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

    /// Size of the direct inputs that are not on `machine`, in MB: they are built, so their size is
    /// known.
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

    /// How many builds each Nix command has running.
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

    /// For each busy slot whose build has an expected duration: seconds until it should end, the
    /// soonest first.
    pub fn busy_seconds(&self, machine: usize) -> Vec<f64> {
        let (Some(running), Some(factor)) =
            (self.running.get(machine), self.trace.machines.get(machine).map(|m| m.speed_factor))
        else {
            return Vec::new();
        };
        let left = |running: &Running| {
            let expected = self.trace.derivations.get(running.id)?.history_s? / factor;
            // As the sessions estimate it.
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
    /// Its name.
    pub name: &'a str,
    /// Builds at once.
    pub slots: u32,
    /// Builds now.
    pub load: u32,
    /// Of the machines file.
    pub speed_factor: f64,
    /// As measured lately.
    pub mb_per_s: f64,
    /// Supported features.
    pub features: &'a [String],
    /// Mandatory features.
    pub mandatory_features: &'a [String],
}

/// A derivation as a host knows it.
#[derive(Debug, Clone, Copy)]
pub struct DerivationView<'a> {
    /// Package name.
    pub pname: &'a str,
    /// Seconds at speed factor 1.
    pub expected: Option<f64>,
    /// Its system.
    pub system: Option<&'a str>,
    /// Required features.
    pub features: &'a [String],
    /// Which Nix command asked.
    pub command: Option<&'a str>,
    /// The longest chain of derivations behind it.
    pub depth: u32,
}
