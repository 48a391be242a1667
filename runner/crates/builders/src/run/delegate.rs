//! An accepted build: it waits for a slot, goes to a machine, and if that machine is lost, to
//! another one, until it succeeds, fails, or no machine is left.
//!
//! Nix has already sent what a machine needs and waits for the end of this process, so the only
//! replies left are messages and the exit code. Each move is reported in one line.

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::io::Write;
use std::ops::ControlFlow;
use std::os::fd::BorrowedFd;
use std::time::{Duration, Instant};

use crate::choice::drv_attributes::described;
use crate::choice::health::{Availability, Probe, availability};
use crate::choice::pool::{self, Present};
use crate::history::{BuildEnd, BuildOutcome, History, Move, NewBuild, now_ms};
use crate::protocol::reply::{self, Level};
use crate::protocol::request::{Inputs, Request};
use crate::protocol::settings::Settings;
use crate::run::driver::{Connected, DriveResult, Driver, Refusal, SlotSearch, Slotted, Stage};
use crate::run::failover::{Failover, Ranking};
use crate::run::stock::{DelegationReport, StockHook};
use crate::run::stock_output::{DelegationOutcome, Timing};
use crate::slots::live_file::LiveFile;
use crate::slots::reservations::Allocation;
use crate::slots::sessions::{Activity, WantedMachine};
use crate::slots::slot_files::SlotFiles;
use crate::slots::wait::{Queue, Waited, Waiting};
use hookrun_nix::event::NixDirs;
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

/// Where an accepted build begins.
pub(crate) enum First {
    /// On a machine that has accepted.
    Connected(Connected),
    /// On a machine that is not connected to yet.
    Slot { machine: String, hold: Allocation },
    /// On the machine that has a slot free first.
    Queue,
}

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

/// The known facts at the end of a build.
struct Progress {
    id: Option<i64>,
    machine: String,
    waited: Duration,
    moves: Vec<Move>,
    timing: Timing,
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

/// The search for a machine after the accept. It waits for a slot, and continues after a refusal.
struct AfterAccept<'a> {
    queue: &'a Queue,
    machines: &'a [MachineLine],
    candidate: &'a Candidate,
    nix: BorrowedFd<'a>,
    reply: &'a mut dyn Write,
    ask_policy: AskAgain<'a>,
    ask_again: Option<Duration>,
    waiting: Waiting,
    /// See [`Slotted::health_read_ms`].
    health_read_ms: u64,
    /// Held since before the accept.
    slot: Option<(String, Allocation)>,
    /// The right to try a machine that had failed.
    probe: Option<Probe>,
    /// The number of times that a machine was full although this session had a slot.
    full: u32,
    /// The reason why the last machine does not have the build. It is reported together with the
    /// next machine, so that each move is one line.
    lost: Option<String>,
    /// Tells other sessions that this one builds.
    building: Option<LiveFile>,
    progress: Progress,
}

/// The reason why an accepted build has no machine.
enum NoMachine {
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

/// Converts a line of Nix's own hook after the accept, when Nix accepts only messages: output of
/// ssh becomes a message.
fn relayed(line: &[u8]) -> Cow<'_, [u8]> {
    let text = String::from_utf8_lossy(line);
    if line.starts_with(b"@nix ") || text.trim().is_empty() {
        return Cow::Borrowed(line);
    }
    Cow::Owned(reply::foreign(Level::Info, text.trim_end()))
}

/// The activity that shows that a build waits.
#[derive(Default)]
struct WaitActivity {
    /// The names of the machines; nothing is shown if there are none.
    names: Option<String>,
}

impl WaitActivity {
    /// Returns the number of the activity. As in Nix (`logging.cc`, `Activity`), the upper half is
    /// the process id.
    fn id() -> u64 {
        u64::from(std::process::id()) << 32
    }

    fn begin(
        &mut self,
        reply: &mut dyn Write,
        waiting: &Waiting,
        machines: &[WantedMachine],
        others: usize,
    ) {
        let names: Vec<&str> = machines.iter().map(|wanted| wanted.machine.as_str()).collect();
        let names = names.join(" or ");
        if self.names.as_ref() == Some(&names) {
            return;
        }
        self.end(reply);
        let others = match others {
            0 => String::new(),
            1 => ", as does 1 other build".to_owned(),
            count => format!(", as do {count} other builds"),
        };
        let Waiting { name, takes, .. } = waiting;
        let besides = if takes.is_empty() { String::new() } else { format!(" with {takes}") };
        let text = format!("{name} waits for a slot{besides} on {names}{others}");
        write(reply, &reply::activity(Self::id(), &text));
        self.names = Some(names);
    }

    fn end(&self, reply: &mut dyn Write) {
        if self.names.is_some() {
            write(
                reply,
                format!("@nix {{\"action\":\"stop\",\"id\":{}}}\n", Self::id()).as_bytes(),
            );
        }
    }
}

fn say(reply: &mut dyn Write, level: Level, text: &str) {
    write(reply, &reply::message(level, text));
}

/// Writes to Nix and ignores errors; other code notices if Nix has exited.
fn write(reply: &mut dyn Write, bytes: &[u8]) {
    let _ = reply.write_all(bytes).and_then(|()| reply.flush());
}
