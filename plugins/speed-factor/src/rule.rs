//! The rule, as a function of what it is told.

use std::cmp::Ordering;

use hookrun_sdk::builder_selection::{Candidate, Decision, LocalMachine, Machine};

/// The `config` table.
#[derive(Debug, Clone, Copy, Default, PartialEq, serde::Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Options {
    /// How fast this machine is; none: machines come first.
    #[serde(default)]
    pub local_speed_factor: Option<f64>,
}

/// Where to build.
pub fn decide(options: Options, candidate: &Candidate, machines: &[Machine], local: &LocalMachine) -> Decision {
    let mut free: Vec<&Machine> = machines.iter().filter(|machine| machine.load < machine.slots).collect();
    free.sort_by(|a, b| compare(a, b));
    let here_now = local.able && local.willing;

    let Some(best) = free.first() else {
        // Nix compares the system with this machine's, so a `builtin` derivation waits for a machine as well.
        return if here_now && candidate.system != "builtin" {
            Decision::local(format!("all {} are full, and this machine is free", machines_in_words(machines)))
        } else {
            Decision::postpone(format!("all {} are full", machines_in_words(machines)))
        };
    };
    if here_now {
        if !best.healthy {
            return Decision::local(format!("{} failed lately, and this machine is free", best.uri));
        }
        // This machine has a free slot and says no more about its load, so it counts as idle.
        if let Some(factor) = options.local_speed_factor
            && ranks((0, factor), (best.load, best.speed_factor)) != Ordering::Greater
        {
            return Decision::local(format!("this machine at factor {factor} beats {}", described(best)));
        }
    }
    let reason = match free.get(1) {
        Some(next) => format!("{} beats {}", described(best), described(next)),
        None if machines.len() > 1 => format!("{} is the only one of {} with a free slot", described(best), machines.len()),
        None => format!("{} is the only one that fits", described(best)),
    };
    Decision::machines(free.iter().map(|machine| machine.uri.as_str()), reason)
}

/// `Less` if `a` is better; `Equal` leaves it to the order of the machines file.
fn compare(a: &Machine, b: &Machine) -> Ordering {
    b.healthy.cmp(&a.healthy).then_with(|| ranks((a.load, a.speed_factor), (b.load, b.speed_factor)))
}

/// Nix's comparison of (load, speed factor).
fn ranks((a_load, a_factor): (u32, f64), (b_load, b_factor): (u32, f64)) -> Ordering {
    (f64::from(a_load) / a_factor)
        .total_cmp(&(f64::from(b_load) / b_factor))
        .then(b_factor.total_cmp(&a_factor))
        .then(a_load.cmp(&b_load))
}

/// `ssh://m2: load 0/4 at factor 4`.
fn described(machine: &Machine) -> String {
    let Machine { uri, load, slots, speed_factor, healthy, .. } = machine;
    let health = if *healthy { "" } else { ", failed lately" };
    format!("{uri} (load {load}/{slots} at factor {speed_factor}{health})")
}

fn machines_in_words(machines: &[Machine]) -> String {
    if machines.len() == 1 {
        "slots of the one machine that fits".to_owned()
    } else {
        format!("{} machines that fit", machines.len())
    }
}

#[cfg(test)]
mod tests {
    use hookrun_sdk::builder_selection::Action;
    use proptest::prelude::*;

    use super::*;

    fn machine(uri: &str, slots: u32, load: u32, speed_factor: f64, healthy: bool) -> Machine {
        Machine { uri: uri.to_owned(), slots, load, speed_factor, healthy, ..Machine::default() }
    }

    fn candidate(system: &str) -> Candidate {
        Candidate {
            drv_path: "/nix/store/00bgd045z0d4icpbc2yyz4gx48ak44la-a.drv".to_owned(),
            name: "a".to_owned(),
            system: system.to_owned(),
            ..Candidate::default()
        }
    }

    fn here(able: bool, willing: bool) -> LocalMachine {
        LocalMachine { able, willing, slots: 4, ..LocalMachine::default() }
    }

    fn told(factor: Option<f64>, machines: &[Machine], local: &LocalMachine) -> String {
        let decision = decide(Options { local_speed_factor: factor }, &candidate("x86_64-linux"), machines, local);
        format!("{:?}: {}", decision.action, decision.reason)
    }

