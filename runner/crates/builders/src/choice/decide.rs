//! Decides where a candidate is built: asks the policy, takes a slot, and connects if the result
//! must be known before the answer.
//!
//! Accepting before connecting saves Nix the wait, but rules out a local build. So it is done only
//! for builds that this machine cannot do ([`before_accept`](crate::choice::before_accept)), and
//! only if the configuration allows it ([`config::Builders::early_accept`]).
//!
//! The policy's answer is a preference ([`failover`](crate::run::failover)): when a machine
//! refuses, the policy is asked again without it. If the policy then names no machine, all machines
//! that are left are used.

use std::io::Write;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::Duration;

use crate::choice::answer::{Answer, NotAccepted, cannot_start};
use crate::choice::before_accept::{BeforeAccept, NotConnected};
use crate::choice::candidate::OpenCandidate;
use crate::choice::explanation::Explanation;
use crate::choice::policy::StockRule;
use crate::choice::policy_thread::PolicyThread;
use crate::choice::pool::{Decided, DecidedBy, Offered, Pool};
use crate::history::{History, now_ms};
use crate::protocol::reply::{Level, Pending};
use crate::protocol::request::Request;
use crate::run::delegate::{Accepted, First};
use crate::run::driver::{Connected, DriveResult, Driver};
use crate::run::failover::{Failover, Ranking};
use crate::run::local_builds;
use crate::run::stock::StockHook;
use crate::slots::wait::Queue;
use hookrun_config as config;
use hookrun_nix::event::NixDirs;
use hookrun_nix::selection::{Action, Decision, Machine};

/// The number of machines that a message about a build names.
const SHOWN: usize = 5;
/// A derivation that a policy has postponed for this long waits in the queue instead, or is built
/// on this machine.
const LONGEST_POSTPONED: Duration = Duration::from_mins(10);
/// The same time while a machine that fits is out, because the policy may be waiting for it.
const LONGEST_POSTPONED_WITH_MACHINES_OUT: Duration = Duration::from_secs(10);

/// Decides where candidates are built.
pub(crate) struct Decider<'a> {
    pub(crate) pool: &'a mut Pool,
    pub(crate) history: &'a mut History,
    pub(crate) queue: &'a Queue,
    pub(crate) options: &'a config::Builders,
    pub(crate) nix_dirs: &'a NixDirs,
    pub(crate) stock: &'a mut dyn StockHook,
    pub(crate) policy: Option<&'a mut PolicyThread>,
}

