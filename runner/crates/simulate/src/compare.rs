//! Compares several rules on several traces.

use serde::Serialize;

use super::bound::lower_bound;
use super::engine::{Played, play};
use super::rules::{Queued, Stock};
use super::trace::Trace;
use hookrun_builders::Policy;
use hookrun_builders::choice::policy::StockRule;
use hookrun_config::Resources;

/// The name of Nix's rule in tables.
pub const STOCK: &str = "Nix's own rule";

/// The results of all rules.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Comparison {
    /// The number of traces.
    pub traces: usize,
    /// The number of derivations in the first trace.
    pub derivations: usize,
    /// The machines of the first trace.
    pub machines: Vec<MachineOf>,
    /// The lower bound.
    pub bound: Bound,
    /// The rules, Nix's first.
    pub rules: Vec<RuleFigures>,
}

/// A machine of the first trace.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct MachineOf {
    /// The name.
    pub name: String,
    /// The number of concurrent builds.
    pub slots: u32,
    /// The speed factor in the machines file.
    pub speed_factor: f64,
}

/// The bound that no rule can beat.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Bound {
    /// The median over the traces, in seconds.
    pub makespan_s: f64,
    /// The bound of each trace divided by the makespan of Nix's rule.
    pub over_stock: Spread,
    #[serde(skip)]
    ratios: Vec<f64>,
}

impl Bound {
    /// Returns the bound of each trace divided by the makespan of Nix's rule.
    pub fn ratios(&self) -> &[f64] {
        &self.ratios
    }
}

/// The figures of one rule.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct RuleFigures {
    /// The plugin, or [`STOCK`].
    pub name: String,
    /// The makespan in seconds, as a median over the traces.
    pub makespan_s: f64,
    /// The makespan of each trace divided by that of Nix's rule.
    pub over_stock: Spread,
    /// The makespan of each trace divided by the lower bound.
    pub over_bound: Spread,
    /// The average time of a build from ready to started in seconds, as a median over the traces.
    pub waited_s: f64,
    /// The used part of all slot-seconds, as a median over the traces.
    pub used: f64,
    /// The total time of transfers in seconds, as a median over the traces.
    pub transfer_s: f64,
    /// The number of derivations, in all traces, that fit on no machine.
    pub never: usize,
    /// For each machine of the first trace, its number of builds and the used part of its slots.
    pub by_machine: Vec<(u32, f64)>,
    /// The error of the policy; Nix's rule was used instead.
    pub problem: Option<String>,
    #[serde(skip)]
    ratios: Vec<f64>,
    #[serde(skip)]
    first: Played,
}

impl RuleFigures {
    /// Returns the makespan of each trace divided by that of Nix's rule.
    pub fn ratios(&self) -> &[f64] {
        &self.ratios
    }

    /// Returns the result of the first trace.
    pub const fn first(&self) -> &Played {
        &self.first
    }
}

/// The distribution of a figure over the traces.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize)]
pub struct Spread {
    /// The median.
    pub median: f64,
    /// The 90th percentile.
    pub p90: f64,
}

impl Spread {
    /// Computes the distribution of these values.
    pub fn of(values: &[f64]) -> Self {
        Self { median: quantile(values, 50), p90: quantile(values, 90) }
    }
}

/// Returns a quantile by nearest rank. The median of an even number of values is the mean of the
/// middle two.
pub fn quantile(values: &[f64], percent: usize) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let at = |rank: usize| sorted.get(rank.saturating_sub(1)).copied().unwrap_or(f64::NAN);
    let rank = (sorted.len() * percent).div_ceil(100);
    if percent == 50 && sorted.len().is_multiple_of(2) {
        f64::midpoint(at(rank), at(rank + 1))
    } else {
        at(rank)
    }
}

/// The runs of one rule.
struct Runs {
    name: String,
    played: Vec<Played>,
    problem: Option<String>,
}

