//! The machines that a build may still go to, before and after the accept. A ranking is a
//! preference: machines that the policy did not name are used if those that it named are lost or
//! refuse.
//!
//! [`Failover`] is pure. [`Failover::next`] returns the machines to use now:
//!
//! 1. those of the policy's answer that are not out;
//! 2. the other machines that fit and are not out, in the order of Nix's rule;
//! 3. machines that are out, those of the answer first;
//! 4. machines that this build has lost before, since they may have been restarted.
//!
//! Whenever a machine is lost or refuses, the policy is asked again without it: before the accept
//! by [`decide`](crate::choice::decide), afterwards by [`Question`]. A build that has lost
//! [`MOST_LOST`] machines is assumed to be the cause (it may exhaust their memory) and is not sent
//! to another one.

use std::collections::{BTreeSet, HashSet};
use std::time::Duration;

use crate::choice::policy::StockRule;
use crate::choice::policy_thread::PolicyThread;
use crate::choice::pool::{Availabilities, Offered, Pool, Present};
use crate::history::History;
use hookrun_nix::database::Inputs;
use hookrun_nix::selection::{Action, Candidate, Decision, LocalMachine, Machine};

/// The number of machines that one build may lose.
pub(crate) const MOST_LOST: usize = 3;

/// The machines of one build, by URI.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Failover {
    /// Machines that were not tried yet, in the order of use.
    untried: Ranking,
    /// Machines that were lost once.
    again: Vec<String>,
    /// Machines that were lost or have refused.
    tried: BTreeSet<String>,
    lost: usize,
}

/// Machines in the order of use. A later group is used when the earlier ones are empty.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Ranking {
    /// Usable machines that the policy named.
    chosen: Vec<String>,
    /// Other usable machines, in the order of Nix's rule.
    others: Vec<String>,
    out: Vec<String>,
}

impl Ranking {
    /// Ranks all machines of `offered`, those of `answer` first.
    pub(crate) fn of(
        answer: &[String],
        offered: &[Machine],
        availabilities: &Availabilities,
        rule: StockRule,
    ) -> Self {
        let named: HashSet<&str> = answer.iter().map(String::as_str).collect();
        // There may be thousands of machines, and most often all of them are named.
        let by_rule =
            if named.len() < offered.len() { rule.ranked_with_full(offered) } else { Vec::new() };
        let by_rule = by_rule.into_iter().filter_map(|index| Some(&offered.get(index)?.uri));
        let rest = by_rule.filter(|uri| !named.contains(uri.as_str())).cloned();
        let is_usable = |uri: &String| availabilities.is_usable(uri);
        let (chosen, named_out): (Vec<String>, Vec<String>) =
            answer.iter().cloned().partition(is_usable);
        let (others, others_out): (Vec<String>, Vec<String>) = rest.partition(is_usable);
        Self { chosen, others, out: [named_out, others_out].concat() }
    }

    fn retain(&mut self, keep: impl Fn(&String) -> bool) {
        for group in [&mut self.chosen, &mut self.others, &mut self.out] {
            group.retain(&keep);
        }
    }
}

impl Failover {
    /// Returns the state of a build that was not offered to any machine yet.
    pub(crate) const fn to(ranking: Ranking) -> Self {
        Self { untried: ranking, again: Vec::new(), tried: BTreeSet::new(), lost: 0 }
    }

    /// Returns the machines to use now, the best first. It is empty if no machine is left.
    pub(crate) fn next(&self) -> &[String] {
        self.groups().next().map_or(&[], Vec::as_slice)
    }

    /// Returns the groups that are not empty, in the order of use.
    pub(crate) fn groups(&self) -> impl Iterator<Item = &Vec<String>> {
        let Ranking { chosen, others, out } = &self.untried;
        let open = !self.is_the_build();
        let groups = [chosen, others, out, &self.again].into_iter();
        groups.filter(move |group| open && !group.is_empty())
    }

    /// Replaces the ranking. If the policy has chosen no machine in the new one, those that it
    /// chose before stay first.
    pub(crate) fn rank(&mut self, ranking: Ranking) {
        let last = std::mem::replace(&mut self.untried, ranking);
        let tried = &self.tried;
        self.untried.retain(|uri| !tried.contains(uri));
        let Ranking { chosen, others, .. } = &mut self.untried;
        if chosen.is_empty() {
            *chosen = last.chosen.into_iter().filter(|uri| others.contains(uri)).collect();
            others.retain(|uri| !chosen.contains(uri));
        }
    }

    /// Removes a machine that did not take the build.
    pub(crate) fn refused(&mut self, machine: &str) {
        self.untried.retain(|known| known != machine);
        self.again.retain(|known| known != machine);
        self.tried.insert(machine.to_owned());
    }

    /// Removes a machine that was lost during the build.
    pub(crate) fn lost(&mut self, machine: &str) {
        let first_time = !self.tried.contains(machine);
        self.refused(machine);
        if first_time {
            self.again.push(machine.to_owned());
        }
        self.lost += 1;
    }

    /// Returns the machines that were lost or have refused.
    pub(crate) const fn tried(&self) -> &BTreeSet<String> {
        &self.tried
    }

    /// Returns whether the build itself is assumed to be the cause of the losses.
    pub(crate) const fn is_the_build(&self) -> bool {
        self.lost >= MOST_LOST
    }
}

