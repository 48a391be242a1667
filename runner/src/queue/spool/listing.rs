//! Which names of the spool are looked at next: the oldest of those that one look into the
//! directories found.
//!
//! The reader lists its directories once and then works through what it found, instead of listing
//! them for every batch. Anybody may add names, so only so many are kept; the others are found by
//! the next look. Pure: it reads no directory.

use std::collections::{BinaryHeap, VecDeque};

/// Names kept of one look. Names are at most 255 bytes (`NAME_MAX`), an event's 36: this is 5 MiB
/// for events and 20 MiB at worst.
pub(super) const MOST: usize = 65_536;

/// A name found in a directory. Ids sort by time and come first: the oldest is the least, in
/// whichever directory it is.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Listed {
    /// The file's name.
    pub(super) name: Vec<u8>,
    /// The directory's place among the reader's.
    pub(super) directory: usize,
}

/// The oldest of the names that are added.
#[derive(Debug)]
pub(super) struct Oldest {
    most: usize,
    /// The youngest on top.
    heap: BinaryHeap<Listed>,
    /// Were there more?
    more: bool,
}

impl Oldest {
    /// Keeps `most` names.
    pub(super) fn new(most: usize) -> Self {
        Self { most, heap: BinaryHeap::new(), more: false }
    }

    /// Keeps the name, if it is one of the oldest.
    pub(super) fn add(&mut self, listed: Listed) {
        if self.heap.len() < self.most {
            self.heap.push(listed);
            return;
        }
        self.more = true;
        if let Some(mut youngest) = self.heap.peek_mut().filter(|youngest| listed < **youngest) {
            *youngest = listed;
        }
    }

    /// The names, oldest first, and whether there were more.
    pub(super) fn into_names(self) -> (VecDeque<Listed>, bool) {
        (self.heap.into_sorted_vec().into(), self.more)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn as_if_all_had_been_sorted(names in proptest::collection::vec((any::<[u8; 2]>(), 0..3_usize), 0..40), most in 1..30_usize) {
            let all = names.into_iter().map(|(name, directory)| Listed { name: name.to_vec(), directory });
            let mut all: Vec<Listed> = all.collect();
            let mut oldest = Oldest::new(most);
            all.iter().cloned().for_each(|listed| oldest.add(listed));
            let more = all.len() > most;
            all.sort();
            all.truncate(most);
            prop_assert_eq!(oldest.into_names(), (all.into(), more));
        }
    }
}
