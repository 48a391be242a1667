//! Estimates when each machine would finish a build: the time until a slot is free, the transfer of
//! the inputs, and the duration there; the same for this machine. A machine is not used if waiting
//! for a better one takes less time, so long builds go to fast machines. While many builds wait,
//! every slot is used.
//!
//! Pure: no clock, no randomness, no state.

use std::fmt::Write as _;
use std::time::Duration;

use hookrun_sdk::builder_selection::{Candidate, Decision, LocalMachine, Machine, PastBuilds};

use crate::Options;

/// The assumed duration of a build without history, in seconds at factor 1. Half of Nixpkgs'
/// derivations take less than 20 s, but the mean, which decides how long a slot is held, is three
/// times that.
const TYPICAL_SECONDS: f64 = 60.0;
/// The assumed bytes per second where no copy was measured: a network of 1 Gbit/s.
const TYPICAL_BYTES_PER_SECOND: f64 = 100e6;
/// From this many builds of a package on a machine, their median is a better estimate than the
/// median over all machines and the speed factor.
const ENOUGH_PAST: u32 = 3;
/// A machine is used if it finishes within this many times the best estimate: estimates are not
/// more precise than that.
const SLACK: f64 = 1.1;
/// How much slower a full machine is than an idle one; for the order of machines only. Slots share
/// caches, memory and disks, so of equal machines the one with less load is better.
const CROWDING: f64 = 0.1;
/// How much longer a build may take elsewhere if that keeps the last slot of a machine with rare
/// features free.
const LAST_RARE_SLOT: f64 = 2.0;
/// The same for the other slots of such a machine: of nearly equal machines, the one without rare
/// features is used.
const RARE_SLOT: f64 = 1.05;
/// How long to wait for full machines before the policy is asked again, in seconds. A shorter time
/// would be worse: the estimate that sent a long build to a fast machine still holds, and asking
/// again while a slow machine is free would move it there.
const ASK_AGAIN_SECONDS: u64 = 7200;

/// The estimate for one machine, in seconds.
#[derive(Debug, Clone, Copy)]
struct Estimate<'a> {
    machine: &'a Machine,
    /// Until a slot is free.
    wait: f64,
    /// Time to connect and to copy the inputs.
    transfer: f64,
    /// The build.
    build: f64,
    /// What using the machine costs other builds, as a factor.
    rare: f64,
}

impl Estimate<'_> {
    fn run(&self) -> f64 {
        (self.transfer + self.build) * self.rare
    }

    fn finish(&self) -> f64 {
        self.wait + self.run()
    }

    /// The order of machines; of equal machines the one with less load comes first.
    fn rank(&self) -> f64 {
        let Machine { load, slots, .. } = self.machine;
        self.wait + self.run() * (1.0 + CROWDING * f64::from(*load) / f64::from((*slots).max(1)))
    }
}

/// Decides where to build.
pub fn decide(
    options: &Options,
    candidate: &Candidate,
    machines: &[Machine],
    local: &LocalMachine,
) -> Decision {
    if let Some(decision) = requested(candidate, machines, local) {
        return decision;
    }
    // Nix reports a free slot for all builds that become ready together.
    let here_now = local.able && local.willing && local.running < local.slots;
    // A download is made where its result is needed; elsewhere it would be copied twice.
    if candidate.fixed_output && here_now {
        return Decision::local(
            "it has a fixed hash, so it is probably a download, and this machine is free",
        );
    }
    let healthy: Vec<&Machine> =
        machines.iter().filter(|machine| machine.healthy && machine.slots > 0).collect();
    if healthy.is_empty() {
        return no_healthy_machine(machines, here_now);
    }
    let local_factor = options.local_speed_factor.or(local.speed_factor);
    let candidate = &Candidate {
        expected_seconds: expected(candidate, local, local_factor),
        ..candidate.clone()
    };
    let fleet = Fleet::of(&healthy, candidate, local);
    let mut estimates: Vec<Estimate<'_>> =
        healthy.iter().map(|machine| estimate(options, candidate, machine, &fleet)).collect();
    let best = estimates.iter().map(Estimate::finish).fold(f64::INFINITY, f64::min);
    let all = estimates.len();
    estimates
        .retain(|estimate| estimate.run() <= best * SLACK || estimate.finish() <= best * SLACK);
    estimates.sort_by(|a, b| a.rank().total_cmp(&b.rank()));
    let any_free = estimates.iter().any(|estimate| free(estimate.machine));

    if here_now {
        if let Some(factor) = local_factor {
            let here = duration(candidate, local.past, factor);
            if here <= best {
                return Decision::local(format!(
                    "this machine should finish it in {}, {} in {}",
                    seconds(here),
                    estimates.first().map_or("the next", |first| first.machine.uri.as_str()),
                    seconds(best)
                ));
            }
        } else if !any_free {
            return Decision::local(
                "the machines worth waiting for are full, and this machine is free",
            );
        }
    }
    // The list is in the order of use, so free machines come first.
    estimates.sort_by_key(|estimate| !free(estimate.machine));
    let reason = reason(&estimates, all, any_free);
    let decision =
        Decision::machines(estimates.iter().map(|estimate| estimate.machine.uri.as_str()), reason);
    if any_free { decision } else { decision.ask_again(Duration::from_secs(ASK_AGAIN_SECONDS)) }
}

