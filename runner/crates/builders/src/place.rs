//! Where a candidate goes: asks the policy, takes a slot, connects where that has to be known
//! before the answer.
//!
//! Accepting before connecting saves Nix the wait, but rules out a local build. So it is done only
//! for builds that this machine cannot do ([`is_safe`]), and never against the configuration
//! ([`config::Builders::early_accept`]).
//!
//! The policy's answer is a preference ([`failover`](super::failover)): when a machine refuses, the
//! policy is asked again without it, and if it has no answer then, all machines that are left are
//! used.

use std::io::Write;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::asker::Asker;
use super::case::Case;
use super::delegation::{Accepted, First};
use super::explanation::Explanation;
use super::failover::{Failover, Ranking};
use super::health::Standing;
use super::local;
use super::memory::Memory;
use super::policy::StockRule;
use super::pool::{Decided, Offered, Pool};
use super::queue::{PATIENCE, Queue, Turn};
use super::record::now_ms;
use super::reply::{Level, Pending};
use super::request::Request;
use super::resources::Hold;
use super::stock::{Build, Offer, StockHook, Target};
use hookrun_config as config;
use hookrun_nix::event::NixDirs;
use hookrun_nix::selection::{Action, Decision, Machine};
use hookrun_nix::shared::Text;

/// Machines that a line about a build names.
const SHOWN: usize = 5;
/// The best machines, which are asked for a slot before all of them are: there may be thousands,
/// and most often one of the first has one.
const LOOKED_AT_FIRST: usize = 16;
/// A derivation that a policy has postponed for so long waits in the queue instead, or is built
/// here.
const LONGEST_POSTPONED: Duration = Duration::from_mins(10);
/// The same while a machine that fits is out: the policy may be waiting for that one.
const LONGEST_POSTPONED_WITH_MACHINES_OUT: Duration = Duration::from_secs(10);

/// Where a candidate goes.
pub enum Placed {
    /// To a machine, now or when one is free.
    Accepted(Box<Accepted>),
    /// Not to a machine.
    Decline,
    /// Nix asks again.
    Postpone,
    /// There are no machines.
    Never,
}

/// What it takes to place a candidate.
pub struct Placing<'a> {
    /// The machines.
    pub pool: &'a mut Pool,
    /// What is remembered.
    pub memory: &'a mut Memory,
    /// Who waits.
    pub queue: &'a Queue,
    /// `[builders]`.
    pub options: &'a config::Builders,
    /// Nix's directories.
    pub nix_dirs: &'a NixDirs,
    /// Nix's own hook.
    pub stock: &'a mut dyn StockHook,
    /// Who chooses.
    pub policy: Option<&'a mut Asker>,
}

/// What came of going through the ranked machines.
enum Gone {
    To(First),
    /// All are full.
    Full,
    /// One has refused.
    Refused,
    /// Nix's own hook fails on this machine; why.
    Here(String),
}

/// Why a machine that was asked does not have the build.
enum NotTaken {
    /// It is full.
    Full,
    /// It cannot be used; why.
    Refused(String),
    /// Nix's own hook fails on this machine; why.
    Here(String),
}

