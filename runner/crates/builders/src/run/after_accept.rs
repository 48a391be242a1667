//! The search for a machine after the accept: waits for a slot, and continues after a refusal.

use std::io::Write;
use std::ops::ControlFlow;
use std::os::fd::BorrowedFd;
use std::time::{Duration, Instant};

use crate::choice::health::{Availability, Probe, availability};
use crate::choice::pool;
use crate::history::{History, Move, now_ms};
use crate::protocol::reply::Level;
use crate::run::delegate::AskAgain;
use crate::run::driver::{Refusal, SlotSearch, Slotted, Stage};
use crate::run::failover::Failover;
use crate::run::messages::{WaitActivity, relayed, say, write};
use crate::run::stock_output::Timing;
use crate::slots::live_file::LiveFile;
use crate::slots::reservations::Allocation;
use crate::slots::sessions::{Activity, WantedMachine};
use crate::slots::wait::{Queue, Waited, Waiting};
use hookrun_nix::machines::MachineLine;
use hookrun_nix::selection::Candidate;

/// The time from which on a wait is reported. Most waits are shorter.
const TOLD_AFTER: Duration = Duration::from_secs(1);
/// The pause before a machine is tried again that is full although this session has its slot. A
/// hook that was killed needs some time to end.
const FULL_PAUSE: Duration = Duration::from_millis(100);
/// The number of such attempts after which there must be another reason.
const MOST_FULL: u32 = 20;
/// The interval at which the health of machines is read while a build waits for them.
const HEALTH_EVERY: Duration = Duration::from_secs(2);

/// The known facts at the end of a build.
pub(super) struct Progress {
    pub(super) id: Option<i64>,
    pub(super) machine: String,
    pub(super) waited: Duration,
    pub(super) moves: Vec<Move>,
    pub(super) timing: Timing,
}

/// The search for a machine after the accept. It waits for a slot, and continues after a refusal.
pub(super) struct AfterAccept<'a> {
    pub(super) queue: &'a Queue,
    pub(super) machines: &'a [MachineLine],
    pub(super) candidate: &'a Candidate,
    pub(super) nix: BorrowedFd<'a>,
    pub(super) reply: &'a mut dyn Write,
    pub(super) ask_policy: AskAgain<'a>,
    pub(super) ask_again: Option<Duration>,
    pub(super) waiting: Waiting,
    /// See [`Slotted::health_read_ms`].
    pub(super) health_read_ms: u64,
    /// Held since before the accept.
    pub(super) slot: Option<(String, Allocation)>,
    /// The right to try a machine that had failed.
    pub(super) probe: Option<Probe>,
    /// The number of times that a machine was full although this session had a slot.
    pub(super) full: u32,
    /// The reason why the last machine does not have the build. It is reported together with the
    /// next machine, so that each move is one line.
    pub(super) lost: Option<String>,
    /// Tells other sessions that this one builds.
    pub(super) building: Option<LiveFile>,
    pub(super) progress: Progress,
}

/// The reason why an accepted build has no machine.
pub(super) enum NoMachine {
    /// No machine is left.
    Left,
    /// Nix does not read replies any longer.
    NixGone,
}

