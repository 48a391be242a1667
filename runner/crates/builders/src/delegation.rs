//! A build that Nix was told is taken: it waits for a slot, goes to a machine, and if that one is
//! lost, to the next; until it is built, has failed, or no machine is left.
//!
//! Nix has already sent what a machine needs, and waits for the end of this process, so there is no
//! other answer any more than its exit code and its words. Each move is told in one line.

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::io::Write;
use std::os::fd::BorrowedFd;
use std::time::{Duration, Instant};

use super::described::described;
use super::failover::{Failover, Ranking};
use super::health::{Probe, Standing, standing};
use super::lease::{Activity, Wanted};
use super::memory::Memory;
use super::pool::{self, Present};
use super::queue::{Queue, Waited, Waiting};
use super::record::{Ended, Move, NewBuild, Outcome, now_ms};
use super::reply::{self, Level};
use super::request::{Inputs, Request};
use super::resources::Hold;
use super::settings::Settings;
use super::slots::Slot;
use super::speech::{Ending, Timing};
use super::stock::{Build, Offer, Report, StockHook, Target};
use hookrun_nix::event::NixDirs;
use hookrun_nix::machines::MachineLine;
use hookrun_nix::selection::Candidate;
use hookrun_nix::shared::Text;

/// A wait is told when it takes longer than this: most do not.
const TOLD_AFTER: Duration = Duration::from_secs(1);
/// A machine whose slot we hold can be full only for as long as a hook that was killed takes to
/// end.
const FULL_PAUSE: Duration = Duration::from_millis(100);
/// After so many times it is not that.
const MOST_FULL: u32 = 20;
/// How often the health of machines is looked at while a build waits for them.
const HEALTH_EVERY: Duration = Duration::from_secs(2);

/// Where an accepted build begins.
pub enum First {
    /// On this machine, which has accepted.
    Connected {
        /// By URI.
        machine: Text,
        /// Held there.
        hold: Hold,
        /// The hook, waiting for inputs.
        build: Box<dyn Build>,
    },
    /// On this machine, which is not connected to yet.
    Slot {
        /// By URI.
        machine: Text,
        /// Held there.
        hold: Hold,
    },
    /// Where a slot is free first.
    Queue,
}

/// An accepted build.
pub struct Accepted {
    /// What is built.
    pub candidate: Candidate,
    /// Where it may go.
    pub failover: Failover,
    /// Where it begins.
    pub first: First,
    /// The right to try that machine, if it had failed.
    pub probe: Option<Probe>,
    /// How it waits.
    pub waiting: Waiting,
    /// After how long of waiting the policy wants to be asked again.
    pub ask_again: Option<Duration>,
    /// What to call its machine to Nix.
    pub name: Text,
    /// What it needs.
    pub present: Present,
}

/// Ranks the machines for an accepted build once more, without those that were tried; with it,
/// after how long of waiting to do so again ([`Question::ask`](super::failover::Question::ask)).
pub type AskAgain<'a> =
    &'a mut dyn FnMut(&mut Memory, &BTreeSet<Text>) -> (Ranking, Option<Duration>);

/// What it takes to carry one out.
pub struct Delegation<'a> {
    /// Nix's settings.
    pub settings: &'a Settings,
    /// All machines.
    pub machines: &'a [MachineLine],
    /// The question, to be repeated.
    pub request: &'a Request,
    /// Nix's own hook.
    pub stock: &'a mut dyn StockHook,
    /// What is remembered.
    pub memory: &'a mut Memory,
    /// Who else waits.
    pub queue: &'a Queue,
    /// The directories of the Nix that called.
    pub nix_dirs: &'a NixDirs,
    /// Where Nix reads.
    pub nix: BorrowedFd<'a>,
    /// Forgets slots' lock files.
    pub slot_files: &'a super::load::SlotFiles,
    /// Asks the policy once more.
    pub ask_again: AskAgain<'a>,
}

/// What is known at the end.
struct Story {
    id: Option<i64>,
    machine: Text,
    waited: Duration,
    moves: Vec<Move>,
    timing: Timing,
}

