//! Creates a trace of real builds from the database of builder selection. This module is pure.

use std::collections::HashMap;

use super::trace::{DEFAULT_MB_PER_S, Header, Trace, TraceDerivation, TraceMachine};
use hookrun_builders::history::{BuildOutcome, BuildRow, MachineHealth};
use hookrun_nix::machines::MachineLine;

/// What Nix's database contains about the derivations that were built.
#[derive(Debug, Default)]
pub struct FromNix {
    /// The `.drv` files that each refers to.
    pub references: HashMap<String, Vec<String>>,
    /// Size of all outputs of each, in bytes.
    pub output_bytes: HashMap<String, u64>,
}

/// Returns a trace of the successful ones of `builds` (in any order), each derivation once, with
/// the machines of `lines`.
pub fn export(
    builds: &[BuildRow],
    lines: &[MachineLine],
    health: &std::collections::BTreeMap<String, MachineHealth>,
    nix: &FromNix,
) -> Trace {
    let mut built: Vec<&BuildRow> = builds
        .iter()
        .filter(|build| build.outcome == Some(BuildOutcome::Built) && build.seconds.is_some())
        .collect();
    // A dependency ends before its dependents are offered, so its id is smaller.
    built.sort_by_key(|build| (build.ended_ms, build.id));
    let first = built.iter().map(|build| build.accepted_ms).min().unwrap_or(0);
    let mut ids: HashMap<&str, usize> = HashMap::new();
    let mut past: HashMap<(&str, &str), Vec<f64>> = HashMap::new();
    let mut derivations: Vec<TraceDerivation> = Vec::new();
    for build in built {
        let work_s = build.seconds.unwrap_or(0.0) * build.speed_factor;
        let past = past.entry((&build.pname, &build.system)).or_default();
        let history_s = median(past);
        past.push(work_s);
        if ids.contains_key(build.drv_path.as_str()) {
            continue;
        }
        let id = derivations.len();
        let references = nix.references.get(&build.drv_path).map(Vec::as_slice).unwrap_or_default();
        let mut deps: Vec<usize> =
            references.iter().filter_map(|path| ids.get(path.as_str()).copied()).collect();
        deps.sort_unstable();
        deps.dedup();
        ids.insert(&build.drv_path, id);
        derivations.push(TraceDerivation {
            id,
            pname: build.pname.clone(),
            work_s: rounded(work_s),
            out_mb: rounded(megabytes(nix.output_bytes.get(&build.drv_path).copied().unwrap_or(0))),
            history_s: history_s.map(rounded),
            // A derivation without dependencies in the trace came with its Nix command.
            start_s: deps.is_empty().then(|| seconds(build.accepted_ms.saturating_sub(first))),
            deps,
            system: Some(build.system.clone()),
            features: build.required_features.clone(),
            command: Some(build.command.clone()),
            ..TraceDerivation::default()
        });
    }
    let machine = |line: &MachineLine| TraceMachine {
        name: line.uri.clone(),
        slots: line.max_jobs,
        speed_factor: line.speed_factor,
        speed: line.speed_factor,
        mb_per_s: health
            .get(line.uri.as_str())
            .and_then(|health| health.bytes_per_second)
            .filter(|rate| rate.is_finite() && *rate > 0.0)
            .map_or(DEFAULT_MB_PER_S, |rate| rounded(rate / 1e6).max(0.001)),
        systems: line.systems.clone(),
        features: line.supported_features.clone(),
        mandatory_features: line.mandatory_features.clone(),
    };
    Trace {
        header: Header { nodes: Some(derivations.len()), ..Header::default() },
        machines: lines.iter().map(machine).collect(),
        derivations,
    }
}

fn median(values: &[f64]) -> Option<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let (upper, lower) =
        (sorted.get(sorted.len() / 2)?, sorted.get(sorted.len().saturating_sub(1) / 2)?);
    Some(f64::midpoint(*upper, *lower))
}

fn rounded(value: f64) -> f64 {
    (value * 1000.0).round() / 1000.0
}

#[expect(clippy::cast_precision_loss, reason = "sizes and times are far below 2^53")]
fn megabytes(bytes: u64) -> f64 {
    bytes as f64 / 1e6
}

#[expect(clippy::cast_precision_loss, reason = "sizes and times are far below 2^53")]
fn seconds(ms: u64) -> f64 {
    ms as f64 / 1000.0
}

#[cfg(test)]
mod tests {
    use super::*;
    use hookrun_nix::machines;

    fn build(id: i64, name: &str, seconds: f64, outcome: BuildOutcome) -> BuildRow {
        let at = u64::try_from(id).unwrap() * 1000;
        BuildRow {
            id,
            drv_path: format!("/nix/store/{name}.drv"),
            name: name.to_owned(),
            pname: name.split('-').next().unwrap().to_owned(),
            system: "x86_64-linux".to_owned(),
            required_features: if name == "b-1" { vec!["kvm".to_owned()] } else { Vec::new() },
            command: "7-1".to_owned(),
            machine: "ssh://m".to_owned(),
            speed_factor: 2.0,
            accepted_ms: at,
            waited_ms: Some(0),
            started_ms: Some(at),
            ended_ms: Some(at + 500),
            seconds: Some(seconds),
            outcome: Some(outcome),
            detail: None,
            input_bytes: None,
            moves: Vec::new(),
        }
    }

    #[test]
    fn builds_are_exported_in_order_with_the_history_of_their_time() {
        let builds = [
            build(4, "b-1", 3.0, BuildOutcome::Built),
            build(3, "a-2", 2.0, BuildOutcome::Built),
            build(2, "c-1", 9.0, BuildOutcome::Failed),
            build(1, "a-1", 1.5, BuildOutcome::Built),
            build(5, "a-1", 1.0, BuildOutcome::Built),
        ];
        let nix = FromNix {
            references: HashMap::from([(
                "/nix/store/b-1.drv".to_owned(),
                vec!["/nix/store/a-2.drv".to_owned(), "/nix/store/c-1.drv".to_owned()],
            )]),
            output_bytes: HashMap::from([("/nix/store/a-2.drv".to_owned(), 2_500_000)]),
        };
        let lines = machines::parse("ssh://m - - 2 2 kvm", "x86_64-linux").machines;
        let trace = export(&builds, &lines, &std::collections::BTreeMap::new(), &nix);
        let mut text = Vec::new();
        trace.write(&mut text).unwrap();
        assert_eq!(Trace::read(text.as_slice()).unwrap(), trace);
        insta::assert_snapshot!(String::from_utf8(text).unwrap());
    }
}