impl Stage for AfterAccept<'_> {
    type End = NoMachine;

    fn slot(
        &mut self,
        failover: &mut Failover,
        history: &mut History,
    ) -> ControlFlow<NoMachine, SlotSearch> {
        self.building = None;
        let (machine, hold) = match self.slot.take() {
            Some(slot) => slot,
            None => loop {
                if failover.next().is_empty() {
                    return ControlFlow::Break(NoMachine::Left);
                }
                match self.wait(failover, history) {
                    Waited::Turn(machine, hold) => break (machine, hold),
                    Waited::Unusable(machine, why) => {
                        return ControlFlow::Continue(SlotSearch::Unusable(machine, why));
                    }
                    Waited::NixGone => return ControlFlow::Break(NoMachine::NixGone),
                    Waited::TimeOver => self.rank(failover, history),
                }
            },
        };
        let health_read_ms = self.health_read_ms;
        ControlFlow::Continue(SlotSearch::Slot(Slotted { machine, hold, health_read_ms }))
    }

    fn begin(&mut self, line: &MachineLine) {
        let machine = &line.uri;
        let shown = self.progress.machine == *machine;
        self.progress.machine.clone_from(machine);
        let expected = self.waiting.expected_seconds.map(|seconds| seconds / line.speed_factor);
        let here =
            Waiting { expected_seconds: expected, since_ms: now_ms(), ..self.waiting.clone() };
        self.building = self.queue.announce(&here, Activity::Building(machine.clone()));
        let name = &self.candidate.name;
        match self.lost.take() {
            Some(lost) => {
                say(self.reply, Level::Warn, &format!("{name}: {lost}; it moves to {machine}"));
            }
            None if !shown => say(self.reply, Level::Info, &format!("{name} goes to {machine}")),
            None => {}
        }
    }

    fn relay(&mut self, line: &[u8]) {
        write(self.reply, &relayed(line));
    }

    fn full(&mut self, _: &str) -> Option<String> {
        // Only a hook that is being killed can hold a slot of this session. Without a slot of its
        // own, another Nix was faster.
        if self.full >= MOST_FULL {
            return Some("it reports to be full although it has a free slot".to_owned());
        }
        self.full += 1;
        std::thread::sleep(FULL_PAUSE);
        None
    }

    fn refused(
        &mut self,
        machine: &str,
        refusal: Refusal,
        failover: &mut Failover,
        history: &mut History,
    ) -> ControlFlow<NoMachine> {
        let (lost, why) = match refusal {
            Refusal::Unusable(why) => (format!("machine {machine} cannot be used ({why})"), why),
            Refusal::Failed(why) => {
                drop(self.probe.take());
                (format!("machine {machine} is lost ({why})"), why)
            }
        };
        if !failover.is_the_build() {
            self.rank(failover, history);
        }
        self.lost = Some(lost);
        self.progress.moves.push(Move { machine: machine.to_owned(), why });
        ControlFlow::Continue(())
    }
}

impl AfterAccept<'_> {
    /// Ranks the remaining machines with the policy's current answer.
    fn rank(&mut self, failover: &mut Failover, history: &mut History) {
        let (ranking, ask_again) = (self.ask_policy)(history, failover.tried());
        failover.rank(ranking);
        self.ask_again = ask_again;
    }

    fn wait(&mut self, failover: &Failover, history: &mut History) -> Waited {
        let began = Instant::now();
        let mut read_ms = now_ms();
        let mut read: Option<(Instant, Vec<WantedMachine>)> = None;
        let Candidate { system, required_features, .. } = self.candidate;
        let fitting: Vec<&MachineLine> =
            self.machines.iter().filter(|line| line.fits(system, required_features)).collect();
        let mut wanted = || match &read {
            Some((when, wanted)) if when.elapsed() < HEALTH_EVERY => wanted.clone(),
            _ => {
                read_ms = now_ms();
                let now = usable(history, &fitting, failover);
                history.close();
                read = Some((Instant::now(), now.clone()));
                now
            }
        };
        let mut shown = WaitActivity::default();
        let until = self.ask_again.map(|within| began + within);
        let (waiting, reply) = (&self.waiting, &mut *self.reply);
        let mut tell = |machines: &[WantedMachine], others: usize| {
            if began.elapsed() >= TOLD_AFTER {
                shown.begin(reply, waiting, machines, others);
            }
        };
        let waited = self.queue.wait(waiting, &mut wanted, until, TOLD_AFTER, self.nix, &mut tell);
        shown.end(self.reply);
        self.health_read_ms = read_ms;
        self.progress.waited += began.elapsed();
        waited
    }
}

/// Returns the machines to wait for: the first group with machines that are not out, without those
/// that are; all machines if all are out.
fn usable(
    history: &mut History,
    machines: &[&MachineLine],
    failover: &Failover,
) -> Vec<WantedMachine> {
    let known = history.machines();
    let now = now_ms();
    let is_inside = |wanted: &WantedMachine| {
        !matches!(availability(known.get(wanted.machine.as_str()), now), Availability::Out { .. })
    };
    let wanted_of = |group: &Vec<String>| pool::wanted(machines.iter().copied(), group);
    for group in failover.groups() {
        let mut wanted = wanted_of(group);
        wanted.retain(is_inside);
        if !wanted.is_empty() {
            return wanted;
        }
    }
    failover.groups().flat_map(wanted_of).collect()
}