/// Returns the decision that the derivation's attributes or hints ask for.
fn requested(
    candidate: &Candidate,
    machines: &[Machine],
    local: &LocalMachine,
) -> Option<Decision> {
    let hint = |name: &str| {
        candidate.hints.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    };
    if local.able {
        if hint("local").is_some() {
            return Some(Decision::local("its `hookrunHints` contain `local`"));
        }
        if candidate.builtin {
            return Some(Decision::local(
                "it has a builtin builder, which gains nothing from another machine",
            ));
        }
        if candidate.prefer_local {
            return Some(Decision::local("it sets `preferLocalBuild`"));
        }
    }
    let wish = hint("machine")?;
    let machine = machines
        .iter()
        .find(|machine| machine.uri == wish || machine.uri.strip_prefix("ssh://") == Some(wish))?;
    machine.healthy.then(|| {
        Decision::machines(
            [machine.uri.as_str()],
            format!("its `hookrunHints` contain `machine={wish}`"),
        )
    })
}

/// Decides when every machine has failed recently. They are used if this machine is not free.
fn no_healthy_machine(machines: &[Machine], here_now: bool) -> Decision {
    if here_now {
        return Decision::local(
            "every suitable machine has failed recently, and this machine is free",
        );
    }
    let mut machines: Vec<&Machine> = machines.iter().collect();
    machines.sort_by(|a, b| free(b).cmp(&free(a)).then(b.speed_factor.total_cmp(&a.speed_factor)));
    Decision::machines(
        machines.iter().map(|machine| machine.uri.as_str()),
        "every suitable machine has failed recently",
    )
}

fn free(machine: &Machine) -> bool {
    machine.load < machine.slots
}

/// Returns the expected duration at factor 1, from past builds on other machines or on this one.
fn expected(candidate: &Candidate, local: &LocalMachine, local_factor: Option<f64>) -> Option<f64> {
    candidate.expected_seconds.or_else(|| Some(local.past?.median_seconds * local_factor?))
}

/// Values that all estimates share.
struct Fleet<'a> {
    machines: &'a [&'a Machine],
    /// The time until all waiting builds have a slot, in seconds.
    contention: f64,
    /// Bytes to copy to a machine whose paths are unknown. The estimate is that of the best other
    /// machine, so that the machine is tried and then known.
    unknown_bytes: u64,
}

impl<'a> Fleet<'a> {
    fn of(machines: &'a [&'a Machine], candidate: &Candidate, local: &LocalMachine) -> Self {
        let capacity: f64 =
            machines.iter().map(|machine| f64::from(machine.slots) * machine.speed_factor).sum();
        let contention =
            f64::from(local.waiting) * TYPICAL_SECONDS / capacity.max(f64::MIN_POSITIVE);
        let least = machines.iter().filter_map(|machine| machine.missing_bytes).min();
        Self { machines, contention, unknown_bytes: least.or(candidate.input_bytes).unwrap_or(0) }
    }
}

