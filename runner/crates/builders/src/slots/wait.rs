//! The queue of builds that wait for a slot, shared by the sessions of all Nix commands on this
//! machine.
//!
//! There is no coordinator. Each session announces what it waits for ([`sessions`]). Whenever a
//! build ends, each session computes, one at a time, which build gets which slot ([`assignment`]),
//! and takes its own ([`SlotFiles::take`]). A session that dies frees its place and its slot,
//! because the kernel releases its locks. A waiting session is a small sleeping process without an
//! open plugin or database.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::os::fd::BorrowedFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fd::OwnedFd;
use rustix::fs::OFlags;

use crate::history::now_ms;
use crate::private;
use crate::slots::assignment::{self, Ticket};
use crate::slots::live_file::LiveFile;
use crate::slots::reservations::{self, Account, Allocation};
use crate::slots::sessions::{self, Activity, Command, SessionState, WantedMachine};
use crate::slots::slot_files::SlotFiles;
use crate::slots::slot_files::{Slot, SlotResult};
use crate::slots::watch::{SlotWatch, WakeReason};
use hookrun_config::{Amounts, Resources};

/// The file that is locked while one session computes and takes a slot.
const LOCK: &str = "queue.lock";
/// The time that a session waits for the others while Nix is blocked. Each of them needs some
/// milliseconds.
pub(crate) const PATIENCE: Duration = Duration::from_secs(1);
/// The same time for a build that is accepted.
const LONG_PATIENCE: Duration = Duration::from_secs(5);
/// The name of a ticket that is not announced yet. Names of announced tickets begin with a number.
const NOT_ANNOUNCED: &str = "~";

/// A waiting build, whose session has accepted it or is about to.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Waiting {
    pub(crate) drv_path: String,
    pub(crate) name: String,
    /// The length of the longest chain of derivations that depend on it.
    pub(crate) depth: Option<u32>,
    /// The expected duration at speed factor 1.
    pub(crate) expected_seconds: Option<f64>,
    /// The start of the wait, in milliseconds since 1970.
    pub(crate) since_ms: u64,
    /// The resources that it needs besides a slot.
    pub(crate) takes: Amounts,
}

/// The result of looking for a slot.
#[derive(Debug)]
pub(crate) enum Turn {
    /// The build gets this machine; the slot is held from now on.
    Yours(String, Allocation),
    /// This machine has a slot but cannot be used, with the reason in lower case.
    Unusable(String, String),
    Wait {
        /// The number of other builds that wait for the same machines.
        others: usize,
    },
}

/// The result of a wait.
#[derive(Debug)]
pub(crate) enum Waited {
    Turn(String, Allocation),
    /// This machine has a slot but cannot be used, with the reason.
    Unusable(String, String),
    /// The Nix that called does not read replies any longer.
    NixGone,
    TimeOver,
}

/// The queue of this machine.
#[derive(Debug, Clone)]
pub(crate) struct Queue {
    /// [`Dirs::builders`](hookrun_nix::dirs::Dirs::builders).
    builders: PathBuf,
    slot_files: SlotFiles,
    command: Command,
    limits: Resources,
}

impl Queue {
    /// Returns the queue whose files are in `builders`, for the command of this session.
    pub(crate) fn new(
        builders: &Path,
        slot_files: SlotFiles,
        command: Command,
        limits: Resources,
    ) -> Self {
        Self { builders: builders.to_owned(), slot_files, command, limits }
    }

    /// Returns the configured resources besides slots.
    pub(crate) const fn limits(&self) -> &Resources {
        &self.limits
    }

    /// Returns the Nix command that this session belongs to.
    pub(crate) const fn command(&self) -> Command {
        self.command
    }

    /// Returns the number of waiting builds of all commands.
    pub(crate) fn waiting(&self) -> usize {
        let live = sessions::live(&sessions::directory(&self.builders));
        live.iter().filter(|live| matches!(live.activity, Activity::Waiting(_))).count()
    }

