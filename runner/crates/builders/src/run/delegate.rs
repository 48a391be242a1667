//! An accepted build: it waits for a slot, goes to a machine, and if that machine is lost, to
//! another one, until it succeeds, fails, or no machine is left.
//!
//! Nix has already sent what a machine needs and waits for the end of this process, so the only
//! replies left are messages and the exit code. Each move is reported in one line.

use std::collections::BTreeSet;
use std::io::Write;
use std::ops::ControlFlow;
use std::os::fd::BorrowedFd;
use std::time::{Duration, Instant};

use crate::choice::drv_attributes::described;
use crate::choice::health::Probe;
use crate::choice::pool::Present;
use crate::history::{BuildEnd, BuildOutcome, History, Move, NewBuild, now_ms};
use crate::protocol::reply::Level;
use crate::protocol::request::{Inputs, Request};
use crate::protocol::settings::Settings;
use crate::run::after_accept::{AfterAccept, NoMachine, Progress};
use crate::run::driver::{Connected, DriveResult, Driver, Refusal, Stage as _};
use crate::run::failover::{Failover, Ranking};
use crate::run::messages::{say, write};
use crate::run::stock::{DelegationReport, StockHook};
use crate::run::stock_output::{DelegationOutcome, Timing};
use crate::slots::reservations::Allocation;
use crate::slots::slot_files::SlotFiles;
use crate::slots::wait::{Queue, Waiting};
use hookrun_nix::event::NixDirs;
use hookrun_nix::machines::MachineLine;
use hookrun_nix::selection::Candidate;

/// Where an accepted build begins.
pub(crate) enum First {
    /// On a machine that has accepted.
    Connected(Connected),
    /// On a machine that is not connected to yet.
    Slot { machine: String, hold: Allocation },
    /// On the machine that has a slot free first.
    Queue,
}

/// A build that was accepted.
pub(crate) struct Accepted {
    pub(crate) candidate: Candidate,
    pub(crate) failover: Failover,
    pub(crate) first: First,
    /// The right to try that machine, if it had failed.
    pub(crate) probe: Option<Probe>,
    pub(crate) waiting: Waiting,
    /// The longest wait before the policy is asked again.
    pub(crate) ask_again: Option<Duration>,
    /// The name of its machine for Nix.
    pub(crate) name: String,
    /// Its inputs, and where they are.
    pub(crate) present: Present,
}

/// Ranks the remaining machines for an accepted build again. Also returns the longest time before
/// it is called again ([`Question::ask`](crate::run::failover::Question::ask)).
pub(crate) type AskAgain<'a> =
    &'a mut dyn FnMut(&mut History, &BTreeSet<String>) -> (Ranking, Option<Duration>);

/// The values that are needed for an accepted build.
pub(crate) struct Delegation<'a> {
    pub(crate) settings: &'a Settings,
    pub(crate) machines: &'a [MachineLine],
    /// The question, to be repeated to Nix's own hook.
    pub(crate) request: &'a Request,
    pub(crate) stock: &'a mut dyn StockHook,
    pub(crate) history: &'a mut History,
    pub(crate) queue: &'a Queue,
    /// The directories of the Nix that called.
    pub(crate) nix_dirs: &'a NixDirs,
    /// The stream that Nix reads.
    pub(crate) nix: BorrowedFd<'a>,
    pub(crate) slot_files: &'a SlotFiles,
    pub(crate) ask_again: AskAgain<'a>,
}

impl Delegation<'_> {
    /// Runs the build. Returns the exit code for Nix.
    pub(crate) fn run(self, accepted: Accepted, inputs: &Inputs, reply: &mut dyn Write) -> u8 {
        let Accepted { candidate, failover, first, probe, waiting, ask_again, name, present } =
            accepted;
        let history = self.history;
        let id = history.began(&NewBuild {
            candidate: &candidate,
            command: &self.queue.command().to_string(),
            machine: &name,
            accepted_ms: waiting.since_ms,
        });
        history.allow_slow_writes();
        // Nix may have been told earlier to build it here, and has asked again.
        history.not_here(&candidate.drv_path);
        let (connected, slot) = match first {
            First::Connected(connected) => (Some(connected), None),
            First::Slot { machine, hold } => (None, Some((machine, hold))),
            First::Queue => (None, None),
        };
        let stage = AfterAccept {
            queue: self.queue,
            machines: self.machines,
            candidate: &candidate,
            nix: self.nix,
            reply,
            ask_policy: self.ask_again,
            ask_again,
            health_read_ms: waiting.since_ms,
            waiting,
            slot,
            probe,
            full: 0,
            lost: None,
            building: None,
            progress: Progress {
                id,
                machine: name,
                waited: Duration::ZERO,
                moves: Vec::new(),
                timing: Timing::default(),
            },
        };
        let driver = Driver {
            settings: self.settings,
            machines: self.machines,
            candidate: &candidate,
            request: self.request,
            stock: self.stock,
            history,
        };
        let (nix_dirs, slot_files) = (self.nix_dirs, self.slot_files);
        let run = Run { driver, stage, failover, inputs, present, nix_dirs, slot_files };
        run.finish(connected)
    }
}

/// The state of an accepted build.
struct Run<'a> {
    driver: Driver<'a>,
    stage: AfterAccept<'a>,
    failover: Failover,
    inputs: &'a Inputs,
    present: Present,
    nix_dirs: &'a NixDirs,
    slot_files: &'a SlotFiles,
}