impl Delegation<'_> {
    /// Carries it out; the exit code for Nix.
    pub fn run(mut self, accepted: Accepted, inputs: &Inputs, reply: &mut dyn Write) -> u8 {
        let Accepted {
            candidate,
            mut failover,
            first,
            mut probe,
            waiting,
            mut ask_again,
            name,
            present,
        } = accepted;
        let command = self.queue.command().to_string();
        let new = NewBuild {
            candidate: &candidate,
            command: &command,
            machine: &name,
            accepted_ms: waiting.since_ms,
        };
        let id = self.memory.began(&new);
        self.memory.take_time();
        // Nix was told to build it here, and has asked again.
        self.memory.not_here(&candidate.drv_path);
        let mut story = Story {
            id,
            machine: name,
            waited: Duration::ZERO,
            moves: Vec::new(),
            timing: Timing::default(),
        };
        let mut next = match first {
            First::Connected { machine, hold, build } => Some((machine, hold, Some(build))),
            First::Slot { machine, hold } => Some((machine, hold, None)),
            First::Queue => None,
        };
        // When the health of machines was looked at: what has failed by then is known, what fails
        // later is one failure with ours.
        let mut looked_ms = waiting.since_ms;
        let mut full = 0;
        let mut lost: Option<String> = None;
        loop {
            let (machine, hold, build) = match next.take() {
                Some(first) => first,
                None if failover.next().is_empty() => {
                    return self.nowhere(&candidate, &failover, &story, reply);
                }
                None => {
                    let (waited, took, when) = self.wait(&waiting, &failover, ask_again, reply);
                    looked_ms = when;
                    story.waited += took;
                    match waited {
                        Waited::Turn(machine, hold) => (machine, hold, None),
                        Waited::Unusable(machine, why) => {
                            failover.refused(&machine);
                            ask_again = self.rank(&mut failover);
                            lost = Some(format!("machine {machine} cannot be used ({why})"));
                            story.moves.push(Move { machine: machine.to_string(), why });
                            continue;
                        }
                        Waited::NixGone => {
                            return self.end(&story, Outcome::Abandoned, Some("Nix is gone"), 1);
                        }
                        Waited::TimeOver => {
                            ask_again = self.rank(&mut failover);
                            continue;
                        }
                    }
                }
            };
            let shown = story.machine == machine;
            story.machine.clone_from(&machine);
            let Some(line) = self.machines.iter().find(|line| line.uri == machine).cloned() else {
                failover.refused(&machine);
                continue;
            };
            let expected = waiting.expected_seconds.map(|seconds| seconds / line.speed_factor);
            let here =
                Waiting { expected_seconds: expected, since_ms: now_ms(), ..waiting.clone() };
            let _lease = self.queue.announce(&here, Activity::Building(machine.clone()));
            match lost.take() {
                Some(lost) => say(
                    reply,
                    Level::Warn,
                    &format!("{}: {lost}; it goes on to {machine}", candidate.name),
                ),
                None if !shown => {
                    say(reply, Level::Info, &format!("{} goes to {machine}", candidate.name));
                }
                None => {}
            }
            // A failure tells of the time after this: the machine's own answer must not outdo it.
            let mut began_ms = looked_ms;
            let offer = match build {
                Some(build) => Offer::Accepted(build),
                None => self.offer(&line, hold.slot.as_ref(), reply),
            };
            let why = match offer {
                Offer::Accepted(build) => {
                    // The machine is back, if it was out.
                    drop(probe.take());
                    self.memory.rest();
                    began_ms = now_ms();
                    let Report { ending, code, held, closing, timing } = build.run(inputs, reply);
                    story.timing = timing;
                    if let Some(slot) = &hold.slot {
                        self.slot_files.forget(&line, slot);
                    }
                    match ending {
                        Ending::Built => {
                            write(reply, &held.concat());
                            self.brought(&machine, &candidate, &present);
                            return self.end(&story, Outcome::Built, None, 0);
                        }
                        Ending::NixGone => {
                            return self.end(&story, Outcome::Abandoned, Some("Nix is gone"), 1);
                        }
                        Ending::Failed(why) => {
                            write(reply, &held.concat());
                            return self.end(&story, Outcome::Failed, Some(&why), code);
                        }
                        Ending::Here(why) => {
                            write(reply, &held.concat());
                            write(reply, &closing);
                            return self.failed_here(&candidate, &story, &why, reply);
                        }
                        Ending::Lost(why) => {
                            write(reply, &closing);
                            failover.lost(&machine);
                            why
                        }
                    }
                }
                Offer::Full if full < MOST_FULL => {
                    // Only a hook that is just being killed can hold what is ours; or, without a
                    // slot of ours, another Nix was faster.
                    full += 1;
                    std::thread::sleep(FULL_PAUSE);
                    continue;
                }
                Offer::Here(why) => {
                    let why = format!("cannot start remote builds: {why}");
                    return self.failed_here(&candidate, &story, &why, reply);
                }
                Offer::Full => {
                    failover.refused(&machine);
                    "it is full although it has a free slot".to_owned()
                }
                Offer::Failed(why) => {
                    failover.refused(&machine);
                    why
                }
            };
            self.memory.failed(&machine, &why, began_ms);
            drop(probe.take());
            if !failover.is_the_build() {
                ask_again = self.rank(&mut failover);
            }
            // Told with the next machine: one line for each move.
            lost = Some(format!("machine {machine} is lost ({why})"));
            story.moves.push(Move { machine: machine.to_string(), why });
        }
    }

    fn offer(&mut self, line: &MachineLine, slot: Option<&Slot>, reply: &mut dyn Write) -> Offer {
        let began = Instant::now();
        let target = Target { machine: line, slot };
        let offer = self
            .stock
            .offer(self.settings, target, self.request, &mut |line| write(reply, &relayed(line)));
        if let Offer::Accepted(_) = offer {
            self.memory.answered(&line.uri, began.elapsed());
        }
        offer
    }

    /// The machines that are left, as the policy ranks them now; after how long of waiting to ask
    /// it again.
    fn rank(&mut self, failover: &mut Failover) -> Option<Duration> {
        let (ranking, ask_again) = (self.ask_again)(self.memory, failover.tried());
        failover.rank(ranking);
        ask_again
    }

    fn wait(
        &mut self,
        waiting: &Waiting,
        failover: &Failover,
        ask_again: Option<Duration>,
        reply: &mut dyn Write,
    ) -> (Waited, Duration, u64) {
        let began = Instant::now();
        let mut looked_ms = now_ms();
        let mut looked: Option<(Instant, Vec<Wanted>)> = None;
        let (memory, machines) = (&mut *self.memory, self.machines);
        let mut wanted = || match &looked {
            Some((when, wanted)) if when.elapsed() < HEALTH_EVERY => wanted.clone(),
            _ => {
                looked_ms = now_ms();
                let now = usable(memory, machines, failover);
                memory.rest();
                looked = Some((Instant::now(), now.clone()));
                now
            }
        };
        let mut told = Told::default();
        let until = ask_again.map(|within| began + within);
        let mut tell = |machines: &[Wanted], others: usize| {
            if began.elapsed() >= TOLD_AFTER {
                told.begin(reply, waiting, machines, others);
            }
        };
        let waited = self.queue.wait(waiting, &mut wanted, until, TOLD_AFTER, self.nix, &mut tell);
        told.end(reply);
        (waited, began.elapsed(), looked_ms)
    }

    /// What a build needed, and what came of it, is on its machine now.
    fn brought(&mut self, machine: &str, candidate: &Candidate, present: &Present) {
        let (_, derivation) = described(candidate.clone(), self.nix_dirs);
        let outputs = derivation
            .iter()
            .flat_map(|derivation| &derivation.outputs)
            .filter_map(|output| output.path.as_deref());
        let inputs = present.inputs.largest.iter().map(|(path, _)| path.as_str());
        self.memory.brought(machine, inputs.chain(outputs));
    }

    /// This machine has failed, and no other one is to blame.
    fn failed_here(
        &mut self,
        candidate: &Candidate,
        story: &Story,
        why: &str,
        reply: &mut dyn Write,
    ) -> u8 {
        let (name, machine) = (&candidate.name, &story.machine);
        let text = format!("{name}: this machine {why} (machine {machine} is not to blame)");
        say(reply, Level::Error, &text);
        self.end(story, Outcome::Failed, Some(&format!("this machine {why}")), 1)
    }

    /// No machine is left.
    fn nowhere(
        &mut self,
        candidate: &Candidate,
        failover: &Failover,
        story: &Story,
        reply: &mut dyn Write,
    ) -> u8 {
        let each: Vec<String> =
            story.moves.iter().map(|Move { machine, why }| format!("{machine}: {why}")).collect();
        let each = each.join("; ");
        let text = if failover.is_the_build() {
            format!(
                "{} has lost {} machines and is not tried on another: {each}",
                candidate.name,
                story.moves.len()
            )
        } else {
            format!("{} was taken, and no machine is left to build it: {each}", candidate.name)
        };
        say(reply, Level::Error, &text);
        self.end(story, Outcome::Lost, Some(&each), 1)
    }

    fn end(&mut self, story: &Story, outcome: Outcome, detail: Option<&str>, code: u8) -> u8 {
        let speed_factor = self
            .machines
            .iter()
            .find(|line| line.uri == story.machine)
            .map_or(1.0, |line| line.speed_factor);
        let now = now_ms();
        let ago = |instant: Instant| {
            now.saturating_sub(u64::try_from(instant.elapsed().as_millis()).unwrap_or(u64::MAX))
        };
        let ended = Ended {
            machine: &story.machine,
            speed_factor,
            waited_ms: u64::try_from(story.waited.as_millis()).unwrap_or(u64::MAX),
            started_ms: story.timing.started.map(ago),
            ended_ms: now,
            seconds: story.timing.building().map(|time| time.as_secs_f64()),
            outcome,
            detail,
            input_bytes: (story.timing.bytes > 0).then_some(story.timing.bytes),
            moves: &story.moves,
        };
        self.memory.ended(story.id, &ended);
        if let Some(speed) = story.timing.bytes_per_second() {
            self.memory.copied(&story.machine, speed);
        }
        code
    }
}

