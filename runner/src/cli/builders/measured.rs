//! Reads the history of builder selection for `hookrun builders`.

use std::collections::BTreeMap;

use serde_json::Value;

use super::super::{CliError, Context};
use hookrun_builders::choice::health::{Availability, availability};
use hookrun_builders::history::render::Knowledge;
use hookrun_builders::history::{BuildOutcome, BuildRow, Record, RowSelection, now_ms};

/// The number of newest builds that are read: enough for weeks, and read in a moment.
pub(super) const LOOKED_AT: u32 = 5000;

/// Opens the history; returns none if no session has written one.
pub(super) fn record(context: &Context) -> Result<Option<Record>, CliError> {
    Record::read(&context.dirs.builders()).map_err(CliError::environment)
}

/// Returns the known facts about each machine, by URI.
pub(super) fn knowledge(context: &Context) -> Result<BTreeMap<String, Knowledge>, CliError> {
    let Some(record) = record(context)? else { return Ok(BTreeMap::new()) };
    let now = now_ms();
    let mut knowledge: BTreeMap<String, Knowledge> = BTreeMap::new();
    for (uri, health) in record.machines().map_err(CliError::environment)? {
        let out = matches!(availability(Some(&health), now), Availability::Out { .. }).then(|| {
            health.last_error.clone().unwrap_or_else(|| "it has failed recently".to_owned())
        });
        knowledge.insert(uri, Knowledge { out, ..Knowledge::default() });
    }
    let builds = record.builds(RowSelection::Last(LOOKED_AT)).map_err(CliError::environment)?;
    for (uri, (builds, factor)) in measured(&builds) {
        let known = knowledge.entry(uri).or_default();
        known.builds = builds;
        known.measured_factor = Some(factor);
    }
    Ok(knowledge)
}

/// Returns the measured speed of machines, from packages that were built on several of them. For
/// each build it divides the median time of the package at factor 1 by the time of the build; the
/// result is the median of these ratios. Packages that were built on only one machine are ignored.
fn measured(builds: &[BuildRow]) -> BTreeMap<String, (u32, f64)> {
    let mut packages: BTreeMap<(&str, &str), Vec<&BuildRow>> = BTreeMap::new();
    for build in builds.iter().filter(|build| {
        build.outcome == Some(BuildOutcome::Built) && build.seconds.is_some_and(|s| s > 0.0)
    }) {
        packages.entry((&build.pname, &build.system)).or_default().push(build);
    }
    let mut ratios: BTreeMap<String, Vec<f64>> = BTreeMap::new();
    for builds in packages.values() {
        if builds
            .iter()
            .all(|build| Some(&build.machine) == builds.first().map(|first| &first.machine))
        {
            continue;
        }
        let at_one = median(
            builds.iter().filter_map(|build| Some(build.seconds? * build.speed_factor)).collect(),
        );
        for build in builds {
            if let (Some(at_one), Some(seconds)) = (at_one, build.seconds) {
                ratios.entry(build.machine.clone()).or_default().push(at_one / seconds);
            }
        }
    }
    let counted = |(uri, ratios): (String, Vec<f64>)| {
        let count = u32::try_from(ratios.len()).unwrap_or(u32::MAX);
        median(ratios).map(|median| (uri, (count, median)))
    };
    ratios.into_iter().filter_map(counted).collect()
}

pub(super) fn median(mut values: Vec<f64>) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    let (upper, lower) =
        (values.get(values.len() / 2)?, values.get(values.len().saturating_sub(1) / 2)?);
    Some(f64::midpoint(*upper, *lower))
}

/// Returns milliseconds as a whole number; none for a negative or undefined duration.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "`as` saturates, and durations are not negative"
)]
pub(super) fn whole_ms(ms: f64) -> Option<u64> {
    ms.is_finite().then_some(ms.round() as u64)
}

/// Converts a record of the history to the style of all JSON output: keys in kebab case, durations
/// in milliseconds. The stored form has another style.
pub(super) fn in_style(record: &impl serde::Serialize) -> Result<Value, CliError> {
    serde_json::to_value(record).map(restyled).map_err(CliError::internal)
}

fn restyled(value: Value) -> Value {
    match value {
        Value::Object(members) => members
            .into_iter()
            .map(|(key, value)| {
                let in_seconds = ["_seconds", "_s"].iter().find_map(|end| key.strip_suffix(end));
                let in_seconds = in_seconds.or_else(|| (key == "seconds").then_some("duration"));
                match in_seconds {
                    Some(name) => {
                        let ms = value.as_f64().and_then(|seconds| whole_ms(seconds * 1000.0));
                        (format!("{}-ms", name.replace('_', "-")), ms.into())
                    }
                    None => (key.replace('_', "-"), restyled(value)),
                }
            })
            .collect(),
        Value::Array(items) => items.into_iter().map(restyled).collect(),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_are_printed_in_the_style_of_the_commands() {
        let record = serde_json::json!({
            "at_ms": 5, "machines": [{ "speed_factor": 1.5, "makespan_s": 2.25 }],
            "expected_seconds": null, "seconds": 1.0, "name": "some_name"
        });
        let printed = serde_json::json!({
            "at-ms": 5, "machines": [{ "speed-factor": 1.5, "makespan-ms": 2250 }],
            "expected-ms": null, "duration-ms": 1000, "name": "some_name"
        });
        assert_eq!(in_style(&record).unwrap(), printed);
    }
}
