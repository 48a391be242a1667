//! The trait of policies, the check of their answers, and the rule of Nix itself, to which every
//! failure of a policy falls back. Pure: nothing here reads a file or a clock.

use std::cmp::Ordering;
use std::collections::HashSet;

use hookrun_nix::selection::{
    Action, BUILTIN, Candidate, Decision, LocalMachine, Machine, PolicyError,
};

/// Chooses where to build.
pub trait Policy: Send {
    /// Ranks the machines. Called once per candidate, with at least one machine that can build it;
    /// full machines are included. It runs on a separate thread that lives as long as the session.
    /// If the answer takes longer than the policy's deadline, it is dropped and the policy is not
    /// asked again. It must not print, because standard output is the reply to Nix.
    ///
    /// # Errors
    /// After any error the session prints one line and uses [`StockRule`].
    fn select(
        &self,
        candidate: &Candidate,
        machines: &[Machine],
        local: &LocalMachine,
    ) -> Result<Decision, PolicyError>;
}

/// The shortest time before a policy is asked again, in milliseconds. Without it, a policy that
/// asks for 0 would keep a processor busy.
const SOONEST_ASK_AGAIN_MS: u64 = 1000;
/// The number of machines that a message lists. A fleet has hundreds.
const MAX_SHOWN: usize = 5;

/// Checks an answer against the question, and removes repeated machines from it.
///
/// # Errors
/// The answer names a machine that was not offered, or no machine, or `local` although this machine
/// cannot build the candidate.
pub fn checked(
    decision: Decision,
    machines: &[Machine],
    local: &LocalMachine,
) -> Result<Decision, PolicyError> {
    let Decision { action, reason, ask_again_ms } = decision;
    let action = match action {
        Action::Machines(uris) => {
            let offered: HashSet<&str> =
                machines.iter().map(|machine| machine.uri.as_str()).collect();
            let mut seen: HashSet<&str> = HashSet::new();
            let mut unique: Vec<String> = Vec::with_capacity(uris.len().min(offered.len()));
            for uri in uris {
                let Some(known) = offered.get(uri.as_str()) else {
                    return Err(PolicyError::Invalid(format!(
                        "machine `{uri}` was not offered; offered: {}",
                        shown(machines)
                    )));
                };
                if seen.insert(known) {
                    unique.push(uri);
                }
            }
            if unique.is_empty() {
                return Err(PolicyError::Invalid(format!(
                    "action `machines` without a machine; name one of {}, or answer `decline`",
                    shown(machines)
                )));
            }
            Action::Machines(unique)
        }
        Action::Local if !local.able => {
            return Err(PolicyError::Invalid(
                "action `local`, but this machine cannot build the derivation (`able` is false)"
                    .to_owned(),
            ));
        }
        other @ (Action::Local | Action::Postpone | Action::Decline) => other,
    };
    let ask_again_ms = ask_again_ms.map(|within| within.max(SOONEST_ASK_AGAIN_MS));
    Ok(Decision { action, reason, ask_again_ms })
}

/// Returns the first machines, for messages.
fn shown(machines: &[Machine]) -> String {
    let named = machines.iter().take(MAX_SHOWN).map(|machine| format!("`{}`", machine.uri));
    let named = named.collect::<Vec<_>>().join(", ");
    match machines.len().saturating_sub(MAX_SHOWN) {
        0 => named,
        more => format!("{named} and {more} more"),
    }
}

/// The rule of Nix's own build hook (`build-remote.cc`, the same from 2.3 to 2.35): lowest load
/// divided by speed factor, then the higher factor, then the lower load, then the first in the
/// list; only machines with a free slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct StockRule {
    /// The arithmetic of the calling Nix.
    pub division: Division,
}

/// The arithmetic for dividing the load by the speed factor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Division {
    /// Nix 2.19 and older: factors are unsigned integers (0 counts as 1), and so is the quotient.
    Integer,
    /// Nix 2.20 and newer: C++ `float`.
    #[default]
    Float,
}

impl StockRule {
    /// Returns the machines with a free slot, best first, as indexes into `machines`.
    pub fn ranked(self, machines: &[Machine]) -> Vec<usize> {
        let free = |index: &usize| machines.get(*index).is_some_and(Machine::has_free_slot);
        self.ranked_with_full(machines).into_iter().filter(free).collect()
    }

    /// Returns all machines, also full ones, in the same order.
    pub fn ranked_with_full(self, machines: &[Machine]) -> Vec<usize> {
        let mut all: Vec<usize> = (0..machines.len()).collect();
        all.sort_by(|a, b| match (machines.get(*a), machines.get(*b)) {
            (Some(a), Some(b)) => self.compare(a, b),
            _ => Ordering::Equal,
        });
        all
    }