/// Simulates every trace with Nix's rule and with each of `policies`. Resources besides slots count
/// only for the policies, because Nix's rule does not know them.
pub fn compare(
    traces: &[Trace],
    division: StockRule,
    limits: &Resources,
    policies: &[(String, &dyn Policy)],
) -> Comparison {
    let nothing = Resources::default();
    let stock = Runs {
        name: STOCK.to_owned(),
        played: traces.iter().map(|trace| play(trace, &nothing, &mut Stock(division))).collect(),
        problem: None,
    };
    let mut runs = Vec::new();
    for (name, policy) in policies {
        let mut problem = None;
        let play = |trace: &Trace| {
            let mut rule = Queued::new(*policy);
            let played = play(trace, limits, &mut rule);
            if problem.is_none() {
                problem = rule.problem;
            }
            played
        };
        let played = traces.iter().map(play).collect();
        runs.push(Runs { name: name.clone(), played, problem });
    }
    let bounds: Vec<f64> = traces.iter().map(lower_bound).collect();
    let base: Vec<f64> = stock.played.iter().map(|played| played.makespan).collect();
    let over = |values: &[f64], base: &[f64]| -> Vec<f64> {
        values.iter().zip(base).map(|(value, base)| value / base).collect()
    };
    let ratios = over(&bounds, &base);
    let bound =
        Bound { makespan_s: quantile(&bounds, 50), over_stock: Spread::of(&ratios), ratios };
    let figures = |Runs { name, played, problem }: Runs| {
        let makespans: Vec<f64> = played.iter().map(|played| played.makespan).collect();
        let ratios = over(&makespans, &base);
        let of = |value: &dyn Fn(&Played, &Trace) -> f64| {
            let values: Vec<f64> =
                played.iter().zip(traces).map(|(played, trace)| value(played, trace)).collect();
            quantile(&values, 50)
        };
        let first = played.first().cloned().unwrap_or_default();
        let by_machine = traces.first().map(|trace| by_machine(&first, trace)).unwrap_or_default();
        RuleFigures {
            name,
            makespan_s: quantile(&makespans, 50),
            over_stock: Spread::of(&ratios),
            over_bound: Spread::of(&over(&makespans, &bounds)),
            waited_s: of(&|played, _| {
                played.waits.iter().sum::<f64>() / count(played.waits.len()).max(1.0)
            }),
            used: of(&|played, trace| {
                played.busy.iter().sum::<f64>() / (slots(trace) * played.makespan)
            }),
            transfer_s: of(&|played, _| played.transfer),
            never: played.iter().map(|played| played.never).sum(),
            by_machine,
            problem,
            ratios,
            first,
        }
    };
    let machine = |machine: &super::trace::TraceMachine| MachineOf {
        name: machine.name.clone(),
        slots: machine.slots,
        speed_factor: machine.speed_factor,
    };
    Comparison {
        traces: traces.len(),
        derivations: traces.first().map_or(0, |trace| trace.derivations.len()),
        machines: traces
            .first()
            .map(|trace| trace.machines.iter().map(machine).collect())
            .unwrap_or_default(),
        bound,
        rules: std::iter::once(stock).chain(runs).map(figures).collect(),
    }
}

fn slots(trace: &Trace) -> f64 {
    trace.machines.iter().map(|machine| f64::from(machine.slots)).sum()
}

fn by_machine(played: &Played, trace: &Trace) -> Vec<(u32, f64)> {
    let used = |((busy, builds), machine): ((&f64, &u32), &super::trace::TraceMachine)| {
        (*builds, busy / (f64::from(machine.slots.max(1)) * played.makespan.max(f64::MIN_POSITIVE)))
    };
    played.busy.iter().zip(&played.builds).zip(&trace.machines).map(used).collect()
}

#[expect(clippy::cast_precision_loss, reason = "a number of builds is small")]
fn count(number: usize) -> f64 {
    number as f64
}

#[cfg(test)]
mod tests;
