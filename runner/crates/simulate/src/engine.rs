//! Simulates a trace: derivations become ready, are assigned to machines, hold a slot for transfer,
//! work and copy back, and then make their dependents ready. It works with discrete events, without
//! a clock and I/O. A [`Rule`] makes all choices.
//!
//! A rule sees what a host could know ([`View`]): the speed factor of the machines file and what
//! was learned from earlier builds. The real speed of a machine and the real work of a build are
//! used only here.

use std::cmp::{Ordering, Reverse};
use std::collections::BinaryHeap;

use super::trace::Trace;
use super::view::{RunningBuild, View};
use hookrun_builders::slots::reservations::Account;
use hookrun_config::Resources;

/// Nix's default of `build-poll-interval`, in seconds. Nix asks again about postponed derivations
/// at multiples of this time.
pub const POLL_INTERVAL: f64 = 5.0;

/// Assigns builds to machines.
pub trait Rule {
    /// Called when Nix offers `id`; there may be no free slot. The answer is final unless it is
    /// [`Placement::Postpone`].
    fn offered(&mut self, view: &View<'_>, id: usize) -> Placement;

    /// Called when `machine` has a free slot. Returns the waiting build that gets it. Called again
    /// until it returns none.
    fn freed(&mut self, view: &View<'_>, machine: usize) -> Option<usize>;
}

/// The answer of a rule.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Placement {
    /// On this machine, which has a free slot.
    On(usize),
    /// The rule keeps it until a slot is free, or is asked again after this many seconds.
    Waits(Option<f64>),
    /// The rule is asked again at the next multiple of [`POLL_INTERVAL`].
    Postpone,
}

/// The result of a simulation.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Played {
    /// The time when the last build ended, in seconds.
    pub makespan: f64,
    /// The time from ready to started of each derivation that was built, in seconds.
    pub waits: Vec<f64>,
    /// The used slot-seconds by machine.
    pub busy: Vec<f64>,
    /// The number of builds by machine.
    pub builds: Vec<u32>,
    /// The total time of transfers, in seconds.
    pub transfer: f64,
    /// The number of derivations that fit on no machine, or depend on one that does not.
    pub never: usize,
    /// The periods in which a slot was held: start and end.
    pub spans: Vec<(f64, f64)>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Event {
    Done { machine: usize, id: usize },
    Ready(usize),
    Again(usize),
    Poll,
}

/// A future event. Events are ordered by time, and at the same time in the order of creation, so
/// that a trace has one result.
struct Due {
    at: f64,
    order: u64,
    event: Event,
}

impl PartialEq for Due {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}
impl Eq for Due {}
impl PartialOrd for Due {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Due {
    fn cmp(&self, other: &Self) -> Ordering {
        self.at.total_cmp(&other.at).then(self.order.cmp(&other.order))
    }
}

struct Player<'a, R: ?Sized> {
    view: View<'a>,
    rule: &'a mut R,
    due: BinaryHeap<Reverse<Due>>,
    made: u64,
    /// The number of dependencies that are not built, by derivation.
    missing: Vec<usize>,
    dependents: Vec<Vec<usize>>,
    ready_at: Vec<f64>,
    started: Vec<bool>,
    postponed: Vec<usize>,
    poll_due: bool,
    played: Played,
    done: usize,
}

/// Simulates `trace` with `rule` and the resources besides slots.
pub fn play<R: Rule + ?Sized>(trace: &Trace, limits: &Resources, rule: &mut R) -> Played {
    let (dependents, depth) = behind(trace);
    let machines = trace.machines.len();
    let nodes = trace.derivations.len();
    let view = View {
        trace,
        now: 0.0,
        running: vec![Vec::new(); machines],
        there: vec![vec![false; nodes]; machines],
        depth: &depth,
        limits,
        account: Account::of(limits, []),
    };
    let played =
        Played { busy: vec![0.0; machines], builds: vec![0; machines], ..Played::default() };
    let missing = trace.derivations.iter().map(|derivation| derivation.deps.len()).collect();
    let mut player = Player {
        view,
        rule,
        due: BinaryHeap::new(),
        made: 0,
        missing,
        dependents,
        ready_at: vec![0.0; nodes],
        started: vec![false; nodes],
        postponed: Vec::new(),
        poll_due: false,
        played,
        done: 0,
    };
    for derivation in trace.derivations.iter().filter(|derivation| derivation.deps.is_empty()) {
        player.at(derivation.start_s.unwrap_or(0.0), Event::Ready(derivation.id));
    }
    player.run();
    player.played.never = nodes - player.done;
    player.played
}

/// Returns the dependents of each derivation, and the longest chain of them.
fn behind(trace: &Trace) -> (Vec<Vec<usize>>, Vec<u32>) {
    let mut dependents: Vec<Vec<usize>> = vec![Vec::new(); trace.derivations.len()];
    let mut depth = vec![0_u32; trace.derivations.len()];
    // Dependencies have smaller ids, so in descending order every depth is final when it is used.
    for derivation in trace.derivations.iter().rev() {
        let own = depth.get(derivation.id).copied().unwrap_or(0);
        for dep in &derivation.deps {
            if let (Some(users), Some(deepest)) = (dependents.get_mut(*dep), depth.get_mut(*dep)) {
                users.push(derivation.id);
                *deepest = (*deepest).max(own + 1);
            }
        }
    }
    for users in &mut dependents {
        users.reverse();
    }
    (dependents, depth)
}

impl<R: Rule + ?Sized> Player<'_, R> {
    fn at(&mut self, at: f64, event: Event) {
        self.made += 1;
        self.due.push(Reverse(Due { at, order: self.made, event }));
    }