impl Run<'_> {
    fn finish(mut self, first: Option<Connected>) -> u8 {
        let mut connected = first;
        if let Some(line) = connected.as_ref().and_then(|first| self.driver.line(&first.machine)) {
            self.stage.begin(&line);
        }
        loop {
            let connected = match connected.take() {
                Some(connected) => connected,
                None => match self.driver.drive(&mut self.failover, &mut self.stage) {
                    DriveResult::Connected(connected) => connected,
                    DriveResult::Here(why) => {
                        return self.failed_here(&format!("cannot start remote builds: {why}"));
                    }
                    DriveResult::Ended(NoMachine::Left) => return self.nowhere(),
                    DriveResult::Ended(NoMachine::NixGone) => return self.nix_gone(),
                },
            };
            if let ControlFlow::Break(code) = self.build(connected) {
                return code;
            }
        }
    }

    /// Builds on a machine that has accepted. Continues if that machine is lost.
    fn build(&mut self, Connected { machine, hold, build }: Connected) -> ControlFlow<u8> {
        // The machine works again, if it was out.
        drop(self.stage.probe.take());
        self.driver.history.close();
        let began_ms = now_ms();
        let DelegationReport { ending, code, held, closing, timing } =
            build.run(self.inputs, self.stage.reply);
        self.stage.progress.timing = timing;
        if let (Some(slot), Some(line)) = (&hold.slot, self.driver.line(&machine)) {
            self.slot_files.forget(&line, slot);
        }
        let why = match ending {
            DelegationOutcome::Built => {
                write(self.stage.reply, &held.concat());
                self.record_paths(&machine);
                return ControlFlow::Break(self.end(BuildOutcome::Built, None, 0));
            }
            DelegationOutcome::NixGone => return ControlFlow::Break(self.nix_gone()),
            DelegationOutcome::Failed(why) => {
                write(self.stage.reply, &held.concat());
                return ControlFlow::Break(self.end(BuildOutcome::Failed, Some(&why), code));
            }
            DelegationOutcome::Here(why) => {
                write(self.stage.reply, &held.concat());
                write(self.stage.reply, &closing);
                return ControlFlow::Break(self.failed_here(&why));
            }
            DelegationOutcome::Lost(why) => why,
        };
        write(self.stage.reply, &closing);
        self.failover.lost(&machine);
        let history = &mut *self.driver.history;
        history.failed(&machine, &why, began_ms);
        match self.stage.refused(&machine, Refusal::Failed(why), &mut self.failover, history) {
            ControlFlow::Break(_) => ControlFlow::Break(self.nowhere()),
            ControlFlow::Continue(()) => ControlFlow::Continue(()),
        }
    }

    /// Records that the machine of the build has its inputs and outputs now.
    fn record_paths(&mut self, machine: &str) {
        let (_, derivation) = described(self.driver.candidate.clone(), self.nix_dirs);
        let outputs = derivation
            .iter()
            .flat_map(|derivation| &derivation.outputs)
            .filter_map(|output| output.path.as_deref());
        let inputs = self.present.inputs.largest.iter().map(|(path, _)| path.as_str());
        self.driver.history.record_paths_on(machine, inputs.chain(outputs));
    }

    fn nix_gone(&mut self) -> u8 {
        self.end(BuildOutcome::Abandoned, Some("Nix has exited"), 1)
    }

    /// Ends the build because this machine has failed and not the other one.
    fn failed_here(&mut self, why: &str) -> u8 {
        let (name, machine) = (&self.driver.candidate.name, &self.stage.progress.machine);
        let text = format!("{name}: this machine {why} (machine {machine} is not the cause)");
        say(self.stage.reply, Level::Error, &text);
        self.end(BuildOutcome::Failed, Some(&format!("this machine {why}")), 1)
    }

    fn nowhere(&mut self) -> u8 {
        let (name, moves) = (&self.driver.candidate.name, &self.stage.progress.moves);
        let each: Vec<String> =
            moves.iter().map(|Move { machine, why }| format!("{machine}: {why}")).collect();
        let each = each.join("; ");
        let text = if self.failover.is_the_build() {
            let lost = moves.len();
            format!("{name} has lost {lost} machines and is not tried on another one: {each}")
        } else {
            format!("{name} was accepted, but no machine is left to build it: {each}")
        };
        say(self.stage.reply, Level::Error, &text);
        self.end(BuildOutcome::Lost, Some(&each), 1)
    }

    /// Records the end of the build.
    fn end(&mut self, outcome: BuildOutcome, detail: Option<&str>, code: u8) -> u8 {
        let progress = &self.stage.progress;
        let speed_factor =
            self.driver.line(&progress.machine).map_or(1.0, |line| line.speed_factor);
        let now = now_ms();
        let ago = |instant: Instant| {
            now.saturating_sub(u64::try_from(instant.elapsed().as_millis()).unwrap_or(u64::MAX))
        };
        let timing = progress.timing;
        let ended = BuildEnd {
            machine: &progress.machine,
            speed_factor,
            waited_ms: u64::try_from(progress.waited.as_millis()).unwrap_or(u64::MAX),
            started_ms: timing.started.map(ago),
            ended_ms: now,
            seconds: timing.building().map(|time| time.as_secs_f64()),
            outcome,
            detail,
            input_bytes: (timing.bytes > 0).then_some(timing.bytes),
            moves: &progress.moves,
        };
        self.driver.history.ended(progress.id, &ended);
        if let Some(speed) = timing.bytes_per_second() {
            self.driver.history.copied(&progress.machine, speed);
        }
        code
    }
}
