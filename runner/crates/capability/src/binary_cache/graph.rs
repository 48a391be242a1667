//! The order of the work of one push. Pure: it is told what has ended and says what may begin.
//!
//! Each path is looked up in the cache. If it is absent, its NAR is sent, without waiting for its
//! references and the largest first. Its narinfo is written when its NAR is stored and the narinfos
//! of all of its references are visible, so no client ever sees a path that it cannot substitute
//! completely. A path that cannot be uploaded also stops the paths that refer to it, and no others.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap, VecDeque};

use crate::object_store::SMALL_NAR;

/// A path as the graph needs it.
#[derive(Debug, Clone)]
pub(super) struct ToPush<'a> {
    pub path: &'a str,
    pub nar_size: u64,
    /// References that have to be visible first: paths of this push, or of the cache.
    pub references: &'a [String],
}

/// A queue of NARs to send. Small NARs never wait for large ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Lane {
    Small,
    Large,
}

impl Lane {
    /// Returns the lane of a NAR of this size.
    pub(super) fn of(nar_size: u64) -> Self {
        if nar_size <= SMALL_NAR { Self::Small } else { Self::Large }
    }
}

/// The result of looking up a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Found {
    /// The cache has it.
    Present,
    /// The cache has it, and its narinfo has to be written again, with more signatures.
    Incomplete,
    /// The cache does not have it.
    Absent,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// It is being looked up, or will be.
    Unknown,
    /// Its NAR is being sent, or will be.
    Absent,
    /// Its NAR is stored. It waits for its references, or its narinfo is being written.
    Stored,
    Visible,
    Failed,
}

#[derive(Debug)]
struct Node {
    nar_size: u64,
    state: State,
    /// The number of references that are not visible yet.
    waits_for: usize,
    referrers: Vec<usize>,
    /// Whether it is to be uploaded. If not, it is a reference that the cache must have.
    pushed: bool,
    /// Whether one of its references cannot be uploaded.
    doomed: bool,
}

/// The state of one push.
#[derive(Debug)]
pub(super) struct Graph {
    nodes: Vec<Node>,
    to_look_up: VecDeque<usize>,
    small: BinaryHeap<(u64, Reverse<usize>)>,
    large: BinaryHeap<(u64, Reverse<usize>)>,
    to_publish: VecDeque<usize>,
}

impl Graph {
    /// Returns the graph of `paths` and the references among them and to other paths. The other
    /// paths for which `is_elsewhere` is true need not be in the cache. The names of those that
    /// must be are returned; their numbers follow those of `paths`.
    pub(super) fn new<'a>(
        paths: &[ToPush<'a>],
        is_elsewhere: impl Fn(&str) -> bool,
    ) -> (Self, Vec<&'a str>) {
        let node = |nar_size, pushed| Node {
            nar_size,
            state: State::Unknown,
            waits_for: 0,
            referrers: Vec::new(),
            pushed,
            doomed: false,
        };
        let mut nodes: Vec<Node> = paths.iter().map(|path| node(path.nar_size, true)).collect();
        let mut numbers: HashMap<&str, usize> =
            paths.iter().enumerate().map(|(number, path)| (path.path, number)).collect();
        let mut others = Vec::new();
        for (number, path) in paths.iter().enumerate() {
            for reference in path.references {
                let target = match numbers.get(reference.as_str()) {
                    Some(target) => *target,
                    None if is_elsewhere(reference) => continue,
                    None => {
                        let target = nodes.len();
                        nodes.push(node(0, false));
                        numbers.insert(reference, target);
                        others.push(reference.as_str());
                        target
                    }
                };
                if target == number {
                    continue;
                }
                if let Some(node) = nodes.get_mut(target) {
                    node.referrers.push(number);
                }
                if let Some(node) = nodes.get_mut(number) {
                    node.waits_for += 1;
                }
            }
        }
        let graph = Self {
            to_look_up: (0..nodes.len()).collect(),
            nodes,
            small: BinaryHeap::new(),
            large: BinaryHeap::new(),
            to_publish: VecDeque::new(),
        };
        (graph, others)
    }

