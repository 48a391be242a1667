//! Finds a machine for a build: takes a slot, offers the build, and continues with the next machine
//! if one is full or refuses. [`decide`](crate::choice::decide) uses it before the accept, and
//! [`delegate`](crate::run::delegate) after it; a [`Stage`] contains the differences.

use std::ops::ControlFlow;
use std::time::Instant;

use crate::history::History;
use crate::protocol::request::Request;
use crate::protocol::settings::Settings;
use crate::run::failover::Failover;
use crate::run::stock::{Build, Offer, StockHook, Target};
use crate::slots::reservations::Allocation;
use hookrun_nix::machines::MachineLine;
use hookrun_nix::selection::Candidate;

/// A machine with its held resources.
pub(crate) struct Slotted {
    /// The store URI.
    pub(crate) machine: String,
    pub(crate) hold: Allocation,
    /// The time when the health of machines was read before this one was chosen, in milliseconds
    /// since 1970. Failures recorded before this time were known then; later ones count as the same
    /// failure as that of this session.
    pub(crate) health_read_ms: u64,
}

/// A machine that has accepted the build.
pub(crate) struct Connected {
    /// The store URI.
    pub(crate) machine: String,
    /// The allocated slot and resources.
    pub(crate) hold: Allocation,
    /// The hook, waiting for the inputs.
    pub(crate) build: Box<dyn Build>,
}

/// The result of a [`Stage`]'s search for a slot.
pub(crate) enum SlotSearch {
    Slot(Slotted),
    /// This machine has a slot but cannot be used, with the reason.
    Unusable(String, String),
}

/// The reason why a machine does not take the build.
pub(crate) enum Refusal {
    /// It was not connected to, because a resource besides the slot cannot be reserved.
    Unusable(String),
    /// It could not be reached, or did not accept.
    Failed(String),
}

/// The result of the driver.
pub(crate) enum DriveResult<E> {
    Connected(Connected),
    /// Nix's own hook fails on this machine, with the reason.
    Here(String),
    /// The stage has ended the search.
    Ended(E),
}

/// The steps that differ before and after the accept.
pub(crate) trait Stage {
    /// The reason why there is no machine.
    type End;

    /// Takes a slot on one of the remaining machines ([`Failover::next`]).
    fn slot(
        &mut self,
        failover: &mut Failover,
        history: &mut History,
    ) -> ControlFlow<Self::End, SlotSearch>;

    /// Called before the build is offered to `line`.
    fn begin(&mut self, line: &MachineLine);

    /// Passes on a line of Nix's own hook.
    fn relay(&mut self, line: &[u8]);

    /// Called when the machine has no slot free although one was seen. Returns why it is not used
    /// any more, or `None` to go on.
    fn full(&mut self, machine: &str) -> Option<String>;

    /// Called when a machine does not take the build, or was lost. It has been removed from
    /// `failover` by then.
    fn refused(
        &mut self,
        machine: &str,
        refusal: Refusal,
        failover: &mut Failover,
        history: &mut History,
    ) -> ControlFlow<Self::End>;
}

/// Offers one build to machines and records their health.
pub(crate) struct Driver<'a> {
    pub(crate) settings: &'a Settings,
    pub(crate) machines: &'a [MachineLine],
    pub(crate) candidate: &'a Candidate,
    pub(crate) request: &'a Request,
    pub(crate) stock: &'a mut dyn StockHook,
    pub(crate) history: &'a mut History,
}

impl Driver<'_> {
    /// Tries the machines until one has accepted or `stage` ends the search.
    pub(crate) fn drive<S: Stage>(
        &mut self,
        failover: &mut Failover,
        stage: &mut S,
    ) -> DriveResult<S::End> {
        loop {
            let slotted = match stage.slot(failover, self.history) {
                ControlFlow::Break(end) => return DriveResult::Ended(end),
                ControlFlow::Continue(SlotSearch::Slot(slotted)) => slotted,
                ControlFlow::Continue(SlotSearch::Unusable(machine, why)) => {
                    failover.refused(&machine);
                    let refusal = Refusal::Unusable(why);
                    match stage.refused(&machine, refusal, failover, self.history) {
                        ControlFlow::Break(end) => return DriveResult::Ended(end),
                        ControlFlow::Continue(()) => continue,
                    }
                }
            };
            let Slotted { machine, hold, health_read_ms } = slotted;
            let why = match self.offer(&machine, &hold, stage) {
                Offer::Accepted(build) => {
                    return DriveResult::Connected(Connected { machine, hold, build });
                }
                Offer::Here(why) => return DriveResult::Here(why),
                Offer::Full => match stage.full(&machine) {
                    None => continue,
                    Some(why) => why,
                },
                Offer::Failed(why) => why,
            };
            self.history.failed(&machine, &why, health_read_ms);
            failover.refused(&machine);
            let refusal = Refusal::Failed(why);
            if let ControlFlow::Break(end) =
                stage.refused(&machine, refusal, failover, self.history)
            {
                return DriveResult::Ended(end);
            }
        }
    }

    fn offer<S: Stage>(&mut self, machine: &str, hold: &Allocation, stage: &mut S) -> Offer {
        let Some(line) = self.line(machine) else {
            return Offer::Failed("no line of the setting `builders` fits".to_owned());
        };
        stage.begin(&line);
        let began = Instant::now();
        let target = Target { machine: &line, slot: hold.slot.as_ref() };
        let relay = &mut |line: &[u8]| stage.relay(line);
        let offer = self.stock.offer(self.settings, target, self.request, relay);
        if let Offer::Accepted(_) = offer {
            self.history.answered(machine, began.elapsed());
        }
        offer
    }

    /// Returns the line that Nix would use: of two lines with one URI, the first that fits.
    pub(crate) fn line(&self, machine: &str) -> Option<MachineLine> {
        let Candidate { system, required_features, .. } = self.candidate;
        let mut lines = self.machines.iter().filter(|line| line.uri == *machine);
        lines.find(|line| line.fits(system, required_features)).cloned()
    }
}