    /// Returns the decision of Nix's hook.
    pub fn decide(
        self,
        candidate: &Candidate,
        machines: &[Machine],
        local: &LocalMachine,
    ) -> Decision {
        let ranked = self.ranked(machines);
        let mut ranked = ranked.into_iter().filter_map(|index| machines.get(index)).peekable();
        let Some(best) = ranked.peek() else {
            return Self::without_machine(candidate, machines.len(), local);
        };
        let reason = format!("load {}/{} at factor {}", best.load, best.slots, best.speed_factor);
        Decision::new(Action::Machines(ranked.map(|machine| machine.uri.clone()).collect()), reason)
    }

    /// Returns `Less` if Nix prefers `a`, and `Equal` if the order of the list decides.
    fn compare(self, a: &Machine, b: &Machine) -> Ordering {
        match self.division {
            Division::Integer => {
                let factor = |machine: &Machine| whole_factor(machine.speed_factor);
                let quotient = |machine: &Machine| machine.load / factor(machine);
                quotient(a).cmp(&quotient(b)).then(factor(b).cmp(&factor(a)))
            }
            Division::Float => {
                let factor = |machine: &Machine| single(machine.speed_factor);
                let quotient =
                    |machine: &Machine| single(f64::from(machine.load)) / factor(machine);
                quotient(a).total_cmp(&quotient(b)).then(factor(b).total_cmp(&factor(a)))
            }
        }
        .then(a.load.cmp(&b.load))
    }

    /// Returns the answer of Nix's hook if no machine is free: `postpone` if there is a machine
    /// that fits and this machine cannot build right now, else `decline`. `fitting` is the number
    /// of machines that fit and have not failed.
    pub fn without_machine(
        candidate: &Candidate,
        fitting: usize,
        local: &LocalMachine,
    ) -> Decision {
        // `couldBuildLocally` compares the system with this system and extra-platforms only, so it
        // is false for `builtin`.
        let here_now = local.able && local.willing && candidate.system != BUILTIN;
        if fitting > 0 && !here_now {
            Decision::new(Action::Postpone, "every machine that fits is full")
        } else {
            let reason = if fitting > 0 {
                "every machine that fits is full, and this one is free"
            } else {
                "no machine fits"
            };
            Decision::new(Action::Decline, reason)
        }
    }
}

impl Policy for StockRule {
    fn select(
        &self,
        candidate: &Candidate,
        machines: &[Machine],
        local: &LocalMachine,
    ) -> Result<Decision, PolicyError> {
        Ok(self.decide(candidate, machines, local))
    }
}

/// Converts the factor to the type in Nix 2.19 and older.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "saturates, and those Nix versions know only integers"
)]
fn whole_factor(factor: f64) -> u32 {
    (factor as u32).max(1)
}

