//! The search for a machine before the accept, while Nix is blocked.

use std::collections::BTreeSet;
use std::io::Write;
use std::ops::ControlFlow;

use crate::choice::candidate::OpenCandidate;
use crate::choice::health::Availability;
use crate::choice::pool::wanted;
use crate::history::{History, now_ms};
use crate::protocol::reply::{Level, Pending};
use crate::run::driver::{Refusal, SlotSearch, Slotted, Stage};
use crate::run::failover::Failover;
use crate::slots::reservations::Allocation;
use crate::slots::wait::{PATIENCE, Queue, Turn};
use hookrun_nix::machines::MachineLine;

/// The number of the best machines that are checked for a free slot before all are. There may be
/// thousands, and usually one of the first has a slot.
const LOOKED_AT_FIRST: usize = 16;

/// The search for a machine before the accept. Nix is blocked, so it takes only free slots, and
/// asks the policy again after a refusal.
pub(super) struct BeforeAccept<'s, 'r, 'w, W: Write> {
    pub(super) case: &'s mut OpenCandidate<'r>,
    /// Indexes of the machines that fit.
    pub(super) fitting: &'s [usize],
    pub(super) machines: &'s [MachineLine],
    /// See [`super::pool::Pool::failed`].
    pub(super) failed: &'s mut BTreeSet<usize>,
    pub(super) queue: &'s Queue,
    pub(super) early_accept: bool,
    pub(super) pending: &'s mut Pending<'w, W>,
}

/// The reason why a candidate has no connected machine.
pub(super) enum NotConnected {
    /// It need not be connected to yet.
    Early(String, Allocation),
    Full,
    /// A machine has refused.
    Refused,
}

impl<W: Write> Stage for BeforeAccept<'_, '_, '_, W> {
    type End = NotConnected;

    fn slot(
        &mut self,
        failover: &mut Failover,
        _: &mut History,
    ) -> ControlFlow<NotConnected, SlotSearch> {
        let health_read_ms = now_ms();
        match self.turn(failover.next()) {
            None | Some(Turn::Wait { .. }) => ControlFlow::Break(NotConnected::Full),
            Some(Turn::Yours(machine, hold)) if self.is_early(&machine, &hold, failover) => {
                ControlFlow::Break(NotConnected::Early(machine, hold))
            }
            Some(Turn::Yours(machine, hold)) => {
                ControlFlow::Continue(SlotSearch::Slot(Slotted { machine, hold, health_read_ms }))
            }
            Some(Turn::Unusable(machine, why)) => {
                ControlFlow::Continue(SlotSearch::Unusable(machine, why))
            }
        }
    }

    fn begin(&mut self, _: &MachineLine) {}

    fn relay(&mut self, line: &[u8]) {
        self.pending.relay(line);
    }

    fn full(&mut self, machine: &str) -> Option<String> {
        self.case.full.push(machine.to_owned());
        None
    }

    fn refused(
        &mut self,
        machine: &str,
        refusal: Refusal,
        _: &mut Failover,
        _: &mut History,
    ) -> ControlFlow<NotConnected> {
        let (Refusal::Unusable(why) | Refusal::Failed(why)) = refusal;
        self.pending.message(Level::Warn, &format!("machine {machine} skipped: {why}"));
        let is_it =
            |index: &&usize| self.machines.get(**index).is_some_and(|line| line.uri == *machine);
        self.failed.extend(self.fitting.iter().find(is_it));
        self.case.skipped.insert(machine.to_owned(), why);
        ControlFlow::Break(NotConnected::Refused)
    }
}

impl<W: Write> BeforeAccept<'_, '_, '_, W> {
    /// Takes a slot on one of `open` that has not reported to be full. Returns `None` if there is
    /// no such machine.
    fn turn(&self, open: &[String]) -> Option<Turn> {
        let mut turn = None;
        for some in [open.get(..LOOKED_AT_FIRST), Some(open)].into_iter().flatten() {
            let lines = self.fitting.iter().filter_map(|index| self.machines.get(*index));
            let mut wanted = wanted(lines, some);
            wanted.retain(|wanted| !self.case.full.contains(&wanted.machine));
            if !wanted.is_empty() {
                turn = Some(self.queue.turn(&self.case.waiting, &wanted, None, PATIENCE));
            }
            if let Some(Turn::Yours(..) | Turn::Unusable(..)) = turn {
                break;
            }
        }
        turn
    }

    /// Returns whether nothing is lost by accepting before connecting.
    fn is_early(&self, machine: &str, hold: &Allocation, failover: &Failover) -> bool {
        let others = failover.groups().flatten().any(|uri| uri != machine);
        let OpenCandidate { local, availabilities, .. } = &*self.case;
        self.early_accept
            && hold.slot.is_some()
            && is_safe(local.able, availabilities.get(machine), others)
    }
}

/// Returns whether accepting a build before connecting to a machine with this standing loses
/// nothing. `able` is whether this machine can build it, and `others` whether it may also go to
/// another machine.
///
/// A build that this machine can do is never accepted early, not even if the machine has just
/// answered: if all machines failed then, Nix would no longer build it here.
const fn is_safe(able: bool, availability: Availability, others: bool) -> bool {
    match availability {
        // Without another way to build it, a machine that does not answer fails it in any case.
        Availability::Proven | Availability::Unknown => !able,
        Availability::Due | Availability::Out { .. } => !able && others,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_builds_that_this_machine_cannot_do_are_accepted_early() {
        let out = Availability::Out { ms: 1 };
        for (able, availability, others, safe) in [
            (true, Availability::Proven, true, false),
            (true, Availability::Unknown, true, false),
            (true, Availability::Due, true, false),
            (false, Availability::Proven, false, true),
            (false, Availability::Unknown, false, true),
            (false, Availability::Due, false, false),
            (false, Availability::Due, true, true),
            (false, out, true, true),
            (false, out, false, false),
        ] {
            assert_eq!(
                is_safe(able, availability, others),
                safe,
                "{able} {availability:?} {others}"
            );
        }
    }
}
