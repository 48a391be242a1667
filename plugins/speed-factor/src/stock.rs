//! Nix's own rule (`build-remote.cc`, the same from 2.3 to 2.35): of the machines with a free slot
//! the lowest load divided by speed factor, then the higher factor, then the lower load, then the
//! first in the list. Health, history and hints are not looked at.

use std::cmp::Ordering;

use hookrun_sdk::builder_selection::{Candidate, Decision, LocalMachine, Machine};

/// What Nix's hook would answer.
pub fn decide(candidate: &Candidate, machines: &[Machine], local: &LocalMachine) -> Decision {
    let compare = if local.whole_speed_factors { whole } else { fractions };
    let mut free: Vec<&Machine> =
        machines.iter().filter(|machine| machine.load < machine.slots).collect();
    free.sort_by(|a, b| compare(a, b).then(a.load.cmp(&b.load)));
    let Some(best) = free.first() else {
        // `couldBuildLocally` compares the system with this system and extra-platforms only, so it
        // is false for `builtin`.
        return if local.able && local.willing && candidate.system != "builtin" {
            Decision::decline("every machine that fits is full, and this one is free")
        } else {
            Decision::postpone("every machine that fits is full")
        };
    };
    let reason = format!("load {}/{} at factor {}", best.load, best.slots, best.speed_factor);
    Decision::machines(free.iter().map(|machine| machine.uri.as_str()), reason)
}

/// 2.19 and older: factors are unsigned integers (0 counts as 1), and so is the quotient.
fn whole(a: &Machine, b: &Machine) -> Ordering {
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "saturates; those versions know only integers"
    )]
    let factor = |machine: &Machine| (machine.speed_factor as u32).max(1);
    let quotient =
        |machine: &Machine| machine.load.checked_div(factor(machine)).unwrap_or(machine.load);
    quotient(a).cmp(&quotient(b)).then(factor(b).cmp(&factor(a)))
}

/// 2.20 and newer: C++ `float`.
fn fractions(a: &Machine, b: &Machine) -> Ordering {
    #[expect(clippy::cast_possible_truncation, reason = "the precision of Nix")]
    let single = |value: f64| value as f32;
    let factor = |machine: &Machine| single(machine.speed_factor);
    let quotient = |machine: &Machine| single(f64::from(machine.load)) / factor(machine);
    quotient(a).total_cmp(&quotient(b)).then(factor(b).total_cmp(&factor(a)))
}

#[cfg(test)]
mod tests {
    use hookrun_sdk::builder_selection::Action;
    use proptest::prelude::*;

    use super::*;

    /// `build-remote.cc` as it is written, with its loop; `None` is no free slot.
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        clippy::cast_precision_loss,
        clippy::float_cmp,
        reason = "what the C++ does"
    )]
    fn model(integer: bool, machines: &[Machine]) -> Option<usize> {
        let mut best: Option<(usize, u32)> = None;
        for (index, m) in machines.iter().enumerate() {
            if m.load >= m.slots {
                continue;
            }
            let better = match best {
                None => true,
                Some((place, best_load)) => {
                    let b = &machines[place];
                    if integer {
                        let (mf, bf) =
                            ((m.speed_factor as u32).max(1), (b.speed_factor as u32).max(1));
                        let (ml, bl) = (m.load / mf, best_load / bf);
                        ml < bl || (ml == bl && (mf > bf || (mf == bf && m.load < best_load)))
                    } else {
                        let (mf, bf) = (m.speed_factor as f32, b.speed_factor as f32);
                        let (ml, bl) = (m.load as f32 / mf, best_load as f32 / bf);
                        ml < bl || (ml == bl && (mf > bf || (mf == bf && m.load < best_load)))
                    }
                }
            };
            if better {
                best = Some((index, m.load));
            }
        }
        best.map(|(place, _)| place)
    }

    proptest! {
        #[test]
        fn equals_nix_on_every_input(
            integer: bool,
            machines in prop::collection::vec((0u32..9, 0u32..9, prop_oneof![(1u32..9).prop_map(f64::from), 0.01f64..20.0], any::<bool>()), 1..9),
            able: bool,
            willing: bool,
            builtin: bool,
        ) {
            let machine = |(index, (slots, load, speed_factor, healthy)): (usize, (u32, u32, f64, bool))| {
                Machine { uri: format!("ssh://m{index}"), slots, load, speed_factor, healthy, ..Machine::default() }
            };
            let machines: Vec<Machine> = machines.into_iter().enumerate().map(machine).collect();
            let system = if builtin { "builtin" } else { "x86_64-linux" };
            let candidate = Candidate { system: system.to_owned(), builtin, ..Candidate::default() };
            let local = LocalMachine { able, willing, whole_speed_factors: integer, ..LocalMachine::default() };
            match (decide(&candidate, &machines, &local).action, model(integer, &machines)) {
                (Action::Machines(uris), Some(best)) => {
                    prop_assert_eq!(&uris[0], &machines[best].uri);
                    // What comes after the first is Nix's choice once the first cannot be used.
                    let rest: Vec<Machine> = machines.iter().filter(|m| m.uri != uris[0]).cloned().collect();
                    prop_assert_eq!(uris.get(1), model(integer, &rest).map(|next| &rest[next].uri));
                }
                (Action::Decline, None) => prop_assert!(able && willing && !builtin),
                (Action::Postpone, None) => prop_assert!(!(able && willing && !builtin)),
                (action, best) => prop_assert!(false, "{:?} where Nix takes {:?}", action, best),
            }
        }
    }
}