    fn run(&mut self) {
        while let Some(Reverse(Due { at, event, .. })) = self.due.pop() {
            self.view.now = at;
            match event {
                Event::Done { machine, id } => self.ended(machine, id),
                Event::Ready(id) => {
                    if let Some(ready) = self.ready_at.get_mut(id) {
                        *ready = at;
                    }
                    self.offer(id);
                }
                Event::Again(id) => {
                    if self.started.get(id) == Some(&false) {
                        self.offer(id);
                    }
                }
                Event::Poll => {
                    self.poll_due = false;
                    for id in std::mem::take(&mut self.postponed) {
                        self.offer(id);
                    }
                }
            }
        }
    }

    fn offer(&mut self, id: usize) {
        match self.rule.offered(&self.view, id) {
            Placement::On(machine) => self.start(machine, id),
            Placement::Waits(None) => {}
            Placement::Waits(Some(within)) => self.at(self.view.now + within, Event::Again(id)),
            Placement::Postpone => {
                // No build runs and none fits, so this will never change.
                if !(0..self.view.machines()).any(|machine| self.view.fits(machine, id)) {
                    return;
                }
                self.postponed.push(id);
                if !self.poll_due {
                    self.poll_due = true;
                    let next = ((self.view.now / POLL_INTERVAL).floor() + 1.0) * POLL_INTERVAL;
                    self.at(next, Event::Poll);
                }
            }
        }
    }

    fn start(&mut self, machine: usize, id: usize) {
        let now = self.view.now;
        let missing_mb = self.view.missing_mb(machine, id);
        let (Some(on), Some(derivation)) =
            (self.view.trace.machines.get(machine), self.view.trace.derivations.get(id))
        else {
            return;
        };
        let transfer = (missing_mb + derivation.out_mb) / on.mb_per_s;
        let duration = transfer + derivation.work_s / on.speed;
        if let Some(there) = self.view.there.get_mut(machine) {
            for output in derivation.deps.iter().chain([&id]) {
                if let Some(there) = there.get_mut(*output) {
                    *there = true;
                }
            }
        }
        if let Some(started) = self.started.get_mut(id) {
            *started = true;
        }
        if let Some(running) = self.view.running.get_mut(machine) {
            running.push(RunningBuild { id, since: now });
        }
        let takes = self.view.takes(id);
        self.view.account.take(&on.name, &takes);
        self.played.waits.push(now - self.ready_at.get(id).copied().unwrap_or(now));
        self.played.transfer += transfer;
        self.played.spans.push((now, now + duration));
        if let (Some(busy), Some(builds)) =
            (self.played.busy.get_mut(machine), self.played.builds.get_mut(machine))
        {
            *busy += duration;
            *builds += 1;
        }
        self.at(now + duration, Event::Done { machine, id });
    }

    /// Assigns free slots of `machine` to waiting builds.
    fn hand_on(&mut self, machine: usize) {
        while self.view.free(machine)
            && let Some(next) = self.rule.freed(&self.view, machine)
        {
            self.start(machine, next);
        }
    }

    fn ended(&mut self, machine: usize, id: usize) {
        let now = self.view.now;
        self.done += 1;
        self.played.makespan = now;
        if let Some(running) = self.view.running.get_mut(machine) {
            running.retain(|running| running.id != id);
        }
        let takes = self.view.takes(id);
        if let Some(on) = self.view.trace.machines.get(machine) {
            self.view.account.give_back(&on.name, &takes);
        }
        // Nix notices the end of a build, and offers its dependents, after the slot is free for
        // other builds.
        self.hand_on(machine);
        // Its other resources may have been missing on other machines.
        if !takes.is_empty() {
            (0..self.view.machines()).for_each(|machine| self.hand_on(machine));
        }
        for dependent in self.dependents.get(id).cloned().unwrap_or_default() {
            let Some(missing) = self.missing.get_mut(dependent) else { continue };
            *missing -= 1;
            if *missing == 0 {
                let start = self
                    .view
                    .trace
                    .derivations
                    .get(dependent)
                    .and_then(|d| d.start_s)
                    .unwrap_or(now);
                self.at(now.max(start), Event::Ready(dependent));
            }
        }
    }
}