/// The machines to wait for: the first group of which some are not out, without the others; all
/// machines if they all are out.
fn usable(memory: &mut Memory, machines: &[MachineLine], failover: &Failover) -> Vec<Wanted> {
    let known = memory.machines();
    let now = now_ms();
    let is_inside = |wanted: &Wanted| {
        !matches!(standing(known.get(wanted.machine.as_str()), now), Standing::Out { .. })
    };
    for group in failover.groups() {
        let mut wanted = pool::wanted(machines.iter(), group);
        wanted.retain(is_inside);
        if !wanted.is_empty() {
            return wanted;
        }
    }
    failover.groups().flat_map(|group| pool::wanted(machines.iter(), group)).collect()
}

/// A line of Nix's own hook for a Nix that has its answer and takes nothing but messages from now
/// on: what ssh says is made one.
fn relayed(line: &[u8]) -> Cow<'_, [u8]> {
    let text = String::from_utf8_lossy(line);
    if line.starts_with(b"@nix ") || text.trim().is_empty() {
        return Cow::Borrowed(line);
    }
    Cow::Owned(reply::foreign(Level::Info, text.trim_end()))
}

/// The activity that shows that a build waits.
#[derive(Default)]
struct Told {
    /// For which machines; none: nothing is shown.
    names: Option<String>,
}

impl Told {
    /// Its number: as Nix makes its own (`logging.cc`, `Activity`), the process in the upper half.
    fn id() -> u64 {
        u64::from(std::process::id()) << 32
    }

    fn begin(
        &mut self,
        reply: &mut dyn Write,
        waiting: &Waiting,
        machines: &[Wanted],
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

/// What cannot be written changes nothing: that Nix is gone is noticed elsewhere.
fn write(reply: &mut dyn Write, bytes: &[u8]) {
    let _ = reply.write_all(bytes).and_then(|()| reply.flush());
}
