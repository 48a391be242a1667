//! Where a candidate goes: asks the policy, takes a slot, connects where that has to be known
//! before the answer.
//!
//! An accept before connecting costs Nix no waiting, and ends the way back to a local build. So it
//! is given only where nothing is lost by it ([`is_safe`]): the machine answered a short while ago,
//! or the build cannot run here anyway; and never against the configuration
//! ([`config::Builders::early_accept`]).

use std::io::Write;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::asker::Asker;
use super::case::Case;
use super::delegation::{Accepted, First};
use super::explanation::Explanation;
use super::health::Standing;
use super::journey::Journey;
use super::local;
use super::memory::Memory;
use super::policy::StockRule;
use super::pool::{Decided, Offered, Pool};
use super::queue::{Queue, Turn};
use super::record::now_ms;
use super::reply::{Level, Pending};
use super::request::Request;
use super::resources::Hold;
use super::stock::{Build, Offer, StockHook, Target};
use super::types::{Action, Decision, Machine};
use crate::config;
use crate::event::NixDirs;
use crate::shared::Text;

/// Machines that a line about a build names.
const SHOWN: usize = 5;
/// The best machines, which are asked for a slot before all of them are: there may be thousands,
/// and most often one of the first has one.
const LOOKED_AT_FIRST: usize = 16;
/// A derivation that a policy has postponed for so long waits in the queue instead, or is built
/// here.
const LONGEST_POSTPONED: Duration = Duration::from_mins(10);

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
    /// All that remained have failed.
    Failed,
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
            let name = &case.candidate.name;
            let Decision { action, reason, ask_again_ms } = &mut decided.decision;
            let ask_again_ms = *ask_again_ms;
            let uris = match action {
                Action::Machines(uris) => Self::usable_first(&case, std::mem::take(uris)),
                Action::Postpone if !by_policy && !case.local.able => {
                    self.all_ranked(&case, &offered.machines)
                }
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
            pending.message(
                Level::Talkative,
                &format!("{name} goes to {}: {reason}", Self::in_order(&uris)),
            );
            let mut journey = Journey::to(uris.clone());
            let gone = self.go(&mut case, &fitting, &mut journey, pending);
            let first = match gone {
                Gone::Failed => continue,
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
            let name = taken.clone().unwrap_or_else(|| match journey.open() {
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
                journey,
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

    /// Goes through the machines until one has it.
    fn go<W: Write>(
        &mut self,
        case: &mut Case<'_>,
        fitting: &[usize],
        journey: &mut Journey,
        pending: &mut Pending<'_, W>,
    ) -> Gone {
        let mut failed = false;
        // Machines that said they were full although they seemed not to be: not asked again for
        // this candidate.
        let mut full: Vec<Text> = Vec::new();
        loop {
            let Some(turn) = self.turn(case, journey.open(), &full, fitting) else {
                return if failed && full.is_empty() { Gone::Failed } else { Gone::Full };
            };
            let (machine, connected) = match turn {
                Turn::Wait { .. } => return Gone::Full,
                Turn::Yours(machine, hold)
                    if hold.slot.is_some() && self.early(case, &machine, journey) =>
                {
                    return Gone::To(First::Slot { machine, hold });
                }
                Turn::Yours(machine, hold) => {
                    let connected = self.connect(case, &machine, hold, fitting, pending);
                    (machine, connected)
                }
                Turn::Unusable(machine, why) => (machine, Err(Some(why))),
            };
            match connected {
                Ok(first) => return Gone::To(first),
                Err(None) => full.push(machine),
                Err(Some(why)) => {
                    failed = true;
                    pending.message(Level::Warn, &format!("machine {machine} skipped: {why}"));
                    self.pool.failed.extend(self.pool.index_of(&machine, fitting));
                    case.skipped.insert(machine.to_string(), why);
                    journey.refused(&machine);
                }
            }
        }
    }

    /// Whose turn it is on one of `open` that is not among `full`; none: there is no such machine.
    fn turn(
        &self,
        case: &Case<'_>,
        open: &[Text],
        full: &[Text],
        fitting: &[usize],
    ) -> Option<Turn> {
        let mut turn = None;
        for some in [open.get(..LOOKED_AT_FIRST), Some(open)].into_iter().flatten() {
            let mut wanted = self.pool.wanted(some, fitting);
            wanted.retain(|wanted| !full.contains(&wanted.machine));
            if !wanted.is_empty() {
                turn = Some(self.queue.turn(&case.waiting, &wanted, None));
            }
            if let Some(Turn::Yours(..) | Turn::Unusable(..)) = turn {
                break;
            }
        }
        turn
    }

    /// Connects now. `Err(None)`: it is full.
    fn connect<W: Write>(
        &mut self,
        case: &Case<'_>,
        machine: &Text,
        hold: Hold,
        fitting: &[usize],
        pending: &mut Pending<'_, W>,
    ) -> Result<First, Option<String>> {
        let line = self
            .pool
            .index_of(machine, fitting)
            .and_then(|index| self.pool.machines.get(index))
            .ok_or(None)?;
        let target = Target { machine: line, slot: hold.slot.as_ref() };
        let (began, began_ms) = (Instant::now(), now_ms());
        let offer = self
            .stock
            .offer(&self.pool.settings, target, case.request, &mut |line| pending.relay(line));
        let build: Box<dyn Build> = match offer {
            Offer::Accepted(build) => build,
            Offer::Full => return Err(None),
            Offer::Failed(why) => {
                self.memory.failed(machine, &why, began_ms);
                return Err(Some(why));
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
    fn early(&self, case: &Case<'_>, machine: &str, journey: &Journey) -> bool {
        let mut others = journey.open().iter().filter(|uri| ***uri != *machine);
        let others =
            (others.clone().next().is_some(), others.any(|uri| case.standings.is_proven(uri)));
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

    /// The machines of the answer without those that are out, if others are left.
    fn usable_first(case: &Case<'_>, uris: Vec<Text>) -> Vec<Text> {
        // Of most machines nothing bad is known.
        if uris.iter().all(|uri| case.standings.is_usable(uri)) {
            return uris;
        }
        let (usable, out): (Vec<Text>, Vec<Text>) =
            uris.into_iter().partition(|uri| case.standings.is_usable(uri));
        if usable.is_empty() { out } else { usable }
    }

    /// All usable machines in the order of Nix's rule, full ones too.
    fn all_ranked(&self, case: &Case<'_>, offered: &[Machine]) -> Vec<Text> {
        let ranked =
            StockRule { division: self.pool.settings.division() }.ranked_with_full(offered);
        Self::usable_first(
            case,
            ranked.into_iter().filter_map(|index| Some(offered.get(index)?.uri.clone())).collect(),
        )
    }

    /// A policy that postpones for too long is overruled.
    fn not_for_ever(&mut self, decided: &mut Decided, case: &Case<'_>, offered: &[Machine]) {
        if decided.decided_by != "policy" || decided.decision.action != Action::Postpone {
            return;
        }
        let since = self.memory.postponed(&case.candidate.drv_path);
        let waited = Duration::from_millis(since.map_or(0, |since| now_ms().saturating_sub(since)));
        if waited < LONGEST_POSTPONED {
            return;
        }
        let reason = format!("the policy has postponed it for {} minutes", waited.as_secs() / 60);
        let here = case.local.able && case.local.willing;
        let action =
            if here { Action::Local } else { Action::Machines(self.all_ranked(case, offered)) };
        decided.decision = Decision::new(action, reason);
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

/// Is nothing lost by accepting a build that can (`able`) or cannot be built here, for a machine
/// that stands so? `others` says whether it may go to another machine, and whether one of those is
/// proven.
fn is_safe(able: bool, standing: Standing, (others, proven): (bool, bool)) -> bool {
    match standing {
        Standing::Proven => true,
        _ if proven => true,
        // With no other way, a machine that does not answer fails the build either way.
        Standing::Unknown => !able,
        Standing::Due | Standing::Out { .. } => !able && others,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn when_nothing_is_lost_by_an_early_accept() {
        const NONE: (bool, bool) = (false, false);
        const ANY: (bool, bool) = (true, false);
        const PROVEN: (bool, bool) = (true, true);
        let out = Standing::Out { ms: 1 };
        for (able, standing, others, safe) in [
            (true, Standing::Proven, NONE, true),
            (true, Standing::Unknown, NONE, false),
            (true, Standing::Unknown, ANY, false),
            (true, Standing::Unknown, PROVEN, true),
            (true, Standing::Due, PROVEN, true),
            (false, Standing::Unknown, NONE, true),
            (false, Standing::Due, NONE, false),
            (false, Standing::Due, ANY, true),
            (false, out, NONE, false),
        ] {
            assert_eq!(is_safe(able, standing, others), safe, "{able} {standing:?} {others:?}");
        }
    }
}