    /// Announces the activity of this session to the others.
    pub(crate) fn announce(&self, waiting: &Waiting, activity: Activity) -> Option<LiveFile> {
        let Waiting { drv_path, name, depth, expected_seconds, since_ms, takes } = waiting.clone();
        let command = self.command;
        let live = SessionState {
            pid: std::process::id(),
            command,
            drv_path,
            name,
            depth,
            expected_seconds,
            since_ms,
            takes,
            activity,
        };
        // If this fails, the other sessions know less, but the slot file still counts.
        sessions::announce(&sessions::directory(&self.builders), &live).ok()
    }

    /// Takes a slot for `waiting` on one of `wanted`, if it is its turn among all builds that wait.
    ///
    /// Sessions do this one at a time. If another one holds the lock for longer than `patience`,
    /// two may try to take the same slot, and one of them tries again. Other resources must not be
    /// assigned twice, so a build that needs some of them waits.
    pub(crate) fn turn(
        &self,
        waiting: &Waiting,
        wanted: &[WantedMachine],
        own: Option<&LiveFile>,
        patience: Duration,
    ) -> Turn {
        let one_at_a_time = self.lock(patience);
        let takes = !self.limits.is_empty() && !waiting.takes.is_empty();
        if takes && matches!(one_at_a_time, OneAtATime::Busy) {
            return Turn::Wait { others: 0 };
        }
        let own =
            own.map_or_else(|| OsString::from(NOT_ANNOUNCED), |session| session.name().to_owned());
        let sessions = sessions::named(&sessions::directory(&self.builders));
        let mut running: BTreeMap<Command, u32> = BTreeMap::new();
        let mut others = Vec::new();
        for (
            name,
            SessionState { command, depth, expected_seconds, since_ms, takes, activity, .. },
        ) in sessions
        {
            match activity {
                Activity::Building(_) => *running.entry(command).or_default() += 1,
                Activity::Waiting(_) if name == own => {}
                Activity::Waiting(wanted) => {
                    others.push(Ticket {
                        name,
                        command,
                        wanted,
                        depth,
                        expected_seconds,
                        since_ms,
                        takes,
                    });
                }
            }
        }
        let account = Account::now(&self.limits, &self.builders);
        if others.is_empty() {
            return self.first_with_room(waiting, wanted, &account);
        }
        let mine = Ticket {
            name: own,
            command: self.command,
            wanted: wanted.to_vec(),
            depth: waiting.depth,
            expected_seconds: waiting.expected_seconds,
            since_ms: waiting.since_ms,
            takes: waiting.takes.clone(),
        };
        let tickets: Vec<Ticket> = std::iter::once(mine).chain(others).collect();
        let mut free = self.free(&tickets);
        loop {
            let shares = assignment::assign(
                &tickets,
                free.clone(),
                account.clone(),
                running.clone(),
                now_ms(),
            );
            let Some((_, machine)) = shares.into_iter().find(|(index, _)| *index == 0) else {
                let wanted_too =
                    |ticket: &&Ticket| ticket.wanted.iter().any(|machine| wanted.contains(machine));
                return Turn::Wait { others: tickets.iter().skip(1).filter(wanted_too).count() };
            };
            let slots = wanted
                .iter()
                .find(|wanted| wanted.machine == machine)
                .map_or(1, |wanted| wanted.slots);
            let slot = match self.slot_files.take(&machine, slots) {
                SlotResult::Slot(slot) => Some(slot),
                SlotResult::Unknown => None,
                // Another Nix was faster.
                SlotResult::Full => {
                    free.insert(machine, 0);
                    continue;
                }
            };
            return self.hold(slot, &machine, waiting);
        }
    }

    /// Returns the first machine with room, if no other build waits. There may be thousands of
    /// machines, and usually the first has a slot.
    fn first_with_room(
        &self,
        waiting: &Waiting,
        wanted: &[WantedMachine],
        account: &Account<'_>,
    ) -> Turn {
        for WantedMachine { machine, slots } in wanted {
            if account.short(machine, &waiting.takes).is_some() {
                continue;
            }
            match self.slot_files.take(machine, *slots) {
                SlotResult::Slot(slot) => return self.hold(Some(slot), machine, waiting),
                // The slot files cannot be locked, but seem to be free.
                SlotResult::Unknown
                    if self
                        .slot_files
                        .loads([(machine.as_str(), *slots)])
                        .iter()
                        .all(|load| load < slots) =>
                {
                    return self.hold(None, machine, waiting);
                }
                SlotResult::Unknown | SlotResult::Full => {}
            }
        }
        Turn::Wait { others: 0 }
    }

