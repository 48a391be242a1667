//! Makes a machines file from the history: order, speed factors, and omitted machines. Used by
//! `hookrun builders render`. Pure.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use hookrun_nix::machines::MachineLine;

/// The number of builds from which on a measured factor is used instead of the written one.
const ENOUGH_BUILDS: u32 = 10;
/// The maximum ratio between a measured factor and the written one, in both directions, because two
/// machines give few measurements.
const MOST_CHANGE: f64 = 4.0;

/// The known facts about one machine.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Knowledge {
    /// The reason why the machine is omitted, if it is.
    pub out: Option<String>,
    /// The number of successful builds of packages that were built on other machines too.
    pub builds: u32,
    /// The measured speed on the scale of column 5, as a median over packages.
    pub measured_factor: Option<f64>,
}

/// Returns the text of a machines file. If all machines have failed, none is omitted.
pub fn render(
    machines: &[MachineLine],
    knowledge: &BTreeMap<String, Knowledge>,
    whole: bool,
) -> String {
    let nothing = Knowledge::default();
    let known = |line: &MachineLine| knowledge.get(line.uri.as_str()).unwrap_or(&nothing);
    let all_out = machines.iter().all(|line| known(line).out.is_some());
    let mut text =
        "# Written by `hookrun builders render`. Changes here are lost; change the original file instead.\n"
            .to_owned();
    let mut lines: Vec<(f64, &MachineLine)> =
        machines.iter().map(|line| (factor(line, known(line)), line)).collect();
    // If machines are equal, Nix uses the first one. A stable sort keeps their order.
    lines.sort_by(|(a, _), (b, _)| b.total_cmp(a));
    let lowest = lines.iter().map(|(factor, _)| *factor).fold(f64::INFINITY, f64::min);
    for (factor, line) in lines {
        let shown = if whole {
            (factor / lowest.min(1.0)).round().max(1.0)
        } else {
            (factor * 100.0).round() / 100.0
        };
        let line_as_it_is_now = MachineLine { speed_factor: shown, ..line.clone() };
        match &known(line).out {
            Some(why) if !all_out => {
                // Nix splits at semicolons before it looks for comments (`parseBuilderLines`,
                // `libstore/machines.cc`).
                let why = hookrun_nix::terminal::printable(why).replace(';', ",");
                let _ = writeln!(text, "# omitted: {why}\n# {line_as_it_is_now}");
            }
            _ => {
                let _ = writeln!(text, "{line_as_it_is_now}");
            }
        }
    }
    text
}

/// Returns the new column 5.
fn factor(line: &MachineLine, known: &Knowledge) -> f64 {
    match known.measured_factor {
        Some(measured)
            if known.builds >= ENOUGH_BUILDS && measured.is_finite() && measured > 0.0 =>
        {
            measured.clamp(line.speed_factor / MOST_CHANGE, line.speed_factor * MOST_CHANGE)
        }
        _ => line.speed_factor,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use hookrun_nix::machines;

    #[test]
    fn machines_are_sorted_and_failed_ones_are_omitted() {
        let text = "ssh://a - - 2 1 ; ssh://b x86_64-linux /key 4 2 kvm ; ssh://c - - 1 0.5 ; ssh://d - - 1 2";
        let machines = machines::parse(text, "x86_64-linux").machines;
        let known = |out: Option<&str>, builds, measured_factor| Knowledge {
            out: out.map(ToOwned::to_owned),
            builds,
            measured_factor,
        };
        let knowledge = BTreeMap::from([
            ("ssh://a".to_owned(), known(None, 50, Some(3.217))),
            ("ssh://b".to_owned(), known(Some("failed; to start\nSSH"), 0, None)),
            ("ssh://c".to_owned(), known(None, 3, Some(9.0))),
        ]);
        let all_out = machines
            .iter()
            .map(|line| (line.uri.clone(), known(Some("no answer"), 0, None)))
            .collect();
        let texts = [
            render(&machines, &knowledge, false),
            render(&machines, &knowledge, true),
            render(&machines, &all_out, false),
        ];
        insta::assert_snapshot!(texts.join("\n"));
        let back = machines::parse(&texts[0], "x86_64-linux");
        assert_eq!((back.machines.len(), back.warnings.len()), (3, 0));
    }
}