/// A question to the policy about a build that was accepted.
pub(crate) struct Question<'a> {
    /// The machines at the time of the accept.
    pub(crate) pool: Pool,
    pub(crate) policy: Option<&'a mut PolicyThread>,
    pub(crate) candidate: &'a Candidate,
    pub(crate) inputs: &'a Inputs,
}

impl Question<'_> {
    /// Asks the policy without the machines that were `tried`. Returns the ranking, and the longest
    /// time before the policy is asked again. A policy without an answer chooses no machine.
    pub(crate) fn ask(
        &mut self,
        history: &mut History,
        tried: &BTreeSet<String>,
    ) -> (Ranking, Option<Duration>) {
        let Self { pool, policy, candidate, inputs } = self;
        let mut fitting = pool.fitting(candidate);
        fitting.retain(|index| {
            pool.machines.get(*index).is_some_and(|line| !tried.contains(&line.uri))
        });
        let lines = fitting.iter().filter_map(|index| pool.machines.get(*index));
        let availabilities = Availabilities::of(lines, history);
        let past = history.past(&candidate.pname, &candidate.system);
        let present = Present::of((*inputs).clone(), history);
        let Offered { machines, .. } = pool.offered(
            candidate,
            &fitting,
            &availabilities,
            &past,
            &present,
            history.directory(),
        );
        // After the accept this machine cannot build it any longer.
        let local = LocalMachine::default();
        let decision = policy.as_mut().filter(|_| !machines.is_empty()).and_then(|policy| {
            let decision = policy.ask(candidate, &machines, &local);
            policy.stop();
            decision.ok()
        });
        let (answer, ask_again) = match decision {
            Some(Decision { action: Action::Machines(uris), ask_again_ms, .. }) => {
                (uris, ask_again_ms.map(Duration::from_millis))
            }
            _ => (Vec::new(), None),
        };
        let rule = StockRule { division: pool.settings.division() };
        (Ranking::of(&answer, &machines, &availabilities, rule), ask_again)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn texts(machines: &[&str]) -> Vec<String> {
        machines.iter().map(|machine| String::from(*machine)).collect()
    }

    fn ranking(chosen: &[&str], others: &[&str], out: &[&str]) -> Ranking {
        Ranking { chosen: texts(chosen), others: texts(others), out: texts(out) }
    }

    #[test]
    fn machines_that_the_policy_left_out_follow_those_that_it_named() {
        let mut failover = Failover::to(ranking(&["a"], &["b"], &["c"]));
        assert_eq!(failover.next(), texts(&["a"]));
        failover.refused("a");
        assert_eq!(failover.next(), texts(&["b"]));
        failover.refused("b");
        assert_eq!(failover.next(), texts(&["c"]), "a machine that is out is better than none");
        failover.refused("c");
        assert!(failover.next().is_empty());
    }

    #[test]
    fn a_lost_machine_is_tried_again_once_after_all_others() {
        let mut failover = Failover::to(ranking(&["a"], &["b"], &[]));
        failover.lost("a");
        assert_eq!(failover.next(), texts(&["b"]));
        failover.refused("b");
        assert_eq!(failover.next(), texts(&["a"]));
        failover.lost("a");
        assert!(failover.next().is_empty(), "it is not tried a third time");
        assert!(!failover.is_the_build());
    }

    #[test]
    fn a_new_answer_does_not_restore_tried_machines() {
        let mut failover = Failover::to(ranking(&["a", "b"], &["c"], &[]));
        failover.refused("a");
        failover.rank(ranking(&["a", "c"], &["b"], &[]));
        assert_eq!(failover.next(), texts(&["c"]));
    }

    #[test]
    fn without_an_answer_the_last_ranking_is_kept() {
        let mut failover = Failover::to(ranking(&["a", "b", "d"], &["c"], &[]));
        failover.refused("a");
        failover.rank(ranking(&[], &["c", "b"], &["d"]));
        assert_eq!(failover.next(), texts(&["b"]), "d is out by now");
        failover.refused("b");
        assert_eq!(failover.next(), texts(&["c"]));
    }

    #[test]
    fn a_build_that_loses_its_machines_is_stopped() {
        let mut failover = Failover::to(ranking(&["a", "b"], &["c", "d"], &[]));
        for machine in ["a", "b", "c"] {
            assert!(!failover.is_the_build());
            failover.lost(machine);
        }
        assert!(failover.is_the_build() && failover.next().is_empty());
    }

    proptest! {
        #[test]
        fn every_build_ends_after_it_was_offered_to_all_machines(
            machines in 0usize..6,
            chosen in 0usize..6,
            refusals in prop::collection::vec(any::<bool>(), 64),
        ) {
            let names: Vec<String> = (0..machines).map(|number| number.to_string()).collect();
            let (first, rest) = names.split_at(chosen.min(machines));
            let text = |names: &[String]| names.iter().map(|name| name.as_str().into()).collect();
            let all = Ranking { chosen: text(first), others: text(rest), out: Vec::new() };
            let mut failover = Failover::to(all.clone());
            let mut steps = 0;
            for refused in refusals {
                let Some(machine) = failover.next().first().cloned() else { break };
                if refused { failover.refused(&machine) } else { failover.lost(&machine) }
                failover.rank(all.clone());
                steps += 1;
            }
            prop_assert!(failover.next().is_empty());
            prop_assert!(steps <= machines + MOST_LOST);
            prop_assert!(failover.is_the_build() || failover.tried().len() == machines);
        }
    }
}
