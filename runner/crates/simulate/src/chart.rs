//! Formats a comparison as text for a terminal, without colours.

use super::compare::{Comparison, STOCK};

/// Width of a line of [`busy_over_time`] in characters.
const WIDTH: usize = 60;
/// Steps of one eighth (Unicode block elements).
const LEVELS: [char; 9] = [' ', '▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];

/// Returns the table of figures as rows of cells, of which the first is the header.
pub fn table(comparison: &Comparison) -> Vec<Vec<String>> {
    let head = [
        "",
        "makespan",
        "over Nix's",
        "90th pct",
        "over bound",
        "waited",
        "slots used",
        "transfer",
    ];
    let mut rows = vec![head.map(ToOwned::to_owned).to_vec()];
    let several = comparison.traces > 1;
    let p90 = |value: f64| if several { format!("{value:.2}") } else { String::new() };
    let bound = &comparison.bound;
    rows.push(vec![
        "lower bound".to_owned(),
        duration(bound.makespan_s),
        format!("{:.2}", bound.over_stock.median),
        p90(bound.over_stock.p90),
    ]);
    for rule in &comparison.rules {
        let stock = rule.name == STOCK;
        rows.push(vec![
            rule.name.clone(),
            duration(rule.makespan_s),
            format!("{:.2}", rule.over_stock.median),
            if stock { String::new() } else { p90(rule.over_stock.p90) },
            format!("{:.2}", rule.over_bound.median),
            duration(rule.waited_s),
            format!("{:.0} %", rule.used * 100.0),
            duration(rule.transfer_s),
        ]);
    }
    rows
}

/// Returns the use of each machine by each rule, in the first trace.
pub fn machines(comparison: &Comparison) -> Vec<Vec<String>> {
    let head = ["machine", "slots", "factor"].map(ToOwned::to_owned).into_iter();
    let mut rows: Vec<Vec<String>> =
        vec![head.chain(comparison.rules.iter().map(|rule| rule.name.clone())).collect()];
    for (index, machine) in comparison.machines.iter().enumerate() {
        let used = comparison.rules.iter().map(|rule| match rule.by_machine.get(index) {
            Some((builds, used)) => format!("{:.0} %, {builds} builds", used * 100.0),
            None => String::new(),
        });
        let fixed =
            [machine.name.clone(), machine.slots.to_string(), machine.speed_factor.to_string()];
        rows.push(fixed.into_iter().chain(used).collect());
    }
    rows
}

/// Returns the slots in use over time in the first trace, a row for each rule, on one scale.
pub fn busy_over_time(comparison: &Comparison) -> Vec<Vec<String>> {
    let end = comparison.rules.iter().map(|rule| rule.first().makespan).fold(0.0, f64::max);
    let slots: f64 = comparison.machines.iter().map(|machine| f64::from(machine.slots)).sum();
    let row = |rule: &super::compare::RuleFigures| {
        let line: String = busy(&rule.first().spans, end, WIDTH)
            .into_iter()
            .map(|busy| level(busy / slots))
            .collect();
        vec![rule.name.clone(), format!("▕{line}▏"), duration(rule.first().makespan)]
    };
    comparison.rules.iter().map(row).collect()
}

/// Returns the mean number of spans that cover each of `buckets` equal parts of 0 .. `end`.
pub fn busy(spans: &[(f64, f64)], end: f64, buckets: usize) -> Vec<f64> {
    let mut sums = vec![0.0; buckets];
    let width = end / as_float(buckets);
    if width > 0.0 {
        for (from, to) in spans {
            for (index, sum) in sums.iter_mut().enumerate() {
                let (left, right) = (as_float(index) * width, as_float(index + 1) * width);
                *sum += (to.min(right) - from.max(left)).max(0.0) / width;
            }
        }
    }
    sums
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "`as` saturates, and a share is between 0 and 1"
)]
fn level(share: f64) -> char {
    let index = if share > 0.0 { ((share * 8.0).round() as usize).clamp(1, 8) } else { 0 };
    LEVELS.get(index).copied().unwrap_or('█')
}

#[expect(clippy::cast_precision_loss, reason = "a column of a terminal")]
fn as_float(number: usize) -> f64 {
    number as f64
}

/// Formats a duration, such as `1h 5m`, `5m 10s` and `9.5s`.
pub fn duration(seconds: f64) -> String {
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "`as` saturates, and times are not negative"
    )]
    let whole = seconds.round() as u64;
    match whole {
        0..10 => format!("{seconds:.1}s"),
        10..60 => format!("{whole}s"),
        60..3600 => format!("{}m {}s", whole / 60, whole % 60),
        _ => format!("{}h {}m", whole / 3600, whole % 3600 / 60),
    }
}
