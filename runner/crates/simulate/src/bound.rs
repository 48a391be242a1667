//! A lower bound of the makespan.

use super::trace::Trace;

/// Returns the larger of total work over total capacity and the critical path at the highest speed,
/// in seconds. Transfers are not counted, so the bound is below the best possible makespan.
pub fn lower_bound(trace: &Trace) -> f64 {
    let capacity: f64 =
        trace.machines.iter().map(|machine| f64::from(machine.slots) * machine.speed).sum();
    let fastest = trace
        .machines
        .iter()
        .filter(|m| m.slots > 0)
        .map(|machine| machine.speed)
        .fold(0.0, f64::max);
    if capacity <= 0.0 || trace.derivations.is_empty() {
        return 0.0;
    }
    let work: f64 = trace.derivations.iter().map(|derivation| derivation.work_s).sum();
    let mut ends: Vec<f64> = Vec::with_capacity(trace.derivations.len());
    for derivation in &trace.derivations {
        let ready =
            derivation.deps.iter().filter_map(|dep| ends.get(*dep)).copied().fold(0.0, f64::max);
        ends.push(ready.max(derivation.start_s.unwrap_or(0.0)) + derivation.work_s / fastest);
    }
    ends.into_iter().fold(work / capacity, f64::max)
}