impl Decider<'_> {
    /// Decides where one candidate is built. Every answer except [`Answer::Never`] is recorded.
    pub(crate) fn decide<W: Write>(
        mut self,
        request: &Request,
        pending: &mut Pending<'_, W>,
    ) -> Answer {
        // This is the answer of Nix's own hook, and no policy can change it.
        if self.pool.machines.is_empty() {
            return Answer::Never;
        }
        let mut case =
            OpenCandidate::of(request, self.pool, self.history, self.queue, self.nix_dirs);
        // Each round except the last removes at least one machine.
        loop {
            case = match self.round(case, pending) {
                ControlFlow::Break(answer) => return answer,
                ControlFlow::Continue(case) => case,
            };
        }
    }

    /// Asks the policy and tries its machines. Continues when a machine has refused.
    fn round<'r, W: Write>(
        &mut self,
        case: OpenCandidate<'r>,
        pending: &mut Pending<'_, W>,
    ) -> ControlFlow<Answer, OpenCandidate<'r>> {
        let fitting = self.pool.fitting(&case.candidate);
        if fitting.is_empty() {
            let level = if case.local.able { Level::Chatty } else { Level::Warn };
            pending.message(level, &self.pool.nobody(&case.candidate));
            let decided = Decided {
                decided_by: DecidedBy::StockRule(None),
                decision: Decision::new(Action::Decline, "no machine can take it"),
            };
            let answer = Answer::Declined(NotAccepted::Decided);
            return ControlFlow::Break(self.record(case, decided, None, Vec::new(), answer));
        }
        let past = self.history.past(&case.candidate.pname, &case.candidate.system);
        let OpenCandidate { candidate, availabilities, present, .. } = &case;
        let builders = self.history.directory();
        let offered =
            self.pool.offered(candidate, &fitting, availabilities, &past, present, builders);
        if offered.machines.iter().all(|machine| !machine.healthy) && case.local.able {
            return ControlFlow::Break(self.all_out(case, offered, pending));
        }
        let mut decided = self.ask(&case, &offered, pending);
        let (name, reason) = (&case.candidate.name, &decided.decision.reason);
        let answer = match &mut decided.decision.action {
            Action::Machines(uris) => {
                let chosen = std::mem::take(uris);
                return self.go(case, &fitting, offered, decided, &chosen, pending);
            }
            Action::Local | Action::Decline => {
                let text = format!("{name} is built on this machine: {reason}");
                pending.message(Level::Talkative, &text);
                Answer::Declined(NotAccepted::Decided)
            }
            Action::Postpone => {
                pending.message(Level::Talkative, &format!("{name} waits: {reason}"));
                Answer::Postponed(NotAccepted::Decided)
            }
        };
        ControlFlow::Break(self.record(case, decided, Some(offered), Vec::new(), answer))
    }

    /// Asks the policy, and overrides an answer that would make the build wait for ever.
    fn ask<W: Write>(
        &mut self,
        case: &OpenCandidate<'_>,
        offered: &Offered,
        pending: &mut Pending<'_, W>,
    ) -> Decided {
        let policy = self.policy.as_deref_mut();
        let (mut decided, tell) =
            self.pool.decide(&case.candidate, &offered.machines, &case.local, policy);
        if let Some(text) = tell {
            pending.message(Level::Warn, &text);
        }
        self.override_long_postponing(&mut decided, case, &offered.machines);
        Self::use_all_if_none_is_named(&mut decided, case);
        decided
    }

    /// Tries the machines, those that were `chosen` first.
    fn go<'r, W: Write>(
        &mut self,
        mut case: OpenCandidate<'r>,
        fitting: &[usize],
        offered: Offered,
        decided: Decided,
        chosen: &[String],
        pending: &mut Pending<'_, W>,
    ) -> ControlFlow<Answer, OpenCandidate<'r>> {
        let rule = StockRule { division: self.pool.settings.division() };
        let ranking = Ranking::of(chosen, &offered.machines, &case.availabilities, rule);
        let mut failover = Failover::to(ranking);
        let ranked = failover.next().to_vec();
        let name = case.candidate.name.clone();
        let text =
            format!("{name} goes to {}: {}", Self::in_order(&ranked), decided.decision.reason);
        pending.message(Level::Talkative, &text);
        let first = match self.drive(&mut case, fitting, &mut failover, pending) {
            DriveResult::Connected(connected) => Ok(First::Connected(connected)),
            DriveResult::Ended(NotConnected::Early(machine, hold)) => {
                Ok(First::Slot { machine, hold })
            }
            DriveResult::Ended(NotConnected::Refused) => return ControlFlow::Continue(case),
            DriveResult::Ended(NotConnected::Full) if self.may_queue(&case, &decided) => {
                Ok(First::Queue)
            }
            DriveResult::Ended(NotConnected::Full) => {
                let OpenCandidate { candidate, local, .. } = &case;
                let stock = StockRule::without_machine(candidate, fitting.len(), local);
                Err(match stock.action {
                    Action::Postpone => Answer::Postponed(NotAccepted::SlotsTaken),
                    _ => Answer::Declined(NotAccepted::SlotsTaken),
                })
            }
            DriveResult::Here(why) => {
                pending.message(Level::Error, &format!("{name}: {}", cannot_start(&why)));
                Err(Answer::Declined(NotAccepted::HookFails(why)))
            }
        };
        let answer = match first {
            Err(answer) => answer,
            Ok(first) => {
                Answer::Accepted(Box::new(Self::accepted(&mut case, &decided, failover, first)))
            }
        };
        ControlFlow::Break(self.record(case, decided, Some(offered), ranked, answer))
    }

    fn accepted(
        case: &mut OpenCandidate<'_>,
        decided: &Decided,
        failover: Failover,
        first: First,
    ) -> Accepted {
        let name = match &first {
            First::Connected(Connected { machine, .. }) | First::Slot { machine, .. } => {
                machine.clone()
            }
            First::Queue => match failover.next() {
                [only] => only.clone(),
                several => format!("the first free of {}", joined(several, ", ")),
            },
        };
        Accepted {
            candidate: case.candidate.clone(),
            failover,
            first,
            probe: case.availabilities.take_probe(&name),
            waiting: case.waiting.clone(),
            ask_again: decided.decision.ask_again_ms.map(Duration::from_millis),
            name,
            present: case.present.clone(),
        }
    }

    fn drive<W: Write>(
        &mut self,
        case: &mut OpenCandidate<'_>,
        fitting: &[usize],
        failover: &mut Failover,
        pending: &mut Pending<'_, W>,
    ) -> DriveResult<NotConnected> {
        let Pool { settings, machines, failed, .. } = &mut *self.pool;
        let (candidate, request) = (case.candidate.clone(), case.request);
        let mut stage = BeforeAccept {
            case,
            fitting,
            machines: machines.as_slice(),
            failed,
            queue: self.queue,
            early_accept: self.options.early_accept,
            pending,
        };
        let mut driver = Driver {
            settings,
            machines: machines.as_slice(),
            candidate: &candidate,
            request,
            stock: &mut *self.stock,
            history: &mut *self.history,
        };
        driver.drive(failover, &mut stage)
    }

    /// Returns the first machines of an answer, for a message.
    fn in_order(uris: &[String]) -> String {
        let shown = joined(uris.get(..SHOWN).unwrap_or(uris), ", then ");
        let more = uris.len().saturating_sub(SHOWN);
        if more == 0 { shown } else { format!("{shown}, then {more} others") }
    }

    /// Returns whether the build may wait in hookrun's queue.
    fn may_queue(&self, case: &OpenCandidate<'_>, decided: &Decided) -> bool {
        let meant_for_machines =
            matches!(decided.decided_by, DecidedBy::Policy) || !case.local.able;
        self.options.early_accept
            && meant_for_machines
            && case.local.waiting < self.options.max_waiting
    }

    /// Overrides a policy that postpones for too long.
    fn override_long_postponing(
        &mut self,
        decided: &mut Decided,
        case: &OpenCandidate<'_>,
        offered: &[Machine],
    ) {
        if !matches!(decided.decided_by, DecidedBy::Policy)
            || decided.decision.action != Action::Postpone
        {
            return;
        }
        let now = now_ms();
        let drv_path = &case.candidate.drv_path;
        // If the database cannot be used, the time is known at least in this process.
        let here = *self.pool.postponed.entry(drv_path.clone()).or_insert(now);
        let since = self.history.postponed(drv_path).map_or(here, |since| since.min(here));
        let waited = Duration::from_millis(now.saturating_sub(since));
        let all_healthy = offered.iter().all(|machine| machine.healthy);
        let longest = if all_healthy && self.pool.failed.is_empty() {
            LONGEST_POSTPONED
        } else {
            LONGEST_POSTPONED_WITH_MACHINES_OUT
        };
        if waited < longest {
            return;
        }
        let reason = format!("the policy has postponed it for {} s", waited.as_secs());
        let here = case.local.able && case.local.willing;
        let action = if here { Action::Local } else { Action::Machines(Vec::new()) };
        decided.decision = Decision::new(action, reason);
    }

    /// Uses all machines that fit if the decision names none and the build would fail or wait for
    /// ever. This is the case if the policy declines a build that this machine cannot do, or
    /// postpones one after a machine has refused, or if Nix's rule finds every slot taken.
    fn use_all_if_none_is_named(decided: &mut Decided, case: &OpenCandidate<'_>) {
        let by_policy = matches!(decided.decided_by, DecidedBy::Policy);
        let reason = match decided.decision.action {
            Action::Decline if !case.local.able => "this machine cannot build it",
            Action::Postpone if by_policy && !case.skipped.is_empty() => "a machine has refused it",
            Action::Postpone if !by_policy && !case.local.able => {
                decided.decision.action = Action::Machines(Vec::new());
                return;
            }
            _ => return,
        };
        let reason = format!("{reason}, and the policy names no other machine");
        decided.decision = Decision::new(Action::Machines(Vec::new()), reason);
    }

    /// Leaves the build to this machine, because no other one may be used now.
    fn all_out<W: Write>(
        &mut self,
        case: OpenCandidate<'_>,
        offered: Offered,
        pending: &mut Pending<'_, W>,
    ) -> Answer {
        let soonest = case
            .availabilities
            .soonest_seconds(offered.machines.iter().map(|machine| machine.uri.as_str()))
            .unwrap_or(0);
        let reason = format!(
            "all machines that fit have failed recently; the first is tried again in {soonest} s, and the build runs on this machine"
        );
        pending.message(Level::Talkative, &format!("{}: {reason}", case.candidate.name));
        let decided = Decided {
            decided_by: DecidedBy::Health,
            decision: Decision::new(Action::Local, reason),
        };
        self.record(
            case,
            decided,
            Some(offered),
            Vec::new(),
            Answer::Declined(NotAccepted::Decided),
        )
    }

    /// Records the answer and the decision.
    fn record(
        &mut self,
        case: OpenCandidate<'_>,
        decided: Decided,
        offered: Option<Offered>,
        ranked: Vec<String>,
        answer: Answer,
    ) -> Answer {
        let command = self.queue.command().to_string();
        let OpenCandidate { candidate, local, begins_here, lock, availabilities, skipped, .. } =
            case;
        let is_declined = matches!(answer, Answer::Declined(_));
        if is_declined && local.able {
            local_builds::left(self.history, &candidate, command.clone(), lock, begins_here);
        }
        let explanation = Explanation {
            local_willing: local.willing,
            machines: Arc::clone(&self.pool.machines),
            limits: self.pool.limits.clone(),
            offered,
            skipped,
            ranked,
            taken: answer.taken(),
            ..Explanation::now(command, candidate, decided, availabilities, &answer.text())
        };
        self.history.decided(Box::new(move || explanation.row()));
        if is_declined && !local.able {
            // No machine can build it: Nix gives up as soon as it has this answer, and kills its
            // hook.
            self.history.save();
        }
        answer
    }
}

fn joined(uris: &[String], with: &str) -> String {
    uris.iter().map(String::as_str).collect::<Vec<_>>().join(with)
}