impl Placing<'_> {
    /// Places one candidate. Every answer is recorded.
    pub fn place<W: Write>(mut self, request: &Request, pending: &mut Pending<'_, W>) -> Placed {
        // As Nix's own hook; no policy can change it.
        if self.pool.machines.is_empty() {
            return Placed::Never;
        }
        let mut case = self.case(request);
        // Each round but the last takes at least one machine out.
        loop {
            let fitting = self.pool.fitting(&case.candidate);
            if fitting.is_empty() {
                let level = if case.local.able { Level::Chatty } else { Level::Warn };
                pending.message(level, &self.pool.nobody(&case.candidate));
                let none = Decided {
                    decided_by: "Nix's rule".to_owned(),
                    decision: Decision::new(Action::Decline, "no machine can take it"),
                };
                self.remember(case, none, None, Vec::new(), None, "decline");
                return Placed::Decline;
            }
            let past = self.memory.past(&case.candidate.pname, &case.candidate.system);
            let builders = self.memory.directory();
            let offered = self.pool.offered(
                &case.candidate,
                &fitting,
                &case.standings,
                &past,
                &case.present,
                builders,
            );
            if offered.machines.iter().all(|machine| !machine.healthy) && case.local.able {
                return self.all_out(case, offered, pending);
            }
            let policy = self.policy.as_deref_mut();
            let (mut decided, tell) =
                self.pool.decide(&case.candidate, &offered.machines, &case.local, policy);
            if let Some(text) = tell {
                pending.message(Level::Warn, &text);
            }
            let by_policy = decided.decided_by == "policy";
            self.not_for_ever(&mut decided, &case, &offered.machines);
            Self::not_without_answer(&mut decided, &case);
            let name = &case.candidate.name;
            let Decision { action, reason, ask_again_ms } = &mut decided.decision;
            let ask_again_ms = *ask_again_ms;
            let answer = match action {
                Action::Machines(uris) => std::mem::take(uris),
                Action::Local | Action::Decline => {
                    pending.message(
                        Level::Talkative,
                        &format!("{name} is left to this machine: {reason}"),
                    );
                    self.remember(case, decided, Some(offered), Vec::new(), None, "decline");
                    return Placed::Decline;
                }
                Action::Postpone => {
                    pending.message(Level::Talkative, &format!("{name} waits: {reason}"));
                    self.remember(case, decided, Some(offered), Vec::new(), None, "postpone");
                    return Placed::Postpone;
                }
            };
            let rule = StockRule { division: self.pool.settings.division() };
            let ranking = Ranking::of(&answer, &offered.machines, &case.standings, rule);
            let failover = Failover::to(ranking);
            let uris = failover.next().to_vec();
            pending.message(
                Level::Talkative,
                &format!("{name} goes to {}: {reason}", Self::in_order(&uris)),
            );
            let first = match self.go(&mut case, &fitting, &failover, pending) {
                Gone::Refused => continue,
                Gone::To(first) => first,
                Gone::Full if self.may_queue(&case, by_policy) => First::Queue,
                Gone::Full => {
                    let action =
                        StockRule::without_machine(&case.candidate, fitting.len(), &case.local)
                            .action;
                    let (answer, placed) = match action {
                        Action::Postpone => ("postpone: every slot is taken", Placed::Postpone),
                        _ => (
                            "decline: every slot is taken, and this machine is free",
                            Placed::Decline,
                        ),
                    };
                    self.remember(case, decided, Some(offered), uris, None, answer);
                    return placed;
                }
                Gone::Here(why) => {
                    let name = &case.candidate.name;
                    let text = format!("{name}: this machine cannot start remote builds: {why}");
                    pending.message(Level::Error, &text);
                    let answer = format!("decline: this machine cannot start remote builds: {why}");
                    self.remember(case, decided, Some(offered), uris, None, &answer);
                    return Placed::Decline;
                }
            };
            let (taken, answer) = match &first {
                First::Connected { machine, .. } => {
                    (Some(machine.clone()), "accept, after connecting".to_owned())
                }
                First::Slot { machine, .. } => {
                    (Some(machine.clone()), "accept, before connecting".to_owned())
                }
                First::Queue => (None, "accept: it waits for a slot".to_owned()),
            };
            let name = taken.clone().unwrap_or_else(|| match failover.next() {
                [only] => only.clone(),
                several => format!("the first free of {}", joined(several, ", ")).into(),
            });
            let (candidate, waiting, present) =
                (case.candidate.clone(), case.waiting.clone(), case.present.clone());
            let probe = case.standings.take_probe(&name);
            self.remember(case, decided, Some(offered), uris, taken, &answer);
            let ask_again = ask_again_ms.map(Duration::from_millis);
            return Placed::Accepted(Box::new(Accepted {
                candidate,
                failover,
                first,
                probe,
                waiting,
                ask_again,
                name,
                present,
            }));
        }
    }

    fn case<'r>(&mut self, request: &'r Request) -> Case<'r> {
        Case::of(request, self.pool, self.memory, self.queue, self.nix_dirs)
    }

    /// Goes through the machines until one has it, or one refuses.
    fn go<W: Write>(
        &mut self,
        case: &mut Case<'_>,
        fitting: &[usize],
        failover: &Failover,
        pending: &mut Pending<'_, W>,
    ) -> Gone {
        loop {
            let (machine, refused) = match self.turn(case, failover.next(), fitting) {
                None | Some(Turn::Wait { .. }) => return Gone::Full,
                Some(Turn::Yours(machine, hold))
                    if hold.slot.is_some() && self.early(case, &machine, failover) =>
                {
                    return Gone::To(First::Slot { machine, hold });
                }
                Some(Turn::Yours(machine, hold)) => {
                    match self.connect(case, &machine, hold, fitting, pending) {
                        Ok(first) => return Gone::To(first),
                        Err(refused) => (machine, refused),
                    }
                }
                Some(Turn::Unusable(machine, why)) => (machine, NotTaken::Refused(why)),
            };
            match refused {
                NotTaken::Full => case.full.push(machine),
                NotTaken::Here(why) => return Gone::Here(why),
                NotTaken::Refused(why) => {
                    pending.message(Level::Warn, &format!("machine {machine} skipped: {why}"));
                    self.pool.failed.extend(self.pool.index_of(&machine, fitting));
                    case.skipped.insert(machine.to_string(), why);
                    return Gone::Refused;
                }
            }
        }
    }

    /// Whose turn it is on one of `open` that has not said that it is full; none: there is no such
    /// machine.
    fn turn(&self, case: &Case<'_>, open: &[Text], fitting: &[usize]) -> Option<Turn> {
        let mut turn = None;
        for some in [open.get(..LOOKED_AT_FIRST), Some(open)].into_iter().flatten() {
            let mut wanted = self.pool.wanted(some, fitting);
            wanted.retain(|wanted| !case.full.contains(&wanted.machine));
            if !wanted.is_empty() {
                turn = Some(self.queue.turn(&case.waiting, &wanted, None, PATIENCE));
            }
            if let Some(Turn::Yours(..) | Turn::Unusable(..)) = turn {
                break;
            }
        }
        turn
    }

    /// Connects now.
    fn connect<W: Write>(
        &mut self,
        case: &Case<'_>,
        machine: &Text,
        hold: Hold,
        fitting: &[usize],
        pending: &mut Pending<'_, W>,
    ) -> Result<First, NotTaken> {
        let line = self
            .pool
            .index_of(machine, fitting)
            .and_then(|index| self.pool.machines.get(index))
            .ok_or(NotTaken::Full)?;
        let target = Target { machine: line, slot: hold.slot.as_ref() };
        let (began, began_ms) = (Instant::now(), now_ms());
        let offer = self
            .stock
            .offer(&self.pool.settings, target, case.request, &mut |line| pending.relay(line));
        let build: Box<dyn Build> = match offer {
            Offer::Accepted(build) => build,
            Offer::Full => return Err(NotTaken::Full),
            Offer::Here(why) => return Err(NotTaken::Here(why)),
            Offer::Failed(why) => {
                self.memory.failed(machine, &why, began_ms);
                return Err(NotTaken::Refused(why));
            }
        };
        self.memory.answered(machine, began.elapsed());
        Ok(First::Connected { machine: machine.clone(), hold, build })
    }

    /// The first machines of an answer, for a line.
    fn in_order(uris: &[Text]) -> String {
        let shown = joined(uris.get(..SHOWN).unwrap_or(uris), ", then ");
        let more = uris.len().saturating_sub(SHOWN);
        if more == 0 { shown } else { format!("{shown}, then {more} others") }
    }

    /// Is nothing lost by accepting before connecting?
    fn early(&self, case: &Case<'_>, machine: &Text, failover: &Failover) -> bool {
        let others = failover.groups().flatten().any(|uri| uri != machine);
        self.options.early_accept
            && is_safe(case.local.able, case.standings.standing(machine), others)
    }

    /// May it wait in the queue of ours?
    fn may_queue(&self, case: &Case<'_>, by_policy: bool) -> bool {
        let meant_for_machines = by_policy || !case.local.able;
        self.options.early_accept
            && meant_for_machines
            && case.local.waiting < self.options.max_waiting
    }

    /// A policy that postpones for too long is overruled.
    fn not_for_ever(&mut self, decided: &mut Decided, case: &Case<'_>, offered: &[Machine]) {
        if decided.decided_by != "policy" || decided.decision.action != Action::Postpone {
            return;
        }
        let now = now_ms();
        let drv_path = &case.candidate.drv_path;
        // What cannot be remembered is known at least while this process lives.
        let here = *self.pool.postponed.entry(drv_path.clone()).or_insert(now);
        let since = self.memory.postponed(drv_path).map_or(here, |since| since.min(here));
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

    /// Where there is no answer, all machines that fit are used: the policy has no opinion of a
    /// build that this machine cannot do, or postpones it after a machine has refused; or every
    /// slot is taken, by Nix's rule.
    fn not_without_answer(decided: &mut Decided, case: &Case<'_>) {
        let by_policy = decided.decided_by == "policy";
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

    /// No machine may be used now, and this one can build: it does.
    fn all_out<W: Write>(
        &mut self,
        case: Case<'_>,
        offered: Offered,
        pending: &mut Pending<'_, W>,
    ) -> Placed {
        let soonest = case
            .standings
            .soonest_seconds(offered.machines.iter().map(|machine| machine.uri.as_str()))
            .unwrap_or(0);
        let reason = format!(
            "all machines that fit have failed lately, the first is tried again in {soonest} s; built here"
        );
        pending.message(Level::Talkative, &format!("{}: {reason}", case.candidate.name));
        let decided = Decided {
            decided_by: "health of machines".to_owned(),
            decision: Decision::new(Action::Local, reason),
        };
        self.remember(case, decided, Some(offered), Vec::new(), None, "decline");
        Placed::Decline
    }

    fn remember(
        &mut self,
        case: Case<'_>,
        decided: Decided,
        offered: Option<Offered>,
        ranked: Vec<Text>,
        taken: Option<Text>,
        answer: &str,
    ) {
        let command = self.queue.command().to_string();
        let Case { candidate, local, begins_here, lock, standings, skipped, .. } = case;
        // Nobody can build it: Nix gives up as soon as it has this answer, and kills its hook.
        let is_last_word = answer.starts_with("decline") && !local.able;
        if answer.starts_with("decline") && local.able {
            local::left(self.memory, &candidate, command.clone(), lock, begins_here);
        }
        self.memory.decided(Explanation {
            local_willing: local.willing,
            machines: Arc::clone(&self.pool.machines),
            limits: self.pool.limits.clone(),
            offered,
            skipped,
            ranked,
            taken,
            ..Explanation::now(command, candidate, decided, standings, answer)
        });
        if is_last_word {
            self.memory.save();
        }
    }
}

fn joined(uris: &[Text], with: &str) -> String {
    uris.iter().map(Text::as_str).collect::<Vec<_>>().join(with)
}

/// Is nothing lost by accepting, before connecting, a build that can (`able`) or cannot be built
/// here, for a machine that stands so? `others`: it may go to another machine too.
///
/// A build that this machine can do is never accepted early, also where a machine has just
/// answered: should all machines fail then, Nix would not build it here any more.
const fn is_safe(able: bool, standing: Standing, others: bool) -> bool {
    match standing {
        // With no other way, a machine that does not answer fails the build either way.
        Standing::Proven | Standing::Unknown => !able,
        Standing::Due | Standing::Out { .. } => !able && others,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn when_nothing_is_lost_by_an_early_accept() {
        let out = Standing::Out { ms: 1 };
        for (able, standing, others, safe) in [
            (true, Standing::Proven, true, false),
            (true, Standing::Unknown, true, false),
            (true, Standing::Due, true, false),
            (false, Standing::Proven, false, true),
            (false, Standing::Unknown, false, true),
            (false, Standing::Due, false, false),
            (false, Standing::Due, true, true),
            (false, out, true, true),
            (false, out, false, false),
        ] {
            assert_eq!(is_safe(able, standing, others), safe, "{able} {standing:?} {others}");
        }
    }
}