    fn hold(&self, slot: Option<Slot>, machine: &str, waiting: &Waiting) -> Turn {
        match Allocation::of(slot, machine, &waiting.takes, &self.limits, &self.builders) {
            Ok(hold) => Turn::Yours(machine.to_owned(), hold),
            Err(why) => Turn::Unusable(machine.to_owned(), why),
        }
    }

    /// Waits for its turn, at most until `until`. `wanted` may change meanwhile, because machines
    /// fail and recover. Calls `told` with the machines that it waits for: first after
    /// `tell_after`, and then after each check.
    pub(crate) fn wait(
        &self,
        waiting: &Waiting,
        wanted: &mut dyn FnMut() -> Vec<WantedMachine>,
        until: Option<Instant>,
        tell_after: Duration,
        nix: BorrowedFd<'_>,
        told: &mut dyn FnMut(&[WantedMachine], usize),
    ) -> Waited {
        let tell = Instant::now() + tell_after;
        let mut machines = wanted();
        let mut session = self.announce(waiting, Activity::Waiting(machines.clone()));
        // The watch begins before the first check, so that no change is missed.
        let sessions = sessions::directory(&self.builders);
        let reserved = reservations::directory(&self.builders);
        let mut watched = vec![self.slot_files.directory(), &sessions];
        if !self.limits.is_empty() && std::fs::create_dir_all(&reserved).is_ok() {
            watched.push(&reserved);
        }
        let mut watch = SlotWatch::on(&watched);
        loop {
            match self.turn(waiting, &machines, session.as_ref(), LONG_PATIENCE) {
                Turn::Yours(machine, hold) => return Waited::Turn(machine, hold),
                Turn::Unusable(machine, why) => return Waited::Unusable(machine, why),
                Turn::Wait { others } => told(&machines, others),
            }
            let within = match until.map(|until| until.saturating_duration_since(Instant::now())) {
                Some(Duration::ZERO) => return Waited::TimeOver,
                Some(left) => left,
                None => Duration::MAX,
            };
            let within = match tell.saturating_duration_since(Instant::now()) {
                Duration::ZERO => within,
                left => within.min(left),
            };
            if watch.next(nix, within) == WakeReason::NixGone {
                return Waited::NixGone;
            }
            let now = wanted();
            if now != machines {
                machines = now;
                session = self.announce(waiting, Activity::Waiting(machines.clone()));
            }
        }
    }

    /// Returns the free slots of all machines that builds wait for.
    fn free(&self, tickets: &[Ticket]) -> BTreeMap<String, u32> {
        let mut slots: BTreeMap<&String, u32> = BTreeMap::new();
        for WantedMachine { machine, slots: count } in
            tickets.iter().flat_map(|ticket| &ticket.wanted)
        {
            let known = slots.entry(machine).or_default();
            *known = (*known).max(*count);
        }
        let loads =
            self.slot_files.loads(slots.iter().map(|(machine, slots)| (machine.as_str(), *slots)));
        let free = slots.into_iter().zip(loads);
        free.map(|((machine, slots), load)| (machine.clone(), slots.saturating_sub(load))).collect()
    }

    fn lock(&self, patience: Duration) -> OneAtATime {
        let file = private::directory(&self.builders)
            .and_then(|directory| private::file(&directory, LOCK, OFlags::empty()));
        match file {
            Ok(file) if private::lock_within(&file, patience) => OneAtATime::Taken { _lock: file },
            Ok(_) => OneAtATime::Busy,
            Err(_) => OneAtATime::Unusable,
        }
    }
}

/// The lock that lets one session at a time compute and take a slot.
#[derive(Debug)]
enum OneAtATime {
    /// Held by this session, while this value is kept.
    Taken { _lock: OwnedFd },
    /// Held by another session, for longer than this one may wait.
    Busy,
    /// The lock cannot be used, because `builders/` cannot be written.
    Unusable,
}

#[cfg(test)]
mod tests;