    #[test]
    fn reasons() {
        let busy = [machine("ssh://m1", 4, 1, 1.0, true), machine("ssh://m2", 4, 0, 4.0, true)];
        let dead = [machine("ssh://m1", 4, 1, 1.0, true), machine("ssh://m2", 4, 0, 4.0, false)];
        let full = [machine("ssh://m1", 1, 1, 1.0, true), machine("ssh://m2", 4, 4, 4.0, true)];
        let only_dead = [machine("ssh://m2", 4, 0, 4.0, false)];
        let lines = [
            told(None, &busy, &here(true, true)),
            told(Some(2.0), &busy, &here(true, true)),
            told(Some(8.0), &busy, &here(true, true)),
            told(Some(8.0), &busy, &here(true, false)),
            told(Some(8.0), &busy, &here(false, true)),
            told(None, &dead, &here(false, false)),
            told(None, &only_dead, &here(true, true)),
            told(None, &only_dead, &here(false, true)),
            told(None, &full, &here(true, true)),
            told(None, &full, &here(true, false)),
            told(None, &full[..1], &here(false, true)),
            told(None, &[full[0].clone(), busy[1].clone()], &here(false, true)),
        ];
        insta::assert_snapshot!(lines.join("\n"));
    }

    prop_compose! {
        fn any_machines()(
            machines in prop::collection::vec((0u32..9, 0u32..9, 1u32..9, any::<bool>()), 1..9),
        ) -> Vec<Machine> {
            let machine = |(index, (slots, load, factor, healthy)): (usize, (u32, u32, u32, bool))| {
                machine(&format!("ssh://m{index}"), slots, load.min(slots), f64::from(factor), healthy)
            };
            machines.into_iter().enumerate().map(machine).collect()
        }
    }

    /// `build-remote.cc` of Nix 2.20 and newer, for machines with a free slot; whole factors are exact in `float` and `double`.
    fn nix<'a>(machines: impl Iterator<Item = &'a Machine>) -> Option<&'a Machine> {
        machines.filter(|machine| machine.load < machine.slots).fold(None, |best: Option<&Machine>, machine| {
            let Some(old) = best else { return Some(machine) };
            let (new_load, old_load) = (u64::from(machine.load), u64::from(old.load));
            // a/b < c/d without a division: the factors are whole.
            let (new, old_one) = (new_load * whole(old.speed_factor), old_load * whole(machine.speed_factor));
            let better = new < old_one
                || (new == old_one
                    && (machine.speed_factor > old.speed_factor
                        || (whole(machine.speed_factor) == whole(old.speed_factor) && new_load < old_load)));
            Some(if better { machine } else { old })
        })
    }

    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "small whole numbers")]
    fn whole(factor: f64) -> u64 {
        factor as u64
    }

    proptest! {
        #[test]
        fn without_options_and_failures_it_is_nix(machines in any_machines(), able: bool, willing: bool) {
            let machines: Vec<Machine> = machines.into_iter().map(|machine| Machine { healthy: true, ..machine }).collect();
            let decision = decide(Options::default(), &candidate("x86_64-linux"), &machines, &here(able, willing));
            match (decision.action, nix(machines.iter())) {
                (Action::Machines(uris), Some(best)) => prop_assert_eq!(&uris[0], &best.uri),
                (Action::Local, None) => prop_assert!(able && willing),
                (Action::Postpone, None) => prop_assert!(!(able && willing)),
                (action, best) => prop_assert!(false, "{:?} where Nix takes {:?}", action, best),
            }
        }

        #[test]
        fn only_free_machines_healthy_ones_first_each_once(machines in any_machines(), able: bool, willing: bool, factor in prop::option::of(0.1f64..9.0)) {
            let decision = decide(Options { local_speed_factor: factor }, &candidate("x86_64-linux"), &machines, &here(able, willing));
            prop_assert!(!decision.reason.is_empty());
            match decision.action {
                Action::Machines(uris) => {
                    let chosen: Vec<&Machine> = uris.iter().map(|uri| machines.iter().find(|m| m.uri == *uri).unwrap()).collect();
                    prop_assert_eq!(chosen.len(), machines.iter().filter(|m| m.load < m.slots).count());
                    prop_assert!(chosen.iter().all(|machine| machine.load < machine.slots));
                    prop_assert!(chosen.is_sorted_by_key(|machine| !machine.healthy));
                }
                Action::Local => prop_assert!(able && willing),
                Action::Postpone => prop_assert!(machines.iter().all(|machine| machine.load >= machine.slots)),
                Action::Decline => prop_assert!(false, "this rule always has an opinion"),
            }
        }
    }
}