/// Converts to C++ `float`, which Nix computes with.
#[expect(clippy::cast_possible_truncation, reason = "the precision of Nix")]
fn single(value: f64) -> f32 {
    value as f32
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn machine(uri: &str, slots: u32, load: u32, speed_factor: f64) -> Machine {
        Machine { uri: uri.into(), slots, load, speed_factor, ..Machine::default() }
    }

    fn candidate(system: &str) -> Candidate {
        Candidate {
            drv_path: "/nix/store/00bgd045z0d4icpbc2yyz4gx48ak44la-a.drv".to_owned(),
            name: "a".to_owned(),
            system: system.to_owned(),
            ..Candidate::default()
        }
    }

    fn best(division: Division, machines: &[Machine]) -> Option<&str> {
        StockRule { division }.ranked(machines).first().map(|index| machines[*index].uri.as_str())
    }

    #[test]
    fn the_faster_machine_comes_first_then_the_less_busy_one() {
        let idle = [machine("slow", 4, 0, 1.0), machine("fast", 4, 0, 4.0)];
        assert_eq!(best(Division::Float, &idle), Some("fast"));
        let busy = [machine("slow", 4, 0, 1.0), machine("fast", 4, 2, 4.0)];
        assert_eq!(best(Division::Float, &busy), Some("slow"), "0 is less than 2/4");
        assert_eq!(
            best(Division::Integer, &busy),
            Some("fast"),
            "2/4 is 0 for integers, so the factor decides"
        );
        assert_eq!(
            best(Division::Float, &[machine("full", 2, 2, 9.0), machine("free", 1, 0, 1.0)]),
            Some("free")
        );
        assert_eq!(
            best(Division::Float, &[machine("first", 2, 0, 1.0), machine("second", 2, 0, 1.0)]),
            Some("first")
        );
        assert_eq!(
            best(Division::Integer, &[machine("busier", 9, 1, 4.0), machine("freer", 9, 0, 4.0)]),
            Some("freer")
        );
    }

    #[test]
    fn without_a_free_machine_nix_builds_here_or_asks_again() {
        let local =
            |able, willing| LocalMachine { able, willing, slots: 1, ..LocalMachine::default() };
        let full = [machine("m", 1, 1, 1.0)];
        let answer = |system: &str, local: &LocalMachine| {
            StockRule::default().select(&candidate(system), &full, local).unwrap().action
        };
        assert_eq!(answer("x86_64-linux", &local(true, true)), Action::Decline);
        assert_eq!(answer("x86_64-linux", &local(true, false)), Action::Postpone);
        assert_eq!(answer("x86_64-linux", &local(false, true)), Action::Postpone);
        assert_eq!(answer(BUILTIN, &local(true, true)), Action::Postpone);
        assert_eq!(
            StockRule::without_machine(&candidate("x"), 0, &local(false, false)).action,
            Action::Decline
        );
    }

    #[test]
    fn an_answer_names_each_offered_machine_once_and_nothing_else() {
        let machines = [machine("a", 1, 0, 1.0), machine("b", 1, 0, 1.0)];
        let able = LocalMachine { able: true, ..LocalMachine::default() };
        let decision = |action| Decision::new(action, "");
        let machines_of =
            |uris: &[&str]| Action::Machines(uris.iter().map(|uri| String::from(*uri)).collect());
        let ok = checked(decision(machines_of(&["b", "a", "b"])), &machines, &able).unwrap();
        assert_eq!(ok.action, machines_of(&["b", "a"]));
        let message = |result: Result<Decision, PolicyError>| result.unwrap_err().to_string();
        insta::assert_snapshot!(message(checked(decision(machines_of(&["c"])), &machines, &able)), @"invalid answer: machine `c` was not offered; offered: `a`, `b`");
        insta::assert_snapshot!(message(checked(decision(machines_of(&[])), &machines, &able)), @"invalid answer: action `machines` without a machine; name one of `a`, `b`, or answer `decline`");
        insta::assert_snapshot!(message(checked(decision(Action::Local), &machines, &LocalMachine::default())), @"invalid answer: action `local`, but this machine cannot build the derivation (`able` is false)");
        insta::assert_snapshot!(Action::from_word("wait", Vec::new()).unwrap_err().to_string(), @"invalid answer: action `wait` is not one of `machines`, `local`, `postpone` and `decline`");
    }

    /// `build-remote.cc` of 2.8 and of 2.26, line by line.
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        clippy::cast_precision_loss,
        clippy::float_cmp,
        reason = "the behaviour of the C++ code"
    )]
    fn model(division: Division, machines: &[Machine]) -> Option<usize> {
        let mut best: Option<usize> = None;
        for (index, m) in machines.iter().enumerate() {
            if m.load >= m.slots {
                continue;
            }
            let is_best = match best {
                None => true,
                Some(b) => {
                    let b = &machines[b];
                    let (less, equal, faster, as_fast) = match division {
                        Division::Integer => {
                            let (mf, bf) =
                                ((m.speed_factor as u32).max(1), (b.speed_factor as u32).max(1));
                            (
                                m.load / mf < b.load / bf,
                                m.load / mf == b.load / bf,
                                mf > bf,
                                mf == bf,
                            )
                        }
                        Division::Float => {
                            let (mf, bf) = (m.speed_factor as f32, b.speed_factor as f32);
                            let (ml, bl) = (m.load as f32 / mf, b.load as f32 / bf);
                            (ml < bl, ml == bl, mf > bf, mf == bf)
                        }
                    };
                    less || (equal && (faster || (as_fast && m.load < b.load)))
                }
            };
            if is_best {
                best = Some(index);
            }
        }
        best
    }

    proptest! {
        #[test]
        fn the_rule_chooses_the_machine_that_nix_chooses(
            division in prop_oneof![Just(Division::Integer), Just(Division::Float)],
            machines in prop::collection::vec((0u32..9, 0u32..9, prop_oneof![(0u32..9).prop_map(f64::from), 0.01f64..20.0]), 0..9),
        ) {
            let machines: Vec<Machine> = machines
                .into_iter()
                .enumerate()
                .map(|(index, (slots, load, factor))| {
                    let factor = if factor == 0.0 && division == Division::Float { 1.0 } else { factor };
                    machine(&index.to_string(), slots, load.min(slots), factor)
                })
                .collect();
            prop_assert_eq!(StockRule { division }.ranked(&machines).first().copied(), model(division, &machines));
        }
    }
}