fn estimate<'a>(
    options: &Options,
    candidate: &Candidate,
    machine: &'a Machine,
    fleet: &Fleet<'_>,
) -> Estimate<'a> {
    let wait = if free(machine) {
        0.0
    } else {
        let slot = machine.busy_seconds.first().copied();
        slot.unwrap_or(TYPICAL_SECONDS / 2.0 / machine.speed_factor) + fleet.contention
    };
    let rate =
        machine.bytes_per_second.filter(|rate| *rate > 0.0).unwrap_or(TYPICAL_BYTES_PER_SECOND);
    let bytes = machine.missing_bytes.unwrap_or(fleet.unknown_bytes);
    let transfer = f64::from(machine.connect_ms.unwrap_or(0)) / 1000.0 + as_float(bytes) / rate;
    let build = duration(candidate, machine.past, machine.speed_factor);
    let rare = match (
        is_rare(options, candidate, machine, fleet.machines),
        machine.slots.saturating_sub(machine.load),
    ) {
        (false, _) => 1.0,
        (true, 0 | 1) => LAST_RARE_SLOT,
        (true, _) => RARE_SLOT,
    };
    Estimate { machine, wait, transfer, build, rare }
}

/// Returns whether the machine has a feature to keep free that the candidate does not require and
/// that some other machine lacks.
fn is_rare(options: &Options, candidate: &Candidate, machine: &Machine, all: &[&Machine]) -> bool {
    let has = |machine: &Machine, feature: &String| {
        machine.supported_features.contains(feature) || machine.mandatory_features.contains(feature)
    };
    let kept = |feature: &&String| {
        !candidate.required_features.contains(*feature) && has(machine, feature)
    };
    options
        .keep_free
        .iter()
        .filter(kept)
        .any(|feature| all.iter().any(|other| !has(other, feature)))
}

/// Returns the expected duration on a machine, in seconds.
fn duration(candidate: &Candidate, past: Option<PastBuilds>, factor: f64) -> f64 {
    if let Some(past) = past.filter(|past| past.count >= ENOUGH_PAST) {
        return past.median_seconds;
    }
    let hinted = || {
        let hint = candidate.hints.iter().find(|(name, _)| name == "seconds")?;
        hint.1.parse::<f64>().ok().filter(|seconds| seconds.is_finite() && *seconds >= 0.0)
    };
    candidate.expected_seconds.or_else(hinted).unwrap_or(TYPICAL_SECONDS) / factor
}

#[expect(clippy::cast_precision_loss, reason = "an estimate")]
fn as_float(bytes: u64) -> f64 {
    bytes as f64
}

/// Formats the reason, such as `should finish on ssh://m2 in 12 s (2 s of transfer), on ssh://m1 in
/// 13 s; 1 slower machine is not used`.
fn reason(estimates: &[Estimate<'_>], all: usize, any_free: bool) -> String {
    let described = |estimate: &Estimate<'_>| {
        let mut parts = Vec::new();
        if estimate.wait > 0.0 {
            parts.push(format!("{} until a slot is free", seconds(estimate.wait)));
        }
        if estimate.transfer >= 1.0 {
            parts.push(format!("{} of transfer", seconds(estimate.transfer)));
        }
        let parts =
            if parts.is_empty() { String::new() } else { format!(" ({})", parts.join(", ")) };
        format!(
            "{} in {}{parts}",
            estimate.machine.uri,
            seconds(estimate.wait + estimate.transfer + estimate.build)
        )
    };
    let mut text = match estimates {
        [] => String::new(),
        [only] => format!("should finish on {}", described(only)),
        [first, next, ..] => {
            format!("should finish on {}, on {}", described(first), described(next))
        }
    };
    let slower = all.saturating_sub(estimates.len());
    if slower > 0 {
        let machines = if slower == 1 { "machine is" } else { "machines are" };
        let _ = write!(text, "; {slower} slower {machines} not used");
    }
    if !any_free {
        text.push_str("; no slot is free there");
    }
    text
}

fn seconds(seconds: f64) -> String {
    if seconds < 10.0 { format!("{seconds:.1} s") } else { format!("{seconds:.0} s") }
}

#[cfg(test)]
mod tests;