    /// Returns a path to look up.
    pub(super) fn next_to_look_up(&mut self) -> Option<usize> {
        self.next(|graph| graph.to_look_up.pop_front(), State::Unknown)
    }

    /// Returns the path with the largest NAR that may be sent in this lane.
    pub(super) fn next_to_send(&mut self, lane: Lane) -> Option<usize> {
        let pop = |graph: &mut Self| match lane {
            Lane::Small => graph.small.pop(),
            Lane::Large => graph.large.pop(),
        };
        self.next(|graph| pop(graph).map(|(_, Reverse(number))| number), State::Absent)
    }

    /// Returns a path whose narinfo may be written.
    pub(super) fn next_to_publish(&mut self) -> Option<usize> {
        self.to_publish.pop_front()
    }

    fn next(&mut self, pop: impl Fn(&mut Self) -> Option<usize>, expected: State) -> Option<usize> {
        loop {
            let number = pop(self)?;
            // One that has failed meanwhile is left out.
            if self.state(number) == Some(expected) {
                return Some(number);
            }
        }
    }

    fn state(&self, number: usize) -> Option<State> {
        self.nodes.get(number).map(|node| node.state)
    }

    /// A path was looked up. Returns the paths of the push that cannot be uploaded because of that.
    pub(super) fn looked_up(&mut self, number: usize, found: Found) -> Vec<usize> {
        let Some(node) = self.nodes.get_mut(number) else { return Vec::new() };
        if node.state != State::Unknown {
            return Vec::new();
        }
        let pushed = node.pushed;
        match found {
            Found::Present | Found::Incomplete => {
                self.became_visible(number);
                if found == Found::Incomplete && pushed {
                    self.to_publish.push_back(number);
                }
                Vec::new()
            }
            Found::Absent if pushed && !node.doomed => {
                node.state = State::Absent;
                let entry = (node.nar_size, Reverse(number));
                match Lane::of(node.nar_size) {
                    Lane::Small => self.small.push(entry),
                    Lane::Large => self.large.push(entry),
                }
                Vec::new()
            }
            Found::Absent => {
                let mut stopped = self.failed(number);
                stopped.extend(pushed.then_some(number));
                stopped
            }
        }
    }

    /// The NAR of a path is stored.
    pub(super) fn stored(&mut self, number: usize) {
        let Some(node) = self.nodes.get_mut(number) else { return };
        if node.state == State::Absent {
            node.state = State::Stored;
            if node.waits_for == 0 {
                self.to_publish.push_back(number);
            }
        }
    }

    /// The narinfo of a path is visible.
    pub(super) fn published(&mut self, number: usize) {
        if self.state(number) == Some(State::Stored) {
            self.became_visible(number);
        }
    }

    fn became_visible(&mut self, number: usize) {
        let Some(node) = self.nodes.get_mut(number) else { return };
        node.state = State::Visible;
        for referrer in std::mem::take(&mut node.referrers) {
            let Some(node) = self.nodes.get_mut(referrer) else { continue };
            node.waits_for = node.waits_for.saturating_sub(1);
            if node.waits_for == 0 && node.state == State::Stored {
                self.to_publish.push_back(referrer);
            }
        }
    }

    /// A path cannot be uploaded. Returns the other paths that are not uploaded because of that:
    /// those that refer to it, directly or not, and are not in the cache.
    pub(super) fn failed(&mut self, number: usize) -> Vec<usize> {
        let (mut stopped, mut failing) = (Vec::new(), vec![number]);
        while let Some(failed) = failing.pop() {
            let Some(node) = self.nodes.get_mut(failed) else { continue };
            match node.state {
                State::Visible | State::Failed => continue,
                // The cache may have it already.
                State::Unknown if failed != number => {
                    node.doomed = true;
                    continue;
                }
                State::Unknown | State::Absent | State::Stored => {}
            }
            if failed != number {
                stopped.push(failed);
            }
            node.state = State::Failed;
            failing.extend(std::mem::take(&mut node.referrers));
        }
        stopped
    }
}

#[cfg(test)]
mod tests;
